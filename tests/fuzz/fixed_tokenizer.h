/* Tokenizers in memory, for targets that need one: the letters of all bytes, some merges, and added tokens. */
#ifndef DS_TESTS_FIXED_TOKENIZER_H
#define DS_TESTS_FIXED_TOKENIZER_H

#include "tokenizer/tokenizer.h"

/* The name of a pre-tokenizer, added tokens with their kinds (DS_TOKEN_*), a chat template ("": none). Letters of bytes
 * from 0xf5 on, which no UTF-8 has, are added tokens, as DeepSeek-V2 has them. */
dsv2_tokenizer *fixed_tokenizer(const char *pre, const char *const *added, const uint8_t *kinds, size_t n_added,
                                const char *chat_template);

#endif

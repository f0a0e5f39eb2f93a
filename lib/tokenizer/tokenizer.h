/* tokenizer: byte-level BPE, pre-tokenizers, chat and fill-in-the-middle prompts. The public functions of <dsv2/tokenizer.h> are
 * in api/tokenizer.c; they check arguments and call these. May include: base, formats (a GGUF's vocabulary). */
#ifndef DSV2_LIB_TOKENIZER_H
#define DSV2_LIB_TOKENIZER_H

#include "base/base.h"

#include <dsv2/tokenizer.h>

/* From the text of a tokenizer.json; `path` is for messages. */
dsv2_status dsv2_tokenizer_from_json(const char *path, const char *json, size_t size, dsv2_tokenizer **tokenizer);

/* From a path as dsv2_tokenizer_open takes it. */
dsv2_status dsv2_tokenizer_load(const char *path, dsv2_tokenizer **tokenizer);

void dsv2_tokenizer_destroy(dsv2_tokenizer *tokenizer);

/* Sets the ids that config.json gives (-1: keep what the tokenizer itself says). */
void dsv2_tokenizer_set_special(dsv2_tokenizer *tokenizer, int32_t bos_token_id, int32_t eos_token_id);

#endif

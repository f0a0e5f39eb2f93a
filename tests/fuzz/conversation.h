/* Snapshots of a conversation with a small model, for targets that change them. */
#ifndef DS_TESTS_CONVERSATION_H
#define DS_TESTS_CONVERSATION_H

#include "stream.h"

#include <dsv2/dsv2.h>

enum { CONVERSATION = 140, CONVERSATION_VOCAB = 320 };

dsv2_model *conversation_model(void);
const int32_t *conversation_tokens(void); /* [CONVERSATION] */

/* A session with the first n tokens. */
dsv2_session *conversation_session(dsv2_cache_type type, size_t n, size_t max_length);

/* A snapshot of the first so many tokens, of the kind that the byte says; *data stays as it is. Its cache type and
 * number of tokens are stored too. */
void conversation_snapshot(uint8_t kind, const uint8_t **data, size_t *size, dsv2_cache_type *type, size_t *n);

/* A copy with the changes that the input describes: to rows inside frames, and with right checksums to all the rest.
 * To be freed. */
uint8_t *conversation_change(const uint8_t *data, size_t size, stream *in, size_t *new_size);

#endif

/* One session's part of a pass. */
#ifndef DS_LIB_FORWARD_SEQUENCE_H
#define DS_LIB_FORWARD_SEQUENCE_H

#include "cache/cache.h"
#include "forward/fault.h"
#include "forward/usage.h"

/* n_rows tokens at positions first_position and on. */
typedef struct ds_sequence ds_sequence;
struct ds_sequence {
    ds_cache *cache;            /* with these positions reserved */
    const int32_t *tokens;      /* n_rows ids, checked */
    uint32_t n_rows;
    size_t first_position;
    dsv2_attention attention;
    float *all_logits;          /* NULL, or n_rows rows of vocab_size */
    float *last_logits;         /* NULL, or one row: of the last token */
    /* NULL, or asked after every layer, from the calling thread, whether to stop. A stopped sequence has no results. A
     * status other than DSV2_OK ends the pass at once. */
    dsv2_status (*stop)(void *owner, uint32_t n_rows, bool *stopped);
    /* NULL, or told after every MoE layer, from the calling thread, what the router chose for rows first_row and on. */
    void (*routed)(void *owner, const ds_sequence *sequence, uint32_t layer, const ds_routes *routes);
    void *owner;
    /* Set by the pass. */
    uint32_t first_row;
    bool stopped, expanded;
    ds_fault fault; /* of a kind: the sequence is stopped because of it */
};

#endif

/* A pass: the working memory of one call, one allocation laid out for a number of rows and a length of context. */
#ifndef DS_LIB_FORWARD_PASS_H
#define DS_LIB_FORWARD_PASS_H

#include "forward/attention.h"
#include "forward/ffn.h"
#include "forward/forward.h"
#include "forward/head.h"
#include "forward/moe.h"

struct ds_pass {
    const ds_decoder *decoder;
    ds_pass_store *store;
    ds_pass *next;        /* in the store */
    uint64_t last_needed; /* the store's clock when a call last needed a pass of about this size */
    size_t max_position;
    uint8_t *memory;
    size_t memory_bytes;

    ds_rows rows;

    /* Attention, feed-forward part and head take turns: lay_out in pass.c puts them on the same bytes. */
    void *attention; /* the kind's own struct */
    ds_ffn_memory ffn;
    ds_moe_memory moe;
    ds_head_memory head;
};

#endif

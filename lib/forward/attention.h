/* A kind of attention: what a model's attention part is, by function. Multi-head Latent Attention is one kind;
 * grouped-query attention will be another. */
#ifndef DS_LIB_FORWARD_ATTENTION_H
#define DS_LIB_FORWARD_ATTENTION_H

#include "forward/rows.h"

typedef struct ds_attention_kind {
    const char *name;

    /* The kind's working memory: a struct of memory_bytes, whose pointers lay_out sets. stage_floats: what each thread
     * needs besides, in floats. */
    size_t memory_bytes;
    void (*lay_out)(void *memory, ds_layout *layout);
    size_t (*stage_floats)(const ds_config *config);

    /* What the kind keeps of a token in the cache, and how wide each part is. */
    const ds_row_description *row;
    void (*row_widths)(const ds_config *config, uint32_t widths[DS_MAX_PARTS]);

    /* Sets sequence->expanded: whether keys and values are expanded for the sequence's rows. The choice depends on the
     * sequence's own rows alone, so that their bits do not depend on the other sequences. */
    void (*choose_form)(const ds_config *config, ds_sequence *sequence);

    /* rows->output = attention(rows->normed) of one layer, which also writes the rows' keys and values to their
     * caches. */
    dsv2_status (*run)(ds_rows *rows, uint32_t layer, void *memory);
} ds_attention_kind;

#endif

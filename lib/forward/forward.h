/* forward: what a model does with tokens. A pass takes some rows, each one token of one session, through all layers.
 * May include: base, kernels, cache, config, weights.
 *
 * Where to read what:
 *   decoder.c  the forward pass from tokens to logits
 *   mla.c      Multi-head Latent Attention (section 2.1 of the report)
 *   attend.c   the online softmax over tiles
 *   rope.c     rotary embedding and YaRN (section 3.1.4)
 *   moe.c      DeepSeekMoE (section 2.2)
 *   router.c   the choice of experts; usage.c counts the choices
 *   ffn.c      the SwiGLU networks of experts and dense layers
 *   head.c     the logits
 *   linear.c   y = W x over all threads
 *   fault.c    numbers that went wrong in a row: the row's sequence ends, the others go on
 *   pass.c     working memory, whose sizes the other files say */
#ifndef DS_LIB_FORWARD_H
#define DS_LIB_FORWARD_H

#include "forward/attention.h"
#include "forward/rope.h"

#include <stdatomic.h>

typedef struct ds_pass ds_pass;

/* The kind of attention of a model with this configuration (kinds.c). */
const ds_attention_kind *ds_attention_kind_of(const ds_config *config);

/* What all passes of a model read. Never changes once it is made. */
typedef struct ds_decoder {
    const ds_config *config;
    const ds_weights *weights;
    const ds_kernels *kernels;
    ds_pool *pool;
    ds_rope rope;
    const ds_attention_kind *attention;
    ds_stage_watch watch; /* for tests alone, which set it between passes */
} ds_decoder;

/* What the arguments point to outlives the decoder. The caller calls ds_decoder_free also after a failure. */
dsv2_status ds_decoder_init(ds_decoder *decoder, const ds_config *config, const ds_weights *weights,
                            const ds_kernels *kernels, ds_pool *pool);
void ds_decoder_free(ds_decoder *decoder); /* does nothing for a decoder of zeros */

/* Passes of one decoder that nobody uses: their working memory is kept between calls. A pass that the latest calls did
 * not need, or not nearly of its size, is freed: one long prompt does not hold its memory for ever. */
typedef struct ds_pass_store {
    const dsv2_allocator *allocator; /* of working memory */
    ds_mutex lock;
    ds_pass *idle;
    uint64_t clock;         /* passes acquired so far */
    _Atomic uint64_t bytes; /* working memory of idle passes and of those at work */
} ds_pass_store;

void ds_pass_store_init(ds_pass_store *store, const dsv2_allocator *allocator);
void ds_pass_store_free(ds_pass_store *store); /* before the decoder */

/* Takes a pass for up to n_rows rows out of the store, or makes one. The caller gives the pass back with
 * ds_pass_release. max_position: the highest position + 1 that will be attended to. */
dsv2_status ds_pass_acquire(ds_pass_store *store, const ds_decoder *decoder, uint32_t n_rows, size_t max_position,
                            ds_pass **pass);
void ds_pass_release(ds_pass *pass);

/* The forward pass over the rows of all sequences, together at most the n_rows that the pass was acquired for. On
 * failure the rows that were reserved in the caches, and the logits asked for, hold anything; nothing else has
 * changed. */
dsv2_status ds_decoder_forward(ds_pass *pass, ds_sequence *sequences, size_t n_sequences);

#endif

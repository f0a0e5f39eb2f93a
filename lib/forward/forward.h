/* forward: what a model does with tokens. A pass takes some rows, each one token of one session, through all layers.
 * May include: base, kernels, cache, config, weights.
 *
 * Where to read what: decoder.c is the forward pass from tokens to logits; mla.c Multi-head Latent Attention (section 2.1 of the
 * report), rope.c its rotary embedding and YaRN (section 3.1.4); moe.c DeepSeekMoE (section 2.2) with router.c choosing experts and
 * usage.c counting them; ffn.c the SwiGLU networks that experts and dense layers are made of; linear.c y = W x over all threads. */
#ifndef DS_LIB_FORWARD_H
#define DS_LIB_FORWARD_H

#include "cache/cache.h"
#include "config/config.h"
#include "forward/rope.h"
#include "forward/usage.h"
#include "weights/weights.h"

#include <pthread.h>
#include <stdatomic.h>

/* Most rows that go through the layers at once: enough to make matrix products out of prompts, few enough that working memory
 * stays small. An input is always cut at multiples of this from its own beginning, whatever else is in the batch. */
enum { DS_PASS_ROWS = 512 };

typedef struct ds_pass ds_pass;

/* What all passes of a model share. Constant once it is made, apart from the store of idle passes. */
typedef struct ds_decoder {
    const ds_config *config;
    const ds_weights *weights;
    const ds_kernels *kernels;
    ds_pool *pool;
    ds_rope rope;

    /* Working memory that is kept between calls. */
    pthread_mutex_t idle_lock;
    ds_pass *idle;
    _Atomic uint64_t scratch_bytes; /* of idle passes and of those at work */
} ds_decoder;

/* Everything that is pointed to outlives the decoder. Whatever is returned, ds_decoder_free follows, which takes a
 * decoder of zeros too. */
dsv2_status ds_decoder_init(ds_decoder *decoder, const ds_config *config, const ds_weights *weights, const ds_kernels *kernels,
                            ds_pool *pool);
void ds_decoder_free(ds_decoder *decoder);

/* One session's part of a pass: n_rows tokens at positions first_position and on. */
typedef struct ds_sequence ds_sequence;
struct ds_sequence {
    ds_cache *cache;            /* with these positions reserved */
    const int32_t *tokens;      /* n_rows ids, checked */
    uint32_t n_rows;
    size_t first_position;
    dsv2_attention attention;
    float *all_logits;          /* NULL, or n_rows rows of vocab_size */
    float *last_logits;         /* NULL, or one row: of the last token */
    /* Asked after every layer, from the calling thread; true ends the sequence's part: its results are then meaningless. */
    bool (*stop)(void *owner, uint32_t n_rows);
    /* NULL, or told after every MoE layer, from the calling thread, what its router chose for rows first_row and on. */
    void (*routed)(void *owner, const ds_sequence *sequence, uint32_t layer, const ds_routes *routes);
    void *owner;
    /* Set by the pass. */
    uint32_t first_row;
    bool stopped, expanded;
};

/* Takes working memory for passes of up to n_rows rows out of the decoder's store, or makes it. Given back with
 * ds_pass_release. max_position: the highest position + 1 that will be attended to. */
dsv2_status ds_pass_acquire(ds_decoder *decoder, uint32_t n_rows, size_t max_position, ds_pass **pass);
void ds_pass_release(ds_pass *pass);

/* The forward pass over the rows of all sequences, n_rows in sum at most what the pass was acquired for. On failure the rows that
 * were reserved in the caches, and the logits asked for, hold anything; nothing else has changed. */
dsv2_status ds_decoder_forward(ds_pass *pass, ds_sequence *sequences, size_t n_sequences);

#endif

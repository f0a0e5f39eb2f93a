/* model: configuration, weights bound by name, and the forward pass. A model is const in a pass, but for experts that are repacked
 * when they are first chosen; what a pass needs to write is in ds_pass. May include: base, kernels, formats, tokenizer (to own
 * one), cache.
 *
 * Where to read what: decoder.c is the forward pass from tokens to logits; mla.c Multi-head Latent Attention (section 2.1), rope.c
 * its rotary embedding and YaRN (section 3.1.4); moe.c DeepSeekMoE (section 2.2) with router.c choosing experts and balance.c counting them; ffn.c the
 * SwiGLU networks that experts and dense layers are made of; linear.c y = W x over all threads; weights.c the binding. */
#ifndef DS_LIB_MODEL_H
#define DS_LIB_MODEL_H

#include "base/base.h"
#include "cache/cache.h"
#include "formats/formats.h"
#include "kernels/kernels.h"
#include "model/balance.h"
#include "model/config.h"
#include "tokenizer/tokenizer.h"

#include <stdatomic.h>

/* Most rows that go through the layers at once: enough to make matrix products out of prompts, few enough that working memory
 * stays small. An input is always cut at multiples of this from its own beginning, whatever else is in the batch. */
enum { DS_PASS_ROWS = 512 };

typedef struct ds_conversion ds_conversion;

/* Matrices that wait to be converted together, see packing.c; zeros at first. */
typedef struct ds_conversions {
    ds_conversion *list;
    size_t n, capacity;
    uint64_t bytes;   /* to be read */
    uint8_t *scratch; /* scratch_bytes for each thread */
    size_t scratch_bytes;
} ds_conversions;

/* A SwiGLU network, W_down (silu(W_gate x) * W_up x): a dense layer's, the shared experts' or one routed expert's. */
typedef struct ds_ffn_weights {
    ds_matrix gate, up, down;
} ds_ffn_weights;

/* Attention, named as in section 2.1.2 and appendix C. */
typedef struct ds_mla_weights {
    ds_matrix q_proj;   /* W^Q, without query compression */
    ds_matrix q_a_proj; /* W^DQ */
    const float *q_a_bias, *q_a_norm;
    ds_matrix q_b_proj; /* W^UQ and W^QR, by head: nope rows, rope rows */
    ds_matrix kv_a_proj; /* W^DKV, then W^KR */
    const float *kv_a_bias, *kv_a_norm;
    ds_matrix kv_b_proj;   /* by head: W^UK (nope rows), W^UV (value rows) */
    ds_matrix k_up_transposed; /* by head: (W^UK)^T, kv_lora_rank rows of qk_nope_head_dim, for the absorbed form */
    ds_matrix o_proj;   /* W^O */
    const float *o_bias;
} ds_mla_weights;

typedef struct ds_deferred_expert ds_deferred_expert;

typedef struct ds_moe_weights {
    ds_matrix gate;        /* the router: a row e_i for every expert */
    const float *score_bias; /* e_score_correction_bias of noaux_tc, or NULL */
    ds_ffn_weights shared; /* the n_shared_experts as one network; unused where there are none */
    ds_ffn_weights *experts; /* n_routed_experts */
    ds_deferred_expert *deferred; /* NULL, or n_routed_experts: those of a GGUF, whose matrices' data are there from first use on */
} ds_moe_weights;

typedef struct ds_layer {
    const float *input_norm, *post_attention_norm;
    ds_mla_weights mla;
    bool is_moe;
    ds_ffn_weights ffn; /* dense layers */
    ds_moe_weights moe; /* MoE layers */
} ds_layer;

/* What a model is told from others by: digests of all that decides its logits and the meaning of its token ids. */
typedef struct ds_fingerprint {
    uint64_t config;    /* hyper-parameters */
    uint64_t tokenizer; /* 0: there is none */
    uint64_t weights;   /* names, shapes, types; in packs with the checksums of all data, else with a sample of each tensor's */
} ds_fingerprint;

/* The three in one: dsv2_model_info.fingerprint. */
uint64_t ds_fingerprint_digest(const ds_fingerprint *fingerprint);

typedef struct ds_pass ds_pass;

struct dsv2_model {
    _Atomic uint32_t references; /* the host's handle and every session */
    ds_config config;
    ds_container *container;
    char container_name[16];
    dsv2_tokenizer *tokenizer; /* NULL: none */
    ds_logger logger;

    ds_matrix embed_tokens, lm_head;
    const float *norm;
    ds_layer *layers;

    /* What binding had to make: converted and transposed weights, norms as floats. */
    void **owned;
    size_t n_owned, owned_capacity;
    uint64_t bytes_copied, weight_bytes, parameters;
    bool types_seen[DS_TYPE_COUNT];
    bool has_packed; /* some matrix is of a packed type: passes need room for rounded rows */
    ds_fingerprint fingerprint;

    float *rope_frequency; /* qk_rope_head_dim / 2, radians per token */
    float rope_scale;      /* of cos and sin: YaRN's first correction */
    float softmax_scale;   /* (d_h + d_h^R)^-1/2 with YaRN's second correction */

    const ds_kernels *kernels;
    ds_pool *pool;
    ds_page_pool pages;

    ds_mutex repacking_lock;
    ds_conversions repacking; /* with room for the experts of a layer, if any are deferred */

    ds_mutex passes_lock;
    ds_pass *idle_passes; /* working memory kept between calls */
    _Atomic uint64_t scratch_bytes;

    ds_load_shape load_shape;
    ds_mutex loads_lock;
    ds_load loads[DS_LOAD_KINDS]; /* of all sessions, closed ones included */
};

/* Opens, with arguments already checked; the public contract is dsv2_model_open's. as_found: weights are left as the file has
 * them, for a copy that is written rather than run (ds_model_export). */
dsv2_status ds_model_load(const char *path, const dsv2_model_options *options, bool as_found, dsv2_model **model);

/* Writes the model at `path` as a .dsv2 pack; the public contract is dsv2_model_pack's. */
dsv2_status ds_model_export(const char *path, const char *output_path, const dsv2_pack_options *options);

void ds_model_retain(dsv2_model *model);
void ds_model_release(dsv2_model *model);

uint64_t ds_model_parameters_activated(const dsv2_model *model);

/* ---- a pass: some rows through all layers ---- */

/* One session's part of a pass: n_rows tokens at positions first_position and on. */
typedef struct ds_sequence ds_sequence;
struct ds_sequence {
    ds_cache *cache;          /* with these positions reserved */
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

/* Takes working memory for passes of up to n_rows rows out of the model's store, or makes it. Given back with
 * ds_pass_release. max_position: the highest position + 1 that will be attended to. */
dsv2_status ds_pass_acquire(dsv2_model *model, uint32_t n_rows, size_t max_position, ds_pass **pass);
void ds_pass_release(dsv2_model *model, ds_pass *pass);

/* The forward pass over the rows of all sequences, n_rows in sum at most what the pass was acquired for. Cannot fail. */
void ds_decoder_forward(ds_pass *pass, ds_sequence *sequences, size_t n_sequences);

#endif

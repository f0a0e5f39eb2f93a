/* model: configuration, weights bound by name, and the forward pass. A model is const in a pass, but for experts that are repacked
 * when they are first chosen; what a pass needs to write is in dsv2_pass. May include: base, kernels, formats, tokenizer (to own
 * one), cache.
 *
 * Where to read what: decoder.c is the forward pass from tokens to logits; mla.c Multi-head Latent Attention (section 2.1), rope.c
 * its rotary embedding and YaRN (section 3.1.4); moe.c DeepSeekMoE (section 2.2) with router.c choosing experts and balance.c counting them; ffn.c the
 * SwiGLU networks that experts and dense layers are made of; linear.c y = W x over all threads; weights.c the binding. */
#ifndef DSV2_LIB_MODEL_H
#define DSV2_LIB_MODEL_H

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
enum { DSV2_PASS_ROWS = 512 };

typedef struct dsv2_conversion dsv2_conversion;

/* Matrices that wait to be converted together, see packing.c; zeros at first. */
typedef struct dsv2_conversions {
    dsv2_conversion *list;
    size_t n, capacity;
    uint64_t bytes;   /* to be read */
    uint8_t *scratch; /* scratch_bytes for each thread */
    size_t scratch_bytes;
} dsv2_conversions;

/* A SwiGLU network, W_down (silu(W_gate x) * W_up x): a dense layer's, the shared experts' or one routed expert's. */
typedef struct dsv2_ffn_weights {
    dsv2_matrix gate, up, down;
} dsv2_ffn_weights;

/* Attention, named as in section 2.1.2 and appendix C. */
typedef struct dsv2_mla_weights {
    dsv2_matrix q_proj;   /* W^Q, without query compression */
    dsv2_matrix q_a_proj; /* W^DQ */
    const float *q_a_bias, *q_a_norm;
    dsv2_matrix q_b_proj; /* W^UQ and W^QR, by head: nope rows, rope rows */
    dsv2_matrix kv_a_proj; /* W^DKV, then W^KR */
    const float *kv_a_bias, *kv_a_norm;
    dsv2_matrix kv_b_proj;   /* by head: W^UK (nope rows), W^UV (value rows) */
    dsv2_matrix k_up_transposed; /* by head: (W^UK)^T, kv_lora_rank rows of qk_nope_head_dim, for the absorbed form */
    dsv2_matrix o_proj;   /* W^O */
    const float *o_bias;
} dsv2_mla_weights;

typedef struct dsv2_deferred_expert dsv2_deferred_expert;

typedef struct dsv2_moe_weights {
    dsv2_matrix gate;        /* the router: a row e_i for every expert */
    const float *score_bias; /* e_score_correction_bias of noaux_tc, or NULL */
    dsv2_ffn_weights shared; /* the n_shared_experts as one network; unused where there are none */
    dsv2_ffn_weights *experts; /* n_routed_experts */
    dsv2_deferred_expert *deferred; /* NULL, or n_routed_experts: those of a GGUF, whose matrices' data are there from first use on */
} dsv2_moe_weights;

typedef struct dsv2_layer {
    const float *input_norm, *post_attention_norm;
    dsv2_mla_weights mla;
    bool is_moe;
    dsv2_ffn_weights ffn; /* dense layers */
    dsv2_moe_weights moe; /* MoE layers */
} dsv2_layer;

/* What a model is told from others by: digests of all that decides its logits and the meaning of its token ids. */
typedef struct dsv2_fingerprint {
    uint64_t config;    /* hyper-parameters */
    uint64_t tokenizer; /* 0: there is none */
    uint64_t weights;   /* names, shapes, types; in packs with the checksums of all data, else with a sample of each tensor's */
} dsv2_fingerprint;

/* The three in one: dsv2_model_info.fingerprint. */
uint64_t dsv2_fingerprint_digest(const dsv2_fingerprint *fingerprint);

typedef struct dsv2_pass dsv2_pass;

struct dsv2_model {
    _Atomic uint32_t references; /* the host's handle and every session */
    dsv2_config config;
    dsv2_container *container;
    char container_name[16];
    dsv2_tokenizer *tokenizer; /* NULL: none */
    dsv2_logger logger;

    dsv2_matrix embed_tokens, lm_head;
    const float *norm;
    dsv2_layer *layers;

    /* What binding had to make: converted and transposed weights, norms as floats. */
    void **owned;
    size_t n_owned, owned_capacity;
    uint64_t bytes_copied, weight_bytes, parameters;
    bool types_seen[DSV2_TYPE_COUNT];
    bool has_packed; /* some matrix is of a packed type: passes need room for rounded rows */
    dsv2_fingerprint fingerprint;

    float *rope_frequency; /* qk_rope_head_dim / 2, radians per token */
    float rope_scale;      /* of cos and sin: YaRN's first correction */
    float softmax_scale;   /* (d_h + d_h^R)^-1/2 with YaRN's second correction */

    const dsv2_kernels *kernels;
    dsv2_pool *pool;
    dsv2_page_pool pages;

    pthread_mutex_t repacking_lock;
    dsv2_conversions repacking; /* with room for the experts of a layer, if any are deferred */

    pthread_mutex_t passes_lock;
    dsv2_pass *idle_passes; /* working memory kept between calls */
    _Atomic uint64_t scratch_bytes;

    dsv2_load_shape load_shape;
    pthread_mutex_t loads_lock;
    dsv2_load loads[DSV2_LOAD_KINDS]; /* of all sessions, closed ones included */
};

/* Opens, with arguments already checked; the public contract is dsv2_model_open's. as_found: weights are left as the file has
 * them, for a copy that is written rather than run (dsv2_model_export). */
dsv2_status dsv2_model_load(const char *path, const dsv2_model_options *options, bool as_found, dsv2_model **model);

/* Writes the model at `path` as a .dsv2 pack; the public contract is dsv2_model_pack's. */
dsv2_status dsv2_model_export(const char *path, const char *output_path, const dsv2_pack_options *options);

void dsv2_model_retain(dsv2_model *model);
void dsv2_model_release(dsv2_model *model);

uint64_t dsv2_model_parameters_activated(const dsv2_model *model);

/* ---- a pass: some rows through all layers ---- */

/* One session's part of a pass: n_rows tokens at positions first_position and on. */
typedef struct dsv2_sequence dsv2_sequence;
struct dsv2_sequence {
    dsv2_cache *cache;          /* with these positions reserved */
    const int32_t *tokens;      /* n_rows ids, checked */
    uint32_t n_rows;
    size_t first_position;
    dsv2_attention attention;
    float *all_logits;          /* NULL, or n_rows rows of vocab_size */
    float *last_logits;         /* NULL, or one row: of the last token */
    /* Asked after every layer, from the calling thread; true ends the sequence's part: its results are then meaningless. */
    bool (*stop)(void *owner, uint32_t n_rows);
    /* NULL, or told after every MoE layer, from the calling thread, what its router chose for rows first_row and on. */
    void (*routed)(void *owner, const dsv2_sequence *sequence, uint32_t layer, const dsv2_routes *routes);
    void *owner;
    /* Set by the pass. */
    uint32_t first_row;
    bool stopped, expanded;
};

/* Takes working memory for passes of up to n_rows rows out of the model's store, or makes it. Given back with
 * dsv2_pass_release. max_position: the highest position + 1 that will be attended to. */
dsv2_status dsv2_pass_acquire(dsv2_model *model, uint32_t n_rows, size_t max_position, dsv2_pass **pass);
void dsv2_pass_release(dsv2_model *model, dsv2_pass *pass);

/* The forward pass over the rows of all sequences, n_rows in sum at most what the pass was acquired for. Cannot fail. */
void dsv2_decoder_forward(dsv2_pass *pass, dsv2_sequence *sequences, size_t n_sequences);

#endif

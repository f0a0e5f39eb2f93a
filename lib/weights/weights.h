/* weights: what a model holds. Where its weights lie in files, in which type they are held, what has to be
 * converted, the sources of experts, and writing all of it into a pack. After opening nothing here changes, but for
 * experts that a source makes ready. May include: base, kernels, formats, config.
 *
 * Where to read what: roles.c has the table of all weights, walk.c their order, places.c where they lie in files,
 * held_type.c in which type they are held; holder.c has the memory; convert.c and queue.c convert, kv_b.c joins and
 * transposes; digest.c is the identity; open.c puts these together, export.c writes a pack; resident.c and
 * deferred.c are the sources of experts (source.h). */
#ifndef DS_LIB_WEIGHTS_H
#define DS_LIB_WEIGHTS_H

#include "config/config.h"
#include "formats/formats.h"
#include "kernels/kernels.h"
#include "weights/holder.h"
#include "weights/queue.h"
#include "weights/source.h"

/* Attention, named as in section 2.1.2 and appendix C of the report. */
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

typedef struct ds_moe_weights {
    ds_matrix gate;          /* the router: a row e_i for every expert */
    const float *score_bias; /* e_score_correction_bias of noaux_tc, or NULL */
    ds_ffn_weights shared;   /* the n_shared_experts as one network; unused where there are none */
    ds_ffn_weights *experts; /* [n_routed_experts]: where each is held; read through the source alone */
} ds_moe_weights;

typedef struct ds_layer {
    const float *input_norm, *post_attention_norm;
    ds_mla_weights mla;
    bool is_moe;
    ds_ffn_weights ffn; /* dense layers */
    ds_moe_weights moe; /* MoE layers */
} ds_layer;

typedef struct ds_weights {
    ds_matrix embed_tokens, lm_head;
    const float *norm;
    ds_layer *layers;          /* [num_hidden_layers] */
    ds_expert_source *experts; /* where the feed-forward part gets routed experts; NULL in a dense model */

    /* What there is, for the host and for the pass's working memory. */
    uint64_t parameters, bytes;
    uint64_t bytes_copied, bytes_mapped; /* in memory of the model's own; used where they lie in mapped files */
    uint64_t bytes_beside; /* the most that opening takes beside bytes_copied, where weights are only counted */
    bool types_seen[DS_TYPE_COUNT];
    bool has_interleaved;  /* some matrix is of an interleaved type: passes need room for rounded rows */
    size_t matmul_scratch; /* floats: the most that ds_matmul asks for with any of the matrices */
    uint64_t digest;       /* names, shapes, types; checksums in packs, else a sample of each tensor */

    ds_holder holder; /* what opening made: layers, converted and transposed weights, vectors as floats */
} ds_weights;

/* What weights are opened with. All of it outlives them. */
typedef struct ds_weights_opening {
    const ds_config *config;
    const ds_container *container;
    const ds_kernels *kernels;
    ds_pool *pool;
    dsv2_weight_type weight_type;
    dsv2_progress_fn progress; /* or NULL */
    void *progress_user;
    /* Weights stay in the types that their file has: for a copy that is written rather than run. Matrices that
     * opening has to make (kv_b_proj joined, k_up_transposed) are held as otherwise. */
    bool as_found;
    bool reads;      /* the container is not mapped: all weights are read into memory */
    uint64_t lock_bytes; /* of all weights, which are kept in memory, mapped ones too; 0: they are not */
    bool only_count; /* bytes_copied, _mapped and _beside are all that is wanted: nothing is read, made or reported */
    const dsv2_allocator *allocator; /* of what is copied; NULL: the C library. Lives as long as the weights */
    uint64_t copied; /* what a count found that will be copied; 0: nobody counted */
    ds_queue_limits queue_limits; /* zeros: the usual ones */
} ds_weights_opening;

/* Finds every tensor that the configuration asks for, checks its type and shape, and brings it to the type in which
 * it is held. Messages name the tensor, what was found and what was expected. Whatever is returned, ds_weights_close
 * follows. */
dsv2_status ds_weights_open(ds_weights *weights, const ds_weights_opening *opening);
void ds_weights_close(ds_weights *weights);

/* Weights that one token meets: all but the experts that it does not choose, and of the embedding one row. */
uint64_t ds_weights_activated(const ds_weights *weights, const ds_config *config);

/* Writes weights that were opened as found, with configuration and tokenizer, as a pack. The contract is
 * dsv2_model_pack's. */
dsv2_status ds_weights_export(ds_weights *weights, const ds_weights_opening *opening, const char *output_path,
                              const dsv2_pack_options *options);

/* Memory that writing the pack takes beside the weights. They may be weights that were only counted. */
uint64_t ds_weights_export_bytes(ds_weights *weights, const ds_weights_opening *opening,
                                 const dsv2_pack_options *options);

#endif

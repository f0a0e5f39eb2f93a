/* config: what a model is. The hyper-parameters have the names of the published config.json. They are checked to fit
 * together and to lie within the bounds of any real model. May include: base, formats. */
#ifndef DS_LIB_CONFIG_H
#define DS_LIB_CONFIG_H

#include "base/base.h"
#include "formats/formats.h"

/* Bounds: well above every published model. Products of two or three of them stay far inside 64 bits, and a wrong file
 * cannot ask for absurd memory. */
enum {
    DS_MAX_LAYERS = 1024,
    DS_MAX_HEADS = 1024,
    DS_MAX_EXPERTS = 4096,
    DS_MAX_TOP_K = 64,
    DS_MAX_GROUPS = 64,
    DS_MAX_DIM = 1 << 20,        /* hidden, intermediate and rank sizes */
    DS_MAX_HEAD_DIM = 1 << 14,
    DS_MAX_VOCAB = 1 << 24,
    DS_MAX_CONTEXT = 1 << 26
};

/* Ranges of floats, from least to most, for both readers and so for what ds_config_to_json writes. They are floats
 * themselves, so that a number at an end is still in the range once it was rounded to a float. */
#define DS_RANGE_RMS_NORM_EPS 1e-37f, 1 /* a float below 2^-126 is subnormal, and a row of zeros is divided by this */
#define DS_RANGE_ROPE_THETA 1.001f, 1e12f /* the correction range divides by the logarithm */
#define DS_RANGE_YARN_FACTOR 1, 1e6f
#define DS_RANGE_YARN_BETA 1e-6f, 1e6f
#define DS_RANGE_YARN_MSCALE 0, 1e6f
#define DS_RANGE_ROUTED_SCALING 1e-6f, 1e6f

typedef enum ds_topk_method {
    DS_TOPK_GREEDY = 0,
    DS_TOPK_GROUP_LIMITED_GREEDY, /* device-limited routing, section 2.2.2 */
    DS_TOPK_NOAUX_TC              /* DeepSeek-V3 */
} ds_topk_method;

typedef enum ds_scoring_func { DS_SCORING_SOFTMAX = 0, DS_SCORING_SIGMOID } ds_scoring_func;

/* rope_scaling of type "yarn". Without it: factor 1, all else at its default. */
typedef struct ds_yarn {
    bool enabled;
    float factor;
    uint32_t original_max_position_embeddings;
    float beta_fast, beta_slow;
    float mscale, mscale_all_dim;
} ds_yarn;

/* The tokens that end a text, in the order in which the checkpoint names them. */
enum { DS_MAX_ENDS = 32 };
typedef struct ds_ends {
    int32_t ids[DS_MAX_ENDS];
    uint32_t n;
} ds_ends;

typedef struct ds_config {
    bool is_v3; /* model_type deepseek_v3 */
    uint32_t vocab_size, hidden_size, intermediate_size, moe_intermediate_size;
    uint32_t num_hidden_layers, num_attention_heads;
    uint32_t n_shared_experts, n_routed_experts, num_experts_per_tok; /* n_routed_experts 0: a dense model */
    uint32_t n_group, topk_group;                                     /* 1 and 1 where routing is not limited */
    uint32_t first_k_dense_replace, moe_layer_freq;
    /* Routed experts' gates: norm_topk_prob divides the chosen scores by their sum, then routed_scaling_factor
     * multiplies them. Both fields say what is done, not what the file has. The published code never normalises the
     * score of a single expert: norm_topk_prob is false here if num_experts_per_tok is 1. V2's code, unlike V3's, does
     * not scale scores that are normalised: routed_scaling_factor is 1 here then. */
    float routed_scaling_factor;
    bool norm_topk_prob;
    ds_topk_method topk_method;
    ds_scoring_func scoring_func;
    uint32_t q_lora_rank; /* 0: queries are not compressed */
    uint32_t kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim, v_head_dim;
    uint32_t max_position_embeddings;
    float rms_norm_eps, rope_theta;
    ds_yarn yarn;
    bool attention_bias; /* q_a_proj, kv_a_proj_with_mqa and o_proj have biases, as in DeepSeek's code */
    bool tie_word_embeddings;
    bool rope_pairs_split; /* RoPE rows of q and kv_a: halves (i, i + d/2), not pairs (2i, 2i + 1) */
    uint32_t fp8_block_rows, fp8_block_cols; /* F8_E4M3: a scale for each such block; 0: no such weights */
    int32_t bos_token_id; /* -1: none; the first where the file has a list */
    ds_ends ends;
} ds_config;

/* Adds a token that may be there already. False: there are DS_MAX_ENDS others. */
bool ds_ends_add(ds_ends *ends, int32_t token);

/* Reads the text of a config.json. `path` is for messages, which name field and value. Fields that cannot change the
 * result are ignored. A field that can, with a value that this library does not run, gives DSV2_ERROR_UNSUPPORTED. */
dsv2_status ds_config_from_json(const char *path, const char *json, size_t size, const ds_logger *logger,
                                ds_config *config);

/* Reads the metadata of a GGUF of architecture "deepseek2", in every form that llama.cpp's converter has written. */
dsv2_status ds_config_from_gguf(const ds_container *container, const ds_logger *logger, ds_config *config);

/* The last step of both readers: checks that groups, experts and experts per token fit together, and turns the file's
 * norm_topk_prob and routed_scaling_factor into what ds_config describes. */
dsv2_status ds_config_settle_experts(const char *path, ds_config *config);

/* Adds the ends of text of a generation_config.json; those behind the vocabulary are left out with a remark. */
dsv2_status ds_config_add_generation(const char *path, const char *json, size_t size, const ds_logger *logger,
                                     ds_config *config);

/* Writes a config.json from which ds_config_from_json reads the same configuration. *json is terminated, for ds_free.
 * Element types are not in it. */
dsv2_status ds_config_to_json(const ds_config *config, char **json);

/* True if the layer's feed-forward part is a mixture of experts. */
bool ds_config_is_moe(const ds_config *config, uint32_t layer);

#endif

/* The hyper-parameters of a model, under the names of the published config.json, checked to be consistent and within bounds
 * of any real model. Part of the model room; formats never see it. */
#ifndef DS_LIB_CONFIG_H
#define DS_LIB_CONFIG_H

#include "base/base.h"
#include "formats/formats.h"

/* Bounds: generous against every published model, small enough that products of two or three of them stay far inside 64
 * bits and that a wrong file cannot ask for absurd memory. */
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

typedef enum ds_topk_method {
    DS_TOPK_GREEDY = 0,
    DS_TOPK_GROUP_LIMITED_GREEDY, /* device-limited routing, section 2.2.2 */
    DS_TOPK_NOAUX_TC              /* DeepSeek-V3 */
} ds_topk_method;

typedef enum ds_scoring_func { DS_SCORING_SOFTMAX = 0, DS_SCORING_SIGMOID } ds_scoring_func;

/* rope_scaling of type "yarn"; factor 1 with all else at its default where there is none. */
typedef struct ds_yarn {
    bool enabled;
    float factor;
    uint32_t original_max_position_embeddings;
    float beta_fast, beta_slow;
    float mscale, mscale_all_dim;
} ds_yarn;

typedef struct ds_config {
    bool is_v3; /* model_type deepseek_v3 */
    uint32_t vocab_size, hidden_size, intermediate_size, moe_intermediate_size;
    uint32_t num_hidden_layers, num_attention_heads;
    uint32_t n_shared_experts, n_routed_experts, num_experts_per_tok; /* n_routed_experts 0: a dense model */
    uint32_t n_group, topk_group;                                     /* 1 and 1 where routing is not limited */
    uint32_t first_k_dense_replace, moe_layer_freq;
    /* Chosen scores are divided by their sum if norm_topk_prob (only with more than one expert a token: the published code
     * leaves a single one alone, and so does this field), then multiplied by routed_scaling_factor. The published code of V2,
     * unlike V3's, does not scale what it has normalised: then the factor is 1 here, whatever the file says. */
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
    bool rope_pairs_split; /* the rope rows of q and kv_a are stored as halves (i, i + d/2) rather than interleaved pairs */
    uint32_t fp8_block_rows, fp8_block_cols; /* F8_E4M3 weights have a scale per such block; 0: no such weights */
    int32_t bos_token_id, eos_token_id; /* -1: none; the first where the file has a list */
} ds_config;

/* From the text of a config.json. `path` is for messages, which name field and value. Fields that cannot change the result
 * are ignored; a field that could, with a value that this library does not implement, is DSV2_ERROR_UNSUPPORTED. */
dsv2_status ds_config_from_json(const char *path, const char *json, size_t size, const ds_logger *logger,
                                ds_config *config);

/* From the metadata of a GGUF of architecture "deepseek2", as llama.cpp's converter has written it over the years. */
dsv2_status ds_config_from_gguf(const ds_container *container, const ds_logger *logger, ds_config *config);

/* The end of both: checks that groups, experts and chosen experts go together, and brings norm_topk_prob and
 * routed_scaling_factor, as the file has them, into the form described above. */
dsv2_status ds_config_settle_experts(const char *path, ds_config *config);

/* The other way round: *json (for ds_free, terminated) is read back as the same configuration. Element types are not in it. */
dsv2_status ds_config_to_json(const ds_config *config, char **json);

/* True if the layer's feed-forward part is a mixture of experts. */
bool ds_config_is_moe(const ds_config *config, uint32_t layer);

#endif

/* The metadata of a GGUF to ds_config. Keys are those of architecture "deepseek2". No key exists for two fields:
 * moe_layer_freq, which is 1 in all published models, and YaRN's mscale, which equals mscale_all_dim in all of them. */
#include "config/config.h"

#include <stdio.h>
#include <string.h>

enum { KEY_SIZE = 96 };

/* A key of the architecture: "attention.head_count" to "deepseek2.attention.head_count". */
static const char *full_key(const char *name, char key[KEY_SIZE])
{
    snprintf(key, KEY_SIZE, "deepseek2.%s", name);
    return key;
}

static bool has(const ds_container *gguf, const char *name)
{
    char key[KEY_SIZE];
    return ds_gguf_has(gguf, full_key(name, key));
}

static dsv2_status read_u32(const ds_container *gguf, const char *name, uint32_t min, uint32_t max, uint32_t *out)
{
    char key[KEY_SIZE];
    dsv2_status status = ds_gguf_u32(gguf, full_key(name, key), out);
    if (status == DSV2_OK && (*out < min || *out > max))
        status = ds_fail(DSV2_ERROR_FORMAT, "%s: key %s is %u, expected %u to %u", ds_container_path(gguf), key,
                         (unsigned)*out, (unsigned)min, (unsigned)max);
    return status;
}

static dsv2_status read_optional_u32(const ds_container *gguf, const char *name, uint32_t min, uint32_t max,
                                     uint32_t fallback, uint32_t *out)
{
    *out = fallback;
    return has(gguf, name) ? read_u32(gguf, name, min, max, out) : DSV2_OK;
}

static dsv2_status read_f32(const ds_container *gguf, const char *name, float min, float max, float *out)
{
    char key[KEY_SIZE];
    dsv2_status status = ds_gguf_f32(gguf, full_key(name, key), out);
    if (status == DSV2_OK && !(*out >= min && *out <= max))
        status = ds_fail(DSV2_ERROR_FORMAT, "%s: key %s is %g, expected %g to %g", ds_container_path(gguf), key,
                         (double)*out, (double)min, (double)max);
    return status;
}

static dsv2_status read_optional_f32(const ds_container *gguf, const char *name, float min, float max, float fallback,
                                     float *out)
{
    *out = fallback;
    return has(gguf, name) ? read_f32(gguf, name, min, max, out) : DSV2_OK;
}

static bool is(ds_text text, const char *word)
{
    return text.size == strlen(word) && memcmp(text.data, word, text.size) == 0;
}

static dsv2_status fail_text(const ds_container *gguf, const char *key, ds_text text, const char *supported)
{
    return ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: key %s is \"%.*s\", this library runs %s", ds_container_path(gguf), key,
                   DS_QUOTED(text), supported);
}

static dsv2_status read_shapes(const ds_container *gguf, ds_config *config)
{
    const struct {
        const char *name;
        uint32_t max;
        uint32_t *out;
    } fields[] = {
        {"embedding_length", DS_MAX_DIM, &config->hidden_size},
        {"feed_forward_length", DS_MAX_DIM, &config->intermediate_size},
        {"block_count", DS_MAX_LAYERS, &config->num_hidden_layers},
        {"context_length", DS_MAX_CONTEXT, &config->max_position_embeddings},
        {"attention.head_count", DS_MAX_HEADS, &config->num_attention_heads},
        {"attention.kv_lora_rank", DS_MAX_DIM, &config->kv_lora_rank},
        {"rope.dimension_count", DS_MAX_HEAD_DIM, &config->qk_rope_head_dim},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        dsv2_status status = read_u32(gguf, fields[i].name, 1, fields[i].max, fields[i].out);
        if (status != DSV2_OK)
            return status;
    }
    if (config->qk_rope_head_dim % 2 != 0)
        return ds_fail(DSV2_ERROR_FORMAT,
                       "%s: key deepseek2.rope.dimension_count is %u, expected an even number: it holds pairs",
                       ds_container_path(gguf), (unsigned)config->qk_rope_head_dim);
    uint32_t next_n; /* V3's layers that predict further tokens: newer converters count them as blocks */
    dsv2_status status = read_optional_u32(gguf, "nextn_predict_layers", 0, config->num_hidden_layers - 1, 0, &next_n);
    config->num_hidden_layers -= next_n;
    if (status == DSV2_OK)
        status = read_optional_u32(gguf, "attention.q_lora_rank", 1, DS_MAX_DIM, 0, &config->q_lora_rank);
    return status;
}

/* Sizes of heads, in the expanded form. Newer files have them in keys that end in "_mla": there the keys without "_mla"
 * describe attention over the latent, with one head of keys and values. */
static dsv2_status read_heads(const ds_container *gguf, ds_config *config)
{
    bool mla = has(gguf, "attention.key_length_mla");
    const char *key_name = mla ? "attention.key_length_mla" : "attention.key_length";
    uint32_t rope = config->qk_rope_head_dim, key_length, kv_heads;
    dsv2_status status = read_u32(gguf, key_name, rope + 1, rope + DS_MAX_HEAD_DIM, &key_length);
    if (status == DSV2_OK)
        status = read_u32(gguf, mla ? "attention.value_length_mla" : "attention.value_length", 1, DS_MAX_HEAD_DIM,
                          &config->v_head_dim);
    if (status != DSV2_OK)
        return status;
    config->qk_nope_head_dim = key_length - rope;
    uint32_t expected = mla ? 1 : config->num_attention_heads;
    status = read_optional_u32(gguf, "attention.head_count_kv", 1, DS_MAX_HEADS, expected, &kv_heads);
    if (status == DSV2_OK && kv_heads != expected)
        status = ds_fail(DSV2_ERROR_UNSUPPORTED,
                         "%s: key deepseek2.attention.head_count_kv is %u, this library runs %u here",
                         ds_container_path(gguf), (unsigned)kv_heads, (unsigned)expected);
    return status;
}

/* Refuses values of keys that other models of this architecture use and that would change every result. */
static dsv2_status check_switches(const ds_container *gguf)
{
    static const struct {
        const char *name;
        float value;
    } fixed[] = {{"attention.temperature_scale", 0},
                 {"rope.scaling.attn_factor", 1},
                 {"rope.scaling.yarn_ext_factor", 1},
                 {"rope.scaling.yarn_attn_factor", 1}};
    for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++) {
        char key[KEY_SIZE];
        float value;
        if (!has(gguf, fixed[i].name))
            continue;
        dsv2_status status = ds_gguf_f32(gguf, full_key(fixed[i].name, key), &value);
        if (status != DSV2_OK)
            return status;
        if (value != fixed[i].value)
            return ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: key %s is %g, this library runs %g", ds_container_path(gguf),
                           key, (double)value, (double)fixed[i].value);
    }
    return DSV2_OK;
}

static dsv2_status read_rope(const ds_container *gguf, ds_config *config)
{
    ds_yarn *yarn = &config->yarn;
    *yarn = (ds_yarn){.factor = 1,
                      .original_max_position_embeddings = config->max_position_embeddings,
                      .beta_fast = 32,
                      .beta_slow = 1,
                      .mscale = 1,
                      .mscale_all_dim = 0};
    dsv2_status status = read_optional_f32(gguf, "rope.freq_base", DS_RANGE_ROPE_THETA, 10000, &config->rope_theta);
    if (status != DSV2_OK)
        return status;
    char key[KEY_SIZE];
    ds_text type = {"none", 4};
    if (has(gguf, "rope.scaling.type"))
        status = ds_gguf_string(gguf, full_key("rope.scaling.type", key), &type);
    if (status != DSV2_OK)
        return status;
    if (is(type, "none")) {
        float factor; /* a factor without a type would be linear scaling */
        status = read_optional_f32(gguf, "rope.scaling.factor", 1, 1, 1, &factor);
        return status;
    }
    if (!is(type, "yarn"))
        return fail_text(gguf, key, type, "\"yarn\" and \"none\"");
    yarn->enabled = true;
    status = read_f32(gguf, "rope.scaling.factor", DS_RANGE_YARN_FACTOR, &yarn->factor);
    if (status == DSV2_OK)
        status = read_optional_u32(gguf, "rope.scaling.original_context_length", 1, DS_MAX_CONTEXT, 4096,
                                   &yarn->original_max_position_embeddings);
    if (status == DSV2_OK)
        status = read_optional_f32(gguf, "rope.scaling.yarn_beta_fast", DS_RANGE_YARN_BETA, 32, &yarn->beta_fast);
    if (status == DSV2_OK)
        status = read_optional_f32(gguf, "rope.scaling.yarn_beta_slow", DS_RANGE_YARN_BETA, 1, &yarn->beta_slow);
    if (status == DSV2_OK && has(gguf, "rope.scaling.yarn_log_multiplier")) {
        status = read_f32(gguf, "rope.scaling.yarn_log_multiplier", 0, 1e5f, &yarn->mscale_all_dim);
        yarn->mscale_all_dim /= 0.1f; /* the file has 0.1 * mscale_all_dim */
        yarn->mscale = yarn->mscale_all_dim;
    }
    return status;
}

enum { GATING_NONE = 0, GATING_SOFTMAX = 1, GATING_SIGMOID = 2 };

/* How routing is limited. Older files have no keys for groups; all are of published models. Files with 160 experts (V2,
 * V2.5, Coder-V2) keep 3 of 8 groups, files with 256 (V3, R1) keep 4 of 8, others have no groups. */
static dsv2_status read_groups(const ds_container *gguf, const ds_logger *logger, ds_config *config)
{
    dsv2_status status = DSV2_OK;
    if (has(gguf, "expert_group_count")) {
        status = read_u32(gguf, "expert_group_count", 1, DS_MAX_GROUPS, &config->n_group);
        if (status == DSV2_OK)
            status = read_u32(gguf, "expert_group_used_count", 1, config->n_group, &config->topk_group);
    } else if (config->n_routed_experts == (config->is_v3 ? 256 : 160)) {
        config->n_group = 8;
        config->topk_group = config->is_v3 ? 4 : 3;
        ds_log(
            logger, DSV2_LOG_WARNING,
            "%s: key deepseek2.expert_group_count is missing: %u groups with %u used are assumed for %u experts, "
            "as published",
            ds_container_path(gguf), config->n_group, config->topk_group, config->n_routed_experts);
    } else {
        config->n_group = config->topk_group = 1;
    }
    if (config->is_v3)
        config->topk_method = DS_TOPK_NOAUX_TC;
    else
        config->topk_method = config->n_group > 1 ? DS_TOPK_GROUP_LIMITED_GREEDY : DS_TOPK_GREEDY;
    return status;
}

static bool has_router_biases(const ds_container *gguf, const ds_config *config)
{
    char name[64];
    for (uint32_t layer = 0; layer < config->num_hidden_layers; layer++) {
        snprintf(name, sizeof name, "blk.%u.exp_probs_b.bias", (unsigned)layer);
        if (ds_container_find(gguf, name) != NULL)
            return true;
    }
    return false;
}

/* 0 stands for no scale. */
static dsv2_status read_scale(const ds_container *gguf, float *scale)
{
    char key[KEY_SIZE];
    *scale = 1;
    if (!has(gguf, "expert_weights_scale"))
        return DSV2_OK;
    dsv2_status status = ds_gguf_f32(gguf, full_key("expert_weights_scale", key), scale);
    if (status == DSV2_OK && *scale == 0)
        *scale = 1;
    else if (status == DSV2_OK)
        status = read_f32(gguf, "expert_weights_scale", DS_RANGE_ROUTED_SCALING, scale);
    return status;
}

static dsv2_status read_gates(const ds_container *gguf, ds_config *config)
{
    char key[KEY_SIZE];
    uint32_t gating;
    dsv2_status status = read_optional_u32(gguf, "expert_gating_func", 0, UINT32_MAX, GATING_NONE, &gating);
    if (status != DSV2_OK)
        return status;
    if (gating > GATING_SIGMOID)
        return ds_fail(DSV2_ERROR_UNSUPPORTED,
                       "%s: key deepseek2.expert_gating_func is %u, this library runs 1 (softmax) and 2 (sigmoid)",
                       ds_container_path(gguf), (unsigned)gating);
    if (gating == GATING_SOFTMAX && has_router_biases(gguf, config))
        return ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: routers with biases (exp_probs_b.bias) and the gating function "
                       "softmax (key deepseek2.expert_gating_func) are not supported", ds_container_path(gguf));
    /* DeepSeek-V3's router alone has biases: older writers of such files left the key out. */
    config->is_v3 = gating == GATING_SIGMOID || (gating == GATING_NONE && has_router_biases(gguf, config));
    config->scoring_func = config->is_v3 ? DS_SCORING_SIGMOID : DS_SCORING_SOFTMAX;
    status = read_scale(gguf, &config->routed_scaling_factor);
    if (status == DSV2_OK && has(gguf, "expert_weights_norm"))
        status = ds_gguf_bool(gguf, full_key("expert_weights_norm", key), &config->norm_topk_prob);
    return status;
}

static dsv2_status read_experts(const ds_container *gguf, const ds_logger *logger, ds_config *config)
{
    config->n_group = config->topk_group = config->moe_layer_freq = 1;
    config->routed_scaling_factor = 1;
    dsv2_status status = read_optional_u32(gguf, "expert_count", 0, DS_MAX_EXPERTS, 0, &config->n_routed_experts);
    if (status != DSV2_OK || config->n_routed_experts == 0)
        return status;
    status = read_u32(gguf, "expert_feed_forward_length", 1, DS_MAX_DIM, &config->moe_intermediate_size);
    if (status == DSV2_OK)
        status = read_u32(gguf, "expert_used_count", 1, DS_MAX_TOP_K, &config->num_experts_per_tok);
    if (status == DSV2_OK)
        status = read_optional_u32(gguf, "expert_shared_count", 0, DS_MAX_EXPERTS, 0, &config->n_shared_experts);
    if (status == DSV2_OK)
        status =
            read_optional_u32(gguf, "leading_dense_block_count", 0, DS_MAX_LAYERS, 0, &config->first_k_dense_replace);
    if (status == DSV2_OK)
        status = read_gates(gguf, config);
    if (status == DSV2_OK)
        status = read_groups(gguf, logger, config);
    return status == DSV2_OK ? ds_config_settle_experts(ds_container_path(gguf), config) : status;
}

/* The embedding gives the size of the vocabulary: some files lack the key for it, some have the key and a longer,
 * padded list of tokens. */
static dsv2_status read_embedding(const ds_container *gguf, ds_config *config)
{
    const ds_tensor *embedding;
    dsv2_status status = ds_container_require(gguf, "token_embd.weight", &embedding);
    if (status != DSV2_OK)
        return status;
    if (embedding->n_dims != 2 || embedding->dims[0] < 1 || embedding->dims[0] > DS_MAX_VOCAB)
        return ds_fail(DSV2_ERROR_FORMAT,
                       "%s: tensor token_embd.weight has %u dimensions, the first %llu, expected 2 and 1 to %d tokens",
                       embedding->path, (unsigned)embedding->n_dims, (unsigned long long)embedding->dims[0],
                       DS_MAX_VOCAB);
    config->vocab_size = (uint32_t)embedding->dims[0];
    config->tie_word_embeddings = !ds_container_has(gguf, "output.weight");
    config->attention_bias = ds_container_has(gguf, "blk.0.attn_output.bias");
    return DSV2_OK;
}

static dsv2_status read_token_id(const ds_container *gguf, const char *key, const ds_config *config, int32_t *out)
{
    uint32_t id = UINT32_MAX;
    dsv2_status status = ds_gguf_has(gguf, key) ? ds_gguf_u32(gguf, key, &id) : DSV2_OK;
    if (status == DSV2_OK && id != UINT32_MAX && id >= config->vocab_size)
        status = ds_fail(DSV2_ERROR_FORMAT, "%s: key %s is %u, expected less than the vocabulary's size, %u",
                         ds_container_path(gguf), key, (unsigned)id, (unsigned)config->vocab_size);
    *out = id == UINT32_MAX ? -1 : (int32_t)id; /* -1 is written as 2^32 - 1 */
    return status;
}

/* The ends of a text, of a turn and of a message. */
static dsv2_status read_ends(const ds_container *gguf, ds_config *config)
{
    static const char *const keys[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                       "tokenizer.ggml.eom_token_id"};
    dsv2_status status = DSV2_OK;
    for (size_t i = 0; i < sizeof keys / sizeof *keys && status == DSV2_OK; i++) {
        int32_t id;
        status = read_token_id(gguf, keys[i], config, &id);
        if (status == DSV2_OK && id >= 0)
            ds_ends_add(&config->ends, id);
    }
    return status;
}

static dsv2_status read_all(const ds_container *gguf, const ds_logger *logger, ds_config *config)
{
    ds_text architecture;
    dsv2_status status = ds_gguf_string(gguf, "general.architecture", &architecture);
    if (status != DSV2_OK)
        return status;
    if (!is(architecture, "deepseek2"))
        return fail_text(gguf, "general.architecture", architecture, "\"deepseek2\"");
    status = check_switches(gguf);
    if (status == DSV2_OK)
        status = read_shapes(gguf, config);
    if (status == DSV2_OK)
        status = read_heads(gguf, config);
    if (status == DSV2_OK)
        status = read_f32(gguf, "attention.layer_norm_rms_epsilon", DS_RANGE_RMS_NORM_EPS, &config->rms_norm_eps);
    if (status == DSV2_OK)
        status = read_rope(gguf, config);
    if (status == DSV2_OK)
        status = read_experts(gguf, logger, config);
    if (status == DSV2_OK)
        status = read_embedding(gguf, config);
    if (status == DSV2_OK)
        status = read_token_id(gguf, "tokenizer.ggml.bos_token_id", config, &config->bos_token_id);
    if (status == DSV2_OK)
        status = read_ends(gguf, config);
    return status;
}

dsv2_status ds_config_from_gguf(const ds_container *container, const ds_logger *logger, ds_config *config)
{
    ds_config read = {0};
    dsv2_status status = read_all(container, logger, &read);
    if (status == DSV2_OK)
        *config = read;
    return status;
}

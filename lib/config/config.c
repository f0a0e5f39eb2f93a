/* config.json to ds_config. Missing fields get the defaults of DeepSeek's configuration_deepseek.py. A field that gives
 * weights their shape must be there: a wrong guess would only show as a missing tensor. */
#include "config/config.h"

#include "base/json.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* Every field that is read. Others are not even parsed. */
static const char *const fields_read[] = {
    "architectures", "attention_bias", "bos_token_id", "eos_token_id", "first_k_dense_replace", "hidden_act",
    "hidden_size", "intermediate_size", "kv_lora_rank", "max_position_embeddings", "mlp_bias", "model_type",
    "moe_intermediate_size", "moe_layer_freq", "n_group", "n_routed_experts", "n_shared_experts", "norm_topk_prob",
    "num_attention_heads", "num_experts_per_tok", "num_hidden_layers", "num_key_value_heads", "q_lora_rank",
    "qk_nope_head_dim", "qk_rope_head_dim", "quantization_config", "rms_norm_eps", "rope_interleave",
    "rope_parameters", "rope_scaling", "rope_theta", "routed_scaling_factor", "scoring_func", "tie_word_embeddings",
    "topk_group", "topk_method", "use_mla", "v_head_dim", "vocab_size", NULL,
};

/* The file being read: every message begins with its path. */
typedef struct reader {
    const char *path;
    json_t *root;
    const char *scope; /* "" or the name of an inner object and a full stop, for messages */
} reader;

static dsv2_status fail_kind(const reader *r, const char *name, const json_t *value, const char *expected)
{
    if (value == NULL)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: %s%s is missing, expected %s", r->path, r->scope, name, expected);
    return ds_fail(DSV2_ERROR_FORMAT, "%s: %s%s is %s, expected %s", r->path, r->scope, name, ds_json_kind(value),
                   expected);
}

static dsv2_status fail_unsupported(const reader *r, const char *name, const char *value, const char *supported)
{
    return ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: %s%s is \"%s\", this library runs %s", r->path, r->scope, name, value,
                   supported);
}

static bool is_read(const char *name)
{
    size_t i = 0;
    while (fields_read[i] != NULL && strcmp(fields_read[i], name) != 0)
        i++;
    return fields_read[i] != NULL;
}

/* NULL if the field is missing. */
static json_t *get_raw(const reader *r, const char *name)
{
    bool known = r->scope[0] != '\0' || is_read(name);
    assert(known);
    (void)known;
    return json_object_get(r->root, name);
}

/* DeepSeek's code treats a missing field as null wherever its default is None. */
static const json_t *get(const reader *r, const char *name)
{
    const json_t *value = get_raw(r, name);
    return ds_json_is_absent(value) ? NULL : value;
}

/* The same for an object. transformers takes an empty one for a missing one. */
static const json_t *get_object(const reader *r, const char *name)
{
    const json_t *value = get(r, name);
    return json_is_object(value) && json_object_size(value) == 0 ? NULL : value;
}

/* Whether a value is a whole number: 512, or 512.0 as some writers have it. */
static bool is_whole(const json_t *value)
{
    return json_is_integer(value) || (json_is_real(value) && trunc(json_real_value(value)) == json_real_value(value));
}

/* A number for a message. */
typedef struct number_text {
    char text[32];
} number_text;

static number_text show(const json_t *number)
{
    number_text shown;
    if (json_is_integer(number))
        snprintf(shown.text, sizeof shown.text, "%lld", (long long)json_integer_value(number));
    else
        snprintf(shown.text, sizeof shown.text, "%.15g", json_number_value(number));
    return shown;
}

enum { REQUIRED = -1 }; /* in place of a default */

static dsv2_status read_u32(const reader *r, const char *name, uint32_t min, uint32_t max, int64_t fallback,
                            uint32_t *out)
{
    const json_t *value = get(r, name);
    if (value == NULL && fallback != REQUIRED) {
        *out = (uint32_t)fallback;
        return DSV2_OK;
    }
    if (!is_whole(value))
        return fail_kind(r, name, get_raw(r, name), "an integer");
    double number = json_number_value(value); /* exact where it is within the bounds */
    if (!(number >= min && number <= max))
        return ds_fail(DSV2_ERROR_FORMAT, "%s: %s%s is %s, expected %u to %u", r->path, r->scope, name,
                       show(value).text, (unsigned)min, (unsigned)max);
    *out = (uint32_t)number;
    return DSV2_OK;
}

static dsv2_status read_float(const reader *r, const char *name, float min, float max, double fallback, float *out)
{
    const json_t *value = get(r, name);
    if (value == NULL && !isnan(fallback)) {
        *out = (float)fallback;
        return DSV2_OK;
    }
    if (!json_is_number(value))
        return fail_kind(r, name, get_raw(r, name), "a number");
    double number = json_number_value(value);
    float rounded = (float)number;
    if (!(rounded >= min && rounded <= max))
        return ds_fail(DSV2_ERROR_FORMAT, "%s: %s%s is %g, expected %g to %g", r->path, r->scope, name, number,
                       (double)min, (double)max);
    *out = rounded;
    return DSV2_OK;
}

static dsv2_status read_bool(const reader *r, const char *name, bool fallback, bool *out)
{
    const json_t *value = get(r, name);
    if (value != NULL && !json_is_boolean(value))
        return fail_kind(r, name, value, "true or false");
    *out = value == NULL ? fallback : json_is_true(value);
    return DSV2_OK;
}

/* *out lives as long as the JSON. fallback NULL: the field must be there. */
static dsv2_status read_string(const reader *r, const char *name, const char *fallback, const char **out)
{
    const json_t *value = get(r, name);
    if ((value == NULL && fallback == NULL) || (value != NULL && !json_is_string(value)))
        return fail_kind(r, name, get_raw(r, name), "a string");
    *out = value == NULL ? fallback : json_string_value(value);
    return DSV2_OK;
}

static dsv2_status read_model_type(const reader *r, ds_config *config)
{
    /* A file without a model_type may name the class that runs it. */
    const char *class = json_string_value(json_array_get(get(r, "architectures"), 0)), *type = NULL;
    const char *of_class = class == NULL                                  ? NULL
                           : strcmp(class, "DeepseekV2ForCausalLM") == 0 ? "deepseek_v2"
                           : strcmp(class, "DeepseekV3ForCausalLM") == 0 ? "deepseek_v3"
                                                                         : NULL;
    dsv2_status status = read_string(r, "model_type", of_class, &type);
    if (status != DSV2_OK)
        return status;
    config->is_v3 = strcmp(type, "deepseek_v3") == 0;
    if (!config->is_v3 && strcmp(type, "deepseek_v2") != 0)
        return fail_unsupported(r, "model_type", type, "\"deepseek_v2\" and \"deepseek_v3\"");
    return DSV2_OK;
}

/* The sizes that give the dense weights their shapes. */
static dsv2_status read_shapes(const reader *r, ds_config *config)
{
    const struct {
        const char *name;
        uint32_t max;
        uint32_t *out;
    } fields[] = {
        {"vocab_size", DS_MAX_VOCAB, &config->vocab_size},
        {"hidden_size", DS_MAX_DIM, &config->hidden_size},
        {"intermediate_size", DS_MAX_DIM, &config->intermediate_size},
        {"num_hidden_layers", DS_MAX_LAYERS, &config->num_hidden_layers},
        {"num_attention_heads", DS_MAX_HEADS, &config->num_attention_heads},
        {"kv_lora_rank", DS_MAX_DIM, &config->kv_lora_rank},
        {"qk_nope_head_dim", DS_MAX_HEAD_DIM, &config->qk_nope_head_dim},
        {"qk_rope_head_dim", DS_MAX_HEAD_DIM, &config->qk_rope_head_dim},
        {"v_head_dim", DS_MAX_HEAD_DIM, &config->v_head_dim},
        {"max_position_embeddings", DS_MAX_CONTEXT, &config->max_position_embeddings},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        dsv2_status status = read_u32(r, fields[i].name, 1, fields[i].max, REQUIRED, fields[i].out);
        if (status != DSV2_OK)
            return status;
    }
    if (config->qk_rope_head_dim % 2 != 0)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: qk_rope_head_dim is %u, expected an even number: it holds pairs",
                       r->path, (unsigned)config->qk_rope_head_dim);
    /* null: queries are not compressed. DeepSeek's code would take 1536 for a missing field. */
    if (get_raw(r, "q_lora_rank") == NULL)
        return fail_kind(r, "q_lora_rank", NULL, "an integer or null");
    return read_u32(r, "q_lora_rank", 1, DS_MAX_DIM, 0, &config->q_lora_rank);
}

static dsv2_status read_attention(const reader *r, ds_config *config)
{
    uint32_t kv_heads;
    dsv2_status status = read_u32(r, "num_key_value_heads", 1, DS_MAX_HEADS, config->num_attention_heads, &kv_heads);
    if (status != DSV2_OK)
        return status;
    if (kv_heads != config->num_attention_heads)
        return ds_fail(DSV2_ERROR_UNSUPPORTED,
                       "%s: num_key_value_heads is %u, this library runs as many as num_attention_heads, %u", r->path,
                       (unsigned)kv_heads, (unsigned)config->num_attention_heads);
    bool interleave = true;
    status = read_bool(r, "attention_bias", false, &config->attention_bias);
    if (status == DSV2_OK)
        status = read_bool(r, "rope_interleave", true, &interleave);
    config->rope_pairs_split = !interleave;
    if (status == DSV2_OK)
        status = read_bool(r, "tie_word_embeddings", false, &config->tie_word_embeddings);
    if (status == DSV2_OK)
        status = read_float(r, "rms_norm_eps", DS_RANGE_RMS_NORM_EPS, 1e-6, &config->rms_norm_eps);
    return status;
}

/* Switches of which this library runs one value alone. DeepSeek's code or its descendants know others. */
static dsv2_status check_switches(const reader *r)
{
    const char *act;
    dsv2_status status = read_string(r, "hidden_act", "silu", &act);
    if (status != DSV2_OK)
        return status;
    if (strcmp(act, "silu") != 0 && strcmp(act, "swish") != 0) /* two names of one function */
        return fail_unsupported(r, "hidden_act", act, "\"silu\"");
    static const struct {
        const char *name;
        bool value;
    } fixed[] = {{"use_mla", true}, {"mlp_bias", false}};
    for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++) {
        bool value;
        status = read_bool(r, fixed[i].name, fixed[i].value, &value);
        if (status != DSV2_OK)
            return status;
        if (value != fixed[i].value)
            return fail_unsupported(r, fixed[i].name, value ? "true" : "false", fixed[i].value ? "true" : "false");
    }
    return DSV2_OK;
}

static dsv2_status read_yarn(const reader *r, ds_yarn *yarn)
{
    yarn->enabled = true;
    dsv2_status status = read_float(r, "factor", DS_RANGE_YARN_FACTOR, NAN, &yarn->factor);
    if (status == DSV2_OK)
        status = read_u32(r, "original_max_position_embeddings", 1, DS_MAX_CONTEXT, 4096,
                          &yarn->original_max_position_embeddings);
    if (status == DSV2_OK)
        status = read_float(r, "beta_fast", DS_RANGE_YARN_BETA, 32, &yarn->beta_fast);
    if (status == DSV2_OK)
        status = read_float(r, "beta_slow", DS_RANGE_YARN_BETA, 1, &yarn->beta_slow);
    if (status == DSV2_OK)
        status = read_float(r, "mscale", DS_RANGE_YARN_MSCALE, 1, &yarn->mscale);
    if (status == DSV2_OK)
        status = read_float(r, "mscale_all_dim", DS_RANGE_YARN_MSCALE, 0, &yarn->mscale_all_dim);
    if (status != DSV2_OK)
        return status;
    /* Newer versions of transformers added the next two. DeepSeek's code does not know them, and they would change
     * every position. */
    if (get(r, "attention_factor") != NULL)
        return ds_fail(DSV2_ERROR_UNSUPPORTED,
                       "%s: %sattention_factor is set, this library derives it from mscale and mscale_all_dim", r->path,
                       r->scope);
    bool truncate;
    status = read_bool(r, "truncate", true, &truncate);
    if (status == DSV2_OK && !truncate)
        status = fail_unsupported(r, "truncate", "false", "true");
    return status;
}

/* Reads rope_scaling, or rope_parameters as newer files name it. rope_parameters has the base inside, and is there
 * without scaling too. */
static dsv2_status read_rope(const reader *r, const ds_logger *logger, ds_config *config)
{
    config->yarn = (ds_yarn){.factor = 1,
                             .original_max_position_embeddings = config->max_position_embeddings,
                             .beta_fast = 32,
                             .beta_slow = 1,
                             .mscale = 1,
                             .mscale_all_dim = 0};
    dsv2_status status = read_float(r, "rope_theta", DS_RANGE_ROPE_THETA, 10000, &config->rope_theta);
    if (status != DSV2_OK)
        return status;
    bool older = get_object(r, "rope_scaling") != NULL;
    const char *name = older ? "rope_scaling" : "rope_parameters";
    const json_t *scaling = get_object(r, name);
    if (scaling == NULL)
        return DSV2_OK;
    if (!json_is_object(scaling))
        return fail_kind(r, name, scaling, "an object or null");
    reader inner = {r->path, get_raw(r, name), older ? "rope_scaling." : "rope_parameters."};
    status = read_float(&inner, "rope_theta", DS_RANGE_ROPE_THETA, config->rope_theta, &config->rope_theta);
    const char *type_name = get(&inner, "rope_type") != NULL ? "rope_type" : "type";
    const char *type = NULL;
    if (status == DSV2_OK)
        status = read_string(&inner, type_name, NULL, &type);
    if (status != DSV2_OK)
        return status;
    if (strcmp(type, "default") == 0)
        return DSV2_OK;
    if (strcmp(type, "yarn") != 0)
        return fail_unsupported(&inner, type_name, type, "\"yarn\" and \"default\"");
    status = read_yarn(&inner, &config->yarn);
    if (status == DSV2_OK && config->yarn.original_max_position_embeddings > config->max_position_embeddings)
        ds_log(logger, DSV2_LOG_WARNING,
               "%s: %soriginal_max_position_embeddings is %u, more than max_position_embeddings, %u", r->path,
               inner.scope, (unsigned)config->yarn.original_max_position_embeddings,
               (unsigned)config->max_position_embeddings);
    return status;
}

static dsv2_status read_routing_names(const reader *r, ds_config *config)
{
    const char *scoring, *method;
    dsv2_status status = read_string(r, "scoring_func", config->is_v3 ? "sigmoid" : "softmax", &scoring);
    if (status == DSV2_OK)
        status = read_string(r, "topk_method", config->is_v3 ? "noaux_tc" : "greedy", &method);
    if (status != DSV2_OK)
        return status;
    /* The published code of each model type takes these names and raises an error for others. */
    if (strcmp(scoring, config->is_v3 ? "sigmoid" : "softmax") != 0)
        return fail_unsupported(r, "scoring_func", scoring,
                                config->is_v3 ? "\"sigmoid\" for deepseek_v3" : "\"softmax\" for deepseek_v2");
    config->scoring_func = config->is_v3 ? DS_SCORING_SIGMOID : DS_SCORING_SOFTMAX;
    if (config->is_v3) {
        if (strcmp(method, "noaux_tc") != 0)
            return fail_unsupported(r, "topk_method", method, "\"noaux_tc\" for deepseek_v3");
        config->topk_method = DS_TOPK_NOAUX_TC;
    } else if (strcmp(method, "group_limited_greedy") == 0) {
        config->topk_method = DS_TOPK_GROUP_LIMITED_GREEDY;
    } else if (strcmp(method, "greedy") == 0 || strcmp(method, "gready") == 0) { /* gready: in early published files */
        config->topk_method = DS_TOPK_GREEDY;
    } else {
        return fail_unsupported(r, "topk_method", method, "\"greedy\" and \"group_limited_greedy\" for deepseek_v2");
    }
    return DSV2_OK;
}

/* n_group and topk_group: read where the method limits routing, 1 elsewhere. Where they are missing the published
 * classes of V3 take 8 and 4; those of V2 have no default that runs. */
static dsv2_status read_groups(const reader *r, ds_config *config)
{
    config->n_group = config->topk_group = 1;
    if (config->topk_method == DS_TOPK_GREEDY)
        return DSV2_OK;
    bool v3 = config->is_v3;
    dsv2_status status = read_u32(r, "n_group", 1, DS_MAX_GROUPS, v3 && get_raw(r, "n_group") == NULL ? 8 : REQUIRED,
                                  &config->n_group);
    if (status == DSV2_OK)
        status = read_u32(r, "topk_group", 1, config->n_group,
                          v3 && config->n_group >= 4 && get_raw(r, "topk_group") == NULL ? 4 : REQUIRED,
                          &config->topk_group);
    return status;
}

dsv2_status ds_config_settle_experts(const char *path, ds_config *config)
{
    uint32_t experts = config->n_routed_experts, groups = config->n_group;
    if (experts % groups != 0)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: n_group is %u, which does not divide n_routed_experts, %u", path,
                       (unsigned)groups, (unsigned)experts);
    if (config->topk_method == DS_TOPK_NOAUX_TC && experts / groups < 2)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: n_group is %u of %u experts, expected at least 2 experts in a group",
                       path, (unsigned)groups, (unsigned)experts);
    if (config->num_experts_per_tok > config->topk_group * (experts / groups))
        return ds_fail(DSV2_ERROR_FORMAT, "%s: num_experts_per_tok is %u, but topk_group leaves %u to choose from",
                       path, (unsigned)config->num_experts_per_tok,
                       (unsigned)(config->topk_group * (experts / groups)));
    /* Shared experts are one network of this size. */
    uint64_t shared = (uint64_t)config->n_shared_experts * config->moe_intermediate_size;
    if (shared > DS_MAX_DIM)
        return ds_fail(DSV2_ERROR_FORMAT,
                       "%s: n_shared_experts times moe_intermediate_size is %llu, expected at most %d", path,
                       (unsigned long long)shared, DS_MAX_DIM);
    if (config->num_experts_per_tok == 1)
        config->norm_topk_prob = false;
    if (config->norm_topk_prob && !config->is_v3)
        config->routed_scaling_factor = 1;
    return DSV2_OK;
}

static dsv2_status read_experts(const reader *r, ds_config *config)
{
    /* The published defaults make a V2 without the field a dense model, but a V3 a mixture of 256 experts. */
    if (config->is_v3 && get_raw(r, "n_routed_experts") == NULL)
        return fail_kind(r, "n_routed_experts", NULL, "an integer or null");
    dsv2_status status = read_u32(r, "n_routed_experts", 0, DS_MAX_EXPERTS, 0, &config->n_routed_experts);
    if (status != DSV2_OK)
        return status;
    if (config->n_routed_experts == 0) {
        config->n_group = config->topk_group = config->moe_layer_freq = 1;
        config->routed_scaling_factor = 1;
        return DSV2_OK;
    }
    const struct {
        const char *name;
        uint32_t min, max;
        int64_t fallback;
        uint32_t *out;
    } fields[] = {
        {"moe_intermediate_size", 1, DS_MAX_DIM, REQUIRED, &config->moe_intermediate_size},
        {"num_experts_per_tok", 1, DS_MAX_TOP_K, REQUIRED, &config->num_experts_per_tok},
        {"n_shared_experts", 0, DS_MAX_EXPERTS, 0, &config->n_shared_experts},
        {"moe_layer_freq", 1, DS_MAX_LAYERS, 1, &config->moe_layer_freq},
        {"first_k_dense_replace", 0, DS_MAX_LAYERS, config->is_v3 ? REQUIRED : 0, &config->first_k_dense_replace},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        status = read_u32(r, fields[i].name, fields[i].min, fields[i].max, fields[i].fallback, fields[i].out);
        if (status != DSV2_OK)
            return status;
    }
    status = read_routing_names(r, config);
    if (status == DSV2_OK)
        status = read_groups(r, config);
    if (status == DSV2_OK)
        status = read_float(r, "routed_scaling_factor", DS_RANGE_ROUTED_SCALING, config->is_v3 ? 2.5 : 1,
                            &config->routed_scaling_factor);
    if (status == DSV2_OK)
        status = read_bool(r, "norm_topk_prob", config->is_v3, &config->norm_topk_prob);
    if (status == DSV2_OK)
        status = ds_config_settle_experts(r->path, config);
    return status;
}

/* FP8 as DeepSeek-V3 publishes it. Only the size of the scales' blocks matters here: activations stay as they are. */
static dsv2_status read_quantization(const reader *r, ds_config *config)
{
    const json_t *quantization = get_object(r, "quantization_config");
    if (quantization == NULL)
        return DSV2_OK;
    if (!json_is_object(quantization))
        return fail_kind(r, "quantization_config", quantization, "an object or null");
    reader inner = {r->path, get_raw(r, "quantization_config"), "quantization_config."};
    const char *method, *format;
    dsv2_status status = read_string(&inner, "quant_method", NULL, &method);
    if (status != DSV2_OK)
        return status;
    if (strcmp(method, "fp8") != 0)
        return fail_unsupported(&inner, "quant_method", method, "\"fp8\"");
    status = read_string(&inner, "fmt", "e4m3", &format);
    if (status != DSV2_OK)
        return status;
    if (strcmp(format, "e4m3") != 0)
        return fail_unsupported(&inner, "fmt", format, "\"e4m3\"");
    const json_t *block = get(&inner, "weight_block_size");
    if (!json_is_array(block) || json_array_size(block) != 2)
        return fail_kind(&inner, "weight_block_size", get_raw(&inner, "weight_block_size"),
                         "an array of 2 integers");
    uint32_t *sizes[2] = {&config->fp8_block_rows, &config->fp8_block_cols};
    for (size_t i = 0; i < 2; i++) {
        const json_t *size = json_array_get(block, i);
        if (!is_whole(size) || json_number_value(size) < 1 || json_number_value(size) > DS_MAX_DIM)
            return ds_fail(DSV2_ERROR_FORMAT,
                           "%s: quantization_config.weight_block_size holds %s (%g), expected integers from 1 to %d",
                           r->path, ds_json_kind(size), json_number_value(size), DS_MAX_DIM);
        *sizes[i] = (uint32_t)json_number_value(size);
    }
    return DSV2_OK;
}

bool ds_ends_add(ds_ends *ends, int32_t token)
{
    for (uint32_t i = 0; i < ends->n; i++)
        if (ends->ids[i] == token)
            return true;
    if (ends->n == DS_MAX_ENDS)
        return false;
    ends->ids[ends->n++] = token;
    return true;
}

/* Whether a value is an id, of any vocabulary. */
static dsv2_status check_token_id(const reader *r, const char *name, const json_t *value)
{
    return is_whole(value) ? DSV2_OK : fail_kind(r, name, value, "an integer, a list of integers or null");
}

static bool is_in_vocabulary(const json_t *id, const ds_config *config)
{
    return json_number_value(id) >= 0 && json_number_value(id) < config->vocab_size;
}

static dsv2_status fail_vocabulary(const reader *r, const char *name, const json_t *id, const ds_config *config)
{
    return ds_fail(DSV2_ERROR_FORMAT, "%s: %s is %s, expected 0 to vocab_size - 1, %u", r->path, name, show(id).text,
                   (unsigned)config->vocab_size - 1);
}

static dsv2_status read_bos(const reader *r, ds_config *config)
{
    static const char name[] = "bos_token_id";
    const json_t *value = get(r, name);
    config->bos_token_id = -1;
    if (json_is_array(value))
        value = json_array_get(value, 0);
    if (value == NULL)
        return DSV2_OK;
    dsv2_status status = check_token_id(r, name, value);
    if (status == DSV2_OK && !is_in_vocabulary(value, config))
        status = fail_vocabulary(r, name, value, config);
    if (status == DSV2_OK)
        config->bos_token_id = (int32_t)json_number_value(value);
    return status;
}

static dsv2_status add_end(const reader *r, const json_t *value, const ds_logger *logger, ds_config *config)
{
    static const char name[] = "eos_token_id";
    dsv2_status status = check_token_id(r, name, value);
    if (status != DSV2_OK)
        return status;
    if (!is_in_vocabulary(value, config)) {
        if (logger == NULL)
            return fail_vocabulary(r, name, value, config);
        ds_log(logger, DSV2_LOG_WARNING, "%s: %s is %s, which the model does not have", r->path, name,
               show(value).text);
        return DSV2_OK;
    }
    if (!ds_ends_add(&config->ends, (int32_t)json_number_value(value)))
        return ds_fail(DSV2_ERROR_FORMAT, "%s: %s and the ids of other files are more than %d", r->path, name,
                       DS_MAX_ENDS);
    return DSV2_OK;
}

/* The field is an id, null, or a list of ids. An id that the model does not have is an error, or if there is a logger,
 * a remark. */
static dsv2_status read_ends(const reader *r, const ds_logger *logger, ds_config *config)
{
    const json_t *value = get(r, "eos_token_id"), *id;
    dsv2_status status = DSV2_OK;
    size_t i;
    if (value == NULL)
        return DSV2_OK;
    if (!json_is_array(value))
        return add_end(r, value, logger, config);
    json_array_foreach(value, i, id)
        if (status == DSV2_OK)
            status = add_end(r, id, logger, config);
    return status;
}

static dsv2_status read_all(const reader *r, const ds_logger *logger, ds_config *config)
{
    dsv2_status status = read_model_type(r, config);
    if (status == DSV2_OK)
        status = check_switches(r);
    if (status == DSV2_OK)
        status = read_shapes(r, config);
    if (status == DSV2_OK)
        status = read_attention(r, config);
    if (status == DSV2_OK)
        status = read_rope(r, logger, config);
    if (status == DSV2_OK)
        status = read_experts(r, config);
    if (status == DSV2_OK)
        status = read_quantization(r, config);
    if (status == DSV2_OK)
        status = read_bos(r, config);
    if (status == DSV2_OK)
        status = read_ends(r, NULL, config);
    return status;
}

dsv2_status ds_config_from_json(const char *path, const char *json, size_t size, const ds_logger *logger,
                                ds_config *config)
{
    reader r = {.path = path, .scope = ""};
    dsv2_status status = ds_json_parse(path, json, size, fields_read, &r.root);
    if (status != DSV2_OK)
        return status;
    ds_config read = {0};
    status = read_all(&r, logger, &read);
    json_decref(r.root);
    if (status == DSV2_OK)
        *config = read;
    return status;
}

dsv2_status ds_config_add_generation(const char *path, const char *json, size_t size, const ds_logger *logger,
                                     ds_config *config)
{
    static const char *const fields[] = {"eos_token_id", NULL};
    reader r = {.path = path, .scope = ""};
    dsv2_status status = ds_json_parse(path, json, size, fields, &r.root);
    if (status == DSV2_OK)
        status = read_ends(&r, logger, config);
    json_decref(r.root);
    return status;
}

bool ds_config_is_moe(const ds_config *config, uint32_t layer)
{
    return config->n_routed_experts > 0 && layer >= config->first_k_dense_replace &&
           layer % config->moe_layer_freq == 0;
}

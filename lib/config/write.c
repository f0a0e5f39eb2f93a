/* ds_config to the config.json of a pack. ds_config_from_json reads the same configuration back. */
#include "config/config.h"

#include <jansson.h>
#include <stdlib.h>

/* Digits that jansson writes: 9 tell any two floats apart. */
enum { FLOAT_DIGITS = 9 };

static json_t *optional(uint32_t value) { return value == 0 ? json_null() : json_integer(value); }

static json_t *token(int32_t id) { return id < 0 ? json_null() : json_integer(id); }

static json_t *yarn_to_json(const ds_yarn *yarn)
{
    if (!yarn->enabled)
        return json_null();
    return json_pack("{s:s, s:f, s:i, s:f, s:f, s:f, s:f}", "type", "yarn", "factor", (double)yarn->factor,
                     "original_max_position_embeddings", (int)yarn->original_max_position_embeddings, "beta_fast",
                     (double)yarn->beta_fast, "beta_slow", (double)yarn->beta_slow, "mscale", (double)yarn->mscale,
                     "mscale_all_dim", (double)yarn->mscale_all_dim);
}

static json_t *to_json(const ds_config *c)
{
    static const char *const methods[] = {"greedy", "group_limited_greedy", "noaux_tc"};
    json_t *root = json_pack("{s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i}", "model_type",
                             c->is_v3 ? "deepseek_v3" : "deepseek_v2", "vocab_size", (int)c->vocab_size, "hidden_size",
                             (int)c->hidden_size, "intermediate_size", (int)c->intermediate_size, "num_hidden_layers",
                             (int)c->num_hidden_layers, "num_attention_heads", (int)c->num_attention_heads,
                             "kv_lora_rank", (int)c->kv_lora_rank, "qk_nope_head_dim", (int)c->qk_nope_head_dim,
                             "qk_rope_head_dim", (int)c->qk_rope_head_dim, "v_head_dim", (int)c->v_head_dim,
                             "max_position_embeddings", (int)c->max_position_embeddings);
    json_t *rest =
        json_pack("{s:o, s:f, s:f, s:o, s:b, s:b, s:b, s:s, s:o, s:o}", "q_lora_rank", optional(c->q_lora_rank),
                  "rms_norm_eps", (double)c->rms_norm_eps, "rope_theta", (double)c->rope_theta, "rope_scaling",
                  yarn_to_json(&c->yarn), "rope_interleave", !c->rope_pairs_split, "attention_bias", c->attention_bias,
                  "tie_word_embeddings", c->tie_word_embeddings, "hidden_act", "silu", "bos_token_id",
                  token(c->bos_token_id), "eos_token_id", token(c->eos_token_id));
    json_t *experts =
        c->n_routed_experts == 0
            ? json_pack("{s:n}", "n_routed_experts")
            : json_pack("{s:i, s:o, s:i, s:i, s:i, s:i, s:i, s:i, s:f, s:b, s:s, s:s}", "n_routed_experts",
                        (int)c->n_routed_experts, "n_shared_experts", optional(c->n_shared_experts),
                        "num_experts_per_tok", (int)c->num_experts_per_tok, "moe_intermediate_size",
                        (int)c->moe_intermediate_size, "n_group", (int)c->n_group, "topk_group", (int)c->topk_group,
                        "first_k_dense_replace", (int)c->first_k_dense_replace, "moe_layer_freq",
                        (int)c->moe_layer_freq, "routed_scaling_factor", (double)c->routed_scaling_factor,
                        "norm_topk_prob", c->norm_topk_prob, "topk_method", methods[c->topk_method], "scoring_func",
                        c->scoring_func == DS_SCORING_SIGMOID ? "sigmoid" : "softmax");
    bool whole = root != NULL && rest != NULL && experts != NULL && json_object_update(root, rest) == 0 &&
                 json_object_update(root, experts) == 0;
    json_decref(rest);
    json_decref(experts);
    if (whole)
        return root;
    json_decref(root);
    return NULL;
}

/* Into room that was measured before: when the buffer of json_dumps cannot grow, jansson 2.14 may leave out a byte and
 * go on. */
dsv2_status ds_config_to_json(const ds_config *config, char **out)
{
    const size_t flags = JSON_INDENT(2) | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(FLOAT_DIGITS);
    json_t *root = to_json(config);
    size_t size = root != NULL ? json_dumpb(root, NULL, 0, flags) : 0; /* 0: no memory */
    *out = size > 0 ? ds_new(size + 1, 1) : NULL;
    if (*out != NULL && json_dumpb(root, *out, size, flags) != size) {
        ds_free(*out);
        *out = NULL;
    }
    json_decref(root);
    return *out != NULL ? DSV2_OK : ds_fail_memory("config.json", size > 0 ? size + 1 : 4096);
}

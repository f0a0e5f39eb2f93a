#include "weights/roles.h"

#include <stddef.h>
#include <stdio.h>

/* ---- which models have it ---- */

static bool always(const ds_config *c, uint32_t layer) { return (void)c, (void)layer, true; }
static bool plain_queries(const ds_config *c, uint32_t layer) { return (void)layer, c->q_lora_rank == 0; }
static bool compressed_queries(const ds_config *c, uint32_t layer) { return (void)layer, c->q_lora_rank > 0; }
static bool attention_bias(const ds_config *c, uint32_t layer) { return (void)layer, c->attention_bias; }
static bool q_a_bias(const ds_config *c, uint32_t layer) { return compressed_queries(c, layer) && c->attention_bias; }
static bool dense(const ds_config *c, uint32_t layer) { return !ds_config_is_moe(c, layer); }
static bool moe(const ds_config *c, uint32_t layer) { return ds_config_is_moe(c, layer); }
static bool shared_experts(const ds_config *c, uint32_t layer) { return moe(c, layer) && c->n_shared_experts > 0; }
static bool score_bias(const ds_config *c, uint32_t layer)
{
    return moe(c, layer) && c->topk_method == DS_TOPK_NOAUX_TC;
}
static bool own_head(const ds_config *c, uint32_t layer) { return (void)layer, !c->tie_word_embeddings; }

/* ---- shapes ---- */

static ds_shape vector(uint32_t n) { return (ds_shape){n, 0}; }
static uint32_t q_rows(const ds_config *c)
{
    return c->num_attention_heads * (c->qk_nope_head_dim + c->qk_rope_head_dim);
}
static uint32_t kv_a_rows(const ds_config *c) { return c->kv_lora_rank + c->qk_rope_head_dim; }
static uint32_t kv_b_rows(const ds_config *c) { return c->num_attention_heads * (c->qk_nope_head_dim + c->v_head_dim); }

static ds_shape vocabulary(const ds_config *c) { return (ds_shape){c->vocab_size, c->hidden_size}; }
static ds_shape hidden(const ds_config *c) { return vector(c->hidden_size); }
static ds_shape q_proj(const ds_config *c) { return (ds_shape){q_rows(c), c->hidden_size}; }
static ds_shape q_a_proj(const ds_config *c) { return (ds_shape){c->q_lora_rank, c->hidden_size}; }
static ds_shape q_latent(const ds_config *c) { return vector(c->q_lora_rank); }
static ds_shape q_b_proj(const ds_config *c) { return (ds_shape){q_rows(c), c->q_lora_rank}; }
static ds_shape kv_a_proj(const ds_config *c) { return (ds_shape){kv_a_rows(c), c->hidden_size}; }
static ds_shape kv_a(const ds_config *c) { return vector(kv_a_rows(c)); }
static ds_shape kv_latent(const ds_config *c) { return vector(c->kv_lora_rank); }
static ds_shape kv_b_proj(const ds_config *c) { return (ds_shape){kv_b_rows(c), c->kv_lora_rank}; }
static ds_shape k_up(const ds_config *c)
{
    return (ds_shape){c->num_attention_heads * c->kv_lora_rank, c->qk_nope_head_dim};
}
static ds_shape v_up(const ds_config *c) { return (ds_shape){c->num_attention_heads * c->v_head_dim, c->kv_lora_rank}; }
static ds_shape o_proj(const ds_config *c)
{
    return (ds_shape){c->hidden_size, c->num_attention_heads * c->v_head_dim};
}
static ds_shape ffn_in(const ds_config *c) { return (ds_shape){c->intermediate_size, c->hidden_size}; }
static ds_shape ffn_out(const ds_config *c) { return (ds_shape){c->hidden_size, c->intermediate_size}; }
static ds_shape router(const ds_config *c) { return (ds_shape){c->n_routed_experts, c->hidden_size}; }
static ds_shape scores(const ds_config *c) { return vector(c->n_routed_experts); }
static ds_shape shared_in(const ds_config *c)
{
    return (ds_shape){c->n_shared_experts * c->moe_intermediate_size, c->hidden_size};
}
static ds_shape shared_out(const ds_config *c)
{
    return (ds_shape){c->hidden_size, c->n_shared_experts * c->moe_intermediate_size};
}
static ds_shape expert_in(const ds_config *c) { return (ds_shape){c->moe_intermediate_size, c->hidden_size}; }
static ds_shape expert_out(const ds_config *c) { return (ds_shape){c->hidden_size, c->moe_intermediate_size}; }

/* ---- the table ---- */

#define MODEL(member) offsetof(ds_weights, member)
#define LAYER(member) offsetof(ds_layer, member)
#define EXPERT(member) offsetof(ds_ffn_weights, member)
#define USUAL DS_SENSITIVITY_USUAL
#define LATENT DS_SENSITIVITY_LATENT

static const ds_role_info roles[DS_ROLE_COUNT] = {
    [DS_ROLE_EMBED_TOKENS] = {DS_SCOPE_BEGIN, DS_SENSITIVITY_EMBEDDING, "model.embed_tokens.weight",
                              "token_embd.weight",
        NULL, 0, MODEL(embed_tokens), always, vocabulary},

    [DS_ROLE_INPUT_NORM] = {DS_SCOPE_LAYER, USUAL, "input_layernorm.weight", "attn_norm.weight",
        NULL, 0, LAYER(input_norm), always, hidden},
    [DS_ROLE_Q_PROJ] = {DS_SCOPE_LAYER, USUAL, "self_attn.q_proj.weight", "attn_q.weight",
        NULL, 0, LAYER(mla.q_proj), plain_queries, q_proj},
    [DS_ROLE_Q_A_PROJ] = {DS_SCOPE_LAYER, USUAL, "self_attn.q_a_proj.weight", "attn_q_a.weight",
        NULL, 0, LAYER(mla.q_a_proj), compressed_queries, q_a_proj},
    [DS_ROLE_Q_A_BIAS] = {DS_SCOPE_LAYER, USUAL, "self_attn.q_a_proj.bias", "attn_q_a.bias",
        NULL, 0, LAYER(mla.q_a_bias), q_a_bias, q_latent},
    [DS_ROLE_Q_A_NORM] = {DS_SCOPE_LAYER, USUAL, "self_attn.q_a_layernorm.weight", "attn_q_a_norm.weight",
        NULL, 0, LAYER(mla.q_a_norm), compressed_queries, q_latent},
    [DS_ROLE_Q_B_PROJ] = {DS_SCOPE_LAYER, USUAL, "self_attn.q_b_proj.weight", "attn_q_b.weight",
        NULL, 0, LAYER(mla.q_b_proj), compressed_queries, q_b_proj},
    [DS_ROLE_KV_A_PROJ] = {DS_SCOPE_LAYER, LATENT, "self_attn.kv_a_proj_with_mqa.weight", "attn_kv_a_mqa.weight",
        NULL, 0, LAYER(mla.kv_a_proj), always, kv_a_proj},
    [DS_ROLE_KV_A_BIAS] = {DS_SCOPE_LAYER, LATENT, "self_attn.kv_a_proj_with_mqa.bias", "attn_kv_a_mqa.bias",
        NULL, 0, LAYER(mla.kv_a_bias), attention_bias, kv_a},
    [DS_ROLE_KV_A_NORM] = {DS_SCOPE_LAYER, LATENT, "self_attn.kv_a_layernorm.weight", "attn_kv_a_norm.weight",
        NULL, 0, LAYER(mla.kv_a_norm), always, kv_latent},
    [DS_ROLE_KV_B_PROJ] = {DS_SCOPE_LAYER, LATENT, "self_attn.kv_b_proj.weight", "attn_kv_b.weight",
        NULL, 0, LAYER(mla.kv_b_proj), always, kv_b_proj},
    [DS_ROLE_K_UP_TRANSPOSED] = {DS_SCOPE_LAYER, LATENT, "self_attn.k_up_transposed", "attn_k_b.weight",
        NULL, 0, LAYER(mla.k_up_transposed), NULL, k_up},
    [DS_ROLE_V_UP] = {DS_SCOPE_LAYER, LATENT, NULL, "attn_v_b.weight",
        NULL, 0, LAYER(mla.kv_b_proj), NULL, v_up},
    [DS_ROLE_O_PROJ] = {DS_SCOPE_LAYER, USUAL, "self_attn.o_proj.weight", "attn_output.weight",
        NULL, 0, LAYER(mla.o_proj), always, o_proj},
    [DS_ROLE_O_BIAS] = {DS_SCOPE_LAYER, USUAL, "self_attn.o_proj.bias", "attn_output.bias",
        NULL, 0, LAYER(mla.o_bias), attention_bias, hidden},
    [DS_ROLE_POST_ATTENTION_NORM] = {DS_SCOPE_LAYER, USUAL, "post_attention_layernorm.weight", "ffn_norm.weight",
        NULL, 0, LAYER(post_attention_norm), always, hidden},

    [DS_ROLE_FFN_GATE] = {DS_SCOPE_LAYER, USUAL, "mlp.gate_proj.weight", "ffn_gate.weight",
        NULL, 0, LAYER(ffn.gate), dense, ffn_in},
    [DS_ROLE_FFN_UP] = {DS_SCOPE_LAYER, USUAL, "mlp.up_proj.weight", "ffn_up.weight",
        NULL, 0, LAYER(ffn.up), dense, ffn_in},
    [DS_ROLE_FFN_DOWN] = {DS_SCOPE_LAYER, USUAL, "mlp.down_proj.weight", "ffn_down.weight",
        NULL, 0, LAYER(ffn.down), dense, ffn_out},

    [DS_ROLE_ROUTER] = {DS_SCOPE_LAYER, DS_SENSITIVITY_ROUTER, "mlp.gate.weight", "ffn_gate_inp.weight",
        NULL, 0, LAYER(moe.gate), moe, router},
    [DS_ROLE_SCORE_BIAS] = {DS_SCOPE_LAYER, USUAL, "mlp.gate.e_score_correction_bias", "exp_probs_b.bias",
        NULL, 0, LAYER(moe.score_bias), score_bias, scores},
    [DS_ROLE_SHARED_GATE] = {DS_SCOPE_LAYER, USUAL, "mlp.shared_experts.gate_proj.weight", "ffn_gate_shexp.weight",
        NULL, 0, LAYER(moe.shared.gate), shared_experts, shared_in},
    [DS_ROLE_SHARED_UP] = {DS_SCOPE_LAYER, USUAL, "mlp.shared_experts.up_proj.weight", "ffn_up_shexp.weight",
        NULL, 0, LAYER(moe.shared.up), shared_experts, shared_in},
    [DS_ROLE_SHARED_DOWN] = {DS_SCOPE_LAYER, USUAL, "mlp.shared_experts.down_proj.weight", "ffn_down_shexp.weight",
        NULL, 0, LAYER(moe.shared.down), shared_experts, shared_out},

    [DS_ROLE_EXPERT_GATE] = {DS_SCOPE_EXPERT, USUAL, "gate_proj.weight", "ffn_gate_exps.weight",
        "ffn_gate_up_exps.weight", 0, EXPERT(gate), moe, expert_in},
    [DS_ROLE_EXPERT_UP] = {DS_SCOPE_EXPERT, USUAL, "up_proj.weight", "ffn_up_exps.weight",
        "ffn_gate_up_exps.weight", 1, EXPERT(up), moe, expert_in},
    [DS_ROLE_EXPERT_DOWN] = {DS_SCOPE_EXPERT, USUAL, "down_proj.weight", "ffn_down_exps.weight",
        NULL, 0, EXPERT(down), moe, expert_out},

    [DS_ROLE_NORM] = {DS_SCOPE_END, USUAL, "model.norm.weight", "output_norm.weight",
        NULL, 0, MODEL(norm), always, hidden},
    [DS_ROLE_LM_HEAD] = {DS_SCOPE_END, DS_SENSITIVITY_HEAD, "lm_head.weight", "output.weight",
        NULL, 0, MODEL(lm_head), own_head, vocabulary},
};

const ds_role_info *ds_role_info_of(ds_role role) { return &roles[role]; }

/* ---- names ---- */

void ds_published_name(const ds_weight_id *id, char name[DS_NAME_SIZE])
{
    const ds_role_info *role = &roles[id->role];
    if (role->scope == DS_SCOPE_LAYER)
        snprintf(name, DS_NAME_SIZE, "model.layers.%u.%s", (unsigned)id->layer, role->published);
    else if (role->scope == DS_SCOPE_EXPERT)
        snprintf(name, DS_NAME_SIZE, "model.layers.%u.mlp.experts.%u.%s", (unsigned)id->layer, (unsigned)id->expert,
                 role->published);
    else
        snprintf(name, DS_NAME_SIZE, "%s", role->published);
}

static void print_gguf(const ds_weight_id *id, const char *own, char name[DS_NAME_SIZE])
{
    ds_scope scope = roles[id->role].scope;
    if (scope == DS_SCOPE_LAYER || scope == DS_SCOPE_EXPERT)
        snprintf(name, DS_NAME_SIZE, "blk.%u.%s", (unsigned)id->layer, own);
    else
        snprintf(name, DS_NAME_SIZE, "%s", own);
}

void ds_gguf_name(const ds_weight_id *id, char name[DS_NAME_SIZE]) { print_gguf(id, roles[id->role].gguf, name); }

bool ds_gguf_joined_name(const ds_weight_id *id, char name[DS_NAME_SIZE])
{
    const char *joined = roles[id->role].joined;
    if (joined != NULL)
        print_gguf(id, joined, name);
    return joined != NULL;
}

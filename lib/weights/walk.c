/* Every weight of a model under its published name: the one place that knows the names. Binding and packing both walk here. */
#include "weights/walk.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

typedef struct walk {
    ds_weights *weights;
    const ds_config *config;
    const ds_weights_visitor *visitor;
    dsv2_status status; /* of the first failure; nothing is visited after it */
} walk;

static void matrix(walk *w, uint32_t rows, uint32_t cols, ds_matrix *matrix, const char *format, ...) DSV2_PRINTF(5, 6);
static void vector(walk *w, uint32_t n, const float **vector, const char *format, ...) DSV2_PRINTF(4, 5);

static void matrix(walk *w, uint32_t rows, uint32_t cols, ds_matrix *matrix, const char *format, ...)
{
    char name[DS_NAME_SIZE];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(name, sizeof name, format, arguments);
    va_end(arguments);
    if (w->status == DSV2_OK)
        w->status = w->visitor->matrix(w->visitor->context, name, rows, cols, matrix);
}

static void vector(walk *w, uint32_t n, const float **vector, const char *format, ...)
{
    char name[DS_NAME_SIZE];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(name, sizeof name, format, arguments);
    va_end(arguments);
    if (w->status == DSV2_OK)
        w->status = w->visitor->vector(w->visitor->context, name, n, vector);
}

static void walk_mla(walk *w, uint32_t l, ds_mla_weights *mla)
{
    const ds_config *c = w->config;
    uint32_t n_heads = c->num_attention_heads, q_rows = n_heads * (c->qk_nope_head_dim + c->qk_rope_head_dim);
    uint32_t kv_a_rows = c->kv_lora_rank + c->qk_rope_head_dim, kv_b_rows = n_heads * (c->qk_nope_head_dim + c->v_head_dim);
    if (c->q_lora_rank == 0) {
        matrix(w, q_rows, c->hidden_size, &mla->q_proj, "model.layers.%u.self_attn.q_proj.weight", l);
    } else {
        matrix(w, c->q_lora_rank, c->hidden_size, &mla->q_a_proj, "model.layers.%u.self_attn.q_a_proj.weight", l);
        if (c->attention_bias)
            vector(w, c->q_lora_rank, &mla->q_a_bias, "model.layers.%u.self_attn.q_a_proj.bias", l);
        vector(w, c->q_lora_rank, &mla->q_a_norm, "model.layers.%u.self_attn.q_a_layernorm.weight", l);
        matrix(w, q_rows, c->q_lora_rank, &mla->q_b_proj, "model.layers.%u.self_attn.q_b_proj.weight", l);
    }
    matrix(w, kv_a_rows, c->hidden_size, &mla->kv_a_proj, "model.layers.%u.self_attn.kv_a_proj_with_mqa.weight", l);
    if (c->attention_bias)
        vector(w, kv_a_rows, &mla->kv_a_bias, "model.layers.%u.self_attn.kv_a_proj_with_mqa.bias", l);
    vector(w, c->kv_lora_rank, &mla->kv_a_norm, "model.layers.%u.self_attn.kv_a_layernorm.weight", l);
    matrix(w, kv_b_rows, c->kv_lora_rank, &mla->kv_b_proj, "model.layers.%u.self_attn.kv_b_proj.weight", l);
    matrix(w, c->hidden_size, n_heads * c->v_head_dim, &mla->o_proj, "model.layers.%u.self_attn.o_proj.weight", l);
    if (c->attention_bias)
        vector(w, c->hidden_size, &mla->o_bias, "model.layers.%u.self_attn.o_proj.bias", l);
}

/* `where`: "mlp", "mlp.shared_experts" or "mlp.experts.E". */
static void walk_ffn(walk *w, uint32_t l, const char *where, uint32_t intermediate, ds_ffn_weights *ffn)
{
    uint32_t hidden = w->config->hidden_size;
    matrix(w, intermediate, hidden, &ffn->gate, "model.layers.%u.%s.gate_proj.weight", l, where);
    matrix(w, intermediate, hidden, &ffn->up, "model.layers.%u.%s.up_proj.weight", l, where);
    matrix(w, hidden, intermediate, &ffn->down, "model.layers.%u.%s.down_proj.weight", l, where);
}

/* Room for a layer's experts, freed with the weights. */
static dsv2_status allocate_experts(const walk *w, ds_moe_weights *moe)
{
    size_t n = w->config->n_routed_experts;
    moe->experts = ds_weights_keep(w->weights, ds_new(n, sizeof *moe->experts));
    return moe->experts != NULL ? DSV2_OK : ds_fail_memory("the experts", n * sizeof *moe->experts);
}

static void walk_moe(walk *w, uint32_t l, ds_moe_weights *moe)
{
    const ds_config *c = w->config;
    matrix(w, c->n_routed_experts, c->hidden_size, &moe->gate, "model.layers.%u.mlp.gate.weight", l);
    /* Only now, when the router's matrix has shown that the file is large enough for so many. */
    if (w->status == DSV2_OK && moe->experts == NULL)
        w->status = allocate_experts(w, moe);
    if (c->topk_method == DS_TOPK_NOAUX_TC)
        vector(w, c->n_routed_experts, &moe->score_bias, "model.layers.%u.mlp.gate.e_score_correction_bias", l);
    if (c->n_shared_experts > 0)
        walk_ffn(w, l, "mlp.shared_experts", c->n_shared_experts * c->moe_intermediate_size, &moe->shared);
    for (uint32_t e = 0; e < c->n_routed_experts && w->status == DSV2_OK; e++) {
        char where[32];
        snprintf(where, sizeof where, "mlp.experts.%u", e);
        walk_ffn(w, l, where, c->moe_intermediate_size, &moe->experts[e]);
    }
}

dsv2_status ds_weights_walk(ds_weights *weights, const ds_config *c, const ds_weights_visitor *visitor)
{
    walk w = {weights, c, visitor, DSV2_OK};
    matrix(&w, c->vocab_size, c->hidden_size, &weights->embed_tokens, "model.embed_tokens.weight");
    for (uint32_t l = 0; l < c->num_hidden_layers && w.status == DSV2_OK; l++) {
        ds_layer *layer = &weights->layers[l];
        vector(&w, c->hidden_size, &layer->input_norm, "model.layers.%u.input_layernorm.weight", l);
        walk_mla(&w, l, &layer->mla);
        vector(&w, c->hidden_size, &layer->post_attention_norm, "model.layers.%u.post_attention_layernorm.weight", l);
        if (layer->is_moe)
            walk_moe(&w, l, &layer->moe);
        else
            walk_ffn(&w, l, "mlp", c->intermediate_size, &layer->ffn);
    }
    vector(&w, c->hidden_size, &weights->norm, "model.norm.weight");
    if (!c->tie_word_embeddings)
        matrix(&w, c->vocab_size, c->hidden_size, &weights->lm_head, "lm_head.weight");
    return w.status;
}

bool ds_name_ends(const char *name, const char *end)
{
    size_t a = strlen(name), b = strlen(end);
    return a >= b && strcmp(name + a - b, end) == 0;
}

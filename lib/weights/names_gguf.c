/* Published names of weights to those in a GGUF. */
#include "weights/walk.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What follows "model.layers.N." to what follows "blk.N.". */
static const char *const layer_names[][2] = {
    {"input_layernorm.weight", "attn_norm.weight"},
    {"post_attention_layernorm.weight", "ffn_norm.weight"},
    {"self_attn.q_proj.weight", "attn_q.weight"},
    {"self_attn.q_a_proj.weight", "attn_q_a.weight"},
    {"self_attn.q_a_proj.bias", "attn_q_a.bias"},
    {"self_attn.q_a_layernorm.weight", "attn_q_a_norm.weight"},
    {"self_attn.q_b_proj.weight", "attn_q_b.weight"},
    {"self_attn.kv_a_proj_with_mqa.weight", "attn_kv_a_mqa.weight"},
    {"self_attn.kv_a_proj_with_mqa.bias", "attn_kv_a_mqa.bias"},
    {"self_attn.kv_a_layernorm.weight", "attn_kv_a_norm.weight"},
    {"self_attn.kv_b_proj.weight", "attn_kv_b.weight"},
    {"self_attn.o_proj.weight", "attn_output.weight"},
    {"self_attn.o_proj.bias", "attn_output.bias"},
    {"mlp.gate.weight", "ffn_gate_inp.weight"},
    {"mlp.gate.e_score_correction_bias", "exp_probs_b.bias"},
    {"mlp.gate_proj.weight", "ffn_gate.weight"},
    {"mlp.up_proj.weight", "ffn_up.weight"},
    {"mlp.down_proj.weight", "ffn_down.weight"},
    {"mlp.shared_experts.gate_proj.weight", "ffn_gate_shexp.weight"},
    {"mlp.shared_experts.up_proj.weight", "ffn_up_shexp.weight"},
    {"mlp.shared_experts.down_proj.weight", "ffn_down_shexp.weight"},
    {"mlp.experts.gate_proj.weight", "ffn_gate_exps.weight"}, /* after the expert's number is taken out */
    {"mlp.experts.up_proj.weight", "ffn_up_exps.weight"},
    {"mlp.experts.down_proj.weight", "ffn_down_exps.weight"},
};

static const char *const other_names[][2] = {
    {"model.embed_tokens.weight", "token_embd.weight"},
    {"model.norm.weight", "output_norm.weight"},
    {"lm_head.weight", "output.weight"},
};

static const char *look_up(const char *const names[][2], size_t n, const char *name)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(names[i][0], name) == 0)
            return names[i][1];
    return NULL;
}

ds_gguf_place ds_gguf_place_of(const char *name)
{
    static const char layers[] = "model.layers.", experts[] = "mlp.experts.";
    ds_gguf_place place = {.expert = -1, .n_parts = 1};
    if (strncmp(name, layers, sizeof layers - 1) != 0) {
        const char *found = look_up(other_names, sizeof other_names / sizeof *other_names, name);
        snprintf(place.name, sizeof place.name, "%s", found != NULL ? found : name);
        return place;
    }
    char *rest, part[DS_NAME_SIZE];
    place.layer = (uint32_t)strtoul(name + sizeof layers - 1, &rest, 10);
    rest++; /* the full stop */
    if (strncmp(rest, experts, sizeof experts - 1) == 0) {
        place.expert = (int32_t)strtol(rest + sizeof experts - 1, &rest, 10);
        snprintf(part, sizeof part, "%s%s", experts, rest + 1);
        rest = part;
    }
    const char *found = look_up(layer_names, sizeof layer_names / sizeof *layer_names, rest);
    snprintf(place.name, sizeof place.name, "blk.%u.%s", (unsigned)place.layer, found != NULL ? found : rest);
    return place;
}

bool ds_gguf_joined_place(const ds_gguf_place *place, ds_gguf_place *joined)
{
    static const char *const parts[] = {"gate", "up"};
    for (uint32_t part = 0; part < 2; part++) {
        char name[sizeof place->name];
        snprintf(name, sizeof name, "blk.%u.ffn_%s_exps.weight", (unsigned)place->layer, parts[part]);
        if (strcmp(name, place->name) != 0)
            continue;
        *joined = (ds_gguf_place){.layer = place->layer, .expert = place->expert, .part = part, .n_parts = 2};
        snprintf(joined->name, sizeof joined->name, "blk.%u.ffn_gate_up_exps.weight", (unsigned)place->layer);
        return true;
    }
    return false;
}

#include "check_config.h"

#include <math.h>
#include <stdlib.h>

static void check(bool claim)
{
    if (!claim)
        abort();
}

void check_config(const ds_config *c)
{
    check(c->vocab_size - 1 < DS_MAX_VOCAB && c->hidden_size - 1 < DS_MAX_DIM && c->intermediate_size - 1 < DS_MAX_DIM);
    check(c->num_hidden_layers - 1 < DS_MAX_LAYERS && c->num_attention_heads - 1 < DS_MAX_HEADS);
    check(c->kv_lora_rank - 1 < DS_MAX_DIM && c->q_lora_rank <= DS_MAX_DIM &&
          c->max_position_embeddings - 1 < DS_MAX_CONTEXT);
    check(c->qk_nope_head_dim - 1 < DS_MAX_HEAD_DIM && c->v_head_dim - 1 < DS_MAX_HEAD_DIM);
    check(c->qk_rope_head_dim - 1 < DS_MAX_HEAD_DIM && c->qk_rope_head_dim % 2 == 0);
    check(c->rms_norm_eps > 0 && c->rms_norm_eps <= 1 && c->rope_theta > 1 && isfinite(c->rope_theta));
    check(c->yarn.factor >= 1 && c->yarn.beta_fast > 0 && c->yarn.beta_slow > 0 &&
          c->yarn.original_max_position_embeddings >= 1);
    check(c->bos_token_id >= -1 && c->bos_token_id < (int64_t)c->vocab_size);
    check(c->ends.n <= DS_MAX_ENDS);
    for (uint32_t i = 0; i < c->ends.n; i++)
        check(c->ends.ids[i] >= 0 && (uint32_t)c->ends.ids[i] < c->vocab_size);
    check(c->moe_layer_freq >= 1 && c->n_group >= 1 && c->topk_group >= 1 && c->topk_group <= c->n_group &&
          c->n_group <= DS_MAX_GROUPS);
    if (c->n_routed_experts > 0) {
        check(c->n_routed_experts <= DS_MAX_EXPERTS && c->n_routed_experts % c->n_group == 0);
        check(c->num_experts_per_tok - 1 < DS_MAX_TOP_K && c->moe_intermediate_size - 1 < DS_MAX_DIM);
        check(c->num_experts_per_tok <= c->n_routed_experts / c->n_group * c->topk_group);
        check(c->routed_scaling_factor > 0 && isfinite(c->routed_scaling_factor));
    }
}

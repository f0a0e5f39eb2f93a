#include "unit/lite.h"

#include <check.h>

void expect_lite(const ds_config *c)
{
    ck_assert(!c->is_v3 && !c->attention_bias && !c->tie_word_embeddings && !c->rope_pairs_split && !c->norm_topk_prob);
    ck_assert_uint_eq(c->hidden_size, 2048);
    ck_assert_uint_eq(c->intermediate_size, 10944);
    ck_assert_uint_eq(c->moe_intermediate_size, 1408);
    ck_assert_uint_eq(c->num_hidden_layers, 27);
    ck_assert_uint_eq(c->num_attention_heads, 16);
    ck_assert_uint_eq(c->n_shared_experts, 2);
    ck_assert_uint_eq(c->n_routed_experts, 64);
    ck_assert_uint_eq(c->num_experts_per_tok, 6);
    ck_assert_uint_eq(c->n_group, 1);
    ck_assert_uint_eq(c->first_k_dense_replace, 1);
    ck_assert_uint_eq(c->moe_layer_freq, 1);
    ck_assert_uint_eq(c->q_lora_rank, 0);
    ck_assert_uint_eq(c->kv_lora_rank, 512);
    ck_assert_uint_eq(c->qk_nope_head_dim, 128);
    ck_assert_uint_eq(c->qk_rope_head_dim, 64);
    ck_assert_uint_eq(c->v_head_dim, 128);
    ck_assert_uint_eq(c->max_position_embeddings, 163840);
    ck_assert_int_eq(c->topk_method, DS_TOPK_GREEDY);
    ck_assert_int_eq(c->scoring_func, DS_SCORING_SOFTMAX);
    ck_assert(c->rms_norm_eps == 1e-6f && c->rope_theta == 10000 && c->routed_scaling_factor == 1);
    ck_assert(c->yarn.enabled && c->yarn.factor == 40 && c->yarn.beta_fast == 32 && c->yarn.beta_slow == 1);
    ck_assert_uint_eq(c->yarn.original_max_position_embeddings, 4096);
}

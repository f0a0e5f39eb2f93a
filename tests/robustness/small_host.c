#include "small_host.h"

#include <check.h>
#include <string.h>

const test_checkpoint shape = {
    .vocab_size = VOCAB, .hidden_size = 32, .intermediate_size = 40, .num_hidden_layers = 3, .num_attention_heads = 2,
    .kv_lora_rank = 16, .qk_nope_head_dim = 8, .qk_rope_head_dim = 4, .v_head_dim = 8,
    .max_position_embeddings = CONTEXT, .moe_intermediate_size = 16, .n_routed_experts = 6, .num_experts_per_tok = 2,
    .n_shared_experts = 1, .first_k_dense_replace = 1, .moe_layer_freq = 1, .seed = 42,
};

const dsv2_session_options absorbed = {.struct_size = sizeof absorbed, .attention = DSV2_ATTENTION_ABSORBED};

char *folder;
int32_t tokens[CONTEXT + 1];

void write_model(void)
{
    folder = test_checkpoint_write(&shape);
    test_random_tokens(7, VOCAB, tokens, CONTEXT + 1);
}

void remove_model(void) { test_checkpoint_remove(folder); }

dsv2_model *open_model(uint32_t n_threads, uint64_t cache_memory_limit)
{
    dsv2_model_options options = {
        .struct_size = sizeof options, .n_threads = n_threads, .cache_memory_limit = cache_memory_limit};
    dsv2_model *model;
    ck_assert_msg(dsv2_model_open(folder, &options, &model) == DSV2_OK, "%s", dsv2_last_error());
    return model;
}

dsv2_session *open_session(dsv2_model *model, const dsv2_session_options *options)
{
    dsv2_session *session;
    ck_assert_msg(dsv2_session_open(model, options, &session) == DSV2_OK, "%s", dsv2_last_error());
    return session;
}

void feed(dsv2_session *session, const int32_t *fed, size_t n)
{
    ck_assert_msg(dsv2_session_feed(session, fed, n) == DSV2_OK, "%s", dsv2_last_error());
}

size_t length_of(dsv2_session *session)
{
    size_t n;
    ck_assert(dsv2_session_length(session, &n) == DSV2_OK);
    return n;
}

dsv2_memory_info memory_of(const dsv2_model *model)
{
    dsv2_memory_info info = {.struct_size = sizeof info};
    ck_assert(dsv2_model_get_memory(model, &info) == DSV2_OK);
    return info;
}

void assert_holds(dsv2_session *session, dsv2_model *model, const int32_t *held, size_t n)
{
    int32_t copy[CONTEXT];
    size_t length;
    ck_assert(dsv2_session_tokens(session, copy, CONTEXT, &length) == DSV2_OK);
    ck_assert_uint_eq(length, n);
    ck_assert(memcmp(copy, held, n * sizeof *held) == 0);
    const float *logits, *expected;
    if (n == 0) {
        ck_assert(dsv2_session_logits(session, &logits) == DSV2_ERROR_STATE);
        return;
    }
    dsv2_session *fresh = open_session(model, &absorbed);
    feed(fresh, held, n);
    ck_assert(dsv2_session_logits(session, &logits) == DSV2_OK && dsv2_session_logits(fresh, &expected) == DSV2_OK);
    ck_assert(memcmp(logits, expected, VOCAB * sizeof *logits) == 0);
    dsv2_session_close(fresh);
}

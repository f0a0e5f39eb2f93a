/* The forward pass against what DeepSeek's published code computed for four small checkpoints, against an implementation of our own
 * that shares nothing with the library (support/reference.c) for other shapes, and against itself where bits must not change. */
#include <dsv2/dsv2.h>

#include "support/checkpoint.h"
#include "support/reference.h"
#include "support/tensors.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TOLERANCE 1e-3 /* of a logit; logits are some units large */

static const char *const kernel_sets[] = {"c", "avx2", "avx512"};
enum { N_SETS = 3, N_CASES = TEST_GOLDENS * N_SETS };

/* Logits of n tokens fed `chunk` at a time to a fresh session. */
static float *run(dsv2_model *model, const dsv2_session_options *options, const int32_t *tokens, size_t n, size_t chunk, size_t vocab_size)
{
    dsv2_session *session;
    ck_assert_msg(dsv2_session_open(model, options, &session) == DSV2_OK, "%s", dsv2_last_error());
    float *logits = malloc(n * vocab_size * sizeof *logits);
    ck_assert(logits != NULL);
    for (size_t i = 0; i < n; i += chunk) {
        dsv2_step_item item = {.struct_size = sizeof item, .session = session, .tokens = tokens + i,
                               .n_tokens = n - i < chunk ? n - i : chunk, .logits = logits + i * vocab_size};
        ck_assert_msg(dsv2_step(model, &item, 1) == DSV2_OK, "%s", dsv2_last_error());
    }
    dsv2_session_close(session);
    return logits;
}

/* NULL, with a word about it, where the processor lacks the kernels. */
static dsv2_model *open_with(const char *folder, const char *kernels, uint32_t n_threads)
{
    dsv2_model *model;
    dsv2_model_options options = {.struct_size = sizeof options, .n_threads = n_threads, .kernels = kernels};
    dsv2_status status = dsv2_model_open(folder, &options, &model);
    if (status == DSV2_ERROR_UNSUPPORTED && strstr(dsv2_last_error(), "kernel") != NULL) {
        printf("skipped: %s\n", dsv2_last_error());
        return NULL;
    }
    ck_assert_msg(status == DSV2_OK, "%s", dsv2_last_error());
    return model;
}

/* A golden's inputs and outputs. */
typedef struct golden {
    const char *folder;
    test_tensors expected;
    const int32_t *tokens;
    size_t n_tokens, vocab_size;
} golden;

static golden golden_open(size_t index)
{
    golden g = {.folder = test_golden_folders[index]};
    test_tensors_read(&g.expected, test_format("%s/expected.safetensors", g.folder));
    const test_tensor *ids = test_tensors_need(&g.expected, "input_ids", "I32");
    g.n_tokens = ids->dims[0];
    g.vocab_size = test_tensors_need(&g.expected, "logits", "F32")->dims[1];
    int32_t *tokens = malloc(ids->n_bytes);
    ck_assert(tokens != NULL);
    memcpy(tokens, ids->data, ids->n_bytes);
    g.tokens = tokens;
    return g;
}

static void golden_close(golden *g)
{
    test_tensors_free(&g->expected);
    free((void *)(uintptr_t)g->tokens);
}

static float float_at(const test_tensor *tensor, size_t i)
{
    float value;
    memcpy(&value, tensor->data + 4 * i, sizeof value);
    return value;
}

static uint32_t integer_at(const test_tensor *tensor, size_t i)
{
    uint32_t value;
    memcpy(&value, tensor->data + 4 * i, sizeof value);
    return value;
}

/* The largest difference; NaN if there is one anywhere. */
static double largest_difference(const float *logits, const double *expected, size_t n)
{
    double largest = 0;
    for (size_t i = 0; i < n; i++) {
        double difference = fabs(logits[i] - expected[i]);
        if (!(difference <= largest))
            largest = difference;
        if (isnan(largest))
            return largest;
    }
    return largest;
}

/* Every form and chunking with 1 to max_threads threads, against expected logits. */
static void check_logits(const char *folder, const char *kernels, uint32_t max_threads, const int32_t *tokens, size_t n,
                         size_t vocab_size, const double *expected)
{
    static const dsv2_attention forms[] = {DSV2_ATTENTION_AUTO, DSV2_ATTENTION_ABSORBED, DSV2_ATTENTION_EXPANDED};
    const size_t chunks[] = {1, 7, n};
    for (uint32_t n_threads = 1; n_threads <= max_threads; n_threads++) {
        dsv2_model *model = open_with(folder, kernels, n_threads);
        if (model == NULL)
            return;
        for (size_t form = 0; form < 3; form++) {
            for (size_t chunk = 0; chunk < 3; chunk++) {
                dsv2_session_options options = {.struct_size = sizeof options, .cache_type = DSV2_CACHE_F32, .attention = forms[form]};
                float *logits = run(model, &options, tokens, n, chunks[chunk], vocab_size);
                double difference = largest_difference(logits, expected, n * vocab_size);
                ck_assert_msg(difference <= TOLERANCE, "%s, kernels %s, %u threads, attention %d, chunks of %zu: off by %g", folder,
                              kernels, n_threads, (int)forms[form], chunks[chunk], difference);
                free(logits);
            }
        }
        dsv2_model_close(model);
    }
}

START_TEST(logits_match_published_code_for_any_chunking_threads_form_and_kernels)
{
    golden g = golden_open((size_t)_i / N_SETS);
    const test_tensor *logits = test_tensors_need(&g.expected, "logits", "F32");
    double *expected = malloc(g.n_tokens * g.vocab_size * sizeof *expected);
    ck_assert(expected != NULL);
    for (size_t i = 0; i < g.n_tokens * g.vocab_size; i++)
        expected[i] = float_at(logits, i);
    check_logits(g.folder, kernel_sets[_i % N_SETS], 2, g.tokens, g.n_tokens, g.vocab_size, expected);
    free(expected);
    golden_close(&g);
}
END_TEST

/* The reference itself is held to the published code first. */
START_TEST(reference_matches_published_code)
{
    golden g = golden_open((size_t)_i);
    reference *r = reference_run(g.folder, g.tokens, g.n_tokens);
    const test_tensor *logits = test_tensors_need(&g.expected, "logits", "F32");
    ck_assert_uint_eq(r->vocab_size, g.vocab_size);
    for (size_t i = 0; i < g.n_tokens * g.vocab_size; i++)
        ck_assert_double_le(fabs(r->logits[i] - float_at(logits, i)), 1e-4);
    for (size_t l = 0; l < r->n_layers; l++) {
        const reference_routes *routes = &r->layers[l];
        const test_tensor *ids = test_tensors_find(&g.expected, test_format("router.%zu.expert_ids", l));
        ck_assert_int_eq(routes->is_moe, ids != NULL);
        if (ids == NULL)
            continue;
        const test_tensor *weights = test_tensors_need(&g.expected, test_format("router.%zu.expert_weights", l), "F32");
        ck_assert_uint_eq(ids->dims[1], r->top_k);
        for (size_t i = 0; i < g.n_tokens * r->top_k; i++) {
            ck_assert_uint_eq(routes->experts[i], integer_at(ids, i));
            ck_assert_double_le(fabs(routes->gates[i] - float_at(weights, i)), 1e-5 * (1 + fabs(routes->gates[i])));
        }
    }
    reference_free(r);
    golden_close(&g);
}
END_TEST

/* ---- other shapes ---- */

#define COMMON .vocab_size = 97, .max_position_embeddings = 512, .num_hidden_layers = 3, .num_attention_heads = 3
#define ODD .hidden_size = 37, .intermediate_size = 51, .kv_lora_rank = 21, .qk_nope_head_dim = 11, .qk_rope_head_dim = 6, .v_head_dim = 13
#define EVEN .hidden_size = 64, .intermediate_size = 96, .kv_lora_rank = 32, .qk_nope_head_dim = 16, .qk_rope_head_dim = 8, .v_head_dim = 24
#define MIXTURE .n_routed_experts = 8, .num_experts_per_tok = 3, .moe_intermediate_size = 32, .first_k_dense_replace = 1

static const test_checkpoint shapes[] = {
    {.name = "sizes that are no multiple of anything", COMMON, ODD, .q_lora_rank = 19, .n_routed_experts = 7, .num_experts_per_tok = 3,
     .moe_intermediate_size = 23, .n_shared_experts = 1, .first_k_dense_replace = 1, .seed = 1},
    {.name = "odd sizes with YaRN, its two scales different", COMMON, ODD, .n_routed_experts = 5, .num_experts_per_tok = 2,
     .moe_intermediate_size = 9, .n_shared_experts = 2, .yarn = true, .seed = 2},
    {.name = "three shared experts", COMMON, EVEN, MIXTURE, .n_shared_experts = 3, .seed = 3},
    {.name = "no shared experts", COMMON, EVEN, MIXTURE, .seed = 4},
    {.name = "dense", COMMON, EVEN, .seed = 5},
    {.name = "a mixture in every second layer", COMMON, EVEN, MIXTURE, .n_shared_experts = 1, .moe_layer_freq = 2, .seed = 6},
    {.name = "attention biases", COMMON, EVEN, MIXTURE, .q_lora_rank = 24, .attention_bias = true, .yarn = true, .seed = 7},
    {.name = "tied embeddings", COMMON, EVEN, MIXTURE, .n_shared_experts = 1, .tie_word_embeddings = true, .seed = 8},
    {.name = "F16", COMMON, ODD, MIXTURE, .n_shared_experts = 1, .dtype = "F16", .seed = 9},
    {.name = "F32", COMMON, ODD, MIXTURE, .n_shared_experts = 1, .dtype = "F32", .seed = 10},
    {.name = "FP8 with blocks that do not divide", COMMON, ODD, MIXTURE, .n_shared_experts = 1, .q_lora_rank = 19, .dtype = "F8_E4M3",
     .block_rows = 16, .block_cols = 8, .seed = 11},
    {.name = "device-limited, scaled gates", COMMON, EVEN, .n_routed_experts = 12, .num_experts_per_tok = 4, .moe_intermediate_size = 16,
     .n_shared_experts = 1, .topk_method = "group_limited_greedy", .n_group = 4, .topk_group = 2, .routed_scaling_factor = 4, .seed = 12},
    {.name = "normalised gates", COMMON, EVEN, MIXTURE, .norm_topk_prob = true, .routed_scaling_factor = 3, .topk_method = "greedy",
     .seed = 13},
    {.name = "one expert a token", COMMON, EVEN, .n_routed_experts = 4, .num_experts_per_tok = 1, .moe_intermediate_size = 40,
     .norm_topk_prob = true, .seed = 14},
    {.name = "DeepSeek-V3's router", COMMON, EVEN, .model_type = "deepseek_v3", .n_routed_experts = 12, .num_experts_per_tok = 4,
     .moe_intermediate_size = 16, .n_shared_experts = 1, .topk_method = "noaux_tc", .n_group = 3, .topk_group = 2, .q_lora_rank = 24,
     .routed_scaling_factor = 2.5, .norm_topk_prob = true, .seed = 15},
    {.name = "as many heads as do not fit into a block of queries", .vocab_size = 97, .max_position_embeddings = 512,
     .num_hidden_layers = 2, .num_attention_heads = 70, .hidden_size = 64, .intermediate_size = 32, .kv_lora_rank = 16,
     .qk_nope_head_dim = 8, .qk_rope_head_dim = 4, .v_head_dim = 8, .seed = 16},
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes, SHAPE_TOKENS = 70 };

START_TEST(logits_match_reference_for_other_shapes)
{
    const test_checkpoint *shape = &shapes[_i];
    char *folder = test_checkpoint_write(shape);
    int32_t tokens[SHAPE_TOKENS];
    test_random_tokens(shape->seed + 1000, shape->vocab_size, tokens, SHAPE_TOKENS);
    reference *r = reference_run(folder, tokens, SHAPE_TOKENS);
    for (size_t set = 0; set < N_SETS; set++)
        check_logits(folder, kernel_sets[set], 1, tokens, SHAPE_TOKENS, shape->vocab_size, r->logits);
    reference_free(r);
    test_checkpoint_remove(folder);
}
END_TEST

/* ---- bits that must not change ---- */

enum { LONG = 700 }; /* more than one pass, and more than one span of attention */

static const dsv2_session_options form_options[] = {
    {.struct_size = sizeof(dsv2_session_options)},
    {.struct_size = sizeof(dsv2_session_options), .attention = DSV2_ATTENTION_ABSORBED, .cache_type = DSV2_CACHE_F32},
    {.struct_size = sizeof(dsv2_session_options), .attention = DSV2_ATTENTION_EXPANDED},
};

START_TEST(threads_change_no_bit)
{
    const char *folder = test_golden_folders[_i / N_SETS], *kernels = kernel_sets[_i % N_SETS];
    int32_t tokens[200];
    test_random_tokens(3, 320, tokens, 200);
    dsv2_model *one = open_with(folder, kernels, 1);
    if (one == NULL)
        return;
    dsv2_model_info info = {.struct_size = sizeof info};
    ck_assert(dsv2_model_get_info(one, &info) == DSV2_OK);
    for (uint32_t n_threads = 2; n_threads <= 3; n_threads++) {
        dsv2_model *several = open_with(folder, kernels, n_threads);
        for (size_t form = 0; form < 3; form++) {
            float *a = run(one, &form_options[form], tokens, 200, 150, info.vocab_size);
            float *b = run(several, &form_options[form], tokens, 200, 150, info.vocab_size);
            ck_assert_msg(memcmp(a, b, 200 * info.vocab_size * sizeof *a) == 0, "%u threads, attention %zu", n_threads, form);
            free(a), free(b);
        }
        dsv2_model_close(several);
    }
    dsv2_model_close(one);
}
END_TEST

START_TEST(absorbed_form_gives_the_same_bits_for_any_chunking)
{
    dsv2_model *model = open_with(test_golden_folders[0], kernel_sets[_i], 2);
    if (model == NULL)
        return;
    static int32_t tokens[LONG];
    test_random_tokens(4, 384, tokens, LONG);
    const dsv2_session_options *options = &form_options[1];
    float *whole = run(model, options, tokens, LONG, LONG, 384);
    static const size_t chunks[] = {1, 7, 64, 513};
    for (size_t i = 0; i < sizeof chunks / sizeof *chunks; i++) {
        float *cut = run(model, options, tokens, LONG, chunks[i], 384);
        ck_assert_msg(memcmp(whole, cut, LONG * 384 * sizeof *cut) == 0, "chunks of %zu", chunks[i]);
        free(cut);
    }
    free(whole);
    dsv2_model_close(model);
}
END_TEST

/* Sessions of different lengths and forms, each with its own rhythm; a round is one dsv2_step with all that have tokens left. */
START_TEST(companions_change_no_bit)
{
    static const struct {
        size_t n_tokens, chunk, form;
    } parts[] = {{LONG, LONG, 0}, {650, 333, 1}, {300, 7, 0}, {90, 1, 2}, {1, 1, 0}, {530, 520, 2}, {64, 64, 1}};
    enum { N = sizeof parts / sizeof *parts };
    dsv2_model *model = open_with(test_golden_folders[1], kernel_sets[_i], 2);
    if (model == NULL)
        return;
    int32_t *tokens[N];
    dsv2_session *sessions[N];
    float *together[N];
    size_t fed[N] = {0};
    for (size_t i = 0; i < N; i++) {
        tokens[i] = malloc(parts[i].n_tokens * sizeof **tokens);
        together[i] = malloc(parts[i].n_tokens * 384 * sizeof **together);
        ck_assert(tokens[i] != NULL && together[i] != NULL);
        test_random_tokens(i, 384, tokens[i], parts[i].n_tokens);
        ck_assert(dsv2_session_open(model, &form_options[parts[i].form], &sessions[i]) == DSV2_OK);
    }
    for (size_t n_items = 1; n_items > 0;) {
        dsv2_step_item items[N];
        n_items = 0;
        for (size_t i = 0; i < N; i++) {
            size_t left = parts[i].n_tokens - fed[i], n = left < parts[i].chunk ? left : parts[i].chunk;
            if (n == 0)
                continue;
            items[n_items++] = (dsv2_step_item){.struct_size = sizeof *items, .session = sessions[i], .tokens = tokens[i] + fed[i],
                                                .n_tokens = n, .logits = together[i] + fed[i] * 384};
            fed[i] += n;
        }
        if (n_items > 0)
            ck_assert_msg(dsv2_step(model, items, n_items) == DSV2_OK, "%s", dsv2_last_error());
    }
    for (size_t i = 0; i < N; i++) {
        float *alone = run(model, &form_options[parts[i].form], tokens[i], parts[i].n_tokens, parts[i].chunk, 384);
        ck_assert_msg(memcmp(alone, together[i], parts[i].n_tokens * 384 * sizeof *alone) == 0, "session %zu", i);
        free(alone), free(tokens[i]), free(together[i]);
        dsv2_session_close(sessions[i]);
    }
    dsv2_model_close(model);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("golden");
    TCase *tests = tcase_create("golden");
    tcase_set_timeout(tests, 300);
    tcase_add_loop_test(tests, reference_matches_published_code, 0, TEST_GOLDENS);
    tcase_add_loop_test(tests, logits_match_published_code_for_any_chunking_threads_form_and_kernels, 0, N_CASES);
    tcase_add_loop_test(tests, logits_match_reference_for_other_shapes, 0, N_SHAPES);
    tcase_add_loop_test(tests, threads_change_no_bit, 0, N_CASES);
    tcase_add_loop_test(tests, absorbed_form_gives_the_same_bits_for_any_chunking, 0, N_SETS);
    tcase_add_loop_test(tests, companions_change_no_bit, 0, N_SETS);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed > 0;
}

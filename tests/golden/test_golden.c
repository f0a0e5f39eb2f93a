/* The forward pass, against what DeepSeek's published code computed for four small checkpoints, and for other shapes
 * against support/reference.c, which shares nothing with the library. */
#include "support/checkpoint.h"
#include "support/model.h"
#include "support/reference.h"
#include "support/run.h"
#include "support/tensors.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define TOLERANCE 1e-3 /* on a logit; logits are some units large */

static int n_cases(void) { return TEST_GOLDENS * (int)test_kernel_sets(); }

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

/* The largest difference. NaN if a logit is NaN. */
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

/* Every form and chunking with 1 to max_threads threads gives the expected logits. */
static void check_logits(const char *folder, const char *kernels, uint32_t max_threads, const int32_t *tokens, size_t n,
                         size_t vocab_size, const double *expected)
{
    static const dsv2_attention forms[] = {DSV2_ATTENTION_AUTO, DSV2_ATTENTION_ABSORBED, DSV2_ATTENTION_EXPANDED};
    const size_t chunks[] = {1, 7, n};
    for (uint32_t n_threads = 1; n_threads <= max_threads; n_threads++) {
        dsv2_model *model = test_model_open(folder, &(dsv2_model_options){.n_threads = n_threads, .kernels = kernels});
        if (model == NULL)
            return;
        for (size_t form = 0; form < 3; form++) {
            for (size_t chunk = 0; chunk < 3; chunk++) {
                dsv2_session_options options = {
                    .struct_size = sizeof options, .cache_type = DSV2_CACHE_F32, .attention = forms[form]};
                float *logits = test_logits(model, &options, tokens, n, chunks[chunk]);
                double difference = largest_difference(logits, expected, n * vocab_size);
                ck_assert_msg(difference <= TOLERANCE,
                              "%s, kernels %s, %u threads, attention %d, chunks of %zu: off by %g", folder, kernels,
                              n_threads, (int)forms[form], chunks[chunk], difference);
                free(logits);
            }
        }
        dsv2_model_close(model);
    }
}

START_TEST(logits_match_published_code_for_any_chunking_threads_form_and_kernels)
{
    golden g = golden_open((size_t)_i / test_kernel_sets());
    const test_tensor *logits = test_tensors_need(&g.expected, "logits", "F32");
    double *expected = malloc(g.n_tokens * g.vocab_size * sizeof *expected);
    ck_assert(expected != NULL);
    for (size_t i = 0; i < g.n_tokens * g.vocab_size; i++)
        expected[i] = float_at(logits, i);
    check_logits(g.folder, test_kernel_set((size_t)_i % test_kernel_sets()), 2, g.tokens, g.n_tokens, g.vocab_size,
                 expected);
    free(expected);
    golden_close(&g);
}
END_TEST

/* The reference must agree with the published code. */
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
#define ODD                                                                                                            \
    .hidden_size = 37, .intermediate_size = 51, .kv_lora_rank = 21,                                                    \
    .qk_nope_head_dim = 11, .qk_rope_head_dim = 6, .v_head_dim = 13
#define EVEN                                                                                                           \
    .hidden_size = 64, .intermediate_size = 96, .kv_lora_rank = 32,                                                    \
    .qk_nope_head_dim = 16, .qk_rope_head_dim = 8, .v_head_dim = 24
#define MIXTURE .n_routed_experts = 8, .num_experts_per_tok = 3, .moe_intermediate_size = 32, .first_k_dense_replace = 1

static const test_checkpoint shapes[] = {
    {.name = "sizes that are no multiple of anything", COMMON, ODD, .q_lora_rank = 19, .n_routed_experts = 7,
     .num_experts_per_tok = 3, .moe_intermediate_size = 23, .n_shared_experts = 1, .first_k_dense_replace = 1,
     .seed = 1},
    {.name = "odd sizes with YaRN, its two scales different", COMMON, ODD, .n_routed_experts = 5,
     .num_experts_per_tok = 2, .moe_intermediate_size = 9, .n_shared_experts = 2, .yarn = true, .seed = 2},
    {.name = "three shared experts", COMMON, EVEN, MIXTURE, .n_shared_experts = 3, .seed = 3},
    {.name = "no shared experts", COMMON, EVEN, MIXTURE, .seed = 4},
    {.name = "dense", COMMON, EVEN, .seed = 5},
    {.name = "a mixture in every second layer", COMMON, EVEN, MIXTURE, .n_shared_experts = 1, .moe_layer_freq = 2,
     .seed = 6},
    {.name = "attention biases", COMMON, EVEN, MIXTURE, .q_lora_rank = 24, .attention_bias = true, .yarn = true,
     .seed = 7},
    {.name = "tied embeddings", COMMON, EVEN, MIXTURE, .n_shared_experts = 1, .tie_word_embeddings = true, .seed = 8},
    {.name = "F16", COMMON, ODD, MIXTURE, .n_shared_experts = 1, .dtype = "F16", .seed = 9},
    {.name = "F32", COMMON, ODD, MIXTURE, .n_shared_experts = 1, .dtype = "F32", .seed = 10},
    {.name = "FP8 with blocks that do not divide", COMMON, ODD, MIXTURE, .n_shared_experts = 1, .q_lora_rank = 19,
     .dtype = "F8_E4M3", .block_rows = 16, .block_cols = 8, .seed = 11},
    {.name = "device-limited, scaled gates", COMMON, EVEN, .n_routed_experts = 12, .num_experts_per_tok = 4,
     .moe_intermediate_size = 16, .n_shared_experts = 1, .topk_method = "group_limited_greedy", .n_group = 4,
     .topk_group = 2, .routed_scaling_factor = 4, .seed = 12},
    {.name = "normalised gates", COMMON, EVEN, MIXTURE, .norm_topk_prob = true, .routed_scaling_factor = 3,
     .topk_method = "greedy", .seed = 13},
    {.name = "one expert a token", COMMON, EVEN, .n_routed_experts = 4, .num_experts_per_tok = 1,
     .moe_intermediate_size = 40, .norm_topk_prob = true, .seed = 14},
    {.name = "DeepSeek-V3's router", COMMON, EVEN, .model_type = "deepseek_v3", .n_routed_experts = 12,
     .num_experts_per_tok = 4, .moe_intermediate_size = 16, .n_shared_experts = 1, .topk_method = "noaux_tc",
     .n_group = 3, .topk_group = 2, .q_lora_rank = 24, .routed_scaling_factor = 2.5, .norm_topk_prob = true,
     .seed = 15},
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
    for (size_t set = 0; set < test_kernel_sets(); set++)
        check_logits(folder, test_kernel_set(set), 1, tokens, SHAPE_TOKENS, shape->vocab_size, r->logits);
    reference_free(r);
    test_checkpoint_remove(folder);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("golden");
    TCase *tests = tcase_create("golden");
    tcase_set_timeout(tests, 300);
    tcase_add_loop_test(tests, reference_matches_published_code, 0, TEST_GOLDENS);
    tcase_add_loop_test(tests, logits_match_published_code_for_any_chunking_threads_form_and_kernels, 0, n_cases());
    tcase_add_loop_test(tests, logits_match_reference_for_other_shapes, 0, N_SHAPES);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}

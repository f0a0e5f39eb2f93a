/* Real widths: layers of V2-Lite's and V2's, with random weights that are made here. Queues, working memory and kernels
 * meet sizes that small models never have. Review 5: nothing was compared with an independent reference past 160
 * tokens, nor any prompt of more than one segment. */
#include <dsv2/dsv2.h>

#include "support/checkpoint.h"
#include "support/model.h"
#include "support/reference.h"
#include "support/run.h"
#include "support/tensors.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* All widths are V2-Lite's; the vocabulary and the number of experts are smaller. */
static const test_checkpoint lite = {
    .vocab_size = 400, .hidden_size = 2048, .intermediate_size = 10944, .num_hidden_layers = 2,
    .num_attention_heads = 16, .kv_lora_rank = 512, .qk_nope_head_dim = 128, .qk_rope_head_dim = 64, .v_head_dim = 128,
    .max_position_embeddings = 4096, .moe_intermediate_size = 1408, .n_routed_experts = 8, .num_experts_per_tok = 6,
    .n_shared_experts = 2, .first_k_dense_replace = 1, .yarn = true, .seed = 61,
};

/* V2's widths but for its number of heads, and its router: 160 experts in 8 groups, of which 3 are kept. */
static const test_checkpoint v2 = {
    .vocab_size = 400, .hidden_size = 5120, .intermediate_size = 12288, .num_hidden_layers = 1,
    .num_attention_heads = 16, .q_lora_rank = 1536, .kv_lora_rank = 512, .qk_nope_head_dim = 128,
    .qk_rope_head_dim = 64, .v_head_dim = 128, .max_position_embeddings = 163840, .moe_intermediate_size = 32,
    .n_routed_experts = 160, .num_experts_per_tok = 6, .n_shared_experts = 2, .topk_method = "group_limited_greedy",
    .n_group = 8, .topk_group = 3, .routed_scaling_factor = 16, .published_yarn = true, .seed = 62,
};

/* Few heads, each of the published width. */
static const test_checkpoint long_context = {
    .vocab_size = 100, .hidden_size = 256, .intermediate_size = 256, .num_hidden_layers = 1,
    .num_attention_heads = 2, .q_lora_rank = 96, .kv_lora_rank = 512, .qk_nope_head_dim = 128, .qk_rope_head_dim = 64,
    .v_head_dim = 128, .max_position_embeddings = 163840, .published_yarn = true, .seed = 63,
};

/* SEGMENT: of the context, in the expanded form. LONG: two segments and a part of a third. */
enum { SHORT = 6, SEGMENT = 2048, LONG = 2 * SEGMENT + 150 };

static char *folder;
static int32_t tokens[LONG];

static void make(void)
{
    folder = test_checkpoint_write(&lite);
    test_random_tokens(5, lite.vocab_size, tokens, LONG);
}

static void drop(void) { test_checkpoint_remove(folder); }

/* Row i of `logits` is the token at[i]; at NULL: token i. */
static void expect_reference(const reference *r, const float *logits, const size_t *at, const char *what)
{
    size_t n = r->n_tokens * r->vocab_size;
    double magnitude = 0;
    for (size_t i = 0; i < n; i++)
        magnitude = fmax(magnitude, fabs(r->logits[i]));
    for (size_t i = 0; i < n; i++) {
        size_t row = i / r->vocab_size, token = at != NULL ? at[row] : row;
        double got = (double)logits[token * r->vocab_size + i % r->vocab_size];
        ck_assert_msg(fabs(got - r->logits[i]) <= 1e-4 * magnitude, "%s, token %zu, number %zu: %.9g, expected %.9g",
                      what, token, i % r->vocab_size, got, r->logits[i]);
    }
}

static void match_the_reference(const char *of)
{
    reference *r = reference_run(of, tokens, SHORT);
    const dsv2_session_options options = {.struct_size = sizeof options, .cache_type = DSV2_CACHE_F32};
    for (size_t set = 0; set < test_kernel_sets(); set++) {
        dsv2_model *model = test_model_open(
            of, &(dsv2_model_options){.n_threads = 2, .kernels = test_kernel_set(set)});
        for (size_t chunk = 1; chunk <= SHORT; chunk += SHORT - 1) {
            float *logits = test_logits(model, &options, tokens, SHORT, chunk);
            expect_reference(r, logits, NULL, test_format("%s, chunk %zu", test_kernel_set(set), chunk));
            free(logits);
        }
        dsv2_model_close(model);
    }
    reference_free(r);
}

START_TEST(logits_of_v2_lites_layers_match_the_reference) { match_the_reference(folder); }
END_TEST

START_TEST(logits_of_v2s_layer_match_the_reference)
{
    char *v2_folder = test_checkpoint_write(&v2);
    match_the_reference(v2_folder);
    test_checkpoint_remove(v2_folder);
}
END_TEST

/* The model's 350 MB fill the queue of conversions, 16 MiB for each thread, several times over. */
START_TEST(converted_weights_are_the_same_for_any_number_of_threads)
{
    float *logits[2];
    for (uint32_t i = 0; i < 2; i++) {
        dsv2_model *model = test_model_open(
            folder, &(dsv2_model_options){.n_threads = i == 0 ? 1 : 3, .weight_type = DSV2_WEIGHTS_Q8_0});
        logits[i] = test_logits(model, NULL, tokens, SHORT, SHORT);
        dsv2_model_close(model);
    }
    ck_assert(memcmp(logits[0], logits[1], SHORT * lite.vocab_size * sizeof *logits[0]) == 0);
    free(logits[0]);
    free(logits[1]);
}
END_TEST

/* The expanded form goes over the context in segments, the absorbed one in spans of 512: at the ends of both, and where
 * YaRN has turned far. */
START_TEST(long_prompts_match_the_reference_in_both_forms_of_attention)
{
    static const size_t at[] = {0, 1, 511, 512, 513, 1023, 1024, 1500, SEGMENT - 2, SEGMENT - 1, SEGMENT, SEGMENT + 1,
                                2559, 2560, 3000, 3583, 3584, 2 * SEGMENT - 1, 2 * SEGMENT, 2 * SEGMENT + 1, LONG - 1};
    char *long_folder = test_checkpoint_write(&long_context);
    int32_t *fed = malloc(LONG * sizeof *fed);
    ck_assert(fed != NULL);
    test_random_tokens(6, long_context.vocab_size, fed, LONG);
    reference *r = reference_run_at(long_folder, fed, LONG, at, sizeof at / sizeof *at);
    for (size_t set = 0; set < test_kernel_sets(); set++) {
        dsv2_model *model = test_model_open(
            long_folder, &(dsv2_model_options){.n_threads = 2, .kernels = test_kernel_set(set)});
        bool best = set + 1 == test_kernel_sets(); /* the others are slow */
        int first = best ? DSV2_ATTENTION_ABSORBED : DSV2_ATTENTION_EXPANDED;
        for (int form = first; form <= DSV2_ATTENTION_EXPANDED; form++) {
            const dsv2_session_options options = {.struct_size = sizeof options, .cache_type = DSV2_CACHE_F32,
                                                  .attention = (dsv2_attention)form};
            float *logits = test_logits(model, &options, fed, LONG, LONG);
            expect_reference(r, logits, at, test_format("%s, form %d", test_kernel_set(set), form));
            free(logits);
        }
        dsv2_model_close(model);
    }
    reference_free(r);
    free(fed);
    test_checkpoint_remove(long_folder);
}
END_TEST

int main(void)
{
    TCase *tests = tcase_create("widths");
    tcase_set_timeout(tests, 300);
    tcase_add_unchecked_fixture(tests, make, drop);
    tcase_add_test(tests, logits_of_v2_lites_layers_match_the_reference);
    tcase_add_test(tests, logits_of_v2s_layer_match_the_reference);
    tcase_add_test(tests, converted_weights_are_the_same_for_any_number_of_threads);
    tcase_add_test(tests, long_prompts_match_the_reference_in_both_forms_of_attention);
    Suite *suite = suite_create("widths");
    suite_add_tcase(suite, tests);
    return test_run(suite);
}

/* Real widths: two layers of V2-Lite's, a dense one and one of experts, with random weights that are made here. Queues,
 * working memory and kernels meet sizes that small models never have. */
#include <dsv2/dsv2.h>

#include "support/checkpoint.h"
#include "support/model.h"
#include "support/reference.h"
#include "support/run.h"

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

enum { SHORT = 6, LONG = 2200 };

static char *folder, *attention_folder; /* of the whole model, and of one layer whose feed-forward part is small */
static int32_t tokens[LONG];

static void make(void)
{
    test_checkpoint attention = lite;
    attention.num_hidden_layers = 1;
    attention.intermediate_size = 512;
    folder = test_checkpoint_write(&lite);
    attention_folder = test_checkpoint_write(&attention);
    test_random_tokens(5, lite.vocab_size, tokens, LONG);
}

static void drop(void)
{
    test_checkpoint_remove(folder);
    test_checkpoint_remove(attention_folder);
}

START_TEST(logits_match_the_reference)
{
    reference *r = reference_run(folder, tokens, SHORT);
    const dsv2_session_options options = {.struct_size = sizeof options, .cache_type = DSV2_CACHE_F32};
    double magnitude = 0;
    for (size_t i = 0; i < (size_t)SHORT * lite.vocab_size; i++)
        magnitude = fmax(magnitude, fabs(r->logits[i]));
    for (size_t set = 0; set < test_kernel_sets(); set++) {
        dsv2_model *model = test_model_open(
            folder, &(dsv2_model_options){.n_threads = 2, .kernels = test_kernel_set(set)});
        for (size_t chunk = 1; chunk <= SHORT; chunk += SHORT - 1) {
            float *logits = test_logits(model, &options, tokens, SHORT, chunk);
            for (size_t i = 0; i < (size_t)SHORT * lite.vocab_size; i++)
                ck_assert_msg(fabs((double)logits[i] - r->logits[i]) <= 1e-4 * magnitude,
                              "%s, chunk %zu, number %zu: %.9g, expected %.9g", test_kernel_set(set), chunk, i,
                              (double)logits[i], r->logits[i]);
            free(logits);
        }
        dsv2_model_close(model);
    }
    reference_free(r);
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

static float *last_logits(dsv2_model *model, dsv2_attention attention)
{
    const dsv2_session_options options = {
        .struct_size = sizeof options, .attention = attention, .cache_type = DSV2_CACHE_F32};
    dsv2_session *session = test_session_open(model, &options);
    const float *logits;
    ck_assert_msg(dsv2_session_feed(session, tokens, LONG) == DSV2_OK, "%s", dsv2_last_error());
    ck_assert(dsv2_session_logits(session, &logits) == DSV2_OK);
    float *copy = malloc(lite.vocab_size * sizeof *copy);
    ck_assert(copy != NULL);
    memcpy(copy, logits, lite.vocab_size * sizeof *copy);
    dsv2_session_close(session);
    return copy;
}

/* The expanded form goes over the context in segments of 2,048 tokens, the absorbed one in spans of 512: two ways to the
 * same attention that share little. */
START_TEST(both_forms_of_attention_agree_beyond_one_segment)
{
    dsv2_model *model = test_model_open(attention_folder, &(dsv2_model_options){.n_threads = 2});
    float *absorbed = last_logits(model, DSV2_ATTENTION_ABSORBED);
    float *expanded = last_logits(model, DSV2_ATTENTION_EXPANDED);
    double difference = 0, magnitude = 0;
    for (uint32_t i = 0; i < lite.vocab_size; i++) {
        difference = fmax(difference, fabs((double)absorbed[i] - (double)expanded[i]));
        magnitude = fmax(magnitude, fabs((double)absorbed[i]));
    }
    ck_assert_msg(difference <= 1e-4 * magnitude, "off by %g of %g", difference, magnitude);
    free(absorbed);
    free(expanded);
    dsv2_model_close(model);
}
END_TEST

int main(void)
{
    TCase *tests = tcase_create("widths");
    tcase_set_timeout(tests, 300);
    tcase_add_unchecked_fixture(tests, make, drop);
    tcase_add_test(tests, logits_match_the_reference);
    tcase_add_test(tests, converted_weights_are_the_same_for_any_number_of_threads);
    tcase_add_test(tests, both_forms_of_attention_agree_beyond_one_segment);
    Suite *suite = suite_create("widths");
    suite_add_tcase(suite, tests);
    return test_run(suite);
}

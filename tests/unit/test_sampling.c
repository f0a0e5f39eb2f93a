/* Drawing tokens: each step against a plain implementation here, distributions against chi-square bounds; misuse. */
#include "sampling/sampling.h"
#include "support/oom.h"
#include "support/run.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { VOCAB = 500, LARGE_VOCAB = 102400 };

/* ---- a plain implementation: probabilities of every token by sorting, in double, with libm ---- */

typedef struct plain_token {
    int32_t token;
    double logit, p;
} plain_token;

static int plain_order(const void *a, const void *b)
{
    const plain_token *x = a, *y = b;
    if (x->logit != y->logit)
        return x->logit < y->logit ? 1 : -1;
    return (x->token > y->token) - (x->token < y->token);
}

static void plain_normalise(plain_token *t, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += t[i].p;
    for (size_t i = 0; i < n; i++)
        t[i].p /= sum;
}

/* out[vocab]: the probability of each token. */
static void plain_probabilities(const dsv2_sampling *s, const float *logits, uint32_t vocab, const int32_t *tokens,
                                size_t n_tokens, double *out)
{
    plain_token *t = calloc(vocab, sizeof *t);
    for (uint32_t i = 0; i < vocab; i++) {
        double x = (double)logits[i];
        for (size_t j = 0; j < s->n_logit_bias; j++)
            if ((uint32_t)s->logit_bias[j].token == i)
                x += (double)s->logit_bias[j].bias;
        size_t count = 0;
        for (size_t j = 0; j < n_tokens; j++)
            if ((uint32_t)tokens[j] == i && (s->penalty_window == 0 || j + s->penalty_window >= n_tokens))
                count++;
        if (count > 0) {
            x = x > 0 ? x / (double)s->repetition_penalty : x * (double)s->repetition_penalty;
            x -= (double)s->presence_penalty + (double)s->frequency_penalty * (double)count;
        }
        t[i] = (plain_token){(int32_t)i, x, 0};
    }
    qsort(t, vocab, sizeof *t, plain_order);
    size_t n = vocab;
    if (s->temperature == 0) {
        n = 1;
        t[0].p = 1;
    } else {
        for (uint32_t i = 0; i < vocab; i++)
            t[i].p = exp((t[i].logit - t[0].logit) / (double)s->temperature);
        if (s->top_k > 0 && s->top_k < n)
            n = s->top_k;
        plain_normalise(t, n);
        double sum = 0;
        for (size_t i = 0; s->top_p < 1 && i < n; i++) {
            sum += t[i].p;
            if (sum >= (double)s->top_p)
                n = i + 1;
        }
        while (t[n - 1].p < (double)s->min_p * t[0].p)
            n--;
        plain_normalise(t, n);
    }
    memset(out, 0, vocab * sizeof *out);
    for (size_t i = 0; i < n; i++)
        out[t[i].token] = t[i].p;
    free(t);
}

/* ---- helpers ---- */

static ds_candidate scratch[LARGE_VOCAB];

/* Logits as a model gives them: roughly normal, rounded so that some are equal. */
static void make_logits(float *logits, uint32_t n, uint64_t seed, double spread)
{
    ds_random random;
    ds_random_seed(&random, seed);
    for (uint32_t i = 0; i < n; i++) {
        double sum = 0;
        for (int j = 0; j < 6; j++)
            sum += (double)(ds_random_next(&random) >> 11) / 9007199254740992.0 - 0.5;
        logits[i] = (float)(floor(sum * spread * 64) / 64);
    }
}

static ds_sampler make_sampler(const dsv2_sampling *s, uint32_t vocab)
{
    ds_sampler sampler;
    ds_sampler_init(&sampler);
    ck_assert_msg(ds_sampler_set(&sampler, s, vocab) == DSV2_OK, "%s", dsv2_last_error());
    return sampler;
}

static int32_t draw(ds_sampler *sampler, const float *logits, uint32_t vocab, const int32_t *tokens, size_t n_tokens)
{
    int32_t token = -1;
    ck_assert_msg(ds_sampler_draw(sampler, logits, vocab, tokens, n_tokens, scratch, &token) == DSV2_OK, "%s",
                  dsv2_last_error());
    ck_assert(token >= 0 && (uint32_t)token < vocab);
    return token;
}

/* ---- every step against the plain implementation ---- */

static const dsv2_logit_bias biases[] = {{499, 1.5f}, {3, -INFINITY}, {17, 6.0f}, {250, -2.0f}, {0, 0.25f}};
static const int32_t history[] = {17, 4, 4, 250, 4, 99, 17, 30, 31, 32, 33, 34, 17};

#define DEFAULTS .struct_size = sizeof(dsv2_sampling), .temperature = 1, .top_p = 1, .repetition_penalty = 1

static const struct {
    const char *name;
    dsv2_sampling sampling;
} cases[] = {
    {"defaults", {DEFAULTS}},
    {"hot", {DEFAULTS, .temperature = 2.5f}},
    {"cold", {DEFAULTS, .temperature = 0.2f}},
    {"greedy", {DEFAULTS, .temperature = 0}},
    {"top_k 1", {DEFAULTS, .top_k = 1}},
    {"top_k", {DEFAULTS, .top_k = 40}},
    {"top_k over the vocabulary", {DEFAULTS, .top_k = 100000}},
    {"top_p", {DEFAULTS, .top_p = 0.8f}},
    {"top_p tiny", {DEFAULTS, .top_p = 1e-6f}},
    {"top_p nearly all", {DEFAULTS, .top_p = 0.9999f}},
    {"min_p", {DEFAULTS, .min_p = 0.05f}},
    {"min_p 1", {DEFAULTS, .min_p = 1}},
    {"top_k then top_p", {DEFAULTS, .top_k = 12, .top_p = 0.7f}},
    {"all filters", {DEFAULTS, .temperature = 1.3f, .top_k = 60, .top_p = 0.95f, .min_p = 0.1f}},
    {"repetition", {DEFAULTS, .repetition_penalty = 1.7f}},
    {"repetition in a window", {DEFAULTS, .repetition_penalty = 0.4f, .penalty_window = 5}},
    {"presence and frequency", {DEFAULTS, .presence_penalty = 0.5f, .frequency_penalty = -0.75f}},
    {"window longer than the session", {DEFAULTS, .frequency_penalty = 1.0f, .penalty_window = 1000}},
    {"bias", {DEFAULTS, .logit_bias = biases, .n_logit_bias = sizeof biases / sizeof *biases}},
    {"everything",
     {DEFAULTS, .temperature = 0.8f, .top_k = 100, .top_p = 0.9f, .min_p = 0.02f, .repetition_penalty = 1.2f,
      .presence_penalty = 0.3f, .frequency_penalty = 0.2f, .penalty_window = 8, .logit_bias = biases,
      .n_logit_bias = sizeof biases / sizeof *biases}},
    {"greedy with bias and penalties",
     {DEFAULTS, .temperature = 0, .repetition_penalty = 3, .logit_bias = biases,
      .n_logit_bias = sizeof biases / sizeof *biases}},
};

/* Pearson's statistic over tokens that are expected at least 5 times, the rest pooled. *freedom: degrees of freedom. */
static double chi_square(const double *p, const size_t *counts, uint32_t vocab, size_t n, size_t *freedom)
{
    double statistic = 0, rest_expected = 0, rest_count = 0;
    size_t cells = 0;
    for (uint32_t i = 0; i < vocab; i++) {
        double expected = p[i] * (double)n;
        if (expected < 5) {
            rest_expected += expected;
            rest_count += (double)counts[i];
            continue;
        }
        statistic += ((double)counts[i] - expected) * ((double)counts[i] - expected) / expected;
        cells++;
    }
    if (rest_expected >= 5) {
        statistic += (rest_count - rest_expected) * (rest_count - rest_expected) / rest_expected;
        cells++;
    }
    *freedom = cells > 0 ? cells - 1 : 0;
    return statistic;
}

START_TEST(draws_follow_the_distribution_of_a_plain_implementation)
{
    enum { DRAWS = 8000 };
    float logits[VOCAB];
    double p[VOCAB];
    size_t counts[VOCAB] = {0};
    size_t n_history = sizeof history / sizeof *history;
    dsv2_sampling s = cases[_i].sampling;
    s.seed = 1000 + (uint64_t)_i;
    make_logits(logits, VOCAB, 7, 4);
    plain_probabilities(&s, logits, VOCAB, history, n_history, p);
    ds_sampler sampler = make_sampler(&s, VOCAB);
    for (int i = 0; i < DRAWS; i++)
        counts[draw(&sampler, logits, VOCAB, history, n_history)]++;
    for (int i = 0; i < VOCAB; i++) {
        ck_assert_msg(counts[i] == 0 || p[i] > 0, "%s: token %d was drawn, but is filtered out", cases[_i].name, i);
        ck_assert_msg(counts[i] > 0 || p[i] * DRAWS < 30, "%s: token %d has probability %g, but was never drawn",
                      cases[_i].name, i, p[i]);
    }
    size_t freedom;
    double statistic = chi_square(p, counts, VOCAB, DRAWS, &freedom);
    /* Mean plus four standard deviations of the chi-square distribution; a little more for few degrees of freedom. */
    double bound = (double)freedom + 4 * sqrt(2 * (double)freedom) + 8;
    ck_assert_msg(statistic < bound, "%s: chi-square %g with %zu degrees of freedom, expected under %g", cases[_i].name,
                  statistic, freedom, bound);
    ds_sampler_free(&sampler);
}
END_TEST

/* The kept set is exact: over many draws of a flat distribution each kept token comes, and no other. */
START_TEST(filters_keep_exactly_the_tokens_of_a_plain_implementation)
{
    float logits[VOCAB];
    double p[VOCAB];
    static const dsv2_sampling filters[] = {
        {DEFAULTS, .temperature = 20, .top_k = 37},
        {DEFAULTS, .temperature = 20, .top_p = 0.25f},
        {DEFAULTS, .temperature = 20, .min_p = 0.9f},
        {DEFAULTS, .temperature = 20, .top_k = 90, .top_p = 0.5f, .min_p = 0.88f},
    };
    for (uint64_t seed = 0; seed < 4; seed++) {
        dsv2_sampling s = filters[_i];
        s.seed = seed;
        make_logits(logits, VOCAB, seed, 3); /* rounded to 1/64: of ties at the border the smaller id stays */
        plain_probabilities(&s, logits, VOCAB, NULL, 0, p);
        ds_sampler sampler = make_sampler(&s, VOCAB);
        bool drawn[VOCAB] = {false};
        for (int i = 0; i < 8000; i++)
            drawn[draw(&sampler, logits, VOCAB, NULL, 0)] = true;
        for (int i = 0; i < VOCAB; i++)
            ck_assert_msg(drawn[i] == (p[i] > 0), "seed %d: token %d (logit %g) is %s", (int)seed, i, (double)logits[i],
                          drawn[i] ? "kept, but should not be" : "dropped, but should be kept");
        ds_sampler_free(&sampler);
    }
}
END_TEST

START_TEST(greedy_takes_the_smallest_id_of_equals)
{
    float logits[] = {-0.0f, 0.0f, -1.0f, 0.0f, -0.0f};
    dsv2_sampling s = {DEFAULTS, .temperature = 0};
    ds_sampler sampler = make_sampler(&s, 5);
    ck_assert_int_eq(draw(&sampler, logits, 5, NULL, 0), 0);
    logits[0] = NAN;
    ck_assert_int_eq(draw(&sampler, logits, 5, NULL, 0), 1);
    logits[3] = INFINITY;
    logits[4] = INFINITY;
    ck_assert_int_eq(draw(&sampler, logits, 5, NULL, 0), 3);
}
END_TEST

START_TEST(greedy_leaves_the_random_numbers_alone_and_a_draw_takes_one)
{
    float logits[] = {1, 2, 3};
    dsv2_sampling s = {DEFAULTS, .temperature = 0, .seed = 5};
    ds_sampler sampler = make_sampler(&s, 3);
    ds_random before = sampler.random;
    draw(&sampler, logits, 3, NULL, 0);
    ck_assert_mem_eq(&before, &sampler.random, sizeof before);
    sampler.params.temperature = 1;
    draw(&sampler, logits, 3, NULL, 0);
    ds_random_next(&before);
    ck_assert_mem_eq(&before, &sampler.random, sizeof before);
}
END_TEST

START_TEST(nan_and_infinite_logits_are_never_a_danger)
{
    float logits[VOCAB];
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        ds_sampler sampler = make_sampler(&cases[c].sampling, VOCAB);
        for (int i = 0; i < VOCAB; i++)
            logits[i] = i % 3 == 0 ? NAN : i % 3 == 1 ? -INFINITY : (float)i / 100;
        for (int i = 0; i < 100; i++)
            ck_assert_int_eq(draw(&sampler, logits, VOCAB, history, 3) % 3, 2);
        logits[42] = INFINITY; /* nothing finite stands beside it */
        logits[45] = INFINITY;
        for (int i = 0; i < 100; i++) {
            int32_t token = draw(&sampler, logits, VOCAB, history, 3);
            ck_assert(token == 42 || token == 45);
        }
        ds_sampler_free(&sampler);
    }
}
END_TEST

START_TEST(a_draw_from_nothing_fails_and_changes_nothing)
{
    float logits[3] = {1, 2, 3};
    dsv2_logit_bias all[] = {{0, -INFINITY}, {1, -INFINITY}, {2, -INFINITY}};
    dsv2_sampling s = {DEFAULTS, .logit_bias = all, .n_logit_bias = 3};
    ds_sampler sampler = make_sampler(&s, 3);
    ds_random before = sampler.random;
    int32_t token = 77;
    ck_assert_int_eq(ds_sampler_draw(&sampler, logits, 3, NULL, 0, scratch, &token), DSV2_ERROR_STATE);
    ck_assert_int_eq(token, 77);
    ck_assert_ptr_nonnull(strstr(dsv2_last_error(), "3 biases"));
    ck_assert_mem_eq(&before, &sampler.random, sizeof before);
    ds_sampler_free(&sampler);

    float nan_logits[2] = {NAN, NAN};
    ck_assert_int_eq(ds_sampler_draw(&sampler, nan_logits, 2, NULL, 0, scratch, &token), DSV2_ERROR_STATE);
    ck_assert_int_eq(token, 77);
}
END_TEST

START_TEST(the_same_seed_draws_the_same_tokens_and_another_does_not)
{
    float logits[VOCAB];
    make_logits(logits, VOCAB, 1, 2);
    int32_t drawn[3][50];
    for (int run = 0; run < 3; run++) {
        dsv2_sampling s = {DEFAULTS, .top_p = 0.95f, .seed = run == 2 ? 12 : 11};
        ds_sampler sampler = make_sampler(&s, VOCAB);
        for (int i = 0; i < 50; i++)
            drawn[run][i] = draw(&sampler, logits, VOCAB, NULL, 0);
    }
    ck_assert_mem_eq(drawn[0], drawn[1], sizeof drawn[0]);
    ck_assert_mem_ne(drawn[0], drawn[2], sizeof drawn[0]);
}
END_TEST

/* Fixed values change only if drawing itself changes, and then every stored conversation goes on otherwise. */
START_TEST(random_numbers_and_draws_are_those_of_every_other_machine)
{
    ds_random random = {{1, 2, 3, 4}};
    static const uint64_t first[] = {11520, 0, 1509978240, 1215971899390074240}; /* xoshiro256** from 1, 2, 3, 4 */
    for (int i = 0; i < 4; i++)
        ck_assert_uint_eq(ds_random_next(&random), first[i]);
    ds_random_seed(&random, 0);
    ck_assert_uint_eq(random.state[0], 0xe220a8397b1dcdafu); /* of splitmix64 from 0 */
    ck_assert_uint_eq(random.state[1], 0x6e789e6aa1b965f4u);
    for (int i = 0; i < 1000; i++)
        ck_assert_uint_lt(ds_random_below(&random, 7), 7);
    ck_assert_uint_eq(ds_random_below(&random, 1), 0);

    float logits[100];
    for (int i = 0; i < 100; i++)
        logits[i] = (float)(i * 37 % 101) / 16;
    dsv2_sampling s = {DEFAULTS, .temperature = 0.9f, .top_k = 30, .top_p = 0.9f, .min_p = 0.05f, .seed = 2405};
    ds_sampler sampler = make_sampler(&s, 100);
    static const int32_t expected[8] = {98, 49, 27, 79, 38, 49, 84, 90}; /* computed apart, in Python */
    for (int i = 0; i < 8; i++)
        ck_assert_int_eq(draw(&sampler, logits, 100, NULL, 0), expected[i]);
}
END_TEST

START_TEST(a_large_vocabulary_is_drawn_from_like_a_small_one)
{
    float *logits = malloc(LARGE_VOCAB * sizeof *logits);
    double *p = malloc(LARGE_VOCAB * sizeof *p);
    size_t *counts = calloc(LARGE_VOCAB, sizeof *counts);
    make_logits(logits, LARGE_VOCAB, 3, 4);
    static const dsv2_sampling settings[] = {{DEFAULTS}, {DEFAULTS, .top_k = 40}, {DEFAULTS, .top_p = 0.3f}};
    dsv2_sampling s = settings[_i];
    s.seed = 99;
    plain_probabilities(&s, logits, LARGE_VOCAB, NULL, 0, p);
    ds_sampler sampler = make_sampler(&s, LARGE_VOCAB);
    for (int i = 0; i < 300; i++)
        counts[draw(&sampler, logits, LARGE_VOCAB, NULL, 0)]++;
    size_t freedom;
    double sum = 0;
    for (uint32_t i = 0; i < LARGE_VOCAB; i++) {
        ck_assert(counts[i] == 0 || p[i] > 0);
        sum += counts[i] > 0 ? p[i] : 0;
    }
    double statistic = chi_square(p, counts, LARGE_VOCAB, 300, &freedom);
    double bound = (double)freedom + 4 * sqrt(2 * (double)freedom) + 8;
    ck_assert_msg(statistic < bound, "chi-square %g with %zu degrees of freedom, expected under %g", statistic, freedom,
                  bound);
    ck_assert_double_gt(sum, 0);
    free(logits);
    free(p);
    free(counts);
}
END_TEST

/* ---- log probabilities ---- */

START_TEST(log_probabilities_are_those_of_softmax)
{
    float logits[VOCAB];
    make_logits(logits, VOCAB, 5, 30);
    logits[10] = NAN;
    logits[11] = -INFINITY;
    long double sum = 0;
    for (int i = 0; i < VOCAB; i++)
        sum += isnan(logits[i]) ? 0 : expl((long double)logits[i]);
    double log_sum = ds_log_sum_exp(logits, VOCAB);
    ck_assert_double_eq_tol(log_sum, (double)logl(sum), 1e-13);
    ck_assert_float_eq(ds_log_probability(logits[3], log_sum), (float)((double)logits[3] - log_sum));
    ck_assert(ds_log_probability(logits[10], log_sum) == -INFINITY);
    ck_assert(ds_log_probability(logits[11], log_sum) == -INFINITY);

    float none[2] = {NAN, -INFINITY}, infinite[2] = {1, INFINITY};
    ck_assert(ds_log_sum_exp(none, 2) == -INFINITY);
    ck_assert(ds_log_probability(infinite[0], ds_log_sum_exp(infinite, 2)) == -INFINITY);
    ck_assert_float_eq(ds_log_probability(infinite[1], ds_log_sum_exp(infinite, 2)), 0);
}
END_TEST

START_TEST(top_tokens_are_the_head_of_the_sorted_list)
{
    float logits[VOCAB];
    plain_token sorted[VOCAB];
    dsv2_token_probability top[VOCAB];
    make_logits(logits, VOCAB, 5, 3);
    logits[20] = NAN;
    logits[21] = -INFINITY;
    for (int i = 0; i < VOCAB; i++)
        sorted[i] = (plain_token){i, isnan(logits[i]) ? -INFINITY : (double)logits[i], 0};
    qsort(sorted, VOCAB, sizeof *sorted, plain_order);
    double log_sum = ds_log_sum_exp(logits, VOCAB);
    static const size_t sizes[] = {0, 1, 2, 10, 499, VOCAB};
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        memset(top, 0xff, sizeof top);
        ds_top_tokens(logits, VOCAB, sizes[k], scratch, top);
        for (size_t i = 0; i < VOCAB; i++) {
            if (i >= sizes[k]) {
                ck_assert_int_eq(top[i].token, -1);
                continue;
            }
            ck_assert_int_eq(top[i].token, sorted[i].token);
            float expected = ds_log_probability((float)sorted[i].logit, log_sum);
            ck_assert(top[i].log_probability == expected);
        }
    }
}
END_TEST

/* ---- parameters ---- */

static const dsv2_logit_bias twice[] = {{4, 1}, {9, 1}, {4, 2}}, outside[] = {{4, 1}, {500, 1}}, negative[] = {{-1, 0}},
                             not_a_number[] = {{1, NAN}}, infinite[] = {{1, INFINITY}};

static const struct {
    const char *field, *value; /* both stand in the message */
    dsv2_sampling sampling;
} invalid[] = {
    {"temperature", "-1", {DEFAULTS, .temperature = -1}},
    {"temperature", "nan", {DEFAULTS, .temperature = NAN}},
    {"temperature", "inf", {DEFAULTS, .temperature = INFINITY}},
    {"top_p", "0", {DEFAULTS, .top_p = 0}},
    {"top_p", "1.5", {DEFAULTS, .top_p = 1.5f}},
    {"top_p", "nan", {DEFAULTS, .top_p = NAN}},
    {"min_p", "-0.5", {DEFAULTS, .min_p = -0.5f}},
    {"min_p", "2", {DEFAULTS, .min_p = 2}},
    {"repetition_penalty", "0", {DEFAULTS, .repetition_penalty = 0}},
    {"repetition_penalty", "-2", {DEFAULTS, .repetition_penalty = -2}},
    {"presence_penalty", "inf", {DEFAULTS, .presence_penalty = INFINITY}},
    {"frequency_penalty", "nan", {DEFAULTS, .frequency_penalty = NAN}},
    {"logit_bias", "NULL", {DEFAULTS, .n_logit_bias = 1}},
    {"n_logit_bias", "501", {DEFAULTS, .logit_bias = twice, .n_logit_bias = 501}},
    {"logit_bias", "token 4 twice", {DEFAULTS, .logit_bias = twice, .n_logit_bias = 3}},
    {"logit_bias[1].token", "500", {DEFAULTS, .logit_bias = outside, .n_logit_bias = 2}},
    {"logit_bias[0].token", "-1", {DEFAULTS, .logit_bias = negative, .n_logit_bias = 1}},
    {"logit_bias[0].bias", "nan", {DEFAULTS, .logit_bias = not_a_number, .n_logit_bias = 1}},
    {"logit_bias[0].bias", "inf", {DEFAULTS, .logit_bias = infinite, .n_logit_bias = 1}},
    {"struct_size", "8", {.struct_size = 8}},
    {"struct_size", "0", {.struct_size = 0}},
};

START_TEST(invalid_parameters_are_refused_by_name_and_change_nothing)
{
    dsv2_sampling good = {DEFAULTS, .temperature = 0.5f, .logit_bias = biases, .n_logit_bias = 2, .seed = 3};
    ds_sampler sampler = make_sampler(&good, VOCAB);
    ds_sampler before = sampler;
    ck_assert_int_eq(ds_sampler_set(&sampler, &invalid[_i].sampling, VOCAB), DSV2_ERROR_ARGUMENT);
    ck_assert_msg(strstr(dsv2_last_error(), invalid[_i].field) && strstr(dsv2_last_error(), invalid[_i].value),
                  "\"%s\" names not both %s and %s", dsv2_last_error(), invalid[_i].field, invalid[_i].value);
    ck_assert_mem_eq(&before, &sampler, sizeof before);
    ds_sampler_free(&sampler);
}
END_TEST

START_TEST(null_parameters_are_refused)
{
    ds_sampler sampler;
    ds_sampler_init(&sampler);
    ck_assert_int_eq(ds_sampler_set(&sampler, NULL, VOCAB), DSV2_ERROR_ARGUMENT);
    dsv2_sampling_defaults(NULL);
}
END_TEST

START_TEST(a_copy_draws_alike_and_owns_its_biases)
{
    float logits[VOCAB];
    make_logits(logits, VOCAB, 2, 2);
    dsv2_sampling s = {DEFAULTS, .logit_bias = biases, .n_logit_bias = 5, .seed = 8};
    ds_sampler sampler = make_sampler(&s, VOCAB), copy;
    draw(&sampler, logits, VOCAB, NULL, 0);
    ck_assert_int_eq(ds_sampler_copy(&copy, &sampler), DSV2_OK);
    int32_t expected[20];
    for (int i = 0; i < 20; i++)
        expected[i] = draw(&sampler, logits, VOCAB, NULL, 0);
    ds_sampler_free(&sampler);
    for (int i = 0; i < 20; i++)
        ck_assert_int_eq(draw(&copy, logits, VOCAB, NULL, 0), expected[i]);
    ds_sampler_free(&copy);
    ds_sampler_free(&copy);
}
END_TEST

START_TEST(without_memory_nothing_changes)
{
    dsv2_sampling s = {DEFAULTS, .logit_bias = biases, .n_logit_bias = 5, .seed = 8};
    ds_sampler sampler, copy;
    ds_sampler_init(&sampler);
    ds_sampler before = sampler;
    oom_arm(1, false);
    dsv2_status status = ds_sampler_set(&sampler, &s, VOCAB);
    ck_assert(oom_disarm());
    ck_assert_int_eq(status, DSV2_ERROR_MEMORY);
    ck_assert_mem_eq(&before, &sampler, sizeof before);

    sampler = make_sampler(&s, VOCAB);
    oom_arm(1, false);
    status = ds_sampler_copy(&copy, &sampler);
    ck_assert(oom_disarm());
    ck_assert_int_eq(status, DSV2_ERROR_MEMORY);
    ck_assert_ptr_null(copy.params.logit_bias);
    ds_sampler_free(&copy);
    ds_sampler_free(&sampler);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("sampling");
    TCase *draws = tcase_create("draws");
    tcase_set_timeout(draws, 60);
    tcase_add_loop_test(draws, draws_follow_the_distribution_of_a_plain_implementation, 0,
                        sizeof cases / sizeof *cases);
    tcase_add_loop_test(draws, filters_keep_exactly_the_tokens_of_a_plain_implementation, 0, 4);
    tcase_add_test(draws, greedy_takes_the_smallest_id_of_equals);
    tcase_add_test(draws, greedy_leaves_the_random_numbers_alone_and_a_draw_takes_one);
    tcase_add_test(draws, nan_and_infinite_logits_are_never_a_danger);
    tcase_add_test(draws, a_draw_from_nothing_fails_and_changes_nothing);
    tcase_add_test(draws, the_same_seed_draws_the_same_tokens_and_another_does_not);
    tcase_add_test(draws, random_numbers_and_draws_are_those_of_every_other_machine);
    tcase_add_loop_test(draws, a_large_vocabulary_is_drawn_from_like_a_small_one, 0, 3);
    suite_add_tcase(suite, draws);
    TCase *probabilities = tcase_create("probabilities");
    tcase_add_test(probabilities, log_probabilities_are_those_of_softmax);
    tcase_add_test(probabilities, top_tokens_are_the_head_of_the_sorted_list);
    suite_add_tcase(suite, probabilities);
    TCase *parameters = tcase_create("parameters");
    tcase_add_loop_test(parameters, invalid_parameters_are_refused_by_name_and_change_nothing, 0,
                        sizeof invalid / sizeof *invalid);
    tcase_add_test(parameters, null_parameters_are_refused);
    tcase_add_test(parameters, a_copy_draws_alike_and_owns_its_biases);
    if (oom_available())
        tcase_add_test(parameters, without_memory_nothing_changes);
    suite_add_tcase(suite, parameters);

    return test_run(suite);
}

#include "sampling/sampling.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- parameters ---- */

const dsv2_sampling ds_sampling_defaults = {
    .struct_size = sizeof ds_sampling_defaults,
    .repetition_penalty = 1.0f,
    .temperature = 1.0f,
    .top_p = 1.0f,
};

void ds_sampler_init(ds_sampler *sampler)
{
    sampler->params = ds_sampling_defaults;
    ds_random_seed(&sampler->random, sampler->params.seed);
}

void ds_sampler_free(ds_sampler *sampler)
{
    ds_free((void *)sampler->params.logit_bias);
    ds_sampler_init(sampler);
}

static int compare_bias(const void *a, const void *b)
{
    const dsv2_logit_bias *x = a, *y = b;
    return (x->token > y->token) - (x->token < y->token);
}

static dsv2_status check_fields(const dsv2_sampling *s)
{
    const struct {
        const char *name, *expected;
        float value;
        bool valid;
    } fields[] = {
        {"repetition_penalty", "more than 0", s->repetition_penalty,
         s->repetition_penalty > 0 && isfinite(s->repetition_penalty)},
        {"presence_penalty", "a number", s->presence_penalty, isfinite(s->presence_penalty)},
        {"frequency_penalty", "a number", s->frequency_penalty, isfinite(s->frequency_penalty)},
        {"temperature", "0 or more", s->temperature, s->temperature >= 0 && isfinite(s->temperature)},
        {"top_p", "more than 0 and at most 1", s->top_p, s->top_p > 0 && s->top_p <= 1},
        {"min_p", "0 to 1", s->min_p, s->min_p >= 0 && s->min_p <= 1},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (!fields[i].valid)
            return ds_fail(DSV2_ERROR_ARGUMENT, "dsv2_sampling.%s is %g, expected %s", fields[i].name,
                           (double)fields[i].value, fields[i].expected);
    return DSV2_OK;
}

/* Checks the biases and copies them by ascending token, the order in which drawing goes through the vocabulary. */
static dsv2_status copy_biases(const dsv2_sampling *s, uint32_t vocab_size, dsv2_logit_bias **copy)
{
    *copy = NULL;
    if (s->n_logit_bias == 0)
        return DSV2_OK;
    if (s->logit_bias == NULL)
        return ds_fail(DSV2_ERROR_ARGUMENT, "dsv2_sampling.logit_bias is NULL, but n_logit_bias is %zu",
                       s->n_logit_bias);
    if (s->n_logit_bias > vocab_size)
        return ds_fail(DSV2_ERROR_ARGUMENT,
                       "dsv2_sampling.n_logit_bias is %zu, more than the %u tokens of the vocabulary",
                       s->n_logit_bias, vocab_size);
    for (size_t i = 0; i < s->n_logit_bias; i++) {
        const dsv2_logit_bias *b = &s->logit_bias[i];
        if (b->token < 0 || (uint32_t)b->token >= vocab_size)
            return ds_fail(DSV2_ERROR_ARGUMENT, "dsv2_sampling.logit_bias[%zu].token is %d, expected 0 to %u", i,
                           b->token, vocab_size - 1);
        if (isnan(b->bias) || b->bias == INFINITY)
            return ds_fail(DSV2_ERROR_ARGUMENT,
                           "dsv2_sampling.logit_bias[%zu].bias is %g, expected a number or -INFINITY", i,
                           (double)b->bias);
    }
    dsv2_logit_bias *sorted = ds_new(s->n_logit_bias, sizeof *sorted);
    if (sorted == NULL)
        return ds_fail_memory("logit biases", s->n_logit_bias * sizeof *sorted);
    memcpy(sorted, s->logit_bias, s->n_logit_bias * sizeof *sorted);
    qsort(sorted, s->n_logit_bias, sizeof *sorted, compare_bias);
    for (size_t i = 1; i < s->n_logit_bias; i++)
        if (sorted[i].token == sorted[i - 1].token) {
            int32_t twice = sorted[i].token;
            ds_free(sorted);
            return ds_fail(DSV2_ERROR_ARGUMENT, "dsv2_sampling.logit_bias has token %d twice", twice);
        }
    *copy = sorted;
    return DSV2_OK;
}

dsv2_status ds_sampler_set(ds_sampler *sampler, const dsv2_sampling *sampling, uint32_t vocab_size)
{
    if (sampling == NULL)
        return ds_fail(DSV2_ERROR_ARGUMENT, "sampling is NULL");
    dsv2_sampling params = ds_sampling_defaults;
    dsv2_status status = ds_read_options(DS_SIZED(dsv2_sampling, seed), sampling, &params);
    if (status != DSV2_OK)
        return status;
    status = check_fields(&params);
    if (status != DSV2_OK)
        return status;
    dsv2_logit_bias *biases;
    status = copy_biases(&params, vocab_size, &biases);
    if (status != DSV2_OK)
        return status;
    if (params.seed != sampler->params.seed)
        ds_random_seed(&sampler->random, params.seed);
    ds_free((void *)sampler->params.logit_bias);
    sampler->params = params;
    sampler->params.logit_bias = biases;
    return DSV2_OK;
}

dsv2_status ds_sampler_copy(ds_sampler *to, const ds_sampler *from)
{
    ds_sampler_init(to);
    size_t n = from->params.n_logit_bias;
    dsv2_logit_bias *biases = NULL;
    if (n > 0) {
        biases = ds_new(n, sizeof *biases);
        if (biases == NULL)
            return ds_fail_memory("logit biases", n * sizeof *biases);
        memcpy(biases, from->params.logit_bias, n * sizeof *biases);
    }
    *to = *from;
    to->params.logit_bias = biases;
    return DSV2_OK;
}

/* ---- candidates ---- */

/* A candidate's key: the logit's bits as an integer that orders like the number, and the id. -0 becomes 0 first, so
 * that equal logits compare equal. */
static uint64_t make_key(float logit, uint32_t token)
{
    float x = logit + 0.0f;
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits = bits >> 31 ? ~bits : bits | 0x80000000u;
    return (uint64_t)bits << 32 | (UINT32_MAX - token);
}

static float key_logit(uint64_t key)
{
    uint32_t bits = (uint32_t)(key >> 32);
    bits = bits >> 31 ? bits & 0x7fffffffu : ~bits;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static int32_t key_token(uint64_t key) { return (int32_t)(UINT32_MAX - (uint32_t)key); }

static void swap(ds_candidate *a, ds_candidate *b)
{
    ds_candidate t = *a;
    *a = *b;
    *b = t;
}

static uint64_t median_of_three(uint64_t a, uint64_t b, uint64_t c)
{
    uint64_t low = a < b ? a : b, high = a < b ? b : a;
    return c < low ? low : c > high ? high : c;
}

/* A pivot for the candidates in [begin, end). The boundary is mostly among the few likeliest: so as long as nothing was
 * ruled in (begin is 0), the likeliest of some samples cuts a long range to about a 16th at one stroke. Otherwise the
 * median of three halves the range. */
static uint64_t pick_pivot(const ds_candidate *c, size_t begin, size_t end, ds_random *random)
{
    enum { LONG_RANGE = 512, SAMPLES = 16 };
    uint64_t keys[SAMPLES];
    bool long_range = begin == 0 && end > LONG_RANGE;
    int n = long_range ? SAMPLES : 3;
    uint64_t likeliest = 0;
    for (int i = 0; i < n; i++) {
        keys[i] = c[begin + ds_random_below(random, end - begin)].key;
        likeliest = keys[i] > likeliest ? keys[i] : likeliest;
    }
    return long_range ? likeliest : median_of_three(keys[0], keys[1], keys[2]);
}

/* Puts the fewest most likely candidates whose weights reach `target` at the front, the least likely of these last, and
 * returns their number. 1 <= target <= the sum of all weights. This is a quickselect by weight, in linear time on
 * average; pivots are picked pseudo-randomly, so that no order of logits is slow. */
static size_t select_weight(ds_candidate *c, size_t n, uint64_t target)
{
    size_t begin = 0, end = n; /* the last candidate to keep is in [begin, end); `target` counts from begin on */
    ds_random random = {{1, 2, 3, 4}};
    while (end - begin > 1) {
        uint64_t pivot = pick_pivot(c, begin, end, &random);
        /* Candidates likelier than the pivot go to the front, without a branch: the processor could not predict it. */
        size_t middle = begin, pivot_at = begin;
        uint64_t before = 0;
        for (size_t i = begin; i < end; i++) {
            ds_candidate candidate = c[i];
            uint64_t likelier = candidate.key > pivot;
            pivot_at = pivot_at == middle ? i : pivot_at; /* what stands at `middle` moves to i */
            pivot_at = candidate.key == pivot ? middle : pivot_at;
            c[i] = c[middle];
            c[middle] = candidate;
            before += candidate.weight & (0 - likelier);
            middle += likelier;
        }
        swap(&c[pivot_at], &c[middle]);
        if (target <= before) {
            end = middle;
        } else if (target <= before + c[middle].weight) {
            return middle + 1;
        } else {
            target -= before + c[middle].weight;
            begin = middle + 1;
        }
    }
    return begin + 1;
}

/* ---- probabilities ---- */

/* e^x for x <= 0, by additions and multiplications alone: libm's last bits differ between machines. The relative error
 * is below 2^-50 down to e^-700, which stands for everything smaller and for NaN. There is no branch, so that the
 * compiler can compute several at a time. */
static double exp_negative(double x)
{
    x = x > -700 ? x : -700;
    const double log2_e = 1.4426950408889634, ln2_high = 0x1.62e42feep-1, ln2_low = 0x1.a39ef35793c76p-33;
    const double shift = 0x1.8p52; /* adding this rounds to an integer, which the low bits of the sum then are */
    double shifted = x * log2_e + shift, k = shifted - shift;
    double r = (x - k * ln2_high) - k * ln2_low; /* |r| <= ln 2 / 2 */
    double r2 = r * r, r4 = r2 * r2;
    /* Taylor's series to r^12, in pairs, so that additions need not wait for each other. */
    double p0 = (1 + r) + r2 * (1.0 / 2 + r * (1.0 / 6));
    double p1 = (1.0 / 24 + r * (1.0 / 120)) + r2 * (1.0 / 720 + r * (1.0 / 5040));
    double p2 = (1.0 / 40320 + r * (1.0 / 362880)) + r2 * (1.0 / 3628800 + r * (1.0 / 39916800));
    double p = p0 + r4 * (p1 + r4 * (p2 + r4 * (1.0 / 479001600)));
    uint64_t power;
    memcpy(&power, &shifted, sizeof power);
    power = (power + 1023) << 52;
    double scale;
    memcpy(&scale, &power, sizeof scale);
    return p * scale;
}

/* A logit less the largest one; 0 for the largest itself, also where it is infinite. */
static double below_max(float logit, float max)
{
    double difference = (double)logit - (double)max;
    return logit == max ? 0.0 : difference;
}

/* Sets the candidates' weights, softmax(logit / temperature) scaled so that the likeliest has `one`; returns their
 * sum. */
static uint64_t weigh(ds_candidate *c, size_t n, float max, float temperature, uint64_t one)
{
    enum { BATCH = 128 };
    double x[BATCH];
    uint64_t total = 0;
    for (size_t start = 0; start < n; start += BATCH) {
        size_t length = n - start < BATCH ? n - start : BATCH;
        for (size_t i = 0; i < length; i++)
            x[i] = below_max(key_logit(c[start + i].key), max) / (double)temperature;
        for (size_t i = 0; i < length; i++)
            x[i] = exp_negative(x[i]) * (double)one + 0.5;
        for (size_t i = 0; i < length; i++) {
            c[start + i].weight = (uint64_t)x[i];
            total += c[start + i].weight;
        }
    }
    return total;
}

/* The weight of the likeliest candidate: so small that vocab_size times that weight does not overflow. */
static uint64_t weight_one(uint32_t vocab_size)
{
    uint64_t one = (uint64_t)1 << 62;
    while (one > UINT64_MAX / 2 / vocab_size)
        one >>= 1;
    return one;
}

/* The logit, with penalties, of a token that occurs `count` times in the window. */
static float penalise(const dsv2_sampling *p, float x, uint64_t count)
{
    x = x > 0 ? x / p->repetition_penalty : x * p->repetition_penalty;
    return x - p->presence_penalty - p->frequency_penalty * (float)count;
}

/* Makes a candidate of every token whose logit, after bias and penalties, is above -INFINITY. Returns their number;
 * *best is the key of the likeliest. */
static size_t gather(const dsv2_sampling *p, const float *logits, uint32_t vocab_size, const int32_t *tokens,
                     size_t n_tokens, ds_candidate *c, uint64_t *best)
{
    bool penalties = p->repetition_penalty != 1 || p->presence_penalty != 0 || p->frequency_penalty != 0;
    if (penalties) { /* c[token].weight counts the token until c[token] becomes a candidate */
        for (uint32_t token = 0; token < vocab_size; token++)
            c[token].weight = 0;
        size_t window = p->penalty_window > 0 && p->penalty_window < n_tokens ? p->penalty_window : n_tokens;
        for (size_t i = n_tokens - window; i < n_tokens; i++)
            c[tokens[i]].weight++;
    }
    size_t n = 0, next_bias = 0;
    *best = 0;
    for (uint32_t token = 0; token < vocab_size; token++) {
        float x = logits[token];
        if (next_bias < p->n_logit_bias && (uint32_t)p->logit_bias[next_bias].token == token)
            x += p->logit_bias[next_bias++].bias;
        if (penalties && c[token].weight > 0)
            x = penalise(p, x, c[token].weight);
        if (!(x > -INFINITY)) /* NaN too */
            continue;
        c[n].key = make_key(x, token); /* n <= token: counts of later tokens stay */
        *best = c[n].key > *best ? c[n].key : *best;
        n++;
    }
    return n;
}

/* Keeps the candidates that are at least min_p times as likely as the likeliest; returns their number. */
static size_t drop_unlikely(ds_candidate *c, size_t n, float min_p, uint64_t one, uint64_t *total)
{
    size_t kept = 0;
    *total = 0;
    for (size_t i = 0; i < n; i++)
        if ((double)c[i].weight >= (double)min_p * (double)one) {
            *total += c[i].weight;
            c[kept++] = c[i];
        }
    return kept;
}

/* The token in whose weight the number `drawn`, below the sum of weights, falls when all weights are laid end to end
 * by ascending id. By id and not by likelihood, so that logits that differ a little (another kernel set, another cache
 * type) mostly draw the same token. */
static int32_t draw(ds_candidate *c, size_t n, uint64_t drawn)
{
    for (size_t i = 0; i < n; i++)
        c[i].key &= UINT32_MAX; /* without the logit's bits keys order by id */
    return key_token(c[select_weight(c, n, drawn + 1) - 1].key);
}

dsv2_status ds_sampler_draw(ds_sampler *sampler, const float *logits, uint32_t vocab_size, const int32_t *tokens,
                            size_t n_tokens, ds_candidate *scratch, int32_t *token)
{
    const dsv2_sampling *p = &sampler->params;
    ds_candidate *c = scratch;
    uint64_t best;
    size_t n = gather(p, logits, vocab_size, tokens, n_tokens, c, &best);
    if (n == 0)
        return ds_fail(DSV2_ERROR_STATE,
                       "no token can be drawn: all %u logits, with %zu biases, are -infinity or not a number",
                       vocab_size, p->n_logit_bias);
    if (p->temperature == 0) {
        *token = key_token(best);
        return DSV2_OK;
    }
    if (p->top_k > 0 && p->top_k < n) {
        for (size_t i = 0; i < n; i++)
            c[i].weight = 1;
        n = select_weight(c, n, p->top_k);
    }
    uint64_t one = weight_one(vocab_size);
    uint64_t total = weigh(c, n, key_logit(best), p->temperature, one);
    if (p->top_p < 1) {
        uint64_t target = (uint64_t)ceil((double)p->top_p * (double)total);
        n = select_weight(c, n, target < total ? target : total);
    }
    if (p->top_p < 1 || p->min_p > 0)
        n = drop_unlikely(c, n, p->min_p, one, &total);
    *token = draw(c, n, ds_random_below(&sampler->random, total));
    return DSV2_OK;
}

/* ---- log probabilities ---- */

double ds_log_sum_exp(const float *logits, uint32_t vocab_size)
{
    float max = -INFINITY;
    for (uint32_t i = 0; i < vocab_size; i++)
        max = logits[i] > max ? logits[i] : max;
    if (max == -INFINITY)
        return -INFINITY;
    enum { BATCH = 128 };
    double x[BATCH], sum = 0;
    for (uint32_t start = 0; start < vocab_size; start += BATCH) {
        uint32_t length = vocab_size - start < BATCH ? vocab_size - start : BATCH;
        for (uint32_t i = 0; i < length; i++)
            x[i] = exp_negative(below_max(logits[start + i], max));
        for (uint32_t i = 0; i < length; i++)
            sum += x[i];
    }
    return (double)max + log(sum);
}

float ds_log_probability(float logit, double log_sum_exp)
{
    if (!(logit > -INFINITY))
        return -INFINITY;
    /* Beside an infinite logit the finite ones have probability 0. */
    return isinf(log_sum_exp) && isinf(logit) ? 0.0f : (float)((double)logit - log_sum_exp);
}

static int compare_likelier_first(const void *a, const void *b)
{
    uint64_t x = ((const ds_candidate *)a)->key, y = ((const ds_candidate *)b)->key;
    return (x < y) - (x > y);
}

void ds_top_tokens(const float *logits, uint32_t vocab_size, size_t k, ds_candidate *scratch,
                   dsv2_token_probability *top)
{
    if (k == 0)
        return;
    for (uint32_t token = 0; token < vocab_size; token++)
        scratch[token] = (ds_candidate){make_key(isnan(logits[token]) ? -INFINITY : logits[token], token), 1};
    size_t n = select_weight(scratch, vocab_size, k);
    qsort(scratch, n, sizeof *scratch, compare_likelier_first);
    double log_sum = ds_log_sum_exp(logits, vocab_size);
    for (size_t i = 0; i < n; i++) {
        uint64_t key = scratch[i].key;
        top[i] = (dsv2_token_probability){key_token(key), ds_log_probability(key_logit(key), log_sum)};
    }
}

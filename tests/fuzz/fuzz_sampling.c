/* Any sampling options over any logits: refused as the header says, or the token drawn is one that a plain account of
 * the options allows. The account is in doubles: what lies within ROUNDING of a boundary may be on either side. */
#include "../support/must.h"
#include "stream.h"

#include "sampling/sampling.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MAX_VOCAB = 700, MAX_TOKENS = 24, MAX_BIASES = 6 };
static const double ROUNDING = 1e-6;

typedef struct candidate {
    float x;
    int32_t token;
} candidate;

static float choose_float(stream *in)
{
    static const float odd[] = {0, -0.0f, 1, -1, 0.5f, 0.95f, 2, INFINITY, -INFINITY, NAN, 3.4e38f, -3.4e38f, 1e-45f,
                                1e-38f, 1.0000001f, 0.99999994f};
    uint8_t byte = stream_u8(in);
    float x;
    if (byte < 32)
        return odd[byte % 16];
    if (byte < 224)
        return (float)(byte - 128) / 16;
    stream_bytes(in, (uint8_t *)&x, sizeof x);
    return x;
}

/* Few bytes make many logits: the rest repeat what was there, a little lower each time. */
static void choose_logits(stream *in, float *logits, size_t n)
{
    size_t own = stream_u8(in) % n + 1;
    for (size_t i = 0; i < n; i++)
        logits[i] = i < own ? choose_float(in) : logits[i - own] - 0.25f * (float)(i % 3);
}

static bool is_good_bias(const dsv2_sampling *s, uint32_t vocab_size)
{
    for (size_t i = 0; i < s->n_logit_bias; i++) {
        const dsv2_logit_bias *b = &s->logit_bias[i];
        if (b->token < 0 || (uint32_t)b->token >= vocab_size || isnan(b->bias) || b->bias == INFINITY)
            return false;
        for (size_t k = 0; k < i; k++)
            if (s->logit_bias[k].token == b->token)
                return false;
    }
    return true;
}

static bool is_good(const dsv2_sampling *s, uint32_t vocab_size)
{
    return s->repetition_penalty > 0 && isfinite(s->repetition_penalty) && isfinite(s->presence_penalty) &&
           isfinite(s->frequency_penalty) && s->temperature >= 0 && isfinite(s->temperature) && s->top_p > 0 &&
           s->top_p <= 1 && s->min_p >= 0 && s->min_p <= 1 && is_good_bias(s, vocab_size);
}

static size_t count_in_window(const dsv2_sampling *s, const int32_t *tokens, size_t n_tokens, int32_t token)
{
    size_t first = s->penalty_window > 0 && s->penalty_window < n_tokens ? n_tokens - s->penalty_window : 0, count = 0;
    for (size_t i = first; i < n_tokens; i++)
        count += tokens[i] == token;
    return count;
}

static float adjust(const dsv2_sampling *s, float x, int32_t token, size_t count)
{
    for (size_t i = 0; i < s->n_logit_bias; i++)
        if (s->logit_bias[i].token == token)
            x += s->logit_bias[i].bias;
    if (count == 0)
        return x;
    x = x > 0 ? x / s->repetition_penalty : x * s->repetition_penalty;
    return x - s->presence_penalty - s->frequency_penalty * (float)count;
}

static int likelier_first(const void *a, const void *b)
{
    const candidate *x = a, *y = b;
    return x->x > y->x ? -1 : x->x < y->x ? 1 : (x->token > y->token) - (x->token < y->token);
}

/* Logits after bias and penalties, likeliest first; those of -INFINITY and NaN are left out. */
static size_t rank(const dsv2_sampling *s, const float *logits, uint32_t vocab_size, const int32_t *tokens,
                   size_t n_tokens, candidate *c)
{
    size_t n = 0;
    for (uint32_t i = 0; i < vocab_size; i++) {
        int32_t token = (int32_t)i;
        float x = adjust(s, logits[i], token, count_in_window(s, tokens, n_tokens, token));
        if (x > -INFINITY)
            c[n++] = (candidate){x, token};
    }
    qsort(c, n, sizeof *c, likelier_first);
    return n;
}

static bool may_be_drawn(const dsv2_sampling *s, const candidate *c, size_t n, int32_t token)
{
    double total = 0, before = 0, p[MAX_VOCAB];
    if (s->temperature == 0)
        return token == c[0].token;
    n = s->top_k > 0 && s->top_k < n ? s->top_k : n;
    for (size_t i = 0; i < n; i++) {
        p[i] = c[i].x == c[0].x ? 1 : exp(((double)c[i].x - (double)c[0].x) / (double)s->temperature);
        total += p[i];
    }
    for (size_t i = 0; i < n; i++) {
        if (c[i].token == token)
            return (s->top_p == 1 || before < ((double)s->top_p + ROUNDING) * total) &&
                   p[i] >= (double)s->min_p - ROUNDING;
        before += p[i];
    }
    return false;
}

static void check_top(const float *logits, uint32_t vocab_size, size_t k, ds_candidate *scratch, candidate *c)
{
    dsv2_token_probability top[MAX_VOCAB];
    double sum = 0, log_sum = ds_log_sum_exp(logits, vocab_size);
    for (uint32_t i = 0; i < vocab_size; i++)
        c[i] = (candidate){isnan(logits[i]) ? -INFINITY : logits[i], (int32_t)i};
    qsort(c, vocab_size, sizeof *c, likelier_first);
    for (uint32_t i = 0; i < vocab_size; i++)
        sum += c[i].x == c[0].x ? 1 : exp((double)c[i].x - (double)c[0].x);
    ds_top_tokens(logits, vocab_size, k, scratch, top);
    for (size_t i = 0; i < k; i++) {
        double expected = (double)c[i].x - (double)c[0].x - log(sum);
        MUST(top[i].token == c[i].token);
        MUST(top[i].log_probability == ds_log_probability(logits[c[i].token], log_sum));
        MUST(top[i].log_probability <= 0.001f);
        if (isfinite(c[0].x) && isfinite(c[i].x) && expected < -FLT_MAX)
            MUST(top[i].log_probability == -INFINITY); /* the answer is a float */
        else if (isfinite(c[0].x) && isfinite(c[i].x))
            MUST(fabs((double)top[i].log_probability - expected) <= 1e-5 + 1e-6 * fabs((double)c[0].x));
    }
}

/* A structure of another size, and what lies behind the fields that this version knows. */
static bool choose_size(stream *in, dsv2_sampling *s)
{
    uint8_t byte = stream_u8(in);
    s->struct_size = byte < 248 ? sizeof *s : byte % 8;
    return byte < 248;
}

static bool choose_sampling(stream *in, dsv2_sampling *s, dsv2_logit_bias *biases, uint32_t vocab_size)
{
    bool right_size = choose_size(in, s);
    uint8_t which = stream_u8(in);
    float *fields[] = {&s->repetition_penalty, &s->presence_penalty, &s->frequency_penalty,
                       &s->temperature,        &s->top_p,            &s->min_p};
    for (size_t i = 0; i < 6; i++)
        if (which >> i & 1)
            *fields[i] = choose_float(in);
    if (which & 64)
        s->top_k = stream_u8(in);
    if (which & 128)
        s->penalty_window = stream_u8(in) % 8;
    s->seed = stream_u8(in);
    s->n_logit_bias = stream_u8(in) % (MAX_BIASES + 1);
    for (size_t i = 0; i < s->n_logit_bias; i++)
        biases[i] = (dsv2_logit_bias){(int32_t)(stream_u16(in) % (vocab_size + 1)), choose_float(in)};
    s->logit_bias = biases;
    return right_size;
}

static void draw(ds_sampler *sampler, const float *logits, uint32_t vocab_size, const int32_t *tokens, size_t n_tokens)
{
    static ds_candidate scratch[MAX_VOCAB];
    static candidate c[MAX_VOCAB];
    ds_sampler twin;
    ds_random before = sampler->random;
    int32_t token = -1, same = -1;
    MUST(ds_sampler_copy(&twin, sampler) == DSV2_OK);
    dsv2_status status = ds_sampler_draw(sampler, logits, vocab_size, tokens, n_tokens, scratch, &token);
    MUST(ds_sampler_draw(&twin, logits, vocab_size, tokens, n_tokens, scratch, &same) == status && same == token);
    ds_sampler_free(&twin);
    size_t n = rank(&sampler->params, logits, vocab_size, tokens, n_tokens, c);
    MUST(status == (n > 0 ? DSV2_OK : DSV2_ERROR_STATE));
    if (status == DSV2_OK)
        MUST(may_be_drawn(&sampler->params, c, n, token));
    else
        MUST(memcmp(&before, &sampler->random, sizeof before) == 0);
    check_top(logits, vocab_size, n_tokens % vocab_size + 1, scratch, c);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    stream in = {data, size};
    float logits[MAX_VOCAB];
    int32_t tokens[MAX_TOKENS];
    dsv2_logit_bias biases[MAX_BIASES];
    ds_sampler sampler;
    ds_sampler_init(&sampler);
    uint32_t vocab_size = 1 + stream_u16(&in) % MAX_VOCAB;
    size_t n_tokens = stream_u8(&in) % (MAX_TOKENS + 1);
    choose_logits(&in, logits, vocab_size);
    for (size_t i = 0; i < n_tokens; i++)
        tokens[i] = (int32_t)(stream_u16(&in) % vocab_size);
    for (int i = 0; i < 4; i++) {
        dsv2_sampling s = ds_sampling_defaults;
        bool right_size = choose_sampling(&in, &s, biases, vocab_size);
        bool good = right_size && is_good(&s, vocab_size) && s.n_logit_bias <= vocab_size;
        MUST(ds_sampler_set(&sampler, &s, vocab_size) == (good ? DSV2_OK : DSV2_ERROR_ARGUMENT));
        for (int k = 0; k < 3; k++)
            draw(&sampler, logits, vocab_size, tokens, n_tokens);
    }
    ds_sampler_free(&sampler);
    return 0;
}

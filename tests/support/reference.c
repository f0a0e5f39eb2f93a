#include "support/reference.h"

#include "support/tensors.h"

#include <check.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct checkpoint {
    json_t *config;
    test_tensors tensors;
    size_t block_rows, block_cols; /* of FP8 scales */
} checkpoint;

static void *zeroed(size_t n, size_t size)
{
    void *memory = calloc(n > 0 ? n : 1, size);
    ck_assert(memory != NULL);
    return memory;
}

/* ---- the configuration ---- */

static double number(const json_t *object, const char *name, double fallback)
{
    const json_t *value = json_object_get(object, name);
    return json_is_number(value) ? json_number_value(value) : fallback;
}

static size_t count(const checkpoint *c, const char *name) { return (size_t)number(c->config, name, 0); }

static bool flag(const checkpoint *c, const char *name) { return json_is_true(json_object_get(c->config, name)); }

static bool is(const checkpoint *c, const char *name, const char *value)
{
    const char *text = json_string_value(json_object_get(c->config, name));
    return text != NULL && strcmp(text, value) == 0;
}

static void load(checkpoint *c, const char *folder)
{
    c->config = json_load_file(test_format("%s/config.json", folder), 0, NULL);
    ck_assert_msg(c->config != NULL, "%s: no config.json", folder);
    json_t *index = json_load_file(test_format("%s/model.safetensors.index.json", folder), 0, NULL);
    if (index == NULL) {
        test_tensors_read(&c->tensors, test_format("%s/model.safetensors", folder));
    } else {
        json_t *seen = json_object(), *file;
        const char *name;
        json_object_foreach(json_object_get(index, "weight_map"), name, file) {
            if (json_object_get(seen, json_string_value(file)) == NULL)
                test_tensors_read(&c->tensors, test_format("%s/%s", folder, json_string_value(file)));
            json_object_set_new(seen, json_string_value(file), json_true());
        }
        json_decref(seen);
        json_decref(index);
    }
    const json_t *block = json_object_get(json_object_get(c->config, "quantization_config"), "weight_block_size");
    c->block_rows = (size_t)json_integer_value(json_array_get(block, 0));
    c->block_cols = (size_t)json_integer_value(json_array_get(block, 1));
}

/* ---- weights as doubles ---- */

static double from_float_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* A float of a sign, `exponent_bits` and `fraction_bits`: FP16 has 5 and 10, E4M3 4 and 3. Infinities are not
 * decoded. */
static double from_small_float(unsigned bits, int exponent_bits, int fraction_bits)
{
    int bias = (1 << (exponent_bits - 1)) - 1;
    int exponent = (int)(bits >> fraction_bits & ((1u << exponent_bits) - 1));
    double fraction = (double)(bits & ((1u << fraction_bits) - 1)) / (1 << fraction_bits);
    double value = exponent == 0 ? ldexp(fraction, 1 - bias) : ldexp(1 + fraction, exponent - bias);
    return bits >> (exponent_bits + fraction_bits) & 1 ? -value : value;
}

static double element_f32(const uint8_t *data, size_t i)
{
    uint32_t word;
    memcpy(&word, data + 4 * i, sizeof word);
    return from_float_bits(word);
}

static double element_bf16(const uint8_t *data, size_t i)
{
    return from_float_bits((uint32_t)(data[2 * i] | data[2 * i + 1] << 8) << 16);
}
static double element_f16(const uint8_t *data, size_t i)
{
    return from_small_float((unsigned)(data[2 * i] | data[2 * i + 1] << 8), 5, 10);
}
static double element_f8(const uint8_t *data, size_t i) { return from_small_float(data[i], 4, 3); }

typedef double (*element_fn)(const uint8_t *data, size_t i);

static element_fn element_of(const test_tensor *tensor)
{
    if (strcmp(tensor->dtype, "F32") == 0)
        return element_f32;
    if (strcmp(tensor->dtype, "F16") == 0)
        return element_f16;
    if (strcmp(tensor->dtype, "F8_E4M3") == 0)
        return element_f8;
    ck_assert_str_eq(tensor->dtype, "BF16");
    return element_bf16;
}

/* A tensor of rows x cols (cols 1: a vector); to be freed. */
static double *weights(const checkpoint *c, const char *name, size_t rows, size_t cols)
{
    const test_tensor *tensor = test_tensors_find(&c->tensors, name), *scales = NULL;
    ck_assert_msg(tensor != NULL, "no tensor %s", name);
    ck_assert_uint_eq(tensor->dims[0], rows);
    if (tensor->n_dims == 2)
        ck_assert_uint_eq(tensor->dims[1], cols);
    if (strcmp(tensor->dtype, "F8_E4M3") == 0)
        scales = test_tensors_need(&c->tensors, test_format("%s_scale_inv", name), "F32");
    double *values = zeroed(rows * cols, sizeof *values);
    element_fn element = element_of(tensor);
    for (size_t i = 0; i < rows * cols; i++) {
        values[i] = element(tensor->data, i);
        if (scales != NULL)
            values[i] *=
                element_f32(scales->data, i / cols / c->block_rows * scales->dims[1] + i % cols / c->block_cols);
    }
    return values;
}

/* y[t] = W x[t] + b for n tokens. W is the tensor `prefix`.weight; b is `prefix`.bias, if `biased` and the tensor is
 * there. */
static void linear(const checkpoint *c, const char *prefix, bool biased, const double *x, size_t n, size_t inputs,
                   double *y, size_t outputs)
{
    double *w = weights(c, test_format("%s.weight", prefix), outputs, inputs);
    double *b = biased ? weights(c, test_format("%s.bias", prefix), outputs, 1) : NULL;
    for (size_t t = 0; t < n; t++) {
        for (size_t o = 0; o < outputs; o++) {
            double sum = b != NULL ? b[o] : 0;
            for (size_t i = 0; i < inputs; i++)
                sum += w[o * inputs + i] * x[t * inputs + i];
            y[t * outputs + o] = sum;
        }
    }
    free(b);
    free(w);
}

/* Norms n rows of `size` elements, `stride` apart. y may be x. */
static void rms_norm(const checkpoint *c, const char *name, const double *x, size_t n, size_t size, size_t stride,
                     double *y)
{
    double *w = weights(c, name, size, 1);
    for (size_t t = 0; t < n; t++) {
        double squares = 0;
        for (size_t i = 0; i < size; i++)
            squares += x[t * stride + i] * x[t * stride + i];
        double scale = 1 / sqrt(squares / (double)size + number(c->config, "rms_norm_eps", 1e-6));
        for (size_t i = 0; i < size; i++)
            y[t * stride + i] = x[t * stride + i] * scale * w[i];
    }
    free(w);
}

/* ---- rotary embedding, YaRN ---- */

static const json_t *yarn(const checkpoint *c)
{
    const json_t *scaling = json_object_get(c->config, "rope_scaling");
    return json_is_object(scaling) ? scaling : NULL;
}

static double attention_sharpening(double factor, double mscale)
{
    return factor > 1 ? 0.1 * mscale * log(factor) + 1 : 1;
}

/* Radians per token of pair i. YaRN, section 3.2: wavelengths that turn more than beta_fast times in the original
 * context stay; those that turn less than beta_slow times are stretched by the factor. */
static double frequency(const checkpoint *c, size_t pair, size_t dim)
{
    double base = number(c->config, "rope_theta", 10000), plain = pow(base, -2.0 * (double)pair / (double)dim);
    const json_t *scaling = yarn(c);
    if (scaling == NULL)
        return plain;
    double context = number(scaling, "original_max_position_embeddings", 4096), two_pi = 6.283185307179586;
    double fast = (double)dim * log(context / (number(scaling, "beta_fast", 32) * two_pi)) / (2 * log(base));
    double slow = (double)dim * log(context / (number(scaling, "beta_slow", 1) * two_pi)) / (2 * log(base));
    fast = fmax(floor(fast), 0);
    slow = fmin(ceil(slow), (double)dim - 1);
    double ramp = ((double)pair - fast) / (slow == fast ? 0.001 : slow - fast);
    double stretched = fmin(fmax(ramp, 0), 1);
    return plain * (1 - stretched) + plain / number(scaling, "factor", 1) * stretched;
}

static void rotate(const checkpoint *c, double *x, size_t dim, size_t position)
{
    const json_t *scaling = yarn(c);
    double size = 1;
    if (scaling != NULL)
        size = attention_sharpening(number(scaling, "factor", 1), number(scaling, "mscale", 1)) /
               attention_sharpening(number(scaling, "factor", 1), number(scaling, "mscale_all_dim", 0));
    for (size_t i = 0; i < dim / 2; i++) {
        double angle = (double)position * frequency(c, i, dim), a = x[2 * i], b = x[2 * i + 1];
        x[2 * i] = size * (a * cos(angle) - b * sin(angle));
        x[2 * i + 1] = size * (a * sin(angle) + b * cos(angle));
    }
}

/* ---- attention ---- */

/* Attention of one head for the tokens at[n_at] over the keys and values up to each. q: [n_at][nope + rope];
 * k: [n][nope + rope]; v: [n][v_dim]; out: [n_at][v_dim], rows out_stride apart. */
static void attend(const double *q, const size_t *at, size_t n_at, const double *k, const double *v, size_t width,
                   size_t v_dim, double scale, double *out, size_t out_stride)
{
    double *p = zeroed(at[n_at - 1] + 1, sizeof *p);
    for (size_t t = 0; t < n_at; t++) {
        double max = -INFINITY, sum = 0;
        for (size_t j = 0; j <= at[t]; j++) {
            p[j] = 0;
            for (size_t i = 0; i < width; i++)
                p[j] += scale * q[t * width + i] * k[j * width + i];
            max = fmax(max, p[j]);
        }
        for (size_t j = 0; j <= at[t]; j++)
            sum += p[j] = exp(p[j] - max);
        memset(out + t * out_stride, 0, v_dim * sizeof *out);
        for (size_t j = 0; j <= at[t]; j++)
            for (size_t i = 0; i < v_dim; i++)
                out[t * out_stride + i] += p[j] / sum * v[j * v_dim + i];
    }
    free(p);
}

/* Rows at[n_at] of x, one after the other. */
static void gather(const double *x, size_t size, const size_t *at, size_t n_at, double *out)
{
    for (size_t t = 0; t < n_at; t++)
        memcpy(out + t * size, x + at[t] * size, size * sizeof *out);
}

/* Appendix C, Eqs. 37-47, without absorbing anything. x: of all n tokens; out: [n_at][hidden], of the tokens at[n_at],
 * ascending. */
static void attention(const checkpoint *c, const char *prefix, const double *x, size_t n, const size_t *at,
                      size_t n_at, double *out)
{
    size_t hidden = count(c, "hidden_size"), n_heads = count(c, "num_attention_heads"),
           q_lora = count(c, "q_lora_rank");
    size_t lora = count(c, "kv_lora_rank"), nope = count(c, "qk_nope_head_dim"), rope = count(c, "qk_rope_head_dim");
    size_t v_dim = count(c, "v_head_dim"), width = nope + rope;
    bool biased = flag(c, "attention_bias");
    double *q = zeroed(n_at * n_heads * width, sizeof *q), *kv_a = zeroed(n * (lora + rope), sizeof *kv_a);
    double *x_at = zeroed(n_at * hidden, sizeof *x_at);
    gather(x, hidden, at, n_at, x_at);
    if (q_lora == 0) {
        linear(c, test_format("%s.q_proj", prefix), false, x_at, n_at, hidden, q, n_heads * width);
    } else {
        double *compressed = zeroed(n_at * q_lora, sizeof *compressed);
        linear(c, test_format("%s.q_a_proj", prefix), biased, x_at, n_at, hidden, compressed, q_lora);
        rms_norm(c, test_format("%s.q_a_layernorm.weight", prefix), compressed, n_at, q_lora, q_lora, compressed);
        linear(c, test_format("%s.q_b_proj", prefix), false, compressed, n_at, q_lora, q, n_heads * width);
        free(compressed);
    }
    linear(c, test_format("%s.kv_a_proj_with_mqa", prefix), biased, x, n, hidden, kv_a, lora + rope);
    rms_norm(c, test_format("%s.kv_a_layernorm.weight", prefix), kv_a, n, lora, lora + rope, kv_a);
    double *latent = zeroed(n * lora, sizeof *latent), *kv = zeroed(n * n_heads * (nope + v_dim), sizeof *kv);
    for (size_t t = 0; t < n; t++) {
        memcpy(latent + t * lora, kv_a + t * (lora + rope), lora * sizeof *latent);
        rotate(c, kv_a + t * (lora + rope) + lora, rope, t);
    }
    for (size_t t = 0; t < n_at; t++)
        for (size_t h = 0; h < n_heads; h++)
            rotate(c, q + (t * n_heads + h) * width + nope, rope, at[t]);
    linear(c, test_format("%s.kv_b_proj", prefix), false, latent, n, lora, kv, n_heads * (nope + v_dim));

    double scale = 1 / sqrt((double)width);
    if (yarn(c) != NULL && number(yarn(c), "mscale_all_dim", 0) != 0)
        scale *= pow(attention_sharpening(number(yarn(c), "factor", 1), number(yarn(c), "mscale_all_dim", 0)), 2);
    double *head_q = zeroed(n_at * width, sizeof *head_q), *head_k = zeroed(n * width, sizeof *head_k);
    double *head_v = zeroed(n * v_dim, sizeof *head_v), *heads = zeroed(n_at * n_heads * v_dim, sizeof *heads);
    for (size_t h = 0; h < n_heads; h++) {
        for (size_t t = 0; t < n_at; t++)
            memcpy(head_q + t * width, q + (t * n_heads + h) * width, width * sizeof *q);
        for (size_t t = 0; t < n; t++) {
            const double *up = kv + (t * n_heads + h) * (nope + v_dim);
            memcpy(head_k + t * width, up, nope * sizeof *up);
            memcpy(head_k + t * width + nope, kv_a + t * (lora + rope) + lora, rope * sizeof *up);
            memcpy(head_v + t * v_dim, up + nope, v_dim * sizeof *up);
        }
        attend(head_q, at, n_at, head_k, head_v, width, v_dim, scale, heads + h * v_dim, n_heads * v_dim);
    }
    linear(c, test_format("%s.o_proj", prefix), biased, heads, n_at, n_heads * v_dim, out, hidden);
    free(heads), free(head_v), free(head_k), free(head_q), free(kv), free(latent), free(kv_a), free(x_at), free(q);
}

/* ---- feed-forward ---- */

/* out[t] += gate[t] * SwiGLU(x[t]) for tokens with a gate other than 0. */
static void swiglu(const checkpoint *c, const char *prefix, const double *x, size_t n_tokens, size_t intermediate,
                   const double *gate, double *out)
{
    size_t hidden = count(c, "hidden_size"), n = 0, *of = zeroed(n_tokens, sizeof *of);
    double *in = zeroed(n_tokens * hidden, sizeof *in);
    for (size_t t = 0; t < n_tokens; t++)
        if (gate[t] != 0) {
            memcpy(in + n * hidden, x + t * hidden, hidden * sizeof *in);
            of[n++] = t;
        }
    double *a = zeroed(n * intermediate, sizeof *a), *b = zeroed(n * intermediate, sizeof *b),
           *y = zeroed(n * hidden, sizeof *y);
    linear(c, test_format("%s.gate_proj", prefix), false, in, n, hidden, a, intermediate);
    linear(c, test_format("%s.up_proj", prefix), false, in, n, hidden, b, intermediate);
    for (size_t i = 0; i < n * intermediate; i++)
        a[i] = a[i] / (1 + exp(-a[i])) * b[i];
    linear(c, test_format("%s.down_proj", prefix), false, a, n, intermediate, y, hidden);
    for (size_t i = 0; i < n * hidden; i++)
        out[of[i / hidden] * hidden + i % hidden] += gate[of[i / hidden]] * y[i];
    free(y), free(b), free(a), free(in), free(of);
}

/* The rank of value i of n: how many values are larger, or as large and before it. */
static size_t rank_of(const double *values, const bool *allowed, size_t n, size_t i)
{
    size_t rank = 0;
    for (size_t j = 0; j < n; j++)
        if ((allowed == NULL || allowed[j]) && (values[j] > values[i] || (values[j] == values[i] && j < i)))
            rank++;
    return rank;
}

/* Chooses one token's experts from its affinities (section 2.2), and sets their gates. noaux_tc: with DeepSeek-V3's
 * bias and group scores. */
static void choose(const checkpoint *c, const reference *r, const double *affinities, const double *bias,
                   uint32_t *experts, double *gates, uint64_t *groups)
{
    size_t n = r->n_experts, per_group = n / r->n_group;
    bool v3 = bias != NULL, *allowed = zeroed(n, sizeof *allowed);
    double *score = zeroed(n, sizeof *score), *group_score = zeroed(r->n_group, sizeof *group_score), sum = 0;
    for (size_t i = 0; i < n; i++)
        score[i] = affinities[i] + (v3 ? bias[i] : 0);
    for (size_t g = 0; g < r->n_group; g++)
        for (size_t i = g * per_group; i < (g + 1) * per_group; i++) {
            size_t rank = rank_of(score + g * per_group, NULL, per_group, i - g * per_group);
            if (rank == 0 || (v3 && rank == 1))
                group_score[g] += score[i];
        }
    *groups = 0;
    for (size_t g = 0; g < r->n_group; g++)
        if (rank_of(group_score, NULL, r->n_group, g) < r->topk_group)
            *groups |= (uint64_t)1 << g;
    for (size_t i = 0; i < n; i++)
        allowed[i] = *groups >> i / per_group & 1;
    size_t k = 0;
    for (size_t i = 0; i < n; i++) {
        if (!allowed[i] || rank_of(score, allowed, n, i) >= r->top_k)
            continue;
        experts[k] = (uint32_t)i;
        gates[k++] = affinities[i];
        sum += affinities[i];
    }
    ck_assert_uint_eq(k, r->top_k);
    bool normalise = flag(c, "norm_topk_prob") && r->top_k > 1;
    /* DeepSeek-V2's code normalises or scales; V3's normalises, then scales. */
    double factor = number(c->config, "routed_scaling_factor", 1);
    for (k = 0; k < r->top_k; k++)
        gates[k] = (normalise ? gates[k] / sum : gates[k]) * (normalise && !v3 ? 1 : factor);
    free(group_score), free(score), free(allowed);
}

static void mixture(const checkpoint *c, const char *prefix, const double *x, const reference *r,
                    reference_routes *routes, double *out)
{
    size_t n = r->n_tokens, n_experts = r->n_experts, hidden = count(c, "hidden_size"),
           intermediate = count(c, "moe_intermediate_size");
    routes->is_moe = true;
    routes->affinities = zeroed(n * n_experts, sizeof *routes->affinities);
    routes->experts = zeroed(n * r->top_k, sizeof *routes->experts);
    routes->gates = zeroed(n * r->top_k, sizeof *routes->gates);
    routes->groups = zeroed(n, sizeof *routes->groups);
    linear(c, test_format("%s.gate", prefix), false, x, n, hidden, routes->affinities, n_experts);
    double *bias = is(c, "topk_method", "noaux_tc")
                       ? weights(c, test_format("%s.gate.e_score_correction_bias", prefix), n_experts, 1)
                       : NULL;
    for (size_t t = 0; t < n; t++) {
        double *s = routes->affinities + t * n_experts, sum = 0;
        for (size_t i = 0; i < n_experts; i++)
            sum += exp(s[i]);
        for (size_t i = 0; i < n_experts; i++)
            s[i] = is(c, "scoring_func", "sigmoid") ? 1 / (1 + exp(-s[i])) : exp(s[i]) / sum;
        choose(c, r, s, bias, routes->experts + t * r->top_k, routes->gates + t * r->top_k, &routes->groups[t]);
    }
    free(bias);
    double *gate = zeroed(n, sizeof *gate);
    for (size_t e = 0; e < n_experts; e++) {
        for (size_t t = 0; t < n; t++) {
            gate[t] = 0;
            for (size_t k = 0; k < r->top_k; k++)
                if (routes->experts[t * r->top_k + k] == e)
                    gate[t] = routes->gates[t * r->top_k + k];
        }
        swiglu(c, test_format("%s.experts.%zu", prefix, e), x, n, intermediate, gate, out);
    }
    for (size_t t = 0; t < n; t++)
        gate[t] = 1;
    if (count(c, "n_shared_experts") > 0)
        swiglu(c, test_format("%s.shared_experts", prefix), x, n, intermediate * count(c, "n_shared_experts"), gate,
               out);
    free(gate);
}

static void feed_forward(const checkpoint *c, size_t layer, const double *x, reference *r, double *out)
{
    const char *prefix = test_format("model.layers.%zu.mlp", layer);
    size_t freq = (size_t)number(c->config, "moe_layer_freq", 1);
    if (r->n_experts > 0 && layer >= count(c, "first_k_dense_replace") && layer % freq == 0) {
        char own[64]; /* test_format's memory would not outlive the experts' names */
        strcpy(own, prefix);
        mixture(c, own, x, r, &r->layers[layer], out);
        return;
    }
    double *one = zeroed(r->n_tokens, sizeof *one);
    for (size_t t = 0; t < r->n_tokens; t++)
        one[t] = 1;
    swiglu(c, prefix, x, r->n_tokens, count(c, "intermediate_size"), one, out);
    free(one);
}

/* ---- all of it ---- */

static void forward(const checkpoint *c, const int32_t *tokens, size_t n, const size_t *at, reference *r)
{
    size_t n_at = r->n_tokens, *all = zeroed(n, sizeof *all), hidden = count(c, "hidden_size");
    double *h = zeroed(n * hidden, sizeof *h), *x = zeroed(n * hidden, sizeof *x),
           *out = zeroed(n * hidden, sizeof *out);
    double *embedding = weights(c, "model.embed_tokens.weight", r->vocab_size, hidden);
    for (size_t t = 0; t < n; t++)
        memcpy(h + t * hidden, embedding + (size_t)tokens[t] * hidden, hidden * sizeof *h), all[t] = t;
    r->n_tokens = n;
    for (size_t l = 0; l < r->n_layers; l++) {
        char attention_prefix[64];
        strcpy(attention_prefix, test_format("model.layers.%zu.self_attn", l));
        rms_norm(c, test_format("model.layers.%zu.input_layernorm.weight", l), h, n, hidden, hidden, x);
        if (l + 1 == r->n_layers) { /* its other tokens are nobody's keys */
            attention(c, attention_prefix, x, n, at, n_at, out);
            gather(h, hidden, at, n_at, h);
            r->n_tokens = n = n_at;
        } else {
            attention(c, attention_prefix, x, n, all, n, out);
        }
        for (size_t i = 0; i < n * hidden; i++)
            h[i] += out[i];
        rms_norm(c, test_format("model.layers.%zu.post_attention_layernorm.weight", l), h, n, hidden, hidden, x);
        memset(out, 0, n * hidden * sizeof *out);
        feed_forward(c, l, x, r, out);
        for (size_t i = 0; i < n * hidden; i++)
            h[i] += out[i];
    }
    rms_norm(c, "model.norm.weight", h, n, hidden, hidden, x);
    linear(c, flag(c, "tie_word_embeddings") ? "model.embed_tokens" : "lm_head", false, x, n, hidden, r->logits,
           r->vocab_size);
    free(embedding), free(out), free(x), free(h), free(all);
}

reference *reference_run(const char *folder, const int32_t *tokens, size_t n)
{
    size_t *all = zeroed(n, sizeof *all);
    for (size_t t = 0; t < n; t++)
        all[t] = t;
    reference *r = reference_run_at(folder, tokens, n, all, n);
    free(all);
    return r;
}

reference *reference_run_at(const char *folder, const int32_t *tokens, size_t n, const size_t *at, size_t n_at)
{
    checkpoint c = {0};
    load(&c, folder);
    reference *r = zeroed(1, sizeof *r);
    r->n_tokens = n_at;
    r->vocab_size = count(&c, "vocab_size");
    r->n_layers = count(&c, "num_hidden_layers");
    r->n_experts = count(&c, "n_routed_experts");
    r->top_k = count(&c, "num_experts_per_tok");
    bool limited = !is(&c, "topk_method", "greedy");
    r->n_group = limited ? (size_t)number(c.config, "n_group", 1) : 1;
    r->topk_group = limited ? (size_t)number(c.config, "topk_group", 1) : 1;
    r->logits = zeroed(n_at * r->vocab_size, sizeof *r->logits);
    r->layers = zeroed(r->n_layers, sizeof *r->layers);
    forward(&c, tokens, n, at, r);
    json_decref(c.config);
    test_tensors_free(&c.tensors);
    return r;
}

void reference_free(reference *r)
{
    for (size_t l = 0; l < r->n_layers; l++)
        free(r->layers[l].affinities), free(r->layers[l].experts), free(r->layers[l].gates), free(r->layers[l].groups);
    free(r->layers);
    free(r->logits);
    free(r);
}

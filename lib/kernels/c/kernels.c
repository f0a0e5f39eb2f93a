/* The reference: plain C, one thing after another. What the other sets are tested against, and what runs elsewhere. */
#include "kernels/c/reference.h"
#include "kernels/latent_template.h"
#include "kernels/pairs_template.h"

#include <math.h>
#include <string.h>

enum {
    LANES = 16,  /* partial sums of a dot product: term c goes to sum c % LANES */
    CHUNK = 256, /* weights unpacked together, a multiple of LANES */
    ROWS = 8,    /* rows of activations that use a chunk once it is unpacked */
};

/* ---- conversions ---- */

void ds_f32_to_f32_c(float *out, const void *in, size_t n) { memcpy(out, in, n * sizeof *out); }

void ds_f16_to_f32_c(float *out, const void *in, size_t n)
{
    const uint8_t *bytes = in;
    for (size_t c = 0; c < n; c++)
        out[c] = ds_f16_to_f32(ds_read_u16(bytes + 2 * c));
}

void ds_bf16_to_f32_c(float *out, const void *in, size_t n)
{
    const uint8_t *bytes = in;
    for (size_t c = 0; c < n; c++)
        out[c] = ds_bf16_to_f32(ds_read_u16(bytes + 2 * c));
}

void ds_f32_to_f16_c(uint16_t *out, const float *in, size_t n)
{
    for (size_t c = 0; c < n; c++)
        out[c] = ds_f32_to_f16(in[c]);
}

/* ---- matrix products ---- */

static void add_products(float sums[LANES], const float *a, const float *b, size_t n)
{
    size_t c = 0;
    for (; c + LANES <= n; c += LANES)
        for (size_t lane = 0; lane < LANES; lane++)
            sums[lane] += a[c + lane] * b[c + lane];
    for (size_t lane = 0; c + lane < n; lane++)
        sums[lane] += a[c + lane] * b[c + lane];
}

/* Halves the number of sums until one is left. */
static float total(const float sums[LANES])
{
    float s[LANES];
    memcpy(s, sums, sizeof s);
    for (size_t half = LANES / 2; half > 0; half /= 2)
        for (size_t lane = 0; lane < half; lane++)
            s[lane] += s[lane + half];
    return s[0];
}

static void matmul(float *out, size_t out_stride, const float *const *x, size_t m, const uint8_t *w, size_t w_stride,
                   size_t n, size_t k, size_t element_bytes, ds_to_f32_fn *to_f32)
{
    for (size_t j = 0; j < n; j++) {
        for (size_t i0 = 0; i0 < m; i0 += ROWS) {
            size_t rows = m - i0 < ROWS ? m - i0 : ROWS;
            float sums[ROWS][LANES] = {{0}};
            for (size_t c = 0; c < k; c += CHUNK) {
                size_t length = k - c < CHUNK ? k - c : CHUNK;
                float weights[CHUNK];
                to_f32(weights, w + j * w_stride + c * element_bytes, length);
                for (size_t i = 0; i < rows; i++)
                    add_products(sums[i], x[i0 + i] + c, weights, length);
            }
            for (size_t i = 0; i < rows; i++)
                out[(i0 + i) * out_stride + j] = total(sums[i]);
        }
    }
}

#define PLAIN(TYPE, name, public, gguf, pack, bytes, text)                                                             \
    void ds_matmul_##name##_c(float *out, size_t out_stride, const float *const *x, size_t m, const void *w, \
                              size_t w_stride, \
                              size_t n, size_t k)                                                                      \
    {                                                                                                                  \
        matmul(out, out_stride, x, m, w, w_stride, n, k, bytes, ds_##name##_to_f32_c);                                 \
    }
#include "kernels/types.def"

/* ---- attention ---- */

void ds_weighted_sum_c(float *out, size_t out_stride, const float *keep, const float *p, size_t p_stride, size_t m,
                       const float *v, size_t v_stride, size_t n, size_t k)
{
    for (size_t i = 0; i < m; i++) {
        float *sums = out + i * out_stride;
        for (size_t j = 0; j < k; j++)
            sums[j] *= keep[i];
        for (size_t t = 0; t < n; t++)
            for (size_t j = 0; j < k; j++)
                sums[j] += p[i * p_stride + t] * v[t * v_stride + j];
    }
}

float ds_exp_sum_c(float *x, float max, size_t n)
{
    float sum = 0;
    for (size_t t = 0; t < n; t++) {
        x[t] = expf(x[t] - max);
        sum += x[t];
    }
    return sum;
}

float ds_max_c(const float *x, size_t n)
{
    float max = x[0];
    for (size_t c = 1; c < n; c++)
        max = x[c] > max ? x[c] : max;
    return max;
}

/* ---- rows ---- */

void ds_rms_norm_c(float *out, const float *x, const float *weight, float epsilon, size_t n)
{
    float sums[LANES] = {0};
    add_products(sums, x, x, n);
    float scale = 1.0f / sqrtf(total(sums) / (float)n + epsilon);
    for (size_t c = 0; c < n; c++)
        out[c] = x[c] * scale * weight[c];
}

void ds_swiglu_c(float *gate, const float *up, size_t n)
{
    for (size_t c = 0; c < n; c++)
        gate[c] = gate[c] / (1.0f + expf(-gate[c])) * up[c];
}

void ds_add_scaled_c(float *out, const float *x, float scale, size_t n)
{
    for (size_t c = 0; c < n; c++)
        out[c] += scale * x[c];
}

/* ---- what the templates have in plain C ---- */

float ds_round_row_c(int16_t *out, const float *x, size_t n, float limit) { return pairs_round_row(out, x, n, limit); }

void ds_round_products_c(int16_t *out, const float *a, const float *b, float factor, size_t n)
{
    pairs_round_products(out, a, b, factor, n);
}

void ds_rotate_c(float *x, size_t block, size_t n) { latent_rotate(x, block, n); }

void ds_unpack_q8_c(float *out, const uint8_t *scales, const int8_t *codes, size_t section, size_t n)
{
    latent_unpack_q8(out, scales, codes, section, n);
}

void ds_split_pairs_c(int16_t *out, const uint8_t *pairs, size_t n) { latent_split_pairs(out, pairs, n); }

void ds_unpack_pairs_c(float *out, const uint8_t *scales, const uint8_t *pairs, size_t section, size_t n)
{
    latent_unpack_pairs(out, scales, pairs, section, n);
}

extern const ds_kernels ds_kernels_c;
const ds_kernels ds_kernels_c = {
#include "kernels/c/table_template.h"
    .name = "c",
};

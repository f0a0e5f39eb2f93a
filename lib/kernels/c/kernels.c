/* The reference: plain C, one thing after another. What the other sets are tested against, and what runs elsewhere. */
#include "kernels/c/pairs.h"
#include "kernels/latent.h"
#include "kernels/packed.h"
#include "kernels/pairs.h"
#include "kernels/tables.h"

#include <math.h>
#include <string.h>

enum {
    LANES = 16,  /* partial sums of a dot product: term c goes to sum c % LANES */
    CHUNK = 256, /* weights unpacked together, a multiple of LANES */
    ROWS = 8,    /* rows of activations that use a chunk once it is unpacked */
};

/* ---- conversions ---- */

static void f32_to_f32(float *out, const void *in, size_t n) { memcpy(out, in, n * sizeof *out); }

static void f16_to_f32(float *out, const void *in, size_t n)
{
    const uint8_t *bytes = in;
    for (size_t c = 0; c < n; c++)
        out[c] = ds_f16_to_f32(ds_read_u16(bytes + 2 * c));
}

static void bf16_to_f32(float *out, const void *in, size_t n)
{
    const uint8_t *bytes = in;
    for (size_t c = 0; c < n; c++)
        out[c] = ds_bf16_to_f32(ds_read_u16(bytes + 2 * c));
}

static void f32_to_f16(uint16_t *out, const float *in, size_t n)
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

static void matmul(float *out, size_t out_stride, const float *const *x, size_t m, const uint8_t *w, size_t w_stride, size_t n,
                   size_t k, size_t element_bytes, void (*to_f32)(float *, const void *, size_t))
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

static void matmul_f32(float *out, size_t out_stride, const float *const *x, size_t m, const void *w, size_t w_stride, size_t n,
                       size_t k)
{
    matmul(out, out_stride, x, m, w, w_stride, n, k, 4, f32_to_f32);
}

static void matmul_f16(float *out, size_t out_stride, const float *const *x, size_t m, const void *w, size_t w_stride, size_t n,
                       size_t k)
{
    matmul(out, out_stride, x, m, w, w_stride, n, k, 2, f16_to_f32);
}

static void matmul_bf16(float *out, size_t out_stride, const float *const *x, size_t m, const void *w, size_t w_stride, size_t n,
                        size_t k)
{
    matmul(out, out_stride, x, m, w, w_stride, n, k, 2, bf16_to_f32);
}

/* ---- attention ---- */

static void weighted_sum(float *out, size_t out_stride, const float *keep, const float *p, size_t p_stride, size_t m,
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

static float exp_sum(float *x, float max, size_t n)
{
    float sum = 0;
    for (size_t t = 0; t < n; t++) {
        x[t] = expf(x[t] - max);
        sum += x[t];
    }
    return sum;
}

static float maximum(const float *x, size_t n)
{
    float max = x[0];
    for (size_t c = 1; c < n; c++)
        max = x[c] > max ? x[c] : max;
    return max;
}

/* ---- rows ---- */

static void rms_norm(float *out, const float *x, const float *weight, float epsilon, size_t n)
{
    float sums[LANES] = {0};
    add_products(sums, x, x, n);
    float scale = 1.0f / sqrtf(total(sums) / (float)n + epsilon);
    for (size_t c = 0; c < n; c++)
        out[c] = x[c] * scale * weight[c];
}

static void swiglu(float *gate, const float *up, size_t n)
{
    for (size_t c = 0; c < n; c++)
        gate[c] = gate[c] / (1.0f + expf(-gate[c])) * up[c];
}

static void add_scaled(float *out, const float *x, float scale, size_t n)
{
    for (size_t c = 0; c < n; c++)
        out[c] += scale * x[c];
}

const ds_kernels ds_kernels_c = {
    .name = "c",
    .matmul = {[DS_TYPE_F32] = matmul_f32, [DS_TYPE_F16] = matmul_f16, [DS_TYPE_BF16] = matmul_bf16},
    .matmul_packed = {[DS_TYPE_P4] = ds_matmul_p4_c, [DS_TYPE_P5] = ds_matmul_p5_c, [DS_TYPE_P6] = ds_matmul_p6_c,
                      [DS_TYPE_P8] = ds_matmul_p8_c, [DS_TYPE_P4S] = ds_matmul_p4s_c,
                      [DS_TYPE_P5S] = ds_matmul_p5s_c, [DS_TYPE_P4M] = ds_matmul_p4m_c,
                      [DS_TYPE_P5M] = ds_matmul_p5m_c},
    .prepare_row = ds_prepare_row_c,
    .to_f32 = {[DS_TYPE_F32] = f32_to_f32, [DS_TYPE_F16] = f16_to_f32, [DS_TYPE_BF16] = bf16_to_f32, DS_DEQUANTIZERS},
    .f32_to_f16 = f32_to_f16,
    .weighted_sum = weighted_sum,
    .rms_norm = rms_norm,
    .exp_sum = exp_sum,
    .swiglu = swiglu,
    .add_scaled = add_scaled,
    .max = maximum,
    .round_halves = ds_round_halves_c,
    .pair_columns = ds_pair_columns_c,
    .pair_rows = ds_pair_rows_c,
    .pair_codes = ds_pair_codes_c,
    .pair_scores = ds_pair_scores_c,
    .pair_sums = ds_pair_sums_c,
    PAIRS_KERNELS,
    LATENT_KERNELS,
};

/* Interleaved weights: the reference. */
#include "kernels/interleaved.h"

#include "kernels/c/reference.h"

#include <math.h>
#include <string.h>

/* ---- reading a superblock ---- */

static float load_float(const uint8_t *bytes)
{
    float value;
    memcpy(&value, bytes, sizeof value);
    return value;
}

/* One of the 256 numbers of 6 bits. */
static unsigned six_bits(const uint8_t *bytes, size_t i)
{
    if (i < 3 * VECTOR)
        return bytes[i] & 63u;
    i -= 3 * VECTOR;
    return (unsigned)(bytes[i] >> 6 | bytes[VECTOR + i] >> 6 << 2 | bytes[2 * VECTOR + i] >> 6 << 4);
}

static float load_half(const uint8_t *bytes) { return ds_f16_to_f32(ds_read_u16(bytes)); }

/* Scale and minimum of the weights of one row in 16 columns, the `half`th of block `block`: a weight is scale * q -
 * minimum, times the row's factor. */
static void affine(ds_type type, const uint8_t *superblock, size_t block, size_t half, size_t row, float *scale,
                   float *minimum)
{
    if (ds_has_six_bits(type)) {
        const uint8_t *numbers = superblock + HEADER_SIX_BITS;
        size_t at = block * DS_PANEL_ROWS + row;
        *scale = load_half(superblock + HEADER_SCALES + 2 * row) * (float)six_bits(numbers, at);
        *minimum = load_half(superblock + HEADER_MINIMA + 2 * row) *
                   (float)six_bits(numbers, SUPERBLOCK_BLOCKS * DS_PANEL_ROWS + at);
        return;
    }
    if (type == DS_TYPE_P6)
        *scale = load_half(superblock + HEADER_SCALES + 2 * row) *
                 (float)(int8_t)superblock[HEADER_SIXTEENTHS + (2 * block + half) * DS_PANEL_ROWS + row];
    else
        *scale = load_half(superblock + HEADER_HALVES + 2 * (block * DS_PANEL_ROWS + row));
    if (ds_has_block_minima(type))
        *minimum = load_half(superblock + HEADER_BLOCK_MINIMA + 2 * (block * DS_PANEL_ROWS + row));
    else
        *minimum = *scale * (float)ds_integer_zero(type);
}

static const uint8_t *block_of(ds_type type, const uint8_t *superblock, size_t block)
{
    return superblock + ds_header_bytes(type) + block * ds_block_bytes(type);
}

/* q of column c (of 32) of a row. */
static unsigned element(ds_type type, const uint8_t *block, size_t row, size_t c)
{
    size_t word = c / 4, lane = 4 * row + c % 4;
    if (type == DS_TYPE_P8)
        return block[word * VECTOR + lane];
    unsigned q = word < 4 ? block[word * VECTOR + lane] & 15u : block[(word - 4) * VECTOR + lane] >> 4;
    const uint8_t *more = block + 4 * VECTOR;
    if (ds_integer_bits(type) == 5)
        q |= (more[lane] >> word & 1u) << 4;
    if (type == DS_TYPE_P6)
        q |= (more[word / 4 * VECTOR + lane] >> 2 * (word % 4) & 3u) << 4;
    return q;
}

void ds_panel_row(ds_type type, const void *panel, size_t row, float *out, size_t cols)
{
    int zero = ds_integer_zero(type);
    float factor = load_float((const uint8_t *)panel + 4 * row);
    for (size_t c = 0; c < cols; c += DS_BLOCK_COLS / 2) {
        const uint8_t *superblock = ds_superblock(type, panel, c / SUPERBLOCK_COLS);
        size_t block = c % SUPERBLOCK_COLS / DS_BLOCK_COLS, first = c % DS_BLOCK_COLS;
        float scale, minimum;
        affine(type, superblock, block, first / 16, row, &scale, &minimum);
        for (size_t i = 0; i < 16 && c + i < cols; i++) {
            int q = (int)element(type, block_of(type, superblock, block), row, first + i) - zero;
            out[c + i] = factor * (zero != 0 ? scale * (float)q : scale * (float)q - minimum);
        }
    }
}

/* ---- products ---- */

void ds_prepare_row_c(ds_x8 *out, const float *x, size_t k)
{
    for (size_t c = 0; c < k; c += DS_BLOCK_COLS, out++) {
        size_t n = k - c < DS_BLOCK_COLS ? k - c : DS_BLOCK_COLS;
        uint32_t largest = 0; /* bit patterns without signs are in the order of the magnitudes, NaN last */
        for (size_t i = 0; i < n; i++) {
            uint32_t bits;
            memcpy(&bits, x + c + i, sizeof bits);
            bits &= 0x7fffffff;
            largest = bits > largest ? bits : largest;
        }
        float magnitude;
        memcpy(&magnitude, &largest, sizeof magnitude);
        memset(out, 0, sizeof *out);
        if (largest >= 0x7f800000) {
            out->scale = out->sum = out->halves[0] = out->halves[1] = NAN;
            continue;
        }
        if (magnitude < DS_X8_LEAST)
            continue;
        float inverse = 127.0f / magnitude;
        int sums[2] = {0, 0};
        for (size_t i = 0; i < n; i++) {
            out->q[i] = (int8_t)nearbyintf(x[c + i] * inverse);
            sums[i / 16] += out->q[i];
        }
        out->scale = magnitude / 127.0f;
        out->sum = out->scale * (float)(sums[0] + sums[1]);
        out->halves[0] = out->scale * (float)sums[0];
        out->halves[1] = out->scale * (float)sums[1];
    }
}

/* A block of a panel, unpacked: 16 rows of 32 weights, and what they are to be multiplied by. */
typedef struct unpacked {
    uint8_t q[DS_PANEL_ROWS][DS_BLOCK_COLS];
    float scales[2][DS_PANEL_ROWS], minima[2][DS_PANEL_ROWS]; /* of the two halves */
} unpacked;

static void unpack(ds_type type, const uint8_t *superblock, size_t block, unpacked *u)
{
    for (size_t row = 0; row < DS_PANEL_ROWS; row++) {
        for (size_t c = 0; c < DS_BLOCK_COLS; c++)
            u->q[row][c] = (uint8_t)element(type, block_of(type, superblock, block), row, c);
        for (size_t half = 0; half < 2; half++)
            affine(type, superblock, block, half, row, &u->scales[half][row], &u->minima[half][row]);
    }
}

static void add_block(ds_type type, float *sums, const ds_x8 *x, const unpacked *u)
{
    for (size_t row = 0; row < DS_PANEL_ROWS; row++) {
        int dots[2] = {0, 0};
        for (size_t c = 0; c < DS_BLOCK_COLS; c++)
            dots[c / 16] += u->q[row][c] * x->q[c];
        if (type == DS_TYPE_P6) {
            for (size_t half = 0; half < 2; half++) {
                sums[row] += x->scale * (float)dots[half] * u->scales[half][row];
                sums[row] -= x->halves[half] * u->minima[half][row];
            }
        } else {
            sums[row] += x->scale * (float)(dots[0] + dots[1]) * u->scales[0][row];
            sums[row] -= x->sum * u->minima[0][row];
        }
    }
}

enum { ROWS = 8 }; /* rows of activations that use a block once it is unpacked */

static void matmul(ds_type type, float *out, size_t out_stride, const ds_x8 *const *x, size_t m, const uint8_t *w,
                   size_t n, size_t k)
{
    size_t blocks = (k + DS_BLOCK_COLS - 1) / DS_BLOCK_COLS;
    for (size_t j = 0; j < n; j += DS_PANEL_ROWS, w += ds_panel_bytes(type, k))
        for (size_t i0 = 0; i0 < m; i0 += ROWS) {
            size_t rows = m - i0 < ROWS ? m - i0 : ROWS, valid = n - j < DS_PANEL_ROWS ? n - j : DS_PANEL_ROWS;
            float sums[ROWS][DS_PANEL_ROWS] = {{0}};
            for (size_t b = 0; b < blocks; b++) {
                unpacked u;
                unpack(type, ds_superblock(type, w, b / SUPERBLOCK_BLOCKS), b % SUPERBLOCK_BLOCKS, &u);
                for (size_t i = 0; i < rows; i++)
                    add_block(type, sums[i], x[i0 + i] + b, &u);
            }
            for (size_t i = 0; i < rows; i++)
                for (size_t row = 0; row < valid; row++)
                    out[(i0 + i) * out_stride + j + row] = sums[i][row] * load_float(w + 4 * row);
        }
}

#define INTERLEAVED(TYPE, name, ...)                                                                                   \
    void ds_matmul_##name##_c(float *out, size_t out_stride, const ds_x8 *const *x, size_t m, const void *w, size_t n, \
                              size_t k) \
    {                                                                                                                  \
        matmul(DS_TYPE_##TYPE, out, out_stride, x, m, w, n, k);                                                        \
    }
#include "kernels/types.def"

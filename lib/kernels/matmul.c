#include "kernels/interleaved.h"
#include "kernels/kernels.h"

#include <assert.h>
#include <string.h>

/* Rows of W that are unpacked together: enough for the F32 kernel's widest block, few enough to stay in cache. */
enum { UNPACK_ROWS = 16 };

/* Rows of activations that are prepared together for an interleaved matrix. */
enum { PREPARE_ROWS = 16 };

/* n elements of E4M3 as floats without their scales. Shifted to half precision's place, an E4M3 number (subnormals
 * too) reads 2^-8 of its value, since the exponents' biases are 7 and 15; only its two NaNs have no such twin. */
static void unpack_e4m3(const ds_kernels *kernels, float *out, const uint8_t *in, size_t n)
{
    enum { CHUNK = 256 };
    uint16_t halves[CHUNK];
    for (size_t c = 0; c < n; c += CHUNK) {
        size_t length = n - c < CHUNK ? n - c : CHUNK;
        for (size_t i = 0; i < length; i++) {
            uint32_t bits = in[c + i];
            halves[i] = (bits & 0x7f) == 0x7f ? 0x7e00 : (uint16_t)((bits & 0x80) << 8 | (bits & 0x7f) << 7);
        }
        kernels->to_f32[DS_TYPE_F16](out + c, halves, length);
        for (size_t i = 0; i < length; i++)
            out[c + i] *= 256.0f;
    }
}

void ds_matrix_row(const ds_kernels *kernels, const ds_matrix *w, uint32_t row, float *out)
{
    assert(row < w->rows);
    const uint8_t *data = (const uint8_t *)w->data + (size_t)row * w->row_bytes;
    if (ds_type_is_interleaved(w->type)) {
        const uint8_t *panel = (const uint8_t *)w->data + (size_t)(row / DS_PANEL_ROWS) * DS_PANEL_ROWS * w->row_bytes;
        ds_panel_row(w->type, panel, row % DS_PANEL_ROWS, out, w->cols);
        return;
    }
    if (w->type != DS_TYPE_F8_E4M3) {
        kernels->to_f32[w->type](out, data, w->cols);
        return;
    }
    unpack_e4m3(kernels, out, data, w->cols);
    const float *scales = w->scales + (size_t)(row / w->scale_rows) * w->scale_stride;
    for (uint32_t c0 = 0, block = 0; c0 < w->cols; block++) {
        uint32_t c1 = w->cols - c0 > w->scale_cols ? c0 + w->scale_cols : w->cols;
        for (uint32_t c = c0; c < c1; c++)
            out[c] *= scales[block];
        c0 = c1;
    }
}

size_t ds_prepared_blocks(uint32_t cols) { return ((size_t)cols + DS_BLOCK_COLS - 1) / DS_BLOCK_COLS; }

/* Rows n0 to n1 - 1, all of one panel. */
static void matmul_part_of_panel(const ds_kernels *kernels, float *out, size_t out_stride, const ds_x8 *const *x,
                                 size_t m, const ds_matrix *w, uint32_t n0, uint32_t n1)
{
    uint32_t first = n0 / DS_PANEL_ROWS * DS_PANEL_ROWS;
    assert(n0 < n1 && n1 - first <= DS_PANEL_ROWS);
    const uint8_t *panel = (const uint8_t *)w->data + (size_t)first * w->row_bytes;
    for (size_t i = 0; i < m; i++) {
        float whole[DS_PANEL_ROWS];
        kernels->matmul_interleaved[w->type](whole, DS_PANEL_ROWS, x + i, 1, panel, DS_PANEL_ROWS, w->cols);
        memcpy(out + i * out_stride, whole + (n0 - first), (n1 - n0) * sizeof *out);
    }
}

void ds_matmul_prepared(const ds_kernels *kernels, float *out, size_t out_stride, const ds_x8 *const *x, size_t m,
                        const ds_matrix *w, uint32_t n0, uint32_t n1)
{
    assert(m >= 1 && n0 < n1 && n1 <= w->rows && out_stride >= n1 - n0);
    assert(ds_type_is_interleaved(w->type) && w->row_bytes == ds_type_row_bytes(w->type, w->cols));
    uint32_t start = n0 % DS_PANEL_ROWS;
    if (start != 0) {
        uint32_t end = n1 - n0 < DS_PANEL_ROWS - start ? n1 : n0 + DS_PANEL_ROWS - start;
        matmul_part_of_panel(kernels, out, out_stride, x, m, w, n0, end);
        out += end - n0;
        n0 = end;
    }
    if (n0 == n1)
        return;
    const uint8_t *panels = (const uint8_t *)w->data + (size_t)n0 * w->row_bytes;
    kernels->matmul_interleaved[w->type](out, out_stride, x, m, panels, n1 - n0, w->cols);
}

static void prepare_and_matmul(const ds_kernels *kernels, float *out, size_t out_stride, const float *const *x,
                               size_t m, const ds_matrix *w, uint32_t n0, uint32_t n1, ds_x8 *scratch)
{
    size_t blocks = ds_prepared_blocks(w->cols);
    for (size_t i0 = 0; i0 < m; i0 += PREPARE_ROWS) {
        size_t rows = m - i0 < PREPARE_ROWS ? m - i0 : PREPARE_ROWS;
        const ds_x8 *prepared[PREPARE_ROWS];
        for (size_t i = 0; i < rows; i++) {
            kernels->prepare_row(scratch + i * blocks, x[i0 + i], w->cols);
            prepared[i] = scratch + i * blocks;
        }
        ds_matmul_prepared(kernels, out + i0 * out_stride, out_stride, prepared, rows, w, n0, n1);
    }
}

size_t ds_matmul_scratch(const ds_matrix *w)
{
    if (ds_type_is_interleaved(w->type))
        return PREPARE_ROWS * ds_prepared_blocks(w->cols) * (sizeof(ds_x8) / sizeof(float));
    return ds_type_is_plain(w->type) ? 0 : (size_t)UNPACK_ROWS * w->cols;
}

void ds_matmul(const ds_kernels *kernels, float *out, size_t out_stride, const float *const *x, size_t m,
               const ds_matrix *w, uint32_t n0, uint32_t n1, float *scratch)
{
    assert(m >= 1 && n0 < n1 && n1 <= w->rows && out_stride >= n1 - n0);
    assert(scratch != NULL || ds_matmul_scratch(w) == 0);
    if (ds_type_is_interleaved(w->type)) {
        prepare_and_matmul(kernels, out, out_stride, x, m, w, n0, n1, (ds_x8 *)(void *)scratch);
        return;
    }
    if (kernels->matmul[w->type] != NULL) {
        const uint8_t *rows = (const uint8_t *)w->data + (size_t)n0 * w->row_bytes;
        kernels->matmul[w->type](out, out_stride, x, m, rows, w->row_bytes, n1 - n0, w->cols);
        return;
    }
    size_t row_bytes = (size_t)w->cols * sizeof *scratch;
    for (uint32_t j = n0; j < n1; j += UNPACK_ROWS) {
        uint32_t n = n1 - j < UNPACK_ROWS ? n1 - j : UNPACK_ROWS;
        for (uint32_t r = 0; r < n; r++)
            ds_matrix_row(kernels, w, j + r, scratch + (size_t)r * w->cols);
        kernels->matmul[DS_TYPE_F32](out + (j - n0), out_stride, x, m, scratch, row_bytes, n, w->cols);
    }
}

/* Attention in 16 bits: the reference. */
#include "kernels/c/reference.h"

#include <math.h>
#include <string.h>

float ds_round_halves_c(int16_t *out, const void *halves, size_t n, float limit)
{
    const uint8_t *bytes = halves;
    float largest = 0;
    for (size_t c = 0; c < n; c++) {
        float magnitude = fabsf(ds_f16_to_f32(ds_read_u16(bytes + 2 * c)));
        if (!(magnitude < INFINITY))
            largest = NAN;
        else if (magnitude > largest) /* never of a NaN */
            largest = magnitude;
    }
    if (!(largest > 0)) {
        memset(out, 0, n * sizeof *out);
        return largest;
    }
    float inverse = limit / largest;
    for (size_t c = 0; c < n; c++)
        out[c] = (int16_t)rintf(ds_f16_to_f32(ds_read_u16(bytes + 2 * c)) * inverse);
    return largest / limit;
}

/* Element `column` of row `row` in pairs. */
static size_t pair_at(size_t row, size_t column) { return (column / 2 * DS_PANEL_ROWS + row) * 2 + column % 2; }

void ds_pair_columns_c(int16_t *out, const int16_t *rows, size_t stride, size_t n_rows, size_t n_cols)
{
    for (size_t r = 0; r < DS_PANEL_ROWS; r++)
        for (size_t c = 0; c < n_cols; c++)
            out[pair_at(r, c)] = r < n_rows ? rows[r * stride + c] : 0;
}

void ds_pair_rows_c(int16_t *out, size_t panel_stride, const int16_t *rows, size_t stride, size_t n_rows, size_t n_cols)
{
    size_t padded_rows = (n_rows + 1) / 2 * 2;
    size_t padded_cols = (n_cols + DS_PANEL_ROWS - 1) / DS_PANEL_ROWS * DS_PANEL_ROWS;
    for (size_t c = 0; c < padded_cols; c++) {
        int16_t *panel = out + c / DS_PANEL_ROWS * panel_stride;
        for (size_t r = 0; r < padded_rows; r++)
            panel[pair_at(c % DS_PANEL_ROWS, r)] = r < n_rows && c < n_cols ? rows[r * stride + c] : 0;
    }
}

void ds_pair_codes_c(int16_t *keys, int16_t *values, size_t panel_stride, const int8_t *rows, size_t stride,
                     size_t n_rows, size_t n_cols)
{
    size_t key_cols = (n_cols + DS_SCALE_COLS - 1) / DS_SCALE_COLS * DS_SCALE_COLS;
    size_t value_cols = (n_cols + DS_PANEL_ROWS - 1) / DS_PANEL_ROWS * DS_PANEL_ROWS;
    for (size_t r = 0; r < DS_PANEL_ROWS; r++)
        for (size_t c = 0; c < key_cols; c++) {
            int16_t code = r < n_rows && c < n_cols ? rows[r * stride + c] : 0;
            keys[pair_at(r, c)] = code;
            if (r < (n_rows + 1) / 2 * 2 && c < value_cols)
                values[c / DS_PANEL_ROWS * panel_stride + pair_at(c % DS_PANEL_ROWS, r)] = code;
        }
}

static int32_t dot(const int16_t *a, size_t a_row, const int16_t *b, size_t b_row, size_t n_cols)
{
    int32_t sum = 0;
    for (size_t c = 0; c < n_cols; c++)
        sum += a[pair_at(a_row, c)] * b[pair_at(b_row, c)];
    return sum;
}

void ds_pair_scores_c(float *out, size_t out_stride, const int16_t *a, const float *a_scales, size_t m,
                      const int16_t *b, size_t n, const float *scales, size_t scales_stride, size_t n_sections)
{
    enum { SECTION = DS_PANEL_ROWS * DS_SCALE_COLS };
    for (size_t i = 0; i < m; i++)
        for (size_t t = 0; t < n; t++) {
            const int16_t *panel = b + t / DS_PANEL_ROWS * n_sections * SECTION;
            float sum = 0;
            for (size_t g = 0; g < n_sections; g++)
                sum += (float)dot(a + g * SECTION, i, panel + g * SECTION, t % DS_PANEL_ROWS, DS_SCALE_COLS) *
                       scales[g * scales_stride + t];
            out[i * out_stride + t] = sum * a_scales[i];
        }
}

void ds_pair_sums_c(float *out, size_t out_stride, const float *keep, const float *factor, const int16_t *a, size_t m,
                    const int16_t *b, size_t n_pairs, size_t n)
{
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) {
            const int16_t *panel = b + j / DS_PANEL_ROWS * DS_PANEL_ROWS * 2 * n_pairs;
            float *sum = &out[i * out_stride + j];
            *sum = *sum * keep[i] + (float)dot(a, i, panel, j % DS_PANEL_ROWS, 2 * n_pairs) * factor[i];
        }
}

/* kernels: the arithmetic. A kernel set is one constant table of function pointers, which begins as the reference's
 * in c/ and has other functions where an instruction set has something better. No other room asks what the processor
 * can do.
 *
 * Promise kept by every kernel: a row's result depends on that row alone. How many rows there are, where a row
 * stands among them and how the output rows are split over tasks change no bit of it. So each output is summed in
 * one fixed order. Each kernel keeps the promise by itself, so a set may take any of its kernels from the reference. */
#ifndef DS_LIB_KERNELS_H
#define DS_LIB_KERNELS_H

#include "kernels/sizes.h"
#include "kernels/types.h"

/* A weight matrix W of a linear map y = W x. */
typedef struct ds_matrix {
    uint32_t rows, cols; /* outputs, inputs */
    ds_type type;
    const void *data; /* row-major, each row row_bytes after the one before; not owned. Interleaved: panels of rows,
                         each DS_PANEL_ROWS * row_bytes after the one before; row_bytes is then
                         ds_type_row_bytes(type, cols) */
    size_t row_bytes;
    /* F8_E4M3 only: element (r, c) is multiplied by scales[r / scale_rows * scale_stride + c / scale_cols]. */
    const float *scales;
    uint32_t scale_rows, scale_cols, scale_stride;
} ds_matrix;

/* A block of activations: 32 columns of a row, as the kernels of interleaved weights take them: x[c] ~ scale * q[c]. */
typedef struct ds_x8 {
    int8_t q[DS_BLOCK_COLS]; /* -127 to 127 */
    float scale;
    float sum;       /* scale * the sum of q */
    float halves[2]; /* the same of each 16 */
} ds_x8;

/* Two elements of 45 levels, -22 to 22, share 11 bits: 45^2 = 2025 of 2048 codes. */
enum { DS_PAIR_LEVELS = 45 };

/* Attention in 16 bits. A panel is DS_PANEL_ROWS rows, interleaved by pairs of columns: [columns /
 * 2][DS_PANEL_ROWS][2]. A section of keys or queries is DS_SCALE_COLS columns with a scale of their own. Queries and
 * softmax weights have up to 15 bits with their sign, keys and values up to 12: a section's sum of their products
 * fits into 32 bits. */
enum { DS_SCALE_COLS = 64, DS_MAX_15_BITS = 16383, DS_MAX_12_BITS = 2047 };

/* ---- the kernels, by their types ---- */

/* out[i * out_stride + j] = sum_c x[i][c] * w[j][c], for i < m and j < n, c < k. x: m pointers to rows of k floats
 * (so that rows can be gathered); w: n rows of k elements, w_stride bytes apart. Any m, n, k >= 1; no alignment
 * asked for. */
typedef void ds_matmul_fn(float *out, size_t out_stride, const float *const *x, size_t m, const void *w,
                          size_t w_stride, size_t n, size_t k);

/* The same for an interleaved type. x: m pointers to prepared rows of ceil(k / 32) blocks; w: ceil(n / 16) panels of
 * rows. */
typedef void ds_matmul_interleaved_fn(float *out, size_t out_stride, const ds_x8 *const *x, size_t m, const void *w,
                                      size_t n, size_t k);

/* Rounds a row of k floats to 8 bits: ceil(k / 32) blocks, filled up with zeros. The same bits in every set, for
 * finite x. A block with an infinity or NaN gets a NaN scale. */
typedef void ds_prepare_row_fn(ds_x8 *out, const float *x, size_t k);

/* n consecutive elements, whole blocks, to float: exact for the plain types; for block types the format's own
 * product of scale and integer, rounded as plain C rounds it. */
typedef void ds_to_f32_fn(float *out, const void *in, size_t n);

/* n floats to F16, nearest, ties to even. */
typedef void ds_f32_to_f16_fn(uint16_t *out, const float *in, size_t n);

/* out[i * out_stride + j] = out[i * out_stride + j] * keep[i] + sum_t p[i * p_stride + t] * v[t * v_stride + j], i <
 * m, t < n, j < k: the softmax-weighted sum of attention, with the rescaling of its online form. Terms are added in
 * order of t. */
typedef void ds_weighted_sum_fn(float *out, size_t out_stride, const float *keep, const float *p, size_t p_stride,
                                size_t m, const float *v, size_t v_stride, size_t n, size_t k);

/* out = x / sqrt(mean(x^2) + epsilon) * weight, n elements; out may be x. */
typedef void ds_rms_norm_fn(float *out, const float *x, const float *weight, float epsilon, size_t n);

/* x[t] = exp(x[t] - max) for t < n, with max >= all x[t]; returns the sum, added in a fixed order. -INFINITY gives
 * 0. */
typedef float ds_exp_sum_fn(float *x, float max, size_t n);

/* gate[j] = silu(gate[j]) * up[j], silu(z) = z / (1 + exp(-z)); n elements. */
typedef void ds_swiglu_fn(float *gate, const float *up, size_t n);

/* out[j] += scale * x[j], n elements. */
typedef void ds_add_scaled_fn(float *out, const float *x, float scale, size_t n);

/* The largest of n >= 1 floats; NaN is not looked for. */
typedef float ds_max_fn(const float *x, size_t n);

/* Attention in 16 bits. All of these but pair_scores and pair_sums give the same bits in every set. */

/* out[c] = the nearest integer to x[c] / scale, with the returned scale such that the largest magnitude becomes `limit`
 * (below 2^15). Next to nothing gives zeros and scale 0; an infinity or NaN zeros and scale NaN. */
typedef float ds_round_row_fn(int16_t *out, const float *x, size_t n, float limit);

/* The same of n numbers in half precision, at any address. */
typedef float ds_round_halves_fn(int16_t *out, const void *halves, size_t n, float limit);

/* out[c] = the nearest integer to a[c] * b[c] * factor, which is below 2^15. */
typedef void ds_round_products_fn(int16_t *out, const float *a, const float *b, float factor, size_t n);

/* Makes a panel of n_rows <= DS_PANEL_ROWS rows, `stride` numbers apart; missing rows are zeros. n_cols is even. */
typedef void ds_pair_columns_fn(int16_t *out, const int16_t *rows, size_t stride, size_t n_rows, size_t n_cols);

/* Makes panels of the rows' transpose: ceil(n_cols / DS_PANEL_ROWS) panels, `panel_stride` numbers apart, whose rows
 * are the columns and whose pairs of columns are the ceil(n_rows / 2) pairs of rows; zeros for what is missing. */
typedef void ds_pair_rows_fn(int16_t *out, size_t panel_stride, const int16_t *rows, size_t stride, size_t n_rows,
                             size_t n_cols);

/* Makes both of n_rows rows of bytes: `keys` as pair_columns does, filled up with zeros to whole sections of
 * DS_SCALE_COLS columns, `values` as pair_rows does. */
typedef void ds_pair_codes_fn(int16_t *keys, int16_t *values, size_t panel_stride, const int8_t *rows, size_t stride,
                              size_t n_rows, size_t n_cols);

/* out[i * out_stride + t] = a_scales[i] * sum_s scales[s * scales_stride + t] * (a_i . b_t over the columns of
 * section s), for i < m rows of one panel a and t < n rows of n / DS_PANEL_ROWS panels b (n a multiple of it), each
 * of n_sections sections. */
typedef void ds_pair_scores_fn(float *out, size_t out_stride, const int16_t *a, const float *a_scales, size_t m,
                               const int16_t *b, size_t n, const float *scales, size_t scales_stride,
                               size_t n_sections);

/* out[i * out_stride + j] = out[i * out_stride + j] * keep[i] + factor[i] * (a_i . b_j), for i < m rows of one panel
 * a and j < n rows of ceil(n / DS_PANEL_ROWS) panels b, all of n_pairs pairs of columns. */
typedef void ds_pair_sums_fn(float *out, size_t out_stride, const float *keep, const float *factor, const int16_t *a,
                             size_t m, const int16_t *b, size_t n_pairs, size_t n);

/* Rows of the latent KV cache; the same bits from every set. Their layout is in lib/cache/quantise.c. */

/* The Walsh-Hadamard transform of every `block` elements (a power of two that divides n), divided by sqrt(block):
 * orthogonal, and its own inverse. */
typedef void ds_rotate_fn(float *x, size_t block, size_t n);

/* out[i] = codes[i] * scale of i's section; a bf16 scale for every `section` elements. */
typedef void ds_unpack_q8_fn(float *out, const uint8_t *scales, const int8_t *codes, size_t section, size_t n);

/* Elements of DS_PAIR_LEVELS levels, two in 11 bits, as integers: from -22 on; n even. */
typedef void ds_split_pairs_fn(int16_t *out, const uint8_t *pairs, size_t n);

/* The same times their scales, as unpack_q8. */
typedef void ds_unpack_pairs_fn(float *out, const uint8_t *scales, const uint8_t *pairs, size_t section, size_t n);

typedef struct ds_kernels {
    const char *name;                                            /* as ds_kernels_select takes it */
    ds_matmul_fn *matmul[DS_TYPE_COUNT];                         /* of the plain types; NULL for the others */
    ds_matmul_interleaved_fn *matmul_interleaved[DS_TYPE_COUNT]; /* of the interleaved types; NULL for the others */
    ds_prepare_row_fn *prepare_row;
    ds_to_f32_fn *to_f32[DS_TYPE_COUNT]; /* of plain and block types; NULL for F8_E4M3, whose scales lie
                                            elsewhere, and for interleaved types */
    ds_f32_to_f16_fn *f32_to_f16;
    ds_weighted_sum_fn *weighted_sum;
    ds_rms_norm_fn *rms_norm;
    ds_exp_sum_fn *exp_sum;
    ds_swiglu_fn *swiglu;
    ds_add_scaled_fn *add_scaled;
    ds_max_fn *max;
    ds_round_row_fn *round_row;
    ds_round_halves_fn *round_halves;
    ds_round_products_fn *round_products;
    ds_pair_columns_fn *pair_columns;
    ds_pair_rows_fn *pair_rows;
    ds_pair_codes_fn *pair_codes;
    ds_pair_scores_fn *pair_scores;
    ds_pair_sums_fn *pair_sums;
    ds_rotate_fn *rotate;
    ds_unpack_q8_fn *unpack_q8;
    ds_split_pairs_fn *split_pairs;
    ds_unpack_pairs_fn *unpack_pairs;
} ds_kernels;

/* ---- choosing a set ---- */

/* The table by name; NULL or "auto" gives the best that this processor and operating system run.
 * Fails with DSV2_ERROR_ARGUMENT (no such set) or _UNSUPPORTED (not on this processor). */
dsv2_status ds_kernels_select(const char *name, const ds_kernels **kernels);

/* Set number `index` of this build, the best first and the reference last; NULL beyond the last. *runs: whether this
 * processor and operating system run the set. */
const ds_kernels *ds_kernels_set(size_t index, bool *runs);

/* ---- what is plain C around the kernels ---- */

/* Rows n0 to n1 - 1 of y = W x for m rows x: out[i * out_stride + j - n0]. Takes the type's own kernel, or unpacks
 * some rows of W at a time into `scratch` (ds_matmul_scratch(W) floats, may be 0) and multiplies those. If W is
 * interleaved, rows of x are prepared there: a caller with many ranges of the same W prepares them once and calls
 * ds_matmul_prepared, for the same bits. */
void ds_matmul(const ds_kernels *kernels, float *out, size_t out_stride, const float *const *x, size_t m,
               const ds_matrix *w, uint32_t n0, uint32_t n1, float *scratch);
size_t ds_matmul_scratch(const ds_matrix *w);

/* The same for an interleaved W and rows of ds_prepared_blocks(W->cols) blocks each, written by prepare_row. Ranges
 * of whole panels (n0 and n1 multiples of DS_PANEL_ROWS) are the fast ones. */
void ds_matmul_prepared(const ds_kernels *kernels, float *out, size_t out_stride, const ds_x8 *const *x, size_t m,
                        const ds_matrix *w, uint32_t n0, uint32_t n1);
size_t ds_prepared_blocks(uint32_t cols);

/* Writes a panel of an interleaved type (DS_PANEL_ROWS * row_bytes bytes) from n_rows <= DS_PANEL_ROWS rows of
 * floats, rounded so that the squared error is small; missing rows are zeros. 256 columns of a row with an infinity
 * or NaN among them become NaN. */
void ds_panel_from_floats(ds_type type, void *panel, const float *const *rows, size_t n_rows, size_t cols);

/* The same from rows of block type `from` into its twin. False if some block's scale or minimum is an infinity or NaN:
 * the panel has it too. */
bool ds_panel_from_blocks(ds_type from, void *panel, const void *const *rows, size_t n_rows, size_t cols);

/* One row of a matrix as floats: the embedding of a token. */
void ds_matrix_row(const ds_kernels *kernels, const ds_matrix *w, uint32_t row, float *out);

#endif

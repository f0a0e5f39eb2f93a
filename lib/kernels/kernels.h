/* kernels: the arithmetic. One table of function pointers; c/ is the reference, x86/ the fast ones. No other room asks what
 * the processor can do.
 *
 * Promise kept by every kernel: a row's result depends on that row alone. How many rows there are, where a row stands among
 * them and how the output rows are split over tasks change no bit of it. So each output is summed in one fixed order. */
#ifndef DS_LIB_KERNELS_H
#define DS_LIB_KERNELS_H

#include "base/base.h"

/* Element types of weights, as files hold them. */
typedef enum ds_type {
    DS_TYPE_F32 = 0,
    DS_TYPE_F16,
    DS_TYPE_BF16,
    DS_TYPE_F8_E4M3, /* with a float scale per block, see ds_matrix */
    DS_TYPE_Q8_0,    /* from here on the block types of GGUF files: scales and elements together, 32 or 256 at a time */
    DS_TYPE_Q4_0,
    DS_TYPE_Q4_1,
    DS_TYPE_Q5_0,
    DS_TYPE_Q5_1,
    DS_TYPE_Q2_K,
    DS_TYPE_Q3_K,
    DS_TYPE_Q4_K,
    DS_TYPE_Q5_K,
    DS_TYPE_Q6_K,
    DS_TYPE_IQ4_NL,
    DS_TYPE_IQ4_XS,
    /* Packed: small integers, 16 rows interleaved; README.md has the layout. Bits per weight in brackets, to which come 32 for
     * each row. */
    DS_TYPE_P4,  /* [4.5] 4 bits, scale and minimum per 32 columns: holds any Q4_K exactly */
    DS_TYPE_P5,  /* [5.5] 5 bits, the same: Q5_K */
    DS_TYPE_P6,  /* [6.5625] 6 bits, scale per 16 columns: Q6_K */
    DS_TYPE_P8,  /* [8.5] 8 bits, scale per 32 columns: Q8_0 */
    DS_TYPE_P4S, /* [4.5] 4 bits, scale per 32 columns: Q4_0 */
    DS_TYPE_P5S, /* [5.5] 5 bits, the same: Q5_0 */
    DS_TYPE_P4M, /* [5] 4 bits, scale and minimum in half precision per 32 columns: Q4_1 */
    DS_TYPE_P5M, /* [6] 5 bits, the same: Q5_1 */
    DS_TYPE_COUNT
} ds_type;

/* Rows of a packed matrix come in panels of so many; the last panel is filled up. */
enum { DS_PANEL_ROWS = 16 };

const char *ds_type_name(ds_type type);

bool ds_type_is_interleaved(ds_type type);

/* F32, F16 and BF16: the types whose elements stand alone, which every set multiplies as they are. */
bool ds_type_is_plain(ds_type type);

/* Bytes of `cols` consecutive elements; 0 if cols is no multiple of the type's block. Packed types take any cols; theirs is a
 * row's share of its panel. */
size_t ds_type_row_bytes(ds_type type, uint64_t cols);

/* A weight matrix W of a linear map y = W x. */
typedef struct ds_matrix {
    uint32_t rows, cols; /* outputs, inputs */
    ds_type type;
    const void *data;    /* row-major, each row row_bytes after the one before; not owned. Packed: panels of rows, each
                            DS_PANEL_ROWS * row_bytes after the one before, row_bytes being ds_type_row_bytes(type, cols) */
    size_t row_bytes;
    /* F8_E4M3 only: element (r, c) is multiplied by scales[r / scale_rows * scale_stride + c / scale_cols]. */
    const float *scales;
    uint32_t scale_rows, scale_cols, scale_stride;
} ds_matrix;

/* 32 columns of a row of activations, as the kernels of packed weights take them: x[c] ~ scale * q[c]. */
enum { DS_BLOCK_COLS = 32 };
typedef struct ds_x8 {
    int8_t q[DS_BLOCK_COLS]; /* -127 to 127 */
    float scale;
    float sum;      /* scale * the sum of q */
    float halves[2]; /* the same of each 16 */
} ds_x8;

/* Two elements of 45 levels, -22 to 22, share 11 bits: 45^2 = 2025 of 2048 codes. */
enum { DS_PAIR_LEVELS = 45 };

/* Attention in 16 bits. A block is DS_PANEL_ROWS rows, interleaved by pairs of columns: [columns / 2][DS_PANEL_ROWS][2]. Of keys
 * and queries, DS_SCALE_COLS columns are a section with a scale of its own; of these, sums of products of a DS_MAX_15_BITS and a
 * DS_MAX_12_BITS number fit into 32 bits. */
enum { DS_SCALE_COLS = 64, DS_MAX_15_BITS = 16383, DS_MAX_12_BITS = 2047 };

typedef struct ds_kernels {
    const char *name; /* "c", "avx2", "avx512" */

    /* out[i * out_stride + j] = sum_c x[i][c] * w[j][c], for i < m and j < n, c < k. x: m pointers to rows of k floats (so that
     * rows can be gathered); w: n rows of k elements, w_stride bytes apart. Any m, n, k >= 1; no alignment asked for. */
    void (*matmul[DS_TYPE_COUNT])(float *out, size_t out_stride, const float *const *x, size_t m, const void *w, size_t w_stride,
                                  size_t n, size_t k); /* F32, F16, BF16; NULL where a type has none */

    /* The same for packed types: x: m pointers to prepared rows of ceil(k / 32) blocks; w: ceil(n / 16) panels of rows. NULL for
     * the others. */
    void (*matmul_interleaved[DS_TYPE_COUNT])(float *out, size_t out_stride, const ds_x8 *const *x, size_t m, const void *w,
                                              size_t n, size_t k);

    /* Rounds a row of k floats to 8 bits: ceil(k / 32) blocks, filled up with zeros. The same bits in every set, for finite x. A
     * block with an infinity or NaN gets a NaN scale. */
    void (*prepare_row)(ds_x8 *out, const float *x, size_t k);

    /* n consecutive elements, whole blocks, to float: exact for the plain types, for block types the format's own product of
     * scale and integer, rounded as plain C rounds it. NULL for F8_E4M3: its scales are not applied here. */
    void (*to_f32[DS_TYPE_COUNT])(float *out, const void *in, size_t n);

    /* n floats to F16, nearest, ties to even. */
    void (*f32_to_f16)(uint16_t *out, const float *in, size_t n);

    /* out[i * out_stride + j] = out[i * out_stride + j] * keep[i] + sum_t p[i * p_stride + t] * v[t * v_stride + j], i < m, t < n,
     * j < k: the softmax-weighted sum of attention, with the rescaling of its online form. Terms are added in order of t. */
    void (*weighted_sum)(float *out, size_t out_stride, const float *keep, const float *p, size_t p_stride, size_t m,
                         const float *v, size_t v_stride, size_t n, size_t k);

    /* out = x / sqrt(mean(x^2) + epsilon) * weight, n elements; out may be x. */
    void (*rms_norm)(float *out, const float *x, const float *weight, float epsilon, size_t n);

    /* x[t] = exp(x[t] - max) for t < n, with max >= all x[t]; returns the sum, added in a fixed order. -INFINITY gives 0. */
    float (*exp_sum)(float *x, float max, size_t n);

    /* gate[j] = silu(gate[j]) * up[j], silu(z) = z / (1 + exp(-z)); n elements. */
    void (*swiglu)(float *gate, const float *up, size_t n);

    /* out[j] += scale * x[j], n elements. */
    void (*add_scaled)(float *out, const float *x, float scale, size_t n);

    /* The largest of n >= 1 floats; NaN is not looked for. */
    float (*max)(const float *x, size_t n);

    /* Attention in 16 bits; see DS_PANEL_ROWS. All but pair_scores and pair_sums give the same bits in every set. */

    /* out[c] = the nearest integer to x[c] / scale, with the returned scale such that the largest magnitude becomes `limit`
     * (below 2^15). Next to nothing gives zeros and scale 0; an infinity or NaN zeros and scale NaN. */
    float (*round_row)(int16_t *out, const float *x, size_t n, float limit);

    /* The same of n numbers in half precision, at any address. */
    float (*round_halves)(int16_t *out, const void *halves, size_t n, float limit);

    /* out[c] = the nearest integer to a[c] * b[c] * factor, which is below 2^15. */
    void (*round_products)(int16_t *out, const float *a, const float *b, float factor, size_t n);

    /* A block of n_rows <= DS_PANEL_ROWS rows, `stride` numbers apart; missing rows are zeros. n_cols is even. */
    void (*pair_columns)(int16_t *out, const int16_t *rows, size_t stride, size_t n_rows, size_t n_cols);

    /* The same of the rows' transpose: ceil(n_cols / DS_PANEL_ROWS) blocks, `panel_stride` numbers apart, whose rows are the
     * columns and whose pairs of columns the ceil(n_rows / 2) pairs of rows; zeros for what is missing. */
    void (*pair_rows)(int16_t *out, size_t panel_stride, const int16_t *rows, size_t stride, size_t n_rows, size_t n_cols);

    /* Both at once of n_rows rows of bytes: `keys` as pair_columns makes them, filled up with zeros to whole sections of DS_SCALE_COLS
     * columns, `values` as pair_rows does. */
    void (*pair_codes)(int16_t *keys, int16_t *values, size_t panel_stride, const int8_t *rows, size_t stride, size_t n_rows,
                       size_t n_cols);

    /* out[i * out_stride + t] = a_scales[i] * sum_g scales[g * scales_stride + t] * (a_i . b_t over the columns of section g), for
     * i < m rows of one block a and t < n rows of n / DS_PANEL_ROWS blocks b (n a multiple of it), each of n_sections sections. */
    void (*pair_scores)(float *out, size_t out_stride, const int16_t *a, const float *a_scales, size_t m, const int16_t *b, size_t n,
                        const float *scales, size_t scales_stride, size_t n_sections);

    /* out[i * out_stride + j] = out[i * out_stride + j] * keep[i] + factor[i] * (a_i . b_j), for i < m rows of one block a and
     * j < n rows of ceil(n / DS_PANEL_ROWS) blocks b, all of n_pairs pairs of columns. */
    void (*pair_sums)(float *out, size_t out_stride, const float *keep, const float *factor, const int16_t *a, size_t m,
                      const int16_t *b, size_t n_pairs, size_t n);

    /* Rows of the latent KV cache; the same bits from every set. Their layout is in lib/cache/quantise.c. */

    /* The Walsh-Hadamard transform of every `block` elements (a power of two that divides n), divided by sqrt(block): orthogonal,
     * and its own inverse. */
    void (*rotate)(float *x, size_t block, size_t n);

    /* out[i] = codes[i] * scale of i's section; a bf16 scale for every `section` elements. */
    void (*unpack_q8)(float *out, const uint8_t *scales, const int8_t *codes, size_t section, size_t n);

    /* Elements of DS_PAIR_LEVELS levels, two in 11 bits, as integers: from -22 on; n even. */
    void (*split_pairs)(int16_t *out, const uint8_t *pairs, size_t n);

    /* The same times their scales, as unpack_q8. */
    void (*unpack_pairs)(float *out, const uint8_t *scales, const uint8_t *pairs, size_t section, size_t n);
} ds_kernels;

/* The table by name; NULL or "auto" gives the best that this processor and operating system run.
 * Fails with DSV2_ERROR_ARGUMENT (no such set) or _UNSUPPORTED (not on this processor). */
dsv2_status ds_kernels_select(const char *name, const ds_kernels **kernels);

/* Rows n0 to n1 - 1 of y = W x for m rows x: out[i * out_stride + j - n0]. Takes the type's own kernel, or unpacks some rows of
 * W at a time into `scratch` (ds_matmul_scratch(W) floats, may be 0) and multiplies those. If W is packed, rows of x are
 * prepared there: who calls for many ranges of the same W prepares them once and calls ds_matmul_prepared, for the same bits. */
void ds_matmul(const ds_kernels *kernels, float *out, size_t out_stride, const float *const *x, size_t m, const ds_matrix *w,
               uint32_t n0, uint32_t n1, float *scratch);
size_t ds_matmul_scratch(const ds_matrix *w);

/* The same for a packed W and rows of ds_prepared_blocks(W->cols) blocks each, written by prepare_row. Ranges of whole panels
 * (n0 and n1 multiples of DS_PANEL_ROWS) are the fast ones. */
void ds_matmul_prepared(const ds_kernels *kernels, float *out, size_t out_stride, const ds_x8 *const *x, size_t m,
                        const ds_matrix *w, uint32_t n0, uint32_t n1);
size_t ds_prepared_blocks(uint32_t cols);

/* Writes a panel of a packed type (DS_PANEL_ROWS * row_bytes bytes) from n_rows <= DS_PANEL_ROWS rows of floats, rounded so
 * that the squared error is small; missing rows are zeros. 256 columns of a row with an infinity or NaN among them become NaN. */
void ds_panel_from_floats(ds_type type, void *panel, const float *const *rows, size_t n_rows, size_t cols);

/* The packed type that holds all values of a block type exactly (of IQ4_XS with scales rounded to half precision, 2^-11 of a value
 * at the most); DS_TYPE_COUNT if there is none. */
ds_type ds_type_twin(ds_type type);

/* The same from rows of block type `from` into its twin. */
void ds_panel_from_blocks(ds_type from, void *panel, const void *const *rows, size_t n_rows, size_t cols);

/* One row of a matrix as floats: the embedding of a token. */
void ds_matrix_row(const ds_kernels *kernels, const ds_matrix *w, uint32_t row, float *out);

#endif

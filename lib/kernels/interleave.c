/* Writes interleaved weights: from floats, rounded well, and from the block types of GGUF files, exactly. */
#include "kernels/blocks.h"
#include "kernels/interleaved.h"
#include "kernels/kernels.h"

#include <assert.h>
#include <math.h>
#include <string.h>

enum { HALF_BLOCK = DS_BLOCK_COLS / 2 };

/* One row of a superblock before it is put among the others. */
typedef struct superblock_row {
    uint8_t q[SUPERBLOCK_COLS];
    uint16_t scale, minimum; /* F16; P4, P5, the scale also P6 */
    uint8_t sub_scales[SUPERBLOCK_BLOCKS], sub_minima[SUPERBLOCK_BLOCKS]; /* P4, P5 */
    int8_t sixteenths[2 * SUPERBLOCK_BLOCKS];                       /* P6 */
    uint16_t halves[SUPERBLOCK_BLOCKS];                             /* P8, P4S, P5S, P4M, P5M */
    uint16_t minima[SUPERBLOCK_BLOCKS];                             /* P4M, P5M */
    float factor;                                             /* the row's: all is multiplied by it */
} superblock_row;

/* ---- putting rows together ---- */

static void store_half(uint8_t *bytes, uint16_t half)
{
    bytes[0] = (uint8_t)half;
    bytes[1] = (uint8_t)(half >> 8);
}

/* 4 vectors' worth of numbers into 3. */
static void store_six_bits(uint8_t *bytes, const uint8_t *numbers)
{
    for (size_t part = 0; part < 3; part++)
        for (size_t i = 0; i < VECTOR; i++)
            bytes[part * VECTOR + i] =
                (uint8_t)(numbers[part * VECTOR + i] | (numbers[3 * VECTOR + i] >> 2 * part & 3) << 6);
}

static void store_header(ds_type type, uint8_t *superblock, const superblock_row *rows)
{
    uint8_t numbers[4 * VECTOR];
    for (size_t row = 0; row < DS_PANEL_ROWS; row++) {
        const superblock_row *s = &rows[row];
        if (ds_has_six_bits(type) || type == DS_TYPE_P6)
            store_half(superblock + HEADER_SCALES + 2 * row, s->scale);
        if (ds_has_six_bits(type))
            store_half(superblock + HEADER_MINIMA + 2 * row, s->minimum);
        for (size_t b = 0; b < SUPERBLOCK_BLOCKS; b++) {
            size_t at = b * DS_PANEL_ROWS + row;
            if (ds_has_six_bits(type)) {
                numbers[at] = s->sub_scales[b];
                numbers[2 * VECTOR + at] = s->sub_minima[b];
            } else if (type == DS_TYPE_P6) {
                superblock[HEADER_SIXTEENTHS + 2 * b * DS_PANEL_ROWS + row] = (uint8_t)s->sixteenths[2 * b];
                superblock[HEADER_SIXTEENTHS + (2 * b + 1) * DS_PANEL_ROWS + row] = (uint8_t)s->sixteenths[2 * b + 1];
            } else {
                store_half(superblock + HEADER_HALVES + 2 * at, s->halves[b]);
                if (ds_has_block_minima(type))
                    store_half(superblock + HEADER_BLOCK_MINIMA + 2 * at, s->minima[b]);
            }
        }
    }
    if (ds_has_six_bits(type))
        store_six_bits(superblock + HEADER_SIX_BITS, numbers);
}

/* Columns come by words of 4, a byte each; what is done to a word is done to its 4 bytes. Four words at a time, on
 * any machine. */
typedef uint8_t four_words __attribute__((vector_size(16)));

static four_words load_words(const uint8_t *q)
{
    four_words words;
    memcpy(&words, q, sizeof words);
    return words;
}

/* Into as many vectors. */
static void store_words(uint8_t *block, size_t vector, size_t row, four_words words)
{
    uint32_t each[4];
    memcpy(each, &words, sizeof each);
    for (size_t v = 0; v < 4; v++)
        memcpy(block + (vector + v) * VECTOR + 4 * row, &each[v], sizeof each[v]);
}

/* Joins the bits above the 4 low ones, bits_each of each column: the bits of word g lie bits_each * g higher. */
static uint32_t join_high_bits(const uint8_t *q, size_t n_words, unsigned bits_each)
{
    uint32_t joined = 0, mask = bits_each == 1 ? 0x01010101 : 0x03030303;
    for (size_t g = 0; g < n_words; g++) {
        uint32_t word;
        memcpy(&word, q + 4 * g, sizeof word);
        joined |= (word >> 4 & mask) << bits_each * g;
    }
    return joined;
}

static void store_word(uint8_t *block, size_t vector, size_t row, uint32_t word)
{
    memcpy(block + vector * VECTOR + 4 * row, &word, sizeof word);
}

/* The inverse of the reference's element(). */
static void store_block(ds_type type, uint8_t *block, size_t row, const uint8_t *q)
{
    four_words low = load_words(q), high = load_words(q + DS_BLOCK_COLS / 2);
    if (type == DS_TYPE_P8) {
        store_words(block, 0, row, low);
        store_words(block, 4, row, high);
        return;
    }
    store_words(block, 0, row, (low & 15) | high << 4);
    if (ds_integer_bits(type) == 5)
        store_word(block, 4, row, join_high_bits(q, BLOCK_WORDS, 1));
    if (type == DS_TYPE_P6) {
        store_word(block, 4, row, join_high_bits(q, BLOCK_WORDS / 2, 2));
        store_word(block, 5, row, join_high_bits(q + DS_BLOCK_COLS / 2, BLOCK_WORDS / 2, 2));
    }
}

/* Writes superblock `index` of a panel: n_blocks blocks of DS_PANEL_ROWS rows. Rows that are missing are zeros. */
static void store_superblock(ds_type type, uint8_t *panel, size_t index, const superblock_row *rows, size_t n_blocks)
{
    assert(n_blocks >= 1 && n_blocks <= SUPERBLOCK_BLOCKS);
    uint8_t *superblock = panel + (ds_superblock(type, panel, index) - panel);
    store_header(type, superblock, rows);
    for (size_t b = 0; b < n_blocks; b++)
        for (size_t row = 0; row < DS_PANEL_ROWS; row++)
            store_block(type, superblock + ds_header_bytes(type) + b * ds_block_bytes(type), row,
                        rows[row].q + b * DS_BLOCK_COLS);
}

static void store_factor(uint8_t *panel, size_t row, float factor) { memcpy(panel + 4 * row, &factor, sizeof factor); }

static size_t blocks_from(size_t cols, size_t first)
{
    size_t n = cols - first < SUPERBLOCK_COLS ? cols - first : SUPERBLOCK_COLS;
    return (n + DS_BLOCK_COLS - 1) / DS_BLOCK_COLS;
}

/* ---- rounding ----
 * A row is multiplied by a power of two first, so that its largest magnitude is in [2^13, 2^14): scales in half
 * precision then do not overflow, and scales that matter do not vanish. */
enum { ROW_EXPONENT = 13, LEAST_EXPONENT = -149 /* of a float that is not 0 */ };

/* Four floats at a time, on any machine; n is a multiple of that everywhere below. */
typedef float four __attribute__((vector_size(16)));
typedef int32_t four_ints __attribute__((vector_size(16)));
enum { FOUR = 4 };

static four load4(const float *p)
{
    four v;
    memcpy(&v, p, sizeof v);
    return v;
}

static float total(four v) { return (v[0] + v[2]) + (v[1] + v[3]); }
static four choose(four_ints mask, four a, four b) { return (four)((mask & (four_ints)a) | (~mask & (four_ints)b)); }

/* To the nearest integer, as floats, for |v| < 2^22. */
static float nearest(float v) { return (v + 0x1.8p23f) - 0x1.8p23f; }
static four nearest4(four v) { return (v + 0x1.8p23f) - 0x1.8p23f; }

/* The nearest of the integers from `lowest` to `highest`. */
static four limit4(four v, float lowest, float highest)
{
    four low = (four){0} + lowest, high = (four){0} + highest;
    v = choose(v > low, v, low);
    return nearest4(choose(v < high, v, high));
}

/* scale * q - minimum for q from 0 to levels: sets q, returns the squared error. */
static float round_affine(const float *x, size_t n, float scale, float minimum, float levels, float *q)
{
    float inverse = scale > 0 ? 1 / scale : 0;
    four errors = {0};
    for (size_t i = 0; i < n; i += FOUR) {
        four values = load4(x + i), v = limit4((values + minimum) * inverse, 0, levels);
        four difference = values - (scale * v - minimum);
        memcpy(q + i, &v, sizeof v);
        errors += difference * difference;
    }
    return total(errors);
}

/* The scale and minimum (not negative, either) that suit x and given q best: least squares. */
static void fit_affine(const float *x, size_t n, const float *q, float *scale, float *minimum)
{
    four all_q = {0}, all_qq = all_q, all_x = all_q, all_xq = all_q;
    for (size_t i = 0; i < n; i += FOUR) {
        four v = load4(q + i), values = load4(x + i);
        all_q += v;
        all_qq += v * v;
        all_x += values;
        all_xq += values * v;
    }
    float sum_q = total(all_q), sum_qq = total(all_qq), sum_x = total(all_x), sum_xq = total(all_xq), count = (float)n;
    float determinant = count * sum_qq - sum_q * sum_q;
    if (!(determinant > 0))
        return;
    *scale = (count * sum_xq - sum_x * sum_q) / determinant;
    *minimum = (*scale * sum_q - sum_x) / count;
    if (*minimum < 0) {
        *minimum = 0;
        *scale = sum_xq / sum_qq;
    }
    if (*scale < 0)
        *scale = 0;
}

/* A block's best scale and minimum: from several stretches of its range, each fitted twice. */
static void search_affine(const float *x, size_t n, float levels, float *best_scale, float *best_minimum)
{
    float low = 0, high = x[0];
    for (size_t i = 0; i < n; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
    *best_scale = 0;
    *best_minimum = -low;
    if (!(high > low))
        return;
    float best = INFINITY;
    for (int step = -6; step <= 3; step++) {
        float scale = (high - low) / (levels + 0.15f * (float)step), minimum = -low, q[DS_BLOCK_COLS];
        round_affine(x, n, scale, minimum, levels, q);
        for (int fit = 0; fit < 2; fit++) {
            fit_affine(x, n, q, &scale, &minimum);
            float error = round_affine(x, n, scale, minimum, levels, q);
            if (error < best) {
                best = error;
                *best_scale = scale;
                *best_minimum = minimum;
            }
        }
    }
}

static unsigned limit(float v, unsigned most) { return v > 0 ? v < (float)most ? (unsigned)nearest(v) : most : 0; }

/* A block's whole scale and minimum in units of the superblock's: the best pair around the wanted one. */
static void choose_six_bits(const float *x, size_t n, float levels, float scale, float minimum, superblock_row *s,
                            size_t block)
{
    float superblock_scale = ds_f16_to_f32(s->scale), superblock_minimum = ds_f16_to_f32(s->minimum);
    unsigned near_scale = limit(superblock_scale > 0 ? scale / superblock_scale : 0, 63);
    unsigned near_minimum = limit(superblock_minimum > 0 ? minimum / superblock_minimum : 0, 63);
    float best = INFINITY, q[DS_BLOCK_COLS];
    for (unsigned a = near_scale > 0 ? near_scale - 1 : 0; a <= near_scale + 1 && a <= 63; a++)
        for (unsigned m = near_minimum > 0 ? near_minimum - 1 : 0; m <= near_minimum + 1 && m <= 63; m++) {
            float error = round_affine(x, n, superblock_scale * (float)a, superblock_minimum * (float)m, levels, q);
            if (error >= best)
                continue;
            best = error;
            s->sub_scales[block] = (uint8_t)a;
            s->sub_minima[block] = (uint8_t)m;
            for (size_t i = 0; i < n; i++)
                s->q[block * DS_BLOCK_COLS + i] = (uint8_t)q[i];
        }
}

/* The superblock's scale and minimum that suit all integers chosen: least squares again. */
static void fit_superblock(const float *x, size_t n, superblock_row *s)
{
    double aa = 0, ab = 0, bb = 0, xa = 0, xb = 0;
    for (size_t i = 0; i < n; i++) {
        double a = (double)s->sub_scales[i / DS_BLOCK_COLS] * s->q[i], b = s->sub_minima[i / DS_BLOCK_COLS];
        double v = (double)x[i];
        aa += a * a;
        ab += a * b;
        bb += b * b;
        xa += v * a;
        xb += v * b;
    }
    double determinant = aa * bb - ab * ab;
    if (determinant > 1e-6 * aa * bb) { /* w = scale * a - minimum * b */
        double scale = (xa * bb - xb * ab) / determinant, minimum = (xa * ab - xb * aa) / determinant;
        if (scale > 0 && minimum >= 0 && scale < DS_F16_INFINITE && minimum < DS_F16_INFINITE) {
            s->scale = ds_f32_to_f16((float)scale);
            s->minimum = ds_f32_to_f16((float)minimum);
        }
    } else if (bb == 0 && aa > 0 && xa > 0) {
        s->scale = ds_f32_to_f16((float)(xa / aa));
    }
}

static void round_superblock_affine(const float *x, size_t n, float levels, superblock_row *s)
{
    float scales[SUPERBLOCK_BLOCKS], minima[SUPERBLOCK_BLOCKS], largest_scale = 0, largest_minimum = 0;
    size_t blocks = n / DS_BLOCK_COLS;
    for (size_t b = 0; b < blocks; b++) {
        search_affine(x + b * DS_BLOCK_COLS, DS_BLOCK_COLS, levels, &scales[b], &minima[b]);
        largest_scale = scales[b] > largest_scale ? scales[b] : largest_scale;
        largest_minimum = minima[b] > largest_minimum ? minima[b] : largest_minimum;
    }
    s->scale = ds_f32_to_f16(largest_scale / 63);
    s->minimum = ds_f32_to_f16(largest_minimum / 63);
    for (int round = 0; round < 2; round++) {
        if (round > 0)
            fit_superblock(x, n, s);
        for (size_t b = 0; b < blocks; b++)
            choose_six_bits(x + b * DS_BLOCK_COLS, DS_BLOCK_COLS, levels, scales[b], minima[b], s, b);
    }
}

/* scale * q for q from -lowest to highest: sets q (of lowest 127: from -127), returns the squared error. */
static float round_symmetric(const float *x, size_t n, float scale, float lowest, float highest, float *q)
{
    float inverse = scale != 0 ? 1 / scale : 0;
    four errors = {0};
    for (size_t i = 0; i < n; i += FOUR) {
        four values = load4(x + i), v = limit4(values * inverse, -lowest, highest), difference = values - scale * v;
        memcpy(q + i, &v, sizeof v);
        errors += difference * difference;
    }
    return total(errors);
}

/* The best scale, of either sign: the largest element may then use the range's longer end. */
static float search_symmetric(const float *x, size_t n, float lowest, float highest)
{
    float extreme = 0;
    for (size_t i = 0; i < n; i++)
        extreme = fabsf(x[i]) > fabsf(extreme) ? x[i] : extreme;
    if (extreme == 0)
        return 0;
    float best_scale = 0, best = INFINITY;
    for (int side = -1; side <= 1; side += 2)
        for (int step = -5; step <= 4; step++) {
            float scale = extreme / ((float)side * ((side < 0 ? lowest : highest) + 0.2f * (float)step));
            float q[DS_BLOCK_COLS];
            round_symmetric(x, n, scale, lowest, highest, q);
            four all_xq = {0}, all_qq = {0};
            for (size_t i = 0; i < n; i += FOUR) {
                four v = load4(q + i);
                all_xq += load4(x + i) * v;
                all_qq += v * v;
            }
            float xq = total(all_xq), qq = total(all_qq);
            if (!(qq > 0))
                continue;
            float error = round_symmetric(x, n, xq / qq, lowest, highest, q);
            if (error < best) {
                best = error;
                best_scale = xq / qq;
            }
        }
    return best_scale;
}

static void store_rounded(const float *x, size_t n, float scale, float lowest, float highest, int zero, uint8_t *out)
{
    float q[DS_BLOCK_COLS];
    round_symmetric(x, n, scale, lowest, highest, q);
    for (size_t i = 0; i < n; i++)
        out[i] = (uint8_t)((int)q[i] + zero);
}

static void round_superblock_sixteenths(const float *x, size_t n, superblock_row *s)
{
    float scales[2 * SUPERBLOCK_BLOCKS], largest = 0;
    size_t halves = n / HALF_BLOCK;
    for (size_t h = 0; h < halves; h++) {
        scales[h] = search_symmetric(x + h * HALF_BLOCK, HALF_BLOCK, 32, 31);
        largest = fabsf(scales[h]) > largest ? fabsf(scales[h]) : largest;
    }
    s->scale = ds_f32_to_f16(largest / 127);
    float superblock_scale = ds_f16_to_f32(s->scale);
    for (size_t h = 0; h < halves && superblock_scale > 0; h++) {
        float near_factor = nearest(scales[h] / superblock_scale), best = INFINITY, q[HALF_BLOCK];
        for (float factor = near_factor - 1; factor <= near_factor + 1; factor++) {
            float error = round_symmetric(x + h * HALF_BLOCK, HALF_BLOCK, superblock_scale * factor, 32, 31, q);
            if (error < best && fabsf(factor) <= 127) {
                best = error;
                s->sixteenths[h] = (int8_t)factor;
            }
        }
        store_rounded(x + h * HALF_BLOCK, HALF_BLOCK, superblock_scale * (float)s->sixteenths[h], 32, 31, 32,
                      s->q + h * HALF_BLOCK);
    }
}

static void round_superblock_halves(ds_type type, const float *x, size_t n, superblock_row *s)
{
    int zero = ds_integer_zero(type);
    float highest = (float)zero - 1, lowest = type == DS_TYPE_P8 ? highest : (float)zero;
    for (size_t b = 0; b * DS_BLOCK_COLS < n; b++) {
        const float *block = x + b * DS_BLOCK_COLS;
        s->halves[b] = ds_f32_to_f16(search_symmetric(block, DS_BLOCK_COLS, lowest, highest));
        store_rounded(block, DS_BLOCK_COLS, ds_f16_to_f32(s->halves[b]), lowest, highest, zero,
                      s->q + b * DS_BLOCK_COLS);
    }
}

static void round_superblock_minima(const float *x, size_t n, float levels, superblock_row *s)
{
    for (size_t b = 0; b * DS_BLOCK_COLS < n; b++) {
        float scale, minimum, q[DS_BLOCK_COLS];
        search_affine(x + b * DS_BLOCK_COLS, DS_BLOCK_COLS, levels, &scale, &minimum);
        s->halves[b] = ds_f32_to_f16(scale);
        s->minima[b] = ds_f32_to_f16(minimum);
        scale = ds_f16_to_f32(s->halves[b]);
        round_affine(x + b * DS_BLOCK_COLS, DS_BLOCK_COLS, scale, ds_f16_to_f32(s->minima[b]), levels, q);
        for (size_t i = 0; i < DS_BLOCK_COLS; i++)
            s->q[b * DS_BLOCK_COLS + i] = (uint8_t)q[i];
    }
}

/* n columns, whole blocks, of a row that was multiplied by its power of two. */
static void round_superblock(ds_type type, const float *x, size_t n, superblock_row *s)
{
    enum { NOT_A_NUMBER = 0x7e00 };
    memset(s, 0, sizeof *s);
    memset(s->q, ds_integer_zero(type), sizeof s->q);
    bool finite = true;
    float levels = ds_integer_bits(type) == 5 ? 31 : 15; /* of the types with minima */
    for (size_t i = 0; i < n; i++)
        finite = finite && isfinite(x[i]);
    if (!finite) {
        s->scale = s->minimum = NOT_A_NUMBER;
        for (size_t b = 0; b < SUPERBLOCK_BLOCKS; b++)
            s->halves[b] = NOT_A_NUMBER;
    } else if (ds_has_six_bits(type)) {
        round_superblock_affine(x, n, levels, s);
    } else if (ds_has_block_minima(type)) {
        round_superblock_minima(x, n, levels, s);
    } else if (type == DS_TYPE_P6) {
        round_superblock_sixteenths(x, n, s);
    } else {
        round_superblock_halves(type, x, n, s);
    }
}

/* What the row is divided by for its largest finite magnitude to be in [2^13, 2^14). */
static int row_exponent(const float *row, size_t cols)
{
    float largest = 0;
    for (size_t c = 0; c < cols; c++)
        if (isfinite(row[c]) && fabsf(row[c]) > largest)
            largest = fabsf(row[c]);
    int exponent = largest > 0 ? ilogbf(largest) - ROW_EXPONENT : 0;
    return exponent > LEAST_EXPONENT ? exponent : LEAST_EXPONENT;
}

/* Columns `first` and on of a row that is divided by 2^exponent. */
static void round_columns(ds_type type, const float *in, size_t cols, size_t first, int exponent, superblock_row *s)
{
    /* in two steps, since 2^-exponent may be out of range */
    float once = ldexpf(1, -exponent / 2), again = ldexpf(1, -exponent - -exponent / 2), x[SUPERBLOCK_COLS];
    size_t n = cols - first < SUPERBLOCK_COLS ? cols - first : SUPERBLOCK_COLS;
    size_t filled = blocks_from(cols, first) * DS_BLOCK_COLS;
    for (size_t i = 0; i < filled; i++) /* beyond the row's end, where nothing is multiplied, what came before */
        x[i] = in[first + i % n] * once * again;
    round_superblock(type, x, filled, s);
}

void ds_panel_from_floats(ds_type type, void *panel, const float *const *rows, size_t n_rows, size_t cols)
{
    assert(ds_type_is_interleaved(type) && n_rows >= 1 && n_rows <= DS_PANEL_ROWS && cols >= 1);
    int exponents[DS_PANEL_ROWS];
    superblock_row superblocks[DS_PANEL_ROWS] = {0};
    memset(panel, 0, PANEL_HEADER);
    for (size_t row = 0; row < n_rows; row++) {
        exponents[row] = row_exponent(rows[row], cols);
        store_factor(panel, row, ldexpf(1, exponents[row]));
    }
    for (size_t c = 0; c < cols; c += SUPERBLOCK_COLS) {
        for (size_t row = 0; row < n_rows; row++)
            round_columns(type, rows[row], cols, c, exponents[row], &superblocks[row]);
        store_superblock(type, panel, c / SUPERBLOCK_COLS, superblocks, blocks_from(cols, c));
    }
}

/* ---- from the blocks of GGUF files ---- */

/* A type whose blocks have scales of two parts goes into a header with one scale in half precision for each 32
 * columns: their products are rounded. */
static bool is_rounded(const ds_block_format *format, ds_type twin)
{
    return format->n_sections > 1 && ds_header_of(twin) == HALVES;
}

/* The row's factor for products of scales: the largest is then in [2^14, 2^15). Integer scales reach 32. */
static float factor_of_products(const ds_block_format *format, const uint8_t *row, size_t n_blocks)
{
    float largest = 0;
    for (size_t b = 0; b < n_blocks; b++) {
        uint8_t q[DS_MAX_BLOCK];
        ds_block_scales scales;
        format->decode(row + b * format->bytes, q, &scales);
        float scale = fabsf(ds_f16_to_f32(scales.scale)) * 32;
        largest = isfinite(scale) && scale > largest ? scale : largest;
    }
    return largest > 0 ? ldexpf(1, ilogbf(largest) - 14) : 1;
}

static bool is_finite_half(uint16_t half) { return (half & 0x7c00) != 0x7c00; }

/* One block, which begins at block `b` of its superblock. False if its scale or minimum is not finite. */
static bool reorder_block(const ds_block_format *format, ds_type twin, const uint8_t *block, superblock_row *s,
                          size_t b)
{
    ds_block_scales scales;
    format->decode(block, s->q + b * DS_BLOCK_COLS, &scales);
    bool finite = is_finite_half(scales.scale) && is_finite_half(scales.minimum);
    switch (ds_header_of(twin)) {
    case SIX_BITS:
        s->scale = scales.scale;
        s->minimum = scales.minimum;
        memcpy(s->sub_scales, scales.scales, sizeof s->sub_scales);
        memcpy(s->sub_minima, scales.minima, sizeof s->sub_minima);
        return finite;
    case SIXTEENTHS:
        s->scale = scales.scale;
        memcpy(s->sixteenths, scales.scales, sizeof s->sixteenths);
        return finite;
    case HALVES:
    case HALVES_AND_MINIMA: break;
    }
    s->halves[b] = scales.scale;
    s->minima[b] = scales.minimum;
    for (size_t i = 0; i < format->n_sections && is_rounded(format, twin); i++)
        s->halves[b + i] = ds_f32_to_f16(ds_f16_to_f32(scales.scale) / s->factor * (float)scales.scales[i]);
    return finite;
}

bool ds_panel_from_blocks(ds_type from, void *panel, const void *const *rows, size_t n_rows, size_t cols)
{
    const ds_block_format *format = &ds_block_formats[from];
    ds_type twin = ds_type_twin(from);
    assert(ds_type_is_interleaved(twin) && n_rows >= 1 && n_rows <= DS_PANEL_ROWS && cols % format->elements == 0);
    superblock_row superblocks[DS_PANEL_ROWS] = {0};
    bool finite = true;
    memset(panel, 0, PANEL_HEADER);
    for (size_t row = 0; row < n_rows; row++) {
        bool rounded = is_rounded(format, twin);
        superblocks[row].factor = rounded ? factor_of_products(format, rows[row], cols / format->elements) : 1;
        store_factor(panel, row, superblocks[row].factor);
    }
    for (size_t c = 0; c < cols; c += SUPERBLOCK_COLS) {
        size_t n_blocks = blocks_from(cols, c);
        for (size_t row = 0; row < n_rows; row++) {
            if (n_blocks < SUPERBLOCK_BLOCKS)
                memset(superblocks[row].halves, 0, sizeof superblocks[row].halves); /* those of the superblock before */
            const uint8_t *block = (const uint8_t *)rows[row] + c / format->elements * format->bytes;
            for (size_t b = 0; b < n_blocks; b += format->elements / DS_BLOCK_COLS, block += format->bytes)
                finite = reorder_block(format, twin, block, &superblocks[row], b) && finite;
        }
        store_superblock(twin, panel, c / SUPERBLOCK_COLS, superblocks, n_blocks);
    }
    return finite;
}

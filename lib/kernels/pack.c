/* Writing packed weights: from floats, rounded well, and from the block types of GGUF files, exactly. */
#include "kernels/c/dequantize.h"
#include "kernels/packed.h"

#include <math.h>
#include <string.h>

enum { HALF_BLOCK = DS_PACK_COLS / 2 };

/* One row of a span before it is put among the others. */
typedef struct span_row {
    uint8_t q[SPAN_COLS];
    uint16_t scale, minimum; /* F16; P4, P5, the scale also P6 */
    uint8_t sub_scales[SPAN_BLOCKS], sub_minima[SPAN_BLOCKS]; /* P4, P5 */
    int8_t sixteenths[2 * SPAN_BLOCKS];                       /* P6 */
    uint16_t halves[SPAN_BLOCKS];                             /* P8, P4S, P5S, P4M, P5M */
    uint16_t minima[SPAN_BLOCKS];                             /* P4M, P5M */
    float factor;                                             /* the row's: all is multiplied by it */
} span_row;

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
            bytes[part * VECTOR + i] = (uint8_t)(numbers[part * VECTOR + i] | (numbers[3 * VECTOR + i] >> 2 * part & 3) << 6);
}

static void store_header(ds_type type, uint8_t *span, const span_row *rows)
{
    uint8_t numbers[4 * VECTOR];
    for (size_t row = 0; row < DS_PACK_ROWS; row++) {
        const span_row *s = &rows[row];
        if (ds_has_six_bits(type) || type == DS_TYPE_P6)
            store_half(span + HEADER_SCALES + 2 * row, s->scale);
        if (ds_has_six_bits(type))
            store_half(span + HEADER_MINIMA + 2 * row, s->minimum);
        for (size_t b = 0; b < SPAN_BLOCKS; b++) {
            size_t at = b * DS_PACK_ROWS + row;
            if (ds_has_six_bits(type)) {
                numbers[at] = s->sub_scales[b];
                numbers[2 * VECTOR + at] = s->sub_minima[b];
            } else if (type == DS_TYPE_P6) {
                span[HEADER_SIXTEENTHS + 2 * b * DS_PACK_ROWS + row] = (uint8_t)s->sixteenths[2 * b];
                span[HEADER_SIXTEENTHS + (2 * b + 1) * DS_PACK_ROWS + row] = (uint8_t)s->sixteenths[2 * b + 1];
            } else {
                store_half(span + HEADER_HALVES + 2 * at, s->halves[b]);
                if (ds_has_block_minima(type))
                    store_half(span + HEADER_BLOCK_MINIMA + 2 * at, s->minima[b]);
            }
        }
    }
    if (ds_has_six_bits(type))
        store_six_bits(span + HEADER_SIX_BITS, numbers);
}

/* Columns come by words of 4, a byte each; what is done to a word is done to its 4 bytes. Four words at a time, on any machine. */
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

/* What the words' columns have above their 4 low bits (bits_each bits), together: of word g bits_each * g further up. */
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
    four_words low = load_words(q), high = load_words(q + DS_PACK_COLS / 2);
    if (type == DS_TYPE_P8) {
        store_words(block, 0, row, low);
        store_words(block, 4, row, high);
        return;
    }
    store_words(block, 0, row, (low & 15) | high << 4);
    if (ds_pack_bits(type) == 5)
        store_word(block, 4, row, join_high_bits(q, BLOCK_WORDS, 1));
    if (type == DS_TYPE_P6) {
        store_word(block, 4, row, join_high_bits(q, BLOCK_WORDS / 2, 2));
        store_word(block, 5, row, join_high_bits(q + DS_PACK_COLS / 2, BLOCK_WORDS / 2, 2));
    }
}

/* Span `index` of a group, all of it: n_blocks blocks of DS_PACK_ROWS rows, of which those that are missing are zeros. */
static void store_span(ds_type type, uint8_t *group, size_t index, const span_row *rows, size_t n_blocks)
{
    uint8_t *span = group + (ds_span(type, group, index) - group);
    store_header(type, span, rows);
    for (size_t b = 0; b < n_blocks; b++)
        for (size_t row = 0; row < DS_PACK_ROWS; row++)
            store_block(type, span + ds_header_bytes(type) + b * ds_block_bytes(type), row, rows[row].q + b * DS_PACK_COLS);
}

static void store_factor(uint8_t *group, size_t row, float factor) { memcpy(group + 4 * row, &factor, sizeof factor); }

static size_t blocks_from(size_t cols, size_t first)
{
    size_t n = cols - first < SPAN_COLS ? cols - first : SPAN_COLS;
    return (n + DS_PACK_COLS - 1) / DS_PACK_COLS;
}

/* ---- rounding ----
 * A row is multiplied by a power of two first, for its largest magnitude to be in [2^13, 2^14): scales in half precision then
 * neither overflow nor, where it could matter, vanish. */
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
        four values = load4(x + i), v = limit4((values + minimum) * inverse, 0, levels), difference = values - (scale * v - minimum);
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
        float scale = (high - low) / (levels + 0.15f * (float)step), minimum = -low, q[DS_PACK_COLS];
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

/* A block's whole scale and minimum in units of the span's: the best pair around the wanted one. */
static void choose_six_bits(const float *x, size_t n, float levels, float scale, float minimum, span_row *s, size_t block)
{
    float span_scale = ds_f16_to_f32(s->scale), span_minimum = ds_f16_to_f32(s->minimum);
    unsigned near_scale = limit(span_scale > 0 ? scale / span_scale : 0, 63);
    unsigned near_minimum = limit(span_minimum > 0 ? minimum / span_minimum : 0, 63);
    float best = INFINITY, q[DS_PACK_COLS];
    for (unsigned a = near_scale > 0 ? near_scale - 1 : 0; a <= near_scale + 1 && a <= 63; a++)
        for (unsigned m = near_minimum > 0 ? near_minimum - 1 : 0; m <= near_minimum + 1 && m <= 63; m++) {
            float error = round_affine(x, n, span_scale * (float)a, span_minimum * (float)m, levels, q);
            if (error >= best)
                continue;
            best = error;
            s->sub_scales[block] = (uint8_t)a;
            s->sub_minima[block] = (uint8_t)m;
            for (size_t i = 0; i < n; i++)
                s->q[block * DS_PACK_COLS + i] = (uint8_t)q[i];
        }
}

/* The span's scale and minimum that suit all integers chosen: least squares again. */
static void fit_span(const float *x, size_t n, span_row *s)
{
    double aa = 0, ab = 0, bb = 0, xa = 0, xb = 0;
    for (size_t i = 0; i < n; i++) {
        double a = (double)s->sub_scales[i / DS_PACK_COLS] * s->q[i], b = s->sub_minima[i / DS_PACK_COLS], v = (double)x[i];
        aa += a * a;
        ab += a * b;
        bb += b * b;
        xa += v * a;
        xb += v * b;
    }
    double determinant = aa * bb - ab * ab;
    if (determinant > 1e-6 * aa * bb) { /* w = scale * a - minimum * b */
        double scale = (xa * bb - xb * ab) / determinant, minimum = (xa * ab - xb * aa) / determinant;
        if (scale > 0 && minimum >= 0) {
            s->scale = ds_f32_to_f16((float)scale);
            s->minimum = ds_f32_to_f16((float)minimum);
        }
    } else if (bb == 0 && aa > 0 && xa > 0) {
        s->scale = ds_f32_to_f16((float)(xa / aa));
    }
}

static void round_span_affine(const float *x, size_t n, float levels, span_row *s)
{
    float scales[SPAN_BLOCKS], minima[SPAN_BLOCKS], largest_scale = 0, largest_minimum = 0;
    size_t blocks = n / DS_PACK_COLS;
    for (size_t b = 0; b < blocks; b++) {
        search_affine(x + b * DS_PACK_COLS, DS_PACK_COLS, levels, &scales[b], &minima[b]);
        largest_scale = scales[b] > largest_scale ? scales[b] : largest_scale;
        largest_minimum = minima[b] > largest_minimum ? minima[b] : largest_minimum;
    }
    s->scale = ds_f32_to_f16(largest_scale / 63);
    s->minimum = ds_f32_to_f16(largest_minimum / 63);
    for (int round = 0; round < 2; round++) {
        if (round > 0)
            fit_span(x, n, s);
        for (size_t b = 0; b < blocks; b++)
            choose_six_bits(x + b * DS_PACK_COLS, DS_PACK_COLS, levels, scales[b], minima[b], s, b);
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
            float scale = extreme / ((float)side * ((side < 0 ? lowest : highest) + 0.2f * (float)step)), q[DS_PACK_COLS];
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
    float q[DS_PACK_COLS];
    round_symmetric(x, n, scale, lowest, highest, q);
    for (size_t i = 0; i < n; i++)
        out[i] = (uint8_t)((int)q[i] + zero);
}

static void round_span_sixteenths(const float *x, size_t n, span_row *s)
{
    float scales[2 * SPAN_BLOCKS], largest = 0;
    size_t halves = n / HALF_BLOCK;
    for (size_t h = 0; h < halves; h++) {
        scales[h] = search_symmetric(x + h * HALF_BLOCK, HALF_BLOCK, 32, 31);
        largest = fabsf(scales[h]) > largest ? fabsf(scales[h]) : largest;
    }
    s->scale = ds_f32_to_f16(largest / 127);
    float span_scale = ds_f16_to_f32(s->scale);
    for (size_t h = 0; h < halves && span_scale > 0; h++) {
        float near_factor = nearest(scales[h] / span_scale), best = INFINITY, q[HALF_BLOCK];
        for (float factor = near_factor - 1; factor <= near_factor + 1; factor++) {
            float error = round_symmetric(x + h * HALF_BLOCK, HALF_BLOCK, span_scale * factor, 32, 31, q);
            if (error < best && fabsf(factor) <= 127) {
                best = error;
                s->sixteenths[h] = (int8_t)factor;
            }
        }
        store_rounded(x + h * HALF_BLOCK, HALF_BLOCK, span_scale * (float)s->sixteenths[h], 32, 31, 32,
                      s->q + h * HALF_BLOCK);
    }
}

static void round_span_halves(ds_type type, const float *x, size_t n, span_row *s)
{
    int zero = ds_pack_zero(type);
    float highest = (float)zero - 1, lowest = type == DS_TYPE_P8 ? highest : (float)zero;
    for (size_t b = 0; b * DS_PACK_COLS < n; b++) {
        const float *block = x + b * DS_PACK_COLS;
        s->halves[b] = ds_f32_to_f16(search_symmetric(block, DS_PACK_COLS, lowest, highest));
        store_rounded(block, DS_PACK_COLS, ds_f16_to_f32(s->halves[b]), lowest, highest, zero, s->q + b * DS_PACK_COLS);
    }
}

static void round_span_minima(const float *x, size_t n, float levels, span_row *s)
{
    for (size_t b = 0; b * DS_PACK_COLS < n; b++) {
        float scale, minimum, q[DS_PACK_COLS];
        search_affine(x + b * DS_PACK_COLS, DS_PACK_COLS, levels, &scale, &minimum);
        s->halves[b] = ds_f32_to_f16(scale);
        s->minima[b] = ds_f32_to_f16(minimum);
        scale = ds_f16_to_f32(s->halves[b]);
        round_affine(x + b * DS_PACK_COLS, DS_PACK_COLS, scale, ds_f16_to_f32(s->minima[b]), levels, q);
        for (size_t i = 0; i < DS_PACK_COLS; i++)
            s->q[b * DS_PACK_COLS + i] = (uint8_t)q[i];
    }
}

/* n columns, whole blocks, of a row that was multiplied by its power of two. */
static void round_span(ds_type type, const float *x, size_t n, span_row *s)
{
    enum { NOT_A_NUMBER = 0x7e00 };
    memset(s, 0, sizeof *s);
    memset(s->q, ds_pack_zero(type), sizeof s->q);
    bool finite = true;
    float levels = ds_pack_bits(type) == 5 ? 31 : 15; /* of the types with minima */
    for (size_t i = 0; i < n; i++)
        finite = finite && isfinite(x[i]);
    if (!finite) {
        s->scale = s->minimum = NOT_A_NUMBER;
        for (size_t b = 0; b < SPAN_BLOCKS; b++)
            s->halves[b] = NOT_A_NUMBER;
    } else if (ds_has_six_bits(type)) {
        round_span_affine(x, n, levels, s);
    } else if (ds_has_block_minima(type)) {
        round_span_minima(x, n, levels, s);
    } else if (type == DS_TYPE_P6) {
        round_span_sixteenths(x, n, s);
    } else {
        round_span_halves(type, x, n, s);
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
static void pack_span(ds_type type, const float *in, size_t cols, size_t first, int exponent, span_row *s)
{
    /* in two steps, since 2^-exponent may be out of range */
    float once = ldexpf(1, -exponent / 2), again = ldexpf(1, -exponent - -exponent / 2), x[SPAN_COLS];
    size_t n = cols - first < SPAN_COLS ? cols - first : SPAN_COLS, filled = blocks_from(cols, first) * DS_PACK_COLS;
    for (size_t i = 0; i < filled; i++) /* beyond the row's end, where nothing is multiplied, what came before */
        x[i] = in[first + i % n] * once * again;
    round_span(type, x, filled, s);
}

void ds_pack_group(ds_type type, void *group, const float *const *rows, size_t n_rows, size_t cols)
{
    int exponents[DS_PACK_ROWS];
    span_row spans[DS_PACK_ROWS] = {0};
    memset(group, 0, GROUP_HEADER);
    for (size_t row = 0; row < n_rows; row++) {
        exponents[row] = row_exponent(rows[row], cols);
        store_factor(group, row, ldexpf(1, exponents[row]));
    }
    for (size_t c = 0; c < cols; c += SPAN_COLS) {
        for (size_t row = 0; row < n_rows; row++)
            pack_span(type, rows[row], cols, c, exponents[row], &spans[row]);
        store_span(type, group, c / SPAN_COLS, spans, blocks_from(cols, c));
    }
}

/* ---- from files' blocks ---- */

/* Q4_K and Q5_K: 12 bytes with a scale and a minimum of 6 bits for each 32 columns. The first four pairs are the low parts of
 * bytes 0 to 3 and 4 to 7; the last four have their low nibbles in bytes 8 to 11 and their high two bits atop the first. */
static void read_sub_scales(const uint8_t *bytes, span_row *s)
{
    for (size_t b = 0; b < 4; b++) {
        s->sub_scales[b] = bytes[b] & 63;
        s->sub_minima[b] = bytes[4 + b] & 63;
        s->sub_scales[4 + b] = (uint8_t)((bytes[8 + b] & 15) | bytes[b] >> 6 << 4);
        s->sub_minima[4 + b] = (uint8_t)(bytes[8 + b] >> 4 | bytes[4 + b] >> 6 << 4);
    }
}

/* 256 elements in nibbles: 64 share 32 bytes, whose low nibbles come first. */
static void read_nibbles_of_256(const uint8_t *bytes, uint8_t *q)
{
    for (size_t at = 0; at < SPAN_COLS; at += 64, bytes += 32)
        for (size_t i = 0; i < 32; i++) {
            q[at + i] = bytes[i] & 15;
            q[at + 32 + i] = bytes[i] >> 4;
        }
}

static void read_q4_k(const uint8_t *block, span_row *s)
{
    s->scale = ds_read_u16(block);
    s->minimum = ds_read_u16(block + 2);
    read_sub_scales(block + 4, s);
    read_nibbles_of_256(block + 16, s->q);
}

static void read_q5_k(const uint8_t *block, span_row *s)
{
    s->scale = ds_read_u16(block);
    s->minimum = ds_read_u16(block + 2);
    read_sub_scales(block + 4, s);
    read_nibbles_of_256(block + 48, s->q);
    for (size_t b = 0; b < SPAN_BLOCKS; b++) /* bit b of byte i is the fifth of element 32b + i */
        for (size_t i = 0; i < DS_PACK_COLS; i++)
            s->q[b * DS_PACK_COLS + i] |= (uint8_t)((block[16 + i] >> b & 1) << 4);
}

/* 128 elements share 64 bytes of nibbles and 32 of high pairs of bits. */
static void read_q6_k(const uint8_t *block, span_row *s)
{
    const uint8_t *low = block, *high = block + 128;
    for (size_t at = 0; at < SPAN_COLS; at += 128, low += 64, high += 32)
        for (size_t i = 0; i < 32; i++) {
            s->q[at + i] = (uint8_t)((low[i] & 15) | (high[i] & 3) << 4);
            s->q[at + 32 + i] = (uint8_t)((low[32 + i] & 15) | (high[i] >> 2 & 3) << 4);
            s->q[at + 64 + i] = (uint8_t)(low[i] >> 4 | (high[i] >> 4 & 3) << 4);
            s->q[at + 96 + i] = (uint8_t)(low[32 + i] >> 4 | high[i] >> 6 << 4);
        }
    memcpy(s->sixteenths, block + 192, sizeof s->sixteenths);
    s->scale = ds_read_u16(block + 208);
}

/* 16 scales of 6 bits, less 32: low nibbles in 8 bytes, high pairs in 4. Pairs of bits for elements, then their third bits, which
 * are kept upside down: 0 means less 4. */
static void read_q3_k(const uint8_t *block, span_row *s)
{
    const uint8_t *third = block, *low = block + 32, *scales = block + 96;
    for (size_t h = 0; h < 2 * SPAN_BLOCKS; h++)
        s->sixteenths[h] = (int8_t)(((scales[h % 8] >> h / 8 * 4 & 15) | (scales[8 + h % 4] >> h / 4 * 2 & 3) << 4) - 32);
    for (size_t i = 0; i < SPAN_COLS; i++) {
        int value = (low[i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3) | (third[i % 32] >> i / 32 & 1) << 2;
        s->q[i] = (uint8_t)(value - 4 + 32);
    }
    s->scale = ds_read_u16(block + 108);
}

/* 32 nibbles that count the levels of the IQ4 types. */
static void read_levels(const uint8_t *nibbles, uint8_t *q)
{
    for (size_t c = 0; c < 16; c++) {
        q[c] = (uint8_t)(ds_iq4_levels[nibbles[c] & 15] + 128);
        q[16 + c] = (uint8_t)(ds_iq4_levels[nibbles[c] >> 4] + 128);
    }
}

/* A half times 8 numbers of 6 bits less 32: together they have more bits than a half, and are rounded. */
static void read_iq4_xs(const uint8_t *block, span_row *s)
{
    float scale = ds_f16_to_f32(ds_read_u16(block)) / s->factor;
    unsigned high = ds_read_u16(block + 2);
    for (size_t b = 0; b < SPAN_BLOCKS; b++) {
        int part = (int)((block[4 + b / 2] >> b % 2 * 4 & 15u) | (high >> 2 * b & 3u) << 4) - 32;
        s->halves[b] = ds_f32_to_f16(scale * (float)part);
        read_levels(block + 8 + 16 * b, s->q + b * DS_PACK_COLS);
    }
}

/* The row's factor for that: the largest scale in [2^14, 2^15). */
static float factor_of_iq4_xs(const uint8_t *row, size_t n_blocks, size_t block_bytes)
{
    float largest = 0;
    for (size_t b = 0; b < n_blocks; b++) {
        float scale = fabsf(ds_f16_to_f32(ds_read_u16(row + b * block_bytes))) * 32;
        largest = isfinite(scale) && scale > largest ? scale : largest;
    }
    return largest > 0 ? ldexpf(1, ilogbf(largest) - 14) : 1;
}

/* Blocks of 32: a half float, then the elements. */
static void read_iq4_nl(const uint8_t *block, span_row *s, size_t b)
{
    s->halves[b] = ds_read_u16(block);
    read_levels(block + 2, s->q + b * DS_PACK_COLS);
}

static void read_q8_0(const uint8_t *block, span_row *s, size_t b)
{
    s->halves[b] = ds_read_u16(block);
    for (size_t c = 0; c < DS_PACK_COLS; c++)
        s->q[b * DS_PACK_COLS + c] = block[2 + c] ^ 128;
}

/* 16 bytes: the low halves are the first 16 columns, the high ones the others. */
static void read_nibbles(const uint8_t *bytes, uint8_t *q)
{
    for (size_t c = 0; c < DS_PACK_COLS; c++)
        q[c] = bytes[c % 16] >> c / 16 * 4 & 15;
}

/* 4 bytes before these, with a bit for each column. */
static void read_five_bits(const uint8_t *bytes, uint8_t *q)
{
    uint32_t fifth = ds_read_u32(bytes);
    read_nibbles(bytes + 4, q);
    for (size_t c = 0; c < DS_PACK_COLS; c++)
        q[c] |= (uint8_t)((fifth >> c & 1) << 4);
}

/* The minimum is added there: it is kept with its sign changed. */
static void read_scale_and_minimum(const uint8_t *block, span_row *s, size_t b)
{
    s->halves[b] = ds_read_u16(block);
    s->minima[b] = ds_read_u16(block + 2) ^ 0x8000;
}

static void read_q4_0(const uint8_t *block, span_row *s, size_t b)
{
    s->halves[b] = ds_read_u16(block);
    read_nibbles(block + 2, s->q + b * DS_PACK_COLS);
}

static void read_q4_1(const uint8_t *block, span_row *s, size_t b)
{
    read_scale_and_minimum(block, s, b);
    read_nibbles(block + 4, s->q + b * DS_PACK_COLS);
}

static void read_q5_0(const uint8_t *block, span_row *s, size_t b)
{
    s->halves[b] = ds_read_u16(block);
    read_five_bits(block + 2, s->q + b * DS_PACK_COLS);
}

static void read_q5_1(const uint8_t *block, span_row *s, size_t b)
{
    read_scale_and_minimum(block, s, b);
    read_five_bits(block + 4, s->q + b * DS_PACK_COLS);
}

static const struct {
    ds_type from, to;
    void (*read_span)(const uint8_t *block, span_row *s);
    void (*read_block)(const uint8_t *block, span_row *s, size_t b);
} twins[] = {
    {DS_TYPE_Q4_K, DS_TYPE_P4, read_q4_k, NULL},  {DS_TYPE_Q5_K, DS_TYPE_P5, read_q5_k, NULL},
    {DS_TYPE_Q6_K, DS_TYPE_P6, read_q6_k, NULL},  {DS_TYPE_Q8_0, DS_TYPE_P8, NULL, read_q8_0},
    {DS_TYPE_Q4_0, DS_TYPE_P4S, NULL, read_q4_0}, {DS_TYPE_Q5_0, DS_TYPE_P5S, NULL, read_q5_0},
    {DS_TYPE_Q4_1, DS_TYPE_P4M, NULL, read_q4_1}, {DS_TYPE_Q5_1, DS_TYPE_P5M, NULL, read_q5_1},
    {DS_TYPE_Q3_K, DS_TYPE_P6, read_q3_k, NULL},  {DS_TYPE_IQ4_NL, DS_TYPE_P8, NULL, read_iq4_nl},
    {DS_TYPE_IQ4_XS, DS_TYPE_P8, read_iq4_xs, NULL},
};
enum { N_TWINS = sizeof twins / sizeof *twins };

ds_type ds_packed_twin(ds_type type)
{
    for (size_t t = 0; t < N_TWINS; t++)
        if (twins[t].from == type)
            return twins[t].to;
    return DS_TYPE_COUNT;
}

/* One row of a span; `data` is the row's first block there. */
static void repack_span(size_t twin, const uint8_t *data, size_t block_bytes, size_t n_blocks, span_row *s)
{
    if (twins[twin].read_span != NULL)
        twins[twin].read_span(data, s);
    else
        for (size_t b = 0; b < n_blocks; b++)
            twins[twin].read_block(data + b * block_bytes, s, b);
}

static void repack_group(size_t twin, uint8_t *group, const void *const *rows, size_t n_rows, size_t cols)
{
    size_t block_cols = twins[twin].read_span != NULL ? SPAN_COLS : DS_PACK_COLS;
    size_t block_bytes = ds_type_row_bytes(twins[twin].from, block_cols);
    span_row spans[DS_PACK_ROWS] = {0};
    memset(group, 0, GROUP_HEADER);
    for (size_t row = 0; row < n_rows; row++) {
        bool is_iq4_xs = twins[twin].from == DS_TYPE_IQ4_XS;
        spans[row].factor = is_iq4_xs ? factor_of_iq4_xs(rows[row], cols / SPAN_COLS, block_bytes) : 1;
        store_factor(group, row, spans[row].factor);
    }
    for (size_t c = 0; c < cols; c += SPAN_COLS) {
        size_t n_blocks = blocks_from(cols, c);
        for (size_t row = 0; row < n_rows; row++) {
            if (n_blocks < SPAN_BLOCKS)
                memset(spans[row].halves, 0, sizeof spans[row].halves); /* of the span before */
            repack_span(twin, (const uint8_t *)rows[row] + c / block_cols * block_bytes, block_bytes, n_blocks, &spans[row]);
        }
        store_span(twins[twin].to, group, c / SPAN_COLS, spans, n_blocks);
    }
}

void ds_repack_group(ds_type from, void *group, const void *const *rows, size_t n_rows, size_t cols)
{
    for (size_t t = 0; t < N_TWINS; t++)
        if (twins[t].from == from)
            repack_group(t, group, rows, n_rows, cols);
}

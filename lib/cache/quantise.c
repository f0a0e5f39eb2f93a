/* Rows of the cache in their stored form. All numbers are little-endian. A scale is the upper half of a float (bf16),
 * and a quantised element is its code times the scale of its section.
 *
 * A row has first the elements of parts that are stored as numbers (f32, f16), then the scales of all other parts, then
 * the codes of these; always part by part. MLA's rows, of a latent and a RoPE key, are therefore:
 *   f32, f16   the latent, then the RoPE key
 *   q8         the RoPE key in f16; scales of the latent, one for 64 elements; the latent, a signed byte an element
 *   q6         scales of the latent, one for 128 elements; of the RoPE key, one for 16; then the latent in pairs of 11
 *              bits; then the RoPE key, a signed byte an element
 *
 * A part in pairs is kept rotated (ds_cache_rotate_part): a Walsh-Hadamard transform makes outliers and quiet channels
 * alike, so that few levels serve all. With n elements, n / 2 = m pairs and e = (m + 7) / 8, pair i is elements i and
 * i + m, each of 45 levels, as code = (low + 22) + 45 (high + 22):
 *   8 e bytes  bits 0-7 of the codes of pairs 0, 1, 2, ...
 *   2 e bytes  bits 8-9: byte j has those of pairs j, j + 2 e, j + 4 e, j + 6 e, from its lowest bits on
 *   e bytes    bit 10: byte j has that of pairs j, j + e, ..., j + 7 e, likewise
 * The last of an odd number of elements is stored as the first of the next part: in q6 that of an odd latent lies with
 * the RoPE key.
 *
 * Bytes of V2's shape, 512 + 64: q8 128 + 16 + 512 = 656, 9.1 bits an element; q6 8 + 8 + 352 + 64 = 432, 6.0 bits. */
#include "cache/cache.h"

#include <assert.h>
#include <float.h>
#include <string.h>

enum { BYTE_LEVELS = 127 }; /* on either side of zero */

void ds_cache_rotate_part(const ds_cache_shape *shape, uint32_t part, const ds_kernels *kernels, float *x)
{
    if (shape->parts[part].rotation > 1)
        kernels->rotate(x, shape->parts[part].rotation, shape->parts[part].width);
}

void ds_cache_rotate_row(const ds_cache_shape *shape, const ds_kernels *kernels, float *row)
{
    for (uint32_t p = 0; p < shape->n_parts; p++)
        ds_cache_rotate_part(shape, p, kernels, row + shape->parts[p].first);
}

/* ---- from floats ---- */

uint32_t ds_cache_unfit_part(const ds_cache_shape *shape, const float *row, float *largest)
{
    for (uint32_t p = 0; p < shape->n_parts; p++) {
        const ds_cache_part *part = &shape->parts[p];
        *largest = ds_largest_magnitude(row + part->first, part->width);
        if (!(*largest < part->limit))
            return p;
    }
    return shape->n_parts;
}

/* The scale with which n elements fit into codes of -levels to levels, stored. A section with a NaN or infinity gets
 * NaN: what went wrong stays visible. A section too small for a normal scale gets 0. */
static float choose_scale(const float *x, size_t n, int levels, uint8_t *stored)
{
    uint32_t largest = 0, bits;
    for (size_t i = 0; i < n; i++) {
        memcpy(&bits, &x[i], sizeof bits);
        bits &= 0x7fffffff;
        largest = bits > largest ? bits : largest;
    }
    float scale;
    memcpy(&scale, &largest, sizeof scale);
    scale = scale / (float)levels;
    memcpy(&bits, &scale, sizeof bits);
    if (largest >= 0x7f800000)
        bits = 0x7fc00000;
    else
        bits = scale < FLT_MIN ? 0 : (bits + 0xffff) & 0xffff0000; /* upwards: the largest element must not be cut */
    stored[0] = (uint8_t)(bits >> 16);
    stored[1] = (uint8_t)(bits >> 24);
    memcpy(&scale, &bits, sizeof scale);
    return scale;
}

/* The nearest codes, ties to even: adding 1.5 * 2^23 leaves a float whose last bits are the integer. */
static void quantise(int8_t *codes, uint8_t *scales, const float *x, size_t n, size_t section, int levels)
{
    for (size_t i = 0; i < n; i += section, scales += DS_SCALE_BYTES) {
        size_t m = n - i < section ? n - i : section;
        float scale = choose_scale(x + i, m, levels, scales);
        if (!(scale > 0)) {
            memset(codes + i, 0, m);
            continue;
        }
        float inverse = 1.0f / scale;
        for (size_t j = 0; j < m; j++) {
            float sum = x[i + j] * inverse + 0x1.8p23f;
            int32_t bits;
            memcpy(&bits, &sum, sizeof bits);
            codes[i + j] = (int8_t)(bits - 0x4b400000);
        }
    }
}

static void write_pairs(uint8_t *pairs, const int8_t *codes, size_t n)
{
    size_t half = n / 2, eighth = (half + 7) / 8;
    uint8_t *middle = pairs + 8 * eighth, *top = middle + 2 * eighth;
    memset(pairs, 0, 11 * eighth);
    for (size_t i = 0; i < half; i++) {
        unsigned low = (unsigned)(codes[i] + DS_PAIR_LEVELS / 2);
        unsigned high = (unsigned)(codes[i + half] + DS_PAIR_LEVELS / 2);
        unsigned code = low + high * DS_PAIR_LEVELS;
        pairs[i] = (uint8_t)code;
        middle[i % (2 * eighth)] |= (uint8_t)((code >> 8 & 3) << i / (2 * eighth) * 2);
        top[i % eighth] |= (uint8_t)((code >> 10) << i / eighth);
    }
}

static void write_halves(uint8_t *halves, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint16_t half = ds_f32_to_f16(x[i]);
        halves[2 * i] = (uint8_t)half;
        halves[2 * i + 1] = (uint8_t)(half >> 8);
    }
}

/* Stores the elements that the part's encoding takes, x being the first of them. Codes of pairs take the place of their
 * floats until they are put together. */
static void encode_part(const ds_cache_part *part, float *x, uint8_t *stored)
{
    size_t n = part->stored_width;
    uint8_t *scales = stored + part->scales, *elements = stored + part->elements;
    int8_t *codes = (int8_t *)x;
    switch (part->encoding) {
    case DS_ENCODINGS: return; /* no part has it */
    case DS_ENCODING_F32: memcpy(elements, x, n * sizeof *x); return;
    case DS_ENCODING_F16: write_halves(elements, x, n); return;
    case DS_ENCODING_BYTES_64:
    case DS_ENCODING_BYTES_16: quantise((int8_t *)elements, scales, x, n, part->section, BYTE_LEVELS); return;
    case DS_ENCODING_PAIRS:
        quantise(codes, scales, x, n, part->section, DS_PAIR_LEVELS / 2);
        write_pairs(elements, codes, n);
        return;
    }
}

void ds_cache_encode_row(const ds_cache_shape *shape, const ds_kernels *kernels, float *row, uint8_t *stored)
{
    if (shape->number_bytes == 2) {
        kernels->f32_to_f16((uint16_t *)(void *)stored, row, shape->width);
        return;
    }
    ds_cache_rotate_row(shape, kernels, row);
    for (uint32_t p = 0; p < shape->n_parts; p++)
        encode_part(&shape->parts[p], row + shape->parts[p].stored_first, stored);
}

/* ---- rows from elsewhere ---- */

/* Of n stored numbers of 16 bits, of which those with the bits `exponent` all set are infinities and NaNs. */
static bool are_finite_16(const uint8_t *stored, size_t n, uint16_t exponent)
{
    unsigned largest = 0;
    for (size_t i = 0; i < n; i++) {
        unsigned bits = ds_read_u16(stored + 2 * i) & exponent;
        largest = bits > largest ? bits : largest;
    }
    return largest < exponent;
}

static bool are_finite_32(const uint8_t *stored, size_t n)
{
    int32_t largest = 0;
    for (size_t i = 0; i < n; i++) {
        int32_t bits;
        memcpy(&bits, stored + 4 * i, sizeof bits);
        bits &= 0x7f800000;
        largest = bits > largest ? bits : largest;
    }
    return largest < 0x7f800000;
}

static bool part_is_finite(const ds_cache_part *part, const uint8_t *stored)
{
    size_t n = part->stored_width;
    switch (part->encoding) {
    case DS_ENCODING_F32: return are_finite_32(stored + part->elements, n);
    case DS_ENCODING_F16: return are_finite_16(stored + part->elements, n, 0x7c00);
    case DS_ENCODING_BYTES_64:
    case DS_ENCODING_BYTES_16:
    case DS_ENCODING_PAIRS:
        return are_finite_16(stored + part->scales, (n + part->section - 1) / part->section, 0x7f80);
    case DS_ENCODINGS: break; /* no part has it */
    }
    return true;
}

bool ds_cache_rows_are_finite(const ds_cache_shape *shape, const uint8_t *stored, size_t n)
{
    bool finite = true;
    for (; n > 0 && finite; n--, stored += shape->row_bytes)
        for (uint32_t p = 0; p < shape->n_parts; p++)
            finite = finite && part_is_finite(&shape->parts[p], stored);
    return finite;
}

/* ---- to floats ---- */

static void decode_part(const ds_cache_part *part, const ds_kernels *kernels, const uint8_t *stored, float *x)
{
    size_t n = part->stored_width;
    const uint8_t *scales = stored + part->scales, *elements = stored + part->elements;
    switch (part->encoding) {
    case DS_ENCODINGS: return; /* no part has it */
    case DS_ENCODING_F32: kernels->to_f32[DS_TYPE_F32](x, elements, n); return;
    case DS_ENCODING_F16: kernels->to_f32[DS_TYPE_F16](x, elements, n); return;
    case DS_ENCODING_BYTES_64:
    case DS_ENCODING_BYTES_16: kernels->unpack_q8(x, scales, (const int8_t *)elements, part->section, n); return;
    case DS_ENCODING_PAIRS: kernels->unpack_pairs(x, scales, elements, part->section, n); return;
    }
}

void ds_cache_decode_rows(const ds_cache_shape *shape, const ds_kernels *kernels, const uint8_t *stored, size_t n,
                          float *rows)
{
    if (shape->number_bytes > 1) {
        kernels->to_f32[shape->number_bytes == 4 ? DS_TYPE_F32 : DS_TYPE_F16](rows, stored, n * shape->width);
        return;
    }
    for (size_t t = 0; t < n; t++, stored += shape->row_bytes, rows += shape->width)
        for (uint32_t p = 0; p < shape->n_parts; p++)
            decode_part(&shape->parts[p], kernels, stored, rows + shape->parts[p].stored_first);
}

/* ---- to integers ---- */

const int8_t *ds_cache_codes(const ds_cache_shape *shape, uint32_t part, const uint8_t *stored)
{
    const ds_cache_part *p = &shape->parts[part];
    return p->integers == DS_INTEGERS_IN_PLACE ? (const int8_t *)stored + p->elements : NULL;
}

/* n floats, or halves, as sections of integers. */
static void round_sections(const ds_kernels *kernels, int16_t *row, float *scales, const float *floats,
                           const uint8_t *halves, size_t n)
{
    for (size_t i = 0; i < n; i += DS_SCALE_COLS, scales += DS_PAGE_TOKENS) {
        size_t m = n - i < DS_SCALE_COLS ? n - i : DS_SCALE_COLS;
        *scales = halves != NULL ? kernels->round_halves(row + i, halves + 2 * i, m, DS_MAX_12_BITS)
                                 : kernels->round_row(row + i, floats + i, m, DS_MAX_12_BITS);
        if (m < DS_SCALE_COLS)
            memset(row + i + m, 0, (DS_SCALE_COLS - m) * sizeof *row);
    }
}

/* The scale of each of attention's sections of a part: one stored scale serves one section or several. */
static void read_scales(const ds_cache_part *part, const uint8_t *stored, size_t n_sections, float *scales)
{
    size_t repeat = part->section / DS_SCALE_COLS;
    stored += part->scales;
    for (size_t s = 0; s < n_sections; stored += DS_SCALE_BYTES) {
        float scale = ds_bf16_to_f32(ds_read_u16(stored));
        for (size_t end = s + repeat < n_sections ? s + repeat : n_sections; s < end; s++)
            scales[s * DS_PAGE_TOKENS] = scale;
    }
}

/* One part of one row: n_sections sections of integers, their scales DS_PAGE_TOKENS apart. */
static void part_integers(const ds_cache_part *part, const ds_kernels *kernels, const uint8_t *stored,
                          const float *floats, size_t n_sections, int16_t *row, float *scales)
{
    switch (part->integers) {
    case DS_INTEGERS_IN_PLACE: read_scales(part, stored, n_sections, scales); return;
    case DS_INTEGERS_SPLIT:
        kernels->split_pairs(row, stored + part->elements, part->width);
        read_scales(part, stored, n_sections, scales);
        memset(row + part->width, 0, (n_sections * DS_SCALE_COLS - part->width) * sizeof *row);
        return;
    case DS_INTEGERS_HALVES: round_sections(kernels, row, scales, NULL, stored + part->elements, part->width); return;
    case DS_INTEGERS_ROUNDED: round_sections(kernels, row, scales, floats + part->first, NULL, part->width); return;
    }
}

/* Prefetches one row of the next page with every row that is decoded: the processor waits if more is asked of memory at
 * a time. */
static void fetch_row(const uint8_t *row, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += 64)
        __builtin_prefetch(row + at);
}

void ds_cache_decode_integers(const ds_cache_shape *shape, const ds_kernels *kernels, const uint8_t *stored, size_t n,
                              int16_t *rows, float *scales, float *scratch, const uint8_t *next)
{
    assert(n <= DS_PAGE_TOKENS);
    for (size_t t = 0; t < n; t++, stored += shape->row_bytes) {
        if (next != NULL)
            fetch_row(next + t * shape->row_bytes, shape->row_bytes);
        for (uint32_t p = 0; p < shape->n_parts; p++)
            if (shape->parts[p].integers == DS_INTEGERS_ROUNDED)
                decode_part(&shape->parts[p], kernels, stored, scratch + shape->parts[p].stored_first);
        float *row_scales = scales + t;
        for (uint32_t p = 0; p < shape->n_parts; p++) {
            size_t n_sections = shape->parts[p].integer_sections;
            part_integers(&shape->parts[p], kernels, stored, scratch, n_sections, rows, row_scales);
            rows += n_sections * DS_SCALE_COLS;
            row_scales += n_sections * DS_PAGE_TOKENS;
        }
    }
}

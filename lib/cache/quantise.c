/* Rows of the cache in each element type. All numbers are little-endian; a scale is the upper half of a float (bf16), and a
 * quantised element is its code times the scale of its group. The RoPE part is kept more precise than the latent: an error there
 * costs much more (with 8 bits in place of f16 the perplexity of q8 is off by 0.06 % in place of 0.005 %).
 *
 *   f32, f16   kv_lora_rank latent elements, then qk_rope_head_dim of the RoPE part
 *   q8         the RoPE part in f16; scales of the latent, one for 64 elements; the latent, a signed byte for every element
 *   q6         scales of the latent, one for 128 elements; of the RoPE part, one for 16; then the latent in pairs of 11 bits; then
 *              the RoPE part, a signed byte for every element
 *
 * q6 keeps the latent rotated (ds_cache_rotate): a Walsh-Hadamard transform makes outliers and quiet channels alike, so that few
 * levels serve all. With n latent elements, n / 2 = m pairs and e = (m + 7) / 8, pair i is elements i and i + m, each of 45 levels,
 * as code = (low + 22) + 45 (high + 22):
 *   8 e bytes  bits 0-7 of the codes of pairs 0, 1, 2, ...
 *   2 e bytes  bits 8-9: byte j has those of pairs j, j + 2 e, j + 4 e, j + 6 e, from its lowest bits on
 *   e bytes    bit 10: byte j has that of pairs j, j + e, ..., j + 7 e, likewise
 * The last element of an odd latent counts as the first of the RoPE part.
 * V2's shape, 512 + 64: q8 128 + 16 + 512 = 656 bytes, 9.1 bits an element; q6 8 + 8 + 352 + 64 = 432 bytes, 6.0 bits. */
#include "cache/cache.h"

#include <assert.h>
#include <float.h>
#include <string.h>

enum {
    Q8_GROUP = 64,
    BYTE_LEVELS = 127, /* on either side of zero */
    Q6_GROUP = 128,
    Q6_ROPE_GROUP = 16,
    SCALE_BYTES = 2,
};

static size_t scale_bytes(size_t n, size_t group) { return (n + group - 1) / group * SCALE_BYTES; }

static size_t pair_bytes(size_t n) { return (n / 2 + 7) / 8 * 11; }

/* Where the parts of a row begin, in bytes. */
typedef struct q8_layout {
    size_t scales, codes, end; /* the RoPE part comes first */
} q8_layout;

static q8_layout layout_q8(uint32_t kv_lora_rank, uint32_t qk_rope_head_dim)
{
    q8_layout l = {.scales = (size_t)qk_rope_head_dim * 2};
    l.codes = l.scales + scale_bytes(kv_lora_rank, Q8_GROUP);
    l.end = l.codes + kv_lora_rank;
    return l;
}

typedef struct q6_layout {
    size_t n_latent, n_rope;                      /* elements: an odd last one of the latent goes with the RoPE part */
    size_t rope_scales, pairs, rope_codes, end; /* scales of the latent come first */
} q6_layout;

static q6_layout layout_q6(uint32_t kv_lora_rank, uint32_t qk_rope_head_dim)
{
    uint32_t odd = kv_lora_rank % 2;
    q6_layout l = {.n_latent = kv_lora_rank - odd, .n_rope = (size_t)qk_rope_head_dim + odd};
    l.rope_scales = scale_bytes(l.n_latent, Q6_GROUP);
    l.pairs = l.rope_scales + scale_bytes(l.n_rope, Q6_ROPE_GROUP);
    l.rope_codes = l.pairs + pair_bytes(l.n_latent);
    l.end = l.rope_codes + l.n_rope;
    return l;
}

dsv2_status ds_cache_shape_init(ds_cache_shape *shape, dsv2_cache_type type, uint32_t n_layers, uint32_t kv_lora_rank,
                                uint32_t qk_rope_head_dim)
{
    size_t elements = (size_t)kv_lora_rank + qk_rope_head_dim, row_bytes;
    uint32_t rotation = 1;
    if (type == DSV2_CACHE_DEFAULT)
        type = DSV2_CACHE_Q8;
    switch (type) {
    case DSV2_CACHE_F32: row_bytes = elements * sizeof(float); break;
    case DSV2_CACHE_F16: row_bytes = elements * sizeof(uint16_t); break;
    case DSV2_CACHE_Q8: row_bytes = layout_q8(kv_lora_rank, qk_rope_head_dim).end; break;
    case DSV2_CACHE_Q6:
        row_bytes = layout_q6(kv_lora_rank, qk_rope_head_dim).end;
        rotation = kv_lora_rank & -kv_lora_rank; /* the largest power of two that divides it */
        break;
    default: return ds_fail(DSV2_ERROR_ARGUMENT, "cache_type is %d, expected a dsv2_cache_type", (int)type);
    }
    *shape = (ds_cache_shape){
        .type = type,
        .n_layers = n_layers,
        .kv_lora_rank = kv_lora_rank,
        .qk_rope_head_dim = qk_rope_head_dim,
        .rotation = rotation,
        .row_bytes = row_bytes,
        .layer_bytes = row_bytes * DS_PAGE_TOKENS,
        .page_bytes = row_bytes * DS_PAGE_TOKENS * n_layers,
    };
    return DSV2_OK;
}

void ds_cache_rotate(const ds_cache_shape *shape, const ds_kernels *kernels, float *latent)
{
    if (shape->rotation > 1)
        kernels->rotate(latent, shape->rotation, shape->kv_lora_rank);
}

/* The scale with which n elements fit into codes of -levels to levels, stored. A group with a NaN or infinity gets NaN: what went
 * wrong stays visible. 0 for a group too small for a normal scale. */
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
static void quantise(int8_t *codes, uint8_t *scales, const float *x, size_t n, size_t group, int levels)
{
    for (size_t i = 0; i < n; i += group, scales += SCALE_BYTES) {
        size_t m = n - i < group ? n - i : group;
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

static void pack_pairs(uint8_t *pairs, const int8_t *codes, size_t n)
{
    size_t half = n / 2, eighth = (half + 7) / 8;
    uint8_t *middle = pairs + 8 * eighth, *top = middle + 2 * eighth;
    memset(pairs, 0, 11 * eighth);
    for (size_t i = 0; i < half; i++) {
        unsigned code = (unsigned)(codes[i] + DS_PAIR_LEVELS / 2) + (unsigned)(codes[i + half] + DS_PAIR_LEVELS / 2) * DS_PAIR_LEVELS;
        pairs[i] = (uint8_t)code;
        middle[i % (2 * eighth)] |= (uint8_t)((code >> 8 & 3) << i / (2 * eighth) * 2);
        top[i % eighth] |= (uint8_t)((code >> 10) << i / eighth);
    }
}

static void encode_q8(const ds_cache_shape *shape, const float *row, uint8_t *stored)
{
    q8_layout l = layout_q8(shape->kv_lora_rank, shape->qk_rope_head_dim);
    for (uint32_t i = 0; i < shape->qk_rope_head_dim; i++) {
        uint16_t half = ds_f32_to_f16(row[shape->kv_lora_rank + i]);
        stored[2 * i] = (uint8_t)half;
        stored[2 * i + 1] = (uint8_t)(half >> 8);
    }
    quantise((int8_t *)stored + l.codes, stored + l.scales, row, shape->kv_lora_rank, Q8_GROUP, BYTE_LEVELS);
}

/* The codes of the latent take the place of its floats on their way into pairs. */
static void encode_q6(const ds_cache_shape *shape, const ds_kernels *kernels, float *row, uint8_t *stored)
{
    q6_layout l = layout_q6(shape->kv_lora_rank, shape->qk_rope_head_dim);
    ds_cache_rotate(shape, kernels, row);
    quantise((int8_t *)stored + l.rope_codes, stored + l.rope_scales, row + l.n_latent, l.n_rope, Q6_ROPE_GROUP, BYTE_LEVELS);
    int8_t *codes = (int8_t *)row;
    quantise(codes, stored, row, l.n_latent, Q6_GROUP, DS_PAIR_LEVELS / 2);
    pack_pairs(stored + l.pairs, codes, l.n_latent);
}

void ds_cache_encode_row(const ds_cache_shape *shape, const ds_kernels *kernels, float *row, uint8_t *stored)
{
    size_t elements = (size_t)shape->kv_lora_rank + shape->qk_rope_head_dim;
    switch (shape->type) {
    case DSV2_CACHE_DEFAULT: return; /* no shape has it */
    case DSV2_CACHE_F32: memcpy(stored, row, elements * sizeof *row); return;
    case DSV2_CACHE_F16: kernels->f32_to_f16((uint16_t *)(void *)stored, row, elements); return;
    case DSV2_CACHE_Q8: encode_q8(shape, row, stored); return;
    case DSV2_CACHE_Q6: encode_q6(shape, kernels, row, stored); return;
    }
}

static void decode_q8(const ds_cache_shape *shape, const ds_kernels *kernels, const uint8_t *stored, size_t n, float *rows)
{
    uint32_t lora = shape->kv_lora_rank, rope = shape->qk_rope_head_dim;
    q8_layout l = layout_q8(lora, rope);
    for (size_t t = 0; t < n; t++, stored += l.end, rows += lora + rope) {
        kernels->unpack_q8(rows, stored + l.scales, (const int8_t *)stored + l.codes, Q8_GROUP, lora);
        kernels->to_f32[DS_TYPE_F16](rows + lora, stored, rope);
    }
}

static void decode_q6(const ds_cache_shape *shape, const ds_kernels *kernels, const uint8_t *stored, size_t n, float *rows)
{
    q6_layout l = layout_q6(shape->kv_lora_rank, shape->qk_rope_head_dim);
    for (size_t t = 0; t < n; t++, stored += l.end, rows += l.n_latent + l.n_rope) {
        kernels->unpack_pairs(rows, stored, stored + l.pairs, Q6_GROUP, l.n_latent);
        kernels->unpack_q8(rows + l.n_latent, stored + l.rope_scales, (const int8_t *)stored + l.rope_codes, Q6_ROPE_GROUP, l.n_rope);
    }
}

void ds_cache_decode_rows(const ds_cache_shape *shape, const ds_kernels *kernels, const uint8_t *stored, size_t n, float *rows)
{
    size_t elements = (size_t)shape->kv_lora_rank + shape->qk_rope_head_dim;
    switch (shape->type) {
    case DSV2_CACHE_DEFAULT: return; /* no shape has it */
    case DSV2_CACHE_F32: kernels->to_f32[DS_TYPE_F32](rows, stored, n * elements); return;
    case DSV2_CACHE_F16: kernels->to_f32[DS_TYPE_F16](rows, stored, n * elements); return;
    case DSV2_CACHE_Q8: decode_q8(shape, kernels, stored, n, rows); return;
    case DSV2_CACHE_Q6: decode_q6(shape, kernels, stored, n, rows); return;
    }
}

bool ds_cache_is_quantised(const ds_cache_shape *shape) { return shape->type == DSV2_CACHE_Q8 || shape->type == DSV2_CACHE_Q6; }

const int8_t *ds_cache_codes(const ds_cache_shape *shape, const uint8_t *stored)
{
    if (shape->type != DSV2_CACHE_Q8)
        return NULL;
    return (const int8_t *)stored + layout_q8(shape->kv_lora_rank, shape->qk_rope_head_dim).codes;
}

/* n floats, or halves, as groups of integers: returns the number of groups. */
static size_t round_groups(const ds_kernels *kernels, int16_t *row, float *scales, const float *floats, const uint8_t *halves, size_t n)
{
    size_t g = 0;
    for (size_t i = 0; i < n; i += DS_SCALE_COLS, g++) {
        size_t m = n - i < DS_SCALE_COLS ? n - i : DS_SCALE_COLS;
        scales[g * DS_PAGE_TOKENS] = halves != NULL ? kernels->round_halves(row + i, halves + 2 * i, m, DS_NARROW)
                                                      : kernels->round_row(row + i, floats + i, m, DS_NARROW);
        if (m < DS_SCALE_COLS)
            memset(row + i + m, 0, (DS_SCALE_COLS - m) * sizeof *row);
    }
    return g;
}

/* What the groups of a latent's stored integers are to be multiplied by: returns the number of groups. */
static size_t take_scales(float *scales, const uint8_t *stored_scales, size_t stored_group, size_t n)
{
    size_t groups = (n + DS_SCALE_COLS - 1) / DS_SCALE_COLS;
    for (size_t g = 0; g < groups; g++)
        scales[g * DS_PAGE_TOKENS] = ds_bf16_to_f32(ds_read_u16(stored_scales + g * DS_SCALE_COLS / stored_group * SCALE_BYTES));
    return groups;
}

/* A few lines with every row that is decoded: more at a time than the processor can wait for would hold it up. */
static void fetch_row(const uint8_t *row, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += 64)
        __builtin_prefetch(row + at);
}

void ds_cache_decode_integers(const ds_cache_shape *shape, const ds_kernels *kernels, const uint8_t *stored, size_t n,
                              int16_t *rows, float *scales, float *scratch, const uint8_t *next)
{
    _Static_assert(Q8_GROUP % (int)DS_SCALE_COLS == 0 && Q6_GROUP % (int)DS_SCALE_COLS == 0, "a group has one stored scale");
    assert(n <= DS_PAGE_TOKENS);
    uint32_t lora = shape->kv_lora_rank, rope = shape->qk_rope_head_dim;
    q8_layout q8 = layout_q8(lora, rope);
    q6_layout q6 = layout_q6(lora, rope);
    for (size_t t = 0; t < n; t++, stored += shape->row_bytes, scales++) {
        size_t groups;
        const uint8_t *halves = NULL;
        if (next != NULL)
            fetch_row(next + t * shape->row_bytes, shape->row_bytes);
        if (shape->type == DSV2_CACHE_Q8) {
            groups = take_scales(scales, stored + q8.scales, Q8_GROUP, lora);
            halves = stored;
        } else if (q6.n_latent == lora) {
            kernels->split_pairs(rows, stored + q6.pairs, lora);
            groups = take_scales(scales, stored, Q6_GROUP, lora);
            memset(rows + lora, 0, (groups * DS_SCALE_COLS - lora) * sizeof *rows);
            kernels->unpack_q8(scratch + lora, stored + q6.rope_scales, (const int8_t *)stored + q6.rope_codes, Q6_ROPE_GROUP, rope);
        } else { /* the last element of the latent has a scale of its own */
            ds_cache_decode_rows(shape, kernels, stored, 1, scratch);
            groups = round_groups(kernels, rows, scales, scratch, NULL, lora);
        }
        rows += groups * DS_SCALE_COLS;
        groups = round_groups(kernels, rows, scales + groups * DS_PAGE_TOKENS, scratch + lora, halves, rope);
        rows += groups * DS_SCALE_COLS;
    }
}

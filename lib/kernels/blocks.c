/* Block types of 32 elements hold one scale and perhaps a minimum; those of 256 hold sections of 16 or 32 elements,
 * whose scales are small integers that one scale multiplies. Scales and minima in half precision lie anywhere: no
 * address is aligned. */
#include "kernels/blocks.h"

#include <assert.h>
#include <string.h>

enum { SMALL = 32, LARGE = 256 }; /* elements of a block */

/* ---- integers ---- */

/* 32 elements of 4 bits: byte i has elements i and 16 + i, low bits first. */
static void read_nibbles(const uint8_t *bytes, uint8_t *q)
{
    for (size_t i = 0; i < SMALL / 2; i++) {
        q[i] = bytes[i] & 15;
        q[SMALL / 2 + i] = bytes[i] >> 4;
    }
}

/* 32 elements of 5 bits: a number whose bit i is the fifth of element i, then nibbles. */
static void read_five_bits(const uint8_t *bytes, uint8_t *q)
{
    uint32_t fifth = ds_read_u32(bytes);
    read_nibbles(bytes + 4, q);
    for (size_t i = 0; i < SMALL; i++)
        q[i] |= (uint8_t)((fifth >> i & 1) << 4);
}

/* 256 elements of 4 bits: 64 share 32 bytes, whose low nibbles come first. */
static void read_large_nibbles(const uint8_t *bytes, uint8_t *q)
{
    for (size_t at = 0; at < LARGE; at += 64, bytes += 32)
        for (size_t i = 0; i < 32; i++) {
            q[at + i] = bytes[i] & 15;
            q[at + 32 + i] = bytes[i] >> 4;
        }
}

/* 256 elements of 2 bits: 128 share 32 bytes, those 32 apart one byte, low bits first. */
static void read_crumbs(const uint8_t *bytes, uint8_t *q)
{
    for (size_t i = 0; i < LARGE; i++)
        q[i] = bytes[i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3;
}

/* The levels of the IQ4 types, closer together around zero, where weights are; 128 more, as P8 has them. */
static const uint8_t levels[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};

static void read_levels(const uint8_t *nibbles, uint8_t *q)
{
    for (size_t i = 0; i < SMALL / 2; i++) {
        q[i] = levels[nibbles[i] & 15];
        q[SMALL / 2 + i] = levels[nibbles[i] >> 4];
    }
}

/* ---- blocks of 32: a scale, perhaps a minimum, and integers ---- */

static void read_scale(const uint8_t *block, ds_block_scales *s)
{
    s->scale = ds_read_u16(block);
    s->minimum = 0;
    s->scales[0] = 1;
    s->minima[0] = 0;
}

/* These formats add their minimum: its sign is changed here. */
static void read_scale_and_minimum(const uint8_t *block, ds_block_scales *s)
{
    read_scale(block, s);
    s->minimum = ds_read_u16(block + 2) ^ 0x8000;
    s->minima[0] = 1;
}

static void decode_q8_0(const uint8_t *block, uint8_t *q, ds_block_scales *s)
{
    read_scale(block, s);
    for (size_t i = 0; i < SMALL; i++)
        q[i] = block[2 + i] ^ 128;
}

static void decode_q4_0(const uint8_t *block, uint8_t *q, ds_block_scales *s)
{
    read_scale(block, s);
    read_nibbles(block + 2, q);
}

static void decode_q4_1(const uint8_t *block, uint8_t *q, ds_block_scales *s)
{
    read_scale_and_minimum(block, s);
    read_nibbles(block + 4, q);
}

static void decode_q5_0(const uint8_t *block, uint8_t *q, ds_block_scales *s)
{
    read_scale(block, s);
    read_five_bits(block + 2, q);
}

static void decode_q5_1(const uint8_t *block, uint8_t *q, ds_block_scales *s)
{
    read_scale_and_minimum(block, s);
    read_five_bits(block + 4, q);
}

static void decode_iq4_nl(const uint8_t *block, uint8_t *q, ds_block_scales *s)
{
    read_scale(block, s);
    read_levels(block + 2, q);
}

/* ---- blocks of 256 ---- */

static void no_minima(ds_block_scales *s)
{
    s->minimum = 0;
    memset(s->minima, 0, sizeof s->minima);
}

/* Sections of 16. A byte has a section's scale in its low half and its minimum in the high half. */
static void decode_q2_k(const uint8_t *block, uint8_t *q, ds_block_scales *s)
{
    s->scale = ds_read_u16(block + 80);
    s->minimum = ds_read_u16(block + 82);
    for (size_t i = 0; i < 16; i++) {
        s->scales[i] = block[i] & 15;
        s->minima[i] = block[i] >> 4;
    }
    read_crumbs(block + 16, q);
}

/* Sections of 16. Scales have 6 bits, less 32: low nibbles in 8 bytes, high pairs of bits in 4. An element has 3
 * bits, less 4. The third bits lie apart: element 32 k + i has bit k of byte i. */
static void decode_q3_k(const uint8_t *block, uint8_t *q, ds_block_scales *s)
{
    const uint8_t *third = block, *scales = block + 96;
    no_minima(s);
    s->scale = ds_read_u16(block + 108);
    for (size_t i = 0; i < 16; i++)
        s->scales[i] = (int8_t)(((scales[i % 8] >> i / 8 * 4 & 15) | (scales[8 + i % 4] >> i / 4 * 2 & 3) << 4) - 32);
    read_crumbs(block + 32, q);
    for (size_t i = 0; i < LARGE; i++)
        q[i] = (uint8_t)((q[i] | (third[i % 32] >> i / 32 & 1) << 2) - 4 + 32);
}

/* Q4_K and Q5_K: sections of 32, whose scale and minimum have 6 bits each, in 12 bytes. The first four pairs are the
 * low parts of bytes 0 to 3 and 4 to 7; the last four have their low nibbles in bytes 8 to 11 and their high two
 * bits atop the first. */
static void read_six_bits(const uint8_t *block, ds_block_scales *s)
{
    s->scale = ds_read_u16(block);
    s->minimum = ds_read_u16(block + 2);
    const uint8_t *bytes = block + 4;
    for (size_t i = 0; i < 4; i++) {
        s->scales[i] = bytes[i] & 63;
        s->minima[i] = bytes[4 + i] & 63;
        s->scales[4 + i] = (int8_t)((bytes[8 + i] & 15) | bytes[i] >> 6 << 4);
        s->minima[4 + i] = (uint8_t)(bytes[8 + i] >> 4 | bytes[4 + i] >> 6 << 4);
    }
}

static void decode_q4_k(const uint8_t *block, uint8_t *q, ds_block_scales *s)
{
    read_six_bits(block, s);
    read_large_nibbles(block + 16, q);
}

/* Fifth bits lie apart: bit k of byte i is that of element 32 k + i. */
static void decode_q5_k(const uint8_t *block, uint8_t *q, ds_block_scales *s)
{
    read_six_bits(block, s);
    read_large_nibbles(block + 48, q);
    for (size_t k = 0; k < LARGE / 32; k++)
        for (size_t i = 0; i < 32; i++)
            q[32 * k + i] |= (uint8_t)((block[16 + i] >> k & 1) << 4);
}

/* Sections of 16 with signed bytes as scales. 128 elements share 64 bytes of nibbles and 32 of high pairs of bits. */
static void decode_q6_k(const uint8_t *block, uint8_t *q, ds_block_scales *s)
{
    const uint8_t *low = block, *high = block + 128;
    no_minima(s);
    s->scale = ds_read_u16(block + 208);
    memcpy(s->scales, block + 192, sizeof s->scales);
    for (size_t at = 0; at < LARGE; at += 128, low += 64, high += 32)
        for (size_t i = 0; i < 32; i++) {
            q[at + i] = (uint8_t)((low[i] & 15) | (high[i] & 3) << 4);
            q[at + 32 + i] = (uint8_t)((low[32 + i] & 15) | (high[i] >> 2 & 3) << 4);
            q[at + 64 + i] = (uint8_t)(low[i] >> 4 | (high[i] >> 4 & 3) << 4);
            q[at + 96 + i] = (uint8_t)(low[32 + i] >> 4 | high[i] >> 6 << 4);
        }
}

/* Sections of 32. Scales have 6 bits, less 32: high pairs of bits in a number of 16, low nibbles in 4 bytes. */
static void decode_iq4_xs(const uint8_t *block, uint8_t *q, ds_block_scales *s)
{
    unsigned high = ds_read_u16(block + 2);
    no_minima(s);
    s->scale = ds_read_u16(block);
    for (size_t i = 0; i < 8; i++) {
        s->scales[i] = (int8_t)((int)((block[4 + i / 2] >> i % 2 * 4 & 15u) | (high >> 2 * i & 3u) << 4) - 32);
        read_levels(block + 8 + 16 * i, q + 32 * i);
    }
}

/* ---- the table, and floats ---- */

const ds_block_format ds_block_formats[DS_TYPE_COUNT] = {
#define BLOCK(TYPE, name, public, gguf, elements, bytes, section, zero, twin, text) \
    [DS_TYPE_##TYPE] = {decode_##name, elements, bytes, (elements) / (section)},
#include "kernels/types.def"
};

/* `f` is constant wherever this is inlined. */
static inline __attribute__((always_inline)) void blocks_to_f32(ds_block_format f, int zero, float *out,
                                                                const uint8_t *in, size_t n)
{
    assert(n % f.elements == 0);
    size_t section = f.elements / f.n_sections;
    for (; n > 0; n -= f.elements, in += f.bytes) {
        uint8_t q[DS_MAX_BLOCK];
        ds_block_scales s;
        f.decode(in, q, &s);
        float scale = ds_f16_to_f32(s.scale), minimum = ds_f16_to_f32(s.minimum);
        for (size_t at = 0; at < f.n_sections; at++, out += section) {
            float step = scale * (float)s.scales[at], least = minimum * (float)s.minima[at];
            for (size_t i = 0; i < section; i++)
                out[i] = step * (float)(q[at * section + i] - zero) - least;
        }
    }
}

#define BLOCK(TYPE, name, public, gguf, elements, bytes, section, zero, twin, text)                                    \
    void ds_##name##_to_f32(float *out, const void *in, size_t n)                                                      \
    {                                                                                                                  \
        blocks_to_f32((ds_block_format){decode_##name, elements, bytes, (elements) / (section)}, zero, out, in, n);    \
    }
#include "kernels/types.def"

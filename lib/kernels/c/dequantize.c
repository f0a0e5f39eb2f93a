/* The block types of GGUF files. An element is scale * integer, or scale * integer - minimum; small blocks hold 32 elements, "K"
 * blocks 256 in groups of 16 or 32 whose scales are integers themselves, multiplied by one float for the block. Scales are half
 * floats. Products are rounded in the order in which the formats define them, so that the floats are those of any other reader. */
#include "kernels/c/dequantize.h"

#include "base/base.h"

enum {
    SMALL = 32, /* elements of a small block */
    LARGE = 256 /* of a K block */
};

static float half(const uint8_t *in) { return ds_f16_to_f32(ds_read_u16(in)); }

/* Element i of 32 that are four bits each: byte i % 16 has elements i and i + 16, low bits first. */
static unsigned nibble(const uint8_t *in, unsigned i) { return i < 16 ? in[i] & 15u : in[i - 16] >> 4; }

void ds_q8_0_to_f32(float *out, const void *in, size_t n)
{
    const uint8_t *block = in;
    for (; n > 0; n -= SMALL, out += SMALL, block += 34) {
        float scale = half(block);
        for (unsigned i = 0; i < SMALL; i++)
            out[i] = scale * (float)(int8_t)block[2 + i];
    }
}

void ds_q4_0_to_f32(float *out, const void *in, size_t n)
{
    const uint8_t *block = in;
    for (; n > 0; n -= SMALL, out += SMALL, block += 18) {
        float scale = half(block);
        for (unsigned i = 0; i < SMALL; i++)
            out[i] = scale * (float)((int)nibble(block + 2, i) - 8);
    }
}

void ds_q4_1_to_f32(float *out, const void *in, size_t n)
{
    const uint8_t *block = in;
    for (; n > 0; n -= SMALL, out += SMALL, block += 20) {
        float scale = half(block), minimum = half(block + 2);
        for (unsigned i = 0; i < SMALL; i++)
            out[i] = scale * (float)nibble(block + 4, i) + minimum;
    }
}

/* The fifth bits of 32 elements are one 32-bit number. */
void ds_q5_0_to_f32(float *out, const void *in, size_t n)
{
    const uint8_t *block = in;
    for (; n > 0; n -= SMALL, out += SMALL, block += 22) {
        float scale = half(block);
        uint32_t fifth = ds_read_u32(block + 2);
        for (unsigned i = 0; i < SMALL; i++)
            out[i] = scale * (float)((int)(nibble(block + 6, i) | (fifth >> i & 1) << 4) - 16);
    }
}

void ds_q5_1_to_f32(float *out, const void *in, size_t n)
{
    const uint8_t *block = in;
    for (; n > 0; n -= SMALL, out += SMALL, block += 24) {
        float scale = half(block), minimum = half(block + 2);
        uint32_t fifth = ds_read_u32(block + 4);
        for (unsigned i = 0; i < SMALL; i++)
            out[i] = scale * (float)(nibble(block + 8, i) | (fifth >> i & 1) << 4) + minimum;
    }
}

/* Element i of 256 that are two bits each: 32 bytes hold 128 elements, those 32 apart in one byte. */
static unsigned crumb(const uint8_t *in, unsigned i) { return in[i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3u; }

/* Groups of 16; a byte has a group's scale in its low half, its minimum's in the high. */
void ds_q2_k_to_f32(float *out, const void *in, size_t n)
{
    const uint8_t *block = in;
    for (; n > 0; n -= LARGE, out += LARGE, block += 84) {
        float scale = half(block + 80), minimum = half(block + 82);
        for (unsigned i = 0; i < LARGE; i++) {
            uint8_t group = block[i / 16];
            out[i] = scale * (float)(group & 15) * (float)crumb(block + 16, i) - minimum * (float)(group >> 4);
        }
    }
}

/* Groups of 16 with six-bit scales, offset by 32: four low bits in eight bytes, two high bits in four. The third bit of an
 * element is kept apart and means + 4 - 4 the wrong way round: set, nothing is subtracted. */
void ds_q3_k_to_f32(float *out, const void *in, size_t n)
{
    const uint8_t *block = in;
    for (; n > 0; n -= LARGE, out += LARGE, block += 110) {
        const uint8_t *third = block, *scales = block + 96;
        float scale = half(block + 108);
        for (unsigned i = 0; i < LARGE; i++) {
            unsigned group = i / 16;
            unsigned low = scales[group % 8] >> group / 8 * 4 & 15u, high = scales[8 + group % 4] >> group / 4 * 2 & 3u;
            int value = (int)crumb(block + 32, i) - (third[i % 32] >> i / 32 & 1 ? 0 : 4);
            out[i] = scale * (float)((int)(low | high << 4) - 32) * (float)value;
        }
    }
}

/* Scale and minimum of group g of eight, six bits each: groups 0 to 3 have bytes of their own, whose two upper bits belong to
 * groups 4 to 7. */
static void six_bits(const uint8_t *in, unsigned g, unsigned *scale, unsigned *minimum)
{
    if (g < 4) {
        *scale = in[g] & 63u;
        *minimum = in[g + 4] & 63u;
    } else {
        *scale = (in[g + 4] & 15u) | in[g - 4] >> 6 << 4;
        *minimum = in[g + 4] >> 4 | in[g] >> 6 << 4;
    }
}

/* Groups of 32; 32 bytes have the elements of two groups, low bits first. */
void ds_q4_k_to_f32(float *out, const void *in, size_t n)
{
    const uint8_t *block = in;
    for (; n > 0; n -= LARGE, out += LARGE, block += 144) {
        float scale = half(block), minimum = half(block + 2);
        for (unsigned g = 0; g < 8; g++) {
            unsigned s, m;
            six_bits(block + 4, g, &s, &m);
            float step = scale * (float)s, least = minimum * (float)m;
            for (unsigned i = 0; i < 32; i++)
                out[32 * g + i] = step * (float)(block[16 + g / 2 * 32 + i] >> g % 2 * 4 & 15) - least;
        }
    }
}

/* The same with fifth bits: bit g of byte i is that of element i of group g. */
void ds_q5_k_to_f32(float *out, const void *in, size_t n)
{
    const uint8_t *block = in;
    for (; n > 0; n -= LARGE, out += LARGE, block += 176) {
        float scale = half(block), minimum = half(block + 2);
        for (unsigned g = 0; g < 8; g++) {
            unsigned s, m;
            six_bits(block + 4, g, &s, &m);
            float step = scale * (float)s, least = minimum * (float)m;
            for (unsigned i = 0; i < 32; i++) {
                unsigned low = block[48 + g / 2 * 32 + i] >> g % 2 * 4 & 15u, fifth = block[16 + i] >> g & 1u;
                out[32 * g + i] = step * (float)(low | fifth << 4) - least;
            }
        }
    }
}

/* Groups of 16 with signed bytes as scales. 64 bytes have the low four bits of 128 elements, those 64 apart in one byte. */
void ds_q6_k_to_f32(float *out, const void *in, size_t n)
{
    const uint8_t *block = in;
    for (; n > 0; n -= LARGE, out += LARGE, block += 210) {
        float scale = half(block + 208);
        for (unsigned i = 0; i < LARGE; i++) {
            unsigned low = block[i / 128 * 64 + i % 64] >> i % 128 / 64 * 4 & 15u, high = crumb(block + 128, i);
            out[i] = scale * (float)(int8_t)block[192 + i / 16] * (float)((int)(low | high << 4) - 32);
        }
    }
}

const int8_t ds_iq4_levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

void ds_iq4_nl_to_f32(float *out, const void *in, size_t n)
{
    const uint8_t *block = in;
    for (; n > 0; n -= SMALL, out += SMALL, block += 18) {
        float scale = half(block);
        for (unsigned i = 0; i < SMALL; i++)
            out[i] = scale * (float)ds_iq4_levels[nibble(block + 2, i)];
    }
}

/* Groups of 32 with six-bit scales, offset by 32: two high bits in a 16-bit number, four low bits in half bytes. */
void ds_iq4_xs_to_f32(float *out, const void *in, size_t n)
{
    const uint8_t *block = in;
    for (; n > 0; n -= LARGE, out += LARGE, block += 136) {
        float scale = half(block);
        unsigned high = ds_read_u16(block + 2);
        for (unsigned g = 0; g < 8; g++) {
            unsigned s = (block[4 + g / 2] >> g % 2 * 4 & 15u) | (high >> 2 * g & 3u) << 4;
            float step = scale * (float)((int)s - 32);
            for (unsigned i = 0; i < 32; i++)
                out[32 * g + i] = step * (float)ds_iq4_levels[nibble(block + 8 + 16 * g, i)];
        }
    }
}

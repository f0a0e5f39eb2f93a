/* The quantised rows of the latent KV cache (lib/cache/quantise.c has their layout): reading them, and their
 * rotation.
 *
 * A template in plain C: each set's file includes it, so that the compiler makes vectors with that set's
 * instructions. Every result is one expression of floats or integers whatever the width of a vector, so all sets
 * give the same bits. */
#ifndef DS_LIB_KERNELS_LATENT_TEMPLATE_H
#define DS_LIB_KERNELS_LATENT_TEMPLATE_H

#include "kernels/kernels.h"

#include <math.h>
#include <string.h>

static inline float latent_scale(const uint8_t *bf16) { return ds_bf16_to_f32(ds_read_u16(bf16)); }

/* One stage of the transform on 2h elements. */
static inline void latent_butterfly(float *restrict low, float *restrict high, size_t h)
{
    for (size_t j = 0; j < h; j++) {
        float a = low[j], b = high[j];
        low[j] = a + b;
        high[j] = a - b;
    }
}

/* The transform's stages 1, 2, 4 and 8, within each 16 elements. 256 elements are turned as a square of 16 x 16 first:
 * then these stages add whole rows. */
static inline void latent_squares(float *x, size_t n)
{
    for (size_t i = 0; i < n; i += 256) {
        float turned[256];
        for (size_t r = 0; r < 16; r++)
            for (size_t c = 0; c < 16; c++)
                turned[c * 16 + r] = x[i + r * 16 + c];
        for (size_t h = 1; h < 16; h *= 2)
            for (size_t r = 0; r < 16; r += 2 * h)
                latent_butterfly(turned + r * 16, turned + (r + h) * 16, h * 16);
        for (size_t r = 0; r < 16; r++)
            for (size_t c = 0; c < 16; c++)
                x[i + r * 16 + c] = turned[c * 16 + r];
    }
}

/* The Walsh-Hadamard transform of each block of `block` elements (a power of two that divides n), divided by
 * sqrt(block): its own inverse. */
static void latent_rotate(float *x, size_t block, size_t n)
{
    size_t h = 1;
    if (block >= 256) {
        latent_squares(x, n);
        h = 16;
    }
    for (; h < block; h *= 2)
        for (size_t i = 0; i < n; i += 2 * h)
            latent_butterfly(x + i, x + i + h, h);
    float scale = 1.0f / sqrtf((float)block);
    for (size_t i = 0; i < n; i++)
        x[i] *= scale;
}

static void latent_unpack_q8(float *out, const uint8_t *scales, const int8_t *codes, size_t section, size_t n)
{
    for (size_t i = 0; i < n; i += section, scales += 2) {
        float scale = latent_scale(scales);
        size_t m = n - i < section ? n - i : section;
        for (size_t j = 0; j < m; j++)
            out[i + j] = (float)codes[i + j] * scale;
    }
}

/* Times this, over 2^16: the division of a pair's code by DS_PAIR_LEVELS, exact up to 2047. */
enum { LATENT_DIVIDER = 1457 };

/* m pairs: the low byte of a pair's code, then two bits from `middle`, then one from `top`. Code / 45 is the high
 * element. */
static inline __attribute__((always_inline)) void latent_split_part(int16_t *restrict low_out,
                                                                    int16_t *restrict high_out,
                                                                    const uint8_t *restrict low,
                                                                    const uint8_t *restrict middle, size_t middle_shift,
                                                                    const uint8_t *restrict top, size_t top_shift,
                                                                    size_t m)
{
    for (size_t j = 0; j < m; j++) {
        uint16_t two = (uint16_t)(middle[j] << (8 - middle_shift) & 0x300);
        uint16_t one = (uint16_t)(top[j] << (10 - top_shift) & 0x400);
        uint16_t code = (uint16_t)(low[j] | two | one), high = (uint16_t)((uint32_t)code * LATENT_DIVIDER >> 16);
        low_out[j] = (int16_t)(code - high * DS_PAIR_LEVELS - DS_PAIR_LEVELS / 2);
        high_out[j] = (int16_t)(high - DS_PAIR_LEVELS / 2);
    }
}

static inline __attribute__((always_inline)) void latent_split(int16_t *out, const uint8_t *pairs, size_t n)
{
    size_t half = n / 2, eighth = (half + 7) / 8;
    const uint8_t *middle = pairs + 8 * eighth, *top = middle + 2 * eighth;
    _Pragma("GCC unroll 8")
    for (size_t part = 0; part < 8; part++) {
        size_t first = part * eighth, m = first >= half ? 0 : half - first < eighth ? half - first : eighth;
        latent_split_part(out + first, out + half + first, pairs + first, middle + part % 2 * eighth, part / 2 * 2, top,
                          part, m);
    }
}

/* The shape of all published models is known when this is compiled: that takes a sixth of the time. */
static void latent_split_pairs(int16_t *out, const uint8_t *pairs, size_t n)
{
    if (n == 512)
        latent_split(out, pairs, 512);
    else
        latent_split(out, pairs, n);
}

/* The integers lie in the last half of `out` until their floats, section by section, take their place. */
static void latent_unpack_pairs(float *out, const uint8_t *scales, const uint8_t *pairs, size_t section, size_t n)
{
    int16_t *codes = (int16_t *)(void *)(out + n / 2), code;
    latent_split_pairs(codes, pairs, n);
    for (size_t i = 0; i < n; scales += 2) {
        float scale = latent_scale(scales);
        for (size_t end = n - i < section ? n : i + section; i < end; i++) {
            memcpy(&code, codes + i, sizeof code); /* the compiler may put a plain read behind the writing of floats */
            out[i] = (float)code * scale;
        }
    }
}

#define LATENT_KERNELS .rotate = latent_rotate, .unpack_q8 = latent_unpack_q8, .split_pairs = latent_split_pairs, \
                       .unpack_pairs = latent_unpack_pairs

#endif

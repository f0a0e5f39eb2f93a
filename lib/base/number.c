#include "base/base.h"

#include <string.h>

uint32_t ds_read_u32(const void *bytes)
{
    const uint8_t *b = bytes;
    return (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}

uint64_t ds_read_u64(const void *bytes)
{
    return (uint64_t)ds_read_u32(bytes) | (uint64_t)ds_read_u32((const uint8_t *)bytes + 4) << 32;
}

void ds_write_u32(void *bytes, uint32_t value)
{
    uint8_t *b = bytes;
    for (int i = 0; i < 4; i++)
        b[i] = (uint8_t)(value >> 8 * i);
}

void ds_write_u64(void *bytes, uint64_t value)
{
    ds_write_u32(bytes, (uint32_t)value);
    ds_write_u32((uint8_t *)bytes + 4, (uint32_t)(value >> 32));
}

static float from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint32_t to_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

uint16_t ds_f32_to_bf16(float value)
{
    uint32_t bits = to_bits(value);
    if ((bits & 0x7fffffff) > 0x7f800000)
        return (uint16_t)(bits >> 16 | 0x40); /* rounding could turn a NaN into infinity */
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float ds_f16_to_f32(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 0x1f, mantissa = half & 0x3ff;
    if (exponent == 0x1f)
        return from_bits(sign | 0x7f800000 | mantissa << 13);
    if (exponent == 0) /* subnormal: mantissa * 2^-24, exact in float */
        return from_bits(sign | to_bits((float)mantissa * 0x1p-24f));
    return from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}

uint16_t ds_f32_to_f16(float value)
{
    uint32_t bits = to_bits(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000)
        return (uint16_t)(sign | 0x7e00);
    if (magnitude >= 0x477ff000) /* DS_F16_INFINITE */
        return (uint16_t)(sign | 0x7c00);
    if (magnitude < 0x38800000) {
        /* Under 2^-14: the last bits of x + 1/2 are the subnormal's, rounded to nearest even. */
        uint32_t shifted = to_bits(from_bits(magnitude) + 0.5f);
        return (uint16_t)(sign | (shifted - to_bits(0.5f)));
    }
    magnitude += 0xfff + (magnitude >> 13 & 1);
    return (uint16_t)(sign | (magnitude - 0x38000000) >> 13);
}

float ds_largest_magnitude(const float *x, size_t n)
{
    int32_t largest = 0; /* bits without signs are in the order of the magnitudes, NaN last */
    for (size_t i = 0; i < n; i++) {
        int32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        bits &= 0x7fffffff;
        largest = bits > largest ? bits : largest;
    }
    return from_bits((uint32_t)largest);
}

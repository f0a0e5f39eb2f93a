/* Rows of 16-bit integers for attention. A template in plain C: each set's file includes it, so that the compiler
 * makes vectors with that set's instructions. Every result is one expression whatever the width of a vector, so all
 * sets give the same bits. */
#ifndef DS_LIB_KERNELS_PAIRS_TEMPLATE_H
#define DS_LIB_KERNELS_PAIRS_TEMPLATE_H

#include "kernels/kernels.h"

#include <math.h>
#include <string.h>

/* The nearest integer, ties to even, of a float below 2^15: adding 1.5 * 2^23 leaves one whose last bits are the
 * integer. */
static inline int16_t pairs_round(float x)
{
    float sum = x + 0x1.8p23f;
    int32_t bits;
    memcpy(&bits, &sum, sizeof bits);
    return (int16_t)(bits - 0x4b400000);
}

static float pairs_round_row(int16_t *out, const float *x, size_t n, float limit)
{
    uint32_t largest = 0; /* bit patterns without signs are in the order of the magnitudes, NaN last */
    for (size_t c = 0; c < n; c++) {
        uint32_t bits;
        memcpy(&bits, &x[c], sizeof bits);
        bits &= 0x7fffffff;
        largest = bits > largest ? bits : largest;
    }
    float magnitude;
    memcpy(&magnitude, &largest, sizeof magnitude);
    if (!(magnitude > 1e-30f && magnitude < INFINITY)) { /* nothing, or NaN or infinity, which shall be seen */
        memset(out, 0, n * sizeof *out);
        return magnitude <= 1e-30f ? 0.0f : NAN;
    }
    float inverse = limit / magnitude;
    for (size_t c = 0; c < n; c++)
        out[c] = pairs_round(x[c] * inverse);
    return magnitude / limit;
}

static void pairs_round_products(int16_t *out, const float *a, const float *b, float factor, size_t n)
{
    for (size_t c = 0; c < n; c++)
        out[c] = pairs_round(a[c] * b[c] * factor);
}

#define PAIRS_KERNELS .round_row = pairs_round_row, .round_products = pairs_round_products

#endif

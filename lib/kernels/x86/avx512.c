/* AVX-512 F, BW, DQ, VL, VNNI. */
#include "kernels/c/reference.h"
#include "kernels/interleaved.h"
#include "kernels/latent_template.h"
#include "kernels/pairs_template.h"

#include <immintrin.h>
#include <math.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

typedef __m512 vec;
typedef __m512i ivec;
typedef uint32_t lanes __attribute__((vector_size(64)));

enum { LANES = 16, W_ROWS = 8, SUM_ROWS = 8, SUM_VECS = 2, QUERY_ROWS = 16 };

INLINE __mmask16 first(size_t n) { return (__mmask16)((1u << n) - 1); }

INLINE vec load(const void *p) { return _mm512_loadu_ps(p); }
INLINE vec load_first(const void *p, size_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
INLINE void store(float *p, vec v) { _mm512_storeu_ps(p, v); }
INLINE void store_first(float *p, vec v, size_t n) { _mm512_mask_storeu_ps(p, first(n), v); }

INLINE vec load_f16(const void *p) { return _mm512_cvtph_ps(_mm256_loadu_si256(p)); }
INLINE vec load_f16_first(const void *p, size_t n) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p)); }
INLINE __m256i to_f16(vec v) { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE void store_f16(uint16_t *p, vec v) { _mm256_storeu_si256((__m256i *)p, to_f16(v)); }
INLINE void store_f16_first(uint16_t *p, vec v, size_t n) { _mm256_mask_storeu_epi16(p, first(n), to_f16(v)); }

INLINE vec from_bf16(__m256i v) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16)); }
INLINE vec load_bf16(const void *p) { return from_bf16(_mm256_loadu_si256(p)); }
INLINE vec load_bf16_first(const void *p, size_t n) { return from_bf16(_mm256_maskz_loadu_epi16(first(n), p)); }

INLINE vec splat(float value) { return _mm512_set1_ps(value); }
INLINE vec zero(void) { return _mm512_setzero_ps(); }
INLINE vec add(vec a, vec b) { return _mm512_add_ps(a, b); }
INLINE vec sub(vec a, vec b) { return _mm512_sub_ps(a, b); }
INLINE vec mul(vec a, vec b) { return _mm512_mul_ps(a, b); }
INLINE vec divide(vec a, vec b) { return _mm512_div_ps(a, b); }
INLINE vec fmadd(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vec min(vec a, vec b) { return _mm512_min_ps(a, b); }
INLINE vec max(vec a, vec b) { return _mm512_max_ps(a, b); }
INLINE vec round_even(vec v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE vec scale_exp2(vec v, vec n) { return _mm512_scalef_ps(v, n); }

INLINE __m256 add_halves(vec v) { return _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1)); }

INLINE __m128 add4(vec a, vec b, vec c, vec d)
{
    __m256 a8 = add_halves(a), b8 = add_halves(b), c8 = add_halves(c), d8 = add_halves(d);
    __m256 ab = _mm256_add_ps(_mm256_unpacklo_ps(a8, b8), _mm256_unpackhi_ps(a8, b8)); /* a b a b, a b a b */
    __m256 cd = _mm256_add_ps(_mm256_unpacklo_ps(c8, d8), _mm256_unpackhi_ps(c8, d8));
    __m256 abcd = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
    return _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1));
}

INLINE float max_lanes(vec v) { return _mm512_reduce_max_ps(v); }

INLINE ivec load_ints(const void *p) { return _mm512_loadu_si512(p); }
INLINE ivec and_bits(ivec v, int mask) { return _mm512_and_si512(v, _mm512_set1_epi32(mask)); }
INLINE ivec or_ints(ivec a, ivec b) { return _mm512_or_si512(a, b); }
INLINE ivec shift_left(ivec v, size_t n) { return (ivec)((lanes)v << (uint32_t)n); }
INLINE ivec shift_right(ivec v, size_t n) { return (ivec)((lanes)v >> (uint32_t)n); }
INLINE vec to_floats(ivec v) { return _mm512_cvtepi32_ps(v); }
INLINE vec floats_of_u8(const uint8_t *p)
{
    return to_floats(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)));
}

INLINE vec floats_of_s8(const uint8_t *p)
{
    return to_floats(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
INLINE vec fnmadd(vec a, vec b, vec c) { return _mm512_fnmadd_ps(a, b, c); }

/* The instruction takes the 4 bytes from memory to all lanes by itself; from intrinsics gcc makes two of it. */
INLINE ivec dot_bytes(ivec sum, ivec w, const int8_t *x)
{
    __asm__("vpdpbusd %1%{1to16%}, %2, %0" : "+v"(sum) : "m"(*(const int8_t(*)[4])x), "v"(w));
    return sum;
}

INLINE ivec splat_int(int word) { return _mm512_set1_epi32(word); }
INLINE void store_ints(void *p, ivec v) { _mm512_storeu_si512(p, v); }

INLINE ivec dot_words(ivec sum, ivec b, const int16_t *a)
{
    __asm__("vpdpwssd %1%{1to16%}, %2, %0" : "+v"(sum) : "m"(*(const int16_t(*)[2])a), "v"(b));
    return sum;
}

INLINE ivec weave(const int16_t *row, const int16_t *next)
{
    __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)row));
    __m256i zeros = _mm256_setzero_si256();
    __m512i high = _mm512_cvtepu16_epi32(next == NULL ? zeros : _mm256_loadu_si256((const __m256i *)next));
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

#include "kernels/x86/vector_template.h"

#include "kernels/x86/interleaved_template.h"
#include "kernels/x86/interleaved_dpbusd_template.h"

INLINE ivec low_words(ivec a, ivec b) { return _mm512_unpacklo_epi32(a, b); }
INLINE ivec high_words(ivec a, ivec b) { return _mm512_unpackhi_epi32(a, b); }
INLINE ivec low_longs(ivec a, ivec b) { return _mm512_unpacklo_epi64(a, b); }
INLINE ivec high_longs(ivec a, ivec b) { return _mm512_unpackhi_epi64(a, b); }

INLINE void turn_parts(ivec v[LANES], const ivec w[LANES])
{
    UNROLL
    for (size_t i = 0; i < 4; i++) {
        ivec a = _mm512_shuffle_i32x4(w[i], w[i + 4], 0x88), b = _mm512_shuffle_i32x4(w[i], w[i + 4], 0xdd);
        ivec c = _mm512_shuffle_i32x4(w[i + 8], w[i + 12], 0x88), d = _mm512_shuffle_i32x4(w[i + 8], w[i + 12], 0xdd);
        v[i] = _mm512_shuffle_i32x4(a, c, 0x88);
        v[i + 4] = _mm512_shuffle_i32x4(b, d, 0x88);
        v[i + 8] = _mm512_shuffle_i32x4(a, c, 0xdd);
        v[i + 12] = _mm512_shuffle_i32x4(b, d, 0xdd);
    }
}

INLINE void store_wide(int16_t *out, __m256i bytes) { store_ints(out, _mm512_cvtepi8_epi16(bytes)); }

#include "kernels/x86/pairs_template.h"

/* For latent_template.h. */
typedef uint16_t word_lanes __attribute__((vector_size(64)));
INLINE ivec ints_of_u8(const uint8_t *p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)); }
INLINE ivec merge(ivec a, ivec mask, ivec b) { return _mm512_ternarylogic_epi32(a, mask, b, 0xf8); }
INLINE ivec high_product(ivec w, int n) { return _mm512_mulhi_epu16(w, _mm512_set1_epi16((short)n)); }
INLINE vec floats_of_ints(ivec v) { return _mm512_castsi512_ps(v); }

#include "kernels/x86/latent_template.h"

extern const ds_kernels ds_kernels_avx512;
const ds_kernels ds_kernels_avx512 = {
#include "kernels/c/table_template.h"
    .name = "avx512",
    VECTOR_KERNELS,
#include "kernels/x86/interleaved_table_template.h"
    PAIR_KERNELS,
    VECTOR_LATENT_KERNELS,
};

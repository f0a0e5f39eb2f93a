/* AVX2, FMA, F16C. */
#include "kernels/c/reference.h"
#include "kernels/interleaved.h"
#include "kernels/latent_template.h"
#include "kernels/pairs_template.h"

#include <immintrin.h>
#include <math.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

typedef __m256 vec;
typedef __m256i ivec;
typedef uint32_t lanes __attribute__((vector_size(32)));

enum { LANES = 8, W_ROWS = 4, SUM_ROWS = 6, SUM_VECS = 2, QUERY_ROWS = 4 };

INLINE __m256i first(size_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

/* There is no masked load of 16-bit elements: the first n of eight go through memory of our own. */
INLINE __m128i load_halves_first(const void *p, size_t n)
{
    uint16_t halves[8] = {0};
    for (size_t i = 0; i < n; i++)
        memcpy(halves + i, (const uint8_t *)p + 2 * i, 2);
    return _mm_loadu_si128((const __m128i *)halves);
}

INLINE vec load(const void *p) { return _mm256_loadu_ps(p); }
INLINE vec load_first(const void *p, size_t n) { return _mm256_maskload_ps(p, first(n)); }
INLINE void store(float *p, vec v) { _mm256_storeu_ps(p, v); }
INLINE void store_first(float *p, vec v, size_t n) { _mm256_maskstore_ps(p, first(n), v); }

INLINE vec load_f16(const void *p) { return _mm256_cvtph_ps(_mm_loadu_si128(p)); }
INLINE vec load_f16_first(const void *p, size_t n) { return _mm256_cvtph_ps(load_halves_first(p, n)); }
INLINE void store_f16(uint16_t *p, vec v)
{
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
INLINE void store_f16_first(uint16_t *p, vec v, size_t n)
{
    uint16_t halves[8];
    store_f16(halves, v);
    memcpy(p, halves, n * sizeof *p);
}

INLINE vec from_bf16(__m128i v) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16)); }
INLINE vec load_bf16(const void *p) { return from_bf16(_mm_loadu_si128(p)); }
INLINE vec load_bf16_first(const void *p, size_t n) { return from_bf16(load_halves_first(p, n)); }

INLINE vec splat(float value) { return _mm256_set1_ps(value); }
INLINE vec zero(void) { return _mm256_setzero_ps(); }
INLINE vec add(vec a, vec b) { return _mm256_add_ps(a, b); }
INLINE vec sub(vec a, vec b) { return _mm256_sub_ps(a, b); }
INLINE vec mul(vec a, vec b) { return _mm256_mul_ps(a, b); }
INLINE vec divide(vec a, vec b) { return _mm256_div_ps(a, b); }
INLINE vec fmadd(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vec min(vec a, vec b) { return _mm256_min_ps(a, b); }
INLINE vec max(vec a, vec b) { return _mm256_max_ps(a, b); }
INLINE vec round_even(vec v) { return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

INLINE vec exp2_of(__m256i n)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}

/* In two steps, since 2^n alone may be subnormal or infinite; the first is exact. */
INLINE vec scale_exp2(vec v, vec n)
{
    __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
    return mul(mul(v, exp2_of(half)), exp2_of(_mm256_sub_epi32(whole, half)));
}

INLINE __m128 add4(vec a, vec b, vec c, vec d)
{
    __m256 ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)); /* a b a b, a b a b */
    __m256 cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    __m256 abcd = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
    return _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1));
}

INLINE float max_lanes(vec v)
{
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    m = _mm_max_ss(m, _mm_movehdup_ps(m));
    return _mm_cvtss_f32(m);
}

INLINE ivec load_ints(const void *p) { return _mm256_loadu_si256(p); }
INLINE ivec and_bits(ivec v, int mask) { return _mm256_and_si256(v, _mm256_set1_epi32(mask)); }
INLINE ivec or_ints(ivec a, ivec b) { return _mm256_or_si256(a, b); }
INLINE ivec shift_left(ivec v, size_t n) { return (ivec)((lanes)v << (uint32_t)n); }
INLINE ivec shift_right(ivec v, size_t n) { return (ivec)((lanes)v >> (uint32_t)n); }
INLINE vec to_floats(ivec v) { return _mm256_cvtepi32_ps(v); }
INLINE vec floats_of_s8(const uint8_t *p)
{
    return to_floats(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
INLINE vec fnmadd(vec a, vec b, vec c) { return _mm256_fnmadd_ps(a, b, c); }

INLINE ivec splat_int(int word) { return _mm256_set1_epi32(word); }
INLINE void store_ints(void *p, ivec v) { _mm256_storeu_si256(p, v); }

INLINE ivec dot_words(ivec sum, ivec b, const int16_t *a)
{
    int two;
    memcpy(&two, a, sizeof two);
    ivec pair = _mm256_set1_epi32(two);
    __asm__("" : "+x"(pair)); /* one number at a time: gcc would read all first and put sums into memory */
    ivec products = _mm256_madd_epi16(b, pair);
    __asm__("vpaddd %1, %0, %0" : "+x"(sum) : "x"(products)); /* in place, in order */
    return sum;
}

INLINE ivec weave(const int16_t *row, const int16_t *next)
{
    __m256i low = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)row));
    __m128i zeros = _mm_setzero_si128();
    __m256i high = _mm256_cvtepu16_epi32(next == NULL ? zeros : _mm_loadu_si128((const __m128i *)next));
    return _mm256_or_si256(low, _mm256_slli_epi32(high, 16));
}

#include "kernels/x86/vector_template.h"

#include "kernels/x86/interleaved_template.h"
#include "kernels/x86/interleaved_maddubs_template.h"

INLINE ivec low_words(ivec a, ivec b) { return _mm256_unpacklo_epi32(a, b); }
INLINE ivec high_words(ivec a, ivec b) { return _mm256_unpackhi_epi32(a, b); }
INLINE ivec low_longs(ivec a, ivec b) { return _mm256_unpacklo_epi64(a, b); }
INLINE ivec high_longs(ivec a, ivec b) { return _mm256_unpackhi_epi64(a, b); }

INLINE void turn_parts(ivec v[LANES], const ivec w[LANES])
{
    UNROLL
    for (size_t i = 0; i < 4; i++) {
        v[i] = _mm256_permute2x128_si256(w[i], w[i + 4], 0x20);
        v[i + 4] = _mm256_permute2x128_si256(w[i], w[i + 4], 0x31);
    }
}

INLINE void store_wide(int16_t *out, __m256i bytes)
{
    store_ints(out, _mm256_cvtepi8_epi16(_mm256_castsi256_si128(bytes)));
    store_ints(out + 16, _mm256_cvtepi8_epi16(_mm256_extracti128_si256(bytes, 1)));
}

#include "kernels/x86/pairs_template.h"

/* For latent_template.h. */
typedef uint16_t word_lanes __attribute__((vector_size(32)));
INLINE ivec ints_of_u8(const uint8_t *p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)); }
INLINE ivec merge(ivec a, ivec mask, ivec b) { return _mm256_or_si256(a, _mm256_and_si256(mask, b)); }
INLINE ivec high_product(ivec w, int n) { return _mm256_mulhi_epu16(w, _mm256_set1_epi16((short)n)); }
INLINE vec floats_of_ints(ivec v) { return _mm256_castsi256_ps(v); }

#include "kernels/x86/latent_template.h"

extern const ds_kernels ds_kernels_avx2;
const ds_kernels ds_kernels_avx2 = {
#include "kernels/c/table_template.h"
    .name = "avx2",
    VECTOR_KERNELS,
#include "kernels/x86/interleaved_table_template.h"
    PAIR_KERNELS,
    VECTOR_LATENT_KERNELS,
};

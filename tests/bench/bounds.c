#include "bench/bounds.h"

#ifdef __x86_64__
#include <immintrin.h>
#include <stdbool.h>

static volatile float keep_float;
static volatile int keep_int;

enum { CHAINS = 12, LOOPS = 100000 };

#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 12")
#endif

__attribute__((target("avx2,fma"))) static double fma_rate_avx2(bounds_clock *seconds)
{
    __m256 sums[CHAINS], x = _mm256_set1_ps(0.999f), y = _mm256_set1_ps(1e-3f);
    UNROLL
    for (int c = 0; c < CHAINS; c++)
        sums[c] = _mm256_setzero_ps();
    double start = seconds();
    for (int i = 0; i < LOOPS; i++)
        UNROLL
        for (int c = 0; c < CHAINS; c++) {
            sums[c] = _mm256_fmadd_ps(sums[c], x, y);
            __asm__ volatile("" : "+x"(sums[c]));
        }
    double time = seconds() - start;
    UNROLL
    for (int c = 0; c < CHAINS; c++)
        keep_float = _mm256_cvtss_f32(sums[c]);
    return 2.0 * 8 * CHAINS * LOOPS / time;
}

__attribute__((target("avx512f"))) static double fma_rate_avx512(bounds_clock *seconds)
{
    __m512 sums[CHAINS], x = _mm512_set1_ps(0.999f), y = _mm512_set1_ps(1e-3f);
    UNROLL
    for (int c = 0; c < CHAINS; c++)
        sums[c] = _mm512_setzero_ps();
    double start = seconds();
    for (int i = 0; i < LOOPS; i++)
        UNROLL
        for (int c = 0; c < CHAINS; c++) {
            sums[c] = _mm512_fmadd_ps(sums[c], x, y);
            __asm__ volatile("" : "+v"(sums[c]));
        }
    double time = seconds() - start;
    UNROLL
    for (int c = 0; c < CHAINS; c++)
        keep_float = _mm512_cvtss_f32(sums[c]);
    return 2.0 * 16 * CHAINS * LOOPS / time;
}

__attribute__((target("avx512f,avx512vnni"))) static double int8_rate_vnni(bounds_clock *seconds)
{
    __m512i sums[CHAINS], x = _mm512_set1_epi8(3), y = _mm512_set1_epi8(-2);
    UNROLL
    for (int c = 0; c < CHAINS; c++)
        sums[c] = _mm512_setzero_si512();
    double start = seconds();
    for (int i = 0; i < LOOPS; i++)
        UNROLL
        for (int c = 0; c < CHAINS; c++) {
            sums[c] = _mm512_dpbusd_epi32(sums[c], x, y);
            __asm__ volatile("" : "+v"(sums[c]));
        }
    double time = seconds() - start;
    UNROLL
    for (int c = 0; c < CHAINS; c++)
        keep_int = _mm512_cvtsi512_si32(sums[c]);
    return 2.0 * 64 * CHAINS * LOOPS / time;
}

/* 8-bit products without VNNI: pairs are added to 16 bits, then pairs of sums to 32. */
__attribute__((target("avx2"))) static double int8_rate_avx2(bounds_clock *seconds)
{
    __m256i sums[CHAINS], x = _mm256_set1_epi8(3), y = _mm256_set1_epi8(-2), one = _mm256_set1_epi16(1);
    UNROLL
    for (int c = 0; c < CHAINS; c++)
        sums[c] = _mm256_setzero_si256();
    double start = seconds();
    for (int i = 0; i < LOOPS; i++)
        UNROLL
        for (int c = 0; c < CHAINS; c++) {
            __m256i pairs = _mm256_maddubs_epi16(x, y);
            __asm__ volatile("" : "+x"(pairs));
            sums[c] = _mm256_add_epi32(sums[c], _mm256_madd_epi16(pairs, one));
            __asm__ volatile("" : "+x"(sums[c]));
        }
    double time = seconds() - start;
    UNROLL
    for (int c = 0; c < CHAINS; c++)
        keep_int = _mm256_cvtsi256_si32(sums[c]);
    return 2.0 * 32 * CHAINS * LOOPS / time;
}

__attribute__((target("avx2"))) static double read_rate_avx2(const void *memory, size_t bytes, bounds_clock *seconds)
{
    const __m256i *at = memory;
    __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
    double start = seconds();
    for (size_t i = 0; i < bytes / sizeof *at; i += 4) {
        a = _mm256_xor_si256(a, _mm256_load_si256(at + i));
        b = _mm256_xor_si256(b, _mm256_load_si256(at + i + 1));
        c = _mm256_xor_si256(c, _mm256_load_si256(at + i + 2));
        d = _mm256_xor_si256(d, _mm256_load_si256(at + i + 3));
    }
    double time = seconds() - start;
    keep_int = _mm256_cvtsi256_si32(_mm256_xor_si256(_mm256_xor_si256(a, b), _mm256_xor_si256(c, d)));
    return (double)bytes / time;
}

bounds measure_bounds(const void *memory, size_t bytes, bounds_clock *seconds)
{
    __builtin_cpu_init();
    bool wide = __builtin_cpu_supports("avx512f"), vnni = wide && __builtin_cpu_supports("avx512vnni");
    return (bounds){
        .flops = wide ? fma_rate_avx512(seconds) : __builtin_cpu_supports("fma") ? fma_rate_avx2(seconds) : 0,
        .int8 = vnni ? int8_rate_vnni(seconds) : __builtin_cpu_supports("avx2") ? int8_rate_avx2(seconds) : 0,
        .bytes = __builtin_cpu_supports("avx2") ? read_rate_avx2(memory, bytes, seconds) : 0,
    };
}
#else
bounds measure_bounds(const void *memory, size_t bytes, bounds_clock *seconds)
{
    (void)memory;
    (void)bytes;
    (void)seconds;
    return (bounds){0, 0, 0};
}
#endif

/* Each round measures the machine's bounds, then every kernel once; a ratio is taken inside its round, and medians
 * over the rounds are printed. One thread throughout. */
#include "kernels/bench.h"

#include "bench/bounds.h"
#include "cache/cache.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#ifdef HAVE_OPENBLAS
#include <cblas.h>
#endif

enum { ROUNDS = 15, MAX_LINES = 128, STREAM_BYTES = 192 << 20 };

/* This thread's own time: what others run on the machine meanwhile slows the caches and the memory, but is not
 * counted. */
static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static volatile float keep_float;

/* ---- what is timed ---- */

typedef enum bound { FLOPS, INT8, BYTES } bound;
static const char *const bound_names[] = {"fp32 FMA", "int8", "bandwidth"};

typedef struct line {
    char name[80];
    bound bound;
    double work; /* operations or bytes of one run */
    double rates[ROUNDS], shares[ROUNDS], to_peer[ROUNDS];
    bool has_peer;
} line;

static line lines[MAX_LINES];
static int n_lines;

/* Operands, large enough for every shape below. */
enum { MAX_M = 512, MAX_K = 2048, MATRIX_N = 128, VECTOR_N = 16384 };
static float *x, *w, *out;
static uint16_t *w16;
static const float *x_rows[MAX_M];
static ds_x8 *x8;
static const ds_x8 *x8_rows[MAX_M];

static line *next_line(int round, int *at, const char *name, const char *set, bound bound, double work)
{
    line *l = &lines[(*at)++];
    if (round == 0) {
        snprintf(l->name, sizeof l->name, "%-8s %s", set, name);
        l->bound = bound;
        l->work = work;
        n_lines = *at;
    }
    return l;
}

static void record(line *l, int round, double time, const bounds *b)
{
    double limit = l->bound == FLOPS ? b->flops : l->bound == INT8 ? b->int8 : b->bytes;
    l->rates[round] = l->work / time;
    l->shares[round] = limit > 0 ? l->rates[round] / limit : 0;
}

static double time_matmul(const ds_kernels *kernels, ds_type type, size_t m, size_t n, size_t k)
{
    const void *weights = type == DS_TYPE_F32 ? (const void *)w : w16;
    double start = seconds();
    kernels->matmul[type](out, n, x_rows, m, weights, k * (type == DS_TYPE_F32 ? 4 : 2), n, k);
    return seconds() - start;
}

#ifdef HAVE_OPENBLAS
static double time_openblas(size_t m, size_t n, size_t k)
{
    double start = seconds();
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)m, (int)n, (int)k, 1, x, (int)k, w, (int)k, 0, out,
                (int)n);
    return seconds() - start;
}
#endif

static void round_of_set(const ds_kernels *kernels, int round, int *at, const bounds *b)
{
    static const ds_type types[] = {DS_TYPE_F32, DS_TYPE_BF16, DS_TYPE_F16};
    static const size_t ms[] = {512, 32, 4};
    char name[64];
    for (size_t t = 0; t < 3; t++) {
        for (size_t s = 0; s < 3; s++) {
            snprintf(name, sizeof name, "matmul %s, %zu rows", ds_type_name(types[t]), ms[s]);
            line *l = next_line(round, at, name, kernels->name, FLOPS, 2.0 * (double)ms[s] * MATRIX_N * MAX_K);
            record(l, round, time_matmul(kernels, types[t], ms[s], MATRIX_N, MAX_K), b);
#ifdef HAVE_OPENBLAS
            if (types[t] == DS_TYPE_F32) {
                l->has_peer = true;
                l->to_peer[round] = l->rates[round] * time_openblas(ms[s], MATRIX_N, MAX_K) / l->work;
            }
#endif
        }
        snprintf(name, sizeof name, "matmul %s, 1 row", ds_type_name(types[t]));
        double bytes = (types[t] == DS_TYPE_F32 ? 4.0 : 2.0) * VECTOR_N * MAX_K;
        line *l = next_line(round, at, name, kernels->name, BYTES, bytes);
        record(l, round, time_matmul(kernels, types[t], 1, VECTOR_N, MAX_K), b);
    }
    enum { HEADS = 16, TILE = 256, LATENT = 512 };
    line *l = next_line(round, at, "weighted_sum, 16 rows of 512 over 256", kernels->name, FLOPS,
                        2.0 * HEADS * TILE * LATENT);
    double start = 0;
    for (int i = 0; i < 2; i++) { /* the second time from the cache, as a tile is when it has just been unpacked */
        start = seconds();
        kernels->weighted_sum(out, LATENT, x, w, TILE, HEADS, w + HEADS * TILE, LATENT, TILE, LATENT);
    }
    record(l, round, seconds() - start, b);
    enum { SCORES = 16384 };
    l = next_line(round, at, "exp_sum (shares: of 4 bytes each)", kernels->name, BYTES, 4.0 * SCORES);
    memcpy(out, w, SCORES * 4);
    start = seconds();
    keep_float = kernels->exp_sum(out, 1.0f, SCORES);
    record(l, round, seconds() - start, b);
}

/* A tile of cached rows to floats, as attention asks for it. */
static void round_of_rows(const ds_kernels *kernels, int round, int *at, const bounds *b)
{
    enum { LATENT = 512, ROPE = 64, TILES = 16 };
    static const char *const names[] = {[DSV2_CACHE_F32] = "f32", [DSV2_CACHE_F16] = "f16", [DSV2_CACHE_Q8] = "q8",
                                        [DSV2_CACHE_Q6] = "q6"};
    for (int type = DSV2_CACHE_F32; type <= DSV2_CACHE_Q6; type++) {
        ds_cache_shape shape;
        if (ds_cache_shape_init(&shape, &ds_mla_row, (uint32_t[]){LATENT, ROPE}, (dsv2_cache_type)type, 1) != DSV2_OK)
            return;
        char name[64];
        snprintf(name, sizeof name, "cached rows of %s to floats, 64 rows", names[type]);
        line *l = next_line(round, at, name, kernels->name, BYTES,
                            (double)TILES * DS_PAGE_TOKENS * (LATENT + ROPE) * sizeof *out);
        double start = 0;
        for (int i = -1; i < TILES; i++) { /* once before it counts */
            if (i == 0)
                start = seconds();
            ds_cache_decode_rows(&shape, kernels, (const uint8_t *)w, DS_PAGE_TOKENS, out);
        }
        record(l, round, seconds() - start, b);
    }
}

static const ds_type interleaved_types[] = {DS_TYPE_P4, DS_TYPE_P4S, DS_TYPE_P4M, DS_TYPE_P5, DS_TYPE_P5S, DS_TYPE_P5M,
                                            DS_TYPE_P6, DS_TYPE_P8};

static double time_interleaved(const ds_kernels *kernels, ds_type type, size_t m, size_t n)
{
    double start = seconds();
    kernels->matmul_interleaved[type](out, n, x8_rows, m, w, n, MAX_K);
    return seconds() - start;
}

/* What the weights are does not matter here: the floats' bytes will do. */
static void round_of_interleaved(const ds_kernels *kernels, int round, int *at, const bounds *b)
{
    static const size_t ms[] = {512, 32, 4};
    char name[64];
    for (size_t t = 0; t < sizeof interleaved_types / sizeof *interleaved_types; t++) {
        ds_type type = interleaved_types[t];
        for (size_t s = 0; s < 3; s++) {
            snprintf(name, sizeof name, "matmul %s, %zu rows", ds_type_name(type), ms[s]);
            line *l = next_line(round, at, name, kernels->name, INT8, 2.0 * (double)ms[s] * MATRIX_N * MAX_K);
            record(l, round, time_interleaved(kernels, type, ms[s], MATRIX_N), b);
        }
        snprintf(name, sizeof name, "matmul %s, 1 row", ds_type_name(type));
        line *l = next_line(round, at, name, kernels->name, BYTES, (double)ds_type_row_bytes(type, MAX_K) * VECTOR_N);
        record(l, round, time_interleaved(kernels, type, 1, VECTOR_N), b);
    }
    line *l = next_line(round, at, "prepare_row", kernels->name, BYTES, 4.0 * MAX_M * MAX_K);
    double start = seconds();
    for (size_t i = 0; i < MAX_M; i++)
        kernels->prepare_row(x8 + i * (MAX_K / DS_BLOCK_COLS), x_rows[i], MAX_K);
    record(l, round, seconds() - start, b);
}

static int compare(const void *a, const void *b)
{
    double difference = *(const double *)a - *(const double *)b;
    return difference < 0 ? -1 : difference > 0;
}

static double median(const double *values)
{
    double sorted[ROUNDS];
    memcpy(sorted, values, sizeof sorted);
    qsort(sorted, ROUNDS, sizeof *sorted, compare);
    return sorted[ROUNDS / 2];
}

static void print_table(const bounds *rounds)
{
    double flops[ROUNDS], int8[ROUNDS], bytes[ROUNDS];
    for (int r = 0; r < ROUNDS; r++) {
        flops[r] = rounds[r].flops;
        int8[r] = rounds[r].int8;
        bytes[r] = rounds[r].bytes;
    }
    printf("one thread, medians of %d rounds; bounds: fp32 FMA %.1f GFLOP/s, int8 %.1f GOP/s, bandwidth %.1f GB/s\n",
           ROUNDS, median(flops) * 1e-9, median(int8) * 1e-9, median(bytes) * 1e-9);
    printf("%-52s %10s %8s %s\n", "kernel", "G/s", "share", "of (ratio to OpenBLAS, one thread)");
    for (int i = 0; i < n_lines; i++) {
        const line *l = &lines[i];
        printf("%-52s %10.1f %7.0f%% %s", l->name, median(l->rates) * 1e-9, median(l->shares) * 100,
               bound_names[l->bound]);
        if (l->has_peer)
            printf(" (%.2f)", median(l->to_peer));
        printf("\n");
    }
}

int bench_kernels(const ds_kernels *const *sets, int n_sets)
{
#ifdef HAVE_OPENBLAS
    openblas_set_num_threads(1); /* this is a program of our own; the library never does so */
#endif
    x = ds_new_aligned((size_t)MAX_M * MAX_K, sizeof *x);
    w = ds_new_aligned((size_t)VECTOR_N * MAX_K, sizeof *w);
    w16 = ds_new_aligned((size_t)VECTOR_N * MAX_K, sizeof *w16);
    out = ds_new_aligned((size_t)MAX_M * VECTOR_N, sizeof *out);
    void *stream = ds_new_aligned(STREAM_BYTES, 1);
    x8 = ds_new_aligned((size_t)MAX_M * MAX_K / DS_BLOCK_COLS, sizeof *x8);
    if (x8 == NULL || x == NULL || w == NULL || w16 == NULL || out == NULL || stream == NULL) {
        printf("no memory\n");
        return 1;
    }
    memset(stream, 1, STREAM_BYTES);
    memset(out, 0, (size_t)MAX_M * VECTOR_N * sizeof *out);
    for (size_t i = 0; i < (size_t)MAX_M * MAX_K; i++)
        x[i] = (float)(i * 7919 % 2001) * 1e-3f - 1;
    for (size_t i = 0; i < (size_t)VECTOR_N * MAX_K; i++) {
        w[i] = (float)(i * 104729 % 2001) * 1e-3f - 1;
        w16[i] = ds_f32_to_f16(w[i]); /* as BF16 these are other numbers, and as good */
    }
    for (size_t i = 0; i < MAX_M; i++)
        x_rows[i] = x + i * MAX_K;
    for (size_t i = 0; i < MAX_M; i++)
        x8_rows[i] = x8 + i * (MAX_K / DS_BLOCK_COLS);
    memset(x8, 1, (size_t)MAX_M * MAX_K / DS_BLOCK_COLS * sizeof *x8);
    bounds rounds[ROUNDS];
    for (int round = 0; round < ROUNDS; round++) {
        rounds[round] = measure_bounds(stream, STREAM_BYTES, seconds);
        int at = 0;
        for (int s = 0; s < n_sets; s++) {
            round_of_set(sets[s], round, &at, &rounds[round]);
            round_of_rows(sets[s], round, &at, &rounds[round]);
            if (s > 0) round_of_interleaved(sets[s], round, &at, &rounds[round]);
        }
    }
    print_table(rounds);
    ds_free(x8);
    ds_free(x);
    ds_free(w);
    ds_free(w16);
    ds_free(out);
    ds_free(stream);
    return 0;
}

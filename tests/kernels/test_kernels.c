/* Every kernel of every set that this processor runs, against the C reference: edge shapes, operands that end where
 * memory ends, hostile values, and the promise that a row's bits depend on that row alone. With --bench, times
 * instead (bench.c). */
#include "kernels/bench.h"
#include "kernels/kernels.h"
#include "kernels/interleaved.h"

#include <check.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MAX_SETS = 16 };
static const ds_kernels *sets[MAX_SETS], *reference; /* those that this build and processor have, the best last */
static int n_sets;

static bool find_sets(void)
{
    const ds_kernels *kernels;
    bool runs;
    printf("kernel sets:");
    for (size_t i = 0; (kernels = ds_kernels_set(i, &runs)) != NULL; i++) {
        printf(" %s%s", kernels->name, runs ? "" : " (not run: this processor lacks it)");
        if (runs && n_sets < MAX_SETS)
            sets[n_sets++] = kernels;
    }
    printf("\n");
    fflush(stdout);
    for (int i = 0; i < n_sets / 2; i++) { /* the library has the best first */
        kernels = sets[i];
        sets[i] = sets[n_sets - 1 - i];
        sets[n_sets - 1 - i] = kernels;
    }
    reference = sets[0];
    return n_sets > 0 && strcmp(reference->name, "c") == 0;
}

/* ---- operands ---- */

/* An array whose last byte is the last that may be touched. */
typedef struct guarded {
    void *data;
    void *map;
    size_t map_bytes;
} guarded;

/* Maps to use again: the system takes its time to make them. */
enum { MAX_SPARE = 256 };
static guarded spare[MAX_SPARE];
static size_t n_spare;

static guarded guard(size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), body = (bytes + page - 1) / page * page;
    guarded g = {.map_bytes = body + page};
    for (size_t i = 0; i < n_spare; i++)
        if (spare[i].map_bytes == g.map_bytes) {
            g = spare[i];
            spare[i] = spare[--n_spare];
            g.data = (char *)g.map + body - bytes;
            return g;
        }
    g.map = mmap(NULL, g.map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ck_assert_ptr_ne(g.map, MAP_FAILED);
    ck_assert_int_eq(mprotect((char *)g.map + body, page, PROT_NONE), 0);
    g.data = (char *)g.map + body - bytes;
    return g;
}

static void unguard(guarded g)
{
    if (n_spare < MAX_SPARE)
        spare[n_spare++] = g;
    else
        munmap(g.map, g.map_bytes);
}

static uint64_t random_state = 1;

static uint32_t random_bits(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33) ^ (uint32_t)(random_state >> 60);
}

static float random_float(void) { return (float)((int32_t)(random_bits() % 2000001) - 1000000) * 1e-6f; }

typedef enum values { ZEROS, UNIFORM, LARGE, SUBNORMAL, MIXED, ONE_INFINITY, N_VALUES } values;
static const char *const value_names[] = {"zeros", "uniform", "large", "subnormal", "mixed magnitudes", "one infinity"};

/* Values that all element types hold, more or less. */
static void fill(float *x, size_t n, values kind)
{
    for (size_t i = 0; i < n; i++) {
        float value = random_float();
        switch (kind) {
        case ZEROS: x[i] = 0; break;
        case LARGE: x[i] = value < 0 ? -60000.0f : 60000.0f; break;
        case SUBNORMAL: x[i] = value * 3e-39f; break;
        case MIXED: x[i] = ldexpf(value, (int)(random_bits() % 24) - 12); break;
        default: x[i] = value;
        }
    }
    if (kind == ONE_INFINITY)
        x[random_bits() % n] = INFINITY;
}

static size_t element_bytes(ds_type type) { return type == DS_TYPE_F32 ? 4 : 2; }

static void store_as(ds_type type, void *out, const float *in, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint16_t half = type == DS_TYPE_F16 ? ds_f32_to_f16(in[i]) : ds_f32_to_bf16(in[i]);
        if (type == DS_TYPE_F32)
            memcpy((char *)out + 4 * i, in + i, 4);
        else
            memcpy((char *)out + 2 * i, &half, 2);
    }
}

/* Equal but for `tolerance`; infinities and NaN match their like. */
static bool near(float a, float b, double tolerance)
{
    if (isnan(a) || isnan(b))
        return isnan(a) && isnan(b);
    if (isinf(a) || isinf(b))
        return a == b;
    return fabs((double)a - (double)b) <= tolerance;
}

/* What two orders of summing n products may differ by. */
static double sum_tolerance(size_t n, double sum_of_magnitudes)
{
    return (double)n * sum_of_magnitudes * (double)FLT_EPSILON + (double)n * 1.5e-45;
}

static const ds_type plain_types[] = {DS_TYPE_F32, DS_TYPE_F16, DS_TYPE_BF16};

/* ---- matrix products ---- */

typedef struct product {
    size_t m, n, k, w_stride, out_stride;
    ds_type type;
    guarded w;
    guarded *rows; /* each row of x guarded on its own */
    const float **x;
    float *out;
} product;

static product new_product(ds_type type, size_t m, size_t n, size_t k, size_t gap, values kind)
{
    product p = {.m = m, .n = n, .k = k, .type = type, .out_stride = n + 3};
    p.w_stride = k * element_bytes(type) + gap; /* an odd gap leaves rows at any alignment */
    p.w = guard((n - 1) * p.w_stride + k * element_bytes(type));
    float *row = malloc(k * sizeof *row);
    for (size_t j = 0; j < n; j++) {
        fill(row, k, kind == ONE_INFINITY ? UNIFORM : kind);
        store_as(type, (char *)p.w.data + j * p.w_stride, row, k);
    }
    free(row);
    p.rows = malloc(m * sizeof *p.rows);
    p.x = malloc(m * sizeof *p.x);
    for (size_t i = 0; i < m; i++) {
        p.rows[i] = guard(k * sizeof(float));
        fill(p.rows[i].data, k, kind);
        p.x[i] = p.rows[i].data;
    }
    p.out = malloc(m * p.out_stride * sizeof *p.out);
    return p;
}

static void free_product(product *p)
{
    for (size_t i = 0; i < p->m; i++)
        unguard(p->rows[i]);
    unguard(p->w);
    free(p->rows);
    free((void *)p->x);
    free(p->out);
}

static void weights_of(const product *p, size_t row, float *out)
{
    reference->to_f32[p->type](out, (const char *)p->w.data + row * p->w_stride, p->k);
}

static void check_product(const ds_kernels *kernels, const product *p, const char *what)
{
    for (size_t i = 0; i < p->m * p->out_stride; i++)
        p->out[i] = 12345.0f;
    kernels->matmul[p->type](p->out, p->out_stride, p->x, p->m, p->w.data, p->w_stride, p->n, p->k);
    float *w = malloc(p->k * sizeof *w);
    for (size_t j = 0; j < p->n; j++) {
        weights_of(p, j, w);
        for (size_t i = 0; i < p->m; i++) {
            double sum = 0, magnitudes = 0;
            for (size_t c = 0; c < p->k; c++) {
                sum += (double)p->x[i][c] * (double)w[c];
                magnitudes += fabs((double)p->x[i][c] * (double)w[c]);
            }
            float got = p->out[i * p->out_stride + j];
            ck_assert_msg(near(got, (float)sum, sum_tolerance(p->k, magnitudes)),
                          "%s matmul %s, %s, m %zu n %zu k %zu: output (%zu, %zu) is %.9g, expected %.9g",
                          kernels->name, ds_type_name(p->type), what, p->m, p->n, p->k, i, j, (double)got, sum);
        }
    }
    for (size_t i = 0; i < p->m; i++)
        for (size_t j = p->n; j < p->out_stride; j++)
            ck_assert_msg(p->out[i * p->out_stride + j] == 12345.0f, "%s matmul %s wrote beside its output",
                          kernels->name, ds_type_name(p->type));
    free(w);
}

static const struct { size_t m, n, k; } product_shapes[] = {
    {1, 1, 1}, {1, 2, 3}, {1, 3, 5}, {2, 5, 7}, {3, 7, 8}, {5, 8, 15}, {4, 9, 16}, {7, 4, 17}, {1, 17, 31}, {2, 8, 33},
    {3, 16, 64}, {6, 3, 100}, {4, 11, 513}, {49, 10, 40}, {50, 9, 511}, {100, 4, 65}, {97, 13, 9}, {8, 1, 1100},
    {1, 33, 1024},
};

START_TEST(matmul_agrees_with_exact_sums)
{
    const ds_kernels *kernels = sets[_i];
    for (size_t t = 0; t < 3; t++)
        for (size_t s = 0; s < sizeof product_shapes / sizeof *product_shapes; s++)
            for (values kind = 0; kind < N_VALUES; kind++) {
                if (product_shapes[s].m > 10 && kind != MIXED) /* many guarded rows take the system long */
                    continue;
                product p = new_product(plain_types[t], product_shapes[s].m, product_shapes[s].n, product_shapes[s].k,
                                        s % 4, kind);
                check_product(kernels, &p, value_names[kind]);
                free_product(&p);
            }
}
END_TEST

/* Any part of a product, computed by itself, has the bits that it has in the whole. */
START_TEST(matmul_rows_have_the_same_bits_alone_and_in_company)
{
    const ds_kernels *kernels = sets[_i];
    for (size_t t = 0; t < 3; t++)
        for (size_t s = 0; s < sizeof product_shapes / sizeof *product_shapes; s++) {
            product p = new_product(plain_types[t], product_shapes[s].m, product_shapes[s].n, product_shapes[s].k, 0,
                                    MIXED);
            kernels->matmul[p.type](p.out, p.out_stride, p.x, p.m, p.w.data, p.w_stride, p.n, p.k);
            float *part = malloc(p.m * p.n * sizeof *part);
            for (int trial = 0; trial < 12; trial++) {
                size_t i0 = random_bits() % p.m, i1 = i0 + 1 + random_bits() % (p.m - i0);
                size_t j0 = random_bits() % p.n, j1 = j0 + 1 + random_bits() % (p.n - j0);
                const char *w = (const char *)p.w.data + j0 * p.w_stride;
                kernels->matmul[p.type](part, j1 - j0, p.x + i0, i1 - i0, w, p.w_stride, j1 - j0, p.k);
                for (size_t i = i0; i < i1; i++)
                    ck_assert_msg(memcmp(part + (i - i0) * (j1 - j0), p.out + i * p.out_stride + j0,
                                         (j1 - j0) * 4) == 0,
                                  "%s matmul %s, m %zu n %zu k %zu: row %zu differs when rows %zu to %zu and "
                                   "columns %zu to %zu "
                                  "are computed by themselves",
                                  kernels->name, ds_type_name(p.type), p.m, p.n, p.k, i, i0, i1 - 1, j0, j1 - 1);
            }
            free(part);
            free_product(&p);
        }
}
END_TEST

/* ---- matrices with block scales ---- */

/* E4M3 by its definition: 1 sign, 4 exponent (bias 7), 3 mantissa bits; no infinities; all ones is NaN. */
static float e4m3_by_definition(unsigned code)
{
    int exponent = (int)(code >> 3 & 15), mantissa = (int)(code & 7);
    if ((code & 0x7f) == 0x7f)
        return NAN;
    float magnitude = exponent == 0 ? ldexpf((float)mantissa, -9) : ldexpf((float)(8 + mantissa), exponent - 10);
    return code & 0x80 ? -magnitude : magnitude;
}

START_TEST(e4m3_rows_are_exact_with_their_block_scales)
{
    const ds_kernels *kernels = sets[_i];
    enum { ROWS = 5, COLS = 300, SCALE_ROWS = 2, SCALE_COLS = 128, STRIDE = 4 };
    guarded g = guard((size_t)ROWS * COLS);
    uint8_t *codes = g.data;
    for (size_t i = 0; i < (size_t)ROWS * COLS; i++)
        codes[i] = (uint8_t)(i * 7 + i / 256);
    float scales[3 * STRIDE];
    for (size_t i = 0; i < 3 * STRIDE; i++)
        scales[i] = 0.37f + (float)i;
    ds_matrix w = {ROWS, COLS, DS_TYPE_F8_E4M3, codes, COLS, scales, SCALE_ROWS, SCALE_COLS, STRIDE};
    for (uint32_t r = 0; r < ROWS; r++) {
        float row[COLS];
        ds_matrix_row(kernels, &w, r, row);
        for (size_t c = 0; c < COLS; c++) {
            float expected = e4m3_by_definition(codes[r * COLS + c]) * scales[r / SCALE_ROWS * STRIDE + c / SCALE_COLS];
            ck_assert_msg(near(row[c], expected, 0), "%s: E4M3 code %#x at (%u, %zu) is %.9g, expected %.9g",
                          kernels->name, codes[r * COLS + c], r, c, (double)row[c], (double)expected);
        }
    }
    unguard(g);
}
END_TEST

START_TEST(matmul_of_e4m3_is_that_of_its_rows_as_floats_for_any_split)
{
    const ds_kernels *kernels = sets[_i];
    enum { M = 3, ROWS = 37, COLS = 129 };
    uint8_t codes[ROWS * COLS];
    for (size_t i = 0; i < sizeof codes; i++)
        codes[i] = (uint8_t)(random_bits() % 0x7f | (random_bits() & 0x80));
    float scales[1 * 2] = {0.01f, 3.0f};
    ds_matrix w = {ROWS, COLS, DS_TYPE_F8_E4M3, codes, COLS, scales, 128, 128, 2};
    float x[M][COLS], rows[ROWS][COLS], expected[M][ROWS];
    const float *x_rows[M] = {x[0], x[1], x[2]};
    fill(x[0], (size_t)M * COLS, UNIFORM);
    for (uint32_t r = 0; r < ROWS; r++)
        ds_matrix_row(kernels, &w, r, rows[r]);
    kernels->matmul[DS_TYPE_F32](expected[0], ROWS, x_rows, M, rows, sizeof rows[0], ROWS, COLS);
    float *scratch = malloc(ds_matmul_scratch(&w) * sizeof *scratch);
    for (uint32_t n0 = 0; n0 < ROWS; n0 += 5)
        for (uint32_t n1 = n0 + 1; n1 <= ROWS; n1 += 7) {
            float part[M][ROWS];
            ds_matmul(kernels, part[0], ROWS, x_rows, M, &w, n0, n1, scratch);
            for (size_t i = 0; i < M; i++)
                ck_assert_mem_eq(part[i], expected[i] + n0, (n1 - n0) * sizeof(float));
        }
    free(scratch);
}
END_TEST

START_TEST(matrix_row_and_matmul_take_plain_types_in_place)
{
    const ds_kernels *kernels = sets[_i];
    for (size_t t = 0; t < 3; t++) {
        product p = new_product(plain_types[t], 2, 9, 50, 0, UNIFORM);
        ds_matrix w = {.rows = 9, .cols = 50, .type = p.type, .data = p.w.data, .row_bytes = p.w_stride};
        ck_assert_uint_eq(ds_matmul_scratch(&w), 0);
        float row[50], expected[50], out[2 * 9];
        weights_of(&p, 8, expected);
        ds_matrix_row(kernels, &w, 8, row);
        ck_assert_mem_eq(row, expected, sizeof row);
        kernels->matmul[p.type](p.out, p.out_stride, p.x, p.m, p.w.data, p.w_stride, p.n, p.k);
        ds_matmul(kernels, out, 4, p.x, 2, &w, 5, 9, NULL);
        for (size_t i = 0; i < 2; i++)
            ck_assert_mem_eq(out + i * 4, p.out + i * p.out_stride + 5, 4 * sizeof(float));
        free_product(&p);
    }
}
END_TEST

/* ---- conversions ---- */

START_TEST(every_half_converts_exactly)
{
    const ds_kernels *kernels = sets[_i];
    for (size_t t = 1; t < 3; t++)
        for (uint32_t first = 0; first < 65536;) {
            size_t n = 1 + random_bits() % 70;
            n = n > 65536 - first ? 65536 - first : n;
            guarded in = guard(2 * n), out = guard(4 * n);
            for (size_t i = 0; i < n; i++)
                ((uint16_t *)in.data)[i] = (uint16_t)(first + i);
            kernels->to_f32[plain_types[t]](out.data, in.data, n);
            for (size_t i = 0; i < n; i++) {
                uint16_t half = (uint16_t)(first + i);
                float expected = t == 1 ? ds_f16_to_f32(half) : ds_bf16_to_f32(half);
                ck_assert_msg(near(((float *)out.data)[i], expected, 0), "%s: %s %#x is %.9g, expected %.9g",
                              kernels->name,
                              ds_type_name(plain_types[t]), half, (double)((float *)out.data)[i], (double)expected);
            }
            unguard(in);
            unguard(out);
            first += (uint32_t)n;
        }
}
END_TEST

START_TEST(floats_round_to_halves_as_the_reference_does)
{
    const ds_kernels *kernels = sets[_i];
    for (uint32_t half = 0; half < 0x7c00; half += 1 + random_bits() % 5) {
        float low = ds_f16_to_f32((uint16_t)half), high = ds_f16_to_f32((uint16_t)(half + 1));
        float middle = isinf(high) ? 65520.0f : (low + high) / 2;
        float in[6] = {low, middle, nextafterf(middle, 0), nextafterf(middle, INFINITY), -middle, -low};
        for (size_t n = 1; n <= 6; n++) {
            guarded source = guard(n * 4), out = guard(n * 2);
            memcpy(source.data, in + 6 - n, n * 4);
            kernels->f32_to_f16(out.data, source.data, n);
            for (size_t i = 0; i < n; i++)
                ck_assert_msg(((uint16_t *)out.data)[i] == ds_f32_to_f16(in[6 - n + i]),
                              "%s: %.9g is %#x, expected %#x",
                              kernels->name, (double)in[6 - n + i], ((uint16_t *)out.data)[i],
                              ds_f32_to_f16(in[6 - n + i]));
            unguard(source);
            unguard(out);
        }
    }
    float special[33] = {INFINITY, -INFINITY, NAN, FLT_MAX, -FLT_MAX, FLT_MIN, 1e-45f, 65519.9f, -65520.0f};
    uint16_t out[33], expected[33];
    kernels->f32_to_f16(out, special, 33);
    reference->f32_to_f16(expected, special, 33);
    ck_assert((out[2] & 0x7c00) == 0x7c00 && (out[2] & 0x3ff) != 0);
    out[2] = expected[2];
    ck_assert_mem_eq(out, expected, sizeof out);
}
END_TEST

/* ---- attention and rows ---- */

static const size_t lengths[] = {1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 512,
                                 1000};
enum { N_LENGTHS = sizeof lengths / sizeof *lengths };

START_TEST(weighted_sum_agrees_with_the_reference_and_rows_stand_alone)
{
    const ds_kernels *kernels = sets[_i];
    for (size_t l = 0; l < N_LENGTHS; l++)
        for (size_t m = 1; m <= 9; m++)
            for (values kind = 0; kind < ONE_INFINITY; kind++) {
                size_t k = lengths[l], n = lengths[(l + m) % N_LENGTHS] % 70 + 1, v_stride = k + l % 3,
                    p_stride = n + m % 2;
                guarded v = guard(((n - 1) * v_stride + k) * 4), p = guard(((m - 1) * p_stride + n) * 4),
                    keep = guard(m * 4);
                fill(v.data, (n - 1) * v_stride + k, kind);
                fill(p.data, (m - 1) * p_stride + n, kind == LARGE ? UNIFORM : kind);
                fill(keep.data, m, UNIFORM);
                guarded out = guard(m * k * 4);
                float *before = malloc(m * k * 4), *expected = malloc(m * k * 4), *alone = malloc(k * 4);
                fill(before, m * k, kind);
                memcpy(out.data, before, m * k * 4);
                memcpy(expected, before, m * k * 4);
                kernels->weighted_sum(out.data, k, keep.data, p.data, p_stride, m, v.data, v_stride, n, k);
                reference->weighted_sum(expected, k, keep.data, p.data, p_stride, m, v.data, v_stride, n, k);
                for (size_t i = 0; i < m; i++) {
                    for (size_t j = 0; j < k; j++) {
                        double magnitudes = fabs((double)before[i * k + j] * (double)((float *)keep.data)[i]);
                        for (size_t t = 0; t < n; t++)
                            magnitudes += fabs((double)((float *)p.data)[i * p_stride + t]) *
                                          fabs((double)((float *)v.data)[t * v_stride + j]);
                        ck_assert_msg(near(((float *)out.data)[i * k + j], expected[i * k + j],
                                           sum_tolerance(n + 1, magnitudes)),
                                      "%s weighted_sum, %s, m %zu n %zu k %zu: (%zu, %zu) is %.9g, expected %.9g",
                                      kernels->name,
                                      value_names[kind], m, n, k, i, j, (double)((float *)out.data)[i * k + j],
                                      (double)expected[i * k + j]);
                    }
                    memcpy(alone, before + i * k, k * 4);
                    kernels->weighted_sum(alone, k, (float *)keep.data + i, (float *)p.data + i * p_stride, p_stride, 1,
                                          v.data, v_stride, n, k);
                    ck_assert_mem_eq(alone, (float *)out.data + i * k, k * 4);
                }
                free(before);
                free(expected);
                free(alone);
                unguard(v);
                unguard(p);
                unguard(keep);
                unguard(out);
            }
}
END_TEST

/* ---- attention in 16 bits ---- */

enum { PAIR_PANEL = 2 * DS_PANEL_ROWS }; /* numbers of a pair of columns */

static void fill_words(int16_t *words, size_t n, int limit)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t bits = random_bits();
        words[i] = (int16_t)(bits % 5 == 0 ? (bits & 8 ? limit : -limit) : (int)(bits >> 8) % (2 * limit + 1) - limit);
    }
}

/* The largest products, which must not overflow, are among them. */
START_TEST(pair_scores_agree_with_the_reference_and_rows_stand_alone)
{
    const ds_kernels *kernels = sets[_i];
    for (size_t n_sections = 1; n_sections <= 9; n_sections += 4)
        for (size_t n = DS_PANEL_ROWS; n <= 4 * DS_PANEL_ROWS; n += DS_PANEL_ROWS)
            for (size_t m = 1; m <= DS_PANEL_ROWS; m++) {
                size_t words = n_sections * DS_SCALE_COLS * DS_PANEL_ROWS, stride = n + 3;
                guarded a = guard(words * sizeof(int16_t)), b = guard(words * n / DS_PANEL_ROWS * sizeof(int16_t));
                guarded a_scales = guard(m * sizeof(float)), scales = guard(n_sections * n * sizeof(float));
                guarded out = guard(((m - 1) * stride + n) * sizeof(float));
                fill_words(a.data, words, DS_MAX_15_BITS);
                fill_words(b.data, words * n / DS_PANEL_ROWS, DS_MAX_12_BITS);
                fill(a_scales.data, m, UNIFORM);
                fill(scales.data, n_sections * n, UNIFORM);
                float expected[DS_PANEL_ROWS * (4 * DS_PANEL_ROWS + 3)];
                memset(out.data, 0, ((m - 1) * stride + n) * sizeof(float));
                memset(expected, 0, sizeof expected);
                kernels->pair_scores(out.data, stride, a.data, a_scales.data, m, b.data, n, scales.data, n, n_sections);
                reference->pair_scores(expected, stride, a.data, a_scales.data, m, b.data, n, scales.data, n,
                                       n_sections);
                for (size_t at = 0; at < (m - 1) * stride + n; at++) {
                    float got = ((float *)out.data)[at];
                    double most = 0, row_scale = fabsf(((float *)a_scales.data)[at / stride]);
                    for (size_t g = 0; g < n_sections && at % stride < n; g++)
                        most += fabsf(((float *)scales.data)[g * n + at % stride]) *
                                (double)DS_MAX_15_BITS * DS_MAX_12_BITS * DS_SCALE_COLS;
                    ck_assert_msg(fabs((double)got - (double)expected[at]) <= 1e-6 * most * row_scale,
                                  "%s pair_scores, m %zu n %zu panels %zu: %zu is %.9g, expected %.9g", kernels->name,
                                  m, n, n_sections, at, (double)got, (double)expected[at]);
                }
                float alone[4 * DS_PANEL_ROWS];
                int16_t *row = a.data;
                for (size_t i = 1; i < m; i++) { /* each row in the first's place, among others' remains */
                    for (size_t pair = 0; pair < n_sections * DS_SCALE_COLS / 2; pair++)
                        memcpy(row + pair * PAIR_PANEL, row + pair * PAIR_PANEL + 2 * i, 2 * sizeof *row);
                    kernels->pair_scores(alone, n, row, (float *)a_scales.data + i, 1, b.data, n, scales.data, n,
                                         n_sections);
                    ck_assert_mem_eq(alone, (float *)out.data + i * stride, n * sizeof(float));
                }
                unguard(a), unguard(b), unguard(a_scales), unguard(scales), unguard(out);
            }
}
END_TEST

START_TEST(pair_sums_agree_with_the_reference_and_rows_stand_alone)
{
    static const size_t columns[] = {1, 5, 15, 16, 17, 24, 64, 127, 128};
    const ds_kernels *kernels = sets[_i];
    for (size_t shape = 0; shape < sizeof columns / sizeof *columns; shape++)
        for (size_t n_pairs = 1; n_pairs <= 32; n_pairs += 31)
            for (size_t m = 1; m <= DS_PANEL_ROWS; m++) {
                size_t n = columns[shape], blocks = (n + DS_PANEL_ROWS - 1) / DS_PANEL_ROWS, stride = n + 2,
                    count = (m - 1) * stride + n;
                guarded a = guard(n_pairs * PAIR_PANEL * sizeof(int16_t)),
                    b = guard(blocks * n_pairs * PAIR_PANEL * sizeof(int16_t));
                guarded keep = guard(m * sizeof(float)), factor = guard(m * sizeof(float)),
                    out = guard(count * sizeof(float));
                fill_words(a.data, n_pairs * PAIR_PANEL, DS_MAX_15_BITS);
                fill_words(b.data, blocks * n_pairs * PAIR_PANEL, DS_MAX_12_BITS);
                fill(keep.data, m, UNIFORM);
                fill(factor.data, m, UNIFORM);
                fill(out.data, count, UNIFORM);
                float expected[DS_PANEL_ROWS * 130], before[DS_PANEL_ROWS * 130];
                memcpy(expected, out.data, count * sizeof *expected);
                memcpy(before, out.data, count * sizeof *before);
                kernels->pair_sums(out.data, stride, keep.data, factor.data, a.data, m, b.data, n_pairs, n);
                reference->pair_sums(expected, stride, keep.data, factor.data, a.data, m, b.data, n_pairs, n);
                for (size_t at = 0; at < count; at++) {
                    size_t i = at / stride;
                    double most = fabs((double)before[at] * (double)((float *)keep.data)[i]) +
                                  fabs((double)((float *)factor.data)[i]) * DS_MAX_15_BITS * DS_MAX_12_BITS *
                                  2.0 * (double)n_pairs;
                    ck_assert_msg(fabs((double)((float *)out.data)[at] - (double)expected[at]) <= 1e-6 * most,
                                  "%s pair_sums, m %zu n %zu pairs %zu: %zu is %.9g, expected %.9g", kernels->name, m,
                                  n, n_pairs, at, (double)((float *)out.data)[at], (double)expected[at]);
                }
                int16_t *row = a.data;
                for (size_t i = 1; i < m; i++) {
                    for (size_t pair = 0; pair < n_pairs; pair++)
                        memcpy(row + pair * PAIR_PANEL, row + pair * PAIR_PANEL + 2 * i, 2 * sizeof *row);
                    kernels->pair_sums(before + i * stride, stride, (float *)keep.data + i, (float *)factor.data + i,
                                       row, 1, b.data, n_pairs, n);
                    ck_assert_mem_eq(before + i * stride, (float *)out.data + i * stride, n * sizeof(float));
                }
                unguard(a), unguard(b), unguard(keep), unguard(factor), unguard(out);
            }
}
END_TEST

START_TEST(rows_are_rounded_and_interleaved_as_the_reference_does)
{
    const ds_kernels *kernels = sets[_i];
    for (size_t n_cols = 1; n_cols <= 130; n_cols += n_cols < 40 ? 1 : 13) {
        guarded x = guard(n_cols * sizeof(float)), y = guard(n_cols * sizeof(float)),
            out = guard(n_cols * sizeof(int16_t));
        int16_t expected[130];
        for (int kind = 0; kind < 5; kind++) {
            fill(x.data, n_cols, UNIFORM);
            fill(y.data, n_cols, UNIFORM);
            float *at = (float *)x.data + n_cols / 2;
            for (size_t c = 0; c < n_cols && kind == 1; c++)
                ((float *)x.data)[c] = 1e-35f;
            *at = kind == 2 ? INFINITY : kind == 3 ? -NAN : kind == 4 ? -3e38f : *at;
            float scale = kernels->round_row(out.data, x.data, n_cols, DS_MAX_15_BITS);
            float reference_scale = reference->round_row(expected, x.data, n_cols, DS_MAX_15_BITS);
            ck_assert_mem_eq(out.data, expected, n_cols * sizeof *expected);
            ck_assert(memcmp(&scale, &reference_scale, sizeof scale) == 0 || (isnan(scale) && isnan(reference_scale)));
            ck_assert_int_eq(isnan(scale), kind == 2 || kind == 3);
            ck_assert_int_eq(scale == 0, kind == 1);
            for (size_t c = 0; c < n_cols && scale > 0; c++)
                ck_assert_double_le(fabs((double)((float *)x.data)[c] -
                                         (double)((int16_t *)out.data)[c] * (double)scale), 0.503 * (double)scale);
        }
        fill(x.data, n_cols, UNIFORM);
        for (int kind = 0; kind < 5; kind++) { /* the same numbers in half precision and as floats: the same integers */
            guarded halves = guard(n_cols * sizeof(uint16_t));
            reference->f32_to_f16(halves.data, x.data, n_cols);
            if (kind == 1)
                memset(halves.data, 0, n_cols * sizeof(uint16_t));
            if (kind >= 2)
                ((uint16_t *)halves.data)[n_cols - 1] = (uint16_t[]){0x7c00, 0xfe00, 0xfbff}[kind - 2]; /* infinity,
                                                                                                         * NaN, the
                                                                                                         * least */
            float scale = kernels->round_halves(out.data, halves.data, n_cols, DS_MAX_12_BITS), floats[130];
            reference->to_f32[DS_TYPE_F16](floats, halves.data, n_cols);
            float expected_scale = reference->round_row(expected, floats, n_cols, DS_MAX_12_BITS);
            ck_assert_mem_eq(out.data, expected, n_cols * sizeof *expected);
            ck_assert(memcmp(&scale, &expected_scale, sizeof scale) == 0 || (isnan(scale) && isnan(expected_scale)));
            ck_assert_int_eq(isnan(scale), kind == 2 || kind == 3);
            unguard(halves);
        }
        kernels->round_products(out.data, x.data, y.data, DS_MAX_15_BITS, n_cols);
        for (size_t c = 0; c < n_cols; c++)
            ck_assert_int_eq(((int16_t *)out.data)[c],
                             lrintf(((float *)x.data)[c] * ((float *)y.data)[c] * DS_MAX_15_BITS));
        unguard(x), unguard(y), unguard(out);

        for (size_t n_rows = 1; n_rows <= 64; n_rows += n_rows < 18 ? 1 : 23) {
            size_t stride = n_cols + 1, numbers = (n_rows - 1) * stride + n_cols;
            size_t blocks = (n_cols + DS_PANEL_ROWS - 1) / DS_PANEL_ROWS,
                turned = blocks * ((n_rows + 1) / 2) * PAIR_PANEL;
            guarded rows = guard(numbers * sizeof(int16_t)), pairs = guard(turned * sizeof(int16_t));
            fill_words(rows.data, numbers, DS_MAX_15_BITS);
            static int16_t expected_pairs[9 * 32 * PAIR_PANEL];
            size_t block = (n_rows + 1) / 2 * PAIR_PANEL;
            for (size_t first = 0; first < n_rows; first += DS_PANEL_ROWS) /* as attention does: not all rows at once */
                kernels->pair_rows((int16_t *)pairs.data + first * DS_PANEL_ROWS, block,
                                   (int16_t *)rows.data + first * stride, stride,
                                   n_rows - first < DS_PANEL_ROWS ? n_rows - first : DS_PANEL_ROWS, n_cols);
            reference->pair_rows(expected_pairs, block, rows.data, stride, n_rows, n_cols);
            ck_assert_mem_eq(pairs.data, expected_pairs, turned * sizeof(int16_t));
            unguard(pairs);
            if (n_rows <= DS_PANEL_ROWS && n_cols % 2 == 0) {
                pairs = guard(n_cols / 2 * PAIR_PANEL * sizeof(int16_t));
                kernels->pair_columns(pairs.data, rows.data, stride, n_rows, n_cols);
                reference->pair_columns(expected_pairs, rows.data, stride, n_rows, n_cols);
                ck_assert_mem_eq(pairs.data, expected_pairs, n_cols / 2 * PAIR_PANEL * sizeof(int16_t));
                unguard(pairs);
            }
            unguard(rows);
        }
    }
}
END_TEST

START_TEST(rows_of_bytes_are_interleaved_as_their_numbers_would_be)
{
    enum { MOST_COLS = 192, GUARD = 7 };
    static const size_t columns[] = {1, 2, 15, 16, 17, 40, 63, 64, 65, 100, 128, 131, 192};
    const ds_kernels *kernels = sets[_i];
    for (size_t shape = 0; shape < sizeof columns / sizeof *columns; shape++)
        for (size_t n_rows = 1; n_rows <= DS_PANEL_ROWS; n_rows++) {
            size_t n_cols = columns[shape], stride = n_cols + 3, bytes = (n_rows - 1) * stride + n_cols;
            size_t key_cols = (n_cols + DS_SCALE_COLS - 1) / DS_SCALE_COLS * DS_SCALE_COLS;
            size_t blocks = (n_cols + DS_PANEL_ROWS - 1) / DS_PANEL_ROWS, block = (n_rows + 1) / 2 * PAIR_PANEL + GUARD;
            size_t value_numbers = blocks * block - GUARD;
            guarded rows = guard(bytes), keys = guard(key_cols / 2 * PAIR_PANEL * sizeof(int16_t)),
                values = guard(value_numbers * sizeof(int16_t));
            for (size_t i = 0; i < bytes; i++)
                ((int8_t *)rows.data)[i] = (int8_t)random_bits();
            int16_t numbers[DS_PANEL_ROWS * MOST_COLS] = {0};
            for (size_t r = 0; r < n_rows; r++)
                for (size_t c = 0; c < n_cols; c++)
                    numbers[r * key_cols + c] = ((int8_t *)rows.data)[r * stride + c];
            static int16_t expected_keys[MOST_COLS / 2 * PAIR_PANEL],
                expected_values[MOST_COLS / DS_PANEL_ROWS * (8 * PAIR_PANEL + GUARD)];
            reference->pair_columns(expected_keys, numbers, key_cols, n_rows, key_cols);
            memset(values.data, 0x55, value_numbers * sizeof(int16_t));
            memset(expected_values, 0x55, value_numbers * sizeof(int16_t)); /* what lies between the blocks stays */
            reference->pair_rows(expected_values, block, numbers, key_cols, n_rows, n_cols);
            kernels->pair_codes(keys.data, values.data, block, rows.data, stride, n_rows, n_cols);
            ck_assert_msg(memcmp(keys.data, expected_keys, key_cols / 2 * PAIR_PANEL * sizeof(int16_t)) == 0,
                          "%s: keys, %zu rows of %zu", kernels->name, n_rows, n_cols);
            ck_assert_msg(memcmp(values.data, expected_values, value_numbers * sizeof(int16_t)) == 0,
                          "%s: values, %zu rows of %zu", kernels->name, n_rows, n_cols);
            unguard(rows), unguard(keys), unguard(values);
        }
}
END_TEST

START_TEST(rms_norm_agrees_with_exact_sums_also_in_place)
{
    const ds_kernels *kernels = sets[_i];
    for (size_t l = 0; l < N_LENGTHS; l++)
        for (values kind = 0; kind < ONE_INFINITY; kind++) {
            size_t n = lengths[l];
            guarded x = guard(n * 4), weight = guard(n * 4), out = guard(n * 4);
            fill(x.data, n, kind);
            fill(weight.data, n, MIXED);
            double squares = 0;
            for (size_t i = 0; i < n; i++)
                squares += (double)((float *)x.data)[i] * (double)((float *)x.data)[i];
            double scale = 1 / sqrt(squares / (double)n + (double)1e-6f);
            kernels->rms_norm(out.data, x.data, weight.data, 1e-6f, n);
            for (size_t i = 0; i < n; i++) {
                double expected = (double)((float *)x.data)[i] * scale * (double)((float *)weight.data)[i];
                ck_assert_msg(near(((float *)out.data)[i], (float)expected, fabs(expected) * 2e-6 + 1e-44),
                              "%s rms_norm, %s, n %zu: element %zu is %.9g, expected %.9g", kernels->name,
                              value_names[kind], n, i, (double)((float *)out.data)[i], expected);
            }
            kernels->rms_norm(x.data, x.data, weight.data, 1e-6f, n);
            ck_assert_mem_eq(x.data, out.data, n * 4);
            unguard(x);
            unguard(weight);
            unguard(out);
        }
}
END_TEST

START_TEST(exp_is_right_to_two_ulp_over_its_range)
{
    const ds_kernels *kernels = sets[_i];
    enum { N = 37 };
    for (double start = -120; start < 0; start += 0.05) {
        float x[N], in[N];
        for (size_t i = 0; i < N; i++)
            x[i] = in[i] = 3.0f + (float)(start + (double)random_bits() * 0x1p-32 * 0.05);
        double sum = 0;
        float got = kernels->exp_sum(x, 3.0f, N);
        for (size_t i = 0; i < N; i++) {
            double exact = exp((double)(in[i] - 3.0f));
            double ulp = fmax(ldexp(1, ilogb(exact) - 23), 1.5e-45);
            ck_assert_msg(fabs((double)x[i] - exact) <= 2 * ulp, "%s: exp(%.9g) is %.9g, expected %.9g", kernels->name,
                          (double)(in[i] - 3.0f), (double)x[i], exact);
            sum += (double)x[i];
        }
        ck_assert(fabs((double)got - sum) <= sum * 1e-5 + 1e-43);
    }
}
END_TEST

START_TEST(exp_sum_takes_any_length_and_infinities)
{
    const ds_kernels *kernels = sets[_i];
    for (size_t l = 0; l < N_LENGTHS; l++) {
        size_t n = lengths[l];
        guarded x = guard(n * 4);
        float *values_in = x.data, *expected = malloc(n * 4);
        for (size_t i = 0; i < n; i++)
            values_in[i] = expected[i] = i % 3 == 1 ? -INFINITY : 10 * random_float() - 10;
        float sum = kernels->exp_sum(values_in, 0.5f, n), expected_sum = reference->exp_sum(expected, 0.5f, n);
        ck_assert(near(sum, expected_sum, (double)expected_sum * 1e-6 * (double)n));
        for (size_t i = 0; i < n; i++) {
            if (i % 3 == 1)
                ck_assert(values_in[i] == 0.0f);
            ck_assert(near(values_in[i], expected[i], (double)expected[i] * 4e-7));
        }
        free(expected);
        unguard(x);
    }
}
END_TEST

START_TEST(swiglu_agrees_with_its_definition)
{
    const ds_kernels *kernels = sets[_i];
    for (size_t l = 0; l < N_LENGTHS; l++) {
        size_t n = lengths[l];
        guarded gate = guard(n * 4), up = guard(n * 4);
        float *g = gate.data, *u = up.data, *before = malloc(n * 4);
        for (size_t i = 0; i < n; i++) {
            g[i] = before[i] = i % 7 == 0 ? -200.0f : i % 7 == 1 ? 150.0f : i % 7 == 2 ? 0.0f : 20 * random_float();
            u[i] = random_float();
        }
        kernels->swiglu(g, u, n);
        for (size_t i = 0; i < n; i++) {
            double z = (double)before[i], expected = z / (1 + exp(-z)) * (double)u[i];
            ck_assert_msg(near(g[i], (float)expected, fabs(expected) * 1e-6 + 1e-36),
                          "%s swiglu: %.9g, expected %.9g (gate %.9g)", kernels->name, (double)g[i], expected, z);
        }
        free(before);
        unguard(gate);
        unguard(up);
    }
}
END_TEST

START_TEST(add_scaled_and_max_agree_with_the_reference)
{
    const ds_kernels *kernels = sets[_i];
    for (size_t l = 0; l < N_LENGTHS; l++)
        for (values kind = 0; kind < N_VALUES; kind++) {
            size_t n = lengths[l];
            guarded x = guard(n * 4), out = guard(n * 4);
            fill(x.data, n, kind);
            fill(out.data, n, kind == ONE_INFINITY ? UNIFORM : kind);
            float *expected = malloc(n * 4);
            memcpy(expected, out.data, n * 4);
            kernels->add_scaled(out.data, x.data, 0.3f, n);
            for (size_t i = 0; i < n; i++) {
                double exact = (double)expected[i] + (double)0.3f * (double)((float *)x.data)[i];
                double magnitude = fabs((double)expected[i]) + fabs((double)((float *)x.data)[i]);
                ck_assert(near(((float *)out.data)[i], (float)exact, magnitude * 2e-7 + 1e-44));
            }
            float largest = reference->max(x.data, n);
            ck_assert(kernels->max(x.data, n) == largest);
            /* the largest, wherever it stands; the others far below zero */
            for (size_t i = 0; i < n; i++)
                ((float *)x.data)[i] = -FLT_MAX;
            ((float *)x.data)[(l * 7 + kind) % n] = -1.0f;
            ck_assert(kernels->max(x.data, n) == -1.0f);
            free(expected);
            unguard(x);
            unguard(out);
        }
}
END_TEST

/* ---- interleaved weights ---- */

static const ds_type interleaved_types[] = {
#define INTERLEAVED(TYPE, ...) DS_TYPE_##TYPE,
#include "kernels/types.def"
};
enum { N_INTERLEAVED = sizeof interleaved_types / sizeof *interleaved_types };

typedef struct interleaved_product {
    ds_matrix w;
    guarded data;
    size_t m, n_blocks;
    guarded x; /* m prepared rows */
    const ds_x8 **rows;
    float *out;
} interleaved_product;

/* Weights and activations of the given kind; weights rounded by ds_panel_from_floats. */
static interleaved_product new_interleaved_product(ds_type type, size_t m, uint32_t n, uint32_t k, values kind)
{
    interleaved_product p = {.w = {.rows = n, .cols = k, .type = type, .row_bytes = ds_type_row_bytes(type, k)},
                             .m = m};
    size_t panels = (n + DS_PANEL_ROWS - 1) / DS_PANEL_ROWS, panel_bytes = DS_PANEL_ROWS * p.w.row_bytes;
    p.data = guard(panels * panel_bytes);
    p.w.data = p.data.data;
    float *values_in = malloc((size_t)DS_PANEL_ROWS * k * sizeof *values_in);
    for (size_t g = 0; g < panels; g++) {
        const float *rows[DS_PANEL_ROWS];
        size_t n_rows = n - g * DS_PANEL_ROWS < DS_PANEL_ROWS ? n - g * DS_PANEL_ROWS : DS_PANEL_ROWS;
        fill(values_in, n_rows * k, kind == ONE_INFINITY ? UNIFORM : kind);
        for (size_t r = 0; r < n_rows; r++)
            rows[r] = values_in + r * k;
        ds_panel_from_floats(type, (char *)p.data.data + g * panel_bytes, rows, n_rows, k);
    }
    p.n_blocks = ds_prepared_blocks(k);
    p.x = guard(m * p.n_blocks * sizeof(ds_x8));
    p.rows = malloc(m * sizeof *p.rows);
    for (size_t i = 0; i < m; i++) {
        ds_x8 *row = (ds_x8 *)p.x.data + i * p.n_blocks;
        fill(values_in, k, kind);
        reference->prepare_row(row, values_in, k);
        p.rows[i] = row;
    }
    free(values_in);
    p.out = malloc(m * n * sizeof *p.out);
    return p;
}

static void free_interleaved_product(interleaved_product *p)
{
    unguard(p->data);
    unguard(p->x);
    free((void *)p->rows);
    free(p->out);
}

/* Against sums in double precision of products with the weights as floats. Floats that are added one by one, as the
 * reference adds long rows, lose up to half a unit each time; a sum that overflowed would be off by a twentieth. */
static void check_interleaved_product(const ds_kernels *kernels, const interleaved_product *p, const char *what)
{
    double tolerance = 3e-6 + (p->w.cols > 2048 ? (double)p->w.cols / DS_BLOCK_COLS * 0x1p-25 : 0);
    float *w = malloc(p->w.cols * sizeof *w);
    for (uint32_t j = 0; j < p->w.rows; j++) {
        ds_matrix_row(kernels, &p->w, j, w);
        double largest_w = 0; /* minima count on their own, so a tolerance needs more than the products */
        for (size_t c = 0; c < p->w.cols; c++)
            largest_w = fmax(largest_w, fabs((double)w[c]));
        for (size_t i = 0; i < p->m; i++) {
            double sum = 0, magnitudes = 0;
            for (size_t c = 0; c < p->w.cols; c++) {
                const ds_x8 *x = &p->rows[i][c / DS_BLOCK_COLS];
                double value = (double)x->scale * x->q[c % DS_BLOCK_COLS];
                sum += value * (double)w[c];
                magnitudes += fabs(value) * largest_w;
            }
            float got = p->out[i * p->w.rows + j];
            ck_assert_msg(near(got, (float)sum, magnitudes * tolerance + 1e-42),
                          "%s matmul %s, %s, m %zu n %u k %u: output (%zu, %u) is %.9g, expected %.9g", kernels->name,
                          ds_type_name(p->w.type), what, p->m, p->w.rows, p->w.cols, i, j, (double)got, sum);
        }
    }
    free(w);
}

static const struct { size_t m; uint32_t n, k; } interleaved_shapes[] = {
    {1, 1, 1},  {1, 16, 32},  {2, 3, 7},   {3, 17, 31},  {4, 32, 33},   {5, 48, 64},   {6, 31, 100},
    {7, 15, 255}, {8, 33, 256}, {9, 64, 257}, {12, 16, 300}, {13, 47, 544}, {1, 80, 1408}, {200, 17, 40},
};
enum { N_INTERLEAVED_SHAPES = sizeof interleaved_shapes / sizeof *interleaved_shapes };

START_TEST(interleaved_products_agree_with_exact_sums_of_the_weights_as_floats)
{
    const ds_kernels *kernels = sets[_i];
    for (size_t t = 0; t < N_INTERLEAVED; t++)
        for (size_t s = 0; s < N_INTERLEAVED_SHAPES; s++)
            for (values kind = 0; kind < N_VALUES; kind++) {
                interleaved_product p = new_interleaved_product(interleaved_types[t], interleaved_shapes[s].m,
                                                                interleaved_shapes[s].n, interleaved_shapes[s].k, kind);
                kernels->matmul_interleaved[p.w.type](p.out, p.w.rows, p.rows, p.m, p.w.data, p.w.rows, p.w.cols);
                if (kind == ONE_INFINITY) /* the row's block has no scale: nothing it touches may look like a number */
                    for (size_t i = 0; i < p.m * p.w.rows; i++)
                        ck_assert_msg(isnan(p.out[i]), "%s matmul %s lost an infinity", kernels->name,
                                      ds_type_name(p.w.type));
                else
                    check_interleaved_product(kernels, &p, value_names[kind]);
                free_interleaved_product(&p);
            }
}
END_TEST

/* All small integers of a panel's weights at one end of their range, in every block of every row, and scales at
 * theirs. */
static void fill_blocks(ds_type type, uint8_t *panel, uint32_t k, bool high)
{
    size_t blocks = ds_prepared_blocks(k);
    for (size_t b = 0; b < blocks; b += SUPERBLOCK_BLOCKS) {
        uint8_t *superblock = (uint8_t *)ds_superblock(type, panel, b / SUPERBLOCK_BLOCKS);
        size_t n_blocks = blocks - b < SUPERBLOCK_BLOCKS ? blocks - b : SUPERBLOCK_BLOCKS;
        memset(superblock + ds_header_bytes(type), high ? 0xff : 0, n_blocks * ds_block_bytes(type));
        if (ds_has_six_bits(type))
            memset(superblock + HEADER_SIX_BITS, 0xff, 3 * VECTOR);
        if (type == DS_TYPE_P6)
            memset(superblock + HEADER_SIXTEENTHS, high ? 127 : -128, 4 * VECTOR);
    }
}

/* Lengths of rows that V2's and V3's matrices have, up to the longest, and an odd one. Sums in 16 bits end within a
 * block and sums in 32 bits within a superblock, however long a row is. */
static const uint32_t long_rows[] = {300, 1536, 5120, 12288, 16384, 18432};
enum { N_LONG_ROWS = sizeof long_rows / sizeof *long_rows };

static void check_largest_integers(const ds_kernels *kernels, ds_type type, uint32_t k, bool high, float value)
{
    enum { M = 13, N = 33 };
    interleaved_product p = new_interleaved_product(type, M, N, k, UNIFORM);
    size_t panel_bytes = DS_PANEL_ROWS * p.w.row_bytes;
    for (size_t g = 0; g * DS_PANEL_ROWS < N; g++)
        fill_blocks(type, (uint8_t *)p.data.data + g * panel_bytes, k, high);
    float *row = malloc(k * sizeof *row);
    for (size_t c = 0; c < k; c++)
        row[c] = value;
    for (size_t i = 0; i < M; i++)
        reference->prepare_row((ds_x8 *)p.x.data + i * p.n_blocks, row, k);
    ck_assert_int_eq(p.rows[M - 1]->q[5], value > 0 ? 127 : -127);
    for (size_t m = 1; m <= M; m += k > long_rows[0] ? M - 1 : 1) {
        p.m = m;
        kernels->matmul_interleaved[type](p.out, N, p.rows, m, p.w.data, N, k);
        check_interleaved_product(kernels, &p, "largest integers");
    }
    free(row);
    free_interleaved_product(&p);
}

/* Sums in 16 bits are as large as they can be if all products have one sign. */
START_TEST(interleaved_products_of_the_largest_integers_do_not_overflow)
{
    const ds_kernels *kernels = sets[_i / N_LONG_ROWS];
    for (size_t t = 0; t < N_INTERLEAVED; t++)
        for (int ends = 0; ends < 4; ends++)
            check_largest_integers(kernels, interleaved_types[t], long_rows[_i % N_LONG_ROWS], ends % 2 == 0,
                                   ends / 2 == 0 ? 1.0f : -1.0f);
}
END_TEST

START_TEST(interleaved_products_have_the_same_bits_for_any_split)
{
    const ds_kernels *kernels = sets[_i];
    for (size_t t = 0; t < N_INTERLEAVED; t++)
        for (size_t s = 0; s < N_INTERLEAVED_SHAPES; s++) {
            interleaved_product p = new_interleaved_product(interleaved_types[t], interleaved_shapes[s].m,
                                                            interleaved_shapes[s].n, interleaved_shapes[s].k, MIXED);
            kernels->matmul_interleaved[p.w.type](p.out, p.w.rows, p.rows, p.m, p.w.data, p.w.rows, p.w.cols);
            float *part = malloc(p.m * p.w.rows * sizeof *part);
            for (int trial = 0; trial < 20; trial++) {
                size_t i0 = random_bits() % p.m, i1 = i0 + 1 + random_bits() % (p.m - i0);
                uint32_t j0 = random_bits() % p.w.rows, j1 = j0 + 1 + random_bits() % (p.w.rows - j0);
                ds_matmul_prepared(kernels, part, j1 - j0, p.rows + i0, i1 - i0, &p.w, j0, j1);
                for (size_t i = i0; i < i1; i++)
                    ck_assert_msg(memcmp(part + (i - i0) * (j1 - j0), p.out + i * p.w.rows + j0, (j1 - j0) * 4) == 0,
                                  "%s matmul %s, m %zu n %u k %u: row %zu differs in rows %zu to %zu, columns %u to %u",
                                  kernels->name, ds_type_name(p.w.type), p.m, p.w.rows, p.w.cols, i, i0, i1 - 1, j0,
                                  j1 - 1);
            }
            free(part);
            free_interleaved_product(&p);
        }
}
END_TEST

START_TEST(matmul_of_interleaved_weights_prepares_rows_itself)
{
    const ds_kernels *kernels = sets[_i];
    enum { M = 37, N = 40, K = 77 };
    for (size_t t = 0; t < N_INTERLEAVED; t++) {
        interleaved_product p = new_interleaved_product(interleaved_types[t], M, N, K, UNIFORM);
        float *x = malloc((size_t)M * K * sizeof *x), *out = malloc((size_t)M * N * sizeof *out);
        const float *rows[M];
        fill(x, (size_t)M * K, MIXED);
        for (size_t i = 0; i < M; i++) {
            rows[i] = x + i * K;
            kernels->prepare_row((ds_x8 *)p.x.data + i * p.n_blocks, rows[i], K);
        }
        ds_matmul_prepared(kernels, p.out, N - 3, p.rows, M, &p.w, 3, N);
        guarded scratch = guard(ds_matmul_scratch(&p.w) * sizeof(float));
        ds_matmul(kernels, out, N - 3, rows, M, &p.w, 3, N, scratch.data);
        ck_assert_mem_eq(out, p.out, (size_t)M * (N - 3) * sizeof *out);
        unguard(scratch);
        free(x);
        free(out);
        free_interleaved_product(&p);
    }
}
END_TEST

START_TEST(prepared_rows_are_the_references_bits)
{
    const ds_kernels *kernels = sets[_i];
    for (size_t l = 0; l < N_LENGTHS; l++)
        for (values kind = 0; kind < N_VALUES; kind++) {
            size_t k = lengths[l], bytes = ds_prepared_blocks((uint32_t)k) * sizeof(ds_x8);
            guarded x = guard(k * 4), out = guard(bytes);
            ds_x8 *expected = malloc(bytes), *got = out.data;
            fill(x.data, k, kind);
            reference->prepare_row(expected, x.data, k);
            kernels->prepare_row(got, x.data, k);
            for (size_t b = 0; b < bytes / sizeof(ds_x8); b++) {
                if (isnan(expected[b].scale)) {
                    ck_assert(isnan(got[b].scale) && isnan(got[b].sum) && isnan(got[b].halves[0]) &&
                              isnan(got[b].halves[1]));
                    continue;
                }
                ck_assert_mem_eq(&got[b], &expected[b], sizeof(ds_x8));
                for (size_t c = 0; c < DS_BLOCK_COLS && b * DS_BLOCK_COLS + c < k; c++) {
                    double value = (double)((float *)x.data)[b * DS_BLOCK_COLS + c];
                    ck_assert(fabs((double)got[b].scale * got[b].q[c] - value) <=
                              (double)got[b].scale * 0.5001 + (double)1e-36f);
                }
            }
            free(expected);
            unguard(x);
            unguard(out);
        }
}
END_TEST

/* The root of the mean square error of rounding normal numbers, in units of their deviation, may be at most this:
 * what the common quantisers of the same number of bits reach, or less. */
static const struct { ds_type type; double most; } interleaved_errors[] = {
    {DS_TYPE_P4, 0.0705}, {DS_TYPE_P5, 0.0350}, {DS_TYPE_P6, 0.0172}, {DS_TYPE_P8, 0.0052}, {DS_TYPE_P4S, 0.0815},
    {DS_TYPE_P5S, 0.0405}, {DS_TYPE_P4M, 0.0615}, {DS_TYPE_P5M, 0.0297},
};

START_TEST(rounding_errors_of_interleaved_types_are_small)
{
    enum { K = 1024 };
    static float x[DS_PANEL_ROWS][K], back[K];
    const float *rows[DS_PANEL_ROWS];
    for (size_t r = 0; r < DS_PANEL_ROWS; r++) {
        rows[r] = x[r];
        for (size_t c = 0; c < K; c++) {
            float u = (float)(random_bits() >> 1 | 1) * 0x1p-31f, v = (float)random_bits() * 0x1p-32f;
            x[r][c] = 0.02f * sqrtf(-2 * logf(u)) * cosf(6.2831853f * v);
        }
    }
    ds_type type = interleaved_errors[_i].type;
    uint8_t *panel = malloc(DS_PANEL_ROWS * ds_type_row_bytes(type, K));
    ds_panel_from_floats(type, panel, rows, DS_PANEL_ROWS, K);
    ds_matrix w = {.rows = DS_PANEL_ROWS, .cols = K, .type = type, .data = panel,
                   .row_bytes = ds_type_row_bytes(type, K)};
    double error = 0, power = 0;
    for (uint32_t r = 0; r < DS_PANEL_ROWS; r++) {
        ds_matrix_row(reference, &w, r, back);
        for (size_t c = 0; c < K; c++) {
            error += pow((double)(back[c] - x[r][c]), 2);
            power += pow((double)x[r][c], 2);
        }
    }
    double relative = sqrt(error / power);
    ck_assert_msg(relative <= interleaved_errors[_i].most, "%s: relative error %.5f", ds_type_name(type), relative);
    free(panel);
}
END_TEST

START_TEST(panels_from_floats_keep_what_they_can_hold)
{
    enum { K = 300 };
    float row[K], back[K];
    const float *rows[1] = {row};
    for (size_t t = 0; t < N_INTERLEAVED; t++) {
        ds_type type = interleaved_types[t];
        guarded panel = guard(DS_PANEL_ROWS * ds_type_row_bytes(type, K));
        ds_matrix w = {.rows = 1, .cols = K, .type = type, .data = panel.data, .row_bytes = ds_type_row_bytes(type, K)};
        static const float sizes[] = {1.0f, 3e38f, 1e-37f};
        for (size_t size = 0; size < 3; size++) {
            for (size_t c = 0; c < K; c++)
                row[c] = c < 256 ? (c % 5 == 0 ? -sizes[size] : 0.0f) : 0.0f;
            ds_panel_from_floats(type, panel.data, rows, 1, K);
            ds_matrix_row(reference, &w, 0, back);
            for (size_t c = 0; c < K; c++)
                ck_assert_msg(near(back[c], row[c], (double)sizes[size] * 5e-3), "%s: %.9g became %.9g",
                              ds_type_name(type), (double)row[c], (double)back[c]);
        }
        row[260] = NAN; /* in the second superblock */
        ds_panel_from_floats(type, panel.data, rows, 1, K);
        ds_matrix_row(reference, &w, 0, back);
        for (size_t c = 0; c < K; c++)
            ck_assert(isnan(back[c]) == (c >= 256));
        unguard(panel);
    }
}
END_TEST

static const ds_type block_types[] = {
#define BLOCK(TYPE, ...) DS_TYPE_##TYPE,
#include "kernels/types.def"
};
enum { N_BLOCK_TYPES = sizeof block_types / sizeof *block_types };

/* Half-precision scales of any size but, of the one type that is rounded, within 2^20 of each other; one is NaN. */
static void tame_scales(uint8_t *row, size_t row_bytes, size_t block_bytes, bool nan)
{
    for (size_t at = 0; at < row_bytes; at += block_bytes) {
        unsigned scale = ds_read_u16(row + at), exponent = 1 + (scale >> 10 & 31) * 20 / 31;
        scale = nan && at == 0 ? 0x7e00 : (scale & 0x83ff) | exponent << 10;
        row[at] = (uint8_t)scale;
        row[at + 1] = (uint8_t)(scale >> 8);
    }
}

START_TEST(panels_from_blocks_are_exact)
{
    ds_type from = block_types[_i], to = ds_type_twin(from);
    if (to == DS_TYPE_COUNT) /* rounded from floats instead */
        return;
    bool rounded = from == DS_TYPE_IQ4_XS;
    ck_assert(ds_type_is_interleaved(to));
    size_t k = ds_type_row_bytes(from, 32) > 0 ? 352 : 512;
    size_t row_bytes = ds_type_row_bytes(from, k);
    guarded rows[DS_PANEL_ROWS], panel = guard(DS_PANEL_ROWS * ds_type_row_bytes(to, k));
    const void *pointers[DS_PANEL_ROWS];
    float expected[512], got[512];
    for (size_t r = 0; r < DS_PANEL_ROWS; r++) {
        rows[r] = guard(row_bytes);
        for (size_t i = 0; i < row_bytes; i++)
            ((uint8_t *)rows[r].data)[i] = (uint8_t)random_bits();
        if (rounded)
            tame_scales((uint8_t *)rows[r].data, row_bytes, ds_type_row_bytes(from, 256), r == 3);
        pointers[r] = rows[r].data;
    }
    bool is_finite = ds_panel_from_blocks(from, panel.data, pointers, DS_PANEL_ROWS, k), all_finite = true;
    ds_matrix w = {DS_PANEL_ROWS, (uint32_t)k, to, panel.data, ds_type_row_bytes(to, k), NULL, 0, 0, 0};
    for (uint32_t r = 0; r < DS_PANEL_ROWS; r++) {
        reference->to_f32[from](expected, pointers[r], k);
        ds_matrix_row(reference, &w, r, got);
        for (size_t c = 0; c < k; c++) {
            all_finite = all_finite && isfinite(expected[c]);
            ck_assert_msg(near(got[c], expected[c], rounded ? fabs((double)expected[c]) * 0x1p-11 : 0),
                          "%s row %u column %zu is %.9g, expected %.9g", ds_type_name(from), r, c,
                          (double)got[c], (double)expected[c]);
        }
        unguard(rows[r]);
    }
    ck_assert(is_finite == all_finite);
    unguard(panel);
}
END_TEST

/* ---- choosing ---- */

START_TEST(sets_are_found_by_name_and_the_best_by_default)
{
    const ds_kernels *kernels = NULL, *automatic = NULL;
    ck_assert_int_eq(ds_kernels_select("c", &kernels), DSV2_OK);
    ck_assert_str_eq(kernels->name, "c");
    ck_assert_int_eq(ds_kernels_select(NULL, &automatic), DSV2_OK);
    ck_assert_int_eq(ds_kernels_select("auto", &kernels), DSV2_OK);
    ck_assert_ptr_eq(kernels, automatic);
    ck_assert_ptr_eq(automatic, sets[n_sets - 1]);
}
END_TEST

/* A set that leaves out a kernel has the reference's. */
START_TEST(every_set_has_every_kernel)
{
    bool runs;
    const ds_kernels *kernels;
    for (size_t i = 0; (kernels = ds_kernels_set(i, &runs)) != NULL; i++) {
        for (ds_type type = 0; type < DS_TYPE_COUNT; type++) {
            ck_assert_int_eq(kernels->matmul[type] != NULL, ds_type_is_plain(type));
            ck_assert_int_eq(kernels->to_f32[type] != NULL, ds_type_is_plain(type) || ds_type_is_block(type));
            ck_assert_int_eq(kernels->matmul_interleaved[type] != NULL, ds_type_is_interleaved(type));
        }
        ck_assert(kernels->prepare_row != NULL && kernels->f32_to_f16 != NULL);
        ck_assert(kernels->weighted_sum != NULL && kernels->rms_norm != NULL && kernels->exp_sum != NULL);
        ck_assert(kernels->swiglu != NULL && kernels->add_scaled != NULL && kernels->max != NULL);
        ck_assert(kernels->round_row != NULL && kernels->round_halves != NULL && kernels->round_products != NULL);
        ck_assert(kernels->pair_columns != NULL && kernels->pair_rows != NULL && kernels->pair_codes != NULL);
        ck_assert(kernels->pair_scores != NULL && kernels->pair_sums != NULL && kernels->rotate != NULL);
        ck_assert(kernels->unpack_q8 != NULL && kernels->split_pairs != NULL && kernels->unpack_pairs != NULL);
    }
}
END_TEST

/* The message about a set that does not exist lists those that do. */
START_TEST(an_unknown_name_is_answered_with_the_names_of_all_sets)
{
    const ds_kernels *kernels, *known;
    bool runs;
    ck_assert_int_eq(ds_kernels_select("sse9", &kernels), DSV2_ERROR_ARGUMENT);
    ck_assert_ptr_nonnull(strstr(dsv2_last_error(), "there are auto, "));
    for (size_t i = 0; (known = ds_kernels_set(i, &runs)) != NULL; i++)
        ck_assert_ptr_nonnull(strstr(dsv2_last_error(), known->name));
}
END_TEST

/* What a host calls types, and what it is told and given. */
START_TEST(types_have_the_names_that_hosts_know)
{
    ck_assert_int_eq(ds_type_public(DS_TYPE_BF16), DSV2_WEIGHTS_BF16);
    ck_assert_int_eq(ds_type_public(DS_TYPE_Q4_K), DSV2_WEIGHTS_Q4_K);
    ck_assert_int_eq(ds_type_public(DS_TYPE_P4), DSV2_WEIGHTS_Q4_K);
    ck_assert_int_eq(ds_type_public(DS_TYPE_P6), DSV2_WEIGHTS_Q6_K);
    ck_assert_int_eq(ds_type_public(DS_TYPE_P8), DSV2_WEIGHTS_Q8_0);
    ck_assert_int_eq(ds_type_public(DS_TYPE_P5M), DSV2_WEIGHTS_AS_STORED); /* it has none */
    ck_assert_int_eq(ds_type_public(DS_TYPE_IQ4_NL), DSV2_WEIGHTS_AS_STORED);
    ck_assert_int_eq(ds_type_asked(DSV2_WEIGHTS_F16), DS_TYPE_F16);
    ck_assert_int_eq(ds_type_asked(DSV2_WEIGHTS_Q4_0), DS_TYPE_P4S);
    ck_assert_int_eq(ds_type_asked(DSV2_WEIGHTS_Q5_K), DS_TYPE_P5);
    ck_assert_int_eq(ds_type_asked(DSV2_WEIGHTS_F8_E4M3), DS_TYPE_COUNT);
    ck_assert_int_eq(ds_type_named(DSV2_WEIGHTS_F8_E4M3), DS_TYPE_F8_E4M3);
    ck_assert_int_eq(ds_type_asked(DSV2_WEIGHTS_AS_STORED), DS_TYPE_COUNT);
    ck_assert_int_eq(ds_type_named(DSV2_WEIGHTS_MIXED), DS_TYPE_COUNT);
    ck_assert_int_eq(ds_type_asked((dsv2_weight_type)-1), DS_TYPE_COUNT);
}
END_TEST

/* No number is given twice, and each leads back to its type; a twin holds the integers as its block type has them. */
START_TEST(the_table_of_types_does_not_contradict_itself)
{
    for (ds_type type = 0; type < DS_TYPE_COUNT; type++) {
        uint8_t code = ds_type_pack_code(type);
        ck_assert_int_eq(code != 0, ds_type_is_plain(type) || ds_type_is_interleaved(type));
        ck_assert_int_eq(ds_type_of_pack_code(code), code != 0 ? type : DS_TYPE_COUNT);
    }
#define PLAIN(TYPE, name, public, gguf, ...) ck_assert_int_eq(ds_type_of_gguf(gguf), DS_TYPE_##TYPE);
#define BLOCK(TYPE, name, public, gguf, elements, bytes, section, zero, twin, text)                                    \
    ck_assert_int_eq(ds_type_of_gguf(gguf), DS_TYPE_##TYPE);                                                           \
    ck_assert(DS_TYPE_##twin == DS_TYPE_COUNT || ds_integer_zero(DS_TYPE_##twin) == (zero));
#include "kernels/types.def"
}
END_TEST

START_TEST(type_sizes_are_checked)
{
    ck_assert_uint_eq(ds_type_row_bytes(DS_TYPE_F32, 5), 20);
    ck_assert_uint_eq(ds_type_row_bytes(DS_TYPE_BF16, 5), 10);
    ck_assert_uint_eq(ds_type_row_bytes(DS_TYPE_F8_E4M3, 5), 5);
    ck_assert_uint_eq(ds_type_row_bytes(DS_TYPE_F32, UINT64_MAX / 2), 0);
    ck_assert_uint_eq(ds_type_row_bytes(DS_TYPE_COUNT, 32), 0);
    ck_assert_str_eq(ds_type_name(DS_TYPE_F16), "F16");
    ck_assert_str_eq(ds_type_name(DS_TYPE_COUNT), "unknown");
}
END_TEST

int main(int argc, char **argv)
{
    if (!find_sets())
        return 1;
    if (argc > 1 && strcmp(argv[1], "--bench") == 0)
        return bench_kernels(sets, n_sets);
    Suite *suite = suite_create("kernels");
    TCase *choosing = tcase_create("choosing"), *each = tcase_create("each set"),
        *packing = tcase_create("interleaving");
    tcase_add_test(choosing, sets_are_found_by_name_and_the_best_by_default);
    tcase_add_test(choosing, every_set_has_every_kernel);
    tcase_add_test(choosing, an_unknown_name_is_answered_with_the_names_of_all_sets);
    tcase_add_test(choosing, types_have_the_names_that_hosts_know);
    tcase_add_test(choosing, the_table_of_types_does_not_contradict_itself);
    tcase_add_test(choosing, type_sizes_are_checked);
    tcase_set_timeout(each, 300);
    tcase_add_loop_test(each, matmul_agrees_with_exact_sums, 0, n_sets);
    tcase_add_loop_test(each, matmul_rows_have_the_same_bits_alone_and_in_company, 0, n_sets);
    tcase_add_loop_test(each, e4m3_rows_are_exact_with_their_block_scales, 0, n_sets);
    tcase_add_loop_test(each, matmul_of_e4m3_is_that_of_its_rows_as_floats_for_any_split, 0, n_sets);
    tcase_add_loop_test(each, matrix_row_and_matmul_take_plain_types_in_place, 0, n_sets);
    tcase_add_loop_test(each, every_half_converts_exactly, 0, n_sets);
    tcase_add_loop_test(each, floats_round_to_halves_as_the_reference_does, 0, n_sets);
    tcase_add_loop_test(each, weighted_sum_agrees_with_the_reference_and_rows_stand_alone, 0, n_sets);
    tcase_add_loop_test(each, pair_scores_agree_with_the_reference_and_rows_stand_alone, 0, n_sets);
    tcase_add_loop_test(each, pair_sums_agree_with_the_reference_and_rows_stand_alone, 0, n_sets);
    tcase_add_loop_test(each, rows_are_rounded_and_interleaved_as_the_reference_does, 0, n_sets);
    tcase_add_loop_test(each, rows_of_bytes_are_interleaved_as_their_numbers_would_be, 0, n_sets);
    tcase_add_loop_test(each, rms_norm_agrees_with_exact_sums_also_in_place, 0, n_sets);
    tcase_add_loop_test(each, exp_is_right_to_two_ulp_over_its_range, 0, n_sets);
    tcase_add_loop_test(each, exp_sum_takes_any_length_and_infinities, 0, n_sets);
    tcase_add_loop_test(each, swiglu_agrees_with_its_definition, 0, n_sets);
    tcase_add_loop_test(each, add_scaled_and_max_agree_with_the_reference, 0, n_sets);
    tcase_add_loop_test(each, interleaved_products_agree_with_exact_sums_of_the_weights_as_floats, 0, n_sets);
    tcase_add_loop_test(each, interleaved_products_of_the_largest_integers_do_not_overflow, 0,
                        (int)n_sets * N_LONG_ROWS);
    tcase_add_loop_test(each, interleaved_products_have_the_same_bits_for_any_split, 0, n_sets);
    tcase_add_loop_test(each, matmul_of_interleaved_weights_prepares_rows_itself, 0, n_sets);
    tcase_add_loop_test(each, prepared_rows_are_the_references_bits, 0, n_sets);
    tcase_add_loop_test(packing, rounding_errors_of_interleaved_types_are_small, 0,
                        (int)(sizeof interleaved_errors / sizeof *interleaved_errors));
    tcase_add_test(packing, panels_from_floats_keep_what_they_can_hold);
    tcase_add_loop_test(packing, panels_from_blocks_are_exact, 0, N_BLOCK_TYPES);
    suite_add_tcase(suite, packing);
    suite_add_tcase(suite, choosing);
    suite_add_tcase(suite, each);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}

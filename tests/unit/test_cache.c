/* The KV cache: rows of every cache type and shape, MLA's and another kind's; pages that are shared and copied. */
#include "cache/cache.h"
#include "snapshot/format.h"
#include "support/model.h"
#include "support/run.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct row_shape {
    uint32_t latent, rope;
} row_shape;

/* V2's own, the goldens' and a small model's; odd, small and empty ones. */
static const row_shape shapes[] = {{512, 64}, {64, 16}, {48, 8}, {96, 16}, {1, 2}, {2, 2}, {7, 6}, {20, 0}, {130, 34},
                                   {257, 18}, {1024, 128}};
enum { N_SHAPES = sizeof shapes / sizeof *shapes, MAX_WIDTH = 1024 + 128 };

#define PUBLISHED ((uint32_t[]){512, 64})

static const dsv2_cache_type types[] = {DSV2_CACHE_F32, DSV2_CACHE_F16, DSV2_CACHE_Q8, DSV2_CACHE_Q6};
enum { N_TYPES = sizeof types / sizeof *types };

/* Set number `set` of those that this build and processor have, the reference first. */
static const ds_kernels *kernels_of(size_t set)
{
    const ds_kernels *kernels;
    ck_assert(ds_kernels_select(test_kernel_set(set), &kernels) == DSV2_OK);
    return kernels;
}

static ds_cache_shape shape_of(dsv2_cache_type type, row_shape row)
{
    ds_cache_shape shape;
    ck_assert(ds_cache_shape_init(&shape, &ds_mla_row, (uint32_t[]){row.latent, row.rope}, type, 3) == DSV2_OK);
    return shape;
}

static uint64_t random_state = 88172645463325252u;

static uint32_t random_bits(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 40);
}

static float random_float(void)
{
    float sum = 0; /* near normal */
    for (int i = 0; i < 4; i++)
        sum += (float)random_bits() * 0x1p-24f - 0.5f;
    return sum;
}

/* Latents with a few loud channels, as real ones have. */
static void random_row(float *row, row_shape shape)
{
    for (uint32_t i = 0; i < shape.latent; i++)
        row[i] = random_float() * (i % 37 == 5 ? 8.0f : 1.0f);
    for (uint32_t i = 0; i < shape.rope; i++)
        row[shape.latent + i] = random_float() * 3;
}

static float largest(const float *x, size_t n)
{
    float max = 0;
    for (size_t i = 0; i < n; i++)
        max = fabsf(x[i]) > max ? fabsf(x[i]) : max;
    return max;
}

static double norm(const float *x, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    return sqrt(sum);
}

static void round_trip(const ds_cache_shape *shape, const ds_kernels *kernels, const float *row, uint8_t *stored,
                       float *out)
{
    size_t width = shape->width;
    float copy[MAX_WIDTH];
    memcpy(copy, row, width * sizeof *row);
    ds_cache_encode_row(shape, kernels, copy, stored);
    ds_cache_decode_rows(shape, kernels, stored, 1, out);
    ds_cache_rotate_row(shape, kernels, out);
}

START_TEST(rows_of_published_shapes_have_their_published_size)
{
    const struct {
        dsv2_cache_type type;
        size_t row, v2_lite, v2;
    } sizes[] = {
        {DSV2_CACHE_F32, 2304, 62208, 138240},
        {DSV2_CACHE_F16, 1152, 31104, 69120},
        {DSV2_CACHE_Q8, 656, 17712, 39360},
        {DSV2_CACHE_Q6, 432, 11664, 25920},
    };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        ds_cache_shape lite, large;
        ck_assert(ds_cache_shape_init(&lite, &ds_mla_row, PUBLISHED, sizes[i].type, 27) == DSV2_OK);
        ck_assert(ds_cache_shape_init(&large, &ds_mla_row, PUBLISHED, sizes[i].type, 60) == DSV2_OK);
        ck_assert_uint_eq(lite.row_bytes, sizes[i].row);
        ck_assert_uint_eq(lite.page_bytes, sizes[i].v2_lite * DS_PAGE_TOKENS);
        ck_assert_uint_eq(large.page_bytes, sizes[i].v2 * DS_PAGE_TOKENS);
    }
    ds_cache_shape shape;
    ck_assert(ds_cache_shape_init(&shape, &ds_mla_row, PUBLISHED, (dsv2_cache_type)5, 1) == DSV2_ERROR_ARGUMENT);
}
END_TEST

/* Of the norm, for the latent; of the largest element, for the RoPE part. */
START_TEST(rows_come_back_within_their_type_s_precision)
{
    const struct {
        double latent, rope;
    } bounds[] = {
        [DSV2_CACHE_F32] = {0, 0}, [DSV2_CACHE_F16] = {0.0005, 0.0005}, [DSV2_CACHE_Q8] = {0.02, 0.0005},
            [DSV2_CACHE_Q6] = {0.055, 0.0045}};
    const ds_kernels *kernels = kernels_of(0);
    for (int t = 0; t < N_TYPES; t++)
        for (int s = 0; s < N_SHAPES; s++)
            for (int round = 0; round < 20; round++) {
                ds_cache_shape shape = shape_of(types[t], shapes[s]);
                /* In q6 the last element of an odd latent goes with the RoPE part. */
                uint32_t odd = types[t] == DSV2_CACHE_Q6 ? shapes[s].latent % 2 : 0;
                uint32_t lora = shape.parts[DS_MLA_LATENT].width - odd, rope = shape.parts[DS_MLA_ROPE].width + odd;
                float row[MAX_WIDTH], out[MAX_WIDTH], difference[MAX_WIDTH];
                uint8_t stored[MAX_WIDTH * 4];
                random_row(row, shapes[s]);
                round_trip(&shape, kernels, row, stored, out);
                for (uint32_t i = 0; i < lora + rope; i++)
                    difference[i] = out[i] - row[i];
                bool loud = shape.parts[DS_MLA_LATENT].rotation < 16 && types[t] == DSV2_CACHE_Q6; /* and stay so */
                double bound = bounds[types[t]].latent * (loud ? 3 : 1);
                ck_assert_msg(norm(difference, lora) <= bound * norm(row, lora),
                              "type %d, shape %u + %u: latent off by %g of %g",
                              types[t], lora, rope, norm(difference, lora), norm(row, lora));
                ck_assert_msg((double)largest(difference + lora,
                                              rope) <= bounds[types[t]].rope * (double)largest(row + lora, rope),
                              "type %d, shape %u + %u: rope part off by %g", types[t], lora, rope,
                              (double)largest(difference + lora, rope));
            }
}
END_TEST

START_TEST(all_kernels_give_the_same_bits)
{
    enum { ROWS = 5 };
    for (int t = 0; t < N_TYPES; t++)
        for (int s = 0; s < N_SHAPES; s++) {
            ds_cache_shape shape = shape_of(types[t], shapes[s]);
            size_t width = shape.width;
            float rows[ROWS][MAX_WIDTH], expected[ROWS * MAX_WIDTH], out[ROWS * MAX_WIDTH];
            uint8_t stored[ROWS * MAX_WIDTH * 4], again[ROWS * MAX_WIDTH * 4];
            for (int i = 0; i < ROWS; i++)
                random_row(rows[i], shapes[s]);
            for (size_t set = 0; set < test_kernel_sets(); set++) {
                const ds_kernels *kernels = kernels_of(set);
                uint8_t *at = set == 0 ? stored : again;
                for (int i = 0; i < ROWS; i++) {
                    float copy[MAX_WIDTH];
                    memcpy(copy, rows[i], sizeof copy);
                    ds_cache_encode_row(&shape, kernels, copy, at + (size_t)i * shape.row_bytes);
                }
                ds_cache_decode_rows(&shape, kernels, at, ROWS, out);
                for (size_t i = 0; i < ROWS; i++)
                    ds_cache_rotate_row(&shape, kernels, out + i * width);
                if (set == 0)
                    memcpy(expected, out, sizeof out);
                ck_assert_mem_eq(at, stored, ROWS * shape.row_bytes);
                ck_assert_mem_eq(out, expected, ROWS * width * sizeof *out);
            }
        }
}
END_TEST

START_TEST(rotation_keeps_lengths_and_undoes_itself)
{
    for (size_t set = 0; set < test_kernel_sets(); set++)
        for (int s = 0; s < N_SHAPES; s++) {
            const ds_kernels *kernels = kernels_of(set);
            ds_cache_shape shape = shape_of(DSV2_CACHE_Q6, shapes[s]);
            uint32_t lora = shape.parts[DS_MLA_LATENT].width;
            float row[MAX_WIDTH], rotated[MAX_WIDTH];
            random_row(row, shapes[s]);
            memcpy(rotated, row, sizeof row);
            ds_cache_rotate_part(&shape, DS_MLA_LATENT, kernels, rotated);
            ck_assert_double_eq_tol(norm(rotated, lora), norm(row, lora), 1e-5 * norm(row, lora));
            ds_cache_rotate_part(&shape, DS_MLA_LATENT, kernels, rotated);
            for (uint32_t i = 0; i < lora; i++)
                ck_assert_float_eq_tol(rotated[i], row[i], 1e-5f * largest(row, lora));
        }
}
END_TEST

/* Entry (i, j) of the transform is the parity of the bits that i and j share. */
START_TEST(rotation_is_the_walsh_hadamard_transform)
{
    static const size_t blocks[] = {1, 2, 16, 128, 256, 512};
    for (size_t b = 0; b < sizeof blocks / sizeof *blocks; b++) {
        size_t n = blocks[b];
        float x[512], rotated[512];
        for (size_t i = 0; i < n; i++)
            x[i] = rotated[i] = random_float();
        kernels_of(0)->rotate(rotated, n, n);
        for (size_t i = 0; i < n; i++) {
            double sum = 0;
            for (size_t j = 0; j < n; j++)
                sum += __builtin_parityll(i & j) ? -(double)x[j] : (double)x[j];
            ck_assert_double_eq_tol(sum / sqrt((double)n), (double)rotated[i], 1e-5);
        }
    }
}
END_TEST

START_TEST(zeros_and_the_smallest_and_largest_numbers_are_kept)
{
    static const float scales[] = {0, 1e-40f, 1e-30f, 1, 1e4f, 1e30f};
    for (int t = 0; t < N_TYPES; t++)
        for (size_t k = 0; k < sizeof scales / sizeof *scales; k++)
            for (int s = 0; s < N_SHAPES; s++) {
                ds_cache_shape shape = shape_of(types[t], shapes[s]);
                bool wide = types[t] == DSV2_CACHE_F32 || types[t] == DSV2_CACHE_Q6; /* f16 does not hold all of them */
                uint32_t lora = shape.parts[DS_MLA_LATENT].width, rope = wide ? shape.parts[DS_MLA_ROPE].width : 0;
                float row[MAX_WIDTH], out[MAX_WIDTH];
                uint8_t stored[MAX_WIDTH * 4];
                if (types[t] == DSV2_CACHE_F16 && scales[k] > 1)
                    continue; /* perhaps beyond what f16 holds */
                random_row(row, shapes[s]);
                for (uint32_t i = 0; i < shape.width; i++)
                    row[i] *= scales[k];
                round_trip(&shape, kernels_of(0), row, stored, out);
                float bound = 0.06f * largest(row, lora + rope) + 1e-7f * (types[t] == DSV2_CACHE_F16) + 1e-36f;
                for (uint32_t i = 0; i < lora + rope; i++)
                    ck_assert_msg(fabsf(out[i] - row[i]) <= bound,
                                  "type %d, scale %g: %g became %g", types[t], (double)scales[k], (double)row[i],
                                  (double)out[i]);
            }
}
END_TEST

START_TEST(what_is_no_number_stays_visible)
{
    static const float wrong[] = {NAN, INFINITY, -INFINITY};
    for (int t = 0; t < N_TYPES; t++)
        for (int w = 0; w < 3; w++)
            for (uint32_t at = 0; at < 576; at += 575) { /* in the latent; in the RoPE part */
                ds_cache_shape shape = shape_of(types[t], shapes[0]);
                float row[MAX_WIDTH], out[MAX_WIDTH];
                uint8_t stored[MAX_WIDTH * 4];
                random_row(row, shapes[0]);
                row[at] = wrong[w];
                round_trip(&shape, kernels_of(0), row, stored, out);
                ck_assert(!isfinite(out[at]));
            }
}
END_TEST

START_TEST(any_bytes_decode_to_the_same_bits)
{
    for (int t = 0; t < N_TYPES; t++)
        for (int s = 0; s < N_SHAPES; s++) {
            ds_cache_shape shape = shape_of(types[t], shapes[s]);
            size_t width = shape.width;
            uint8_t *stored = malloc(3 * shape.row_bytes); /* exactly: a sanitizer sees what is read or written
                                                            * beyond */
            float *out = malloc(3 * width * sizeof *out), *expected = malloc(3 * width * sizeof *out);
            for (int round = 0; round < 10; round++) {
                for (size_t i = 0; i < 3 * shape.row_bytes; i++)
                    stored[i] = round == 0 ? 0xff : (uint8_t)(int)(random_float() * 256);
                ds_cache_decode_rows(&shape, kernels_of(0), stored, 3, expected);
                for (size_t set = 1; set < test_kernel_sets(); set++) {
                    const ds_kernels *kernels = kernels_of(set);
                    ds_cache_decode_rows(&shape, kernels, stored, 3, out);
                    for (size_t i = 0; i < 3 * width; i++) /* a NaN may be quiet or not */
                        ck_assert((isnan(out[i]) && isnan(expected[i])) ||
                                  memcmp(&out[i], &expected[i], sizeof *out) == 0);
                }
            }
            free(expected);
            free(out);
            free(stored);
        }
}
END_TEST

/* Rows as integers are the rows as floats: of the latent exactly, but for q6 of an odd rank; of the RoPE part as near
 * as its integers allow. */
START_TEST(rows_as_integers_are_those_as_floats)
{
    enum { ROWS = 3, GROUPS = MAX_WIDTH / DS_SCALE_COLS + 2 };
    for (int t = 2; t < N_TYPES; t++)
        for (int s = 0; s < N_SHAPES; s++)
            for (size_t set = 0; set < test_kernel_sets(); set++) {
                const ds_kernels *kernels = kernels_of(set);
                ds_cache_shape shape = shape_of(types[t], shapes[s]);
                uint32_t lora = shape.parts[DS_MLA_LATENT].width, rope = shape.parts[DS_MLA_ROPE].width;
                uint32_t width = lora + rope;
                size_t latent_groups = (lora + DS_SCALE_COLS - 1) / DS_SCALE_COLS;
                size_t groups = latent_groups + (rope + DS_SCALE_COLS - 1) / DS_SCALE_COLS;
                bool exact = types[t] == DSV2_CACHE_Q8 || lora % 2 == 0;
                uint8_t *stored = malloc(ROWS * shape.row_bytes);
                int16_t *rows = malloc(ROWS * groups * DS_SCALE_COLS * sizeof *rows);
                float row[MAX_WIDTH], floats[ROWS * MAX_WIDTH], scratch[MAX_WIDTH], scales[GROUPS * DS_PAGE_TOKENS];
                for (int i = 0; i < ROWS; i++) {
                    random_row(row, shapes[s]);
                    ds_cache_encode_row(&shape, kernels, row, stored + (size_t)i * shape.row_bytes);
                }
                ds_cache_decode_rows(&shape, kernels, stored, ROWS, floats);
                ds_cache_decode_integers(&shape, kernels, stored, ROWS, rows, scales, scratch, stored);
                for (size_t i = 0; i < ROWS * groups * DS_SCALE_COLS; i++) {
                    size_t t_row = i / (groups * DS_SCALE_COLS), g = i / DS_SCALE_COLS % groups,
                        c = i % (groups * DS_SCALE_COLS);
                    bool is_latent = g < latent_groups;
                    size_t element = is_latent ? c : lora + c - latent_groups * DS_SCALE_COLS;
                    const int8_t *codes = ds_cache_codes(&shape, DS_MLA_LATENT, stored);
                    ck_assert_int_eq(codes != NULL, types[t] == DSV2_CACHE_Q8);
                    bool as_bytes = is_latent && codes != NULL;
                    if (element >= (is_latent ? lora : width)) {
                        ck_assert(as_bytes || rows[i] == 0);
                        continue;
                    }
                    float number = as_bytes ? codes[t_row * shape.row_bytes + element] : rows[i];
                    float scale = scales[g * DS_PAGE_TOKENS + t_row], expected = floats[t_row * width + element];
                    float allowed = is_latent && exact ? 0 : scale * 0.51f;
                    ck_assert_msg(fabsf(number * scale - expected) <= allowed,
                                  "type %d, shape %d, set %s, row %zu, element %zu: %g, expected %g",
                                  (int)types[t], s, test_kernel_set(set), t_row, element, (double)(number * scale),
                                  (double)expected);
                }
                free(rows);
                free(stored);
            }
}
END_TEST

/* ---- pages ---- */

static void fill(ds_cache *cache, size_t first, size_t n, uint8_t value)
{
    for (size_t p = first; p < first + n; p++)
        for (uint32_t layer = 0; layer < cache->shape.n_layers; layer++)
            memset(ds_cache_rows(cache, layer, p / DS_PAGE_TOKENS) + p % DS_PAGE_TOKENS * cache->shape.row_bytes, value,
                   cache->shape.row_bytes);
}

static void assert_filled(const ds_cache *cache, size_t first, size_t n, uint8_t value)
{
    for (size_t p = first; p < first + n; p++)
        for (uint32_t layer = 0; layer < cache->shape.n_layers; layer++) {
            const uint8_t *row = ds_cache_rows(cache, layer,
                                               p / DS_PAGE_TOKENS) + p % DS_PAGE_TOKENS * cache->shape.row_bytes;
            for (size_t i = 0; i < cache->shape.row_bytes; i++)
                ck_assert_uint_eq(row[i], value);
        }
}

START_TEST(forks_share_pages_until_one_writes)
{
    for (int t = 0; t < N_TYPES; t++)
        for (size_t n = 63; n <= 129; n += n == 65 ? 62 : 1) {
            ds_page_pool pool;
            ds_cache_shape shape = shape_of(types[t], shapes[1]);
            ds_cache a, b;
            ds_page_pool_init(&pool, NULL, 0);
            ds_cache_init(&a, &pool, &shape);
            ds_cache_init(&b, &pool, &shape);
            ck_assert(ds_cache_reserve(&a, 0, n) == DSV2_OK);
            fill(&a, 0, n, 1);
            ck_assert(ds_cache_share(&a, n, &b) == DSV2_OK);
            size_t n_pages = (n + DS_PAGE_TOKENS - 1) / DS_PAGE_TOKENS;
            ck_assert_uint_eq(pool.pages_in_use, n_pages);
            ck_assert(ds_cache_reserve(&b, n, 1) == DSV2_OK);
            fill(&b, n, 1, 2);
            ck_assert_uint_eq(pool.pages_in_use, n_pages + 1); /* the last page copied, or a new one */
            ck_assert(ds_cache_reserve(&a, n, 1) == DSV2_OK);
            fill(&a, n, 1, 3);
            ck_assert_uint_eq(pool.pages_in_use, n % DS_PAGE_TOKENS == 0 ? n_pages + 2 : n_pages + 1);
            assert_filled(&a, 0, n, 1);
            assert_filled(&b, 0, n, 1);
            assert_filled(&a, n, 1, 3);
            assert_filled(&b, n, 1, 2);
            ds_cache_destroy(&a);
            assert_filled(&b, 0, n, 1);
            ds_cache_destroy(&b);
            ck_assert(pool.pages_in_use == 0 && pool.bytes_in_use == 0);
            ds_page_pool_destroy(&pool);
        }
}
END_TEST

START_TEST(the_limit_refuses_a_page_and_keeps_what_is_there)
{
    ds_page_pool pool;
    ds_cache_shape shape = shape_of(DSV2_CACHE_Q6, shapes[0]);
    ds_cache cache;
    ds_page_pool_init(&pool, NULL, 2 * shape.page_bytes + 1);
    ds_cache_init(&cache, &pool, &shape);
    ck_assert(ds_cache_reserve(&cache, 0, 100) == DSV2_OK);
    fill(&cache, 0, 100, 7);
    ck_assert(ds_cache_reserve(&cache, 100, 200) == DSV2_ERROR_MEMORY);
    ck_assert_uint_eq(pool.pages_in_use, 2);
    assert_filled(&cache, 0, 100, 7);
    ck_assert(ds_cache_reserve(&cache, 100, 28) == DSV2_OK);
    ds_cache_destroy(&cache);
    ds_page_pool_destroy(&pool);
}
END_TEST

/* Pages of V2-Lite's size share their memory's slabs: what one cache gives back another gets, and nothing of others
 * changes. */
START_TEST(pages_of_all_sizes_are_used_again_and_given_back)
{
    enum { CACHES = 5, STEPS = 150, MOST_PAGES = 12 };
    static const uint32_t layers[CACHES] = {27, 27, 27, 3, 60};
    ds_page_pool pool;
    ds_page_pool_init(&pool, NULL, 0);
    ds_cache caches[CACHES];
    for (int c = 0; c < CACHES; c++) {
        ds_cache_shape shape;
        dsv2_cache_type type = c == 2 ? DSV2_CACHE_Q6 : DSV2_CACHE_Q8;
        ck_assert(ds_cache_shape_init(&shape, &ds_mla_row, PUBLISHED, type, layers[c]) == DSV2_OK);
        ds_cache_init(&caches[c], &pool, &shape);
    }
    for (int step = 0; step < STEPS; step++) {
        size_t c = random_bits() % CACHES, n = random_bits() % (MOST_PAGES + 1), before = caches[c].n_pages;
        if (n < before)
            ds_cache_truncate(&caches[c], n * DS_PAGE_TOKENS);
        else
            ck_assert(ds_cache_reserve(&caches[c], before * DS_PAGE_TOKENS, (n - before) * DS_PAGE_TOKENS) == DSV2_OK);
        for (size_t page = before; page < n; page++) { /* a mark at each end says whose it is, and where */
            uint8_t *rows = ds_cache_rows(&caches[c], 0, page);
            rows[0] = rows[caches[c].shape.page_bytes - 1] = (uint8_t)(c * (MOST_PAGES + 1) + page);
        }
        uint64_t pages = 0, bytes = 0;
        for (size_t other = 0; other < CACHES; other++) {
            pages += caches[other].n_pages;
            bytes += caches[other].n_pages * caches[other].shape.page_bytes;
            for (size_t page = 0; page < caches[other].n_pages; page++) {
                const uint8_t *rows = ds_cache_rows(&caches[other], 0, page);
                ck_assert_uint_eq(rows[0], other * (MOST_PAGES + 1) + page);
                ck_assert_uint_eq(rows[caches[other].shape.page_bytes - 1], other * (MOST_PAGES + 1) + page);
                ck_assert_uint_eq((uintptr_t)rows % 64, 0);
            }
        }
        ck_assert_uint_eq(pool.pages_in_use, pages);
        ck_assert_uint_eq(pool.bytes_in_use, bytes);
    }
    for (int c = 0; c < CACHES; c++)
        ds_cache_destroy(&caches[c]);
    ck_assert(pool.pages_in_use == 0 && pool.bytes_in_use == 0);
    ck_assert_ptr_null(pool.slabs);
    ds_page_pool_destroy(&pool);
}
END_TEST

/* ---- rows of another kind ---- */

/* As grouped-query attention would describe its rows. */
enum { KEYS = 128, VALUES = 96, WIDTH = KEYS + VALUES };

static const ds_row_description other_row = {
    .number = 1000,
    .n_parts = 2,
    .parts = {{"keys", "width of keys", 0, KEYS,
               {
                   [DSV2_CACHE_F32] = DS_ENCODING_F32,
                   [DSV2_CACHE_F16] = DS_ENCODING_F16,
                   [DSV2_CACHE_Q8] = DS_ENCODING_BYTES_64,
                   [DSV2_CACHE_Q6] = DS_ENCODING_PAIRS,
               }},
              {"values", "width of values", 0, VALUES,
               {
                   [DSV2_CACHE_F32] = DS_ENCODING_F32,
                   [DSV2_CACHE_F16] = DS_ENCODING_F16,
                   [DSV2_CACHE_Q8] = DS_ENCODING_BYTES_64,
                   [DSV2_CACHE_Q6] = DS_ENCODING_PAIRS,
               }}},
};

static ds_cache_shape other_shape(dsv2_cache_type type)
{
    ds_cache_shape shape;
    ck_assert(ds_cache_shape_init(&shape, &other_row, (uint32_t[]){KEYS, VALUES}, type, 2) == DSV2_OK);
    return shape;
}

static void random_other_row(float *row)
{
    for (int i = 0; i < WIDTH; i++)
        row[i] = random_float() * (i % 37 == 5 ? 8.0f : 1.0f) * (i < KEYS ? 1.0f : 20.0f);
}

START_TEST(rows_of_another_kind_are_a_description)
{
    static const size_t row_bytes[] = {
        [DSV2_CACHE_F32] = 896,
        [DSV2_CACHE_F16] = 448,
        [DSV2_CACHE_Q8] = 4 + 4 + 128 + 96,
        [DSV2_CACHE_Q6] = 2 + 2 + 88 + 66,
    };
    static const double bounds[] = {
        [DSV2_CACHE_F32] = 0, [DSV2_CACHE_F16] = 0.0005, [DSV2_CACHE_Q8] = 0.02, [DSV2_CACHE_Q6] = 0.055};
    for (int t = 0; t < N_TYPES; t++) {
        ds_cache_shape shape = other_shape(types[t]);
        ck_assert_uint_eq(shape.row_bytes, row_bytes[types[t]]);
        ck_assert_str_eq(shape.parts[1].name, "values");
        for (size_t set = 0; set < test_kernel_sets(); set++) {
            const ds_kernels *kernels = kernels_of(set);
            float row[WIDTH], out[WIDTH];
            uint8_t stored[WIDTH * 4];
            random_other_row(row);
            round_trip(&shape, kernels, row, stored, out);
            for (int i = 0; i < WIDTH; i++)
                out[i] -= row[i];
            ck_assert(norm(out, KEYS) <= bounds[types[t]] * norm(row, KEYS));
            ck_assert(norm(out + KEYS, VALUES) <= bounds[types[t]] * norm(row + KEYS, VALUES));
        }
    }
}
END_TEST

/* Attention's integers of each part, in place or taken apart, times their scales are the floats. */
START_TEST(integers_of_another_kind_are_its_floats)
{
    enum { ROWS = 4, SECTIONS = 2 + 2, COLS = SECTIONS * DS_SCALE_COLS };
    for (int t = 2; t < N_TYPES; t++) {
        const ds_kernels *kernels = kernels_of(0);
        ds_cache_shape shape = other_shape(types[t]);
        float row[WIDTH], floats[ROWS * WIDTH], scratch[WIDTH], scales[SECTIONS * DS_PAGE_TOKENS];
        uint8_t stored[ROWS * WIDTH * 2];
        int16_t rows[ROWS * COLS];
        for (size_t i = 0; i < ROWS; i++) {
            random_other_row(row);
            ds_cache_encode_row(&shape, kernels, row, stored + i * shape.row_bytes);
        }
        ds_cache_decode_rows(&shape, kernels, stored, ROWS, floats);
        ds_cache_decode_integers(&shape, kernels, stored, ROWS, rows, scales, scratch, NULL);
        for (size_t i = 0; i < ROWS * WIDTH; i++) {
            size_t token = i / WIDTH, element = i % WIDTH, part = element >= KEYS, at = part ? element - KEYS : element;
            size_t section = (part ? KEYS / DS_SCALE_COLS : 0) + at / DS_SCALE_COLS;
            const int8_t *codes = ds_cache_codes(&shape, (uint32_t)part, stored + token * shape.row_bytes);
            ck_assert_int_eq(codes != NULL, types[t] == DSV2_CACHE_Q8);
            float number = codes != NULL ? codes[at] : rows[token * COLS + (part ? KEYS : 0) + at];
            ck_assert_float_eq(number * scales[section * DS_PAGE_TOKENS + token], floats[i]);
        }
    }
}
END_TEST

START_TEST(an_odd_last_part_in_pairs_is_refused_by_name)
{
    ds_cache_shape shape;
    ck_assert(ds_cache_shape_init(&shape, &other_row, (uint32_t[]){3, 5}, DSV2_CACHE_Q6, 1) == DSV2_OK);
    ck_assert(ds_cache_shape_init(&shape, &other_row, (uint32_t[]){4, 5}, DSV2_CACHE_Q6, 1) == DSV2_ERROR_ARGUMENT);
    ck_assert_ptr_nonnull(strstr(dsv2_last_error(), "values"));
}
END_TEST

/* The stored row of one position. */
static uint8_t *row_at(const ds_cache *cache, uint32_t layer, size_t position)
{
    return ds_cache_rows(cache, layer, position / DS_PAGE_TOKENS) + position % DS_PAGE_TOKENS * cache->shape.row_bytes;
}

/* Fills positions 0 to n - 1 with rows. */
static void fill_with_rows(ds_cache *cache, size_t n)
{
    float row[WIDTH];
    ck_assert(ds_cache_reserve(cache, 0, n) == DSV2_OK);
    for (uint32_t layer = 0; layer < cache->shape.n_layers; layer++)
        for (size_t at = 0; at < n; at++) {
            random_other_row(row);
            ds_cache_encode_row(&cache->shape, kernels_of(0), row, row_at(cache, layer, at));
        }
}

/* What a cache's rows are as floats in the model's own basis: n of them for each layer. */
static float *rows_of(const ds_cache *cache, size_t n)
{
    const ds_cache_shape *shape = &cache->shape;
    float *rows = malloc(shape->n_layers * n * shape->width * sizeof *rows), *row = rows;
    for (uint32_t layer = 0; layer < shape->n_layers; layer++)
        for (size_t at = 0; at < n; at++, row += shape->width) {
            ds_cache_decode_rows(shape, kernels_of(0), row_at(cache, layer, at), 1, row);
            ds_cache_rotate_row(shape, kernels_of(0), row);
        }
    return rows;
}

/* Takes the rows of n positions as one batch of frames from one cache into another, which may be of another type. */
static void send_frames(ds_pool *threads, const ds_cache *from, size_t n, ds_cache *to)
{
    frame_batch writes, reads;
    ck_assert(ds_frame_batch_init(&writes, BATCH_WRITES, threads, kernels_of(0), &from->shape, from, 1) == DSV2_OK);
    ck_assert(ds_frame_batch_init(&reads, BATCH_READS, threads, kernels_of(0), &from->shape, to, 0) == DSV2_OK);
    ck_assert(ds_cache_reserve(to, 0, n) == DSV2_OK);
    for (uint64_t at = 0; at < n; at += DS_PAGE_TOKENS)
        writes.frames[writes.n++].header = (frame_header){
            .first_token = at, .n_tokens = (uint32_t)(n - at < DS_PAGE_TOKENS ? n - at : DS_PAGE_TOKENS)};
    ds_frame_batch_encode(&writes);
    for (size_t i = 0; i < writes.n; i++) {
        frame *sent = &writes.frames[i], *got = &reads.frames[reads.n++];
        memcpy(got->header_bytes, sent->header_bytes, sizeof got->header_bytes);
        uint64_t first = sent->header.first_token;
        ck_assert(ds_frame_header_read("frames", got->header_bytes, &from->shape, first, n, &got->header) == DSV2_OK);
        memcpy(got->buffer, sent->stored, (size_t)got->header.stored_bytes);
        got->stored = got->buffer;
        got->wanted = true;
    }
    ck_assert(ds_frame_batch_decode(&reads, "frames") == DSV2_OK);
    ds_frame_batch_free(&writes);
    ds_frame_batch_free(&reads);
}

START_TEST(rows_of_another_kind_are_shared_and_go_through_frames)
{
    enum { N = DS_PAGE_TOKENS + 9 };
    ds_pool *threads;
    ck_assert(ds_pool_create(2, &threads) == DSV2_OK);
    for (int t = 0; t < N_TYPES; t++)
        for (int u = 0; u < N_TYPES; u++) {
            ds_page_pool pool;
            ds_cache_shape shape = other_shape(types[t]), other = other_shape(types[u]);
            ds_cache a, fork, restored;
            ds_page_pool_init(&pool, NULL, 0);
            ds_cache_init(&a, &pool, &shape);
            ds_cache_init(&fork, &pool, &shape);
            ds_cache_init(&restored, &pool, &other);
            fill_with_rows(&a, N);
            float *rows = rows_of(&a, N);
            ck_assert(ds_cache_share(&a, N, &fork) == DSV2_OK);
            fill_with_rows(&a, N); /* the fork keeps what there was */
            send_frames(threads, &fork, N, &restored);
            float *forked = rows_of(&fork, N), *received = rows_of(&restored, N);
            size_t n_floats = (size_t)N * WIDTH * shape.n_layers;
            ck_assert_mem_eq(forked, rows, n_floats * sizeof *rows);
            if (t == u)
                ck_assert_mem_eq(received, rows, n_floats * sizeof *rows);
            for (size_t i = 0; i < n_floats; i++)
                received[i] -= rows[i];
            ck_assert(norm(received, n_floats) <= 0.06 * norm(rows, n_floats));
            free(received);
            free(forked);
            free(rows);
            ds_cache_destroy(&restored);
            ds_cache_destroy(&fork);
            ds_cache_destroy(&a);
            ck_assert(pool.pages_in_use == 0);
            ds_page_pool_destroy(&pool);
        }
    ds_pool_destroy(threads);
}
END_TEST

/* More threads than frames are at work at a time: memory is taken for the frames only. */
START_TEST(many_threads_take_no_more_memory_than_there_are_frames)
{
    enum { THREADS = 40, N = 16 * DS_PAGE_TOKENS };
    ds_pool *threads;
    ds_page_pool pool;
    ds_cache_shape shape = other_shape(DSV2_CACHE_F32);
    ds_cache from, to;
    frame_batch batch;
    ck_assert(ds_pool_create(THREADS, &threads) == DSV2_OK);
    ds_page_pool_init(&pool, NULL, 0);
    ds_cache_init(&from, &pool, &shape);
    ds_cache_init(&to, &pool, &shape);
    fill_with_rows(&from, N);
    ck_assert(ds_frame_batch_init(&batch, BATCH_WRITES, threads, kernels_of(0), &shape, &from, 1) == DSV2_OK);
    ck_assert(batch.n_workers <= batch.capacity && batch.capacity < THREADS);
    ds_frame_batch_free(&batch);
    send_frames(threads, &from, N, &to);
    float *sent = rows_of(&from, N), *received = rows_of(&to, N);
    ck_assert_mem_eq(received, sent, (size_t)N * WIDTH * shape.n_layers * sizeof *sent);
    free(received);
    free(sent);
    ds_cache_destroy(&to);
    ds_cache_destroy(&from);
    ds_page_pool_destroy(&pool);
    ds_pool_destroy(threads);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("cache");
    TCase *tests = tcase_create("cache");
    tcase_set_timeout(tests, 120);
    tcase_add_test(tests, rows_of_published_shapes_have_their_published_size);
    tcase_add_test(tests, rows_come_back_within_their_type_s_precision);
    tcase_add_test(tests, all_kernels_give_the_same_bits);
    tcase_add_test(tests, rotation_keeps_lengths_and_undoes_itself);
    tcase_add_test(tests, rotation_is_the_walsh_hadamard_transform);
    tcase_add_test(tests, zeros_and_the_smallest_and_largest_numbers_are_kept);
    tcase_add_test(tests, what_is_no_number_stays_visible);
    tcase_add_test(tests, any_bytes_decode_to_the_same_bits);
    tcase_add_test(tests, rows_as_integers_are_those_as_floats);
    tcase_add_test(tests, forks_share_pages_until_one_writes);
    tcase_add_test(tests, the_limit_refuses_a_page_and_keeps_what_is_there);
    tcase_add_test(tests, pages_of_all_sizes_are_used_again_and_given_back);
    tcase_add_test(tests, rows_of_another_kind_are_a_description);
    tcase_add_test(tests, integers_of_another_kind_are_its_floats);
    tcase_add_test(tests, an_odd_last_part_in_pairs_is_refused_by_name);
    tcase_add_test(tests, rows_of_another_kind_are_shared_and_go_through_frames);
    tcase_add_test(tests, many_threads_take_no_more_memory_than_there_are_frames);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}

#include "forward/attend.h"

#include "forward/layout.h"

#include <assert.h>
#include <math.h>
#include <string.h>

static uint32_t fill_up(uint32_t n, uint32_t whole) { return (n + whole - 1) / whole * whole; }

static uint32_t padded_width(const ds_attend_shape *shape, int part)
{
    return fill_up(shape->part[part], DS_SCALE_COLS);
}

uint32_t ds_attend_sections(const ds_attend_shape *shape)
{
    return (padded_width(shape, 0) + padded_width(shape, 1)) / DS_SCALE_COLS;
}

uint32_t ds_attend_value_sections(const ds_attend_shape *shape)
{
    return (shape->value_width + shape->value_section - 1) / shape->value_section;
}

/* ---- working memory ---- */

static size_t divide(const ds_attend_shape *shape, size_t n, float *memory, ds_attend *attend, ds_tile *tile)
{
    size_t used = 0, sections = ds_attend_sections(shape), cols = sections * DS_SCALE_COLS,
        value_sections = ds_attend_value_sections(shape);
    attend->max = ds_take(memory, &used, n * sizeof(float));
    attend->sum = ds_take(memory, &used, n * sizeof(float));
    attend->scores = ds_take(memory, &used, sizeof(float) * DS_ATTEND_ROWS * DS_PAGE_TOKENS);
    if (!shape->integers)
        return used;
    attend->q_pairs = (int16_t *)ds_take(memory, &used, fill_up((uint32_t)n, DS_PANEL_ROWS) * cols * sizeof(int16_t));
    attend->q_scales = ds_take(memory, &used, n * sizeof(float));
    attend->in_floats = (bool *)ds_take(memory, &used, n * sizeof(bool));
    attend->weights = (int16_t *)ds_take(memory, &used, sizeof(int16_t) * DS_PANEL_ROWS * DS_PAGE_TOKENS);
    attend->weight_pairs = (int16_t *)ds_take(memory, &used, sizeof(int16_t) * DS_PANEL_ROWS * DS_PAGE_TOKENS);
    size_t widest = cols > shape->value_width ? cols : shape->value_width;
    attend->rows = (int16_t *)ds_take(memory, &used, sizeof(int16_t) * DS_PANEL_ROWS * widest);
    attend->padded = ds_take(memory, &used, sizeof(float) * cols);
    size_t key_rows = shape->score_by_panel ? DS_PANEL_ROWS : DS_PAGE_TOKENS;
    tile->key_pairs = (int16_t *)ds_take(memory, &used, sizeof(int16_t) * key_rows * cols);
    tile->key_scales = ds_take(memory, &used, sizeof(float) * DS_PAGE_TOKENS * sections);
    tile->value_pairs = (int16_t *)ds_take(memory, &used, sizeof(int16_t) * DS_PAGE_TOKENS * fill_up(shape->value_width,
                                                                                                  DS_PANEL_ROWS));
    tile->value_scale_max = ds_take(memory, &used, sizeof(float) * DS_PAGE_TOKENS * value_sections);
    return used;
}

size_t ds_attend_floats(const ds_attend_shape *shape, size_t n)
{
    ds_attend attend;
    ds_tile tile;
    return divide(shape, n, NULL, &attend, &tile);
}

void ds_attend_divide(const ds_attend_shape *shape, size_t n, float *memory, ds_attend *attend, ds_tile *tile)
{
    attend->shape = shape;
    divide(shape, n, memory, attend, tile);
}

/* ---- tiles of integers ---- */

size_t ds_tile_rows(const ds_tile *tile, size_t first)
{
    return tile->n - first < DS_PANEL_ROWS ? tile->n - first : DS_PANEL_ROWS;
}

/* Where the panel of keys of token `first` and the next ones is. */
static int16_t *key_panel(const ds_tile *tile, const ds_attend_shape *shape, size_t first)
{
    return tile->key_pairs + (shape->score_by_panel ? 0 : first * ds_attend_sections(shape) * DS_SCALE_COLS);
}

/* Scores of m <= DS_PANEL_ROWS queries from `first_query` on with n tokens from `first` on, a multiple of
 * DS_PANEL_ROWS. */
static void score(const ds_attend *attend, const ds_tile *tile, uint32_t first_query, uint32_t m, float *scores,
                  size_t first, size_t n)
{
    const ds_attend_shape *shape = attend->shape;
    uint32_t sections = ds_attend_sections(shape);
    attend->kernels->pair_scores(scores + first, DS_PAGE_TOKENS,
                                 attend->q_pairs + (size_t)first_query * sections * DS_SCALE_COLS,
                                 attend->q_scales + first_query, m, key_panel(tile, shape, first), n,
                                 tile->key_scales + first, DS_PAGE_TOKENS, sections);
}

/* Scores of all queries with the panel that has just been made, if the shape asks for that. */
static void score_panel(const ds_attend *attend, const ds_tile *tile, size_t first)
{
    assert(!attend->shape->score_by_panel || attend->n <= DS_ATTEND_ROWS);
    for (uint32_t i = 0; attend->shape->score_by_panel && i < attend->n; i += DS_PANEL_ROWS) {
        uint32_t m = attend->n - i < DS_PANEL_ROWS ? attend->n - i : DS_PANEL_ROWS;
        score(attend, tile, i, m, attend->scores + (size_t)i * DS_PAGE_TOKENS, first, DS_PANEL_ROWS);
    }
}

void ds_tile_keys(const ds_attend *attend, ds_tile *tile, size_t first, const int16_t *rows, size_t stride)
{
    size_t cols = ds_attend_sections(attend->shape) * DS_SCALE_COLS;
    attend->kernels->pair_columns(key_panel(tile, attend->shape, first), rows, stride, ds_tile_rows(tile, first), cols);
    score_panel(attend, tile, first);
}

void ds_tile_values(const ds_attend *attend, ds_tile *tile, size_t first, const int16_t *rows, size_t stride)
{
    size_t n_pairs = (tile->n + 1) / 2;
    attend->kernels->pair_rows(tile->value_pairs + first * DS_PANEL_ROWS, 2 * n_pairs * DS_PANEL_ROWS, rows, stride,
                               ds_tile_rows(tile, first), attend->shape->value_width);
}

void ds_tile_codes(const ds_attend *attend, ds_tile *tile, size_t first, const int8_t *codes, size_t codes_stride,
                   const int16_t *rows, size_t stride)
{
    const ds_attend_shape *shape = attend->shape;
    size_t n_pairs = (tile->n + 1) / 2, n = ds_tile_rows(tile, first), cols = ds_attend_sections(shape) * DS_SCALE_COLS;
    size_t latent = padded_width(shape, 0);
    int16_t *keys = key_panel(tile, shape, first);
    attend->kernels->pair_codes(keys, tile->value_pairs + first * DS_PANEL_ROWS, 2 * n_pairs * DS_PANEL_ROWS, codes,
                                codes_stride, n, shape->value_width);
    attend->kernels->pair_columns(keys + latent * DS_PANEL_ROWS, rows + latent, stride, n, cols - latent);
    score_panel(attend, tile, first);
}

void ds_tile_finish(const ds_attend *attend, ds_tile *tile)
{
    for (uint32_t s = 0; s < ds_attend_value_sections(attend->shape); s++) {
        float largest = 0;
        for (size_t at = (size_t)s * DS_PAGE_TOKENS; at < (size_t)s * DS_PAGE_TOKENS + tile->n; at++) {
            /* A scale of NaN is never the largest, so it stays with its token. */
            largest = tile->value_scales[at] > largest ? tile->value_scales[at] : largest;
            tile->value_scale_max[at] = largest;
        }
    }
}

/* ---- queries ---- */

/* Whether n rounded elements are all smaller than `least` although their floats are something. */
static bool is_lost(const int16_t *rounded, const float *x, uint32_t n, int least)
{
    for (uint32_t i = 0; i < n; i++)
        if (rounded[i] >= least || -rounded[i] >= least)
            return false;
    return ds_largest_magnitude(x, n) > 0;
}

/* The same of the query's part for the latent or that for the RoPE key. Where the parts are padded apart, the RoPE part
 * begins at `rope_at` of the rounded elements. */
static bool loses_part(const ds_attend_shape *shape, const int16_t *rounded, size_t rope_at, const float *q)
{
    uint32_t latent = shape->part[0] + shape->part[1] - shape->rope;
    return is_lost(rounded, q, latent, shape->part_least) ||
           is_lost(rounded + rope_at, q + latent, shape->rope, shape->part_least);
}

/* A panel of queries in 16 bits. A query has one scale: elements that are small beside its largest count for little in
 * its scores. */
static void round_queries(ds_attend *attend, uint32_t first, uint32_t n)
{
    const ds_attend_shape *shape = attend->shape;
    size_t padded = padded_width(shape, 0), cols = padded + padded_width(shape, 1);
    memset(attend->padded, 0, cols * sizeof *attend->padded);
    for (uint32_t i = 0; i < n; i++) {
        const float *q = attend->q[first + i];
        memcpy(attend->padded, q, shape->part[0] * sizeof *q);
        memcpy(attend->padded + padded, q + shape->part[0], shape->part[1] * sizeof *q);
        attend->q_scales[first + i] = attend->kernels->round_row(attend->rows + i * cols, attend->padded, cols,
                                                                 DS_MAX_15_BITS);
        size_t rope_at = shape->part[1] > 0 ? padded : shape->part[0] - shape->rope;
        attend->in_floats[first + i] = loses_part(shape, attend->rows + i * cols, rope_at, q);
        attend->any_in_floats = attend->any_in_floats || attend->in_floats[first + i];
    }
    attend->kernels->pair_columns(attend->q_pairs + first * cols, attend->rows, cols, n, cols);
}

void ds_attend_begin(ds_attend *attend)
{
    for (uint32_t i = 0; i < attend->n; i++) {
        attend->max[i] = -INFINITY;
        attend->sum[i] = 0;
        memset(attend->sums + i * attend->sums_stride, 0, attend->shape->value_width * sizeof *attend->sums);
    }
}

void ds_attend_queries(ds_attend *attend)
{
    attend->any_in_floats = false;
    for (uint32_t i = 0; attend->shape->integers && i < attend->n; i += DS_PANEL_ROWS)
        round_queries(attend, i, attend->n - i < DS_PANEL_ROWS ? attend->n - i : DS_PANEL_ROWS);
}

/* ---- the online softmax ---- */

/* Turns the first `visible` scores of a query into weights and the others of n into zeros, and takes the weights into
 * the query's running maximum and sum. What the query has summed before is to shrink by *keep.
 * In floats, weights are relative to the new maximum, and *factor is 1. In integers, weights are relative to the tile's
 * own maximum, so that the largest weight gets all bits, and what is summed with them is to shrink by *factor. */
static void take_scores(const ds_kernels *kernels, bool integers, float *scores, size_t visible, size_t n,
                        float *running_max, float *running_sum, float *keep, float *factor)
{
    *keep = 1.0f;
    *factor = 0.0f;
    if (visible > 0) {
        float tile_max = kernels->max(scores, visible), max = tile_max > *running_max ? tile_max : *running_max;
        *keep = *running_max == -INFINITY ? 0.0f : expf(*running_max - max);
        *factor = integers ? expf(tile_max - max) : 1.0f;
        *running_sum = *running_sum * *keep + *factor * kernels->exp_sum(scores, integers ? tile_max : max, visible);
        *running_max = max;
    }
    if (visible < n)
        memset(scores + visible, 0, (n - visible) * sizeof *scores);
}

/* m <= DS_ATTEND_ROWS queries from `first` on. */
static void attend_floats(ds_attend *attend, const ds_tile *tile, const uint32_t *visible, uint32_t first, uint32_t m)
{
    const ds_kernels *kernels = attend->kernels;
    uint32_t width = attend->shape->part[0] + attend->shape->part[1];
    float keep[DS_ATTEND_ROWS], factor;
    kernels->matmul[DS_TYPE_F32](attend->scores, DS_PAGE_TOKENS, attend->q + first, m, tile->keys,
                                 tile->key_stride * sizeof(float), tile->n, width);
    for (uint32_t i = 0; i < m; i++) {
        float *scores = attend->scores + (size_t)i * DS_PAGE_TOKENS;
        take_scores(kernels, false, scores, visible[first + i], tile->n, &attend->max[first + i],
                    &attend->sum[first + i], &keep[i], &factor);
    }
    kernels->weighted_sum(attend->sums + first * attend->sums_stride, attend->sums_stride, keep, attend->scores,
                          DS_PAGE_TOKENS, m, tile->values, tile->value_stride, tile->n, attend->shape->value_width);
}

/* m <= DS_PANEL_ROWS queries from `first` on, a multiple of DS_PANEL_ROWS; `visible` is of these. */
static void attend_integers(ds_attend *attend, const ds_tile *tile, const uint32_t *visible, uint32_t first, uint32_t m)
{
    const ds_attend_shape *shape = attend->shape;
    const ds_kernels *kernels = attend->kernels;
    uint32_t n_pairs = (uint32_t)(tile->n + 1) / 2, section_cols = shape->value_section;
    float keep[DS_PANEL_ROWS], factor[DS_PANEL_ROWS], scaled[DS_PANEL_ROWS];
    float *scores = attend->scores + (shape->score_by_panel ? (size_t)first * DS_PAGE_TOKENS : 0);
    if (!shape->score_by_panel)
        score(attend, tile, first, m, scores, 0, fill_up((uint32_t)tile->n, DS_PANEL_ROWS));
    for (uint32_t i = 0; i < m; i++)
        take_scores(kernels, true, scores + (size_t)i * DS_PAGE_TOKENS, visible[i], DS_PAGE_TOKENS,
                    &attend->max[first + i], &attend->sum[first + i], &keep[i], &factor[i]);
    for (uint32_t g = 0; g < ds_attend_value_sections(shape); g++) {
        uint32_t col = g * section_cols,
            cols = shape->value_width - col < section_cols ? shape->value_width - col : section_cols;
        const float *scales = tile->value_scales + (size_t)g * DS_PAGE_TOKENS,
            *largest = tile->value_scale_max + (size_t)g * DS_PAGE_TOKENS;
        for (uint32_t i = 0; i < m; i++) {
            int16_t *weights = attend->weights + (size_t)i * DS_PAGE_TOKENS;
            uint32_t seen = visible[i];
            float most = seen > 0 ? largest[seen - 1] : 0.0f;
            kernels->round_products(weights, scores + (size_t)i * DS_PAGE_TOKENS, scales,
                                    most > 0 ? DS_MAX_15_BITS / most : 0.0f, seen);
            if (seen < 2 * n_pairs)
                memset(weights + seen, 0, (2 * n_pairs - seen) * sizeof *weights);
            scaled[i] = factor[i] * most / DS_MAX_15_BITS;
        }
        kernels->pair_columns(attend->weight_pairs, attend->weights, DS_PAGE_TOKENS, m, 2 * n_pairs);
        kernels->pair_sums(attend->sums + first * attend->sums_stride + col, attend->sums_stride, keep, scaled,
                           attend->weight_pairs, m, tile->value_pairs + (size_t)col * 2 * n_pairs, n_pairs, cols);
    }
}

/* Queries of integers: those that are attended in floats see nothing of the tile in integers. */
static void attend_mixed(ds_attend *attend, const ds_tile *tile, const uint32_t *visible, uint32_t first, uint32_t m)
{
    uint32_t in_integers[DS_PANEL_ROWS];
    for (uint32_t i = 0; i < m; i++)
        in_integers[i] = attend->in_floats[first + i] ? 0 : visible[first + i];
    attend_integers(attend, tile, in_integers, first, m);
}

/* What attend_mixed has left, one query at a time. Scores of integers, which may have been made for all queries
 * beforehand, are no longer needed. */
static void attend_left(ds_attend *attend, const ds_tile *tile, const uint32_t *visible)
{
    for (uint32_t i = 0; attend->any_in_floats && i < attend->n; i++)
        if (attend->in_floats[i] && visible[i] > 0)
            attend_floats(attend, tile, visible, i, 1);
}

void ds_attend_tile(ds_attend *attend, const ds_tile *tile, const uint32_t *visible)
{
    bool integers = attend->shape->integers;
    uint32_t rows = integers ? DS_PANEL_ROWS : DS_ATTEND_ROWS;
    for (uint32_t first = 0; first < attend->n; first += rows) {
        uint32_t m = attend->n - first < rows ? attend->n - first : rows;
        bool any = false;
        for (uint32_t i = 0; i < m; i++)
            any = any || visible[first + i] > 0;
        if (!any)
            continue;
        if (integers)
            attend_mixed(attend, tile, visible, first, m);
        else
            attend_floats(attend, tile, visible, first, m);
    }
    if (integers)
        attend_left(attend, tile, visible);
}

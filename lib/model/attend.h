/* Attention of a block of query vectors over tiles of keys and values. Inside the model room only; mla.c says what queries, keys
 * and values are in each of MLA's two forms.
 *
 * The online softmax (Milakov and Gimelshein, arXiv 1805.02867): a running maximum, sum of weights and weighted sum for each query,
 * rescaled when the maximum grows. A query's result depends on the order of tiles alone.
 *
 * There are two arithmetics. `floats` is for caches of floats. `sixteen` is for quantised caches: their elements are small
 * integers as it is, and integers of 16 bits go through twice as many to an instruction. Queries and weights are rounded to 15
 * bits of their largest, and keys and values to 12 where they have not been integers before. On tests/data/goldens/plain that
 * moves logits by a ninth (absorbed) or a fifth (expanded) of what the 8-bit cache itself does, root mean square. */
#ifndef DS_LIB_MODEL_ATTEND_H
#define DS_LIB_MODEL_ATTEND_H

#include "cache/cache.h"
#include "kernels/kernels.h"

/* What queries, keys and values look like. In 16 bits each of the key's two parts is filled up to whole groups of
 * DS_SCALE_COLS columns. */
typedef struct ds_attend_shape {
    bool sixteen;
    uint32_t part[2];     /* elements of a key: latent and rope, or all and 0 */
    uint32_t value_width; /* elements of a value */
    uint32_t value_group; /* sixteen: value columns that share a token's scale: DS_SCALE_COLS, or all of value_width */
    bool at_once;         /* sixteen: each block of keys meets the queries as soon as it is made, in the first-level cache: for at most
                             DS_ATTEND_ROWS queries */
} ds_attend_shape;

/* Keys and values of n <= DS_PAGE_TOKENS tokens. */
typedef struct ds_tile {
    size_t n;
    /* floats: rows, the values' perhaps the same as the keys' */
    const float *keys, *values;
    size_t key_stride, value_stride;
    /* sixteen */
    int16_t *key_pairs;    /* [DS_PAGE_TOKENS / DS_PANEL_ROWS] blocks of the groups' columns; at_once: the present block */
    float *key_scales;     /* [groups][DS_PAGE_TOKENS] */
    int16_t *value_pairs;  /* [value columns / DS_PANEL_ROWS] blocks of ceil(n / 2) pairs of tokens */
    const float *value_scales; /* [value groups][DS_PAGE_TOKENS] */
    float *value_largest;  /* the same: the largest scale of the tokens up to this one, so that no query depends on later ones */
} ds_tile;

/* A block of n queries at work. */
typedef struct ds_attend {
    const ds_kernels *kernels;
    const ds_attend_shape *shape;
    uint32_t n;
    const float *const *q;     /* [n] rows of floats; sixteen: read by ds_attend_queries alone */
    float *sums;               /* [n] rows, sums_stride apart, of value_width: sum_t exp(s_t - max) v_t */
    size_t sums_stride;
    float *max, *sum;          /* [n]: the running maximum, and the sum of weights */
    int16_t *q_pairs;          /* sixteen: [ceil(n / DS_PANEL_ROWS)] blocks */
    float *q_scales;           /* [n] */
    float *scores;             /* [at most DS_ATTEND_ROWS][DS_PAGE_TOKENS] */
    int16_t *weights, *weight_pairs; /* sixteen: [DS_PANEL_ROWS][DS_PAGE_TOKENS], as rows and as a block */
    int16_t *rows;             /* sixteen: [DS_PANEL_ROWS] rows of a key or a value, for what is to become pairs */
    float *padded;             /* sixteen: [columns of the groups] */
} ds_attend;

/* Queries that meet a tile together: their scores stay in the first-level cache. */
enum { DS_ATTEND_ROWS = 64 };

/* Groups of columns of a key and of a value. */
uint32_t ds_attend_groups(const ds_attend_shape *shape);
uint32_t ds_attend_value_groups(const ds_attend_shape *shape);

/* Floats of working memory for blocks of up to n queries and a tile, and its division; `tile` gets room for what `sixteen` needs.
 * Returns the first float behind. */
size_t ds_attend_floats(const ds_attend_shape *shape, size_t n);
float *ds_attend_lay_out(const ds_attend_shape *shape, size_t n, float *memory, ds_attend *attend, ds_tile *tile);

/* Begins a block: nothing is seen yet. n, sums, sums_stride, max and sum are set. */
void ds_attend_begin(ds_attend *attend);

/* Takes the queries in, before the first tile: n and q are set. */
void ds_attend_queries(ds_attend *attend);

/* Takes a tile in; query i sees its first visible[i] tokens. */
void ds_attend_tile(ds_attend *attend, const ds_tile *tile, const uint32_t *visible);

/* sixteen: a tile is made DS_PANEL_ROWS tokens at a time, or as many as are left: token `first` and the next ones, which stay in the
 * first-level cache meanwhile. Keys are rows of whole groups, values the first value_width columns of rows; rows are `stride` numbers
 * apart. */
size_t ds_tile_rows(const ds_tile *tile, size_t first);
void ds_tile_keys(ds_tile *tile, const ds_attend_shape *shape, const ds_kernels *kernels, size_t first, const int16_t *rows,
                  size_t stride);
void ds_tile_values(ds_tile *tile, const ds_attend_shape *shape, const ds_kernels *kernels, size_t first, const int16_t *rows,
                    size_t stride);

/* The same where a key is a latent of value_width bytes, which is also the value, and a RoPE part: `codes` has the first, `rows`, of whole
 * groups, the other in its last columns. */
void ds_tile_codes(ds_tile *tile, const ds_attend_shape *shape, const ds_kernels *kernels, size_t first, const int8_t *codes,
                   size_t codes_stride, const int16_t *rows, size_t stride);

/* sixteen, at_once: to be called after each ds_tile_keys or ds_tile_codes, the tokens' key_scales being set. */
void ds_attend_keys(const ds_attend *attend, const ds_tile *tile, size_t first);

/* sixteen: to be called when all is there, key_scales and value_scales too, which are the caller's to set. */
void ds_tile_finish(ds_tile *tile, const ds_attend_shape *shape);

#endif

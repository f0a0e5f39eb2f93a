/* Attention of some query vectors over tiles of keys and values. mla.c says what queries, keys and values are in each
 * of MLA's two forms.
 *
 * The online softmax (Milakov and Gimelshein, arXiv 1805.02867): each query has a running maximum, a sum of weights and
 * a weighted sum of values, which are rescaled when the maximum grows. A query's result depends on the order of the
 * tiles alone.
 *
 * There are two arithmetics. Caches of floats are attended in floats. Quantised caches are attended in integers of 16
 * bits: their elements are small integers as it is, and an instruction multiplies twice as many integers of 16 bits as
 * floats. Queries and weights are rounded to 15 bits of their largest element; keys and values that are no integers yet
 * are rounded to 12 bits. On tests/data/goldens/plain that moves logits by a ninth (absorbed) or a fifth (expanded) of
 * what the 8-bit cache itself does, root mean square. A query whose two parts, for latent and RoPE key, differ too much
 * in size would lose the smaller one: such a query is attended in floats whatever the cache.
 *
 * In this order: ds_attend_divide; ds_attend_begin and ds_attend_queries; then for each tile its keys and values, and
 * ds_attend_tile. In floats keys and values are pointers to rows. In integers a tile is made DS_PANEL_ROWS tokens at a
 * time, by ds_tile_keys and ds_tile_values or by ds_tile_codes, and completed by ds_tile_finish. */
#ifndef DS_LIB_FORWARD_ATTEND_H
#define DS_LIB_FORWARD_ATTEND_H

#include "cache/cache.h"
#include "kernels/kernels.h"

/* Queries whose scores with a tile are made together: the scores stay in the first-level cache. */
enum { DS_ATTEND_ROWS = 64 };

/* What queries, keys and values look like. */
typedef struct ds_attend_shape {
    bool integers;          /* the arithmetic */
    uint32_t part[2];       /* elements of a key: latent and RoPE part, or all and 0. In integers each part is filled up
                             * with zeros to whole sections of DS_SCALE_COLS columns. */
    uint32_t value_width;   /* elements of a value */
    uint32_t value_section; /* integers: columns of a value that share the token's scale: DS_SCALE_COLS, or all of
                             * value_width */
    bool score_by_panel;    /* integers: scores are made as soon as a panel of keys is there, while the panel is in the
                             * first-level cache. For at most DS_ATTEND_ROWS queries. */
    uint32_t rope;          /* integers: the last so many columns of a query belong to the RoPE key, the others to the
                             * latent */
    int part_least;         /* integers: a query is attended in floats if the rounded elements of either part are all
                             * smaller than this, and not all nothing */
} ds_attend_shape;

/* Keys and values of n <= DS_PAGE_TOKENS tokens. */
typedef struct ds_tile {
    size_t n;

    /* Floats: rows, which may be the same for keys and values. Integers need them if attend->any_in_floats. */
    const float *keys, *values;
    size_t key_stride, value_stride;

    /* Integers. Key scales and value scales are the caller's to set, a panel's key scales before its keys. */
    int16_t *key_pairs;        /* [DS_PAGE_TOKENS / DS_PANEL_ROWS] panels of the key's columns; score_by_panel: the
                                * present panel */
    float *key_scales;         /* [sections][DS_PAGE_TOKENS] */
    int16_t *value_pairs;      /* [value columns / DS_PANEL_ROWS] panels of ceil(n / 2) pairs of tokens */
    const float *value_scales; /* [value sections][DS_PAGE_TOKENS] */
    float *value_scale_max;    /* [value sections][DS_PAGE_TOKENS]: the largest scale up to and with each token, so that
                                * no query depends on tokens behind the last that it sees */
} ds_tile;

/* n queries at work. */
typedef struct ds_attend {
    const ds_kernels *kernels;
    const ds_attend_shape *shape;
    uint32_t n;
    const float *const *q; /* [n] rows of floats */
    float *sums;           /* [n] rows, sums_stride apart, of value_width: sum_t exp(s_t - max) v_t */
    size_t sums_stride;
    float *max, *sum;      /* [n]: the running maximum, and the sum of weights */

    float *scores;         /* [DS_ATTEND_ROWS or fewer][DS_PAGE_TOKENS] */
    /* Integers: */
    int16_t *q_pairs;      /* [ceil(n / DS_PANEL_ROWS)] panels */
    float *q_scales;       /* [n] */
    bool *in_floats;       /* [n]: set by ds_attend_queries: the query's parts differ too much in size */
    bool any_in_floats;
    int16_t *weights;      /* [DS_PANEL_ROWS][DS_PAGE_TOKENS]: softmax weights, as rows */
    int16_t *weight_pairs; /* the same as a panel */
    int16_t *rows;         /* [DS_PANEL_ROWS] rows of a key or a value, which are to become a panel */
    float *padded;         /* [columns of the sections]: a query while it is filled up */
} ds_attend;

/* Sections of a key and of a value. */
uint32_t ds_attend_sections(const ds_attend_shape *shape);
uint32_t ds_attend_value_sections(const ds_attend_shape *shape);

/* Floats of working memory for up to n queries and a tile, and dividing it: attend and tile get the pointers that their
 * shape needs. max, sum and sums may be replaced afterwards. */
size_t ds_attend_floats(const ds_attend_shape *shape, size_t n);
void ds_attend_divide(const ds_attend_shape *shape, size_t n, float *memory, ds_attend *attend, ds_tile *tile);

/* No token is seen yet. n, sums, sums_stride, max and sum are set. */
void ds_attend_begin(ds_attend *attend);

/* Takes the queries in, before the first tile. n and q are set. */
void ds_attend_queries(ds_attend *attend);

/* Takes a tile in; query i sees the tile's first visible[i] tokens. */
void ds_attend_tile(ds_attend *attend, const ds_tile *tile, const uint32_t *visible);

/* ---- making a tile of integers, a panel at a time ---- */

/* Tokens of the panel that begins at token `first`: DS_PANEL_ROWS, or as many as are left. */
size_t ds_tile_rows(const ds_tile *tile, size_t first);

/* The keys of a panel: rows of whole sections, `stride` numbers apart. */
void ds_tile_keys(const ds_attend *attend, ds_tile *tile, size_t first, const int16_t *rows, size_t stride);

/* The values of a panel: the first value_width columns of rows that are `stride` numbers apart. */
void ds_tile_values(const ds_attend *attend, ds_tile *tile, size_t first, const int16_t *rows, size_t stride);

/* Keys and values of a panel at once, where a key is a latent of value_width bytes, which is also the value, and a RoPE
 * part: `codes` has the latents, codes_stride bytes apart; `rows`, of whole sections, has the RoPE parts in its last
 * columns. */
void ds_tile_codes(const ds_attend *attend, ds_tile *tile, size_t first, const int8_t *codes, size_t codes_stride,
                   const int16_t *rows, size_t stride);

/* After the last panel, and when key scales and value scales are set. */
void ds_tile_finish(const ds_attend *attend, ds_tile *tile);

#endif

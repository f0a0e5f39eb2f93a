/* cache: the paged latent KV cache. A page holds, for every layer, the rows of DS_PAGE_TOKENS consecutive tokens; a row is one
 * token's latent c^KV (kv_lora_rank elements, after its norm) and its rotated k^R (qk_rope_head_dim elements), and nothing else is
 * ever kept of a token (section 2.1.2 of the report). Pages are counted references from a pool that all sessions of a model
 * share: a fork shares them, and who writes to a shared page first copies it.
 * May include: base, kernels. */
#ifndef DS_LIB_CACHE_H
#define DS_LIB_CACHE_H

#include "base/base.h"
#include "kernels/kernels.h"

#include <dsv2/session.h>

#include <stdatomic.h>

/* With 64 tokens a page of V2-Lite at 16 bits is 1.99 MB, just under one huge page; and 64 rows of floats are the tile that
 * attention works on, small enough for a core's second-level cache. */
enum { DS_PAGE_TOKENS = 64 };

/* What rows and pages of one model and element type look like. */
typedef struct ds_cache_shape {
    dsv2_cache_type type; /* never DSV2_CACHE_DEFAULT */
    uint32_t n_layers, kv_lora_rank, qk_rope_head_dim;
    uint32_t rotation;  /* latents are kept rotated in blocks of so many elements; 1: as they are. See ds_cache_rotate */
    size_t row_bytes;   /* of one token in one layer */
    size_t layer_bytes; /* of one layer in a page: DS_PAGE_TOKENS rows */
    size_t page_bytes;
} ds_cache_shape;

/* DSV2_ERROR_ARGUMENT for a type that there is not. */
dsv2_status ds_cache_shape_init(ds_cache_shape *shape, dsv2_cache_type type, uint32_t n_layers, uint32_t kv_lora_rank,
                                uint32_t qk_rope_head_dim);

/* One row to its stored form: kv_lora_rank + qk_rope_head_dim floats in, which are used up, row_bytes out. */
void ds_cache_encode_row(const ds_cache_shape *shape, const ds_kernels *kernels, float *row, uint8_t *stored);

/* n consecutive stored rows to floats, kv_lora_rank + qk_rope_head_dim each, in the basis that they are kept in. Any bytes
 * decode to something. */
void ds_cache_decode_rows(const ds_cache_shape *shape, const ds_kernels *kernels, const uint8_t *stored, size_t n, float *rows);

/* Whether the cache keeps integers with scales: then attention takes rows so. */
bool ds_cache_is_quantised(const ds_cache_shape *shape);

/* The latents' elements where a cache keeps them as bytes, rows of kv_lora_rank, row_bytes apart; else NULL. */
const int8_t *ds_cache_codes(const ds_cache_shape *shape, const uint8_t *stored);

/* n <= DS_PAGE_TOKENS consecutive stored rows of a quantised cache as integers: in each of `rows`, the latent's elements (unless
 * ds_cache_codes has them, as they are) and then those of the RoPE part, both filled up with zeros to whole groups of
 * DS_SCALE_COLS; scales[g * DS_PAGE_TOKENS + t] is what group g of row t is multiplied by. Latents are the very integers that are
 * kept; the RoPE part is rounded to DS_MAX_12_BITS (so is the latent in q6 if its rank is odd). scratch: a row of floats. next: as many
 * stored rows, which are brought from memory meanwhile; or NULL. */
void ds_cache_decode_integers(const ds_cache_shape *shape, const ds_kernels *kernels, const uint8_t *stored, size_t n,
                              int16_t *rows, float *scales, float *scratch, const uint8_t *next);

/* Takes kv_lora_rank floats into the basis that latents are kept in, or back: the rotation is orthogonal and its own inverse. So
 * attention may rotate its few queries and results rather than every row: (R q) . (R c) = q . c. */
void ds_cache_rotate(const ds_cache_shape *shape, const ds_kernels *kernels, float *latent);

/* Where the pages of all sessions of a model come from, and what they take. */
typedef struct ds_page_pool {
    ds_mutex lock;
    uint64_t bytes_limit; /* 0: none */
    uint64_t bytes_in_use, pages_in_use;
    struct ds_slab *slabs; /* those with free pages */
} ds_page_pool;

void ds_page_pool_init(ds_page_pool *pool, uint64_t bytes_limit);
void ds_page_pool_destroy(ds_page_pool *pool);

typedef struct ds_page {
    _Atomic uint32_t references;
    uint8_t *data; /* page_bytes: layer by layer, each DS_PAGE_TOKENS rows */
    struct ds_slab *slab;
} ds_page;

/* One session's pages, in order of position. */
typedef struct ds_cache {
    ds_page_pool *pool;
    ds_cache_shape shape;
    ds_page **pages;
    size_t n_pages, capacity;
} ds_cache;

void ds_cache_init(ds_cache *cache, ds_page_pool *pool, const ds_cache_shape *shape);
void ds_cache_destroy(ds_cache *cache);

/* Makes the rows of positions first to first + n - 1 writable: adds pages, copies a shared one that holds `first`. Rows before
 * `first` keep their contents. On failure the cache holds what it held. */
dsv2_status ds_cache_reserve(ds_cache *cache, size_t first, size_t n);

/* Gives back the pages that no position below n needs. */
void ds_cache_truncate(ds_cache *cache, size_t n);

/* Makes `copy` (initialised, empty, of the same pool and shape) share the pages of the first n positions. */
dsv2_status ds_cache_share(const ds_cache *cache, size_t n, ds_cache *copy);

/* The stored rows of one layer in one page. Write only positions that were reserved. */
uint8_t *ds_cache_rows(const ds_cache *cache, uint32_t layer, size_t page);

#endif

/* cache: the paged KV cache. A page holds the rows of DS_PAGE_TOKENS consecutive tokens, layer by layer. A row is all
 * that the cache keeps of one token in one layer; what parts a row has is said by the kind of attention. Pages are
 * counted references from a pool that all sessions of a model share: a fork shares them, and who writes to a shared
 * page first copies it.
 * May include: base, kernels. */
#ifndef DS_LIB_CACHE_H
#define DS_LIB_CACHE_H

#include "base/base.h"
#include "kernels/kernels.h"

#include <dsv2/session.h>

#include <stdatomic.h>

/* With 64 tokens a page of V2-Lite at 16 bits is 1.99 MB, just under one huge page; and 64 rows of floats are the tile
 * that attention works on, small enough for a core's second-level cache. */
enum { DS_PAGE_TOKENS = 64 };

/* How a part of a row is stored. Sections are consecutive elements that share a scale. */
typedef enum ds_encoding {
    DS_ENCODING_F32,
    DS_ENCODING_F16,
    DS_ENCODING_BYTES_64, /* a signed byte for an element, a scale for 64 */
    DS_ENCODING_BYTES_16, /* a signed byte for an element, a scale for 16 */
    DS_ENCODING_PAIRS,    /* rotated; 11 bits for two elements, a scale for 128 */
    DS_ENCODINGS
} ds_encoding;

enum { DS_SCALE_BYTES = 2 }; /* a stored scale is the upper half of a float */

enum { DS_MAX_PARTS = 2, DS_CACHE_TYPES = DSV2_CACHE_Q6 + 1 };

/* Widths that a snapshot may name: those that a model may have (snapshot/format.c asserts that). */
enum { DS_MAX_LATENT_WIDTH = 1 << 20, DS_MAX_ROPE_WIDTH = 1 << 14 };

/* What the rows of one kind of attention consist of, and how each cache type stores them. Widths are the model's. */
typedef struct ds_row_description {
    uint32_t number; /* in snapshots */
    uint32_t n_parts;
    struct {
        const char *name;
        const char *width_name; /* the hyper-parameter that is the part's width, for messages */
        uint32_t least, most;   /* widths that a snapshot may name */
        ds_encoding encoding[DS_CACHE_TYPES]; /* by dsv2_cache_type; that of DSV2_CACHE_DEFAULT is not used */
    } parts[DS_MAX_PARTS];
} ds_row_description;

/* Multi-head Latent Attention keeps the latent c^KV, after its norm, and the rotated key k^R of a token, and nothing
 * else (section 2.1.2 of the report). */
enum { DS_MLA_LATENT, DS_MLA_ROPE, DS_MLA_PARTS };
extern const ds_row_description ds_mla_row;

/* The description with this number; NULL if there is none. */
const ds_row_description *ds_row_description_of(uint32_t number);

/* How ds_cache_decode_integers gets the integers of a part. */
typedef enum ds_part_integers {
    DS_INTEGERS_IN_PLACE, /* the stored bytes serve as they are: ds_cache_codes */
    DS_INTEGERS_SPLIT,    /* the stored pairs are taken apart */
    DS_INTEGERS_HALVES,   /* f16 numbers are rounded */
    DS_INTEGERS_ROUNDED,  /* decoded floats are rounded */
} ds_part_integers;

/* One part of the rows of a cache. Where a part in pairs has an odd number of elements, its last one is stored as the
 * first of the next part: so a part's own elements and those stored in its encoding may differ by one at either end. */
typedef struct ds_cache_part {
    const char *name;
    uint32_t width, first;               /* elements; the first one's place in a row of floats */
    uint32_t stored_width, stored_first; /* the same of those that are stored in `encoding` */
    ds_encoding encoding;
    ds_part_integers integers;
    uint32_t rotation;       /* so many elements are rotated together; 1: none are. See ds_cache_rotate_part */
    uint32_t section;        /* stored elements that share a scale; 0: there are no scales */
    uint32_t integer_sections; /* sections of DS_SCALE_COLS that the part's integers fill */
    float limit;             /* elements have magnitudes below this */
    size_t scales, elements; /* where in a stored row they begin, in bytes */
} ds_cache_part;

/* What rows and pages of one model and cache type look like. */
typedef struct ds_cache_shape {
    const ds_row_description *row;
    dsv2_cache_type type; /* never DSV2_CACHE_DEFAULT */
    uint32_t n_layers, n_parts;
    ds_cache_part parts[DS_MAX_PARTS];
    uint32_t width;        /* elements of a row, all parts */
    uint32_t number_bytes; /* 4 or 2: a stored row is nothing but f32 or f16 numbers, in order; 1: it is not */
    bool is_quantised;     /* some part has scales: then attention takes rows as integers */
    size_t row_bytes;      /* of one token in one layer */
    size_t layer_bytes;    /* of one layer in a page: DS_PAGE_TOKENS rows */
    size_t page_bytes;
} ds_cache_shape;

/* widths: of each part of the description, in elements. DSV2_ERROR_ARGUMENT for a type that there is not. */
dsv2_status ds_cache_shape_init(ds_cache_shape *shape, const ds_row_description *row, const uint32_t *widths,
                                dsv2_cache_type type, uint32_t n_layers);

/* "q8" and so on; "unknown" for a number that is no cache type. */
const char *ds_cache_type_name(uint32_t type);

/* The first part of a row of floats that the shape cannot hold, with its largest magnitude, which may be infinity or
 * NaN; n_parts if the shape holds the row. */
uint32_t ds_cache_unfit_part(const ds_cache_shape *shape, const float *row, float *largest);

/* One row to its stored form: shape->width floats in, which are used up, row_bytes out. The shape holds the row. */
void ds_cache_encode_row(const ds_cache_shape *shape, const ds_kernels *kernels, float *row, uint8_t *stored);

/* Whether all numbers and scales of n consecutive stored rows are finite: rows of a file may hold anything. */
bool ds_cache_rows_are_finite(const ds_cache_shape *shape, const uint8_t *stored, size_t n);

/* n consecutive stored rows to floats, shape->width each, in the basis that they are kept in. Any bytes decode to
 * something. */
void ds_cache_decode_rows(const ds_cache_shape *shape, const ds_kernels *kernels, const uint8_t *stored, size_t n,
                          float *rows);

/* A part's elements where rows hold them as bytes with a scale per section of DS_SCALE_COLS or of a multiple: those of
 * consecutive rows are row_bytes apart. Else NULL. */
const int8_t *ds_cache_codes(const ds_cache_shape *shape, uint32_t part, const uint8_t *stored);

/* n <= DS_PAGE_TOKENS consecutive stored rows as integers. Each of `rows` has the parts one after another, each filled
 * up with zeros to whole sections of DS_SCALE_COLS; a part that ds_cache_codes has in place is not written. Section s
 * of row t is to be multiplied by scales[s * DS_PAGE_TOKENS + t]. A part that is stored as small integers with a scale
 * for DS_SCALE_COLS or more elements gives those very integers; the elements of any other part are rounded to
 * DS_MAX_12_BITS. scratch: a row of floats. next: as many stored rows, which are brought from memory meanwhile; or
 * NULL. */
void ds_cache_decode_integers(const ds_cache_shape *shape, const ds_kernels *kernels, const uint8_t *stored, size_t n,
                              int16_t *rows, float *scales, float *scratch, const uint8_t *next);

/* Takes the floats of a part into the basis that the cache keeps them in, or back: the rotation is orthogonal and its
 * own inverse. So attention may rotate its few queries and results rather than every row: (R q) . (R c) = q . c. */
void ds_cache_rotate_part(const ds_cache_shape *shape, uint32_t part, const ds_kernels *kernels, float *x);

/* The same for all parts of a row. */
void ds_cache_rotate_row(const ds_cache_shape *shape, const ds_kernels *kernels, float *row);

/* Where the pages of all sessions of a model come from, and what they take. */
typedef struct ds_page_pool {
    const dsv2_allocator *allocator; /* of pages; NULL: the C library */
    ds_mutex lock;
    uint64_t bytes_limit; /* 0: none */
    uint64_t bytes_in_use, pages_in_use;
    struct ds_slab *slabs; /* those with free pages */
} ds_page_pool;

void ds_page_pool_init(ds_page_pool *pool, const dsv2_allocator *allocator, uint64_t bytes_limit);
void ds_page_pool_destroy(ds_page_pool *pool);

typedef struct ds_page {
    _Atomic uint32_t references;
    uint8_t *data; /* page_bytes: layer by layer, each DS_PAGE_TOKENS rows */
    struct ds_slab *slab;
} ds_page;

/* One session's pages, in order of position. Pool and shape stay what ds_cache_init made them. */
typedef struct ds_cache {
    ds_page_pool *pool;
    ds_cache_shape shape;
    ds_page **pages;
    size_t n_pages, capacity;
} ds_cache;

void ds_cache_init(ds_cache *cache, ds_page_pool *pool, const ds_cache_shape *shape);
void ds_cache_destroy(ds_cache *cache);

/* Makes the rows of positions first to first + n - 1 writable: adds pages, copies a shared one that holds `first`. Rows
 * before `first` keep their contents. On failure the cache holds what it held. */
dsv2_status ds_cache_reserve(ds_cache *cache, size_t first, size_t n);

/* Gives back the pages that no position below n needs. */
void ds_cache_truncate(ds_cache *cache, size_t n);

/* Makes `copy` (initialised, empty, of the same pool and shape) share the pages of the first n positions. */
dsv2_status ds_cache_share(const ds_cache *cache, size_t n, ds_cache *copy);

/* Exchanges the pages of two caches of the same pool and shape. */
void ds_cache_exchange(ds_cache *a, ds_cache *b);

/* The stored rows of one layer in one page. Write only positions that were reserved. */
uint8_t *ds_cache_rows(const ds_cache *cache, uint32_t layer, size_t page);

#endif

/* Pages: taken from the pool, shared, copied by who writes. */
#include "cache/cache.h"

#include <assert.h>
#include <string.h>

void ds_page_pool_init(ds_page_pool *pool, const dsv2_allocator *allocator, uint64_t bytes_limit)
{
    *pool = (ds_page_pool){.allocator = allocator, .bytes_limit = bytes_limit};
    ds_mutex_init(&pool->lock);
}

void ds_page_pool_destroy(ds_page_pool *pool) { ds_mutex_destroy(&pool->lock); }

/* Memory for one page, or for SLAB_PAGES pages that are each smaller than one of the system's huge pages but together
 * fill some of them. Attention reads some rows of every page: in small pages of the system that took twice as long. */
typedef struct ds_slab {
    struct ds_slab *next, *previous; /* in the pool's list, while it has free pages */
    uint8_t *data;
    size_t page_bytes;
    uint32_t all, free; /* one bit a page */
    ds_page pages[];
} ds_slab;

enum { SLAB_PAGES = 8, SLAB_LEAST = 256 << 10, SLAB_MOST = 2 << 20 };

static ds_slab *slab_new(const dsv2_allocator *allocator, size_t page_bytes)
{
    uint32_t n = page_bytes >= SLAB_LEAST && page_bytes < SLAB_MOST ? SLAB_PAGES : 1;
    ds_slab *slab = ds_new(1, sizeof *slab + n * sizeof *slab->pages);
    if (slab == NULL)
        return NULL;
    slab->data = ds_allocate(allocator, n, page_bytes);
    if (slab->data == NULL) {
        ds_free(slab);
        return NULL;
    }
    slab->page_bytes = page_bytes;
    slab->all = slab->free = (1u << n) - 1;
    for (uint32_t i = 0; i < n; i++) {
        slab->pages[i].slab = slab;
        slab->pages[i].data = slab->data + i * page_bytes;
    }
    return slab;
}

static void slab_free(const dsv2_allocator *allocator, ds_slab *slab)
{
    ds_release(allocator, slab->data);
    ds_free(slab);
}

static void list_slab(ds_page_pool *pool, ds_slab *slab)
{
    slab->previous = NULL;
    slab->next = pool->slabs;
    if (slab->next != NULL)
        slab->next->previous = slab;
    pool->slabs = slab;
}

static void unlist_slab(ds_page_pool *pool, ds_slab *slab)
{
    if (slab->previous != NULL)
        slab->previous->next = slab->next;
    else
        pool->slabs = slab->next;
    if (slab->next != NULL)
        slab->next->previous = slab->previous;
}

/* A free page of a listed slab, or NULL. */
static ds_page *take_page(ds_page_pool *pool, size_t bytes)
{
    ds_slab *slab = pool->slabs;
    while (slab != NULL && slab->page_bytes != bytes)
        slab = slab->next;
    if (slab == NULL)
        return NULL;
    assert(slab->free != 0); /* a listed slab has free pages */
    ds_page *page = &slab->pages[__builtin_ctz(slab->free)];
    slab->free &= slab->free - 1;
    if (slab->free == 0)
        unlist_slab(pool, slab);
    return page;
}

/* A page of a new slab, or NULL. The pool is not locked meanwhile: the host's allocator may take its time. */
static ds_page *page_of_new_slab(ds_page_pool *pool, size_t bytes)
{
    ds_slab *slab = slab_new(pool->allocator, bytes);
    if (slab == NULL)
        return NULL;
    ds_mutex_lock(&pool->lock);
    list_slab(pool, slab);
    ds_page *page = take_page(pool, bytes);
    ds_mutex_unlock(&pool->lock);
    return page;
}

static void count_page(ds_page_pool *pool, size_t bytes)
{
    pool->bytes_in_use += bytes;
    pool->pages_in_use++;
}

static void uncount_page(ds_page_pool *pool, size_t bytes)
{
    pool->bytes_in_use -= bytes;
    pool->pages_in_use--;
}

static dsv2_status page_new(ds_page_pool *pool, size_t bytes, ds_page **out)
{
    ds_mutex_lock(&pool->lock);
    uint64_t in_use = pool->bytes_in_use;
    bool fits = pool->bytes_limit == 0 || (in_use <= pool->bytes_limit && bytes <= pool->bytes_limit - in_use);
    ds_page *page = fits ? take_page(pool, bytes) : NULL;
    if (fits)
        count_page(pool, bytes);
    ds_mutex_unlock(&pool->lock);
    if (fits && page == NULL) {
        page = page_of_new_slab(pool, bytes);
        if (page == NULL) {
            ds_mutex_lock(&pool->lock);
            uncount_page(pool, bytes);
            ds_mutex_unlock(&pool->lock);
        }
    }
    if (!fits)
        return ds_fail(DSV2_ERROR_MEMORY,
                       "KV pages take %llu bytes and one more takes %zu: over cache_memory_limit, %llu",
                       (unsigned long long)in_use, bytes, (unsigned long long)pool->bytes_limit);
    if (page == NULL)
        return ds_fail_memory("a KV page", bytes);
    atomic_init(&page->references, 1);
    *out = page;
    return DSV2_OK;
}

static void page_release(ds_page_pool *pool, ds_page *page)
{
    uint32_t before = atomic_fetch_sub_explicit(&page->references, 1, memory_order_acq_rel);
    assert(before > 0);
    if (before != 1)
        return;
    ds_slab *slab = page->slab;
    ds_mutex_lock(&pool->lock);
    if (slab->free == 0)
        list_slab(pool, slab);
    slab->free |= 1u << (page - slab->pages);
    bool empty = slab->free == slab->all;
    if (empty)
        unlist_slab(pool, slab);
    uncount_page(pool, slab->page_bytes);
    ds_mutex_unlock(&pool->lock);
    if (empty)
        slab_free(pool->allocator, slab);
}

void ds_cache_init(ds_cache *cache, ds_page_pool *pool, const ds_cache_shape *shape)
{
    *cache = (ds_cache){.pool = pool, .shape = *shape};
}

void ds_cache_destroy(ds_cache *cache)
{
    ds_cache_truncate(cache, 0);
    ds_free(cache->pages);
    cache->pages = NULL;
    cache->capacity = 0;
}

/* Gives the cache a copy of its own of a page that others share: the rows of its first n_tokens tokens. */
static dsv2_status own_page(ds_cache *cache, size_t index, size_t n_tokens)
{
    const ds_cache_shape *shape = &cache->shape;
    ds_page *shared = cache->pages[index], *own;
    dsv2_status status = page_new(cache->pool, shape->page_bytes, &own);
    if (status != DSV2_OK)
        return status;
    for (uint32_t layer = 0; layer < shape->n_layers; layer++) {
        size_t at = layer * shape->layer_bytes;
        memcpy(own->data + at, shared->data + at, n_tokens * shape->row_bytes);
    }
    cache->pages[index] = own;
    page_release(cache->pool, shared);
    return DSV2_OK;
}

dsv2_status ds_cache_reserve(ds_cache *cache, size_t first, size_t n)
{
    size_t before = cache->n_pages, needed = (first + n + DS_PAGE_TOKENS - 1) / DS_PAGE_TOKENS;
    if (!ds_grow(&cache->pages, &cache->capacity, needed, sizeof *cache->pages))
        return ds_fail_memory("the list of KV pages", needed * sizeof *cache->pages);
    dsv2_status status = DSV2_OK;
    while (status == DSV2_OK && cache->n_pages < needed) {
        status = page_new(cache->pool, cache->shape.page_bytes, &cache->pages[cache->n_pages]);
        if (status == DSV2_OK)
            cache->n_pages++;
    }
    /* Pages that were there already and will be written to. Only the first can hold rows worth keeping. */
    for (size_t i = first / DS_PAGE_TOKENS; status == DSV2_OK && i < before && i < needed; i++)
        if (atomic_load_explicit(&cache->pages[i]->references, memory_order_acquire) > 1)
            status = own_page(cache, i, i == first / DS_PAGE_TOKENS ? first % DS_PAGE_TOKENS : 0);
    if (status != DSV2_OK)
        ds_cache_truncate(cache, before * DS_PAGE_TOKENS);
    return status;
}

void ds_cache_truncate(ds_cache *cache, size_t n)
{
    size_t keep = (n + DS_PAGE_TOKENS - 1) / DS_PAGE_TOKENS;
    while (cache->n_pages > keep)
        page_release(cache->pool, cache->pages[--cache->n_pages]);
}

dsv2_status ds_cache_share(const ds_cache *cache, size_t n, ds_cache *copy)
{
    size_t n_pages = (n + DS_PAGE_TOKENS - 1) / DS_PAGE_TOKENS;
    assert(n_pages <= cache->n_pages && copy->n_pages == 0);
    assert(copy->pool == cache->pool && copy->shape.page_bytes == cache->shape.page_bytes);
    if (!ds_grow(&copy->pages, &copy->capacity, n_pages, sizeof *copy->pages))
        return ds_fail_memory("the list of KV pages", n_pages * sizeof *copy->pages);
    for (size_t i = 0; i < n_pages; i++) {
        atomic_fetch_add_explicit(&cache->pages[i]->references, 1, memory_order_relaxed);
        copy->pages[i] = cache->pages[i];
    }
    copy->n_pages = n_pages;
    return DSV2_OK;
}

void ds_cache_exchange(ds_cache *a, ds_cache *b)
{
    assert(a->pool == b->pool && a->shape.page_bytes == b->shape.page_bytes);
    ds_page **pages = a->pages;
    size_t n_pages = a->n_pages, capacity = a->capacity;
    a->pages = b->pages;
    a->n_pages = b->n_pages;
    a->capacity = b->capacity;
    b->pages = pages;
    b->n_pages = n_pages;
    b->capacity = capacity;
}

uint8_t *ds_cache_rows(const ds_cache *cache, uint32_t layer, size_t page)
{
    assert(page < cache->n_pages && layer < cache->shape.n_layers);
    return cache->pages[page]->data + layer * cache->shape.layer_bytes;
}

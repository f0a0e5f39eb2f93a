/* Blocks: rows of the cache, compressed and checked, by all threads of the model. */
#include "snapshot/format.h"

#include <string.h>
#include <zstd.h>

/* Blocks at work at a time: two for each thread, so that none waits for the slowest; bounded, since each is as large as a page. */
enum { MAX_BATCH = 16 };

/* Compressing has to save this part of a block, or it is stored as it is: reading it back takes time. */
enum { WORTHWHILE = 32 };

size_t ds_block_raw_bytes(const ds_cache_shape *shape, size_t n_tokens) { return n_tokens * shape->row_bytes * shape->n_layers; }

/* ---- planes: numbers of `width` bytes, all first bytes, then all second ones, ...: exponents compress, the ends of mantissas do not ---- */

static size_t plane_width(const ds_cache_shape *shape)
{
    return shape->type == DSV2_CACHE_F32 ? 4 : shape->type == DSV2_CACHE_F16 ? 2 : 1;
}

static void split_planes(uint8_t *restrict planes, const uint8_t *restrict bytes, size_t n, size_t width)
{
    size_t count = n / width;
    if (width == 2)
        for (size_t i = 0; i < count; i++) {
            planes[i] = bytes[2 * i];
            planes[count + i] = bytes[2 * i + 1];
        }
    else
        for (size_t i = 0; i < count; i++)
            for (size_t k = 0; k < 4; k++)
                planes[k * count + i] = bytes[4 * i + k];
}

static void join_planes(uint8_t *restrict bytes, const uint8_t *restrict planes, size_t n, size_t width)
{
    size_t count = n / width;
    if (width == 2)
        for (size_t i = 0; i < count; i++) {
            bytes[2 * i] = planes[i];
            bytes[2 * i + 1] = planes[count + i];
        }
    else
        for (size_t i = 0; i < count; i++)
            for (size_t k = 0; k < 4; k++)
                bytes[4 * i + k] = planes[k * count + i];
}

/* ---- the cache's side ---- */

/* The rows one after another, layer by layer: where they are if they fill the page, else copied to `raw`. */
static const uint8_t *gather(const ds_cache *cache, uint64_t first_token, size_t n_tokens, uint8_t *raw)
{
    const ds_cache_shape *shape = &cache->shape;
    size_t page = (size_t)(first_token / DS_PAGE_TOKENS), skipped = (size_t)(first_token % DS_PAGE_TOKENS) * shape->row_bytes;
    if (n_tokens == DS_PAGE_TOKENS)
        return ds_cache_rows(cache, 0, page);
    size_t bytes = n_tokens * shape->row_bytes;
    for (uint32_t layer = 0; layer < shape->n_layers; layer++)
        memcpy(raw + layer * bytes, ds_cache_rows(cache, layer, page) + skipped, bytes);
    return raw;
}

static void scatter(const ds_cache *cache, uint64_t first_token, size_t n_tokens, const uint8_t *raw)
{
    const ds_cache_shape *shape = &cache->shape;
    size_t page = (size_t)(first_token / DS_PAGE_TOKENS), skipped = (size_t)(first_token % DS_PAGE_TOKENS) * shape->row_bytes;
    size_t bytes = n_tokens * shape->row_bytes;
    for (uint32_t layer = 0; layer < shape->n_layers; layer++)
        memcpy(ds_cache_rows(cache, layer, page) + skipped, raw + layer * bytes, bytes);
}

/* The same from rows of another type. */
static void convert(const block_batch *batch, uint64_t first_token, size_t n_tokens, const uint8_t *raw, float *tile)
{
    const ds_cache *cache = batch->cache;
    const ds_kernels *kernels = batch->model->kernels;
    const ds_cache_shape *from = &batch->shape, *to = &cache->shape;
    size_t width = (size_t)to->kv_lora_rank + to->qk_rope_head_dim, page = (size_t)(first_token / DS_PAGE_TOKENS);
    for (uint32_t layer = 0; layer < to->n_layers; layer++) {
        uint8_t *stored = ds_cache_rows(cache, layer, page) + first_token % DS_PAGE_TOKENS * to->row_bytes;
        ds_cache_decode_rows(from, kernels, raw + layer * n_tokens * from->row_bytes, n_tokens, tile);
        for (size_t t = 0; t < n_tokens; t++) {
            ds_cache_rotate(from, kernels, tile + t * width);
            ds_cache_encode_row(to, kernels, tile + t * width, stored + t * to->row_bytes);
        }
    }
}

XXH128_hash_t ds_block_raw_digest(const ds_cache *cache, uint64_t first_token, uint32_t n_tokens, uint8_t *work)
{
    return XXH3_128bits(gather(cache, first_token, n_tokens, work), ds_block_raw_bytes(&cache->shape, n_tokens));
}

/* ---- the work on one block ---- */

/* Of what is stored, with the header's checked part as the seed. */
static XXH128_hash_t stored_digest(const block *b)
{
    return XXH3_128bits_withSeed(b->stored, (size_t)b->header.stored_bytes, XXH3_64bits(b->header_bytes, CHECKED_BYTES));
}

static void encode_task(void *context, size_t index, unsigned thread)
{
    const block_batch *batch = context;
    block *b = &batch->blocks[index];
    const block_worker *worker = &batch->workers[thread];
    size_t raw_bytes = ds_block_raw_bytes(&batch->shape, b->header.n_tokens), width = plane_width(&batch->shape);
    const uint8_t *raw = gather(batch->cache, b->header.first_token, b->header.n_tokens, worker->raw), *plain = raw;
    ds_digest_store(XXH3_128bits(raw, raw_bytes), b->header.raw_digest);
    if (width > 1) {
        split_planes(worker->planes, raw, raw_bytes, width);
        plain = worker->planes;
    }
    size_t size = ZSTD_compress2(worker->zstd, b->buffer, raw_bytes - raw_bytes / WORTHWHILE - 1, plain, raw_bytes);
    if (!ZSTD_isError(size)) {
        b->header.encoding = BLOCK_ZSTD;
        b->header.stored_bytes = size;
        b->stored = b->buffer;
    } else { /* it does not pay, or the compressor lacks memory */
        b->header.encoding = BLOCK_RAW;
        b->header.stored_bytes = raw_bytes;
        b->stored = raw;
        if (raw == worker->raw) {
            memcpy(b->buffer, raw, raw_bytes);
            b->stored = b->buffer;
        }
    }
    ds_block_header_pack(&b->header, b->header_bytes);
    ds_digest_store(stored_digest(b), b->header.digest);
    ds_block_header_pack(&b->header, b->header_bytes);
}

/* What is stored, unpacked to `raw`. */
static bool unpack(const block_batch *batch, const block *b, const block_worker *worker, uint8_t *raw, size_t raw_bytes)
{
    if (b->header.encoding == BLOCK_RAW) {
        memcpy(raw, b->stored, raw_bytes);
        return true;
    }
    size_t width = plane_width(&batch->shape);
    uint8_t *plain = width > 1 ? worker->planes : raw;
    size_t size = ZSTD_decompressDCtx(worker->zstd, plain, raw_bytes, b->stored, (size_t)b->header.stored_bytes);
    if (ZSTD_isError(size) || size != raw_bytes)
        return false;
    if (width > 1)
        join_planes(raw, plain, raw_bytes, width);
    return true;
}

static block_verdict decode(const block_batch *batch, const block *b, const block_worker *worker)
{
    if (!ds_digest_equals(stored_digest(b), b->header.digest))
        return BLOCK_DAMAGED;
    if (!b->wanted)
        return BLOCK_GOOD;
    const ds_cache *cache = batch->cache;
    uint64_t first_token = b->header.first_token;
    size_t n_tokens = b->header.n_tokens, raw_bytes = ds_block_raw_bytes(&batch->shape, n_tokens);
    bool same_type = cache->shape.type == batch->shape.type, in_place = same_type && n_tokens == DS_PAGE_TOKENS;
    uint8_t *raw = in_place ? ds_cache_rows(cache, 0, (size_t)(first_token / DS_PAGE_TOKENS)) : worker->raw;
    if (!unpack(batch, b, worker, raw, raw_bytes))
        return BLOCK_UNREADABLE;
    if (!ds_digest_equals(XXH3_128bits(raw, raw_bytes), b->header.raw_digest))
        return BLOCK_OTHER_ROWS;
    if (!same_type)
        convert(batch, first_token, n_tokens, raw, worker->tile);
    else if (!in_place)
        scatter(cache, first_token, n_tokens, raw);
    return BLOCK_GOOD;
}

static void decode_task(void *context, size_t index, unsigned thread)
{
    const block_batch *batch = context;
    batch->blocks[index].verdict = decode(batch, &batch->blocks[index], &batch->workers[thread]);
}

void ds_block_batch_encode(block_batch *batch) { ds_pool_run(batch->model->pool, encode_task, batch, batch->n); }

void ds_block_batch_decode(block_batch *batch) { ds_pool_run(batch->model->pool, decode_task, batch, batch->n); }

/* ---- memory ---- */

static bool make_zstd(block_worker *worker, block_batch_use use, int level)
{
    if (use == BATCH_READS) {
        worker->zstd = ZSTD_createDCtx();
        return worker->zstd != NULL;
    }
    worker->zstd = ZSTD_createCCtx();
    return worker->zstd != NULL && !ZSTD_isError(ZSTD_CCtx_setParameter(worker->zstd, ZSTD_c_compressionLevel, level));
}

dsv2_status ds_block_batch_init(block_batch *batch, block_batch_use use, const dsv2_model *model, const ds_cache_shape *shape,
                                const ds_cache *cache, int level)
{
    unsigned n_threads = ds_pool_threads(model->pool);
    *batch = (block_batch){
        .model = model,
        .shape = *shape,
        .cache = cache,
        .level = level,
        .capacity = 2 * n_threads < MAX_BATCH ? 2 * n_threads : MAX_BATCH,
        .n_workers = n_threads,
    };
    bool converts = shape->type != cache->shape.type;
    size_t page_bytes = shape->page_bytes, per_worker = plane_width(shape) > 1 ? 2 * page_bytes : page_bytes;
    size_t tile_floats = converts ? (size_t)DS_PAGE_TOKENS * ((size_t)shape->kv_lora_rank + shape->qk_rope_head_dim) : 0;
    size_t bytes = batch->capacity * page_bytes + n_threads * (per_worker + tile_floats * sizeof(float));
    batch->blocks = ds_new(batch->capacity, sizeof *batch->blocks);
    batch->workers = ds_new(n_threads, sizeof *batch->workers);
    batch->memory = ds_new_aligned(bytes, 1);
    if (batch->blocks == NULL || batch->workers == NULL || batch->memory == NULL)
        return ds_fail_memory("blocks of a snapshot", bytes);
    uint8_t *at = batch->memory;
    for (unsigned i = 0; i < n_threads; i++, at += tile_floats * sizeof(float))
        batch->workers[i].tile = converts ? (float *)(void *)at : NULL;
    for (unsigned i = 0; i < n_threads; i++, at += per_worker) {
        batch->workers[i].raw = at;
        batch->workers[i].planes = per_worker > page_bytes ? at + page_bytes : NULL;
        if (!make_zstd(&batch->workers[i], use, level))
            return ds_fail_memory("compression", 0);
    }
    for (size_t i = 0; i < batch->capacity; i++, at += page_bytes)
        batch->blocks[i].buffer = at;
    return DSV2_OK;
}

void ds_block_batch_free(block_batch *batch, block_batch_use use)
{
    for (unsigned i = 0; batch->workers != NULL && i < batch->n_workers; i++) {
        if (use == BATCH_READS)
            ZSTD_freeDCtx(batch->workers[i].zstd);
        else
            ZSTD_freeCCtx(batch->workers[i].zstd);
    }
    ds_free(batch->memory);
    ds_free(batch->workers);
    ds_free(batch->blocks);
    *batch = (block_batch){0};
}

/* Frames: rows of the cache, compressed and checked, by all threads of the pool. */
#include "snapshot/format.h"

#include <assert.h>
#include <string.h>
#include <zstd.h>

/* The most frames at work at a time. A batch has two for each thread, so that no thread waits long for the slowest
 * frame; but not more than this, since each takes a page's bytes of memory. */
enum { MAX_BATCH = 16 };

/* Compressing has to save one part in so many of a frame: else the rows are stored as they are, which is read back
 * faster. */
enum { WORTHWHILE = 32 };

size_t ds_frame_raw_bytes(const ds_cache_shape *shape, size_t n_tokens)
{
    return n_tokens * shape->row_bytes * shape->n_layers;
}

/* ---- planes: all first bytes of the numbers, then all second bytes, ...: exponents compress, mantissas do not ---- */

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

/* The rows one after another, layer by layer. Rows that fill their page are there as they lie; others are copied to
 * `raw`. */
static const uint8_t *gather(const ds_cache *cache, uint64_t first_token, size_t n_tokens, uint8_t *raw)
{
    const ds_cache_shape *shape = &cache->shape;
    size_t page = (size_t)(first_token / DS_PAGE_TOKENS);
    size_t skipped = (size_t)(first_token % DS_PAGE_TOKENS) * shape->row_bytes;
    if (n_tokens == DS_PAGE_TOKENS)
        return ds_cache_rows(cache, 0, page);
    size_t bytes = n_tokens * shape->row_bytes;
    for (uint32_t layer = 0; layer < shape->n_layers; layer++)
        memcpy(raw + layer * bytes, ds_cache_rows(cache, layer, page) + skipped, bytes);
    return raw;
}

/* Puts rows that lie one after another, layer by layer, into the cache. */
static void scatter(const ds_cache *cache, uint64_t first_token, size_t n_tokens, const uint8_t *raw)
{
    const ds_cache_shape *shape = &cache->shape;
    size_t page = (size_t)(first_token / DS_PAGE_TOKENS);
    size_t skipped = (size_t)(first_token % DS_PAGE_TOKENS) * shape->row_bytes;
    size_t bytes = n_tokens * shape->row_bytes;
    for (uint32_t layer = 0; layer < shape->n_layers; layer++)
        memcpy(ds_cache_rows(cache, layer, page) + skipped, raw + layer * bytes, bytes);
}

/* Puts rows of another cache type into the cache. False if the cache's type cannot hold them. */
static bool convert(const frame_batch *batch, uint64_t first_token, size_t n_tokens, const uint8_t *raw, float *tile)
{
    const ds_cache *cache = batch->cache;
    const ds_cache_shape *from = &batch->shape, *to = &cache->shape;
    size_t width = to->width, page = (size_t)(first_token / DS_PAGE_TOKENS);
    for (uint32_t layer = 0; layer < to->n_layers; layer++) {
        uint8_t *stored = ds_cache_rows(cache, layer, page) + first_token % DS_PAGE_TOKENS * to->row_bytes;
        ds_cache_decode_rows(from, batch->kernels, raw + layer * n_tokens * from->row_bytes, n_tokens, tile);
        for (size_t t = 0; t < n_tokens; t++) {
            float largest;
            ds_cache_rotate_row(from, batch->kernels, tile + t * width);
            if (ds_cache_unfit_part(to, tile + t * width, &largest) < to->n_parts)
                return false;
            ds_cache_encode_row(to, batch->kernels, tile + t * width, stored + t * to->row_bytes);
        }
    }
    return true;
}

/* ---- the work on one frame ---- */

/* Working memory that no other thread uses while `thread` works on frame `index`. */
static const frame_worker *worker_of(const frame_batch *batch, size_t index, unsigned thread)
{
    size_t number = ds_pool_threads(batch->pool) > batch->n_workers ? index : thread;
    assert(number < batch->n_workers);
    return &batch->workers[number];
}

/* Of what is stored, with the header's checked part as the seed. */
static XXH128_hash_t stored_digest(const frame *f)
{
    uint64_t seed = XXH3_64bits(f->header_bytes, CHECKED_BYTES);
    return XXH3_128bits_withSeed(f->stored, (size_t)f->header.stored_bytes, seed);
}

static void encode_task(void *context, size_t index, unsigned thread)
{
    const frame_batch *batch = context;
    frame *f = &batch->frames[index];
    const frame_worker *worker = worker_of(batch, index, thread);
    size_t raw_bytes = ds_frame_raw_bytes(&batch->shape, f->header.n_tokens), width = batch->shape.number_bytes;
    const uint8_t *raw = gather(batch->cache, f->header.first_token, f->header.n_tokens, worker->raw), *plain = raw;
    ds_digest_store(XXH3_128bits(raw, raw_bytes), f->header.raw_digest);
    if (width > 1) {
        split_planes(worker->planes, raw, raw_bytes, width);
        plain = worker->planes;
    }
    size_t size = ZSTD_compress2(worker->zstd, f->buffer, raw_bytes - raw_bytes / WORTHWHILE - 1, plain, raw_bytes);
    if (!ZSTD_isError(size)) {
        f->header.encoding = FRAME_ZSTD;
        f->header.stored_bytes = size;
        f->stored = f->buffer;
    } else { /* compressing does not pay, or lacks memory */
        f->header.encoding = FRAME_RAW;
        f->header.stored_bytes = raw_bytes;
        f->stored = raw;
        if (raw == worker->raw) {
            memcpy(f->buffer, raw, raw_bytes);
            f->stored = f->buffer;
        }
    }
    ds_frame_header_write(&f->header, f->header_bytes);
    ds_digest_store(stored_digest(f), f->header.digest);
    ds_frame_header_write(&f->header, f->header_bytes);
}

/* Makes `raw`, the rows, of what is stored. */
static bool decompress(const frame_batch *batch, const frame *f, const frame_worker *worker, uint8_t *raw,
                       size_t raw_bytes)
{
    if (f->header.encoding == FRAME_RAW) {
        memcpy(raw, f->stored, raw_bytes);
        return true;
    }
    size_t width = batch->shape.number_bytes;
    uint8_t *plain = width > 1 ? worker->planes : raw;
    size_t size = ZSTD_decompressDCtx(worker->zstd, plain, raw_bytes, f->stored, (size_t)f->header.stored_bytes);
    if (ZSTD_isError(size) || size != raw_bytes)
        return false;
    if (width > 1)
        join_planes(raw, plain, raw_bytes, width);
    return true;
}

static frame_verdict decode(const frame_batch *batch, const frame *f, const frame_worker *worker)
{
    if (!ds_digest_equals(stored_digest(f), f->header.digest))
        return FRAME_DAMAGED;
    if (f->header.unknown)
        return FRAME_UNKNOWN;
    const ds_cache *cache = batch->cache;
    uint64_t first_token = f->header.first_token;
    size_t n_tokens = f->header.n_tokens, raw_bytes = ds_frame_raw_bytes(&batch->shape, n_tokens);
    if (batch->use == BATCH_COMPARES) {
        const uint8_t *own = gather(cache, first_token, n_tokens, worker->raw);
        return ds_digest_equals(XXH3_128bits(own, raw_bytes), f->header.raw_digest) ? FRAME_GOOD : FRAME_OTHER_THAN_OWN;
    }
    if (!f->wanted)
        return FRAME_GOOD;
    bool same_type = cache->shape.type == batch->shape.type, in_place = same_type && n_tokens == DS_PAGE_TOKENS;
    uint8_t *raw = in_place ? ds_cache_rows(cache, 0, (size_t)(first_token / DS_PAGE_TOKENS)) : worker->raw;
    if (!decompress(batch, f, worker, raw, raw_bytes))
        return FRAME_UNREADABLE;
    if (!ds_digest_equals(XXH3_128bits(raw, raw_bytes), f->header.raw_digest))
        return FRAME_OTHER_ROWS;
    if (!ds_cache_rows_are_finite(&batch->shape, raw, n_tokens * batch->shape.n_layers))
        return FRAME_NOT_FINITE;
    if (!same_type)
        return convert(batch, first_token, n_tokens, raw, worker->tile) ? FRAME_GOOD : FRAME_TOO_LARGE;
    if (!in_place)
        scatter(cache, first_token, n_tokens, raw);
    return FRAME_GOOD;
}

static void decode_task(void *context, size_t index, unsigned thread)
{
    const frame_batch *batch = context;
    batch->frames[index].verdict = decode(batch, &batch->frames[index], worker_of(batch, index, thread));
}

void ds_frame_batch_encode(frame_batch *batch) { ds_pool_run(batch->pool, encode_task, batch, batch->n); }

static dsv2_status check_verdict(const frame *f, const char *name)
{
    static const struct {
        dsv2_status status;
        const char *what;
    } verdicts[] = {
        [FRAME_GOOD] = {DSV2_OK, ""},
        [FRAME_DAMAGED] = {DSV2_ERROR_FORMAT, "is damaged"},
        [FRAME_UNKNOWN] = {DSV2_ERROR_UNSUPPORTED, "was written by a later version of the library"},
        [FRAME_UNREADABLE] = {DSV2_ERROR_FORMAT, "cannot be decompressed"},
        [FRAME_OTHER_ROWS] = {DSV2_ERROR_FORMAT, "holds other rows than its header says"},
        [FRAME_OTHER_THAN_OWN] = {DSV2_ERROR_MISMATCH, "holds other rows than the session"},
        [FRAME_NOT_FINITE] = {DSV2_ERROR_FORMAT, "holds numbers that are not finite"},
        [FRAME_TOO_LARGE] = {DSV2_ERROR_UNSUPPORTED, "holds larger numbers than the session's cache type"},
    };
    frame_verdict verdict = f->verdict;
    if (verdict == FRAME_GOOD)
        return DSV2_OK;
    return ds_fail(verdicts[verdict].status, "%s: the frame of tokens %llu to %llu (encoding %u) %s", name,
                   (unsigned long long)f->header.first_token,
                   (unsigned long long)(f->header.first_token + f->header.n_tokens - 1), f->header.encoding,
                   verdicts[verdict].what);
}

dsv2_status ds_frame_batch_decode(frame_batch *batch, const char *name)
{
    dsv2_status status = DSV2_OK;
    if (batch->n > 0)
        ds_pool_run(batch->pool, decode_task, batch, batch->n);
    for (size_t i = 0; i < batch->n && status == DSV2_OK; i++)
        status = check_verdict(&batch->frames[i], name);
    batch->n = 0;
    return status;
}

/* ---- memory ---- */

static bool make_zstd(frame_worker *worker, frame_batch_use use, int level)
{
    if (use == BATCH_COMPARES)
        return true;
    if (use == BATCH_READS) {
        worker->zstd = ZSTD_createDCtx();
        return worker->zstd != NULL;
    }
    worker->zstd = ZSTD_createCCtx();
    return worker->zstd != NULL &&
           !ZSTD_isError(ZSTD_CCtx_setParameter(worker->zstd, ZSTD_c_compressionLevel, level));
}

dsv2_status ds_frame_batch_init(frame_batch *batch, frame_batch_use use, ds_pool *pool, const ds_kernels *kernels,
                                const ds_cache_shape *shape, const ds_cache *cache, int level)
{
    unsigned n_threads = ds_pool_threads(pool);
    *batch = (frame_batch){
        .use = use,
        .pool = pool,
        .kernels = kernels,
        .shape = *shape,
        .cache = cache,
        .capacity = 2 * n_threads < MAX_BATCH ? 2 * n_threads : MAX_BATCH,
    };
    batch->n_workers = n_threads < batch->capacity ? n_threads : batch->capacity;
    bool converts = shape->type != cache->shape.type;
    size_t page_bytes = shape->page_bytes, per_worker = shape->number_bytes > 1 ? 2 * page_bytes : page_bytes;
    size_t tile_floats = converts ? (size_t)DS_PAGE_TOKENS * shape->width : 0;
    size_t bytes = batch->capacity * page_bytes + batch->n_workers * (per_worker + tile_floats * sizeof(float));
    batch->frames = ds_new(batch->capacity, sizeof *batch->frames);
    batch->workers = ds_new(batch->n_workers, sizeof *batch->workers);
    batch->memory = ds_allocate(cache->pool->allocator, bytes, 1);
    if (batch->frames == NULL || batch->workers == NULL || batch->memory == NULL)
        return ds_fail_memory("frames of a snapshot", bytes);
    uint8_t *at = batch->memory;
    for (size_t i = 0; i < batch->n_workers; i++, at += tile_floats * sizeof(float))
        batch->workers[i].tile = converts ? (float *)(void *)at : NULL;
    for (size_t i = 0; i < batch->n_workers; i++, at += per_worker) {
        batch->workers[i].raw = at;
        batch->workers[i].planes = per_worker > page_bytes ? at + page_bytes : NULL;
        if (!make_zstd(&batch->workers[i], use, level))
            return ds_fail_memory("compression", 0);
    }
    for (size_t i = 0; i < batch->capacity; i++, at += page_bytes)
        batch->frames[i].buffer = at;
    return DSV2_OK;
}

void ds_frame_batch_free(frame_batch *batch)
{
    for (size_t i = 0; batch->workers != NULL && i < batch->n_workers; i++) {
        if (batch->use == BATCH_READS)
            ZSTD_freeDCtx(batch->workers[i].zstd);
        else
            ZSTD_freeCCtx(batch->workers[i].zstd);
    }
    if (batch->memory != NULL)
        ds_release(batch->cache->pool->allocator, batch->memory);
    ds_free(batch->workers);
    ds_free(batch->frames);
    *batch = (frame_batch){0};
}

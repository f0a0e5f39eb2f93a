#include "snapshot_file.h"

#include "base/base.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include <zstd.h>

enum { FILE_HEADER = 128, HEADER = 64, CHECKED = 48, DIGEST = 16, SAMPLER = 72 };

static void store(uint8_t *at, XXH128_hash_t digest)
{
    ds_write_u64(at, digest.low64);
    ds_write_u64(at + 8, digest.high64);
}

static void seal(uint8_t *header, size_t size) { store(header + size - DIGEST, XXH3_128bits(header, size - DIGEST)); }

/* Frames of a save from `pos` on; returns where they end, or `size`. */
static size_t seal_frames(uint8_t *data, size_t size, size_t pos, uint64_t at, uint64_t end)
{
    while (at < end) {
        if (size - pos < HEADER)
            return size;
        uint8_t *header = data + pos;
        uint64_t stored = ds_read_u64(header + 24);
        pos += HEADER;
        if (stored > size - pos || ds_read_u32(header + 16) == 0)
            return size;
        if (ds_read_u32(header + 4) == 0)
            store(header + 32, XXH3_128bits(data + pos, (size_t)stored));
        store(header + CHECKED, XXH3_128bits_withSeed(data + pos, (size_t)stored, XXH3_64bits(header, CHECKED)));
        pos += (size_t)stored;
        at += ds_read_u32(header + 16);
    }
    return pos;
}

void snapshot_file_seal(uint8_t *data, size_t size, size_t vocab_size)
{
    if (size < FILE_HEADER)
        return;
    seal(data, FILE_HEADER);
    for (size_t pos = FILE_HEADER; size - pos >= HEADER;) {
        uint8_t *header = data + pos;
        uint64_t first = ds_read_u64(header + 16), end = ds_read_u64(header + 24), biases = ds_read_u64(header + 32);
        seal(header, HEADER);
        pos += HEADER;
        if (biases > size || end < first || end - first > size)
            return;
        uint64_t state = SAMPLER + 8 * biases + (ds_read_u32(header + 12) & 1 ? 4 * vocab_size : 0) + 4 * (end - first);
        if (state + DIGEST > size - pos)
            return;
        store(data + pos + state, XXH3_128bits(data + pos, (size_t)state));
        pos = seal_frames(data, size, pos + (size_t)state + DIGEST, first, end);
        pos += (HEADER - pos % HEADER) % HEADER;
        if (pos > size)
            return;
    }
}

enum { MAX_ROWS = 1 << 20, CHANGED_ROOM = 1 << 16 };

/* The digest of the rows whose planes these are. */
static XXH128_hash_t rows_digest(const uint8_t *planes, size_t n, size_t width)
{
    uint8_t *rows = malloc(n);
    if (rows == NULL)
        abort();
    for (size_t i = 0; i < n; i++)
        rows[i] = planes[i % width * (n / width) + i / width];
    XXH128_hash_t digest = XXH3_128bits(rows, n);
    free(rows);
    return digest;
}

/* One frame from `in` to `out`; *stored receives the bytes in the file that it had. Returns the bytes that it has. */
static size_t change_frame(const uint8_t *in, uint8_t *out, size_t width,
                           void (*change)(void *user, uint8_t *planes, size_t n), void *user, size_t *stored)
{
    uint8_t *planes = malloc(MAX_ROWS);
    if (planes == NULL)
        abort();
    *stored = (size_t)ds_read_u64(in + 24);
    memcpy(out, in, HEADER);
    size_t n = *stored, size;
    if (ds_read_u32(in + 4) == 0) {
        memcpy(planes, in + HEADER, n);
        change(user, planes, n);
        memcpy(out + HEADER, planes, size = n);
    } else {
        n = ZSTD_decompress(planes, MAX_ROWS, in + HEADER, *stored);
        if (ZSTD_isError(n))
            abort();
        change(user, planes, n);
        size = ZSTD_compress(out + HEADER, ZSTD_compressBound(n), planes, n, 1);
        store(out + 32, rows_digest(planes, n, width));
    }
    ds_write_u64(out + 24, size);
    free(planes);
    return HEADER + size;
}

uint8_t *snapshot_file_change(const uint8_t *data, size_t size, size_t vocab_size,
                              void (*change)(void *user, uint8_t *planes, size_t n), void *user, size_t *new_size)
{
    uint8_t *out = calloc(2 * size + CHANGED_ROOM, 1);
    size_t at = FILE_HEADER, to = FILE_HEADER;
    size_t width = ds_read_u32(data + 12) == 1 ? 4 : ds_read_u32(data + 12) == 2 ? 2 : 1;
    if (out == NULL)
        abort();
    memcpy(out, data, FILE_HEADER);
    while (size - at >= HEADER) {
        uint64_t first = ds_read_u64(data + at + 16), end = ds_read_u64(data + at + 24);
        uint64_t state = SAMPLER + 8 * ds_read_u64(data + at + 32) +
                         (ds_read_u32(data + at + 12) & 1 ? 4 * vocab_size : 0) + 4 * (end - first);
        size_t head = HEADER + (size_t)state + DIGEST, stored;
        memcpy(out + to, data + at, head);
        at += head;
        to += head;
        while (first < end) {
            first += ds_read_u32(data + at + 16);
            to += change_frame(data + at, out + to, width, change, user, &stored);
            at += HEADER + stored;
        }
        at += (HEADER - at % HEADER) % HEADER;
        to += (HEADER - to % HEADER) % HEADER;
    }
    snapshot_file_seal(out, to, vocab_size);
    *new_size = to;
    return out;
}

#include "snapshot_file.h"

#include "base/base.h"

#include <xxhash.h>

enum { FILE_HEADER = 128, HEADER = 64, CHECKED = 48, DIGEST = 16, SAMPLER = 72 };

static void store(uint8_t *at, XXH128_hash_t digest)
{
    ds_store_u64(at, digest.low64);
    ds_store_u64(at + 8, digest.high64);
}

static void seal(uint8_t *header, size_t size) { store(header + size - DIGEST, XXH3_128bits(header, size - DIGEST)); }

/* Frames of a save from `pos` on; returns where they end, or `size`. */
static size_t seal_frames(uint8_t *data, size_t size, size_t pos, uint64_t at, uint64_t end)
{
    while (at < end) {
        if (size - pos < HEADER)
            return size;
        uint8_t *header = data + pos;
        uint64_t stored = ds_load_u64(header + 24);
        pos += HEADER;
        if (stored > size - pos || ds_load_u32(header + 16) == 0)
            return size;
        if (ds_load_u32(header + 4) == 0)
            store(header + 32, XXH3_128bits(data + pos, (size_t)stored));
        store(header + CHECKED, XXH3_128bits_withSeed(data + pos, (size_t)stored, XXH3_64bits(header, CHECKED)));
        pos += (size_t)stored;
        at += ds_load_u32(header + 16);
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
        uint64_t first = ds_load_u64(header + 16), end = ds_load_u64(header + 24), biases = ds_load_u64(header + 32);
        seal(header, HEADER);
        pos += HEADER;
        if (biases > size || end < first || end - first > size)
            return;
        uint64_t state = SAMPLER + 8 * biases + (ds_load_u32(header + 12) & 1 ? 4 * vocab_size : 0) + 4 * (end - first);
        if (state + DIGEST > size - pos)
            return;
        store(data + pos + state, XXH3_128bits(data + pos, (size_t)state));
        pos = seal_frames(data, size, pos + (size_t)state + DIGEST, first, end);
        pos += (HEADER - pos % HEADER) % HEADER;
        if (pos > size)
            return;
    }
}

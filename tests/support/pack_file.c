#include "pack_file.h"

#include "base/base.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include <zstd.h>

enum { HEADER = 128 };

/* Appends a compressed block to the file and tells the header where it is. */
static size_t add_block(uint8_t *file, size_t at, uint8_t *header, const uint8_t *data, size_t size)
{
    size_t stored = ZSTD_compress(file + at, ZSTD_compressBound(size), data, size, 1);
    ds_write_u64(header, at);
    ds_write_u64(header + 8, stored);
    ds_write_u64(header + 16, size);
    ds_write_u64(header + 24, XXH3_64bits(file + at, stored));
    return at + stored;
}

void pack_file_seal(uint8_t *file) { ds_write_u64(file + HEADER - 8, XXH3_64bits(file, HEADER - 8)); }

void pack_file_seal_entry(uint8_t *entry, const uint8_t *data)
{
    ds_write_u64(entry + 20, XXH3_64bits(data, (size_t)ds_read_u64(entry + 12)));
}

uint8_t *pack_file_around(const uint8_t *weights, size_t weights_size, const uint8_t *index, size_t index_size,
                          const uint8_t *texts, size_t texts_size, size_t *file_size)
{
    size_t at = PACK_FILE_BEGIN + weights_size;
    uint8_t *file = calloc(1, at + ZSTD_compressBound(index_size) + ZSTD_compressBound(texts_size));
    if (file == NULL)
        abort();
    memcpy(file, "DSV2PACK", 8);
    file[8] = 1;
    if (weights_size > 0)
        memcpy(file + PACK_FILE_BEGIN, weights, weights_size);
    at = add_block(file, at, file + 24, index, index_size);
    at = add_block(file, at, file + 56, texts, texts_size);
    ds_write_u64(file + 16, at);
    pack_file_seal(file);
    *file_size = at;
    return file;
}

uint8_t *pack_file_make(const uint8_t *index, size_t index_size, const uint8_t *texts, size_t texts_size,
                        size_t *file_size)
{
    static const uint8_t zeros[PACK_FILE_WEIGHTS];
    return pack_file_around(zeros, sizeof zeros, index, index_size, texts, texts_size, file_size);
}

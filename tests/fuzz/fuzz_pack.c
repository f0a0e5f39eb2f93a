/* A .dsv2 pack. Checksums would keep every change out: so the input is what they protect. Its first byte chooses: even, the rest is a
 * whole file as it is; odd, the rest is the index (as many 8-byte units as the second byte says) and the texts, around which a file
 * with right checksums is made. What opens can be read from end to end, and its tokenizer opens or is refused. */
#include "formats/pack.h"
#include "memory_file.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>
#include <zstd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { HEADER = 128, BEGIN = 4096, WEIGHTS = 512 };

static volatile unsigned sum;

static void store(uint8_t *out, uint64_t value)
{
    for (int i = 0; i < 8; i++)
        out[i] = (uint8_t)(value >> 8 * i);
}

/* Appends a compressed block to the file and tells the header where it is. */
static size_t add_block(uint8_t *file, size_t at, uint8_t *header, const uint8_t *data, size_t size)
{
    size_t stored = ZSTD_compress(file + at, ZSTD_compressBound(size), data, size, 1);
    store(header, at);
    store(header + 8, stored);
    store(header + 16, size);
    store(header + 24, XXH3_64bits(file + at, stored));
    return at + stored;
}

static uint8_t *make_file(const uint8_t *data, size_t size, size_t index_size, size_t *file_size)
{
    uint8_t *file = calloc(1, BEGIN + WEIGHTS + 2 * ZSTD_compressBound(size) + 64);
    memcpy(file, "DSV2PACK", 8);
    file[8] = 1;
    size_t at = add_block(file, BEGIN + WEIGHTS, file + 24, data, index_size);
    at = add_block(file, at, file + 56, data + index_size, size - index_size);
    store(file + 16, at);
    store(file + HEADER - 8, XXH3_64bits(file, HEADER - 8));
    *file_size = at;
    return file;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2)
        return 0;
    uint8_t *made = NULL;
    size_t file_size = size - 1;
    const uint8_t *file = data + 1;
    if (data[0] % 2 == 1) {
        size_t rest = size - 2, index_size = (size_t)data[1] * 8;
        file = made = make_file(data + 2, rest, index_size < rest ? index_size : rest, &file_size);
    }
    char path[64];
    int fd = memory_file(file, file_size, path);
    dsv2_container *container;
    if (dsv2_pack_open(path, &container) == DSV2_OK) {
        for (size_t i = 0; i < dsv2_container_count(container); i++) {
            const dsv2_tensor *tensor = dsv2_container_tensor(container, i);
            for (uint64_t b = 0; b < tensor->n_bytes; b++)
                sum += ((const uint8_t *)tensor->data)[b];
        }
        dsv2_tokenizer *tokenizer = NULL;
        if (dsv2_pack_tokenizer(container, &tokenizer) == DSV2_OK)
            dsv2_tokenizer_destroy(tokenizer);
        (void)dsv2_pack_verify(container, NULL, NULL);
        dsv2_container_close(container);
    }
    close(fd);
    free(made);
    return 0;
}

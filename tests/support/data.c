#include "support/data.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

char *data_read(const char *name, size_t *size)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", DS_TEST_DATA, name);
    FILE *file = fopen(path, "rb");
    ck_assert_msg(file != NULL, "%s cannot be read", path);
    fseek(file, 0, SEEK_END);
    size_t compressed_size = (size_t)ftell(file);
    rewind(file);
    char *compressed = malloc(compressed_size + 1);
    ck_assert_uint_eq(fread(compressed, 1, compressed_size, file), compressed_size);
    fclose(file);
    compressed[compressed_size] = '\0';
    *size = compressed_size;
    if (strlen(name) < 4 || strcmp(name + strlen(name) - 4, ".zst") != 0)
        return compressed;
    unsigned long long decompressed_size = ZSTD_getFrameContentSize(compressed, compressed_size);
    ck_assert_msg(decompressed_size < 1 << 30, "%s does not tell its size", path);
    char *decompressed = malloc((size_t)decompressed_size + 1);
    *size = ZSTD_decompress(decompressed, (size_t)decompressed_size, compressed, compressed_size);
    ck_assert_msg(!ZSTD_isError(*size), "%s: %s", path, ZSTD_getErrorName(*size));
    decompressed[*size] = '\0';
    free(compressed);
    return decompressed;
}

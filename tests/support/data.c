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
    size_t packed_size = (size_t)ftell(file);
    rewind(file);
    char *packed = malloc(packed_size + 1);
    ck_assert_uint_eq(fread(packed, 1, packed_size, file), packed_size);
    fclose(file);
    packed[packed_size] = '\0';
    *size = packed_size;
    if (strlen(name) < 4 || strcmp(name + strlen(name) - 4, ".zst") != 0)
        return packed;
    unsigned long long unpacked_size = ZSTD_getFrameContentSize(packed, packed_size);
    ck_assert_msg(unpacked_size < 1 << 30, "%s does not tell its size", path);
    char *unpacked = malloc((size_t)unpacked_size + 1);
    *size = ZSTD_decompress(unpacked, (size_t)unpacked_size, packed, packed_size);
    ck_assert_msg(!ZSTD_isError(*size), "%s: %s", path, ZSTD_getErrorName(*size));
    unpacked[*size] = '\0';
    free(packed);
    return unpacked;
}

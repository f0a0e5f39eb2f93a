#include "kernels/kernels.h"

/* What a type costs in a file. */
static const struct {
    const char *name;
    uint32_t block; /* elements that only come together */
    uint32_t bytes; /* of one block */
} types[DSV2_TYPE_COUNT] = {
    [DSV2_TYPE_F32] = {"F32", 1, 4},
    [DSV2_TYPE_F16] = {"F16", 1, 2},
    [DSV2_TYPE_BF16] = {"BF16", 1, 2},
    [DSV2_TYPE_F8_E4M3] = {"F8_E4M3", 1, 1},
};

const char *dsv2_type_name(dsv2_type type) { return (unsigned)type < DSV2_TYPE_COUNT ? types[type].name : "unknown"; }

size_t dsv2_type_row_bytes(dsv2_type type, uint64_t cols)
{
    if ((unsigned)type >= DSV2_TYPE_COUNT || cols % types[type].block != 0)
        return 0;
    uint64_t bytes;
    if (!dsv2_mul(cols / types[type].block, types[type].bytes, &bytes) || bytes > SIZE_MAX)
        return 0;
    return (size_t)bytes;
}

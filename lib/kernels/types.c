#include "kernels/interleaved.h"

/* What a type costs in a file. */
static const struct {
    const char *name;
    uint32_t block; /* elements that only come together */
    uint32_t bytes; /* of one block */
} types[DS_TYPE_COUNT] = {
    [DS_TYPE_F32] = {"F32", 1, 4},
    [DS_TYPE_F16] = {"F16", 1, 2},
    [DS_TYPE_BF16] = {"BF16", 1, 2},
    [DS_TYPE_F8_E4M3] = {"F8_E4M3", 1, 1},
    [DS_TYPE_Q8_0] = {"Q8_0", 32, 2 + 32},
    [DS_TYPE_Q4_0] = {"Q4_0", 32, 2 + 16},
    [DS_TYPE_Q4_1] = {"Q4_1", 32, 2 + 2 + 16},
    [DS_TYPE_Q5_0] = {"Q5_0", 32, 2 + 4 + 16},
    [DS_TYPE_Q5_1] = {"Q5_1", 32, 2 + 2 + 4 + 16},
    [DS_TYPE_Q2_K] = {"Q2_K", 256, 16 + 64 + 2 + 2},
    [DS_TYPE_Q3_K] = {"Q3_K", 256, 32 + 64 + 12 + 2},
    [DS_TYPE_Q4_K] = {"Q4_K", 256, 2 + 2 + 12 + 128},
    [DS_TYPE_Q5_K] = {"Q5_K", 256, 2 + 2 + 12 + 32 + 128},
    [DS_TYPE_Q6_K] = {"Q6_K", 256, 128 + 64 + 16 + 2},
    [DS_TYPE_IQ4_NL] = {"IQ4_NL", 32, 2 + 16},
    [DS_TYPE_IQ4_XS] = {"IQ4_XS", 256, 2 + 2 + 4 + 128},
    [DS_TYPE_P4] = {"P4", 1, 0}, /* packed: bytes by ds_panel_bytes */
    [DS_TYPE_P5] = {"P5", 1, 0},
    [DS_TYPE_P6] = {"P6", 1, 0},
    [DS_TYPE_P8] = {"P8", 1, 0},
    [DS_TYPE_P4S] = {"P4S", 1, 0},
    [DS_TYPE_P5S] = {"P5S", 1, 0},
    [DS_TYPE_P4M] = {"P4M", 1, 0},
    [DS_TYPE_P5M] = {"P5M", 1, 0},
};

const char *ds_type_name(ds_type type) { return (unsigned)type < DS_TYPE_COUNT ? types[type].name : "unknown"; }

bool ds_type_is_plain(ds_type type) { return type == DS_TYPE_F32 || type == DS_TYPE_F16 || type == DS_TYPE_BF16; }

bool ds_type_is_interleaved(ds_type type) { return (unsigned)type < DS_TYPE_COUNT && types[type].bytes == 0; }

size_t ds_type_row_bytes(ds_type type, uint64_t cols)
{
    if ((unsigned)type >= DS_TYPE_COUNT || cols % types[type].block != 0)
        return 0;
    if (ds_type_is_interleaved(type))
        return cols <= UINT32_MAX ? ds_panel_bytes(type, (size_t)cols) / DS_PANEL_ROWS : 0;
    uint64_t bytes;
    if (!ds_mul(cols / types[type].block, types[type].bytes, &bytes) || bytes > SIZE_MAX)
        return 0;
    return (size_t)bytes;
}

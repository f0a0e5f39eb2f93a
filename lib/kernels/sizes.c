#include "kernels/sizes.h"

#include "kernels/interleaved.h"

size_t ds_type_row_bytes(ds_type type, uint64_t cols)
{
    if ((unsigned)type >= DS_TYPE_COUNT || cols % ds_type_block(type) != 0)
        return 0;
    if (ds_type_is_interleaved(type))
        return cols <= UINT32_MAX ? ds_panel_bytes(type, (size_t)cols) / DS_PANEL_ROWS : 0;
    uint64_t bytes;
    if (!ds_mul(cols / ds_type_block(type), ds_type_block_bytes(type), &bytes) || bytes > SIZE_MAX)
        return 0;
    return (size_t)bytes;
}

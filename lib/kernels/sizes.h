/* Bytes of rows of every element type. */
#ifndef DS_LIB_KERNELS_SIZES_H
#define DS_LIB_KERNELS_SIZES_H

#include "kernels/types.h"

/* Bytes of `cols` consecutive elements; 0 if cols is no multiple of the type's block. Interleaved types take any cols:
 * the result is a row's share of its panel. */
size_t ds_type_row_bytes(ds_type type, uint64_t cols);

#endif

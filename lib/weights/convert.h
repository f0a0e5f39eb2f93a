/* Writing a matrix as another element type, some rows at a time. */
#ifndef DS_LIB_WEIGHTS_CONVERT_H
#define DS_LIB_WEIGHTS_CONVERT_H

#include "kernels/kernels.h"

typedef struct ds_conversion {
    ds_matrix from;
    ds_type type;
    uint8_t *out; /* the whole matrix as `type` */
} ds_conversion;

/* Whether the conversion only puts a block type's numbers in another order: fast, and nothing is rounded. */
bool ds_conversion_is_exact(const ds_conversion *conversion);

/* Bytes of scratch that converting rows needs. */
size_t ds_conversion_scratch(const ds_conversion *conversion);

/* Writes rows `first` to `end` - 1: at most DS_PANEL_ROWS, `first` a multiple of that. */
void ds_convert_rows(const ds_kernels *kernels, const ds_conversion *conversion, uint32_t first, uint32_t end,
                     void *scratch);

/* Writes element i of an array of F32, F16 or BF16. */
void ds_write_element(ds_type type, void *data, size_t i, float value);

#endif

/* The element type that a weight is held in. */
#ifndef DS_LIB_WEIGHTS_HELD_TYPE_H
#define DS_LIB_WEIGHTS_HELD_TYPE_H

#include "weights/roles.h"

/* found: the type that the weight has in its file. */
ds_type ds_held_type(dsv2_weight_type weight_type, ds_role role, ds_type found);

/* Bytes of a matrix in memory or in a pack. */
size_t ds_matrix_bytes(ds_type type, uint32_t rows, uint32_t cols);

#endif

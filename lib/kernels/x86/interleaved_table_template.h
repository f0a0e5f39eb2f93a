/* The kernels of interleaved_template.h, for a set's table: included inside the braces. */
#define INTERLEAVED(TYPE, name, ...) .matmul_interleaved[DS_TYPE_##TYPE] = matmul_##name,
#include "kernels/types.def"
    .prepare_row = prepare_row,

/* In which element type a weight is held, and bringing it there: on opening, when an expert is first chosen, and into a pack. */
#ifndef DS_LIB_WEIGHTS_CONVERT_H
#define DS_LIB_WEIGHTS_CONVERT_H

#include "formats/formats.h"
#include "kernels/kernels.h"

/* The type in which to hold the weight of this name that is found as `type`. */
ds_type ds_held_type(dsv2_weight_type weight_type, const char *name, ds_type type);

/* Bytes of a matrix. */
size_t ds_matrix_bytes(ds_type type, uint32_t rows, uint32_t cols);

/* Some rows of a matrix that are to be written as another type, or all. */
typedef struct ds_conversion {
    ds_matrix from;
    ds_type type;
    uint8_t *out;        /* of the matrix's first row, ds_matrix_bytes of the whole */
    uint32_t first, end; /* rows */
    size_t first_task;
    void *made;          /* memory of `from` to free when they are written, or NULL */
} ds_conversion;

/* Matrices that wait to be converted together. */
typedef struct ds_conversions {
    const ds_kernels *kernels;
    ds_pool *pool;
    const ds_container *container; /* whose files the matrices lie in */
    ds_conversion *list;
    size_t n, capacity;
    uint64_t bytes;   /* to be read */
    uint8_t *scratch; /* scratch_bytes for each thread */
    size_t scratch_bytes;
} ds_conversions;

void ds_conversions_init(ds_conversions *queue, const ds_kernels *kernels, ds_pool *pool, const ds_container *container);

/* Whether it only puts a block type's numbers in another order: fast, and nothing is rounded. */
bool ds_conversion_is_repacking(const ds_conversion *conversion);

/* Room for n more conversions like this one, so that adding and running them cannot fail. */
dsv2_status ds_conversions_reserve(ds_conversions *queue, size_t n, const ds_conversion *like);

/* Adds a whole matrix's, for which there is room, and converts what waits as soon as it is enough for all threads: until
 * ds_conversions_run, `from`'s data stay and `out` is not read. */
void ds_conversions_add(ds_conversions *queue, const ds_conversion *conversion);

/* Converts all that waits, over all threads; parts of the file that were read need not stay in memory. */
void ds_conversions_run(ds_conversions *queue);
void ds_conversions_free(ds_conversions *queue);

/* Element i of an array of F32, F16 or BF16. */
void ds_store_element(ds_type type, void *data, size_t i, float value);

#endif

/* formats: where weights come from. Every container gives the same view: tensors by name, each typed, shaped, checked to lie
 * inside its file. Names and shapes are as the file has them; what they mean is the model room's business.
 * May include: base, kernels (for element types). */
#ifndef DSV2_LIB_FORMATS_H
#define DSV2_LIB_FORMATS_H

#include "base/base.h"
#include "kernels/kernels.h"

enum { DSV2_TENSOR_MAX_DIMS = 4 };

typedef struct dsv2_tensor {
    const char *name;      /* owned by the container */
    dsv2_type type;
    uint32_t n_dims;
    uint64_t dims[DSV2_TENSOR_MAX_DIMS]; /* outermost first: a matrix is [rows, cols] */
    const void *data;      /* n_bytes inside a mapped file; may be unaligned */
    uint64_t n_bytes;      /* equals the product of dims in elements of type: checked */
    const char *path;      /* of the file, for messages */
    uint64_t checksum;     /* of the data, in packs */
} dsv2_tensor;

typedef struct dsv2_container dsv2_container;

/* Opens all safetensors files of a model folder: those that model.safetensors.index.json names, or else model.safetensors, or
 * else all *.safetensors in order of name. Duplicate names, missing files, and names that the index puts elsewhere are errors. */
dsv2_status dsv2_safetensors_open(const char *folder, const dsv2_logger *logger, dsv2_container **container);

/* The same for one file alone. */
dsv2_status dsv2_safetensors_open_file(const char *path, const dsv2_logger *logger, dsv2_container **container);

void dsv2_container_close(dsv2_container *container);

/* The tensor of this name; NULL if there is none, or if its element type is not one of dsv2_type. */
const dsv2_tensor *dsv2_container_find(const dsv2_container *container, const char *name);

/* The same where the tensor has to be there: DSV2_ERROR_FORMAT if it is missing, DSV2_ERROR_UNSUPPORTED, naming the type, if
 * it is there with an element type that this library does not read. */
dsv2_status dsv2_container_require(const dsv2_container *container, const char *name, const dsv2_tensor **tensor);

/* All tensors of readable types, sorted by name (strcmp). */
size_t dsv2_container_count(const dsv2_container *container);
const dsv2_tensor *dsv2_container_tensor(const dsv2_container *container, size_t index);

/* What was opened: "safetensors" or "gguf". */
const char *dsv2_container_kind(const dsv2_container *container);

/* DSV2_ERROR_IO if any file's size has changed since it was mapped. */
dsv2_status dsv2_container_check(const dsv2_container *container);

#endif

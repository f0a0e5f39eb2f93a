/* What the readers of this room share: how a container is built up. Only for lib/formats. */
#ifndef DSV2_LIB_FORMATS_CONTAINER_H
#define DSV2_LIB_FORMATS_CONTAINER_H

#include "formats/formats.h"

/* A tensor that is in the file but whose elements this library does not read. Checkpoints may hold such (position ids,
 * counters); only one that the model needs is an error. */
typedef struct dsv2_other_tensor {
    char *name, *type;
    uint32_t n_dims;
    const char *path;
} dsv2_other_tensor;

/* A metadata entry of a GGUF. */
typedef struct dsv2_gguf_value {
    const char *key; /* in the file, key_size bytes */
    size_t key_size;
    uint32_t type, element; /* the format's own numbers; element of an array only */
    uint64_t count;         /* of an array's elements, of a string's bytes, or 1 */
    const uint8_t *data;    /* in the file */
    uint64_t size;          /* bytes there */
} dsv2_gguf_value;

struct dsv2_container {
    const char *kind;
    char *path; /* the folder or file that was opened */
    dsv2_file *files;
    size_t n_files;
    dsv2_tensor *tensors; /* sorted by name once dsv2_container_finish has run; names are owned */
    size_t n_tensors, tensors_capacity;
    dsv2_other_tensor *others; /* likewise */
    size_t n_others, others_capacity;
    dsv2_gguf_value *values; /* sorted by key */
    size_t n_values;
    char *texts; /* packs: the unpacked block of texts */
    size_t texts_size;
};

/* An empty container with room for n_files files, none of them open yet. NULL without memory, and the message is set. */
dsv2_container *dsv2_container_create(const char *kind, const char *path, size_t n_files);

/* Each copies the names. DSV2_ERROR_MEMORY is the only failure. */
dsv2_status dsv2_container_add(dsv2_container *container, const dsv2_tensor *tensor);
dsv2_status dsv2_container_add_other(dsv2_container *container, const char *name, const char *type, uint32_t n_dims,
                                     const char *path);

/* Sorts, and refuses names that are there twice. */
dsv2_status dsv2_container_finish(dsv2_container *container);

/* Where a tensor lies, from the beginning of its file. */
typedef struct dsv2_extent {
    uint64_t begin, end;
    dsv2_text name;
} dsv2_extent;

/* Sorts them, and refuses two that share bytes. */
dsv2_status dsv2_check_overlap(const dsv2_file *file, dsv2_extent *extents, size_t n);

/* The tensor that is there with a type not read, or NULL. After dsv2_container_finish. */
const dsv2_other_tensor *dsv2_container_find_other(const dsv2_container *container, const char *name);

/* Bytes of a tensor's elements. False if a product wraps, or a row is no whole number of the type's blocks. */
bool dsv2_tensor_bytes(dsv2_type type, const uint64_t *dims, uint32_t n_dims, uint64_t *bytes);

#endif

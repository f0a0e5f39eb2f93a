/* What the readers of this room share: how they build a container. Only for lib/formats. */
#ifndef DS_LIB_FORMATS_CONTAINER_H
#define DS_LIB_FORMATS_CONTAINER_H

#include "formats/formats.h"

/* A tensor of the file whose elements this library does not read. Checkpoints may hold such tensors (position ids,
 * counters). They are an error only where the model needs them. */
typedef struct ds_other_tensor {
    char *name, *type;
    uint32_t n_dims;
    const char *path;
} ds_other_tensor;

/* A metadata entry of a GGUF. */
typedef struct ds_gguf_value {
    const char *key; /* in the file's head, key_size bytes */
    size_t key_size;
    uint32_t type, element; /* GGUF's numbers; element: of an array */
    uint64_t count;         /* elements of an array, bytes of a string, else 1 */
    const uint8_t *data;    /* in the file's head */
    uint64_t size;          /* bytes at data */
} ds_gguf_value;

struct ds_container {
    ds_format format;
    char *path; /* the folder or file that was opened */
    ds_file *files;
    size_t n_files;
    ds_tensor *tensors; /* sorted by name after ds_container_finish; names are owned */
    size_t n_tensors, tensors_capacity;
    ds_other_tensor *others; /* like tensors */
    size_t n_others, others_capacity;
    ds_gguf_value *values; /* sorted by key */
    size_t n_values;
    char *texts; /* of a pack, decompressed */
    size_t texts_size;
};

/* An empty container with room for n_files files, none open yet. NULL if memory runs out; the message is set. */
ds_container *ds_container_create(ds_format format, const char *path, size_t n_files);

/* Both copy the names. DSV2_ERROR_MEMORY is the only failure. */
dsv2_status ds_container_add(ds_container *container, const ds_tensor *tensor);
dsv2_status ds_container_add_other(ds_container *container, const char *name, const char *type, uint32_t n_dims,
                                   const char *path);

/* Sorts the tensors by name, and refuses a name that is there twice. */
dsv2_status ds_container_finish(ds_container *container);

/* The bytes begin ... end - 1 that a tensor takes, of the file or of the part of it that holds data. */
typedef struct ds_extent {
    uint64_t begin, end;
    ds_text name;
} ds_extent;

/* Sorts by begin, then by end. */
void ds_sort_extents(ds_extent *extents, size_t n);

/* Sorts the extents of a file, and refuses two that share bytes. */
dsv2_status ds_check_overlap(const ds_file *file, ds_extent *extents, size_t n);

/* The tensor of this name whose type is not read, or NULL. Only after ds_container_finish. */
const ds_other_tensor *ds_container_find_other(const ds_container *container, const char *name);

/* Bytes of a tensor's elements. False if a product wraps, if a row is not a whole number of the type's blocks, or if a
 * tensor of an interleaved type is not a matrix. */
bool ds_tensor_bytes(ds_type type, const uint64_t *dims, uint32_t n_dims, uint64_t *bytes);

#endif

/* What the readers of this room share: how a container is built up. Only for lib/formats. */
#ifndef DS_LIB_FORMATS_CONTAINER_H
#define DS_LIB_FORMATS_CONTAINER_H

#include "formats/formats.h"

/* A tensor that is in the file but whose elements this library does not read. Checkpoints may hold such (position ids,
 * counters); only one that the model needs is an error. */
typedef struct ds_other_tensor {
    char *name, *type;
    uint32_t n_dims;
    const char *path;
} ds_other_tensor;

/* A metadata entry of a GGUF. */
typedef struct ds_gguf_value {
    const char *key; /* in the file, key_size bytes */
    size_t key_size;
    uint32_t type, element; /* the format's own numbers; element of an array only */
    uint64_t count;         /* of an array's elements, of a string's bytes, or 1 */
    const uint8_t *data;    /* in the file */
    uint64_t size;          /* bytes there */
} ds_gguf_value;

struct ds_container {
    const char *kind;
    char *path; /* the folder or file that was opened */
    ds_file *files;
    size_t n_files;
    ds_tensor *tensors; /* sorted by name once ds_container_finish has run; names are owned */
    size_t n_tensors, tensors_capacity;
    ds_other_tensor *others; /* likewise */
    size_t n_others, others_capacity;
    ds_gguf_value *values; /* sorted by key */
    size_t n_values;
    char *texts; /* packs: the unpacked block of texts */
    size_t texts_size;
};

/* An empty container with room for n_files files, none of them open yet. NULL without memory, and the message is set. */
ds_container *ds_container_create(const char *kind, const char *path, size_t n_files);

/* Each copies the names. DSV2_ERROR_MEMORY is the only failure. */
dsv2_status ds_container_add(ds_container *container, const ds_tensor *tensor);
dsv2_status ds_container_add_other(ds_container *container, const char *name, const char *type, uint32_t n_dims,
                                   const char *path);

/* Sorts, and refuses names that are there twice. */
dsv2_status ds_container_finish(ds_container *container);

/* Where a tensor lies, from the beginning of its file. */
typedef struct ds_extent {
    uint64_t begin, end;
    ds_text name;
} ds_extent;

/* Sorts them, and refuses two that share bytes. */
dsv2_status ds_check_overlap(const ds_file *file, ds_extent *extents, size_t n);

/* The tensor that is there with a type not read, or NULL. After ds_container_finish. */
const ds_other_tensor *ds_container_find_other(const ds_container *container, const char *name);

/* Bytes of a tensor's elements. False if a product wraps, or a row is no whole number of the type's blocks. */
bool ds_tensor_bytes(ds_type type, const uint64_t *dims, uint32_t n_dims, uint64_t *bytes);

#endif

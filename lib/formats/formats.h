/* formats: where weights come from. Every container gives the same view: tensors by name, each typed, shaped, checked to lie
 * inside its file. Names and shapes are as the file has them; what they mean is the model room's business.
 * May include: base, kernels (for element types), tokenizer (to make one of a GGUF's vocabulary). */
#ifndef DSV2_LIB_FORMATS_H
#define DSV2_LIB_FORMATS_H

#include "base/base.h"
#include "kernels/kernels.h"
#include "tokenizer/tokenizer.h"

#include <dsv2/tokenizer.h>

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

/* Whether there is a tensor of this name, of whatever type. */
bool dsv2_container_has(const dsv2_container *container, const char *name);

/* The same as dsv2_container_find where the tensor has to be there: DSV2_ERROR_FORMAT if it is missing, DSV2_ERROR_UNSUPPORTED, naming the type, if
 * it is there with an element type that this library does not read. */
dsv2_status dsv2_container_require(const dsv2_container *container, const char *name, const dsv2_tensor **tensor);

/* All tensors of readable types, sorted by name (strcmp). */
size_t dsv2_container_count(const dsv2_container *container);
const dsv2_tensor *dsv2_container_tensor(const dsv2_container *container, size_t index);

/* ---- GGUF ---- */

/* Opens a GGUF file, version 2 or 3, and, if it is the first of a split model (NAME-00001-of-0000N.gguf), the others with it.
 * Dimensions are turned to the outermost first. Every type is known by name; those that dsv2_type lacks count as not read. */
dsv2_status dsv2_gguf_open(const char *path, const dsv2_logger *logger, dsv2_container **container);

/* True if the file begins as a GGUF does; false also if it cannot be read. */
bool dsv2_is_gguf(const char *path);

/* The metadata of a GGUF (of its first file), by key. Values are DSV2_ERROR_FORMAT if missing, of another type than asked for
 * or out of range; the message names file, key, what was found and what was expected. A safetensors container has no keys. */
bool dsv2_gguf_has(const dsv2_container *container, const char *key);
dsv2_status dsv2_gguf_u32(const dsv2_container *container, const char *key, uint32_t *value); /* of any integer type */
dsv2_status dsv2_gguf_f32(const dsv2_container *container, const char *key, float *value);    /* of either float type */
dsv2_status dsv2_gguf_bool(const dsv2_container *container, const char *key, bool *value);

/* Texts lie in the mapped file. */
dsv2_status dsv2_gguf_string(const dsv2_container *container, const char *key, dsv2_text *value);

/* *values is an array for the caller to dsv2_free; what it points to belongs to the container. */
dsv2_status dsv2_gguf_strings(const dsv2_container *container, const char *key, dsv2_text **values, size_t *n);

/* Arrays of fixed-size elements: *values lies in the file, little-endian, at any alignment. */
typedef enum dsv2_gguf_element { DSV2_GGUF_U8, DSV2_GGUF_I32, DSV2_GGUF_F32 } dsv2_gguf_element;
dsv2_status dsv2_gguf_array(const dsv2_container *container, const char *key, dsv2_gguf_element element, const void **values,
                            size_t *n);

/* The tokenizer of a GGUF's vocabulary; *tokenizer is NULL if it has none. DSV2_ERROR_UNSUPPORTED if it is not byte-level BPE
 * with a pre-tokenizer that is known. */
dsv2_status dsv2_gguf_tokenizer(const dsv2_container *container, dsv2_tokenizer **tokenizer);

/* Calls use with the vocabulary of a GGUF, valid during the call, and returns what it returns; DSV2_OK without a call if the file has
 * none. */
typedef dsv2_status (*dsv2_vocabulary_fn)(void *context, const dsv2_vocabulary *vocabulary);
dsv2_status dsv2_gguf_vocabulary(const dsv2_container *container, dsv2_vocabulary_fn use, void *context);

/* ---- all ---- */

/* What was opened: "safetensors" or "gguf". */
const char *dsv2_container_kind(const dsv2_container *container);

/* The path that it was opened by, for messages. */
const char *dsv2_container_path(const dsv2_container *container);

/* Tells the system that `size` bytes at `data`, inside one of the container's files, are not needed soon: they stay readable, but
 * no longer count as this process's memory. */
void dsv2_container_forget(const dsv2_container *container, const void *data, uint64_t size);

/* DSV2_ERROR_IO if any file's size has changed since it was mapped. */
dsv2_status dsv2_container_check(const dsv2_container *container);

#endif

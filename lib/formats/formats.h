/* formats: where weights come from. Every container gives the same view: tensors by name, each with type and shape,
 * each checked to lie inside its file. Names and shapes are the file's; the weights room knows what they mean.
 * Opening a container reads headers alone. Then tensors are either mapped (ds_container_map) or read.
 * May include: base, kernels (for element types), tokenizer (to make one from a GGUF's vocabulary). */
#ifndef DS_LIB_FORMATS_H
#define DS_LIB_FORMATS_H

#include "base/base.h"
#include "kernels/kernels.h"
#include "tokenizer/tokenizer.h"

#include <dsv2/tokenizer.h>

enum { DS_TENSOR_MAX_DIMS = 4 };

typedef struct ds_tensor {
    const char *name;      /* owned by the container */
    ds_type type;
    uint32_t n_dims;
    uint64_t dims[DS_TENSOR_MAX_DIMS]; /* outermost first: a matrix is [rows, cols] */
    uint32_t file;         /* of the container's files, from 0 */
    uint64_t offset;       /* in that file */
    uint64_t n_bytes;      /* from there: the product of dims, in bytes of type, inside the file: checked */
    const void *data;      /* the same bytes, may be unaligned; NULL where the files are not mapped */
    const char *path;      /* of the file, for messages */
    uint64_t checksum;     /* of the data, in packs */
} ds_tensor;

typedef enum ds_format { DS_FORMAT_SAFETENSORS, DS_FORMAT_GGUF, DS_FORMAT_PACK } ds_format;

typedef struct ds_container ds_container;

/* Opens the safetensors files of a model folder: those that model.safetensors.index.json names, else model.safetensors,
 * else all *.safetensors in order of name. Errors: a name that is there twice, a missing file, a tensor in another file
 * than the index says. */
dsv2_status ds_safetensors_open(const char *folder, const ds_logger *logger, ds_container **container);

void ds_container_close(ds_container *container);

/* The tensor of this name; NULL if there is none, or if its element type is not one of ds_type. */
const ds_tensor *ds_container_find(const ds_container *container, const char *name);

/* Whether there is a tensor of this name, of whatever type. */
bool ds_container_has(const ds_container *container, const char *name);

/* ds_container_find for a tensor that must be there. DSV2_ERROR_FORMAT: it is missing. DSV2_ERROR_UNSUPPORTED: this
 * library does not read its element type, which the message names. */
dsv2_status ds_container_require(const ds_container *container, const char *name, const ds_tensor **tensor);

/* All tensors of readable types, sorted by name (strcmp). */
size_t ds_container_count(const ds_container *container);
const ds_tensor *ds_container_tensor(const ds_container *container, size_t index);

/* ---- GGUF ---- */

/* Opens a GGUF file of version 2 or 3. The first file of a split model (NAME-00001-of-0000N.gguf) opens the others too.
 * Dimensions are turned to the outermost first. Types that ds_type lacks are known by name and count as not read. */
dsv2_status ds_gguf_open(const char *path, const ds_logger *logger, ds_container **container);

/* True if the file begins as a GGUF does. False too if the file cannot be read. */
bool ds_is_gguf(const char *path);

/* The metadata of a GGUF (of its first file), by key. A value that is missing, out of range or of another type than
 * asked for gives DSV2_ERROR_FORMAT; the message names the file, the key, what was found and what was expected. A
 * safetensors container has no keys. */
bool ds_gguf_has(const ds_container *container, const char *key);
dsv2_status ds_gguf_u32(const ds_container *container, const char *key, uint32_t *value); /* of any integer type */
dsv2_status ds_gguf_f32(const ds_container *container, const char *key, float *value);    /* of either float type */
dsv2_status ds_gguf_bool(const ds_container *container, const char *key, bool *value);

/* The text belongs to the container. */
dsv2_status ds_gguf_string(const ds_container *container, const char *key, ds_text *value);

/* *values is an array that the caller frees with ds_free; its texts belong to the container. */
dsv2_status ds_gguf_strings(const ds_container *container, const char *key, ds_text **values, size_t *n);

/* Arrays of fixed-size elements: *values belongs to the container, little-endian, at any alignment. */
typedef enum ds_gguf_element { DS_GGUF_U8, DS_GGUF_I32, DS_GGUF_F32 } ds_gguf_element;
dsv2_status ds_gguf_array(const ds_container *container, const char *key, ds_gguf_element element, const void **values,
                          size_t *n);

/* Makes the tokenizer of a GGUF's vocabulary. *tokenizer is NULL if the file has none. DSV2_ERROR_UNSUPPORTED: the
 * vocabulary is not byte-level BPE with a pre-tokenizer that this library knows. */
dsv2_status ds_gguf_tokenizer(const ds_container *container, dsv2_tokenizer **tokenizer);

/* Calls `use` with the vocabulary of a GGUF, which is valid during the call, and returns the status of `use`. Returns
 * DSV2_OK without a call if the file has no vocabulary. */
typedef dsv2_status (*ds_vocabulary_fn)(void *context, const ds_vocabulary *vocabulary);
dsv2_status ds_gguf_vocabulary(const ds_container *container, ds_vocabulary_fn use, void *context);

/* ---- all ---- */

/* The format of what was opened, and the format's name: "safetensors", "gguf" or "pack". */
ds_format ds_container_format(const ds_container *container);
const char *ds_format_name(ds_format format);

/* The path that was opened, for messages. */
const char *ds_container_path(const ds_container *container);

/* Maps the files, so that every tensor has its data. Where the system refuses a shared mapping, a private one is tried;
 * where it refuses that too, *mapped is false, no tensor has data, and whoever wants some reads. Both are remarked on.
 * DSV2_ERROR_MEMORY: the address space is full. */
dsv2_status ds_container_map(ds_container *container, const ds_logger *logger, bool *mapped);

/* The file that a tensor lies in. */
const ds_file *ds_container_file(const ds_container *container, const ds_tensor *tensor);

/* Reads `size` bytes of a tensor, from byte `from` of it on, whether mapped or not. */
dsv2_status ds_container_read(const ds_container *container, const ds_tensor *tensor, uint64_t from, void *data,
                              size_t size);

/* Tells the system that `size` bytes at `data`, if inside one of the container's mapped files, are not needed soon.
 * They stay readable, but no longer count as memory of this process. */
void ds_container_forget(const ds_container *container, const void *data, uint64_t size);

/* Closes the files, none of which is mapped: what is in memory stays, nothing more can be read, files may change. */
void ds_container_close_files(ds_container *container);

/* DSV2_ERROR_IO if any open file may have changed since it was opened: what was read may be of two versions. */
dsv2_status ds_container_check_same(const ds_container *container);

/* DSV2_ERROR_IO if the size of any open file has changed since it was opened. */
dsv2_status ds_container_check(const ds_container *container);

#endif

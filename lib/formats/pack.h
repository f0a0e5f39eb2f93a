/* The .dsv2 pack: one file with a model's weights in the kernels' own layout. Described byte by byte in README.md
 * beside this. */
#ifndef DS_LIB_FORMATS_PACK_H
#define DS_LIB_FORMATS_PACK_H

#include "formats/formats.h"
#include "tokenizer/tokenizer.h"

/* Each of the two compressed blocks, unpacked, for reading and writing: a tokenizer.json has 10 MB at most. */
enum { DS_PACK_MAX_TEXT = 256 << 20 };

/* True if the file begins as a pack does; false also if it cannot be read. */
bool ds_is_pack(const char *path);

/* Opens a pack: checks header, texts and index with their checksums. ds_pack_verify alone checks the weights'. */
dsv2_status ds_pack_open(const char *path, ds_container **container);

/* A text kept with the weights ("config.json", "tokenizer.json"): *text belongs to the container; NULL if there is
 * none. */
void ds_pack_text(const ds_container *container, const char *name, const char **text, size_t *size);

/* The tokenizer that is in the pack; *tokenizer is NULL if there is none. */
dsv2_status ds_pack_tokenizer(const ds_container *container, dsv2_tokenizer **tokenizer);

/* Reads every tensor of an open pack and compares checksums; DSV2_ERROR_FORMAT names the tensor. Calls progress with
 * bytes. */
dsv2_status ds_pack_verify(const ds_container *container, dsv2_progress_fn progress, void *progress_user);

/* ---- writing ---- */

typedef struct ds_pack_writer ds_pack_writer;

dsv2_status ds_pack_writer_open(const char *path, ds_pack_writer **writer);

/* Begins a tensor; its bytes follow in any number of pieces, ds_tensor_bytes of its type and dims in sum. */
dsv2_status ds_pack_writer_tensor(ds_pack_writer *writer, const char *name, ds_type type, const uint64_t *dims,
                                  uint32_t n_dims);
dsv2_status ds_pack_writer_data(ds_pack_writer *writer, const void *data, size_t size);

dsv2_status ds_pack_writer_text(ds_pack_writer *writer, const char *name, const char *text, size_t size);

/* The tokenizer of the container that the weights are taken from, if it has one. */
dsv2_status ds_pack_writer_tokenizer(ds_pack_writer *writer, const ds_container *from);

/* Finishes the file under its name. The writer is to be freed in any case. */
dsv2_status ds_pack_writer_commit(ds_pack_writer *writer);

/* Frees the writer; without a commit before it, nothing is left of the file. NULL is allowed. */
void ds_pack_writer_free(ds_pack_writer *writer);

#endif

#include "formats/pack.h"
#include "formats/container.h"

#include <stdio.h>
#include <string.h>
#include <xxhash.h>
#include <zstd.h>

/* See README.md for what these are. */
enum {
    HEADER_BYTES = 128,
    INDEX_BLOCK = 24, /* where the header tells of them */
    TEXTS_BLOCK = 56,
    VERSION = 1,
    ALIGNMENT = 4096, /* of the weights in the file: whole memory pages, so that every tensor begins on a cache line */
    TENSOR_ALIGNMENT = 64,
    MAX_NAME = 256,
    ENTRY_BYTES = 2 + 1 + 1 + 8 + 8 + 8 + 8, /* of an index entry without its name and dims */
};

static const char MAGIC[8] = "DSV2PACK";

/* Where a compressed block is. */
typedef struct block {
    uint64_t offset, stored, unpacked, checksum; /* checksum: XXH3-64 of the stored bytes */
} block;

bool ds_is_pack(const char *path) { return ds_file_begins(path, MAGIC, sizeof MAGIC); }

/* ---- reading ---- */

static block load_block(const uint8_t *bytes)
{
    return (block){ds_read_u64(bytes), ds_read_u64(bytes + 8), ds_read_u64(bytes + 16), ds_read_u64(bytes + 24)};
}

static dsv2_status decompress(const ds_file *file, block b, const char *what, const char *stored, char *data)
{
    if (XXH3_64bits(stored, (size_t)b.stored) != b.checksum)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: the %s is damaged: its checksum differs", file->path, what);
    ZSTD_DCtx *zstd = ZSTD_createDCtx();
    if (zstd == NULL)
        return ds_fail(DSV2_ERROR_MEMORY, "%s: no memory to unpack the %s", file->path, what);
    size_t got = ZSTD_decompressDCtx(zstd, data, (size_t)b.unpacked, stored, (size_t)b.stored);
    ZSTD_freeDCtx(zstd);
    if (ZSTD_isError(got) || got != b.unpacked)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: the %s is damaged: %s", file->path, what,
                       ZSTD_isError(got) ? ZSTD_getErrorName(got) : "its size differs");
    return DSV2_OK;
}

/* Checks and unpacks one compressed block of the file; a zero byte follows what is unpacked. */
static dsv2_status unpack_block(const ds_file *file, block b, const char *what, char **out, size_t *size)
{
    uint64_t end;
    if (!ds_add(b.offset, b.stored, &end) || end > file->size)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: the %s lies at %llu to %llu, outside the file of %llu bytes", file->path,
                       what, (unsigned long long)b.offset, (unsigned long long)end, (unsigned long long)file->size);
    if (b.unpacked > DS_PACK_MAX_TEXT)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: the %s unpacks to %llu bytes, expected at most %d", file->path, what,
                       (unsigned long long)b.unpacked, (int)DS_PACK_MAX_TEXT);
    if (b.stored > ZSTD_compressBound(DS_PACK_MAX_TEXT))
        return ds_fail(DSV2_ERROR_FORMAT, "%s: the %s has %llu bytes, expected at most %llu", file->path, what,
                       (unsigned long long)b.stored, (unsigned long long)ZSTD_compressBound(DS_PACK_MAX_TEXT));
    char *stored = ds_new((size_t)b.stored, 1), *data = ds_new((size_t)b.unpacked + 1, 1);
    dsv2_status status = stored == NULL || data == NULL ? ds_fail_memory(what, (size_t)(b.stored + b.unpacked) + 1)
                                                        : ds_file_read_at(file, b.offset, stored, (size_t)b.stored);
    if (status == DSV2_OK)
        status = decompress(file, b, what, stored, data);
    ds_free(stored);
    if (status != DSV2_OK) {
        ds_free(data);
        return status;
    }
    *out = data;
    *size = (size_t)b.unpacked;
    return DSV2_OK;
}

/* One entry of the index at *at, which moves behind it. Weights end where the index begins. */
static dsv2_status read_entry(ds_container *container, const uint8_t *index, size_t size, size_t *at)
{
    const ds_file *file = &container->files[0];
    const uint8_t *entry = index + *at;
    size_t left = size - *at, entry_size = ENTRY_BYTES;
    uint16_t name_size = left < entry_size ? 0 : ds_read_u16(entry);
    uint8_t n_dims = left < entry_size ? 0 : entry[3];
    if (left >= entry_size && (name_size == 0 || name_size >= MAX_NAME))
        return ds_fail(DSV2_ERROR_FORMAT,
                       "%s: the index is damaged: entry %zu has a name of %u bytes, expected 1 to %d", file->path,
                       container->n_tensors, name_size, MAX_NAME - 1);
    if (left >= entry_size && (n_dims == 0 || n_dims > DS_TENSOR_MAX_DIMS))
        return ds_fail(DSV2_ERROR_FORMAT, "%s: the index is damaged: entry %zu has %u dimensions, expected 1 to %d",
                       file->path, container->n_tensors, n_dims, DS_TENSOR_MAX_DIMS);
    entry_size += 8u * n_dims + name_size;
    if (left < entry_size)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: the index is damaged: entry %zu takes %zu bytes, but %zu are left",
                       file->path, container->n_tensors, entry_size, left);
    char name[MAX_NAME];
    memcpy(name, entry + ENTRY_BYTES + 8u * n_dims, name_size);
    name[name_size] = '\0';
    if (strlen(name) != name_size)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: the index is damaged: entry %zu has a zero in its name, %s", file->path,
                       container->n_tensors, name);
    ds_tensor tensor = {.name = name, .n_dims = n_dims, .n_bytes = ds_read_u64(entry + 12), .path = file->path,
                        .checksum = ds_read_u64(entry + 20)};
    tensor.type = ds_type_of_pack_code(entry[2]);
    if (tensor.type == DS_TYPE_COUNT)
        return ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: tensor %s has element type %u, which this version does not know",
                       file->path, name, entry[2]);
    for (uint32_t i = 0; i < n_dims; i++)
        tensor.dims[i] = ds_read_u64(entry + ENTRY_BYTES + 8u * i);
    uint64_t offset = ds_read_u64(entry + 4), bytes, end;
    if (!ds_tensor_bytes(tensor.type, tensor.dims, n_dims, &bytes) || bytes != tensor.n_bytes)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: tensor %s has %llu bytes, which its shape and type %s do not give",
                       file->path, name, (unsigned long long)tensor.n_bytes, ds_type_name(tensor.type));
    uint64_t weights_end = load_block(file->head + INDEX_BLOCK).offset;
    if (offset % TENSOR_ALIGNMENT != 0 || offset < ALIGNMENT || !ds_add(offset, bytes, &end) || end > weights_end)
        return ds_fail(DSV2_ERROR_FORMAT,
                       "%s: tensor %s lies at %llu, %llu bytes: expected a multiple of %d from %d to %llu, where the "
                       "weights end", file->path, name, (unsigned long long)offset, (unsigned long long)bytes,
                       TENSOR_ALIGNMENT, ALIGNMENT, (unsigned long long)weights_end);
    tensor.offset = offset;
    *at += entry_size;
    return ds_container_add(container, &tensor);
}

static dsv2_status check_overlap(const ds_container *container)
{
    ds_extent *extents = ds_new(container->n_tensors, sizeof *extents);
    if (extents == NULL)
        return ds_fail_memory("a list of tensors", container->n_tensors * sizeof *extents);
    for (size_t i = 0; i < container->n_tensors; i++) {
        const ds_tensor *tensor = &container->tensors[i];
        extents[i] = (ds_extent){tensor->offset, tensor->offset + tensor->n_bytes,
                                 {tensor->name, strlen(tensor->name)}};
    }
    dsv2_status status = ds_check_overlap(&container->files[0], extents, container->n_tensors);
    ds_free(extents);
    return status;
}

/* Texts: u32 size of name, u32 zero, u64 size of text, name, text; one after another. */
enum { TEXT_HEADER = 16 };

/* Afterwards they are walked without a doubt. */
static dsv2_status check_texts(const ds_container *container)
{
    for (size_t at = 0; at < container->texts_size;) {
        size_t left = container->texts_size - at;
        uint64_t name_size = left < TEXT_HEADER ? 0 : ds_read_u32(container->texts + at);
        uint64_t text_size = left < TEXT_HEADER ? 0 : ds_read_u64(container->texts + at + 8), size;
        if (!ds_add(TEXT_HEADER + name_size, text_size, &size) || size > left)
            return ds_fail(DSV2_ERROR_FORMAT,
                           "%s: the block of texts is damaged: at byte %zu a name of %llu bytes and a text of %llu, "
                           "but %zu are left", container->path, at, (unsigned long long)name_size,
                           (unsigned long long)text_size, left);
        at += (size_t)size;
    }
    return DSV2_OK;
}

dsv2_status ds_pack_open(const char *path, ds_container **out)
{
    ds_container *container = ds_container_create(DS_FORMAT_PACK, path, 1);
    if (container == NULL)
        return DSV2_ERROR_MEMORY;
    char *index = NULL;
    size_t size, at = 0;
    ds_file *file = &container->files[0];
    dsv2_status status = ds_file_open(path, file);
    if (status == DSV2_OK)
        status = ds_file_need_head(file, HEADER_BYTES);
    if (status != DSV2_OK)
        goto done;
    if (file->size < HEADER_BYTES || memcmp(file->head, MAGIC, sizeof MAGIC) != 0) {
        status = ds_fail(DSV2_ERROR_FORMAT, "%s: not a .dsv2 pack, or cut within its header", path);
        goto done;
    }
    if (XXH3_64bits(file->head, HEADER_BYTES - 8) != ds_read_u64(file->head + HEADER_BYTES - 8)) {
        status = ds_fail(DSV2_ERROR_FORMAT, "%s: the header is damaged: its checksum differs", path);
        goto done;
    }
    uint32_t version = ds_read_u32(file->head + 8);
    if (version != VERSION) {
        status = ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: pack version %u, this library reads %d: pack the model again",
                         path, version, VERSION);
        goto done;
    }
    if (ds_read_u64(file->head + 16) != file->size) {
        status = ds_fail(DSV2_ERROR_FORMAT, "%s: %llu bytes, its header says %llu: the file is cut or has grown", path,
                         (unsigned long long)file->size, (unsigned long long)ds_read_u64(file->head + 16));
        goto done;
    }
    status = unpack_block(file, load_block(file->head + INDEX_BLOCK), "index", &index, &size);
    while (status == DSV2_OK && at < size)
        status = read_entry(container, (const uint8_t *)index, size, &at);
    if (status == DSV2_OK)
        status = ds_container_finish(container);
    if (status == DSV2_OK)
        status = check_overlap(container);
    if (status == DSV2_OK)
        status = unpack_block(file, load_block(file->head + TEXTS_BLOCK), "block of texts", &container->texts,
                              &container->texts_size);
    if (status == DSV2_OK)
        status = check_texts(container);
done:
    ds_free(index);
    if (status != DSV2_OK)
        ds_container_close(container);
    else
        *out = container;
    return status;
}

void ds_pack_text(const ds_container *container, const char *name, const char **text, size_t *size)
{
    const char *texts = container->texts;
    *text = NULL;
    *size = 0;
    for (size_t at = 0; at < container->texts_size;) {
        uint32_t name_size = ds_read_u32(texts + at);
        uint64_t text_size = ds_read_u64(texts + at + 8);
        if (name_size == strlen(name) && memcmp(texts + at + TEXT_HEADER, name, name_size) == 0) {
            *text = texts + at + TEXT_HEADER + name_size;
            *size = (size_t)text_size;
            return;
        }
        at += TEXT_HEADER + name_size + (size_t)text_size;
    }
}

dsv2_status ds_pack_verify(const ds_container *container, dsv2_progress_fn progress, void *progress_user)
{
    enum { PIECE = 1 << 20 }; /* read and hashed between two reports */
    uint64_t total = 0, done = 0;
    for (size_t i = 0; i < container->n_tensors; i++)
        total += container->tensors[i].n_bytes;
    XXH3_state_t *state = XXH3_createState();
    uint8_t *piece = ds_new(PIECE, 1);
    dsv2_status status = state == NULL || piece == NULL ? ds_fail_memory("a checksum", PIECE) : DSV2_OK;
    for (size_t i = 0; i < container->n_tensors && status == DSV2_OK; i++) {
        const ds_tensor *tensor = &container->tensors[i];
        XXH3_64bits_reset(state);
        for (uint64_t at = 0; at < tensor->n_bytes && status == DSV2_OK; at += PIECE) {
            size_t n = tensor->n_bytes - at < PIECE ? (size_t)(tensor->n_bytes - at) : PIECE;
            status = ds_container_read(container, tensor, at, piece, n);
            if (status != DSV2_OK)
                break;
            XXH3_64bits_update(state, piece, n);
            done += n;
            if (!ds_call_progress(progress, progress_user, DSV2_PHASE_VERIFY, done, total))
                status = ds_fail(DSV2_ERROR_CANCELLED, "verifying was cancelled by the progress callback");
        }
        if (status == DSV2_OK && XXH3_64bits_digest(state) != tensor->checksum)
            status = ds_fail(DSV2_ERROR_FORMAT, "%s: tensor %s is damaged: its checksum differs", tensor->path,
                             tensor->name);
    }
    ds_free(piece);
    XXH3_freeState(state);
    return status;
}

/* ---- writing ---- */

struct ds_pack_writer {
    ds_writer file;
    bool open;
    uint8_t *index, *texts;
    size_t index_size, index_capacity, texts_size, texts_capacity;
    size_t entry;          /* of the tensor being written, in `index` */
    uint64_t left;         /* bytes of it to come */
    XXH3_state_t *checksum;
};

/* Refuses a block that ds_pack_open would refuse, before it is there. */
static dsv2_status check_block(const char *block, const char *name, uint64_t size)
{
    if (size <= DS_PACK_MAX_TEXT)
        return DSV2_OK;
    return ds_fail(DSV2_ERROR_UNSUPPORTED, "the %s of the pack takes %llu bytes with %s, expected at most %d", block,
                   (unsigned long long)size, name, (int)DS_PACK_MAX_TEXT);
}

static dsv2_status append_padding(ds_writer *file, size_t alignment)
{
    static const uint8_t zeros[ALIGNMENT];
    return ds_writer_append(file, zeros, (alignment - file->size % alignment) % alignment);
}

dsv2_status ds_pack_writer_open(const char *path, ds_pack_writer **out)
{
    ds_pack_writer *writer = ds_new(1, sizeof *writer);
    XXH3_state_t *checksum = XXH3_createState();
    if (writer == NULL || checksum == NULL) {
        XXH3_freeState(checksum);
        ds_free(writer);
        return ds_fail_memory("a pack", sizeof *writer);
    }
    writer->checksum = checksum;
    static const uint8_t header[HEADER_BYTES];
    dsv2_status status = ds_writer_open(path, &writer->file);
    writer->open = status == DSV2_OK;
    if (status == DSV2_OK)
        status = ds_writer_append(&writer->file, header, sizeof header); /* its place; filled in at the end */
    if (status == DSV2_OK)
        status = append_padding(&writer->file, ALIGNMENT);
    if (status != DSV2_OK)
        ds_pack_writer_free(writer);
    else
        *out = writer;
    return status;
}

dsv2_status ds_pack_writer_tensor(ds_pack_writer *writer, const char *name, ds_type type, const uint64_t *dims,
                                  uint32_t n_dims)
{
    size_t name_size = strlen(name), entry_size = (size_t)ENTRY_BYTES + 8u * n_dims + name_size;
    uint8_t code = ds_type_pack_code(type);
    uint64_t bytes;
    if (code == 0 || !ds_tensor_bytes(type, dims, n_dims, &bytes) || name_size == 0 || name_size >= MAX_NAME)
        return ds_fail(DSV2_ERROR_UNSUPPORTED, "tensor %s of type %s cannot be packed", name, ds_type_name(type));
    dsv2_status status = check_block("index", name, (uint64_t)writer->index_size + entry_size);
    if (status == DSV2_OK)
        status = append_padding(&writer->file, TENSOR_ALIGNMENT);
    if (status != DSV2_OK)
        return status;
    if (!ds_grow(&writer->index, &writer->index_capacity, writer->index_size + entry_size, 1))
        return ds_fail_memory("the index", writer->index_size + entry_size);
    uint8_t *entry = writer->index + writer->index_size;
    entry[0] = (uint8_t)name_size;
    entry[1] = (uint8_t)(name_size >> 8);
    entry[2] = code;
    entry[3] = (uint8_t)n_dims;
    ds_write_u64(entry + 4, writer->file.size);
    ds_write_u64(entry + 12, bytes);
    ds_write_u64(entry + 20, 0); /* the checksum comes with the last byte */
    ds_write_u64(entry + 28, 0); /* reserved */
    for (uint32_t i = 0; i < n_dims; i++)
        ds_write_u64(entry + ENTRY_BYTES + 8u * i, dims[i]);
    memcpy(entry + ENTRY_BYTES + 8u * n_dims, name, name_size);
    writer->entry = writer->index_size;
    writer->index_size += entry_size;
    writer->left = bytes;
    XXH3_64bits_reset(writer->checksum);
    return DSV2_OK;
}

dsv2_status ds_pack_writer_data(ds_pack_writer *writer, const void *data, size_t size)
{
    dsv2_status status = ds_writer_append(&writer->file, data, size);
    if (status != DSV2_OK)
        return status;
    XXH3_64bits_update(writer->checksum, data, size);
    writer->left -= size;
    if (writer->left == 0)
        ds_write_u64(writer->index + writer->entry + 20, XXH3_64bits_digest(writer->checksum));
    return DSV2_OK;
}

dsv2_status ds_pack_writer_text(ds_pack_writer *writer, const char *name, const char *text, size_t size)
{
    size_t name_size = strlen(name), needed = writer->texts_size + TEXT_HEADER + name_size + size;
    dsv2_status status = check_block("block of texts", name, needed);
    if (status != DSV2_OK)
        return status;
    if (!ds_grow(&writer->texts, &writer->texts_capacity, needed, 1))
        return ds_fail_memory(name, needed);
    uint8_t *at = writer->texts + writer->texts_size;
    ds_write_u32(at, (uint32_t)name_size);
    ds_write_u32(at + 4, 0);
    ds_write_u64(at + 8, size);
    memcpy(at + TEXT_HEADER, name, name_size);
    memcpy(at + TEXT_HEADER + name_size, text, size);
    writer->texts_size = needed;
    return DSV2_OK;
}

/* Appends a compressed block and describes it in the header. */
static dsv2_status append_block(ds_pack_writer *writer, const uint8_t *data, size_t size, uint8_t *header)
{
    enum { LEVEL = 9 }; /* small and written once */
    size_t capacity = ZSTD_compressBound(size);
    uint8_t *stored = ds_new(capacity, 1);
    if (stored == NULL)
        return ds_fail_memory("a compressed block", capacity);
    size_t n = ZSTD_compress(stored, capacity, data, size, LEVEL);
    dsv2_status status = ZSTD_isError(n) ? ds_fail_memory("compression", capacity) : DSV2_OK;
    if (status == DSV2_OK) {
        ds_write_u64(header, writer->file.size);
        ds_write_u64(header + 8, n);
        ds_write_u64(header + 16, size);
        ds_write_u64(header + 24, XXH3_64bits(stored, n));
        status = ds_writer_append(&writer->file, stored, n);
    }
    ds_free(stored);
    return status;
}

dsv2_status ds_pack_writer_commit(ds_pack_writer *writer)
{
    uint8_t header[HEADER_BYTES] = {0};
    memcpy(header, MAGIC, sizeof MAGIC);
    ds_write_u32(header + 8, VERSION);
    dsv2_status status = append_block(writer, writer->index, writer->index_size, header + INDEX_BLOCK);
    if (status == DSV2_OK)
        status = append_block(writer, writer->texts, writer->texts_size, header + TEXTS_BLOCK);
    if (status != DSV2_OK)
        return status;
    ds_write_u64(header + 16, writer->file.size);
    ds_write_u64(header + HEADER_BYTES - 8, XXH3_64bits(header, HEADER_BYTES - 8));
    status = ds_writer_replace(&writer->file, 0, header, sizeof header);
    if (status != DSV2_OK)
        return status;
    writer->open = false;
    return ds_writer_commit(&writer->file);
}

void ds_pack_writer_free(ds_pack_writer *writer)
{
    if (writer == NULL)
        return;
    if (writer->open)
        ds_writer_abort(&writer->file);
    XXH3_freeState(writer->checksum);
    ds_free(writer->texts);
    ds_free(writer->index);
    ds_free(writer);
}

/* The tokenizer of a pack: tokenizer.json and the files beside it as they were published, or a GGUF's vocabulary in
 * the form that README.md describes. */
#include "formats/pack.h"

#include <string.h>

enum { VOCABULARY_HEADER = 20 };

/* ---- writing ---- */

typedef struct bytes {
    uint8_t *data;
    size_t size, capacity;
    bool failed;
} bytes;

static void put(bytes *b, const void *data, size_t size)
{
    b->failed = b->failed || !ds_grow(&b->data, &b->capacity, b->size + size, 1);
    if (b->failed || size == 0)
        return;
    memcpy(b->data + b->size, data, size);
    b->size += size;
}

static void put_u32(bytes *b, uint32_t value)
{
    uint8_t little[4];
    ds_write_u32(little, value);
    put(b, little, sizeof little);
}

static void put_text(bytes *b, ds_text text)
{
    put_u32(b, (uint32_t)text.size);
    put(b, text.data, text.size);
}

static dsv2_status write_vocabulary(void *context, const ds_vocabulary *v)
{
    ds_pack_writer *writer = context;
    bytes b = {0};
    put_u32(&b, (uint32_t)v->n_tokens);
    put_u32(&b, (uint32_t)v->n_merges);
    put_u32(&b, (uint32_t)v->bos_token_id);
    put_u32(&b, (uint32_t)v->eos_token_id);
    put_u32(&b, v->ignore_merges);
    put_text(&b, v->pre);
    put_text(&b, v->chat_template);
    put(&b, v->kinds, v->n_tokens);
    for (size_t i = 0; i < v->n_tokens; i++)
        put_text(&b, v->texts[i]);
    for (size_t i = 0; i < 2 * v->n_merges; i++)
        put_text(&b, v->merges[i]);
    dsv2_status status = b.failed ? ds_fail_memory("the vocabulary", b.size)
                                  : ds_pack_writer_text(writer, "vocabulary", (const char *)b.data, b.size);
    ds_free(b.data);
    return status;
}

static dsv2_status copy_text(ds_pack_writer *writer, const ds_container *from, const char *name)
{
    const char *text;
    size_t size;
    ds_pack_text(from, name, &text, &size);
    return text == NULL ? DSV2_OK : ds_pack_writer_text(writer, name, text, size);
}

/* Writes a file of a folder, if it is there. */
static dsv2_status copy_file(ds_pack_writer *writer, const char *folder, const char *name, bool *found)
{
    char *path = ds_path_join(folder, name), *text = NULL;
    size_t size;
    if (path == NULL)
        return ds_fail_memory("a path", strlen(folder));
    *found = ds_exists(path);
    dsv2_status status = *found ? ds_file_read(path, DS_PACK_MAX_TEXT, &text, &size) : DSV2_OK;
    if (*found && status == DSV2_OK)
        status = ds_pack_writer_text(writer, name, text, size);
    ds_free(text);
    ds_free(path);
    return status;
}

dsv2_status ds_pack_writer_tokenizer(ds_pack_writer *writer, const ds_container *from)
{
    ds_format format = ds_container_format(from);
    if (format == DS_FORMAT_GGUF)
        return ds_gguf_vocabulary(from, write_vocabulary, writer);
    dsv2_status status;
    if (format == DS_FORMAT_PACK) {
        status = copy_text(writer, from, "tokenizer.json");
        for (int file = 0; file < DS_TOKENIZER_FILES && status == DSV2_OK; file++)
            status = copy_text(writer, from, ds_tokenizer_files[file]);
        return status == DSV2_OK ? copy_text(writer, from, "vocabulary") : status;
    }
    bool found, beside;
    status = copy_file(writer, ds_container_path(from), "tokenizer.json", &found);
    for (int file = 0; found && file < DS_TOKENIZER_FILES && status == DSV2_OK; file++)
        status = copy_file(writer, ds_container_path(from), ds_tokenizer_files[file], &beside);
    return status;
}

/* ---- reading ---- */

/* What is left of a text that is read from its beginning. */
typedef struct cursor {
    const char *data;
    size_t left;
    bool cut; /* more was asked for than was left */
} cursor;

static ds_text take(cursor *c, size_t size)
{
    if (c->cut || size > c->left) {
        c->cut = true;
        return (ds_text){0};
    }
    ds_text text = {c->data, size};
    c->data += size;
    c->left -= size;
    return text;
}

static ds_text take_text(cursor *c)
{
    ds_text size = take(c, 4);
    return c->cut ? size : take(c, ds_read_u32(size.data));
}

static dsv2_status read_vocabulary(const char *path, const char *text, size_t size, dsv2_tokenizer **tokenizer)
{
    cursor c = {text, size, false};
    ds_text header = take(&c, VOCABULARY_HEADER);
    if (c.cut)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: the vocabulary is cut: %zu bytes, expected at least %d", path, size,
                       VOCABULARY_HEADER);
    ds_vocabulary v = {
        .path = path,
        .n_tokens = ds_read_u32(header.data),
        .n_merges = ds_read_u32(header.data + 4),
        .bos_token_id = (int32_t)ds_read_u32(header.data + 8),
        .eos_token_id = (int32_t)ds_read_u32(header.data + 12),
        .ignore_merges = ds_read_u32(header.data + 16) != 0,
    };
    /* A token takes at least 5 bytes, a merge at least 8. */
    if (v.n_tokens > c.left / 5 || v.n_merges > c.left / 8)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: the vocabulary has %zu bytes, too few for %zu tokens and %zu merges",
                       path, size, v.n_tokens, v.n_merges);
    if (v.bos_token_id < -1 || v.eos_token_id < -1 || v.bos_token_id >= (int64_t)v.n_tokens ||
        v.eos_token_id >= (int64_t)v.n_tokens)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: the vocabulary's BOS and EOS ids are %d and %d, expected -1 to %zu",
                       path, (int)v.bos_token_id, (int)v.eos_token_id, v.n_tokens - 1);
    v.pre = take_text(&c);
    v.chat_template = take_text(&c);
    v.kinds = (const uint8_t *)take(&c, v.n_tokens).data;
    ds_text *texts = ds_new(v.n_tokens, sizeof *texts), *merges = ds_new(v.n_merges, 2 * sizeof *merges);
    dsv2_status status = DSV2_OK;
    if (texts == NULL || merges == NULL)
        status = ds_fail_memory("the vocabulary", (v.n_tokens + 2 * v.n_merges) * sizeof *texts);
    for (size_t i = 0; i < v.n_tokens && status == DSV2_OK; i++)
        texts[i] = take_text(&c);
    for (size_t i = 0; i < 2 * v.n_merges && status == DSV2_OK; i++)
        merges[i] = take_text(&c);
    if (status == DSV2_OK && c.cut)
        status = ds_fail(DSV2_ERROR_FORMAT,
                         "%s: the vocabulary is cut: its %zu bytes end before %zu tokens and %zu merges do", path, size,
                         v.n_tokens, v.n_merges);
    v.texts = texts;
    v.merges = merges;
    if (status == DSV2_OK)
        status = ds_tokenizer_from_vocabulary(&v, tokenizer);
    ds_free(merges);
    ds_free(texts);
    return status;
}

/* Reads a pack's tokenizer.json, and what was beside that. */
static dsv2_status read_json(const ds_container *container, const char *json, size_t size, dsv2_tokenizer **tokenizer)
{
    const char *path = ds_container_path(container), *text;
    dsv2_tokenizer *t;
    dsv2_status status = ds_tokenizer_from_json(path, json, size, &t);
    if (status != DSV2_OK)
        return status;
    for (int file = 0; file < DS_TOKENIZER_FILES && status == DSV2_OK; file++) {
        ds_pack_text(container, ds_tokenizer_files[file], &text, &size);
        if (text != NULL)
            status = ds_tokenizer_configure(t, file, path, text, size);
    }
    if (status == DSV2_OK)
        *tokenizer = t;
    else
        ds_tokenizer_destroy(t);
    return status;
}

dsv2_status ds_pack_tokenizer(const ds_container *container, dsv2_tokenizer **tokenizer)
{
    const char *path = ds_container_path(container), *text;
    size_t size;
    *tokenizer = NULL;
    ds_pack_text(container, "tokenizer.json", &text, &size);
    if (text != NULL)
        return read_json(container, text, size, tokenizer);
    ds_pack_text(container, "vocabulary", &text, &size);
    return text == NULL ? DSV2_OK : read_vocabulary(path, text, size, tokenizer);
}

/* GGUF: a header, metadata by key, tensor infos, then the tensors' bytes, aligned. Little-endian, versions 2 and 3.
 * Every length is checked against what is left of the file before it is used. */
#include "formats/container.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    HEADER_BYTES = 4 + 4 + 8 + 8,     /* magic, version, tensors, values */
    MIN_VALUE_BYTES = 8 + 4 + 1,      /* an empty key, a type, a byte */
    MIN_TENSOR_BYTES = 8 + 4 + 4 + 8, /* an empty name, no dimensions, a type, an offset */
    MAX_NAME = 65535,                 /* bytes of a key or a tensor's name: the specification's bound for keys */
    DEFAULT_ALIGNMENT = 32,
    MAX_ALIGNMENT = 1 << 16,
    MAX_FILES = 4096, /* of a split model; the largest published have some tens */
    FIRST_HEAD = 2 << 20, /* bytes read at first; a published vocabulary has less than 8 MiB */
    MAX_HEAD = 256 << 20  /* of metadata and tensor infos; a file may claim its whole size */
};

/* The format's numbers for types of metadata. */
enum { T_U8, T_I8, T_U16, T_I16, T_U32, T_I32, T_F32, T_BOOL, T_STRING, T_ARRAY, T_U64, T_I64, T_F64, T_COUNT };

static const struct {
    const char *name;
    uint32_t bytes; /* 0: has a length of its own */
} value_types[T_COUNT] = {
    [T_U8] = {"u8", 1},       [T_I8] = {"i8", 1},   [T_U16] = {"u16", 2}, [T_I16] = {"i16", 2},
    [T_U32] = {"u32", 4},     [T_I32] = {"i32", 4}, [T_F32] = {"f32", 4}, [T_BOOL] = {"bool", 1},
    [T_STRING] = {"string", 0}, [T_ARRAY] = {"array", 0},
    [T_U64] = {"u64", 8},     [T_I64] = {"i64", 8}, [T_F64] = {"f64", 8},
};

/* The format's numbers for element types that are not read; ds_type_of_gguf knows the others. These have a block size
 * too, so that their extent is checked; 0 where the type was withdrawn before anyone could rely on it. */
static const struct {
    const char *name;
    uint32_t block, bytes;
} other_types[] = {
    [4] = {"Q4_2", 0, 0},
    [5] = {"Q4_3", 0, 0},
    [9] = {"Q8_1", 32, 40},
    [15] = {"Q8_K", 256, 292},
    [16] = {"IQ2_XXS", 256, 66},
    [17] = {"IQ2_XS", 256, 74},
    [18] = {"IQ3_XXS", 256, 98},
    [19] = {"IQ1_S", 256, 50},
    [21] = {"IQ3_S", 256, 110},
    [22] = {"IQ2_S", 256, 82},
    [24] = {"I8", 1, 1},
    [25] = {"I16", 1, 2},
    [26] = {"I32", 1, 4},
    [27] = {"I64", 1, 8},
    [28] = {"F64", 1, 8},
    [29] = {"IQ1_M", 256, 56},
    [31] = {"Q4_0_4_4", 0, 0},
    [32] = {"Q4_0_4_8", 0, 0},
    [33] = {"Q4_0_8_8", 0, 0},
    [34] = {"TQ1_0", 256, 54},
    [35] = {"TQ2_0", 256, 66},
    [36] = {"IQ4_NL_4_4", 0, 0},
    [37] = {"IQ4_NL_4_8", 0, 0},
    [38] = {"IQ4_NL_8_8", 0, 0},
    [39] = {"MXFP4", 32, 17},
    [40] = {"NVFP4", 64, 36},
    [41] = {"Q1_0", 128, 18},
};

/* Of any type of the format: its name, the elements and bytes of a block. False if the number is unknown. */
static bool find_type(uint32_t number, const char **name, uint64_t *block, uint64_t *bytes)
{
    ds_type type = ds_type_of_gguf(number);
    if (type != DS_TYPE_COUNT) {
        *name = ds_type_name(type);
        *block = ds_type_block(type);
        *bytes = ds_type_row_bytes(type, *block);
        return true;
    }
    if (number >= sizeof other_types / sizeof *other_types || other_types[number].name == NULL)
        return false;
    *name = other_types[number].name;
    *block = other_types[number].block;
    *bytes = other_types[number].bytes;
    return true;
}

/* ---- reading on ---- */

typedef struct cursor {
    const ds_file *file;
    uint64_t at;     /* never beyond the file's head */
    uint64_t needed; /* where the head must reach for reading to succeed; 0: it was long enough */
} cursor;

/* The next n bytes, or the reason why there are none; `what` is named in the message. Like the readers below it sets
 * its result in any case, so that compilers see it set. */
static dsv2_status take(cursor *c, uint64_t n, const char *what, const uint8_t **bytes)
{
    uint64_t left = c->file->size - c->at;
    *bytes = c->file->head == NULL ? NULL : c->file->head + c->at; /* an empty file has none */
    if (n > left)
        return ds_fail(DSV2_ERROR_FORMAT,
                       "%s: %s at byte %llu takes %llu bytes, but %llu are left: the file is cut or damaged",
                       c->file->path, what, (unsigned long long)c->at, (unsigned long long)n, (unsigned long long)left);
    if (c->at + n > c->file->head_size) {
        c->needed = c->at + n;
        return DSV2_ERROR_BUFFER; /* for read_file alone, which begins again with more of the file */
    }
    c->at += n;
    return DSV2_OK;
}

static dsv2_status take_u32(cursor *c, const char *what, uint32_t *value)
{
    const uint8_t *bytes;
    dsv2_status status = take(c, 4, what, &bytes);
    *value = status == DSV2_OK ? ds_read_u32(bytes) : 0;
    return status;
}

static dsv2_status take_u64(cursor *c, const char *what, uint64_t *value)
{
    const uint8_t *bytes;
    dsv2_status status = take(c, 8, what, &bytes);
    *value = status == DSV2_OK ? ds_read_u64(bytes) : 0;
    return status;
}

static dsv2_status take_string(cursor *c, const char *what, ds_text *text)
{
    uint64_t size;
    const uint8_t *bytes = NULL;
    dsv2_status status = take_u64(c, what, &size);
    if (status == DSV2_OK)
        status = take(c, size, what, &bytes);
    *text = (ds_text){(const char *)bytes, (size_t)size};
    return status;
}

/* A key or a tensor's name: `what` they are for. */
static dsv2_status take_name(cursor *c, const char *what, ds_text *name)
{
    uint64_t at = c->at;
    dsv2_status status = take_string(c, what, name);
    if (status == DSV2_OK && (name->size == 0 || name->size > MAX_NAME || memchr(name->data, '\0', name->size) != NULL))
        status = ds_fail(DSV2_ERROR_FORMAT, "%s: %s at byte %llu has %zu bytes, expected 1 to %d, none of them zero",
                         c->file->path, what, (unsigned long long)at, name->size, MAX_NAME);
    return status;
}

/* ---- metadata ---- */

static dsv2_status take_array(cursor *c, const char *what, ds_gguf_value *value)
{
    dsv2_status status = take_u32(c, what, &value->element);
    if (status == DSV2_OK)
        status = take_u64(c, what, &value->count);
    if (status != DSV2_OK)
        return status;
    if (value->element >= T_COUNT || value->element == T_ARRAY)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: %s is an array of type %u, expected a known type that is no array",
                       c->file->path, what, (unsigned)value->element);
    value->data = c->file->head == NULL ? NULL : c->file->head + c->at;
    uint64_t start = c->at;
    if (value->element == T_STRING) {
        /* Each takes its length at least, so a count that the file cannot hold ends within the file's size. */
        ds_text text;
        for (uint64_t i = 0; i < value->count && status == DSV2_OK; i++)
            status = take_string(c, what, &text);
    } else {
        uint64_t size;
        const uint8_t *bytes;
        if (!ds_mul(value->count, value_types[value->element].bytes, &size))
            size = UINT64_MAX;
        status = take(c, size, what, &bytes);
    }
    value->size = c->at - start;
    return status;
}

static dsv2_status take_value(cursor *c, ds_gguf_value *value)
{
    ds_text key;
    dsv2_status status = take_name(c, "a key", &key);
    if (status != DSV2_OK)
        return status;
    value->key = key.data;
    value->key_size = key.size;
    char what[224];
    snprintf(what, sizeof what, "value of %.*s", DS_QUOTED(key));
    status = take_u32(c, what, &value->type);
    if (status != DSV2_OK)
        return status;
    if (value->type >= T_COUNT)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: %s has type %u, expected 0 to %d", c->file->path, what,
                       (unsigned)value->type, T_COUNT - 1);
    if (value->type == T_ARRAY)
        return take_array(c, what, value);
    if (value->type == T_STRING) {
        ds_text text;
        status = take_string(c, what, &text);
        if (status == DSV2_OK) {
            value->data = (const uint8_t *)text.data;
            value->count = value->size = text.size;
        }
        return status;
    }
    value->count = 1;
    value->size = value_types[value->type].bytes;
    status = take(c, value->size, what, &value->data);
    if (status == DSV2_OK && value->type == T_BOOL && value->data[0] > 1)
        status = ds_fail(DSV2_ERROR_FORMAT, "%s: %s is %u, expected 0 or 1", c->file->path, what,
                         (unsigned)value->data[0]);
    return status;
}

static int compare_keys(const void *a, const void *b)
{
    const ds_gguf_value *x = a, *y = b;
    int order = memcmp(x->key, y->key, x->key_size < y->key_size ? x->key_size : y->key_size);
    return order != 0 ? order : x->key_size < y->key_size ? -1 : x->key_size > y->key_size;
}

/* The metadata of one file, sorted; *values is for the caller to free. */
static dsv2_status take_values(cursor *c, uint64_t count, ds_gguf_value **out)
{
    if (count > (c->file->size - c->at) / MIN_VALUE_BYTES)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: metadata count is %llu, more than the file's %llu bytes can hold",
                       c->file->path, (unsigned long long)count, (unsigned long long)c->file->size);
    ds_gguf_value *values = ds_new((size_t)count, sizeof *values);
    if (values == NULL)
        return ds_fail_memory("metadata", (size_t)count * sizeof *values);
    dsv2_status status = DSV2_OK;
    for (uint64_t i = 0; i < count && status == DSV2_OK; i++)
        status = take_value(c, &values[i]);
    if (status == DSV2_OK)
        qsort(values, (size_t)count, sizeof *values, compare_keys);
    for (uint64_t i = 1; i < count && status == DSV2_OK; i++)
        if (compare_keys(&values[i - 1], &values[i]) == 0)
            status = ds_fail(DSV2_ERROR_FORMAT, "%s: key %.*s is there twice", c->file->path,
                             ds_quoted(values[i].key, values[i].key_size), values[i].key);
    if (status != DSV2_OK) {
        ds_free(values);
        return status;
    }
    *out = values;
    return DSV2_OK;
}

static const ds_gguf_value *find_value(const ds_container *container, const char *key)
{
    ds_gguf_value wanted = {.key = key, .key_size = strlen(key)};
    return container->n_values == 0 ? NULL : bsearch(&wanted, container->values, container->n_values, sizeof wanted,
                                                     compare_keys);
}

bool ds_gguf_has(const ds_container *container, const char *key) { return find_value(container, key) != NULL; }

/* A missing value, or one of a wrong type. */
static dsv2_status fail_value(const ds_container *container, const char *key, const ds_gguf_value *value,
                              const char *expected)
{
    if (value == NULL)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: key %s is missing, expected %s", container->path, key, expected);
    bool array = value->type == T_ARRAY;
    return ds_fail(DSV2_ERROR_FORMAT, "%s: key %s is of type %s%s, expected %s", container->path, key,
                   array ? "array of " : "", value_types[array ? value->element : value->type].name, expected);
}

dsv2_status ds_gguf_u32(const ds_container *container, const char *key, uint32_t *out)
{
    const ds_gguf_value *value = find_value(container, key);
    uint64_t number = 0;
    bool negative = false;
    switch (value == NULL ? T_COUNT : value->type) {
    case T_I8:
        negative = value->data[0] >> 7;
        number = value->data[0];
        break;
    case T_U8:
        number = value->data[0];
        break;
    case T_I16:
        negative = ds_read_u16(value->data) >> 15;
        number = ds_read_u16(value->data);
        break;
    case T_U16:
        number = ds_read_u16(value->data);
        break;
    case T_I32:
        negative = ds_read_u32(value->data) >> 31;
        number = ds_read_u32(value->data);
        break;
    case T_U32:
        number = ds_read_u32(value->data);
        break;
    case T_I64:
        negative = ds_read_u64(value->data) >> 63;
        number = ds_read_u64(value->data);
        break;
    case T_U64:
        number = ds_read_u64(value->data);
        break;
    default:
        return fail_value(container, key, value, "an integer");
    }
    if (negative)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: key %s is negative, expected an integer of at least 0", container->path,
                       key);
    if (number > UINT32_MAX)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: key %s is %llu, expected at most %u", container->path, key,
                       (unsigned long long)number, (unsigned)UINT32_MAX);
    *out = (uint32_t)number;
    return DSV2_OK;
}

dsv2_status ds_gguf_f32(const ds_container *container, const char *key, float *out)
{
    const ds_gguf_value *value = find_value(container, key);
    if (value == NULL || (value->type != T_F32 && value->type != T_F64))
        return fail_value(container, key, value, "f32 or f64");
    if (value->type == T_F32) {
        uint32_t bits = ds_read_u32(value->data);
        memcpy(out, &bits, sizeof bits);
    } else {
        uint64_t bits = ds_read_u64(value->data);
        double number;
        memcpy(&number, &bits, sizeof bits);
        *out = (float)number;
    }
    return DSV2_OK;
}

dsv2_status ds_gguf_bool(const ds_container *container, const char *key, bool *out)
{
    const ds_gguf_value *value = find_value(container, key);
    if (value == NULL || value->type != T_BOOL)
        return fail_value(container, key, value, "bool");
    *out = value->data[0] != 0;
    return DSV2_OK;
}

dsv2_status ds_gguf_string(const ds_container *container, const char *key, ds_text *out)
{
    const ds_gguf_value *value = find_value(container, key);
    if (value == NULL || value->type != T_STRING)
        return fail_value(container, key, value, "string");
    *out = (ds_text){(const char *)value->data, (size_t)value->size};
    return DSV2_OK;
}

dsv2_status ds_gguf_strings(const ds_container *container, const char *key, ds_text **out, size_t *n)
{
    const ds_gguf_value *value = find_value(container, key);
    if (value == NULL || value->type != T_ARRAY || value->element != T_STRING)
        return fail_value(container, key, value, "array of string");
    ds_text *texts = ds_new((size_t)value->count, sizeof *texts);
    if (texts == NULL)
        return ds_fail_memory(key, (size_t)value->count * sizeof *texts);
    const uint8_t *at = value->data; /* lengths were checked when the file was opened */
    for (uint64_t i = 0; i < value->count; i++) {
        texts[i] = (ds_text){(const char *)at + 8, (size_t)ds_read_u64(at)};
        at += 8 + texts[i].size;
    }
    *out = texts;
    *n = (size_t)value->count;
    return DSV2_OK;
}

dsv2_status ds_gguf_array(const ds_container *container, const char *key, ds_gguf_element element, const void **values,
                          size_t *n)
{
    static const struct {
        uint32_t type;
        const char *expected;
    } elements[] = {[DS_GGUF_U8] = {T_U8, "array of u8"},
                    [DS_GGUF_I32] = {T_I32, "array of i32"},
                    [DS_GGUF_F32] = {T_F32, "array of f32"}};
    const ds_gguf_value *value = find_value(container, key);
    if (value == NULL || value->type != T_ARRAY || value->element != elements[element].type)
        return fail_value(container, key, value, elements[element].expected);
    *values = value->data;
    *n = (size_t)value->count;
    return DSV2_OK;
}

/* ---- tensors ---- */

/* What a file says of one tensor. */
typedef struct info {
    ds_text name;
    uint32_t n_dims, type;
    uint64_t dims[DS_TENSOR_MAX_DIMS]; /* outermost first */
    uint64_t offset;                     /* from the beginning of the data */
} info;

static dsv2_status take_info(cursor *c, info *tensor)
{
    dsv2_status status = take_name(c, "a tensor's name", &tensor->name);
    if (status != DSV2_OK)
        return status;
    char what[224];
    snprintf(what, sizeof what, "tensor %.*s", DS_QUOTED(tensor->name));
    status = take_u32(c, what, &tensor->n_dims);
    if (status != DSV2_OK)
        return status;
    if (tensor->n_dims > DS_TENSOR_MAX_DIMS)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: %s has %u dimensions, expected at most %d", c->file->path, what,
                       (unsigned)tensor->n_dims, DS_TENSOR_MAX_DIMS);
    for (uint32_t i = tensor->n_dims; i > 0 && status == DSV2_OK; i--) /* the file has the innermost first */
        status = take_u64(c, what, &tensor->dims[i - 1]);
    if (status == DSV2_OK)
        status = take_u32(c, what, &tensor->type);
    if (status == DSV2_OK)
        status = take_u64(c, what, &tensor->offset);
    return status;
}

/* Bytes of a tensor; 0 where its type's size is not known. */
static dsv2_status info_bytes(const ds_file *file, const info *tensor, uint64_t *bytes)
{
    const char *name;
    uint64_t block, block_bytes;
    *bytes = 0;
    if (!find_type(tensor->type, &name, &block, &block_bytes) || block == 0)
        return DSV2_OK;
    uint64_t cols = tensor->n_dims > 0 ? tensor->dims[tensor->n_dims - 1] : 1, elements = cols / block;
    if (cols % block != 0)
        return ds_fail(DSV2_ERROR_FORMAT,
                       "%s: tensor %.*s has rows of %llu elements, expected a multiple of %u, the block size of %s",
                       file->path,
                       DS_QUOTED(tensor->name), (unsigned long long)cols, (unsigned)block, name);
    bool fits = true;
    for (uint32_t i = 0; i + 1 < tensor->n_dims; i++)
        fits = fits && ds_mul(elements, tensor->dims[i], &elements);
    if (!fits || !ds_mul(elements, block_bytes, bytes))
        return ds_fail(DSV2_ERROR_FORMAT, "%s: tensor %.*s has dimensions whose product is beyond 64 bits", file->path,
                       DS_QUOTED(tensor->name));
    return DSV2_OK;
}

/* Adds one tensor to the container and says where it lies. */
static dsv2_status add_tensor(ds_container *container, const ds_file *file, const info *from, uint64_t data_begin,
                              uint64_t alignment, ds_extent *where)
{
    uint64_t bytes;
    dsv2_status status = info_bytes(file, from, &bytes);
    if (status != DSV2_OK)
        return status;
    if (from->offset % alignment != 0)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: tensor %.*s has offset %llu, expected a multiple of the alignment, %llu",
                       file->path, DS_QUOTED(from->name), (unsigned long long)from->offset,
                       (unsigned long long)alignment);
    uint64_t end;
    if (!ds_add(data_begin, from->offset, &where->begin) || !ds_add(where->begin, bytes, &end) || end > file->size)
        return ds_fail(DSV2_ERROR_FORMAT,
                       "%s: tensor %.*s has offset %llu and %llu bytes, which is beyond the file's end: the file is "
                        "cut "
                       "or damaged",
                       file->path, DS_QUOTED(from->name), (unsigned long long)from->offset,
                       (unsigned long long)bytes);
    where->end = end;
    where->name = from->name;

    char *name = ds_new(from->name.size + 1, 1);
    if (name == NULL)
        return ds_fail_memory("a tensor's name", from->name.size + 1);
    memcpy(name, from->name.data, from->name.size);
    ds_type type = ds_type_of_gguf(from->type);
    if (type != DS_TYPE_COUNT) {
        ds_tensor tensor = {.name = name,
                            .type = type,
                            .n_dims = from->n_dims,
                            .file = (uint32_t)(file - container->files),
                            .offset = where->begin,
                            .n_bytes = bytes,
                            .path = file->path};
        memcpy(tensor.dims, from->dims, sizeof tensor.dims);
        status = ds_container_add(container, &tensor);
    } else {
        char number[32];
        const char *type_name = number;
        uint64_t block, block_bytes;
        snprintf(number, sizeof number, "%u (unknown)", (unsigned)from->type);
        find_type(from->type, &type_name, &block, &block_bytes);
        status = ds_container_add_other(container, name, type_name, from->n_dims, file->path);
    }
    ds_free(name);
    return status;
}

static dsv2_status add_tensors(ds_container *container, cursor *c, uint64_t count, uint64_t alignment)
{
    if (count > (c->file->size - c->at) / MIN_TENSOR_BYTES)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: tensor count is %llu, more than the file's %llu bytes can hold",
                       c->file->path, (unsigned long long)count, (unsigned long long)c->file->size);
    info *infos = ds_new((size_t)count, sizeof *infos);
    ds_extent *extents = ds_new((size_t)count, sizeof *extents);
    dsv2_status status = DSV2_OK;
    if (infos == NULL || extents == NULL)
        status = ds_fail_memory("a list of tensors", (size_t)count * sizeof *infos);
    for (uint64_t i = 0; i < count && status == DSV2_OK; i++)
        status = take_info(c, &infos[i]);
    /* No wrap: the position is within the file, whose size is within 63 bits. */
    uint64_t data_begin = (c->at + alignment - 1) / alignment * alignment;
    for (uint64_t i = 0; i < count && status == DSV2_OK; i++)
        status = add_tensor(container, c->file, &infos[i], data_begin, alignment, &extents[i]);
    if (status == DSV2_OK)
        status = ds_check_overlap(c->file, extents, (size_t)count);
    ds_free(infos);
    ds_free(extents);
    return status;
}

/* ---- files ---- */

static dsv2_status take_header(cursor *c, uint64_t *n_tensors, uint64_t *n_values)
{
    const uint8_t *bytes;
    *n_tensors = *n_values = 0;
    dsv2_status status = take(c, HEADER_BYTES, "the header", &bytes);
    if (status != DSV2_OK)
        return status;
    uint32_t version = ds_read_u32(bytes + 4);
    if (memcmp(bytes, "GGUF", 4) != 0)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: magic is not \"GGUF\": not a GGUF file", c->file->path);
    if (version != 2 && version != 3)
        return ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: version is %u, this library reads versions 2 and 3%s",
                       c->file->path,
                       (unsigned)version, version != 0 &&
                       (version & 0xffffff) == 0 ? " in little-endian byte order" : "");
    *n_tensors = ds_read_u64(bytes + 8);
    *n_values = ds_read_u64(bytes + 16);
    return DSV2_OK;
}

/* A key of a file that has it or not. */
static dsv2_status optional_u32(const ds_container *container, const char *key, uint32_t fallback, uint32_t *value)
{
    *value = fallback;
    return ds_gguf_has(container, key) ? ds_gguf_u32(container, key, value) : DSV2_OK;
}

/* Reads the head of a file as far as it is in memory. */
static dsv2_status read_head(ds_container *container, cursor *c, ds_container *view)
{
    uint64_t n_tensors, n_values;
    dsv2_status status = take_header(c, &n_tensors, &n_values);
    if (status == DSV2_OK)
        status = take_values(c, n_values, &view->values);
    if (status != DSV2_OK)
        return status;
    const char *path = c->file->path;
    view->n_values = (size_t)n_values;
    view->path = c->file->path;
    uint32_t alignment;
    status = optional_u32(view, "general.alignment", DEFAULT_ALIGNMENT, &alignment);
    if (status != DSV2_OK)
        return status;
    if (alignment == 0 || alignment > MAX_ALIGNMENT || (alignment & (alignment - 1)) != 0)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: key general.alignment is %u, expected a power of two of at most %d",
                       path, (unsigned)alignment, MAX_ALIGNMENT);
    return add_tensors(container, c, n_tensors, alignment);
}

/* Opens one file and reads its head: tensors go to the container; metadata goes to `view`, which stands for this one
 * file. Nothing tells beforehand how long the head is: a longer piece is tried where one was too short. */
static dsv2_status read_file(ds_container *container, ds_file *file, const char *path, ds_container *view)
{
    dsv2_status status = ds_file_open(path, file);
    for (uint64_t head = FIRST_HEAD; status == DSV2_OK;) {
        status = ds_file_need_head(file, head);
        if (status != DSV2_OK)
            break;
        cursor c = {.file = file};
        ds_free(view->values);
        view->values = NULL;
        status = read_head(container, &c, view);
        if (c.needed == 0)
            break;
        if (c.needed > MAX_HEAD)
            return ds_fail(DSV2_ERROR_FORMAT, "%s: metadata and tensor infos take %llu bytes or more, expected at most "
                           "%d", path, (unsigned long long)c.needed, MAX_HEAD);
        head = c.needed > 4 * head ? c.needed : 4 * head < MAX_HEAD ? 4 * head : MAX_HEAD;
        status = DSV2_OK;
    }
    return status;
}

/* The name of file `index` of a split model, from that of the first; NULL without memory. `path` was found to end in
 * the first's suffix. */
static char *split_path(const char *path, size_t prefix, uint32_t index, uint32_t count)
{
    char suffix[64];
    snprintf(suffix, sizeof suffix, "-%05u-of-%05u.gguf", (unsigned)index + 1, (unsigned)count);
    char *name = ds_new(prefix + sizeof suffix, 1);
    if (name != NULL) {
        memcpy(name, path, prefix);
        strcpy(name + prefix, suffix);
    }
    return name;
}

/* One more file of a split model. */
static dsv2_status read_split(ds_container *container, const char *path, uint32_t index, uint32_t count)
{
    ds_container view = {0};
    uint32_t number, n_files;
    dsv2_status status = read_file(container, &container->files[index], path, &view);
    if (status == DSV2_OK)
        status = ds_gguf_u32(&view, "split.no", &number);
    if (status == DSV2_OK)
        status = ds_gguf_u32(&view, "split.count", &n_files);
    if (status == DSV2_OK && (number != index || n_files != count))
        status = ds_fail(DSV2_ERROR_FORMAT, "%s: keys split.no and split.count are %u and %u, expected %u and %u", path,
                         (unsigned)number, (unsigned)n_files, (unsigned)index, (unsigned)count);
    ds_free(view.values);
    ds_file_drop_head(&container->files[index]); /* names are copied, and the first file's metadata counts */
    return status;
}

/* Opens what belongs to the first file, whose metadata the container has. */
static dsv2_status read_splits(ds_container *container, const char *path)
{
    uint32_t count, number;
    dsv2_status status = optional_u32(container, "split.count", 0, &count);
    if (status == DSV2_OK)
        status = optional_u32(container, "split.no", 0, &number);
    if (status != DSV2_OK || count <= 1)
        return status;
    if (number != 0)
        return ds_fail(DSV2_ERROR_FORMAT,
                       "%s: key split.no is %u: open the first file of the %u, whose name ends in -00001-of-%05u.gguf",
                       path, (unsigned)number, (unsigned)count, (unsigned)count);
    if (count > MAX_FILES)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: key split.count is %u, expected at most %d", path, (unsigned)count,
                       MAX_FILES);
    char suffix[64];
    size_t length = strlen(path), suffix_length = (size_t)snprintf(suffix, sizeof suffix, "-00001-of-%05u.gguf",
                                                                   (unsigned)count);
    if (length < suffix_length || strcmp(path + length - suffix_length, suffix) != 0)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: key split.count is %u, expected a file name that ends in %s", path,
                       (unsigned)count, suffix);
    ds_file *files = ds_new(count, sizeof *files);
    if (files == NULL)
        return ds_fail_memory("the list of files", count * sizeof *files);
    files[0] = container->files[0];
    ds_free(container->files);
    container->files = files;
    container->n_files = count;
    for (uint32_t i = 1; i < count && status == DSV2_OK; i++) {
        char *name = split_path(path, length - suffix_length, i, count);
        status = name == NULL ? ds_fail_memory("a path", length) : read_split(container, name, i, count);
        ds_free(name);
    }
    uint32_t expected;
    uint64_t n_tensors = (uint64_t)container->n_tensors + container->n_others;
    if (status == DSV2_OK)
        status = optional_u32(container, "split.tensors.count", (uint32_t)n_tensors, &expected);
    if (status == DSV2_OK && expected != n_tensors)
        status = ds_fail(DSV2_ERROR_FORMAT, "%s: key split.tensors.count is %u, but the files hold %llu tensors", path,
                         (unsigned)expected, (unsigned long long)n_tensors);
    return status;
}

dsv2_status ds_gguf_open(const char *path, const ds_logger *logger, ds_container **out)
{
    ds_container *container = ds_container_create(DS_FORMAT_GGUF, path, 1);
    if (container == NULL)
        return DSV2_ERROR_MEMORY;
    ds_container view = {0};
    dsv2_status status = read_file(container, &container->files[0], path, &view);
    container->values = view.values;
    container->n_values = view.n_values;
    if (status == DSV2_OK)
        status = read_splits(container, path);
    if (status == DSV2_OK)
        status = ds_container_finish(container);
    if (status != DSV2_OK) {
        ds_container_close(container);
        return status;
    }
    ds_log(logger, DSV2_LOG_INFO, "%s: %zu tensors in %zu GGUF files", path, container->n_tensors, container->n_files);
    *out = container;
    return DSV2_OK;
}

bool ds_is_gguf(const char *path) { return ds_file_begins(path, "GGUF", 4); }

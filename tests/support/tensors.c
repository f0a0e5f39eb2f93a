#include "support/tensors.h"

#include <check.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const test_goldens[TEST_GOLDENS] = {"lite", "full", "plain", "v3"};
const char *const test_golden_folders[TEST_GOLDENS] = {TEST_DATA "/goldens/lite", TEST_DATA "/goldens/full",
                                                       TEST_DATA "/goldens/plain", TEST_DATA "/goldens/v3"};

enum { BUFFERS = 64 };

const char *test_format(const char *format, ...)
{
    static _Thread_local char buffers[BUFFERS][512];
    static _Thread_local unsigned next;
    char *buffer = buffers[next++ % BUFFERS];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(buffer, sizeof buffers[0], format, arguments);
    va_end(arguments);
    return buffer;
}

char *test_read_file(const char *path, size_t *size)
{
    FILE *file = fopen(path, "rb");
    ck_assert_msg(file != NULL, "%s: cannot open", path);
    ck_assert(fseek(file, 0, SEEK_END) == 0);
    long end = ftell(file);
    ck_assert(end >= 0 && fseek(file, 0, SEEK_SET) == 0);
    char *data = malloc((size_t)end + 1);
    ck_assert(data != NULL && fread(data, 1, (size_t)end, file) == (size_t)end);
    fclose(file);
    data[end] = 0;
    if (size != NULL)
        *size = (size_t)end;
    return data;
}

void test_write_file(const char *path, const void *data, size_t size)
{
    FILE *file = fopen(path, "wb");
    ck_assert_msg(file != NULL, "%s", path);
    ck_assert(fwrite(data, 1, size, file) == size && fclose(file) == 0);
}

static test_tensor *new_tensor(test_tensors *tensors, const char *name, const char *dtype)
{
    if (tensors->n == tensors->capacity) {
        tensors->capacity = tensors->capacity * 2 + 64;
        tensors->tensors = realloc(tensors->tensors, tensors->capacity * sizeof *tensors->tensors);
        ck_assert(tensors->tensors != NULL);
    }
    test_tensor *tensor = &tensors->tensors[tensors->n++];
    *tensor = (test_tensor){.name = strdup(name)};
    ck_assert(tensor->name != NULL && strlen(dtype) < sizeof tensor->dtype);
    strcpy(tensor->dtype, dtype);
    return tensor;
}

static void keep(test_tensors *tensors, void *memory)
{
    tensors->memory = realloc(tensors->memory, (tensors->n_memory + 1) * sizeof *tensors->memory);
    ck_assert(tensors->memory != NULL);
    tensors->memory[tensors->n_memory++] = memory;
}

void test_tensors_read(test_tensors *tensors, const char *path)
{
    size_t size;
    uint8_t *file = (uint8_t *)test_read_file(path, &size);
    keep(tensors, file);
    uint64_t header_size;
    memcpy(&header_size, file, sizeof header_size);
    ck_assert(header_size <= size - 8);
    json_t *header = json_loadb((const char *)file + 8, (size_t)header_size, 0, NULL);
    ck_assert_msg(json_is_object(header), "%s: no header", path);
    const char *name;
    json_t *entry;
    json_object_foreach(header, name, entry) {
        if (strcmp(name, "__metadata__") == 0)
            continue;
        test_tensor *tensor = new_tensor(tensors, name, json_string_value(json_object_get(entry, "dtype")));
        json_t *shape = json_object_get(entry, "shape"), *offsets = json_object_get(entry, "data_offsets");
        tensor->n_dims = json_array_size(shape);
        ck_assert(tensor->n_dims <= 4);
        for (size_t i = 0; i < tensor->n_dims; i++)
            tensor->dims[i] = (size_t)json_integer_value(json_array_get(shape, i));
        size_t first = (size_t)json_integer_value(json_array_get(offsets, 0)),
               end = (size_t)json_integer_value(json_array_get(offsets, 1));
        ck_assert(first <= end && end <= size - 8 - header_size);
        tensor->data = file + 8 + header_size + first;
        tensor->n_bytes = end - first;
    }
    json_decref(header);
}

const test_tensor *test_tensors_find(const test_tensors *tensors, const char *name)
{
    for (size_t i = 0; i < tensors->n; i++)
        if (strcmp(tensors->tensors[i].name, name) == 0)
            return &tensors->tensors[i];
    return NULL;
}

const test_tensor *test_tensors_need(const test_tensors *tensors, const char *name, const char *dtype)
{
    const test_tensor *tensor = test_tensors_find(tensors, name);
    ck_assert_msg(tensor != NULL, "no tensor %s", name);
    ck_assert_str_eq(tensor->dtype, dtype);
    return tensor;
}

void test_tensors_add(test_tensors *tensors, const char *name, const char *dtype, size_t n_dims, const size_t *dims,
                      void *data, size_t n_bytes)
{
    test_tensor *tensor = new_tensor(tensors, name, dtype);
    tensor->n_dims = n_dims;
    memcpy(tensor->dims, dims, n_dims * sizeof *dims);
    tensor->data = data;
    tensor->n_bytes = n_bytes;
    keep(tensors, data);
}

void test_tensors_write(const test_tensors *tensors, const char *path)
{
    json_t *header = json_object();
    size_t offset = 0;
    for (size_t i = 0; i < tensors->n; i++) {
        const test_tensor *tensor = &tensors->tensors[i];
        json_t *shape = json_array();
        for (size_t d = 0; d < tensor->n_dims; d++)
            json_array_append_new(shape, json_integer((json_int_t)tensor->dims[d]));
        json_object_set_new(header, tensor->name,
                            json_pack("{s:s, s:o, s:[I, I]}", "dtype", tensor->dtype, "shape", shape, "data_offsets",
                                      (json_int_t)offset, (json_int_t)(offset + tensor->n_bytes)));
        offset += tensor->n_bytes;
    }
    char *text = json_dumps(header, JSON_COMPACT);
    ck_assert(text != NULL);
    uint64_t size = strlen(text);
    FILE *file = fopen(path, "wb");
    ck_assert_msg(file != NULL, "%s: cannot create", path);
    ck_assert(fwrite(&size, sizeof size, 1, file) == 1 && fwrite(text, 1, (size_t)size, file) == size);
    for (size_t i = 0; i < tensors->n; i++)
        ck_assert(fwrite(tensors->tensors[i].data, 1, tensors->tensors[i].n_bytes, file) ==
                  tensors->tensors[i].n_bytes);
    ck_assert(fclose(file) == 0);
    free(text);
    json_decref(header);
}

void test_tensors_free(test_tensors *tensors)
{
    for (size_t i = 0; i < tensors->n; i++)
        free(tensors->tensors[i].name);
    for (size_t i = 0; i < tensors->n_memory; i++)
        free(tensors->memory[i]);
    free(tensors->tensors);
    free(tensors->memory);
    *tensors = (test_tensors){0};
}

#include "formats/container.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

ds_container *ds_container_create(ds_format format, const char *path, size_t n_files)
{
    ds_container *container = ds_new(1, sizeof *container);
    if (container == NULL)
        goto no_memory;
    container->format = format;
    container->path = ds_copy_string(path);
    container->files = ds_new(n_files, sizeof *container->files);
    if (container->path == NULL || container->files == NULL)
        goto no_memory;
    container->n_files = n_files;
    return container;
no_memory:
    ds_container_close(container);
    (void)ds_fail_memory("the list of files", n_files * sizeof *container->files);
    return NULL;
}

void ds_container_close(ds_container *container)
{
    if (container == NULL)
        return;
    for (size_t i = 0; i < container->n_tensors; i++)
        ds_free((char *)(uintptr_t)container->tensors[i].name);
    for (size_t i = 0; i < container->n_others; i++) {
        ds_free(container->others[i].name);
        ds_free(container->others[i].type);
    }
    for (size_t i = 0; i < container->n_files; i++)
        ds_file_close(&container->files[i]);
    ds_free(container->texts);
    ds_free(container->tensors);
    ds_free(container->others);
    ds_free(container->values);
    ds_free(container->files);
    ds_free(container->path);
    ds_free(container);
}

dsv2_status ds_container_add(ds_container *container, const ds_tensor *tensor)
{
    char *name = ds_copy_string(tensor->name);
    if (name == NULL ||
        !ds_grow(&container->tensors, &container->tensors_capacity, container->n_tensors + 1, sizeof *tensor)) {
        ds_free(name);
        return ds_fail_memory("the list of tensors", (container->n_tensors + 1) * sizeof *tensor);
    }
    ds_tensor *added = &container->tensors[container->n_tensors++];
    *added = *tensor;
    added->name = name;
    return DSV2_OK;
}

dsv2_status ds_container_add_other(ds_container *container, const char *name, const char *type, uint32_t n_dims,
                                   const char *path)
{
    ds_other_tensor other = {ds_copy_string(name), ds_copy_string(type), n_dims, path};
    if (other.name == NULL || other.type == NULL ||
        !ds_grow(&container->others, &container->others_capacity, container->n_others + 1, sizeof other)) {
        ds_free(other.name);
        ds_free(other.type);
        return ds_fail_memory("the list of tensors", (container->n_others + 1) * sizeof other);
    }
    container->others[container->n_others++] = other;
    return DSV2_OK;
}

static int compare_tensors(const void *a, const void *b)
{
    return strcmp(((const ds_tensor *)a)->name, ((const ds_tensor *)b)->name);
}

static int compare_others(const void *a, const void *b)
{
    return strcmp(((const ds_other_tensor *)a)->name, ((const ds_other_tensor *)b)->name);
}

static dsv2_status fail_twice(const char *name, const char *path, const char *other_path)
{
    return ds_fail(DSV2_ERROR_FORMAT, "%s: tensor %s is there twice, the other in %s", path, name, other_path);
}

dsv2_status ds_container_finish(ds_container *container)
{
    ds_tensor *tensors = container->tensors;
    ds_other_tensor *others = container->others;
    if (container->n_tensors > 0)
        qsort(tensors, container->n_tensors, sizeof *tensors, compare_tensors);
    if (container->n_others > 0)
        qsort(others, container->n_others, sizeof *others, compare_others);
    for (size_t i = 1; i < container->n_tensors; i++)
        if (strcmp(tensors[i - 1].name, tensors[i].name) == 0)
            return fail_twice(tensors[i].name, tensors[i].path, tensors[i - 1].path);
    for (size_t i = 0; i < container->n_others; i++) {
        if (i > 0 && strcmp(others[i - 1].name, others[i].name) == 0)
            return fail_twice(others[i].name, others[i].path, others[i - 1].path);
        const ds_tensor *tensor = ds_container_find(container, others[i].name);
        if (tensor != NULL)
            return fail_twice(tensor->name, tensor->path, others[i].path);
    }
    return DSV2_OK;
}

static int compare_extents(const void *a, const void *b)
{
    const ds_extent *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end;
}

void ds_sort_extents(ds_extent *extents, size_t n) { qsort(extents, n, sizeof *extents, compare_extents); }

dsv2_status ds_check_overlap(const ds_file *file, ds_extent *extents, size_t n)
{
    ds_sort_extents(extents, n);
    for (size_t i = 1; i < n; i++) {
        ds_text name = extents[i].name, other = extents[i - 1].name;
        if (extents[i].begin < extents[i - 1].end)
            return ds_fail(DSV2_ERROR_FORMAT, "%s: tensor %.*s begins inside tensor %.*s", file->path,
                           DS_QUOTED(name), DS_QUOTED(other));
    }
    return DSV2_OK;
}

const ds_tensor *ds_container_find(const ds_container *container, const char *name)
{
    ds_tensor key = {.name = name};
    return container->n_tensors == 0
               ? NULL
               : bsearch(&key, container->tensors, container->n_tensors, sizeof key, compare_tensors);
}

const ds_other_tensor *ds_container_find_other(const ds_container *container, const char *name)
{
    ds_other_tensor key = {.name = (char *)(uintptr_t)name};
    return container->n_others == 0 ? NULL
                                    : bsearch(&key, container->others, container->n_others, sizeof key, compare_others);
}

bool ds_container_has(const ds_container *container, const char *name)
{
    return ds_container_find(container, name) != NULL || ds_container_find_other(container, name) != NULL;
}

dsv2_status ds_container_require(const ds_container *container, const char *name, const ds_tensor **tensor)
{
    *tensor = ds_container_find(container, name);
    if (*tensor != NULL)
        return DSV2_OK;
    const ds_other_tensor *other = ds_container_find_other(container, name);
    if (other == NULL)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: tensor %s is missing", container->path, name);
    return ds_fail(DSV2_ERROR_UNSUPPORTED,
                   "%s: tensor %s has element type %s and %u dimensions, which this library does not read", other->path,
                   name, other->type, (unsigned)other->n_dims);
}

size_t ds_container_count(const ds_container *container) { return container->n_tensors; }

const ds_tensor *ds_container_tensor(const ds_container *container, size_t index) { return &container->tensors[index]; }

ds_format ds_container_format(const ds_container *container) { return container->format; }

const char *ds_format_name(ds_format format)
{
    static const char *const names[] = {
        [DS_FORMAT_SAFETENSORS] = "safetensors", [DS_FORMAT_GGUF] = "gguf", [DS_FORMAT_PACK] = "pack"};
    return names[format];
}

const char *ds_container_path(const ds_container *container) { return container->path; }

dsv2_status ds_container_check_same(const ds_container *container)
{
    dsv2_status status = DSV2_OK;
    for (size_t i = 0; i < container->n_files && status == DSV2_OK; i++)
        status = ds_file_check_same(&container->files[i]);
    return status;
}

void ds_container_close_files(ds_container *container)
{
    for (size_t i = 0; i < container->n_files; i++) {
        assert(container->files[i].data == NULL);
        ds_os_close(&container->files[i].handle);
    }
}

dsv2_status ds_container_check(const ds_container *container)
{
    for (size_t i = 0; i < container->n_files; i++) {
        bool open = ds_os_is_open(container->files[i].handle);
        dsv2_status status = open ? ds_file_check(&container->files[i]) : DSV2_OK;
        if (status != DSV2_OK)
            return status;
    }
    return DSV2_OK;
}

bool ds_tensor_bytes(ds_type type, const uint64_t *dims, uint32_t n_dims, uint64_t *bytes)
{
    uint64_t cols = n_dims > 0 ? dims[n_dims - 1] : 1;
    *bytes = ds_type_row_bytes(type, cols);
    if (*bytes == 0 && cols != 0)
        return false;
    bool empty = cols == 0, interleaved = ds_type_is_interleaved(type);
    if (interleaved && n_dims != 2)
        return false;
    for (uint32_t i = 0; i + 1 < n_dims; i++) {
        uint64_t dim = dims[i];
        if (interleaved && !ds_add(dim, (DS_PANEL_ROWS - dim % DS_PANEL_ROWS) % DS_PANEL_ROWS, &dim))
            return false;
        /* The other dimensions of an empty tensor must be possible too: [2^63, 2^63, 0] is refused. */
        if (dim == 0)
            empty = true;
        else if (!ds_mul(*bytes > 0 ? *bytes : 1, dim, bytes))
            return false;
    }
    if (empty)
        *bytes = 0;
    return true;
}

static void unmap_all(ds_container *container)
{
    for (size_t i = 0; i < container->n_files; i++)
        ds_file_unmap(&container->files[i]);
}

/* *refused: the first file whose mapping the system refused, or NULL. */
static void map_all(ds_container *container, ds_os_sharing sharing, const ds_file **refused)
{
    *refused = NULL;
    for (size_t i = 0; i < container->n_files && *refused == NULL; i++)
        if (!ds_file_map(&container->files[i], sharing))
            *refused = &container->files[i];
}

dsv2_status ds_container_map(ds_container *container, const ds_logger *logger, bool *mapped)
{
    const ds_file *refused;
    *mapped = false;
    map_all(container, DS_OS_SHARED, &refused);
    for (ds_os_sharing sharing = DS_OS_SHARED; refused != NULL; sharing = DS_OS_PRIVATE) {
        ds_os_reason reason = ds_os_failure();
        unmap_all(container);
        if (reason.no_memory)
            return ds_fail(DSV2_ERROR_MEMORY, "%s: cannot map: %s", refused->path, reason.text);
        bool reads = sharing == DS_OS_PRIVATE;
        ds_log(logger, DSV2_LOG_WARNING, "%s: cannot map: %s: %s", refused->path, reason.text,
               reads ? "the weights are read into memory" : "trying a private mapping");
        if (reads)
            return DSV2_OK;
        map_all(container, DS_OS_PRIVATE, &refused);
    }
    for (size_t i = 0; i < container->n_tensors; i++) {
        ds_tensor *tensor = &container->tensors[i];
        tensor->data = container->files[tensor->file].data + tensor->offset;
    }
    *mapped = true;
    return DSV2_OK;
}

const ds_file *ds_container_file(const ds_container *container, const ds_tensor *tensor)
{
    return &container->files[tensor->file];
}

dsv2_status ds_container_read(const ds_container *container, const ds_tensor *tensor, uint64_t from, void *data,
                              size_t size)
{
    if (tensor->data == NULL)
        return ds_file_read_at(ds_container_file(container, tensor), tensor->offset + from, data, size);
    memcpy(data, (const uint8_t *)tensor->data + from, size);
    return DSV2_OK;
}

void ds_container_forget(const ds_container *container, const void *data, uint64_t size)
{
    /* As numbers: C orders only pointers into the same object, and `data` lies in one file at most. */
    uintptr_t begin = (uintptr_t)data;
    for (size_t i = 0; i < container->n_files; i++) {
        const ds_file *file = &container->files[i];
        uintptr_t first = (uintptr_t)file->data;
        if (file->data != NULL && begin >= first && begin - first < file->size)
            ds_file_forget(file, begin - first, size);
    }
}

#include "formats/container.h"

#include <stdlib.h>
#include <string.h>

dsv2_container *dsv2_container_create(const char *kind, const char *path, size_t n_files)
{
    dsv2_container *container = dsv2_new(1, sizeof *container);
    if (container == NULL)
        goto no_memory;
    container->kind = kind;
    container->path = dsv2_copy_string(path);
    container->files = dsv2_new(n_files, sizeof *container->files);
    if (container->path == NULL || container->files == NULL)
        goto no_memory;
    for (size_t i = 0; i < n_files; i++)
        container->files[i].fd = -1;
    container->n_files = n_files;
    return container;
no_memory:
    dsv2_container_close(container);
    (void)dsv2_fail_memory("the list of files", n_files * sizeof *container->files);
    return NULL;
}

void dsv2_container_close(dsv2_container *container)
{
    if (container == NULL)
        return;
    for (size_t i = 0; i < container->n_tensors; i++)
        dsv2_free((char *)(uintptr_t)container->tensors[i].name);
    for (size_t i = 0; i < container->n_others; i++) {
        dsv2_free(container->others[i].name);
        dsv2_free(container->others[i].type);
    }
    for (size_t i = 0; i < container->n_files; i++)
        dsv2_file_unmap(&container->files[i]);
    dsv2_free(container->texts);
    dsv2_free(container->tensors);
    dsv2_free(container->others);
    dsv2_free(container->values);
    dsv2_free(container->files);
    dsv2_free(container->path);
    dsv2_free(container);
}

dsv2_status dsv2_container_add(dsv2_container *container, const dsv2_tensor *tensor)
{
    char *name = dsv2_copy_string(tensor->name);
    if (name == NULL || !dsv2_grow(&container->tensors, &container->tensors_capacity, container->n_tensors + 1, sizeof *tensor)) {
        dsv2_free(name);
        return dsv2_fail_memory("the list of tensors", (container->n_tensors + 1) * sizeof *tensor);
    }
    dsv2_tensor *added = &container->tensors[container->n_tensors++];
    *added = *tensor;
    added->name = name;
    return DSV2_OK;
}

dsv2_status dsv2_container_add_other(dsv2_container *container, const char *name, const char *type, uint32_t n_dims,
                                     const char *path)
{
    dsv2_other_tensor other = {dsv2_copy_string(name), dsv2_copy_string(type), n_dims, path};
    if (other.name == NULL || other.type == NULL ||
        !dsv2_grow(&container->others, &container->others_capacity, container->n_others + 1, sizeof other)) {
        dsv2_free(other.name);
        dsv2_free(other.type);
        return dsv2_fail_memory("the list of tensors", (container->n_others + 1) * sizeof other);
    }
    container->others[container->n_others++] = other;
    return DSV2_OK;
}

static int compare_tensors(const void *a, const void *b)
{
    return strcmp(((const dsv2_tensor *)a)->name, ((const dsv2_tensor *)b)->name);
}

static int compare_others(const void *a, const void *b)
{
    return strcmp(((const dsv2_other_tensor *)a)->name, ((const dsv2_other_tensor *)b)->name);
}

static dsv2_status fail_twice(const char *name, const char *path, const char *other_path)
{
    return dsv2_fail(DSV2_ERROR_FORMAT, "%s: tensor %s is there twice, the other in %s", path, name, other_path);
}

dsv2_status dsv2_container_finish(dsv2_container *container)
{
    dsv2_tensor *tensors = container->tensors;
    dsv2_other_tensor *others = container->others;
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
        const dsv2_tensor *tensor = dsv2_container_find(container, others[i].name);
        if (tensor != NULL)
            return fail_twice(tensor->name, tensor->path, others[i].path);
    }
    return DSV2_OK;
}

static int compare_extents(const void *a, const void *b)
{
    const dsv2_extent *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end;
}

dsv2_status dsv2_check_overlap(const dsv2_file *file, dsv2_extent *extents, size_t n)
{
    enum { SHOWN = 200 }; /* bytes of a name */
    qsort(extents, n, sizeof *extents, compare_extents);
    for (size_t i = 1; i < n; i++) {
        dsv2_text name = extents[i].name, other = extents[i - 1].name;
        if (extents[i].begin < extents[i - 1].end)
            return dsv2_fail(DSV2_ERROR_FORMAT, "%s: tensor %.*s begins inside tensor %.*s", file->path,
                             name.size > SHOWN ? SHOWN : (int)name.size, name.data, other.size > SHOWN ? SHOWN : (int)other.size,
                             other.data);
    }
    return DSV2_OK;
}

const dsv2_tensor *dsv2_container_find(const dsv2_container *container, const char *name)
{
    dsv2_tensor key = {.name = name};
    return container->n_tensors == 0 ? NULL : bsearch(&key, container->tensors, container->n_tensors, sizeof key, compare_tensors);
}

const dsv2_other_tensor *dsv2_container_find_other(const dsv2_container *container, const char *name)
{
    dsv2_other_tensor key = {.name = (char *)(uintptr_t)name};
    return container->n_others == 0 ? NULL : bsearch(&key, container->others, container->n_others, sizeof key, compare_others);
}

bool dsv2_container_has(const dsv2_container *container, const char *name)
{
    return dsv2_container_find(container, name) != NULL || dsv2_container_find_other(container, name) != NULL;
}

dsv2_status dsv2_container_require(const dsv2_container *container, const char *name, const dsv2_tensor **tensor)
{
    *tensor = dsv2_container_find(container, name);
    if (*tensor != NULL)
        return DSV2_OK;
    const dsv2_other_tensor *other = dsv2_container_find_other(container, name);
    if (other == NULL)
        return dsv2_fail(DSV2_ERROR_FORMAT, "%s: tensor %s is missing", container->path, name);
    return dsv2_fail(DSV2_ERROR_UNSUPPORTED,
                     "%s: tensor %s has element type %s and %u dimensions, which this library does not read", other->path, name,
                     other->type, (unsigned)other->n_dims);
}

size_t dsv2_container_count(const dsv2_container *container) { return container->n_tensors; }

const dsv2_tensor *dsv2_container_tensor(const dsv2_container *container, size_t index) { return &container->tensors[index]; }

const char *dsv2_container_kind(const dsv2_container *container) { return container->kind; }

const char *dsv2_container_path(const dsv2_container *container) { return container->path; }

dsv2_status dsv2_container_check(const dsv2_container *container)
{
    for (size_t i = 0; i < container->n_files; i++) {
        dsv2_status status = dsv2_file_check(&container->files[i]);
        if (status != DSV2_OK)
            return status;
    }
    return DSV2_OK;
}

bool dsv2_tensor_bytes(dsv2_type type, const uint64_t *dims, uint32_t n_dims, uint64_t *bytes)
{
    uint64_t cols = n_dims > 0 ? dims[n_dims - 1] : 1;
    *bytes = dsv2_type_row_bytes(type, cols);
    if (*bytes == 0 && cols != 0)
        return false;
    bool empty = cols == 0, packed = dsv2_type_is_packed(type);
    if (packed && n_dims != 2)
        return false; /* packed are matrices alone */
    for (uint32_t i = 0; i + 1 < n_dims; i++) {
        uint64_t dim = dims[i];
        if (packed && !dsv2_add(dim, (DSV2_PACK_ROWS - dim % DSV2_PACK_ROWS) % DSV2_PACK_ROWS, &dim))
            return false;
        /* An empty tensor's other dimensions are still those of a real one: [2^63, 2^63, 0] is none. */
        if (dim == 0)
            empty = true;
        else if (!dsv2_mul(*bytes > 0 ? *bytes : 1, dim, bytes))
            return false;
    }
    if (empty)
        *bytes = 0;
    return true;
}

void dsv2_container_forget(const dsv2_container *container, const void *data, uint64_t size)
{
    const uint8_t *begin = data;
    for (size_t i = 0; i < container->n_files; i++) {
        const dsv2_file *file = &container->files[i];
        if (file->data != NULL && begin >= file->data && begin < file->data + file->size)
            dsv2_file_forget(file, (uint64_t)(begin - file->data), size);
    }
}

#include "base/base.h"

#include <stdio.h>
#include <string.h>

dsv2_status ds_open_regular(const char *path, ds_os_access access, ds_os_file *file, uint64_t *size)
{
    ds_os_kind kind;
    *size = 0;
    if (!ds_os_open(path, access, file))
        return ds_fail_io(path, "open");
    dsv2_status status = DSV2_OK;
    if (!ds_os_kind_and_size(*file, &kind, size))
        status = ds_fail_io(path, "stat");
    else if (kind != DS_OS_FILE)
        status = ds_fail(DSV2_ERROR_IO, "%s: not a regular file", path);
    if (status != DSV2_OK) {
        ds_os_close(file);
        *size = 0;
    }
    return status;
}

dsv2_status ds_file_open(const char *path, ds_file *file)
{
    *file = (ds_file){0};
    dsv2_status status = ds_open_regular(path, DS_OS_READ, &file->handle, &file->size);
    if (status != DSV2_OK)
        return status;
    file->path = ds_copy_string(path);
    if (file->path == NULL)
        status = ds_fail_memory("a path", strlen(path) + 1);
    else if (!ds_os_stamp_of(file->handle, &file->stamp))
        status = ds_fail_io(path, "stat");
    else
        file->size = file->stamp.size;
    if (status != DSV2_OK)
        ds_file_close(file);
    return status;
}

void ds_file_close(ds_file *file)
{
    ds_file_unmap(file);
    ds_file_drop_head(file);
    ds_os_close(&file->handle);
    ds_free(file->path);
    *file = (ds_file){0};
}

static bool is_same(const ds_os_stamp *a, const ds_os_stamp *b)
{
    return a->size == b->size && memcmp(a->content, b->content, sizeof a->content) == 0 &&
           memcmp(a->state, b->state, sizeof a->state) == 0;
}

static dsv2_status fail_changed(const ds_file *file, uint64_t size)
{
    return ds_fail(DSV2_ERROR_IO,
                   "%s: was %llu bytes when opened and is %llu now: the file was changed while in use; open the "
                   "model again", file->path, (unsigned long long)file->size, (unsigned long long)size);
}

dsv2_status ds_file_read_at(const ds_file *file, uint64_t offset, void *data, size_t size)
{
    size_t got;
    if (!ds_os_read(file->handle, offset, data, size, &got))
        return ds_fail_io(file->path, "read");
    if (got == size)
        return DSV2_OK;
    dsv2_status status = ds_file_check(file);
    return status != DSV2_OK ? status : fail_changed(file, offset + got); /* it has grown again since */
}

dsv2_status ds_file_need_head(ds_file *file, uint64_t size)
{
    size_t needed = (size_t)(size < file->size ? size : file->size);
    if (needed <= file->head_size)
        return DSV2_OK;
    uint8_t *head = ds_new(needed, 1);
    if (head == NULL)
        return ds_fail_memory(file->path, needed);
    dsv2_status status = ds_file_read_at(file, 0, head, needed);
    if (status != DSV2_OK) {
        ds_free(head);
        return status;
    }
    ds_free(file->head);
    file->head = head;
    file->head_size = needed;
    return DSV2_OK;
}

void ds_file_drop_head(ds_file *file)
{
    ds_free(file->head);
    file->head = NULL;
    file->head_size = 0;
}

bool ds_file_map(ds_file *file, ds_os_sharing sharing)
{
    if (file->size == 0)
        return true;
    file->data = ds_os_map(file->handle, file->size, sharing);
    if (file->data == NULL)
        return false;
    ds_os_wish_large_pages(file->data, (size_t)file->size); /* which file systems with large folios grant */
    return true;
}

void ds_file_unmap(ds_file *file)
{
    if (file->data != NULL)
        ds_os_unmap(file->data, file->size);
    file->data = NULL;
}

void ds_file_forget(const ds_file *file, uint64_t offset, uint64_t size)
{
    /* Whole runs of 2 MiB are forgotten: touching a page brings in its neighbours, at most a huge page of them, also
     * those that were forgotten already or will not be touched themselves. */
    const uint64_t run = 2 << 20;
    uint64_t first = offset / run * run, end = (offset + size + run - 1) / run * run;
    if (end > file->size)
        end = file->size;
    if (first < end)
        ds_os_forget(file->data + first, (size_t)(end - first));
}

dsv2_status ds_file_check(const ds_file *file)
{
    ds_os_kind kind;
    uint64_t size;
    if (!ds_os_kind_and_size(file->handle, &kind, &size))
        return ds_fail_io(file->path, "stat");
    return size == file->size ? DSV2_OK : fail_changed(file, size);
}

dsv2_status ds_file_check_same(const ds_file *file)
{
    ds_os_stamp now;
    if (!ds_os_stamp_of(file->handle, &now))
        return ds_fail_io(file->path, "stat");
    if (now.size != file->size)
        return fail_changed(file, now.size);
    return is_same(&now, &file->stamp) ? DSV2_OK
                                       : ds_fail(DSV2_ERROR_IO, "%s: was changed while it was read", file->path);
}

dsv2_status ds_file_read(const char *path, uint64_t limit, char **data, size_t *size)
{
    ds_os_file file;
    uint64_t expected;
    dsv2_status status = ds_open_regular(path, DS_OS_READ, &file, &expected);
    if (status != DSV2_OK)
        return status;
    char *buffer = NULL;
    size_t got = 0;
    if (expected > limit)
        status = ds_fail(DSV2_ERROR_FORMAT, "%s: %llu bytes, expected at most %llu", path, (unsigned long long)expected,
                         (unsigned long long)limit);
    else if ((buffer = ds_new((size_t)expected + 1, 1)) == NULL)
        status = ds_fail_memory(path, (size_t)expected + 1);
    else if (!ds_os_read(file, 0, buffer, (size_t)expected, &got))
        status = ds_fail_io(path, "read");
    else if (got < expected)
        status = ds_fail(DSV2_ERROR_IO, "%s: was %llu bytes when opened, but ends after %zu: the file is being changed",
                         path, (unsigned long long)expected, got);
    ds_os_close(&file);
    if (status != DSV2_OK) {
        ds_free(buffer);
        return status;
    }
    *data = buffer;
    *size = got;
    return DSV2_OK;
}

char *ds_path_join(const char *folder, const char *name)
{
    size_t a = strlen(folder), b = strlen(name);
    char *path = ds_new(a + b + 2, 1);
    if (path == NULL)
        return NULL;
    snprintf(path, a + b + 2, "%s%s%s", folder, a > 0 && folder[a - 1] == '/' ? "" : "/", name);
    return path;
}

bool ds_file_begins(const char *path, const void *magic, size_t size)
{
    char found[16];
    ds_os_file file;
    size_t got;
    if (size > sizeof found || !ds_is_file(path) || !ds_os_open(path, DS_OS_READ, &file))
        return false;
    bool same = ds_os_read(file, 0, found, size, &got) && got == size && memcmp(found, magic, size) == 0;
    ds_os_close(&file);
    return same;
}

bool ds_is_folder(const char *path) { return ds_os_kind_of(path) == DS_OS_FOLDER; }
bool ds_is_file(const char *path) { return ds_os_kind_of(path) == DS_OS_FILE; }
bool ds_exists(const char *path) { return ds_os_kind_of(path) != DS_OS_NOTHING; }

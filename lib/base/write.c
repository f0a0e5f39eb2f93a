#include "base/base.h"

#include <string.h>

dsv2_status ds_writer_open(const char *path, ds_writer *writer)
{
    static const char suffix[] = ".XXXXXX";
    size_t length = strlen(path);
    *writer = (ds_writer){0};
    ds_os_kind kind = ds_os_kind_of(path);
    if (kind != DS_OS_NOTHING && kind != DS_OS_FILE) /* renaming would put a file in place of a device */
        return ds_fail(DSV2_ERROR_IO, "%s: not a regular file", path);
    writer->path = ds_copy_string(path);
    writer->temporary = ds_new(length + sizeof suffix, 1);
    if (writer->path == NULL || writer->temporary == NULL) {
        ds_writer_abort(writer);
        return ds_fail_memory("a path", length);
    }
    memcpy(writer->temporary, path, length);
    memcpy(writer->temporary + length, suffix, sizeof suffix);
    if (ds_os_create_temporary(writer->temporary, &writer->file))
        return DSV2_OK;
    dsv2_status status = ds_fail_io(path, "make a temporary file beside it");
    ds_free(writer->temporary); /* there is no file of this name to remove */
    writer->temporary = NULL;
    ds_writer_abort(writer);
    return status;
}

static dsv2_status write_at(const ds_writer *writer, uint64_t offset, const void *data, size_t size)
{
    return ds_os_write(writer->file, offset, data, size) ? DSV2_OK : ds_fail_io(writer->path, "write");
}

dsv2_status ds_writer_append(ds_writer *writer, const void *data, size_t size)
{
    dsv2_status status = write_at(writer, writer->size, data, size);
    if (status == DSV2_OK)
        writer->size += size;
    return status;
}

dsv2_status ds_writer_replace(ds_writer *writer, uint64_t offset, const void *data, size_t size)
{
    return write_at(writer, offset, data, size);
}

/* Flushes the folder of `path`, so that a rename in it lasts. */
static dsv2_status flush_folder(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *folder = slash == NULL ? ds_copy_string(".") : ds_new((size_t)(slash - path) + 2, 1);
    if (folder == NULL)
        return ds_fail_memory("a path", strlen(path));
    if (slash != NULL)
        memcpy(folder, path, (size_t)(slash - path) + (slash == path)); /* "/" keeps its slash */
    dsv2_status status = ds_os_flush_folder(folder) ? DSV2_OK : ds_fail_io(folder, "flush the folder");
    ds_free(folder);
    return status;
}

dsv2_status ds_writer_commit(ds_writer *writer)
{
    dsv2_status status = DSV2_OK;
    /* A temporary file is for its owner alone. The finished file gets the permissions of the file that it replaces. */
    if (!ds_os_copy_permissions(writer->file, writer->path) || !ds_os_flush(writer->file))
        status = ds_fail_io(writer->path, "flush");
    else if (!ds_os_rename(writer->temporary, writer->path))
        status = ds_fail_io(writer->path, "rename the finished file");
    if (status != DSV2_OK) {
        ds_writer_abort(writer);
        return status;
    }
    ds_free(writer->temporary); /* the file has its final name now */
    writer->temporary = NULL;
    status = flush_folder(writer->path);
    ds_writer_abort(writer);
    return status;
}

void ds_writer_abort(ds_writer *writer)
{
    ds_os_close(&writer->file);
    if (writer->temporary != NULL)
        ds_os_remove(writer->temporary);
    ds_free(writer->temporary);
    ds_free(writer->path);
    *writer = (ds_writer){0};
}

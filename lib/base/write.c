#include "base/base.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

dsv2_status ds_writer_open(const char *path, ds_writer *writer)
{
    static const char suffix[] = ".XXXXXX";
    size_t length = strlen(path);
    *writer = (ds_writer){.fd = -1};
    writer->path = ds_copy_string(path);
    writer->temporary = ds_new(length + sizeof suffix, 1);
    if (writer->path == NULL || writer->temporary == NULL) {
        ds_writer_abort(writer);
        return ds_fail_memory("a path", length);
    }
    memcpy(writer->temporary, path, length);
    memcpy(writer->temporary + length, suffix, sizeof suffix);
    writer->fd = mkostemp(writer->temporary, O_CLOEXEC);
    if (writer->fd >= 0)
        return DSV2_OK;
    dsv2_status status = ds_fail_io(path, "make a temporary file beside it");
    ds_free(writer->temporary); /* there is no such file to remove */
    writer->temporary = NULL;
    ds_writer_abort(writer);
    return status;
}

static dsv2_status write_all(const ds_writer *writer, const uint8_t *data, size_t size, uint64_t offset)
{
    while (size > 0) {
        ssize_t n = pwrite(writer->fd, data, size, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return ds_fail_io(writer->path, "write");
        data += n;
        size -= (size_t)n;
        offset += (uint64_t)n;
    }
    return DSV2_OK;
}

dsv2_status ds_writer_append(ds_writer *writer, const void *data, size_t size)
{
    dsv2_status status = write_all(writer, data, size, writer->size);
    if (status == DSV2_OK)
        writer->size += size;
    return status;
}

dsv2_status ds_writer_replace(ds_writer *writer, uint64_t offset, const void *data, size_t size)
{
    return write_all(writer, data, size, offset);
}

dsv2_status ds_sync_folder(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *folder = slash == NULL ? ds_copy_string(".") : ds_new((size_t)(slash - path) + 2, 1);
    if (folder == NULL)
        return ds_fail_memory("a path", strlen(path));
    if (slash != NULL)
        memcpy(folder, path, (size_t)(slash - path) + (slash == path)); /* "/" keeps its slash */
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    /* Some file systems cannot flush a folder (EINVAL); then the rename is as durable as they make it. */
    dsv2_status status = DSV2_OK;
    if (fd < 0 || (fsync(fd) != 0 && errno != EINVAL))
        status = ds_fail_io(folder, "flush the folder");
    if (fd >= 0)
        close(fd);
    ds_free(folder);
    return status;
}

dsv2_status ds_writer_commit(ds_writer *writer)
{
    dsv2_status status = DSV2_OK;
    /* A temporary file is for its owner alone. The finished one keeps the mode of the file it replaces, or gets the usual one: the
     * process's umask cannot be read without changing it for a moment, under other threads. */
    struct stat before;
    mode_t mode = stat(writer->path, &before) == 0 ? before.st_mode & 0777 : 0644;
    if (fchmod(writer->fd, mode) != 0 || fsync(writer->fd) != 0)
        status = ds_fail_io(writer->path, "flush");
    else if (rename(writer->temporary, writer->path) != 0)
        status = ds_fail_io(writer->path, "rename the finished file");
    if (status != DSV2_OK) {
        ds_writer_abort(writer);
        return status;
    }
    ds_free(writer->temporary); /* has the final name now */
    writer->temporary = NULL;
    status = ds_sync_folder(writer->path);
    ds_writer_abort(writer);
    return status;
}

void ds_writer_abort(ds_writer *writer)
{
    if (writer->fd >= 0)
        close(writer->fd);
    if (writer->temporary != NULL)
        unlink(writer->temporary);
    ds_free(writer->temporary);
    ds_free(writer->path);
    *writer = (ds_writer){.fd = -1};
}

#include "base/base.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* Opens a regular file and learns its size. O_NONBLOCK: a FIFO in place of a file must not hang the host. */
static dsv2_status open_regular(const char *path, int *fd, uint64_t *size)
{
    *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (*fd < 0)
        return ds_fail_io(path, "open");
    struct stat status;
    dsv2_status result;
    if (fstat(*fd, &status) != 0)
        result = ds_fail_io(path, "stat");
    else if (!S_ISREG(status.st_mode))
        result = ds_fail(DSV2_ERROR_IO, "%s: not a regular file", path);
    else {
        *size = (uint64_t)status.st_size;
        return DSV2_OK;
    }
    close(*fd);
    *fd = -1;
    return result;
}

dsv2_status ds_file_map(const char *path, ds_file *file)
{
    *file = (ds_file){.fd = -1};
    dsv2_status status = open_regular(path, &file->fd, &file->size);
    if (status != DSV2_OK)
        return status;
    file->path = ds_copy_string(path);
    if (file->path == NULL) {
        status = ds_fail_memory("a path", strlen(path) + 1);
        goto fail;
    }
    if (file->size > 0) {
        void *data = file->size > SIZE_MAX ? MAP_FAILED : mmap(NULL, (size_t)file->size, PROT_READ, MAP_SHARED, file->fd, 0);
        if (data == MAP_FAILED) {
            status = ds_fail_io(path, "map");
            goto fail;
        }
        (void)madvise(data, (size_t)file->size, MADV_HUGEPAGE); /* a wish, which file systems with large folios grant */
        file->data = data;
    }
    return DSV2_OK;
fail:
    ds_file_unmap(file);
    return status;
}

void ds_file_unmap(ds_file *file)
{
    if (file->data != NULL)
        munmap((void *)(uintptr_t)file->data, (size_t)file->size);
    if (file->fd >= 0)
        close(file->fd);
    ds_free(file->path);
    *file = (ds_file){.fd = -1};
}

void ds_file_forget(const ds_file *file, uint64_t offset, uint64_t size)
{
    /* Touching a page brings in its neighbours, at most a huge page of them: also those that were forgotten already, or will not be
     * touched themselves. */
    const uint64_t run = 2 << 20;
    uint64_t first = offset / run * run, end = (offset + size + run - 1) / run * run;
    if (end > file->size)
        end = file->size;
    if (first < end)
        (void)madvise((void *)(uintptr_t)(file->data + first), (size_t)(end - first), MADV_DONTNEED); /* a wish */
}

dsv2_status ds_file_check(const ds_file *file)
{
    struct stat status;
    if (fstat(file->fd, &status) != 0)
        return ds_fail_io(file->path, "stat");
    if ((uint64_t)status.st_size != file->size)
        return ds_fail(DSV2_ERROR_IO, "%s: was %llu bytes when opened and is %lld now: the file was changed while in use; open "
                       "the model again", file->path, (unsigned long long)file->size, (long long)status.st_size);
    return DSV2_OK;
}

dsv2_status ds_file_read(const char *path, uint64_t limit, char **data, size_t *size)
{
    int fd;
    uint64_t expected;
    dsv2_status status = open_regular(path, &fd, &expected);
    if (status != DSV2_OK)
        return status;
    char *buffer = NULL;
    if (expected > limit) {
        status = ds_fail(DSV2_ERROR_FORMAT, "%s: %llu bytes, expected at most %llu", path, (unsigned long long)expected,
                         (unsigned long long)limit);
        goto done;
    }
    buffer = ds_new((size_t)expected + 1, 1);
    if (buffer == NULL) {
        status = ds_fail_memory(path, (size_t)expected + 1);
        goto done;
    }
    size_t got = 0;
    while (got < expected) {
        ssize_t n = read(fd, buffer + got, (size_t)expected - got);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            status = ds_fail_io(path, "read");
            goto done;
        }
        if (n == 0)
            break; /* it shrank meanwhile: what there is, is the file */
        got += (size_t)n;
    }
    *data = buffer;
    *size = got;
    buffer = NULL;
done:
    ds_free(buffer);
    close(fd);
    return status;
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
    if (size > sizeof found || !ds_is_file(path))
        return false;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return false;
    bool same = read(fd, found, size) == (ssize_t)size && memcmp(found, magic, size) == 0;
    close(fd);
    return same;
}

bool ds_is_folder(const char *path)
{
    struct stat status;
    return stat(path, &status) == 0 && S_ISDIR(status.st_mode);
}

bool ds_is_file(const char *path)
{
    struct stat status;
    return stat(path, &status) == 0 && S_ISREG(status.st_mode);
}

bool ds_exists(const char *path)
{
    struct stat status;
    return lstat(path, &status) == 0;
}

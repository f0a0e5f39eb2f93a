#include "base/base.h"

#include <string.h>

/* A temporary file of NAME is NAME.XXXXXX.dsv2tmp. Its writer holds a lock on it: what nobody has locked was left
 * behind by a process that died. */
static const char TEMPORARY_SUFFIX[] = ".XXXXXX.dsv2tmp";
enum { MARKS = 6 };

/* The folder of a path, to be freed; NULL without memory. */
static char *folder_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    if (slash == NULL)
        return ds_copy_string(".");
    char *folder = ds_new((size_t)(slash - path) + 2, 1);
    if (folder != NULL)
        memcpy(folder, path, (size_t)(slash - path) + (slash == path)); /* "/" keeps its slash */
    return folder;
}

static const char *name_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash == NULL ? path : slash + 1;
}

/* Replaces *path by what its link says, from the link's folder on. False without memory. */
static bool follow_link(char **path, const char *text)
{
    char *folder = text[0] == '/' ? NULL : folder_of(*path);
    char *next = text[0] == '/' ? ds_copy_string(text) : folder == NULL ? NULL : ds_path_join(folder, text);
    ds_free(folder);
    if (next == NULL)
        return false;
    ds_free(*path);
    *path = next;
    return true;
}

/* Replaces *path, which has the name `asked` in messages, by what links lead to. */
static dsv2_status follow_links(char **path, const char *asked, bool *is_link)
{
    enum { MAX_LINKS = 40, MAX_TEXT = 4096 };
    char *text = ds_new(MAX_TEXT, 1);
    dsv2_status status = text == NULL ? ds_fail_memory("a path", MAX_TEXT) : DSV2_OK;
    *is_link = false;
    for (int n_links = 0; status == DSV2_OK; n_links++) {
        if (!ds_os_read_link(*path, text, MAX_TEXT))
            status = ds_fail_io(asked, "read the link");
        else if (text[0] == '\0')
            break;
        else if (n_links == MAX_LINKS)
            status = ds_fail(DSV2_ERROR_IO, "%s: a chain of links that does not end", asked);
        else if (!follow_link(path, text))
            status = ds_fail_memory("a path", strlen(asked));
        *is_link = true;
    }
    ds_free(text);
    return status;
}

/* Whether a file may be put at `at`, which links at `path` lead to. */
static dsv2_status check_target(const char *path, const char *at, bool is_link)
{
    ds_os_kind kind = ds_os_kind_of(at);
    if (kind == DS_OS_UNKNOWN)
        return ds_fail_io(path, "look at the file");
    if (kind != DS_OS_NOTHING && kind != DS_OS_FILE) /* renaming would put a file in place of a device */
        return ds_fail(DSV2_ERROR_IO, "%s: not a regular file", path);
    if (is_link && ds_os_kind_of(path) != DS_OS_OTHER && !ds_os_same(path, at))
        /* Some links only the system can follow: those of /proc say what is no path. */
        return ds_fail(DSV2_ERROR_IO, "%s: a link to %s, where its file is not", path, at);
    return kind == DS_OS_FILE && !ds_os_may_write(at) ? ds_fail_io(path, "write") : DSV2_OK;
}

dsv2_status ds_writer_target(const char *path, char **target)
{
    bool is_link;
    if (path[0] == '\0')
        return ds_fail(DSV2_ERROR_IO, "the path is empty");
    char *at = ds_copy_string(path);
    if (at == NULL)
        return ds_fail_memory("a path", strlen(path));
    dsv2_status status = follow_links(&at, path, &is_link);
    if (status == DSV2_OK)
        status = check_target(path, at, is_link);
    if (status != DSV2_OK)
        ds_free(at);
    else
        *target = at;
    return status;
}

/* Whether `name` is that of a temporary file of `of`. */
static bool is_temporary(const char *name, const char *of)
{
    size_t length = strlen(of);
    if (strlen(name) != length + sizeof TEMPORARY_SUFFIX - 1 || memcmp(name, of, length) != 0 || name[length] != '.')
        return false;
    const char *marks = name + length + 1;
    for (int i = 0; i < MARKS; i++)
        if (!((marks[i] >= 'A' && marks[i] <= 'Z') || (marks[i] >= 'a' && marks[i] <= 'z') ||
              (marks[i] >= '0' && marks[i] <= '9')))
            return false;
    return strcmp(marks + MARKS, TEMPORARY_SUFFIX + 1 + MARKS) == 0;
}

/* Removes temporary files of this path that a process left when it died. What cannot be removed stays. */
static void remove_left_over(const ds_writer *writer)
{
    ds_os_folder *listing = ds_os_folder_open(writer->folder);
    if (listing == NULL)
        return;
    for (const char *name; ds_os_folder_next(listing, &name) && name != NULL;) {
        if (!is_temporary(name, name_of(writer->path)))
            continue;
        char *path = ds_path_join(writer->folder, name);
        if (path != NULL)
            ds_os_remove_unlocked(path);
        ds_free(path);
    }
    ds_os_folder_close(listing);
}

dsv2_status ds_writer_open(const char *path, ds_writer *writer)
{
    *writer = (ds_writer){0};
    dsv2_status status = ds_writer_target(path, &writer->path);
    if (status != DSV2_OK)
        return status;
    size_t length = strlen(writer->path);
    writer->folder = folder_of(writer->path);
    char *temporary = ds_new(length + sizeof TEMPORARY_SUFFIX, 1);
    if (writer->folder == NULL || temporary == NULL) {
        ds_free(temporary);
        ds_writer_abort(writer);
        return ds_fail_memory("a path", length);
    }
    remove_left_over(writer);
    memcpy(temporary, writer->path, length);
    memcpy(temporary + length, TEMPORARY_SUFFIX, sizeof TEMPORARY_SUFFIX);
    if (ds_os_create_temporary(temporary, temporary + length + 1, writer->path, &writer->file)) {
        writer->temporary = temporary;
        return DSV2_OK;
    }
    status = ds_fail_io(path, "make a temporary file beside it");
    ds_free(temporary); /* there is no file of this name to remove */
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

dsv2_status ds_writer_commit(ds_writer *writer)
{
    dsv2_status status = DSV2_OK;
    if (!ds_os_flush(writer->file))
        status = ds_fail_io(writer->path, "flush");
    else if (!ds_os_rename(writer->temporary, writer->path))
        status = ds_fail_io(writer->path, "rename the finished file");
    if (status != DSV2_OK) {
        ds_writer_abort(writer);
        return status;
    }
    ds_free(writer->temporary); /* the file has its final name now */
    writer->temporary = NULL;
    /* A folder that may not be read cannot be flushed. Flushing the file once more brings its new name to the disk on
     * file systems with a journal. */
    if (!ds_os_flush_folder(writer->folder) && !ds_os_flush(writer->file))
        status = ds_fail_io(writer->path,
                            "make its new name last: it is in place, but may be lost if the machine stops");
    ds_writer_abort(writer);
    return status;
}

void ds_writer_abort(ds_writer *writer)
{
    ds_os_close(&writer->file);
    if (writer->temporary != NULL)
        ds_os_remove(writer->temporary);
    ds_free(writer->temporary);
    ds_free(writer->folder);
    ds_free(writer->path);
    *writer = (ds_writer){0};
}

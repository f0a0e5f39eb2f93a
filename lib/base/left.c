/* How much memory the process can still take before the system ends it. */
#include "base/groups.h"

#include <stdio.h>
#include <stdlib.h>

/* The number behind a key at the beginning of a line; `missing` if there is no such line. */
static uint64_t number_of(const char *text, const char *key, uint64_t missing)
{
    size_t length = strlen(key);
    for (const char *line = text; line != NULL; line = strchr(line, '\n')) {
        line += line != text;
        if (strncmp(line, key, length) == 0)
            return strtoull(line + length, NULL, 10);
    }
    return missing;
}

static bool read_number(const char *root, const char *folder, const char *name, uint64_t *number)
{
    char text[DS_SYSTEM_TEXT];
    if (!ds_system_text(text, root, "%s/%s", folder, name) || text[0] < '0' || text[0] > '9') /* "max" */
        return false;
    *number = strtoull(text, NULL, 10);
    return true;
}

/* Cached files of a group, which the system gives up before it ends a process. */
static uint64_t cached_files(const char *root, const char *folder, bool version_2)
{
    char text[DS_SYSTEM_TEXT];
    if (!ds_system_text(text, root, "%s/memory.stat", folder))
        return 0;
    return version_2 ? number_of(text, "inactive_file ", 0) + number_of(text, "active_file ", 0)
                     : number_of(text, "total_inactive_file ", 0) + number_of(text, "total_active_file ", 0);
}

/* The least of the group's limits; none from 2^62 on, which is what the system writes for none. `high` ends no process,
 * but holds up every allocation beyond. */
static uint64_t limit_of(const char *root, const char *folder, bool version_2)
{
    const uint64_t none = UINT64_C(1) << 62;
    uint64_t limit, high;
    if (!read_number(root, folder, version_2 ? "memory.max" : "memory.limit_in_bytes", &limit))
        limit = UINT64_MAX;
    if (version_2 && read_number(root, folder, "memory.high", &high) && high < limit)
        limit = high;
    return limit < none ? limit : UINT64_MAX;
}

static void visit_group(void *context, const char *root, const char *folder, bool version_2)
{
    ds_memory_left *least = context;
    uint64_t limit = limit_of(root, folder, version_2), used;
    if (limit == UINT64_MAX ||
        !read_number(root, folder, version_2 ? "memory.current" : "memory.usage_in_bytes", &used))
        return;
    uint64_t cached = cached_files(root, folder, version_2);
    used = used > cached ? used - cached : 0;
    uint64_t left = limit > used ? limit - used : 0;
    if (left >= least->bytes)
        return;
    least->bytes = left;
    snprintf(least->whose, sizeof least->whose, "control group %.300s", folder);
}

bool ds_memory_left_in(const char *root, ds_memory_left *least)
{
    char text[DS_SYSTEM_TEXT];
    *least = (ds_memory_left){.bytes = UINT64_MAX, .whose = "the machine"};
    if (ds_system_text(text, root, "/proc/meminfo")) {
        uint64_t kibibytes = number_of(text, "MemAvailable:", UINT64_MAX / 1024);
        least->bytes = kibibytes < UINT64_MAX / 1024 ? kibibytes * 1024 : UINT64_MAX;
    }
    ds_groups_visit(root, "memory", visit_group, least);
    return least->bytes < UINT64_MAX;
}

/* How many threads are worth having: fast physical cores that the process may run on, and no more than its quota of
 * time. The answers stand in files of Linux; elsewhere none is found, and every processor counts.
 *
 * Two threads of one core share its arithmetic, and a region's end waits for the slowest thread: so neither a core's
 * second thread nor an efficiency core makes a pass faster. */
#include "base/base.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

enum { PATH_SIZE = 1024, TEXT_SIZE = 4096 };

/* Reads the beginning of the small file at `root` and what the format says. False if there is none. */
static bool read_text(char *text, const char *root, const char *format, ...) DSV2_PRINTF(3, 4);
static bool read_text(char *text, const char *root, const char *format, ...)
{
    char path[PATH_SIZE];
    ds_os_file file;
    size_t got = 0;
    va_list arguments;
    va_start(arguments, format);
    int n = snprintf(path, sizeof path, "%s", root);
    int more = n < 0 || n >= PATH_SIZE ? -1 : vsnprintf(path + n, sizeof path - (size_t)n, format, arguments);
    va_end(arguments);
    if (more < 0 || more >= PATH_SIZE - n || !ds_os_open(path, DS_OS_READ, &file))
        return false;
    bool is_read = ds_os_read(file, 0, text, TEXT_SIZE - 1, &got);
    ds_os_close(&file);
    text[is_read ? got : 0] = '\0';
    return is_read && got > 0;
}

/* ---- fast physical cores ---- */

static bool is_in(const ds_os_cpus *set, unsigned cpu) { return (set->words[cpu / 64] >> cpu % 64 & 1) != 0; }
static void put_in(ds_os_cpus *set, unsigned cpu) { set->words[cpu / 64] |= (uint64_t)1 << cpu % 64; }

static bool is_empty(const ds_os_cpus *set)
{
    for (unsigned i = 0; i < DS_OS_MAX_CPUS / 64; i++)
        if (set->words[i] != 0)
            return false;
    return true;
}

/* "0-3,8,10-11" */
static void parse_list(const char *text, ds_os_cpus *set)
{
    *set = (ds_os_cpus){{0}};
    for (char *end; *text >= '0' && *text <= '9'; text = *end == ',' ? end + 1 : end) {
        unsigned long first = strtoul(text, &end, 10), last = first;
        if (*end == '-')
            last = strtoul(end + 1, &end, 10);
        for (unsigned long cpu = first; cpu <= last && cpu < DS_OS_MAX_CPUS; cpu++)
            put_in(set, (unsigned)cpu);
    }
}

/* Keeps those processors whose number in cpuN/NAME is at least `percent` of the largest. Changes nothing if one of
 * them has no such number. */
static void keep_fast(const char *root, const char *name, unsigned percent, ds_os_cpus *set)
{
    char text[TEXT_SIZE];
    unsigned long long most = 0;
    for (unsigned cpu = 0; cpu < DS_OS_MAX_CPUS; cpu++) {
        if (!is_in(set, cpu))
            continue;
        if (!read_text(text, root, "/sys/devices/system/cpu/cpu%u/%s", cpu, name))
            return;
        most = ds_max(most, strtoull(text, NULL, 10));
    }
    ds_os_cpus fast = {{0}};
    for (unsigned cpu = 0; cpu < DS_OS_MAX_CPUS; cpu++)
        if (is_in(set, cpu) && read_text(text, root, "/sys/devices/system/cpu/cpu%u/%s", cpu, name) &&
            strtoull(text, NULL, 10) * 100 >= most * percent)
            put_in(&fast, cpu);
    if (!is_empty(&fast))
        *set = fast;
}

/* Leaves efficiency cores out, if the process may run on others. */
static void leave_slow_out(const char *root, ds_os_cpus *set)
{
    char text[TEXT_SIZE];
    ds_os_cpus fast;
    /* Intel's hybrid processors list their performance cores. */
    if (read_text(text, root, "/sys/devices/cpu_core/cpus")) {
        parse_list(text, &fast);
        for (unsigned i = 0; i < DS_OS_MAX_CPUS / 64; i++)
            fast.words[i] &= set->words[i];
        if (!is_empty(&fast))
            *set = fast;
        return;
    }
    /* ARM's cores have a capacity: middle cores have half of the largest's and more, efficiency cores less. By
     * frequency alone efficiency cores are nearer: Intel's have at most 79 % of the performance cores'. */
    keep_fast(root, "cpu_capacity", 50, set);
    keep_fast(root, "cpufreq/cpuinfo_max_freq", 80, set);
}

/* Whether a lower one of the set is a thread of the same core. */
static bool has_lower_sibling(const char *root, unsigned cpu, const ds_os_cpus *set)
{
    char text[TEXT_SIZE];
    ds_os_cpus core;
    if (!read_text(text, root, "/sys/devices/system/cpu/cpu%u/topology/core_cpus_list", cpu) &&
        !read_text(text, root, "/sys/devices/system/cpu/cpu%u/topology/thread_siblings_list", cpu))
        return false;
    parse_list(text, &core);
    for (unsigned lower = 0; lower < cpu; lower++)
        if (is_in(&core, lower) && is_in(set, lower))
            return true;
    return false;
}

unsigned ds_fast_cores(const char *root, const ds_os_cpus *allowed)
{
    ds_os_cpus set = *allowed;
    unsigned n = 0;
    leave_slow_out(root, &set);
    for (unsigned cpu = 0; cpu < DS_OS_MAX_CPUS; cpu++)
        n += is_in(&set, cpu) && !has_lower_sibling(root, cpu, &set);
    return n > 0 ? n : 1;
}

/* ---- the control groups' quota ---- */

/* A file of lines. A line that is longer than the buffer is passed over: no line that matters here is. */
typedef struct lines {
    ds_os_file file;
    uint64_t offset;
    size_t n;
    char buffer[TEXT_SIZE];
} lines;

static bool open_lines(lines *l, const char *root, const char *path)
{
    char full[PATH_SIZE];
    int n = snprintf(full, sizeof full, "%s%s", root, path);
    l->offset = l->n = 0;
    return n > 0 && n < PATH_SIZE && ds_os_open(full, DS_OS_READ, &l->file);
}

/* The next line, without its end; valid until the next call. NULL after the last. */
static char *next_line(lines *l)
{
    for (bool too_long = false;;) {
        size_t got = 0;
        if (!ds_os_read(l->file, l->offset, l->buffer, sizeof l->buffer - 1, &got) || got == 0)
            return NULL;
        l->buffer[got] = '\0';
        size_t length = strcspn(l->buffer, "\n");
        bool ends = length < got || got < sizeof l->buffer - 1;
        l->buffer[length] = '\0';
        l->offset += length < got ? length + 1 : got;
        if (ends && !too_long)
            return l->buffer;
        too_long = !ends;
    }
}

/* Ends the text at the next separator. Returns what follows; NULL if there is no separator. */
static char *cut(char *text, char separator)
{
    char *at = text == NULL ? NULL : strchr(text, separator);
    if (at == NULL)
        return NULL;
    *at = '\0';
    return at + 1;
}

/* Whether `word` is one of the words between commas. */
static bool lists(const char *words, const char *word)
{
    size_t length = strlen(word);
    for (const char *at = words; (at = strstr(at, word)) != NULL; at += length)
        if ((at == words || at[-1] == ',') && (at[length] == ',' || at[length] == '\0'))
            return true;
    return false;
}

/* A space in a path stands as \040. */
static void unescape(char *text)
{
    char *out = text;
    for (; *text != '\0'; text++)
        if (text[0] == '\\' && text[1] >= '0' && text[1] <= '3' && text[2] != '\0' && text[3] != '\0') {
            *out++ = (char)((text[1] - '0') * 64 + (text[2] - '0') * 8 + (text[3] - '0'));
            text += 3;
        } else {
            *out++ = *text;
        }
    *out = '\0';
}

/* Where a hierarchy of groups is mounted. */
typedef struct mounted {
    char point[PATH_SIZE], group[PATH_SIZE]; /* group: the one that is at the point */
} mounted;

/* One line of mountinfo: "36 35 98:0 GROUP POINT options optional... - TYPE source OPTIONS". */
static bool parse_mount(char *line, bool version_2, mounted *m)
{
    char *group = cut(cut(cut(line, ' '), ' '), ' '), *point = cut(group, ' '), *rest = cut(point, ' ');
    char *type = rest == NULL ? NULL : strstr(rest, " - ");
    if (type == NULL)
        return false;
    type += 3;
    char *options = cut(cut(type, ' '), ' ');
    if (options == NULL || strcmp(type, version_2 ? "cgroup2" : "cgroup") != 0)
        return false;
    if (!version_2 && !lists(options, "cpu"))
        return false;
    unescape(group);
    unescape(point);
    int n = snprintf(m->point, sizeof m->point, "%s", point), k = snprintf(m->group, sizeof m->group, "%s", group);
    return n < PATH_SIZE && k < PATH_SIZE;
}

static bool find_mount(const char *root, bool version_2, mounted *m)
{
    lines l;
    bool found = false;
    if (!open_lines(&l, root, "/proc/self/mountinfo"))
        return false;
    for (char *line; !found && (line = next_line(&l)) != NULL;)
        found = parse_mount(line, version_2, m);
    ds_os_close(&l.file);
    return found;
}

/* The quota of one group in processors, rounded up; 0: none. */
static unsigned quota_of(const char *root, const char *folder, bool version_2)
{
    char text[TEXT_SIZE];
    long long quota = -1, period = -1;
    if (version_2) {
        if (!read_text(text, root, "%s/cpu.max", folder) || sscanf(text, "%lld %lld", &quota, &period) != 2)
            return 0; /* "max 100000" */
    } else {
        if (read_text(text, root, "%s/cpu.cfs_quota_us", folder))
            quota = strtoll(text, NULL, 10);
        if (read_text(text, root, "%s/cpu.cfs_period_us", folder))
            period = strtoll(text, NULL, 10);
    }
    if (quota <= 0 || period <= 0)
        return 0;
    long long cpus = quota / period + (quota % period != 0);
    return cpus > DS_OS_MAX_CPUS ? DS_OS_MAX_CPUS : (unsigned)cpus;
}

static unsigned least(unsigned a, unsigned b) { return a == 0 || (b != 0 && b < a) ? b : a; }

/* The least quota of the group and of those that it is in, up to the one at the mount's point. */
static unsigned quota_along(const char *root, const mounted *m, const char *group, bool version_2)
{
    char folder[2 * PATH_SIZE];
    size_t point = strlen(m->point), above = strcmp(m->group, "/") == 0 ? 0 : strlen(m->group);
    /* A group outside of what is mounted ("/../x" in a namespace of groups) cannot be looked at. */
    bool is_inside = strncmp(group, m->group, above) == 0 && (group[above] == '/' || group[above] == '\0') &&
                     strstr(group, "/..") == NULL;
    if (snprintf(folder, sizeof folder, "%s%s", m->point, is_inside ? group + above : "") >= (int)sizeof folder)
        return 0;
    for (unsigned quota = 0;;) {
        quota = least(quota, quota_of(root, folder, version_2));
        char *slash = strrchr(folder + point, '/');
        if (slash == NULL)
            return quota;
        *slash = '\0';
    }
}

unsigned ds_cpu_quota(const char *root)
{
    lines l;
    mounted m;
    unsigned quota = 0;
    if (!open_lines(&l, root, "/proc/self/cgroup"))
        return least(quota_of(root, "/sys/fs/cgroup", true), quota_of(root, "/sys/fs/cgroup/cpu", false));
    for (char *line; (line = next_line(&l)) != NULL;) {
        char *controllers = cut(line, ':'), *group = cut(controllers, ':'); /* "4:cpu,cpuacct:/GROUP", "0::/GROUP" */
        if (group == NULL)
            continue;
        bool version_2 = controllers[0] == '\0';
        if ((version_2 || lists(controllers, "cpu")) && find_mount(root, version_2, &m))
            quota = least(quota, quota_along(root, &m, group, version_2));
    }
    ds_os_close(&l.file);
    return quota;
}

unsigned ds_default_threads(void)
{
    enum { MOST = 1024 }; /* that n_threads may be */
    ds_os_cpus allowed;
    ds_os_affinity(&allowed);
    unsigned n = least(ds_fast_cores("", &allowed), ds_cpu_quota(""));
    return n < MOST ? n : MOST;
}

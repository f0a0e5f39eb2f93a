#include "base/groups.h"

#include <stdarg.h>
#include <stdio.h>

enum { PATH_SIZE = 1024, TEXT_SIZE = DS_SYSTEM_TEXT };

bool ds_system_text(char *text, const char *root, const char *format, ...)
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
static bool parse_mount(char *line, const char *controller, bool version_2, mounted *m)
{
    char *group = cut(cut(cut(line, ' '), ' '), ' '), *point = cut(group, ' '), *rest = cut(point, ' ');
    char *type = rest == NULL ? NULL : strstr(rest, " - ");
    if (type == NULL)
        return false;
    type += 3;
    char *options = cut(cut(type, ' '), ' ');
    if (options == NULL || strcmp(type, version_2 ? "cgroup2" : "cgroup") != 0)
        return false;
    if (!version_2 && !lists(options, controller))
        return false;
    unescape(group);
    unescape(point);
    int n = snprintf(m->point, sizeof m->point, "%s", point), k = snprintf(m->group, sizeof m->group, "%s", group);
    return n < PATH_SIZE && k < PATH_SIZE;
}

static bool find_mount(const char *root, const char *controller, bool version_2, mounted *m)
{
    lines l;
    bool found = false;
    if (!open_lines(&l, root, "/proc/self/mountinfo"))
        return false;
    for (char *line; !found && (line = next_line(&l)) != NULL;)
        found = parse_mount(line, controller, version_2, m);
    ds_os_close(&l.file);
    return found;
}

/* Visits the group and those that it is in, up to the one at the mount's point. */
static void visit_along(const char *root, const mounted *m, const char *group, bool version_2, ds_group_fn visit,
                        void *context)
{
    char folder[2 * PATH_SIZE];
    size_t point = strlen(m->point), above = strcmp(m->group, "/") == 0 ? 0 : strlen(m->group);
    /* A group outside of what is mounted ("/../x" in a namespace of groups) cannot be looked at. */
    bool is_inside = strncmp(group, m->group, above) == 0 && (group[above] == '/' || group[above] == '\0') &&
                     strstr(group, "/..") == NULL;
    if (snprintf(folder, sizeof folder, "%s%s", m->point, is_inside ? group + above : "") >= (int)sizeof folder)
        return;
    for (;;) {
        visit(context, root, folder, version_2);
        char *slash = strrchr(folder + point, '/');
        if (slash == NULL)
            return;
        *slash = '\0';
    }
}

void ds_groups_visit(const char *root, const char *controller, ds_group_fn visit, void *context)
{
    lines l;
    mounted m;
    if (!open_lines(&l, root, "/proc/self/cgroup")) {
        snprintf(m.point, sizeof m.point, "/sys/fs/cgroup/%s", controller);
        visit(context, root, "/sys/fs/cgroup", true);
        visit(context, root, m.point, false);
        return;
    }
    for (char *line; (line = next_line(&l)) != NULL;) {
        char *controllers = cut(line, ':'), *group = cut(controllers, ':'); /* "4:cpu,cpuacct:/GROUP", "0::/GROUP" */
        if (group == NULL)
            continue;
        bool version_2 = controllers[0] == '\0';
        if ((version_2 || lists(controllers, controller)) && find_mount(root, controller, version_2, &m))
            visit_along(root, &m, group, version_2, visit, context);
    }
    ds_os_close(&l.file);
}

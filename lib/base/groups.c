#include "base/groups.h"

#include <stdarg.h>
#include <stdio.h>

enum { PATH_SIZE = 4096 + 64, TEXT_SIZE = DS_SYSTEM_TEXT }; /* Linux takes paths of less than 4096 bytes */

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

/* The whole file at `root` and `path`, which is the caller's to free; NULL if there is none. Such files do not say how
 * long they are, and take longest to read where reading begins in the middle: so each is read once, from end to end. */
static char *read_all(const char *root, const char *path)
{
    enum { MOST = 64 << 20 };
    char full[PATH_SIZE], *text = NULL;
    ds_os_file file;
    size_t capacity = 0, n = 0, got = 0;
    int length = snprintf(full, sizeof full, "%s%s", root, path);
    if (length < 0 || length >= PATH_SIZE || !ds_os_open(full, DS_OS_READ, &file))
        return NULL;
    do {
        n += got;
        if (n > MOST || !ds_grow(&text, &capacity, n + TEXT_SIZE, 1) ||
            !ds_os_read(file, n, text + n, capacity - n - 1, &got)) {
            ds_free(text);
            text = NULL;
        }
    } while (text != NULL && got > 0);
    ds_os_close(&file);
    if (text != NULL)
        text[n] = '\0';
    return text;
}

/* Takes the next line from *rest, without its end. NULL after the last. */
static char *next_line(char **rest)
{
    char *line = *rest, *end = strchr(line, '\n');
    if (*line == '\0')
        return NULL;
    *rest = end == NULL ? line + strlen(line) : end + 1;
    if (end != NULL)
        *end = '\0';
    return line;
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

/* Where a hierarchy of groups is mounted: strings of the text that was parsed. */
typedef struct mounted {
    const char *point, *group; /* group: the one that is at the point */
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
    *m = (mounted){point, strcmp(group, "/") == 0 ? "" : group};
    return true;
}

/* Whether `group` is what is mounted or inside. What is outside ("/../x" in a namespace of groups) cannot be seen. */
static bool is_inside(const mounted *m, const char *group)
{
    size_t length = strlen(m->group);
    return strncmp(group, m->group, length) == 0 && (group[length] == '/' || group[length] == '\0') &&
           strstr(group, "/..") == NULL;
}

/* Visits the group `below` the mount's point and those that it is in, up to the one at the point. */
static void visit_along(const char *root, const mounted *m, const char *below, bool version_2, ds_group_fn visit,
                        void *context)
{
    if (strcmp(below, "/") == 0)
        below = "";
    size_t point = strlen(m->point), size = point + strlen(below) + 1;
    char *folder = ds_new(size, 1);
    if (folder == NULL)
        return;
    snprintf(folder, size, "%s%s", m->point, below);
    for (char *slash = folder; slash != NULL;) {
        visit(context, root, folder, version_2);
        slash = strrchr(folder + point, '/');
        if (slash != NULL)
            *slash = '\0';
    }
    ds_free(folder);
}

/* The hierarchy of a line of /proc/self/cgroup, if that has the controller. */
static void visit_hierarchy(const char *root, char *line, const char *controller, ds_group_fn visit, void *context)
{
    char *controllers = cut(line, ':'), *group = cut(controllers, ':'); /* "4:cpu,cpuacct:/GROUP", "0::/GROUP" */
    bool version_2 = group != NULL && controllers[0] == '\0';
    if (group == NULL || (!version_2 && !lists(controllers, controller)))
        return;
    mounted m, first = {NULL, NULL};
    bool is_shown = false;
    char *mounts = read_all(root, "/proc/self/mountinfo"), *rest = mounts;
    for (char *mount; rest != NULL && (mount = next_line(&rest)) != NULL;) {
        if (!parse_mount(mount, controller, version_2, &m))
            continue;
        if (first.point == NULL)
            first = m;
        if (!is_inside(&m, group)) /* a bind mount may show another part of the groups */
            continue;
        visit_along(root, &m, group + strlen(m.group), version_2, visit, context);
        is_shown = true;
    }
    if (!is_shown && first.point != NULL)
        visit_along(root, &first, "", version_2, visit, context);
    ds_free(mounts);
}

void ds_groups_visit(const char *root, const char *controller, ds_group_fn visit, void *context)
{
    char version_1[64], *text = read_all(root, "/proc/self/cgroup"), *rest = text;
    if (text == NULL) {
        snprintf(version_1, sizeof version_1, "/sys/fs/cgroup/%s", controller);
        visit(context, root, "/sys/fs/cgroup", true);
        visit(context, root, version_1, false);
        return;
    }
    for (char *line; (line = next_line(&rest)) != NULL;)
        visit_hierarchy(root, line, controller, visit, context);
    ds_free(text);
}

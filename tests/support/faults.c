#include "support/faults.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

const char *const fault_names[FAULT_N_CALLS] = {
#define X(name) #name,
    FAULT_CALLS(X)
#undef X
};

static bool armed;
static fault_plan plan;
static fault_report report;

static bool is_allocation(fault_call call)
{
    return call == FAULT_malloc || call == FAULT_calloc || call == FAULT_realloc || call == FAULT_posix_memalign;
}

/* Files in which the system tells of itself: their descriptors. */
enum { MAX_DESCRIPTORS = 1024 };
static bool is_system[MAX_DESCRIPTORS];

static bool is_system_path(const char *path)
{
    return strncmp(path, "/proc/", 6) == 0 || strncmp(path, "/sys/", 5) == 0;
}

static bool is_system_file(int fd) { return fd >= 0 && fd < MAX_DESCRIPTORS && is_system[fd]; }

/* What is to become of this call. */
typedef enum verdict { GOES_THROUGH, HAS_EFFECT, ENDS_PROCESS_AFTER } verdict;

static verdict judge(fault_call call)
{
    if (!armed)
        return GOES_THROUGH;
    size_t number = ++report.seen[call];
    report.all += !is_allocation(call);
    if (plan.nth == 0 || (plan.any_call ? is_allocation(call) : call != plan.call))
        return GOES_THROUGH;
    if (plan.any_call)
        number = report.all;
    bool hit = plan.every ? number >= plan.nth && (!plan.alternates || (number - plan.nth) % 2 == 0)
                          : number == plan.nth;
    if (!hit)
        return GOES_THROUGH;
    report.hits++;
    errno = plan.error;
    if (plan.effect == FAULT_KILLS)
        kill(getpid(), SIGKILL);
    return plan.effect == FAULT_KILLS_AFTER ? ENDS_PROCESS_AFTER : HAS_EFFECT;
}

static void end_after(verdict v)
{
    if (v == ENDS_PROCESS_AFTER)
        kill(getpid(), SIGKILL);
}

static size_t shortened(size_t size, verdict v)
{
    if (v == ENDS_PROCESS_AFTER)
        return size <= 64 ? size : size - size / 2;
    return v == HAS_EFFECT && plan.effect == FAULT_SHORT && size > 7 ? 7 : size;
}

/* Defines the wrapper of a call; where the C library has a 64-bit name for the call, of that too. */
#define WRAP(result, name, symbol, fails, parameters, arguments)                                                       \
    result __real_##symbol parameters;                                                                                 \
    result __wrap_##symbol parameters;                                                                                 \
    result __wrap_##symbol parameters                                                                                  \
    {                                                                                                                  \
        verdict v = judge(FAULT_##name);                                                                               \
        if (v == HAS_EFFECT)                                                                                           \
            return fails;                                                                                              \
        result r = __real_##symbol arguments;                                                                          \
        end_after(v);                                                                                                  \
        return r;                                                                                                      \
    }
#define WRAP_64(result, name, fails, parameters, arguments)                                                            \
    WRAP(result, name, name, fails, parameters, arguments)                                                             \
    WRAP(result, name, name##64, fails, parameters, arguments)

WRAP_64(int, stat, -1, (const char *path, struct stat *status), (path, status))
WRAP_64(int, lstat, -1, (const char *path, struct stat *status), (path, status))
WRAP_64(int, fstat, -1, (int fd, struct stat *status), (fd, status))
WRAP(ssize_t, readlink, readlink, -1, (const char *path, char *text, size_t size), (path, text, size))
WRAP(int, faccessat, faccessat, -1, (int folder, const char *path, int mode, int flags), (folder, path, mode, flags))
WRAP(DIR *, opendir, opendir, NULL, (const char *path), (path))
WRAP_64(struct dirent *, readdir, NULL, (DIR *folder), (folder))
WRAP_64(int, ftruncate, -1, (int fd, off_t size), (fd, size))
WRAP(int, fdatasync, fdatasync, -1, (int fd), (fd))
WRAP(int, flock, flock, -1, (int fd, int operation), (fd, operation))
WRAP(int, fchown, fchown, -1, (int fd, uid_t owner, gid_t group), (fd, owner, group))
WRAP(int, fchmod, fchmod, -1, (int fd, mode_t mode), (fd, mode))
WRAP(int, rename, rename, -1, (const char *from, const char *to), (from, to))
WRAP(int, unlink, unlink, -1, (const char *path), (path))
WRAP_64(void *, mmap, MAP_FAILED, (void *address, size_t size, int protection, int flags, int fd, off_t offset),
        (address, size, protection, flags, fd, offset))
WRAP(int, madvise, madvise, -1, (void *address, size_t size, int advice), (address, size, advice))
WRAP(void *, malloc, malloc, NULL, (size_t size), (size))
WRAP(void *, calloc, calloc, NULL, (size_t n, size_t size), (n, size))
WRAP(void *, realloc, realloc, NULL, (void *memory, size_t size), (memory, size))
WRAP(int, posix_memalign, posix_memalign, ENOMEM, (void **memory, size_t alignment, size_t size),
     (memory, alignment, size))
WRAP(int, pthread_create, pthread_create, EAGAIN,
     (pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument),
     (thread, attributes, start, argument))

/* The file is closed whatever is said of it. */
int __real_close(int fd);
int __wrap_close(int fd);
int __wrap_close(int fd)
{
    verdict v = judge(FAULT_close);
    int error = errno, result = __real_close(fd);
    end_after(v);
    errno = v == HAS_EFFECT ? error : errno;
    return v == HAS_EFFECT ? -1 : result;
}

int __real_fsync(int fd);
int __wrap_fsync(int fd);
int __wrap_fsync(int fd)
{
    verdict v = judge(FAULT_fsync);
    int error = errno;
    if (v == HAS_EFFECT) {
        struct stat status;
        report.on_folder = __real_fstat(fd, &status) == 0 && S_ISDIR(status.st_mode);
        errno = error;
        return -1;
    }
    int result = __real_fsync(fd);
    end_after(v);
    return result;
}

#define WRAP_OPEN(symbol)                                                                                              \
    int __real_##symbol(const char *path, int flags, ...);                                                             \
    int __wrap_##symbol(const char *path, int flags, ...);                                                             \
    int __wrap_##symbol(const char *path, int flags, ...)                                                              \
    {                                                                                                                  \
        mode_t mode = 0;                                                                                               \
        verdict v = judge(FAULT_open);                                                                                 \
        if (v == HAS_EFFECT) {                                                                                         \
            report.on_folder = (flags & O_DIRECTORY) != 0;                                                             \
            report.on_system = is_system_path(path);                                                                   \
            return -1;                                                                                                 \
        }                                                                                                              \
        if ((flags & O_CREAT) != 0) {                                                                                  \
            va_list more;                                                                                              \
            va_start(more, flags);                                                                                     \
            mode = va_arg(more, mode_t);                                                                               \
            va_end(more);                                                                                              \
        }                                                                                                              \
        int fd = __real_##symbol(path, flags, mode);                                                                   \
        if (fd >= 0 && fd < MAX_DESCRIPTORS)                                                                           \
            is_system[fd] = is_system_path(path);                                                                      \
        end_after(v);                                                                                                  \
        return fd;                                                                                                     \
    }
WRAP_OPEN(open)
WRAP_OPEN(open64)

/* Whether the call is to end early: at the end of the file that is no fault. */
static bool ends_here(verdict v, int fd, off_t offset)
{
    struct stat status;
    if (v != HAS_EFFECT || plan.effect != FAULT_ENDS)
        return false;
    if (plan.call == FAULT_pread && __real_fstat(fd, &status) == 0 && offset >= status.st_size)
        report.hits--;
    return true;
}

#define WRAP_TRANSFER(name, symbol, memory)                                                                            \
    ssize_t __real_##symbol(int fd, memory data, size_t size, off_t offset);                                           \
    ssize_t __wrap_##symbol(int fd, memory data, size_t size, off_t offset);                                           \
    ssize_t __wrap_##symbol(int fd, memory data, size_t size, off_t offset)                                            \
    {                                                                                                                  \
        verdict v = judge(FAULT_##name);                                                                               \
        report.on_system = v == HAS_EFFECT ? is_system_file(fd) : report.on_system;                                    \
        if (v == HAS_EFFECT && plan.effect == FAULT_FAILS)                                                             \
            return -1;                                                                                                 \
        ssize_t done = ends_here(v, fd, offset) ? 0 : __real_##symbol(fd, data, shortened(size, v), offset);         \
        end_after(v);                                                                                                  \
        return done;                                                                                                   \
    }
WRAP_TRANSFER(pread, pread, void *)
WRAP_TRANSFER(pread, pread64, void *)
WRAP_TRANSFER(pwrite, pwrite, const void *)
WRAP_TRANSFER(pwrite, pwrite64, const void *)

void faults_arm(const fault_plan *wanted)
{
    static const fault_plan none;
    plan = wanted != NULL ? *wanted : none;
    report = (fault_report){.all = 0};
    armed = true;
}

fault_report faults_disarm(void)
{
    armed = false;
    return report;
}

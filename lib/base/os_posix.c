/* os.h on POSIX systems. On Linux also what Linux has beyond POSIX. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* affinity, madvise, flock, mkostemp (in POSIX since 2024) */
#endif
#include "base/os.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

_Static_assert(sizeof(off_t) == 8, "files may be longer than 2 GiB");

/* ---- failure: errno keeps the reason ---- */

/* The results of the two forms of strerror_r: GNU's returns the text, which may lie elsewhere; POSIX's fills the buffer
 * and returns 0. */
static inline void keep_gnu_text(const char *words, ds_os_reason *reason)
{
    if (words != reason->text)
        snprintf(reason->text, sizeof reason->text, "%s", words);
}

static inline void keep_posix_text(int failure, ds_os_reason *reason)
{
    if (failure != 0)
        snprintf(reason->text, sizeof reason->text, "unknown error");
}

ds_os_reason ds_os_failure(void)
{
    int number = errno;
    ds_os_reason reason = {.no_memory = number == ENOMEM};
    /* Not strerror, which may write to memory that all threads share. */
    _Generic(strerror_r(number, reason.text, sizeof reason.text), char *: keep_gnu_text, int: keep_posix_text)(
        strerror_r(number, reason.text, sizeof reason.text), &reason);
    return reason;
}

static bool fail(int number)
{
    errno = number;
    return false;
}

/* ---- threads and locks ---- */

_Static_assert(sizeof(pthread_t) <= sizeof(ds_thread) && _Alignof(pthread_t) <= _Alignof(ds_thread), "ds_thread");
_Static_assert(sizeof(pthread_mutex_t) <= sizeof(ds_mutex) && _Alignof(pthread_mutex_t) <= _Alignof(ds_mutex),
               "ds_mutex");
_Static_assert(sizeof(pthread_cond_t) <= sizeof(ds_cond) && _Alignof(pthread_cond_t) <= _Alignof(ds_cond), "ds_cond");

static pthread_mutex_t *posix_mutex(ds_mutex *mutex) { return (pthread_mutex_t *)(void *)mutex->opaque; }
static pthread_cond_t *posix_cond(ds_cond *cond) { return (pthread_cond_t *)(void *)cond->opaque; }

bool ds_thread_start(ds_thread *thread, void *(*start)(void *), void *argument)
{
    pthread_t posix;
    static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT};
    sigset_t blocked, before;
    sigfillset(&blocked);
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++)
        sigdelset(&blocked, faults[i]);
    pthread_sigmask(SIG_SETMASK, &blocked, &before);
    int failure = pthread_create(&posix, NULL, start, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failure != 0)
        return fail(failure);
    memcpy(thread->opaque, &posix, sizeof posix);
    return true;
}

void ds_thread_join(ds_thread *thread)
{
    pthread_t posix;
    memcpy(&posix, thread->opaque, sizeof posix);
    pthread_join(posix, NULL);
}

void ds_mutex_init(ds_mutex *mutex) { pthread_mutex_init(posix_mutex(mutex), NULL); }
void ds_mutex_destroy(ds_mutex *mutex) { pthread_mutex_destroy(posix_mutex(mutex)); }
void ds_mutex_lock(ds_mutex *mutex) { pthread_mutex_lock(posix_mutex(mutex)); }
void ds_mutex_unlock(ds_mutex *mutex) { pthread_mutex_unlock(posix_mutex(mutex)); }

void ds_cond_init(ds_cond *cond) { pthread_cond_init(posix_cond(cond), NULL); }
void ds_cond_destroy(ds_cond *cond) { pthread_cond_destroy(posix_cond(cond)); }
void ds_cond_wait(ds_cond *cond, ds_mutex *mutex) { pthread_cond_wait(posix_cond(cond), posix_mutex(mutex)); }
void ds_cond_signal(ds_cond *cond) { pthread_cond_signal(posix_cond(cond)); }
void ds_cond_broadcast(ds_cond *cond) { pthread_cond_broadcast(posix_cond(cond)); }

/* ---- processors ---- */

unsigned ds_os_cpus(void)
{
#if defined(__linux__)
    cpu_set_t set;
    CPU_ZERO(&set);
    int n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
#else
    long n = sysconf(_SC_NPROCESSORS_ONLN);
#endif
    return n > 0 ? (unsigned)n : 1;
}

#if defined(__linux__)
/* The beginning of a small text file; false if it cannot be read. */
static bool read_line(const char *path, char *line, size_t size)
{
    ds_os_file file;
    size_t got = 0;
    if (!ds_os_open(path, DS_OS_READ, &file))
        return false;
    bool done = ds_os_read(file, 0, line, size - 1, &got);
    ds_os_close(&file);
    line[done ? got : 0] = '\0';
    return done;
}
#endif

/* The control group's quota. Version 2 has "max 100000" or "QUOTA PERIOD" in one file, version 1 has two files. Inside
 * a container the group's own folder is mounted at the top. */
unsigned ds_os_cpu_quota(void)
{
    long long quota = -1, period = 0;
#if defined(__linux__)
    char line[64];
    if (read_line("/sys/fs/cgroup/cpu.max", line, sizeof line)) {
        if (sscanf(line, "%lld %lld", &quota, &period) != 2)
            quota = -1;
    } else {
        if (!read_line("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", line, sizeof line) || sscanf(line, "%lld", &quota) != 1)
            quota = -1;
        if (!read_line("/sys/fs/cgroup/cpu/cpu.cfs_period_us", line, sizeof line) || sscanf(line, "%lld", &period) != 1)
            period = 0;
    }
#endif
    if (quota <= 0 || period <= 0)
        return 0;
    long long cpus = quota / period + (quota % period != 0);
    return cpus > 1024 ? 1024 : (unsigned)cpus;
}

/* ---- memory ---- */

void *ds_os_new_aligned(size_t alignment, size_t size)
{
    void *memory;
    return posix_memalign(&memory, alignment, size) == 0 ? memory : NULL;
}

void ds_os_wish_large_pages(const void *memory, size_t size)
{
#if defined(MADV_HUGEPAGE)
    (void)madvise((void *)(uintptr_t)memory, size, MADV_HUGEPAGE);
#else
    (void)memory;
    (void)size;
#endif
}

/* ---- paths ---- */

static ds_os_kind kind_of(const struct stat *status)
{
    return S_ISREG(status->st_mode) ? DS_OS_FILE : S_ISDIR(status->st_mode) ? DS_OS_FOLDER : DS_OS_OTHER;
}

ds_os_kind ds_os_kind_of(const char *path)
{
    struct stat status;
    if (stat(path, &status) == 0)
        return kind_of(&status);
    return lstat(path, &status) == 0 ? DS_OS_OTHER : DS_OS_NOTHING;
}

bool ds_os_rename(const char *from, const char *to) { return rename(from, to) == 0; }
bool ds_os_remove(const char *path) { return unlink(path) == 0; }

bool ds_os_flush_folder(const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return false;
    /* Some file systems cannot flush a folder (EINVAL): a rename is then as durable as they make it. */
    int failure = fsync(fd) != 0 && errno != EINVAL ? errno : 0;
    close(fd);
    return failure == 0 || fail(failure);
}

ds_os_folder *ds_os_folder_open(const char *path) { return (ds_os_folder *)(void *)opendir(path); }

const char *ds_os_folder_next(ds_os_folder *folder)
{
    const struct dirent *entry = readdir((DIR *)(void *)folder);
    return entry == NULL ? NULL : entry->d_name;
}

void ds_os_folder_close(ds_os_folder *folder) { closedir((DIR *)(void *)folder); }

/* ---- open files: the id is the descriptor plus 1 ---- */

static int fd_of(ds_os_file file) { return (int)file.id - 1; }

/* False for a descriptor of -1, which makes the file none. */
static bool set_file(int fd, ds_os_file *file)
{
    file->id = (intptr_t)fd + 1;
    return fd >= 0;
}

bool ds_os_open(const char *path, ds_os_access access, ds_os_file *file)
{
    int mode = access == DS_OS_UPDATE ? O_RDWR : O_RDONLY;
    mode |= O_CLOEXEC | O_NOCTTY | O_NONBLOCK; /* O_NONBLOCK: a FIFO must not hang the host */
    return set_file(open(path, mode), file);
}

bool ds_os_create_temporary(char *name, ds_os_file *file) { return set_file(mkostemp(name, O_CLOEXEC), file); }

void ds_os_close(ds_os_file *file)
{
    if (ds_os_is_open(*file))
        close(fd_of(*file));
    *file = (ds_os_file){0};
}

bool ds_os_kind_and_size(ds_os_file file, ds_os_kind *kind, uint64_t *size)
{
    struct stat status;
    if (fstat(fd_of(file), &status) != 0)
        return false;
    *kind = kind_of(&status);
    *size = (uint64_t)status.st_size;
    return true;
}

/* Some systems refuse to read or write more at once. */
enum { MOST_BYTES = 1 << 30 };

bool ds_os_read(ds_os_file file, uint64_t offset, void *data, size_t size, size_t *got)
{
    *got = 0;
    while (*got < size) {
        size_t n = size - *got < MOST_BYTES ? size - *got : MOST_BYTES;
        ssize_t done = pread(fd_of(file), (uint8_t *)data + *got, n, (off_t)(offset + *got));
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return false;
        if (done == 0)
            break;
        *got += (size_t)done;
    }
    return true;
}

bool ds_os_write(ds_os_file file, uint64_t offset, const void *data, size_t size)
{
    const uint8_t *bytes = data;
    while (size > 0) {
        ssize_t done = pwrite(fd_of(file), bytes, size < MOST_BYTES ? size : MOST_BYTES, (off_t)offset);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return false;
        if (done == 0)
            return fail(EIO);
        bytes += done;
        size -= (size_t)done;
        offset += (uint64_t)done;
    }
    return true;
}

bool ds_os_truncate(ds_os_file file, uint64_t size) { return ftruncate(fd_of(file), (off_t)size) == 0; }
bool ds_os_flush(ds_os_file file) { return fsync(fd_of(file)) == 0; }

bool ds_os_flush_data(ds_os_file file)
{
#if defined(_POSIX_SYNCHRONIZED_IO) && _POSIX_SYNCHRONIZED_IO > 0
    return fdatasync(fd_of(file)) == 0;
#else
    return fsync(fd_of(file)) == 0;
#endif
}

bool ds_os_lock(ds_os_file file) { return flock(fd_of(file), LOCK_EX | LOCK_NB) == 0; }

bool ds_os_copy_permissions(ds_os_file file, const char *path)
{
    struct stat status;
    /* 0644 and not what the umask allows: reading the umask changes it for a moment, which other threads would meet. */
    mode_t mode = stat(path, &status) == 0 ? status.st_mode & 0777 : 0644;
    return fchmod(fd_of(file), mode) == 0;
}

const void *ds_os_map(ds_os_file file, uint64_t size)
{
    if (size > SIZE_MAX) {
        errno = ENOMEM;
        return NULL;
    }
    const void *data = mmap(NULL, (size_t)size, PROT_READ, MAP_SHARED, fd_of(file), 0);
    return data == MAP_FAILED ? NULL : data;
}

void ds_os_unmap(const void *data, uint64_t size) { munmap((void *)(uintptr_t)data, (size_t)size); }

void ds_os_forget(const void *data, size_t size) { (void)madvise((void *)(uintptr_t)data, size, MADV_DONTNEED); }

/* os.h on POSIX systems. On Linux also what Linux has beyond POSIX. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* affinity, madvise, flock */
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
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
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

/* The host's signals may interrupt these calls: a host need not install its handlers with SA_RESTART. */
#define UNINTERRUPTED(result, call)                                                                                    \
    do                                                                                                                 \
        (result) = (call);                                                                                             \
    while ((result) < 0 && errno == EINTR)

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

/* ---- forks of the host: a page that the system empties in children, else a number with the process's id ---- */

static size_t mark_bytes(void) { return (size_t)sysconf(_SC_PAGESIZE); }

bool ds_os_mark_new(ds_os_mark *mark)
{
    *mark = (ds_os_mark){.word = NULL};
    void *page = mmap(NULL, mark_bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        return false;
    mark->word = page;
#if defined(MADV_WIPEONFORK)
    mark->is_wiped = madvise(page, mark_bytes(), MADV_WIPEONFORK) == 0;
#endif
    return true;
}

void ds_os_mark_free(ds_os_mark *mark)
{
    if (mark->word != NULL)
        munmap((void *)(uintptr_t)mark->word, mark_bytes());
    *mark = (ds_os_mark){.word = NULL};
}

static uint32_t process_of(const ds_os_mark *mark) { return mark->is_wiped ? 1 : (uint32_t)getpid(); }

static uint32_t value_of(const ds_os_mark *mark, uint64_t word)
{
    return word >> 32 == process_of(mark) ? (uint32_t)word : 0;
}

uint32_t ds_os_mark_get(const ds_os_mark *mark) { return value_of(mark, atomic_load(mark->word)); }

void ds_os_mark_set(ds_os_mark *mark, uint32_t value)
{
    uint64_t word = atomic_load(mark->word);
    if (value_of(mark, word) == 0)
        (void)atomic_compare_exchange_strong(mark->word, &word, (uint64_t)process_of(mark) << 32 | value);
}

/* ---- processors ---- */

void ds_os_affinity(ds_os_cpus *cpus)
{
    *cpus = (ds_os_cpus){{0}};
    long n = 0;
#if defined(__linux__)
    cpu_set_t set[DS_OS_MAX_CPUS / CPU_SETSIZE]; /* the system refuses a set that is smaller than its own */
    if (sched_getaffinity(0, sizeof set, set) == 0)
        for (unsigned cpu = 0; cpu < DS_OS_MAX_CPUS; cpu++)
            if (CPU_ISSET_S(cpu, sizeof set, set)) {
                cpus->words[cpu / 64] |= (uint64_t)1 << cpu % 64;
                n++;
            }
#else
    n = sysconf(_SC_NPROCESSORS_ONLN);
    for (long cpu = 0; cpu < n && cpu < DS_OS_MAX_CPUS; cpu++)
        cpus->words[cpu / 64] |= (uint64_t)1 << cpu % 64;
#endif
    if (n <= 0)
        cpus->words[0] = 1;
}

/* ---- memory ---- */

void *ds_os_new_aligned(size_t alignment, size_t size)
{
    void *memory;
    return posix_memalign(&memory, alignment, size) == 0 ? memory : NULL;
}

size_t ds_os_page_bytes(void)
{
    long bytes = sysconf(_SC_PAGESIZE);
    return bytes > 0 ? (size_t)bytes : 4096;
}

/* Widens a range to whole pages. */
static void *whole_pages(const void *data, size_t *size)
{
    uintptr_t page = ds_os_page_bytes(), begin = (uintptr_t)data / page * page;
    *size = ((uintptr_t)data + *size - begin + page - 1) / page * page;
    return (void *)begin;
}

bool ds_os_lock_memory(const void *data, size_t size, bool at_once)
{
    void *pages = whole_pages(data, &size);
#if defined(MLOCK_ONFAULT)
    if (!at_once) {
        if (mlock2(pages, size, MLOCK_ONFAULT) == 0)
            return true;
        /* Old systems do not have mlock2, and a filter of calls may not know it: EPERM, as where the limit is 0. */
        int reason = errno;
        if (reason != ENOSYS && (reason != EPERM || ds_os_lock_limit() == 0)) {
            errno = reason;
            return false;
        }
    }
#endif
    (void)at_once;
    return mlock(pages, size) == 0;
}

void ds_os_unlock_memory(const void *data, size_t size)
{
    void *pages = whole_pages(data, &size);
    (void)munlock(pages, size);
}

uint64_t ds_os_lock_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_MEMLOCK, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY)
        return UINT64_MAX;
    return limit.rlim_cur;
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

/* Whether a call failed because nothing has the path that the call got, and nothing could have it. */
static bool is_absent(void) { return errno == ENOENT || errno == ENOTDIR || errno == ENAMETOOLONG; }

ds_os_kind ds_os_kind_of(const char *path)
{
    struct stat status;
    if (stat(path, &status) == 0)
        return kind_of(&status);
    if (lstat(path, &status) == 0)
        return DS_OS_OTHER;
    return is_absent() ? DS_OS_NOTHING : DS_OS_UNKNOWN;
}

bool ds_os_read_link(const char *path, char *text, size_t size)
{
    ssize_t got = readlink(path, text, size);
    if (got >= 0 && (size_t)got == size)
        return fail(ENAMETOOLONG);
    text[got < 0 ? 0 : got] = '\0';
    return got >= 0 || errno == EINVAL || is_absent(); /* EINVAL: something is there that is no link */
}

bool ds_os_same(const char *a, const char *b)
{
    struct stat one, other;
    return stat(a, &one) == 0 && stat(b, &other) == 0 && one.st_dev == other.st_dev && one.st_ino == other.st_ino;
}

bool ds_os_may_write(const char *path)
{
    struct stat status;
    if (stat(path, &status) != 0)
        return false;
    if ((status.st_mode & 0222) == 0)
        return fail(EACCES);
    return faccessat(AT_FDCWD, path, W_OK, AT_EACCESS) == 0;
}

bool ds_os_rename(const char *from, const char *to) { return rename(from, to) == 0; }
bool ds_os_remove(const char *path) { return unlink(path) == 0; }

bool ds_os_flush_folder(const char *path)
{
    int fd, result;
    UNINTERRUPTED(fd, open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (fd < 0)
        return false;
    UNINTERRUPTED(result, fsync(fd));
    /* Some file systems cannot flush a folder (EINVAL): a rename is then as durable as they make it. */
    int failure = result != 0 && errno != EINVAL ? errno : 0;
    close(fd);
    return failure == 0 || fail(failure);
}

ds_os_folder *ds_os_folder_open(const char *path) { return (ds_os_folder *)(void *)opendir(path); }

bool ds_os_folder_next(ds_os_folder *folder, const char **name)
{
    errno = 0;
    const struct dirent *entry = readdir((DIR *)(void *)folder);
    *name = entry == NULL ? NULL : entry->d_name;
    return entry != NULL || errno == 0;
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

/* Another process may hold a lease on a file. An open that does not wait fails then, but makes the system ask for the
 * lease, and take it after lease-break-time, which is 45 s. An open that waits could hang the host: a FIFO may take the
 * file's place meanwhile. */
static int open_unleased(const char *path, int mode)
{
    enum { STEP_MS = 10, MOST_MS = 60 * 1000 };
    const struct timespec step = {0, STEP_MS * 1000000};
    int fd;
    UNINTERRUPTED(fd, open(path, mode | O_NONBLOCK));
    for (int waited = 0; fd < 0 && errno == EAGAIN && waited < MOST_MS; waited += STEP_MS) {
        bool is_file = ds_os_kind_of(path) == DS_OS_FILE;
        errno = EAGAIN;
        if (!is_file)
            break;
        (void)nanosleep(&step, NULL);
        UNINTERRUPTED(fd, open(path, mode | O_NONBLOCK));
    }
    return fd;
}

bool ds_os_open(const char *path, ds_os_access access, ds_os_file *file)
{
    int mode = access == DS_OS_UPDATE ? O_RDWR : O_RDONLY;
    return set_file(open_unleased(path, mode | O_CLOEXEC | O_NOCTTY), file);
}

void ds_os_close(ds_os_file *file)
{
    if (ds_os_is_open(*file)) {
        (void)flock(fd_of(*file), LOCK_UN); /* a child that the host has forked meanwhile would keep the lock */
        close(fd_of(*file));
    }
    *file = (ds_os_file){0};
}

int64_t ds_seconds(void)
{
    struct timespec now = {0};
    (void)clock_gettime(CLOCK_REALTIME, &now);
    return now.tv_sec;
}

/* Letters and digits that differ from call to call. O_EXCL makes sure that the name is new: chance only makes that
 * likely. */
static void fill_marks(char *marks, unsigned attempt)
{
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    struct timespec now = {0};
    (void)clock_gettime(CLOCK_REALTIME, &now);
    uint64_t value = (uint64_t)now.tv_nsec + ((uint64_t)now.tv_sec << 30) + ((uint64_t)getpid() << 17) + attempt;
    value += (uint64_t)(uintptr_t)&now; /* threads have stacks of their own */
    for (int i = 0; i < 6; i++) {
        value = (value ^ value >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
        value = (value ^ value >> 27) * UINT64_C(0x94d049bb133111eb);
        marks[i] = letters[(value >> 33) % (sizeof letters - 1)];
    }
}

/* Whether another file or none has the name of a new file: whoever found this one unlocked removed it. */
static bool is_lost(int fd, const char *name)
{
    struct stat created, named;
    if (fstat(fd, &created) != 0)
        return false;
    if (lstat(name, &named) != 0)
        return is_absent();
    return created.st_dev != named.st_dev || created.st_ino != named.st_ino;
}

/* Where files cannot be locked, nobody removes this one either. */
static bool lock_new(int fd, const char *name)
{
    int result;
    UNINTERRUPTED(result, flock(fd, LOCK_EX | LOCK_NB));
    return (result == 0 || errno != EWOULDBLOCK) && !is_lost(fd, name);
}

/* Gives a new file the owner, group and mode of the old one, as far as the system lets. The umask may have taken bits
 * that the old file has: a file system that refuses to change modes leaves the new file less open, never more. */
static void take_after(int fd, const struct stat *old)
{
    bool taken = fchown(fd, old->st_uid, old->st_gid) == 0;
    taken = taken || fchown(fd, (uid_t)-1, old->st_gid) == 0;
    (void)taken; /* else both stay the writer's */
    (void)fchmod(fd, old->st_mode & 0777);
}

bool ds_os_create_temporary(char *name, char *marks, const char *path, ds_os_file *file)
{
    enum { ATTEMPTS = 100 };
    struct stat status;
    bool replaces = stat(path, &status) == 0;
    mode_t mode = replaces ? status.st_mode & 0777 : 0666;
    for (unsigned attempt = 0; attempt < ATTEMPTS; attempt++) {
        fill_marks(marks, attempt);
        if (!set_file(open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOCTTY, mode), file)) {
            if (errno == EEXIST || errno == EINTR)
                continue;
            return false;
        }
        if (lock_new(fd_of(*file), name)) {
            if (replaces)
                take_after(fd_of(*file), &status);
            return true;
        }
        if (!is_lost(fd_of(*file), name))
            (void)unlink(name);
        ds_os_close(file);
    }
    return fail(EEXIST);
}

static bool is_at(int fd, const char *path, bool through_links)
{
    struct stat open_file, named;
    if (fstat(fd, &open_file) != 0 || (through_links ? stat(path, &named) : lstat(path, &named)) != 0)
        return false;
    return open_file.st_dev == named.st_dev && open_file.st_ino == named.st_ino;
}

bool ds_os_is_at(ds_os_file file, const char *path) { return is_at(fd_of(file), path, true); }

void ds_os_remove_unlocked(const char *path)
{
    struct stat status;
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK | O_NOFOLLOW);
    if (fd < 0)
        return;
    if (fstat(fd, &status) == 0 && S_ISREG(status.st_mode) && flock(fd, LOCK_EX | LOCK_NB) == 0) {
        if (is_at(fd, path, false))
            (void)unlink(path);
        (void)flock(fd, LOCK_UN);
    }
    close(fd);
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

bool ds_os_stamp_of(ds_os_file file, ds_os_stamp *stamp)
{
    struct stat status;
    if (fstat(fd_of(file), &status) != 0)
        return false;
    *stamp = (ds_os_stamp){.size = (uint64_t)status.st_size,
                           .content = {status.st_mtim.tv_sec, status.st_mtim.tv_nsec},
                           .state = {status.st_ctim.tv_sec, status.st_ctim.tv_nsec}};
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

/* pwrite, but a limit on the size of files (RLIMIT_FSIZE) is an error alone: its signal, SIGXFSZ, would end the
 * host. */
static ssize_t write_quietly(int fd, const void *data, size_t size, off_t offset)
{
    sigset_t limit, before, pending;
    sigemptyset(&limit);
    sigaddset(&limit, SIGXFSZ);
    sigemptyset(&pending);
    pthread_sigmask(SIG_BLOCK, &limit, &before);
    bool was_pending = sigpending(&pending) == 0 && sigismember(&pending, SIGXFSZ) == 1;
    ssize_t done = pwrite(fd, data, size, offset);
    int failure = errno;
    if (done < 0 && failure == EFBIG && !was_pending && sigpending(&pending) == 0 &&
        sigismember(&pending, SIGXFSZ) == 1) { /* not where the host ignores it */
        int number;
        (void)sigwait(&limit, &number);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    errno = failure;
    return done;
}

bool ds_os_write(ds_os_file file, uint64_t offset, const void *data, size_t size)
{
    const uint8_t *bytes = data;
    while (size > 0) {
        ssize_t done = write_quietly(fd_of(file), bytes, size < MOST_BYTES ? size : MOST_BYTES, (off_t)offset);
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

bool ds_os_truncate(ds_os_file file, uint64_t size)
{
    int result;
    UNINTERRUPTED(result, ftruncate(fd_of(file), (off_t)size));
    return result == 0;
}

bool ds_os_flush(ds_os_file file)
{
    int result;
    UNINTERRUPTED(result, fsync(fd_of(file)));
    return result == 0;
}

bool ds_os_flush_data(ds_os_file file)
{
#if defined(_POSIX_SYNCHRONIZED_IO) && _POSIX_SYNCHRONIZED_IO > 0
    int result;
    UNINTERRUPTED(result, fdatasync(fd_of(file)));
    return result == 0;
#else
    return ds_os_flush(file);
#endif
}

bool ds_os_lock(ds_os_file file)
{
    int result;
    UNINTERRUPTED(result, flock(fd_of(file), LOCK_EX | LOCK_NB));
    return result == 0;
}

const void *ds_os_map(ds_os_file file, uint64_t size, ds_os_sharing sharing)
{
    if (size > SIZE_MAX) {
        errno = ENOMEM;
        return NULL;
    }
    int flags = sharing == DS_OS_SHARED ? MAP_SHARED : MAP_PRIVATE;
    const void *data = mmap(NULL, (size_t)size, PROT_READ, flags, fd_of(file), 0);
    return data == MAP_FAILED ? NULL : data;
}

void ds_os_unmap(const void *data, uint64_t size) { munmap((void *)(uintptr_t)data, (size_t)size); }

void ds_os_forget(const void *data, size_t size) { (void)madvise((void *)(uintptr_t)data, size, MADV_DONTNEED); }

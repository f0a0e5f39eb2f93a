/* os: all that the library asks of the operating system beyond C11: threads, locks, processors, memory, files.
 * os_posix.c defines these functions; another system needs one more such file and no other change.
 *
 * Functions that return bool return false when the system refuses. Then ds_os_failure says why, until the calling
 * thread calls another function of this header. Paths are the system's own, with "/" between names. */
#ifndef DS_LIB_OS_H
#define DS_LIB_OS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- failure ---- */

typedef struct ds_os_reason {
    bool no_memory;
    char text[128]; /* "No such file or directory" */
} ds_os_reason;

/* Why this thread's last failed call failed. */
ds_os_reason ds_os_failure(void);

/* ---- threads and locks: only os_*.c knows what these contain, and asserts that it fits ---- */

typedef struct ds_thread {
    _Alignas(void *) unsigned char opaque[sizeof(void *)];
} ds_thread;

typedef struct ds_mutex {
    _Alignas(max_align_t) unsigned char opaque[64];
} ds_mutex;

typedef struct ds_cond {
    _Alignas(max_align_t) unsigned char opaque[64];
} ds_cond;

/* Runs start(argument) in a thread that blocks every signal but those of faults (SIGSEGV, SIGBUS, SIGFPE, SIGILL,
 * SIGTRAP, SIGSYS, SIGABRT). The host's other handlers never run on it. A fault has to reach the handler that the host
 * has for it: while its signal is blocked the process ends without asking the handler. */
bool ds_thread_start(ds_thread *thread, void *(*start)(void *), void *argument);
void ds_thread_join(ds_thread *thread);

void ds_mutex_init(ds_mutex *mutex);
void ds_mutex_destroy(ds_mutex *mutex);
void ds_mutex_lock(ds_mutex *mutex);
void ds_mutex_unlock(ds_mutex *mutex);

void ds_cond_init(ds_cond *cond);
void ds_cond_destroy(ds_cond *cond);
void ds_cond_wait(ds_cond *cond, ds_mutex *mutex);
void ds_cond_signal(ds_cond *cond);    /* wakes one thread that waits */
void ds_cond_broadcast(ds_cond *cond); /* wakes all */

/* ---- forks of the host ---- */

/* A number that is 0 in every child of the process that set it, whatever the child got with the rest of memory. */
typedef struct ds_os_mark {
    _Atomic uint64_t *word; /* NULL: none */
    bool is_wiped;          /* by the system; else a number of the process stands beside the value */
} ds_os_mark;

bool ds_os_mark_new(ds_os_mark *mark); /* the number is 0 at first */
void ds_os_mark_free(ds_os_mark *mark);
uint32_t ds_os_mark_get(const ds_os_mark *mark);
void ds_os_mark_set(ds_os_mark *mark, uint32_t value); /* does nothing if the number is not 0 */

/* ---- processors ---- */

enum { DS_OS_MAX_CPUS = 16384 }; /* Linux has up to 8192 */

/* A set of processors: one bit each. */
typedef struct ds_os_cpus {
    uint64_t words[DS_OS_MAX_CPUS / 64];
} ds_os_cpus;

/* The processors that this process may run on; at least one. */
void ds_os_affinity(ds_os_cpus *cpus);

/* ---- memory ---- */

/* size > 0 bytes that free() frees, aligned to a power of two of at least sizeof(void *); NULL without memory. */
void *ds_os_new_aligned(size_t alignment, size_t size);

size_t ds_os_page_bytes(void);

/* Keeps the pages around `size` bytes in memory: brings them there at once, or keeps each from its first use on. Then
 * many threads may be the first to write to new memory. */
bool ds_os_lock_memory(const void *data, size_t size, bool at_once);
void ds_os_unlock_memory(const void *data, size_t size);
uint64_t ds_os_lock_limit(void); /* bytes that this process may lock (RLIMIT_MEMLOCK); UINT64_MAX: any number */

/* Asks for large pages under memory of one's own or a mapped file. Nothing depends on whether the system grants
 * them. */
void ds_os_wish_large_pages(const void *memory, size_t size);

/* ---- paths ---- */

typedef enum ds_os_kind {
    DS_OS_NOTHING,
    DS_OS_FILE, /* a regular file, or a link to one */
    DS_OS_FOLDER,
    DS_OS_OTHER,   /* also a link whose target is not there or cannot be looked at */
    DS_OS_UNKNOWN, /* the system does not say whether there is anything: ds_os_failure says why */
} ds_os_kind;

ds_os_kind ds_os_kind_of(const char *path);

/* What a link at `path` says: at most size - 1 bytes and a NUL; the empty text where no link is. */
bool ds_os_read_link(const char *path, char *text, size_t size);

/* Whether both paths lead to the same thing. */
bool ds_os_same(const char *a, const char *b);

/* Whether the regular file at `path` may be written to. A file whose mode lets nobody write is refused to root too. */
bool ds_os_may_write(const char *path);

bool ds_os_rename(const char *from, const char *to); /* in one step; replaces a file that has the name */
bool ds_os_remove(const char *path);

/* Makes a rename in the folder last; true also where the file system cannot flush a folder. */
bool ds_os_flush_folder(const char *path);

typedef struct ds_os_folder ds_os_folder;

/* The names in a folder, in no order. ds_os_folder_open returns NULL on failure. *name is NULL after the last name, and
 * else valid until the next call. */
ds_os_folder *ds_os_folder_open(const char *path);
bool ds_os_folder_next(ds_os_folder *folder, const char **name);
void ds_os_folder_close(ds_os_folder *folder);

/* ---- open files ---- */

/* An open file; zeroed: none. */
typedef struct ds_os_file {
    intptr_t id; /* only os_*.c knows what this is */
} ds_os_file;

typedef enum ds_os_access { DS_OS_READ, DS_OS_UPDATE } ds_os_access;

/* Opens what is at `path`, of any kind, without waiting for a FIFO's other end. Waits up to a minute for a lease that
 * another process has on a regular file. The host's children do not inherit the file. On failure *file is none. */
bool ds_os_open(const char *path, ds_os_access access, ds_os_file *file);

/* Creates and locks a file of a new name beside `path`. The six characters at `marks` within `name` are replaced so
 * that the name is new. The file gets the permissions of the file at `path`, as far as the file system has such;
 * without a file there, those that the process's umask leaves. */
bool ds_os_create_temporary(char *name, char *marks, const char *path, ds_os_file *file);

/* Whether the open file is what is at `path`. */
bool ds_os_is_at(ds_os_file file, const char *path);

/* Removes the file at `path` if this is a regular file that nobody has locked. */
void ds_os_remove_unlocked(const char *path);

/* Closes the file, if it is open, and gives its lock back; *file is none afterwards. */
void ds_os_close(ds_os_file *file);

static inline bool ds_os_is_open(ds_os_file file) { return file.id != 0; }

/* What kind of thing is open, and its present size in bytes. */
bool ds_os_kind_and_size(ds_os_file file, ds_os_kind *kind, uint64_t *size);

/* What tells whether an open file has been changed: its size, and when its content and its state changed last, in
 * seconds and nanoseconds. The system sets the time of the state: a writer cannot set that back. */
typedef struct ds_os_stamp {
    uint64_t size;
    int64_t content[2], state[2];
} ds_os_stamp;

bool ds_os_stamp_of(ds_os_file file, ds_os_stamp *stamp);

/* Reads `size` bytes from `offset` on; *got is less if the file ends before. */
bool ds_os_read(ds_os_file file, uint64_t offset, void *data, size_t size, size_t *got);

/* Writes all `size` bytes. A limit on the size of files makes this fail and raises no signal. */
bool ds_os_write(ds_os_file file, uint64_t offset, const void *data, size_t size);

bool ds_os_truncate(ds_os_file file, uint64_t size);
bool ds_os_flush(ds_os_file file);      /* to the disk: content, and all that the system keeps of the file */
bool ds_os_flush_data(ds_os_file file); /* to the disk: content, and what reading it back needs */

/* Locks the file until ds_os_close. False if somebody else who has it open holds the lock. The lock stops no reads and
 * writes. */
bool ds_os_lock(ds_os_file file);

/* How a mapping shares the file's pages. Nobody writes to either; some file systems grant the private one alone. */
typedef enum ds_os_sharing { DS_OS_SHARED, DS_OS_PRIVATE } ds_os_sharing;

/* The file's first `size` > 0 bytes as memory for reading; NULL on failure. The file may be closed while it is
 * mapped. */
const void *ds_os_map(ds_os_file file, uint64_t size, ds_os_sharing sharing);
void ds_os_unmap(const void *data, uint64_t size);

/* Says that bytes of a mapped file need not stay in memory. Touching them brings them back. `data` begins a page. */
void ds_os_forget(const void *data, size_t size);

#endif

/* os: all that the library asks of the operating system beyond C11: threads, locks, processors, memory, files. os_posix.c answers
 * it; another system needs one more such file and no other change.
 *
 * Functions that return bool return false when the system refuses; ds_os_failure then says why, until the calling thread calls
 * another function of this header. Paths are the system's own, "/" between names. */
#ifndef DS_LIB_OS_H
#define DS_LIB_OS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- failure ---- */

typedef struct ds_os_reason {
    bool no_memory;
    char text[128]; /* "No such file or directory" */
} ds_os_reason;

/* Why the last call that failed in this thread did. */
ds_os_reason ds_os_failure(void);

/* ---- threads and locks: what they are made of is known to os_*.c, which asserts that it fits ---- */

typedef struct ds_thread {
    _Alignas(void *) unsigned char opaque[sizeof(void *)];
} ds_thread;

typedef struct ds_mutex {
    _Alignas(max_align_t) unsigned char opaque[64];
} ds_mutex;

typedef struct ds_cond {
    _Alignas(max_align_t) unsigned char opaque[64];
} ds_cond;

/* Runs start(argument) in a thread that blocks every signal, so that the host's handlers never run on it. */
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

/* ---- processors ---- */

unsigned ds_os_cpus(void);      /* on which this process may run; at least 1 */
unsigned ds_os_cpu_quota(void); /* how many of them its time is limited to, rounded up; 0: no limit is known */

/* ---- memory ---- */

/* Memory for free(), aligned to a power of two of at least sizeof(void *); NULL if there is none. size > 0. */
void *ds_os_new_aligned(size_t alignment, size_t size);

/* Asks for large pages, for memory of one's own or a mapped file. A wish: nothing depends on it. */
void ds_os_wish_large_pages(const void *memory, size_t size);

/* ---- paths ---- */

typedef enum ds_os_kind {
    DS_OS_NOTHING,
    DS_OS_FILE, /* a regular file, or a link to one */
    DS_OS_FOLDER,
    DS_OS_OTHER, /* also a link to nothing, and what cannot be looked at */
} ds_os_kind;

ds_os_kind ds_os_kind_of(const char *path);
bool ds_os_rename(const char *from, const char *to); /* in one step, over a file that is there */
bool ds_os_remove(const char *path);
bool ds_os_flush_folder(const char *path); /* makes a rename in it last; true also where the file system has no such thing */

typedef struct ds_os_folder ds_os_folder;

/* Names in a folder, one after another, in no order; each is gone with the next. NULL: cannot be opened; there are no more. */
ds_os_folder *ds_os_folder_open(const char *path);
const char *ds_os_folder_next(ds_os_folder *folder);
void ds_os_folder_close(ds_os_folder *folder);

/* ---- open files ---- */

/* Zeroed: none. */
typedef struct ds_os_file {
    intptr_t id; /* os_*.c's own */
} ds_os_file;

typedef enum ds_os_access { DS_OS_READ, DS_OS_UPDATE } ds_os_access;

/* Opens what is there, of any kind, without waiting for it. No child of the host inherits it. On failure *file is none. */
bool ds_os_open(const char *path, ds_os_access access, ds_os_file *file);

/* Creates a file for its owner alone under a name of its own: name ends in "XXXXXX", which are replaced. */
bool ds_os_create_temporary(char *name, ds_os_file *file);

/* Closes, if there is anything to close; *file is none. */
void ds_os_close(ds_os_file *file);

static inline bool ds_os_is_open(ds_os_file file) { return file.id != 0; }

/* What kind of thing is open, and its size now. */
bool ds_os_kind_and_size(ds_os_file file, ds_os_kind *kind, uint64_t *size);

/* Reads `size` bytes from offset on; *got is fewer if the file ends before. */
bool ds_os_read(ds_os_file file, uint64_t offset, void *data, size_t size, size_t *got);

/* Writes all of them. */
bool ds_os_write(ds_os_file file, uint64_t offset, const void *data, size_t size);

bool ds_os_truncate(ds_os_file file, uint64_t size);
bool ds_os_flush(ds_os_file file);      /* to the disk, with all that is known of the file */
bool ds_os_flush_data(ds_os_file file); /* to the disk, what reading it back needs */

/* Locks the file for this opening of it, until ds_os_close. False if another opening has the lock; reads and writes are not stopped. */
bool ds_os_lock(ds_os_file file);

/* Gives an open file the permissions of the file at `path`; the usual ones if there is none. */
bool ds_os_copy_permissions(ds_os_file file, const char *path);

/* The file's first `size` > 0 bytes as memory for reading; NULL on failure. The file may be closed before. */
const void *ds_os_map(ds_os_file file, uint64_t size);
void ds_os_unmap(const void *data, uint64_t size);

/* A mapped file's bytes need not stay in memory; they come back when they are touched. `data` begins a page. */
void ds_os_forget(const void *data, size_t size);

#endif

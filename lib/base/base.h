/* base: what every other room stands on. Errors, logging, memory, checked arithmetic, files, threads.
 * Includes nothing of the library but the public headers. os.h comes with it: the one way to the operating system. */
#ifndef DS_LIB_BASE_H
#define DS_LIB_BASE_H

#include "base/os.h"

#include <dsv2/model.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* ---- errors (error.c) ---- */

/* Sets this thread's message and returns `status`, so that a failure is one statement:
 *     return ds_fail(DSV2_ERROR_FORMAT, "%s: hidden_size is %lld, expected 1 to %d", path, ...);
 * The message says what, where (file, field, value) and, if it helps, what to do. Called once, where the facts are known;
 * callers pass the status on untouched. */
dsv2_status ds_fail(dsv2_status status, const char *format, ...) DSV2_PRINTF(2, 3);

/* DSV2_ERROR_MEMORY for `bytes` of `what`. */
dsv2_status ds_fail_memory(const char *what, size_t bytes);

/* After a call of os.h that failed: "PATH: cannot DOING: REASON". DSV2_ERROR_MEMORY where the reason is a lack of memory, else
 * DSV2_ERROR_IO. */
dsv2_status ds_fail_io(const char *path, const char *doing);

/* Checks the struct_size of an option structure that the host may have compiled against older or newer headers: copies it
 * over `known` (of known_size bytes, holding defaults). A size under `minimum` (the structure's first version), or a non-zero
 * byte beyond what is known, fails with DSV2_ERROR_ARGUMENT naming `type`. options may be NULL. */
dsv2_status ds_read_options(const char *type, const void *options, void *known, size_t known_size, size_t minimum);

/* The other direction, for structures that the library fills: copies at most struct_size bytes of `known` to `info`, whose
 * struct_size is kept. */
dsv2_status ds_write_info(const char *type, void *info, const void *known, size_t known_size, size_t minimum);

/* ---- logging (log.c) ---- */

typedef struct ds_logger {
    dsv2_log_fn log; /* NULL: nowhere */
    void *user;
} ds_logger;

void ds_log(const ds_logger *logger, dsv2_log_level level, const char *format, ...) DSV2_PRINTF(3, 4);

/* ---- memory (memory.c) ---- */

/* Arrays of count * size bytes, zeroed; NULL if there is no memory or the product wraps (no message is set). */
void *ds_new(size_t count, size_t size);

/* The same, not zeroed, aligned to 64 bytes (a cache line, an AVX-512 register), from 2 MiB on to huge pages. */
void *ds_new_aligned(size_t count, size_t size);

/* Grows *array to at least `needed` elements, doubling; keeps contents. False if there is no memory: *array unchanged. */
bool ds_grow(void *array_pointer, size_t *capacity, size_t needed, size_t size);

/* Frees what the three above gave. NULL is allowed. */
void ds_free(void *memory);

char *ds_copy_string(const char *string);

/* Bytes of somebody else, not terminated. */
typedef struct ds_text {
    const char *data;
    size_t size;
} ds_text;

/* ---- checked arithmetic (inline: one instruction and a branch) ---- */

/* *out = a op b; false if it does not fit. */
static inline bool ds_add(uint64_t a, uint64_t b, uint64_t *out) { return !__builtin_add_overflow(a, b, out); }
static inline bool ds_mul(uint64_t a, uint64_t b, uint64_t *out) { return !__builtin_mul_overflow(a, b, out); }

/* ---- little-endian numbers in files, at any alignment (inline where scales are read: calls were a hundredth of decoding at depth) ---- */

static inline uint16_t ds_read_u16(const void *bytes)
{
    const uint8_t *b = bytes;
    return (uint16_t)(b[0] | b[1] << 8);
}

static inline float ds_bf16_to_f32(uint16_t bits)
{
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

uint32_t ds_read_u32(const void *bytes);
uint64_t ds_read_u64(const void *bytes);
void ds_write_u32(void *bytes, uint32_t value);
void ds_write_u64(void *bytes, uint64_t value);
float ds_f16_to_f32(uint16_t half);
uint16_t ds_f32_to_f16(float value);  /* nearest, ties to even; overflow to infinity */
uint16_t ds_f32_to_bf16(float value); /* nearest, ties to even; NaN stays NaN */

/* ---- files (file.c) ---- */

/* A file mapped for reading. */
typedef struct ds_file {
    char *path;
    const uint8_t *data; /* NULL if the file is empty */
    uint64_t size;
    ds_os_file handle; /* kept open so that a change of size can be seen */
} ds_file;

/* Opens a regular file and learns its size. */
dsv2_status ds_open_regular(const char *path, ds_os_access access, ds_os_file *file, uint64_t *size);

/* Maps a regular file. On failure *file is as ds_file_unmap leaves it. */
dsv2_status ds_file_map(const char *path, ds_file *file);
void ds_file_unmap(ds_file *file);

/* DSV2_ERROR_IO if the file no longer has the size it was mapped with: touching its pages could then kill the process. */
dsv2_status ds_file_check(const ds_file *file);

/* The bytes need not stay in this process's memory; touching them again brings them back. */
void ds_file_forget(const ds_file *file, uint64_t offset, uint64_t size);

/* Reads a whole regular file of at most `limit` bytes into *data (ds_free'd by the caller, a NUL after the end). */
dsv2_status ds_file_read(const char *path, uint64_t limit, char **data, size_t *size);

/* "folder/name", to be freed; NULL without memory. */
char *ds_path_join(const char *folder, const char *name);

/* Whether a regular file begins with these bytes, at most 16; false also if it cannot be read. Allocates nothing. */
bool ds_file_begins(const char *path, const void *magic, size_t size);

bool ds_is_folder(const char *path);
bool ds_is_file(const char *path);
bool ds_exists(const char *path); /* as anything, a link to nothing included */

/* ---- files that appear only when whole (write.c) ---- */

/* A file being written under a temporary name in the folder of the one that it will become. */
typedef struct ds_writer {
    ds_os_file file;
    char *path, *temporary; /* temporary NULL: the file itself is written to */
    uint64_t size; /* bytes appended so far */
} ds_writer;

dsv2_status ds_writer_open(const char *path, ds_writer *writer);

/* Appends, or writes over bytes that were appended before. */
dsv2_status ds_writer_append(ds_writer *writer, const void *data, size_t size);
dsv2_status ds_writer_replace(ds_writer *writer, uint64_t offset, const void *data, size_t size);

/* Flushes to disk, renames, flushes the folder; then the writer is closed. On failure the file of that name is the old one. */
dsv2_status ds_writer_commit(ds_writer *writer);

/* Drops an open writer and its temporary file; nothing for one that is closed. */
void ds_writer_abort(ds_writer *writer);

/* Flushes the folder that holds `path`, so that a rename in it lasts. */
dsv2_status ds_sync_folder(const char *path);

/* ---- threads (threads.c) ---- */

/* A pool of worker threads that run one parallel region at a time. Between regions workers spin for some tens of
 * microseconds, then sleep. Workers block every signal: the host's handlers never run on them. */
typedef struct ds_pool ds_pool;

/* One task of a region: `task` counts from 0, `thread` (0 to n_threads - 1, 0 being the caller) picks scratch memory. */
typedef void (*ds_task_fn)(void *context, size_t task, unsigned thread);

/* n_threads includes the caller: 1 makes no thread. */
dsv2_status ds_pool_create(unsigned n_threads, ds_pool **pool);
void ds_pool_destroy(ds_pool *pool);
unsigned ds_pool_threads(const ds_pool *pool);

/* Runs fn for every task below n_tasks, on all threads of the pool, and returns when all are done. Each thread begins with
 * a run of neighbouring tasks and takes them in order; which thread runs which is not determined, so results must not depend on
 * it. Fewer than 2^32 tasks. From any thread: regions of several callers run one after another. Must not be called from a task. */
void ds_pool_run(ds_pool *pool, ds_task_fn fn, void *context, size_t n_tasks);

/* How many threads this process may run at once: CPU affinity, bounded by the cgroup's quota; at least 1. */
unsigned ds_default_threads(void);

#endif

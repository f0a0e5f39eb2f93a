/* base: errors, logging, memory, checked arithmetic, files, threads. Every other room stands on this one, which
 * includes nothing of the library but the public headers. This header brings os.h, the one way to the operating
 * system. */
#ifndef DS_LIB_BASE_H
#define DS_LIB_BASE_H

#include "base/os.h"

#include <dsv2/model.h>

#include <fenv.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* ---- errors (error.c) ---- */

/* Sets this thread's message and returns `status`, so that a failure is one statement:
 *     return ds_fail(DSV2_ERROR_FORMAT, "%s: hidden_size is %lld, expected 1 to %d", path, ...);
 * The message says what, where (file, field, value) and, if that helps, what to do. The function that knows the facts
 * calls ds_fail once; its callers pass the status on untouched. */
dsv2_status ds_fail(dsv2_status status, const char *format, ...) DSV2_PRINTF(2, 3);

/* Bytes of a message, the zero at its end included: long enough for two paths and a sentence. */
enum { DS_MESSAGE_SIZE = 1024 };

/* Formats what the host gets: valid UTF-8 in one line, whatever bytes files and arguments have. A byte that is no UTF-8
 * becomes \xff, a control character or line end a space. What is too long is cut between two characters. `message`
 * itself may be among the arguments. */
void ds_message(char message[DS_MESSAGE_SIZE], const char *format, va_list arguments);

/* DSV2_ERROR_STATE for a call of a child of the host on what was at work at the fork. */
dsv2_status ds_fail_forked(void);

/* DSV2_ERROR_MEMORY for `bytes` of `what`. */
dsv2_status ds_fail_memory(const char *what, size_t bytes);

/* After a call of os.h that failed: "PATH: cannot DOING: REASON". DSV2_ERROR_MEMORY where the reason is a lack of
 * memory, else DSV2_ERROR_IO. */
dsv2_status ds_fail_io(const char *path, const char *doing);

/* A public structure that begins with struct_size, as this library knows it and as version 0.1 had it. */
typedef struct ds_sized {
    const char *type;
    size_t size, first_size;
} ds_sized;

/* `last` is the structure's last field in version 0.1, and never changes. A field that is appended later begins behind
 * first_size, which counts the padding at the end: what a host of version 0.1 has there may be anything. */
#define DS_SIZED(type, last)                                                                                           \
    (ds_sized)                                                                                                         \
    {                                                                                                                  \
        #type, sizeof(type), (offsetof(type, last) + sizeof(((type *)0)->last) + _Alignof(type) - 1) /                 \
            _Alignof(type) * _Alignof(type)                                                                            \
    }

/* Copies an option structure, which the host may have compiled against older or newer headers, over `known`, which
 * holds the defaults. NULL options leave the defaults. A struct_size under that of version 0.1, or a non-zero byte
 * beyond what is known, is DSV2_ERROR_ARGUMENT; the message names the type. known's struct_size stays. */
dsv2_status ds_read_options(ds_sized sized, const void *options, void *known);

/* The other direction, for structures that the library fills: copies at most struct_size bytes of `known` to `info`,
 * which keeps its struct_size. Bytes that the host has beyond what is known become zero. */
dsv2_status ds_write_info(ds_sized sized, void *info, const void *known);

/* DSV2_ERROR_ARGUMENT unless a header of some version can give the structure this size. */
dsv2_status ds_check_size(ds_sized sized, size_t size);

/* DSV2_ERROR_ARGUMENT if the structure, of `size` bytes, has a non-zero byte beyond what is known. */
dsv2_status ds_check_unknown(ds_sized sized, const void *structure, size_t size);

/* ---- logging (log.c) ---- */

typedef struct ds_logger {
    dsv2_log_fn log; /* NULL: nobody listens */
    void *user;
} ds_logger;

void ds_log(const ds_logger *logger, dsv2_log_level level, const char *format, ...) DSV2_PRINTF(3, 4);

/* ---- memory (memory.c) ---- */

/* An array of count * size bytes, zeroed. NULL if there is no memory or the product wraps; no message is set. */
void *ds_new(size_t count, size_t size);

/* The same, not zeroed, aligned to 64 bytes (a cache line, an AVX-512 register), from 2 MiB on to huge pages. */
void *ds_new_aligned(size_t count, size_t size);

/* Grows the array to which *array_pointer points to at least `needed` elements of `size` bytes, doubling *capacity;
 * keeps the elements. False if there is no memory, and nothing has changed. */
bool ds_grow(void *array_pointer, size_t *capacity, size_t needed, size_t size);

/* Frees memory from ds_new, ds_new_aligned, ds_grow or ds_copy_string. NULL is allowed. */
void ds_free(void *memory);

/* As ds_new_aligned, for memory whose size follows the model, the cache or the batch: from the host's allocator if
 * there is one, and then not aligned to huge pages. An allocator that is NULL or has no functions stands for the C
 * library. The caller holds no lock that others need: the host's functions may take their time. */
void *ds_allocate(const dsv2_allocator *allocator, size_t count, size_t size);

/* Bytes in pages that hold nothing else: for memory that is locked. */
void *ds_allocate_pages(const dsv2_allocator *allocator, size_t bytes);

/* Frees memory of ds_allocate or ds_allocate_pages from the same allocator. NULL is allowed. */
void ds_release(const dsv2_allocator *allocator, void *memory);

/* NULL without memory. */
char *ds_copy_string(const char *string);

/* Bytes that belong to somebody else, not terminated. */
typedef struct ds_text {
    const char *data;
    size_t size;
} ds_text;

/* ---- UTF-8 (utf8.c) ---- */

/* Bytes of the character at `text`, 1 to 4; 0 if no valid character begins there, or only part of one. */
size_t ds_utf8_length(const char *text, size_t size);

/* How many bytes from the start are valid UTF-8. */
size_t ds_utf8_valid(const char *text, size_t size);

/* How many bytes of a text a message quotes: at most 200, of whole characters. */
int ds_quoted(const char *text, size_t size);

/* The two arguments of %.*s that quote a ds_text, or a string. */
#define DS_QUOTED(text) ds_quoted((text).data, (text).size), (text).data
#define DS_QUOTED_STRING(string) ds_quoted((string), strlen(string)), (string)

/* ---- checked arithmetic (inline: one instruction and a branch) ---- */

/* *out = a + b, *out = a * b; false if the result does not fit. */
static inline bool ds_add(uint64_t a, uint64_t b, uint64_t *out) { return !__builtin_add_overflow(a, b, out); }
static inline bool ds_mul(uint64_t a, uint64_t b, uint64_t *out) { return !__builtin_mul_overflow(a, b, out); }

static inline uint64_t ds_max(uint64_t a, uint64_t b) { return a > b ? a : b; }

/* ---- little-endian numbers in files, at any alignment ---- */

/* These two are inline because attention reads scales with them: calls took a hundredth of decoding time in long
 * contexts. */

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

/* From this magnitude on, floats are infinite in half precision, whose largest number is DS_F16_LARGEST. */
#define DS_F16_INFINITE 65520.0f
#define DS_F16_LARGEST 65504.0f

/* The largest magnitude of n floats; infinity if one is infinite, NaN if one is NaN; 0 for n = 0. */
float ds_largest_magnitude(const float *x, size_t n);

/* ---- files (file.c) ---- */

/* A file that is read. Its first bytes may be in memory, and all of it may be mapped. */
typedef struct ds_file {
    char *path;
    uint64_t size;     /* when it was opened */
    ds_os_stamp stamp; /* then */
    ds_os_file handle; /* stays open so that a change of size can be seen */
    uint8_t *head;     /* the first head_size bytes, read; NULL: none */
    size_t head_size;
    const uint8_t *data; /* the whole file, mapped; NULL: it is not mapped, or empty */
} ds_file;

/* Opens a regular file and learns its size. */
dsv2_status ds_open_regular(const char *path, ds_os_access access, ds_os_file *file, uint64_t *size);

/* Opens a regular file, and reads nothing yet. On failure *file is zeroed, as ds_file_close leaves it. */
dsv2_status ds_file_open(const char *path, ds_file *file);
void ds_file_close(ds_file *file);

/* Has the file's first `size` bytes in file->head, fewer only where the file is shorter. What was there may move. */
dsv2_status ds_file_need_head(ds_file *file, uint64_t size);
void ds_file_drop_head(ds_file *file);

/* Reads `size` bytes, which the file had when it was opened; DSV2_ERROR_IO if it has them no longer. Any number of
 * threads may read at once. */
dsv2_status ds_file_read_at(const ds_file *file, uint64_t offset, void *data, size_t size);

/* Maps the file. False if the system refuses: ds_os_failure says why. */
bool ds_file_map(ds_file *file, ds_os_sharing sharing);
void ds_file_unmap(ds_file *file);

/* DSV2_ERROR_IO if the file no longer has the size that it was opened with: touching its mapped pages could kill the
 * process. */
dsv2_status ds_file_check(const ds_file *file);

/* DSV2_ERROR_IO if the file may have other bytes than when it was opened: what was read may be of two versions. A new
 * name, a removed name or new permissions count as a change too. */
dsv2_status ds_file_check_same(const ds_file *file);

/* Says that these mapped bytes need not stay in the process's memory. Touching them brings them back. */
void ds_file_forget(const ds_file *file, uint64_t offset, uint64_t size);

/* Reads a whole regular file of at most `limit` bytes to *data, with a NUL after the end. The caller ds_frees *data. */
dsv2_status ds_file_read(const char *path, uint64_t limit, char **data, size_t *size);

/* "folder/name", which the caller ds_frees; NULL without memory. */
char *ds_path_join(const char *folder, const char *name);

/* Whether a regular file begins with these bytes, at most 16. False also if the file cannot be read. Allocates
 * nothing. */
bool ds_file_begins(const char *path, const void *magic, size_t size);

bool ds_is_folder(const char *path);
bool ds_is_file(const char *path);
bool ds_exists(const char *path); /* true for anything there, a link to nothing and what cannot be looked at included:
                                   * reading says what is wrong with these */

/* ---- files that appear only when whole (write.c) ---- */

/* A file that is written under a temporary name, in the folder of its final name. */
typedef struct ds_writer {
    ds_os_file file;
    char *path, *temporary; /* temporary NULL: the file itself is written to */
    char *folder;
    uint64_t size;          /* bytes appended so far */
} ds_writer;

/* What writing to `path` writes: the file that links lead to, which need not be there yet; to be freed. Refuses what is
 * no regular file, and a file that may not be written to. */
dsv2_status ds_writer_target(const char *path, char **target);

/* Also removes temporary files of the same path that a process left when it died. */
dsv2_status ds_writer_open(const char *path, ds_writer *writer);

/* Appends bytes; writes over bytes that were appended before. */
dsv2_status ds_writer_append(ds_writer *writer, const void *data, size_t size);
dsv2_status ds_writer_replace(ds_writer *writer, uint64_t offset, const void *data, size_t size);

/* Flushes the file to the disk, renames it, flushes the folder, and closes the writer. If the file cannot be flushed or
 * renamed, the file of its final name is the old one. A folder that may not be read is not flushed, and that is no
 * failure. */
dsv2_status ds_writer_commit(ds_writer *writer);

/* Closes a writer and removes its temporary file. Does nothing for a closed writer. */
void ds_writer_abort(ds_writer *writer);

/* ---- floating-point modes of the host's threads (modes.c) ---- */

/* A host may have its threads flush small numbers to zero, round otherwise than to nearest, or trap. Logits must not
 * depend on that, and the host wants its modes back. So every call that computes has the library's modes (to nearest,
 * no flushing, no traps) from its beginning to its end; worker threads have them always. Exception flags are the host's
 * again at the end, too. A mode beyond <fenv.h>'s, on any processor, is modes.c's business alone. */
typedef struct ds_modes {
    fenv_t host;
    struct ds_modes *outer; /* of the call whose callback made this call */
} ds_modes;

void ds_modes_begin(ds_modes *modes);
void ds_modes_end(ds_modes *modes);

/* A thread of the library's own takes the library's modes, for good. */
void ds_modes_set(void);

/* Around every call of a function of the host's: the function runs with its thread's own modes, and may change them. */
void ds_modes_lend(void);
void ds_modes_take_back(void);

/* Calls the host's progress function, which may be NULL, with the host's modes. False: the host cancels. */
bool ds_call_progress(dsv2_progress_fn progress, void *user, dsv2_phase phase, uint64_t done, uint64_t total);

/* ---- forks of the host (calls.c) ---- */

/* A child of the host has the thread that forked and no other: no workers, and of calls that were at work on other
 * threads only what they left, locks included. The rule for what calls share (a model with its sessions):
 *   - If no call was at work on it at the fork, the child uses it as before, on the calling threads alone.
 *   - Else it is lost to the child: calls give DSV2_ERROR_STATE, and closing leaves everything as it is. That holds for
 *     the call whose callback forked, too: in the child that call ends without touching what others may have locked.
 * Whatever locks, or changes what others see, is between ds_calls_begin and ds_calls_end. */
typedef struct ds_calls {
    ds_os_mark state;
    _Atomic uint32_t at_work;
} ds_calls;

dsv2_status ds_calls_init(ds_calls *calls);
void ds_calls_free(ds_calls *calls);

/* The initializer of a static ds_calls, for what a whole process shares: `static_word` is an _Atomic uint64_t. */
#define DS_CALLS_OF_PROCESS(static_word) {.state = {.word = &(static_word)}}

/* DSV2_ERROR_STATE if all is lost: then there is no ds_calls_end. */
dsv2_status ds_calls_begin(ds_calls *calls);
bool ds_calls_try(ds_calls *calls); /* false, with no message, where ds_calls_begin fails */
void ds_calls_end(ds_calls *calls);

/* After every callback of a call at work: DSV2_ERROR_STATE if the callback forked and this is the child. */
dsv2_status ds_calls_check(ds_calls *calls);

/* ---- threads (threads.c) ---- */

/* A pool of worker threads that run one parallel region at a time. Between regions workers spin for some tens of
 * microseconds, then sleep. Workers block all signals but those of faults: the host's other handlers never run on
 * them. */
typedef struct ds_pool ds_pool;

/* Runs one task of a region. `task` counts from 0. `thread`, 0 (the caller) to n_threads - 1, picks scratch memory. */
typedef void (*ds_task_fn)(void *context, size_t task, unsigned thread);

/* n_threads counts the caller: 1 makes no thread. */
dsv2_status ds_pool_create(unsigned n_threads, ds_pool **pool);
void ds_pool_destroy(ds_pool *pool);
unsigned ds_pool_threads(const ds_pool *pool); /* 1 in a child of the host */

/* Whether this process is a child of the one that made the pool: the workers are not there, the caller does all. */
bool ds_pool_is_inherited(const ds_pool *pool);

/* Runs fn for every task below n_tasks (fewer than 2^32) on all threads of the pool; returns when all are done. Each
 * thread begins with a run of neighbouring tasks and takes them in order. Results must not depend on which thread runs
 * which task: that is not determined. Any thread may call this, but no task: regions of several callers run one after
 * another, in the order in which the callers came. So who has ended a region waits for all who came meanwhile. */
void ds_pool_run(ds_pool *pool, ds_task_fn fn, void *context, size_t n_tasks);

/* The regions between these calls, all of this thread, count as one in the order of callers: handing the threads over
 * costs more than a short region. A turn lasts no longer than a layer, and no callback of the host's runs in one. In a
 * turn nobody reads a file or waits for a lock. But a page of mapped weights that is not in memory comes from the disk
 * while a region runs, and all callers wait: also in regions that interleave deferred experts, which are in no turn. */
void ds_pool_begin_turn(ds_pool *pool);
bool ds_pool_end_turn(ds_pool *pool); /* false: this thread was in no turn */

/* Callers that wait for their turn beside the one whose region runs; for tests. */
unsigned ds_pool_waiting(const ds_pool *pool);

/* ---- memory that is left (left.c) ---- */

/* Memory that this process can still take before something of this name is exhausted. */
typedef struct ds_memory_left {
    uint64_t bytes;
    char whose[320]; /* "the machine", or a control group by its folder */
} ds_memory_left;

/* The least of what the machine has left and of what each of the process's own control groups, and those that they are
 * in, have left. What the system would give up first (cached files) counts as left. False if nothing is known.
 * root: "", or a test's folder with files like those of /proc and /sys. */
bool ds_memory_left_in(const char *root, ds_memory_left *least);

/* ---- the clock (os_posix.c) ---- */

int64_t ds_seconds(void); /* since 1970, UTC */

/* ---- processors (cpus.c) ---- */

/* The fast physical cores that this process may run on, but no more than its cgroups' quota; at least 1. */
unsigned ds_default_threads(void);

/* Its two parts. root: "", or a test's folder with files like those of /sys and /proc. */
unsigned ds_fast_cores(const char *root, const ds_os_cpus *allowed); /* at least 1 */
unsigned ds_cpu_quota(const char *root); /* processors' time, rounded up: the least of the process's own cgroup and of
                                          * those that it is in; 0: no limit is known */

#endif

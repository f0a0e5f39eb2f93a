/* Conversions that wait for each other. A matrix may be small (an expert's has a megabyte or two), and a thread that
 * touches new memory first waits until the kernel has cleared a huge page: so matrices wait until every thread has
 * some megabytes to go through. */
#ifndef DS_LIB_WEIGHTS_QUEUE_H
#define DS_LIB_WEIGHTS_QUEUE_H

#include "formats/formats.h"
#include "weights/convert.h"

/* When a queue runs by itself. All bounds are checked in ds_queue_add alone. */
typedef struct ds_queue_limits {
    uint64_t bytes_per_thread; /* of the file, mapped meanwhile; 0: the usual number */
    size_t entries;            /* the length of the list; 0: the usual number */
} ds_queue_limits;

/* From so many bytes of its own on (ds_queue_own) a queue runs, whatever its number of threads. */
#define DS_QUEUE_OWN_BYTES (UINT64_C(64) << 20)

/* Some rows of a matrix, or all. */
typedef struct ds_queue_entry {
    ds_conversion conversion;
    uint32_t first, end;
    size_t first_task;
    void *memory; /* freed once these rows are written, or NULL */
    ds_losses losses; /* of these rows */
} ds_queue_entry;

typedef struct ds_queue {
    const ds_kernels *kernels;
    ds_pool *pool;
    const dsv2_allocator *allocator;
    const ds_container *container; /* in whose files matrices lie */
    ds_queue_limits limits;
    ds_queue_entry *list; /* [limits.entries] */
    size_t n;
    uint64_t bytes;   /* to be read */
    uint8_t *scratch; /* scratch_bytes for each thread */
    size_t scratch_bytes;
    void *memory; /* of ds_queue_own, until its conversion is added */
    size_t memory_bytes;
    uint64_t own_bytes; /* of the memory that the entries own */
    dsv2_status (*after_run)(void *context); /* called between two runs of ds_queue_add; NULL: nobody asks */
    void *after_run_context;
    /* The first entry of a run that cannot be converted as asked, NULL if there is none. */
    ds_mutex lock;
    const ds_queue_entry *failed;
    ds_misfit misfit;
    ds_losses losses; /* of the matrix of the last entry so far: its rows may be in several runs */
    dsv2_status unread; /* of a file that cannot be read, with its message; DSV2_OK: none */
    char message[DS_MESSAGE_SIZE];
} ds_queue;

/* allocator: of scratch, and of what ds_queue_own is given. */
void ds_queue_init(ds_queue *queue, const ds_kernels *kernels, ds_pool *pool, const dsv2_allocator *allocator,
                   const ds_container *container, ds_queue_limits limits);

/* Makes the memory that conversions like this one need, so that adding and running them cannot lack any. After a
 * failure the queue can only be freed. */
dsv2_status ds_queue_reserve(ds_queue *queue, const ds_conversion *like);

/* The most that a queue of so many threads ever allocates for conversions that need `scratch` bytes each. */
uint64_t ds_queue_bytes(ds_queue_limits limits, unsigned n_threads, size_t scratch);

/* Gives the queue memory of ds_allocate, or NULL: the next conversion that is added reads the memory, and the run that
 * writes the last rows frees it. */
void ds_queue_own(ds_queue *queue, void *memory, size_t bytes);

/* Adds a matrix for which memory was reserved, and runs the queue whenever it is full. Until ds_queue_run the
 * matrix's data stay, and nobody reads `out`. Returns what a run or after_run returned. */
dsv2_status ds_queue_add(ds_queue *queue, const ds_conversion *conversion);

/* Converts all that waits, over all threads; parts of a mapped file that were read need not stay in memory. Fails
 * if a file cannot be read, as ds_misfit_fail for the first element that is at fault, and as ds_losses_check for a
 * matrix whose last rows these are. Nothing waits afterwards. */
dsv2_status ds_queue_run(ds_queue *queue);
void ds_queue_free(ds_queue *queue);

#endif

#include "weights/queue.h"

#include <assert.h>
#include <stdio.h>

static const ds_queue_limits usual = {.bytes_per_thread = 16 << 20, .entries = 1024};

static ds_queue_limits or_usual(ds_queue_limits limits)
{
    if (limits.bytes_per_thread == 0)
        limits.bytes_per_thread = usual.bytes_per_thread;
    if (limits.entries == 0)
        limits.entries = usual.entries;
    return limits;
}

void ds_queue_init(ds_queue *queue, const ds_kernels *kernels, ds_pool *pool, const dsv2_allocator *allocator,
                   const ds_container *container, ds_queue_limits limits)
{
    *queue = (ds_queue){.kernels = kernels, .pool = pool, .allocator = allocator, .container = container,
                        .limits = or_usual(limits)};
    ds_mutex_init(&queue->lock);
}

uint64_t ds_queue_bytes(ds_queue_limits limits, unsigned n_threads, size_t scratch)
{
    return or_usual(limits).entries * sizeof(ds_queue_entry) + (uint64_t)n_threads * scratch;
}

dsv2_status ds_queue_reserve(ds_queue *queue, const ds_conversion *like)
{
    if (queue->list == NULL)
        queue->list = ds_new(queue->limits.entries, sizeof *queue->list);
    if (queue->list == NULL)
        return ds_fail_memory("matrices to convert", queue->limits.entries * sizeof *queue->list);
    size_t bytes = ds_conversion_scratch(like);
    if (bytes <= queue->scratch_bytes)
        return DSV2_OK;
    ds_release(queue->allocator, queue->scratch); /* never the old and the new at once */
    queue->scratch = ds_allocate(queue->allocator, ds_pool_threads(queue->pool), bytes);
    queue->scratch_bytes = queue->scratch != NULL ? bytes : 0;
    return queue->scratch != NULL ? DSV2_OK
                                  : ds_fail_memory("rows to convert", ds_pool_threads(queue->pool) * bytes);
}

void ds_queue_own(ds_queue *queue, void *memory, size_t bytes)
{
    assert(queue->memory == NULL);
    queue->memory = memory;
    queue->memory_bytes = memory != NULL ? bytes : 0;
}

/* The next rows of a matrix, as many as the queue still takes; at least DS_PANEL_ROWS, or those that are left. */
static void append_rows(ds_queue *queue, const ds_conversion *conversion, uint64_t most, uint32_t *first)
{
    const ds_matrix *from = &conversion->from;
    assert(queue->n < queue->limits.entries && queue->bytes < most);
    uint64_t rows = (most - queue->bytes) / from->row_bytes / DS_PANEL_ROWS * DS_PANEL_ROWS;
    if (rows == 0)
        rows = DS_PANEL_ROWS;
    ds_queue_entry *entry = &queue->list[queue->n++];
    *entry = (ds_queue_entry){.conversion = *conversion, .first = *first, .end = from->rows};
    if (from->rows - *first > rows) {
        entry->end = *first + (uint32_t)rows;
    } else {
        entry->memory = queue->memory;
        queue->own_bytes += queue->memory_bytes;
        queue->memory = NULL;
        queue->memory_bytes = 0;
    }
    queue->bytes += (uint64_t)(entry->end - entry->first) * from->row_bytes;
    *first = entry->end;
}

dsv2_status ds_queue_add(ds_queue *queue, const ds_conversion *conversion)
{
    uint64_t most = queue->limits.bytes_per_thread * ds_pool_threads(queue->pool);
    assert(queue->list != NULL && queue->scratch_bytes >= ds_conversion_scratch(conversion));
    assert(queue->memory == NULL || queue->memory == conversion->from.data);
    dsv2_status status = DSV2_OK;
    for (uint32_t first = 0; first < conversion->from.rows && status == DSV2_OK;) {
        append_rows(queue, conversion, most, &first);
        if (queue->bytes < most && queue->n < queue->limits.entries && queue->own_bytes < DS_QUEUE_OWN_BYTES)
            continue;
        status = ds_queue_run(queue);
        if (status == DSV2_OK && queue->after_run != NULL)
            status = queue->after_run(queue->after_run_context);
    }
    return status;
}

/* The entry that a task belongs to: the last whose first task is not after this one. */
static ds_queue_entry *entry_of(const ds_queue *queue, size_t task)
{
    size_t low = 0, high = queue->n;
    while (high - low > 1) {
        size_t middle = (low + high) / 2;
        if (queue->list[middle].first_task <= task)
            low = middle;
        else
            high = middle;
    }
    return &queue->list[low];
}

/* Of all misfits the one is kept that comes first, whichever thread finds it. */
static void keep_first(ds_queue *queue, const ds_queue_entry *entry, const ds_misfit *misfit)
{
    ds_mutex_lock(&queue->lock);
    if (queue->failed == NULL || entry < queue->failed || (entry == queue->failed && misfit->row < queue->misfit.row)) {
        queue->failed = entry;
        queue->misfit = *misfit;
    }
    ds_mutex_unlock(&queue->lock);
}

static void add_losses(ds_queue *queue, ds_losses *to, const ds_losses *losses)
{
    ds_mutex_lock(&queue->lock);
    to->squares += losses->squares;
    to->lost += losses->lost;
    ds_mutex_unlock(&queue->lock);
}

/* Keeps the message of a thread that could not read: messages belong to threads. */
static void keep_message(ds_queue *queue, dsv2_status status)
{
    ds_mutex_lock(&queue->lock);
    queue->unread = status;
    snprintf(queue->message, sizeof queue->message, "%s", dsv2_last_error());
    ds_mutex_unlock(&queue->lock);
}

static void convert_task(void *context, size_t task, unsigned thread)
{
    ds_queue *queue = context;
    ds_queue_entry *entry = entry_of(queue, task);
    uint32_t first = entry->first + (uint32_t)(task - entry->first_task) * DS_PANEL_ROWS;
    uint32_t end = entry->end - first < DS_PANEL_ROWS ? entry->end : first + DS_PANEL_ROWS;
    uint8_t *scratch = queue->scratch_bytes > 0 ? queue->scratch + thread * queue->scratch_bytes : NULL;
    ds_misfit misfit;
    ds_losses losses = {0, 0};
    ds_converted result = ds_convert_rows(queue->kernels, &entry->conversion, first, end, scratch, &losses, &misfit);
    if (losses.squares > 0)
        add_losses(queue, &entry->losses, &losses);
    if (result == DS_MISFIT)
        keep_first(queue, entry, &misfit);
    else if (result != DS_CONVERTED)
        keep_message(queue, result == DS_UNREAD_FOR_MEMORY ? DSV2_ERROR_MEMORY : DSV2_ERROR_IO);
}

/* Adds up the matrices of this run, and checks those whose last rows are in it. */
static dsv2_status check_losses(ds_queue *queue)
{
    dsv2_status status = DSV2_OK;
    for (size_t i = 0; i < queue->n && status == DSV2_OK; i++) {
        const ds_queue_entry *entry = &queue->list[i];
        if (entry->first == 0)
            queue->losses = (ds_losses){0, 0};
        add_losses(queue, &queue->losses, &entry->losses);
        if (entry->end == entry->conversion.from.rows)
            status = ds_losses_check(entry->conversion.label, entry->conversion.type, &queue->losses);
    }
    return status;
}

static void drop_all(ds_queue *queue)
{
    for (size_t i = 0; i < queue->n; i++)
        ds_release(queue->allocator, queue->list[i].memory);
    queue->n = 0;
    queue->bytes = queue->own_bytes = 0;
}

dsv2_status ds_queue_run(ds_queue *queue)
{
    size_t n_tasks = 0;
    queue->failed = NULL;
    queue->unread = DSV2_OK;
    for (size_t i = 0; i < queue->n; i++) {
        ds_queue_entry *entry = &queue->list[i];
        entry->first_task = n_tasks;
        n_tasks += ((size_t)entry->end - entry->first + DS_PANEL_ROWS - 1) / DS_PANEL_ROWS;
    }
    ds_pool_run(queue->pool, convert_task, queue, n_tasks);
    for (size_t i = 0; i < queue->n; i++) {
        const ds_queue_entry *entry = &queue->list[i];
        const ds_matrix *from = &entry->conversion.from;
        if (from->data == NULL)
            continue;
        ds_container_forget(queue->container, (const uint8_t *)from->data + entry->first * from->row_bytes,
                            (uint64_t)(entry->end - entry->first) * from->row_bytes);
    }
    dsv2_status status = DSV2_OK;
    if (queue->unread != DSV2_OK)
        status = ds_fail(queue->unread, "%s", queue->message);
    else if (queue->failed != NULL)
        status = ds_misfit_fail(queue->failed->conversion.label, queue->failed->conversion.type, &queue->misfit);
    else
        status = check_losses(queue);
    drop_all(queue);
    return status;
}

void ds_queue_free(ds_queue *queue)
{
    drop_all(queue);
    ds_mutex_destroy(&queue->lock);
    ds_release(queue->allocator, queue->memory);
    ds_free(queue->list);
    ds_release(queue->allocator, queue->scratch);
    *queue = (ds_queue){0};
}

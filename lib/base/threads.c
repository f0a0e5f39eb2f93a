#include "base/base.h"

#include <assert.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdlib.h>

/* Pauses of one spin: some tens of microseconds, longer than the gaps between the regions of one pass, shorter than
 * anybody notices. */
enum { SPINS = 2000 };

enum { TURNS = 8 };

/* A thread's tasks that nobody has begun: the lower 32 bits are the first task, the upper ones the end. Each share has
 * a cache line of its own. */
typedef struct share {
    alignas(64) _Atomic uint64_t left;
} share;

struct ds_pool {
    unsigned n_threads; /* the caller's included */
    unsigned n_started;
    ds_thread *threads;
    ds_os_mark workers; /* 1 where they are: not in children of the host */

    /* Callers take turns in the order of their tickets: an ordinary mutex lets the caller that has just ended a region
     * begin the next, hundreds of times in a pass, while others wait. */
    _Atomic uint32_t tickets;          /* given to callers */
    _Atomic uint32_t served;           /* turns ended: the ticket whose turn it is */
    _Atomic(const char *) turn_holder; /* `self` of the thread between ds_pool_begin_turn and ds_pool_end_turn */
    _Atomic unsigned turn_sleepers;    /* callers that have to be woken */
    ds_mutex turn_lock;
    ds_cond turns[TURNS]; /* ticket n is waited for at n % TURNS: to wake all who wait would cost the threads at work */

    /* The region at work. The caller writes these before `generation` grows; workers read them after they saw it
     * grow. */
    ds_task_fn fn;
    void *context;
    share *shares;               /* [n_threads] */
    _Atomic unsigned working;    /* workers that have not finished this region */
    _Atomic uint32_t generation; /* regions begun */

    /* Sleeping. `lock` guards the two conditions; `sleepers` and `caller_sleeps` say whether anybody has to be
     * woken. */
    ds_mutex lock;
    ds_cond wake, done;
    _Atomic unsigned sleepers;
    _Atomic bool caller_sleeps;
    _Atomic bool stop;
};

typedef struct worker {
    ds_pool *pool;
    unsigned thread;
} worker;

static _Thread_local char self; /* whose address tells this thread from others */

static void pause_cpu(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static uint64_t tasks_between(uint32_t first, uint32_t end) { return (uint64_t)end << 32 | first; }

/* Takes a task of a share: the owner takes the first, others take the last. False if none is left. */
static bool take_task(share *share, bool owner, size_t *task)
{
    uint64_t left = atomic_load_explicit(&share->left, memory_order_relaxed), rest;
    do {
        uint32_t first = (uint32_t)left, end = (uint32_t)(left >> 32);
        if (first == end)
            return false;
        *task = owner ? first : end - 1;
        rest = owner ? tasks_between(first + 1, end) : tasks_between(first, end - 1);
    } while (!atomic_compare_exchange_weak_explicit(&share->left, &left, rest, memory_order_relaxed,
                                                    memory_order_relaxed));
    return true;
}

/* Neighbouring tasks mostly read neighbouring weights. Each thread goes through its own share from front to back, so
 * that the processor's reading ahead serves that thread and no other: with tasks dealt out one by one, two threads
 * decoded no faster than one. A thread that is done early helps the others from behind. */
static void work(ds_pool *pool, unsigned thread)
{
    size_t task;
    for (unsigned i = 0; i < pool->n_threads; i++)
        while (take_task(&pool->shares[(thread + i) % pool->n_threads], i == 0, &task))
            pool->fn(pool->context, task, thread);
}

/* Returns when the generation is no longer `seen`; ds_pool_destroy makes it grow too. */
static void wait_for_region(ds_pool *pool, uint32_t seen)
{
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(&pool->generation, memory_order_acquire) != seen)
            return;
        pause_cpu();
    }
    ds_mutex_lock(&pool->lock);
    atomic_fetch_add(&pool->sleepers, 1);
    while (atomic_load(&pool->generation) == seen)
        ds_cond_wait(&pool->wake, &pool->lock);
    atomic_fetch_sub(&pool->sleepers, 1);
    ds_mutex_unlock(&pool->lock);
}

static void *worker_main(void *argument)
{
    worker self = *(worker *)argument;
    free(argument);
    ds_pool *pool = self.pool;
    ds_modes_set();
    for (uint32_t seen = 0;; seen++) {
        wait_for_region(pool, seen);
        if (atomic_load_explicit(&pool->stop, memory_order_acquire))
            return NULL;
        work(pool, self.thread);
        if (atomic_fetch_sub(&pool->working, 1) == 1 && atomic_load(&pool->caller_sleeps)) {
            ds_mutex_lock(&pool->lock);
            ds_cond_signal(&pool->done);
            ds_mutex_unlock(&pool->lock);
        }
    }
}

static void begin_region(ds_pool *pool)
{
    atomic_fetch_add(&pool->generation, 1);
    if (atomic_load(&pool->sleepers) > 0) {
        ds_mutex_lock(&pool->lock);
        ds_cond_broadcast(&pool->wake);
        ds_mutex_unlock(&pool->lock);
    }
}

static void wait_for_workers(ds_pool *pool)
{
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(&pool->working, memory_order_acquire) == 0)
            return;
        pause_cpu();
    }
    ds_mutex_lock(&pool->lock);
    atomic_store(&pool->caller_sleeps, true);
    while (atomic_load(&pool->working) > 0)
        ds_cond_wait(&pool->done, &pool->lock);
    atomic_store(&pool->caller_sleeps, false);
    ds_mutex_unlock(&pool->lock);
}

static void wait_for_turn(ds_pool *pool)
{
    uint32_t ticket = atomic_fetch_add(&pool->tickets, 1);
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(&pool->served, memory_order_acquire) == ticket)
            return;
        pause_cpu();
    }
    ds_mutex_lock(&pool->turn_lock);
    atomic_fetch_add(&pool->turn_sleepers, 1);
    while (atomic_load(&pool->served) != ticket)
        ds_cond_wait(&pool->turns[ticket % TURNS], &pool->turn_lock);
    atomic_fetch_sub(&pool->turn_sleepers, 1);
    ds_mutex_unlock(&pool->turn_lock);
}

static void end_turn(ds_pool *pool)
{
    uint32_t next = atomic_fetch_add(&pool->served, 1) + 1;
    if (atomic_load(&pool->turn_sleepers) > 0) {
        ds_mutex_lock(&pool->turn_lock);
        ds_cond_broadcast(&pool->turns[next % TURNS]);
        ds_mutex_unlock(&pool->turn_lock);
    }
}

/* No other thread makes this true or false for the one that asks. */
static bool holds_turn(const ds_pool *pool)
{
    return atomic_load_explicit(&pool->turn_holder, memory_order_relaxed) == &self;
}

static bool runs_alone(const ds_pool *pool) { return pool->n_threads == 1 || ds_pool_is_inherited(pool); }

void ds_pool_begin_turn(ds_pool *pool)
{
    if (runs_alone(pool))
        return;
    assert(!holds_turn(pool));
    wait_for_turn(pool);
    atomic_store_explicit(&pool->turn_holder, &self, memory_order_relaxed);
}

bool ds_pool_end_turn(ds_pool *pool)
{
    if (!holds_turn(pool))
        return false;
    atomic_store_explicit(&pool->turn_holder, NULL, memory_order_relaxed);
    end_turn(pool);
    return true;
}

unsigned ds_pool_waiting(const ds_pool *pool)
{
    uint32_t served = atomic_load(&pool->served), n = atomic_load(&pool->tickets) - served;
    return n > 0 ? n - 1 : 0;
}

void ds_pool_run(ds_pool *pool, ds_task_fn fn, void *context, size_t n_tasks)
{
    if (n_tasks <= 1 || runs_alone(pool)) {
        for (size_t task = 0; task < n_tasks; task++)
            fn(context, task, 0);
        return;
    }
    bool is_turn = !holds_turn(pool); /* of one region */
    if (is_turn)
        wait_for_turn(pool);
    pool->fn = fn;
    pool->context = context;
    for (unsigned i = 0; i < pool->n_threads; i++) {
        uint32_t first = (uint32_t)(n_tasks * i / pool->n_threads);
        uint32_t end = (uint32_t)(n_tasks * (i + 1) / pool->n_threads);
        atomic_store_explicit(&pool->shares[i].left, tasks_between(first, end), memory_order_relaxed);
    }
    atomic_store_explicit(&pool->working, pool->n_threads - 1, memory_order_relaxed);
    begin_region(pool);
    work(pool, 0);
    wait_for_workers(pool);
    if (is_turn)
        end_turn(pool);
}

bool ds_pool_is_inherited(const ds_pool *pool) { return ds_os_mark_get(&pool->workers) == 0; }

unsigned ds_pool_threads(const ds_pool *pool) { return ds_pool_is_inherited(pool) ? 1 : pool->n_threads; }

static bool start_worker(ds_pool *pool, unsigned thread)
{
    worker *argument = malloc(sizeof *argument);
    if (argument == NULL)
        return false;
    *argument = (worker){pool, thread};
    bool started = ds_thread_start(&pool->threads[thread - 1], worker_main, argument);
    if (!started)
        free(argument);
    return started;
}

dsv2_status ds_pool_create(unsigned n_threads, ds_pool **out)
{
    ds_pool *pool = ds_new(1, sizeof *pool);
    if (pool == NULL)
        return ds_fail_memory("the thread pool", sizeof *pool);
    pool->n_threads = n_threads;
    ds_mutex_init(&pool->turn_lock);
    for (int i = 0; i < TURNS; i++)
        ds_cond_init(&pool->turns[i]);
    ds_mutex_init(&pool->lock);
    ds_cond_init(&pool->wake);
    ds_cond_init(&pool->done);
    pool->threads = ds_new(n_threads, sizeof *pool->threads);
    pool->shares = ds_new_aligned(n_threads, sizeof *pool->shares);
    if (pool->threads == NULL || pool->shares == NULL || !ds_os_mark_new(&pool->workers)) {
        ds_pool_destroy(pool);
        return ds_fail_memory("the thread pool", n_threads * sizeof *pool->threads);
    }
    ds_os_mark_set(&pool->workers, 1);
    for (unsigned thread = 1; thread < n_threads; thread++) {
        if (!start_worker(pool, thread)) {
            ds_pool_destroy(pool);
            return ds_fail(DSV2_ERROR_MEMORY, "cannot start thread %u of %u", thread + 1, n_threads);
        }
        pool->n_started++;
    }
    *out = pool;
    return DSV2_OK;
}

static void stop_workers(ds_pool *pool)
{
    atomic_store_explicit(&pool->stop, true, memory_order_release);
    begin_region(pool);
    for (unsigned i = 0; i < pool->n_started; i++)
        ds_thread_join(&pool->threads[i]);
    ds_cond_destroy(&pool->done);
    ds_cond_destroy(&pool->wake);
    ds_mutex_destroy(&pool->lock);
    for (int i = 0; i < TURNS; i++)
        ds_cond_destroy(&pool->turns[i]);
    ds_mutex_destroy(&pool->turn_lock);
}

void ds_pool_destroy(ds_pool *pool)
{
    if (pool == NULL)
        return;
    /* In a child of the host there is nobody to join, and to destroy what a worker waits on would wait for ever. */
    if (pool->workers.word != NULL && !ds_pool_is_inherited(pool))
        stop_workers(pool);
    ds_os_mark_free(&pool->workers);
    ds_free(pool->shares);
    ds_free(pool->threads);
    ds_free(pool);
}

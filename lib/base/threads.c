#include "base/base.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A spin of this many pauses is some tens of microseconds: longer than the gaps between the regions of one pass, shorter
 * than anybody notices. */
enum { SPINS = 2000 };

/* A thread's tasks that nobody has begun: the first in the lower 32 bits, the end in the upper ones. On a cache line of its own. */
typedef struct share {
    alignas(64) _Atomic uint64_t left;
} share;

struct ds_pool {
    unsigned n_threads; /* the caller's included */
    unsigned n_started;
    pthread_t *threads;
    pthread_mutex_t region; /* held for the length of one region */

    /* The region at work. Written by the caller before `generation` grows, read by workers after they saw it grow. */
    ds_task_fn fn;
    void *context;
    share *shares;               /* [n_threads] */
    _Atomic unsigned working;    /* workers that have not finished this region */
    _Atomic uint32_t generation; /* regions begun */

    /* Sleeping: `lock` guards the two conditions, the counts say whether anybody has to be woken. */
    pthread_mutex_t lock;
    pthread_cond_t wake, done;
    _Atomic unsigned sleepers;
    _Atomic bool caller_sleeps;
    _Atomic bool stop;
};

typedef struct worker {
    ds_pool *pool;
    unsigned thread;
} worker;

static void pause_cpu(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static uint64_t tasks_between(uint32_t first, uint32_t end) { return (uint64_t)end << 32 | first; }

/* Takes a task of a share: its owner the first, others the last. False if none is left. */
static bool take_task(share *share, bool owner, size_t *task)
{
    uint64_t left = atomic_load_explicit(&share->left, memory_order_relaxed), rest;
    do {
        uint32_t first = (uint32_t)left, end = (uint32_t)(left >> 32);
        if (first == end)
            return false;
        *task = owner ? first : end - 1;
        rest = owner ? tasks_between(first + 1, end) : tasks_between(first, end - 1);
    } while (!atomic_compare_exchange_weak_explicit(&share->left, &left, rest, memory_order_relaxed, memory_order_relaxed));
    return true;
}

/* Neighbouring tasks mostly read neighbouring weights. Each thread goes through a part of its own from front to back, so that
 * the processor, which reads ahead, reads for it and not for another (with tasks dealt out one by one, two threads decoded
 * no faster than one); who is done early helps the others from behind. */
static void work(ds_pool *pool, unsigned thread)
{
    size_t task;
    for (unsigned i = 0; i < pool->n_threads; i++)
        while (take_task(&pool->shares[(thread + i) % pool->n_threads], i == 0, &task))
            pool->fn(pool->context, task, thread);
}

/* Returns when the generation is no longer `seen`, or at stop. */
static void wait_for_region(ds_pool *pool, uint32_t seen)
{
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(&pool->generation, memory_order_acquire) != seen)
            return;
        pause_cpu();
    }
    pthread_mutex_lock(&pool->lock);
    atomic_fetch_add(&pool->sleepers, 1);
    while (atomic_load(&pool->generation) == seen)
        pthread_cond_wait(&pool->wake, &pool->lock);
    atomic_fetch_sub(&pool->sleepers, 1);
    pthread_mutex_unlock(&pool->lock);
}

static void *worker_main(void *argument)
{
    worker self = *(worker *)argument;
    free(argument);
    ds_pool *pool = self.pool;
    for (uint32_t seen = 0;; seen++) {
        wait_for_region(pool, seen);
        if (atomic_load_explicit(&pool->stop, memory_order_acquire))
            return NULL;
        work(pool, self.thread);
        if (atomic_fetch_sub(&pool->working, 1) == 1 && atomic_load(&pool->caller_sleeps)) {
            pthread_mutex_lock(&pool->lock);
            pthread_cond_signal(&pool->done);
            pthread_mutex_unlock(&pool->lock);
        }
    }
}

static void begin_region(ds_pool *pool)
{
    atomic_fetch_add(&pool->generation, 1);
    if (atomic_load(&pool->sleepers) > 0) {
        pthread_mutex_lock(&pool->lock);
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->lock);
    }
}

static void wait_for_workers(ds_pool *pool)
{
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(&pool->working, memory_order_acquire) == 0)
            return;
        pause_cpu();
    }
    pthread_mutex_lock(&pool->lock);
    atomic_store(&pool->caller_sleeps, true);
    while (atomic_load(&pool->working) > 0)
        pthread_cond_wait(&pool->done, &pool->lock);
    atomic_store(&pool->caller_sleeps, false);
    pthread_mutex_unlock(&pool->lock);
}

void ds_pool_run(ds_pool *pool, ds_task_fn fn, void *context, size_t n_tasks)
{
    if (pool->n_threads == 1 || n_tasks <= 1) {
        for (size_t task = 0; task < n_tasks; task++)
            fn(context, task, 0);
        return;
    }
    pthread_mutex_lock(&pool->region);
    pool->fn = fn;
    pool->context = context;
    for (unsigned i = 0; i < pool->n_threads; i++)
        atomic_store_explicit(&pool->shares[i].left, tasks_between((uint32_t)(n_tasks * i / pool->n_threads),
                                                                   (uint32_t)(n_tasks * (i + 1) / pool->n_threads)), memory_order_relaxed);
    atomic_store_explicit(&pool->working, pool->n_threads - 1, memory_order_relaxed);
    begin_region(pool);
    work(pool, 0);
    wait_for_workers(pool);
    pthread_mutex_unlock(&pool->region);
}

unsigned ds_pool_threads(const ds_pool *pool) { return pool->n_threads; }

/* Starts one worker with every signal blocked. */
static bool start_worker(ds_pool *pool, unsigned thread)
{
    worker *argument = malloc(sizeof *argument);
    if (argument == NULL)
        return false;
    *argument = (worker){pool, thread};
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    bool started = pthread_create(&pool->threads[thread - 1], NULL, worker_main, argument) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
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
    pthread_mutex_init(&pool->region, NULL);
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pthread_cond_init(&pool->done, NULL);
    pool->threads = ds_new(n_threads, sizeof *pool->threads);
    pool->shares = ds_new_aligned(n_threads, sizeof *pool->shares);
    if (pool->threads == NULL || pool->shares == NULL) {
        ds_pool_destroy(pool);
        return ds_fail_memory("the thread pool", n_threads * sizeof *pool->threads);
    }
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

void ds_pool_destroy(ds_pool *pool)
{
    if (pool == NULL)
        return;
    atomic_store_explicit(&pool->stop, true, memory_order_release);
    begin_region(pool);
    for (unsigned i = 0; i < pool->n_started; i++)
        pthread_join(pool->threads[i], NULL);
    pthread_cond_destroy(&pool->done);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->lock);
    pthread_mutex_destroy(&pool->region);
    ds_free(pool->shares);
    ds_free(pool->threads);
    ds_free(pool);
}

/* CPUs by the cgroup's quota, rounded up; 0 if there is none to be found. Version 2 has "max 100000" or "QUOTA PERIOD" in
 * one file, version 1 has two files. Inside a container the group's own folder is mounted at the top. */
static unsigned cgroup_quota(void)
{
    long long quota = -1, period = 0;
    FILE *file = fopen("/sys/fs/cgroup/cpu.max", "re");
    if (file != NULL) {
        if (fscanf(file, "%lld %lld", &quota, &period) != 2)
            quota = -1;
        fclose(file);
    } else {
        file = fopen("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "re");
        if (file != NULL) {
            if (fscanf(file, "%lld", &quota) != 1)
                quota = -1;
            fclose(file);
        }
        file = fopen("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "re");
        if (file != NULL) {
            if (fscanf(file, "%lld", &period) != 1)
                period = 0;
            fclose(file);
        }
    }
    if (quota <= 0 || period <= 0)
        return 0;
    long long cpus = quota / period + (quota % period != 0);
    return cpus > 1024 ? 1024 : (unsigned)cpus;
}

unsigned ds_default_threads(void)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    unsigned cpus = 1;
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0)
        cpus = (unsigned)CPU_COUNT(&set);
    unsigned quota = cgroup_quota();
    return quota > 0 && quota < cpus ? quota : cpus;
}

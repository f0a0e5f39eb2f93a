/* The thread pool runs every task once: for any number of threads and tasks, for several callers, and with one long
 * task. */
#include "base/base.h"
#include "support/run.h"

#include <check.h>
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

enum { MAX_TASKS = 300, MAX_THREADS = 9 };

typedef struct counts {
    unsigned n_threads;
    _Atomic unsigned runs[MAX_TASKS];
    _Atomic unsigned of_thread[MAX_THREADS];
    _Atomic bool wrong_thread;
    _Atomic bool held; /* the first task waits for all others */
    size_t n_tasks;
} counts;

static void count_task(void *context, size_t task, unsigned thread)
{
    counts *c = context;
    if (thread >= c->n_threads || task >= c->n_tasks) {
        atomic_store(&c->wrong_thread, true);
        return;
    }
    if (task == 0 && atomic_load(&c->held)) {
        size_t done = 0;
        while (done < c->n_tasks - 1) {
            done = 0;
            for (size_t i = 1; i < c->n_tasks; i++)
                done += atomic_load(&c->runs[i]) > 0;
            nanosleep(&(struct timespec){.tv_nsec = 1000}, NULL);
        }
    }
    atomic_fetch_add(&c->runs[task], 1);
    atomic_fetch_add(&c->of_thread[thread], 1);
}

static void expect_each_once(const counts *c)
{
    ck_assert(!atomic_load(&c->wrong_thread));
    for (size_t task = 0; task < MAX_TASKS; task++)
        ck_assert_msg(atomic_load(&c->runs[task]) == (task < c->n_tasks),
                      "%u threads, %zu tasks: task %zu ran %u times", c->n_threads, c->n_tasks, task,
                      atomic_load(&c->runs[task]));
}

START_TEST(every_task_runs_once_on_any_number_of_threads)
{
    unsigned n_threads = (unsigned)_i;
    ds_pool *pool;
    ck_assert_int_eq(ds_pool_create(n_threads, &pool), DSV2_OK);
    ck_assert_uint_eq(ds_pool_threads(pool), n_threads);
    for (size_t n_tasks = 0; n_tasks <= MAX_TASKS; n_tasks += n_tasks < 30 ? 1 : 45) {
        counts c = {.n_threads = n_threads, .n_tasks = n_tasks};
        ds_pool_run(pool, count_task, &c, n_tasks);
        expect_each_once(&c);
    }
    ds_pool_destroy(pool);
}
END_TEST

/* The first thread to begin holds task 0 until the others have done all other tasks, its own share included. */
START_TEST(threads_help_one_that_is_held_up)
{
    unsigned n_threads = (unsigned)_i;
    ds_pool *pool;
    ck_assert_int_eq(ds_pool_create(n_threads, &pool), DSV2_OK);
    for (size_t n_tasks = 2; n_tasks <= MAX_TASKS; n_tasks += 149) {
        counts c = {.n_threads = n_threads, .n_tasks = n_tasks, .held = true};
        ds_pool_run(pool, count_task, &c, n_tasks);
        expect_each_once(&c);
    }
    ds_pool_destroy(pool);
}
END_TEST

typedef struct caller {
    ds_pool *pool;
    counts c[20];
} caller;

static void *call_often(void *argument)
{
    caller *caller = argument;
    for (size_t i = 0; i < 20; i++) {
        caller->c[i] = (counts){.n_threads = 3, .n_tasks = i * 7};
        ds_pool_run(caller->pool, count_task, &caller->c[i], caller->c[i].n_tasks);
    }
    return NULL;
}

START_TEST(regions_of_several_callers_do_not_mix)
{
    enum { CALLERS = 4 };
    static caller callers[CALLERS];
    pthread_t threads[CALLERS];
    ds_pool *pool;
    ck_assert_int_eq(ds_pool_create(3, &pool), DSV2_OK);
    for (size_t i = 0; i < CALLERS; i++) {
        callers[i].pool = pool;
        ck_assert_int_eq(pthread_create(&threads[i], NULL, call_often, &callers[i]), 0);
    }
    for (size_t i = 0; i < CALLERS; i++)
        pthread_join(threads[i], NULL);
    for (size_t i = 0; i < CALLERS; i++)
        for (size_t r = 0; r < 20; r++)
            expect_each_once(&callers[i].c[r]);
    ds_pool_destroy(pool);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("threads");
    TCase *pool = tcase_create("pool");
    tcase_set_timeout(pool, 60);
    tcase_add_loop_test(pool, every_task_runs_once_on_any_number_of_threads, 1, MAX_THREADS + 1);
    tcase_add_loop_test(pool, threads_help_one_that_is_held_up, 2, MAX_THREADS + 1);
    tcase_add_test(pool, regions_of_several_callers_do_not_mix);
    suite_add_tcase(suite, pool);
    return test_run(suite);
}

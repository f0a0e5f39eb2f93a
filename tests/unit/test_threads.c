/* The thread pool runs every task once: for any number of threads and tasks, for several callers, and with one long
 * task. Callers get their turns in order. Signals of faults reach the host's handlers on workers. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "base/base.h"
#include "support/run.h"

#include <check.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

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

/* ---- turns (B6) ---- */

enum { TURN_CALLERS = 3, TURN_REGIONS = 40 };

typedef struct turns {
    ds_pool *pool;
    unsigned regions_per_turn;
    _Atomic unsigned n_begun;
    unsigned who[TURN_CALLERS * TURN_REGIONS]; /* begun the regions, in order */
    _Atomic unsigned n_done;                   /* callers that will make no more regions */
} turns;

typedef struct turn_caller {
    turns *turns;
    unsigned number;
} turn_caller;

/* Holds the region until all others wait for theirs: so the region ends with every caller but this one in the queue. */
static void turn_task(void *context, size_t task, unsigned thread)
{
    (void)thread;
    const turn_caller *caller = context;
    turns *t = caller->turns;
    if (task != 0)
        return;
    t->who[atomic_fetch_add(&t->n_begun, 1)] = caller->number;
    while (ds_pool_waiting(t->pool) + atomic_load(&t->n_done) < TURN_CALLERS - 1)
        nanosleep(&(struct timespec){.tv_nsec = 1000}, NULL);
}

static void *take_turns(void *argument)
{
    turn_caller *caller = argument;
    unsigned per_turn = caller->turns->regions_per_turn;
    for (unsigned i = 0; i < TURN_REGIONS; i += per_turn) {
        if (per_turn > 1)
            ds_pool_begin_turn(caller->turns->pool);
        for (unsigned r = 0; r < per_turn; r++)
            ds_pool_run(caller->turns->pool, turn_task, caller, 2);
        ds_pool_end_turn(caller->turns->pool); /* does nothing where none was begun */
    }
    atomic_fetch_add(&caller->turns->n_done, 1);
    return NULL;
}

START_TEST(a_caller_that_ends_a_turn_waits_for_all_who_came_meanwhile)
{
    static const unsigned regions_per_turn[] = {1, 4};
    static turns t;
    t = (turns){.regions_per_turn = regions_per_turn[_i]};
    turn_caller callers[TURN_CALLERS];
    pthread_t threads[TURN_CALLERS];
    ck_assert_int_eq(ds_pool_create(2, &t.pool), DSV2_OK);
    for (unsigned i = 0; i < TURN_CALLERS; i++) {
        callers[i] = (turn_caller){&t, i};
        ck_assert_int_eq(pthread_create(&threads[i], NULL, take_turns, &callers[i]), 0);
    }
    for (unsigned i = 0; i < TURN_CALLERS; i++)
        pthread_join(threads[i], NULL);
    /* Every turn began with the others in the queue, so the same callers come round again and again, and nobody's
     * region is within another's turn. */
    unsigned per_turn = t.regions_per_turn, round = TURN_CALLERS * per_turn;
    for (unsigned i = round; i < TURN_CALLERS * TURN_REGIONS; i++)
        ck_assert_msg(t.who[i] == t.who[i - round], "region %u was caller %u's, expected caller %u's", i, t.who[i],
                      t.who[i - round]);
    for (unsigned i = 0; i < TURN_CALLERS * TURN_REGIONS; i++)
        ck_assert_msg(t.who[i] == t.who[i / per_turn * per_turn], "region %u was caller %u's, in the turn of caller %u",
                      i, t.who[i], t.who[i / per_turn * per_turn]);
    ds_pool_destroy(t.pool);
}
END_TEST

/* ---- signals (B7) ---- */

static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT};
enum { FAULTS = sizeof faults / sizeof *faults };

static bool is_fault(int number)
{
    for (int i = 0; i < FAULTS; i++)
        if (faults[i] == number)
            return true;
    return false;
}

typedef struct signalled {
    _Atomic unsigned begun;
    _Atomic unsigned wrongly_blocked, wrongly_open; /* bits: signals of workers */
    _Atomic unsigned read_back;
} signalled;

enum { SIGNAL_THREADS = 3 };

static _Atomic unsigned handled[FAULTS];
static volatile char *guarded; /* a page that may not be read until the handler allows that */

/* The host's handler, as a crash reporter has it. A true fault would come again for ever if nothing were done. */
static void handle(int number, siginfo_t *info, void *context)
{
    (void)context;
    for (int i = 0; i < FAULTS; i++)
        if (faults[i] == number)
            atomic_fetch_add(&handled[i], 1);
    if (info->si_code > 0 && info->si_addr == (void *)(uintptr_t)guarded)
        mprotect(info->si_addr, (size_t)sysconf(_SC_PAGESIZE), PROT_READ);
}

static void signal_task(void *context, size_t task, unsigned thread)
{
    (void)task;
    signalled *s = context;
    atomic_fetch_add(&s->begun, 1);
    while (atomic_load(&s->begun) < SIGNAL_THREADS) /* so that every thread gets a task */
        nanosleep(&(struct timespec){.tv_nsec = 1000}, NULL);
    if (thread == 0)
        return;
    sigset_t blocked;
    pthread_sigmask(SIG_BLOCK, NULL, &blocked);
    for (int number = 1; number < 32; number++) {
        bool is_blocked = sigismember(&blocked, number) == 1;
        if (number == SIGKILL || number == SIGSTOP)
            continue;
        if (is_fault(number) && is_blocked)
            atomic_fetch_or(&s->wrongly_blocked, 1u << number);
        if (!is_fault(number) && !is_blocked)
            atomic_fetch_or(&s->wrongly_open, 1u << number);
    }
    if (thread == 1 && atomic_load(&s->wrongly_blocked) == 0) {
        for (int i = 0; i < FAULTS; i++)
            pthread_kill(pthread_self(), faults[i]);
        atomic_store(&s->read_back, (unsigned)guarded[0] + 1);
    }
}

START_TEST(signals_of_faults_reach_the_hosts_handler_on_workers_and_no_others_do)
{
    struct sigaction action = {.sa_flags = SA_SIGINFO}, before[FAULTS];
    action.sa_sigaction = handle;
    for (int i = 0; i < FAULTS; i++)
        ck_assert(sigaction(faults[i], &action, &before[i]) == 0);
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    void *memory = mmap(NULL, page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ck_assert(memory != MAP_FAILED);
    guarded = memory;
    ds_pool *pool;
    signalled s = {.begun = 0};
    ck_assert_int_eq(ds_pool_create(SIGNAL_THREADS, &pool), DSV2_OK);
    ds_pool_run(pool, signal_task, &s, SIGNAL_THREADS);
    ds_pool_destroy(pool);
    for (int i = 0; i < FAULTS; i++)
        ck_assert(sigaction(faults[i], &before[i], NULL) == 0);
    ck_assert_msg(atomic_load(&s.wrongly_blocked) == 0, "blocked: %#x", atomic_load(&s.wrongly_blocked));
    ck_assert_msg(atomic_load(&s.wrongly_open) == 0, "not blocked: %#x", atomic_load(&s.wrongly_open));
    for (int i = 0; i < FAULTS; i++)
        ck_assert_msg(atomic_load(&handled[i]) == 1 + (unsigned)(faults[i] == SIGSEGV), "signal %d: handled %u times",
                      faults[i], atomic_load(&handled[i]));
    ck_assert_uint_eq(atomic_load(&s.read_back), 1);
    munmap(memory, page);
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
    tcase_add_loop_test(pool, a_caller_that_ends_a_turn_waits_for_all_who_came_meanwhile, 0, 2);
    tcase_add_test(pool, signals_of_faults_reach_the_hosts_handler_on_workers_and_no_others_do);
    suite_add_tcase(suite, pool);
    return test_run(suite);
}

#include "support/oom.h"

#include "support/sanitizers.h"

#include <check.h>
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static atomic_size_t countdown; /* 0: none fails */
static atomic_bool forever, fired;
static atomic_long live;
static _Thread_local bool begun; /* the thread runs what it was made for, not what a sanitizer does before */

/* The address sanitizer has a malloc of its own, which the functions below call by its other name. The thread
 * sanitizer's must not be called before the sanitizer is ready: under that one nothing fails. */
#if TEST_THREAD_SANITIZER || TEST_HAS_FEATURE(memory_sanitizer)
#define INTERPOSE 0
#else
#define INTERPOSE 1
#endif

#if INTERPOSE
/* These run before the sanitizers are ready. */
#define PLAIN __attribute__((no_sanitize("address"), no_sanitize("undefined")))

PLAIN static bool fails(void)
{
    if (TEST_ADDRESS_SANITIZER && !begun)
        return false;
    size_t left = atomic_load(&countdown);
    while (left > 1 && !atomic_compare_exchange_weak(&countdown, &left, left - 1))
        continue;
    if (left != 1)
        return false;
    if (!atomic_load(&forever))
        atomic_store(&countdown, 0);
    atomic_store(&fired, true);
    errno = ENOMEM;
    return true;
}

PLAIN static void *count(void *memory)
{
    if (memory != NULL)
        atomic_fetch_add(&live, 1);
    return memory;
}

/* `next`: the definition that this program's replaces. */
static _Thread_local bool looking;
/* A union, since C converts no object pointer to a function pointer. dlsym may itself ask calloc for memory: `early`
 * gives it. */
#define NEXT(name)                                                                                                     \
    static union {                                                                                                     \
        void *object;                                                                                                  \
        __typeof__(&name) call;                                                                                        \
    } next;                                                                                                            \
    if (next.object == NULL) {                                                                                         \
        looking = true;                                                                                                \
        next.object = dlsym(RTLD_NEXT, #name);                                                                         \
        looking = false;                                                                                               \
    }
#if TEST_ADDRESS_SANITIZER
#define NEXT_ALLOCATOR(name)                                                                                           \
    extern __typeof__(name) __interceptor_##name;                                                                      \
    static const struct {                                                                                              \
        __typeof__(&name) call;                                                                                        \
    } next = {__interceptor_##name};
#else
#define NEXT_ALLOCATOR(name) NEXT(name)
#endif

static _Alignas(16) unsigned char early[4096];
static atomic_size_t early_used;

PLAIN static bool is_early(const void *memory)
{
    uintptr_t address = (uintptr_t)memory, first = (uintptr_t)early;
    return address >= first && address < first + sizeof early;
}

PLAIN void *malloc(size_t size)
{
    NEXT_ALLOCATOR(malloc)
    return fails() ? NULL : count(next.call(size));
}

PLAIN void *calloc(size_t n, size_t size)
{
    if (looking) {
        size_t rounded = (n * size + 15) & ~(size_t)15, used = atomic_fetch_add(&early_used, rounded);
        return used + rounded <= sizeof early ? early + used : NULL;
    }
    NEXT_ALLOCATOR(calloc)
    return fails() ? NULL : count(next.call(n, size));
}

PLAIN int posix_memalign(void **out, size_t alignment, size_t size)
{
    NEXT_ALLOCATOR(posix_memalign)
    if (fails())
        return ENOMEM;
    int failure = next.call(out, alignment, size);
    if (failure == 0)
        count(*out);
    return failure;
}

PLAIN void *aligned_alloc(size_t alignment, size_t size)
{
    NEXT_ALLOCATOR(aligned_alloc)
    return fails() ? NULL : count(next.call(alignment, size));
}

PLAIN void *realloc(void *memory, size_t size)
{
    NEXT_ALLOCATOR(realloc)
    if (fails())
        return NULL;
    void *moved = next.call(memory, size);
    if (memory == NULL)
        count(moved);
    else if (moved == NULL && size == 0)
        atomic_fetch_sub(&live, 1);
    return moved;
}

PLAIN void free(void *memory)
{
    NEXT_ALLOCATOR(free)
    if (memory == NULL || is_early(memory))
        return;
    atomic_fetch_sub(&live, 1);
    next.call(memory);
}

PLAIN void *mmap(void *address, size_t size, int protection, int flags, int fd, off_t offset)
{
    NEXT(mmap)
    if (fails())
        return MAP_FAILED;
    void *memory = next.call(address, size, protection, flags, fd, offset);
    return memory == MAP_FAILED ? memory : count(memory);
}

PLAIN int munmap(void *address, size_t size)
{
    NEXT(munmap)
    int failure = next.call(address, size);
    if (failure == 0)
        atomic_fetch_sub(&live, 1);
    return failure;
}

typedef struct thread_start {
    void *(*start)(void *);
    void *argument;
} thread_start;

static void *begin_thread(void *context)
{
    thread_start own = *(thread_start *)context;
    free(context);
    begun = true;
    return own.start(own.argument);
}

PLAIN int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument)
{
    NEXT(pthread_create)
    thread_start *own = fails() ? NULL : malloc(sizeof *own);
    if (own == NULL)
        return EAGAIN;
    *own = (thread_start){start, argument};
    int failure = next.call(thread, attributes, begin_thread, own);
    if (failure != 0)
        free(own);
    return failure;
}
#endif

void oom_arm(size_t nth, bool all_after)
{
    begun = true;
    atomic_store(&fired, false);
    atomic_store(&forever, all_after);
    atomic_store(&countdown, nth);
}

bool oom_disarm(void)
{
    atomic_store(&countdown, 0);
    return atomic_load(&fired);
}

/* The address sanitizer reports leaks itself, and allocates for some functions of the C library behind this file's
 * back. */
long oom_live(void) { return TEST_ADDRESS_SANITIZER ? 0 : atomic_load(&live); }

bool oom_available(void)
{
    oom_arm(1, false);
    void *volatile probe = malloc(1);
    bool failed = oom_disarm() && probe == NULL;
    free(probe);
    if (!failed)
        test_leave_out("allocations that fail");
    return failed;
}

/* A mapping that fails is a failure of input. */
static bool is_want_of_memory(dsv2_status status)
{
    return status == DSV2_ERROR_MEMORY || (status == DSV2_ERROR_IO && strstr(dsv2_last_error(), "memory") != NULL);
}

size_t oom_fail_each(dsv2_status (*work)(void *context), void (*after)(void *context, dsv2_status status),
                     void *context, bool all_after)
{
    size_t n_failures = 0;
    bool failed = true;
    for (size_t nth = 1; failed; nth++) {
        oom_arm(nth, all_after);
        dsv2_status status = work(context);
        failed = oom_disarm();
        ck_assert_msg(status == DSV2_OK || (failed && is_want_of_memory(status)), "allocation %zu: %s: %s", nth,
                      dsv2_status_name(status), dsv2_last_error());
        after(context, status);
        n_failures += status != DSV2_OK;
    }
    ck_assert_msg(n_failures > 0, "no failing allocation made the call fail");
    return n_failures;
}

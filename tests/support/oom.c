#include "support/oom.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

static atomic_size_t countdown; /* 0: none fails */
static atomic_bool forever, fired;
static atomic_long live;

/* Sanitizers have a malloc of their own, which the program must not call before it is ready. */
#if defined(__has_feature)
#define HAS_FEATURE(x) __has_feature(x)
#else
#define HAS_FEATURE(x) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || HAS_FEATURE(address_sanitizer) || \
    HAS_FEATURE(thread_sanitizer) || HAS_FEATURE(memory_sanitizer)
#define INTERPOSE 0
#else
#define INTERPOSE 1
#endif

#if INTERPOSE
static bool fails(void)
{
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

static void *count(void *memory)
{
    if (memory != NULL)
        atomic_fetch_add(&live, 1);
    return memory;
}

/* `next`: the definition that this program's replaces. A union, since C converts no object pointer to a function
 * pointer. dlsym may itself ask calloc for memory: `early` gives it. */
static _Thread_local bool looking;
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

static _Alignas(16) unsigned char early[4096];
static atomic_size_t early_used;

static bool is_early(const void *memory)
{
    uintptr_t address = (uintptr_t)memory, first = (uintptr_t)early;
    return address >= first && address < first + sizeof early;
}

void *malloc(size_t size)
{
    NEXT(malloc)
    return fails() ? NULL : count(next.call(size));
}

void *calloc(size_t n, size_t size)
{
    if (looking) {
        size_t rounded = (n * size + 15) & ~(size_t)15, used = atomic_fetch_add(&early_used, rounded);
        return used + rounded <= sizeof early ? early + used : NULL;
    }
    NEXT(calloc)
    return fails() ? NULL : count(next.call(n, size));
}

int posix_memalign(void **out, size_t alignment, size_t size)
{
    NEXT(posix_memalign)
    if (fails())
        return ENOMEM;
    int failure = next.call(out, alignment, size);
    if (failure == 0)
        count(*out);
    return failure;
}

void *aligned_alloc(size_t alignment, size_t size)
{
    NEXT(aligned_alloc)
    return fails() ? NULL : count(next.call(alignment, size));
}

void *realloc(void *memory, size_t size)
{
    NEXT(realloc)
    if (fails())
        return NULL;
    void *moved = next.call(memory, size);
    if (memory == NULL)
        count(moved);
    else if (moved == NULL && size == 0)
        atomic_fetch_sub(&live, 1);
    return moved;
}

void free(void *memory)
{
    NEXT(free)
    if (memory == NULL || is_early(memory))
        return;
    atomic_fetch_sub(&live, 1);
    next.call(memory);
}

void *mmap(void *address, size_t size, int protection, int flags, int fd, off_t offset)
{
    NEXT(mmap)
    if (fails())
        return MAP_FAILED;
    void *memory = next.call(address, size, protection, flags, fd, offset);
    return memory == MAP_FAILED ? memory : count(memory);
}

int munmap(void *address, size_t size)
{
    NEXT(munmap)
    int failure = next.call(address, size);
    if (failure == 0)
        atomic_fetch_sub(&live, 1);
    return failure;
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument)
{
    NEXT(pthread_create)
    return fails() ? EAGAIN : next.call(thread, attributes, start, argument);
}
#endif

void oom_arm(size_t nth, bool all_after)
{
    atomic_store(&fired, false);
    atomic_store(&forever, all_after);
    atomic_store(&countdown, nth);
}

bool oom_disarm(void)
{
    atomic_store(&countdown, 0);
    return atomic_load(&fired);
}

long oom_live(void) { return atomic_load(&live); }

bool oom_available(void)
{
    oom_arm(1, false);
    void *volatile probe = malloc(1);
    bool failed = oom_disarm() && probe == NULL;
    free(probe);
    return failed;
}

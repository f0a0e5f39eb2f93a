#include "support/oom.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

static atomic_size_t countdown; /* 0: none fails */
static atomic_bool forever, fired;
static atomic_long live;

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
/* glibc's own, under the names that it has for programs that replace malloc. Not dlsym: that may itself allocate. */
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *memory, size_t size);
void *__libc_memalign(size_t alignment, size_t size);
void __libc_free(void *memory);

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

void *malloc(size_t size) { return fails() ? NULL : count(__libc_malloc(size)); }
void *calloc(size_t n, size_t size) { return fails() ? NULL : count(__libc_calloc(n, size)); }
void *memalign(size_t alignment, size_t size) { return fails() ? NULL : count(__libc_memalign(alignment, size)); }
void *aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }

void *realloc(void *memory, size_t size)
{
    if (fails())
        return NULL;
    void *moved = __libc_realloc(memory, size);
    if (memory == NULL)
        count(moved);
    else if (moved == NULL && size == 0)
        atomic_fetch_sub(&live, 1);
    return moved;
}

int posix_memalign(void **out, size_t alignment, size_t size)
{
    void *memory = memalign(alignment, size);
    if (memory == NULL)
        return ENOMEM;
    *out = memory;
    return 0;
}

void free(void *memory)
{
    if (memory != NULL)
        atomic_fetch_sub(&live, 1);
    __libc_free(memory);
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

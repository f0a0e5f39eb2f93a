/* Makes chosen allocations fail. oom.c, linked into a test program, defines malloc, calloc, realloc and their kin, mmap
 * and pthread_create for the whole process, its libraries included. */
#ifndef DS_TESTS_OOM_H
#define DS_TESTS_OOM_H

#include <dsv2/error.h>

#include <stdbool.h>
#include <stddef.h>

/* False where another allocator is in the way (valgrind, the thread sanitizer). Then nothing below has an effect, and
 * the program does not register the tests that need it. */
bool oom_available(void);

/* Lets the `nth` allocation from now on fail (1: the next), of any thread; if all_after, all later ones too. */
void oom_arm(size_t nth, bool all_after);

/* Lets allocations succeed again. Returns whether any failed. */
bool oom_disarm(void);

/* Blocks and mappings made and not given back; always 0 under the address sanitizer, which reports what is lost. */
long oom_live(void);

/* Calls `work` again and again, each time with a later allocation failing, and all later ones if all_after, until none
 * fails. Every call has to end with DSV2_OK or with a status that says that memory ran out, the last with DSV2_OK.
 * After every call `after` looks at what became of it, whether it failed or not, and takes it back. `work` makes no
 * assertions, since they allocate. Returns how many calls failed. */
size_t oom_fail_each(dsv2_status (*work)(void *context), void (*after)(void *context, dsv2_status status),
                     void *context, bool all_after);

#endif

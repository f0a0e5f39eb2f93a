/* Makes chosen allocations fail. oom.c, linked into a test program, defines malloc, calloc, realloc and their kin, mmap
 * and pthread_create for the whole process, its libraries included. */
#ifndef DS_TESTS_OOM_H
#define DS_TESTS_OOM_H

#include <stdbool.h>
#include <stddef.h>

/* False where another allocator is in the way (valgrind, the sanitizers). Then nothing below has an effect, and the
 * program does not register the tests that need it. */
bool oom_available(void);

/* Lets the `nth` allocation from now on fail (1: the next), of any thread; if all_after, all later ones too. */
void oom_arm(size_t nth, bool all_after);

/* Lets allocations succeed again. Returns whether any failed. */
bool oom_disarm(void);

/* Blocks and mappings made and not given back. */
long oom_live(void);

#endif

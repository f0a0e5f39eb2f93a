/* Makes chosen allocations fail. Link oom.c into a test program: its malloc, calloc, realloc and their kin, mmap and pthread_create
 * then serve the whole process, the libraries it uses included. */
#ifndef DS_TESTS_OOM_H
#define DS_TESTS_OOM_H

#include <stdbool.h>
#include <stddef.h>

/* False where another allocator is in the way (valgrind, the sanitizers): then nothing below has an
 * effect, and a program does not register the tests that need it. */
bool oom_available(void);

/* The `nth` allocation from now on (1: the next) of any thread fails, and so do all after it if `all_after`. */
void oom_arm(size_t nth, bool all_after);

/* Ends that; returns whether any allocation failed. */
bool oom_disarm(void);

/* Blocks and mappings made and not given back. */
long oom_live(void);

#endif

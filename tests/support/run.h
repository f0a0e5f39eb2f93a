/* Running a suite of Check's tests. */
#ifndef DS_TESTS_RUN_H
#define DS_TESTS_RUN_H

#include <check.h>
#include <stdbool.h>

/* Runs the suite, prints Check's summary and frees the suite. main returns the result. */
int test_run(Suite *suite);

/* Whether a sanitizer watches and DSV2_TEST_ALL is not set. A sanitizer is there for reads, writes and races. So what
 * repeats the same reads and writes for the sake of results alone may be left to the plain build. */
bool test_is_abridged(void);

/* Whether a child may allocate though another thread was allocating when the process forked. glibc opens its locks in
 * the child; those of the sanitizers stay as the other thread left them. */
bool test_may_allocate_after_fork(void);

#endif

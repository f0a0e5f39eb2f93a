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

#endif

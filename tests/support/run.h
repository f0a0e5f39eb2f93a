/* Running a suite of Check's tests. */
#ifndef DS_TESTS_RUN_H
#define DS_TESTS_RUN_H

#include <check.h>

/* Runs the suite, prints Check's summary and frees the suite. main returns the result. */
int test_run(Suite *suite);

#endif

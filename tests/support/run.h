/* Running a suite of Check's tests. */
#ifndef DS_TESTS_RUN_H
#define DS_TESTS_RUN_H

#include <check.h>

/* Runs the suite, prints Check's summary and frees it; what main returns. */
int test_run(Suite *suite);

#endif

#include "support/run.h"

#include <stdlib.h>

int test_run(Suite *suite)
{
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { SANITIZED = true };
#else
enum { SANITIZED = false };
#endif

bool test_is_abridged(void) { return SANITIZED && getenv("DSV2_TEST_ALL") == NULL; }

bool test_may_allocate_after_fork(void) { return !SANITIZED; }

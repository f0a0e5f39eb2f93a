#include "support/sanitizers.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* In one write, so that no lock is taken and no line is cut by another's. */
void test_leave_out(const char *what)
{
    char line[256];
    int size = snprintf(line, sizeof line, "left out: %s\n", what);
    if (size < 0 || write(STDERR_FILENO, line, (size_t)size) < 0)
        abort();
}

static bool unless(bool prevented, const char *what)
{
    if (prevented)
        test_leave_out(what);
    return !prevented;
}

bool test_repeats(void)
{
    return unless(TEST_SANITIZED && getenv("DSV2_TEST_ALL") == NULL, "repetitions for the sake of results alone");
}

bool test_may_allocate_after_fork(void)
{
    return unless(TEST_SANITIZED, "allocations in a child of a fork beside a thread that allocates");
}

bool test_may_thread_after_fork(void) { return unless(TEST_THREAD_SANITIZER, "threads of a child of a fork"); }

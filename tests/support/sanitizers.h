/* What sanitizers keep tests from seeing: the whole list, and the only place that asks which sanitizer watches. What a
 * test leaves out there is said on standard error, as "left out: ...". tests/report.py collects these lines. */
#ifndef DS_TESTS_SANITIZERS_H
#define DS_TESTS_SANITIZERS_H

#include <stdbool.h>

/* gcc defines names, clang has features. */
#if defined(__has_feature)
#define TEST_HAS_FEATURE(x) __has_feature(x)
#else
#define TEST_HAS_FEATURE(x) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || TEST_HAS_FEATURE(address_sanitizer)
#define TEST_ADDRESS_SANITIZER 1
#else
#define TEST_ADDRESS_SANITIZER 0
#endif
#if defined(__SANITIZE_THREAD__) || TEST_HAS_FEATURE(thread_sanitizer)
#define TEST_THREAD_SANITIZER 1
#else
#define TEST_THREAD_SANITIZER 0
#endif
#define TEST_SANITIZED (TEST_ADDRESS_SANITIZER || TEST_THREAD_SANITIZER)

/* Says that `what` is left out. May be called in a child of a fork. */
void test_leave_out(const char *what);

/* The functions below say what is left out when they return false. */

/* Both sanitizers, unless DSV2_TEST_ALL is set. A sanitizer is there for reads, writes and races: what repeats the same
 * reads and writes for the sake of results alone is left to the plain build. */
bool test_repeats(void);

/* Both sanitizers. Whether a child may allocate though another thread was allocating when the process forked. glibc
 * opens its locks in the child; those of the sanitizers stay as the other thread left them. */
bool test_may_allocate_after_fork(void);

/* The thread sanitizer: a child of a process with threads may start none. */
bool test_may_thread_after_fork(void);

/* The thread sanitizer's malloc must not be called before the sanitizer is ready: oom_available (oom.h). The address
 * sanitizer reports what is lost itself: oom_live. */

#endif

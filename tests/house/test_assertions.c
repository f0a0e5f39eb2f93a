/* Assertions are alive in the library that tests link. tests/abi/headers.py sees that the installed libraries have
 * none. */
#include "cache/cache.h"
#include "support/run.h"

#include <signal.h>

START_TEST(a_broken_contract_ends_a_test)
{
    ds_cache cache;
    ds_cache_init(&cache, NULL, &(ds_cache_shape){.n_layers = 1});
    ck_assert_ptr_nonnull(ds_cache_rows(&cache, 0, 0)); /* a page that was never reserved */
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("assertions");
    TCase *tests = tcase_create("assertions");
    tcase_add_test_raise_signal(tests, a_broken_contract_ends_a_test, SIGABRT);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}

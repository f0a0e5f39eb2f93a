/* The one place that touches floating-point modes: <fenv.h> has all of them, also those beyond C's own that flush small
 * numbers to zero, and on x86 those of both units (SSE's arithmetic, and x87's, which strtod and printf look at). */
#include "base/base.h"

/* The innermost call of the library on this thread; NULL: none. */
static _Thread_local ds_modes *innermost;

void ds_modes_set(void) { (void)fesetenv(FE_DFL_ENV); }

void ds_modes_begin(ds_modes *modes)
{
    modes->outer = innermost;
    (void)fegetenv(&modes->host);
    ds_modes_set();
    innermost = modes;
}

void ds_modes_end(ds_modes *modes)
{
    innermost = modes->outer;
    (void)fesetenv(&modes->host);
}

void ds_modes_lend(void)
{
    if (innermost != NULL)
        (void)fesetenv(&innermost->host);
}

void ds_modes_take_back(void)
{
    if (innermost == NULL)
        return;
    (void)fegetenv(&innermost->host); /* the callback may have changed the modes */
    ds_modes_set();
}

bool ds_call_progress(dsv2_progress_fn progress, void *user, dsv2_phase phase, uint64_t done, uint64_t total)
{
    if (progress == NULL)
        return true;
    ds_modes_lend();
    int stop = progress(user, phase, done, total);
    ds_modes_take_back();
    return stop == 0;
}

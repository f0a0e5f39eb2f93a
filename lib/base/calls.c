/* Who was at work when the host forked.
 *
 * A fork copies memory while other threads work. Of what a thread writes, in its order, the copy has all up to some
 * moment and nothing later: the system makes a thread that writes to a copied page wait until the fork is over. So a
 * child that finds the count of calls at work to be 0 finds every lock open and everything whole. */
#include "base/base.h"

enum { OURS = 1, LOST = 2 };

dsv2_status ds_calls_init(ds_calls *calls)
{
    *calls = (ds_calls){.at_work = 0};
    if (!ds_os_mark_new(&calls->state))
        return ds_fail(DSV2_ERROR_MEMORY, "no memory for the page that tells a child from its parent");
    ds_os_mark_set(&calls->state, OURS);
    return DSV2_OK;
}

void ds_calls_free(ds_calls *calls) { ds_os_mark_free(&calls->state); }

/* The first to ask in a child decides, by what the fork has copied. Nobody has begun a call there before. */
static uint32_t state_of(ds_calls *calls)
{
    uint32_t state;
    while ((state = ds_os_mark_get(&calls->state)) == 0)
        ds_os_mark_set(&calls->state, atomic_load(&calls->at_work) == 0 ? OURS : LOST);
    return state;
}

dsv2_status ds_calls_check(ds_calls *calls)
{
    return state_of(calls) == OURS ? DSV2_OK : ds_fail_forked();
}

bool ds_calls_try(ds_calls *calls)
{
    bool ours = state_of(calls) == OURS;
    if (ours)
        atomic_fetch_add(&calls->at_work, 1);
    return ours;
}

dsv2_status ds_calls_begin(ds_calls *calls) { return ds_calls_try(calls) ? DSV2_OK : ds_fail_forked(); }

void ds_calls_end(ds_calls *calls)
{
    if (state_of(calls) == OURS)
        atomic_fetch_sub(&calls->at_work, 1);
}

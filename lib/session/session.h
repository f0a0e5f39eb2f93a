/* session: a conversation. Its tokens, its pages, its sampler; fork, rewind, and passes over one session or many.
 * The public functions are in api/session.c, which checks arguments and takes and leaves the session (busy).
 * May include: base, cache, forward, model, sampling, snapshot. */
#ifndef DS_LIB_SESSION_H
#define DS_LIB_SESSION_H

#include "base/base.h"
#include "cache/cache.h"
#include "model/model.h"
#include "sampling/sampling.h"
#include "snapshot/snapshot.h"

struct dsv2_session {
    dsv2_model *model; /* a reference */
    _Atomic bool busy;   /* a call is at work; see ds_session_enter */
    _Atomic bool cancel; /* that call is to stop */
    ds_modes modes;      /* floating-point modes of that call's thread, unless the call is a step */
    uint32_t max_length;
    dsv2_attention attention;
    dsv2_progress_fn progress;
    void *progress_user;

    /* Guards what a fork takes: tokens, length, the list of pages, logits and sampler. The call that has the session
     * (busy) reads these freely and holds the lock while it changes them, for moments; a fork holds the lock alone.
     * Rows at positions below `length` never change: so a pass may write rows behind them at the same time, even in a
     * page that a fork came to share. */
    ds_mutex committed;

    int32_t *tokens; /* length of them, and room for more */
    size_t length, tokens_capacity;
    ds_cache cache; /* pages for at least `length` positions. Pool and shape never change: reading them takes no lock */

    float *logits;      /* [vocab_size]: of the last token, if has_logits */
    float *next_logits; /* [vocab_size]: of a pass that has not yet succeeded */
    bool has_logits;
    ds_sampler sampler;
    /* Expert statistics: of the call at work, and of all calls that succeeded. Those of the call are added once it
     * succeeds. */
    ds_usage pending, usage[DS_USAGE_KINDS];
    dsv2_routing_trace_fn trace; /* NULL: none */
    void *trace_user;

    ds_candidate *candidates; /* [vocab_size]; NULL until ds_session_need_candidates */
};

/* options: complete, checked for sizes only. */
dsv2_status ds_session_create(dsv2_model *model, const dsv2_session_options *options, dsv2_session **session);
void ds_session_destroy(dsv2_session *session);

/* Takes the session for one call; DSV2_ERROR_BUSY if another has it, DSV2_ERROR_STATE if its model is lost to this
 * child of the host. Every success is followed by ds_session_leave. */
dsv2_status ds_session_enter(dsv2_session *session);
void ds_session_leave(dsv2_session *session);

/* A copy of the first n tokens, whether or not a call has the session. DSV2_ERROR_ARGUMENT if there are fewer. */
dsv2_status ds_session_make_fork(dsv2_session *session, size_t n, dsv2_session **copy);

/* The functions below are called with the session taken. */

void ds_session_rewind(dsv2_session *session, size_t n);

/* Exchanges what the session holds with what came out of a snapshot; samplers are exchanged only if sampler_too. */
void ds_session_exchange(dsv2_session *session, ds_snapshot_content *content, bool sampler_too);

/* DSV2_ERROR_STATE without logits. */
dsv2_status ds_session_need_logits(const dsv2_session *session);

/* Memory for vocab_size candidates. */
dsv2_status ds_session_need_candidates(dsv2_session *session);

/* DSV2_ERROR_ARGUMENT unless n <= length. */
dsv2_status ds_session_check_length(const dsv2_session *session, size_t n);

/* Item number i: an item of the host's has the size that its struct_size says. That may be the size of version 0.1:
 * fields that were appended later are read only where struct_size covers them. */
static inline dsv2_step_item *ds_step_item_at(dsv2_step_item *items, size_t i)
{
    return (dsv2_step_item *)(void *)((char *)items + i * items->struct_size);
}

/* step.c: the work of dsv2_step and dsv2_session_feed. The items' arguments are checked and their sessions taken. */
dsv2_status ds_session_step(dsv2_model *model, dsv2_step_item *items, size_t n_items);

/* Puts the item's index in front of the message of a failure that is one item's, if there are several. */
dsv2_status ds_fail_item(dsv2_status status, size_t index, size_t n_items);

#endif

/* Passes over the tokens of one session or many.
 *
 * The tokens of an item are cut into chunks of DS_PASS_ROWS, counted from the item's first token. A pass takes the next
 * chunk of as many items as fit. So the chunks of an item, and with them its bits, do not depend on the other items. */
#include "session/session.h"

#include <string.h>

/* One item's progress through a step. */
typedef struct progress {
    dsv2_step_item *item;
    size_t done;       /* tokens that went through all layers */
    uint64_t reported; /* token-layers: a token that went through one layer is one */
    bool stopped;      /* cancelled, or by the fault */
    ds_fault fault;
} progress;

/* Makes room for the item's tokens and rows. */
static dsv2_status prepare(dsv2_step_item *item)
{
    dsv2_session *session = item->session;
    size_t length = session->length + item->n_tokens;
    ds_mutex_lock(&session->committed);
    dsv2_status status = DSV2_OK;
    if (!ds_grow(&session->tokens, &session->tokens_capacity, length, sizeof *session->tokens))
        status = ds_fail_memory("tokens", length * sizeof *session->tokens);
    if (status == DSV2_OK)
        status = ds_cache_reserve(&session->cache, session->length, item->n_tokens);
    ds_mutex_unlock(&session->committed);
    return status;
}

/* Drops the room that prepare made, and what was counted: the session is as it was. */
static void drop(dsv2_step_item *item)
{
    dsv2_session *session = item->session;
    ds_mutex_lock(&session->committed);
    ds_cache_truncate(&session->cache, session->length);
    ds_mutex_unlock(&session->committed);
    ds_usage_clear(&session->pending, &session->model->fixed.usage_shape);
}

/* Adds the choices of experts for the item's tokens to the statistics of its session and of the model. */
static void commit_usage(const dsv2_step_item *item)
{
    dsv2_session *session = item->session;
    dsv2_model *model = session->model;
    int kind = item->n_tokens > 1 ? DS_USAGE_PROMPT : DS_USAGE_GENERATED;
    session->pending.n_tokens = item->n_tokens;
    ds_usage_add(&session->usage[kind], &session->pending, &model->fixed.usage_shape);
    ds_mutex_lock(&model->usage_lock);
    ds_usage_add(&model->usage[kind], &session->pending, &model->fixed.usage_shape);
    ds_mutex_unlock(&model->usage_lock);
    ds_usage_clear(&session->pending, &model->fixed.usage_shape);
}

/* Makes the item's tokens, and the logits of the last, the session's. */
static void commit(dsv2_step_item *item)
{
    dsv2_session *session = item->session;
    commit_usage(item);
    ds_mutex_lock(&session->committed);
    memcpy(session->tokens + session->length, item->tokens, item->n_tokens * sizeof *item->tokens);
    session->length += item->n_tokens;
    float *logits = session->logits;
    session->logits = session->next_logits;
    session->next_logits = logits;
    session->has_logits = true;
    ds_mutex_unlock(&session->committed);
}

/* Called after each layer: another n_rows token-layers are done. */
static dsv2_status stop(void *owner, uint32_t n_rows, bool *stopped)
{
    progress *p = owner;
    dsv2_session *session = p->item->session;
    p->reported += n_rows;
    uint64_t total = (uint64_t)p->item->n_tokens * session->model->fixed.config.num_hidden_layers;
    *stopped = atomic_load_explicit(&session->cancel, memory_order_relaxed) ||
               !ds_call_progress(session->progress, session->progress_user, DSV2_PHASE_PROMPT, p->reported, total);
    return ds_calls_check(&session->model->calls);
}

/* Called after each MoE layer: counts the chosen experts, and tells the session's trace. */
static void routed(void *owner, const ds_sequence *sequence, uint32_t layer, const ds_routes *routes)
{
    const progress *p = owner;
    dsv2_session *session = p->item->session;
    const ds_usage_shape *shape = &session->model->fixed.usage_shape;
    ds_usage_count(&session->pending, shape, ds_usage_layer(shape, layer), routes, sequence->first_row,
                   sequence->n_rows);
    if (session->trace == NULL)
        return;
    ds_modes_lend();
    for (size_t i = 0; i < sequence->n_rows && ds_calls_check(&session->model->calls) == DSV2_OK; i++) {
        size_t row = sequence->first_row + i, pair = row * shape->num_experts_per_tok;
        session->trace(session->trace_user, &(dsv2_routing_event){
                                                .position = sequence->first_position + i,
                                                .layer = layer,
                                                .n_experts = shape->num_experts_per_tok,
                                                .experts = routes->experts + pair,
                                                .gates = routes->gates + pair,
                                                .groups = routes->groups[row],
                                            });
    }
    ds_modes_take_back();
}

static uint32_t next_chunk(const progress *p)
{
    size_t left = p->item->n_tokens - p->done;
    return left < DS_PASS_ROWS ? (uint32_t)left : DS_PASS_ROWS;
}

static bool is_open(const progress *p) { return !p->stopped && p->done < p->item->n_tokens; }

dsv2_status ds_fail_item(dsv2_status status, size_t index, size_t n_items)
{
    return n_items > 1 ? ds_fail(status, "items[%zu]: %s", index, dsv2_last_error()) : status;
}

/* Why an item was stopped. */
static dsv2_status fail_stopped(const progress *p)
{
    if (p->fault.kind != DS_FAULT_NONE)
        return ds_fault_fail(&p->fault, &p->item->session->cache.shape);
    return ds_fail(DSV2_ERROR_CANCELLED, "cancelled after %zu of %zu tokens", p->done, p->item->n_tokens);
}

/* Fills `sequences` with the next chunks, in order of items, as many as a pass takes. Returns how many. */
static size_t gather(progress *items, size_t n_items, ds_sequence *sequences)
{
    size_t n_sequences = 0;
    uint32_t n_rows = 0;
    for (size_t i = 0; i < n_items; i++) {
        progress *p = &items[i];
        if (!is_open(p) || next_chunk(p) > DS_PASS_ROWS - n_rows)
            continue;
        dsv2_session *session = p->item->session;
        uint32_t n = next_chunk(p);
        size_t vocab_size = session->model->fixed.config.vocab_size;
        sequences[n_sequences++] = (ds_sequence){
            .cache = &session->cache,
            .tokens = p->item->tokens + p->done,
            .n_rows = n,
            .first_position = session->length + p->done,
            .attention = session->attention,
            .all_logits = p->item->logits == NULL ? NULL : p->item->logits + p->done * vocab_size,
            .last_logits = p->done + n == p->item->n_tokens ? session->next_logits : NULL,
            .stop = stop,
            .routed = routed,
            .owner = p,
        };
        n_rows += n;
    }
    return n_sequences;
}

static dsv2_status run(ds_pass *pass, progress *items, size_t n_items, ds_sequence *sequences)
{
    for (;;) {
        size_t n_sequences = gather(items, n_items, sequences);
        if (n_sequences == 0)
            return DSV2_OK;
        dsv2_status status = ds_decoder_forward(pass, sequences, n_sequences);
        if (status != DSV2_OK)
            return status;
        for (size_t s = 0; s < n_sequences; s++) {
            progress *p = sequences[s].owner;
            p->stopped = sequences[s].stopped;
            p->fault = sequences[s].fault;
            p->done += p->stopped ? 0 : sequences[s].n_rows;
        }
    }
}

dsv2_status ds_session_step(dsv2_model *model, dsv2_step_item *items, size_t n_items)
{
    enum { FEW = 8 }; /* items that take no memory of their own: of a session alone, each token is a step */
    progress few_progress[FEW], *progress_of = few_progress;
    ds_sequence few_sequences[FEW], *sequences = few_sequences;
    ds_pass *pass = NULL;
    size_t n_rows = 0, longest = 0, n_prepared = 0;
    dsv2_status status = DSV2_OK;
    if (n_items > FEW) {
        progress_of = ds_new(n_items, sizeof *progress_of);
        sequences = ds_new(n_items, sizeof *sequences);
        if (progress_of == NULL || sequences == NULL)
            status = ds_fail_memory("a step", n_items * (sizeof *progress_of + sizeof *sequences));
    }
    for (size_t i = 0; i < n_items && status == DSV2_OK; i++) {
        dsv2_step_item *item = ds_step_item_at(items, i);
        progress_of[i] = (progress){.item = item};
        size_t length = item->session->length + item->n_tokens;
        longest = length > longest ? length : longest;
        n_rows += n_rows < DS_PASS_ROWS ? item->n_tokens < DS_PASS_ROWS ? item->n_tokens : DS_PASS_ROWS : 0;
        status = prepare(item);
        if (status == DSV2_OK)
            n_prepared++;
        else
            status = ds_fail_item(status, i, n_items);
    }
    if (status == DSV2_OK)
        status = ds_container_check(model->fixed.container);
    if (status == DSV2_OK)
        status = ds_pass_acquire(&model->passes, &model->fixed.decoder,
                                 n_rows < DS_PASS_ROWS ? (uint32_t)n_rows : DS_PASS_ROWS, longest,
                                 &pass);
    if (status == DSV2_OK) {
        status = run(pass, progress_of, n_items, sequences);
        if (ds_calls_check(&model->calls) == DSV2_OK)
            ds_pass_release(pass);
        else
            n_prepared = 0; /* a child of the host: what others may have locked stays as it is */
    }
    dsv2_status first = status;
    for (size_t i = n_items; i-- > 0;) { /* backwards: the message is the first failed item's */
        dsv2_step_item *item = ds_step_item_at(items, i);
        item->status = status;
        if (status == DSV2_OK && progress_of[i].stopped)
            first = item->status = ds_fail_item(fail_stopped(&progress_of[i]), i, n_items);
    }
    for (size_t i = 0; i < n_items; i++) {
        dsv2_step_item *item = ds_step_item_at(items, i);
        if (item->status == DSV2_OK)
            commit(item);
        else if (i < n_prepared)
            drop(item);
    }
    if (n_items > FEW) {
        ds_free(sequences);
        ds_free(progress_of);
    }
    return first;
}

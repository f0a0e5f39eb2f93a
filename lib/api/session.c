#include "api/call.h"

#include <string.h>

dsv2_status dsv2_session_open(dsv2_model *model, const dsv2_session_options *options, dsv2_session **session)
{
    if (model == NULL || session == NULL)
        return ds_null_argument(model == NULL ? "model" : "session");
    dsv2_session_options known = {.struct_size = sizeof known};
    dsv2_status status = ds_read_options(DS_SIZED(dsv2_session_options, progress_user), options, &known);
    if (status != DSV2_OK)
        return status;
    if ((unsigned)known.attention > DSV2_ATTENTION_EXPANDED)
        return ds_fail(DSV2_ERROR_ARGUMENT, "attention is %d, expected a dsv2_attention", (int)known.attention);
    status = ds_calls_begin(&model->calls);
    if (status != DSV2_OK)
        return status;
    ds_modes modes; /* which the host's allocator is lent */
    ds_modes_begin(&modes);
    status = ds_session_create(model, &known, session);
    ds_modes_end(&modes);
    ds_calls_end(&model->calls);
    return status;
}

void dsv2_session_close(dsv2_session *session)
{
    dsv2_model *model = session == NULL ? NULL : session->model;
    if (model == NULL || ds_calls_begin(&model->calls) != DSV2_OK)
        return; /* lost to this child of the host: everything stays as it is */
    ds_modes modes;
    ds_modes_begin(&modes);
    ds_model_retain(model); /* which the session may be the last to have */
    ds_session_destroy(session);
    ds_calls_end(&model->calls);
    ds_model_release(model);
    ds_modes_end(&modes);
}

void dsv2_session_cancel(dsv2_session *session)
{
    if (session != NULL)
        atomic_store_explicit(&session->cancel, true, memory_order_relaxed);
}

dsv2_status dsv2_session_set_progress(dsv2_session *session, dsv2_progress_fn progress, void *progress_user)
{
    dsv2_status status = ds_begin_call(session);
    if (status != DSV2_OK)
        return status;
    session->progress = progress;
    session->progress_user = progress_user;
    return ds_end_call(session, DSV2_OK);
}

static dsv2_status check_item(const dsv2_step_item *item)
{
    const dsv2_session *session = item->session;
    if (item->tokens == NULL)
        return ds_null_argument("tokens");
    if (item->n_tokens == 0)
        return ds_fail(DSV2_ERROR_ARGUMENT, "n is 0, expected at least one token");
    if (item->n_tokens > session->max_length - session->length)
        return ds_fail(DSV2_ERROR_FULL, "the session holds %zu of at most %u tokens: %zu more do not fit",
                       session->length, session->max_length, item->n_tokens);
    uint32_t vocab_size = session->model->fixed.config.vocab_size;
    for (size_t i = 0; i < item->n_tokens; i++)
        if (item->tokens[i] < 0 || (uint32_t)item->tokens[i] >= vocab_size)
            return ds_fail(DSV2_ERROR_ARGUMENT, "token %zu is %d, expected 0 to %u", i, (int)item->tokens[i],
                           vocab_size - 1);
    return DSV2_OK;
}

dsv2_status dsv2_session_feed(dsv2_session *session, const int32_t *tokens, size_t n)
{
    dsv2_status status = ds_begin_call(session);
    if (status != DSV2_OK)
        return status;
    dsv2_step_item item = {.struct_size = sizeof item, .session = session, .tokens = tokens, .n_tokens = n};
    status = check_item(&item);
    if (status == DSV2_OK)
        status = ds_session_step(session->model, &item, 1);
    return ds_end_call(session, status);
}

static ds_sized sized_item(void) { return DS_SIZED(dsv2_step_item, status); }

/* Takes one item's session and checks the item; on failure the session is not taken. */
static dsv2_status enter_item(dsv2_model *model, const dsv2_step_item *item, size_t stride)
{
    if (item->struct_size != stride)
        return ds_fail(DSV2_ERROR_ARGUMENT, "struct_size is %zu, of the first item %zu", item->struct_size,
                       stride);
    dsv2_status status = ds_check_unknown(sized_item(), item, stride);
    if (status != DSV2_OK)
        return status;
    if (item->session == NULL)
        return ds_null_argument("session");
    if (item->session->model != model)
        return ds_fail(DSV2_ERROR_MISMATCH, "the session belongs to another model");
    status = ds_session_enter(item->session);
    if (status != DSV2_OK)
        return status;
    status = check_item(item);
    if (status != DSV2_OK)
        ds_session_leave(item->session);
    return status;
}

dsv2_status dsv2_step(dsv2_model *model, dsv2_step_item *items, size_t n_items)
{
    if (model == NULL || items == NULL)
        return ds_null_argument(model == NULL ? "model" : "items");
    if (n_items == 0)
        return ds_fail(DSV2_ERROR_ARGUMENT, "n_items is 0, expected at least one");
    size_t stride = items->struct_size;
    dsv2_status status = ds_check_size(sized_item(), stride);
    if (status == DSV2_OK && stride % _Alignof(dsv2_step_item) != 0)
        status = ds_fail(DSV2_ERROR_ARGUMENT, "dsv2_step_item.struct_size is %zu, expected a multiple of %zu", stride,
                         _Alignof(dsv2_step_item));
    if (status != DSV2_OK)
        return status;
    size_t n_entered = 0;
    while (n_entered < n_items && (status = enter_item(model, ds_step_item_at(items, n_entered), stride)) == DSV2_OK)
        n_entered++;
    if (status != DSV2_OK)
        status = ds_fail_item(status, n_entered, n_items);
    ds_modes modes;
    ds_modes_begin(&modes);
    if (status == DSV2_OK)
        status = ds_session_step(model, items, n_items);
    else
        for (size_t i = 0; i < n_items; i++)
            ds_step_item_at(items, i)->status = status;
    for (size_t i = 0; i < n_entered; i++)
        ds_session_leave(ds_step_item_at(items, i)->session);
    ds_modes_end(&modes);
    return status;
}

dsv2_status dsv2_session_sample(dsv2_session *session, int32_t *token)
{
    dsv2_status status = ds_begin_call_with(session, token, "token");
    if (status != DSV2_OK)
        return status;
    status = ds_session_need_logits(session);
    if (status == DSV2_OK)
        status = ds_session_need_candidates(session);
    if (status == DSV2_OK) {
        ds_mutex_lock(&session->committed); /* drawing changes the random numbers, which a fork copies */
        status = ds_sampler_draw(&session->sampler, session->logits, session->model->fixed.config.vocab_size,
                                 session->tokens, session->length, session->candidates, token);
        ds_mutex_unlock(&session->committed);
    }
    return ds_end_call(session, status);
}

dsv2_status dsv2_session_set_sampling(dsv2_session *session, const dsv2_sampling *sampling)
{
    dsv2_status status = ds_begin_call_with(session, sampling, "sampling");
    if (status != DSV2_OK)
        return status;
    ds_mutex_lock(&session->committed);
    status = ds_sampler_set(&session->sampler, sampling, session->model->fixed.config.vocab_size);
    ds_mutex_unlock(&session->committed);
    return ds_end_call(session, status);
}

dsv2_status dsv2_session_seed(dsv2_session *session, uint64_t seed)
{
    dsv2_status status = ds_begin_call(session);
    if (status != DSV2_OK)
        return status;
    ds_mutex_lock(&session->committed);
    ds_random_seed(&session->sampler.random, seed);
    ds_mutex_unlock(&session->committed);
    return ds_end_call(session, DSV2_OK);
}

dsv2_status dsv2_session_logits(dsv2_session *session, const float **logits)
{
    dsv2_status status = ds_begin_call_with(session, logits, "logits");
    if (status != DSV2_OK)
        return status;
    status = ds_session_need_logits(session);
    if (status == DSV2_OK)
        *logits = session->logits;
    return ds_end_call(session, status);
}

dsv2_status dsv2_session_top_tokens(dsv2_session *session, size_t k, dsv2_token_probability *top)
{
    dsv2_status status = ds_begin_call_with(session, top, "top");
    if (status != DSV2_OK)
        return status;
    uint32_t vocab_size = session->model->fixed.config.vocab_size;
    if (k > vocab_size)
        status = ds_fail(DSV2_ERROR_ARGUMENT, "k is %zu, expected at most the vocabulary size, %u", k, vocab_size);
    if (status == DSV2_OK)
        status = ds_session_need_logits(session);
    if (status == DSV2_OK)
        status = ds_session_need_candidates(session);
    if (status == DSV2_OK)
        ds_top_tokens(session->logits, vocab_size, k, session->candidates, top);
    return ds_end_call(session, status);
}

dsv2_status dsv2_session_log_probability(dsv2_session *session, int32_t token, float *log_probability)
{
    dsv2_status status = ds_begin_call_with(session, log_probability, "log_probability");
    if (status != DSV2_OK)
        return status;
    uint32_t vocab_size = session->model->fixed.config.vocab_size;
    if (token < 0 || (uint32_t)token >= vocab_size)
        status = ds_fail(DSV2_ERROR_ARGUMENT, "token is %d, expected 0 to %u", (int)token, vocab_size - 1);
    if (status == DSV2_OK)
        status = ds_session_need_logits(session);
    if (status == DSV2_OK)
        *log_probability = ds_log_probability(session->logits[token], ds_log_sum_exp(session->logits, vocab_size));
    return ds_end_call(session, status);
}

dsv2_status dsv2_session_length(dsv2_session *session, size_t *n)
{
    dsv2_status status = ds_begin_call_with(session, n, "n");
    if (status != DSV2_OK)
        return status;
    *n = session->length;
    return ds_end_call(session, DSV2_OK);
}

dsv2_status dsv2_session_tokens(dsv2_session *session, int32_t *tokens, size_t capacity, size_t *n)
{
    if (session != NULL && n != NULL && tokens == NULL && capacity > 0)
        return ds_null_argument("tokens");
    dsv2_status status = ds_begin_call_with(session, n, "n");
    if (status != DSV2_OK)
        return status;
    *n = session->length;
    if (capacity > 0 && capacity < session->length)
        status = ds_fail(DSV2_ERROR_BUFFER, "capacity is %zu, the session has %zu tokens", capacity, session->length);
    else if (capacity > 0 && session->length > 0)
        memcpy(tokens, session->tokens, session->length * sizeof *tokens);
    return ds_end_call(session, status);
}

dsv2_status dsv2_session_truncate(dsv2_session *session, size_t n)
{
    dsv2_status status = ds_begin_call(session);
    if (status != DSV2_OK)
        return status;
    status = ds_session_check_length(session, n);
    if (status == DSV2_OK)
        ds_session_rewind(session, n);
    return ds_end_call(session, status);
}

dsv2_status dsv2_session_fork(dsv2_session *session, size_t n, dsv2_session **copy)
{
    if (session == NULL || copy == NULL)
        return ds_null_argument(session == NULL ? "session" : "copy");
    dsv2_status status = ds_calls_begin(&session->model->calls);
    if (status != DSV2_OK)
        return status;
    ds_modes modes;
    ds_modes_begin(&modes);
    status = ds_session_make_fork(session, n, copy);
    ds_modes_end(&modes);
    ds_calls_end(&session->model->calls);
    return status;
}

dsv2_status dsv2_session_bytes_per_token(const dsv2_session *session, uint64_t *bytes)
{
    if (session == NULL || bytes == NULL)
        return ds_null_argument(session == NULL ? "session" : "bytes");
    *bytes = (uint64_t)session->cache.shape.row_bytes * session->cache.shape.n_layers;
    return DSV2_OK;
}

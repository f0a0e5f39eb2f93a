#include "session/session.h"

#include <string.h>

dsv2_status ds_session_create(dsv2_model *model, const dsv2_session_options *options, dsv2_session **out)
{
    const ds_config *config = &model->fixed.config;
    ds_cache_shape shape;
    dsv2_status status = ds_model_cache_shape(model, options->cache_type, &shape);
    if (status != DSV2_OK)
        return status;
    if (options->max_length > config->max_position_embeddings)
        return ds_fail(DSV2_ERROR_ARGUMENT, "max_length is %u, the model's context length is %u", options->max_length,
                       config->max_position_embeddings);
    dsv2_session *session = ds_new(1, sizeof *session);
    const dsv2_allocator *allocator = &model->fixed.allocator;
    float *logits = ds_allocate(allocator, config->vocab_size, sizeof *logits);
    float *next_logits = ds_allocate(allocator, config->vocab_size, sizeof *next_logits);
    if (session == NULL || logits == NULL || next_logits == NULL) {
        ds_release(allocator, next_logits);
        ds_release(allocator, logits);
        ds_free(session);
        return ds_fail_memory("a session", sizeof *session + 2 * config->vocab_size * sizeof *logits);
    }
    ds_model_retain(model);
    ds_mutex_init(&session->committed);
    session->model = model;
    session->max_length = options->max_length > 0 ? options->max_length : config->max_position_embeddings;
    session->attention = options->attention;
    session->progress = options->progress;
    session->progress_user = options->progress_user;
    session->logits = logits;
    session->next_logits = next_logits;
    ds_cache_init(&session->cache, &model->pages, &shape);
    ds_sampler_init(&session->sampler);
    status = ds_usage_init(&session->pending, &model->fixed.usage_shape);
    for (int kind = 0; kind < DS_USAGE_KINDS && status == DSV2_OK; kind++)
        status = ds_usage_init(&session->usage[kind], &model->fixed.usage_shape);
    if (status != DSV2_OK) {
        ds_session_destroy(session);
        return status;
    }
    *out = session;
    return DSV2_OK;
}

void ds_session_destroy(dsv2_session *session)
{
    if (session == NULL)
        return;
    const dsv2_allocator *allocator = &session->model->fixed.allocator;
    ds_usage_free(&session->pending);
    for (int kind = 0; kind < DS_USAGE_KINDS; kind++)
        ds_usage_free(&session->usage[kind]);
    ds_sampler_free(&session->sampler);
    ds_cache_destroy(&session->cache);
    ds_release(allocator, session->candidates);
    ds_release(allocator, session->next_logits);
    ds_release(allocator, session->logits);
    ds_free(session->tokens);
    ds_mutex_destroy(&session->committed);
    ds_model_release(session->model);
    ds_free(session);
}

dsv2_status ds_session_enter(dsv2_session *session)
{
    dsv2_status status = ds_calls_begin(&session->model->calls);
    if (status != DSV2_OK)
        return status;
    if (atomic_exchange_explicit(&session->busy, true, memory_order_acquire)) {
        ds_calls_end(&session->model->calls);
        return ds_fail(DSV2_ERROR_BUSY, "the session is in use by another call, or by another item of this step");
    }
    atomic_store_explicit(&session->cancel, false, memory_order_relaxed);
    return DSV2_OK;
}

void ds_session_leave(dsv2_session *session)
{
    atomic_store_explicit(&session->busy, false, memory_order_release);
    ds_calls_end(&session->model->calls);
}

void ds_session_rewind(dsv2_session *session, size_t n)
{
    if (n == session->length)
        return;
    ds_mutex_lock(&session->committed);
    ds_cache_truncate(&session->cache, n);
    session->length = n;
    session->has_logits = false;
    ds_mutex_unlock(&session->committed);
}

dsv2_status ds_session_check_length(const dsv2_session *session, size_t n)
{
    if (n <= session->length)
        return DSV2_OK;
    return ds_fail(DSV2_ERROR_ARGUMENT, "n is %zu, the session has %zu tokens", n, session->length);
}

/* Gives `copy` the first n tokens of a session, with sampler and logits, and lets it share their pages. The session's
 * `committed` is held. */
static dsv2_status copy_first_tokens(const dsv2_session *session, size_t n, dsv2_session *copy)
{
    dsv2_status status = ds_session_check_length(session, n);
    if (status == DSV2_OK && !ds_grow(&copy->tokens, &copy->tokens_capacity, n, sizeof *copy->tokens))
        status = ds_fail_memory("tokens", n * sizeof *copy->tokens);
    if (status == DSV2_OK)
        status = ds_sampler_copy(&copy->sampler, &session->sampler);
    if (status == DSV2_OK)
        status = ds_cache_share(&session->cache, n, &copy->cache);
    if (status != DSV2_OK)
        return status;
    if (n > 0)
        memcpy(copy->tokens, session->tokens, n * sizeof *copy->tokens);
    copy->length = n;
    copy->has_logits = session->has_logits && n == session->length;
    if (copy->has_logits)
        memcpy(copy->logits, session->logits, session->model->fixed.config.vocab_size * sizeof *copy->logits);
    return DSV2_OK;
}

dsv2_status ds_session_make_fork(dsv2_session *session, size_t n, dsv2_session **out)
{
    dsv2_session_options options = {
        .struct_size = sizeof options,
        .max_length = session->max_length,
        .cache_type = session->cache.shape.type,
        .attention = session->attention,
    };
    dsv2_session *copy;
    dsv2_status status = ds_session_create(session->model, &options, &copy);
    if (status != DSV2_OK)
        return status;
    ds_mutex_lock(&session->committed);
    status = copy_first_tokens(session, n, copy);
    ds_mutex_unlock(&session->committed);
    if (status != DSV2_OK) {
        ds_session_destroy(copy);
        return status;
    }
    *out = copy;
    return DSV2_OK;
}

#define EXCHANGE(type, a, b) \
    do {                     \
        type kept = a;       \
        a = b;               \
        b = kept;            \
    } while (0)

void ds_session_exchange(dsv2_session *session, ds_snapshot_content *content, bool sampler_too)
{
    ds_mutex_lock(&session->committed);
    ds_cache_exchange(&session->cache, &content->cache);
    EXCHANGE(int32_t *, session->tokens, content->tokens);
    EXCHANGE(size_t, session->tokens_capacity, content->tokens_capacity);
    EXCHANGE(size_t, session->length, content->n_tokens);
    /* The host may still read the memory that dsv2_session_logits gave: the floats come into it. */
    if (content->has_logits)
        memcpy(session->logits, content->logits, session->model->fixed.config.vocab_size * sizeof *session->logits);
    session->has_logits = content->has_logits;
    if (sampler_too)
        EXCHANGE(ds_sampler, session->sampler, content->sampler);
    ds_mutex_unlock(&session->committed);
}

dsv2_status ds_session_need_logits(const dsv2_session *session)
{
    if (session->has_logits)
        return DSV2_OK;
    return ds_fail(DSV2_ERROR_STATE, "the session has no logits: feed at least one token first%s",
                   session->length > 0 ? " (after truncate, too)" : "");
}

dsv2_status ds_session_need_candidates(dsv2_session *session)
{
    size_t vocab_size = session->model->fixed.config.vocab_size;
    if (session->candidates == NULL)
        session->candidates = ds_allocate(&session->model->fixed.allocator, vocab_size, sizeof *session->candidates);
    return session->candidates != NULL ? DSV2_OK : ds_fail_memory("sampling", vocab_size * sizeof *session->candidates);
}

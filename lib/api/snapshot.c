#include "session/session.h"
#include "snapshot/snapshot.h"

#include <zstd.h>

static dsv2_status is_null(const char *name) { return ds_fail(DSV2_ERROR_ARGUMENT, "%s is NULL", name); }

static dsv2_status read_save_options(const dsv2_save_options *options, dsv2_save_options *known)
{
    *known = (dsv2_save_options){.struct_size = sizeof *known};
    dsv2_status status = ds_read_options("dsv2_save_options", options, known, sizeof *known, sizeof *known);
    if (status == DSV2_OK && (known->compression_level < ZSTD_minCLevel() || known->compression_level > ZSTD_maxCLevel()))
        status = ds_fail(DSV2_ERROR_ARGUMENT, "compression_level is %d, expected %d to %d", known->compression_level, ZSTD_minCLevel(),
                         ZSTD_maxCLevel());
    return status;
}

static ds_snapshot_source source_of(const dsv2_session *session)
{
    return (ds_snapshot_source){
        .model = session->model,
        .cache = &session->cache,
        .tokens = session->tokens,
        .n_tokens = session->length,
        .logits = session->has_logits ? session->logits : NULL,
        .sampler = &session->sampler,
        .cancel = &session->cancel,
    };
}

dsv2_status dsv2_session_save(dsv2_session *session, const char *path, const dsv2_save_options *options)
{
    if (session == NULL || path == NULL)
        return is_null(session == NULL ? "session" : "path");
    dsv2_save_options known;
    dsv2_status status = read_save_options(options, &known);
    if (status == DSV2_OK)
        status = ds_session_enter(session);
    if (status != DSV2_OK)
        return status;
    ds_snapshot_source source = source_of(session);
    status = ds_snapshot_save(&source, path, &known);
    ds_session_leave(session);
    return status;
}

dsv2_status dsv2_session_save_to(dsv2_session *session, dsv2_write_fn write, void *user, const dsv2_save_options *options)
{
    if (session == NULL || write == NULL)
        return is_null(session == NULL ? "session" : "write");
    dsv2_save_options known;
    dsv2_status status = read_save_options(options, &known);
    if (status == DSV2_OK && known.append)
        status = ds_fail(DSV2_ERROR_ARGUMENT, "append is %d: a callback cannot be appended to", known.append);
    if (status == DSV2_OK)
        status = ds_session_enter(session);
    if (status != DSV2_OK)
        return status;
    ds_snapshot_source source = source_of(session);
    status = ds_snapshot_save_to(&source, write, user, &known);
    ds_session_leave(session);
    return status;
}

/* From a file if `path` is there, else from the callback. */
static dsv2_status restore(dsv2_session *session, const char *path, dsv2_read_fn read, void *user, const dsv2_restore_options *options,
                           size_t *tokens_reused)
{
    dsv2_restore_options known = {.struct_size = sizeof known};
    dsv2_status status = ds_read_options("dsv2_restore_options", options, &known, sizeof known, sizeof known);
    if (status == DSV2_OK)
        status = ds_session_enter(session);
    if (status != DSV2_OK)
        return status;
    ds_snapshot_target target = {
        .model = session->model,
        .pages = session->cache.pool,
        .shape = session->cache.shape,
        .max_length = session->max_length,
        .cancel = &session->cancel,
    };
    ds_snapshot_content content;
    status = path != NULL ? ds_snapshot_restore(&target, path, &known, &content)
                          : ds_snapshot_restore_from(&target, read, user, &known, &content);
    if (status == DSV2_OK) {
        ds_session_exchange(session, &content, known.prompt == NULL);
        if (tokens_reused != NULL)
            *tokens_reused = session->length;
    }
    ds_snapshot_content_free(&content);
    ds_session_leave(session);
    return status;
}

dsv2_status dsv2_session_restore(dsv2_session *session, const char *path, const dsv2_restore_options *options, size_t *tokens_reused)
{
    if (session == NULL || path == NULL)
        return is_null(session == NULL ? "session" : "path");
    return restore(session, path, NULL, NULL, options, tokens_reused);
}

dsv2_status dsv2_session_restore_from(dsv2_session *session, dsv2_read_fn read, void *user, const dsv2_restore_options *options,
                                      size_t *tokens_reused)
{
    if (session == NULL || read == NULL)
        return is_null(session == NULL ? "session" : "read");
    return restore(session, NULL, read, user, options, tokens_reused);
}

dsv2_status dsv2_snapshot_inspect(const char *path, dsv2_snapshot_info *info)
{
    if (path == NULL || info == NULL)
        return is_null(path == NULL ? "path" : "info");
    dsv2_snapshot_info known;
    dsv2_status status = ds_snapshot_read_info(path, &known);
    return status == DSV2_OK ? ds_write_info("dsv2_snapshot_info", info, &known, sizeof known, sizeof known) : status;
}

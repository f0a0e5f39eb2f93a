#include "api/call.h"
#include "snapshot/snapshot.h"

#include <zstd.h>

static dsv2_status read_save_options(const dsv2_save_options *options, dsv2_save_options *known)
{
    *known = (dsv2_save_options){.struct_size = sizeof *known};
    dsv2_status status = ds_read_options(DS_SIZED(dsv2_save_options, progress_user), options, known);
    int level = known->compression_level, lowest = ZSTD_minCLevel(), highest = ZSTD_maxCLevel();
    if (status == DSV2_OK && (level < lowest || level > highest))
        status = ds_fail(DSV2_ERROR_ARGUMENT, "compression_level is %d, expected %d to %d", level, lowest, highest);
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
        return ds_null_argument(session == NULL ? "session" : "path");
    dsv2_save_options known;
    dsv2_status status = read_save_options(options, &known);
    if (status == DSV2_OK)
        status = ds_begin_call(session);
    if (status != DSV2_OK)
        return status;
    ds_snapshot_source source = source_of(session);
    return ds_end_call(session, ds_snapshot_save(&source, path, &known));
}

dsv2_status dsv2_session_save_to(dsv2_session *session, dsv2_write_fn write, void *user,
                                 const dsv2_save_options *options)
{
    if (session == NULL || write == NULL)
        return ds_null_argument(session == NULL ? "session" : "write");
    dsv2_save_options known;
    dsv2_status status = read_save_options(options, &known);
    if (status == DSV2_OK && known.append)
        status = ds_fail(DSV2_ERROR_ARGUMENT, "append is %d: a callback cannot be appended to", known.append);
    if (status == DSV2_OK)
        status = ds_begin_call(session);
    if (status != DSV2_OK)
        return status;
    ds_snapshot_source source = source_of(session);
    return ds_end_call(session, ds_snapshot_save_to(&source, write, user, &known));
}

/* Restores from the file at `path`, or from the callback if `path` is NULL. */
static dsv2_status restore(dsv2_session *session, const char *path, dsv2_read_fn read, void *user,
                           const dsv2_restore_options *options, size_t *tokens_reused)
{
    dsv2_restore_options known = {.struct_size = sizeof known};
    dsv2_status status = ds_read_options(DS_SIZED(dsv2_restore_options, progress_user), options, &known);
    if (status == DSV2_OK)
        status = ds_begin_call(session);
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
    if (ds_calls_check(&session->model->calls) == DSV2_OK)
        ds_snapshot_content_free(&content); /* not in a child of the host: the pages may be locked */
    return ds_end_call(session, status);
}

dsv2_status dsv2_session_restore(dsv2_session *session, const char *path, const dsv2_restore_options *options,
                                 size_t *tokens_reused)
{
    if (session == NULL || path == NULL)
        return ds_null_argument(session == NULL ? "session" : "path");
    return restore(session, path, NULL, NULL, options, tokens_reused);
}

dsv2_status dsv2_session_restore_from(dsv2_session *session, dsv2_read_fn read, void *user,
                                      const dsv2_restore_options *options, size_t *tokens_reused)
{
    if (session == NULL || read == NULL)
        return ds_null_argument(session == NULL ? "session" : "read");
    return restore(session, NULL, read, user, options, tokens_reused);
}

dsv2_status dsv2_snapshot_inspect(const char *path, dsv2_snapshot_info *info)
{
    if (path == NULL || info == NULL)
        return ds_null_argument(path == NULL ? "path" : "info");
    dsv2_snapshot_info known;
    dsv2_status status = ds_snapshot_read_info(path, &known);
    return status == DSV2_OK ? ds_write_info(DS_SIZED(dsv2_snapshot_info, latent_bytes), info, &known) : status;
}

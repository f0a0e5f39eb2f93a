/* --save, --restore and --kv of generate and chat: conversations as files. */
#include "common.h"

#include <string.h>

/* The cache type of the snapshot, so that a session of this type can be opened for it. */
static int snapshot_cache_type(const char *path, dsv2_cache_type *type)
{
    dsv2_snapshot_info info = {.struct_size = sizeof info};
    if (dsv2_snapshot_inspect(path, &info) != DSV2_OK)
        return fail_library();
    *type = info.cache_type;
    return GO_ON;
}

static int restore(dsv2_session *session, const char *path)
{
    progress_bar bar;
    progress_start(&bar, "Restoring");
    dsv2_restore_options options = {
        .struct_size = sizeof options, .convert = 1, .progress = progress_show, .progress_user = &bar};
    dsv2_status status = dsv2_session_restore(session, path, &options, NULL);
    progress_end(&bar);
    return status == DSV2_OK ? EXIT_OK : fail_library();
}

int open_stored_session(dsv2_model *model, const storage_settings *storage, const sampling_settings *sampling,
                        dsv2_session **session)
{
    dsv2_cache_type type;
    int status = find_cache_type(storage->kv, &type);
    if (status == GO_ON && storage->restore != NULL && storage->kv == NULL)
        status = snapshot_cache_type(storage->restore, &type);
    if (status != GO_ON)
        return status;
    *session = open_session(model, type, DSV2_ATTENTION_AUTO, true);
    if (*session == NULL)
        return EXIT_FAILED;
    status = storage->restore != NULL ? restore(*session, storage->restore) : EXIT_OK;
    /* A snapshot has its way of drawing, and the state of its random numbers. */
    if (status == EXIT_OK && (storage->restore == NULL || memcmp(sampling, &default_sampling, sizeof *sampling) != 0))
        status = set_sampling(*session, sampling);
    if (status != EXIT_OK) {
        dsv2_session_close(*session);
        *session = NULL;
    }
    return status;
}

int save_session(dsv2_session *session, const char *path)
{
    progress_bar bar;
    progress_start(&bar, "Saving");
    dsv2_save_options options = {
        .struct_size = sizeof options, .append = 1, .progress = progress_show, .progress_user = &bar};
    dsv2_status status = dsv2_session_save(session, path, &options);
    progress_end(&bar);
    return status == DSV2_OK ? EXIT_OK : fail_library();
}

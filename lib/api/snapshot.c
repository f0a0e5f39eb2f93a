#include "base/base.h"

#include <dsv2/snapshot.h>

static dsv2_status not_yet(const char *function)
{
    return dsv2_fail(DSV2_ERROR_UNSUPPORTED, "%s: this version has no snapshots yet", function);
}

dsv2_status dsv2_session_save(dsv2_session *session, const char *path, const dsv2_save_options *options)
{
    (void)session, (void)path, (void)options;
    return not_yet("dsv2_session_save");
}

dsv2_status dsv2_session_save_to(dsv2_session *session, dsv2_write_fn write, void *user, const dsv2_save_options *options)
{
    (void)session, (void)write, (void)user, (void)options;
    return not_yet("dsv2_session_save_to");
}

dsv2_status dsv2_session_restore(dsv2_session *session, const char *path, const dsv2_restore_options *options, size_t *tokens_reused)
{
    (void)session, (void)path, (void)options, (void)tokens_reused;
    return not_yet("dsv2_session_restore");
}

dsv2_status dsv2_session_restore_from(dsv2_session *session, dsv2_read_fn read, void *user, const dsv2_restore_options *options,
                                      size_t *tokens_reused)
{
    (void)session, (void)read, (void)user, (void)options, (void)tokens_reused;
    return not_yet("dsv2_session_restore_from");
}

dsv2_status dsv2_snapshot_inspect(const char *path, dsv2_snapshot_info *info)
{
    (void)path, (void)info;
    return not_yet("dsv2_snapshot_inspect");
}

/* What public functions on a session begin and end with. For this room alone. */
#ifndef DS_LIB_API_CALL_H
#define DS_LIB_API_CALL_H

#include "session/session.h"

/* DSV2_ERROR_ARGUMENT: the argument of this name is NULL. */
static inline dsv2_status ds_null_argument(const char *name)
{
    return ds_fail(DSV2_ERROR_ARGUMENT, "%s is NULL", name);
}

/* Takes the session for one call, and the library's floating-point modes. DSV2_ERROR_ARGUMENT if the session is NULL,
 * DSV2_ERROR_BUSY if another call has it. Every success is followed by ds_end_call. */
static inline dsv2_status ds_begin_call(dsv2_session *session)
{
    if (session == NULL)
        return ds_null_argument("session");
    dsv2_status status = ds_session_enter(session);
    if (status == DSV2_OK)
        ds_modes_begin(&session->modes);
    return status;
}

/* The same for a function that needs one more pointer, whose name is `name`. */
static inline dsv2_status ds_begin_call_with(dsv2_session *session, const void *argument, const char *name)
{
    return session != NULL && argument == NULL ? ds_null_argument(name) : ds_begin_call(session);
}

/* Leaves the session; returns the status of what was done with it. */
static inline dsv2_status ds_end_call(dsv2_session *session, dsv2_status status)
{
    ds_modes_end(&session->modes);
    ds_session_leave(session);
    return status;
}

#endif

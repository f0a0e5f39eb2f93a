/* libdsv2: statuses and messages.
 *
 * Every function that can fail returns a dsv2_status. DSV2_OK is zero. Any other status is a failure, after which
 *   - what the call was to change is as it was before (a session keeps its tokens, its logits and its random state),
 *   - output parameters are untouched, unless their function says otherwise,
 *   - dsv2_last_error() tells in words what failed, where, and what to do.
 * The library never prints, aborts, exits, raises or catches signals.
 */
#ifndef DSV2_ERROR_H
#define DSV2_ERROR_H

#include <dsv2/export.h>

DSV2_BEGIN_DECLS

/* The values are part of the binary interface: new ones are added at the end, and none is reused. */
typedef enum dsv2_status {
    DSV2_OK = 0,
    DSV2_ERROR_ARGUMENT = 1,    /* a NULL, an id outside the vocabulary, an unknown option, a wrong struct_size */
    DSV2_ERROR_MEMORY = 2,      /* no more memory or threads, by the system's limit or the host's own */
    DSV2_ERROR_IO = 3,          /* a file cannot be opened, read or written; the message has the system's reason */
    DSV2_ERROR_FORMAT = 4,      /* a file is damaged or not what it says it is */
    DSV2_ERROR_UNSUPPORTED = 5, /* well formed, but of a kind that this version does not run; or a function not there
                                 * yet */
    DSV2_ERROR_BUSY = 6,        /* the session is in use by another call */
    DSV2_ERROR_CANCELLED = 7,   /* by dsv2_session_cancel, or by a callback that returned non-zero */
    DSV2_ERROR_FULL = 8,        /* the tokens do not fit into the session's maximum length */
    DSV2_ERROR_MISMATCH = 9,    /* a snapshot, a session or counts that belong to another model */
    DSV2_ERROR_STATE = 10,      /* too early: e.g. logits or a sample asked of a session that was fed nothing. From any
                                 * call on a model or its sessions: the process was forked while the model was at work
                                 * (<dsv2/model.h>) */
    DSV2_ERROR_BUFFER = 11      /* the caller's buffer is too small; the needed size was stored */
} dsv2_status;

/* The status's name as written above, e.g. "DSV2_ERROR_FORMAT"; "DSV2_ERROR_UNKNOWN" for any other value.
 * The string is static and never freed. Any thread; cannot fail. */
DSV2_API const char *dsv2_status_name(dsv2_status status);

/* The message of this thread's last failed call; "" if none has failed. A successful call leaves the message as it was.
 * Valid UTF-8 in one line of at most 1023 bytes, no full stop at the end. Bytes of paths, names and texts that are no
 * UTF-8 stand in the message as \xff, control characters and line ends as spaces. The thread owns the string, which is
 * valid until the thread's next failing call or its end. */
DSV2_API const char *dsv2_last_error(void);

DSV2_END_DECLS
#endif

/* libdsv2: conversations as files.
 *
 * A snapshot holds a session's tokens, latent KV cache, sampler, random state and logits, checked by checksums. The next
 * token after a restore is, bit for bit, the one that would have come without it. Snapshots belong to one model (its
 * fingerprint is in the header) and are little-endian on every machine.
 */
#ifndef DSV2_SNAPSHOT_H
#define DSV2_SNAPSHOT_H

#include <dsv2/session.h>

DSV2_BEGIN_DECLS

/* Writes `size` bytes at `data`, all of them; returns 0, or non-zero for failure. Called from the thread that saves. */
typedef int (*dsv2_write_fn)(void *user, const void *data, size_t size);

/* Reads up to `size` bytes into `data` and stores how many in *got (0 only at the end); returns 0, or non-zero for failure. */
typedef int (*dsv2_read_fn)(void *user, void *data, size_t size, size_t *got);

/* struct_size as in dsv2_model_options. */
typedef struct dsv2_save_options {
    size_t struct_size;
    int append;                /* non-zero: if `path` holds a snapshot of the first tokens of this same session (the same rows
                                * in its cache, not the same ids alone), add only what is new; a crash meanwhile leaves the former
                                * state readable. Otherwise write anew. */
    int compression_level;     /* zstd level; 0: the default, a fast one */
    dsv2_progress_fn progress; /* DSV2_PHASE_SAVE */
    void *progress_user;
} dsv2_save_options;

/* Saves to a file: written under a temporary name in the same folder, flushed to disk, renamed. Whatever fails, the file
 * of that name is the old one or the new one. (A process killed meanwhile may leave the temporary file, PATH.XXXXXX.)
 * Returns DSV2_OK, DSV2_ERROR_ARGUMENT, _MEMORY, _IO, _BUSY or _CANCELLED. */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_session_save(dsv2_session *session, const char *path, const dsv2_save_options *options);

/* Saves through a callback. The same bytes as in a file; `append` must be 0. Returns as dsv2_session_save. */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_session_save_to(dsv2_session *session, dsv2_write_fn write, void *user,
                                                            const dsv2_save_options *options);

/* struct_size as in dsv2_model_options. */
typedef struct dsv2_restore_options {
    size_t struct_size;
    const int32_t *prompt;     /* NULL: restore everything. Otherwise restore the longest prefix that the snapshot's tokens share
                                * with these n_prompt ids, the logits if that is all of the snapshot, and leave the session its
                                * own sampler. */
    size_t n_prompt;
    int convert;               /* non-zero: a snapshot of another cache type is converted to the session's; otherwise refused */
    dsv2_progress_fn progress; /* DSV2_PHASE_RESTORE */
    void *progress_user;
} dsv2_restore_options;

/* Replaces what the session holds by what the snapshot holds. Everything is verified first: unless DSV2_OK is returned
 * the session is as it was. *tokens_reused (may be NULL) receives how many tokens were restored.
 * Returns DSV2_OK, DSV2_ERROR_ARGUMENT, _MEMORY, _IO, _FORMAT (which part is damaged), _UNSUPPORTED (a newer version),
 * _MISMATCH (another model or cache type), _FULL, _BUSY or _CANCELLED. */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_session_restore(dsv2_session *session, const char *path,
                                                            const dsv2_restore_options *options, size_t *tokens_reused);

/* The same from a callback, read once from the beginning to the end. */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_session_restore_from(dsv2_session *session, dsv2_read_fn read, void *user,
                                                                 const dsv2_restore_options *options, size_t *tokens_reused);

/* What a snapshot's header says. Set struct_size before the call. */
typedef struct dsv2_snapshot_info {
    size_t struct_size;
    uint32_t version;
    dsv2_cache_type cache_type;
    uint64_t n_tokens;
    uint64_t model_fingerprint; /* compare with dsv2_model_info */
    uint64_t file_bytes;
    uint64_t latent_bytes;      /* of the cache before compression */
} dsv2_snapshot_info;

/* Reads the header of the snapshot at `path`, without a model. Any thread.
 * Returns DSV2_OK, DSV2_ERROR_ARGUMENT, _MEMORY, _IO, _FORMAT or _UNSUPPORTED. */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_snapshot_inspect(const char *path, dsv2_snapshot_info *info);

DSV2_END_DECLS
#endif

/* libdsv2: conversations as files.
 *
 * A snapshot holds a session's tokens, KV cache, sampler, random state and logits, under checksums. After a restore the
 * session goes on, bit for bit, as the saved session would have. A snapshot belongs to one model, whose fingerprint is
 * in the snapshot's header, and is little-endian on every machine.
 *
 * A snapshot reveals the conversation: token ids are in clear, so that whoever can read the file and has the model's
 * tokenizer can read the text. Nothing is encrypted or signed. Checksums find damage, not forgery: a snapshot from
 * somebody whom the host does not trust cannot harm the process, but it can put any rows and tokens into a session.
 *
 * The fingerprint covers hyper-parameters, tokenizer and weights. Of a folder's or GGUF's weights, it covers each
 * tensor's name, type, shape and 1 KiB from the middle; a pack's tensors have checksums, all of which it covers. So a
 * fine-tune of a folder or GGUF that leaves those 1 KiB of every tensor as they were passes as the same model.
 */
#ifndef DSV2_SNAPSHOT_H
#define DSV2_SNAPSHOT_H

#include <dsv2/session.h>

DSV2_BEGIN_DECLS

/* Writes all of the `size` bytes at `data`; returns 0, or non-zero for failure. Called from the thread that saves. */
typedef int (*dsv2_write_fn)(void *user, const void *data, size_t size);

/* Reads up to `size` bytes into `data` and stores in *got how many were read, 0 only at the end; returns 0, or non-zero
 * for failure. */
typedef int (*dsv2_read_fn)(void *user, void *data, size_t size, size_t *got);

/* struct_size as in dsv2_model_options. */
typedef struct dsv2_save_options {
    size_t struct_size;
    int append;                /* non-zero: if `path` holds a whole snapshot of this session's first tokens, with the
                                * same rows in the cache and not the same ids alone, only what is new is added, and a
                                * crash while saving leaves the former snapshot readable. All of the file is read and
                                * checked before. If the file is damaged, or is no such snapshot, the snapshot is
                                * written anew. A snapshot that a later version of the library wrote is left alone:
                                * _UNSUPPORTED */
    int compression_level;     /* zstd level; 0: the default, a fast one */
    dsv2_progress_fn progress; /* DSV2_PHASE_SAVE */
    void *progress_user;
} dsv2_save_options;

/* Saves to a file, which is written under a temporary name in the same folder, flushed to disk and renamed. Whatever
 * fails, the file at `path` is the old one or the new one.
 *
 * A new file gets the permissions that the process's umask leaves. A file that replaces an old one gets the old one's
 * owner and read, write and execute permissions, as far as the system lets. If `path` is a symbolic link, the link
 * stays and the file that it leads to is written, with the temporary file beside that one. A file that nobody may write
 * to (mode 0444) is refused with DSV2_ERROR_IO, to root as well; so is what is no regular file: a folder, device, FIFO
 * or socket.
 *
 * The temporary file is PATH.XXXXXX.dsv2tmp: such names belong to the library, and PATH's own name may have 15 bytes
 * less than the file system allows. A process that is killed while saving may leave the temporary file. The next save
 * (not an append) to the same path removes such files, told from those still being written by a lock that a living
 * writer holds.
 *
 * Returns DSV2_OK, DSV2_ERROR_ARGUMENT, _MEMORY, _IO, _BUSY, _CANCELLED or, with `append`, _UNSUPPORTED. */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_session_save(dsv2_session *session, const char *path,
                                                         const dsv2_save_options *options);

/* Saves through a callback, which gets the same bytes as a file. `append` must be 0. Returns as dsv2_session_save. */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_session_save_to(dsv2_session *session, dsv2_write_fn write, void *user,
                                                            const dsv2_save_options *options);

/* struct_size as in dsv2_model_options. */
typedef struct dsv2_restore_options {
    size_t struct_size;
    const int32_t *prompt;     /* NULL: everything is restored. Otherwise the longest prefix that the snapshot's tokens
                                * share with these n_prompt ids is restored, and the logits if the prefix is all of the
                                * snapshot; the session keeps its own sampler. See leave_last */
    size_t n_prompt;
    int convert;               /* non-zero: a snapshot of another cache type is converted; 0: such a one is refused */
    dsv2_progress_fn progress; /* DSV2_PHASE_RESTORE */
    void *progress_user;
    int leave_last;            /* non-zero: where all of the prompt would be restored without logits, the prompt's
                                * last token is left out. One way then always works: restore, feed
                                * prompt[*tokens_reused] and what follows if anything does, draw. 0: the session may
                                * end up with all of the prompt and without logits */
} dsv2_restore_options;

/* Replaces what the session holds by what the snapshot holds. The whole snapshot is verified before: unless DSV2_OK is
 * returned the session is as it was. *tokens_reused (may be NULL) receives how many tokens were restored.
 *
 * Rows compress, rows of zeros to almost nothing: a small file may hold many. What bounds the memory that a restore
 * takes is the session, never the file: pages for at most max_length tokens, or for the part that `prompt` shares, and
 * never more than the model's cache_memory_limit has left.
 *
 * Returns DSV2_OK, DSV2_ERROR_ARGUMENT, _MEMORY, _IO, _FORMAT (which part is damaged, or has numbers that are not
 * finite), _UNSUPPORTED (a later version, or rows that are too large for the cache type to convert to), _MISMATCH
 * (another model or cache type), _FULL, _BUSY or _CANCELLED. */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_session_restore(dsv2_session *session, const char *path,
                                                            const dsv2_restore_options *options, size_t *tokens_reused);

/* Restores through a callback, which reads the snapshot once from the beginning to the end. Otherwise as
 * dsv2_session_restore. */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_session_restore_from(dsv2_session *session, dsv2_read_fn read, void *user,
                                                                 const dsv2_restore_options *options,
                                                                 size_t *tokens_reused);

/* What a snapshot's header says. Set struct_size before the call. */
typedef struct dsv2_snapshot_info {
    size_t struct_size;
    uint32_t version;
    dsv2_cache_type cache_type;
    uint64_t n_tokens;
    uint64_t model_fingerprint; /* compare with dsv2_model_info */
    uint64_t file_bytes;
    uint64_t latent_bytes;      /* of the cache's rows before compression */
} dsv2_snapshot_info;

/* Reads the header of the snapshot at `path`, without a model. Any thread.
 * Returns DSV2_OK, DSV2_ERROR_ARGUMENT, _MEMORY, _IO, _FORMAT or _UNSUPPORTED. */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_snapshot_inspect(const char *path, dsv2_snapshot_info *info);

DSV2_END_DECLS
#endif

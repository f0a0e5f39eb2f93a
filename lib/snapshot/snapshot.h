/* snapshot: conversations as files. The format is described byte by byte in README.md beside this.
 * May include: base, sampling, cache, model. Sessions are above this room: they hand over and get back what these types
 * hold. */
#ifndef DS_LIB_SNAPSHOT_H
#define DS_LIB_SNAPSHOT_H

#include "base/base.h"
#include "cache/cache.h"
#include "model/model.h"
#include "sampling/sampling.h"

#include <dsv2/snapshot.h>

/* What there is to save; nothing is owned. */
typedef struct ds_snapshot_source {
    dsv2_model *model;
    const ds_cache *cache; /* with the rows of n_tokens positions */
    const int32_t *tokens;
    size_t n_tokens;
    const float *logits; /* [vocab_size] of the last token, or NULL */
    const ds_sampler *sampler;
    const _Atomic bool *cancel; /* true: the save is to stop */
} ds_snapshot_source;

/* Into a file: anew, or options->append. The contracts are those of dsv2_session_save and dsv2_session_save_to. */
dsv2_status ds_snapshot_save(const ds_snapshot_source *source, const char *path, const dsv2_save_options *options);
dsv2_status ds_snapshot_save_to(const ds_snapshot_source *source, dsv2_write_fn write, void *user,
                                const dsv2_save_options *options);

/* What a session that restores is like. */
typedef struct ds_snapshot_target {
    dsv2_model *model;
    ds_page_pool *pages;
    ds_cache_shape shape;
    size_t max_length;
    const _Atomic bool *cancel;
} ds_snapshot_target;

/* What came out of a snapshot. Freed with ds_snapshot_content_free, whatever restoring returned. */
typedef struct ds_snapshot_content {
    const dsv2_allocator *allocator; /* of logits */
    ds_cache cache; /* of the target's pool and shape */
    int32_t *tokens;
    size_t n_tokens, tokens_capacity;
    float *logits; /* [vocab_size] */
    bool has_logits;
    ds_sampler sampler;
} ds_snapshot_content;

/* Makes content of a file, or of what a callback reads; the session is left alone. */
dsv2_status ds_snapshot_restore(const ds_snapshot_target *target, const char *path, const dsv2_restore_options *options,
                                ds_snapshot_content *content);
dsv2_status ds_snapshot_restore_from(const ds_snapshot_target *target, dsv2_read_fn read, void *user,
                                     const dsv2_restore_options *options, ds_snapshot_content *content);
void ds_snapshot_content_free(ds_snapshot_content *content);

dsv2_status ds_snapshot_read_info(const char *path, dsv2_snapshot_info *info);

#endif

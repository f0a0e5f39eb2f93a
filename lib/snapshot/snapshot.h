/* snapshot: conversations as files. The format is described byte by byte in README.md beside this.
 * May include: base, sampling, cache, model. Sessions are above: what they consist of comes and goes as the types here. */
#ifndef DSV2_LIB_SNAPSHOT_H
#define DSV2_LIB_SNAPSHOT_H

#include "base/base.h"
#include "cache/cache.h"
#include "model/model.h"
#include "sampling/sampling.h"

#include <dsv2/snapshot.h>

/* What there is to save; nothing is owned. */
typedef struct dsv2_snapshot_source {
    const dsv2_model *model;
    const dsv2_cache *cache; /* with the rows of n_tokens positions */
    const int32_t *tokens;
    size_t n_tokens;
    const float *logits; /* [vocab_size] of the last token, or NULL */
    const dsv2_sampler *sampler;
    const _Atomic bool *cancel; /* the save is to stop */
} dsv2_snapshot_source;

/* Into a file: anew, or options->append. The contracts are those of dsv2_session_save and dsv2_session_save_to. */
dsv2_status dsv2_snapshot_save(const dsv2_snapshot_source *source, const char *path, const dsv2_save_options *options);
dsv2_status dsv2_snapshot_save_to(const dsv2_snapshot_source *source, dsv2_write_fn write, void *user,
                                  const dsv2_save_options *options);

/* What a session that restores is like. */
typedef struct dsv2_snapshot_target {
    const dsv2_model *model;
    dsv2_page_pool *pages;
    dsv2_cache_shape shape;
    size_t max_length;
    const _Atomic bool *cancel;
} dsv2_snapshot_target;

/* What came out of a snapshot. Owned: dsv2_snapshot_content_free, whatever loading returned. */
typedef struct dsv2_snapshot_content {
    dsv2_cache cache; /* of the target's pool and shape */
    int32_t *tokens;
    size_t n_tokens, tokens_capacity;
    float *logits; /* [vocab_size] */
    bool has_logits;
    dsv2_sampler sampler;
} dsv2_snapshot_content;

dsv2_status dsv2_snapshot_load(const dsv2_snapshot_target *target, const char *path, const dsv2_restore_options *options,
                               dsv2_snapshot_content *content);
dsv2_status dsv2_snapshot_load_from(const dsv2_snapshot_target *target, dsv2_read_fn read, void *user,
                                    const dsv2_restore_options *options, dsv2_snapshot_content *content);
void dsv2_snapshot_content_free(dsv2_snapshot_content *content);

dsv2_status dsv2_snapshot_read_info(const char *path, dsv2_snapshot_info *info);

#endif

/* Restoring: a snapshot becomes content of its own, all of which is checked before the session gets any. Inspecting. */
#include "snapshot/format.h"

#include <string.h>

/* A restore at work. */
typedef struct restorer {
    const ds_snapshot_target *target;
    const dsv2_restore_options *options;
    snapshot_reader *reader;
    ds_snapshot_content *content;
    ds_cache_shape shape; /* of the file's rows */
    frame_batch batch;
    uint64_t n_tokens; /* of the saves read so far */
    uint64_t wanted;   /* how many of these tokens are restored: the first ones */
} restorer;

void ds_snapshot_content_free(ds_snapshot_content *content)
{
    ds_sampler_free(&content->sampler);
    ds_cache_destroy(&content->cache);
    ds_release(content->allocator, content->logits);
    ds_free(content->tokens);
    content->logits = NULL;
    content->tokens = NULL;
}

/* DSV2_ERROR_MISMATCH unless the snapshot is of this model, and of this cache type or to be converted. */
static dsv2_status check_header(const restorer *r, const file_header *header)
{
    const char *name = r->reader->name;
    file_header own = ds_file_header_of(r->target->model, &r->target->shape);
    const ds_fingerprint *theirs = &header->fingerprint, *ours = &own.fingerprint;
    bool config = theirs->config != ours->config, tokenizer = theirs->tokenizer != ours->tokenizer;
    bool weights = theirs->weights != ours->weights;
    if (config || tokenizer || weights)
        return ds_fail(DSV2_ERROR_MISMATCH,
                       "%s: a snapshot of another model: it differs in%s%s%s "
                       "(its fingerprint is %016llx, the model's is %016llx)", name, config ? " hyper-parameters" : "",
                       tokenizer ? config ? ", tokenizer" : " tokenizer" : "",
                       weights ? config || tokenizer ? ", weights" : " weights" : "",
                       (unsigned long long)ds_fingerprint_digest(theirs),
                       (unsigned long long)ds_fingerprint_digest(ours));
    bool same_widths = header->row == own.row && memcmp(header->widths, own.widths, sizeof own.widths) == 0;
    if (header->n_layers != own.n_layers || !same_widths || header->vocab_size != own.vocab_size)
        return ds_fail(DSV2_ERROR_MISMATCH,
                       "%s: a snapshot of another model: %u layers, %s %u, %s %u, vocab_size %u; "
                       "the model has %u, %u, %u, %u", name, header->n_layers, header->row->parts[0].width_name,
                       header->widths[0], header->row->parts[1].width_name, header->widths[1], header->vocab_size,
                       own.n_layers, own.widths[0], own.widths[1], own.vocab_size);
    if (header->cache_type != own.cache_type && !r->options->convert)
        return ds_fail(DSV2_ERROR_MISMATCH,
                       "%s: its cache is of type %s, the session's of type %s, and convert is not set", name,
                       ds_cache_type_name(header->cache_type), ds_cache_type_name(own.cache_type));
    return DSV2_OK;
}

/* How many of the tokens read so far are to be restored. */
static uint64_t wanted_tokens(const restorer *r)
{
    const dsv2_restore_options *options = r->options;
    if (options->prompt == NULL)
        return r->n_tokens;
    size_t limit = r->n_tokens < options->n_prompt ? (size_t)r->n_tokens : options->n_prompt, n = 0;
    while (n < limit && r->content->tokens[n] == options->prompt[n])
        n++;
    return n;
}

static dsv2_status report(const restorer *r, uint64_t done, uint64_t total)
{
    if (atomic_load_explicit(r->target->cancel, memory_order_relaxed) ||
        !ds_call_progress(r->options->progress, r->options->progress_user, DSV2_PHASE_RESTORE, done, total))
        return ds_fail(DSV2_ERROR_CANCELLED, "cancelled while restoring, after %llu of %llu tokens",
                       (unsigned long long)done, (unsigned long long)total);
    return ds_calls_check(&r->target->model->calls);
}

static dsv2_status read_frame(restorer *r, uint64_t first_token, uint64_t end)
{
    frame *f = &r->batch.frames[r->batch.n];
    dsv2_status status = ds_reader_frame(r->reader, &r->shape, first_token, end, f);
    if (status != DSV2_OK)
        return status;
    f->wanted = first_token < r->wanted;
    r->batch.n++;
    return f->wanted ? ds_cache_reserve(&r->content->cache, (size_t)first_token, f->header.n_tokens) : DSV2_OK;
}

static dsv2_status read_frames(restorer *r, const save_header *save)
{
    dsv2_status status = DSV2_OK;
    for (uint64_t at = save->first_token; at < save->n_tokens && status == DSV2_OK;) {
        status = read_frame(r, at, save->n_tokens);
        if (status != DSV2_OK)
            break;
        at += r->batch.frames[r->batch.n - 1].header.n_tokens;
        if (r->batch.n < r->batch.capacity && at < save->n_tokens)
            continue;
        status = ds_frame_batch_decode(&r->batch, r->reader->name);
        if (status == DSV2_OK && at < save->n_tokens)
            status = report(r, at, save->n_tokens);
    }
    return status;
}

static dsv2_status read_save(restorer *r, const save_header *save)
{
    const ds_snapshot_target *target = r->target;
    if (r->options->prompt == NULL && save->n_tokens > target->max_length)
        return ds_fail(DSV2_ERROR_FULL, "%s: has %llu tokens, the session's maximum length is %zu", r->reader->name,
                       (unsigned long long)save->n_tokens, target->max_length);
    dsv2_status status = ds_reader_state(r->reader, save, target->model->fixed.config.vocab_size, r->content);
    if (status != DSV2_OK)
        return status;
    r->n_tokens = save->n_tokens;
    r->wanted = wanted_tokens(r);
    if (r->wanted > target->max_length)
        return ds_fail(DSV2_ERROR_FULL, "%s: shares %llu tokens with the prompt, the session's maximum length is %zu",
                       r->reader->name, (unsigned long long)r->wanted, target->max_length);
    status = read_frames(r, save);
    return status == DSV2_OK ? ds_reader_padding(r->reader) : status;
}

static dsv2_status restore(restorer *r)
{
    const dsv2_model *model = r->target->model;
    uint8_t bytes[FILE_HEADER_BYTES];
    file_header header;
    dsv2_status status = ds_reader_all(r->reader, bytes, sizeof bytes);
    if (status == DSV2_OK)
        status = ds_file_header_read(r->reader->name, bytes, &header);
    if (status == DSV2_OK)
        status = check_header(r, &header);
    if (status == DSV2_OK)
        status = ds_file_header_shape(&header, &r->shape);
    if (status == DSV2_OK)
        status = ds_frame_batch_init(&r->batch, BATCH_READS, model->pool, model->fixed.kernels, &r->shape,
                                     &r->content->cache, 0);
    bool end = false;
    for (uint32_t sequence = 0; status == DSV2_OK; sequence++) {
        save_header save;
        status = ds_reader_save(r->reader, sequence, r->n_tokens, &save, &end);
        if (status != DSV2_OK || end)
            break;
        status = read_save(r, &save);
    }
    ds_frame_batch_free(&r->batch);
    if (status == DSV2_OK)
        status = report(r, r->n_tokens, r->n_tokens);
    if (status != DSV2_OK)
        return status;
    r->content->has_logits = r->content->has_logits && r->wanted == r->n_tokens;
    const dsv2_restore_options *options = r->options;
    bool all = options->prompt != NULL && options->n_prompt > 0 && r->wanted == options->n_prompt;
    if (options->leave_last && all && !r->content->has_logits)
        r->wanted--; /* so that there is a token to feed */
    r->content->n_tokens = (size_t)r->wanted;
    ds_cache_truncate(&r->content->cache, r->content->n_tokens);
    return DSV2_OK;
}

static dsv2_status restore_reader(const ds_snapshot_target *target, snapshot_reader *reader,
                                  const dsv2_restore_options *options, ds_snapshot_content *content)
{
    *content = (ds_snapshot_content){0};
    ds_sampler_init(&content->sampler);
    ds_cache_init(&content->cache, target->pages, &target->shape);
    content->allocator = &target->model->fixed.allocator;
    content->logits = ds_allocate(content->allocator, target->model->fixed.config.vocab_size, sizeof *content->logits);
    if (content->logits == NULL)
        return ds_fail_memory("logits", target->model->fixed.config.vocab_size * sizeof *content->logits);
    restorer r = {.target = target, .options = options, .reader = reader, .content = content};
    return restore(&r);
}

dsv2_status ds_snapshot_restore(const ds_snapshot_target *target, const char *path, const dsv2_restore_options *options,
                             ds_snapshot_content *content)
{
    ds_os_file file;
    uint64_t size;
    *content = (ds_snapshot_content){0};
    ds_sampler_init(&content->sampler);
    dsv2_status status = ds_open_regular(path, DS_OS_READ, &file, &size);
    if (status != DSV2_OK)
        return status;
    snapshot_reader reader = {.name = path, .file = file};
    status = restore_reader(target, &reader, options, content);
    ds_os_close(&file);
    return status;
}

dsv2_status ds_snapshot_restore_from(const ds_snapshot_target *target, dsv2_read_fn read, void *user,
                                  const dsv2_restore_options *options, ds_snapshot_content *content)
{
    snapshot_reader reader = {.name = "snapshot", .read = read, .user = user, .calls = &target->model->calls};
    return restore_reader(target, &reader, options, content);
}

/* ---- without a model ---- */

/* Reads headers and passes over all else. */
static dsv2_status read_info(snapshot_reader *reader, uint64_t size, dsv2_snapshot_info *info)
{
    uint8_t bytes[FILE_HEADER_BYTES];
    file_header header;
    ds_cache_shape shape;
    dsv2_status status = ds_reader_all(reader, bytes, sizeof bytes);
    if (status == DSV2_OK)
        status = ds_file_header_read(reader->name, bytes, &header);
    if (status == DSV2_OK)
        status = ds_file_header_shape(&header, &shape);
    uint64_t n_tokens = 0;
    bool end = false;
    for (uint32_t sequence = 0; status == DSV2_OK; sequence++) {
        save_header save;
        status = ds_reader_save(reader, sequence, n_tokens, &save, &end);
        if (status != DSV2_OK || end)
            break;
        status = ds_reader_skip(reader, ds_state_bytes(&save, header.vocab_size));
        if (status == DSV2_OK)
            status = ds_reader_pass_frames(reader, &shape, &save);
        n_tokens = save.n_tokens;
    }
    if (status != DSV2_OK)
        return status;
    *info = (dsv2_snapshot_info){
        .version = header.version,
        .cache_type = shape.type,
        .n_tokens = n_tokens,
        .model_fingerprint = ds_fingerprint_digest(&header.fingerprint),
        .file_bytes = size,
        .latent_bytes = n_tokens * shape.row_bytes * shape.n_layers,
    };
    return DSV2_OK;
}

dsv2_status ds_snapshot_read_info(const char *path, dsv2_snapshot_info *info)
{
    ds_os_file file;
    uint64_t size;
    dsv2_status status = ds_open_regular(path, DS_OS_READ, &file, &size);
    if (status != DSV2_OK)
        return status;
    snapshot_reader reader = {.name = path, .file = file};
    status = read_info(&reader, size, info);
    ds_os_close(&file);
    return status;
}

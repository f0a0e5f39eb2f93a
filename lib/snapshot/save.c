/* Saving: anew, or appending to a snapshot what the session has more.
 *
 * The header of an append is written last. Until all else is on the disk zeros stand in the header's place, and a
 * reader takes the file to end before them: whenever the process or the machine stops, the file is the former snapshot
 * or the new one. */
#include "snapshot/format.h"

#include <string.h>
#include <zstd.h>

/* Higher levels gain a few percent on latents and cost much of the speed. */
enum { DEFAULT_LEVEL = 1 };

/* Where bytes go. */
typedef struct sink {
    dsv2_status (*put)(struct sink *sink, const void *data, size_t size);
    ds_writer *writer;   /* put_file: a file */
    dsv2_write_fn write; /* put_callback: the host's function */
    void *user;
    ds_calls *calls; /* of the model: the function may fork */
    uint64_t offset; /* bytes put so far, counted from the beginning of the snapshot */
} sink;

static dsv2_status put_file(sink *s, const void *data, size_t size) { return ds_writer_append(s->writer, data, size); }

static dsv2_status put_callback(sink *s, const void *data, size_t size)
{
    ds_modes_lend();
    int failed = s->write(s->user, data, size);
    ds_modes_take_back();
    dsv2_status status = ds_calls_check(s->calls);
    if (status != DSV2_OK)
        return status;
    if (failed != 0)
        return ds_fail(DSV2_ERROR_IO, "the write callback failed at byte %llu of the snapshot",
                       (unsigned long long)s->offset);
    return DSV2_OK;
}

static dsv2_status put(sink *s, const void *data, size_t size)
{
    if (size == 0)
        return DSV2_OK;
    dsv2_status status = s->put(s, data, size);
    if (status == DSV2_OK)
        s->offset += size;
    return status;
}

static dsv2_status put_checked(sink *s, XXH3_state_t *checksum, const void *data, size_t size)
{
    XXH3_128bits_update(checksum, data, size);
    return put(s, data, size);
}

/* ---- one save ---- */

static void write_float(uint8_t *bytes, float value) { memcpy(bytes, &value, sizeof value); }

static void write_sampler(const ds_sampler *sampler, uint8_t *bytes)
{
    const dsv2_sampling *p = &sampler->params;
    write_float(bytes, p->repetition_penalty);
    write_float(bytes + 4, p->presence_penalty);
    write_float(bytes + 8, p->frequency_penalty);
    ds_write_u32(bytes + 12, p->penalty_window);
    write_float(bytes + 16, p->temperature);
    ds_write_u32(bytes + 20, p->top_k);
    write_float(bytes + 24, p->top_p);
    write_float(bytes + 28, p->min_p);
    ds_write_u64(bytes + 32, p->seed);
    for (int i = 0; i < 4; i++)
        ds_write_u64(bytes + 40 + 8 * i, sampler->random.state[i]);
}

static dsv2_status put_state(sink *s, const ds_snapshot_source *source, uint64_t first_token)
{
    uint8_t sampler[SAMPLER_BYTES], digest[DIGEST_BYTES];
    const dsv2_sampling *params = &source->sampler->params;
    XXH3_state_t *checksum = XXH3_createState();
    if (checksum == NULL)
        return ds_fail_memory("a checksum", 0);
    XXH3_128bits_reset(checksum);
    write_sampler(source->sampler, sampler);
    dsv2_status status = put_checked(s, checksum, sampler, sizeof sampler);
    if (status == DSV2_OK && params->n_logit_bias > 0)
        status = put_checked(s, checksum, params->logit_bias, params->n_logit_bias * sizeof *params->logit_bias);
    if (status == DSV2_OK && source->logits != NULL)
        status = put_checked(s, checksum, source->logits,
                             source->model->fixed.config.vocab_size * sizeof *source->logits);
    if (status == DSV2_OK && source->n_tokens > first_token)
        status = put_checked(s, checksum, source->tokens + first_token,
                             (source->n_tokens - (size_t)first_token) * sizeof *source->tokens);
    ds_digest_store(XXH3_128bits_digest(checksum), digest);
    XXH3_freeState(checksum);
    return status == DSV2_OK ? put(s, digest, sizeof digest) : status;
}

static dsv2_status report(const ds_snapshot_source *source, const dsv2_save_options *options, uint64_t done)
{
    if (atomic_load_explicit(source->cancel, memory_order_relaxed) ||
        !ds_call_progress(options->progress, options->progress_user, DSV2_PHASE_SAVE, done, source->n_tokens))
        return ds_fail(DSV2_ERROR_CANCELLED, "cancelled while saving, after %llu of %zu tokens",
                       (unsigned long long)done, source->n_tokens);
    return ds_calls_check(&source->model->calls);
}

/* False in a child that the progress callback has forked: the file, its lock and its name are the parent's. */
static bool is_ours(const ds_snapshot_source *source) { return ds_calls_check(&source->model->calls) == DSV2_OK; }

/* Cuts tokens from *at on into frames, as many as a batch takes. */
static void plan_frames(frame_batch *batch, uint64_t *at, uint64_t end)
{
    for (batch->n = 0; batch->n < batch->capacity && *at < end; batch->n++) {
        uint64_t room = DS_PAGE_TOKENS - *at % DS_PAGE_TOKENS, n = room < end - *at ? room : end - *at;
        batch->frames[batch->n].header = (frame_header){.first_token = *at, .n_tokens = (uint32_t)n};
        *at += n;
    }
}

static dsv2_status put_frames(sink *s, const ds_snapshot_source *source, const dsv2_save_options *options,
                              uint64_t first_token)
{
    frame_batch batch;
    int level = options->compression_level == 0 ? DEFAULT_LEVEL : options->compression_level;
    dsv2_status status = ds_frame_batch_init(&batch, BATCH_WRITES, source->model->pool, source->model->fixed.kernels,
                                             &source->cache->shape, source->cache, level);
    for (uint64_t at = first_token; at < source->n_tokens && status == DSV2_OK;) {
        plan_frames(&batch, &at, source->n_tokens);
        ds_frame_batch_encode(&batch);
        for (size_t i = 0; i < batch.n && status == DSV2_OK; i++) {
            const frame *f = &batch.frames[i];
            status = put(s, f->header_bytes, sizeof f->header_bytes);
            if (status == DSV2_OK)
                status = put(s, f->stored, (size_t)f->header.stored_bytes);
        }
        if (status == DSV2_OK && at < source->n_tokens)
            status = report(source, options, at);
    }
    ds_frame_batch_free(&batch);
    return status;
}

/* A save: the header as given, or zeros in its place, then all else. */
static dsv2_status put_save(sink *s, const ds_snapshot_source *source, const dsv2_save_options *options,
                            const uint8_t *header, uint64_t first_token)
{
    static const uint8_t zeros[HEADER_BYTES];
    dsv2_status status = put(s, header, HEADER_BYTES);
    if (status == DSV2_OK)
        status = put_state(s, source, first_token);
    if (status == DSV2_OK)
        status = put_frames(s, source, options, first_token);
    if (status == DSV2_OK)
        status = put(s, zeros, (size_t)(HEADER_BYTES - s->offset % HEADER_BYTES) % HEADER_BYTES);
    return status == DSV2_OK ? report(source, options, source->n_tokens) : status;
}

static void write_save_header(const ds_snapshot_source *source, uint32_t sequence, uint64_t first_token, uint8_t *bytes)
{
    save_header header = {
        .number = sequence,
        .has_logits = source->logits != NULL,
        .first_token = first_token,
        .n_tokens = source->n_tokens,
        .n_biases = source->sampler->params.n_logit_bias,
    };
    ds_save_header_write(&header, bytes);
}

static dsv2_status put_whole(sink *s, const ds_snapshot_source *source, const dsv2_save_options *options)
{
    uint8_t bytes[FILE_HEADER_BYTES], save[HEADER_BYTES];
    file_header header = ds_file_header_of(source->model, &source->cache->shape);
    ds_file_header_write(&header, bytes);
    dsv2_status status = put(s, bytes, sizeof bytes);
    if (status != DSV2_OK)
        return status;
    write_save_header(source, 0, 0, save);
    return put_save(s, source, options, save, 0);
}

static dsv2_status save_anew(const ds_snapshot_source *source, const char *path, const dsv2_save_options *options)
{
    ds_writer writer;
    dsv2_status status = ds_writer_open(path, &writer);
    if (status != DSV2_OK)
        return status;
    sink s = {.put = put_file, .writer = &writer};
    status = put_whole(&s, source, options);
    if (status == DSV2_OK)
        return ds_writer_commit(&writer);
    if (is_ours(source))
        ds_writer_abort(&writer);
    return status;
}

dsv2_status ds_snapshot_save_to(const ds_snapshot_source *source, dsv2_write_fn write, void *user,
                                const dsv2_save_options *options)
{
    sink s = {.put = put_callback, .write = write, .user = user, .calls = &source->model->calls};
    return put_whole(&s, source, options);
}

/* ---- append ---- */

/* What is in the file already. */
typedef struct existing {
    uint64_t end; /* where the next save goes */
    uint64_t n_tokens;
    uint32_t n_saves;
} existing;

/* What a file is compared with. */
typedef struct comparison {
    const ds_snapshot_source *source;
    snapshot_reader reader;
    frame_batch batch;
    ds_snapshot_content content; /* what the file holds besides rows */
} comparison;

/* Reads every frame of a save, so that all that an append builds upon is known to be whole, and compares its rows. */
static dsv2_status compare_frames(comparison *c, const save_header *save)
{
    dsv2_status status = DSV2_OK;
    for (uint64_t at = save->first_token; at < save->n_tokens && status == DSV2_OK;) {
        frame *f = &c->batch.frames[c->batch.n];
        status = ds_reader_frame(&c->reader, &c->batch.shape, at, save->n_tokens, f);
        if (status != DSV2_OK)
            break;
        c->batch.n++;
        at += f->header.n_tokens;
        if (c->batch.n < c->batch.capacity && at < save->n_tokens)
            continue;
        status = ds_frame_batch_decode(&c->batch, c->reader.name);
        if (status == DSV2_OK && atomic_load_explicit(c->source->cancel, memory_order_relaxed))
            status = ds_fail(DSV2_ERROR_CANCELLED, "cancelled while reading %s, to which it should be appended",
                             c->reader.name);
    }
    return status == DSV2_OK ? ds_reader_padding(&c->reader) : status;
}

/* The next save in the file, if there is another: DSV2_ERROR_MISMATCH unless it is of the session's first tokens. */
static dsv2_status compare_save(comparison *c, existing *found, bool *end)
{
    const ds_snapshot_source *source = c->source;
    const char *name = c->reader.name;
    save_header save;
    dsv2_status status = ds_reader_save(&c->reader, found->n_saves, found->n_tokens, &save, end);
    if (status != DSV2_OK || *end)
        return status;
    if (save.n_tokens > source->n_tokens)
        return ds_fail(DSV2_ERROR_MISMATCH, "%s: has more tokens than the session", name);
    status = ds_reader_state(&c->reader, &save, source->model->fixed.config.vocab_size, &c->content);
    if (status != DSV2_OK)
        return status;
    size_t first = (size_t)save.first_token, n = (size_t)(save.n_tokens - save.first_token);
    if (n > 0 && memcmp(c->content.tokens + first, source->tokens + first, n * sizeof *source->tokens) != 0)
        return ds_fail(DSV2_ERROR_MISMATCH, "%s: has other tokens than the session", name);
    status = compare_frames(c, &save);
    if (status == DSV2_OK)
        *found = (existing){.end = c->reader.offset, .n_tokens = save.n_tokens, .n_saves = found->n_saves + 1};
    return status;
}

static dsv2_status compare_header(comparison *c)
{
    uint8_t bytes[FILE_HEADER_BYTES], own_bytes[FILE_HEADER_BYTES];
    file_header header, own = ds_file_header_of(c->source->model, &c->source->cache->shape);
    ds_file_header_write(&own, own_bytes);
    dsv2_status status = ds_reader_all(&c->reader, bytes, sizeof bytes);
    if (status == DSV2_OK)
        status = ds_file_header_read(c->reader.name, bytes, &header);
    if (status == DSV2_OK && memcmp(bytes, own_bytes, sizeof bytes) != 0)
        status = ds_fail(DSV2_ERROR_MISMATCH, "%s: of another model or cache type", c->reader.name);
    return status;
}

/* DSV2_OK if the file is a whole snapshot of the session's first tokens. DSV2_ERROR_MISMATCH or _FORMAT if it is not,
 * _UNSUPPORTED if a later version of the library wrote it. */
static dsv2_status examine(const ds_snapshot_source *source, const char *path, ds_os_file file, existing *found)
{
    const dsv2_model *model = source->model;
    comparison c = {.source = source, .reader = {.name = path, .file = file}};
    *found = (existing){0};
    dsv2_status status = compare_header(&c);
    if (status != DSV2_OK)
        return status;
    ds_sampler_init(&c.content.sampler);
    c.content.allocator = &model->fixed.allocator;
    c.content.logits = ds_allocate(c.content.allocator, model->fixed.config.vocab_size, sizeof *c.content.logits);
    if (c.content.logits == NULL)
        status = ds_fail_memory("logits", model->fixed.config.vocab_size * sizeof *c.content.logits);
    if (status == DSV2_OK)
        status = ds_frame_batch_init(&c.batch, BATCH_COMPARES, model->pool, model->fixed.kernels,
                                     &source->cache->shape, source->cache, 0);
    for (bool end = false; status == DSV2_OK && !end;)
        status = compare_save(&c, found, &end);
    ds_frame_batch_free(&c.batch);
    ds_snapshot_content_free(&c.content);
    return status;
}

/* Writes behind what is there: at first zeros in place of the header, at last the header. */
static dsv2_status append(const ds_snapshot_source *source, const dsv2_save_options *options, ds_writer *writer,
                          const existing *found)
{
    static const uint8_t zeros[HEADER_BYTES];
    uint8_t header[HEADER_BYTES];
    if (!ds_os_truncate(writer->file, found->end)) /* what an append that was cut short has left */
        return ds_fail_io(writer->path, "shorten");
    writer->size = found->end;
    sink s = {.put = put_file, .writer = writer, .offset = found->end};
    dsv2_status status = put_save(&s, source, options, zeros, found->n_tokens);
    if (status == DSV2_OK && !ds_os_flush_data(writer->file))
        status = ds_fail_io(writer->path, "flush");
    if (status == DSV2_OK) {
        write_save_header(source, found->n_saves, found->n_tokens, header);
        status = ds_writer_replace(writer, found->end, header, sizeof header);
        if (status == DSV2_OK && !ds_os_flush_data(writer->file))
            status = ds_fail_io(writer->path, "flush");
    }
    if (status != DSV2_OK && is_ours(source))
        (void)ds_os_truncate(writer->file, found->end); /* if that fails, the zeros end it as well */
    return status;
}

/* What came of an append that gave no error. */
typedef enum append_outcome {
    APPENDED,
    TO_WRITE_ANEW, /* the file is not one to append to */
    REPLACED,      /* the path is another file by now */
} append_outcome;

/* Appends to an open file that is locked and stands at `path`. */
static dsv2_status append_to(const ds_snapshot_source *source, const dsv2_save_options *options, ds_writer *writer,
                             append_outcome *outcome)
{
    existing found;
    dsv2_status status = examine(source, writer->path, writer->file, &found);
    if (status == DSV2_ERROR_MISMATCH || status == DSV2_ERROR_FORMAT) {
        *outcome = TO_WRITE_ANEW;
        return DSV2_OK;
    }
    if (status == DSV2_OK)
        status = append(source, options, writer, &found);
    *outcome = ds_os_is_at(writer->file, writer->path) ? APPENDED : REPLACED;
    return status;
}

/* Appends if there is a file that can be appended to. */
static dsv2_status save_behind(const ds_snapshot_source *source, const char *path, const dsv2_save_options *options,
                               append_outcome *outcome)
{
    ds_writer writer = {0};
    uint64_t size;
    dsv2_status status = ds_writer_target(path, &writer.path);
    if (status != DSV2_OK)
        return status;
    *outcome = TO_WRITE_ANEW;
    if (ds_exists(writer.path)) {
        status = ds_open_regular(writer.path, DS_OS_UPDATE, &writer.file, &size);
        if (status == DSV2_OK && !ds_os_lock(writer.file))
            status = ds_fail_io(path, "lock (is it being saved to by another session?)");
        *outcome = REPLACED; /* between opening and locking */
        if (status == DSV2_OK && ds_os_is_at(writer.file, writer.path))
            status = append_to(source, options, &writer, outcome);
    }
    if (is_ours(source))
        ds_writer_abort(&writer);
    return status;
}

dsv2_status ds_snapshot_save(const ds_snapshot_source *source, const char *path, const dsv2_save_options *options)
{
    enum { APPENDS = 4 }; /* then writing anew, which needs no file that stays, has the last word */
    append_outcome outcome = options->append ? REPLACED : TO_WRITE_ANEW;
    for (int i = 0; i < APPENDS && outcome == REPLACED; i++) {
        dsv2_status status = save_behind(source, path, options, &outcome);
        if (status != DSV2_OK || outcome == APPENDED)
            return status;
    }
    return save_anew(source, path, options);
}

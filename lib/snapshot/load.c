/* Restoring: a snapshot becomes content of its own, all of it checked; the session takes it over afterwards. */
#include "snapshot/format.h"

/* A restore at work. */
typedef struct loader {
    const ds_snapshot_target *target;
    const dsv2_restore_options *options;
    snapshot_reader *reader;
    ds_snapshot_content *content;
    ds_cache_shape shape; /* of the file's rows */
    block_batch batch;
    uint64_t n_tokens; /* of the saves read so far */
    uint64_t wanted;   /* the first so many of them are restored */
} loader;

void ds_snapshot_content_free(ds_snapshot_content *content)
{
    ds_sampler_free(&content->sampler);
    ds_cache_destroy(&content->cache);
    ds_free(content->logits);
    ds_free(content->tokens);
    content->logits = NULL;
    content->tokens = NULL;
}

static const char *type_name(uint32_t type)
{
    static const char *const names[] = {
        [DSV2_CACHE_F32] = "f32", [DSV2_CACHE_F16] = "f16", [DSV2_CACHE_Q8] = "q8", [DSV2_CACHE_Q6] = "q6"};
    return type < sizeof names / sizeof *names && names[type] != NULL ? names[type] : "unknown";
}

/* Whether it is of this model, and of this type of cache or convertible. */
static dsv2_status check_header(const loader *l, const file_header *header)
{
    const char *name = l->reader->name;
    file_header own = ds_file_header_of(l->target->model, &l->target->shape);
    const ds_fingerprint *theirs = &header->fingerprint, *ours = &own.fingerprint;
    bool config = theirs->config != ours->config, tokenizer = theirs->tokenizer != ours->tokenizer, weights = theirs->weights != ours->weights;
    if (config || tokenizer || weights)
        return ds_fail(DSV2_ERROR_MISMATCH,
                       "%s: a snapshot of another model: it differs in%s%s%s (its fingerprint is %016llx, the model's is %016llx)", name,
                       config ? " hyper-parameters" : "", tokenizer ? config ? ", tokenizer" : " tokenizer" : "",
                       weights ? config || tokenizer ? ", weights" : " weights" : "",
                       (unsigned long long)ds_fingerprint_digest(theirs), (unsigned long long)ds_fingerprint_digest(ours));
    if (header->n_layers != own.n_layers || header->kv_lora_rank != own.kv_lora_rank || header->qk_rope_head_dim != own.qk_rope_head_dim ||
        header->vocab_size != own.vocab_size)
        return ds_fail(DSV2_ERROR_MISMATCH,
                       "%s: a snapshot of another model: %u layers, kv_lora_rank %u, qk_rope_head_dim %u, vocab_size %u; "
                       "the model has %u, %u, %u, %u", name, header->n_layers, header->kv_lora_rank, header->qk_rope_head_dim,
                       header->vocab_size, own.n_layers, own.kv_lora_rank, own.qk_rope_head_dim, own.vocab_size);
    if (header->cache_type != own.cache_type && !l->options->convert)
        return ds_fail(DSV2_ERROR_MISMATCH, "%s: its cache is of type %s, the session's of type %s, and convert is not set", name,
                       type_name(header->cache_type), type_name(own.cache_type));
    return DSV2_OK;
}

/* How many of the tokens read so far are to be restored. */
static uint64_t wanted_tokens(const loader *l)
{
    const dsv2_restore_options *options = l->options;
    if (options->prompt == NULL)
        return l->n_tokens;
    size_t limit = l->n_tokens < options->n_prompt ? (size_t)l->n_tokens : options->n_prompt, n = 0;
    while (n < limit && l->content->tokens[n] == options->prompt[n])
        n++;
    return n;
}

static dsv2_status check_verdicts(const loader *l)
{
    for (size_t i = 0; i < l->batch.n; i++) {
        const block *b = &l->batch.blocks[i];
        const char *what = b->verdict == BLOCK_DAMAGED      ? "is damaged"
                           : b->verdict == BLOCK_UNREADABLE ? "cannot be decompressed"
                                                            : "holds other rows than its header says";
        if (b->verdict != BLOCK_GOOD)
            return ds_fail(DSV2_ERROR_FORMAT, "%s: the block of tokens %llu to %llu %s", l->reader->name,
                           (unsigned long long)b->header.first_token,
                           (unsigned long long)(b->header.first_token + b->header.n_tokens - 1), what);
    }
    return DSV2_OK;
}

/* Decodes the blocks read, if there are any. */
static dsv2_status flush(loader *l)
{
    if (l->batch.n == 0)
        return DSV2_OK;
    ds_block_batch_decode(&l->batch);
    dsv2_status status = check_verdicts(l);
    l->batch.n = 0;
    return status;
}

static dsv2_status report(const loader *l, uint64_t done, uint64_t total)
{
    if (atomic_load_explicit(l->target->cancel, memory_order_relaxed) ||
        (l->options->progress != NULL && l->options->progress(l->options->progress_user, DSV2_PHASE_RESTORE, done, total) != 0))
        return ds_fail(DSV2_ERROR_CANCELLED, "cancelled while restoring, after %llu of %llu tokens", (unsigned long long)done,
                       (unsigned long long)total);
    return DSV2_OK;
}

static dsv2_status read_block(loader *l, uint64_t first_token, uint64_t end)
{
    block *b = &l->batch.blocks[l->batch.n];
    dsv2_status status = ds_reader_all(l->reader, b->header_bytes, sizeof b->header_bytes);
    if (status == DSV2_OK)
        status = ds_block_header_unpack(l->reader->name, b->header_bytes, &l->shape, first_token, end, &b->header);
    if (status == DSV2_OK)
        status = ds_reader_all(l->reader, b->buffer, (size_t)b->header.stored_bytes);
    if (status != DSV2_OK)
        return status;
    b->stored = b->buffer;
    b->wanted = first_token < l->wanted;
    l->batch.n++;
    return b->wanted ? ds_cache_reserve(&l->content->cache, (size_t)first_token, b->header.n_tokens) : DSV2_OK;
}

static dsv2_status read_blocks(loader *l, const save_header *save)
{
    dsv2_status status = DSV2_OK;
    for (uint64_t at = save->first_token; at < save->n_tokens && status == DSV2_OK;) {
        status = read_block(l, at, save->n_tokens);
        if (status != DSV2_OK)
            break;
        at = l->batch.blocks[l->batch.n - 1].header.first_token + l->batch.blocks[l->batch.n - 1].header.n_tokens;
        if (l->batch.n < l->batch.capacity && at < save->n_tokens)
            continue;
        status = flush(l);
        if (status == DSV2_OK && at < save->n_tokens)
            status = report(l, at, save->n_tokens);
    }
    return status;
}

static dsv2_status read_save(loader *l, const save_header *save)
{
    const ds_snapshot_target *target = l->target;
    if (l->options->prompt == NULL && save->n_tokens > target->max_length)
        return ds_fail(DSV2_ERROR_FULL, "%s: has %llu tokens, the session's maximum length is %zu", l->reader->name,
                       (unsigned long long)save->n_tokens, target->max_length);
    dsv2_status status = ds_reader_state(l->reader, save, target->model->config.vocab_size, l->content);
    if (status != DSV2_OK)
        return status;
    l->n_tokens = save->n_tokens;
    l->wanted = wanted_tokens(l);
    if (l->wanted > target->max_length)
        return ds_fail(DSV2_ERROR_FULL, "%s: shares %llu tokens with the prompt, the session's maximum length is %zu", l->reader->name,
                       (unsigned long long)l->wanted, target->max_length);
    status = read_blocks(l, save);
    return status == DSV2_OK ? ds_reader_padding(l->reader) : status;
}

static dsv2_status load(loader *l)
{
    const dsv2_model *model = l->target->model;
    uint8_t bytes[FILE_HEADER_BYTES];
    file_header header;
    dsv2_status status = ds_reader_all(l->reader, bytes, sizeof bytes);
    if (status == DSV2_OK)
        status = ds_file_header_unpack(l->reader->name, bytes, &header);
    if (status == DSV2_OK)
        status = check_header(l, &header);
    if (status == DSV2_OK)
        status = ds_cache_shape_init(&l->shape, (dsv2_cache_type)header.cache_type, header.n_layers, header.kv_lora_rank,
                                     header.qk_rope_head_dim);
    if (status == DSV2_OK)
        status = ds_block_batch_init(&l->batch, BATCH_READS, model, &l->shape, &l->content->cache, 0);
    bool end = false;
    for (uint32_t sequence = 0; status == DSV2_OK; sequence++) {
        save_header save;
        status = ds_reader_save(l->reader, sequence, l->n_tokens, &save, &end);
        if (status != DSV2_OK || end)
            break;
        status = read_save(l, &save);
    }
    ds_block_batch_free(&l->batch, BATCH_READS);
    if (status == DSV2_OK)
        status = report(l, l->n_tokens, l->n_tokens);
    if (status != DSV2_OK)
        return status;
    l->content->has_logits = l->content->has_logits && l->wanted == l->n_tokens;
    l->content->n_tokens = (size_t)l->wanted;
    ds_cache_truncate(&l->content->cache, l->content->n_tokens);
    return DSV2_OK;
}

static dsv2_status load_reader(const ds_snapshot_target *target, snapshot_reader *reader, const dsv2_restore_options *options,
                               ds_snapshot_content *content)
{
    *content = (ds_snapshot_content){0};
    ds_sampler_init(&content->sampler);
    ds_cache_init(&content->cache, target->pages, &target->shape);
    content->logits = ds_new(target->model->config.vocab_size, sizeof *content->logits);
    if (content->logits == NULL)
        return ds_fail_memory("logits", target->model->config.vocab_size * sizeof *content->logits);
    loader l = {.target = target, .options = options, .reader = reader, .content = content};
    return load(&l);
}

dsv2_status ds_snapshot_load(const ds_snapshot_target *target, const char *path, const dsv2_restore_options *options,
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
    status = load_reader(target, &reader, options, content);
    ds_os_close(&file);
    return status;
}

dsv2_status ds_snapshot_load_from(const ds_snapshot_target *target, dsv2_read_fn read, void *user,
                                  const dsv2_restore_options *options, ds_snapshot_content *content)
{
    snapshot_reader reader = {.name = "snapshot", .read = read, .user = user};
    return load_reader(target, &reader, options, content);
}

/* ---- without a model ---- */

static dsv2_status skip_blocks(snapshot_reader *reader, const ds_cache_shape *shape, const save_header *save)
{
    dsv2_status status = DSV2_OK;
    for (uint64_t at = save->first_token; at < save->n_tokens && status == DSV2_OK;) {
        uint8_t bytes[HEADER_BYTES];
        block_header header;
        status = ds_reader_all(reader, bytes, sizeof bytes);
        if (status == DSV2_OK)
            status = ds_block_header_unpack(reader->name, bytes, shape, at, save->n_tokens, &header);
        if (status == DSV2_OK)
            status = ds_reader_skip(reader, header.stored_bytes);
        if (status == DSV2_OK)
            at += header.n_tokens;
    }
    return status == DSV2_OK ? ds_reader_padding(reader) : status;
}

/* From header to header. */
static dsv2_status read_info(snapshot_reader *reader, uint64_t size, dsv2_snapshot_info *info)
{
    uint8_t bytes[FILE_HEADER_BYTES];
    file_header header;
    ds_cache_shape shape;
    dsv2_status status = ds_reader_all(reader, bytes, sizeof bytes);
    if (status == DSV2_OK)
        status = ds_file_header_unpack(reader->name, bytes, &header);
    if (status == DSV2_OK)
        status = ds_cache_shape_init(&shape, (dsv2_cache_type)header.cache_type, header.n_layers, header.kv_lora_rank,
                                     header.qk_rope_head_dim);
    uint64_t n_tokens = 0;
    bool end = false;
    for (uint32_t sequence = 0; status == DSV2_OK; sequence++) {
        save_header save;
        status = ds_reader_save(reader, sequence, n_tokens, &save, &end);
        if (status != DSV2_OK || end)
            break;
        status = ds_reader_skip(reader, ds_state_bytes(&save, header.vocab_size));
        if (status == DSV2_OK)
            status = skip_blocks(reader, &shape, &save);
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

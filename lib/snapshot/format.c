#include "snapshot/format.h"

#include <string.h>

static const uint8_t FILE_MAGIC[8] = {'D', 'S', 'V', '2', 'S', 'N', 'A', 'P'};
static const uint8_t SAVE_MAGIC[8] = {'D', 'S', 'V', '2', 'S', 'A', 'V', 'E'};
static const uint8_t FRAME_MAGIC[4] = {'R', 'O', 'W', 'S'};

enum { FLAG_LOGITS = 1 };

/* Reading takes what any model of config's bounds can have saved. */
_Static_assert((int)DS_MAX_LATENT_WIDTH == (int)DS_MAX_DIM && (int)DS_MAX_ROPE_WIDTH == (int)DS_MAX_HEAD_DIM,
               "widths that models have and that snapshots may name");

void ds_digest_store(XXH128_hash_t digest, uint8_t *bytes)
{
    ds_write_u64(bytes, digest.low64);
    ds_write_u64(bytes + 8, digest.high64);
}

bool ds_digest_equals(XXH128_hash_t digest, const uint8_t *bytes)
{
    return digest.low64 == ds_read_u64(bytes) && digest.high64 == ds_read_u64(bytes + 8);
}

/* The last bytes of a header are the digest of those before. */
static void seal(uint8_t *bytes, size_t size)
{
    ds_digest_store(XXH3_128bits(bytes, size - DIGEST_BYTES), bytes + size - DIGEST_BYTES);
}

static bool is_sealed(const uint8_t *bytes, size_t size)
{
    return ds_digest_equals(XXH3_128bits(bytes, size - DIGEST_BYTES), bytes + size - DIGEST_BYTES);
}

void ds_file_header_write(const file_header *header, uint8_t *bytes)
{
    memset(bytes, 0, FILE_HEADER_BYTES);
    memcpy(bytes, FILE_MAGIC, sizeof FILE_MAGIC);
    ds_write_u32(bytes + 8, header->version);
    ds_write_u32(bytes + 12, header->cache_type);
    ds_write_u32(bytes + 16, header->n_layers);
    for (uint32_t p = 0; p < DS_MAX_PARTS; p++)
        ds_write_u32(bytes + 20 + 4 * p, header->widths[p]);
    ds_write_u32(bytes + 28, header->vocab_size);
    ds_write_u64(bytes + 32, header->fingerprint.config);
    ds_write_u64(bytes + 40, header->fingerprint.tokenizer);
    ds_write_u64(bytes + 48, header->fingerprint.weights);
    ds_write_u32(bytes + 56, header->row->number);
    seal(bytes, FILE_HEADER_BYTES);
}

/* DSV2_ERROR_FORMAT unless the header's field has a value from min to max. */
static dsv2_status check_field(const char *name, const char *field, uint32_t value, uint32_t min, uint32_t max)
{
    if (value >= min && value <= max)
        return DSV2_OK;
    return ds_fail(DSV2_ERROR_FORMAT, "%s: the header's %s is %u, expected %u to %u", name, field, value, min, max);
}

/* DSV2_ERROR_UNSUPPORTED if a header that is whole has what only a later version can have written. */
static dsv2_status check_known(const char *name, const uint8_t *bytes, const file_header *header)
{
    const char *what = header->cache_type > DSV2_CACHE_Q6                          ? "cache type"
                       : header->row == NULL                                       ? "kind of row"
                       : !ds_is_zero(bytes + 60, FILE_HEADER_BYTES - DIGEST_BYTES - 60) ? "field"
                                                                                   : NULL;
    if (what == NULL)
        return DSV2_OK;
    return ds_fail(DSV2_ERROR_UNSUPPORTED,
                   "%s: written by a later version of the library: the header has a %s (cache type %u, row %u) that "
                   "this version does not know", name, what, header->cache_type, ds_read_u32(bytes + 56));
}

/* Whether the header is that of a cache that this library could have. */
static dsv2_status check_header(const char *name, const uint8_t *bytes, const file_header *header)
{
    dsv2_status status = check_known(name, bytes, header);
    if (status == DSV2_OK)
        status = check_field(name, "cache type", header->cache_type, DSV2_CACHE_F32, DSV2_CACHE_Q6);
    if (status == DSV2_OK)
        status = check_field(name, "number of layers", header->n_layers, 1, DS_MAX_LAYERS);
    for (uint32_t p = 0; status == DSV2_OK && p < header->row->n_parts; p++)
        status = check_field(name, header->row->parts[p].width_name, header->widths[p], header->row->parts[p].least,
                             header->row->parts[p].most);
    return status == DSV2_OK ? check_field(name, "vocab_size", header->vocab_size, 1, DS_MAX_VOCAB) : status;
}

dsv2_status ds_file_header_read(const char *name, const uint8_t *bytes, file_header *header)
{
    if (memcmp(bytes, FILE_MAGIC, sizeof FILE_MAGIC) != 0)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: not a snapshot of libdsv2", name);
    uint32_t version = ds_read_u32(bytes + 8);
    if (version != SNAPSHOT_VERSION)
        return ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: snapshot version %u, this library reads %d%s", name, version,
                       SNAPSHOT_VERSION, version > SNAPSHOT_VERSION ? ": a later version of the library wrote it" : "");
    if (!is_sealed(bytes, FILE_HEADER_BYTES))
        return ds_fail(DSV2_ERROR_FORMAT, "%s: the file's header is damaged", name);
    *header = (file_header){
        .version = version,
        .cache_type = ds_read_u32(bytes + 12),
        .n_layers = ds_read_u32(bytes + 16),
        .row = ds_row_description_of(ds_read_u32(bytes + 56)),
        .widths = {ds_read_u32(bytes + 20), ds_read_u32(bytes + 24)},
        .vocab_size = ds_read_u32(bytes + 28),
        .fingerprint = {
            .config = ds_read_u64(bytes + 32),
            .tokenizer = ds_read_u64(bytes + 40),
            .weights = ds_read_u64(bytes + 48),
        },
    };
    return check_header(name, bytes, header);
}

file_header ds_file_header_of(const dsv2_model *model, const ds_cache_shape *shape)
{
    file_header header = {
        .version = SNAPSHOT_VERSION,
        .cache_type = (uint32_t)shape->type,
        .n_layers = shape->n_layers,
        .row = shape->row,
        .vocab_size = model->fixed.config.vocab_size,
        .fingerprint = model->fixed.fingerprint,
    };
    for (uint32_t p = 0; p < shape->n_parts; p++)
        header.widths[p] = shape->parts[p].width;
    return header;
}

dsv2_status ds_file_header_shape(const file_header *header, ds_cache_shape *shape)
{
    dsv2_cache_type type = (dsv2_cache_type)header->cache_type;
    return ds_cache_shape_init(shape, header->row, header->widths, type, header->n_layers);
}

void ds_save_header_write(const save_header *header, uint8_t *bytes)
{
    memset(bytes, 0, HEADER_BYTES);
    memcpy(bytes, SAVE_MAGIC, sizeof SAVE_MAGIC);
    ds_write_u32(bytes + 8, header->number);
    ds_write_u32(bytes + 12, header->has_logits ? FLAG_LOGITS : 0);
    ds_write_u64(bytes + 16, header->first_token);
    ds_write_u64(bytes + 24, header->n_tokens);
    ds_write_u64(bytes + 32, header->n_biases);
    seal(bytes, HEADER_BYTES);
}

bool ds_is_zero(const uint8_t *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++)
        if (bytes[i] != 0)
            return false;
    return true;
}

dsv2_status ds_save_header_read(const char *name, const uint8_t *bytes, uint32_t number, uint64_t first_token,
                                save_header *header)
{
    if (memcmp(bytes, SAVE_MAGIC, sizeof SAVE_MAGIC) != 0 || !is_sealed(bytes, HEADER_BYTES))
        return ds_fail(DSV2_ERROR_FORMAT, "%s: the header of save %u is damaged", name, number);
    uint32_t flags = ds_read_u32(bytes + 12);
    *header = (save_header){
        .number = ds_read_u32(bytes + 8),
        .has_logits = (flags & FLAG_LOGITS) != 0,
        .first_token = ds_read_u64(bytes + 16),
        .n_tokens = ds_read_u64(bytes + 24),
        .n_biases = ds_read_u64(bytes + 32),
    };
    if ((flags & ~(uint32_t)FLAG_LOGITS) != 0 || ds_read_u64(bytes + 40) != 0)
        return ds_fail(DSV2_ERROR_UNSUPPORTED,
                       "%s: written by a later version of the library: the header of save %u has flags %u and reserved "
                       "bytes %llx, which this version does not know", name, number, flags,
                       (unsigned long long)ds_read_u64(bytes + 40));
    if (header->number != number || header->first_token != first_token || header->n_tokens < first_token ||
        header->n_tokens > DS_MAX_CONTEXT)
        return ds_fail(DSV2_ERROR_FORMAT,
                       "%s: save %u is numbered %u and of tokens %llu to %llu, expected them from %llu on", name,
                       number, header->number, (unsigned long long)header->first_token,
                       (unsigned long long)header->n_tokens, (unsigned long long)first_token);
    if (header->has_logits && header->n_tokens == 0)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: save %u has logits, but no token that they could follow", name, number);
    if (header->n_biases > DS_MAX_VOCAB)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: save %u has %llu logit biases, expected at most %d", name, number,
                       (unsigned long long)header->n_biases, DS_MAX_VOCAB);
    return DSV2_OK;
}

uint64_t ds_state_bytes(const save_header *save, uint32_t vocab_size)
{
    uint64_t biases = save->n_biases * sizeof(dsv2_logit_bias);
    uint64_t logits = save->has_logits ? vocab_size * sizeof(float) : 0;
    return SAMPLER_BYTES + biases + logits + (save->n_tokens - save->first_token) * sizeof(int32_t) + DIGEST_BYTES;
}

void ds_frame_header_write(const frame_header *header, uint8_t *bytes)
{
    memcpy(bytes, FRAME_MAGIC, sizeof FRAME_MAGIC);
    ds_write_u32(bytes + 4, header->encoding);
    ds_write_u64(bytes + 8, header->first_token);
    ds_write_u32(bytes + 16, header->n_tokens);
    ds_write_u32(bytes + 20, 0);
    ds_write_u64(bytes + 24, header->stored_bytes);
    memcpy(bytes + 32, header->raw_digest, DIGEST_BYTES);
    memcpy(bytes + 48, header->digest, DIGEST_BYTES);
}

dsv2_status ds_frame_header_read(const char *name, const uint8_t *bytes, const ds_cache_shape *shape,
                                 uint64_t first_token, uint64_t end, frame_header *header)
{
    *header = (frame_header){
        .encoding = ds_read_u32(bytes + 4),
        .first_token = ds_read_u64(bytes + 8),
        .n_tokens = ds_read_u32(bytes + 16),
        .stored_bytes = ds_read_u64(bytes + 24),
    };
    memcpy(header->raw_digest, bytes + 32, DIGEST_BYTES);
    memcpy(header->digest, bytes + 48, DIGEST_BYTES);
    uint64_t room = DS_PAGE_TOKENS - first_token % DS_PAGE_TOKENS;
    room = room < end - first_token ? room : end - first_token;
    if (memcmp(bytes, FRAME_MAGIC, sizeof FRAME_MAGIC) != 0)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: the header of the frame at token %llu is damaged", name,
                       (unsigned long long)first_token);
    if (header->first_token != first_token || header->n_tokens == 0 || header->n_tokens > room)
        return ds_fail(DSV2_ERROR_FORMAT,
                       "%s: the frame at token %llu says that it holds %u tokens from %llu on, "
                       "expected 1 to %llu", name, (unsigned long long)first_token, header->n_tokens,
                       (unsigned long long)header->first_token, (unsigned long long)room);
    uint64_t raw_bytes = ds_frame_raw_bytes(shape, header->n_tokens);
    header->unknown = header->encoding > FRAME_ZSTD || ds_read_u32(bytes + 20) != 0;
    uint64_t least = header->unknown || header->encoding == FRAME_ZSTD ? 1 : raw_bytes;
    uint64_t most = header->unknown || header->encoding == FRAME_RAW ? raw_bytes : raw_bytes - 1;
    bool fits = header->stored_bytes >= least && header->stored_bytes <= most;
    if (!fits)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: the frame at token %llu has encoding %u and %llu bytes for %llu of rows",
                       name, (unsigned long long)first_token, header->encoding,
                       (unsigned long long)header->stored_bytes, (unsigned long long)raw_bytes);
    return DSV2_OK;
}

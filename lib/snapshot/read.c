/* Reading what a snapshot consists of, from a file or a callback. */
#include "snapshot/format.h"

#include <math.h>
#include <string.h>

/* Reads up to `size` bytes; *got is 0 at the end. */
static dsv2_status read_piece(snapshot_reader *reader, void *data, size_t size, size_t *got)
{
    if (ds_os_is_open(reader->file))
        return ds_os_read(reader->file, reader->offset, data, size, got) ? DSV2_OK : ds_fail_io(reader->name, "read");
    ds_modes_lend();
    int failed = reader->read(reader->user, data, size, got);
    ds_modes_take_back();
    dsv2_status status = ds_calls_check(reader->calls);
    if (status != DSV2_OK)
        return status;
    if (failed != 0)
        return ds_fail(DSV2_ERROR_IO, "%s: the read callback failed at byte %llu", reader->name,
                       (unsigned long long)reader->offset);
    if (*got > size)
        return ds_fail(DSV2_ERROR_IO, "%s: the read callback says that it read %zu bytes, it was asked for %zu",
                       reader->name, *got, size);
    return DSV2_OK;
}

dsv2_status ds_reader_some(snapshot_reader *reader, void *data, size_t size, size_t *got)
{
    *got = 0;
    while (*got < size) {
        size_t n = 0;
        dsv2_status status = read_piece(reader, (uint8_t *)data + *got, size - *got, &n);
        if (status != DSV2_OK)
            return status;
        if (n == 0)
            break;
        *got += n;
        reader->offset += n;
    }
    return DSV2_OK;
}

dsv2_status ds_reader_all(snapshot_reader *reader, void *data, size_t size)
{
    size_t got;
    dsv2_status status = ds_reader_some(reader, data, size, &got);
    if (status == DSV2_OK && got < size)
        status = ds_fail(DSV2_ERROR_FORMAT, "%s: cut short at byte %llu", reader->name,
                         (unsigned long long)reader->offset);
    return status;
}

dsv2_status ds_reader_skip(snapshot_reader *reader, uint64_t bytes)
{
    ds_os_kind kind;
    uint64_t size;
    if (!ds_os_kind_and_size(reader->file, &kind, &size))
        return ds_fail_io(reader->name, "stat");
    if (reader->offset > size || bytes > size - reader->offset)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: cut short: %llu bytes from byte %llu on are not there", reader->name,
                       (unsigned long long)bytes, (unsigned long long)reader->offset);
    reader->offset += bytes;
    return DSV2_OK;
}

dsv2_status ds_reader_padding(snapshot_reader *reader)
{
    uint8_t padding[HEADER_BYTES];
    size_t size = (HEADER_BYTES - reader->offset % HEADER_BYTES) % HEADER_BYTES;
    dsv2_status status = ds_reader_all(reader, padding, size);
    if (status == DSV2_OK && !ds_is_zero(padding, size))
        status = ds_fail(DSV2_ERROR_FORMAT, "%s: the zeros before byte %llu are damaged", reader->name,
                         (unsigned long long)reader->offset);
    return status;
}

dsv2_status ds_reader_save(snapshot_reader *reader, uint32_t number, uint64_t first_token, save_header *save,
                           bool *end)
{
    uint8_t bytes[HEADER_BYTES];
    size_t got;
    dsv2_status status = ds_reader_some(reader, bytes, sizeof bytes, &got);
    if (status != DSV2_OK)
        return status;
    *end = number > 0 && ds_is_zero(bytes, got);
    if (*end)
        return DSV2_OK;
    if (got < sizeof bytes)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: cut short at byte %llu", reader->name,
                       (unsigned long long)reader->offset);
    return ds_save_header_read(reader->name, bytes, number, first_token, save);
}

dsv2_status ds_reader_frame(snapshot_reader *reader, const ds_cache_shape *shape, uint64_t first_token, uint64_t end,
                            frame *f)
{
    dsv2_status status = ds_reader_all(reader, f->header_bytes, sizeof f->header_bytes);
    if (status == DSV2_OK)
        status = ds_frame_header_read(reader->name, f->header_bytes, shape, first_token, end, &f->header);
    if (status == DSV2_OK)
        status = ds_reader_all(reader, f->buffer, (size_t)f->header.stored_bytes);
    f->stored = f->buffer;
    return status;
}

dsv2_status ds_reader_pass_frames(snapshot_reader *reader, const ds_cache_shape *shape, const save_header *save)
{
    dsv2_status status = DSV2_OK;
    for (uint64_t at = save->first_token; at < save->n_tokens && status == DSV2_OK;) {
        uint8_t bytes[HEADER_BYTES];
        frame_header header;
        status = ds_reader_all(reader, bytes, sizeof bytes);
        if (status == DSV2_OK)
            status = ds_frame_header_read(reader->name, bytes, shape, at, save->n_tokens, &header);
        if (status == DSV2_OK && header.unknown)
            status = ds_fail(DSV2_ERROR_UNSUPPORTED,
                             "%s: written by a later version of the library: the frame at token %llu has encoding %u",
                             reader->name, (unsigned long long)at, header.encoding);
        if (status == DSV2_OK)
            status = ds_reader_skip(reader, header.stored_bytes);
        if (status == DSV2_OK)
            at += header.n_tokens;
    }
    return status == DSV2_OK ? ds_reader_padding(reader) : status;
}

/* ---- the state ---- */

/* Reads exactly so many bytes of a state and takes them into its checksum. */
static dsv2_status read_checked(snapshot_reader *reader, XXH3_state_t *checksum, void *data, size_t size)
{
    dsv2_status status = ds_reader_all(reader, data, size);
    if (status == DSV2_OK)
        XXH3_128bits_update(checksum, data, size);
    return status;
}

/* Tokens and biases are read in pieces of so many: a header that promises more than the file holds takes no memory for
 * it. */
enum { PIECE = 16384 };

static dsv2_status read_tokens(snapshot_reader *reader, XXH3_state_t *checksum, const save_header *save,
                               ds_snapshot_content *content)
{
    for (size_t at = (size_t)save->first_token; at < save->n_tokens;) {
        size_t n = (size_t)save->n_tokens - at < PIECE ? (size_t)save->n_tokens - at : PIECE;
        if (!ds_grow(&content->tokens, &content->tokens_capacity, at + n, sizeof *content->tokens))
            return ds_fail_memory("tokens", (at + n) * sizeof *content->tokens);
        dsv2_status status = read_checked(reader, checksum, content->tokens + at, n * sizeof *content->tokens);
        if (status != DSV2_OK)
            return status;
        at += n;
    }
    return DSV2_OK;
}

static dsv2_status read_biases(snapshot_reader *reader, XXH3_state_t *checksum, size_t n, dsv2_logit_bias **biases)
{
    size_t capacity = 0;
    *biases = NULL;
    for (size_t at = 0; at < n;) {
        size_t piece = n - at < PIECE ? n - at : PIECE;
        if (!ds_grow(biases, &capacity, at + piece, sizeof **biases))
            return ds_fail_memory("logit biases", (at + piece) * sizeof **biases);
        dsv2_status status = read_checked(reader, checksum, *biases + at, piece * sizeof **biases);
        if (status != DSV2_OK)
            return status;
        at += piece;
    }
    return DSV2_OK;
}

static float read_float(const uint8_t *bytes)
{
    float value;
    memcpy(&value, bytes, sizeof value);
    return value;
}

static dsv2_status read_sampler(const char *name, const uint8_t *bytes, const dsv2_logit_bias *biases, size_t n_biases,
                                uint32_t vocab_size, ds_sampler *sampler)
{
    dsv2_sampling sampling = {
        .struct_size = sizeof sampling,
        .logit_bias = biases,
        .n_logit_bias = n_biases,
        .repetition_penalty = read_float(bytes),
        .presence_penalty = read_float(bytes + 4),
        .frequency_penalty = read_float(bytes + 8),
        .penalty_window = ds_read_u32(bytes + 12),
        .temperature = read_float(bytes + 16),
        .top_k = ds_read_u32(bytes + 20),
        .top_p = read_float(bytes + 24),
        .min_p = read_float(bytes + 28),
        .seed = ds_read_u64(bytes + 32),
    };
    ds_random random;
    for (int i = 0; i < 4; i++)
        random.state[i] = ds_read_u64(bytes + 40 + 8 * i);
    if ((random.state[0] | random.state[1] | random.state[2] | random.state[3]) == 0)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: the state of the random numbers is zero", name);
    dsv2_status status = ds_sampler_set(sampler, &sampling, vocab_size);
    if (status == DSV2_ERROR_ARGUMENT)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: %s", name, dsv2_last_error());
    if (status == DSV2_OK)
        sampler->random = random;
    return status;
}

dsv2_status ds_reader_state(snapshot_reader *reader, const save_header *save, uint32_t vocab_size,
                            ds_snapshot_content *content)
{
    uint8_t sampler[SAMPLER_BYTES], digest[DIGEST_BYTES];
    dsv2_logit_bias *biases = NULL;
    XXH3_state_t *checksum = XXH3_createState();
    if (checksum == NULL)
        return ds_fail_memory("a checksum", 0);
    XXH3_128bits_reset(checksum);
    dsv2_status status = read_checked(reader, checksum, sampler, sizeof sampler);
    if (status == DSV2_OK)
        status = read_biases(reader, checksum, (size_t)save->n_biases, &biases);
    content->has_logits = save->has_logits;
    if (status == DSV2_OK && save->has_logits)
        status = read_checked(reader, checksum, content->logits, vocab_size * sizeof *content->logits);
    if (status == DSV2_OK)
        status = read_tokens(reader, checksum, save, content);
    if (status == DSV2_OK)
        status = ds_reader_all(reader, digest, sizeof digest);
    if (status == DSV2_OK && !ds_digest_equals(XXH3_128bits_digest(checksum), digest))
        status = ds_fail(DSV2_ERROR_FORMAT, "%s: the sampler, logits or tokens of save %u are damaged", reader->name,
                         save->number);
    if (status == DSV2_OK && save->has_logits && !isfinite(ds_largest_magnitude(content->logits, vocab_size)))
        status = ds_fail(DSV2_ERROR_FORMAT, "%s: the logits of save %u are not finite", reader->name, save->number);
    for (size_t i = (size_t)save->first_token; status == DSV2_OK && i < save->n_tokens; i++)
        if (content->tokens[i] < 0 || (uint32_t)content->tokens[i] >= vocab_size)
            status = ds_fail(DSV2_ERROR_FORMAT, "%s: token %zu is %d, expected 0 to %u", reader->name, i,
                             (int)content->tokens[i], vocab_size - 1);
    if (status == DSV2_OK)
        status = read_sampler(reader->name, sampler, biases, (size_t)save->n_biases, vocab_size, &content->sampler);
    XXH3_freeState(checksum);
    ds_free(biases);
    return status;
}

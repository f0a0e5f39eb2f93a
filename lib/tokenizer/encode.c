/* A whole text to ids, and ids to bytes.
 *
 * Added tokens are cut out first, in two rounds as in Hugging Face's library: those that are not "normalized", then the
 * others. Each round takes the leftmost token, of several at one place the longest. Between them lies valid UTF-8,
 * which the pre-tokenizer splits, or other bytes, whose runs are pieces of their own.
 *
 * Substitutes. DeepSeek's vocabularies have no token for the bytes 0xc0, 0xc1 and 0xf5-0xff, which no UTF-8 text holds.
 * They do have added tokens spelled "ü", "ö" and so on, the letters of the byte alphabet for just these bytes; in a
 * text these tokens match the real letters. Ids have to be the file's, and yet any bytes have to come back. So such a
 * byte becomes two tokens: the token for a lone first byte of a long character (the escape), then the byte's
 * substitute. No other text gives that pair: valid text never ends a piece in a lone first byte, and an ü behind a
 * stray first byte is written by its own bytes. */
#include "tokenizer/parts.h"

#include <assert.h>
#include <string.h>

/* The byte whose substitute an added token is; -1: none. */
static int substituted_byte(const dsv2_tokenizer *t, int32_t token)
{
    for (int byte = 0; t->n_substitutes > 0 && byte < 256; byte++)
        if (t->substitute[byte] == token)
            return byte;
    return -1;
}

static dsv2_status encode_bytes(ds_encoder *e, const char *text, size_t size)
{
    dsv2_status status = DSV2_OK;
    for (size_t i = 0; i < size && status == DSV2_OK;) {
        size_t n = ds_utf8_valid(text + i, size - i);
        if (n > 0) {
            status = ds_encode_valid(e, text + i, n);
        } else {
            do
                n++;
            while (i + n < size && ds_utf8_length(text + i + n, size - i - n) == 0);
            status = ds_encode_piece(e, text + i, n);
        }
        i += n;
    }
    return status;
}

/* Appends an added token that the text spells. */
static dsv2_status push_added(ds_encoder *e, int32_t id)
{
    const dsv2_tokenizer *t = e->tokenizer;
    const ds_ids *out = e->out;
    if (t->n_substitutes > 0 && out->n > 0 && out->ids[out->n - 1] == t->escape && substituted_byte(t, id) >= 0)
        return ds_encode_piece(e, t->texts + t->tokens[id].offset, t->tokens[id].size);
    e->done += t->tokens[id].size;
    return ds_push(e->out, id);
}

/* Places of a text that are looked at in one go. */
enum { BLOCK = 16 << 10 };

static bool is_special(const dsv2_tokenizer *t, int32_t id) { return (t->tokens[id].kind & DS_TOKEN_SPECIAL) != 0; }

/* How many bytes from `at` on are the host's, who may write special tokens; or are not. */
static size_t run_of_bytes(const ds_encoder *e, const char *at, size_t size, bool hosts)
{
    const uint8_t *origins = e->origins + (at - e->text);
    size_t n = 0;
    while (n < size && (origins[n] == 0) == hosts)
        n++;
    return n;
}

static bool may_be_special(const ds_encoder *e, const char *text, size_t size)
{
    return e->origins != NULL ? run_of_bytes(e, text, size, true) == size : (e->flags & DSV2_ENCODE_SPECIAL) != 0;
}

/* What is there in place of a special token that is spelled in `size` bytes, and may not be one: a shorter token of the
 * host's bytes, or -1 and *n bytes in which no token of this round begins, as in Hugging Face's library. */
static int32_t match_instead(ds_encoder *e, const ds_added *added, const char *text, size_t size, size_t *n)
{
    int32_t id = -1;
    *n = size;
    if (e->origins == NULL)
        return -1;
    size_t hosts = run_of_bytes(e, text, size, true);
    if (hosts > 0)
        e->steps += ds_added_match(added, text, hosts, 1, &id);
    *n = hosts > 0 ? 1 : run_of_bytes(e, text, size, false);
    return id;
}

static dsv2_status cut_added(ds_encoder *e, unsigned round, const char *text, size_t size)
{
    const dsv2_tokenizer *t = e->tokenizer;
    if (round == 2)
        return encode_bytes(e, text, size);
    const ds_added *added = round == 0 ? &t->early : &t->late;
    if (added->n == 0)
        return cut_added(e, round + 1, text, size);
    size_t block = e->size < BLOCK ? e->size : BLOCK;
    if (e->added[round] == NULL && (e->added[round] = ds_new(block, sizeof(int32_t))) == NULL)
        return ds_fail_memory("finding added tokens", block * sizeof(int32_t));
    size_t done = 0, begin = 0, end = 0; /* e->added[round] tells of the places from begin to end - 1 */
    dsv2_status status = DSV2_OK;
    for (size_t i = 0; i < size && status == DSV2_OK;) {
        if (i >= end) {
            begin = i;
            end = size - i < block ? size : i + block;
            e->steps += ds_added_match(added, text + i, size - i, end - i, e->added[round]);
            if ((status = ds_count_work(e, end - i)) != DSV2_OK)
                break;
        }
        int32_t id = e->added[round][i - begin];
        size_t n = 1;
        if (id >= 0 && is_special(t, id) && !may_be_special(e, text + i, t->tokens[id].size))
            id = match_instead(e, added, text + i, t->tokens[id].size, &n);
        if (id < 0) {
            i += n;
            continue;
        }
        if (i > done)
            status = cut_added(e, round + 1, text + done, i - done);
        if (status == DSV2_OK)
            status = push_added(e, id);
        i += t->tokens[id].size;
        done = i;
    }
    if (status == DSV2_OK && done < size)
        status = cut_added(e, round + 1, text + done, size - done);
    return status;
}

static dsv2_status report(ds_encoder *e)
{
    e->unreported = 0;
    return ds_call_progress(e->progress, e->progress_user, DSV2_PHASE_ENCODE, e->done, e->size)
               ? DSV2_OK
               : ds_fail(DSV2_ERROR_CANCELLED, "the progress callback cancelled encoding");
}

dsv2_status ds_count_work(ds_encoder *e, uint64_t work)
{
    enum { REPORT = 64 << 10 };
    e->unreported += work;
    /* The end is reported once, when all is done. */
    return e->unreported < REPORT || e->done == e->size ? DSV2_OK : report(e);
}

dsv2_status ds_encode_text(ds_encoder *e, const char *text, size_t size)
{
    /* PCRE2's compiled matchers read up to a vector past the end, which a host's memory checker would report. */
    enum { BEHIND = 64 };
    if (size >= INT32_MAX)
        return ds_fail(DSV2_ERROR_ARGUMENT, "size is %zu, expected less than 2 GiB", size);
    char *copy = ds_new(size + BEHIND, 1);
    if (copy == NULL)
        return ds_fail_memory("a text", size + BEHIND);
    if (size > 0)
        memcpy(copy, text, size);
    e->text = copy;
    e->size = size;
    dsv2_status status = DSV2_OK;
    if ((e->flags & DSV2_ENCODE_BOS) != 0 && e->tokenizer->bos >= 0)
        status = ds_push(e->out, e->tokenizer->bos);
    if (status == DSV2_OK)
        status = cut_added(e, 0, copy, size);
    assert(status != DSV2_OK || e->done == size);
    if (status == DSV2_OK)
        status = report(e);
    ds_free(copy);
    return status;
}

dsv2_status ds_encode(const dsv2_tokenizer *t, const char *text, size_t size, uint32_t flags, ds_ids *out)
{
    return ds_encode_watched(t, text, size, flags, NULL, NULL, out);
}

dsv2_status ds_encode_watched(const dsv2_tokenizer *t, const char *text, size_t size, uint32_t flags,
                              dsv2_progress_fn progress, void *progress_user, ds_ids *out)
{
    ds_encoder e = {
        .tokenizer = t, .out = out, .flags = flags, .progress = progress, .progress_user = progress_user};
    dsv2_status status = ds_encode_text(&e, text, size);
    ds_encoder_free(&e);
    return status;
}

dsv2_status ds_encode_prompt(const dsv2_tokenizer *t, const char *text, const uint8_t *origins, size_t size,
                             ds_ids *out)
{
    ds_encoder e = {.tokenizer = t, .out = out, .origins = origins};
    dsv2_status status = ds_encode_text(&e, text, size);
    ds_encoder_free(&e);
    return status;
}

dsv2_status ds_decode(const dsv2_tokenizer *t, const int32_t *tokens, size_t n_tokens, uint32_t flags, char *text,
                      size_t capacity, size_t *size)
{
    for (size_t i = 0; i < n_tokens; i++)
        if (tokens[i] < 0 || tokens[i] >= DS_MAX_TOKENS)
            return ds_fail(DSV2_ERROR_ARGUMENT, "tokens[%zu] is %d, expected 0 to %d", i, tokens[i], DS_MAX_TOKENS - 1);
    /* The first time finds the length, since nothing may be written to a buffer that is too small. */
    for (unsigned writing = 0; writing < 2; writing++) {
        uint64_t total = 0;
        for (size_t i = 0; i < n_tokens; i++) {
            if ((uint32_t)tokens[i] >= t->n_tokens)
                continue; /* a row of the embedding that the tokenizer has no text for */
            const ds_token *token = &t->tokens[tokens[i]];
            int byte = tokens[i] == t->escape && i + 1 < n_tokens ? substituted_byte(t, tokens[i + 1]) : -1;
            bool hidden = (token->kind & DS_TOKEN_SPECIAL) != 0 && (flags & DSV2_DECODE_SPECIAL) == 0;
            uint64_t n = byte >= 0 ? 1 : hidden ? 0 : token->size;
            if (writing && byte >= 0)
                text[total] = (char)byte;
            else if (writing)
                memcpy(text + total, t->texts + token->offset, (size_t)n);
            if (!ds_add(total, n, &total) || total > SIZE_MAX)
                return ds_fail(DSV2_ERROR_ARGUMENT, "%zu tokens are more text than memory can hold", n_tokens);
            i += byte >= 0;
        }
        *size = (size_t)total;
        if (capacity == 0)
            return DSV2_OK;
        if (total > capacity)
            return ds_fail(DSV2_ERROR_BUFFER, "capacity is %zu, expected at least %llu bytes", capacity,
                           (unsigned long long)total);
    }
    return DSV2_OK;
}

/* The argument checks of <dsv2/tokenizer.h>; lib/tokenizer does the work. dsv2_model_tokenizer is in api/model.c. */
#include "formats/pack.h"
#include "tokenizer/tokenizer.h"

#include <dsv2/tokenizer.h>
#include <string.h>

static dsv2_status null_argument(const char *function, const char *name)
{
    return ds_fail(DSV2_ERROR_ARGUMENT, "%s: %s is NULL", function, name);
}

/* The tokenizer inside a file that holds weights too. */
static dsv2_status open_container(const char *path, bool is_pack, dsv2_tokenizer **tokenizer)
{
    ds_container *container;
    dsv2_tokenizer *found = NULL;
    dsv2_status status = is_pack ? ds_pack_open(path, &container) : ds_gguf_open(path, NULL, &container);
    if (status != DSV2_OK)
        return status;
    status = is_pack ? ds_pack_tokenizer(container, &found) : ds_gguf_tokenizer(container, &found);
    ds_container_close(container);
    if (status == DSV2_OK && found == NULL)
        status = ds_fail(DSV2_ERROR_FORMAT, "%s: has no tokenizer", path);
    if (status == DSV2_OK)
        *tokenizer = found;
    return status;
}

dsv2_status dsv2_tokenizer_open(const char *path, dsv2_tokenizer **tokenizer)
{
    if (path == NULL)
        return null_argument(__func__, "path");
    if (tokenizer == NULL)
        return null_argument(__func__, "tokenizer");
    bool is_pack = ds_is_pack(path), is_container = is_pack || ds_is_gguf(path);
    ds_modes modes; /* a file's numbers are read, which rounds them */
    ds_modes_begin(&modes);
    dsv2_status status = is_container ? open_container(path, is_pack, tokenizer) : ds_tokenizer_open(path, tokenizer);
    ds_modes_end(&modes);
    return status;
}

void dsv2_tokenizer_close(dsv2_tokenizer *tokenizer) { ds_tokenizer_destroy(tokenizer); }

/* Ends every function that returns ids: stores their number, and copies the ids if there is room. Frees ids->ids. */
static dsv2_status return_ids(ds_ids *ids, dsv2_status status, int32_t *tokens, size_t capacity, size_t *n_tokens)
{
    if (status == DSV2_OK) {
        *n_tokens = ids->n;
        if (capacity > 0 && ids->n > capacity)
            status = ds_fail(DSV2_ERROR_BUFFER, "capacity is %zu, expected at least %zu tokens", capacity, ids->n);
        else if (capacity > 0 && ids->n > 0)
            memcpy(tokens, ids->ids, ids->n * sizeof *tokens);
    }
    ds_free(ids->ids);
    return status;
}

static dsv2_status check_buffer(const char *function, const dsv2_tokenizer *tokenizer, const void *buffer,
                                size_t capacity, const size_t *size)
{
    if (tokenizer == NULL)
        return null_argument(function, "tokenizer");
    if (buffer == NULL && capacity > 0)
        return ds_fail(DSV2_ERROR_ARGUMENT, "%s: the buffer is NULL and its capacity %zu", function, capacity);
    if (size == NULL)
        return null_argument(function, "the place for the length");
    return DSV2_OK;
}

static dsv2_status check_text(const char *function, const char *text, size_t size, uint32_t flags)
{
    if (text == NULL && size > 0)
        return null_argument(function, "text");
    if ((flags & ~(uint32_t)(DSV2_ENCODE_BOS | DSV2_ENCODE_SPECIAL)) != 0)
        return ds_fail(DSV2_ERROR_ARGUMENT, "%s: flags is 0x%x, expected DSV2_ENCODE_BOS and DSV2_ENCODE_SPECIAL alone",
                       function, flags);
    return DSV2_OK;
}

static dsv2_status encode(const char *function, const dsv2_tokenizer *tokenizer, const char *text, size_t size,
                          uint32_t flags, dsv2_progress_fn progress, void *progress_user, int32_t *tokens,
                          size_t capacity, size_t *n_tokens)
{
    dsv2_status status = check_buffer(function, tokenizer, tokens, capacity, n_tokens);
    if (status == DSV2_OK)
        status = check_text(function, text, size, flags);
    if (status != DSV2_OK)
        return status;
    ds_ids ids = {0};
    ds_modes modes; /* which the callback is lent */
    ds_modes_begin(&modes);
    status = ds_encode_watched(tokenizer, text, size, flags, progress, progress_user, &ids);
    ds_modes_end(&modes);
    return return_ids(&ids, status, tokens, capacity, n_tokens);
}

dsv2_status dsv2_tokenizer_encode(const dsv2_tokenizer *tokenizer, const char *text, size_t size, uint32_t flags,
                                  int32_t *tokens, size_t capacity, size_t *n_tokens)
{
    return encode(__func__, tokenizer, text, size, flags, NULL, NULL, tokens, capacity, n_tokens);
}

dsv2_status dsv2_tokenizer_encode_watched(const dsv2_tokenizer *tokenizer, const char *text, size_t size,
                                          uint32_t flags, dsv2_progress_fn progress, void *progress_user,
                                          int32_t *tokens, size_t capacity, size_t *n_tokens)
{
    return encode(__func__, tokenizer, text, size, flags, progress, progress_user, tokens, capacity, n_tokens);
}

dsv2_status dsv2_tokenizer_decode(const dsv2_tokenizer *tokenizer, const int32_t *tokens, size_t n_tokens,
                                  uint32_t flags, char *text, size_t capacity, size_t *size)
{
    dsv2_status status = check_buffer(__func__, tokenizer, text, capacity, size);
    if (status != DSV2_OK)
        return status;
    if (tokens == NULL && n_tokens > 0)
        return null_argument(__func__, "tokens");
    if ((flags & ~(uint32_t)DSV2_DECODE_SPECIAL) != 0)
        return ds_fail(DSV2_ERROR_ARGUMENT, "%s: flags is 0x%x, expected DSV2_DECODE_SPECIAL alone", __func__, flags);
    return ds_decode(tokenizer, tokens, n_tokens, flags, text, capacity, size);
}

dsv2_status dsv2_token_text(const dsv2_tokenizer *tokenizer, int32_t token, const char **text, size_t *size)
{
    if (tokenizer == NULL || text == NULL || size == NULL)
        return null_argument(__func__, tokenizer == NULL ? "tokenizer" : text == NULL ? "text" : "size");
    if (token < 0 || token >= DS_MAX_TOKENS)
        return ds_fail(DSV2_ERROR_ARGUMENT, "%s: token is %d, expected 0 to %d", __func__, token, DS_MAX_TOKENS - 1);
    ds_text bytes = ds_get_token(tokenizer, token);
    *text = bytes.data;
    *size = bytes.size;
    return DSV2_OK;
}

dsv2_status dsv2_tokenizer_get_info(const dsv2_tokenizer *tokenizer, dsv2_tokenizer_info *info)
{
    if (tokenizer == NULL)
        return null_argument(__func__, "tokenizer");
    dsv2_tokenizer_info known;
    ds_describe_tokenizer(tokenizer, &known);
    return ds_write_info(DS_SIZED(dsv2_tokenizer_info, chat_form), info, &known);
}

dsv2_status dsv2_tokenizer_find(const dsv2_tokenizer *tokenizer, const char *text, size_t size, int32_t *token)
{
    if (tokenizer == NULL || token == NULL || (text == NULL && size > 0))
        return null_argument(__func__, tokenizer == NULL ? "tokenizer" : token == NULL ? "token" : "text");
    *token = ds_find_token(tokenizer, text, size);
    return DSV2_OK;
}

dsv2_status dsv2_chat_encode(const dsv2_tokenizer *tokenizer, const dsv2_message *messages, size_t n, size_t first,
                             int32_t *tokens, size_t capacity, size_t *n_tokens)
{
    dsv2_status status = check_buffer(__func__, tokenizer, tokens, capacity, n_tokens);
    if (status != DSV2_OK)
        return status;
    dsv2_chat chat = {.struct_size = sizeof chat, .messages = messages, .n = n, .first = first};
    return dsv2_chat_prompt(tokenizer, &chat, tokens, capacity, n_tokens);
}

static dsv2_status check_chat(const char *function, const dsv2_chat *chat)
{
    if (chat->messages == NULL && chat->n > 0)
        return null_argument(function, "messages");
    if (chat->messages_json != NULL && (chat->messages != NULL || chat->n > 0))
        return ds_fail(DSV2_ERROR_ARGUMENT, "%s: both messages and messages_json are given", function);
    if ((chat->flags & ~(uint32_t)(DSV2_CHAT_OPEN | DSV2_CHAT_UNCLOSED)) != 0)
        return ds_fail(DSV2_ERROR_ARGUMENT, "%s: flags is 0x%x, expected DSV2_CHAT_OPEN and DSV2_CHAT_UNCLOSED or-ed",
                       function, chat->flags);
    return DSV2_OK;
}

dsv2_status dsv2_chat_prompt(const dsv2_tokenizer *tokenizer, const dsv2_chat *chat, int32_t *tokens, size_t capacity,
                             size_t *n_tokens)
{
    dsv2_status status = check_buffer(__func__, tokenizer, tokens, capacity, n_tokens);
    dsv2_chat known;
    if (status == DSV2_OK)
        status = ds_read_options(DS_SIZED(dsv2_chat, now), chat, &known);
    if (status == DSV2_OK)
        status = check_chat(__func__, &known);
    if (status != DSV2_OK)
        return status;
    ds_ids ids = {0};
    ds_modes modes; /* templates count, and print numbers */
    ds_modes_begin(&modes);
    status = ds_chat(tokenizer, &known, &ids);
    ds_modes_end(&modes);
    return return_ids(&ids, status, tokens, capacity, n_tokens);
}

dsv2_status dsv2_chat_template(const dsv2_tokenizer *tokenizer, const char **text, size_t *size)
{
    if (tokenizer == NULL || text == NULL || size == NULL)
        return null_argument(__func__, tokenizer == NULL ? "tokenizer" : text == NULL ? "text" : "size");
    ds_text template = ds_chat_template(tokenizer);
    *text = template.data;
    *size = template.size;
    return DSV2_OK;
}

dsv2_status dsv2_fim_encode(const dsv2_tokenizer *tokenizer, const char *prefix, size_t prefix_size, const char *suffix,
                            size_t suffix_size, int32_t *tokens, size_t capacity, size_t *n_tokens)
{
    dsv2_status status = check_buffer(__func__, tokenizer, tokens, capacity, n_tokens);
    if (status != DSV2_OK)
        return status;
    if ((prefix == NULL && prefix_size > 0) || (suffix == NULL && suffix_size > 0))
        return null_argument(__func__, prefix == NULL && prefix_size > 0 ? "prefix" : "suffix");
    ds_ids ids = {0};
    status = ds_fim(tokenizer, (ds_text){prefix, prefix_size}, (ds_text){suffix, suffix_size}, &ids);
    return return_ids(&ids, status, tokens, capacity, n_tokens);
}

/* Prompts for chat and for filling in the middle.
 *
 * All text between two special tokens is encoded as one text, since the pre-tokenizer may see no boundary where a
 * message ends. Text never becomes a special token: it is encoded without DSV2_ENCODE_SPECIAL. */
#include "tokenizer/parts.h"

#include <string.h>

typedef struct prompt {
    const dsv2_tokenizer *tokenizer;
    ds_ids *out;
    char *text; /* since the last special token */
    size_t size, capacity;
    dsv2_status status; /* of the first failure, after which nothing more is done */
} prompt;

static void add_bytes(prompt *p, const char *text, size_t size)
{
    if (p->status != DSV2_OK || size == 0)
        return;
    if (!ds_grow(&p->text, &p->capacity, p->size + size, 1)) {
        p->status = ds_fail_memory("a prompt", p->size + size);
        return;
    }
    memcpy(p->text + p->size, text, size);
    p->size += size;
}

static void add_string(prompt *p, const char *text) { add_bytes(p, text, strlen(text)); }

/* Encodes the text so far. */
static void flush(prompt *p)
{
    if (p->status == DSV2_OK && p->size > 0)
        p->status = ds_encode(p->tokenizer, p->text, p->size, 0, p->out);
    p->size = 0;
}

static void add_token(prompt *p, int32_t token)
{
    flush(p);
    if (p->status == DSV2_OK)
        p->status = ds_push(p->out, token);
}

static bool is_role(const dsv2_message *message, const char *role) { return strcmp(message->role, role) == 0; }

static dsv2_status check_messages(const dsv2_message *messages, size_t n, size_t first)
{
    if (first > n)
        return ds_fail(DSV2_ERROR_ARGUMENT, "first is %zu, expected at most n, which is %zu", first, n);
    for (size_t i = 0, turn = 0; i < n; i++) {
        if (messages[i].role == NULL)
            return ds_fail(DSV2_ERROR_ARGUMENT, "messages[%zu].role is NULL", i);
        if (messages[i].content == NULL && messages[i].content_size > 0)
            return ds_fail(DSV2_ERROR_ARGUMENT, "messages[%zu].content is NULL", i);
        if (i == 0 && is_role(&messages[i], "system"))
            continue;
        const char *expected = turn++ % 2 == 0 ? "user" : "assistant";
        if (!is_role(&messages[i], expected))
            return ds_fail(DSV2_ERROR_ARGUMENT, "messages[%zu].role is \"%.*s\", expected \"%s\"", i,
                           DS_QUOTED_STRING(messages[i].role), expected);
    }
    if (n == 0 || is_role(&messages[n - 1], "system"))
        return ds_fail(DSV2_ERROR_ARGUMENT, "the conversation has no user's message");
    return DSV2_OK;
}

/* One message. The Assistant mark belongs to the user's message before it, so that a prompt ends with it. */
static void add_message(prompt *p, const dsv2_message *message)
{
    const dsv2_tokenizer *t = p->tokenizer;
    if (is_role(message, "system")) {
        add_bytes(p, message->content, message->content_size);
        if (!t->chat_v25)
            add_string(p, "\n\n");
    } else if (is_role(message, "user")) {
        if (t->chat_v25)
            add_token(p, t->user);
        else
            add_string(p, "User: ");
        add_bytes(p, message->content, message->content_size);
        if (t->chat_v25)
            add_token(p, t->assistant);
        else
            add_string(p, "\n\nAssistant:");
    } else {
        if (!t->chat_v25)
            add_string(p, " ");
        add_bytes(p, message->content, message->content_size);
        add_token(p, t->eos);
    }
}

dsv2_status ds_chat(const dsv2_tokenizer *t, const dsv2_message *messages, size_t n, size_t first, ds_ids *out)
{
    dsv2_status status = check_messages(messages, n, first);
    if (status != DSV2_OK)
        return status;
    prompt p = {.tokenizer = t, .out = out};
    if (first == 0 && t->bos >= 0)
        add_token(&p, t->bos);
    for (size_t i = first; i < n; i++) {
        if (is_role(&messages[i], "assistant") && t->eos < 0) {
            p.status = ds_fail(DSV2_ERROR_UNSUPPORTED,
                               "%s: no end-of-sequence token is known, which ends an assistant's message", t->path);
            break;
        }
        add_message(&p, &messages[i]);
    }
    flush(&p);
    ds_free(p.text);
    return p.status;
}

dsv2_status ds_fim(const dsv2_tokenizer *t, ds_text prefix, ds_text suffix, ds_ids *out)
{
    if (t->fim_begin < 0 || t->fim_hole < 0 || t->fim_end < 0)
        return ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: the vocabulary has no tokens for filling in the middle "
                       "(<｜fim▁begin｜>, <｜fim▁hole｜>, <｜fim▁end｜>)", t->path);
    prompt p = {.tokenizer = t, .out = out};
    if (t->bos >= 0)
        add_token(&p, t->bos);
    add_token(&p, t->fim_begin);
    add_bytes(&p, prefix.data, prefix.size);
    add_token(&p, t->fim_hole);
    add_bytes(&p, suffix.data, suffix.size);
    add_token(&p, t->fim_end);
    ds_free(p.text);
    return p.status;
}

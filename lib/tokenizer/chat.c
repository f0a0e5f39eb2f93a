/* Prompts for chat and for filling in the middle.
 *
 * A conversation is rendered by the checkpoint's template, or by one of those below, and the text is encoded as a
 * whole. Of special tokens only those that the template wrote become tokens: a byte of a message never is part of
 * one. */
#include "tokenizer/parts.h"

#include "base/json.h"

#include <string.h>

/* ---- the forms of families whose checkpoints have no template ---- */

/* DeepSeek-V2, DeepSeek LLM and DeepSeek-Coder-V2: the speakers' names are text. */
static const char form_v2[] =
    "{{ bos_token }}"
    "{% for m in messages %}"
    "{% if m.role == 'system' %}{{ m.content + '\\n\\n' }}"
    "{% elif m.role == 'user' %}{{ 'User: ' + m.content + '\\n\\n' }}"
    "{% elif m.role == 'assistant' %}{{ 'Assistant: ' + m.content + eos_token }}"
    "{% else %}{{ raise_exception('role \"' + m.role + '\" is none of system, user, assistant') }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}";

/* DeepSeek-V2.5, V3 and R1: the speakers are tokens, and all system texts stand at the beginning. R1 begins its reply
 * by thinking. */
static const char form_v25[] =
    "{{ bos_token }}"
    "{% for m in messages if m.role == 'system' %}"
    "{{ m.content }}{% if not loop.last %}{{ '\\n\\n' }}{% endif %}"
    "{% endfor %}"
    "{% for m in messages %}"
    "{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}"
    "{% elif m.role == 'assistant' %}{{ '<｜Assistant｜>' + m.content + eos_token }}"
    "{% elif m.role != 'system' %}{{ raise_exception('role \"' + m.role + '\" is none of system, user, assistant') }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜>{% if thinking %}{{ '<think>\\n' }}{% endif %}{% endif %}";

static dsv2_status refused_template(const dsv2_tokenizer *t)
{
    return ds_fail(DSV2_ERROR_UNSUPPORTED, "the checkpoint's chat template cannot be used: %s", t->template_refusal);
}

/* ---- variables ---- */

static dsv2_status check_message(const dsv2_message *message, size_t i)
{
    if (message->role == NULL)
        return ds_fail(DSV2_ERROR_ARGUMENT, "messages[%zu].role is NULL", i);
    if (message->content == NULL && message->content_size > 0)
        return ds_fail(DSV2_ERROR_ARGUMENT, "messages[%zu].content is NULL", i);
    return DSV2_OK;
}

/* Any bytes are a text. */
static json_t *as_json(const char *text, size_t size) { return json_stringn_nocheck(size > 0 ? text : "", size); }

static dsv2_status add_messages(const dsv2_message *messages, size_t n, json_t *list)
{
    for (size_t i = 0; i < n; i++) {
        dsv2_status status = check_message(&messages[i], i);
        if (status != DSV2_OK)
            return status;
        json_t *message = json_object();
        bool made = message != NULL
                    && json_object_set_new(message, "role", as_json(messages[i].role, strlen(messages[i].role))) == 0
                    && json_object_set_new(message, "content",
                                           as_json(messages[i].content, messages[i].content_size)) == 0;
        if (!made)
            json_decref(message);
        if (!made || json_array_append_new(list, message) != 0)
            return ds_fail_memory("a conversation", messages[i].content_size);
    }
    return DSV2_OK;
}

/* Parses `text`, the host's JSON, of which errors say `name`. */
static dsv2_status parse(const char *name, const char *text, bool is_list, json_t **parsed)
{
    /* Short members take some hundred times their text. */
    enum { MEMORY = 16 << 20, MEMORY_A_BYTE = 256 };
    /* The readers of JSON want an object. */
    static const char before[] = "{\"value\":";
    size_t size = strlen(text), begin = sizeof before - 1;
    char *object = ds_new(begin + size + 1, 1);
    json_t *root;
    if (object == NULL)
        return ds_fail_memory("a conversation", size);
    memcpy(object, before, begin);
    memcpy(object + begin, text, size);
    object[begin + size] = '}';
    ds_json json;
    dsv2_status status = ds_json_check(name, object, begin + size + 1, &json);
    json.more_memory = MEMORY + (uint64_t)MEMORY_A_BYTE * size;
    if (status == DSV2_OK)
        status = ds_json_read(&json, json.text, NULL, &root);
    ds_free(object);
    if (status == DSV2_ERROR_FORMAT)
        return ds_fail(DSV2_ERROR_ARGUMENT, "%s is not valid JSON", name);
    if (status != DSV2_OK)
        return status;
    json_t *value = json_object_get(root, "value");
    if (json_object_size(root) != 1 || !(is_list ? json_is_array(value) : json_is_object(value)))
        status = ds_fail(DSV2_ERROR_ARGUMENT, "%s is %s, expected %s", name, ds_json_kind(value),
                         is_list ? "a list" : "an object");
    else
        *parsed = json_incref(value);
    json_decref(root);
    return status;
}

/* Adds the host's list to the variables. */
static dsv2_status add_list(json_t *variables, const char *name, const char *text)
{
    json_t *list;
    dsv2_status status = parse(name, text, true, &list);
    if (status == DSV2_OK && json_object_set_new(variables, name, list) != 0)
        status = ds_fail_memory("a conversation", strlen(text));
    return status;
}

static dsv2_status set_messages(const dsv2_chat *chat, json_t *variables)
{
    if (chat->messages_json != NULL)
        return add_list(variables, "messages", chat->messages_json);
    json_t *list = json_array();
    if (list == NULL || json_object_set_new(variables, "messages", list) != 0)
        return ds_fail_memory("a conversation", 0);
    return add_messages(chat->messages, chat->n, list);
}

/* The host's own variables, and over them tools and messages. */
static dsv2_status make_variables(const dsv2_chat *chat, json_t **variables)
{
    json_t *made = NULL;
    dsv2_status status = parse("variables", chat->variables != NULL ? chat->variables : "{}", false, &made);
    if (status == DSV2_OK && chat->tools != NULL)
        status = add_list(made, "tools", chat->tools);
    if (status == DSV2_OK)
        status = set_messages(chat, made);
    if (status == DSV2_OK)
        *variables = made;
    else
        json_decref(made);
    return status;
}

static bool has_role(const json_t *message, const char *role)
{
    const char *text = json_string_value(json_object_get(message, "role"));
    return text != NULL && strcmp(text, role) == 0;
}

/* ---- rendering ---- */

typedef struct writer {
    const dsv2_tokenizer *tokenizer;
    const ds_template *template;
    json_t *variables;
    bool may_ask; /* the host left add_generation_prompt to the library */
    int64_t now;
} writer;

/* The prompt of these messages. It asks for a reply unless an assistant spoke last. */
static dsv2_status write_prompt(const writer *w, json_t *messages, bool open, ds_rendered *rendered)
{
    const dsv2_tokenizer *t = w->tokenizer;
    ds_template_word words[2];
    size_t n_words = 0, n = json_array_size(messages);
    if (t->bos >= 0)
        words[n_words++] = (ds_template_word){"bos_token", ds_get_token(t, t->bos)};
    if (t->eos >= 0)
        words[n_words++] = (ds_template_word){"eos_token", ds_get_token(t, t->eos)};
    bool asks = !open && !has_role(json_array_get(messages, n - 1), "assistant");
    if (json_object_set(w->variables, "messages", messages) != 0 ||
        (w->may_ask && json_object_set_new(w->variables, "add_generation_prompt", json_boolean(asks)) != 0))
        return ds_fail_memory("a conversation", n);
    return ds_template_render(w->template, w->variables, words, n_words, w->now, rendered);
}

/* Where the text of the last message ends in a prompt; the message has some. */
static size_t end_of_data(const ds_rendered *rendered)
{
    size_t end = rendered->size;
    while (end > 0 && rendered->origins[end - 1] == 0)
        end--;
    return end;
}

/* A mark is put behind the text of a message. Where the mark comes out, that text ends. Private characters, which no
 * filter changes; a conversation that has them itself is refused. */
static const char open_mark[] = "\xef\xa3\xbf\xee\x80\x80\xef\xa3\xbf", /* U+F8FF, U+E000, U+F8FF */
    unclosed_mark[] = "\xef\xa3\xbf\xee\x80\x81\xef\xa3\xbf";

/* Puts a mark behind the text of message `i`, which has to be a reply without tool calls: what a template writes of
 * those stands behind the text. */
static dsv2_status mark_reply(json_t *messages, size_t i, const char *flag, const char *mark)
{
    json_t *message = json_array_get(messages, i), *content = json_object_get(message, "content");
    if (!has_role(message, "assistant") || !json_is_string(content))
        return ds_fail(DSV2_ERROR_ARGUMENT, "%s: the message is not an assistant's text", flag);
    if (!ds_json_is_absent(json_object_get(message, "tool_calls")))
        return ds_fail(DSV2_ERROR_ARGUMENT, "%s: messages[%zu] has tool calls, which end it", flag, i);
    size_t size = json_string_length(content);
    char *text = ds_new(size + strlen(mark) + 1, 1);
    if (text == NULL)
        return ds_fail_memory("a conversation", size);
    memcpy(text, json_string_value(content), size);
    memcpy(text + size, mark, strlen(mark) + 1);
    int failed = json_object_set_new(message, "content", as_json(text, size + strlen(mark)));
    ds_free(text);
    return failed == 0 ? DSV2_OK : ds_fail_memory("a conversation", size);
}

static dsv2_status fail_mark(const char *flag)
{
    return ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: the chat template does not write the message's text once and as it is",
                   flag);
}

/* Where a mark stands in a prompt: once, and nothing but data. */
static dsv2_status find_mark(const ds_rendered *rendered, const char *flag, const char *mark, size_t *at)
{
    size_t size = strlen(mark), found = 0;
    for (size_t i = 0; i + size <= rendered->size; i++)
        if (memcmp(rendered->text + i, mark, size) == 0 && rendered->origins[i] != 0) {
            *at = i;
            found++;
        }
    return found == 1 ? DSV2_OK : fail_mark(flag);
}

/* A prompt that ends with the text of its last message, an assistant's. What the template writes behind that text is
 * cut off. */
static dsv2_status write_open(const writer *w, json_t *messages, ds_rendered *rendered)
{
    static const char flag[] = "DSV2_CHAT_OPEN";
    size_t n = json_array_size(messages), end = 0;
    json_t *content = json_incref(json_object_get(json_array_get(messages, n - 1), "content"));
    dsv2_status status = mark_reply(messages, n - 1, flag, open_mark);
    if (status == DSV2_OK)
        status = write_prompt(w, messages, true, rendered);
    if (status != DSV2_OK) {
        json_decref(content);
        return status;
    }
    status = find_mark(rendered, flag, open_mark, &end);
    if (status == DSV2_OK) {
        const char *text = json_string_value(content);
        size_t size = json_string_length(content);
        while (size > 0 && strchr(" \t\r\n", *text) != NULL && *text != '\0') { /* templates may trim */
            text++;
            size--;
        }
        if (size > end || memcmp(rendered->text + end - size, text, size) != 0)
            status = fail_mark(flag);
    }
    json_decref(content);
    rendered->size = end;
    if (status != DSV2_OK)
        ds_rendered_free(rendered);
    return status;
}

/* Where the EOS behind the last message's text ends. What a template writes behind that, a model never says: the EOS
 * ended its reply. */
static size_t end_of_reply(const writer *w, const ds_rendered *rendered)
{
    ds_text eos = w->tokenizer->eos >= 0 ? ds_get_token(w->tokenizer, w->tokenizer->eos) : (ds_text){0};
    size_t begin = end_of_data(rendered);
    for (size_t i = rendered->size; eos.size > 0 && i >= begin + eos.size; i--)
        if (memcmp(rendered->text + i - eos.size, eos.data, eos.size) == 0)
            return i;
    return rendered->size;
}

/* How many bytes of a prompt the messages before `first` take, which the host has fed. */
static dsv2_status measure_fed(const writer *w, json_t *messages, size_t first, const ds_rendered *whole, size_t *fed)
{
    json_t *before = json_array();
    dsv2_status status = before == NULL ? ds_fail_memory("a conversation", first) : DSV2_OK;
    for (size_t i = 0; i < first && status == DSV2_OK; i++)
        if (json_array_append(before, json_array_get(messages, i)) != 0)
            status = ds_fail_memory("a conversation", first);
    ds_rendered part;
    if (status == DSV2_OK)
        status = write_prompt(w, before, false, &part);
    json_decref(before);
    if (status != DSV2_OK)
        return status;
    *fed = has_role(json_array_get(messages, first - 1), "assistant") ? end_of_reply(w, &part) : part.size;
    if (*fed > whole->size || memcmp(part.text, whole->text, *fed) != 0 ||
        memcmp(part.origins, whole->origins, *fed) != 0)
        status = ds_fail(DSV2_ERROR_UNSUPPORTED, "first is %zu, but the chat template writes the messages before that "
                         "one otherwise once more follow: begin anew with first 0", first);
    ds_rendered_free(&part);
    return status;
}

static dsv2_status check_text(json_t *message, size_t i, const char *field)
{
    const json_t *value = json_object_get(message, field);
    if (json_is_string(value))
        return DSV2_OK;
    return ds_fail(DSV2_ERROR_ARGUMENT, "messages[%zu].%s is %s, expected a string (there is no chat template that "
                   "could take more)", i, field, ds_json_kind(value));
}

/* Families' forms take texts alone, and need the token that ends an assistant's message. */
static dsv2_status check_for_family(const dsv2_tokenizer *t, const json_t *messages)
{
    size_t i;
    json_t *message;
    json_array_foreach(messages, i, message) {
        dsv2_status status = check_text(message, i, "role");
        if (status == DSV2_OK)
            status = check_text(message, i, "content");
        if (status != DSV2_OK)
            return status;
        if (t->eos < 0 && has_role(message, "assistant"))
            return ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: no end-of-sequence token is known, which ends an assistant's "
                           "message", t->path);
    }
    return DSV2_OK;
}

static dsv2_status check_chat(const writer *w, const dsv2_chat *chat, const json_t *messages)
{
    size_t n = json_array_size(messages);
    bool open = (chat->flags & DSV2_CHAT_OPEN) != 0, unclosed = (chat->flags & DSV2_CHAT_UNCLOSED) != 0;
    if (n == 0)
        return ds_fail(DSV2_ERROR_ARGUMENT, "the conversation has no message");
    if (chat->first > n)
        return ds_fail(DSV2_ERROR_ARGUMENT, "first is %zu, expected at most n, which is %zu", chat->first, n);
    if (open && chat->first == n)
        return ds_fail(DSV2_ERROR_ARGUMENT, "DSV2_CHAT_OPEN: first is n: the last message is fed already");
    if (unclosed && chat->first == 0)
        return ds_fail(DSV2_ERROR_ARGUMENT, "DSV2_CHAT_UNCLOSED: first is 0, so no reply is fed");
    if (w->template == w->tokenizer->template)
        return DSV2_OK;
    if (chat->tools != NULL)
        return ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: there is no chat template that could take tools",
                       w->tokenizer->path);
    return check_for_family(w->tokenizer, messages);
}

/* Writes the prompt, and finds where in it begins what the host has not fed. */
static dsv2_status write_whole(const writer *w, const dsv2_chat *chat, json_t *messages, ds_rendered *whole,
                               size_t *fed)
{
    bool open = (chat->flags & DSV2_CHAT_OPEN) != 0, unclosed = (chat->flags & DSV2_CHAT_UNCLOSED) != 0;
    static const char flag[] = "DSV2_CHAT_UNCLOSED";
    dsv2_status status = unclosed ? mark_reply(messages, chat->first - 1, flag, unclosed_mark) : DSV2_OK;
    if (status == DSV2_OK)
        status = open ? write_open(w, messages, whole) : write_prompt(w, messages, false, whole);
    if (status != DSV2_OK)
        return status;
    *fed = 0;
    if (unclosed) {
        status = find_mark(whole, flag, unclosed_mark, fed);
        *fed += strlen(unclosed_mark);
    } else if (chat->first > 0) {
        status = measure_fed(w, messages, chat->first, whole, fed);
    }
    if (status != DSV2_OK)
        ds_rendered_free(whole);
    return status;
}

static dsv2_status chat_with(writer *w, const dsv2_chat *chat, ds_ids *out)
{
    json_t *messages = json_object_get(w->variables, "messages");
    dsv2_status status = check_chat(w, chat, messages);
    if (status != DSV2_OK)
        return status;
    json_incref(messages); /* the variables get others in turn */
    ds_rendered whole;
    size_t fed;
    status = write_whole(w, chat, messages, &whole, &fed);
    if (status == DSV2_OK) {
        status = ds_encode_prompt(w->tokenizer, whole.text + fed, whole.origins + fed, whole.size - fed, out);
        ds_rendered_free(&whole);
    }
    json_decref(messages);
    return status;
}

dsv2_status ds_chat(const dsv2_tokenizer *t, const dsv2_chat *chat, ds_ids *out)
{
    if (t->template_refusal != NULL)
        return refused_template(t);
    ds_template *family = NULL;
    writer w = {.tokenizer = t, .template = t->template, .now = chat->now != 0 ? chat->now : ds_seconds()};
    dsv2_status status = DSV2_OK;
    if (t->template == NULL) {
        const char *form = t->chat_v25 ? form_v25 : form_v2;
        status = ds_template_parse(t->path, form, strlen(form), &family);
        w.template = family;
    }
    if (status == DSV2_OK)
        status = make_variables(chat, &w.variables);
    if (status == DSV2_OK) {
        w.may_ask = json_object_get(w.variables, "add_generation_prompt") == NULL;
        status = chat_with(&w, chat, out);
        json_decref(w.variables);
    }
    ds_template_destroy(family);
    return status;
}

/* ---- filling in the middle ---- */

dsv2_status ds_fim(const dsv2_tokenizer *t, ds_text prefix, ds_text suffix, ds_ids *out)
{
    const struct {
        int32_t token;
        ds_text text; /* behind the token */
    } parts[] = {{t->fim_begin, prefix}, {t->fim_hole, suffix}, {t->fim_end, {0}}};
    if (t->fim_begin < 0 || t->fim_hole < 0 || t->fim_end < 0)
        return ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: the vocabulary has no tokens for filling in the middle "
                       "(<｜fim▁begin｜>, <｜fim▁hole｜>, <｜fim▁end｜>)", t->path);
    dsv2_status status = t->bos >= 0 ? ds_push(out, t->bos) : DSV2_OK;
    for (size_t i = 0; i < sizeof parts / sizeof *parts && status == DSV2_OK; i++) {
        status = ds_push(out, parts[i].token);
        if (status == DSV2_OK && parts[i].text.size > 0)
            status = ds_encode(t, parts[i].text.data, parts[i].text.size, 0, out);
    }
    return status;
}

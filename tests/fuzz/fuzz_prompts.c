/* Prompts for chat and for filling in the middle, of any messages: refused as the header says, or they are the text
 * that the header spells out, with the form's special tokens and no others. */
#include "fixed_tokenizer.h"
#include "../support/must.h"
#include "stream.h"

#include <stdbool.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MAX_MESSAGES = 6, MAX_CONTENT = 64, MAX_TEXT = MAX_MESSAGES * (MAX_CONTENT + 64), MAX_IDS = 2 * MAX_TEXT };

static const char bos[] = "<｜begin▁of▁sentence｜>", eos[] = "<｜end▁of▁sentence｜>", user[] = "<｜User｜>",
                  assistant[] = "<｜Assistant｜>", fim_begin[] = "<｜fim▁begin｜>", fim_hole[] = "<｜fim▁hole｜>",
                  fim_end[] = "<｜fim▁end｜>";

typedef struct form {
    const char *names[8], *chat_template, *chat_form;
} form;

static const form forms[] = {
    {{bos, eos, fim_begin, fim_hole, fim_end}, "", "v2"},
    {{bos, eos, user, assistant, fim_begin, fim_hole, fim_end}, "", "v2.5"},
    {{bos, eos, user, assistant}, "{{ 'User: ' }}", "v2"}, /* DeepSeek-Coder-V2 has the marks and does not use them */
    {{user, assistant, fim_begin, fim_hole}, "", "v2.5"},
    {{bos}, "", "v2"},
    {{eos}, "", ""},
};
enum { N_FORMS = sizeof forms / sizeof *forms };

/* What a prompt should be: its ids, and its text with special tokens spelled out. */
typedef struct prompt {
    const dsv2_tokenizer *tokenizer;
    char run[MAX_TEXT], text[2 * MAX_TEXT]; /* run: the text since the last special token */
    int32_t ids[MAX_IDS];
    size_t run_size, text_size, n;
} prompt;

static dsv2_tokenizer *make(const form *f)
{
    static const char *const pre[] = {"deepseek-llm", "deepseek-v3"};
    const char *names[9];
    uint8_t kinds[9];
    size_t n = 0;
    for (; f->names[n] != NULL; n++) {
        names[n] = f->names[n];
        kinds[n] = DS_TOKEN_ADDED | DS_TOKEN_SPECIAL; /* as readers of files make what is spelled like this */
    }
    names[n] = "ab";
    kinds[n++] = DS_TOKEN_ADDED;
    return fixed_tokenizer(pre[n % 2], names, kinds, n, f->chat_template);
}

static int32_t find(const dsv2_tokenizer *t, const char *name)
{
    int32_t id;
    MUST(dsv2_tokenizer_find(t, name, strlen(name), &id) == DSV2_OK);
    return id;
}

static void say(prompt *p, const char *text, size_t size)
{
    if (size > 0) {
        memcpy(p->run + p->run_size, text, size);
        memcpy(p->text + p->text_size, text, size);
    }
    p->run_size += size;
    p->text_size += size;
}

static void end_run(prompt *p)
{
    size_t n;
    MUST(dsv2_tokenizer_encode(p->tokenizer, p->run, p->run_size, 0, p->ids + p->n, MAX_IDS - p->n, &n) == DSV2_OK);
    p->n += n;
    p->run_size = 0;
}

static void mark(prompt *p, const char *name)
{
    end_run(p);
    p->ids[p->n++] = find(p->tokenizer, name);
    memcpy(p->text + p->text_size, name, strlen(name));
    p->text_size += strlen(name);
}

static bool begin(prompt *p, const dsv2_tokenizer *t)
{
    p->tokenizer = t;
    p->run_size = p->text_size = p->n = 0;
    return find(t, bos) >= 0;
}

static void say_message(prompt *p, const dsv2_message *m, bool marks)
{
    if (m->role[0] == 's') {
        say(p, m->content, m->content_size);
        say(p, "\n\n", marks ? 0 : 2);
    } else if (m->role[0] == 'u') {
        marks ? mark(p, user) : say(p, "User: ", 6);
        say(p, m->content, m->content_size);
        marks ? mark(p, assistant) : say(p, "\n\nAssistant:", 12);
    } else {
        say(p, " ", marks ? 0 : 1);
        say(p, m->content, m->content_size);
        mark(p, eos);
    }
}

/* An optional system message, then user and assistant in turns, a user's at least. */
static bool is_conversation(const dsv2_message *m, size_t n, size_t first)
{
    size_t system = n > 0 && m[0].role != NULL && strcmp(m[0].role, "system") == 0;
    for (size_t i = 0; i < n; i++)
        if (m[i].role == NULL || (m[i].content == NULL && m[i].content_size > 0))
            return false;
    for (size_t i = system; i < n; i++)
        if (strcmp(m[i].role, (i - system) % 2 == 0 ? "user" : "assistant") != 0)
            return false;
    return n > system && first <= n;
}

static size_t count_special(const dsv2_tokenizer *t, const int32_t *ids, size_t n)
{
    static const char *const names[] = {bos, eos, user, assistant, fim_begin, fim_hole, fim_end};
    size_t special = 0;
    for (size_t k = 0; k < sizeof names / sizeof *names; k++)
        for (size_t i = 0, id = (size_t)find(t, names[k]); i < n; i++)
            special += (size_t)ids[i] == id;
    return special;
}

/* The ids are those expected, and their text is the text expected. */
static void check(const prompt *p, const int32_t *ids, size_t n)
{
    static char text[2 * MAX_TEXT];
    size_t size;
    MUST(n == p->n && memcmp(ids, p->ids, n * sizeof *ids) == 0);
    MUST(dsv2_tokenizer_decode(p->tokenizer, ids, n, DSV2_DECODE_SPECIAL, text, sizeof text, &size) == DSV2_OK);
    MUST(size == p->text_size && memcmp(text, p->text, size) == 0);
}

static void chat(const dsv2_tokenizer *t, bool marks, const dsv2_message *messages, size_t n, size_t first,
                 size_t capacity)
{
    static prompt p;
    static int32_t ids[MAX_IDS];
    size_t length = 12345, same = 12345, special = begin(&p, t) && first == 0;
    dsv2_status status = dsv2_chat_encode(t, messages, n, first, NULL, 0, &length);
    bool ends = find(t, eos) >= 0;
    if (!is_conversation(messages, n, first)) {
        MUST(status == DSV2_ERROR_ARGUMENT && length == 12345);
        return;
    }
    if (special > 0)
        mark(&p, bos);
    for (size_t i = first; i < n; i++) {
        bool speaks = messages[i].role[0] == 'a';
        if (speaks && !ends) {
            MUST(status == DSV2_ERROR_UNSUPPORTED && length == 12345);
            return;
        }
        special += speaks ? 1 : marks && messages[i].role[0] == 'u' ? 2 : 0;
        say_message(&p, &messages[i], marks);
    }
    end_run(&p);
    MUST(status == DSV2_OK && length == p.n);
    memset(ids, 0xee, sizeof ids);
    capacity %= length + 2;
    status = dsv2_chat_encode(t, messages, n, first, ids, capacity, &same);
    MUST(same == length && status == (capacity > 0 && capacity < length ? DSV2_ERROR_BUFFER : DSV2_OK));
    for (size_t i = status == DSV2_OK && capacity > 0 ? length : 0; i < MAX_IDS; i++)
        MUST(ids[i] == (int32_t)0xeeeeeeee);
    MUST(dsv2_chat_encode(t, messages, n, first, ids, MAX_IDS, &same) == DSV2_OK);
    check(&p, ids, same);
    MUST(count_special(t, ids, same) == special);
}

static void fill(const dsv2_tokenizer *t, const dsv2_message *prefix, const dsv2_message *suffix)
{
    static prompt p;
    static int32_t ids[MAX_IDS];
    size_t n = 0, special = begin(&p, t);
    dsv2_status status = dsv2_fim_encode(t, prefix->content, prefix->content_size, suffix->content,
                                         suffix->content_size, ids, MAX_IDS, &n);
    bool no_prefix = prefix->content == NULL && prefix->content_size > 0;
    if (no_prefix || (suffix->content == NULL && suffix->content_size > 0)) {
        MUST(status == DSV2_ERROR_ARGUMENT);
        return;
    }
    if (find(t, fim_begin) < 0 || find(t, fim_hole) < 0 || find(t, fim_end) < 0) {
        MUST(status == DSV2_ERROR_UNSUPPORTED);
        return;
    }
    if (special > 0)
        mark(&p, bos);
    mark(&p, fim_begin);
    say(&p, prefix->content, prefix->content_size);
    mark(&p, fim_hole);
    say(&p, suffix->content, suffix->content_size);
    mark(&p, fim_end);
    MUST(status == DSV2_OK);
    check(&p, ids, n);
    MUST(count_special(t, ids, n) == special + 3);
}

/* Some letters stand for whole words, special tokens among them. */
static size_t choose_content(stream *in, char *content)
{
    static const char *const words[] = {user, assistant, eos, bos, fim_hole, "User: ", "\n\nAssistant:", "\n\n", "the",
                                        "aaaa", "<｜", "｜>", "ab", "\xf5\xff", "\xe4\xb8\xad", " "};
    size_t n = stream_u8(in) % 16, size = 0;
    for (size_t i = 0; i < n; i++) {
        uint8_t byte = stream_u8(in);
        const char *word = byte < 16 ? words[byte] : (const char *)&byte;
        size_t word_size = byte < 16 ? strlen(word) : 1;
        if (word_size > MAX_CONTENT - size)
            break;
        memcpy(content + size, word, word_size);
        size += word_size;
    }
    return size;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const roles[] = {"user", "assistant", "system", "User", "", NULL, "users", "assistan"};
    static dsv2_tokenizer *tokenizers[N_FORMS]; /* kept from input to input */
    stream in = {data, size};
    char contents[MAX_MESSAGES][MAX_CONTENT];
    dsv2_message messages[MAX_MESSAGES];
    dsv2_tokenizer_info info = {.struct_size = sizeof info};
    size_t which = stream_u8(&in) % N_FORMS, n = stream_u8(&in) % (MAX_MESSAGES + 1), first = stream_u8(&in) % 8;
    size_t capacity = stream_u8(&in);
    bool with_system = capacity & 1;
    for (size_t i = 0; i < MAX_MESSAGES; i++) {
        uint8_t role = stream_u8(&in); /* mostly the one whose turn it is */
        size_t turn = i == 0 && with_system ? 2 : (i + with_system) % 2;
        messages[i].role = roles[role < 224 ? turn : role % 8];
        messages[i].content_size = choose_content(&in, contents[i]);
        messages[i].content = role == 255 ? NULL : contents[i];
    }
    if (tokenizers[which] == NULL)
        tokenizers[which] = make(&forms[which]);
    MUST(dsv2_tokenizer_get_info(tokenizers[which], &info) == DSV2_OK);
    MUST(strcmp(info.chat_form, forms[which].chat_form) == 0);
    chat(tokenizers[which], strcmp(info.chat_form, "v2.5") == 0, messages, n, first, capacity);
    fill(tokenizers[which], &messages[0], &messages[1]);
    return 0;
}

/* Prompts for chat and for filling in the middle, of any messages: refused as the header says, or they are the text
 * that the header spells out, with the form's special tokens and no others. */
#include "fixed_tokenizer.h"
#include "../support/must.h"
#include "stream.h"

#include <stdbool.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MAX_MESSAGES = 6, MAX_CONTENT = 64, MAX_TEXT = 2 * MAX_MESSAGES * (MAX_CONTENT + 64), MAX_IDS = 2 * MAX_TEXT };

static const char bos[] = "<｜begin▁of▁sentence｜>", eos[] = "<｜end▁of▁sentence｜>", user[] = "<｜User｜>",
                  assistant[] = "<｜Assistant｜>", fim_begin[] = "<｜fim▁begin｜>", fim_hole[] = "<｜fim▁hole｜>",
                  fim_end[] = "<｜fim▁end｜>";

typedef struct form {
    const char *names[8], *chat_template, *chat_form;
} form;

/* The form of V2 as a template. */
static const char names_as_text[] =
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ 'User: ' + m.content + '\n\n' }}"
    "{% elif m.role == 'assistant' %}{{ 'Assistant: ' + m.content + eos_token }}"
    "{% elif m.role == 'system' %}{{ m.content + '\n\n' }}{% else %}{{ raise_exception('role') }}"
    "{% endif %}{% endfor %}"
    "{{ 'Assistant:' if add_generation_prompt }}";

static const form forms[] = {
    {{bos, eos, fim_begin, fim_hole, fim_end}, "", "v2"},
    {{bos, eos, user, assistant, fim_begin, fim_hole, fim_end}, "", "v2.5"},
    {{bos, eos, user, assistant}, names_as_text, "v2"}, /* DeepSeek-Coder-V2 has the marks and does not use them */
    {{user, assistant, fim_begin, fim_hole}, "", "v2.5"},
    {{bos}, "", "v2"},
    {{eos}, "", ""},
};
enum { N_FORMS = sizeof forms / sizeof *forms };

/* What a prompt should be: text, of which each byte is the form's, a message's, or a special token's. */
typedef enum origin { FORM, MESSAGE, MARK, MARK_BEGINS } origin;
typedef struct prompt {
    const dsv2_tokenizer *tokenizer;
    char text[MAX_TEXT];
    uint8_t origins[MAX_TEXT];
    size_t size;
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

static void say(prompt *p, origin from, const char *text, size_t size)
{
    MUST(size <= MAX_TEXT - p->size);
    if (size > 0)
        memcpy(p->text + p->size, text, size);
    memset(p->origins + p->size, from, size);
    p->size += size;
}

static void word(prompt *p, const char *text) { say(p, FORM, text, strlen(text)); }

static void mark(prompt *p, const char *name)
{
    size_t at = p->size;
    say(p, MARK, name, strlen(name));
    p->origins[at] = MARK_BEGINS;
}

static size_t encode(const prompt *p, size_t from, int32_t *ids)
{
    size_t n = 0;
    for (size_t i = from, end; i < p->size; i = end) {
        bool special = p->origins[i] == MARK_BEGINS;
        for (end = i + 1; end < p->size && (special ? p->origins[end] == MARK : p->origins[end] < MARK); end++)
            continue;
        if (special) {
            MUST(dsv2_tokenizer_find(p->tokenizer, p->text + i, end - i, &ids[n++]) == DSV2_OK);
        } else {
            size_t more;
            MUST(dsv2_tokenizer_encode(p->tokenizer, p->text + i, end - i, 0, ids + n, MAX_IDS - n, &more) == DSV2_OK);
            n += more;
        }
    }
    return n;
}

static bool is(const dsv2_message *m, const char *role) { return strcmp(m->role, role) == 0; }

static void say_message(prompt *p, const dsv2_message *m, bool marks)
{
    if (is(m, "system") && marks)
        return; /* stands at the beginning */
    if (is(m, "user"))
        marks ? mark(p, user) : word(p, "User: ");
    if (is(m, "assistant"))
        marks ? mark(p, assistant) : word(p, "Assistant: ");
    say(p, MESSAGE, m->content, m->content_size);
    if (is(m, "assistant"))
        mark(p, eos);
    else if (!marks)
        word(p, "\n\n");
}

static void say_all(prompt *p, const dsv2_tokenizer *t, bool marks, const dsv2_message *m, size_t n)
{
    p->tokenizer = t;
    p->size = 0;
    if (find(t, bos) >= 0)
        mark(p, bos);
    for (size_t i = 0, systems = 0; marks && i < n; i++)
        if (is(&m[i], "system")) {
            word(p, systems++ > 0 ? "\n\n" : "");
            say(p, MESSAGE, m[i].content, m[i].content_size);
        }
    for (size_t i = 0; i < n; i++)
        say_message(p, &m[i], marks);
    if (n == 0 || !is(&m[n - 1], "assistant"))
        marks ? mark(p, assistant) : word(p, "Assistant:");
}

/* Whether one prompt begins with another. */
static bool begins_with(const prompt *p, const prompt *with)
{
    bool same = with->size <= p->size && memcmp(p->text, with->text, with->size) == 0;
    for (size_t i = 0; same && i < with->size; i++)
        same = (p->origins[i] == MESSAGE) == (with->origins[i] == MESSAGE);
    return same;
}

/* What the header says of these messages before a form is asked. */
static dsv2_status status_of(const dsv2_tokenizer *t, bool family, const dsv2_message *m, size_t n, size_t first)
{
    bool known = n > 0 && first <= n, speaks = false;
    for (size_t i = 0; i < n; i++)
        if (m[i].role == NULL || (m[i].content == NULL && m[i].content_size > 0))
            return DSV2_ERROR_ARGUMENT;
    for (size_t i = 0; i < n; i++)
        speaks = speaks || is(&m[i], "assistant");
    if (known && family && speaks && find(t, eos) < 0)
        return DSV2_ERROR_UNSUPPORTED;
    for (size_t i = 0; i < n; i++)
        known = known && (is(&m[i], "assistant") || is(&m[i], "user") || is(&m[i], "system"));
    return known ? DSV2_OK : DSV2_ERROR_ARGUMENT;
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

static size_t count_marks(const prompt *p, size_t from)
{
    size_t n = 0;
    for (size_t i = from; i < p->size; i++)
        n += p->origins[i] == MARK_BEGINS;
    return n;
}

/* The ids are those expected from a place of the prompt on, and their text is the prompt's. */
static void check(const prompt *p, size_t from, const int32_t *ids, size_t n)
{
    static char text[2 * MAX_TEXT];
    static int32_t expected[MAX_IDS];
    size_t size, n_expected = encode(p, from, expected);
    MUST(n == n_expected && memcmp(ids, expected, n * sizeof *ids) == 0);
    MUST(dsv2_tokenizer_decode(p->tokenizer, ids, n, DSV2_DECODE_SPECIAL, text, sizeof text, &size) == DSV2_OK);
    MUST(size == p->size - from && memcmp(text, p->text + from, size) == 0);
    MUST(count_special(p->tokenizer, ids, n) == count_marks(p, from));
}

static void chat(const dsv2_tokenizer *t, const form *f, const dsv2_message *messages, size_t n, size_t first,
                 size_t capacity)
{
    static prompt whole, fed;
    static int32_t ids[MAX_IDS];
    bool marks = strcmp(f->chat_form, "v2.5") == 0;
    size_t length = 12345, same = 12345, from = 0;
    dsv2_status status = dsv2_chat_encode(t, messages, n, first, NULL, 0, &length);
    dsv2_status expected = status_of(t, f->chat_template[0] == '\0', messages, n, first);
    if (expected == DSV2_OK) {
        say_all(&whole, t, marks, messages, n);
        say_all(&fed, t, marks, messages, first);
        from = first > 0 ? fed.size : 0;
        if (first > 0 && !begins_with(&whole, &fed)) /* a late system text */
            expected = DSV2_ERROR_UNSUPPORTED;
    }
    MUST(status == expected);
    if (status != DSV2_OK) {
        MUST(length == 12345);
        return;
    }
    memset(ids, 0xee, sizeof ids);
    capacity %= length + 2;
    status = dsv2_chat_encode(t, messages, n, first, ids, capacity, &same);
    MUST(same == length && status == (capacity > 0 && capacity < length ? DSV2_ERROR_BUFFER : DSV2_OK));
    for (size_t i = status == DSV2_OK && capacity > 0 ? length : 0; i < MAX_IDS; i++)
        MUST(ids[i] == (int32_t)0xeeeeeeee);
    MUST(dsv2_chat_encode(t, messages, n, first, ids, MAX_IDS, &same) == DSV2_OK);
    check(&whole, from, ids, same);
}

static void fill(const dsv2_tokenizer *t, const dsv2_message *prefix, const dsv2_message *suffix)
{
    static prompt p;
    static int32_t ids[MAX_IDS];
    size_t n = 0;
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
    p.tokenizer = t;
    p.size = 0;
    if (find(t, bos) >= 0)
        mark(&p, bos);
    mark(&p, fim_begin);
    say(&p, MESSAGE, prefix->content, prefix->content_size);
    mark(&p, fim_hole);
    say(&p, MESSAGE, suffix->content, suffix->content_size);
    mark(&p, fim_end);
    MUST(status == DSV2_OK);
    check(&p, 0, ids, n);
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
    chat(tokenizers[which], &forms[which], messages, n, first, capacity);
    fill(tokenizers[which], &messages[0], &messages[1]);
    return 0;
}

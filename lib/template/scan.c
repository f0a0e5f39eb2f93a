/* Cuts a template into words, by the rules of Jinja's lexer with trim_blocks and lstrip_blocks:
 *   {%-, {{-, {#-  take all white space before them away; -%}, -}}, -#} all behind them
 *   {%, {#         take white space before them away that begins a line, unless they are {%+ or {#+
 *   %}, #}         take one newline behind them away, unless they are +%} or +#}
 * A newline that ends the template is left out. */
#include "template/parts.h"

#include <stdlib.h>

typedef struct scanner {
    ds_template *template;
    const char *text;
    size_t size, at;
    uint32_t line;
    bool begins_line; /* the last tag ended with a newline */
    size_t braces;    /* of any kind that are open within a tag */
    ds_word *words;
    size_t n, capacity;
    dsv2_status status;
} scanner;

static void fail(scanner *s, const char *what)
{
    if (s->status == DSV2_OK)
        s->status = ds_fail(DSV2_ERROR_FORMAT, "%s: line %u of the chat template: %s", s->template->path, s->line,
                            what);
}

static void fail_memory(scanner *s)
{
    if (s->status == DSV2_OK)
        s->status = ds_fail_memory("a chat template", s->size);
}

static void add(scanner *s, ds_word word)
{
    if (s->status != DSV2_OK)
        return;
    if (!ds_grow(&s->words, &s->capacity, s->n + 1, sizeof *s->words)) {
        fail_memory(s);
        return;
    }
    word.line = s->line;
    s->words[s->n++] = word;
}

static void count_lines(scanner *s, size_t from, size_t to)
{
    for (size_t i = from; i < to; i++)
        s->line += s->text[i] == '\n';
}

static bool follows(const scanner *s, size_t at, const char *text)
{
    size_t n = strlen(text);
    return at <= s->size && s->size - at >= n && memcmp(s->text + at, text, n) == 0;
}

/* Bytes of the white space that begins at a place; 0: none. */
static size_t space_at(const scanner *s, size_t at)
{
    ds_string rest = {.bytes = s->text, .size = s->size};
    return at < s->size && ds_is_space(ds_character(&rest, at)) ? ds_character_size(&rest, at) : 0;
}

static void skip_space(scanner *s)
{
    for (size_t n; (n = space_at(s, s->at)) > 0;) {
        count_lines(s, s->at, s->at + n);
        s->at += n;
    }
}

static ds_value string_value(scanner *s, const char *bytes, size_t size)
{
    ds_string *string = ds_arena_new(&s->template->arena, 1, sizeof *string);
    char *copy = ds_arena_new(&s->template->arena, size + 1, 1);
    if (string == NULL || copy == NULL) {
        fail_memory(s);
        return (ds_value){0};
    }
    if (size > 0)
        memcpy(copy, bytes, size);
    *string = (ds_string){.bytes = copy, .size = size};
    return (ds_value){.type = DS_VALUE_STRING, .string = string};
}

/* ---- text outside of tags ---- */

static size_t without_space_at_end(const scanner *s, size_t from, size_t to)
{
    size_t end = from; /* behind the last character that is no space */
    ds_string text = {.bytes = s->text, .size = to};
    for (size_t at = from; at < to; at += ds_character_size(&text, at))
        if (!ds_is_space(ds_character(&text, at)))
            end = at + ds_character_size(&text, at);
    return end;
}

/* The end of a text that a tag follows. `sign` is the tag's, ' ' for none; `is_print`: {{ leaves spaces of a line. */
static size_t end_of_text(const scanner *s, size_t from, size_t to, char sign, bool is_print)
{
    if (sign == '-')
        return without_space_at_end(s, from, to);
    if (sign == '+' || is_print)
        return to;
    size_t begin = to;
    while (begin > from && s->text[begin - 1] != '\n')
        begin--;
    bool whole_line = begin > from || s->begins_line;
    return whole_line && without_space_at_end(s, begin, to) == begin ? begin : to;
}

static void add_text(scanner *s, size_t from, size_t to, size_t cut)
{
    if (cut > from)
        add(s, (ds_word){.type = DS_WORD_TEXT, .value = string_value(s, s->text + from, cut - from)});
    count_lines(s, from, to);
    if (to > from)
        s->begins_line = s->text[to - 1] == '\n';
}

/* Behind the end of a tag, `end` of which the sign has been read: what white space it takes along. */
static void after_tag(scanner *s, char sign, bool is_print)
{
    s->begins_line = false;
    if (sign == '-') {
        size_t from = s->at;
        skip_space(s);
        s->begins_line = s->at > from && s->text[s->at - 1] == '\n';
    } else if (sign != '+' && !is_print && follows(s, s->at, "\n")) {
        count_lines(s, s->at, s->at + 1);
        s->at++;
        s->begins_line = true;
    }
}

static char sign_at(const scanner *s, size_t at)
{
    return at < s->size && (s->text[at] == '-' || s->text[at] == '+') ? s->text[at] : ' ';
}

static void scan_comment(scanner *s)
{
    size_t end = s->at + 2;
    while (end < s->size && !follows(s, end, "#}"))
        end++;
    if (end >= s->size) {
        fail(s, "a comment has no end");
        return;
    }
    char sign = end > s->at + 2 ? sign_at(s, end - 1) : ' ';
    count_lines(s, s->at, end);
    s->at = end + 2;
    after_tag(s, sign, false);
}

/* Whether `{% word %}` is at a place: sets where its text ends, and the signs within. */
static bool is_plain_tag(const scanner *s, size_t at, const char *word, size_t *end, char *first, char *last)
{
    if (!follows(s, at, "{%"))
        return false;
    at += 2;
    *first = sign_at(s, at);
    at += *first != ' ';
    for (size_t n; (n = space_at(s, at)) > 0;)
        at += n;
    if (!follows(s, at, word))
        return false;
    at += strlen(word);
    for (size_t n; (n = space_at(s, at)) > 0;)
        at += n;
    *last = sign_at(s, at);
    at += *last != ' ';
    *end = at + 2;
    return follows(s, at, "%}");
}

/* {% raw %}: all up to {% endraw %} is text. `at` is behind the tag. */
static void scan_raw(scanner *s, size_t behind, char last)
{
    count_lines(s, s->at, behind);
    s->at = behind;
    s->begins_line = false;
    if (last == '-')
        skip_space(s);
    size_t from = s->at, end = 0;
    char first = ' ';
    for (size_t at = from; at < s->size; at++)
        if (is_plain_tag(s, at, "endraw", &end, &first, &last)) {
            add_text(s, from, at, end_of_text(s, from, at, first, false));
            count_lines(s, at, end);
            s->at = end;
            after_tag(s, last, false);
            return;
        }
    fail(s, "{% raw %} has no end");
}

/* ---- words within tags ---- */

static bool is_digit(char c) { return c >= '0' && c <= '9'; }

static bool is_name_byte(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || is_digit(c) || c == '_' || (unsigned char)c >= 0x80;
}

static int hex_digit(char c)
{
    if (is_digit(c))
        return c - '0';
    c = (char)(c | 0x20);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* A character given by `n` hexadecimal digits; false if they are not there. */
static bool read_hex(const char *text, size_t size, size_t n, uint32_t *character)
{
    *character = 0;
    for (size_t i = 0; i < n; i++) {
        int digit = i < size ? hex_digit(text[i]) : -1;
        if (digit < 0)
            return false;
        *character = *character << 4 | (uint32_t)digit;
    }
    return *character <= 0x10ffff;
}

/* One escape: text[0] is what follows the backslash. Writes to `out`, returns how many bytes of the text it was. */
static size_t resolve_escape(scanner *s, const char *text, size_t size, char *out, size_t *n_out)
{
    static const char names[] = "n\nt\tr\r\\\\'\'\"\"a\ab\bf\fv\v";
    *n_out = 0;
    if (text[0] == '\n')
        return 1;
    for (size_t i = 0; i + 1 < sizeof names - 1; i += 2)
        if (text[0] == names[i]) {
            out[(*n_out)++] = names[i + 1];
            return 1;
        }
    uint32_t character;
    size_t digits = text[0] == 'x' ? 2 : text[0] == 'u' ? 4 : text[0] == 'U' ? 8 : 0;
    if (digits > 0) {
        if (!read_hex(text + 1, size - 1, digits, &character) || (character >= 0xd800 && character < 0xe000))
            fail(s, "a string has an escape that is no character");
        else
            *n_out = ds_put_character(out, character);
        return 1 + digits;
    }
    if (is_digit(text[0]) || text[0] == 'N') {
        fail(s, "a string has an escape by octal digits or by a name, which is not supported");
        return 1;
    }
    out[0] = '\\';
    out[1] = text[0];
    *n_out = 2;
    return 1;
}

static void scan_string(scanner *s)
{
    char quote = s->text[s->at];
    size_t end = s->at + 1;
    while (end < s->size && s->text[end] != quote)
        end += s->text[end] == '\\' ? 2 : 1;
    if (end >= s->size) {
        fail(s, "a string has no end");
        return;
    }
    const char *text = s->text + s->at + 1;
    size_t size = end - s->at - 1, n = 0;
    char *bytes = ds_arena_new(&s->template->arena, 2 * size + 1, 1); /* "\d" stays two bytes; no escape gets longer */
    if (bytes == NULL) {
        fail_memory(s);
        return;
    }
    for (size_t i = 0; i < size && s->status == DSV2_OK;) {
        if (text[i] != '\\') {
            bytes[n++] = text[i++];
            continue;
        }
        size_t written = 0;
        i += 1 + resolve_escape(s, text + i + 1, size - i - 1, bytes + n, &written);
        n += written;
    }
    add(s, (ds_word){.type = DS_WORD_STRING, .value = string_value(s, bytes, n)});
    count_lines(s, s->at, end);
    s->at = end + 1;
}

/* Digits of a number without the "_" between them; returns behind them. */
static size_t copy_digits(const scanner *s, size_t at, char *digits, size_t capacity, size_t *n)
{
    for (; at < s->size &&
           (is_digit(s->text[at]) || (s->text[at] == '_' && at + 1 < s->size && is_digit(s->text[at + 1])));
         at++)
        if (s->text[at] != '_' && *n < capacity)
            digits[(*n)++] = s->text[at];
    return at;
}

static double decimal(const char *digits, size_t n, int64_t exponent)
{
    double value = 0; /* few digits: a template's 0.5 */
    for (size_t i = 0; i < n; i++)
        value = value * 10 + (digits[i] - '0');
    double power = 1;
    for (int64_t i = exponent < 0 ? -exponent : exponent; i > 0; i--)
        power *= 10;
    return exponent < 0 ? value / power : value * power;
}

static void scan_number(scanner *s)
{
    char digits[20];
    size_t n = 0, at = copy_digits(s, s->at, digits, sizeof digits, &n), whole = n;
    bool is_float = at + 1 < s->size && s->text[at] == '.' && is_digit(s->text[at + 1]);
    if (is_float)
        at = copy_digits(s, at + 1, digits, sizeof digits, &n);
    if (n > 15 || (at < s->size && is_name_byte(s->text[at]))) {
        fail(s, "a number has more than 15 digits, or is written in a way that is not supported");
        return;
    }
    double value = decimal(digits, n, (int64_t)whole - (int64_t)n);
    add(s, (ds_word){.type = DS_WORD_NUMBER, .value = is_float ? ds_float(value) : ds_int((int64_t)value)});
    s->at = at;
}

static void scan_sign(scanner *s)
{
    static const char *const signs[] = {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]",
                                        "(",  ")",  "{",  "}",  ">",  "<",  "=", ".", ":", "|", ","};
    for (size_t i = 0; i < sizeof signs / sizeof *signs; i++) {
        if (!follows(s, s->at, signs[i]))
            continue;
        if (strchr("([{", signs[i][0]) != NULL)
            s->braces++;
        if (strchr(")]}", signs[i][0]) != NULL && s->braces > 0)
            s->braces--;
        add(s, (ds_word){.type = DS_WORD_SIGN, .text = {signs[i], strlen(signs[i])}});
        s->at += strlen(signs[i]);
        return;
    }
    fail(s, "a character is not part of the language");
}

/* Whether the tag ends here. */
static bool scan_end(scanner *s, bool is_print)
{
    const char *end = is_print ? "}}" : "%}";
    char sign = sign_at(s, s->at);
    if (is_print && sign == '+')
        sign = ' ';
    size_t at = s->at + (sign != ' ');
    if (s->braces > 0 || !follows(s, at, end))
        return false;
    add(s, (ds_word){.type = is_print ? DS_WORD_END_PRINT : DS_WORD_END_BLOCK});
    s->at = at + 2;
    after_tag(s, sign, is_print);
    return true;
}

static void scan_tag(scanner *s, bool is_print)
{
    add(s, (ds_word){.type = is_print ? DS_WORD_BEGIN_PRINT : DS_WORD_BEGIN_BLOCK});
    s->at += 2;
    s->at += sign_at(s, s->at) != ' ' && (!is_print || sign_at(s, s->at) == '-');
    s->braces = 0;
    while (s->status == DSV2_OK) {
        skip_space(s);
        if (s->at >= s->size) {
            fail(s, is_print ? "{{ has no end" : "{% has no end");
            return;
        }
        if (scan_end(s, is_print))
            return;
        char c = s->text[s->at];
        if (c == '\'' || c == '"') {
            scan_string(s);
        } else if (is_digit(c)) {
            scan_number(s);
        } else if (is_name_byte(c)) {
            size_t end = s->at;
            while (end < s->size && is_name_byte(s->text[end]))
                end++;
            add(s, (ds_word){.type = DS_WORD_NAME, .text = {s->text + s->at, end - s->at}});
            s->at = end;
        } else {
            scan_sign(s);
        }
    }
}

static void scan(scanner *s)
{
    s->begins_line = true;
    while (s->status == DSV2_OK && s->at < s->size) {
        size_t tag = s->at;
        while (tag < s->size && !follows(s, tag, "{{") && !follows(s, tag, "{%") && !follows(s, tag, "{#"))
            tag++;
        bool is_print = follows(s, tag, "{{");
        char sign = tag < s->size ? sign_at(s, tag + 2) : '+';
        add_text(s, s->at, tag, end_of_text(s, s->at, tag, sign, is_print));
        s->at = tag;
        size_t behind;
        char first, last;
        if (tag >= s->size)
            break;
        if (follows(s, tag, "{#"))
            scan_comment(s);
        else if (is_plain_tag(s, tag, "raw", &behind, &first, &last))
            scan_raw(s, behind, last);
        else
            scan_tag(s, is_print);
    }
    add(s, (ds_word){.type = DS_WORD_END});
}

/* The text with "\n" for every kind of newline, and without the one at its end. */
static char *normalised(ds_template *template, const char *text, size_t *size)
{
    char *copy = ds_arena_new(&template->arena, *size + 1, 1);
    size_t n = 0;
    for (size_t i = 0; copy != NULL && i < *size; i++) {
        if (text[i] == '\r' && i + 1 < *size && text[i + 1] == '\n')
            continue;
        copy[n++] = text[i] == '\r' ? '\n' : text[i];
    }
    *size = n > 0 && copy[n - 1] == '\n' ? n - 1 : n;
    return copy;
}

dsv2_status ds_scan_template(ds_template *template, const char *text, size_t size, ds_word **words)
{
    scanner s = {.template = template, .text = normalised(template, text, &size), .size = size, .line = 1};
    if (s.text == NULL)
        fail_memory(&s);
    else
        scan(&s);
    if (s.status != DSV2_OK) {
        ds_free(s.words);
        s.words = NULL;
    }
    *words = s.words;
    return s.status;
}

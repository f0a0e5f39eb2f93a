/* The scanner: one pass over JSON text that keeps one byte for each open array or object. */
#include "base/json_scan.h"

#include <assert.h>
#include <string.h>

static bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }
static bool is_digit(char c) { return c >= '0' && c <= '9'; }
static bool is_hex(char c) { return is_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'); }

static bool fail(ds_scanner *s, const char *wrong)
{
    s->wrong = wrong;
    return false;
}

void ds_skip_space(ds_scanner *s)
{
    while (s->at < s->end && is_space(*s->at))
        s->at++;
}

static bool skip_digits(ds_scanner *s)
{
    const char *begin = s->at;
    while (s->at < s->end && is_digit(*s->at))
        s->at++;
    return s->at > begin;
}

static bool skip_escape(ds_scanner *s)
{
    char c = s->end - s->at > 1 ? s->at[1] : '\0';
    if (c == 'u') {
        for (size_t i = 2; i < 6; i++)
            if ((size_t)(s->end - s->at) <= i || !is_hex(s->at[i]))
                return fail(s, "an escape that is no character");
        s->at += 6;
        return true;
    }
    if (c == '\0' || strchr("\"\\/bfnrt", c) == NULL)
        return fail(s, "an escape that is no character");
    s->at += 2;
    return true;
}

bool ds_skip_string(ds_scanner *s)
{
    s->at++;
    for (;;) {
        const char *begin = s->at;
        while (s->at < s->end && *s->at != '"' && *s->at != '\\' && (uint8_t)*s->at >= 0x20)
            s->at++;
        size_t valid = ds_utf8_valid(begin, (size_t)(s->at - begin));
        if (valid < (size_t)(s->at - begin)) {
            s->at = begin + valid;
            return fail(s, "bytes that are not UTF-8");
        }
        if (s->at == s->end)
            return fail(s, "a string without an end");
        if (*s->at == '"') {
            s->at++;
            return true;
        }
        if (*s->at != '\\')
            return fail(s, "a control character in a string");
        if (!skip_escape(s))
            return false;
    }
}

static bool skip_word(ds_scanner *s, const char *word)
{
    size_t n = strlen(word);
    if ((size_t)(s->end - s->at) < n || memcmp(s->at, word, n) != 0)
        return false;
    s->at += n;
    return true;
}

static bool skip_number(ds_scanner *s)
{
    if (*s->at == '-')
        s->at++;
    if (s->at < s->end && *s->at == '0')
        s->at++;
    else if (!skip_digits(s))
        return skip_word(s, "Infinity") || fail(s, "no value");
    if (s->at < s->end && *s->at == '.') {
        s->at++;
        if (!skip_digits(s))
            return fail(s, "a number that breaks off");
    }
    if (s->at < s->end && (*s->at == 'e' || *s->at == 'E')) {
        s->at++;
        if (s->at < s->end && (*s->at == '+' || *s->at == '-'))
            s->at++;
        if (!skip_digits(s))
            return fail(s, "a number that breaks off");
    }
    return true;
}

bool ds_skip_scalar(ds_scanner *s)
{
    if (s->at == s->end)
        return fail(s, "no value");
    if (*s->at == '"')
        return ds_skip_string(s);
    if (*s->at == '-' || is_digit(*s->at))
        return skip_number(s);
    return skip_word(s, "true") || skip_word(s, "false") || skip_word(s, "null") || skip_word(s, "NaN") ||
           skip_word(s, "Infinity") || fail(s, "no value");
}

/* Skips a member's name and its colon. */
static bool skip_name(ds_scanner *s)
{
    if (s->at == s->end || *s->at != '"')
        return fail(s, "no member's name in quotes");
    if (!ds_skip_string(s))
        return false;
    ds_skip_space(s);
    if (s->at == s->end || *s->at != ':')
        return fail(s, "no colon behind a member's name");
    s->at++;
    ds_skip_space(s);
    return true;
}

bool ds_skip_value(ds_scanner *s)
{
    uint8_t closing[DS_JSON_DEPTH];
    size_t depth = 0;
    do {
        /* A value begins here. */
        if (s->at < s->end && (*s->at == '{' || *s->at == '[')) {
            if (depth == DS_JSON_DEPTH)
                return fail(s, "arrays or objects more than 128 deep");
            closing[depth++] = *s->at++ == '{' ? '}' : ']';
            ds_skip_space(s);
            if (s->at == s->end || *s->at != (char)closing[depth - 1]) {
                if (closing[depth - 1] == '}' && !skip_name(s))
                    return false;
                continue;
            }
        } else if (!ds_skip_scalar(s)) {
            return false;
        }
        /* A value, or an array or object that is empty, ended here. */
        bool more = false;
        while (depth > 0 && !more) {
            ds_skip_space(s);
            if (s->at < s->end && *s->at == (char)closing[depth - 1]) {
                s->at++;
                depth--;
            } else if (s->at < s->end && *s->at == ',') {
                s->at++;
                ds_skip_space(s);
                more = true;
            } else {
                return fail(s, closing[depth - 1] == '}' ? "neither , nor } behind a member"
                                                         : "neither , nor ] behind an element");
            }
        }
        if (more && closing[depth - 1] == '}' && !skip_name(s))
            return false;
    } while (depth > 0);
    return true;
}

void ds_json_place(const ds_json *json, const char *at, int *line, int *column)
{
    const char *begin = json->text.data;
    uint64_t lines = 1;
    for (const char *c = begin; c < at; c++)
        if (*c == '\n') {
            lines++;
            begin = c + 1;
        }
    *line = lines < INT32_MAX ? (int)lines : INT32_MAX;
    *column = at - begin < INT32_MAX - 1 ? (int)(at - begin) + 1 : INT32_MAX;
}

dsv2_status ds_json_check(const char *path, const char *text, size_t size, ds_json *json)
{
    *json = (ds_json){.path = path, .text = {size > 0 ? text : "", size}};
    ds_scanner s = {.at = json->text.data, .end = json->text.data + size};
    ds_skip_space(&s);
    const char *begin = s.at;
    if (ds_skip_value(&s)) {
        const char *end = s.at;
        ds_skip_space(&s);
        if (s.at == s.end && *begin != '{')
            return ds_fail(DSV2_ERROR_FORMAT, "%s: is %s, expected a JSON object", path,
                           ds_json_text_kind((ds_text){begin, (size_t)(end - begin)}));
        if (s.at < s.end)
            s.wrong = "there is more behind the first value";
    }
    if (s.wrong != NULL) {
        int line, column;
        ds_json_place(json, s.at, &line, &column);
        return ds_fail(DSV2_ERROR_FORMAT, "%s: line %d, column %d: not valid JSON: %s", path, line, column, s.wrong);
    }
    json->text = (ds_text){begin, (size_t)(s.at - begin)};
    return DSV2_OK;
}

/* ---- values ---- */

static bool same(ds_text value, const char *word)
{
    return value.size == strlen(word) && memcmp(value.data, word, value.size) == 0;
}

bool ds_json_is_nothing(ds_text value) { return value.size == 0 || same(value, "null"); }

const char *ds_json_text_kind(ds_text value)
{
    int64_t number;
    if (value.size == 0)
        return "missing";
    switch (value.data[0]) {
    case '{':
        return "an object";
    case '[':
        return "an array";
    case '"':
        return "a string";
    case 't':
        return "true";
    case 'f':
        return "false";
    case 'n':
        return "null";
    case 'N':
        return "NaN";
    case 'I':
        return "Infinity";
    default:
        return same(value, "-Infinity")             ? "-Infinity"
               : ds_json_is_integer(value, &number) ? "an integer"
               : memchr(value.data, '.', value.size) != NULL || memchr(value.data, 'e', value.size) != NULL ||
                       memchr(value.data, 'E', value.size) != NULL
                   ? "a number with a fraction or exponent"
                   : "an integer beyond 64 bits";
    }
}

bool ds_json_is_integer(ds_text value, int64_t *number)
{
    bool negative = ds_json_is(value, '-');
    uint64_t sum = 0, limit = (uint64_t)INT64_MAX + negative;
    if (value.size <= (size_t)negative)
        return false;
    for (size_t i = negative; i < value.size; i++) {
        uint64_t digit = (uint64_t)(value.data[i] - '0');
        if (!is_digit(value.data[i]) || sum > (limit - digit) / 10)
            return false;
        sum = 10 * sum + digit;
    }
    *number = negative ? (int64_t)(0 - sum) : (int64_t)sum;
    return true;
}

bool ds_json_is_plain(ds_text string, ds_text *text)
{
    if (memchr(string.data, '\\', string.size) != NULL)
        return false;
    *text = (ds_text){string.data + 1, string.size - 2};
    return true;
}

/* The four hexadecimal digits of an escape. */
static uint32_t read_hex(const char *digits)
{
    uint32_t value = 0;
    for (size_t i = 0; i < 4; i++) {
        uint32_t c = (uint8_t)digits[i];
        value = value << 4 | (c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
    }
    return value;
}

static char *put_utf8(char *at, uint32_t c)
{
    if (c < 0x80) {
        *at++ = (char)c;
        return at;
    }
    unsigned more = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    *at++ = (char)((0xff00u >> (more + 1) & 0xffu) | c >> 6 * more);
    while (more-- > 0)
        *at++ = (char)(0x80 | (c >> 6 * more & 0x3f));
    return at;
}

char *ds_decode_escape(const char **from, char *at)
{
    static const char letters[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
    const char *escape = *from;
    if (escape[1] != 'u') {
        *from += 2;
        *at = meanings[strchr(letters, escape[1]) - letters];
        return at + 1;
    }
    uint32_t c = read_hex(escape + 2);
    *from += 6;
    if (c >= 0xd800 && c < 0xdc00 && escape[6] == '\\' && escape[7] == 'u') {
        uint32_t low = read_hex(escape + 8);
        *from += 6;
        c = low >= 0xdc00 && low < 0xe000 ? 0x10000 + ((c - 0xd800) << 10 | (low - 0xdc00)) : 0;
    }
    return c == 0 || (c >= 0xd800 && c < 0xe000) ? NULL : put_utf8(at, c);
}

bool ds_json_is_name(ds_text spelled, const char *name)
{
    const char *from = spelled.data + 1, *end = spelled.data + spelled.size - 1;
    while (from < end) {
        char bytes[4] = {*from};
        size_t n = 1;
        if (*from == '\\') {
            char *behind = ds_decode_escape(&from, bytes);
            if (behind == NULL)
                return false;
            n = (size_t)(behind - bytes);
        } else {
            from++;
        }
        if (strncmp(name, bytes, n) != 0)
            return false;
        name += n;
    }
    return *name == '\0';
}

/* ---- walking ---- */

ds_json_walk ds_json_begin(ds_text value)
{
    bool object = ds_json_is(value, '{');
    if (!object && !ds_json_is(value, '['))
        return (ds_json_walk){.object = false};
    return (ds_json_walk){.rest = {value.data + 1, value.size - 1}, .object = object};
}

bool ds_json_next(ds_json_walk *walk)
{
    if (walk->rest.size == 0) /* also of a walk through what has no members, whose data is NULL */
        return false;
    ds_scanner s = {.at = walk->rest.data, .end = walk->rest.data + walk->rest.size};
    ds_skip_space(&s);
    if (*s.at == ',')
        s.at++;
    ds_skip_space(&s);
    if (*s.at == '}' || *s.at == ']') {
        walk->rest.size = 0;
        return false;
    }
    if (walk->object) {
        const char *begin = s.at;
        (void)ds_skip_string(&s);
        walk->name = (ds_text){begin, (size_t)(s.at - begin)};
        ds_skip_space(&s);
        s.at++; /* the colon */
        ds_skip_space(&s);
    }
    const char *begin = s.at;
    (void)ds_skip_value(&s);
    assert(s.wrong == NULL);
    walk->value = (ds_text){begin, (size_t)(s.at - begin)};
    walk->rest = (ds_text){s.at, (size_t)(s.end - s.at)};
    return true;
}

dsv2_status ds_json_find(const ds_json *json, ds_text object, size_t n, const char *const *names, ds_text *values)
{
    for (size_t i = 0; i < n; i++)
        values[i] = (ds_text){NULL, 0};
    ds_json_walk walk = ds_json_begin(object);
    while (ds_json_next(&walk))
        for (size_t i = 0; i < n; i++) {
            if (!ds_json_is_name(walk.name, names[i]))
                continue;
            if (values[i].data != NULL) {
                int line, column;
                ds_json_place(json, walk.name.data, &line, &column);
                return ds_fail(DSV2_ERROR_FORMAT, "%s: line %d, column %d: not valid JSON: \"%s\" is there twice",
                               json->path, line, column, names[i]);
            }
            values[i] = walk.value;
        }
    return DSV2_OK;
}

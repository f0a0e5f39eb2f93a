/* Expressions from Oniguruma's syntax (Ruby's), which tokenizer.json files use, to PCRE2's.
 *
 * Most of the syntax is the same in both. What differs is written out: \s is Unicode's White_Space, which PCRE2 widens
 * by U+180E; \w has marks; \v is one character; categories are of Unicode 16 whatever the system's PCRE2. What cannot
 * be written out, or is too rare to be worth it, is refused by name: nested sets, POSIX classes, options, references,
 * conditions, callouts, script names, anchors other than ^ and $.
 *
 * ^ is written out too. It matches behind a line feed if a character follows, and PCRE2's own ^ does not say that a
 * window's end hides that character (see search in pretokenize.c).
 *
 * One thing is added. A search for a+$ in a long run of a's that $ does not follow would try every a in turn and run to
 * the end from each: quadratic. But an alternative that begins with a repeated character cannot match where it could
 * not match one character before in the same run. So such an alternative is tried only where a search begins (\G) or
 * where no such character precedes. */
#include "tokenizer/parts.h"

#include <stdio.h>
#include <string.h>

#define SPACE                                                                                                          \
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define NO_SPACE                                                                                                       \
    "\\x{0}-\\x{8}\\x{e}-\\x{1f}\\x{21}-\\x{84}\\x{86}-\\x{9f}\\x{a1}-\\x{167f}\\x{1681}-\\x{1fff}"                    \
    "\\x{200b}-\\x{2027}\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}\\x{2060}-\\x{2fff}\\x{3001}-\\x{10ffff}"
#define WORD "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}"

/* What a light expression has at most. For one byte of a text, such an expression takes some thousand steps at worst.
 * Published ones are light. */
enum { LIGHT_RUNS = 4, LIGHT_RUN_BYTES = 64, LIGHT_TIMES = 16, LIGHT_WORK = 2048 };
enum { MOST_GROUPS = 16 };     /* groups in groups that a light expression has */
enum { MOST_WAYS = 1 << 24 }; /* where counting ends */

typedef struct scanner {
    const char *pattern;
    size_t size, at;
    char *out;
    size_t used, capacity;
    const char *refused; /* what was met that is not supported; NULL: nothing */
    size_t depth;        /* of groups */
    size_t item;         /* where what was scanned last begins; SIZE_MAX: it is a group */
    size_t run;          /* where the alternative's first run that something follows begins; SIZE_MAX: nowhere */
    uint32_t runs;       /* alternatives with such a run: a repetition of a character, without an end */
    size_t run_bytes;    /* of these alternatives, from the run on */
    uint32_t ways;       /* how many ways the alternative may be tried at one place: the product of its choices */
    size_t items;        /* of the alternative: characters, sets, classes */
    uint64_t work;       /* ways times items, of the alternatives that have ended */
    uint32_t bars[MOST_GROUPS]; /* alternatives but one, of the groups around */
    uint64_t most_times; /* the largest number in braces */
    bool heavy;          /* runs are in groups, or groups are repeated, or runs follow one another */
    bool no_memory;
} scanner;

static void put(scanner *s, const char *text, size_t size)
{
    if (!ds_grow(&s->out, &s->capacity, s->used + size, 1)) {
        s->no_memory = true;
        return;
    }
    memcpy(s->out + s->used, text, size);
    s->used += size;
}

static void put_string(scanner *s, const char *string) { put(s, string, strlen(string)); }

static char peek(const scanner *s, size_t ahead) { return s->at + ahead < s->size ? s->pattern[s->at + ahead] : '\0'; }

/* Copies n characters of the pattern. */
static void copy(scanner *s, size_t n)
{
    put(s, s->pattern + s->at, n);
    s->at += n;
}

static bool is_digit(char c) { return c >= '0' && c <= '9'; }
static bool is_hex(char c) { return is_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'); }

/* How many hexadecimal digits stand from `ahead` on, up to `most`. */
static size_t count_hex(const scanner *s, size_t ahead, size_t most)
{
    size_t n = 0;
    while (n < most && is_hex(peek(s, ahead + n)))
        n++;
    return n;
}

/* Translates \p{L} or \P{Lu}: general categories alone, since PCRE2 10.40 and later read script names in another sense
 * than Oniguruma. */
static void translate_property(scanner *s, bool in_class)
{
    size_t letters = 0, index = 0;
    bool negated = peek(s, 1) == 'P';
    char major = peek(s, 3), minor = peek(s, 4);
    if (peek(s, 2) == '{' && major != '\0' && strchr("CLMNPSZ", major) != NULL)
        letters = minor == '}' ? 1 : minor >= 'a' && minor <= 'z' && peek(s, 5) == '}' ? 2 : 0;
    if (letters == 0) {
        s->refused = "a property that is not a general category";
        return;
    }
    const char *category = s->pattern + s->at + 3;
    uint32_t first, last;
    if (!ds_gained_range(category, letters, &index, &first, &last)) {
        copy(s, 4 + letters);
        return;
    }
    if (negated && in_class) {
        s->refused = "\\P in a set";
        return;
    }
    put_string(s, in_class ? "" : negated ? "[^" : "[");
    put_string(s, "\\p");
    s->at += 2;
    copy(s, 2 + letters);
    do {
        char range[40];
        snprintf(range, sizeof range, "\\x{%x}-\\x{%x}", (unsigned)first, (unsigned)last);
        put_string(s, range);
    } while (ds_gained_range(category, letters, &index, &first, &last));
    put_string(s, in_class ? "" : "]");
}

/* Translates \x41 (under 0x80: to Oniguruma a larger one is a byte), \x{20ac} or \u20ac. */
static void translate_code_point(scanner *s)
{
    size_t n;
    if (peek(s, 1) == 'u' && count_hex(s, 2, 4) == 4) {
        put_string(s, "\\x{");
        s->at += 2;
        copy(s, 4);
        put_string(s, "}");
    } else if (peek(s, 2) == '{' && (n = count_hex(s, 3, 8)) > 0 && peek(s, 3 + n) == '}') {
        copy(s, 4 + n);
    } else if (peek(s, 1) == 'x' && count_hex(s, 2, 2) == 2 && peek(s, 2) < '8') {
        copy(s, 4);
    } else {
        s->refused = "a character number of this form";
    }
}

/* Translates what begins with a backslash. Returns whether it stands for a set of characters. */
static bool translate_escape(scanner *s, bool in_class)
{
    char c = peek(s, 1);
    const char *open = in_class ? "" : "[", *open_not = in_class ? "" : "[^", *close = in_class ? "" : "]";
    switch (c) {
    case 's':
        s->at += 2;
        put_string(s, open), put_string(s, SPACE), put_string(s, close);
        return true;
    case 'S':
        s->at += 2;
        put_string(s, open), put_string(s, NO_SPACE), put_string(s, close);
        return true;
    case 'w':
        s->at += 2;
        put_string(s, open), put_string(s, WORD), put_string(s, close);
        return true;
    case 'W':
        if (in_class) {
            s->refused = "\\W in a set";
            return true;
        }
        s->at += 2;
        put_string(s, open_not), put_string(s, WORD), put_string(s, close);
        return true;
    case 'd': case 'D':
        copy(s, 2);
        return true;
    case 'p': case 'P':
        translate_property(s, in_class);
        return true;
    case 'n': case 'r': case 't': case 'f': case 'a': case 'e':
        copy(s, 2);
        return false;
    case 'v':
        s->at += 2;
        put_string(s, "\\x{b}");
        return false;
    case 'x': case 'u':
        translate_code_point(s);
        return false;
    default:
        break;
    }
    size_t length = ds_utf8_length(s->pattern + s->at + 1, s->size - s->at - 1);
    if (length > 1) {
        s->at++; /* without the backslash, which PCRE2 accepts today but does not promise to */
        copy(s, length);
    } else if (c > ' ' && c < 0x7f && !is_digit(c) && !(c >= 'a' && c <= 'z') && !(c >= 'A' && c <= 'Z')) {
        copy(s, 2);
    } else {
        s->refused = "this escape";
    }
    return false;
}

static void translate_set(scanner *s)
{
    copy(s, peek(s, 1) == '^' ? 2 : 1);
    if (peek(s, 0) == ']')
        s->refused = "a set that begins with a bracket";
    while (s->refused == NULL && s->at < s->size && s->pattern[s->at] != ']') {
        char c = s->pattern[s->at];
        if (c == '[' || (c == '&' && peek(s, 1) == '&')) {
            s->refused = "a set in a set";
        } else if (c == '\\') {
            if (translate_escape(s, true) && peek(s, 0) == '-' && peek(s, 1) != ']')
                s->refused = "a range that begins with a set";
        } else {
            copy(s, 1);
        }
    }
    if (s->refused == NULL && s->at == s->size)
        s->refused = "a set without an end";
    if (s->refused == NULL)
        copy(s, 1);
}

static void multiply(scanner *s, uint64_t choices)
{
    uint64_t ways = s->ways * (uint64_t)(choices < MOST_WAYS ? choices : MOST_WAYS);
    s->ways = ways < MOST_WAYS ? (uint32_t)ways : MOST_WAYS;
}

/* Counts a repetition of what was scanned last, behind whose sign s->at is. */
static void count_repetition(scanner *s, bool run, uint64_t least_times, uint64_t most_times)
{
    bool group = s->item == SIZE_MAX;
    if (peek(s, 0) == '+' || peek(s, 0) == '?')
        copy(s, 1);
    bool last = s->depth == 0 && (s->at == s->size || peek(s, 0) == '|');
    if (most_times > s->most_times)
        s->most_times = most_times;
    if (group ? run || most_times > 1 : run && s->depth > 0) {
        s->heavy = true;
    } else if (!run) {
        multiply(s, most_times - least_times + 1);
    } else if (!last) {
        s->heavy = s->heavy || s->run != SIZE_MAX;
        s->run = s->item;
        s->runs++;
    }
    s->item = SIZE_MAX; /* a second repetition, of the first, counts as that of a group */
}

static void end_alternative(scanner *s)
{
    s->run_bytes += s->run == SIZE_MAX ? 0 : s->at - s->run;
    s->run = SIZE_MAX;
    s->work += (uint64_t)s->ways * s->items;
    s->ways = 1;
    s->items = 0;
}

/* How much one counted step may be at worst: see ds_translate_pattern. */
static uint32_t weight_of(const scanner *s)
{
    bool light = !s->heavy && s->runs <= LIGHT_RUNS && s->run_bytes <= LIGHT_RUN_BYTES &&
                 s->most_times <= LIGHT_TIMES && s->work <= LIGHT_WORK;
    return light ? 0 : (uint32_t)(1 + s->size / 1024 + s->most_times / 16);
}

/* Translates {n}, {n,} or {n,m} behind an atom. A sign behind the braces means other things in Ruby's syntax. */
static void translate_interval(scanner *s)
{
    size_t n = 1;
    uint64_t times = 0, most = 0; /* of fewer than 12 digits if `good` */
    for (; is_digit(peek(s, n)); n++)
        times = 10 * times + (uint64_t)(peek(s, n) - '0');
    bool good = n > 1, fixed = peek(s, n) != ',';
    if (!fixed)
        for (n++; is_digit(peek(s, n)); n++)
            most = 10 * most + (uint64_t)(peek(s, n) - '0');
    good = good && peek(s, n) == '}' && n < 12;
    if (good && (peek(s, n + 1) == '+' || (fixed && peek(s, n + 1) == '?')))
        good = false;
    if (!good) {
        s->refused = "braces of this form";
        return;
    }
    bool run = !fixed && peek(s, n - 1) == ',';
    copy(s, n + 1);
    most = fixed ? times : most;
    count_repetition(s, run, times, run || most < times ? times : most);
}

static void translate_line_begin(scanner *s)
{
    char next = peek(s, 1);
    if (next == '*' || next == '+' || next == '?' || next == '{') {
        s->refused = "a repetition of ^";
        return;
    }
    s->at++;
    put_string(s, "(?:\\A|(?<=\\n)(?=(?s:.)))");
}

static void translate_group(scanner *s)
{
    static const char *const openings[] = {"(?:", "(?=", "(?!", "(?>", "(?<=", "(?<!", "(?i:"};
    if (peek(s, 1) != '?' && peek(s, 1) != '*') {
        copy(s, 1);
        return;
    }
    for (size_t i = 0; i < sizeof openings / sizeof *openings; i++) {
        size_t length = strlen(openings[i]);
        if (s->size - s->at >= length && memcmp(s->pattern + s->at, openings[i], length) == 0) {
            copy(s, length);
            return;
        }
    }
    s->refused = "a group of this kind";
}

/* Guards the atom that begins an alternative, and was written from `begin` on, if a sign of repetition and then more
 * follow the atom. */
static void guard(scanner *s, size_t begin)
{
    size_t n = 1;
    if (peek(s, 0) != '+' && peek(s, 0) != '*')
        return;
    if (peek(s, 1) == '+' || peek(s, 1) == '?')
        n++;
    if (s->at + n == s->size || peek(s, n) == '|')
        return;
    static const char before[] = "(?:\\G|(?<!", after[] = "))";
    size_t atom = s->used - begin, shift = sizeof before - 1 + atom + sizeof after - 1;
    if (!ds_grow(&s->out, &s->capacity, s->used + shift, 1)) {
        s->no_memory = true;
        return;
    }
    char *out = s->out + begin;
    memmove(out + shift, out, atom);
    memcpy(out, before, sizeof before - 1);
    memcpy(out + sizeof before - 1, out + shift, atom);
    memcpy(out + sizeof before - 1 + atom, after, sizeof after - 1);
    s->used += shift;
}

static void scan(scanner *s)
{
    bool alternative = true; /* an alternative of the whole expression begins here */
    while (s->at < s->size && s->refused == NULL && !s->no_memory) {
        char c = s->pattern[s->at];
        size_t begin = s->used, place = s->at;
        bool atom = false;
        if (c == '(') {
            translate_group(s);
            s->depth++;
            if (s->depth <= MOST_GROUPS)
                s->bars[s->depth - 1] = 0;
            else
                s->heavy = true;
        } else if (c == ')') {
            copy(s, 1);
            if (s->depth > 0 && s->depth <= MOST_GROUPS)
                multiply(s, (uint64_t)s->bars[s->depth - 1] + 1);
            s->depth -= s->depth > 0;
            s->item = SIZE_MAX;
        } else if (c == '[') {
            translate_set(s);
            atom = true;
        } else if (c == '\\') {
            translate_escape(s, false);
            atom = true;
        } else if (c == '{') {
            translate_interval(s);
        } else if (c == '^') {
            translate_line_begin(s);
        } else if (c == '*' || c == '+' || c == '?') {
            copy(s, 1);
            count_repetition(s, c != '?', 0, 1);
        } else if (c == '|') {
            if (s->depth == 0)
                end_alternative(s);
            else if (s->depth <= MOST_GROUPS)
                s->bars[s->depth - 1]++;
            copy(s, 1);
        } else if (c == '$') {
            copy(s, 1);
        } else {
            size_t length = ds_utf8_length(s->pattern + s->at, s->size - s->at);
            copy(s, length > 0 ? length : 1);
            atom = true;
        }
        if (atom)
            s->item = place;
        s->items += atom;
        if (alternative && atom && s->refused == NULL && !s->no_memory)
            guard(s, begin);
        alternative = c == '|' && s->depth == 0;
    }
}

dsv2_status ds_translate_pattern(const char *path, const char *pattern, size_t size, char **translated,
                                 size_t *translated_size, uint32_t *weight)
{
    if (size > DS_MAX_PATTERN)
        return ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: pre_tokenizer: an expression of %zu bytes, expected at most %d",
                       path, size, DS_MAX_PATTERN);
    scanner s = {.pattern = pattern, .size = size, .run = SIZE_MAX, .ways = 1};
    s.no_memory = !ds_grow(&s.out, &s.capacity, 1, 1); /* an empty expression has memory too */
    scan(&s);
    end_alternative(&s);
    if (s.no_memory) {
        ds_free(s.out);
        return ds_fail_memory("an expression", s.used);
    }
    if (s.refused != NULL) {
        ds_free(s.out);
        return ds_fail(DSV2_ERROR_UNSUPPORTED,
                       "%s: pre_tokenizer: expression \"%.*s\": %s, at byte %zu, is not supported", path,
                       ds_quoted(pattern, size), pattern, s.refused, s.at);
    }
    *translated = s.out;
    *translated_size = s.used;
    *weight = weight_of(&s);
    return DSV2_OK;
}

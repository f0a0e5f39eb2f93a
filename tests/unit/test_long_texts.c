/* Texts and tokenizer files that would keep an encoder busy for hours. From outside it had been found that 999 added
 * tokens of different lengths take 32 s for 300 KB, and expressions that look far ahead 15 s for 100 KB. What is
 * counted here is steps, never time. */
#include "support/random.h"
#include "support/run.h"
#include "tokenizer/parts.h"
#include "unit/small_json.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static dsv2_tokenizer *open_parts(const small_parts *parts)
{
    char *json = small_json(parts);
    dsv2_tokenizer *t;
    ck_assert_msg(ds_tokenizer_from_json("tokenizer.json", json, strlen(json), &t) == DSV2_OK, "%s", dsv2_last_error());
    free(json);
    return t;
}

/* ---- added tokens ---- */

typedef struct added_token {
    char text[16];
    bool special, early;
} added_token;

enum { FIRST_ID = 300, MOST = 80 };

/* The longest token of a round that begins here; -1: none. */
static int longest(const added_token *tokens, int n, bool early, const char *text)
{
    int best = -1;
    for (int i = 0; i < n; i++)
        if (tokens[i].early == early && strncmp(text, tokens[i].text, strlen(tokens[i].text)) == 0 &&
            (best < 0 || strlen(tokens[i].text) > strlen(tokens[best].text)))
            best = i;
    return best;
}

/* Whether the token that stands here is cut out: of what a special one spells, none of the round is. */
static bool is_cut(const added_token *tokens, int found, bool special) { return special || !tokens[found].special; }

static void push_bytes(const char *text, size_t size, ds_ids *out)
{
    for (size_t i = 0; i < size; i++)
        ck_assert_int_eq(ds_push(out, (uint8_t)text[i]), DSV2_OK);
}

/* Looks at every token at every place. `size` bytes of text, in which late tokens are looked for. */
static void cut_late(const added_token *tokens, int n, bool special, const char *text, size_t size, ds_ids *out)
{
    char part[512];
    memcpy(part, text, size);
    part[size] = '\0';
    for (size_t i = 0, length; i < size; i += length) {
        int found = longest(tokens, n, false, part + i);
        length = found < 0 ? 1 : strlen(tokens[found].text);
        if (found < 0 || !is_cut(tokens, found, special))
            push_bytes(part + i, length, out);
        else
            ck_assert_int_eq(ds_push(out, FIRST_ID + found), DSV2_OK);
    }
}

static void cut_all(const added_token *tokens, int n, bool special, const char *text, ds_ids *out)
{
    size_t done = 0, i = 0, length;
    for (; text[i] != '\0'; i += length) {
        int found = longest(tokens, n, true, text + i);
        length = found < 0 ? 1 : strlen(tokens[found].text);
        if (found < 0 || !is_cut(tokens, found, special))
            continue;
        cut_late(tokens, n, special, text + done, i - done, out);
        ck_assert_int_eq(ds_push(out, FIRST_ID + found), DSV2_OK);
        done = i + length;
    }
    cut_late(tokens, n, special, text + done, i - done, out);
}

/* Random tokens of few letters, so that many overlap and hold others. One letter is a token of the model. */
static int make_tokens(added_token *tokens, char *json)
{
    int n = 0, wanted = 1 + (int)random_below(MOST);
    json[0] = '\0';
    for (int tries = 0; n < wanted && tries < 1000; tries++) {
        added_token *t = &tokens[n];
        int size = 2 + (int)random_below(random_below(4) == 0 ? 12 : 4), i = 0;
        for (; i < size; i++)
            t->text[i] = (char)('a' + random_below(2 + random_below(2)));
        t->text[size] = '\0';
        for (i = 0; i < n && strcmp(tokens[i].text, t->text) != 0; i++)
            continue;
        if (i < n)
            continue;
        t->special = random_below(3) == 0;
        t->early = random_below(2) == 0;
        sprintf(json + strlen(json), "%s{\"id\":%d,\"content\":\"%s\",\"special\":%s,\"normalized\":%s}",
                n > 0 ? "," : "", FIRST_ID + n, t->text, t->special ? "true" : "false", t->early ? "false" : "true");
        n++;
    }
    return n;
}

START_TEST(the_leftmost_and_longest_added_tokens_are_cut_out)
{
    random_begin(4711 + (unsigned)_i);
    for (int round = 0; round < 20; round++) {
        added_token tokens[MOST];
        char *json = malloc(MOST * 120), text[400];
        int n = make_tokens(tokens, json);
        dsv2_tokenizer *t = open_parts(&(small_parts){.added = json});
        for (int texts = 0; texts < 10; texts++) {
            size_t size = random_below(sizeof text);
            for (size_t i = 0; i < size; i++)
                text[i] = (char)('a' + random_below(random_below(8) == 0 ? 4 : 2));
            text[size] = '\0';
            for (int special = 0; special < 2; special++) {
                ds_ids ids = {0}, expected = {0};
                cut_all(tokens, n, special, text, &expected);
                ck_assert_int_eq(ds_encode(t, text, size, special ? DSV2_ENCODE_SPECIAL : 0, &ids), DSV2_OK);
                ck_assert_msg(ids.n == expected.n && memcmp(ids.ids, expected.ids, ids.n * sizeof *ids.ids) == 0,
                              "%s with %s", text, json);
                ds_free(expected.ids);
                ds_free(ids.ids);
            }
        }
        for (int i = 0; i < n; i++)
            ck_assert_int_eq(ds_find_token(t, tokens[i].text, strlen(tokens[i].text)), FIRST_ID + i);
        ds_tokenizer_destroy(t);
        free(json);
    }
}
END_TEST

/* Added tokens spelled by `n` times a, behind `before` and before `after`. */
static char *long_tokens(const char *before, const char *after, int first, int last, bool early)
{
    size_t size = 0, room = (size_t)(last - first + 1) * ((size_t)last + 100);
    char *json = malloc(room);
    for (int n = first; n <= last; n++) {
        size += (size_t)sprintf(json + size, "%s{\"id\":%d,\"normalized\":%s,\"content\":\"%s", n > first ? "," : "",
                                FIRST_ID + n, early ? "false" : "true", before);
        memset(json + size, 'a', (size_t)n);
        size += (size_t)n;
        size += (size_t)sprintf(json + size, "%s\"}", after);
    }
    return json;
}

START_TEST(a_text_takes_few_steps_a_byte_however_many_added_tokens_there_are)
{
    static const struct {
        const char *before, *after;
        int first;
    } cases[] = {{"", "b", 1}, {"b", "", 1}, {"b", "b", 1}, {"", "", 2}};
    enum { SIZE = 300000, LAST = 999 };
    char *text = malloc(SIZE);
    for (int kind = 0; kind < 3; kind++) {
        for (size_t i = 0; i < SIZE; i++)
            text[i] = kind == 1 && i % 1000 == 999 ? 'b' : kind == 2 && i % 3 == 0 ? 'c' : 'a';
        char *json = long_tokens(cases[_i / 2].before, cases[_i / 2].after, cases[_i / 2].first, LAST, _i % 2 == 0);
        dsv2_tokenizer *t = open_parts(&(small_parts){.added = json});
        ds_ids ids = {0};
        ds_encoder e = {.tokenizer = t, .out = &ids};
        ck_assert_int_eq(ds_encode_text(&e, text, SIZE), DSV2_OK);
        ck_assert_uint_ge(e.steps, SIZE);
        ck_assert_uint_lt(e.steps, 3 * SIZE);
        ds_encoder_free(&e);
        ds_free(ids.ids);
        ds_tokenizer_destroy(t);
        free(json);
    }
    free(text);
}
END_TEST

START_TEST(added_tokens_of_too_many_bytes_are_refused)
{
    enum { N = 9000, SIZE = 1000 };
    char *added = malloc((size_t)N * (SIZE + 100)), *json, *at = added;
    for (int i = 0; i < N; i++)
        at += sprintf(at, "%s{\"id\":%d,\"content\":\"%0*d\"}", i > 0 ? "," : "", FIRST_ID + i, SIZE, i);
    json = small_json(&(small_parts){.added = added});
    dsv2_tokenizer *t;
    ck_assert_int_eq(ds_tokenizer_from_json("tokenizer.json", json, strlen(json), &t), DSV2_ERROR_UNSUPPORTED);
    ck_assert_msg(strstr(dsv2_last_error(), "the added tokens have 9000000 bytes together") != NULL, "%s",
                  dsv2_last_error());
    free(json);
    free(added);
}
END_TEST

/* ---- expressions ---- */

#define STAGE(regex)                                                                                                   \
    "{\"type\":\"Sequence\",\"pretokenizers\":["                                                                       \
    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" regex "\"},\"behavior\":\"Isolated\"},"                            \
    "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}]}"

/* Runs of letters, up to 3,000 bytes long: several windows. */
static size_t make_runs(char *text, size_t room)
{
    static const char *const letters[] = {"a", "b", " ", "c", "\n", "中", "y", "\r\n"};
    size_t size = 0;
    for (;;) {
        const char *letter = letters[random_below(8)];
        for (uint32_t n = 1 + random_below(random_below(4) == 0 ? 1500 : 6); n > 0; n--) {
            if (size + strlen(letter) > room)
                return size;
            memcpy(text + size, letter, strlen(letter));
            size += strlen(letter);
        }
    }
}

/* Isolates the matches of an expression, each looked for in the whole text. */
static void split_all(const dsv2_tokenizer *t, const char *pattern, const char *text, size_t size, ds_ids *out)
{
    char *translated;
    uint32_t weight;
    size_t translated_size, done = 0, at = 0, last_end = SIZE_MAX;
    ck_assert_int_eq(ds_translate_pattern("x", pattern, strlen(pattern), &translated, &translated_size, &weight),
                     DSV2_OK);
    int error;
    PCRE2_SIZE where;
    pcre2_code *code = pcre2_compile((PCRE2_SPTR)translated, translated_size,
                                     PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NO_AUTO_CAPTURE, &error, &where,
                                     NULL);
    pcre2_match_data *data = pcre2_match_data_create(1, NULL);
    ds_encoder e = {.tokenizer = t, .out = out};
    while (at <= size && pcre2_match(code, (PCRE2_SPTR)text, size, at, 0, data, NULL) >= 0) {
        size_t begin = pcre2_get_ovector_pointer(data)[0], end = pcre2_get_ovector_pointer(data)[1];
        if (begin == end && end == last_end) {
            at = last_end + (last_end < size ? ds_utf8_length(text + last_end, size - last_end) : 1);
            continue;
        }
        if (begin > done)
            ck_assert_int_eq(ds_encode_piece(&e, text + done, begin - done), DSV2_OK);
        if (end > begin)
            ck_assert_int_eq(ds_encode_piece(&e, text + begin, end - begin), DSV2_OK);
        done = at = last_end = end;
    }
    if (done < size)
        ck_assert_int_eq(ds_encode_piece(&e, text + done, size - done), DSV2_OK);
    ds_encoder_free(&e);
    pcre2_match_data_free(data);
    pcre2_code_free(code);
    ds_free(translated);
}

static const struct {
    const char *json, *pattern;
} expressions[] = {
#define EXPRESSION(regex) {STAGE(regex), regex}
    {STAGE("\\\\s+$"), "\\s+$"},
    {STAGE("\\\\s+(?!\\\\S)|\\\\s+"), "\\s+(?!\\S)|\\s+"},
    {STAGE("\\\\s?\\\\p{L}+"), "\\s?\\p{L}+"},
    {STAGE("\\\\s*[\\r\\n]+| ?[^\\\\s\\\\p{L}]+"), "\\s*[\r\n]+| ?[^\\s\\p{L}]+"},
    EXPRESSION("[a-c]+(?=y)|b"),
    EXPRESSION("(?<=a)b+"),
    EXPRESSION("(?<!a)b"),
    EXPRESSION("(?:ab|a)+c|a"),
    EXPRESSION("a*"),
    EXPRESSION("^."),
    EXPRESSION("a+$|b+"),
    EXPRESSION("[ab]+ |b"),
    EXPRESSION("(?=[ab]*+c)a|(?:a|bc)+"),
    EXPRESSION("a*b*+ |(?<=a)[ab]|(?:c|a+b)*+y"),
    EXPRESSION("(?:(?=a*+b)a)+|b{1,40} |b{20}"),
};
enum { N_EXPRESSIONS = sizeof expressions / sizeof *expressions };

START_TEST(windows_change_no_piece)
{
    random_begin(31 + (unsigned)_i);
    /* Merges show where pieces end. */
    dsv2_tokenizer *t = open_parts(&(small_parts){
        .pre_tokenizer = expressions[_i].json,
        .vocab = ",\"aa\":256,\"aaaa\":257,\"bb\":258,\"ab\":259,\"ĠĠ\":260,\"ĊĊ\":261,\"Ġa\":262,\"aab\":263",
        .merges = "\"a a\",\"aa aa\",\"Ġ Ġ\",\"Ċ Ċ\",\"b b\",\"a b\",\"Ġ a\",\"aa b\""});
    for (int round = 0; round < 8; round++) {
        enum { SIZE = 6000 };
        char text[SIZE + 64] = {0};
        size_t size = make_runs(text, round == 0 ? 0 : SIZE);
        ds_ids ids = {0}, expected = {0};
        split_all(t, expressions[_i].pattern, text, size, &expected);
        ck_assert_msg(ds_encode(t, text, size, 0, &ids) == DSV2_OK, "%s", dsv2_last_error());
        ck_assert_uint_eq(ids.n, expected.n);
        ck_assert(ids.n == 0 || memcmp(ids.ids, expected.ids, ids.n * sizeof *ids.ids) == 0);
        ds_free(expected.ids);
        ds_free(ids.ids);
    }
    ds_tokenizer_destroy(t);
}
END_TEST

/* A window may end wherever a line does. */
START_TEST(the_beginning_of_a_line_is_found_wherever_a_window_ends)
{
    static const char *const patterns[] = {"a\n^", "a\n^b", "[a\n]*\n^b|\n^", "(?=a\n^)a|(?<=^)b"};
    static const char *const json[] = {STAGE("a\\n^"), STAGE("a\\n^b"), STAGE("[a\\n]*\\n^b|\\n^"),
                                       STAGE("(?=a\\n^)a|(?<=^)b")};
    enum { LEAST = 1015, MOST = 1035, SIZE = 3000 };
    dsv2_tokenizer *t = open_parts(&(small_parts){
        .pre_tokenizer = json[_i],
        .vocab = ",\"aa\":256,\"aĊ\":257,\"Ċb\":258,\"aĊb\":259,\"bb\":260,\"ĊĊ\":261",
        .merges = "\"Ċ b\",\"a Ċb\",\"a Ċ\",\"a a\",\"b b\",\"Ċ Ċ\""});
    for (size_t lines = 1; lines < 3; lines++)
        for (size_t n = LEAST; n <= MOST; n++) {
            char text[SIZE + 64] = {0}; /* PCRE2 reads on */
            memset(text, 'a', n);
            memset(text + n, '\n', lines);
            memset(text + n + lines, 'b', 100);
            for (size_t size = n + lines; size <= n + lines + 100; size += 100) {
                ds_ids ids = {0}, expected = {0};
                split_all(t, patterns[_i], text, size, &expected);
                ck_assert_msg(ds_encode(t, text, size, 0, &ids) == DSV2_OK, "%s", dsv2_last_error());
                ck_assert(ids.n == expected.n && memcmp(ids.ids, expected.ids, ids.n * sizeof *ids.ids) == 0);
                ds_free(expected.ids);
                ds_free(ids.ids);
            }
        }
    ds_tokenizer_destroy(t);
}
END_TEST

/* 256 times. */
#define MANY(s) FOUR(FOUR(FOUR(FOUR(s))))
#define FOUR(s) s s s s

/* Each looks from every place as far as the text goes, or tries many ways from there. */
START_TEST(expressions_that_look_too_far_are_given_up)
{
    static const char *const slow[] = {
        STAGE("(?:(?:a|b)*(?:c|d))*e|a"), STAGE("[^y]+y|x"), STAGE("a[^z]*y|a"), STAGE("(?:a|aa)+b|a"),
        STAGE("(?=[^z]*y)a|a"),           STAGE("a*b"),
        /* Each place looks over a run that a window holds, again and again. */
        STAGE("[ba]*[ac]*+x|[ab]"),       STAGE("(?=" MANY("a*+b|") "y)x|a"), STAGE(MANY("(?=a*+b)x|") "a"),
        STAGE("(?:(?=a*+z)a)*+x|a"),      STAGE(MANY("a{500}b|") "a"),
        /* Few choices and small braces, which together are many ways, each as long as what follows. */
        STAGE("a{0,16}a{0,16}a{0,15}(?!" MANY("a") "b)[12]|a"), STAGE("a{0,16}a{0,16}a{0,15}" MANY("a") "[bc]|a"),
        STAGE("a?a?a?a?a?a?a?a?a?a?" MANY("a") "[bc]|a"),       STAGE("a{0,16}a{0,16}a{0,16}a{0,16}b|a"),
    };
    enum { SIZE = 100000, WHOLE = 6, RUN = 900 };
    char *text = malloc(SIZE);
    for (size_t i = 0; i < SIZE; i++)
        text[i] = i == SIZE - 1 || (_i >= WHOLE && i % RUN == RUN - 1) ? 'z' : 'a';
    dsv2_tokenizer *t = open_parts(&(small_parts){.pre_tokenizer = slow[_i]});
    ds_ids ids = {0};
    ck_assert_int_eq(ds_encode(t, text, SIZE, 0, &ids), DSV2_ERROR_UNSUPPORTED);
    /* Too many steps, or too much memory. */
    static const char given_up[] = "tokenizer.json: pre_tokenizer: expression 0 cannot be matched in a text of ";
    ck_assert_msg(strstr(dsv2_last_error(), given_up) != NULL, "%s", dsv2_last_error());
    ids.n = 0;
    ck_assert_int_eq(ds_encode(t, text, 20, 0, &ids), DSV2_OK);
    ck_assert_uint_eq(ids.n, 20);
    ds_free(ids.ids);
    ds_tokenizer_destroy(t);
    free(text);
}
END_TEST

/* What published files have takes work in proportion to the text, whatever the text is. */
START_TEST(published_expressions_stay_within_a_texts_budget)
{
    static const char *const names[] = {"deepseek-llm", "deepseek-coder", "deepseek-v3", "gpt-2"};
    static const char *const units[] = {" ", "\n", "a", "中", "1", "!", "\t \n", " \r", "é", "'s ", "𝒳", "a中1!"};
    static const char *const ends[] = {"", "5", "x", "\n", "中"};
    enum { SIZE = 20000, ROOM = 64 };
    char *text = malloc(SIZE + ROOM);
    dsv2_tokenizer *t = open_parts(&(small_parts){0});
    ck_assert_int_eq(ds_add_named_stages(t, (ds_text){names[_i], strlen(names[_i])}), DSV2_OK);
    for (uint32_t i = 0; i < t->n_stages; i++)
        ck_assert_uint_eq(t->weights[i], 0); /* a matcher that counts is slower */
    for (size_t u = 0; u < sizeof units / sizeof *units; u++)
        for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
            size_t size = 0;
            while (size < SIZE)
                size += (size_t)sprintf(text + size, "%s", units[u]);
            size += (size_t)sprintf(text + size, "%s", ends[i]);
            ds_ids ids = {0};
            ds_encoder e = {.tokenizer = t, .out = &ids};
            ck_assert_msg(ds_encode_text(&e, text, size) == DSV2_OK, "%s: %s", units[u], dsv2_last_error());
            /* Not a byte was taken from what every text may do, however short. */
            ck_assert_uint_ge(e.work_left, 1 << 22);
            ck_assert_uint_ge(ids.n, size);
            ds_encoder_free(&e);
            ds_free(ids.ids);
        }
    ds_tokenizer_destroy(t);
    free(text);
}
END_TEST

/* ---- cancel ---- */

typedef struct watch {
    uint64_t reports, done, total, cancel_at; /* 0: never */
} watch;

static int look(void *user, dsv2_phase phase, uint64_t done, uint64_t total)
{
    watch *w = user;
    ck_assert_int_eq(phase, DSV2_PHASE_ENCODE);
    ck_assert(done >= w->done && done <= total && (w->reports == 0 || total == w->total));
    *w = (watch){w->reports + 1, done, total, w->cancel_at};
    return w->reports == w->cancel_at;
}

/* Words, one piece of a megabyte, many added tokens, an expression that gives up, one piece in which nothing merges, a
 * heavy expression. */
START_TEST(encoding_is_reported_and_cancelled_at_any_report)
{
    static const char *const stages[] = {STAGE("\\\\s?\\\\p{L}+"), NULL, NULL, STAGE("a[^z]*y|a"), NULL,
                                        STAGE("(?:a*+b)*+x|a")};
    enum { SIZE = 1 << 20 };
    char *text = malloc(SIZE);
    for (size_t i = 0; i < SIZE; i++)
        text[i] = _i == 4 ? 'z' : _i == 0 && i % 5 == 4 ? ' ' : _i == 2 && i % 2 == 1 ? 'b' : 'a';
    dsv2_tokenizer *t = open_parts(&(small_parts){.added = "{\"id\":300,\"content\":\"ab\"}",
                                                  .pre_tokenizer = stages[_i],
                                                  .vocab = ",\"aa\":256,\"aaaa\":257",
                                                  .merges = "\"a a\",\"aa aa\""});
    int32_t *tokens = malloc((2 * SIZE + 1) * sizeof *tokens), *plain = malloc((2 * SIZE + 1) * sizeof *plain);
    size_t n = 0, n_plain = 0;
    watch w = {0};
    dsv2_status status = dsv2_tokenizer_encode_watched(t, text, SIZE, 0, look, &w, tokens, 2 * SIZE + 1, &n);
    ck_assert_int_eq(status, dsv2_tokenizer_encode(t, text, SIZE, 0, plain, 2 * SIZE + 1, &n_plain));
    ck_assert_int_eq(status, _i == 3 || _i == 5 ? DSV2_ERROR_UNSUPPORTED : DSV2_OK);
    ck_assert(status != DSV2_OK || (w.done == SIZE && n == n_plain && memcmp(tokens, plain, n * sizeof *tokens) == 0));
    /* Looking for added tokens, which comes first, gives 16. */
    ck_assert_uint_ge(w.reports, _i == 1 || _i == 4 ? 16 + 32 : 8);
    uint64_t all = w.reports;
    for (uint64_t at = 1; at <= all; at += 1 + all / 8) {
        w = (watch){.cancel_at = at};
        tokens[0] = -7;
        n = 12345;
        ck_assert_int_eq(dsv2_tokenizer_encode_watched(t, text, SIZE, 0, look, &w, tokens, 2 * SIZE + 1, &n),
                         DSV2_ERROR_CANCELLED);
        ck_assert(w.reports == at && tokens[0] == -7 && n == 12345);
    }
    ck_assert_int_eq(dsv2_tokenizer_encode_watched(t, text, SIZE, 4, look, &w, tokens, 1, &n), DSV2_ERROR_ARGUMENT);
    ck_assert_int_eq(dsv2_tokenizer_encode_watched(t, NULL, 1, 0, look, &w, tokens, 1, &n), DSV2_ERROR_ARGUMENT);
    ck_assert_int_eq(dsv2_tokenizer_encode_watched(NULL, text, 1, 0, look, &w, tokens, 1, &n), DSV2_ERROR_ARGUMENT);
    ck_assert_int_eq(dsv2_tokenizer_encode_watched(t, "xyz", 3, 0, NULL, NULL, tokens, 2, &n), DSV2_ERROR_BUFFER);
    w = (watch){0};
    ck_assert_int_eq(dsv2_tokenizer_encode_watched(t, NULL, 0, 0, look, &w, NULL, 0, &n), DSV2_OK);
    ck_assert(n == 0 && w.reports == 1 && w.total == 0);
    free(plain);
    free(tokens);
    dsv2_tokenizer_close(t);
    free(text);
}
END_TEST

int main(void)
{
    TCase *tests = tcase_create("long texts");
    tcase_set_timeout(tests, 120);
    tcase_add_loop_test(tests, the_leftmost_and_longest_added_tokens_are_cut_out, 0, 4);
    tcase_add_loop_test(tests, a_text_takes_few_steps_a_byte_however_many_added_tokens_there_are, 0, 8);
    tcase_add_test(tests, added_tokens_of_too_many_bytes_are_refused);
    tcase_add_loop_test(tests, windows_change_no_piece, 0, N_EXPRESSIONS);
    tcase_add_loop_test(tests, the_beginning_of_a_line_is_found_wherever_a_window_ends, 0, 4);
    tcase_add_loop_test(tests, expressions_that_look_too_far_are_given_up, 0, 15);
    tcase_add_loop_test(tests, published_expressions_stay_within_a_texts_budget, 0, 4);
    tcase_add_loop_test(tests, encoding_is_reported_and_cancelled_at_any_report, 0, 6);
    Suite *suite = suite_create("long texts");
    suite_add_tcase(suite, tests);
    return test_run(suite);
}

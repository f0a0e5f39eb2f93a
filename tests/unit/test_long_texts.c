/* Texts and tokenizer files that would keep an encoder busy for hours. From outside it had been found that 999 added
 * tokens of different lengths take 32 s for 300 KB, and expressions that look far ahead 15 s for 100 KB. What is
 * counted here is steps, never time. */
#include "support/run.h"
#include "tokenizer/parts.h"
#include "unit/small_json.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t random_state;

static uint32_t random_below(uint32_t bound)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 32) % bound;
}

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
static int longest(const added_token *tokens, int n, bool early, bool special, const char *text)
{
    int best = -1;
    for (int i = 0; i < n; i++)
        if (tokens[i].early == early && (special || !tokens[i].special) &&
            strncmp(text, tokens[i].text, strlen(tokens[i].text)) == 0 &&
            (best < 0 || strlen(tokens[i].text) > strlen(tokens[best].text)))
            best = i;
    return best;
}

/* Looks at every token at every place. `size` bytes of text, in which late tokens are looked for. */
static void cut_late(const added_token *tokens, int n, bool special, const char *text, size_t size, ds_ids *out)
{
    char part[512];
    memcpy(part, text, size);
    part[size] = '\0';
    for (size_t i = 0; i < size;) {
        int found = longest(tokens, n, false, special, part + i);
        ck_assert_int_eq(ds_push(out, found < 0 ? (uint8_t)part[i] : FIRST_ID + found), DSV2_OK);
        i += found < 0 ? 1 : strlen(tokens[found].text);
    }
}

static void cut_all(const added_token *tokens, int n, bool special, const char *text, ds_ids *out)
{
    size_t done = 0, i = 0;
    while (text[i] != '\0') {
        int found = longest(tokens, n, true, special, text + i);
        if (found < 0) {
            i++;
            continue;
        }
        cut_late(tokens, n, special, text + done, i - done, out);
        ck_assert_int_eq(ds_push(out, FIRST_ID + found), DSV2_OK);
        done = i += strlen(tokens[found].text);
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
    random_state = 4711 + (unsigned)_i;
    for (int round = 0; round < 60; round++) {
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

int main(void)
{
    TCase *tests = tcase_create("long texts");
    tcase_set_timeout(tests, 120);
    tcase_add_loop_test(tests, the_leftmost_and_longest_added_tokens_are_cut_out, 0, 4);
    tcase_add_loop_test(tests, a_text_takes_few_steps_a_byte_however_many_added_tokens_there_are, 0, 8);
    tcase_add_test(tests, added_tokens_of_too_many_bytes_are_refused);
    Suite *suite = suite_create("long texts");
    suite_add_tcase(suite, tests);
    return test_run(suite);
}

/* The tokenizer: ids are Hugging Face's for the same file, any bytes come back, prompts are DeepSeek's to the byte.
 * Files that are damaged, or ask for what the library does not do, are refused by name. */
#include "support/data.h"
#include "support/random.h"
#include "support/run.h"
#include "tokenizer/tokenizer.h"
#include "unit/folder.h"
#include "unit/small_json.h"

#include <check.h>
#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- tokenizers under test ---- */

enum { LLM, CODER, SMALL, V3, N_TOKENIZERS };
static const char *const names[N_TOKENIZERS] = {"deepseek-llm", "deepseek-coder", "small", "v3"};

static json_t *huggingface; /* made by data/tokenizer/make_huggingface.py */
static dsv2_tokenizer *tokenizers[N_TOKENIZERS];

static dsv2_tokenizer *from_json(const char *json, size_t size)
{
    dsv2_tokenizer *t = NULL;
    ck_assert_msg(ds_tokenizer_from_json("tokenizer.json", json, size, &t) == DSV2_OK, "%s", dsv2_last_error());
    return t;
}

static char *read_json(int which, size_t *size)
{
    char name[64];
    snprintf(name, sizeof name, "tokenizer/%s.json.zst", names[which == V3 ? LLM : which]);
    return data_read(name, size);
}

/* DeepSeek-V3's expressions and marks in the file of deepseek-llm. */
static char *make_v3(const char *llm, size_t size)
{
    json_t *root = json_loadb(llm, size, 0, NULL), *changes = json_object_get(huggingface, "v3");
    ck_assert_ptr_nonnull(root);
    json_object_set(root, "pre_tokenizer", json_object_get(changes, "pre_tokenizer"));
    json_array_extend(json_object_get(root, "added_tokens"), json_object_get(changes, "added_tokens"));
    char *text = json_dumps(root, JSON_COMPACT);
    json_decref(root);
    return text;
}

static void open_all(void)
{
    size_t size;
    char *text = data_read("tokenizer/huggingface.json", &size);
    huggingface = json_loadb(text, size, JSON_ALLOW_NUL, NULL);
    ck_assert_ptr_nonnull(huggingface);
    free(text);
    for (int i = 0; i < N_TOKENIZERS; i++) {
        char *json = read_json(i, &size);
        if (i == V3) {
            char *changed = make_v3(json, size);
            free(json);
            json = changed;
            size = strlen(json);
        }
        tokenizers[i] = from_json(json, size);
        free(json);
    }
}

static void close_all(void)
{
    for (int i = 0; i < N_TOKENIZERS; i++)
        dsv2_tokenizer_close(tokenizers[i]);
    json_decref(huggingface);
}

/* ---- helpers ---- */

/* Encodes into memory to be freed. No byte takes more than two tokens. */
static int32_t *encode(const dsv2_tokenizer *t, const char *text, size_t size, uint32_t flags, size_t *n)
{
    size_t capacity = 2 * size + 1;
    int32_t *ids = malloc(capacity * sizeof *ids);
    ck_assert_msg(dsv2_tokenizer_encode(t, text, size, flags, ids, capacity, n) == DSV2_OK, "%s", dsv2_last_error());
    return ids;
}

static void check_ids(const char *what, const int32_t *ids, size_t n, const int32_t *expected, size_t n_expected)
{
    for (size_t i = 0; i < n && i < n_expected; i++)
        ck_assert_msg(ids[i] == expected[i], "%s: id %zu is %d, expected %d", what, i, ids[i], expected[i]);
    ck_assert_msg(n == n_expected, "%s: %zu ids, expected %zu", what, n, n_expected);
}

/* The ids of a JSON array, to be freed. */
static int32_t *array_ids(const json_t *array, size_t *n)
{
    *n = json_array_size(array);
    int32_t *ids = malloc((*n + 1) * sizeof *ids);
    for (size_t i = 0; i < *n; i++)
        ids[i] = (int32_t)json_integer_value(json_array_get(array, i));
    return ids;
}

static void check_round_trip(const dsv2_tokenizer *t, const char *what, const char *text, size_t size)
{
    size_t n, back_size;
    int32_t *ids = encode(t, text, size, 0, &n);
    char *back = malloc(size + 16);
    ck_assert_msg(dsv2_tokenizer_decode(t, ids, n, 0, back, size + 16, &back_size) == DSV2_OK, "%s", dsv2_last_error());
    ck_assert_msg(back_size == size && memcmp(back, text, size) == 0, "%s does not come back: %zu bytes, then %zu",
                  what, size, back_size);
    free(back);
    free(ids);
}

/* ---- ids ---- */

/* llama.cpp's own test cases for these vocabularies. */
static void check_published_cases(const dsv2_tokenizer *t, const char *name)
{
    static const char separator[] = "\n__ggml_vocab_test__\n";
    char file[64];
    size_t size, expected_size, n_cases = 0;
    snprintf(file, sizeof file, "tokenizer/%s.out", name);
    char *texts = data_read("tokenizer/cases.inp", &size), *expected = data_read(file, &expected_size);
    const char *text = texts;
    for (char *line = expected, *next; *line != '\0'; line = next) {
        next = strchr(line, '\n');
        *next++ = '\0';
        const char *end = strstr(text, separator);
        size_t length = end == NULL ? strlen(text) : (size_t)(end - text), n, n_expected = 0;
        int32_t *ids = encode(t, text, length, 0, &n), wanted[2048];
        for (char *at = line, *after; wanted[n_expected] = (int32_t)strtol(at, &after, 10), after != at; at = after)
            n_expected++;
        check_ids(text, ids, n, wanted, n_expected);
        free(ids);
        check_round_trip(t, "a published case", text, length);
        text = end == NULL ? "" : end + sizeof separator - 1;
        n_cases++;
    }
    ck_assert_uint_eq(n_cases, 46);
    free(expected);
    free(texts);
}

START_TEST(published_cases_from_json)
{
    check_published_cases(tokenizers[_i], names[_i]);
}
END_TEST

START_TEST(ids_are_those_of_hugging_face)
{
    const json_t *lists = json_object_get(json_object_get(huggingface, "ids"), names[_i]);
    size_t index;
    json_t *text;
    json_array_foreach(json_object_get(huggingface, "texts"), index, text) {
        size_t n, n_expected;
        int32_t *ids =
            encode(tokenizers[_i], json_string_value(text), json_string_length(text), DSV2_ENCODE_SPECIAL, &n);
        int32_t *expected = array_ids(json_array_get(lists, index), &n_expected);
        check_ids(json_string_value(text), ids, n, expected, n_expected);
        free(expected);
        free(ids);
        check_round_trip(tokenizers[_i], json_string_value(text), json_string_value(text), json_string_length(text));
    }
    ck_assert_uint_gt(index, 50);
}
END_TEST

START_TEST(vocabulary_facts)
{
    static const dsv2_tokenizer_info expected[N_TOKENIZERS] = {
        {0, 100015, 99757, 2, 100000, 100001, -1, -1, -1, "v2"},
        {0, 32022, 31757, 8, 32013, 32014, 32016, 32015, 32017, "v2"},
        {0, 4096, 3838, 2, 4095, 4095, -1, -1, -1, ""},
        {0, 100020, 99757, 7, 100000, 100001, 100016, 100015, 100017, "v2.5"},
    };
    dsv2_tokenizer_info info = {.struct_size = sizeof info}, wanted = expected[_i];
    ck_assert_int_eq(dsv2_tokenizer_get_info(tokenizers[_i], &info), DSV2_OK);
    wanted.struct_size = sizeof info;
    ck_assert_mem_eq(&info, &wanted, sizeof info);
}
END_TEST

/* Bytes for which DeepSeek's vocabularies have no token, and the ü that is spelled as one of them. */
START_TEST(bytes_without_a_token_are_pairs)
{
    static const struct {
        const char *text;
        size_t n;
        int32_t ids[4]; /* 240 for the token of 0xf4 */
    } cases[] = {
        {"ü", 1, {100014}},
        {"\xfc", 2, {240, 100014}},
        {"\xf4\xfc", 3, {240, 240, 100014}},
        {"ü\xfcü", 4, {100014, 240, 100014, 100014}},
        {"\xf4ü", 2, {240, 2874}}, /* the ü by its bytes, so that the pair stays free */
    };
    int32_t lone;
    const dsv2_tokenizer *t = tokenizers[LLM];
    ck_assert_int_eq(dsv2_tokenizer_find(t, "\xf4", 1, &lone), DSV2_OK);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t n;
        int32_t *ids = encode(t, cases[i].text, strlen(cases[i].text), 0, &n), wanted[4];
        for (size_t k = 0; k < cases[i].n; k++)
            wanted[k] = cases[i].ids[k] == 240 ? lone : cases[i].ids[k];
        check_ids(cases[i].text, ids, n, wanted, cases[i].n);
        free(ids);
        check_round_trip(t, cases[i].text, cases[i].text, strlen(cases[i].text));
    }
}
END_TEST

START_TEST(any_bytes_come_back)
{
    static const char *const words[] = {"ü", "\xf4", "\xc3", "\xff", " the", "  \n", "12", "中", "<|EOT|>", "<｜User｜>",
                                        "<｜end▁of▁sentence｜>", "õ", "\xf0\x9f", "\xe4\xb8", "<pad>", "\r\n"};
    random_begin(0x2545f4914f6cdd1du + (unsigned)_i);
    for (unsigned round = 0; round < 2000; round++) {
        char text[300];
        size_t size = 0, wanted = random_below(200);
        unsigned kind = random_below(4);
        while (size < wanted) {
            const char *word = words[random_below(sizeof words / sizeof *words)];
            if (kind == 0 || (kind == 1 && random_below(2) == 0)) {
                text[size++] = (char)random_below(256);
            } else if (kind == 3) {
                text[size++] = "\xf4\xfc\xc3\xbc"[random_below(4)];
            } else {
                memcpy(text + size, word, strlen(word));
                size += strlen(word);
            }
        }
        check_round_trip(tokenizers[_i], "a random text", text, size);
    }
}
END_TEST

/* Long texts that no expression splits, or that every one does. The test must end in time. */
START_TEST(a_megabyte_without_a_space)
{
    static const struct {
        const char *unit;
        size_t size;
    } cases[] = {{"a", 1 << 20},  {"zqxj", 1 << 20}, {" ", 1 << 20},        {"中", 1 << 20},
                 {"\n", 1 << 18}, {"𝔸", 1 << 18},    {"1", 1 << 18},        {"!", 1 << 18},
                 {"ü", 1 << 18},  {"\xff", 1 << 18}, {"\xf4\xfc", 1 << 18}, {"\t\xe4\xb8", 1 << 18}};
    char *text = malloc(1 << 20);
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        size_t length = strlen(cases[c].unit);
        for (size_t i = 0; i < cases[c].size; i++)
            text[i] = cases[c].unit[i % length];
        text[cases[c].size - 1] = 'x'; /* so that white space does not end the text */
        check_round_trip(tokenizers[_i], cases[c].unit, text, cases[c].size);
    }
    random_begin(99);
    for (size_t i = 0; i < 1 << 20; i++)
        text[i] = (char)('a' + random_below(26));
    check_round_trip(tokenizers[_i], "random letters", text, 1 << 20);
    free(text);
}
END_TEST

/* Merging done as the definition says, over tokens a to d and their merges. */
typedef struct toy {
    char spelled[64][24];
    size_t n, n_merges;
    size_t left[64], right[64], merged[64];
} toy;

static size_t toy_token(toy *t, const char *a, const char *b)
{
    char both[24];
    ck_assert_uint_lt(strlen(a) + strlen(b), sizeof both);
    strcat(strcpy(both, a), b);
    for (size_t i = 0; i < t->n; i++)
        if (strcmp(t->spelled[i], both) == 0)
            return i;
    strcpy(t->spelled[t->n], both);
    return t->n++;
}

static size_t toy_encode(const toy *t, const char *text, size_t size, size_t *ids)
{
    size_t n = size;
    for (size_t i = 0; i < size; i++)
        ids[i] = (size_t)(text[i] - 'a');
    for (;;) {
        size_t best = t->n_merges, at = 0;
        for (size_t i = 0; i + 1 < n; i++)
            for (size_t m = 0; m < best; m++)
                if (ids[i] == t->left[m] && ids[i + 1] == t->right[m]) {
                    best = m;
                    at = i;
                }
        if (best == t->n_merges)
            return n;
        ids[at] = t->merged[best];
        memmove(&ids[at + 1], &ids[at + 2], (n - at - 2) * sizeof *ids);
        n--;
    }
}

START_TEST(merging_follows_the_definition)
{
    random_begin(1000 + (unsigned)_i);
    toy t = {.spelled = {"a", "b", "c", "d"}, .n = 4};
    for (size_t i = 0; i < 30; i++) {
        size_t left = random_below((uint32_t)t.n), right = random_below((uint32_t)t.n), m = 0;
        if (strlen(t.spelled[left]) + strlen(t.spelled[right]) > 20)
            continue;
        while (m < t.n_merges && (t.left[m] != left || t.right[m] != right))
            m++;
        if (m < t.n_merges)
            continue;
        t.left[m] = left;
        t.right[m] = right;
        t.merged[m] = toy_token(&t, t.spelled[left], t.spelled[right]);
        t.n_merges++;
    }
    char vocab[4096] = "", merges[4096] = "";
    for (size_t i = 4; i < t.n; i++)
        sprintf(vocab + strlen(vocab), ",\"%s\":%zu", t.spelled[i], 256 + i);
    for (size_t i = 0; i < t.n_merges; i++)
        sprintf(merges + strlen(merges), "%s\"%s %s\"", i > 0 ? "," : "", t.spelled[t.left[i]], t.spelled[t.right[i]]);
    char *json = small_json(&(small_parts){.vocab = vocab, .merges = merges});
    dsv2_tokenizer *tokenizer = from_json(json, strlen(json));
    free(json);
    for (unsigned round = 0; round < 300; round++) {
        char text[200];
        size_t ids[200], size = 1 + random_below(sizeof text - 1), n;
        for (size_t i = 0; i < size; i++)
            text[i] = (char)('a' + random_below(4));
        size_t n_expected = toy_encode(&t, text, size, ids);
        int32_t *got = encode(tokenizer, text, size, 0, &n), wanted[200];
        for (size_t i = 0; i < n_expected; i++)
            wanted[i] = ids[i] < 4 ? (int32_t)('a' + ids[i]) : (int32_t)(256 + ids[i]);
        check_ids("a toy text", got, n, wanted, n_expected);
        free(got);
    }
    dsv2_tokenizer_close(tokenizer);
}
END_TEST

static void *encode_many(void *argument)
{
    size_t size, *sum = argument;
    char *texts = data_read("tokenizer/cases.inp", &size);
    for (unsigned round = 0; round < 20; round++) {
        size_t n;
        int32_t *ids = encode(tokenizers[LLM], texts, size, 0, &n);
        for (size_t i = 0; i < n; i++)
            *sum += (size_t)ids[i] * (i + 1);
        free(ids);
    }
    free(texts);
    return NULL;
}

START_TEST(threads_share_a_tokenizer)
{
    pthread_t threads[4];
    size_t sums[4] = {0};
    for (size_t i = 0; i < 4; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, encode_many, &sums[i]), 0);
    for (size_t i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    for (size_t i = 1; i < 4; i++)
        ck_assert_uint_eq(sums[i], sums[0]);
}
END_TEST

/* ---- special tokens and prompts ---- */

START_TEST(text_becomes_a_special_token_only_if_the_host_says_so)
{
    static const char *const spellings[] = {"<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜fim▁hole｜>"};
    const dsv2_tokenizer *t = tokenizers[V3];
    for (size_t i = 0; i < sizeof spellings / sizeof *spellings; i++) {
        size_t n, size = strlen(spellings[i]);
        int32_t token;
        ck_assert_int_eq(dsv2_tokenizer_find(t, spellings[i], size, &token), DSV2_OK);
        ck_assert_int_ge(token, 0);
        int32_t *ids = encode(t, spellings[i], size, DSV2_ENCODE_SPECIAL, &n);
        check_ids(spellings[i], ids, n, &token, 1);
        char text[64];
        size_t text_size;
        ck_assert_int_eq(dsv2_tokenizer_decode(t, ids, n, 0, text, sizeof text, &text_size), DSV2_OK);
        ck_assert_uint_eq(text_size, 0);
        ck_assert_int_eq(dsv2_tokenizer_decode(t, ids, n, DSV2_DECODE_SPECIAL, text, sizeof text, &text_size), DSV2_OK);
        ck_assert_uint_eq(text_size, size);
        ck_assert_mem_eq(text, spellings[i], size);
        free(ids);
        ids = encode(t, spellings[i], size, 0, &n);
        ck_assert_uint_gt(n, 1);
        for (size_t k = 0; k < n; k++)
            ck_assert_int_ne(ids[k], token);
        free(ids);
    }
}
END_TEST

START_TEST(beginning_of_sequence_on_request)
{
    static const int32_t bos[] = {100000, 32013, 4095, 100000};
    for (int i = 0; i < N_TOKENIZERS; i++) {
        size_t n, n_plain;
        int32_t *ids = encode(tokenizers[i], "Hello", 5, DSV2_ENCODE_BOS, &n);
        int32_t *plain = encode(tokenizers[i], "Hello", 5, 0, &n_plain);
        ck_assert_int_eq(ids[0], bos[i]);
        check_ids("after BOS", ids + 1, n - 1, plain, n_plain);
        free(plain);
        free(ids);
    }
}
END_TEST

enum { MAX_MESSAGES = 8, MAX_IDS = 512 };

static size_t read_chat(const json_t *chat, dsv2_message *messages)
{
    size_t index;
    json_t *message;
    json_array_foreach(chat, index, message) messages[index] =
        (dsv2_message){json_string_value(json_array_get(message, 0)), json_string_value(json_array_get(message, 1)),
                       json_string_length(json_array_get(message, 1))};
    return index;
}

static size_t chat(const dsv2_tokenizer *t, const dsv2_message *messages, size_t n, size_t first, int32_t *ids)
{
    size_t n_ids;
    ck_assert_msg(dsv2_chat_encode(t, messages, n, first, ids, MAX_IDS, &n_ids) == DSV2_OK, "%s", dsv2_last_error());
    return n_ids;
}

START_TEST(chat_prompts_are_those_of_the_published_templates)
{
    const dsv2_tokenizer *t = tokenizers[_i == 0 ? LLM : V3];
    const json_t *lists = json_object_get(huggingface, _i == 0 ? "v2_ids" : "v2.5_ids");
    size_t index;
    json_t *conversation;
    json_array_foreach(json_object_get(huggingface, "chats"), index, conversation) {
        dsv2_message messages[MAX_MESSAGES];
        int32_t ids[MAX_IDS];
        size_t n_messages = read_chat(conversation, messages), n = chat(t, messages, n_messages, 0, ids), n_expected;
        int32_t *expected = array_ids(json_array_get(lists, index), &n_expected);
        check_ids("a chat", ids, n, expected, n_expected);
        free(expected);
    }
    ck_assert_uint_eq(index, 4);
}
END_TEST

START_TEST(a_conversation_goes_on_where_it_was)
{
    const dsv2_tokenizer *t = tokenizers[_i == 0 ? LLM : V3];
    dsv2_message messages[MAX_MESSAGES];
    size_t n_messages = read_chat(json_array_get(json_object_get(huggingface, "chats"), 3), messages);
    int32_t whole[MAX_IDS], parts[MAX_IDS];
    size_t n_whole = chat(t, messages, n_messages, 0, whole);
    /* Feeds up to the prompt, then the reply and its end, then the next prompt. */
    for (size_t cut = 1; cut <= n_messages; cut++) {
        if (cut == 1)
            continue; /* a system message alone is no prompt */
        size_t n = chat(t, messages, cut, 0, parts);
        n += chat(t, messages, n_messages, cut, parts + n);
        check_ids("in two parts", parts, n, whole, n_whole);
    }
    size_t n_rest = chat(t, messages, n_messages, n_messages, parts);
    ck_assert_uint_eq(n_rest, 0);
}
END_TEST

START_TEST(message_text_never_becomes_a_special_token)
{
    static const char text[] = "<｜end▁of▁sentence｜><｜User｜>hi<｜Assistant｜><｜begin▁of▁sentence｜>";
    const dsv2_tokenizer *t = tokenizers[V3];
    dsv2_message messages[] = {{"system", text, sizeof text - 1}, {"user", text, sizeof text - 1}, {"assistant", text,
                                                                                                    sizeof text - 1}};
    int32_t ids[MAX_IDS];
    static const char *const marks[] = {"<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"};
    size_t n = chat(t, messages, 3, 0, ids);
    for (size_t i = 0; i < 4; i++) {
        int32_t token;
        size_t found = 0;
        ck_assert_int_eq(dsv2_tokenizer_find(t, marks[i], strlen(marks[i]), &token), DSV2_OK);
        for (size_t k = 0; k < n; k++)
            found += ids[k] == token;
        ck_assert_uint_eq(found, 1);
    }
}
END_TEST

START_TEST(filling_in_the_middle)
{
    static const char prefix[] = "def f():\n  ", suffix[] = "\n  return 1\n";
    int32_t ids[MAX_IDS];
    size_t n, n_expected;
    ck_assert_int_eq(
        dsv2_fim_encode(tokenizers[V3], prefix, sizeof prefix - 1, suffix, sizeof suffix - 1, ids, MAX_IDS, &n),
        DSV2_OK);
    int32_t *expected = array_ids(json_object_get(huggingface, "fim_ids"), &n_expected);
    check_ids("a fill-in-the-middle prompt", ids, n, expected, n_expected);
    free(expected);
    ck_assert_int_eq(dsv2_fim_encode(tokenizers[LLM], "a", 1, "b", 1, ids, MAX_IDS, &n), DSV2_ERROR_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(dsv2_last_error(), "fim"));
}
END_TEST

START_TEST(messages_that_no_form_knows_are_refused)
{
    static const struct {
        const char *roles[4];
        size_t n, first;
        const char *message;
    } cases[] = {
        {{"user", "tool"}, 2, 0, "\"tool\" is none of system, user, assistant"},
        {{NULL}, 1, 0, "messages[0].role is NULL"},
        {{"user"}, 0, 0, "no message"},
        {{"user"}, 1, 2, "first is 2"},
    };
    static const int which[] = {LLM, V3};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dsv2_message messages[4];
        for (size_t k = 0; k < 4; k++)
            messages[k] = (dsv2_message){cases[i].roles[k], "x", 1};
        for (size_t k = 0; k < 2; k++) {
            size_t n = 77;
            ck_assert_int_eq(dsv2_chat_encode(tokenizers[which[k]], messages, cases[i].n, cases[i].first, NULL, 0, &n),
                             DSV2_ERROR_ARGUMENT);
            ck_assert_msg(strstr(dsv2_last_error(), cases[i].message) != NULL, "\"%s\" lacks \"%s\"",
                          dsv2_last_error(), cases[i].message);
            ck_assert_uint_eq(n, 77);
        }
    }
}
END_TEST

/* ---- the calling conventions ---- */

START_TEST(a_buffer_too_small_is_left_alone)
{
    const dsv2_tokenizer *t = tokenizers[LLM];
    int32_t ids[4] = {-7, -7, -7, -7};
    size_t n = 0, size = 0;
    ck_assert_int_eq(dsv2_tokenizer_encode(t, "1234", 4, 0, NULL, 0, &n), DSV2_OK);
    ck_assert_uint_eq(n, 4);
    n = 0;
    ck_assert_int_eq(dsv2_tokenizer_encode(t, "1234", 4, 0, ids, 3, &n), DSV2_ERROR_BUFFER);
    ck_assert_uint_eq(n, 4);
    ck_assert_int_eq(ids[0], -7);
    ck_assert_int_eq(dsv2_tokenizer_encode(t, "1234", 4, 0, ids, 4, &n), DSV2_OK);
    char text[4] = "****";
    ck_assert_int_eq(dsv2_tokenizer_decode(t, ids, 4, 0, text, 3, &size), DSV2_ERROR_BUFFER);
    ck_assert_uint_eq(size, 4);
    ck_assert_mem_eq(text, "****", 4);
    ck_assert_int_eq(dsv2_tokenizer_decode(t, ids, 4, 0, NULL, 0, &size), DSV2_OK);
    ck_assert_uint_eq(size, 4);
    ck_assert_int_eq(dsv2_tokenizer_decode(t, ids, 4, 0, text, 4, &size), DSV2_OK);
    ck_assert_mem_eq(text, "1234", 4);
    ck_assert_int_eq(dsv2_tokenizer_encode(t, NULL, 0, 0, ids, 4, &n), DSV2_OK);
    ck_assert_uint_eq(n, 0);
    ck_assert_int_eq(dsv2_tokenizer_decode(t, NULL, 0, 0, NULL, 0, &size), DSV2_OK);
    ck_assert_uint_eq(size, 0);
}
END_TEST

#define REFUSED(call, words)                                                                                           \
    do {                                                                                                               \
        ck_assert_int_eq(call, DSV2_ERROR_ARGUMENT);                                                                   \
        ck_assert_msg(strstr(dsv2_last_error(), words) != NULL, "\"%s\" lacks \"%s\"", dsv2_last_error(), words);      \
    } while (0)

START_TEST(wrong_arguments_are_refused)
{
    const dsv2_tokenizer *t = tokenizers[SMALL];
    dsv2_tokenizer *opened;
    int32_t ids[8], id;
    size_t n;
    char text[8];
    const char *of_token;
    dsv2_message message = {"user", NULL, 3};
    dsv2_tokenizer_info info = {.struct_size = 8};
    REFUSED(dsv2_tokenizer_open(NULL, &opened), "path");
    REFUSED(dsv2_tokenizer_open("x", NULL), "tokenizer");
    REFUSED(dsv2_tokenizer_encode(NULL, "a", 1, 0, ids, 8, &n), "tokenizer");
    REFUSED(dsv2_tokenizer_encode(t, NULL, 1, 0, ids, 8, &n), "text");
    REFUSED(dsv2_tokenizer_encode(t, "a", 1, 4, ids, 8, &n), "flags");
    REFUSED(dsv2_tokenizer_encode(t, "a", 1, 0, NULL, 8, &n), "buffer");
    REFUSED(dsv2_tokenizer_encode(t, "a", 1, 0, ids, 8, NULL), "length");
    REFUSED(dsv2_tokenizer_encode(t, "a", (size_t)1 << 31, 0, ids, 8, &n), "2 GiB");
    REFUSED(dsv2_tokenizer_decode(NULL, ids, 0, 0, text, 8, &n), "tokenizer");
    REFUSED(dsv2_tokenizer_decode(t, NULL, 1, 0, text, 8, &n), "tokens");
    REFUSED(dsv2_tokenizer_decode(t, ids, 0, 2, text, 8, &n), "flags");
    REFUSED(dsv2_tokenizer_decode(t, ids, 0, 0, NULL, 8, &n), "buffer");
    REFUSED(dsv2_tokenizer_decode(t, (int32_t[]){5, 1 << 20}, 2, 0, text, 8, &n), "tokens[1] is 1048576, expected 0");
    REFUSED(dsv2_tokenizer_decode(t, (int32_t[]){-1}, 1, 0, text, 8, &n), "tokens[0] is -1");
    REFUSED(dsv2_token_text(t, 1 << 20, &of_token, &n), "token is 1048576");
    REFUSED(dsv2_token_text(t, -1, &of_token, &n), "token is -1");
    REFUSED(dsv2_token_text(NULL, 0, &of_token, &n), "tokenizer");
    REFUSED(dsv2_tokenizer_get_info(t, &info), "struct_size");
    REFUSED(dsv2_tokenizer_get_info(t, NULL), "NULL");
    REFUSED(dsv2_tokenizer_get_info(NULL, &info), "tokenizer");
    REFUSED(dsv2_tokenizer_find(t, NULL, 1, &id), "text");
    REFUSED(dsv2_tokenizer_find(t, "a", 1, NULL), "token");
    REFUSED(dsv2_chat_encode(NULL, &message, 1, 0, ids, 8, &n), "tokenizer");
    REFUSED(dsv2_chat_encode(t, NULL, 1, 0, ids, 8, &n), "messages");
    REFUSED(dsv2_chat_encode(t, &message, 1, 0, ids, 8, &n), "messages[0].content");
    REFUSED(dsv2_fim_encode(t, NULL, 1, "", 0, ids, 8, &n), "prefix");
    REFUSED(dsv2_fim_encode(t, "", 0, NULL, 1, ids, 8, &n), "suffix");
    dsv2_tokenizer_close(NULL);
}
END_TEST

START_TEST(tokens_tell_their_bytes)
{
    static const struct {
        int32_t token;
        const char *text;
    } cases[] = {{100014, "ü"}, {100000, "<｜begin▁of▁sentence｜>"}, {37727, " Hello"}, {185, "\n"}, {1843, " world"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *text;
        size_t size;
        int32_t token;
        ck_assert_int_eq(dsv2_token_text(tokenizers[LLM], cases[i].token, &text, &size), DSV2_OK);
        ck_assert_uint_eq(size, strlen(cases[i].text));
        ck_assert_mem_eq(text, cases[i].text, size);
        ck_assert_int_eq(dsv2_tokenizer_find(tokenizers[LLM], text, size, &token), DSV2_OK);
        ck_assert_int_eq(token, cases[i].token);
    }
    int32_t none;
    ck_assert_int_eq(dsv2_tokenizer_find(tokenizers[LLM], "no such token", 13, &none), DSV2_OK);
    ck_assert_int_eq(none, -1);
}
END_TEST

START_TEST(streams_are_cut_between_characters)
{
    static const struct {
        const char *text;
        size_t complete;
    } cases[] = {
        {"", 0},
        {"a", 1},
        {"a\xc3", 1},
        {"a\xc3\xbc", 3},
        {"\xe4", 0},
        {"\xe4\xb8", 0},
        {"\xe4\xb8\xad", 3},
        {"\xf0\x9f\x9a", 0},
        {"\xf0\x9f\x9a\x80", 4},
        {"x\xf0", 1},
        {"x\xf0\x9f", 1},
        {"\xff", 1},
        {"\xc0", 1},
        {"\xc1\x80", 2},
        {"\xf5", 1},
        {"\xe0\x80", 2},
        {"\xed\xa0", 2},
        {"\xf0\x80", 2},
        {"\xf4\x90", 2},
        {"\xe4\xb8\x61", 3},
        {"\x80\x80\x80\x80", 4},
        {"\xe4\xe4\xb8", 1},
        {"\xf4\x8f\xbf", 0},
        {"\xed\x9f", 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        ck_assert_msg(dsv2_utf8_complete(cases[i].text, strlen(cases[i].text)) == cases[i].complete, "case %zu: %zu", i,
                      dsv2_utf8_complete(cases[i].text, strlen(cases[i].text)));
    ck_assert_uint_eq(dsv2_utf8_complete(NULL, 0), 0);
}
END_TEST

/* ---- a folder ---- */

static dsv2_tokenizer *open_folder(const char *config)
{
    char *json = small_json(&(small_parts){
        .added = "{\"id\":300,\"content\":\"<s>\",\"special\":true},{\"id\":301,\"content\":\"</s>\",\"special\":true},"
                 "{\"id\":302,\"content\":\"<｜User｜>\"},{\"id\":303,\"content\":\"<｜Assistant｜>\"}"});
    folder_write("tokenizer.json", json, strlen(json));
    free(json);
    if (config != NULL)
        folder_write("tokenizer_config.json", config, strlen(config));
    dsv2_tokenizer *t = NULL;
    dsv2_status status = dsv2_tokenizer_open(folder_path(), &t);
    ck_assert(status == DSV2_OK || t == NULL);
    return t;
}

START_TEST(tokenizer_config_names_the_special_tokens)
{
    static const struct {
        const char *config; /* NULL: none */
        int32_t bos, eos;
        const char *chat_form; /* NULL: refused */
        const char *message;
    } cases[] = {
        {NULL, 300, 301, "v2.5", ""},
        {"{}", 300, 301, "v2.5", ""},
        {"{\"bos_token\":\"</s>\",\"eos_token\":{\"content\":\"<s>\"}}", 301, 300, "v2.5", ""},
        {"{\"bos_token\":null,\"chat_template\":\"{{'User: ' + x}}\"}", 300, 301, "v2", ""},
        {"{\"chat_template\":\"{{'<｜User｜>' + x}}\"}", 300, 301, "v2.5", ""},
        {"{\"chat_template\":[{\"name\":\"tool\",\"template\":\"\"},{\"name\":\"default\",\"template\":\"User: \"}]}",
         300, 301, "v2", ""},
        {"{\"bos_token\":\"<x>\"}", 0, 0, NULL, "bos_token is \"<x>\", which is not in the vocabulary"},
        {"{\"eos_token\":7}", 0, 0, NULL, "eos_token is an integer, expected a string"},
        {"{\"eos_token\":", 0, 0, NULL, "tokenizer_config.json: line 1"},
        {"[]", 0, 0, NULL, "tokenizer_config.json: is an array"},
    };
    folder_make();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dsv2_tokenizer_info info = {.struct_size = sizeof info};
        dsv2_tokenizer *t = open_folder(cases[i].config);
        if (cases[i].chat_form == NULL) {
            ck_assert_ptr_null(t);
            ck_assert_msg(strstr(dsv2_last_error(), cases[i].message) != NULL, "case %zu: %s", i, dsv2_last_error());
            continue;
        }
        ck_assert_msg(t != NULL, "case %zu: %s", i, dsv2_last_error());
        ck_assert_int_eq(dsv2_tokenizer_get_info(t, &info), DSV2_OK);
        ck_assert_int_eq(info.bos_token_id, cases[i].bos);
        ck_assert_int_eq(info.eos_token_id, cases[i].eos);
        ck_assert_str_eq(info.chat_form, cases[i].chat_form);
        ds_tokenizer_set_special(t, 5, 7000);
        ck_assert_int_eq(dsv2_tokenizer_get_info(t, &info), DSV2_OK);
        ck_assert_int_eq(info.bos_token_id, 5);
        ck_assert_int_eq(info.eos_token_id, cases[i].eos);
        dsv2_tokenizer_close(t);
    }
    dsv2_tokenizer *t = NULL;
    ck_assert_int_eq(dsv2_tokenizer_open(folder_file("none.json"), &t), DSV2_ERROR_IO);
    ck_assert_ptr_nonnull(strstr(dsv2_last_error(), "none.json"));
    ck_assert_int_eq(dsv2_tokenizer_open("/", &t), DSV2_ERROR_IO);
    ck_assert_ptr_nonnull(strstr(dsv2_last_error(), "/tokenizer.json"));
    ck_assert_ptr_null(t);
    folder_remove();
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("tokenizer");
    TCase *cases = tcase_create("on published vocabularies");
    tcase_add_unchecked_fixture(cases, open_all, close_all);
    tcase_set_timeout(cases, 300); /* a sanitizer, on a busy machine */
    tcase_add_loop_test(cases, published_cases_from_json, LLM, CODER + 1);
    tcase_add_loop_test(cases, ids_are_those_of_hugging_face, 0, N_TOKENIZERS);
    tcase_add_loop_test(cases, vocabulary_facts, 0, N_TOKENIZERS);
    tcase_add_test(cases, bytes_without_a_token_are_pairs);
    tcase_add_loop_test(cases, any_bytes_come_back, 0, N_TOKENIZERS);
    tcase_add_loop_test(cases, a_megabyte_without_a_space, 0, N_TOKENIZERS);
    tcase_add_test(cases, threads_share_a_tokenizer);
    tcase_add_test(cases, text_becomes_a_special_token_only_if_the_host_says_so);
    tcase_add_test(cases, beginning_of_sequence_on_request);
    tcase_add_loop_test(cases, chat_prompts_are_those_of_the_published_templates, 0, 2);
    tcase_add_loop_test(cases, a_conversation_goes_on_where_it_was, 0, 2);
    tcase_add_test(cases, message_text_never_becomes_a_special_token);
    tcase_add_test(cases, filling_in_the_middle);
    tcase_add_test(cases, messages_that_no_form_knows_are_refused);
    tcase_add_test(cases, a_buffer_too_small_is_left_alone);
    tcase_add_test(cases, wrong_arguments_are_refused);
    tcase_add_test(cases, tokens_tell_their_bytes);
    suite_add_tcase(suite, cases);
    TCase *small = tcase_create("on small vocabularies");
    tcase_set_timeout(small, 60);
    tcase_add_loop_test(small, merging_follows_the_definition, 0, 8);
    tcase_add_test(small, streams_are_cut_between_characters);
    tcase_add_test(small, tokenizer_config_names_the_special_tokens);
    suite_add_tcase(suite, small);
    return test_run(suite);
}

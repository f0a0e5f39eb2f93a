/* Tokenizer files: every way of saying the same is understood. Every mistake is reported with its file, field and
 * value. Running out of memory anywhere leaves nothing behind. */
#include "support/data.h"
#include "support/oom.h"
#include "support/run.h"
#include "tokenizer/tokenizer.h"
#include "unit/folder.h"
#include "unit/small_json.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BYTES "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}"
#define SEQUENCE(members) "{\"type\":\"Sequence\",\"pretokenizers\":[" members "]}"
#define SPLIT(regex)                                                                                                   \
    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" regex "\"},\"behavior\":\"Isolated\",\"invert\":false}"
#define STAGE(regex) SEQUENCE(SPLIT(regex) "," BYTES)

static dsv2_status open_parts(const small_parts *parts, dsv2_tokenizer **t)
{
    char *json = small_json(parts);
    dsv2_status status = ds_tokenizer_from_json("dir/tokenizer.json", json, strlen(json), t);
    free(json);
    return status;
}

/* "97 98 256": the ids of a text, as decimal numbers. */
static void ids_text(const dsv2_tokenizer *t, const char *text, uint32_t flags, char *out)
{
    int32_t ids[256];
    size_t n;
    ck_assert_msg(dsv2_tokenizer_encode(t, text, strlen(text), flags, ids, 256, &n) == DSV2_OK, "%s",
                  dsv2_last_error());
    *out = '\0';
    for (size_t i = 0; i < n; i++)
        sprintf(out + strlen(out), "%s%d", i > 0 ? " " : "", ids[i]);
}

/* ---- what is understood ---- */

#define AB ",\"ab\":256,\"abab\":257,\"Ġa\":258,\"11\":259,\"aa\":260"
#define AB_MERGES "\"a b\",\"ab ab\",\"Ġ a\",\"1 1\",\"a a\""

START_TEST(equal_files_give_equal_ids)
{
    static const struct {
        small_parts parts;
        const char *text, *ids;
    } cases[] = {
        {{0}, "ab", "97 98"},
        {{.vocab = AB, .merges = AB_MERGES}, "abab aaa", "257 258 260"},
        {{.vocab = AB, .merges = "[\"a\",\"b\"],[\"ab\",\"ab\"],[\"Ġ\",\"a\"]"}, "abab aaa", "257 258 97 97"},
        {{.vocab = AB, .merges = "\"a b\",\"a a\",\"a b\""}, "aab", "260 98"}, /* the last rank counts */
        {{.vocab = AB, .merges = "\"#version: 0.2\",\"a b\",\"#version\",\"ab ab\""}, "abab", "257"},
        {{.vocab = AB, .model = ",\"ignore_merges\":true"}, "abab", "257"},
        {{.vocab = AB, .model = ",\"ignore_merges\":true"}, "ababab", "97 98 97 98 97 98"},
        {{.model =
              ",\"dropout\":null,\"unk_token\":null,\"continuing_subword_prefix\":\"\",\"end_of_word_suffix\":null,"
              "\"fuse_unk\":false,\"byte_fallback\":true"},
         "a",
         "97"},
        {{.model = ",\"dropout\":0.0"}, "a", "97"},
        {{.normalizer = "{\"type\":\"Sequence\",\"normalizers\":[]}", .decoder = "null"}, "a", "97"},
        {{.decoder = "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"ByteLevel\"}]}"}, "a", "97"},
        {{.root = ",\"truncation\":{\"max_length\":1},\"padding\":null,\"version\":\"1.0\""}, "abc", "97 98 99"},
        /* pre-tokenizers */
        {{.vocab = AB, .merges = AB_MERGES, .pre_tokenizer = STAGE("b")}, "abab", "97 98 97 98"},
        {{.vocab = AB, .merges = AB_MERGES, .pre_tokenizer = STAGE("a|x*")}, "abab", "97 98 97 98"},
        {{.vocab = AB, .merges = AB_MERGES, .pre_tokenizer = STAGE("")}, "abab", "97 98 97 98"},
        {{.vocab = AB,
          .merges = AB_MERGES,
          .pre_tokenizer = SEQUENCE("{\"type\":\"Split\",\"pattern\":{\"String\":\"a.\"},\"behavior\":"
                                    "\"Isolated\",\"invert\":true}," BYTES)},
         "aba.b",
         "256 97 46 98"},
        {{.vocab = AB,
          .merges = AB_MERGES,
          .pre_tokenizer = SEQUENCE("{\"type\":\"Digits\",\"individual_digits\":true}," BYTES)},
         "11",
         "49 49"},
        {{.vocab = AB,
          .merges = AB_MERGES,
          .pre_tokenizer = SEQUENCE("{\"type\":\"Digits\",\"individual_digits\":false}," BYTES)},
         "11",
         "259"},
        {{.vocab = AB, .merges = AB_MERGES, .pre_tokenizer = "{\"type\":\"ByteLevel\",\"add_prefix_space\":false}"},
         "ab  ab",
         "256 32 32 256"},
        /* categories of Unicode 16: U+31350 is a letter since 15, U+11BF0 a digit since 16 */
        {{.vocab = AB, .merges = AB_MERGES, .pre_tokenizer = STAGE("(?<=\\\\p{N})a")},
         "\U00011bf0aaa",
         "240 145 175 176 97 260"},
        {{.vocab = AB, .merges = AB_MERGES, .pre_tokenizer = STAGE("(?<=[\\\\p{Lo}])a")},
         "\U00031350aaa",
         "240 177 141 144 97 260"},
        {{.vocab = AB, .merges = AB_MERGES, .pre_tokenizer = STAGE("(?<=\\\\P{L})a")},
         "\U00031350aaa",
         "240 177 141 144 260 97"},
        /* added tokens: the longest, the leftmost, those not normalized first */
        {{.added = "{\"id\":300,\"content\":\"ab\"},{\"id\":301,\"content\":\"abc\"},{\"id\":302,\"content\":\"bcd\"}"},
         "abcd",
         "301 100"},
        {{.added = "{\"id\":300,\"content\":\"ab\"},{\"id\":301,\"content\":\"bc\",\"normalized\":false}"},
         "abc",
         "97 301"},
        {{.added = "{\"id\":97,\"content\":\"a\"}", .vocab = AB, .merges = AB_MERGES}, "ab", "97 98"},
        {{.added = "{\"id\":256,\"content\":\"ab\"}", .vocab = AB, .merges = AB_MERGES}, "ababab", "256 256 256"},
        {{.added = "{\"id\":300,\"content\":\"<s>\",\"special\":true}"}, "a<s>", "97 60 115 62"},
        {{.added = "{\"id\":300,\"content\":\"<|x|>\",\"special\":false}"}, "<|x|>", "60 124 120 124 62"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dsv2_tokenizer *t;
        char ids[1024];
        ck_assert_msg(open_parts(&cases[i].parts, &t) == DSV2_OK, "case %zu: %s", i, dsv2_last_error());
        ids_text(t, cases[i].text, 0, ids);
        ck_assert_msg(strcmp(ids, cases[i].ids) == 0, "case %zu: \"%s\" gives %s, expected %s", i, cases[i].text, ids,
                      cases[i].ids);
        dsv2_tokenizer_close(t);
    }
}
END_TEST

START_TEST(the_beginning_of_sequence_is_found)
{
#define NAMES "{\"id\":300,\"content\":\"<s>\",\"special\":true},{\"id\":301,\"content\":\"[B]\",\"special\":true}"
#define TEMPLATE                                                                                                       \
    "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"[B]\",\"type_id\":0}},"                  \
    "{\"Sequence\":{\"id\":\"A\"}}]}"
    static const struct {
        small_parts parts;
        int32_t bos;
    } cases[] = {
        {{0}, -1},
        {{.added = NAMES}, 300},
        {{.added = NAMES, .post_processor = "{\"type\":\"ByteLevel\"}"}, 300},
        {{.added = NAMES, .post_processor = TEMPLATE}, 301},
        {{.added = NAMES,
          .post_processor = "{\"type\":\"Sequence\",\"processors\":[{\"type\":\"ByteLevel\"}," TEMPLATE "]}"},
         301},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dsv2_tokenizer *t;
        dsv2_tokenizer_info info = {.struct_size = sizeof info};
        ck_assert_msg(open_parts(&cases[i].parts, &t) == DSV2_OK, "case %zu: %s", i, dsv2_last_error());
        ck_assert_int_eq(dsv2_tokenizer_get_info(t, &info), DSV2_OK);
        ck_assert_msg(info.bos_token_id == cases[i].bos, "case %zu: %d", i, info.bos_token_id);
        dsv2_tokenizer_close(t);
    }
}
END_TEST

/* ---- what is refused ---- */

START_TEST(bad_files_are_refused_by_name)
{
    static const struct {
        small_parts parts;
        dsv2_status status;
        const char *message; /* after "dir/tokenizer.json: " */
    } cases[] = {
        {{.root = ",\"model\":1"}, DSV2_ERROR_FORMAT, "line 1, column"},
        {{.root = ","}, DSV2_ERROR_FORMAT, "line 1, column"},
        /* the model */
        {{.model = ",\"dropout\":0.1"}, DSV2_ERROR_UNSUPPORTED, "model.dropout is 0.1"},
        {{.model = ",\"dropout\":\"x\""}, DSV2_ERROR_FORMAT, "model.dropout is a string"},
        {{.model = ",\"continuing_subword_prefix\":\"##\""},
         DSV2_ERROR_UNSUPPORTED,
         "model.continuing_subword_prefix is a string \"##\""},
        {{.model = ",\"end_of_word_suffix\":\"</w>\""},
         DSV2_ERROR_UNSUPPORTED,
         "model.end_of_word_suffix is a string \"</w>\""},
        {{.model = ",\"ignore_merges\":3"}, DSV2_ERROR_FORMAT, "model.ignore_merges is an integer"},
        /* the vocabulary */
        {{.vocab = ",\"ab\":-1"}, DSV2_ERROR_FORMAT, "the id of model.vocab \"ab\" is -1, expected 0 to 1048575"},
        {{.vocab = ",\"ab\":1048576"}, DSV2_ERROR_FORMAT, "the id of model.vocab \"ab\" is 1048576"},
        {{.vocab = ",\"ab\":1.5"}, DSV2_ERROR_FORMAT, "the id of model.vocab \"ab\" is a number"},
        {{.vocab = ",\"ab\":97"}, DSV2_ERROR_FORMAT, "model.vocab gives id 97 to both \"a\" and \"ab\""},
        {{.vocab = ",\"a\":300"}, DSV2_ERROR_FORMAT, "model.vocab has \"a\" twice, as 97 and as 300"},
        /* merges */
        {{.merges = "\"a b\""}, DSV2_ERROR_FORMAT, "merges[0]: \"a\" and \"b\" together are not in the vocabulary"},
        {{.vocab = ",\"ab\":256", .merges = "\"a b\",\"ab ac\""},
         DSV2_ERROR_FORMAT,
         "merges[1]: \"ac\" is not in the vocabulary"},
        {{.merges = "\"ab\""}, DSV2_ERROR_FORMAT, "model.merges[0] is \"ab\", expected two tokens"},
        {{.merges = "\"a b c\""}, DSV2_ERROR_FORMAT, "model.merges[0] is \"a b c\""},
        {{.merges = "[\"a\"]"}, DSV2_ERROR_FORMAT, "model.merges[0] is an array"},
        {{.merges = "7"}, DSV2_ERROR_FORMAT, "model.merges[0] is an integer"},
        /* added tokens */
        {{.added = "{\"id\":300}"}, DSV2_ERROR_FORMAT, "added_tokens[0].content is missing"},
        {{.added = "7"}, DSV2_ERROR_FORMAT, "added_tokens[0].content is missing"},
        {{.added = "{\"content\":\"x\"}"}, DSV2_ERROR_FORMAT, "the id of added_tokens \"x\" is missing"},
        {{.added = "{\"id\":2147483648,\"content\":\"xy\"}"}, DSV2_ERROR_FORMAT, "is 2147483648, expected 0 to"},
        {{.added = "{\"id\":300,\"content\":\"\"}"}, DSV2_ERROR_UNSUPPORTED, "added token 300 has 0 bytes"},
        {{.added = "{\"id\":97,\"content\":\"xy\"}"},
         DSV2_ERROR_FORMAT,
         "added_tokens[0].id is 97, which \"a\" has too"},
        {{.added = "{\"id\":300,\"content\":\"xy\"},{\"id\":300,\"content\":\"xy\"}"},
         DSV2_ERROR_FORMAT,
         "added_tokens[1].id is 300"},
        {{.added = "{\"id\":300,\"content\":\"xy\"},{\"id\":301,\"content\":\"xy\"}"},
         DSV2_ERROR_FORMAT,
         "added tokens 300 and 301 are spelled alike"},
        {{.added = "{\"id\":300,\"content\":\"a\"}"},
         DSV2_ERROR_FORMAT,
         "added_tokens[0] \"a\" has id 300, in model.vocab it has 97"},
        {{.added = "{\"id\":300,\"content\":\"xy\",\"lstrip\":true}"},
         DSV2_ERROR_UNSUPPORTED,
         "added_tokens[0].lstrip is true"},
        {{.added = "{\"id\":300,\"content\":\"xy\",\"rstrip\":true}"},
         DSV2_ERROR_UNSUPPORTED,
         "added_tokens[0].rstrip is true"},
        {{.added = "{\"id\":300,\"content\":\"xy\",\"single_word\":true}"},
         DSV2_ERROR_UNSUPPORTED,
         "added_tokens[0].single_word is true"},
        {{.added = "{\"id\":300,\"content\":\"xy\",\"special\":1}"},
         DSV2_ERROR_FORMAT,
         "added_tokens[0].special is an integer"},
        /* normalizer, decoder */
        {{.normalizer = "{\"type\":\"NFC\"}"}, DSV2_ERROR_UNSUPPORTED, "normalizer of type \"NFC\""},
        {{.normalizer = "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Lowercase\"}]}"},
         DSV2_ERROR_UNSUPPORTED,
         "normalizer.normalizers[0] of type \"Lowercase\""},
        {{.normalizer = "{\"type\":\"Sequence\"}"}, DSV2_ERROR_FORMAT, "normalizer.normalizers is missing"},
        {{.normalizer = "{\"type\":\"\"}"}, DSV2_ERROR_UNSUPPORTED, "normalizer of type \"\""},
        {{.normalizer = "[]"}, DSV2_ERROR_FORMAT, "normalizer is an array"},
        {{.decoder = "{\"type\":\"Metaspace\"}"}, DSV2_ERROR_UNSUPPORTED, "decoder of type \"Metaspace\""},
        {{.decoder = "{}"}, DSV2_ERROR_FORMAT, "decoder.type is missing"},
        /* pre-tokenizers */
        {{.pre_tokenizer = "null"}, DSV2_ERROR_FORMAT, "pre_tokenizer is null"},
        {{.pre_tokenizer = "{\"type\":\"Metaspace\"}"}, DSV2_ERROR_UNSUPPORTED, "pre_tokenizer of type \"Metaspace\""},
        {{.pre_tokenizer = "{\"type\":\"ByteLevel\",\"add_prefix_space\":true}"},
         DSV2_ERROR_UNSUPPORTED,
         "add_prefix_space is true"},
        {{.pre_tokenizer = "{\"type\":\"ByteLevel\"}"}, DSV2_ERROR_UNSUPPORTED, "add_prefix_space is true"},
        {{.pre_tokenizer = SEQUENCE("")}, DSV2_ERROR_UNSUPPORTED, "pre_tokenizer has no ByteLevel"},
        {{.pre_tokenizer = "{\"type\":\"Sequence\"}"}, DSV2_ERROR_FORMAT, "pre_tokenizer.pretokenizers is missing"},
        {{.pre_tokenizer = SEQUENCE(BYTES "," SPLIT("a"))},
         DSV2_ERROR_UNSUPPORTED,
         "pretokenizers[1] of type \"Split\" comes after"},
        {{.pre_tokenizer =
              SEQUENCE("{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"},\"behavior\":\"Removed\"}," BYTES)},
         DSV2_ERROR_UNSUPPORTED,
         "pretokenizers[0].behavior is \"Removed\""},
        {{.pre_tokenizer = SEQUENCE("{\"type\":\"Split\",\"pattern\":\"a\",\"behavior\":\"Isolated\"}," BYTES)},
         DSV2_ERROR_FORMAT,
         "pretokenizers[0].pattern is a string"},
        {{.pre_tokenizer = SEQUENCE("{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"}}," BYTES)},
         DSV2_ERROR_FORMAT,
         "pretokenizers[0].behavior is missing"},
        {{.pre_tokenizer = SEQUENCE("{\"type\":\"Digits\",\"individual_digits\":1}," BYTES)},
         DSV2_ERROR_FORMAT,
         "individual_digits is an integer"},
#define S SPLIT("a") ","
        {{.pre_tokenizer = SEQUENCE(S S S S S S S S S S S S S S S S S BYTES)},
         DSV2_ERROR_UNSUPPORTED,
         "more than 16 expressions"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dsv2_tokenizer *t = NULL;
        dsv2_status status = open_parts(&cases[i].parts, &t);
        ck_assert_msg(status == cases[i].status, "case %zu: status %d, expected %d: %s", i, status, cases[i].status,
                      dsv2_last_error());
        ck_assert_msg(strncmp(dsv2_last_error(), "dir/tokenizer.json: ", 20) == 0 && strstr(dsv2_last_error(),
                                                                                            cases[i].message) != NULL,
                      "case %zu: \"%s\" lacks \"%s\"", i, dsv2_last_error(), cases[i].message);
        ck_assert_ptr_null(t);
    }
}
END_TEST

START_TEST(files_that_are_something_else_are_refused)
{
    static const struct {
        const char *json, *message;
    } cases[] = {
        {"", "line"},
        {"[]", "is an array"},
        {"{}", "model is missing"},
        {"{\"model\":[]}", "model is an array"},
        {"{\"model\":{\"type\":\"WordPiece\"}}", "model.type is \"WordPiece\", expected BPE"},
        {"{\"model\":{\"type\":7}}", "model.type is an integer"},
        {"{\"model\":{}}", "model.vocab is missing"},
        {"{\"model\":{\"vocab\":[]}}", "model.vocab is an array"},
        {"{\"model\":{\"vocab\":{}}}", "model.vocab is empty"},
        {"{\"model\":{\"vocab\":{\"a\":0}}}", "model.merges is missing"},
        {"{\"added_tokens\":{},\"model\":{\"vocab\":{\"a\":0}}}", "added_tokens is an object"},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[]}}", "no token for byte 0x00"},
        {"{\"model\":{\"vocab\":{\"a\":0,\"a\":1},\"merges\":[]}}", "model.vocab has \"a\" twice"},
        {"GGUF", "line 1"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dsv2_tokenizer *t = NULL;
        dsv2_status status = ds_tokenizer_from_json("x.json", cases[i].json, strlen(cases[i].json), &t);
        ck_assert_msg(status == DSV2_ERROR_FORMAT || status == DSV2_ERROR_UNSUPPORTED, "case %zu: status %d", i,
                      status);
        ck_assert_msg(strncmp(dsv2_last_error(), "x.json: ", 8) == 0 &&
                          strstr(dsv2_last_error(), cases[i].message) != NULL,
                      "case %zu: %s", i, dsv2_last_error());
    }
    /* Brackets without end, and a real file cut anywhere. */
    char *deep = malloc(100000);
    memset(deep, '[', 100000);
    dsv2_tokenizer *t = NULL;
    ck_assert_int_eq(ds_tokenizer_from_json("deep", deep, 100000, &t), DSV2_ERROR_FORMAT);
    free(deep);
    char *json = small_json(&(small_parts){.vocab = AB, .merges = AB_MERGES});
    for (size_t size = 0; size < strlen(json); size += 1 + size % 7)
        ck_assert_int_eq(ds_tokenizer_from_json("cut", json, size, &t), DSV2_ERROR_FORMAT);
    free(json);
}
END_TEST

/* Patterns that Oniguruma and PCRE2 read differently. A name of NULL: the pattern is understood. */
START_TEST(expressions_that_would_mean_something_else_are_refused)
{
    static const struct {
        const char *regex, *refused;
    } cases[] = {
        {"[[a-z]b]", "a set in a set"},
        {"[a&&b]", "a set in a set"},
        {"[[:alpha:]]", "a set in a set"},
        {"[]a]", "begins with a bracket"},
        {"[a", "a set without an end"},
        {"[\\\\s-z]", "a range that begins with a set"},
        {"[\\\\W]", "\\W in a set"},
        {"[\\\\P{L}]", "\\P in a set"},
        {"\\\\h", "this escape"},
        {"\\\\R", "this escape"},
        {"\\\\1", "this escape"},
        {"\\\\bx", "this escape"},
        {"\\\\A", "this escape"},
        {"\\\\", "this escape"},
        {"\\\\Q", "this escape"},
        {"[\\\\b]", "this escape"},
        {"\\\\p{Han}", "not a general category"},
        {"\\\\pL", "not a general category"},
        {"\\\\p{^L}", "not a general category"},
        {"\\\\p{L", "not a general category"},
        {"\\\\xff", "a character number"},
        {"\\\\x4", "a character number"},
        {"\\\\u12", "a character number"},
        {"\\\\x{}", "a character number"},
        {"a{,3}", "braces of this form"},
        {"a{2}+", "braces of this form"},
        {"a{2}?", "braces of this form"},
        {"a{", "braces of this form"},
        {"a{99999999999999}", "braces of this form"},
        {"(?i)a", "a group of this kind"},
        {"(?m:a)", "a group of this kind"},
        {"(?<n>a)", "a group of this kind"},
        {"(?R)", "a group of this kind"},
        {"(*FAIL)", "a group of this kind"},
        {"(?C1)", "a group of this kind"},
        {"(?", "a group of this kind"},
        {"(a", "missing"},
        {"a)", "unmatched"},
        {"+", "quantifier"},
        {"a{9999999}", "too"},
        {"^*a", "a repetition of ^"},
        {"a|^{2}", "a repetition of ^"},
        {"\\\\p{Lx}", "property"},
        {"(?<=a*)b", "lookbehind"},
        {"[z-a]", "range"},
        {"\\\\x{110000}", "code point"},
        {"(?:a|b)+c", NULL},
        {"(?>a)(?=b)(?!c)(?<=d)(?<!e)(?i:f)", NULL},
        {"a{2}b{2,}c{2,3}?d++e*+f?+", NULL},
        {"[^\\\\s\\\\S\\\\d\\\\w-]", NULL},
        {"\\\\s\\\\S\\\\d\\\\D\\\\w\\\\W\\\\n\\\\r\\\\t\\\\f\\\\v\\\\e\\\\a\\\\.\\\\-\\\\ü", NULL},
        {"\\\\x41\\\\u00fc\\\\x{1f600}", NULL},
        {"\\\\p{L}\\\\P{Lu}[\\\\p{N}\\\\P{Zs}]", NULL},
        {"^a$|.|", NULL},
        {"(?:(?=a*b)x){64}", NULL},
        {"[-a][a-]", NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char pre[512];
        snprintf(pre, sizeof pre, STAGE("%s"), cases[i].regex);
        dsv2_tokenizer *t = NULL;
        dsv2_status status = open_parts(&(small_parts){.pre_tokenizer = pre}, &t);
        if (cases[i].refused == NULL) {
            ck_assert_msg(status == DSV2_OK, "%s: %s", cases[i].regex, dsv2_last_error());
            dsv2_tokenizer_close(t);
            continue;
        }
        ck_assert_msg(status == DSV2_ERROR_UNSUPPORTED, "%s: status %d", cases[i].regex, status);
        ck_assert_msg(strstr(dsv2_last_error(), "dir/tokenizer.json: pre_tokenizer: expression") != NULL &&
                          strstr(dsv2_last_error(), cases[i].refused) != NULL,
                      "%s: \"%s\" lacks \"%s\"", cases[i].regex, dsv2_last_error(), cases[i].refused);
    }
}
END_TEST

/* The point is that this ends: the pattern has 2^40 ways to fail. */
START_TEST(an_expression_without_end_is_given_up)
{
    static const char *const slow[] = {STAGE("(?:a|a)*b"), STAGE("(?:a*)*b"), STAGE("(?:a?){40}a{40}b")};
    char text[60];
    int32_t ids[60];
    memset(text, 'a', sizeof text);
    text[58] = 'c';
    text[59] = 'b'; /* or PCRE2 would see at once that there is none */
    for (size_t i = 0; i < sizeof slow / sizeof *slow; i++) {
        dsv2_tokenizer *t;
        size_t n = 0;
        ck_assert_msg(open_parts(&(small_parts){.pre_tokenizer = slow[i]}, &t) == DSV2_OK, "%s", dsv2_last_error());
        dsv2_status status = dsv2_tokenizer_encode(t, text, sizeof text, 0, ids, 60, &n);
        ck_assert_msg(status == DSV2_ERROR_UNSUPPORTED || (status == DSV2_OK && n == sizeof text), "%zu: status %d", i,
                      status);
        if (i == 0) {
            ck_assert_int_eq(status, DSV2_ERROR_UNSUPPORTED);
            ck_assert_ptr_nonnull(strstr(dsv2_last_error(), "dir/tokenizer.json: pre_tokenizer: expression 0"));
        }
        dsv2_tokenizer_close(t);
    }
}
END_TEST

/* ---- GGUF ---- */

START_TEST(published_cases_from_gguf)
{
    static const char *const names[] = {"deepseek-llm", "deepseek-coder"};
    static const char separator[] = "\n__ggml_vocab_test__\n";
    char file[64];
    size_t size, expected_size, n_cases = 0;
    folder_make();
    snprintf(file, sizeof file, "tokenizer/%s.gguf.zst", names[_i]);
    char *gguf = data_read(file, &size);
    folder_write("vocab.gguf", gguf, size);
    free(gguf);
    dsv2_tokenizer *t;
    ck_assert_msg(dsv2_tokenizer_open(folder_file("vocab.gguf"), &t) == DSV2_OK, "%s", dsv2_last_error());
    folder_remove();
    snprintf(file, sizeof file, "tokenizer/%s.out", names[_i]);
    char *texts = data_read("tokenizer/cases.inp", &size), *expected = data_read(file, &expected_size), *text = texts;
    for (char *line = expected, *next; *line != '\0'; line = next) {
        char *end = strstr(text, separator), ids[8192];
        next = strchr(line, '\n');
        *next++ = '\0';
        if (end != NULL)
            *end = '\0';
        ids_text(t, text, 0, ids);
        ck_assert_str_eq(ids, line + strspn(line, " "));
        text = end == NULL ? text + strlen(text) : end + sizeof separator - 1;
        n_cases++;
    }
    ck_assert_uint_eq(n_cases, 46);
    dsv2_tokenizer_info info = {.struct_size = sizeof info};
    ck_assert_int_eq(dsv2_tokenizer_get_info(t, &info), DSV2_OK);
    ck_assert_int_eq(info.bos_token_id, _i == 0 ? 100000 : 32013);
    ck_assert_int_eq(info.eos_token_id, _i == 0 ? 100001 : 32014);
    ck_assert_uint_eq(info.vocab_size, _i == 0 ? 102400 : 32256);
    ck_assert_str_eq(info.chat_form, "v2");
    if (_i == 0) { /* a row of the embedding that no token uses */
        const char *unused;
        ck_assert_int_eq(dsv2_token_text(t, 102399, &unused, &size), DSV2_OK);
        ck_assert_uint_eq(size, 0);
    }
    dsv2_tokenizer_close(t);
    free(expected);
    free(texts);
}
END_TEST

/* A GGUF of metadata alone, made key by key. */
typedef struct gguf {
    uint8_t bytes[32768];
    size_t size;
    uint64_t n_keys;
} gguf;

static void put(gguf *g, const void *data, size_t size)
{
    ck_assert_uint_le(g->size + size, sizeof g->bytes);
    memcpy(g->bytes + g->size, data, size);
    g->size += size;
}

static void put_u32(gguf *g, uint32_t value)
{
    for (unsigned shift = 0; shift < 32; shift += 8)
        put(g, &(uint8_t){(uint8_t)(value >> shift)}, 1);
}

static void put_u64(gguf *g, uint64_t value)
{
    put_u32(g, (uint32_t)value);
    put_u32(g, (uint32_t)(value >> 32));
}

static void put_string(gguf *g, const char *string)
{
    put_u64(g, strlen(string));
    put(g, string, strlen(string));
}

enum { GGUF_U32 = 4, GGUF_I32 = 5, GGUF_STRING = 8, GGUF_ARRAY = 9 };

static void put_key(gguf *g, const char *key, uint32_t type)
{
    put_string(g, key);
    put_u32(g, type);
    g->n_keys++;
}

/* What a test changes in a sound file. NULL or 0: nothing. */
typedef struct gguf_parts {
    const char *model, *pre, *merge, *token, *chat_template;
    uint32_t bos, type, n_types;
    bool no_model, no_tokens, no_pre;
} gguf_parts;

static void make_gguf(gguf *g, const gguf_parts *p)
{
    *g = (gguf){0};
    put(g, "GGUF\3\0\0\0", 8);
    put_u64(g, 0);
    put_u64(g, 0); /* the number of keys: below */
    if (!p->no_model) {
        put_key(g, "tokenizer.ggml.model", GGUF_STRING);
        put_string(g, p->model == NULL ? "gpt2" : p->model);
    }
    if (!p->no_pre) {
        put_key(g, "tokenizer.ggml.pre", GGUF_STRING);
        put_string(g, p->pre == NULL ? "deepseek-v3" : p->pre);
    }
    if (!p->no_tokens) {
        put_key(g, "tokenizer.ggml.tokens", GGUF_ARRAY);
        put_u32(g, GGUF_STRING);
        put_u64(g, 260);
        for (unsigned byte = 0, next = 256; byte < 256; byte++) {
            bool itself = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
            unsigned letter = itself ? byte : next++;
            char spelled[3] = {(char)(letter < 0x80 ? letter : 0xc0 | letter >> 6),
                               (char)(letter < 0x80 ? 0 : 0x80 | (letter & 0x3f)), 0};
            put_string(g, spelled);
        }
        put_string(g, p->token == NULL ? "ab" : p->token);
        put_string(g, "<s>");
        put_string(g, "<｜User｜>");
        put_string(g, "<｜Assistant｜>");
    }
    put_key(g, "tokenizer.ggml.token_type", GGUF_ARRAY);
    put_u32(g, GGUF_I32);
    put_u64(g, p->n_types == 0 ? 260 : p->n_types);
    for (unsigned i = 0; i < (p->n_types == 0 ? 260 : p->n_types); i++)
        put_u32(g, i == 257 ? 3 : i > 257 ? 4 : i == 5 && p->type != 0 ? p->type : 1);
    put_key(g, "tokenizer.ggml.merges", GGUF_ARRAY);
    put_u32(g, GGUF_STRING);
    put_u64(g, 1);
    put_string(g, p->merge == NULL ? "a b" : p->merge);
    put_key(g, "tokenizer.ggml.bos_token_id", GGUF_U32);
    put_u32(g, p->bos == 0 ? 257 : p->bos);
    if (p->chat_template != NULL) {
        put_key(g, "tokenizer.chat_template", GGUF_STRING);
        put_string(g, p->chat_template);
    }
    memcpy(g->bytes + 16, &(uint8_t[8]){(uint8_t)g->n_keys}, 8);
}

START_TEST(gguf_vocabularies_are_understood_or_refused_by_name)
{
    static const struct {
        gguf_parts parts;
        dsv2_status status;
        const char *message; /* or the chat form */
    } cases[] = {
        {{0}, DSV2_OK, "v2.5"},
        {{.chat_template = "{{'User: '}}"}, DSV2_OK, "v2"},
        {{.no_model = true}, DSV2_ERROR_FORMAT, "has no tokenizer"},
        {{.model = "no_vocab"}, DSV2_ERROR_FORMAT, "has no tokenizer"},
        {{.model = "llama"}, DSV2_ERROR_UNSUPPORTED, "tokenizer.ggml.model is \"llama\", expected gpt2"},
        {{.pre = "qwen2"}, DSV2_ERROR_UNSUPPORTED, "pre-tokenizer \"qwen2\" is not known"},
        {{.no_pre = true}, DSV2_ERROR_FORMAT, "tokenizer.ggml.pre is missing"},
        {{.no_tokens = true}, DSV2_ERROR_FORMAT, "tokenizer.ggml.tokens is missing"},
        {{.n_types = 10}, DSV2_ERROR_FORMAT, "tokenizer.ggml.token_type has 10 entries, expected 260"},
        {{.type = 6}, DSV2_ERROR_UNSUPPORTED, "tokenizer.ggml.token_type[5] is 6"},
        {{.type = 5}, DSV2_ERROR_UNSUPPORTED, "no token for byte 0x05"},
        {{.bos = 260}, DSV2_ERROR_FORMAT, "tokenizer.ggml.bos_token_id is 260, expected 0 to 259"},
        {{.merge = "ab"}, DSV2_ERROR_FORMAT, "tokenizer.ggml.merges[0] is \"ab\""},
        {{.merge = "a c"}, DSV2_ERROR_FORMAT, "merges[0]: \"a\" and \"c\" together"},
        {{.token = "a"}, DSV2_ERROR_FORMAT, "tokens 97 and 256 are spelled alike"},
    };
    folder_make();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        gguf g;
        dsv2_tokenizer *t = NULL;
        make_gguf(&g, &cases[i].parts);
        folder_write("small.gguf", g.bytes, g.size);
        dsv2_status status = dsv2_tokenizer_open(folder_file("small.gguf"), &t);
        ck_assert_msg(status == cases[i].status, "case %zu: status %d: %s", i, status, dsv2_last_error());
        if (status == DSV2_OK) {
            dsv2_tokenizer_info info = {.struct_size = sizeof info};
            char ids[64];
            ck_assert_int_eq(dsv2_tokenizer_get_info(t, &info), DSV2_OK);
            ck_assert_int_eq(info.bos_token_id, 257);
            ck_assert_str_eq(info.chat_form, cases[i].message);
            ids_text(t, "ab<s>", DSV2_ENCODE_SPECIAL, ids);
            ck_assert_str_eq(ids, "256 257");
            dsv2_tokenizer_close(t);
        } else {
            ck_assert_msg(strstr(dsv2_last_error(), "small.gguf: ") != NULL &&
                              strstr(dsv2_last_error(), cases[i].message) != NULL,
                          "case %zu: %s", i, dsv2_last_error());
        }
    }
    folder_remove();
}
END_TEST

/* ---- no memory ---- */

typedef struct using {
    const char *json, *path;
    int32_t ids[1024]; /* all that were encoded */
    size_t n;
    char text[1024]; /* what some of them are decoded to */
    size_t size;
} using;

/* All that a host does with a tokenizer. Returns the first failure. */
static dsv2_status use_all(void *context)
{
    using *u = context;
    static const dsv2_message messages[] = {{"user", "ab 12", 5}, {"assistant", "\xff", 1}, {"user", "x", 1}};
    static char long_text[400]; /* goes by the heap */
    memset(long_text, 'b', sizeof long_text);
    dsv2_tokenizer *t = NULL, *opened = NULL;
    size_t n = 0;
    memset(u->ids, 0, sizeof u->ids);
    u->n = u->size = 0;
#define REST u->ids + u->n, sizeof u->ids / sizeof *u->ids - u->n, &n
    dsv2_status status = ds_tokenizer_from_json("tokenizer.json", u->json, strlen(u->json), &t);
    if (status == DSV2_OK)
        status = dsv2_tokenizer_encode(t, "ab\xc3 12 abab <s>", 15, DSV2_ENCODE_BOS | DSV2_ENCODE_SPECIAL, REST);
    u->n += n;
    if (status == DSV2_OK)
        status = dsv2_tokenizer_decode(t, u->ids, n, DSV2_DECODE_SPECIAL, u->text, sizeof u->text, &u->size);
    if (status == DSV2_OK)
        status = dsv2_tokenizer_encode(t, long_text, sizeof long_text, 0, REST);
    u->n += n;
    if (status == DSV2_OK)
        status = dsv2_chat_encode(t, messages, 3, 0, REST);
    u->n += n;
    if (status == DSV2_OK)
        status = dsv2_fim_encode(t, "ab", 2, "cd", 2, REST);
    u->n += n;
    if (status == DSV2_OK)
        status = dsv2_tokenizer_open(u->path, &opened);
    if (status == DSV2_OK)
        status = dsv2_tokenizer_encode(opened, "ab 12", 5, 0, REST);
    u->n += n;
#undef REST
    dsv2_tokenizer_close(opened);
    dsv2_tokenizer_close(t);
    return status;
}

typedef struct used {
    using now, before;
    long live;
} used;

static dsv2_status use_now(void *context) { return use_all(&((used *)context)->now); }

static void the_same_or_nothing(void *context, dsv2_status status)
{
    const used *u = context;
    ck_assert_int_eq(oom_live(), u->live);
    if (status != DSV2_OK)
        return;
    ck_assert_uint_eq(u->now.n, u->before.n);
    ck_assert_mem_eq(u->now.ids, u->before.ids, u->now.n * sizeof *u->now.ids);
    ck_assert(u->now.size == u->before.size && memcmp(u->now.text, u->before.text, u->now.size) == 0);
}

static char *make_json(void)
{
    return small_json(&(small_parts){
        .added = "{\"id\":300,\"content\":\"<s>\",\"special\":true},{\"id\":301,\"content\":\"</s>\",\"special\":true},"
                 "{\"id\":302,\"content\":\"<｜fim▁begin｜>\"},{\"id\":303,\"content\":\"<｜fim▁hole｜>\"},"
                 "{\"id\":304,\"content\":\"<｜fim▁end｜>\"}",
        .pre_tokenizer =
            SEQUENCE(SPLIT("(?:\\\\s)?\\\\p{L}+") ",{\"type\":\"Digits\",\"individual_digits\":true}," BYTES),
        .vocab = AB,
        .merges = AB_MERGES});
}

START_TEST(running_out_of_memory_anywhere_leaves_nothing)
{
    char *json = make_json();
    gguf g;
    make_gguf(&g, &(gguf_parts){0});
    folder_make();
    folder_write("small.gguf", g.bytes, g.size);
    folder_write("tokenizer.json", json, strlen(json));
    folder_write("tokenizer_config.json", "{\"bos_token\":\"<s>\"}", 19);
    char path[256];
    snprintf(path, sizeof path, "%s", _i % 2 == 0 ? folder_path() : folder_file("small.gguf"));
    used u = {.now = {.json = json, .path = path}};
    ck_assert_msg(use_now(&u) == DSV2_OK, "%s", dsv2_last_error()); /* libraries set up what they set up once */
    u.before = u.now;
    u.live = oom_live();
    /* PCRE2 goes on without memory that it wants but does not need (a compiled form, a frame on the heap). */
    ck_assert_uint_gt(oom_fail_each(use_now, the_same_or_nothing, &u, _i >= 2), 150);
    folder_remove();
    free(json);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("tokenizer files");
    TCase *cases = tcase_create("files");
    tcase_set_timeout(cases, 120);
    tcase_add_test(cases, equal_files_give_equal_ids);
    tcase_add_test(cases, the_beginning_of_sequence_is_found);
    tcase_add_test(cases, bad_files_are_refused_by_name);
    tcase_add_test(cases, files_that_are_something_else_are_refused);
    tcase_add_test(cases, expressions_that_would_mean_something_else_are_refused);
    tcase_add_test(cases, an_expression_without_end_is_given_up);
    tcase_add_loop_test(cases, published_cases_from_gguf, 0, 2);
    tcase_add_test(cases, gguf_vocabularies_are_understood_or_refused_by_name);
    if (oom_available())
        tcase_add_loop_test(cases, running_out_of_memory_anywhere_leaves_nothing, 0, 4);
    else
        puts("Another allocator is in the way: running out of memory is not tested");
    suite_add_tcase(suite, cases);
    return test_run(suite);
}

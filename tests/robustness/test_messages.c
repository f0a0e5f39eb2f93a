/* Messages: whatever bytes paths, names, texts and files have, a host gets valid UTF-8 in one line. Jansson tells,
 * which takes no other text. (B14: "dsv2_fail can cut a UTF-8 sequence and passes bytes of file names through".) */
#include <dsv2/dsv2.h>

#include "base/base.h"
#include "support/checkpoint.h"
#include "support/gguf.h"
#include "support/model.h"
#include "support/run.h"

#include <check.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { VOCAB = 272 };

/* As many tokens as the tokenizer of tests/data/bytes. */
static const test_checkpoint shape = {
    .vocab_size = VOCAB, .hidden_size = 32, .intermediate_size = 32, .num_hidden_layers = 2, .num_attention_heads = 2,
    .kv_lora_rank = 16, .qk_nope_head_dim = 8, .qk_rope_head_dim = 4, .v_head_dim = 8, .max_position_embeddings = 100,
    .moe_intermediate_size = 8, .n_routed_experts = 4, .num_experts_per_tok = 2, .n_shared_experts = 1,
    .first_k_dense_replace = 1, .moe_layer_freq = 1, .seed = 5,
};

static char *folder;
static dsv2_model *model;
static const int32_t tokens[] = {1, 2, 3};

static bool is_line(const char *message)
{
    json_t *text = json_string(message);
    bool is_one = text != NULL && strlen(message) < 1024;
    json_decref(text);
    for (const char *c = message; *c != '\0'; c++)
        is_one = is_one && (unsigned char)*c >= 0x20 && *c != 0x7f;
    return is_one && strstr(message, "\xe2\x80\xa8") == NULL && strstr(message, "\xc2\x85") == NULL;
}

/* Check notes every assertion, which takes far longer than the look at the message. */
static void assert_is_line(const char *message)
{
    if (!is_line(message))
        ck_abort_msg("not a line of UTF-8: %s", message);
}

static void assert_logged_line(void *user, dsv2_log_level level, const char *message)
{
    (void)user;
    (void)level;
    assert_is_line(message);
}

static void fails_with(const char *words, dsv2_status status)
{
    ck_assert(status != DSV2_OK);
    assert_is_line(dsv2_last_error());
    ck_assert_msg(strstr(dsv2_last_error(), words) != NULL, "\"%s\" is not in: %s", words, dsv2_last_error());
}

/* ---- where messages are made ---- */

static const char *message_of(const char *text, size_t size)
{
    (void)ds_fail(DSV2_ERROR_FORMAT, "name %.*s is unknown", (int)size, text);
    assert_is_line(dsv2_last_error());
    return dsv2_last_error();
}

START_TEST(any_bytes_make_a_line_of_utf8)
{
    for (unsigned a = 1; a < 256; a++)
        for (unsigned b = 1; b < 256; b++) {
            const unsigned char bytes[] = {(unsigned char)a, (unsigned char)b, 0x80, 0xa8};
            for (size_t n = 1; n <= sizeof bytes; n++)
                message_of((const char *)bytes, n);
        }
    const unsigned char four[] = {0xf0, 0x9f, 0x98, 0x80, 0xf4, 0x8f, 0xbf, 0xbf};
    for (size_t n = 1; n <= sizeof four; n++)
        message_of((const char *)four, n);
}
END_TEST

START_TEST(what_is_no_utf8_is_escaped_and_the_rest_stays)
{
    static const char *const pairs[][2] = {
        {"caf\xe9.gguf", "caf\\xe9.gguf"},             /* Latin-1 */
        {"caf\xc3\xa9.gguf", "caf\xc3\xa9.gguf"},      /* the same in UTF-8 */
        {"\xf0\x9f\x98\x80", "\xf0\x9f\x98\x80"},
        {"\xed\xa0\x80", "\\xed\\xa0\\x80"},           /* half of a surrogate pair */
        {"\xc0\xaf", "\\xc0\\xaf"},                    /* longer than needed */
        {"\xe2\x82", "\\xe2\\x82"},                    /* the beginning of a character */
        {"a\nb\tc\x7f", "a b c "},
        {"a\xc2\x85" "b\xe2\x80\xa8" "c\xe2\x80\xa9", "a b c "}, /* next line, line and paragraph separator */
        {"back\\slash", "back\\slash"},
    };
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        char expected[64];
        snprintf(expected, sizeof expected, "name %s is unknown", pairs[i][1]);
        ck_assert_str_eq(message_of(pairs[i][0], strlen(pairs[i][0])), expected);
    }
}
END_TEST

START_TEST(what_is_too_long_is_cut_between_characters)
{
    static const char *const characters[] = {"\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80", "\xff"};
    char text[4096];
    for (size_t i = 0; i < sizeof characters / sizeof *characters; i++)
        for (size_t before = 0; before < 8; before++) {
            size_t length = strlen(characters[i]), size = before;
            memset(text, 'a', before);
            for (; size + length <= sizeof text; size += length)
                memcpy(text + size, characters[i], length);
            const char *message = message_of(text, size);
            ck_assert_uint_ge(strlen(message), 1020);
            ck_assert((strchr(message, '\\') != NULL) == (characters[i][0] == '\xff'));
        }
}
END_TEST

/* ---- paths ---- */

START_TEST(paths_of_any_bytes_are_named)
{
    dsv2_model *opened;
    dsv2_tokenizer *tokenizer;
    dsv2_snapshot_info info = {.struct_size = sizeof info};
    dsv2_session *session = test_session_open(model, NULL);
    ck_assert(dsv2_session_feed(session, tokens, 3) == DSV2_OK);
    char path[512], output[512];
    snprintf(path, sizeof path, "%s/no\xff\n\xe2\x82where/a", folder);
    snprintf(output, sizeof output, "%s/no\xc3(/b", folder);
    const char *shown = "/no\\xff \\xe2\\x82where/a";
    fails_with(shown, dsv2_model_open(path, NULL, &opened));
    fails_with(shown, dsv2_model_pack(path, output, NULL));
    fails_with("/no\\xc3(/", dsv2_model_pack(folder, output, NULL));
    fails_with(shown, dsv2_model_verify(path, NULL, NULL));
    fails_with(shown, dsv2_tokenizer_open(path, &tokenizer));
    fails_with("/no\\xff \\xe2\\x82where", dsv2_session_save(session, path, NULL));
    dsv2_save_options append = {.struct_size = sizeof append, .append = 1};
    fails_with("/no\\xff \\xe2\\x82where", dsv2_session_save(session, path, &append));
    fails_with(shown, dsv2_session_restore(session, path, NULL, NULL));
    fails_with(shown, dsv2_snapshot_inspect(path, &info));
    dsv2_session_close(session);
}
END_TEST

/* A path that alone is longer than a message. */
START_TEST(long_paths_are_cut_between_characters)
{
    dsv2_model *opened;
    for (size_t before = 0; before < 4; before++) {
        char path[3000] = "nowhere/";
        size_t size = strlen(path);
        memset(path + size, 'a', before);
        for (size += before; size + 4 < sizeof path; size += 3)
            memcpy(path + size, "\xe2\x82\xac", 4);
        ck_assert(dsv2_model_open(path, NULL, &opened) != DSV2_OK);
        assert_is_line(dsv2_last_error());
        ck_assert_msg(strchr(dsv2_last_error(), '\\') == NULL, "%s", dsv2_last_error());
    }
}
END_TEST

/* ---- arguments ---- */

START_TEST(texts_of_any_bytes_are_quoted)
{
    dsv2_model *opened;
    dsv2_model_options options = {.struct_size = sizeof options, .kernels = "av\xff\x01x"};
    fails_with("av\\xff x", dsv2_model_open(folder, &options, &opened));
    const dsv2_tokenizer *tokenizer = dsv2_model_tokenizer(model);
    ck_assert(tokenizer != NULL);
    size_t n;
    dsv2_message message = {.role = "us\xe9r", .content = "a", .content_size = 1};
    fails_with("us\\xe9r", dsv2_chat_encode(tokenizer, &message, 1, 0, NULL, 0, &n));
}
END_TEST

/* A message quotes the beginning of a long text. */
START_TEST(long_texts_are_quoted_up_to_a_character)
{
    dsv2_tokenizer *opened;
    char path[512];
    snprintf(path, sizeof path, "%s/tokenizer.json", folder);
    for (size_t before = 0; before < 4; before++) {
        FILE *file = fopen(path, "w");
        ck_assert(file != NULL);
        fprintf(file, "{\"model\": {\"type\": \"%.*s", (int)before, "aaaa");
        for (int i = 0; i < 200; i++)
            fputs("\xe2\x82\xac", file);
        fputs("\"}}", file);
        ck_assert(fclose(file) == 0);
        fails_with("\xe2\x82\xac\", expected BPE", dsv2_tokenizer_open(folder, &opened));
    }
}
END_TEST

/* The index of the item at fault stands in front, if there are several. */
START_TEST(errors_of_a_step_name_the_item)
{
    static const int32_t outside[] = {1, VOCAB};
    dsv2_model *other = test_model_open(folder, NULL);
    dsv2_session_options two = {.struct_size = sizeof two, .max_length = 2};
    dsv2_session *sessions[3], *stranger = test_session_open(other, NULL), *full = test_session_open(model, &two);
    for (int i = 0; i < 3; i++)
        sessions[i] = test_session_open(model, NULL);
    const struct {
        dsv2_step_item item;
        dsv2_status status;
        const char *message;
    } cases[] = {
        {{.session = sessions[1], .tokens = outside, .n_tokens = 2}, DSV2_ERROR_ARGUMENT,
         "token 1 is 272, expected 0 to 271"},
        {{.session = sessions[1], .tokens = NULL, .n_tokens = 2}, DSV2_ERROR_ARGUMENT, "tokens is NULL"},
        {{.session = sessions[1], .tokens = tokens}, DSV2_ERROR_ARGUMENT, "n is 0, expected at least one token"},
        {{.session = NULL, .tokens = tokens, .n_tokens = 2}, DSV2_ERROR_ARGUMENT, "session is NULL"},
        {{.session = stranger, .tokens = tokens, .n_tokens = 2}, DSV2_ERROR_MISMATCH,
         "the session belongs to another model"},
        {{.session = sessions[0], .tokens = tokens, .n_tokens = 2}, DSV2_ERROR_BUSY,
         "the session is in use by another call, or by another item of this step"},
        {{.session = full, .tokens = tokens, .n_tokens = 3}, DSV2_ERROR_FULL,
         "the session holds 0 of at most 2 tokens: 3 more do not fit"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (size_t at = 1; at < 3; at++) {
            dsv2_step_item items[3];
            for (size_t k = 0; k < 3; k++) {
                items[k] = cases[i].item;
                if (k != at)
                    items[k] = (dsv2_step_item){.session = sessions[k == 0 ? 0 : 2], .tokens = tokens, .n_tokens = 2};
                items[k].struct_size = sizeof *items;
            }
            char expected[128];
            snprintf(expected, sizeof expected, "items[%zu]: %s", at, cases[i].message);
            ck_assert_int_eq(dsv2_step(model, items, 3), cases[i].status);
            ck_assert_str_eq(dsv2_last_error(), expected);
            for (size_t k = 0; k < 3; k++)
                ck_assert_int_eq(items[k].status, cases[i].status);
            if (cases[i].status == DSV2_ERROR_BUSY)
                continue;
            ck_assert_int_eq(dsv2_step(model, items + at, 1), cases[i].status);
            ck_assert_str_eq(dsv2_last_error(), cases[i].message);
        }
    dsv2_step_item sizes[2] = {{.struct_size = sizeof *sizes, .session = sessions[0], .tokens = tokens, .n_tokens = 1},
                               {.struct_size = 1, .session = sessions[1], .tokens = tokens, .n_tokens = 1}};
    fails_with("items[1]: struct_size is 1, of the first item", dsv2_step(model, sizes, 2));
    for (int i = 0; i < 3; i++)
        dsv2_session_close(sessions[i]);
    dsv2_session_close(full);
    dsv2_session_close(stranger);
    dsv2_model_close(other);
}
END_TEST

/* ---- files ---- */

static dsv2_status open_model(const char *path)
{
    dsv2_model_options options = {.struct_size = sizeof options, .n_threads = 1, .log = assert_logged_line};
    dsv2_model *opened;
    dsv2_status status = dsv2_model_open(path, &options, &opened);
    if (status == DSV2_OK)
        dsv2_model_close(opened);
    return status;
}

static dsv2_status open_folder(const char *path)
{
    (void)path;
    return open_model(folder);
}

static dsv2_status open_tokenizer(const char *path)
{
    (void)path;
    dsv2_tokenizer *opened;
    dsv2_status status = dsv2_tokenizer_open(folder, &opened);
    if (status == DSV2_OK)
        dsv2_tokenizer_close(opened);
    return status;
}

static dsv2_status verify(const char *path) { return dsv2_model_verify(path, NULL, NULL); }

static dsv2_status restore(const char *path)
{
    dsv2_session *session = test_session_open(model, NULL);
    dsv2_status status = dsv2_session_restore(session, path, NULL, NULL);
    dsv2_session_close(session);
    return status;
}

static const struct {
    const char *name; /* in the folder */
    dsv2_status (*read)(const char *path);
    size_t at_most; /* bytes from the start that are damaged */
} files[] = {
    {"config.json", open_folder, 4096},      {"model.safetensors", open_folder, 4096},
    {"tokenizer.json", open_tokenizer, 6000}, {"tokenizer_config.json", open_tokenizer, 4096},
    {"model.gguf", open_model, 6000},        {"model.dsv2", open_model, 6000},
    {"model.dsv2", verify, 4096},            {"session", restore, 512},
};

/* Bytes that are no UTF-8, that begin a character, and that end a line, in turn in many places of every file. */
START_TEST(damaged_files_are_told_of_in_utf8)
{
    static const char bad[] = {'\xff', '\xe2', '\xc3', '\n', '\x85'};
    char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, files[_i].name);
    FILE *file = fopen(path, "r+b");
    ck_assert(file != NULL && fseek(file, 0, SEEK_END) == 0);
    long size = ftell(file), end = size < (long)files[_i].at_most ? size : (long)files[_i].at_most, n_failed = 0;
    for (long at = 0; at < end; at += 1 + at / 64) {
        int kept;
        ck_assert(fseek(file, at, SEEK_SET) == 0 && (kept = fgetc(file)) != EOF);
        ck_assert(fseek(file, at, SEEK_SET) == 0 && fputc(bad[at % (long)sizeof bad], file) != EOF);
        ck_assert(fflush(file) == 0);
        if (files[_i].read(path) != DSV2_OK) {
            assert_is_line(dsv2_last_error());
            n_failed++;
        }
        ck_assert(fseek(file, at, SEEK_SET) == 0 && fputc(kept, file) != EOF && fflush(file) == 0);
    }
    ck_assert_int_gt(n_failed, 20);
    ck_assert_msg(files[_i].read(path) == DSV2_OK, "%s", dsv2_last_error());
    ck_assert(fclose(file) == 0);
}
END_TEST

static void copy_file(const char *name)
{
    char command[1200];
    snprintf(command, sizeof command, "cp '%s/bytes/%s' '%s/%s'", TEST_DATA, name, folder, name);
    ck_assert(system(command) == 0);
}

static void set_up(void)
{
    folder = test_checkpoint_write(&shape);
    copy_file("tokenizer.json");
    copy_file("tokenizer_config.json");
    char path[512];
    snprintf(path, sizeof path, "%s/model.gguf", folder);
    test_gguf_write(&(test_gguf){.seed = 1}, folder, path, NULL);
    snprintf(path, sizeof path, "%s/model.dsv2", folder);
    ck_assert_msg(dsv2_model_pack(folder, path, NULL) == DSV2_OK, "%s", dsv2_last_error());
    model = test_model_open(folder, NULL);
    dsv2_session *session = test_session_open(model, NULL);
    ck_assert(dsv2_session_feed(session, tokens, 3) == DSV2_OK);
    snprintf(path, sizeof path, "%s/session", folder);
    ck_assert_msg(dsv2_session_save(session, path, NULL) == DSV2_OK, "%s", dsv2_last_error());
    dsv2_session_close(session);
}

static void tear_down(void)
{
    dsv2_model_close(model);
    test_checkpoint_remove(folder);
}

int main(void)
{
    Suite *suite = suite_create("messages");
    TCase *tests = tcase_create("messages");
    tcase_add_checked_fixture(tests, set_up, tear_down);
    tcase_set_timeout(tests, 200);
    tcase_add_test(tests, any_bytes_make_a_line_of_utf8);
    tcase_add_test(tests, what_is_no_utf8_is_escaped_and_the_rest_stays);
    tcase_add_test(tests, what_is_too_long_is_cut_between_characters);
    tcase_add_test(tests, paths_of_any_bytes_are_named);
    tcase_add_test(tests, long_paths_are_cut_between_characters);
    tcase_add_test(tests, texts_of_any_bytes_are_quoted);
    tcase_add_test(tests, long_texts_are_quoted_up_to_a_character);
    tcase_add_test(tests, errors_of_a_step_name_the_item);
    tcase_add_loop_test(tests, damaged_files_are_told_of_in_utf8, 0, sizeof files / sizeof *files);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}

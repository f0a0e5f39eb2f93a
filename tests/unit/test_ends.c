/* Which tokens begin and end a text, and what the ids mean that a tokenizer lacks: of folders as they are found, and of
 * packs made of them. The tokenizer has 384 ids, of which <|begin|> is 0 and <|end|> 1; the model has 400. */
#include "support/checkpoint.h"
#include "support/model.h"
#include "support/run.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { VOCAB = 400, MAX_ENDS = 6 };

static const test_checkpoint shape = {
    .vocab_size = VOCAB, .hidden_size = 32, .intermediate_size = 32, .num_hidden_layers = 1, .num_attention_heads = 2,
    .kv_lora_rank = 32, .qk_nope_head_dim = 8, .qk_rope_head_dim = 4, .v_head_dim = 8, .max_position_embeddings = 64,
    .seed = 6};

static char *folder;
static char remarks[4096];

static void collect(void *user, dsv2_log_level level, const char *message)
{
    (void)user;
    if (level == DSV2_LOG_WARNING)
        snprintf(remarks + strlen(remarks), sizeof remarks - strlen(remarks), "%s\n", message);
}

static void path_of(const char *name, char path[512]) { snprintf(path, 512, "%s/%s", folder, name); }

static char *read_file(const char *path, size_t *size)
{
    FILE *file = fopen(path, "rb");
    ck_assert(file != NULL);
    char *text = calloc(1, 1 << 20);
    *size = fread(text, 1, (1 << 20) - 1, file);
    fclose(file);
    return text;
}

/* NULL: there is no such file. */
static void write_file(const char *name, const char *text)
{
    char path[512];
    path_of(name, path);
    unlink(path);
    if (text == NULL)
        return;
    FILE *file = fopen(path, "wb");
    ck_assert(file != NULL && fputs(text, file) >= 0 && fclose(file) == 0);
}

static char *config; /* as it was written */

static void make(void)
{
    char path[512];
    size_t size;
    folder = test_checkpoint_write(&shape);
    path_of("config.json", path);
    config = read_file(path, &size);
    char *tokenizer = read_file(TEST_DATA "/bytes/tokenizer.json", &size);
    write_file("tokenizer.json", tokenizer);
    free(tokenizer);
}

static void remove_all(void)
{
    free(config);
    test_checkpoint_remove(folder);
}

/* fields: further fields of config.json. */
static void write_all(const char *fields, const char *generation, const char *tokenizer)
{
    char *text = malloc(strlen(config) + strlen(fields) + 8);
    sprintf(text, "{%s%s%s", fields, fields[0] != '\0' ? "," : "", strchr(config, '{') + 1);
    write_file("config.json", text);
    free(text);
    write_file("generation_config.json", generation);
    write_file("tokenizer_config.json", tokenizer);
}

static void expect_ends(const dsv2_model *model, const int32_t *expected)
{
    const int32_t *ends;
    size_t n, n_expected = 0;
    while (n_expected < MAX_ENDS && expected[n_expected] >= 0)
        n_expected++;
    ck_assert(dsv2_model_end_tokens(model, &ends, &n) == DSV2_OK);
    ck_assert_uint_eq(n, n_expected);
    for (size_t i = 0; i < n; i++)
        ck_assert_int_eq(ends[i], expected[i]);
    for (int32_t token = -1; token <= VOCAB; token++) {
        int is_end = 0;
        for (size_t i = 0; i < n; i++)
            is_end |= expected[i] == token;
        ck_assert_int_eq(dsv2_model_is_end(model, token), is_end);
    }
    ck_assert_int_eq(test_model_info(model).eos_token_id, expected[0]);
}

static void expect_begin(const dsv2_model *model, int32_t bos)
{
    const dsv2_tokenizer *tokenizer = dsv2_model_tokenizer(model);
    dsv2_tokenizer_info info = {.struct_size = sizeof info};
    ck_assert_int_eq(test_model_info(model).bos_token_id, bos);
    if (tokenizer != NULL) {
        ck_assert(dsv2_tokenizer_get_info(tokenizer, &info) == DSV2_OK);
        ck_assert_int_eq(info.bos_token_id, bos);
    }
}

static const struct {
    const char *config, *generation, *tokenizer;
    int32_t ends[MAX_ENDS], bos;
    const char *remark; /* NULL: none */
} cases[] = {
    {"", NULL, NULL, {-1}, -1, NULL},
    {"\"eos_token_id\":103", NULL, NULL, {103, -1}, -1, NULL},
    {"\"eos_token_id\":[104,103,104]", NULL, NULL, {104, 103, -1}, -1, NULL},
    {"", "{\"eos_token_id\":103,\"temperature\":1e999,\"x\":NaN}", NULL, {103, -1}, -1, NULL},
    {"\"eos_token_id\":1", "{\"eos_token_id\":[1,103],\"bos_token_id\":\"?\"}", NULL, {1, 103, -1}, -1, NULL},
    {"\"eos_token_id\":1", "{\"eos_token_id\":[400,-1,105]}", NULL, {1, 105, -1}, -1,
     "eos_token_id is 400, which the model does not have"},
    {"\"eos_token_id\":1", "{\"eos_token_id\":null}", NULL, {1, -1}, -1, NULL},
    {"", NULL, "{\"eos_token\":\"<|end|>\"}", {1, -1}, -1, NULL},
    {"\"eos_token_id\":[103]", "{\"eos_token_id\":104}", "{\"eos_token\":{\"content\":\"<|end|>\"}}",
     {103, 104, 1, -1}, -1, NULL},
    {"\"bos_token_id\":5", NULL, NULL, {-1}, 5, NULL},
    {"\"bos_token_id\":5", NULL, "{\"bos_token\":\"<|begin|>\"}", {-1}, 0,
     "bos_token_id is 5 in the configuration and 0 in the tokenizer, which counts"},
    {"\"bos_token_id\":0", NULL, "{\"bos_token\":\"<|begin|>\"}", {-1}, 0, NULL},
    {"", NULL, "{\"bos_token\":\"<|begin|>\"}", {-1}, 0, NULL},
};

START_TEST(every_file_of_a_checkpoint_may_name_ends_of_text)
{
    char pack[512];
    path_of("model.dsv2", pack);
    const dsv2_model_options options = {.n_threads = 1, .log = collect};
    write_all(cases[_i].config, cases[_i].generation, cases[_i].tokenizer);
    remarks[0] = '\0';
    dsv2_model *model = test_model_open(folder, &options);
    expect_ends(model, cases[_i].ends);
    expect_begin(model, cases[_i].bos);
    ck_assert_msg(cases[_i].remark != NULL ? strstr(remarks, cases[_i].remark) != NULL : remarks[0] == '\0', "%s",
                  remarks);
    dsv2_model_close(model);
    ck_assert(dsv2_model_pack(folder, pack, NULL) == DSV2_OK);
    model = test_model_open(pack, &options);
    expect_ends(model, cases[_i].ends);
    expect_begin(model, cases[_i].bos);
    dsv2_model_close(model);
}
END_TEST

START_TEST(a_generation_config_that_is_wrong_is_named)
{
    static const struct {
        const char *text, *words;
    } wrong[] = {
        {"{\"eos_token_id\":\"<|end|>\"}", "generation_config.json: eos_token_id is a string"},
        {"{\"eos_token_id\":[1,2.5]}", "generation_config.json: eos_token_id is a number with a fraction"},
        {"[]", "generation_config.json"},
        {"{", "generation_config.json"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        dsv2_model *model;
        write_all("", wrong[i].text, NULL);
        ck_assert_int_eq(dsv2_model_open(folder, NULL, &model), DSV2_ERROR_FORMAT);
        ck_assert_msg(strstr(dsv2_last_error(), wrong[i].words) != NULL, "%s", dsv2_last_error());
    }
    char many[1024] = "{\"eos_token_id\":[0";
    for (int id = 1; id <= 32; id++)
        snprintf(many + strlen(many), sizeof many - strlen(many), ",%d", id);
    write_all("", strcat(many, "]}"), NULL);
    dsv2_model *model;
    ck_assert_int_eq(dsv2_model_open(folder, NULL, &model), DSV2_ERROR_FORMAT);
    ck_assert_msg(strstr(dsv2_last_error(), "more than 32") != NULL, "%s", dsv2_last_error());
}
END_TEST

START_TEST(ids_that_the_tokenizer_lacks_have_no_text)
{
    write_all("", NULL, NULL);
    dsv2_model *model = test_model_open(folder, NULL);
    const dsv2_tokenizer *t = dsv2_model_tokenizer(model);
    const int32_t ids[] = {384, 2, 399, (1 << 20) - 1, 3}, known[] = {2, 3};
    char text[16], expected[16];
    const char *of_token;
    size_t size, expected_size;
    ck_assert(dsv2_tokenizer_decode(t, known, 2, DSV2_DECODE_SPECIAL, expected, 16, &expected_size) == DSV2_OK);
    ck_assert(dsv2_tokenizer_decode(t, ids, 5, DSV2_DECODE_SPECIAL, text, 16, &size) == DSV2_OK);
    ck_assert_uint_eq(size, expected_size);
    ck_assert_mem_eq(text, expected, size);
    for (int32_t id = 384; id < VOCAB; id++)
        ck_assert(dsv2_token_text(t, id, &of_token, &size) == DSV2_OK && size == 0 && of_token != NULL);
    ck_assert_int_eq(dsv2_tokenizer_decode(t, (int32_t[]){1 << 20}, 1, 0, text, 16, &size), DSV2_ERROR_ARGUMENT);
    dsv2_model_close(model);
}
END_TEST

/* An unknown normalizer, decoder or pre-tokenizer, as other libraries write them over a checkpoint's own. */
START_TEST(a_tokenizer_that_cannot_be_used_leaves_the_weights)
{
    char path[512];
    size_t size;
    path_of("tokenizer.json", path);
    write_all("\"eos_token_id\":7", NULL, "{\"eos_token\":\"<|end|>\"}");
    char *tokenizer = read_file(path, &size), *changed = malloc(size + 64);
    sprintf(changed, "{\"normalizer\":{\"type\":\"Odd\"},%s", strchr(tokenizer, '{') + 1);
    char *other = strstr(changed + 40, "\"normalizer\"");
    if (other != NULL)
        other[1] = 'x'; /* the file's own comes later, and is none */
    write_file("tokenizer.json", changed);
    dsv2_tokenizer *alone;
    ck_assert_int_eq(dsv2_tokenizer_open(folder, &alone), DSV2_ERROR_UNSUPPORTED);
    const dsv2_model_options options = {.n_threads = 1, .log = collect};
    remarks[0] = '\0';
    dsv2_model *model = test_model_open(folder, &options);
    ck_assert_msg(strstr(remarks, "token ids only") != NULL && strstr(remarks, "Odd") != NULL, "%s", remarks);
    ck_assert_ptr_null(dsv2_model_tokenizer(model));
    ck_assert_msg(strstr(dsv2_last_error(), "Odd") != NULL, "%s", dsv2_last_error());
    const int32_t *ends, tokens[] = {3, 4};
    dsv2_session *session;
    ck_assert(dsv2_model_end_tokens(model, &ends, &size) == DSV2_OK && size == 1 && ends[0] == 7);
    ck_assert(dsv2_session_open(model, NULL, &session) == DSV2_OK && dsv2_session_feed(session, tokens, 2) == DSV2_OK);
    dsv2_session_close(session);
    dsv2_model_close(model);
    char pack[512];
    path_of("model.dsv2", pack);
    ck_assert_msg(dsv2_model_pack(folder, pack, NULL) == DSV2_OK, "%s", dsv2_last_error());
    model = test_model_open(pack, &options);
    ck_assert_ptr_null(dsv2_model_tokenizer(model));
    dsv2_model_close(model);
    /* what cannot be read as JSON neither */
    write_file("tokenizer.json", "{");
    model = test_model_open(folder, &options);
    ck_assert_ptr_null(dsv2_model_tokenizer(model));
    dsv2_model_close(model);
    free(changed);
    free(tokenizer);
}
END_TEST

START_TEST(arguments_of_end_tokens_are_checked)
{
    const int32_t *ends;
    size_t n;
    write_all("", NULL, NULL);
    dsv2_model *model = test_model_open(folder, NULL);
    ck_assert_int_eq(dsv2_model_end_tokens(NULL, &ends, &n), DSV2_ERROR_ARGUMENT);
    ck_assert_int_eq(dsv2_model_end_tokens(model, NULL, &n), DSV2_ERROR_ARGUMENT);
    ck_assert_int_eq(dsv2_model_end_tokens(model, &ends, NULL), DSV2_ERROR_ARGUMENT);
    ck_assert_int_eq(dsv2_model_is_end(NULL, 1), 0);
    dsv2_model_close(model);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("ends");
    TCase *tests = tcase_create("ends");
    tcase_set_timeout(tests, 60);
    tcase_add_checked_fixture(tests, make, remove_all);
    tcase_add_loop_test(tests, every_file_of_a_checkpoint_may_name_ends_of_text, 0, sizeof cases / sizeof *cases);
    tcase_add_test(tests, a_generation_config_that_is_wrong_is_named);
    tcase_add_test(tests, ids_that_the_tokenizer_lacks_have_no_text);
    tcase_add_test(tests, a_tokenizer_that_cannot_be_used_leaves_the_weights);
    tcase_add_test(tests, arguments_of_end_tokens_are_checked);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}

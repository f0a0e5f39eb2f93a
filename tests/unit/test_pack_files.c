/* Packs that somebody made to do harm. Their checksums are right, so that the reader sees what is inside. Each is
 * refused with a message that names the file, the field and its value. */
#include "folder.h"
#include "opening.h"
#include "script.h"

#include "formats/pack.h"
#include "support/pack_file.h"
#include "support/run.h"
#include "support/tensors.h"

#include <dsv2/dsv2.h>

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* An entry of an index: element type, dimensions and their number, offset, bytes, the name and its length. */
#define ENTRY(length, type, n_dims, offset, bytes)                                                                     \
    "2:" length " 1:" type " 1:" n_dims " 8:" offset " 8:" bytes " 8:0 8:0 "
#define VECTOR(name, n, offset, bytes)             ENTRY("1", "1", "1", offset, bytes) "8:" n " b:" name " "
#define MATRIX(name, type, rows, cols, offset, bytes)                                                                  \
    ENTRY("1", type, "2", offset, bytes) "8:" rows " 8:" cols " b:" name " "

#define HUGE64 "18446744073709551615"

static char *script_bytes(const char *script, size_t *size)
{
    script_write("part", script);
    return test_read_file(folder_file("part"), size);
}

/* A pack whose index and texts are scripts. The 8 bytes at `at` of the header become `value` (at 0: none). */
static void write_pack(const char *index_script, const char *texts_script, size_t at, uint64_t value)
{
    size_t index_size, texts_size, size;
    char *index = script_bytes(index_script, &index_size), *texts = script_bytes(texts_script, &texts_size);
    uint8_t *file = pack_file_make((const uint8_t *)index, index_size, (const uint8_t *)texts, texts_size, &size);
    if (at > 0)
        ds_write_u64(file + at, value);
    pack_file_seal(file);
    folder_write("bad.dsv2", file, size);
    free(file);
    free(texts);
    free(index);
}

/* A text of a pack. */
typedef struct text {
    const char *name, *script;
} text;

/* A pack of an index and texts, at most two. */
static void write_with_texts(const char *index, const text *texts)
{
    char script[4096] = "";
    for (size_t i = 0; i < 2 && texts[i].name != NULL; i++) {
        size_t size, length = strlen(script);
        free(script_bytes(texts[i].script, &size));
        snprintf(script + length, sizeof script - length, "4:%zu 4:0 8:%zu b:%s %s ", strlen(texts[i].name), size,
                 texts[i].name, texts[i].script);
    }
    write_pack(index, script, 0, 0);
}

static dsv2_status open_pack(const char *path, const ds_logger *logger, ds_container **container)
{
    (void)logger;
    return ds_pack_open(path, container);
}

static const struct {
    const char *index, *part;
    dsv2_status status;
} indexes[] = {
    {"", "", DSV2_OK},
    {VECTOR("a", "2", "4096", "8") MATRIX("b", "19", "1", "32", "4160", "0"),
     "tensor b has 0 bytes, which its shape and type P8 do", DSV2_ERROR_FORMAT},
    {VECTOR("a", "2", "4160", "8") VECTOR("b", "16", "4096", "64"), "", DSV2_OK},
    /* cut */
    {"n:35", "entry 0 takes 36 bytes, but 35 are left", DSV2_ERROR_FORMAT},
    {VECTOR("a", "2", "4096", "8") "1:0", "entry 1 takes 36 bytes, but 1 are left", DSV2_ERROR_FORMAT},
    {ENTRY("255", "1", "1", "4096", "8") "8:2 b:a", "entry 0 takes 299 bytes, but 45 are left", DSV2_ERROR_FORMAT},
    /* lengths and counts */
    {ENTRY("0", "1", "1", "4096", "8") "8:2", "entry 0 has a name of 0 bytes, expected 1 to 255", DSV2_ERROR_FORMAT},
    {ENTRY("65535", "1", "1", "4096", "8") "8:2 b:a", "entry 0 has a name of 65535 bytes", DSV2_ERROR_FORMAT},
    {ENTRY("3", "1", "1", "4096", "8") "8:2 b:a 1:0 b:b", "entry 0 has a zero in its name, a", DSV2_ERROR_FORMAT},
    {ENTRY("1", "1", "0", "4096", "8") "8:2 b:a", "entry 0 has 0 dimensions, expected 1 to 4", DSV2_ERROR_FORMAT},
    {ENTRY("1", "1", "255", "4096", "8") "8:2 b:a", "entry 0 has 255 dimensions", DSV2_ERROR_FORMAT},
    /* types */
    {MATRIX("w", "0", "1", "1", "4096", "4"), "tensor w has element type 0", DSV2_ERROR_UNSUPPORTED},
    {MATRIX("w", "255", "1", "1", "4096", "4"), "tensor w has element type 255", DSV2_ERROR_UNSUPPORTED},
    {ENTRY("1", "19", "1", "4096", "64") "8:64 b:w", "tensor w has 64 bytes, which its shape and type P8",
     DSV2_ERROR_FORMAT},
    /* products that wrap */
    {MATRIX("w", "1", "0x4000000000000000", "4", "4096", "0"), "tensor w has 0 bytes, which its shape",
     DSV2_ERROR_FORMAT},
    {MATRIX("w", "2", "0x100000000", "0x100000000", "4096", "0"), "tensor w has 0 bytes, which its shape",
     DSV2_ERROR_FORMAT},
    {MATRIX("w", "19", HUGE64, "32", "4096", "0"), "tensor w has 0 bytes, which its shape", DSV2_ERROR_FORMAT},
    {MATRIX("w", "16", "16", HUGE64, "4096", "0"), "tensor w has 0 bytes, which its shape", DSV2_ERROR_FORMAT},
    {MATRIX("w", "1", "0x8000000000000001", "2", "4096", "8"), "tensor w has 8 bytes, which its shape",
     DSV2_ERROR_FORMAT},
    /* places */
    {VECTOR("w", "2", "4096", "12"), "tensor w has 12 bytes, which its shape and type F32 do not give",
     DSV2_ERROR_FORMAT},
    {VECTOR("w", "2", "4100", "8"), "tensor w lies at 4100, 8 bytes: expected a multiple of 64", DSV2_ERROR_FORMAT},
    {VECTOR("w", "2", "0", "8"), "tensor w lies at 0, 8 bytes: expected a multiple of 64 from 4096", DSV2_ERROR_FORMAT},
    {VECTOR("w", "2", "4608", "8"), "tensor w lies at 4608, 8 bytes: expected a multiple of 64 from 4096 to 4608",
     DSV2_ERROR_FORMAT},
    {VECTOR("w", "129", "4096", "516"), "tensor w lies at 4096, 516 bytes", DSV2_ERROR_FORMAT},
    {VECTOR("w", "16", "18446744073709551552", "64"), "tensor w lies at 18446744073709551552, 64 bytes",
     DSV2_ERROR_FORMAT},
    {VECTOR("w", "0x100000002", "4096", "8"), "tensor w has 8 bytes, which its shape", DSV2_ERROR_FORMAT},
    {VECTOR("a", "32", "4096", "128") VECTOR("b", "2", "4160", "8"), "tensor b begins inside tensor a",
     DSV2_ERROR_FORMAT},
    {VECTOR("a", "2", "4096", "8") VECTOR("b", "2", "4096", "8"), " begins inside tensor ", DSV2_ERROR_FORMAT},
    {VECTOR("w", "2", "4096", "8") VECTOR("w", "2", "4160", "8"), "tensor w is there twice", DSV2_ERROR_FORMAT},
};

START_TEST(a_bad_index_is_refused_by_entry_or_tensor_and_value)
{
    write_pack(indexes[_i].index, "", 0, 0);
    if (indexes[_i].status == DSV2_OK)
        ds_container_close(expect_opened(open_pack, "bad.dsv2"));
    else
        expect_refusal(open_pack, "bad.dsv2", indexes[_i].status, indexes[_i].part);
}
END_TEST

static const struct {
    size_t at;
    uint64_t value;
    const char *part;
} headers[] = {
    {16, 0, "its header says 0"},
    {16, UINT64_MAX, "its header says " HUGE64},
    {24, UINT64_MAX, "the index lies at " HUGE64},
    {24, 1 << 20, "the index lies at 1048576"},
    {32, UINT64_MAX, "the index lies at 4608 to"},
    {32, UINT64_MAX - 4607, "the index lies at 4608 to"},
    {32, (UINT64_C(1) << 32) + 9, "the index lies at 4608 to 4294971913"},
    {32, 0, "the index is damaged: its checksum differs"},
    {40, UINT64_MAX, "the index unpacks to " HUGE64 " bytes, expected at most 268435456"},
    {40, (UINT64_C(1) << 32) + 45, "the index unpacks to 4294967341 bytes"},
    {40, 44, "the index is damaged: "},
    {40, 46, "the index is damaged: its size differs"},
    {56, UINT64_MAX, "the block of texts lies at " HUGE64},
    {64, UINT64_MAX, "the block of texts lies at "},
    {72, UINT64_MAX, "the block of texts unpacks to " HUGE64},
    {80, 7, "the block of texts is damaged: its checksum differs"},
};

START_TEST(a_bad_header_is_refused_by_block_and_value)
{
    write_pack(VECTOR("w", "2", "4096", "8"), "", headers[_i].at, headers[_i].value);
    expect_refusal(open_pack, "bad.dsv2", DSV2_ERROR_FORMAT, headers[_i].part);
}
END_TEST

static const char *const blocks_of_texts[][2] = {
    {"n:15", "at byte 0 a name of 0 bytes and a text of 0, but 15 are left"},
    {"4:1 4:0 8:1 b:x", "at byte 0 a name of 1 bytes and a text of 1, but 17 are left"},
    {"4:1 4:0 8:1 b:xy 1:0", "at byte 18 a name of 0 bytes and a text of 0, but 1 are left"},
    {"4:4294967295 4:0 8:1 b:xy", "a name of 4294967295 bytes"},
    {"4:1 4:0 8:" HUGE64 " b:xy", "a text of " HUGE64},
    {"4:1 4:0 8:18446744073709551598 b:xy", "a text of 18446744073709551598"}, /* together 0 */
    {"4:1 4:0 8:0x100000001 b:xy", "a text of 4294967297"},
};

START_TEST(a_bad_block_of_texts_is_refused_by_place_and_lengths)
{
    write_pack("", blocks_of_texts[_i][0], 0, 0);
    expect_refusal(open_pack, "bad.dsv2", DSV2_ERROR_FORMAT, blocks_of_texts[_i][1]);
}
END_TEST

/* ---- what is in the texts ---- */

#define CONFIG(vocab_size, more)                                                                                       \
    "b:{\"model_type\":\"deepseek_v2\",\"vocab_size\":" vocab_size ",\"hidden_size\":4,\"intermediate_size\":4,"       \
    "\"num_hidden_layers\":1,\"num_attention_heads\":1,\"kv_lora_rank\":4,\"q_lora_rank\":null,"                       \
    "\"qk_nope_head_dim\":4,\"qk_rope_head_dim\":2,\"v_head_dim\":4,\"max_position_embeddings\":16,"                   \
    "\"n_routed_experts\":null," more "\"rms_norm_eps\":1e-6}"

/* 2,500 arrays, each in another. */
#define FIVE_TIMES(text) text text text text text
#define DEEP             FIVE_TIMES(FIVE_TIMES(FIVE_TIMES(FIVE_TIMES("[[[["))))

#define EMBEDDING(rows, bytes) ENTRY("25", "1", "2", "4096", bytes) "8:" rows " 8:4 b:model.embed_tokens.weight "

static const struct {
    const char *index;
    text texts[2];
    const char *part;
    dsv2_status status;
} models[] = {
    {"", {{NULL, NULL}}, "the pack has no config.json", DSV2_ERROR_FORMAT},
    {"", {{"config.json", ""}}, "not valid JSON", DSV2_ERROR_FORMAT},
    {"", {{"config.json", "b:" DEEP}}, "more than 128 deep", DSV2_ERROR_FORMAT},
    {"", {{"tokenizer.json", "b:" DEEP}, {"config.json", CONFIG("2", "")}},
     "tensor model.embed_tokens.weight is missing", /* such a tokenizer leaves the weights */
     DSV2_ERROR_FORMAT},
    {"",
     {{"config.json", CONFIG("2", "\"bos_token_id\":2,")}},
     "bos_token_id is 2, expected 0 to vocab_size - 1, 1",
     DSV2_ERROR_FORMAT},
    {"", {{"config.json", CONFIG("4294967298", "")}}, "vocab_size is 4294967298", DSV2_ERROR_FORMAT},
    {"", {{"config.json", CONFIG("2", "\"num_hidden_layers\":7,")}}, "duplicate object key", DSV2_ERROR_FORMAT},
    {"", {{"config.json", CONFIG("2", "")}}, "tensor model.embed_tokens.weight is missing", DSV2_ERROR_FORMAT},
    {EMBEDDING("3", "48"),
     {{"config.json", CONFIG("2", "")}},
     "tensor model.embed_tokens.weight has shape [3, 4], the configuration says [2, 4]",
     DSV2_ERROR_FORMAT},
    {EMBEDDING("3", "48"),
     {{"config.json", CONFIG("3", "")}},
     "tensor model.layers.0.input_layernorm.weight is missing",
     DSV2_ERROR_FORMAT},
    {EMBEDDING("2", "32"),
     {{"config.json", CONFIG("2", "")}, {"tokenizer.json", "b:{"}},
     "tensor model.layers.0.input_layernorm.weight is missing",
     DSV2_ERROR_FORMAT},
};

START_TEST(a_pack_of_a_model_that_cannot_be_is_refused_by_field_or_tensor)
{
    write_with_texts(models[_i].index, models[_i].texts);
    dsv2_model *model = NULL;
    ck_assert_int_eq(dsv2_model_open(folder_file("bad.dsv2"), NULL, &model), models[_i].status);
    ck_assert_ptr_null(model);
    expect_message(folder_file("bad.dsv2"));
    expect_message(models[_i].part);
}
END_TEST

/* Tokens, merges, BOS, EOS, whether pieces are merged; pre-tokenizer, chat template; kinds, tokens, merges. */
#define VOCABULARY(tokens, merges, bos, eos) "4:" tokens " 4:" merges " 4:" bos " 4:" eos " 4:0 "

static const char *const vocabularies[][2] = {
    {"n:19", "the vocabulary is cut: 19 bytes, expected at least 20"},
    {VOCABULARY("4294967295", "0", "0", "0") "n:40", "60 bytes, too few for 4294967295 tokens and 0 merges"},
    {VOCABULARY("1", "0x80000000", "0", "0") "n:40", "too few for 1 tokens and 2147483648 merges"},
    {VOCABULARY("1", "0", "1", "0") "4:0 4:0 1:1 4:1 b:a", "BOS and EOS ids are 1 and 0, expected -1 to 0"},
    {VOCABULARY("1", "0", "0", "2147483647") "4:0 4:0 1:1 4:1 b:a", "ids are 0 and 2147483647"},
    {VOCABULARY("1", "0", "0", "0xfffffffe") "4:0 4:0 1:1 4:1 b:a", "ids are 0 and -2"},
    {VOCABULARY("1", "0", "0", "0") "4:4294967295 4:0 1:1 4:1 b:a", "its 34 bytes end before 1 tokens and 0 merges do"},
    {VOCABULARY("1", "0", "0", "0") "4:0 4:0 1:1 4:2 b:a", "its 34 bytes end before 1 tokens"},
    {VOCABULARY("1", "1", "0", "0") "4:0 4:0 1:1 4:1 b:a 4:1 b:a 4:9", "end before 1 tokens and 1 merges do"},
};

START_TEST(a_bad_vocabulary_is_refused_by_lengths_and_ids)
{
    const text texts[2] = {{"vocabulary", vocabularies[_i][0]}};
    write_with_texts("", texts);
    dsv2_tokenizer *tokenizer = NULL;
    ck_assert_int_eq(dsv2_tokenizer_open(folder_file("bad.dsv2"), &tokenizer), DSV2_ERROR_FORMAT);
    ck_assert_ptr_null(tokenizer);
    expect_message(folder_file("bad.dsv2"));
    expect_message(vocabularies[_i][1]);
}
END_TEST

START_TEST(a_pack_that_changes_size_while_open_is_noticed)
{
    write_pack(VECTOR("w", "2", "4096", "8"), "", 0, 0);
    ds_container *container = expect_opened(open_pack, "bad.dsv2");
    ck_assert_int_eq(ds_container_check(container), DSV2_OK);
    ck_assert_int_eq(truncate(folder_file("bad.dsv2"), 4096), 0);
    ck_assert_int_eq(ds_container_check(container), DSV2_ERROR_IO);
    expect_message(folder_file("bad.dsv2"));
    expect_message("the file was changed while in use");
    ds_container_close(container);
}
END_TEST

int main(void)
{
    TCase *tests = tcase_create("pack files");
    tcase_set_timeout(tests, 60);
    tcase_add_checked_fixture(tests, folder_make, folder_remove);
    tcase_add_loop_test(tests, a_bad_index_is_refused_by_entry_or_tensor_and_value, 0,
                        sizeof indexes / sizeof *indexes);
    tcase_add_loop_test(tests, a_bad_header_is_refused_by_block_and_value, 0, sizeof headers / sizeof *headers);
    tcase_add_loop_test(tests, a_bad_block_of_texts_is_refused_by_place_and_lengths, 0,
                        sizeof blocks_of_texts / sizeof *blocks_of_texts);
    tcase_add_loop_test(tests, a_pack_of_a_model_that_cannot_be_is_refused_by_field_or_tensor, 0,
                        sizeof models / sizeof *models);
    tcase_add_loop_test(tests, a_bad_vocabulary_is_refused_by_lengths_and_ids, 0,
                        sizeof vocabularies / sizeof *vocabularies);
    tcase_add_test(tests, a_pack_that_changes_size_while_open_is_noticed);

    Suite *suite = suite_create("pack files");
    suite_add_tcase(suite, tests);
    return test_run(suite);
}

/* The configuration of a GGUF: what llama.cpp's converters wrote is read as the published models are. Everything else
 * is refused by key. */
#include "folder.h"
#include "script.h"

#include "config/config.h"
#include "support/run.h"
#include "unit/lite.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A key of the file: its name without "deepseek2.", and its value as a script's words. */
typedef struct entry {
    const char *key, *value;
} entry;

#define U32(n)     "4:4 4:" #n
#define FLOAT(x)   "4:6 f:" #x
#define TEXT(text) "4:8 s:" text
#define TRUE       "4:7 1:1"

enum { MAX_ENTRIES = 48 };

/* DeepSeek-V2-Lite as converted since 2025, with the smallest of tensors. */
static const entry lite[] = {
    {"general.architecture", TEXT("deepseek2")},
    {"embedding_length", U32(2048)},
    {"feed_forward_length", U32(10944)},
    {"block_count", U32(27)},
    {"context_length", U32(163840)},
    {"attention.head_count", U32(16)},
    {"attention.head_count_kv", U32(1)},
    {"attention.kv_lora_rank", U32(512)},
    {"attention.key_length", U32(576)},
    {"attention.value_length", U32(512)},
    {"attention.key_length_mla", U32(192)},
    {"attention.value_length_mla", U32(128)},
    {"attention.layer_norm_rms_epsilon", FLOAT(1e-6)},
    {"rope.dimension_count", U32(64)},
    {"rope.freq_base", FLOAT(10000)},
    {"rope.scaling.type", TEXT("yarn")},
    {"rope.scaling.factor", FLOAT(40)},
    {"rope.scaling.original_context_length", U32(4096)},
    {"rope.scaling.yarn_log_multiplier", FLOAT(0.0707)},
    {"leading_dense_block_count", U32(1)},
    {"expert_feed_forward_length", U32(1408)},
    {"expert_count", U32(64)},
    {"expert_used_count", U32(6)},
    {"expert_shared_count", U32(2)},
    {"expert_weights_scale", FLOAT(1)},
    {"expert_gating_func", U32(1)},
    {"expert_group_count", U32(1)},
    {"expert_group_used_count", U32(1)},
    {"tokenizer.ggml.bos_token_id", U32(5)},
    {"tokenizer.ggml.eos_token_id", U32(6)},
};

/* The keys of lite with changes put over them. A change without a value takes the key away. */
static void write_gguf(const entry *changes, size_t n_changes, const char *tensors, unsigned n_tensors)
{
    entry all[MAX_ENTRIES];
    size_t n = sizeof lite / sizeof *lite;
    memcpy(all, lite, sizeof lite);
    for (size_t c = 0; c < n_changes && changes[c].key != NULL; c++) {
        size_t i = 0;
        while (i < n && strcmp(all[i].key, changes[c].key) != 0)
            i++;
        if (changes[c].value == NULL)
            all[i] = all[--n];
        else
            all[i] = changes[c];
        n += i == n;
    }
    char script[4096];
    size_t length = (size_t)snprintf(script, sizeof script, "b:GGUF 4:3 8:%u 8:%zu ", n_tensors, n);
    for (size_t i = 0; i < n; i++) {
        bool own = strncmp(all[i].key, "general.", 8) == 0 || strncmp(all[i].key, "tokenizer.", 10) == 0;
        length += (size_t)snprintf(script + length, sizeof script - length, "s:%s%s %s ", own ? "" : "deepseek2.",
                                   all[i].key, all[i].value);
    }
    snprintf(script + length, sizeof script - length, "%s", tensors);
    script_write("a.gguf", script);
}

/* Seven tokens of two numbers: the embedding alone, and with a head. */
static const char tied[] = "s:token_embd.weight 4:2 8:2 8:7 4:0 8:0 pad:32 n:56";
static const char untied[] = "s:token_embd.weight 4:2 8:2 8:7 4:0 8:0 s:output.weight 4:2 8:2 8:7 4:1 8:64 pad:32 n:92";

typedef struct remarks {
    char text[1024];
} remarks;

static void remember(void *user, dsv2_log_level level, const char *message)
{
    if (level == DSV2_LOG_WARNING)
        snprintf(((remarks *)user)->text, sizeof((remarks *)user)->text, "%s", message);
}

static dsv2_status read_written(ds_config *config, remarks *seen)
{
    ds_container *container;
    ds_logger logger = {remember, seen};
    seen->text[0] = '\0';
    dsv2_status status = ds_gguf_open(folder_file("a.gguf"), NULL, &container);
    ck_assert_msg(status == DSV2_OK, "%s", dsv2_last_error());
    status = ds_config_from_gguf(container, &logger, config);
    ds_container_close(container);
    return status;
}

static ds_config read_changed(const entry *changes, size_t n_changes, const char *warning)
{
    ds_config config;
    remarks seen;
    write_gguf(changes, n_changes, untied, 2);
    dsv2_status status = read_written(&config, &seen);
    ck_assert_msg(status == DSV2_OK, "%s", dsv2_last_error());
    ck_assert_msg(strstr(seen.text, warning) != NULL && (warning[0] != '\0' || seen.text[0] == '\0'), "warned: %s",
                  seen.text);
    return config;
}

#define READ(warning, ...)                                                                                             \
    read_changed((const entry[]){__VA_ARGS__}, sizeof (entry[]){__VA_ARGS__} / sizeof(entry), warning)

START_TEST(a_converted_lite_is_read)
{
    ds_config c = read_changed(NULL, 0, "");
    expect_lite(&c);
    ck_assert_uint_eq(c.vocab_size, 7);
    ck_assert_float_eq_tol(c.yarn.mscale_all_dim, 0.707f, 1e-6f);
    ck_assert(c.yarn.mscale == c.yarn.mscale_all_dim);
    ck_assert_int_eq(c.bos_token_id, 5);
    ck_assert_int_eq(c.ends.ids[0], 6);
}
END_TEST

START_TEST(older_and_other_files_are_read)
{
    /* before MLA had keys of its own */
    ds_config c = READ("", {"attention.key_length_mla", NULL}, {"attention.value_length_mla", NULL},
                       {"attention.key_length", U32(192)}, {"attention.value_length", U32(120)},
                       {"attention.head_count_kv", U32(16)});
    ck_assert(c.qk_nope_head_dim == 128 && c.v_head_dim == 120);
    /* before gating functions and groups had keys */
    c = READ("", {"expert_gating_func", NULL}, {"expert_group_count", NULL}, {"expert_group_used_count", NULL});
    ck_assert(c.scoring_func == DS_SCORING_SOFTMAX && c.topk_method == DS_TOPK_GREEDY);
    c = READ("8 groups with 3 used are assumed for 160 experts", {"expert_gating_func", NULL},
             {"expert_group_count", NULL}, {"expert_count", U32(160)});
    ck_assert(c.topk_method == DS_TOPK_GROUP_LIMITED_GREEDY && c.n_group == 8 && c.topk_group == 3);
    c = READ("8 groups with 4 used are assumed for 256 experts", {"expert_gating_func", U32(2)},
             {"expert_group_count", NULL}, {"expert_count", U32(256)}, {"expert_weights_norm", TRUE},
             {"expert_weights_scale", FLOAT(2.5)});
    ck_assert(c.is_v3 && c.topk_method == DS_TOPK_NOAUX_TC && c.n_group == 8 && c.topk_group == 4);
    ck_assert(c.norm_topk_prob && c.routed_scaling_factor == 2.5f);
    /* with them */
    c = READ("", {"expert_count", U32(160)}, {"expert_group_count", U32(4)}, {"expert_group_used_count", U32(2)});
    ck_assert(c.topk_method == DS_TOPK_GROUP_LIMITED_GREEDY && c.n_group == 4 && c.topk_group == 2);
    /* V2 does not scale a normalised gate, nor normalise a single gate */
    c = READ("", {"expert_weights_norm", TRUE}, {"expert_weights_scale", FLOAT(16)});
    ck_assert(c.norm_topk_prob && c.routed_scaling_factor == 1);
    c = READ("", {"expert_weights_norm", TRUE}, {"expert_weights_scale", FLOAT(16)}, {"expert_used_count", U32(1)});
    ck_assert(!c.norm_topk_prob && c.routed_scaling_factor == 16);
    /* layers that predict further tokens are no layers of the model */
    ck_assert_uint_eq(READ("", {"nextn_predict_layers", U32(2)}).num_hidden_layers, 25);
    ck_assert_uint_eq(READ("", {"attention.q_lora_rank", U32(1536)}).q_lora_rank, 1536);
    ck_assert_uint_eq(READ("", {"expert_count", NULL}).n_routed_experts, 0);
    ck_assert(READ("", {"expert_weights_scale", NULL}).routed_scaling_factor == 1);
    ck_assert(READ("", {"expert_weights_scale", FLOAT(0)}).routed_scaling_factor == 1);
    ck_assert_int_eq(READ("", {"tokenizer.ggml.bos_token_id", NULL}).bos_token_id, -1);
    /* ends of a text, of a turn and of a message */
    c = READ("", {"tokenizer.ggml.eot_token_id", U32(3)}, {"tokenizer.ggml.eom_token_id", U32(6)});
    ck_assert(c.ends.n == 2 && c.ends.ids[0] == 6 && c.ends.ids[1] == 3);
    c = READ("", {"tokenizer.ggml.eos_token_id", U32(4294967295)}, {"tokenizer.ggml.eom_token_id", U32(2)});
    ck_assert(c.ends.n == 1 && c.ends.ids[0] == 2);
    ck_assert_int_eq(READ("", {"tokenizer.ggml.bos_token_id", U32(4294967295)}).bos_token_id, -1);
    /* integers of any width */
    ck_assert_uint_eq(READ("", {"block_count", "4:10 8:3"}).num_hidden_layers, 3);
}
END_TEST

START_TEST(rope_scaling_is_read)
{
    ds_config c = READ("", {"rope.scaling.type", NULL}, {"rope.scaling.factor", NULL});
    ck_assert(!c.yarn.enabled && c.yarn.factor == 1);
    c = READ("", {"rope.scaling.type", TEXT("none")}, {"rope.scaling.factor", FLOAT(1)});
    ck_assert(!c.yarn.enabled);
    c = READ("", {"rope.scaling.yarn_log_multiplier", NULL}, {"rope.scaling.yarn_beta_fast", FLOAT(16)},
             {"rope.scaling.yarn_beta_slow", FLOAT(2)});
    ck_assert(c.yarn.mscale == 1 && c.yarn.mscale_all_dim == 0 && c.yarn.beta_fast == 16 && c.yarn.beta_slow == 2);
    ck_assert(READ("", {"rope.freq_base", NULL}).rope_theta == 10000);
}
END_TEST

START_TEST(a_model_without_a_head_ties_its_embedding)
{
    ds_config c;
    remarks seen;
    write_gguf(NULL, 0, tied, 1);
    ck_assert_int_eq(read_written(&c, &seen), DSV2_OK);
    ck_assert(c.tie_word_embeddings);
    write_gguf(NULL, 0, "", 0);
    ck_assert_int_eq(read_written(&c, &seen), DSV2_ERROR_FORMAT);
    ck_assert_ptr_nonnull(strstr(dsv2_last_error(), "tensor token_embd.weight is missing"));
    write_gguf(NULL, 0, "s:token_embd.weight 4:1 8:7 4:0 8:0 pad:32 n:28", 1);
    ck_assert_int_eq(read_written(&c, &seen), DSV2_ERROR_FORMAT);
    ck_assert_ptr_nonnull(strstr(dsv2_last_error(), "tensor token_embd.weight has 1 dimensions"));
}
END_TEST

static const struct {
    entry changes[3];
    const char *part;
    dsv2_status status;
} bad[] = {
    {{{"general.architecture", TEXT("llama")}}, "key general.architecture is \"llama\"", DSV2_ERROR_UNSUPPORTED},
    {{{"general.architecture", NULL}}, "key general.architecture is missing, expected string", DSV2_ERROR_FORMAT},
    {{{"general.architecture", U32(2)}}, "key general.architecture is of type u32, expected string", DSV2_ERROR_FORMAT},
    {{{"embedding_length", NULL}}, "key deepseek2.embedding_length is missing", DSV2_ERROR_FORMAT},
    {{{"embedding_length", FLOAT(2048)}},
     "key deepseek2.embedding_length is of type f32, expected an integer",
     DSV2_ERROR_FORMAT},
    {{{"embedding_length", U32(0)}}, "key deepseek2.embedding_length is 0, expected 1 to 1048576", DSV2_ERROR_FORMAT},
    {{{"embedding_length", U32(1048577)}}, "key deepseek2.embedding_length is 1048577", DSV2_ERROR_FORMAT},
    {{{"feed_forward_length", "4:9 4:4 8:1 4:9"}},
     "key deepseek2.feed_forward_length is of type array of u32",
     DSV2_ERROR_FORMAT},
    {{{"block_count", U32(1025)}}, "key deepseek2.block_count is 1025", DSV2_ERROR_FORMAT},
    {{{"block_count", "4:5 4:4294967295"}}, "key deepseek2.block_count is negative", DSV2_ERROR_FORMAT},
    {{{"nextn_predict_layers", U32(27)}},
     "key deepseek2.nextn_predict_layers is 27, expected 0 to 26",
     DSV2_ERROR_FORMAT},
    {{{"context_length", "4:10 8:0x100000000"}}, "key deepseek2.context_length is 4294967296", DSV2_ERROR_FORMAT},
    {{{"attention.head_count", U32(1025)}}, "key deepseek2.attention.head_count is 1025", DSV2_ERROR_FORMAT},
    {{{"attention.head_count_kv", U32(16)}},
     "key deepseek2.attention.head_count_kv is 16, this library runs 1",
     DSV2_ERROR_UNSUPPORTED},
    {{{"attention.key_length_mla", NULL}, {"attention.head_count_kv", U32(4)}},
     "head_count_kv is 4, this library runs 16",
     DSV2_ERROR_UNSUPPORTED},
    {{{"attention.key_length_mla", U32(64)}},
     "key deepseek2.attention.key_length_mla is 64, expected 65",
     DSV2_ERROR_FORMAT},
    {{{"attention.value_length_mla", NULL}}, "key deepseek2.attention.value_length_mla is missing", DSV2_ERROR_FORMAT},
    {{{"attention.kv_lora_rank", NULL}}, "key deepseek2.attention.kv_lora_rank is missing", DSV2_ERROR_FORMAT},
    {{{"attention.q_lora_rank", U32(0)}}, "key deepseek2.attention.q_lora_rank is 0", DSV2_ERROR_FORMAT},
    {{{"attention.layer_norm_rms_epsilon", NULL}}, "layer_norm_rms_epsilon is missing", DSV2_ERROR_FORMAT},
    {{{"attention.layer_norm_rms_epsilon", FLOAT(0)}}, "layer_norm_rms_epsilon is 0", DSV2_ERROR_FORMAT},
    {{{"attention.layer_norm_rms_epsilon", FLOAT(nan)}}, "layer_norm_rms_epsilon is nan", DSV2_ERROR_FORMAT},
    {{{"rope.dimension_count", U32(63)}},
     "key deepseek2.rope.dimension_count is 63, expected an even number",
     DSV2_ERROR_FORMAT},
    {{{"rope.freq_base", FLOAT(inf)}}, "key deepseek2.rope.freq_base is inf", DSV2_ERROR_FORMAT},
    {{{"rope.freq_base", FLOAT(1)}}, "key deepseek2.rope.freq_base is 1", DSV2_ERROR_FORMAT},
    {{{"rope.scaling.type", TEXT("linear")}}, "key deepseek2.rope.scaling.type is \"linear\"", DSV2_ERROR_UNSUPPORTED},
    {{{"rope.scaling.type", NULL}}, "key deepseek2.rope.scaling.factor is 40, expected 1 to 1", DSV2_ERROR_FORMAT},
    {{{"rope.scaling.factor", NULL}}, "key deepseek2.rope.scaling.factor is missing", DSV2_ERROR_FORMAT},
    {{{"rope.scaling.yarn_log_multiplier", FLOAT(-1)}}, "yarn_log_multiplier is -1", DSV2_ERROR_FORMAT},
    {{{"rope.scaling.original_context_length", U32(0)}}, "original_context_length is 0", DSV2_ERROR_FORMAT},
    {{{"rope.scaling.attn_factor", FLOAT(1.5)}},
     "key deepseek2.rope.scaling.attn_factor is 1.5, this library runs 1",
     DSV2_ERROR_UNSUPPORTED},
    {{{"attention.temperature_scale", FLOAT(0.1)}}, "attention.temperature_scale is 0.1", DSV2_ERROR_UNSUPPORTED},
    {{{"leading_dense_block_count", U32(1025)}}, "leading_dense_block_count is 1025", DSV2_ERROR_FORMAT},
    {{{"expert_count", U32(4097)}}, "key deepseek2.expert_count is 4097", DSV2_ERROR_FORMAT},
    {{{"expert_used_count", NULL}}, "key deepseek2.expert_used_count is missing", DSV2_ERROR_FORMAT},
    {{{"expert_used_count", U32(65)}}, "key deepseek2.expert_used_count is 65", DSV2_ERROR_FORMAT},
    {{{"expert_feed_forward_length", NULL}}, "key deepseek2.expert_feed_forward_length is missing", DSV2_ERROR_FORMAT},
    {{{"expert_shared_count", U32(4096)}},
     "n_shared_experts times moe_intermediate_size is 5767168",
     DSV2_ERROR_FORMAT},
    {{{"expert_gating_func", U32(3)}}, "key deepseek2.expert_gating_func is 3", DSV2_ERROR_UNSUPPORTED},
    {{{"expert_weights_norm", U32(1)}},
     "key deepseek2.expert_weights_norm is of type u32, expected bool",
     DSV2_ERROR_FORMAT},
    {{{"expert_weights_scale", FLOAT(nan)}}, "key deepseek2.expert_weights_scale is nan", DSV2_ERROR_FORMAT},
    {{{"expert_group_count", U32(65)}}, "key deepseek2.expert_group_count is 65", DSV2_ERROR_FORMAT},
    {{{"expert_group_count", U32(7)}}, "n_group is 7, which does not divide n_routed_experts, 64", DSV2_ERROR_FORMAT},
    {{{"expert_group_used_count", U32(2)}},
     "key deepseek2.expert_group_used_count is 2, expected 1 to 1",
     DSV2_ERROR_FORMAT},
    {{{"expert_group_used_count", NULL}}, "key deepseek2.expert_group_used_count is missing", DSV2_ERROR_FORMAT},
    {{{"tokenizer.ggml.bos_token_id", U32(7)}},
     "key tokenizer.ggml.bos_token_id is 7, expected less than the vocabulary's size, 7",
     DSV2_ERROR_FORMAT},
};

START_TEST(what_cannot_be_run_is_refused_by_file_key_and_value)
{
    ds_config config, before;
    remarks seen;
    memset(&config, 0x5a, sizeof config);
    before = config;
    write_gguf(bad[_i].changes, 3, untied, 2);
    dsv2_status status = read_written(&config, &seen);
    ck_assert_msg(status == bad[_i].status, "%s: status %d: %s", bad[_i].part, (int)status,
                  status == DSV2_OK ? "accepted" : dsv2_last_error());
    ck_assert_mem_eq(&config, &before, sizeof config);
    ck_assert_msg(strstr(dsv2_last_error(), folder_file("a.gguf")) == dsv2_last_error(), "%s", dsv2_last_error());
    ck_assert_msg(strstr(dsv2_last_error(), bad[_i].part) != NULL, "\"%s\" is not in: %s", bad[_i].part,
                  dsv2_last_error());
}
END_TEST

int main(void)
{
    TCase *tests = tcase_create("configuration of a GGUF");
    tcase_set_timeout(tests, 60);
    tcase_add_checked_fixture(tests, folder_make, folder_remove);
    tcase_add_test(tests, a_converted_lite_is_read);
    tcase_add_test(tests, older_and_other_files_are_read);
    tcase_add_test(tests, rope_scaling_is_read);
    tcase_add_test(tests, a_model_without_a_head_ties_its_embedding);
    tcase_add_loop_test(tests, what_cannot_be_run_is_refused_by_file_key_and_value, 0, sizeof bad / sizeof *bad);

    Suite *suite = suite_create("config_gguf");
    suite_add_tcase(suite, tests);
    return test_run(suite);
}

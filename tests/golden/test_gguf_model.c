/* Models from GGUF files, against the checkpoints that the files were made from. */
#include "support/checkpoint.h"
#include "support/gguf.h"
#include "support/model.h"
#include "support/oom.h"
#include "support/run.h"
#include "support/tensors.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_TOKENS = 80 };

static float *logits_of(dsv2_model *model, dsv2_attention attention)
{
    dsv2_session_options options = {
        .struct_size = sizeof options, .cache_type = DSV2_CACHE_F32, .attention = attention};
    int32_t tokens[N_TOKENS];
    test_random_tokens(7, test_model_info(model).vocab_size, tokens, N_TOKENS);
    return test_logits(model, &options, tokens, N_TOKENS, N_TOKENS);
}

/* The largest difference between two models' logits. Infinite if a logit is NaN. */
static double difference(dsv2_model *a, dsv2_model *b, dsv2_attention attention)
{
    size_t n = N_TOKENS * (size_t)test_model_info(a).vocab_size;
    ck_assert_uint_eq(test_model_info(b).vocab_size, test_model_info(a).vocab_size);
    float *x = logits_of(a, attention), *y = logits_of(b, attention);
    double largest = 0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)x[i] - y[i]);
        largest = isnan(d) ? INFINITY : d > largest ? d : largest;
    }
    free(x);
    free(y);
    return largest;
}

/* weight_type: the type that the GGUF's weights are converted to. */
static void expect_equal(const char *what, const char *folder, const char *gguf, dsv2_weight_type weight_type)
{
    dsv2_model *a = test_model_open(folder, NULL),
               *b = test_model_open(gguf, &(dsv2_model_options){.weight_type = weight_type});
    dsv2_model_info x = test_model_info(a), y = test_model_info(b);
    ck_assert_str_eq(y.container, "gguf");
    test_same_model(&x, &y);
    for (int attention = DSV2_ATTENTION_ABSORBED; attention <= DSV2_ATTENTION_EXPANDED; attention++) {
        double off = difference(a, b, (dsv2_attention)attention);
        ck_assert_msg(off <= 1e-4, "%s, attention %d: off by %g", what, attention, off);
    }
    dsv2_model_close(a);
    dsv2_model_close(b);
}

static char *temporary_folder(void)
{
    const char *parent = getenv("TMPDIR");
    char *folder = strdup(test_format("%s/dsv2-test-XXXXXX", parent != NULL ? parent : "/tmp"));
    ck_assert(folder != NULL && mkdtemp(folder) != NULL);
    return folder;
}

/* ---- the published checkpoints' likes ---- */

static const struct {
    const char *golden;
    test_gguf options;
} conversions[] = {
    {"lite", {.type = DS_TYPE_BF16}},
    {"lite", {.type = DS_TYPE_BF16, .old = true}},
    {"lite", {.type = DS_TYPE_F32}},
    {"lite", {.type = DS_TYPE_F32, .old = true}},
    {"lite", {.type = DS_TYPE_BF16, .split = true}},
    {"full", {.type = DS_TYPE_BF16}},
    {"full", {.type = DS_TYPE_BF16, .joined = true}},
    {"full", {.type = DS_TYPE_F32, .split = true}},
    {"v3", {.type = DS_TYPE_BF16}},
    {"v3", {.type = DS_TYPE_BF16, .no_gating = true}},
};

START_TEST(a_gguf_gives_the_logits_of_the_checkpoint_it_was_made_of)
{
    const test_gguf *options = &conversions[_i].options;
    char *place = temporary_folder(), path[600], folder[600];
    snprintf(folder, sizeof folder, "%s/goldens/%s", TEST_DATA, conversions[_i].golden);
    snprintf(path, sizeof path, "%s/model%s.gguf", place, options->split ? "-00001-of-00002" : "");
    test_gguf_write(options, folder, path, NULL);
    expect_equal(conversions[_i].golden, folder, path, DSV2_WEIGHTS_AS_STORED);
    test_checkpoint_remove(place);
}
END_TEST

START_TEST(routers_with_biases_and_softmax_are_refused)
{
    char *place = temporary_folder(), path[600];
    dsv2_model *model;
    snprintf(path, sizeof path, "%s/model.gguf", place);
    test_gguf_write(&(test_gguf){.type = DS_TYPE_BF16, .softmax = true}, TEST_DATA "/goldens/v3", path, NULL);
    ck_assert_int_eq(dsv2_model_open(path, NULL, &model), DSV2_ERROR_UNSUPPORTED);
    ck_assert_msg(strstr(dsv2_last_error(), "exp_probs_b.bias") != NULL, "%s", dsv2_last_error());
    test_checkpoint_remove(place);
}
END_TEST

/* ---- other shapes ---- */

#define SMALL                                                                                                          \
    .vocab_size = 64, .hidden_size = 32, .intermediate_size = 64, .num_hidden_layers = 2, .num_attention_heads = 2,    \
    .kv_lora_rank = 32, .qk_nope_head_dim = 16, .qk_rope_head_dim = 8, .v_head_dim = 24, .max_position_embeddings = 256
#define MIXTURE .n_routed_experts = 4, .num_experts_per_tok = 2, .moe_intermediate_size = 16

static const struct {
    test_checkpoint shape;
    test_gguf options;
} others[] = {
    {{.name = "160 experts without group keys", SMALL, .q_lora_rank = 24, .n_routed_experts = 160,
      .num_experts_per_tok = 6, .moe_intermediate_size = 8, .n_shared_experts = 2, .first_k_dense_replace = 1,
      .topk_method = "group_limited_greedy", .n_group = 8, .topk_group = 3, .routed_scaling_factor = 16, .seed = 21},
     {.type = DS_TYPE_F32, .old = true}},
    {{.name = "256 experts of V3's kind without group keys", SMALL, .model_type = "deepseek_v3",
      .n_routed_experts = 256, .num_experts_per_tok = 8, .moe_intermediate_size = 8, .n_shared_experts = 1,
      .topk_method = "noaux_tc", .n_group = 8, .topk_group = 4, .routed_scaling_factor = 2.5, .norm_topk_prob = true,
      .seed = 22},
     {.type = DS_TYPE_F32, .old = true}},
    {{.name = "F16", SMALL, MIXTURE, .dtype = "F16", .seed = 23}, {.type = DS_TYPE_F16}},
    {{.name = "tied embeddings", SMALL, MIXTURE, .n_shared_experts = 1, .tie_word_embeddings = true, .seed = 24},
     {.type = DS_TYPE_BF16}},
    {{.name = "attention biases", SMALL, MIXTURE, .q_lora_rank = 24, .attention_bias = true, .seed = 25},
     {.type = DS_TYPE_BF16}},
    {{.name = "normalised gates", SMALL, MIXTURE, .norm_topk_prob = true, .routed_scaling_factor = 3, .seed = 26},
     {.type = DS_TYPE_BF16}},
    {{.name = "dense", SMALL, .seed = 27}, {.type = DS_TYPE_BF16}},
};

START_TEST(a_gguf_of_another_shape_gives_the_same_logits)
{
    char *folder = test_checkpoint_write(&others[_i].shape), *place = temporary_folder(), path[600];
    snprintf(path, sizeof path, "%s/model.gguf", place);
    test_gguf_write(&others[_i].options, folder, path, NULL);
    expect_equal(others[_i].shape.name, folder, path, DSV2_WEIGHTS_AS_STORED);
    test_checkpoint_remove(place);
    test_checkpoint_remove(folder);
}
END_TEST

/* The test above would not notice groups that make no difference. */
START_TEST(groups_of_160_experts_matter)
{
    test_checkpoint greedy = others[0].shape;
    greedy.topk_method = "greedy";
    greedy.n_group = greedy.topk_group = 0;
    char *folder = test_checkpoint_write(&greedy), *place = temporary_folder(), path[600];
    snprintf(path, sizeof path, "%s/model.gguf", place);
    test_gguf_write(&others[0].options, folder, path, NULL);
    dsv2_model *a = test_model_open(folder, NULL), *b = test_model_open(path, NULL);
    ck_assert_uint_eq(test_model_info(b).n_group, 8);
    ck_assert_uint_eq(test_model_info(b).topk_group, 3);
    ck_assert_str_eq(test_model_info(b).topk_method, "group_limited_greedy");
    ck_assert_double_gt(difference(a, b, DSV2_ATTENTION_ABSORBED), 0.01);
    dsv2_model_close(a);
    dsv2_model_close(b);
    test_checkpoint_remove(place);
    test_checkpoint_remove(folder);
}
END_TEST

/* ---- block types ---- */

static const ds_type block_types[] = {
#define BLOCK(TYPE, ...) DS_TYPE_##TYPE,
#include "kernels/types.def"
};
enum { N_TYPES = sizeof block_types / sizeof *block_types };

static const test_checkpoint wide = {.name = "wide", .vocab_size = 64, .hidden_size = 256, .intermediate_size = 256,
                                     .num_hidden_layers = 2, .num_attention_heads = 4, .kv_lora_rank = 256,
                                     .qk_nope_head_dim = 32, .qk_rope_head_dim = 16, .v_head_dim = 64,
                                     .max_position_embeddings = 256, .n_routed_experts = 3, .num_experts_per_tok = 2,
                                     .moe_intermediate_size = 64, .n_shared_experts = 1, .first_k_dense_replace = 1,
                                     .seed = 31};

/* Both models run on floats, so that only the weights' values and places are compared: interleaved weights meet
 * activations rounded to 8 bits. Even cases are as newer files: kv_b_proj in two tensors, gate and up of the experts in
 * one. Odd cases are as older files. */
START_TEST(quantised_weights_act_as_the_floats_they_stand_for)
{
    test_gguf options = {.quantised = true, .type = block_types[_i / 2], .joined = _i % 2 == 0, .old = _i % 2 == 1,
                         .seed = (uint64_t)_i};
    char *folder = test_checkpoint_write(&wide), *place = temporary_folder(), *floats = temporary_folder(), path[600];
    snprintf(path, sizeof path, "%s/model.gguf", place);
    test_gguf_write(&options, folder, path, floats);
    expect_equal(ds_type_name(options.type), floats, path, DSV2_WEIGHTS_F32);
    test_checkpoint_remove(floats);
    test_checkpoint_remove(place);
    test_checkpoint_remove(folder);
}
END_TEST

/* ---- files that contradict themselves ---- */

/* Replaces the 32-bit number of `key` by `value`, or the type of the tensor of one dimension named `key`. */
static void change(const char *path, const char *key, bool is_tensor, uint32_t value)
{
    size_t size, length = strlen(key);
    char *data = test_read_file(path, &size), *at = memmem(data, size, key, length);
    ck_assert_msg(at != NULL, "no %s", key);
    memcpy(at + length + (is_tensor ? 12 : 4), &value, sizeof value);
    test_write_file(path, data, size);
    free(data);
}

static const struct {
    const char *key;
    bool is_tensor;
    uint32_t value;
    const char *message;
    dsv2_status status;
} contradictions[] = {
    {"deepseek2.embedding_length", false, 33,
     "tensor token_embd.weight has shape [64, 32], the configuration says [64, 33]", DSV2_ERROR_FORMAT},
    {"deepseek2.feed_forward_length", false, 1 << 20,
     "tensor blk.0.ffn_gate.weight has shape [64, 32], the configuration says [1048576, 32]", DSV2_ERROR_FORMAT},
    {"deepseek2.attention.head_count", false, 1024,
     "tensor blk.0.attn_q.weight has shape [48, 32], the configuration says [24576, 32]", DSV2_ERROR_FORMAT},
    {"deepseek2.attention.value_length_mla", false, 25,
     "tensor blk.0.attn_v_b.weight has shape [2, 24, 32], the configuration says [2, 25, 32]", DSV2_ERROR_FORMAT},
    {"deepseek2.expert_count", false, 3,
     "tensor blk.1.ffn_gate_inp.weight has shape [4, 32], the configuration says [3, 32]", DSV2_ERROR_FORMAT},
    {"deepseek2.expert_count", false, 4096,
     "tensor blk.1.ffn_gate_inp.weight has shape [4, 32], the configuration says [4096, 32]", DSV2_ERROR_FORMAT},
    {"deepseek2.expert_feed_forward_length", false, 15, "has shape [4, 16, 32], the configuration says [4, 15, 32]",
     DSV2_ERROR_FORMAT},
    {"deepseek2.block_count", false, 1024, "tensor blk.2.attn_norm.weight is missing", DSV2_ERROR_FORMAT},
    {"deepseek2.leading_dense_block_count", false, 2, "tensor blk.1.ffn_gate.weight is missing", DSV2_ERROR_FORMAT},
    {"blk.1.ffn_norm.weight", true, 8, "tensor blk.1.ffn_norm.weight has type Q8_0, expected F32, F16 or BF16",
     DSV2_ERROR_UNSUPPORTED},
    {"blk.1.ffn_norm.weight", true, 26, "tensor blk.1.ffn_norm.weight has element type I32", DSV2_ERROR_UNSUPPORTED},
    {"output_norm.weight", true, 99, "tensor output_norm.weight has element type 99 (unknown)", DSV2_ERROR_UNSUPPORTED},
};

START_TEST(a_tensor_that_is_not_as_the_metadata_say_is_refused_by_name)
{
    static const test_checkpoint shape = {SMALL, MIXTURE, .first_k_dense_replace = 1, .seed = 28};
    test_gguf options = {.type = DS_TYPE_F32};
    char *folder = test_checkpoint_write(&shape), *place = temporary_folder(), path[600];
    snprintf(path, sizeof path, "%s/model.gguf", place);
    test_gguf_write(&options, folder, path, NULL);
    change(path, contradictions[_i].key, contradictions[_i].is_tensor, contradictions[_i].value);
    dsv2_model *model = NULL;
    dsv2_status status = dsv2_model_open(path, NULL, &model);
    ck_assert_msg(status == contradictions[_i].status && model == NULL, "status %d: %s", (int)status,
                  dsv2_last_error());
    ck_assert_msg(strncmp(dsv2_last_error(), path, strlen(path)) == 0 &&
                      strstr(dsv2_last_error(), contradictions[_i].message) != NULL,
                  "\"%s\" is not in: %s", contradictions[_i].message, dsv2_last_error());
    test_checkpoint_remove(place);
    test_checkpoint_remove(folder);
}
END_TEST

/* ---- progress ---- */

typedef struct reports {
    uint64_t n, last, total, n_whole, cancel_at;
} reports;

static int record(void *user, dsv2_phase phase, uint64_t done, uint64_t total)
{
    reports *r = user;
    ck_assert(phase == DSV2_PHASE_OPEN && done >= r->last && done <= total && (r->n == 0 || total == r->total));
    r->last = done;
    r->total = total;
    r->n_whole += done == total;
    return ++r->n == r->cancel_at;
}

static dsv2_status open_reporting(const char *path, reports *r)
{
    dsv2_model_options options = {
        .struct_size = sizeof options, .n_threads = 1, .progress = record, .progress_user = r};
    dsv2_model *model = NULL;
    dsv2_status status = dsv2_model_open(path, &options, &model);
    ck_assert((status == DSV2_OK) == (model != NULL));
    dsv2_model_close(model);
    return status;
}

/* Experts share a tensor, which counts once. All is done at the last report. */
START_TEST(opening_tells_its_progress_and_can_be_cancelled_at_every_report)
{
    test_gguf options = {.quantised = true, .type = DS_TYPE_Q4_K, .old = _i == 1, .joined = _i == 2, .seed = 5};
    char *folder = test_checkpoint_write(&wide), *place = temporary_folder(), *floats = temporary_folder(), path[600];
    snprintf(path, sizeof path, "%s/model.gguf", place);
    test_gguf_write(&options, folder, path, floats);
    reports whole = {0};
    ck_assert_int_eq(open_reporting(path, &whole), DSV2_OK);
    ck_assert(whole.n > whole.total && whole.last == whole.total && whole.n_whole == 1);
    long live = oom_available() ? oom_live() : 0;
    for (uint64_t at = 1; at <= whole.n; at++) {
        reports r = {.cancel_at = at};
        ck_assert_int_eq(open_reporting(path, &r), DSV2_ERROR_CANCELLED);
        ck_assert_uint_eq(r.n, at);
        ck_assert(!oom_available() || oom_live() == live);
    }
    test_checkpoint_remove(floats);
    test_checkpoint_remove(place);
    test_checkpoint_remove(folder);
}
END_TEST

/* ---- no memory ---- */

typedef struct opening {
    const char *path;
    dsv2_model *model;
    const float *expected; /* logits after the tokens */
    long live;
} opening;

enum { OOM_TOKENS = 3 };
static const int32_t oom_tokens[OOM_TOKENS] = {1, 5, 2};

static dsv2_status open_it(void *context)
{
    opening *o = context;
    o->model = NULL;
    return dsv2_model_open(o->path,
                           &(dsv2_model_options){.struct_size = sizeof(dsv2_model_options), .n_threads = 1}, &o->model);
}

/* A model that was opened although an allocation failed is whole. */
static void opened_or_nothing(void *context, dsv2_status status)
{
    opening *o = context;
    ck_assert((status == DSV2_OK) == (o->model != NULL));
    if (o->model != NULL) {
        float *logits = test_logits(o->model, NULL, oom_tokens, OOM_TOKENS, OOM_TOKENS);
        size_t bytes = OOM_TOKENS * test_model_info(o->model).vocab_size * sizeof *logits;
        ck_assert(memcmp(logits, o->expected, bytes) == 0);
        free(logits);
    }
    dsv2_model_close(o->model);
    ck_assert_int_eq(oom_live(), o->live);
}

/* Plain weights stay as they are. Quantised weights wait in a queue for conversion. */
START_TEST(every_allocation_of_opening_may_fail)
{
    test_gguf options = {.type = DS_TYPE_BF16, .quantised = _i >= 2, .old = _i % 2 == 1, .split = true};
    if (options.quantised)
        options.type = DS_TYPE_Q4_K;
    char *folder = test_checkpoint_write(options.quantised ? &wide : &others[3].shape), *place = temporary_folder(),
         path[600];
    char *floats = temporary_folder();
    snprintf(path, sizeof path, "%s/model-00001-of-00002.gguf", place);
    test_gguf_write(&options, folder, path, floats);
    dsv2_model *model = test_model_open(path, &(dsv2_model_options){.n_threads = 1});
    float *expected = test_logits(model, NULL, oom_tokens, OOM_TOKENS, OOM_TOKENS);
    dsv2_model_close(model);
    opening o = {.path = path, .expected = expected, .live = oom_live()};
    oom_fail_each(open_it, opened_or_nothing, &o, _i == 1);
    free(expected);
    test_checkpoint_remove(floats);
    test_checkpoint_remove(place);
    test_checkpoint_remove(folder);
}
END_TEST

int main(void)
{
    TCase *tests = tcase_create("gguf models");
    tcase_set_timeout(tests, 120);
    tcase_add_test(tests, routers_with_biases_and_softmax_are_refused);
    tcase_add_loop_test(tests, a_gguf_gives_the_logits_of_the_checkpoint_it_was_made_of, 0,
                        sizeof conversions / sizeof *conversions);
    tcase_add_loop_test(tests, a_gguf_of_another_shape_gives_the_same_logits, 0, sizeof others / sizeof *others);
    tcase_add_test(tests, groups_of_160_experts_matter);
    tcase_add_loop_test(tests, quantised_weights_act_as_the_floats_they_stand_for, 0, 2 * N_TYPES);
    tcase_add_loop_test(tests, a_tensor_that_is_not_as_the_metadata_say_is_refused_by_name, 0,
                        sizeof contradictions / sizeof *contradictions);
    tcase_add_loop_test(tests, opening_tells_its_progress_and_can_be_cancelled_at_every_report, 0, 3);
    if (oom_available())
        tcase_add_loop_test(tests, every_allocation_of_opening_may_fail, 0, 4);

    Suite *suite = suite_create("gguf models");
    suite_add_tcase(suite, tests);
    return test_run(suite);
}

/* Weights that are no numbers: a file may hold NaN and infinity anywhere. Opening, running and converting never crash,
 * hang or leave their bounds, and no feed says OK and gives logits that are no numbers. */
#include <dsv2/dsv2.h>

#include "formats/container.h"
#include "formats/pack.h"
#include "support/checkpoint.h"
#include "support/gguf.h"
#include "support/run.h"
#include "support/tensors.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SMALL                                                                                                          \
    .vocab_size = 50, .num_hidden_layers = 2, .num_attention_heads = 2, .qk_nope_head_dim = 32, .qk_rope_head_dim = 8, \
    .v_head_dim = 32, .max_position_embeddings = 128, .n_shared_experts = 1, .first_k_dense_replace = 1,               \
    .q_lora_rank = 24, .intermediate_size = 32
#define GROUPS                                                                                                         \
    .moe_intermediate_size = 16, .n_routed_experts = 8, .num_experts_per_tok = 3, .n_group = 4, .topk_group = 2

static const struct {
    test_checkpoint shape;
    bool is_gguf, is_pack; /* else a folder */
    test_gguf gguf;
    dsv2_weight_type held_type;
} kinds[] = {
    {.shape = {.name = "device-limited routing", SMALL, .hidden_size = 32, .kv_lora_rank = 16, GROUPS,
               .topk_method = "group_limited_greedy", .seed = 1}},
    {.shape = {.name = "DeepSeek-V3 in FP8", SMALL, .hidden_size = 32, .kv_lora_rank = 16, GROUPS,
               .model_type = "deepseek_v3", .dtype = "F8_E4M3", .block_rows = 16, .block_cols = 8,
               .topk_method = "noaux_tc", .norm_topk_prob = true, .seed = 2}},
    {.shape = {.name = "Q8_0", SMALL, .hidden_size = 32, .kv_lora_rank = 32, .moe_intermediate_size = 32,
               .n_routed_experts = 4, .num_experts_per_tok = 2, .seed = 3},
     .is_gguf = true,
     .gguf = {.quantised = true, .type = DS_TYPE_Q8_0}},
    {.shape = {.name = "Q4_K", SMALL, .hidden_size = 256, .kv_lora_rank = 256, .moe_intermediate_size = 32,
               .n_routed_experts = 2, .num_experts_per_tok = 1, .seed = 4},
     .is_gguf = true,
     .gguf = {.quantised = true, .type = DS_TYPE_Q4_K, .old = true}},
    {.shape = {.name = "IQ4_XS", SMALL, .hidden_size = 256, .kv_lora_rank = 256, .moe_intermediate_size = 32,
               .n_routed_experts = 2, .num_experts_per_tok = 1, .seed = 5},
     .is_gguf = true,
     .gguf = {.quantised = true, .type = DS_TYPE_IQ4_XS, .joined = true}},
    {.shape = {.name = "pack of P8", SMALL, .hidden_size = 32, .kv_lora_rank = 32, .moe_intermediate_size = 32,
               .n_routed_experts = 4, .num_experts_per_tok = 2, .seed = 6},
     .is_pack = true,
     .held_type = DSV2_WEIGHTS_Q8_0},
    {.shape = {.name = "pack of P6", SMALL, .hidden_size = 32, .kv_lora_rank = 32, .moe_intermediate_size = 32,
               .n_routed_experts = 4, .num_experts_per_tok = 2, .seed = 7},
     .is_pack = true,
     .held_type = DSV2_WEIGHTS_Q6_K},
    {.shape = {.name = "pack of P4", SMALL, .hidden_size = 64, .kv_lora_rank = 32, .moe_intermediate_size = 32,
               .n_routed_experts = 4, .num_experts_per_tok = 2, .seed = 8},
     .is_pack = true,
     .held_type = DSV2_WEIGHTS_Q4_K},
};

/* Patterns of two bytes: NaN in every type; infinite halves (huge as BF16); infinite BF16 (NaN as F32). */
static const unsigned char patterns[][2] = {{0xff, 0xff}, {0x00, 0x7c}, {0x80, 0x7f}};

enum { N_KINDS = sizeof kinds / sizeof *kinds, N_PATTERNS = sizeof patterns / sizeof *patterns };

/* Where a tensor's bytes are in the file. */
typedef struct place {
    char name[128];
    size_t begin, size;
} place;

static size_t list_places(const char *path, size_t kind, place *places, size_t capacity)
{
    ds_container *container;
    dsv2_status status = kinds[kind].is_gguf   ? ds_gguf_open(path, NULL, &container)
                         : kinds[kind].is_pack ? ds_pack_open(path, &container)
                                               : ds_safetensors_open(path, NULL, &container);
    ck_assert_msg(status == DSV2_OK, "%s", dsv2_last_error());
    size_t n = 0;
    for (size_t i = 0; i < ds_container_count(container); i++) {
        const ds_tensor *tensor = ds_container_tensor(container, i);
        const char *expert = strstr(tensor->name, ".experts.");
        if (expert != NULL && strncmp(expert, ".experts.0.", 11) != 0)
            continue; /* one expert stands for all */
        ck_assert_uint_lt(n, capacity);
        snprintf(places[n].name, sizeof places[n].name, "%s", tensor->name);
        places[n].begin = (size_t)tensor->offset;
        places[n++].size = (size_t)tensor->n_bytes;
    }
    ds_container_close(container);
    return n;
}

static void use(dsv2_model *model, dsv2_attention attention)
{
    enum { N = 20 };
    dsv2_session_options options = {.struct_size = sizeof options, .attention = attention};
    dsv2_session *session;
    ck_assert_msg(dsv2_session_open(model, &options, &session) == DSV2_OK, "%s", dsv2_last_error());
    int32_t tokens[N], token;
    test_random_tokens(5, 50, tokens, N);
    for (int i = 0; i < 4; i++) {
        dsv2_status status = i == 0 ? dsv2_session_feed(session, tokens, N) : dsv2_session_feed(session, &token, 1);
        size_t length;
        if (status != DSV2_OK) {
            ck_assert_msg(status == DSV2_ERROR_FORMAT || status == DSV2_ERROR_UNSUPPORTED, "status %d: %s", (int)status,
                          dsv2_last_error());
            ck_assert(dsv2_session_length(session, &length) == DSV2_OK && length == (i == 0 ? 0 : (size_t)(N + i - 1)));
            break;
        }
        const float *logits;
        ck_assert(dsv2_session_logits(session, &logits) == DSV2_OK);
        for (int t = 0; t < 50; t++)
            ck_assert_msg(isfinite(logits[t]), "logit %d is %g", t, (double)logits[t]);
        ck_assert(dsv2_session_sample(session, &token) == DSV2_OK && token >= 0 && token < 50);
    }
    dsv2_session_close(session);
}

/* Opens, runs and converts the model at `path`. */
static void check_tensor(const char *path, const char *copy)
{
    dsv2_model *model = NULL;
    dsv2_model_options options = {.struct_size = sizeof options, .n_threads = 1};
    dsv2_status status = dsv2_model_open(path, &options, &model);
    if (status == DSV2_OK) {
        use(model, DSV2_ATTENTION_ABSORBED);
        use(model, DSV2_ATTENTION_EXPANDED);
        dsv2_model_close(model);
    } else {
        ck_assert_msg(status == DSV2_ERROR_FORMAT, "status %d: %s", (int)status, dsv2_last_error());
    }
    static const dsv2_weight_type types[] = {DSV2_WEIGHTS_Q8_0, DSV2_WEIGHTS_Q4_K};
    for (size_t i = 0; i < 2; i++) {
        dsv2_pack_options pack = {.struct_size = sizeof pack, .weight_type = types[i], .n_threads = 1};
        status = dsv2_model_pack(path, copy, &pack);
        ck_assert_msg(status == DSV2_OK || status == DSV2_ERROR_FORMAT || status == DSV2_ERROR_UNSUPPORTED,
                      "status %d: %s", (int)status, dsv2_last_error());
    }
}

START_TEST(weights_that_are_no_numbers_are_never_a_danger)
{
    enum { MAX_PLACES = 128 };
    size_t kind = (size_t)_i / N_PATTERNS;
    char *folder = test_checkpoint_write(&kinds[kind].shape), file[600], path[600], copy[600];
    bool is_file = kinds[kind].is_gguf || kinds[kind].is_pack;
    snprintf(file, sizeof file, "%s/model.%s", folder,
             kinds[kind].is_gguf   ? "gguf"
             : kinds[kind].is_pack ? "dsv2"
                                   : "safetensors");
    snprintf(path, sizeof path, "%s", is_file ? file : folder);
    snprintf(copy, sizeof copy, "%s/copy.dsv2", folder);
    if (kinds[kind].is_gguf)
        test_gguf_write(&kinds[kind].gguf, folder, file, NULL);
    dsv2_pack_options packing = {.struct_size = sizeof packing, .weight_type = kinds[kind].held_type};
    if (kinds[kind].is_pack)
        ck_assert_msg(dsv2_model_pack(folder, file, &packing) == DSV2_OK, "%s", dsv2_last_error());
    place *places = calloc(MAX_PLACES, sizeof *places);
    ck_assert(places != NULL);
    size_t n = list_places(path, kind, places, MAX_PLACES), size;
    char *whole = test_read_file(file, &size), *damaged = malloc(size);
    ck_assert(damaged != NULL && n > 20);
    for (size_t i = 0; i < n; i++) {
        memcpy(damaged, whole, size);
        for (size_t b = 0; b < places[i].size; b++)
            damaged[places[i].begin + b] = (char)patterns[_i % N_PATTERNS][b % 2];
        test_write_file(file, damaged, size);
        check_tensor(path, copy);
    }
    free(damaged);
    free(whole);
    free(places);
    test_checkpoint_remove(folder);
}
END_TEST

int main(void)
{
    TCase *tests = tcase_create("numbers");
    tcase_set_timeout(tests, 300);
    tcase_add_loop_test(tests, weights_that_are_no_numbers_are_never_a_danger, 0, N_KINDS * N_PATTERNS);

    Suite *suite = suite_create("numbers");
    suite_add_tcase(suite, tests);
    return test_run(suite);
}

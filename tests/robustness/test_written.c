/* Whatever is written can be read again: packs of any shape and type, with fields at their bounds, and snapshots of any
 * length, cache type and sampling state. What could not be read is refused before anything is written. */
#include <dsv2/dsv2.h>

#include "formats/pack.h"
#include "model/model.h"
#include "support/checkpoint.h"
#include "support/model.h"
#include "support/run.h"
#include "support/tensors.h"

#include <check.h>
#include <dirent.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define OK(call) ck_assert_msg((call) == DSV2_OK, "%s: %s", #call, dsv2_last_error())

static char folder[512], path[600];

static void set_up(void)
{
    const char *parent = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/dsv2-written-XXXXXX", parent != NULL ? parent : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/file", folder);
}

static size_t count_files(void)
{
    size_t n = 0;
    DIR *d = opendir(folder);
    ck_assert_ptr_nonnull(d);
    for (struct dirent *e; (e = readdir(d)) != NULL;)
        n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

static void tear_down(void)
{
    (void)unlink(path);
    ck_assert_int_eq(rmdir(folder), 0);
}

/* ---- shapes ---- */

static uint32_t between(uint64_t *seed, uint32_t least, uint32_t most)
{
    uint32_t n = least + (uint32_t)(test_random(seed) * (most - least + 1));
    return n < most ? n : most;
}

/* Widths of any number, odd ones too; some are blocks of the types' and one more or less. */
static uint32_t width(uint64_t *seed, uint32_t least)
{
    static const uint32_t edges[] = {31, 32, 33, 64, 255, 256, 257};
    if (test_random(seed) < 0.4)
        return ds_max(least, edges[between(seed, 0, sizeof edges / sizeof *edges - 1)]);
    return between(seed, least, 80);
}

static test_checkpoint random_shape(uint64_t seed)
{
    static const char *const dtypes[] = {"BF16", "F16", "F32"};
    uint64_t s = seed;
    test_checkpoint c = {
        .dtype = dtypes[between(&s, 0, 2)], .vocab_size = between(&s, 1, 70), .hidden_size = width(&s, 1),
        .intermediate_size = width(&s, 1), .num_hidden_layers = between(&s, 1, 3),
        .num_attention_heads = between(&s, 1, 3), .q_lora_rank = between(&s, 0, 1) * width(&s, 1),
        .kv_lora_rank = width(&s, 1), .qk_nope_head_dim = between(&s, 1, 40),
        .qk_rope_head_dim = 2 * between(&s, 1, 20),
        .v_head_dim = between(&s, 1, 40), .max_position_embeddings = between(&s, 70, 200), .seed = seed + 1,
        .attention_bias = between(&s, 0, 1), .tie_word_embeddings = between(&s, 0, 1), .yarn = between(&s, 0, 1),
    };
    if (between(&s, 0, 2) > 0) {
        c.n_routed_experts = between(&s, 1, 6);
        c.num_experts_per_tok = between(&s, 1, c.n_routed_experts);
        c.moe_intermediate_size = width(&s, 1);
        c.n_shared_experts = between(&s, 0, 2);
        c.first_k_dense_replace = between(&s, 0, 3);
        c.moe_layer_freq = between(&s, 1, 2);
        c.norm_topk_prob = between(&s, 0, 1);
        c.routed_scaling_factor = between(&s, 0, 1) * 1e-6;
    }
    return c;
}

static float *logits_of(const char *model_path, dsv2_weight_type type, uint32_t vocab_size)
{
    enum { N = 3 };
    int32_t tokens[N];
    const dsv2_model_options options = {.struct_size = sizeof options, .weight_type = type, .n_threads = 1};
    dsv2_model *model;
    test_random_tokens(4, vocab_size, tokens, N);
    if (dsv2_model_open(model_path, &options, &model) != DSV2_OK)
        return NULL;
    float *logits = test_logits(model, NULL, tokens, N, N);
    dsv2_model_close(model);
    return logits;
}

/* Attack 11: some packs were written and then refused. */
START_TEST(packs_of_any_shape_and_type_open_and_give_the_bits_of_their_checkpoint)
{
    test_checkpoint shape = random_shape((uint64_t)_i);
    char *checkpoint = test_checkpoint_write(&shape);
    for (int type = DSV2_WEIGHTS_AS_STORED; ds_type_named((dsv2_weight_type)type) != DS_TYPE_COUNT || type == 0;
         type++) {
        const dsv2_pack_options options = {.struct_size = sizeof options, .weight_type = (dsv2_weight_type)type,
                                           .n_threads = 1};
        float *expected = logits_of(checkpoint, (dsv2_weight_type)type, shape.vocab_size);
        dsv2_status status = dsv2_model_pack(checkpoint, path, &options);
        ck_assert_msg((status == DSV2_OK) == (expected != NULL), "shape %d, type %d: packing gives %s: %s", _i, type,
                      dsv2_status_name(status), dsv2_last_error());
        if (status != DSV2_OK)
            continue;
        OK(dsv2_model_verify(path, NULL, NULL));
        float *got = logits_of(path, DSV2_WEIGHTS_AS_STORED, shape.vocab_size);
        ck_assert_msg(got != NULL, "shape %d, type %d: %s", _i, type, dsv2_last_error());
        ck_assert_mem_eq(got, expected, 3 * shape.vocab_size * sizeof *got);
        free(got);
        free(expected);
        ck_assert_int_eq(unlink(path), 0);
    }
    test_checkpoint_remove(checkpoint);
}
END_TEST

/* ---- fields at their bounds ---- */

static const test_checkpoint tiny = {
    .vocab_size = 20, .hidden_size = 8, .intermediate_size = 8, .num_hidden_layers = 2, .num_attention_heads = 1,
    .kv_lora_rank = 8, .qk_nope_head_dim = 4, .qk_rope_head_dim = 4, .v_head_dim = 4, .max_position_embeddings = 256,
    .moe_intermediate_size = 8, .n_routed_experts = 2, .num_experts_per_tok = 1, .n_shared_experts = 1,
    .first_k_dense_replace = 1, .moe_layer_freq = 1, .routed_scaling_factor = 1.5, .yarn = true, .seed = 3,
};

static const struct {
    const char *field;
    const char *ends[2];
} bounds[] = {
    {"rms_norm_eps", {"1e-37", "1"}},
    {"rope_theta", {"1.001", "1e12"}},
    {"factor", {"1", "1e6"}},
    {"beta_fast", {"1e-6", "1e6"}},
    {"beta_slow", {"1e-6", "1e6"}},
    {"mscale", {"0", "1e6"}},
    {"mscale_all_dim", {"0", "1e6"}},
    {"routed_scaling_factor", {"1e-6", "1e6"}},
    {"max_position_embeddings", {"1", "67108864"}},
    {"original_max_position_embeddings", {"1", "67108864"}},
    {"bos_token_id", {"0", "19"}},
    {"eos_token_id", {"0", "[19, 0, 7]"}},
};
enum { N_BOUNDS = sizeof bounds / sizeof *bounds };

/* Writes a JSON text with this field, one of those there or of the outermost object, at another value. */
static void set_field(const char *file, const char *field, const char *value)
{
    size_t size;
    char *json = test_read_file(file, &size);
    const char *quoted = test_format("\"%s\":", field), *at = strstr(json, quoted), *end = json + 1;
    char *changed = malloc(size + 200);
    ck_assert(changed != NULL && json[0] == '{');
    if (at != NULL) {
        end = at + strlen(quoted);
        end += strcspn(end, ",}\n");
        sprintf(changed, "%.*s%s %s%s", (int)(at - json), json, quoted, value, end);
    } else {
        sprintf(changed, "{%s %s,%s", quoted, value, end);
    }
    test_write_file(file, changed, strlen(changed));
    free(changed);
    free(json);
}

START_TEST(fields_at_their_bounds_are_the_same_in_a_pack)
{
    char *checkpoint = test_checkpoint_write(&tiny);
    set_field(test_format("%s/config.json", checkpoint), bounds[_i / 2].field, bounds[_i / 2].ends[_i % 2]);
    dsv2_model *from = test_model_open(checkpoint, NULL);
    OK(dsv2_model_pack(checkpoint, path, NULL));
    dsv2_model *packed = test_model_open(path, NULL);
    const ds_config *a = &from->fixed.config, *b = &packed->fixed.config;
    ck_assert_uint_eq(from->fixed.fingerprint.config, packed->fixed.fingerprint.config);
    ck_assert_uint_eq(a->max_position_embeddings, b->max_position_embeddings);
    ck_assert_int_eq(a->bos_token_id, b->bos_token_id);
    ck_assert_uint_eq(a->ends.n, b->ends.n);
    ck_assert_mem_eq(a->ends.ids, b->ends.ids, a->ends.n * sizeof *a->ends.ids);
    dsv2_model_close(from);
    dsv2_model_close(packed);
    test_checkpoint_remove(checkpoint);
}
END_TEST

START_TEST(a_block_that_no_reader_takes_is_refused_by_the_writer)
{
    ds_pack_writer *writer;
    OK(ds_pack_writer_open(path, &writer));
    OK(ds_pack_writer_text(writer, "config.json", "{}", 2));
    dsv2_status status = ds_pack_writer_text(writer, "tokenizer.json", "", DS_PACK_MAX_TEXT);
    ck_assert_int_eq(status, DSV2_ERROR_UNSUPPORTED);
    ck_assert_msg(strstr(dsv2_last_error(), "tokenizer.json") != NULL && strstr(dsv2_last_error(), "268435456") != NULL,
                  "%s", dsv2_last_error());
    ds_pack_writer_free(writer);
    ck_assert_uint_eq(count_files(), 0);
}
END_TEST

/* ---- snapshots ---- */

/* Options at bounds of theirs, with a bias for each token. */
static void set_sampling(dsv2_session *session, uint32_t vocab_size, uint64_t seed)
{
    static const float penalties[] = {1e-3f, 1, 1000};
    dsv2_logit_bias *biases = malloc(vocab_size * sizeof *biases);
    ck_assert_ptr_nonnull(biases);
    for (uint32_t t = 0; t < vocab_size; t++)
        biases[t] = (dsv2_logit_bias){(int32_t)t, t == 0 ? FLT_MAX : t % 3 == 0 ? -INFINITY : (float)t};
    dsv2_sampling sampling = {.struct_size = sizeof sampling, .logit_bias = biases, .n_logit_bias = vocab_size,
                              .repetition_penalty = penalties[seed % 3], .penalty_window = UINT32_MAX,
                              .presence_penalty = -FLT_MAX / 4, .frequency_penalty = FLT_MIN,
                              .temperature = FLT_MIN, .top_k = UINT32_MAX, .top_p = FLT_MIN, .min_p = 1,
                              .seed = UINT64_MAX - seed};
    OK(dsv2_session_set_sampling(session, &sampling));
    free(biases);
}

static void assert_restores(dsv2_model *model, const dsv2_session_options *options, dsv2_session *session)
{
    uint32_t vocab_size = test_model_info(model).vocab_size;
    dsv2_session *restored = test_session_open(model, options);
    int32_t tokens[2][200];
    size_t n[2];
    const float *logits[2];
    OK(dsv2_session_restore(restored, path, NULL, NULL));
    OK(dsv2_session_tokens(session, tokens[0], 200, &n[0]));
    OK(dsv2_session_tokens(restored, tokens[1], 200, &n[1]));
    ck_assert_uint_eq(n[0], n[1]);
    ck_assert_mem_eq(tokens[0], tokens[1], n[0] * sizeof tokens[0][0]);
    dsv2_status status = dsv2_session_logits(session, &logits[0]);
    ck_assert_int_eq(status, dsv2_session_logits(restored, &logits[1]));
    if (status == DSV2_OK)
        ck_assert_mem_eq(logits[0], logits[1], vocab_size * sizeof(float));
    dsv2_session_close(restored);
}

START_TEST(snapshots_of_any_shape_length_and_cache_type_restore)
{
    test_checkpoint shape = random_shape((uint64_t)_i + 1000);
    uint32_t context = shape.max_position_embeddings;
    const uint32_t lengths[] = {0, 1, 63, 64, 65, context - 1, context};
    const dsv2_save_options append = {.struct_size = sizeof append, .append = 1};
    char *checkpoint = test_checkpoint_write(&shape);
    dsv2_model *model = test_model_open(checkpoint, &(dsv2_model_options){.n_threads = 1});
    int32_t tokens[200];
    test_random_tokens(9, shape.vocab_size, tokens, 200);
    for (int type = DSV2_CACHE_F32; type <= DSV2_CACHE_Q6; type++) {
        const dsv2_session_options options = {.struct_size = sizeof options, .cache_type = (dsv2_cache_type)type};
        dsv2_session *session = test_session_open(model, &options);
        size_t n = 0;
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
            if (lengths[i] > n)
                OK(dsv2_session_feed(session, tokens + n, lengths[i] - n));
            n = lengths[i] > n ? lengths[i] : n;
            OK(dsv2_session_save(session, path, i % 2 == 1 ? &append : NULL));
            assert_restores(model, &options, session);
            set_sampling(session, shape.vocab_size, i);
            OK(dsv2_session_save(session, path, &append));
            assert_restores(model, &options, session);
        }
        OK(dsv2_session_truncate(session, 5)); /* no logits */
        OK(dsv2_session_save(session, path, NULL));
        assert_restores(model, &options, session);
        dsv2_session_close(session);
        ck_assert_int_eq(unlink(path), 0);
    }
    dsv2_model_close(model);
    test_checkpoint_remove(checkpoint);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("written");
    TCase *tests = tcase_create("written");
    tcase_set_timeout(tests, 300);
    tcase_add_checked_fixture(tests, set_up, tear_down);
    tcase_add_loop_test(tests, packs_of_any_shape_and_type_open_and_give_the_bits_of_their_checkpoint, 0, 24);
    tcase_add_loop_test(tests, fields_at_their_bounds_are_the_same_in_a_pack, 0, 2 * N_BOUNDS);
    tcase_add_loop_test(tests, snapshots_of_any_shape_length_and_cache_type_restore, 0, 16);
    tcase_add_test(tests, a_block_that_no_reader_takes_is_refused_by_the_writer);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}

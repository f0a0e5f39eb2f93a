/* Packs: what goes in comes out, in every type; what is damaged is noticed; what fails leaves nothing behind. */
#include "formats/formats.h"
#include "model/model.h"
#include "support/checkpoint.h"
#include "support/gguf.h"
#include "support/model.h"
#include "support/oom.h"
#include "support/run.h"
#include "support/tensors.h"
#include "unit/small_json.h"

#include <check.h>
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { N_TOKENS = 70 };

static char folder[512], pack_path[600];

static void setup(void)
{
    const char *parent = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/dsv2-pack-XXXXXX", parent != NULL ? parent : "/tmp");
    ck_assert(mkdtemp(folder) != NULL);
    snprintf(pack_path, sizeof pack_path, "%s/model.dsv2", folder);
}

static size_t count_files(void)
{
    size_t n = 0;
    DIR *d = opendir(folder);
    for (struct dirent *entry = readdir(d); entry != NULL; entry = readdir(d))
        n += entry->d_name[0] != '.';
    closedir(d);
    return n;
}

static void teardown(void)
{
    DIR *d = opendir(folder);
    for (struct dirent *entry = readdir(d); entry != NULL; entry = readdir(d)) {
        char path[1024];
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        if (entry->d_name[0] != '.')
            unlink(path);
    }
    closedir(d);
    rmdir(folder);
}

static const char *golden(const char *name)
{
    static char path[4096];
    snprintf(path, sizeof path, "%s/goldens/%s", TEST_DATA, name);
    return path;
}

static dsv2_status pack(const char *from, dsv2_weight_type type)
{
    dsv2_pack_options options = {.struct_size = sizeof options, .weight_type = type, .n_threads = 2};
    return dsv2_model_pack(from, pack_path, &options);
}

static void expect_same_bits(const char *a_path, dsv2_weight_type a_type, const char *b_path, const char *kernels)
{
    dsv2_model *a = test_model_open(a_path, &(dsv2_model_options){.weight_type = a_type, .n_threads = 2,
                                                                  .kernels = kernels});
    dsv2_model *b = test_model_open(b_path, &(dsv2_model_options){.n_threads = 2, .kernels = kernels});
    dsv2_model_info x = test_model_info(a), y = test_model_info(b);
    ck_assert_str_eq(y.container, "pack");
    test_same_model(&x, &y);
    ck_assert_int_eq(x.weight_type, y.weight_type);
    ck_assert_int_eq(x.bos_token_id, y.bos_token_id);
    int32_t tokens[N_TOKENS];
    test_random_tokens(5, x.vocab_size, tokens, N_TOKENS);
    for (int attention = DSV2_ATTENTION_ABSORBED; attention <= DSV2_ATTENTION_EXPANDED; attention++) {
        dsv2_session_options options = {.struct_size = sizeof options, .cache_type = DSV2_CACHE_F32,
                                        .attention = (dsv2_attention)attention};
        float *p = test_logits(a, &options, tokens, N_TOKENS, N_TOKENS),
            *q = test_logits(b, &options, tokens, N_TOKENS, N_TOKENS);
        for (size_t i = 0; i < (size_t)N_TOKENS * x.vocab_size; i++)
            ck_assert_msg(isfinite(p[i]) && memcmp(&p[i], &q[i], sizeof *p) == 0,
                          "%s as type %d, attention %d: logit %zu is %a and %a", a_path,
                          (int)a_type, attention, i, (double)p[i], (double)q[i]);
        free(p);
        free(q);
    }
    dsv2_model_close(a);
    dsv2_model_close(b);
}

static const dsv2_weight_type types[] = {DSV2_WEIGHTS_AS_STORED, DSV2_WEIGHTS_F32,  DSV2_WEIGHTS_F16,
                                         DSV2_WEIGHTS_BF16, DSV2_WEIGHTS_Q8_0,
                                         DSV2_WEIGHTS_Q6_K,      DSV2_WEIGHTS_Q5_K, DSV2_WEIGHTS_Q4_K,
                                         DSV2_WEIGHTS_Q4_0};
static const char *const goldens[] = {"lite", "full", "plain", "v3"};
enum { N_TYPES = sizeof types / sizeof *types, N_GOLDENS = sizeof goldens / sizeof *goldens };

START_TEST(a_pack_gives_the_bits_of_its_checkpoint_brought_to_the_same_type)
{
    const char *from = golden(goldens[_i % N_GOLDENS]);
    dsv2_weight_type type = types[_i / N_GOLDENS];
    ck_assert_msg(pack(from, type) == DSV2_OK, "%s", dsv2_last_error());
    ck_assert_uint_eq(count_files(), 1);
    ck_assert_msg(dsv2_model_verify(pack_path, NULL, NULL) == DSV2_OK, "%s", dsv2_last_error());
    expect_same_bits(from, type, pack_path, NULL);
    expect_same_bits(from, type, pack_path, "c");
}
END_TEST

static const ds_type block_types[] = {
#define BLOCK(TYPE, ...) DS_TYPE_##TYPE,
#include "kernels/types.def"
};
enum { N_BLOCK_TYPES = sizeof block_types / sizeof *block_types };

static const test_checkpoint wide = {.name = "wide", .vocab_size = 72, .hidden_size = 256, .intermediate_size = 256,
                                     .num_hidden_layers = 2, .num_attention_heads = 4, .kv_lora_rank = 256,
                                     .qk_nope_head_dim = 32,
                                     .qk_rope_head_dim = 16, .v_head_dim = 64, .max_position_embeddings = 256,
                                     .n_routed_experts = 3,
                                     .num_experts_per_tok = 2, .moe_intermediate_size = 64, .n_shared_experts = 1,
                                     .first_k_dense_replace = 1, .seed = 31};

START_TEST(a_pack_of_a_gguf_gives_the_bits_of_the_gguf)
{
    test_gguf options = {.quantised = true, .type = block_types[_i / 2], .old = _i % 2 == 1, .seed = 77};
    char *checkpoint = test_checkpoint_write(&wide), gguf[600], floats[600];
    snprintf(gguf, sizeof gguf, "%s/model.gguf", folder);
    snprintf(floats, sizeof floats, "%s-floats", folder);
    ck_assert_int_eq(mkdir(floats, 0700), 0);
    test_gguf_write(&options, checkpoint, gguf, floats);
    ck_assert_msg(pack(gguf, DSV2_WEIGHTS_AS_STORED) == DSV2_OK, "%s", dsv2_last_error());
    expect_same_bits(gguf, DSV2_WEIGHTS_AS_STORED, pack_path, NULL);
    ck_assert_msg(dsv2_model_verify(pack_path, NULL, NULL) == DSV2_OK, "%s", dsv2_last_error());
    ds_type twin = ds_type_twin(options.type);
    dsv2_model *model = test_model_open(pack_path, NULL);
    ck_assert(model->fixed.weights.types_seen[twin != DS_TYPE_COUNT ? twin : DS_TYPE_P8]);
    dsv2_model_close(model);
    test_checkpoint_remove(strdup(floats));
    test_checkpoint_remove(checkpoint);
}
END_TEST

static const test_checkpoint tiny = {.name = "tiny", .vocab_size = 20, .hidden_size = 8, .intermediate_size = 8,
                                     .num_hidden_layers = 1,
                                     .num_attention_heads = 1, .kv_lora_rank = 8, .qk_nope_head_dim = 4,
                                     .qk_rope_head_dim = 4, .v_head_dim = 4, .max_position_embeddings = 256, .seed = 3};

/* The tokenizer of the tests beside a model; `digit` is the last of its expression's digits. */
static void write_tokenizer(const char *path, char digit)
{
    size_t size;
    char *data = test_read_file(TEST_DATA "/bytes/tokenizer.json", &size), *at = memmem(data, size, "[0-9]", 5);
    ck_assert(at != NULL);
    at[3] = digit;
    test_write_file(path, data, size);
    free(data);
}

static ds_fingerprint fingerprint_of(const char *path, dsv2_weight_type type)
{
    dsv2_model *model = test_model_open(path, &(dsv2_model_options){.weight_type = type, .n_threads = 2});
    ds_fingerprint fingerprint = model->fixed.fingerprint;
    ck_assert_uint_eq(test_model_info(model).fingerprint, ds_fingerprint_digest(&fingerprint));
    dsv2_model_close(model);
    return fingerprint;
}

START_TEST(fingerprints_tell_models_apart)
{
    char *checkpoint = test_checkpoint_write(&wide), path[600], tokenizer[600];
    snprintf(path, sizeof path, "%s/model.safetensors", checkpoint);
    snprintf(tokenizer, sizeof tokenizer, "%s/tokenizer.json", checkpoint);
    ds_fingerprint bare = fingerprint_of(checkpoint, DSV2_WEIGHTS_AS_STORED);
    ck_assert_uint_eq(bare.tokenizer, 0);
    write_tokenizer(tokenizer, '9');
    ds_fingerprint whole = fingerprint_of(checkpoint, DSV2_WEIGHTS_AS_STORED),
        again = fingerprint_of(checkpoint, DSV2_WEIGHTS_AS_STORED);
    ck_assert(whole.tokenizer != 0 && whole.config == bare.config && whole.weights == bare.weights);
    ck_assert_mem_eq(&whole, &again, sizeof whole);
    ck_assert_uint_ne(fingerprint_of(checkpoint, DSV2_WEIGHTS_Q8_0).weights, whole.weights); /* held in another type,
                                                                                              * they are others */

    ck_assert_int_eq(pack(checkpoint, DSV2_WEIGHTS_AS_STORED), DSV2_OK);
    ds_fingerprint packed = fingerprint_of(pack_path, DSV2_WEIGHTS_AS_STORED);
    ck_assert(packed.tokenizer == whole.tokenizer && packed.config == whole.config);
    size_t size;
    char *data = test_read_file(path, &size);
    uint64_t header;
    memcpy(&header, data, sizeof header);
    data[8 + header] ^= 1; /* the first of many in a tensor */
    test_write_file(path, data, size);
    free(data);
    ck_assert_int_eq(pack(checkpoint, DSV2_WEIGHTS_AS_STORED), DSV2_OK);
    ck_assert_uint_ne(fingerprint_of(pack_path, DSV2_WEIGHTS_AS_STORED).weights, packed.weights);

    write_tokenizer(tokenizer, '8');
    ck_assert_uint_ne(fingerprint_of(checkpoint, DSV2_WEIGHTS_AS_STORED).tokenizer, whole.tokenizer);
    test_checkpoint_remove(checkpoint);
}
END_TEST

/* What a host can ask of a tokenizer's special tokens and chat form. */
static void expect_same_tokenizer(const dsv2_tokenizer *a, const dsv2_tokenizer *b)
{
    static const dsv2_message messages[] = {{"user", "ab", 2}, {"assistant", "a", 1}, {"user", "b", 1}};
    dsv2_tokenizer_info x = {.struct_size = sizeof x}, y = {.struct_size = sizeof y};
    int32_t p[64], q[64];
    size_t n_p, n_q;
    ck_assert(dsv2_tokenizer_get_info(a, &x) == DSV2_OK && dsv2_tokenizer_get_info(b, &y) == DSV2_OK);
    ck_assert_str_eq(x.chat_form, y.chat_form);
    ck_assert_mem_eq(&x, &y, sizeof x);
    const char *text_a, *text_b;
    size_t size_a, size_b;
    ck_assert(dsv2_chat_template(a, &text_a, &size_a) == DSV2_OK && dsv2_chat_template(b, &text_b, &size_b) == DSV2_OK);
    ck_assert_uint_gt(size_a, 70); /* chat_template.jinja's */
    ck_assert_uint_eq(size_a, size_b);
    ck_assert_mem_eq(text_a, text_b, size_a);
    ck_assert(dsv2_chat_encode(a, messages, 3, 0, p, 64, &n_p) == DSV2_OK);
    ck_assert(dsv2_chat_encode(b, messages, 3, 0, q, 64, &n_q) == DSV2_OK);
    ck_assert_uint_eq(n_p, n_q);
    ck_assert_mem_eq(p, q, n_p * sizeof *p);
}

START_TEST(a_pack_has_the_tokenizer_and_chat_form_of_its_folder)
{
    /* The tokens are DeepSeek-V2.5's, the chat form V2's: so says the template alone. */
    static const char config[] = "{\"bos_token\":\"</s>\",\"eos_token\":\"<s>\","
                                 "\"chat_template\":\"{{'User: ' + messages[0].role}}\"}";
    /* So does chat_template.jinja, which goes before tokenizer_config.json. */
    static const char jinja[] = "{% for m in messages %}{{ 'User: ' + m.content + m.role + eos_token }}{% endfor %}";
    test_checkpoint shape = tiny;
    shape.vocab_size = 304;
    char *checkpoint = test_checkpoint_write(&shape), again[600];
    char *json = small_json(&(small_parts){
        .added = "{\"id\":300,\"content\":\"<s>\",\"special\":true},{\"id\":301,\"content\":\"</s>\",\"special\":true},"
                 "{\"id\":302,\"content\":\"<｜User｜>\"},{\"id\":303,\"content\":\"<｜Assistant｜>\"}"});
    test_write_file(test_format("%s/tokenizer.json", checkpoint), json, strlen(json));
    test_write_file(test_format("%s/tokenizer_config.json", checkpoint), config, strlen(config));
    test_write_file(test_format("%s/chat_template.jinja", checkpoint), jinja, strlen(jinja));
    free(json);
    snprintf(again, sizeof again, "%s/again.dsv2", folder);
    ck_assert_msg(pack(checkpoint, DSV2_WEIGHTS_Q8_0) == DSV2_OK, "%s", dsv2_last_error());
    ck_assert_msg(dsv2_model_pack(pack_path, again, NULL) == DSV2_OK, "%s", dsv2_last_error());
    const char *const places[] = {pack_path, again};
    for (size_t i = 0; i < 2; i++) {
        dsv2_model *a = test_model_open(checkpoint, NULL), *b = test_model_open(places[i], NULL);
        dsv2_tokenizer *x, *y;
        ck_assert(dsv2_tokenizer_open(checkpoint, &x) == DSV2_OK && dsv2_tokenizer_open(places[i], &y) == DSV2_OK);
        dsv2_tokenizer_info info = {.struct_size = sizeof info};
        ck_assert(dsv2_tokenizer_get_info(y, &info) == DSV2_OK);
        ck_assert_str_eq(info.chat_form, "v2");
        ck_assert_int_eq(info.bos_token_id, 301);
        expect_same_tokenizer(x, y);
        expect_same_tokenizer(dsv2_model_tokenizer(a), dsv2_model_tokenizer(b));
        dsv2_tokenizer_close(x);
        dsv2_tokenizer_close(y);
        dsv2_model_close(a);
        dsv2_model_close(b);
    }
    test_checkpoint_remove(checkpoint);
}
END_TEST

/* Every byte of the file but the zeros between tensors: opening notices it, or reading through does. */
START_TEST(every_damaged_byte_is_noticed)
{
    char *checkpoint = test_checkpoint_write(&tiny), damaged[600];
    ck_assert_msg(pack(checkpoint, DSV2_WEIGHTS_Q8_0) == DSV2_OK, "%s", dsv2_last_error());
    size_t size, noticed = 0, begin = 4096;
    char *data = test_read_file(pack_path, &size);
    snprintf(damaged, sizeof damaged, "%s/damaged.dsv2", folder);
    for (size_t i = 0; i < size; i++) {
        if ((i >= 128 && i < begin) || (i >= begin && data[i] == 0))
            continue;
        data[i] ^= 1;
        test_write_file(damaged, data, size);
        dsv2_status status = dsv2_model_verify(damaged, NULL, NULL);
        ck_assert_msg(status == DSV2_ERROR_FORMAT || status == DSV2_ERROR_UNSUPPORTED, "byte %zu: %s", i,
                      dsv2_status_name(status));
        ck_assert_msg(status == DSV2_ERROR_UNSUPPORTED || strstr(dsv2_last_error(), damaged) != NULL, "%s",
                      dsv2_last_error());
        data[i] ^= 1;
        noticed++;
    }
    ck_assert_uint_gt(noticed, 200);
    free(data);
    test_checkpoint_remove(checkpoint);
}
END_TEST

START_TEST(a_pack_cut_anywhere_is_refused)
{
    ck_assert_msg(pack(golden("plain"), DSV2_WEIGHTS_Q4_K) == DSV2_OK, "%s", dsv2_last_error());
    size_t size;
    char *data = test_read_file(pack_path, &size);
    for (size_t n = 0; n < size; n += n < 200 ? 1 : size / 97) {
        test_write_file(pack_path, data, n);
        dsv2_model *model = NULL;
        ck_assert_int_ne(dsv2_model_open(pack_path, NULL, &model), DSV2_OK);
        ck_assert(model == NULL && strstr(dsv2_last_error(), pack_path) != NULL);
    }
    free(data);
}
END_TEST

static int cancel_after(void *user, dsv2_phase phase, uint64_t done, uint64_t total)
{
    ck_assert(phase == DSV2_PHASE_OPEN || phase == DSV2_PHASE_PACK);
    ck_assert(done <= total);
    return phase == DSV2_PHASE_PACK && (*(int *)user)-- == 0;
}

START_TEST(a_pack_that_fails_leaves_the_file_that_was_there)
{
    test_write_file(pack_path, "before", 6);
    int reports = 5;
    dsv2_pack_options options = {.struct_size = sizeof options, .progress = cancel_after, .progress_user = &reports};
    ck_assert_int_eq(dsv2_model_pack(golden("lite"), pack_path, &options), DSV2_ERROR_CANCELLED);
    ck_assert_int_eq(pack("/nowhere", DSV2_WEIGHTS_AS_STORED), DSV2_ERROR_IO);
    size_t size;
    char *data = test_read_file(pack_path, &size);
    ck_assert(size == 6 && memcmp(data, "before", 6) == 0);
    ck_assert_uint_eq(count_files(), 1);
    free(data);
    ck_assert_int_eq(dsv2_model_pack(golden("lite"), "/nowhere/model.dsv2", NULL), DSV2_ERROR_IO);
    ck_assert(strstr(dsv2_last_error(), "/nowhere/model.dsv2") != NULL);
    ck_assert_int_eq(dsv2_model_verify(golden("lite"), NULL, NULL), DSV2_ERROR_UNSUPPORTED);
    ck_assert_int_eq(dsv2_model_verify("/nowhere", NULL, NULL), DSV2_ERROR_IO);
    ck_assert_int_eq(dsv2_model_pack(NULL, pack_path, NULL), DSV2_ERROR_ARGUMENT);
    ck_assert_int_eq(dsv2_model_verify(NULL, NULL, NULL), DSV2_ERROR_ARGUMENT);
}
END_TEST

typedef struct packing {
    const char *checkpoint;
    char *expected; /* the pack's bytes */
    size_t size;
    long live;
} packing;

static dsv2_status pack_it(void *context) { return pack(((packing *)context)->checkpoint, DSV2_WEIGHTS_Q4_K); }

static void packed_or_nothing(void *context, dsv2_status status)
{
    const packing *p = context;
    ck_assert_int_eq(oom_live(), p->live);
    ck_assert_uint_eq(count_files(), status == DSV2_OK ? 1 : 0);
    if (status != DSV2_OK)
        return;
    size_t size;
    char *bytes = test_read_file(pack_path, &size);
    ck_assert(size == p->size && memcmp(bytes, p->expected, size) == 0);
    free(bytes);
    unlink(pack_path);
}

START_TEST(every_allocation_of_packing_may_fail)
{
    char *checkpoint = test_checkpoint_write(&tiny);
    packing p = {.checkpoint = checkpoint};
    ck_assert_int_eq(pack_it(&p), DSV2_OK);
    p.expected = test_read_file(pack_path, &p.size);
    unlink(pack_path);
    p.live = oom_live();
    oom_fail_each(pack_it, packed_or_nothing, &p, _i == 1);
    free(p.expected);
    test_checkpoint_remove(checkpoint);
}
END_TEST

int main(void)
{
    TCase *tests = tcase_create("pack");
    tcase_set_timeout(tests, 300);
    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_add_loop_test(tests, a_pack_gives_the_bits_of_its_checkpoint_brought_to_the_same_type, 0,
                        N_TYPES * N_GOLDENS);
    tcase_add_loop_test(tests, a_pack_of_a_gguf_gives_the_bits_of_the_gguf, 0, 2 * N_BLOCK_TYPES);
    tcase_add_test(tests, fingerprints_tell_models_apart);
    tcase_add_test(tests, a_pack_has_the_tokenizer_and_chat_form_of_its_folder);
    tcase_add_test(tests, every_damaged_byte_is_noticed);
    tcase_add_test(tests, a_pack_cut_anywhere_is_refused);
    tcase_add_test(tests, a_pack_that_fails_leaves_the_file_that_was_there);
    if (oom_available())
        tcase_add_loop_test(tests, every_allocation_of_packing_may_fail, 0, 2);

    Suite *suite = suite_create("pack");
    suite_add_tcase(suite, tests);
    return test_run(suite);
}

/* Packs and snapshots of releases are opened for ever, and give the bits that they gave.
 *
 *     test_kept FOLDER          opens what FOLDER holds and compares with FOLDER/expected
 *     test_kept FOLDER write    writes the files and `expected`; compiled against the release's headers and library
 *
 * Everything is of the reference kernels, the public API alone, and what version 0.1 had of it. */
#include <dsv2/dsv2.h>

#include "support/checkpoint.h"
#include "support/run.h"

#include <check.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { VOCAB = 40, PROMPT = 150, FIRST = 70, DRAWN = 8 };

/* Rows of 256, so that every type of weights is there. */
static const test_checkpoint shape = {
    .vocab_size = VOCAB, .hidden_size = 256, .intermediate_size = 32, .num_hidden_layers = 2, .num_attention_heads = 1,
    .kv_lora_rank = 32, .qk_nope_head_dim = 32, .qk_rope_head_dim = 16, .v_head_dim = 32,
    .max_position_embeddings = 300, .moe_intermediate_size = 16, .n_routed_experts = 3, .num_experts_per_tok = 2,
    .n_shared_experts = 1, .first_k_dense_replace = 1, .moe_layer_freq = 1, .seed = 10,
};

static const struct {
    const char *name;
    dsv2_weight_type type;
} packs[] = {
    {"as_stored.dsv2", DSV2_WEIGHTS_AS_STORED}, {"q8_0.dsv2", DSV2_WEIGHTS_Q8_0}, {"q6_k.dsv2", DSV2_WEIGHTS_Q6_K},
    {"q5_k.dsv2", DSV2_WEIGHTS_Q5_K},           {"q4_k.dsv2", DSV2_WEIGHTS_Q4_K}, {"q4_0.dsv2", DSV2_WEIGHTS_Q4_0},
};

static const struct {
    const char *name;
    dsv2_cache_type type;
    bool is_appended;
} snapshots[] = {
    {"f32.snapshot", DSV2_CACHE_F32, false},         {"f16.snapshot", DSV2_CACHE_F16, false},
    {"q8.snapshot", DSV2_CACHE_Q8, false},           {"q6.snapshot", DSV2_CACHE_Q6, false},
    {"f32.appended.snapshot", DSV2_CACHE_F32, true}, {"f16.appended.snapshot", DSV2_CACHE_F16, true},
    {"q8.appended.snapshot", DSV2_CACHE_Q8, true},   {"q6.appended.snapshot", DSV2_CACHE_Q6, true},
};

#define COUNT(array) (sizeof(array) / sizeof *(array))

static const char *folder;

static void must(dsv2_status status, const char *what)
{
    if (status == DSV2_OK)
        return;
    fprintf(stderr, "%s: %s: %s\n", what, dsv2_status_name(status), dsv2_last_error());
    exit(1);
}

static const char *path_of(const char *name)
{
    static char path[2][1024];
    static int next;
    next ^= 1;
    snprintf(path[next], sizeof path[next], "%s/%s", folder, name);
    return path[next];
}

static const int32_t *prompt(void)
{
    static int32_t tokens[PROMPT];
    for (int i = 0; i < PROMPT; i++)
        tokens[i] = (i * i + 7 * i / 3) % VOCAB;
    return tokens;
}

static dsv2_model *open_model(const char *name)
{
    dsv2_model_options options = {.struct_size = sizeof options, .n_threads = 2, .kernels = "c"};
    dsv2_model *model;
    must(dsv2_model_open(path_of(name), &options, &model), name);
    return model;
}

static dsv2_session *open_session(dsv2_model *model, dsv2_cache_type type)
{
    dsv2_session_options options = {.struct_size = sizeof options, .cache_type = type};
    dsv2_session *session;
    must(dsv2_session_open(model, &options, &session), "a session");
    return session;
}

/* ---- what they give ---- */

/* FNV-1a of the logits' bytes. */
static unsigned long long digest(dsv2_session *session)
{
    const float *logits;
    must(dsv2_session_logits(session, &logits), "logits");
    unsigned long long digest = 0xcbf29ce484222325;
    for (size_t i = 0; i < VOCAB * sizeof *logits; i++)
        digest = (digest ^ ((const unsigned char *)logits)[i]) * 0x100000001b3;
    return digest;
}

/* The logits that are there, the tokens that are drawn from them one after the other, and the logits at the end. */
static void print_going_on(FILE *out, const char *name, dsv2_session *session)
{
    fprintf(out, "%s %016llx", name, digest(session));
    for (int i = 0; i < DRAWN; i++) {
        int32_t token;
        must(dsv2_session_sample(session, &token), name);
        must(dsv2_session_feed(session, &token, 1), name);
        fprintf(out, " %d", (int)token);
    }
    fprintf(out, " %016llx\n", digest(session));
}

static void print_pack(FILE *out, const char *name)
{
    must(dsv2_model_verify(path_of(name), NULL, NULL), name);
    dsv2_model *model = open_model(name);
    dsv2_session *session = open_session(model, DSV2_CACHE_F32);
    must(dsv2_session_feed(session, prompt(), PROMPT), name);
    print_going_on(out, name, session);
    dsv2_session_close(session);
    dsv2_model_close(model);
}

static void print_snapshot(FILE *out, dsv2_model *model, size_t i)
{
    const char *name = snapshots[i].name;
    dsv2_snapshot_info info = {.struct_size = sizeof info};
    must(dsv2_snapshot_inspect(path_of(name), &info), name);
    if (info.n_tokens != PROMPT || info.cache_type != snapshots[i].type) {
        fprintf(stderr, "%s: %llu tokens, cache type %d\n", name, (unsigned long long)info.n_tokens,
                (int)info.cache_type);
        exit(1);
    }
    dsv2_session *session = open_session(model, snapshots[i].type);
    size_t n;
    must(dsv2_session_restore(session, path_of(name), NULL, &n), name);
    print_going_on(out, name, session);
    dsv2_session_close(session);
}

static void print_all(FILE *out)
{
    for (size_t i = 0; i < COUNT(packs); i++)
        print_pack(out, packs[i].name);
    dsv2_model *model = open_model(packs[0].name);
    for (size_t i = 0; i < COUNT(snapshots); i++)
        print_snapshot(out, model, i);
    dsv2_model_close(model);
}

/* ---- writing ---- */

static void write_snapshot(dsv2_model *model, size_t i)
{
    const char *name = snapshots[i].name;
    dsv2_session *session = open_session(model, snapshots[i].type);
    dsv2_sampling sampling;
    dsv2_sampling_defaults(&sampling);
    sampling.temperature = 0.8f;
    sampling.top_k = 20;
    sampling.seed = 42;
    must(dsv2_session_set_sampling(session, &sampling), name);
    must(dsv2_session_feed(session, prompt(), FIRST), name);
    if (snapshots[i].is_appended)
        must(dsv2_session_save(session, path_of(name), NULL), name);
    must(dsv2_session_feed(session, prompt() + FIRST, PROMPT - FIRST), name);
    int32_t token; /* random numbers are in use */
    must(dsv2_session_sample(session, &token), name);
    dsv2_save_options options = {.struct_size = sizeof options, .append = snapshots[i].is_appended};
    must(dsv2_session_save(session, path_of(name), &options), name);
    dsv2_session_close(session);
}

/* A test, since the checkpoint is made by what belongs to Check. */
START_TEST(write_files)
{
    char *checkpoint = test_checkpoint_write(&shape);
    for (size_t i = 0; i < COUNT(packs); i++) {
        dsv2_pack_options options = {.struct_size = sizeof options, .weight_type = packs[i].type};
        must(dsv2_model_pack(checkpoint, path_of(packs[i].name), &options), packs[i].name);
    }
    test_checkpoint_remove(checkpoint);
    dsv2_model *model = open_model(packs[0].name);
    for (size_t i = 0; i < COUNT(snapshots); i++)
        write_snapshot(model, i);
    dsv2_model_close(model);
}
END_TEST

static int compare(FILE *given)
{
    FILE *expected = fopen(path_of("expected"), "r");
    char a[512], b[512];
    size_t n_lines = 0;
    int n_differ = expected == NULL;
    rewind(given);
    while (expected != NULL && fgets(a, sizeof a, expected) != NULL) {
        n_lines++;
        if (fgets(b, sizeof b, given) == NULL || strcmp(a, b) != 0) {
            printf("expected %sgiven    %s", a, b);
            n_differ++;
        }
    }
    if (expected != NULL)
        fclose(expected);
    printf("%s: %zu files opened, %d do not give what they gave\n", folder, n_lines, n_differ);
    return n_differ == 0 && n_lines == COUNT(packs) + COUNT(snapshots) ? 0 : 1;
}

int main(int n, char **arguments)
{
    bool writes = n == 3 && strcmp(arguments[2], "write") == 0;
    if (n != 2 && !writes) {
        fprintf(stderr, "usage: test_kept FOLDER [write]\n");
        return 2;
    }
    folder = arguments[1];
    if (writes) {
        TCase *writing = tcase_create("writing");
        tcase_set_timeout(writing, 600);
        tcase_add_test(writing, write_files);
        Suite *suite = suite_create("writing");
        suite_add_tcase(suite, writing);
        if (test_run(suite) != 0)
            return 1;
    }
    FILE *out = writes ? fopen(path_of("expected"), "w") : tmpfile();
    if (out == NULL)
        return 1;
    print_all(out);
    int result = writes ? 0 : compare(out);
    fclose(out);
    return result;
}

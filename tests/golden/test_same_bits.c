/* A session's logits are the same bits for any number of threads and any companions in its steps, and in the absorbed
 * form for any cutting of its input. Every kernel set, weights as floats and every interleaved type. */
#include "support/checkpoint.h"
#include "support/gguf.h"
#include "support/model.h"
#include "support/run.h"
#include "support/sanitizers.h"
#include "support/tensors.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LONG = 600 }; /* more than one pass and one span of attention */

/* Sizes make rows longer than a superblock, heads that begin inside a panel, a last task that is not full, and experts
 * whose slices are short for several threads, and long for one thread unless one expert gets most rows. */
static const test_checkpoint shape = {
    .name = "interleaved", .vocab_size = 103, .hidden_size = 288, .intermediate_size = 32, .num_hidden_layers = 1,
    .num_attention_heads = 4, .q_lora_rank = 96, .kv_lora_rank = 64, .qk_nope_head_dim = 24, .qk_rope_head_dim = 8,
    .v_head_dim = 40, .max_position_embeddings = 1024, .n_routed_experts = 9, .num_experts_per_tok = 2,
    .moe_intermediate_size = 288, .n_shared_experts = 1, .seed = 17,
};

static const struct {
    const char *name, *golden; /* golden NULL: of the shape above */
    dsv2_weight_type weight_type;
    bool is_gguf;
    ds_type gguf_type;
} kinds[] = {
    {"lite as stored", "lite", DSV2_WEIGHTS_AS_STORED, false, 0},
    {"v3 as F32", "v3", DSV2_WEIGHTS_F32, false, 0},
    {"full as F16", "full", DSV2_WEIGHTS_F16, false, 0},
    {"P8", NULL, DSV2_WEIGHTS_Q8_0, false, 0},
    {"P6", NULL, DSV2_WEIGHTS_Q6_K, false, 0},
    {"P5", NULL, DSV2_WEIGHTS_Q5_K, false, 0},
    {"P4", NULL, DSV2_WEIGHTS_Q4_K, false, 0},
    {"P4S", NULL, DSV2_WEIGHTS_Q4_0, false, 0},
    {"P5S", NULL, DSV2_WEIGHTS_AS_STORED, true, DS_TYPE_Q5_0},
    {"P4M", NULL, DSV2_WEIGHTS_AS_STORED, true, DS_TYPE_Q4_1},
    {"P5M", NULL, DSV2_WEIGHTS_AS_STORED, true, DS_TYPE_Q5_1},
};
enum { N_KINDS = sizeof kinds / sizeof *kinds };

/* All sessions read the same text. Each has its own length, form and chunks. */
static const struct {
    size_t n_tokens, chunk;
    dsv2_session_options options;
} parts[] = {
#define OPTIONS .struct_size = sizeof(dsv2_session_options)
    {LONG, LONG, {OPTIONS, .attention = DSV2_ATTENTION_ABSORBED}},
    {200, 130, {OPTIONS}},
    {150, 100, {OPTIONS, .attention = DSV2_ATTENTION_EXPANDED}},
    {30, 1, {OPTIONS}},
    {1, 1, {OPTIONS}},
    {20, 1, {OPTIONS, .attention = DSV2_ATTENTION_ABSORBED}},
    {100, 7, {OPTIONS, .attention = DSV2_ATTENTION_ABSORBED}},
    {200, 64, {OPTIONS, .attention = DSV2_ATTENTION_ABSORBED}},
};
enum {
    N_PARTS = sizeof parts / sizeof *parts,
    N_ALONE = 6 /* parts that every number of threads also runs alone */
};

typedef struct checker {
    char path[1024];
    size_t kind, set, vocab_size;
    int32_t tokens[LONG];
    float *expected[N_PARTS]; /* fed alone by one thread; absorbed form: in one piece */
} checker;

static void expect(const checker *c, size_t part, const float *logits, uint32_t n_threads, const char *how)
{
    for (size_t t = 0; t < parts[part].n_tokens; t++) {
        size_t at = t * c->vocab_size;
        ck_assert_msg(memcmp(logits + at, c->expected[part] + at, c->vocab_size * sizeof *logits) == 0,
                      "%s, kernels %s, %u threads, %s: session %zu (chunks of %zu, attention %d) differs from token "
                      "%zu on",
                      kinds[c->kind].name, test_kernel_set(c->set), n_threads, how, part, parts[part].chunk,
                      (int)parts[part].options.attention, t);
    }
}

static dsv2_model *open_with(const checker *c, uint32_t n_threads)
{
    return test_model_open(c->path, &(dsv2_model_options){.weight_type = kinds[c->kind].weight_type,
                                                          .n_threads = n_threads,
                                                          .kernels = test_kernel_set(c->set)});
}

static float *run_alone(const checker *c, dsv2_model *model, size_t part)
{
    return test_logits(model, &parts[part].options, c->tokens, parts[part].n_tokens, parts[part].chunk);
}

/* A round is one dsv2_step with all sessions that have tokens left. */
static void check_together(const checker *c, dsv2_model *model, uint32_t n_threads)
{
    dsv2_session *sessions[N_PARTS];
    float *logits[N_PARTS];
    size_t fed[N_PARTS] = {0};
    for (size_t i = 0; i < N_PARTS; i++) {
        sessions[i] = test_session_open(model, &parts[i].options);
        logits[i] = malloc(parts[i].n_tokens * c->vocab_size * sizeof **logits);
        ck_assert(logits[i] != NULL);
    }
    for (size_t n_items = 1; n_items > 0;) {
        dsv2_step_item items[N_PARTS];
        n_items = 0;
        for (size_t i = 0; i < N_PARTS; i++) {
            size_t left = parts[i].n_tokens - fed[i], n = left < parts[i].chunk ? left : parts[i].chunk;
            if (n == 0)
                continue;
            items[n_items++] = (dsv2_step_item){.struct_size = sizeof *items, .session = sessions[i],
                                                .tokens = c->tokens + fed[i], .n_tokens = n,
                                                .logits = logits[i] + fed[i] * c->vocab_size};
            fed[i] += n;
        }
        if (n_items > 0)
            ck_assert_msg(dsv2_step(model, items, n_items) == DSV2_OK, "%s", dsv2_last_error());
    }
    for (size_t i = 0; i < N_PARTS; i++) {
        expect(c, i, logits[i], n_threads, "together");
        free(logits[i]);
        dsv2_session_close(sessions[i]);
    }
}

static void check_kind(checker *c)
{
    dsv2_model *model = open_with(c, 1);
    if (model == NULL)
        return;
    const bool repeats = test_repeats();
    c->vocab_size = test_model_info(model).vocab_size;
    test_random_tokens(3, (uint32_t)c->vocab_size, c->tokens, LONG);
    for (size_t i = 0; i < N_PARTS; i++)
        c->expected[i] =
            i > 0 && parts[i].options.attention == DSV2_ATTENTION_ABSORBED ? c->expected[0] : run_alone(c, model, i);
    if (repeats)
        check_together(c, model, 1);
    dsv2_model_close(model);
    bool best = c->set + 1 == test_kernel_sets(); /* the others are slow, and the C code is cut in the same way */
    for (uint32_t n_threads = best && repeats ? 2 : 3; n_threads <= 3; n_threads++) {
        model = open_with(c, n_threads);
        for (size_t i = 0; i < N_ALONE && repeats; i++) {
            float *logits = run_alone(c, model, i);
            expect(c, i, logits, n_threads, "alone");
            free(logits);
        }
        check_together(c, model, n_threads);
        dsv2_model_close(model);
    }
    for (size_t i = 0; i < N_PARTS; i++)
        if (i == 0 || c->expected[i] != c->expected[0])
            free(c->expected[i]);
}

START_TEST(threads_companions_and_cutting_change_no_bit)
{
    checker *c = calloc(1, sizeof *c);
    ck_assert(c != NULL);
    c->kind = (size_t)_i / test_kernel_sets();
    c->set = (size_t)_i % test_kernel_sets();
    char *folder = test_checkpoint_write(&shape);
    if (kinds[c->kind].golden != NULL)
        snprintf(c->path, sizeof c->path, "%s/goldens/%s", TEST_DATA, kinds[c->kind].golden);
    else
        snprintf(c->path, sizeof c->path, "%s%s", folder, kinds[c->kind].is_gguf ? "/model.gguf" : "");
    if (kinds[c->kind].is_gguf)
        test_gguf_write(&(test_gguf){.quantised = true, .old = true, .type = kinds[c->kind].gguf_type, .seed = 5},
                        folder, c->path, NULL);
    check_kind(c);
    free(c);
    test_checkpoint_remove(folder);
}
END_TEST

int main(void)
{
    TCase *tests = tcase_create("same bits");
    tcase_set_timeout(tests, 300);
    tcase_add_loop_test(tests, threads_companions_and_cutting_change_no_bit, 0, N_KINDS * (int)test_kernel_sets());

    Suite *suite = suite_create("same bits");
    suite_add_tcase(suite, tests);
    return test_run(suite);
}

/* A pass can fail at every stage of every layer. Whichever stage fails, each session of the step is as it was. */
#include "model/model.h"

#include "support/checkpoint.h"
#include "support/model.h"
#include "support/run.h"
#include "support/tensors.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { VOCAB = 61, CONTEXT = 1400, MEMBERS = 3 };

/* A dense layer and two MoE layers; queries compressed or not. */
static const test_checkpoint shapes[] = {
    {.vocab_size = VOCAB, .hidden_size = 32, .intermediate_size = 40, .num_hidden_layers = 3, .num_attention_heads = 2,
     .kv_lora_rank = 16, .qk_nope_head_dim = 8, .qk_rope_head_dim = 4, .v_head_dim = 8,
     .max_position_embeddings = CONTEXT, .moe_intermediate_size = 16, .n_routed_experts = 6, .num_experts_per_tok = 2,
     .n_shared_experts = 1, .first_k_dense_replace = 1, .moe_layer_freq = 1, .seed = 42},
    {.vocab_size = VOCAB, .hidden_size = 32, .intermediate_size = 40, .num_hidden_layers = 3, .num_attention_heads = 2,
     .q_lora_rank = 24, .kv_lora_rank = 16, .qk_nope_head_dim = 8, .qk_rope_head_dim = 4, .v_head_dim = 8,
     .max_position_embeddings = CONTEXT, .moe_intermediate_size = 16, .n_routed_experts = 6, .num_experts_per_tok = 2,
     .n_shared_experts = 1, .first_k_dense_replace = 1, .moe_layer_freq = 1, .seed = 43},
};

/* What each member has and is fed: a prompt of two chunks in the expanded form; some tokens with all their logits; one
 * token. */
static const struct {
    dsv2_attention attention;
    size_t before, fed;
    bool all_logits;
} members[MEMBERS] = {
    {DSV2_ATTENTION_EXPANDED, 0, 600, false},
    {DSV2_ATTENTION_ABSORBED, 70, 40, true},
    {DSV2_ATTENTION_ABSORBED, 520, 1, false},
};

static int32_t tokens[CONTEXT];

/* Counts stages, and fails number `fails_at`. */
typedef struct watcher {
    size_t n, fails_at;
    ds_stage failed;
    size_t seen[DS_STAGE_COUNT];
} watcher;

static dsv2_status begin_stage(void *user, ds_stage stage)
{
    watcher *w = user;
    w->seen[stage]++;
    if (w->n++ != w->fails_at)
        return DSV2_OK;
    w->failed = stage;
    return ds_fail(DSV2_ERROR_IO, "stage %d was made to fail", (int)stage);
}

/* All that a host sees of a session. */
typedef struct seen {
    size_t length;
    int32_t tokens[CONTEXT];
    bool has_logits;
    float logits[VOCAB];
    uint64_t chosen; /* in its statistics */
} seen;

/* How often experts were chosen for the session's tokens, in all layers. */
static uint64_t count_chosen(dsv2_session *session)
{
    enum { EXPERTS = 6, DENSE_LAYERS = 1, LAYERS = 3 };
    dsv2_routing *routing;
    dsv2_expert_load experts[EXPERTS];
    uint64_t sum = 0;
    ck_assert(dsv2_session_routing(session, DSV2_ROUTING_ALL, &routing) == DSV2_OK);
    for (uint32_t layer = DENSE_LAYERS; layer < LAYERS; layer++) {
        ck_assert_msg(dsv2_routing_experts(routing, layer, experts) == DSV2_OK, "%s", dsv2_last_error());
        for (int e = 0; e < EXPERTS; e++)
            sum += experts[e].chosen;
    }
    dsv2_routing_free(routing);
    return sum;
}

static void look(dsv2_session *session, seen *s)
{
    const float *logits;
    memset(s, 0, sizeof *s);
    ck_assert(dsv2_session_length(session, &s->length) == DSV2_OK);
    size_t n;
    ck_assert(dsv2_session_tokens(session, s->tokens, CONTEXT, &n) == DSV2_OK && n == s->length);
    s->has_logits = dsv2_session_logits(session, &logits) == DSV2_OK;
    if (s->has_logits)
        memcpy(s->logits, logits, sizeof s->logits);
    s->chosen = count_chosen(session);
}

typedef struct fixture {
    char *folder;
    dsv2_model *model;
    dsv2_session *sessions[MEMBERS];
    seen before[MEMBERS];
    float *logits[MEMBERS];
    dsv2_step_item items[MEMBERS];
} fixture;

static fixture make(const test_checkpoint *shape)
{
    fixture f = {.folder = test_checkpoint_write(shape)};
    test_random_tokens(7, VOCAB, tokens, CONTEXT);
    f.model = test_model_open(f.folder, &(dsv2_model_options){.n_threads = 2});
    for (int i = 0; i < MEMBERS; i++) {
        f.sessions[i] = test_session_open(f.model, &(dsv2_session_options){.struct_size = sizeof(dsv2_session_options),
                                                                           .attention = members[i].attention});
        if (members[i].before > 0)
            ck_assert(dsv2_session_feed(f.sessions[i], tokens, members[i].before) == DSV2_OK);
        look(f.sessions[i], &f.before[i]);
        f.logits[i] = members[i].all_logits ? malloc(members[i].fed * VOCAB * sizeof(float)) : NULL;
        f.items[i] = (dsv2_step_item){
            .struct_size = sizeof f.items[i],
            .session = f.sessions[i],
            .tokens = tokens + members[i].before,
            .n_tokens = members[i].fed,
            .logits = f.logits[i],
        };
    }
    return f;
}

static void drop(fixture *f)
{
    for (int i = 0; i < MEMBERS; i++) {
        free(f->logits[i]);
        dsv2_session_close(f->sessions[i]);
    }
    dsv2_model_close(f->model);
    test_checkpoint_remove(f->folder);
}

/* The step gives the bits and the statistics that each session gets alone. */
static void expect_alone(const fixture *f)
{
    for (int i = 0; i < MEMBERS; i++) {
        dsv2_session *alone =
            test_session_open(f->model, &(dsv2_session_options){.struct_size = sizeof(dsv2_session_options),
                                                                .attention = members[i].attention});
        const float *logits, *expected;
        if (members[i].before > 0)
            ck_assert(dsv2_session_feed(alone, tokens, members[i].before) == DSV2_OK);
        ck_assert(dsv2_session_feed(alone, tokens + members[i].before, members[i].fed) == DSV2_OK);
        ck_assert(dsv2_session_logits(alone, &expected) == DSV2_OK &&
                  dsv2_session_logits(f->sessions[i], &logits) == DSV2_OK);
        ck_assert_msg(memcmp(logits, expected, VOCAB * sizeof *logits) == 0, "member %d", i);
        if (members[i].all_logits)
            ck_assert(memcmp(f->logits[i] + (members[i].fed - 1) * VOCAB, expected, VOCAB * sizeof *logits) == 0);
        ck_assert_uint_eq(count_chosen(f->sessions[i]), count_chosen(alone));
        dsv2_session_close(alone);
    }
}

START_TEST(a_pass_that_fails_at_any_stage_leaves_every_session_as_it_was)
{
    fixture f = make(&shapes[_i]);
    watcher w = {.fails_at = 0};
    size_t failed[DS_STAGE_COUNT] = {0};
    for (;; w.fails_at++) {
        w.n = 0;
        f.model->fixed.decoder.watch = (ds_stage_watch){begin_stage, &w};
        dsv2_status status = dsv2_step(f.model, f.items, MEMBERS);
        f.model->fixed.decoder.watch = (ds_stage_watch){0};
        if (w.n <= w.fails_at) {
            ck_assert_msg(status == DSV2_OK, "%s", dsv2_last_error());
            break;
        }
        char message[64];
        snprintf(message, sizeof message, "stage %d was made to fail", (int)w.failed);
        ck_assert_msg(status == DSV2_ERROR_IO && strcmp(dsv2_last_error(), message) == 0, "stage %d gave %s: %s",
                      (int)w.failed, dsv2_status_name(status), dsv2_last_error());
        ck_assert_uint_eq(w.n, w.fails_at + 1); /* nothing ran after the failure */
        failed[w.failed]++;
        for (int i = 0; i < MEMBERS; i++) {
            seen now;
            look(f.sessions[i], &now);
            ck_assert_msg(memcmp(&now, &f.before[i], sizeof now) == 0,
                          "member %d is changed after stage %d, number %zu", i, (int)w.failed, w.fails_at);
            ck_assert(f.items[i].status == DSV2_ERROR_IO);
        }
    }
    for (int stage = 0; stage < DS_STAGE_COUNT; stage++)
        ck_assert_msg(failed[stage] > 0 && failed[stage] <= w.seen[stage], "stage %d was never made to fail", stage);
    expect_alone(&f);
    drop(&f);
}
END_TEST

/* B14: of idle passes a call takes one that has room, and of those the smallest, wherever they are in the list. */
START_TEST(a_call_takes_the_smallest_idle_pass_that_has_room)
{
    char *folder = test_checkpoint_write(&shapes[0]);
    dsv2_model *model = test_model_open(folder, &(dsv2_model_options){.n_threads = 2});
    static const uint32_t rows[] = {1, 64, 512};
    ds_pass *passes[3], *again;
    for (int first = 0; first < 3; first++) { /* released first: so last in the list */
        for (int i = 0; i < 3; i++)
            ck_assert(ds_pass_acquire(&model->passes, &model->fixed.decoder, rows[i], 10, &passes[i]) == DSV2_OK);
        uint64_t bytes = atomic_load(&model->passes.bytes);
        for (int i = 0; i < 3; i++)
            ds_pass_release(passes[(first + i) % 3]);
        for (int i = 2; i >= 0; i--) {
            ck_assert(ds_pass_acquire(&model->passes, &model->fixed.decoder, rows[i], 10, &again) == DSV2_OK);
            ck_assert(again == passes[i]);
            ds_pass_release(again);
        }
        ck_assert_uint_eq(atomic_load(&model->passes.bytes), bytes);
    }
    dsv2_model_close(model);
    test_checkpoint_remove(folder);
}
END_TEST

int main(void)
{
    TCase *tests = tcase_create("stages");
    tcase_set_timeout(tests, 200);
    tcase_add_loop_test(tests, a_pass_that_fails_at_any_stage_leaves_every_session_as_it_was, 0,
                        sizeof shapes / sizeof *shapes);
    Suite *suite = suite_create("stages");
    tcase_add_test(tests, a_call_takes_the_smallest_idle_pass_that_has_room);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}

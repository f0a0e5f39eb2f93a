/* The seam between the forward pass and the sources of experts, shown by a source that copies the experts acquired
 * and gives them up when they are released, that waits, and that fails: bits stay the same, a failure leaves every
 * session as it was, and every expert that was acquired is released. */
#include "model/model.h"
#include "weights/held_type.h"
#include "support/checkpoint.h"
#include "support/gguf.h"
#include "support/model.h"
#include "support/run.h"
#include "support/tensors.h"

#include <check.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_TOKENS = 40, LONG = 600, VOCAB = 72, N_LAYERS = 3, N_EXPERTS = 12 };

static const test_checkpoint shape = {.name = "small", .vocab_size = VOCAB, .hidden_size = 256, .intermediate_size = 64,
                                      .num_hidden_layers = N_LAYERS, .num_attention_heads = 2, .kv_lora_rank = 32,
                                      .qk_nope_head_dim = 32, .qk_rope_head_dim = 8, .v_head_dim = 32,
                                      .max_position_embeddings = 1024, .n_routed_experts = N_EXPERTS,
                                          .num_experts_per_tok = 2,
                                      .moe_intermediate_size = 32, .n_shared_experts = 1, .first_k_dense_replace = 1,
                                          .seed = 51};

static const dsv2_session_options absorbed = {.struct_size = sizeof absorbed, .attention = DSV2_ATTENTION_ABSORBED};

/* ---- the source ---- */

typedef struct copied_expert {
    ds_ffn_weights weights; /* whose data are copies while somebody holds the expert */
    uint32_t n_holders;
} copied_expert;

typedef struct test_source {
    ds_expert_source base, *own; /* own: the model's */
    const ds_ffn_weights *originals[N_LAYERS][N_EXPERTS];
    ds_ffn_weights *bound[N_LAYERS]; /* the layers' arrays, out of the forward pass's reach meanwhile */
    pthread_mutex_t lock;
    copied_expert experts[N_LAYERS][N_EXPERTS];
    size_t n_acquired, n_released; /* calls that were given experts, and gave them back */
    size_t n_calls, failing_call;  /* 1: the first; 0: none fails */

    /* The thread `slow` waits in its acquire number `slow_call` until `gate` is open. */
    atomic_bool has_slow;
    pthread_t slow;
    size_t slow_call;
    bool slow_waits, gate;
    pthread_cond_t changed;
} test_source;

static void copy_matrix(ds_matrix *matrix)
{
    size_t size = ds_matrix_bytes(matrix->type, matrix->rows, matrix->cols);
    void *copy = aligned_alloc(64, (size + 63) / 64 * 64);
    ck_assert(copy != NULL);
    memcpy(copy, matrix->data, size);
    matrix->data = copy;
}

/* Whoever still reads meets other numbers, or the address sanitizer. */
static void evict_matrix(ds_matrix *matrix)
{
    memset((void *)(uintptr_t)matrix->data, 0xa5, ds_matrix_bytes(matrix->type, matrix->rows, matrix->cols));
    free((void *)(uintptr_t)matrix->data);
    *matrix = (ds_matrix){0};
}

static void wait_at_gate(test_source *s)
{
    if (!atomic_load(&s->has_slow) || !pthread_equal(s->slow, pthread_self()) || s->slow_call == 0
        || --s->slow_call > 0)
        return;
    s->slow_waits = true;
    pthread_cond_broadcast(&s->changed);
    while (!s->gate)
        pthread_cond_wait(&s->changed, &s->lock);
}

static dsv2_status acquire(ds_expert_source *base, uint32_t layer, const uint32_t *experts, size_t n,
                           const ds_ffn_weights **weights)
{
    test_source *s = (test_source *)base;
    pthread_mutex_lock(&s->lock);
    wait_at_gate(s);
    bool fails = ++s->n_calls == s->failing_call;
    for (size_t i = 0; i < n && !fails; i++) {
        copied_expert *expert = &s->experts[layer][experts[i]];
        if (expert->n_holders++ == 0) {
            expert->weights = *s->originals[layer][experts[i]];
            copy_matrix(&expert->weights.gate);
            copy_matrix(&expert->weights.up);
            copy_matrix(&expert->weights.down);
        }
        weights[i] = &expert->weights;
    }
    s->n_acquired += !fails;
    pthread_mutex_unlock(&s->lock);
    return fails ? ds_fail(DSV2_ERROR_IO, "the disk of layer %u is gone", layer) : DSV2_OK;
}

static void release(ds_expert_source *base, uint32_t layer, const uint32_t *experts, size_t n)
{
    test_source *s = (test_source *)base;
    pthread_mutex_lock(&s->lock);
    for (size_t i = 0; i < n; i++) {
        copied_expert *expert = &s->experts[layer][experts[i]];
        ck_assert_uint_gt(expert->n_holders, 0);
        if (--expert->n_holders == 0) {
            evict_matrix(&expert->weights.gate);
            evict_matrix(&expert->weights.up);
            evict_matrix(&expert->weights.down);
        }
    }
    s->n_released++;
    pthread_mutex_unlock(&s->lock);
}

/* Puts the source between a model and its own. */
static test_source *put_between(dsv2_model *model)
{
    test_source *s = calloc(1, sizeof *s);
    ck_assert(s != NULL);
    uint32_t all[N_EXPERTS];
    for (uint32_t e = 0; e < N_EXPERTS; e++)
        all[e] = e;
    s->base = (ds_expert_source){.name = "test", .acquire = acquire, .release = release};
    s->own = model->fixed.weights.experts;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->changed, NULL);
    for (uint32_t l = shape.first_k_dense_replace; l < N_LAYERS; l++) {
        ck_assert(s->own->acquire(s->own, l, all, N_EXPERTS, s->originals[l]) == DSV2_OK);
        s->bound[l] = model->fixed.weights.layers[l].moe.experts;
        model->fixed.weights.layers[l].moe.experts = NULL;
    }
    model->fixed.weights.experts = &s->base;
    return s;
}

static void expect_balance(const test_source *s)
{
    ck_assert_uint_eq(s->n_acquired, s->n_released);
    for (uint32_t l = 0; l < N_LAYERS; l++)
        for (uint32_t e = 0; e < N_EXPERTS; e++)
            ck_assert_uint_eq(s->experts[l][e].n_holders, 0);
}

static void take_away(dsv2_model *model, test_source *s)
{
    expect_balance(s);
    uint32_t all[N_EXPERTS];
    for (uint32_t e = 0; e < N_EXPERTS; e++)
        all[e] = e;
    for (uint32_t l = shape.first_k_dense_replace; l < N_LAYERS; l++) {
        s->own->release(s->own, l, all, N_EXPERTS);
        model->fixed.weights.layers[l].moe.experts = s->bound[l];
    }
    model->fixed.weights.experts = s->own;
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->changed);
    free(s);
}

/* ---- models ---- */

static char *checkpoint, *place, gguf[600];
static int32_t tokens[LONG + N_TOKENS];

static void setup(void)
{
    const char *parent = getenv("TMPDIR");
    place = strdup(test_format("%s/dsv2-test-XXXXXX", parent != NULL ? parent : "/tmp"));
    ck_assert(place != NULL && mkdtemp(place) != NULL);
    snprintf(gguf, sizeof gguf, "%s/model.gguf", place);
    checkpoint = test_checkpoint_write(&shape);
    test_gguf_write(&(test_gguf){.quantised = true, .type = DS_TYPE_Q4_K, .seed = 5}, checkpoint, gguf, NULL);
    test_random_tokens(9, VOCAB, tokens, LONG + N_TOKENS);
}

static void teardown(void)
{
    test_checkpoint_remove(checkpoint);
    test_checkpoint_remove(place);
}

/* Experts as the file has them, converted on opening, and interleaved when first chosen. */
enum { N_KINDS = 3 };

static dsv2_model *open_kind(int kind, uint32_t n_threads)
{
    return test_model_open(kind == 2 ? gguf : checkpoint,
                           &(dsv2_model_options){.n_threads = n_threads, .weight_type = kind == 1
                                                 ? DSV2_WEIGHTS_Q8_0 : 0});
}

static float *logits_of(dsv2_model *model, size_t chunk)
{
    return test_logits(model, &absorbed, tokens, N_TOKENS, chunk);
}

static void expect_bits(const float *logits, const float *expected, size_t n_rows, const char *what)
{
    ck_assert_msg(memcmp(logits, expected, n_rows * VOCAB * sizeof *logits) == 0, "%s: other bits", what);
}

START_TEST(a_source_that_evicts_what_is_released_gives_the_same_bits)
{
    for (uint32_t n_threads = 1; n_threads <= 3; n_threads += 2) {
        dsv2_model *model = open_kind(_i, n_threads);
        float *expected = logits_of(model, N_TOKENS);
        test_source *source = put_between(model);
        for (size_t chunk = 1; chunk <= N_TOKENS; chunk = chunk * 6 + 1) {
            float *logits = logits_of(model, chunk);
            expect_bits(logits, expected, N_TOKENS, "evicting");
            free(logits);
            expect_balance(source);
        }
        ck_assert_uint_gt(source->n_acquired, N_TOKENS);
        take_away(model, source);
        free(expected);
        dsv2_model_close(model);
    }
}
END_TEST

/* ---- delays ---- */

typedef struct host {
    dsv2_model *model;
    test_source *source;
    const float *expected;
    bool slow;
} host;

static void *host_thread(void *argument)
{
    const host *h = argument;
    if (h->slow) {
        h->source->slow = pthread_self();
        atomic_store(&h->source->has_slow, true);
    }
    float *logits = logits_of(h->model, h->slow ? N_TOKENS : 1);
    expect_bits(logits, h->expected, N_TOKENS, h->slow ? "the one that waits" : "the one that goes on");
    free(logits);
    return NULL;
}

/* The gate opens only when a whole text was fed by others: if these waited too, the test would not end. */
START_TEST(a_session_whose_experts_are_late_holds_up_no_other)
{
    dsv2_model *model = open_kind(_i, 2);
    float *expected = logits_of(model, N_TOKENS);
    test_source *source = put_between(model);
    source->slow_call = 2;
    pthread_t late, others[2];
    host slow = {model, source, expected, true}, fast = {model, source, expected, false};
    ck_assert(pthread_create(&late, NULL, host_thread, &slow) == 0);
    pthread_mutex_lock(&source->lock);
    while (!source->slow_waits)
        pthread_cond_wait(&source->changed, &source->lock);
    pthread_mutex_unlock(&source->lock);
    for (int i = 0; i < 2; i++)
        ck_assert(pthread_create(&others[i], NULL, host_thread, &fast) == 0);
    for (int i = 0; i < 2; i++)
        pthread_join(others[i], NULL);
    pthread_mutex_lock(&source->lock);
    source->gate = true;
    pthread_cond_broadcast(&source->changed);
    pthread_mutex_unlock(&source->lock);
    pthread_join(late, NULL);
    take_away(model, source);
    free(expected);
    dsv2_model_close(model);
}
END_TEST

/* ---- failures ---- */

/* Members of a step: one that is new, one with a past, one that takes several passes. */
enum { MEMBERS = 3 };
static const size_t n_past[MEMBERS] = {0, 20, 3}, n_fed[MEMBERS] = {5, 1, LONG};

typedef struct members {
    dsv2_session *sessions[MEMBERS];
    float *before[MEMBERS], *out[MEMBERS];
} members;

static members open_members(dsv2_model *model)
{
    members m;
    for (size_t i = 0; i < MEMBERS; i++) {
        m.sessions[i] = test_session_open(model, &absorbed);
        m.before[i] = calloc(VOCAB, sizeof(float));
        m.out[i] = calloc(n_fed[i] * VOCAB, sizeof(float));
        ck_assert(m.before[i] != NULL && m.out[i] != NULL);
        if (n_past[i] == 0)
            continue;
        const float *logits;
        ck_assert(dsv2_session_feed(m.sessions[i], tokens, n_past[i]) == DSV2_OK);
        ck_assert(dsv2_session_logits(m.sessions[i], &logits) == DSV2_OK);
        memcpy(m.before[i], logits, VOCAB * sizeof *logits);
    }
    return m;
}

static void close_members(members *m)
{
    for (size_t i = 0; i < MEMBERS; i++) {
        dsv2_session_close(m->sessions[i]);
        free(m->before[i]);
        free(m->out[i]);
    }
}

/* Every member's status is the step's. */
static dsv2_status step(dsv2_model *model, members *m)
{
    dsv2_step_item items[MEMBERS];
    for (size_t i = 0; i < MEMBERS; i++)
        items[i] = (dsv2_step_item){.struct_size = sizeof *items, .session = m->sessions[i],
                                    .tokens = tokens + n_past[i],
                                    .n_tokens = n_fed[i], .logits = m->out[i]};
    dsv2_status status = dsv2_step(model, items, MEMBERS);
    for (size_t i = 0; i < MEMBERS; i++)
        ck_assert_msg(items[i].status == status, "member %zu: status %d: %s", i, (int)items[i].status,
                      dsv2_last_error());
    return status;
}

/* Tokens, length and logits are those of before the step. */
static void expect_unchanged(const members *m, size_t i)
{
    int32_t held[LONG];
    size_t length;
    const float *logits;
    ck_assert(dsv2_session_tokens(m->sessions[i], held, LONG, &length) == DSV2_OK);
    ck_assert_uint_eq(length, n_past[i]);
    ck_assert(memcmp(held, tokens, length * sizeof *held) == 0);
    ck_assert_int_eq(dsv2_session_logits(m->sessions[i], &logits), n_past[i] > 0 ? DSV2_OK : DSV2_ERROR_STATE);
    if (n_past[i] > 0)
        expect_bits(logits, m->before[i], 1, "after a failure");
}

/* Whichever call it is, of whichever layer and pass: the next step finds everything as if the failed one had not
 * been. */
START_TEST(a_source_that_fails_leaves_every_member_of_a_step_as_it_was)
{
    dsv2_model *model = open_kind(_i, 2);
    members whole = open_members(model);
    ck_assert(step(model, &whole) == DSV2_OK);
    test_source *source = put_between(model);
    bool failed = true;
    size_t nth = 0;
    while (failed) {
        members m = open_members(model);
        source->n_calls = 0;
        source->failing_call = ++nth;
        dsv2_status status = step(model, &m);
        failed = source->n_calls >= nth;
        ck_assert_int_eq(status, failed ? DSV2_ERROR_IO : DSV2_OK);
        ck_assert(!failed || strstr(dsv2_last_error(), "the disk of layer") != NULL);
        source->failing_call = 0;
        expect_balance(source);
        for (size_t i = 0; failed && i < MEMBERS; i++)
            expect_unchanged(&m, i);
        ck_assert(!failed || step(model, &m) == DSV2_OK);
        for (size_t i = 0; i < MEMBERS; i++)
            expect_bits(m.out[i], whole.out[i], n_fed[i], "the step again");
        close_members(&m);
    }
    ck_assert_uint_gt(nth, 2 * (N_LAYERS - shape.first_k_dense_replace)); /* several passes */
    take_away(model, source);
    close_members(&whole);
    dsv2_model_close(model);
}
END_TEST

typedef struct cancelling {
    int after; /* reports, one a layer */
} cancelling;

static int cancel_after(void *user, dsv2_phase phase, uint64_t done, uint64_t total)
{
    (void)phase, (void)done, (void)total;
    return ((cancelling *)user)->after-- == 0;
}

START_TEST(a_cancelled_feed_gives_all_experts_back)
{
    dsv2_model *model = open_kind(_i, 2);
    float *expected = logits_of(model, N_TOKENS);
    test_source *source = put_between(model);
    for (int layer = 0; layer < N_LAYERS; layer++) {
        dsv2_session *session = test_session_open(model, &absorbed);
        cancelling c = {layer};
        const float *logits;
        ck_assert(dsv2_session_set_progress(session, cancel_after, &c) == DSV2_OK);
        ck_assert_int_eq(dsv2_session_feed(session, tokens, N_TOKENS), DSV2_ERROR_CANCELLED);
        expect_balance(source);
        ck_assert(dsv2_session_set_progress(session, NULL, NULL) == DSV2_OK);
        ck_assert(dsv2_session_feed(session, tokens, N_TOKENS) == DSV2_OK);
        ck_assert(dsv2_session_logits(session, &logits) == DSV2_OK);
        expect_bits(logits, expected + (size_t)(N_TOKENS - 1) * VOCAB, 1, "after a cancel");
        dsv2_session_close(session);
    }
    take_away(model, source);
    free(expected);
    dsv2_model_close(model);
}
END_TEST

int main(void)
{
    TCase *tests = tcase_create("sources");
    tcase_set_timeout(tests, 200);
    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_add_loop_test(tests, a_source_that_evicts_what_is_released_gives_the_same_bits, 0, N_KINDS);
    tcase_add_loop_test(tests, a_session_whose_experts_are_late_holds_up_no_other, 0, N_KINDS);
    tcase_add_loop_test(tests, a_source_that_fails_leaves_every_member_of_a_step_as_it_was, 0, N_KINDS);
    tcase_add_loop_test(tests, a_cancelled_feed_gives_all_experts_back, 0, N_KINDS);

    Suite *suite = suite_create("sources");
    suite_add_tcase(suite, tests);
    return test_run(suite);
}

/* What a host may do wrong to models and sessions, and what the system may refuse. A failed call leaves everything as
 * it was, which the bits that come afterwards show. Nothing leaks, nothing races. */
#include "small_host.h"

#include "support/oom.h"
#include "support/run.h"
#include "support/tensors.h"

#include <check.h>
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- arguments ---- */

#define REFUSED(call) FAILS_WITH(DSV2_ERROR_ARGUMENT, call)

START_TEST(null_is_refused_by_every_function)
{
    dsv2_model *model = open_model(1, 0), *no_model = NULL;
    dsv2_session *session = open_session(model, NULL), *no_session = NULL;
    dsv2_model_info info = {.struct_size = sizeof info};
    dsv2_memory_info memory = {.struct_size = sizeof memory};
    dsv2_sampling sampling;
    dsv2_sampling_defaults(&sampling);
    dsv2_sampling_defaults(NULL);
    dsv2_token_probability top;
    const float *logits;
    int32_t token;
    float log_probability;
    size_t n;
    uint64_t bytes;
    feed(session, tokens, 3);

    REFUSED(dsv2_model_open(NULL, NULL, &no_model));
    REFUSED(dsv2_model_open(folder, NULL, NULL));
    REFUSED(dsv2_model_get_info(NULL, &info));
    REFUSED(dsv2_model_get_info(model, NULL));
    REFUSED(dsv2_model_get_memory(NULL, &memory));
    REFUSED(dsv2_model_get_memory(model, NULL));
    ck_assert(dsv2_model_tokenizer(NULL) == NULL);
    REFUSED(dsv2_session_open(NULL, NULL, &no_session));
    REFUSED(dsv2_session_open(model, NULL, NULL));
    REFUSED(dsv2_session_feed(NULL, tokens, 1));
    REFUSED(dsv2_session_feed(session, NULL, 1));
    REFUSED(dsv2_session_feed(session, tokens, 0));
    REFUSED(dsv2_session_sample(NULL, &token));
    REFUSED(dsv2_session_sample(session, NULL));
    REFUSED(dsv2_session_set_sampling(NULL, &sampling));
    REFUSED(dsv2_session_set_sampling(session, NULL));
    REFUSED(dsv2_session_seed(NULL, 1));
    REFUSED(dsv2_sampling_get_defaults(NULL));
    REFUSED(dsv2_session_logits(NULL, &logits));
    REFUSED(dsv2_session_logits(session, NULL));
    REFUSED(dsv2_session_top_tokens(NULL, 1, &top));
    REFUSED(dsv2_session_top_tokens(session, 1, NULL));
    REFUSED(dsv2_session_top_tokens(session, VOCAB + 1, &top));
    REFUSED(dsv2_session_log_probability(NULL, 0, &log_probability));
    REFUSED(dsv2_session_log_probability(session, 0, NULL));
    REFUSED(dsv2_session_log_probability(session, VOCAB, &log_probability));
    REFUSED(dsv2_session_log_probability(session, -1, &log_probability));
    REFUSED(dsv2_session_length(NULL, &n));
    REFUSED(dsv2_session_length(session, NULL));
    REFUSED(dsv2_session_tokens(NULL, NULL, 0, &n));
    REFUSED(dsv2_session_tokens(session, NULL, 1, &n));
    REFUSED(dsv2_session_tokens(session, &token, 1, NULL));
    FAILS_WITH(DSV2_ERROR_BUFFER, dsv2_session_tokens(session, &token, 1, &n));
    ck_assert_uint_eq(n, 3);
    REFUSED(dsv2_session_truncate(NULL, 0));
    REFUSED(dsv2_session_truncate(session, 4));
    REFUSED(dsv2_session_fork(NULL, 0, &no_session));
    REFUSED(dsv2_session_fork(session, 0, NULL));
    REFUSED(dsv2_session_fork(session, 4, &no_session));
    REFUSED(dsv2_session_bytes_per_token(NULL, &bytes));
    REFUSED(dsv2_session_bytes_per_token(session, NULL));
    dsv2_session_cancel(NULL);
    dsv2_session_close(NULL);
    dsv2_model_close(NULL);
    dsv2_step_item item = {.struct_size = sizeof item, .session = session, .tokens = tokens, .n_tokens = 1};
    REFUSED(dsv2_step(NULL, &item, 1));
    REFUSED(dsv2_step(model, NULL, 1));
    REFUSED(dsv2_step(model, &item, 0));
    item.session = NULL;
    REFUSED(dsv2_step(model, &item, 1));
    item = (dsv2_step_item){.struct_size = sizeof item, .session = session, .n_tokens = 1};
    REFUSED(dsv2_step(model, &item, 1));

    ck_assert(no_model == NULL && no_session == NULL);
    ck_assert_uint_eq(length_of(session), 3);
    dsv2_session_close(session);
    dsv2_model_close(model);
}
END_TEST

START_TEST(wrong_struct_size_is_refused)
{
    dsv2_model *model = open_model(1, 0), *no_model;
    dsv2_session *session = open_session(model, NULL), *no_session;
    static const size_t sizes[] = {0, 1, sizeof(size_t), (size_t)-1};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        REFUSED(dsv2_model_open(folder, &(dsv2_model_options){.struct_size = sizes[i]}, &no_model));
        REFUSED(dsv2_session_open(model, &(dsv2_session_options){.struct_size = sizes[i]}, &no_session));
        REFUSED(dsv2_model_get_info(model, &(dsv2_model_info){.struct_size = sizes[i]}));
        REFUSED(dsv2_model_get_memory(model, &(dsv2_memory_info){.struct_size = sizes[i]}));
        dsv2_sampling sampling;
        dsv2_sampling_defaults(&sampling);
        sampling.struct_size = sizes[i];
        REFUSED(dsv2_session_set_sampling(session, &sampling));
        dsv2_step_item item = {.struct_size = sizes[i], .session = session, .tokens = tokens, .n_tokens = 1};
        REFUSED(dsv2_step(model, &item, 1));
    }
    /* Options of a newer host are accepted if the part that this library does not know is zero. */
    struct {
        dsv2_session_options known;
        uint64_t later[2];
    } newer = {.known.struct_size = sizeof newer};
    ck_assert(dsv2_session_open(model, &newer.known, &no_session) == DSV2_OK);
    dsv2_session_close(no_session);
    newer.later[1] = 1;
    REFUSED(dsv2_session_open(model, &newer.known, &no_session));
    dsv2_session_close(session);
    dsv2_model_close(model);
}
END_TEST

START_TEST(options_out_of_range_are_refused)
{
    dsv2_model *model = open_model(1, 0), *no_model;
    dsv2_session *session;
    REFUSED(dsv2_session_open(
        model, &(dsv2_session_options){.struct_size = sizeof(dsv2_session_options), .max_length = CONTEXT + 1},
        &session));
    REFUSED(dsv2_session_open(
        model, &(dsv2_session_options){.struct_size = sizeof(dsv2_session_options), .cache_type = 77}, &session));
    REFUSED(dsv2_session_open(
        model, &(dsv2_session_options){.struct_size = sizeof(dsv2_session_options), .attention = 3}, &session));
    REFUSED(dsv2_model_open(folder, &(dsv2_model_options){.struct_size = sizeof(dsv2_model_options), .n_threads = 5000},
                            &no_model));
    REFUSED(dsv2_model_open(folder, &(dsv2_model_options){.struct_size = sizeof(dsv2_model_options), .kernels = "z80"},
                            &no_model));
    REFUSED(dsv2_model_open(folder, &(dsv2_model_options){.struct_size = sizeof(dsv2_model_options), .weight_type = 99},
                            &no_model));
    FAILS_WITH(DSV2_ERROR_IO, dsv2_model_open(test_format("%s/nowhere", folder), NULL, &no_model));
    dsv2_model_close(model);
}
END_TEST

START_TEST(a_token_outside_the_vocabulary_is_named_and_changes_nothing)
{
    dsv2_model *model = open_model(2, 0);
    dsv2_session *session = open_session(model, &absorbed);
    static const int32_t wrong[] = {-1, VOCAB, INT32_MAX, INT32_MIN};
    feed(session, tokens, 5);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        int32_t fed[10];
        memcpy(fed, tokens + 5, sizeof fed);
        fed[7] = wrong[i];
        REFUSED(dsv2_session_feed(session, fed, 10));
        ck_assert_ptr_nonnull(strstr(dsv2_last_error(), "token 7"));
        assert_holds(session, model, tokens, 5);
    }
    feed(session, tokens + 5, 10);
    assert_holds(session, model, tokens, 15);
    dsv2_session_close(session);
    dsv2_model_close(model);
}
END_TEST

START_TEST(a_full_session_takes_no_more_and_stays_usable)
{
    dsv2_model *model = open_model(1, 0);
    dsv2_session_options options = absorbed;
    options.max_length = 100;
    dsv2_session *session = open_session(model, &options);
    FAILS_WITH(DSV2_ERROR_FULL, dsv2_session_feed(session, tokens, 101));
    assert_holds(session, model, tokens, 0);
    feed(session, tokens, 100);
    FAILS_WITH(DSV2_ERROR_FULL, dsv2_session_feed(session, tokens + 100, 1));
    assert_holds(session, model, tokens, 100);
    ck_assert(dsv2_session_truncate(session, 90) == DSV2_OK);
    FAILS_WITH(DSV2_ERROR_FULL, dsv2_session_feed(session, tokens + 90, SIZE_MAX));
    feed(session, tokens + 90, 10);
    assert_holds(session, model, tokens, 100);
    dsv2_session_close(session);

    session = open_session(model, &absorbed); /* the whole context of the model */
    feed(session, tokens, CONTEXT);
    FAILS_WITH(DSV2_ERROR_FULL, dsv2_session_feed(session, tokens, 1));
    assert_holds(session, model, tokens, CONTEXT);
    dsv2_session_close(session);
    dsv2_model_close(model);
}
END_TEST

/* ---- busy, cancel, progress ---- */

/* A progress callback that holds the feeding thread at one report until the gate opens. */
typedef struct gate {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint64_t stop_at; /* done of the report to stop at */
    bool waiting, open;
    int answer;
    dsv2_session *session;
    size_t n;
    dsv2_status status;
} gate;

static int wait_at_gate(void *user, dsv2_phase phase, uint64_t done, uint64_t total)
{
    gate *g = user;
    (void)phase, (void)total;
    if (done != g->stop_at)
        return 0;
    pthread_mutex_lock(&g->lock);
    g->waiting = true;
    pthread_cond_signal(&g->changed);
    while (!g->open)
        pthread_cond_wait(&g->changed, &g->lock);
    pthread_mutex_unlock(&g->lock);
    return g->answer;
}

static void *feed_thread(void *argument)
{
    gate *g = argument;
    g->status = dsv2_session_feed(g->session, tokens + length_of(g->session), g->n);
    return NULL;
}

/* Starts feeding n tokens in a thread and returns when that thread stands at the gate. */
static pthread_t start_feeding(gate *g, dsv2_session *session, size_t n, uint64_t stop_at)
{
    pthread_t thread;
    g->session = session;
    g->n = n;
    g->stop_at = stop_at;
    g->waiting = g->open = false;
    ck_assert(pthread_create(&thread, NULL, feed_thread, g) == 0);
    pthread_mutex_lock(&g->lock);
    while (!g->waiting)
        pthread_cond_wait(&g->changed, &g->lock);
    pthread_mutex_unlock(&g->lock);
    return thread;
}

static dsv2_status let_go(gate *g, pthread_t thread)
{
    pthread_mutex_lock(&g->lock);
    g->open = true;
    pthread_cond_signal(&g->changed);
    pthread_mutex_unlock(&g->lock);
    pthread_join(thread, NULL);
    return g->status;
}

static dsv2_session *open_gated(dsv2_model *model, gate *g)
{
    *g = (gate){.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    dsv2_session_options options = absorbed;
    options.progress = wait_at_gate;
    options.progress_user = g;
    return open_session(model, &options);
}

START_TEST(a_session_at_work_is_busy_for_everyone_else)
{
    dsv2_model *model = open_model(2, 0);
    gate g;
    dsv2_session *session = open_gated(model, &g);
    feed(session, tokens, 3);
    pthread_t thread = start_feeding(&g, session, 20, 20);
    int32_t token;
    const float *logits;
    dsv2_token_probability top;
    float log_probability;
    size_t n;
    dsv2_sampling sampling;
    dsv2_sampling_defaults(&sampling);
    FAILS_WITH(DSV2_ERROR_BUSY, dsv2_session_feed(session, tokens, 1));
    FAILS_WITH(DSV2_ERROR_BUSY, dsv2_session_sample(session, &token));
    FAILS_WITH(DSV2_ERROR_BUSY, dsv2_session_set_sampling(session, &sampling));
    FAILS_WITH(DSV2_ERROR_BUSY, dsv2_session_seed(session, 1));
    FAILS_WITH(DSV2_ERROR_BUSY, dsv2_session_logits(session, &logits));
    FAILS_WITH(DSV2_ERROR_BUSY, dsv2_session_top_tokens(session, 1, &top));
    FAILS_WITH(DSV2_ERROR_BUSY, dsv2_session_log_probability(session, 0, &log_probability));
    FAILS_WITH(DSV2_ERROR_BUSY, dsv2_session_length(session, &n));
    FAILS_WITH(DSV2_ERROR_BUSY, dsv2_session_tokens(session, NULL, 0, &n));
    FAILS_WITH(DSV2_ERROR_BUSY, dsv2_session_truncate(session, 0));
    /* A busy session stops the others of its step: none has changed, every item says so. */
    dsv2_session *other = open_session(model, &absorbed);
    dsv2_step_item items[] = {{.struct_size = sizeof *items, .session = other, .tokens = tokens, .n_tokens = 2},
                              {.struct_size = sizeof *items, .session = session, .tokens = tokens, .n_tokens = 2}};
    FAILS_WITH(DSV2_ERROR_BUSY, dsv2_step(model, items, 2));
    ck_assert(items[0].status == DSV2_ERROR_BUSY && items[1].status == DSV2_ERROR_BUSY);
    assert_holds(other, model, tokens, 0);
    /* The same session twice in one step. */
    items[1].session = other;
    FAILS_WITH(DSV2_ERROR_BUSY, dsv2_step(model, items, 2));
    ck_assert(let_go(&g, thread) == DSV2_OK);
    g.stop_at = UINT64_MAX;
    assert_holds(session, model, tokens, 23);
    dsv2_session_close(other);
    dsv2_session_close(session);
    dsv2_model_close(model);
}
END_TEST

static const dsv2_cache_type cache_types[] = {DSV2_CACHE_F32, DSV2_CACHE_F16, DSV2_CACHE_Q8, DSV2_CACHE_Q6};
enum { N_CACHE_TYPES = sizeof cache_types / sizeof *cache_types };

/* The logits after each of n tokens, [n][VOCAB]; to be freed. */
static float *logits_after_each(dsv2_model *model, dsv2_cache_type type, const int32_t *fed, size_t n)
{
    dsv2_session_options options = absorbed;
    options.cache_type = type;
    dsv2_session *session = open_session(model, &options);
    float *logits = malloc(n * VOCAB * sizeof *logits);
    dsv2_step_item item = {
        .struct_size = sizeof item, .session = session, .tokens = fed, .n_tokens = n, .logits = logits};
    ck_assert_msg(dsv2_step(model, &item, 1) == DSV2_OK, "%s", dsv2_last_error());
    dsv2_session_close(session);
    return logits;
}

static void assert_logits(dsv2_session *session, const float *expected)
{
    const float *logits;
    ck_assert_msg(dsv2_session_logits(session, &logits) == DSV2_OK, "%s", dsv2_last_error());
    ck_assert(memcmp(logits, expected, VOCAB * sizeof *logits) == 0);
}

/* Forks a session in the middle of a feed: its first layers are done, and its forks share the page that it writes to.
 * Then each fork goes another way. The session goes on too, whether its feed ended or was cancelled. */
START_TEST(a_session_at_work_can_be_forked)
{
    static const size_t lengths[] = {1, 3, 63, 64, 65, 100};
    enum { N_LENGTHS = sizeof lengths / sizeof *lengths, FED = 40, OTHER = 200 };
    dsv2_model *model = open_model(2, 0);
    for (size_t l = 0; l < 2 * N_LENGTHS; l++) {
        size_t length = lengths[l / 2];
        bool cancelled = l % 2 == 1;
        gate g = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
        dsv2_session_options options = absorbed;
        options.cache_type = cache_types[_i];
        options.progress = wait_at_gate;
        options.progress_user = &g;
        dsv2_session *session = open_session(model, &options), *whole, *part, *again, *none;
        int32_t other[OTHER];
        memcpy(other, tokens, length * sizeof *other);
        test_random_tokens(99, VOCAB, other + length, FED);
        float *same_way = logits_after_each(model, cache_types[_i], tokens, length + FED + 2);
        float *other_way = logits_after_each(model, cache_types[_i], other, length + FED);
        feed(session, tokens, length);
        pthread_t thread = start_feeding(&g, session, FED, FED); /* one layer of three */
        FAILS_WITH(DSV2_ERROR_ARGUMENT, dsv2_session_fork(session, length + 1, &none));
        ck_assert(dsv2_session_fork(session, length, &whole) == DSV2_OK);
        ck_assert(dsv2_session_fork(session, length - 1, &part) == DSV2_OK);
        assert_logits(whole, same_way + (length - 1) * VOCAB);
        feed(whole, other + length, FED / 2);
        ck_assert(dsv2_session_fork(whole, length, &again) == DSV2_OK);
        g.answer = cancelled;
        ck_assert_int_eq(let_go(&g, thread), cancelled ? DSV2_ERROR_CANCELLED : DSV2_OK);
        g.stop_at = UINT64_MAX;
        feed(whole, other + length + FED / 2, FED / 2);
        assert_logits(whole, other_way + (length + FED - 1) * VOCAB);
        feed(part, tokens + length - 1, FED);
        assert_logits(part, same_way + (length + FED - 2) * VOCAB);
        feed(again, tokens + length, FED);
        assert_logits(again, same_way + (length + FED - 1) * VOCAB);
        size_t done = length + (cancelled ? 0 : FED);
        ck_assert_uint_eq(length_of(session), done);
        feed(session, tokens + done, 2);
        assert_logits(session, same_way + (done + 1) * VOCAB);
        dsv2_session_close(again);
        dsv2_session_close(part);
        dsv2_session_close(whole);
        dsv2_session_close(session);
        free(other_way);
        free(same_way);
    }
    ck_assert_uint_eq(memory_of(model).pages_in_use, 0);
    dsv2_model_close(model);
}
END_TEST

START_TEST(cancel_from_another_thread_leaves_the_session_as_it_was)
{
    dsv2_model *model = open_model(2, 0);
    gate g;
    dsv2_session *session = open_gated(model, &g);
    g.stop_at = UINT64_MAX;
    dsv2_session_cancel(session); /* nobody at work: nothing happens */
    feed(session, tokens, 10);
    dsv2_session_cancel(session);
    assert_holds(session, model, tokens, 10);
    /* After one and after two layers of the first chunk, and after one layer of the second. */
    static const uint64_t stops[] = {512, 2 * 512, 3 * 512 + 88};
    for (size_t i = 0; i < 3; i++) {
        pthread_t thread = start_feeding(&g, session, 600, stops[i]);
        dsv2_session_cancel(session);
        ck_assert(let_go(&g, thread) == DSV2_ERROR_CANCELLED);
        g.stop_at = UINT64_MAX;
        assert_holds(session, model, tokens, 10);
    }
    feed(session, tokens + 10, 600);
    assert_holds(session, model, tokens, 610);
    dsv2_session_close(session);
    dsv2_model_close(model);
}
END_TEST

typedef struct reports {
    size_t n, cancel_at; /* the report that answers 1 */
    uint64_t last, total;
    dsv2_phase phase;
} reports;

static int record(void *user, dsv2_phase phase, uint64_t done, uint64_t total)
{
    reports *r = user;
    ck_assert_int_eq(phase, r->phase);
    ck_assert_uint_ge(done, r->last);
    ck_assert_uint_le(done, total);
    ck_assert(r->n == 0 || total == r->total);
    r->last = done;
    r->total = total;
    return r->n++ == r->cancel_at;
}

START_TEST(cancel_by_callback_at_every_layer_leaves_the_session_as_it_was)
{
    dsv2_model *model = open_model(1, 0);
    reports r = {.phase = DSV2_PHASE_PROMPT, .cancel_at = SIZE_MAX};
    dsv2_session_options options = absorbed;
    options.progress = record;
    options.progress_user = &r;
    dsv2_session *session = open_session(model, &options);
    feed(session, tokens, 70);
    bool done = false;
    size_t n_cancelled = 0;
    for (size_t at = 0; !done; at++) {
        r = (reports){.phase = DSV2_PHASE_PROMPT, .cancel_at = at};
        dsv2_status status = dsv2_session_feed(session, tokens + 70, 530);
        done = status == DSV2_OK;
        if (done)
            break;
        ck_assert_int_eq(status, DSV2_ERROR_CANCELLED);
        assert_holds(session, model, tokens, 70);
        n_cancelled++;
    }
    ck_assert_uint_eq(n_cancelled, 2 * shape.num_hidden_layers); /* two parts of the input */
    assert_holds(session, model, tokens, 600);
    dsv2_session_close(session);
    dsv2_model_close(model);
}
END_TEST

START_TEST(progress_never_falls_and_ends_at_the_total)
{
    reports opening = {.phase = DSV2_PHASE_OPEN, .cancel_at = SIZE_MAX};
    dsv2_model_options model_options = {
        .struct_size = sizeof model_options, .progress = record, .progress_user = &opening};
    dsv2_model *model;
    ck_assert(dsv2_model_open(folder, &model_options, &model) == DSV2_OK);
    ck_assert(opening.n > 0 && opening.last == opening.total);
    static const size_t lengths[] = {1, 64, 513, 1300};
    reports r[4];
    dsv2_step_item items[4];
    for (size_t i = 0; i < 4; i++) {
        r[i] = (reports){.phase = DSV2_PHASE_PROMPT, .cancel_at = SIZE_MAX};
        dsv2_session_options options = {.struct_size = sizeof options, .progress = record, .progress_user = &r[i]};
        items[i] = (dsv2_step_item){.struct_size = sizeof *items, .session = open_session(model, &options),
                                    .tokens = tokens, .n_tokens = lengths[i]};
    }
    ck_assert(dsv2_step(model, items, 4) == DSV2_OK);
    for (size_t i = 0; i < 4; i++) {
        ck_assert_uint_eq(r[i].last, r[i].total);
        ck_assert_uint_eq(r[i].total, lengths[i] * shape.num_hidden_layers);
        dsv2_session_close(items[i].session);
    }
    dsv2_model_close(model);
}
END_TEST

START_TEST(a_cancelled_session_does_not_stop_its_companions)
{
    dsv2_model *model = open_model(2, 0);
    reports r = {.phase = DSV2_PHASE_PROMPT, .cancel_at = 1};
    dsv2_session_options options = absorbed;
    options.progress = record;
    options.progress_user = &r;
    dsv2_session *a = open_session(model, &absorbed), *b = open_session(model, &options),
                 *c = open_session(model, &absorbed);
    dsv2_step_item items[] = {{.struct_size = sizeof *items, .session = a, .tokens = tokens, .n_tokens = 30},
                              {.struct_size = sizeof *items, .session = b, .tokens = tokens, .n_tokens = 700},
                              {.struct_size = sizeof *items, .session = c, .tokens = tokens, .n_tokens = 550}};
    FAILS_WITH(DSV2_ERROR_CANCELLED, dsv2_step(model, items, 3));
    ck_assert(items[0].status == DSV2_OK && items[1].status == DSV2_ERROR_CANCELLED && items[2].status == DSV2_OK);
    assert_holds(a, model, tokens, 30);
    assert_holds(b, model, tokens, 0);
    assert_holds(c, model, tokens, 550);
    dsv2_session_close(a), dsv2_session_close(b), dsv2_session_close(c);
    dsv2_model_close(model);
}
END_TEST

START_TEST(opening_can_be_cancelled_at_every_report)
{
    long live = 0;
    bool opened = false;
    for (size_t at = 0; !opened; at += at < 10 ? 1 : 17) {
        reports r = {.phase = DSV2_PHASE_OPEN, .cancel_at = at};
        dsv2_model_options options = {
            .struct_size = sizeof options, .n_threads = 1, .progress = record, .progress_user = &r};
        dsv2_model *model = NULL;
        dsv2_status status = dsv2_model_open(folder, &options, &model);
        opened = status == DSV2_OK;
        ck_assert(opened || (status == DSV2_ERROR_CANCELLED && model == NULL));
        dsv2_model_close(model);
        if (at == 0)
            live = oom_live();
        ck_assert_int_eq(oom_live(), live);
    }
}
END_TEST

/* ---- files ---- */

START_TEST(a_file_that_changes_size_while_open_is_an_error_not_a_signal)
{
    dsv2_model *model = open_model(2, 0);
    dsv2_session *session = open_session(model, &absorbed);
    feed(session, tokens, 10);
    const char *path = test_format("%s/model.safetensors", folder);
    size_t size;
    char *contents = test_read_file(path, &size);
    static const long changes[] = {-1, -4096, 1};
    for (size_t i = 0; i < 3; i++) {
        ck_assert(truncate(path, (off_t)((long)size + changes[i])) == 0);
        FAILS_WITH(DSV2_ERROR_IO, dsv2_session_feed(session, tokens + 10, 1));
        ck_assert_uint_eq(length_of(session), 10);
        int fd = open(path, O_WRONLY);
        ck_assert(fd >= 0 && ftruncate(fd, (off_t)size) == 0 && pwrite(fd, contents, size, 0) == (ssize_t)size);
        close(fd);
        assert_holds(session, model, tokens, 10);
    }
    feed(session, tokens + 10, 5);
    assert_holds(session, model, tokens, 15);
    free(contents);
    dsv2_session_close(session);
    dsv2_model_close(model);
}
END_TEST

/* config.json with another value in one field. */
static const struct {
    const char *dtype, *field, *value, *message;
    dsv2_status status;
} contradictions[] = {
    {NULL, "vocab_size", "62", "tensor model.embed_tokens.weight has shape [61, 32], the configuration says [62, 32]",
     DSV2_ERROR_FORMAT},
    {NULL, "hidden_size", "1048576",
     "tensor model.embed_tokens.weight has shape [61, 32], the configuration says [61, 1048576]", DSV2_ERROR_FORMAT},
    {NULL, "intermediate_size", "41",
     "tensor model.layers.0.mlp.gate_proj.weight has shape [40, 32], the configuration says [41, 32]",
     DSV2_ERROR_FORMAT},
    {NULL, "num_hidden_layers", "1024", "tensor model.layers.3.input_layernorm.weight is missing", DSV2_ERROR_FORMAT},
    {NULL, "n_routed_experts", "4096",
     "tensor model.layers.1.mlp.gate.weight has shape [6, 32], the configuration says [4096, 32]", DSV2_ERROR_FORMAT},
    {NULL, "moe_intermediate_size", "8",
     "tensor model.layers.1.mlp.shared_experts.gate_proj.weight has shape [16, 32], the configuration",
     DSV2_ERROR_FORMAT},
    {NULL, "kv_lora_rank", "12",
     "tensor model.layers.0.self_attn.kv_a_proj_with_mqa.weight has shape [20, 32], the configuration says [16",
     DSV2_ERROR_FORMAT},
    {NULL, "q_lora_rank", "8", "tensor model.layers.0.self_attn.q_a_proj.weight is missing", DSV2_ERROR_FORMAT},
    {"F8_E4M3", "quantization_config", "null",
     "is F8_E4M3 and config.json gives no quantization_config.weight_block_size", DSV2_ERROR_FORMAT},
};

START_TEST(a_tensor_that_is_not_as_the_configuration_says_is_refused_by_name)
{
    test_checkpoint other = shape;
    if (contradictions[_i].dtype != NULL) {
        other.dtype = contradictions[_i].dtype;
        other.block_rows = other.block_cols = 8;
    }
    char *place = test_checkpoint_write(&other), *path = strdup(test_format("%s/config.json", place));
    json_t *config = json_load_file(path, 0, NULL),
           *value = json_loads(contradictions[_i].value, JSON_DECODE_ANY, NULL);
    ck_assert(config != NULL && value != NULL && json_object_set_new(config, contradictions[_i].field, value) == 0);
    ck_assert(json_dump_file(config, path, 0) == 0);
    json_decref(config);
    free(path);
    dsv2_model *model = NULL;
    FAILS_WITH(contradictions[_i].status, dsv2_model_open(place, NULL, &model));
    ck_assert(model == NULL);
    ck_assert_msg(strncmp(dsv2_last_error(), place, strlen(place)) == 0 &&
                      strstr(dsv2_last_error(), contradictions[_i].message) != NULL,
                  "\"%s\" is not in: %s", contradictions[_i].message, dsv2_last_error());
    test_checkpoint_remove(place);
}
END_TEST

/* ---- forks and rewinding ---- */

START_TEST(any_sequence_of_feeds_forks_and_rewinds_gives_the_bits_of_a_fresh_session)
{
    enum { N = 5, STEPS = 120, LONGEST = 400 };
    dsv2_model *model = open_model(1, 0);
    struct {
        dsv2_session *session;
        int32_t tokens[LONGEST];
        size_t n;
        bool has_logits;
    } held[N] = {{.session = open_session(model, &absorbed)}};
    uint64_t seed = 100 + (uint64_t)_i;
    for (int step = 0; step < STEPS; step++) {
        size_t i = (size_t)(test_random(&seed) * N), j = (size_t)(test_random(&seed) * N);
        double what = test_random(&seed);
        if (held[i].session == NULL)
            continue;
        if (what < 0.5) {
            size_t n = (size_t)(test_random(&seed) * (test_random(&seed) < 0.3 ? 150 : 4)) + 1;
            if (held[i].n + n > LONGEST)
                continue;
            test_random_tokens(seed, VOCAB, held[i].tokens + held[i].n, n);
            feed(held[i].session, held[i].tokens + held[i].n, n);
            held[i].n += n;
            held[i].has_logits = true;
        } else if (what < 0.7) {
            size_t n = (size_t)(test_random(&seed) * (double)(held[i].n + 1));
            ck_assert(dsv2_session_truncate(held[i].session, n) == DSV2_OK);
            held[i].has_logits = held[i].has_logits && n == held[i].n;
            held[i].n = n;
        } else if (i != j) {
            size_t n = test_random(&seed) < 0.5 ? held[i].n : (size_t)(test_random(&seed) * (double)(held[i].n + 1));
            dsv2_session_close(held[j].session);
            ck_assert(dsv2_session_fork(held[i].session, n, &held[j].session) == DSV2_OK);
            memcpy(held[j].tokens, held[i].tokens, n * sizeof *held[i].tokens);
            held[j].has_logits = held[i].has_logits && n == held[i].n;
            held[j].n = n;
        }
        const float *logits;
        if (held[i].has_logits)
            assert_holds(held[i].session, model, held[i].tokens, held[i].n);
        else
            FAILS_WITH(DSV2_ERROR_STATE, dsv2_session_logits(held[i].session, &logits));
    }
    for (size_t i = 0; i < N; i++) {
        if (held[i].has_logits)
            assert_holds(held[i].session, model, held[i].tokens, held[i].n);
        dsv2_session_close(held[i].session);
    }
    ck_assert_uint_eq(memory_of(model).pages_in_use, 0);
    ck_assert_uint_eq(memory_of(model).page_bytes_in_use, 0);
    dsv2_model_close(model);
}
END_TEST

START_TEST(a_fork_shares_pages_sampler_and_logits)
{
    dsv2_model *model = open_model(1, 0);
    dsv2_session *session = open_session(model, &absorbed), *copy, *part;
    dsv2_sampling sampling;
    dsv2_sampling_defaults(&sampling);
    sampling.temperature = 3;
    sampling.seed = 9;
    ck_assert(dsv2_session_set_sampling(session, &sampling) == DSV2_OK);
    feed(session, tokens, 4 * PAGE + 10);
    int32_t drawn, same;
    ck_assert(dsv2_session_sample(session, &drawn) == DSV2_OK);
    ck_assert_uint_eq(memory_of(model).pages_in_use, 5);
    ck_assert(dsv2_session_fork(session, 4 * PAGE + 10, &copy) == DSV2_OK &&
              dsv2_session_fork(session, PAGE, &part) == DSV2_OK);
    ck_assert_uint_eq(memory_of(model).pages_in_use, 5);
    for (int i = 0; i < 20; i++) {
        ck_assert(dsv2_session_sample(session, &drawn) == DSV2_OK && dsv2_session_sample(copy, &same) == DSV2_OK);
        ck_assert_int_eq(drawn, same);
    }
    FAILS_WITH(DSV2_ERROR_STATE, dsv2_session_sample(part, &drawn));
    feed(copy, tokens, 1); /* one page is now its own */
    ck_assert_uint_eq(memory_of(model).pages_in_use, 6);
    feed(session, tokens + 4 * PAGE + 10, 1);
    ck_assert_uint_eq(memory_of(model).pages_in_use, 6);
    assert_holds(session, model, tokens, 4 * PAGE + 11);
    dsv2_session_close(session); /* the copies live on without it */
    feed(part, tokens + PAGE, PAGE);
    assert_holds(part, model, tokens, 2 * PAGE);
    dsv2_session_close(part);
    dsv2_session_close(copy);
    ck_assert_uint_eq(memory_of(model).pages_in_use, 0);
    dsv2_model_close(model);
}
END_TEST

static dsv2_sampling default_sampling(void)
{
    dsv2_sampling sampling = {.struct_size = sizeof sampling};
    ck_assert(dsv2_sampling_get_defaults(&sampling) == DSV2_OK);
    return sampling;
}

/* B9. Decoding under a grammar: every draw has biases of its own, which leave ALLOWED tokens. When each setting started
 * the random numbers again, every draw used the same first number. */
START_TEST(draws_under_a_new_bias_each_follow_the_distribution)
{
    enum { DRAWS = 4000, GRAMMARS = 3, ALLOWED = 4 };
    dsv2_model *model = open_model(1, 0);
    dsv2_session *session = open_session(model, &absorbed);
    feed(session, tokens, 10);
    const float *logits;
    ck_assert(dsv2_session_logits(session, &logits) == DSV2_OK);
    size_t counts[GRAMMARS][ALLOWED] = {{0}};
    for (int i = 0; i < DRAWS; i++) {
        int grammar = i % GRAMMARS;
        dsv2_logit_bias biases[VOCAB];
        dsv2_sampling sampling = default_sampling();
        sampling.seed = 5;
        sampling.logit_bias = biases;
        for (int32_t token = 0; token < VOCAB; token++)
            if (token < 7 * grammar || token >= 7 * grammar + ALLOWED)
                biases[sampling.n_logit_bias++] = (dsv2_logit_bias){token, -INFINITY};
        ck_assert(dsv2_session_set_sampling(session, &sampling) == DSV2_OK);
        int32_t token;
        ck_assert(dsv2_session_sample(session, &token) == DSV2_OK);
        ck_assert(token >= 7 * grammar && token < 7 * grammar + ALLOWED);
        counts[grammar][token - 7 * grammar]++;
    }
    for (int grammar = 0; grammar < GRAMMARS; grammar++) {
        double sum = 0, chi_square = 0, n = 0;
        for (int i = 0; i < ALLOWED; i++) {
            sum += exp((double)logits[7 * grammar + i]);
            n += (double)counts[grammar][i];
        }
        for (int i = 0; i < ALLOWED; i++) {
            double expected = n * exp((double)logits[7 * grammar + i]) / sum;
            chi_square += ((double)counts[grammar][i] - expected) * ((double)counts[grammar][i] - expected) / expected;
        }
        ck_assert_msg(chi_square < 16.27, "chi-square is %g", chi_square); /* 3 degrees of freedom: p = 0.001 */
    }
    dsv2_session_close(session);
    dsv2_model_close(model);
}
END_TEST

static void draw(dsv2_session *session, int32_t *drawn, size_t n)
{
    for (size_t i = 0; i < n; i++)
        ck_assert(dsv2_session_sample(session, &drawn[i]) == DSV2_OK);
}

START_TEST(random_numbers_start_anew_with_another_seed_and_when_asked_to)
{
    enum { N = 40 };
    dsv2_model *model = open_model(1, 0);
    dsv2_session *session = open_session(model, &absorbed), *copy;
    feed(session, tokens, 10);
    dsv2_sampling sampling = default_sampling();
    sampling.temperature = 3;
    int32_t first[2 * N], drawn[2 * N];
    ck_assert(dsv2_session_set_sampling(session, &sampling) == DSV2_OK);
    draw(session, first, 2 * N);
    /* Set by dsv2_session_seed, whatever was drawn before; set again, or with other options, they go on. */
    ck_assert(dsv2_session_seed(session, 0) == DSV2_OK);
    draw(session, drawn, N);
    ck_assert(dsv2_session_set_sampling(session, &sampling) == DSV2_OK);
    dsv2_sampling other = sampling, wrong = sampling;
    other.temperature = 1;
    wrong.top_p = 7;
    wrong.seed = 1;
    ck_assert(dsv2_session_set_sampling(session, &other) == DSV2_OK);
    ck_assert(dsv2_session_set_sampling(session, &sampling) == DSV2_OK);
    REFUSED(dsv2_session_set_sampling(session, &wrong));
    draw(session, drawn + N, N);
    ck_assert_mem_eq(drawn, first, sizeof first);
    /* Another seed in the options, and back. */
    sampling.seed = 1;
    ck_assert(dsv2_session_set_sampling(session, &sampling) == DSV2_OK);
    draw(session, drawn, N);
    ck_assert_mem_ne(drawn, first, N * sizeof *first);
    sampling.seed = 0;
    ck_assert(dsv2_session_set_sampling(session, &sampling) == DSV2_OK);
    draw(session, drawn, N);
    ck_assert_mem_eq(drawn, first, N * sizeof *first);
    /* Forks go on alike until they are seeded apart. */
    ck_assert(dsv2_session_fork(session, 10, &copy) == DSV2_OK && dsv2_session_seed(copy, 2) == DSV2_OK);
    draw(copy, drawn, N);
    ck_assert_mem_ne(drawn, first + N, N * sizeof *first);
    draw(session, drawn, N);
    ck_assert_mem_eq(drawn, first + N, N * sizeof *first);
    dsv2_session_close(copy);
    dsv2_session_close(session);
    dsv2_model_close(model);
}
END_TEST

START_TEST(a_model_closed_first_lives_as_long_as_its_sessions)
{
    dsv2_model *model = open_model(2, 0);
    dsv2_session *session = open_session(model, &absorbed), *copy;
    dsv2_model_close(model);
    model = open_model(1, 0);
    feed(session, tokens, 20);
    assert_holds(session, model, tokens, 20);
    ck_assert(dsv2_session_fork(session, 20, &copy) == DSV2_OK);
    dsv2_session_close(session);
    feed(copy, tokens + 20, 3);
    assert_holds(copy, model, tokens, 23);
    dsv2_session_close(copy);
    dsv2_model_close(model);
}
END_TEST

/* ---- many threads ---- */

enum { N_HOSTS = 4, N_ROUNDS = 12 };

typedef struct host {
    dsv2_model *model;
    unsigned number;
    _Atomic bool *stop;
    dsv2_session *session;
} host;

/* One thread's session feeds, samples, forks and rewinds. In the end it has the bits of a session alone. */
static void *host_thread(void *argument)
{
    host *h = argument;
    for (size_t round = 0; round < N_ROUNDS; round++) {
        size_t n = 3 + (round * 37 + h->number * 11) % 90;
        dsv2_session *copy;
        int32_t token;
        feed(h->session, tokens, n);
        ck_assert(dsv2_session_sample(h->session, &token) == DSV2_OK);
        ck_assert(dsv2_session_fork(h->session, n, &copy) == DSV2_OK);
        dsv2_step_item items[] = {
            {.struct_size = sizeof *items, .session = h->session, .tokens = tokens + n, .n_tokens = 1},
            {.struct_size = sizeof *items, .session = copy, .tokens = tokens + n, .n_tokens = 4}};
        ck_assert_msg(dsv2_step(h->model, items, 2) == DSV2_OK, "%s", dsv2_last_error());
        assert_holds(h->session, h->model, tokens, n + 1);
        assert_holds(copy, h->model, tokens, n + 4);
        dsv2_session_close(copy);
        ck_assert(dsv2_session_truncate(h->session, 0) == DSV2_OK);
    }
    return NULL;
}

/* Meanwhile another thread makes all calls that a host may make at any time. */
static void *onlooker_thread(void *argument)
{
    host *h = argument;
    while (!atomic_load(h->stop)) {
        memory_of(h->model);
        dsv2_model_info info = {.struct_size = sizeof info};
        ck_assert(dsv2_model_get_info(h->model, &info) == DSV2_OK);
        size_t n;
        dsv2_status status = dsv2_session_length(h->session, &n);
        ck_assert(status == DSV2_OK || status == DSV2_ERROR_BUSY);
        dsv2_session_cancel(h->session);
    }
    return NULL;
}

/* A session grows to GROWN tokens, rewinds and grows again, in steps that it shares with a companion. Other threads
 * fork it meanwhile. */
enum { GROWN = 300, N_GROWINGS = 3, N_FORKERS = 3 };

typedef struct growing {
    dsv2_model *model;
    dsv2_session *session, *companion;
    const float *logits;    /* after each of tokens 0 to GROWN - 1 */
    _Atomic size_t at_most; /* tokens that the session has and keeps until this says less */
    _Atomic uint64_t seed;  /* of the next thread */
    _Atomic bool done;
} growing;

static void *growing_thread(void *argument)
{
    growing *g = argument;
    uint64_t seed = 21;
    for (int round = 0; round < N_GROWINGS; round++) {
        size_t n = length_of(g->session);
        while (n < GROWN) {
            size_t more = 1 + (size_t)(test_random(&seed) * 40);
            more = more < GROWN - n ? more : GROWN - n;
            dsv2_step_item items[] = {
                {.struct_size = sizeof *items, .session = g->session, .tokens = tokens + n, .n_tokens = more},
                {.struct_size = sizeof *items, .session = g->companion, .tokens = tokens, .n_tokens = 3}};
            ck_assert_msg(dsv2_step(g->model, items, 2) == DSV2_OK, "%s", dsv2_last_error());
            ck_assert(dsv2_session_truncate(g->companion, 0) == DSV2_OK);
            n += more;
            assert_logits(g->session, g->logits + (n - 1) * VOCAB);
            atomic_store(&g->at_most, n);
            int32_t token;
            ck_assert(dsv2_session_sample(g->session, &token) == DSV2_OK);
        }
        n = (size_t)round * 30 + 40;
        atomic_store(&g->at_most, n);
        ck_assert(dsv2_session_truncate(g->session, n) == DSV2_OK);
    }
    atomic_store(&g->done, true);
    return NULL;
}

/* Forks at any length and feeds what comes next; a fork of the fork does too. */
static void *forking_thread(void *argument)
{
    growing *g = argument;
    uint64_t seed = atomic_fetch_add(&g->seed, 1);
    do {
        size_t most = atomic_load(&g->at_most), n = 1 + (size_t)(test_random(&seed) * (double)most);
        n = n < most ? n : most;
        dsv2_session *copy, *second;
        dsv2_status status = dsv2_session_fork(g->session, n, &copy);
        if (status != DSV2_OK) { /* it was rewound just then */
            FAILS_WITH(DSV2_ERROR_ARGUMENT, status);
            continue;
        }
        size_t more = 1 + (size_t)(test_random(&seed) * 5);
        ck_assert_uint_eq(length_of(copy), n);
        ck_assert(dsv2_session_fork(copy, n, &second) == DSV2_OK);
        feed(copy, tokens + n, more);
        feed(second, tokens + n, more);
        if (n + more <= GROWN) {
            assert_logits(copy, g->logits + (n + more - 1) * VOCAB);
            assert_logits(second, g->logits + (n + more - 1) * VOCAB);
        }
        dsv2_session_close(copy);
        dsv2_session_close(second);
    } while (!atomic_load(&g->done));
    return NULL;
}

/* A snapshot in memory, as the callbacks write and read it. */
typedef struct memory_snapshot {
    uint8_t *bytes;
    size_t size, at;
} memory_snapshot;

static int write_memory(void *user, const void *data, size_t size)
{
    memory_snapshot *m = user;
    m->bytes = realloc(m->bytes, m->size + size);
    memcpy(m->bytes + m->size, data, size);
    m->size += size;
    return 0;
}

static int read_memory(void *user, void *data, size_t size, size_t *got)
{
    memory_snapshot *m = user;
    *got = size < m->size - m->at ? size : m->size - m->at;
    memcpy(data, m->bytes + m->at, *got);
    m->at += *got;
    return 0;
}

enum { RESTORED = 70, N_RESTORES = 40 };

typedef struct restoring {
    dsv2_session *session;
    memory_snapshot snapshot;
    _Atomic bool done;
} restoring;

static void *restoring_thread(void *argument)
{
    restoring *r = argument;
    for (int i = 0; i < N_RESTORES; i++) {
        r->snapshot.at = 0;
        ck_assert_msg(dsv2_session_restore_from(r->session, read_memory, &r->snapshot, NULL, NULL) == DSV2_OK, "%s",
                      dsv2_last_error());
    }
    atomic_store(&r->done, true);
    return NULL;
}

START_TEST(a_session_is_forked_and_measured_while_it_is_restored)
{
    dsv2_model *model = open_model(2, 0);
    float *logits = logits_after_each(model, DSV2_CACHE_Q8, tokens, RESTORED);
    restoring r = {.session = open_session(model, &absorbed)};
    uint64_t before, bytes;
    feed(r.session, tokens, RESTORED);
    ck_assert(dsv2_session_bytes_per_token(r.session, &before) == DSV2_OK);
    ck_assert(dsv2_session_save_to(r.session, write_memory, &r.snapshot, NULL) == DSV2_OK);
    pthread_t thread;
    ck_assert(pthread_create(&thread, NULL, restoring_thread, &r) == 0);
    do {
        dsv2_session *copy;
        ck_assert_msg(dsv2_session_fork(r.session, RESTORED, &copy) == DSV2_OK, "%s", dsv2_last_error());
        ck_assert(dsv2_session_bytes_per_token(r.session, &bytes) == DSV2_OK);
        ck_assert_uint_eq(bytes, before);
        assert_logits(copy, logits + (size_t)(RESTORED - 1) * VOCAB);
        dsv2_session_close(copy);
    } while (!atomic_load(&r.done));
    pthread_join(thread, NULL);
    dsv2_session_close(r.session);
    ck_assert_uint_eq(memory_of(model).pages_in_use, 0);
    free(r.snapshot.bytes);
    free(logits);
    dsv2_model_close(model);
}
END_TEST

/* session.h: the memory of logits may be read until the session is closed. A session has two such buffers in turn. */
START_TEST(logits_may_be_read_after_a_restore)
{
    dsv2_model *model = open_model(1, 0);
    dsv2_session *session = open_session(model, &absorbed);
    memory_snapshot snapshot = {0};
    const float *given[3];
    float expected[VOCAB];
    feed(session, tokens, RESTORED);
    ck_assert(dsv2_session_logits(session, &given[0]) == DSV2_OK);
    memcpy(expected, given[0], sizeof expected);
    ck_assert(dsv2_session_save_to(session, write_memory, &snapshot, NULL) == DSV2_OK);
    feed(session, tokens, 1);
    ck_assert(dsv2_session_logits(session, &given[1]) == DSV2_OK);
    ck_assert(dsv2_session_restore_from(session, read_memory, &snapshot, NULL, NULL) == DSV2_OK);
    ck_assert(dsv2_session_logits(session, &given[2]) == DSV2_OK);
    ck_assert_msg(given[2] == given[0] || given[2] == given[1], "restore put the logits into memory of its own");
    ck_assert(memcmp(given[2], expected, sizeof expected) == 0);
    float sum = 0;
    for (int i = 0; i < VOCAB; i++)
        sum += given[0][i] + given[1][i];
    ck_assert(isfinite(sum));
    dsv2_session_close(session);
    free(snapshot.bytes);
    dsv2_model_close(model);
}
END_TEST

START_TEST(a_session_is_forked_by_threads_while_it_grows)
{
    dsv2_model *model = open_model(2, 0);
    float *logits = logits_after_each(model, cache_types[_i], tokens, GROWN);
    dsv2_session_options options = absorbed;
    options.cache_type = cache_types[_i];
    growing g = {.model = model, .session = open_session(model, &options), .companion = open_session(model, &options),
                 .logits = logits};
    pthread_t grower, forkers[N_FORKERS];
    feed(g.session, tokens, 10);
    atomic_store(&g.at_most, 10);
    for (int i = 0; i < N_FORKERS; i++)
        ck_assert(pthread_create(&forkers[i], NULL, forking_thread, &g) == 0);
    ck_assert(pthread_create(&grower, NULL, growing_thread, &g) == 0);
    pthread_join(grower, NULL);
    for (int i = 0; i < N_FORKERS; i++)
        pthread_join(forkers[i], NULL);
    dsv2_session_close(g.companion);
    dsv2_session_close(g.session);
    ck_assert_uint_eq(memory_of(model).pages_in_use, 0);
    free(logits);
    dsv2_model_close(model);
}
END_TEST

START_TEST(sessions_of_many_threads_do_not_disturb_each_other)
{
    dsv2_model *model = open_model(2, 0);
    pthread_t threads[N_HOSTS], onlooker;
    host hosts[N_HOSTS], watched;
    _Atomic bool stop = false;
    for (unsigned i = 0; i < N_HOSTS; i++) {
        hosts[i] = (host){.model = model, .number = i, .session = open_session(model, &absorbed)};
        ck_assert(pthread_create(&threads[i], NULL, host_thread, &hosts[i]) == 0);
    }
    watched = (host){.model = model, .stop = &stop, .session = open_session(model, &absorbed)};
    ck_assert(pthread_create(&onlooker, NULL, onlooker_thread, &watched) == 0);
    for (int i = 0; i < 20; i++) { /* the onlooker cancels and asks meanwhile: a feed succeeds or says why not */
        size_t before;
        while (dsv2_session_length(watched.session, &before) == DSV2_ERROR_BUSY)
            continue;
        dsv2_status status = dsv2_session_feed(watched.session, tokens + before, 20);
        ck_assert_msg(status == DSV2_OK || status == DSV2_ERROR_CANCELLED || status == DSV2_ERROR_BUSY, "%s",
                      dsv2_last_error());
    }
    atomic_store(&stop, true);
    pthread_join(onlooker, NULL);
    size_t n = length_of(watched.session);
    ck_assert_uint_eq(n % 20, 0);
    assert_holds(watched.session, model, tokens, n);
    dsv2_session_close(watched.session);
    for (unsigned i = 0; i < N_HOSTS; i++) {
        pthread_join(threads[i], NULL);
        dsv2_session_close(hosts[i].session);
    }
    ck_assert_uint_eq(memory_of(model).pages_in_use, 0);
    dsv2_model_close(model);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("session");
    TCase *tests = tcase_create("session");
    tcase_set_timeout(tests, 300);
    tcase_add_unchecked_fixture(tests, write_model, remove_model);
    tcase_add_test(tests, null_is_refused_by_every_function);
    tcase_add_test(tests, wrong_struct_size_is_refused);
    tcase_add_test(tests, options_out_of_range_are_refused);
    tcase_add_test(tests, a_token_outside_the_vocabulary_is_named_and_changes_nothing);
    tcase_add_test(tests, a_full_session_takes_no_more_and_stays_usable);
    tcase_add_test(tests, a_session_at_work_is_busy_for_everyone_else);
    tcase_add_loop_test(tests, a_session_at_work_can_be_forked, 0, N_CACHE_TYPES);
    tcase_add_test(tests, cancel_from_another_thread_leaves_the_session_as_it_was);
    tcase_add_test(tests, cancel_by_callback_at_every_layer_leaves_the_session_as_it_was);
    tcase_add_test(tests, progress_never_falls_and_ends_at_the_total);
    tcase_add_test(tests, a_cancelled_session_does_not_stop_its_companions);
    tcase_add_test(tests, a_file_that_changes_size_while_open_is_an_error_not_a_signal);
    tcase_add_loop_test(tests, a_tensor_that_is_not_as_the_configuration_says_is_refused_by_name, 0,
                        sizeof contradictions / sizeof *contradictions);
    tcase_add_loop_test(tests, any_sequence_of_feeds_forks_and_rewinds_gives_the_bits_of_a_fresh_session, 0, 4);
    tcase_add_test(tests, a_fork_shares_pages_sampler_and_logits);
    tcase_add_test(tests, draws_under_a_new_bias_each_follow_the_distribution);
    tcase_add_test(tests, random_numbers_start_anew_with_another_seed_and_when_asked_to);
    tcase_add_test(tests, a_model_closed_first_lives_as_long_as_its_sessions);
    tcase_add_test(tests, a_session_is_forked_and_measured_while_it_is_restored);
    tcase_add_test(tests, logits_may_be_read_after_a_restore);
    tcase_add_loop_test(tests, a_session_is_forked_by_threads_while_it_grows, 0, N_CACHE_TYPES);
    tcase_add_test(tests, sessions_of_many_threads_do_not_disturb_each_other);
    tcase_add_test(tests, opening_can_be_cancelled_at_every_report);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}

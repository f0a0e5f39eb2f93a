/* B4: after the host forks, a child's call works or gives a status that says what to do. No call hangs, closing
 * included: neither after an idle fork, nor after one beside a feed or an opening, nor after one out of a callback. */
#include <dsv2/dsv2.h>

#include "base/json.h"
#include "support/checkpoint.h"
#include "support/model.h"
#include "support/run.h"
#include "support/sanitizers.h"
#include "support/tensors.h"
#include "unit/small_json.h"

#include <check.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

enum { VOCAB = 97, FED = 70, THREADS = 3 };

static const test_checkpoint shape = {
    .vocab_size = VOCAB, .hidden_size = 64, .intermediate_size = 96, .num_hidden_layers = 3, .num_attention_heads = 2,
    .kv_lora_rank = 32, .qk_nope_head_dim = 16, .qk_rope_head_dim = 8, .v_head_dim = 16,
    .max_position_embeddings = 2048,
    .moe_intermediate_size = 32, .n_routed_experts = 6, .num_experts_per_tok = 2, .n_shared_experts = 1,
    .first_k_dense_replace = 1, .moe_layer_freq = 1, .seed = 21,
};

static char *folder;
static int32_t tokens[1500];
static float expected[2][VOCAB]; /* after FED tokens, and after one more */

static void make(void)
{
    folder = test_checkpoint_write(&shape);
    test_random_tokens(5, VOCAB, tokens, sizeof tokens / sizeof *tokens);
    dsv2_model *model = test_model_open(folder, &(dsv2_model_options){.n_threads = 1});
    dsv2_session *session = test_session_open(model, NULL);
    for (int i = 0; i < 2; i++) {
        const float *logits;
        ck_assert(dsv2_session_feed(session, tokens + (i == 0 ? 0 : FED), i == 0 ? FED : 1) == DSV2_OK);
        ck_assert(dsv2_session_logits(session, &logits) == DSV2_OK);
        memcpy(expected[i], logits, sizeof expected[i]);
    }
    dsv2_session_close(session);
    dsv2_model_close(model);
}

static void drop(void) { test_checkpoint_remove(folder); }

/* ---- what a child does: no assertion of Check's, which would speak to the parent's runner ---- */

#define NEED(condition)                                                                             \
    do {                                                                                            \
        if (!(condition)) {                                                                         \
            fprintf(stderr, "child, line %d: %s: %s\n", __LINE__, #condition, dsv2_last_error());   \
            _exit(1);                                                                               \
        }                                                                                           \
    } while (0)

/* Begins a child that is killed if it hangs. */
static pid_t begin_child(void)
{
    fflush(NULL);
    pid_t child = fork();
    if (child == 0)
        alarm(120);
    return child;
}

static void expect_end(pid_t child)
{
    int how;
    ck_assert(child > 0 && waitpid(child, &how, 0) == child);
    ck_assert_msg(!WIFSIGNALED(how), "the child was ended by signal %d", WTERMSIG(how));
    ck_assert_msg(WEXITSTATUS(how) == 0, "the child failed");
}

static bool has_logits(dsv2_session *session, int after)
{
    const float *logits;
    return dsv2_session_logits(session, &logits) == DSV2_OK && memcmp(logits, expected[after], sizeof *expected) == 0;
}

/* A session that has been fed FED tokens goes on. */
static void need_it_works(dsv2_model *model, dsv2_session *session)
{
    dsv2_session *copy, *fresh;
    dsv2_memory_info info = {.struct_size = sizeof info};
    dsv2_routing *routing;
    int32_t token;
    NEED(has_logits(session, 0));
    NEED(dsv2_session_fork(session, FED, &copy) == DSV2_OK);
    NEED(dsv2_session_feed(copy, tokens + FED, 1) == DSV2_OK && has_logits(copy, 1));
    NEED(dsv2_session_truncate(copy, FED) == DSV2_OK);
    NEED(dsv2_session_open(model, NULL, &fresh) == DSV2_OK);
    dsv2_step_item items[] = {
        {.struct_size = sizeof *items, .session = copy, .tokens = tokens + FED, .n_tokens = 1},
        {.struct_size = sizeof *items, .session = fresh, .tokens = tokens, .n_tokens = FED},
    };
    NEED(dsv2_step(model, items, 2) == DSV2_OK && has_logits(copy, 1) && has_logits(fresh, 0));
    NEED(dsv2_session_sample(copy, &token) == DSV2_OK);
    const char *path = test_format("%s/%d.snapshot", folder, (int)getpid());
    NEED(dsv2_session_save(copy, path, NULL) == DSV2_OK && dsv2_session_restore(fresh, path, NULL, NULL) == DSV2_OK);
    NEED(has_logits(fresh, 1) && remove(path) == 0);
    NEED(dsv2_model_get_memory(model, &info) == DSV2_OK && info.pages_in_use > 0);
    NEED(dsv2_model_routing(model, DSV2_ROUTING_ALL, &routing) == DSV2_OK);
    dsv2_routing_free(routing);
    dsv2_session_close(fresh);
    dsv2_session_close(copy);
}

static bool says_what_to_do(dsv2_status status)
{
    return status == DSV2_ERROR_STATE && strstr(dsv2_last_error(), "open the model again") != NULL;
}

/* Every call on a model that was at work says so, and closing returns. */
static void need_it_is_lost(dsv2_model *model, dsv2_session *session)
{
    dsv2_session *other;
    dsv2_memory_info info = {.struct_size = sizeof info};
    dsv2_routing *routing;
    size_t n;
    int32_t token;
    dsv2_step_item item = {.struct_size = sizeof item, .session = session, .tokens = tokens, .n_tokens = 1};
    NEED(says_what_to_do(dsv2_session_feed(session, tokens, 1)));
    NEED(says_what_to_do(dsv2_step(model, &item, 1)) && item.status == DSV2_ERROR_STATE);
    NEED(says_what_to_do(dsv2_session_sample(session, &token)));
    NEED(says_what_to_do(dsv2_session_length(session, &n)));
    NEED(says_what_to_do(dsv2_session_truncate(session, 0)));
    NEED(says_what_to_do(dsv2_session_save(session, test_format("%s/lost", folder), NULL)));
    NEED(says_what_to_do(dsv2_session_fork(session, 0, &other)));
    NEED(says_what_to_do(dsv2_session_open(model, NULL, &other)));
    NEED(says_what_to_do(dsv2_model_get_memory(model, &info)));
    NEED(says_what_to_do(dsv2_model_routing(model, DSV2_ROUTING_ALL, &routing)));
    NEED(says_what_to_do(dsv2_model_routing_reset(model)));
    dsv2_session_cancel(session);
    dsv2_session_close(session);
    dsv2_model_close(model);
}

/* A model that is opened in the child has all its threads. */
static void need_a_new_model_works(void)
{
    const uint32_t n_threads = test_may_thread_after_fork() ? THREADS : 1;
    const dsv2_model_options options = {.struct_size = sizeof options, .n_threads = n_threads};
    dsv2_model_info info = {.struct_size = sizeof info};
    dsv2_model *model;
    dsv2_session *session;
    NEED(dsv2_model_open(folder, &options, &model) == DSV2_OK);
    NEED(dsv2_model_get_info(model, &info) == DSV2_OK && info.n_threads == n_threads);
    NEED(dsv2_session_open(model, NULL, &session) == DSV2_OK && dsv2_session_feed(session, tokens, FED) == DSV2_OK);
    need_it_works(model, session);
    dsv2_session_close(session);
    dsv2_model_close(model);
}

/* ---- the parent ---- */

typedef struct host {
    dsv2_model *model;
    dsv2_session *session; /* of FED tokens, idle */
} host;

static host make_host(uint32_t n_threads)
{
    host h = {.model = test_model_open(folder, &(dsv2_model_options){.n_threads = n_threads})};
    h.session = test_session_open(h.model, NULL);
    ck_assert(dsv2_session_feed(h.session, tokens, FED) == DSV2_OK);
    return h;
}

static void close_host(host *h)
{
    dsv2_session_close(h->session);
    dsv2_model_close(h->model);
}

/* The parent's own session and model are what they were. */
static void expect_it_works(host *h)
{
    dsv2_session *copy;
    ck_assert(has_logits(h->session, 0));
    ck_assert(dsv2_session_fork(h->session, FED, &copy) == DSV2_OK);
    ck_assert(dsv2_session_feed(copy, tokens + FED, 1) == DSV2_OK && has_logits(copy, 1));
    dsv2_session_close(copy);
}

START_TEST(what_was_idle_works_in_children_and_theirs)
{
    host h = make_host((uint32_t)_i);
    for (int uses = 0; uses < 2; uses++) { /* whether the child uses the model before it forks a child of its own */
        pid_t child = begin_child();
        if (child == 0) {
            dsv2_model_info info = {.struct_size = sizeof info};
            NEED(dsv2_model_get_info(h.model, &info) == DSV2_OK && info.n_threads == 1);
            if (uses)
                need_it_works(h.model, h.session);
            pid_t grandchild = begin_child();
            if (grandchild == 0) {
                need_it_works(h.model, h.session);
                dsv2_model_close(h.model);
                dsv2_session_close(h.session);
                need_a_new_model_works();
                _exit(0);
            }
            int how;
            NEED(waitpid(grandchild, &how, 0) == grandchild && how == 0);
            need_a_new_model_works();
            dsv2_session_close(h.session);
            dsv2_model_close(h.model);
            _exit(0);
        }
        expect_end(child);
        expect_it_works(&h);
    }
    pid_t child = begin_child();
    if (child == 0)
        exit(0); /* what atexit has, and no more */
    expect_end(child);
    close_host(&h);
}
END_TEST

/* A thread of the parent's that feeds sessions of the model, again and again, or waits in a callback. */
typedef struct feeder {
    host *host;
    _Atomic bool stop, waits, go_on;
    bool to_wait;
} feeder;

static int wait_in_callback(void *user, dsv2_phase phase, uint64_t done, uint64_t total)
{
    (void)phase, (void)done, (void)total;
    feeder *f = user;
    atomic_store(&f->waits, true);
    while (!atomic_load(&f->go_on))
        usleep(100);
    return 0;
}

static void *feed_on(void *argument)
{
    feeder *f = argument;
    const dsv2_session_options options = {
        .struct_size = sizeof options, .progress = f->to_wait ? wait_in_callback : NULL, .progress_user = f};
    while (!atomic_load(&f->stop)) {
        dsv2_session *session;
        ck_assert(dsv2_session_open(f->host->model, &options, &session) == DSV2_OK);
        ck_assert(dsv2_session_feed(session, tokens, FED) == DSV2_OK && has_logits(session, 0));
        dsv2_session_close(session);
    }
    return NULL;
}

START_TEST(a_model_at_work_is_lost_to_the_child_and_says_so)
{
    host h = make_host(THREADS);
    feeder f = {.host = &h, .to_wait = true};
    pthread_t thread;
    ck_assert(pthread_create(&thread, NULL, feed_on, &f) == 0);
    while (!atomic_load(&f.waits))
        usleep(100);
    pid_t child = begin_child();
    if (child == 0) {
        pid_t grandchild = begin_child();
        if (grandchild > 0) {
            int how;
            NEED(waitpid(grandchild, &how, 0) == grandchild && how == 0);
        }
        need_it_is_lost(h.model, h.session);
        need_a_new_model_works();
        _exit(0);
    }
    expect_end(child);
    atomic_store(&f.stop, true);
    atomic_store(&f.go_on, true);
    pthread_join(thread, NULL);
    expect_it_works(&h);
    close_host(&h);
}
END_TEST

/* Wherever the feeds are, locks that they hold included: the child's session works with its bits, or says what to
 * do. */
START_TEST(a_fork_at_any_moment_of_feeds_leaves_no_child_hanging)
{
    enum { FEEDERS = 2, FORKS = 150 };
    host h = make_host(THREADS);
    feeder f = {.host = &h};
    pthread_t threads[FEEDERS];
    for (int i = 0; i < FEEDERS; i++)
        ck_assert(pthread_create(&threads[i], NULL, feed_on, &f) == 0);
    for (int i = 0; i < FORKS; i++) {
        pid_t child = begin_child();
        if (child == 0) {
            dsv2_status status = dsv2_session_feed(h.session, tokens + FED, 1);
            NEED(status == DSV2_OK ? has_logits(h.session, 1) : says_what_to_do(status));
            dsv2_model_close(h.model);
            dsv2_session_close(h.session);
            if (i % 30 == 0 && test_may_allocate_after_fork())
                need_a_new_model_works();
            _exit(0);
        }
        expect_end(child);
    }
    atomic_store(&f.stop, true);
    for (int i = 0; i < FEEDERS; i++)
        pthread_join(threads[i], NULL);
    expect_it_works(&h);
    close_host(&h);
}
END_TEST

/* A thread of the parent's that opens and closes tokenizers. */
typedef struct opener {
    const char *path;
    _Atomic bool stop;
    _Atomic unsigned opened;
} opener;

static void *open_on(void *argument)
{
    opener *o = argument;
    while (!atomic_load(&o->stop)) {
        dsv2_tokenizer *t;
        ck_assert_msg(dsv2_tokenizer_open(o->path, &t) == DSV2_OK, "%s", dsv2_last_error());
        dsv2_tokenizer_close(t);
        atomic_fetch_add(&o->opened, 1);
    }
    return NULL;
}

static void need_ids(const dsv2_tokenizer *t)
{
    static const int32_t expected[] = {256, ' ', 256, 'x'}; /* pieces: "ab", " ", "ab", "x" */
    int32_t ids[8];
    size_t n;
    NEED(dsv2_tokenizer_encode(t, "ab abx", 6, 0, ids, 8, &n) == DSV2_OK && n == 4);
    NEED(memcmp(ids, expected, sizeof expected) == 0);
}

/* PCRE2 has a lock around the memory of compiled matchers, which another thread may hold at the fork. Child and
 * grandchild open tokenizers nevertheless, and use and close what they got. */
START_TEST(a_fork_at_any_moment_of_openings_leaves_no_child_hanging)
{
    enum { OPENERS = 2, FORKS = 600 };
    if (!test_may_allocate_after_fork())
        return;
    char *json = small_json(&(small_parts){
        .pre_tokenizer = "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"behavior\":\"Isolated\","
                         "\"pattern\":{\"Regex\":\"ab|[a-z]+|(?:c|d*)e\"}},"
                         "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true}]}",
        .vocab = ",\"ab\":256", .merges = "\"a b\""});
    opener o = {.path = test_format("%s/small.json", folder)};
    test_write_file(o.path, json, strlen(json));
    dsv2_tokenizer *got, *own;
    ck_assert_msg(dsv2_tokenizer_open(o.path, &got) == DSV2_OK, "%s", dsv2_last_error());
    pthread_t threads[OPENERS];
    for (int i = 0; i < OPENERS; i++)
        ck_assert(pthread_create(&threads[i], NULL, open_on, &o) == 0);
    while (atomic_load(&o.opened) < OPENERS)
        usleep(100);
    for (int i = 0; i < FORKS; i++) {
        pid_t child = begin_child();
        if (child == 0) {
            pid_t grandchild = i % 8 == 0 ? begin_child() : -1;
            NEED(dsv2_tokenizer_open(o.path, &own) == DSV2_OK);
            need_ids(own);
            need_ids(got);
            dsv2_tokenizer_close(own);
            dsv2_tokenizer_close(got);
            int how = 0;
            NEED(grandchild <= 0 || (waitpid(grandchild, &how, 0) == grandchild && how == 0));
            _exit(0);
        }
        expect_end(child);
    }
    atomic_store(&o.stop, true);
    for (int i = 0; i < OPENERS; i++)
        pthread_join(threads[i], NULL);
    dsv2_tokenizer_close(got);
    remove(o.path);
    free(json);
}
END_TEST

/* ---- the first JSON of a process ---- */

static _Atomic bool begun;

static void *read_json(void *argument)
{
    static const char text[] = "{\"a\":1}";
    json_t *object;
    atomic_store(&begun, true);
    if (ds_json_parse("a.json", text, sizeof text - 1, NULL, &object) != DSV2_OK)
        return argument;
    json_decref(object);
    return NULL;
}

/* jansson's first object makes a seed, for which other threads wait. A process that has read no JSON yet forks while a
 * thread reads its first. */
START_TEST(a_fork_at_any_moment_of_the_first_reading_leaves_no_child_hanging)
{
    enum { RUNS = 2000 };
    if (!test_may_allocate_after_fork())
        return;
    for (int i = 0; i < RUNS; i++) {
        pid_t child = begin_child();
        if (child == 0) {
            pthread_t thread;
            int how;
            NEED(pthread_create(&thread, NULL, read_json, NULL) == 0);
            while (!atomic_load(&begun))
                continue;
            for (volatile int wait = i * 7919 % 20000; wait > 0; wait--)
                continue;
            pid_t grandchild = begin_child();
            if (grandchild == 0)
                _exit(read_json(&begun) != NULL);
            NEED(grandchild > 0 && waitpid(grandchild, &how, 0) == grandchild && how == 0);
            _exit(0);
        }
        expect_end(child);
    }
}
END_TEST

/* ---- forks out of callbacks ---- */

static pid_t forked; /* 0 in the child */
static unsigned n_called, forks_at;

static void fork_once(void)
{
    if (n_called++ == forks_at)
        forked = begin_child();
}

static int fork_in_progress(void *user, dsv2_phase phase, uint64_t done, uint64_t total)
{
    (void)user, (void)phase, (void)done, (void)total;
    fork_once();
    return 0;
}

static void fork_in_trace(void *user, const dsv2_routing_event *event)
{
    (void)user, (void)event;
    fork_once();
}

/* A snapshot in memory: parent and child would share a file's position. */
static struct {
    char bytes[1 << 20];
    size_t size, at;
} memory;

static int write_and_fork(void *user, const void *data, size_t size)
{
    (void)user;
    NEED(forked != 0); /* the child's call ends without another callback */
    fork_once();
    if (forked == 0 || size > sizeof memory.bytes - memory.size)
        return 1; /* in the child that it was forked weighs more */
    memcpy(memory.bytes + memory.size, data, size);
    memory.size += size;
    return 0;
}

static int read_and_fork(void *user, void *data, size_t size, size_t *got)
{
    (void)user;
    NEED(forked != 0);
    fork_once();
    if (forked == 0)
        return 1;
    *got = size < memory.size - memory.at ? size : memory.size - memory.at;
    memcpy(data, memory.bytes + memory.at, *got);
    memory.at += *got;
    return 0;
}

/* What is done when a callback forks. Each takes a host of its own. */
static dsv2_status forking_feed(host *h)
{
    ck_assert(dsv2_session_set_progress(h->session, fork_in_progress, NULL) == DSV2_OK);
    return dsv2_session_feed(h->session, tokens + FED, 1);
}

static dsv2_status forking_trace(host *h)
{
    ck_assert(dsv2_session_set_routing_trace(h->session, fork_in_trace, NULL) == DSV2_OK);
    return dsv2_session_feed(h->session, tokens + FED, 1);
}

/* Of three sessions it is the last whose callback forks. */
static dsv2_status forking_step(host *h)
{
    dsv2_session *others[2];
    for (int i = 0; i < 2; i++)
        ck_assert(dsv2_session_fork(h->session, FED, &others[i]) == DSV2_OK);
    ck_assert(dsv2_session_set_progress(h->session, fork_in_progress, NULL) == DSV2_OK);
    dsv2_step_item items[] = {
        {.struct_size = sizeof *items, .session = others[0], .tokens = tokens + FED, .n_tokens = 1},
        {.struct_size = sizeof *items, .session = others[1], .tokens = tokens, .n_tokens = 600},
        {.struct_size = sizeof *items, .session = h->session, .tokens = tokens + FED, .n_tokens = 1},
    };
    dsv2_status status = dsv2_step(h->model, items, 3);
    for (int i = 0; i < 2; i++)
        dsv2_session_close(others[i]);
    return status;
}

static const char *snapshot_path(void) { return test_format("%s/saved", folder); }

static dsv2_status save(host *h, bool append)
{
    const dsv2_save_options options = {.struct_size = sizeof options, .append = append, .progress = fork_in_progress};
    dsv2_status status = dsv2_session_feed(h->session, tokens + FED, 1); /* not with a callback */
    return status == DSV2_OK ? dsv2_session_save(h->session, snapshot_path(), &options) : status;
}

static dsv2_status forking_save(host *h) { return save(h, false); }

static dsv2_status forking_append(host *h)
{
    ck_assert(dsv2_session_save(h->session, snapshot_path(), NULL) == DSV2_OK);
    return save(h, true);
}

static dsv2_status forking_save_to(host *h)
{
    ck_assert(dsv2_session_feed(h->session, tokens + FED, 1) == DSV2_OK);
    dsv2_status status = dsv2_session_save_to(h->session, write_and_fork, NULL, NULL);
    if (forked != 0)
        test_write_file(snapshot_path(), memory.bytes, memory.size);
    return status;
}

static dsv2_status restore(host *h, dsv2_read_fn read)
{
    const dsv2_restore_options options = {.struct_size = sizeof options,
                                          .progress = read == NULL ? fork_in_progress : NULL};
    ck_assert(dsv2_session_feed(h->session, tokens + FED, 1) == DSV2_OK);
    ck_assert(dsv2_session_save(h->session, snapshot_path(), NULL) == DSV2_OK);
    ck_assert(dsv2_session_truncate(h->session, 3) == DSV2_OK);
    if (read == NULL)
        return dsv2_session_restore(h->session, snapshot_path(), &options, NULL);
    char *file = test_read_file(snapshot_path(), &memory.size);
    ck_assert(memory.size <= sizeof memory.bytes);
    memcpy(memory.bytes, file, memory.size);
    free(file);
    return dsv2_session_restore_from(h->session, read, NULL, &options, NULL);
}

static dsv2_status forking_restore(host *h) { return restore(h, NULL); }
static dsv2_status forking_restore_from(host *h) { return restore(h, read_and_fork); }

static const struct {
    dsv2_status (*run)(host *h);
    unsigned forks_at;
    bool saves;
} callbacks[] = {
    {forking_feed, 0, false}, {forking_feed, 2, false},  {forking_trace, 0, false},  {forking_step, 1, false},
    {forking_save, 0, true},  {forking_append, 0, true}, {forking_save_to, 3, true}, {forking_restore, 0, false},
    {forking_restore_from, 5, false},
};
enum { CALLBACKS = sizeof callbacks / sizeof *callbacks };

/* The child's call ends with a status and leaves the parent's files; the parent's call succeeds. Other sessions are at
 * work meanwhile, so that their locks may be held. */
START_TEST(a_call_whose_callback_forks_ends_in_the_child_and_succeeds_in_the_parent)
{
    host h = make_host(THREADS);
    feeder f = {.host = &h};
    bool beside = test_may_allocate_after_fork();
    pthread_t thread;
    ck_assert(!beside || pthread_create(&thread, NULL, feed_on, &f) == 0);
    n_called = 0;
    memory.size = memory.at = 0;
    forks_at = callbacks[_i].forks_at;
    forked = -1;
    dsv2_status status = callbacks[_i].run(&h);
    if (forked == 0) {
        NEED(says_what_to_do(status));
        need_it_is_lost(h.model, h.session);
        need_a_new_model_works();
        _exit(0);
    }
    ck_assert_msg(status == DSV2_OK, "%s", dsv2_last_error());
    expect_end(forked);
    atomic_store(&f.stop, true);
    if (beside)
        pthread_join(thread, NULL);
    ck_assert(has_logits(h.session, 1));
    ck_assert(dsv2_session_set_progress(h.session, NULL, NULL) == DSV2_OK);
    if (callbacks[_i].saves) {
        dsv2_session *session = test_session_open(h.model, NULL);
        ck_assert_msg(dsv2_session_restore(session, snapshot_path(), NULL, NULL) == DSV2_OK, "%s", dsv2_last_error());
        ck_assert(has_logits(session, 1));
        dsv2_session_close(session);
    }
    close_host(&h);
}
END_TEST

START_TEST(a_model_that_is_opened_when_its_callback_forks_works_in_both)
{
    const dsv2_model_options options = {.struct_size = sizeof options, .n_threads = THREADS,
                                        .weight_type = DSV2_WEIGHTS_F32, .progress = fork_in_progress};
    host h;
    n_called = 0;
    forks_at = (unsigned)_i;
    forked = -1;
    dsv2_status status = dsv2_model_open(folder, &options, &h.model);
    if (forked == 0) {
        NEED(status == DSV2_OK && dsv2_session_open(h.model, NULL, &h.session) == DSV2_OK);
        NEED(dsv2_session_feed(h.session, tokens, FED) == DSV2_OK);
        need_it_works(h.model, h.session);
        dsv2_model_close(h.model);
        dsv2_session_close(h.session);
        _exit(0);
    }
    ck_assert(status == DSV2_OK);
    expect_end(forked);
    h.session = test_session_open(h.model, NULL);
    ck_assert(dsv2_session_feed(h.session, tokens, FED) == DSV2_OK);
    expect_it_works(&h);
    close_host(&h);
}
END_TEST

START_TEST(a_pack_is_the_parents_when_its_callback_forks)
{
    const dsv2_pack_options options = {.struct_size = sizeof options, .n_threads = 1 + (unsigned)_i,
                                       .progress = fork_in_progress};
    const char *path = test_format("%s/pack.dsv2", folder);
    n_called = 0;
    forks_at = 3;
    forked = -1;
    dsv2_status status = dsv2_model_pack(folder, path, &options);
    if (forked == 0) {
        NEED(status == DSV2_ERROR_STATE);
        _exit(0);
    }
    ck_assert_msg(status == DSV2_OK, "%s", dsv2_last_error());
    expect_end(forked);
    ck_assert(dsv2_model_verify(path, NULL, NULL) == DSV2_OK);
    remove(path);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("fork");
    TCase *first = tcase_create("first"), *tests = tcase_create("fork");
    tcase_set_timeout(first, 300);
    tcase_add_test(first, a_fork_at_any_moment_of_the_first_reading_leaves_no_child_hanging);
    suite_add_tcase(suite, first); /* before anything here reads JSON */
    tcase_set_timeout(tests, 300);
    tcase_add_unchecked_fixture(tests, make, drop);
    tcase_add_loop_test(tests, what_was_idle_works_in_children_and_theirs, 1, THREADS + 1);
    tcase_add_test(tests, a_model_at_work_is_lost_to_the_child_and_says_so);
    tcase_add_test(tests, a_fork_at_any_moment_of_feeds_leaves_no_child_hanging);
    tcase_add_test(tests, a_fork_at_any_moment_of_openings_leaves_no_child_hanging);
    tcase_add_loop_test(tests, a_call_whose_callback_forks_ends_in_the_child_and_succeeds_in_the_parent, 0, CALLBACKS);
    tcase_add_loop_test(tests, a_model_that_is_opened_when_its_callback_forks_works_in_both, 0, 3);
    tcase_add_loop_test(tests, a_pack_is_the_parents_when_its_callback_forks, 0, 2);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}

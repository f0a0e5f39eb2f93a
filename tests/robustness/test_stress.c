/* Sixteen threads on one model: test_stress [SECONDS [THREADS [SEED]]]. They open, close, fork, feed, step, sample,
 * truncate, save, restore, cancel, count and watch sessions that they share, read and write text with one tokenizer,
 * open the model once more, and fork the process. Sessions read known texts in the absorbed form, so that their logits
 * have to be, bit for bit, those that one thread got alone. Meant for the sanitizers. */
#include <dsv2/dsv2.h>

#include "support/checkpoint.h"
#include "support/model.h"
#include "support/must.h"
#include "support/run.h"
#include "support/sanitizers.h"

#include <check.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { N_TEXTS = 4, N_TYPES = 4, LENGTH = 150, VOCAB = 61, N_SLOTS = 20, MAX_THREADS = 64, MAX_SAVED = 1 << 20 };

static const test_checkpoint shape = {
    .vocab_size = VOCAB, .hidden_size = 32, .intermediate_size = 32, .num_hidden_layers = 2, .num_attention_heads = 2,
    .kv_lora_rank = 32, .qk_nope_head_dim = 8, .qk_rope_head_dim = 4, .v_head_dim = 8, .max_position_embeddings = 256,
    .n_routed_experts = 6, .num_experts_per_tok = 2, .moe_intermediate_size = 16, .n_shared_experts = 1,
    .topk_method = "group_limited_greedy", .n_group = 3, .topk_group = 2, .first_k_dense_replace = 1, .yarn = true,
    .seed = 11,
};

/* A session that threads share. `there` is held for reading by whoever uses the session and for writing by whoever
 * replaces it; `own` by the one that changes what the session holds. */
typedef struct slot {
    pthread_rwlock_t there;
    pthread_mutex_t own;
    dsv2_session *session;
    size_t text, type; /* type: 0 is DSV2_CACHE_F32 */
} slot;

typedef struct worker {
    pthread_t thread;
    uint64_t seed;
    char path[256];
    uint8_t *saved;
    size_t saved_size, read;
    uint64_t calls, cancelled, busy, children, lost; /* lost: children to whom the model said to open it again */
} worker;

static unsigned seconds = 3;
static size_t n_threads = 16;
static uint64_t first_seed = 1;

static char *folder;
static dsv2_model *model;
static dsv2_tokenizer *tokenizer;
static int32_t texts[N_TEXTS][LENGTH];
static float (*expected)[N_TYPES][LENGTH][VOCAB]; /* of each text, in each type, after each token */
static slot slots[N_SLOTS];
static atomic_bool over;
static bool children_open; /* a child of a fork opens the model anew */

static size_t pick(worker *w, size_t n) { return (size_t)(test_random(&w->seed) * (double)n); }

static dsv2_session *open_session_of(dsv2_model *of, size_t type)
{
    const dsv2_session_options options = {.struct_size = sizeof options, .max_length = LENGTH,
                                          .cache_type = (dsv2_cache_type)(DSV2_CACHE_F32 + type),
                                          .attention = DSV2_ATTENTION_ABSORBED};
    dsv2_session *session;
    MUST(dsv2_session_open(of, &options, &session) == DSV2_OK);
    return session;
}

static dsv2_session *open_session(size_t type) { return open_session_of(model, type); }

/* What a session holds that nobody else changes: the beginning of its text, and logits to the bit if it has any. */
static void check(dsv2_session *session, size_t text, size_t type)
{
    int32_t tokens[LENGTH];
    const float *logits;
    size_t n;
    MUST(dsv2_session_tokens(session, tokens, LENGTH, &n) == DSV2_OK);
    MUST(memcmp(tokens, texts[text], n * sizeof *tokens) == 0);
    dsv2_status status = dsv2_session_logits(session, &logits);
    MUST(status == DSV2_OK || status == DSV2_ERROR_STATE);
    if (status == DSV2_OK)
        MUST(n > 0 && memcmp(logits, expected[text][type][n - 1], sizeof expected[text][type][n - 1]) == 0);
}

static size_t length_of(dsv2_session *session)
{
    size_t n;
    MUST(dsv2_session_length(session, &n) == DSV2_OK);
    return n;
}

/* Room for `n` more tokens. */
static size_t make_room(worker *w, slot *s, size_t n)
{
    size_t length = length_of(s->session);
    if (length + n > LENGTH) {
        length = pick(w, LENGTH - n);
        MUST(dsv2_session_truncate(s->session, length) == DSV2_OK);
    }
    return length;
}

/* ---- what a thread does with a session that it owns at the time ---- */

static void feed(worker *w, slot *s)
{
    size_t n = 1 + pick(w, pick(w, 4) == 0 ? 70 : 4), length = make_room(w, s, n);
    dsv2_status status = dsv2_session_feed(s->session, texts[s->text] + length, n);
    MUST(status == DSV2_OK || status == DSV2_ERROR_CANCELLED);
    MUST(length_of(s->session) == (status == DSV2_OK ? length + n : length));
    w->cancelled += status == DSV2_ERROR_CANCELLED;
}

static void sample(worker *w, slot *s)
{
    dsv2_sampling sampling = {.struct_size = sizeof sampling};
    dsv2_token_probability top[3];
    int32_t token;
    MUST(dsv2_sampling_get_defaults(&sampling) == DSV2_OK);
    sampling.top_k = (uint32_t)pick(w, 5);
    sampling.seed = pick(w, 100);
    MUST(dsv2_session_set_sampling(s->session, &sampling) == DSV2_OK);
    dsv2_status status = dsv2_session_sample(s->session, &token);
    MUST(status == DSV2_ERROR_STATE || (status == DSV2_OK && token >= 0 && token < VOCAB));
    MUST(dsv2_session_top_tokens(s->session, 3, top) == status);
}

static void truncate_session(worker *w, slot *s)
{
    MUST(dsv2_session_truncate(s->session, pick(w, length_of(s->session) + 1)) == DSV2_OK);
}

static int write_saved(void *user, const void *data, size_t size)
{
    worker *w = user;
    if (size > MAX_SAVED - w->saved_size)
        return 1;
    memcpy(w->saved + w->saved_size, data, size);
    w->saved_size += size;
    return 0;
}

static int read_saved(void *user, void *data, size_t size, size_t *got)
{
    worker *w = user;
    *got = size < w->saved_size - w->read ? size : w->saved_size - w->read;
    memcpy(data, w->saved + w->read, *got);
    w->read += *got;
    return 0;
}

static bool done_or_cancelled(worker *w, dsv2_status status)
{
    MUST(status == DSV2_OK || status == DSV2_ERROR_CANCELLED);
    w->cancelled += status == DSV2_ERROR_CANCELLED;
    return status == DSV2_OK;
}

static void save_and_restore(worker *w, slot *s)
{
    dsv2_session *copy = open_session(s->type);
    w->saved_size = w->read = 0;
    if (done_or_cancelled(w, dsv2_session_save_to(s->session, write_saved, w, NULL))) {
        MUST(dsv2_session_restore_from(copy, read_saved, w, NULL, NULL) == DSV2_OK);
        check(copy, s->text, s->type);
        w->read = 0;
        done_or_cancelled(w, dsv2_session_restore_from(s->session, read_saved, w, NULL, NULL));
    }
    dsv2_session_close(copy);
}

static void save_to_file(worker *w, slot *s)
{
    const dsv2_save_options append = {.struct_size = sizeof append, .append = 1};
    dsv2_session *copy = open_session(s->type);
    if (done_or_cancelled(w, dsv2_session_save(s->session, w->path, &append))) {
        MUST(dsv2_session_restore(copy, w->path, NULL, NULL) == DSV2_OK);
        check(copy, s->text, s->type);
        MUST(length_of(copy) == length_of(s->session));
    }
    dsv2_session_close(copy);
}

static void count(worker *w, slot *s)
{
    dsv2_routing *routing, *all;
    dsv2_routing_balance balance = {.struct_size = sizeof balance};
    (void)w;
    MUST(dsv2_session_routing(s->session, DSV2_ROUTING_ALL, &routing) == DSV2_OK);
    MUST(dsv2_model_routing(model, DSV2_ROUTING_GENERATED, &all) == DSV2_OK);
    MUST(dsv2_routing_merge(all, routing) == DSV2_OK);
    dsv2_status status = dsv2_routing_measure(all, 1, 0, 0, &balance);
    MUST(status == DSV2_OK || status == DSV2_ERROR_STATE);
    dsv2_routing_free(routing);
    dsv2_routing_free(all);
}

/* ---- what a thread does beside the owner ---- */

static void fork_beside(worker *w, slot *s)
{
    dsv2_session *copy;
    dsv2_status status = dsv2_session_fork(s->session, pick(w, LENGTH), &copy);
    MUST(status == DSV2_OK || status == DSV2_ERROR_ARGUMENT); /* longer than the session is */
    if (status != DSV2_OK)
        return;
    check(copy, s->text, s->type);
    size_t length = length_of(copy);
    if (length < LENGTH) {
        MUST(dsv2_session_feed(copy, texts[s->text] + length, 1) == DSV2_OK);
        check(copy, s->text, s->type);
    }
    dsv2_session_close(copy);
}

static void look_beside(worker *w, slot *s)
{
    size_t n;
    uint64_t bytes;
    dsv2_memory_info memory = {.struct_size = sizeof memory};
    dsv2_status status = dsv2_session_length(s->session, &n);
    MUST(status == DSV2_ERROR_BUSY || (status == DSV2_OK && n <= LENGTH));
    w->busy += status == DSV2_ERROR_BUSY;
    MUST(dsv2_session_bytes_per_token(s->session, &bytes) == DSV2_OK && bytes > 0);
    MUST(dsv2_model_get_memory(model, &memory) == DSV2_OK);
}

/* ---- what needs no session ---- */

static void read_and_write_text(worker *w)
{
    char text[64], back[sizeof text];
    int32_t tokens[2 * sizeof text + 1];
    size_t size = pick(w, sizeof text), n, n_back;
    for (size_t i = 0; i < size; i++)
        text[i] = (char)pick(w, 256);
    MUST(dsv2_tokenizer_encode(tokenizer, text, size, 0, tokens, sizeof tokens / sizeof *tokens, &n) == DSV2_OK);
    MUST(dsv2_tokenizer_decode(tokenizer, tokens, n, 0, back, sizeof back, &n_back) == DSV2_OK);
    MUST(n_back == size && memcmp(back, text, size) == 0);
    const dsv2_message message = {.role = "user", .content = text, .content_size = size};
    MUST(dsv2_chat_encode(tokenizer, &message, 1, 0, NULL, 0, &n) == DSV2_OK && n > 0);
}

/* The model is closed before the session, which holds what it needs. */
static void open_model_anew(size_t text, size_t type, uint32_t threads)
{
    const dsv2_model_options options = {.struct_size = sizeof options, .n_threads = threads};
    dsv2_model *other;
    MUST(dsv2_model_open(folder, &options, &other) == DSV2_OK);
    dsv2_session *session = open_session_of(other, type);
    dsv2_model_close(other);
    MUST(dsv2_session_feed(session, texts[text], 5) == DSV2_OK);
    check(session, text, type);
    dsv2_session_close(session);
}

/* A child of this thread alone, while others are at work. The session is this thread's. */
static void fork_process(worker *w, slot *s)
{
    size_t length = make_room(w, s, 1);
    pid_t child = fork();
    MUST(child >= 0);
    if (child == 0) {
        alarm(300); /* ends a child that hangs */
        dsv2_status status = dsv2_session_feed(s->session, texts[s->text] + length, 1);
        MUST(status == DSV2_OK || status == DSV2_ERROR_STATE);
        MUST(status == DSV2_OK || strstr(dsv2_last_error(), "open the model again") != NULL);
        if (status == DSV2_OK)
            check(s->session, s->text, s->type);
        dsv2_session_close(s->session);
        if (children_open)
            open_model_anew(s->text, s->type, 1);
        dsv2_model_close(model);
        _exit(status == DSV2_OK ? 0 : 2);
    }
    int how;
    MUST(waitpid(child, &how, 0) == child && WIFEXITED(how) && (WEXITSTATUS(how) == 0 || WEXITSTATUS(how) == 2));
    w->children++;
    w->lost += WEXITSTATUS(how) == 2;
}

/* ---- sessions together ---- */

/* Slots from `first` on that can be had at once, in one step. */
static void step(worker *w, size_t first)
{
    dsv2_step_item items[4];
    slot *held[4];
    size_t lengths[4], n = 0;
    for (size_t i = first; i < N_SLOTS && n < 4; i++) {
        slot *s = &slots[i];
        if (pthread_rwlock_tryrdlock(&s->there) != 0)
            continue;
        if (pthread_mutex_trylock(&s->own) != 0) {
            pthread_rwlock_unlock(&s->there);
            continue;
        }
        size_t n_tokens = 1 + pick(w, 3);
        lengths[n] = make_room(w, s, n_tokens);
        items[n] = (dsv2_step_item){.struct_size = sizeof *items, .session = s->session,
                                    .tokens = texts[s->text] + lengths[n], .n_tokens = n_tokens};
        held[n++] = s;
    }
    if (n > 0)
        done_or_cancelled(w, dsv2_step(model, items, n));
    for (size_t i = 0; i < n; i++) {
        MUST(items[i].status == DSV2_OK || items[i].status == DSV2_ERROR_CANCELLED);
        MUST(length_of(held[i]->session) == lengths[i] + (items[i].status == DSV2_OK ? items[i].n_tokens : 0));
        check(held[i]->session, held[i]->text, held[i]->type);
        pthread_mutex_unlock(&held[i]->own);
        pthread_rwlock_unlock(&held[i]->there);
    }
}

static void replace(worker *w, slot *s)
{
    if (pthread_rwlock_trywrlock(&s->there) != 0)
        return;
    dsv2_session_close(s->session);
    s->text = pick(w, N_TEXTS);
    s->type = pick(w, N_TYPES);
    s->session = open_session(s->type);
    pthread_rwlock_unlock(&s->there);
}

/* With a session that is this thread's. */
static void use(worker *w, slot *s)
{
    static void (*const ways[])(worker *, slot *) = {feed, feed,  feed, sample, truncate_session, save_and_restore,
                                                     save_to_file, count};
    pthread_rwlock_rdlock(&s->there);
    pthread_mutex_lock(&s->own);
    if (pick(w, 100) == 0)
        fork_process(w, s);
    else
        ways[pick(w, sizeof ways / sizeof *ways)](w, s);
    check(s->session, s->text, s->type);
    pthread_mutex_unlock(&s->own);
    pthread_rwlock_unlock(&s->there);
}

/* With a session that may be another thread's. */
static void use_beside(worker *w, slot *s)
{
    pthread_rwlock_rdlock(&s->there);
    switch (pick(w, 4)) {
    case 0: dsv2_session_cancel(s->session); break;
    case 1: look_beside(w, s); break;
    default: fork_beside(w, s);
    }
    pthread_rwlock_unlock(&s->there);
}

static void *work(void *context)
{
    worker *w = context;
    for (; !atomic_load(&over); w->calls++) {
        size_t which = pick(w, N_SLOTS);
        switch (pick(w, 15)) {
        case 0: step(w, which); break;
        case 1: replace(w, &slots[which]); break;
        case 2: read_and_write_text(w); break;
        case 3:
            if (pick(w, 10) == 0)
                open_model_anew(pick(w, N_TEXTS), pick(w, N_TYPES), 1 + (uint32_t)pick(w, 3));
            break;
        case 4:
        case 5:
        case 6: use_beside(w, &slots[which]); break;
        default: use(w, &slots[which]);
        }
    }
    return NULL;
}

/* ---- the whole ---- */

static void compute_expected(void)
{
    expected = malloc(N_TEXTS * sizeof *expected);
    MUST(expected != NULL);
    for (size_t text = 0; text < N_TEXTS; text++) {
        test_random_tokens(text + 1, VOCAB, texts[text], LENGTH);
        for (size_t type = 0; type < N_TYPES; type++) {
            dsv2_session *session = open_session(type);
            dsv2_step_item item = {.struct_size = sizeof item, .session = session, .tokens = texts[text],
                                   .n_tokens = LENGTH, .logits = expected[text][type][0]};
            MUST(dsv2_step(model, &item, 1) == DSV2_OK);
            dsv2_session_close(session);
        }
    }
}

static void make(void)
{
    children_open = test_may_allocate_after_fork();
    folder = test_checkpoint_write(&shape);
    model = test_model_open(folder, &(dsv2_model_options){.n_threads = 2});
    MUST(dsv2_tokenizer_open(TEST_DATA "/bytes/tokenizer.json", &tokenizer) == DSV2_OK);
    compute_expected();
    for (size_t i = 0; i < N_SLOTS; i++) {
        slot *s = &slots[i];
        MUST(pthread_rwlock_init(&s->there, NULL) == 0 && pthread_mutex_init(&s->own, NULL) == 0);
        s->text = i % N_TEXTS;
        s->type = i / N_TEXTS % N_TYPES;
        s->session = open_session(s->type);
    }
}

static void drop(void)
{
    for (size_t i = 0; i < N_SLOTS; i++) {
        dsv2_session_close(slots[i].session);
        pthread_mutex_destroy(&slots[i].own);
        pthread_rwlock_destroy(&slots[i].there);
    }
    dsv2_memory_info memory = {.struct_size = sizeof memory};
    MUST(dsv2_model_get_memory(model, &memory) == DSV2_OK && memory.pages_in_use == 0);
    dsv2_tokenizer_close(tokenizer);
    dsv2_model_close(model);
    free(expected);
    test_checkpoint_remove(folder);
}

static void begin(worker *w, uint64_t number)
{
    w->seed = first_seed * 1000 + number;
    w->saved = malloc(MAX_SAVED);
    snprintf(w->path, sizeof w->path, "%s/%llu.snapshot", folder, (unsigned long long)number);
    MUST(w->saved != NULL && pthread_create(&w->thread, NULL, work, w) == 0);
}

START_TEST(threads_that_share_a_model_and_its_sessions_get_the_bits_of_one)
{
    static worker workers[MAX_THREADS];
    make();
    for (size_t i = 0; i < n_threads; i++)
        begin(&workers[i], i);
    sleep(seconds);
    atomic_store(&over, true);
    worker all = {0};
    for (size_t i = 0; i < n_threads; i++) {
        worker *w = &workers[i];
        MUST(pthread_join(w->thread, NULL) == 0);
        free(w->saved);
        all.calls += w->calls;
        all.cancelled += w->cancelled;
        all.busy += w->busy;
        all.children += w->children;
        all.lost += w->lost;
    }
    printf("%zu threads, %u s, seed %llu: %llu calls; %llu were cancelled, %llu found a session busy; %llu children, "
           "%llu opened the model again\n",
           n_threads, seconds, (unsigned long long)first_seed, (unsigned long long)all.calls,
           (unsigned long long)all.cancelled, (unsigned long long)all.busy, (unsigned long long)all.children,
           (unsigned long long)all.lost);
    MUST(all.calls > n_threads);
    drop();
}
END_TEST

int main(int argc, char **argv)
{
    seconds = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : seconds;
    n_threads = argc > 2 ? strtoul(argv[2], NULL, 10) : n_threads;
    first_seed = argc > 3 ? strtoull(argv[3], NULL, 10) : first_seed;
    MUST(n_threads > 0 && n_threads <= MAX_THREADS);
    TCase *tests = tcase_create("stress");
    tcase_set_timeout(tests, 0); /* none */
    tcase_add_test(tests, threads_that_share_a_model_and_its_sessions_get_the_bits_of_one);
    Suite *suite = suite_create("stress");
    suite_add_tcase(suite, tests);
    return test_run(suite);
}

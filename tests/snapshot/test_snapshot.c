/* Conversations as files: what comes after a restore is what would have come without it, to the bit; and no damaged
 * file, full disk, killed process or refused allocation costs more than the save that it hit. */
#include <dsv2/dsv2.h>

#include "support/checkpoint.h"
#include "support/oom.h"
#include "support/run.h"
#include "support/snapshot_file.h"
#include "support/tensors.h"

#include <check.h>
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

enum { VOCAB = 61, CONTEXT = 700, AHEAD = 64, PAGE = 64 };

/* Latents that a rotation takes in three blocks, and a RoPE part smaller than a section. */
static const test_checkpoint shape = {
    .vocab_size = VOCAB, .hidden_size = 32, .intermediate_size = 40, .num_hidden_layers = 3, .num_attention_heads = 2,
        .kv_lora_rank = 48,
    .qk_nope_head_dim = 8, .qk_rope_head_dim = 8, .v_head_dim = 8, .max_position_embeddings = CONTEXT,
    .moe_intermediate_size = 16,
    .n_routed_experts = 6, .num_experts_per_tok = 2, .n_shared_experts = 1, .first_k_dense_replace = 1,
    .moe_layer_freq = 1, .seed = 42,
};

static const dsv2_cache_type types[] = {DSV2_CACHE_F32, DSV2_CACHE_F16, DSV2_CACHE_Q8, DSV2_CACHE_Q6};
enum { N_TYPES = sizeof types / sizeof *types };

static char *folder; /* the model; snapshots go there too */
static char path[512], other_path[520];
static int32_t tokens[CONTEXT];

static void set_up(void)
{
    folder = test_checkpoint_write(&shape);
    snprintf(path, sizeof path, "%s/conversation", folder);
    snprintf(other_path, sizeof other_path, "%s/another", folder);
    test_random_tokens(7, VOCAB, tokens, CONTEXT);
}

static void tear_down(void) { test_checkpoint_remove(folder); }

#define OK(call)                                                                           \
    do {                                                                                   \
        dsv2_status got_status = (call);                                                   \
        ck_assert_msg(got_status == DSV2_OK, "%s: %s: %s", #call,                          \
                      dsv2_status_name(got_status), dsv2_last_error());                    \
    } while (0)
#define FAILS_WITH(status, call)                                                           \
    do {                                                                                   \
        dsv2_status got_status = (call);                                                   \
        ck_assert_msg(got_status == (status), "%s gave %s, expected %s (%s)", #call,       \
                      dsv2_status_name(got_status), dsv2_status_name(status), dsv2_last_error()); \
    } while (0)

static dsv2_model *open_model(uint32_t n_threads, uint64_t cache_memory_limit)
{
    dsv2_model_options options = {.struct_size = sizeof options, .n_threads = n_threads,
                                  .cache_memory_limit = cache_memory_limit};
    dsv2_model *model;
    OK(dsv2_model_open(folder, &options, &model));
    return model;
}

/* The absorbed form: its bits do not depend on how the tokens were cut. */
static dsv2_session *open_session(dsv2_model *model, dsv2_cache_type type)
{
    dsv2_session_options options = {.struct_size = sizeof options, .attention = DSV2_ATTENTION_ABSORBED,
                                    .cache_type = type};
    dsv2_session *session;
    OK(dsv2_session_open(model, &options, &session));
    return session;
}

static dsv2_session *open_fed(dsv2_model *model, dsv2_cache_type type, size_t n)
{
    dsv2_session *session = open_session(model, type);
    if (n > 0)
        OK(dsv2_session_feed(session, tokens, n));
    return session;
}

static void set_temperature(dsv2_session *session, float temperature)
{
    dsv2_sampling sampling;
    dsv2_sampling_defaults(&sampling);
    sampling.temperature = temperature;
    sampling.seed = 5;
    OK(dsv2_session_set_sampling(session, &sampling));
}

static size_t length_of(dsv2_session *session)
{
    size_t n;
    OK(dsv2_session_length(session, &n));
    return n;
}

/* What a session answers to the next AHEAD tokens that it draws. */
typedef struct future {
    int32_t tokens[AHEAD];
    float logits[AHEAD][VOCAB];
} future;

static void look_ahead(dsv2_session *session, future *f)
{
    for (int i = 0; i < AHEAD; i++) {
        const float *logits;
        OK(dsv2_session_logits(session, &logits));
        memcpy(f->logits[i], logits, sizeof f->logits[i]);
        OK(dsv2_session_sample(session, &f->tokens[i]));
        OK(dsv2_session_feed(session, &f->tokens[i], 1));
    }
}

static void assert_same_future(const future *a, const future *b)
{
    ck_assert_mem_eq(a->tokens, b->tokens, sizeof a->tokens);
    ck_assert_mem_eq(a->logits, b->logits, sizeof a->logits);
}

/* The session holds exactly these tokens and has the logits that a fresh one would have. */
static void assert_holds(dsv2_model *model, dsv2_cache_type type, dsv2_session *session, const int32_t *held, size_t n)
{
    int32_t copy[CONTEXT];
    size_t length;
    const float *logits, *expected;
    OK(dsv2_session_tokens(session, copy, CONTEXT, &length));
    ck_assert_uint_eq(length, n);
    if (n == 0) {
        FAILS_WITH(DSV2_ERROR_STATE, dsv2_session_logits(session, &logits));
        return;
    }
    ck_assert_mem_eq(copy, held, n * sizeof *held);
    dsv2_session *fresh = open_session(model, type);
    OK(dsv2_session_feed(fresh, held, n));
    OK(dsv2_session_logits(fresh, &expected));
    OK(dsv2_session_logits(session, &logits));
    ck_assert_mem_eq(logits, expected, VOCAB * sizeof *logits);
    dsv2_session_close(fresh);
}

static dsv2_save_options appending(void) { return (dsv2_save_options){.struct_size = sizeof(dsv2_save_options),
                                                                      .append = 1}; }

/* ---- files as bytes ---- */

typedef struct bytes {
    uint8_t *data;
    size_t size, capacity, offset;
    size_t step;     /* most to give at once; 0: as asked */
    size_t fail_at;  /* the call that fails, from 1; 0: none */
    size_t n_calls;
} bytes;

static int write_bytes(void *user, const void *data, size_t size)
{
    bytes *b = user;
    if (++b->n_calls == b->fail_at)
        return 1;
    if (b->size + size > b->capacity) {
        b->capacity = 2 * (b->size + size);
        b->data = realloc(b->data, b->capacity);
        ck_assert_ptr_nonnull(b->data);
    }
    memcpy(b->data + b->size, data, size);
    b->size += size;
    return 0;
}

static int read_bytes(void *user, void *data, size_t size, size_t *got)
{
    bytes *b = user;
    if (++b->n_calls == b->fail_at)
        return 1;
    size_t n = size < b->size - b->offset ? size : b->size - b->offset;
    if (b->step > 0 && n > b->step)
        n = b->step;
    if (n > 0)
        memcpy(data, b->data + b->offset, n);
    b->offset += n;
    *got = n;
    return 0;
}

static dsv2_status restore_bytes(dsv2_session *session, bytes *b)
{
    b->offset = b->n_calls = 0;
    return dsv2_session_restore_from(session, read_bytes, b, NULL, NULL);
}

static bytes save_bytes(dsv2_session *session)
{
    bytes b = {0};
    OK(dsv2_session_save_to(session, write_bytes, &b, NULL));
    return b;
}

static bytes read_file(const char *name)
{
    bytes b = {0};
    struct stat status;
    int fd = open(name, O_RDONLY);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(fstat(fd, &status), 0);
    b.size = b.capacity = (size_t)status.st_size;
    b.data = malloc(b.size + 1);
    ck_assert_ptr_nonnull(b.data);
    ck_assert_int_eq(read(fd, b.data, b.size), (ssize_t)b.size);
    close(fd);
    return b;
}

static size_t file_size(const char *name)
{
    struct stat status;
    ck_assert_int_eq(stat(name, &status), 0);
    return (size_t)status.st_size;
}

static int files_in_folder(void)
{
    DIR *directory = opendir(folder);
    ck_assert_ptr_nonnull(directory);
    int n = 0;
    while (readdir(directory) != NULL)
        n++;
    closedir(directory);
    return n;
}

/* ---- the same bits ---- */

/* Around the ends of pages. */
static const size_t lengths[] = {1, 63, 64, 65, 127, 128, 129, 200};

START_TEST(continuation_is_the_same_bits_after_restore_fork_and_rewind)
{
    dsv2_cache_type type = types[_i];
    future expected, got;
    for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++) {
        for (uint32_t n_threads = 1; n_threads <= 2; n_threads++) {
            size_t n = lengths[l];
            dsv2_model *model = open_model(n_threads, 0);
            dsv2_session *session = open_fed(model, type, n), *restored = open_fed(model, type, 5), *copy;
            set_temperature(session, 0);
            OK(dsv2_session_save(session, path, NULL));
            OK(dsv2_session_fork(session, n, &copy));
            look_ahead(session, &got);
            if (n_threads == 1)
                expected = got;
            assert_same_future(&got, &expected);
            look_ahead(copy, &got);
            assert_same_future(&got, &expected);
            size_t reused;
            OK(dsv2_session_restore(restored, path, NULL, &reused));
            ck_assert_uint_eq(reused, n);
            look_ahead(restored, &got);
            assert_same_future(&got, &expected);
            OK(dsv2_session_truncate(session, n - 1));
            OK(dsv2_session_feed(session, tokens + n - 1, 1));
            look_ahead(session, &got);
            assert_same_future(&got, &expected);
            dsv2_session_close(copy);
            dsv2_session_close(restored);
            dsv2_session_close(session);
            dsv2_model_close(model);
        }
    }
}
END_TEST

START_TEST(sampler_and_random_numbers_come_back)
{
    dsv2_model *model = open_model(1, 0);
    dsv2_session *session = open_fed(model, DSV2_CACHE_DEFAULT, 20), *restored = open_session(model,
                                                                                              DSV2_CACHE_DEFAULT);
    const dsv2_logit_bias biases[] = {{3, -1000}, {1, 2.5f}};
    dsv2_sampling sampling;
    dsv2_sampling_defaults(&sampling);
    sampling.logit_bias = biases;
    sampling.n_logit_bias = 2;
    sampling.repetition_penalty = 1.3f;
    sampling.presence_penalty = 0.1f;
    sampling.frequency_penalty = 0.2f;
    sampling.penalty_window = 30;
    sampling.temperature = 1.7f;
    sampling.top_k = 50;
    sampling.top_p = 0.97f;
    sampling.min_p = 0.001f;
    sampling.seed = UINT64_MAX - 5;
    OK(dsv2_session_set_sampling(session, &sampling));
    future before, expected, got;
    look_ahead(session, &before); /* takes the random numbers off their beginning */
    OK(dsv2_session_save(session, path, NULL));
    look_ahead(session, &expected);
    OK(dsv2_session_restore(restored, path, NULL, NULL));
    look_ahead(restored, &got);
    assert_same_future(&got, &expected);
    dsv2_session_close(restored);
    dsv2_session_close(session);
    dsv2_model_close(model);
}
END_TEST

START_TEST(empty_and_rewound_sessions_come_back_without_logits)
{
    dsv2_model *model = open_model(1, 0);
    dsv2_session *session = open_session(model, DSV2_CACHE_Q6), *restored = open_fed(model, DSV2_CACHE_Q6, 9);
    const float *logits;
    OK(dsv2_session_save(session, path, NULL));
    OK(dsv2_session_restore(restored, path, NULL, NULL));
    ck_assert_uint_eq(length_of(restored), 0);
    FAILS_WITH(DSV2_ERROR_STATE, dsv2_session_logits(restored, &logits));
    OK(dsv2_session_feed(session, tokens, 100));
    OK(dsv2_session_truncate(session, 70));
    OK(dsv2_session_save(session, path, NULL));
    OK(dsv2_session_restore(restored, path, NULL, NULL));
    ck_assert_uint_eq(length_of(restored), 70);
    FAILS_WITH(DSV2_ERROR_STATE, dsv2_session_logits(restored, &logits));
    OK(dsv2_session_feed(restored, tokens + 70, 30));
    assert_holds(model, DSV2_CACHE_Q6, restored, tokens, 100);
    dsv2_session_close(restored);
    dsv2_session_close(session);
    dsv2_model_close(model);
}
END_TEST

/* ---- appending ---- */

START_TEST(append_writes_what_is_new)
{
    dsv2_cache_type type = types[_i];
    dsv2_model *model = open_model(2, 0);
    dsv2_session *session = open_fed(model, type, 300), *restored = open_session(model, type);
    dsv2_save_options append = appending();
    OK(dsv2_session_save(session, path, &append)); /* nothing there yet */
    size_t at = 300, before = file_size(path), per_token = before / 300;
    static const size_t more[] = {1, 19, 64, 0, 65};
    for (size_t i = 0; i < sizeof more / sizeof *more; i++, before = file_size(path)) {
        if (more[i] > 0)
            OK(dsv2_session_feed(session, tokens + at, more[i]));
        at += more[i];
        ino_t inode;
        struct stat status;
        ck_assert_int_eq(stat(path, &status), 0);
        inode = status.st_ino;
        OK(dsv2_session_save(session, path, &append));
        ck_assert_int_eq(stat(path, &status), 0);
        ck_assert_msg(status.st_ino == inode, "written anew");
        size_t state = VOCAB * sizeof(float) + 400 + 128 * (more[i] / PAGE + 2); /* logits, sampler, headers */
        ck_assert_uint_le((size_t)status.st_size, before + per_token * 5 / 4 * more[i] + state);
        OK(dsv2_session_restore(restored, path, NULL, NULL));
        assert_holds(model, type, restored, tokens, at);
        dsv2_snapshot_info info = {.struct_size = sizeof info};
        OK(dsv2_snapshot_inspect(path, &info));
        ck_assert_uint_eq(info.n_tokens, at);
        ck_assert_uint_eq(info.file_bytes, (uint64_t)status.st_size);
    }
    dsv2_session_close(restored);
    dsv2_session_close(session);
    dsv2_model_close(model);
}
END_TEST

START_TEST(append_to_something_else_writes_anew)
{
    dsv2_model *model = open_model(1, 0);
    dsv2_save_options append = appending();
    dsv2_session *session = open_fed(model, DSV2_CACHE_Q8, 100), *restored = open_session(model, DSV2_CACHE_Q8);
    for (int what = 0; what < 5; what++) {
        dsv2_session *other = open_fed(model, what == 0 ? DSV2_CACHE_F16 : DSV2_CACHE_Q8, what == 1 ? 120 : 60);
        if (what == 2) /* the same length, other tokens */
            OK(dsv2_session_truncate(other, 30));
        if (what == 2)
            OK(dsv2_session_feed(other, tokens, 30));
        OK(dsv2_session_save(other, path, NULL));
        if (what >= 3) { /* no snapshot, a damaged one */
            int fd = open(path, O_RDWR);
            ck_assert_int_eq(pwrite(fd, "damage", 6, what == 3 ? 0 : 150), 6);
            close(fd);
        }
        OK(dsv2_session_save(session, path, &append));
        OK(dsv2_session_restore(restored, path, NULL, NULL));
        assert_holds(model, DSV2_CACHE_Q8, restored, tokens, 100);
        dsv2_session_close(other);
    }
    dsv2_session_close(restored);
    dsv2_session_close(session);
    dsv2_model_close(model);
}
END_TEST

/* The file after each byte of an append that is not committed yet: zeros stand in place of its header. */
START_TEST(an_append_cut_anywhere_leaves_the_former_state)
{
    dsv2_model *model = open_model(1, 0);
    dsv2_save_options append = appending();
    dsv2_session *session = open_fed(model, DSV2_CACHE_Q6, 70), *restored = open_session(model, DSV2_CACHE_Q6);
    OK(dsv2_session_save(session, path, NULL));
    size_t former = file_size(path);
    OK(dsv2_session_feed(session, tokens + 70, 3));
    OK(dsv2_session_save(session, path, &append));
    bytes whole = read_file(path);
    ck_assert_uint_gt(whole.size, former + 64);
    OK(restore_bytes(restored, &whole));
    ck_assert_uint_eq(length_of(restored), 73);
    size_t end = whole.size;
    memset(whole.data + former, 0, 64);
    for (whole.size = former; whole.size <= end; whole.size++) {
        OK(restore_bytes(restored, &whole));
        ck_assert_uint_eq(length_of(restored), 70);
    }
    assert_holds(model, DSV2_CACHE_Q6, restored, tokens, 70);
    /* And the next append takes the place of what was left. */
    int fd = open(path, O_WRONLY);
    ck_assert_int_eq(pwrite(fd, whole.data + former, 64, (off_t)former), 64);
    close(fd);
    dsv2_snapshot_info info = {.struct_size = sizeof info};
    OK(dsv2_snapshot_inspect(path, &info));
    ck_assert_uint_eq(info.n_tokens, 70);
    OK(dsv2_session_save(session, path, &append));
    OK(dsv2_session_restore(restored, path, NULL, NULL));
    assert_holds(model, DSV2_CACHE_Q6, restored, tokens, 73);
    free(whole.data);
    dsv2_session_close(restored);
    dsv2_session_close(session);
    dsv2_model_close(model);
}
END_TEST

/* ---- properties ---- */

enum { SESSIONS = 4, FILES = 3 };

typedef struct shadow {
    int32_t tokens[CONTEXT];
    size_t n;
    bool has_logits;
} shadow;

static size_t pick(uint64_t *seed, size_t below) { return (size_t)(test_random(seed) * (double)below); }

/* Tokens, and logits if there should be some, against a session that computes them anew. */
static void check_shadow(dsv2_model *model, dsv2_cache_type type, dsv2_session *session, const shadow *s)
{
    const float *logits;
    if (s->has_logits || s->n == 0) {
        assert_holds(model, type, session, s->tokens, s->n);
        return;
    }
    int32_t copy[CONTEXT];
    size_t n;
    OK(dsv2_session_tokens(session, copy, CONTEXT, &n));
    ck_assert_uint_eq(n, s->n);
    ck_assert_mem_eq(copy, s->tokens, n * sizeof *copy);
    FAILS_WITH(DSV2_ERROR_STATE, dsv2_session_logits(session, &logits));
}

static void one_operation(dsv2_model *model, dsv2_cache_type type, dsv2_session **sessions, shadow *shadows,
                          shadow *files, uint64_t *seed)
{
    size_t i = pick(seed, SESSIONS), j = pick(seed, SESSIONS), f = pick(seed, FILES), n;
    shadow *s = &shadows[i];
    char name[600];
    snprintf(name, sizeof name, "%s.%zu", path, f);
    dsv2_save_options save = {.struct_size = sizeof save};
    dsv2_restore_options restore = {.struct_size = sizeof restore};
    switch (pick(seed, 7)) {
    case 0: case 1: /* feed */
        n = 1 + pick(seed, pick(seed, 2) == 0 ? 3 : 90);
        if (s->n + n > CONTEXT)
            break;
        test_random_tokens(pick(seed, 3), 3, s->tokens + s->n, n); /* few kinds, so that prefixes are shared */
        OK(dsv2_session_feed(sessions[i], s->tokens + s->n, n));
        s->n += n;
        s->has_logits = true;
        break;
    case 2: /* fork */
        if (i == j)
            break;
        n = pick(seed, s->n + 1);
        dsv2_session_close(sessions[j]);
        OK(dsv2_session_fork(sessions[i], n, &sessions[j]));
        shadows[j] = *s;
        shadows[j].n = n;
        shadows[j].has_logits = s->has_logits && n == s->n;
        break;
    case 3: /* rewind */
        n = pick(seed, s->n + 1);
        OK(dsv2_session_truncate(sessions[i], n));
        s->has_logits = s->has_logits && n == s->n;
        s->n = n;
        break;
    case 4: case 5: /* save, append */
        save.append = (int)pick(seed, 3) > 0;
        OK(dsv2_session_save(sessions[i], name, &save));
        files[f] = *s;
        break;
    default: /* restore, all or what a prompt shares */
        if (access(name, R_OK) != 0)
            break;
        if (pick(seed, 2) == 0) {
            restore.prompt = shadows[j].tokens;
            restore.n_prompt = shadows[j].n;
        }
        n = files[f].n;
        if (restore.prompt != NULL)
            for (n = 0; n < files[f].n && n < restore.n_prompt && files[f].tokens[n] == restore.prompt[n];)
                n++;
        size_t reused;
        OK(dsv2_session_restore(sessions[i], name, &restore, &reused));
        ck_assert_uint_eq(reused, n);
        bool whole = n == files[f].n;
        *s = files[f];
        s->n = n;
        s->has_logits = files[f].has_logits && whole;
    }
    check_shadow(model, type, sessions[i], &shadows[i]);
    check_shadow(model, type, sessions[j], &shadows[j]);
}

START_TEST(random_sequences_of_calls_leave_what_recomputing_gives)
{
    enum { ROUNDS = 6, OPERATIONS = 60 };
    dsv2_cache_type type = types[_i];
    uint64_t seed = 11 + (uint64_t)_i;
    dsv2_model *model = open_model(2, 0);
    shadow *shadows = calloc(SESSIONS + FILES, sizeof *shadows);
    for (int round = 0; round < ROUNDS; round++) {
        dsv2_session *sessions[SESSIONS];
        memset(shadows, 0, (SESSIONS + FILES) * sizeof *shadows);
        for (int i = 0; i < SESSIONS; i++)
            sessions[i] = open_session(model, type);
        for (int f = 0; f < FILES; f++) {
            char name[600];
            snprintf(name, sizeof name, "%s.%d", path, f);
            unlink(name);
        }
        for (int n = 0; n < OPERATIONS; n++)
            one_operation(model, type, sessions, shadows, shadows + SESSIONS, &seed);
        for (int i = 0; i < SESSIONS; i++)
            dsv2_session_close(sessions[i]);
        dsv2_memory_info memory = {.struct_size = sizeof memory};
        OK(dsv2_model_get_memory(model, &memory));
        ck_assert_uint_eq(memory.pages_in_use, 0);
    }
    free(shadows);
    dsv2_model_close(model);
}
END_TEST

START_TEST(restores_the_prefix_that_a_prompt_shares)
{
    dsv2_model *model = open_model(1, 0);
    dsv2_save_options append = appending();
    dsv2_session *session = open_fed(model, DSV2_CACHE_Q8, 100), *restored = open_session(model, DSV2_CACHE_Q8);
    OK(dsv2_session_save(session, path, NULL));
    OK(dsv2_session_feed(session, tokens + 100, 60));
    OK(dsv2_session_save(session, path, &append));
    static const size_t shared[] = {0, 1, 63, 64, 65, 99, 100, 101, 128, 159, 160};
    for (size_t i = 0; i < sizeof shared / sizeof *shared; i++) {
        int32_t prompt[200];
        memcpy(prompt, tokens, sizeof prompt);
        if (shared[i] < 160)
            prompt[shared[i]] = (prompt[shared[i]] + 1) % VOCAB;
        dsv2_restore_options options = {.struct_size = sizeof options, .prompt = prompt, .n_prompt = 200};
        size_t reused;
        set_temperature(restored, 0.5f);
        OK(dsv2_session_restore(restored, path, &options, &reused));
        ck_assert_uint_eq(reused, shared[i]);
        OK(dsv2_session_feed(restored, prompt + reused, 200 - reused));
        assert_holds(model, DSV2_CACHE_Q8, restored, prompt, 200);
    }
    /* A prompt that is all of it brings the logits, a shorter one none. */
    dsv2_restore_options options = {.struct_size = sizeof options, .prompt = tokens, .n_prompt = 160};
    OK(dsv2_session_restore(restored, path, &options, NULL));
    assert_holds(model, DSV2_CACHE_Q8, restored, tokens, 160);
    options.n_prompt = 100;
    const float *logits;
    OK(dsv2_session_restore(restored, path, &options, NULL));
    FAILS_WITH(DSV2_ERROR_STATE, dsv2_session_logits(restored, &logits));
    /* With leave_last, what is left to feed always brings them: for all of the snapshot and for less, with its logits
     * and without. */
    options.leave_last = 1;
    for (int without = 0; without < 2; without++) {
        if (without) {
            OK(dsv2_session_truncate(session, 140));
            OK(dsv2_session_save(session, path, NULL));
        }
        size_t held = without ? 140 : 160, reused;
        for (size_t n = 1; n <= 170; n += n == 1 || n > 137 ? 1 : 27) {
            options.n_prompt = n;
            OK(dsv2_session_restore(restored, path, &options, &reused));
            size_t expected = n > held ? held : n < held || without ? n - 1 : n;
            ck_assert_msg(reused == expected, "prompt of %zu: %zu restored, expected %zu", n, reused, expected);
            if (reused < n)
                OK(dsv2_session_feed(restored, tokens + reused, n - reused));
            assert_holds(model, DSV2_CACHE_Q8, restored, tokens, n);
        }
    }
    options.n_prompt = 0;
    size_t none;
    OK(dsv2_session_restore(restored, path, &options, &none));
    ck_assert_uint_eq(none, 0);
    dsv2_session_close(restored);
    dsv2_session_close(session);
    dsv2_model_close(model);
}
END_TEST

START_TEST(types_convert_where_asked)
{
    dsv2_model *model = open_model(2, 0);
    dsv2_session *session = open_fed(model, types[_i], 150);
    const float *expected, *logits;
    OK(dsv2_session_save(session, path, NULL));
    OK(dsv2_session_feed(session, tokens + 150, 1));
    OK(dsv2_session_logits(session, &expected));
    for (size_t t = 0; t < N_TYPES; t++) {
        dsv2_session *restored = open_fed(model, types[t], 3);
        dsv2_restore_options options = {.struct_size = sizeof options};
        if (types[t] != types[_i]) {
            FAILS_WITH(DSV2_ERROR_MISMATCH, dsv2_session_restore(restored, path, &options, NULL));
            assert_holds(model, types[t], restored, tokens, 3);
        }
        options.convert = 1;
        OK(dsv2_session_restore(restored, path, &options, NULL));
        OK(dsv2_session_feed(restored, tokens + 150, 1));
        OK(dsv2_session_logits(restored, &logits));
        float largest = 0, apart = 0;
        for (int i = 0; i < VOCAB; i++) {
            float a = expected[i] < 0 ? -expected[i] : expected[i],
                b = logits[i] > expected[i] ? logits[i] - expected[i] : expected[i] - logits[i];
            largest = a > largest ? a : largest;
            apart = b > apart ? b : apart;
        }
        float allowed = types[t] == DSV2_CACHE_Q6 ? 0.05f : 0.01f; /* of the largest logit */
        ck_assert_msg(types[t] == types[_i] ? apart == 0 : apart <= allowed * largest,
                      "type %d to %d: logits apart by %g of %g", types[_i], types[t], (double)apart, (double)largest);
        dsv2_session_close(restored);
    }
    dsv2_session_close(session);
    dsv2_model_close(model);
}
END_TEST

/* ---- damage ---- */

static const dsv2_status refusals[] = {DSV2_ERROR_FORMAT, DSV2_ERROR_MISMATCH, DSV2_ERROR_UNSUPPORTED, DSV2_ERROR_FULL};

static bool is_refusal(dsv2_status status)
{
    for (size_t i = 0; i < sizeof refusals / sizeof *refusals; i++)
        if (status == refusals[i])
            return true;
    return false;
}

/* A small snapshot of two saves, so that every kind of part is in it. */
static bytes small_snapshot(dsv2_model *model, dsv2_cache_type type)
{
    dsv2_save_options append = appending();
    dsv2_session *session = open_fed(model, type, 2);
    const dsv2_logit_bias bias = {3, -1};
    dsv2_sampling sampling;
    dsv2_sampling_defaults(&sampling);
    sampling.logit_bias = &bias;
    sampling.n_logit_bias = 1;
    OK(dsv2_session_set_sampling(session, &sampling));
    OK(dsv2_session_save(session, path, NULL));
    OK(dsv2_session_feed(session, tokens + 2, 1));
    OK(dsv2_session_save(session, path, &append));
    dsv2_session_close(session);
    return read_file(path);
}

START_TEST(every_flipped_bit_is_noticed)
{
    dsv2_model *model = open_model(1, 0);
    dsv2_session *restored = open_fed(model, types[_i], 5);
    bytes b = small_snapshot(model, types[_i]);
    for (size_t bit = 0; bit < b.size * 8; bit++) {
        b.data[bit / 8] ^= (uint8_t)(1u << bit % 8);
        dsv2_status status = restore_bytes(restored, &b);
        ck_assert_msg(is_refusal(status), "bit %zu of byte %zu: %s", bit % 8, bit / 8, dsv2_status_name(status));
        b.data[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    assert_holds(model, types[_i], restored, tokens, 5);
    OK(restore_bytes(restored, &b));
    assert_holds(model, types[_i], restored, tokens, 3);
    free(b.data);
    dsv2_session_close(restored);
    dsv2_model_close(model);
}
END_TEST

START_TEST(every_cut_is_refused_or_the_former_save)
{
    dsv2_model *model = open_model(1, 0);
    dsv2_session *restored = open_fed(model, DSV2_CACHE_F16, 5);
    bytes b = small_snapshot(model, DSV2_CACHE_F16);
    size_t whole = b.size, n_former = 0;
    dsv2_snapshot_info info = {.struct_size = sizeof info};
    for (size_t size = 0; size < whole; size++) {
        b.size = size;
        dsv2_status status = restore_bytes(restored, &b);
        if (status == DSV2_OK) { /* between the two saves */
            ck_assert_uint_eq(length_of(restored), 2);
            n_former++;
        } else {
            FAILS_WITH(DSV2_ERROR_FORMAT, status);
        }
        int fd = open(path, O_WRONLY | O_TRUNC);
        ck_assert_int_eq(write(fd, b.data, size), (ssize_t)size);
        close(fd);
        ck_assert_int_eq(dsv2_snapshot_inspect(path, &info), status);
    }
    ck_assert_uint_eq(n_former, 1);
    free(b.data);
    dsv2_session_close(restored);
    dsv2_model_close(model);
}
END_TEST

/* A number of a snapshot of 5 tokens without biases: from the file's beginning, of so many bytes. */
enum {
    SAVE_AT = 128,
    STATE_AT = SAVE_AT + 64,
    LOGITS_AT = STATE_AT + 72,
    TOKENS_AT = LOGITS_AT + 4 * VOCAB,
    FRAME_AT = TOKENS_AT + 5 * 4 + 16,
};

static const struct {
    size_t at, size;
    uint64_t value;
    dsv2_status status;
    const char *message;
} lies[] = {
    {12, 4, 0, DSV2_ERROR_FORMAT, "the header's cache type is 0, expected 1 to 4"},
    {12, 4, 5, DSV2_ERROR_UNSUPPORTED, "cache type 5"},
    {12, 4, DSV2_CACHE_F32, DSV2_ERROR_MISMATCH, "its cache is of type f32, the session's of type f16"},
    {16, 4, 0xffffffff, DSV2_ERROR_FORMAT, "the header's number of layers is 4294967295"},
    {16, 4, 1, DSV2_ERROR_MISMATCH, "a snapshot of another model: 1 layers"},
    {20, 4, 0, DSV2_ERROR_FORMAT, "the header's kv_lora_rank is 0"},
    {20, 4, 17, DSV2_ERROR_MISMATCH, "kv_lora_rank 17"},
    {24, 4, 0xffffffff, DSV2_ERROR_FORMAT, "the header's qk_rope_head_dim is 4294967295"},
    {28, 4, 0xffffffff, DSV2_ERROR_FORMAT, "the header's vocab_size is 4294967295"},
    {28, 4, VOCAB + 1, DSV2_ERROR_MISMATCH, "a snapshot of another model"},
    {48, 8, 7, DSV2_ERROR_MISMATCH, "differs in weights"},
    {56, 8, 1, DSV2_ERROR_UNSUPPORTED, "row 1"},
    {SAVE_AT + 8, 4, 1, DSV2_ERROR_FORMAT, "save 0 is numbered 1"},
    {SAVE_AT + 12, 4, 3, DSV2_ERROR_UNSUPPORTED, "the header of save 0 has flags 3"},
    {SAVE_AT + 16, 8, 1, DSV2_ERROR_FORMAT, "of tokens 1 to 5, expected them from 0 on"},
    {SAVE_AT + 24, 8, UINT64_MAX, DSV2_ERROR_FORMAT, "of tokens 0 to 18446744073709551615"},
    {SAVE_AT + 24, 8, UINT64_C(0x100000005), DSV2_ERROR_FORMAT, "of tokens 0 to 4294967301"},
    {SAVE_AT + 24, 8, 6, DSV2_ERROR_FORMAT, "token 5 is "}, /* more tokens than data: what follows is none */
    {SAVE_AT + 24, 8, CONTEXT, DSV2_ERROR_FORMAT, "cut short at byte "},
    {SAVE_AT + 24, 8, 1 << 20, DSV2_ERROR_FULL, "has 1048576 tokens, the session's maximum length is "},
    {SAVE_AT + 32, 8, UINT64_MAX, DSV2_ERROR_FORMAT, "save 0 has 18446744073709551615 logit biases, expected at most"},
    {SAVE_AT + 32, 8, UINT64_C(0x2000000000000001), DSV2_ERROR_FORMAT, "save 0 has 2305843009213693953 logit biases"},
    {SAVE_AT + 32, 8, 1 << 20, DSV2_ERROR_FORMAT, "cut short at byte "},
    {STATE_AT + 16, 4, 0x7fc00000, DSV2_ERROR_FORMAT, "temperature"}, /* NaN */
    {STATE_AT + 24, 4, 0x7f800000, DSV2_ERROR_FORMAT, "top_p"},       /* infinity */
    {TOKENS_AT, 4, VOCAB, DSV2_ERROR_FORMAT, "token 0 is "},
    {TOKENS_AT + 16, 4, 0xffffffff, DSV2_ERROR_FORMAT, "token 4 is -1, expected 0 to "},
    {FRAME_AT + 4, 4, 2, DSV2_ERROR_UNSUPPORTED, "the frame of tokens 0 to 4 (encoding 2)"},
    {FRAME_AT + 8, 8, UINT64_MAX, DSV2_ERROR_FORMAT,
     "the frame at token 0 says that it holds 5 tokens from 18446744073709551615 on"},
    {FRAME_AT + 16, 4, 0, DSV2_ERROR_FORMAT, "says that it holds 0 tokens from 0 on, expected 1 to 5"},
    {FRAME_AT + 16, 4, 6, DSV2_ERROR_FORMAT, "says that it holds 6 tokens from 0 on, expected 1 to 5"},
    {FRAME_AT + 16, 4, 0xffffffff, DSV2_ERROR_FORMAT, "says that it holds 4294967295 tokens"},
    {FRAME_AT + 24, 8, UINT64_MAX, DSV2_ERROR_FORMAT, "and 18446744073709551615 bytes for"},
    {FRAME_AT + 24, 8, UINT64_C(0x100000001), DSV2_ERROR_FORMAT, "and 4294967297 bytes for"},
    {FRAME_AT + 24, 8, 0, DSV2_ERROR_FORMAT, "and 0 bytes for"},
};

/* Whoever makes a file on purpose makes its checksums right. */
START_TEST(a_lie_under_a_right_checksum_is_refused_by_field_and_value)
{
    dsv2_model *model = open_model(1, 0);
    dsv2_session *session = open_fed(model, DSV2_CACHE_F16, 5);
    OK(dsv2_session_save(session, path, NULL));
    bytes b = read_file(path);
    ck_assert(memcmp(b.data + FRAME_AT, "ROWS", 4) == 0);
    for (size_t i = 0; i < lies[_i].size; i++)
        b.data[lies[_i].at + i] = (uint8_t)(lies[_i].value >> 8 * i);
    snapshot_file_seal(b.data, b.size, VOCAB);
    FAILS_WITH(lies[_i].status, restore_bytes(session, &b));
    ck_assert_msg(strstr(dsv2_last_error(), lies[_i].message) != NULL, "\"%s\" is not in: %s", lies[_i].message,
                  dsv2_last_error());
    assert_holds(model, DSV2_CACHE_F16, session, tokens, 5);
    free(b.data);
    dsv2_session_close(session);
    dsv2_model_close(model);
}
END_TEST

/* Puts a tokenizer beside a model, `old` in it replaced by `new`, which is as long. */
static void add_tokenizer(const char *model_folder, const char *old, const char *new)
{
    bytes b = read_file(TEST_DATA "/bytes/tokenizer.json");
    char *at = memmem(b.data, b.size, old, strlen(old)), name[600];
    ck_assert_ptr_nonnull(at);
    memcpy(at, new, strlen(new));
    snprintf(name, sizeof name, "%s/tokenizer.json", model_folder);
    int fd = open(name, O_WRONLY | O_CREAT, 0644);
    ck_assert_int_eq(write(fd, b.data, b.size), (ssize_t)b.size);
    close(fd);
    free(b.data);
}

START_TEST(a_model_that_differs_is_refused_and_the_part_named)
{
    static const struct {
        uint64_t seed;
        double scaling;
        const char *digits; /* of the tokenizer's expression; NULL: no tokenizer */
        const char *differs;
    } cases[] = {
        {42, 1, "[0-9]", NULL},
        {43, 1, "[0-9]", "differs in weights ("},
        {42, 2, "[0-9]", "differs in hyper-parameters ("},
        {42, 1, "[0-8]", "differs in tokenizer ("},
        {42, 1, NULL, "differs in tokenizer ("},
        {43, 2, NULL, "differs in hyper-parameters, tokenizer, weights ("},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        test_checkpoint other_shape = shape;
        other_shape.seed = cases[i].seed;
        other_shape.routed_scaling_factor = cases[i].scaling;
        char *other_folder = test_checkpoint_write(&other_shape);
        if (cases[i].digits != NULL)
            add_tokenizer(other_folder, "[0-9]", cases[i].digits);
        dsv2_model *model;
        OK(dsv2_model_open(other_folder, NULL, &model));
        dsv2_session *session = open_fed(model, DSV2_CACHE_F16, 5), *restored = open_session(model, DSV2_CACHE_F16);
        if (i == 0)
            OK(dsv2_session_save(session, path, NULL));
        if (cases[i].differs == NULL) {
            OK(dsv2_session_restore(session, path, NULL, NULL));
        } else {
            FAILS_WITH(DSV2_ERROR_MISMATCH, dsv2_session_restore(session, path, NULL, NULL));
            ck_assert_msg(strstr(dsv2_last_error(), cases[i].differs) != NULL, "case %zu: %s", i, dsv2_last_error());
        }
        OK(dsv2_session_save(session, other_path, NULL)); /* with or without a tokenizer its own is restored */
        OK(dsv2_session_restore(restored, other_path, NULL, NULL));
        dsv2_snapshot_info info = {.struct_size = sizeof info};
        dsv2_model_info model_info = {.struct_size = sizeof model_info};
        OK(dsv2_snapshot_inspect(other_path, &info));
        OK(dsv2_model_get_info(model, &model_info));
        ck_assert_uint_eq(info.model_fingerprint, model_info.fingerprint);
        dsv2_session_close(restored);
        dsv2_session_close(session);
        dsv2_model_close(model);
        test_checkpoint_remove(other_folder);
    }
}
END_TEST

START_TEST(other_versions_folders_and_lengths_are_refused)
{
    dsv2_model *model = open_model(1, 0);
    dsv2_session *session = open_fed(model, DSV2_CACHE_F16, 5);
    OK(dsv2_session_save(session, path, NULL));
    FAILS_WITH(DSV2_ERROR_IO, dsv2_session_restore(session, folder, NULL, NULL));
    FAILS_WITH(DSV2_ERROR_IO, dsv2_session_restore(session, other_path, NULL, NULL));
    FAILS_WITH(DSV2_ERROR_IO, dsv2_session_save(session, "/nowhere/at/all", NULL));
    bytes b = read_file(path);
    for (b.data[8] = 1; b.data[8] <= 3; b.data[8] += 2) {
        FAILS_WITH(DSV2_ERROR_UNSUPPORTED, restore_bytes(session, &b));
        ck_assert_ptr_nonnull(strstr(dsv2_last_error(), b.data[8] == 1 ? "version 1" : "version 3"));
    }
    dsv2_session_options small = {.struct_size = sizeof small, .cache_type = DSV2_CACHE_F16, .max_length = 4};
    dsv2_session *full;
    OK(dsv2_session_open(model, &small, &full));
    FAILS_WITH(DSV2_ERROR_FULL, dsv2_session_restore(full, path, NULL, NULL));
    dsv2_restore_options options = {.struct_size = sizeof options, .prompt = tokens, .n_prompt = 4};
    OK(dsv2_session_restore(full, path, &options, NULL));
    dsv2_session_close(full);
    assert_holds(model, DSV2_CACHE_F16, session, tokens, 5);
    free(b.data);
    dsv2_session_close(session);
    dsv2_model_close(model);
}
END_TEST

START_TEST(misuse_is_refused)
{
    dsv2_model *model = open_model(1, 0);
    dsv2_session *session = open_fed(model, DSV2_CACHE_F16, 5);
    dsv2_snapshot_info info = {.struct_size = sizeof info};
    dsv2_save_options save = appending();
    bytes b = {0};
    FAILS_WITH(DSV2_ERROR_ARGUMENT, dsv2_session_save(NULL, path, NULL));
    FAILS_WITH(DSV2_ERROR_ARGUMENT, dsv2_session_save(session, NULL, NULL));
    FAILS_WITH(DSV2_ERROR_ARGUMENT, dsv2_session_save_to(session, NULL, NULL, NULL));
    FAILS_WITH(DSV2_ERROR_ARGUMENT, dsv2_session_save_to(session, write_bytes, &b, &save));
    FAILS_WITH(DSV2_ERROR_ARGUMENT, dsv2_session_restore(NULL, path, NULL, NULL));
    FAILS_WITH(DSV2_ERROR_ARGUMENT, dsv2_session_restore(session, NULL, NULL, NULL));
    FAILS_WITH(DSV2_ERROR_ARGUMENT, dsv2_session_restore_from(session, NULL, NULL, NULL, NULL));
    FAILS_WITH(DSV2_ERROR_ARGUMENT, dsv2_snapshot_inspect(NULL, &info));
    FAILS_WITH(DSV2_ERROR_ARGUMENT, dsv2_snapshot_inspect(path, NULL));
    save = (dsv2_save_options){.struct_size = sizeof save, .compression_level = 1000};
    FAILS_WITH(DSV2_ERROR_ARGUMENT, dsv2_session_save(session, path, &save));
    OK(dsv2_session_save(session, path, NULL));
    info.struct_size = 3;
    FAILS_WITH(DSV2_ERROR_ARGUMENT, dsv2_snapshot_inspect(path, &info));
    dsv2_session_close(session);
    dsv2_model_close(model);
}
END_TEST

/* ---- callbacks ---- */

typedef struct watch {
    dsv2_phase phase;
    uint64_t done, n_calls, n_ends, cancel_at;
} watch;

static int watch_progress(void *user, dsv2_phase phase, uint64_t done, uint64_t total)
{
    watch *w = user;
    ck_assert_int_eq(phase, w->phase);
    ck_assert(done >= w->done && done <= total);
    w->done = done;
    w->n_ends += done == total;
    return ++w->n_calls == w->cancel_at;
}

START_TEST(progress_is_told_and_cancelling_changes_nothing)
{
    dsv2_model *model = open_model(1, 0);
    dsv2_session *session = open_fed(model, DSV2_CACHE_F16, CONTEXT), *restored = open_fed(model, DSV2_CACHE_F16, 5);
    watch w = {.phase = DSV2_PHASE_SAVE};
    dsv2_save_options save = {.struct_size = sizeof save, .progress = watch_progress, .progress_user = &w};
    dsv2_restore_options restore = {.struct_size = sizeof restore, .progress = watch_progress, .progress_user = &w};
    OK(dsv2_session_save(session, path, &save));
    ck_assert(w.n_ends == 1 && w.n_calls > 3);
    bytes before = read_file(path);
    for (uint64_t n = w.n_calls, at = 1; at <= n; at++) {
        w = (watch){.phase = DSV2_PHASE_SAVE, .cancel_at = at};
        FAILS_WITH(DSV2_ERROR_CANCELLED, dsv2_session_save(session, path, &save));
        bytes after = read_file(path);
        ck_assert(after.size == before.size && memcmp(after.data, before.data, after.size) == 0);
        free(after.data);
    }
    w = (watch){.phase = DSV2_PHASE_RESTORE};
    OK(dsv2_session_restore(restored, path, &restore, NULL));
    ck_assert(w.n_ends == 1 && w.n_calls > 3);
    OK(dsv2_session_truncate(restored, 5));
    for (uint64_t n = w.n_calls, at = 1; at <= n; at++) {
        w = (watch){.phase = DSV2_PHASE_RESTORE, .cancel_at = at};
        FAILS_WITH(DSV2_ERROR_CANCELLED, dsv2_session_restore(restored, path, &restore, NULL));
        ck_assert_uint_eq(length_of(restored), 5);
    }
    free(before.data);
    dsv2_session_close(restored);
    dsv2_session_close(session);
    dsv2_model_close(model);
}
END_TEST

static int lying_read(void *user, void *data, size_t size, size_t *got)
{
    (void)user, (void)data;
    *got = size + 1;
    return 0;
}

START_TEST(callbacks_may_be_slow_or_fail)
{
    dsv2_model *model = open_model(1, 0);
    dsv2_session *session = open_fed(model, DSV2_CACHE_Q8, 130), *restored = open_fed(model, DSV2_CACHE_Q8, 5);
    bytes b = save_bytes(session), whole;
    OK(dsv2_session_save(session, path, NULL));
    whole = read_file(path);
    ck_assert(whole.size == b.size && memcmp(whole.data, b.data, b.size) == 0); /* the same bytes as in a file */
    for (size_t at = 1; at <= b.n_calls; at++) {
        bytes failing = {.fail_at = at};
        FAILS_WITH(DSV2_ERROR_IO, dsv2_session_save_to(session, write_bytes, &failing, NULL));
        free(failing.data);
    }
    OK(restore_bytes(restored, &b));
    size_t n_reads = b.n_calls;
    OK(dsv2_session_truncate(restored, 5));
    for (b.fail_at = 1; b.fail_at <= n_reads; b.fail_at++) {
        FAILS_WITH(DSV2_ERROR_IO, restore_bytes(restored, &b));
        ck_assert_uint_eq(length_of(restored), 5);
    }
    FAILS_WITH(DSV2_ERROR_IO, dsv2_session_restore_from(restored, lying_read, NULL, NULL, NULL));
    b.fail_at = 0;
    for (b.step = 1; b.step < 200; b.step += 61) {
        OK(restore_bytes(restored, &b));
        assert_holds(model, DSV2_CACHE_Q8, restored, tokens, 130);
    }
    free(whole.data);
    free(b.data);
    dsv2_session_close(restored);
    dsv2_session_close(session);
    dsv2_model_close(model);
}
END_TEST

/* ---- a killed process, a full disk, no memory ---- */

/* What the child has come to, in memory that both see: the length that its last save has left, and the one that it is
 * writing. */
typedef struct progress {
    atomic_size_t saved, saving;
} progress;

/* Saves or appends for ever: each time one token more, anew when the context is full. */
static void save_until_killed(dsv2_model *model, bool append, progress *p)
{
    dsv2_save_options options = {.struct_size = sizeof options, .append = append};
    dsv2_session *session = open_session(model, DSV2_CACHE_Q6);
    for (size_t n = 0;; n = n % (CONTEXT - 1) + 1) {
        OK(dsv2_session_truncate(session, n % (CONTEXT - 1)));
        OK(dsv2_session_feed(session, tokens + n % (CONTEXT - 1), 1));
        atomic_store(&p->saving, length_of(session));
        OK(dsv2_session_save(session, path, &options));
        atomic_store(&p->saved, length_of(session));
    }
}

START_TEST(a_process_killed_while_saving_leaves_the_old_snapshot_or_the_new)
{
    enum { KILLS = 100 };
    uint64_t seed = 3 + (uint64_t)_i;
    progress *p = mmap(NULL, sizeof *p, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ck_assert(p != MAP_FAILED);
    dsv2_model *model = open_model(1, 0); /* without threads: these would not be there after fork */
    dsv2_session *restored = open_session(model, DSV2_CACHE_Q6);
    OK(dsv2_session_save(restored, path, NULL));
    atomic_store(&p->saved, 0);
    for (int kills = 0; kills < KILLS; kills++) {
        atomic_store(&p->saving, atomic_load(&p->saved));
        pid_t child = fork();
        ck_assert_int_ge(child, 0);
        if (child == 0)
            save_until_killed(model, _i == 1, p);
        while (kills % 10 != 0 && atomic_load(&p->saving) == atomic_load(&p->saved))
            usleep(100); /* so that most children come to saving, however slow the machine */
        usleep((useconds_t)(test_random(&seed) * 8000));
        ck_assert_int_eq(kill(child, SIGKILL), 0);
        int status;
        ck_assert_int_eq(waitpid(child, &status, 0), child);
        ck_assert_msg(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "the child ended by itself");
        OK(dsv2_session_restore(restored, path, NULL, NULL));
        size_t n = length_of(restored);
        ck_assert_msg(n == atomic_load(&p->saved) || n == atomic_load(&p->saving), "%zu tokens, expected %zu or %zu", n,
                      atomic_load(&p->saved), atomic_load(&p->saving));
        assert_holds(model, DSV2_CACHE_Q6, restored, tokens, n);
        atomic_store(&p->saved, n);
    }
    munmap(p, sizeof *p);
    dsv2_session_close(restored);
    dsv2_model_close(model);
}
END_TEST

/* A limit on the size of files is what a full disk is to the writer. */
/* A rename puts a file in place of whatever has the name: as root of /dev/null, too. */
START_TEST(what_is_no_regular_file_is_not_replaced)
{
    char fifo[512], device[512];
    struct stat status;
    dsv2_model *model = open_model(1, 0);
    dsv2_session *session = open_fed(model, DSV2_CACHE_DEFAULT, 3);
    snprintf(fifo, sizeof fifo, "%s/fifo", folder);
    snprintf(device, sizeof device, "%s/device", folder);
    ck_assert_int_eq(mkfifo(fifo, 0600), 0);
    FAILS_WITH(DSV2_ERROR_IO, dsv2_session_save(session, fifo, NULL));
    ck_assert(stat(fifo, &status) == 0 && S_ISFIFO(status.st_mode));
    if (mknod(device, S_IFCHR | 0666, makedev(1, 3)) == 0) { /* where the tests may make devices */
        FAILS_WITH(DSV2_ERROR_IO, dsv2_session_save(session, device, NULL));
        FAILS_WITH(DSV2_ERROR_IO, dsv2_model_pack(folder, device, NULL));
        ck_assert(stat(device, &status) == 0 && S_ISCHR(status.st_mode));
        ck_assert_int_eq(unlink(device), 0);
    }
    ck_assert_int_eq(unlink(fifo), 0);
    dsv2_session_close(session);
    dsv2_model_close(model);
}
END_TEST

/* A limit on the size of files is as good as a full disk. Its signal would end the process by default (attack 11). */
START_TEST(a_full_disk_leaves_the_old_file)
{
    dsv2_model *model = open_model(1, 0);
    dsv2_session *session = open_fed(model, DSV2_CACHE_Q8, 64), *restored = open_session(model, DSV2_CACHE_Q8);
    dsv2_save_options save = {.struct_size = sizeof save, .append = _i % 2};
    OK(dsv2_session_save(session, path, NULL));
    bytes before = read_file(path);
    int n_files = files_in_folder();
    OK(dsv2_session_feed(session, tokens + 64, 66));
    OK(dsv2_session_save(session, other_path, NULL));
    size_t needed = file_size(other_path);
    unlink(other_path);
    signal(SIGXFSZ, _i < 2 ? SIG_IGN : SIG_DFL);
    struct rlimit limit;
    ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &limit), 0);
    for (size_t size = _i % 2 ? before.size : 0; size < needed; size += 97) {
        struct rlimit low = {.rlim_cur = size, .rlim_max = limit.rlim_max};
        int set = setrlimit(RLIMIT_FSIZE, &low); /* Check notes each assertion in a file: none under the limit */
        dsv2_status status = dsv2_session_save(session, path, &save);
        ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit) | set, 0);
        FAILS_WITH(DSV2_ERROR_IO, status);
        ck_assert_ptr_nonnull(strstr(dsv2_last_error(), path));
        bytes after = read_file(path);
        ck_assert(after.size == before.size && memcmp(after.data, before.data, after.size) == 0);
        free(after.data);
        ck_assert_int_eq(files_in_folder(), n_files);
    }
    OK(dsv2_session_save(session, path, &save));
    OK(dsv2_session_restore(restored, path, NULL, NULL));
    assert_holds(model, DSV2_CACHE_Q8, restored, tokens, 130);
    free(before.data);
    dsv2_session_close(restored);
    dsv2_session_close(session);
    dsv2_model_close(model);
}
END_TEST

typedef enum oom_way { OOM_SAVE, OOM_APPEND, OOM_SAVE_TO, OOM_RESTORE, OOM_RESTORE_FROM, N_OOM_WAYS } oom_way;
enum { OOM_SAVED = 70, OOM_FED = 140, OOM_BEFORE = 5 };

typedef struct oom_case {
    oom_way way;
    dsv2_model *model;
    dsv2_session *session, *restored; /* of OOM_FED tokens, and of OOM_BEFORE */
    bytes file;                       /* what `path` holds before: OOM_SAVED tokens */
    bytes through;                    /* what a callback writes or reads, in room that is there before */
    int n_files;
} oom_case;

static dsv2_status save_or_restore(void *context)
{
    oom_case *c = context;
    const dsv2_save_options append = appending();
    c->through.offset = 0;
    switch (c->way) {
    case OOM_SAVE: return dsv2_session_save(c->session, path, NULL);
    case OOM_APPEND: return dsv2_session_save(c->session, path, &append);
    case OOM_SAVE_TO:
        c->through.size = 0;
        return dsv2_session_save_to(c->session, write_bytes, &c->through, NULL);
    case OOM_RESTORE: return dsv2_session_restore(c->restored, path, NULL, NULL);
    default: return dsv2_session_restore_from(c->restored, read_bytes, &c->through, NULL, NULL);
    }
}

/* Whatever was saved can be restored; after a failure the file is the one before. */
static void expect_saved(oom_case *c, dsv2_status status)
{
    if (c->way == OOM_SAVE_TO) {
        if (status != DSV2_OK)
            return;
        OK(restore_bytes(c->restored, &c->through));
    } else {
        OK(dsv2_session_restore(c->restored, path, NULL, NULL));
    }
    assert_holds(c->model, DSV2_CACHE_F16, c->restored, tokens, status == DSV2_OK ? OOM_FED : OOM_SAVED);
    test_write_file(path, c->file.data, c->file.size);
}

static void saved_or_nothing(void *context, dsv2_status status)
{
    oom_case *c = context;
    assert_holds(c->model, DSV2_CACHE_F16, c->session, tokens, OOM_FED);
    if (c->way == OOM_SAVE || c->way == OOM_APPEND || c->way == OOM_SAVE_TO)
        expect_saved(c, status);
    else
        assert_holds(c->model, DSV2_CACHE_F16, c->restored, tokens, status == DSV2_OK ? OOM_SAVED : OOM_BEFORE);
    OK(dsv2_session_truncate(c->restored, OOM_BEFORE - 1));
    OK(dsv2_session_feed(c->restored, tokens + OOM_BEFORE - 1, 1));
    ck_assert_int_eq(files_in_folder(), c->n_files);
}

START_TEST(every_refused_allocation_is_survived)
{
    dsv2_model *model = open_model(2, 0);
    oom_case c = {.way = (oom_way)_i, .model = model, .session = open_fed(model, DSV2_CACHE_F16, OOM_SAVED),
                  .restored = open_fed(model, DSV2_CACHE_F16, OOM_BEFORE)};
    OK(dsv2_session_save(c.session, path, NULL));
    c.file = read_file(path);
    c.n_files = files_in_folder();
    c.through = save_bytes(c.session);
    c.through.capacity = 1 << 20;
    ck_assert_ptr_nonnull(c.through.data = realloc(c.through.data, c.through.capacity));
    OK(dsv2_session_feed(c.session, tokens + OOM_SAVED, OOM_FED - OOM_SAVED));
    oom_fail_each(save_or_restore, saved_or_nothing, &c, false);
    free(c.through.data);
    free(c.file.data);
    dsv2_session_close(c.restored);
    dsv2_session_close(c.session);
    dsv2_model_close(model);
}
END_TEST

START_TEST(a_restore_keeps_to_the_memory_limit)
{
    dsv2_model *model = open_model(1, 0);
    dsv2_session *session = open_fed(model, DSV2_CACHE_F32, 5 * PAGE);
    uint64_t per_token;
    const float *logits;
    float expected[VOCAB];
    OK(dsv2_session_logits(session, &logits));
    memcpy(expected, logits, sizeof expected);
    OK(dsv2_session_bytes_per_token(session, &per_token));
    OK(dsv2_session_save(session, path, NULL));
    dsv2_session_close(session);
    dsv2_model_close(model);
    model = open_model(1, per_token * PAGE * 5);
    session = open_fed(model, DSV2_CACHE_F32, 3);
    FAILS_WITH(DSV2_ERROR_MEMORY, dsv2_session_restore(session, path, NULL, NULL));
    assert_holds(model, DSV2_CACHE_F32, session, tokens, 3);
    OK(dsv2_session_truncate(session, 0));
    OK(dsv2_session_restore(session, path, NULL, NULL));
    OK(dsv2_session_logits(session, &logits));
    ck_assert_mem_eq(logits, expected, sizeof expected);
    dsv2_session_close(session);
    dsv2_model_close(model);
}
END_TEST

START_TEST(a_thousand_forks_share_their_prefix)
{
    enum { PREFIX = 4096, OWN = 100, FORKS = 1000 };
    const test_checkpoint long_shape = {
        .vocab_size = VOCAB, .hidden_size = 16, .intermediate_size = 16, .num_hidden_layers = 1,
            .num_attention_heads = 1,
        .kv_lora_rank = 8, .qk_nope_head_dim = 4, .qk_rope_head_dim = 4, .v_head_dim = 4,
        .max_position_embeddings = PREFIX + OWN, .seed = 3,
    };
    char *long_folder = test_checkpoint_write(&long_shape);
    int32_t *prefix = malloc((PREFIX + OWN) * sizeof *prefix);
    float(*expected)[VOCAB] = malloc(VOCAB * sizeof *expected); /* of a continuation that begins with each token */
    test_random_tokens(9, VOCAB, prefix, PREFIX + OWN);
    dsv2_model *model;
    const float *logits;
    OK(dsv2_model_open(long_folder, NULL, &model));
    dsv2_session *document = open_session(model, DSV2_CACHE_Q6), **forks = calloc(FORKS, sizeof *forks);
    OK(dsv2_session_feed(document, prefix, PREFIX));
    for (int first = 0; first < VOCAB; first++) {
        prefix[PREFIX] = first;
        OK(dsv2_session_feed(document, prefix + PREFIX, OWN));
        OK(dsv2_session_logits(document, &logits));
        memcpy(expected[first], logits, sizeof *expected);
        OK(dsv2_session_truncate(document, PREFIX));
    }
    for (int i = 0; i < FORKS; i++) {
        prefix[PREFIX] = i % VOCAB;
        OK(dsv2_session_fork(document, PREFIX, &forks[i]));
        OK(dsv2_session_feed(forks[i], prefix + PREFIX, OWN - 1));
    }
    for (int i = 0; i < FORKS; i++) { /* over what all have written */
        OK(dsv2_session_feed(forks[i], prefix + PREFIX + OWN - 1, 1));
        OK(dsv2_session_logits(forks[i], &logits));
        ck_assert_mem_eq(logits, expected[i % VOCAB], sizeof *expected);
    }
    dsv2_memory_info memory = {.struct_size = sizeof memory};
    uint64_t per_token;
    OK(dsv2_session_bytes_per_token(document, &per_token));
    OK(dsv2_model_get_memory(model, &memory));
    ck_assert_uint_eq(memory.pages_in_use, PREFIX / PAGE + FORKS * ((OWN + PAGE - 1) / PAGE));
    ck_assert_uint_eq(memory.page_bytes_in_use, memory.pages_in_use * PAGE * per_token);
    for (int i = 0; i < FORKS; i++)
        dsv2_session_close(forks[i]);
    dsv2_session_close(document);
    dsv2_model_close(model);
    free(forks);
    free(expected);
    free(prefix);
    test_checkpoint_remove(long_folder);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("snapshot");
    TCase *tests = tcase_create("snapshot");
    tcase_set_timeout(tests, 300);
    tcase_add_checked_fixture(tests, set_up, tear_down);
    tcase_add_loop_test(tests, continuation_is_the_same_bits_after_restore_fork_and_rewind, 0, N_TYPES);
    tcase_add_test(tests, sampler_and_random_numbers_come_back);
    tcase_add_test(tests, empty_and_rewound_sessions_come_back_without_logits);
    tcase_add_loop_test(tests, append_writes_what_is_new, 0, N_TYPES);
    tcase_add_test(tests, append_to_something_else_writes_anew);
    tcase_add_test(tests, an_append_cut_anywhere_leaves_the_former_state);
    tcase_add_loop_test(tests, random_sequences_of_calls_leave_what_recomputing_gives, 0, N_TYPES);
    tcase_add_test(tests, restores_the_prefix_that_a_prompt_shares);
    tcase_add_loop_test(tests, types_convert_where_asked, 0, N_TYPES);
    tcase_add_loop_test(tests, every_flipped_bit_is_noticed, 0, N_TYPES);
    tcase_add_test(tests, every_cut_is_refused_or_the_former_save);
    tcase_add_loop_test(tests, a_lie_under_a_right_checksum_is_refused_by_field_and_value, 0,
                        sizeof lies / sizeof *lies);
    tcase_add_test(tests, a_model_that_differs_is_refused_and_the_part_named);
    tcase_add_test(tests, other_versions_folders_and_lengths_are_refused);
    tcase_add_test(tests, misuse_is_refused);
    tcase_add_test(tests, progress_is_told_and_cancelling_changes_nothing);
    tcase_add_test(tests, callbacks_may_be_slow_or_fail);
    tcase_add_loop_test(tests, a_process_killed_while_saving_leaves_the_old_snapshot_or_the_new, 0, 2);
    tcase_add_test(tests, what_is_no_regular_file_is_not_replaced);
    tcase_add_loop_test(tests, a_full_disk_leaves_the_old_file, 0, 4);
    if (oom_available())
        tcase_add_loop_test(tests, every_refused_allocation_is_survived, 0, N_OOM_WAYS);
    tcase_add_test(tests, a_restore_keeps_to_the_memory_limit);
    tcase_add_test(tests, a_thousand_forks_share_their_prefix);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}

/* Every read, write, flush, rename, lock, mapping, look at a file and allocation of opening, feeding, saving,
 * appending, restoring and packing fails in turn, once and for good; transfers are short, end early and are
 * interrupted. After each the status says so, or the library rightly went on; the file of that name is the old or the
 * new one, and whole; no temporary file stays but one of the documented name that could not be removed; the session is
 * as it was, and everything works as soon as the system does. The same for a process that is killed at each call, and
 * at random moments. Prints what failed and what came of that. With DSV2_TEST_ALL set: every call with every error, and
 * 1,000 moments. test_faults [CASE] */
#include <dsv2/dsv2.h>

#include "support/checkpoint.h"
#include "support/faults.h"
#include "support/gguf.h"
#include "support/model.h"
#include "support/run.h"
#include "support/tensors.h"

#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { VOCAB = 61, CONTEXT = 200, LENGTH = 70, MORE = 67, SOME = 20 };

static const test_checkpoint shape = {
    .vocab_size = VOCAB, .hidden_size = 16, .intermediate_size = 16, .num_hidden_layers = 2, .num_attention_heads = 1,
    .kv_lora_rank = 16, .qk_nope_head_dim = 8, .qk_rope_head_dim = 8, .v_head_dim = 8,
    .max_position_embeddings = CONTEXT, .moe_intermediate_size = 8, .n_routed_experts = 2, .num_experts_per_tok = 1,
    .first_k_dense_replace = 1, .seed = 42,
};

#define OK(call) ck_assert_msg((call) == DSV2_OK, "%s: %s: %s", at, #call, dsv2_last_error())
#define CHECK(condition) ck_assert_msg(condition, "%s: %s (%s)", at, #condition, dsv2_last_error())

static char at[300]; /* what is failing, for messages */
static char *model_folder, folder[512], path[600], gguf_path[600];
static int32_t tokens[CONTEXT];
static dsv2_model *model;
static dsv2_session *session; /* of LENGTH tokens */
static dsv2_session *work;    /* a fork of it, which an operation may change */

/* The absorbed form: its bits do not depend on how the tokens were cut. */
static const dsv2_session_options absorbed = {.struct_size = sizeof absorbed, .attention = DSV2_ATTENTION_ABSORBED};
static const dsv2_model_options one_thread = {.struct_size = sizeof one_thread, .n_threads = 1};

/* The library goes on without knowing what the system has left: no fault is to be spent on looking. */
struct ds_memory_left;
bool __wrap_ds_memory_left_in(const char *root, struct ds_memory_left *least);
bool __wrap_ds_memory_left_in(const char *root, struct ds_memory_left *least)
{
    (void)root, (void)least;
    return false;
}

/* ---- files ---- */

typedef struct bytes {
    char *data; /* NULL: there is no file */
    size_t size;
} bytes;

static bytes read_path(void)
{
    bytes b = {NULL, 0};
    if (access(path, F_OK) == 0)
        b.data = test_read_file(path, &b.size);
    return b;
}

static bool same_bytes(bytes a, bytes b)
{
    return (a.data == NULL) == (b.data == NULL) && a.size == b.size &&
           (a.size == 0 || memcmp(a.data, b.data, a.size) == 0);
}

static void write_path(bytes b)
{
    if (b.data != NULL)
        test_write_file(path, b.data, b.size);
    else
        (void)unlink(path);
}

/* Temporary files in the folder. No other file may be there but the one at `path` and the GGUF. */
static size_t count_temporaries(void)
{
    size_t n = 0;
    DIR *d = opendir(folder);
    ck_assert_ptr_nonnull(d);
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        if (e->d_name[0] == '.' || strcmp(e->d_name, "file") == 0 || strcmp(e->d_name, "model.gguf") == 0)
            continue;
        size_t length = strlen(e->d_name);
        ck_assert_msg(length == strlen("file.XXXXXX.dsv2tmp") && strncmp(e->d_name, "file.", 5) == 0 &&
                          strcmp(e->d_name + length - 8, ".dsv2tmp") == 0, "%s: %s is there", at, e->d_name);
        n++;
    }
    closedir(d);
    return n;
}

static size_t count_descriptors(void)
{
    size_t n = 0;
    DIR *d = opendir("/proc/self/fd");
    ck_assert_ptr_nonnull(d);
    while (readdir(d) != NULL)
        n++;
    closedir(d);
    return n;
}

/* ---- what is expected ---- */

static float reference[CONTEXT + 1][VOCAB]; /* [n]: the logits after n tokens */

static void make_reference(void)
{
    float *all = test_logits(model, &absorbed, tokens, CONTEXT, CONTEXT);
    memcpy(reference[1], all, sizeof reference - sizeof reference[0]);
    free(all);
}

/* The session holds the first n tokens and the logits after them, and goes on. */
static void assert_holds(dsv2_session *s, size_t n)
{
    int32_t held[CONTEXT];
    size_t length;
    const float *logits;
    dsv2_session *copy;
    OK(dsv2_session_tokens(s, held, CONTEXT, &length));
    CHECK(length == n);
    CHECK(memcmp(held, tokens, n * sizeof *held) == 0);
    OK(dsv2_session_logits(s, &logits));
    CHECK(memcmp(logits, reference[n], sizeof reference[n]) == 0);
    OK(dsv2_session_fork(s, n, &copy));
    OK(dsv2_session_feed(copy, tokens + n, 1));
    OK(dsv2_session_logits(copy, &logits));
    CHECK(memcmp(logits, reference[n + 1], sizeof reference[n]) == 0);
    dsv2_session_close(copy);
}

/* How many tokens the snapshot at `path` restores, all of it checked; 0: there is none. */
static size_t restored(void)
{
    if (access(path, F_OK) != 0)
        return 0;
    size_t n;
    dsv2_session *s;
    OK(dsv2_session_open(model, &absorbed, &s));
    OK(dsv2_session_restore(s, path, NULL, &n));
    assert_holds(s, n);
    dsv2_session_close(s);
    return n;
}

/* ---- operations ---- */

static bytes snapshot;      /* of SOME tokens */
static bytes long_snapshot; /* of LENGTH */
static bytes pack;
static const char *pack_from;

static void no_check(bool ok) { (void)ok; }

static dsv2_status open_and_check(const char *from)
{
    dsv2_model *opened;
    dsv2_status status = dsv2_model_open(from, &one_thread, &opened);
    (void)faults_disarm();
    if (status != DSV2_OK)
        return status;
    float *logits = test_logits(opened, &absorbed, tokens, SOME, SOME);
    CHECK(memcmp(logits + (SOME - 1) * VOCAB, reference[SOME], sizeof reference[0]) == 0);
    if (from == model_folder)
        CHECK(test_model_info(opened).fingerprint == test_model_info(model).fingerprint);
    CHECK(from == gguf_path || dsv2_model_tokenizer(opened) != NULL);
    free(logits);
    dsv2_model_close(opened);
    return status;
}

static dsv2_status open_folder(void) { return open_and_check(model_folder); }
static dsv2_status open_gguf(void) { return open_and_check(gguf_path); }
static dsv2_status open_pack(void) { return open_and_check(path); }

static dsv2_status open_with(dsv2_model_options options)
{
    dsv2_model *opened;
    options.struct_size = sizeof options;
    dsv2_status status = dsv2_model_open(model_folder, &options, &opened);
    if (status == DSV2_OK)
        dsv2_model_close(opened);
    return status;
}

static dsv2_status open_with_threads(void) { return open_with((dsv2_model_options){.n_threads = 3}); }

static dsv2_status open_by_reading(void)
{
    return open_with((dsv2_model_options){.n_threads = 1, .loading = DSV2_LOADING_READ});
}

static dsv2_status open_session(void)
{
    dsv2_session *s;
    dsv2_status status = dsv2_session_open(model, &absorbed, &s);
    if (status == DSV2_OK)
        dsv2_session_close(s);
    return status;
}

static dsv2_status feed(void) { return dsv2_session_feed(work, tokens + LENGTH, MORE); }
static void check_fed(bool ok) { assert_holds(work, ok ? LENGTH + MORE : LENGTH); }

static dsv2_status save(void) { return dsv2_session_save(session, path, NULL); }

static dsv2_status append(void)
{
    const dsv2_save_options options = {.struct_size = sizeof options, .append = 1};
    return dsv2_session_save(session, path, &options);
}

static uint8_t sent[1 << 17];
static size_t n_sent;

static int take(void *user, const void *data, size_t size)
{
    (void)user;
    if (size > sizeof sent - n_sent)
        return 1; /* no assertion: Check allocates */
    memcpy(sent + n_sent, data, size);
    n_sent += size;
    return 0;
}

static dsv2_status save_to(void)
{
    n_sent = 0;
    return dsv2_session_save_to(session, take, NULL, NULL);
}

static void check_sent(bool ok)
{
    if (ok)
        CHECK(n_sent == long_snapshot.size && memcmp(sent, long_snapshot.data, n_sent) == 0);
}

static dsv2_status restore(void) { return dsv2_session_restore(work, path, NULL, NULL); }
static void check_restored(bool ok) { assert_holds(work, ok ? SOME : LENGTH); }

static int give(void *user, void *data, size_t size, size_t *got)
{
    size_t *given = user;
    *got = snapshot.size - *given < size ? snapshot.size - *given : size;
    *got = *got > 1000 ? 1000 : *got;
    memcpy(data, snapshot.data + *given, *got);
    *given += *got;
    return 0;
}

static dsv2_status restore_from(void)
{
    size_t given = 0;
    return dsv2_session_restore_from(work, give, &given, NULL, NULL);
}

static dsv2_status inspect(void)
{
    dsv2_snapshot_info info = {.struct_size = sizeof info};
    dsv2_status status = dsv2_snapshot_inspect(path, &info);
    (void)faults_disarm(); /* Check allocates */
    CHECK(status != DSV2_OK || info.n_tokens == SOME);
    return status;
}

static dsv2_status write_pack(void)
{
    const dsv2_pack_options options = {.struct_size = sizeof options, .weight_type = DSV2_WEIGHTS_Q8_0, .n_threads = 1};
    return dsv2_model_pack(pack_from, path, &options);
}

static dsv2_status verify(void) { return dsv2_model_verify(path, NULL, NULL); }

static dsv2_status open_tokenizer(void)
{
    dsv2_tokenizer *tokenizer;
    dsv2_status status = dsv2_tokenizer_open(model_folder, &tokenizer);
    if (status == DSV2_OK)
        dsv2_tokenizer_close(tokenizer);
    return status;
}

/* What the file at `path` is before the operation, and what becomes of it. */
typedef enum file_use { NO_FILE, READS_SNAPSHOT, READS_PACK, WRITES_SNAPSHOT, WRITES_PACK } file_use;

typedef struct operation {
    const char *name;
    dsv2_status (*run)(void);
    void (*check)(bool ok);
    file_use use;
    bool replaces; /* writing: a file is there */
} operation;

static const operation operations[] = {
    {"open a folder", open_folder, no_check, NO_FILE, false},
    {"open a folder, 3 threads", open_with_threads, no_check, NO_FILE, false},
    {"open a folder, read", open_by_reading, no_check, NO_FILE, false},
    {"open a GGUF", open_gguf, no_check, NO_FILE, false},
    {"open a pack", open_pack, no_check, READS_PACK, false},
    {"open a tokenizer", open_tokenizer, no_check, NO_FILE, false},
    {"open a session", open_session, no_check, NO_FILE, false},
    {"feed", feed, check_fed, NO_FILE, false},
    {"save a new file", save, no_check, WRITES_SNAPSHOT, false},
    {"save over a file", save, no_check, WRITES_SNAPSHOT, true},
    {"append to no file", append, no_check, WRITES_SNAPSHOT, false},
    {"append", append, no_check, WRITES_SNAPSHOT, true},
    {"save to a callback", save_to, check_sent, NO_FILE, false},
    {"restore", restore, check_restored, READS_SNAPSHOT, false},
    {"restore from a callback", restore_from, check_restored, NO_FILE, false},
    {"inspect a snapshot", inspect, no_check, READS_SNAPSHOT, false},
    {"pack a folder", write_pack, no_check, WRITES_PACK, false},
    {"pack over a file", write_pack, no_check, WRITES_PACK, true},
    {"pack a GGUF", write_pack, no_check, WRITES_PACK, false},
    {"verify a pack", verify, no_check, READS_PACK, false},
};
enum { N_OPERATIONS = sizeof operations / sizeof *operations };

static const bytes nothing = {NULL, 0};

/* What is at `path` before. */
static bytes before(const operation *o)
{
    switch (o->use) {
    case NO_FILE: return nothing;
    case READS_SNAPSHOT: return snapshot;
    case READS_PACK: return pack;
    case WRITES_SNAPSHOT: return o->replaces ? snapshot : nothing;
    case WRITES_PACK: return o->replaces ? snapshot : nothing;
    }
    return nothing;
}

static bytes packed; /* what the operation writes without a fault */

/* The file at `path` is the old or the new one, and whole; after success the new one. */
static void check_file(const operation *o, bool ok)
{
    if (o->use == WRITES_SNAPSHOT) {
        size_t n = restored();
        CHECK(ok ? n == LENGTH : n == LENGTH || n == (o->replaces ? SOME : 0));
        return;
    }
    bytes now = read_path();
    if (o->use == WRITES_PACK)
        CHECK((!ok && same_bytes(now, before(o))) || same_bytes(now, packed));
    else
        CHECK(same_bytes(now, before(o)));
    free(now.data);
}

/* ---- faults ---- */

/* Failures that the library may pass over, since the operation does all the same: what is asked for as a favour, what
 * looks for left-over files, what falls back to another way. The result is checked as after any success. */
static bool may_go_on(const operation *o, const fault_plan *plan, const fault_report *report)
{
    if (report->on_system) /* what the system does not tell is not known */
        return true;
    switch (plan->call) {
    case FAULT_pwrite:
    case FAULT_rename:
    case FAULT_fdatasync:
    case FAULT_ftruncate:
    case FAULT_malloc:
    case FAULT_realloc:
    case FAULT_posix_memalign:
    case FAULT_calloc: return false;
    case FAULT_fsync: return report->on_folder && !plan->every;
    case FAULT_fstat: return o->use == WRITES_SNAPSHOT || o->use == WRITES_PACK; /* whether a new file was removed */
    case FAULT_pread: /* appending falls back to writing anew; what kind of file it is, is asked in turns */
        return (o->use == WRITES_SNAPSHOT && o->replaces) || o->use == READS_PACK;
    case FAULT_open: return report->on_folder || o->use != NO_FILE;
    default: return true;
    }
}

static uint64_t pages_in_use(void)
{
    dsv2_memory_info info = {.struct_size = sizeof info};
    OK(dsv2_model_get_memory(model, &info));
    return info.pages_in_use;
}

typedef struct tally {
    size_t runs, failed, went_on;
} tally;

static void prepare(const operation *o)
{
    write_path(before(o));
    OK(dsv2_session_fork(session, LENGTH, &work));
}

/* One run of the operation under the plan; false if the plan's call did not come. */
static bool run(const operation *o, const fault_plan *plan, tally *t)
{
    snprintf(at, sizeof at, "%s, %s number %zu%s: effect %d, %s", o->name,
             plan->any_call ? "call" : fault_names[plan->call], plan->nth, plan->every ? " and all later" : "",
             (int)plan->effect, plan->error != 0 ? strerror(plan->error) : "no error");
    prepare(o);
    size_t descriptors = count_descriptors(), pages = pages_in_use();
    faults_arm(plan);
    dsv2_status status = o->run();
    fault_report report = faults_disarm();
    CHECK(count_descriptors() == descriptors);
    bool hit = report.hits > 0, ok = status == DSV2_OK;
    bool harmless = plan->effect == FAULT_SHORT || plan->error == EINTR;
    CHECK(!harmless || ok);
    CHECK(ok || hit);
    CHECK(ok || pages_in_use() <= pages + 1); /* a fork may have got a copy of its own of the last page */
    CHECK(!ok || !hit || harmless || may_go_on(o, plan, &report));
    if (!ok && plan->error == ENOMEM && (plan->call >= FAULT_malloc || plan->call == FAULT_mmap))
        CHECK(status == DSV2_ERROR_MEMORY);
    o->check(ok);
    check_file(o, ok);
    size_t left = count_temporaries();
    CHECK(left == 0 || (plan->call == FAULT_unlink && left == 1));
    assert_holds(session, LENGTH);
    dsv2_session_close(work);
    /* It works again, and what was left behind goes: an append that finds a file to append to leaves that alone. */
    if (hit && !ok) {
        OK(dsv2_session_fork(session, LENGTH, &work));
        OK(o->run());
        o->check(true);
        check_file(o, true);
        dsv2_session_close(work);
        if (left > 0 && (o->use == WRITES_PACK || o->use == WRITES_SNAPSHOT)) {
            OK(o->use == WRITES_PACK ? write_pack() : save());
            CHECK(count_temporaries() == 0);
        }
    }
    t->runs += hit;
    t->failed += hit && !ok;
    t->went_on += hit && ok;
    return hit;
}

static const int open_errors[] = {EACCES, EMFILE, ENOMEM, 0}, read_errors[] = {EIO, 0},
                 write_errors[] = {ENOSPC, EIO, EDQUOT, EFBIG, 0}, flush_errors[] = {EIO, ENOSPC, 0},
                 look_errors[] = {EACCES, EIO, 0}, lock_errors[] = {ENOLCK, EWOULDBLOCK, 0},
                 rename_errors[] = {EACCES, ENOSPC, 0}, map_errors[] = {ENOMEM, ENODEV, 0},
                 refusals[] = {EPERM, 0}, no_memory[] = {ENOMEM, 0}, too_many[] = {EAGAIN, 0};

static const int *const errors[FAULT_N_CALLS] = {
    [FAULT_open] = open_errors, [FAULT_close] = read_errors, [FAULT_stat] = look_errors, [FAULT_lstat] = look_errors,
    [FAULT_fstat] = read_errors, [FAULT_readlink] = read_errors, [FAULT_faccessat] = look_errors,
    [FAULT_opendir] = open_errors, [FAULT_readdir] = read_errors, [FAULT_pread] = read_errors,
    [FAULT_pwrite] = write_errors, [FAULT_ftruncate] = flush_errors, [FAULT_fsync] = flush_errors,
    [FAULT_fdatasync] = flush_errors, [FAULT_flock] = lock_errors, [FAULT_fchown] = refusals,
    [FAULT_fchmod] = refusals, [FAULT_rename] = rename_errors, [FAULT_unlink] = rename_errors,
    [FAULT_mmap] = map_errors, [FAULT_madvise] = no_memory, [FAULT_malloc] = no_memory, [FAULT_calloc] = no_memory,
    [FAULT_realloc] = no_memory, [FAULT_posix_memalign] = no_memory, [FAULT_pthread_create] = too_many,
};

static bool is_allocation(fault_call call) { return call >= FAULT_malloc && call != FAULT_pthread_create; }

static bool is_transfer(fault_call call) { return call == FAULT_pread || call == FAULT_pwrite; }

static bool is_interruptible(fault_call call)
{
    return call == FAULT_open || is_transfer(call) || call == FAULT_fsync || call == FAULT_fdatasync ||
           call == FAULT_ftruncate;
}

/* Every plan for one kind of call; unless `all`, each call fails with one error of those that fit, and of long rows of
 * calls a part fails that changes from run to run. */
static void fail_each(const operation *o, fault_call call, size_t n, bool all, tally *t)
{
    size_t step = all || n <= 20 ? 1 : n / 10, first = 1 + (size_t)getpid() % step, n_errors = 0;
    while (errors[call][n_errors] != 0)
        n_errors++;
    for (size_t nth = first; nth <= n; nth += step) {
        fault_plan plan = {.call = call, .nth = nth};
        for (size_t e = all ? 0 : nth % n_errors; e < (all ? n_errors : nth % n_errors + 1); e++) {
            plan.error = errors[call][e];
            plan.every = false;
            run(o, &plan, t);
            plan.every = true;
            run(o, &plan, t);
        }
        if (is_interruptible(call))
            run(o, &(fault_plan){.call = call, .nth = nth, .error = EINTR}, t);
        if (is_transfer(call))
            run(o, &(fault_plan){.call = call, .nth = nth, .effect = FAULT_SHORT}, t);
    }
    if (is_interruptible(call) && n > 0)
        run(o, &(fault_plan){.call = call, .nth = 1, .every = true, .alternates = true, .error = EINTR}, t);
    if (is_transfer(call) && n > 0)
        run(o, &(fault_plan){.call = call, .nth = 1, .every = true, .effect = FAULT_SHORT}, t);
}

static void end_each(const operation *o, fault_call call, size_t n, bool all, tally *t)
{
    for (size_t nth = 1; nth <= n; nth += all || n <= 20 ? 1 : n / 10)
        run(o, &(fault_plan){.call = call, .nth = nth, .effect = FAULT_ENDS}, t);
}

static void set_up(void)
{
    const char *parent = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/dsv2-faults-XXXXXX", parent != NULL ? parent : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/file", folder);
    snprintf(gguf_path, sizeof gguf_path, "%s/model.gguf", folder);
    model_folder = test_checkpoint_write(&shape);
    test_gguf_write(&(test_gguf){.seed = 1}, model_folder, gguf_path, NULL);
    static const char *const names[] = {"tokenizer.json", "tokenizer_config.json"};
    for (size_t i = 0; i < 2; i++) {
        size_t size;
        char *text = test_read_file(test_format("%s/bytes/%s", TEST_DATA, names[i]), &size);
        test_write_file(test_format("%s/%s", model_folder, names[i]), text, size);
        free(text);
    }
    test_random_tokens(7, VOCAB, tokens, CONTEXT);
    OK(dsv2_model_open(model_folder, &one_thread, &model));
    make_reference();
    OK(dsv2_session_open(model, &absorbed, &session));
    OK(dsv2_session_feed(session, tokens, SOME));
    OK(save());
    snapshot = read_path();
    OK(dsv2_session_feed(session, tokens + SOME, LENGTH - SOME));
    OK(save());
    long_snapshot = read_path();
    pack_from = model_folder;
    OK(dsv2_model_pack(model_folder, path, NULL));
    pack = read_path();
    ck_assert_int_eq(unlink(path), 0);
}

static void tear_down(void)
{
    dsv2_session_close(session);
    dsv2_model_close(model);
    free(snapshot.data);
    free(long_snapshot.data);
    free(pack.data);
    (void)unlink(path);
    ck_assert_int_eq(unlink(gguf_path), 0);
    ck_assert_int_eq(rmdir(folder), 0);
    test_checkpoint_remove(model_folder);
}

START_TEST(every_call_below_the_library_may_fail)
{
    const operation *o = &operations[_i];
    bool all = getenv("DSV2_TEST_ALL") != NULL;
    tally transfers = {0, 0, 0}, calls = {0, 0, 0}, allocations = {0, 0, 0};
    pack_from = strcmp(o->name, "pack a GGUF") == 0 ? gguf_path : model_folder;
    prepare(o);
    faults_arm(NULL);
    OK(o->run());
    fault_report report = faults_disarm();
    dsv2_session_close(work);
    packed = o->use == WRITES_PACK ? read_path() : nothing;
    printf("%s:", o->name);
    for (fault_call call = 0; call < FAULT_N_CALLS; call++) {
        size_t n = report.seen[call];
        if (n > 0)
            printf(" %s %zu", fault_names[call], n);
        fail_each(o, call, n, all, is_allocation(call) ? &allocations : is_transfer(call) ? &transfers : &calls);
        if (is_transfer(call))
            end_each(o, call, n, all, &transfers);
    }
    printf("\n    allocations: %zu runs, %zu errors; transfers: %zu, %zu errors, %zu went on; other calls: %zu, %zu "
           "errors, %zu went on\n", allocations.runs, allocations.failed, transfers.runs, transfers.failed,
           transfers.went_on, calls.runs, calls.failed, calls.went_on);
    ck_assert_uint_eq(allocations.went_on, 0);
    ck_assert(allocations.runs + calls.runs > 0);
    free(packed.data);
}
END_TEST

/* ---- kill -9 ---- */

/* Starts the operation in a process of its own, which the plan, if any, ends at one of its calls. */
static pid_t start(const operation *o, const fault_plan *plan)
{
    prepare(o);
    dsv2_session_close(work);
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child > 0)
        return child;
    if (plan != NULL)
        faults_arm(plan);
    _exit(o->run() == DSV2_OK ? 0 : 1);
}

static bool was_killed(pid_t child)
{
    int status;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    CHECK(WIFSIGNALED(status) ? WTERMSIG(status) == SIGKILL : WIFEXITED(status) && WEXITSTATUS(status) == 0);
    return WIFSIGNALED(status);
}

/* The file is the old or the new one, nobody holds a lock, and the next save removes what was left. */
static void check_after_kill(const operation *o, tally *t)
{
    check_file(o, false);
    size_t left = count_temporaries();
    CHECK(left <= 1);
    t->failed += left; /* the tally's column for what stayed */
    OK(o->run());
    check_file(o, true);
    if (o->run == append && left > 0)
        OK(save());
    CHECK(count_temporaries() == 0);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

START_TEST(a_process_killed_while_writing_leaves_the_old_file_or_the_new)
{
    const operation *o = &operations[_i];
    bool all = getenv("DSV2_TEST_ALL") != NULL;
    if (o->use != WRITES_SNAPSHOT && o->use != WRITES_PACK)
        return;
    pack_from = strcmp(o->name, "pack a GGUF") == 0 ? gguf_path : model_folder;
    prepare(o);
    faults_arm(NULL);
    OK(o->run());
    size_t n = faults_disarm().all;
    dsv2_session_close(work);
    packed = o->use == WRITES_PACK ? read_path() : nothing;
    tally at_calls = {0, 0, 0}, at_random = {0, 0, 0};
    for (size_t nth = 1; nth <= n; nth += all || n <= 50 ? 1 : 5)
        for (int effect = FAULT_KILLS; effect <= FAULT_KILLS_AFTER; effect++) {
            const fault_plan plan = {.any_call = true, .nth = nth, .effect = (fault_effect)effect};
            snprintf(at, sizeof at, "%s, killed %s call %zu", o->name, effect == FAULT_KILLS ? "before" : "in", nth);
            CHECK(was_killed(start(o, &plan)));
            at_calls.runs++;
            check_after_kill(o, &at_calls);
        }
    snprintf(at, sizeof at, "%s, not killed", o->name);
    double begun = now(), whole;
    for (int i = 0; i < 5; i++)
        ck_assert(!was_killed(start(o, NULL)));
    whole = (now() - begun) / 5;
    uint64_t seed = (uint64_t)time(NULL);
    for (size_t i = 0, rounds = all ? 1000 : 25; i < rounds; i++) {
        const struct timespec moment = {.tv_nsec = (long)(1e9 * whole * test_random(&seed)) % 1000000000};
        snprintf(at, sizeof at, "%s, killed after %ld ns (seed %llu)", o->name, moment.tv_nsec,
                 (unsigned long long)seed);
        pid_t child = start(o, NULL);
        (void)nanosleep(&moment, NULL);
        (void)kill(child, SIGKILL);
        at_random.runs += was_killed(child);
        check_after_kill(o, &at_random);
    }
    printf("%s: killed at %zu calls, %zu temporary files left and removed; at random %zu, %zu left and removed\n",
           o->name, at_calls.runs, at_calls.failed, at_random.runs, at_random.failed);
    free(packed.data);
}
END_TEST

int main(int argc, char **argv)
{
    Suite *suite = suite_create("faults");
    TCase *tests = tcase_create("faults");
    tcase_set_timeout(tests, 600);
    tcase_add_checked_fixture(tests, set_up, tear_down);
    int first = argc > 1 ? atoi(argv[1]) : 0, end = argc > 1 ? first + 1 : N_OPERATIONS;
    tcase_add_loop_test(tests, every_call_below_the_library_may_fail, first, end);
    tcase_add_loop_test(tests, a_process_killed_while_writing_leaves_the_old_file_or_the_new, first, end);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}

/* What saving and packing do to files: to permissions, links, what is no file, what a dead process left, what a later
 * version wrote, and what is damaged or replaced while somebody appends to it. */
#include <dsv2/dsv2.h>

#include "support/checkpoint.h"
#include "support/model.h"
#include "support/run.h"
#include "support/snapshot_file.h"
#include "support/tensors.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { VOCAB = 61, CONTEXT = 200 };

static const test_checkpoint shape = {
    .vocab_size = VOCAB, .hidden_size = 16, .intermediate_size = 16, .num_hidden_layers = 2, .num_attention_heads = 1,
    .kv_lora_rank = 16, .qk_nope_head_dim = 8, .qk_rope_head_dim = 8, .v_head_dim = 8,
    .max_position_embeddings = CONTEXT, .seed = 42,
};

static char *model_folder, folder[512], path[600], other[600];
static dsv2_model *model;
static int32_t tokens[CONTEXT];

#define OK(call) ck_assert_msg((call) == DSV2_OK, "%s: %s", #call, dsv2_last_error())
#define FAILS_WITH(expected, call)                                                                                     \
    do {                                                                                                               \
        dsv2_status got_status = (call);                                                                               \
        ck_assert_msg(got_status == (expected), "%s gave %s, expected %s (%s)", #call, dsv2_status_name(got_status),   \
                      dsv2_status_name(expected), dsv2_last_error());                                                  \
    } while (0)

static void set_up(void)
{
    model_folder = test_checkpoint_write(&shape);
    const char *parent = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/dsv2-saved-XXXXXX", parent != NULL ? parent : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/conversation", folder);
    snprintf(other, sizeof other, "%s/another", folder);
    test_random_tokens(7, VOCAB, tokens, CONTEXT);
    model = test_model_open(model_folder, &(dsv2_model_options){.n_threads = 1});
}

/* Files in the folder that are no temporary ones, and those that are. */
static void count_files(size_t *named, size_t *temporary)
{
    DIR *d = opendir(folder);
    ck_assert_ptr_nonnull(d);
    *named = *temporary = 0;
    for (struct dirent *e; (e = readdir(d)) != NULL;)
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            *(strstr(e->d_name, ".dsv2tmp") != NULL ? temporary : named) += 1;
    closedir(d);
}

static void assert_files(size_t named, size_t temporary)
{
    size_t n, t;
    count_files(&n, &t);
    ck_assert_msg(n == named && t == temporary, "%zu files and %zu temporary ones, expected %zu and %zu", n, t, named,
                  temporary);
}

static void tear_down(void)
{
    dsv2_model_close(model);
    DIR *d = opendir(folder);
    for (struct dirent *e; (e = readdir(d)) != NULL;)
        unlinkat(dirfd(d), e->d_name, 0);
    closedir(d);
    ck_assert_int_eq(rmdir(folder), 0);
    test_checkpoint_remove(model_folder);
}

/* The absorbed form: its bits do not depend on how the tokens were cut. */
static dsv2_session *fed(size_t n)
{
    const dsv2_session_options options = {.struct_size = sizeof options, .attention = DSV2_ATTENTION_ABSORBED};
    dsv2_session *session = test_session_open(model, &options);
    if (n > 0)
        OK(dsv2_session_feed(session, tokens, n));
    return session;
}

/* A snapshot is there that holds the first n tokens. */
static void assert_restores(const char *name, size_t n)
{
    dsv2_session *session = fed(1), *fresh = fed(n);
    int32_t held[CONTEXT];
    const float *got, *expected;
    size_t length;
    OK(dsv2_session_restore(session, name, NULL, NULL));
    OK(dsv2_session_tokens(session, held, CONTEXT, &length));
    ck_assert_uint_eq(length, n);
    ck_assert_mem_eq(held, tokens, n * sizeof *held);
    OK(dsv2_session_feed(session, tokens + n, 1));
    OK(dsv2_session_feed(fresh, tokens + n, 1));
    OK(dsv2_session_logits(session, &got));
    OK(dsv2_session_logits(fresh, &expected));
    ck_assert_mem_eq(got, expected, VOCAB * sizeof *got);
    dsv2_session_close(session);
    dsv2_session_close(fresh);
}

static const dsv2_save_options append = {.struct_size = sizeof append, .append = 1};

static uint8_t *read_file(const char *name, size_t *size) { return (uint8_t *)test_read_file(name, size); }

/* ---- appending to what is damaged, newer or gone ---- */

/* Attack 2: append compared checksums in headers with the session, never the stored bytes. */
START_TEST(append_says_ok_on_a_damaged_snapshot_only_if_it_restores_afterwards)
{
    dsv2_session *session = fed(3);
    OK(dsv2_session_save(session, path, NULL));
    OK(dsv2_session_feed(session, tokens + 3, 70));
    OK(dsv2_session_save(session, path, &append));
    size_t size, n_refused = 0, n_after;
    uint8_t *whole = read_file(path, &size);
    OK(dsv2_session_feed(session, tokens + 73, 2));
    for (size_t at = 0; at < size; at++) {
        whole[at] ^= (uint8_t)(1u << at % 8);
        test_write_file(path, whole, size);
        whole[at] ^= (uint8_t)(1u << at % 8);
        if (dsv2_session_save(session, path, &append) != DSV2_OK) { /* it may be a later version's */
            n_refused++;
            uint8_t *after = read_file(path, &n_after);
            ck_assert(n_after == size && memcmp(after, whole, at) == 0 && after[at] != whole[at]);
            free(after);
            continue;
        }
        dsv2_session *restored = test_session_open(model, NULL);
        ck_assert_msg(dsv2_session_restore(restored, path, NULL, &n_after) == DSV2_OK && n_after == 75,
                      "a bit of byte %zu of %zu: %zu tokens: %s", at, size, n_after, dsv2_last_error());
        dsv2_session_close(restored);
    }
    ck_assert_uint_le(n_refused, 4); /* the four bytes of the version */
    assert_restores(path, 75);
    assert_files(1, 0);
    free(whole);
    dsv2_session_close(session);
}
END_TEST

enum { SAVE_AT = 128, STATE_AT = SAVE_AT + 64, FRAME_AT = STATE_AT + 72 + 4 * VOCAB + 5 * 4 + 16 };

/* B14: what a later version may do with the format, in a snapshot of 5 tokens. */
static const struct {
    size_t at;
    uint8_t value;
    const char *message;
} later[] = {
    {8, 3, "snapshot version 3, this library reads 2"},
    {11, 1, "snapshot version 16777218"},
    {12, 5, "cache type 5"},
    {56, 1, "row 1"},
    {60, 1, "a field"},
    {111, 0x80, "a field"},
    {SAVE_AT + 12, 3, "flags 3"},
    {SAVE_AT + 15, 0x80, "flags 2147483649"},
    {SAVE_AT + 40, 1, "reserved bytes 1"},
    {SAVE_AT + 47, 1, "reserved bytes 100000000000000"},
    {FRAME_AT + 4, 2, "encoding 2"},
    {FRAME_AT + 20, 1, "was written by a later version"},
    {FRAME_AT + 23, 1, "was written by a later version"},
};

START_TEST(a_later_versions_snapshot_is_unsupported_by_name_and_append_leaves_it_alone)
{
    dsv2_session *session = fed(5);
    size_t size, n_after;
    OK(dsv2_session_save(session, path, NULL));
    uint8_t *bytes = read_file(path, &size);
    ck_assert(memcmp(bytes + FRAME_AT, "ROWS", 4) == 0);
    bytes[later[_i].at] = later[_i].value;
    snapshot_file_seal(bytes, size, VOCAB);
    test_write_file(path, bytes, size);
    FAILS_WITH(DSV2_ERROR_UNSUPPORTED, dsv2_session_restore(session, path, NULL, NULL));
    ck_assert_msg(strstr(dsv2_last_error(), later[_i].message) != NULL && strstr(dsv2_last_error(), path) != NULL,
                  "\"%s\" is not in: %s", later[_i].message, dsv2_last_error());
    OK(dsv2_session_feed(session, tokens + 5, 1));
    FAILS_WITH(DSV2_ERROR_UNSUPPORTED, dsv2_session_save(session, path, &append));
    ck_assert_ptr_nonnull(strstr(dsv2_last_error(), later[_i].message));
    uint8_t *after = read_file(path, &n_after);
    ck_assert(n_after == size && memcmp(after, bytes, size) == 0);
    dsv2_snapshot_info info = {.struct_size = sizeof info};
    FAILS_WITH(DSV2_ERROR_UNSUPPORTED, dsv2_snapshot_inspect(path, &info));
    OK(dsv2_session_save(session, path, NULL)); /* who asks for it gets it */
    assert_restores(path, 6);
    free(after);
    free(bytes);
    dsv2_session_close(session);
}
END_TEST

typedef struct replacement {
    dsv2_session *with;
    int times, calls;
} replacement;

/* Another save comes between an append's bytes and its end. */
static int replace_meanwhile(void *user, dsv2_phase phase, uint64_t done, uint64_t total)
{
    replacement *r = user;
    (void)phase;
    if (done == total && r->calls++ < r->times)
        OK(dsv2_session_save(r->with, path, NULL));
    return 0;
}

/* B13, attack 8: the append went to a file that no longer had a name, and returned OK. */
START_TEST(an_append_whose_file_is_replaced_meanwhile_is_not_lost)
{
    static const size_t others[] = {2, 3, 90}; /* to append to, and not */
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        for (int times = 0; times < 7; times++) {
            dsv2_session *session = fed(3), *another = fed(others[i]);
            OK(dsv2_session_save(session, path, NULL));
            OK(dsv2_session_feed(session, tokens + 3, 10));
            replacement r = {another, times, 0};
            dsv2_save_options options = append;
            options.progress = replace_meanwhile;
            options.progress_user = &r;
            OK(dsv2_session_save(session, path, &options));
            assert_restores(path, 13);
            assert_files(1, 0);
            dsv2_session_close(session);
            dsv2_session_close(another);
        }
}
END_TEST

START_TEST(an_append_to_a_file_that_another_appends_to_is_refused)
{
    dsv2_session *session = fed(3);
    OK(dsv2_session_save(session, path, NULL));
    int fd = open(path, O_RDWR);
    ck_assert_int_eq(flock(fd, LOCK_EX | LOCK_NB), 0);
    FAILS_WITH(DSV2_ERROR_IO, dsv2_session_save(session, path, &append));
    ck_assert_ptr_nonnull(strstr(dsv2_last_error(), "another session"));
    close(fd);
    OK(dsv2_session_save(session, path, &append));
    dsv2_session_close(session);
}
END_TEST

/* ---- permissions, links, folders ---- */

static mode_t mode_of(const char *name)
{
    struct stat status;
    ck_assert_int_eq(stat(name, &status), 0);
    return status.st_mode & 07777;
}

static dsv2_status write_somehow(int way, dsv2_session *session, const char *name)
{
    return way == 0   ? dsv2_session_save(session, name, NULL)
           : way == 1 ? dsv2_session_save(session, name, &append)
                      : dsv2_model_pack(model_folder, name, NULL);
}
enum { WAYS = 3 };

/* B5: new files were 0644 whatever the umask said. */
START_TEST(new_files_follow_the_umask_and_old_ones_keep_their_mode)
{
    static const mode_t umasks[] = {077, 022, 027, 0, 0177};
    static const mode_t modes[] = {0600, 0644, 0666, 0660, 0200 | 0400};
    dsv2_session *session = fed(3);
    for (size_t i = 0; i < sizeof umasks / sizeof *umasks; i++) {
        mode_t before = umask(umasks[i]);
        OK(write_somehow(_i, session, path));
        ck_assert_uint_eq(mode_of(path), 0666 & ~umasks[i]);
        for (size_t m = 0; m < sizeof modes / sizeof *modes; m++) {
            ck_assert_int_eq(chmod(path, modes[m]), 0);
            OK(write_somehow(_i, session, path));
            ck_assert_uint_eq(mode_of(path), modes[m]);
        }
        ck_assert_uint_eq(umask(before), umasks[i]);
        unlink(path);
    }
    dsv2_session_close(session);
}
END_TEST

/* Attack 5: a save replaced a link and left its target old. */
START_TEST(a_link_is_kept_and_its_target_is_written)
{
    dsv2_session *session = fed(3);
    char link[600], chain[600], inside[700];
    struct stat status;
    snprintf(link, sizeof link, "%s/link", folder);
    snprintf(chain, sizeof chain, "%s/chain", folder);
    snprintf(inside, sizeof inside, "%s/deep", folder);
    ck_assert_int_eq(mkdir(inside, 0755), 0);
    snprintf(inside, sizeof inside, "%s/deep/file", folder);
    const char *const targets[] = {"another", other, "deep/file", inside};
    const char *const files[] = {other, other, inside, inside};
    for (size_t i = 0; i < sizeof targets / sizeof *targets; i++)
        for (int there = 0; there < 2; there++) { /* a link to nothing makes its target */
            ck_assert_int_eq(symlink(targets[i], link), 0);
            ck_assert_int_eq(symlink("link", chain), 0);
            if (there)
                OK(dsv2_session_save(session, files[i], NULL));
            OK(write_somehow(_i, session, chain));
            ck_assert(lstat(chain, &status) == 0 && S_ISLNK(status.st_mode));
            ck_assert(lstat(link, &status) == 0 && S_ISLNK(status.st_mode));
            ck_assert(lstat(files[i], &status) == 0 && S_ISREG(status.st_mode));
            if (_i < 2)
                assert_restores(files[i], 3);
            else
                OK(dsv2_model_verify(files[i], NULL, NULL));
            unlink(link), unlink(chain), unlink(files[i]);
        }
    /* A link to what cannot be written through. */
    ck_assert_int_eq(symlink("chain", link), 0);
    ck_assert_int_eq(symlink("link", chain), 0);
    FAILS_WITH(DSV2_ERROR_IO, write_somehow(_i, session, chain));
    unlink(link);
    ck_assert_int_eq(symlink("nowhere/file", link), 0);
    FAILS_WITH(DSV2_ERROR_IO, write_somehow(_i, session, chain));
    unlink(link);
    ck_assert_int_eq(symlink("deep", link), 0);
    FAILS_WITH(DSV2_ERROR_IO, write_somehow(_i, session, chain));
    unlink(link);
    ck_assert_int_eq(mkfifo(other, 0600), 0);
    ck_assert_int_eq(symlink("another", link), 0);
    FAILS_WITH(DSV2_ERROR_IO, write_somehow(_i, session, chain));
    ck_assert(lstat(other, &status) == 0 && S_ISFIFO(status.st_mode));
    /* What only the kernel can follow: /proc's link to a file that was deleted, and to a pipe. */
    int gone = open(path, O_RDWR | O_CREAT, 0600), pipes[2];
    unlink(path);
    ck_assert_int_eq(pipe(pipes), 0);
    FAILS_WITH(DSV2_ERROR_IO, write_somehow(_i, session, test_format("/proc/self/fd/%d", gone)));
    FAILS_WITH(DSV2_ERROR_IO, write_somehow(_i, session, test_format("/proc/self/fd/%d", pipes[1])));
    close(gone), close(pipes[0]), close(pipes[1]);
    snprintf(inside, sizeof inside, "%s/deep", folder);
    ck_assert_int_eq(rmdir(inside), 0);
    assert_files(3, 0);
    dsv2_session_close(session);
}
END_TEST

START_TEST(a_file_that_nobody_may_write_is_refused)
{
    dsv2_session *session = fed(3), *longer = fed(5);
    OK(dsv2_session_save(session, path, NULL));
    ck_assert_int_eq(chmod(path, 0444), 0);
    FAILS_WITH(DSV2_ERROR_IO, write_somehow(_i, longer, path));
    ck_assert_msg(strstr(dsv2_last_error(), "cannot write: Permission denied") != NULL, "%s", dsv2_last_error());
    ck_assert_uint_eq(mode_of(path), 0444);
    assert_restores(path, 3);
    assert_files(1, 0);
    dsv2_session_close(session);
    dsv2_session_close(longer);
}
END_TEST

/* Runs `what` in a child, as a user without privileges where the tests run as root; the child's assertions end it. */
static void as_nobody(void (*what)(void))
{
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        if (geteuid() == 0 && (setgid(65534) != 0 || setuid(65534) != 0))
            _exit(3);
        what();
        _exit(0);
    }
    int status;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child ended with status %x", (unsigned)status);
}

static void save_twice_in_a_folder_without_read_permission(void)
{
    dsv2_session *session = fed(3);
    for (int i = 0; i < 2; i++)
        if (dsv2_session_save(session, path, i == 0 ? NULL : &append) != DSV2_OK ||
            dsv2_session_save(session, path, NULL) != DSV2_OK) {
            fprintf(stderr, "%s\n", dsv2_last_error());
            _exit(1);
        }
    dsv2_session_close(session);
}

/* B5's neighbour: the file was there and whole, and the call gave an error. */
START_TEST(saved_is_saved_in_a_folder_that_may_not_be_read)
{
    ck_assert_int_eq(chmod(folder, 0333), 0);
    as_nobody(save_twice_in_a_folder_without_read_permission);
    ck_assert_int_eq(chmod(folder, 0755), 0);
    ck_assert_int_eq(chmod(path, 0666), 0);
    assert_restores(path, 3);
    assert_files(1, 0);
}
END_TEST

/* ---- limits and what is left over ---- */

static sig_atomic_t n_caught;
static void catch_limit(int number)
{
    (void)number;
    n_caught++;
}

/* Asserts nothing: Check writes to a file of its own, which the limit would hit. */
static dsv2_status write_limited(int way, dsv2_session *session, size_t size)
{
    struct rlimit none, limit;
    getrlimit(RLIMIT_FSIZE, &none);
    limit = none;
    limit.rlim_cur = size;
    setrlimit(RLIMIT_FSIZE, &limit);
    dsv2_status status = write_somehow(way, session, path);
    setrlimit(RLIMIT_FSIZE, &none);
    return status;
}

/* Attack 11: SIGXFSZ ended the host, and the temporary file stayed. The test's process has the signal's default action,
 * which ends it. */
START_TEST(a_limit_on_the_size_of_files_is_an_error_and_no_signal)
{
    dsv2_session *session = fed(3);
    OK(dsv2_session_save(session, path, NULL));
    OK(dsv2_session_feed(session, tokens + 3, 60));
    sigset_t before, after, pending;
    pthread_sigmask(SIG_SETMASK, NULL, &before);
    for (int handled = 0; handled < 2; handled++) {
        signal(SIGXFSZ, handled ? catch_limit : SIG_DFL);
        for (size_t size = 1; size < 1000; size += 331) {
            FAILS_WITH(DSV2_ERROR_IO, write_limited(_i, session, size));
            ck_assert_ptr_nonnull(strstr(dsv2_last_error(), "File too large"));
            sigpending(&pending);
            pthread_sigmask(SIG_SETMASK, NULL, &after);
            ck_assert(!sigismember(&pending, SIGXFSZ) && !sigismember(&after, SIGXFSZ));
            assert_files(1, 0);
        }
    }
    ck_assert_int_eq(n_caught, 0);
    signal(SIGXFSZ, SIG_DFL);
    assert_restores(path, 3);
    OK(write_somehow(_i, session, path));
    dsv2_session_close(session);
}
END_TEST

static void make_file(const char *name, const char *text)
{
    test_write_file(test_format("%s/%s", folder, name), text, strlen(text));
}

/* Attack 11: 200 kills while packing left 130 files. */
START_TEST(what_a_dead_process_left_is_removed_and_nothing_else)
{
    dsv2_session *session = fed(3);
    static const char *const dead[] = {"conversation.abc123.dsv2tmp", "conversation.ZZZZZZ.dsv2tmp"};
    static const char *const others[] = {"conversation.abc12.dsv2tmp", "conversation.abc1234.dsv2tmp",
                                         "conversation.abc-23.dsv2tmp", "another.abc123.dsv2tmp",
                                         "xconversation.abc123.dsv2tmp", "conversation.abc123.dsv2tmp2",
                                         "conversation.abc123"};
    enum { OTHERS = sizeof others / sizeof *others };
    for (size_t i = 0; i < 2; i++)
        make_file(dead[i], "left over");
    for (size_t i = 0; i < OTHERS; i++)
        make_file(others[i], "not ours");
    /* One that a living process writes, and a link. */
    make_file("conversation.living.dsv2tmp", "");
    int living = open(test_format("%s/conversation.living.dsv2tmp", folder), O_RDWR);
    ck_assert_int_eq(flock(living, LOCK_EX | LOCK_NB), 0);
    ck_assert_int_eq(symlink("conversation.abc123", test_format("%s/conversation.links1.dsv2tmp", folder)), 0);
    OK(write_somehow(_i, session, path));
    for (size_t i = 0; i < 2; i++)
        ck_assert_int_eq(access(test_format("%s/%s", folder, dead[i]), F_OK), -1);
    for (size_t i = 0; i < OTHERS; i++)
        ck_assert_int_eq(access(test_format("%s/%s", folder, others[i]), F_OK), 0);
    ck_assert_int_eq(access(test_format("%s/conversation.living.dsv2tmp", folder), F_OK), 0);
    ck_assert_int_eq(access(test_format("%s/conversation.links1.dsv2tmp", folder), F_OK), 0);
    close(living);
    OK(dsv2_session_save(session, path, NULL));
    ck_assert_int_eq(access(test_format("%s/conversation.living.dsv2tmp", folder), F_OK), -1);
    dsv2_session_close(session);
}
END_TEST

/* Attack 11: such a snapshot was taken. */
START_TEST(logits_without_a_token_are_refused)
{
    enum { LOGITS = 4 * VOCAB };
    dsv2_session *session = test_session_open(model, NULL);
    size_t size, at = STATE_AT + 72;
    OK(dsv2_session_save(session, path, NULL));
    uint8_t *bytes = read_file(path, &size), *changed = calloc(size + LOGITS + 64, 1);
    memcpy(changed, bytes, at);
    changed[SAVE_AT + 12] = 1;
    size = (at + LOGITS + 16 + 63) / 64 * 64;
    snapshot_file_seal(changed, size, VOCAB);
    test_write_file(path, changed, size);
    FAILS_WITH(DSV2_ERROR_FORMAT, dsv2_session_restore(session, path, NULL, NULL));
    ck_assert_msg(strstr(dsv2_last_error(), "save 0 has logits, but no token") != NULL, "%s", dsv2_last_error());
    free(changed);
    free(bytes);
    dsv2_session_close(session);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("saved files");
    TCase *tests = tcase_create("saved files");
    tcase_set_timeout(tests, 300);
    tcase_add_checked_fixture(tests, set_up, tear_down);
    tcase_add_test(tests, append_says_ok_on_a_damaged_snapshot_only_if_it_restores_afterwards);
    tcase_add_loop_test(tests, a_later_versions_snapshot_is_unsupported_by_name_and_append_leaves_it_alone, 0,
                        sizeof later / sizeof *later);
    tcase_add_test(tests, an_append_whose_file_is_replaced_meanwhile_is_not_lost);
    tcase_add_test(tests, an_append_to_a_file_that_another_appends_to_is_refused);
    tcase_add_loop_test(tests, new_files_follow_the_umask_and_old_ones_keep_their_mode, 0, WAYS);
    tcase_add_loop_test(tests, a_link_is_kept_and_its_target_is_written, 0, WAYS);
    tcase_add_loop_test(tests, a_file_that_nobody_may_write_is_refused, 0, WAYS);
    tcase_add_test(tests, saved_is_saved_in_a_folder_that_may_not_be_read);
    tcase_add_loop_test(tests, a_limit_on_the_size_of_files_is_an_error_and_no_signal, 0, WAYS);
    tcase_add_loop_test(tests, what_a_dead_process_left_is_removed_and_nothing_else, 0, WAYS);
    tcase_add_test(tests, logits_without_a_token_are_refused);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}

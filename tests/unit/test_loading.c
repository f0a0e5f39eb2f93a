/* How weights come into memory: mapped, read or locked to the same bits; what opening says that it takes, and when it
 * refuses. Item by item: a file that shrinks (attack 9), memory of experts that wait for their first use (B14), file
 * systems that refuse mappings, machines that have too little left. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "model/model.h"
#include "support/checkpoint.h"
#include "support/gguf.h"
#include "support/model.h"
#include "support/oom.h"
#include "support/run.h"
#include "support/tensors.h"
#include "weights/deferred.h"

#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fenv.h>
#include <linux/capability.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { N_TOKENS = 12 };

static const test_checkpoint small = {
    .vocab_size = 72, .hidden_size = 256, .intermediate_size = 256, .num_hidden_layers = 3, .num_attention_heads = 4,
    .kv_lora_rank = 256, .qk_nope_head_dim = 32, .qk_rope_head_dim = 16, .v_head_dim = 64,
    .max_position_embeddings = 256, .n_routed_experts = 12, .num_experts_per_tok = 2, .moe_intermediate_size = 64,
    .n_shared_experts = 1, .first_k_dense_replace = 1, .attention_bias = true, .q_lora_rank = 32, .seed = 41};

/* Widths of V2-Lite: a layer's attention, an expert and the shared one. */
static const test_checkpoint lite = {
    .vocab_size = 16, .hidden_size = 2048, .intermediate_size = 1408, .num_hidden_layers = 1,
    .num_attention_heads = 16, .kv_lora_rank = 512, .qk_nope_head_dim = 128, .qk_rope_head_dim = 64, .v_head_dim = 128,
    .max_position_embeddings = 4096, .moe_intermediate_size = 1408, .n_routed_experts = 1, .num_experts_per_tok = 1,
    .n_shared_experts = 1, .first_k_dense_replace = 0, .yarn = true, .seed = 61};

static const struct kind {
    const char *name, *dtype; /* dtype: of a folder */
    bool is_gguf, packed;     /* packed: what was made, as a pack */
    test_gguf gguf;
    dsv2_weight_type packed_as;
} kinds[] = {
    {.name = "a folder of BF16"},
    {.name = "a folder of FP8, with blocks of scales that begin at any row", .dtype = "F8_E4M3"},
    {.name = "a pack of BF16", .packed = true},
    {.name = "a pack of Q4_K", .packed = true, .packed_as = DSV2_WEIGHTS_Q4_K},
    {.name = "a GGUF of Q4_K", .is_gguf = true, .gguf = {.quantised = true, .type = DS_TYPE_Q4_K}},
    {.name = "a GGUF of Q6_K, gate and up joined", .is_gguf = true,
     .gguf = {.quantised = true, .type = DS_TYPE_Q6_K, .joined = true}},
    {.name = "an old GGUF of Q5_1 in two files", .is_gguf = true,
     .gguf = {.quantised = true, .type = DS_TYPE_Q5_1, .old = true, .split = true}},
    {.name = "a GGUF of Q2_K, which no type holds", .is_gguf = true,
     .gguf = {.quantised = true, .type = DS_TYPE_Q2_K}},
    {.name = "a GGUF of BF16", .is_gguf = true, .gguf = {.type = DS_TYPE_BF16}},
};
enum { N_KINDS = sizeof kinds / sizeof *kinds };

/* ---- models ---- */

static char *folder;              /* holds everything */
static char path[600];            /* what is opened */
static char files[2][600];        /* the files of weights */
static size_t n_files;
static int32_t tokens[N_TOKENS];

static char *temporary_folder(void)
{
    char *name = strdup("/tmp/dsv2-loading-XXXXXX");
    ck_assert(mkdtemp(name) != NULL);
    return name;
}

/* Makes `folder`, and in it what is to be opened. */
static void make_shape(const struct kind *kind, test_checkpoint shape)
{
    if (kind->dtype != NULL) {
        shape.dtype = kind->dtype;
        shape.block_rows = 24;
        shape.block_cols = 64;
    }
    folder = test_checkpoint_write(&shape);
    n_files = 1;
    snprintf(path, sizeof path, "%s", folder);
    snprintf(files[0], sizeof files[0], "%s/model.safetensors", folder);
    test_random_tokens(3, shape.vocab_size, tokens, N_TOKENS);
    if (kind->is_gguf) {
        char *floats = temporary_folder();
        snprintf(path, sizeof path, "%s/model%s.gguf", folder, kind->gguf.split ? "-00001-of-00002" : "");
        snprintf(files[0], sizeof files[0], "%s", path);
        snprintf(files[1], sizeof files[1], "%s/model-00002-of-00002.gguf", folder);
        n_files = kind->gguf.split ? 2 : 1;
        test_gguf_write(&kind->gguf, folder, path, floats);
        test_checkpoint_remove(floats);
    }
    if (kind->packed) {
        char pack[600];
        snprintf(pack, sizeof pack, "%s/model.dsv2", folder);
        const dsv2_pack_options options = {.struct_size = sizeof options, .weight_type = kind->packed_as};
        ck_assert_msg(dsv2_model_pack(path, pack, &options) == DSV2_OK, "%s", dsv2_last_error());
        memcpy(path, pack, sizeof path);
        memcpy(files[0], pack, sizeof pack);
    }
}

static void drop(void) { test_checkpoint_remove(folder); }

/* What make_shape makes of each kind, made once. */
static struct original {
    char *folder;
    char path[sizeof path], files[2][sizeof path]; /* within the folder */
    size_t n_files;
} originals[N_KINDS];

static void make_originals(void)
{
    for (size_t k = 0; k < N_KINDS; k++) {
        struct original *original = &originals[k];
        make_shape(&kinds[k], small);
        *original = (struct original){.folder = folder, .n_files = n_files};
        size_t length = strlen(folder);
        memcpy(original->path, path + length, sizeof path - length);
        for (size_t f = 0; f < n_files; f++)
            memcpy(original->files[f], files[f] + length, sizeof path - length);
    }
}

static void drop_originals(void)
{
    for (size_t k = 0; k < N_KINDS; k++)
        test_checkpoint_remove(originals[k].folder);
}

/* Makes `folder` as a copy, which the test may change. */
static void make(int kind)
{
    const struct original *original = &originals[kind];
    folder = temporary_folder();
    DIR *directory = opendir(original->folder);
    ck_assert(directory != NULL);
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;) {
        if (entry->d_name[0] == '.')
            continue;
        size_t size;
        char *whole = test_read_file(test_format("%s/%s", original->folder, entry->d_name), &size);
        test_write_file(test_format("%s/%s", folder, entry->d_name), whole, size);
        free(whole);
    }
    closedir(directory);
    snprintf(path, sizeof path, "%s%s", folder, original->path);
    n_files = original->n_files;
    for (size_t f = 0; f < n_files; f++)
        snprintf(files[f], sizeof files[f], "%s%s", folder, original->files[f]);
    test_random_tokens(3, small.vocab_size, tokens, N_TOKENS);
}

static dsv2_status try_open(dsv2_model_options options, dsv2_model **model)
{
    options.struct_size = sizeof options;
    *model = NULL;
    return dsv2_model_open(path, &options, model);
}

static float *logits_of(dsv2_model *model) { return test_logits(model, NULL, tokens, N_TOKENS, 5); }

static void expect_bits(dsv2_model *model, const float *expected, const char *what)
{
    float *logits = logits_of(model);
    size_t size = N_TOKENS * (size_t)test_model_info(model).vocab_size * sizeof *logits;
    ck_assert_msg(memcmp(logits, expected, size) == 0, "%s: other bits", what);
    free(logits);
}

static dsv2_bytes_needed_info needed_by(dsv2_model_options options)
{
    dsv2_bytes_needed_info info = {.struct_size = sizeof info};
    options.struct_size = sizeof options;
    ck_assert_msg(dsv2_model_bytes_needed(path, &options, &info) == DSV2_OK, "%s", dsv2_last_error());
    return info;
}

static void expect_parts(const char *const *parts)
{
    for (; *parts != NULL; parts++)
        ck_assert_msg(strstr(dsv2_last_error(), *parts) != NULL, "\"%s\" is not in: %s", *parts, dsv2_last_error());
}

static const char *number(uint64_t value) { return test_format("%llu", (unsigned long long)value); }

/* ---- what the system says, faked where a test asks for it ---- */

static uint64_t faked_left; /* 0: not faked */
static int refusing;        /* mappings of files: 1: shared ones, 2: all */
static int refusal = ENODEV;

bool __real_ds_memory_left_in(const char *root, ds_memory_left *least);
bool __wrap_ds_memory_left_in(const char *root, ds_memory_left *least);

bool __wrap_ds_memory_left_in(const char *root, ds_memory_left *least)
{
    if (faked_left == 0)
        return __real_ds_memory_left_in(root, least);
    *least = (ds_memory_left){faked_left, "the faked machine"};
    return true;
}

/* The name that mmap has where offsets of files have 64 bits. */
void *__real_mmap64(void *address, size_t size, int protection, int flags, int fd, off_t offset);
void *__wrap_mmap64(void *address, size_t size, int protection, int flags, int fd, off_t offset);

void *__wrap_mmap64(void *address, size_t size, int protection, int flags, int fd, off_t offset)
{
    bool is_shared = (flags & MAP_TYPE) == MAP_SHARED;
    if (fd < 0 || refusing == 0 || (refusing == 1 && !is_shared))
        return __real_mmap64(address, size, protection, flags, fd, offset);
    errno = refusal;
    return MAP_FAILED;
}

static bool unknown_call; /* mlock2, to a filter of system calls */

int __real_mlock2(const void *address, size_t size, unsigned flags);
int __wrap_mlock2(const void *address, size_t size, unsigned flags);

int __wrap_mlock2(const void *address, size_t size, unsigned flags)
{
    if (!unknown_call)
        return __real_mlock2(address, size, flags);
    errno = EPERM;
    return -1;
}

/* The sanitizers' do nothing. */
int __wrap_mlock(const void *address, size_t size);
int __wrap_munlock(const void *address, size_t size);

int __wrap_mlock(const void *address, size_t size) { return (int)syscall(SYS_mlock, address, size); }
int __wrap_munlock(const void *address, size_t size) { return (int)syscall(SYS_munlock, address, size); }

static unsigned leased; /* so many opens in `folder` fail until another process has given back its lease */

int __real_open64(const char *name, int flags, ...);
int __wrap_open64(const char *name, int flags, ...);

int __wrap_open64(const char *name, int flags, ...)
{
    va_list arguments;
    va_start(arguments, flags);
    mode_t mode = (flags & O_CREAT) != 0 ? va_arg(arguments, mode_t) : 0;
    va_end(arguments);
    if (leased == 0 || strncmp(name, folder, strlen(folder)) != 0)
        return __real_open64(name, flags, mode);
    ck_assert((flags & O_NONBLOCK) != 0); /* an open that waits could wait for a FIFO */
    leased--;
    errno = EAGAIN;
    return -1;
}

typedef struct remarks {
    char text[4096];
} remarks;

static void note(void *user, dsv2_log_level level, const char *message)
{
    remarks *r = user;
    size_t length = strlen(r->text);
    if (level == DSV2_LOG_WARNING)
        snprintf(r->text + length, sizeof r->text - length, "%s\n", message);
}

/* ---- reading ---- */

static const dsv2_weight_type types[] = {DSV2_WEIGHTS_AS_STORED, DSV2_WEIGHTS_Q8_0, DSV2_WEIGHTS_Q4_K,
                                         DSV2_WEIGHTS_F32, DSV2_WEIGHTS_F16};

/* Opens mapped and read, with every count that bytes_needed gives compared to what was opened. */
static void compare(dsv2_weight_type type, uint32_t n_threads, const char *what)
{
    dsv2_model_options options = {.weight_type = type, .n_threads = n_threads};
    dsv2_bytes_needed_info by_map = needed_by(options);
    dsv2_model *mapped = test_model_open(path, &options);
    options.loading = DSV2_LOADING_READ;
    dsv2_bytes_needed_info by_read = needed_by(options);
    dsv2_model *read = test_model_open(path, &options);
    dsv2_model_info a = test_model_info(mapped), b = test_model_info(read);
    ck_assert_msg(by_map.bytes_copied == a.bytes_copied, "%s", what);
    ck_assert_uint_eq(by_map.bytes_mapped, mapped->fixed.weights.bytes_mapped);
    ck_assert_uint_eq(by_read.bytes_copied, b.bytes_copied);
    ck_assert_uint_eq(by_read.bytes_mapped, 0);
    ck_assert_uint_eq(by_read.bytes_copied, by_map.bytes_copied + by_map.bytes_mapped);
    ck_assert_uint_ge(by_read.bytes_copied, b.weight_bytes);
    ck_assert(a.fingerprint == b.fingerprint && a.parameters == b.parameters && a.weight_bytes == b.weight_bytes);
    dsv2_session *session = test_session_open(read, NULL);
    uint64_t token;
    ck_assert(dsv2_session_bytes_per_token(session, &token) == DSV2_OK);
    ck_assert_uint_eq(token, by_map.cache_bytes_per_token);
    ck_assert_uint_gt(by_map.memory_left, 0);
    dsv2_session_close(session);
    float *expected = logits_of(mapped);
    expect_bits(read, expected, what);
    free(expected);
    dsv2_model_close(mapped);
    dsv2_model_close(read);
}

START_TEST(reading_gives_the_bits_of_mapping_and_both_take_what_was_said)
{
    make(_i);
    const size_t n_types = sizeof types / sizeof *types;
    compare(DSV2_WEIGHTS_AS_STORED, 1 + (uint32_t)_i % 3, kinds[_i].name);
    compare(types[1 + (size_t)_i % (n_types - 1)], 3, kinds[_i].name); /* each type meets two kinds at least */
    drop();
}
END_TEST

START_TEST(real_widths_are_read_to_the_bits_of_mapping)
{
    const struct kind plain = {.name = "V2-Lite's widths"};
    make_shape(&plain, lite);
    compare(DSV2_WEIGHTS_Q8_0, 3, plain.name);
    drop();
}
END_TEST

/* Nothing of the folder is mapped by this process. */
static int expect_unmapped(void *user, dsv2_phase phase, uint64_t done, uint64_t total)
{
    (void)user, (void)phase, (void)done, (void)total;
    size_t size;
    char *maps = test_read_file("/proc/self/maps", &size);
    ck_assert_ptr_null(memmem(maps, size, folder, strlen(folder)));
    free(maps);
    return 0;
}

START_TEST(what_is_read_needs_no_mapping_and_after_opening_no_file)
{
    make(_i);
    dsv2_model *mapped = test_model_open(path, NULL);
    float *expected = logits_of(mapped);
    dsv2_model_close(mapped);
    dsv2_model *model = test_model_open(
        path, &(dsv2_model_options){.loading = DSV2_LOADING_READ, .progress = expect_unmapped, .n_threads = 2});
    expect_unmapped(NULL, DSV2_PHASE_OPEN, 0, 0);
    for (size_t i = 0; i < n_files; i++)
        ck_assert(truncate(files[i], 100) == 0);
    expect_bits(model, expected, "files cut to 100 bytes");
    drop();
    expect_bits(model, expected, "files deleted");
    dsv2_model_close(model);
    free(expected);
}
END_TEST

/* Cuts a file at the n-th report, or cancels there. */
typedef struct accident {
    uint64_t at, reports, last_done, last_total;
    const char *file; /* NULL: cancels */
    off_t size;
} accident;

static int strike(void *user, dsv2_phase phase, uint64_t done, uint64_t total)
{
    accident *a = user;
    ck_assert(phase == DSV2_PHASE_OPEN && done >= a->last_done && done <= total);
    a->last_done = done;
    a->last_total = total;
    if (++a->reports != a->at)
        return 0;
    if (a->file == NULL)
        return 1;
    ck_assert(truncate(a->file, a->size) == 0);
    return 0;
}

/* Attack 9: mapped, this ends the process by SIGBUS. */
START_TEST(a_file_that_shrinks_while_it_is_read_is_an_error_of_its_name)
{
    make(_i);
    size_t n_errors = 0;
    for (size_t f = 0; f < n_files; f++) {
        size_t size;
        char *whole = test_read_file(files[f], &size);
        accident a = {.file = files[f]};
        for (a.at = 1; a.at <= a.reports + 1; a.at += 1 + a.at / 4) {
            a.reports = a.last_done = 0;
            a.size = (off_t)(size / (1 + a.at % 3));
            a.size -= a.at % 3 == 0 ? 1 : 0;
            dsv2_model *model;
            dsv2_status status = try_open(
                (dsv2_model_options){.loading = DSV2_LOADING_READ, .n_threads = 1 + (uint32_t)a.at % 3,
                                     .weight_type = a.at % 4 == 0 ? DSV2_WEIGHTS_Q8_0 : DSV2_WEIGHTS_AS_STORED,
                                     .progress = strike, .progress_user = &a}, &model);
            ck_assert_msg(status == DSV2_OK || status == DSV2_ERROR_IO, "status %d: %s", (int)status,
                          dsv2_last_error());
            if (status == DSV2_ERROR_IO)
                expect_parts((const char *[]){files[f], number(size), "changed", NULL});
            n_errors += status != DSV2_OK;
            dsv2_model_close(model);
            test_write_file(files[f], whole, size);
        }
        free(whole);
    }
    ck_assert_uint_gt(n_errors, 5);
    drop();
}
END_TEST

/* Writes other bytes over the end of the file, and gives the file its old time of change back. */
static int overwrite(void *user, dsv2_phase phase, uint64_t done, uint64_t total)
{
    (void)phase, (void)done, (void)total;
    accident *a = user;
    struct stat old;
    if (++a->reports != 2)
        return 0;
    int fd = open(a->file, O_WRONLY);
    ck_assert(fd >= 0 && fstat(fd, &old) == 0 && pwrite(fd, "other", 5, old.st_size - 5) == 5);
    const struct timespec times[2] = {old.st_atim, old.st_mtim};
    ck_assert(futimens(fd, times) == 0 && close(fd) == 0);
    return 0;
}

/* Half of the model, or of the pack, would be of the old file, and half of the new. */
START_TEST(a_file_that_is_written_to_while_it_is_read_is_an_error_of_its_name)
{
    const useconds_t step = 20000; /* file systems keep times in steps of some milliseconds */
    make(_i);
    usleep(step);
    for (size_t f = 0; f < n_files; f++) {
        size_t size;
        char *whole = test_read_file(files[f], &size);
        accident a = {.file = files[f]};
        const dsv2_pack_options packing = {.struct_size = sizeof packing, .progress = overwrite, .progress_user = &a};
        const char *pack = test_format("%s/packed.dsv2", folder);
        ck_assert_int_eq(dsv2_model_pack(path, pack, &packing), DSV2_ERROR_IO);
        expect_parts((const char *[]){files[f], "changed while it was read", NULL});
        ck_assert_int_ne(access(pack, F_OK), 0);
        test_write_file(files[f], whole, size);
        free(whole);
        usleep(step);
        dsv2_model *model;
        a.reports = 0;
        ck_assert_int_eq(try_open((dsv2_model_options){.loading = DSV2_LOADING_READ, .progress = overwrite,
                                                       .progress_user = &a}, &model), DSV2_ERROR_IO);
        expect_parts((const char *[]){files[f], "changed while it was read", NULL});
    }
    drop();
}
END_TEST

START_TEST(reading_can_be_cancelled_at_every_report)
{
    make(_i);
    accident a = {0};
    dsv2_model *model;
    dsv2_model_options options = {.loading = DSV2_LOADING_READ, .n_threads = 2, .progress = strike,
                                  .progress_user = &a};
    ck_assert(try_open(options, &model) == DSV2_OK);
    dsv2_model_close(model);
    ck_assert(a.last_done == a.last_total);
    for (uint64_t reports = a.reports, at = 1; at <= reports; at += 1 + at / 4) {
        a = (accident){.at = at};
        ck_assert_int_eq(try_open(options, &model), DSV2_ERROR_CANCELLED);
        ck_assert(model == NULL && a.reports == at);
    }
    drop();
}
END_TEST

/* A tensor of 40 MB is several queues long: somebody may cancel between them. */
START_TEST(a_large_tensor_is_reported_on_while_it_is_read)
{
    test_checkpoint wide = small;
    wide.hidden_size = 2048;
    wide.vocab_size = 10000;
    const struct kind plain = {.name = "a large embedding"};
    make_shape(&plain, wide);
    accident a = {0};
    dsv2_model *model;
    ck_assert(try_open((dsv2_model_options){.loading = DSV2_LOADING_READ, .n_threads = 1, .progress = strike,
                                            .progress_user = &a}, &model) == DSV2_OK);
    ck_assert_msg(a.reports > a.last_total + 3, "%llu reports", (unsigned long long)a.reports);
    dsv2_model_close(model);
    drop();
}
END_TEST

START_TEST(every_allocation_of_reading_may_fail)
{
    make(_i);
    dsv2_model_options options = {.loading = DSV2_LOADING_READ, .n_threads = 1,
                                  .weight_type = _i % 2 == 0 ? DSV2_WEIGHTS_AS_STORED : DSV2_WEIGHTS_Q8_0};
    dsv2_model *model;
    ck_assert(try_open(options, &model) == DSV2_OK);
    dsv2_model_close(model);
    long live = oom_live();
    bool failed = true;
    size_t n_errors = 0;
    for (size_t nth = 1; failed; nth += 1 + nth / 8) {
        oom_arm(nth, false);
        dsv2_status status = try_open(options, &model);
        dsv2_model_close(model);
        failed = oom_disarm();
        /* The C library's qsort does without memory. */
        ck_assert_msg(status == DSV2_OK || (failed && status == DSV2_ERROR_MEMORY), "allocation %zu: status %d: %s",
                      nth, (int)status, dsv2_last_error());
        n_errors += status != DSV2_OK;
        ck_assert_int_eq(oom_live(), live);
    }
    ck_assert_uint_gt(n_errors, 20);
    drop();
}
END_TEST

/* ---- file systems that refuse ---- */

START_TEST(a_file_system_without_shared_mappings_is_mapped_privately_or_read)
{
    make(_i);
    remarks r = {""};
    const dsv2_model_options options = {.log = note, .log_user = &r};
    dsv2_model *mapped = test_model_open(path, &options);
    float *expected = logits_of(mapped);
    ck_assert_str_eq(r.text, "");
    for (refusing = 1; refusing <= 2; refusing++) {
        r.text[0] = '\0';
        dsv2_model *model = test_model_open(path, &options);
        ck_assert_msg(strstr(r.text, files[0]) != NULL && strstr(r.text, "No such device") != NULL, "%s", r.text);
        ck_assert(strstr(r.text, "private mapping") != NULL);
        ck_assert_int_eq(strstr(r.text, "read into memory") != NULL, refusing == 2);
        ck_assert_int_eq(model->fixed.reads, refusing == 2);
        dsv2_bytes_needed_info info = needed_by((dsv2_model_options){0});
        ck_assert_uint_eq(info.bytes_copied, test_model_info(model).bytes_copied);
        ck_assert_uint_eq(info.bytes_mapped, model->fixed.weights.bytes_mapped);
        ck_assert_uint_eq(test_model_info(model).fingerprint, test_model_info(mapped).fingerprint);
        expect_bits(model, expected, "after a refusal");
        dsv2_model_close(model);
    }
    free(expected);
    dsv2_model_close(mapped);
    drop();
}
END_TEST

START_TEST(a_full_address_space_is_an_error_not_a_reason_to_read)
{
    make(0);
    dsv2_model *model;
    refusing = 2;
    refusal = ENOMEM;
    ck_assert_int_eq(try_open((dsv2_model_options){0}, &model), DSV2_ERROR_MEMORY);
    expect_parts((const char *[]){files[0], "cannot map", NULL});
    drop();
}
END_TEST

START_TEST(packing_reads_what_cannot_be_mapped)
{
    make(_i);
    char *packs[2];
    size_t sizes[2];
    for (int i = 0; i < 2; i++) {
        char pack[700];
        snprintf(pack, sizeof pack, "%s/packed-%d.dsv2", folder, i);
        refusing = 2 * i;
        ck_assert_msg(dsv2_model_pack(path, pack, NULL) == DSV2_OK, "%s", dsv2_last_error());
        packs[i] = test_read_file(pack, &sizes[i]);
    }
    faked_left = 1;
    ck_assert_int_eq(dsv2_model_pack(path, test_format("%s/third.dsv2", folder), NULL), DSV2_ERROR_MEMORY);
    if (_i == 0) /* whose weights a pack holds as the file does */
        expect_parts((const char *[]){number(needed_by((dsv2_model_options){0}).bytes_copied), NULL});
    expect_parts((const char *[]){path, "the faked machine has 1 left", NULL});
    ck_assert_int_ne(access(test_format("%s/third.dsv2", folder), F_OK), 0);
    ck_assert(sizes[0] == sizes[1] && memcmp(packs[0], packs[1], sizes[0]) == 0);
    free(packs[0]);
    free(packs[1]);
    drop();
}
END_TEST

/* ---- locking ---- */

static uint64_t locked_bytes(void)
{
    FILE *status = fopen("/proc/self/status", "r");
    char line[256];
    unsigned long long kibibytes = 0;
    while (fgets(line, sizeof line, status) != NULL)
        if (sscanf(line, "VmLck: %llu", &kibibytes) == 1)
            break;
    fclose(status);
    return kibibytes * 1024;
}

/* Root may lock what it likes: this process gives up the right, and tests of others begin without. */
static void limit_locking(rlim_t bytes)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct sets[2];
    ck_assert(syscall(SYS_capget, &header, sets) == 0);
    sets[0].effective &= ~(1u << CAP_IPC_LOCK);
    ck_assert(syscall(SYS_capset, &header, sets) == 0);
    struct rlimit limit;
    ck_assert(getrlimit(RLIMIT_MEMLOCK, &limit) == 0);
    limit.rlim_cur = bytes < limit.rlim_max ? bytes : limit.rlim_max;
    ck_assert(setrlimit(RLIMIT_MEMLOCK, &limit) == 0);
}

START_TEST(locked_weights_are_in_memory_until_the_model_is_closed)
{
    make(_i);
    for (int loading = DSV2_LOADING_MAP; loading <= DSV2_LOADING_READ; loading++) {
        dsv2_model *plain = test_model_open(path, NULL);
        float *expected = logits_of(plain);
        dsv2_model_close(plain);
        ck_assert_uint_eq(locked_bytes(), 0);
        unknown_call = _i % 2 == 0; /* mlock does what mlock2 may not */
        dsv2_model *model = test_model_open(path, &(dsv2_model_options){.lock = 1, .loading = (dsv2_loading)loading});
        dsv2_model *second = test_model_open(path, &(dsv2_model_options){.lock = 1});
        ck_assert_uint_ge(locked_bytes(), 2 * test_model_info(model).weight_bytes);
        ck_assert_str_eq(model->fixed.weights.experts->name, "resident"); /* no expert waits for its first use */
        dsv2_model_close(second);
        const ds_weights *weights = &model->fixed.weights;
        const uint64_t bytes = weights->bytes_copied + weights->bytes_mapped, rounding = 128 << 10;
        ck_assert_uint_ge(locked_bytes(), bytes);
        ck_assert_uint_le(locked_bytes(), bytes + rounding); /* of slabs, what is used */
        expect_bits(model, expected, kinds[_i].name);
        dsv2_model_close(model);
        ck_assert_uint_eq(locked_bytes(), 0);
        free(expected);
    }
    drop();
}
END_TEST

START_TEST(what_cannot_be_locked_is_an_error_with_the_bytes_and_the_limit)
{
    make(_i);
    dsv2_bytes_needed_info info = needed_by((dsv2_model_options){0});
    const rlim_t limits[] = {64 << 10, 0};
    for (size_t l = 0; l < 2; l++) {
        limit_locking(limits[l]);
        for (int loading = DSV2_LOADING_MAP; loading <= DSV2_LOADING_READ; loading++) {
            dsv2_model *model;
            ck_assert_int_eq(try_open((dsv2_model_options){.lock = 1, .loading = (dsv2_loading)loading}, &model),
                             DSV2_ERROR_MEMORY);
            expect_parts((const char *[]){path, "lock", number(info.bytes_copied + info.bytes_mapped),
                                          number(limits[l]), "RLIMIT_MEMLOCK", NULL});
            ck_assert_uint_eq(locked_bytes(), 0);
            ck_assert(try_open((dsv2_model_options){.loading = (dsv2_loading)loading}, &model) == DSV2_OK);
            dsv2_model_close(model);
        }
    }
    drop();
}
END_TEST

/* ---- memory that is left ---- */

/* What opening takes beside the copies, as its refusal says. */
static uint64_t beside(dsv2_model_options options)
{
    dsv2_model *model;
    unsigned long long bytes = 0;
    faked_left = 1;
    ck_assert_int_eq(try_open(options, &model), DSV2_ERROR_MEMORY);
    const char *text = strstr(dsv2_last_error(), "and up to ");
    ck_assert_msg(text != NULL && sscanf(text, "and up to %llu beside", &bytes) == 1, "%s", dsv2_last_error());
    ck_assert_uint_ge(bytes, 16 << 20);
    return bytes;
}

/* Opening by these options is refused one byte below `bytes`, and goes on from there. */
static void expect_limit(dsv2_model_options options, uint64_t bytes)
{
    dsv2_model *model;
    dsv2_bytes_needed_info info = needed_by(options);
    faked_left = bytes - 1;
    ck_assert_uint_eq(needed_by(options).memory_left, faked_left);
    ck_assert_int_eq(try_open(options, &model), DSV2_ERROR_MEMORY);
    expect_parts((const char *[]){path, number(info.bytes_copied), number(faked_left), "the faked machine", "insist",
                                  options.lock ? "(lock)" : path, options.lock ? number(info.bytes_mapped) : path,
                                  NULL});
    options.insist = 1;
    ck_assert(try_open(options, &model) == DSV2_OK);
    dsv2_model_close(model);
    options.insist = 0;
    faked_left = bytes;
    ck_assert_msg(try_open(options, &model) == DSV2_OK, "%s", dsv2_last_error());
    dsv2_model_close(model);
}

/* B14: experts that wait for their first use are counted, although nobody has touched their memory. */
START_TEST(copies_that_do_not_fit_are_refused_with_both_figures_unless_the_host_insists)
{
    make(_i);
    remarks r = {""};
    dsv2_model_options options = {.log = note, .log_user = &r, .n_threads = 2,
                                  .loading = _i % 2 == 0 ? DSV2_LOADING_MAP : DSV2_LOADING_READ};
    dsv2_bytes_needed_info info = needed_by(options);
    uint64_t copies = info.bytes_copied + beside(options);
    expect_limit(options, copies);
    ck_assert_int_eq(strstr(r.text, "again and again") != NULL, info.bytes_mapped > 0);
    dsv2_model *model;
    faked_left = copies + info.bytes_mapped;
    r.text[0] = '\0';
    ck_assert(try_open(options, &model) == DSV2_OK);
    dsv2_model_close(model);
    /* Locked, mapped weights take memory that nobody gets back. */
    options.lock = 1;
    expect_limit(options, copies + info.bytes_mapped);
    ck_assert_str_eq(r.text, "");
    drop();
}
END_TEST

/* Each thread has rows of its own, and half precision has to be made of kv_b_proj before that is rounded. */
START_TEST(what_opening_takes_beside_grows_with_the_threads)
{
    const struct kind plain = {.name = "V2-Lite's widths"};
    make_shape(&plain, lite);
    dsv2_model_options options = {.weight_type = DSV2_WEIGHTS_Q8_0, .n_threads = 1};
    uint64_t one = beside(options), row = lite.hidden_size * sizeof(float);
    options.n_threads = 9;
    ck_assert_uint_eq(beside(options), one + 8 * 16 * row);
    uint64_t kv_b = 2 * (uint64_t)lite.num_attention_heads * lite.qk_nope_head_dim * lite.kv_lora_rank;
    ck_assert_uint_ge(one, (16 << 20) + kv_b);
    drop();
}
END_TEST

START_TEST(a_file_that_another_process_has_a_lease_on_is_waited_for)
{
    make(2);
    dsv2_model *model;
    leased = 3;
    ck_assert_msg(try_open((dsv2_model_options){0}, &model) == DSV2_OK, "%s", dsv2_last_error());
    ck_assert_uint_eq(leased, 0);
    dsv2_model_close(model);
    ck_assert(mkfifo(test_format("%s/fifo", folder), 0600) == 0);
    snprintf(path, sizeof path, "%s/fifo", folder);
    leased = 1000;
    ck_assert_int_eq(try_open((dsv2_model_options){0}, &model), DSV2_ERROR_IO);
    ck_assert_uint_gt(leased, 900); /* what is no file has no lease to wait for */
    drop();
}
END_TEST

/* ---- the host's allocator ---- */

/* What a host accounts for. */
typedef struct account {
    size_t live, most, blocks, calls, fails_at; /* fails_at: the call that gets nothing; 0: none */
    int rounding;                               /* the host's mode; 0: as a program begins */
    void *(*meanwhile)(void *);                 /* runs in another thread during each call, if there is one */
    void *argument;
} account;

static pthread_t last_caller;

static void enter(account *a)
{
    ck_assert_int_eq(fegetround(), a->rounding != 0 ? a->rounding : FE_TONEAREST);
    last_caller = pthread_self();
    void *(*work)(void *) = a->meanwhile;
    pthread_t other;
    a->meanwhile = NULL; /* whose calls come here too */
    if (work == NULL)
        return;
    ck_assert(pthread_create(&other, NULL, work, a->argument) == 0 && pthread_join(other, NULL) == 0);
    a->meanwhile = work;
}

/* Aligned as malloc's, but never to cache lines. */
enum { FRONT = 16 };

static void *give(void *user, size_t size)
{
    account *a = user;
    enter(a);
    if (++a->calls == a->fails_at)
        return NULL;
    char *memory = aligned_alloc(64, (size + FRONT + 63) / 64 * 64);
    ck_assert_ptr_nonnull(memory);
    memcpy(memory, &size, sizeof size);
    a->live += size;
    a->most = a->live > a->most ? a->live : a->most;
    a->blocks++;
    return memory + FRONT;
}

static void take_back(void *user, void *memory)
{
    account *a = user;
    size_t size;
    enter(a);
    ck_assert_ptr_nonnull(memory);
    memcpy(&size, (char *)memory - FRONT, sizeof size);
    ck_assert(a->blocks > 0 && a->live >= size);
    a->blocks--;
    a->live -= size;
    free((char *)memory - FRONT);
}

static dsv2_model_options counted(account *a, dsv2_loading loading)
{
    return (dsv2_model_options){.struct_size = sizeof(dsv2_model_options), .n_threads = 1, .loading = loading,
                                .allocator = {give, take_back, a}};
}

/* Slabs may be an eighth empty at the end, the last one wholly, and each block has a line of its own; one thread
 * converts 16 rows at a time, of a matrix that may be made beside its source. */
START_TEST(opening_takes_from_the_host_what_was_said)
{
    make(_i);
    for (int loading = DSV2_LOADING_MAP; loading <= DSV2_LOADING_READ; loading++) {
        account a = {0};
        dsv2_model_options options = counted(&a, (dsv2_loading)loading);
        uint64_t copied = needed_by(options).bytes_copied;
        ck_assert_uint_eq(a.calls, 0);
        dsv2_model *model = test_model_open(path, &options);
        ck_assert_msg(a.live >= copied && a.live <= copied + copied / 4 + (1 << 20),
                      "%zu bytes live of %llu that were said", a.live, (unsigned long long)copied);
        ck_assert_msg(a.most <= a.live + (2 << 20), "%zu bytes at most, %zu at the end", a.most, a.live);
        dsv2_model_close(model);
        ck_assert_uint_eq(a.blocks, 0);
    }
    drop();
}
END_TEST

static int put_bytes(void *user, const void *data, size_t size)
{
    (void)user, (void)data, (void)size;
    return 0;
}

/* Everything that a host does with a session; false if memory was lacking, and then nothing has changed. */
static bool live_with(dsv2_model *model, account *a)
{
    dsv2_session *session = NULL, *copy = NULL;
    char saved[700];
    int32_t token;
    snprintf(saved, sizeof saved, "%s/saved", folder);
    dsv2_status status = dsv2_session_open(model, NULL, &session);
    if (status == DSV2_OK)
        status = dsv2_session_feed(session, tokens, N_TOKENS);
    if (status == DSV2_OK) {
        dsv2_memory_info memory = {.struct_size = sizeof memory};
        ck_assert(dsv2_model_get_memory(model, &memory) == DSV2_OK && memory.page_bytes_in_use > 0);
        ck_assert_uint_ge(a->live, memory.page_bytes_in_use + memory.scratch_bytes);
        status = dsv2_session_fork(session, 3, &copy);
    }
    if (status == DSV2_OK)
        status = dsv2_session_feed(copy, tokens, 2);
    if (status == DSV2_OK)
        status = dsv2_session_sample(copy, &token);
    if (status == DSV2_OK)
        status = dsv2_session_save_to(session, put_bytes, NULL, NULL);
    if (status == DSV2_OK)
        status = dsv2_session_save(session, saved, NULL);
    if (status == DSV2_OK)
        status = dsv2_session_save(session, saved, &(dsv2_save_options){.struct_size = sizeof(dsv2_save_options),
                                                                        .append = 1});
    if (status == DSV2_OK)
        status = dsv2_session_restore(copy, saved, NULL, NULL);
    ck_assert_msg(status == DSV2_OK || status == DSV2_ERROR_MEMORY, "status %d: %s", (int)status, dsv2_last_error());
    dsv2_session_close(copy);
    dsv2_session_close(session);
    return status == DSV2_OK;
}

START_TEST(what_sessions_take_comes_from_the_host_and_goes_back)
{
    make(_i);
    account a = {0};
    dsv2_model_options options = counted(&a, DSV2_LOADING_MAP);
    options.lock = 1;
    dsv2_model *plain = test_model_open(path, NULL), *model = test_model_open(path, &options);
    float *expected = logits_of(plain);
    a.rounding = FE_UPWARD;
    ck_assert(fesetround(a.rounding) == 0);
    expect_bits(model, expected, "in the host's memory");
    ck_assert(live_with(model, &a));
    ck_assert(pthread_equal(last_caller, pthread_self()));
    dsv2_session *session;
    ck_assert(dsv2_session_open(model, NULL, &session) == DSV2_OK);
    pid_t child = fork();
    if (child == 0) { /* whose copy of the account goes down to nothing too */
        bool fed = dsv2_session_feed(session, tokens, N_TOKENS) == DSV2_OK;
        dsv2_session_close(session);
        dsv2_model_close(model);
        _exit(fed && a.blocks == 0 && a.live == 0 ? 0 : 1);
    }
    int status;
    ck_assert(child > 0 && waitpid(child, &status, 0) == child && status == 0);
    dsv2_model_close(model);
    ck_assert_uint_gt(a.blocks, 0);
    dsv2_session_close(session); /* the last of the model */
    ck_assert(a.blocks == 0 && a.live == 0);
    free(expected);
    dsv2_model_close(plain);
    drop();
}
END_TEST

static void *feed_and_close(void *session)
{
    ck_assert_msg(dsv2_session_feed(session, tokens, N_TOKENS) == DSV2_OK, "%s", dsv2_last_error());
    ck_assert(dsv2_session_truncate(session, 0) == DSV2_OK);
    return NULL;
}

/* While the host's functions take their time, other sessions go on: no lock that they need is held. */
START_TEST(other_sessions_feed_while_the_host_allocates)
{
    make(_i);
    account a = {0};
    dsv2_model_options options = counted(&a, DSV2_LOADING_MAP);
    dsv2_model *model = test_model_open(path, &options);
    dsv2_session *one = test_session_open(model, NULL), *other = test_session_open(model, NULL);
    a.meanwhile = feed_and_close;
    a.argument = other;
    size_t before = a.calls;
    ck_assert_msg(dsv2_session_feed(one, tokens, N_TOKENS) == DSV2_OK, "%s", dsv2_last_error());
    dsv2_session *copy;
    ck_assert(dsv2_session_fork(one, 3, &copy) == DSV2_OK);
    ck_assert_msg(dsv2_session_feed(copy, tokens, 2) == DSV2_OK, "%s", dsv2_last_error());
    ck_assert(dsv2_session_save_to(copy, put_bytes, NULL, NULL) == DSV2_OK);
    dsv2_session_close(copy);
    dsv2_session_close(one);
    ck_assert_uint_gt(a.calls, before + 5);
    a.meanwhile = NULL;
    dsv2_session_close(other);
    dsv2_model_close(model);
    ck_assert_uint_eq(a.blocks, 0);
    drop();
}
END_TEST

START_TEST(every_allocation_of_the_hosts_may_fail)
{
    make(_i);
    size_t n_errors = 0;
    bool done = false;
    for (size_t nth = 1; !done; nth++) {
        account a = {.fails_at = nth};
        dsv2_model_options options = counted(&a, DSV2_LOADING_READ);
        dsv2_model *model;
        dsv2_status status = try_open(options, &model);
        ck_assert_msg(status == DSV2_OK || status == DSV2_ERROR_MEMORY, "status %d: %s", (int)status,
                      dsv2_last_error());
        bool lived = status == DSV2_OK && live_with(model, &a);
        done = a.calls < nth;
        ck_assert(lived || !done);
        n_errors += !lived;
        dsv2_model_close(model);
        ck_assert(a.blocks == 0 && a.live == 0);
    }
    ck_assert_uint_gt(n_errors, 10);
    drop();
}
END_TEST

START_TEST(half_an_allocator_is_refused)
{
    make(0);
    account a = {0};
    dsv2_model *model;
    dsv2_model_options options = counted(&a, DSV2_LOADING_MAP);
    options.allocator.release = NULL;
    ck_assert_int_eq(try_open(options, &model), DSV2_ERROR_ARGUMENT);
    expect_parts((const char *[]){"allocator", "release", NULL});
    options = counted(&a, DSV2_LOADING_MAP);
    options.allocator.allocate = NULL;
    ck_assert_int_eq(try_open(options, &model), DSV2_ERROR_ARGUMENT);
    expect_parts((const char *[]){"allocator", "allocate", NULL});
    drop();
}
END_TEST

/* ---- arguments ---- */

START_TEST(bytes_needed_fails_as_opening_does)
{
    make(4);
    dsv2_bytes_needed_info info = {.struct_size = sizeof info};
    dsv2_model *model;
    const dsv2_model_options bad[] = {
        {.struct_size = sizeof *bad, .loading = (dsv2_loading)2},
        {.struct_size = sizeof *bad, .weight_type = DSV2_WEIGHTS_MIXED}, {.struct_size = 3}};
    const char *const names[] = {"loading is 2", "weight_type is 10", "struct_size"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ck_assert_int_eq(dsv2_model_bytes_needed(path, &bad[i], &info), DSV2_ERROR_ARGUMENT);
        expect_parts((const char *[]){names[i], NULL});
        ck_assert_int_eq(dsv2_model_open(path, &bad[i], &model), DSV2_ERROR_ARGUMENT);
        expect_parts((const char *[]){names[i], NULL});
    }
    ck_assert_int_eq(dsv2_model_bytes_needed(NULL, NULL, &info), DSV2_ERROR_ARGUMENT);
    ck_assert_int_eq(dsv2_model_bytes_needed(path, NULL, NULL), DSV2_ERROR_ARGUMENT);
    info.struct_size = 8;
    ck_assert_int_eq(dsv2_model_bytes_needed(path, NULL, &info), DSV2_ERROR_ARGUMENT);
    info.struct_size = sizeof info;
    ck_assert_int_eq(dsv2_model_bytes_needed("/tmp/absent", NULL, &info), DSV2_ERROR_IO);
    size_t size;
    char *whole = test_read_file(path, &size);
    for (size_t cut = 0; cut < size; cut += size / 7) {
        test_write_file(path, whole, cut);
        dsv2_status opened = dsv2_model_open(path, NULL, &model);
        ck_assert_int_ne(opened, DSV2_OK);
        ck_assert_int_eq(dsv2_model_bytes_needed(path, NULL, &info), opened);
    }
    free(whole);
    drop();
}
END_TEST

int main(void)
{
    TCase *tests = tcase_create("loading");
    tcase_set_timeout(tests, 300);
    tcase_add_unchecked_fixture(tests, make_originals, drop_originals);
    tcase_add_loop_test(tests, reading_gives_the_bits_of_mapping_and_both_take_what_was_said, 0, N_KINDS);
    tcase_add_test(tests, real_widths_are_read_to_the_bits_of_mapping);
    tcase_add_loop_test(tests, what_is_read_needs_no_mapping_and_after_opening_no_file, 0, N_KINDS);
    tcase_add_loop_test(tests, a_file_that_shrinks_while_it_is_read_is_an_error_of_its_name, 0, N_KINDS);
    tcase_add_loop_test(tests, a_file_that_is_written_to_while_it_is_read_is_an_error_of_its_name, 0, N_KINDS);
    tcase_add_loop_test(tests, reading_can_be_cancelled_at_every_report, 0, N_KINDS);
    tcase_add_test(tests, a_large_tensor_is_reported_on_while_it_is_read);
    if (oom_available())
        tcase_add_loop_test(tests, every_allocation_of_reading_may_fail, 0, N_KINDS);
    tcase_add_loop_test(tests, a_file_system_without_shared_mappings_is_mapped_privately_or_read, 0, N_KINDS);
    tcase_add_test(tests, a_full_address_space_is_an_error_not_a_reason_to_read);
    tcase_add_loop_test(tests, packing_reads_what_cannot_be_mapped, 0, N_KINDS);
    tcase_add_loop_test(tests, locked_weights_are_in_memory_until_the_model_is_closed, 0, N_KINDS);
    tcase_add_loop_test(tests, what_cannot_be_locked_is_an_error_with_the_bytes_and_the_limit, 0, N_KINDS);
    tcase_add_loop_test(tests, copies_that_do_not_fit_are_refused_with_both_figures_unless_the_host_insists, 0,
                        N_KINDS);
    tcase_add_test(tests, what_opening_takes_beside_grows_with_the_threads);
    tcase_add_test(tests, a_file_that_another_process_has_a_lease_on_is_waited_for);
    tcase_add_loop_test(tests, opening_takes_from_the_host_what_was_said, 0, N_KINDS);
    tcase_add_loop_test(tests, what_sessions_take_comes_from_the_host_and_goes_back, 0, N_KINDS);
    tcase_add_loop_test(tests, other_sessions_feed_while_the_host_allocates, 0, N_KINDS);
    tcase_add_loop_test(tests, every_allocation_of_the_hosts_may_fail, 0, 5);
    tcase_add_test(tests, half_an_allocator_is_refused);
    tcase_add_test(tests, bytes_needed_fails_as_opening_does);

    Suite *suite = suite_create("loading");
    suite_add_tcase(suite, tests);
    return test_run(suite);
}

/* bench_snapshot [TOKENS [FOLDER]]: figures of the latent cache and of snapshots, for the README.
 * 
 * The model has V2-Lite's attention and vocabulary (27 layers, 16 heads, latents of 512 + 64), small feed-forward parts
 * and random weights. The rows of the session's tokens are random too: normal, with a few loud channels. Feeding tokens
 * would take minutes, and compresses no better. Each time is the best of some. */
#include "session/session.h"

#include "support/checkpoint.h"

#include <check.h>
#include <malloc.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { REPEATS = 5, FORKS = 1000, FED = 512, DECODED = 8, VOCAB = 102400 };

static const char *const names[] = {
    [DSV2_CACHE_F32] = "f32", [DSV2_CACHE_F16] = "f16", [DSV2_CACHE_Q8] = "q8", [DSV2_CACHE_Q6] = "q6"};

static void must(dsv2_status status, const char *what)
{
    if (status == DSV2_OK)
        return;
    fprintf(stderr, "%s: %s\n", what, dsv2_last_error());
    exit(EXIT_FAILURE);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Near normal, and quick: the sum of four 16-bit parts of a random number. */
static float noise(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    int sum =
        (int)(*state & 0xffff) + (int)(*state >> 16 & 0xffff) + (int)(*state >> 32 & 0xffff) + (int)(*state >> 48);
    return ((float)sum - 131070) * (1.0f / 37837);
}

static void fill_page(void *context, size_t page, unsigned thread)
{
    (void)thread;
    const dsv2_session *session = context;
    const ds_cache *cache = &session->cache;
    size_t width = cache->shape.width;
    uint64_t state = 0x9e3779b97f4a7c15u * (page + 1);
    float row[1024];
    for (uint32_t layer = 0; layer < cache->shape.n_layers; layer++)
        for (size_t t = 0; t < DS_PAGE_TOKENS && page * DS_PAGE_TOKENS + t < session->length; t++) {
            for (size_t i = 0; i < width; i++)
                row[i] = noise(&state) * (i % 97 == 0 ? 6.0f : 1.0f);
            ds_cache_encode_row(&cache->shape, session->model->fixed.kernels, row,
                                ds_cache_rows(cache, layer, page) + t * cache->shape.row_bytes);
        }
}

/* A session as if n tokens had been fed. */
static dsv2_session *make_session(dsv2_model *model, dsv2_cache_type type, size_t n)
{
    dsv2_session_options options = {.struct_size = sizeof options, .cache_type = type};
    dsv2_session *session;
    must(dsv2_session_open(model, &options, &session), "session");
    must(ds_cache_reserve(&session->cache, 0, n), "pages");
    if (!ds_grow(&session->tokens, &session->tokens_capacity, n, sizeof *session->tokens))
        exit(EXIT_FAILURE);
    test_random_tokens(1, VOCAB, session->tokens, n);
    session->length = n;
    ds_pool_run(model->pool, fill_page, session, session->cache.n_pages);
    int32_t token = 1;
    must(dsv2_session_truncate(session, n - 1), "truncate");
    must(dsv2_session_feed(session, &token, 1), "feed");
    return session;
}

/* Milliseconds for one more token, and the milliseconds that one thread takes to decode all rows once. */
static void time_decode(dsv2_session *session, double *token_ms, double *rows_ms)
{
    const ds_cache *cache = &session->cache;
    size_t n = session->length, width = cache->shape.width;
    float *tile = ds_new_aligned(DS_PAGE_TOKENS * width, sizeof *tile);
    if (tile == NULL)
        exit(EXIT_FAILURE);
    *token_ms = *rows_ms = INFINITY;
    for (int i = 0; i < DECODED; i++) {
        int32_t token = 3;
        double start = now();
        must(dsv2_session_feed(session, &token, 1), "feed");
        *token_ms = fmin(*token_ms, (now() - start) * 1e3);
    }
    must(dsv2_session_truncate(session, n), "truncate");
    for (int i = 0; i < REPEATS; i++) {
        double start = now();
        for (uint32_t layer = 0; layer < cache->shape.n_layers; layer++)
            for (size_t page = 0; page < n / DS_PAGE_TOKENS; page++)
                ds_cache_decode_rows(&cache->shape, session->model->fixed.kernels, ds_cache_rows(cache, layer, page),
                                     DS_PAGE_TOKENS, tile);
        *rows_ms = fmin(*rows_ms, (now() - start) * 1e3);
    }
    ds_free(tile);
}

/* Bytes of this process in memory, after free memory has been given back. */
static double resident_bytes(void)
{
    long pages = 0;
    malloc_trim(0);
    FILE *file = fopen("/proc/self/statm", "r");
    if (file == NULL || fscanf(file, "%*d %ld", &pages) != 1)
        exit(EXIT_FAILURE);
    fclose(file);
    return (double)pages * (double)sysconf(_SC_PAGESIZE);
}

static double time_forks(dsv2_session *session)
{
    double best = INFINITY;
    for (int i = 0; i < FORKS; i++) {
        dsv2_session *copy;
        double start = now();
        must(dsv2_session_fork(session, session->length, &copy), "fork"); /* logits and all */
        best = fmin(best, now() - start);
        dsv2_session_close(copy);
    }
    return best;
}

static int count_bytes(void *user, const void *data, size_t size)
{
    (void)data;
    *(uint64_t *)user += size;
    return 0;
}

static void measure(dsv2_model *model, dsv2_cache_type type, size_t n, const char *path, double feed_seconds)
{
    double before = resident_bytes();
    dsv2_session *session = make_session(model, type, n), *restored;
    double held = (resident_bytes() - before) / (double)n;
    dsv2_session_options options = {.struct_size = sizeof options, .cache_type = type};
    must(dsv2_session_open(model, &options, &restored), "session");
    uint64_t per_token, counted;
    must(dsv2_session_bytes_per_token(session, &per_token), "bytes");
    double latent = (double)per_token * (double)n * 1e-6, save = INFINITY, stream = INFINITY, restore = INFINITY,
           token_ms, rows_ms;
    time_decode(session, &token_ms, &rows_ms);
    must(dsv2_session_truncate(session, n), "truncate");
    double fork_seconds = time_forks(session);
    for (int i = 0; i < REPEATS; i++) {
        double start = now();
        must(dsv2_session_save(session, path, NULL), "save");
        save = fmin(save, now() - start);
        counted = 0;
        start = now();
        must(dsv2_session_save_to(session, count_bytes, &counted, NULL), "save");
        stream = fmin(stream, now() - start);
        start = now();
        must(dsv2_session_restore(restored, path, NULL, NULL), "restore");
        restore = fmin(restore, now() - start);
    }
    printf("%-4s %8llu %8.0f %9.1f %8.1f %5.1f%% %9.0f %9.0f %10.0f %9.1f %9.2f %9.1f %9.1f\n", names[type],
           (unsigned long long)per_token, held, latent, (double)counted * 1e-6, (double)counted * 1e-4 / latent,
           latent / stream, latent / save, latent / restore, feed_seconds / restore, fork_seconds * 1e6, token_ms,
           rows_ms);
    fflush(stdout);
    unlink(path);
    dsv2_session_close(restored);
    dsv2_session_close(session);
}

/* Seconds to feed n tokens, by the rate over the first few. Later tokens take longer. */
static double time_feeding(dsv2_model *model, size_t n)
{
    int32_t tokens[FED];
    dsv2_session *session;
    test_random_tokens(2, VOCAB, tokens, FED);
    must(dsv2_session_open(model, NULL, &session), "session");
    double start = now();
    must(dsv2_session_feed(session, tokens, FED), "feed");
    double seconds = now() - start;
    dsv2_session_close(session);
    return seconds * (double)n / FED;
}

static size_t n_tokens = 8192;
static const char *snapshot_folder; /* NULL: beside the model */

START_TEST(figures)
{
    const test_checkpoint shape = {
        .vocab_size = VOCAB, .hidden_size = 512, .intermediate_size = 64, .num_hidden_layers = 27,
        .num_attention_heads = 16, .kv_lora_rank = 512, .qk_nope_head_dim = 128, .qk_rope_head_dim = 64,
        .v_head_dim = 128, .max_position_embeddings = (uint32_t)n_tokens + 64, .tie_word_embeddings = true, .seed = 1,
    };
    char *folder = test_checkpoint_write(&shape), path[4096];
    snprintf(path, sizeof path, "%s/bench.snapshot", snapshot_folder != NULL ? snapshot_folder : folder);
    dsv2_model *model;
    must(dsv2_model_open(folder, NULL, &model), folder);
    double feed_seconds = time_feeding(model, n_tokens);
    printf("%zu tokens, %u threads, kernels %s; feeding them takes %.1f s or more (by the rate over the first %d)\n",
           n_tokens, ds_pool_threads(model->pool), model->fixed.kernels->name, feed_seconds, FED);
    printf("MB: 10^6 bytes; held: bytes a token by which the process grew; MB/s: of latents; "
           "+disk: with flushing to disk; rows ms: one thread decodes all rows once\n");
    printf("%-4s %8s %8s %9s %8s %6s %9s %9s %10s %9s %9s %9s %9s\n", "kv", "B/token", "held", "latent MB", "file MB",
           "share", "save MB/s", "+disk", "rest. MB/s", "x feeding", "fork us", "token ms", "rows ms");
    for (int type = DSV2_CACHE_F32; type <= DSV2_CACHE_Q6; type++)
        measure(model, (dsv2_cache_type)type, n_tokens, path, feed_seconds);
    dsv2_model_close(model);
    test_checkpoint_remove(folder);
}
END_TEST

int main(int argc, char **argv)
{
    if (argc > 1)
        n_tokens = strtoul(argv[1], NULL, 10);
    snapshot_folder = argc > 2 ? argv[2] : NULL;
    Suite *suite = suite_create("snapshot figures"); /* the checkpoint's writer asks for Check */
    TCase *tests = tcase_create("figures");
    tcase_add_test(tests, figures);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_MINIMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed > 0;
}

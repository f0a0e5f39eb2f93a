/* Experts of a GGUF are interleaved when a pass first chooses them: not before, no others, once, whoever comes first,
 * to the bits of a pack. What waits is seen from inside, as the host cannot see it. */
#include "model/model.h"
#include "weights/held_type.h"
#include "weights/deferred.h"
#include "support/checkpoint.h"
#include "support/gguf.h"
#include "support/model.h"
#include "support/oom.h"
#include "support/run.h"
#include "support/tensors.h"

#include <check.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { N_TOKENS = 40 };

static const test_checkpoint small = {.name = "small", .vocab_size = 72, .hidden_size = 256, .intermediate_size = 256,
                                      .num_hidden_layers = 3, .num_attention_heads = 4, .kv_lora_rank = 256,
                                      .qk_nope_head_dim = 32,
                                      .qk_rope_head_dim = 16, .v_head_dim = 64, .max_position_embeddings = 256,
                                      .n_routed_experts = 12,
                                      .num_experts_per_tok = 2, .moe_intermediate_size = 64, .n_shared_experts = 1,
                                      .first_k_dense_replace = 1, .seed = 41};

/* W_down's rows are no whole blocks of the larger types: it is Q8_0 there. */
static const struct {
    const char *name;
    test_gguf options;
    dsv2_weight_type weight_type;
    uint32_t n_deferred; /* of an expert's three matrices */
} kinds[] = {
    {"Q4_K and Q8_0", {.quantised = true, .type = DS_TYPE_Q4_K}, DSV2_WEIGHTS_AS_STORED, 3},
    {"gate and up in one tensor", {.quantised = true, .type = DS_TYPE_Q6_K, .joined = true}, DSV2_WEIGHTS_AS_STORED, 3},
    {"two files", {.quantised = true, .type = DS_TYPE_Q5_1, .old = true, .split = true}, DSV2_WEIGHTS_AS_STORED, 3},
    {"P4 of Q4_K, asked for", {.quantised = true, .type = DS_TYPE_Q4_K, .old = true}, DSV2_WEIGHTS_Q4_K, 2},
    {"gate and up rounded: no type holds Q2_K", {.quantised = true, .type = DS_TYPE_Q2_K}, DSV2_WEIGHTS_AS_STORED, 1},
    {"gate and up rounded: asked for", {.quantised = true, .type = DS_TYPE_Q4_K}, DSV2_WEIGHTS_Q8_0, 1},
    {"never packed", {.type = DS_TYPE_BF16}, DSV2_WEIGHTS_AS_STORED, 0},
};
enum { N_KINDS = sizeof kinds / sizeof *kinds };

/* A GGUF, and the logits that its pack gives after each token of a text. */
typedef struct fixture {
    char *folder, gguf[600], pack[600];
    dsv2_weight_type weight_type;
    uint32_t vocab_size;
    int32_t tokens[N_TOKENS];
    float *expected;
} fixture;

static const dsv2_session_options absorbed = {.struct_size = sizeof absorbed, .attention = DSV2_ATTENTION_ABSORBED};

static char *temporary_folder(void)
{
    const char *parent = getenv("TMPDIR");
    char *folder = strdup(test_format("%s/dsv2-test-XXXXXX", parent != NULL ? parent : "/tmp"));
    ck_assert(folder != NULL && mkdtemp(folder) != NULL);
    return folder;
}

/* The experts of a layer that are interleaved on first use; NULL if the layer has none. */
static ds_deferred_expert *waiting_of(const dsv2_model *model, uint32_t layer)
{
    const ds_expert_source *source = model->fixed.weights.experts;
    return source != NULL &&
        strcmp(source->name, "deferred") == 0 ? ((const ds_deferred_source *)source)->deferred[layer] : NULL;
}

static fixture make(const test_checkpoint *shape, const test_gguf *options, dsv2_weight_type weight_type)
{
    fixture f = {.folder = temporary_folder(), .weight_type = weight_type, .vocab_size = shape->vocab_size};
    char *checkpoint = test_checkpoint_write(shape), *floats = temporary_folder();
    snprintf(f.gguf, sizeof f.gguf, "%s/model%s.gguf", f.folder, options->split ? "-00001-of-00002" : "");
    snprintf(f.pack, sizeof f.pack, "%s/model.dsv2", f.folder);
    test_gguf_write(options, checkpoint, f.gguf, floats);
    test_checkpoint_remove(checkpoint);
    test_checkpoint_remove(floats);
    dsv2_pack_options packing = {.struct_size = sizeof packing, .weight_type = weight_type};
    ck_assert_msg(dsv2_model_pack(f.gguf, f.pack, &packing) == DSV2_OK, "%s", dsv2_last_error());
    test_random_tokens(9, f.vocab_size, f.tokens, N_TOKENS);
    dsv2_model *model = test_model_open(f.pack, NULL);
    for (uint32_t l = 0; l < shape->num_hidden_layers; l++)
        ck_assert(waiting_of(model, l) == NULL); /* a pack has nothing to wait for */
    f.expected = test_logits(model, &absorbed, f.tokens, N_TOKENS, N_TOKENS);
    dsv2_model_close(model);
    return f;
}

static void drop(fixture *f)
{
    free(f->expected);
    test_checkpoint_remove(f->folder);
}

static dsv2_model *open_gguf(const fixture *f, uint32_t n_threads)
{
    return test_model_open(f->gguf, &(dsv2_model_options){.weight_type = f->weight_type, .n_threads = n_threads});
}

/* Feeds the text from its beginning, `chunk` at a time. */
static void expect_bits(const fixture *f, dsv2_model *model, size_t chunk, const char *what)
{
    float *logits = test_logits(model, &absorbed, f->tokens, N_TOKENS, chunk);
    size_t size = (size_t)N_TOKENS * f->vocab_size * sizeof *logits;
    ck_assert_msg(memcmp(logits, f->expected, size) == 0, "%s: not the pack's bits", what);
    free(logits);
}

static size_t count_waiting(const dsv2_model *model)
{
    size_t n = 0;
    for (uint32_t l = 0; l < model->fixed.config.num_hidden_layers; l++)
        for (uint32_t e = 0; waiting_of(model, l) != NULL && e < model->fixed.config.n_routed_experts; e++)
            n += atomic_load(&waiting_of(model, l)[e].waiting);
    return n;
}

/* ---- what waits, and until when ---- */

typedef struct choices {
    bool chosen[8][64]; /* by layer */
} choices;

static void note_choices(void *user, const dsv2_routing_event *event)
{
    for (uint32_t k = 0; k < event->n_experts; k++)
        ((choices *)user)->chosen[event->layer][event->experts[k]] = true;
}

enum { UNTOUCHED = 0xa5 };

/* Whether all memory of an expert's deferred matrices has the byte; or puts it there. */
static bool all_untouched(const ds_deferred_expert *expert, bool write)
{
    for (uint32_t i = 0; i < expert->n; i++) {
        const ds_conversion *c = &expert->conversions[i];
        size_t size = ds_matrix_bytes(c->type, c->from.rows, c->from.cols);
        if (write)
            memset(c->out, UNTOUCHED, size);
        for (size_t b = 0; b < size; b++)
            if (c->out[b] != UNTOUCHED)
                return false;
    }
    return true;
}

START_TEST(only_the_experts_that_a_token_chooses_are_interleaved)
{
    fixture f = make(&small, &kinds[_i].options, kinds[_i].weight_type);
    dsv2_model *model = open_gguf(&f, 2);
    dsv2_model_info before = test_model_info(model);
    for (uint32_t l = 0; l < small.num_hidden_layers; l++) {
        ds_deferred_expert *deferred = waiting_of(model, l);
        bool any = model->fixed.weights.layers[l].is_moe && kinds[_i].n_deferred > 0;
        ck_assert_msg((deferred != NULL) == any, "%s: layer %u", kinds[_i].name, l);
        for (uint32_t e = 0; any && e < small.n_routed_experts; e++) {
            ck_assert_msg(deferred[e].n == kinds[_i].n_deferred && atomic_load(&deferred[e].waiting),
                          "%s: layer %u, expert %u", kinds[_i].name, l, e);
            ck_assert(all_untouched(&deferred[e], true));
        }
    }
    choices c = {0};
    dsv2_session *session = test_session_open(model, NULL);
    ck_assert(dsv2_session_set_routing_trace(session, note_choices, &c) == DSV2_OK);
    ck_assert_msg(dsv2_session_feed(session, f.tokens, 1) == DSV2_OK, "%s", dsv2_last_error());
    dsv2_session_close(session);
    for (uint32_t l = 0; l < small.num_hidden_layers; l++) {
        const ds_deferred_expert *deferred = waiting_of(model, l);
        for (uint32_t e = 0; deferred != NULL && e < small.n_routed_experts; e++) {
            ck_assert_msg(atomic_load(&deferred[e].waiting) == !c.chosen[l][e], "%s: layer %u, expert %u",
                          kinds[_i].name, l, e);
            ck_assert_msg(all_untouched(&deferred[e], false) == !c.chosen[l][e], "%s: layer %u, expert %u",
                          kinds[_i].name, l, e);
        }
    }
    expect_bits(&f, model, N_TOKENS, kinds[_i].name);
    dsv2_model_info after = test_model_info(model);
    ck_assert(after.weight_bytes == before.weight_bytes && after.bytes_copied == before.bytes_copied &&
              after.fingerprint == before.fingerprint && after.weight_type == before.weight_type);
    dsv2_model_close(model);
    drop(&f);
}
END_TEST

/* ---- whoever comes first ---- */

START_TEST(the_order_of_first_use_changes_no_bit)
{
    fixture f = make(&small, &kinds[_i].options, kinds[_i].weight_type);
    int32_t others[N_TOKENS];
    test_random_tokens(10, f.vocab_size, others, N_TOKENS);
    for (uint32_t n_threads = 1; n_threads <= 3; n_threads++) {
        for (size_t chunk = 1; chunk <= N_TOKENS; chunk *= N_TOKENS) {
            dsv2_model *model = open_gguf(&f, n_threads);
            expect_bits(&f, model, chunk, "this text first");
            dsv2_model_close(model);
            model = open_gguf(&f, n_threads);
            free(test_logits(model, &absorbed, others, chunk, 1));
            expect_bits(&f, model, N_TOKENS, "another text first");
            dsv2_model_close(model);
        }
    }
    drop(&f);
}
END_TEST

/* The file stays mapped as long as any session may choose an expert. */
START_TEST(a_model_closed_before_its_experts_were_chosen_still_has_them)
{
    fixture f = make(&small, &kinds[0].options, DSV2_WEIGHTS_AS_STORED);
    dsv2_model *model = open_gguf(&f, 2);
    dsv2_session *session = test_session_open(model, &absorbed);
    dsv2_model_close(model);
    ck_assert_msg(dsv2_session_feed(session, f.tokens, N_TOKENS) == DSV2_OK, "%s", dsv2_last_error());
    const float *logits;
    ck_assert(dsv2_session_logits(session, &logits) == DSV2_OK);
    ck_assert(memcmp(logits, f.expected + (size_t)(N_TOKENS - 1) * f.vocab_size, f.vocab_size * sizeof *logits) == 0);
    dsv2_session_close(session);
    drop(&f);
}
END_TEST

enum { N_HOSTS = 4, N_ROUNDS = 6 };

typedef struct host {
    const fixture *fixture;
    dsv2_model *model;
    size_t chunk;
    pthread_barrier_t *start;
} host;

static void *host_thread(void *argument)
{
    const host *h = argument;
    pthread_barrier_wait(h->start);
    expect_bits(h->fixture, h->model, h->chunk, "beside others");
    return NULL;
}

/* Experts large enough that the others arrive while one is interleaved. */
static const test_checkpoint busy = {.name = "busy", .vocab_size = 72, .hidden_size = 512, .intermediate_size = 32,
                                     .num_hidden_layers = 3, .num_attention_heads = 1, .kv_lora_rank = 32,
                                     .qk_nope_head_dim = 32,
                                     .qk_rope_head_dim = 16, .v_head_dim = 32, .max_position_embeddings = 256,
                                     .n_routed_experts = 12,
                                     .num_experts_per_tok = 4, .moe_intermediate_size = 256, .seed = 43};

/* The same experts at the same time, and others. */
START_TEST(sessions_that_choose_an_expert_at_once_all_find_it_whole)
{
    static const size_t chunks[N_HOSTS] = {N_TOKENS, 1, 7, 1};
    fixture f = make(&busy, &kinds[0].options, DSV2_WEIGHTS_AS_STORED);
    for (int round = 0; round < N_ROUNDS; round++) {
        dsv2_model *model = open_gguf(&f, (uint32_t)_i + 1);
        pthread_t threads[N_HOSTS];
        host hosts[N_HOSTS];
        pthread_barrier_t start;
        ck_assert(pthread_barrier_init(&start, NULL, N_HOSTS) == 0);
        for (size_t i = 0; i < N_HOSTS; i++) {
            hosts[i] = (host){&f, model, chunks[(i + (size_t)round) % N_HOSTS], &start};
            ck_assert(pthread_create(&threads[i], NULL, host_thread, &hosts[i]) == 0);
        }
        for (size_t i = 0; i < N_HOSTS; i++)
            pthread_join(threads[i], NULL);
        pthread_barrier_destroy(&start);
        dsv2_model_close(model);
    }
    drop(&f);
}
END_TEST

/* ---- failures ---- */

START_TEST(a_file_cut_off_before_its_experts_were_chosen_is_an_error_and_nothing_is_lost)
{
    fixture f = make(&small, &kinds[0].options, DSV2_WEIGHTS_AS_STORED);
    dsv2_model *model = open_gguf(&f, 2);
    size_t size, waiting = count_waiting(model);
    char *contents = test_read_file(f.gguf, &size);
    dsv2_session *session = test_session_open(model, NULL);
    ck_assert(truncate(f.gguf, 4096) == 0);
    ck_assert_int_eq(dsv2_session_feed(session, f.tokens, 3), DSV2_ERROR_IO);
    ck_assert_uint_eq(count_waiting(model), waiting);
    FILE *file = fopen(f.gguf, "r+b");
    ck_assert(file != NULL && fwrite(contents, 1, size, file) == size && fclose(file) == 0);
    expect_bits(&f, model, N_TOKENS, "whole again");
    free(contents);
    dsv2_session_close(session);
    dsv2_model_close(model);
    drop(&f);
}
END_TEST

/* A feed that finds no memory for its own sake has not begun; interleaving needs none. */
START_TEST(every_allocation_of_a_first_feed_may_fail)
{
    fixture f = make(&small, &kinds[0].options, DSV2_WEIGHTS_AS_STORED);
    bool failed = true;
    for (size_t nth = 1; failed; nth++) {
        dsv2_model *model = open_gguf(&f, 2);
        dsv2_session *session = test_session_open(model, &absorbed);
        size_t waiting = count_waiting(model), length;
        oom_arm(nth, _i == 1);
        dsv2_status status = dsv2_session_feed(session, f.tokens, N_TOKENS);
        failed = oom_disarm();
        ck_assert_msg(status == (failed ? DSV2_ERROR_MEMORY : DSV2_OK), "allocation %zu: status %d: %s", nth,
                      (int)status, dsv2_last_error());
        ck_assert(dsv2_session_length(session, &length) == DSV2_OK && length == (failed ? 0 : N_TOKENS));
        ck_assert(!failed || count_waiting(model) == waiting);
        expect_bits(&f, model, N_TOKENS, "afterwards");
        dsv2_session_close(session);
        dsv2_model_close(model);
    }
    drop(&f);
}
END_TEST

/* ---- memory ---- */

/* Experts of a layer that are too many to be interleaved together by one thread. */
static const test_checkpoint large = {.name = "large", .vocab_size = 72, .hidden_size = 1024, .intermediate_size = 256,
                                      .num_hidden_layers = 1, .num_attention_heads = 2, .kv_lora_rank = 64,
                                      .qk_nope_head_dim = 32,
                                      .qk_rope_head_dim = 16, .v_head_dim = 32, .max_position_embeddings = 256,
                                      .n_routed_experts = 24,
                                      .num_experts_per_tok = 6, .moe_intermediate_size = 512, .seed = 42};

/* Bytes of a file's mappings that are in this process's memory. */
static size_t mapped(const char *path)
{
    char line[1000];
    size_t sum = 0, kilobytes;
    bool inside = false;
    FILE *file = fopen("/proc/self/smaps", "r");
    ck_assert(file != NULL);
    while (fgets(line, sizeof line, file) != NULL) {
        if (strchr(line, '-') != NULL && strchr(line, ':') != NULL && strstr(line, " kB") == NULL)
            inside = strstr(line, path) != NULL;
        if (inside && sscanf(line, "Rss: %zu kB", &kilobytes) == 1)
            sum += kilobytes << 10;
    }
    fclose(file);
    return sum;
}

/* Bytes of the packed experts' memory that the kernel has given, in whole pages of each matrix. */
static size_t given(const dsv2_model *model)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), sum = 0;
    for (uint32_t e = 0; e < model->fixed.config.n_routed_experts; e++) {
        const ds_deferred_expert *expert = &waiting_of(model, 0)[e];
        for (uint32_t i = 0; i < expert->n; i++) {
            const ds_conversion *c = &expert->conversions[i];
            uintptr_t begin = ((uintptr_t)c->out + page - 1) / page * page;
            size_t n_pages = ((uintptr_t)c->out + ds_matrix_bytes(c->type, c->from.rows, c->from.cols) - begin) / page;
            unsigned char *present = malloc(n_pages);
            ck_assert(present != NULL && mincore((void *)begin, n_pages * page, present) == 0);
            for (size_t p = 0; p < n_pages; p++)
                sum += present[p] & 1 ? page : 0;
            free(present);
        }
    }
    return sum;
}

/* Of a weight, the file's page or the packed one is in memory, or none. Huge pages and what the kernel maps around a
 * page that is touched are the rest. */
START_TEST(experts_that_wait_take_no_memory_and_those_that_do_not_take_it_once)
{
    fixture f = make(&large, &kinds[0].options, DSV2_WEIGHTS_AS_STORED);
    dsv2_model *model = open_gguf(&f, 1);
    size_t experts = 0;
    for (uint32_t e = 0; e < large.n_routed_experts; e++) {
        for (uint32_t i = 0; i < 3; i++) {
            const ds_matrix *from = &waiting_of(model, 0)[e].conversions[i].from;
            experts += from->rows * from->row_bytes;
        }
    }
    ck_assert_uint_gt(experts, 16 << 20);
    ck_assert_msg(mapped(f.gguf) < experts / 4, "%zu of %zu bytes are mapped", mapped(f.gguf), experts);
    ck_assert_msg(given(model) < experts / 2, "%zu of %zu bytes are given", given(model), experts);
    expect_bits(&f, model, N_TOKENS, "many experts");
    ck_assert_uint_eq(count_waiting(model), 0);
    ck_assert_msg(mapped(f.gguf) < experts / 4, "%zu of %zu bytes are mapped", mapped(f.gguf), experts);
    dsv2_model_close(model);
    drop(&f);
}
END_TEST

int main(void)
{
    TCase *tests = tcase_create("first use");
    tcase_set_timeout(tests, 200);
    tcase_add_loop_test(tests, only_the_experts_that_a_token_chooses_are_interleaved, 0, N_KINDS);
    tcase_add_loop_test(tests, the_order_of_first_use_changes_no_bit, 0, 3 /* those with all three */);
    tcase_add_test(tests, a_model_closed_before_its_experts_were_chosen_still_has_them);
    tcase_add_loop_test(tests, sessions_that_choose_an_expert_at_once_all_find_it_whole, 0, 3);
    tcase_add_test(tests, a_file_cut_off_before_its_experts_were_chosen_is_an_error_and_nothing_is_lost);
    if (oom_available())
        tcase_add_loop_test(tests, every_allocation_of_a_first_feed_may_fail, 0, 2);
    tcase_add_test(tests, experts_that_wait_take_no_memory_and_those_that_do_not_take_it_once);

    Suite *suite = suite_create("first use");
    suite_add_tcase(suite, tests);
    return test_run(suite);
}

/* B6: beside another that always has work for the threads, a session goes on, and its cancel ends it within two layers'
 * time. Time is counted in the other's turns, and in layers of the session: no clock can disturb that. */
#include "model/model.h"

#include "support/checkpoint.h"
#include "support/model.h"
#include "support/run.h"

#include <check.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

enum { VOCAB = 97, LAYERS = 5, CANCELLED_AT = 2, PROMPT = 64 };

/* Turns that the other may have from the cancel to the end. The session's last layer is one turn, or three where its
 * experts are chosen for the first time: up to the choice, while they are made ready, and after that. At either end of
 * what is counted the other may begin a region just before or after. */
enum { WARM = 1 + 1, COLD = 3 + 1 };

/* V2-Lite's widths, but for the feed-forward parts. */
static const test_checkpoint lite = {
    .vocab_size = VOCAB, .hidden_size = 2048, .intermediate_size = 512, .num_hidden_layers = LAYERS,
    .num_attention_heads = 16, .kv_lora_rank = 512, .qk_nope_head_dim = 128, .qk_rope_head_dim = 64, .v_head_dim = 128,
    .max_position_embeddings = 4096, .moe_intermediate_size = 256, .n_routed_experts = 4, .num_experts_per_tok = 2,
    .n_shared_experts = 1, .first_k_dense_replace = 1, .yarn = true, .seed = 31,
};

/* Another that has work for the threads without a break. Each of its regions lasts until somebody waits for the next
 * turn: so it has as many regions as it is let have. */
typedef struct greedy {
    ds_pool *pool;
    _Atomic bool done;
    _Atomic unsigned n_regions;
} greedy;

static void hold(void *context, size_t task, unsigned thread)
{
    (void)thread;
    greedy *g = context;
    if (task != 0)
        return;
    atomic_fetch_add(&g->n_regions, 1);
    while (ds_pool_waiting(g->pool) == 0 && !atomic_load(&g->done))
        nanosleep(&(struct timespec){.tv_nsec = 1000}, NULL);
}

static void *take_all(void *argument)
{
    greedy *g = argument;
    while (!atomic_load(&g->done))
        ds_pool_run(g->pool, hold, g, 2);
    return NULL;
}

typedef struct watched {
    greedy *greedy;
    dsv2_session *session;
    unsigned n_layers, regions[LAYERS + 1]; /* of the other, when the feed began and after each layer */
} watched;

static int after_layer(void *user, dsv2_phase phase, uint64_t done, uint64_t total)
{
    (void)phase, (void)done, (void)total;
    watched *w = user;
    w->regions[++w->n_layers] = atomic_load(&w->greedy->n_regions);
    if (w->n_layers == CANCELLED_AT)
        dsv2_session_cancel(w->session);
    return 0;
}

static void cancelled_beside_another(dsv2_model *model, const int32_t *tokens, size_t n, unsigned bound)
{
    greedy g = {.pool = model->pool};
    watched w = {.greedy = &g, .session = test_session_open(model, NULL)};
    pthread_t thread;
    ck_assert(dsv2_session_set_progress(w.session, after_layer, &w) == DSV2_OK);
    ck_assert(pthread_create(&thread, NULL, take_all, &g) == 0);
    while (atomic_load(&g.n_regions) == 0)
        nanosleep(&(struct timespec){.tv_nsec = 1000}, NULL);
    w.regions[0] = atomic_load(&g.n_regions);
    ck_assert(dsv2_session_feed(w.session, tokens, n) == DSV2_ERROR_CANCELLED);
    unsigned end = atomic_load(&g.n_regions);
    atomic_store(&g.done, true);
    pthread_join(thread, NULL);
    ck_assert_uint_eq(w.n_layers, CANCELLED_AT); /* the next layer's end sees the cancel */
    unsigned layer = w.regions[2] - w.regions[1], ended_after = end - w.regions[CANCELLED_AT];
    ck_assert_uint_gt(w.regions[2], w.regions[0]);
    ck_assert_msg(layer <= bound, "the other had %u turns during one layer", layer);
    ck_assert_msg(ended_after <= bound, "the other had %u turns from the cancel to the end", ended_after);
    dsv2_session_close(w.session);
}

START_TEST(a_cancel_ends_a_feed_within_two_layers_whatever_another_does)
{
    static const size_t lengths[] = {1, PROMPT};
    char *folder = test_checkpoint_write(&lite);
    int32_t tokens[PROMPT];
    test_random_tokens(5, VOCAB, tokens, PROMPT);
    for (uint32_t n_threads = 2; n_threads <= 3; n_threads++) {
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
            dsv2_model *model = test_model_open(folder, &(dsv2_model_options){.n_threads = n_threads});
            cancelled_beside_another(model, tokens, lengths[i], COLD);
            dsv2_session *session = test_session_open(model, NULL);
            ck_assert(dsv2_session_feed(session, tokens, lengths[i]) == DSV2_OK);
            dsv2_session_close(session);
            cancelled_beside_another(model, tokens, lengths[i], WARM);
            dsv2_model_close(model);
        }
    }
    test_checkpoint_remove(folder);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("turns");
    TCase *tests = tcase_create("turns");
    tcase_set_timeout(tests, 300);
    tcase_add_test(tests, a_cancel_ends_a_feed_within_two_layers_whatever_another_does);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}

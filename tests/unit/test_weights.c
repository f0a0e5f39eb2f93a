/* What a model holds, seen from inside: every weight once and under the names of its files, the queue of conversions
 * at every limit, and opening without memory where many blocks are held. */
#include "model/model.h"
#include "weights/held_type.h"
#include "weights/walk.h"
#include "support/checkpoint.h"
#include "support/model.h"
#include "support/oom.h"
#include "support/run.h"
#include "support/tensors.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

/* ---- names ---- */

typedef struct seen {
    const ds_container *container;
    size_t n;
    ds_role last;
} seen;

static dsv2_status see(seen *s, const ds_weight_id *id, ds_shape shape)
{
    char name[DS_NAME_SIZE];
    ds_published_name(id, name);
    const ds_tensor *tensor = ds_container_find(s->container, name);
    ck_assert_msg(tensor != NULL, "%s is not in the file", name);
    ck_assert_uint_eq(tensor->dims[0], shape.rows);
    ck_assert_uint_eq(tensor->n_dims, shape.cols > 0 ? 2 : 1);
    s->n++;
    s->last = id->role;
    return DSV2_OK;
}

static dsv2_status see_matrix(void *context, const ds_weight_id *id, ds_shape shape, ds_matrix *slot)
{
    ck_assert(slot->rows == shape.rows && slot->cols == shape.cols && slot->data != NULL);
    return see(context, id, shape);
}

static dsv2_status see_vector(void *context, const ds_weight_id *id, uint32_t n, const float **slot)
{
    ck_assert(*slot != NULL);
    return see(context, id, (ds_shape){n, 0});
}

START_TEST(the_walk_visits_every_tensor_of_a_checkpoint_once_under_its_name)
{
    dsv2_model *model = test_model_open(test_golden_folders[_i], NULL);
    seen s = {.container = model->fixed.container};
    const ds_weights_visitor visitor = {see_matrix, see_vector, &s};
    ck_assert(ds_weights_walk(&model->fixed.weights, &model->fixed.config, &visitor) == DSV2_OK);
    ck_assert_uint_eq(s.n, ds_container_count(model->fixed.container));
    ck_assert_int_eq(s.last, model->fixed.config.tie_word_embeddings ? DS_ROLE_NORM : DS_ROLE_LM_HEAD);
    dsv2_model_close(model);
}
END_TEST

START_TEST(no_two_weights_have_the_same_name_in_either_kind_of_file)
{
    char a[DS_NAME_SIZE], b[DS_NAME_SIZE];
    for (ds_role x = 0; x < DS_ROLE_COUNT; x++) {
        for (ds_role y = 0; y < x; y++) {
            const ds_weight_id p = {x, 11, 7}, q = {y, 11, 7};
            ds_gguf_name(&p, a);
            ds_gguf_name(&q, b);
            ck_assert_str_ne(a, b);
            if (ds_role_info_of(x)->published == NULL || ds_role_info_of(y)->published == NULL)
                continue;
            ds_published_name(&p, a);
            ds_published_name(&q, b);
            ck_assert_str_ne(a, b);
        }
    }
    ds_published_name(&(ds_weight_id){DS_ROLE_EXPERT_UP, 11, 7}, a);
    ck_assert_str_eq(a, "model.layers.11.mlp.experts.7.up_proj.weight");
    ds_gguf_name(&(ds_weight_id){DS_ROLE_EXPERT_UP, 11, 7}, a);
    ck_assert_str_eq(a, "blk.11.ffn_up_exps.weight");
    ck_assert(ds_gguf_joined_name(&(ds_weight_id){DS_ROLE_EXPERT_UP, 11, 7}, a));
    ck_assert_str_eq(a, "blk.11.ffn_gate_up_exps.weight");
    ck_assert(!ds_gguf_joined_name(&(ds_weight_id){DS_ROLE_EXPERT_DOWN, 11, 7}, a));
}
END_TEST

/* ---- the queue of conversions ---- */

/* V2-Lite's shape in bytes of the queue: its widths, and the queue's limit, divided by 16. */
static const test_checkpoint lite = {.name = "lite", .vocab_size = 400, .hidden_size = 128, .intermediate_size = 688,
                                     .num_hidden_layers = 3, .num_attention_heads = 4, .kv_lora_rank = 32,
                                         .qk_nope_head_dim = 32,
                                     .qk_rope_head_dim = 16, .v_head_dim = 32, .max_position_embeddings = 256,
                                     .n_routed_experts = 64, .num_experts_per_tok = 6, .moe_intermediate_size = 88,
                                     .n_shared_experts = 2, .first_k_dense_replace = 1, .seed = 61};
enum { LITE_BYTES = (16 << 20) / 16 / 16 }; /* rows are a sixteenth as long, and there are a sixteenth as many */

typedef struct comparison {
    const ds_weights *other;
    size_t n;
} comparison;

/* Both were bound in the same order: the slot has the same offset from its structure. */
static const ds_matrix *matrix_of(const ds_weights *weights, const ds_weight_id *id)
{
    const ds_role_info *role = ds_role_info_of(id->role);
    const char *base = role->scope == DS_SCOPE_LAYER    ? (const char *)&weights->layers[id->layer]
                       : role->scope == DS_SCOPE_EXPERT
                           ? (const char *)&weights->layers[id->layer].moe.experts[id->expert]
                                                        : (const char *)weights;
    return (const ds_matrix *)(const void *)(base + role->slot);
}

static dsv2_status compare_matrix(void *context, const ds_weight_id *id, ds_shape shape, ds_matrix *slot)
{
    comparison *c = context;
    const ds_matrix *other = matrix_of(c->other, id);
    ck_assert_int_eq(slot->type, other->type);
    ck_assert_msg(memcmp(slot->data, other->data, ds_matrix_bytes(slot->type, shape.rows, shape.cols)) == 0,
                  "role %d, layer %u, expert %u has other bytes", (int)id->role, id->layer, id->expert);
    c->n++;
    return DSV2_OK;
}

static dsv2_status compare_vector(void *context, const ds_weight_id *id, uint32_t n, const float **slot)
{
    (void)context, (void)id, (void)n, (void)slot;
    return DSV2_OK;
}

/* Opens a checkpoint's weights again, by other limits. */
static void open_again(const dsv2_model *model, dsv2_weight_type type, uint32_t n_threads, ds_queue_limits limits,
                       ds_weights *weights)
{
    ds_pool *pool;
    ck_assert(ds_pool_create(n_threads, &pool) == DSV2_OK);
    const ds_weights_opening opening = {.config = &model->fixed.config, .container = model->fixed.container,
                                        .kernels = model->fixed.kernels,
                                        .pool = pool, .weight_type = type, .queue_limits = limits};
    ck_assert_msg(ds_weights_open(weights, &opening) == DSV2_OK, "%s", dsv2_last_error());
    ds_pool_destroy(pool);
}

static const ds_queue_limits limits[] = {
    {LITE_BYTES, 0},  /* as a large model fills the queue */
    {LITE_BYTES, 16}, /* by bytes and by entries */
    {LITE_BYTES, 31}, {UINT32_MAX, 15}, {UINT32_MAX, 1}, {1, 0}, {1, 1},
};
enum { N_LIMITS = sizeof limits / sizeof *limits, MOST_THREADS = 7 };

/* On any number of threads: the queue's limit in bytes grows with them, and with it what waits when the list is
 * full. */
START_TEST(a_queue_that_fills_at_any_moment_converts_the_same_bytes)
{
    static const dsv2_weight_type types[] = {DSV2_WEIGHTS_Q8_0, DSV2_WEIGHTS_Q4_K};
    char *folder = test_checkpoint_write(&lite);
    dsv2_model *model = test_model_open(folder, &(dsv2_model_options){.n_threads = 1});
    ds_weights whole;
    open_again(model, types[_i], 2, (ds_queue_limits){UINT32_MAX, 4096}, &whole);
    for (uint32_t n_threads = 1; n_threads <= MOST_THREADS; n_threads++) {
        ds_weights weights;
        open_again(model, types[_i], n_threads, limits[n_threads % N_LIMITS], &weights);
        comparison c = {.other = &whole};
        const ds_weights_visitor visitor = {compare_matrix, compare_vector, &c};
        ck_assert(ds_weights_walk(&weights, &model->fixed.config, &visitor) == DSV2_OK);
        ck_assert_uint_gt(c.n, 2 * 3 * lite.n_routed_experts);
        ck_assert_uint_eq(weights.digest, whole.digest);
        ds_weights_close(&weights);
        if (limits[n_threads % N_LIMITS].bytes_per_thread == LITE_BYTES)
            continue;
        open_again(model, types[_i], n_threads, limits[0], &weights);
        ck_assert(ds_weights_walk(&weights, &model->fixed.config, &visitor) == DSV2_OK);
        ds_weights_close(&weights);
    }
    ds_weights_close(&whole);
    dsv2_model_close(model);
    test_checkpoint_remove(folder);
}
END_TEST

/* ---- no memory ---- */

/* A model that holds more than 32 blocks, one for each layer's experts: the list of blocks grows twice while it
 * opens. */
static const test_checkpoint deep = {.name = "deep", .vocab_size = 16, .hidden_size = 32, .intermediate_size = 16,
                                     .num_hidden_layers = 40, .num_attention_heads = 1, .kv_lora_rank = 128,
                                         .qk_nope_head_dim = 64,
                                     .qk_rope_head_dim = 4, .v_head_dim = 4, .max_position_embeddings = 64,
                                         .n_routed_experts = 2,
                                     .num_experts_per_tok = 1, .moe_intermediate_size = 8, .seed = 62};

/* What a queue owns stays in memory until the queue runs: a layer's kv_b_proj, a joined one and (W^UK)^T have 100 MB
 * together in a large model. */
START_TEST(a_queue_of_many_threads_owns_no_more_than_one_of_few)
{
    enum { ROWS = 256, COLS = 4096, N = 40 };
    const size_t bytes = (size_t)ROWS * COLS * sizeof(float), out_bytes = ds_matrix_bytes(DS_TYPE_P8, ROWS, COLS);
    const ds_kernels *kernels;
    ds_pool *pool;
    ds_queue queue;
    uint8_t *out = ds_new_aligned(N, out_bytes); /* one each: threads convert them at once */
    char *folder = test_checkpoint_write(&deep);
    dsv2_model *model = test_model_open(folder, &(dsv2_model_options){.n_threads = 1});
    ck_assert(ds_kernels_select(NULL, &kernels) == DSV2_OK && ds_pool_create(16, &pool) == DSV2_OK);
    ds_queue_init(&queue, kernels, pool, NULL, model->fixed.container, (ds_queue_limits){0});
    size_t runs = 0;
    for (size_t i = 0; i < N; i++) {
        float *values = ds_new_aligned(1, bytes);
        memset(values, 0, bytes);
        const ds_conversion conversion = {
            .from = {.rows = ROWS, .cols = COLS, .type = DS_TYPE_F32, .data = values,
                     .row_bytes = COLS * sizeof(float)},
            .type = DS_TYPE_P8, .out = out + i * out_bytes, .label = {.name = "zeros"}};
        ck_assert(ds_queue_reserve(&queue, &conversion) == DSV2_OK);
        ds_queue_own(&queue, values, bytes);
        ck_assert_msg(ds_queue_add(&queue, &conversion) == DSV2_OK, "%s", dsv2_last_error());
        ck_assert_uint_eq(queue.own_bytes, queue.n * bytes);
        ck_assert_uint_lt(queue.own_bytes, DS_QUEUE_OWN_BYTES);
        runs += queue.n == 0;
    }
    ck_assert_uint_eq(runs, N * bytes / DS_QUEUE_OWN_BYTES);
    ck_assert(ds_queue_run(&queue) == DSV2_OK);
    ds_queue_free(&queue);
    ds_pool_destroy(pool);
    dsv2_model_close(model);
    test_checkpoint_remove(folder);
    ds_free(out);
}
END_TEST

/* The container is open: what fails is the weights' own. */
START_TEST(every_allocation_of_binding_many_blocks_may_fail)
{
    char *folder = test_checkpoint_write(&deep);
    dsv2_model *model = test_model_open(folder, &(dsv2_model_options){.n_threads = 1});
    ck_assert_uint_gt(model->fixed.weights.holder.n, 32);
    const ds_model_fixed *fixed = &model->fixed;
    ds_weights_opening opening = {.config = &fixed->config, .container = fixed->container, .kernels = fixed->kernels,
                                  .pool = model->pool,
                                  .weight_type = _i == 0 ? DSV2_WEIGHTS_AS_STORED : DSV2_WEIGHTS_Q8_0};
    long live = oom_live();
    bool failed = true;
    for (size_t nth = 1; failed; nth++) {
        ds_weights weights;
        oom_arm(nth, false);
        dsv2_status status = ds_weights_open(&weights, &opening);
        ds_weights_close(&weights);
        failed = oom_disarm();
        ck_assert_msg(status == (failed ? DSV2_ERROR_MEMORY : DSV2_OK), "allocation %zu: status %d: %s", nth,
                      (int)status, dsv2_last_error());
        ck_assert_int_eq(oom_live(), live);
        ck_assert(nth > 32 || failed);
    }
    dsv2_model_close(model);
    test_checkpoint_remove(folder);
}
END_TEST

START_TEST(what_a_holder_made_is_aligned_apart_and_freed_once)
{
    ds_holder holder;
    ds_holder_init(&holder, NULL, 4096);
    uint8_t *last = NULL;
    for (size_t i = 0; i < 200; i++) {
        size_t bytes = i * 37 % 1000;
        uint8_t *memory = i % 7 == 0 ? ds_holder_array(&holder, bytes, 1) : ds_holder_bytes(&holder, bytes);
        ck_assert(memory != NULL && memory != last && (i % 7 == 0 || (uintptr_t)memory % 64 == 0));
        for (size_t b = 0; b < bytes && i % 7 == 0; b++)
            ck_assert_uint_eq(memory[b], 0);
        memset(memory, 0xff, bytes);
        last = memory;
    }
    ck_assert_uint_gt(holder.n, 32);
    ds_holder_free(&holder);
    ck_assert(holder.n == 0 && holder.blocks == NULL);
}
END_TEST

int main(void)
{
    TCase *tests = tcase_create("weights");
    tcase_set_timeout(tests, 200);
    tcase_add_loop_test(tests, the_walk_visits_every_tensor_of_a_checkpoint_once_under_its_name, 0, TEST_GOLDENS);
    tcase_add_test(tests, no_two_weights_have_the_same_name_in_either_kind_of_file);
    tcase_add_loop_test(tests, a_queue_that_fills_at_any_moment_converts_the_same_bytes, 0, 2);
    if (oom_available())
        tcase_add_loop_test(tests, every_allocation_of_binding_many_blocks_may_fail, 0, 2);
    tcase_add_test(tests, a_queue_of_many_threads_owns_no_more_than_one_of_few);
    tcase_add_test(tests, what_a_holder_made_is_aligned_apart_and_freed_once);

    Suite *suite = suite_create("weights");
    suite_add_tcase(suite, tests);
    return test_run(suite);
}

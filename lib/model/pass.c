/* Working memory of passes: one block, laid out once for a number of rows and a length of context, and kept for the next call. */
#include "model/pass.h"

#include <string.h>

/* Single spans of attention are kept for at most this many query vectors: 134 MB with a latent of 512. */
enum { MAX_PARTIALS = 65536 };

/* Hands out parts of a block; with `memory` NULL it only adds up. */
typedef struct carver {
    uint8_t *memory;
    uint64_t used;
    bool fits; /* no sum has wrapped */
} carver;

static void *carve(carver *c, uint64_t count, uint64_t size)
{
    uint64_t bytes, end;
    if (!ds_mul(count, size, &bytes) || !ds_add(bytes, 63, &bytes) || !ds_add(c->used, bytes & ~(uint64_t)63, &end))
        c->fits = false;
    if (!c->fits)
        return NULL;
    void *part = c->memory == NULL ? NULL : c->memory + c->used;
    c->used = end;
    return part;
}

static size_t max_of(size_t a, size_t b) { return a > b ? a : b; }

/* The most that ds_matmul asks for with any of the model's matrices. */
static size_t matmul_scratch(const dsv2_model *model)
{
    size_t floats = ds_matmul_scratch(&model->lm_head);
    for (uint32_t l = 0; l < model->config.num_hidden_layers; l++) {
        const ds_layer *layer = &model->layers[l];
        const ds_mla_weights *mla = &layer->mla;
        const ds_matrix *matrices[] = {
            &mla->q_proj, &mla->q_a_proj, &mla->q_b_proj, &mla->kv_a_proj, &mla->kv_b_proj, &mla->k_up_transposed, &mla->o_proj,
            &layer->ffn.gate, &layer->ffn.up, &layer->ffn.down,
            &layer->moe.gate, &layer->moe.shared.gate, &layer->moe.shared.up, &layer->moe.shared.down,
        };
        for (size_t i = 0; i < sizeof matrices / sizeof *matrices; i++)
            floats = max_of(floats, ds_matmul_scratch(matrices[i])); /* of a matrix that is not there: 0 */
        for (uint32_t e = 0; layer->is_moe && e < model->config.n_routed_experts; e++) {
            const ds_ffn_weights *expert = &layer->moe.experts[e];
            floats = max_of(floats, max_of(ds_matmul_scratch(&expert->gate),
                                           max_of(ds_matmul_scratch(&expert->up), ds_matmul_scratch(&expert->down))));
        }
    }
    return floats;
}

static uint32_t task_count(uint32_t rows) { return (rows + DS_TASK_ROWS - 1) / DS_TASK_ROWS; }

static void lay_out_ffn(ds_pass *pass, carver *c)
{
    const ds_config *config = &pass->model->config;
    uint64_t m = pass->max_rows, n_experts = config->n_routed_experts, top_k = config->num_experts_per_tok;
    uint64_t hidden_floats = m * config->intermediate_size, hidden_blocks = m * ds_prepared_blocks(config->intermediate_size);
    uint64_t slots = m, n_jobs = 1;
    uint64_t n_slices = max_of(task_count(config->intermediate_size), task_count(config->hidden_size));
    if (n_experts > 0) {
        uint64_t shared = (uint64_t)config->n_shared_experts * config->moe_intermediate_size;
        slots = m * (top_k + 1);
        n_jobs = n_experts + 1;
        hidden_floats = max_of(hidden_floats, m * (top_k * config->moe_intermediate_size + shared));
        hidden_blocks = max_of(hidden_blocks, m * (top_k * ds_prepared_blocks(config->moe_intermediate_size) +
                                                   ds_prepared_blocks((uint32_t)shared)));
        n_slices = max_of(n_slices, task_count((uint32_t)shared) + task_count(config->hidden_size) +
                                        n_experts * max_of(task_count(config->moe_intermediate_size), task_count(config->hidden_size)));
        pass->routes.scores = carve(c, m * n_experts, sizeof(float));
        pass->routes.experts = carve(c, m * top_k, sizeof(uint32_t));
        pass->routes.gates = carve(c, m * top_k, sizeof(float));
        pass->routes.groups = carve(c, m, sizeof(uint64_t));
        pass->expert_rows = carve(c, n_experts + 1, sizeof(uint32_t));
        pass->pair_slot = carve(c, m * top_k, sizeof(uint32_t));
        pass->ffn_output = carve(c, slots * config->hidden_size, sizeof(float));
    }
    pass->ffn_rows = carve(c, slots, sizeof(uint32_t));
    pass->ffn_inputs = carve(c, slots, sizeof(float *));
    pass->ffn_input_x8 = carve(c, slots, sizeof(ds_x8 *));
    pass->ffn_hidden_rows = carve(c, slots, sizeof(float *));
    pass->ffn_hidden_x8 = carve(c, slots, sizeof(ds_x8 *));
    pass->ffn_hidden = carve(c, hidden_floats, sizeof(float));
    pass->ffn_x8 = carve(c, pass->model->has_packed ? hidden_blocks : 0, sizeof(ds_x8));
    pass->ffn_jobs = carve(c, n_jobs, sizeof(ds_ffn_job));
    pass->ffn_slices = carve(c, n_slices, sizeof(ds_ffn_slice));
}

static void lay_out_attention(ds_pass *pass, carver *c)
{
    const ds_config *config = &pass->model->config;
    uint64_t m = pass->max_rows, n_heads = config->num_attention_heads, n_threads = ds_pool_threads(pass->model->pool);
    uint64_t width = (uint64_t)config->kv_lora_rank + config->qk_rope_head_dim;
    pass->q = carve(c, m * n_heads * (config->qk_nope_head_dim + config->qk_rope_head_dim), sizeof(float));
    pass->q_a = carve(c, m * config->q_lora_rank, sizeof(float));
    pass->kv_a = carve(c, m * width, sizeof(float));
    pass->absorbed = carve(c, m * n_heads * width, sizeof(float));
    pass->heads_out = carve(c, m * n_heads * config->v_head_dim, sizeof(float));

    uint64_t segment = pass->max_position < DS_SEGMENT_TOKENS ? pass->max_position : DS_SEGMENT_TOKENS;
    pass->segment_latents = carve(c, segment * width, sizeof(float));
    pass->segment_x8 = carve(c, pass->model->has_packed ? segment * ds_prepared_blocks(config->kv_lora_rank) : 0, sizeof(ds_x8));
    pass->expanded_max = carve(c, m * n_heads, sizeof(float));
    pass->expanded_sum = carve(c, m * n_heads, sizeof(float));

    /* Only few rows are cut into spans: fewer blocks than four for each thread. */
    uint64_t n_spans = pass->max_position / DS_SPAN_TOKENS + 1;
    uint64_t block_rows = n_heads < DS_QUERY_BLOCK ? DS_QUERY_BLOCK / n_heads : 1, split_rows = 4 * n_threads * block_rows;
    uint64_t partials = (m < split_rows ? m : split_rows) * n_heads * n_spans;
    pass->max_partials = partials < MAX_PARTIALS ? partials : MAX_PARTIALS;
    uint64_t whole_tasks = m * ((n_heads + DS_QUERY_BLOCK - 1) / DS_QUERY_BLOCK), span_tasks = 4 * n_threads * n_spans;
    pass->attend_tasks = carve(c, max_of(whole_tasks, span_tasks < pass->max_partials ? span_tasks : pass->max_partials),
                               sizeof(ds_attend_task));
    pass->span_out = carve(c, pass->max_partials * config->kv_lora_rank, sizeof(float));
    pass->span_max = carve(c, pass->max_partials, sizeof(float));
    pass->span_sum = carve(c, pass->max_partials, sizeof(float));
}

static void lay_out_head(ds_pass *pass, carver *c)
{
    uint64_t m = pass->max_rows;
    pass->logit_rows = carve(c, m, sizeof(uint32_t));
    pass->logits = carve(c, (m < DS_LOGIT_ROWS ? m : DS_LOGIT_ROWS) * pass->model->config.vocab_size, sizeof(float));
}

static void lay_out(ds_pass *pass, carver *c)
{
    const ds_config *config = &pass->model->config;
    uint64_t m = pass->max_rows;
    pass->row_sequence = carve(c, m, sizeof(uint32_t));
    pass->row_position = carve(c, m, sizeof(size_t));
    pass->row_pointers = carve(c, m, sizeof(float *));
    pass->hidden = carve(c, m * config->hidden_size, sizeof(float));
    pass->normed = carve(c, m * config->hidden_size, sizeof(float));
    pass->block_out = carve(c, m * config->hidden_size, sizeof(float));
    pass->rope_cos = carve(c, m * config->qk_rope_head_dim / 2, sizeof(float));
    pass->rope_sin = carve(c, m * config->qk_rope_head_dim / 2, sizeof(float));
    size_t widest = max_of(max_of(config->hidden_size, config->q_lora_rank), (size_t)config->num_attention_heads * config->v_head_dim);
    pass->x8_stride = ds_prepared_blocks((uint32_t)widest);
    pass->x8 = carve(c, pass->model->has_packed ? m * pass->x8_stride : 0, sizeof(ds_x8));
    pass->x8_rows = carve(c, m, sizeof(ds_x8 *));
    size_t ffn_scratch = (size_t)DS_PASS_ROWS * DS_TASK_ROWS;
    pass->thread_scratch_floats = (matmul_scratch(pass->model) + max_of(ds_mla_scratch(pass->model), ffn_scratch) + 15) & ~(size_t)15;
    pass->thread_scratch = carve(c, (uint64_t)pass->thread_scratch_floats * ds_pool_threads(pass->model->pool), sizeof(float));
    /* What attention, feed-forward and head work on is dropped at the end of each: they share the rest. */
    void (*const parts[])(ds_pass *, carver *) = {lay_out_attention, lay_out_ffn, lay_out_head};
    uint64_t first = c->used, end = first;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        c->used = first;
        parts[i](pass, c);
        end = max_of(c->used, end);
    }
    c->used = end;
}

float *ds_thread_scratch(const ds_pass *pass, unsigned thread)
{
    return pass->thread_scratch + (size_t)thread * pass->thread_scratch_floats;
}

static void pass_free(ds_pass *pass)
{
    atomic_fetch_sub(&pass->model->scratch_bytes, pass->memory_bytes);
    ds_free(pass->memory);
    ds_free(pass);
}

static dsv2_status pass_new(dsv2_model *model, uint32_t n_rows, size_t max_position, ds_pass **out)
{
    ds_pass *pass = ds_new(1, sizeof *pass);
    if (pass == NULL)
        return ds_fail_memory("a pass", sizeof *pass);
    pass->model = model;
    pass->max_rows = n_rows;
    pass->max_position = max_position;
    carver c = {.fits = true};
    lay_out(pass, &c);
    c.memory = c.fits && c.used <= PTRDIFF_MAX ? ds_new_aligned((size_t)c.used, 1) : NULL;
    if (c.memory == NULL) {
        ds_free(pass);
        return ds_fail_memory("working memory", (size_t)c.used);
    }
    pass->memory = c.memory;
    pass->memory_bytes = (size_t)c.used;
    c.used = 0;
    lay_out(pass, &c);
    atomic_fetch_add(&model->scratch_bytes, pass->memory_bytes);
    *out = pass;
    return DSV2_OK;
}

/* Rounded up, so that a conversation that grows does not ask for a little more at every token. */
static uint32_t round_rows(uint32_t n)
{
    uint32_t rounded = 1;
    while (rounded < n)
        rounded *= 2;
    return rounded;
}

static size_t round_position(size_t n) { return n + (DS_SPAN_TOKENS * 8 - n % (DS_SPAN_TOKENS * 8)); }

dsv2_status ds_pass_acquire(dsv2_model *model, uint32_t n_rows, size_t max_position, ds_pass **out)
{
    ds_mutex_lock(&model->passes_lock);
    ds_pass *pass = model->idle_passes;
    if (pass != NULL)
        model->idle_passes = pass->next;
    ds_mutex_unlock(&model->passes_lock);
    if (pass != NULL && pass->max_rows >= n_rows && pass->max_position >= max_position) {
        *out = pass;
        return DSV2_OK;
    }
    n_rows = round_rows(n_rows);
    max_position = round_position(max_position);
    ds_pass *larger;
    if (pass == NULL)
        return pass_new(model, n_rows, max_position, out);
    n_rows = n_rows > pass->max_rows ? n_rows : pass->max_rows;
    max_position = max_position > pass->max_position ? max_position : pass->max_position;
    dsv2_status status = pass_new(model, n_rows, max_position, &larger);
    if (status != DSV2_OK) {
        ds_pass_release(model, pass);
        return status;
    }
    pass_free(pass);
    *out = larger;
    return DSV2_OK;
}

void ds_pass_release(dsv2_model *model, ds_pass *pass)
{
    ds_mutex_lock(&model->passes_lock);
    pass->next = model->idle_passes;
    model->idle_passes = pass;
    ds_mutex_unlock(&model->passes_lock);
}

void ds_passes_free(dsv2_model *model)
{
    while (model->idle_passes != NULL) {
        ds_pass *pass = model->idle_passes;
        model->idle_passes = pass->next;
        pass_free(pass);
    }
}

/* DeepSeekMoE (section 2.2.1, Eqs. 20-22): h' = u + sum of shared experts + sum of gated routed experts. Rows are
 * grouped by expert over the whole pass, so that an expert's weights are read once for all its rows. */
#include "forward/moe.h"

#include <assert.h>
#include <string.h>

typedef struct moe {
    ds_rows *rows;
    ds_moe_memory *memory;
    ds_ffn_memory *networks;
} moe;

void ds_moe_lay_out(ds_moe_memory *memory, ds_layout *layout)
{
    const ds_config *config = layout->config;
    uint64_t m = layout->max_rows, n_experts = config->n_routed_experts, top_k = config->num_experts_per_tok;
    if (n_experts == 0)
        return;
    ds_routes_lay_out(&memory->routes, layout);
    memory->first_slot = ds_lay_out(layout, n_experts + 1, sizeof(uint32_t));
    memory->chosen = ds_lay_out(layout, n_experts, sizeof(uint32_t));
    memory->chosen_weights = ds_lay_out(layout, n_experts, sizeof(ds_ffn_weights *));
    memory->pair_slot = ds_lay_out(layout, m * top_k, sizeof(uint32_t));
    memory->output = ds_lay_out(layout, m * (top_k + 1) * config->hidden_size, sizeof(float));
}

/* A job for n_rows rows from slot `first` on, whose slots before it all belong to routed experts. */
static ds_ffn_job job_at(const ds_config *config, uint32_t first, uint32_t n_rows)
{
    return (ds_ffn_job){
        .n_rows = n_rows,
        .first_slot = first,
        .first_hidden = (size_t)first * config->moe_intermediate_size,
        .first_x8 = first * ds_prepared_blocks(config->moe_intermediate_size),
        .first_output = (size_t)first * config->hidden_size,
    };
}

/* The shared experts take every row. Their job goes first, being the largest; their slots come after the pairs'
 * slots. */
static void add_shared(const moe *m, const ds_moe_weights *weights)
{
    const ds_config *config = m->rows->config;
    uint32_t first = m->rows->n * config->num_experts_per_tok;
    for (uint32_t row = 0; row < m->rows->n; row++)
        m->networks->slot_row[first + row] = row;
    ds_ffn_job job = job_at(config, first, m->rows->n);
    job.weights = &weights->shared;
    m->networks->jobs[m->networks->n_jobs++] = job;
}

/* Sorts the pairs by expert, rows in order within each, and makes a job of every expert that was chosen. */
static void add_chosen(const moe *m)
{
    const ds_config *config = m->rows->config;
    ds_moe_memory *memory = m->memory;
    const uint32_t *experts = memory->routes.experts;
    uint32_t n_experts = config->n_routed_experts, top_k = config->num_experts_per_tok, n_pairs = m->rows->n * top_k;
    uint32_t *next = memory->first_slot;
    memory->n_chosen = 0;
    memset(next, 0, (n_experts + 1) * sizeof *next);
    for (uint32_t pair = 0; pair < n_pairs; pair++)
        next[experts[pair] + 1]++;
    for (uint32_t e = 0; e < n_experts; e++) {
        uint32_t n = next[e + 1], first = next[e];
        next[e + 1] += first;
        if (n == 0)
            continue;
        memory->chosen[memory->n_chosen++] = e;
        m->networks->jobs[m->networks->n_jobs++] = job_at(config, first, n);
    }
    for (uint32_t pair = 0; pair < n_pairs; pair++) {
        uint32_t slot = next[experts[pair]]++;
        memory->pair_slot[pair] = slot;
        m->networks->slot_row[slot] = pair / top_k;
    }
}

/* Others have the threads while the source waits. */
static dsv2_status acquire(const moe *m, uint32_t layer)
{
    ds_moe_memory *memory = m->memory;
    ds_expert_source *source = m->rows->weights->experts;
    const uint32_t *experts = memory->chosen;
    uint32_t n = memory->n_chosen;
    if (source->try_acquire != NULL && source->try_acquire(source, layer, experts, n, memory->chosen_weights))
        return DSV2_OK;
    bool in_turn = ds_pool_end_turn(m->rows->pool);
    dsv2_status status = source->acquire(source, layer, experts, n, memory->chosen_weights);
    if (in_turn)
        ds_pool_begin_turn(m->rows->pool);
    return status;
}

/* The chosen experts' networks and the shared ones, while the source lends the chosen experts' weights. */
static dsv2_status run_networks(const moe *m, uint32_t layer)
{
    ds_moe_memory *memory = m->memory;
    ds_ffn_memory *networks = m->networks;
    ds_expert_source *source = m->rows->weights->experts;
    uint32_t first_job = networks->n_jobs - memory->n_chosen;
    dsv2_status status = acquire(m, layer);
    if (status != DSV2_OK)
        return status;
    for (uint32_t i = 0; i < memory->n_chosen; i++)
        networks->jobs[first_job + i].weights = memory->chosen_weights[i];
    status = ds_ffn_run(m->rows, networks, memory->output);
    source->release(source, layer, memory->chosen, memory->n_chosen);
    return status;
}

/* One row: the sum of the chosen experts' outputs times their gates, in the order in which the router chose them, plus
 * the shared experts' output. */
static void combine_row(void *context, size_t row, unsigned thread)
{
    (void)thread;
    const moe *m = context;
    const ds_config *config = m->rows->config;
    const ds_moe_memory *memory = m->memory;
    uint32_t hidden = config->hidden_size, top_k = config->num_experts_per_tok;
    float *out = m->rows->output + row * hidden;
    memset(out, 0, hidden * sizeof *out);
    for (uint32_t k = 0; k < top_k; k++)
        m->rows->kernels->add_scaled(out, memory->output + (size_t)memory->pair_slot[row * top_k + k] * hidden,
                                     memory->routes.gates[row * top_k + k], hidden);
    if (config->n_shared_experts > 0)
        m->rows->kernels->add_scaled(out, memory->output + ((size_t)m->rows->n * top_k + row) * hidden, 1.0f, hidden);
}

dsv2_status ds_moe(ds_rows *rows, ds_moe_memory *memory, ds_ffn_memory *networks, uint32_t layer)
{
    const ds_moe_weights *weights = &rows->weights->layers[layer].moe;
    moe m = {rows, memory, networks};
    dsv2_status status = ds_route(rows, weights, &memory->routes);
    if (status != DSV2_OK)
        return status;
    networks->n_jobs = 0;
    if (rows->config->n_shared_experts > 0)
        add_shared(&m, weights);
    add_chosen(&m);
    status = run_networks(&m, layer);
    if (status == DSV2_OK)
        status = ds_stage_begin(&rows->watch, DS_STAGE_COMBINE);
    if (status == DSV2_OK)
        ds_pool_run(rows->pool, combine_row, &m, rows->n);
    return status;
}

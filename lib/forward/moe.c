/* DeepSeekMoE (section 2.2.1, Eqs. 20-22): h' = u + sum of shared experts + sum of gated routed experts. Rows are grouped by expert
 * over the whole pass, so that an expert's weights are read once for all its rows. */
#include "forward/pass.h"

#include <string.h>

/* Sorts the (row, chosen expert) pairs by expert, rows in order within each, and makes a job of every expert that was chosen. */
static void group_by_expert(ds_pass *pass)
{
    const ds_config *config = pass->decoder->config;
    uint32_t n_experts = config->n_routed_experts, top_k = config->num_experts_per_tok, n_pairs = pass->n_rows * top_k;
    uint32_t *next = pass->expert_rows;
    pass->n_chosen = 0;
    memset(next, 0, (n_experts + 1) * sizeof *next);
    for (uint32_t pair = 0; pair < n_pairs; pair++)
        next[pass->routes.experts[pair] + 1]++;
    for (uint32_t e = 0; e < n_experts; e++) {
        uint32_t n = next[e + 1], first = next[e];
        next[e + 1] += first;
        if (n == 0)
            continue;
        pass->chosen[pass->n_chosen++] = e;
        pass->ffn_jobs[pass->n_ffn_jobs++] = (ds_ffn_job){
            .n_rows = n,
            .first_input = first,
            .first_hidden = (size_t)first * config->moe_intermediate_size,
            .first_x8 = first * ds_prepared_blocks(config->moe_intermediate_size),
            .first_output = (size_t)first * config->hidden_size,
        };
    }
    for (uint32_t pair = 0; pair < n_pairs; pair++) {
        uint32_t slot = next[pass->routes.experts[pair]]++;
        pass->pair_slot[pair] = slot;
        pass->ffn_rows[slot] = pair / top_k;
    }
}

/* The shared experts take every row; they go first, being the largest job. Their slots come after the pairs'. */
static void add_shared(ds_pass *pass, const ds_moe_weights *moe)
{
    const ds_config *config = pass->decoder->config;
    uint32_t first = pass->n_rows * config->num_experts_per_tok;
    for (uint32_t row = 0; row < pass->n_rows; row++)
        pass->ffn_rows[first + row] = row;
    pass->ffn_jobs[pass->n_ffn_jobs++] = (ds_ffn_job){
        .weights = &moe->shared,
        .n_rows = pass->n_rows,
        .first_input = first,
        .first_hidden = (size_t)first * config->moe_intermediate_size,
        .first_x8 = first * ds_prepared_blocks(config->moe_intermediate_size),
        .first_output = (size_t)first * config->hidden_size,
    };
}

static void combine_row(void *context, size_t row, unsigned thread)
{
    (void)thread;
    ds_pass *pass = context;
    const ds_config *config = pass->decoder->config;
    uint32_t hidden = config->hidden_size, top_k = config->num_experts_per_tok;
    float *out = pass->block_out + row * hidden;
    memset(out, 0, hidden * sizeof *out);
    for (uint32_t k = 0; k < top_k; k++)
        pass->decoder->kernels->add_scaled(out, pass->ffn_output + (size_t)pass->pair_slot[row * top_k + k] * hidden,
                                         pass->routes.gates[row * top_k + k], hidden);
    if (config->n_shared_experts > 0)
        pass->decoder->kernels->add_scaled(out, pass->ffn_output + ((size_t)pass->n_rows * top_k + row) * hidden, 1.0f, hidden);
}

dsv2_status ds_moe(ds_pass *pass, uint32_t layer)
{
    const ds_decoder *decoder = pass->decoder;
    const ds_moe_weights *moe = &decoder->weights->layers[layer].moe;
    ds_expert_source *source = decoder->weights->experts;
    ds_route(pass, moe);
    pass->n_ffn_jobs = 0;
    if (decoder->config->n_shared_experts > 0)
        add_shared(pass, moe);
    uint32_t n_shared_jobs = pass->n_ffn_jobs;
    group_by_expert(pass);
    dsv2_status status = source->acquire(source, layer, pass->chosen, pass->n_chosen, pass->chosen_weights);
    if (status != DSV2_OK)
        return status;
    for (uint32_t i = 0; i < pass->n_chosen; i++)
        pass->ffn_jobs[n_shared_jobs + i].weights = pass->chosen_weights[i];
    ds_ffn_run(pass);
    source->release(source, layer, pass->chosen, pass->n_chosen);
    ds_pool_run(decoder->pool, combine_row, pass, pass->n_rows);
    return DSV2_OK;
}

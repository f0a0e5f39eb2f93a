#include "forward/router.h"

#include <math.h>

typedef struct router {
    ds_rows *rows;
    const ds_config *config;
    const ds_moe_weights *moe;
    ds_routes *routes;
} router;

void ds_routes_lay_out(ds_routes *routes, ds_layout *layout)
{
    uint64_t m = layout->max_rows, top_k = layout->config->num_experts_per_tok;
    routes->scores = ds_lay_out(layout, m * layout->config->n_routed_experts, sizeof(float));
    routes->experts = ds_lay_out(layout, m * top_k, sizeof(uint32_t));
    routes->gates = ds_lay_out(layout, m * top_k, sizeof(float));
    routes->groups = ds_lay_out(layout, m, sizeof(uint64_t));
}

/* Affinities s_(i,t) from the products u_t e_i (Eq. 22): softmax over all experts in float, or DeepSeek-V3's
 * sigmoid. */
static void affinities(ds_scoring_func scoring_func, float *scores, uint32_t n)
{
    if (scoring_func == DS_SCORING_SIGMOID) {
        for (uint32_t i = 0; i < n; i++)
            scores[i] = 1.0f / (1.0f + expf(-scores[i]));
        return;
    }
    float max = scores[0], sum = 0;
    for (uint32_t i = 1; i < n; i++)
        max = scores[i] > max ? scores[i] : max;
    for (uint32_t i = 0; i < n; i++) {
        scores[i] = expf(scores[i] - max);
        sum += scores[i];
    }
    for (uint32_t i = 0; i < n; i++)
        scores[i] /= sum;
}

/* A group's score: the largest in it (group_limited_greedy), or the sum of its two largest (noaux_tc). */
static float group_score(ds_topk_method method, const float *choice, uint32_t first, uint32_t end)
{
    float best = -INFINITY, second = -INFINITY;
    for (uint32_t i = first; i < end; i++) {
        if (choice[i] > best) {
            second = best;
            best = choice[i];
        } else if (choice[i] > second) {
            second = choice[i];
        }
    }
    return method == DS_TOPK_NOAUX_TC && end - first > 1 ? best + second : best;
}

/* The index of the largest of n values whose bit in `taken` is clear, of equals the first. NaN counts as smallest, so
 * that there is always an answer. */
static uint32_t best_free(const float *values, uint32_t n, const uint64_t *taken)
{
    uint32_t best = n;
    for (uint32_t i = 0; i < n; i++)
        if ((taken[i / 64] >> i % 64 & 1) == 0 &&
            (best == n || values[i] > values[best] || (isnan(values[best]) && !isnan(values[i]))))
            best = i;
    return best;
}

/* Device-limited routing (section 2.2.2): only experts of the topk_group best groups may be chosen. Marks the others as
 * taken. */
static uint64_t limit_groups(const ds_config *config, const float *choice, uint64_t *taken)
{
    uint32_t per_group = config->n_routed_experts / config->n_group;
    float scores[DS_MAX_GROUPS];
    for (uint32_t g = 0; g < config->n_group; g++)
        scores[g] = group_score(config->topk_method, choice, g * per_group, (g + 1) * per_group);
    uint64_t kept = 0;
    for (uint32_t k = 0; k < config->topk_group; k++)
        kept |= (uint64_t)1 << best_free(scores, config->n_group, &kept);
    for (uint32_t i = 0; i < config->n_routed_experts; i++)
        if ((kept >> i / per_group & 1) == 0)
            taken[i / 64] |= (uint64_t)1 << i % 64;
    return kept;
}

static void route_row(void *context, size_t row, unsigned thread)
{
    (void)thread;
    const router *r = context;
    const ds_config *config = r->config;
    ds_routes *routes = r->routes;
    uint32_t n = config->n_routed_experts, top_k = config->num_experts_per_tok;
    float *scores = routes->scores + row * n, *gates = routes->gates + row * top_k;
    uint32_t *experts = routes->experts + row * top_k;
    affinities(config->scoring_func, scores, n);
    float largest = ds_largest_magnitude(scores, n);
    if (!isfinite(largest))
        ds_rows_fault(r->rows, row, (ds_fault){.kind = DS_FAULT_ROUTER, .largest = largest});

    /* The bias of noaux_tc balances load: it has a say in the choice, not in the gates. */
    float biased[DS_MAX_EXPERTS];
    const float *choice = scores;
    if (r->moe->score_bias != NULL) {
        for (uint32_t i = 0; i < n; i++)
            biased[i] = scores[i] + r->moe->score_bias[i];
        choice = biased;
    }
    uint64_t taken[DS_MAX_EXPERTS / 64] = {0};
    uint64_t all_groups = config->n_group >= 64 ? ~(uint64_t)0 : ((uint64_t)1 << config->n_group) - 1;
    routes->groups[row] = config->topk_method == DS_TOPK_GREEDY ? all_groups : limit_groups(config, choice, taken);

    float sum = 0;
    for (uint32_t k = 0; k < top_k; k++) {
        uint32_t i = best_free(choice, n, taken);
        taken[i / 64] |= (uint64_t)1 << i % 64;
        experts[k] = i;
        gates[k] = scores[i];
        sum += scores[i];
    }
    float scale = config->routed_scaling_factor / (config->norm_topk_prob ? sum + 1e-20f : 1.0f);
    for (uint32_t k = 0; k < top_k; k++)
        gates[k] *= scale;
}

dsv2_status ds_route(ds_rows *rows, const ds_moe_weights *moe, ds_routes *routes)
{
    const ds_config *config = rows->config;
    dsv2_status status = ds_linear(&rows->linear, &moe->gate, NULL, rows->normed, config->hidden_size, rows->n,
                                   routes->scores, config->n_routed_experts);
    if (status == DSV2_OK)
        status = ds_stage_begin(&rows->watch, DS_STAGE_ROUTER);
    if (status != DSV2_OK)
        return status;
    router context = {rows, config, moe, routes};
    ds_pool_run(rows->pool, route_row, &context, rows->n);
    return DSV2_OK;
}

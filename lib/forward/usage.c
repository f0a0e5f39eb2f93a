#include "forward/usage.h"

#include <math.h>
#include <string.h>

static uint32_t min_of(uint32_t a, uint32_t b) { return a < b ? a : b; }

void ds_usage_shape_init(ds_usage_shape *shape, const ds_config *config)
{
    *shape = (ds_usage_shape){
        .num_hidden_layers = config->num_hidden_layers,
        .first_k_dense_replace = config->first_k_dense_replace,
        .moe_layer_freq = config->moe_layer_freq,
        .n_routed_experts = config->n_routed_experts,
        .num_experts_per_tok = config->num_experts_per_tok,
        .n_group = config->n_group,
        .topk_group = config->topk_group,
        .layer_counts = config->n_routed_experts,
    };
    for (uint32_t l = 0; l < config->num_hidden_layers; l++)
        shape->n_moe_layers += ds_config_is_moe(config, l);
    for (uint32_t d = 1; d <= shape->n_routed_experts; d++) {
        if (shape->n_routed_experts % d != 0)
            continue;
        shape->divisors[shape->n_divisors++] = d;
        shape->layer_counts += d + min_of(d, shape->num_experts_per_tok);
    }
}

bool ds_usage_shape_equal(const ds_usage_shape *a, const ds_usage_shape *b)
{
    return a->num_hidden_layers == b->num_hidden_layers && a->first_k_dense_replace == b->first_k_dense_replace &&
           a->moe_layer_freq == b->moe_layer_freq && a->n_routed_experts == b->n_routed_experts &&
           a->num_experts_per_tok == b->num_experts_per_tok;
}

uint32_t ds_usage_layer(const ds_usage_shape *shape, uint32_t layer)
{
    if (shape->n_moe_layers == 0 || layer >= shape->num_hidden_layers || layer < shape->first_k_dense_replace ||
        layer % shape->moe_layer_freq != 0)
        return shape->n_moe_layers;
    uint32_t freq = shape->moe_layer_freq, dense_multiples = shape->first_k_dense_replace / freq;
    dense_multiples += shape->first_k_dense_replace % freq != 0;
    return layer / freq - dense_multiples;
}

dsv2_status ds_usage_init(ds_usage *usage, const ds_usage_shape *shape)
{
    size_t n_counts = shape->n_moe_layers * shape->layer_counts;
    size_t n_sums = (size_t)shape->n_moe_layers * 2 * shape->n_routed_experts;
    *usage = (ds_usage){0};
    if (shape->n_moe_layers == 0)
        return DSV2_OK;
    usage->counts = ds_new(n_counts, sizeof *usage->counts);
    usage->sums = ds_new(n_sums, sizeof *usage->sums);
    if (usage->counts != NULL && usage->sums != NULL)
        return DSV2_OK;
    ds_usage_free(usage);
    return ds_fail_memory("expert statistics", n_counts * sizeof *usage->counts + n_sums * sizeof *usage->sums);
}

void ds_usage_free(ds_usage *usage)
{
    ds_free(usage->counts);
    ds_free(usage->sums);
    *usage = (ds_usage){0};
}

void ds_usage_clear(ds_usage *usage, const ds_usage_shape *shape)
{
    usage->n_tokens = 0;
    if (shape->n_moe_layers == 0)
        return;
    memset(usage->counts, 0, shape->n_moe_layers * shape->layer_counts * sizeof *usage->counts);
    memset(usage->sums, 0, (size_t)shape->n_moe_layers * 2 * shape->n_routed_experts * sizeof *usage->sums);
}

void ds_usage_add(ds_usage *to, const ds_usage *from, const ds_usage_shape *shape)
{
    size_t n_counts = shape->n_moe_layers * shape->layer_counts;
    size_t n_sums = (size_t)shape->n_moe_layers * 2 * shape->n_routed_experts;
    to->n_tokens += from->n_tokens;
    for (size_t i = 0; i < n_counts; i++)
        to->counts[i] += from->counts[i];
    for (size_t i = 0; i < n_sums; i++)
        to->sums[i] += from->sums[i];
}

/* The experts of one row in rising order, so that those of one device are neighbours. */
static void sort_experts(const uint32_t *experts, uint32_t n, uint32_t *sorted)
{
    for (uint32_t k = 0; k < n; k++) {
        uint32_t at = k;
        for (; at > 0 && sorted[at - 1] > experts[k]; at--)
            sorted[at] = sorted[at - 1];
        sorted[at] = experts[k];
    }
}

void ds_usage_count(ds_usage *usage, const ds_usage_shape *shape, uint32_t layer, const ds_routes *routes,
                    uint32_t first_row, uint32_t n_rows)
{
    uint32_t n = shape->n_routed_experts, top_k = shape->num_experts_per_tok;
    uint64_t *chosen = usage->counts + layer * shape->layer_counts;
    double *gate_sum = usage->sums + (size_t)layer * 2 * n, *affinity_sum = gate_sum + n;
    for (size_t row = first_row; row < (size_t)first_row + n_rows; row++) {
        const float *scores = routes->scores + row * n, *gates = routes->gates + row * top_k;
        const uint32_t *experts = routes->experts + row * top_k;
        for (uint32_t i = 0; i < n; i++)
            affinity_sum[i] += (double)scores[i];
        for (uint32_t k = 0; k < top_k; k++) {
            chosen[experts[k]]++;
            gate_sum[experts[k]] += (double)gates[k];
        }
        uint32_t sorted[DS_MAX_TOP_K];
        sort_experts(experts, top_k, sorted);
        uint64_t *sent = chosen + n;
        for (uint32_t d = 0; d < shape->n_divisors; d++) {
            uint32_t n_devices = shape->divisors[d], per_device = n / n_devices, last = n_devices, reached = 0;
            for (uint32_t k = 0; k < top_k; k++) {
                uint32_t device = sorted[k] / per_device;
                sent[device] += device != last;
                reached += device != last;
                last = device;
            }
            sent[n_devices + reached - 1]++;
            sent += n_devices + min_of(n_devices, top_k);
        }
    }
}

void ds_usage_experts(const ds_usage *usage, const ds_usage_shape *shape, uint32_t layer, dsv2_expert_load *experts)
{
    uint32_t n = shape->n_routed_experts;
    const uint64_t *chosen = usage->counts + layer * shape->layer_counts;
    const double *gate_sum = usage->sums + (size_t)layer * 2 * n, *affinity_sum = gate_sum + n;
    for (uint32_t i = 0; i < n; i++)
        experts[i] = (dsv2_expert_load){.chosen = chosen[i], .gate_sum = gate_sum[i], .affinity_sum = affinity_sum[i]};
}

/* L_ExpBal, and what needs no devices. */
static void measure_experts(const ds_usage_shape *shape, const uint64_t *chosen, const double *affinity_sum,
                            double tokens, dsv2_routing_balance *balance)
{
    uint32_t n = shape->n_routed_experts;
    double pairs = tokens * shape->num_experts_per_tok, most = 0, squares = 0;
    for (uint32_t i = 0; i < n; i++) {
        double x = (double)chosen[i], share = x / pairs;
        double f = n * share, p = affinity_sum[i] / tokens; /* Eqs. 24 and 25 */
        balance->expert_balance_loss += f * p;
        balance->entropy -= share > 0 ? share * log(share) : 0;
        balance->never_used += chosen[i] == 0;
        squares += x * x;
        most = x > most ? x : most;
    }
    balance->max_over_mean = most * n / pairs;
    balance->jain_index = pairs * pairs / (n * squares);
}

/* L_DevBal, L_CommBal and dropping, from the expert counts and the tokens sent to each device. */
static void measure_devices(const ds_usage_shape *shape, const uint64_t *chosen, const double *affinity_sum,
                            const uint64_t *sent, double tokens, uint32_t n_devices, uint32_t max_devices,
                            dsv2_routing_balance *balance)
{
    uint32_t per_device = shape->n_routed_experts / n_devices;
    double pairs = tokens * shape->num_experts_per_tok, capacity = pairs / n_devices, over = 0;
    for (uint32_t d = 0; d < n_devices; d++) {
        double x = 0, p = 0;
        for (uint32_t i = d * per_device; i < (d + 1) * per_device; i++) {
            x += (double)chosen[i];
            p += affinity_sum[i] / tokens; /* P'_d = P''_d, Eqs. 28 and 31 */
        }
        double f_device = shape->n_routed_experts * x / pairs / per_device;   /* f'_d, Eq. 27 */
        double f_sent = n_devices * (double)sent[d] / (max_devices * tokens); /* f''_d, Eq. 30 */
        balance->device_balance_loss += f_device * p;
        balance->communication_balance_loss += f_sent * p;
        over += x > capacity ? x - capacity : 0;
    }
    balance->dropped_share = over / pairs;
}

void ds_usage_measure(const ds_usage *usage, const ds_usage_shape *shape, uint32_t layer, uint32_t n_devices,
                      uint32_t max_devices, dsv2_routing_balance *balance)
{
    uint32_t n = shape->n_routed_experts, top_k = shape->num_experts_per_tok;
    const uint64_t *chosen = usage->counts + layer * shape->layer_counts, *sent = chosen + n;
    const double *affinity_sum = usage->sums + ((size_t)layer * 2 + 1) * n;
    for (uint32_t d = 0; shape->divisors[d] != n_devices; d++)
        sent += shape->divisors[d] + min_of(shape->divisors[d], top_k);
    double tokens = (double)usage->n_tokens;
    *balance = (dsv2_routing_balance){0};
    measure_experts(shape, chosen, affinity_sum, tokens, balance);
    measure_devices(shape, chosen, affinity_sum, sent, tokens, n_devices, max_devices, balance);
    const uint64_t *reached = sent + n_devices;
    for (uint32_t i = 0; i < min_of(n_devices, top_k); i++) {
        balance->mean_devices_reached += (double)reached[i] / tokens * (i + 1);
        if (reached[i] > 0)
            balance->max_devices_reached = i + 1;
    }
}

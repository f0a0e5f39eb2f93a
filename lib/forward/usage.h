/* How the experts are used: counting, and the report's measures of balance (sections 2.2.2 to 2.2.4).
 *
 * Counts are kept for every number of devices D that divides n_routed_experts: how many devices a token is sent to
 * depends on D in a way that counts by expert cannot tell afterwards. */
#ifndef DS_LIB_FORWARD_USAGE_H
#define DS_LIB_FORWARD_USAGE_H

#include "base/base.h"
#include "config/config.h"

#include <dsv2/routing.h>

/* The routers' choices for the rows of a pass. */
typedef struct ds_routes {
    float *scores;     /* [m][n_routed_experts]: affinities s_(i,t) */
    uint32_t *experts; /* [m][num_experts_per_tok], by falling score as chosen */
    float *gates;      /* [m][num_experts_per_tok], as multiplied into the experts' outputs */
    uint64_t *groups;  /* [m]: bit g set if group g was kept; all n_group bits if routing is not limited */
} ds_routes;

/* No number up to DS_MAX_EXPERTS has more divisors: 3360 has 48. */
enum { DS_MAX_DIVISORS = 48 };

/* What the counts of one model look like. */
typedef struct ds_usage_shape {
    uint32_t num_hidden_layers, first_k_dense_replace, moe_layer_freq;
    uint32_t n_moe_layers; /* 0: a dense model, for which nothing is counted */
    uint32_t n_routed_experts, num_experts_per_tok, n_group, topk_group;
    uint32_t n_divisors, divisors[DS_MAX_DIVISORS]; /* of n_routed_experts, rising */
    size_t layer_counts; /* integers kept of one layer */
} ds_usage_shape;

typedef struct ds_usage {
    uint64_t n_tokens; /* T */
    /* [n_moe_layers][layer_counts]. Of a layer: times chosen, by expert; then for each divisor D the tokens sent to
     * each of D devices, and how many tokens reached 1, 2, ... min(D, num_experts_per_tok) devices. */
    uint64_t *counts;
    double *sums; /* [n_moe_layers][2][n_routed_experts]: of gates, of affinities */
} ds_usage;

/* Prompts, fed several tokens at a time, and generated tokens, fed one at a time. */
enum { DS_USAGE_PROMPT, DS_USAGE_GENERATED, DS_USAGE_KINDS };

void ds_usage_shape_init(ds_usage_shape *shape, const ds_config *config);

/* Whether the numbers of layers, MoE layers, experts and chosen experts are the same. */
bool ds_usage_shape_equal(const ds_usage_shape *a, const ds_usage_shape *b);

/* The index of a layer among the MoE layers; n_moe_layers if it is dense or not there. */
uint32_t ds_usage_layer(const ds_usage_shape *shape, uint32_t layer);

/* Counts of zero. */
dsv2_status ds_usage_init(ds_usage *usage, const ds_usage_shape *shape);
void ds_usage_free(ds_usage *usage);
void ds_usage_clear(ds_usage *usage, const ds_usage_shape *shape);

/* to += from */
void ds_usage_add(ds_usage *to, const ds_usage *from, const ds_usage_shape *shape);

/* Counts the choices of n_rows rows in one MoE layer. n_tokens is the caller's to set, once for all layers. */
void ds_usage_count(ds_usage *usage, const ds_usage_shape *shape, uint32_t layer, const ds_routes *routes,
                    uint32_t first_row, uint32_t n_rows);

/* One layer's experts[n_routed_experts]; `layer` counts MoE layers alone, here and below. */
void ds_usage_experts(const ds_usage *usage, const ds_usage_shape *shape, uint32_t layer, dsv2_expert_load *experts);

/* One layer's measures. n_devices divides n_routed_experts; max_devices is the most for a token; n_tokens > 0. */
void ds_usage_measure(const ds_usage *usage, const ds_usage_shape *shape, uint32_t layer, uint32_t n_devices,
                      uint32_t max_devices, dsv2_routing_balance *balance);

#endif

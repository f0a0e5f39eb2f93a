/* DeepSeekMoE (section 2.2.1 of the report): see moe.c. */
#ifndef DS_LIB_FORWARD_MOE_H
#define DS_LIB_FORWARD_MOE_H

#include "forward/ffn.h"
#include "forward/router.h"

/* Working memory, besides that of the networks. A pair is a row and one of the experts that it chose. */
typedef struct ds_moe_memory {
    ds_routes routes;
    uint32_t *first_slot;  /* [n_routed_experts + 1]: of each expert's pairs, grouped by expert */
    uint32_t *pair_slot;   /* [max_rows][num_experts_per_tok]: the slot of each pair */
    uint32_t *chosen;      /* [n_chosen], at most n_routed_experts: the experts that some row chose, in order */
    uint32_t n_chosen;
    const ds_ffn_weights **chosen_weights; /* [n_chosen]: valid from the source's acquire to its release */
    float *output;         /* [slots][hidden_size]: of every pair's network, and of the shared experts' for every row */
} ds_moe_memory;

void ds_moe_lay_out(ds_moe_memory *memory, ds_layout *layout);

/* rows->output = shared experts + gated routed experts of rows->normed, in a MoE layer. Fails as the source of experts
 * does. */
dsv2_status ds_moe(ds_rows *rows, ds_moe_memory *memory, ds_ffn_memory *networks, uint32_t layer);

#endif

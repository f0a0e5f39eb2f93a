/* libdsv2: how the experts are used.
 *
 * Every session counts, at next to no cost, which routed experts its tokens chose; a model sums up all its sessions,
 * closed ones included. dsv2_session_routing and dsv2_model_routing copy the counts to a dsv2_routing, from which
 * measures are read. Equation numbers are those of the DeepSeek-V2 report, arXiv 2405.04434, section 2.2. Layers are
 * numbered as in the model, dense ones included.
 *
 *     dsv2_routing *routing;
 *     dsv2_routing_balance balance = {.struct_size = sizeof balance};
 *     if (dsv2_model_routing(model, DSV2_ROUTING_ALL, &routing) == DSV2_OK) {
 *         if (dsv2_routing_measure(routing, 1, 0, 0, &balance) == DSV2_OK)
 *             printf("layer 1: the busiest expert has %.2f times the mean load\n", balance.max_over_mean);
 *         dsv2_routing_free(routing);
 *     }
 *
 * A feed or step counts its tokens once, when it has succeeded; a call that fails or is cancelled counts nothing.
 * Truncating does not take counts back. A fork starts with counts of zero, since the tokens that it shares were counted
 * where they were fed, and without a trace callback. Counts are exact whatever the threads do.
 */
#ifndef DSV2_ROUTING_H
#define DSV2_ROUTING_H

#include <dsv2/session.h>

DSV2_BEGIN_DECLS

/* A copy of counts, which stays as it is while sessions go on. One thread at a time may use it. */
typedef struct dsv2_routing dsv2_routing;

/* Which tokens are meant: those fed several at a time (prompts), those fed one at a time (generated), or both. */
typedef enum dsv2_routing_tokens {
    DSV2_ROUTING_ALL = 0,
    DSV2_ROUTING_PROMPT = 1,
    DSV2_ROUTING_GENERATED = 2
} dsv2_routing_tokens;

/* Copies the counts of a session, or of a model. The caller frees *routing with dsv2_routing_free; a copy may outlive
 * session and model. Any thread.
 * Returns DSV2_OK, DSV2_ERROR_ARGUMENT, _MEMORY, _BUSY (session only) or _UNSUPPORTED (a dense model). */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_session_routing(dsv2_session *session, dsv2_routing_tokens which,
                                                            dsv2_routing **routing);
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_model_routing(dsv2_model *model, dsv2_routing_tokens which,
                                                          dsv2_routing **routing);

/* Frees a copy of counts. NULL is allowed. */
DSV2_API void dsv2_routing_free(dsv2_routing *routing);

/* Sets the counts of a session (not its part in the model's), or of a model (not its sessions'), to zero. Does nothing
 * for a dense model. Any thread. Returns DSV2_OK, DSV2_ERROR_ARGUMENT or _BUSY (session only). */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_session_routing_reset(dsv2_session *session);
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_model_routing_reset(dsv2_model *model);

/* Adds the counts of `from` to `to`: afterwards `to` is as if one run had seen the tokens of both. The two may come
 * from different models with the same numbers of layers, MoE layers, experts and chosen experts.
 * Returns DSV2_OK, DSV2_ERROR_ARGUMENT or _MISMATCH. */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_routing_merge(dsv2_routing *to, const dsv2_routing *from);

/* What the counts are of. Set struct_size before the call. */
typedef struct dsv2_routing_info {
    size_t struct_size;
    uint64_t n_tokens;            /* T */
    uint32_t num_hidden_layers;
    uint32_t n_routed_experts;    /* N_r */
    uint32_t num_experts_per_tok; /* K_r */
    uint32_t n_group;             /* default for D below; 1 if routing is not limited */
    uint32_t topk_group;          /* default for M below; 1 if routing is not limited */
} dsv2_routing_info;

/* Fills *info. Returns DSV2_OK or DSV2_ERROR_ARGUMENT. */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_routing_get_info(const dsv2_routing *routing, dsv2_routing_info *info);

/* One expert of one layer. */
typedef struct dsv2_expert_load {
    uint64_t chosen;     /* tokens that chose the expert */
    double gate_sum;     /* sum of the gates by which the expert's output was multiplied */
    double affinity_sum; /* sum of s_(i,t) over all tokens, whether they chose the expert or not: softmax, or sigmoid
                          * for DeepSeek-V3's router */
} dsv2_expert_load;

/* Fills experts[n_routed_experts], the caller's, for one layer. Returns DSV2_OK or DSV2_ERROR_ARGUMENT (also for a
 * dense layer). */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_routing_experts(const dsv2_routing *routing, uint32_t layer,
                                                            dsv2_expert_load *experts);

/* Measures of one layer. Set struct_size before the call. The losses have a factor alpha of 1. */
typedef struct dsv2_routing_balance {
    size_t struct_size;
    double expert_balance_loss;        /* L_ExpBal = sum f_i P_i, Eqs. 23-25 */
    double device_balance_loss;        /* L_DevBal = sum f'_d P'_d, Eqs. 26-28 */
    double communication_balance_loss; /* L_CommBal = sum f''_d P''_d, Eqs. 29-31 */
    double max_over_mean;              /* load of the busiest expert over the mean load */
    double entropy;                    /* of the shares of load, in nats; ln N_r for an even load */
    double jain_index;                 /* (sum x)^2 / (N_r sum x^2) of the loads x; 1 for an even load */
    uint32_t never_used;               /* experts that no token chose */
    double dropped_share;              /* share of (token, expert) pairs beyond a device's capacity, which at capacity
                                        * factor 1.0 is an equal part of all pairs: section 2.2.4, with all counted
                                        * tokens as one batch. n_devices = n_routed_experts gives an expert's
                                        * capacity. */
    uint32_t max_devices_reached;      /* most devices that any token reached */
    double mean_devices_reached;
} dsv2_routing_balance;

/* Fills *balance with the measures of one layer. They are exact for every number of devices, not only the model's own.
 *   n_devices    D; each device has as many consecutive experts as the others, so D divides n_routed_experts. 0: the
 *                model's n_group
 *   max_devices  M, at most D: the number of devices that a token may be sent to. 0: the model's topk_group, or D if
 *                that is fewer
 * Returns DSV2_OK, DSV2_ERROR_ARGUMENT (also for a dense layer) or _STATE (no tokens were counted). */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_routing_measure(const dsv2_routing *routing, uint32_t layer,
                                                            uint32_t n_devices,
                                                            uint32_t max_devices, dsv2_routing_balance *balance);

/* One token's way through one layer's router. The pointers are valid during the callback. */
typedef struct dsv2_routing_event {
    size_t position;         /* of the token in its session */
    uint32_t layer;
    uint32_t n_experts;      /* num_experts_per_tok: length of experts and gates */
    const uint32_t *experts; /* the chosen experts, by falling score */
    const float *gates;      /* by which the experts' outputs are multiplied */
    uint64_t groups;         /* bit g set: group g was among the topk_group kept; without limited routing the lowest
                              * n_group bits */
} dsv2_routing_event;

/* A trace callback is called from the thread that feeds, after each MoE layer, for each token in order. A long input
 * goes through the layers in parts: each part passes all layers before the next part begins. A call that fails or is
 * cancelled may have been traced up to that point. The callback must not call back into the same session and must not
 * throw or longjmp. */
typedef void (*dsv2_routing_trace_fn)(void *user, const dsv2_routing_event *event);

/* Sets or, with NULL, removes the session's trace callback; a session starts without one. Any thread.
 * Returns DSV2_OK, DSV2_ERROR_ARGUMENT or _BUSY. */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_session_set_routing_trace(dsv2_session *session,
                                                                      dsv2_routing_trace_fn trace, void *user);

DSV2_END_DECLS
#endif

/* libdsv2: how the experts are used.
 *
 * Every session counts, at next to no cost, which routed experts its tokens chose; a model sums up all its sessions, closed
 * ones included. dsv2_session_routing and dsv2_model_routing copy the counts out into a dsv2_routing, from which measures are
 * read. Equation numbers: the DeepSeek-V2 report, arXiv 2405.04434, section 2.2. Layers are numbered as in the model, dense
 * ones included.
 *
 *     dsv2_routing *routing;
 *     dsv2_routing_balance balance = {.struct_size = sizeof balance};
 *     if (dsv2_model_routing(model, DSV2_ROUTING_ALL, &routing) == DSV2_OK) {
 *         if (dsv2_routing_measure(routing, 1, 0, 0, &balance) == DSV2_OK)
 *             printf("layer 1: the busiest expert has %.2f times the mean load\n", balance.max_over_mean);
 *         dsv2_routing_free(routing);
 *     }
 *
 * What is counted: the tokens of every feed and step that succeeds, once, when it has succeeded; a call that fails or is
 * cancelled counts nothing. Truncating does not take counts back. A fork starts with counts of zero and without a trace
 * callback, since the tokens that it shares were counted where they were fed. Counts are exact whatever the threads do.
 */
#ifndef DSV2_ROUTING_H
#define DSV2_ROUTING_H

#include <dsv2/session.h>

DSV2_BEGIN_DECLS

/* A copy of counts; it stays as it is while sessions go on. Used from one thread at a time. */
typedef struct dsv2_routing dsv2_routing;

/* Which tokens are meant: those fed several at a time (prompts), those fed one at a time (generated), or both. */
typedef enum dsv2_routing_tokens {
    DSV2_ROUTING_ALL = 0,
    DSV2_ROUTING_PROMPT = 1,
    DSV2_ROUTING_GENERATED = 2
} dsv2_routing_tokens;

/* Copies the session's, or the model's, counts. The caller frees *routing with dsv2_routing_free; it may outlive session and
 * model. Any thread.
 * Returns DSV2_OK, DSV2_ERROR_ARGUMENT, _MEMORY, _BUSY (session only) or _UNSUPPORTED (a dense model). */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_session_routing(dsv2_session *session, dsv2_routing_tokens which, dsv2_routing **routing);
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_model_routing(dsv2_model *model, dsv2_routing_tokens which, dsv2_routing **routing);

/* Frees what the two above gave. NULL is allowed. */
DSV2_API void dsv2_routing_free(dsv2_routing *routing);

/* Sets the counts of a session (not its part in the model's), or of a model (not of its sessions), to zero. Any thread. On a
 * dense model they do nothing. Return DSV2_OK, DSV2_ERROR_ARGUMENT or _BUSY (session only). */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_session_routing_reset(dsv2_session *session);
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_model_routing_reset(dsv2_model *model);

/* Adds the counts of `from` to `to`: afterwards `to` is as if one run had seen the tokens of both. The two may come from
 * different models, as long as layers, experts and chosen experts are the same. Returns DSV2_OK, DSV2_ERROR_ARGUMENT or
 * _MISMATCH. */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_routing_merge(dsv2_routing *to, const dsv2_routing *from);

/* Set struct_size before the call. */
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
    uint64_t chosen;      /* tokens that chose it */
    double gate_sum;      /* sum of the gate values with which its output was weighted */
    double affinity_sum;  /* sum of s_(i,t) over all tokens, chosen or not: softmax, or sigmoid for DeepSeek-V3's router */
} dsv2_expert_load;

/* Fills experts[n_routed_experts] for one layer. Returns DSV2_OK or DSV2_ERROR_ARGUMENT (also for a dense layer). */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_routing_experts(const dsv2_routing *routing, uint32_t layer, dsv2_expert_load *experts);

/* Measures of one layer. Set struct_size before the call. The losses are with the factor alpha = 1. */
typedef struct dsv2_routing_balance {
    size_t struct_size;
    double expert_balance_loss;        /* L_ExpBal = sum f_i P_i, Eqs. 23-25 */
    double device_balance_loss;        /* L_DevBal = sum f'_d P'_d, Eqs. 26-28 */
    double communication_balance_loss; /* L_CommBal = sum f''_d P''_d, Eqs. 29-31 */
    double max_over_mean;              /* load of the busiest expert over the mean load */
    double entropy;                    /* of the shares of load, in nats; ln N_r is even */
    double jain_index;                 /* (sum x)^2 / (N_r sum x^2), 1 is even */
    uint32_t never_used;               /* experts that no token chose */
    double dropped_share;              /* share of (token, expert) pairs beyond what a device takes at capacity factor 1.0, an equal
                                        * part of all pairs: section 2.2.4, with all counted tokens as one batch. For n_devices =
                                        * n_routed_experts: beyond what an expert takes */
    uint32_t max_devices_reached;      /* most devices that any token reached */
    double mean_devices_reached;
} dsv2_routing_balance;

/* The measures of one layer for n_devices devices (D), each with an equal run of consecutive experts, and max_devices (M), the
 * number that a token may be sent to. n_devices 0: the model's n_group; otherwise a divisor of n_routed_experts. max_devices 0:
 * the model's topk_group, n_devices if that is fewer; otherwise at most n_devices. Exact for every D, not only the model's own.
 * Returns DSV2_OK, DSV2_ERROR_ARGUMENT (also for a dense layer) or _STATE (no tokens). */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_routing_measure(const dsv2_routing *routing, uint32_t layer, uint32_t n_devices,
                                                            uint32_t max_devices, dsv2_routing_balance *balance);

/* One token's way through one layer's router. The pointers are valid during the call. */
typedef struct dsv2_routing_event {
    size_t position;           /* of the token in its session */
    uint32_t layer;
    uint32_t n_experts;        /* num_experts_per_tok */
    const uint32_t *experts;   /* chosen, by falling score */
    const float *gates;        /* as multiplied into each expert's output */
    uint64_t groups;           /* bit g set: group g was among the topk_group kept; all bits of n_group if not limited */
} dsv2_routing_event;

/* Called from the thread that feeds, after each MoE layer, for each token in order. Long inputs go through the layers in parts,
 * each part through all layers before the next. A call that is cancelled or fails may have been traced up to there. The
 * callback must not call back into the same session and must not throw or longjmp. */
typedef void (*dsv2_routing_trace_fn)(void *user, const dsv2_routing_event *event);

/* Sets or, with NULL, removes the session's trace callback; off at first. Any thread. Returns DSV2_OK, DSV2_ERROR_ARGUMENT or _BUSY. */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_session_set_routing_trace(dsv2_session *session, dsv2_routing_trace_fn trace, void *user);

DSV2_END_DECLS
#endif

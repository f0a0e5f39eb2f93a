/* Expert statistics. Counts are checked against what DeepSeek's published code chose for the goldens. Measures are
 * checked against the report's equations, written out here over the choices of single tokens, not over counts. */
#include <dsv2/dsv2.h>

#include "support/checkpoint.h"
#include "support/oom.h"
#include "support/reference.h"
#include "support/run.h"
#include "support/tensors.h"

#include <check.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TOKENS = 200, MAX_EXPERTS = 24, MAX_LAYERS = 8 };

static const test_checkpoint twelve = {
    .vocab_size = 61, .hidden_size = 32, .intermediate_size = 40, .num_hidden_layers = 5, .num_attention_heads = 2,
    .kv_lora_rank = 16, .qk_nope_head_dim = 8, .qk_rope_head_dim = 4, .v_head_dim = 8, .max_position_embeddings = 1300,
    .moe_intermediate_size = 8, .n_routed_experts = 12, .num_experts_per_tok = 4, .n_shared_experts = 1,
    .first_k_dense_replace = 1, .moe_layer_freq = 2, .topk_method = "group_limited_greedy", .n_group = 4,
    .topk_group = 2, .routed_scaling_factor = 2, .seed = 5,
};

static dsv2_model *open_model(const char *folder, uint32_t n_threads)
{
    dsv2_model *model;
    dsv2_model_options options = {.struct_size = sizeof options, .n_threads = n_threads};
    ck_assert_msg(dsv2_model_open(folder, &options, &model) == DSV2_OK, "%s", dsv2_last_error());
    return model;
}

static dsv2_session *open_session(dsv2_model *model)
{
    dsv2_session *session;
    dsv2_session_options options = {.struct_size = sizeof options, .cache_type = DSV2_CACHE_F32};
    ck_assert_msg(dsv2_session_open(model, &options, &session) == DSV2_OK, "%s", dsv2_last_error());
    return session;
}

static void feed(dsv2_session *session, const int32_t *tokens, size_t n)
{
    ck_assert_msg(dsv2_session_feed(session, tokens, n) == DSV2_OK, "%s", dsv2_last_error());
}

static dsv2_routing *of_session(dsv2_session *session, dsv2_routing_tokens which)
{
    dsv2_routing *routing;
    ck_assert_msg(dsv2_session_routing(session, which, &routing) == DSV2_OK, "%s", dsv2_last_error());
    return routing;
}

static dsv2_routing *of_model(dsv2_model *model, dsv2_routing_tokens which)
{
    dsv2_routing *routing;
    ck_assert_msg(dsv2_model_routing(model, which, &routing) == DSV2_OK, "%s", dsv2_last_error());
    return routing;
}

static dsv2_routing_info info_of(const dsv2_routing *routing)
{
    dsv2_routing_info info = {.struct_size = sizeof info};
    ck_assert(dsv2_routing_get_info(routing, &info) == DSV2_OK);
    return info;
}

static uint64_t tokens_of(const dsv2_routing *routing) { return info_of(routing).n_tokens; }

/* Counts are the same exactly, sums of the same numbers up to their order. */
static void assert_equal(const dsv2_routing *a, const dsv2_routing *b)
{
    dsv2_routing_info info = info_of(a);
    ck_assert_uint_eq(info.n_tokens, tokens_of(b));
    for (uint32_t l = 0; l < info.num_hidden_layers; l++) {
        dsv2_expert_load x[MAX_EXPERTS], y[MAX_EXPERTS];
        if (dsv2_routing_experts(a, l, x) != DSV2_OK)
            continue;
        ck_assert(dsv2_routing_experts(b, l, y) == DSV2_OK);
        for (uint32_t i = 0; i < info.n_routed_experts; i++) {
            ck_assert_uint_eq(x[i].chosen, y[i].chosen);
            ck_assert_double_le(fabs(x[i].gate_sum - y[i].gate_sum), 1e-12 * (1 + x[i].gate_sum));
            ck_assert_double_le(fabs(x[i].affinity_sum - y[i].affinity_sum), 1e-12 * (1 + x[i].affinity_sum));
        }
        for (uint32_t d = 1; d <= info.n_routed_experts && info.n_tokens > 0; d++) {
            dsv2_routing_balance p = {.struct_size = sizeof p}, q = {.struct_size = sizeof q};
            if (info.n_routed_experts % d != 0)
                continue;
            ck_assert(dsv2_routing_measure(a, l, d, 1, &p) == DSV2_OK &&
                      dsv2_routing_measure(b, l, d, 1, &q) == DSV2_OK);
            ck_assert_double_le(fabs(p.communication_balance_loss - q.communication_balance_loss),
                                1e-12 * p.communication_balance_loss);
            ck_assert_uint_eq(p.max_devices_reached, q.max_devices_reached);
            ck_assert_double_le(fabs(p.mean_devices_reached - q.mean_devices_reached), 1e-12);
        }
    }
}

/* ---- what every single token did, by the trace ---- */

typedef struct trace {
    size_t n_events, n_tokens, top_k;
    size_t last_position;
    uint32_t last_layer;
    uint32_t experts[MAX_LAYERS][MAX_TOKENS][8];
    float gates[MAX_LAYERS][MAX_TOKENS][8];
    uint64_t groups[MAX_LAYERS][MAX_TOKENS];
} trace;

static void record(void *user, const dsv2_routing_event *event)
{
    trace *t = user;
    ck_assert(event->position < MAX_TOKENS && event->layer < MAX_LAYERS && event->n_experts <= 8);
    if (t->n_events > 0 && event->layer == t->last_layer) /* the tokens of a layer, in order */
        ck_assert_uint_eq(event->position, t->last_position + 1);
    t->last_position = event->position;
    t->last_layer = event->layer;
    t->n_events++;
    t->n_tokens = event->position + 1 > t->n_tokens ? event->position + 1 : t->n_tokens;
    t->top_k = event->n_experts;
    memcpy(t->experts[event->layer][event->position], event->experts, event->n_experts * sizeof *event->experts);
    memcpy(t->gates[event->layer][event->position], event->gates, event->n_experts * sizeof *event->gates);
    t->groups[event->layer][event->position] = event->groups;
}

static uint32_t integer_at(const test_tensor *tensor, size_t i)
{
    uint32_t value;
    memcpy(&value, tensor->data + 4 * i, sizeof value);
    return value;
}

static float float_at(const test_tensor *tensor, size_t i)
{
    float value;
    memcpy(&value, tensor->data + 4 * i, sizeof value);
    return value;
}

static const int32_t *golden_tokens(const test_tensors *expected, size_t *n)
{
    static int32_t tokens[MAX_TOKENS];
    const test_tensor *ids = test_tensors_need(expected, "input_ids", "I32");
    *n = ids->dims[0];
    ck_assert_uint_le(*n, MAX_TOKENS);
    memcpy(tokens, ids->data, ids->n_bytes);
    return tokens;
}

/* The first n tokens are recorded as the golden has them. */
static void check_trace(const trace *t, const test_tensors *expected, const reference *r, bool biased)
{
    size_t n_moe = 0, n = r->n_tokens, per_group = r->n_experts / r->n_group;
    for (size_t l = 0; l < r->n_layers; l++) {
        const test_tensor *ids = test_tensors_find(expected, test_format("router.%zu.expert_ids", l));
        if (ids == NULL)
            continue;
        const test_tensor *gates = test_tensors_need(expected, test_format("router.%zu.expert_weights", l), "F32");
        n_moe++;
        ck_assert_uint_eq(t->top_k, ids->dims[1]);
        for (size_t i = 0; i < n; i++) {
            ck_assert_uint_eq(t->groups[l][i], r->layers[l].groups[i]);
            for (size_t k = 0; k < t->top_k; k++) {
                /* The golden lists a token's experts by id, the trace in the order of choice: by falling score, so by
                 * falling gate unless the choice is biased. */
                uint32_t e = t->experts[l][i][k];
                size_t at = 0;
                while (at < t->top_k && integer_at(ids, i * t->top_k + at) != e)
                    at++;
                ck_assert_msg(at < t->top_k, "layer %zu, token %zu: expert %u", l, i, e);
                double gate = (double)float_at(gates, i * t->top_k + at);
                ck_assert_double_le(fabs((double)t->gates[l][i][k] - gate), 2e-5 * (1 + gate));
                if (k > 0 && !biased)
                    ck_assert_float_le(t->gates[l][i][k], t->gates[l][i][k - 1]);
                ck_assert_uint_eq(t->groups[l][i] >> e / per_group & 1, 1);
            }
        }
    }
    ck_assert_uint_eq(t->n_events, n_moe * n);
}

START_TEST(trace_tells_the_experts_gates_and_groups_that_the_published_code_chose)
{
    const char *folder = test_golden_folders[_i];
    size_t n;
    test_tensors expected = {0};
    test_tensors_read(&expected, test_format("%s/expected.safetensors", folder));
    const int32_t *tokens = golden_tokens(&expected, &n);
    reference *r = reference_run(folder, tokens, n);
    dsv2_model *model = open_model(folder, 1);
    const size_t chunks[] = {1, 7, n};
    static trace t;
    for (size_t c = 0; c < 3; c++) {
        dsv2_session *session = open_session(model);
        memset(&t, 0, sizeof t);
        ck_assert(dsv2_session_set_routing_trace(session, record, &t) == DSV2_OK);
        for (size_t i = 0; i < n; i += chunks[c])
            feed(session, tokens + i, n - i < chunks[c] ? n - i : chunks[c]);
        check_trace(&t, &expected, r, strcmp(test_goldens[_i], "v3") == 0);
        size_t n_events = t.n_events;
        ck_assert(dsv2_session_set_routing_trace(session, NULL, NULL) == DSV2_OK);
        feed(session, tokens, 1);
        ck_assert_uint_eq(t.n_events, n_events);
        dsv2_session_close(session);
    }
    dsv2_model_close(model);
    reference_free(r);
    test_tensors_free(&expected);
}
END_TEST

START_TEST(counts_and_gate_sums_are_those_of_the_published_router)
{
    const char *folder = test_golden_folders[_i];
    size_t n;
    test_tensors expected = {0};
    test_tensors_read(&expected, test_format("%s/expected.safetensors", folder));
    const int32_t *tokens = golden_tokens(&expected, &n);
    reference *r = reference_run(folder, tokens, n);
    dsv2_model *model = open_model(folder, 1);
    dsv2_session *session = open_session(model);
    feed(session, tokens, n);
    dsv2_routing *routing = of_session(session, DSV2_ROUTING_ALL);
    dsv2_routing_info info = info_of(routing);
    ck_assert(info.n_tokens == n && info.num_hidden_layers == r->n_layers && info.n_routed_experts == r->n_experts);
    ck_assert(info.num_experts_per_tok == r->top_k && info.n_group == r->n_group && info.topk_group == r->topk_group);
    for (uint32_t l = 0; l < r->n_layers; l++) {
        const test_tensor *ids = test_tensors_find(&expected, test_format("router.%u.expert_ids", l));
        dsv2_expert_load experts[MAX_EXPERTS];
        dsv2_status status = dsv2_routing_experts(routing, l, experts);
        ck_assert_int_eq(status, ids != NULL ? DSV2_OK : DSV2_ERROR_ARGUMENT);
        if (ids == NULL)
            continue;
        const test_tensor *gates = test_tensors_need(&expected, test_format("router.%u.expert_weights", l), "F32");
        uint64_t chosen[MAX_EXPERTS] = {0}, sum = 0;
        double gate_sum[MAX_EXPERTS] = {0}, affinity_sum[MAX_EXPERTS] = {0};
        for (size_t i = 0; i < n * r->top_k; i++) {
            chosen[integer_at(ids, i)]++;
            gate_sum[integer_at(ids, i)] += (double)float_at(gates, i);
        }
        for (size_t i = 0; i < n * r->n_experts; i++)
            affinity_sum[i % r->n_experts] += r->layers[l].affinities[i];
        for (size_t e = 0; e < r->n_experts; e++) {
            ck_assert_uint_eq(experts[e].chosen, chosen[e]);
            ck_assert_double_le(fabs(experts[e].gate_sum - gate_sum[e]), 1e-5 * (1 + gate_sum[e]));
            ck_assert_double_le(fabs(experts[e].affinity_sum - affinity_sum[e]), 1e-5 * (1 + affinity_sum[e]));
            sum += experts[e].chosen;
        }
        ck_assert_uint_eq(sum, n * r->top_k); /* tokens times top-k in every MoE layer */
    }
    dsv2_routing_free(routing);
    dsv2_session_close(session);
    dsv2_model_close(model);
    reference_free(r);
    test_tensors_free(&expected);
}
END_TEST

/* ---- measures ---- */

static void assert_close(const char *what, double value, double expected)
{
    ck_assert_msg(fabs(value - expected) <= 1e-6 * fabs(expected) + 1e-15, "%s is %.10g, expected %.10g", what, value,
                  expected);
}

/* Section 2.2.3 over single tokens: t's experts, and f from the report's sums of indicators. Affinities are the counts'
 * own sums, which the test above compares with the reference. */
static void check_measures(const dsv2_routing *routing, const trace *t, uint32_t layer, uint32_t n, uint32_t n_devices,
                           uint32_t limit)
{
    dsv2_expert_load experts[MAX_EXPERTS];
    dsv2_routing_balance balance = {.struct_size = sizeof balance};
    ck_assert(dsv2_routing_experts(routing, layer, experts) == DSV2_OK);
    ck_assert_msg(dsv2_routing_measure(routing, layer, n_devices, limit, &balance) == DSV2_OK, "%s", dsv2_last_error());
    double T = (double)t->n_tokens, K = (double)t->top_k, f[MAX_EXPERTS] = {0}, P[MAX_EXPERTS];
    double load[MAX_EXPERTS] = {0}, sent[MAX_EXPERTS] = {0}, reached_sum = 0;
    uint32_t most_reached = 0, width = n / n_devices;
    for (size_t i = 0; i < t->n_tokens; i++) {
        uint64_t devices = 0;
        for (size_t k = 0; k < t->top_k; k++) {
            uint32_t e = t->experts[layer][i][k];
            f[e] += n / (K * T);
            load[e / width]++;
            devices |= (uint64_t)1 << e / width;
        }
        for (uint32_t d = 0; d < n_devices; d++)
            sent[d] += (double)(devices >> d & 1);
        uint32_t reached = (uint32_t)__builtin_popcountll(devices);
        reached_sum += reached;
        most_reached = reached > most_reached ? reached : most_reached;
    }
    double expert_loss = 0, device_loss = 0, communication_loss = 0, entropy = 0, squares = 0, busiest = 0, kept = 0;
    uint32_t never = 0;
    for (uint32_t i = 0; i < n; i++) {
        P[i] = experts[i].affinity_sum / T;
        expert_loss += f[i] * P[i];
        double share = f[i] / n;
        entropy += share > 0 ? share * log(1 / share) : 0;
        squares += share * share;
        busiest = fmax(busiest, f[i]);
        never += f[i] == 0;
    }
    for (uint32_t d = 0; d < n_devices; d++) {
        double f_mean = 0, P_sum = 0;
        for (uint32_t i = d * width; i < (d + 1) * width; i++) {
            f_mean += f[i] / width;
            P_sum += P[i];
        }
        device_loss += f_mean * P_sum;
        communication_loss += n_devices / (limit * T) * sent[d] * P_sum;
        kept += fmin(load[d], K * T / n_devices);
    }
    assert_close("L_ExpBal", balance.expert_balance_loss, expert_loss);
    assert_close("L_DevBal", balance.device_balance_loss, device_loss);
    assert_close("L_CommBal", balance.communication_balance_loss, communication_loss);
    assert_close("max_over_mean", balance.max_over_mean, busiest);
    assert_close("entropy", balance.entropy, entropy);
    assert_close("jain_index", balance.jain_index, 1 / (n * squares));
    assert_close("dropped_share", 1 - balance.dropped_share, kept / (K * T));
    assert_close("mean_devices_reached", balance.mean_devices_reached, reached_sum / T);
    ck_assert_uint_eq(balance.max_devices_reached, most_reached);
    ck_assert_uint_eq(balance.never_used, never);
}

static void check_all_measures(const char *folder, const int32_t *tokens, size_t n_tokens)
{
    dsv2_model *model = open_model(folder, 1);
    dsv2_session *session = open_session(model);
    static trace t;
    memset(&t, 0, sizeof t);
    ck_assert(dsv2_session_set_routing_trace(session, record, &t) == DSV2_OK);
    feed(session, tokens, n_tokens);
    dsv2_routing *routing = of_session(session, DSV2_ROUTING_ALL);
    dsv2_routing_info info = info_of(routing);
    size_t n_checked = 0;
    for (uint32_t l = 0; l < info.num_hidden_layers; l++) {
        dsv2_expert_load experts[MAX_EXPERTS];
        dsv2_routing_balance ours = {.struct_size = sizeof ours}, given = {.struct_size = sizeof given};
        if (dsv2_routing_experts(routing, l, experts) != DSV2_OK)
            continue;
        for (uint32_t d = 1; d <= info.n_routed_experts; d++)
            for (uint32_t m = 1; m <= d && info.n_routed_experts % d == 0; m++, n_checked++)
                check_measures(routing, &t, l, info.n_routed_experts, d, m);
        /* Checks the defaults, and whether the model limits routing. */
        ck_assert(dsv2_routing_measure(routing, l, 0, 0, &ours) == DSV2_OK);
        ck_assert(dsv2_routing_measure(routing, l, info.n_group, info.topk_group, &given) == DSV2_OK);
        ck_assert(memcmp(&ours, &given, sizeof ours) == 0);
        ck_assert_uint_le(ours.max_devices_reached, info.topk_group);
    }
    ck_assert_uint_gt(n_checked, 0);
    dsv2_routing_free(routing);
    dsv2_session_close(session);
    dsv2_model_close(model);
}

START_TEST(measures_are_the_reports_equations_for_every_number_of_devices)
{
    if (_i < TEST_GOLDENS) {
        test_tensors expected = {0};
        const char *folder = test_golden_folders[_i];
        size_t n;
        test_tensors_read(&expected, test_format("%s/expected.safetensors", folder));
        const int32_t *tokens = golden_tokens(&expected, &n);
        check_all_measures(folder, tokens, n);
        test_tensors_free(&expected);
        return;
    }
    char *folder = test_checkpoint_write(&twelve);
    int32_t tokens[MAX_TOKENS];
    test_random_tokens(1, twelve.vocab_size, tokens, MAX_TOKENS);
    check_all_measures(folder, tokens, _i == TEST_GOLDENS ? MAX_TOKENS : 1);
    test_checkpoint_remove(folder);
}
END_TEST

/* ---- sums, kinds, resets ---- */

static char *folder;
static int32_t tokens[1300];
static dsv2_model *model;
static dsv2_session *session;

static void setup(void)
{
    folder = test_checkpoint_write(&twelve);
    test_random_tokens(8, twelve.vocab_size, tokens, 1300);
    model = open_model(folder, 2);
    session = open_session(model);
}

static void teardown(void)
{
    dsv2_session_close(session);
    dsv2_model_close(model);
    test_checkpoint_remove(folder);
}

START_TEST(merging_two_runs_equals_one_run_of_both)
{
    dsv2_session *other = open_session(model), *both = open_session(model);
    feed(session, tokens, 300);
    feed(other, tokens + 300, 50);
    feed(both, tokens, 300);
    ck_assert(dsv2_session_truncate(both, 0) == DSV2_OK); /* counts stay */
    feed(both, tokens + 300, 50);
    dsv2_routing *a = of_session(session, DSV2_ROUTING_ALL), *b = of_session(other, DSV2_ROUTING_ALL);
    dsv2_routing *c = of_session(both, DSV2_ROUTING_ALL);
    ck_assert(dsv2_routing_merge(a, b) == DSV2_OK);
    assert_equal(a, c);
    dsv2_session_close(other);
    dsv2_session_close(both);
    dsv2_routing *all = of_model(model, DSV2_ROUTING_ALL); /* closed ones included */
    ck_assert(dsv2_routing_merge(a, c) == DSV2_OK);
    assert_equal(all, a);
    dsv2_routing_free(a), dsv2_routing_free(b), dsv2_routing_free(c), dsv2_routing_free(all);
}
END_TEST

START_TEST(prompt_and_generated_tokens_are_told_apart)
{
    feed(session, tokens, 600);
    for (int i = 0; i < 20; i++)
        feed(session, tokens + 600 + i, 1);
    feed(session, tokens + 620, 2);
    dsv2_routing *prompt = of_session(session, DSV2_ROUTING_PROMPT),
                 *generated = of_session(session, DSV2_ROUTING_GENERATED);
    dsv2_routing *all = of_session(session, DSV2_ROUTING_ALL),
                 *model_generated = of_model(model, DSV2_ROUTING_GENERATED);
    ck_assert(tokens_of(prompt) == 602 && tokens_of(generated) == 20 && tokens_of(all) == 622);
    assert_equal(model_generated, generated);
    ck_assert(dsv2_routing_merge(prompt, generated) == DSV2_OK);
    assert_equal(prompt, all);
    dsv2_routing_free(prompt), dsv2_routing_free(generated), dsv2_routing_free(all), dsv2_routing_free(model_generated);
}
END_TEST

START_TEST(how_tokens_were_cut_and_who_else_ran_changes_no_count)
{
    feed(session, tokens, 1100);
    dsv2_session *cut = open_session(model), *a = open_session(model), *b = open_session(model);
    for (size_t i = 0; i < 1100; i += 110)
        feed(cut, tokens + i, 110);
    dsv2_step_item items[] = {{.struct_size = sizeof *items, .session = a, .tokens = tokens, .n_tokens = 1100},
                              {.struct_size = sizeof *items, .session = b, .tokens = tokens + 3, .n_tokens = 40}};
    ck_assert(dsv2_step(model, items, 2) == DSV2_OK);
    dsv2_routing *whole = of_session(session, DSV2_ROUTING_ALL), *in_step = of_session(a, DSV2_ROUTING_ALL);
    dsv2_routing *in_parts = of_session(cut, DSV2_ROUTING_ALL);
    assert_equal(whole, in_step);
    ck_assert_uint_eq(tokens_of(in_parts), 1100);
    for (uint32_t l = 2; l < 5; l += 2) { /* other chunks round otherwise: choices may differ within rounding */
        dsv2_expert_load x[MAX_EXPERTS], y[MAX_EXPERTS];
        ck_assert(dsv2_routing_experts(whole, l, x) == DSV2_OK && dsv2_routing_experts(in_parts, l, y) == DSV2_OK);
        for (uint32_t e = 0; e < twelve.n_routed_experts; e++) {
            ck_assert_double_le(fabs(x[e].affinity_sum - y[e].affinity_sum), 1e-3);
            ck_assert_double_le(fabs((double)x[e].chosen - (double)y[e].chosen), 2);
        }
    }
    dsv2_routing_free(whole), dsv2_routing_free(in_step), dsv2_routing_free(in_parts);
    dsv2_session_close(cut), dsv2_session_close(a), dsv2_session_close(b);
}
END_TEST

static int cancel_late(void *user, dsv2_phase phase, uint64_t done, uint64_t total)
{
    (void)phase;
    return *(bool *)user && done + 60 > total;
}

START_TEST(a_feed_that_fails_or_is_cancelled_counts_nothing)
{
    bool cancels = true;
    dsv2_session_options options = {.struct_size = sizeof options, .max_length = 700, .cache_type = DSV2_CACHE_F32,
                                    .progress = cancel_late, .progress_user = &cancels};
    dsv2_session *watched;
    ck_assert(dsv2_session_open(model, &options, &watched) == DSV2_OK);
    dsv2_step_item items[] = {{.struct_size = sizeof *items, .session = watched, .tokens = tokens, .n_tokens = 600},
                              {.struct_size = sizeof *items, .session = session, .tokens = tokens, .n_tokens = 600}};
    ck_assert(dsv2_step(model, items, 2) == DSV2_ERROR_CANCELLED); /* the second item succeeds */
    ck_assert(dsv2_session_feed(watched, tokens, 701) == DSV2_ERROR_FULL);
    int32_t wrong = -1;
    ck_assert(dsv2_session_feed(watched, &wrong, 1) == DSV2_ERROR_ARGUMENT);
    dsv2_routing *nothing = of_session(watched, DSV2_ROUTING_ALL), *all = of_model(model, DSV2_ROUTING_ALL);
    dsv2_routing *succeeded = of_session(session, DSV2_ROUTING_ALL);
    dsv2_expert_load experts[MAX_EXPERTS];
    ck_assert(tokens_of(nothing) == 0 && dsv2_routing_experts(nothing, 2, experts) == DSV2_OK);
    for (uint32_t e = 0; e < twelve.n_routed_experts; e++)
        ck_assert(experts[e].chosen == 0 && experts[e].gate_sum == 0 && experts[e].affinity_sum == 0);
    assert_equal(all, succeeded);
    /* A cancelled feed leaves nothing that the next feed would count. */
    cancels = false;
    feed(watched, tokens, 600);
    dsv2_routing *again = of_session(watched, DSV2_ROUTING_ALL);
    assert_equal(again, succeeded);
    dsv2_routing_free(nothing), dsv2_routing_free(all), dsv2_routing_free(succeeded), dsv2_routing_free(again);
    dsv2_session_close(watched);
}
END_TEST

START_TEST(resets_are_of_the_session_or_of_the_model)
{
    feed(session, tokens, 30);
    ck_assert(dsv2_session_routing_reset(session) == DSV2_OK);
    dsv2_routing *own = of_session(session, DSV2_ROUTING_ALL), *all = of_model(model, DSV2_ROUTING_ALL);
    ck_assert(tokens_of(own) == 0 && tokens_of(all) == 30);
    dsv2_routing_free(own), dsv2_routing_free(all);
    feed(session, tokens, 5);
    ck_assert(dsv2_model_routing_reset(model) == DSV2_OK);
    own = of_session(session, DSV2_ROUTING_ALL), all = of_model(model, DSV2_ROUTING_ALL);
    ck_assert(tokens_of(own) == 5 && tokens_of(all) == 0);
    dsv2_routing_free(own), dsv2_routing_free(all);
}
END_TEST

START_TEST(a_fork_starts_at_zero_without_trace)
{
    static trace t;
    ck_assert(dsv2_session_set_routing_trace(session, record, &t) == DSV2_OK);
    feed(session, tokens, 30);
    size_t n_events = t.n_events;
    dsv2_session *copy;
    ck_assert(dsv2_session_fork(session, 20, &copy) == DSV2_OK);
    dsv2_routing *before = of_session(copy, DSV2_ROUTING_ALL);
    feed(copy, tokens, 4);
    dsv2_routing *after = of_session(copy, DSV2_ROUTING_ALL), *all = of_model(model, DSV2_ROUTING_ALL);
    ck_assert(tokens_of(before) == 0 && tokens_of(after) == 4 && tokens_of(all) == 34);
    ck_assert_uint_eq(t.n_events, n_events);
    dsv2_routing_free(before), dsv2_routing_free(after), dsv2_routing_free(all);
    dsv2_session_close(copy);
}
END_TEST

START_TEST(a_copy_of_counts_stays_as_it_is_and_outlives_the_model)
{
    feed(session, tokens, 30);
    dsv2_routing *routing = of_session(session, DSV2_ROUTING_ALL), *same = of_session(session, DSV2_ROUTING_ALL);
    feed(session, tokens, 30);
    dsv2_session_close(session);
    dsv2_model_close(model);
    assert_equal(routing, same);
    ck_assert_uint_eq(tokens_of(routing), 30);
    dsv2_routing_free(routing), dsv2_routing_free(same);
    model = open_model(folder, 1);
    session = open_session(model);
}
END_TEST

enum { N_FEEDS = 12 };

typedef struct counter {
    dsv2_session *session;
    size_t n;
} counter;

static void *count_thread(void *argument)
{
    counter *c = argument;
    for (size_t i = 0; i < N_FEEDS; i++) {
        feed(c->session, tokens, c->n);
        dsv2_routing *all = of_model(model, DSV2_ROUTING_ALL);
        uint64_t sum = 0;
        dsv2_expert_load experts[MAX_EXPERTS];
        ck_assert(dsv2_routing_experts(all, 2, experts) == DSV2_OK);
        for (uint32_t e = 0; e < twelve.n_routed_experts; e++)
            sum += experts[e].chosen;
        ck_assert_uint_eq(sum, tokens_of(all) * twelve.num_experts_per_tok); /* whole feeds, never a part of one */
        dsv2_routing_free(all);
    }
    return NULL;
}

START_TEST(counts_are_exact_under_threads)
{
    pthread_t threads[4];
    counter counters[4];
    for (size_t i = 0; i < 4; i++) {
        counters[i] = (counter){open_session(model), 1 + 2 * i};
        ck_assert(pthread_create(&threads[i], NULL, count_thread, &counters[i]) == 0);
    }
    for (size_t i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    dsv2_routing *sum = of_session(session, DSV2_ROUTING_ALL), *all = of_model(model, DSV2_ROUTING_ALL);
    for (size_t i = 0; i < 4; i++) {
        dsv2_routing *one = of_session(counters[i].session, DSV2_ROUTING_ALL);
        ck_assert(dsv2_routing_merge(sum, one) == DSV2_OK);
        dsv2_routing_free(one);
        dsv2_session_close(counters[i].session);
    }
    ck_assert_uint_eq(tokens_of(all), N_FEEDS * (1 + 3 + 5 + 7));
    assert_equal(all, sum);
    dsv2_routing_free(sum), dsv2_routing_free(all);
}
END_TEST

/* ---- what is refused ---- */

#define FAILS_WITH(status, call)                                                                                       \
    do {                                                                                                               \
        dsv2_status got = (call);                                                                                      \
        ck_assert_msg(got == (status), "%s gave %s, expected %s", #call, dsv2_status_name(got),                        \
                      dsv2_status_name(status));                                                                       \
    } while (0)
#define REFUSED(call) FAILS_WITH(DSV2_ERROR_ARGUMENT, call)

START_TEST(wrong_arguments_are_refused)
{
    feed(session, tokens, 30);
    dsv2_routing *routing = of_session(session, DSV2_ROUTING_ALL), *none = NULL;
    dsv2_routing_info info = {.struct_size = sizeof info};
    dsv2_routing_balance balance = {.struct_size = sizeof balance};
    dsv2_expert_load experts[MAX_EXPERTS];
    REFUSED(dsv2_session_routing(NULL, DSV2_ROUTING_ALL, &none));
    REFUSED(dsv2_session_routing(session, DSV2_ROUTING_ALL, NULL));
    REFUSED(dsv2_session_routing(session, (dsv2_routing_tokens)3, &none));
    REFUSED(dsv2_model_routing(NULL, DSV2_ROUTING_ALL, &none));
    REFUSED(dsv2_model_routing(model, DSV2_ROUTING_ALL, NULL));
    REFUSED(dsv2_model_routing(model, (dsv2_routing_tokens)-1, &none));
    REFUSED(dsv2_session_routing_reset(NULL));
    REFUSED(dsv2_model_routing_reset(NULL));
    REFUSED(dsv2_routing_merge(NULL, routing));
    REFUSED(dsv2_routing_merge(routing, NULL));
    REFUSED(dsv2_routing_get_info(NULL, &info));
    REFUSED(dsv2_routing_get_info(routing, NULL));
    REFUSED(dsv2_routing_get_info(routing, &(dsv2_routing_info){0}));
    REFUSED(dsv2_routing_experts(NULL, 2, experts));
    REFUSED(dsv2_routing_experts(routing, 2, NULL));
    static const uint32_t wrong_layers[] = {0, 1, 3, 5, UINT32_MAX}; /* 2 and 4 have experts */
    for (size_t i = 0; i < 5; i++) {
        REFUSED(dsv2_routing_experts(routing, wrong_layers[i], experts));
        REFUSED(dsv2_routing_measure(routing, wrong_layers[i], 0, 0, &balance));
    }
    REFUSED(dsv2_routing_measure(NULL, 2, 0, 0, &balance));
    REFUSED(dsv2_routing_measure(routing, 2, 0, 0, NULL));
    REFUSED(dsv2_routing_measure(routing, 2, 0, 0, &(dsv2_routing_balance){0}));
    static const uint32_t no_divisors[] = {5, 7, 8, 9, 10, 11, 13, 24, UINT32_MAX};
    for (size_t i = 0; i < sizeof no_divisors / sizeof *no_divisors; i++)
        REFUSED(dsv2_routing_measure(routing, 2, no_divisors[i], 0, &balance));
    REFUSED(dsv2_routing_measure(routing, 2, 4, 5, &balance));
    /* topk_group is 2, but there is one device. */
    ck_assert(dsv2_routing_measure(routing, 2, 1, 0, &balance) == DSV2_OK);
    REFUSED(dsv2_session_set_routing_trace(NULL, record, NULL));
    ck_assert(none == NULL);
    dsv2_routing_free(NULL);
    dsv2_session *empty = open_session(model);
    none = of_session(empty, DSV2_ROUTING_ALL);
    FAILS_WITH(DSV2_ERROR_STATE, dsv2_routing_measure(none, 2, 0, 0, &balance));
    dsv2_routing_free(none);
    dsv2_session_close(empty);
    dsv2_routing_free(routing);
}
END_TEST

START_TEST(counts_of_another_shape_do_not_merge)
{
    test_checkpoint others[] = {twelve, twelve, twelve, twelve};
    others[0].num_experts_per_tok = 3;
    others[1].moe_layer_freq = 1;
    others[2].num_hidden_layers = 6;
    others[3].topk_group = 3; /* groups are no part of the counts */
    dsv2_routing *routing = of_model(model, DSV2_ROUTING_ALL);
    for (size_t i = 0; i < 4; i++) {
        char *other_folder = test_checkpoint_write(&others[i]);
        dsv2_model *other = open_model(other_folder, 1);
        dsv2_routing *theirs = of_model(other, DSV2_ROUTING_ALL);
        FAILS_WITH(i < 3 ? DSV2_ERROR_MISMATCH : DSV2_OK, dsv2_routing_merge(routing, theirs));
        dsv2_routing_free(theirs);
        dsv2_model_close(other);
        test_checkpoint_remove(other_folder);
    }
    dsv2_routing_free(routing);
}
END_TEST

static void never_called(void *user, const dsv2_routing_event *event)
{
    (void)user;
    ck_abort_msg("traced layer %u of a dense model", event->layer);
}

START_TEST(a_dense_model_has_no_statistics)
{
    test_checkpoint dense[] = {twelve, twelve};
    dense[0].n_routed_experts = 0;
    dense[0].topk_method = NULL;
    dense[1].first_k_dense_replace = 5; /* experts in name only: no layer has them */
    for (size_t i = 0; i < 2; i++) {
        char *dense_folder = test_checkpoint_write(&dense[i]);
        dsv2_model *other = open_model(dense_folder, 1);
        dsv2_session *own = open_session(other);
        dsv2_routing *routing;
        ck_assert(dsv2_session_set_routing_trace(own, never_called, NULL) == DSV2_OK);
        feed(own, tokens, 10);
        FAILS_WITH(DSV2_ERROR_UNSUPPORTED, dsv2_session_routing(own, DSV2_ROUTING_ALL, &routing));
        FAILS_WITH(DSV2_ERROR_UNSUPPORTED, dsv2_model_routing(other, DSV2_ROUTING_ALL, &routing));
        ck_assert(dsv2_session_routing_reset(own) == DSV2_OK && dsv2_model_routing_reset(other) == DSV2_OK);
        dsv2_session_close(own);
        dsv2_model_close(other);
        test_checkpoint_remove(dense_folder);
    }
}
END_TEST

static int ask_meanwhile(void *user, dsv2_phase phase, uint64_t done, uint64_t total)
{
    (void)phase, (void)done, (void)total;
    dsv2_session *at_work = *(dsv2_session **)user;
    dsv2_routing *routing;
    FAILS_WITH(DSV2_ERROR_BUSY, dsv2_session_routing(at_work, DSV2_ROUTING_ALL, &routing));
    FAILS_WITH(DSV2_ERROR_BUSY, dsv2_session_routing_reset(at_work));
    FAILS_WITH(DSV2_ERROR_BUSY, dsv2_session_set_routing_trace(at_work, NULL, NULL));
    routing = of_model(model, DSV2_ROUTING_ALL); /* which may be asked at any time */
    ck_assert_uint_eq(tokens_of(routing), 0);
    dsv2_routing_free(routing);
    return 0;
}

START_TEST(a_session_at_work_is_busy_and_the_model_is_not)
{
    dsv2_session *at_work;
    dsv2_session_options options = {
        .struct_size = sizeof options, .progress = ask_meanwhile, .progress_user = &at_work};
    ck_assert(dsv2_session_open(model, &options, &at_work) == DSV2_OK);
    feed(at_work, tokens, 10);
    dsv2_session_close(at_work);
}
END_TEST

START_TEST(lack_of_memory_is_told_and_leaks_nothing)
{
    feed(session, tokens, 30);
    long live = oom_live();
    for (int whose = 0; whose < 2; whose++) {
        bool failed = true;
        for (size_t nth = 1; failed; nth++) {
            dsv2_routing *routing = NULL;
            oom_arm(nth, false);
            dsv2_status status = whose == 0 ? dsv2_session_routing(session, DSV2_ROUTING_ALL, &routing)
                                            : dsv2_model_routing(model, DSV2_ROUTING_ALL, &routing);
            failed = oom_disarm();
            ck_assert_int_eq(status, failed ? DSV2_ERROR_MEMORY : DSV2_OK);
            ck_assert((routing == NULL) == failed);
            dsv2_routing_free(routing);
            ck_assert_int_eq(oom_live(), live);
        }
    }
    feed(session, tokens, 1);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("routing");
    TCase *golden = tcase_create("golden"), *counts = tcase_create("counts");
    tcase_set_timeout(golden, 300);
    tcase_set_timeout(counts, 300);
    tcase_add_loop_test(golden, trace_tells_the_experts_gates_and_groups_that_the_published_code_chose, 0,
                        TEST_GOLDENS);
    tcase_add_loop_test(golden, counts_and_gate_sums_are_those_of_the_published_router, 0, TEST_GOLDENS);
    tcase_add_loop_test(golden, measures_are_the_reports_equations_for_every_number_of_devices, 0, TEST_GOLDENS + 2);
    tcase_add_checked_fixture(counts, setup, teardown);
    tcase_add_test(counts, merging_two_runs_equals_one_run_of_both);
    tcase_add_test(counts, prompt_and_generated_tokens_are_told_apart);
    tcase_add_test(counts, how_tokens_were_cut_and_who_else_ran_changes_no_count);
    tcase_add_test(counts, a_feed_that_fails_or_is_cancelled_counts_nothing);
    tcase_add_test(counts, resets_are_of_the_session_or_of_the_model);
    tcase_add_test(counts, a_fork_starts_at_zero_without_trace);
    tcase_add_test(counts, a_copy_of_counts_stays_as_it_is_and_outlives_the_model);
    tcase_add_test(counts, counts_are_exact_under_threads);
    tcase_add_test(counts, wrong_arguments_are_refused);
    tcase_add_test(counts, counts_of_another_shape_do_not_merge);
    tcase_add_test(counts, a_dense_model_has_no_statistics);
    tcase_add_test(counts, a_session_at_work_is_busy_and_the_model_is_not);
    if (oom_available())
        tcase_add_test(counts, lack_of_memory_is_told_and_leaks_nothing);
    suite_add_tcase(suite, golden);
    suite_add_tcase(suite, counts);
    return test_run(suite);
}

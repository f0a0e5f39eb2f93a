#include "api/call.h"

#include <dsv2/routing.h>

struct dsv2_routing {
    ds_usage_shape shape;
    ds_usage usage;
};

/* Counts of zero in the model's shape. */
static dsv2_status routing_new(const dsv2_model *model, dsv2_routing_tokens which, dsv2_routing **out)
{
    if ((unsigned)which > DSV2_ROUTING_GENERATED)
        return ds_fail(DSV2_ERROR_ARGUMENT, "which is %d, expected a dsv2_routing_tokens", (int)which);
    if (model->fixed.usage_shape.n_moe_layers == 0)
        return ds_fail(DSV2_ERROR_UNSUPPORTED, "the model is dense: it has no routed experts");
    dsv2_routing *routing = ds_new(1, sizeof *routing);
    if (routing == NULL)
        return ds_fail_memory("a dsv2_routing", sizeof *routing);
    routing->shape = model->fixed.usage_shape;
    dsv2_status status = ds_usage_init(&routing->usage, &routing->shape);
    if (status != DSV2_OK) {
        ds_free(routing);
        return status;
    }
    *out = routing;
    return DSV2_OK;
}

static void add_kinds(dsv2_routing *routing, const ds_usage *usage, dsv2_routing_tokens which)
{
    if (which != DSV2_ROUTING_GENERATED)
        ds_usage_add(&routing->usage, &usage[DS_USAGE_PROMPT], &routing->shape);
    if (which != DSV2_ROUTING_PROMPT)
        ds_usage_add(&routing->usage, &usage[DS_USAGE_GENERATED], &routing->shape);
}

dsv2_status dsv2_session_routing(dsv2_session *session, dsv2_routing_tokens which, dsv2_routing **routing)
{
    if (session == NULL || routing == NULL)
        return ds_null_argument(session == NULL ? "session" : "routing");
    dsv2_routing *copy;
    dsv2_status status = routing_new(session->model, which, &copy);
    if (status != DSV2_OK)
        return status;
    status = ds_begin_call(session);
    if (status != DSV2_OK) {
        dsv2_routing_free(copy);
        return status;
    }
    add_kinds(copy, session->usage, which);
    *routing = copy;
    return ds_end_call(session, DSV2_OK);
}

dsv2_status dsv2_model_routing(dsv2_model *model, dsv2_routing_tokens which, dsv2_routing **routing)
{
    if (model == NULL || routing == NULL)
        return ds_null_argument(model == NULL ? "model" : "routing");
    dsv2_routing *copy;
    dsv2_status status = routing_new(model, which, &copy);
    if (status != DSV2_OK)
        return status;
    status = ds_calls_begin(&model->calls);
    if (status != DSV2_OK) {
        dsv2_routing_free(copy);
        return status;
    }
    ds_modes modes;
    ds_modes_begin(&modes);
    ds_mutex_lock(&model->usage_lock);
    add_kinds(copy, model->usage, which);
    ds_mutex_unlock(&model->usage_lock);
    ds_modes_end(&modes);
    ds_calls_end(&model->calls);
    *routing = copy;
    return DSV2_OK;
}

void dsv2_routing_free(dsv2_routing *routing)
{
    if (routing == NULL)
        return;
    ds_usage_free(&routing->usage);
    ds_free(routing);
}

static void clear_kinds(const dsv2_model *model, ds_usage *usage)
{
    for (int kind = 0; kind < DS_USAGE_KINDS; kind++)
        ds_usage_clear(&usage[kind], &model->fixed.usage_shape);
}

dsv2_status dsv2_session_routing_reset(dsv2_session *session)
{
    dsv2_status status = ds_begin_call(session);
    if (status != DSV2_OK)
        return status;
    clear_kinds(session->model, session->usage);
    return ds_end_call(session, DSV2_OK);
}

dsv2_status dsv2_model_routing_reset(dsv2_model *model)
{
    if (model == NULL)
        return ds_null_argument("model");
    dsv2_status status = ds_calls_begin(&model->calls);
    if (status != DSV2_OK)
        return status;
    ds_mutex_lock(&model->usage_lock);
    clear_kinds(model, model->usage);
    ds_mutex_unlock(&model->usage_lock);
    ds_calls_end(&model->calls);
    return DSV2_OK;
}

dsv2_status dsv2_routing_merge(dsv2_routing *to, const dsv2_routing *from)
{
    if (to == NULL || from == NULL)
        return ds_null_argument(to == NULL ? "to" : "from");
    if (!ds_usage_shape_equal(&to->shape, &from->shape))
        return ds_fail(DSV2_ERROR_MISMATCH,
                       "the counts are of %u experts, %u chosen, in %u layers (%u with experts) and of %u, %u, %u (%u)",
                       to->shape.n_routed_experts, to->shape.num_experts_per_tok, to->shape.num_hidden_layers,
                       to->shape.n_moe_layers, from->shape.n_routed_experts, from->shape.num_experts_per_tok,
                       from->shape.num_hidden_layers, from->shape.n_moe_layers);
    ds_modes modes;
    ds_modes_begin(&modes);
    ds_usage_add(&to->usage, &from->usage, &to->shape);
    ds_modes_end(&modes);
    return DSV2_OK;
}

dsv2_status dsv2_routing_get_info(const dsv2_routing *routing, dsv2_routing_info *info)
{
    if (routing == NULL)
        return ds_null_argument("routing");
    dsv2_routing_info known = {
        .n_tokens = routing->usage.n_tokens,
        .num_hidden_layers = routing->shape.num_hidden_layers,
        .n_routed_experts = routing->shape.n_routed_experts,
        .num_experts_per_tok = routing->shape.num_experts_per_tok,
        .n_group = routing->shape.n_group,
        .topk_group = routing->shape.topk_group,
    };
    return ds_write_info(DS_SIZED(dsv2_routing_info, topk_group), info, &known);
}

static dsv2_status find_layer(const dsv2_routing *routing, uint32_t layer, uint32_t *moe_layer)
{
    const ds_usage_shape *shape = &routing->shape;
    if (layer >= shape->num_hidden_layers)
        return ds_fail(DSV2_ERROR_ARGUMENT, "layer is %u, the model has %u", layer, shape->num_hidden_layers);
    *moe_layer = ds_usage_layer(shape, layer);
    if (*moe_layer == shape->n_moe_layers)
        return ds_fail(DSV2_ERROR_ARGUMENT, "layer %u is dense: it has no routed experts", layer);
    return DSV2_OK;
}

dsv2_status dsv2_routing_experts(const dsv2_routing *routing, uint32_t layer, dsv2_expert_load *experts)
{
    if (routing == NULL || experts == NULL)
        return ds_null_argument(routing == NULL ? "routing" : "experts");
    uint32_t moe_layer = 0;
    dsv2_status status = find_layer(routing, layer, &moe_layer);
    if (status != DSV2_OK)
        return status;
    ds_modes modes;
    ds_modes_begin(&modes);
    ds_usage_experts(&routing->usage, &routing->shape, moe_layer, experts);
    ds_modes_end(&modes);
    return DSV2_OK;
}

dsv2_status dsv2_routing_measure(const dsv2_routing *routing, uint32_t layer, uint32_t n_devices, uint32_t max_devices,
                                 dsv2_routing_balance *balance)
{
    if (routing == NULL)
        return ds_null_argument("routing");
    const ds_usage_shape *shape = &routing->shape;
    uint32_t moe_layer = 0;
    dsv2_status status = find_layer(routing, layer, &moe_layer);
    if (status != DSV2_OK)
        return status;
    if (n_devices == 0)
        n_devices = shape->n_group;
    if (n_devices > shape->n_routed_experts || shape->n_routed_experts % n_devices != 0)
        return ds_fail(DSV2_ERROR_ARGUMENT, "n_devices is %u, expected a divisor of n_routed_experts, %u", n_devices,
                       shape->n_routed_experts);
    if (max_devices > n_devices)
        return ds_fail(DSV2_ERROR_ARGUMENT, "max_devices is %u, of %u devices", max_devices, n_devices);
    if (max_devices == 0)
        max_devices = shape->topk_group < n_devices ? shape->topk_group : n_devices;
    if (routing->usage.n_tokens == 0)
        return ds_fail(DSV2_ERROR_STATE, "no tokens were counted: there is nothing to measure");
    dsv2_routing_balance known = {0};
    ds_modes modes;
    ds_modes_begin(&modes);
    ds_usage_measure(&routing->usage, shape, moe_layer, n_devices, max_devices, &known);
    ds_modes_end(&modes);
    return ds_write_info(DS_SIZED(dsv2_routing_balance, mean_devices_reached), balance, &known);
}

dsv2_status dsv2_session_set_routing_trace(dsv2_session *session, dsv2_routing_trace_fn trace, void *user)
{
    dsv2_status status = ds_begin_call(session);
    if (status != DSV2_OK)
        return status;
    session->trace = trace;
    session->trace_user = user;
    return ds_end_call(session, DSV2_OK);
}

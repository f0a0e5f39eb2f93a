#include "weights/walk.h"

#include <assert.h>

typedef struct walk {
    const ds_config *config;
    const ds_weights_visitor *visitor;
} walk;

/* Visits a weight whose slot is in `base`, the structure of the role's scope. */
static dsv2_status visit(const walk *w, const ds_weight_id *id, void *base)
{
    const ds_role_info *role = ds_role_info_of(id->role);
    void *slot = (char *)base + role->slot;
    ds_shape shape = role->shape(w->config);
    return shape.cols > 0 ? w->visitor->matrix(w->visitor->context, id, shape, slot)
                          : w->visitor->vector(w->visitor->context, id, shape.rows, slot);
}

static dsv2_status visit_scope(const walk *w, ds_scope scope, uint32_t layer, uint32_t expert, void *base)
{
    dsv2_status status = DSV2_OK;
    for (ds_role role = 0; role < DS_ROLE_COUNT && status == DSV2_OK; role++) {
        const ds_role_info *info = ds_role_info_of(role);
        if (info->scope == scope && info->asked_for != NULL && info->asked_for(w->config, layer))
            status = visit(w, &(ds_weight_id){role, layer, expert}, base);
    }
    return status;
}

static dsv2_status visit_layer(const walk *w, uint32_t l, ds_layer *layer)
{
    dsv2_status status = visit_scope(w, DS_SCOPE_LAYER, l, 0, layer);
    uint32_t n_experts = layer->is_moe ? w->config->n_routed_experts : 0;
    for (uint32_t e = 0; e < n_experts && status == DSV2_OK; e++) {
        assert(layer->moe.experts != NULL);
        status = visit_scope(w, DS_SCOPE_EXPERT, l, e, &layer->moe.experts[e]);
    }
    return status;
}

dsv2_status ds_weights_walk(ds_weights *weights, const ds_config *config, const ds_weights_visitor *visitor)
{
    const walk w = {config, visitor};
    dsv2_status status = visit_scope(&w, DS_SCOPE_BEGIN, 0, 0, weights);
    for (uint32_t l = 0; l < config->num_hidden_layers && status == DSV2_OK; l++)
        status = visit_layer(&w, l, &weights->layers[l]);
    return status == DSV2_OK ? visit_scope(&w, DS_SCOPE_END, 0, 0, weights) : status;
}

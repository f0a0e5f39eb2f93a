/* Every weight of a model, in the order of the forward pass. Opening and exporting both walk here. */
#ifndef DS_LIB_WEIGHTS_WALK_H
#define DS_LIB_WEIGHTS_WALK_H

#include "weights/roles.h"

/* The slots are in the weights that are walked. */
typedef struct ds_weights_visitor {
    dsv2_status (*matrix)(void *context, const ds_weight_id *id, ds_shape shape, ds_matrix *slot);
    dsv2_status (*vector)(void *context, const ds_weight_id *id, uint32_t n, const float **slot);
    void *context;
} ds_weights_visitor;

/* Calls the visitor for every weight that the configuration asks for, until one call fails. The layers are
 * allocated; a layer's experts are by the time that its router and the rest of the layer have been visited. */
dsv2_status ds_weights_walk(ds_weights *weights, const ds_config *config, const ds_weights_visitor *visitor);

#endif

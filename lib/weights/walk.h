/* Every weight of a model, in the order of the forward pass. */
#ifndef DS_LIB_WEIGHTS_WALK_H
#define DS_LIB_WEIGHTS_WALK_H

#include "weights/weights.h"

/* names.c: calls the visitor for every weight that the model's configuration asks for, in the order of the forward pass, until one
 * call fails. matrix and vector point into the model (whose layers and experts are allocated). */
enum { DS_NAME_SIZE = 128 };

typedef struct ds_weights_visitor {
    dsv2_status (*matrix)(void *context, const char *name, uint32_t rows, uint32_t cols, ds_matrix *matrix);
    dsv2_status (*vector)(void *context, const char *name, uint32_t n, const float **vector);
    void *context;
} ds_weights_visitor;

/* Whether a weight's name ends so. */
bool ds_name_ends(const char *name, const char *end);

dsv2_status ds_weights_walk(ds_weights *weights, const ds_config *config, const ds_weights_visitor *visitor);

/* names_gguf.c: where a weight of a published name is in a GGUF: a tensor and, for a routed expert's, its number in the outermost
 * dimension, else -1; what the tensor has for one expert is n_parts matrices of the same shape, one after the other, of which the
 * weight is number `part`. `layer` is 0 for weights outside the layers. */
typedef struct ds_gguf_place {
    char name[DS_NAME_SIZE + 16];
    uint32_t layer;
    int32_t expert;
    uint32_t part, n_parts;
} ds_gguf_place;

ds_gguf_place ds_gguf_place_of(const char *name);

/* Where it is if the converter was told to join the experts' gate and up; false for all other weights. */
bool ds_gguf_joined_place(const ds_gguf_place *place, ds_gguf_place *joined);

/* What follows "model.layers.N" in a pack's name of (W^UK)^T. */
#define DS_K_UP_TRANSPOSED ".self_attn.k_up_transposed"

/* Memory that is freed with the weights: returns it, or frees it and returns NULL. memory may be NULL. */
void *ds_weights_keep(ds_weights *weights, void *memory);

#endif

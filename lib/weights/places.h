/* Where weights lie in files. In Hugging Face's files and in packs each has a tensor of its own. In GGUFs a tensor
 * has one matrix for every routed expert of a layer, or two one after the other (gate and up, joined); and kv_b_proj
 * may be in two tensors. */
#ifndef DS_LIB_WEIGHTS_PLACES_H
#define DS_LIB_WEIGHTS_PLACES_H

#include "weights/roles.h"

typedef struct ds_places {
    const ds_container *container;
    const ds_config *config;
    bool is_gguf;
} ds_places;

typedef struct ds_place {
    ds_tensor tensor; /* the weight alone, under the name of the tensor that it lies in */
    bool is_first;    /* of the weights in that tensor */
} ds_place;

/* Both outlive the places. */
ds_places ds_places_in(const ds_container *container, const ds_config *config);

/* Finds a weight. On failure the message names the tensor, what was found and what was expected. */
dsv2_status ds_place_find(const ds_places *places, const ds_weight_id *id, ds_place *place);

/* Finds the block scales of an FP8 tensor: NAME_scale_inv, floats, one for each block of the configuration. */
dsv2_status ds_place_find_scales(const ds_places *places, const ds_tensor *tensor, ds_tensor *scales);

/* Whether the files have (W^UK)^T of a layer as a tensor of its own, beside kv_b_proj. */
bool ds_place_has_k_up(const ds_places *places, uint32_t layer);

/* Whether kv_b_proj of a layer is in two tensors: (W^UK)^T and W^UV, by head. */
bool ds_place_is_split(const ds_places *places, uint32_t layer);
dsv2_status ds_place_find_split(const ds_places *places, uint32_t layer, const ds_tensor **k_up,
                                const ds_tensor **v_up);

/* A tensor's data as a matrix of this shape. */
ds_matrix ds_tensor_matrix(const ds_tensor *tensor, ds_shape shape);

#endif

/* What a weight is for. A weight is told from others by its layer, its role and, among routed experts, its expert.
 * One table by role (roles.c) says everything else: the names, the shape, which models have it, where it is bound.
 * Names are printed from an id and never read back. */
#ifndef DS_LIB_WEIGHTS_ROLES_H
#define DS_LIB_WEIGHTS_ROLES_H

#include "weights/weights.h"

/* In the order of the forward pass, which is the order of the table and of the walk. */
typedef enum ds_role {
    DS_ROLE_EMBED_TOKENS,
    DS_ROLE_INPUT_NORM,
    DS_ROLE_Q_PROJ,
    DS_ROLE_Q_A_PROJ,
    DS_ROLE_Q_A_BIAS,
    DS_ROLE_Q_A_NORM,
    DS_ROLE_Q_B_PROJ,
    DS_ROLE_KV_A_PROJ,
    DS_ROLE_KV_A_BIAS,
    DS_ROLE_KV_A_NORM,
    DS_ROLE_KV_B_PROJ,
    DS_ROLE_K_UP_TRANSPOSED, /* (W^UK)^T by head: kept in packs and in some GGUFs, else made of kv_b_proj */
    DS_ROLE_V_UP,            /* W^UV by head, beside (W^UK)^T in some GGUFs; never bound by itself */
    DS_ROLE_O_PROJ,
    DS_ROLE_O_BIAS,
    DS_ROLE_POST_ATTENTION_NORM,
    DS_ROLE_FFN_GATE,
    DS_ROLE_FFN_UP,
    DS_ROLE_FFN_DOWN,
    DS_ROLE_ROUTER,
    DS_ROLE_SCORE_BIAS,
    DS_ROLE_SHARED_GATE,
    DS_ROLE_SHARED_UP,
    DS_ROLE_SHARED_DOWN,
    DS_ROLE_EXPERT_GATE,
    DS_ROLE_EXPERT_UP,
    DS_ROLE_EXPERT_DOWN,
    DS_ROLE_NORM,
    DS_ROLE_LM_HEAD,
    DS_ROLE_COUNT
} ds_role;

typedef struct ds_weight_id {
    ds_role role;
    uint32_t layer;  /* 0 outside the layers */
    uint32_t expert; /* 0 for all but routed experts */
} ds_weight_id;

/* How often a role occurs in a model: decides which fields of an id count, and which structure has the slot. */
typedef enum ds_scope {
    DS_SCOPE_BEGIN,  /* the model, before the layers: ds_weights */
    DS_SCOPE_LAYER,  /* each layer: ds_layer */
    DS_SCOPE_EXPERT, /* each routed expert of a layer: ds_ffn_weights */
    DS_SCOPE_END,    /* the model, after the layers: ds_weights */
} ds_scope;

/* What rounding a weight costs: decides the type that it is held in (held_type.c). */
typedef enum ds_sensitivity {
    DS_SENSITIVITY_USUAL,
    DS_SENSITIVITY_ROUTER,    /* decides which experts a token meets */
    DS_SENSITIVITY_EMBEDDING, /* every token meets it */
    DS_SENSITIVITY_HEAD,      /* every token meets it */
    DS_SENSITIVITY_LATENT,    /* makes, or reads, what all heads and later tokens see */
} ds_sensitivity;

typedef struct ds_shape {
    uint32_t rows, cols; /* cols 0: a vector of `rows` numbers */
} ds_shape;

typedef struct ds_role_info {
    ds_scope scope;
    ds_sensitivity sensitivity;
    const char *published; /* its name in Hugging Face's files and packs, behind layer and expert; NULL: none */
    const char *gguf;      /* its name in GGUFs, behind the layer */
    const char *joined;    /* NULL, or its name in GGUFs that hold two matrices of each expert in one tensor */
    uint32_t joined_part;  /* 0: the first of the two, 1: the second */
    size_t slot;           /* offset of its ds_matrix, or of the pointer to its floats, in the scope's structure */
    /* Which configurations have it, in which layers; NULL: none by itself, another weight brings it along. */
    bool (*asked_for)(const ds_config *config, uint32_t layer);
    ds_shape (*shape)(const ds_config *config);
} ds_role_info;

const ds_role_info *ds_role_info_of(ds_role role);

/* Room for any name that the functions below print. */
enum { DS_NAME_SIZE = 128 };

void ds_published_name(const ds_weight_id *id, char name[DS_NAME_SIZE]);
void ds_gguf_name(const ds_weight_id *id, char name[DS_NAME_SIZE]);

/* The name of the tensor that a GGUF may hold the weight in together with another; false if there is none for this
 * role. */
bool ds_gguf_joined_name(const ds_weight_id *id, char name[DS_NAME_SIZE]);

#endif

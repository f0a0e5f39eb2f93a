/* Which element type a weight is held in, and bringing it there: on opening, and into a .dsv2 pack. */
#include "model/pass.h"

#include <string.h>

typedef enum role { ROLE_OTHER, ROLE_ROUTER, ROLE_EMBEDDING, ROLE_HEAD, ROLE_LATENT } role;

static role role_of(const char *name)
{
    if (dsv2_name_ends(name, ".mlp.gate.weight"))
        return ROLE_ROUTER;
    if (dsv2_name_ends(name, "embed_tokens.weight"))
        return ROLE_EMBEDDING;
    if (dsv2_name_ends(name, "lm_head.weight"))
        return ROLE_HEAD;
    if (strstr(name, ".self_attn.kv_") != NULL || dsv2_name_ends(name, DSV2_K_UP_TRANSPOSED))
        return ROLE_LATENT;
    return ROLE_OTHER;
}

/* As stored: what the kernels take stays; block types of GGUF files become their packed twin, and those without one 8 bits. */
static dsv2_type stored_type(role role, dsv2_type type)
{
    if (dsv2_type_is_plain(type) || type == DSV2_TYPE_F8_E4M3 || dsv2_type_is_packed(type))
        return type;
    if (role == ROLE_ROUTER)
        return DSV2_TYPE_F32;
    dsv2_type twin = dsv2_packed_twin(type);
    return twin != DSV2_TYPE_COUNT ? twin : DSV2_TYPE_P8;
}

dsv2_type dsv2_packing_type(dsv2_weight_type weight_type, const char *name, dsv2_type type)
{
    role role = role_of(name);
    dsv2_type packed;
    switch (weight_type) {
    case DSV2_WEIGHTS_F32: return DSV2_TYPE_F32;
    case DSV2_WEIGHTS_F16: return DSV2_TYPE_F16;
    case DSV2_WEIGHTS_BF16: return DSV2_TYPE_BF16;
    case DSV2_WEIGHTS_Q8_0: packed = DSV2_TYPE_P8; break;
    case DSV2_WEIGHTS_Q6_K: packed = DSV2_TYPE_P6; break;
    case DSV2_WEIGHTS_Q5_K: packed = DSV2_TYPE_P5; break;
    case DSV2_WEIGHTS_Q4_K: packed = DSV2_TYPE_P4; break;
    case DSV2_WEIGHTS_Q4_0: packed = DSV2_TYPE_P4S; break;
    default: return stored_type(role, type);
    }
    /* The router decides which experts a token meets; the latent is what all heads and later tokens see; embedding and head meet
     * every token: they are small, or matter more than their size. */
    if (role == ROLE_ROUTER)
        return dsv2_type_is_plain(type) ? type : DSV2_TYPE_F32;
    if (role == ROLE_EMBEDDING || role == ROLE_LATENT)
        return DSV2_TYPE_P8;
    if (role == ROLE_HEAD && packed != DSV2_TYPE_P8)
        return DSV2_TYPE_P6;
    return packed;
}

size_t dsv2_matrix_bytes(dsv2_type type, uint32_t rows, uint32_t cols)
{
    size_t whole = dsv2_type_is_packed(type) ? ((size_t)rows + DSV2_PACK_ROWS - 1) / DSV2_PACK_ROWS * DSV2_PACK_ROWS : rows;
    return whole * dsv2_type_row_bytes(type, cols);
}

typedef struct packing {
    const dsv2_model *model;
    const dsv2_matrix *from;
    dsv2_type type;
    uint8_t *out;
    float *scratch; /* DSV2_PACK_ROWS rows for each thread */
} packing;

/* DSV2_PACK_ROWS rows: a group, if the type is packed. */
static void pack_task(void *context, size_t group, unsigned thread)
{
    const packing *p = context;
    const dsv2_matrix *from = p->from;
    uint32_t first = (uint32_t)group * DSV2_PACK_ROWS, n = from->rows - first < DSV2_PACK_ROWS ? from->rows - first : DSV2_PACK_ROWS;
    size_t row_bytes = dsv2_type_row_bytes(p->type, from->cols);
    uint8_t *out = p->out + first * row_bytes;
    if (dsv2_type_is_packed(p->type) && dsv2_packed_twin(from->type) == p->type) {
        const void *rows[DSV2_PACK_ROWS];
        for (uint32_t r = 0; r < n; r++)
            rows[r] = (const uint8_t *)from->data + (first + r) * from->row_bytes;
        dsv2_repack_group(from->type, out, rows, n, from->cols);
        return;
    }
    float *scratch = p->scratch + (size_t)thread * DSV2_PACK_ROWS * from->cols;
    const float *rows[DSV2_PACK_ROWS];
    for (uint32_t r = 0; r < n; r++) {
        float *row = scratch + (size_t)r * from->cols;
        dsv2_matrix_row(p->model->kernels, from, first + r, row);
        rows[r] = row;
        if (!dsv2_type_is_packed(p->type))
            for (uint32_t c = 0; c < from->cols; c++)
                dsv2_store_element(p->type, out + r * row_bytes, c, row[c]);
    }
    if (dsv2_type_is_packed(p->type))
        dsv2_pack_group(p->type, out, rows, n, from->cols);
}

dsv2_status dsv2_matrix_convert(const dsv2_model *model, const char *name, const dsv2_matrix *from, dsv2_type type, void *out)
{
    size_t floats = (size_t)DSV2_PACK_ROWS * from->cols * dsv2_pool_threads(model->pool);
    packing p = {model, from, type, out, dsv2_new_aligned(floats, sizeof(float))};
    if (p.scratch == NULL)
        return dsv2_fail_memory(name, floats * sizeof(float));
    dsv2_pool_run(model->pool, pack_task, &p, ((size_t)from->rows + DSV2_PACK_ROWS - 1) / DSV2_PACK_ROWS);
    dsv2_free(p.scratch);
    return DSV2_OK;
}

void dsv2_store_element(dsv2_type type, void *data, size_t i, float value)
{
    if (type == DSV2_TYPE_F32)
        ((float *)data)[i] = value;
    else
        ((uint16_t *)data)[i] = type == DSV2_TYPE_F16 ? dsv2_f32_to_f16(value) : dsv2_f32_to_bf16(value);
}

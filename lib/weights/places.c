#include "weights/places.h"

#include <stdio.h>

ds_places ds_places_in(const ds_container *container, const ds_config *config)
{
    return (ds_places){container, config, ds_container_format(container) == DS_FORMAT_GGUF};
}

static void shape_text(uint32_t n_dims, const uint64_t *dims, char *text, size_t size)
{
    size_t length = (size_t)snprintf(text, size, "[");
    for (uint32_t i = 0; i < n_dims && length < size; i++)
        length += (size_t)snprintf(text + length, size - length, "%s%llu", i > 0 ? ", " : "",
                                   (unsigned long long)dims[i]);
    if (length < size)
        snprintf(text + length, size - length, "]");
}

/* The container's tensor of this name, if it has the shape. */
static dsv2_status require(const ds_places *places, const char *name, uint32_t n_dims, const uint64_t *dims,
                           const ds_tensor **out)
{
    const ds_tensor *tensor;
    dsv2_status status = ds_container_require(places->container, name, &tensor);
    if (status != DSV2_OK)
        return status;
    if (tensor->n_dims != n_dims || memcmp(tensor->dims, dims, n_dims * sizeof *dims) != 0) {
        char shape[96], expected[96];
        shape_text(tensor->n_dims, tensor->dims, shape, sizeof shape);
        shape_text(n_dims, dims, expected, sizeof expected);
        return ds_fail(DSV2_ERROR_FORMAT, "%s: tensor %s has shape %s, the configuration says %s", tensor->path, name,
                       shape, expected);
    }
    *out = tensor;
    return DSV2_OK;
}

/* A tensor that holds one weight. */
static dsv2_status find_whole(const ds_places *places, const char *name, ds_shape shape, ds_tensor *out)
{
    const uint64_t dims[] = {shape.rows, shape.cols};
    const ds_tensor *tensor;
    dsv2_status status = require(places, name, shape.cols > 0 ? 2 : 1, dims, &tensor);
    if (status == DSV2_OK)
        *out = *tensor;
    return status;
}

/* A routed expert's matrix in a tensor with `n_parts` matrices for every expert. */
static dsv2_status find_expert(const ds_places *places, const ds_weight_id *id, const char *name, uint32_t part,
                               uint32_t n_parts, ds_place *place)
{
    ds_shape shape = ds_role_info_of(id->role)->shape(places->config);
    const uint64_t dims[] = {places->config->n_routed_experts, (uint64_t)shape.rows * n_parts, shape.cols};
    const ds_tensor *tensor;
    dsv2_status status = require(places, name, 3, dims, &tensor);
    if (status != DSV2_OK)
        return status;
    *place = (ds_place){.tensor = *tensor, .is_first = id->expert == 0 && part == 0};
    ds_tensor *own = &place->tensor;
    own->n_bytes = tensor->n_bytes / dims[0] / n_parts;
    uint64_t skipped = own->n_bytes * ((uint64_t)id->expert * n_parts + part);
    own->offset += skipped;
    if (tensor->data != NULL)
        own->data = (const uint8_t *)tensor->data + skipped;
    own->n_dims = 2;
    own->dims[0] = shape.rows;
    own->dims[1] = shape.cols;
    return DSV2_OK;
}

static dsv2_status find_gguf_expert(const ds_places *places, const ds_weight_id *id, ds_place *place)
{
    char name[DS_NAME_SIZE];
    if (ds_gguf_joined_name(id, name) && ds_container_has(places->container, name))
        return find_expert(places, id, name, ds_role_info_of(id->role)->joined_part, 2, place);
    ds_gguf_name(id, name);
    return find_expert(places, id, name, 0, 1, place);
}

dsv2_status ds_place_find(const ds_places *places, const ds_weight_id *id, ds_place *place)
{
    const ds_role_info *role = ds_role_info_of(id->role);
    if (places->is_gguf && role->scope == DS_SCOPE_EXPERT)
        return find_gguf_expert(places, id, place);
    char name[DS_NAME_SIZE];
    if (places->is_gguf)
        ds_gguf_name(id, name);
    else
        ds_published_name(id, name);
    place->is_first = true;
    return find_whole(places, name, role->shape(places->config), &place->tensor);
}

dsv2_status ds_place_find_scales(const ds_places *places, const ds_tensor *tensor, ds_tensor *scales)
{
    uint32_t block_rows = places->config->fp8_block_rows, block_cols = places->config->fp8_block_cols;
    if (block_rows == 0 || block_cols == 0)
        return ds_fail(DSV2_ERROR_FORMAT,
                       "%s: tensor %s is F8_E4M3 and config.json gives no quantization_config.weight_block_size",
                       tensor->path, tensor->name);
    char name[DS_NAME_SIZE + 16];
    snprintf(name, sizeof name, "%s_scale_inv", tensor->name);
    uint64_t rows = (tensor->dims[0] + block_rows - 1) / block_rows;
    uint64_t cols = (tensor->dims[1] + block_cols - 1) / block_cols;
    return find_whole(places, name, (ds_shape){(uint32_t)rows, (uint32_t)cols}, scales);
}

bool ds_place_has_k_up(const ds_places *places, uint32_t layer)
{
    char name[DS_NAME_SIZE];
    ds_published_name(&(ds_weight_id){DS_ROLE_K_UP_TRANSPOSED, layer, 0}, name);
    return !places->is_gguf && ds_container_has(places->container, name);
}

bool ds_place_is_split(const ds_places *places, uint32_t layer)
{
    char name[DS_NAME_SIZE];
    ds_gguf_name(&(ds_weight_id){DS_ROLE_KV_B_PROJ, layer, 0}, name);
    return places->is_gguf && !ds_container_has(places->container, name);
}

/* A tensor whose outermost dimension counts heads. */
static dsv2_status require_by_head(const ds_places *places, ds_role role, uint32_t layer, const ds_tensor **tensor)
{
    uint32_t n_heads = places->config->num_attention_heads;
    ds_shape shape = ds_role_info_of(role)->shape(places->config);
    const uint64_t dims[] = {n_heads, shape.rows / n_heads, shape.cols};
    char name[DS_NAME_SIZE];
    ds_gguf_name(&(ds_weight_id){role, layer, 0}, name);
    return require(places, name, 3, dims, tensor);
}

dsv2_status ds_place_find_split(const ds_places *places, uint32_t layer, const ds_tensor **k_up, const ds_tensor **v_up)
{
    dsv2_status status = require_by_head(places, DS_ROLE_K_UP_TRANSPOSED, layer, k_up);
    return status == DSV2_OK ? require_by_head(places, DS_ROLE_V_UP, layer, v_up) : status;
}

ds_matrix ds_tensor_matrix(const ds_tensor *tensor, ds_shape shape)
{
    return (ds_matrix){.rows = shape.rows, .cols = shape.cols, .type = tensor->type, .data = tensor->data,
                       .row_bytes = ds_type_row_bytes(tensor->type, shape.cols)};
}

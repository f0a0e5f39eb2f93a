/* Binding: every tensor that the configuration asks for (names.c), its type and shape checked, once. After this the forward pass
 * has no checks. A configuration that asks for more layers or experts than there are tensors fails at the first that is missing. */
#include "model/pass.h"

#include <stdio.h>
#include <string.h>
#include <xxhash.h>

typedef struct binder {
    dsv2_model *model;
    const dsv2_model_options *options;
    uint64_t done, total; /* tensors, for progress */
    float *row;           /* DSV2_MAX_DIM-bounded: one row of floats, for conversions */
    size_t row_capacity;
} binder;

static void *keep(dsv2_model *model, void *memory)
{
    if (memory == NULL)
        return NULL;
    if (!dsv2_grow(&model->owned, &model->owned_capacity, model->n_owned + 1, sizeof *model->owned)) {
        dsv2_free(memory);
        return NULL;
    }
    model->owned[model->n_owned++] = memory;
    return memory;
}

/* Memory for converted weights, freed with the model. */
static dsv2_status keep_bytes(binder *binder, const char *name, size_t bytes, void **out)
{
    *out = keep(binder->model, dsv2_new_aligned(bytes, 1));
    if (*out == NULL)
        return dsv2_fail_memory(name, bytes);
    binder->model->bytes_copied += bytes;
    return DSV2_OK;
}

static dsv2_status report(binder *binder)
{
    const dsv2_model_options *options = binder->options;
    if (binder->done < binder->total)
        binder->done++;
    if (options->progress != NULL && options->progress(options->progress_user, DSV2_PHASE_OPEN, binder->done, binder->total) != 0)
        return dsv2_fail(DSV2_ERROR_CANCELLED, "opening was cancelled by the progress callback");
    return DSV2_OK;
}

/* The identity of a tensor: its name, type, shape and a sample from its middle. */
static void fingerprint(dsv2_model *model, const dsv2_tensor *tensor)
{
    enum { SAMPLE = 1024 };
    uint64_t hash = XXH3_64bits_withSeed(tensor->name, strlen(tensor->name), model->fingerprint);
    hash = XXH3_64bits_withSeed(tensor->dims, tensor->n_dims * sizeof *tensor->dims, hash ^ (uint64_t)tensor->type);
    uint64_t size = tensor->n_bytes < SAMPLE ? tensor->n_bytes : SAMPLE, from = (tensor->n_bytes - size) / 2;
    model->fingerprint = XXH3_64bits_withSeed((const uint8_t *)tensor->data + from, (size_t)size, hash);
}

static void shape_text(const dsv2_tensor *tensor, char *text, size_t size)
{
    size_t length = (size_t)snprintf(text, size, "[");
    for (uint32_t i = 0; i < tensor->n_dims && length < size; i++)
        length += (size_t)snprintf(text + length, size - length, "%s%llu", i > 0 ? ", " : "", (unsigned long long)tensor->dims[i]);
    if (length < size)
        snprintf(text + length, size - length, "]");
}

/* Finds a tensor and checks its shape; cols 0 means a vector of `rows`. */
static dsv2_status find(binder *binder, const char *name, uint64_t rows, uint64_t cols, const dsv2_tensor **out)
{
    const dsv2_tensor *tensor;
    dsv2_status status = dsv2_container_require(binder->model->container, name, &tensor);
    if (status != DSV2_OK)
        return status;
    bool matches = cols == 0 ? tensor->n_dims == 1 && tensor->dims[0] == rows
                             : tensor->n_dims == 2 && tensor->dims[0] == rows && tensor->dims[1] == cols;
    if (!matches) {
        char shape[96], expected[48];
        shape_text(tensor, shape, sizeof shape);
        if (cols == 0)
            snprintf(expected, sizeof expected, "[%llu]", (unsigned long long)rows);
        else
            snprintf(expected, sizeof expected, "[%llu, %llu]", (unsigned long long)rows, (unsigned long long)cols);
        return dsv2_fail(DSV2_ERROR_FORMAT, "%s: tensor %s has shape %s, the configuration says %s", tensor->path, name, shape,
                         expected);
    }
    fingerprint(binder->model, tensor);
    binder->model->parameters += cols == 0 ? rows : rows * cols;
    *out = tensor;
    return report(binder);
}

/* A vector as floats: norms, biases. */
static dsv2_status bind_vector(binder *binder, const char *name, uint32_t n, const float **out)
{
    const dsv2_tensor *tensor;
    dsv2_status status = find(binder, name, n, 0, &tensor);
    if (status != DSV2_OK)
        return status;
    if (tensor->type != DSV2_TYPE_F32 && tensor->type != DSV2_TYPE_F16 && tensor->type != DSV2_TYPE_BF16)
        return dsv2_fail(DSV2_ERROR_UNSUPPORTED, "%s: tensor %s has type %s, expected F32, F16 or BF16", tensor->path, name,
                         dsv2_type_name(tensor->type));
    void *values;
    status = keep_bytes(binder, name, n * sizeof(float), &values);
    if (status != DSV2_OK)
        return status;
    binder->model->kernels->to_f32[tensor->type](values, tensor->data, n);
    binder->model->weight_bytes += n * sizeof(float);
    *out = values;
    return DSV2_OK;
}

/* The block scales of an FP8 matrix: NAME_scale_inv, one float for each block of weight_block_size. */
static dsv2_status bind_scales(binder *binder, const dsv2_tensor *tensor, dsv2_matrix *matrix)
{
    const dsv2_config *config = &binder->model->config;
    uint32_t block_rows = config->fp8_block_rows, block_cols = config->fp8_block_cols;
    if (block_rows == 0 || block_cols == 0)
        return dsv2_fail(DSV2_ERROR_FORMAT, "%s: tensor %s is F8_E4M3 and config.json gives no quantization_config.weight_block_size",
                         tensor->path, tensor->name);
    char name[DSV2_NAME_SIZE + 16];
    snprintf(name, sizeof name, "%s_scale_inv", tensor->name);
    uint32_t rows = (matrix->rows + block_rows - 1) / block_rows, cols = (matrix->cols + block_cols - 1) / block_cols;
    uint64_t parameters = binder->model->parameters;
    const dsv2_tensor *scales;
    dsv2_status status = find(binder, name, rows, cols, &scales);
    if (status != DSV2_OK)
        return status;
    binder->model->parameters = parameters; /* scales are no weights */
    if (scales->type != DSV2_TYPE_F32)
        return dsv2_fail(DSV2_ERROR_UNSUPPORTED, "%s: tensor %s has type %s, expected F32", scales->path, name,
                         dsv2_type_name(scales->type));
    void *copy; /* a copy, since floats in a file may lie at any address */
    status = keep_bytes(binder, name, (size_t)rows * cols * sizeof(float), &copy);
    if (status != DSV2_OK)
        return status;
    memcpy(copy, scales->data, (size_t)rows * cols * sizeof(float));
    matrix->scales = copy;
    matrix->scale_rows = block_rows;
    matrix->scale_cols = block_cols;
    matrix->scale_stride = cols;
    return DSV2_OK;
}

/* Replaces a matrix by a copy with elements of type `to`: F32, F16 or BF16. */
static dsv2_status convert(binder *binder, const char *name, dsv2_type to, dsv2_matrix *matrix)
{
    if (matrix->type == to)
        return DSV2_OK;
    size_t row_bytes = dsv2_type_row_bytes(to, matrix->cols);
    void *data;
    dsv2_status status = keep_bytes(binder, name, row_bytes * matrix->rows, &data);
    if (status != DSV2_OK)
        return status;
    if (!dsv2_grow(&binder->row, &binder->row_capacity, matrix->cols, sizeof *binder->row))
        return dsv2_fail_memory(name, matrix->cols * sizeof *binder->row);
    for (uint32_t r = 0; r < matrix->rows; r++) {
        uint8_t *row = (uint8_t *)data + r * row_bytes;
        dsv2_matrix_row(binder->model->kernels, matrix, r, binder->row);
        if (to == DSV2_TYPE_F32)
            memcpy(row, binder->row, row_bytes);
        else
            for (uint32_t c = 0; c < matrix->cols; c++)
                ((uint16_t *)(void *)row)[c] = to == DSV2_TYPE_F16 ? dsv2_f32_to_f16(binder->row[c]) : dsv2_f32_to_bf16(binder->row[c]);
    }
    *matrix = (dsv2_matrix){.rows = matrix->rows, .cols = matrix->cols, .type = to, .data = data, .row_bytes = row_bytes};
    return DSV2_OK;
}

static dsv2_status bind_matrix(binder *binder, const char *name, uint32_t rows, uint32_t cols, dsv2_matrix *matrix)
{
    const dsv2_tensor *tensor;
    dsv2_status status = find(binder, name, rows, cols, &tensor);
    if (status != DSV2_OK)
        return status;
    *matrix = (dsv2_matrix){.rows = rows, .cols = cols, .type = tensor->type, .data = tensor->data,
                            .row_bytes = dsv2_type_row_bytes(tensor->type, cols)};
    if (tensor->type == DSV2_TYPE_F8_E4M3)
        status = bind_scales(binder, tensor, matrix);
    static const dsv2_type converted[] = {
        [DSV2_WEIGHTS_F32] = DSV2_TYPE_F32, [DSV2_WEIGHTS_F16] = DSV2_TYPE_F16, [DSV2_WEIGHTS_BF16] = DSV2_TYPE_BF16};
    if (status == DSV2_OK && binder->options->weight_type != DSV2_WEIGHTS_AS_STORED)
        status = convert(binder, name, converted[binder->options->weight_type], matrix);
    if (status == DSV2_OK) {
        binder->model->types_seen[matrix->type] = true;
        binder->model->has_packed = binder->model->has_packed || dsv2_type_is_packed(matrix->type);
        binder->model->weight_bytes += matrix->row_bytes * rows;
    }
    return status;
}

/* (W^UK)^T by head, in the precision of kv_b_proj: the absorbed form multiplies it with queries (section 2.1.2: W^UK is absorbed
 * into W^Q). Block-scaled types become floats. */
static dsv2_status transpose_k_up(binder *binder, dsv2_mla_weights *mla)
{
    const dsv2_config *config = &binder->model->config;
    uint32_t nope = config->qk_nope_head_dim, lora = config->kv_lora_rank, n_heads = config->num_attention_heads;
    const dsv2_matrix *kv_b = &mla->kv_b_proj;
    dsv2_type type = kv_b->type == DSV2_TYPE_F16 || kv_b->type == DSV2_TYPE_BF16 ? kv_b->type : DSV2_TYPE_F32;
    size_t element = dsv2_type_row_bytes(type, 1);
    void *data;
    dsv2_status status = keep_bytes(binder, "k_up_transposed", element * nope * lora * n_heads, &data);
    if (status != DSV2_OK)
        return status;
    if (!dsv2_grow(&binder->row, &binder->row_capacity, lora, sizeof *binder->row))
        return dsv2_fail_memory("k_up_transposed", lora * sizeof *binder->row);
    for (uint32_t head = 0; head < n_heads; head++) {
        for (uint32_t i = 0; i < nope; i++) {
            uint32_t row = head * (nope + config->v_head_dim) + i;
            const uint16_t *from16 = (const uint16_t *)(const void *)((const uint8_t *)kv_b->data + row * kv_b->row_bytes);
            if (type == DSV2_TYPE_F32)
                dsv2_matrix_row(binder->model->kernels, kv_b, row, binder->row);
            for (uint32_t c = 0; c < lora; c++) {
                size_t to = ((size_t)head * lora + c) * nope + i;
                if (type == DSV2_TYPE_F32)
                    ((float *)data)[to] = binder->row[c];
                else
                    memcpy((uint16_t *)data + to, (const uint8_t *)from16 + 2 * c, 2);
            }
        }
    }
    mla->k_up_transposed = (dsv2_matrix){.rows = n_heads * lora, .cols = nope, .type = type, .data = data, .row_bytes = element * nope};
    return DSV2_OK;
}

/* What dsv2_weights_walk asks for, by name, in the order of the forward pass. */
static dsv2_status visit_matrix(void *context, const char *name, uint32_t rows, uint32_t cols, dsv2_matrix *matrix)
{
    return bind_matrix(context, name, rows, cols, matrix);
}

static dsv2_status visit_vector(void *context, const char *name, uint32_t n, const float **vector)
{
    return bind_vector(context, name, n, vector);
}

static dsv2_status allocate(dsv2_model *model)
{
    const dsv2_config *config = &model->config;
    model->layers = keep(model, dsv2_new(config->num_hidden_layers, sizeof *model->layers));
    if (model->layers == NULL)
        return dsv2_fail_memory("the layers", config->num_hidden_layers * sizeof *model->layers);
    for (uint32_t l = 0; l < config->num_hidden_layers; l++)
        model->layers[l].is_moe = dsv2_config_is_moe(config, l);
    return DSV2_OK;
}

dsv2_status dsv2_experts_allocate(dsv2_model *model, dsv2_moe_weights *moe)
{
    size_t n = model->config.n_routed_experts;
    moe->experts = keep(model, dsv2_new(n, sizeof *moe->experts));
    return moe->experts != NULL ? DSV2_OK : dsv2_fail_memory("the experts", n * sizeof *moe->experts);
}

dsv2_status dsv2_weights_bind(dsv2_model *model, const dsv2_model_options *options)
{
    binder binder = {.model = model, .options = options, .total = dsv2_container_count(model->container)};
    const dsv2_weights_visitor visitor = {visit_matrix, visit_vector, &binder};
    dsv2_status status = allocate(model);
    if (status == DSV2_OK)
        status = dsv2_weights_walk(model, &visitor);
    if (status == DSV2_OK && model->config.tie_word_embeddings)
        model->lm_head = model->embed_tokens;
    for (uint32_t l = 0; l < model->config.num_hidden_layers && status == DSV2_OK; l++)
        status = transpose_k_up(&binder, &model->layers[l].mla);
    if (status == DSV2_OK && binder.done < binder.total) {
        binder.done = binder.total - 1; /* tensors that the model does not use */
        status = report(&binder);
    }
    dsv2_free(binder.row);
    return status;
}

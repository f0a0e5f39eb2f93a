/* Binding: every tensor that the configuration asks for (names.c), its type and shape checked, once. After this the forward pass
 * has no checks. A configuration that asks for more layers or experts than there are tensors fails at the first that is missing. */
#include "weights/convert.h"
#include "weights/repacked.h"
#include "weights/resident.h"
#include "weights/walk.h"

#include <stdio.h>
#include <string.h>
#include <xxhash.h>

typedef struct binder {
    ds_weights *weights;
    const ds_weights_opening *opening;
    uint64_t done, total; /* tensors, for progress */
    ds_conversions conversions;
    bool is_gguf;         /* names are the container's own */
    bool is_pack;         /* tensors have checksums */
    float *row;           /* DS_MAX_DIM-bounded: one row of floats, for conversions */
    size_t row_capacity;
    ds_repacked_source *repacked; /* experts that wait for their first use, or NULL */
    uint8_t *slab;        /* what is left of the last one */
    size_t slab_left, slab_bytes;
} binder;

void *ds_weights_keep(ds_weights *weights, void *memory)
{
    if (memory == NULL)
        return NULL;
    if (!ds_grow(&weights->owned, &weights->owned_capacity, weights->n_owned + 1, sizeof *weights->owned)) {
        ds_free(memory);
        return NULL;
    }
    weights->owned[weights->n_owned++] = memory;
    return memory;
}

/* Memory for converted weights, freed with the model. Smaller pieces share slabs, which are large enough for huge pages. */
static dsv2_status keep_bytes(binder *binder, const char *name, size_t bytes, void **out)
{
    enum { LINE = 64 };
    size_t rounded = (bytes + LINE - 1) / LINE * LINE;
    binder->weights->bytes_copied += bytes;
    bool own = rounded >= binder->slab_bytes / 8;
    if (own || rounded > binder->slab_left) {
        size_t wanted = own ? rounded : binder->slab_bytes;
        void *memory = ds_weights_keep(binder->weights, ds_new_aligned(wanted, 1));
        if (memory == NULL)
            return ds_fail_memory(name, wanted);
        if (own) {
            *out = memory;
            return DSV2_OK;
        }
        binder->slab = memory;
        binder->slab_left = wanted;
    }
    *out = binder->slab;
    binder->slab += rounded;
    binder->slab_left -= rounded;
    return DSV2_OK;
}

/* Also tells when one of several matrices of the same tensor was bound, for the host to cancel; the last tensor counts only when
 * everything is done. */
static dsv2_status report(binder *binder, bool new_tensor)
{
    const ds_weights_opening *opening = binder->opening;
    if (new_tensor && binder->done + 1 < binder->total)
        binder->done++;
    if (opening->progress != NULL && opening->progress(opening->progress_user, DSV2_PHASE_OPEN, binder->done, binder->total) != 0)
        return ds_fail(DSV2_ERROR_CANCELLED, "opening was cancelled by the progress callback");
    return DSV2_OK;
}

static void add_identity(binder *binder, const void *data, size_t size)
{
    uint64_t *digest = &binder->weights->digest;
    *digest = XXH3_64bits_withSeed(data, size, *digest);
}

static void add_type(binder *binder, ds_type type)
{
    const char *name = ds_type_name(type); /* its number may change */
    add_identity(binder, name, strlen(name));
}

/* The identity of a tensor: its name, type, shape and data; of data without a checksum, whose reading would take as long as that of
 * the whole model, a sample from the middle. */
static void identify(binder *binder, const ds_tensor *tensor)
{
    enum { SAMPLE = 1024 };
    uint64_t size = tensor->n_bytes < SAMPLE ? tensor->n_bytes : SAMPLE, from = (tensor->n_bytes - size) / 2;
    add_identity(binder, tensor->name, strlen(tensor->name));
    add_type(binder, tensor->type);
    add_identity(binder, tensor->dims, tensor->n_dims * sizeof *tensor->dims);
    if (binder->is_pack)
        add_identity(binder, &tensor->checksum, sizeof tensor->checksum);
    else
        add_identity(binder, (const uint8_t *)tensor->data + from, (size_t)size);
}

static void shape_text(const ds_tensor *tensor, char *text, size_t size)
{
    size_t length = (size_t)snprintf(text, size, "[");
    for (uint32_t i = 0; i < tensor->n_dims && length < size; i++)
        length += (size_t)snprintf(text + length, size - length, "%s%llu", i > 0 ? ", " : "", (unsigned long long)tensor->dims[i]);
    if (length < size)
        snprintf(text + length, size - length, "]");
}

/* Takes a tensor of the container if its shape is `dims`; `name` is its own there. */
static dsv2_status find_shaped(binder *binder, const char *name, uint32_t n_dims, const uint64_t *dims, const ds_tensor **out)
{
    const ds_tensor *tensor;
    dsv2_status status = ds_container_require(binder->opening->container, name, &tensor);
    if (status != DSV2_OK)
        return status;
    if (tensor->n_dims != n_dims || memcmp(tensor->dims, dims, n_dims * sizeof *dims) != 0) {
        char shape[96], expected[96];
        ds_tensor wanted = {.n_dims = n_dims};
        memcpy(wanted.dims, dims, n_dims * sizeof *dims);
        shape_text(tensor, shape, sizeof shape);
        shape_text(&wanted, expected, sizeof expected);
        return ds_fail(DSV2_ERROR_FORMAT, "%s: tensor %s has shape %s, the configuration says %s", tensor->path, name, shape,
                       expected);
    }
    *out = tensor;
    return DSV2_OK;
}

/* The weight of a published name, rows x cols, or a vector of `rows` if cols is 0; in a GGUF it may be a part of a tensor. */
static dsv2_status find(binder *binder, const char *name, uint32_t rows, uint32_t cols, ds_tensor *out)
{
    const ds_tensor *tensor;
    ds_gguf_place place = {.expert = -1, .n_parts = 1};
    if (binder->is_gguf) {
        ds_gguf_place joined;
        place = ds_gguf_place_of(name);
        if (ds_gguf_joined_place(&place, &joined) && ds_container_has(binder->opening->container, joined.name))
            place = joined;
        name = place.name;
    }
    uint32_t n_dims = (cols > 0 ? 2 : 1) + (place.expert >= 0 ? 1 : 0);
    const uint64_t dims[] = {binder->opening->config->n_routed_experts, (uint64_t)rows * place.n_parts, cols};
    dsv2_status status = find_shaped(binder, name, n_dims, place.expert >= 0 ? dims : dims + 1, &tensor);
    if (status != DSV2_OK)
        return status;
    *out = *tensor;
    if (place.expert >= 0) {
        out->n_bytes = tensor->n_bytes / dims[0] / place.n_parts;
        out->data = (const uint8_t *)tensor->data + out->n_bytes * ((uint64_t)place.expert * place.n_parts + place.part);
        out->n_dims = 2;
        out->dims[0] = rows;
        out->dims[1] = cols;
    }
    identify(binder, out);
    binder->weights->parameters += cols == 0 ? rows : (uint64_t)rows * cols;
    return report(binder, place.expert <= 0 && place.part == 0);
}

/* A vector as floats: norms, biases. */
static dsv2_status bind_vector(binder *binder, const char *name, uint32_t n, const float **out)
{
    ds_tensor tensor;
    dsv2_status status = find(binder, name, n, 0, &tensor);
    if (status != DSV2_OK)
        return status;
    if (!ds_type_is_plain(tensor.type))
        return ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: tensor %s has type %s, expected F32, F16 or BF16", tensor.path, tensor.name,
                       ds_type_name(tensor.type));
    void *values;
    status = keep_bytes(binder, name, n * sizeof(float), &values);
    if (status != DSV2_OK)
        return status;
    binder->opening->kernels->to_f32[tensor.type](values, tensor.data, n);
    binder->weights->bytes += n * sizeof(float);
    *out = values;
    return DSV2_OK;
}

/* The block scales of an FP8 matrix: NAME_scale_inv, one float for each block of weight_block_size. */
static dsv2_status bind_scales(binder *binder, const ds_tensor *tensor, ds_matrix *matrix)
{
    const ds_config *config = binder->opening->config;
    uint32_t block_rows = config->fp8_block_rows, block_cols = config->fp8_block_cols;
    if (block_rows == 0 || block_cols == 0)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: tensor %s is F8_E4M3 and config.json gives no quantization_config.weight_block_size",
                       tensor->path, tensor->name);
    char name[DS_NAME_SIZE + 16];
    snprintf(name, sizeof name, "%s_scale_inv", tensor->name);
    uint32_t rows = (matrix->rows + block_rows - 1) / block_rows, cols = (matrix->cols + block_cols - 1) / block_cols;
    uint64_t parameters = binder->weights->parameters;
    ds_tensor scales;
    dsv2_status status = find(binder, name, rows, cols, &scales);
    if (status != DSV2_OK)
        return status;
    binder->weights->parameters = parameters; /* scales are no weights */
    if (scales.type != DS_TYPE_F32)
        return ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: tensor %s has type %s, expected F32", scales.path, name,
                       ds_type_name(scales.type));
    void *copy; /* a copy, since floats in a file may lie at any address */
    status = keep_bytes(binder, name, (size_t)rows * cols * sizeof(float), &copy);
    if (status != DSV2_OK)
        return status;
    memcpy(copy, scales.data, (size_t)rows * cols * sizeof(float));
    matrix->scales = copy;
    matrix->scale_rows = block_rows;
    matrix->scale_cols = block_cols;
    matrix->scale_stride = cols;
    return DSV2_OK;
}

/* Whether a GGUF has a layer's kv_b_proj in two: attn_k_b by head with rows and columns exchanged, and attn_v_b by head. */
static bool is_split(const binder *binder, uint32_t layer)
{
    char name[DS_NAME_SIZE];
    snprintf(name, sizeof name, "blk.%u.attn_kv_b.weight", (unsigned)layer);
    return binder->is_gguf && !ds_container_has(binder->opening->container, name);
}

static dsv2_status find_split(binder *binder, uint32_t layer, const ds_tensor **k_b, const ds_tensor **v_b)
{
    const ds_config *config = binder->opening->config;
    const uint64_t k_dims[] = {config->num_attention_heads, config->kv_lora_rank, config->qk_nope_head_dim};
    const uint64_t v_dims[] = {config->num_attention_heads, config->v_head_dim, config->kv_lora_rank};
    char name[DS_NAME_SIZE];
    snprintf(name, sizeof name, "blk.%u.attn_k_b.weight", (unsigned)layer);
    dsv2_status status = find_shaped(binder, name, 3, k_dims, k_b);
    snprintf(name, sizeof name, "blk.%u.attn_v_b.weight", (unsigned)layer);
    return status == DSV2_OK ? find_shaped(binder, name, 3, v_dims, v_b) : status;
}

/* Makes the published kv_b_proj of the two, in their precision: block types become floats. *made is the caller's. */
static dsv2_status join_kv_b(binder *binder, uint32_t layer, ds_matrix *matrix, ds_type *found, void **made)
{
    const ds_config *config = binder->opening->config;
    uint32_t nope = config->qk_nope_head_dim, v_dim = config->v_head_dim, lora = config->kv_lora_rank;
    uint32_t n_heads = config->num_attention_heads, n_rows = nope + v_dim;
    const ds_tensor *k_b, *v_b;
    dsv2_status status = find_split(binder, layer, &k_b, &v_b);
    if (status != DSV2_OK)
        return status;
    bool halves = k_b->type == v_b->type && (k_b->type == DS_TYPE_F16 || k_b->type == DS_TYPE_BF16);
    ds_type type = halves ? k_b->type : DS_TYPE_F32;
    size_t row_bytes = ds_type_row_bytes(type, lora);
    uint32_t longest = lora > nope ? lora : nope;
    if (!ds_grow(&binder->row, &binder->row_capacity, longest, sizeof *binder->row))
        return ds_fail_memory(k_b->name, longest * sizeof *binder->row);
    void *data = ds_new_aligned(row_bytes, (size_t)n_rows * n_heads);
    if (data == NULL)
        return ds_fail_memory(k_b->name, row_bytes * n_rows * n_heads);
    const ds_matrix k = {.rows = n_heads * lora, .cols = nope, .type = k_b->type, .data = k_b->data,
                         .row_bytes = ds_type_row_bytes(k_b->type, nope)};
    const ds_matrix v = {.rows = n_heads * v_dim, .cols = lora, .type = v_b->type, .data = v_b->data,
                         .row_bytes = ds_type_row_bytes(v_b->type, lora)};
    for (uint32_t head = 0; head < n_heads; head++) {
        size_t first = (size_t)head * n_rows * lora;
        for (uint32_t c = 0; c < lora; c++) {
            ds_matrix_row(binder->opening->kernels, &k, head * lora + c, binder->row);
            for (uint32_t i = 0; i < nope; i++)
                ds_store_element(type, data, first + (size_t)i * lora + c, binder->row[i]);
        }
        for (uint32_t i = 0; i < v_dim; i++) {
            ds_matrix_row(binder->opening->kernels, &v, head * v_dim + i, binder->row);
            for (uint32_t c = 0; c < lora; c++)
                ds_store_element(type, data, first + (size_t)(nope + i) * lora + c, binder->row[c]);
        }
    }
    identify(binder, k_b);
    identify(binder, v_b);
    ds_container_forget(binder->opening->container, v_b->data, v_b->n_bytes); /* k_b is still to be read */
    binder->weights->parameters += (uint64_t)n_rows * n_heads * lora;
    *matrix = (ds_matrix){.rows = n_rows * n_heads, .cols = lora, .type = type, .data = data, .row_bytes = row_bytes};
    *made = data;
    /* Rows of attn_k_b are columns here: its blocks cannot be kept, and eight bits lose nothing that matters. */
    bool plain = ds_type_is_plain(k_b->type);
    *found = plain ? type : DS_TYPE_P8;
    return report(binder, true);
}

static bool is_kv_b(const char *name) { return ds_name_ends(name, ".self_attn.kv_b_proj.weight"); }

/* A matrix as the file has it; *made is memory that had to be made for it, or NULL. */
static dsv2_status take_matrix(binder *binder, const char *name, uint32_t rows, uint32_t cols, ds_matrix *matrix,
                               ds_type *found, void **made)
{
    *made = NULL;
    *found = DS_TYPE_COUNT;
    if (binder->is_gguf && is_kv_b(name)) {
        uint32_t layer = ds_gguf_place_of(name).layer;
        if (is_split(binder, layer))
            return join_kv_b(binder, layer, matrix, found, made);
    }
    ds_tensor tensor;
    dsv2_status status = find(binder, name, rows, cols, &tensor);
    if (status != DSV2_OK)
        return status;
    *found = tensor.type;
    *matrix = (ds_matrix){.rows = rows, .cols = cols, .type = tensor.type, .data = tensor.data,
                          .row_bytes = ds_type_row_bytes(tensor.type, cols)};
    return tensor.type == DS_TYPE_F8_E4M3 ? bind_scales(binder, &tensor, matrix) : DSV2_OK;
}

/* The nope rows of kv_b_proj with rows and columns exchanged, by head, in its precision: other types become halves (packed) or
 * floats. *made is the caller's. */
static dsv2_status transpose_k_up(binder *binder, const ds_matrix *kv_b, ds_matrix *matrix, void **made)
{
    const ds_config *config = binder->opening->config;
    uint32_t nope = config->qk_nope_head_dim, lora = config->kv_lora_rank, n_heads = config->num_attention_heads;
    ds_type type = kv_b->type == DS_TYPE_F16 || kv_b->type == DS_TYPE_BF16 ? kv_b->type
                     : ds_type_is_interleaved(kv_b->type)                           ? DS_TYPE_F16
                                                                                 : DS_TYPE_F32;
    if (!ds_grow(&binder->row, &binder->row_capacity, lora, sizeof *binder->row))
        return ds_fail_memory("k_up_transposed", lora * sizeof *binder->row);
    void *data = ds_new_aligned((size_t)n_heads * lora, ds_type_row_bytes(type, nope));
    if (data == NULL)
        return ds_fail_memory("k_up_transposed", n_heads * lora * ds_type_row_bytes(type, nope));
    for (uint32_t head = 0; head < n_heads; head++) {
        for (uint32_t i = 0; i < nope; i++) {
            ds_matrix_row(binder->opening->kernels, kv_b, head * (nope + config->v_head_dim) + i, binder->row);
            for (uint32_t c = 0; c < lora; c++)
                ds_store_element(type, data, ((size_t)head * lora + c) * nope + i, binder->row[c]);
        }
    }
    *matrix = (ds_matrix){.rows = n_heads * lora, .cols = nope, .type = type, .data = data, .row_bytes = ds_type_row_bytes(type, nope)};
    *made = data;
    return DSV2_OK;
}

/* Leaves a routed expert's matrix to the pass that first chooses it, which then needs no memory. */
static dsv2_status defer(binder *binder, const ds_gguf_place *place, const ds_conversion *conversion)
{
    const ds_weights_opening *opening = binder->opening;
    dsv2_status status = DSV2_OK;
    if (binder->repacked == NULL)
        status = ds_repacked_source_new(opening, &binder->repacked);
    if (status == DSV2_OK)
        status = ds_repacked_source_defer(binder->repacked, place->layer, (uint32_t)place->expert, conversion);
    /* The sample that identify took of each brought its neighbourhood into memory: hundreds of megabytes in all. */
    if (status == DSV2_OK)
        ds_container_forget(opening->container, conversion->from.data, (uint64_t)conversion->end * conversion->from.row_bytes);
    return status;
}

/* Sees to it that `data` receives the matrix as another type; `made` is freed then, or now on failure. Rounding takes minutes, with
 * progress for the host to see: it is not left to a pass. */
static dsv2_status convert(binder *binder, const char *name, void *made, ds_type type, void *data, ds_matrix *matrix)
{
    const ds_conversion conversion = {.from = *matrix, .made = made, .type = type, .out = data, .end = matrix->rows};
    ds_gguf_place place = ds_gguf_place_of(name);
    dsv2_status status;
    if (place.expert >= 0 && ds_conversion_is_repacking(&conversion)) {
        status = defer(binder, &place, &conversion);
    } else {
        status = ds_conversions_reserve(&binder->conversions, 1, &conversion);
        if (status == DSV2_OK)
            ds_conversions_add(&binder->conversions, &conversion);
        else
            ds_free(made);
    }
    if (status != DSV2_OK)
        return status;
    *matrix = (ds_matrix){.rows = matrix->rows, .cols = matrix->cols, .type = type, .data = data,
                          .row_bytes = ds_type_row_bytes(type, matrix->cols)};
    return DSV2_OK;
}

/* Brings a matrix to the type it is to be held in, being `found` in the file: at the latest when all are bound. `made`, if not NULL,
 * is the memory it lies in: kept or freed. */
static dsv2_status hold(binder *binder, const char *name, ds_type found, void *made, ds_matrix *matrix)
{
    ds_weights *weights = binder->weights;
    ds_type type = binder->opening->as_found && made == NULL ? matrix->type : ds_held_type(binder->opening->weight_type, name, found);
    dsv2_status status = DSV2_OK;
    if (type != matrix->type) {
        void *data;
        status = keep_bytes(binder, name, ds_matrix_bytes(type, matrix->rows, matrix->cols), &data);
        if (status == DSV2_OK)
            status = convert(binder, name, made, type, data, matrix);
        else
            ds_free(made);
    } else if (made != NULL) {
        weights->bytes_copied += ds_matrix_bytes(type, matrix->rows, matrix->cols);
        if (ds_weights_keep(weights, made) == NULL) /* and `made` is freed */
            return ds_fail_memory(name, sizeof made);
    }
    if (status == DSV2_OK) {
        size_t scratch = ds_matmul_scratch(matrix);
        weights->matmul_scratch = scratch > weights->matmul_scratch ? scratch : weights->matmul_scratch;
        weights->types_seen[type] = true;
        add_type(binder, type);
        weights->has_interleaved = weights->has_interleaved || ds_type_is_interleaved(type);
        weights->bytes += ds_matrix_bytes(type, matrix->rows, matrix->cols);
    }
    return status;
}

/* (W^UK)^T by head: the absorbed form multiplies it with queries (section 2.1.2: W^UK is absorbed into W^Q). Packs have it, GGUFs
 * may; otherwise it is made of kv_b_proj as the file has it. */
static dsv2_status bind_k_up_transposed(binder *binder, uint32_t layer, const ds_matrix *kv_b)
{
    const ds_config *config = binder->opening->config;
    uint32_t n_heads = config->num_attention_heads, rows = n_heads * config->kv_lora_rank, cols = config->qk_nope_head_dim;
    char name[DS_NAME_SIZE];
    snprintf(name, sizeof name, "model.layers.%u" DS_K_UP_TRANSPOSED, (unsigned)layer);
    void *made = NULL;
    dsv2_status status = DSV2_OK;
    ds_matrix *matrix = &binder->weights->layers[layer].mla.k_up_transposed;
    if (is_split(binder, layer)) {
        const ds_tensor *k_b, *v_b;
        status = find_split(binder, layer, &k_b, &v_b);
        if (status == DSV2_OK)
            *matrix = (ds_matrix){.rows = rows, .cols = cols, .type = k_b->type, .data = k_b->data,
                                  .row_bytes = ds_type_row_bytes(k_b->type, cols)};
    } else if (!binder->is_gguf && ds_container_has(binder->opening->container, name)) {
        uint64_t parameters = binder->weights->parameters;
        ds_tensor tensor;
        status = find(binder, name, rows, cols, &tensor);
        binder->weights->parameters = parameters; /* counted in kv_b_proj */
        if (status == DSV2_OK)
            *matrix = (ds_matrix){.rows = rows, .cols = cols, .type = tensor.type, .data = tensor.data,
                                  .row_bytes = ds_type_row_bytes(tensor.type, cols)};
    } else {
        status = transpose_k_up(binder, kv_b, matrix, &made);
    }
    bool plain = ds_type_is_plain(kv_b->type);
    /* Transposed blocks are rounded a second time: with bits to spare. FP8's range is more than eight bits hold: it becomes floats. */
    bool floats = made == NULL || plain || kv_b->type == DS_TYPE_F8_E4M3;
    ds_type found = floats ? matrix->type : DS_TYPE_P8;
    return status == DSV2_OK ? hold(binder, name, found, made, matrix) : status;
}

static dsv2_status bind_matrix(binder *binder, const char *name, uint32_t rows, uint32_t cols, ds_matrix *matrix)
{
    void *made;
    ds_type found;
    unsigned layer;
    dsv2_status status = take_matrix(binder, name, rows, cols, matrix, &found, &made);
    if (status == DSV2_OK && is_kv_b(name) && sscanf(name, "model.layers.%u.", &layer) == 1)
        status = bind_k_up_transposed(binder, layer, matrix);
    if (status != DSV2_OK) {
        ds_free(made);
        return status;
    }
    return hold(binder, name, found, made, matrix);
}

/* What ds_weights_walk asks for, by name, in the order of the forward pass. */
static dsv2_status visit_matrix(void *context, const char *name, uint32_t rows, uint32_t cols, ds_matrix *matrix)
{
    return bind_matrix(context, name, rows, cols, matrix);
}

static dsv2_status visit_vector(void *context, const char *name, uint32_t n, const float **vector)
{
    return bind_vector(context, name, n, vector);
}

static dsv2_status allocate(ds_weights *weights, const ds_config *config)
{
    weights->layers = ds_weights_keep(weights, ds_new(config->num_hidden_layers, sizeof *weights->layers));
    if (weights->layers == NULL)
        return ds_fail_memory("the layers", config->num_hidden_layers * sizeof *weights->layers);
    for (uint32_t l = 0; l < config->num_hidden_layers; l++)
        weights->layers[l].is_moe = ds_config_is_moe(config, l);
    return DSV2_OK;
}

/* Slabs of 64 MiB, less for a model that is smaller itself. */
static size_t slab_bytes(const ds_container *container)
{
    const uint64_t most = 64 << 20;
    uint64_t bytes = 0;
    for (size_t i = 0; i < ds_container_count(container) && bytes < most; i++)
        bytes += ds_container_tensor(container, i)->n_bytes;
    return (size_t)(bytes < most ? bytes : most);
}

/* The source that hands out the experts, now that all are bound. */
static dsv2_status choose_source(binder *binder)
{
    ds_weights *weights = binder->weights;
    const ds_config *config = binder->opening->config;
    if (config->n_routed_experts == 0)
        return DSV2_OK;
    if (binder->repacked == NULL)
        return ds_resident_source_new(weights->layers, &weights->experts);
    weights->experts = ds_repacked_source_finish(binder->repacked, weights->layers);
    binder->repacked = NULL;
    return DSV2_OK;
}

dsv2_status ds_weights_open(ds_weights *weights, const ds_weights_opening *opening)
{
    const ds_container *container = opening->container;
    *weights = (ds_weights){0};
    binder binder = {.weights = weights, .opening = opening, .total = ds_container_count(container),
                     .is_gguf = strcmp(ds_container_kind(container), "gguf") == 0,
                     .is_pack = strcmp(ds_container_kind(container), "pack") == 0};
    ds_conversions_init(&binder.conversions, opening->kernels, opening->pool, container);
    const ds_weights_visitor visitor = {visit_matrix, visit_vector, &binder};
    binder.slab_bytes = slab_bytes(container);
    dsv2_status status = allocate(weights, opening->config);
    if (status == DSV2_OK)
        status = ds_weights_walk(weights, opening->config, &visitor);
    if (status == DSV2_OK && opening->config->tie_word_embeddings)
        weights->lm_head = weights->embed_tokens;
    if (status == DSV2_OK) {
        ds_conversions_run(&binder.conversions);
        binder.done = binder.total; /* with tensors that the model does not use */
        status = report(&binder, false);
    }
    if (status == DSV2_OK)
        status = choose_source(&binder);
    ds_repacked_source_free(binder.repacked);
    ds_conversions_free(&binder.conversions);
    ds_free(binder.row);
    return status;
}

void ds_weights_close(ds_weights *weights)
{
    if (weights->experts != NULL)
        weights->experts->destroy(weights->experts);
    for (size_t i = 0; i < weights->n_owned; i++)
        ds_free(weights->owned[i]);
    ds_free(weights->owned);
    *weights = (ds_weights){0};
}

uint64_t ds_weights_activated(const ds_weights *weights, const ds_config *config)
{
    uint64_t expert = 3 * (uint64_t)config->moe_intermediate_size * config->hidden_size, unused = 0;
    for (uint32_t l = 0; l < config->num_hidden_layers; l++)
        if (weights->layers[l].is_moe)
            unused += (config->n_routed_experts - config->num_experts_per_tok) * expert;
    if (!config->tie_word_embeddings)
        unused += (uint64_t)(config->vocab_size - 1) * config->hidden_size;
    return weights->parameters - unused;
}

/* Opening: every weight that the configuration asks for is found, its type and shape checked, once, and bound to its
 * slot in the type that it is held in. After this the forward pass has no checks. A configuration that asks for more
 * layers or experts than there are tensors fails at the first that is missing. */
#include "weights/digest.h"
#include "weights/held_type.h"
#include "weights/kv_b.h"
#include "weights/places.h"
#include "weights/deferred.h"
#include "weights/resident.h"
#include "weights/walk.h"

typedef struct opener {
    ds_weights *weights;
    const ds_weights_opening *opening;
    ds_places places;
    bool has_checksums;           /* tensors have checksums */
    uint64_t done, total;         /* tensors, for progress */
    ds_queue queue;               /* what is converted on opening */
    ds_deferred_source *deferred; /* experts that wait for their first use, or NULL */
} opener;

/* Tells the host how many tensors are done, and lets the host cancel. A weight that is only a part of a tensor reports
 * too, without counting. The last tensor counts only when everything is done. */
static dsv2_status report(opener *o, bool new_tensor)
{
    const ds_weights_opening *opening = o->opening;
    if (new_tensor && o->done + 1 < o->total)
        o->done++;
    if (!ds_call_progress(opening->progress, opening->progress_user, DSV2_PHASE_OPEN, o->done, o->total))
        return ds_fail(DSV2_ERROR_CANCELLED, "opening was cancelled by the progress callback");
    return DSV2_OK;
}

static dsv2_status fail_memory(const ds_weight_id *id, size_t bytes)
{
    char name[DS_NAME_SIZE];
    ds_published_name(id, name);
    return ds_fail_memory(name, bytes);
}

/* Memory for a weight as the model holds it. */
static dsv2_status new_held(opener *o, const ds_weight_id *id, size_t bytes, void **out)
{
    *out = ds_holder_bytes(&o->weights->holder, bytes);
    if (*out == NULL)
        return fail_memory(id, bytes);
    o->weights->bytes_copied += bytes;
    return DSV2_OK;
}

static dsv2_status found_tensor(opener *o, const ds_tensor *tensor, bool new_tensor)
{
    ds_digest_tensor(&o->weights->digest, tensor, o->has_checksums);
    return report(o, new_tensor);
}

static dsv2_status find(opener *o, const ds_weight_id *id, ds_tensor *tensor)
{
    ds_place place;
    dsv2_status status = ds_place_find(&o->places, id, &place);
    if (status != DSV2_OK)
        return status;
    *tensor = place.tensor;
    return found_tensor(o, tensor, place.is_first);
}

static ds_weight_label label_of(const ds_tensor *tensor)
{
    return (ds_weight_label){tensor->path, tensor->name};
}

/* ---- vectors ---- */

/* A vector as floats: norms, biases. */
static dsv2_status bind_vector(void *context, const ds_weight_id *id, uint32_t n, const float **slot)
{
    opener *o = context;
    ds_tensor tensor;
    dsv2_status status = find(o, id, &tensor);
    if (status != DSV2_OK)
        return status;
    if (!ds_type_is_plain(tensor.type))
        return ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: tensor %s has type %s, expected F32, F16 or BF16", tensor.path,
                       tensor.name, ds_type_name(tensor.type));
    void *values;
    status = new_held(o, id, n * sizeof(float), &values);
    if (status != DSV2_OK)
        return status;
    o->opening->kernels->to_f32[tensor.type](values, tensor.data, n);
    ds_misfit misfit;
    if (!ds_type_holds(DS_TYPE_F32, values, n, 0, &misfit))
        return ds_misfit_fail(label_of(&tensor), DS_TYPE_F32, &misfit);
    o->weights->parameters += n;
    o->weights->bytes += n * sizeof(float);
    *slot = values;
    return DSV2_OK;
}

/* ---- matrices ---- */

/* The block scales of an FP8 matrix: a copy, since floats in a file may lie at any address. */
static dsv2_status bind_scales(opener *o, const ds_weight_id *id, const ds_tensor *tensor, ds_matrix *matrix)
{
    ds_tensor scales;
    dsv2_status status = ds_place_find_scales(&o->places, tensor, &scales);
    if (status == DSV2_OK)
        status = found_tensor(o, &scales, true);
    if (status != DSV2_OK)
        return status;
    if (scales.type != DS_TYPE_F32)
        return ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: tensor %s has type %s, expected F32", scales.path, scales.name,
                       ds_type_name(scales.type));
    void *copy;
    status = new_held(o, id, (size_t)scales.n_bytes, &copy);
    if (status != DSV2_OK)
        return status;
    memcpy(copy, scales.data, (size_t)scales.n_bytes);
    ds_misfit misfit;
    for (uint32_t row = 0; row < scales.dims[0]; row++)
        if (!ds_type_holds(DS_TYPE_F32, (const float *)copy + row * scales.dims[1], (uint32_t)scales.dims[1], row,
                           &misfit))
            return ds_misfit_fail(label_of(&scales), DS_TYPE_F32, &misfit);
    matrix->scales = copy;
    matrix->scale_rows = o->opening->config->fp8_block_rows;
    matrix->scale_cols = o->opening->config->fp8_block_cols;
    matrix->scale_stride = (uint32_t)scales.dims[1];
    return DSV2_OK;
}

/* Leaves a routed expert's matrix to the pass that first chooses the expert. */
static dsv2_status defer(opener *o, const ds_weight_id *id, const ds_conversion *conversion)
{
    const ds_matrix *from = &conversion->from;
    dsv2_status status = DSV2_OK;
    if (o->deferred == NULL)
        status = ds_deferred_source_new(o->opening, &o->deferred);
    if (status == DSV2_OK)
        status = ds_deferred_source_defer(o->deferred, id->layer, id->expert, conversion);
    /* The digest's samples brought their neighbourhoods into memory: hundreds of megabytes in all. */
    if (status == DSV2_OK)
        ds_container_forget(o->opening->container, from->data, (uint64_t)from->rows * from->row_bytes);
    return status;
}

/* Has a matrix converted, at the latest when all weights are bound; deferred experts wait for their first use.
 * Rounding an expert takes too long for a pass: it is done here, with progress for the host to see. */
static dsv2_status convert(opener *o, const ds_weight_id *id, ds_weight_label label, ds_type held, ds_matrix *matrix)
{
    void *data;
    dsv2_status status = new_held(o, id, ds_matrix_bytes(held, matrix->rows, matrix->cols), &data);
    if (status != DSV2_OK)
        return status;
    const ds_conversion conversion = {.from = *matrix, .type = held, .out = data, .label = label};
    if (ds_role_info_of(id->role)->scope == DS_SCOPE_EXPERT && ds_conversion_is_exact(&conversion)) {
        status = defer(o, id, &conversion);
    } else {
        status = ds_queue_reserve(&o->queue, &conversion);
        if (status == DSV2_OK)
            status = ds_queue_add(&o->queue, &conversion);
    }
    *matrix = (ds_matrix){.rows = matrix->rows, .cols = matrix->cols, .type = held, .data = data,
                          .row_bytes = ds_type_row_bytes(held, matrix->cols)};
    return status;
}

/* Binds a matrix to its slot in the type that it is to be held in. label: of the tensor that it is made of. */
static dsv2_status bind(opener *o, const ds_weight_id *id, ds_weight_label label, ds_type held, ds_matrix matrix,
                        ds_matrix *slot)
{
    ds_weights *weights = o->weights;
    if (held != matrix.type) {
        dsv2_status status = convert(o, id, label, held, &matrix);
        if (status != DSV2_OK)
            return status;
    }
    size_t scratch = ds_matmul_scratch(&matrix);
    weights->matmul_scratch = scratch > weights->matmul_scratch ? scratch : weights->matmul_scratch;
    weights->types_seen[held] = true;
    weights->has_interleaved = weights->has_interleaved || ds_type_is_interleaved(held);
    weights->bytes += ds_matrix_bytes(held, matrix.rows, matrix.cols);
    ds_digest_type(&weights->digest, held);
    *slot = matrix;
    return DSV2_OK;
}

/* The type to hold a matrix in that is in the file. */
static ds_type held_type(const opener *o, const ds_weight_id *id, ds_type found)
{
    return o->opening->as_found ? found : ds_held_type(o->opening->weight_type, id->role, found);
}

/* Memory for a matrix that opening makes: the holder's if the matrix is held as it is made, else the queue's, which
 * converts it. */
static dsv2_status new_made(opener *o, const ds_weight_id *id, ds_shape shape, ds_type type, ds_type held, void **data)
{
    size_t bytes = ds_matrix_bytes(type, shape.rows, shape.cols);
    if (held == type)
        return new_held(o, id, bytes, data);
    *data = ds_queue_memory(&o->queue, bytes);
    return *data != NULL ? DSV2_OK : fail_memory(id, bytes);
}

static ds_matrix made_matrix(ds_shape shape, ds_type type, const void *data)
{
    return (ds_matrix){.rows = shape.rows, .cols = shape.cols, .type = type, .data = data,
                       .row_bytes = ds_type_row_bytes(type, shape.cols)};
}

/* ---- kv_b_proj and (W^UK)^T ---- */

static ds_labelled_matrix labelled_matrix(const ds_tensor *tensor, ds_shape shape)
{
    return (ds_labelled_matrix){ds_tensor_matrix(tensor, shape), label_of(tensor)};
}

/* Binds (W^UK)^T made of kv_b_proj, which is as the file has it. */
static dsv2_status bind_transposed_k_up(opener *o, const ds_weight_id *id, const ds_labelled_matrix *kv_b,
                                        ds_matrix *slot)
{
    ds_shape shape = ds_role_info_of(id->role)->shape(o->opening->config);
    ds_type found = kv_b->matrix.type, type = ds_transposed_k_up_type(found);
    /* Transposed blocks are rounded a second time: with bits to spare. FP8's range is more than eight bits hold: it
     * becomes floats. */
    bool floats = ds_type_is_plain(found) || found == DS_TYPE_F8_E4M3;
    ds_type held = ds_held_type(o->opening->weight_type, id->role, floats ? type : DS_TYPE_P8);
    void *data;
    dsv2_status status = new_made(o, id, shape, type, held, &data);
    if (status == DSV2_OK)
        status = ds_transpose_k_up(o->opening->kernels, o->opening->config, kv_b, type, held, data);
    return status == DSV2_OK ? bind(o, id, kv_b->label, held, made_matrix(shape, type, data), slot) : status;
}

/* Binds (W^UK)^T as a tensor has it. It is counted as a part of kv_b_proj. */
static dsv2_status bind_found_k_up(opener *o, const ds_weight_id *id, const ds_tensor *tensor, ds_matrix *slot)
{
    ds_shape shape = ds_role_info_of(id->role)->shape(o->opening->config);
    return bind(o, id, label_of(tensor), held_type(o, id, tensor->type), ds_tensor_matrix(tensor, shape), slot);
}

static dsv2_status bind_k_up(opener *o, uint32_t layer, const ds_labelled_matrix *kv_b)
{
    const ds_weight_id id = {DS_ROLE_K_UP_TRANSPOSED, layer, 0};
    ds_matrix *slot = &o->weights->layers[layer].mla.k_up_transposed;
    if (!ds_place_has_k_up(&o->places, layer))
        return bind_transposed_k_up(o, &id, kv_b, slot);
    ds_tensor tensor;
    dsv2_status status = find(o, &id, &tensor);
    return status == DSV2_OK ? bind_found_k_up(o, &id, &tensor, slot) : status;
}

/* Binds kv_b_proj joined of its two halves. */
static dsv2_status bind_joined_kv_b(opener *o, const ds_weight_id *id, ds_shape shape, const ds_tensor *k_up,
                                    const ds_tensor *v_up, ds_matrix *slot)
{
    const ds_config *config = o->opening->config;
    const ds_labelled_matrix k = labelled_matrix(k_up, ds_role_info_of(DS_ROLE_K_UP_TRANSPOSED)->shape(config));
    const ds_labelled_matrix v = labelled_matrix(v_up, ds_role_info_of(DS_ROLE_V_UP)->shape(config));
    ds_type type = ds_joined_kv_b_type(k.matrix.type, v.matrix.type);
    /* Rows of attn_k_b are columns here: its blocks cannot be kept, and eight bits lose nothing that matters. */
    ds_type held = ds_held_type(o->opening->weight_type, id->role, ds_type_is_plain(k.matrix.type) ? type : DS_TYPE_P8);
    void *data;
    dsv2_status status = new_made(o, id, shape, type, held, &data);
    if (status == DSV2_OK)
        status = ds_join_kv_b(o->opening->kernels, config, &k, &v, type, held, data);
    if (status != DSV2_OK)
        return status;
    ds_container_forget(o->opening->container, v_up->data, v_up->n_bytes); /* k_up is still to be read */
    o->weights->parameters += (uint64_t)shape.rows * shape.cols;
    return bind(o, id, label_of(v_up), held, made_matrix(shape, type, data), slot);
}

static dsv2_status bind_split_kv_b(opener *o, const ds_weight_id *id, ds_shape shape, ds_matrix *slot)
{
    const ds_weight_id k_up_id = {DS_ROLE_K_UP_TRANSPOSED, id->layer, 0};
    const ds_tensor *k_up, *v_up;
    dsv2_status status = ds_place_find_split(&o->places, id->layer, &k_up, &v_up);
    if (status != DSV2_OK)
        return status;
    ds_digest_tensor(&o->weights->digest, k_up, o->has_checksums);
    status = found_tensor(o, v_up, true);
    if (status == DSV2_OK)
        status = bind_found_k_up(o, &k_up_id, k_up, &o->weights->layers[id->layer].mla.k_up_transposed);
    return status == DSV2_OK ? bind_joined_kv_b(o, id, shape, k_up, v_up, slot) : status;
}

/* ---- the whole ---- */

/* Room for a layer's experts. Their router has shown that the file is large enough for so many. */
static dsv2_status allocate_experts(opener *o, uint32_t layer)
{
    ds_moe_weights *moe = &o->weights->layers[layer].moe;
    size_t n = o->opening->config->n_routed_experts;
    moe->experts = ds_holder_array(&o->weights->holder, n, sizeof *moe->experts);
    return moe->experts != NULL ? DSV2_OK : ds_fail_memory("the experts", n * sizeof *moe->experts);
}

static dsv2_status bind_matrix(void *context, const ds_weight_id *id, ds_shape shape, ds_matrix *slot)
{
    opener *o = context;
    if (id->role == DS_ROLE_KV_B_PROJ && ds_place_is_split(&o->places, id->layer))
        return bind_split_kv_b(o, id, shape, slot);
    ds_tensor tensor;
    dsv2_status status = find(o, id, &tensor);
    if (status != DSV2_OK)
        return status;
    o->weights->parameters += (uint64_t)shape.rows * shape.cols;
    ds_matrix matrix = ds_tensor_matrix(&tensor, shape);
    if (tensor.type == DS_TYPE_F8_E4M3)
        status = bind_scales(o, id, &tensor, &matrix);
    if (status == DSV2_OK && id->role == DS_ROLE_KV_B_PROJ)
        status = bind_k_up(o, id->layer, &(ds_labelled_matrix){matrix, label_of(&tensor)});
    if (status == DSV2_OK)
        status = bind(o, id, label_of(&tensor), held_type(o, id, tensor.type), matrix, slot);
    if (status == DSV2_OK && id->role == DS_ROLE_ROUTER)
        status = allocate_experts(o, id->layer);
    return status;
}

static dsv2_status allocate_layers(ds_weights *weights, const ds_config *config)
{
    size_t n = config->num_hidden_layers;
    weights->layers = ds_holder_array(&weights->holder, n, sizeof *weights->layers);
    if (weights->layers == NULL)
        return ds_fail_memory("the layers", n * sizeof *weights->layers);
    for (uint32_t l = 0; l < n; l++)
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
static dsv2_status choose_source(opener *o)
{
    ds_weights *weights = o->weights;
    if (o->opening->config->n_routed_experts == 0)
        return DSV2_OK;
    if (o->deferred == NULL)
        return ds_resident_source_new(weights->layers, &weights->experts);
    weights->experts = ds_deferred_source_finish(o->deferred, weights->layers);
    o->deferred = NULL;
    return DSV2_OK;
}

/* After the walk: what waits is converted, and the whole is there. */
static dsv2_status finish(opener *o)
{
    if (o->opening->config->tie_word_embeddings)
        o->weights->lm_head = o->weights->embed_tokens;
    dsv2_status status = ds_queue_run(&o->queue);
    o->done = o->total; /* with tensors that the model does not use */
    if (status == DSV2_OK)
        status = report(o, false);
    return status == DSV2_OK ? choose_source(o) : status;
}

dsv2_status ds_weights_open(ds_weights *weights, const ds_weights_opening *opening)
{
    const ds_container *container = opening->container;
    *weights = (ds_weights){0};
    ds_holder_init(&weights->holder, slab_bytes(container));
    opener o = {.weights = weights, .opening = opening, .total = ds_container_count(container),
                .places = ds_places_in(container, opening->config),
                .has_checksums = ds_container_format(container) == DS_FORMAT_PACK};
    ds_queue_init(&o.queue, opening->kernels, opening->pool, container, opening->queue_limits);
    const ds_weights_visitor visitor = {bind_matrix, bind_vector, &o};
    dsv2_status status = allocate_layers(weights, opening->config);
    if (status == DSV2_OK)
        status = ds_weights_walk(weights, opening->config, &visitor);
    if (status == DSV2_OK)
        status = finish(&o);
    ds_deferred_source_free(o.deferred);
    ds_queue_free(&o.queue);
    return status;
}

void ds_weights_close(ds_weights *weights)
{
    if (weights->experts != NULL)
        weights->experts->destroy(weights->experts);
    ds_holder_free(&weights->holder);
    *weights = (ds_weights){0};
}

uint64_t ds_weights_activated(const ds_weights *weights, const ds_config *config)
{
    uint64_t expert = DS_FFN_MATRICES * (uint64_t)config->moe_intermediate_size * config->hidden_size, unused = 0;
    for (uint32_t l = 0; l < config->num_hidden_layers; l++)
        if (weights->layers[l].is_moe)
            unused += (config->n_routed_experts - config->num_experts_per_tok) * expert;
    if (!config->tie_word_embeddings)
        unused += (uint64_t)(config->vocab_size - 1) * config->hidden_size;
    return weights->parameters - unused;
}

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

    /* What opening takes for a while. */
    uint64_t temporary, most_temporary; /* bytes made only to be converted: of all weights; of one and its like */
    size_t scratch, deferred_scratch;   /* bytes that a thread needs for the queue; for deferred experts */
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

/* While the queue works on a large matrix. */
static dsv2_status report_again(void *context) { return report(context, false); }

static dsv2_status fail_memory(const ds_weight_id *id, size_t bytes)
{
    char name[DS_NAME_SIZE];
    ds_published_name(id, name);
    return ds_fail_memory(name, bytes);
}

/* After a failure to lock some of the weights. */
static dsv2_status fail_lock(const opener *o, const char *reason)
{
    const char *path = ds_container_path(o->opening->container);
    unsigned long long wanted = o->opening->lock_bytes, limit = ds_os_lock_limit();
    if (limit == UINT64_MAX)
        return ds_fail(DSV2_ERROR_MEMORY, "%s: cannot lock %llu bytes of weights in memory: %s", path, wanted, reason);
    return ds_fail(DSV2_ERROR_MEMORY,
                   "%s: cannot lock %llu bytes of weights in memory: %s: this process may lock %llu bytes in "
                   "all (RLIMIT_MEMLOCK): raise the limit, or open the model without lock",
                   path, wanted, reason, limit);
}

/* Memory for a weight as the model holds it; NULL if it is only counted. */
static dsv2_status new_held(opener *o, const ds_weight_id *id, size_t bytes, void **out)
{
    *out = NULL;
    o->weights->bytes_copied += bytes;
    if (o->opening->only_count)
        return DSV2_OK;
    *out = ds_holder_bytes(&o->weights->holder, bytes);
    if (*out != NULL)
        return DSV2_OK;
    const ds_holder *holder = &o->weights->holder;
    return holder->lock_failed ? fail_lock(o, holder->reason.text) : fail_memory(id, bytes);
}

static dsv2_status digest(opener *o, const ds_tensor *tensor)
{
    if (o->opening->only_count)
        return DSV2_OK;
    return ds_digest_tensor(&o->weights->digest, o->opening->container, tensor, o->has_checksums);
}

static dsv2_status found_tensor(opener *o, const ds_tensor *tensor, bool new_tensor)
{
    dsv2_status status = digest(o, tensor);
    return status == DSV2_OK ? report(o, new_tensor) : status;
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

/* Fails unless all of a tensor's floats are finite. */
static dsv2_status check_finite(const ds_tensor *tensor, const float *values, uint32_t rows, uint32_t cols)
{
    ds_misfit misfit;
    for (uint32_t row = 0; row < rows; row++)
        if (!ds_type_holds(DS_TYPE_F32, values + (size_t)row * cols, cols, row, &misfit))
            return ds_misfit_fail(label_of(tensor), DS_TYPE_F32, &misfit);
    return DSV2_OK;
}

/* ---- vectors ---- */

/* The n values of a tensor as floats. */
static dsv2_status read_floats(opener *o, const ds_weight_id *id, const ds_tensor *tensor, uint32_t n, float *values)
{
    if (tensor->data != NULL) {
        o->opening->kernels->to_f32[tensor->type](values, tensor->data, n);
        return DSV2_OK;
    }
    void *read = ds_new((size_t)tensor->n_bytes, 1);
    if (read == NULL)
        return fail_memory(id, (size_t)tensor->n_bytes);
    dsv2_status status = ds_container_read(o->opening->container, tensor, 0, read, (size_t)tensor->n_bytes);
    if (status == DSV2_OK)
        o->opening->kernels->to_f32[tensor->type](values, read, n);
    ds_free(read);
    return status;
}

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
    if (status == DSV2_OK && values != NULL)
        status = read_floats(o, id, &tensor, n, values);
    if (status == DSV2_OK && values != NULL)
        status = check_finite(&tensor, values, 1, n);
    o->weights->parameters += n;
    o->weights->bytes += n * sizeof(float);
    *slot = values;
    return status;
}

/* ---- matrices ---- */

/* A matrix on its way to its slot. */
typedef struct arrival {
    ds_matrix matrix;
    ds_weight_label label; /* of the tensor that it is made of */
    enum { MADE, MAPPED, UNREAD } where; /* UNREAD: the matrix has no data yet and lies here: */
    const ds_file *file;
    uint64_t offset;
    void *temporary; /* the matrix's own memory, if it is there only to be converted; NULL: none */
    size_t temporary_bytes;
} arrival;

static ds_matrix made_matrix(ds_shape shape, ds_type type, const void *data)
{
    return (ds_matrix){.rows = shape.rows, .cols = shape.cols, .type = type, .data = data,
                       .row_bytes = ds_type_row_bytes(type, shape.cols)};
}

static ds_labelled_matrix labelled(const arrival *a) { return (ds_labelled_matrix){a->matrix, a->label}; }

/* The memory of a matrix that opening makes. */
static void *writable(const arrival *made) { return (void *)(uintptr_t)made->matrix.data; }

static arrival arrival_of(const opener *o, const ds_tensor *tensor, ds_shape shape)
{
    return (arrival){.matrix = ds_tensor_matrix(tensor, shape), .label = label_of(tensor),
                     .where = o->opening->reads ? UNREAD : MAPPED,
                     .file = ds_container_file(o->opening->container, tensor), .offset = tensor->offset};
}

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
    if (status == DSV2_OK && copy != NULL)
        status = ds_container_read(o->opening->container, &scales, 0, copy, (size_t)scales.n_bytes);
    if (status == DSV2_OK && copy != NULL)
        status = check_finite(&scales, copy, (uint32_t)scales.dims[0], (uint32_t)scales.dims[1]);
    matrix->scales = copy;
    matrix->scale_rows = o->opening->config->fp8_block_rows;
    matrix->scale_cols = o->opening->config->fp8_block_cols;
    matrix->scale_stride = (uint32_t)scales.dims[1];
    return status;
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

/* Only a mapped expert waits for its first use. What is read needs no file afterwards; what is locked is in memory. */
static bool may_wait(const opener *o, const ds_weight_id *id, const ds_conversion *conversion)
{
    return ds_role_info_of(id->role)->scope == DS_SCOPE_EXPERT && ds_conversion_is_exact(conversion) &&
           !o->opening->reads && o->opening->lock_bytes == 0;
}

/* What converting will take beside the matrix that it makes. */
static void count_conversion(opener *o, const ds_weight_id *id, const ds_conversion *conversion)
{
    size_t *most = may_wait(o, id, conversion) ? &o->deferred_scratch : &o->scratch;
    *most = (size_t)ds_max(*most, ds_conversion_scratch(conversion));
}

/* Has a matrix converted or read, at the latest when all weights are bound; deferred experts wait for their first use.
 * Rounding an expert takes too long for a pass: it is done here, with progress for the host to see. The queue
 * gets the arrival's temporary memory. */
static dsv2_status convert(opener *o, const ds_weight_id *id, ds_type held, arrival *from, void **data)
{
    const ds_matrix *matrix = &from->matrix;
    dsv2_status status = new_held(o, id, ds_matrix_bytes(held, matrix->rows, matrix->cols), data);
    if (status != DSV2_OK)
        return status;
    const ds_conversion conversion = {.from = *matrix, .file = from->where == UNREAD ? from->file : NULL,
                                      .offset = from->offset, .type = held, .out = *data, .label = from->label};
    if (o->opening->only_count) {
        count_conversion(o, id, &conversion);
        return DSV2_OK;
    }
    if (may_wait(o, id, &conversion))
        return defer(o, id, &conversion);
    status = ds_queue_reserve(&o->queue, &conversion);
    if (status != DSV2_OK)
        return status;
    ds_queue_own(&o->queue, from->temporary, from->temporary_bytes);
    from->temporary = NULL;
    return ds_queue_add(&o->queue, &conversion);
}

/* Binds a matrix to its slot in the type that it is to be held in. */
static dsv2_status bind(opener *o, const ds_weight_id *id, ds_type held, arrival *from, ds_matrix *slot)
{
    ds_weights *weights = o->weights;
    ds_matrix matrix = from->matrix;
    uint64_t bytes = ds_matrix_bytes(held, matrix.rows, matrix.cols);
    if (held != matrix.type || from->where == UNREAD) {
        void *data;
        dsv2_status status = convert(o, id, held, from, &data);
        if (status != DSV2_OK)
            return status;
        if (held == matrix.type) /* with its scales */
            matrix.data = data;
        else
            matrix = made_matrix((ds_shape){matrix.rows, matrix.cols}, held, data);
    } else if (from->where == MAPPED) {
        weights->bytes_mapped += bytes;
        if (o->opening->lock_bytes > 0 && !o->opening->only_count && !ds_os_lock_memory(matrix.data, bytes, true)) {
            ds_os_reason reason = ds_os_failure();
            return fail_lock(o, reason.text);
        }
    }
    size_t scratch = ds_matmul_scratch(&matrix);
    weights->matmul_scratch = scratch > weights->matmul_scratch ? scratch : weights->matmul_scratch;
    weights->types_seen[held] = true;
    weights->has_interleaved = weights->has_interleaved || ds_type_is_interleaved(held);
    weights->bytes += bytes;
    ds_digest_type(&weights->digest, held);
    *slot = matrix;
    return DSV2_OK;
}

/* The type to hold a matrix in that is in the file. */
static ds_type held_type(const opener *o, const ds_weight_id *id, ds_type found)
{
    return o->opening->as_found ? found : ds_held_type(o->opening->weight_type, id->role, found);
}

/* Memory for a matrix that opening makes: the model's if the matrix is held as it is made, else temporary. */
static dsv2_status new_made(opener *o, const ds_weight_id *id, ds_weight_label label, ds_shape shape, ds_type type,
                            ds_type held, arrival *made)
{
    size_t bytes = ds_matrix_bytes(type, shape.rows, shape.cols);
    void *data = NULL;
    dsv2_status status = DSV2_OK;
    *made = (arrival){.label = label, .where = MADE};
    if (held == type) {
        status = new_held(o, id, bytes, &data);
    } else {
        made->temporary_bytes = bytes;
        o->temporary += bytes;
        if (!o->opening->only_count) {
            data = made->temporary = ds_allocate(o->opening->allocator, bytes, 1);
            if (data == NULL)
                status = fail_memory(id, bytes);
        }
    }
    made->matrix = made_matrix(shape, type, data);
    return status;
}

/* ---- kv_b_proj and (W^UK)^T, which are made of each other ---- */

/* Has a matrix that others are made of in memory, whole, before it is bound. */
static dsv2_status read_now(opener *o, const ds_weight_id *id, ds_type held, arrival *from)
{
    if (from->where != UNREAD)
        return DSV2_OK;
    const ds_matrix unread = from->matrix;
    const ds_file *file = from->file;
    uint64_t offset = from->offset;
    dsv2_status status = new_made(o, id, from->label, (ds_shape){unread.rows, unread.cols}, unread.type, held,
                                  from);
    void *data = writable(from);
    from->matrix = unread; /* with its scales */
    from->matrix.data = data;
    if (status == DSV2_OK && data != NULL)
        status = ds_file_read_at(file, offset, data, ds_matrix_bytes(unread.type, unread.rows, unread.cols));
    return status;
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
    arrival made;
    dsv2_status status = new_made(o, id, kv_b->label, shape, type, held, &made);
    if (status == DSV2_OK && !o->opening->only_count)
        status = ds_transpose_k_up(o->opening->kernels, o->opening->config, kv_b, type, held, writable(&made));
    if (status == DSV2_OK)
        status = bind(o, id, held, &made, slot);
    ds_release(o->opening->allocator, made.temporary);
    return status;
}

static dsv2_status bind_k_up(opener *o, uint32_t layer, const ds_labelled_matrix *kv_b)
{
    const ds_weight_id id = {DS_ROLE_K_UP_TRANSPOSED, layer, 0};
    ds_matrix *slot = &o->weights->layers[layer].mla.k_up_transposed;
    if (!ds_place_has_k_up(&o->places, layer))
        return bind_transposed_k_up(o, &id, kv_b, slot);
    ds_tensor tensor;
    dsv2_status status = find(o, &id, &tensor);
    if (status != DSV2_OK)
        return status;
    /* It is counted as a part of kv_b_proj. */
    arrival k_up = arrival_of(o, &tensor, ds_role_info_of(id.role)->shape(o->opening->config));
    return bind(o, &id, held_type(o, &id, tensor.type), &k_up, slot);
}

/* Makes kv_b_proj of its two halves. */
static dsv2_status join_kv_b(opener *o, const ds_weight_id *id, ds_shape shape, const ds_labelled_matrix *k,
                             const ds_labelled_matrix *v, ds_type *held, arrival *joined)
{
    ds_type type = ds_joined_kv_b_type(k->matrix.type, v->matrix.type);
    /* Rows of attn_k_b are columns here: its blocks cannot be kept, and eight bits lose nothing that matters. */
    *held = ds_held_type(o->opening->weight_type, id->role, ds_type_is_plain(k->matrix.type) ? type : DS_TYPE_P8);
    dsv2_status status = new_made(o, id, v->label, shape, type, *held, joined);
    if (status == DSV2_OK && !o->opening->only_count)
        status = ds_join_kv_b(o->opening->kernels, o->opening->config, k, v, type, *held, writable(joined));
    o->weights->parameters += (uint64_t)shape.rows * shape.cols;
    return status;
}

static dsv2_status bind_split_kv_b(opener *o, const ds_weight_id *id, ds_shape shape, ds_matrix *slot)
{
    const ds_weight_id k_id = {DS_ROLE_K_UP_TRANSPOSED, id->layer, 0};
    const ds_tensor *k_tensor, *v_tensor;
    dsv2_status status = ds_place_find_split(&o->places, id->layer, &k_tensor, &v_tensor);
    if (status == DSV2_OK)
        status = digest(o, k_tensor);
    if (status == DSV2_OK)
        status = found_tensor(o, v_tensor, true);
    if (status != DSV2_OK)
        return status;
    const ds_config *config = o->opening->config;
    arrival k = arrival_of(o, k_tensor, ds_role_info_of(DS_ROLE_K_UP_TRANSPOSED)->shape(config));
    arrival v = arrival_of(o, v_tensor, ds_role_info_of(DS_ROLE_V_UP)->shape(config)), joined = {0};
    ds_type k_held = held_type(o, &k_id, k_tensor->type), held = DS_TYPE_COUNT;
    status = read_now(o, &k_id, k_held, &k);
    if (status == DSV2_OK)
        status = read_now(o, id, DS_TYPE_COUNT, &v);
    const ds_labelled_matrix k_labelled = labelled(&k), v_labelled = labelled(&v);
    if (status == DSV2_OK)
        status = join_kv_b(o, id, shape, &k_labelled, &v_labelled, &held, &joined);
    if (status == DSV2_OK)
        status = bind(o, &k_id, k_held, &k, &o->weights->layers[id->layer].mla.k_up_transposed);
    if (status == DSV2_OK && v.where == MAPPED)
        ds_container_forget(o->opening->container, v_tensor->data, v_tensor->n_bytes);
    if (status == DSV2_OK)
        status = bind(o, id, held, &joined, slot);
    ds_release(o->opening->allocator, k.temporary);
    ds_release(o->opening->allocator, v.temporary);
    ds_release(o->opening->allocator, joined.temporary);
    return status;
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

static dsv2_status find_and_bind(opener *o, const ds_weight_id *id, ds_shape shape, ds_matrix *slot)
{
    if (id->role == DS_ROLE_KV_B_PROJ && ds_place_is_split(&o->places, id->layer))
        return bind_split_kv_b(o, id, shape, slot);
    ds_tensor tensor;
    dsv2_status status = find(o, id, &tensor);
    if (status != DSV2_OK)
        return status;
    o->weights->parameters += (uint64_t)shape.rows * shape.cols;
    arrival found = arrival_of(o, &tensor, shape);
    ds_type held = held_type(o, id, tensor.type);
    if (tensor.type == DS_TYPE_F8_E4M3)
        status = bind_scales(o, id, &tensor, &found.matrix);
    if (status == DSV2_OK && id->role == DS_ROLE_KV_B_PROJ)
        status = read_now(o, id, held, &found);
    const ds_labelled_matrix kv_b = labelled(&found);
    if (status == DSV2_OK && id->role == DS_ROLE_KV_B_PROJ)
        status = bind_k_up(o, id->layer, &kv_b);
    if (status == DSV2_OK)
        status = bind(o, id, held, &found, slot);
    ds_release(o->opening->allocator, found.temporary);
    if (status == DSV2_OK && id->role == DS_ROLE_ROUTER)
        status = allocate_experts(o, id->layer);
    return status;
}

static dsv2_status bind_matrix(void *context, const ds_weight_id *id, ds_shape shape, ds_matrix *slot)
{
    opener *o = context;
    uint64_t before = o->temporary;
    dsv2_status status = find_and_bind(o, id, shape, slot);
    o->most_temporary = ds_max(o->most_temporary, o->temporary - before);
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

/* Slabs of 64 MiB; less for a model that is smaller itself, or of which little is copied. */
static size_t slab_bytes(const ds_weights_opening *opening)
{
    enum { LEAST = 1 << 20, SHARE = 8 };
    const ds_container *container = opening->container;
    uint64_t most = 64 << 20, bytes = 0;
    if (opening->copied > 0 && opening->copied / SHARE < most)
        most = ds_max(opening->copied / SHARE, LEAST);
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

/* What opening takes beside the copies. The room of a queue is counted for every thread; the lists of weights, page
 * tables, and what is too small to be counted one by one. */
static uint64_t count_beside(const opener *o)
{
    enum { PAGE_SHARE = 512, SMALL_THINGS = 16 << 20 }; /* a page of 4 KiB has 8 bytes in a page table */
    const ds_weights_opening *opening = o->opening;
    const ds_config *config = opening->config;
    unsigned n_threads = opening->pool != NULL ? ds_pool_threads(opening->pool) : 1;
    uint64_t experts = (uint64_t)config->num_hidden_layers * config->n_routed_experts;
    uint64_t bytes = SMALL_THINGS + experts * sizeof(ds_ffn_weights);
    bytes += ds_queue_bytes(opening->queue_limits, n_threads, o->scratch);
    bytes += o->most_temporary + (o->temporary < DS_QUEUE_OWN_BYTES ? o->temporary : DS_QUEUE_OWN_BYTES);
    if (o->deferred_scratch > 0)
        bytes += ds_queue_bytes(opening->queue_limits, n_threads, o->deferred_scratch) +
                 experts * sizeof(ds_deferred_expert);
    return bytes + (o->weights->bytes_copied + o->weights->bytes_mapped) / PAGE_SHARE;
}

/* After the walk: what waits is converted, and the whole is there. */
static dsv2_status finish(opener *o)
{
    if (o->opening->config->tie_word_embeddings)
        o->weights->lm_head = o->weights->embed_tokens;
    if (o->opening->only_count) {
        o->weights->bytes_beside = count_beside(o);
        return DSV2_OK;
    }
    dsv2_status status = ds_queue_run(&o->queue);
    if (status == DSV2_OK && !ds_holder_lock_rest(&o->weights->holder))
        status = fail_lock(o, o->weights->holder.reason.text);
    o->done = o->total; /* with tensors that the model does not use */
    if (status == DSV2_OK)
        status = report(o, false);
    return status == DSV2_OK ? choose_source(o) : status;
}

dsv2_status ds_weights_open(ds_weights *weights, const ds_weights_opening *opening)
{
    const ds_container *container = opening->container;
    *weights = (ds_weights){0};
    ds_holder_init(&weights->holder, opening->allocator, slab_bytes(opening));
    weights->holder.lock = opening->lock_bytes > 0;
    opener o = {.weights = weights, .opening = opening, .total = ds_container_count(container),
                .places = ds_places_in(container, opening->config),
                .has_checksums = ds_container_format(container) == DS_FORMAT_PACK};
    ds_queue_init(&o.queue, opening->kernels, opening->pool, opening->allocator, container, opening->queue_limits);
    o.queue.after_run = report_again;
    o.queue.after_run_context = &o;
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

/* Writing a model of any container as a .dsv2 pack: weight by weight, in the order of the forward pass. Each is
 * converted and written before the next is touched. */
#include "formats/pack.h"
#include "weights/held_type.h"
#include "weights/walk.h"

typedef struct exporter {
    ds_weights *weights;
    const ds_weights_opening *opening;
    ds_queue queue;
    const dsv2_pack_options *options;
    ds_pack_writer *writer;
    uint8_t *buffer; /* of the largest matrix so far */
    size_t capacity;
    uint64_t done, total; /* bytes of weights as found */
} exporter;

/* False in a child that the progress callback has forked: the file is the parent's. */
static bool is_ours(const exporter *e) { return !ds_pool_is_inherited(e->opening->pool); }

static dsv2_status report(exporter *e, uint64_t bytes)
{
    e->done = bytes < e->total - e->done ? e->done + bytes : e->total;
    if (!ds_call_progress(e->options->progress, e->options->progress_user, DSV2_PHASE_PACK, e->done, e->total))
        return ds_fail(DSV2_ERROR_CANCELLED, "packing was cancelled by the progress callback");
    return is_ours(e) ? DSV2_OK : ds_fail_forked();
}

static dsv2_status write_tensor(exporter *e, const ds_weight_id *id, ds_type type, ds_shape shape, const void *data,
                                size_t size)
{
    const uint64_t dims[] = {shape.rows, shape.cols};
    char name[DS_NAME_SIZE];
    ds_published_name(id, name);
    dsv2_status status = ds_pack_writer_tensor(e->writer, name, type, dims, shape.cols > 0 ? 2 : 1);
    return status == DSV2_OK ? ds_pack_writer_data(e->writer, data, size) : status;
}

/* Writes the whole matrix as `type` into the buffer. */
static dsv2_status convert(exporter *e, const ds_weight_id *id, const ds_matrix *matrix, ds_type type)
{
    char name[DS_NAME_SIZE];
    ds_published_name(id, name);
    size_t size = ds_matrix_bytes(type, matrix->rows, matrix->cols);
    if (!ds_grow(&e->buffer, &e->capacity, size, 1))
        return ds_fail_memory("a converted matrix", size);
    const ds_conversion conversion = {.from = *matrix, .type = type, .out = e->buffer,
                                      .label = {.name = name}};
    dsv2_status status = ds_queue_reserve(&e->queue, &conversion);
    if (status == DSV2_OK)
        status = ds_queue_add(&e->queue, &conversion);
    return status == DSV2_OK ? ds_queue_run(&e->queue) : status;
}

/* The type that the pack holds a matrix in. */
static ds_type packed_type(const exporter *e, const ds_weight_id *id, const ds_matrix *matrix)
{
    ds_type type = ds_held_type(e->options->weight_type, id->role, matrix->type);
    return type == DS_TYPE_F8_E4M3 ? DS_TYPE_P8 : type; /* block scales have no place in a pack */
}

static dsv2_status export_matrix(void *context, const ds_weight_id *id, ds_shape shape, ds_matrix *matrix)
{
    exporter *e = context;
    ds_type type = packed_type(e, id, matrix);
    size_t size = ds_matrix_bytes(type, shape.rows, shape.cols);
    size_t found = ds_matrix_bytes(matrix->type, shape.rows, shape.cols);
    dsv2_status status = type != matrix->type ? convert(e, id, matrix, type) : DSV2_OK;
    if (status == DSV2_OK)
        status = write_tensor(e, id, type, shape, type != matrix->type ? e->buffer : matrix->data, size);
    ds_container_forget(e->opening->container, matrix->data, found);
    return status == DSV2_OK ? report(e, found) : status;
}

static dsv2_status export_vector(void *context, const ds_weight_id *id, uint32_t n, const float **vector)
{
    exporter *e = context;
    dsv2_status status = write_tensor(e, id, DS_TYPE_F32, (ds_shape){n, 0}, *vector, n * sizeof **vector);
    return status == DSV2_OK ? report(e, n * sizeof **vector) : status;
}

/* Writes the transposed halves of kv_b_proj, which opening would otherwise have to make every time. */
static dsv2_status export_k_up(exporter *e)
{
    ds_shape shape = ds_role_info_of(DS_ROLE_K_UP_TRANSPOSED)->shape(e->opening->config);
    dsv2_status status = DSV2_OK;
    for (uint32_t l = 0; l < e->opening->config->num_hidden_layers && status == DSV2_OK; l++)
        status = export_matrix(e, &(ds_weight_id){DS_ROLE_K_UP_TRANSPOSED, l, 0}, shape,
                               &e->weights->layers[l].mla.k_up_transposed);
    return status;
}

static dsv2_status export_texts(exporter *e)
{
    char *config;
    dsv2_status status = ds_config_to_json(e->opening->config, &config);
    if (status != DSV2_OK)
        return status;
    status = ds_pack_writer_text(e->writer, "config.json", config, strlen(config));
    ds_free(config);
    return status == DSV2_OK ? ds_pack_writer_tokenizer(e->writer, e->opening->container) : status;
}

/* Counts the buffer that a matrix needs, and the rows of the threads. */
static dsv2_status count_matrix(void *context, const ds_weight_id *id, ds_shape shape, ds_matrix *matrix)
{
    exporter *e = context;
    const ds_conversion conversion = {.from = *matrix, .type = packed_type(e, id, matrix)};
    if (conversion.type == matrix->type)
        return DSV2_OK;
    e->capacity = (size_t)ds_max(e->capacity, ds_matrix_bytes(conversion.type, shape.rows, shape.cols));
    e->queue.scratch_bytes = (size_t)ds_max(e->queue.scratch_bytes, ds_conversion_scratch(&conversion));
    return DSV2_OK;
}

static dsv2_status count_vector(void *context, const ds_weight_id *id, uint32_t n, const float **vector)
{
    (void)context, (void)id, (void)n, (void)vector;
    return DSV2_OK;
}

uint64_t ds_weights_export_bytes(ds_weights *weights, const ds_weights_opening *opening,
                                 const dsv2_pack_options *options)
{
    exporter e = {.weights = weights, .opening = opening, .options = options};
    const ds_weights_visitor visitor = {count_matrix, count_vector, &e};
    (void)ds_weights_walk(weights, opening->config, &visitor); /* nothing of it fails */
    return e.capacity + ds_queue_bytes(opening->queue_limits, ds_pool_threads(opening->pool), e.queue.scratch_bytes);
}

dsv2_status ds_weights_export(ds_weights *weights, const ds_weights_opening *opening, const char *output_path,
                              const dsv2_pack_options *options)
{
    exporter e = {.weights = weights, .opening = opening, .options = options, .total = weights->bytes};
    ds_queue_init(&e.queue, opening->kernels, opening->pool, opening->allocator, opening->container,
                  opening->queue_limits);
    dsv2_status status = ds_pack_writer_open(output_path, &e.writer);
    if (status == DSV2_OK) /* kept until the end; before the weights, since texts may be refused */
        status = export_texts(&e);
    if (status == DSV2_OK) {
        const ds_weights_visitor visitor = {export_matrix, export_vector, &e};
        status = ds_weights_walk(weights, opening->config, &visitor);
    }
    if (status == DSV2_OK)
        status = export_k_up(&e);
    if (status == DSV2_OK)
        status = report(&e, e.total - e.done);
    if (status == DSV2_OK)
        status = ds_container_check_same(opening->container);
    if (status == DSV2_OK)
        status = ds_pack_writer_commit(e.writer);
    if (is_ours(&e))
        ds_pack_writer_free(e.writer);
    ds_queue_free(&e.queue);
    ds_free(e.buffer);
    return status;
}

/* A model of any container as a .dsv2 pack: weight by weight, in the order of the forward pass, each brought to its type and
 * written before the next is touched. */
#include "formats/pack.h"
#include "weights/convert.h"
#include "weights/walk.h"

#include <stdio.h>
#include <string.h>

typedef struct exporter {
    ds_weights *weights;
    const ds_weights_opening *opening;
    ds_conversions conversions;
    const dsv2_pack_options *options;
    ds_pack_writer *writer;
    uint8_t *buffer; /* of the largest matrix so far */
    size_t capacity;
    uint64_t done, total; /* bytes of weights as found */
} exporter;

static dsv2_status report(exporter *e, uint64_t bytes)
{
    e->done = bytes < e->total - e->done ? e->done + bytes : e->total;
    if (e->options->progress != NULL && e->options->progress(e->options->progress_user, DSV2_PHASE_PACK, e->done, e->total) != 0)
        return ds_fail(DSV2_ERROR_CANCELLED, "packing was cancelled by the progress callback");
    return DSV2_OK;
}

static dsv2_status write_tensor(exporter *e, const char *name, ds_type type, const uint64_t *dims, uint32_t n_dims, const void *data,
                                size_t size)
{
    dsv2_status status = ds_pack_writer_tensor(e->writer, name, type, dims, n_dims);
    return status == DSV2_OK ? ds_pack_writer_data(e->writer, data, size) : status;
}

/* The whole matrix as `type` into the buffer. */
static dsv2_status convert(exporter *e, const ds_matrix *matrix, ds_type type)
{
    const ds_conversion conversion = {.from = *matrix, .type = type, .out = e->buffer, .end = matrix->rows};
    dsv2_status status = ds_conversions_reserve(&e->conversions, 1, &conversion);
    if (status != DSV2_OK)
        return status;
    ds_conversions_add(&e->conversions, &conversion);
    ds_conversions_run(&e->conversions);
    return DSV2_OK;
}

static dsv2_status export_matrix(void *context, const char *name, uint32_t rows, uint32_t cols, ds_matrix *matrix)
{
    exporter *e = context;
    ds_type type = ds_held_type(e->options->weight_type, name, matrix->type);
    if (type == DS_TYPE_F8_E4M3)
        type = DS_TYPE_P8; /* block scales have no place in a pack */
    const uint64_t dims[] = {rows, cols};
    size_t size = ds_matrix_bytes(type, rows, cols), found = ds_matrix_bytes(matrix->type, rows, cols);
    const void *data = matrix->data;
    dsv2_status status = DSV2_OK;
    if (type != matrix->type) {
        if (!ds_grow(&e->buffer, &e->capacity, size, 1))
            return ds_fail_memory(name, size);
        data = e->buffer;
        status = convert(e, matrix, type);
    }
    if (status == DSV2_OK)
        status = write_tensor(e, name, type, dims, 2, data, size);
    ds_container_forget(e->opening->container, matrix->data, found);
    return status == DSV2_OK ? report(e, found) : status;
}

static dsv2_status export_vector(void *context, const char *name, uint32_t n, const float **vector)
{
    exporter *e = context;
    const uint64_t dims[] = {n};
    dsv2_status status = write_tensor(e, name, DS_TYPE_F32, dims, 1, *vector, n * sizeof **vector);
    return status == DSV2_OK ? report(e, n * sizeof **vector) : status;
}

/* The transposed halves of kv_b_proj, which opening would otherwise have to make every time. */
static dsv2_status export_k_up(exporter *e)
{
    dsv2_status status = DSV2_OK;
    for (uint32_t l = 0; l < e->opening->config->num_hidden_layers && status == DSV2_OK; l++) {
        ds_matrix *matrix = &e->weights->layers[l].mla.k_up_transposed;
        char name[DS_NAME_SIZE];
        snprintf(name, sizeof name, "model.layers.%u" DS_K_UP_TRANSPOSED, (unsigned)l);
        status = export_matrix(e, name, matrix->rows, matrix->cols, matrix);
    }
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

dsv2_status ds_weights_export(ds_weights *weights, const ds_weights_opening *opening, const char *output_path,
                              const dsv2_pack_options *options)
{
    exporter e = {.weights = weights, .opening = opening, .options = options, .total = weights->bytes};
    ds_conversions_init(&e.conversions, opening->kernels, opening->pool, opening->container);
    dsv2_status status = ds_pack_writer_open(output_path, &e.writer);
    if (status == DSV2_OK) {
        const ds_weights_visitor visitor = {export_matrix, export_vector, &e};
        status = ds_weights_walk(weights, opening->config, &visitor);
    }
    if (status == DSV2_OK)
        status = export_k_up(&e);
    if (status == DSV2_OK)
        status = export_texts(&e);
    if (status == DSV2_OK)
        status = report(&e, e.total - e.done);
    if (status == DSV2_OK)
        status = ds_pack_writer_commit(e.writer);
    ds_pack_writer_free(e.writer);
    ds_conversions_free(&e.conversions);
    ds_free(e.buffer);
    return status;
}

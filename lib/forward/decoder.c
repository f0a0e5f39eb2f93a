/* The forward pass: tokens to logits. */
#include "forward/norm.h"
#include "forward/pass.h"

dsv2_status ds_decoder_init(ds_decoder *decoder, const ds_config *config, const ds_weights *weights,
                            const ds_kernels *kernels, ds_pool *pool)
{
    *decoder = (ds_decoder){.config = config, .weights = weights, .kernels = kernels, .pool = pool};
    decoder->attention = ds_attention_kind_of(config);
    return ds_rope_init(&decoder->rope, config);
}

void ds_decoder_free(ds_decoder *decoder)
{
    ds_rope_free(&decoder->rope);
}

static dsv2_status embed(ds_rows *rows)
{
    dsv2_status status = ds_stage_begin(&rows->watch, DS_STAGE_EMBED);
    if (status != DSV2_OK)
        return status;
    for (uint32_t row = 0; row < rows->n; row++) {
        const ds_sequence *sequence = &rows->sequences[rows->sequence_of[row]];
        ds_matrix_row(rows->kernels, &rows->weights->embed_tokens,
                      (uint32_t)sequence->tokens[row - sequence->first_row],
                      rows->hidden + (size_t)row * rows->config->hidden_size);
    }
    return DSV2_OK;
}

static void angles_task(void *context, size_t row, unsigned thread)
{
    (void)thread;
    ds_pass *pass = context;
    ds_rows *rows = &pass->rows;
    uint32_t half = rows->config->qk_rope_head_dim / 2;
    ds_rope_angles(&pass->decoder->rope, rows->config, rows->position[row], rows->rope_cos + row * half,
                   rows->rope_sin + row * half);
}

/* The angles of RoPE, which all layers share. */
static dsv2_status angles(ds_pass *pass)
{
    dsv2_status status = ds_stage_begin(&pass->rows.watch, DS_STAGE_ROPE);
    if (status == DSV2_OK)
        ds_pool_run(pass->decoder->pool, angles_task, pass, pass->rows.n);
    return status;
}

/* normed = RMSNorm(hidden) */
static dsv2_status norm(ds_rows *rows, const float *weight)
{
    uint32_t hidden = rows->config->hidden_size;
    dsv2_status status = ds_stage_begin(&rows->watch, DS_STAGE_NORM);
    if (status != DSV2_OK)
        return status;
    ds_norm_rows(rows->kernels, rows->pool, rows->config->rms_norm_eps, weight, rows->hidden, hidden, hidden, rows->n,
                 rows->normed, hidden);
    return DSV2_OK;
}

static void add_row(void *context, size_t row, unsigned thread)
{
    (void)thread;
    ds_rows *rows = context;
    uint32_t hidden = rows->config->hidden_size;
    rows->kernels->add_scaled(rows->hidden + row * hidden, rows->output + row * hidden, 1.0f, hidden);
}

/* hidden += output: the residual connection. */
static dsv2_status add(ds_rows *rows)
{
    dsv2_status status = ds_stage_begin(&rows->watch, DS_STAGE_ADD);
    if (status == DSV2_OK)
        ds_pool_run(rows->pool, add_row, rows, rows->n);
    return status;
}

static dsv2_status feed_forward(ds_pass *pass, uint32_t l)
{
    const ds_layer *layer = &pass->rows.weights->layers[l];
    return layer->is_moe ? ds_moe(&pass->rows, &pass->moe, &pass->ffn, l)
                         : ds_ffn_dense(&pass->rows, &pass->ffn, &layer->ffn);
}

/* h = h + attention(norm(h)), h = h + feed_forward(norm(h)) */
static dsv2_status run_layer(ds_pass *pass, uint32_t l)
{
    ds_rows *rows = &pass->rows;
    const ds_layer *layer = &rows->weights->layers[l];
    dsv2_status status = norm(rows, layer->input_norm);
    if (status == DSV2_OK)
        status = pass->decoder->attention->run(rows, l, pass->attention);
    if (status == DSV2_OK)
        status = add(rows);
    if (status == DSV2_OK)
        status = norm(rows, layer->post_attention_norm);
    if (status == DSV2_OK)
        status = feed_forward(pass, l);
    if (status == DSV2_OK)
        status = add(rows);
    return status;
}

/* Tells every sequence what the router chose for its rows. */
static void report_routes(const ds_rows *rows, uint32_t layer, const ds_routes *routes)
{
    for (size_t s = 0; s < rows->n_sequences; s++) {
        const ds_sequence *sequence = &rows->sequences[s];
        if (!sequence->stopped && sequence->routed != NULL)
            sequence->routed(sequence->owner, sequence, layer, routes);
    }
}

/* Asks every sequence whether to go on; *all_stopped if none does. */
static dsv2_status ask_to_go_on(ds_rows *rows, bool *all_stopped)
{
    *all_stopped = true;
    for (size_t s = 0; s < rows->n_sequences; s++) {
        ds_sequence *sequence = &rows->sequences[s];
        dsv2_status status = DSV2_OK;
        if (!sequence->stopped && sequence->stop != NULL)
            status = sequence->stop(sequence->owner, sequence->n_rows, &sequence->stopped);
        if (status != DSV2_OK)
            return status;
        *all_stopped = *all_stopped && sequence->stopped;
    }
    return DSV2_OK;
}

dsv2_status ds_decoder_forward(ds_pass *pass, ds_sequence *sequences, size_t n_sequences)
{
    const ds_decoder *decoder = pass->decoder;
    ds_rows *rows = &pass->rows;
    rows->watch = rows->linear.watch = decoder->watch;
    ds_rows_set(rows, sequences, n_sequences);
    for (size_t s = 0; s < n_sequences; s++)
        decoder->attention->choose_form(rows->config, &sequences[s]);
    dsv2_status status = embed(rows);
    if (status == DSV2_OK)
        status = angles(pass);
    for (uint32_t l = 0; l < rows->config->num_hidden_layers && status == DSV2_OK; l++) {
        ds_pool_begin_turn(rows->pool); /* other sessions have theirs between layers */
        status = run_layer(pass, l);
        (void)ds_pool_end_turn(rows->pool);
        if (status == DSV2_OK)
            ds_rows_stop_faulty(rows, l);
        if (status == DSV2_OK && rows->weights->layers[l].is_moe)
            report_routes(rows, l, &pass->moe.routes);
        bool all_stopped = false;
        if (status == DSV2_OK)
            status = ask_to_go_on(rows, &all_stopped);
        if (all_stopped)
            return status;
    }
    return status == DSV2_OK ? ds_head(rows, &pass->head) : status;
}

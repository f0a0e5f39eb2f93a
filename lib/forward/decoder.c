/* The forward pass: tokens to logits. */
#include "forward/pass.h"

#include <string.h>

/* Lays the sequences' rows one after another. */
static void begin(ds_pass *pass, ds_sequence *sequences, size_t n_sequences)
{
    pass->sequences = sequences;
    pass->n_sequences = n_sequences;
    pass->n_rows = 0;
    for (size_t s = 0; s < n_sequences; s++) {
        sequences[s].first_row = pass->n_rows;
        sequences[s].stopped = false;
        ds_mla_choose_form(pass->decoder, &sequences[s]);
        for (uint32_t i = 0; i < sequences[s].n_rows; i++) {
            pass->row_sequence[pass->n_rows] = (uint32_t)s;
            pass->row_position[pass->n_rows++] = sequences[s].first_position + i;
        }
    }
}

static void embed(ds_pass *pass)
{
    const ds_decoder *decoder = pass->decoder;
    for (uint32_t row = 0; row < pass->n_rows; row++) {
        const ds_sequence *sequence = &pass->sequences[pass->row_sequence[row]];
        ds_matrix_row(decoder->kernels, &decoder->weights->embed_tokens, (uint32_t)sequence->tokens[row - sequence->first_row],
                      pass->hidden + (size_t)row * decoder->config->hidden_size);
    }
}

static void norm(ds_pass *pass, const float *weight)
{
    uint32_t hidden = pass->decoder->config->hidden_size;
    ds_norm_rows(pass, weight, pass->hidden, hidden, hidden, pass->n_rows, pass->normed, hidden);
}

static void add_row(void *context, size_t row, unsigned thread)
{
    (void)thread;
    ds_pass *pass = context;
    uint32_t hidden = pass->decoder->config->hidden_size;
    pass->decoder->kernels->add_scaled(pass->hidden + row * hidden, pass->block_out + row * hidden, 1.0f, hidden);
}

/* hidden += block_out: the residual connection. */
static void add(ds_pass *pass) { ds_pool_run(pass->decoder->pool, add_row, pass, pass->n_rows); }

/* Tells every sequence what the router chose for its rows. */
static void report_routes(const ds_pass *pass, uint32_t layer)
{
    for (size_t s = 0; s < pass->n_sequences; s++) {
        const ds_sequence *sequence = &pass->sequences[s];
        if (!sequence->stopped && sequence->routed != NULL)
            sequence->routed(sequence->owner, sequence, layer, &pass->routes);
    }
}

/* Asks every sequence whether to go on; true if none does. */
static bool all_stopped(ds_pass *pass)
{
    bool all = true;
    for (size_t s = 0; s < pass->n_sequences; s++) {
        ds_sequence *sequence = &pass->sequences[s];
        if (!sequence->stopped && sequence->stop != NULL)
            sequence->stopped = sequence->stop(sequence->owner, sequence->n_rows);
        all = all && sequence->stopped;
    }
    return all;
}

static bool wants_logits(const ds_sequence *sequence, uint32_t row)
{
    bool last = row == sequence->first_row + sequence->n_rows - 1;
    return !sequence->stopped && (sequence->all_logits != NULL || (last && sequence->last_logits != NULL));
}

static void store_logits(const ds_pass *pass, uint32_t row, const float *logits)
{
    const ds_sequence *sequence = &pass->sequences[pass->row_sequence[row]];
    size_t vocab = pass->decoder->config->vocab_size, i = row - sequence->first_row;
    if (sequence->all_logits != NULL)
        memcpy(sequence->all_logits + i * vocab, logits, vocab * sizeof *logits);
    if (sequence->last_logits != NULL && i == sequence->n_rows - 1)
        memcpy(sequence->last_logits, logits, vocab * sizeof *logits);
}

/* Final norm and output head, for the rows whose logits somebody wants. */
static void head(ds_pass *pass)
{
    const ds_decoder *decoder = pass->decoder;
    uint32_t hidden = decoder->config->hidden_size, vocab = decoder->config->vocab_size, n = 0;
    for (uint32_t row = 0; row < pass->n_rows; row++)
        if (wants_logits(&pass->sequences[pass->row_sequence[row]], row))
            pass->logit_rows[n++] = row;
    for (uint32_t first = 0; first < n; first += DS_LOGIT_ROWS) {
        uint32_t rows = n - first < DS_LOGIT_ROWS ? n - first : DS_LOGIT_ROWS;
        for (uint32_t i = 0; i < rows; i++)
            ds_norm_rows(pass, decoder->weights->norm, pass->hidden + (size_t)pass->logit_rows[first + i] * hidden, hidden, hidden, 1,
                         pass->normed + (size_t)i * hidden, hidden);
        ds_linear(pass, &decoder->weights->lm_head, NULL, pass->normed, hidden, rows, pass->logits, vocab);
        for (uint32_t i = 0; i < rows; i++)
            store_logits(pass, pass->logit_rows[first + i], pass->logits + (size_t)i * vocab);
    }
}

/* The angles of RoPE, which all layers share. */
static void angles_task(void *context, size_t row, unsigned thread)
{
    (void)thread;
    ds_pass *pass = context;
    const ds_decoder *decoder = pass->decoder;
    uint32_t half = decoder->config->qk_rope_head_dim / 2;
    ds_rope_angles(&decoder->rope, decoder->config, pass->row_position[row], pass->rope_cos + row * half, pass->rope_sin + row * half);
}

dsv2_status ds_decoder_forward(ds_pass *pass, ds_sequence *sequences, size_t n_sequences)
{
    const ds_decoder *decoder = pass->decoder;
    begin(pass, sequences, n_sequences);
    embed(pass);
    ds_pool_run(decoder->pool, angles_task, pass, pass->n_rows);
    for (uint32_t l = 0; l < decoder->config->num_hidden_layers; l++) {
        const ds_layer *layer = &decoder->weights->layers[l];
        norm(pass, layer->input_norm);
        ds_mla(pass, l);
        add(pass);
        norm(pass, layer->post_attention_norm);
        dsv2_status status = DSV2_OK;
        if (layer->is_moe)
            status = ds_moe(pass, l);
        else
            ds_ffn_dense(pass, &layer->ffn);
        if (status != DSV2_OK)
            return status;
        add(pass);
        if (layer->is_moe)
            report_routes(pass, l);
        if (all_stopped(pass))
            return DSV2_OK;
    }
    head(pass);
    return DSV2_OK;
}

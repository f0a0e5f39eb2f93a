#include "forward/head.h"

#include "forward/norm.h"

#include <math.h>
#include <string.h>

/* Rows of logits computed at a time when every token's are asked for. */
enum { LOGIT_ROWS = 32 };

void ds_head_lay_out(ds_head_memory *memory, ds_layout *layout)
{
    uint64_t m = layout->max_rows;
    memory->rows = ds_lay_out(layout, m, sizeof(uint32_t));
    memory->logits = ds_lay_out(layout, (m < LOGIT_ROWS ? m : LOGIT_ROWS) * layout->config->vocab_size, sizeof(float));
}

static bool wants_logits(const ds_sequence *sequence, uint32_t row)
{
    bool last = row == sequence->first_row + sequence->n_rows - 1;
    return !sequence->stopped && (sequence->all_logits != NULL || (last && sequence->last_logits != NULL));
}

static void give_logits(ds_rows *rows, uint32_t row, const float *logits)
{
    const ds_sequence *sequence = &rows->sequences[rows->sequence_of[row]];
    size_t vocab = rows->config->vocab_size, i = row - sequence->first_row;
    float largest = ds_largest_magnitude(logits, vocab);
    if (!isfinite(largest))
        ds_rows_fault(rows, row, (ds_fault){.kind = DS_FAULT_LOGITS, .largest = largest});
    if (sequence->all_logits != NULL)
        memcpy(sequence->all_logits + i * vocab, logits, vocab * sizeof *logits);
    if (sequence->last_logits != NULL && i == sequence->n_rows - 1)
        memcpy(sequence->last_logits, logits, vocab * sizeof *logits);
}

/* Logits of n <= LOGIT_ROWS wanted rows. */
static dsv2_status some_rows(ds_rows *rows, ds_head_memory *memory, const uint32_t *wanted, uint32_t n)
{
    uint32_t hidden = rows->config->hidden_size, vocab = rows->config->vocab_size;
    for (uint32_t i = 0; i < n; i++)
        ds_norm_rows(rows->kernels, rows->pool, rows->config->rms_norm_eps, rows->weights->norm,
                     rows->hidden + (size_t)wanted[i] * hidden, hidden, hidden, 1, rows->normed + (size_t)i * hidden,
                     hidden);
    dsv2_status status = ds_linear(&rows->linear, &rows->weights->lm_head, NULL, rows->normed, hidden, n,
                                   memory->logits, vocab);
    for (uint32_t i = 0; i < n && status == DSV2_OK; i++)
        give_logits(rows, wanted[i], memory->logits + (size_t)i * vocab);
    return status;
}

dsv2_status ds_head(ds_rows *rows, ds_head_memory *memory)
{
    dsv2_status status = ds_stage_begin(&rows->watch, DS_STAGE_HEAD);
    uint32_t n = 0;
    for (uint32_t row = 0; row < rows->n; row++)
        if (wants_logits(&rows->sequences[rows->sequence_of[row]], row))
            memory->rows[n++] = row;
    for (uint32_t first = 0; first < n && status == DSV2_OK; first += LOGIT_ROWS)
        status = some_rows(rows, memory, memory->rows + first, n - first < LOGIT_ROWS ? n - first : LOGIT_ROWS);
    if (status == DSV2_OK)
        ds_rows_stop_faulty(rows, rows->config->num_hidden_layers);
    return status;
}

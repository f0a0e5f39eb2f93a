#include "forward/rows.h"

#include <assert.h>

void ds_rows_lay_out(ds_rows *rows, ds_layout *layout, size_t stage_floats)
{
    const ds_config *config = layout->config;
    uint64_t m = layout->max_rows, half = config->qk_rope_head_dim / 2;
    rows->max = layout->max_rows;
    rows->sequence_of = ds_lay_out(layout, m, sizeof(uint32_t));
    rows->position = ds_lay_out(layout, m, sizeof(size_t));
    rows->faults = ds_lay_out(layout, m, sizeof(ds_fault));
    rows->hidden = ds_lay_out(layout, m * config->hidden_size, sizeof(float));
    rows->normed = ds_lay_out(layout, m * config->hidden_size, sizeof(float));
    rows->output = ds_lay_out(layout, m * config->hidden_size, sizeof(float));
    rows->rope_cos = ds_lay_out(layout, m * half, sizeof(float));
    rows->rope_sin = ds_lay_out(layout, m * half, sizeof(float));
    ds_linear_lay_out(&rows->linear, layout, stage_floats);
}

void ds_rows_set(ds_rows *rows, ds_sequence *sequences, size_t n_sequences)
{
    rows->sequences = sequences;
    rows->n_sequences = n_sequences;
    rows->n = 0;
    for (size_t s = 0; s < n_sequences; s++) {
        assert(sequences[s].n_rows <= rows->max - rows->n);
        sequences[s].first_row = rows->n;
        sequences[s].stopped = false;
        sequences[s].fault = (ds_fault){.kind = DS_FAULT_NONE};
        for (uint32_t i = 0; i < sequences[s].n_rows; i++) {
            rows->sequence_of[rows->n] = (uint32_t)s;
            rows->faults[rows->n].kind = DS_FAULT_NONE;
            rows->position[rows->n++] = sequences[s].first_position + i;
        }
    }
}

void ds_rows_fault(ds_rows *rows, size_t row, ds_fault fault)
{
    if (rows->faults[row].kind == DS_FAULT_NONE)
        rows->faults[row] = fault;
}

void ds_rows_stop_faulty(ds_rows *rows, uint32_t layer)
{
    for (uint32_t row = 0; row < rows->n; row++) {
        ds_fault *fault = &rows->faults[row];
        ds_sequence *sequence = &rows->sequences[rows->sequence_of[row]];
        if (fault->kind == DS_FAULT_NONE)
            continue;
        if (!sequence->stopped) {
            fault->layer = layer;
            fault->position = rows->position[row];
            sequence->fault = *fault;
            sequence->stopped = true;
        }
        fault->kind = DS_FAULT_NONE;
    }
}

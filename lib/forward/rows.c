#include "forward/rows.h"

#include <assert.h>

void ds_rows_lay_out(ds_rows *rows, ds_layout *layout, size_t stage_floats)
{
    const ds_config *config = layout->config;
    uint64_t m = layout->max_rows, half = config->qk_rope_head_dim / 2;
    rows->max = layout->max_rows;
    rows->sequence_of = ds_lay_out(layout, m, sizeof(uint32_t));
    rows->position = ds_lay_out(layout, m, sizeof(size_t));
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
        for (uint32_t i = 0; i < sequences[s].n_rows; i++) {
            rows->sequence_of[rows->n] = (uint32_t)s;
            rows->position[rows->n++] = sequences[s].first_position + i;
        }
    }
}

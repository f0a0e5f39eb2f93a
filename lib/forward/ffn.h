/* SwiGLU networks over some rows: a dense layer's, the shared experts' and the routed experts' are all jobs of one
 * run. */
#ifndef DS_LIB_FORWARD_FFN_H
#define DS_LIB_FORWARD_FFN_H

#include "forward/rows.h"

/* One network applied to some rows. */
typedef struct ds_ffn_job {
    const ds_ffn_weights *weights;
    uint32_t n_rows;      /* rows of input: rows memory->slot_row[first_slot ...] of rows->normed */
    uint32_t first_slot;
    size_t first_hidden;  /* floats into memory->hidden: n_rows x intermediate */
    size_t first_x8;      /* blocks into memory->hidden_x8: n_rows x ds_prepared_blocks(intermediate) */
    size_t first_output;  /* floats into `output`: n_rows x hidden_size */
} ds_ffn_job;

typedef struct ds_ffn_slice ds_ffn_slice;

/* Working memory. A slot is one row of one job; there are at most max_rows * (num_experts_per_tok + 1). */
typedef struct ds_ffn_memory {
    ds_ffn_job *jobs; /* set by the caller of ds_ffn_run */
    uint32_t n_jobs, max_jobs;
    uint32_t *slot_row; /* [slots]: rows of the pass, grouped by job; set by the caller */
    uint64_t max_slots;

    /* Set by ds_ffn_run: where each slot's input and hidden row are, as floats and rounded. */
    const float **inputs, **hidden_rows;
    const ds_x8 **input_x8, **hidden_rows_x8;
    float *hidden;   /* silu(W_gate x) * W_up x */
    ds_x8 *hidden_x8; /* the same rounded to 8 bits, for an interleaved W_down */
    ds_ffn_slice *slices;
    uint64_t max_slices;
} ds_ffn_memory;

void ds_ffn_lay_out(ds_ffn_memory *memory, ds_layout *layout);

/* Floats of scratch that a thread needs besides ds_matmul's. */
size_t ds_ffn_stage_floats(void);

/* Runs every job's network on the job's rows: output = W_down (silu(W_gate x) * W_up x). */
dsv2_status ds_ffn_run(ds_rows *rows, ds_ffn_memory *memory, float *output);

/* rows->output = the network on rows->normed: a dense layer. */
dsv2_status ds_ffn_dense(ds_rows *rows, ds_ffn_memory *memory, const ds_ffn_weights *weights);

#endif

/* The rows of a pass: what every stage of a layer is given. m: rows in the pass. */
#ifndef DS_LIB_FORWARD_ROWS_H
#define DS_LIB_FORWARD_ROWS_H

#include "forward/linear.h"
#include "forward/sequence.h"
#include "weights/weights.h"

/* The most rows of a pass: enough to make matrix products out of prompts, few enough that working memory stays small.
 * An input is always cut at multiples of this from its own beginning, whatever else is in the pass. */
enum { DS_PASS_ROWS = 512 };

typedef struct ds_rows {
    const ds_config *config;
    const ds_weights *weights;
    const ds_kernels *kernels;
    ds_pool *pool;
    float softmax_scale; /* of ds_rope */
    ds_stage_watch watch;

    ds_sequence *sequences;
    size_t n_sequences;
    uint32_t n, max;      /* rows at work, and how many there is room for */
    uint32_t *sequence_of; /* [m]: index of the row's sequence */
    size_t *position;      /* [m]: the row's position in its session */
    ds_fault *faults;      /* [m]: what ds_rows_fault said of each row since the last ds_rows_stop_faulty */

    float *hidden;    /* [m][hidden_size]: the residual stream h */
    float *normed;    /* [m][hidden_size]: input of the next stage, after its norm */
    float *output;    /* [m][hidden_size]: of attention or feed-forward part, not yet added to h */
    float *rope_cos, *rope_sin; /* [m][qk_rope_head_dim / 2] */
    ds_linear_memory linear;
} ds_rows;

/* stage_floats: as ds_linear_lay_out's. */
void ds_rows_lay_out(ds_rows *rows, ds_layout *layout, size_t stage_floats);

/* Lays the sequences' tokens one after another. */
void ds_rows_set(ds_rows *rows, ds_sequence *sequences, size_t n_sequences);

/* Says that a row has a fault; a row's first fault stays. Tasks may say so, each of rows that are its own. */
void ds_rows_fault(ds_rows *rows, size_t row, ds_fault fault);

/* Stops the sequences of rows that have a fault; each gets the fault of its first such row. */
void ds_rows_stop_faulty(ds_rows *rows, uint32_t layer);

#endif

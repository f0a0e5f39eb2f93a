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

#endif

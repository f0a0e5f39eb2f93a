/* Linear maps over all threads, and the working memory that they share with whatever multiplies. m: rows of input. */
#ifndef DS_LIB_FORWARD_LINEAR_H
#define DS_LIB_FORWARD_LINEAR_H

#include "forward/layout.h"
#include "forward/stage.h"
#include "kernels/kernels.h"

/* Rows of weights that one task of a parallel region multiplies: small enough to share out evenly, large enough to
 * pay. */
enum { DS_TASK_ROWS = 64 };

typedef struct ds_linear_memory {
    const ds_kernels *kernels;
    ds_pool *pool;
    ds_stage_watch watch;

    const float **row_pointers; /* [max_rows]: the present map's inputs */
    ds_x8 *x8;                  /* [max_rows][x8_stride]: the same rounded to 8 bits, for interleaved weights */
    size_t x8_stride;           /* blocks between rows, of the widest input */
    const ds_x8 **x8_rows;      /* [max_rows] */

    /* Each thread's own: what ds_matmul asks for, then stage_floats for the stage at work. */
    float *scratch;
    size_t matmul_floats, stage_floats;
} ds_linear_memory;

/* stage_floats: the most that any stage wants for a thread. */
void ds_linear_lay_out(ds_linear_memory *memory, ds_layout *layout, size_t stage_floats);

/* A thread's scratch for ds_matmul, and that of the stage at work. */
float *ds_matmul_scratch_of(const ds_linear_memory *memory, unsigned thread);
float *ds_stage_scratch_of(const ds_linear_memory *memory, unsigned thread);

/* out[i] = W x[i] (+ bias) for m rows; x[i] is x + i * x_stride. */
dsv2_status ds_linear(ds_linear_memory *memory, const ds_matrix *w, const float *bias, const float *x, size_t x_stride,
                      size_t m, float *out, size_t out_stride);

/* Rounds m rows of n floats to memory->x8 and points memory->x8_rows at them. */
void ds_round_rows(ds_linear_memory *memory, const float *x, size_t x_stride, uint32_t n, size_t m);

#endif

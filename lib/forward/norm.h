/* RMSNorm. A row whose squares are too large for a float becomes NaN, so that the pass notices the row: the formula
 * alone would make zeros of such a row. */
#ifndef DS_LIB_FORWARD_NORM_H
#define DS_LIB_FORWARD_NORM_H

#include "kernels/kernels.h"

/* out = RMSNorm(x), n elements. out may be x. */
void ds_norm_row(const ds_kernels *kernels, float epsilon, const float *weight, const float *x, size_t n, float *out);

/* Over all threads: out[i] = RMSNorm(x[i]) for m rows of n elements; x[i] is x + i * x_stride. out may be x. */
void ds_norm_rows(const ds_kernels *kernels, ds_pool *pool, float epsilon, const float *weight, const float *x,
                  size_t x_stride, size_t n, size_t m, float *out, size_t out_stride);

#endif

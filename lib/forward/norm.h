/* RMSNorm over all threads. */
#ifndef DS_LIB_FORWARD_NORM_H
#define DS_LIB_FORWARD_NORM_H

#include "kernels/kernels.h"

/* out[i] = RMSNorm(x[i]) for m rows of n elements; x[i] is x + i * x_stride. out may be x. */
void ds_norm_rows(const ds_kernels *kernels, ds_pool *pool, float epsilon, const float *weight, const float *x,
                  size_t x_stride, size_t n, size_t m, float *out, size_t out_stride);

#endif

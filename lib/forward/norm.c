#include "forward/norm.h"

typedef struct norm {
    const ds_kernels *kernels;
    float epsilon;
    const float *weight, *x;
    size_t x_stride, n;
    float *out;
    size_t out_stride;
} norm;

static void norm_row(void *context, size_t row, unsigned thread)
{
    (void)thread;
    const norm *n = context;
    n->kernels->rms_norm(n->out + row * n->out_stride, n->x + row * n->x_stride, n->weight, n->epsilon, n->n);
}

void ds_norm_rows(const ds_kernels *kernels, ds_pool *pool, float epsilon, const float *weight, const float *x,
                  size_t x_stride, size_t n, size_t m, float *out, size_t out_stride)
{
    norm context = {kernels, epsilon, weight, x, x_stride, n, out, out_stride};
    ds_pool_run(pool, norm_row, &context, m);
}

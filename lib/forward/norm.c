#include "forward/norm.h"

#include <float.h>
#include <math.h>

typedef struct norm {
    const ds_kernels *kernels;
    float epsilon;
    const float *weight, *x;
    size_t x_stride, n;
    float *out;
    size_t out_stride;
} norm;

/* Whether the sum of the squares is too large for a float. */
static bool squares_overflow(const float *x, size_t n)
{
    const float small = 1e16f; /* the squares of any row that fits into memory have a finite sum below this */
    float largest = ds_largest_magnitude(x, n);
    if (!(largest > small && largest < INFINITY))
        return false;
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    return sum > (double)FLT_MAX / 2;
}

void ds_norm_row(const ds_kernels *kernels, float epsilon, const float *weight, const float *x, size_t n, float *out)
{
    bool overflow = squares_overflow(x, n);
    kernels->rms_norm(out, x, weight, epsilon, n);
    for (size_t i = 0; overflow && i < n; i++)
        out[i] = NAN;
}

static void norm_row(void *context, size_t row, unsigned thread)
{
    (void)thread;
    const norm *n = context;
    ds_norm_row(n->kernels, n->epsilon, n->weight, n->x + row * n->x_stride, n->n, n->out + row * n->out_stride);
}

void ds_norm_rows(const ds_kernels *kernels, ds_pool *pool, float epsilon, const float *weight, const float *x,
                  size_t x_stride, size_t n, size_t m, float *out, size_t out_stride)
{
    norm context = {kernels, epsilon, weight, x, x_stride, n, out, out_stride};
    ds_pool_run(pool, norm_row, &context, m);
}

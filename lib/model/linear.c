#include "model/pass.h"

typedef struct linear {
    const dsv2_pass *pass;
    const dsv2_matrix *w;
    const float *bias;
    size_t m;
    float *out;
    size_t out_stride;
} linear;

static void linear_task(void *context, size_t task, unsigned thread)
{
    const linear *l = context;
    const dsv2_pass *pass = l->pass;
    uint32_t first = (uint32_t)task * DSV2_TASK_ROWS;
    uint32_t end = l->w->rows - first < DSV2_TASK_ROWS ? l->w->rows : first + DSV2_TASK_ROWS;
    if (dsv2_type_is_packed(l->w->type))
        dsv2_matmul_prepared(pass->model->kernels, l->out + first, l->out_stride, pass->x8_rows, l->m, l->w, first, end);
    else
        dsv2_matmul(pass->model->kernels, l->out + first, l->out_stride, pass->row_pointers, l->m, l->w, first, end,
                    dsv2_thread_scratch(pass, thread));
    if (l->bias != NULL)
        for (size_t i = 0; i < l->m; i++)
            for (uint32_t j = first; j < end; j++)
                l->out[i * l->out_stride + j] += l->bias[j];
}

void dsv2_linear(dsv2_pass *pass, const dsv2_matrix *w, const float *bias, const float *x, size_t x_stride, size_t m, float *out,
                 size_t out_stride)
{
    if (dsv2_type_is_packed(w->type))
        dsv2_prepare_rows(pass, x, x_stride, w->cols, m);
    else
        for (size_t i = 0; i < m; i++)
            pass->row_pointers[i] = x + i * x_stride;
    linear l = {pass, w, bias, m, out, out_stride};
    dsv2_pool_run(pass->model->pool, linear_task, &l, (w->rows + DSV2_TASK_ROWS - 1) / DSV2_TASK_ROWS);
}

typedef struct prepare {
    dsv2_pass *pass;
    const float *x;
    size_t x_stride;
    uint32_t n;
} prepare;

static void prepare_row(void *context, size_t row, unsigned thread)
{
    (void)thread;
    const prepare *p = context;
    dsv2_x8 *out = p->pass->x8 + row * p->pass->x8_stride;
    p->pass->model->kernels->prepare_row(out, p->x + row * p->x_stride, p->n);
    p->pass->x8_rows[row] = out;
}

void dsv2_prepare_rows(dsv2_pass *pass, const float *x, size_t x_stride, uint32_t n, size_t m)
{
    prepare context = {pass, x, x_stride, n};
    dsv2_pool_run(pass->model->pool, prepare_row, &context, m);
}

typedef struct norm {
    const dsv2_model *model;
    const float *weight, *x;
    size_t x_stride, n;
    float *out;
    size_t out_stride;
} norm;

static void norm_row(void *context, size_t row, unsigned thread)
{
    (void)thread;
    const norm *n = context;
    n->model->kernels->rms_norm(n->out + row * n->out_stride, n->x + row * n->x_stride, n->weight, n->model->config.rms_norm_eps, n->n);
}

void dsv2_norm_rows(dsv2_pass *pass, const float *weight, const float *x, size_t x_stride, size_t n, size_t m, float *out,
                    size_t out_stride)
{
    norm context = {pass->model, weight, x, x_stride, n, out, out_stride};
    dsv2_pool_run(pass->model->pool, norm_row, &context, m);
}

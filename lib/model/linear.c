#include "model/pass.h"

typedef struct linear {
    const ds_pass *pass;
    const ds_matrix *w;
    const float *bias;
    size_t m;
    float *out;
    size_t out_stride;
    uint32_t task_rows; /* of W */
} linear;

/* DS_TASK_ROWS, or fewer of a small matrix (the router's, W^DKV) so that every thread gets some tasks. */
static uint32_t task_rows(const ds_pass *pass, uint32_t rows)
{
    enum { EVEN_TASKS = 8 };
    uint32_t n = DS_TASK_ROWS, wanted = EVEN_TASKS * ds_pool_threads(pass->model->pool);
    while (n > DS_PANEL_ROWS && rows / n < wanted)
        n /= 2;
    return n;
}

static void linear_task(void *context, size_t task, unsigned thread)
{
    const linear *l = context;
    const ds_pass *pass = l->pass;
    uint32_t first = (uint32_t)task * l->task_rows;
    uint32_t end = l->w->rows - first < l->task_rows ? l->w->rows : first + l->task_rows;
    if (ds_type_is_interleaved(l->w->type))
        ds_matmul_prepared(pass->model->kernels, l->out + first, l->out_stride, pass->x8_rows, l->m, l->w, first, end);
    else
        ds_matmul(pass->model->kernels, l->out + first, l->out_stride, pass->row_pointers, l->m, l->w, first, end,
                  ds_thread_scratch(pass, thread));
    if (l->bias != NULL)
        for (size_t i = 0; i < l->m; i++)
            for (uint32_t j = first; j < end; j++)
                l->out[i * l->out_stride + j] += l->bias[j];
}

void ds_linear(ds_pass *pass, const ds_matrix *w, const float *bias, const float *x, size_t x_stride, size_t m, float *out,
               size_t out_stride)
{
    if (ds_type_is_interleaved(w->type))
        ds_prepare_rows(pass, x, x_stride, w->cols, m);
    else
        for (size_t i = 0; i < m; i++)
            pass->row_pointers[i] = x + i * x_stride;
    linear l = {pass, w, bias, m, out, out_stride, task_rows(pass, w->rows)};
    ds_pool_run(pass->model->pool, linear_task, &l, (w->rows + l.task_rows - 1) / l.task_rows);
}

typedef struct prepare {
    ds_pass *pass;
    const float *x;
    size_t x_stride;
    uint32_t n;
} prepare;

static void prepare_row(void *context, size_t row, unsigned thread)
{
    (void)thread;
    const prepare *p = context;
    ds_x8 *out = p->pass->x8 + row * p->pass->x8_stride;
    p->pass->model->kernels->prepare_row(out, p->x + row * p->x_stride, p->n);
    p->pass->x8_rows[row] = out;
}

void ds_prepare_rows(ds_pass *pass, const float *x, size_t x_stride, uint32_t n, size_t m)
{
    prepare context = {pass, x, x_stride, n};
    ds_pool_run(pass->model->pool, prepare_row, &context, m);
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

void ds_norm_rows(ds_pass *pass, const float *weight, const float *x, size_t x_stride, size_t n, size_t m, float *out,
                  size_t out_stride)
{
    norm context = {pass->model, weight, x, x_stride, n, out, out_stride};
    ds_pool_run(pass->model->pool, norm_row, &context, m);
}

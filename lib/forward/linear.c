#include "forward/linear.h"

#include <assert.h>

void ds_linear_lay_out(ds_linear_memory *memory, ds_layout *layout, size_t stage_floats)
{
    enum { LINE_FLOATS = 16 };
    const ds_config *config = layout->config;
    uint64_t m = layout->max_rows;
    size_t widest = ds_max(ds_max(config->hidden_size, config->q_lora_rank),
                           (size_t)config->num_attention_heads * config->v_head_dim);
    memory->row_pointers = ds_lay_out(layout, m, sizeof(float *));
    memory->x8_stride = ds_prepared_blocks((uint32_t)widest);
    memory->x8 = ds_lay_out(layout, layout->rounds ? m * memory->x8_stride : 0, sizeof(ds_x8));
    memory->x8_rows = ds_lay_out(layout, m, sizeof(ds_x8 *));
    memory->matmul_floats = (layout->matmul_scratch + LINE_FLOATS - 1) / LINE_FLOATS * LINE_FLOATS;
    memory->stage_floats = (stage_floats + LINE_FLOATS - 1) / LINE_FLOATS * LINE_FLOATS;
    memory->scratch = ds_lay_out(layout, (uint64_t)(memory->matmul_floats + memory->stage_floats) * layout->n_threads,
                                 sizeof(float));
}

float *ds_matmul_scratch_of(const ds_linear_memory *memory, unsigned thread)
{
    return memory->scratch + (memory->matmul_floats + memory->stage_floats) * thread;
}

float *ds_stage_scratch_of(const ds_linear_memory *memory, unsigned thread)
{
    return ds_matmul_scratch_of(memory, thread) + memory->matmul_floats;
}

typedef struct linear {
    const ds_linear_memory *memory;
    const ds_matrix *w;
    const float *bias;
    size_t m;
    float *out;
    size_t out_stride;
    uint32_t task_rows; /* of W */
} linear;

/* DS_TASK_ROWS, or fewer of a small matrix (the router's, W^DKV) so that every thread gets some tasks. */
static uint32_t task_rows(const ds_linear_memory *memory, uint32_t rows)
{
    enum { EVEN_TASKS = 8 };
    uint32_t n = DS_TASK_ROWS, wanted = EVEN_TASKS * ds_pool_threads(memory->pool);
    while (n > DS_PANEL_ROWS && rows / n < wanted)
        n /= 2;
    return n;
}

static void linear_task(void *context, size_t task, unsigned thread)
{
    const linear *l = context;
    const ds_linear_memory *memory = l->memory;
    uint32_t first = (uint32_t)task * l->task_rows;
    uint32_t end = l->w->rows - first < l->task_rows ? l->w->rows : first + l->task_rows;
    if (ds_type_is_interleaved(l->w->type))
        ds_matmul_prepared(memory->kernels, l->out + first, l->out_stride, memory->x8_rows, l->m, l->w, first, end);
    else
        ds_matmul(memory->kernels, l->out + first, l->out_stride, memory->row_pointers, l->m, l->w, first, end,
                  ds_matmul_scratch_of(memory, thread));
    if (l->bias != NULL)
        for (size_t i = 0; i < l->m; i++)
            for (uint32_t j = first; j < end; j++)
                l->out[i * l->out_stride + j] += l->bias[j];
}

dsv2_status ds_linear(ds_linear_memory *memory, const ds_matrix *w, const float *bias, const float *x, size_t x_stride,
                      size_t m, float *out, size_t out_stride)
{
    dsv2_status status = ds_stage_begin(&memory->watch, DS_STAGE_LINEAR);
    if (status != DSV2_OK)
        return status;
    assert(ds_matmul_scratch(w) <= memory->matmul_floats);
    if (ds_type_is_interleaved(w->type))
        ds_round_rows(memory, x, x_stride, w->cols, m);
    else
        for (size_t i = 0; i < m; i++)
            memory->row_pointers[i] = x + i * x_stride;
    linear l = {memory, w, bias, m, out, out_stride, task_rows(memory, w->rows)};
    ds_pool_run(memory->pool, linear_task, &l, (w->rows + l.task_rows - 1) / l.task_rows);
    return DSV2_OK;
}

typedef struct rounding {
    ds_linear_memory *memory;
    const float *x;
    size_t x_stride;
    uint32_t n;
} rounding;

static void round_task(void *context, size_t row, unsigned thread)
{
    (void)thread;
    const rounding *r = context;
    ds_x8 *out = r->memory->x8 + row * r->memory->x8_stride;
    r->memory->kernels->prepare_row(out, r->x + row * r->x_stride, r->n);
    r->memory->x8_rows[row] = out;
}

void ds_round_rows(ds_linear_memory *memory, const float *x, size_t x_stride, uint32_t n, size_t m)
{
    assert(ds_prepared_blocks(n) <= memory->x8_stride);
    rounding context = {memory, x, x_stride, n};
    ds_pool_run(memory->pool, round_task, &context, m);
}

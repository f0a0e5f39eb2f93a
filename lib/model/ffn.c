/* SwiGLU networks over groups of rows: dense layers, shared experts and routed experts are all jobs for the same two parallel
 * regions, cut into slices of weights so that threads share the work evenly whatever the routing. */
#include "model/pass.h"

/* A slice is a whole number of the blocks in which rows are rounded to 8 bits: each can round its own part of the hidden rows. */
_Static_assert(DS_TASK_ROWS % DS_BLOCK_COLS == 0, "slices and blocks of activations");

/* Going from one matrix to another costs what the processor had read ahead: with few rows of activations, where reading is all, slices
 * of several tasks' length are a tenth faster. So long ones, if every thread still gets enough to share the work evenly. */
enum { LONG_TASK_ROWS = 4 * DS_TASK_ROWS, LONG_MOST_INPUTS = DS_PASS_ROWS * DS_TASK_ROWS / LONG_TASK_ROWS, EVEN_SLICES = 8 };

static uint32_t slice_rows(const ds_pass *pass, const ds_ffn_job *job, uint32_t rows)
{
    uint64_t slices = (uint64_t)pass->n_ffn_jobs * (rows / LONG_TASK_ROWS);
    bool even = slices >= (uint64_t)EVEN_SLICES * ds_pool_threads(pass->model->pool);
    return even && job->n_rows <= LONG_MOST_INPUTS ? LONG_TASK_ROWS : DS_TASK_ROWS;
}

/* Cuts a job's matrix of `rows` rows. */
static uint32_t add_slices(ds_pass *pass, uint32_t n_slices, uint32_t job, uint32_t rows)
{
    uint32_t step = slice_rows(pass, &pass->ffn_jobs[job], rows);
    for (uint32_t first = 0; first < rows; first += step)
        pass->ffn_slices[n_slices++] = (ds_ffn_slice){job, first, rows - first < step ? rows : first + step};
    return n_slices;
}

/* Some rows of y = W x for all rows x of a job, given both as floats and, if W is packed, as rounded. */
static void multiply(const ds_pass *pass, const ds_matrix *w, ds_ffn_slice slice, const float *const *x, const ds_x8 *const *x8,
                     uint32_t n_rows, float *out, size_t out_stride, float *scratch)
{
    if (ds_type_is_interleaved(w->type))
        ds_matmul_prepared(pass->model->kernels, out, out_stride, x8, n_rows, w, slice.first, slice.end);
    else
        ds_matmul(pass->model->kernels, out, out_stride, x, n_rows, w, slice.first, slice.end, scratch);
}

/* Some columns of silu(W_gate x) * W_up x for all rows of a job. */
static void gate_up_task(void *context, size_t task, unsigned thread)
{
    ds_pass *pass = context;
    const ds_kernels *kernels = pass->model->kernels;
    ds_ffn_slice slice = pass->ffn_slices[task];
    const ds_ffn_job *job = &pass->ffn_jobs[slice.job];
    uint32_t n = slice.end - slice.first, intermediate = job->weights->gate.rows, n_rows = job->n_rows;
    float *up = ds_thread_scratch(pass, thread), *scratch = up + (size_t)DS_PASS_ROWS * DS_TASK_ROWS;
    float *gate = pass->ffn_hidden + job->first_hidden + slice.first;
    const float *const *x = pass->ffn_inputs + job->first_input;
    const ds_x8 *const *x8 = pass->ffn_input_x8 + job->first_input;
    multiply(pass, &job->weights->gate, slice, x, x8, n_rows, gate, intermediate, scratch);
    multiply(pass, &job->weights->up, slice, x, x8, n_rows, up, n, scratch);
    bool round = ds_type_is_interleaved(job->weights->down.type);
    ds_x8 *hidden_x8 = pass->ffn_x8 + job->first_x8 + slice.first / DS_BLOCK_COLS;
    for (uint32_t i = 0; i < n_rows; i++) {
        kernels->swiglu(gate + (size_t)i * intermediate, up + (size_t)i * n, n);
        if (round)
            kernels->prepare_row(hidden_x8 + i * ds_prepared_blocks(intermediate), gate + (size_t)i * intermediate, n);
    }
}

static void down_task(void *context, size_t task, unsigned thread)
{
    ds_pass *pass = context;
    ds_ffn_slice slice = pass->ffn_slices[task];
    const ds_ffn_job *job = &pass->ffn_jobs[slice.job];
    const ds_matrix *down = &job->weights->down;
    multiply(pass, down, slice, pass->ffn_hidden_rows + job->first_input, pass->ffn_hidden_x8 + job->first_input, job->n_rows,
             pass->ffn_output + job->first_output + slice.first, down->rows, ds_thread_scratch(pass, thread));
}

/* Where the slots of a job find their rows, before and after SwiGLU, as floats and rounded. */
static void point(ds_pass *pass, const ds_ffn_job *job)
{
    uint32_t hidden = pass->model->config.hidden_size, intermediate = job->weights->gate.rows;
    for (uint32_t i = 0; i < job->n_rows; i++) {
        uint32_t slot = job->first_input + i, row = pass->ffn_rows[slot];
        pass->ffn_inputs[slot] = pass->normed + (size_t)row * hidden;
        pass->ffn_input_x8[slot] = pass->x8 + row * pass->x8_stride;
        pass->ffn_hidden_rows[slot] = pass->ffn_hidden + job->first_hidden + (size_t)i * intermediate;
        pass->ffn_hidden_x8[slot] = pass->ffn_x8 + job->first_x8 + i * ds_prepared_blocks(intermediate);
    }
}

void ds_ffn_run(ds_pass *pass)
{
    uint32_t n_slices = 0;
    bool round = false;
    for (uint32_t j = 0; j < pass->n_ffn_jobs; j++) {
        const ds_ffn_job *job = &pass->ffn_jobs[j];
        n_slices = add_slices(pass, n_slices, j, job->weights->gate.rows);
        round = round || ds_type_is_interleaved(job->weights->gate.type) || ds_type_is_interleaved(job->weights->up.type);
        point(pass, job);
    }
    uint32_t hidden = pass->model->config.hidden_size;
    if (round)
        ds_prepare_rows(pass, pass->normed, hidden, hidden, pass->n_rows);
    ds_pool_run(pass->model->pool, gate_up_task, pass, n_slices);
    n_slices = 0;
    for (uint32_t j = 0; j < pass->n_ffn_jobs; j++)
        n_slices = add_slices(pass, n_slices, j, pass->ffn_jobs[j].weights->down.rows);
    ds_pool_run(pass->model->pool, down_task, pass, n_slices);
}

void ds_ffn_dense(ds_pass *pass, const ds_ffn_weights *weights)
{
    for (uint32_t row = 0; row < pass->n_rows; row++)
        pass->ffn_rows[row] = row;
    pass->ffn_jobs[0] = (ds_ffn_job){.weights = weights, .n_rows = pass->n_rows};
    pass->n_ffn_jobs = 1;
    float *output = pass->ffn_output;
    pass->ffn_output = pass->block_out; /* the one job's output needs no combining */
    ds_ffn_run(pass);
    pass->ffn_output = output;
}

/* SwiGLU networks over groups of rows: dense layers, shared experts and routed experts are all jobs for the same two parallel
 * regions, cut into slices of weights so that threads share the work evenly whatever the routing. */
#include "model/pass.h"

static uint32_t add_slices(dsv2_pass *pass, uint32_t n_slices, uint32_t job, uint32_t rows)
{
    for (uint32_t first = 0; first < rows; first += DSV2_TASK_ROWS)
        pass->ffn_slices[n_slices++] = (dsv2_ffn_slice){job, first, rows - first < DSV2_TASK_ROWS ? rows : first + DSV2_TASK_ROWS};
    return n_slices;
}

/* Some columns of silu(W_gate x) * W_up x for all rows of a job. */
static void gate_up_task(void *context, size_t task, unsigned thread)
{
    dsv2_pass *pass = context;
    const dsv2_kernels *kernels = pass->model->kernels;
    dsv2_ffn_slice slice = pass->ffn_slices[task];
    const dsv2_ffn_job *job = &pass->ffn_jobs[slice.job];
    uint32_t n = slice.end - slice.first, intermediate = job->weights->gate.rows;
    float *up = dsv2_thread_scratch(pass, thread), *scratch = up + (size_t)DSV2_PASS_ROWS * DSV2_TASK_ROWS;
    float *gate = pass->ffn_hidden + job->first_hidden + slice.first;
    const float *const *x = pass->ffn_inputs + job->first_input;
    dsv2_matmul(kernels, gate, intermediate, x, job->n_rows, &job->weights->gate, slice.first, slice.end, scratch);
    dsv2_matmul(kernels, up, n, x, job->n_rows, &job->weights->up, slice.first, slice.end, scratch);
    for (uint32_t i = 0; i < job->n_rows; i++)
        kernels->swiglu(gate + (size_t)i * intermediate, up + (size_t)i * n, n);
}

static void down_task(void *context, size_t task, unsigned thread)
{
    dsv2_pass *pass = context;
    dsv2_ffn_slice slice = pass->ffn_slices[task];
    const dsv2_ffn_job *job = &pass->ffn_jobs[slice.job];
    const dsv2_matrix *down = &job->weights->down;
    const float **hidden = pass->ffn_hidden_rows + job->first_input;
    dsv2_matmul(pass->model->kernels, pass->ffn_output + job->first_output + slice.first, down->rows, hidden, job->n_rows, down,
                slice.first, slice.end, dsv2_thread_scratch(pass, thread));
}

void dsv2_ffn_run(dsv2_pass *pass)
{
    uint32_t n_slices = 0;
    for (uint32_t j = 0; j < pass->n_ffn_jobs; j++) {
        const dsv2_ffn_job *job = &pass->ffn_jobs[j];
        n_slices = add_slices(pass, n_slices, j, job->weights->gate.rows);
        for (uint32_t i = 0; i < job->n_rows; i++)
            pass->ffn_hidden_rows[job->first_input + i] = pass->ffn_hidden + job->first_hidden + (size_t)i * job->weights->gate.rows;
    }
    dsv2_pool_run(pass->model->pool, gate_up_task, pass, n_slices);
    n_slices = 0;
    for (uint32_t j = 0; j < pass->n_ffn_jobs; j++)
        n_slices = add_slices(pass, n_slices, j, pass->ffn_jobs[j].weights->down.rows);
    dsv2_pool_run(pass->model->pool, down_task, pass, n_slices);
}

void dsv2_ffn_dense(dsv2_pass *pass, const dsv2_ffn_weights *weights)
{
    uint32_t hidden = pass->model->config.hidden_size;
    for (uint32_t row = 0; row < pass->n_rows; row++)
        pass->ffn_inputs[row] = pass->normed + (size_t)row * hidden;
    pass->ffn_jobs[0] = (dsv2_ffn_job){.weights = weights, .n_rows = pass->n_rows};
    pass->n_ffn_jobs = 1;
    float *output = pass->ffn_output;
    pass->ffn_output = pass->block_out; /* the one job's output needs no combining */
    dsv2_ffn_run(pass);
    pass->ffn_output = output;
}

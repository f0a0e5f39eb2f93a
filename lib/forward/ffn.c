/* Jobs go through two parallel regions: gate and up, then down. Each job's weights are cut into slices, so that threads
 * share the work evenly whatever the routing. */
#include "forward/ffn.h"

#include <assert.h>

/* A slice of one job's weights: a task. */
struct ds_ffn_slice {
    uint32_t job, first, end;
};

/* A slice is a whole number of the blocks in which rows are rounded to 8 bits, so that each task can round its own
 * columns of the hidden rows. */
_Static_assert(DS_TASK_ROWS % DS_BLOCK_COLS == 0, "slices and blocks of activations");

/* Going from one matrix to another wastes what the processor has read ahead. With few rows of activations, where
 * reading weights takes all the time, slices of several tasks' length are a tenth faster. So slices are long if every
 * thread still gets enough of them to share the work evenly. */
enum { LONG_TASK_ROWS = 4 * DS_TASK_ROWS, LONG_MOST_INPUTS = DS_PASS_ROWS * DS_TASK_ROWS / LONG_TASK_ROWS,
      EVEN_SLICES = 8 };

typedef struct ffn {
    ds_rows *rows;
    ds_ffn_memory *memory;
    float *output;
} ffn;

/* ---- working memory ---- */

static uint64_t slice_count(uint64_t rows) { return (rows + DS_TASK_ROWS - 1) / DS_TASK_ROWS; }

/* A dense layer is one job of all rows; a MoE layer has at most a job for each expert and one for the shared
 * experts. */
void ds_ffn_lay_out(ds_ffn_memory *memory, ds_layout *layout)
{
    const ds_config *config = layout->config;
    uint64_t m = layout->max_rows, n_experts = config->n_routed_experts, top_k = config->num_experts_per_tok;
    uint64_t hidden_floats = m * config->intermediate_size,
        hidden_blocks = m * ds_prepared_blocks(config->intermediate_size);
    uint64_t down_slices = slice_count(config->hidden_size);
    memory->max_slots = m;
    memory->max_jobs = 1;
    memory->max_slices = ds_max(slice_count(config->intermediate_size), down_slices);
    if (n_experts > 0) {
        uint64_t shared = (uint64_t)config->n_shared_experts * config->moe_intermediate_size;
        memory->max_slots = m * (top_k + 1);
        memory->max_jobs = (uint32_t)n_experts + 1;
        hidden_floats = ds_max(hidden_floats, m * (top_k * config->moe_intermediate_size + shared));
        hidden_blocks = ds_max(hidden_blocks, m * (top_k * ds_prepared_blocks(config->moe_intermediate_size) +
                                                   ds_prepared_blocks((uint32_t)shared)));
        uint64_t expert_slices = ds_max(slice_count(config->moe_intermediate_size), down_slices);
        uint64_t moe_slices = slice_count(shared) + down_slices + n_experts * expert_slices;
        memory->max_slices = ds_max(memory->max_slices, moe_slices);
    }
    memory->slot_row = ds_lay_out(layout, memory->max_slots, sizeof(uint32_t));
    memory->inputs = ds_lay_out(layout, memory->max_slots, sizeof(float *));
    memory->input_x8 = ds_lay_out(layout, memory->max_slots, sizeof(ds_x8 *));
    memory->hidden_rows = ds_lay_out(layout, memory->max_slots, sizeof(float *));
    memory->hidden_rows_x8 = ds_lay_out(layout, memory->max_slots, sizeof(ds_x8 *));
    memory->hidden = ds_lay_out(layout, hidden_floats, sizeof(float));
    memory->hidden_x8 = ds_lay_out(layout, layout->rounds ? hidden_blocks : 0, sizeof(ds_x8));
    memory->jobs = ds_lay_out(layout, memory->max_jobs, sizeof(ds_ffn_job));
    memory->slices = ds_lay_out(layout, memory->max_slices, sizeof(ds_ffn_slice));
}

size_t ds_ffn_stage_floats(void) { return (size_t)DS_PASS_ROWS * DS_TASK_ROWS; }

/* ---- slices ---- */

static uint32_t slice_rows(const ffn *f, const ds_ffn_job *job, uint32_t rows)
{
    uint64_t slices = (uint64_t)f->memory->n_jobs * (rows / LONG_TASK_ROWS);
    bool even = slices >= (uint64_t)EVEN_SLICES * ds_pool_threads(f->rows->pool);
    return even && job->n_rows <= LONG_MOST_INPUTS ? LONG_TASK_ROWS : DS_TASK_ROWS;
}

/* Cuts a job's matrix of `rows` rows. */
static uint32_t add_slices(const ffn *f, uint32_t n_slices, uint32_t job, uint32_t rows)
{
    uint32_t step = slice_rows(f, &f->memory->jobs[job], rows);
    for (uint32_t first = 0; first < rows; first += step) {
        assert(n_slices < f->memory->max_slices);
        f->memory->slices[n_slices++] = (ds_ffn_slice){job, first, rows - first < step ? rows : first + step};
    }
    return n_slices;
}

/* Some rows of y = W x for all rows x of a job. x has the rows as floats, and x8 rounded, for an interleaved W. */
static void multiply(const ffn *f, const ds_matrix *w, ds_ffn_slice slice, const float *const *x,
                     const ds_x8 *const *x8, uint32_t n_rows, float *out, size_t out_stride, unsigned thread)
{
    const ds_kernels *kernels = f->rows->kernels;
    if (ds_type_is_interleaved(w->type))
        ds_matmul_prepared(kernels, out, out_stride, x8, n_rows, w, slice.first, slice.end);
    else
        ds_matmul(kernels, out, out_stride, x, n_rows, w, slice.first, slice.end,
                  ds_matmul_scratch_of(&f->rows->linear, thread));
}

/* Some columns of silu(W_gate x) * W_up x for all rows of a job. */
static void gate_up_task(void *context, size_t task, unsigned thread)
{
    const ffn *f = context;
    ds_ffn_memory *memory = f->memory;
    const ds_kernels *kernels = f->rows->kernels;
    ds_ffn_slice slice = memory->slices[task];
    const ds_ffn_job *job = &memory->jobs[slice.job];
    uint32_t n = slice.end - slice.first, intermediate = job->weights->gate.rows, n_rows = job->n_rows;
    assert((size_t)n_rows * n <= ds_ffn_stage_floats());
    float *up = ds_stage_scratch_of(&f->rows->linear, thread), *gate = memory->hidden + job->first_hidden + slice.first;
    const float *const *x = memory->inputs + job->first_slot;
    const ds_x8 *const *x8 = memory->input_x8 + job->first_slot;
    multiply(f, &job->weights->gate, slice, x, x8, n_rows, gate, intermediate, thread);
    multiply(f, &job->weights->up, slice, x, x8, n_rows, up, n, thread);
    bool round = ds_type_is_interleaved(job->weights->down.type);
    ds_x8 *hidden_x8 = memory->hidden_x8 + job->first_x8 + slice.first / DS_BLOCK_COLS;
    for (uint32_t i = 0; i < n_rows; i++) {
        kernels->swiglu(gate + (size_t)i * intermediate, up + (size_t)i * n, n);
        if (round)
            kernels->prepare_row(hidden_x8 + i * ds_prepared_blocks(intermediate), gate + (size_t)i * intermediate, n);
    }
}

static void down_task(void *context, size_t task, unsigned thread)
{
    const ffn *f = context;
    const ds_ffn_memory *memory = f->memory;
    ds_ffn_slice slice = memory->slices[task];
    const ds_ffn_job *job = &memory->jobs[slice.job];
    const ds_matrix *down = &job->weights->down;
    multiply(f, down, slice, memory->hidden_rows + job->first_slot, memory->hidden_rows_x8 + job->first_slot,
             job->n_rows, f->output + job->first_output + slice.first, down->rows, thread);
}

/* Sets the pointers of a job's slots: to input and hidden rows, as floats and rounded. */
static void set_slots(const ffn *f, const ds_ffn_job *job)
{
    ds_ffn_memory *memory = f->memory;
    const ds_linear_memory *linear = &f->rows->linear;
    uint32_t hidden = f->rows->config->hidden_size, intermediate = job->weights->gate.rows;
    assert((uint64_t)job->first_slot + job->n_rows <= memory->max_slots);
    for (uint32_t i = 0; i < job->n_rows; i++) {
        uint32_t slot = job->first_slot + i, row = memory->slot_row[slot];
        memory->inputs[slot] = f->rows->normed + (size_t)row * hidden;
        memory->input_x8[slot] = linear->x8 + row * linear->x8_stride;
        memory->hidden_rows[slot] = memory->hidden + job->first_hidden + (size_t)i * intermediate;
        memory->hidden_rows_x8[slot] = memory->hidden_x8 + job->first_x8 + i * ds_prepared_blocks(intermediate);
    }
}

dsv2_status ds_ffn_run(ds_rows *rows, ds_ffn_memory *memory, float *output)
{
    ffn f = {rows, memory, output};
    dsv2_status status = ds_stage_begin(&rows->watch, DS_STAGE_FFN);
    if (status != DSV2_OK)
        return status;
    assert(memory->n_jobs <= memory->max_jobs);
    uint32_t n_slices = 0, hidden = rows->config->hidden_size;
    bool round = false;
    for (uint32_t j = 0; j < memory->n_jobs; j++) {
        const ds_ffn_job *job = &memory->jobs[j];
        n_slices = add_slices(&f, n_slices, j, job->weights->gate.rows);
        round = round || ds_type_is_interleaved(job->weights->gate.type) ||
            ds_type_is_interleaved(job->weights->up.type);
        set_slots(&f, job);
    }
    if (round)
        ds_round_rows(&rows->linear, rows->normed, hidden, hidden, rows->n);
    ds_pool_run(rows->pool, gate_up_task, &f, n_slices);
    n_slices = 0;
    for (uint32_t j = 0; j < memory->n_jobs; j++)
        n_slices = add_slices(&f, n_slices, j, memory->jobs[j].weights->down.rows);
    ds_pool_run(rows->pool, down_task, &f, n_slices);
    return DSV2_OK;
}

dsv2_status ds_ffn_dense(ds_rows *rows, ds_ffn_memory *memory, const ds_ffn_weights *weights)
{
    for (uint32_t row = 0; row < rows->n; row++)
        memory->slot_row[row] = row;
    memory->jobs[0] = (ds_ffn_job){.weights = weights, .n_rows = rows->n};
    memory->n_jobs = 1;
    return ds_ffn_run(rows, memory, rows->output); /* the one job's output needs no combining */
}

/* Which element type a weight is held in, and bringing it there: on opening, when an expert is first chosen, and into a .dsv2 pack. */
#include "model/pass.h"

#include <string.h>

typedef enum role { ROLE_OTHER, ROLE_ROUTER, ROLE_EMBEDDING, ROLE_HEAD, ROLE_LATENT } role;

static role role_of(const char *name)
{
    if (dsv2_name_ends(name, ".mlp.gate.weight"))
        return ROLE_ROUTER;
    if (dsv2_name_ends(name, "embed_tokens.weight"))
        return ROLE_EMBEDDING;
    if (dsv2_name_ends(name, "lm_head.weight"))
        return ROLE_HEAD;
    if (strstr(name, ".self_attn.kv_") != NULL || dsv2_name_ends(name, DSV2_K_UP_TRANSPOSED))
        return ROLE_LATENT;
    return ROLE_OTHER;
}

/* As stored: what the kernels take stays; block types of GGUF files become their packed twin, and those without one 8 bits. */
static dsv2_type stored_type(role role, dsv2_type type)
{
    if (dsv2_type_is_plain(type) || type == DSV2_TYPE_F8_E4M3 || dsv2_type_is_packed(type))
        return type;
    if (role == ROLE_ROUTER)
        return DSV2_TYPE_F32;
    dsv2_type twin = dsv2_packed_twin(type);
    return twin != DSV2_TYPE_COUNT ? twin : DSV2_TYPE_P8;
}

dsv2_type dsv2_packing_type(dsv2_weight_type weight_type, const char *name, dsv2_type type)
{
    role role = role_of(name);
    dsv2_type packed;
    switch (weight_type) {
    case DSV2_WEIGHTS_F32: return DSV2_TYPE_F32;
    case DSV2_WEIGHTS_F16: return DSV2_TYPE_F16;
    case DSV2_WEIGHTS_BF16: return DSV2_TYPE_BF16;
    case DSV2_WEIGHTS_Q8_0: packed = DSV2_TYPE_P8; break;
    case DSV2_WEIGHTS_Q6_K: packed = DSV2_TYPE_P6; break;
    case DSV2_WEIGHTS_Q5_K: packed = DSV2_TYPE_P5; break;
    case DSV2_WEIGHTS_Q4_K: packed = DSV2_TYPE_P4; break;
    case DSV2_WEIGHTS_Q4_0: packed = DSV2_TYPE_P4S; break;
    default: return stored_type(role, type);
    }
    /* The router decides which experts a token meets; the latent is what all heads and later tokens see; embedding and head meet
     * every token: they are small, or matter more than their size. */
    if (role == ROLE_ROUTER)
        return dsv2_type_is_plain(type) ? type : DSV2_TYPE_F32;
    if (role == ROLE_EMBEDDING || role == ROLE_LATENT)
        return DSV2_TYPE_P8;
    if (role == ROLE_HEAD && packed != DSV2_TYPE_P8)
        return DSV2_TYPE_P6;
    return packed;
}

size_t dsv2_matrix_bytes(dsv2_type type, uint32_t rows, uint32_t cols)
{
    size_t whole = dsv2_type_is_packed(type) ? ((size_t)rows + DSV2_PACK_ROWS - 1) / DSV2_PACK_ROWS * DSV2_PACK_ROWS : rows;
    return whole * dsv2_type_row_bytes(type, cols);
}

/* ---- conversions: many at a time ----
 * A matrix may be small (an expert's has a megabyte or two), and a thread that touches new memory first waits until the kernel has
 * cleared a huge page. So matrices wait until they are enough for every thread to go through some megabytes of its own. */

enum { BYTES_PER_THREAD = 16 << 20 }; /* of the file, mapped meanwhile */

typedef struct packing {
    const dsv2_model *model;
    const dsv2_conversions *queue;
} packing;

bool dsv2_conversion_is_repacking(const dsv2_conversion *c)
{
    return dsv2_type_is_packed(c->type) && dsv2_packed_twin(c->from.type) == c->type;
}

/* What a thread needs: DSV2_PACK_ROWS rows, as the file has them or as floats. */
static size_t scratch_bytes(const dsv2_conversion *c)
{
    enum { LINE = 64 };
    size_t row = dsv2_conversion_is_repacking(c) ? c->from.row_bytes : c->from.cols * sizeof(float);
    return (DSV2_PACK_ROWS * row + LINE - 1) / LINE * LINE;
}

/* DSV2_PACK_ROWS rows or fewer, from row `first` on: a group, if the type is packed. */
static void convert_rows(const dsv2_model *model, const dsv2_conversion *c, uint32_t first, void *scratch)
{
    const dsv2_matrix *from = &c->from;
    uint32_t n = c->end - first < DSV2_PACK_ROWS ? c->end - first : DSV2_PACK_ROWS;
    size_t row_bytes = dsv2_type_row_bytes(c->type, from->cols);
    uint8_t *out = c->out + first * row_bytes;
    if (dsv2_conversion_is_repacking(c)) {
        const void *rows[DSV2_PACK_ROWS];
        /* Copied to the cache first, in the order that processors foresee: rows' blocks are read in turns. */
        memcpy(scratch, (const uint8_t *)from->data + first * from->row_bytes, n * from->row_bytes);
        for (uint32_t r = 0; r < n; r++)
            rows[r] = (const uint8_t *)scratch + r * from->row_bytes;
        dsv2_repack_group(from->type, out, rows, n, from->cols);
        return;
    }
    const float *rows[DSV2_PACK_ROWS];
    for (uint32_t r = 0; r < n; r++) {
        float *row = (float *)scratch + (size_t)r * from->cols;
        dsv2_matrix_row(model->kernels, from, first + r, row);
        rows[r] = row;
        if (!dsv2_type_is_packed(c->type))
            for (uint32_t i = 0; i < from->cols; i++)
                dsv2_store_element(c->type, out + r * row_bytes, i, row[i]);
    }
    if (dsv2_type_is_packed(c->type))
        dsv2_pack_group(c->type, out, rows, n, from->cols);
}

static void convert_task(void *context, size_t task, unsigned thread)
{
    const packing *p = context;
    const dsv2_conversion *list = p->queue->list;
    size_t low = 0, high = p->queue->n; /* the last whose first task is not after this one */
    while (high - low > 1) {
        size_t middle = (low + high) / 2;
        if (list[middle].first_task <= task)
            low = middle;
        else
            high = middle;
    }
    uint32_t first = list[low].first + (uint32_t)(task - list[low].first_task) * DSV2_PACK_ROWS;
    convert_rows(p->model, &list[low], first, p->queue->scratch + thread * p->queue->scratch_bytes);
}

static void drop_all(dsv2_conversions *queue)
{
    for (size_t i = 0; i < queue->n; i++)
        dsv2_free(queue->list[i].made);
    queue->n = 0;
    queue->bytes = 0;
}

void dsv2_conversions_run(const dsv2_model *model, dsv2_conversions *queue)
{
    size_t n_tasks = 0;
    packing p = {model, queue};
    for (size_t i = 0; i < queue->n; i++) {
        dsv2_conversion *c = &queue->list[i];
        c->first_task = n_tasks;
        n_tasks += ((size_t)c->end - c->first + DSV2_PACK_ROWS - 1) / DSV2_PACK_ROWS;
    }
    dsv2_pool_run(model->pool, convert_task, &p, n_tasks);
    for (size_t i = 0; i < queue->n; i++) {
        const dsv2_conversion *c = &queue->list[i];
        dsv2_container_forget(model->container, (const uint8_t *)c->from.data + c->first * c->from.row_bytes,
                              (uint64_t)(c->end - c->first) * c->from.row_bytes);
    }
    drop_all(queue);
}

void dsv2_conversions_free(dsv2_conversions *queue)
{
    drop_all(queue);
    dsv2_free(queue->list);
    dsv2_free(queue->scratch);
}

dsv2_status dsv2_conversions_reserve(const dsv2_model *model, dsv2_conversions *queue, size_t n, const dsv2_conversion *like)
{
    if (!dsv2_grow(&queue->list, &queue->capacity, queue->n + n, sizeof *queue->list))
        return dsv2_fail_memory("matrices to convert", (queue->n + n) * sizeof *queue->list);
    size_t bytes = scratch_bytes(like);
    if (bytes <= queue->scratch_bytes)
        return DSV2_OK;
    uint8_t *scratch = dsv2_new_aligned(dsv2_pool_threads(model->pool), bytes);
    if (scratch == NULL)
        return dsv2_fail_memory("rows to convert", dsv2_pool_threads(model->pool) * bytes);
    dsv2_free(queue->scratch);
    queue->scratch = scratch;
    queue->scratch_bytes = bytes;
    return DSV2_OK;
}

/* The next rows of a matrix, as many as the queue still takes. */
static void add_rows(dsv2_conversions *queue, const dsv2_conversion *all, uint64_t most, uint32_t *first)
{
    uint64_t rows = (most - queue->bytes) / all->from.row_bytes / DSV2_PACK_ROWS * DSV2_PACK_ROWS;
    if (rows == 0)
        rows = DSV2_PACK_ROWS;
    dsv2_conversion *c = &queue->list[queue->n++];
    *c = *all;
    c->first = *first;
    if (all->end - *first > rows) {
        c->end = *first + (uint32_t)rows;
        c->made = NULL; /* the last rows' to free */
    }
    queue->bytes += (uint64_t)(c->end - c->first) * c->from.row_bytes;
    *first = c->end;
}

void dsv2_conversions_add(const dsv2_model *model, dsv2_conversions *queue, const dsv2_conversion *conversion)
{
    uint64_t most = (uint64_t)BYTES_PER_THREAD * dsv2_pool_threads(model->pool);
    uint32_t first = 0;
    while (first < conversion->end) {
        add_rows(queue, conversion, most, &first);
        if (queue->bytes >= most)
            dsv2_conversions_run(model, queue); /* and there is room for the rest */
    }
}

dsv2_status dsv2_matrix_convert(const dsv2_model *model, const dsv2_matrix *from, dsv2_type type, void *out)
{
    dsv2_conversions queue = {0};
    const dsv2_conversion conversion = {.from = *from, .type = type, .out = out, .end = from->rows};
    dsv2_status status = dsv2_conversions_reserve(model, &queue, 1, &conversion);
    if (status == DSV2_OK) {
        dsv2_conversions_add(model, &queue, &conversion);
        dsv2_conversions_run(model, &queue);
    }
    dsv2_conversions_free(&queue);
    return status;
}

/* ---- experts that are chosen for the first time ---- */

static bool waits(const dsv2_ffn_job *job)
{
    return job->deferred != NULL && atomic_load_explicit(&job->deferred->waiting, memory_order_acquire);
}

void dsv2_experts_repack(dsv2_pass *pass)
{
    dsv2_model *model = pass->model;
    bool any = false;
    for (uint32_t j = 0; j < pass->n_ffn_jobs; j++)
        any = any || waits(&pass->ffn_jobs[j]);
    if (!any)
        return;
    pthread_mutex_lock(&model->repacking_lock);
    for (uint32_t j = 0; j < pass->n_ffn_jobs; j++) {
        const dsv2_ffn_job *job = &pass->ffn_jobs[j];
        for (uint32_t i = 0; waits(job) && i < job->deferred->n; i++) /* if no other pass was faster */
            dsv2_conversions_add(model, &model->repacking, &job->deferred->conversions[i]);
    }
    dsv2_conversions_run(model, &model->repacking);
    for (uint32_t j = 0; j < pass->n_ffn_jobs; j++)
        if (waits(&pass->ffn_jobs[j]))
            atomic_store_explicit(&pass->ffn_jobs[j].deferred->waiting, false, memory_order_release);
    pthread_mutex_unlock(&model->repacking_lock);
}

void dsv2_store_element(dsv2_type type, void *data, size_t i, float value)
{
    if (type == DSV2_TYPE_F32)
        ((float *)data)[i] = value;
    else
        ((uint16_t *)data)[i] = type == DSV2_TYPE_F16 ? dsv2_f32_to_f16(value) : dsv2_f32_to_bf16(value);
}

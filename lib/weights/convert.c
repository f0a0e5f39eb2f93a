/* Which element type a weight is held in, and bringing it there: on opening, when an expert is first chosen, and into a .dsv2 pack. */
#include "weights/convert.h"
#include "weights/walk.h"

#include <assert.h>
#include <string.h>

typedef enum role { ROLE_OTHER, ROLE_ROUTER, ROLE_EMBEDDING, ROLE_HEAD, ROLE_LATENT } role;

static role role_of(const char *name)
{
    if (ds_name_ends(name, ".mlp.gate.weight"))
        return ROLE_ROUTER;
    if (ds_name_ends(name, "embed_tokens.weight"))
        return ROLE_EMBEDDING;
    if (ds_name_ends(name, "lm_head.weight"))
        return ROLE_HEAD;
    if (strstr(name, ".self_attn.kv_") != NULL || ds_name_ends(name, DS_K_UP_TRANSPOSED))
        return ROLE_LATENT;
    return ROLE_OTHER;
}

/* As stored: what the kernels take stays; block types of GGUF files become their packed twin, and those without one 8 bits. */
static ds_type stored_type(role role, ds_type type)
{
    if (ds_type_is_plain(type) || type == DS_TYPE_F8_E4M3 || ds_type_is_interleaved(type))
        return type;
    if (role == ROLE_ROUTER)
        return DS_TYPE_F32;
    ds_type twin = ds_type_twin(type);
    return twin != DS_TYPE_COUNT ? twin : DS_TYPE_P8;
}

ds_type ds_held_type(dsv2_weight_type weight_type, const char *name, ds_type type)
{
    role role = role_of(name);
    ds_type packed = ds_type_asked(weight_type);
    if (ds_type_is_plain(packed))
        return packed;
    if (packed == DS_TYPE_COUNT)
        return stored_type(role, type);
    /* The router decides which experts a token meets; the latent is what all heads and later tokens see; embedding and head meet
     * every token: they are small, or matter more than their size. */
    if (role == ROLE_ROUTER)
        return ds_type_is_plain(type) ? type : DS_TYPE_F32;
    if (role == ROLE_EMBEDDING || role == ROLE_LATENT)
        return DS_TYPE_P8;
    if (role == ROLE_HEAD && packed != DS_TYPE_P8)
        return DS_TYPE_P6;
    return packed;
}

size_t ds_matrix_bytes(ds_type type, uint32_t rows, uint32_t cols)
{
    size_t whole = ds_type_is_interleaved(type) ? ((size_t)rows + DS_PANEL_ROWS - 1) / DS_PANEL_ROWS * DS_PANEL_ROWS : rows;
    return whole * ds_type_row_bytes(type, cols);
}

/* ---- conversions: many at a time ----
 * A matrix may be small (an expert's has a megabyte or two), and a thread that touches new memory first waits until the kernel has
 * cleared a huge page. So matrices wait until they are enough for every thread to go through some megabytes of its own. */

enum { BYTES_PER_THREAD = 16 << 20 }; /* of the file, mapped meanwhile */

bool ds_conversion_is_repacking(const ds_conversion *c)
{
    return ds_type_is_interleaved(c->type) && ds_type_twin(c->from.type) == c->type;
}

/* What a thread needs: DS_PANEL_ROWS rows, as the file has them or as floats. */
static size_t scratch_bytes(const ds_conversion *c)
{
    enum { LINE = 64 };
    size_t row = ds_conversion_is_repacking(c) ? c->from.row_bytes : c->from.cols * sizeof(float);
    return (DS_PANEL_ROWS * row + LINE - 1) / LINE * LINE;
}

/* DS_PANEL_ROWS rows or fewer, from row `first` on: a group, if the type is packed. */
static void convert_rows(const ds_kernels *kernels, const ds_conversion *c, uint32_t first, void *scratch)
{
    const ds_matrix *from = &c->from;
    uint32_t n = c->end - first < DS_PANEL_ROWS ? c->end - first : DS_PANEL_ROWS;
    size_t row_bytes = ds_type_row_bytes(c->type, from->cols);
    uint8_t *out = c->out + first * row_bytes;
    if (ds_conversion_is_repacking(c)) {
        const void *rows[DS_PANEL_ROWS];
        /* Copied to the cache first, in the order that processors foresee: rows' blocks are read in turns. */
        memcpy(scratch, (const uint8_t *)from->data + first * from->row_bytes, n * from->row_bytes);
        for (uint32_t r = 0; r < n; r++)
            rows[r] = (const uint8_t *)scratch + r * from->row_bytes;
        ds_panel_from_blocks(from->type, out, rows, n, from->cols);
        return;
    }
    const float *rows[DS_PANEL_ROWS];
    for (uint32_t r = 0; r < n; r++) {
        float *row = (float *)scratch + (size_t)r * from->cols;
        ds_matrix_row(kernels, from, first + r, row);
        rows[r] = row;
        if (!ds_type_is_interleaved(c->type))
            for (uint32_t i = 0; i < from->cols; i++)
                ds_store_element(c->type, out + r * row_bytes, i, row[i]);
    }
    if (ds_type_is_interleaved(c->type))
        ds_panel_from_floats(c->type, out, rows, n, from->cols);
}

static void convert_task(void *context, size_t task, unsigned thread)
{
    const ds_conversions *queue = context;
    const ds_conversion *list = queue->list;
    size_t low = 0, high = queue->n; /* the last whose first task is not after this one */
    while (high - low > 1) {
        size_t middle = (low + high) / 2;
        if (list[middle].first_task <= task)
            low = middle;
        else
            high = middle;
    }
    uint32_t first = list[low].first + (uint32_t)(task - list[low].first_task) * DS_PANEL_ROWS;
    convert_rows(queue->kernels, &list[low], first, queue->scratch + thread * queue->scratch_bytes);
}

static void drop_all(ds_conversions *queue)
{
    for (size_t i = 0; i < queue->n; i++)
        ds_free(queue->list[i].made);
    queue->n = 0;
    queue->bytes = 0;
}

void ds_conversions_run(ds_conversions *queue)
{
    size_t n_tasks = 0;
    for (size_t i = 0; i < queue->n; i++) {
        ds_conversion *c = &queue->list[i];
        c->first_task = n_tasks;
        n_tasks += ((size_t)c->end - c->first + DS_PANEL_ROWS - 1) / DS_PANEL_ROWS;
    }
    ds_pool_run(queue->pool, convert_task, queue, n_tasks);
    for (size_t i = 0; i < queue->n; i++) {
        const ds_conversion *c = &queue->list[i];
        ds_container_forget(queue->container, (const uint8_t *)c->from.data + c->first * c->from.row_bytes,
                            (uint64_t)(c->end - c->first) * c->from.row_bytes);
    }
    drop_all(queue);
}

void ds_conversions_init(ds_conversions *queue, const ds_kernels *kernels, ds_pool *pool, const ds_container *container)
{
    *queue = (ds_conversions){.kernels = kernels, .pool = pool, .container = container};
}

void ds_conversions_free(ds_conversions *queue)
{
    drop_all(queue);
    ds_free(queue->list);
    ds_free(queue->scratch);
}

dsv2_status ds_conversions_reserve(ds_conversions *queue, size_t n, const ds_conversion *like)
{
    /* One entry more: the matrix that fills the queue may be added in two parts before the queue runs. */
    if (!ds_grow(&queue->list, &queue->capacity, queue->n + n + 1, sizeof *queue->list))
        return ds_fail_memory("matrices to convert", (queue->n + n) * sizeof *queue->list);
    size_t bytes = scratch_bytes(like);
    if (bytes <= queue->scratch_bytes)
        return DSV2_OK;
    uint8_t *scratch = ds_new_aligned(ds_pool_threads(queue->pool), bytes);
    if (scratch == NULL)
        return ds_fail_memory("rows to convert", ds_pool_threads(queue->pool) * bytes);
    ds_free(queue->scratch);
    queue->scratch = scratch;
    queue->scratch_bytes = bytes;
    return DSV2_OK;
}

/* The next rows of a matrix, as many as the queue still takes. */
static void add_rows(ds_conversions *queue, const ds_conversion *all, uint64_t most, uint32_t *first)
{
    uint64_t rows = (most - queue->bytes) / all->from.row_bytes / DS_PANEL_ROWS * DS_PANEL_ROWS;
    if (rows == 0)
        rows = DS_PANEL_ROWS;
    assert(queue->n < queue->capacity);
    ds_conversion *c = &queue->list[queue->n++];
    *c = *all;
    c->first = *first;
    if (all->end - *first > rows) {
        c->end = *first + (uint32_t)rows;
        c->made = NULL; /* the last rows' to free */
    }
    queue->bytes += (uint64_t)(c->end - c->first) * c->from.row_bytes;
    *first = c->end;
}

void ds_conversions_add(ds_conversions *queue, const ds_conversion *conversion)
{
    uint64_t most = (uint64_t)BYTES_PER_THREAD * ds_pool_threads(queue->pool);
    uint32_t first = 0;
    while (first < conversion->end) {
        add_rows(queue, conversion, most, &first);
        if (queue->bytes >= most)
            ds_conversions_run(queue); /* and there is room for the rest */
    }
}

void ds_store_element(ds_type type, void *data, size_t i, float value)
{
    if (type == DS_TYPE_F32)
        ((float *)data)[i] = value;
    else
        ((uint16_t *)data)[i] = type == DS_TYPE_F16 ? ds_f32_to_f16(value) : ds_f32_to_bf16(value);
}

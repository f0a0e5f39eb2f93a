/* Multi-head Latent Attention (section 2.1 of the report, in full in its appendix C).
 *
 * Only c^KV and k^R of a token are in the cache. From there two ways lead to the same attention:
 *   absorbed  q^C . k^C = q^C . (W^UK c) = ((W^UK)^T q^C) . c: a query is brought into the latent space once and then
 *             meets the cached rows as they are, all heads sharing each; the weighted sum of latents goes through W^UV
 *             at the end.
 *   expanded  k^C = W^UK c and v^C = W^UV c are made for a tile of tokens and one head, used by all query rows, and
 *             dropped.
 * A query row costs less in the expanded form, a tile of context costs less in the absorbed one: see is_expanded.
 *
 * Both walk over the context a page at a time: attend.c. */
#include "forward/mla.h"

#include "forward/attend.h"
#include "forward/norm.h"
#include "forward/rope.h"

#include <assert.h>
#include <math.h>
#include <string.h>

/* Attention in the absorbed form goes over the context in spans of this many pages, each summed by itself and merged in
 * order, so that spans can be shared out over threads without changing a bit of the result. */
enum { SPAN_PAGES = 8, SPAN_TOKENS = SPAN_PAGES * DS_PAGE_TOKENS };

/* Tokens of context whose latents are made ready together for the expanded form: some megabytes. */
enum { SEGMENT_TOKENS = 2048 };

/* Query vectors, rows times heads, that one task of the absorbed form takes through a tile together. */
enum { QUERY_SET = 64 };

/* Sums of single spans are kept for at most this many query vectors: 134 MB with a latent of 512. */
enum { MAX_PARTIALS = 65536 };

_Static_assert((int)QUERY_SET <= (int)DS_ATTEND_ROWS, "queries of a task whose scores are made panel by panel");

/* A task of the absorbed form: a query set of one sequence, and one span of its context or all. */
typedef struct attend_task {
    uint32_t first_row, n_rows, first_head, n_heads;
    size_t span; /* or ALL_SPANS */
    size_t n_spans, first_partial; /* for single spans: how many the query set has, and where this one's sums go */
} attend_task;

#define ALL_SPANS SIZE_MAX

/* Working memory. Rows, m of each: */
typedef struct mla_memory {
    float *q;         /* [n_heads][nope + rope]: queries; RoPE part rotated in place */
    float *q_a;       /* [q_lora_rank]: c^Q */
    float *kv_a;      /* [kv_lora_rank + rope]: c^KV and k^R */
    float *absorbed;  /* [n_heads][kv_lora_rank + rope]: q^C W^UK and q^R; afterwards the weighted sum of latents */
    float *heads_out; /* [n_heads][v_head_dim]: o before W^O */

    /* The expanded form. */
    float *segment_latents; /* [SEGMENT_TOKENS or fewer][kv_lora_rank + rope] */
    ds_x8 *segment_x8;      /* the same rounded, without k^R */
    float *expanded_max, *expanded_sum; /* [n_heads][max_rows] */

    /* The absorbed form. */
    attend_task *tasks;     /* [max_tasks] */
    size_t max_tasks;
    float *span_out, *span_max, *span_sum; /* sums over single spans: [max_partials] query vectors times spans */
    size_t max_partials;
} mla_memory;

typedef struct mla {
    ds_rows *rows;
    mla_memory *memory;
    const ds_mla_weights *weights;
    uint32_t layer;
} mla;

/* ---- working memory ---- */

static uint32_t set_rows_of(uint32_t n_heads) { return n_heads < QUERY_SET ? QUERY_SET / n_heads : 1; }

/* Only few rows are cut into spans: plan_tasks cuts only if there are fewer than four query sets for each thread, and
 * the spans' sums fit into max_partials. */
static void lay_out_spans(mla_memory *memory, ds_layout *layout)
{
    const ds_config *config = layout->config;
    uint64_t m = layout->max_rows, n_heads = config->num_attention_heads, n_threads = layout->n_threads;
    uint64_t n_spans = layout->max_position / SPAN_TOKENS + 1;
    uint64_t split_rows = 4 * n_threads * set_rows_of((uint32_t)n_heads);
    uint64_t partials = (m < split_rows ? m : split_rows) * n_heads * n_spans;
    memory->max_partials = partials < MAX_PARTIALS ? partials : MAX_PARTIALS;
    uint64_t whole_tasks = m * ((n_heads + QUERY_SET - 1) / QUERY_SET), span_tasks = 4 * n_threads * n_spans;
    memory->max_tasks = ds_max(whole_tasks, span_tasks < memory->max_partials ? span_tasks : memory->max_partials);
    memory->tasks = ds_lay_out(layout, memory->max_tasks, sizeof(attend_task));
    memory->span_out = ds_lay_out(layout, memory->max_partials * config->kv_lora_rank, sizeof(float));
    memory->span_max = ds_lay_out(layout, memory->max_partials, sizeof(float));
    memory->span_sum = ds_lay_out(layout, memory->max_partials, sizeof(float));
}

static void lay_out(void *memory_struct, ds_layout *layout)
{
    mla_memory *memory = memory_struct;
    const ds_config *config = layout->config;
    uint64_t m = layout->max_rows, n_heads = config->num_attention_heads;
    uint64_t width = (uint64_t)config->kv_lora_rank + config->qk_rope_head_dim;
    memory->q = ds_lay_out(layout, m * n_heads * (config->qk_nope_head_dim + config->qk_rope_head_dim), sizeof(float));
    memory->q_a = ds_lay_out(layout, m * config->q_lora_rank, sizeof(float));
    memory->kv_a = ds_lay_out(layout, m * width, sizeof(float));
    memory->absorbed = ds_lay_out(layout, m * n_heads * width, sizeof(float));
    memory->heads_out = ds_lay_out(layout, m * n_heads * config->v_head_dim, sizeof(float));

    uint64_t segment = layout->max_position < SEGMENT_TOKENS ? layout->max_position : SEGMENT_TOKENS;
    memory->segment_latents = ds_lay_out(layout, segment * width, sizeof(float));
    memory->segment_x8 = ds_lay_out(layout, layout->rounds ? segment * ds_prepared_blocks(config->kv_lora_rank) : 0,
                                    sizeof(ds_x8));
    memory->expanded_max = ds_lay_out(layout, m * n_heads, sizeof(float));
    memory->expanded_sum = ds_lay_out(layout, m * n_heads, sizeof(float));
    lay_out_spans(memory, layout);
}

/* ---- queries, latents and the cache: Eqs. 37-43 ---- */

/* A row's c^KV and k^R go into the cache. Zeros do if the cache cannot hold them: the row's sequence then ends. */
static void cache_row(const mla *a, size_t row, float *latent)
{
    ds_rows *rows = a->rows;
    const ds_cache *cache = rows->sequences[rows->sequence_of[row]].cache;
    const ds_cache_shape *shape = &cache->shape;
    size_t position = rows->position[row];
    uint8_t *stored = ds_cache_rows(cache, a->layer, position / DS_PAGE_TOKENS) +
                      position % DS_PAGE_TOKENS * shape->row_bytes;
    float largest;
    uint32_t unfit = ds_cache_unfit_part(shape, latent, &largest);
    if (unfit < shape->n_parts) {
        ds_rows_fault(rows, row, (ds_fault){.kind = DS_FAULT_CACHE, .part = unfit, .largest = largest});
        memset(stored, 0, shape->row_bytes);
        return;
    }
    ds_cache_encode_row(shape, rows->kernels, latent, stored);
}

/* One row: norm of c^KV, rotation of k^R and q^R, and the row's way into the cache. Queries take the softmax scale on
 * here. */
static void position_row(void *context, size_t row, unsigned thread)
{
    (void)thread;
    const mla *a = context;
    ds_rows *rows = a->rows;
    mla_memory *memory = a->memory;
    const ds_config *config = rows->config;
    uint32_t lora = config->kv_lora_rank, nope = config->qk_nope_head_dim, rope = config->qk_rope_head_dim;

    float *kv_a = memory->kv_a + row * (lora + rope);
    ds_norm_row(rows->kernels, config->rms_norm_eps, a->weights->kv_a_norm, kv_a, lora, kv_a);
    const float *cos = rows->rope_cos + row * rope / 2, *sin = rows->rope_sin + row * rope / 2;
    ds_rope_rotate(config, cos, sin, kv_a + lora);
    cache_row(a, row, kv_a);

    for (uint32_t head = 0; head < config->num_attention_heads; head++) {
        float *q = memory->q + (row * config->num_attention_heads + head) * (nope + rope);
        ds_rope_rotate(config, cos, sin, q + nope);
        for (uint32_t i = 0; i < nope + rope; i++)
            q[i] *= rows->softmax_scale;
    }
}

/* q of all rows, by way of c^Q where queries are compressed (Eqs. 37, 38, 40). */
static dsv2_status project_queries(const mla *a)
{
    ds_rows *rows = a->rows;
    mla_memory *memory = a->memory;
    const ds_mla_weights *w = a->weights;
    const ds_config *config = rows->config;
    uint32_t hidden = config->hidden_size, q_lora = config->q_lora_rank, m = rows->n;
    if (q_lora == 0)
        return ds_linear(&rows->linear, &w->q_proj, NULL, rows->normed, hidden, m, memory->q, w->q_proj.rows);
    dsv2_status status = ds_linear(&rows->linear, &w->q_a_proj, w->q_a_bias, rows->normed, hidden, m, memory->q_a,
                                   q_lora);
    if (status != DSV2_OK)
        return status;
    ds_norm_rows(rows->kernels, rows->pool, config->rms_norm_eps, w->q_a_norm, memory->q_a, q_lora, q_lora, m,
                 memory->q_a, q_lora);
    return ds_linear(&rows->linear, &w->q_b_proj, NULL, memory->q_a, q_lora, m, memory->q, w->q_b_proj.rows);
}

/* c^KV and k^R of all rows (Eqs. 41, 43), and their way into the caches. */
static dsv2_status project_latents(mla *a)
{
    ds_rows *rows = a->rows;
    const ds_mla_weights *w = a->weights;
    dsv2_status status = ds_linear(&rows->linear, &w->kv_a_proj, w->kv_a_bias, rows->normed, rows->config->hidden_size,
                                   rows->n, a->memory->kv_a, w->kv_a_proj.rows);
    if (status == DSV2_OK)
        status = ds_stage_begin(&rows->watch, DS_STAGE_CACHE);
    if (status == DSV2_OK)
        ds_pool_run(rows->pool, position_row, a, rows->n);
    return status;
}

/* How many of n tokens from `first` on the query at `position` may see. */
static uint32_t visible_tokens(size_t position, size_t first, size_t n)
{
    if (position < first)
        return 0;
    return (uint32_t)(position - first + 1 < n ? position - first + 1 : n);
}

/* ---- the absorbed form ---- */

/* Calls fn for every run of at most QUERY_SET consecutive rows in the absorbed form. */
typedef void absorbed_rows_fn(mla *a, uint32_t head, uint32_t row, uint32_t n, unsigned thread);
static void for_absorbed_rows(mla *a, uint32_t head, unsigned thread, absorbed_rows_fn *fn)
{
    const ds_rows *rows = a->rows;
    for (uint32_t row = 0; row < rows->n;) {
        uint32_t n = 0;
        while (n < QUERY_SET && row + n < rows->n && !rows->sequences[rows->sequence_of[row + n]].expanded)
            n++;
        if (n > 0)
            fn(a, head, row, n, thread);
        row += n > 0 ? n : 1;
    }
}

/* (W^UK)^T q^C in the cache's basis, and q^R behind it. */
static void absorb_rows(mla *a, uint32_t head, uint32_t row, uint32_t n, unsigned thread)
{
    ds_rows *rows = a->rows;
    mla_memory *memory = a->memory;
    const ds_config *config = rows->config;
    uint32_t lora = config->kv_lora_rank, nope = config->qk_nope_head_dim, rope = config->qk_rope_head_dim;
    uint32_t n_heads = config->num_attention_heads;
    const float *q[QUERY_SET];
    float *out = memory->absorbed + ((size_t)row * n_heads + head) * (lora + rope);
    size_t stride = (size_t)n_heads * (lora + rope);
    for (uint32_t i = 0; i < n; i++) {
        q[i] = memory->q + ((size_t)(row + i) * n_heads + head) * (nope + rope);
        memcpy(out + i * stride + lora, q[i] + nope, rope * sizeof *out);
    }
    ds_matmul(rows->kernels, out, stride, q, n, &a->weights->k_up_transposed, head * lora, (head + 1) * lora,
              ds_matmul_scratch_of(&rows->linear, thread));
    for (uint32_t i = 0; i < n; i++) {
        const ds_cache *cache = rows->sequences[rows->sequence_of[row + i]].cache;
        ds_cache_rotate_part(&cache->shape, DS_MLA_LATENT, rows->kernels, out + i * stride);
    }
}

/* o = W^UV (weighted sum of latents). */
static void value_rows(mla *a, uint32_t head, uint32_t row, uint32_t n, unsigned thread)
{
    ds_rows *rows = a->rows;
    mla_memory *memory = a->memory;
    const ds_config *config = rows->config;
    uint32_t lora = config->kv_lora_rank, nope = config->qk_nope_head_dim, rope = config->qk_rope_head_dim;
    uint32_t n_heads = config->num_attention_heads, v_dim = config->v_head_dim;
    const float *latent[QUERY_SET];
    for (uint32_t i = 0; i < n; i++)
        latent[i] = memory->absorbed + ((size_t)(row + i) * n_heads + head) * (lora + rope);
    uint32_t first = head * (nope + v_dim) + nope;
    ds_matmul(rows->kernels, memory->heads_out + ((size_t)row * n_heads + head) * v_dim, (size_t)n_heads * v_dim,
              latent, n, &a->weights->kv_b_proj, first, first + v_dim, ds_matmul_scratch_of(&rows->linear, thread));
}

static void absorb_task(void *context, size_t head, unsigned thread)
{
    for_absorbed_rows(context, (uint32_t)head, thread, absorb_rows);
}

static void value_task(void *context, size_t head, unsigned thread)
{
    for_absorbed_rows(context, (uint32_t)head, thread, value_rows);
}


static ds_attend_shape absorbed_shape(const ds_config *config, bool integers)
{
    return (ds_attend_shape){
        .integers = integers,
        .part = {config->kv_lora_rank, config->qk_rope_head_dim},
        .value_width = config->kv_lora_rank,
        .value_section = DS_SCALE_COLS,
        .score_by_panel = true,
        .rope = config->qk_rope_head_dim,
        .part_least = DS_MAX_15_BITS >> 8, /* then seven bits are left, as many as q8 has */
    };
}

/* Working memory of one thread: */
typedef struct attend_scratch {
    float *latents; /* [DS_PAGE_TOKENS][lora + rope]: cached rows, if they are taken as floats */
    float *sums;    /* [QUERY_SET][lora]: of the present span */
    float *total;   /* [QUERY_SET][lora]: of all spans so far */
    float *attend;  /* what attend.c needs */
} attend_scratch;

/* Divides a thread's scratch, or with memory NULL only counts: returns floats. */
static size_t divide_attend(const ds_config *config, float *memory, attend_scratch *s)
{
    ds_attend_shape shape = absorbed_shape(config, true);
    size_t lora = config->kv_lora_rank, width = lora + config->qk_rope_head_dim, used = 0;
    s->latents = ds_take(memory, &used, DS_PAGE_TOKENS * width * sizeof(float));
    s->sums = ds_take(memory, &used, QUERY_SET * lora * sizeof(float));
    s->total = ds_take(memory, &used, QUERY_SET * lora * sizeof(float));
    s->attend = ds_take(memory, &used, ds_attend_floats(&shape, QUERY_SET) * sizeof(float));
    return used;
}

static attend_scratch attend_scratch_of(const ds_rows *rows, unsigned thread)
{
    attend_scratch s;
    divide_attend(rows->config, ds_stage_scratch_of(&rows->linear, thread), &s);
    return s;
}

/* The query vectors that a task takes together: some rows of one sequence times some heads. */
typedef struct query_set {
    uint32_t first_row, n_rows, first_head, n_heads;
} query_set;

/* The cached rows of tile->n tokens from `first` on: keys as they are, values without k^R. The next page's are brought
 * from memory meanwhile, also if the present span ends here: the thread's next task will need them. */
static void load_latents(const mla *a, const ds_cache *cache, size_t first, const ds_attend *attend, ds_tile *tile,
                         float *latents)
{
    const ds_kernels *kernels = a->rows->kernels;
    const ds_attend_shape *shape = attend->shape;
    size_t page = first / DS_PAGE_TOKENS;
    const uint8_t *stored = ds_cache_rows(cache, a->layer, page);
    if (shape->integers) {
        const uint8_t *next = page + 1 < cache->n_pages ? ds_cache_rows(cache, a->layer, page + 1) : NULL;
        size_t stride = (size_t)ds_attend_sections(shape) * DS_SCALE_COLS;
        for (size_t t = 0; t < tile->n; t += DS_PANEL_ROWS) {
            size_t at = t * cache->shape.row_bytes;
            ds_cache_decode_integers(&cache->shape, kernels, stored + at, ds_tile_rows(tile, t), attend->rows,
                                     tile->key_scales + t, attend->padded, next == NULL ? NULL : next + at);
            const int8_t *codes = ds_cache_codes(&cache->shape, DS_MLA_LATENT, stored + at);
            if (codes != NULL) {
                ds_tile_codes(attend, tile, t, codes, cache->shape.row_bytes, attend->rows, stride);
            } else {
                ds_tile_keys(attend, tile, t, attend->rows, stride);
                ds_tile_values(attend, tile, t, attend->rows, stride);
            }
        }
        tile->value_scales = tile->key_scales;
        ds_tile_finish(attend, tile);
    }
    if (!shape->integers || attend->any_in_floats) {
        ds_cache_decode_rows(&cache->shape, kernels, stored, tile->n, latents);
        tile->keys = tile->values = latents;
        tile->key_stride = tile->value_stride = shape->part[0] + shape->part[1];
    }
}

/* Attention over the context from token `first` to `end` - 1, at most one span: sums[i] = sum_t exp(s_it - max[i]) c_t,
 * and sum[i] is the sum of these weights. */
static void attend_span(const mla *a, const ds_sequence *sequence, query_set set, size_t first, size_t end,
                        const attend_scratch *scratch, float *sums, float *max, float *sum)
{
    ds_rows *rows = a->rows;
    mla_memory *memory = a->memory;
    const ds_config *config = rows->config;
    const ds_cache *cache = sequence->cache;
    uint32_t lora = config->kv_lora_rank, width = lora + config->qk_rope_head_dim, n_queries = set.n_rows * set.n_heads;
    ds_attend_shape shape = absorbed_shape(config, cache->shape.is_quantised);
    const float *q[QUERY_SET];
    for (uint32_t i = 0; i < n_queries; i++) {
        uint32_t row = set.first_row + i / set.n_heads, head = set.first_head + i % set.n_heads;
        q[i] = memory->absorbed + ((size_t)row * config->num_attention_heads + head) * width;
    }
    ds_tile tile;
    ds_attend attend;
    ds_attend_divide(&shape, QUERY_SET, scratch->attend, &attend, &tile);
    attend.kernels = rows->kernels;
    attend.n = n_queries;
    attend.q = q;
    attend.sums = sums;
    attend.sums_stride = lora;
    attend.max = max;
    attend.sum = sum;
    ds_attend_begin(&attend);
    ds_attend_queries(&attend);
    size_t last_position = rows->position[set.first_row + set.n_rows - 1];
    if (end > last_position + 1)
        end = last_position + 1;
    for (size_t t = first; t < end; t += DS_PAGE_TOKENS) {
        uint32_t visible[QUERY_SET];
        tile.n = end - t < DS_PAGE_TOKENS ? end - t : DS_PAGE_TOKENS;
        for (uint32_t i = 0; i < n_queries; i++)
            visible[i] = visible_tokens(rows->position[set.first_row + i / set.n_heads], t, tile.n);
        load_latents(a, cache, t, &attend, &tile, scratch->latents);
        ds_attend_tile(&attend, &tile, visible);
    }
}

/* Takes one span's sums of one query into its total: the same arithmetic whichever thread summed the span, and when. */
static void merge_span(float *total, float *total_max, float *total_sum, const float *sums, float max, float sum,
                       uint32_t n)
{
    if (max == -INFINITY)
        return; /* the query sees nothing of this span */
    float largest = max > *total_max ? max : *total_max;
    float keep = *total_max == -INFINITY ? 0.0f : expf(*total_max - largest), take = expf(max - largest);
    for (uint32_t j = 0; j < n; j++)
        total[j] = total[j] * keep + sums[j] * take;
    *total_sum = *total_sum * keep + sum * take;
    *total_max = largest;
}

/* Writes the query's softmax-weighted latent, in the model's own basis, over the query vector. */
static void finish_query(const mla *a, uint32_t row, uint32_t head, const float *total, float total_sum)
{
    const ds_config *config = a->rows->config;
    uint32_t lora = config->kv_lora_rank, width = lora + config->qk_rope_head_dim;
    float *out = a->memory->absorbed + ((size_t)row * config->num_attention_heads + head) * width;
    float scale = 1.0f / total_sum;
    for (uint32_t j = 0; j < lora; j++)
        out[j] = total[j] * scale;
    const ds_cache *cache = a->rows->sequences[a->rows->sequence_of[row]].cache;
    ds_cache_rotate_part(&cache->shape, DS_MLA_LATENT, a->rows->kernels, out);
}

static size_t span_count(size_t position) { return position / SPAN_TOKENS + 1; }

/* A query set over its whole context. */
static void attend_set(mla *a, const ds_sequence *sequence, query_set set, unsigned thread)
{
    ds_rows *rows = a->rows;
    uint32_t lora = rows->config->kv_lora_rank, n_queries = set.n_rows * set.n_heads;
    attend_scratch scratch = attend_scratch_of(rows, thread);
    float max[QUERY_SET], sum[QUERY_SET], total_max[QUERY_SET], total_sum[QUERY_SET];
    for (uint32_t i = 0; i < n_queries; i++) {
        total_max[i] = -INFINITY;
        total_sum[i] = 0;
    }
    memset(scratch.total, 0, (size_t)n_queries * lora * sizeof *scratch.total);
    size_t n_spans = span_count(rows->position[set.first_row + set.n_rows - 1]);
    for (size_t span = 0; span < n_spans; span++) {
        attend_span(a, sequence, set, span * SPAN_TOKENS, (span + 1) * SPAN_TOKENS, &scratch, scratch.sums, max, sum);
        for (uint32_t i = 0; i < n_queries; i++)
            merge_span(scratch.total + (size_t)i * lora, &total_max[i], &total_sum[i], scratch.sums + (size_t)i * lora,
                       max[i], sum[i], lora);
    }
    for (uint32_t i = 0; i < n_queries; i++)
        finish_query(a, set.first_row + i / set.n_heads, set.first_head + i % set.n_heads,
                     scratch.total + (size_t)i * lora, total_sum[i]);
}

/* A query set over one span of its context; the sums are kept until all spans are there. */
static void attend_partial(mla *a, const ds_sequence *sequence, const attend_task *task, unsigned thread)
{
    ds_rows *rows = a->rows;
    mla_memory *memory = a->memory;
    attend_scratch scratch = attend_scratch_of(rows, thread);
    query_set set = {task->first_row, task->n_rows, task->first_head, task->n_heads};
    attend_span(a, sequence, set, task->span * SPAN_TOKENS, (task->span + 1) * SPAN_TOKENS, &scratch,
                memory->span_out + task->first_partial * rows->config->kv_lora_rank,
                memory->span_max + task->first_partial, memory->span_sum + task->first_partial);
}

static void attend_run(void *context, size_t index, unsigned thread)
{
    mla *a = context;
    const attend_task *task = &a->memory->tasks[index];
    const ds_sequence *sequence = &a->rows->sequences[a->rows->sequence_of[task->first_row]];
    if (task->span == ALL_SPANS)
        attend_set(a, sequence, (query_set){task->first_row, task->n_rows, task->first_head, task->n_heads}, thread);
    else
        attend_partial(a, sequence, task, thread);
}

/* The tasks of a query set follow one another, one for each span. To merge, each of them takes some of the set's
 * queries and all spans of these queries. */
static void merge_task(void *context, size_t index, unsigned thread)
{
    mla *a = context;
    ds_rows *rows = a->rows;
    mla_memory *memory = a->memory;
    const attend_task *task = &memory->tasks[index], *run = task - task->span;
    uint32_t lora = rows->config->kv_lora_rank, n_queries = task->n_rows * task->n_heads;
    float *total = attend_scratch_of(rows, thread).total;
    for (size_t i = task->span; i < n_queries; i += task->n_spans) {
        float max = -INFINITY, sum = 0;
        memset(total, 0, lora * sizeof *total);
        for (size_t span = 0; span < task->n_spans; span++) {
            size_t partial = run[span].first_partial + i;
            merge_span(total, &max, &sum, memory->span_out + partial * lora, memory->span_max[partial],
                       memory->span_sum[partial], lora);
        }
        finish_query(a, task->first_row + (uint32_t)i / task->n_heads, task->first_head + (uint32_t)i % task->n_heads,
                     total, sum);
    }
}

/* Makes the tasks: cuts the absorbed sequences into query sets, each of some rows and set_heads heads; and, if `split`,
 * each query set into spans. Returns how many tasks there are. */
static size_t plan_absorbed(const mla *a, uint32_t set_heads, bool split)
{
    const ds_rows *rows = a->rows;
    mla_memory *memory = a->memory;
    uint32_t n_heads = rows->config->num_attention_heads;
    uint32_t set_rows = set_rows_of(n_heads);
    size_t n_tasks = 0, n_partials = 0;
    for (size_t s = 0; s < rows->n_sequences; s++) {
        const ds_sequence *sequence = &rows->sequences[s];
        if (sequence->expanded)
            continue;
        for (uint32_t row = 0; row < sequence->n_rows; row += set_rows) {
            for (uint32_t head = 0; head < n_heads; head += set_heads) {
                attend_task task = {
                    .first_row = sequence->first_row + row,
                    .n_rows = sequence->n_rows - row < set_rows ? sequence->n_rows - row : set_rows,
                    .first_head = head,
                    .n_heads = n_heads - head < set_heads ? n_heads - head : set_heads,
                    .span = ALL_SPANS,
                };
                if (!split) {
                    assert(n_tasks < memory->max_tasks);
                    memory->tasks[n_tasks++] = task;
                    continue;
                }
                task.n_spans = span_count(rows->position[task.first_row + task.n_rows - 1]);
                for (task.span = 0; task.span < task.n_spans; task.span++) {
                    task.first_partial = n_partials;
                    n_partials += (size_t)task.n_rows * task.n_heads;
                    assert(n_tasks < memory->max_tasks && n_partials <= memory->max_partials);
                    memory->tasks[n_tasks++] = task;
                }
            }
        }
    }
    return n_tasks;
}

/* Tasks for all threads. If there are too few query sets to keep the threads busy, each set is cut into spans. If the
 * context has too few spans, each set is cut into sets of fewer heads: these make the same tiles twice, which takes
 * less time than waiting. */
static size_t plan_tasks(const mla *a, size_t n_rows, size_t longest, bool *split)
{
    uint32_t n_heads = a->rows->config->num_attention_heads, set_heads = n_heads < QUERY_SET ? n_heads : QUERY_SET;
    size_t n_tasks = plan_absorbed(a, set_heads, false), n_threads = ds_pool_threads(a->rows->pool);
    size_t n_spans = span_count(longest);
    *split = n_tasks < 4 * n_threads && n_spans > 1 && n_rows * n_heads * n_spans <= a->memory->max_partials;
    if (*split)
        n_tasks = plan_absorbed(a, set_heads, true);
    if (n_tasks < n_threads)
        n_tasks = plan_absorbed(a, (uint32_t)((set_heads * n_tasks + n_threads - 1) / n_threads), *split);
    return n_tasks;
}

static dsv2_status attend_absorbed(mla *a)
{
    ds_rows *rows = a->rows;
    uint32_t n_heads = rows->config->num_attention_heads;
    size_t n_rows = 0, longest = 0;
    for (uint32_t row = 0; row < rows->n; row++) {
        if (rows->sequences[rows->sequence_of[row]].expanded)
            continue;
        n_rows++;
        longest = rows->position[row] > longest ? rows->position[row] : longest;
    }
    dsv2_status status = n_rows > 0 ? ds_stage_begin(&rows->watch, DS_STAGE_ABSORBED) : DSV2_OK;
    if (n_rows == 0 || status != DSV2_OK)
        return status;
    bool split;
    ds_pool_run(rows->pool, absorb_task, a, n_heads);
    size_t n_tasks = plan_tasks(a, n_rows, longest, &split);
    ds_pool_run(rows->pool, attend_run, a, n_tasks);
    if (split)
        ds_pool_run(rows->pool, merge_task, a, n_tasks);
    ds_pool_run(rows->pool, value_task, a, n_heads);
    return DSV2_OK;
}

/* ---- the expanded form ---- */

static ds_attend_shape expanded_shape(const ds_config *config, bool integers)
{
    return (ds_attend_shape){
        .integers = integers,
        .part = {config->qk_nope_head_dim + config->qk_rope_head_dim, 0},
        .value_width = config->v_head_dim,
        .value_section = config->v_head_dim,
        .rope = config->qk_rope_head_dim,
        .part_least = DS_MAX_15_BITS >> 6, /* keys have one scale too, and 12 bits: where the query's part is so small,
                                            * the key's other part is as large beside it */
    };
}

/* A sequence's context, or as much of it as is worked on: tokens `first` to `end` - 1. */
typedef struct segment {
    const mla *a;
    const ds_sequence *sequence;
    size_t first, end;
} segment;

/* The latents of a page in the model's own basis, as floats and, if W^UK and W^UV are interleaved, rounded. */
static void segment_task(void *context, size_t page, unsigned thread)
{
    (void)thread;
    const segment *s = context;
    ds_rows *rows = s->a->rows;
    mla_memory *memory = s->a->memory;
    const ds_cache *cache = s->sequence->cache;
    const ds_kernels *kernels = rows->kernels;
    const ds_matrix *kv_b = &s->a->weights->kv_b_proj;
    size_t first = s->first + page * DS_PAGE_TOKENS,
        n = s->end - first < DS_PAGE_TOKENS ? s->end - first : DS_PAGE_TOKENS;
    size_t width = cache->shape.width, at = page * DS_PAGE_TOKENS;
    float *latents = memory->segment_latents + at * width;
    ds_cache_decode_rows(&cache->shape, kernels, ds_cache_rows(cache, s->a->layer, first / DS_PAGE_TOKENS), n, latents);
    for (size_t t = 0; t < n; t++) {
        ds_cache_rotate_part(&cache->shape, DS_MLA_LATENT, kernels, latents + t * width);
        if (ds_type_is_interleaved(kv_b->type))
            kernels->prepare_row(memory->segment_x8 + (at + t) * ds_prepared_blocks(kv_b->cols), latents + t * width,
                                 kv_b->cols);
    }
}

/* Working memory of one thread, behind what ds_matmul wants. */
typedef struct expand_scratch {
    float *matmul; /* what ds_matmul asks for */
    float *keys;   /* [DS_PAGE_TOKENS][nope + rope]: k^C and k^R */
    float *values; /* [DS_PAGE_TOKENS][v] */
    float *value_scales; /* [DS_PAGE_TOKENS] */
    float *attend; /* what attend.c needs */
} expand_scratch;

/* Divides a thread's scratch, or with memory NULL only counts: returns floats. */
static size_t divide_expand(const ds_config *config, float *memory, expand_scratch *s)
{
    ds_attend_shape shape = expanded_shape(config, true);
    size_t key = (size_t)config->qk_nope_head_dim + config->qk_rope_head_dim, used = 0;
    s->keys = ds_take(memory, &used, DS_PAGE_TOKENS * key * sizeof(float));
    s->values = ds_take(memory, &used, (size_t)DS_PAGE_TOKENS * config->v_head_dim * sizeof(float));
    s->value_scales = ds_take(memory, &used, DS_PAGE_TOKENS * sizeof(float));
    s->attend = ds_take(memory, &used, ds_attend_floats(&shape, DS_PASS_ROWS) * sizeof(float));
    return used;
}

static expand_scratch expand_scratch_of(const ds_rows *rows, unsigned thread)
{
    expand_scratch s;
    divide_expand(rows->config, ds_stage_scratch_of(&rows->linear, thread), &s);
    s.matmul = ds_matmul_scratch_of(&rows->linear, thread);
    return s;
}

/* k^C = W^UK c (Eq. 42), with k^R behind it, and v^C = W^UV c (Eq. 45), of one head for n tokens from number `at` of
 * the segment. */
static void expand(const segment *segment, uint32_t head, size_t at, size_t n, const expand_scratch *s)
{
    ds_rows *rows = segment->a->rows;
    mla_memory *memory = segment->a->memory;
    const ds_kernels *kernels = rows->kernels;
    const ds_config *config = rows->config;
    const ds_matrix *kv_b = &segment->a->weights->kv_b_proj;
    uint32_t lora = config->kv_lora_rank, nope = config->qk_nope_head_dim, rope = config->qk_rope_head_dim,
        v_dim = config->v_head_dim;
    const float *latents[DS_PAGE_TOKENS];
    const ds_x8 *x8[DS_PAGE_TOKENS];
    for (size_t t = 0; t < n; t++) {
        latents[t] = memory->segment_latents + (at + t) * (lora + rope);
        x8[t] = memory->segment_x8 + (at + t) * ds_prepared_blocks(lora);
        memcpy(s->keys + t * (nope + rope) + nope, latents[t] + lora, rope * sizeof(float));
    }
    uint32_t first = head * (nope + v_dim);
    if (ds_type_is_interleaved(kv_b->type)) {
        ds_matmul_prepared(kernels, s->keys, nope + rope, x8, n, kv_b, first, first + nope);
        ds_matmul_prepared(kernels, s->values, v_dim, x8, n, kv_b, first + nope, first + nope + v_dim);
    } else {
        ds_matmul(kernels, s->keys, nope + rope, latents, n, kv_b, first, first + nope, s->matmul);
        ds_matmul(kernels, s->values, v_dim, latents, n, kv_b, first + nope, first + nope + v_dim, s->matmul);
    }
}

/* Makes the tile of expanded keys and values; in 16 bits, with one scale for each token's key and one for its value. */
static void load_expanded(const ds_attend *attend, ds_tile *tile, const expand_scratch *s)
{
    const ds_attend_shape *shape = attend->shape;
    uint32_t width = shape->part[0], v_dim = shape->value_width, sections = ds_attend_sections(shape),
        cols = sections * DS_SCALE_COLS;
    tile->keys = s->keys;
    tile->key_stride = width;
    tile->values = s->values;
    tile->value_stride = v_dim;
    if (!shape->integers)
        return;
    for (size_t first = 0; first < tile->n; first += DS_PANEL_ROWS) {
        size_t end = first + ds_tile_rows(tile, first);
        for (size_t t = first; t < end; t++) {
            int16_t *row = attend->rows + (t - first) * cols;
            float scale = attend->kernels->round_row(row, s->keys + t * width, width, DS_MAX_12_BITS);
            memset(row + width, 0, (cols - width) * sizeof *row);
            for (uint32_t g = 0; g < sections; g++)
                tile->key_scales[g * DS_PAGE_TOKENS + t] = scale;
        }
        ds_tile_keys(attend, tile, first, attend->rows, cols);
        for (size_t t = first; t < end; t++)
            s->value_scales[t] = attend->kernels->round_row(attend->rows + (t - first) * v_dim, s->values + t * v_dim,
                                                            v_dim, DS_MAX_12_BITS);
        ds_tile_values(attend, tile, first, attend->rows, v_dim);
    }
    tile->value_scales = s->value_scales;
    ds_tile_finish(attend, tile);
}

/* All rows of a sequence for one head, over one segment of the context (Eqs. 46, 47). */
static void expanded_task(void *context, size_t head, unsigned thread)
{
    const segment *segment = context;
    const mla *a = segment->a;
    ds_rows *rows = a->rows;
    mla_memory *memory = a->memory;
    const ds_sequence *sequence = segment->sequence;
    const ds_config *config = rows->config;
    uint32_t width = config->qk_nope_head_dim + config->qk_rope_head_dim, v_dim = config->v_head_dim,
        n_rows = sequence->n_rows;
    expand_scratch s = expand_scratch_of(rows, thread);
    ds_attend_shape shape = expanded_shape(config, sequence->cache->shape.is_quantised);
    size_t q_stride = (size_t)config->num_attention_heads * width,
        out_stride = (size_t)config->num_attention_heads * v_dim;
    const float *q[DS_PASS_ROWS];
    for (uint32_t i = 0; i < n_rows; i++)
        q[i] = memory->q + (sequence->first_row + i) * q_stride + head * width;
    ds_tile tile;
    ds_attend attend;
    ds_attend_divide(&shape, n_rows, s.attend, &attend, &tile);
    attend.kernels = rows->kernels;
    attend.n = n_rows;
    attend.q = q;
    attend.sums = memory->heads_out + sequence->first_row * out_stride + head * v_dim;
    attend.sums_stride = out_stride;
    attend.max = memory->expanded_max + head * rows->max;
    attend.sum = memory->expanded_sum + head * rows->max;
    if (segment->first == 0)
        ds_attend_begin(&attend);
    ds_attend_queries(&attend);
    for (size_t t = segment->first; t < segment->end; t += DS_PAGE_TOKENS) {
        uint32_t visible[DS_PASS_ROWS];
        tile.n = segment->end - t < DS_PAGE_TOKENS ? segment->end - t : DS_PAGE_TOKENS;
        for (uint32_t i = 0; i < n_rows; i++)
            visible[i] = visible_tokens(sequence->first_position + i, t, tile.n);
        expand(segment, (uint32_t)head, t - segment->first, tile.n, &s);
        load_expanded(&attend, &tile, &s);
        ds_attend_tile(&attend, &tile, visible);
    }
    if (segment->end < sequence->first_position + n_rows)
        return;
    for (uint32_t i = 0; i < n_rows; i++)
        for (uint32_t j = 0; j < v_dim; j++)
            attend.sums[i * out_stride + j] /= attend.sum[i];
}

/* All sequences in the expanded form. The context's latents are made ready for all heads a segment at a time. */
static dsv2_status attend_expanded(const mla *a)
{
    ds_rows *rows = a->rows;
    for (size_t i = 0; i < rows->n_sequences; i++) {
        const ds_sequence *sequence = &rows->sequences[i];
        if (!sequence->expanded)
            continue;
        size_t total = sequence->first_position + sequence->n_rows;
        for (size_t first = 0; first < total; first += SEGMENT_TOKENS) {
            dsv2_status status = ds_stage_begin(&rows->watch, DS_STAGE_EXPANDED);
            if (status != DSV2_OK)
                return status;
            size_t n = total - first < SEGMENT_TOKENS ? total - first : SEGMENT_TOKENS;
            segment s = {a, sequence, first, first + n};
            ds_pool_run(rows->pool, segment_task, &s, (n + DS_PAGE_TOKENS - 1) / DS_PAGE_TOKENS);
            ds_pool_run(rows->pool, expanded_task, &s, rows->config->num_attention_heads);
        }
    }
    return DSV2_OK;
}

/* Whether the expanded form costs fewer multiplications for n rows at the end of a context of `total` tokens, per head:
 *   absorbed: each row through W^UK and W^UV once, then 2 lora + rope for every token it sees
 *   expanded: each token of the context through W^UK and W^UV once, then nope + rope + v for every token a row sees
 * Only a sequence's own rows are asked, so that their bits do not depend on the other sequences. */
static bool is_expanded(const ds_config *config, const ds_sequence *sequence)
{
    if (sequence->attention != DSV2_ATTENTION_AUTO)
        return sequence->attention == DSV2_ATTENTION_EXPANDED;
    double n = sequence->n_rows, total = (double)sequence->first_position + n,
        seen = n * ((double)sequence->first_position + n / 2);
    double lora = config->kv_lora_rank, nope = config->qk_nope_head_dim, rope = config->qk_rope_head_dim,
        v = config->v_head_dim;
    double absorbed = n * lora * (nope + v) + seen * (2 * lora + rope);
    double expanded_cost = total * lora * (nope + v) + seen * (nope + rope + v);
    return expanded_cost < absorbed;
}

static void choose_form(const ds_config *config, ds_sequence *sequence)
{
    sequence->expanded = is_expanded(config, sequence);
}

static size_t stage_floats(const ds_config *config)
{
    attend_scratch attend;
    expand_scratch expand;
    return ds_max(divide_attend(config, NULL, &attend), divide_expand(config, NULL, &expand));
}

/* ---- the whole ---- */

static dsv2_status run(ds_rows *rows, uint32_t layer, void *memory)
{
    const ds_mla_weights *weights = &rows->weights->layers[layer].mla;
    mla a = {rows, memory, weights, layer};
    dsv2_status status = project_queries(&a);
    if (status == DSV2_OK)
        status = project_latents(&a);
    if (status == DSV2_OK)
        status = attend_absorbed(&a);
    if (status == DSV2_OK)
        status = attend_expanded(&a);
    if (status == DSV2_OK) /* u = W^O [o_1; o_2; ...] (Eq. 47) */
        status = ds_linear(&rows->linear, &weights->o_proj, weights->o_bias, a.memory->heads_out, weights->o_proj.cols,
                           rows->n, rows->output, rows->config->hidden_size);
    return status;
}

static void row_widths(const ds_config *config, uint32_t widths[DS_MAX_PARTS])
{
    widths[DS_MLA_LATENT] = config->kv_lora_rank;
    widths[DS_MLA_ROPE] = config->qk_rope_head_dim;
}

const ds_attention_kind ds_mla_kind = {
    .name = "mla",
    .row = &ds_mla_row,
    .row_widths = row_widths,
    .memory_bytes = sizeof(mla_memory),
    .lay_out = lay_out,
    .stage_floats = stage_floats,
    .choose_form = choose_form,
    .run = run,
};

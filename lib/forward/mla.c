/* Multi-head Latent Attention (section 2.1 of the report, in full in its appendix C).
 *
 * Only c^KV and k^R of a token are in the cache. From there two ways lead to the same attention:
 *   absorbed  q^C . k^C = q^C . (W^UK c) = ((W^UK)^T q^C) . c: a query is brought into the latent space once and then meets the
 *             cached rows as they are, all heads sharing each; the weighted sum of latents goes through W^UV at the end.
 *   expanded  k^C = W^UK c and v^C = W^UV c are made for a tile of tokens and one head, used by all query rows, and dropped.
 * A query row costs less in the expanded form, a tile of context costs less in the absorbed one: see is_expanded.
 *
 * Both walk over the context a page at a time: attend.c. */
#include "forward/attend.h"
#include "forward/pass.h"

#include <math.h>
#include <string.h>

typedef struct mla {
    ds_pass *pass;
    const ds_mla_weights *weights;
    uint32_t layer;
} mla;

/* ---- queries, latents and the cache: Eqs. 37-43 ---- */

/* One row: norm of c^KV, rotation of k^R and q^R, and the row's way into the cache. Queries take the softmax scale on here. */
static void position_row(void *context, size_t row, unsigned thread)
{
    (void)thread;
    const mla *a = context;
    ds_pass *pass = a->pass;
    const ds_decoder *decoder = pass->decoder;
    const ds_config *config = decoder->config;
    uint32_t lora = config->kv_lora_rank, nope = config->qk_nope_head_dim, rope = config->qk_rope_head_dim;

    float *kv_a = pass->kv_a + row * (lora + rope);
    decoder->kernels->rms_norm(kv_a, kv_a, a->weights->kv_a_norm, config->rms_norm_eps, lora);
    const float *cos = pass->rope_cos + row * rope / 2, *sin = pass->rope_sin + row * rope / 2;
    ds_rope_rotate(config, cos, sin, kv_a + lora);
    const ds_cache *cache = pass->sequences[pass->row_sequence[row]].cache;
    size_t position = pass->row_position[row];
    ds_cache_encode_row(&cache->shape, decoder->kernels, kv_a,
                        ds_cache_rows(cache, a->layer, position / DS_PAGE_TOKENS) + position % DS_PAGE_TOKENS * cache->shape.row_bytes);

    for (uint32_t head = 0; head < config->num_attention_heads; head++) {
        float *q = pass->q + (row * config->num_attention_heads + head) * (nope + rope);
        ds_rope_rotate(config, cos, sin, q + nope);
        for (uint32_t i = 0; i < nope + rope; i++)
            q[i] *= decoder->rope.softmax_scale;
    }
}

static void queries_and_latents(mla *a)
{
    ds_pass *pass = a->pass;
    const ds_mla_weights *w = a->weights;
    const ds_config *config = pass->decoder->config;
    uint32_t hidden = config->hidden_size, q_lora = config->q_lora_rank, m = pass->n_rows;
    if (q_lora == 0) {
        ds_linear(pass, &w->q_proj, NULL, pass->normed, hidden, m, pass->q, w->q_proj.rows);
    } else {
        ds_linear(pass, &w->q_a_proj, w->q_a_bias, pass->normed, hidden, m, pass->q_a, q_lora);
        ds_norm_rows(pass, w->q_a_norm, pass->q_a, q_lora, q_lora, m, pass->q_a, q_lora);
        ds_linear(pass, &w->q_b_proj, NULL, pass->q_a, q_lora, m, pass->q, w->q_b_proj.rows);
    }
    ds_linear(pass, &w->kv_a_proj, w->kv_a_bias, pass->normed, hidden, m, pass->kv_a, w->kv_a_proj.rows);
    ds_pool_run(pass->decoder->pool, position_row, a, m);
}

/* How many of n tokens from `first` on the query at `position` may see. */
static uint32_t visible_tokens(size_t position, size_t first, size_t n)
{
    if (position < first)
        return 0;
    return (uint32_t)(position - first + 1 < n ? position - first + 1 : n);
}

/* ---- the absorbed form ---- */

/* Calls fn for every run of at most DS_QUERY_BLOCK consecutive rows in the absorbed form. */
static void for_absorbed_rows(mla *a, uint32_t head, unsigned thread, void (*fn)(mla *, uint32_t head, uint32_t row, uint32_t n, unsigned))
{
    const ds_pass *pass = a->pass;
    for (uint32_t row = 0; row < pass->n_rows;) {
        uint32_t n = 0;
        while (n < DS_QUERY_BLOCK && row + n < pass->n_rows && !pass->sequences[pass->row_sequence[row + n]].expanded)
            n++;
        if (n > 0)
            fn(a, head, row, n, thread);
        row += n > 0 ? n : 1;
    }
}

/* (W^UK)^T q^C in the cache's basis, and q^R behind it. */
static void absorb_rows(mla *a, uint32_t head, uint32_t row, uint32_t n, unsigned thread)
{
    ds_pass *pass = a->pass;
    const ds_config *config = pass->decoder->config;
    uint32_t lora = config->kv_lora_rank, nope = config->qk_nope_head_dim, rope = config->qk_rope_head_dim;
    uint32_t n_heads = config->num_attention_heads;
    const float *q[DS_QUERY_BLOCK];
    float *out = pass->absorbed + ((size_t)row * n_heads + head) * (lora + rope);
    size_t stride = (size_t)n_heads * (lora + rope);
    for (uint32_t i = 0; i < n; i++) {
        q[i] = pass->q + ((size_t)(row + i) * n_heads + head) * (nope + rope);
        memcpy(out + i * stride + lora, q[i] + nope, rope * sizeof *out);
    }
    ds_matmul(pass->decoder->kernels, out, stride, q, n, &a->weights->k_up_transposed, head * lora, (head + 1) * lora,
              ds_thread_scratch(pass, thread));
    for (uint32_t i = 0; i < n; i++) {
        const ds_cache *cache = pass->sequences[pass->row_sequence[row + i]].cache;
        ds_cache_rotate_part(&cache->shape, DS_MLA_LATENT, pass->decoder->kernels, out + i * stride);
    }
}

/* o = W^UV (weighted sum of latents). */
static void value_rows(mla *a, uint32_t head, uint32_t row, uint32_t n, unsigned thread)
{
    ds_pass *pass = a->pass;
    const ds_config *config = pass->decoder->config;
    uint32_t lora = config->kv_lora_rank, nope = config->qk_nope_head_dim, rope = config->qk_rope_head_dim;
    uint32_t n_heads = config->num_attention_heads, v_dim = config->v_head_dim;
    const float *latent[DS_QUERY_BLOCK];
    for (uint32_t i = 0; i < n; i++)
        latent[i] = pass->absorbed + ((size_t)(row + i) * n_heads + head) * (lora + rope);
    uint32_t first = head * (nope + v_dim) + nope;
    ds_matmul(pass->decoder->kernels, pass->heads_out + ((size_t)row * n_heads + head) * v_dim, (size_t)n_heads * v_dim, latent, n,
              &a->weights->kv_b_proj, first, first + v_dim, ds_thread_scratch(pass, thread));
}

static void absorb_task(void *context, size_t head, unsigned thread) { for_absorbed_rows(context, (uint32_t)head, thread, absorb_rows); }
static void value_task(void *context, size_t head, unsigned thread) { for_absorbed_rows(context, (uint32_t)head, thread, value_rows); }

_Static_assert((int)DS_QUERY_BLOCK <= (int)DS_ATTEND_ROWS, "queries of a task that meet keys at once");

static ds_attend_shape absorbed_shape(const ds_config *config, bool sixteen)
{
    return (ds_attend_shape){sixteen, {config->kv_lora_rank, config->qk_rope_head_dim}, config->kv_lora_rank, DS_SCALE_COLS, true};
}

/* Working memory of one thread: */
typedef struct attend_scratch {
    float *latents; /* [DS_PAGE_TOKENS][lora + rope]: cached rows, if they are taken as floats */
    float *sums;    /* [DS_QUERY_BLOCK][lora]: of the present span */
    float *total;   /* [DS_QUERY_BLOCK][lora]: of all spans so far */
    float *attend;  /* what attend.c needs */
} attend_scratch;

static attend_scratch attend_scratch_of(const ds_pass *pass, unsigned thread)
{
    const ds_config *config = pass->decoder->config;
    attend_scratch s;
    s.latents = ds_thread_scratch(pass, thread);
    s.sums = s.latents + (size_t)DS_PAGE_TOKENS * (config->kv_lora_rank + config->qk_rope_head_dim);
    s.total = s.sums + (size_t)DS_QUERY_BLOCK * config->kv_lora_rank;
    s.attend = s.total + (size_t)DS_QUERY_BLOCK * config->kv_lora_rank;
    return s;
}

static size_t attend_scratch_floats(const ds_config *config)
{
    ds_attend_shape shape = absorbed_shape(config, true);
    return (size_t)DS_PAGE_TOKENS * (config->kv_lora_rank + config->qk_rope_head_dim) + 2 * (size_t)DS_QUERY_BLOCK * config->kv_lora_rank +
           ds_attend_floats(&shape, DS_QUERY_BLOCK);
}

/* The query vectors that a task takes together: some rows of one sequence times some heads. */
typedef struct queries {
    uint32_t first_row, n_rows, first_head, n_heads;
} queries;

/* The cached rows of tile->n tokens from `first` on: keys as they are, values without k^R. The next page's are brought from memory
 * meanwhile, also if the present span ends here: the thread's next task will need them. */
static void load_latents(const mla *a, const ds_cache *cache, size_t first, const ds_attend *attend, ds_tile *tile, float *latents)
{
    const ds_kernels *kernels = a->pass->decoder->kernels;
    const ds_attend_shape *shape = attend->shape;
    size_t page = first / DS_PAGE_TOKENS;
    const uint8_t *stored = ds_cache_rows(cache, a->layer, page);
    if (shape->sixteen) {
        const uint8_t *next = page + 1 < cache->n_pages ? ds_cache_rows(cache, a->layer, page + 1) : NULL;
        size_t stride = (size_t)ds_attend_groups(shape) * DS_SCALE_COLS;
        for (size_t t = 0; t < tile->n; t += DS_PAIR_ROWS) {
            size_t at = t * cache->shape.row_bytes;
            ds_cache_decode_integers(&cache->shape, kernels, stored + at, ds_tile_rows(tile, t), attend->rows, tile->key_scales + t,
                                     attend->padded, next == NULL ? NULL : next + at);
            const int8_t *codes = ds_cache_codes(&cache->shape, DS_MLA_LATENT, stored + at);
            if (codes != NULL) {
                ds_tile_codes(tile, shape, kernels, t, codes, cache->shape.row_bytes, attend->rows, stride);
            } else {
                ds_tile_keys(tile, shape, kernels, t, attend->rows, stride);
                ds_tile_values(tile, shape, kernels, t, attend->rows, stride);
            }
            ds_attend_keys(attend, tile, t);
        }
        tile->value_scales = tile->key_scales;
        ds_tile_finish(tile, shape);
    } else {
        ds_cache_decode_rows(&cache->shape, kernels, stored, tile->n, latents);
        tile->keys = tile->values = latents;
        tile->key_stride = tile->value_stride = shape->part[0] + shape->part[1];
    }
}

/* The context from token `first` to `end` - 1, at most one span: sums[i] = sum_t exp(s_it - max[i]) c_t, sum[i] its weights. */
static void attend_span(const mla *a, const ds_sequence *sequence, queries block, size_t first, size_t end,
                        const attend_scratch *scratch, float *sums, float *max, float *sum)
{
    ds_pass *pass = a->pass;
    const ds_config *config = pass->decoder->config;
    const ds_cache *cache = sequence->cache;
    uint32_t lora = config->kv_lora_rank, width = lora + config->qk_rope_head_dim, n_queries = block.n_rows * block.n_heads;
    ds_attend_shape shape = absorbed_shape(config, cache->shape.is_quantised);
    const float *q[DS_QUERY_BLOCK];
    for (uint32_t i = 0; i < n_queries; i++) {
        uint32_t row = block.first_row + i / block.n_heads, head = block.first_head + i % block.n_heads;
        q[i] = pass->absorbed + ((size_t)row * config->num_attention_heads + head) * width;
    }
    ds_tile tile;
    ds_attend attend;
    ds_attend_lay_out(&shape, DS_QUERY_BLOCK, scratch->attend, &attend, &tile);
    attend.kernels = pass->decoder->kernels;
    attend.n = n_queries;
    attend.q = q;
    attend.sums = sums;
    attend.sums_stride = lora;
    attend.max = max;
    attend.sum = sum;
    ds_attend_begin(&attend);
    ds_attend_queries(&attend);
    size_t last_position = pass->row_position[block.first_row + block.n_rows - 1];
    if (end > last_position + 1)
        end = last_position + 1;
    for (size_t t = first; t < end; t += DS_PAGE_TOKENS) {
        uint32_t visible[DS_QUERY_BLOCK];
        tile.n = end - t < DS_PAGE_TOKENS ? end - t : DS_PAGE_TOKENS;
        for (uint32_t i = 0; i < n_queries; i++)
            visible[i] = visible_tokens(pass->row_position[block.first_row + i / block.n_heads], t, tile.n);
        load_latents(a, cache, t, &attend, &tile, scratch->latents);
        ds_attend_tile(&attend, &tile, visible);
    }
}

/* Takes one span's sums of one query into its total: the same arithmetic whichever thread summed the span, and when. */
static void merge_span(float *total, float *total_max, float *total_sum, const float *sums, float max, float sum, uint32_t n)
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

/* The query's softmax-weighted latent, in the model's own basis, over what was its query vector. */
static void finish_query(const mla *a, uint32_t row, uint32_t head, const float *total, float total_sum)
{
    const ds_config *config = a->pass->decoder->config;
    uint32_t lora = config->kv_lora_rank;
    float *out = a->pass->absorbed + ((size_t)row * config->num_attention_heads + head) * (lora + config->qk_rope_head_dim);
    float scale = 1.0f / total_sum;
    for (uint32_t j = 0; j < lora; j++)
        out[j] = total[j] * scale;
    const ds_cache *cache = a->pass->sequences[a->pass->row_sequence[row]].cache;
    ds_cache_rotate_part(&cache->shape, DS_MLA_LATENT, a->pass->decoder->kernels, out);
}

static size_t span_count(size_t position) { return position / DS_SPAN_TOKENS + 1; }

/* A block of queries over its whole context. */
static void attend_block(mla *a, const ds_sequence *sequence, queries block, unsigned thread)
{
    ds_pass *pass = a->pass;
    uint32_t lora = pass->decoder->config->kv_lora_rank, n_queries = block.n_rows * block.n_heads;
    attend_scratch scratch = attend_scratch_of(pass, thread);
    float max[DS_QUERY_BLOCK], sum[DS_QUERY_BLOCK], total_max[DS_QUERY_BLOCK], total_sum[DS_QUERY_BLOCK];
    for (uint32_t i = 0; i < n_queries; i++) {
        total_max[i] = -INFINITY;
        total_sum[i] = 0;
    }
    memset(scratch.total, 0, (size_t)n_queries * lora * sizeof *scratch.total);
    size_t n_spans = span_count(pass->row_position[block.first_row + block.n_rows - 1]);
    for (size_t span = 0; span < n_spans; span++) {
        attend_span(a, sequence, block, span * DS_SPAN_TOKENS, (span + 1) * DS_SPAN_TOKENS, &scratch, scratch.sums, max, sum);
        for (uint32_t i = 0; i < n_queries; i++)
            merge_span(scratch.total + (size_t)i * lora, &total_max[i], &total_sum[i], scratch.sums + (size_t)i * lora, max[i], sum[i], lora);
    }
    for (uint32_t i = 0; i < n_queries; i++)
        finish_query(a, block.first_row + i / block.n_heads, block.first_head + i % block.n_heads, scratch.total + (size_t)i * lora,
                     total_sum[i]);
}

/* One span of a block, its sums kept until all spans are there. */
static void attend_partial(mla *a, const ds_sequence *sequence, const ds_attend_task *task, unsigned thread)
{
    ds_pass *pass = a->pass;
    attend_scratch scratch = attend_scratch_of(pass, thread);
    queries block = {task->first_row, task->n_rows, task->first_head, task->n_heads};
    attend_span(a, sequence, block, task->span * DS_SPAN_TOKENS, (task->span + 1) * DS_SPAN_TOKENS, &scratch,
                pass->span_out + task->first_partial * pass->decoder->config->kv_lora_rank, pass->span_max + task->first_partial,
                pass->span_sum + task->first_partial);
}

static void attend_task(void *context, size_t index, unsigned thread)
{
    mla *a = context;
    const ds_attend_task *task = &a->pass->attend_tasks[index];
    const ds_sequence *sequence = &a->pass->sequences[a->pass->row_sequence[task->first_row]];
    if (task->span == DS_ALL_SPANS)
        attend_block(a, sequence, (queries){task->first_row, task->n_rows, task->first_head, task->n_heads}, thread);
    else
        attend_partial(a, sequence, task, thread);
}

/* The tasks of a block are a run, one for each span. To merge, each takes some queries and all spans of these. */
static void merge_task(void *context, size_t index, unsigned thread)
{
    mla *a = context;
    ds_pass *pass = a->pass;
    const ds_attend_task *task = &pass->attend_tasks[index], *run = task - task->span;
    uint32_t lora = pass->decoder->config->kv_lora_rank, n_queries = task->n_rows * task->n_heads;
    float *total = attend_scratch_of(pass, thread).total;
    for (size_t i = task->span; i < n_queries; i += task->n_spans) {
        float max = -INFINITY, sum = 0;
        memset(total, 0, lora * sizeof *total);
        for (size_t span = 0; span < task->n_spans; span++) {
            size_t partial = run[span].first_partial + i;
            merge_span(total, &max, &sum, pass->span_out + partial * lora, pass->span_max[partial], pass->span_sum[partial], lora);
        }
        finish_query(a, task->first_row + (uint32_t)i / task->n_heads, task->first_head + (uint32_t)i % task->n_heads, total, sum);
    }
}

/* Cuts the absorbed sequences into blocks of queries, each of some rows and block_heads heads; and these, if `split`, into spans. */
static size_t plan_absorbed(ds_pass *pass, uint32_t block_heads, bool split)
{
    uint32_t n_heads = pass->decoder->config->num_attention_heads;
    uint32_t block_rows = n_heads < DS_QUERY_BLOCK ? DS_QUERY_BLOCK / n_heads : 1;
    size_t n_tasks = 0, n_partials = 0;
    for (size_t s = 0; s < pass->n_sequences; s++) {
        const ds_sequence *sequence = &pass->sequences[s];
        if (sequence->expanded)
            continue;
        for (uint32_t row = 0; row < sequence->n_rows; row += block_rows) {
            for (uint32_t head = 0; head < n_heads; head += block_heads) {
                ds_attend_task task = {
                    .first_row = sequence->first_row + row,
                    .n_rows = sequence->n_rows - row < block_rows ? sequence->n_rows - row : block_rows,
                    .first_head = head,
                    .n_heads = n_heads - head < block_heads ? n_heads - head : block_heads,
                    .span = DS_ALL_SPANS,
                };
                if (!split) {
                    pass->attend_tasks[n_tasks++] = task;
                    continue;
                }
                task.n_spans = span_count(pass->row_position[task.first_row + task.n_rows - 1]);
                for (task.span = 0; task.span < task.n_spans; task.span++) {
                    task.first_partial = n_partials;
                    n_partials += (size_t)task.n_rows * task.n_heads;
                    pass->attend_tasks[n_tasks++] = task;
                }
            }
        }
    }
    return n_tasks;
}

static void attend_absorbed(mla *a)
{
    ds_pass *pass = a->pass;
    const ds_config *config = pass->decoder->config;
    size_t n_rows = 0, longest = 0;
    for (uint32_t row = 0; row < pass->n_rows; row++) {
        if (pass->sequences[pass->row_sequence[row]].expanded)
            continue;
        n_rows++;
        longest = pass->row_position[row] > longest ? pass->row_position[row] : longest;
    }
    if (n_rows == 0)
        return;
    ds_pool_run(pass->decoder->pool, absorb_task, a, config->num_attention_heads);
    /* Where there are too few blocks to keep the threads busy they are cut into spans; and into heads, if they have too few of these:
     * each then makes the same tiles, which takes less time than waiting. */
    uint32_t n_heads = config->num_attention_heads, block_heads = n_heads < DS_QUERY_BLOCK ? n_heads : DS_QUERY_BLOCK;
    size_t n_tasks = plan_absorbed(pass, block_heads, false), n_threads = ds_pool_threads(pass->decoder->pool);
    size_t n_spans = span_count(longest);
    bool split = n_tasks < 4 * n_threads && n_spans > 1 && n_rows * n_heads * n_spans <= pass->max_partials;
    if (split)
        n_tasks = plan_absorbed(pass, block_heads, true);
    if (n_tasks < n_threads)
        n_tasks = plan_absorbed(pass, (uint32_t)((block_heads * n_tasks + n_threads - 1) / n_threads), split);
    ds_pool_run(pass->decoder->pool, attend_task, a, n_tasks);
    if (split)
        ds_pool_run(pass->decoder->pool, merge_task, a, n_tasks);
    ds_pool_run(pass->decoder->pool, value_task, a, config->num_attention_heads);
}

/* ---- the expanded form ---- */

static ds_attend_shape expanded_shape(const ds_config *config, bool sixteen)
{
    return (ds_attend_shape){sixteen, {config->qk_nope_head_dim + config->qk_rope_head_dim, 0}, config->v_head_dim, config->v_head_dim,
                             false};
}

/* A sequence's context, or as much of it as is worked on: tokens `first` to `end` - 1. */
typedef struct segment {
    const mla *a;
    const ds_sequence *sequence;
    size_t first, end;
} segment;

/* The latents of a page in the model's own basis, as floats and, if W^UK and W^UV are packed, rounded. */
static void segment_task(void *context, size_t page, unsigned thread)
{
    (void)thread;
    const segment *s = context;
    ds_pass *pass = s->a->pass;
    const ds_cache *cache = s->sequence->cache;
    const ds_kernels *kernels = pass->decoder->kernels;
    const ds_matrix *kv_b = &s->a->weights->kv_b_proj;
    size_t first = s->first + page * DS_PAGE_TOKENS, n = s->end - first < DS_PAGE_TOKENS ? s->end - first : DS_PAGE_TOKENS;
    size_t width = cache->shape.width, at = page * DS_PAGE_TOKENS;
    float *latents = pass->segment_latents + at * width;
    ds_cache_decode_rows(&cache->shape, kernels, ds_cache_rows(cache, s->a->layer, first / DS_PAGE_TOKENS), n, latents);
    for (size_t t = 0; t < n; t++) {
        ds_cache_rotate_part(&cache->shape, DS_MLA_LATENT, kernels, latents + t * width);
        if (ds_type_is_packed(kv_b->type))
            kernels->prepare_row(pass->segment_x8 + (at + t) * ds_prepared_blocks(kv_b->cols), latents + t * width, kv_b->cols);
    }
}

/* Working memory of one thread, behind what ds_matmul wants. */
typedef struct expand_scratch {
    float *matmul;
    float *keys;   /* [DS_PAGE_TOKENS][nope + rope]: k^C and k^R */
    float *values; /* [DS_PAGE_TOKENS][v] */
    float *value_scales; /* [DS_PAGE_TOKENS] */
    float *attend; /* what attend.c needs */
} expand_scratch;

static size_t expand_scratch_floats(const ds_config *config)
{
    ds_attend_shape shape = expanded_shape(config, true);
    return (size_t)DS_PAGE_TOKENS * (config->qk_nope_head_dim + (size_t)config->qk_rope_head_dim + config->v_head_dim + 1) +
           ds_attend_floats(&shape, DS_PASS_ROWS);
}

static expand_scratch expand_scratch_of(const ds_pass *pass, const ds_mla_weights *weights, unsigned thread)
{
    const ds_config *config = pass->decoder->config;
    expand_scratch s;
    s.matmul = ds_thread_scratch(pass, thread);
    s.keys = s.matmul + ds_matmul_scratch(&weights->kv_b_proj);
    s.values = s.keys + (size_t)DS_PAGE_TOKENS * (config->qk_nope_head_dim + config->qk_rope_head_dim);
    s.value_scales = s.values + (size_t)DS_PAGE_TOKENS * config->v_head_dim;
    s.attend = s.value_scales + DS_PAGE_TOKENS;
    return s;
}

/* k^C = W^UK c (Eq. 42), with k^R behind it, and v^C = W^UV c (Eq. 45), of one head for n tokens from number `at` of the segment. */
static void expand(const segment *segment, uint32_t head, size_t at, size_t n, const expand_scratch *s)
{
    ds_pass *pass = segment->a->pass;
    const ds_kernels *kernels = pass->decoder->kernels;
    const ds_config *config = pass->decoder->config;
    const ds_matrix *kv_b = &segment->a->weights->kv_b_proj;
    uint32_t lora = config->kv_lora_rank, nope = config->qk_nope_head_dim, rope = config->qk_rope_head_dim, v_dim = config->v_head_dim;
    const float *latents[DS_PAGE_TOKENS];
    const ds_x8 *x8[DS_PAGE_TOKENS];
    for (size_t t = 0; t < n; t++) {
        latents[t] = pass->segment_latents + (at + t) * (lora + rope);
        x8[t] = pass->segment_x8 + (at + t) * ds_prepared_blocks(lora);
        memcpy(s->keys + t * (nope + rope) + nope, latents[t] + lora, rope * sizeof(float));
    }
    uint32_t first = head * (nope + v_dim);
    if (ds_type_is_packed(kv_b->type)) {
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
    uint32_t width = shape->part[0], v_dim = shape->value_width, groups = ds_attend_groups(shape), cols = groups * DS_SCALE_COLS;
    if (!shape->sixteen) {
        tile->keys = s->keys;
        tile->key_stride = width;
        tile->values = s->values;
        tile->value_stride = v_dim;
        return;
    }
    for (size_t first = 0; first < tile->n; first += DS_PAIR_ROWS) {
        size_t end = first + ds_tile_rows(tile, first);
        for (size_t t = first; t < end; t++) {
            int16_t *row = attend->rows + (t - first) * cols;
            float scale = attend->kernels->round_row(row, s->keys + t * width, width, DS_NARROW);
            memset(row + width, 0, (cols - width) * sizeof *row);
            for (uint32_t g = 0; g < groups; g++)
                tile->key_scales[g * DS_PAGE_TOKENS + t] = scale;
        }
        ds_tile_keys(tile, shape, attend->kernels, first, attend->rows, cols);
        for (size_t t = first; t < end; t++)
            s->value_scales[t] = attend->kernels->round_row(attend->rows + (t - first) * v_dim, s->values + t * v_dim, v_dim, DS_NARROW);
        ds_tile_values(tile, shape, attend->kernels, first, attend->rows, v_dim);
    }
    tile->value_scales = s->value_scales;
    ds_tile_finish(tile, shape);
}

/* All rows of a sequence for one head, over one segment of the context (Eqs. 46, 47). */
static void expanded_task(void *context, size_t head, unsigned thread)
{
    const segment *segment = context;
    const mla *a = segment->a;
    ds_pass *pass = a->pass;
    const ds_sequence *sequence = segment->sequence;
    const ds_config *config = pass->decoder->config;
    uint32_t width = config->qk_nope_head_dim + config->qk_rope_head_dim, v_dim = config->v_head_dim, n_rows = sequence->n_rows;
    expand_scratch s = expand_scratch_of(pass, a->weights, thread);
    ds_attend_shape shape = expanded_shape(config, sequence->cache->shape.is_quantised);
    size_t q_stride = (size_t)config->num_attention_heads * width, out_stride = (size_t)config->num_attention_heads * v_dim;
    const float *q[DS_PASS_ROWS];
    for (uint32_t i = 0; i < n_rows; i++)
        q[i] = pass->q + (sequence->first_row + i) * q_stride + head * width;
    ds_tile tile;
    ds_attend attend;
    ds_attend_lay_out(&shape, n_rows, s.attend, &attend, &tile);
    attend.kernels = pass->decoder->kernels;
    attend.n = n_rows;
    attend.q = q;
    attend.sums = pass->heads_out + sequence->first_row * out_stride + head * v_dim;
    attend.sums_stride = out_stride;
    attend.max = pass->expanded_max + head * pass->max_rows;
    attend.sum = pass->expanded_sum + head * pass->max_rows;
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
static void attend_expanded(const mla *a)
{
    ds_pass *pass = a->pass;
    for (size_t i = 0; i < pass->n_sequences; i++) {
        const ds_sequence *sequence = &pass->sequences[i];
        if (!sequence->expanded)
            continue;
        size_t total = sequence->first_position + sequence->n_rows;
        for (size_t first = 0; first < total; first += DS_SEGMENT_TOKENS) {
            size_t n = total - first < DS_SEGMENT_TOKENS ? total - first : DS_SEGMENT_TOKENS;
            segment s = {a, sequence, first, first + n};
            ds_pool_run(pass->decoder->pool, segment_task, &s, (n + DS_PAGE_TOKENS - 1) / DS_PAGE_TOKENS);
            ds_pool_run(pass->decoder->pool, expanded_task, &s, pass->decoder->config->num_attention_heads);
        }
    }
}

/* Which form costs fewer multiplications for n rows at the end of a context of `total` tokens, per head:
 *   absorbed: each row through W^UK and W^UV once, then 2 lora + rope for every token it sees
 *   expanded: each token of the context through W^UK and W^UV once, then nope + rope + v for every token a row sees
 * Asked of a sequence's own rows alone, so that its bits do not depend on its companions. */
static bool is_expanded(const ds_config *config, const ds_sequence *sequence)
{
    if (sequence->attention != DSV2_ATTENTION_AUTO)
        return sequence->attention == DSV2_ATTENTION_EXPANDED;
    double n = sequence->n_rows, total = (double)sequence->first_position + n, seen = n * ((double)sequence->first_position + n / 2);
    double lora = config->kv_lora_rank, nope = config->qk_nope_head_dim, rope = config->qk_rope_head_dim, v = config->v_head_dim;
    double absorbed = n * lora * (nope + v) + seen * (2 * lora + rope);
    double expanded_cost = total * lora * (nope + v) + seen * (nope + rope + v);
    return expanded_cost < absorbed;
}

void ds_mla_choose_form(const ds_decoder *decoder, ds_sequence *sequence) { sequence->expanded = is_expanded(decoder->config, sequence); }

size_t ds_mla_scratch(const ds_decoder *decoder)
{
    size_t absorbed = attend_scratch_floats(decoder->config), expand = expand_scratch_floats(decoder->config);
    return absorbed > expand ? absorbed : expand;
}

void ds_mla(ds_pass *pass, uint32_t layer)
{
    const ds_mla_weights *weights = &pass->decoder->weights->layers[layer].mla;
    const ds_config *config = pass->decoder->config;
    mla a = {pass, weights, layer};
    queries_and_latents(&a);
    attend_absorbed(&a);
    attend_expanded(&a);
    ds_linear(pass, &weights->o_proj, weights->o_bias, pass->heads_out, weights->o_proj.cols, pass->n_rows, pass->block_out,
              config->hidden_size);
}

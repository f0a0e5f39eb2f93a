/* What one forward pass works on. Inside the model room only. m: rows in the pass. */
#ifndef DS_LIB_FORWARD_PASS_H
#define DS_LIB_FORWARD_PASS_H

#include "forward/forward.h"

/* Rows of weights that one task of a parallel region multiplies: small enough to share out evenly, large enough to pay. */
enum { DS_TASK_ROWS = 64 };

/* Attention in the absorbed form goes over the context in spans of this many pages, each summed by itself and merged in order,
 * so that spans can be shared out over threads without changing a bit of the result. */
enum { DS_SPAN_PAGES = 8, DS_SPAN_TOKENS = DS_SPAN_PAGES * DS_PAGE_TOKENS };

/* Tokens of context whose latents are made ready together for the expanded form: some megabytes. */
enum { DS_SEGMENT_TOKENS = 2048 };

/* Query vectors that one attention task takes through a tile together. */
enum { DS_QUERY_BLOCK = 64 };

/* Rows of logits computed at a time when every token's are asked for. */
enum { DS_LOGIT_ROWS = 32 };

/* One SwiGLU network applied to some rows: an item of ds_ffn_run's work. */
typedef struct ds_ffn_job {
    const ds_ffn_weights *weights;
    uint32_t n_rows;      /* rows of input, */
    uint32_t first_input; /* which are rows pass->ffn_rows[first_input ...] of `normed` */
    size_t first_hidden;  /* floats into ffn_hidden: n_rows x intermediate */
    size_t first_x8;      /* blocks into ffn_x8: n_rows x ds_prepared_blocks(intermediate) */
    size_t first_output;  /* floats into ffn_output: n_rows x hidden_size */
} ds_ffn_job;

/* A slice of one job's weights: a task. */
typedef struct ds_ffn_slice {
    uint32_t job, first, end;
} ds_ffn_slice;

/* Some query vectors of one sequence, rows times heads, and a part of their context. */
typedef struct ds_attend_task {
    uint32_t first_row, n_rows, first_head, n_heads;
    size_t span; /* or DS_ALL_SPANS */
    size_t n_spans, first_partial; /* for single spans: how many the block has, and where this one's sums go */
} ds_attend_task;

#define DS_ALL_SPANS SIZE_MAX

struct ds_pass {
    ds_decoder *decoder;
    ds_pass *next; /* in the decoder's store */

    /* What it has room for. */
    uint32_t max_rows;
    size_t max_position;
    uint8_t *memory;
    size_t memory_bytes;

    /* The pass at work. */
    ds_sequence *sequences;
    size_t n_sequences;
    uint32_t n_rows;
    uint32_t *row_sequence;  /* [m]: index of the row's sequence */
    size_t *row_position;    /* [m]: position in that session */

    /* Rows, m of each. */
    float *hidden;     /* [hidden_size]: the residual stream h */
    float *normed;     /* [hidden_size]: input of the next block, after its norm */
    float *block_out;  /* [hidden_size]: output of attention or feed-forward, before it is added */
    float *rope_cos, *rope_sin; /* [rope / 2] */

    /* Of attention. It, the feed-forward part and the head each work where the other two do: nothing outlasts its part. Rows, m of each: */
    float *q;          /* [n_heads][nope + rope]: queries; rope part rotated in place */
    float *q_a;        /* [q_lora_rank]: c^Q */
    float *kv_a;       /* [kv_lora_rank + rope]: c^KV and k^R */
    float *absorbed;   /* [n_heads][kv_lora_rank + rope]: q^C W^UK and q^R; afterwards the weighted sum of latents */
    float *heads_out;  /* [n_heads][v_head_dim]: o before W^O */

    /* The expanded form: */
    float *segment_latents; /* [DS_SEGMENT_TOKENS or fewer][kv_lora_rank + rope] */
    ds_x8 *segment_x8;    /* the same rounded, without k^R */
    float *expanded_max, *expanded_sum; /* [n_heads][max_rows] */

    ds_attend_task *attend_tasks;
    /* Sums of attention over single spans, see mla.c: max_partials query vectors times spans fit. */
    float *span_out, *span_max, *span_sum;
    size_t max_partials;

    /* Of the feed-forward part: */
    ds_routes routes;
    uint32_t *expert_rows; /* counts, then first row per expert: n_routed_experts + 1 */
    uint32_t *chosen;      /* [n_chosen]: the experts that some row chose, in order */
    uint32_t n_chosen;
    const ds_ffn_weights **chosen_weights; /* [n_chosen]: theirs, from the source */
    uint32_t *pair_slot;   /* [m][num_experts_per_tok]: where in the grouped order the pair went */
    uint32_t *ffn_rows;       /* [m * (top_k + 1)]: the slots, grouped by job: rows of the pass, */
    const float **ffn_inputs; /* and where they are in `normed` */
    const float **ffn_hidden_rows; /* the same slots: rows of ffn_hidden */
    float *ffn_hidden, *ffn_output;
    ds_ffn_job *ffn_jobs;
    ds_ffn_slice *ffn_slices;
    uint32_t n_ffn_jobs;
    ds_x8 *ffn_x8;         /* ffn_hidden rounded to 8 bits, for packed W_down: laid out as ffn_hidden is */
    const ds_x8 **ffn_input_x8, **ffn_hidden_x8; /* [slots], beside ffn_inputs and ffn_hidden_rows */

    /* Of the head: */
    float *logits; /* [DS_LOGIT_ROWS][vocab_size] */
    uint32_t *logit_rows; /* [m]: rows whose logits are wanted */

    /* Of each linear map, also of the feed-forward part's first: */
    const float **row_pointers; /* [m] */
    ds_x8 *x8;             /* [m][x8_stride]: inputs rounded to 8 bits, for packed weights */
    size_t x8_stride;        /* blocks between rows, of the widest input */
    const ds_x8 **x8_rows; /* [m] */
    float *thread_scratch;      /* n_threads of thread_scratch_floats */
    size_t thread_scratch_floats;
};

/* out[i] = W x[i] (+ bias) for m rows, over all threads; x[i] is x + i * x_stride. */
void ds_linear(ds_pass *pass, const ds_matrix *w, const float *bias, const float *x, size_t x_stride, size_t m, float *out,
               size_t out_stride);

/* Rounds m rows of n floats to pass->x8 and points pass->x8_rows at them. */
void ds_prepare_rows(ds_pass *pass, const float *x, size_t x_stride, uint32_t n, size_t m);

/* out[i] = RMSNorm(x[i]) for m rows of n elements. */
void ds_norm_rows(ds_pass *pass, const float *weight, const float *x, size_t x_stride, size_t n, size_t m, float *out,
                  size_t out_stride);

/* pass.c: the working memory of one thread, thread_scratch_floats floats. */
float *ds_thread_scratch(const ds_pass *pass, unsigned thread);

/* mla.c: block_out = attention(normed), writing the rows' latents to their caches. */
void ds_mla(ds_pass *pass, uint32_t layer);
/* Floats of scratch that a thread needs for it, besides ds_matmul's. */
size_t ds_mla_scratch(const ds_decoder *decoder);
/* Sets sequence->expanded. */
void ds_mla_choose_form(const ds_decoder *decoder, ds_sequence *sequence);

/* ffn.c: every job's network on its rows: ffn_output = W_down (silu(W_gate x) * W_up x). */
void ds_ffn_run(ds_pass *pass);
/* block_out = the dense layer's network on `normed`. */
void ds_ffn_dense(ds_pass *pass, const ds_ffn_weights *weights);

/* router.c: fills pass->routes from `normed`. */
void ds_route(ds_pass *pass, const ds_moe_weights *moe);

/* moe.c: block_out = shared experts + gated routed experts of `normed`. Fails as the source of experts does. */
dsv2_status ds_moe(ds_pass *pass, uint32_t layer);

#endif

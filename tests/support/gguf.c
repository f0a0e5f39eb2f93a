#include "support/gguf.h"

#include "support/checkpoint.h"
#include "support/tensors.h"

#include <check.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- bytes of a file ---- */

typedef struct buffer {
    uint8_t *data;
    size_t size, capacity;
} buffer;

static void put(buffer *b, const void *data, size_t size)
{
    if (b->size + size > b->capacity) {
        b->capacity = 2 * (b->size + size);
        b->data = realloc(b->data, b->capacity);
        ck_assert(b->data != NULL);
    }
    if (size > 0)
        memcpy(b->data + b->size, data, size);
    b->size += size;
}

static void put_u32(buffer *b, uint32_t value) { put(b, &value, sizeof value); } /* little-endian, as the machine */
static void put_u64(buffer *b, uint64_t value) { put(b, &value, sizeof value); }

static void put_string(buffer *b, const char *text)
{
    put_u64(b, strlen(text));
    put(b, text, strlen(text));
}

static void pad(buffer *b, size_t alignment)
{
    while (b->size % alignment != 0)
        put(b, "", 1);
}

/* ---- metadata ---- */

typedef struct metadata {
    buffer bytes;
    uint64_t n;
} metadata;

enum { U16 = 2, U32 = 4, F32 = 6, BOOL = 7, STRING = 8 };

static void key(metadata *m, const char *name, uint32_t type)
{
    put_string(&m->bytes, name[0] == '.' ? test_format("deepseek2%s", name) : name); /* ".x": a key of deepseek2 */
    put_u32(&m->bytes, type);
    m->n++;
}

static void key_u32(metadata *m, const char *name, uint32_t value)
{
    key(m, name, U32);
    put_u32(&m->bytes, value);
}

static void key_u16(metadata *m, const char *name, uint16_t value)
{
    key(m, name, U16);
    put(&m->bytes, &value, sizeof value);
}

static void key_f32(metadata *m, const char *name, double value)
{
    float number = (float)value;
    key(m, name, F32);
    put(&m->bytes, &number, sizeof number);
}

static void key_bool(metadata *m, const char *name, bool value)
{
    uint8_t byte = value;
    key(m, name, BOOL);
    put(&m->bytes, &byte, 1);
}

static void key_string(metadata *m, const char *name, const char *value)
{
    key(m, name, STRING);
    put_string(&m->bytes, value);
}

static uint32_t integer(const json_t *config, const char *name)
{
    return (uint32_t)json_integer_value(json_object_get(config, name)); /* 0 where it is null or missing */
}

static void put_heads(metadata *m, const json_t *config, bool old)
{
    uint32_t n_heads = integer(config, "num_attention_heads"), lora = integer(config, "kv_lora_rank"),
             rope = integer(config, "qk_rope_head_dim");
    uint32_t key_length = integer(config, "qk_nope_head_dim") + rope, value_length = integer(config, "v_head_dim");
    key_u32(m, ".attention.head_count", n_heads);
    key_u32(m, ".attention.head_count_kv", old ? n_heads : 1);
    key_u32(m, ".attention.kv_lora_rank", lora);
    key_u32(m, ".rope.dimension_count", rope);
    key_u32(m, ".attention.key_length", old ? key_length : lora + rope);
    key_u32(m, ".attention.value_length", old ? value_length : lora);
    if (!old) {
        key_u32(m, ".attention.key_length_mla", key_length);
        key_u32(m, ".attention.value_length_mla", value_length);
    }
    if (integer(config, "q_lora_rank") > 0)
        key_u32(m, ".attention.q_lora_rank", integer(config, "q_lora_rank"));
    key_f32(m, ".attention.layer_norm_rms_epsilon", json_number_value(json_object_get(config, "rms_norm_eps")));
}

static void put_rope(metadata *m, const json_t *config)
{
    key_f32(m, ".rope.freq_base", json_number_value(json_object_get(config, "rope_theta")));
    const json_t *yarn = json_object_get(config, "rope_scaling");
    if (!json_is_object(yarn))
        return;
    double mscale = json_number_value(json_object_get(yarn, "mscale_all_dim"));
    ck_assert(mscale == json_number_value(json_object_get(yarn, "mscale"))); /* or a GGUF could not say it */
    key_string(m, ".rope.scaling.type", "yarn");
    key_f32(m, ".rope.scaling.factor", json_number_value(json_object_get(yarn, "factor")));
    key_u32(m, ".rope.scaling.original_context_length", integer(yarn, "original_max_position_embeddings"));
    key_f32(m, ".rope.scaling.yarn_log_multiplier", 0.1 * mscale);
    if (json_number_value(json_object_get(yarn, "beta_fast")) != 32)
        key_f32(m, ".rope.scaling.yarn_beta_fast", json_number_value(json_object_get(yarn, "beta_fast")));
}

static void put_experts(metadata *m, const json_t *config, const test_gguf *options)
{
    if (integer(config, "n_routed_experts") == 0)
        return;
    key_u32(m, ".expert_count", integer(config, "n_routed_experts"));
    key_u32(m, ".expert_used_count", integer(config, "num_experts_per_tok"));
    key_u32(m, ".expert_shared_count", integer(config, "n_shared_experts"));
    key_u32(m, ".expert_feed_forward_length", integer(config, "moe_intermediate_size"));
    if (json_is_number(json_object_get(config, "routed_scaling_factor")))
        key_f32(m, ".expert_weights_scale", json_number_value(json_object_get(config, "routed_scaling_factor")));
    bool sigmoid = json_string_value(json_object_get(config, "scoring_func")) != NULL &&
                   strcmp(json_string_value(json_object_get(config, "scoring_func")), "sigmoid") == 0;
    if (json_is_true(json_object_get(config, "norm_topk_prob")))
        key_bool(m, ".expert_weights_norm", true);
    if (!options->no_gating && (!options->old || sigmoid))
        key_u32(m, ".expert_gating_func", sigmoid && !options->softmax ? 2 : 1);
    if (!options->old && integer(config, "n_group") > 0) {
        key_u32(m, ".expert_group_count", integer(config, "n_group"));
        key_u32(m, ".expert_group_used_count", integer(config, "topk_group"));
    }
}

static metadata make_metadata(const json_t *config, const test_gguf *options)
{
    metadata m = {0};
    key_string(&m, "general.architecture", "deepseek2");
    key_u32(&m, ".embedding_length", integer(config, "hidden_size"));
    key_u32(&m, ".feed_forward_length", integer(config, "intermediate_size"));
    /* Newer files count V3's additional prediction layers among the blocks. */
    key_u32(&m, ".block_count", integer(config, "num_hidden_layers") + (options->old ? 0 : 1));
    if (!options->old)
        key_u32(&m, ".nextn_predict_layers", 1);
    key_u32(&m, ".context_length", integer(config, "max_position_embeddings"));
    key_u32(&m, ".leading_dense_block_count", integer(config, "first_k_dense_replace"));
    if (json_is_integer(json_object_get(config, "bos_token_id")))
        key_u32(&m, "tokenizer.ggml.bos_token_id", integer(config, "bos_token_id"));
    put_heads(&m, config, options->old);
    put_rope(&m, config);
    put_experts(&m, config, options);
    return m;
}

/* ---- tensors ---- */

/* A tensor of the GGUF. */
typedef struct part {
    char name[96];
    ds_type type;
    size_t n_dims, dims[3]; /* outermost first */
    uint8_t *data;
    size_t n_bytes;
} part;

typedef struct converter {
    const test_gguf *options;
    const ds_kernels *kernels;
    uint64_t seed;
    test_tensors source, floats;
    part parts[512];
    size_t n_parts;
} converter;

static uint32_t number_of(ds_type type)
{
    uint32_t number = 0;
    while (ds_type_of_gguf(number) != type)
        ck_assert(number++ < 1024);
    return number;
}

static void *allocate(size_t size)
{
    void *memory = calloc(size, 1);
    ck_assert(memory != NULL);
    return memory;
}

static part *add_part(converter *c, const char *name, ds_type type, size_t n_dims, const size_t *dims)
{
    ck_assert_uint_lt(c->n_parts, sizeof c->parts / sizeof *c->parts);
    part *p = &c->parts[c->n_parts++];
    *p = (part){.type = type, .n_dims = n_dims};
    snprintf(p->name, sizeof p->name, "%s", name);
    size_t rows = 1;
    for (size_t i = 0; i < n_dims; i++) {
        p->dims[i] = dims[i];
        rows *= i + 1 < n_dims ? dims[i] : 1;
    }
    p->n_bytes = rows * ds_type_row_bytes(type, dims[n_dims - 1]);
    ck_assert_uint_gt(p->n_bytes, 0);
    p->data = allocate(p->n_bytes);
    return p;
}

/* Where a block has its scale and its minimum, both f16, and the values of the two that give weights of standard
 * deviation 1 if all other bytes are random. */
static const struct {
    ds_type type;
    size_t bytes, scale_at, minimum_at;
    double scale, minimum; /* minimum 0: the type has none */
} recipes[] = {
    {DS_TYPE_Q8_0, 34, 0, 0, 1 / 74.0, 0},
    {DS_TYPE_Q4_0, 18, 0, 0, 1 / 4.6, 0},
    {DS_TYPE_Q4_1, 20, 0, 2, 1 / 4.6, -7.5 / 4.6},
    {DS_TYPE_Q5_0, 22, 0, 0, 1 / 9.2, 0},
    {DS_TYPE_Q5_1, 24, 0, 2, 1 / 9.2, -15.5 / 9.2},
    {DS_TYPE_Q2_K, 84, 80, 82, 1 / 14.0, 1.5 / 14},
    {DS_TYPE_Q3_K, 110, 108, 0, 1 / 42.0, 0},
    {DS_TYPE_Q4_K, 144, 0, 2, 1 / 250.0, 7.5 / 250},
    {DS_TYPE_Q5_K, 176, 0, 2, 1 / 500.0, 15.5 / 500},
    {DS_TYPE_Q6_K, 210, 208, 0, 1 / 1370.0, 0},
    {DS_TYPE_IQ4_NL, 18, 0, 0, 1 / 68.0, 0},
    {DS_TYPE_IQ4_XS, 136, 0, 0, 1 / 1260.0, 0},
};

static void fill_blocks(converter *c, part *p)
{
    size_t i = 0;
    double spread = 1 / sqrt((double)p->dims[p->n_dims - 1]);
    for (size_t b = 0; p->type == DS_TYPE_F32 && b < p->n_bytes; b += 4) { /* rows that no blocks fit */
        float value = (float)(spread * (test_random(&c->seed) - 0.5));
        memcpy(p->data + b, &value, 4);
    }
    if (p->type == DS_TYPE_F32)
        return;
    while (recipes[i].type != p->type)
        ck_assert_uint_lt(++i, sizeof recipes / sizeof *recipes);
    for (size_t b = 0; b < p->n_bytes; b++)
        p->data[b] = (uint8_t)(test_random(&c->seed) * 256);
    for (size_t b = 0; b < p->n_bytes; b += recipes[i].bytes) {
        double size = spread * (0.5 + test_random(&c->seed));
        uint16_t scale = ds_f32_to_f16((float)(size * recipes[i].scale)),
                 minimum = ds_f32_to_f16((float)(size * recipes[i].minimum));
        memcpy(p->data + b + recipes[i].scale_at, &scale, 2);
        if (recipes[i].minimum != 0)
            memcpy(p->data + b + recipes[i].minimum_at, &minimum, 2);
    }
}

/* The type that a matrix of the checkpoint gets if its rows have so many columns. */
static ds_type type_for(const converter *c, size_t cols)
{
    if (ds_type_row_bytes(c->options->type, cols) > 0)
        return c->options->type;
    return cols % 32 == 0 ? DS_TYPE_Q8_0 : DS_TYPE_F32;
}

static ds_type stored_type(const test_tensor *t)
{
    return strcmp(t->dtype, "F32") == 0 ? DS_TYPE_F32 : strcmp(t->dtype, "F16") == 0 ? DS_TYPE_F16 : DS_TYPE_BF16;
}

/* Element i of a checkpoint's tensor: as a float, or as the file has it. */
static float value_at(const converter *c, const test_tensor *t, size_t i)
{
    ds_type type = stored_type(t);
    float value;
    c->kernels->to_f32[type](&value, t->data + i * ds_type_row_bytes(type, 1), 1);
    return value;
}

/* Fills slice `slice` of a part from a matrix or vector. Slices are along the outermost dimension if the part has one
 * dimension more than the tensor. */
static void fill(converter *c, part *p, size_t slice, const test_tensor *t)
{
    size_t n = t->dims[0] * (t->n_dims > 1 ? t->dims[1] : 1), size = n * ds_type_row_bytes(p->type, 1);
    uint8_t *to = p->data + slice * size;
    if (p->type == stored_type(t)) {
        memcpy(to, t->data, size);
        return;
    }
    ck_assert_int_eq(p->type, DS_TYPE_F32);
    for (size_t i = 0; i < n; i++) {
        float value = value_at(c, t, i);
        memcpy(to + 4 * i, &value, 4);
    }
}

/* Adds slice `slice` of a part to the float checkpoint, as `name`. */
static void add_floats(converter *c, const part *p, size_t slice, const char *name, size_t n_dims, const size_t *dims)
{
    size_t rows = n_dims > 1 ? dims[0] : 1, cols = dims[n_dims - 1], row_bytes = ds_type_row_bytes(p->type, cols);
    float *values = allocate(rows * cols * sizeof *values);
    for (size_t r = 0; r < rows; r++)
        c->kernels->to_f32[p->type](values + r * cols, p->data + (slice * rows + r) * row_bytes, cols);
    test_tensors_add(&c->floats, name, "F32", n_dims, dims, values, rows * cols * sizeof *values);
}

/* Adds a weight that is a tensor of its own. `matrix`: a quantised file has it as blocks. */
static void convert_one(converter *c, const char *published, const char *name, bool matrix)
{
    const test_tensor *t = test_tensors_find(&c->source, published);
    if (t == NULL)
        return;
    bool blocks = matrix && c->options->quantised;
    ds_type type = blocks                                        ? type_for(c, t->dims[1])
                     : matrix && c->options->type != DS_TYPE_F32 ? stored_type(t)
                                                                   : DS_TYPE_F32;
    part *p = add_part(c, name, type, t->n_dims, t->dims);
    if (blocks && type != DS_TYPE_F32)
        fill_blocks(c, p);
    else
        fill(c, p, 0, t);
    add_floats(c, p, 0, published, t->n_dims, t->dims);
}

/* Adds a tensor with one or several matrices of every expert, one after the other. */
static void convert_experts(converter *c, size_t layer, size_t n_experts, size_t n_parts, const char *const *published,
                            const char *name)
{
    const test_tensor *first =
        test_tensors_find(&c->source, test_format("model.layers.%zu.mlp.experts.0.%s", layer, published[0]));
    if (first == NULL)
        return;
    const size_t dims[] = {n_experts, n_parts * first->dims[0], first->dims[1]};
    ds_type type = c->options->quantised               ? type_for(c, dims[2])
                     : c->options->type != DS_TYPE_F32 ? stored_type(first)
                                                         : DS_TYPE_F32;
    part *p = add_part(c, test_format("blk.%zu.%s", layer, name), type, 3, dims);
    bool blocks = c->options->quantised && type != DS_TYPE_F32;
    if (blocks)
        fill_blocks(c, p);
    for (size_t i = 0; i < n_experts * n_parts; i++) {
        const char *own =
            test_format("model.layers.%zu.mlp.experts.%zu.%s", layer, i / n_parts, published[i % n_parts]);
        if (!blocks)
            fill(c, p, i, test_tensors_find(&c->source, own));
        add_floats(c, p, i, own, 2, first->dims);
    }
}

/* Adds kv_b_proj as attn_k_b, by head with rows and columns exchanged, and as attn_v_b, by head. */
static void convert_split_kv_b(converter *c, const json_t *config, size_t layer)
{
    size_t n_heads = integer(config, "num_attention_heads"), lora = integer(config, "kv_lora_rank");
    size_t nope = integer(config, "qk_nope_head_dim"), v_dim = integer(config, "v_head_dim"), n_rows = nope + v_dim;
    const char *published = test_format("model.layers.%zu.self_attn.kv_b_proj.weight", layer);
    const test_tensor *t = test_tensors_find(&c->source, published);
    ds_type stored = c->options->type != DS_TYPE_F32 ? stored_type(t) : DS_TYPE_F32;
    ds_type k_type = c->options->quantised ? type_for(c, nope) : stored,
              v_type = c->options->quantised ? type_for(c, lora) : stored;
    part *k = add_part(c, test_format("blk.%zu.attn_k_b.weight", layer), k_type, 3, (size_t[]){n_heads, lora, nope});
    part *v = add_part(c, test_format("blk.%zu.attn_v_b.weight", layer), v_type, 3, (size_t[]){n_heads, v_dim, lora});
    if (c->options->quantised) {
        fill_blocks(c, k);
        fill_blocks(c, v);
        float *values = allocate(n_heads * n_rows * lora * sizeof *values),
              *row = allocate((nope + lora) * sizeof *row);
        for (size_t h = 0; h < n_heads; h++) {
            for (size_t col = 0; col < lora; col++) {
                c->kernels->to_f32[k_type](row, k->data + (h * lora + col) * ds_type_row_bytes(k_type, nope), nope);
                for (size_t i = 0; i < nope; i++)
                    values[(h * n_rows + i) * lora + col] = row[i];
            }
            for (size_t i = 0; i < v_dim; i++)
                c->kernels->to_f32[v_type](values + (h * n_rows + nope + i) * lora,
                                           v->data + (h * v_dim + i) * ds_type_row_bytes(v_type, lora), lora);
        }
        free(row);
        test_tensors_add(&c->floats, published, "F32", 2, t->dims, values, n_heads * n_rows * lora * sizeof *values);
        return;
    }
    size_t element = ds_type_row_bytes(stored, 1);
    for (size_t h = 0; h < n_heads; h++) {
        for (size_t i = 0; i < n_rows; i++) {
            for (size_t col = 0; col < lora; col++) {
                size_t from = (h * n_rows + i) * lora + col;
                uint8_t *to = i < nope ? k->data + ((h * lora + col) * nope + i) * element
                                       : v->data + ((h * v_dim + i - nope) * lora + col) * element;
                float value = value_at(c, t, from);
                if (stored == DS_TYPE_F32)
                    memcpy(to, &value, 4);
                else
                    memcpy(to, t->data + 2 * from, 2);
            }
        }
    }
}

static void convert_layer(converter *c, const json_t *config, size_t l)
{
    static const struct {
        const char *published, *name;
        bool matrix;
    } weights[] = {
        {"input_layernorm.weight", "attn_norm.weight", false},
        {"self_attn.q_proj.weight", "attn_q.weight", true},
        {"self_attn.q_a_proj.weight", "attn_q_a.weight", true},
        {"self_attn.q_a_proj.bias", "attn_q_a.bias", false},
        {"self_attn.q_a_layernorm.weight", "attn_q_a_norm.weight", false},
        {"self_attn.q_b_proj.weight", "attn_q_b.weight", true},
        {"self_attn.kv_a_proj_with_mqa.weight", "attn_kv_a_mqa.weight", true},
        {"self_attn.kv_a_proj_with_mqa.bias", "attn_kv_a_mqa.bias", false},
        {"self_attn.kv_a_layernorm.weight", "attn_kv_a_norm.weight", false},
        {"self_attn.o_proj.weight", "attn_output.weight", true},
        {"self_attn.o_proj.bias", "attn_output.bias", false},
        {"post_attention_layernorm.weight", "ffn_norm.weight", false},
        {"mlp.gate.weight", "ffn_gate_inp.weight", false},
        {"mlp.gate.e_score_correction_bias", "exp_probs_b.bias", false},
        {"mlp.gate_proj.weight", "ffn_gate.weight", true},
        {"mlp.up_proj.weight", "ffn_up.weight", true},
        {"mlp.down_proj.weight", "ffn_down.weight", true},
        {"mlp.shared_experts.gate_proj.weight", "ffn_gate_shexp.weight", true},
        {"mlp.shared_experts.up_proj.weight", "ffn_up_shexp.weight", true},
        {"mlp.shared_experts.down_proj.weight", "ffn_down_shexp.weight", true},
    };
    for (size_t i = 0; i < sizeof weights / sizeof *weights; i++)
        convert_one(c, test_format("model.layers.%zu.%s", l, weights[i].published),
                    test_format("blk.%zu.%s", l, weights[i].name), weights[i].matrix);
    if (c->options->old)
        convert_one(c, test_format("model.layers.%zu.self_attn.kv_b_proj.weight", l),
                    test_format("blk.%zu.attn_kv_b.weight", l), true);
    else
        convert_split_kv_b(c, config, l);
    size_t n_experts = integer(config, "n_routed_experts");
    static const char *const matrices[] = {"gate_proj.weight", "up_proj.weight", "down_proj.weight"};
    if (c->options->joined) {
        convert_experts(c, l, n_experts, 2, matrices, "ffn_gate_up_exps.weight");
    } else {
        convert_experts(c, l, n_experts, 1, matrices, "ffn_gate_exps.weight");
        convert_experts(c, l, n_experts, 1, matrices + 1, "ffn_up_exps.weight");
    }
    convert_experts(c, l, n_experts, 1, matrices + 2, "ffn_down_exps.weight");
}

/* ---- files ---- */

static void write_file(const char *path, const metadata *m, const part *parts, size_t n_parts)
{
    enum { ALIGNMENT = 32 };
    buffer b = {0};
    put(&b, "GGUF", 4);
    put_u32(&b, 3);
    put_u64(&b, n_parts);
    put_u64(&b, m->n);
    put(&b, m->bytes.data, m->bytes.size);
    size_t offset = 0;
    for (size_t i = 0; i < n_parts; i++) {
        put_string(&b, parts[i].name);
        put_u32(&b, (uint32_t)parts[i].n_dims);
        for (size_t d = parts[i].n_dims; d > 0; d--)
            put_u64(&b, parts[i].dims[d - 1]);
        put_u32(&b, number_of(parts[i].type));
        put_u64(&b, offset);
        offset += (parts[i].n_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    }
    pad(&b, ALIGNMENT);
    for (size_t i = 0; i < n_parts; i++) {
        put(&b, parts[i].data, parts[i].n_bytes);
        pad(&b, ALIGNMENT);
    }
    FILE *file = fopen(path, "wb");
    ck_assert_msg(file != NULL, "%s: cannot create", path);
    ck_assert(fwrite(b.data, 1, b.size, file) == b.size && fclose(file) == 0);
    free(b.data);
}

static void put_split(metadata *m, uint16_t number, uint32_t n_tensors)
{
    key_u16(m, "split.no", number);
    key_u16(m, "split.count", 2);
    key_u32(m, "split.tensors.count", n_tensors);
}

static void write_files(const converter *c, const json_t *config, const char *path)
{
    metadata m = make_metadata(config, c->options);
    size_t n_first = c->options->split ? c->n_parts / 2 : c->n_parts;
    if (c->options->split) {
        char second[512];
        size_t prefix = strlen(path) - strlen("-00001-of-00002.gguf");
        snprintf(second, sizeof second, "%.*s-00002-of-00002.gguf", (int)prefix, path);
        metadata rest = {0};
        put_split(&m, 0, (uint32_t)c->n_parts);
        put_split(&rest, 1, (uint32_t)c->n_parts);
        write_file(second, &rest, c->parts + n_first, c->n_parts - n_first);
        free(rest.bytes.data);
    }
    write_file(path, &m, c->parts, n_first);
    free(m.bytes.data);
}

static void read_checkpoint(test_tensors *tensors, const char *folder)
{
    FILE *single = fopen(test_format("%s/model.safetensors", folder), "rb");
    if (single != NULL) {
        fclose(single);
        test_tensors_read(tensors, test_format("%s/model.safetensors", folder));
        return;
    }
    test_tensors_read(tensors, test_format("%s/model-00001-of-00002.safetensors", folder));
    test_tensors_read(tensors, test_format("%s/model-00002-of-00002.safetensors", folder));
}

void test_gguf_write(const test_gguf *options, const char *folder, const char *path, const char *floats)
{
    converter *c = allocate(sizeof *c);
    c->options = options;
    c->seed = options->seed;
    ck_assert_int_eq(ds_kernels_select("c", &c->kernels), DSV2_OK);
    read_checkpoint(&c->source, folder);
    json_t *config = json_load_file(test_format("%s/config.json", folder), 0, NULL);
    ck_assert(config != NULL);
    convert_one(c, "model.embed_tokens.weight", "token_embd.weight", true);
    for (size_t l = 0; l < integer(config, "num_hidden_layers"); l++)
        convert_layer(c, config, l);
    convert_one(c, "model.norm.weight", "output_norm.weight", false);
    convert_one(c, "lm_head.weight", "output.weight", true);
    write_files(c, config, path);
    if (floats != NULL) {
        ck_assert_int_eq(json_dump_file(config, test_format("%s/config.json", floats), 0), 0);
        test_tensors_write(&c->floats, test_format("%s/model.safetensors", floats));
    }
    for (size_t i = 0; i < c->n_parts; i++)
        free(c->parts[i].data);
    json_decref(config);
    test_tensors_free(&c->source);
    test_tensors_free(&c->floats);
    free(c);
}

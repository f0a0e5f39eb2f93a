#include "support/checkpoint.h"

#include "support/tensors.h"

#include <check.h>
#include <dirent.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

double test_random(uint64_t *seed)
{
    uint64_t z = (*seed += 0x9e3779b97f4a7c15u);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

void test_random_tokens(uint64_t seed, uint32_t vocab_size, int32_t *tokens, size_t n)
{
    for (size_t i = 0; i < n; i++)
        tokens[i] = (int32_t)(test_random(&seed) * vocab_size);
}

static void set(json_t *config, const char *name, uint32_t value)
{
    if (value > 0)
        json_object_set_new(config, name, json_integer(value));
}

static void write_config(const test_checkpoint *c, const char *folder)
{
    json_t *config =
        json_pack("{s:s, s:n, s:n, s:f, s:f}", "model_type", c->model_type != NULL ? c->model_type : "deepseek_v2",
                  "q_lora_rank", "n_routed_experts", "rope_theta", 10000.0, "rms_norm_eps", 1e-6);
    ck_assert(config != NULL);
    const struct {
        const char *name;
        uint32_t value;
    } fields[] = {
        {"vocab_size", c->vocab_size},
        {"hidden_size", c->hidden_size},
        {"intermediate_size", c->intermediate_size},
        {"num_hidden_layers", c->num_hidden_layers},
        {"num_attention_heads", c->num_attention_heads},
        {"q_lora_rank", c->q_lora_rank},
        {"kv_lora_rank", c->kv_lora_rank},
        {"qk_nope_head_dim", c->qk_nope_head_dim},
        {"qk_rope_head_dim", c->qk_rope_head_dim},
        {"v_head_dim", c->v_head_dim},
        {"max_position_embeddings", c->max_position_embeddings},
        {"moe_intermediate_size", c->moe_intermediate_size},
        {"n_routed_experts", c->n_routed_experts},
        {"num_experts_per_tok", c->num_experts_per_tok},
        {"n_shared_experts", c->n_shared_experts},
        {"moe_layer_freq", c->moe_layer_freq},
        {"n_group", c->n_group},
        {"topk_group", c->topk_group},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        set(config, fields[i].name, fields[i].value);
    json_object_set_new(config, "first_k_dense_replace", json_integer(c->first_k_dense_replace));
    json_object_set_new(config, "norm_topk_prob", json_boolean(c->norm_topk_prob));
    json_object_set_new(config, "attention_bias", json_boolean(c->attention_bias));
    json_object_set_new(config, "tie_word_embeddings", json_boolean(c->tie_word_embeddings));
    if (c->topk_method != NULL) {
        json_object_set_new(config, "topk_method", json_string(c->topk_method));
        json_object_set_new(config, "scoring_func",
                            json_string(strcmp(c->topk_method, "noaux_tc") == 0 ? "sigmoid" : "softmax"));
    }
    if (c->routed_scaling_factor > 0)
        json_object_set_new(config, "routed_scaling_factor", json_real(c->routed_scaling_factor));
    if (c->yarn || c->published_yarn) {
        bool own = c->published_yarn;
        json_object_set_new(config, "rope_scaling",
                            json_pack("{s:s, s:f, s:i, s:f, s:f, s:f, s:f}", "type", "yarn", "factor",
                                      own ? 40.0 : 20.0, "original_max_position_embeddings", own ? 4096 : 32,
                                      "beta_fast", own ? 32.0 : 16.0, "beta_slow", 1.0, "mscale", own ? 0.707 : 0.9,
                                      "mscale_all_dim", own ? 0.707 : 0.6));
    }
    if (c->block_rows > 0)
        json_object_set_new(config, "quantization_config",
                            json_pack("{s:s, s:s, s:[i, i]}", "quant_method", "fp8", "fmt", "e4m3", "weight_block_size",
                                      (int)c->block_rows, (int)c->block_cols));
    ck_assert(json_dump_file(config, test_format("%s/config.json", folder), JSON_INDENT(2)) == 0);
    json_decref(config);
}

typedef struct writer {
    const test_checkpoint *shape;
    test_tensors tensors;
    uint64_t seed;
} writer;

/* A value as BF16, F16 or F32 bytes, rounded towards zero: any rounding serves random weights. */
static void store(const char *dtype, uint8_t *to, float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint16_t half = (uint16_t)(bits >> 16);
    if (strcmp(dtype, "F32") == 0) {
        memcpy(to, &bits, sizeof bits);
        return;
    }
    if (strcmp(dtype, "F16") == 0) {
        int exponent = (int)(bits >> 23 & 0xff) - 127 + 15;
        half =
            (uint16_t)((bits >> 16 & 0x8000) | (exponent <= 0 ? 0 : (uint32_t)exponent << 10 | (bits >> 13 & 0x3ff)));
    }
    memcpy(to, &half, sizeof half);
}

/* A tensor of values spread evenly from mean - spread to mean + spread. cols 0: a vector. */
static void add_values(writer *w, const char *name, const char *dtype, size_t rows, size_t cols, double mean,
                       double spread)
{
    size_t n = rows * (cols > 0 ? cols : 1), element = strcmp(dtype, "F32") == 0 ? 4 : 2;
    uint8_t *data = malloc(n * element);
    ck_assert(data != NULL);
    for (size_t i = 0; i < n; i++)
        store(dtype, data + i * element, (float)(mean + spread * (2 * test_random(&w->seed) - 1)));
    test_tensors_add(&w->tensors, name, dtype, cols > 0 ? 2 : 1, (size_t[]){rows, cols}, data, n * element);
}

/* Every byte of E4M3 but the two NaNs, with scales that bring the matrix to about `spread`. */
static void add_fp8(writer *w, const char *name, size_t rows, size_t cols, double spread)
{
    uint8_t *data = malloc(rows * cols);
    ck_assert(data != NULL);
    for (size_t i = 0; i < rows * cols; i++) {
        do
            data[i] = (uint8_t)(test_random(&w->seed) * 256);
        while ((data[i] & 0x7f) == 0x7f);
    }
    test_tensors_add(&w->tensors, name, "F8_E4M3", 2, (size_t[]){rows, cols}, data, rows * cols);
    size_t block_rows = w->shape->block_rows, block_cols = w->shape->block_cols;
    add_values(w, test_format("%s_scale_inv", name), "F32", (rows + block_rows - 1) / block_rows,
               (cols + block_cols - 1) / block_cols, spread / 100, spread / 150);
}

/* A linear map's matrix. gain 1: outputs are about as large as inputs. */
static void add_matrix(writer *w, const char *name, size_t rows, size_t cols, double gain)
{
    const char *dtype = w->shape->dtype != NULL ? w->shape->dtype : "BF16";
    double spread = gain * sqrt(3.0 / (double)cols);
    if (strcmp(dtype, "F8_E4M3") == 0)
        add_fp8(w, name, rows, cols, spread);
    else
        add_values(w, name, dtype, rows, cols, 0, spread);
}

static void add_norm(writer *w, const char *name, size_t n) { add_values(w, name, "BF16", n, 0, 1, 0.3); }

static void add_swiglu(writer *w, const char *prefix, size_t intermediate)
{
    size_t hidden = w->shape->hidden_size;
    add_matrix(w, test_format("%s.gate_proj.weight", prefix), intermediate, hidden, 1);
    add_matrix(w, test_format("%s.up_proj.weight", prefix), intermediate, hidden, 1);
    add_matrix(w, test_format("%s.down_proj.weight", prefix), hidden, intermediate, 0.7);
}

static void add_attention(writer *w, size_t layer)
{
    const test_checkpoint *c = w->shape;
    const char *prefix = test_format("model.layers.%zu.self_attn", layer);
    size_t q_rows = (size_t)c->num_attention_heads * (c->qk_nope_head_dim + c->qk_rope_head_dim);
    size_t kv_a_rows = c->kv_lora_rank + c->qk_rope_head_dim;
    if (c->q_lora_rank == 0) {
        add_matrix(w, test_format("%s.q_proj.weight", prefix), q_rows, c->hidden_size, 1.5);
    } else {
        add_matrix(w, test_format("%s.q_a_proj.weight", prefix), c->q_lora_rank, c->hidden_size, 1);
        add_norm(w, test_format("%s.q_a_layernorm.weight", prefix), c->q_lora_rank);
        add_matrix(w, test_format("%s.q_b_proj.weight", prefix), q_rows, c->q_lora_rank, 1.5);
    }
    add_matrix(w, test_format("%s.kv_a_proj_with_mqa.weight", prefix), kv_a_rows, c->hidden_size, 1);
    add_norm(w, test_format("%s.kv_a_layernorm.weight", prefix), c->kv_lora_rank);
    add_matrix(w, test_format("%s.kv_b_proj.weight", prefix),
               (size_t)c->num_attention_heads * (c->qk_nope_head_dim + c->v_head_dim), c->kv_lora_rank, 1);
    add_matrix(w, test_format("%s.o_proj.weight", prefix), c->hidden_size,
               (size_t)c->num_attention_heads * c->v_head_dim, 0.7);
    if (!c->attention_bias)
        return;
    if (c->q_lora_rank > 0)
        add_values(w, test_format("%s.q_a_proj.bias", prefix), "BF16", c->q_lora_rank, 0, 0, 0.3);
    add_values(w, test_format("%s.kv_a_proj_with_mqa.bias", prefix), "BF16", kv_a_rows, 0, 0, 0.3);
    add_values(w, test_format("%s.o_proj.bias", prefix), "BF16", c->hidden_size, 0, 0, 0.3);
}

static void add_feed_forward(writer *w, size_t layer)
{
    const test_checkpoint *c = w->shape;
    const char *prefix = test_format("model.layers.%zu.mlp", layer);
    if (c->n_routed_experts == 0 || layer < c->first_k_dense_replace ||
        (c->moe_layer_freq > 1 && layer % c->moe_layer_freq != 0)) {
        add_swiglu(w, prefix, c->intermediate_size);
        return;
    }
    add_values(w, test_format("%s.gate.weight", prefix), "BF16", c->n_routed_experts, c->hidden_size, 0,
               2 / sqrt(c->hidden_size));
    if (c->topk_method != NULL && strcmp(c->topk_method, "noaux_tc") == 0)
        add_values(w, test_format("%s.gate.e_score_correction_bias", prefix), "F32", c->n_routed_experts, 0, 0, 0.3);
    if (c->n_shared_experts > 0)
        add_swiglu(w, test_format("%s.shared_experts", prefix), (size_t)c->n_shared_experts * c->moe_intermediate_size);
    char own[64]; /* test_format's memory would not outlive the experts' names */
    strcpy(own, prefix);
    for (uint32_t e = 0; e < c->n_routed_experts; e++)
        add_swiglu(w, test_format("%s.experts.%u", own, e), c->moe_intermediate_size);
}

char *test_checkpoint_write(const test_checkpoint *c)
{
    const char *temporary = getenv("TMPDIR");
    char *folder = strdup(test_format("%s/dsv2-test-XXXXXX", temporary != NULL ? temporary : "/tmp"));
    ck_assert(folder != NULL && mkdtemp(folder) != NULL);
    write_config(c, folder);
    writer w = {.shape = c, .seed = c->seed};
    add_values(&w, "model.embed_tokens.weight", "BF16", c->vocab_size, c->hidden_size, 0, 1.7);
    for (size_t l = 0; l < c->num_hidden_layers; l++) {
        add_norm(&w, test_format("model.layers.%zu.input_layernorm.weight", l), c->hidden_size);
        add_attention(&w, l);
        add_norm(&w, test_format("model.layers.%zu.post_attention_layernorm.weight", l), c->hidden_size);
        add_feed_forward(&w, l);
    }
    add_norm(&w, "model.norm.weight", c->hidden_size);
    if (!c->tie_word_embeddings)
        add_values(&w, "lm_head.weight", "BF16", c->vocab_size, c->hidden_size, 0, sqrt(3.0 / c->hidden_size));
    test_tensors_write(&w.tensors, test_format("%s/model.safetensors", folder));
    test_tensors_free(&w.tensors);
    return folder;
}

void test_checkpoint_remove(char *folder)
{
    DIR *directory = opendir(folder);
    ck_assert(directory != NULL);
    struct dirent *entry;
    while ((entry = readdir(directory)) != NULL)
        if (entry->d_name[0] != '.')
            ck_assert(remove(test_format("%s/%s", folder, entry->d_name)) == 0);
    closedir(directory);
    ck_assert(rmdir(folder) == 0);
    free(folder);
}

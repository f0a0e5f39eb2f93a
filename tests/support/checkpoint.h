/* Writes checkpoints with random weights, of any shape that a test wants. Any failure ends the test. */
#ifndef DS_TESTS_CHECKPOINT_H
#define DS_TESTS_CHECKPOINT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Fields of config.json, under their names. 0 or NULL leaves a field out, or writes null where the field is
 * required. */
typedef struct test_checkpoint {
    const char *name, *model_type; /* model_type NULL: deepseek_v2 */
    const char *dtype;             /* of matrices: "BF16" (NULL), "F16", "F32" or "F8_E4M3" */
    uint32_t vocab_size, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads;
    uint32_t q_lora_rank, kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim, v_head_dim, max_position_embeddings;
    uint32_t moe_intermediate_size, n_routed_experts, num_experts_per_tok, n_shared_experts, first_k_dense_replace,
        moe_layer_freq;
    const char *topk_method;
    uint32_t n_group, topk_group;
    double routed_scaling_factor;
    bool norm_topk_prob, attention_bias, tie_word_embeddings;
    bool yarn, published_yarn; /* of a short context; V2's and V2-Lite's own */
    uint32_t block_rows, block_cols; /* of FP8 scales */
    uint64_t seed;
} test_checkpoint;

/* Makes a folder with config.json and model.safetensors under the system's place for temporary files. The caller frees
 * its path. */
char *test_checkpoint_write(const test_checkpoint *shape);

/* Deletes such a folder and frees its path. */
void test_checkpoint_remove(char *folder);

/* A number from 0 to 1 from a seed, which advances (splitmix64). */
double test_random(uint64_t *seed);

/* n token ids below vocab_size. */
void test_random_tokens(uint64_t seed, uint32_t vocab_size, int32_t *tokens, size_t n);

#endif

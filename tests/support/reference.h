/* The forward pass once more, slow and plain: in double precision, one token after another, every key and value
 * expanded and kept. It is written from the report (arXiv 2405.04434, section 2 and appendix C; DeepSeek-V3's router
 * from arXiv 2412.19437, section 2.1.2) and from the meaning of the published configuration. It shares nothing with
 * lib/. */
#ifndef DS_TESTS_REFERENCE_H
#define DS_TESTS_REFERENCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What the router of one layer did for every token. */
typedef struct reference_routes {
    bool is_moe;
    double *affinities; /* [n_tokens][n_experts] */
    uint32_t *experts;  /* [n_tokens][top_k], ascending */
    double *gates;      /* [n_tokens][top_k], in the order of `experts` */
    uint64_t *groups;   /* [n_tokens]: groups kept; all where routing is not limited */
} reference_routes;

typedef struct reference {
    size_t n_tokens, vocab_size, n_layers, n_experts, top_k, n_group, topk_group;
    double *logits; /* [n_tokens][vocab_size] */
    reference_routes *layers;
} reference;

/* Runs n tokens through the checkpoint in `folder` (config.json and safetensors files). Any failure ends the test. */
reference *reference_run(const char *folder, const int32_t *tokens, size_t n);

/* The same for a long prompt: logits, and the last layer's routes, of the tokens at[n_at] alone, ascending. */
reference *reference_run_at(const char *folder, const int32_t *tokens, size_t n, const size_t *at, size_t n_at);
void reference_free(reference *r);

#endif

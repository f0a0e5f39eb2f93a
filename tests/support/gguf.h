/* Writes checkpoints as GGUF files, as llama.cpp's converter lays them out: names, keys, experts in one tensor,
 * kv_b_proj in one tensor or two. Any failure ends the test. */
#ifndef DS_TESTS_GGUF_H
#define DS_TESTS_GGUF_H

#include "kernels/kernels.h"

#include <stdbool.h>

typedef struct test_gguf {
    bool quantised; /* matrices become random blocks of `type`, or of Q8_0 where their rows are no whole blocks of it */
    ds_type type; /* not quantised: F32, or what else the checkpoint has */
    bool old;       /* keys as of 2024: no groups, no gating function, heads as in the expanded form, one attn_kv_b */
    bool no_gating; /* without the key of the gating function: biases of routers tell it */
    bool softmax;   /* that key says softmax */
    bool joined;    /* gate and up of the experts in one tensor, as of 2026 if one asks for it */
    bool split;     /* in two files: path is then the first's, ending in -00001-of-00002.gguf */
    uint64_t seed;  /* of random blocks */
} test_gguf;

/* Writes the checkpoint in `folder` to `path`. If quantised, `floats` is a folder that exists and receives a checkpoint
 * with the same weights as F32 (config.json copied). Otherwise `floats` may be NULL. */
void test_gguf_write(const test_gguf *options, const char *folder, const char *path, const char *floats);

#endif

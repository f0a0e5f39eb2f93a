/* What tests often do with models, by the public API. Any failure ends the test. */
#ifndef DS_TESTS_MODEL_H
#define DS_TESTS_MODEL_H

#include <dsv2/dsv2.h>

#include <stddef.h>

/* The kernel sets that this build and processor have: how many, and the name of number `index`. 0 is the reference. */
const char *test_kernel_set(size_t index);
size_t test_kernel_sets(void);

/* options: NULL, or with struct_size 0. Returns NULL, and says so, if the processor lacks the kernels asked for. */
dsv2_model *test_model_open(const char *path, const dsv2_model_options *options);

dsv2_session *test_session_open(dsv2_model *model, const dsv2_session_options *options);

dsv2_model_info test_model_info(const dsv2_model *model);

/* Fails unless both say the same of architecture, experts' dimensions and parameters. */
void test_same_model(const dsv2_model_info *a, const dsv2_model_info *b);

/* The logits after each of n tokens, [n][vocab_size], of a fresh session that is fed `chunk` tokens at a time; to be
 * freed. */
float *test_logits(dsv2_model *model, const dsv2_session_options *options, const int32_t *tokens, size_t n,
                   size_t chunk);

#endif

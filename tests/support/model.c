#include "support/model.h"

#include "kernels/kernels.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The library has the best first. */
const char *test_kernel_set(size_t index)
{
    size_t n = test_kernel_sets();
    bool runs;
    for (size_t i = 0; ; i++) {
        const ds_kernels *kernels = ds_kernels_set(i, &runs);
        ck_assert(kernels != NULL);
        if (runs && --n == index)
            return kernels->name;
    }
}

size_t test_kernel_sets(void)
{
    size_t n = 0;
    bool runs;
    for (size_t i = 0; ds_kernels_set(i, &runs) != NULL; i++)
        n += runs;
    return n;
}

dsv2_model *test_model_open(const char *path, const dsv2_model_options *options)
{
    dsv2_model_options known = options != NULL ? *options : (dsv2_model_options){0};
    known.struct_size = sizeof known;
    dsv2_model *model;
    dsv2_status status = dsv2_model_open(path, &known, &model);
    if (status == DSV2_ERROR_UNSUPPORTED && known.kernels != NULL && strstr(dsv2_last_error(), "kernel") != NULL) {
        printf("skipped: %s\n", dsv2_last_error());
        return NULL;
    }
    ck_assert_msg(status == DSV2_OK, "%s", dsv2_last_error());
    return model;
}

dsv2_session *test_session_open(dsv2_model *model, const dsv2_session_options *options)
{
    dsv2_session *session;
    ck_assert_msg(dsv2_session_open(model, options, &session) == DSV2_OK, "%s", dsv2_last_error());
    return session;
}

dsv2_model_info test_model_info(const dsv2_model *model)
{
    dsv2_model_info info = {.struct_size = sizeof info};
    ck_assert(dsv2_model_get_info(model, &info) == DSV2_OK);
    return info;
}

float *test_logits(dsv2_model *model, const dsv2_session_options *options, const int32_t *tokens, size_t n,
                   size_t chunk)
{
    size_t vocab_size = test_model_info(model).vocab_size;
    dsv2_session *session = test_session_open(model, options);
    float *logits = malloc(n * vocab_size * sizeof *logits);
    ck_assert(logits != NULL);
    for (size_t i = 0; i < n; i += chunk) {
        dsv2_step_item item = {.struct_size = sizeof item, .session = session, .tokens = tokens + i,
                               .n_tokens = n - i < chunk ? n - i : chunk, .logits = logits + i * vocab_size};
        ck_assert_msg(dsv2_step(model, &item, 1) == DSV2_OK, "%s", dsv2_last_error());
    }
    dsv2_session_close(session);
    return logits;
}

void test_same_model(const dsv2_model_info *a, const dsv2_model_info *b)
{
    ck_assert_str_eq(a->architecture, b->architecture);
    ck_assert_str_eq(a->topk_method, b->topk_method);
    ck_assert_str_eq(a->scoring_func, b->scoring_func);
    ck_assert_uint_eq(a->parameters, b->parameters);
    ck_assert_uint_eq(a->parameters_activated, b->parameters_activated);
    ck_assert_uint_eq(a->num_hidden_layers, b->num_hidden_layers);
    ck_assert_uint_eq(a->n_group, b->n_group);
    ck_assert_uint_eq(a->topk_group, b->topk_group);
    ck_assert_uint_eq(a->first_k_dense_replace, b->first_k_dense_replace);
}

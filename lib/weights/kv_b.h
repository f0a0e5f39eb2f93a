/* kv_b_proj in its two forms. Published: by head, W^UK (nope rows), then W^UV (value rows), of kv_lora_rank columns.
 * In newer GGUFs: attn_k_b, by head (W^UK)^T (kv_lora_rank rows of nope columns), and attn_v_b, by head W^UV. The
 * absorbed form of attention needs (W^UK)^T (section 2.1.2: W^UK is absorbed into W^Q), the expanded form the
 * published one. */
#ifndef DS_LIB_WEIGHTS_KV_B_H
#define DS_LIB_WEIGHTS_KV_B_H

#include "config/config.h"
#include "weights/convert.h"

/* The plain type that joining two halves of these types gives: theirs if both are the same half precision, else
 * floats. */
ds_type ds_joined_kv_b_type(ds_type k_b, ds_type v_b);

/* A matrix and what messages call it. */
typedef struct ds_labelled_matrix {
    ds_matrix matrix;
    ds_weight_label label;
} ds_labelled_matrix;

/* Writes the published kv_b_proj as `type`. DSV2_ERROR_MEMORY, or an element that is not finite or that does not fit
 * `type` or `held`, the type that the caller will convert to: a message of the conversion would name another place. */
dsv2_status ds_join_kv_b(const ds_kernels *kernels, const ds_config *config, const ds_labelled_matrix *k_b,
                         const ds_labelled_matrix *v_b, ds_type type, ds_type held, void *out);

/* The plain type that (W^UK)^T is made in: the half precision of kv_b_proj; F16 of an interleaved type; else floats. */
ds_type ds_transposed_k_up_type(ds_type kv_b);

/* Writes (W^UK)^T by head. Fails as ds_join_kv_b. */
dsv2_status ds_transpose_k_up(const ds_kernels *kernels, const ds_config *config, const ds_labelled_matrix *kv_b,
                              ds_type type, ds_type held, void *out);

#endif

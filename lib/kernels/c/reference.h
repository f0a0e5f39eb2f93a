/* The reference's kernels, in plain C. Private to the room: every set's table begins with them. */
#ifndef DS_LIB_KERNELS_C_REFERENCE_H
#define DS_LIB_KERNELS_C_REFERENCE_H

#include "kernels/blocks.h"
#include "kernels/kernels.h"

#define PLAIN(TYPE, name, ...) ds_matmul_fn ds_matmul_##name##_c; ds_to_f32_fn ds_##name##_to_f32_c;
#define INTERLEAVED(TYPE, name, ...) ds_matmul_interleaved_fn ds_matmul_##name##_c;
#include "kernels/types.def"

ds_prepare_row_fn ds_prepare_row_c;
ds_f32_to_f16_fn ds_f32_to_f16_c;
ds_weighted_sum_fn ds_weighted_sum_c;
ds_rms_norm_fn ds_rms_norm_c;
ds_exp_sum_fn ds_exp_sum_c;
ds_swiglu_fn ds_swiglu_c;
ds_add_scaled_fn ds_add_scaled_c;
ds_max_fn ds_max_c;
ds_round_row_fn ds_round_row_c;
ds_round_halves_fn ds_round_halves_c;
ds_round_products_fn ds_round_products_c;
ds_pair_columns_fn ds_pair_columns_c;
ds_pair_rows_fn ds_pair_rows_c;
ds_pair_codes_fn ds_pair_codes_c;
ds_pair_scores_fn ds_pair_scores_c;
ds_pair_sums_fn ds_pair_sums_c;
ds_rotate_fn ds_rotate_c;
ds_unpack_q8_fn ds_unpack_q8_c;
ds_split_pairs_fn ds_split_pairs_c;
ds_unpack_pairs_fn ds_unpack_pairs_c;

/* A set names again what it has better: that is meant. */
#ifdef __clang__
#pragma clang diagnostic ignored "-Winitializer-overrides"
#else
#pragma GCC diagnostic ignored "-Woverride-init"
#endif

#endif

/* The reference's kernels, for the beginning of a set's table: a set's file includes this inside the braces and then
 * names what it has better. C11 (6.7.9) lets the last initialiser of a member count. The file includes reference.h
 * before. */

#define PLAIN(TYPE, name, ...)                                                                                         \
    .matmul[DS_TYPE_##TYPE] = ds_matmul_##name##_c, .to_f32[DS_TYPE_##TYPE] = ds_##name##_to_f32_c,
#define BLOCK(TYPE, name, ...) .to_f32[DS_TYPE_##TYPE] = ds_##name##_to_f32,
#define INTERLEAVED(TYPE, name, ...) .matmul_interleaved[DS_TYPE_##TYPE] = ds_matmul_##name##_c,
#include "kernels/types.def"
    .prepare_row = ds_prepare_row_c,
    .f32_to_f16 = ds_f32_to_f16_c,
    .weighted_sum = ds_weighted_sum_c,
    .rms_norm = ds_rms_norm_c,
    .exp_sum = ds_exp_sum_c,
    .swiglu = ds_swiglu_c,
    .add_scaled = ds_add_scaled_c,
    .max = ds_max_c,
    .round_row = ds_round_row_c,
    .round_halves = ds_round_halves_c,
    .round_products = ds_round_products_c,
    .pair_columns = ds_pair_columns_c,
    .pair_rows = ds_pair_rows_c,
    .pair_codes = ds_pair_codes_c,
    .pair_scores = ds_pair_scores_c,
    .pair_sums = ds_pair_sums_c,
    .rotate = ds_rotate_c,
    .unpack_q8 = ds_unpack_q8_c,
    .split_pairs = ds_split_pairs_c,
    .unpack_pairs = ds_unpack_pairs_c,

/* Attention in 16 bits: the reference's kernels. */
#ifndef DS_LIB_KERNELS_C_PAIRS_H
#define DS_LIB_KERNELS_C_PAIRS_H

#include "kernels/kernels.h"

float ds_round_halves_c(int16_t *out, const void *halves, size_t n, float limit);
void ds_pair_columns_c(int16_t *out, const int16_t *rows, size_t stride, size_t n_rows, size_t n_cols);
void ds_pair_rows_c(int16_t *out, size_t panel_stride, const int16_t *rows, size_t stride, size_t n_rows, size_t n_cols);
void ds_pair_codes_c(int16_t *keys, int16_t *values, size_t panel_stride, const int8_t *rows, size_t stride, size_t n_rows,
                     size_t n_cols);
void ds_pair_scores_c(float *out, size_t out_stride, const int16_t *a, const float *a_scales, size_t m, const int16_t *b, size_t n,
                      const float *scales, size_t scales_stride, size_t n_sections);
void ds_pair_sums_c(float *out, size_t out_stride, const float *keep, const float *factor, const int16_t *a, size_t m,
                    const int16_t *b, size_t n_pairs, size_t n);

#endif

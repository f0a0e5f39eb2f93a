/* The block types of GGUF files to floats, in plain C: every kernel set's to_f32 for them. Private to the room. */
#ifndef DSV2_LIB_KERNELS_DEQUANTIZE_H
#define DSV2_LIB_KERNELS_DEQUANTIZE_H

#include <stddef.h>
#include <stdint.h>

/* n elements, a multiple of the type's block. */
void dsv2_q8_0_to_f32(float *out, const void *in, size_t n);
void dsv2_q4_0_to_f32(float *out, const void *in, size_t n);
void dsv2_q4_1_to_f32(float *out, const void *in, size_t n);
void dsv2_q5_0_to_f32(float *out, const void *in, size_t n);
void dsv2_q5_1_to_f32(float *out, const void *in, size_t n);
void dsv2_q2_k_to_f32(float *out, const void *in, size_t n);
void dsv2_q3_k_to_f32(float *out, const void *in, size_t n);
void dsv2_q4_k_to_f32(float *out, const void *in, size_t n);
void dsv2_q5_k_to_f32(float *out, const void *in, size_t n);
void dsv2_q6_k_to_f32(float *out, const void *in, size_t n);
void dsv2_iq4_nl_to_f32(float *out, const void *in, size_t n);
void dsv2_iq4_xs_to_f32(float *out, const void *in, size_t n);

/* Entries of dsv2_kernels.to_f32. */
#define DSV2_DEQUANTIZERS                                                                                                      \
    [DSV2_TYPE_Q8_0] = dsv2_q8_0_to_f32, [DSV2_TYPE_Q4_0] = dsv2_q4_0_to_f32, [DSV2_TYPE_Q4_1] = dsv2_q4_1_to_f32,                 \
    [DSV2_TYPE_Q5_0] = dsv2_q5_0_to_f32, [DSV2_TYPE_Q5_1] = dsv2_q5_1_to_f32, [DSV2_TYPE_Q2_K] = dsv2_q2_k_to_f32,                 \
    [DSV2_TYPE_Q3_K] = dsv2_q3_k_to_f32, [DSV2_TYPE_Q4_K] = dsv2_q4_k_to_f32, [DSV2_TYPE_Q5_K] = dsv2_q5_k_to_f32,                 \
    [DSV2_TYPE_Q6_K] = dsv2_q6_k_to_f32, [DSV2_TYPE_IQ4_NL] = dsv2_iq4_nl_to_f32, [DSV2_TYPE_IQ4_XS] = dsv2_iq4_xs_to_f32

/* The sixteen levels of the IQ4 types: closer together around zero, where weights are. */
extern const int8_t dsv2_iq4_levels[16];

#endif

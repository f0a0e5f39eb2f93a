/* The block types of GGUF files to floats, in plain C: every kernel set's to_f32 for them. Private to the room. */
#ifndef DS_LIB_KERNELS_DEQUANTIZE_H
#define DS_LIB_KERNELS_DEQUANTIZE_H

#include <stddef.h>
#include <stdint.h>

/* n elements, a multiple of the type's block. */
void ds_q8_0_to_f32(float *out, const void *in, size_t n);
void ds_q4_0_to_f32(float *out, const void *in, size_t n);
void ds_q4_1_to_f32(float *out, const void *in, size_t n);
void ds_q5_0_to_f32(float *out, const void *in, size_t n);
void ds_q5_1_to_f32(float *out, const void *in, size_t n);
void ds_q2_k_to_f32(float *out, const void *in, size_t n);
void ds_q3_k_to_f32(float *out, const void *in, size_t n);
void ds_q4_k_to_f32(float *out, const void *in, size_t n);
void ds_q5_k_to_f32(float *out, const void *in, size_t n);
void ds_q6_k_to_f32(float *out, const void *in, size_t n);
void ds_iq4_nl_to_f32(float *out, const void *in, size_t n);
void ds_iq4_xs_to_f32(float *out, const void *in, size_t n);

/* Entries of ds_kernels.to_f32. */
#define DS_DEQUANTIZERS                                                                                                      \
    [DS_TYPE_Q8_0] = ds_q8_0_to_f32, [DS_TYPE_Q4_0] = ds_q4_0_to_f32, [DS_TYPE_Q4_1] = ds_q4_1_to_f32,                 \
    [DS_TYPE_Q5_0] = ds_q5_0_to_f32, [DS_TYPE_Q5_1] = ds_q5_1_to_f32, [DS_TYPE_Q2_K] = ds_q2_k_to_f32,                 \
    [DS_TYPE_Q3_K] = ds_q3_k_to_f32, [DS_TYPE_Q4_K] = ds_q4_k_to_f32, [DS_TYPE_Q5_K] = ds_q5_k_to_f32,                 \
    [DS_TYPE_Q6_K] = ds_q6_k_to_f32, [DS_TYPE_IQ4_NL] = ds_iq4_nl_to_f32, [DS_TYPE_IQ4_XS] = ds_iq4_xs_to_f32

/* The sixteen levels of the IQ4 types: closer together around zero, where weights are. */
extern const int8_t ds_iq4_levels[16];

#endif

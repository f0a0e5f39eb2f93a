/* The kernel sets that this build has; select.c alone asks the processor which of them it runs. Private to the room. */
#ifndef DSV2_LIB_KERNELS_TABLES_H
#define DSV2_LIB_KERNELS_TABLES_H

#include "kernels/c/dequantize.h"
#include "kernels/kernels.h"

extern const dsv2_kernels dsv2_kernels_c;
#ifdef DSV2_KERNELS_X86
extern const dsv2_kernels dsv2_kernels_avx2;   /* AVX2, FMA, F16C */
extern const dsv2_kernels dsv2_kernels_avx512; /* AVX-512 F, BW, DQ, VL, VNNI */
#endif

#endif

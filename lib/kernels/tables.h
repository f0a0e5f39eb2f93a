/* The kernel sets that this build has; select.c alone asks the processor which of them it runs. Private to the room. */
#ifndef DS_LIB_KERNELS_TABLES_H
#define DS_LIB_KERNELS_TABLES_H

#include "kernels/c/dequantize.h"
#include "kernels/kernels.h"

extern const ds_kernels ds_kernels_c;
#ifdef DS_KERNELS_X86
extern const ds_kernels ds_kernels_avx2;   /* AVX2, FMA, F16C */
extern const ds_kernels ds_kernels_avx512; /* AVX-512 F, BW, DQ, VL, VNNI */
#endif

#endif

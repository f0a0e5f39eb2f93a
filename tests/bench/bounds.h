/* What the processor and the memory can do at best, on the calling thread: the measure of kernels and of passes. */
#ifndef DS_TESTS_BENCH_BOUNDS_H
#define DS_TESTS_BENCH_BOUNDS_H

#include <stddef.h>

/* A second; 0: not known how to measure on this processor. A multiplication and its addition count as two operations. */
typedef struct bounds {
    double flops; /* fp32, fused */
    double int8;  /* products of bytes added up in 32 bits */
    double bytes; /* read, one after another */
} bounds;

/* Seconds on a clock of the caller's choice. */
typedef double bounds_clock(void);

/* Reads all of `memory`, which begins at a multiple of 128 bytes, as its size is one, and should be far larger than the caches. */
bounds measure_bounds(const void *memory, size_t bytes, bounds_clock *seconds);

#endif

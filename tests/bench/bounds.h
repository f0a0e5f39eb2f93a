/* What the processor and the memory reach at best on the calling thread: the measure for kernels and passes. */
#ifndef DS_TESTS_BENCH_BOUNDS_H
#define DS_TESTS_BENCH_BOUNDS_H

#include <stddef.h>

/* Operations a second, a multiplication and its addition counted as two. 0: not measured on this processor. */
typedef struct bounds {
    double flops; /* fp32, fused */
    double int8;  /* products of bytes added up in 32 bits */
    double bytes; /* read, one after another */
} bounds;

/* Seconds on a clock of the caller's choice. */
typedef double bounds_clock(void);

/* Reads all of `memory`, which begins at a multiple of 128 bytes. Its size is a multiple of 128 too, and far larger
 * than the caches. */
bounds measure_bounds(const void *memory, size_t bytes, bounds_clock *seconds);

#endif

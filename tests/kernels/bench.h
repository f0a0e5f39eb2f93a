/* Times of every kernel beside what the machine allows, all in one run: the machine is shared and its speed changes. */
#ifndef DSV2_TESTS_KERNELS_BENCH_H
#define DSV2_TESTS_KERNELS_BENCH_H

#include "kernels/kernels.h"

/* Prints a table of medians; the exit status. */
int bench_kernels(const dsv2_kernels *const *sets, int n_sets);

#endif

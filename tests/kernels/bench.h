/* Times of every kernel beside what the machine allows, all in one run: the machine is shared and its speed changes. */
#ifndef DS_TESTS_KERNELS_BENCH_H
#define DS_TESTS_KERNELS_BENCH_H

#include "kernels/kernels.h"

/* Prints a table of medians; the exit status. */
int bench_kernels(const ds_kernels *const *sets, int n_sets);

#endif

/* The same random numbers everywhere: xorshift64. */
#ifndef DS_TESTS_RANDOM_H
#define DS_TESTS_RANDOM_H

#include <stdint.h>

void random_begin(uint64_t seed); /* not 0 */
uint64_t random_bits(void);
uint32_t random_below(uint32_t bound);

#endif

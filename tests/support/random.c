#include "support/random.h"

static uint64_t state = 1;

void random_begin(uint64_t seed) { state = seed; }

uint64_t random_bits(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

uint32_t random_below(uint32_t bound) { return (uint32_t)(random_bits() >> 32) % bound; }

/* sampling: logits to a token. May include: base.
 *
 * Equal logits and an equal seed give equal text on every machine. For that, whatever decides which token is drawn is
 * computed in integers, or in IEEE doubles without libm: candidates are ordered by an integer key; probabilities are
 * integer weights, whose sums are exact in any order; the random number is an integer below their total. */
#ifndef DS_LIB_SAMPLING_H
#define DS_LIB_SAMPLING_H

#include "base/base.h"

#include <dsv2/sampling.h>

/* ---- random numbers (random.c) ---- */

/* xoshiro256** (Blackman and Vigna, arXiv 1805.01407). Plain data: snapshots store the four words as they are. */
typedef struct ds_random {
    uint64_t state[4]; /* never all zero */
} ds_random;

/* Fills the state from splitmix64, as the authors advise. Any seed. */
void ds_random_seed(ds_random *random, uint64_t seed);
uint64_t ds_random_next(ds_random *random);

/* Uniform in [0, bound), bound >= 1. Takes exactly one random number. No value's probability is off by more than
 * 2^-64. */
uint64_t ds_random_below(ds_random *random, uint64_t bound);

/* ---- drawing (sampling.c) ---- */

typedef struct ds_sampler {
    dsv2_sampling params; /* logit_bias is the sampler's own copy, by ascending token */
    ds_random random;
} ds_sampler;

/* A token that could be drawn. Callers only provide memory for candidates, in which drawing and ranking work. */
typedef struct ds_candidate {
    uint64_t key;    /* the logit's bits, then the id: a larger key is more likely, of equal logits the smaller id's */
    uint64_t weight; /* the token's probability, scaled so that the sum over the vocabulary fits */
} ds_candidate;

/* Temperature 1, all else off, seed 0. */
extern const dsv2_sampling ds_sampling_defaults;

/* The default parameters, random numbers from their seed. Cannot fail. Owns no memory until it is set. */
void ds_sampler_init(ds_sampler *sampler);

/* Checks new parameters field by field and copies them. Random numbers go on if the seed is that of the parameters
 * before, else they start from the new seed. On failure the sampler is as before. Returns DSV2_OK, DSV2_ERROR_ARGUMENT
 * or _MEMORY. */
dsv2_status ds_sampler_set(ds_sampler *sampler, const dsv2_sampling *sampling, uint32_t vocab_size);

/* Makes *to, which owns no memory yet, draw as `from` will. On failure *to is as ds_sampler_init leaves it. */
dsv2_status ds_sampler_copy(ds_sampler *to, const ds_sampler *from);

/* Frees what the sampler owns; afterwards it is as ds_sampler_init leaves it. */
void ds_sampler_free(ds_sampler *sampler);

/* Draws a token from vocab_size logits. NaN logits count as -INFINITY.
 *   tokens   the session's n_tokens tokens, for the penalties; all are in the vocabulary
 *   scratch  vocab_size candidates, contents undefined before and after
 * Returns DSV2_OK, or DSV2_ERROR_STATE if no token has a logit above -INFINITY: the random numbers have not moved
 * then. */
dsv2_status ds_sampler_draw(ds_sampler *sampler, const float *logits, uint32_t vocab_size, const int32_t *tokens,
                            size_t n_tokens, ds_candidate *scratch, int32_t *token);

/* ---- log probabilities ---- */

/* ln(sum exp(logit)) in double, added in order of id. NaN counts as -INFINITY. -INFINITY if no logit is above that. */
double ds_log_sum_exp(const float *logits, uint32_t vocab_size);

/* logit - log_sum_exp; -INFINITY for a logit of NaN or -INFINITY. */
float ds_log_probability(float logit, double log_sum_exp);

/* The k <= vocab_size most likely tokens, most likely first, of equals the smaller id first. scratch: as in
 * ds_sampler_draw. */
void ds_top_tokens(const float *logits, uint32_t vocab_size, size_t k, ds_candidate *scratch,
                   dsv2_token_probability *top);

#endif

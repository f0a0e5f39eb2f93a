/* sampling: logits to a token. Includes base alone.
 *
 * Everything that decides which token is drawn is done in integers or in IEEE double arithmetic without libm, so equal logits and
 * an equal seed give equal text on every machine: candidates are ordered by an integer key, probabilities are integer weights whose
 * sums are exact in any order, and the random number is an integer below their total. */
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

/* Uniform in [0, bound), bound >= 1. Takes exactly one number; no value is off its share by more than 2^-64. */
uint64_t ds_random_below(ds_random *random, uint64_t bound);

/* ---- drawing (sampling.c) ---- */

typedef struct ds_sampler {
    dsv2_sampling params; /* logit_bias is a copy of its own, by ascending token */
    ds_random random;
} ds_sampler;

/* A token that could be drawn. Opaque but for its size: the memory that drawing and ranking work in. */
typedef struct ds_candidate {
    uint64_t key;    /* larger is more likely; no two are equal: the logit's bits, then the smaller id first */
    uint64_t weight; /* its probability, scaled so that the sum over the vocabulary fits */
} ds_candidate;

/* The defaults of dsv2_sampling_defaults, random numbers from their seed. Cannot fail; owns nothing until set. */
void ds_sampler_init(ds_sampler *sampler);

/* Takes new parameters, checked field by field, and starts the random numbers from their seed; all or nothing.
 * Returns DSV2_OK, DSV2_ERROR_ARGUMENT or _MEMORY. */
dsv2_status ds_sampler_set(ds_sampler *sampler, const dsv2_sampling *sampling, uint32_t vocab_size);

/* Makes *to, which holds nothing yet, draw as `from` will. On failure *to is as ds_sampler_init leaves it. */
dsv2_status ds_sampler_copy(ds_sampler *to, const ds_sampler *from);

/* Frees what the sampler owns. */
void ds_sampler_free(ds_sampler *sampler);

/* Draws a token from vocab_size logits. tokens: the n_tokens of the session, all in the vocabulary, for the penalties. scratch:
 * vocab_size candidates, contents undefined before and after. NaN logits count as -INFINITY.
 * Returns DSV2_OK or DSV2_ERROR_STATE (no token has a logit above -INFINITY); then the random numbers have not moved. */
dsv2_status ds_sampler_draw(ds_sampler *sampler, const float *logits, uint32_t vocab_size, const int32_t *tokens,
                            size_t n_tokens, ds_candidate *scratch, int32_t *token);

/* ---- log probabilities ---- */

/* ln(sum exp(logit)) in double, added in order of id. NaN counts as -INFINITY; -INFINITY if nothing else is there. */
double ds_log_sum_exp(const float *logits, uint32_t vocab_size);

/* logit - log_sum_exp; -INFINITY for a NaN or -INFINITY logit. */
float ds_log_probability(float logit, double log_sum_exp);

/* The k most likely tokens, most likely first, of equals the smaller id first; k <= vocab_size. scratch as above. */
void ds_top_tokens(const float *logits, uint32_t vocab_size, size_t k, ds_candidate *scratch, dsv2_token_probability *top);

#endif

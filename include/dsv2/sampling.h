/* libdsv2: from logits to a token. */
#ifndef DSV2_SAMPLING_H
#define DSV2_SAMPLING_H

#include <dsv2/error.h>

DSV2_BEGIN_DECLS

/* An amount added to one token's logit before anything else; -INFINITY forbids the token. */
typedef struct dsv2_logit_bias {
    int32_t token;
    float bias;
} dsv2_logit_bias;

/* How dsv2_session_sample draws. A NaN logit counts as -INFINITY. The steps are taken in the order of the fields:
 * bias, penalties, temperature, top-k, top-p, min-p, draw.
 * Start from dsv2_sampling_defaults, which sets struct_size. */
typedef struct dsv2_sampling {
    size_t struct_size;
    const dsv2_logit_bias *logit_bias; /* n_logit_bias entries, copied by dsv2_session_set_sampling; a token at most once */
    size_t n_logit_bias;
    float repetition_penalty; /* 1: none; > 0. Logits of tokens in the window: divided by it if positive, else multiplied
                               * (Keskar et al., CTRL, arXiv 1909.05858, section 4.1) */
    float presence_penalty;   /* subtracted once from the logit of each token in the window; 0: none */
    float frequency_penalty;  /* subtracted as often as the token occurs in the window; 0: none */
    uint32_t penalty_window;  /* tokens looked back on; 0: the whole session */
    float temperature;        /* 0: greedy, the largest logit, of equals the smallest id; otherwise logits are divided by it */
    uint32_t top_k;           /* keep the k most likely; 0: all */
    float top_p;              /* keep the fewest most likely tokens that reach this probability; 1: all; in (0, 1] */
    float min_p;              /* drop tokens less likely than this times the most likely one; 0: none; in [0, 1] */
    uint64_t seed;            /* dsv2_session_set_sampling starts the session's random numbers from it */
} dsv2_sampling;

/* Fills *sampling with the defaults: temperature 1, all else off, seed 0. Any thread; does nothing for NULL. */
DSV2_API void dsv2_sampling_defaults(dsv2_sampling *sampling);

/* A token beside its log probability: the natural logarithm of softmax over the session's raw logits (before bias,
 * penalties and temperature). */
typedef struct dsv2_token_probability {
    int32_t token;
    float log_probability;
} dsv2_token_probability;

DSV2_END_DECLS
#endif

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

/* How dsv2_session_sample draws. The steps follow the order of the fields: bias, penalties, temperature, top-k, top-p,
 * min-p, draw. A NaN logit counts as -INFINITY. Start from dsv2_sampling_get_defaults. struct_size as in
 * dsv2_model_options. */
typedef struct dsv2_sampling {
    size_t struct_size;
    const dsv2_logit_bias *logit_bias; /* n_logit_bias entries, a token at most once; copied by
                                        * dsv2_session_set_sampling */
    size_t n_logit_bias;
    float repetition_penalty; /* > 0; 1: none. Divides positive logits of tokens in the window and multiplies the others
                               * (Keskar et al., CTRL, arXiv 1909.05858, section 4.1) */
    float presence_penalty;   /* subtracted once from the logit of each token in the window; 0: none */
    float frequency_penalty;  /* subtracted as often as the token occurs in the window; 0: none */
    uint32_t penalty_window;  /* number of last tokens that the penalties look at; 0: the whole session */
    float temperature;        /* logits are divided by it; 0: greedy, the largest logit, of equals the smallest id */
    uint32_t top_k;           /* keep the k most likely tokens; 0: all */
    float top_p;              /* keep the fewest most likely tokens that reach this probability; in (0, 1]; 1: all */
    float min_p;              /* drop tokens less likely than this times the most likely one; in [0, 1]; 0: none */
    uint64_t seed;            /* dsv2_session_set_sampling starts the session's random numbers from the seed if the
                               * sampling set before, or the default, has another; otherwise they go on */
} dsv2_sampling;

/* Fills *sampling with the defaults: temperature 1, all else off, seed 0. Set struct_size before the call. Any thread.
 * Returns DSV2_OK or DSV2_ERROR_ARGUMENT. Since version 0.2. */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_sampling_get_defaults(dsv2_sampling *sampling);

/* The same for hosts of version 0.1, which do not say how large their structure is: fills the fields that version 0.1
 * had, and sets struct_size to the size of these. Does nothing for NULL. Any thread; cannot fail. */
DSV2_API void dsv2_sampling_defaults(dsv2_sampling *sampling);

/* A token beside its log probability: the natural logarithm of softmax over the session's raw logits (before bias,
 * penalties and temperature). */
typedef struct dsv2_token_probability {
    int32_t token;
    float log_probability;
} dsv2_token_probability;

DSV2_END_DECLS
#endif

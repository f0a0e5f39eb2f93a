/* libdsv2: sessions. A session is one sequence of tokens with its KV cache, its last logits and its sampler.
 *
 *     dsv2_session *session;
 *     dsv2_session_open(model, NULL, &session);
 *     dsv2_session_feed(session, prompt, n_prompt);
 *     for (int i = 0; i < 100; i++) {
 *         int32_t token;
 *         dsv2_session_sample(session, &token);
 *         if (dsv2_model_is_end(model, token)) break;
 *         ... show it ...
 *         dsv2_session_feed(session, &token, 1);
 *     }
 *     dsv2_session_close(session);
 *
 * Thread rules: a session is used by one call at a time, from any thread; a second call at the same time returns
 * DSV2_ERROR_BUSY and changes nothing. Two functions may be called while another call runs: dsv2_session_cancel and
 * dsv2_session_fork. A fork copies what the session was before the running call, until that call has succeeded.
 * Sessions of one model, forks included, are independent of each other. A session's logits are the same bits whatever
 * the number of threads, whichever other sessions work at the same time and whichever sessions share a dsv2_step.
 * When a call fails the session is as it was before the call.
 */
#ifndef DSV2_SESSION_H
#define DSV2_SESSION_H

#include <dsv2/model.h>
#include <dsv2/sampling.h>

DSV2_BEGIN_DECLS

typedef struct dsv2_session dsv2_session;

/* How the KV cache stores its elements. Numbers in f16 reach 65504: a feed that makes a larger one fails, see
 * dsv2_session_feed. Values are part of the binary interface. */
typedef enum dsv2_cache_type {
    DSV2_CACHE_DEFAULT = 0,
    DSV2_CACHE_F32 = 1,
    DSV2_CACHE_F16 = 2,
    DSV2_CACHE_Q8 = 3, /* latents in 8 bits with a scale for 64 elements, RoPE parts in f16: about 9.1 bits each */
    DSV2_CACHE_Q6 = 4  /* in the published shapes 6.0 bits an element on average, scales included */
} dsv2_cache_type;

/* The form in which attention is computed. Both forms give the same logits up to rounding. AUTO takes the form that is
 * cheaper for the number of tokens fed and the length they attend to; the other values are for tests. */
typedef enum dsv2_attention {
    DSV2_ATTENTION_AUTO = 0,
    DSV2_ATTENTION_ABSORBED = 1,
    DSV2_ATTENTION_EXPANDED = 2
} dsv2_attention;

/* struct_size as in dsv2_model_options; zero everywhere else for the defaults. */
typedef struct dsv2_session_options {
    size_t struct_size;
    uint32_t max_length;         /* tokens; 0: the model's context length, which it must not exceed */
    dsv2_cache_type cache_type;  /* DSV2_CACHE_DEFAULT: q8 */
    dsv2_attention attention;
    dsv2_progress_fn progress;   /* of feed and step, DSV2_PHASE_PROMPT, or NULL; see dsv2_session_set_progress */
    void *progress_user;
} dsv2_session_options;

/* Opens an empty session. Memory for tokens is taken when they are fed. The caller closes *session.
 * Any thread. Returns DSV2_OK, DSV2_ERROR_ARGUMENT or _MEMORY. */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_session_open(dsv2_model *model, const dsv2_session_options *options,
                                                         dsv2_session **session);

/* Closes a session and gives its pages back. NULL is allowed. No other call may use the session at that time or
 * later. */
DSV2_API void dsv2_session_close(dsv2_session *session);

/* Sets the progress callback of the session's feeds and steps; NULL removes it. The callback stays until it is set anew
 * or the session is closed. Returns DSV2_OK, DSV2_ERROR_ARGUMENT or _BUSY. */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_session_set_progress(dsv2_session *session, dsv2_progress_fn progress,
                                                                 void *progress_user);

/* Appends n tokens (n >= 1) and computes the logits of the last one. The library cuts long inputs into chunks.
 * Returns DSV2_OK, DSV2_ERROR_ARGUMENT (an id outside the vocabulary: the message tells its index), _FULL, _MEMORY,
 * _IO, _BUSY, _CANCELLED, _FORMAT (a number that is not finite came up: a weight or a restored snapshot is damaged) or
 * _UNSUPPORTED (a token's cached row is larger than the cache type holds). The messages of the last two name token and
 * layer. */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_session_feed(dsv2_session *session, const int32_t *tokens, size_t n);

/* Draws the next token from the logits, as dsv2_session_set_sampling says, and stores it in *token. The token is not
 * appended: the host feeds it, or stops. The session's random numbers advance, unless drawing is greedy.
 * Returns DSV2_OK, DSV2_ERROR_ARGUMENT, _STATE (nothing was fed, or every token has a logit of -INFINITY), _MEMORY or
 * _BUSY. */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_session_sample(dsv2_session *session, int32_t *token);

/* Sets how to draw; the session starts with the values of dsv2_sampling_get_defaults. The structure and its biases are
 * copied. The session's random numbers go on as if nothing had been set, so that options and biases may change before
 * every draw; a seed that differs from the one set before starts them anew.
 * Returns DSV2_OK, DSV2_ERROR_ARGUMENT (the message names field and value), _MEMORY or _BUSY. */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_session_set_sampling(dsv2_session *session, const dsv2_sampling *sampling);

/* Starts the session's random numbers anew from the seed: the next draws are those of every session with this seed,
 * these logits and this sampling. Forks are seeded apart in this way. The seed in dsv2_sampling stays what it is.
 * Returns DSV2_OK, DSV2_ERROR_ARGUMENT or _BUSY. Since version 0.2. */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_session_seed(dsv2_session *session, uint64_t seed);

/* The logits of the last token: *logits points to vocab_size floats owned by the session. The floats stay what they are
 * until the session's next feed, step, truncate or restore, which may overwrite them. The memory may be read until the
 * session is closed, whatever it then holds. Returns DSV2_OK, DSV2_ERROR_ARGUMENT, _STATE or _BUSY. */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_session_logits(dsv2_session *session, const float **logits);

/* Stores the k most likely next tokens with their log probabilities in top[k]: the most likely first, and of equals the
 * smaller id first. k is at most the vocabulary size. Returns DSV2_OK, DSV2_ERROR_ARGUMENT, _STATE, _MEMORY or
 * _BUSY. */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_session_top_tokens(dsv2_session *session, size_t k,
                                                               dsv2_token_probability *top);

/* The log probability of one token as the next. Returns DSV2_OK, DSV2_ERROR_ARGUMENT, _STATE or _BUSY. */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_session_log_probability(dsv2_session *session, int32_t token,
                                                                    float *log_probability);

/* The number of tokens in the session, in *n. Returns DSV2_OK, DSV2_ERROR_ARGUMENT or _BUSY. */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_session_length(dsv2_session *session, size_t *n);

/* Copies the session's tokens into tokens[capacity]; *n always receives their number. With capacity 0 nothing is
 * copied.
 * Returns DSV2_OK, DSV2_ERROR_ARGUMENT, _BUFFER or _BUSY. */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_session_tokens(dsv2_session *session, int32_t *tokens, size_t capacity,
                                                           size_t *n);

/* Rewinds to the first n tokens (n <= length). Unless n is the present length the session then has no logits until
 * tokens are fed again: to get the logits of token n, truncate to n - 1 and feed token n.
 * Returns DSV2_OK, DSV2_ERROR_ARGUMENT or _BUSY. */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_session_truncate(dsv2_session *session, size_t n);

/* Makes a new session with the first n tokens of this session (n <= length), its options, its sampler and random state,
 * and its logits if n is the present length. The copy has no callbacks until they are set. The two sessions share
 * pages; a page is copied when one of them writes to it. The caller closes *copy.
 * Any thread, also while another call has the session and from that call's callbacks; not while the session is closed.
 * Until such a call has succeeded the length is that of before the call: tokens being fed cannot be shared yet. Forking
 * takes moments and never waits for the other call to end. Returns DSV2_OK, DSV2_ERROR_ARGUMENT or _MEMORY. */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_session_fork(dsv2_session *session, size_t n, dsv2_session **copy);

/* Makes the call that is now at work on the session return DSV2_ERROR_CANCELLED, within about one layer's time; within
 * two layers' time if another session of the model is at work, since the two take turns. If no call is at work nothing
 * happens: a later call is not cancelled. Any thread, at any time between open and close; also from a signal handler of
 * the host. NULL is allowed. */
DSV2_API void dsv2_session_cancel(dsv2_session *session);

/* The bytes that one token takes in this session's cache, in *bytes. Returns DSV2_OK or DSV2_ERROR_ARGUMENT. */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_session_bytes_per_token(const dsv2_session *session, uint64_t *bytes);

/* One session's share of a dsv2_step. struct_size is set in every item, to the same value; sizes of other versions are
 * accepted as in dsv2_model_options. */
typedef struct dsv2_step_item {
    size_t struct_size;
    dsv2_session *session; /* each session at most once in a step, all of the same model */
    const int32_t *tokens; /* n_tokens >= 1 ids to append */
    size_t n_tokens;
    float *logits;         /* NULL, or the caller's room for n_tokens rows of vocab_size floats: the logits of every
                            * token. Contents are undefined unless the item's status is DSV2_OK */
    dsv2_status status;    /* out: what became of this item */
} dsv2_step_item;

/* Does for each item what dsv2_session_feed does, in one pass over the tokens of all: faster, with the same bits. If
 * arguments, memory or files are at fault nothing changes in any session and every item's status says so. If a session
 * is cancelled, or its numbers fail as in dsv2_session_feed (_FORMAT, _UNSUPPORTED), that session alone is as before
 * and its item's status says why; the others go on, with the same bits. The message is that of the first item at fault;
 * if there are several items, it begins with that item's index, as in "items[1]: ". Each session's progress callback is
 * called for that session. Returns DSV2_OK if every item succeeded, otherwise the status of the first item that failed:
 * DSV2_ERROR_ARGUMENT, _FULL, _MEMORY, _IO, _BUSY, _MISMATCH (a session of another model), _CANCELLED, _FORMAT or
 * _UNSUPPORTED. */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_step(dsv2_model *model, dsv2_step_item *items, size_t n_items);

DSV2_END_DECLS
#endif

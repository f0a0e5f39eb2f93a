/* The public API on a tiny model, in the order and with the arguments that the input gives. What every call returns and
 * leaves is compared with a simple account of the sessions: their tokens and how they came to be. Logits are compared
 * with those of a fresh session on another model, which has another number of threads: fed all tokens at once in the
 * absorbed form, and as the session was fed in the other forms. */
#include "model_files.h"
#include "../support/must.h"

#include <dsv2/dsv2.h>

#include <math.h>
#include <stdbool.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { N_SESSIONS = 5, N_SAVED = 3, MAX_CALLS = 48, MAX_LENGTH = 150, MAX_FEEDS = 64, MAX_VOCAB = 512,
       MAX_EXPERTS = 64, MAX_SAVED = 1 << 20, TOO_LONG = MAX_LENGTH + 10 };

/* How a session came to its tokens: feeds, each cut afterwards to `kept` tokens in all. */
typedef struct feeding {
    uint16_t first, end, kept; /* tokens before the feed, after the feed, after truncating */
} feeding;

typedef struct history {
    size_t n, n_feeds;
    int32_t tokens[MAX_LENGTH];         /* what is there now */
    feeding feeds[MAX_FEEDS];
    int32_t fed[MAX_FEEDS][MAX_LENGTH]; /* what each feed was given */
    bool has_logits, exact; /* exact: the logits can be computed again. A converted cache has its own rounding */
    dsv2_session_options options;
} history;

typedef struct account {
    dsv2_session *session; /* NULL: none is open */
    history past;
    uint64_t counted; /* tokens that routing counts */
    bool traced;
} account;

typedef struct saved {
    uint8_t *data;
    size_t size, read;
    history past;
    int32_t next; /* what the session would have drawn; -1: nothing */
} saved;

static dsv2_model *model, *other;
static dsv2_model_info facts;
static uint32_t vocab_size;
static uint64_t model_counted; /* tokens that the model's routing counts */
static uint64_t events;        /* calls of trace since it was set to 0 */
static account accounts[N_SESSIONS];
static saved snapshots[N_SAVED];
static stream in;

static int write_saved(void *user, const void *data, size_t size)
{
    saved *s = user;
    if (s->size + size > MAX_SAVED)
        return 1;
    memcpy(s->data + s->size, data, size);
    s->size += size;
    return 0;
}

static int read_saved(void *user, void *data, size_t size, size_t *got)
{
    saved *s = user;
    *got = size < s->size - s->read ? size : s->size - s->read;
    memcpy(data, s->data + s->read, *got);
    s->read += *got;
    return 0;
}

/* ---- what a session should be ---- */

/* The tokens that a feed of `n` would add; the last may be none of the vocabulary's. */
static void choose_tokens(int32_t *tokens, size_t n)
{
    uint8_t seed = stream_u8(&in);
    for (size_t i = 0; i < n; i++)
        tokens[i] = (int32_t)((seed + 31 * i + i * i * seed) % vocab_size);
}

static size_t choose_length(void)
{
    uint8_t byte = stream_u8(&in);
    return byte < 192 ? byte % 9 : byte < 250 ? 50 + byte % 32 : TOO_LONG; /* seldom over a page */
}

static void note_feed(account *a, const int32_t *tokens, size_t n)
{
    history *h = &a->past;
    memcpy(h->tokens + h->n, tokens, n * sizeof *tokens);
    if (h->n_feeds == MAX_FEEDS)
        h->exact = false;
    if (h->exact) {
        memcpy(h->fed[h->n_feeds], tokens, n * sizeof *tokens);
        h->feeds[h->n_feeds++] = (feeding){(uint16_t)h->n, (uint16_t)(h->n + n), (uint16_t)(h->n + n)};
    }
    h->n += n;
    h->has_logits = true;
    a->counted += n;
    model_counted += n;
}

static void note_truncate(history *h, size_t n)
{
    if (n != h->n)
        h->has_logits = false;
    h->n = n;
    while (h->n_feeds > 0 && h->feeds[h->n_feeds - 1].first >= n)
        h->n_feeds--;
    if (h->n_feeds > 0 && h->feeds[h->n_feeds - 1].kept > n)
        h->feeds[h->n_feeds - 1].kept = (uint16_t)n;
}

static void feed_again(const history *h, dsv2_session *fresh)
{
    if (h->options.attention == DSV2_ATTENTION_ABSORBED) {
        MUST(dsv2_session_feed(fresh, h->tokens, h->n) == DSV2_OK);
        return;
    }
    for (size_t i = 0; i < h->n_feeds; i++) {
        const feeding *f = &h->feeds[i];
        MUST(dsv2_session_feed(fresh, h->fed[i], (size_t)(f->end - f->first)) == DSV2_OK);
        if (f->kept < f->end)
            MUST(dsv2_session_truncate(fresh, f->kept) == DSV2_OK);
    }
}

static void check_logits(const account *a)
{
    const history *h = &a->past;
    const float *logits, *expected;
    dsv2_session *fresh;
    dsv2_status status = dsv2_session_logits(a->session, &logits);
    MUST(status == (h->has_logits ? DSV2_OK : DSV2_ERROR_STATE));
    if (status != DSV2_OK || !h->exact)
        return;
    MUST(dsv2_session_open(other, &h->options, &fresh) == DSV2_OK);
    feed_again(h, fresh);
    MUST(dsv2_session_logits(fresh, &expected) == DSV2_OK);
    MUST(memcmp(logits, expected, vocab_size * sizeof *logits) == 0);
    dsv2_session_close(fresh);
}

static void check_tokens(const account *a)
{
    int32_t tokens[MAX_LENGTH];
    size_t n, length;
    MUST(dsv2_session_length(a->session, &length) == DSV2_OK && length == a->past.n);
    MUST(dsv2_session_tokens(a->session, tokens, MAX_LENGTH, &n) == DSV2_OK && n == length);
    MUST(memcmp(tokens, a->past.tokens, n * sizeof *tokens) == 0);
    if (n > 1)
        MUST(dsv2_session_tokens(a->session, tokens, n - 1, &length) == DSV2_ERROR_BUFFER && length == n);
}

static void check_counts(const account *a)
{
    dsv2_routing *routing;
    dsv2_routing_info info = {.struct_size = sizeof info};
    MUST(dsv2_session_routing(a->session, DSV2_ROUTING_ALL, &routing) == DSV2_OK);
    MUST(dsv2_routing_get_info(routing, &info) == DSV2_OK && info.n_tokens == a->counted);
    dsv2_routing_free(routing);
}

/* Cache types as sessions have them: the default is q8. */
static dsv2_cache_type held(const history *h)
{
    return h->options.cache_type == DSV2_CACHE_DEFAULT ? DSV2_CACHE_Q8 : h->options.cache_type;
}

/* ---- calls ---- */

static account *choose_session(void) { return &accounts[stream_u8(&in) % N_SESSIONS]; }

static void open_session(account *a)
{
    uint8_t byte = stream_u8(&in);
    dsv2_session_options options = {.struct_size = sizeof options, .cache_type = (dsv2_cache_type)(byte % 6),
                                    .attention = (dsv2_attention)(byte / 8 % 4),
                                    .max_length = byte & 64 ? 100 : byte & 128 ? 1 << 20 : MAX_LENGTH};
    dsv2_session *session;
    dsv2_status status = dsv2_session_open(model, &options, &session);
    bool good = options.cache_type <= DSV2_CACHE_Q6 && options.attention <= DSV2_ATTENTION_EXPANDED &&
                options.max_length <= MAX_LENGTH;
    MUST(status == (good ? DSV2_OK : DSV2_ERROR_ARGUMENT));
    if (status != DSV2_OK)
        return;
    dsv2_session_close(a->session);
    *a = (account){.session = session, .past = {.exact = true, .options = options}};
}

static int cancel_later(void *user, dsv2_phase phase, uint64_t done, uint64_t total)
{
    unsigned *left = user;
    MUST(done <= total);
    (void)phase;
    return *left > 0 && --*left == 0;
}

static dsv2_status expected_of_feed(const account *a, const int32_t *tokens, size_t n)
{
    if (n == 0)
        return DSV2_ERROR_ARGUMENT;
    if (n > a->past.options.max_length - a->past.n)
        return DSV2_ERROR_FULL; /* also where a token is none of the vocabulary's */
    for (size_t i = 0; i < n; i++)
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= vocab_size)
            return DSV2_ERROR_ARGUMENT;
    return DSV2_OK;
}

/* A callback sees each token in each of the MoE layers. */
static uint64_t n_events(const account *a, size_t n)
{
    return a->traced ? n * (facts.num_hidden_layers - facts.first_k_dense_replace) : 0;
}

static void feed(account *a)
{
    int32_t tokens[256];
    size_t n = choose_length();
    uint8_t byte = stream_u8(&in);
    unsigned left = byte < 64 ? byte : 0;
    bool cancels = left > 0;
    choose_tokens(tokens, n);
    if (n > 0 && n < TOO_LONG && byte == 255)
        tokens[n - 1] = (int32_t)vocab_size;
    dsv2_status expected = expected_of_feed(a, tokens, n);
    MUST(dsv2_session_set_progress(a->session, cancel_later, &left) == DSV2_OK);
    events = 0;
    dsv2_status status = dsv2_session_feed(a->session, tokens, n);
    MUST(dsv2_session_set_progress(a->session, NULL, NULL) == DSV2_OK);
    MUST(status == expected || (cancels && left == 0 && expected == DSV2_OK && status == DSV2_ERROR_CANCELLED));
    if (status != DSV2_OK)
        return;
    MUST(events == n_events(a, n));
    note_feed(a, tokens, n);
}

/* Several sessions at once, perhaps one of them twice, perhaps one too full. */
static void step(void)
{
    static float logits[MAX_LENGTH * MAX_VOCAB];
    static int32_t tokens[N_SESSIONS][256];
    dsv2_step_item items[N_SESSIONS];
    account *of[N_SESSIONS];
    size_t n = stream_u8(&in) % (N_SESSIONS + 1);
    dsv2_status expected = n > 0 ? DSV2_OK : DSV2_ERROR_ARGUMENT;
    bool twice = false;
    for (size_t i = 0; i < n; i++) {
        of[i] = choose_session();
        if (of[i]->session == NULL)
            return;
        size_t n_tokens = choose_length();
        choose_tokens(tokens[i], n_tokens);
        items[i] = (dsv2_step_item){.struct_size = sizeof *items, .session = of[i]->session, .tokens = tokens[i],
                                    .n_tokens = n_tokens, .logits = i == 0 && n_tokens <= MAX_LENGTH ? logits : NULL};
        dsv2_status own = expected_of_feed(of[i], tokens[i], n_tokens);
        for (size_t k = 0; k < i; k++)
            twice = twice || of[k] == of[i];
        if (expected == DSV2_OK)
            expected = own;
    }
    dsv2_status status = dsv2_step(model, items, n);
    MUST(twice ? status != DSV2_OK : (status == DSV2_OK) == (expected == DSV2_OK));
    for (size_t i = 0; i < n; i++) {
        MUST((items[i].status == DSV2_OK) == (status == DSV2_OK));
        if (status == DSV2_OK)
            note_feed(of[i], tokens[i], items[i].n_tokens);
    }
    const float *last;
    if (status == DSV2_OK && items[0].logits != NULL)
        MUST(dsv2_session_logits(of[0]->session, &last) == DSV2_OK &&
             memcmp(last, logits + (items[0].n_tokens - 1) * vocab_size, vocab_size * sizeof *last) == 0);
}

static int32_t draw(dsv2_session *session, bool has_logits)
{
    int32_t token = -1;
    dsv2_status status = dsv2_session_sample(session, &token);
    MUST(status == (has_logits ? DSV2_OK : DSV2_ERROR_STATE));
    MUST(status == DSV2_OK ? token >= 0 && (uint32_t)token < vocab_size : token == -1);
    return token;
}

/* A fork draws what its session draws. */
static void sample(account *a)
{
    dsv2_session *twin;
    MUST(dsv2_session_fork(a->session, a->past.n, &twin) == DSV2_OK);
    for (int i = 0; i < 3; i++)
        MUST(draw(a->session, a->past.has_logits) == draw(twin, a->past.has_logits));
    dsv2_session_close(twin);
    if (!a->past.has_logits)
        return;
    dsv2_token_probability top[4];
    float same;
    MUST(dsv2_session_top_tokens(a->session, 4, top) == DSV2_OK);
    for (int i = 1; i < 4; i++)
        MUST(top[i].log_probability < top[i - 1].log_probability ||
             (top[i].log_probability <= top[i - 1].log_probability && top[i].token > top[i - 1].token));
    MUST(dsv2_session_log_probability(a->session, top[2].token, &same) == DSV2_OK && same == top[2].log_probability);
    MUST(dsv2_session_top_tokens(a->session, vocab_size + 1, top) == DSV2_ERROR_ARGUMENT);
    MUST(dsv2_session_log_probability(a->session, (int32_t)vocab_size, &same) == DSV2_ERROR_ARGUMENT);
}

static void set_sampling(account *a)
{
    dsv2_sampling s = {.struct_size = sizeof s};
    dsv2_logit_bias biases[3];
    uint8_t byte = stream_u8(&in), more = stream_u8(&in);
    MUST(dsv2_sampling_get_defaults(&s) == DSV2_OK);
    for (int i = 0; i < 3; i++)
        biases[i] = (dsv2_logit_bias){(int32_t)((more + 5u * (unsigned)i) % (vocab_size + (more == 77))),
                                      i == 0 ? -INFINITY : (float)(more - 100)};
    s.logit_bias = biases;
    s.n_logit_bias = byte & 3;
    s.temperature = byte & 4 ? 0.0f : (float)(1 + (more & 7)) / 4;
    s.top_k = byte & 8 ? more % 5u : 0;
    s.top_p = byte & 16 ? (float)more / 128 : 1;
    s.min_p = byte & 32 ? 0.05f : 0;
    s.repetition_penalty = byte & 64 ? 1.3f : 1;
    s.presence_penalty = byte & 128 ? 0.2f : 0;
    s.penalty_window = more;
    s.seed = more;
    bool good = s.top_p > 0 && s.top_p <= 1;
    for (size_t i = 0; i < s.n_logit_bias; i++)
        good = good && (uint32_t)biases[i].token < vocab_size;
    MUST(dsv2_session_set_sampling(a->session, &s) == (good ? DSV2_OK : DSV2_ERROR_ARGUMENT));
    if (byte == more)
        MUST(dsv2_session_seed(a->session, more) == DSV2_OK);
}

static void fork_session(account *a)
{
    account *to = choose_session();
    size_t n = stream_u8(&in) % (a->past.n + 2);
    dsv2_session *copy;
    if (to == a)
        return;
    dsv2_status status = dsv2_session_fork(a->session, n, &copy);
    MUST(status == (n <= a->past.n ? DSV2_OK : DSV2_ERROR_ARGUMENT));
    if (status != DSV2_OK)
        return;
    dsv2_session_close(to->session);
    *to = (account){.session = copy, .past = a->past};
    note_truncate(&to->past, n);
}

static void truncate_session(account *a)
{
    size_t n = stream_u8(&in) % (a->past.n + 2);
    MUST(dsv2_session_truncate(a->session, n) == (n <= a->past.n ? DSV2_OK : DSV2_ERROR_ARGUMENT));
    if (n <= a->past.n)
        note_truncate(&a->past, n);
}

static void save(account *a)
{
    saved *s = &snapshots[stream_u8(&in) % N_SAVED];
    const dsv2_save_options options = {.struct_size = sizeof options, .compression_level = stream_u8(&in) % 8};
    dsv2_session *twin;
    if (s->data == NULL)
        s->data = malloc(MAX_SAVED);
    MUST(s->data != NULL);
    s->size = 0;
    MUST(dsv2_session_save_to(a->session, write_saved, s, &options) == DSV2_OK);
    s->past = a->past;
    MUST(dsv2_session_fork(a->session, a->past.n, &twin) == DSV2_OK);
    s->next = draw(twin, a->past.has_logits);
    dsv2_session_close(twin);
}

static void restore(account *a)
{
    saved *s = &snapshots[stream_u8(&in) % N_SAVED];
    uint8_t byte = stream_u8(&in), more = stream_u8(&in);
    dsv2_restore_options options = {.struct_size = sizeof options, .convert = byte & 1, .leave_last = more & 1};
    size_t shared = s->past.n, reused = 12345;
    int32_t prompt[MAX_LENGTH];
    if (s->size == 0)
        return;
    memcpy(prompt, s->past.tokens, s->past.n * sizeof *prompt);
    if (byte & 2) {
        options.prompt = prompt;
        options.n_prompt = s->past.n;
        shared = byte / 4u % (s->past.n + 1);
        if (shared < s->past.n && more & 2) /* the prompt ends before the snapshot */
            options.n_prompt = shared;
        else if (shared < s->past.n)
            prompt[shared] = (int32_t)(((uint32_t)prompt[shared] + 1) % vocab_size);
        bool with_logits = shared == s->past.n && s->past.has_logits;
        if (options.leave_last && shared > 0 && shared == options.n_prompt && !with_logits)
            shared--;
    }
    s->read = 0;
    bool same_type = held(&a->past) == held(&s->past);
    dsv2_status expected = !same_type && !options.convert           ? DSV2_ERROR_MISMATCH
                           : shared > a->past.options.max_length ? DSV2_ERROR_FULL
                                                                 : DSV2_OK;
    dsv2_status status = dsv2_session_restore_from(a->session, read_saved, s, &options, &reused);
    MUST(status == expected || (status == DSV2_ERROR_FULL && s->past.n > a->past.options.max_length));
    if (status != DSV2_OK)
        return;
    MUST(reused == shared);
    dsv2_session_options own = a->past.options;
    uint64_t counted = a->counted;
    a->past = s->past;
    note_truncate(&a->past, shared);
    a->past.exact = a->past.exact && same_type && (own.attention == a->past.options.attention);
    a->past.options = own;
    a->counted = counted;
    if (options.prompt == NULL)
        MUST(draw(a->session, a->past.has_logits) == s->next);
}

/* To a file, by appending where the file is of this session's beginning; what was saved comes back. */
static void save_file(account *a)
{
    char path[128];
    const dsv2_save_options options = {.struct_size = sizeof options, .append = 1};
    dsv2_session *back;
    snprintf(path, sizeof path, "%s/conversation", temporary_folder());
    MUST(dsv2_session_save(a->session, path, &options) == DSV2_OK);
    account copy = *a;
    MUST(dsv2_session_open(model, &a->past.options, &back) == DSV2_OK);
    MUST(dsv2_session_restore(back, path, NULL, NULL) == DSV2_OK);
    copy.session = back;
    check_tokens(&copy);
    dsv2_snapshot_info info = {.struct_size = sizeof info};
    MUST(dsv2_snapshot_inspect(path, &info) == DSV2_OK && info.n_tokens == a->past.n);
    MUST(info.cache_type == held(&a->past) && info.model_fingerprint == facts.fingerprint);
    const float *x, *y;
    if (a->past.has_logits)
        MUST(dsv2_session_logits(back, &x) == DSV2_OK && dsv2_session_logits(a->session, &y) == DSV2_OK &&
             memcmp(x, y, vocab_size * sizeof *x) == 0);
    dsv2_session_close(back);
}

static void reset_counts(account *a)
{
    MUST(dsv2_session_routing_reset(a->session) == DSV2_OK);
    a->counted = 0;
}

static void trace(void *user, const dsv2_routing_event *event)
{
    (void)user;
    MUST(event->layer < facts.num_hidden_layers && event->n_experts == facts.num_experts_per_tok);
    for (uint32_t i = 0; i < event->n_experts; i++)
        MUST(event->experts[i] < facts.n_routed_experts && event->gates[i] >= 0);
    events++;
}

static void set_trace(account *a)
{
    a->traced = stream_u8(&in) & 1;
    MUST(dsv2_session_set_routing_trace(a->session, a->traced ? trace : NULL, NULL) == DSV2_OK);
}

static void check_layer(const dsv2_routing *routing, uint64_t n, uint32_t layer, uint32_t devices, uint32_t reach)
{
    dsv2_expert_load loads[MAX_EXPERTS];
    dsv2_routing_balance balance = {.struct_size = sizeof balance};
    bool moe = layer >= facts.first_k_dense_replace && layer < facts.num_hidden_layers;
    dsv2_status status = dsv2_routing_experts(routing, layer, loads);
    MUST(status == (moe ? DSV2_OK : DSV2_ERROR_ARGUMENT));
    uint64_t chosen = 0;
    for (uint32_t i = 0; moe && i < facts.n_routed_experts; i++)
        chosen += loads[i].chosen;
    MUST(!moe || chosen == n * facts.num_experts_per_tok);
    uint32_t d = devices > 0 ? devices : facts.n_group;
    bool good = moe && d <= facts.n_routed_experts && facts.n_routed_experts % d == 0 && reach <= d;
    status = dsv2_routing_measure(routing, layer, devices, reach, &balance);
    MUST(status == (!good ? DSV2_ERROR_ARGUMENT : n == 0 ? DSV2_ERROR_STATE : DSV2_OK));
    if (status == DSV2_OK)
        MUST(balance.max_over_mean >= 1 && balance.jain_index <= 1.000001 && balance.max_devices_reached <= d &&
             balance.mean_devices_reached <= (double)balance.max_devices_reached);
}

/* Counts of the session and of the model, apart and together, prompt and generated. */
static void watch(account *a)
{
    dsv2_routing *of_session, *of_model, *prompt, *generated;
    dsv2_routing_info info = {.struct_size = sizeof info};
    uint8_t layer = stream_u8(&in), devices = stream_u8(&in), reach = stream_u8(&in);
    MUST(dsv2_session_routing(a->session, DSV2_ROUTING_ALL, &of_session) == DSV2_OK);
    MUST(dsv2_session_routing(a->session, DSV2_ROUTING_PROMPT, &prompt) == DSV2_OK);
    MUST(dsv2_session_routing(a->session, DSV2_ROUTING_GENERATED, &generated) == DSV2_OK);
    MUST(dsv2_model_routing(model, DSV2_ROUTING_ALL, &of_model) == DSV2_OK);
    check_layer(of_session, a->counted, layer % 4, devices % 20, reach % 20);
    check_layer(of_model, model_counted, layer % 4, devices % 20, reach % 20);
    MUST(dsv2_routing_merge(prompt, generated) == DSV2_OK);
    MUST(dsv2_routing_get_info(prompt, &info) == DSV2_OK && info.n_tokens == a->counted);
    MUST(dsv2_routing_merge(of_session, of_model) == DSV2_OK);
    check_layer(of_session, a->counted + model_counted, layer % 4, devices % 20, reach % 20);
    dsv2_routing_free(of_session);
    dsv2_routing_free(of_model);
    dsv2_routing_free(prompt);
    dsv2_routing_free(generated);
    if (reach == 255) {
        MUST(dsv2_model_routing_reset(model) == DSV2_OK);
        model_counted = 0;
    }
}

static void use_tokenizer(void)
{
    const dsv2_tokenizer *tokenizer = dsv2_model_tokenizer(model);
    char text[16], back[16];
    int32_t ids[33];
    size_t n, size;
    stream_bytes(&in, (uint8_t *)text, sizeof text);
    MUST(dsv2_tokenizer_encode(tokenizer, text, sizeof text, 0, ids, 33, &n) == DSV2_OK && n > 0 && n <= 32);
    MUST(dsv2_tokenizer_decode(tokenizer, ids, n, DSV2_DECODE_SPECIAL, back, sizeof back, &size) == DSV2_OK);
    MUST(size == sizeof text && memcmp(text, back, size) == 0);
    const char *spelled;
    int32_t token = (int32_t)stream_u16(&in) - 8;
    dsv2_status status = dsv2_token_text(tokenizer, token, &spelled, &size);
    MUST(status == (token >= 0 && (uint32_t)token < vocab_size ? DSV2_OK : DSV2_ERROR_ARGUMENT) || token > 255);
}

static void misuse(account *a)
{
    dsv2_session_cancel(a->session); /* nothing is at work: nothing happens */
    MUST(dsv2_session_feed(a->session, NULL, 1) == DSV2_ERROR_ARGUMENT);
    MUST(dsv2_session_logits(a->session, NULL) == DSV2_ERROR_ARGUMENT);
    MUST(dsv2_session_sample(a->session, NULL) == DSV2_ERROR_ARGUMENT);
    MUST(dsv2_session_fork(a->session, 0, NULL) == DSV2_ERROR_ARGUMENT);
    MUST(dsv2_step(model, NULL, 1) == DSV2_ERROR_ARGUMENT);
}

static void call(void)
{
    uint8_t what = stream_u8(&in) % 20;
    if (what == 0 || what == 1) {
        open_session(choose_session());
        return;
    }
    if (what == 2) {
        step();
        return;
    }
    if (what == 3) {
        use_tokenizer();
        return;
    }
    account *a = choose_session();
    if (a->session == NULL)
        return;
    static void (*const calls[])(account *) = {feed,         feed,    sample, set_sampling, fork_session,
                                               truncate_session, restore, save, feed, save_file, reset_counts,
                                               misuse,       set_trace, watch};
    if (what - 4u < sizeof calls / sizeof *calls) {
        calls[what - 4](a);
        if (a->session != NULL)
            check_tokens(a);
    } else {
        check_logits(a);
        check_counts(a);
    }
}

static void open_models(void)
{
    const uint8_t shape[] = {3, 0, 4, 0, 0, 0, 2 + 4 + 16, 1 + 8, 1 + 4, 7, 1, 0}; /* 2 layers, groups of experts */
    stream description = {shape, sizeof shape};
    const char *path = model_files_make(MODEL_FOLDER, &description);
    dsv2_model_options options = {.struct_size = sizeof options, .n_threads = 2};
    MUST(dsv2_model_open(path, &options, &model) == DSV2_OK);
    options.n_threads = 1;
    MUST(dsv2_model_open(path, &options, &other) == DSV2_OK);
    facts.struct_size = sizeof facts;
    MUST(dsv2_model_get_info(model, &facts) == DSV2_OK && facts.n_routed_experts > 0);
    MUST(facts.n_routed_experts <= MAX_EXPERTS && facts.vocab_size <= MAX_VOCAB && facts.moe_layer_freq == 1);
    vocab_size = facts.vocab_size;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (model == NULL)
        open_models();
    in = (stream){data, size};
    MUST(dsv2_model_routing_reset(model) == DSV2_OK);
    model_counted = 0;
    for (int i = 0; i < MAX_CALLS && in.size > 0; i++)
        call();
    for (size_t i = 0; i < N_SESSIONS; i++) {
        if (accounts[i].session != NULL) {
            check_tokens(&accounts[i]);
            check_counts(&accounts[i]);
            check_logits(&accounts[i]);
        }
        dsv2_session_close(accounts[i].session);
        accounts[i].session = NULL;
    }
    for (size_t i = 0; i < N_SAVED; i++)
        snapshots[i].size = 0;
    dsv2_memory_info memory = {.struct_size = sizeof memory};
    MUST(dsv2_model_get_memory(model, &memory) == DSV2_OK && memory.pages_in_use == 0);
    return 0;
}

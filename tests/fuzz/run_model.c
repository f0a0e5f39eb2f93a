#include "run_model.h"

#include "model_files.h"
#include "../support/must.h"

#include <dsv2/dsv2.h>

#include <math.h>
#include <stdbool.h>

enum { MAX_TOKENS = 90, MAX_SNAPSHOT = 1 << 22 };

typedef struct countdown {
    unsigned left; /* reports until one cancels; 0: none does */
    uint64_t done;
} countdown;

static int count_down(void *user, dsv2_phase phase, uint64_t done, uint64_t total)
{
    countdown *c = user;
    (void)phase;
    MUST(done >= c->done && done <= total);
    c->done = done;
    return c->left > 0 && --c->left == 0;
}

static void hear(void *user, dsv2_log_level level, const char *message)
{
    (void)user;
    MUST((level == DSV2_LOG_WARNING || level == DSV2_LOG_INFO) && message[0] != '\0');
}

/* ---- a snapshot in memory ---- */

static struct {
    uint8_t data[MAX_SNAPSHOT];
    size_t size, read;
} snapshot;

static int write_snapshot(void *user, const void *data, size_t size)
{
    (void)user;
    if (size > MAX_SNAPSHOT - snapshot.size)
        return 1;
    memcpy(snapshot.data + snapshot.size, data, size);
    snapshot.size += size;
    return 0;
}

static int read_snapshot(void *user, void *data, size_t size, size_t *got)
{
    (void)user;
    *got = size < snapshot.size - snapshot.read ? size : snapshot.size - snapshot.read;
    memcpy(data, snapshot.data + snapshot.read, *got);
    snapshot.read += *got;
    return 0;
}

/* ---- what is checked ---- */

typedef struct run {
    dsv2_model *model;
    dsv2_model_info info;
    dsv2_session_options options;
    int32_t tokens[MAX_TOKENS];
    size_t n;
} run;

static const float *logits_of(dsv2_session *session)
{
    const float *logits;
    MUST(dsv2_session_logits(session, &logits) == DSV2_OK);
    return logits;
}

static void same_logits(const run *r, dsv2_session *a, dsv2_session *b)
{
    MUST(memcmp(logits_of(a), logits_of(b), r->info.vocab_size * sizeof(float)) == 0);
}

/* Logits may be NaN where weights are: then a draw takes no such token, or says that there is none to take. */
static void draw(const run *r, dsv2_session *session)
{
    const float *logits = logits_of(session);
    dsv2_token_probability top[3];
    int32_t token;
    float probability;
    dsv2_status status = dsv2_session_sample(session, &token);
    MUST(status == DSV2_OK || status == DSV2_ERROR_STATE);
    MUST(status != DSV2_OK || (token >= 0 && (uint32_t)token < r->info.vocab_size && !isnan(logits[token])));
    size_t k = r->info.vocab_size < 3 ? r->info.vocab_size : 3;
    status = dsv2_session_top_tokens(session, k, top);
    MUST(status == DSV2_OK || status == DSV2_ERROR_STATE);
    for (size_t i = 0; status == DSV2_OK && i < k; i++)
        MUST(top[i].token >= 0 && (uint32_t)top[i].token < r->info.vocab_size);
    status = dsv2_session_log_probability(session, r->tokens[0], &probability);
    MUST(status == DSV2_OK || status == DSV2_ERROR_STATE);
}

static void watch(const run *r, dsv2_session *session)
{
    dsv2_routing *routing;
    dsv2_routing_balance balance = {.struct_size = sizeof balance};
    dsv2_routing_info info = {.struct_size = sizeof info};
    dsv2_status status = dsv2_session_routing(session, DSV2_ROUTING_ALL, &routing);
    uint32_t first = r->info.first_k_dense_replace, freq = r->info.moe_layer_freq > 0 ? r->info.moe_layer_freq : 1;
    bool routes = r->info.n_routed_experts > 0 && (first + freq - 1) / freq * freq < r->info.num_hidden_layers;
    MUST(status == (routes ? DSV2_OK : DSV2_ERROR_UNSUPPORTED));
    if (status != DSV2_OK)
        return;
    MUST(dsv2_routing_get_info(routing, &info) == DSV2_OK && info.n_tokens == r->n);
    dsv2_expert_load *loads = malloc(r->info.n_routed_experts * sizeof *loads);
    MUST(loads != NULL);
    for (uint32_t layer = 0; layer < r->info.num_hidden_layers; layer++) {
        if (dsv2_routing_experts(routing, layer, loads) != DSV2_OK)
            continue;
        uint64_t chosen = 0;
        for (uint32_t e = 0; e < r->info.n_routed_experts; e++)
            chosen += loads[e].chosen;
        MUST(chosen == r->n * r->info.num_experts_per_tok);
        MUST(dsv2_routing_measure(routing, layer, 0, 0, &balance) == DSV2_OK);
        MUST(balance.never_used < r->info.n_routed_experts);
    }
    free(loads);
    dsv2_routing_free(routing);
}

/* A fork, and a session that is restored, go on as this session does. */
static void go_on(const run *r, dsv2_session *session)
{
    dsv2_session *fork, *restored;
    size_t reused;
    snapshot.size = snapshot.read = 0;
    MUST(dsv2_session_save_to(session, write_snapshot, NULL, NULL) == DSV2_OK);
    MUST(dsv2_session_fork(session, r->n, &fork) == DSV2_OK);
    MUST(dsv2_session_open(r->model, &r->options, &restored) == DSV2_OK);
    MUST(dsv2_session_restore_from(restored, read_snapshot, NULL, NULL, &reused) == DSV2_OK && reused == r->n);
    same_logits(r, session, restored);
    same_logits(r, session, fork);
    dsv2_step_item items[] = {
        {.struct_size = sizeof *items, .session = session, .tokens = r->tokens, .n_tokens = 2},
        {.struct_size = sizeof *items, .session = restored, .tokens = r->tokens, .n_tokens = 2},
    };
    dsv2_status status = dsv2_step(r->model, items, 2);
    MUST(dsv2_session_feed(fork, r->tokens, 2) == status);
    if (status == DSV2_OK) {
        same_logits(r, session, restored);
        same_logits(r, session, fork);
        MUST(dsv2_session_truncate(session, r->n) == DSV2_OK && dsv2_session_feed(session, r->tokens, 2) == DSV2_OK);
        same_logits(r, session, fork);
    }
    dsv2_session_close(fork);
    dsv2_session_close(restored);
}

static void speak(const dsv2_model *model)
{
    static const char text[] = "The theory: 12 <|a|> \xff\xe4\xb8\xad word\n";
    const dsv2_tokenizer *tokenizer = dsv2_model_tokenizer(model);
    int32_t ids[2 * sizeof text];
    char back[sizeof text];
    size_t n, size;
    if (tokenizer == NULL)
        return;
    dsv2_status status = dsv2_tokenizer_encode(tokenizer, text, sizeof text - 1, 0, ids, 2 * sizeof text, &n);
    MUST(status == DSV2_OK || status == DSV2_ERROR_UNSUPPORTED);
    if (status == DSV2_OK)
        MUST(dsv2_tokenizer_decode(tokenizer, ids, n, DSV2_DECODE_SPECIAL, back, sizeof back, &size) == DSV2_OK &&
             size == sizeof text - 1 && memcmp(back, text, size) == 0);
}

/* Feeds what the input asks for. False: the library said why it cannot, and nothing changed. */
static bool feed(run *r, dsv2_session *session, size_t chunk, unsigned cancel)
{
    float *rows = malloc(chunk * r->info.vocab_size * sizeof *rows);
    size_t length;
    countdown c = {cancel, 0};
    MUST(rows != NULL);
    MUST(dsv2_session_set_progress(session, count_down, &c) == DSV2_OK);
    dsv2_step_item whole = {.struct_size = sizeof whole, .session = session, .tokens = r->tokens, .n_tokens = r->n};
    if (cancel > 0 && dsv2_step(r->model, &whole, 1) == DSV2_OK) /* fewer reports than that */
        MUST(dsv2_session_truncate(session, 0) == DSV2_OK && dsv2_session_routing_reset(session) == DSV2_OK);
    MUST(dsv2_session_set_progress(session, NULL, NULL) == DSV2_OK);
    for (size_t at = 0; at < r->n; at += chunk) {
        size_t n = r->n - at < chunk ? r->n - at : chunk;
        dsv2_step_item item = {.struct_size = sizeof item, .session = session, .tokens = r->tokens + at, .n_tokens = n,
                               .logits = rows};
        dsv2_status status = dsv2_step(r->model, &item, 1);
        MUST(item.status == status && dsv2_session_length(session, &length) == DSV2_OK);
        MUST(length == (status == DSV2_OK ? at + n : at));
        if (status != DSV2_OK) {
            MUST(status != DSV2_ERROR_ARGUMENT && status != DSV2_ERROR_BUSY && status != DSV2_ERROR_FULL);
            free(rows);
            return false;
        }
        MUST(memcmp(rows + (n - 1) * r->info.vocab_size, logits_of(session), r->info.vocab_size * sizeof *rows) == 0);
    }
    free(rows);
    return true;
}

/* What opens can be packed, and the pack gives the same logits. */
static void pack(const run *r, const char *path, dsv2_weight_type type, dsv2_session *session)
{
    char packed[128];
    const dsv2_pack_options how = {.struct_size = sizeof how, .weight_type = type, .n_threads = 1};
    const dsv2_model_options options = {.struct_size = sizeof options, .n_threads = 1, .kernels = "c"};
    run other = *r;
    dsv2_session *again;
    if (strcmp(r->info.container, "pack") == 0)
        return;
    snprintf(packed, sizeof packed, "%s/packed", temporary_folder());
    MUST(dsv2_model_pack(path, packed, &how) == DSV2_OK && dsv2_model_verify(packed, NULL, NULL) == DSV2_OK);
    MUST(dsv2_model_open(packed, &options, &other.model) == DSV2_OK);
    MUST(dsv2_session_open(other.model, &r->options, &again) == DSV2_OK);
    bool rounded = r->info.weight_type == DSV2_WEIGHTS_F8_E4M3 || r->info.weight_type == DSV2_WEIGHTS_MIXED;
    if (feed(&other, again, r->n, 0) && strcmp(r->info.kernels, "c") == 0 && !rounded) /* a pack holds no FP8 */
        same_logits(r, session, again);
    dsv2_session_close(again);
    dsv2_model_close(other.model);
}

static void use(run *r, const char *path, const uint8_t how[RUN_BYTES], dsv2_weight_type type)
{
    dsv2_session *session;
    dsv2_memory_info memory = {.struct_size = sizeof memory};
    r->options = (dsv2_session_options){.struct_size = sizeof r->options, .cache_type = (dsv2_cache_type)(how[2] % 5),
                                        .attention = (dsv2_attention)(how[2] / 8 % 3),
                                        .max_length = how[4] & 1 ? 0 : MAX_TOKENS + 6};
    if (r->info.max_position_embeddings < MAX_TOKENS + 6)
        return;
    r->n = how[3] < 240 ? 2 + how[3] % 10 : 60 + how[3] % 16; /* seldom more than a page */
    for (size_t i = 0; i < r->n; i++)
        r->tokens[i] = (int32_t)((how[5] + 37 * i + i * i) % r->info.vocab_size);
    r->tokens[1] = 0;
    MUST(dsv2_session_open(r->model, &r->options, &session) == DSV2_OK);
    if (feed(r, session, how[4] & 2 ? r->n : (r->n + 2 + how[6] % 4) / 3, how[7] % 8)) {
        watch(r, session);
        draw(r, session);
        if (how[4] & 4 && how[4] & 2)
            pack(r, path, type, session);
        go_on(r, session);
        MUST(dsv2_model_get_memory(r->model, &memory) == DSV2_OK && memory.pages_in_use > 0);
    }
    speak(r->model);
    dsv2_session_close(session);
}

void run_model(const char *path, const uint8_t how[RUN_BYTES])
{
    static const char *const kernels[] = {"c", NULL, "avx2", "c"};
    run r = {.info = {.struct_size = sizeof r.info}};
    countdown c = {how[4] & 8 ? how[7] : 0, 0};
    const dsv2_model_options options = {
        .struct_size = sizeof options,
        .n_threads = how[0] / 8 == 0 ? 2 : 1, /* seldom 2: threads wait long for each other on a busy machine */
        .weight_type = (dsv2_weight_type)(how[1] % 10),
        .kernels = kernels[how[0] % 4], .progress = count_down, .progress_user = &c, .log = hear};
    dsv2_status status = dsv2_model_open(path, &options, &r.model);
    MUST(status == DSV2_OK || status == DSV2_ERROR_MEMORY || status == DSV2_ERROR_IO || status == DSV2_ERROR_FORMAT ||
         status == DSV2_ERROR_UNSUPPORTED || (status == DSV2_ERROR_CANCELLED && c.left == 0));
    if (status != DSV2_OK) {
        MUST(dsv2_last_error()[0] != '\0');
        return;
    }
    MUST(dsv2_model_get_info(r.model, &r.info) == DSV2_OK && r.info.vocab_size > 0 && r.info.num_hidden_layers > 0);
    if (r.info.vocab_size <= 4096)
        use(&r, path, how, options.weight_type);
    if (how[4] & 16)
        MUST(dsv2_model_verify(path, NULL, NULL) != DSV2_ERROR_ARGUMENT);
    dsv2_model_close(r.model);
}

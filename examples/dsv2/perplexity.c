/* dsv2 perplexity: how well a model predicts a text. */
#include "common.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct measure {
    double nats;   /* -ln p of all tokens that were predicted */
    size_t tokens; /* how many tokens were predicted */
    size_t bytes;  /* bytes of text that the tokens stand for */
    size_t windows;
} measure;

/* -ln softmax(logits)[token], in double. */
static double surprise(const float *logits, size_t width, int32_t token)
{
    float max = logits[0];
    for (size_t i = 1; i < width; i++)
        max = logits[i] > max ? logits[i] : max;
    double sum = 0;
    for (size_t i = 0; i < width; i++)
        sum += exp((double)logits[i] - (double)max);
    return (double)max + log(sum) - (double)logits[token];
}

/* Predicts tokens[1] to tokens[n - 1], each from the tokens before it. */
static int predict(dsv2_model *model, dsv2_session *session, const int32_t *tokens, size_t n, float *logits,
                   size_t chunk, size_t width, measure *m)
{
    for (size_t done = 0; done + 1 < n;) {
        size_t count = n - 1 - done < chunk ? n - 1 - done : chunk;
        dsv2_step_item item = {sizeof item, .session = session, .tokens = tokens + done, .n_tokens = count,
                               .logits = logits};
        if (dsv2_step(model, &item, 1) != DSV2_OK)
            return fail_library();
        for (size_t i = 0; i < count; i++)
            m->nats += surprise(logits + i * width, width, tokens[done + i + 1]);
        done += count;
    }
    return EXIT_OK;
}

static int measure_bytes(const dsv2_tokenizer *tokenizer, const int32_t *tokens, size_t n, measure *m)
{
    for (size_t i = 0; i < n; i++) {
        const char *text;
        size_t size;
        if (dsv2_token_text(tokenizer, tokens[i], &text, &size) != DSV2_OK)
            return fail_library();
        m->bytes += size;
    }
    m->tokens += n;
    return EXIT_OK;
}

/* Measures window by window. `tokens` has room for one token before its first. BOS goes there: over the last token of
 * the window before, which is not needed any more. */
static int measure_text(dsv2_model *model, const dsv2_tokenizer *tokenizer, dsv2_cache_type cache_type, int32_t *tokens,
                        size_t n, size_t context, int32_t bos, measure *m)
{
    enum { CHUNK = 128 };
    size_t width = model_info(model).vocab_size;
    float *logits = calloc(CHUNK, width * sizeof *logits);
    dsv2_session *session = open_session(model, cache_type, DSV2_ATTENTION_AUTO, false);
    int status = session == NULL ? EXIT_FAILED : logits == NULL ? fail("no memory for logits") : EXIT_OK;
    progress_bar bar;
    progress_start(&bar, "Measuring");
    for (size_t begin = 0; begin < n && status == EXIT_OK; begin += context) {
        size_t count = n - begin < context ? n - begin : context;
        int32_t *window = tokens + begin;
        size_t given = 1; /* tokens at the window's start that nothing predicts */
        if (bos >= 0) {
            window[-1] = bos;
            given = 0;
        }
        if (dsv2_session_truncate(session, 0) != DSV2_OK)
            status = fail_library();
        if (status == EXIT_OK)
            status = measure_bytes(tokenizer, window + given, count - given, m);
        if (status == EXIT_OK)
            status = predict(model, session, window - (given == 0), count + (given == 0), logits, CHUNK, width, m);
        m->windows++;
        progress_update(&bar, begin + count, n);
    }
    progress_end(&bar);
    dsv2_session_close(session);
    free(logits);
    return status;
}

static void print_measure(const char *path, const char *text_path, size_t context, const measure *m, bool json)
{
    double nats = m->nats / (double)m->tokens;
    double bits = m->nats / log(2) / (double)m->bytes;
    if (!json) {
        printf("perplexity per token  %.4f\nnats per token        %.6f\nbits per byte         %.6f\n", exp(nats), nats,
               bits);
        printf("tokens predicted      %zu\nbytes of text         %zu\n", m->tokens, m->bytes);
        printf("windows               %zu of %zu tokens\n", m->windows, context);
        return;
    }
    printf("{\"model\": ");
    print_json_string(path);
    printf(", \"text\": ");
    print_json_string(text_path);
    printf(
        ", \"perplexity\": %.9g, \"nats_per_token\": %.9g, \"bits_per_byte\": %.9g, \"tokens\": %zu, \"bytes\": %zu, "
        "\"windows\": %zu, \"context\": %zu}\n",
        exp(nats), nats, bits, m->tokens, m->bytes, m->windows, context);
}

static int measure_file(dsv2_model *model, const char *path, const char *text_path, dsv2_cache_type cache_type,
                        uint64_t asked, bool json)
{
    enum { DEFAULT_CONTEXT = 512 };
    const dsv2_tokenizer *tokenizer = need_tokenizer(model, path);
    if (tokenizer == NULL)
        return EXIT_FAILED;
    dsv2_model_info info = model_info(model);
    size_t room = info.max_position_embeddings; /* BOS takes a place, but the last token is predicted, not fed */
    size_t context = asked > 0 ? asked : DEFAULT_CONTEXT;
    context = context < room ? context : room;
    if (context < 1 || (context < 2 && info.bos_token_id < 0))
        return fail_usage("--context: %zu tokens leave none to predict", context);
    size_t size, n;
    char *text = read_all(text_path, &size);
    if (text == NULL)
        return EXIT_FAILED;
    int status = EXIT_FAILED;
    measure m = {0};
    int32_t *encoded = encode_text(tokenizer, text, size, 0, &n);
    int32_t *tokens = encoded != NULL ? malloc((n + 1) * sizeof *tokens) : NULL;
    if (tokens != NULL) {
        memcpy(tokens + 1, encoded, n * sizeof *tokens);
        status = measure_text(model, tokenizer, cache_type, tokens + 1, n, context, info.bos_token_id, &m);
    } else if (encoded != NULL) {
        fail("no memory for %zu tokens", n);
    }
    free(tokens);
    free(encoded);
    free(text);
    if (status != EXIT_OK)
        return status;
    if (m.tokens == 0)
        return fail("%s: has no token to predict", text_path);
    print_measure(path, text_path, context, &m, json);
    return finish_output();
}

static int run(int argc, char **argv)
{
    model_settings settings = {0};
    uint64_t context = 0;
    bool json = false;
    const char *operands[2], *kv = NULL;
    dsv2_cache_type cache_type;
    const option_spec options[] = {
        {"context", "N", OPTION_COUNT, &context, 1, UINT32_MAX,
         "tokens of text in a window; default 512, or as many as fit"},
        {"json", NULL, OPTION_FLAG, &json, 0, 0, "print a JSON object"},
        CACHE_OPTION(kv),
        MODEL_OPTIONS(settings),
    };
    int status = parse_options(&command_perplexity, argc, argv, options, sizeof options / sizeof *options, operands, 2);
    if (status == GO_ON)
        status = find_cache_type(kv, &cache_type);
    if (status != GO_ON)
        return status;
    dsv2_model *model = open_model(operands[0], &settings);
    if (model == NULL)
        return EXIT_FAILED;
    status = measure_file(model, operands[0], operands[1], cache_type, context, json);
    dsv2_model_close(model);
    return status;
}

const command command_perplexity = {
    "perplexity",
    "MODEL TEXTFILE [OPTION...]",
    "Measures how well a model predicts a text: perplexity per token and bits per byte.",
    "The text is encoded once, as plain text, and cut into windows of N tokens that do not overlap; the last\n"
    "may be shorter. Each window stands alone after the beginning-of-sequence token, and every token in it is\n"
    "predicted from those before it. (A model that has no such token is not asked for a window's first token.)\n"
    "The model's context must hold N tokens; otherwise N is lowered.",
    run,
};

/* dsv2 generate: the continuation of a text. */
#include "common.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Draws and shows tokens until the model ends the text, max_tokens are out or the context is full. */
static int continue_text(dsv2_session *session, const dsv2_tokenizer *tokenizer, const dsv2_model_info *info, uint64_t max_tokens)
{
    text_stream stream = {.tokenizer = tokenizer};
    int status = EXIT_OK;
    for (uint64_t i = 0; i < max_tokens && status == EXIT_OK; i++) {
        int32_t token;
        size_t length;
        if (dsv2_session_sample(session, &token) != DSV2_OK) {
            status = fail_library();
            break;
        }
        if (token == info->eos_token_id)
            break;
        status = stream_token(&stream, token);
        if (status != EXIT_OK || i + 1 == max_tokens)
            break;
        if (dsv2_session_length(session, &length) != DSV2_OK) {
            status = fail_library();
        } else if (length == info->max_position_embeddings) {
            break;
        } else if (dsv2_session_feed(session, &token, 1) != DSV2_OK) {
            status = fail_library();
        }
    }
    stream_end(&stream);
    if (isatty(STDOUT_FILENO))
        putchar('\n');
    int written = finish_output();
    return status != EXIT_OK ? status : written;
}

static int generate(const char *path, const model_settings *settings, const sampling_settings *sampling, const char *prompt,
                    uint64_t max_tokens)
{
    int status = EXIT_FAILED;
    int32_t *tokens = NULL;
    dsv2_session *session = NULL;
    dsv2_model *model = open_model(path, settings);
    if (model == NULL)
        return EXIT_FAILED;
    dsv2_model_info info = model_info(model);
    const dsv2_tokenizer *tokenizer = need_tokenizer(model, path);
    size_t n;
    if (tokenizer == NULL || (session = open_session(model, DSV2_CACHE_DEFAULT, DSV2_ATTENTION_AUTO)) == NULL ||
        (tokens = encode_text(tokenizer, prompt, strlen(prompt), DSV2_ENCODE_BOS, &n)) == NULL)
        goto done;
    status = set_sampling(session, sampling);
    if (status != EXIT_OK)
        goto done;
    if (n == 0)
        status = fail_usage("the prompt is empty, and this model has no token to begin a text with");
    else if (dsv2_session_feed(session, tokens, n) != DSV2_OK)
        status = fail_library();
    else
        status = continue_text(session, tokenizer, &info, max_tokens);
done:
    free(tokens);
    dsv2_session_close(session);
    dsv2_model_close(model);
    return status;
}

static int run(int argc, char **argv)
{
    model_settings settings = {0};
    sampling_settings sampling = default_sampling;
    const char *path, *prompt = NULL;
    uint64_t max_tokens = 256;
    const option_spec options[] = {
        {"prompt", "TEXT", OPTION_TEXT, &prompt, 0, 0, "the text to continue; needed"},
        {"max-tokens", "N", OPTION_COUNT, &max_tokens, 0, 0, "stop after N tokens; default 256"},
        SAMPLING_OPTIONS(sampling),
        MODEL_OPTIONS(settings),
    };
    int status = parse_options(&command_generate, argc, argv, options, sizeof options / sizeof *options, &path, 1);
    if (status != GO_ON)
        return status;
    if (prompt == NULL)
        return fail_usage("--prompt TEXT is missing");
    return generate(path, &settings, &sampling, prompt, max_tokens);
}

const command command_generate = {
    "generate",
    "MODEL --prompt TEXT [OPTION...]",
    "Continues a text.",
    "The continuation, and nothing else, goes to standard output as it is made. It ends where the model ends\n"
    "it, after --max-tokens, or when the model's context is full.",
    run,
};

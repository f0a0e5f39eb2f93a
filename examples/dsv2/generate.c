/* dsv2 generate: the continuation of a text. */
#include "common.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Draws and shows tokens until the model ends the text, max_tokens are out or the context is full. feed_last: all that
 * was shown is in the session afterwards. Otherwise the last token is not, which saves a pass. */
static int continue_text(dsv2_session *session, const dsv2_model *model, const dsv2_model_info *info,
                         uint64_t max_tokens, bool feed_last)
{
    text_stream stream = {.tokenizer = dsv2_model_tokenizer(model)};
    int status = EXIT_OK;
    for (uint64_t i = 0; i < max_tokens && status == EXIT_OK; i++) {
        int32_t token;
        size_t length;
        if (dsv2_session_sample(session, &token) != DSV2_OK || dsv2_session_length(session, &length) != DSV2_OK) {
            status = fail_library();
            break;
        }
        if (dsv2_model_is_end(model, token) || (feed_last && length == info->max_position_embeddings))
            break;
        status = stream_token(&stream, token);
        if (status != EXIT_OK || length == info->max_position_embeddings || (i + 1 == max_tokens && !feed_last))
            break;
        if (dsv2_session_feed(session, &token, 1) != DSV2_OK)
            status = fail_library();
    }
    stream_end(&stream);
    if (isatty(STDOUT_FILENO))
        putchar('\n');
    int written = finish_output();
    return status != EXIT_OK ? status : written;
}

/* Feeds the prompt, after what a restored session holds. With an empty prompt a restored session goes on where its text
 * stopped. */
static int feed_prompt(dsv2_session *session, const dsv2_tokenizer *tokenizer, const char *prompt)
{
    size_t length, n;
    if (dsv2_session_length(session, &length) != DSV2_OK)
        return fail_library();
    int32_t *tokens = encode_text(tokenizer, prompt, strlen(prompt), length == 0 ? DSV2_ENCODE_BOS : 0, &n);
    if (tokens == NULL)
        return EXIT_FAILED;
    int status = EXIT_OK;
    if (n == 0 && length == 0)
        status = fail_usage("the prompt is empty, and this model has no token to begin a text with");
    else if (n > 0 && dsv2_session_feed(session, tokens, n) != DSV2_OK)
        status = fail_library();
    free(tokens);
    return status;
}

static int generate(dsv2_model *model, const char *path, const storage_settings *storage,
                    const sampling_settings *sampling, const char *prompt, uint64_t max_tokens)
{
    dsv2_model_info info = model_info(model);
    const dsv2_tokenizer *tokenizer = need_tokenizer(model, path);
    if (tokenizer == NULL)
        return EXIT_FAILED;
    dsv2_session *session;
    int status = open_stored_session(model, storage, sampling, &session);
    if (status != EXIT_OK)
        return status;
    status = feed_prompt(session, tokenizer, prompt);
    if (status == EXIT_OK)
        status = continue_text(session, model, &info, max_tokens, storage->save != NULL);
    if (status == EXIT_OK && storage->save != NULL)
        status = save_session(session, storage->save);
    dsv2_session_close(session);
    return status;
}

static int run(int argc, char **argv)
{
    model_settings settings = {0};
    sampling_settings sampling = default_sampling;
    storage_settings storage = {0};
    const char *path, *prompt = NULL;
    uint64_t max_tokens = 256;
    const option_spec options[] = {
        {"prompt", "TEXT", OPTION_TEXT, &prompt, 0, 0, "the text to continue; needed, unless --restore gives one"},
        {"max-tokens", "N", OPTION_COUNT, &max_tokens, 0, 0, "stop after N tokens; default 256"},
        SAMPLING_OPTIONS(sampling),
        STORAGE_OPTIONS(storage),
        MODEL_OPTIONS(settings),
    };
    int status = parse_options(&command_generate, argc, argv, options, sizeof options / sizeof *options, &path, 1);
    if (status != GO_ON)
        return status;
    if (prompt == NULL && storage.restore == NULL)
        return fail_usage("--prompt TEXT is missing");
    dsv2_model *model = open_model(path, &settings);
    if (model == NULL)
        return EXIT_FAILED;
    status = generate(model, path, &storage, &sampling, prompt != NULL ? prompt : "", max_tokens);
    dsv2_model_close(model);
    return status;
}

const command command_generate = {
    "generate",
    "MODEL --prompt TEXT [OPTION...]",
    "Continues a text.",
    "The continuation, and nothing else, goes to standard output as it is made. It ends where the model ends\n"
    "it, after --max-tokens, or when the model's context is full. After --restore the prompt is added to the\n"
    "text; without one the text goes on where it stopped.",
    run,
};

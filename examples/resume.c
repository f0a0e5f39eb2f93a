/* resume MODEL FILE MESSAGE: one turn of a conversation that lives in FILE. Each run restores the conversation if FILE
 * exists, says the message, prints the reply and saves. Nothing of the past is computed again. */
#include <dsv2/dsv2.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { MAX_PROMPT = 4096, MAX_REPLY = 100 };

static dsv2_status print_token(const dsv2_tokenizer *tokenizer, int32_t token)
{
    char text[256];
    size_t size;
    dsv2_status status = dsv2_tokenizer_decode(tokenizer, &token, 1, 0, text, sizeof text, &size);
    if (status == DSV2_OK)
        fwrite(text, 1, size, stdout);
    return status;
}

/* Feeds the conversation's next message. The session has the past: of earlier messages only the roles matter. */
static dsv2_status say(dsv2_session *session, const dsv2_tokenizer *tokenizer, size_t length, const char *message)
{
    int32_t tokens[MAX_PROMPT];
    size_t n, past = length > 0 ? 2 : 0;
    const dsv2_message messages[3] = {{"user", "", 0}, {"assistant", "", 0}, {"user", message, strlen(message)}};
    dsv2_status status = dsv2_chat_encode(tokenizer, messages + 2 - past, past + 1, past, tokens, MAX_PROMPT, &n);
    return status == DSV2_OK ? dsv2_session_feed(session, tokens, n) : status;
}

/* All that was said is fed, the end mark too: the next run goes on after it. */
static dsv2_status reply(const dsv2_model *model, dsv2_session *session, int32_t end)
{
    const dsv2_tokenizer *tokenizer = dsv2_model_tokenizer(model);
    dsv2_status status = DSV2_OK;
    int32_t token = -1;
    for (int i = 0; i < MAX_REPLY && !dsv2_model_is_end(model, token) && status == DSV2_OK; i++) {
        status = dsv2_session_sample(session, &token);
        if (status == DSV2_OK)
            status = print_token(tokenizer, token);
        if (status == DSV2_OK)
            status = dsv2_session_feed(session, &token, 1);
    }
    if (status == DSV2_OK && !dsv2_model_is_end(model, token) && end >= 0)
        status = dsv2_session_feed(session, &end, 1);
    putchar('\n');
    return status;
}

static dsv2_status turn(dsv2_model *model, dsv2_session *session, const char *file, const char *message)
{
    dsv2_model_info info = {.struct_size = sizeof info};
    const dsv2_tokenizer *tokenizer = dsv2_model_tokenizer(model);
    const dsv2_save_options append = {.struct_size = sizeof append, .append = 1};
    size_t length = 0;
    dsv2_status status = dsv2_model_get_info(model, &info);
    if (status == DSV2_OK && access(file, F_OK) == 0)
        status = dsv2_session_restore(session, file, NULL, &length);
    if (status == DSV2_OK)
        status = say(session, tokenizer, length, message);
    if (status == DSV2_OK)
        status = reply(model, session, info.eos_token_id);
    return status == DSV2_OK ? dsv2_session_save(session, file, &append) : status;
}

int main(int argc, char **argv)
{
    dsv2_model *model = NULL;
    dsv2_session *session = NULL;
    if (argc != 4) {
        fprintf(stderr, "Usage: resume MODEL FILE MESSAGE\n");
        return 2;
    }
    dsv2_status status = dsv2_model_open(argv[1], NULL, &model);
    if (status == DSV2_OK)
        status = dsv2_session_open(model, NULL, &session);
    if (status == DSV2_OK)
        status = turn(model, session, argv[2], argv[3]);
    if (status != DSV2_OK)
        fprintf(stderr, "%s\n", dsv2_last_error());
    dsv2_session_close(session);
    dsv2_model_close(model);
    return status != DSV2_OK;
}

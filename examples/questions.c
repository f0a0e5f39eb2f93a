/* questions MODEL DOCUMENT QUESTION...: many questions about one long text. The text is read once. Every question gets
 * a fork of the session, which shares the text's cache and takes memory for its own tokens alone. */
#include <dsv2/dsv2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_ANSWER = 60 };

static dsv2_status feed_text(dsv2_session *session, const dsv2_tokenizer *tokenizer, const char *text, size_t size,
                             uint32_t flags)
{
    size_t n;
    int32_t *tokens = malloc((size + 1) * sizeof *tokens); /* a token is a byte at least; BOS is one more */
    if (tokens == NULL)
        return DSV2_ERROR_MEMORY;
    dsv2_status status = dsv2_tokenizer_encode(tokenizer, text, size, flags, tokens, size + 1, &n);
    if (status == DSV2_OK)
        status = dsv2_session_feed(session, tokens, n);
    free(tokens);
    return status;
}

/* `document` itself stays as it is, for the next question. */
static dsv2_status ask(dsv2_session *document, size_t length, const dsv2_tokenizer *tokenizer, const char *question)
{
    dsv2_session *session;
    dsv2_status status = dsv2_session_fork(document, length, &session);
    if (status != DSV2_OK)
        return status;
    printf("%s", question);
    status = feed_text(session, tokenizer, question, strlen(question), 0);
    for (int i = 0; i < MAX_ANSWER && status == DSV2_OK; i++) {
        int32_t token;
        char text[256];
        size_t size;
        status = dsv2_session_sample(session, &token);
        if (status == DSV2_OK)
            status = dsv2_tokenizer_decode(tokenizer, &token, 1, 0, text, sizeof text, &size);
        if (status == DSV2_OK) {
            fwrite(text, 1, size, stdout);
            status = dsv2_session_feed(session, &token, 1);
        }
    }
    printf("\n\n");
    dsv2_session_close(session);
    return status;
}

static char *read_file(const char *path, size_t *size)
{
    enum { MOST = 1 << 20 };
    char *text = malloc(MOST);
    FILE *file = text != NULL ? fopen(path, "rb") : NULL;
    if (file != NULL) {
        *size = fread(text, 1, MOST, file);
        fclose(file);
        return text;
    }
    free(text);
    return NULL;
}

int main(int argc, char **argv)
{
    dsv2_model *model = NULL;
    dsv2_session *document = NULL;
    size_t size, length;
    char *text = argc > 3 ? read_file(argv[2], &size) : NULL;
    if (text == NULL) {
        fprintf(stderr, "Usage: questions MODEL DOCUMENT QUESTION...\n");
        return 2;
    }
    dsv2_status status = dsv2_model_open(argv[1], NULL, &model);
    const dsv2_tokenizer *tokenizer = dsv2_model_tokenizer(model);
    if (status == DSV2_OK)
        status = dsv2_session_open(model, NULL, &document);
    if (status == DSV2_OK)
        status = feed_text(document, tokenizer, text, size, DSV2_ENCODE_BOS);
    if (status == DSV2_OK)
        status = dsv2_session_length(document, &length);
    for (int i = 3; i < argc && status == DSV2_OK; i++)
        status = ask(document, length, tokenizer, argv[i]);
    if (status != DSV2_OK)
        fprintf(stderr, "%s\n", dsv2_last_error());
    free(text);
    dsv2_session_close(document);
    dsv2_model_close(model);
    return status != DSV2_OK;
}

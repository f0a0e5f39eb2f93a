/* hello MODEL TEXT: the smallest host. Opens a model, feeds it a text and prints what comes next. */
#include <dsv2/dsv2.h>
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
    dsv2_model *model = NULL;
    dsv2_session *session = NULL;
    int32_t tokens[256], token;
    size_t n, size;
    char text[256];
    if (argc != 3)
        return 2;
    dsv2_status status = dsv2_model_open(argv[1], NULL, &model);
    if (status == DSV2_OK)
        status = dsv2_session_open(model, NULL, &session);
    const dsv2_tokenizer *tokenizer = dsv2_model_tokenizer(model);
    if (status == DSV2_OK)
        status = dsv2_tokenizer_encode(tokenizer, argv[2], strlen(argv[2]), DSV2_ENCODE_BOS, tokens, 256, &n);
    if (status == DSV2_OK)
        status = dsv2_session_feed(session, tokens, n);
    for (int i = 0; i < 50 && status == DSV2_OK; i++) {
        if ((status = dsv2_session_sample(session, &token)) == DSV2_OK &&
            (status = dsv2_tokenizer_decode(tokenizer, &token, 1, 0, text, sizeof text, &size)) == DSV2_OK)
            status = fwrite(text, 1, size, stdout) == size ? dsv2_session_feed(session, &token, 1) : DSV2_ERROR_IO;
    }
    puts(status == DSV2_OK ? "" : dsv2_last_error());
    dsv2_session_close(session);
    dsv2_model_close(model);
    return status != DSV2_OK;
}

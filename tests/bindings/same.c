/* The part of C in the test that all languages give the same tokens.
 * same MODEL fresh SNAPSHOT    continues a text, prints the tokens, saves, and prints the next ones
 * same MODEL restore SNAPSHOT  restores and prints the next ones */
#include <dsv2/dsv2.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static int generate(dsv2_session *session, int n)
{
    for (int i = 0; i < n; i++) {
        int32_t token;
        if (dsv2_session_sample(session, &token) != DSV2_OK || dsv2_session_feed(session, &token, 1) != DSV2_OK)
            return -1;
        printf("%d\n", (int)token);
    }
    return 0;
}

static int fresh(dsv2_model *model, dsv2_session *session, const char *snapshot)
{
    dsv2_model_info info = {.struct_size = sizeof info};
    if (dsv2_model_get_info(model, &info) != DSV2_OK)
        return -1;
    dsv2_logit_bias no_end = {info.eos_token_id, -INFINITY};
    dsv2_sampling sampling;
    dsv2_sampling_defaults(&sampling);
    sampling.logit_bias = &no_end;
    sampling.n_logit_bias = 1;
    sampling.repetition_penalty = 1.1f;
    sampling.frequency_penalty = 0.1f;
    sampling.temperature = 0.8f;
    sampling.top_k = 40;
    sampling.top_p = 0.95f;
    sampling.min_p = 0.01f;
    sampling.seed = 42;
    const char *prompt = "Once upon a time";
    int32_t tokens[64];
    size_t n;
    if (dsv2_session_set_sampling(session, &sampling) != DSV2_OK ||
        dsv2_tokenizer_encode(dsv2_model_tokenizer(model), prompt, strlen(prompt), DSV2_ENCODE_BOS, tokens, 64, &n) !=
            DSV2_OK ||
        dsv2_session_feed(session, tokens, n) != DSV2_OK || generate(session, 48) != 0)
        return -1;
    return dsv2_session_save(session, snapshot, NULL) == DSV2_OK ? 0 : -1;
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    dsv2_model *model = NULL;
    dsv2_session *session = NULL;
    int result = -1;
    if (dsv2_model_open(argv[1], NULL, &model) == DSV2_OK && dsv2_session_open(model, NULL, &session) == DSV2_OK) {
        if (strcmp(argv[2], "fresh") == 0)
            result = fresh(model, session, argv[3]);
        else
            result = dsv2_session_restore(session, argv[3], NULL, NULL) == DSV2_OK ? 0 : -1;
        if (result == 0)
            result = generate(session, 16);
    }
    if (result != 0)
        fprintf(stderr, "%s\n", dsv2_last_error());
    dsv2_session_close(session);
    dsv2_model_close(model);
    return result != 0;
}

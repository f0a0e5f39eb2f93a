/* many_sessions MODEL TEXT...: several texts at once. dsv2_step runs one pass over many sessions, which reads the
 * weights once for all of them.
 *     ./many_sessions MODEL "One day" "The king" "In winter" */
#include <dsv2/dsv2.h>

#include <stdio.h>

enum { MAX_TEXTS = 16, LENGTH = 40, TEXT_SIZE = 4096 };

typedef struct story {
    dsv2_session *session;
    int32_t next;
    int ended;
    char text[TEXT_SIZE];
    size_t size;
} story;

static int add_token(const dsv2_tokenizer *tokenizer, story *s)
{
    size_t size;
    if (dsv2_tokenizer_decode(tokenizer, &s->next, 1, 0, s->text + s->size, TEXT_SIZE - s->size, &size) != DSV2_OK)
        return -1;
    s->size += size;
    return 0;
}

static int begin(dsv2_model *model, const char *prompt, story *s)
{
    int32_t tokens[TEXT_SIZE];
    size_t n;
    s->size = (size_t)snprintf(s->text, TEXT_SIZE, "%s", prompt);
    if (s->size >= TEXT_SIZE || dsv2_session_open(model, NULL, &s->session) != DSV2_OK ||
        dsv2_tokenizer_encode(dsv2_model_tokenizer(model), prompt, s->size, DSV2_ENCODE_BOS, tokens, TEXT_SIZE, &n) !=
            DSV2_OK ||
        dsv2_session_feed(s->session, tokens, n) != DSV2_OK)
        return -1;
    return 0;
}

/* Draws one token for every story that has not ended. */
static int step(dsv2_model *model, story *stories, size_t n)
{
    dsv2_step_item items[MAX_TEXTS];
    size_t n_items = 0;
    for (story *s = stories; s < stories + n; s++) {
        if (s->ended)
            continue;
        if (dsv2_session_sample(s->session, &s->next) != DSV2_OK)
            return -1;
        s->ended = dsv2_model_is_end(model, s->next) != 0;
        if (s->ended)
            continue;
        if (add_token(dsv2_model_tokenizer(model), s) != 0)
            return -1;
        items[n_items++] = (dsv2_step_item){sizeof items[0], .session = s->session, .tokens = &s->next, .n_tokens = 1};
    }
    return n_items == 0 || dsv2_step(model, items, n_items) == DSV2_OK ? 0 : -1;
}

int main(int argc, char **argv)
{
    static story stories[MAX_TEXTS];
    dsv2_model *model = NULL;
    int status = 1;
    size_t n = (size_t)argc - 2;
    if (argc < 3 || n > MAX_TEXTS) {
        fprintf(stderr, "Usage: many_sessions MODEL TEXT... (%d texts at most)\n", MAX_TEXTS);
        return 2;
    }
    if (dsv2_model_open(argv[1], NULL, &model) != DSV2_OK)
        goto done;
    for (size_t i = 0; i < n; i++)
        if (begin(model, argv[2 + i], &stories[i]) != 0)
            goto done;
    for (int t = 0; t < LENGTH; t++)
        if (step(model, stories, n) != 0)
            goto done;
    for (size_t i = 0; i < n; i++)
        printf("%.*s\n\n", (int)stories[i].size, stories[i].text);
    status = 0;
done:
    if (status != 0)
        fprintf(stderr, "%s\n", dsv2_last_error());
    for (size_t i = 0; i < n; i++)
        dsv2_session_close(stories[i].session);
    dsv2_model_close(model);
    return status;
}

/* dsv2 tokenize and dsv2 detokenize: text to token ids and back. They need a tokenizer only, no weights. */
#include "common.h"

#include <stdlib.h>

static dsv2_tokenizer *open_tokenizer(const char *path)
{
    dsv2_tokenizer *tokenizer;
    if (dsv2_tokenizer_open(path, &tokenizer) == DSV2_OK)
        return tokenizer;
    fail_library();
    return NULL;
}

static int run_tokenize(int argc, char **argv)
{
    bool bos = false, special = false;
    const char *path;
    const option_spec options[] = {
        {"bos", NULL, OPTION_FLAG, &bos, 0, 0, "begin with the beginning-of-sequence token"},
        {"special", NULL, OPTION_FLAG, &special, 0, 0, "text that spells a special token becomes that token"},
    };
    int status = parse_options(&command_tokenize, argc, argv, options, sizeof options / sizeof *options, &path, 1);
    if (status != GO_ON)
        return status;
    dsv2_tokenizer *tokenizer = open_tokenizer(path);
    if (tokenizer == NULL)
        return EXIT_FAILED;
    size_t size, n;
    char *text = read_all(NULL, &size);
    int32_t *tokens = NULL;
    if (text != NULL)
        tokens =
            encode_text(tokenizer, text, size, (bos ? DSV2_ENCODE_BOS : 0) | (special ? DSV2_ENCODE_SPECIAL : 0), &n);
    status = EXIT_FAILED;
    if (tokens != NULL) {
        for (size_t i = 0; i < n; i++)
            printf("%s%d", i > 0 ? " " : "", tokens[i]);
        putchar('\n');
        status = finish_output();
    }
    free(tokens);
    free(text);
    dsv2_tokenizer_close(tokenizer);
    return status;
}

const command command_tokenize = {
    "tokenize", "MODEL [--bos] [--special] < TEXT", "Prints the token ids of a text, on one line.",
    "MODEL may also be a tokenizer.json. Any bytes can be tokenized.", run_tokenize,
};

static int decode(const dsv2_tokenizer *tokenizer, const int32_t *ids, size_t n, uint32_t flags)
{
    size_t size;
    if (dsv2_tokenizer_decode(tokenizer, ids, n, flags, NULL, 0, &size) != DSV2_OK)
        return fail_library();
    char *text = malloc(size + 1);
    if (text == NULL)
        return fail("no memory for %zu bytes of text", size);
    int status = EXIT_OK;
    if (dsv2_tokenizer_decode(tokenizer, ids, n, flags, text, size, &size) != DSV2_OK) {
        status = fail_library();
    } else {
        fwrite(text, 1, size, stdout);
        status = finish_output();
    }
    free(text);
    return status;
}

static int run_detokenize(int argc, char **argv)
{
    bool special = false;
    const char *path;
    const option_spec options[] = {
        {"special", NULL, OPTION_FLAG, &special, 0, 0, "spell special tokens out; otherwise they give nothing"},
    };
    int status = parse_options(&command_detokenize, argc, argv, options, sizeof options / sizeof *options, &path, 1);
    if (status != GO_ON)
        return status;
    dsv2_tokenizer *tokenizer = open_tokenizer(path);
    if (tokenizer == NULL)
        return EXIT_FAILED;
    size_t size, n;
    char *text = read_all(NULL, &size);
    int32_t *ids = text != NULL ? parse_ids("standard input", text, size, &n) : NULL;
    status = ids != NULL ? decode(tokenizer, ids, n, special ? DSV2_DECODE_SPECIAL : 0) : EXIT_FAILED;
    free(ids);
    free(text);
    dsv2_tokenizer_close(tokenizer);
    return status;
}

const command command_detokenize = {
    "detokenize", "MODEL [--special] < IDS", "Writes the text of token ids, which are separated by white space.",
    "MODEL may also be a tokenizer.json.", run_detokenize,
};

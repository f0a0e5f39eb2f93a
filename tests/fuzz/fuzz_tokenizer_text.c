/* A text encodes and comes back, and a stream of the text is cut between characters, for tokenizers with DeepSeek's
 * expressions and added tokens. The first byte chooses the tokenizer. */
#include "tokenizer/tokenizer.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool claim)
{
    if (!claim)
        abort();
}

/* Tokens are the letters of all bytes below 0xf5, some merges, and added tokens as DeepSeek has them. */
static dsv2_tokenizer *make(const char *pre)
{
    static const char *const more[] = {"Ġa", "Ġt",  "he", "Ġthe", "in", "12",  "ĊĊ",
                                       "ä¸", "ä¸Ń", "Ã¼", "!!",   "aa", "aaaa"};
    static const char *const merges[][2] = {{"Ġ", "t"}, {"h", "e"}, {"Ġt", "he"}, {"Ġ", "a"},  {"i", "n"},
                                            {"1", "2"}, {"Ċ", "Ċ"}, {"ä", "¸"},   {"ä¸", "Ń"}, {"Ã", "¼"},
                                            {"!", "!"}, {"a", "a"}, {"aa", "aa"}};
    static const char *const added[] = {"<s>", "<｜User｜>", "ab", "abc", "\n\n\n"};
    enum {
        N_MORE = sizeof more / sizeof *more,
        N_MERGES = sizeof merges / sizeof *merges,
        N_ADDED = sizeof added / sizeof *added
    };
    char spelled[256][3];
    ds_text texts[256 + N_MORE + N_ADDED], parts[2 * N_MERGES];
    uint8_t kinds[256 + N_MORE + N_ADDED];
    for (unsigned byte = 0, next = 256; byte < 256; byte++) {
        bool itself = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
        unsigned letter = itself ? byte : next++;
        if (letter < 0x80)
            texts[byte] = (ds_text){memcpy(spelled[byte], (char[]){(char)letter}, 1), 1};
        else
            texts[byte] = (ds_text){
                memcpy(spelled[byte], (char[]){(char)(0xc0 | letter >> 6), (char)(0x80 | (letter & 0x3f))}, 2), 2};
        kinds[byte] = byte >= 0xf5 ? DS_TOKEN_ADDED : DS_TOKEN_LETTERS;
    }
    for (size_t i = 0; i < N_MORE; i++) {
        texts[256 + i] = (ds_text){more[i], strlen(more[i])};
        kinds[256 + i] = DS_TOKEN_LETTERS;
    }
    for (size_t i = 0; i < N_ADDED; i++) {
        texts[256 + N_MORE + i] = (ds_text){added[i], strlen(added[i])};
        kinds[256 + N_MORE + i] = i == 0 ? DS_TOKEN_ADDED | DS_TOKEN_SPECIAL | DS_TOKEN_EARLY : DS_TOKEN_ADDED;
    }
    for (size_t i = 0; i < 2 * N_MERGES; i++)
        parts[i] = (ds_text){merges[i / 2][i % 2], strlen(merges[i / 2][i % 2])};
    ds_vocabulary vocabulary = {.path = "fixed", .n_tokens = sizeof kinds, .texts = texts, .kinds = kinds,
                                .n_merges = N_MERGES, .merges = parts, .pre = {pre, strlen(pre)}, .bos_token_id = -1,
                                .eos_token_id = -1};
    dsv2_tokenizer *t;
    check(ds_tokenizer_from_vocabulary(&vocabulary, &t) == DSV2_OK);
    return t;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const pre[] = {"deepseek-llm", "deepseek-coder", "deepseek-v3", "gpt-2"};
    static dsv2_tokenizer *tokenizers[4]; /* kept from input to input */
    if (size == 0)
        return 0;
    dsv2_tokenizer **t = &tokenizers[data[0] % 4];
    uint32_t flags = data[0] & 4 ? DSV2_ENCODE_SPECIAL : 0;
    if (*t == NULL)
        *t = make(pre[data[0] % 4]);
    const char *text = (const char *)data + 1;
    size_t n = size - 1, back_size, shown = dsv2_utf8_complete(text, n);
    check(shown <= n && n - shown <= 3);
    ds_ids ids = {0};
    check(ds_encode(*t, text, n, flags, &ids) == DSV2_OK);
    check(ids.n <= 2 * n);
    char *back = malloc(n + 1);
    check(ds_decode(*t, ids.ids, ids.n, DSV2_DECODE_SPECIAL, back, n + 1, &back_size) == DSV2_OK);
    check(back_size == n && memcmp(back, text, n) == 0);
    free(back);
    ds_free(ids.ids);
    return 0;
}

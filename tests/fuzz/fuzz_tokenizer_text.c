/* A text encodes and comes back, and a stream of the text is cut between characters, for tokenizers with DeepSeek's
 * expressions and added tokens. The first byte chooses the tokenizer. */
#include "fixed_tokenizer.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool claim)
{
    if (!claim)
        abort();
}

static dsv2_tokenizer *make(const char *pre)
{
    static const char *const added[] = {"<s>", "<｜User｜>", "ab", "abc", "\n\n\n"};
    static const uint8_t kinds[] = {DS_TOKEN_ADDED | DS_TOKEN_SPECIAL | DS_TOKEN_EARLY, DS_TOKEN_ADDED, DS_TOKEN_ADDED,
                                    DS_TOKEN_ADDED, DS_TOKEN_ADDED};
    return fixed_tokenizer(pre, added, kinds, sizeof kinds, "");
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

#include "fixed_tokenizer.h"

#include "../support/must.h"

#include <string.h>

static const char *const more[] = {"Ġa", "Ġt",  "he", "Ġthe", "in", "12",  "ĊĊ",
                                   "ä¸", "ä¸Ń", "Ã¼", "!!",   "aa", "aaaa"};
static const char *const merges[][2] = {{"Ġ", "t"}, {"h", "e"}, {"Ġt", "he"}, {"Ġ", "a"},  {"i", "n"},
                                        {"1", "2"}, {"Ċ", "Ċ"}, {"ä", "¸"},   {"ä¸", "Ń"}, {"Ã", "¼"},
                                        {"!", "!"}, {"a", "a"}, {"aa", "aa"}};
enum { N_MORE = sizeof more / sizeof *more, N_MERGES = sizeof merges / sizeof *merges, MAX_ADDED = 16 };

/* GPT-2's letter for a byte, in UTF-8; `next` is the letter for the next byte that is not its own. */
static ds_text spell(unsigned byte, unsigned *next, char spelled[2])
{
    bool itself = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    unsigned letter = itself ? byte : (*next)++;
    if (letter < 0x80) {
        spelled[0] = (char)letter;
        return (ds_text){spelled, 1};
    }
    spelled[0] = (char)(0xc0 | letter >> 6);
    spelled[1] = (char)(0x80 | (letter & 0x3f));
    return (ds_text){spelled, 2};
}

dsv2_tokenizer *fixed_tokenizer(const char *pre, const char *const *added, const uint8_t *kinds, size_t n_added,
                                const char *chat_template)
{
    char spelled[256][2];
    ds_text texts[256 + N_MORE + MAX_ADDED], parts[2 * N_MERGES];
    uint8_t all_kinds[256 + N_MORE + MAX_ADDED];
    size_t n = 0;
    MUST(n_added <= MAX_ADDED);
    for (unsigned byte = 0, next = 256; byte < 256; byte++, n++) {
        texts[n] = spell(byte, &next, spelled[byte]);
        all_kinds[n] = byte >= 0xf5 ? DS_TOKEN_ADDED : DS_TOKEN_LETTERS;
    }
    for (size_t i = 0; i < N_MORE; i++, n++) {
        texts[n] = (ds_text){more[i], strlen(more[i])};
        all_kinds[n] = DS_TOKEN_LETTERS;
    }
    for (size_t i = 0; i < n_added; i++, n++) {
        texts[n] = (ds_text){added[i], strlen(added[i])};
        all_kinds[n] = kinds[i];
    }
    for (size_t i = 0; i < 2 * N_MERGES; i++)
        parts[i] = (ds_text){merges[i / 2][i % 2], strlen(merges[i / 2][i % 2])};
    const ds_vocabulary vocabulary = {
        .path = "fixed", .n_tokens = n, .texts = texts, .kinds = all_kinds, .n_merges = N_MERGES, .merges = parts,
        .pre = {pre, strlen(pre)}, .chat_template = {chat_template, strlen(chat_template)}, .bos_token_id = -1,
        .eos_token_id = -1};
    dsv2_tokenizer *tokenizer;
    MUST(ds_tokenizer_from_vocabulary(&vocabulary, &tokenizer) == DSV2_OK);
    return tokenizer;
}

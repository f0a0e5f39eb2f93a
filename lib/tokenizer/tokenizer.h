/* tokenizer: byte-level BPE, pre-tokenizers, chat and fill-in-the-middle prompts. The public functions of <dsv2/tokenizer.h> are
 * in api/tokenizer.c; they check arguments and call these. May include: base.
 *
 * The way of a text: added tokens are cut out (encode.c), what is left between them is split by the expressions of the
 * pre-tokenizer (pretokenize.c, translated for PCRE2 by pattern.c), and each piece's bytes are merged (bpe.c). A tokenizer is
 * made from a vocabulary (vocabulary.c), which json.c reads from a tokenizer.json and the formats room from a GGUF. */
#ifndef DS_LIB_TOKENIZER_H
#define DS_LIB_TOKENIZER_H

#include "base/base.h"

#include <dsv2/tokenizer.h>

/* What an id is; 0: the vocabulary leaves it empty. */
enum {
    DS_TOKEN_LETTERS = 1, /* of the BPE model, its bytes spelled in GPT-2's alphabet: "Ġthe" */
    DS_TOKEN_ADDED = 2,   /* matched in the text itself, spelled as it is; beside LETTERS if the model has it too */
    DS_TOKEN_SPECIAL = 4, /* with ADDED: only the host may write it */
    DS_TOKEN_EARLY = 8    /* with ADDED: matched before those without (Hugging Face's "normalized": false) */
};

/* Ids and ranks are small enough for 32 bits, and a vocabulary for memory: the largest published ones have 300,000 tokens. */
enum { DS_MAX_TOKENS = 1 << 20 };

/* A vocabulary as a file gives it. Everything is the maker's; the tokenizer copies what it keeps. */
typedef struct ds_vocabulary {
    const char *path;         /* for messages */
    size_t n_tokens;          /* ids are 0 to n_tokens - 1 */
    const ds_text *texts;   /* [n_tokens] */
    const uint8_t *kinds;     /* [n_tokens], DS_TOKEN_* or-ed */
    size_t n_merges;
    const ds_text *merges;  /* [n_merges][2]: left and right, best first */
    bool ignore_merges;       /* a piece that is a token is that token, whatever the merges say */
    ds_text pre;            /* the pre-tokenizer's name, e.g. "deepseek-llm" (tokenizer.ggml.pre) */
    ds_text chat_template;  /* size 0: none */
    int32_t bos_token_id;     /* -1: go by the well-known names */
    int32_t eos_token_id;
} ds_vocabulary;

dsv2_status ds_tokenizer_from_vocabulary(const ds_vocabulary *vocabulary, dsv2_tokenizer **tokenizer);

/* From the text of a tokenizer.json; `path` is for messages. */
dsv2_status ds_tokenizer_from_json(const char *path, const char *json, size_t size, dsv2_tokenizer **tokenizer);

/* From a tokenizer.json, or a folder that holds one, with the tokenizer_config.json beside it if there is one. */
dsv2_status ds_tokenizer_open(const char *path, dsv2_tokenizer **tokenizer);

void ds_tokenizer_destroy(dsv2_tokenizer *tokenizer);

/* Takes the special tokens and the chat form from the text of a tokenizer_config.json. */
dsv2_status ds_tokenizer_configure(dsv2_tokenizer *tokenizer, const char *path, const char *json, size_t size);

/* Sets the ids that config.json gives (-1: keep what the tokenizer itself says). An id outside the vocabulary is kept out. */
void ds_tokenizer_set_special(dsv2_tokenizer *tokenizer, int32_t bos_token_id, int32_t eos_token_id);

/* Whether an added token of this spelling is taken as special whatever its file says: <|...|> and <｜...｜>. DeepSeek's files
 * leave <｜User｜> and <｜fim▁hole｜> unmarked, and text that spells them must not become them. */
bool ds_looks_special(const char *text, size_t size);

/* The bodies of the public functions of the same names, arguments checked. They append to a growing array. */
typedef struct ds_ids {
    int32_t *ids;
    size_t n, capacity;
} ds_ids;

dsv2_status ds_encode(const dsv2_tokenizer *tokenizer, const char *text, size_t size, uint32_t flags, ds_ids *out);
dsv2_status ds_decode(const dsv2_tokenizer *tokenizer, const int32_t *tokens, size_t n_tokens, uint32_t flags, char *text,
                      size_t capacity, size_t *size);
dsv2_status ds_chat(const dsv2_tokenizer *tokenizer, const dsv2_message *messages, size_t n, size_t first, ds_ids *out);
dsv2_status ds_fim(const dsv2_tokenizer *tokenizer, ds_text prefix, ds_text suffix, ds_ids *out);
int32_t ds_find_token(const dsv2_tokenizer *tokenizer, const char *text, size_t size);
ds_text ds_get_token(const dsv2_tokenizer *tokenizer, int32_t token);
/* A digest of all that decides which ids a text has and which bytes an id stands for: tokens, merges and expressions, but not which
 * token begins or ends a text, nor the form of chats. A pack's is that of what it was made from. */
uint64_t ds_tokenizer_digest(const dsv2_tokenizer *tokenizer);

void ds_describe_tokenizer(const dsv2_tokenizer *tokenizer, dsv2_tokenizer_info *info);

#endif

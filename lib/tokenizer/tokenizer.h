/* tokenizer: byte-level BPE, pre-tokenizers, chat and fill-in-the-middle prompts. The public functions of
 * <dsv2/tokenizer.h> are in api/tokenizer.c: they check arguments and call these. May include: base, template.
 *
 * The way of a text, file by file:
 *   encode.c       cuts out added tokens, and hands on the text between them; also decodes ids
 *   added.c        finds the added tokens in a text
 *   pretokenize.c  splits that text into pieces by the pre-tokenizer's expressions
 *   bpe.c          merges the bytes of a piece into tokens
 *   chat.c         writes prompts for chat and for filling in the middle, and encodes them
 * The way of a tokenizer:
 *   json.c         reads tokenizer.json and the files beside it; the formats room reads GGUFs and packs
 *   vocabulary.c   makes the tokenizer: tokens, merges, added and special tokens
 *   pattern.c      translates the pre-tokenizer's expressions for PCRE2
 *   unicode.c      knows the characters that Unicode gained after PCRE2's tables
 * parts.h is the room's own header: the tokenizer itself, and what these files call of one another. */
#ifndef DS_LIB_TOKENIZER_H
#define DS_LIB_TOKENIZER_H

#include "base/base.h"

#include <dsv2/tokenizer.h>

/* What an id is, or-ed. 0: the vocabulary leaves the id empty. */
enum {
    DS_TOKEN_LETTERS = 1, /* a token of the BPE model, with its bytes spelled in GPT-2's alphabet: "Ġthe" */
    DS_TOKEN_ADDED = 2,   /* matched in the text itself, spelled as it is; beside LETTERS if the model has it too */
    DS_TOKEN_SPECIAL = 4, /* with ADDED: only the host may write it */
    DS_TOKEN_EARLY = 8    /* with ADDED: matched before those without EARLY (Hugging Face's "normalized": false) */
};

/* A bound on vocabularies: ids and ranks fit into 32 bits, tables into memory. The largest published ones have 300,000
 * tokens. */
enum { DS_MAX_TOKENS = 1 << 20 };

/* A vocabulary as a file has it. All memory is the reader's; the tokenizer copies what it keeps. */
typedef struct ds_vocabulary {
    const char *path;      /* for messages */
    size_t n_tokens;       /* ids are 0 to n_tokens - 1 */
    const ds_text *texts;  /* [n_tokens] */
    const uint8_t *kinds;  /* [n_tokens], DS_TOKEN_* or-ed */
    size_t n_merges;
    const ds_text *merges; /* [n_merges][2]: left and right token, best first */
    bool ignore_merges;    /* a piece that is a token is that token, whatever the merges say */
    ds_text pre;           /* the pre-tokenizer's name, e.g. "deepseek-llm" (tokenizer.ggml.pre) */
    ds_text chat_template; /* size 0: none */
    int32_t bos_token_id;  /* -1, here and below: go by the well-known names */
    int32_t eos_token_id;
} ds_vocabulary;

/* A tokenizer with the pre-tokenizer that the vocabulary names. */
dsv2_status ds_tokenizer_from_vocabulary(const ds_vocabulary *vocabulary, dsv2_tokenizer **tokenizer);

/* A tokenizer from the text of a tokenizer.json; `path` is for messages. */
dsv2_status ds_tokenizer_from_json(const char *path, const char *json, size_t size, dsv2_tokenizer **tokenizer);

/* A tokenizer from a tokenizer.json, or a folder that has one, and from the files beside it. */
dsv2_status ds_tokenizer_open(const char *path, dsv2_tokenizer **tokenizer);

void ds_tokenizer_destroy(dsv2_tokenizer *tokenizer);

/* Files that may lie beside a tokenizer.json, in the order in which they are taken: the chat template of a later one
 * goes before that of an earlier one. */
enum { DS_TOKENIZER_FILES = 3 };
extern const char *const ds_tokenizer_files[DS_TOKENIZER_FILES];

/* Takes special tokens and the chat template from the text of ds_tokenizer_files[file]. */
dsv2_status ds_tokenizer_configure(dsv2_tokenizer *tokenizer, int file, const char *path, const char *text,
                                   size_t size);

/* Sets the ids that a file of the tokenizer names. -1, or an id outside the vocabulary, names none. */
void ds_tokenizer_set_special(dsv2_tokenizer *tokenizer, int32_t bos_token_id, int32_t eos_token_id);

/* Sets those ids that no file of the tokenizer names: the model's go before what is found by well-known names. */
void ds_tokenizer_complete(dsv2_tokenizer *tokenizer, int32_t bos_token_id, int32_t eos_token_id);

/* Whether an added token of this spelling counts as special whatever its file says: <|...|> and <｜...｜>. DeepSeek's
 * files leave <｜User｜> and <｜fim▁hole｜> unmarked, and text that spells such a token must not become it. */
bool ds_looks_special(const char *text, size_t size);

/* Token ids, in an array that grows. */
typedef struct ds_ids {
    int32_t *ids; /* ds_free'd by the owner */
    size_t n, capacity;
} ds_ids;

/* The bodies of public functions, with arguments checked. Those with `out` append to it. */
dsv2_status ds_encode(const dsv2_tokenizer *tokenizer, const char *text, size_t size, uint32_t flags, ds_ids *out);
dsv2_status ds_encode_watched(const dsv2_tokenizer *tokenizer, const char *text, size_t size, uint32_t flags,
                              dsv2_progress_fn progress, void *progress_user, ds_ids *out);
dsv2_status ds_decode(const dsv2_tokenizer *tokenizer, const int32_t *tokens, size_t n_tokens, uint32_t flags,
                      char *text, size_t capacity, size_t *size);
dsv2_status ds_chat(const dsv2_tokenizer *tokenizer, const dsv2_chat *chat, ds_ids *out);
dsv2_status ds_fim(const dsv2_tokenizer *tokenizer, ds_text prefix, ds_text suffix, ds_ids *out);
int32_t ds_find_token(const dsv2_tokenizer *tokenizer, const char *text, size_t size);
ds_text ds_chat_template(const dsv2_tokenizer *tokenizer); /* size 0: the checkpoint has none */
ds_text ds_get_token(const dsv2_tokenizer *tokenizer, int32_t token);
void ds_describe_tokenizer(const dsv2_tokenizer *tokenizer, dsv2_tokenizer_info *info);

/* A digest of all that decides which ids a text has and which bytes an id stands for: tokens, merges and expressions,
 * but not which token begins or ends a text, nor the form of chats. A pack's digest is that of what it was made
 * from. */
uint64_t ds_tokenizer_digest(const dsv2_tokenizer *tokenizer);

#endif

/* What the files of this room share: the tokenizer itself, and how they call one another. For this room alone. */
#ifndef DSV2_LIB_TOKENIZER_PARTS_H
#define DSV2_LIB_TOKENIZER_PARTS_H

#include "tokenizer/tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

/* Stages call one another, so their number is bounded; published tokenizers have seven at most. */
enum { DSV2_MAX_STAGES = 16 };
enum { DSV2_MAX_PATTERN = 64 << 10 };
/* An added token is looked for at every byte of a text: a longest one of a megabyte would make that quadratic. */
enum { DSV2_MAX_ADDED_SIZE = 1024 };

enum {
    DSV2_TOKEN_LITERAL = 16, /* of the model, but not in its alphabet, so that no text merges to it */
    DSV2_TOKEN_WHOLE = 32    /* a piece of exactly these bytes merges to exactly this token */
};

typedef struct dsv2_token {
    uint32_t offset, size; /* into texts */
    uint32_t kind;
} dsv2_token;

typedef struct dsv2_merge {
    uint64_t pair; /* left id << 32 | right id */
    uint32_t rank; /* the lower, the earlier */
    uint32_t id;   /* of the two together */
} dsv2_merge;

/* Added tokens in order of their bytes, so that those with a common beginning lie together. */
typedef struct dsv2_added {
    uint32_t *ids;
    uint32_t n;
    uint32_t first[257]; /* those that begin with byte b: first[b] to first[b + 1] */
} dsv2_added;

struct dsv2_tokenizer {
    char *path; /* for messages */
    uint64_t seed; /* of the hash tables: differs from run to run, so that no file can aim at one slot */

    dsv2_token *tokens;
    uint32_t n_tokens;
    char *texts;
    uint32_t *by_text; /* open addressing: id + 1, or 0 */
    uint32_t by_text_mask;

    int32_t letter[256]; /* the token that is byte b in the merging; -1: none */
    int32_t twin[256];   /* where letter is -1: the added token spelled by the letter that stands for byte b */
    uint32_t n_twins;
    int32_t escape;      /* put before a twin to mean the byte: see encode.c; -1: not needed */

    dsv2_merge *merges; /* open addressing; id UINT32_MAX: empty */
    uint32_t merge_mask, n_merges;
    bool ignore_merges;

    dsv2_added early, late; /* matched first and second */
    uint32_t n_special;

    pcre2_code *stages[DSV2_MAX_STAGES];
    uint32_t n_stages;
    uint64_t stages_digest; /* of their expressions */

    int32_t bos, eos, fim_begin, fim_hole, fim_end, user, assistant;
    bool chat_v2, chat_v25;
};

/* ---- vocabulary.c ---- */

/* An empty tokenizer with the vocabulary's tokens and merges, its special ids found by name. */
dsv2_status dsv2_tokenizer_create(const dsv2_vocabulary *vocabulary, dsv2_tokenizer **tokenizer);

/* The chat form that a template's text shows, without running it. */
void dsv2_use_chat_template(dsv2_tokenizer *tokenizer, const char *text, size_t size);

/* The token of the model that has these bytes; -1: none. */
int32_t dsv2_find_model_token(const dsv2_tokenizer *tokenizer, const char *text, size_t size);

/* The longest added token of a list that `text` begins with, special ones only if `special`; -1: none. */
int32_t dsv2_match_added(const dsv2_tokenizer *tokenizer, const dsv2_added *added, bool special, const char *text, size_t size);

static inline const dsv2_merge *dsv2_find_merge(const dsv2_tokenizer *t, uint32_t left, uint32_t right)
{
    uint64_t pair = (uint64_t)left << 32 | right;
    uint32_t slot = (uint32_t)(((pair ^ t->seed) * 0x9e3779b97f4a7c15u) >> 32) & t->merge_mask;
    for (;; slot = (slot + 1) & t->merge_mask) {
        const dsv2_merge *merge = &t->merges[slot];
        if (merge->id == UINT32_MAX)
            return NULL;
        if (merge->pair == pair)
            return merge;
    }
}

/* ---- pattern.c ---- */

/* An expression in Oniguruma's syntax (Ruby's), as tokenizer.json files have it, in PCRE2's, to mean the same under
 * PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE; to be freed. What the two read differently is refused. */
dsv2_status dsv2_translate_pattern(const char *path, const char *pattern, size_t size, char **translated, size_t *translated_size);

/* ---- unicode.c ---- */

/* The next range of characters that a general category ("L", "Lu": `size` letters) gained after Unicode 14, from *index on, which
 * begins with 0; false if there is none. */
bool dsv2_gained_range(const char *category, size_t size, size_t *index, uint32_t *first, uint32_t *last);

/* ---- pretokenize.c ---- */

/* Adds a stage that isolates every match of an expression. */
dsv2_status dsv2_add_split(dsv2_tokenizer *tokenizer, const char *pattern, size_t size);

/* Adds the stages known by this name. */
dsv2_status dsv2_add_named_stages(dsv2_tokenizer *tokenizer, dsv2_text name);

/* GPT-2's own expression: what ByteLevel does with use_regex. */
dsv2_status dsv2_add_gpt2_stage(dsv2_tokenizer *tokenizer);

/* ---- one encoding ---- */

/* A symbol of a long piece, in a list over the piece. */
typedef struct dsv2_symbol {
    uint32_t id;
    uint32_t rank;   /* of merging it with the next one; UINT32_MAX: not to be merged */
    uint32_t merged; /* the id this gives */
    int32_t previous, next;
} dsv2_symbol;

typedef struct dsv2_encoder {
    const dsv2_tokenizer *tokenizer;
    dsv2_ids *out;
    uint32_t flags;
    pcre2_match_data *match_data; /* NULL until the first match */
    pcre2_match_context *match_context;
    dsv2_symbol *symbols; /* of long pieces */
    size_t symbols_capacity;
    uint64_t *heap;
    size_t heap_capacity;
} dsv2_encoder;

void dsv2_encoder_free(dsv2_encoder *encoder);
dsv2_status dsv2_push(dsv2_ids *out, int32_t id);

/* Splits valid UTF-8 by all stages and merges each piece. */
dsv2_status dsv2_encode_valid(dsv2_encoder *encoder, const char *text, size_t size);

/* Merges one piece (bpe.c). */
dsv2_status dsv2_encode_piece(dsv2_encoder *encoder, const char *text, size_t size);

/* Marks the tokens that a piece of their own bytes merges to: those are found without merging. */
dsv2_status dsv2_mark_whole_tokens(dsv2_tokenizer *tokenizer);

/* ---- utf8.c ---- */

/* Bytes of the character at `text`, 1 to 4; 0 if none can begin there or it is cut. */
size_t dsv2_utf8_length(const char *text, size_t size);

/* How many bytes from the start are valid UTF-8. */
size_t dsv2_utf8_valid(const char *text, size_t size);

#endif

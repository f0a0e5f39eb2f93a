/* What the files of this room share: the tokenizer itself, and how they call one another. For this room alone. */
#ifndef DS_LIB_TOKENIZER_PARTS_H
#define DS_LIB_TOKENIZER_PARTS_H

#include "tokenizer/tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

/* Stages call one another, so their number is bounded; published tokenizers have seven at most. */
enum { DS_MAX_STAGES = 16 };
enum { DS_MAX_PATTERN = 64 << 10 };
/* An added token is looked for at every byte of a text: a longest one of a megabyte would make that quadratic. */
enum { DS_MAX_ADDED_SIZE = 1024 };

enum {
    DS_TOKEN_LITERAL = 16, /* of the model, but not in its alphabet, so that no text merges to it */
    DS_TOKEN_WHOLE = 32    /* a piece of exactly these bytes merges to exactly this token */
};

typedef struct ds_token {
    uint32_t offset, size; /* into texts */
    uint32_t kind;
} ds_token;

typedef struct ds_merge {
    uint64_t pair; /* left id << 32 | right id */
    uint32_t rank; /* the lower, the earlier */
    uint32_t id;   /* of the two together */
} ds_merge;

/* Added tokens in order of their bytes, so that those with a common beginning lie together. */
typedef struct ds_added {
    uint32_t *ids;
    uint32_t n;
    uint32_t first[257]; /* those that begin with byte b: first[b] to first[b + 1] */
} ds_added;

struct dsv2_tokenizer {
    char *path; /* for messages */
    uint64_t seed; /* of the hash tables: differs from run to run, so that no file can aim at one slot */

    ds_token *tokens;
    uint32_t n_tokens;
    char *texts;
    uint32_t *by_text; /* open addressing: id + 1, or 0 */
    uint32_t by_text_mask;

    int32_t letter[256]; /* the token that is byte b in the merging; -1: none */
    int32_t twin[256];   /* where letter is -1: the added token spelled by the letter that stands for byte b */
    uint32_t n_twins;
    int32_t escape;      /* put before a twin to mean the byte: see encode.c; -1: not needed */

    ds_merge *merges; /* open addressing; id UINT32_MAX: empty */
    uint32_t merge_mask, n_merges;
    bool ignore_merges;

    ds_added early, late; /* matched first and second */
    uint32_t n_special;

    pcre2_code *stages[DS_MAX_STAGES];
    uint32_t n_stages;
    uint64_t stages_digest; /* of their expressions */

    int32_t bos, eos, fim_begin, fim_hole, fim_end, user, assistant;
    bool chat_v2, chat_v25;
};

/* ---- vocabulary.c ---- */

/* An empty tokenizer with the vocabulary's tokens and merges, its special ids found by name. */
dsv2_status ds_tokenizer_create(const ds_vocabulary *vocabulary, dsv2_tokenizer **tokenizer);

/* The chat form that a template's text shows, without running it. */
void ds_use_chat_template(dsv2_tokenizer *tokenizer, const char *text, size_t size);

/* The token of the model that has these bytes; -1: none. */
int32_t ds_find_model_token(const dsv2_tokenizer *tokenizer, const char *text, size_t size);

/* The longest added token of a list that `text` begins with, special ones only if `special`; -1: none. */
int32_t ds_match_added(const dsv2_tokenizer *tokenizer, const ds_added *added, bool special, const char *text, size_t size);

static inline const ds_merge *ds_find_merge(const dsv2_tokenizer *t, uint32_t left, uint32_t right)
{
    uint64_t pair = (uint64_t)left << 32 | right;
    uint32_t slot = (uint32_t)(((pair ^ t->seed) * 0x9e3779b97f4a7c15u) >> 32) & t->merge_mask;
    for (;; slot = (slot + 1) & t->merge_mask) {
        const ds_merge *merge = &t->merges[slot];
        if (merge->id == UINT32_MAX)
            return NULL;
        if (merge->pair == pair)
            return merge;
    }
}

/* ---- pattern.c ---- */

/* An expression in Oniguruma's syntax (Ruby's), as tokenizer.json files have it, in PCRE2's, to mean the same under
 * PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE; to be freed. What the two read differently is refused. */
dsv2_status ds_translate_pattern(const char *path, const char *pattern, size_t size, char **translated, size_t *translated_size);

/* ---- unicode.c ---- */

/* The next range of characters that a general category ("L", "Lu": `size` letters) gained after Unicode 14, from *index on, which
 * begins with 0; false if there is none. */
bool ds_gained_range(const char *category, size_t size, size_t *index, uint32_t *first, uint32_t *last);

/* ---- pretokenize.c ---- */

/* Adds a stage that isolates every match of an expression. */
dsv2_status ds_add_split(dsv2_tokenizer *tokenizer, const char *pattern, size_t size);

/* Adds the stages known by this name. */
dsv2_status ds_add_named_stages(dsv2_tokenizer *tokenizer, ds_text name);

/* GPT-2's own expression: what ByteLevel does with use_regex. */
dsv2_status ds_add_gpt2_stage(dsv2_tokenizer *tokenizer);

/* ---- one encoding ---- */

/* A symbol of a long piece, in a list over the piece. */
typedef struct ds_symbol {
    uint32_t id;
    uint32_t rank;   /* of merging it with the next one; UINT32_MAX: not to be merged */
    uint32_t merged; /* the id this gives */
    int32_t previous, next;
} ds_symbol;

typedef struct ds_encoder {
    const dsv2_tokenizer *tokenizer;
    ds_ids *out;
    uint32_t flags;
    pcre2_match_data *match_data; /* NULL until the first match */
    pcre2_match_context *match_context;
    ds_symbol *symbols; /* of long pieces */
    size_t symbols_capacity;
    uint64_t *heap;
    size_t heap_capacity;
} ds_encoder;

void ds_encoder_free(ds_encoder *encoder);
dsv2_status ds_push(ds_ids *out, int32_t id);

/* Splits valid UTF-8 by all stages and merges each piece. */
dsv2_status ds_encode_valid(ds_encoder *encoder, const char *text, size_t size);

/* Merges one piece (bpe.c). */
dsv2_status ds_encode_piece(ds_encoder *encoder, const char *text, size_t size);

/* Marks the tokens that a piece of their own bytes merges to: those are found without merging. */
dsv2_status ds_mark_whole_tokens(dsv2_tokenizer *tokenizer);

/* ---- utf8.c ---- */

/* Bytes of the character at `text`, 1 to 4; 0 if none can begin there or it is cut. */
size_t ds_utf8_length(const char *text, size_t size);

/* How many bytes from the start are valid UTF-8. */
size_t ds_utf8_valid(const char *text, size_t size);

#endif

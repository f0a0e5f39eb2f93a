/* What the files of this room share: the tokenizer itself, and the functions that they call of one another. For this
 * room alone. */
#ifndef DS_LIB_TOKENIZER_PARTS_H
#define DS_LIB_TOKENIZER_PARTS_H

#include "template/template.h"
#include "tokenizer/tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

/* A bound on stages, each of which calls the next on the stack. Published tokenizers have at most seven. */
enum { DS_MAX_STAGES = 16 };
/* A bound on the bytes of an expression. */
enum { DS_MAX_PATTERN = 64 << 10 };
/* Bounds on the bytes of an added token, and of all together, each of which takes at most 13 bytes of memory. Published
 * files have 30 KB. */
enum { DS_MAX_ADDED_SIZE = 1024, DS_MAX_ADDED_TOTAL = 8 << 20 };

enum {
    DS_TOKEN_LITERAL = 16, /* a token of the model, but not spelled in its alphabet, so that no text merges to it */
    DS_TOKEN_WHOLE = 32    /* a piece of exactly these bytes merges to exactly this token */
};

typedef struct ds_token {
    uint32_t offset, size; /* into texts */
    uint32_t kind;
} ds_token;

typedef struct ds_merge {
    uint64_t pair; /* left id << 32 | right id */
    uint32_t rank; /* a merge of lower rank goes first */
    uint32_t id;   /* of the merged token */
} ds_merge;

/* Added tokens as an automaton: see added.c. Node 0 is the root; arrays are NULL without tokens. */
typedef struct ds_added {
    uint32_t n, n_nodes;
    uint32_t longest;     /* bytes of the longest token */
    uint32_t *first;      /* [n_nodes + 1]: the children of node v are first[v] to first[v + 1] - 1, by their byte */
    uint32_t *fail;       /* [n_nodes]: where to go on if no child has the byte */
    uint8_t *bytes;       /* [n_nodes]: the byte by which a node is reached */
    int32_t *token;       /* [n_nodes]: the longest token that begins here; -1: none */
    uint32_t root[256];   /* the root's children by byte; 0: none */
} ds_added;

struct dsv2_tokenizer {
    char *path; /* for messages */
    uint64_t seed; /* of the hash tables; differs from run to run, so that no file can aim at one slot */

    ds_token *tokens;
    uint32_t n_tokens;
    char *texts;
    uint32_t *by_text; /* open addressing: id + 1, or 0 */
    uint32_t by_text_mask;

    int32_t letter[256];     /* the token that byte b is where merging begins; -1: none */
    int32_t substitute[256]; /* where letter is -1: the added token spelled by the letter that stands for byte b */
    uint32_t n_substitutes;
    int32_t escape;          /* stands before a substitute that means the byte: see encode.c; -1: not needed */

    ds_merge *merges; /* open addressing; id UINT32_MAX: empty */
    uint32_t merge_mask, n_merges;
    bool ignore_merges;

    ds_added early, late; /* matched in the first and in the second round */
    uint32_t n_special;

    pcre2_code *stages[DS_MAX_STAGES];
    uint32_t weights[DS_MAX_STAGES]; /* of a counted step; 0: steps are not counted */
    uint32_t n_stages;
    uint64_t stages_digest; /* of their expressions */

    int32_t bos, eos, fim_begin, fim_hole, fim_end, user, assistant;
    bool names_bos, names_eos; /* a file of the tokenizer names the token */

    /* The checkpoint's chat template. At most one of template and refusal is not NULL. */
    char *template_text;
    size_t template_size;
    ds_template *template;
    char *template_refusal; /* why there is none to render, though the checkpoint has one */
    bool chat_v2, chat_v25; /* which form the template shows, or without one the family */
};

/* ---- vocabulary.c ---- */

/* A tokenizer without stages: it has the vocabulary's tokens and merges, and special ids found by name. */
dsv2_status ds_tokenizer_create(const ds_vocabulary *vocabulary, dsv2_tokenizer **tokenizer);

/* Takes a chat template in place of the one before. One that cannot be used is kept with the reason, which
 * ds_chat gives: only DSV2_ERROR_MEMORY fails. */
dsv2_status ds_use_chat_template(dsv2_tokenizer *tokenizer, const char *path, const char *text, size_t size);

/* The token of the model that has these bytes; -1: none. */
int32_t ds_find_model_token(const dsv2_tokenizer *tokenizer, const char *text, size_t size);

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

/* ---- added.c ---- */

/* Makes the automaton of the added tokens that are matched early, or late; counts the special ones. */
dsv2_status ds_added_make(dsv2_tokenizer *tokenizer, ds_added *added, bool early);
void ds_added_free(ds_added *added);

/* The added token spelled exactly so; -1: none. */
int32_t ds_added_find(const dsv2_tokenizer *tokenizer, const ds_added *added, const char *text, size_t size);

/* Sets ids[i], for the first n (1 to size) places of a text, to the longest token that begins there; -1: none. There
 * must be tokens. Returns the steps that were taken, at most two a byte. */
uint64_t ds_added_match(const ds_added *added, const char *text, size_t size, size_t n, int32_t *ids);

/* ---- pattern.c ---- */

/* Translates an expression from Oniguruma's syntax (Ruby's), which tokenizer.json files use, to PCRE2's, so that it
 * means the same under PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE. What has no translation is refused. The caller frees
 * *translated.
 *
 * *weight is 0 for a light expression. Any other may take millions of steps for one byte of a text: then each item that
 * PCRE2 tries, and each byte that the item matches, is to be counted as so much. */
dsv2_status ds_translate_pattern(const char *path, const char *pattern, size_t size, char **translated,
                                 size_t *translated_size, uint32_t *weight);

/* ---- unicode.c ---- */

/* The next range of characters that a general category ("L", "Lu": `size` letters) gained after Unicode 14; false if
 * there is no more. *index, 0 for the first range, moves on. */
bool ds_gained_range(const char *category, size_t size, size_t *index, uint32_t *first, uint32_t *last);

/* ---- pretokenize.c ---- */

/* Adds a stage that isolates every match of an expression. */
dsv2_status ds_add_split(dsv2_tokenizer *tokenizer, const char *pattern, size_t size);

/* Adds the stages known by this name. */
dsv2_status ds_add_named_stages(dsv2_tokenizer *tokenizer, ds_text name);

/* Adds a stage with GPT-2's own expression, which ByteLevel uses with use_regex. */
dsv2_status ds_add_gpt2_stage(dsv2_tokenizer *tokenizer);

void ds_free_stages(dsv2_tokenizer *tokenizer);

/* ---- one encoding ---- */

/* A token of a long piece that is being merged: a link of a list over the piece. */
typedef struct ds_symbol {
    uint32_t id;
    uint32_t rank;          /* of the merge with the next symbol; UINT32_MAX: there is none */
    uint32_t merged;        /* the id of the merged token */
    int32_t previous, next; /* -1: none */
} ds_symbol;

typedef struct ds_encoder {
    const dsv2_tokenizer *tokenizer;
    ds_ids *out;
    uint32_t flags;
    const char *text;
    const uint8_t *origins; /* of the text's bytes, 0 for the host's; NULL: the flags say who wrote the text */
    dsv2_progress_fn progress; /* NULL: nobody watches */
    void *progress_user;
    size_t size, done;   /* bytes of the text, and those that are tokens already */
    uint64_t unreported; /* work since the last report */
    pcre2_match_data *match_data; /* NULL until the first match */
    pcre2_match_context *match_context;
    ds_symbol *symbols; /* of long pieces */
    size_t symbols_capacity;
    uint64_t *heap;
    size_t heap_capacity;
    int32_t *added[2]; /* of each round: the tokens that begin at the next places; NULL until they are needed */
    uint64_t steps;     /* taken so far to find added tokens */
    uint64_t work_left; /* that expressions may still do */
    size_t matched_stage, matched_to; /* where a match that is counted is */
    uint64_t counted;                 /* steps that are not yet taken from work_left */
    dsv2_status counted_status;
} ds_encoder;

/* Encodes a text with an encoder of {tokenizer, out, flags}; the caller frees the encoder. */
dsv2_status ds_encode_text(ds_encoder *encoder, const char *text, size_t size);
void ds_encoder_free(ds_encoder *encoder);

/* Counts work, in bytes that were looked at, and reports now and then. DSV2_ERROR_CANCELLED if the callback says so. */
dsv2_status ds_count_work(ds_encoder *encoder, uint64_t work);
dsv2_status ds_push(ds_ids *out, int32_t id);

/* Encodes a prompt of which only the bytes with origin 0 may be special tokens. Appends to `out`. */
dsv2_status ds_encode_prompt(const dsv2_tokenizer *tokenizer, const char *text, const uint8_t *origins, size_t size,
                             ds_ids *out);

/* Splits valid UTF-8 by all stages and merges each piece. */
dsv2_status ds_encode_valid(ds_encoder *encoder, const char *text, size_t size);

/* Merges one piece (bpe.c). */
dsv2_status ds_encode_piece(ds_encoder *encoder, const char *text, size_t size);

/* Marks each token to which a piece of its own bytes merges: such a piece is encoded without merging. */
dsv2_status ds_mark_whole_tokens(dsv2_tokenizer *tokenizer);

#endif

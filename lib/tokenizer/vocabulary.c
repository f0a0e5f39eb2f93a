/* The vocabulary: tokens by id and by bytes, merges by pair, added tokens in order, special ids by name.
 *
 * A BPE model's tokens are spelled in GPT-2's alphabet, one printable character for each byte. The bytes 0x21-0x7e,
 * 0xa1-0xac and 0xae-0xff are spelled by the characters of these numbers, the other 68 by U+0100 and on, in order. The
 * tokenizer keeps a token as the bytes that it stands for. */
#include "tokenizer/parts.h"

#include <string.h>
#include <xxhash.h>

enum { LETTERS = 324 }; /* one more than the last code point of the alphabet */

static bool stands_for_itself(unsigned byte)
{
    return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

/* bytes[code point]: the byte that this letter of the alphabet stands for; -1: no letter. */
static void make_alphabet(int16_t bytes[LETTERS])
{
    for (unsigned code_point = 0; code_point < LETTERS; code_point++)
        bytes[code_point] = -1;
    unsigned next = 256;
    for (unsigned byte = 0; byte < 256; byte++)
        bytes[stands_for_itself(byte) ? byte : next++] = (int16_t)byte;
}

/* Writes the bytes that a spelling stands for, at most as many as the spelling has itself. False if some character is
 * not in the alphabet. */
static bool decode_spelling(const int16_t alphabet[LETTERS], ds_text spelling, char *bytes, size_t *size)
{
    size_t n = 0;
    for (size_t i = 0; i < spelling.size;) {
        uint8_t first = (uint8_t)spelling.data[i];
        unsigned code_point = first;
        if (first >= 0x80) {
            /* All letters lie under U+0800: two bytes at most. */
            if (ds_utf8_length(spelling.data + i, spelling.size - i) != 2)
                return false;
            code_point = (first & 0x1fu) << 6 | ((uint8_t)spelling.data[i + 1] & 0x3fu);
        }
        if (code_point >= LETTERS || alphabet[code_point] < 0)
            return false;
        bytes[n++] = (char)alphabet[code_point];
        i += first >= 0x80 ? 2 : 1;
    }
    *size = n;
    return true;
}

/* A size for a table of n entries that leaves it half empty. */
static uint32_t table_size(size_t n)
{
    uint32_t size = 16;
    while (size < 2 * n)
        size *= 2;
    return size;
}

static bool same_text(const dsv2_tokenizer *t, uint32_t id, const char *text, size_t size)
{
    return t->tokens[id].size == size && memcmp(t->texts + t->tokens[id].offset, text, size) == 0;
}

/* The slot that holds these bytes, or the empty one where they belong. */
static uint32_t *find_slot(const dsv2_tokenizer *t, const char *text, size_t size)
{
    uint32_t slot = (uint32_t)XXH3_64bits_withSeed(text, size, t->seed) & t->by_text_mask;
    while (t->by_text[slot] != 0 && !same_text(t, t->by_text[slot] - 1, text, size))
        slot = (slot + 1) & t->by_text_mask;
    return &t->by_text[slot];
}

int32_t ds_find_model_token(const dsv2_tokenizer *t, const char *text, size_t size)
{
    return (int32_t)*find_slot(t, text, size) - 1;
}

int32_t ds_find_token(const dsv2_tokenizer *t, const char *text, size_t size)
{
    int32_t id = ds_added_find(t, &t->early, text, size);
    if (id < 0)
        id = ds_added_find(t, &t->late, text, size);
    return id >= 0 ? id : ds_find_model_token(t, text, size);
}

ds_text ds_get_token(const dsv2_tokenizer *t, int32_t token)
{
    if ((uint32_t)token >= t->n_tokens)
        return (ds_text){"", 0};
    return (ds_text){t->texts + t->tokens[token].offset, t->tokens[token].size};
}

/* Copies the tokens as bytes, and decides what each token is. */
static dsv2_status copy_tokens(dsv2_tokenizer *t, const ds_vocabulary *v, const int16_t alphabet[LETTERS])
{
    uint64_t total = 0;
    for (size_t id = 0; id < v->n_tokens; id++) {
        const ds_text *text = &v->texts[id];
        if ((v->kinds[id] & DS_TOKEN_ADDED) != 0 && (text->size == 0 || text->size > DS_MAX_ADDED_SIZE))
            return ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: added token %zu has %zu bytes, expected 1 to %d", v->path, id,
                           text->size, DS_MAX_ADDED_SIZE);
        if (v->kinds[id] != 0 && (!ds_add(total, text->size, &total) || total > INT32_MAX))
            return ds_fail(DSV2_ERROR_FORMAT, "%s: the tokens' texts have more than %d bytes together", v->path,
                           INT32_MAX);
    }
    t->tokens = ds_new(v->n_tokens, sizeof *t->tokens);
    t->texts = ds_new((size_t)total, 1);
    if (t->tokens == NULL || t->texts == NULL)
        return ds_fail_memory("the vocabulary", v->n_tokens * sizeof *t->tokens + (size_t)total);
    t->n_tokens = (uint32_t)v->n_tokens;
    size_t used = 0;
    for (size_t id = 0; id < v->n_tokens; id++) {
        ds_text text = v->texts[id];
        uint32_t kind = v->kinds[id];
        size_t size = 0;
        char *bytes = t->texts + used;
        if ((kind & DS_TOKEN_LETTERS) != 0 && !decode_spelling(alphabet, text, bytes, &size))
            kind = (kind & ~(uint32_t)DS_TOKEN_LETTERS) | DS_TOKEN_LITERAL;
        if ((kind & DS_TOKEN_ADDED) != 0 && (kind & DS_TOKEN_LETTERS) != 0 &&
            (size != text.size || memcmp(bytes, text.data, size) != 0))
            kind &= ~(uint32_t)DS_TOKEN_LETTERS; /* the text that spells this token is its bytes: see encode.c */
        if (kind != 0 && (kind & DS_TOKEN_LETTERS) == 0) {
            size = text.size;
            if (size > 0)
                memcpy(bytes, text.data, size);
        }
        t->tokens[id] = (ds_token){(uint32_t)used, (uint32_t)size, kind};
        used += size;
    }
    return DSV2_OK;
}

/* Puts the model's tokens into the table: first those spelled in the alphabet, then the others whose bytes are free. */
static dsv2_status index_tokens(dsv2_tokenizer *t)
{
    uint32_t size = table_size(t->n_tokens);
    t->by_text = ds_new(size, sizeof *t->by_text);
    if (t->by_text == NULL)
        return ds_fail_memory("the vocabulary's index", size * sizeof *t->by_text);
    t->by_text_mask = size - 1;
    for (unsigned pass = 0; pass < 2; pass++)
        for (uint32_t id = 0; id < t->n_tokens; id++) {
            const ds_token *token = &t->tokens[id];
            if ((token->kind & (pass == 0 ? DS_TOKEN_LETTERS : DS_TOKEN_LITERAL)) == 0)
                continue;
            uint32_t *slot = find_slot(t, t->texts + token->offset, token->size);
            if (*slot == 0)
                *slot = id + 1;
            else if (pass == 0)
                return ds_fail(DSV2_ERROR_FORMAT, "%s: tokens %u and %u are spelled alike", t->path, *slot - 1, id);
        }
    return DSV2_OK;
}

/* Finds the token of every byte. DeepSeek's vocabularies have none for the 13 bytes that UTF-8 never uses, but have
 * added tokens spelled by the letters of these bytes: the substitutes. */
static dsv2_status bind_bytes(dsv2_tokenizer *t, const int16_t alphabet[LETTERS])
{
    t->escape = -1;
    for (unsigned byte = 0; byte < 256; byte++) {
        t->letter[byte] = ds_find_model_token(t, &(char){(char)byte}, 1);
        if (t->letter[byte] >= 0 && (t->tokens[t->letter[byte]].kind & DS_TOKEN_LETTERS) == 0)
            t->letter[byte] = -1;
        t->substitute[byte] = -1;
    }
    for (unsigned code_point = 0x80; code_point < LETTERS; code_point++) {
        if (alphabet[code_point] < 0 || t->letter[alphabet[code_point]] >= 0)
            continue;
        char spelling[2] = {(char)(0xc0 | code_point >> 6), (char)(0x80 | (code_point & 0x3f))};
        int32_t id = ds_find_token(t, spelling, sizeof spelling);
        if (id >= 0 && (t->tokens[id].kind & DS_TOKEN_ADDED) != 0) {
            t->substitute[alphabet[code_point]] = id;
            t->n_substitutes++;
        }
    }
    for (unsigned byte = 0; byte < 256; byte++)
        if (t->letter[byte] < 0 && t->substitute[byte] < 0)
            return ds_fail(DSV2_ERROR_UNSUPPORTED,
                           "%s: the vocabulary has no token for byte 0x%02x: it is not byte-level, or "
                           "not all of the byte alphabet is in it", t->path, byte);
    /* The escape is a first byte of a long character. Valid text never ends in one, so none stands before a
     * substitute. */
    for (unsigned byte = 0xf4; t->n_substitutes > 0 && byte >= 0xc2 && t->escape < 0; byte--)
        t->escape = t->letter[byte];
    if (t->n_substitutes > 0 && t->escape < 0)
        return ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: the vocabulary has no token for any of the bytes 0xc2 to 0xf4",
                       t->path);
    return DSV2_OK;
}

/* The bytes and the token of a merge's left or right side, whether it is spelled in the alphabet or not. */
static dsv2_status find_side(dsv2_tokenizer *t, const int16_t alphabet[LETTERS], size_t merge, ds_text side,
                             char *bytes, size_t *size, int32_t *id)
{
    bool letters = decode_spelling(alphabet, side, bytes, size);
    if (!letters) {
        *size = side.size;
        memcpy(bytes, side.data, side.size);
    }
    *id = ds_find_model_token(t, bytes, *size);
    if (*id < 0 || ((t->tokens[*id].kind & DS_TOKEN_LETTERS) != 0) != letters)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: merges[%zu]: \"%.*s\" is not in the vocabulary", t->path, merge,
                       DS_QUOTED(side));
    return DSV2_OK;
}

static dsv2_status index_merges(dsv2_tokenizer *t, const ds_vocabulary *v, const int16_t alphabet[LETTERS])
{
    if (v->n_merges > UINT32_MAX / 8)
        return ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: %zu merges, expected at most %u", v->path, v->n_merges,
                       UINT32_MAX / 8);
    size_t longest = 0;
    for (size_t i = 0; i < 2 * v->n_merges; i++)
        longest = v->merges[i].size > longest ? v->merges[i].size : longest;
    uint32_t size = table_size(v->n_merges);
    char *bytes = ds_new(2, longest);
    t->merges = ds_new(size, sizeof *t->merges);
    dsv2_status status = DSV2_OK;
    if (bytes == NULL || t->merges == NULL) {
        status = ds_fail_memory("the merges", size * sizeof *t->merges + 2 * longest);
        goto done;
    }
    t->merge_mask = size - 1;
    for (uint32_t i = 0; i < size; i++)
        t->merges[i].id = UINT32_MAX;
    for (size_t i = 0; i < v->n_merges; i++) {
        size_t left_size, right_size;
        int32_t left, right;
        const ds_text *sides = &v->merges[2 * i];
        if ((status = find_side(t, alphabet, i, sides[0], bytes, &left_size, &left)) != DSV2_OK ||
            (status = find_side(t, alphabet, i, sides[1], bytes + left_size, &right_size, &right)) != DSV2_OK)
            goto done;
        if ((t->tokens[left].kind & t->tokens[right].kind & DS_TOKEN_LETTERS) == 0)
            continue; /* no text gives such a pair */
        int32_t merged = ds_find_model_token(t, bytes, left_size + right_size);
        if (merged < 0 || (t->tokens[merged].kind & DS_TOKEN_LETTERS) == 0) {
            status = ds_fail(DSV2_ERROR_FORMAT,
                             "%s: merges[%zu]: \"%.*s\" and \"%.*s\" together are not in the vocabulary", t->path, i,
                             DS_QUOTED(sides[0]), DS_QUOTED(sides[1]));
            goto done;
        }
        /* A pair that is named twice keeps its last rank, as in Hugging Face's map. */
        ds_merge *slot = (ds_merge *)ds_find_merge(t, (uint32_t)left, (uint32_t)right);
        if (slot == NULL) {
            uint64_t pair = (uint64_t)left << 32 | (uint32_t)right;
            uint32_t at = (uint32_t)(((pair ^ t->seed) * 0x9e3779b97f4a7c15u) >> 32) & t->merge_mask;
            while (t->merges[at].id != UINT32_MAX)
                at = (at + 1) & t->merge_mask;
            slot = &t->merges[at];
            slot->pair = pair;
            t->n_merges++;
        }
        slot->rank = (uint32_t)i;
        slot->id = (uint32_t)merged;
    }
done:
    ds_free(bytes);
    return status;
}

static int32_t find_name(const dsv2_tokenizer *t, const char *name) { return ds_find_token(t, name, strlen(name)); }

static int32_t find_first(const dsv2_tokenizer *t, const char *const *names, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        int32_t id = find_name(t, names[i]);
        if (id >= 0 && (t->tokens[id].kind & DS_TOKEN_ADDED) != 0)
            return id;
    }
    return -1;
}

/* Finds special tokens by the names that published byte-level tokenizers use, DeepSeek's first. */
static void find_special(dsv2_tokenizer *t, int32_t bos, int32_t eos)
{
    static const char *const begins[] = {"<｜begin▁of▁sentence｜>", "<|begin_of_text|>", "<|begin_of_sentence|>", "<s>",
                                         "<|endoftext|>"};
    static const char *const ends[] = {"<｜end▁of▁sentence｜>", "<|end_of_text|>", "<|end_of_sentence|>", "</s>",
                                       "<|endoftext|>"};
    t->bos = find_first(t, begins, sizeof begins / sizeof *begins);
    t->eos = find_first(t, ends, sizeof ends / sizeof *ends);
    ds_tokenizer_set_special(t, bos, eos);
    t->fim_begin = find_name(t, "<｜fim▁begin｜>");
    t->fim_hole = find_name(t, "<｜fim▁hole｜>");
    t->fim_end = find_name(t, "<｜fim▁end｜>");
    t->user = find_name(t, "<｜User｜>");
    t->assistant = find_name(t, "<｜Assistant｜>");
    t->chat_v25 = t->user >= 0 && t->assistant >= 0;
    t->chat_v2 = !t->chat_v25 && find_name(t, "<｜begin▁of▁sentence｜>") >= 0;
}

void ds_tokenizer_set_special(dsv2_tokenizer *t, int32_t bos, int32_t eos)
{
    if (bos >= 0 && (uint32_t)bos < t->n_tokens) {
        t->bos = bos;
        t->names_bos = true;
    }
    if (eos >= 0 && (uint32_t)eos < t->n_tokens) {
        t->eos = eos;
        t->names_eos = true;
    }
}

void ds_tokenizer_complete(dsv2_tokenizer *t, int32_t bos, int32_t eos)
{
    ds_tokenizer_set_special(t, t->names_bos ? -1 : bos, t->names_eos ? -1 : eos);
}

static bool contains(const char *text, size_t size, const char *words)
{
    size_t n = strlen(words);
    for (size_t i = 0; i + n <= size; i++)
        if (memcmp(text + i, words, n) == 0)
            return true;
    return false;
}

static void forget_template(dsv2_tokenizer *t)
{
    ds_template_destroy(t->template);
    ds_free(t->template_refusal);
    ds_free(t->template_text);
    t->template = NULL;
    t->template_refusal = t->template_text = NULL;
    t->template_size = 0;
}

dsv2_status ds_use_chat_template(dsv2_tokenizer *t, const char *path, const char *text, size_t size)
{
    forget_template(t);
    t->template_text = ds_new(size + 1, 1);
    if (t->template_text == NULL)
        return ds_fail_memory("a chat template", size);
    memcpy(t->template_text, text, size);
    t->template_size = size;
    dsv2_status status = ds_template_parse(path, text, size, &t->template);
    if (status == DSV2_ERROR_MEMORY)
        return status;
    if (status != DSV2_OK) {
        t->template_refusal = ds_copy_string(dsv2_last_error());
        if (t->template_refusal == NULL)
            return ds_fail_memory("a chat template", size);
    }
    /* DeepSeek-Coder-V2 has the User and Assistant tokens and does not use them. */
    t->chat_v25 = status == DSV2_OK && t->user >= 0 && t->assistant >= 0 && contains(text, size, "<｜User｜>");
    t->chat_v2 = status == DSV2_OK && !t->chat_v25 && contains(text, size, "User: ");
    return DSV2_OK;
}

ds_text ds_chat_template(const dsv2_tokenizer *t) { return (ds_text){t->template_text, t->template_size}; }

bool ds_looks_special(const char *text, size_t size)
{
    static const char wide_begin[] = "<｜", wide_end[] = "｜>";
    bool begins = (size >= 4 && memcmp(text, "<|", 2) == 0) || (size >= 8 && memcmp(text, wide_begin, 4) == 0);
    bool ends = (size >= 4 && memcmp(text + size - 2, "|>", 2) == 0) ||
                (size >= 8 && memcmp(text + size - 4, wide_end, 4) == 0);
    return begins && ends;
}

dsv2_status ds_tokenizer_create(const ds_vocabulary *v, dsv2_tokenizer **tokenizer)
{
    int16_t alphabet[LETTERS];
    make_alphabet(alphabet);
    if (v->n_tokens > DS_MAX_TOKENS)
        return ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: %zu tokens, expected at most %d", v->path, v->n_tokens,
                       DS_MAX_TOKENS);
    dsv2_tokenizer *t = ds_new(1, sizeof *t);
    if (t == NULL)
        return ds_fail_memory("the tokenizer", sizeof *t);
    t->seed = (uintptr_t)t * 0x9e3779b97f4a7c15u;
    dsv2_status status;
    t->ignore_merges = v->ignore_merges;
    t->path = ds_copy_string(v->path);
    if (t->path == NULL) {
        status = ds_fail_memory("a path", strlen(v->path) + 1);
        goto fail;
    }
    if ((status = copy_tokens(t, v, alphabet)) != DSV2_OK ||
        (status = index_tokens(t)) != DSV2_OK ||
        (status = ds_added_make(t, &t->early, true)) != DSV2_OK ||
        (status = ds_added_make(t, &t->late, false)) != DSV2_OK ||
        (status = bind_bytes(t, alphabet)) != DSV2_OK ||
        (status = index_merges(t, v, alphabet)) != DSV2_OK ||
        (status = ds_mark_whole_tokens(t)) != DSV2_OK)
        goto fail;
    find_special(t, v->bos_token_id, v->eos_token_id);
    if (v->chat_template.size > 0 &&
        (status = ds_use_chat_template(t, v->path, v->chat_template.data, v->chat_template.size)) != DSV2_OK)
        goto fail;
    *tokenizer = t;
    return DSV2_OK;
fail:
    ds_tokenizer_destroy(t);
    return status;
}

dsv2_status ds_tokenizer_from_vocabulary(const ds_vocabulary *vocabulary, dsv2_tokenizer **tokenizer)
{
    dsv2_tokenizer *t;
    dsv2_status status = ds_tokenizer_create(vocabulary, &t);
    if (status != DSV2_OK)
        return status;
    status = ds_add_named_stages(t, vocabulary->pre);
    if (status != DSV2_OK) {
        ds_tokenizer_destroy(t);
        return status;
    }
    *tokenizer = t;
    return DSV2_OK;
}

void ds_tokenizer_destroy(dsv2_tokenizer *t)
{
    if (t == NULL)
        return;
    ds_free_stages(t);
    forget_template(t);
    ds_added_free(&t->late);
    ds_added_free(&t->early);
    ds_free(t->merges);
    ds_free(t->by_text);
    ds_free(t->texts);
    ds_free(t->tokens);
    ds_free(t->path);
    ds_free(t);
}

uint64_t ds_tokenizer_digest(const dsv2_tokenizer *t)
{
    size_t texts = t->n_tokens == 0 ? 0 : t->tokens[t->n_tokens - 1].offset + t->tokens[t->n_tokens - 1].size;
    uint64_t merges = 0; /* a sum, since the order of merges in the table differs from run to run */
    for (uint32_t i = 0; i <= t->merge_mask; i++)
        if (t->merges[i].id != UINT32_MAX)
            merges += XXH3_64bits(&t->merges[i], sizeof t->merges[i]);
    uint64_t tokens = XXH3_64bits(t->tokens, t->n_tokens * sizeof *t->tokens);
    const uint64_t all[] = {tokens, XXH3_64bits(t->texts, texts), merges, t->ignore_merges, t->stages_digest};
    return XXH3_64bits(all, sizeof all);
}

void ds_describe_tokenizer(const dsv2_tokenizer *t, dsv2_tokenizer_info *info)
{
    *info = (dsv2_tokenizer_info){
        .vocab_size = t->n_tokens,
        .n_merges = t->n_merges,
        .n_special = t->n_special,
        .bos_token_id = t->bos,
        .eos_token_id = t->eos,
        .fim_begin_id = t->fim_begin,
        .fim_hole_id = t->fim_hole,
        .fim_end_id = t->fim_end,
    };
    strcpy(info->chat_form, t->chat_v25 ? "v2.5" : t->chat_v2 ? "v2" : t->template != NULL ? "template" : "");
}

/* A tokenizer.json of Hugging Face's tokenizers library, and the tokenizer_config.json beside it.
 *
 * Whatever decides ids is either honoured or refused by name. Refused are normalizers, pre-tokenizers other than Split,
 * Digits and ByteLevel, models other than byte-level BPE, and options that lose text (lstrip, add_prefix_space,
 * "Removed"). byte_fallback and unk_token mean nothing here, since every byte has a token. Truncation, padding and
 * offsets are the caller's business. The post-processor is read for the beginning-of-sequence token alone. */
#include "base/json.h"
#include "tokenizer/parts.h"

#include <stdio.h>
#include <string.h>
#include <xxhash.h>

enum { MAX_FILE = 256 << 20 }; /* bytes; a vocabulary of 128,000 tokens is 8 MB */

/* The fields that are read, apart from the lists of tokens and merges, which readers walk over. */
static const char *const root_fields[] = {"normalizer", "pre_tokenizer", "post_processor", "decoder", NULL};
static const char *const model_fields[] = {
    "type", "dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges", NULL,
};
static const char *const added_fields[] = {"single_word", "lstrip", "rstrip", "special", "normalized", NULL};
static const char *const config_fields[] = {"bos_token", "eos_token", "chat_template", NULL};

typedef struct reader {
    const char *path;
    ds_json json;
    ds_text vocab, merges, added; /* where these lists stand in the file */
    json_t *root, *model;         /* the other fields */
    ds_json_string string;        /* the string that was decoded last */
    char *decoded;                /* strings with escapes, one behind the other; room for all */
    size_t decoded_size;
    ds_text *texts;
    uint8_t *kinds;
    size_t n_tokens;
    uint32_t *by_text; /* tokens of the vocabulary by their text: open addressing, id + 1, or 0 */
    uint32_t by_text_mask;
    ds_text *sides; /* of merges */
    size_t n_merges;
} reader;

static dsv2_status wrong_type(const char *path, const char *field, const json_t *value, const char *expected)
{
    return ds_fail(DSV2_ERROR_FORMAT, "%s: %s is %s, expected %s", path, field, ds_json_kind(value), expected);
}

/* object[name] as a bool; `missing` if it is absent. */
static dsv2_status read_bool(const char *path, const char *field, const json_t *object, const char *name, bool missing,
                             bool *value)
{
    const json_t *member = json_object_get(object, name);
    *value = ds_json_is_absent(member) ? missing : json_is_true(member);
    if (ds_json_is_absent(member) || json_is_boolean(member))
        return DSV2_OK;
    return ds_fail(DSV2_ERROR_FORMAT, "%s: %s.%s is %s, expected true or false", path, field, name,
                   ds_json_kind(member));
}

/* object["type"]; NULL, with the thread's message set, if there is none. */
static const char *read_type(const char *path, const char *field, const json_t *object)
{
    const char *type = json_string_value(json_object_get(object, "type"));
    if (!json_is_object(object))
        (void)wrong_type(path, field, object, "an object");
    else if (type == NULL)
        (void)ds_fail(DSV2_ERROR_FORMAT, "%s: %s.type is %s, expected a string", path, field,
                      ds_json_kind(json_object_get(object, "type")));
    return type;
}

/* ---- tokens ---- */

/* A string of the file, which lives as long as the reader: where it stands, or decoded. */
static dsv2_status read_string(reader *r, ds_text value, ds_text *text)
{
    if (ds_json_is_plain(value, text))
        return DSV2_OK;
    dsv2_status status = ds_json_decode(&r->json, value, &r->string);
    if (status != DSV2_OK)
        return status;
    if (r->decoded == NULL && (r->decoded = ds_new(r->json.text.size, 1)) == NULL)
        return ds_fail_memory("strings", r->json.text.size);
    /* A string is shorter than its spelling. */
    *text = (ds_text){r->decoded + r->decoded_size, r->string.size};
    memcpy(r->decoded + r->decoded_size, r->string.bytes, r->string.size);
    r->decoded_size += r->string.size;
    return DSV2_OK;
}

static dsv2_status check_id(const reader *r, const char *field, ds_text name, ds_text value, size_t *id)
{
    int64_t number;
    if (!ds_json_is_integer(value, &number))
        return ds_fail(DSV2_ERROR_FORMAT, "%s: the id of %s \"%.*s\" is %s, expected an integer", r->path, field,
                       DS_QUOTED(name), ds_json_text_kind(value));
    if (number < 0 || number >= DS_MAX_TOKENS)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: the id of %s \"%.*s\" is %lld, expected 0 to %d", r->path, field,
                       DS_QUOTED(name), (long long)number, DS_MAX_TOKENS - 1);
    *id = (size_t)number;
    return DSV2_OK;
}

/* Finds content and id of an added token. */
static dsv2_status find_added(reader *r, size_t index, ds_text token, ds_text *content, size_t *id)
{
    ds_text values[2];
    dsv2_status status = ds_json_find(&r->json, token, 2, (const char *const[]){"content", "id"}, values);
    if (status != DSV2_OK)
        return status;
    if (!ds_json_is(values[0], '"'))
        return ds_fail(DSV2_ERROR_FORMAT, "%s: added_tokens[%zu].content is %s, expected a string", r->path, index,
                       ds_json_text_kind(values[0]));
    status = read_string(r, values[0], content);
    return status == DSV2_OK ? check_id(r, "added_tokens", *content, values[1], id) : status;
}

/* Checks every id; sets r->n_tokens to one more than the largest. *n_vocab: members of model.vocab. */
static dsv2_status count_tokens(reader *r, size_t *n_vocab)
{
    dsv2_status status;
    size_t id;
    *n_vocab = 0;
    ds_json_walk walk = ds_json_begin(r->vocab);
    for (; ds_json_next(&walk); ++*n_vocab) {
        ds_text spelled = {walk.name.data + 1, walk.name.size - 2};
        if ((status = check_id(r, "model.vocab", spelled, walk.value, &id)) != DSV2_OK)
            return status;
        r->n_tokens = id >= r->n_tokens ? id + 1 : r->n_tokens;
    }
    walk = ds_json_begin(r->added);
    for (size_t index = 0; ds_json_next(&walk); index++) {
        ds_text content;
        size_t decoded = r->decoded_size;
        if ((status = find_added(r, index, walk.value, &content, &id)) != DSV2_OK)
            return status;
        r->decoded_size = decoded; /* read_added_token decodes the content again */
        r->n_tokens = id >= r->n_tokens ? id + 1 : r->n_tokens;
    }
    if (r->n_tokens == 0)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: model.vocab is empty", r->path);
    return DSV2_OK;
}

static bool same_text(ds_text a, ds_text b) { return a.size == b.size && memcmp(a.data, b.data, a.size) == 0; }

/* The slot that holds this text's token, or the empty one where the token belongs. */
static uint32_t *find_slot(const reader *r, ds_text text)
{
    /* The address differs from run to run, so that no file can aim at one slot. */
    uint32_t slot = (uint32_t)XXH3_64bits_withSeed(text.data, text.size, (uintptr_t)r->by_text) & r->by_text_mask;
    while (r->by_text[slot] != 0 && !same_text(r->texts[r->by_text[slot] - 1], text))
        slot = (slot + 1) & r->by_text_mask;
    return &r->by_text[slot];
}

static dsv2_status read_vocab(reader *r)
{
    ds_json_walk walk = ds_json_begin(r->vocab);
    while (ds_json_next(&walk)) {
        ds_text text;
        int64_t id = 0;
        dsv2_status status = read_string(r, walk.name, &text);
        if (status != DSV2_OK)
            return status;
        (void)ds_json_is_integer(walk.value, &id);
        uint32_t *slot = find_slot(r, text);
        if (*slot != 0)
            return ds_fail(DSV2_ERROR_FORMAT, "%s: model.vocab has \"%.*s\" twice, as %u and as %d", r->path,
                           DS_QUOTED(text), *slot - 1, (int)id);
        if (r->kinds[id] != 0)
            return ds_fail(DSV2_ERROR_FORMAT, "%s: model.vocab gives id %d to both \"%.*s\" and \"%.*s\"", r->path,
                           (int)id, DS_QUOTED(r->texts[id]), DS_QUOTED(text));
        r->texts[id] = text;
        r->kinds[id] = DS_TOKEN_LETTERS;
        *slot = (uint32_t)id + 1;
    }
    return DSV2_OK;
}

static dsv2_status read_flags(const reader *r, const char *field, const json_t *token, uint8_t *kind, ds_text text)
{
    static const char *const refused[] = {"single_word", "lstrip", "rstrip"};
    dsv2_status status;
    bool flag, special, normalized;
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        if ((status = read_bool(r->path, field, token, refused[i], false, &flag)) != DSV2_OK)
            return status;
        if (flag)
            return ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: %s.%s is true, which is not supported", r->path, field,
                           refused[i]);
    }
    if ((status = read_bool(r->path, field, token, "special", false, &special)) != DSV2_OK ||
        (status = read_bool(r->path, field, token, "normalized", !special, &normalized)) != DSV2_OK)
        return status;
    *kind = DS_TOKEN_ADDED;
    if (special || ds_looks_special(text.data, text.size))
        *kind |= DS_TOKEN_SPECIAL;
    if (!normalized)
        *kind |= DS_TOKEN_EARLY;
    return DSV2_OK;
}

static dsv2_status read_added_token(reader *r, size_t index, ds_text token)
{
    char field[64];
    snprintf(field, sizeof field, "added_tokens[%zu]", index);
    ds_text text;
    size_t id;
    uint8_t kind = 0;
    json_t *flags = NULL;
    dsv2_status status = find_added(r, index, token, &text, &id);
    if (status == DSV2_OK && (status = ds_json_read(&r->json, token, added_fields, &flags)) == DSV2_OK)
        status = read_flags(r, field, flags, &kind, text);
    json_decref(flags);
    if (status != DSV2_OK)
        return status;
    if (r->kinds[id] != 0 && ((r->kinds[id] & DS_TOKEN_ADDED) != 0 || !same_text(r->texts[id], text)))
        return ds_fail(DSV2_ERROR_FORMAT, "%s: %s.id is %zu, which \"%.*s\" has too", r->path, field, id,
                       DS_QUOTED(r->texts[id]));
    uint32_t in_vocab = *find_slot(r, text);
    if (in_vocab != 0 && in_vocab - 1 != id)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: %s \"%.*s\" has id %zu, in model.vocab it has %u", r->path, field,
                       DS_QUOTED(text), id, in_vocab - 1);
    r->texts[id] = text;
    r->kinds[id] |= kind;
    return DSV2_OK;
}

static dsv2_status read_tokens(reader *r)
{
    if (!ds_json_is(r->vocab, '{'))
        return ds_fail(DSV2_ERROR_FORMAT, "%s: model.vocab is %s, expected an object", r->path,
                       ds_json_text_kind(r->vocab));
    if (!ds_json_is_nothing(r->added) && !ds_json_is(r->added, '['))
        return ds_fail(DSV2_ERROR_FORMAT, "%s: added_tokens is %s, expected an array", r->path,
                       ds_json_text_kind(r->added));
    size_t n_vocab, size = 16;
    dsv2_status status = count_tokens(r, &n_vocab);
    if (status != DSV2_OK)
        return status;
    while (size < 2 * n_vocab)
        size *= 2;
    r->texts = ds_new(r->n_tokens, sizeof *r->texts);
    r->kinds = ds_new(r->n_tokens, sizeof *r->kinds);
    r->by_text = ds_new(size, sizeof *r->by_text);
    if (r->texts == NULL || r->kinds == NULL || r->by_text == NULL)
        return ds_fail_memory("the vocabulary", r->n_tokens * (sizeof *r->texts + 1) + size * sizeof *r->by_text);
    r->by_text_mask = (uint32_t)(size - 1);
    status = read_vocab(r);
    ds_json_walk walk = ds_json_begin(r->added);
    for (size_t index = 0; status == DSV2_OK && ds_json_next(&walk); index++)
        status = read_added_token(r, index, walk.value);
    return status;
}

/* ---- merges ---- */

/* Reads a merge in either form, "a b" or ["a", "b"], and appends its sides. A line of the file merges.txt, from which
 * the first form comes, may be "#version: 0.2". */
static dsv2_status read_merge(reader *r, size_t index, ds_text merge)
{
    static const char version[] = "#version";
    ds_text *sides = &r->sides[2 * r->n_merges];
    dsv2_status status;
    if (ds_json_is(merge, '"')) {
        ds_text text;
        if ((status = read_string(r, merge, &text)) != DSV2_OK)
            return status;
        if (text.size >= sizeof version - 1 && memcmp(text.data, version, sizeof version - 1) == 0)
            return DSV2_OK;
        const char *space = memchr(text.data, ' ', text.size);
        if (space == NULL || memchr(space + 1, ' ', text.size - (size_t)(space - text.data) - 1) != NULL)
            return ds_fail(DSV2_ERROR_FORMAT,
                           "%s: model.merges[%zu] is \"%.*s\", expected two tokens with a space between",
                           r->path, index, DS_QUOTED(text));
        sides[0] = (ds_text){text.data, (size_t)(space - text.data)};
        sides[1] = (ds_text){space + 1, text.size - sides[0].size - 1};
        r->n_merges++;
        return DSV2_OK;
    }
    size_t n = 0;
    bool good = ds_json_is(merge, '[');
    ds_json_walk walk = ds_json_begin(merge);
    for (; good && ds_json_next(&walk); n++) {
        good = n < 2 && ds_json_is(walk.value, '"');
        if (good && (status = read_string(r, walk.value, &sides[n])) != DSV2_OK)
            return status;
    }
    if (!good || n != 2)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: model.merges[%zu] is %s, expected \"a b\" or [\"a\", \"b\"]", r->path,
                       index, ds_json_text_kind(merge));
    r->n_merges++;
    return DSV2_OK;
}

static dsv2_status read_merges(reader *r)
{
    if (!ds_json_is(r->merges, '['))
        return ds_fail(DSV2_ERROR_FORMAT, "%s: model.merges is %s, expected an array", r->path,
                       ds_json_text_kind(r->merges));
    size_t n = 0;
    ds_json_walk walk = ds_json_begin(r->merges);
    while (ds_json_next(&walk))
        n++;
    r->sides = ds_new(n, 2 * sizeof *r->sides);
    if (r->sides == NULL)
        return ds_fail_memory("the merges", n * 2 * sizeof *r->sides);
    walk = ds_json_begin(r->merges);
    dsv2_status status = DSV2_OK;
    for (size_t i = 0; status == DSV2_OK && ds_json_next(&walk); i++)
        status = read_merge(r, i, walk.value);
    return status;
}

/* ---- the model's options, normalizer, decoder ---- */

static dsv2_status check_model(const reader *r)
{
    if (!json_is_object(r->model))
        return wrong_type(r->path, "model", r->model, "an object");
    const json_t *type = json_object_get(r->model, "type"); /* old files have none */
    if (type != NULL && !json_is_string(type))
        return wrong_type(r->path, "model.type", type, "a string");
    if (type != NULL && strcmp(json_string_value(type), "BPE") != 0)
        return ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: model.type is \"%.*s\", expected BPE", r->path,
                       DS_QUOTED_STRING(json_string_value(type)));
    const json_t *dropout = json_object_get(r->model, "dropout");
    if (!ds_json_is_absent(dropout) && !json_is_number(dropout))
        return wrong_type(r->path, "model.dropout", dropout, "a number or null");
    if (!ds_json_is_absent(dropout) && json_number_value(dropout) != 0)
        return ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: model.dropout is %g: encoding at random is not supported", r->path,
                       json_number_value(dropout));
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (size_t i = 0; i < sizeof affixes / sizeof *affixes; i++) {
        const json_t *affix = json_object_get(r->model, affixes[i]);
        if (ds_json_is_absent(affix) || (json_is_string(affix) && json_string_length(affix) == 0))
            continue;
        return ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: model.%s is %s \"%.*s\", expected null", r->path, affixes[i],
                       ds_json_kind(affix), DS_QUOTED_STRING(json_is_string(affix) ? json_string_value(affix) : ""));
    }
    return DSV2_OK;
}

/* Checks the normalizer, which must change nothing, or the decoder, which must be ByteLevel: `field` is absent, of type
 * `allowed` (NULL: there is no such type), or a Sequence of these in its member `list`. */
static dsv2_status check_step(const reader *r, const char *field, const char *list, const char *allowed)
{
    const char *path = r->path;
    const json_t *step = json_object_get(r->root, field);
    if (ds_json_is_absent(step))
        return DSV2_OK;
    const char *type = read_type(path, field, step);
    if (type == NULL)
        return DSV2_ERROR_FORMAT;
    if (allowed != NULL && strcmp(type, allowed) == 0)
        return DSV2_OK;
    if (strcmp(type, "Sequence") != 0)
        return ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: %s of type \"%.*s\" is not supported", path, field,
                       DS_QUOTED_STRING(type));
    const json_t *members = json_object_get(step, list);
    if (!json_is_array(members))
        return ds_fail(DSV2_ERROR_FORMAT, "%s: %s.%s is %s, expected an array", path, field, list,
                       ds_json_kind(members));
    size_t index;
    json_t *member;
    json_array_foreach(members, index, member) {
        if ((type = read_type(path, field, member)) == NULL)
            return DSV2_ERROR_FORMAT;
        if (allowed == NULL || strcmp(type, allowed) != 0)
            return ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: %s.%s[%zu] of type \"%.*s\" is not supported", path, field,
                           list, index, DS_QUOTED_STRING(type));
    }
    return DSV2_OK;
}

/* ---- the pre-tokenizer ---- */

/* Adds the pattern {"String": "x"}, which means these very characters: each that could mean more gets a backslash. */
static dsv2_status add_literal(dsv2_tokenizer *t, const char *text, size_t size)
{
    char *pattern = ds_new(2, size);
    if (pattern == NULL)
        return ds_fail_memory("an expression", 2 * size);
    size_t n = 0;
    for (size_t i = 0; i < size; i++) {
        if (text[i] != '\0' && strchr("\\^$.[]|()*+?{}-", text[i]) != NULL)
            pattern[n++] = '\\';
        pattern[n++] = text[i];
    }
    dsv2_status status = ds_add_split(t, pattern, n);
    ds_free(pattern);
    return status;
}

static dsv2_status add_split(dsv2_tokenizer *t, const char *field, const json_t *split)
{
    const json_t *pattern = json_object_get(split, "pattern"), *behavior = json_object_get(split, "behavior");
    const json_t *regex = json_object_get(pattern, "Regex"), *string = json_object_get(pattern, "String");
    if (!json_is_string(behavior))
        return ds_fail(DSV2_ERROR_FORMAT, "%s: %s.behavior is %s, expected a string", t->path, field,
                       ds_json_kind(behavior));
    if (strcmp(json_string_value(behavior), "Isolated") != 0)
        return ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: %s.behavior is \"%.*s\", expected Isolated", t->path, field,
                       DS_QUOTED_STRING(json_string_value(behavior)));
    /* "invert" swaps matches and gaps, which makes no difference: both are pieces of their own. */
    if (json_is_string(regex))
        return ds_add_split(t, json_string_value(regex), json_string_length(regex));
    if (json_is_string(string))
        return add_literal(t, json_string_value(string), json_string_length(string));
    return ds_fail(DSV2_ERROR_FORMAT, "%s: %s.pattern is %s, expected {\"Regex\": ...} or {\"String\": ...}", t->path,
                   field, ds_json_kind(pattern));
}

/* Adds one pre-tokenizer. *bytes says whether ByteLevel was met, behind which nothing may come. */
static dsv2_status add_pre_tokenizer(dsv2_tokenizer *t, const char *field, const json_t *step, bool *bytes)
{
    const char *type = read_type(t->path, field, step);
    if (type == NULL)
        return DSV2_ERROR_FORMAT;
    if (*bytes)
        return ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: %s of type \"%.*s\" comes after ByteLevel", t->path, field,
                       DS_QUOTED_STRING(type));
    if (strcmp(type, "Split") == 0)
        return add_split(t, field, step);
    dsv2_status status;
    if (strcmp(type, "Digits") == 0) {
        bool individual;
        if ((status = read_bool(t->path, field, step, "individual_digits", false, &individual)) != DSV2_OK)
            return status;
        return individual ? ds_add_split(t, "\\p{N}", 5) : ds_add_split(t, "\\p{N}+", 6);
    }
    if (strcmp(type, "ByteLevel") != 0)
        return ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: %s of type \"%.*s\" is not supported", t->path, field,
                       DS_QUOTED_STRING(type));
    bool prefix, regex;
    if ((status = read_bool(t->path, field, step, "add_prefix_space", true, &prefix)) != DSV2_OK ||
        (status = read_bool(t->path, field, step, "use_regex", true, &regex)) != DSV2_OK)
        return status;
    if (prefix)
        return ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: %s.add_prefix_space is true, which is not supported", t->path,
                       field);
    *bytes = true;
    return regex ? ds_add_gpt2_stage(t) : DSV2_OK;
}

static dsv2_status add_pre_tokenizers(dsv2_tokenizer *t, const json_t *step)
{
    bool bytes = false;
    dsv2_status status = DSV2_OK;
    const json_t *members = json_object_get(step, "pretokenizers");
    const char *type = json_string_value(json_object_get(step, "type"));
    if (type == NULL || strcmp(type, "Sequence") != 0) {
        status = add_pre_tokenizer(t, "pre_tokenizer", step, &bytes);
    } else if (!json_is_array(members)) {
        status = wrong_type(t->path, "pre_tokenizer.pretokenizers", members, "an array");
    } else {
        size_t index;
        json_t *member;
        json_array_foreach(members, index, member) {
            char field[80];
            snprintf(field, sizeof field, "pre_tokenizer.pretokenizers[%zu]", index);
            if ((status = add_pre_tokenizer(t, field, member, &bytes)) != DSV2_OK)
                break;
        }
    }
    if (status == DSV2_OK && !bytes)
        return ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: pre_tokenizer has no ByteLevel: the vocabulary is not byte-level",
                       t->path);
    return status;
}

/* ---- the beginning of a sequence ---- */

/* The special token that a TemplateProcessing puts first; -1: none. */
static int32_t template_bos(const dsv2_tokenizer *t, const json_t *processor)
{
    const char *type = json_string_value(json_object_get(processor, "type"));
    if (type != NULL && strcmp(type, "Sequence") == 0) {
        size_t index;
        json_t *member;
        json_array_foreach(json_object_get(processor, "processors"), index, member) {
            const char *inner = json_string_value(json_object_get(member, "type"));
            if (inner != NULL && strcmp(inner, "TemplateProcessing") == 0)
                return template_bos(t, member);
        }
        return -1;
    }
    if (type == NULL || strcmp(type, "TemplateProcessing") != 0)
        return -1;
    const json_t *first = json_object_get(json_array_get(json_object_get(processor, "single"), 0), "SpecialToken");
    const json_t *name = json_object_get(first, "id");
    return json_is_string(name) ? ds_find_token(t, json_string_value(name), json_string_length(name)) : -1;
}

static dsv2_status build(reader *r, dsv2_tokenizer **tokenizer)
{
    dsv2_status status;
    bool ignore_merges;
    if ((status = check_model(r)) != DSV2_OK ||
        (status = read_bool(r->path, "model", r->model, "ignore_merges", false, &ignore_merges)) != DSV2_OK ||
        (status = check_step(r, "normalizer", "normalizers", NULL)) != DSV2_OK ||
        (status = check_step(r, "decoder", "decoders", "ByteLevel")) != DSV2_OK ||
        (status = read_tokens(r)) != DSV2_OK ||
        (status = read_merges(r)) != DSV2_OK)
        return status;
    ds_vocabulary vocabulary = {
        .path = r->path,
        .n_tokens = r->n_tokens,
        .texts = r->texts,
        .kinds = r->kinds,
        .n_merges = r->n_merges,
        .merges = r->sides,
        .ignore_merges = ignore_merges,
        .bos_token_id = -1,
        .eos_token_id = -1,
    };
    dsv2_tokenizer *t;
    if ((status = ds_tokenizer_create(&vocabulary, &t)) != DSV2_OK)
        return status;
    if ((status = add_pre_tokenizers(t, json_object_get(r->root, "pre_tokenizer"))) != DSV2_OK) {
        ds_tokenizer_destroy(t);
        return status;
    }
    ds_tokenizer_set_special(t, template_bos(t, json_object_get(r->root, "post_processor")), -1);
    *tokenizer = t;
    return DSV2_OK;
}

/* Finds the lists, and parses the other fields. */
static dsv2_status read_fields(reader *r)
{
    ds_text parts[2], lists[2];
    dsv2_status status;
    if ((status = ds_json_find(&r->json, r->json.text, 2, (const char *const[]){"model", "added_tokens"}, parts)) !=
            DSV2_OK ||
        (status = ds_json_find(&r->json, parts[0], 2, (const char *const[]){"vocab", "merges"}, lists)) != DSV2_OK ||
        (status = ds_json_read(&r->json, r->json.text, root_fields, &r->root)) != DSV2_OK)
        return status;
    r->added = parts[1];
    r->vocab = lists[0];
    r->merges = lists[1];
    return parts[0].data == NULL ? DSV2_OK : ds_json_read(&r->json, parts[0], model_fields, &r->model);
}

dsv2_status ds_tokenizer_from_json(const char *path, const char *json, size_t size, dsv2_tokenizer **tokenizer)
{
    reader r = {.path = path};
    dsv2_status status = ds_json_check(path, json, size, &r.json);
    if (status == DSV2_OK)
        status = read_fields(&r);
    if (status == DSV2_OK)
        status = build(&r, tokenizer);
    ds_free(r.sides);
    ds_free(r.by_text);
    ds_free(r.kinds);
    ds_free(r.texts);
    ds_free(r.decoded);
    ds_free(r.string.bytes);
    json_decref(r.model);
    json_decref(r.root);
    return status;
}

/* ---- tokenizer_config.json ---- */

/* Finds the id of bos_token or eos_token, which is "text", {"content": "text"} or null. */
static dsv2_status read_special(const char *path, const json_t *config, const char *name, const dsv2_tokenizer *t,
                                int32_t *id)
{
    const json_t *value = json_object_get(config, name);
    if (ds_json_is_absent(value))
        return DSV2_OK;
    if (json_is_object(value))
        value = json_object_get(value, "content");
    if (!json_is_string(value))
        return wrong_type(path, name, value, "a string or {\"content\": ...}");
    *id = ds_find_token(t, json_string_value(value), json_string_length(value));
    if (*id < 0)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: %s is \"%.*s\", which is not in the vocabulary", path, name,
                       DS_QUOTED_STRING(json_string_value(value)));
    return DSV2_OK;
}

/* The chat template. config["chat_template"] is a string, or [{"name": "default", "template": "..."}, ...]. */
static const json_t *find_template(const json_t *config)
{
    const json_t *template = json_object_get(config, "chat_template");
    size_t index;
    json_t *entry;
    json_array_foreach(template, index, entry) {
        const char *name = json_string_value(json_object_get(entry, "name"));
        if (name != NULL && strcmp(name, "default") == 0)
            return json_object_get(entry, "template");
    }
    return template;
}

/* tokenizer_config.json, or chat_template.json, which has a template alone. */
static dsv2_status configure_by_json(dsv2_tokenizer *t, const char *path, const char *json, size_t size)
{
    json_t *config;
    dsv2_status status = ds_json_parse(path, json, size, config_fields, &config);
    if (status != DSV2_OK)
        return status;
    int32_t bos = -1, eos = -1;
    if ((status = read_special(path, config, "bos_token", t, &bos)) == DSV2_OK &&
        (status = read_special(path, config, "eos_token", t, &eos)) == DSV2_OK) {
        ds_tokenizer_set_special(t, bos, eos);
        const json_t *template = find_template(config);
        if (json_is_string(template))
            status = ds_use_chat_template(t, path, json_string_value(template), json_string_length(template));
    }
    json_decref(config);
    return status;
}

enum { CHAT_TEMPLATE_JINJA = DS_TOKENIZER_FILES - 1 };

const char *const ds_tokenizer_files[DS_TOKENIZER_FILES] = {"tokenizer_config.json", "chat_template.json",
                                                            [CHAT_TEMPLATE_JINJA] = "chat_template.jinja"};

dsv2_status ds_tokenizer_configure(dsv2_tokenizer *t, int file, const char *path, const char *text, size_t size)
{
    return file == CHAT_TEMPLATE_JINJA ? ds_use_chat_template(t, path, text, size)
                                       : configure_by_json(t, path, text, size);
}

/* ---- folders ---- */

/* The path of a file in the folder `path`, or beside the file `path`; NULL without memory. */
static char *path_beside(const char *path, bool folder, const char *name)
{
    const char *slash = strrchr(path, '/');
    if (folder)
        return ds_path_join(path, name);
    if (slash == NULL)
        return ds_copy_string(name);
    char *parent = ds_copy_string(path);
    if (parent == NULL)
        return NULL;
    parent[slash - path + 1] = '\0';
    char *joined = ds_path_join(parent, name);
    ds_free(parent);
    return joined;
}

static dsv2_status read_beside(dsv2_tokenizer *t, int file, const char *path, bool folder)
{
    char *beside = path_beside(path, folder, ds_tokenizer_files[file]), *text = NULL;
    size_t size;
    if (beside == NULL)
        return ds_fail_memory("a path", strlen(path));
    dsv2_status status = DSV2_OK;
    if (ds_exists(beside) && (status = ds_file_read(beside, MAX_FILE, &text, &size)) == DSV2_OK)
        status = ds_tokenizer_configure(t, file, beside, text, size);
    ds_free(text);
    ds_free(beside);
    return status;
}

dsv2_status ds_tokenizer_open(const char *path, dsv2_tokenizer **tokenizer)
{
    bool folder = ds_is_folder(path);
    char *json_path = folder ? ds_path_join(path, "tokenizer.json") : ds_copy_string(path), *text = NULL;
    size_t size;
    dsv2_tokenizer *t = NULL;
    dsv2_status status = json_path == NULL ? ds_fail_memory("a path", strlen(path)) : DSV2_OK;
    if (status == DSV2_OK)
        status = ds_file_read(json_path, MAX_FILE, &text, &size);
    if (status == DSV2_OK)
        status = ds_tokenizer_from_json(json_path, text, size, &t);
    for (int file = 0; file < DS_TOKENIZER_FILES && status == DSV2_OK; file++)
        status = read_beside(t, file, path, folder);
    if (status == DSV2_OK)
        *tokenizer = t;
    else
        ds_tokenizer_destroy(t);
    ds_free(text);
    ds_free(json_path);
    return status;
}

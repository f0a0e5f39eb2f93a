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

enum { MAX_FILE = 256 << 20 }; /* bytes; a vocabulary of 128,000 tokens is 8 MB */

typedef struct reader {
    const char *path;
    const json_t *root, *model;
    ds_text *texts, *merges;
    uint8_t *kinds;
    size_t n_tokens;
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

static dsv2_status check_id(const reader *r, const char *field, const char *name, const json_t *id)
{
    if (!json_is_integer(id))
        return ds_fail(DSV2_ERROR_FORMAT, "%s: the id of %s \"%.200s\" is %s, expected an integer", r->path, field,
                       name, ds_json_kind(id));
    if (json_integer_value(id) < 0 || json_integer_value(id) >= DS_MAX_TOKENS)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: the id of %s \"%.200s\" is %lld, expected 0 to %d", r->path, field, name,
                       (long long)json_integer_value(id), DS_MAX_TOKENS - 1);
    return DSV2_OK;
}

/* Checks every id; sets r->n_tokens to one more than the largest. */
static dsv2_status count_tokens(reader *r, const json_t *vocab, const json_t *added)
{
    const char *key;
    size_t index;
    json_t *value;
    dsv2_status status;
    json_object_foreach((json_t *)vocab, key, value) {
        if ((status = check_id(r, "model.vocab", key, value)) != DSV2_OK)
            return status;
        size_t id = (size_t)json_integer_value(value);
        r->n_tokens = id >= r->n_tokens ? id + 1 : r->n_tokens;
    }
    json_array_foreach(added, index, value) {
        const json_t *content = json_object_get(value, "content"), *number = json_object_get(value, "id");
        if (!json_is_string(content))
            return ds_fail(DSV2_ERROR_FORMAT, "%s: added_tokens[%zu].content is %s, expected a string", r->path, index,
                           ds_json_kind(content));
        if ((status = check_id(r, "added_tokens", json_string_value(content), number)) != DSV2_OK)
            return status;
        size_t id = (size_t)json_integer_value(number);
        r->n_tokens = id >= r->n_tokens ? id + 1 : r->n_tokens;
    }
    if (r->n_tokens == 0)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: model.vocab is empty", r->path);
    return DSV2_OK;
}

static dsv2_status read_added_token(reader *r, size_t index, const json_t *token)
{
    static const char *const refused[] = {"single_word", "lstrip", "rstrip"};
    const json_t *content = json_object_get(token, "content");
    size_t id = (size_t)json_integer_value(json_object_get(token, "id"));
    ds_text text = {json_string_value(content), json_string_length(content)};
    char field[64];
    snprintf(field, sizeof field, "added_tokens[%zu]", index);
    dsv2_status status;
    bool flag;
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        if ((status = read_bool(r->path, field, token, refused[i], false, &flag)) != DSV2_OK)
            return status;
        if (flag)
            return ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: %s.%s is true, which is not supported", r->path, field,
                           refused[i]);
    }
    bool special, normalized;
    if ((status = read_bool(r->path, field, token, "special", false, &special)) != DSV2_OK ||
        (status = read_bool(r->path, field, token, "normalized", !special, &normalized)) != DSV2_OK)
        return status;
    if (r->kinds[id] != 0 && ((r->kinds[id] & DS_TOKEN_ADDED) != 0 || r->texts[id].size != text.size ||
                              memcmp(r->texts[id].data, text.data, text.size) != 0))
        return ds_fail(DSV2_ERROR_FORMAT, "%s: %s.id is %zu, which \"%.200s\" has too", r->path, field, id,
                       r->texts[id].data);
    const json_t *in_vocab = json_object_getn(json_object_get(r->model, "vocab"), text.data, text.size);
    if (in_vocab != NULL && (size_t)json_integer_value(in_vocab) != id)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: %s \"%.200s\" has id %zu, in model.vocab it has %lld", r->path, field,
                       text.data, id, (long long)json_integer_value(in_vocab));
    r->texts[id] = text;
    r->kinds[id] |= DS_TOKEN_ADDED;
    if (special || ds_looks_special(text.data, text.size))
        r->kinds[id] |= DS_TOKEN_SPECIAL;
    if (!normalized)
        r->kinds[id] |= DS_TOKEN_EARLY;
    return DSV2_OK;
}

static dsv2_status read_tokens(reader *r)
{
    const json_t *vocab = json_object_get(r->model, "vocab"), *added = json_object_get(r->root, "added_tokens");
    if (!json_is_object(vocab))
        return wrong_type(r->path, "model.vocab", vocab, "an object");
    if (!ds_json_is_absent(added) && !json_is_array(added))
        return wrong_type(r->path, "added_tokens", added, "an array");
    dsv2_status status = count_tokens(r, vocab, added);
    if (status != DSV2_OK)
        return status;
    r->texts = ds_new(r->n_tokens, sizeof *r->texts);
    r->kinds = ds_new(r->n_tokens, sizeof *r->kinds);
    if (r->texts == NULL || r->kinds == NULL)
        return ds_fail_memory("the vocabulary", r->n_tokens * (sizeof *r->texts + 1));
    const char *key;
    size_t length, index;
    json_t *value;
    json_object_keylen_foreach((json_t *)vocab, key, length, value) {
        size_t id = (size_t)json_integer_value(value);
        if (r->kinds[id] != 0)
            return ds_fail(DSV2_ERROR_FORMAT, "%s: model.vocab gives id %zu to both \"%.200s\" and \"%.200s\"", r->path,
                           id, r->texts[id].data, key);
        r->texts[id] = (ds_text){key, length};
        r->kinds[id] = DS_TOKEN_LETTERS;
    }
    json_array_foreach(added, index, value)
        if ((status = read_added_token(r, index, value)) != DSV2_OK)
            return status;
    return DSV2_OK;
}

/* ---- merges ---- */

/* Reads a merge in either form: "a b" or ["a", "b"]. */
static dsv2_status read_merge(const reader *r, size_t index, const json_t *merge, ds_text parts[2])
{
    if (json_is_string(merge)) {
        const char *text = json_string_value(merge);
        size_t size = json_string_length(merge);
        const char *space = memchr(text, ' ', size);
        if (space == NULL || memchr(space + 1, ' ', size - (size_t)(space - text) - 1) != NULL)
            return ds_fail(DSV2_ERROR_FORMAT,
                           "%s: model.merges[%zu] is \"%.200s\", expected two tokens with a space between",
                           r->path, index, text);
        parts[0] = (ds_text){text, (size_t)(space - text)};
        parts[1] = (ds_text){space + 1, size - parts[0].size - 1};
        return DSV2_OK;
    }
    if (!json_is_array(merge) || json_array_size(merge) != 2 || !json_is_string(json_array_get(merge, 0)) ||
        !json_is_string(json_array_get(merge, 1)))
        return ds_fail(DSV2_ERROR_FORMAT, "%s: model.merges[%zu] is %s, expected \"a b\" or [\"a\", \"b\"]", r->path,
                       index, ds_json_kind(merge));
    for (size_t i = 0; i < 2; i++)
        parts[i] = (ds_text){json_string_value(json_array_get(merge, i)), json_string_length(json_array_get(merge, i))};
    return DSV2_OK;
}

static dsv2_status read_merges(reader *r)
{
    const json_t *merges = json_object_get(r->model, "merges");
    if (!json_is_array(merges))
        return wrong_type(r->path, "model.merges", merges, "an array");
    r->merges = ds_new(json_array_size(merges), 2 * sizeof *r->merges);
    if (r->merges == NULL)
        return ds_fail_memory("the merges", json_array_size(merges) * 2 * sizeof *r->merges);
    size_t index;
    json_t *merge;
    dsv2_status status;
    json_array_foreach(merges, index, merge)
        if ((status = read_merge(r, index, merge, &r->merges[2 * index])) != DSV2_OK)
            return status;
    return DSV2_OK;
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
        return ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: model.type is \"%.100s\", expected BPE", r->path,
                       json_string_value(type));
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
        return ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: model.%s is %s \"%.100s\", expected null", r->path, affixes[i],
                       ds_json_kind(affix), json_is_string(affix) ? json_string_value(affix) : "");
    }
    return DSV2_OK;
}

/* Checks the normalizer, which must change nothing, or the decoder, which must be ByteLevel: `field` is absent, of type
 * `allowed`, or a Sequence of these in its member `list`. */
static dsv2_status check_step(const reader *r, const char *field, const char *list, const char *allowed)
{
    const char *path = r->path;
    const json_t *step = json_object_get(r->root, field);
    if (ds_json_is_absent(step))
        return DSV2_OK;
    const char *type = read_type(path, field, step);
    if (type == NULL)
        return DSV2_ERROR_FORMAT;
    if (strcmp(type, allowed) == 0)
        return DSV2_OK;
    if (strcmp(type, "Sequence") != 0)
        return ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: %s of type \"%.100s\" is not supported", path, field, type);
    const json_t *members = json_object_get(step, list);
    if (!json_is_array(members))
        return ds_fail(DSV2_ERROR_FORMAT, "%s: %s.%s is %s, expected an array", path, field, list,
                       ds_json_kind(members));
    size_t index;
    json_t *member;
    json_array_foreach(members, index, member) {
        if ((type = read_type(path, field, member)) == NULL)
            return DSV2_ERROR_FORMAT;
        if (strcmp(type, allowed) != 0)
            return ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: %s.%s[%zu] of type \"%.100s\" is not supported", path, field,
                           list, index, type);
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
        return ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: %s.behavior is \"%.100s\", expected Isolated", t->path, field,
                       json_string_value(behavior));
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
        return ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: %s of type \"%.100s\" comes after ByteLevel", t->path, field, type);
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
        return ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: %s of type \"%.100s\" is not supported", t->path, field, type);
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
        (status = check_step(r, "normalizer", "normalizers", "")) != DSV2_OK ||
        (status = check_step(r, "decoder", "decoders", "ByteLevel")) != DSV2_OK ||
        (status = read_tokens(r)) != DSV2_OK ||
        (status = read_merges(r)) != DSV2_OK)
        return status;
    ds_vocabulary vocabulary = {
        .path = r->path,
        .n_tokens = r->n_tokens,
        .texts = r->texts,
        .kinds = r->kinds,
        .n_merges = json_array_size(json_object_get(r->model, "merges")),
        .merges = r->merges,
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

dsv2_status ds_tokenizer_from_json(const char *path, const char *json, size_t size, dsv2_tokenizer **tokenizer)
{
    json_t *root;
    dsv2_status status = ds_json_parse(path, json, size, &root);
    if (status != DSV2_OK)
        return status;
    reader r = {.path = path, .root = root, .model = json_object_get(root, "model")};
    status = build(&r, tokenizer);
    ds_free(r.merges);
    ds_free(r.kinds);
    ds_free(r.texts);
    json_decref(root);
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
        return ds_fail(DSV2_ERROR_FORMAT, "%s: %s is \"%.200s\", which is not in the vocabulary", path, name,
                       json_string_value(value));
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

dsv2_status ds_tokenizer_configure(dsv2_tokenizer *t, const char *path, const char *json, size_t size)
{
    json_t *config;
    dsv2_status status = ds_json_parse(path, json, size, &config);
    if (status != DSV2_OK)
        return status;
    int32_t bos = -1, eos = -1;
    if ((status = read_special(path, config, "bos_token", t, &bos)) == DSV2_OK &&
        (status = read_special(path, config, "eos_token", t, &eos)) == DSV2_OK) {
        ds_tokenizer_set_special(t, bos, eos);
        const json_t *template = find_template(config);
        if (json_is_string(template))
            ds_use_chat_template(t, json_string_value(template), json_string_length(template));
    }
    json_decref(config);
    return status;
}

/* The path of the tokenizer_config.json in the folder `path`, or beside the file `path`; NULL without memory. */
static char *config_path(const char *path, bool folder)
{
    const char *slash = strrchr(path, '/');
    if (folder)
        return ds_path_join(path, "tokenizer_config.json");
    if (slash == NULL)
        return ds_copy_string("tokenizer_config.json");
    char *parent = ds_copy_string(path);
    if (parent == NULL)
        return NULL;
    parent[slash - path + 1] = '\0';
    char *joined = ds_path_join(parent, "tokenizer_config.json");
    ds_free(parent);
    return joined;
}

dsv2_status ds_tokenizer_open(const char *path, dsv2_tokenizer **tokenizer)
{
    bool folder = ds_is_folder(path);
    char *json_path = folder ? ds_path_join(path, "tokenizer.json") : ds_copy_string(path);
    char *beside = config_path(path, folder), *text = NULL, *config = NULL;
    size_t size, config_size;
    dsv2_tokenizer *t = NULL;
    dsv2_status status;
    if (json_path == NULL || beside == NULL) {
        status = ds_fail_memory("a path", strlen(path) + sizeof "tokenizer_config.json");
        goto done;
    }
    if ((status = ds_file_read(json_path, MAX_FILE, &text, &size)) != DSV2_OK ||
        (status = ds_tokenizer_from_json(json_path, text, size, &t)) != DSV2_OK)
        goto done;
    if (ds_exists(beside) && ((status = ds_file_read(beside, MAX_FILE, &config, &config_size)) != DSV2_OK ||
                               (status = ds_tokenizer_configure(t, beside, config, config_size)) != DSV2_OK))
        goto done;
    *tokenizer = t;
    t = NULL;
done:
    ds_tokenizer_destroy(t);
    ds_free(config);
    ds_free(text);
    ds_free(beside);
    ds_free(json_path);
    return status;
}

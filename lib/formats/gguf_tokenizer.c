/* The vocabulary inside a GGUF, as llama.cpp's converter writes it for byte-level BPE (tokenizer.ggml.model "gpt2"):
 * tokens, each with a type, in the byte alphabet (added tokens as they are); merges as "left right"; the name of the
 * pre-tokenizer. */
#include "formats/container.h"
#include "tokenizer/tokenizer.h"

#include <stdio.h>
#include <string.h>

/* What tokenizer.ggml.token_type says of a token. */
enum { NORMAL = 1, UNKNOWN, CONTROL, USER_DEFINED, UNUSED };

static bool is_text(ds_text text, const char *string)
{
    return text.size == strlen(string) && memcmp(text.data, string, text.size) == 0;
}

/* True for "[PAD100015]" with id 100015: the converter adds such tokens up to the embedding's rows. */
static bool is_padding(ds_text text, size_t id)
{
    char name[32];
    snprintf(name, sizeof name, "[PAD%zu]", id);
    return is_text(text, name);
}

static dsv2_status read_kinds(const ds_container *container, const ds_text *texts, size_t n, uint8_t *kinds)
{
    static const char key[] = "tokenizer.ggml.token_type";
    const void *types;
    size_t n_types;
    dsv2_status status = ds_gguf_array(container, key, DS_GGUF_I32, &types, &n_types);
    if (status != DSV2_OK)
        return status;
    if (n_types != n)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: %s has %zu entries, expected %zu, one a token", container->path, key,
                       n_types, n);
    for (size_t i = 0; i < n; i++) {
        switch (ds_read_u32((const uint8_t *)types + 4 * i)) {
        case NORMAL:
            kinds[i] = DS_TOKEN_LETTERS;
            break;
        case CONTROL:
        case UNKNOWN:
            kinds[i] = DS_TOKEN_ADDED | DS_TOKEN_SPECIAL | DS_TOKEN_EARLY;
            break;
        case USER_DEFINED:
            if (!is_padding(texts[i], i))
                kinds[i] = DS_TOKEN_ADDED | (ds_looks_special(texts[i].data, texts[i].size) ? DS_TOKEN_SPECIAL : 0);
            break;
        case UNUSED:
            break;
        default:
            return ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: %s[%zu] is %d, expected 1 to 5", container->path, key, i,
                           (int)ds_read_u32((const uint8_t *)types + 4 * i));
        }
    }
    return DSV2_OK;
}

/* Splits merges "left right" at the space. `left` has at least one byte. */
static dsv2_status split_merges(const ds_container *container, const ds_text *merges, size_t n, ds_text *parts)
{
    for (size_t i = 0; i < n; i++) {
        ds_text merge = merges[i];
        const char *space = merge.size < 3 ? NULL : memchr(merge.data + 1, ' ', merge.size - 1);
        if (space == NULL)
            return ds_fail(DSV2_ERROR_FORMAT,
                           "%s: tokenizer.ggml.merges[%zu] is \"%.*s\", expected two tokens with a space between",
                           container->path, i, DS_QUOTED(merge));
        parts[2 * i] = (ds_text){merge.data, (size_t)(space - merge.data)};
        parts[2 * i + 1] = (ds_text){space + 1, merge.size - parts[2 * i].size - 1};
    }
    return DSV2_OK;
}

static dsv2_status optional_id(const ds_container *container, const char *key, size_t n, int32_t *id)
{
    uint32_t value;
    *id = -1;
    if (!ds_gguf_has(container, key))
        return DSV2_OK;
    dsv2_status status = ds_gguf_u32(container, key, &value);
    if (status != DSV2_OK)
        return status;
    if (value >= n)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: %s is %u, expected 0 to %zu", container->path, key, value, n - 1);
    *id = (int32_t)value;
    return DSV2_OK;
}

dsv2_status ds_gguf_vocabulary(const ds_container *container, ds_vocabulary_fn use, void *context)
{
    ds_text model, *texts = NULL, *merges = NULL, *parts = NULL;
    uint8_t *kinds = NULL;
    ds_vocabulary v = {.path = container->path};
    dsv2_status status;
    if (!ds_gguf_has(container, "tokenizer.ggml.model"))
        return DSV2_OK;
    if ((status = ds_gguf_string(container, "tokenizer.ggml.model", &model)) != DSV2_OK)
        return status;
    if (is_text(model, "no_vocab"))
        return DSV2_OK;
    if (!is_text(model, "gpt2"))
        return ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: tokenizer.ggml.model is \"%.*s\", expected gpt2 (byte-level BPE)",
                       container->path, DS_QUOTED(model));
    if ((status = ds_gguf_strings(container, "tokenizer.ggml.tokens", &texts, &v.n_tokens)) != DSV2_OK ||
        (status = ds_gguf_strings(container, "tokenizer.ggml.merges", &merges, &v.n_merges)) != DSV2_OK ||
        (status = ds_gguf_string(container, "tokenizer.ggml.pre", &v.pre)) != DSV2_OK ||
        (status = optional_id(container, "tokenizer.ggml.bos_token_id", v.n_tokens, &v.bos_token_id)) != DSV2_OK ||
        (status = optional_id(container, "tokenizer.ggml.eos_token_id", v.n_tokens, &v.eos_token_id)) != DSV2_OK ||
        (ds_gguf_has(container, "tokenizer.chat_template") &&
         (status = ds_gguf_string(container, "tokenizer.chat_template", &v.chat_template)) != DSV2_OK))
        goto done;
    kinds = ds_new(v.n_tokens, sizeof *kinds);
    parts = ds_new(v.n_merges, 2 * sizeof *parts);
    if (kinds == NULL || parts == NULL) {
        status = ds_fail_memory("the vocabulary", v.n_tokens + v.n_merges * 2 * sizeof *parts);
        goto done;
    }
    if ((status = read_kinds(container, texts, v.n_tokens, kinds)) != DSV2_OK ||
        (status = split_merges(container, merges, v.n_merges, parts)) != DSV2_OK)
        goto done;
    v.texts = texts;
    v.kinds = kinds;
    v.merges = parts;
    status = use(context, &v);
done:
    ds_free(parts);
    ds_free(kinds);
    ds_free(merges);
    ds_free(texts);
    return status;
}

static dsv2_status make_tokenizer(void *context, const ds_vocabulary *vocabulary)
{
    return ds_tokenizer_from_vocabulary(vocabulary, context);
}

dsv2_status ds_gguf_tokenizer(const ds_container *container, dsv2_tokenizer **tokenizer)
{
    *tokenizer = NULL;
    return ds_gguf_vocabulary(container, make_tokenizer, tokenizer);
}

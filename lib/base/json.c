#include "base/json.h"

#include <errno.h>
#include <string.h>

/* When the buffer that holds one token cannot grow, jansson 2.14 goes on with a string that is a byte short. A lack of
 * memory must not change what a file says. So the text is parsed as the second member of ["xxx...x", TEXT], with as
 * many x as the text's longest token has bytes: the buffer grows in that string and nowhere else, and the string's
 * length shows whether it did. */
typedef struct json_input {
    const char *text;
    size_t size, at; /* at: bytes delivered so far, those around the text included */
    size_t longest;
} json_input;

static bool in_number_or_word(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
           c == '+' || c == '-' || c == '.';
}

/* A bound on the bytes of any token: strings with their quotes and escapes, numbers and words. */
static size_t longest_token(const char *text, size_t size)
{
    size_t longest = 0, length = 0;
    bool in_string = false;
    for (size_t i = 0; i < size; i++) {
        bool quote = text[i] == '"', begins = quote && !in_string;
        if (in_string && text[i] == '\\' && i + 1 < size) {
            length += 2;
            i++;
        } else if (begins || (!in_string && !in_number_or_word(text[i]))) {
            length = 1;
        } else {
            length++;
        }
        in_string = begins || (in_string && !quote);
        longest = length > longest ? length : longest;
    }
    return longest;
}

static size_t deliver(void *buffer, size_t size, void *user)
{
    static const char before[] = "[\"", between[] = "\",\n", after[] = "\n]";
    json_input *s = user;
    const struct {
        const char *bytes; /* NULL: x */
        size_t size;
    } pieces[] = {{before, 2}, {NULL, s->longest}, {between, 3}, {s->text, s->size}, {after, 2}};
    size_t begin = 0;
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; begin += pieces[i++].size) {
        if (s->at >= begin + pieces[i].size)
            continue;
        size_t from = s->at - begin, n = pieces[i].size - from < size ? pieces[i].size - from : size;
        if (pieces[i].bytes == NULL)
            memset(buffer, 'x', n);
        else
            memcpy(buffer, pieces[i].bytes + from, n);
        s->at += n;
        return n;
    }
    return 0;
}

dsv2_status ds_json_parse(const char *path, const char *text, size_t size, json_t **object)
{
    json_error_t error;
    json_input s = {.text = text, .size = size, .longest = longest_token(text, size)};
    errno = 0; /* tells a failed allocation, which may look like an error of syntax */
    json_t *both = json_load_callback(deliver, &s, JSON_REJECT_DUPLICATES, &error);
    if (both == NULL && errno != ENOMEM) {
        json_t *alone = json_loadb(text, size, JSON_REJECT_DUPLICATES, &error); /* for the place in the text itself */
        if (alone == NULL && json_error_code(&error) != json_error_out_of_memory)
            return ds_fail(DSV2_ERROR_FORMAT, "%s: line %d, column %d: not valid JSON: %s", path, error.line,
                           error.column, error.text);
        json_decref(alone);
    }
    dsv2_status status = DSV2_OK;
    json_t *root = json_array_get(both, 1);
    if (both == NULL || json_string_length(json_array_get(both, 0)) != s.longest)
        status = ds_fail_memory("parsed JSON", size);
    else if (json_array_size(both) != 2)
        status = ds_fail(DSV2_ERROR_FORMAT, "%s: not valid JSON: there is more behind the first value", path);
    else if (!json_is_object(root))
        status = ds_fail(DSV2_ERROR_FORMAT, "%s: is %s, expected a JSON object", path, ds_json_kind(root));
    else
        *object = json_incref(root);
    json_decref(both);
    return status;
}

const char *ds_json_kind(const json_t *value)
{
    if (value == NULL)
        return "missing";
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a number with a fraction or exponent";
    case JSON_TRUE:
        return "true";
    case JSON_FALSE:
        return "false";
    case JSON_NULL:
        return "null";
    }
    return "unknown";
}

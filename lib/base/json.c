#include "base/json.h"

#include <errno.h>

dsv2_status dsv2_json_parse(const char *path, const char *text, size_t size, json_t **object)
{
    json_error_t error;
    errno = 0;
    json_t *root = json_loadb(text, size, JSON_REJECT_DUPLICATES, &error);
    if (root == NULL) {
        /* Most failed allocations inside jansson end the parse without any error text, or look like a token that is no good. */
        if (json_error_code(&error) == json_error_out_of_memory || error.text[0] == '\0' || errno == ENOMEM)
            return dsv2_fail_memory("parsed JSON", size);
        return dsv2_fail(DSV2_ERROR_FORMAT, "%s: line %d, column %d: not valid JSON: %s", path, error.line, error.column,
                         error.text);
    }
    if (!json_is_object(root)) {
        dsv2_status status = dsv2_fail(DSV2_ERROR_FORMAT, "%s: is %s, expected a JSON object", path, dsv2_json_kind(root));
        json_decref(root);
        return status;
    }
    *object = root;
    return DSV2_OK;
}

const char *dsv2_json_kind(const json_t *value)
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

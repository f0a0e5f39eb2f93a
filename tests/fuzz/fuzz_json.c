/* Text that jansson's parser accepts is read as jansson reads it, unless it is deeper or would take more memory than
 * promised. Text that the library accepts is what jansson accepts, apart from the numbers and words that jansson cannot
 * hold. Walking finds what parsing finds. */
#include "base/json.h"
#include "../support/must.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Whether every member that walking finds is in the object, and the object has no others. */
static void check_walk(const ds_json *json, json_t *object)
{
    size_t n = 0;
    ds_json_string name = {0};
    ds_json_walk walk = ds_json_begin(json->text);
    for (; ds_json_next(&walk); n++) {
        json_t *value = NULL;
        int64_t number;
        MUST(ds_json_decode(json, walk.name, &name) == DSV2_OK);
        const json_t *expected = json_object_getn(object, name.bytes, name.size);
        if (ds_json_read(json, walk.value, NULL, &value) == DSV2_OK)
            MUST(json_equal(value, expected));
        MUST(ds_json_is_integer(walk.value, &number) == json_is_integer(expected));
        MUST(!json_is_integer(expected) || number == json_integer_value(expected));
        MUST(ds_json_is_nothing(walk.value) == json_is_null(expected));
        json_decref(value);
    }
    MUST(n == json_object_size(object));
    ds_free(name.bytes);
}

static bool says(const char *message, const char *words) { return strstr(message, words) != NULL; }

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const names[] = {"a", "model", NULL};
    const char *text = (const char *)data;
    json_error_t error;
    ds_json json;
    json_t *expected = json_loadb(text, size, JSON_REJECT_DUPLICATES, &error), *object = NULL, *part = NULL;
    dsv2_status status = ds_json_check("x.json", text, size, &json);
    if (status == DSV2_OK) {
        status = ds_json_read(&json, json.text, NULL, &object);
        if (ds_json_read(&json, json.text, names, &part) == DSV2_OK)
            MUST(json_object_size(part) <= 2);
        if (status == DSV2_OK && part != NULL)
            for (size_t i = 0; names[i] != NULL; i++)
                MUST(json_object_get(object, names[i]) == json_object_get(part, names[i]) ||
                     json_equal(json_object_get(object, names[i]), json_object_get(part, names[i])));
    }
    if (status == DSV2_OK)
        check_walk(&json, object);
    if (expected != NULL && json_is_object(expected)) {
        /* jansson skips a NUL behind a number or a word. */
        if (status != DSV2_OK)
            MUST(says(dsv2_last_error(), "more than 128 deep") || says(dsv2_last_error(), "bytes of memory") ||
                 memchr(data, '\0', size) != NULL);
        else
            MUST(json_equal(object, expected));
    } else if (status == DSV2_OK) {
        MUST(says(error.text, "invalid token") || says(error.text, "too big integer") ||
             says(error.text, "too big negative integer") || says(error.text, "real number overflow"));
    }
    json_decref(part);
    json_decref(object);
    json_decref(expected);
    return 0;
}

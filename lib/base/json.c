#include "base/json.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What becomes of words that are no JSON: strings that no writer has reason to write. */
static const char *const words[] = {"\x7fNaN", "\x7fInfinity", "\x7f-Infinity"};

/* Bounds on what jansson takes, malloc's own 16 bytes for a block included. */
enum {
    OBJECT_COST = 320, /* with the first 8 buckets */
    ARRAY_COST = 160,  /* with the first 8 elements */
    STRING_COST = 80,  /* and three times the bytes: the value's, and those of a buffer that doubles */
    SCALAR_COST = 48,
    MEMBER_COST = 144, /* with two buckets */
    ELEMENT_COST = 24
};

/* The first object of a process makes other threads wait until jansson's seed is there. A child of a fork at that
 * moment would wait for ever. So the seed is made when the library is loaded. */
__attribute__((constructor)) static void seed_objects(void) { json_object_seed(0); }

/* ---- strings and numbers ---- */

static dsv2_status fail_at(const ds_json *json, const char *at, const char *wrong)
{
    int line, column;
    ds_json_place(json, at, &line, &column);
    return ds_fail(DSV2_ERROR_FORMAT, "%s: line %d, column %d: not valid JSON: %s", json->path, line, column, wrong);
}

dsv2_status ds_json_decode(const ds_json *json, ds_text value, ds_json_string *string)
{
    if (!ds_grow(&string->bytes, &string->capacity, value.size, 1))
        return ds_fail_memory("a string", value.size);
    const char *from = value.data + 1, *end = value.data + value.size - 1;
    char *at = string->bytes;
    while (from < end) {
        const char *escape = memchr(from, '\\', (size_t)(end - from));
        size_t plain = (size_t)((escape != NULL ? escape : end) - from);
        memcpy(at, from, plain);
        at += plain;
        from += plain;
        if (escape != NULL && (at = ds_decode_escape(&from, at)) == NULL)
            return fail_at(json, escape, "U+0000, or half of a surrogate pair");
    }
    *at = '\0';
    string->size = (size_t)(at - string->bytes);
    return DSV2_OK;
}

/* The digits behind the e of a number. Beyond a limit it makes no difference how large they are. */
static int64_t read_exponent(const char *at, const char *end)
{
    const int64_t limit = INT64_C(1) << 40;
    int64_t sum = 0;
    bool negative = *at == '-';
    for (at += negative || *at == '+'; at < end; at++)
        if (sum < limit)
            sum = 10 * sum + (*at - '0');
    return negative ? -sum : sum;
}

/* The double nearest to a number. strtod takes the locale's point, which other threads may change. So it gets none:
 * "125e-2" for "12.5e-1". */
static dsv2_status read_real(ds_text number, ds_json_string *buffer, double *value)
{
    enum { EXPONENT = 32 };
    if (!ds_grow(&buffer->bytes, &buffer->capacity, number.size + EXPONENT, 1))
        return ds_fail_memory("a number", number.size + EXPONENT);
    const char *from = number.data, *end = from + number.size;
    char *at = buffer->bytes;
    int64_t exponent = 0;
    bool fraction = false;
    for (; from < end && *from != 'e' && *from != 'E'; from++) {
        if (*from == '.') {
            fraction = true;
        } else {
            *at++ = *from;
            exponent -= fraction;
        }
    }
    if (from < end)
        exponent += read_exponent(from + 1, end);
    snprintf(at, EXPONENT, "e%lld", (long long)exponent);
    *value = strtod(buffer->bytes, NULL);
    if (isinf(*value))
        *value = copysign(DBL_MAX, *value);
    return DSV2_OK;
}

/* ---- values ---- */

typedef struct builder {
    const ds_json *json;
    ds_scanner scanner;
    const char *begin; /* of what is parsed */
    uint64_t left;     /* bytes of memory that values may still take */
    ds_json_string string;
} builder;

static dsv2_status pay(builder *b, uint64_t cost)
{
    if (cost <= b->left) {
        b->left -= cost;
        return DSV2_OK;
    }
    int line, column;
    ds_json_place(b->json, b->begin, &line, &column);
    return ds_fail(DSV2_ERROR_UNSUPPORTED,
                   "%s: line %d, column %d: the values would take more than %d times the file's bytes of memory",
                   b->json->path, line, column, DS_JSON_FACTOR);
}

static dsv2_status build(builder *b, json_t **value);

/* Steps behind the comma, if one stands there. False, and behind the end, if the array or object ends. */
static bool find_next(ds_scanner *s)
{
    ds_skip_space(s);
    if (*s->at == ',')
        s->at++;
    ds_skip_space(s);
    if (*s->at != ']' && *s->at != '}')
        return true;
    s->at++;
    return false;
}

static dsv2_status build_array(builder *b, json_t *array)
{
    while (find_next(&b->scanner)) {
        json_t *element;
        dsv2_status status = pay(b, ELEMENT_COST);
        if (status != DSV2_OK || (status = build(b, &element)) != DSV2_OK)
            return status;
        if (json_array_append_new(array, element) != 0)
            return ds_fail_memory("parsed JSON", b->json->text.size);
    }
    return DSV2_OK;
}

static bool is_wanted(ds_text name, const char *const *names)
{
    while (*names != NULL && !ds_json_is_name(name, *names))
        names++;
    return *names != NULL;
}

/* Parses the member whose name begins here, and adds it to the object if `names` (NULL: all) has its name. */
static dsv2_status build_member(builder *b, json_t *object, const char *const *names)
{
    ds_scanner *s = &b->scanner;
    ds_text name = {s->at, 0};
    json_t *value;
    dsv2_status status = DSV2_OK;
    (void)ds_skip_string(s);
    name.size = (size_t)(s->at - name.data);
    ds_skip_space(s);
    s->at++; /* the colon */
    ds_skip_space(s);
    if (names != NULL && !is_wanted(name, names)) {
        (void)ds_skip_value(s);
        return DSV2_OK;
    }
    if ((status = pay(b, MEMBER_COST + 3 * (uint64_t)name.size)) != DSV2_OK || (status = build(b, &value)) != DSV2_OK)
        return status;
    if ((status = ds_json_decode(b->json, name, &b->string)) == DSV2_OK &&
        json_object_getn(object, b->string.bytes, b->string.size) != NULL)
        status = fail_at(b->json, name.data, "duplicate object key");
    if (status != DSV2_OK)
        json_decref(value);
    else if (json_object_setn_new_nocheck(object, b->string.bytes, b->string.size, value) != 0)
        status = ds_fail_memory("parsed JSON", b->json->text.size);
    return status;
}

static dsv2_status build_members(builder *b, json_t *object, const char *const *names)
{
    dsv2_status status = DSV2_OK;
    while (status == DSV2_OK && find_next(&b->scanner))
        status = build_member(b, object, names);
    return status;
}

/* Parses the array or the object that begins here. */
static dsv2_status build_container(builder *b, const char *const *names, json_t **value)
{
    bool object = *b->scanner.at++ == '{';
    dsv2_status status = pay(b, object ? OBJECT_COST : ARRAY_COST);
    if (status != DSV2_OK)
        return status;
    json_t *container = object ? json_object() : json_array();
    if (container == NULL)
        return ds_fail_memory("parsed JSON", b->json->text.size);
    status = object ? build_members(b, container, names) : build_array(b, container);
    if (status == DSV2_OK)
        *value = container;
    else
        json_decref(container);
    return status;
}

/* Parses a string, number or word. */
static dsv2_status build_scalar(builder *b, json_t **value)
{
    ds_text text = {b->scanner.at, 0};
    int64_t integer;
    double real = 0;
    (void)ds_skip_scalar(&b->scanner);
    text.size = (size_t)(b->scanner.at - text.data);
    char first = text.data[0], last = text.data[text.size - 1];
    bool string = first == '"', word = last == 'y' || first == 'N';
    dsv2_status status = pay(b, string || word ? STRING_COST + 3 * (uint64_t)text.size : SCALAR_COST);
    if (status == DSV2_OK && string)
        status = ds_json_decode(b->json, text, &b->string);
    if (status != DSV2_OK)
        return status;
    if (string) {
        *value = json_stringn_nocheck(b->string.bytes, b->string.size);
    } else if (word) {
        *value = json_string_nocheck(words[first == 'N' ? 0 : first == 'I' ? 1 : 2]);
    } else if (first == 't' || first == 'f') {
        *value = json_boolean(first == 't');
    } else if (first == 'n') {
        *value = json_null();
    } else if (ds_json_is_integer(text, &integer)) {
        *value = json_integer(integer);
    } else {
        if ((status = read_real(text, &b->string, &real)) != DSV2_OK)
            return status;
        *value = json_real(real);
    }
    return *value != NULL ? DSV2_OK : ds_fail_memory("parsed JSON", b->json->text.size);
}

static dsv2_status build(builder *b, json_t **value)
{
    char first = *b->scanner.at;
    return first == '{' || first == '[' ? build_container(b, NULL, value) : build_scalar(b, value);
}

dsv2_status ds_json_read(const ds_json *json, ds_text value, const char *const *names, json_t **parsed)
{
    builder b = {
        .json = json,
        .scanner = {.at = value.data, .end = value.data + value.size},
        .begin = value.data,
        .left = (uint64_t)DS_JSON_FACTOR * json->text.size + DS_JSON_SLACK + json->more_memory,
    };
    dsv2_status status = *value.data == '{' ? build_container(&b, names, parsed) : build(&b, parsed);
    ds_free(b.string.bytes);
    return status;
}

dsv2_status ds_json_parse(const char *path, const char *text, size_t size, const char *const *names, json_t **object)
{
    ds_json json;
    dsv2_status status = ds_json_check(path, text, size, &json);
    return status == DSV2_OK ? ds_json_read(&json, json.text, names, object) : status;
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
        for (size_t i = 0; i < sizeof words / sizeof *words; i++)
            if (strcmp(json_string_value(value), words[i]) == 0)
                return words[i] + 1;
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

/* JSON in files, which are untrusted and may be large. What nobody reads costs nothing and stops nothing: numbers of
 * any size, NaN, unknown objects. Three things are kept apart:
 *   - the scanner (json_scan.c) checks a whole file once: grammar, UTF-8, depth. It takes no memory and never recurses.
 *   - readers walk over the checked text. A value is a span of that text until a reader wants it.
 *   - what is wanted, which is little of a large file, becomes jansson's values (json.c). jansson's own parser is not
 *     used: 2.14 writes outside its buffers when memory runs out while a string is read. */
#ifndef DS_LIB_BASE_JSON_H
#define DS_LIB_BASE_JSON_H

#include "base/json_scan.h"

#include <jansson.h>

/* A bound on the memory of parsed values: DS_JSON_FACTOR times the file and DS_JSON_SLACK bytes more. An empty array
 * of two bytes takes a hundred in jansson. */
enum { DS_JSON_FACTOR = 8, DS_JSON_SLACK = 64 << 10 };

/* Parses a value of a checked text; of an object the members that `names` (ended by NULL; NULL: all) lists. Integers
 * beyond 64 bits become real numbers, and numbers beyond these the largest. NaN and Infinity become strings that
 * ds_json_kind knows. DSV2_ERROR_FORMAT for a name that is there twice and for strings that ds_json_decode refuses,
 * DSV2_ERROR_UNSUPPORTED for values that would take more memory than the file may. The caller releases *parsed with
 * json_decref. */
dsv2_status ds_json_read(const ds_json *json, ds_text value, const char *const *names, json_t **parsed);

/* Checks a file's text and parses the members that `names` lists. */
dsv2_status ds_json_parse(const char *path, const char *text, size_t size, const char *const *names, json_t **object);

/* A string's bytes, in memory that grows and is used again: a NUL follows them. The owner ds_frees `bytes`. */
typedef struct ds_json_string {
    char *bytes;
    size_t size, capacity;
} ds_json_string;

/* Decodes a string of a checked text. Refuses U+0000, since text is handed on with a NUL behind it, and half of a
 * surrogate pair, which no UTF-8 holds. */
dsv2_status ds_json_decode(const ds_json *json, ds_text value, ds_json_string *string);

/* What a value is, for messages: "a string", "null", ...; "missing" for NULL. */
const char *ds_json_kind(const json_t *value);

/* ds_json_is_nothing of a parsed value. */
static inline bool ds_json_is_absent(const json_t *value) { return value == NULL || json_is_null(value); }

#endif

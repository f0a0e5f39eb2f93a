/* The text of JSON: what checks it, and what walks over it. Takes no memory. */
#ifndef DS_LIB_BASE_JSON_SCAN_H
#define DS_LIB_BASE_JSON_SCAN_H

#include "base/base.h"

/* A bound on arrays and objects in one another, whose parsing and freeing recurse: 128 levels fit a stack of 64 KiB.
 * Published files have 8 levels. */
enum { DS_JSON_DEPTH = 128 };

/* The text of a file, checked. Path and text are the reader's. */
typedef struct ds_json {
    const char *path; /* for messages */
    ds_text text;
    uint64_t more_memory; /* bytes that values may take beyond the bound of files: for a text of the host's own */
} ds_json;

/* Checks that the text is one JSON object. Allowed beyond the grammar, as in Python: NaN, Infinity and -Infinity. The
 * message of DSV2_ERROR_FORMAT names path, line and column. */
dsv2_status ds_json_check(const char *path, const char *text, size_t size, ds_json *json);

/* Whether a value is missing (no data) or null: the writers of these files mean the same by both. */
bool ds_json_is_nothing(ds_text value);

/* The first byte tells what a value is: '{', '[', '"'. False for a missing value. */
static inline bool ds_json_is(ds_text value, char first) { return value.size > 0 && value.data[0] == first; }

/* What a value is, for messages: as ds_json_kind. */
const char *ds_json_text_kind(ds_text value);

/* Whether a value is an integer that fits; stored in *number. */
bool ds_json_is_integer(ds_text value, int64_t *number);

/* The members of an object or the elements of an array, of a checked text:
 *     ds_json_walk walk = ds_json_begin(value);
 *     while (ds_json_next(&walk)) ... walk.name, walk.value ...
 * A value of another kind has none. */
typedef struct ds_json_walk {
    ds_text rest;
    bool object;
    ds_text name; /* of a member: as it is spelled, with its quotes */
    ds_text value;
} ds_json_walk;

ds_json_walk ds_json_begin(ds_text value);
bool ds_json_next(ds_json_walk *walk);

/* Whether a member's name, which may be spelled with escapes, is this one. */
bool ds_json_is_name(ds_text spelled, const char *name);

/* Finds members of an object by name: values[i] is that of names[i], without data if the object has none.
 * DSV2_ERROR_FORMAT if one is there twice. */
dsv2_status ds_json_find(const ds_json *json, ds_text object, size_t n, const char *const *names, ds_text *values);

/* A string without escapes is the bytes between its quotes: true, and *text is these. */
bool ds_json_is_plain(ds_text string, ds_text *text);

/* Line and column, both from 1, of a place in the text. */
void ds_json_place(const ds_json *json, const char *at, int *line, int *column);

/* ---- the scanner's steps, for json.c ---- */

typedef struct ds_scanner {
    const char *at, *end;
    const char *wrong; /* what is not JSON at `at`; NULL: nothing */
} ds_scanner;

void ds_skip_space(ds_scanner *s);

/* Each is false, with `wrong` set, where no such thing stands. In a checked text they cannot fail. */
bool ds_skip_string(ds_scanner *s);
bool ds_skip_scalar(ds_scanner *s); /* a string, number or word */
bool ds_skip_value(ds_scanner *s);  /* with all that is in it */

/* Writes the bytes, at most 4, that the escape at *from means, and steps behind the escape. Returns where the bytes
 * end. NULL: the escape means U+0000, or half of a surrogate pair. */
char *ds_decode_escape(const char **from, char *at);

#endif

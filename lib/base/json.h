/* JSON in files, read by jansson. Here alone jansson's errors become statuses. */
#ifndef DS_LIB_BASE_JSON_H
#define DS_LIB_BASE_JSON_H

#include "base/base.h"

#include <jansson.h>

/* Parses text that must be one JSON object without duplicate names. jansson bounds the depth. The caller releases
 * *object with json_decref. The message of DSV2_ERROR_FORMAT names path, line and column. */
dsv2_status ds_json_parse(const char *path, const char *text, size_t size, json_t **object);

/* What a value is, for messages: "a string", "null", ...; "missing" for NULL. */
const char *ds_json_kind(const json_t *value);

/* Whether an object's member is missing (NULL) or null: the writers of these files mean the same by both. */
static inline bool ds_json_is_absent(const json_t *value) { return value == NULL || json_is_null(value); }

#endif

/* JSON out of files, read by jansson: the one place that turns its errors into ours. */
#ifndef DS_LIB_BASE_JSON_H
#define DS_LIB_BASE_JSON_H

#include "base/base.h"

#include <jansson.h>

/* Parses text that must be one JSON object without duplicate names. jansson itself bounds the depth. The caller releases
 * *object with json_decref. DSV2_ERROR_FORMAT names path, line and column. */
dsv2_status ds_json_parse(const char *path, const char *text, size_t size, json_t **object);

/* What a value is, for messages: "a string", "null", ... */
const char *ds_json_kind(const json_t *value);

#endif

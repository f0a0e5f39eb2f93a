/* Values: what is true, what is equal, what comes before what, and how they are written. All as Python has it. */
#include "template/parts.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

const char *ds_value_kind(ds_value value)
{
    static const char *const kinds[] = {"undefined", "none",    "a boolean", "an integer", "a float", "a string",
                                        "a list",    "a tuple", "a mapping", "a namespace", "a macro",
                                        "a function", "a loop"};
    return kinds[value.type];
}

bool ds_truth(ds_value v)
{
    switch (v.type) {
    case DS_VALUE_UNDEFINED:
    case DS_VALUE_NONE: return false;
    case DS_VALUE_BOOL: return v.truth;
    case DS_VALUE_INT: return v.number != 0;
    case DS_VALUE_FLOAT: return v.real != 0;
    case DS_VALUE_STRING: return v.string->size > 0;
    case DS_VALUE_LIST:
    case DS_VALUE_TUPLE: return v.list->n > 0;
    case DS_VALUE_DICT: return v.dict->n > 0;
    default: return true;
    }
}

static bool lists_equal(ds_rendering *r, const ds_list *a, const ds_list *b)
{
    if (a->n != b->n)
        return false;
    for (size_t i = 0; i < a->n; i++)
        if (!ds_equal(r, a->values[i], b->values[i]))
            return false;
    return true;
}

static bool dicts_equal(ds_rendering *r, const ds_dict *a, const ds_dict *b)
{
    if (a->n != b->n)
        return false;
    for (size_t i = 0; i < a->n; i++) {
        const ds_value *other = ds_dict_get(r, b, a->entries[i].key);
        if (other == NULL || !ds_equal(r, a->entries[i].value, *other))
            return false;
    }
    return true;
}

static bool equal(ds_rendering *r, ds_value a, ds_value b)
{
    if (ds_is_number(a) && ds_is_number(b))
        return a.type == DS_VALUE_FLOAT || b.type == DS_VALUE_FLOAT ? ds_real(a) == ds_real(b)
                                                                    : ds_whole(a) == ds_whole(b);
    if (a.type != b.type)
        return false;
    switch (a.type) {
    case DS_VALUE_STRING:
        return a.string->size == b.string->size && ds_spend(r, a.string->size / 64) &&
               ds_compare_strings(a.string, b.string) == 0;
    case DS_VALUE_LIST:
    case DS_VALUE_TUPLE: return lists_equal(r, a.list, b.list);
    case DS_VALUE_DICT: return dicts_equal(r, a.dict, b.dict);
    case DS_VALUE_NAMESPACE: return a.dict == b.dict;
    case DS_VALUE_MACRO: return a.macro == b.macro;
    case DS_VALUE_LOOP: return a.loop == b.loop;
    default: return true;
    }
}

bool ds_equal(ds_rendering *r, ds_value a, ds_value b)
{
    bool result = ds_enter(r) && equal(r, a, b);
    ds_leave(r);
    return result;
}

int ds_compare(ds_rendering *r, ds_value a, ds_value b)
{
    if (ds_is_number(a) && ds_is_number(b)) {
        if (a.type == DS_VALUE_FLOAT || b.type == DS_VALUE_FLOAT)
            return (ds_real(a) > ds_real(b)) - (ds_real(a) < ds_real(b));
        return (ds_whole(a) > ds_whole(b)) - (ds_whole(a) < ds_whole(b));
    }
    if (ds_is_string(a) && ds_is_string(b))
        return ds_compare_strings(a.string, b.string);
    ds_refuse(r, "%s and %s have no order", ds_value_kind(a), ds_value_kind(b));
    return 0;
}

/* ---- lists and mappings ---- */

/* Room for one more element in an array of the rendering's. */
static void *grown(ds_rendering *r, void *array, size_t n, size_t *capacity, size_t size)
{
    if (n < *capacity)
        return array;
    size_t more = *capacity < 4 ? 8 : 2 * *capacity;
    void *larger = ds_render_new(r, more, size);
    if (larger == NULL)
        return NULL;
    if (n > 0)
        memcpy(larger, array, n * size);
    *capacity = more;
    return larger;
}

ds_value ds_new_list(ds_rendering *r, size_t capacity)
{
    ds_list *list = ds_render_new(r, 1, sizeof *list);
    if (list == NULL)
        return (ds_value){0};
    if (capacity > 0) {
        list->values = ds_render_new(r, capacity, sizeof *list->values);
        list->capacity = list->values != NULL ? capacity : 0;
    }
    return (ds_value){.type = DS_VALUE_LIST, .list = list};
}

void ds_list_add(ds_rendering *r, ds_list *list, ds_value value)
{
    if (list == NULL || ds_failed(r))
        return;
    ds_value *values = grown(r, list->values, list->n, &list->capacity, sizeof *values);
    if (values == NULL)
        return;
    list->values = values;
    list->values[list->n++] = value;
}

ds_value ds_new_dict(ds_rendering *r, size_t capacity)
{
    ds_dict *dict = ds_render_new(r, 1, sizeof *dict);
    if (dict == NULL)
        return (ds_value){0};
    if (capacity > 0) {
        dict->entries = ds_render_new(r, capacity, sizeof *dict->entries);
        dict->capacity = dict->entries != NULL ? capacity : 0;
    }
    return (ds_value){.type = DS_VALUE_DICT, .dict = dict};
}

ds_value *ds_dict_get(ds_rendering *r, const ds_dict *dict, ds_value key)
{
    for (size_t i = 0; i < dict->n && !ds_failed(r); i++)
        if (ds_equal(r, dict->entries[i].key, key))
            return &dict->entries[i].value;
    return NULL;
}

ds_value *ds_dict_find(const ds_dict *dict, const char *key)
{
    for (size_t i = 0; i < dict->n; i++)
        if (ds_is_string(dict->entries[i].key) && ds_string_is(dict->entries[i].key.string, key))
            return &dict->entries[i].value;
    return NULL;
}

void ds_dict_set(ds_rendering *r, ds_dict *dict, ds_value key, ds_value value)
{
    if (dict == NULL || ds_failed(r))
        return;
    ds_value *place = ds_dict_get(r, dict, key);
    if (place != NULL) {
        *place = value;
        return;
    }
    ds_entry *entries = grown(r, dict->entries, dict->n, &dict->capacity, sizeof *entries);
    if (entries == NULL)
        return;
    dict->entries = entries;
    dict->entries[dict->n++] = (ds_entry){key, value};
}

static ds_list *characters_of(ds_rendering *r, const ds_string *string)
{
    ds_list *list = ds_new_list(r, 0).list;
    for (size_t at = 0; at < string->size && !ds_failed(r);) {
        size_t n = ds_character_size(string, at);
        ds_list_add(r, list, ds_part(r, string, at, n));
        at += n;
    }
    return list;
}

ds_list *ds_elements(ds_rendering *r, ds_value value)
{
    ds_list *list = NULL;
    switch (value.type) {
    case DS_VALUE_LIST:
    case DS_VALUE_TUPLE: return value.list;
    case DS_VALUE_UNDEFINED: return ds_new_list(r, 0).list;
    case DS_VALUE_STRING: return characters_of(r, value.string);
    case DS_VALUE_DICT:
        list = ds_new_list(r, value.dict->n).list;
        for (size_t i = 0; i < value.dict->n; i++)
            ds_list_add(r, list, value.dict->entries[i].key);
        return list;
    default: ds_refuse(r, "%s has no elements", ds_value_kind(value)); return NULL;
    }
}

/* ---- from JSON ---- */

static bool is_word(const char *text, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        char c = text[i];
        if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-'))
            return false;
    }
    return true;
}

/* Where a value stands in the variables. The role of a message is a word of the template's, as if it had been written
 * there, so that "<|" ~ message.role ~ "|>" is a token. Roles elsewhere are data. */
typedef enum place { ELSEWHERE, VARIABLES, MESSAGES, MESSAGE, ROLE } place;

static place place_of_member(place of, const char *name)
{
    if (of == VARIABLES && strcmp(name, "messages") == 0)
        return MESSAGES;
    return of == MESSAGE && strcmp(name, "role") == 0 ? ROLE : ELSEWHERE;
}

static ds_value value_from_json(ds_rendering *r, const json_t *json, place where);

static ds_value string_from_json(ds_rendering *r, const json_t *json, place where)
{
    const char *text = json_string_value(json);
    size_t size = json_string_length(json);
    bool is_role = where == ROLE && is_word(text, size);
    return ds_new_string(r, text, size, is_role ? DS_OF_TEMPLATE : DS_OF_DATA);
}

static ds_value dict_from_json(ds_rendering *r, const json_t *json, place where)
{
    ds_value made = ds_new_dict(r, json_object_size(json));
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)json, key, value) { /* reads alone, but takes no const */
        if (ds_failed(r))
            break;
        /* Keys of an object differ from one another: no search. */
        ds_entry *entry = &made.dict->entries[made.dict->n++];
        entry->key = ds_new_string(r, key, strlen(key), DS_OF_DATA);
        entry->value = value_from_json(r, value, place_of_member(where, key));
    }
    return made;
}

static ds_value from_json(ds_rendering *r, const json_t *json, place where)
{
    switch (json_typeof(json)) {
    case JSON_TRUE: return ds_bool(true);
    case JSON_FALSE: return ds_bool(false);
    case JSON_NULL: return ds_none();
    case JSON_INTEGER: return ds_int(json_integer_value(json));
    case JSON_REAL:
        if (fabs(json_real_value(json)) >= 0x1p63) /* maybe an integer, whose digits are lost */
            return ds_refuse(r, "a number of 2^63 and more is not supported");
        return ds_float(json_real_value(json));
    case JSON_STRING: return string_from_json(r, json, where);
    case JSON_OBJECT: return dict_from_json(r, json, where);
    case JSON_ARRAY: break;
    }
    ds_value made = ds_new_list(r, json_array_size(json));
    for (size_t i = 0; i < json_array_size(json) && !ds_failed(r); i++)
        ds_list_add(r, made.list, value_from_json(r, json_array_get(json, i), where == MESSAGES ? MESSAGE : ELSEWHERE));
    return made;
}

static ds_value value_from_json(ds_rendering *r, const json_t *json, place where)
{
    ds_value value = ds_enter(r) ? from_json(r, json, where) : (ds_value){0};
    ds_leave(r);
    return value;
}

ds_value ds_variables_from_json(ds_rendering *r, const json_t *json) { return value_from_json(r, json, VARIABLES); }

/* ---- writing ---- */

enum { MOST_DIGITS = 17 };

/* Digits and exponent of a positive number: value = 0.d1d2d3... * 10^exponent. The locale's point, which other threads
 * may change, is passed over, and strtod gets none. */
static int shortest_digits(double value, char digits[MOST_DIGITS + 1])
{
    int n = 0, exponent = 0;
    for (int precision = 0; precision < MOST_DIGITS; precision++) {
        char text[40], whole[40];
        snprintf(text, sizeof text, "%.*e", precision, value);
        const char *c = text;
        for (n = 0; *c != 'e' && *c != '\0'; c++)
            if (*c >= '0' && *c <= '9')
                digits[n++] = *c;
        digits[n] = '\0';
        exponent = *c == 'e' ? (int)strtol(c + 1, NULL, 10) : 0;
        snprintf(whole, sizeof whole, "%se%d", digits, exponent - precision);
        if (strtod(whole, NULL) == value)
            break;
    }
    while (n > 1 && digits[n - 1] == '0')
        n--;
    digits[n] = '\0';
    return exponent + 1;
}

size_t ds_print_float(double value, char *text)
{
    if (isnan(value) || isinf(value))
        return (size_t)snprintf(text, 32, "%s", isnan(value) ? "nan" : value < 0 ? "-inf" : "inf");
    const char *sign = signbit(value) ? "-" : "";
    if (value == 0)
        return (size_t)snprintf(text, 32, "%s0.0", sign);
    char digits[MOST_DIGITS + 1];
    int exponent = shortest_digits(fabs(value), digits), n = (int)strlen(digits);
    if (exponent <= -4 || exponent > 16)
        return (size_t)snprintf(text, 32, "%s%c%s%se%c%02d", sign, digits[0], n > 1 ? "." : "", digits + 1,
                                exponent - 1 < 0 ? '-' : '+', abs(exponent - 1));
    if (exponent <= 0)
        return (size_t)snprintf(text, 32, "%s0.%.*s%s", sign, -exponent, "0000", digits);
    if (exponent >= n)
        return (size_t)snprintf(text, 32, "%s%s%.*s.0", sign, digits, exponent - n, "0000000000000000");
    return (size_t)snprintf(text, 32, "%s%.*s.%s", sign, exponent, digits, digits + exponent);
}

static void print_number(ds_rendering *r, ds_builder *out, ds_value value)
{
    char text[32];
    if (value.type == DS_VALUE_FLOAT)
        ds_print_float(value.real, text);
    else
        snprintf(text, sizeof text, "%lld", (long long)value.number);
    ds_add_text(r, out, text);
}

static void print_quoted_string(ds_rendering *r, ds_builder *out, const ds_string *string)
{
    bool has_single = memchr(string->bytes, '\'', string->size) != NULL;
    bool has_double = memchr(string->bytes, '"', string->size) != NULL;
    const char *quote = has_single && !has_double ? "\"" : "'";
    ds_add_text(r, out, quote);
    for (size_t at = 0; at < string->size && !ds_failed(r);) {
        size_t n = ds_character_size(string, at);
        uint32_t c = ds_character(string, at);
        char escape[12] = "";
        if (c == '\n' || c == '\r' || c == '\t')
            snprintf(escape, sizeof escape, "\\%c", c == '\n' ? 'n' : c == '\r' ? 'r' : 't');
        else if (c == '\\' || c == (uint32_t)quote[0])
            snprintf(escape, sizeof escape, "\\%c", (char)c);
        else if (c < 0x20 || (c >= 0x7f && c <= 0xa0) || c == 0xad)
            snprintf(escape, sizeof escape, "\\x%02x", c);
        else if (c > 0xff && (ds_is_space(c) || (c >= 0xd800 && c < 0xf900) || (c >= 0x200b && c <= 0x200f)))
            snprintf(escape, sizeof escape, "\\u%04x", c);
        if (escape[0] != '\0')
            ds_add_bytes(r, out, escape, strlen(escape), DS_OF_DATA);
        else
            ds_add_string(r, out, ds_part(r, string, at, n).string);
        at += n;
    }
    ds_add_text(r, out, quote);
}

static void print_list(ds_rendering *r, ds_builder *out, ds_value value)
{
    bool tuple = value.type == DS_VALUE_TUPLE;
    ds_add_text(r, out, tuple ? "(" : "[");
    for (size_t i = 0; i < value.list->n && !ds_failed(r); i++) {
        ds_add_text(r, out, i > 0 ? ", " : "");
        ds_print_quoted(r, out, value.list->values[i]);
    }
    ds_add_text(r, out, !tuple ? "]" : value.list->n == 1 ? ",)" : ")");
}

static void print_dict(ds_rendering *r, ds_builder *out, const ds_dict *dict)
{
    ds_add_text(r, out, "{");
    for (size_t i = 0; i < dict->n && !ds_failed(r); i++) {
        ds_add_text(r, out, i > 0 ? ", " : "");
        ds_print_quoted(r, out, dict->entries[i].key);
        ds_add_text(r, out, ": ");
        ds_print_quoted(r, out, dict->entries[i].value);
    }
    ds_add_text(r, out, "}");
}

void ds_print_quoted(ds_rendering *r, ds_builder *out, ds_value value)
{
    if (!ds_enter(r))
        ;
    else if (ds_is_string(value))
        print_quoted_string(r, out, value.string);
    else if (value.type == DS_VALUE_UNDEFINED)
        ds_add_text(r, out, "Undefined");
    else
        ds_print(r, out, value);
    ds_leave(r);
}

void ds_print(ds_rendering *r, ds_builder *out, ds_value value)
{
    switch (value.type) {
    case DS_VALUE_UNDEFINED: break;
    case DS_VALUE_NONE: ds_add_text(r, out, "None"); break;
    case DS_VALUE_BOOL: ds_add_text(r, out, value.truth ? "True" : "False"); break;
    case DS_VALUE_INT:
    case DS_VALUE_FLOAT: print_number(r, out, value); break;
    case DS_VALUE_STRING: ds_add_string(r, out, value.string); break;
    case DS_VALUE_LIST:
    case DS_VALUE_TUPLE: print_list(r, out, value); break;
    case DS_VALUE_DICT: print_dict(r, out, value.dict); break;
    default: ds_refuse(r, "%s cannot be written", ds_value_kind(value));
    }
}

/* ---- JSON ---- */

/* The letter of a character's short escape; 0: it has none. */
static char escape_letter(uint32_t c)
{
    switch (c) {
    case '"': return '"';
    case '\\': return '\\';
    case '\n': return 'n';
    case '\r': return 'r';
    case '\t': return 't';
    case '\b': return 'b';
    case '\f': return 'f';
    default: return 0;
    }
}

static void print_escape(ds_rendering *r, ds_builder *out, uint32_t c)
{
    char escape[16], letter = escape_letter(c);
    if (letter != 0)
        snprintf(escape, sizeof escape, "\\%c", letter);
    else if (c > 0xffff)
        snprintf(escape, sizeof escape, "\\u%04x\\u%04x", 0xd7c0 + (c >> 10), 0xdc00 | (c & 0x3ff));
    else
        snprintf(escape, sizeof escape, "\\u%04x", c);
    ds_add_bytes(r, out, escape, strlen(escape), DS_OF_DATA);
}

static void print_json_string(ds_rendering *r, ds_builder *out, const ds_string *string, bool ascii)
{
    ds_add_text(r, out, "\"");
    size_t plain = 0; /* from here on nothing was written yet */
    for (size_t at = 0, n; at < string->size && !ds_failed(r); at += n) {
        n = ds_character_size(string, at);
        uint32_t c = ds_character(string, at);
        if (c >= 0x20 && c != '"' && c != '\\' && (c <= 0x7e || !ascii))
            continue;
        ds_add_string(r, out, ds_part(r, string, plain, at - plain).string);
        print_escape(r, out, c);
        plain = at + n;
    }
    if (!ds_failed(r))
        ds_add_string(r, out, ds_part(r, string, plain, string->size - plain).string);
    ds_add_text(r, out, "\"");
}

static void new_line(ds_rendering *r, ds_builder *out, const ds_json_style *style, unsigned depth)
{
    if (style->indent == NULL)
        return;
    ds_add_text(r, out, "\n");
    for (unsigned i = 0; i < depth; i++)
        ds_add_string(r, out, style->indent);
}

/* The entry that comes at place i: in order of the keys, if asked for. */
static const ds_entry *entry_at(ds_rendering *r, const ds_dict *dict, const ds_json_style *style, size_t i)
{
    if (!style->sorted)
        return &dict->entries[i];
    for (size_t j = 0; j < dict->n && ds_spend(r, dict->n); j++) {
        size_t before = 0;
        for (size_t k = 0; k < dict->n; k++)
            before += ds_compare(r, dict->entries[k].key, dict->entries[j].key) < 0;
        if (before == i)
            return &dict->entries[j];
    }
    return &dict->entries[i];
}

static void print_json_dict(ds_rendering *r, ds_builder *out, const ds_dict *dict, const ds_json_style *style,
                            unsigned depth)
{
    ds_add_text(r, out, "{");
    for (size_t i = 0; i < dict->n && !ds_failed(r); i++) {
        const ds_entry *entry = entry_at(r, dict, style, i);
        if (i > 0)
            ds_add_string(r, out, style->between_items);
        new_line(r, out, style, depth + 1);
        if (ds_is_string(entry->key))
            print_json_string(r, out, entry->key.string, style->ascii);
        else
            ds_refuse(r, "a mapping whose keys are not strings cannot be written as JSON");
        ds_add_string(r, out, style->behind_key);
        ds_print_json(r, out, entry->value, style, depth + 1);
    }
    if (dict->n > 0)
        new_line(r, out, style, depth);
    ds_add_text(r, out, "}");
}

static void print_json_float(ds_rendering *r, ds_builder *out, double value)
{
    char text[32];
    ds_print_float(value, text);
    ds_add_text(r, out, isnan(value) ? "NaN" : isinf(value) ? value < 0 ? "-Infinity" : "Infinity" : text);
}

static void print_json_list(ds_rendering *r, ds_builder *out, const ds_list *list, const ds_json_style *style,
                            unsigned depth)
{
    ds_add_text(r, out, "[");
    for (size_t i = 0; i < list->n && !ds_failed(r); i++) {
        if (i > 0)
            ds_add_string(r, out, style->between_items);
        new_line(r, out, style, depth + 1);
        ds_print_json(r, out, list->values[i], style, depth + 1);
    }
    if (list->n > 0)
        new_line(r, out, style, depth);
    ds_add_text(r, out, "]");
}

static void print_json(ds_rendering *r, ds_builder *out, ds_value value, const ds_json_style *style, unsigned depth)
{
    switch (value.type) {
    case DS_VALUE_NONE: ds_add_text(r, out, "null"); break;
    case DS_VALUE_BOOL: ds_add_text(r, out, value.truth ? "true" : "false"); break;
    case DS_VALUE_INT: print_number(r, out, value); break;
    case DS_VALUE_FLOAT: print_json_float(r, out, value.real); break;
    case DS_VALUE_STRING: print_json_string(r, out, value.string, style->ascii); break;
    case DS_VALUE_DICT: print_json_dict(r, out, value.dict, style, depth); break;
    case DS_VALUE_LIST:
    case DS_VALUE_TUPLE: print_json_list(r, out, value.list, style, depth); break;
    default: ds_refuse(r, "%s cannot be written as JSON", ds_value_kind(value));
    }
}

void ds_print_json(ds_rendering *r, ds_builder *out, ds_value value, const ds_json_style *style, unsigned depth)
{
    if (ds_enter(r))
        print_json(r, out, value, style, depth);
    ds_leave(r);
}

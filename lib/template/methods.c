/* Methods of strings, lists and mappings, and functions. */
#include "template/parts.h"

#include <stdio.h>

/* ---- strings ---- */

static bool is_among(const ds_string *string, size_t at, size_t size, const ds_string *characters)
{
    if (characters == NULL)
        return ds_is_space(ds_character(string, at));
    for (size_t i = 0; i < characters->size; i += ds_character_size(characters, i))
        if (ds_character_size(characters, i) == size && memcmp(characters->bytes + i, string->bytes + at, size) == 0)
            return true;
    return false;
}

ds_value ds_strip(ds_rendering *r, const ds_string *string, const ds_string *characters, bool left, bool right)
{
    if (!ds_spend(r, (string->size / 16 + 1) * (characters != NULL ? characters->size / 4 + 1 : 1)))
        return (ds_value){0};
    size_t from = 0, to = 0;
    bool begun = !left;
    for (size_t at = 0, n; at < string->size; at += n) {
        n = ds_character_size(string, at);
        bool stripped = is_among(string, at, n, characters);
        if (!begun && !stripped) {
            from = at;
            begun = true;
        }
        if (!stripped || !right)
            to = at + n;
    }
    return begun && to > from ? ds_part(r, string, from, to - from) : ds_part(r, string, 0, 0);
}

ds_value ds_replace(ds_rendering *r, const ds_string *string, const ds_string *old, const ds_string *new, int64_t most)
{
    if (!ds_spend(r, (string->size / 64 + 1) * (old->size / 64 + 1)))
        return (ds_value){0};
    if (old->size == 0)
        return ds_refuse(r, "replace is given an empty text to look for, which is not supported");
    ds_builder builder = {0};
    size_t at = 0;
    for (int64_t n = 0; (most < 0 || n < most) && !ds_failed(r); n++) {
        size_t found = ds_find(string, old, at);
        if (found == SIZE_MAX)
            break;
        ds_add_string(r, &builder, ds_part(r, string, at, found - at).string);
        ds_add_string(r, &builder, new);
        at = found + old->size;
    }
    if (!ds_failed(r))
        ds_add_string(r, &builder, ds_part(r, string, at, string->size - at).string);
    return ds_built(r, &builder);
}

ds_value ds_join(ds_rendering *r, const ds_list *list, const ds_string *between)
{
    ds_builder builder = {0};
    for (size_t i = 0; i < list->n && ds_spend(r, 1); i++) {
        if (i > 0)
            ds_add_string(r, &builder, between);
        ds_print(r, &builder, list->values[i]);
    }
    return ds_built(r, &builder);
}

static char changed(char c, bool upper)
{
    if (upper)
        return c >= 'a' && c <= 'z' ? (char)(c - 32) : c;
    return c >= 'A' && c <= 'Z' ? (char)(c + 32) : c;
}

/* `behind`: what a word begins behind, beside the text's beginning; "": whatever is no letter; NULL: nothing. */
static ds_value with_case(ds_rendering *r, const ds_string *string, bool first_upper, bool others_upper,
                          const char *behind)
{
    ds_builder builder = {0};
    ds_add_string(r, &builder, string);
    bool begins = true;
    for (size_t i = 0; i < builder.size && !ds_failed(r); i++) {
        char c = builder.bytes[i];
        bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        if ((unsigned char)c >= 0x80)
            return ds_refuse(r, "upper and lower case of letters beyond ASCII are not supported");
        builder.bytes[i] = changed(c, begins ? first_upper : others_upper);
        begins = behind != NULL && (*behind != '\0' ? strchr(behind, c) != NULL && c != '\0' : !letter);
    }
    return ds_built(r, &builder);
}

ds_value ds_change_case(ds_rendering *r, const ds_string *string, bool upper)
{
    return with_case(r, string, upper, upper, NULL);
}

ds_value ds_capitalize(ds_rendering *r, const ds_string *string, const char *behind)
{
    return with_case(r, string, true, false, behind);
}

/* Parts between separators, or between runs of white space if there is no separator. */
static void split_forward(ds_rendering *r, ds_list *list, const ds_string *string, const ds_string *separator,
                          int64_t most)
{
    size_t at = 0;
    for (int64_t n = 0; (most < 0 || n < most) && !ds_failed(r); n++) {
        size_t found = ds_find(string, separator, at);
        if (found == SIZE_MAX)
            break;
        ds_list_add(r, list, ds_part(r, string, at, found - at));
        at = found + separator->size;
    }
    ds_list_add(r, list, ds_part(r, string, at, string->size - at));
}

static void split_at_space(ds_rendering *r, ds_list *list, const ds_string *string, int64_t most)
{
    size_t at = 0;
    while (!ds_failed(r)) {
        while (at < string->size && ds_is_space(ds_character(string, at)))
            at += ds_character_size(string, at);
        if (at >= string->size)
            return;
        size_t end = at;
        while (end < string->size && !ds_is_space(ds_character(string, end)))
            end += ds_character_size(string, end);
        if (most >= 0 && (int64_t)list->n == most) {
            ds_value rest = ds_part(r, string, at, string->size - at);
            ds_list_add(r, list, ds_failed(r) ? rest : ds_strip(r, rest.string, NULL, false, true));
            return;
        }
        ds_list_add(r, list, ds_part(r, string, at, end - at));
        at = end;
    }
}

/* rsplit with a limit: the last separators are those that count. */
static void split_backward(ds_rendering *r, ds_list *list, const ds_string *string, const ds_string *separator,
                           int64_t most)
{
    ds_list *all = ds_new_list(r, 0).list;
    size_t at = string->size, end = string->size;
    for (int64_t n = 0; n < most && at >= separator->size && !ds_failed(r);) {
        at -= separator->size;
        if (memcmp(string->bytes + at, separator->bytes, separator->size) == 0) {
            ds_list_add(r, all, ds_part(r, string, at + separator->size, end - at - separator->size));
            end = at;
            n++;
        } else {
            at += separator->size - 1;
        }
    }
    ds_list_add(r, list, ds_part(r, string, 0, end));
    for (size_t i = ds_failed(r) ? 0 : all->n; i-- > 0;)
        ds_list_add(r, list, all->values[i]);
}

static ds_value split(ds_rendering *r, const ds_string *string, const ds_arguments *arguments, bool backward)
{
    ds_value separator = ds_argument(r, arguments, 0, "sep"), limit = ds_argument(r, arguments, 1, "maxsplit");
    int64_t most = limit.type == DS_VALUE_INT ? limit.number : -1;
    ds_value made = ds_new_list(r, 0);
    bool by_space = separator.type == DS_VALUE_UNDEFINED || separator.type == DS_VALUE_NONE;
    if (ds_failed(r))
        return made;
    if (!by_space && (!ds_is_string(separator) || separator.string->size == 0))
        return ds_refuse(r, "split needs a separator of at least one character");
    if (!ds_spend(r, (string->size / 64 + 1) * (by_space ? 1 : separator.string->size / 64 + 1)))
        return made;
    if (by_space && backward && most >= 0)
        return ds_refuse(r, "rsplit at white space with a limit is not supported");
    if (by_space)
        split_at_space(r, made.list, string, most);
    else if (backward && most >= 0)
        split_backward(r, made.list, string, separator.string, most);
    else
        split_forward(r, made.list, string, separator.string, most);
    return made;
}

static ds_value split_lines(ds_rendering *r, const ds_string *string, bool keep)
{
    ds_value made = ds_new_list(r, 0);
    for (size_t at = 0, begin = 0; begin < string->size && !ds_failed(r);) {
        uint32_t c = at < string->size ? ds_character(string, at) : '\n';
        size_t n = at < string->size ? ds_character_size(string, at) : 0, end = at;
        at += n;
        if (!((c >= 0x0a && c <= 0x0d) || (c >= 0x1c && c <= 0x1e) || c == 0x85 || c == 0x2028 || c == 0x2029))
            continue;
        if (c == '\r' && at < string->size && string->bytes[at] == '\n')
            at++;
        ds_list_add(r, made.list, ds_part(r, string, begin, (keep ? at : end) - begin));
        begin = at;
    }
    return made;
}

/* Whether a string begins or ends with another, or with one of a tuple. */
static bool has_end(ds_rendering *r, const ds_string *string, ds_value end, bool at_end)
{
    if (ds_is_sequence(end)) {
        for (size_t i = 0; i < end.list->n && !ds_failed(r); i++)
            if (!ds_is_sequence(end.list->values[i]) && has_end(r, string, end.list->values[i], at_end))
                return true;
        return false;
    }
    if (!ds_is_string(end)) {
        ds_refuse(r, "startswith and endswith need a string, not %s", ds_value_kind(end));
        return false;
    }
    size_t n = end.string->size;
    return n <= string->size &&
           (n == 0 || memcmp(string->bytes + (at_end ? string->size - n : 0), end.string->bytes, n) == 0);
}

static int64_t position(ds_rendering *r, const ds_string *string, const ds_string *part, bool last)
{
    if (!ds_spend(r, (string->size / 64 + 1) * (part->size / 64 + 1)))
        return -1;
    size_t found = SIZE_MAX;
    for (size_t at = ds_find(string, part, 0); at != SIZE_MAX;
         at = last && at < string->size ? ds_find(string, part, at + 1) : SIZE_MAX)
        found = at;
    if (found == SIZE_MAX)
        return -1;
    const ds_string before = {.bytes = string->bytes, .size = found};
    return (int64_t)ds_characters(&before);
}

static int64_t occurrences(ds_rendering *r, const ds_string *string, const ds_string *part)
{
    int64_t n = 0;
    if (part->size == 0)
        ds_refuse(r, "count is given an empty text, which is not supported");
    for (size_t at = 0; !ds_failed(r) && (at = ds_find(string, part, at)) != SIZE_MAX; at += part->size)
        n += ds_spend(r, 1);
    return n;
}

static bool all_digits(const ds_string *string)
{
    for (size_t i = 0; i < string->size; i++)
        if (string->bytes[i] < '0' || string->bytes[i] > '9')
            return false;
    return string->size > 0;
}

typedef enum method {
    APPEND, CAPITALIZE, COUNT, CYCLE, ENDSWITH, EXTEND, FIND, GET, INDEX, INSERT, ISDIGIT, ITEMS, JOIN, KEYS, LOWER,
    LSTRIP, POP, REMOVEPREFIX, REMOVESUFFIX, REPLACE, RFIND, RSPLIT, RSTRIP, SPLIT, SPLITLINES, STARTSWITH, STRIP,
    TITLE, UPPER, VALUES,
} method;

static const struct {
    const char *name;
    method method;
    size_t most;
    const char *names;
} methods[] = {
    {"append", APPEND, 1, ""},
    {"capitalize", CAPITALIZE, 0, ""},
    {"count", COUNT, 1, ""},
    {"cycle", CYCLE, 16, ""},
    {"endswith", ENDSWITH, 1, ""},
    {"extend", EXTEND, 1, ""},
    {"find", FIND, 1, ""},
    {"get", GET, 2, ""},
    {"index", INDEX, 1, ""},
    {"insert", INSERT, 2, ""},
    {"isdigit", ISDIGIT, 0, ""},
    {"items", ITEMS, 0, ""},
    {"join", JOIN, 1, ""},
    {"keys", KEYS, 0, ""},
    {"lower", LOWER, 0, ""},
    {"lstrip", LSTRIP, 1, ""},
    {"pop", POP, 2, ""},
    {"removeprefix", REMOVEPREFIX, 1, ""},
    {"removesuffix", REMOVESUFFIX, 1, ""},
    {"replace", REPLACE, 3, "count"},
    {"rfind", RFIND, 1, ""},
    {"rsplit", RSPLIT, 2, "sep maxsplit"},
    {"rstrip", RSTRIP, 1, ""},
    {"split", SPLIT, 2, "sep maxsplit"},
    {"splitlines", SPLITLINES, 1, "keepends"},
    {"startswith", STARTSWITH, 1, ""},
    {"strip", STRIP, 1, ""},
    {"title", TITLE, 0, ""},
    {"upper", UPPER, 0, ""},
    {"values", VALUES, 0, ""},
};

static int find_method(ds_text name)
{
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++)
        if (ds_text_equals(name, methods[i].name))
            return (int)i;
    return -1;
}

bool ds_has_method(ds_text name) { return find_method(name) >= 0; }

/* An argument that has to be a string. */
static const ds_string *needed_string(ds_rendering *r, const ds_arguments *arguments, size_t position)
{
    static const ds_string nothing = {.bytes = ""};
    ds_value value = ds_argument(r, arguments, position, "");
    if (ds_is_string(value))
        return value.string;
    ds_refuse(r, "an argument is %s, expected a string", ds_value_kind(value));
    return &nothing;
}

static ds_value without_end(ds_rendering *r, const ds_string *string, const ds_string *end, bool at_end)
{
    ds_value value = {.type = DS_VALUE_STRING, .string = end};
    if (!has_end(r, string, value, at_end))
        return ds_part(r, string, 0, string->size);
    return ds_part(r, string, at_end ? 0 : end->size, string->size - end->size);
}

static ds_value strip(ds_rendering *r, const ds_string *string, const ds_arguments *arguments, bool left, bool right)
{
    ds_value characters = ds_argument(r, arguments, 0, "");
    bool space = characters.type == DS_VALUE_UNDEFINED || characters.type == DS_VALUE_NONE;
    return ds_strip(r, string, space ? NULL : needed_string(r, arguments, 0), left, right);
}

static ds_value string_method(ds_rendering *r, const ds_string *s, method m, const ds_arguments *a, bool *found)
{
    ds_value first = ds_argument(r, a, 0, "");
    if (!ds_spend(r, s->size / 64 + 1)) /* most methods look at all of the text */
        return (ds_value){0};
    switch (m) {
    case CAPITALIZE: return ds_capitalize(r, s, NULL);
    case COUNT: return ds_int(occurrences(r, s, needed_string(r, a, 0)));
    case ENDSWITH: return ds_bool(has_end(r, s, first, true));
    case FIND: return ds_int(position(r, s, needed_string(r, a, 0), false));
    case ISDIGIT: return ds_bool(all_digits(s));
    case JOIN: {
        const ds_list *list = ds_elements(r, first);
        return list != NULL ? ds_join(r, list, s) : (ds_value){0};
    }
    case LOWER: return ds_change_case(r, s, false);
    case LSTRIP: return strip(r, s, a, true, false);
    case REMOVEPREFIX: return without_end(r, s, needed_string(r, a, 0), false);
    case REMOVESUFFIX: return without_end(r, s, needed_string(r, a, 0), true);
    case REPLACE: {
        ds_value count = ds_argument(r, a, 2, "count");
        return ds_replace(r, s, needed_string(r, a, 0), needed_string(r, a, 1),
                          count.type == DS_VALUE_INT ? count.number : -1);
    }
    case RFIND: return ds_int(position(r, s, needed_string(r, a, 0), true));
    case RSPLIT: return split(r, s, a, true);
    case RSTRIP: return strip(r, s, a, false, true);
    case SPLIT: return split(r, s, a, false);
    case SPLITLINES: return split_lines(r, s, ds_truth(ds_argument(r, a, 0, "keepends")));
    case STARTSWITH: return ds_bool(has_end(r, s, first, false));
    case STRIP: return strip(r, s, a, true, true);
    case TITLE: return ds_capitalize(r, s, "");
    case UPPER: return ds_change_case(r, s, true);
    default: *found = false; return (ds_value){0};
    }
}

/* ---- lists and mappings ---- */

static ds_value list_pop(ds_rendering *r, ds_list *list, ds_value place)
{
    int64_t at = place.type == DS_VALUE_UNDEFINED ? -1 : place.type == DS_VALUE_INT ? place.number : INT64_MAX;
    if (at < 0)
        at += (int64_t)list->n;
    if (at < 0 || (uint64_t)at >= list->n)
        return ds_refuse(r, "pop asks for an element that is not there");
    ds_value value = list->values[at];
    memmove(&list->values[at], &list->values[at + 1], (list->n - (size_t)at - 1) * sizeof value);
    list->n--;
    return value;
}

static ds_value list_index(ds_rendering *r, const ds_list *list, ds_value value, bool counting)
{
    int64_t n = 0;
    for (size_t i = 0; i < list->n && !ds_failed(r); i++)
        if (ds_equal(r, list->values[i], value)) {
            if (!counting)
                return ds_int((int64_t)i);
            n++;
        }
    return counting ? ds_int(n) : ds_refuse(r, "index asks for an element that is not there");
}

static ds_value list_insert(ds_rendering *r, ds_list *list, ds_value place, ds_value value)
{
    int64_t at = place.type == DS_VALUE_INT ? place.number : 0, n = (int64_t)list->n;
    at = at < 0 ? at + n : at;
    at = at < 0 ? 0 : at > n ? n : at;
    ds_list_add(r, list, value);
    if (!ds_failed(r)) {
        memmove(&list->values[at + 1], &list->values[at], (size_t)(n - at) * sizeof value);
        list->values[at] = value;
    }
    return ds_none();
}

static ds_value list_method(ds_rendering *r, ds_list *list, method m, const ds_arguments *a, bool *found)
{
    ds_value first = ds_argument(r, a, 0, "");
    switch (m) {
    case APPEND: ds_list_add(r, list, first); return ds_none();
    case COUNT: return list_index(r, list, first, true);
    case EXTEND: {
        const ds_list *more = ds_elements(r, first);
        for (size_t i = 0, n = more != NULL ? more->n : 0; i < n && ds_spend(r, 1); i++)
            ds_list_add(r, list, more->values[i]);
        return ds_none();
    }
    case INDEX: return list_index(r, list, first, false);
    case INSERT: return list_insert(r, list, first, ds_argument(r, a, 1, ""));
    case POP: return list_pop(r, list, first);
    default: *found = false; return (ds_value){0};
    }
}

ds_value ds_items(ds_rendering *r, const ds_dict *dict)
{
    ds_value made = ds_new_list(r, dict->n);
    for (size_t i = 0; i < dict->n && !ds_failed(r); i++) {
        ds_value pair = ds_new_list(r, 2);
        ds_list_add(r, pair.list, dict->entries[i].key);
        ds_list_add(r, pair.list, dict->entries[i].value);
        pair.type = DS_VALUE_TUPLE;
        ds_list_add(r, made.list, pair);
    }
    return made;
}

static ds_value dict_method(ds_rendering *r, const ds_dict *dict, method m, const ds_arguments *a, bool *found)
{
    ds_value made = {0};
    switch (m) {
    case GET: {
        const ds_value *value = ds_dict_get(r, dict, ds_argument(r, a, 0, ""));
        ds_value otherwise = a->n > 1 ? a->values[1] : ds_none();
        return value != NULL ? *value : otherwise;
    }
    case ITEMS: return ds_items(r, dict);
    case KEYS:
    case VALUES:
        made = ds_new_list(r, dict->n);
        for (size_t i = 0; i < dict->n && !ds_failed(r); i++)
            ds_list_add(r, made.list, m == KEYS ? dict->entries[i].key : dict->entries[i].value);
        return made;
    default: *found = false; return made;
    }
}

ds_value ds_call_method(ds_rendering *r, ds_value value, ds_text name, const ds_arguments *arguments, bool *found)
{
    int index = find_method(name);
    *found = index >= 0;
    if (index < 0 || !ds_check_arguments(r, methods[index].name, arguments, methods[index].most, methods[index].names))
        return (ds_value){0};
    method m = methods[index].method;
    switch (value.type) {
    case DS_VALUE_STRING: return string_method(r, value.string, m, arguments, found);
    case DS_VALUE_LIST: return list_method(r, value.list, m, arguments, found);
    case DS_VALUE_TUPLE:
        if (m == COUNT || m == INDEX)
            return list_method(r, value.list, m, arguments, found);
        break;
    case DS_VALUE_DICT: return dict_method(r, value.dict, m, arguments, found);
    case DS_VALUE_LOOP:
        if (m == CYCLE && arguments->n > 0)
            return arguments->values[value.loop->index % arguments->n];
        break;
    default: break;
    }
    return ds_refuse(r, "%s has no method \"%s\"", ds_value_kind(value), methods[index].name);
}

/* ---- functions ---- */

static ds_value make_dict(ds_rendering *r, const ds_arguments *arguments)
{
    ds_value made = ds_new_dict(r, arguments->n);
    for (size_t i = 0; i < arguments->n && !ds_failed(r); i++) {
        if (arguments->names[i] == DS_NO_NAME)
            return ds_refuse(r, "namespace and dict take their arguments by name");
        ds_text name = r->template->names[arguments->names[i]];
        ds_dict_set(r, made.dict, ds_new_string(r, name.data, name.size, DS_OF_TEMPLATE), arguments->values[i]);
    }
    return made;
}

static ds_value make_range(ds_rendering *r, const ds_arguments *arguments)
{
    int64_t bounds[3] = {0, 0, 1};
    for (size_t i = 0; i < arguments->n && i < 3; i++) {
        if (arguments->values[i].type != DS_VALUE_INT)
            return ds_refuse(r, "range is given %s, expected integers", ds_value_kind(arguments->values[i]));
        bounds[i] = arguments->values[i].number;
    }
    if (arguments->n == 1) {
        bounds[1] = bounds[0];
        bounds[0] = 0;
    }
    if (arguments->n == 0 || arguments->n > 3 || bounds[2] == 0)
        return ds_refuse(r, "range takes one to three integers, the last of them not 0");
    ds_value made = ds_new_list(r, 0);
    for (int64_t i = bounds[0]; (bounds[2] > 0 ? i < bounds[1] : i > bounds[1]) && ds_spend(r, 1);) {
        ds_list_add(r, made.list, ds_int(i));
        if (__builtin_add_overflow(i, bounds[2], &i))
            break;
    }
    return made;
}

/* The day that lies so many days behind 1970-01-01, by the Gregorian calendar. */
static void calendar(int64_t days, int64_t *year, unsigned *month, unsigned *day)
{
    days += 719468; /* from 0000-03-01, so that a leap day ends its year */
    int64_t era = (days >= 0 ? days : days - 146096) / 146097;
    unsigned of_era = (unsigned)(days - era * 146097);
    unsigned year_of_era = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
    unsigned of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    unsigned from_march = (5 * of_year + 2) / 153;
    *day = of_year - (153 * from_march + 2) / 5 + 1;
    *month = from_march < 10 ? from_march + 3 : from_march - 9;
    *year = (int64_t)year_of_era + era * 400 + (*month <= 2);
}

static ds_value format_time(ds_rendering *r, const ds_string *format)
{
    static const char *const months[] = {"January", "February", "March", "April", "May", "June", "July", "August",
                                         "September", "October", "November", "December"};
    static const char *const weekdays[] = {"Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday",
                                           "Wednesday"};
    int64_t days = r->now / 86400 - (r->now % 86400 < 0), year;
    unsigned second = (unsigned)(r->now - days * 86400), month, day;
    calendar(days, &year, &month, &day);
    const char *weekday = weekdays[(days % 7 + 7) % 7];
    ds_builder builder = {0};
    for (size_t i = 0; i < format->size && !ds_failed(r); i++) {
        char text[24] = "", c = format->bytes[i];
        if (c != '%' || i + 1 == format->size) {
            ds_add_string(r, &builder, ds_part(r, format, i, 1).string);
            continue;
        }
        switch (format->bytes[++i]) {
        case 'A': ds_add_text(r, &builder, weekday); break;
        case 'a': ds_add_bytes(r, &builder, weekday, 3, DS_OF_TEMPLATE); break;
        case 'B': ds_add_text(r, &builder, months[month - 1]); break;
        case 'b': ds_add_bytes(r, &builder, months[month - 1], 3, DS_OF_TEMPLATE); break;
        case 'd': snprintf(text, sizeof text, "%02u", day); break;
        case 'H': snprintf(text, sizeof text, "%02u", second / 3600); break;
        case 'I': snprintf(text, sizeof text, "%02u", (second / 3600 + 11) % 12 + 1); break;
        case 'M': snprintf(text, sizeof text, "%02u", second / 60 % 60); break;
        case 'm': snprintf(text, sizeof text, "%02u", month); break;
        case 'p': snprintf(text, sizeof text, "%s", second < 43200 ? "AM" : "PM"); break;
        case 'S': snprintf(text, sizeof text, "%02u", second % 60); break;
        case 'Y': snprintf(text, sizeof text, "%lld", (long long)year); break;
        case 'y': snprintf(text, sizeof text, "%02u", (unsigned)((year % 100 + 100) % 100)); break;
        case '-':
            if (i + 1 < format->size && format->bytes[i + 1] == 'd') {
                snprintf(text, sizeof text, "%u", day);
                i++;
                break;
            }
            return ds_refuse(r, "strftime_now is asked for a part of the time that is not supported");
        case '%': snprintf(text, sizeof text, "%%"); break;
        default: return ds_refuse(r, "strftime_now is asked for a part of the time that is not supported");
        }
        ds_add_text(r, &builder, text);
    }
    return ds_built(r, &builder);
}

static const char *const functions[] = {"dict", "namespace", "raise_exception", "range", "strftime_now"};

bool ds_has_function(ds_text name)
{
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++)
        if (ds_text_equals(name, functions[i]))
            return true;
    return false;
}

ds_value ds_call_function(ds_rendering *r, ds_text name, const ds_arguments *arguments)
{
    if (ds_text_equals(name, "range"))
        return make_range(r, arguments);
    if (ds_text_equals(name, "strftime_now"))
        return format_time(r, needed_string(r, arguments, 0));
    if (ds_text_equals(name, "raise_exception")) {
        const ds_string *message = needed_string(r, arguments, 0);
        return ds_refuse(r, "%.*s", message->size < 300 ? (int)message->size : 300, message->bytes);
    }
    ds_value made = make_dict(r, arguments);
    if (ds_text_equals(name, "namespace"))
        made.type = DS_VALUE_NAMESPACE;
    return made;
}

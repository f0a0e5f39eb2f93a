/* Filters and tests, each a row of a table. */
#include "template/parts.h"

#include <assert.h>
#include <math.h>

typedef ds_value filter_fn(ds_rendering *r, ds_value value, const ds_arguments *arguments);

static const ds_string nothing = {.bytes = ""};

static ds_list *elements(ds_rendering *r, ds_value value)
{
    return ds_failed(r) ? NULL : ds_elements(r, value);
}

/* A string argument; the default if it is not given or none. */
static const ds_string *string_argument(ds_rendering *r, const ds_arguments *arguments, size_t position,
                                        const char *name, const ds_string *otherwise)
{
    ds_value value = ds_argument(r, arguments, position, name);
    if (ds_is_string(value))
        return value.string;
    if (value.type != DS_VALUE_UNDEFINED && value.type != DS_VALUE_NONE)
        ds_refuse(r, "the argument %s is %s, expected a string", name, ds_value_kind(value));
    return otherwise;
}

/* The string to which a filter for strings is put: others are written first, as Jinja does. */
static const ds_string *as_string(ds_rendering *r, ds_value value)
{
    if (ds_is_string(value))
        return value.string;
    ds_builder builder = {0};
    ds_print(r, &builder, value);
    ds_value built = ds_built(r, &builder);
    return ds_is_string(built) ? built.string : &nothing;
}

static ds_value filter_abs(ds_rendering *r, ds_value value, const ds_arguments *arguments)
{
    (void)arguments;
    if (value.type == DS_VALUE_FLOAT)
        return ds_float(fabs(value.real));
    if (!ds_is_number(value) || ds_whole(value) == INT64_MIN)
        return ds_refuse(r, "%s has no absolute value", ds_value_kind(value));
    return ds_int(ds_whole(value) < 0 ? -ds_whole(value) : ds_whole(value));
}

static ds_value filter_capitalize(ds_rendering *r, ds_value value, const ds_arguments *arguments)
{
    (void)arguments;
    return ds_capitalize(r, as_string(r, value), NULL);
}

static ds_value filter_title(ds_rendering *r, ds_value value, const ds_arguments *arguments)
{
    (void)arguments;
    return ds_capitalize(r, as_string(r, value), "- \t\n\r\v\f({[<");
}

static ds_value filter_default(ds_rendering *r, ds_value value, const ds_arguments *arguments)
{
    bool empty = value.type == DS_VALUE_UNDEFINED ||
                 (ds_truth(ds_argument(r, arguments, 1, "boolean")) && !ds_truth(value));
    if (!empty)
        return value;
    ds_value otherwise = ds_argument(r, arguments, 0, "default_value");
    return otherwise.type != DS_VALUE_UNDEFINED ? otherwise : ds_new_string(r, "", 0, DS_OF_TEMPLATE);
}

static ds_value filter_first(ds_rendering *r, ds_value value, const ds_arguments *arguments)
{
    (void)arguments;
    const ds_list *list = elements(r, value);
    return list != NULL && list->n > 0 ? list->values[0] : (ds_value){0};
}

static ds_value filter_last(ds_rendering *r, ds_value value, const ds_arguments *arguments)
{
    (void)arguments;
    const ds_list *list = elements(r, value);
    return list != NULL && list->n > 0 ? list->values[list->n - 1] : (ds_value){0};
}

/* Lines but the first (and, unless told otherwise, but empty ones) begin with spaces. */
static ds_value filter_indent(ds_rendering *r, ds_value value, const ds_arguments *arguments)
{
    const ds_string *string = as_string(r, value);
    ds_value width = ds_argument(r, arguments, 0, "width");
    bool first = ds_truth(ds_argument(r, arguments, 1, "first"));
    bool blank = ds_truth(ds_argument(r, arguments, 2, "blank"));
    int64_t spaces = width.type == DS_VALUE_UNDEFINED ? 4 : width.number;
    if ((width.type != DS_VALUE_UNDEFINED && width.type != DS_VALUE_INT) || spaces < 0 || spaces > 256)
        return ds_refuse(r, "indent is by 0 to 256 spaces");
    ds_builder builder = {0};
    for (size_t at = 0; at <= string->size && !ds_failed(r);) {
        const char *newline = at < string->size ? memchr(string->bytes + at, '\n', string->size - at) : NULL;
        size_t end = newline != NULL ? (size_t)(newline - string->bytes) : string->size;
        if (at == 0 ? first : end > at || blank)
            for (int64_t i = 0; i < spaces; i++)
                ds_add_text(r, &builder, " ");
        size_t behind = end + (newline != NULL);
        ds_add_string(r, &builder, ds_part(r, string, at, behind - at).string);
        if (newline == NULL)
            break;
        at = behind;
    }
    return ds_built(r, &builder);
}

/* A number from a string or number; the default for others. */
static ds_value filter_int(ds_rendering *r, ds_value value, const ds_arguments *arguments)
{
    ds_value otherwise = ds_argument(r, arguments, 0, "default");
    if (otherwise.type == DS_VALUE_UNDEFINED)
        otherwise = ds_int(0);
    if (value.type == DS_VALUE_FLOAT)
        return fabs(value.real) < 9e15 ? ds_int((int64_t)value.real) : otherwise;
    if (ds_is_number(value))
        return ds_int(ds_whole(value));
    if (!ds_is_string(value))
        return otherwise;
    ds_value stripped = ds_strip(r, value.string, NULL, true, true);
    if (ds_failed(r))
        return otherwise;
    const ds_string *s = stripped.string;
    bool negative = s->size > 0 && s->bytes[0] == '-';
    size_t at = negative || (s->size > 0 && s->bytes[0] == '+');
    if (at == s->size || s->size - at > 18)
        return otherwise;
    int64_t number = 0;
    for (; at < s->size; at++) {
        if (s->bytes[at] < '0' || s->bytes[at] > '9')
            return otherwise;
        number = number * 10 + (s->bytes[at] - '0');
    }
    return ds_int(negative ? -number : number);
}

static ds_value filter_items(ds_rendering *r, ds_value value, const ds_arguments *arguments)
{
    (void)arguments;
    if (value.type == DS_VALUE_UNDEFINED)
        return ds_new_list(r, 0);
    if (!ds_is_mapping(value))
        return ds_refuse(r, "items is asked of %s, expected a mapping", ds_value_kind(value));
    return ds_items(r, value.dict);
}

/* The value's attribute of a name, which may be of several parts: "function.name". */
static ds_value attribute_of(ds_rendering *r, ds_value value, ds_value name)
{
    if (!ds_is_string(name))
        return ds_get_item(r, value, name);
    const ds_string *s = name.string;
    const ds_string dot = {.bytes = ".", .size = 1};
    for (size_t at = 0; at <= s->size && !ds_failed(r);) {
        size_t end = ds_find(s, &dot, at);
        end = end == SIZE_MAX ? s->size : end;
        value = ds_get_item(r, value, ds_part(r, s, at, end - at));
        at = end + 1;
    }
    return value;
}

static ds_value filter_join(ds_rendering *r, ds_value value, const ds_arguments *arguments)
{
    const ds_list *list = elements(r, value);
    const ds_string *between = string_argument(r, arguments, 0, "d", &nothing);
    ds_value attribute = ds_argument(r, arguments, 1, "attribute");
    if (ds_failed(r))
        return (ds_value){0};
    if (attribute.type == DS_VALUE_UNDEFINED)
        return ds_join(r, list, between);
    ds_value parts = ds_new_list(r, list->n);
    for (size_t i = 0; i < list->n && !ds_failed(r); i++)
        ds_list_add(r, parts.list, attribute_of(r, list->values[i], attribute));
    return ds_failed(r) ? (ds_value){0} : ds_join(r, parts.list, between);
}

static ds_value filter_length(ds_rendering *r, ds_value value, const ds_arguments *arguments)
{
    (void)arguments;
    if (ds_is_string(value))
        return ds_spend(r, value.string->size / 16) ? ds_int((int64_t)ds_characters(value.string)) : ds_int(0);
    if (ds_is_mapping(value))
        return ds_int((int64_t)value.dict->n);
    const ds_list *list = elements(r, value);
    return ds_int(list != NULL ? (int64_t)list->n : 0);
}

static ds_value filter_list(ds_rendering *r, ds_value value, const ds_arguments *arguments)
{
    (void)arguments;
    const ds_list *list = elements(r, value);
    if (list == NULL)
        return (ds_value){0};
    ds_value made = ds_new_list(r, list->n);
    for (size_t i = 0; i < list->n && !ds_failed(r); i++)
        ds_list_add(r, made.list, list->values[i]);
    return made;
}

static ds_value filter_lower(ds_rendering *r, ds_value value, const ds_arguments *arguments)
{
    (void)arguments;
    return ds_change_case(r, as_string(r, value), false);
}

static ds_value filter_upper(ds_rendering *r, ds_value value, const ds_arguments *arguments)
{
    (void)arguments;
    return ds_change_case(r, as_string(r, value), true);
}

/* map('upper'), map(attribute='name') */
static ds_value filter_map(ds_rendering *r, ds_value value, const ds_arguments *arguments)
{
    const ds_list *list = elements(r, value);
    ds_value attribute = ds_argument(r, arguments, SIZE_MAX, "attribute");
    ds_value otherwise = ds_argument(r, arguments, SIZE_MAX, "default");
    ds_value name = ds_argument(r, arguments, 0, "");
    int filter = -1;
    if (attribute.type == DS_VALUE_UNDEFINED) {
        if (!ds_is_string(name))
            return ds_refuse(r, "map needs the name of a filter or an attribute");
        filter = ds_find_filter((ds_text){name.string->bytes, name.string->size});
        if (filter < 0)
            return ds_refuse(r, "map asks for a filter that is not supported");
    }
    ds_value made = ds_new_list(r, 0);
    ds_arguments rest = *arguments;
    if (filter >= 0 && !ds_failed(r)) {
        rest.values++;
        rest.names++;
        rest.n--;
    }
    for (size_t i = 0; list != NULL && i < list->n && !ds_failed(r); i++) {
        ds_value element = list->values[i];
        element = filter >= 0 ? ds_filter(r, (uint32_t)filter, element, &rest) : attribute_of(r, element, attribute);
        if (filter < 0 && element.type == DS_VALUE_UNDEFINED)
            element = otherwise;
        ds_list_add(r, made.list, element);
    }
    return made;
}

/* The elements, or those of an attribute, for which a test holds (select) or fails (reject). */
static ds_value select_elements(ds_rendering *r, ds_value value, const ds_arguments *arguments, bool by_attribute,
                                bool wanted)
{
    const ds_list *list = elements(r, value);
    size_t at = by_attribute ? 1 : 0;
    ds_value attribute = ds_argument(r, arguments, 0, ""), name = ds_argument(r, arguments, at, "");
    if (ds_failed(r) || (by_attribute && attribute.type == DS_VALUE_UNDEFINED))
        return ds_refuse(r, "a filter that selects by attribute needs its name");
    int test = -1;
    ds_arguments rest = {0};
    if (ds_is_string(name)) {
        test = ds_find_test((ds_text){name.string->bytes, name.string->size});
        if (test < 0)
            return ds_refuse(r, "a filter that selects asks for a test that is not supported");
        rest = (ds_arguments){arguments->values + at + 1, arguments->names + at + 1, arguments->n - at - 1};
    }
    ds_value made = ds_new_list(r, 0);
    for (size_t i = 0; i < list->n && !ds_failed(r); i++) {
        ds_value element = by_attribute ? attribute_of(r, list->values[i], attribute) : list->values[i];
        bool holds = test >= 0 ? ds_test(r, (uint32_t)test, element, &rest) : ds_truth(element);
        if (holds == wanted)
            ds_list_add(r, made.list, list->values[i]);
    }
    return made;
}

static ds_value filter_select(ds_rendering *r, ds_value value, const ds_arguments *arguments)
{
    return select_elements(r, value, arguments, false, true);
}

static ds_value filter_reject(ds_rendering *r, ds_value value, const ds_arguments *arguments)
{
    return select_elements(r, value, arguments, false, false);
}

static ds_value filter_selectattr(ds_rendering *r, ds_value value, const ds_arguments *arguments)
{
    return select_elements(r, value, arguments, true, true);
}

static ds_value filter_rejectattr(ds_rendering *r, ds_value value, const ds_arguments *arguments)
{
    return select_elements(r, value, arguments, true, false);
}

static ds_value filter_replace(ds_rendering *r, ds_value value, const ds_arguments *arguments)
{
    const ds_string *string = as_string(r, value);
    const ds_string *old = string_argument(r, arguments, 0, "old", &nothing);
    const ds_string *new = string_argument(r, arguments, 1, "new", &nothing);
    ds_value count = ds_argument(r, arguments, 2, "count");
    return ds_replace(r, string, old, new, count.type == DS_VALUE_INT ? count.number : -1);
}

static ds_value filter_reverse(ds_rendering *r, ds_value value, const ds_arguments *arguments)
{
    (void)arguments;
    const ds_list *list = elements(r, value);
    ds_value made = ds_new_list(r, 0);
    for (size_t i = list != NULL ? list->n : 0; i-- > 0 && !ds_failed(r);)
        ds_list_add(r, made.list, list->values[i]);
    return ds_is_string(value) && !ds_failed(r) ? ds_join(r, made.list, &nothing) : made;
}

static ds_value filter_string(ds_rendering *r, ds_value value, const ds_arguments *arguments)
{
    (void)arguments;
    const ds_string *string = as_string(r, value);
    return (ds_value){.type = DS_VALUE_STRING, .string = string};
}

static ds_value filter_safe(ds_rendering *r, ds_value value, const ds_arguments *arguments)
{
    (void)r;
    (void)arguments;
    return value; /* nothing is escaped that would have to be marked */
}

/* Separators: a list of two strings. */
static bool read_separators(ds_rendering *r, ds_value separators, ds_json_style *style)
{
    if (separators.type == DS_VALUE_UNDEFINED || separators.type == DS_VALUE_NONE)
        return true;
    if (!ds_is_sequence(separators) || separators.list->n != 2 || !ds_is_string(separators.list->values[0]) ||
        !ds_is_string(separators.list->values[1])) {
        ds_refuse(r, "the separators of tojson are not two strings");
        return false;
    }
    style->between_items = separators.list->values[0].string;
    style->behind_key = separators.list->values[1].string;
    return true;
}

static ds_value filter_tojson(ds_rendering *r, ds_value value, const ds_arguments *arguments)
{
    static const ds_string comma_space = {.bytes = ", ", .size = 2}, comma = {.bytes = ",", .size = 1},
                           colon = {.bytes = ": ", .size = 2};
    static const char spaces[] = "                ";
    ds_json_style style = {.between_items = &comma_space, .behind_key = &colon};
    ds_value indent = ds_argument(r, arguments, 1, "indent");
    ds_string width = {.bytes = spaces};
    style.ascii = ds_truth(ds_argument(r, arguments, 0, "ensure_ascii"));
    style.sorted = ds_truth(ds_argument(r, arguments, 3, "sort_keys"));
    if (ds_is_string(indent)) {
        style.indent = indent.string;
    } else if (indent.type == DS_VALUE_INT && indent.number >= 0 && indent.number < (int64_t)sizeof spaces) {
        width.size = (size_t)indent.number;
        style.indent = &width;
    } else if (indent.type != DS_VALUE_UNDEFINED && indent.type != DS_VALUE_NONE) {
        return ds_refuse(r, "the indent of tojson is not a string or 0 to %zu", sizeof spaces - 1);
    }
    if (style.indent != NULL)
        style.between_items = &comma;
    ds_builder builder = {0};
    if (read_separators(r, ds_argument(r, arguments, 2, "separators"), &style))
        ds_print_json(r, &builder, value, &style, 0);
    return ds_built(r, &builder);
}

static ds_value filter_trim(ds_rendering *r, ds_value value, const ds_arguments *arguments)
{
    return ds_strip(r, as_string(r, value), string_argument(r, arguments, 0, "chars", NULL), true, true);
}

static ds_value filter_unique(ds_rendering *r, ds_value value, const ds_arguments *arguments)
{
    (void)arguments;
    const ds_list *list = elements(r, value);
    ds_value made = ds_new_list(r, 0);
    for (size_t i = 0; list != NULL && i < list->n && !ds_failed(r); i++) {
        bool seen = false;
        for (size_t j = 0; j < made.list->n && !seen; j++)
            seen = ds_equal(r, made.list->values[j], list->values[i]);
        if (!seen)
            ds_list_add(r, made.list, list->values[i]);
    }
    return made;
}

static const struct {
    const char *name;
    filter_fn *filter;
    size_t most; /* arguments */
    const char *names;
} filters[] = {
    {"abs", filter_abs, 0, ""},
    {"capitalize", filter_capitalize, 0, ""},
    {"count", filter_length, 0, ""},
    {"d", filter_default, 2, "default_value boolean"},
    {"default", filter_default, 2, "default_value boolean"},
    {"first", filter_first, 0, ""},
    {"indent", filter_indent, 3, "width first blank"},
    {"int", filter_int, 1, "default"},
    {"items", filter_items, 0, ""},
    {"join", filter_join, 2, "d attribute"},
    {"last", filter_last, 0, ""},
    {"length", filter_length, 0, ""},
    {"list", filter_list, 0, ""},
    {"lower", filter_lower, 0, ""},
    {"map", filter_map, 4, "attribute default"},
    {"reject", filter_reject, 2, ""},
    {"rejectattr", filter_rejectattr, 3, ""},
    {"replace", filter_replace, 3, "old new count"},
    {"reverse", filter_reverse, 0, ""},
    {"safe", filter_safe, 0, ""},
    {"select", filter_select, 2, ""},
    {"selectattr", filter_selectattr, 3, ""},
    {"string", filter_string, 0, ""},
    {"title", filter_title, 0, ""},
    {"tojson", filter_tojson, 4, "ensure_ascii indent separators sort_keys"},
    {"trim", filter_trim, 1, "chars"},
    {"unique", filter_unique, 0, ""},
    {"upper", filter_upper, 0, ""},
};

int ds_find_filter(ds_text name)
{
    for (size_t i = 0; i < sizeof filters / sizeof *filters; i++)
        if (ds_text_equals(name, filters[i].name))
            return (int)i;
    return -1;
}

ds_value ds_filter(ds_rendering *r, uint32_t index, ds_value value, const ds_arguments *arguments)
{
    assert(index < sizeof filters / sizeof *filters);
    ds_value result = {0};
    if (ds_enter(r) && ds_check_arguments(r, filters[index].name, arguments, filters[index].most, filters[index].names))
        result = filters[index].filter(r, value, arguments);
    ds_leave(r);
    return result;
}

/* ---- tests ---- */

typedef bool test_fn(ds_rendering *r, ds_value value, ds_value other);

/* A test that looks at the value alone. */
#define TEST_OF_VALUE(name, condition)                                                                                 \
    static bool is_##name(ds_rendering *r, ds_value v, ds_value other)                                                 \
    {                                                                                                                  \
        (void)r;                                                                                                       \
        (void)other;                                                                                                   \
        return condition;                                                                                              \
    }

TEST_OF_VALUE(boolean, v.type == DS_VALUE_BOOL)
TEST_OF_VALUE(defined, v.type != DS_VALUE_UNDEFINED)
TEST_OF_VALUE(undefined, v.type == DS_VALUE_UNDEFINED)
TEST_OF_VALUE(false, v.type == DS_VALUE_BOOL && !v.truth)
TEST_OF_VALUE(true, v.type == DS_VALUE_BOOL && v.truth)
TEST_OF_VALUE(float, v.type == DS_VALUE_FLOAT)
TEST_OF_VALUE(integer, v.type == DS_VALUE_INT)
TEST_OF_VALUE(mapping, ds_is_mapping(v))
TEST_OF_VALUE(none, v.type == DS_VALUE_NONE)
TEST_OF_VALUE(number, ds_is_number(v))
TEST_OF_VALUE(string, ds_is_string(v))
TEST_OF_VALUE(callable, v.type == DS_VALUE_MACRO || v.type == DS_VALUE_FUNCTION)

static bool is_iterable(ds_rendering *r, ds_value v, ds_value o)
{
    return (void)r, (void)o, ds_is_string(v) || ds_is_sequence(v) || ds_is_mapping(v) || v.type == DS_VALUE_UNDEFINED;
}

static bool is_sequence(ds_rendering *r, ds_value v, ds_value o)
{
    return (void)r, (void)o, ds_is_string(v) || ds_is_sequence(v) || ds_is_mapping(v) || v.type == DS_VALUE_UNDEFINED;
}

static bool is_equal(ds_rendering *r, ds_value v, ds_value o) { return ds_equal(r, v, o); }
static bool is_unequal(ds_rendering *r, ds_value v, ds_value o) { return !ds_equal(r, v, o); }
static bool is_less(ds_rendering *r, ds_value v, ds_value o) { return ds_compare(r, v, o) < 0; }
static bool is_less_equal(ds_rendering *r, ds_value v, ds_value o) { return ds_compare(r, v, o) <= 0; }
static bool is_greater(ds_rendering *r, ds_value v, ds_value o) { return ds_compare(r, v, o) > 0; }
static bool is_greater_equal(ds_rendering *r, ds_value v, ds_value o) { return ds_compare(r, v, o) >= 0; }

static bool is_in(ds_rendering *r, ds_value v, ds_value o)
{
    if (ds_is_string(o) && ds_is_string(v))
        return ds_spend(r, (o.string->size / 64 + 1) * (v.string->size / 64 + 1)) &&
               ds_find(o.string, v.string, 0) != SIZE_MAX;
    const ds_list *list = ds_elements(r, o);
    for (size_t i = 0; list != NULL && i < list->n && !ds_failed(r); i++)
        if (ds_equal(r, list->values[i], v))
            return true;
    return false;
}

static bool divisible(ds_rendering *r, ds_value v, int64_t by)
{
    if (ds_is_number(v) && v.type != DS_VALUE_FLOAT && by != 0)
        return by == -1 || ds_whole(v) % by == 0;
    ds_refuse(r, "only integers are odd, even or divisible, and not by zero");
    return false;
}

static bool is_even(ds_rendering *r, ds_value v, ds_value o) { return (void)o, divisible(r, v, 2); }
static bool is_odd(ds_rendering *r, ds_value v, ds_value o) { return (void)o, !divisible(r, v, 2); }
static bool is_divisible(ds_rendering *r, ds_value v, ds_value o)
{
    return divisible(r, v, o.type == DS_VALUE_INT ? o.number : 0);
}

/* The same object: only what has one of a kind is told apart from what is equal. */
static bool is_same(ds_rendering *r, ds_value v, ds_value o) { return v.type == o.type && ds_equal(r, v, o); }

static const struct {
    const char *name;
    test_fn *test;
    size_t arguments;
} tests[] = {
    {"!=", is_unequal, 1},
    {"<", is_less, 1},
    {"<=", is_less_equal, 1},
    {"==", is_equal, 1},
    {">", is_greater, 1},
    {">=", is_greater_equal, 1},
    {"boolean", is_boolean, 0},
    {"callable", is_callable, 0},
    {"defined", is_defined, 0},
    {"divisibleby", is_divisible, 1},
    {"eq", is_equal, 1},
    {"equalto", is_equal, 1},
    {"even", is_even, 0},
    {"false", is_false, 0},
    {"float", is_float, 0},
    {"ge", is_greater_equal, 1},
    {"greaterthan", is_greater, 1},
    {"gt", is_greater, 1},
    {"in", is_in, 1},
    {"integer", is_integer, 0},
    {"iterable", is_iterable, 0},
    {"le", is_less_equal, 1},
    {"lessthan", is_less, 1},
    {"lt", is_less, 1},
    {"mapping", is_mapping, 0},
    {"ne", is_unequal, 1},
    {"none", is_none, 0},
    {"number", is_number, 0},
    {"odd", is_odd, 0},
    {"sameas", is_same, 1},
    {"sequence", is_sequence, 0},
    {"string", is_string, 0},
    {"true", is_true, 0},
    {"undefined", is_undefined, 0},
};

int ds_find_test(ds_text name)
{
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++)
        if (ds_text_equals(name, tests[i].name))
            return (int)i;
    return -1;
}

bool ds_test(ds_rendering *r, uint32_t index, ds_value value, const ds_arguments *arguments)
{
    assert(index < sizeof tests / sizeof *tests);
    if (!ds_check_arguments(r, tests[index].name, arguments, tests[index].arguments, ""))
        return false;
    if (arguments->n < tests[index].arguments) {
        ds_refuse(r, "the test %s needs an argument", tests[index].name);
        return false;
    }
    return tests[index].test(r, value, arguments->n > 0 ? arguments->values[0] : (ds_value){0});
}

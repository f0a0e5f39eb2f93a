/* Renders a template: statements write, expressions have values. After the first failure every function returns at
 * once, and what it returns does not count. */
#include "template/parts.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

/* What a prompt may take. A step is a node or an element that is looked at; text counts a step for 64 bytes. */
enum {
    STEPS = 20 << 20,
    STEPS_PER_BYTE = 16, /* of the variables, beyond STEPS */
    MEMORY = 64 << 20,
    MEMORY_PER_BYTE = 64, /* of the variables, beyond MEMORY */
    MOST_DEPTH = 160,     /* of calls that nest; what the parser allows, within a few macros */
};

/* ---- memory ---- */

struct ds_arena_piece {
    struct ds_arena_piece *next;
    size_t used, size;
    _Alignas(max_align_t) unsigned char bytes[];
};

void *ds_arena_new(ds_arena *arena, size_t count, size_t size)
{
    enum { PIECE = 16 << 10 };
    uint64_t bytes;
    if (!ds_mul(count, size, &bytes) || !ds_add(bytes, sizeof(max_align_t) - 1, &bytes) || bytes > arena->limit)
        return NULL;
    size_t n = (size_t)(bytes / sizeof(max_align_t) * sizeof(max_align_t));
    struct ds_arena_piece *piece = arena->pieces;
    if (piece == NULL || piece->size - piece->used < n) {
        size_t capacity = n > PIECE ? n : PIECE;
        if (capacity > arena->limit - arena->used)
            return NULL;
        piece = ds_new(1, sizeof *piece + capacity);
        arena->refused = piece == NULL;
        if (piece == NULL)
            return NULL;
        piece->size = capacity;
        arena->used += capacity;
        /* A piece for one large thing goes behind the piece that still has room. */
        if (n > PIECE && arena->pieces != NULL) {
            piece->next = arena->pieces->next;
            arena->pieces->next = piece;
        } else {
            piece->next = arena->pieces;
            arena->pieces = piece;
        }
    }
    void *memory = piece->bytes + piece->used;
    piece->used += n;
    return memory;
}

void ds_arena_free(ds_arena *arena)
{
    for (struct ds_arena_piece *piece = arena->pieces, *next; piece != NULL; piece = next) {
        next = piece->next;
        ds_free(piece);
    }
    *arena = (ds_arena){0};
}

/* ---- failures and bounds ---- */

ds_value ds_refuse(ds_rendering *r, const char *format, ...)
{
    if (ds_failed(r))
        return (ds_value){0};
    char message[400];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    r->status = ds_fail(DSV2_ERROR_ARGUMENT, "%s: line %u of the chat template: %s", r->template->path, r->line,
                        message);
    return (ds_value){0};
}

static void exhausted(ds_rendering *r, const char *what)
{
    if (!ds_failed(r))
        r->status = ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: line %u of the chat template: rendering takes more %s than a "
                            "prompt can need", r->template->path, r->line, what);
}

void *ds_render_new(ds_rendering *r, size_t count, size_t size)
{
    if (ds_failed(r))
        return NULL;
    void *memory = ds_arena_new(&r->arena, count, size);
    if (memory == NULL && r->arena.refused)
        r->status = ds_fail_memory("a prompt", count * size);
    else if (memory == NULL)
        exhausted(r, "memory");
    return memory;
}

bool ds_spend(ds_rendering *r, uint64_t n)
{
    if (ds_failed(r))
        return false;
    if (r->steps < n) {
        exhausted(r, "steps");
        return false;
    }
    r->steps -= n;
    return true;
}

bool ds_enter(ds_rendering *r)
{
    if (++r->depth > MOST_DEPTH)
        exhausted(r, "levels");
    return ds_spend(r, 1);
}

void ds_leave(ds_rendering *r) { r->depth--; }

/* ---- names ---- */

static ds_text name_text(const ds_rendering *r, uint32_t name) { return r->template->names[name]; }

static ds_value *find_binding(ds_scope *scope, uint32_t name)
{
    for (size_t i = 0; i < scope->n; i++)
        if (scope->bindings[i].name == name)
            return &scope->bindings[i].value;
    return NULL;
}

static void bind(ds_rendering *r, ds_scope *scope, uint32_t name, ds_value value)
{
    if (ds_failed(r))
        return;
    ds_value *bound = find_binding(scope, name);
    if (bound != NULL) {
        *bound = value;
        return;
    }
    if (scope->n == scope->capacity) {
        size_t capacity = scope->capacity == 0 ? 4 : 2 * scope->capacity;
        ds_binding *bindings = ds_render_new(r, capacity, sizeof *bindings);
        if (bindings == NULL)
            return;
        if (scope->n > 0)
            memcpy(bindings, scope->bindings, scope->n * sizeof *bindings);
        scope->bindings = bindings;
        scope->capacity = capacity;
    }
    scope->bindings[scope->n++] = (ds_binding){name, value};
}

static ds_value look_up(ds_rendering *r, uint32_t name)
{
    for (ds_scope *scope = r->scope; scope != NULL; scope = scope->parent) {
        const ds_value *bound = find_binding(scope, name);
        if (bound != NULL)
            return *bound;
    }
    ds_text text = name_text(r, name);
    for (size_t i = 0; i < r->variables->n; i++) {
        const ds_string *key = r->variables->entries[i].key.string;
        if (key->size == text.size && memcmp(key->bytes, text.data, text.size) == 0)
            return r->variables->entries[i].value;
    }
    return (ds_value){0};
}

static ds_scope *new_scope(ds_rendering *r, ds_scope *parent)
{
    ds_scope *scope = ds_render_new(r, 1, sizeof *scope);
    if (scope != NULL)
        scope->parent = parent;
    return scope;
}

/* ---- arguments ---- */

ds_value ds_argument(const ds_rendering *r, const ds_arguments *arguments, size_t position, const char *name)
{
    if (position < arguments->n && arguments->names[position] == DS_NO_NAME)
        return arguments->values[position];
    for (size_t i = 0; i < arguments->n; i++)
        if (arguments->names[i] != DS_NO_NAME && ds_text_equals(name_text(r, arguments->names[i]), name))
            return arguments->values[i];
    return (ds_value){0};
}

/* Whether a name is one of several, which spaces separate. */
static bool is_among(ds_text name, const char *names)
{
    while (*names != '\0') {
        size_t n = strcspn(names, " ");
        if (n == name.size && memcmp(names, name.data, n) == 0)
            return true;
        names += n + (names[n] == ' ');
    }
    return false;
}

bool ds_check_arguments(ds_rendering *r, const char *what, const ds_arguments *arguments, size_t most,
                        const char *names)
{
    if (ds_failed(r))
        return false;
    if (arguments->n > most)
        ds_refuse(r, "%s takes at most %zu arguments, not %zu", what, most, arguments->n);
    for (size_t i = 0; i < arguments->n; i++)
        if (arguments->names[i] != DS_NO_NAME && !is_among(name_text(r, arguments->names[i]), names))
            ds_refuse(r, "%s takes no argument named \"%.40s\"", what, name_text(r, arguments->names[i]).data);
    return !ds_failed(r);
}

static ds_arguments evaluate_arguments(ds_rendering *r, const ds_node *call)
{
    ds_arguments arguments = {.names = call->names};
    ds_value *values = ds_render_new(r, call->n, sizeof *values);
    for (uint32_t i = 0; i < call->n && !ds_failed(r); i++)
        values[i] = ds_evaluate(r, call->items[i]);
    if (!ds_failed(r)) {
        arguments.values = values;
        arguments.n = call->n;
    }
    return arguments;
}

/* ---- items, attributes, slices ---- */

/* A whole number as a place among n; false if it is none of them. */
static bool resolve_index(ds_value key, size_t n, size_t *index)
{
    if (key.type != DS_VALUE_INT && key.type != DS_VALUE_BOOL)
        return false;
    int64_t i = ds_whole(key);
    if (i < 0)
        i += (int64_t)n;
    *index = (size_t)i;
    return i >= 0 && (uint64_t)i < n;
}

static ds_value loop_attribute(ds_rendering *r, const ds_loop *loop, ds_text name)
{
    int64_t index = (int64_t)loop->index, n = (int64_t)loop->values->n;
    if (ds_text_equals(name, "index0"))
        return ds_int(index);
    if (ds_text_equals(name, "index"))
        return ds_int(index + 1);
    if (ds_text_equals(name, "first"))
        return ds_bool(index == 0);
    if (ds_text_equals(name, "last"))
        return ds_bool(index + 1 == n);
    if (ds_text_equals(name, "length"))
        return ds_int(n);
    if (ds_text_equals(name, "revindex"))
        return ds_int(n - index);
    if (ds_text_equals(name, "revindex0"))
        return ds_int(n - index - 1);
    if (ds_text_equals(name, "depth"))
        return ds_int(loop->depth);
    if (ds_text_equals(name, "depth0"))
        return ds_int(loop->depth - 1);
    if (ds_text_equals(name, "previtem"))
        return index > 0 ? loop->values->values[index - 1] : (ds_value){0};
    if (ds_text_equals(name, "nextitem"))
        return index + 1 < n ? loop->values->values[index + 1] : (ds_value){0};
    return ds_refuse(r, "a loop has no \"%.*s\"", name.size < 40 ? (int)name.size : 40, name.data);
}

ds_value ds_get_item(ds_rendering *r, ds_value value, ds_value key)
{
    size_t index;
    switch (value.type) {
    case DS_VALUE_DICT:
    case DS_VALUE_NAMESPACE: {
        const ds_value *found = ds_dict_get(r, value.dict, key);
        return found != NULL ? *found : (ds_value){0};
    }
    case DS_VALUE_LIST:
    case DS_VALUE_TUPLE:
        return resolve_index(key, value.list->n, &index) ? value.list->values[index] : (ds_value){0};
    case DS_VALUE_STRING: {
        const ds_string *string = value.string;
        if (!ds_spend(r, string->size / 16) || !resolve_index(key, ds_characters(string), &index))
            return (ds_value){0};
        size_t at = ds_character_at(string, index);
        return ds_part(r, string, at, ds_character_size(string, at));
    }
    case DS_VALUE_LOOP:
        if (ds_is_string(key))
            return loop_attribute(r, value.loop, (ds_text){key.string->bytes, key.string->size});
        return (ds_value){0};
    case DS_VALUE_UNDEFINED:
    case DS_VALUE_NONE:
        if (value.type == DS_VALUE_UNDEFINED)
            return ds_refuse(r, "what is undefined has no elements");
        return (ds_value){0};
    default: return (ds_value){0};
    }
}

static ds_value get_attribute(ds_rendering *r, ds_value value, uint32_t name)
{
    ds_text text = name_text(r, name);
    if (value.type == DS_VALUE_UNDEFINED)
        return ds_refuse(r, "\"%.*s\" is asked of what is undefined", text.size < 40 ? (int)text.size : 40, text.data);
    const ds_string key = {.bytes = text.data, .size = text.size};
    if (value.type == DS_VALUE_DICT || value.type == DS_VALUE_NAMESPACE || value.type == DS_VALUE_LOOP)
        return ds_get_item(r, value, (ds_value){.type = DS_VALUE_STRING, .string = &key});
    return (ds_value){0};
}

/* A bound of a slice, within -1 .. n: as Python's slice.indices. */
static int64_t slice_bound(ds_rendering *r, const ds_node *node, int64_t n, int64_t absent, bool backward)
{
    if (node == NULL)
        return absent;
    ds_value value = ds_evaluate(r, node);
    if (value.type == DS_VALUE_NONE)
        return absent;
    if (value.type != DS_VALUE_INT && value.type != DS_VALUE_BOOL) {
        ds_refuse(r, "a slice goes by integers, not by %s", ds_value_kind(value));
        return absent;
    }
    int64_t i = ds_whole(value), least = backward ? -1 : 0, most = backward ? n - 1 : n;
    if (i < 0)
        i = i < -n ? least - 1 : i + n;
    return i < least ? least : i > most ? most : i;
}

static ds_value slice(ds_rendering *r, ds_value value, const ds_node *node)
{
    if (!ds_is_sequence(value) && !ds_is_string(value))
        return ds_refuse(r, "%s cannot be sliced", ds_value_kind(value));
    ds_list *elements = ds_elements(r, value);
    ds_value step_value = node->items[2] != NULL ? ds_evaluate(r, node->items[2]) : ds_int(1);
    if (ds_failed(r))
        return (ds_value){0};
    int64_t n = (int64_t)elements->n, step = step_value.type == DS_VALUE_NONE ? 1 : step_value.number;
    if ((step_value.type != DS_VALUE_INT && step_value.type != DS_VALUE_NONE) || step == 0)
        return ds_refuse(r, "the step of a slice is not an integer other than 0");
    bool backward = step < 0;
    int64_t start = slice_bound(r, node->items[0], n, backward ? n - 1 : 0, backward);
    int64_t stop = slice_bound(r, node->items[1], n, backward ? -1 : n, backward);
    ds_value made = ds_new_list(r, 0);
    made.type = value.type == DS_VALUE_TUPLE ? DS_VALUE_TUPLE : DS_VALUE_LIST;
    step = step > n ? n + 1 : step < -n ? -n - 1 : step;
    for (int64_t i = start; (backward ? i > stop : i < stop) && !ds_failed(r); i += step)
        ds_list_add(r, made.list, elements->values[i]);
    if (!ds_is_string(value) || ds_failed(r))
        return made;
    const ds_string nothing = {.bytes = ""};
    return ds_join(r, made.list, &nothing);
}

/* ---- macros ---- */

static ds_value run_captured(ds_rendering *r, const ds_node *block);

static ds_value call_macro(ds_rendering *r, const ds_macro *macro, const ds_arguments *arguments)
{
    const ds_node *node = macro->node;
    uint32_t n = node->n - 1; /* of parameters */
    ds_scope *scope = new_scope(r, macro->scope), *outer = r->scope;
    if (scope == NULL)
        return (ds_value){0};
    for (size_t i = 0; i < arguments->n; i++) {
        uint32_t place = 0;
        while (arguments->names[i] != DS_NO_NAME ? place < n && node->names[place] != arguments->names[i] : place < i)
            place++;
        if (place >= n)
            return ds_refuse(r, "a macro is called with an argument that it has not");
        bind(r, scope, node->names[place], arguments->values[i]);
    }
    r->scope = scope;
    for (uint32_t i = 0; i < n && !ds_failed(r); i++)
        if (find_binding(scope, node->names[i]) == NULL)
            bind(r, scope, node->names[i], node->items[i] != NULL ? ds_evaluate(r, node->items[i]) : (ds_value){0});
    const ds_loop *loop = r->loop;
    r->loop = NULL;
    ds_value text = run_captured(r, node->items[n]);
    r->loop = loop;
    r->scope = outer;
    return text;
}

/* ---- expressions ---- */

static ds_value refuse_operands(ds_rendering *r, const char *op, ds_value a, ds_value b)
{
    return ds_refuse(r, "%s cannot be done with %s and %s", op, ds_value_kind(a), ds_value_kind(b));
}

static ds_value concatenate(ds_rendering *r, ds_value a, ds_value b)
{
    ds_builder builder = {0};
    ds_print(r, &builder, a);
    ds_print(r, &builder, b);
    return ds_built(r, &builder);
}

static ds_value add_values(ds_rendering *r, ds_value a, ds_value b)
{
    if (ds_is_string(a) && ds_is_string(b))
        return concatenate(r, a, b);
    if (!ds_is_sequence(a) || a.type != b.type)
        return refuse_operands(r, "+", a, b);
    ds_value made = ds_new_list(r, a.list->n + b.list->n);
    made.type = a.type;
    for (size_t i = 0; i < a.list->n && !ds_failed(r); i++)
        ds_list_add(r, made.list, a.list->values[i]);
    for (size_t i = 0; i < b.list->n && !ds_failed(r); i++)
        ds_list_add(r, made.list, b.list->values[i]);
    return made;
}

static ds_value float_arithmetic(ds_rendering *r, ds_operator op, double a, double b)
{
    switch (op) {
    case DS_PLUS: return ds_float(a + b);
    case DS_MINUS: return ds_float(a - b);
    case DS_TIMES: return ds_float(a * b);
    case DS_DIVIDE:
        if (b != 0)
            return ds_float(a / b);
        break;
    default: return ds_refuse(r, "// and %% are done with integers alone");
    }
    return ds_refuse(r, "a division by zero");
}

static ds_value int_arithmetic(ds_rendering *r, ds_operator op, int64_t a, int64_t b)
{
    int64_t result = 0;
    bool fits = true;
    if ((op == DS_DIVIDE_DOWN || op == DS_REMAINDER) && b == 0)
        return ds_refuse(r, "a division by zero");
    switch (op) {
    case DS_PLUS: fits = !__builtin_add_overflow(a, b, &result); break;
    case DS_MINUS: fits = !__builtin_sub_overflow(a, b, &result); break;
    case DS_TIMES: fits = !__builtin_mul_overflow(a, b, &result); break;
    case DS_DIVIDE_DOWN:
        fits = a != INT64_MIN || b != -1;
        result = fits ? a / b - (a % b != 0 && (a < 0) != (b < 0)) : 0;
        break;
    default: /* the remainder has the divisor's sign */
        result = b == -1 ? 0 : a % b;
        result += result != 0 && (result < 0) != (b < 0) ? b : 0;
    }
    return fits ? ds_int(result) : ds_refuse(r, "an integer has more than 64 bits");
}

static ds_value arithmetic(ds_rendering *r, ds_operator op, ds_value a, ds_value b)
{
    static const char *const names[] = {[DS_PLUS] = "+", [DS_MINUS] = "-", [DS_TIMES] = "*", [DS_DIVIDE] = "/",
                                        [DS_DIVIDE_DOWN] = "//", [DS_REMAINDER] = "%"};
    if (op == DS_JOIN)
        return concatenate(r, a, b);
    if (ds_is_number(a) && ds_is_number(b)) {
        if (a.type == DS_VALUE_FLOAT || b.type == DS_VALUE_FLOAT || op == DS_DIVIDE)
            return float_arithmetic(r, op, ds_real(a), ds_real(b));
        return int_arithmetic(r, op, ds_whole(a), ds_whole(b));
    }
    if (op == DS_PLUS)
        return add_values(r, a, b);
    if (op != DS_TIMES || !ds_is_string(a) || b.type != DS_VALUE_INT)
        return refuse_operands(r, names[op], a, b);
    ds_builder builder = {0};
    for (int64_t i = 0; i < b.number && ds_spend(r, 1); i++)
        ds_add_string(r, &builder, a.string);
    return ds_built(r, &builder);
}

static bool contains(ds_rendering *r, ds_value element, ds_value value)
{
    if (ds_is_string(value)) {
        if (!ds_is_string(element)) {
            refuse_operands(r, "in", element, value);
            return false;
        }
        return ds_spend(r, (value.string->size / 64 + 1) * (element.string->size / 64 + 1)) &&
               ds_find(value.string, element.string, 0) != SIZE_MAX;
    }
    if (ds_is_mapping(value))
        return ds_dict_get(r, value.dict, element) != NULL;
    const ds_list *list = ds_elements(r, value);
    for (size_t i = 0; list != NULL && i < list->n && !ds_failed(r); i++)
        if (ds_equal(r, list->values[i], element))
            return true;
    return false;
}

static bool compare(ds_rendering *r, ds_operator op, ds_value a, ds_value b)
{
    switch (op) {
    case DS_EQUAL: return ds_equal(r, a, b);
    case DS_UNEQUAL: return !ds_equal(r, a, b);
    case DS_IN: return contains(r, a, b);
    case DS_NOT_IN: return !contains(r, a, b);
    case DS_LESS: return ds_compare(r, a, b) < 0;
    case DS_LESS_EQUAL: return ds_compare(r, a, b) <= 0;
    case DS_GREATER: return ds_compare(r, a, b) > 0;
    default: return ds_compare(r, a, b) >= 0;
    }
}

/* a or b or c; a < b < c; a + b - c: from left to right, no further than the value needs. */
static ds_value evaluate_chain(ds_rendering *r, const ds_node *node)
{
    ds_value value = ds_evaluate(r, node->items[0]);
    for (uint32_t i = 1; i < node->n && !ds_failed(r); i++) {
        ds_operator op = node->ops[i - 1];
        if (op == DS_OR || op == DS_AND) {
            if (ds_truth(value) == (op == DS_OR))
                return value;
            value = ds_evaluate(r, node->items[i]);
            continue;
        }
        ds_value right = ds_evaluate(r, node->items[i]);
        if (ds_failed(r))
            break;
        if (op >= DS_PLUS) {
            value = arithmetic(r, op, value, right);
            continue;
        }
        bool holds = compare(r, op, value, right);
        if (!holds || i + 1 == node->n)
            return ds_bool(holds);
        value = right;
    }
    return value;
}

static ds_value call_value(ds_rendering *r, ds_value value, const ds_arguments *arguments)
{
    if (value.type != DS_VALUE_MACRO)
        return ds_refuse(r, "%s cannot be called", ds_value_kind(value));
    ds_value text = ds_enter(r) ? call_macro(r, value.macro, arguments) : (ds_value){0};
    ds_leave(r);
    return text;
}

/* What is done to a value, from node->items[1] on. */
static ds_value evaluate_postfix(ds_rendering *r, const ds_node *node)
{
    const ds_node *first = node->items[0];
    uint32_t i = 1;
    ds_value value;
    if (first->kind == DS_NODE_NAME && node->items[1]->kind == DS_NODE_CALL &&
        ds_has_function(name_text(r, first->name)) && look_up(r, first->name).type == DS_VALUE_UNDEFINED) {
        ds_arguments arguments = evaluate_arguments(r, node->items[1]);
        value = ds_failed(r) ? (ds_value){0} : ds_call_function(r, name_text(r, first->name), &arguments);
        i = 2;
    } else {
        value = ds_evaluate(r, first);
    }
    for (; i < node->n && !ds_failed(r); i++) {
        const ds_node *op = node->items[i];
        ds_arguments arguments = {0};
        if (op->kind == DS_NODE_ATTRIBUTE && i + 1 < node->n && node->items[i + 1]->kind == DS_NODE_CALL) {
            arguments = evaluate_arguments(r, node->items[i + 1]);
            bool found = false;
            ds_value called = ds_failed(r) ? (ds_value){0}
                                           : ds_call_method(r, value, name_text(r, op->name), &arguments, &found);
            if (!found)
                called = call_value(r, get_attribute(r, value, op->name), &arguments);
            value = called;
            i++;
            continue;
        }
        if (op->kind == DS_NODE_CALL || op->kind == DS_NODE_FILTER || op->kind == DS_NODE_TEST)
            arguments = evaluate_arguments(r, op);
        if (ds_failed(r))
            break;
        switch (op->kind) {
        case DS_NODE_ATTRIBUTE: value = get_attribute(r, value, op->name); break;
        case DS_NODE_ITEM: value = ds_get_item(r, value, ds_evaluate(r, op->items[0])); break;
        case DS_NODE_SLICE: value = slice(r, value, op); break;
        case DS_NODE_CALL: value = call_value(r, value, &arguments); break;
        case DS_NODE_FILTER: value = ds_filter(r, op->index, value, &arguments); break;
        default: value = ds_bool(ds_test(r, op->index, value, &arguments) != op->negated);
        }
    }
    return value;
}

static ds_value evaluate_list(ds_rendering *r, const ds_node *node)
{
    ds_value made = ds_new_list(r, node->n);
    for (uint32_t i = 0; i < node->n && !ds_failed(r); i++)
        ds_list_add(r, made.list, ds_evaluate(r, node->items[i]));
    if (node->kind == DS_NODE_TUPLE)
        made.type = DS_VALUE_TUPLE;
    return made;
}

static ds_value evaluate_dict(ds_rendering *r, const ds_node *node)
{
    ds_value made = ds_new_dict(r, node->n / 2);
    for (uint32_t i = 0; i < node->n && !ds_failed(r); i += 2) {
        ds_value key = ds_evaluate(r, node->items[i]);
        ds_dict_set(r, made.dict, key, ds_evaluate(r, node->items[i + 1]));
    }
    return made;
}

static ds_value signed_value(ds_rendering *r, const ds_node *node)
{
    ds_value value = ds_evaluate(r, node->items[0]);
    bool negative = node->kind == DS_NODE_NEGATIVE;
    if (value.type == DS_VALUE_FLOAT)
        return ds_float(negative ? -value.real : value.real);
    if (!ds_is_number(value))
        return ds_refuse(r, "%s has no sign", ds_value_kind(value));
    return negative ? int_arithmetic(r, DS_MINUS, 0, ds_whole(value)) : ds_int(ds_whole(value));
}

static ds_value evaluate_choice(ds_rendering *r, const ds_node *node)
{
    bool yes = ds_truth(ds_evaluate(r, node->items[1]));
    if (ds_failed(r) || (!yes && node->items[2] == NULL))
        return (ds_value){0};
    return ds_evaluate(r, node->items[yes ? 0 : 2]);
}

static ds_value evaluate_name(ds_rendering *r, uint32_t name)
{
    if (r->loop != NULL && ds_text_equals(name_text(r, name), "loop"))
        return (ds_value){.type = DS_VALUE_LOOP, .loop = r->loop};
    ds_value value = look_up(r, name);
    if (value.type == DS_VALUE_UNDEFINED && ds_has_function(name_text(r, name)))
        value.type = DS_VALUE_FUNCTION;
    return value;
}

static ds_value evaluate(ds_rendering *r, const ds_node *node)
{
    switch (node->kind) {
    case DS_NODE_LITERAL: return node->value;
    case DS_NODE_NAME: return evaluate_name(r, node->name);
    case DS_NODE_LIST:
    case DS_NODE_TUPLE: return evaluate_list(r, node);
    case DS_NODE_DICT: return evaluate_dict(r, node);
    case DS_NODE_CHOICE: return evaluate_choice(r, node);
    case DS_NODE_CHAIN: return evaluate_chain(r, node);
    case DS_NODE_NOT: return ds_bool(!ds_truth(ds_evaluate(r, node->items[0])));
    case DS_NODE_NEGATIVE:
    case DS_NODE_POSITIVE: return signed_value(r, node);
    default: return evaluate_postfix(r, node);
    }
}

ds_value ds_evaluate(ds_rendering *r, const ds_node *node)
{
    r->line = node->line;
    ds_value value = ds_enter(r) ? evaluate(r, node) : (ds_value){0};
    ds_leave(r);
    return value;
}

/* ---- statements ---- */

static void run(ds_rendering *r, const ds_node *node);

/* What a block writes, as a string. */
static ds_value run_captured(ds_rendering *r, const ds_node *block)
{
    ds_builder builder = {0}, *out = r->out;
    r->out = &builder;
    run(r, block);
    r->out = out;
    return ds_failed(r) ? (ds_value){0} : ds_built(r, &builder);
}

static void assign(ds_rendering *r, const ds_node *target, ds_value value)
{
    if (target->kind == DS_NODE_NAME) {
        bind(r, r->scope, target->name, value);
        return;
    }
    if (target->kind == DS_NODE_POSTFIX) {
        ds_value space = ds_evaluate(r, target->items[0]);
        ds_text name = name_text(r, target->items[1]->name);
        if (space.type != DS_VALUE_NAMESPACE)
            ds_refuse(r, "set gives %s an attribute, which only a namespace can have", ds_value_kind(space));
        else
            ds_dict_set(r, space.dict, ds_new_string(r, name.data, name.size, DS_OF_TEMPLATE), value);
        return;
    }
    const ds_list *list = ds_elements(r, value);
    if (list != NULL && list->n != target->n)
        ds_refuse(r, "%u names are given %zu values", target->n, list->n);
    for (uint32_t i = 0; i < target->n && !ds_failed(r); i++)
        assign(r, target->items[i], list->values[i]);
}

/* The elements for which a loop's condition holds. */
static ds_list *chosen(ds_rendering *r, const ds_node *node, ds_list *all)
{
    if (node->items[4] == NULL || ds_failed(r))
        return all;
    ds_list *list = ds_new_list(r, 0).list;
    ds_scope *outer = r->scope;
    for (size_t i = 0; i < all->n && !ds_failed(r); i++) {
        r->scope = new_scope(r, outer);
        if (r->scope != NULL)
            assign(r, node->items[0], all->values[i]);
        if (!ds_failed(r) && ds_truth(ds_evaluate(r, node->items[4])))
            ds_list_add(r, list, all->values[i]);
    }
    r->scope = outer;
    return list;
}

static void run_for(ds_rendering *r, const ds_node *node)
{
    ds_list *all = ds_elements(r, ds_evaluate(r, node->items[1]));
    const ds_list *list = chosen(r, node, all);
    if (ds_failed(r))
        return;
    if (list->n == 0) {
        if (node->items[3] != NULL)
            run(r, node->items[3]);
        return;
    }
    const ds_loop *outer_loop = r->loop;
    ds_scope *outer = r->scope;
    ds_loop *loop = ds_render_new(r, 1, sizeof *loop);
    ds_value *last_seen = ds_render_new(r, 1, sizeof *last_seen);
    if (ds_failed(r))
        return;
    *loop = (ds_loop){.values = list, .depth = outer_loop != NULL ? outer_loop->depth + 1 : 1, .last_seen = last_seen};
    /* A template may append to the list that it walks. */
    for (loop->index = 0; loop->index < list->n && r->flow != DS_BREAK && !ds_failed(r); loop->index++) {
        r->loop = loop;
        r->scope = new_scope(r, outer);
        if (ds_failed(r))
            break;
        assign(r, node->items[0], list->values[loop->index]);
        run(r, node->items[2]);
        if (r->flow == DS_CONTINUE)
            r->flow = DS_GO_ON;
    }
    r->flow = DS_GO_ON;
    r->loop = outer_loop;
    r->scope = outer;
}

static void run_if(ds_rendering *r, const ds_node *node)
{
    for (uint32_t i = 0; i + 1 < node->n && !ds_failed(r); i += 2)
        if (ds_truth(ds_evaluate(r, node->items[i]))) {
            run(r, node->items[i + 1]);
            return;
        }
    if (node->n % 2 == 1)
        run(r, node->items[node->n - 1]);
}

static void define_macro(ds_rendering *r, const ds_node *node)
{
    ds_macro *macro = ds_render_new(r, 1, sizeof *macro);
    if (macro == NULL)
        return;
    *macro = (ds_macro){.node = node, .scope = r->scope};
    bind(r, r->scope, node->name, (ds_value){.type = DS_VALUE_MACRO, .macro = macro});
}

static void run_statement(ds_rendering *r, const ds_node *node)
{
    r->line = node->line;
    switch (node->kind) {
    case DS_NODE_BLOCK:
        for (uint32_t i = 0; i < node->n && r->flow == DS_GO_ON && !ds_failed(r); i++)
            run(r, node->items[i]);
        break;
    case DS_NODE_TEXT: ds_add_string(r, r->out, node->value.string); break;
    case DS_NODE_PRINT: {
        ds_value value = ds_evaluate(r, node->items[0]);
        if (!ds_failed(r))
            ds_print(r, r->out, value);
        break;
    }
    case DS_NODE_IF: run_if(r, node); break;
    case DS_NODE_FOR: run_for(r, node); break;
    case DS_NODE_SET: assign(r, node->items[0], ds_evaluate(r, node->items[1])); break;
    case DS_NODE_SET_BLOCK: assign(r, node->items[0], run_captured(r, node->items[1])); break;
    case DS_NODE_MACRO: define_macro(r, node); break;
    case DS_NODE_BREAK: r->flow = DS_BREAK; break;
    default: r->flow = DS_CONTINUE;
    }
}

static void run(ds_rendering *r, const ds_node *node)
{
    if (ds_enter(r))
        run_statement(r, node);
    ds_leave(r);
}

/* ---- the whole ---- */

static void give_words(ds_rendering *r, const ds_template_word *words, size_t n_words)
{
    for (size_t i = 0; i < n_words && !ds_failed(r); i++) {
        if (ds_dict_find(r->variables, words[i].name) != NULL)
            continue;
        ds_value key = ds_new_string(r, words[i].name, strlen(words[i].name), DS_OF_TEMPLATE);
        ds_dict_set(r, r->variables, key, ds_new_string(r, words[i].text.data, words[i].text.size, DS_OF_TEMPLATE));
    }
}

static dsv2_status give_out(const ds_builder *built, ds_rendered *rendered)
{
    char *text = ds_new(built->size, 1);
    uint8_t *origins = ds_new(built->size, 1);
    if (text == NULL || origins == NULL) {
        ds_free(text);
        ds_free(origins);
        return ds_fail_memory("a prompt", 2 * built->size);
    }
    if (built->size > 0) {
        memcpy(text, built->bytes, built->size);
        memcpy(origins, built->origins, built->size);
    }
    *rendered = (ds_rendered){text, origins, built->size};
    return DSV2_OK;
}

/* Bytes that the texts of a value have, and some for each value. */
static uint64_t weight(const json_t *json)
{
    uint64_t sum = 16;
    const char *key;
    json_t *member;
    if (json_is_string(json))
        return sum + json_string_length(json);
    json_object_foreach((json_t *)(uintptr_t)json, key, member) { /* reads alone, but takes no const */
        sum += strlen(key) + weight(member);
    }
    for (size_t i = 0; i < json_array_size(json); i++)
        sum += weight(json_array_get(json, i));
    return sum;
}

dsv2_status ds_template_render(const ds_template *template, const json_t *variables, const ds_template_word *words,
                               size_t n_words, int64_t now, ds_rendered *rendered)
{
    ds_builder out = {0};
    ds_scope top = {0};
    uint64_t bytes = weight(variables);
    if (bytes > UINT32_MAX)
        return ds_fail(DSV2_ERROR_ARGUMENT, "the variables of a chat template have more than 4 GiB");
    ds_rendering r = {.template = template, .out = &out, .scope = &top, .now = now, .line = 1,
                      .steps = STEPS + STEPS_PER_BYTE * bytes,
                      .arena.limit = (size_t)(MEMORY + MEMORY_PER_BYTE * bytes)};
    ds_value all = ds_variables_from_json(&r, variables);
    r.variables = all.dict;
    give_words(&r, words, n_words);
    if (!ds_failed(&r))
        run(&r, template->root);
    dsv2_status status = r.status == DSV2_OK ? give_out(&out, rendered) : r.status;
    ds_arena_free(&r.arena);
    return status;
}

void ds_rendered_free(ds_rendered *rendered)
{
    ds_free(rendered->text);
    ds_free(rendered->origins);
    *rendered = (ds_rendered){0};
}

/* What the files of this room share: the tree of a template, values, and the rendering. For this room alone. */
#ifndef DS_LIB_TEMPLATE_PARTS_H
#define DS_LIB_TEMPLATE_PARTS_H

#include "template/template.h"

/* ---- memory that is given back all at once ---- */

typedef struct ds_arena {
    struct ds_arena_piece *pieces;
    size_t used, limit; /* bytes of all pieces; no more than the limit are taken */
    bool refused;       /* the system had none, though the limit allowed more */
} ds_arena;

/* Zeroed memory, aligned for anything; NULL if there is none or the arena's limit is reached. */
void *ds_arena_new(ds_arena *arena, size_t count, size_t size);
void ds_arena_free(ds_arena *arena);

/* ---- values ---- */

typedef enum ds_value_type {
    DS_VALUE_UNDEFINED, /* a zeroed value */
    DS_VALUE_NONE,
    DS_VALUE_BOOL,
    DS_VALUE_INT,
    DS_VALUE_FLOAT,
    DS_VALUE_STRING,
    DS_VALUE_LIST,
    DS_VALUE_TUPLE,
    DS_VALUE_DICT,
    DS_VALUE_NAMESPACE, /* a dict whose entries `set` may change */
    DS_VALUE_MACRO,
    DS_VALUE_FUNCTION, /* one of the known ones, not called: it is defined and callable, and nothing else */
    DS_VALUE_LOOP,
} ds_value_type;

/* Who wrote the bytes of a text. */
typedef enum ds_origin {
    DS_OF_TEMPLATE,
    DS_OF_DATA,
    DS_OF_BOTH, /* then `origins` says it byte by byte */
} ds_origin;

typedef struct ds_string {
    const char *bytes; /* UTF-8, not terminated */
    size_t size;
    const uint8_t *origins; /* [size], DS_OF_TEMPLATE or DS_OF_DATA; NULL unless origin is DS_OF_BOTH */
    ds_origin origin;
} ds_string;

typedef struct ds_list ds_list;
typedef struct ds_dict ds_dict;
typedef struct ds_loop ds_loop;
typedef struct ds_macro ds_macro;

typedef struct ds_value {
    ds_value_type type;
    union {
        bool truth;
        int64_t number;
        double real;
        const ds_string *string;
        ds_list *list; /* also of a tuple */
        ds_dict *dict; /* also of a namespace */
        const ds_loop *loop;
        const ds_macro *macro;
    };
} ds_value;

struct ds_list {
    ds_value *values;
    size_t n, capacity;
};

typedef struct ds_entry {
    ds_value key, value;
} ds_entry;

struct ds_dict {
    ds_entry *entries; /* in the order in which they came */
    size_t n, capacity;
};

/* ---- the tree ---- */

typedef enum ds_node_kind {
    /* statements */
    DS_NODE_BLOCK,    /* items: statements */
    DS_NODE_TEXT,     /* value: a string */
    DS_NODE_PRINT,    /* items[0]: an expression */
    DS_NODE_IF,       /* items: condition, block, condition, block, ... and perhaps the block of `else` */
    DS_NODE_FOR,      /* items: target, expression, block, block of `else` or NULL, condition or NULL */
    DS_NODE_SET,      /* items: target, expression */
    DS_NODE_SET_BLOCK, /* items: target, block */
    DS_NODE_MACRO,    /* name; names: parameters; items: a default or NULL for each, then the block */
    DS_NODE_BREAK,
    DS_NODE_CONTINUE,
    /* expressions */
    DS_NODE_LITERAL,   /* value */
    DS_NODE_NAME,      /* name */
    DS_NODE_LIST,      /* items */
    DS_NODE_TUPLE,     /* items */
    DS_NODE_DICT,      /* items: key, value, key, value, ... */
    DS_NODE_CHOICE,    /* items: value, condition, other value or NULL */
    DS_NODE_CHAIN,     /* items, and between them operators: ops[i] stands before items[i + 1] */
    DS_NODE_NOT,       /* items[0] */
    DS_NODE_NEGATIVE,  /* items[0] */
    DS_NODE_POSITIVE,  /* items[0] */
    DS_NODE_POSTFIX,   /* items[0], and what is done to it in turn: */
    DS_NODE_ATTRIBUTE, /* name */
    DS_NODE_ITEM,      /* items[0] */
    DS_NODE_SLICE,     /* items: start, stop, step, each perhaps NULL */
    DS_NODE_CALL,      /* items: arguments; names: DS_NO_NAME for those by position, which come first */
    DS_NODE_FILTER,    /* index: the filter; items and names as of a call */
    DS_NODE_TEST,      /* index: the test; negated; items and names as of a call */
} ds_node_kind;

typedef enum ds_operator {
    DS_OR, DS_AND,
    DS_EQUAL, DS_UNEQUAL, DS_LESS, DS_LESS_EQUAL, DS_GREATER, DS_GREATER_EQUAL, DS_IN, DS_NOT_IN,
    DS_PLUS, DS_MINUS, DS_JOIN, DS_TIMES, DS_DIVIDE, DS_DIVIDE_DOWN, DS_REMAINDER,
} ds_operator;

#define DS_NO_NAME UINT32_MAX

typedef struct ds_node {
    ds_node_kind kind;
    uint32_t line;
    uint32_t name; /* into the template's names */
    uint32_t index;
    bool negated;
    uint32_t n;              /* of items */
    struct ds_node **items;
    uint8_t *ops;
    uint32_t *names;
    ds_value value;
} ds_node;

struct ds_template {
    char *path;
    ds_arena arena; /* of all below */
    ds_text *names;
    size_t n_names, names_capacity;
    ds_node *root;
};

/* ---- words of a template (scan.c) ---- */

typedef enum ds_word_type {
    DS_WORD_END,
    DS_WORD_TEXT,        /* outside of braces */
    DS_WORD_BEGIN_PRINT, /* {{ */
    DS_WORD_END_PRINT,   /* }} */
    DS_WORD_BEGIN_BLOCK, /* {% */
    DS_WORD_END_BLOCK,   /* %} */
    DS_WORD_NAME,
    DS_WORD_STRING,      /* value: the string, escapes resolved */
    DS_WORD_NUMBER,      /* value: an int or a float */
    DS_WORD_SIGN,        /* one or two characters */
} ds_word_type;

typedef struct ds_word {
    ds_word_type type;
    uint32_t line;
    ds_text text;
    ds_value value;
} ds_word;

/* Cuts a template into words, the last of which is DS_WORD_END. Memory is the template's. */
dsv2_status ds_scan_template(ds_template *template, const char *text, size_t size, ds_word **words);

/* ---- one rendering ---- */

typedef struct ds_binding {
    uint32_t name;
    ds_value value;
} ds_binding;

typedef struct ds_scope {
    struct ds_scope *parent; /* NULL: the template's own; behind that are the variables */
    ds_binding *bindings;
    size_t n, capacity;
} ds_scope;

/* Text that grows. */
typedef struct ds_builder {
    char *bytes;
    uint8_t *origins;
    size_t size, capacity;
} ds_builder;

struct ds_macro {
    const ds_node *node;
    ds_scope *scope; /* where it was defined */
};

struct ds_loop {
    const ds_list *values;
    size_t index; /* from 0 */
    uint32_t depth; /* 1: in no other loop */
    ds_value *last_seen; /* of changed() */
};

typedef struct ds_rendering {
    const ds_template *template;
    ds_arena arena;
    ds_dict *variables;
    ds_scope *scope;
    ds_builder *out;
    const ds_loop *loop; /* the innermost */
    int64_t now;
    uint64_t steps; /* that are left */
    uint32_t depth; /* of calls of ds_enter */
    uint32_t line;  /* for messages */
    enum { DS_GO_ON, DS_BREAK, DS_CONTINUE } flow;
    dsv2_status status; /* of the first failure, after which nothing counts */
} ds_rendering;

/* Arguments of a function, filter, test or method. */
typedef struct ds_arguments {
    const ds_value *values;
    const uint32_t *names; /* DS_NO_NAME first, then names */
    size_t n;
} ds_arguments;

/* Fails with a message that begins with path and line. Returns an undefined value. */
ds_value ds_refuse(ds_rendering *r, const char *format, ...) DSV2_PRINTF(2, 3);

/* Zeroed memory of the rendering; NULL after a failure. */
void *ds_render_new(ds_rendering *r, size_t count, size_t size);

static inline bool ds_failed(const ds_rendering *r) { return r->status != DSV2_OK; }

/* Counts n steps of work; false, with a failure, when the rendering has had its share. */
bool ds_spend(ds_rendering *r, uint64_t n);

/* Brackets a function that calls itself by way of others: counts a step and a level. False, with a failure, when there
 * are too many of either; ds_leave comes at the end in any case. */
bool ds_enter(ds_rendering *r);
void ds_leave(ds_rendering *r);

/* The argument at a position or of a name; undefined if it is not given. */
ds_value ds_argument(const ds_rendering *r, const ds_arguments *arguments, size_t position, const char *name);

/* Whether no more than `most` arguments are given, and by no other names than these, which spaces separate. */
bool ds_check_arguments(ds_rendering *r, const char *what, const ds_arguments *arguments, size_t most,
                        const char *names);

/* Evaluates an expression (render.c). */
ds_value ds_evaluate(ds_rendering *r, const ds_node *node);

/* value.name and value[key], as Jinja resolves them; undefined if there is no such thing. */
ds_value ds_get_item(ds_rendering *r, ds_value value, ds_value key);

/* ---- value.c ---- */

static inline ds_value ds_none(void) { return (ds_value){.type = DS_VALUE_NONE}; }
static inline ds_value ds_bool(bool truth) { return (ds_value){.type = DS_VALUE_BOOL, .truth = truth}; }
static inline ds_value ds_int(int64_t number) { return (ds_value){.type = DS_VALUE_INT, .number = number}; }
static inline ds_value ds_float(double real) { return (ds_value){.type = DS_VALUE_FLOAT, .real = real}; }

static inline bool ds_is_string(ds_value v) { return v.type == DS_VALUE_STRING; }
static inline bool ds_is_mapping(ds_value v) { return v.type == DS_VALUE_DICT; }
static inline bool ds_is_number(ds_value v)
{
    return v.type == DS_VALUE_INT || v.type == DS_VALUE_FLOAT || v.type == DS_VALUE_BOOL;
}
static inline bool ds_is_sequence(ds_value v) { return v.type == DS_VALUE_LIST || v.type == DS_VALUE_TUPLE; }

/* An int or a bool as a number. */
static inline int64_t ds_whole(ds_value v) { return v.type == DS_VALUE_BOOL ? v.truth : v.number; }
static inline double ds_real(ds_value v) { return v.type == DS_VALUE_FLOAT ? v.real : (double)ds_whole(v); }

/* "a string", "none": for messages. */
const char *ds_value_kind(ds_value value);
bool ds_truth(ds_value value);
bool ds_equal(ds_rendering *r, ds_value a, ds_value b);

/* Less than 0, 0 or more as a is before, equal to or behind b; refuses values that have no order. */
int ds_compare(ds_rendering *r, ds_value a, ds_value b);

ds_value ds_new_list(ds_rendering *r, size_t capacity);
void ds_list_add(ds_rendering *r, ds_list *list, ds_value value);
ds_value ds_new_dict(ds_rendering *r, size_t capacity);
/* Adds an entry; one of an equal key is changed. */
void ds_dict_set(ds_rendering *r, ds_dict *dict, ds_value key, ds_value value);
/* The place of a key's value; NULL: there is none. */
ds_value *ds_dict_get(ds_rendering *r, const ds_dict *dict, ds_value key);
ds_value *ds_dict_find(const ds_dict *dict, const char *key);

/* All that a loop over the value visits: elements, keys, characters. */
ds_list *ds_elements(ds_rendering *r, ds_value value);

/* The variables. The role of a message is the template's, if letters, digits, "_" and "-" are all that the role is made
 * of: templates write it into special tokens. Every other string is of the data. */
ds_value ds_variables_from_json(ds_rendering *r, const json_t *json);

/* What {{ value }} writes, and what Python's repr does. */
void ds_print(ds_rendering *r, ds_builder *out, ds_value value);
void ds_print_quoted(ds_rendering *r, ds_builder *out, ds_value value);

/* How JSON is written: as json.dumps does. */
typedef struct ds_json_style {
    const ds_string *indent; /* NULL: all on one line */
    const ds_string *between_items, *behind_key;
    bool ascii, sorted;
} ds_json_style;
void ds_print_json(ds_rendering *r, ds_builder *out, ds_value value, const ds_json_style *style, unsigned depth);

/* The shortest digits that give the number back, as Python writes them. `text` has room for 32 bytes. */
size_t ds_print_float(double value, char *text);

/* ---- text.c ---- */

ds_value ds_new_string(ds_rendering *r, const char *bytes, size_t size, ds_origin origin);
/* `size` bytes of a string from a place on, with their origins. Nothing is copied but the header. */
ds_value ds_part(ds_rendering *r, const ds_string *string, size_t at, size_t size);
void ds_add_bytes(ds_rendering *r, ds_builder *b, const char *bytes, size_t size, ds_origin origin);
void ds_add_text(ds_rendering *r, ds_builder *b, const char *text); /* of the template */
void ds_add_string(ds_rendering *r, ds_builder *b, const ds_string *string);
ds_value ds_built(ds_rendering *r, const ds_builder *b);
bool ds_string_is(const ds_string *string, const char *text);
int ds_compare_strings(const ds_string *a, const ds_string *b);
/* The first place from `from` on at which `part` lies; SIZE_MAX: none. */
size_t ds_find(const ds_string *string, const ds_string *part, size_t from);
/* Characters of a string, and the byte at which character n begins (the size, if there are fewer). */
size_t ds_characters(const ds_string *string);
size_t ds_character_at(const ds_string *string, size_t n);
size_t ds_character_size(const ds_string *string, size_t at);
/* The character at a byte. Bytes that are no UTF-8 count as characters. */
uint32_t ds_character(const ds_string *string, size_t at);
/* What Python's str.isspace says. */
bool ds_is_space(uint32_t character);
/* Bytes of UTF-8 that a character takes, written to `bytes`. */
size_t ds_put_character(char bytes[4], uint32_t character);

/* ---- filters.c, methods.c ---- */

/* The index of a filter, test, method or function; -1: the subset has none of that name. */
int ds_find_filter(ds_text name);
int ds_find_test(ds_text name);
bool ds_has_method(ds_text name);
bool ds_has_function(ds_text name);

ds_value ds_filter(ds_rendering *r, uint32_t index, ds_value value, const ds_arguments *arguments);
bool ds_test(ds_rendering *r, uint32_t index, ds_value value, const ds_arguments *arguments);

/* Calls a method, if values of this type have one of this name; else *found is false. */
ds_value ds_call_method(ds_rendering *r, ds_value value, ds_text name, const ds_arguments *arguments, bool *found);
ds_value ds_call_function(ds_rendering *r, ds_text name, const ds_arguments *arguments);

/* str.strip and its kind: what is cut off at which end. `characters` NULL: white space. */
ds_value ds_strip(ds_rendering *r, const ds_string *string, const ds_string *characters, bool left, bool right);
ds_value ds_replace(ds_rendering *r, const ds_string *string, const ds_string *old, const ds_string *new, int64_t most);
ds_value ds_join(ds_rendering *r, const ds_list *list, const ds_string *between);
/* ASCII letters in upper or lower case; refuses others, whose cases need tables. */
ds_value ds_change_case(ds_rendering *r, const ds_string *string, bool upper);
/* The first letter in upper case, the others in lower; of each word if `words`. */
ds_value ds_capitalize(ds_rendering *r, const ds_string *string, const char *behind);
/* A list of (key, value). */
ds_value ds_items(ds_rendering *r, const ds_dict *dict);

static inline bool ds_text_equals(ds_text text, const char *string)
{
    return text.size == strlen(string) && memcmp(text.data, string, text.size) == 0;
}

#endif

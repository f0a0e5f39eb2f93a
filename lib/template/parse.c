/* Makes the tree of a template. Grammar and precedence are Jinja's; each function names the rule that it reads:
 *   choice   chain "if" chain "else" choice
 *   chain    operands of one level of precedence: or; and; not; == != < <= > >= in; + -; ~; * / // %
 *   unary    - +, then a primary with what follows it: .name, [key], (arguments), | filter, is test
 * All that the subset lacks is refused here, so that rendering knows every name. */
#include "template/parts.h"

#include <assert.h>

/* Bounds recursion to what fits a small stack. Published templates nest ten deep. */
enum { MOST_DEPTH = 48 };

/* Bounds the search for names. Published templates have some 50. */
enum { MOST_NAMES = 1000 };

enum { IS_CALLED = 1, IS_MACRO = 2 };

typedef struct parser {
    ds_template *template;
    const ds_word *word; /* the next */
    unsigned depth;
    unsigned loops; /* around the statement */
    uint8_t uses[MOST_NAMES]; /* of each name: IS_CALLED as a function, and then has to be what IS_MACRO says */
    dsv2_status status; /* of the first failure */
} parser;

static ds_node *parse_expression(parser *p);
static ds_node *parse_block(parser *p, const char *ends);

/* ---- failures and memory ---- */

static void fail(parser *p, dsv2_status kind, const char *what, ds_text name)
{
    int shown = name.size < 40 ? (int)name.size : 40;
    if (p->status == DSV2_OK)
        p->status = ds_fail(kind, "%s: line %u of the chat template: %s%s%.*s%s", p->template->path, p->word->line,
                            what, shown > 0 ? " \"" : "", shown, shown > 0 ? name.data : "", shown > 0 ? "\"" : "");
}

static void expected(parser *p, const char *what)
{
    if (p->status == DSV2_OK)
        p->status = ds_fail(DSV2_ERROR_FORMAT, "%s: line %u of the chat template: expected %s", p->template->path,
                            p->word->line, what);
}

static void unsupported(parser *p, const char *what, ds_text name) { fail(p, DSV2_ERROR_UNSUPPORTED, what, name); }

static void fail_memory(parser *p)
{
    if (p->status == DSV2_OK)
        p->status = ds_fail_memory("a chat template", p->template->arena.used);
}

static bool ok(const parser *p) { return p->status == DSV2_OK; }

static bool enter(parser *p)
{
    if (++p->depth > MOST_DEPTH)
        unsupported(p, "statements and expressions nest too deep", (ds_text){0});
    return ok(p);
}

static void leave(parser *p) { p->depth--; }

/* A node; after a failure one that nobody uses, so that callers need not look. */
static ds_node *new_node(parser *p, ds_node_kind kind)
{
    static ds_node nobodys; /* never written to: all of its arrays are NULL and stay so */
    ds_node *node = ds_arena_new(&p->template->arena, 1, sizeof *node);
    if (node == NULL) {
        fail_memory(p);
        return &nobodys;
    }
    node->kind = kind;
    node->line = p->word->line;
    node->name = DS_NO_NAME;
    return node;
}

/* Items of a node while they are being read. */
typedef struct items {
    ds_node **nodes;
    uint32_t *names; /* DS_NO_NAME, or the keyword of an argument */
    uint8_t *ops;
    size_t n, capacity;
} items;

static void *larger(parser *p, const void *array, size_t n, size_t capacity, size_t size)
{
    void *grown = ds_arena_new(&p->template->arena, capacity, size);
    if (grown == NULL)
        fail_memory(p);
    else if (n > 0)
        memcpy(grown, array, n * size);
    return grown;
}

static void add_item(parser *p, items *list, ds_node *node, uint32_t name, ds_operator op)
{
    if (ok(p) && list->n == list->capacity) {
        size_t capacity = list->n == 0 ? 4 : 2 * list->n;
        list->nodes = larger(p, list->nodes, list->n, capacity, sizeof *list->nodes);
        list->names = larger(p, list->names, list->n, capacity, sizeof *list->names);
        list->ops = larger(p, list->ops, list->n, capacity, sizeof *list->ops);
        list->capacity = capacity;
    }
    if (!ok(p))
        return;
    list->nodes[list->n] = node;
    list->names[list->n] = name;
    list->ops[list->n++] = (uint8_t)op;
}

static void append(parser *p, items *list, ds_node *node) { add_item(p, list, node, DS_NO_NAME, 0); }

/* Gives a node its items. ops[i] stands before items[i + 1]. */
static ds_node *with_items(parser *p, ds_node *node, const items *list)
{
    if (!ok(p))
        return node;
    node->items = list->nodes;
    node->names = list->names;
    node->ops = list->n > 0 ? list->ops + 1 : NULL;
    node->n = (uint32_t)list->n;
    return node;
}

static ds_node *with_one(parser *p, ds_node_kind kind, ds_node *item)
{
    ds_node *node = new_node(p, kind);
    items list = {0};
    append(p, &list, item);
    return with_items(p, node, &list);
}

/* ---- words ---- */

static bool is_sign(const parser *p, const char *sign)
{
    return p->word->type == DS_WORD_SIGN && ds_text_equals(p->word->text, sign);
}

static bool is_name(const parser *p, const char *name)
{
    return p->word->type == DS_WORD_NAME && ds_text_equals(p->word->text, name);
}

static void next(parser *p)
{
    if (p->word->type != DS_WORD_END)
        p->word++;
}

static bool take_sign(parser *p, const char *sign)
{
    bool is = ok(p) && is_sign(p, sign);
    if (is)
        next(p);
    return is;
}

static bool take_name(parser *p, const char *name)
{
    bool is = ok(p) && is_name(p, name);
    if (is)
        next(p);
    return is;
}

static void expect_sign(parser *p, const char *sign)
{
    if (!take_sign(p, sign))
        expected(p, sign);
}

static void expect_type(parser *p, ds_word_type type, const char *what)
{
    if (p->word->type != type)
        expected(p, what);
    else
        next(p);
}

static uint32_t intern(parser *p, ds_text text)
{
    ds_template *t = p->template;
    for (size_t i = 0; i < t->n_names; i++)
        if (t->names[i].size == text.size && memcmp(t->names[i].data, text.data, text.size) == 0)
            return (uint32_t)i;
    if (t->n_names == MOST_NAMES) {
        unsupported(p, "this name is one too many:", text);
        return 0;
    }
    if (t->n_names == t->names_capacity) {
        size_t capacity = t->n_names == 0 ? 16 : 2 * t->n_names;
        ds_text *names = larger(p, t->names, t->n_names, capacity, sizeof *names);
        if (names == NULL)
            return 0;
        t->names = names;
        t->names_capacity = capacity;
    }
    t->names[t->n_names] = text; /* the scanner's copy, which the arena has */
    return (uint32_t)t->n_names++;
}

static bool is_reserved(ds_text name)
{
    static const char *const words[] = {"and", "else", "elif", "if", "in", "is", "not", "or", "for", "loop"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (ds_text_equals(name, words[i]))
            return true;
    return false;
}

static uint32_t expect_name(parser *p, const char *what)
{
    uint32_t name = 0;
    if (ok(p) && p->word->type == DS_WORD_NAME)
        name = intern(p, p->word->text);
    expect_type(p, DS_WORD_NAME, what);
    return name;
}

/* ---- expressions ---- */

/* "(" was taken: arguments, by position first, up to ")". */
static void parse_arguments(parser *p, items *list)
{
    bool named = false;
    while (ok(p) && !is_sign(p, ")")) {
        if (is_sign(p, "*") || is_sign(p, "**"))
            unsupported(p, "an argument with * is not supported", (ds_text){0});
        uint32_t name = DS_NO_NAME;
        const ds_word *behind = p->word + (p->word->type == DS_WORD_NAME);
        if (behind > p->word && behind->type == DS_WORD_SIGN && ds_text_equals(behind->text, "=")) {
            name = expect_name(p, "a name");
            next(p);
            named = true;
        } else if (named) {
            expected(p, "an argument by name");
        }
        add_item(p, list, parse_expression(p), name, 0);
        if (!take_sign(p, ","))
            break;
    }
    expect_sign(p, ")");
}

static ds_node *parse_call(parser *p)
{
    ds_node *node = new_node(p, DS_NODE_CALL);
    items list = {0};
    expect_sign(p, "(");
    parse_arguments(p, &list);
    return with_items(p, node, &list);
}

static ds_node *parse_dict(parser *p)
{
    ds_node *node = new_node(p, DS_NODE_DICT);
    items list = {0};
    expect_sign(p, "{");
    while (ok(p) && !is_sign(p, "}")) {
        append(p, &list, parse_expression(p));
        expect_sign(p, ":");
        append(p, &list, parse_expression(p));
        if (!take_sign(p, ","))
            break;
    }
    expect_sign(p, "}");
    return with_items(p, node, &list);
}

/* Expressions up to an end, between commas. */
static void parse_elements(parser *p, items *list, const char *end)
{
    while (ok(p) && !is_sign(p, end)) {
        append(p, list, parse_expression(p));
        if (!take_sign(p, ","))
            break;
    }
}

static ds_node *parse_list(parser *p)
{
    ds_node *node = new_node(p, DS_NODE_LIST);
    items list = {0};
    expect_sign(p, "[");
    parse_elements(p, &list, "]");
    expect_sign(p, "]");
    return with_items(p, node, &list);
}

/* "(" expression ")", or a tuple. */
static ds_node *parse_parentheses(parser *p)
{
    ds_node *node = new_node(p, DS_NODE_TUPLE);
    items list = {0};
    expect_sign(p, "(");
    parse_elements(p, &list, ")");
    bool one = ok(p) && list.n == 1 && !(p->word[-1].type == DS_WORD_SIGN && ds_text_equals(p->word[-1].text, ","));
    expect_sign(p, ")");
    return one && ok(p) ? list.nodes[0] : with_items(p, node, &list);
}

/* Strings that stand beside one another are one. */
static ds_node *parse_string(parser *p)
{
    ds_node *node = new_node(p, DS_NODE_LITERAL);
    ds_value value = p->word->value;
    next(p);
    for (; ok(p) && p->word->type == DS_WORD_STRING; next(p)) {
        const ds_string *a = value.string, *b = p->word->value.string;
        ds_string *both = ds_arena_new(&p->template->arena, 1, sizeof *both);
        char *bytes = ds_arena_new(&p->template->arena, a->size + b->size + 1, 1);
        if (both == NULL || bytes == NULL) {
            fail_memory(p);
            return node;
        }
        memcpy(bytes, a->bytes, a->size);
        memcpy(bytes + a->size, b->bytes, b->size);
        *both = (ds_string){.bytes = bytes, .size = a->size + b->size};
        value.string = both;
    }
    if (ok(p))
        node->value = value;
    return node;
}

static bool constant(ds_text name, ds_value *value)
{
    static const struct {
        const char *name;
        ds_value value;
    } constants[] = {
        {"true", {.type = DS_VALUE_BOOL, .truth = true}},   {"True", {.type = DS_VALUE_BOOL, .truth = true}},
        {"false", {.type = DS_VALUE_BOOL, .truth = false}}, {"False", {.type = DS_VALUE_BOOL, .truth = false}},
        {"none", {.type = DS_VALUE_NONE}},                  {"None", {.type = DS_VALUE_NONE}},
    };
    for (size_t i = 0; i < sizeof constants / sizeof *constants; i++)
        if (ds_text_equals(name, constants[i].name)) {
            *value = constants[i].value;
            return true;
        }
    return false;
}

static ds_node *parse_primary(parser *p)
{
    ds_value value;
    if (p->word->type == DS_WORD_STRING)
        return parse_string(p);
    if (p->word->type == DS_WORD_NUMBER || (p->word->type == DS_WORD_NAME && constant(p->word->text, &value))) {
        ds_node *node = new_node(p, DS_NODE_LITERAL);
        if (p->word->type == DS_WORD_NUMBER)
            value = p->word->value;
        if (ok(p))
            node->value = value;
        next(p);
        return node;
    }
    if (is_sign(p, "("))
        return parse_parentheses(p);
    if (is_sign(p, "["))
        return parse_list(p);
    if (is_sign(p, "{"))
        return parse_dict(p);
    ds_node *node = new_node(p, DS_NODE_NAME);
    if (p->word->type == DS_WORD_NAME && is_reserved(p->word->text) && !is_name(p, "loop"))
        expected(p, "an expression");
    uint32_t name = expect_name(p, "an expression");
    if (ok(p))
        node->name = name;
    return node;
}

/* "[" was taken: a key, or a slice. */
static ds_node *parse_item(parser *p)
{
    ds_node *parts[3] = {NULL, NULL, NULL}, *node = new_node(p, DS_NODE_ITEM);
    size_t n = 0;
    bool slice = false;
    for (; ok(p) && n < 3; n++) {
        if (!is_sign(p, ":") && !is_sign(p, "]"))
            parts[n] = parse_expression(p);
        if (!take_sign(p, ":"))
            break;
        slice = true;
    }
    if (is_sign(p, ","))
        unsupported(p, "a key with a comma is not supported", (ds_text){0});
    expect_sign(p, "]");
    if (!slice && parts[0] == NULL)
        expected(p, "a key");
    items list = {0};
    for (size_t i = 0; i < (slice ? 3 : 1); i++)
        append(p, &list, parts[i]);
    if (ok(p) && slice)
        node->kind = DS_NODE_SLICE;
    return with_items(p, node, &list);
}

/* "." was taken: a name. What is called has to be a method. */
static ds_node *parse_attribute(parser *p)
{
    ds_node *node = new_node(p, DS_NODE_ATTRIBUTE);
    ds_text text = p->word->text;
    uint32_t name = expect_name(p, "a name");
    if (ok(p))
        node->name = name;
    if (ok(p) && is_sign(p, "(") && !ds_has_method(text))
        unsupported(p, "this method is not supported:", text);
    return node;
}

static ds_node *parse_filter(parser *p)
{
    ds_node *node = new_node(p, DS_NODE_FILTER);
    ds_text text = p->word->text;
    items list = {0};
    expect_name(p, "the name of a filter");
    int index = ok(p) ? ds_find_filter(text) : 0;
    if (index < 0)
        unsupported(p, "this filter is not supported:", text);
    if (take_sign(p, "("))
        parse_arguments(p, &list);
    if (ok(p))
        node->index = (uint32_t)index;
    return with_items(p, node, &list);
}

/* Whether what follows a test's name is its argument, without parentheses. */
static bool begins_argument(const parser *p)
{
    if (p->word->type == DS_WORD_STRING || p->word->type == DS_WORD_NUMBER)
        return true;
    if (p->word->type == DS_WORD_NAME)
        return !is_reserved(p->word->text);
    return is_sign(p, "[") || is_sign(p, "{");
}

/* "is" was taken. */
static ds_node *parse_test(parser *p)
{
    bool negated = take_name(p, "not");
    ds_node *node = new_node(p, DS_NODE_TEST);
    ds_text text = p->word->text;
    items list = {0};
    expect_name(p, "the name of a test");
    int index = ok(p) ? ds_find_test(text) : 0;
    if (index < 0)
        unsupported(p, "this test is not supported:", text);
    if (take_sign(p, "("))
        parse_arguments(p, &list);
    else if (ok(p) && begins_argument(p))
        append(p, &list, parse_primary(p));
    if (ok(p)) {
        node->index = (uint32_t)index;
        node->negated = negated;
    }
    return with_items(p, node, &list);
}

static void note_call(parser *p, uint32_t name)
{
    if (!ds_has_function(p->template->names[name]))
        p->uses[name] |= IS_CALLED;
}

static ds_node *parse_postfix(parser *p, ds_node *first, bool with_filters)
{
    ds_node *node = new_node(p, DS_NODE_POSTFIX);
    items list = {0};
    append(p, &list, first);
    bool filtered = false; /* behind a filter or test no "." and "[" follow */
    while (ok(p)) {
        if (!filtered && take_sign(p, "."))
            append(p, &list, parse_attribute(p));
        else if (!filtered && take_sign(p, "["))
            append(p, &list, parse_item(p));
        else if (is_sign(p, "(")) {
            if (list.n == 1 && first->kind == DS_NODE_NAME)
                note_call(p, first->name);
            append(p, &list, parse_call(p));
        } else if (with_filters && take_sign(p, "|")) {
            append(p, &list, parse_filter(p));
            filtered = true;
        } else if (with_filters && take_name(p, "is")) {
            append(p, &list, parse_test(p));
            filtered = true;
        } else {
            break;
        }
    }
    return list.n == 1 ? first : with_items(p, node, &list);
}

static ds_node *parse_unary(parser *p, bool with_filters)
{
    ds_node *node;
    if (!enter(p))
        node = new_node(p, DS_NODE_LITERAL);
    else if (take_sign(p, "-"))
        node = with_one(p, DS_NODE_NEGATIVE, parse_unary(p, false));
    else if (take_sign(p, "+"))
        node = with_one(p, DS_NODE_POSITIVE, parse_unary(p, false));
    else
        node = parse_primary(p);
    node = parse_postfix(p, node, with_filters);
    leave(p);
    if (ok(p) && is_sign(p, "**"))
        unsupported(p, "this operator is not supported:", p->word->text);
    return node;
}

/* Levels of precedence, weakest first. */
enum { LEVEL_OR, LEVEL_AND, LEVEL_NOT, LEVEL_COMPARE, LEVEL_SUM, LEVEL_JOIN, LEVEL_PRODUCT, LEVEL_UNARY };

typedef struct operator_word {
    const char *word;
    int level;
    ds_operator op;
} operator_word;

static const operator_word operators[] = {
    {"or", LEVEL_OR, DS_OR},
    {"and", LEVEL_AND, DS_AND},
    {"==", LEVEL_COMPARE, DS_EQUAL},
    {"!=", LEVEL_COMPARE, DS_UNEQUAL},
    {"<", LEVEL_COMPARE, DS_LESS},
    {"<=", LEVEL_COMPARE, DS_LESS_EQUAL},
    {">", LEVEL_COMPARE, DS_GREATER},
    {">=", LEVEL_COMPARE, DS_GREATER_EQUAL},
    {"in", LEVEL_COMPARE, DS_IN},
    {"+", LEVEL_SUM, DS_PLUS},
    {"-", LEVEL_SUM, DS_MINUS},
    {"~", LEVEL_JOIN, DS_JOIN},
    {"*", LEVEL_PRODUCT, DS_TIMES},
    {"/", LEVEL_PRODUCT, DS_DIVIDE},
    {"//", LEVEL_PRODUCT, DS_DIVIDE_DOWN},
    {"%", LEVEL_PRODUCT, DS_REMAINDER},
};

/* Takes an operator of a level, if one is next. */
static bool take_operator(parser *p, int level, ds_operator *op)
{
    if (!ok(p) || (p->word->type != DS_WORD_SIGN && p->word->type != DS_WORD_NAME))
        return false;
    if (level == LEVEL_COMPARE && is_name(p, "not") && p->word[1].type == DS_WORD_NAME &&
        ds_text_equals(p->word[1].text, "in")) {
        next(p);
        next(p);
        *op = DS_NOT_IN;
        return true;
    }
    for (size_t i = 0; i < sizeof operators / sizeof *operators; i++)
        if (operators[i].level == level && ds_text_equals(p->word->text, operators[i].word)) {
            *op = operators[i].op;
            next(p);
            return true;
        }
    return false;
}

static ds_node *parse_chain(parser *p, int level)
{
    if (level == LEVEL_UNARY)
        return parse_unary(p, true);
    if (level == LEVEL_NOT) {
        unsigned nots = 0;
        while (take_name(p, "not"))
            nots++;
        ds_node *node = parse_chain(p, level + 1);
        if (nots % 2 == 0) /* not not x is x's truth, which differs from x only where it is printed */
            return nots == 0 ? node : with_one(p, DS_NODE_NOT, with_one(p, DS_NODE_NOT, node));
        return with_one(p, DS_NODE_NOT, node);
    }
    ds_node *node = new_node(p, DS_NODE_CHAIN), *first = parse_chain(p, level + 1);
    items list = {0};
    append(p, &list, first);
    for (ds_operator op; take_operator(p, level, &op);)
        add_item(p, &list, parse_chain(p, level + 1), DS_NO_NAME, op);
    return list.n == 1 ? first : with_items(p, node, &list);
}

static ds_node *parse_expression(parser *p)
{
    ds_node *node = new_node(p, DS_NODE_CHOICE);
    if (!enter(p)) {
        leave(p);
        return node;
    }
    ds_node *value = parse_chain(p, LEVEL_OR);
    if (take_name(p, "if")) {
        items list = {0};
        append(p, &list, value);
        append(p, &list, parse_chain(p, LEVEL_OR));
        append(p, &list, take_name(p, "else") ? parse_expression(p) : NULL);
        value = with_items(p, node, &list);
    }
    leave(p);
    return value;
}

/* An expression, or several with commas between them: a tuple without parentheses. */
static ds_node *parse_tuple(parser *p)
{
    ds_node *node = new_node(p, DS_NODE_TUPLE), *first = parse_expression(p);
    if (!ok(p) || !is_sign(p, ","))
        return first;
    items list = {0};
    append(p, &list, first);
    while (take_sign(p, ",")) {
        if (p->word->type == DS_WORD_END_PRINT || p->word->type == DS_WORD_END_BLOCK)
            break;
        append(p, &list, parse_expression(p));
    }
    return with_items(p, node, &list);
}

/* ---- statements ---- */

static void end_tag(parser *p) { expect_type(p, DS_WORD_END_BLOCK, "%}"); }

/* What `set` and `for` give values to: a name, name.name, or several names. */
static ds_node *parse_target(parser *p)
{
    ds_node *node = new_node(p, DS_NODE_TUPLE);
    items list = {0};
    bool parentheses = take_sign(p, "(");
    do {
        if (list.n > 0 && (is_sign(p, "=") || is_name(p, "in")))
            break;
        ds_node *name = new_node(p, DS_NODE_NAME);
        if (p->word->type == DS_WORD_NAME && is_reserved(p->word->text))
            expected(p, "a name");
        uint32_t index = expect_name(p, "a name");
        if (ok(p))
            name->name = index;
        if (take_sign(p, ".")) {
            items parts = {0};
            append(p, &parts, name);
            append(p, &parts, parse_attribute(p));
            name = with_items(p, new_node(p, DS_NODE_POSTFIX), &parts);
        }
        append(p, &list, name);
    } while (take_sign(p, ","));
    if (parentheses)
        expect_sign(p, ")");
    bool one = ok(p) && list.n == 1 && !(p->word[-1].type == DS_WORD_SIGN && ds_text_equals(p->word[-1].text, ","));
    return one ? list.nodes[0] : with_items(p, node, &list);
}

/* Whether one of the names, which spaces separate, is next. */
static bool is_one_of(const parser *p, const char *names)
{
    while (p->word->type == DS_WORD_NAME && *names != '\0') {
        size_t n = strcspn(names, " ");
        if (n == p->word->text.size && memcmp(names, p->word->text.data, n) == 0)
            return true;
        names += n + (names[n] == ' ');
    }
    return false;
}

/* "if" was taken. */
static ds_node *parse_if(parser *p)
{
    ds_node *node = new_node(p, DS_NODE_IF);
    items list = {0};
    append(p, &list, parse_tuple(p));
    end_tag(p);
    append(p, &list, parse_block(p, "elif else endif"));
    while (take_name(p, "elif")) {
        append(p, &list, parse_tuple(p));
        end_tag(p);
        append(p, &list, parse_block(p, "elif else endif"));
    }
    if (take_name(p, "else")) {
        end_tag(p);
        append(p, &list, parse_block(p, "endif"));
    }
    next(p);
    end_tag(p);
    return with_items(p, node, &list);
}

/* "for" was taken. */
static ds_node *parse_for(parser *p)
{
    ds_node *node = new_node(p, DS_NODE_FOR), *parts[5] = {NULL};
    parts[0] = parse_target(p);
    if (!take_name(p, "in"))
        expected(p, "in");
    /* "if" begins the condition here: no choice. */
    parts[1] = parse_chain(p, LEVEL_OR);
    if (take_name(p, "if"))
        parts[4] = parse_expression(p);
    if (is_name(p, "recursive"))
        unsupported(p, "this is not supported:", p->word->text);
    end_tag(p);
    p->loops++;
    parts[2] = parse_block(p, "else endfor");
    p->loops--;
    if (take_name(p, "else")) {
        end_tag(p);
        parts[3] = parse_block(p, "endfor");
    }
    next(p);
    end_tag(p);
    items list = {0};
    for (size_t i = 0; i < 5; i++)
        append(p, &list, parts[i]);
    return with_items(p, node, &list);
}

/* "set" was taken. */
static ds_node *parse_set(parser *p)
{
    ds_node *node = new_node(p, DS_NODE_SET);
    items list = {0};
    append(p, &list, parse_target(p));
    if (take_sign(p, "=")) {
        append(p, &list, parse_tuple(p));
        end_tag(p);
        return with_items(p, node, &list);
    }
    if (is_sign(p, "|"))
        unsupported(p, "a filter on a block of set is not supported", (ds_text){0});
    end_tag(p);
    append(p, &list, parse_block(p, "endset"));
    next(p);
    end_tag(p);
    if (ok(p))
        node->kind = DS_NODE_SET_BLOCK;
    return with_items(p, node, &list);
}

/* "macro" was taken. */
static ds_node *parse_macro(parser *p)
{
    ds_node *node = new_node(p, DS_NODE_MACRO);
    items list = {0};
    uint32_t name = expect_name(p, "a name");
    if (ok(p))
        p->uses[name] |= IS_MACRO;
    expect_sign(p, "(");
    while (ok(p) && !is_sign(p, ")")) {
        uint32_t parameter = expect_name(p, "a parameter");
        add_item(p, &list, take_sign(p, "=") ? parse_expression(p) : NULL, parameter, 0);
        if (!take_sign(p, ","))
            break;
    }
    expect_sign(p, ")");
    end_tag(p);
    unsigned loops = p->loops;
    p->loops = 0;
    append(p, &list, parse_block(p, "endmacro"));
    p->loops = loops;
    next(p);
    end_tag(p);
    if (ok(p))
        node->name = name;
    return with_items(p, node, &list);
}

static ds_node *parse_jump(parser *p, ds_node_kind kind)
{
    ds_node *node = new_node(p, kind);
    if (p->loops == 0)
        expected(p, "a loop around break or continue");
    end_tag(p);
    return node;
}

/* "{%" was taken. */
static ds_node *parse_statement(parser *p)
{
    if (take_name(p, "if"))
        return parse_if(p);
    if (take_name(p, "for"))
        return parse_for(p);
    if (take_name(p, "set"))
        return parse_set(p);
    if (take_name(p, "macro"))
        return parse_macro(p);
    if (take_name(p, "break"))
        return parse_jump(p, DS_NODE_BREAK);
    if (take_name(p, "continue"))
        return parse_jump(p, DS_NODE_CONTINUE);
    if (take_name(p, "generation")) { /* marks what a trainer learns from; the text is the same */
        end_tag(p);
        ds_node *block = parse_block(p, "endgeneration");
        next(p);
        end_tag(p);
        return block;
    }
    if (p->word->type == DS_WORD_NAME)
        unsupported(p, "this statement is not supported:", p->word->text);
    else
        expected(p, "a statement");
    return new_node(p, DS_NODE_BLOCK);
}

/* Statements up to the "{%" of one of the names in `ends`, which is taken, but not the name itself. An empty list of
 * names: up to the end of the template. */
static ds_node *parse_block(parser *p, const char *ends)
{
    ds_node *node = new_node(p, DS_NODE_BLOCK);
    items list = {0};
    bool ended = !enter(p);
    while (ok(p) && !ended) {
        if (p->word->type == DS_WORD_TEXT) {
            ds_node *text = new_node(p, DS_NODE_TEXT);
            if (ok(p))
                text->value = p->word->value;
            append(p, &list, text);
            next(p);
        } else if (p->word->type == DS_WORD_BEGIN_PRINT) {
            next(p);
            append(p, &list, with_one(p, DS_NODE_PRINT, parse_tuple(p)));
            expect_type(p, DS_WORD_END_PRINT, "}}");
        } else if (p->word->type == DS_WORD_BEGIN_BLOCK) {
            next(p);
            ended = is_one_of(p, ends);
            if (!ended)
                append(p, &list, parse_statement(p));
        } else {
            ended = true;
            if (*ends != '\0')
                expected(p, ends);
        }
    }
    leave(p);
    return with_items(p, node, &list);
}

/* ---- the whole ---- */

static void check_calls(parser *p)
{
    for (size_t i = 0; i < p->template->n_names && ok(p); i++)
        if (p->uses[i] == IS_CALLED)
            unsupported(p, "this function is not supported:", p->template->names[i]);
}

dsv2_status ds_template_parse(const char *path, const char *text, size_t size, ds_template **template)
{
    enum { MOST_BYTES = 1 << 20, ARENA = 256 << 20 }; /* a published template has 5,000 bytes; some have 20,000 */
    if (size > MOST_BYTES)
        return ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: the chat template has %zu bytes, expected at most %d", path, size,
                       MOST_BYTES);
    ds_template *made = ds_new(1, sizeof *made);
    char *copy = ds_copy_string(path);
    if (made == NULL || copy == NULL) {
        ds_free(made);
        ds_free(copy);
        return ds_fail_memory("a chat template", sizeof *made);
    }
    made->path = copy;
    made->arena.limit = ARENA;
    ds_word *words = NULL;
    parser p = {.template = made};
    p.status = ds_scan_template(made, text, size, &words);
    if (ok(&p)) {
        p.word = words;
        made->root = parse_block(&p, "");
        check_calls(&p);
    }
    ds_free(words);
    if (p.status != DSV2_OK) {
        ds_template_destroy(made);
        return p.status;
    }
    *template = made;
    return DSV2_OK;
}

void ds_template_destroy(ds_template *template)
{
    if (template == NULL)
        return;
    ds_arena_free(&template->arena);
    ds_free(template->path);
    ds_free(template);
}

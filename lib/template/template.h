/* template: the subset of Jinja in which checkpoints write their chat templates. A template is parsed once; whatever is
 * outside the subset is refused then, by name, so that no prompt is nearly right. Rendering reads the variables and
 * nothing else: no file, no clock, no code of the host's. May include: base.
 *
 * The language is that of Jinja 3.1 as transformers sets it up: trim_blocks, lstrip_blocks, break and continue,
 * raise_exception, strftime_now, and a tojson that writes plain JSON. README.md lists what the subset has.
 *
 * File by file:
 *   scan.c      cuts a template into words
 *   parse.c     makes the tree
 *   value.c     values: truth, equality, order, how they are printed
 *   text.c      texts, each byte with its origin
 *   render.c    statements and expressions
 *   filters.c   filters and tests
 *   methods.c   methods of texts, lists and mappings, and functions
 * parts.h is the room's own header. */
#ifndef DS_LIB_TEMPLATE_H
#define DS_LIB_TEMPLATE_H

#include "base/base.h"
#include "base/json.h"

/* A parsed template. It never changes; any number of threads may render it. */
typedef struct ds_template ds_template;

/* Parses `size` bytes of UTF-8 at `text`; `path` begins the messages and is copied. The caller destroys *template.
 * Returns DSV2_OK, DSV2_ERROR_MEMORY, _FORMAT (this is no Jinja) or _UNSUPPORTED (a construct outside the subset; the
 * message names line and construct). */
dsv2_status ds_template_parse(const char *path, const char *text, size_t size, ds_template **template);

/* NULL is allowed. */
void ds_template_destroy(ds_template *template);

/* A variable whose text belongs to the template, not to a conversation: bos_token, eos_token. */
typedef struct ds_template_word {
    const char *name;
    ds_text text;
} ds_template_word;

/* A rendered prompt. */
typedef struct ds_rendered {
    char *text;       /* `size` bytes */
    uint8_t *origins; /* [size]: 0 for a byte of the template or of a word, 1 for a byte of the variables. Bytes of the
                       * variables must never become part of a special token. */
    size_t size;
} ds_rendered;

/* Renders a template.
 *   variables     an object of JSON: messages, tools, add_generation_prompt and whatever else the host gives
 *   words         n_words variables of the template's own; a variable of the same name goes before
 *   now           for strftime_now: seconds since 1970 in the host's time zone
 *   rendered      on success, the prompt; ds_rendered_free frees it
 * Returns DSV2_OK, DSV2_ERROR_MEMORY, _ARGUMENT (the template refuses these messages by raise_exception, or asks of a
 * value what it cannot do) or _UNSUPPORTED (the rendering takes more steps or memory than a prompt can need). */
dsv2_status ds_template_render(const ds_template *template, const json_t *variables, const ds_template_word *words,
                               size_t n_words, int64_t now, ds_rendered *rendered);

void ds_rendered_free(ds_rendered *rendered);

#endif

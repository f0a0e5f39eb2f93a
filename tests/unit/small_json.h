/* A small tokenizer.json: the 256 letters of the byte alphabet, whose id is the byte, and what a test adds. */
#ifndef DS_TESTS_SMALL_JSON_H
#define DS_TESTS_SMALL_JSON_H

/* Each field is the text of a member. NULL: as in a plain tokenizer. */
typedef struct small_parts {
    const char *added;         /* the members of added_tokens: {...},{...} */
    const char *normalizer;    /* null */
    const char *pre_tokenizer; /* ByteLevel alone: every text is one piece */
    const char *post_processor;
    const char *decoder;
    const char *vocab;         /* ,"ab":256 */
    const char *merges;        /* "a b","c d" */
    const char *model;         /* more members of model: ,"dropout":null */
    const char *root;          /* more members of the whole */
} small_parts;

/* To be freed. */
char *small_json(const small_parts *parts);

#endif

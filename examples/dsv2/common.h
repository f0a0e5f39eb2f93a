/* What the subcommands of `dsv2` share: options, messages, progress bars, text that streams. */
#ifndef DSV2_COMMAND_COMMON_H
#define DSV2_COMMAND_COMMON_H

#include <dsv2/dsv2.h>

#include <stdbool.h>
#include <stdio.h>

/* Exit statuses. GO_ON: go on, the program does not end yet. */
enum { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, GO_ON = -1 };

typedef struct command {
    const char *name;
    const char *arguments; /* of the usage line */
    const char *summary;   /* one line */
    const char *help;      /* more lines, or "" */
    int (*run)(int argc, char **argv);
} command;

extern const command command_generate, command_chat, command_tokenize, command_detokenize, command_logits,
    command_perplexity, command_experts, command_inspect, command_bench, command_pack;

/* ---- options ---- */

typedef enum option_type { OPTION_FLAG, OPTION_COUNT, OPTION_NUMBER, OPTION_TEXT } option_type;

/* The option "--name ARGUMENT". `value` points to a bool, uint64_t, double or const char *, by type, which holds the
 * default. */
typedef struct option_spec {
    const char *name, *argument;
    option_type type;
    void *value;
    uint64_t min, max; /* of OPTION_COUNT; max 0: none */
    const char *help;  /* lines separated by '\n' */
} option_spec;

/* Reads argv as options and exactly n_operands other words. Returns GO_ON, or prints the help or what is wrong and
 * returns the exit status. */
int parse_options(const command *self, int argc, char **argv, const option_spec *options, size_t n_options,
                  const char **operands, size_t n_operands);

/* Options of every command that opens a model. */
typedef struct model_settings {
    uint64_t threads;
    const char *kernels, *loading;
    bool lock, insist;
} model_settings;

#define MODEL_OPTIONS(settings)                                                                                        \
    {"threads", "N", OPTION_COUNT, &(settings).threads, 0, 1024,                                                       \
     "threads to use; 0, the default: as many as the process may"},                                                    \
    {"kernels", "NAME", OPTION_TEXT, &(settings).kernels, 0, 0,                                                        \
     "c, avx2 or avx512; auto, the default: the best that runs here"},                                                 \
    {"loading", "HOW", OPTION_TEXT, &(settings).loading, 0, 0,                                                         \
     "map, the default: use weights where they lie in their files; read:\nread all into memory"},                      \
    {"lock", NULL, OPTION_FLAG, &(settings).lock, 0, 0,                                                                \
     "keep the weights in memory, or say why that cannot be"},                                                         \
    {"insist", NULL, OPTION_FLAG, &(settings).insist, 0, 0,                                                            \
     "open the model even if its copies do not fit the memory left"}

/* --kv: the element type of a session's cache. */
#define CACHE_OPTION(name)                                                                                             \
    {"kv", "TYPE", OPTION_TEXT, &(name), 0, 0, "how each token's latents are kept: f32, f16, q8 (the default) or q6"}

/* The cache type of that name. NULL: the default. GO_ON, or the exit status after saying that there is none. */
int find_cache_type(const char *name, dsv2_cache_type *type);
const char *cache_type_name(dsv2_cache_type type);

/* The weight type of that name. NULL: as stored. GO_ON, or the exit status after saying that there is none. */
int find_weight_type(const char *name, dsv2_weight_type *type);
const char *weight_type_name(dsv2_weight_type type);

/* Options of commands that draw tokens. */
typedef struct sampling_settings {
    double temperature, top_p, min_p, repetition_penalty;
    uint64_t top_k, seed;
} sampling_settings;

extern const sampling_settings default_sampling;

#define SAMPLING_OPTIONS(settings)                                                                                     \
    {"temperature", "T", OPTION_NUMBER, &(settings).temperature, 0, 0,                                                 \
     "0: always the most likely token; default 0.8"},                                                                  \
    {"top-k", "K", OPTION_COUNT, &(settings).top_k, 0, UINT32_MAX,                                                     \
     "draw from the K most likely tokens; 0, the default: all"},                                                       \
    {"top-p", "P", OPTION_NUMBER, &(settings).top_p, 0, 0,                                                             \
     "draw from the fewest tokens that reach probability P; default 0.95"},                                            \
    {"min-p", "P", OPTION_NUMBER, &(settings).min_p, 0, 0,                                                             \
     "drop tokens less likely than P times the likeliest; default 0"},                                                 \
    {"repetition-penalty", "R", OPTION_NUMBER, &(settings).repetition_penalty, 0, 0,                                   \
     "make tokens that have occurred less likely; 1, the default: off"},                                               \
    {"seed", "S", OPTION_COUNT, &(settings).seed, 0, 0,                                                                \
     "random numbers to draw with; default 0. The same command\nwith the same seed gives the same text"}

/* Options of commands whose session can be kept as a file. */
typedef struct storage_settings {
    const char *save, *restore, *kv; /* NULL: not given */
} storage_settings;

#define STORAGE_OPTIONS(settings)                                                                                      \
    {"save", "FILE", OPTION_TEXT, &(settings).save, 0, 0, "keep the conversation in FILE"},                            \
    {"restore", "FILE", OPTION_TEXT, &(settings).restore, 0, 0,                                                        \
     "go on with the conversation in FILE. Tokens are drawn as before,\nunless an option says otherwise"},             \
    CACHE_OPTION((settings).kv)

/* ---- messages: to standard error, "dsv2 COMMAND: MESSAGE" ---- */

int fail(const char *format, ...) DSV2_PRINTF(1, 2);       /* returns EXIT_FAILED */
int fail_usage(const char *format, ...) DSV2_PRINTF(1, 2); /* returns EXIT_USAGE */
int fail_library(void);                                    /* the library's last error; EXIT_FAILED */

/* Flushes standard output. EXIT_OK, or the exit status after saying that not all was written. */
int finish_output(void);

/* ---- the library ---- */

/* The library's options of these settings. GO_ON, or the exit status after saying what is wrong. */
int find_model_options(const model_settings *settings, dsv2_model_options *options);

/* NULL after saying why not. */
dsv2_model *open_model(const char *path, const model_settings *settings);

/* A session of the model. NULL after saying why not. bar: long feeds show a bar; false where the caller shows its
 * own. */
dsv2_session *open_session(dsv2_model *model, dsv2_cache_type cache_type, dsv2_attention attention, bool bar);

/* A session as the options say, restored if they ask for it, drawing as `sampling` says. EXIT_OK or the exit status. */
int open_stored_session(dsv2_model *model, const storage_settings *storage, const sampling_settings *sampling,
                        dsv2_session **session);

/* Saves, or adds to the file if it holds the beginning of the conversation. EXIT_OK or the exit status. */
int save_session(dsv2_session *session, const char *path);

dsv2_model_info model_info(const dsv2_model *model);

/* The model's tokenizer. NULL after saying that there is none. */
const dsv2_tokenizer *need_tokenizer(const dsv2_model *model, const char *path);

/* Exit status or EXIT_OK. */
int set_sampling(dsv2_session *session, const sampling_settings *settings);

/* Encodes into memory that the caller frees. NULL after saying why not. */
int32_t *encode_text(const dsv2_tokenizer *tokenizer, const char *text, size_t size, uint32_t flags, size_t *n);

/* ---- progress ---- */

/* A bar on standard error, for what takes longer than a moment. Nothing is shown if standard error is no terminal. */
typedef struct progress_bar {
    const char *label;
    double started, drawn; /* seconds; drawn 0: not on the screen */
} progress_bar;

void progress_start(progress_bar *bar, const char *label);
void progress_update(progress_bar *bar, uint64_t done, uint64_t total);
void progress_end(progress_bar *bar);

/* A dsv2_progress_fn whose user is a bar. */
int progress_show(void *bar, dsv2_phase phase, uint64_t done, uint64_t total);

double seconds_now(void);

/* ---- text ---- */

/* Writes tokens to standard output as they come, never half a character. */
typedef struct text_stream {
    const dsv2_tokenizer *tokenizer;
    char *buffer; /* bytes held back, then a token's */
    size_t held, capacity;
} text_stream;

int stream_token(text_stream *stream, int32_t token); /* exit status or EXIT_OK */
void stream_end(text_stream *stream);                 /* writes what is held back, frees */

/* All of a file, or of standard input if path is NULL. The caller frees it. NULL after saying why not. */
char *read_all(const char *path, size_t *size);

/* Token ids, separated by white space. `name` is for messages. The caller frees them. NULL after saying what is
 * wrong. */
int32_t *parse_ids(const char *name, const char *text, size_t size, size_t *n);

/* Writes a string as JSON, with quotes, to a file or to standard output. Bytes that are no UTF-8 become U+FFFD. */
void write_json_string(FILE *out, const char *string);
void print_json_string(const char *string);

#endif

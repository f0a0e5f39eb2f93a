#include "common.h"

#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* The subcommand's name, for messages. */
static const char *command_name = "";

/* ---- messages ---- */

static void print_message(const char *format, va_list arguments)
{
    fflush(stdout);
    fprintf(stderr, "dsv2 %s: ", command_name);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
}

int fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    print_message(format, arguments);
    va_end(arguments);
    return EXIT_FAILED;
}

int fail_usage(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    print_message(format, arguments);
    va_end(arguments);
    fprintf(stderr, "Try 'dsv2 %s --help'.\n", command_name);
    return EXIT_USAGE;
}

int fail_library(void) { return fail("%s", dsv2_last_error()); }

int finish_output(void)
{
    if (fflush(stdout) != 0 || ferror(stdout))
        return fail("cannot write to standard output: %s", strerror(errno));
    return EXIT_OK;
}

/* ---- options ---- */

static void print_help(const command *self, const option_spec *options, size_t n_options)
{
    enum { HELP_COLUMN = 26 };
    printf("Usage: dsv2 %s %s\n\n%s\n", self->name, self->arguments, self->summary);
    if (self->help[0] != '\0')
        printf("\n%s\n", self->help);
    printf("\nOptions:\n");
    for (size_t i = 0; i < n_options; i++) {
        const option_spec *o = &options[i];
        int width = printf("  --%s %s", o->name, o->argument != NULL ? o->argument : "");
        for (const char *line = o->help; line != NULL; width = 0) {
            const char *end = strchr(line, '\n');
            int length = (int)(end != NULL ? (size_t)(end - line) : strlen(line));
            printf("%*s%.*s\n", width < HELP_COLUMN ? HELP_COLUMN - width : 1, "", length, line);
            line = end != NULL ? end + 1 : NULL;
        }
    }
    printf("  --help%*sthis text\n", HELP_COLUMN - 8, "");
}

static int set_count(const option_spec *o, const char *text)
{
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end != '\0' || errno != 0)
        return fail_usage("--%s: '%s' is not a whole number", o->name, text);
    if (value < o->min)
        return fail_usage("--%s: %s is too small, the least is %llu", o->name, text, (unsigned long long)o->min);
    if (o->max != 0 && value > o->max)
        return fail_usage("--%s: %s is too large, the most is %llu", o->name, text, (unsigned long long)o->max);
    *(uint64_t *)o->value = value;
    return GO_ON;
}

static int set_option(const option_spec *o, const char *text)
{
    char *end;
    switch (o->type) {
    case OPTION_FLAG:
        *(bool *)o->value = true;
        return GO_ON;
    case OPTION_COUNT:
        return set_count(o, text);
    case OPTION_NUMBER:
        *(double *)o->value = strtod(text, &end);
        if (end == text || *end != '\0')
            return fail_usage("--%s: '%s' is not a number", o->name, text);
        return GO_ON;
    case OPTION_TEXT:
        *(const char **)o->value = text;
        return GO_ON;
    }
    return GO_ON;
}

int parse_options(const command *self, int argc, char **argv, const option_spec *options, size_t n_options,
                  const char **operands, size_t n_operands)
{
    enum { HELP = 1000, MAX_OPTIONS = 32 };
    struct option longs[MAX_OPTIONS + 2] = {{0}};
    char program[64];
    command_name = self->name;
    for (size_t i = 0; i < n_options; i++)
        longs[i] = (struct option){options[i].name, options[i].type == OPTION_FLAG ? no_argument : required_argument,
                                   NULL, (int)i};
    longs[n_options] = (struct option){"help", no_argument, NULL, HELP};
    snprintf(program, sizeof program, "dsv2 %s", self->name); /* what getopt_long's own messages begin with */
    argv[0] = program;
    for (int which; (which = getopt_long(argc, argv, "", longs, NULL)) != -1;) {
        if (which == HELP) {
            print_help(self, options, n_options);
            return finish_output();
        }
        if (which == '?') {
            fprintf(stderr, "Try 'dsv2 %s --help'.\n", self->name);
            return EXIT_USAGE;
        }
        int status = set_option(&options[which], optarg);
        if (status != GO_ON)
            return status;
    }
    if ((size_t)(argc - optind) != n_operands)
        return fail_usage("expected: dsv2 %s %s", self->name, self->arguments);
    for (size_t i = 0; i < n_operands; i++)
        operands[i] = argv[optind + (int)i];
    return GO_ON;
}

static const char *const cache_type_names[] = {
    [DSV2_CACHE_F32] = "f32", [DSV2_CACHE_F16] = "f16", [DSV2_CACHE_Q8] = "q8", [DSV2_CACHE_Q6] = "q6"};

int find_cache_type(const char *name, dsv2_cache_type *type)
{
    *type = DSV2_CACHE_DEFAULT;
    if (name == NULL)
        return GO_ON;
    for (int i = DSV2_CACHE_F32; i <= DSV2_CACHE_Q6; i++)
        if (strcmp(name, cache_type_names[i]) == 0)
            *type = (dsv2_cache_type)i;
    return *type != DSV2_CACHE_DEFAULT ? GO_ON : fail_usage("--kv: '%s' is none of f32, f16, q8, q6", name);
}

const char *cache_type_name(dsv2_cache_type type)
{
    return type >= DSV2_CACHE_F32 && type <= DSV2_CACHE_Q6 ? cache_type_names[type] : "unknown";
}

/* Written by tests/house/weight_types.py. */
static const char *const weight_type_names[] = {
    [DSV2_WEIGHTS_AS_STORED] = "as stored",
    [DSV2_WEIGHTS_F32] = "f32",
    [DSV2_WEIGHTS_F16] = "f16",
    [DSV2_WEIGHTS_BF16] = "bf16",
    [DSV2_WEIGHTS_F8_E4M3] = "f8_e4m3",
    [DSV2_WEIGHTS_Q8_0] = "q8_0",
    [DSV2_WEIGHTS_Q6_K] = "q6_k",
    [DSV2_WEIGHTS_Q5_K] = "q5_k",
    [DSV2_WEIGHTS_Q4_K] = "q4_k",
    [DSV2_WEIGHTS_Q4_0] = "q4_0",
    [DSV2_WEIGHTS_MIXED] = "mixed",
};
enum { N_WEIGHT_TYPES = sizeof weight_type_names / sizeof *weight_type_names };

int find_weight_type(const char *name, dsv2_weight_type *type)
{
    *type = DSV2_WEIGHTS_AS_STORED;
    if (name == NULL)
        return GO_ON;
    for (int i = DSV2_WEIGHTS_F32; i < N_WEIGHT_TYPES; i++)
        if (i != DSV2_WEIGHTS_MIXED && strcmp(name, weight_type_names[i]) == 0)
            *type = (dsv2_weight_type)i;
    return *type != DSV2_WEIGHTS_AS_STORED ? GO_ON : fail_usage("--type: there is no weight type '%s'", name);
}

const char *weight_type_name(dsv2_weight_type type)
{
    return (size_t)type < N_WEIGHT_TYPES ? weight_type_names[type] : "unknown";
}

/* ---- progress ---- */

double seconds_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

void progress_start(progress_bar *bar, const char *label) { *bar = (progress_bar){label, seconds_now(), 0}; }

void progress_update(progress_bar *bar, uint64_t done, uint64_t total)
{
    static const char full[] = "##############################";
    enum { WIDTH = sizeof full - 1 };
    const double patience = 0.3, interval = 0.1; /* seconds before the first bar, and between two */
    double now = seconds_now();
    if (now - bar->started < patience || now - bar->drawn < interval || total == 0 || !isatty(STDERR_FILENO))
        return;
    double share = (double)done / (double)total;
    int filled = (int)(share * WIDTH);
    fprintf(stderr, "\r%s [%.*s%*s] %3.0f%%", bar->label, filled, full, WIDTH - filled, "", share * 100);
    fflush(stderr);
    bar->drawn = now;
}

void progress_end(progress_bar *bar)
{
    if (bar->drawn > 0)
        fputs("\r\033[K", stderr);
    bar->drawn = 0;
}

int progress_show(void *bar, dsv2_phase phase, uint64_t done, uint64_t total)
{
    (void)phase;
    progress_update(bar, done, total);
    return 0;
}

/* A session keeps its callback, so one bar serves all feeds and lives as long. */
static int show_prompt(void *user, dsv2_phase phase, uint64_t done, uint64_t total)
{
    static progress_bar bar;
    static uint64_t last;
    (void)user, (void)phase;
    if (bar.label == NULL || done < last)
        progress_start(&bar, "Reading");
    last = done;
    progress_update(&bar, done, total);
    if (done == total) {
        progress_end(&bar);
        bar.label = NULL;
    }
    return 0;
}

/* ---- the library ---- */

static void show_warning(void *user, dsv2_log_level level, const char *message)
{
    (void)user;
    if (level == DSV2_LOG_WARNING)
        fprintf(stderr, "dsv2 %s: %s\n", command_name, message);
}

int find_model_options(const model_settings *settings, dsv2_model_options *options)
{
    *options = (dsv2_model_options){.struct_size = sizeof *options, .n_threads = (uint32_t)settings->threads,
                                    .kernels = settings->kernels, .lock = settings->lock, .insist = settings->insist};
    if (settings->loading == NULL || strcmp(settings->loading, "map") == 0)
        return GO_ON;
    options->loading = DSV2_LOADING_READ;
    return strcmp(settings->loading, "read") == 0 ? GO_ON
                                                  : fail_usage("--loading: '%s' is none of map, read",
                                                               settings->loading);
}

dsv2_model *open_model(const char *path, const model_settings *settings)
{
    progress_bar bar;
    dsv2_model_options options;
    if (find_model_options(settings, &options) != GO_ON)
        return NULL;
    progress_start(&bar, "Opening");
    options.progress = progress_show;
    options.progress_user = &bar;
    options.log = show_warning;
    dsv2_model *model;
    dsv2_status status = dsv2_model_open(path, &options, &model);
    progress_end(&bar);
    if (status != DSV2_OK) {
        fail_library();
        return NULL;
    }
    return model;
}

dsv2_session *open_session(dsv2_model *model, dsv2_cache_type cache_type, dsv2_attention attention, bool bar)
{
    dsv2_session_options options = {.struct_size = sizeof options, .cache_type = cache_type, .attention = attention,
                                    .progress = bar ? show_prompt : NULL};
    dsv2_session *session;
    if (dsv2_session_open(model, &options, &session) != DSV2_OK) {
        fail_library();
        return NULL;
    }
    return session;
}

dsv2_model_info model_info(const dsv2_model *model)
{
    dsv2_model_info info = {.struct_size = sizeof info};
    if (dsv2_model_get_info(model, &info) != DSV2_OK)
        fail_library(); /* cannot fail: the structure is this library's own */
    return info;
}

const dsv2_tokenizer *need_tokenizer(const dsv2_model *model, const char *path)
{
    const dsv2_tokenizer *tokenizer = dsv2_model_tokenizer(model);
    if (tokenizer == NULL)
        fail("%s: %s", path, dsv2_last_error());
    return tokenizer;
}

const sampling_settings default_sampling = {.temperature = 0.8, .top_p = 0.95, .repetition_penalty = 1};

int set_sampling(dsv2_session *session, const sampling_settings *settings)
{
    dsv2_sampling sampling = {.struct_size = sizeof sampling};
    if (dsv2_sampling_get_defaults(&sampling) != DSV2_OK)
        return fail_library();
    sampling.temperature = (float)settings->temperature;
    sampling.top_k = (uint32_t)settings->top_k;
    sampling.top_p = (float)settings->top_p;
    sampling.min_p = (float)settings->min_p;
    sampling.repetition_penalty = (float)settings->repetition_penalty;
    sampling.seed = settings->seed;
    dsv2_status status = dsv2_session_set_sampling(session, &sampling);
    if (status == DSV2_OK) /* a restored session may have had the same seed, and drawn */
        status = dsv2_session_seed(session, settings->seed);
    if (status == DSV2_ERROR_ARGUMENT)
        return fail_usage("%s", dsv2_last_error());
    return status == DSV2_OK ? EXIT_OK : fail_library();
}

int32_t *encode_text(const dsv2_tokenizer *tokenizer, const char *text, size_t size, uint32_t flags, size_t *n)
{
    /* A token is at least one byte, so there are at most `size` of them and BOS. */
    size_t capacity = size + 1;
    int32_t *tokens = malloc(capacity * sizeof *tokens);
    if (tokens == NULL) {
        fail("no memory for %zu tokens", capacity);
        return NULL;
    }
    if (dsv2_tokenizer_encode(tokenizer, text, size, flags, tokens, capacity, n) != DSV2_OK) {
        fail_library();
        free(tokens);
        return NULL;
    }
    return tokens;
}

/* ---- text ---- */

int stream_token(text_stream *s, int32_t token)
{
    size_t size;
    if (dsv2_tokenizer_decode(s->tokenizer, &token, 1, 0, NULL, 0, &size) != DSV2_OK)
        return fail_library();
    if (s->held + size > s->capacity) {
        char *grown = realloc(s->buffer, s->held + size);
        if (grown == NULL)
            return fail("no memory for text");
        s->buffer = grown;
        s->capacity = s->held + size;
    }
    if (size > 0 && dsv2_tokenizer_decode(s->tokenizer, &token, 1, 0, s->buffer + s->held, size, &size) != DSV2_OK)
        return fail_library();
    s->held += size;
    size_t complete = dsv2_utf8_complete(s->buffer, s->held);
    if (complete == 0)
        return EXIT_OK;
    fwrite(s->buffer, 1, complete, stdout);
    s->held -= complete;
    memmove(s->buffer, s->buffer + complete, s->held);
    return finish_output();
}

void stream_end(text_stream *s)
{
    if (s->held > 0)
        fwrite(s->buffer, 1, s->held, stdout);
    free(s->buffer);
    *s = (text_stream){s->tokenizer, NULL, 0, 0};
}

char *read_all(const char *path, size_t *size)
{
    const char *name = path != NULL ? path : "standard input";
    FILE *file = path != NULL ? fopen(path, "rb") : stdin;
    if (file == NULL) {
        fail("%s: cannot open: %s", path, strerror(errno));
        return NULL;
    }
    char *data = NULL;
    size_t capacity = 0, got;
    *size = 0;
    do {
        if (*size + 1 >= capacity) { /* there is room for a terminator */
            capacity = capacity > 0 ? capacity * 2 : 65536;
            char *grown = realloc(data, capacity);
            if (grown == NULL) {
                fail("%s: no memory for its text", name);
                goto failed;
            }
            data = grown;
        }
        got = fread(data + *size, 1, capacity - 1 - *size, file);
        *size += got;
    } while (got > 0);
    if (ferror(file)) {
        fail("%s: cannot read: %s", name, strerror(errno));
        goto failed;
    }
    data[*size] = '\0';
    if (file != stdin)
        fclose(file);
    return data;

failed:
    free(data);
    if (file != stdin)
        fclose(file);
    return NULL;
}

int32_t *parse_ids(const char *name, const char *text, size_t size, size_t *n)
{
    int32_t *ids = malloc((size / 2 + 1) * sizeof *ids); /* an id takes at least two bytes, the last one may take one */
    if (ids == NULL) {
        fail("%s: no memory for its ids", name);
        return NULL;
    }
    *n = 0;
    for (const char *at = text;;) {
        at += strspn(at, " \t\r\n\v\f");
        if (at == text + size)
            return ids;
        size_t length = strcspn(at, " \t\r\n\v\f");
        char *end;
        errno = 0;
        long id = strtol(at, &end, 10);
        if (length == 0 || end != at + length || errno != 0 || id < INT32_MIN || id > INT32_MAX) {
            fail("%s: token %zu is '%.*s', expected a whole number", name, *n, length < 40 ? (int)length : 40, at);
            free(ids);
            return NULL;
        }
        ids[(*n)++] = (int32_t)id;
        at += length;
    }
}

/* The length of the UTF-8 character at s. 0: there is none. */
static size_t utf8_length(const unsigned char *s)
{
    size_t length = s[0] < 0x80 ? 1 : s[0] < 0xc2 ? 0 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : s[0] < 0xf5 ? 4 : 0;
    for (size_t i = 1; i < length; i++)
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    return length;
}

void print_json_string(const char *string) { write_json_string(stdout, string); }

void write_json_string(FILE *out, const char *string)
{
    fputc('"', out);
    for (const unsigned char *s = (const unsigned char *)string; *s != '\0';) {
        size_t length = utf8_length(s);
        if (length == 0)
            fputs("\\ufffd", out);
        else if (*s == '"' || *s == '\\')
            fprintf(out, "\\%c", *s);
        else if (*s < 0x20)
            fprintf(out, "\\u%04x", *s);
        else
            fwrite(s, 1, length, out);
        s += length > 0 ? length : 1;
    }
    fputc('"', out);
}

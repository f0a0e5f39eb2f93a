/* dsv2 bench: how fast a model runs here. */
#include "common.h"

#include <stdlib.h>
#include <unistd.h>

typedef struct bench {
    dsv2_model *model;
    dsv2_session **sessions;
    dsv2_step_item *items;
    int32_t *tokens; /* room for a feed of every session */
    size_t n_sessions, depth, longest; /* longest: tokens of the longest feed */
    uint32_t vocab_size;
    uint64_t random;
} bench;

/* Seconds of one clock. */
typedef struct bench_times {
    double started;     /* before the model is opened */
    double opened;
    double first_token; /* after a first token of every session */
} bench_times;

/* Tokens per second of each repetition, then in ascending order. */
typedef struct rates {
    double *values;
    size_t n;
} rates;

/* Numerical Recipes' 64-bit congruential generator. Any ids will do, but every run needs the same. */
static int32_t random_token(bench *b)
{
    b->random = b->random * 6364136223846793005u + 1442695040888963407u;
    return (int32_t)((b->random >> 33) % b->vocab_size);
}

/* Chooses n tokens for every session. */
static void choose_tokens(bench *b, size_t n)
{
    for (size_t s = 0; s < b->n_sessions; s++)
        for (size_t i = 0; i < n; i++)
            b->tokens[s * b->longest + i] = random_token(b);
}

/* Feeds every session n tokens of its own, in one step. */
static int step(bench *b, size_t n)
{
    choose_tokens(b, n);
    for (size_t s = 0; s < b->n_sessions; s++)
        b->items[s] = (dsv2_step_item){sizeof(dsv2_step_item), .session = b->sessions[s],
                                       .tokens = b->tokens + s * b->longest, .n_tokens = n};
    return dsv2_step(b->model, b->items, b->n_sessions) == DSV2_OK ? EXIT_OK : fail_library();
}

static int rewind_all(bench *b, size_t length)
{
    for (size_t s = 0; s < b->n_sessions; s++)
        if (dsv2_session_truncate(b->sessions[s], length) != DSV2_OK)
            return fail_library();
    return EXIT_OK;
}

/* Feeds `n` tokens to every session `steps` times and notes the rate. Then rewinds every session to its depth. */
static int measure(bench *b, size_t steps, size_t n, double *rate)
{
    double start = seconds_now();
    for (size_t i = 0; i < steps; i++)
        if (step(b, n) != EXIT_OK)
            return EXIT_FAILED;
    *rate = (double)(steps * n * b->n_sessions) / (seconds_now() - start);
    return rewind_all(b, b->depth);
}

static int compare_rates(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(const rates *r)
{
    qsort(r->values, r->n, sizeof *r->values, compare_rates);
    return r->n % 2 == 1 ? r->values[r->n / 2] : (r->values[r->n / 2 - 1] + r->values[r->n / 2]) / 2;
}

static void print_rates(const char *name, size_t n, rates *r, bool json)
{
    double middle = median(r), min = r->values[0], max = r->values[r->n - 1];
    if (json)
        printf(", \"%s\": {\"tokens\": %zu, \"tokens_per_second\": {\"median\": %.6g, \"min\": %.6g, \"max\": %.6g}}",
               name, n, middle, min, max);
    else
        printf("%-10s%6zu tokens  %10.2f tokens/s  (%.2f to %.2f)\n", name, n, middle, min, max);
}

/* The tokens beforehand, of the only session: restores as many as `path` has, feeds the others and adds them to
 * `path`. */
static int restore_depth(bench *b, const char *path)
{
    choose_tokens(b, b->depth);
    dsv2_restore_options options = {.struct_size = sizeof options, .prompt = b->tokens, .n_prompt = b->depth};
    size_t restored = 0;
    if (access(path, F_OK) == 0 && dsv2_session_restore(b->sessions[0], path, &options, &restored) != DSV2_OK)
        return fail_library();
    if (restored == b->depth)
        return EXIT_OK;
    if (dsv2_session_feed(b->sessions[0], b->tokens + restored, b->depth - restored) != DSV2_OK)
        return fail_library();
    return save_session(b->sessions[0], path);
}

static int open_sessions(bench *b)
{
    for (size_t s = 0; s < b->n_sessions; s++)
        if ((b->sessions[s] = open_session(b->model, DSV2_CACHE_DEFAULT, DSV2_ATTENTION_AUTO, false)) == NULL)
            return EXIT_FAILED;
    return EXIT_OK;
}

/* Feeds every session the tokens that it has beforehand. */
static int fill_sessions(bench *b, const char *keep)
{
    if (rewind_all(b, 0) != EXIT_OK)
        return EXIT_FAILED;
    if (b->depth == 0)
        return EXIT_OK;
    return keep != NULL ? restore_depth(b, keep) : step(b, b->depth);
}

/* Prompts and generation take turns, so that a change in the machine's load meets both. The first turn maps the
 * weights' pages and is not counted. */
static int measure_all(bench *b, size_t prompt, size_t generate, rates *prompts, rates *generated)
{
    for (size_t turn = 0; turn <= prompts->n; turn++) {
        size_t i = turn > 0 ? turn - 1 : 0;
        if ((prompt > 0 && measure(b, 1, prompt, &prompts->values[i]) != EXIT_OK) ||
            (generate > 0 && measure(b, generate, 1, &generated->values[i]) != EXIT_OK))
            return EXIT_FAILED;
    }
    return EXIT_OK;
}

static void print_setting(const bench *b, const char *path, const bench_times *times, bool json)
{
    dsv2_model_info info = model_info(b->model);
    if (json) {
        printf("{\"model\": ");
        print_json_string(path);
        printf(", \"kernels\": \"%s\", \"threads\": %u, \"sessions\": %zu, \"depth\": %zu, \"open_seconds\": %.6g, "
               "\"first_token_seconds\": %.6g",
               info.kernels, info.n_threads, b->n_sessions, b->depth, times->opened - times->started,
               times->first_token - times->started);
    } else {
        printf("%s: kernels %s, threads %u, sessions %zu, depth %zu, opened in %.3f s, first token after %.3f s\n",
               path, info.kernels, info.n_threads, b->n_sessions, b->depth, times->opened - times->started,
               times->first_token - times->started);
    }
}

typedef struct bench_settings {
    uint64_t prompt, generate; /* NOT_GIVEN: the usual number, or what fits into the model's context */
    uint64_t depth, sessions, repeat;
    const char *keep; /* NULL: not given */
    bool json;
} bench_settings;

#define NOT_GIVEN UINT64_MAX

static uint64_t tokens_to_feed(uint64_t given, uint64_t usual, uint64_t depth, uint64_t context)
{
    uint64_t room = depth < context ? context - depth : 0;
    return given != NOT_GIVEN ? given : usual < room ? usual : room;
}

static int run_bench(dsv2_model *model, const char *path, const bench_settings *o, bench_times *times)
{
    bench b = {
        .model = model, .n_sessions = o->sessions, .depth = o->depth, .vocab_size = model_info(model).vocab_size};
    b.longest = o->prompt > o->depth ? o->prompt : o->depth;
    b.longest = b.longest > 0 ? b.longest : 1;
    rates prompts = {calloc(o->repeat, sizeof(double)), o->repeat},
          generated = {calloc(o->repeat, sizeof(double)), o->repeat};
    b.sessions = calloc(b.n_sessions, sizeof *b.sessions);
    b.items = calloc(b.n_sessions, sizeof *b.items);
    b.tokens = calloc(b.n_sessions, b.longest * sizeof *b.tokens);
    int status = EXIT_FAILED;
    if (prompts.values == NULL || generated.values == NULL || b.sessions == NULL || b.items == NULL || b.tokens == NULL)
        fail("no memory for %zu sessions of %zu tokens", b.n_sessions, b.longest);
    else if ((status = open_sessions(&b)) == EXIT_OK && (status = step(&b, 1)) == EXIT_OK) {
        times->first_token = seconds_now();
        if ((status = fill_sessions(&b, o->keep)) == EXIT_OK)
            status = measure_all(&b, o->prompt, o->generate, &prompts, &generated);
    }
    if (status == EXIT_OK) {
        print_setting(&b, path, times, o->json);
        if (o->prompt > 0)
            print_rates("prompt", o->prompt, &prompts, o->json);
        if (o->generate > 0)
            print_rates("generate", o->generate, &generated, o->json);
        printf("%s", o->json ? "}\n" : "");
        status = finish_output();
    }
    for (size_t s = 0; b.sessions != NULL && s < b.n_sessions; s++)
        dsv2_session_close(b.sessions[s]);
    free(b.tokens);
    free(b.items);
    free(b.sessions);
    free(generated.values);
    free(prompts.values);
    return status;
}

static int run(int argc, char **argv)
{
    model_settings settings = {0};
    bench_settings o = {.prompt = NOT_GIVEN, .generate = NOT_GIVEN, .sessions = 1, .repeat = 5};
    const char *path;
    const option_spec options[] = {
        {"prompt", "N", OPTION_COUNT, &o.prompt, 0, UINT32_MAX, "tokens of the prompt; default 512, or as many as fit"},
        {"generate", "N", OPTION_COUNT, &o.generate, 0, UINT32_MAX,
         "tokens fed one at a time; default 64, or as many as fit"},
        {"depth", "N", OPTION_COUNT, &o.depth, 0, UINT32_MAX, "tokens that are in each session beforehand; default 0"},
        {"keep", "FILE", OPTION_TEXT, &o.keep, 0, 0,
         "keep these in FILE, of one session: a later run restores them\ninstead of feeding them"},
        {"sessions", "N", OPTION_COUNT, &o.sessions, 1, 65536,
         "sessions that work side by side, N tokens each; default 1"},
        {"repeat", "R", OPTION_COUNT, &o.repeat, 1, 100000, "times to measure; default 5"},
        {"json", NULL, OPTION_FLAG, &o.json, 0, 0, "print a JSON object"},
        MODEL_OPTIONS(settings),
    };
    int status = parse_options(&command_bench, argc, argv, options, sizeof options / sizeof *options, &path, 1);
    if (status == GO_ON && o.keep != NULL && o.sessions > 1)
        status = fail_usage("--keep is for one session");
    if (status != GO_ON)
        return status;
    bench_times times = {.started = seconds_now()};
    dsv2_model *model = open_model(path, &settings);
    if (model == NULL)
        return EXIT_FAILED;
    times.opened = seconds_now();
    dsv2_model_info info = model_info(model);
    o.prompt = tokens_to_feed(o.prompt, 512, o.depth, info.max_position_embeddings);
    o.generate = tokens_to_feed(o.generate, 64, o.depth, info.max_position_embeddings);
    status = run_bench(model, path, &o, &times);
    dsv2_model_close(model);
    return status;
}

const command command_bench = {
    "bench",
    "MODEL [OPTION...]",
    "Measures how fast a model runs.",
    "Prints tokens per second, of all sessions together: the median of the repetitions, and the least and the\n"
    "most; one repetition before them is not counted. Tokens are random ids; drawing from the logits is not measured.",
    run,
};

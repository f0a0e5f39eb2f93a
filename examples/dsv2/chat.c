/* dsv2 chat: a conversation. */
#include "common.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* What Ctrl-C must reach. This program installs a handler, the library none. */
static volatile sig_atomic_t interrupted;
static dsv2_session *volatile interrupted_session;

static void on_interrupt(int signal_number)
{
    (void)signal_number;
    interrupted = 1;
    dsv2_session_cancel(interrupted_session);
}

typedef struct conversation {
    dsv2_session *session;
    const dsv2_tokenizer *tokenizer;
    const dsv2_model *model;
    dsv2_model_info info;
    const char *system;  /* NULL: none */
    const char *save;    /* file to keep the conversation in; NULL: none */
    uint64_t max_tokens; /* of a reply */
    bool terminal;       /* lines are typed: prompts are shown, and Ctrl-C stops a reply */
    bool started;        /* something was said: BOS and the system message are in */
    int32_t pending[2];  /* to feed before the next message: a last token that was shown, not fed; the end mark */
    size_t n_pending;
} conversation;

/* The ids to feed for the user's next message, to be freed. NULL after saying why not. */
static int32_t *encode_turn(const conversation *c, const char *text, size_t size, size_t *n)
{
    /* The session has the past already: of the earlier messages only the roles matter. */
    dsv2_message messages[3] = {{"user", "", 0}, {"assistant", "", 0}, {"user", text, size}};
    dsv2_message *from = messages;
    size_t n_messages = 3, first = 2;
    if (!c->started) {
        from = &messages[2];
        n_messages = 1;
        first = 0;
        if (c->system != NULL) {
            messages[1] = (dsv2_message){"system", c->system, strlen(c->system)};
            from = &messages[1];
            n_messages = 2;
        }
    }
    if (dsv2_chat_encode(c->tokenizer, from, n_messages, first, NULL, 0, n) != DSV2_OK) {
        fail_library();
        return NULL;
    }
    int32_t *tokens = malloc((c->n_pending + *n) * sizeof *tokens);
    if (tokens == NULL) {
        fail("no memory for %zu tokens", *n);
        return NULL;
    }
    memcpy(tokens, c->pending, c->n_pending * sizeof *tokens);
    if (dsv2_chat_encode(c->tokenizer, from, n_messages, first, tokens + c->n_pending, *n, n) != DSV2_OK) {
        fail_library();
        free(tokens);
        return NULL;
    }
    *n += c->n_pending;
    return tokens;
}

/* Draws and shows the reply until it ends, has max_tokens, is interrupted, or the context is full. What was shown stays
 * in the conversation. */
static int reply(conversation *c)
{
    text_stream stream = {.tokenizer = c->tokenizer};
    int status = EXIT_OK;
    c->n_pending = 0;
    for (uint64_t i = 0; i < c->max_tokens && !interrupted; i++) {
        int32_t token;
        size_t length;
        if (dsv2_session_sample(c->session, &token) != DSV2_OK || dsv2_session_length(c->session, &length) != DSV2_OK) {
            status = fail_library();
            break;
        }
        if (dsv2_model_is_end(c->model, token))
            break;
        status = stream_token(&stream, token);
        if (status != EXIT_OK)
            break;
        c->pending[0] = token;
        c->n_pending = 1;
        if (length == c->info.max_position_embeddings)
            break; /* the next message says that it does not fit */
        dsv2_status fed = dsv2_session_feed(c->session, &token, 1);
        if (fed == DSV2_OK) {
            c->n_pending = 0;
        } else if (fed != DSV2_ERROR_CANCELLED) {
            status = fail_library();
            break;
        }
    }
    stream_end(&stream);
    if (c->info.eos_token_id >= 0)
        c->pending[c->n_pending++] = c->info.eos_token_id;
    putchar('\n');
    int written = finish_output();
    return status != EXIT_OK ? status : written;
}

/* Ctrl-C is held back except while a reply is computed and while a line is waited for: it cannot fall in between. */
static void hold_interrupts(bool hold)
{
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigprocmask(hold ? SIG_BLOCK : SIG_UNBLOCK, &signals, NULL);
}

/* What was shown goes into the session first. */
static int save(conversation *c)
{
    if (c->n_pending > 0) {
        dsv2_status fed = dsv2_session_feed(c->session, c->pending, c->n_pending);
        if (fed != DSV2_OK && fed != DSV2_ERROR_FULL)
            return fail_library();
        c->n_pending = 0;
    }
    return save_session(c->session, c->save);
}

static int take_turn(conversation *c, const char *text, size_t size)
{
    size_t n;
    int32_t *tokens = encode_turn(c, text, size, &n);
    if (tokens == NULL)
        return EXIT_FAILED;
    interrupted = 0;
    interrupted_session = c->session;
    hold_interrupts(false);
    dsv2_status fed = dsv2_session_feed(c->session, tokens, n);
    free(tokens);
    int status = EXIT_OK;
    if (fed == DSV2_OK) {
        c->started = true;
        status = reply(c);
    } else if (fed == DSV2_ERROR_CANCELLED) {
        fprintf(stderr, "(stopped; the message was not read)\n");
    } else if (fed == DSV2_ERROR_FULL) {
        fprintf(stderr, "(%s; /reset begins anew)\n", dsv2_last_error());
    } else {
        status = fail_library();
    }
    hold_interrupts(c->terminal);
    return status == EXIT_OK && c->started && c->save != NULL ? save(c) : status;
}

/* Waits for a line to be typed; false if Ctrl-C comes first. */
static bool wait_for_line(void)
{
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    sigset_t signals;
    sigprocmask(SIG_SETMASK, NULL, &signals);
    sigdelset(&signals, SIGINT);
    return ppoll(&input, 1, NULL, &signals) >= 0 || errno != EINTR;
}

/* Reads one line without its end. False at the end of the input. Ctrl-C discards what was typed. */
static bool read_line(const conversation *c, char **line, size_t *capacity, size_t *size)
{
    for (bool waiting = c->terminal; waiting;) {
        fputs("> ", stdout);
        fflush(stdout);
        waiting = !wait_for_line();
        if (waiting)
            fputs("\n(Ctrl-D or /exit ends the conversation)\n", stderr);
    }
    ssize_t got = getline(line, capacity, stdin);
    if (got < 0)
        return false;
    *size = (size_t)got - (got > 0 && (*line)[got - 1] == '\n');
    (*line)[*size] = '\0';
    return true;
}

static int reset(conversation *c)
{
    c->started = false;
    c->n_pending = 0;
    return dsv2_session_truncate(c->session, 0) == DSV2_OK ? EXIT_OK : fail_library();
}

static int talk(conversation *c)
{
    if (c->terminal) {
        /* SA_RESTART: writing goes on after Ctrl-C, so that nothing of the reply is lost. */
        struct sigaction action = {.sa_handler = on_interrupt, .sa_flags = SA_RESTART};
        hold_interrupts(true);
        sigaction(SIGINT, &action, NULL);
    }
    char *line = NULL;
    size_t capacity = 0, size;
    int status = EXIT_OK;
    while (status == EXIT_OK && read_line(c, &line, &capacity, &size)) {
        if (strcmp(line, "/exit") == 0)
            break;
        if (strcmp(line, "/reset") == 0)
            status = reset(c);
        else if (size > 0)
            status = take_turn(c, line, size);
    }
    free(line);
    return status;
}

static int chat(dsv2_model *model, const char *path, const storage_settings *storage, const sampling_settings *sampling,
                conversation *c)
{
    size_t length;
    c->tokenizer = need_tokenizer(model, path);
    c->model = model;
    c->info = model_info(model);
    c->save = storage->save;
    c->terminal = isatty(STDIN_FILENO);
    if (c->tokenizer == NULL)
        return EXIT_FAILED;
    int status = open_stored_session(model, storage, sampling, &c->session);
    if (status != EXIT_OK)
        return status;
    if (dsv2_session_length(c->session, &length) == DSV2_OK) {
        c->started = length > 0;
        status = talk(c);
    } else {
        status = fail_library();
    }
    dsv2_session_close(c->session);
    return status;
}

static int run(int argc, char **argv)
{
    model_settings settings = {0};
    sampling_settings sampling = default_sampling;
    storage_settings storage = {0};
    conversation c = {.max_tokens = UINT64_MAX};
    const char *path;
    const option_spec options[] = {
        {"system", "TEXT", OPTION_TEXT, &c.system, 0, 0, "what to tell the model before the conversation"},
        {"max-tokens", "N", OPTION_COUNT, &c.max_tokens, 1, 0,
         "stop a reply after N tokens; by default the model ends it"},
        SAMPLING_OPTIONS(sampling),
        STORAGE_OPTIONS(storage),
        MODEL_OPTIONS(settings),
    };
    int status = parse_options(&command_chat, argc, argv, options, sizeof options / sizeof *options, &path, 1);
    if (status != GO_ON)
        return status;
    dsv2_model *model = open_model(path, &settings);
    if (model == NULL)
        return EXIT_FAILED;
    status = chat(model, path, &storage, &sampling, &c);
    dsv2_model_close(model);
    return status;
}

const command command_chat = {
    "chat",
    "MODEL [OPTION...]",
    "Talks with a model.",
    "Each line of standard input is a message. Ctrl-C stops a reply; what was said of it stays in the\n"
    "conversation. /reset begins anew; /exit, or the end of the input, ends. With --save the file is brought\n"
    "up to date after every reply.",
    run,
};

/* A snapshot whose rows were changed inside their compressed frames, and all the rest too, under right checksums. It is
 * restored and the session goes on, or the session is as it was. Whatever the rows are, no other session notices. */
#include "conversation.h"
#include "../support/must.h"

#include <math.h>
#include <stdbool.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What else the host does. */
typedef enum oddity { NONE, FAILS, SMALL, STOPS } oddity; /* SMALL: the session has room for few tokens */

typedef struct file {
    stream rest;
    size_t size;
    oddity oddity;
} file;

static int read_file(void *user, void *out, size_t size, size_t *got)
{
    file *f = user;
    if (f->oddity == FAILS && f->rest.size < f->size / 2) {
        *got = size + 1;
        return f->size & 1; /* an error, or a lie */
    }
    *got = size < f->rest.size ? size : f->rest.size;
    stream_bytes(&f->rest, out, *got);
    return 0;
}

static int stop(void *user, dsv2_phase phase, uint64_t done, uint64_t total)
{
    (void)user;
    MUST(phase == DSV2_PHASE_RESTORE && done <= total);
    return done > 0;
}

static void same(dsv2_session *session, const float *expected)
{
    const float *logits;
    MUST(dsv2_session_logits(session, &logits) == DSV2_OK);
    MUST(memcmp(logits, expected, CONVERSATION_VOCAB * sizeof *logits) == 0);
}

/* Both feed in one step; the restored session may be refused for what its rows are. */
static void go_on(dsv2_session *restored, dsv2_session *bystander, const float *expected)
{
    const int32_t *tokens = conversation_tokens();
    dsv2_step_item items[] = {
        {.struct_size = sizeof *items, .session = restored, .tokens = tokens + 5, .n_tokens = 3},
        {.struct_size = sizeof *items, .session = bystander, .tokens = tokens + 2, .n_tokens = 3},
    };
    size_t before, after;
    MUST(dsv2_session_length(restored, &before) == DSV2_OK);
    dsv2_status status = dsv2_step(conversation_model(), items, 2);
    MUST(dsv2_session_length(restored, &after) == DSV2_OK);
    MUST(after == (items[0].status == DSV2_OK ? before + 3 : before));
    MUST(items[1].status == DSV2_OK && status == items[0].status);
    same(bystander, expected);
    int32_t token;
    if (status == DSV2_OK)
        status = dsv2_session_sample(restored, &token);
    MUST(status != DSV2_ERROR_ARGUMENT && (status != DSV2_OK || (token >= 0 && token < CONVERSATION_VOCAB)));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static float expected[CONVERSATION_VOCAB];
    static bool known;
    stream in = {data, size};
    const uint8_t *snapshot;
    const float *logits;
    size_t snapshot_size, n, length, reused = 0;
    dsv2_cache_type type;
    uint8_t how = stream_u8(&in);
    conversation_snapshot(stream_u8(&in), &snapshot, &snapshot_size, &type, &n);
    uint8_t *changed = conversation_change(snapshot, snapshot_size, &in, &snapshot_size);
    if (!known) {
        dsv2_session *alone = conversation_session(DSV2_CACHE_F16, 5, 200);
        MUST(dsv2_session_logits(alone, &logits) == DSV2_OK);
        memcpy(expected, logits, sizeof expected);
        dsv2_session_close(alone);
        known = true;
    }
    file f = {{changed, snapshot_size}, snapshot_size, (oddity)(how / 64)};
    const dsv2_restore_options options = {.struct_size = sizeof options, .convert = how & 1,
                                          .prompt = how & 2 ? conversation_tokens() : NULL, .n_prompt = n / 2 + 1,
                                          .leave_last = how & 4, .progress = f.oddity == STOPS ? stop : NULL};
    size_t max_length = f.oddity == SMALL ? 10 : 200;
    dsv2_session *restored =
        conversation_session(how & 8 ? (dsv2_cache_type)(1 + how / 16 % 4) : type, 2, max_length);
    dsv2_session *bystander = conversation_session(DSV2_CACHE_F16, 2, 200);
    dsv2_status status = dsv2_session_restore_from(restored, read_file, &f, &options, &reused);
    MUST(dsv2_session_length(restored, &length) == DSV2_OK && length == (status == DSV2_OK ? reused : 2));
    if (length + 3 <= max_length)
        go_on(restored, bystander, expected);
    dsv2_session_close(restored);
    dsv2_session_close(bystander);
    free(changed);
    return 0;
}

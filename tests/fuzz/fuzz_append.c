/* A session is saved by appending to a file that was its snapshot and was changed since. Whatever the file is then, it
 * is as it was and the status says why, or it restores to the very session. One forgery is left out: append compares
 * the checksums of what is stored and of the rows, and does not decompress. Under right checksums bytes may stand from
 * which no such rows come; restoring refuses these. */
#include "conversation.h"
#include "../support/must.h"

#include <stdbool.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char path[64];

static void remove_file(void) { unlink(path); }

static void write_file(const uint8_t *data, size_t size)
{
    if (path[0] == '\0') {
        snprintf(path, sizeof path, "/tmp/dsv2-fuzz-append-%ld", (long)getpid());
        atexit(remove_file);
    }
    FILE *file = fopen(path, "wb");
    MUST(file != NULL && fwrite(data, 1, size, file) == size && fclose(file) == 0);
}

static bool holds(const uint8_t *data, size_t size)
{
    FILE *file = fopen(path, "rb");
    uint8_t *read = malloc(size + 1);
    MUST(file != NULL && read != NULL);
    bool same = fread(read, 1, size + 1, file) == size && memcmp(read, data, size) == 0;
    fclose(file);
    free(read);
    return same;
}

static void expect_same(dsv2_session *a, dsv2_session *b)
{
    const float *x, *y;
    int32_t s[200], t[200];
    size_t n, m;
    MUST(dsv2_session_tokens(a, s, 200, &n) == DSV2_OK && dsv2_session_tokens(b, t, 200, &m) == DSV2_OK);
    MUST(n == m && memcmp(s, t, n * sizeof *s) == 0);
    MUST(dsv2_session_feed(a, s, 1) == DSV2_OK && dsv2_session_feed(b, s, 1) == DSV2_OK);
    MUST(dsv2_session_logits(a, &x) == DSV2_OK && dsv2_session_logits(b, &y) == DSV2_OK);
    MUST(memcmp(x, y, CONVERSATION_VOCAB * sizeof *x) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    stream in = {data, size};
    const uint8_t *snapshot;
    size_t snapshot_size, n, reused;
    dsv2_cache_type type;
    const dsv2_save_options append = {.struct_size = sizeof append, .append = 1};
    uint8_t how = stream_u8(&in);
    conversation_snapshot(stream_u8(&in), &snapshot, &snapshot_size, &type, &n);
    uint8_t *changed = conversation_change(snapshot, snapshot_size, &in, &snapshot_size);
    dsv2_session *session = conversation_session(type, n, 200), *back = conversation_session(type, 0, 200);
    MUST(dsv2_session_feed(session, conversation_tokens() + n, 1 + how % 8) == DSV2_OK);
    write_file(changed, snapshot_size);
    dsv2_status status = dsv2_session_save(session, path, &append);
    if (status != DSV2_OK) {
        MUST(status == DSV2_ERROR_UNSUPPORTED && holds(changed, snapshot_size));
    } else {
        status = dsv2_session_restore(back, path, NULL, &reused);
        if (status == DSV2_OK)
            expect_same(session, back);
        else
            MUST(status == DSV2_ERROR_FORMAT && strstr(dsv2_last_error(), "the frame of tokens ") != NULL);
    }
    dsv2_session_close(session);
    dsv2_session_close(back);
    free(changed);
    return 0;
}

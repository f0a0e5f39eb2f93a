/* A snapshot is restored, in part and converted too, or it is refused and the session is as it was. Every input is
 * tried twice: as it is, and with checksums that fit, since checksums would refuse nearly every input. */
#include "conversation.h"
#include "memory_file.h"
#include "../support/must.h"
#include "../support/snapshot_file.h"

#include "cache/cache.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int read_stream(void *user, void *out, size_t size, size_t *got)
{
    stream *in = user;
    *got = size < in->size ? size : in->size;
    stream_bytes(in, out, *got);
    return 0;
}

static void restore(const uint8_t *data, size_t size, dsv2_cache_type type, bool prompted)
{
    static const int32_t prompt[] = {1, 2, 3, 4, 5};
    dsv2_session_options options = {.struct_size = sizeof options, .cache_type = type, .max_length = 200};
    dsv2_restore_options how = {.struct_size = sizeof how, .convert = size % 2 == 0};
    stream input = {data, size};
    dsv2_session *session;
    size_t length, reused, n;
    int32_t tokens[256];
    const float *logits;
    if (prompted) {
        how.prompt = prompt;
        how.n_prompt = 5;
    }
    MUST(dsv2_session_open(conversation_model(), &options, &session) == DSV2_OK);
    MUST(dsv2_session_feed(session, prompt, 2) == DSV2_OK);
    dsv2_status status = dsv2_session_restore_from(session, read_stream, &input, &how, &reused);
    MUST(dsv2_session_length(session, &length) == DSV2_OK && (status == DSV2_OK ? length == reused : length == 2));
    MUST(dsv2_session_tokens(session, tokens, 256, &n) == DSV2_OK && n == length && length <= 200);
    for (size_t i = 0; i < n; i++)
        MUST(tokens[i] >= 0 && tokens[i] < CONVERSATION_VOCAB);
    if (dsv2_session_logits(session, &logits) == DSV2_OK) { /* which may all be NaN */
        status = dsv2_session_sample(session, tokens);
        MUST(status == DSV2_OK ? tokens[0] >= 0 && tokens[0] < CONVERSATION_VOCAB : status == DSV2_ERROR_STATE);
    }
    if (length < 200)
        MUST(dsv2_session_feed(session, prompt, 1) == DSV2_OK);
    dsv2_session_close(session);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[64];
    dsv2_snapshot_info info = {.struct_size = sizeof info};
    uint8_t *repaired = malloc(size + 1);
    MUST(repaired != NULL);
    memcpy(repaired, data, size);
    snapshot_file_seal(repaired, size, CONVERSATION_VOCAB);
    int fd = memory_file(repaired, size, path);
    if (dsv2_snapshot_inspect(path, &info) == DSV2_OK)
        MUST(info.file_bytes == size && info.cache_type >= DSV2_CACHE_F32 && info.cache_type <= DSV2_CACHE_Q6);
    close(fd);
    dsv2_cache_type type = size > 12 ? (dsv2_cache_type)(1 + data[size / 2] % 4) : DSV2_CACHE_F16;
    restore(data, size, type, false);
    restore(repaired, size, info.cache_type != 0 && type != DSV2_CACHE_F16 ? info.cache_type : type, size % 3 == 0);
    free(repaired);
    return 0;
}

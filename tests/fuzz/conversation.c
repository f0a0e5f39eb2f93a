#include "conversation.h"

#include "../support/must.h"
#include "../support/snapshot_file.h"

#include <stdbool.h>
#include <string.h>
#include <unistd.h>

dsv2_model *conversation_model(void)
{
    static dsv2_model *model;
    if (model == NULL) {
        dsv2_model_options options = {.struct_size = sizeof options, .n_threads = 1};
        MUST(dsv2_model_open(DS_TEST_DATA "/goldens/plain", &options, &model) == DSV2_OK);
    }
    return model;
}

const int32_t *conversation_tokens(void)
{
    static int32_t tokens[CONVERSATION];
    for (int32_t i = 0; i < CONVERSATION; i++)
        tokens[i] = (i * i + 7) % CONVERSATION_VOCAB;
    return tokens;
}

dsv2_session *conversation_session(dsv2_cache_type type, size_t n, size_t max_length)
{
    const dsv2_session_options options = {.struct_size = sizeof options, .cache_type = type, .max_length = max_length,
                                          .attention = DSV2_ATTENTION_ABSORBED};
    dsv2_session *session;
    MUST(dsv2_session_open(conversation_model(), &options, &session) == DSV2_OK);
    if (n > 0)
        MUST(dsv2_session_feed(session, conversation_tokens(), n) == DSV2_OK);
    return session;
}

static void read_whole(const char *path, uint8_t **data, size_t *size)
{
    FILE *file = fopen(path, "rb");
    MUST(file != NULL && fseek(file, 0, SEEK_END) == 0);
    *size = (size_t)ftell(file);
    rewind(file);
    *data = malloc(*size);
    MUST(*data != NULL && fread(*data, 1, *size, file) == *size);
    fclose(file);
}

void conversation_snapshot(uint8_t kind, const uint8_t **data, size_t *size, dsv2_cache_type *type, size_t *n)
{
    static struct {
        uint8_t *data;
        size_t size;
    } made[32];
    static const size_t lengths[] = {3, 66, 20, 130};
    const dsv2_save_options append = {.struct_size = sizeof append, .append = 1};
    kind %= 32;
    *type = (dsv2_cache_type)(1 + kind % 4);
    *n = lengths[kind / 4 % 4];
    if (made[kind].data == NULL) {
        char path[] = "/tmp/dsv2-fuzz-snapshot-XXXXXX";
        MUST(mkstemp(path) >= 0 && unlink(path) == 0);
        size_t first = kind & 16 ? *n / 2 : *n;
        dsv2_session *session = conversation_session(*type, first, 200);
        MUST(dsv2_session_save(session, path, &append) == DSV2_OK);
        if (first < *n)
            MUST(dsv2_session_feed(session, conversation_tokens() + first, *n - first) == DSV2_OK &&
                 dsv2_session_save(session, path, &append) == DSV2_OK);
        dsv2_session_close(session);
        read_whole(path, &made[kind].data, &made[kind].size);
        MUST(unlink(path) == 0);
    }
    *data = made[kind].data;
    *size = made[kind].size;
}

typedef struct changes {
    uint8_t n, frame; /* of changes; of the frame that they are for */
    const uint8_t *bytes;
    uint8_t seen;
} changes;

/* Three bytes a change: where (16 bits), what. A run of the same byte for every fourth: scales and infinities. */
static void change_rows(void *user, uint8_t *planes, size_t n)
{
    changes *c = user;
    if (c->seen++ % 4 != c->frame % 4)
        return;
    for (size_t i = 0; i < c->n; i++) {
        size_t at = (size_t)(c->bytes[3 * i] | c->bytes[3 * i + 1] << 8) % n, run = i % 4 == 3 ? 64 : 1;
        for (size_t k = at; k < at + run && k < n; k++)
            planes[k] = c->bytes[3 * i + 2];
    }
}

uint8_t *conversation_change(const uint8_t *data, size_t size, stream *in, size_t *new_size)
{
    uint8_t bytes[3 * 8] = {0}, n = stream_u8(in), how = stream_u8(in);
    stream_bytes(in, bytes, 3u * (n % 8));
    changes c = {.n = n % 8, .frame = n / 8, .bytes = bytes};
    uint8_t *changed = snapshot_file_change(data, size, CONVERSATION_VOCAB, change_rows, &c, new_size);
    while (in->size > 0) { /* what is not compressed, most of it near headers */
        size_t at = stream_u16(in);
        if (how & 2)
            at = at % 12 * 64 + at / 12 % 64;
        changed[at % *new_size] = stream_u8(in);
    }
    if (how & 4)
        *new_size -= how / 8;
    if (!(how & 1))
        snapshot_file_seal(changed, *new_size, CONVERSATION_VOCAB);
    return changed;
}

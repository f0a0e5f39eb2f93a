/* A fuzzer's input, taken piece by piece. What lies behind its end is zero. */
#ifndef DS_TESTS_STREAM_H
#define DS_TESTS_STREAM_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct stream {
    const uint8_t *data;
    size_t size;
} stream;

static inline void stream_bytes(stream *in, uint8_t *out, size_t n)
{
    size_t got = n < in->size ? n : in->size;
    memset(out, 0, n);
    if (got > 0)
        memcpy(out, in->data, got);
    in->data += got;
    in->size -= got;
}

static inline uint8_t stream_u8(stream *in)
{
    uint8_t byte;
    stream_bytes(in, &byte, 1);
    return byte;
}

static inline uint16_t stream_u16(stream *in)
{
    uint8_t low = stream_u8(in);
    return (uint16_t)(low | stream_u8(in) << 8);
}

#endif

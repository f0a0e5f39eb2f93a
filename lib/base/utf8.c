/* UTF-8 as RFC 3629 has it: no overlong forms, no surrogates, nothing over U+10FFFF. */
#include "base/base.h"

#include <dsv2/tokenizer.h>
#include <string.h>

/* The length of a character that begins with this byte (0: none does), and the range of its second byte. */
static size_t first_byte_length(uint8_t first, uint8_t *low, uint8_t *high)
{
    *low = 0x80;
    *high = 0xbf;
    if (first < 0x80)
        return 1;
    if (first < 0xc2 || first > 0xf4)
        return 0;
    if (first < 0xe0)
        return 2;
    if (first < 0xf0) {
        if (first == 0xe0)
            *low = 0xa0;
        if (first == 0xed)
            *high = 0x9f;
        return 3;
    }
    if (first == 0xf0)
        *low = 0x90;
    if (first == 0xf4)
        *high = 0x8f;
    return 4;
}

/* How many bytes at `text`, at most `length`, could be those of one character of this length; at least 1. */
static size_t matching_bytes(const uint8_t *text, size_t size, size_t length, uint8_t low, uint8_t high)
{
    size_t i = 1;
    while (i < length && i < size && text[i] >= low && text[i] <= high) {
        low = 0x80;
        high = 0xbf;
        i++;
    }
    return i;
}

size_t ds_utf8_length(const char *text, size_t size)
{
    if (size == 0)
        return 0;
    const uint8_t *bytes = (const uint8_t *)text;
    uint8_t low, high;
    size_t length = first_byte_length(bytes[0], &low, &high);
    return length > 0 && matching_bytes(bytes, size, length, low, high) == length ? length : 0;
}

size_t ds_utf8_valid(const char *text, size_t size)
{
    size_t i = 0;
    while (i < size) {
        uint64_t eight;
        if (size - i >= sizeof eight && (memcpy(&eight, text + i, sizeof eight), (eight & 0x8080808080808080u) == 0)) {
            i += sizeof eight;
            continue;
        }
        size_t length = ds_utf8_length(text + i, size - i);
        if (length == 0)
            break;
        i += length;
    }
    return i;
}

size_t dsv2_utf8_complete(const char *text, size_t size)
{
    if (text == NULL)
        return 0;
    const uint8_t *bytes = (const uint8_t *)text;
    for (size_t back = 1; back <= 3 && back <= size; back++) {
        const uint8_t *first = bytes + size - back;
        if ((*first & 0xc0) == 0x80)
            continue; /* a continuation byte: the first byte is further back */
        uint8_t low, high;
        size_t length = first_byte_length(*first, &low, &high);
        return length > back && matching_bytes(first, back, length, low, high) == back ? size - back : size;
    }
    return size;
}

int ds_quoted(const char *text, size_t size)
{
    enum { MOST = 200 };
    return (int)(size <= MOST ? size : dsv2_utf8_complete(text, MOST));
}

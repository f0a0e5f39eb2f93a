/* Texts: bytes of UTF-8, each with its origin. Positions that a template names count characters, as Python's do. */
#include "template/parts.h"

#include <assert.h>

uint32_t ds_character(const ds_string *string, size_t at)
{
    size_t n = ds_character_size(string, at);
    const uint8_t *b = (const uint8_t *)string->bytes + at;
    if (n == 1)
        return b[0] < 0x80 ? b[0] : 0xdc00u + b[0]; /* no character of Unicode's */
    uint32_t character = n == 2 ? b[0] & 0x1f : n == 3 ? b[0] & 0x0f : b[0] & 0x07;
    for (size_t i = 1; i < n; i++)
        character = character << 6 | (b[i] & 0x3f);
    return character;
}

size_t ds_character_size(const ds_string *string, size_t at)
{
    assert(at < string->size);
    const uint8_t *b = (const uint8_t *)string->bytes + at;
    size_t n = b[0] < 0xc2 ? 1 : b[0] < 0xe0 ? 2 : b[0] < 0xf0 ? 3 : b[0] < 0xf5 ? 4 : 1;
    if (n > string->size - at)
        return 1;
    for (size_t i = 1; i < n; i++)
        if ((b[i] & 0xc0) != 0x80)
            return 1;
    return n;
}

size_t ds_put_character(char bytes[4], uint32_t c)
{
    size_t n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const uint8_t first[] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (size_t i = n; i-- > 1; c >>= 6)
        bytes[i] = (char)(0x80 | (c & 0x3f));
    bytes[0] = (char)(first[n] | c);
    return n;
}

bool ds_is_space(uint32_t c)
{
    return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

size_t ds_characters(const ds_string *string)
{
    size_t n = 0;
    for (size_t at = 0; at < string->size; at += ds_character_size(string, at))
        n++;
    return n;
}

size_t ds_character_at(const ds_string *string, size_t n)
{
    size_t at = 0;
    for (; at < string->size && n > 0; n--)
        at += ds_character_size(string, at);
    return at;
}

static ds_value as_value(const ds_string *string)
{
    return string != NULL ? (ds_value){.type = DS_VALUE_STRING, .string = string} : (ds_value){0};
}

ds_value ds_new_string(ds_rendering *r, const char *bytes, size_t size, ds_origin origin)
{
    ds_string *string = ds_render_new(r, 1, sizeof *string);
    char *copy = ds_render_new(r, size, 1);
    if (string == NULL || copy == NULL)
        return (ds_value){0};
    if (size > 0)
        memcpy(copy, bytes, size);
    *string = (ds_string){.bytes = copy, .size = size, .origin = origin};
    return as_value(string);
}

ds_value ds_part(ds_rendering *r, const ds_string *string, size_t at, size_t size)
{
    assert(at <= string->size && size <= string->size - at);
    ds_string *part = ds_render_new(r, 1, sizeof *part);
    if (part == NULL)
        return (ds_value){0};
    *part = *string;
    part->bytes += at;
    part->size = size;
    if (part->origins != NULL)
        part->origins += at;
    return as_value(part);
}

static bool reserve(ds_rendering *r, ds_builder *b, size_t size)
{
    if (b->capacity - b->size >= size)
        return true;
    size_t capacity = 2 * b->capacity > b->size + size ? 2 * b->capacity : b->size + size + 64;
    char *bytes = ds_render_new(r, capacity, 1);
    uint8_t *origins = ds_render_new(r, capacity, 1);
    if (bytes == NULL || origins == NULL)
        return false;
    if (b->size > 0) {
        memcpy(bytes, b->bytes, b->size);
        memcpy(origins, b->origins, b->size);
    }
    b->bytes = bytes;
    b->origins = origins;
    b->capacity = capacity;
    return true;
}

void ds_add_bytes(ds_rendering *r, ds_builder *b, const char *bytes, size_t size, ds_origin origin)
{
    assert(origin != DS_OF_BOTH);
    if (size == 0 || !ds_spend(r, size / 64) || !reserve(r, b, size))
        return;
    memcpy(b->bytes + b->size, bytes, size);
    memset(b->origins + b->size, (int)origin, size);
    b->size += size;
}

void ds_add_text(ds_rendering *r, ds_builder *b, const char *text)
{
    ds_add_bytes(r, b, text, strlen(text), DS_OF_TEMPLATE);
}

void ds_add_string(ds_rendering *r, ds_builder *b, const ds_string *string)
{
    if (string == NULL)
        return; /* what should have made it has failed */
    if (string->origin != DS_OF_BOTH) {
        ds_add_bytes(r, b, string->bytes, string->size, string->origin);
        return;
    }
    size_t before = b->size;
    ds_add_bytes(r, b, string->bytes, string->size, DS_OF_TEMPLATE);
    if (!ds_failed(r) && string->size > 0)
        memcpy(b->origins + before, string->origins, string->size);
}

ds_value ds_built(ds_rendering *r, const ds_builder *b)
{
    ds_string *string = ds_render_new(r, 1, sizeof *string);
    if (string == NULL)
        return (ds_value){0};
    *string = (ds_string){.bytes = b->size > 0 ? b->bytes : "", .size = b->size};
    size_t data = 0;
    for (size_t i = 0; i < b->size; i++)
        data += b->origins[i];
    string->origin = data == 0 ? DS_OF_TEMPLATE : data == b->size ? DS_OF_DATA : DS_OF_BOTH;
    string->origins = string->origin == DS_OF_BOTH ? b->origins : NULL;
    return as_value(string);
}

bool ds_string_is(const ds_string *string, const char *text)
{
    return ds_text_equals((ds_text){string->bytes, string->size}, text);
}

int ds_compare_strings(const ds_string *a, const ds_string *b)
{
    size_t n = a->size < b->size ? a->size : b->size;
    int order = n > 0 ? memcmp(a->bytes, b->bytes, n) : 0;
    return order != 0 ? order : (a->size > b->size) - (a->size < b->size);
}

size_t ds_find(const ds_string *string, const ds_string *part, size_t from)
{
    for (size_t at = from; part->size <= string->size && at <= string->size - part->size; at++) {
        if (part->size == 0)
            return at;
        const char *next = memchr(string->bytes + at, part->bytes[0], string->size - part->size - at + 1);
        if (next == NULL)
            break;
        at = (size_t)(next - string->bytes);
        if (memcmp(next, part->bytes, part->size) == 0)
            return at;
    }
    return SIZE_MAX;
}

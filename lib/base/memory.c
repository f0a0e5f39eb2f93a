#include "base/base.h"

#include <stdlib.h>
#include <string.h>

enum {
    CACHE_LINE = 64,
    HUGE_PAGE = 2 << 20,
};

void *ds_new(size_t count, size_t size)
{
    /* calloc checks the product; an empty array still gets an address of its own, so that NULL always means failure. */
    return calloc(count > 0 ? count : 1, size > 0 ? size : 1);
}

void *ds_new_aligned(size_t count, size_t size)
{
    uint64_t bytes;
    if (!ds_mul(count, size, &bytes) || bytes > SIZE_MAX - HUGE_PAGE)
        return NULL;
    size_t alignment = bytes >= HUGE_PAGE ? HUGE_PAGE : CACHE_LINE;
    void *memory = ds_os_new_aligned(alignment, bytes > 0 ? (size_t)bytes : 1);
    if (memory != NULL && alignment == HUGE_PAGE)
        ds_os_wish_large_pages(memory, (size_t)bytes & ~(size_t)(HUGE_PAGE - 1));
    return memory;
}

void *ds_new_pages(size_t bytes)
{
    size_t page = ds_os_page_bytes(), alignment = bytes >= HUGE_PAGE ? HUGE_PAGE : page;
    if (bytes > SIZE_MAX - page)
        return NULL;
    size_t whole = (bytes + page - 1) / page * page;
    void *memory = ds_os_new_aligned(alignment, whole > 0 ? whole : page);
    if (memory != NULL && alignment == HUGE_PAGE)
        ds_os_wish_large_pages(memory, whole & ~(size_t)(HUGE_PAGE - 1));
    return memory;
}

bool ds_grow(void *array_pointer, size_t *capacity, size_t needed, size_t size)
{
    if (needed <= *capacity)
        return true;
    void *array;
    memcpy(&array, array_pointer, sizeof array);
    size_t grown = *capacity < 16 ? 16 : *capacity;
    while (grown < needed) {
        if (grown > SIZE_MAX / 2)
            return false;
        grown *= 2;
    }
    uint64_t bytes;
    if (!ds_mul(grown, size, &bytes) || bytes > PTRDIFF_MAX)
        return false;
    array = realloc(array, (size_t)bytes);
    if (array == NULL)
        return false;
    memcpy(array_pointer, &array, sizeof array);
    *capacity = grown;
    return true;
}

void ds_free(void *memory) { free(memory); }

char *ds_copy_string(const char *string)
{
    size_t size = strlen(string) + 1;
    char *copy = ds_new(size, 1);
    if (copy != NULL)
        memcpy(copy, string, size);
    return copy;
}

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

/* Aligned memory of the host's. The address that the host gave stands in front of it. */
static void *take_from_host(const dsv2_allocator *allocator, size_t bytes, size_t alignment)
{
    size_t front = sizeof(void *) + alignment;
    if (bytes > SIZE_MAX - front)
        return NULL;
    ds_modes_lend();
    void *given = allocator->allocate(allocator->user, bytes + front);
    ds_modes_take_back();
    if (given == NULL)
        return NULL;
    uintptr_t begin = ((uintptr_t)given + front) / alignment * alignment;
    uint8_t *memory = (uint8_t *)given + (begin - (uintptr_t)given);
    memcpy(memory - sizeof given, &given, sizeof given);
    return memory;
}

static bool is_the_host(const dsv2_allocator *allocator) { return allocator != NULL && allocator->allocate != NULL; }

void *ds_allocate(const dsv2_allocator *allocator, size_t count, size_t size)
{
    uint64_t bytes;
    if (!is_the_host(allocator))
        return ds_new_aligned(count, size);
    return ds_mul(count, size, &bytes) && bytes <= SIZE_MAX ? take_from_host(allocator, (size_t)bytes, CACHE_LINE)
                                                            : NULL;
}

void *ds_allocate_pages(const dsv2_allocator *allocator, size_t bytes)
{
    size_t page = ds_os_page_bytes();
    if (bytes > SIZE_MAX - page)
        return NULL;
    size_t whole = (bytes + page - 1) / page * page;
    if (is_the_host(allocator))
        return take_from_host(allocator, whole, page);
    return whole >= HUGE_PAGE ? ds_new_aligned(whole, 1) : ds_os_new_aligned(page, whole > 0 ? whole : page);
}

void ds_release(const dsv2_allocator *allocator, void *memory)
{
    if (memory == NULL)
        return;
    if (!is_the_host(allocator)) {
        ds_free(memory);
        return;
    }
    void *given;
    memcpy(&given, (uint8_t *)memory - sizeof given, sizeof given);
    ds_modes_lend();
    allocator->release(allocator->user, given);
    ds_modes_take_back();
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

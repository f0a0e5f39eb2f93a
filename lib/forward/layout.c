#include "forward/layout.h"

void *ds_lay_out(ds_layout *layout, uint64_t count, uint64_t size)
{
    uint64_t bytes, end;
    if (!ds_mul(count, size, &bytes) || !ds_add(bytes, 63, &bytes) ||
        !ds_add(layout->used, bytes & ~(uint64_t)63, &end))
        layout->fits = false;
    if (!layout->fits)
        return NULL;
    void *part = layout->memory == NULL ? NULL : layout->memory + layout->used;
    layout->used = end;
    return part;
}

float *ds_take(float *memory, size_t *used, size_t bytes)
{
    enum { LINE = 64 };
    float *part = memory == NULL ? NULL : memory + *used;
    *used += (bytes + LINE - 1) / LINE * (LINE / sizeof(float));
    return part;
}

void ds_lay_out_overlapping(ds_layout *layout, const ds_overlapping *parts, size_t n)
{
    uint64_t first = layout->used, end = first;
    for (size_t i = 0; i < n; i++) {
        layout->used = first;
        parts[i].lay_out(parts[i].memory, layout);
        end = layout->used > end ? layout->used : end;
    }
    layout->used = end;
}

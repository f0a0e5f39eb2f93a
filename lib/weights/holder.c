#include "weights/holder.h"

#include <assert.h>

void ds_holder_init(ds_holder *holder, const dsv2_allocator *allocator, size_t slab_bytes)
{
    *holder = (ds_holder){.allocator = allocator, .slab_bytes = slab_bytes};
}

/* Makes the list longer before memory is allocated, so that what was allocated can always be held. */
static bool has_place(ds_holder *holder)
{
    return ds_grow(&holder->blocks, &holder->capacity, holder->n + 1, sizeof *holder->blocks);
}

static void *hold(ds_holder *holder, struct ds_held_block block)
{
    assert(holder->n < holder->capacity);
    if (block.memory != NULL)
        holder->blocks[holder->n++] = block;
    return block.memory;
}

void *ds_holder_array(ds_holder *holder, size_t count, size_t size)
{
    if (!has_place(holder))
        return NULL;
    return hold(holder, (struct ds_held_block){.memory = ds_new(count, size), .is_array = true});
}

static bool lock_block(ds_holder *holder, struct ds_held_block *block, size_t bytes)
{
    if (!ds_os_lock_memory(block->memory, bytes, false)) {
        holder->lock_failed = true;
        holder->reason = ds_os_failure();
        return false;
    }
    block->locked = bytes;
    return true;
}

static void *own_block(ds_holder *holder, size_t bytes)
{
    if (!has_place(holder))
        return NULL;
    return hold(holder, (struct ds_held_block){.memory = holder->lock ? ds_allocate_pages(holder->allocator, bytes)
                                                                     : ds_allocate(holder->allocator, bytes, 1)});
}

bool ds_holder_lock_rest(ds_holder *holder)
{
    size_t used = holder->slab != NULL ? holder->slab_bytes - holder->slab_left : 0;
    return !holder->lock || used == 0 || lock_block(holder, &holder->blocks[holder->slab_block], used);
}

void *ds_holder_bytes(ds_holder *holder, size_t bytes)
{
    enum { LINE = 64 };
    if (bytes > SIZE_MAX - LINE)
        return NULL;
    size_t rounded = (bytes + LINE - 1) / LINE * LINE;
    if (rounded >= holder->slab_bytes / 8) {
        void *block = own_block(holder, rounded);
        bool locked = block == NULL || !holder->lock || lock_block(holder, &holder->blocks[holder->n - 1], rounded);
        return locked ? block : NULL; /* the holder keeps what cannot be locked until its end */
    }
    if (rounded > holder->slab_left) {
        if (!ds_holder_lock_rest(holder))
            return NULL;
        holder->slab = own_block(holder, holder->slab_bytes);
        holder->slab_left = holder->slab != NULL ? holder->slab_bytes : 0;
        if (holder->slab == NULL)
            return NULL;
        holder->slab_block = holder->n - 1;
    }
    void *piece = holder->slab;
    holder->slab += rounded;
    holder->slab_left -= rounded;
    return piece;
}

void ds_holder_free(ds_holder *holder)
{
    for (size_t i = 0; i < holder->n; i++) {
        const struct ds_held_block *block = &holder->blocks[i];
        if (block->locked > 0)
            ds_os_unlock_memory(block->memory, block->locked);
        if (block->is_array)
            ds_free(block->memory);
        else
            ds_release(holder->allocator, block->memory);
    }
    ds_free(holder->blocks);
    *holder = (ds_holder){0};
}

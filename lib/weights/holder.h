/* Memory that lives as long as the weights. The holder makes every block that it holds, and frees all of them at its
 * end: nobody else ever frees one. */
#ifndef DS_LIB_WEIGHTS_HOLDER_H
#define DS_LIB_WEIGHTS_HOLDER_H

#include "base/base.h"

struct ds_held_block {
    void *memory;
    bool is_array; /* of ds_new; else of the allocator */
    size_t locked; /* bytes; 0: not locked */
};

typedef struct ds_holder {
    const dsv2_allocator *allocator; /* of bytes, not of arrays; NULL: the C library */
    struct ds_held_block *blocks;
    size_t n, capacity;
    size_t slab_bytes; /* smaller pieces of memory share slabs of this size, large enough for huge pages */
    uint8_t *slab;     /* the rest of the newest slab, which is the block slab_block */
    size_t slab_left, slab_block;
    bool lock;        /* bytes are kept in memory */
    bool lock_failed; /* the last failure was not one of memory, but this: */
    ds_os_reason reason;
} ds_holder;

void ds_holder_init(ds_holder *holder, const dsv2_allocator *allocator, size_t slab_bytes);

/* An array of zeros; NULL without memory. */
void *ds_holder_array(ds_holder *holder, size_t count, size_t size);

/* Bytes of any content, aligned to 64; NULL without memory, or if bytes cannot be locked. */
void *ds_holder_bytes(ds_holder *holder, size_t bytes);

/* Locks what is used of the newest slab: slabs are locked when the next is begun. False if it cannot be locked. */
bool ds_holder_lock_rest(ds_holder *holder);

void ds_holder_free(ds_holder *holder);

#endif

/* The working memory of a pass: one allocation, laid out twice. The first time nothing is allocated yet, and sizes are
 * only added up. The second time the same calls return pointers. So sizes and pointers cannot disagree. */
#ifndef DS_LIB_FORWARD_LAYOUT_H
#define DS_LIB_FORWARD_LAYOUT_H

#include "config/config.h"

typedef struct ds_layout {
    /* What the parts are sized by. */
    const ds_config *config;
    uint32_t max_rows;     /* rows of a pass */
    size_t max_position;   /* tokens of context */
    unsigned n_threads;
    bool rounds;           /* some weight is of an interleaved type: rows are rounded to 8 bits for it */
    size_t matmul_scratch; /* floats that ds_matmul asks for with any of the weights */

    uint8_t *memory; /* NULL: sizes are added up */
    uint64_t used;
    bool fits;       /* no sum has wrapped */
} ds_layout;

/* The next `count` elements of `size` bytes, on whole cache lines; NULL while sizes are added up. */
void *ds_lay_out(ds_layout *layout, uint64_t count, uint64_t size);

/* The same within a thread's scratch: the next `bytes`, on whole cache lines. *used counts floats; with memory NULL
 * nothing else happens. */
float *ds_take(float *memory, size_t *used, size_t bytes);

/* Parts of the working memory that are never in use at the same time: all begin at the same byte. */
typedef void (*ds_lay_out_fn)(void *memory, ds_layout *layout);
typedef struct ds_overlapping {
    ds_lay_out_fn lay_out;
    void *memory; /* the struct that gets the part's pointers */
} ds_overlapping;
void ds_lay_out_overlapping(ds_layout *layout, const ds_overlapping *parts, size_t n);

#endif

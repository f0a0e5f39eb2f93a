/* The source of experts that are interleaved when a pass first chooses them: a GGUF opens without the time that
 * interleaving takes for all of them, and experts that no pass ever chooses take no memory. */
#ifndef DS_LIB_WEIGHTS_DEFERRED_H
#define DS_LIB_WEIGHTS_DEFERRED_H

#include "weights/queue.h"
#include "weights/weights.h"

#include <stdatomic.h>

typedef struct ds_deferred_expert {
    _Atomic bool waiting; /* cleared under the source's lock; who sees it cleared may read the expert's matrices */
    uint32_t n;           /* conversions: fewer than all if some matrix had to be rounded on opening */
    ds_conversion conversions[DS_FFN_MATRICES];
} ds_deferred_expert;

typedef struct ds_deferred_source {
    ds_expert_source base;
    const ds_layer *layers;
    uint32_t n_layers, n_experts;
    ds_deferred_expert **deferred; /* [n_layers], each NULL or [n_experts] */
    ds_mutex lock;
    ds_queue queue; /* under the lock */
} ds_deferred_source;

dsv2_status ds_deferred_source_new(const ds_weights_opening *opening, ds_deferred_source **source);

/* Leaves a routed expert's matrix to the pass that first chooses the expert; that pass then needs no memory for it. */
dsv2_status ds_deferred_source_defer(ds_deferred_source *source, uint32_t layer, uint32_t expert,
                                     const ds_conversion *conversion);

/* The source, once all that waits was deferred. layers: outlive the source. */
ds_expert_source *ds_deferred_source_finish(ds_deferred_source *source, const ds_layer *layers);

/* NULL is allowed. */
void ds_deferred_source_free(ds_deferred_source *source);

#endif

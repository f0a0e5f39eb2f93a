/* Numbers that went wrong: what a pass finds in a row that the row's session must not keep. A fault is of one row. It
 * ends the row's sequence and no other. */
#ifndef DS_LIB_FORWARD_FAULT_H
#define DS_LIB_FORWARD_FAULT_H

#include "cache/cache.h"

typedef enum ds_fault_kind {
    DS_FAULT_NONE,
    DS_FAULT_CACHE,  /* the row's part number `part` is not finite, or too large for the cache's type */
    DS_FAULT_ROUTER, /* an affinity of an expert is not finite */
    DS_FAULT_LOGITS  /* a logit is not finite */
} ds_fault_kind;

typedef struct ds_fault {
    ds_fault_kind kind;
    uint32_t part;
    float largest; /* magnitude */
    uint32_t layer;
    size_t position; /* of the row in its session */
} ds_fault;

/* Sets the message and returns the status: DSV2_ERROR_UNSUPPORTED for a finite row that another cache type would hold,
 * else DSV2_ERROR_FORMAT. */
dsv2_status ds_fault_fail(const ds_fault *fault, const ds_cache_shape *shape);

#endif

#include "forward/fault.h"

#include <math.h>
#include <stdio.h>

static dsv2_status fail_not_finite(const ds_fault *fault, const char *what)
{
    return ds_fail(DSV2_ERROR_FORMAT,
                   "%s of token %zu in layer %u: not finite; a weight is damaged or too large, or the session was "
                   "restored from a damaged snapshot",
                   what, fault->position, fault->layer);
}

static dsv2_status fail_cache(const ds_fault *fault, const ds_cache_shape *shape)
{
    const ds_cache_part *part = &shape->parts[fault->part];
    char what[64];
    snprintf(what, sizeof what, "the cached %s", part->name);
    if (!isfinite(fault->largest))
        return fail_not_finite(fault, what);
    bool is_half = part->limit == DS_F16_INFINITE;
    return ds_fail(DSV2_ERROR_UNSUPPORTED,
                   "%s of token %zu in layer %u: reaches %g, cache type %s holds up to %g; %s", what,
                   fault->position, fault->layer, (double)fault->largest, ds_cache_type_name(shape->type),
                   (double)(is_half ? DS_F16_LARGEST : part->limit),
                   is_half ? "cache types f32 and q6 hold more" : "cache type f32 holds more");
}

dsv2_status ds_fault_fail(const ds_fault *fault, const ds_cache_shape *shape)
{
    switch (fault->kind) {
    case DS_FAULT_NONE: break;
    case DS_FAULT_CACHE: return fail_cache(fault, shape);
    case DS_FAULT_ROUTER: return fail_not_finite(fault, "an expert's affinity");
    case DS_FAULT_LOGITS:
        return ds_fail(DSV2_ERROR_FORMAT,
                       "the logits of token %zu: not finite; a weight is damaged or too large, or the session was "
                       "restored from a damaged snapshot",
                       fault->position);
    }
    return DSV2_OK;
}

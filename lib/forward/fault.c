#include "forward/fault.h"

#include <math.h>
#include <stdio.h>

static dsv2_status fail_not_finite(const ds_fault *fault, const char *what, const char *prefix)
{
    return ds_fail(DSV2_ERROR_FORMAT,
                   "%s%s of token %zu in layer %u: not finite; a weight is damaged or too large, or the session was "
                   "restored from a damaged snapshot",
                   prefix, what, fault->position, fault->layer);
}

static dsv2_status fail_cache(const ds_fault *fault, const ds_cache_shape *shape, const char *prefix)
{
    const ds_cache_part *part = &shape->parts[fault->part];
    char what[64];
    snprintf(what, sizeof what, "the cached %s", part->name);
    if (!isfinite(fault->largest))
        return fail_not_finite(fault, what, prefix);
    bool is_half = part->limit == DS_F16_INFINITE;
    return ds_fail(DSV2_ERROR_UNSUPPORTED,
                   "%s%s of token %zu in layer %u: reaches %g, cache type %s holds up to %g; %s", prefix, what,
                   fault->position, fault->layer, (double)fault->largest, ds_cache_type_name(shape->type),
                   (double)(is_half ? DS_F16_LARGEST : part->limit),
                   is_half ? "cache types f32 and q6 hold more" : "cache type f32 holds more");
}

dsv2_status ds_fault_fail(const ds_fault *fault, const ds_cache_shape *shape, const char *prefix)
{
    switch (fault->kind) {
    case DS_FAULT_NONE: break;
    case DS_FAULT_CACHE: return fail_cache(fault, shape, prefix);
    case DS_FAULT_ROUTER: return fail_not_finite(fault, "an expert's affinity", prefix);
    case DS_FAULT_LOGITS:
        return ds_fail(DSV2_ERROR_FORMAT,
                       "%sthe logits of token %zu: not finite; a weight is damaged or too large, or the session was "
                       "restored from a damaged snapshot",
                       prefix, fault->position);
    }
    return DSV2_OK;
}

#include "weights/resident.h"

typedef struct resident_source {
    ds_expert_source base;
    const ds_layer *layers;
} resident_source;

static dsv2_status acquire(ds_expert_source *base, uint32_t layer, const uint32_t *experts, size_t n,
                           const ds_ffn_weights **weights)
{
    const resident_source *source = (const resident_source *)base;
    for (size_t i = 0; i < n; i++)
        weights[i] = &source->layers[layer].moe.experts[experts[i]];
    return DSV2_OK;
}

static bool try_acquire(ds_expert_source *base, uint32_t layer, const uint32_t *experts, size_t n,
                        const ds_ffn_weights **weights)
{
    return acquire(base, layer, experts, n, weights) == DSV2_OK;
}

static void release(ds_expert_source *base, uint32_t layer, const uint32_t *experts, size_t n)
{
    (void)base, (void)layer, (void)experts, (void)n;
}

static void destroy(ds_expert_source *base) { ds_free(base); }

dsv2_status ds_resident_source_new(const ds_layer *layers, ds_expert_source **out)
{
    resident_source *source = ds_new(1, sizeof *source);
    if (source == NULL)
        return ds_fail_memory("a source of experts", sizeof *source);
    *source = (resident_source){
        .base = {.name = "resident", .acquire = acquire, .try_acquire = try_acquire, .release = release,
                 .destroy = destroy},
        .layers = layers,
    };
    *out = &source->base;
    return DSV2_OK;
}

#include "weights/deferred.h"

#include <assert.h>

static bool waits(const ds_deferred_expert *expert)
{
    return atomic_load_explicit(&expert->waiting, memory_order_acquire);
}

/* Interleaves those of a layer's experts that still wait, together, over all threads. If one of them has a number that
 * is not finite all of them go on waiting. */
static dsv2_status interleave(ds_deferred_source *source, ds_deferred_expert *deferred, const uint32_t *experts,
                              size_t n)
{
    dsv2_status status = DSV2_OK;
    ds_mutex_lock(&source->lock);
    for (size_t i = 0; i < n; i++) {
        const ds_deferred_expert *expert = &deferred[experts[i]];
        /* unless another pass was faster */
        for (uint32_t c = 0; waits(expert) && c < expert->n && status == DSV2_OK; c++)
            status = ds_queue_add(&source->queue, &expert->conversions[c]);
    }
    if (status == DSV2_OK)
        status = ds_queue_run(&source->queue);
    for (size_t i = 0; i < n && status == DSV2_OK; i++)
        if (waits(&deferred[experts[i]]))
            atomic_store_explicit(&deferred[experts[i]].waiting, false, memory_order_release);
    ds_mutex_unlock(&source->lock);
    return status;
}

static bool try_acquire(ds_expert_source *base, uint32_t layer, const uint32_t *experts, size_t n,
                        const ds_ffn_weights **weights)
{
    const ds_deferred_source *source = (ds_deferred_source *)base;
    const ds_deferred_expert *deferred = source->deferred[layer];
    bool ready = true;
    for (size_t i = 0; i < n; i++) {
        weights[i] = &source->layers[layer].moe.experts[experts[i]];
        ready = ready && (deferred == NULL || !waits(&deferred[experts[i]]));
    }
    return ready;
}

static dsv2_status acquire(ds_expert_source *base, uint32_t layer, const uint32_t *experts, size_t n,
                           const ds_ffn_weights **weights)
{
    ds_deferred_source *source = (ds_deferred_source *)base;
    if (try_acquire(base, layer, experts, n, weights))
        return DSV2_OK;
    return interleave(source, source->deferred[layer], experts, n);
}

static void release(ds_expert_source *base, uint32_t layer, const uint32_t *experts, size_t n)
{
    (void)base, (void)layer, (void)experts, (void)n;
}

static void destroy(ds_expert_source *base) { ds_deferred_source_free((ds_deferred_source *)base); }

dsv2_status ds_deferred_source_new(const ds_weights_opening *opening, ds_deferred_source **out)
{
    uint32_t n_layers = opening->config->num_hidden_layers;
    ds_deferred_source *source = ds_new(1, sizeof *source);
    ds_deferred_expert **deferred = ds_new(n_layers, sizeof *deferred);
    if (source == NULL || deferred == NULL) {
        ds_free(deferred);
        ds_free(source);
        return ds_fail_memory("a source of experts", sizeof *source + n_layers * sizeof *deferred);
    }
    *source = (ds_deferred_source){
        .base = {.name = "deferred", .acquire = acquire, .try_acquire = try_acquire, .release = release,
                 .destroy = destroy},
        .n_layers = n_layers,
        .n_experts = opening->config->n_routed_experts,
        .deferred = deferred,
    };
    ds_queue_init(&source->queue, opening->kernels, opening->pool, opening->allocator, opening->container,
                  opening->queue_limits);
    ds_mutex_init(&source->lock);
    *out = source;
    return DSV2_OK;
}

dsv2_status ds_deferred_source_defer(ds_deferred_source *source, uint32_t layer, uint32_t expert,
                                     const ds_conversion *conversion)
{
    ds_deferred_expert **deferred = &source->deferred[layer];
    if (*deferred == NULL)
        *deferred = ds_new(source->n_experts, sizeof **deferred);
    if (*deferred == NULL)
        return ds_fail_memory("experts to interleave", source->n_experts * sizeof **deferred);
    dsv2_status status = ds_queue_reserve(&source->queue, conversion);
    if (status != DSV2_OK)
        return status;
    ds_deferred_expert *waiting = &(*deferred)[expert];
    assert(waiting->n < DS_FFN_MATRICES);
    waiting->conversions[waiting->n++] = *conversion;
    atomic_store_explicit(&waiting->waiting, true, memory_order_relaxed);
    return DSV2_OK;
}

ds_expert_source *ds_deferred_source_finish(ds_deferred_source *source, const ds_layer *layers)
{
    source->layers = layers;
    return &source->base;
}

void ds_deferred_source_free(ds_deferred_source *source)
{
    if (source == NULL)
        return;
    for (uint32_t l = 0; l < source->n_layers; l++)
        ds_free(source->deferred[l]);
    ds_free(source->deferred);
    ds_queue_free(&source->queue);
    ds_mutex_destroy(&source->lock);
    ds_free(source);
}

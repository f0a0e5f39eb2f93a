#include "forward/forward.h"
#include "forward/mla.h"

#include <assert.h>

/* A line for each kind: how to tell its models, and its functions. */
static bool has_latents(const ds_config *config) { return config->kv_lora_rank > 0; }

static const struct {
    bool (*is_kind)(const ds_config *config);
    const ds_attention_kind *kind;
} kinds[] = {
    {has_latents, &ds_mla_kind},
};

const ds_attention_kind *ds_attention_kind_of(const ds_config *config)
{
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (kinds[i].is_kind(config))
            return kinds[i].kind;
    assert(false); /* a configuration of no kind is refused when it is read */
    return &ds_mla_kind;
}

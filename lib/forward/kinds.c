#include "forward/kinds.h"

#include "forward/mla.h"

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
    size_t i = 0;
    while (i + 1 < sizeof kinds / sizeof *kinds && !kinds[i].is_kind(config))
        i++;
    return kinds[i].kind;
}

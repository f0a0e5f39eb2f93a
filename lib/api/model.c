#include "api/call.h"
#include "formats/pack.h"

#include <string.h>

/* The most threads that an option may ask for: above any machine, below what an uninitialised field holds. */
enum { MAX_THREADS = 1024 };

static dsv2_status check_type_and_threads(dsv2_weight_type weight_type, uint32_t n_threads)
{
    if (n_threads > MAX_THREADS)
        return ds_fail(DSV2_ERROR_ARGUMENT, "n_threads is %u, expected at most %d", n_threads, MAX_THREADS);
    if (weight_type == DSV2_WEIGHTS_AS_STORED || ds_type_asked(weight_type) != DS_TYPE_COUNT)
        return DSV2_OK;
    ds_type type = ds_type_named(weight_type);
    if (type != DS_TYPE_COUNT)
        return ds_fail(DSV2_ERROR_UNSUPPORTED, "weight_type %s is read from files, not made", ds_type_name(type));
    return ds_fail(DSV2_ERROR_ARGUMENT, "weight_type is %d, expected a type to convert to", (int)weight_type);
}

/* Copies options over `known`, and checks what can be checked before the model is seen. */
static dsv2_status read_model_options(const dsv2_model_options *options, dsv2_model_options *known)
{
    *known = (dsv2_model_options){.struct_size = sizeof *known};
    dsv2_status status = ds_read_options(DS_SIZED(dsv2_model_options, log_user), options, known);
    if (status == DSV2_OK)
        status = check_type_and_threads(known->weight_type, known->n_threads);
    if (status == DSV2_OK && known->loading != DSV2_LOADING_MAP && known->loading != DSV2_LOADING_READ)
        status = ds_fail(DSV2_ERROR_ARGUMENT, "loading is %d, expected %d (map) or %d (read)", (int)known->loading,
                         DSV2_LOADING_MAP, DSV2_LOADING_READ);
    if (status == DSV2_OK && (known->allocator.allocate == NULL) != (known->allocator.release == NULL))
        status = ds_fail(DSV2_ERROR_ARGUMENT, "allocator has no %s, expected both functions or neither",
                         known->allocator.allocate == NULL ? "allocate" : "release");
    return status;
}

dsv2_status dsv2_model_open(const char *path, const dsv2_model_options *options, dsv2_model **model)
{
    if (path == NULL || model == NULL)
        return ds_null_argument(path == NULL ? "path" : "model");
    dsv2_model_options known;
    dsv2_status status = read_model_options(options, &known);
    if (status != DSV2_OK)
        return status;
    ds_modes modes;
    ds_modes_begin(&modes);
    status = ds_model_open(path, &known, model);
    ds_modes_end(&modes);
    return status;
}

dsv2_status dsv2_model_bytes_needed(const char *path, const dsv2_model_options *options, dsv2_bytes_needed_info *info)
{
    if (path == NULL || info == NULL)
        return ds_null_argument(path == NULL ? "path" : "info");
    dsv2_model_options known;
    dsv2_bytes_needed_info needed = {0};
    dsv2_status status = read_model_options(options, &known);
    if (status != DSV2_OK)
        return status;
    ds_modes modes;
    ds_modes_begin(&modes);
    status = ds_model_bytes_needed(path, &known, &needed);
    ds_modes_end(&modes);
    return status == DSV2_OK ? ds_write_info(DS_SIZED(dsv2_bytes_needed_info, memory_left), info, &needed) : status;
}

void dsv2_model_close(dsv2_model *model)
{
    if (model == NULL || ds_calls_check(&model->calls) != DSV2_OK)
        return; /* lost to this child of the host: everything stays as it is */
    ds_modes modes;
    ds_modes_begin(&modes);
    ds_model_release(model);
    ds_modes_end(&modes);
}

const dsv2_tokenizer *dsv2_model_tokenizer(const dsv2_model *model)
{
    if (model != NULL && model->fixed.tokenizer == NULL) {
        const char *refusal = model->fixed.tokenizer_refusal;
        (void)ds_fail(DSV2_ERROR_UNSUPPORTED, "%s", refusal != NULL ? refusal : "the checkpoint has no tokenizer");
    }
    return model == NULL ? NULL : model->fixed.tokenizer;
}

static dsv2_weight_type weight_type(const dsv2_model *model)
{
    dsv2_weight_type found = DSV2_WEIGHTS_AS_STORED;
    for (ds_type type = 0; type < DS_TYPE_COUNT; type++) {
        dsv2_weight_type name = ds_type_public(type);
        if (model->fixed.weights.types_seen[type])
            found = found == DSV2_WEIGHTS_AS_STORED && name != DSV2_WEIGHTS_AS_STORED ? name : DSV2_WEIGHTS_MIXED;
    }
    return found;
}

static const char *topk_method_name(const ds_config *config)
{
    static const char *const names[] = {"greedy", "group_limited_greedy", "noaux_tc"};
    return config->n_routed_experts == 0 ? "" : names[config->topk_method];
}

/* Copies a name to a field of `size` bytes; a longer name is cut. */
static void set_name(char *field, size_t size, const char *name)
{
    size_t length = strlen(name) < size ? strlen(name) : size - 1;
    memcpy(field, name, length);
    field[length] = '\0';
}

dsv2_status dsv2_model_get_info(const dsv2_model *model, dsv2_model_info *info)
{
    if (model == NULL)
        return ds_null_argument("model");
    const ds_config *config = &model->fixed.config;
    dsv2_model_info known = {
        .parameters = model->fixed.weights.parameters,
        .parameters_activated = ds_weights_activated(&model->fixed.weights, &model->fixed.config),
        .weight_bytes = model->fixed.weights.bytes,
        .bytes_copied = model->fixed.weights.bytes_copied,
        .weight_type = weight_type(model),
        .vocab_size = config->vocab_size,
        .hidden_size = config->hidden_size,
        .intermediate_size = config->intermediate_size,
        .moe_intermediate_size = config->moe_intermediate_size,
        .num_hidden_layers = config->num_hidden_layers,
        .num_attention_heads = config->num_attention_heads,
        .n_shared_experts = config->n_shared_experts,
        .n_routed_experts = config->n_routed_experts,
        .num_experts_per_tok = config->num_experts_per_tok,
        .n_group = config->n_group,
        .topk_group = config->topk_group,
        .first_k_dense_replace = config->first_k_dense_replace,
        .moe_layer_freq = config->moe_layer_freq,
        .q_lora_rank = config->q_lora_rank,
        .kv_lora_rank = config->kv_lora_rank,
        .qk_nope_head_dim = config->qk_nope_head_dim,
        .qk_rope_head_dim = config->qk_rope_head_dim,
        .v_head_dim = config->v_head_dim,
        .max_position_embeddings = config->max_position_embeddings,
        .n_threads = ds_pool_threads(model->pool),
        .bos_token_id = model->fixed.bos_token_id,
        .eos_token_id = model->fixed.ends.n > 0 ? model->fixed.ends.ids[0] : -1,
        .fingerprint = ds_fingerprint_digest(&model->fixed.fingerprint),
    };
    set_name(known.architecture, sizeof known.architecture, config->is_v3 ? "deepseek_v3" : "deepseek_v2");
    set_name(known.topk_method, sizeof known.topk_method, topk_method_name(config));
    const char *scoring_func = config->scoring_func == DS_SCORING_SIGMOID ? "sigmoid" : "softmax";
    set_name(known.scoring_func, sizeof known.scoring_func, scoring_func);
    set_name(known.container, sizeof known.container, ds_format_name(ds_container_format(model->fixed.container)));
    set_name(known.kernels, sizeof known.kernels, model->fixed.kernels->name);
    return ds_write_info(DS_SIZED(dsv2_model_info, fingerprint), info, &known);
}

dsv2_status dsv2_model_end_tokens(const dsv2_model *model, const int32_t **tokens, size_t *n)
{
    if (model == NULL || tokens == NULL || n == NULL)
        return ds_null_argument(model == NULL ? "model" : tokens == NULL ? "tokens" : "n");
    *tokens = model->fixed.ends.ids;
    *n = model->fixed.ends.n;
    return DSV2_OK;
}

int dsv2_model_is_end(const dsv2_model *model, int32_t token)
{
    for (uint32_t i = 0; model != NULL && i < model->fixed.ends.n; i++)
        if (model->fixed.ends.ids[i] == token)
            return 1;
    return 0;
}

dsv2_status dsv2_model_get_memory(const dsv2_model *model, dsv2_memory_info *info)
{
    if (model == NULL)
        return ds_null_argument("model");
    ds_page_pool *pages = &((dsv2_model *)(uintptr_t)model)->pages; /* not const: its lock is taken */
    dsv2_memory_info known = {
        .page_bytes_limit = pages->bytes_limit,
        .scratch_bytes = atomic_load(&model->passes.bytes),
    };
    ds_calls *calls = &((dsv2_model *)(uintptr_t)model)->calls;
    dsv2_status status = ds_calls_begin(calls);
    if (status != DSV2_OK)
        return status;
    ds_mutex_lock(&pages->lock);
    known.pages_in_use = pages->pages_in_use;
    known.page_bytes_in_use = pages->bytes_in_use;
    ds_mutex_unlock(&pages->lock);
    ds_calls_end(calls);
    return ds_write_info(DS_SIZED(dsv2_memory_info, scratch_bytes), info, &known);
}

dsv2_status dsv2_model_pack(const char *path, const char *output_path, const dsv2_pack_options *options)
{
    if (path == NULL || output_path == NULL)
        return ds_null_argument(path == NULL ? "path" : "output_path");
    dsv2_pack_options known = {.struct_size = sizeof known};
    dsv2_status status = ds_read_options(DS_SIZED(dsv2_pack_options, progress_user), options, &known);
    if (status == DSV2_OK)
        status = check_type_and_threads(known.weight_type, known.n_threads);
    if (status != DSV2_OK)
        return status;
    ds_modes modes;
    ds_modes_begin(&modes);
    status = ds_model_export(path, output_path, &known);
    ds_modes_end(&modes);
    return status;
}

dsv2_status dsv2_model_verify(const char *path, dsv2_progress_fn progress, void *progress_user)
{
    if (path == NULL)
        return ds_null_argument("path");
    if (!ds_is_pack(path)) {
        if (!ds_is_file(path) && !ds_is_folder(path))
            return ds_fail(DSV2_ERROR_IO, "%s: no such file", path);
        return ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: not a .dsv2 pack; other formats have no checksums", path);
    }
    ds_container *container;
    dsv2_status status = ds_pack_open(path, &container);
    if (status != DSV2_OK)
        return status;
    ds_modes modes; /* which the callback is lent */
    ds_modes_begin(&modes);
    status = ds_pack_verify(container, progress, progress_user);
    ds_modes_end(&modes);
    ds_container_close(container);
    return status;
}

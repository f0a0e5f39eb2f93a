#include "model/model.h"

#include "formats/pack.h"

#include <stdio.h>
#include <string.h>
#include <xxhash.h>

/* A configuration is a page of text. A far larger file is something else. */
enum { CONFIG_MAX_BYTES = 16 << 20 };

static dsv2_status cache_shape(const ds_attention_kind *kind, const ds_config *config, dsv2_cache_type type,
                               ds_cache_shape *shape)
{
    uint32_t widths[DS_MAX_PARTS];
    kind->row_widths(config, widths);
    return ds_cache_shape_init(shape, kind->row, widths, type, config->num_hidden_layers);
}

dsv2_status ds_model_cache_shape(const dsv2_model *model, dsv2_cache_type type, ds_cache_shape *shape)
{
    return cache_shape(model->fixed.decoder.attention, &model->fixed.config, type, shape);
}

void ds_model_retain(dsv2_model *model) { atomic_fetch_add_explicit(&model->references, 1, memory_order_relaxed); }

void ds_model_release(dsv2_model *model)
{
    if (model == NULL || atomic_fetch_sub_explicit(&model->references, 1, memory_order_acq_rel) != 1)
        return;
    ds_pass_store_free(&model->passes);
    ds_decoder_free(&model->fixed.decoder);
    ds_weights_close(&model->fixed.weights);
    ds_pool_destroy(model->pool);
    ds_tokenizer_destroy(model->fixed.tokenizer);
    ds_free(model->fixed.tokenizer_refusal);
    ds_container_close(model->fixed.container);
    ds_page_pool_destroy(&model->pages);
    for (int kind = 0; kind < DS_USAGE_KINDS; kind++)
        ds_usage_free(&model->usage[kind]);
    ds_mutex_destroy(&model->usage_lock);
    ds_calls_free(&model->calls);
    ds_free(model);
}

/* What opening a tokenizer came to. A tokenizer that cannot be used does not keep the weights from being used. */
static dsv2_status settle_tokenizer(ds_model_fixed *fixed, dsv2_status status)
{
    if (status != DSV2_ERROR_FORMAT && status != DSV2_ERROR_UNSUPPORTED)
        return status;
    /* The host's callback may call the library, which then has another last message. */
    fixed->tokenizer_refusal = ds_copy_string(dsv2_last_error());
    if (fixed->tokenizer_refusal == NULL)
        return ds_fail_memory("a message", strlen(dsv2_last_error()));
    ds_log(&fixed->logger, DSV2_LOG_WARNING, "the model runs on token ids only: %s", fixed->tokenizer_refusal);
    return DSV2_OK;
}

static dsv2_status read_generation_config(ds_model_fixed *fixed, const char *folder)
{
    char *json = NULL, *path = ds_path_join(folder, "generation_config.json");
    size_t size;
    dsv2_status status = DSV2_OK;
    if (path == NULL)
        return ds_fail_memory("a path", strlen(folder));
    if (ds_exists(path) && (status = ds_file_read(path, CONFIG_MAX_BYTES, &json, &size)) == DSV2_OK)
        status = ds_config_add_generation(path, json, size, &fixed->logger, &fixed->config);
    ds_free(json);
    ds_free(path);
    return status;
}

/* Opens a folder as Hugging Face publishes it. */
static dsv2_status open_folder(ds_model_fixed *fixed, const char *path, bool with_tokenizer)
{
    char *json = NULL, *tokenizer_path = NULL, *config_path = ds_path_join(path, "config.json");
    size_t size;
    dsv2_status status;
    if (config_path == NULL)
        return ds_fail_memory("a path", strlen(path));
    status = ds_file_read(config_path, CONFIG_MAX_BYTES, &json, &size);
    if (status == DSV2_OK)
        status = ds_config_from_json(config_path, json, size, &fixed->logger, &fixed->config);
    if (status == DSV2_OK)
        status = read_generation_config(fixed, path);
    if (status == DSV2_OK)
        status = ds_safetensors_open(path, &fixed->logger, &fixed->container);
    if (status != DSV2_OK || !with_tokenizer)
        goto done;
    tokenizer_path = ds_path_join(path, "tokenizer.json");
    if (tokenizer_path == NULL)
        status = ds_fail_memory("a path", strlen(path));
    else if (ds_exists(tokenizer_path))
        status = settle_tokenizer(fixed, ds_tokenizer_open(path, &fixed->tokenizer));
    else
        ds_log(&fixed->logger, DSV2_LOG_INFO, "%s: no tokenizer.json: the model runs on token ids only", path);
done:
    ds_free(tokenizer_path);
    ds_free(json);
    ds_free(config_path);
    return status;
}

static dsv2_status open_gguf(ds_model_fixed *fixed, const char *path, bool with_tokenizer)
{
    dsv2_status status = ds_gguf_open(path, &fixed->logger, &fixed->container);
    if (status == DSV2_OK)
        status = ds_config_from_gguf(fixed->container, &fixed->logger, &fixed->config);
    if (status != DSV2_OK || !with_tokenizer)
        return status;
    status = settle_tokenizer(fixed, ds_gguf_tokenizer(fixed->container, &fixed->tokenizer));
    if (status == DSV2_OK && fixed->tokenizer == NULL && fixed->tokenizer_refusal == NULL)
        ds_log(&fixed->logger, DSV2_LOG_INFO, "%s: has no tokenizer: the model runs on token ids only", path);
    return status;
}

static dsv2_status open_pack(ds_model_fixed *fixed, const char *path, bool with_tokenizer)
{
    const char *text;
    size_t size;
    dsv2_status status = ds_pack_open(path, &fixed->container);
    if (status != DSV2_OK)
        return status;
    ds_pack_text(fixed->container, "config.json", &text, &size);
    if (text == NULL)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: the pack has no config.json", path);
    status = ds_config_from_json(path, text, size, &fixed->logger, &fixed->config);
    if (status != DSV2_OK || !with_tokenizer)
        return status;
    return settle_tokenizer(fixed, ds_pack_tokenizer(fixed->container, &fixed->tokenizer));
}

/* Reads headers, the configuration and, if wanted, the tokenizer. */
static dsv2_status open_container(ds_model_fixed *fixed, const char *path, bool with_tokenizer)
{
    if (ds_is_folder(path))
        return open_folder(fixed, path, with_tokenizer);
    if (ds_is_gguf(path))
        return open_gguf(fixed, path, with_tokenizer);
    if (ds_is_pack(path))
        return open_pack(fixed, path, with_tokenizer);
    ds_file file;
    dsv2_status status = ds_file_open(path, &file); /* says why the path cannot be read */
    if (status != DSV2_OK)
        return status;
    ds_file_close(&file);
    return ds_fail(DSV2_ERROR_UNSUPPORTED,
                   "%s: neither a folder with config.json and safetensors files, nor a GGUF file, nor a .dsv2 pack",
                   path);
}

/* Digest of all fields of the configuration that change a logit. Field by field, since padding holds anything. */
static uint64_t config_fingerprint(const ds_config *c)
{
    const uint32_t integers[] = {
        c->is_v3, c->vocab_size, c->hidden_size, c->intermediate_size, c->moe_intermediate_size, c->num_hidden_layers,
        c->num_attention_heads, c->n_shared_experts, c->n_routed_experts, c->num_experts_per_tok, c->n_group,
        c->topk_group, c->first_k_dense_replace, c->moe_layer_freq, c->norm_topk_prob, c->topk_method, c->scoring_func,
        c->q_lora_rank, c->kv_lora_rank, c->qk_nope_head_dim, c->qk_rope_head_dim, c->v_head_dim, c->yarn.enabled,
        c->yarn.original_max_position_embeddings, c->attention_bias, c->tie_word_embeddings, c->rope_pairs_split,
    };
    const float reals[] = {c->routed_scaling_factor, c->rms_norm_eps, c->rope_theta, c->yarn.factor, c->yarn.beta_fast,
                           c->yarn.beta_slow, c->yarn.mscale, c->yarn.mscale_all_dim};
    return XXH3_64bits_withSeed(reals, sizeof reals, XXH3_64bits(integers, sizeof integers));
}

uint64_t ds_fingerprint_digest(const ds_fingerprint *fingerprint)
{
    const uint64_t parts[] = {fingerprint->config, fingerprint->tokenizer, fingerprint->weights};
    return XXH3_64bits(parts, sizeof parts);
}

static dsv2_status start_threads(dsv2_model *model, uint32_t n_threads)
{
    return ds_pool_create(n_threads > 0 ? n_threads : ds_default_threads(), &model->pool);
}

/* Where nothing can be mapped, weights are read. */
static dsv2_status map_files(ds_model_fixed *fixed)
{
    bool mapped;
    dsv2_status status = ds_container_map(fixed->container, &fixed->logger, &mapped);
    fixed->reads = !mapped;
    return status;
}

/* Opens everything but the weights, and what opening weights needs. The caller releases *out whatever is returned. */
static dsv2_status open_all_but_weights(const char *path, const dsv2_model_options *options, dsv2_model **out)
{
    dsv2_model *model = *out = ds_new(1, sizeof *model);
    if (model == NULL)
        return ds_fail_memory("a model", sizeof *model);
    atomic_init(&model->references, 1);
    ds_mutex_init(&model->usage_lock);
    model->fixed.allocator = options->allocator;
    ds_pass_store_init(&model->passes, &model->fixed.allocator);
    ds_page_pool_init(&model->pages, &model->fixed.allocator, options->cache_memory_limit);
    model->fixed.logger = (ds_logger){options->log, options->log_user};
    dsv2_status status = ds_calls_init(&model->calls);
    if (status == DSV2_OK)
        status = ds_kernels_select(options->kernels, &model->fixed.kernels);
    if (status == DSV2_OK)
        status = start_threads(model, options->n_threads); /* opening converts weights */
    if (status == DSV2_OK)
        status = open_container(&model->fixed, path, true);
    model->fixed.reads = options->loading == DSV2_LOADING_READ;
    if (status == DSV2_OK && !model->fixed.reads)
        status = map_files(&model->fixed);
    if (status != DSV2_OK)
        return status;
    ds_model_fixed *fixed = &model->fixed;
    fixed->fingerprint.config = config_fingerprint(&fixed->config);
    fixed->fingerprint.tokenizer = fixed->tokenizer == NULL ? 0 : ds_tokenizer_digest(fixed->tokenizer);
    return DSV2_OK;
}

static ds_weights_opening weights_opening(const dsv2_model *model)
{
    const ds_model_fixed *fixed = &model->fixed;
    return (ds_weights_opening){.config = &fixed->config, .container = fixed->container, .kernels = fixed->kernels,
                                .pool = model->pool, .allocator = &fixed->allocator, .reads = fixed->reads};
}

/* Bytes that opening takes. */
typedef struct needed {
    uint64_t copied, mapped; /* weights */
    uint64_t beside;         /* memory beside the copies */
    bool lock;               /* mapped weights take memory too, and nothing can push them out */
} needed;

/* Counts what opening will take, by the walk that opens. The counted weights are for the caller to close. */
static dsv2_status count_weights(ds_weights_opening opening, ds_weights *weights, needed *n)
{
    opening.only_count = true;
    opening.progress = NULL;
    dsv2_status status = ds_weights_open(weights, &opening);
    *n = (needed){.copied = weights->bytes_copied, .mapped = weights->bytes_mapped, .beside = weights->bytes_beside};
    return status;
}

static dsv2_status count_and_close(ds_weights_opening opening, needed *n)
{
    ds_weights weights;
    dsv2_status status = count_weights(opening, &weights, n);
    ds_weights_close(&weights);
    return status;
}

static dsv2_status fail_full(const char *path, const needed *n, const ds_memory_left *memory, const char *advice)
{
    char locked[96] = "";
    if (n->lock)
        snprintf(locked, sizeof locked, ", keeps %llu bytes of mapped ones in memory (lock)",
                 (unsigned long long)n->mapped);
    return ds_fail(DSV2_ERROR_MEMORY,
                   "%s: this takes %llu bytes of memory for weights%s and up to %llu beside them, and %s has %llu "
                   "left: %s", path, (unsigned long long)n->copied, locked, (unsigned long long)n->beside,
                   memory->whose, (unsigned long long)memory->bytes, advice);
}

/* Whether all parts together are at most `most`. */
static bool fits(const uint64_t *parts, size_t count, uint64_t most)
{
    for (size_t i = 0; i < count; most -= parts[i++])
        if (parts[i] > most)
            return false;
    return true;
}

/* Refuses what would exhaust the memory that is left: the system would end the process, now or in a later feed that
 * touches an expert's memory for the first time. insist: nothing is refused. */
static dsv2_status check_memory(const ds_model_fixed *fixed, const needed *n, bool insist, const char *advice)
{
    const char *path = ds_container_path(fixed->container);
    ds_memory_left memory;
    if (!ds_memory_left_in("", &memory))
        return DSV2_OK;
    const uint64_t parts[] = {n->copied, n->beside, n->mapped};
    if (!insist && !fits(parts, n->lock ? 3 : 2, memory.bytes))
        return fail_full(path, n, &memory, advice);
    if (!n->lock && n->mapped > 0 && !fits(parts, 3, memory.bytes))
        ds_log(&fixed->logger, DSV2_LOG_WARNING,
               "%s: %llu bytes of weights are copied and %llu mapped, and %s has %llu left: mapped weights are read "
               "from the disk again and again", path, (unsigned long long)n->copied, (unsigned long long)n->mapped,
               memory.whose, (unsigned long long)memory.bytes);
    return DSV2_OK;
}

/* Opens the weights, and makes what runs them. */
static dsv2_status open_weights(dsv2_model *model, const dsv2_model_options *options)
{
    ds_model_fixed *fixed = &model->fixed;
    ds_weights_opening opening = weights_opening(model);
    opening.weight_type = options->weight_type;
    opening.progress = options->progress;
    opening.progress_user = options->progress_user;
    needed n;
    dsv2_status status = count_and_close(opening, &n);
    n.lock = options->lock != 0;
    if (status == DSV2_OK)
        status = check_memory(fixed, &n, options->insist != 0,
                              "free some, choose a smaller weight_type, map a pack, or insist");
    if (status != DSV2_OK)
        return status;
    opening.copied = n.copied;
    opening.lock_bytes = n.lock ? n.copied + n.mapped : 0;
    status = ds_weights_open(&fixed->weights, &opening);
    if (status == DSV2_OK && fixed->reads)
        status = ds_container_check_same(fixed->container);
    if (status == DSV2_OK && fixed->reads)
        ds_container_close_files(fixed->container);
    fixed->fingerprint.weights = fixed->weights.digest;
    if (status == DSV2_OK)
        status = ds_decoder_init(&fixed->decoder, &fixed->config, &fixed->weights, fixed->kernels, model->pool);
    if (status == DSV2_OK)
        ds_usage_shape_init(&fixed->usage_shape, &fixed->config);
    for (int kind = 0; kind < DS_USAGE_KINDS && status == DSV2_OK; kind++)
        status = ds_usage_init(&model->usage[kind], &fixed->usage_shape);
    return status;
}

/* Which tokens begin and end a text. The tokenizer's own word for the beginning counts, as in transformers. */
static void settle_special(ds_model_fixed *fixed, const char *path)
{
    const ds_config *config = &fixed->config;
    fixed->bos_token_id = config->bos_token_id;
    fixed->ends = config->ends;
    if (fixed->tokenizer == NULL)
        return;
    dsv2_tokenizer_info info;
    ds_tokenizer_complete(fixed->tokenizer, config->bos_token_id, config->ends.n > 0 ? config->ends.ids[0] : -1);
    ds_describe_tokenizer(fixed->tokenizer, &info);
    if (info.bos_token_id >= 0 && info.bos_token_id != config->bos_token_id) {
        if (config->bos_token_id >= 0)
            ds_log(&fixed->logger, DSV2_LOG_WARNING,
                   "%s: bos_token_id is %d in the configuration and %d in the tokenizer, which counts", path,
                   (int)config->bos_token_id, (int)info.bos_token_id);
        fixed->bos_token_id = info.bos_token_id;
    }
    if (info.eos_token_id >= 0 && !ds_ends_add(&fixed->ends, info.eos_token_id))
        ds_log(&fixed->logger, DSV2_LOG_WARNING, "%s: the tokenizer's end of text, %d, is one more than %d", path,
               (int)info.eos_token_id, DS_MAX_ENDS);
}

dsv2_status ds_model_open(const char *path, const dsv2_model_options *options, dsv2_model **out)
{
    dsv2_model *model;
    dsv2_status status = open_all_but_weights(path, options, &model);
    if (status == DSV2_OK)
        status = open_weights(model, options);
    if (status != DSV2_OK) {
        ds_model_release(model);
        return status;
    }
    ds_model_fixed *fixed = &model->fixed;
    settle_special(fixed, path);
    ds_log(&fixed->logger, DSV2_LOG_INFO, "%s: %u layers, kernels %s, %u threads", path,
           fixed->config.num_hidden_layers, fixed->kernels->name, ds_pool_threads(model->pool));
    *out = model;
    return DSV2_OK;
}

dsv2_status ds_model_bytes_needed(const char *path, const dsv2_model_options *options, dsv2_bytes_needed_info *info)
{
    ds_model_fixed fixed = {.logger = {options->log, options->log_user},
                            .reads = options->loading == DSV2_LOADING_READ};
    ds_cache_shape shape;
    ds_memory_left memory;
    needed n = {0};
    dsv2_status status = ds_kernels_select(options->kernels, &fixed.kernels);
    if (status == DSV2_OK)
        status = open_container(&fixed, path, false);
    if (status == DSV2_OK && !fixed.reads) /* what cannot be mapped is copied */
        status = map_files(&fixed);
    if (status == DSV2_OK)
        status = count_and_close((ds_weights_opening){.config = &fixed.config, .container = fixed.container,
                                                      .kernels = fixed.kernels, .weight_type = options->weight_type,
                                                      .reads = fixed.reads}, &n);
    info->bytes_copied = n.copied;
    info->bytes_mapped = n.mapped;
    if (status == DSV2_OK)
        status = cache_shape(ds_attention_kind_of(&fixed.config), &fixed.config, DSV2_CACHE_DEFAULT, &shape);
    if (status == DSV2_OK) {
        info->cache_bytes_per_token = (uint64_t)shape.row_bytes * shape.n_layers;
        info->memory_left = ds_memory_left_in("", &memory) ? memory.bytes : 0;
    }
    ds_container_close(fixed.container);
    return status;
}

/* Packing takes what opening takes for weights as they are, and room to convert one of them. */
static dsv2_status check_export(const dsv2_model *model, ds_weights_opening opening, const dsv2_pack_options *options)
{
    ds_weights counted;
    needed n;
    dsv2_status status = count_weights(opening, &counted, &n);
    if (status == DSV2_OK)
        n.beside += ds_weights_export_bytes(&counted, &opening, options);
    ds_weights_close(&counted);
    n.mapped = 0; /* read once, one after another */
    return status == DSV2_OK ? check_memory(&model->fixed, &n, false, "free some") : status;
}

dsv2_status ds_model_export(const char *path, const char *output_path, const dsv2_pack_options *options)
{
    const dsv2_model_options open_options = {.struct_size = sizeof open_options, .n_threads = options->n_threads};
    dsv2_model *model;
    dsv2_status status = open_all_but_weights(path, &open_options, &model);
    if (status == DSV2_OK) {
        ds_weights_opening opening = weights_opening(model);
        opening.as_found = true;
        status = check_export(model, opening, options);
        if (status == DSV2_OK)
            status = ds_weights_open(&model->fixed.weights, &opening);
        if (status == DSV2_OK)
            status = ds_weights_export(&model->fixed.weights, &opening, output_path, options);
    }
    ds_model_release(model);
    return status;
}

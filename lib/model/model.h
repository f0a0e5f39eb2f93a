/* model: opening and owning. A model is what the host opened: configuration, weights, the decoder that runs them,
 * tokenizer, and the pools that all sessions share.
 * May include: base, kernels, cache, tokenizer, formats, config, weights, forward. */
#ifndef DS_LIB_MODEL_H
#define DS_LIB_MODEL_H

#include "forward/forward.h"
#include "tokenizer/tokenizer.h"

/* What tells one model from another: digests of all that decides its logits and the meaning of its token ids. */
typedef struct ds_fingerprint {
    uint64_t config;    /* hyper-parameters */
    uint64_t tokenizer; /* 0: there is none */
    uint64_t weights;   /* ds_weights.digest */
} ds_fingerprint;

/* One digest of all three: dsv2_model_info.fingerprint. */
uint64_t ds_fingerprint_digest(const ds_fingerprint *fingerprint);

/* What never changes once a model is open, but for experts that a source makes ready. */
typedef struct ds_model_fixed {
    ds_logger logger;
    dsv2_allocator allocator;
    const ds_kernels *kernels;
    ds_container *container;
    bool reads; /* its weights are read, not mapped; once the model is open its files are closed */
    dsv2_tokenizer *tokenizer; /* NULL: none */
    char *tokenizer_refusal;   /* why the checkpoint's tokenizer cannot be used; NULL: it has none, or it can be */
    ds_config config;
    int32_t bos_token_id; /* the tokenizer's, else the configuration's; -1: none */
    ds_ends ends;         /* the configuration's, and the tokenizer's */
    ds_weights weights;
    ds_decoder decoder;
    ds_fingerprint fingerprint;
    ds_usage_shape usage_shape;
} ds_model_fixed;

struct dsv2_model {
    ds_model_fixed fixed;

    /* Pools, and what is atomic or has a lock. */
    _Atomic uint32_t references; /* the host's handle and every session */
    ds_calls calls;              /* at work on the model or one of its sessions */
    ds_pool *pool;
    ds_pass_store passes;
    ds_page_pool pages;
    ds_mutex usage_lock;
    ds_usage usage[DS_USAGE_KINDS]; /* of all sessions, closed ones included */
};

/* Opens a model. Arguments are checked already; the contract is dsv2_model_open's. */
dsv2_status ds_model_open(const char *path, const dsv2_model_options *options, dsv2_model **model);

/* What opening would take. The contract is dsv2_model_bytes_needed's. */
dsv2_status ds_model_bytes_needed(const char *path, const dsv2_model_options *options, dsv2_bytes_needed_info *info);

/* Writes the model at `path` as a pack. The contract is dsv2_model_pack's. */
dsv2_status ds_model_export(const char *path, const char *output_path, const dsv2_pack_options *options);

/* What rows and pages of the model's sessions look like with a cache type. DSV2_ERROR_ARGUMENT for an unknown type. */
dsv2_status ds_model_cache_shape(const dsv2_model *model, dsv2_cache_type type, ds_cache_shape *shape);

void ds_model_retain(dsv2_model *model);
void ds_model_release(dsv2_model *model);

#endif

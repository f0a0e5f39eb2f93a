/* libdsv2: models.
 *
 * A model is opened once and shared: it never changes afterwards, and any number of threads and sessions may use it at
 * the same time. A model owns its threads and the memory pool from which its sessions take pages.
 *
 *     dsv2_model *model;
 *     if (dsv2_model_open("DeepSeek-V2-Lite-Chat", NULL, &model) != DSV2_OK)
 *         fprintf(stderr, "%s\n", dsv2_last_error());
 *     ...
 *     dsv2_model_close(model);
 *
 * After a fork of the host (fork, multiprocessing, a server that loads before it makes its workers) the parent notices
 * nothing. The rule for the child:
 *   - A model on which no call was at work at the fork, and its sessions, work as before and give the same bits. They
 *     have the calling threads alone, since threads are not forked: dsv2_model_info.n_threads is 1.
 *   - A model on which some thread's call was at work (on it or on any of its sessions) is lost to the child. Every
 *     call returns DSV2_ERROR_STATE but those that tell what never changes: dsv2_model_get_info, dsv2_model_end_tokens,
 *     dsv2_model_is_end, dsv2_model_tokenizer, dsv2_session_bytes_per_token. Closing returns at once and leaves the
 *     memory. The child opens the model again.
 *   - In the child of a callback that forks, the running call returns DSV2_ERROR_STATE, and its model is lost as above.
 *     No callback is called again there; dsv2_allocator's functions are. A file that the call was writing is the
 *     parent's alone. dsv2_model_open and dsv2_model_verify go on in both processes; the model that such an open gives
 *     the child has one thread.
 *   - A model that the child opens has all its threads.
 * No call hangs in the child, dsv2_model_close and dsv2_session_close included.
 */
#ifndef DSV2_MODEL_H
#define DSV2_MODEL_H

#include <dsv2/error.h>

DSV2_BEGIN_DECLS

typedef struct dsv2_model dsv2_model;

/* What a progress report is about. */
typedef enum dsv2_phase {
    DSV2_PHASE_OPEN = 1,   /* opening a model; done and total count tensors */
    DSV2_PHASE_PROMPT = 2, /* feeding tokens; done and total count token-layers: tokens times layers */
    DSV2_PHASE_PACK = 3,   /* writing a pack; done and total count bytes of weights */
    DSV2_PHASE_VERIFY = 4, /* checking checksums; done and total count bytes */
    DSV2_PHASE_SAVE = 5,   /* writing a snapshot; done and total count tokens */
    DSV2_PHASE_RESTORE = 6, /* reading a snapshot; done and total count tokens */
    DSV2_PHASE_ENCODE = 7   /* encoding a text; done and total count bytes */
} dsv2_phase;

/* A progress callback is called now and then, only from the thread that made the call, with done <= total, done never
 * falling, and done == total once at the end. A callback that returns non-zero cancels the call, which then returns
 * DSV2_ERROR_CANCELLED and has changed nothing. The callback must not call back into the same session and must not
 * throw or longjmp. */
typedef int (*dsv2_progress_fn)(void *user, dsv2_phase phase, uint64_t done, uint64_t total);

typedef enum dsv2_log_level { DSV2_LOG_WARNING = 1, DSV2_LOG_INFO = 2 } dsv2_log_level;

/* A log callback gets remarks that are no errors (a field of the configuration that is ignored, the kernels that were
 * chosen), from the thread that made the call. `message` has the form of dsv2_last_error's, and is valid during the
 * callback. */
typedef void (*dsv2_log_fn)(void *user, dsv2_log_level level, const char *message);

/* Element type of weights, as stored or as asked for. Values are part of the binary interface. (The list is written by
 * tests/house/weight_types.py.) */
typedef enum dsv2_weight_type {
    DSV2_WEIGHTS_AS_STORED = 0,
    DSV2_WEIGHTS_F32 = 1,
    DSV2_WEIGHTS_F16 = 2,
    DSV2_WEIGHTS_BF16 = 3,
    DSV2_WEIGHTS_F8_E4M3 = 4,
    DSV2_WEIGHTS_Q8_0 = 5,
    DSV2_WEIGHTS_Q6_K = 6,
    DSV2_WEIGHTS_Q5_K = 7,
    DSV2_WEIGHTS_Q4_K = 8,
    DSV2_WEIGHTS_Q4_0 = 9,
    DSV2_WEIGHTS_MIXED = 10 /* in dsv2_model_info only: tensors of several types */
} dsv2_weight_type;

/* How weights come into memory. */
typedef enum dsv2_loading {
    /* Files are mapped. Weights that the kernels take as they are stay in the files: opening is fast, processes share
     * them, and they may be larger than memory. Where a file system refuses a shared mapping, a private one is tried,
     * and then the files are read; both are remarked on. */
    DSV2_LOADING_MAP = 0,
    /* Everything is read into memory, large weights straight into place, by all of the model's threads. Nothing is
     * mapped. Once the model is open its files are closed and may change, and no session ever waits for them. A file
     * that changes meanwhile makes opening fail with DSV2_ERROR_IO: opening compares its size and the times of change
     * that the system keeps, so a new name, a deleted name or new permissions count as changes too. */
    DSV2_LOADING_READ = 1
} dsv2_loading;

/* Where a model and its sessions get memory, for hosts that account for memory or have their own. Both functions, or
 * neither for the C library's. Through them goes what grows with the model, the cache or the number of rows: copied
 * weights and what converts them, cache pages, working memory, logits, buffers of saving and restoring. Not through
 * them go mapped files, the threads' stacks, zstd's own memory, a session's list of tokens, and what is small or the
 * same for all models of a size: names, other lists, the configuration, the tokenizer.
 * The functions stand in for malloc and free. Threads that call the library call them, several at once, in any call
 * that has the model or one of its sessions, but never the model's own threads. Like malloc they are called in the
 * child of a fork too, and must work there. They must not call the library, fork, or be left by longjmp or an
 * exception. The last call is in dsv2_model_close, or in the dsv2_session_close that comes after. What a fork has lost
 * to a child (see above) is not released there. */
typedef void *(*dsv2_allocate_fn)(void *user, size_t size);
typedef void (*dsv2_release_fn)(void *user, void *memory);
typedef struct dsv2_allocator {
    dsv2_allocate_fn allocate; /* as malloc: aligned for any type; NULL becomes DSV2_ERROR_MEMORY */
    dsv2_release_fn release;   /* as free, of what `allocate` returned; never of NULL */
    void *user;
} dsv2_allocator;

/* For the defaults set struct_size to sizeof(dsv2_model_options) and everything else to zero. A larger struct_size than
 * the library knows is accepted if the unknown rest is zero; a smaller one, down to that of version 0.1, leaves the
 * missing fields at their defaults. */
typedef struct dsv2_model_options {
    size_t struct_size;
    uint32_t n_threads;           /* threads at work, the caller's included, at most 1024; 0: the fast physical
                                   * cores (neither their second threads nor efficiency cores) that the process may
                                   * run on by its affinity, but no more than its cgroups' quota */
    dsv2_weight_type weight_type; /* DSV2_WEIGHTS_AS_STORED, or a type to convert matrices to while opening */
    const char *kernels;          /* NULL or "auto": the best set for this processor. "c", "avx2" or "avx512": exactly
                                   * that set, DSV2_ERROR_UNSUPPORTED where the processor lacks it; for tests and
                                   * comparisons. */
    uint64_t cache_memory_limit;  /* bytes that the KV pages in use may take, of all sessions together; 0: no limit. The
                                   * system gives memory for up to 8 pages at a time, and gets it back when none of the
                                   * 8 is in use: more may be reserved than the limit, most of it not touched yet. */
    dsv2_progress_fn progress;    /* may be NULL */
    void *progress_user;
    dsv2_log_fn log;              /* may be NULL; kept until the model is closed */
    void *log_user;
    /* Since 0.2: */
    dsv2_loading loading;         /* DSV2_LOADING_MAP, or DSV2_LOADING_READ */
    int lock;                     /* non-zero: weights are kept in memory (mlock), mapped ones too, and every expert is
                                   * made ready by dsv2_model_open. DSV2_ERROR_MEMORY where the system refuses; the
                                   * message names the bytes wanted and the limit (RLIMIT_MEMLOCK). Pages of sessions
                                   * and working memory are not locked, nor is anything in a forked child. */
    int insist;                   /* non-zero: open even if weights do not fit the memory that is left now */
    dsv2_allocator allocator;     /* copied; zeros: the C library's */
} dsv2_model_options;

/* Opens a model.
 *   path     UTF-8, of one of three kinds, which the content tells apart: a folder with config.json and safetensors
 *            files (one, or several with or without model.safetensors.index.json) and, if there, tokenizer.json; a
 *            GGUF file; a .dsv2 pack.
 *   options  NULL for the defaults. Read during the call only (but see `log`).
 *   model    receives the handle; the caller closes it with dsv2_model_close.
 * How weights come into memory is the option `loading`. Files that are mapped must not be changed while the model is
 * open: a change of size is noticed before each pass and answered with DSV2_ERROR_IO, but a file that shrinks during a
 * pass or during this call ends the process (SIGBUS). Files that are read are closed when this call returns. A lease of
 * another process on a file is waited for, up to a minute.
 * The kernels read weights in an order of their own, so a GGUF's weights are reordered. dsv2_model_open does that
 * for everything but the routed experts, and also for routed experts that have to be rounded, read or locked. Other
 * routed experts, which are most of a GGUF's weights, are reordered when a session first chooses them.
 * dsv2_model_open reserves the memory for that, and counts it as copied, but the system gives it when an expert is
 * first written. If other memory has grown meanwhile, a feed can exhaust the machine's or the control group's
 * memory, and the system then ends a process; with `lock` all of it is taken by dsv2_model_open. The bits are the
 * same, but the first feeds take longer, and longest where several sessions wait for the same new experts. A pack
 * holds its weights in the kernels' order already.
 * A weight that is converted has to be finite (else _FORMAT) and has to fit the type that weight_type asks for (else
 * _UNSUPPORTED): none of its numbers may be too large, nor all of them so small (below 2^-15 or so for F16) that more
 * than the type's error would be lost. Weights that stay as they are in their file are not looked at on opening: a feed
 * that meets a NaN or infinity of theirs says so.
 * Weights that are copied (dsv2_model_bytes_needed says how many bytes), and what opening takes beside them, must fit
 * the memory that is left; with `lock` the mapped weights too. Else opening is refused with DSV2_ERROR_MEMORY and all
 * figures, before anything is copied; see `insist`. Without `lock`, weights that are mapped may be larger than memory,
 * which is remarked on: parts of them are then read from the disk again and again.
 * Any thread. Returns DSV2_OK, DSV2_ERROR_ARGUMENT, _MEMORY, _IO, _FORMAT, _UNSUPPORTED (the message names the field or
 * tensor and its value) or _CANCELLED. */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_model_open(const char *path, const dsv2_model_options *options,
                                                       dsv2_model **model);

/* What opening a model would take. Set struct_size before the call. */
typedef struct dsv2_bytes_needed_info {
    size_t struct_size;
    uint64_t bytes_copied;          /* memory of the process's own for weights: dsv2_model_info.bytes_copied. Opening
                                     * takes more beside that, which dsv2_model_open counts before it begins: 16 MiB;
                                     * for each thread 16 rows, as floats and as in the file; one layer's kv_b_proj in
                                     * two or three forms, and up to 64 MiB of those of other layers; up to 1 KiB
                                     * for each expert; and a 512th of all weights for page tables */
    uint64_t bytes_mapped;          /* weights that are used where they lie in mapped files; with `lock` they take
                                     * memory as copies do */
    uint64_t cache_bytes_per_token; /* of a session with default options */
    uint64_t memory_left;           /* what the process can take now: the least of what the machine has available and
                                     * what the limits of the process's control groups leave, cached files counted as
                                     * free; 0: not known */
} dsv2_bytes_needed_info;

/* Says what dsv2_model_open with the same path and options would take. Reads headers and the configuration alone, and
 * maps the files for a moment: what cannot be mapped would be copied.
 * Progress is not reported. Any thread. Returns DSV2_OK, and otherwise what dsv2_model_open would return for the same
 * file: DSV2_ERROR_ARGUMENT, _MEMORY, _IO, _FORMAT, _UNSUPPORTED. */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_model_bytes_needed(const char *path, const dsv2_model_options *options,
                                                               dsv2_bytes_needed_info *info);

/* Closes a model and frees all that it owns, apart from what open sessions need: that is freed with the last of them.
 * NULL is allowed. Any thread; no other call may use the handle afterwards, but calls on open sessions may go on. */
DSV2_API void dsv2_model_close(dsv2_model *model);

/* Facts about an open model. Set struct_size before the call. Names are those of the published config.json. */
typedef struct dsv2_model_info {
    size_t struct_size;
    uint64_t parameters;            /* all weights */
    uint64_t parameters_activated;  /* weights used for one token: of routed experts the chosen ones alone */
    uint64_t weight_bytes;          /* size of the weights as held, mapped or copied */
    uint64_t bytes_copied;          /* the part of weight_bytes that is not the file's own but copied or converted,
                                     * including experts that are converted when they are first chosen */
    dsv2_weight_type weight_type;   /* of the matrices; DSV2_WEIGHTS_MIXED if they are of several types */
    uint32_t vocab_size;
    uint32_t hidden_size;
    uint32_t intermediate_size;
    uint32_t moe_intermediate_size;
    uint32_t num_hidden_layers;
    uint32_t num_attention_heads;
    uint32_t n_shared_experts;
    uint32_t n_routed_experts;      /* 0: a dense model */
    uint32_t num_experts_per_tok;
    uint32_t n_group;
    uint32_t topk_group;
    uint32_t first_k_dense_replace;
    uint32_t moe_layer_freq;
    uint32_t q_lora_rank;           /* 0: queries are not compressed */
    uint32_t kv_lora_rank;
    uint32_t qk_nope_head_dim;
    uint32_t qk_rope_head_dim;
    uint32_t v_head_dim;
    uint32_t max_position_embeddings; /* context length, tokens */
    uint32_t n_threads;             /* threads the model uses; 1 in a child that a fork gave the model or its opening */
    int32_t bos_token_id;           /* the tokenizer's, else the configuration's; -1: none */
    int32_t eos_token_id;           /* the first of dsv2_model_end_tokens; -1: none */
    char architecture[32];          /* "deepseek_v2" or "deepseek_v3" */
    char topk_method[32];           /* "greedy", "group_limited_greedy", "noaux_tc", or "" for a dense model */
    char scoring_func[16];          /* "softmax" or "sigmoid" */
    char container[16];             /* "safetensors", "gguf" or "pack" */
    char kernels[16];               /* kernel set in use: "c", "avx2", "avx512" */
    uint64_t fingerprint;           /* digest of hyper-parameters, tokenizer and weights (name, type, shape, and a
                                     * checksum or sample of each); equal for the same model in the same form */
} dsv2_model_info;

/* Fills *info. Any thread. Returns DSV2_OK or DSV2_ERROR_ARGUMENT. */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_model_get_info(const dsv2_model *model, dsv2_model_info *info);

/* The tokens that end a text: *tokens, [*n], which the model owns. A host stops when it has drawn any of them; such a
 * token has no text. They are eos_token_id of config.json (an id or a list) and of generation_config.json, the end of
 * text, turn and message of a GGUF, and the tokenizer's eos_token. *n is 0 where none of these names one.
 * Any thread. Returns DSV2_OK or DSV2_ERROR_ARGUMENT. */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_model_end_tokens(const dsv2_model *model, const int32_t **tokens,
                                                             size_t *n);

/* 1 if the token is one of dsv2_model_end_tokens; 0 if it is none, and for NULL. Any thread. */
DSV2_API int dsv2_model_is_end(const dsv2_model *model, int32_t token);

/* Memory that the model's sessions use. Set struct_size before the call. */
typedef struct dsv2_memory_info {
    size_t struct_size;
    uint64_t pages_in_use;     /* pages referenced by at least one session; a shared page counts once */
    uint64_t page_bytes_in_use;
    uint64_t page_bytes_limit; /* dsv2_model_options.cache_memory_limit; 0: none */
    uint64_t scratch_bytes;    /* working memory of passes: kept between calls, and given back some calls after the last
                                * that needed about so much */
} dsv2_memory_info;

/* Fills *info. Any thread. Returns DSV2_OK or DSV2_ERROR_ARGUMENT. */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_model_get_memory(const dsv2_model *model, dsv2_memory_info *info);

/* Options of dsv2_model_pack. struct_size as in dsv2_model_options. */
typedef struct dsv2_pack_options {
    size_t struct_size;
    dsv2_weight_type weight_type; /* DSV2_WEIGHTS_AS_STORED keeps each tensor's precision */
    uint32_t n_threads;           /* as in dsv2_model_options */
    dsv2_progress_fn progress;    /* may be NULL */
    void *progress_user;
} dsv2_pack_options;

/* Writes the model at `path` (as dsv2_model_open takes it) as one .dsv2 file, `output_path`, with weights in the
 * kernels' own layout. The file appears under its name only when it is whole. Permissions, links, what is refused and
 * what a killed process leaves: as dsv2_session_save (snapshot.h). A converted weight has to be finite and to fit, as
 * in dsv2_model_open. Where files cannot be mapped, all weights are read into memory first, and packing is refused with
 * DSV2_ERROR_MEMORY if they do not fit what is left. A file that changes meanwhile makes packing fail with
 * DSV2_ERROR_IO, as it makes DSV2_LOADING_READ fail; but one that is mapped and becomes shorter may end the process
 * (SIGBUS), as in dsv2_model_open. options: NULL for the defaults.
 * Any thread. Returns DSV2_OK, DSV2_ERROR_ARGUMENT, _MEMORY, _IO, _FORMAT, _UNSUPPORTED or _CANCELLED. */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_model_pack(const char *path, const char *output_path,
                                                       const dsv2_pack_options *options);

/* Reads the whole pack at `path` and checks every checksum. `progress` may be NULL. Any thread. Returns DSV2_OK,
 * DSV2_ERROR_ARGUMENT, _MEMORY, _IO, _FORMAT (the message names what is damaged), _UNSUPPORTED (not a pack) or
 * _CANCELLED. */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_model_verify(const char *path, dsv2_progress_fn progress,
                                                         void *progress_user);

DSV2_END_DECLS
#endif

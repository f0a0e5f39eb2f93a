/* Sources of experts: where the feed-forward part gets the routed experts that a pass's rows chose.
 *
 * A source may hold all experts (resident), make them ready when they are first chosen (deferred), and later read
 * them from a disk within a budget or ask another process. The forward pass knows these functions alone. */
#ifndef DS_LIB_WEIGHTS_SOURCE_H
#define DS_LIB_WEIGHTS_SOURCE_H

#include "kernels/kernels.h"

/* A SwiGLU network, W_down (silu(W_gate x) * W_up x): a dense layer's, the shared experts' or one routed expert's. */
typedef struct ds_ffn_weights {
    ds_matrix gate, up, down;
} ds_ffn_weights;

enum { DS_FFN_MATRICES = sizeof(ds_ffn_weights) / sizeof(ds_matrix) };

typedef struct ds_expert_source ds_expert_source;

struct ds_expert_source {
    const char *name;

    /* Makes n different experts of a layer ready to be read, and points weights[i] to experts[i]: readable until the
     * same experts are released. On failure none is acquired, and the message says why. From any thread; several
     * passes may have the same expert at once. Layers are counted from the model's first. May wait for a disk, for
     * another pass and for a turn of the threads: so the caller has no turn of theirs. */
    dsv2_status (*acquire)(ds_expert_source *source, uint32_t layer, const uint32_t *experts, size_t n,
                           const ds_ffn_weights **weights);

    /* Acquires as above if nobody has to wait for anything, else returns false. Allowed within a turn of the threads.
     * NULL: the source cannot tell. */
    bool (*try_acquire)(ds_expert_source *source, uint32_t layer, const uint32_t *experts, size_t n,
                        const ds_ffn_weights **weights);

    void (*release)(ds_expert_source *source, uint32_t layer, const uint32_t *experts, size_t n);

    /* Says that these experts will probably be acquired soon. May do nothing, cannot fail. NULL: the source has no
     * use for hints, as long as acquiring takes no time. The feed-forward part calls it for a source that has it, as
     * soon as it can tell a layer's experts before their layer; today it learns them from the router and acquires
     * them at once, so nobody calls it. */
    void (*hint)(ds_expert_source *source, uint32_t layer, const uint32_t *experts, size_t n);

    void (*destroy)(ds_expert_source *source);
};

#endif

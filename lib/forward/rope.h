/* Rotary position embedding and YaRN (section 3.1.4 of the report; Peng et al., arXiv 2309.00071). */
#ifndef DS_LIB_FORWARD_ROPE_H
#define DS_LIB_FORWARD_ROPE_H

#include "config/config.h"

typedef struct ds_rope {
    float *frequency;    /* [qk_rope_head_dim / 2], radians a token */
    float scale;         /* of cos and sin: YaRN's first correction */
    float softmax_scale; /* (d_h + d_h^R)^-1/2 with YaRN's second correction */
} ds_rope;

dsv2_status ds_rope_init(ds_rope *rope, const ds_config *config);
void ds_rope_free(ds_rope *rope);

/* cos and sin of the angles of one position, qk_rope_head_dim / 2 of each. */
void ds_rope_angles(const ds_rope *rope, const ds_config *config, size_t position, float *cos, float *sin);

/* Rotates the RoPE part x (qk_rope_head_dim elements) of a query or a key by these angles. */
void ds_rope_rotate(const ds_config *config, const float *cos, const float *sin, float *x);

#endif

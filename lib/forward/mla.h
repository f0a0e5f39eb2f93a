/* Multi-head Latent Attention (section 2.1 of the report): see mla.c. */
#ifndef DS_LIB_FORWARD_MLA_H
#define DS_LIB_FORWARD_MLA_H

#include "forward/attention.h"

extern const ds_attention_kind ds_mla_kind;

#endif

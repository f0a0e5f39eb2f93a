/* The kinds of attention that there are. */
#ifndef DS_LIB_FORWARD_KINDS_H
#define DS_LIB_FORWARD_KINDS_H

#include "forward/attention.h"

/* The kind of a model with this configuration. */
const ds_attention_kind *ds_attention_kind_of(const ds_config *config);

#endif

/* The source of experts that are all in memory, or mapped from their file, from opening on. */
#ifndef DS_LIB_WEIGHTS_RESIDENT_H
#define DS_LIB_WEIGHTS_RESIDENT_H

#include "weights/weights.h"

/* layers: outlive the source. */
dsv2_status ds_resident_source_new(const ds_layer *layers, ds_expert_source **source);

#endif

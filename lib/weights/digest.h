/* The identity of weights: a digest of what was found, in the order in which it was found. Snapshots of every
 * version compare it, so neither the bytes nor their order may change. */
#ifndef DS_LIB_WEIGHTS_DIGEST_H
#define DS_LIB_WEIGHTS_DIGEST_H

#include "formats/formats.h"

/* Adds a tensor: its name in its file, its type, its shape and its data; of data without a checksum a sample from
 * the middle, since reading all would take as long as reading the model. */
dsv2_status ds_digest_tensor(uint64_t *digest, const ds_container *container, const ds_tensor *tensor,
                             bool has_checksum);

/* Adds the type that a matrix is held in. */
void ds_digest_type(uint64_t *digest, ds_type type);

#endif

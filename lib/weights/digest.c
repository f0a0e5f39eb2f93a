#include "weights/digest.h"

#include <xxhash.h>

static void add(uint64_t *digest, const void *data, size_t size)
{
    *digest = XXH3_64bits_withSeed(data, size, *digest);
}

void ds_digest_type(uint64_t *digest, ds_type type)
{
    const char *name = ds_type_name(type); /* a type's number may change */
    add(digest, name, strlen(name));
}

dsv2_status ds_digest_tensor(uint64_t *digest, const ds_container *container, const ds_tensor *tensor,
                             bool has_checksum)
{
    enum { SAMPLE = 1024 };
    add(digest, tensor->name, strlen(tensor->name));
    ds_digest_type(digest, tensor->type);
    add(digest, tensor->dims, tensor->n_dims * sizeof *tensor->dims);
    if (has_checksum) {
        add(digest, &tensor->checksum, sizeof tensor->checksum);
        return DSV2_OK;
    }
    uint64_t size = tensor->n_bytes < SAMPLE ? tensor->n_bytes : SAMPLE, from = (tensor->n_bytes - size) / 2;
    uint8_t sample[SAMPLE];
    dsv2_status status = ds_container_read(container, tensor, from, sample, (size_t)size);
    if (status == DSV2_OK)
        add(digest, sample, (size_t)size);
    return status;
}

/* A safetensors file: it opens or is refused; every byte that it promises can be read. */
#include "memory_file.h"

#include "formats/formats.h"

#include <stdlib.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static volatile unsigned sum;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[64];
    int fd = memory_file(data, size, path);
    ds_container *container;
    if (ds_safetensors_open_file(path, NULL, &container) == DSV2_OK) {
        for (size_t i = 0; i < ds_container_count(container); i++) {
            const ds_tensor *tensor = ds_container_tensor(container, i);
            if (ds_container_find(container, tensor->name) != tensor || tensor->n_bytes > size)
                abort();
            for (uint64_t j = 0; j < tensor->n_bytes; j++)
                sum += ((const uint8_t *)tensor->data)[j];
        }
        ds_container_close(container);
    }
    close(fd);
    return 0;
}

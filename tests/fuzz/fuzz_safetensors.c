/* A folder with one safetensors file opens or is refused. Every byte that an open file promises can be read. */
#include "memory_file.h"

#include "formats/formats.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static volatile unsigned sum;
static char folder[] = "/tmp/fuzz-safetensors-XXXXXX", name[sizeof folder + 24];

static void remove_folder(void)
{
    unlink(name);
    rmdir(folder);
}

/* The file of the folder is a link to the file in memory. */
static void link_to(const char *path)
{
    if (name[0] == '\0') {
        if (mkdtemp(folder) == NULL)
            abort();
        snprintf(name, sizeof name, "%s/model.safetensors", folder);
        atexit(remove_folder);
    }
    unlink(name);
    if (symlink(path, name) != 0)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[64];
    int fd = memory_file(data, size, path);
    ds_container *container;
    bool mapped;
    link_to(path);
    if (ds_safetensors_open(folder, NULL, &container) == DSV2_OK) {
        if (ds_container_map(container, NULL, &mapped) != DSV2_OK || !mapped)
            abort();
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

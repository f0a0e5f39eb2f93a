/* A .dsv2 pack. The input is what checksums protect, since checksums would refuse every change. If the first byte is
 * even, the rest is a whole file as it is. If the first byte is odd, the rest is the index (as many 8-byte units as the
 * second byte says) and the texts, and a file with right checksums is made around them; with 2 in the first byte the
 * input's last two bytes say which byte of the header becomes which. What opens can be read from end to end, and its
 * tokenizer opens or is refused. */
#include "formats/pack.h"
#include "memory_file.h"
#include "../support/pack_file.h"

#include <stdlib.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static volatile unsigned sum;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2)
        return 0;
    uint8_t *made = NULL;
    size_t file_size = size - 1;
    const uint8_t *file = data + 1;
    if (data[0] % 2 == 1) {
        size_t rest = size - 2, index_size = (size_t)data[1] * 8;
        index_size = index_size < rest ? index_size : rest;
        made = pack_file_make(data + 2, index_size, data + 2 + index_size, rest - index_size, &file_size);
        if (data[0] & 2) {
            made[8 + data[size - 2] % 112] = data[size - 1];
            pack_file_seal(made);
        }
        file = made;
    }
    char path[64];
    int fd = memory_file(file, file_size, path);
    ds_container *container;
    bool mapped;
    if (ds_pack_open(path, &container) == DSV2_OK) {
        if (ds_container_map(container, NULL, &mapped) != DSV2_OK || !mapped)
            abort();
        for (size_t i = 0; i < ds_container_count(container); i++) {
            const ds_tensor *tensor = ds_container_tensor(container, i);
            for (uint64_t b = 0; b < tensor->n_bytes; b++)
                sum += ((const uint8_t *)tensor->data)[b];
        }
        dsv2_tokenizer *tokenizer = NULL;
        if (ds_pack_tokenizer(container, &tokenizer) == DSV2_OK)
            ds_tokenizer_destroy(tokenizer);
        (void)ds_pack_verify(container, NULL, NULL);
        ds_container_close(container);
    }
    close(fd);
    free(made);
    return 0;
}

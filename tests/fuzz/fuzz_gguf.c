/* A GGUF file opens or is refused. If it opens, every byte and every metadata value that it promises can be read, its
 * configuration is within bounds or refused, and its tokenizer opens or is refused. */
#include "check_config.h"
#include "memory_file.h"

#include "tokenizer/tokenizer.h"

#include <stdlib.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static volatile unsigned sum;

static void read_bytes(const void *bytes, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        sum += ((const uint8_t *)bytes)[i];
}

static void read_values(const ds_container *container)
{
    static const char *const keys[] = {"a",
                                       "b",
                                       "split.count",
                                       "general.alignment",
                                       "general.architecture",
                                       "tokenizer.ggml.tokens",
                                       "tokenizer.ggml.scores",
                                       "tokenizer.ggml.token_type",
                                       "deepseek2.block_count"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        uint32_t number;
        float real;
        bool flag;
        ds_text text, *texts;
        const void *array;
        size_t n;
        if (ds_gguf_u32(container, keys[i], &number) == DSV2_OK)
            sum += number;
        if (ds_gguf_f32(container, keys[i], &real) == DSV2_OK)
            read_bytes(&real, sizeof real);
        if (ds_gguf_bool(container, keys[i], &flag) == DSV2_OK)
            sum += flag;
        if (ds_gguf_string(container, keys[i], &text) == DSV2_OK)
            read_bytes(text.data, text.size);
        if (ds_gguf_array(container, keys[i], DS_GGUF_U8, &array, &n) == DSV2_OK)
            read_bytes(array, n);
        if (ds_gguf_array(container, keys[i], DS_GGUF_I32, &array, &n) == DSV2_OK ||
            ds_gguf_array(container, keys[i], DS_GGUF_F32, &array, &n) == DSV2_OK)
            read_bytes(array, 4 * n);
        if (ds_gguf_strings(container, keys[i], &texts, &n) == DSV2_OK) {
            for (size_t j = 0; j < n; j++)
                read_bytes(texts[j].data, texts[j].size);
            ds_free(texts);
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[64];
    int fd = memory_file(data, size, path);
    ds_container *container;
    bool mapped;
    if (ds_gguf_open(path, NULL, &container) == DSV2_OK) {
        if (ds_container_map(container, NULL, &mapped) != DSV2_OK || !mapped)
            abort();
        for (size_t i = 0; i < ds_container_count(container); i++) {
            const ds_tensor *tensor = ds_container_tensor(container, i);
            if (ds_container_find(container, tensor->name) != tensor || tensor->n_bytes > size)
                abort();
            read_bytes(tensor->data, tensor->n_bytes);
        }
        read_values(container);
        ds_config config;
        if (ds_config_from_gguf(container, NULL, &config) == DSV2_OK)
            check_config(&config);
        dsv2_tokenizer *tokenizer = NULL;
        if (ds_gguf_tokenizer(container, &tokenizer) == DSV2_OK)
            ds_tokenizer_destroy(tokenizer);
        ds_container_close(container);
    }
    close(fd);
    return 0;
}

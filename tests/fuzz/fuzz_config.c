/* A config.json: it is refused, or what comes out is within the bounds that the model room relies on. */
#include "check_config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    ds_config config;
    if (ds_config_from_json("config.json", (const char *)data, size, NULL, &config) == DSV2_OK)
        check_config(&config);
    return 0;
}

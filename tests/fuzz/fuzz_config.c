/* A config.json is refused, or its configuration is within the bounds that the other rooms rely on. */
#include "check_config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    ds_config config;
    if (ds_config_from_json("config.json", (const char *)data, size, NULL, &config) == DSV2_OK)
        check_config(&config);
    return 0;
}

/* A folder of safetensors files, one or two with an index, with or without a tokenizer, is refused, or is a model that
 * runs to its logits and keeps every promise. */
#include "model_files.h"
#include "run_model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    stream in = {data, size};
    uint8_t how[RUN_BYTES];
    stream_bytes(&in, how, sizeof how);
    run_model(model_files_make(MODEL_FOLDER, &in), how);
    return 0;
}

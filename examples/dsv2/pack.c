/* dsv2 pack: a model as one file, with its weights in the layout that the kernels read. */
#include "common.h"

static int run(int argc, char **argv)
{
    const char *paths[2], *type = NULL;
    uint64_t threads = 0;
    progress_bar bar;
    dsv2_pack_options pack = {.struct_size = sizeof pack, .progress = progress_show, .progress_user = &bar};
    const option_spec options[] = {
        {"type", "TYPE", OPTION_TEXT, &type, 0, 0,
         "q8_0, q6_k, q5_k, q4_k, q4_0 or bf16, for the large matrices; embeddings, output\n"
         "and small tensors keep more. By default every tensor stays as it is"},
        {"threads", "N", OPTION_COUNT, &threads, 0, 1024, "threads to use; 0, the default: as many as the process may"},
    };
    int status = parse_options(&command_pack, argc, argv, options, sizeof options / sizeof *options, paths, 2);
    if (status == GO_ON)
        status = find_weight_type(type, &pack.weight_type);
    if (status != GO_ON)
        return status;
    pack.n_threads = (uint32_t)threads;
    progress_start(&bar, "Packing");
    dsv2_status packed = dsv2_model_pack(paths[0], paths[1], &pack);
    progress_end(&bar);
    return packed == DSV2_OK ? EXIT_OK : fail_library();
}

const command command_pack = {
    "pack",
    "MODEL OUTPUT.dsv2 [OPTION...]",
    "Writes a model as one file that opens at once.",
    "The file holds everything, the tokenizer too, and checksums that 'dsv2 inspect --verify' checks. It appears\n"
    "under its name only when it is whole.",
    run,
};

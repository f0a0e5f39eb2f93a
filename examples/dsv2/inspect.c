/* dsv2 inspect: what a model, or a saved conversation, is. */
#include "common.h"

#include <inttypes.h>

/* One fact: a name as in config.json, and a number or a text. */
typedef struct fact {
    const char *name;
    const char *text; /* NULL: a number */
    int64_t number;
} fact;

static void print_facts(const fact *facts, size_t n, bool json)
{
    printf("%s", json ? "{" : "");
    for (size_t i = 0; i < n; i++) {
        printf(json ? "%s\"%s\": " : "%s%-28s", json && i > 0 ? ", " : "", facts[i].name);
        if (facts[i].text == NULL)
            printf("%" PRId64, facts[i].number);
        else if (json)
            print_json_string(facts[i].text);
        else
            fputs(facts[i].text, stdout);
        printf("%s", json ? "" : "\n");
    }
    printf("%s", json ? "}\n" : "");
}

static int verify(const char *path)
{
    progress_bar bar;
    progress_start(&bar, "Verifying");
    dsv2_status status = dsv2_model_verify(path, progress_show, &bar);
    progress_end(&bar);
    return status == DSV2_OK ? GO_ON : fail_library();
}

static int inspect(dsv2_model *model, const char *path, const dsv2_bytes_needed_info *needed, bool json)
{
    dsv2_model_info info = model_info(model);
    dsv2_tokenizer_info tokens = {.struct_size = sizeof tokens};
    const dsv2_tokenizer *tokenizer = dsv2_model_tokenizer(model);
    if (tokenizer != NULL && dsv2_tokenizer_get_info(tokenizer, &tokens) != DSV2_OK)
        return fail_library();
    char fingerprint[17];
    snprintf(fingerprint, sizeof fingerprint, "%016" PRIx64, info.fingerprint);
    const char *chat = tokenizer == NULL             ? "no tokenizer"
                       : tokens.chat_form[0] != '\0' ? tokens.chat_form
                                                     : "none known";
    const fact facts[] = {
        {"path", path, 0},
        {"container", info.container, 0},
        {"architecture", info.architecture, 0},
        {"parameters", NULL, (int64_t)info.parameters},
        {"parameters_activated", NULL, (int64_t)info.parameters_activated},
        {"weight_type", weight_type_name(info.weight_type), 0},
        {"weight_bytes", NULL, (int64_t)info.weight_bytes},
        {"bytes_copied", NULL, (int64_t)info.bytes_copied},
        {"bytes_mapped", NULL, (int64_t)needed->bytes_mapped},
        {"cache_bytes_per_token", NULL, (int64_t)needed->cache_bytes_per_token},
        {"max_position_embeddings", NULL, info.max_position_embeddings},
        {"vocab_size", NULL, info.vocab_size},
        {"hidden_size", NULL, info.hidden_size},
        {"num_hidden_layers", NULL, info.num_hidden_layers},
        {"num_attention_heads", NULL, info.num_attention_heads},
        {"q_lora_rank", NULL, info.q_lora_rank},
        {"kv_lora_rank", NULL, info.kv_lora_rank},
        {"qk_nope_head_dim", NULL, info.qk_nope_head_dim},
        {"qk_rope_head_dim", NULL, info.qk_rope_head_dim},
        {"v_head_dim", NULL, info.v_head_dim},
        {"intermediate_size", NULL, info.intermediate_size},
        {"moe_intermediate_size", NULL, info.moe_intermediate_size},
        {"n_routed_experts", NULL, info.n_routed_experts},
        {"n_shared_experts", NULL, info.n_shared_experts},
        {"num_experts_per_tok", NULL, info.num_experts_per_tok},
        {"n_group", NULL, info.n_group},
        {"topk_group", NULL, info.topk_group},
        {"topk_method", info.topk_method, 0},
        {"scoring_func", info.scoring_func, 0},
        {"first_k_dense_replace", NULL, info.first_k_dense_replace},
        {"moe_layer_freq", NULL, info.moe_layer_freq},
        {"bos_token_id", NULL, info.bos_token_id},
        {"eos_token_id", NULL, info.eos_token_id},
        {"chat_form", chat, 0},
        {"kernels", info.kernels, 0},
        {"n_threads", NULL, info.n_threads},
        {"fingerprint", fingerprint, 0},
    };
    print_facts(facts, sizeof facts / sizeof *facts, json);
    return finish_output();
}

static int inspect_snapshot(const dsv2_snapshot_info *info, const char *path, bool json)
{
    char fingerprint[17];
    snprintf(fingerprint, sizeof fingerprint, "%016" PRIx64, info->model_fingerprint);
    const fact facts[] = {
        {"path", path, 0},
        {"container", "snapshot", 0},
        {"version", NULL, info->version},
        {"tokens", NULL, (int64_t)info->n_tokens},
        {"kv", cache_type_name(info->cache_type), 0},
        {"file_bytes", NULL, (int64_t)info->file_bytes},
        {"latent_bytes", NULL, (int64_t)info->latent_bytes},
        {"model_fingerprint", fingerprint, 0},
    };
    print_facts(facts, sizeof facts / sizeof *facts, json);
    return finish_output();
}

static int run(int argc, char **argv)
{
    model_settings settings = {0};
    bool json = false, verified = false;
    const char *path;
    const option_spec options[] = {
        {"json", NULL, OPTION_FLAG, &json, 0, 0, "print a JSON object"},
        {"verify", NULL, OPTION_FLAG, &verified, 0, 0, "first read a .dsv2 pack through and check its checksums"},
        MODEL_OPTIONS(settings),
    };
    int status = parse_options(&command_inspect, argc, argv, options, sizeof options / sizeof *options, &path, 1);
    if (status == GO_ON && verified)
        status = verify(path);
    if (status != GO_ON)
        return status;
    dsv2_snapshot_info snapshot = {.struct_size = sizeof snapshot};
    if (dsv2_snapshot_inspect(path, &snapshot) == DSV2_OK)
        return inspect_snapshot(&snapshot, path, json);
    dsv2_model_options model_options;
    dsv2_bytes_needed_info needed = {.struct_size = sizeof needed};
    status = find_model_options(&settings, &model_options);
    if (status != GO_ON)
        return status;
    if (dsv2_model_bytes_needed(path, &model_options, &needed) != DSV2_OK)
        return fail_library();
    dsv2_model *model = open_model(path, &settings);
    if (model == NULL)
        return EXIT_FAILED;
    status = inspect(model, path, &needed, json);
    dsv2_model_close(model);
    return status;
}

const command command_inspect = {
    "inspect", "PATH [OPTION...]", "Prints what a model, or a saved conversation, is: its dimensions, sizes and types.",
    "Names are those of the published config.json.", run,
};

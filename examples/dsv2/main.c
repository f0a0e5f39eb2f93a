/* The dsv2 command: what libdsv2 does, from a shell. Built on the public headers alone. */
#include "common.h"

#include <string.h>

static const command *const commands[] = {
    &command_generate, &command_chat,       &command_tokenize, &command_detokenize,
    &command_logits,   &command_perplexity, &command_experts,  &command_inspect, &command_bench,    &command_pack,
};

static void print_commands(FILE *out)
{
    fprintf(out,
            "Usage: dsv2 COMMAND MODEL [OPTION...]\n\n"
            "Runs DeepSeek-V2 models. MODEL is a folder with config.json, safetensors files and tokenizer.json, a\n"
            "GGUF file, or a .dsv2 pack.\n\n"
            "Commands:\n");
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        fprintf(out, "  %-12s%s\n", commands[i]->name, commands[i]->summary);
    fprintf(out, "\n'dsv2 COMMAND --help' tells more of each; 'dsv2 --version' prints the version.\n"
                 "Exit status: 0, 1 if something failed, 2 if the command line is wrong.\n");
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        print_commands(stderr);
        return EXIT_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0) {
        print_commands(stdout);
        return finish_output();
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("dsv2 %s\n", dsv2_version_string());
        return finish_output();
    }
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (strcmp(argv[1], commands[i]->name) == 0)
            return commands[i]->run(argc - 1, argv + 1);
    fprintf(stderr, "dsv2: there is no command '%s'\nTry 'dsv2 --help'.\n", argv[1]);
    return EXIT_USAGE;
}

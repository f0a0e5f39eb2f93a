/* dsv2 logits: writes the logits after every token of a list to a file, for comparisons with other programs. */
#include "common.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* Writes little-endian float32, whatever this machine is. */
static bool write_floats(FILE *file, const float *values, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &values[i], sizeof bits);
        unsigned char bytes[4] = {bits & 0xff, bits >> 8 & 0xff, bits >> 16 & 0xff, bits >> 24};
        if (fwrite(bytes, 1, sizeof bytes, file) != sizeof bytes)
            return false;
    }
    return true;
}

static int write_logits(dsv2_model *model, dsv2_session *session, const int32_t *ids, size_t n, size_t chunk,
                        const char *output)
{
    size_t width = model_info(model).vocab_size;
    chunk = chunk < n ? chunk : n;
    float *logits = calloc(chunk > 0 ? chunk : 1, width * sizeof *logits);
    if (logits == NULL)
        return fail("no memory for %zu rows of %zu logits; a smaller --chunk takes less", chunk, width);
    FILE *file = fopen(output, "wb");
    if (file == NULL) {
        free(logits);
        return fail("%s: cannot open: %s", output, strerror(errno));
    }
    struct stat facts;
    bool is_regular = fstat(fileno(file), &facts) == 0 && S_ISREG(facts.st_mode);
    int status = EXIT_OK;
    for (size_t done = 0; done < n && status == EXIT_OK;) {
        size_t count = n - done < chunk ? n - done : chunk;
        dsv2_step_item item = {sizeof item, .session = session, .tokens = ids + done, .n_tokens = count,
                               .logits = logits};
        if (dsv2_step(model, &item, 1) != DSV2_OK)
            status = fail_library();
        else if (!write_floats(file, logits, count * width))
            status = fail("%s: cannot write: %s", output, strerror(errno));
        done += count;
    }
    if (fclose(file) != 0 && status == EXIT_OK)
        status = fail("%s: cannot write: %s", output, strerror(errno));
    if (status != EXIT_OK && is_regular)
        remove(output); /* a part of the rows is of no use; a device stays as it is */
    free(logits);
    return status;
}

static bool parse_attention(const char *name, dsv2_attention *attention)
{
    static const char *const names[] = {"auto", "absorbed", "expanded"};
    for (int i = 0; i < 3; i++)
        if (strcmp(name, names[i]) == 0) {
            *attention = (dsv2_attention)i;
            return true;
        }
    return false;
}

static int run(int argc, char **argv)
{
    model_settings settings = {0};
    const char *path, *tokens_file = NULL, *output = NULL, *attention_name = "auto";
    uint64_t chunk = 256;
    dsv2_attention attention;
    const option_spec options[] = {
        {"tokens-file", "FILE", OPTION_TEXT, &tokens_file, 0, 0, "token ids separated by white space; needed"},
        {"output", "FILE", OPTION_TEXT, &output, 0, 0, "file to write; needed"},
        {"chunk", "N", OPTION_COUNT, &chunk, 1, UINT32_MAX, "tokens fed at a time; default 256"},
        {"attention", "FORM", OPTION_TEXT, &attention_name, 0, 0, "auto (the default), absorbed or expanded"},
        MODEL_OPTIONS(settings),
    };
    int status = parse_options(&command_logits, argc, argv, options, sizeof options / sizeof *options, &path, 1);
    if (status != GO_ON)
        return status;
    if (tokens_file == NULL || output == NULL)
        return fail_usage("--%s FILE is missing", tokens_file == NULL ? "tokens-file" : "output");
    if (!parse_attention(attention_name, &attention))
        return fail_usage("--attention: '%s' is none of auto, absorbed, expanded", attention_name);
    size_t size, n;
    char *text = read_all(tokens_file, &size);
    int32_t *ids = text != NULL ? parse_ids(tokens_file, text, size, &n) : NULL;
    dsv2_model *model = ids != NULL ? open_model(path, &settings) : NULL;
    dsv2_session *session = model != NULL ? open_session(model, DSV2_CACHE_F32, attention, true) : NULL;
    status = session != NULL ? write_logits(model, session, ids, n, chunk, output) : EXIT_FAILED;
    dsv2_session_close(session);
    dsv2_model_close(model);
    free(ids);
    free(text);
    return status;
}

const command command_logits = {
    "logits",
    "MODEL --tokens-file FILE --output FILE [OPTION...]",
    "Writes the logits after each of the given tokens.",
    "The output is one row for each token, as wide as the vocabulary, of little-endian float32. The ids are\n"
    "taken as they are: nothing is put before them. The cache keeps float32, so that nothing is rounded that need\n"
    "not be.",
    run,
};

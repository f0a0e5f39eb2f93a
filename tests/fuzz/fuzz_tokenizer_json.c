/* A tokenizer.json is refused, or any text encodes with it and comes back. An input that begins with "/" holds the
 * parts of a small file, one a line (see small_json.h): few changes to a whole file leave its 256 letters in place. */
#include "../unit/small_json.h"
#include "tokenizer/tokenizer.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool claim)
{
    if (!claim)
        abort();
}

static char *assemble(const uint8_t *data, size_t size)
{
    small_parts parts = {0};
    const char **members[] = {&parts.added,          &parts.normalizer, &parts.pre_tokenizer,
                              &parts.post_processor, &parts.decoder,    &parts.vocab,
                              &parts.merges,         &parts.model,      &parts.root};
    char *lines = malloc(size + 1), *rest = lines;
    memcpy(lines, data, size);
    lines[size] = '\0';
    for (size_t i = 0; i < sizeof members / sizeof *members && rest != NULL; i++) {
        char *line = strsep(&rest, "\n");
        if (*line != '\0')
            *members[i] = line;
    }
    char *json = small_json(&parts);
    free(lines);
    return json;
}

static void round_trip(const dsv2_tokenizer *t, const char *text, size_t size, uint32_t flags)
{
    ds_ids ids = {0};
    size_t back_size;
    dsv2_status status = ds_encode(t, text, size, flags, &ids);
    check(status == DSV2_OK || status == DSV2_ERROR_UNSUPPORTED); /* an expression that takes too many steps */
    if (status == DSV2_OK) {
        char *back = malloc(size + 1);
        check(ds_decode(t, ids.ids, ids.n, DSV2_DECODE_SPECIAL, back, size + 1, &back_size) == DSV2_OK);
        check(back_size == size && memcmp(back, text, size) == 0);
        free(back);
    }
    ds_free(ids.ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char text[] = "The  quick\tbrown \xc3\xbc\xfc\r\n\xe4\xb8\xad\xe6\x96\x87 12.5!! <|a|> 's\xf4  \n x";
    char *json = size > 0 && data[0] == '/' ? assemble(data + 1, size - 1) : NULL;
    dsv2_tokenizer *t;
    dsv2_status status = json != NULL ? ds_tokenizer_from_json("tokenizer.json", json, strlen(json), &t)
                                      : ds_tokenizer_from_json("tokenizer.json", (const char *)data, size, &t);
    free(json);
    if (status != DSV2_OK)
        return 0;
    round_trip(t, text, sizeof text - 1, 0);
    round_trip(t, text, sizeof text - 1, DSV2_ENCODE_SPECIAL);
    round_trip(t, (const char *)data, size < 200 ? size : 200, DSV2_ENCODE_SPECIAL);
    for (int file = 0; file < DS_TOKENIZER_FILES; file++)
        (void)ds_tokenizer_configure(t, file, ds_tokenizer_files[file], (const char *)data, size);
    ds_tokenizer_destroy(t);
    return 0;
}

#include "small_json.h"

#include <stdio.h>
#include <stdlib.h>

static const char *or(const char *part, const char *otherwise) { return part == NULL ? otherwise : part; }

/* "x":byte for each byte. */
static void put_letters(FILE *out)
{
    unsigned next = 256;
    for (unsigned byte = 0; byte < 256; byte++) {
        int itself = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
        fprintf(out, "%s\"\\u%04x\":%u", byte > 0 ? "," : "", itself ? byte : next, byte);
        next += !itself;
    }
}

char *small_json(const small_parts *p)
{
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    fprintf(out, "{\"added_tokens\":[%s],\"normalizer\":%s,\"pre_tokenizer\":%s,\"post_processor\":%s,\"decoder\":%s,",
            or(p->added, ""), or(p->normalizer, "null"),
            or(p->pre_tokenizer, "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}"),
            or(p->post_processor, "null"), or(p->decoder, "{\"type\":\"ByteLevel\"}"));
    fprintf(out, "\"model\":{\"type\":\"BPE\",\"vocab\":{");
    put_letters(out);
    fprintf(out, "%s},\"merges\":[%s]%s}%s}", or(p->vocab, ""), or(p->merges, ""), or(p->model, ""), or(p->root, ""));
    fclose(out);
    return text;
}

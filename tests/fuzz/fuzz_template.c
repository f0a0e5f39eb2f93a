/* A chat template of any text, rendered over variables of any JSON, ends with a status or a prompt. The template is
 * what comes before the first NUL, the variables what comes after; without variables there are some that most templates
 * like. */
#include "template/template.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool claim)
{
    if (!claim)
        abort();
}

static json_t *read_variables(const char *text, size_t size)
{
    static const char usual[] =
        "{\"messages\": [{\"role\": \"system\", \"content\": \"zq\"}, {\"role\": \"user\", \"content\": \"Zz\\n\"},"
        "{\"role\": \"assistant\", \"content\": null, \"tool_calls\": [{\"type\": \"function\", \"function\":"
        "{\"name\": \"z\", \"arguments\": {\"q\": [1, 2.5, null, true]}}}]}, {\"role\": \"tool\", \"content\": \"3\"}],"
        "\"tools\": [{\"type\": \"function\", \"function\": {\"name\": \"z\", \"parameters\": {}}}],"
        "\"add_generation_prompt\": true}";
    json_t *variables = json_loadb(text, size, JSON_ALLOW_NUL, NULL);
    if (json_is_object(variables))
        return variables;
    json_decref(variables);
    variables = json_loadb(usual, sizeof usual - 1, 0, NULL);
    check(variables != NULL);
    return variables;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *text = (const char *)data, *end = size == 0 ? NULL : memchr(text, '\0', size);
    size_t n = end == NULL ? size : (size_t)(end - text);
    const ds_template_word words[] = {{"bos_token", {"<bos>", 5}}, {"eos_token", {"<eos>", 5}}};
    ds_template *template;
    ds_rendered r;
    if (ds_template_parse("T", text, n, &template) != DSV2_OK)
        return 0;
    json_t *variables = read_variables(end == NULL ? "" : end + 1, end == NULL ? 0 : size - n - 1);
    dsv2_status status = ds_template_render(template, variables, words, 2, 1732800000, &r);
    check(status == DSV2_OK || status == DSV2_ERROR_ARGUMENT || status == DSV2_ERROR_UNSUPPORTED
          || status == DSV2_ERROR_MEMORY);
    for (size_t i = 0; status == DSV2_OK && i < r.size; i++)
        check(r.origins[i] <= 1);
    if (status == DSV2_OK)
        ds_rendered_free(&r);
    json_decref(variables);
    ds_template_destroy(template);
    return 0;
}

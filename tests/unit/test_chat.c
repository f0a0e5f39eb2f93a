/* Chat prompts by the checkpoint's template, or by its family's form. The texts are Jinja's
 * (tests/data/make_chat_templates.py). */
#include "folder.h"
#include "small_json.h"
#include "support/data.h"
#include "support/run.h"

#include <dsv2/dsv2.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_IDS = 8192 };

static const char *const marks[] = {"<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|system|>",
                                    "<|end|>", "<think>", "<｜User｜>", "<｜Assistant｜>"};
enum { N_MARKS = sizeof marks / sizeof *marks };

/* A tokenizer with the first n of the marks, and what else is in its folder; NULL: nothing. */
static dsv2_tokenizer *open_with(size_t n_marks, const char *config, const char *json_template, const char *jinja)
{
    char added[1000];
    size_t used = 0;
    for (size_t i = 0; i < n_marks; i++)
        used += (size_t)snprintf(added + used, sizeof added - used, "%s{\"id\":%zu,\"content\":\"%s\",\"special\":%s}",
                                 i == 0 ? "" : ",", 300 + i, marks[i], i < 2 ? "true" : "false");
    char *json = small_json(&(small_parts){.added = added});
    dsv2_tokenizer *t;
    folder_make();
    folder_write("tokenizer.json", json, strlen(json));
    free(json);
    if (config != NULL)
        folder_write("tokenizer_config.json", config, strlen(config));
    if (json_template != NULL)
        folder_write("chat_template.json", json_template, strlen(json_template));
    if (jinja != NULL)
        folder_write("chat_template.jinja", jinja, strlen(jinja));
    dsv2_status status = dsv2_tokenizer_open(folder_path(), &t);
    folder_remove();
    ck_assert_msg(status == DSV2_OK, "%s", dsv2_last_error());
    return t;
}

static const char named[] = "{\"bos_token\":\"<|bos|>\",\"eos_token\":\"<|eos|>\"}";

static dsv2_tokenizer *open_template(const char *jinja) { return open_with(N_MARKS, named, NULL, jinja); }

static size_t prompt(const dsv2_tokenizer *t, dsv2_chat chat, int32_t *ids)
{
    size_t n = 0;
    chat.struct_size = sizeof chat;
    dsv2_status status = dsv2_chat_prompt(t, &chat, ids, MAX_IDS, &n);
    ck_assert_msg(status == DSV2_OK, "status %d: %s", (int)status, dsv2_last_error());
    return n;
}

static void expect_text(const dsv2_tokenizer *t, dsv2_chat chat, const char *expected)
{
    static int32_t ids[MAX_IDS];
    static char text[4 * MAX_IDS];
    size_t n = prompt(t, chat, ids), size;
    ck_assert(dsv2_tokenizer_decode(t, ids, n, DSV2_DECODE_SPECIAL, text, sizeof text - 1, &size) == DSV2_OK);
    text[size] = '\0';
    ck_assert_str_eq(text, expected);
}

static void expect_failure(const dsv2_tokenizer *t, dsv2_chat chat, dsv2_status expected, const char *words)
{
    int32_t id = -7;
    size_t n = 77;
    if (chat.struct_size == 0)
        chat.struct_size = sizeof chat;
    ck_assert_int_eq(dsv2_chat_prompt(t, &chat, &id, 1, &n), expected);
    ck_assert_msg(strstr(dsv2_last_error(), words) != NULL, "\"%s\" lacks \"%s\"", dsv2_last_error(), words);
    ck_assert(n == 77 && id == -7);
}

static size_t count_marks(const int32_t *ids, size_t n)
{
    size_t found = 0;
    for (size_t i = 0; i < n; i++)
        found += ids[i] >= 300;
    return found;
}

/* Where the messages spell no mark: the ids of the whole text with its special tokens. Elsewhere: the same text, but no
 * more marks than in the conversation without them. */
static void check_conversation(const dsv2_tokenizer *t, const json_t *one)
{
    static int32_t ids[MAX_IDS], expected[MAX_IDS];
    static char decoded[4 * MAX_IDS];
    const json_t *variables = json_object_get(one, "variables"), *text = json_object_get(one, "text");
    char *messages = json_dumps(json_object_get(variables, "messages"), 0);
    char *tools = json_dumps(json_object_get(variables, "tools"), 0), *all = json_dumps(variables, 0);
    dsv2_chat chat = {.messages_json = messages, .tools = tools, .variables = all};
    if (text == NULL) {
        expect_failure(t, chat, DSV2_ERROR_ARGUMENT, json_string_value(json_object_get(one, "error")));
    } else {
        size_t n = prompt(t, chat, ids), n_expected, size;
        ck_assert(dsv2_tokenizer_decode(t, ids, n, DSV2_DECODE_SPECIAL, decoded, sizeof decoded, &size) == DSV2_OK);
        ck_assert_uint_eq(size, json_string_length(text));
        ck_assert_mem_eq(decoded, json_string_value(text), size);
        char *plain = strdup(messages);
        for (char *at = plain; (at = strstr(at, "<|")) != NULL;)
            *at = '(';
        bool spells = strcmp(plain, messages) != 0;
        if (spells) {
            n_expected = prompt(t, (dsv2_chat){.messages_json = plain, .tools = tools, .variables = all}, expected);
            ck_assert_uint_eq(count_marks(ids, n), count_marks(expected, n_expected));
        } else {
            ck_assert(dsv2_tokenizer_encode(t, json_string_value(text), size, DSV2_ENCODE_SPECIAL, expected, MAX_IDS,
                                            &n_expected) == DSV2_OK);
            ck_assert_uint_eq(n, n_expected);
            ck_assert_mem_eq(ids, expected, n * sizeof *ids);
        }
        free(plain);
    }
    free(all);
    free(tools);
    free(messages);
}

START_TEST(prompts_are_the_ids_of_jinjas_text)
{
    size_t size, n_conversations = 0, index;
    char *data = data_read("chat_templates.json", &size);
    json_t *root = json_loadb(data, size, 0, NULL), *template, *one;
    const char *name;
    ck_assert(root != NULL);
    json_object_foreach(json_object_get(root, "templates"), name, template) {
        dsv2_tokenizer *t = open_template(json_string_value(template));
        json_array_foreach(json_object_get(root, "cases"), index, one) {
            const char *of = json_string_value(json_object_get(one, "name"));
            if (of == NULL || strcmp(of, name) != 0)
                continue;
            check_conversation(t, one);
            n_conversations++;
        }
        dsv2_tokenizer_close(t);
    }
    ck_assert_uint_ge(n_conversations, 100);
    json_decref(root);
    free(data);
}
END_TEST

static const dsv2_message system_text = {"system", "S", 1}, user_a = {"user", "A", 1}, user_b = {"user", "B", 1},
                          assistant_c = {"assistant", "C", 1};

START_TEST(of_several_templates_the_first_in_order_counts)
{
    static const char in_config[] = "{\"bos_token\":\"<|bos|>\",\"eos_token\":\"<|eos|>\","
                                    "\"chat_template\":\"config\"}",
                      by_name[] = "{\"chat_template\":[{\"name\":\"tool_use\",\"template\":\"tools\"},"
                                  "{\"name\":\"default\",\"template\":\"by name\"}]}",
                      in_json[] = "{\"chat_template\":\"json\"}";
    const struct {
        const char *config, *json, *jinja, *text;
    } cases[] = {
        {in_config, NULL, NULL, "config"}, {by_name, NULL, NULL, "by name"}, {in_config, in_json, NULL, "json"},
        {in_config, in_json, "jinja", "jinja"}, {in_config, NULL, "jinja", "jinja"}, {NULL, NULL, "jinja", "jinja"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dsv2_tokenizer *t = open_with(2, cases[i].config, cases[i].json, cases[i].jinja);
        const char *text;
        size_t size;
        ck_assert(dsv2_chat_template(t, &text, &size) == DSV2_OK);
        ck_assert_uint_eq(size, strlen(cases[i].text));
        ck_assert_mem_eq(text, cases[i].text, size);
        expect_text(t, (dsv2_chat){.messages = &user_a, .n = 1}, cases[i].text);
        dsv2_tokenizer_info info = {.struct_size = sizeof info};
        ck_assert(dsv2_tokenizer_get_info(t, &info) == DSV2_OK);
        ck_assert_str_eq(info.chat_form, "template");
        dsv2_tokenizer_close(t);
    }
}
END_TEST

START_TEST(a_template_outside_the_subset_is_named_and_never_nearly_right)
{
    static const char *const templates[] = {"a\n{% filter upper %}x{% endfilter %}", "{{ messages | nofilter }}",
                                            "{% if true %}", "{{ 1 ** 2 }}"};
    for (size_t i = 0; i < sizeof templates / sizeof *templates; i++) {
        dsv2_tokenizer *t = open_template(templates[i]);
        dsv2_tokenizer_info info = {.struct_size = sizeof info};
        ck_assert(dsv2_tokenizer_get_info(t, &info) == DSV2_OK);
        ck_assert_str_eq(info.chat_form, "");
        expect_failure(t, (dsv2_chat){.messages = &user_a, .n = 1}, DSV2_ERROR_UNSUPPORTED,
                       "chat_template.jinja: line");
        int32_t ids[4];
        size_t n;
        ck_assert(dsv2_tokenizer_encode(t, "ab", 2, 0, ids, 4, &n) == DSV2_OK); /* all else works */
        dsv2_tokenizer_close(t);
    }
}
END_TEST

START_TEST(a_template_that_refuses_says_why)
{
    dsv2_tokenizer *t = open_template("{{ raise_exception('roles must ' ~ messages[0].content) }}");
    expect_failure(t, (dsv2_chat){.messages = &user_a, .n = 1}, DSV2_ERROR_ARGUMENT, "roles must A");
    dsv2_tokenizer_close(t);
}
END_TEST

static const char in_turns[] =
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}"
    "\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}";

START_TEST(a_conversation_goes_on_without_its_past)
{
    dsv2_tokenizer *t = open_template(in_turns);
    const dsv2_message talk[] = {user_a, assistant_c, user_b, assistant_c};
    static const char *const expected[] = {
        "<|bos|><|user|>A<|assistant|>C<|eos|>\n<|user|>B<|assistant|>", "C<|eos|>\n<|user|>B<|assistant|>",
        "\n<|user|>B<|assistant|>", ""};
    for (size_t first = 0; first <= 3; first++)
        expect_text(t, (dsv2_chat){.messages = talk, .n = 3, .first = first}, expected[first]);
    expect_text(t, (dsv2_chat){.messages = talk, .n = 4, .first = 3}, "C<|eos|>\n");
    int32_t ids[16];
    size_t n;
    ck_assert(dsv2_chat_encode(t, talk, 3, 2, ids, 16, &n) == DSV2_OK);
    ck_assert_uint_eq(n, 4);
    dsv2_tokenizer_close(t);
    t = open_template("{{ messages | length }}"); /* what was written changes when more follows */
    expect_failure(t, (dsv2_chat){.messages = talk, .n = 3, .first = 2}, DSV2_ERROR_UNSUPPORTED, "first is 2");
    dsv2_tokenizer_close(t);
}
END_TEST

START_TEST(an_unclosed_reply_is_closed_as_the_template_closes_it)
{
    const dsv2_message blank = {"assistant", " ", 1};
    const dsv2_message talk[] = {user_a, assistant_c, user_b}, of_nothing[] = {user_a, blank, user_b};
    static const struct {
        const char *end, *expected; /* what the template writes behind a reply; what is fed next */
    } cases[] = {
        {"{{ eos_token }}\n", "<|eos|>\n<|user|>B<|assistant|>"},
        {"<|end|>", "<|end|><|user|>B<|assistant|>"}, /* another token than the tokenizer's EOS */
        {"", "<|user|>B<|assistant|>"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char template[512];
        snprintf(template, sizeof template,
                 "{%% for m in messages %%}<|{{ m.role }}|>{{ m.content | trim }}"
                 "{%% if m.role == 'assistant' %%}%s{%% endif %%}{%% endfor %%}"
                 "{%% if add_generation_prompt %%}<|assistant|>{%% endif %%}", cases[i].end);
        dsv2_tokenizer *t = open_template(template);
        const uint32_t flags = DSV2_CHAT_UNCLOSED;
        expect_text(t, (dsv2_chat){.messages = talk, .n = 3, .first = 2, .flags = flags}, cases[i].expected);
        expect_text(t, (dsv2_chat){.messages = of_nothing, .n = 3, .first = 2, .flags = flags}, cases[i].expected);
        expect_failure(t, (dsv2_chat){.messages = talk, .n = 3, .first = 1, .flags = flags}, DSV2_ERROR_ARGUMENT,
                       "DSV2_CHAT_UNCLOSED");
        expect_failure(t, (dsv2_chat){.messages = talk, .n = 3, .flags = flags}, DSV2_ERROR_ARGUMENT,
                       "DSV2_CHAT_UNCLOSED");
        dsv2_tokenizer_close(t);
    }
}
END_TEST

START_TEST(an_open_reply_ends_with_its_own_text)
{
    dsv2_tokenizer *t = open_template(in_turns);
    static const struct {
        const char *said, *expected;
    } cases[] = {{"Sure", "Sure"}, {"Sure, ", "Sure, "}, {"", ""}, {"<|eos|>", "<|eos|>"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const dsv2_message talk[] = {user_a, {"assistant", cases[i].said, strlen(cases[i].said)}};
        char expected[100];
        snprintf(expected, sizeof expected, "<|bos|><|user|>A<|assistant|>%s", cases[i].expected);
        expect_text(t, (dsv2_chat){.messages = talk, .n = 2, .flags = DSV2_CHAT_OPEN}, expected);
    }
    expect_failure(t, (dsv2_chat){.messages = &user_a, .n = 1, .flags = DSV2_CHAT_OPEN}, DSV2_ERROR_ARGUMENT,
                   "DSV2_CHAT_OPEN");
    dsv2_tokenizer_close(t);
}
END_TEST

/* What a template makes of a text decides whether the prompt can end with that text. */
START_TEST(an_open_reply_whose_text_the_template_changes_is_refused)
{
    static const struct {
        const char *template, *messages, *expected; /* NULL: refused */
        dsv2_status status;
    } cases[] = {
        {"{{ m.content }}{{ suffix }}", "{\"content\":\"Sure\"}", "Sure", DSV2_OK},
        {"{{ m.content | trim }}", "{\"content\":\" \\n Sure, \"}", "Sure, ", DSV2_OK},
        {"{{ m.content }}|{{ eos_token }}", "{\"content\":\"a\\tb\"}", "a\tb", DSV2_OK},
        {"{{ m.content.split('>')[-1] }}", "{\"content\":\"<think>ab\"}", NULL, DSV2_ERROR_UNSUPPORTED},
        {"{{ m.content.split('>')[-1] }}", "{\"content\":\"ab\"}", "ab", DSV2_OK},
        {"{{ m.content.split('>')[0] }}", "{\"content\":\"a>b\"}", NULL, DSV2_ERROR_UNSUPPORTED},
        {"{{ m.content }}{{ m.content }}", "{\"content\":\"a\"}", NULL, DSV2_ERROR_UNSUPPORTED},
        {"{{ m.role }}", "{\"content\":\"a\"}", NULL, DSV2_ERROR_UNSUPPORTED},
        {"{{ m.content }}", "{\"content\":\"\",\"tool_calls\":[{}]}", NULL, DSV2_ERROR_ARGUMENT},
        {"{{ m.content }}", "{\"content\":[]}", NULL, DSV2_ERROR_ARGUMENT},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char template[256], messages[256];
        snprintf(template, sizeof template, "{%% set m = messages[0] %%}%s", cases[i].template);
        snprintf(messages, sizeof messages, "[{\"role\":\"assistant\",%s]", cases[i].messages + 1);
        dsv2_tokenizer *t = open_template(template);
        dsv2_chat chat = {.messages_json = messages, .variables = "{\"suffix\":\"!\"}", .flags = DSV2_CHAT_OPEN};
        if (cases[i].expected != NULL)
            expect_text(t, chat, cases[i].expected);
        else
            expect_failure(t, chat, cases[i].status, "DSV2_CHAT_OPEN");
        dsv2_tokenizer_close(t);
    }
    dsv2_tokenizer *t = open_template(in_turns);
    expect_failure(t, (dsv2_chat){.messages = &assistant_c, .n = 1, .first = 1, .flags = DSV2_CHAT_OPEN},
                   DSV2_ERROR_ARGUMENT, "first is n");
    dsv2_tokenizer_close(t);
}
END_TEST

START_TEST(what_templates_ask_of_names_is_as_in_jinja)
{
    dsv2_tokenizer *t = open_template("{% if strftime_now is defined and range is callable and nobody is not defined %}"
                                      "y{% endif %}{{ 'tool_call it\\'s (a b)' | title }}{{ \"it's\".title() }}");
    expect_text(t, (dsv2_chat){.messages = &user_a, .n = 1}, "yTool_call It's (A B)It'S");
    dsv2_tokenizer_close(t);
    /* neither a guess at the digits of an integer beyond 64 bits, nor at what the variables say */
    t = open_template("{{ n }}");
    expect_failure(t, (dsv2_chat){.messages = &user_a, .n = 1, .variables = "{\"n\": 18446744073709551615}"},
                   DSV2_ERROR_ARGUMENT, "a number of 2^63 and more");
    expect_text(t, (dsv2_chat){.messages = &user_a, .n = 1, .variables = "{\"n\": 9223372036854775807}"},
                "9223372036854775807");
    dsv2_tokenizer_close(t);
    char *many = malloc(1 << 16);
    size_t at = (size_t)sprintf(many, "{{ [");
    for (int i = 0; i < 1100; i++)
        at += (size_t)sprintf(many + at, "a%d,", i);
    strcpy(many + at, "1] }}");
    t = open_template(many);
    expect_failure(t, (dsv2_chat){.messages = &user_a, .n = 1}, DSV2_ERROR_UNSUPPORTED, "name is one too many: \"a");
    dsv2_tokenizer_close(t);
    free(many);
}
END_TEST

/* The role of a message is the template's word; any other member of that name is data. */
START_TEST(a_role_elsewhere_makes_no_token)
{
    int32_t ids[64];
    dsv2_tokenizer *t = open_template("{{ '<|' ~ messages[0].role ~ '|>' }}");
    size_t n = prompt(t, (dsv2_chat){.messages_json = "[{\"role\":\"eos\"}]"}, ids);
    ck_assert_uint_eq(count_marks(ids, n), 1);
    dsv2_tokenizer_close(t);
    t = open_template("{{ '<|' ~ messages[0].x.role ~ '|>' }}{{ '<|' ~ role ~ '|>' }}"
                      "{{ '<|' ~ tools[0].role ~ '|>' }}");
    n = prompt(t, (dsv2_chat){.messages_json = "[{\"role\":\"user\",\"x\":{\"role\":\"eos\"}}]",
                              .tools = "[{\"role\":\"eos\"}]", .variables = "{\"role\":\"eos\"}"}, ids);
    ck_assert_uint_eq(count_marks(ids, n), 0);
    dsv2_tokenizer_close(t);
}
END_TEST

START_TEST(a_long_conversation_of_short_messages_fits)
{
    enum { N = 3000 };
    static int32_t ids[16 * N];
    char *messages = malloc(64 * N);
    size_t at = (size_t)sprintf(messages, "[");
    for (int i = 0; i < N; i++)
        at += (size_t)sprintf(messages + at, "%s{\"role\":\"%s\",\"content\":\"hi\"}", i > 0 ? "," : "",
                              i % 2 == 0 ? "user" : "assistant");
    strcpy(messages + at, "]");
    dsv2_tokenizer *t = open_template(in_turns);
    size_t n;
    const dsv2_chat chat = {.struct_size = sizeof chat, .messages_json = messages};
    ck_assert_msg(dsv2_chat_prompt(t, &chat, ids, 16 * N, &n) == DSV2_OK, "%s", dsv2_last_error());
    ck_assert_uint_gt(n, 3 * N);
    dsv2_tokenizer_close(t);
    free(messages);
}
END_TEST

START_TEST(families_have_their_forms_without_a_template)
{
    const dsv2_message two_users[] = {user_a, user_b}, late[] = {system_text, user_a, assistant_c, system_text, user_b},
                       begins[] = {assistant_c, user_a};
    const struct {
        size_t n_marks;
        const dsv2_message *messages;
        size_t n;
        const char *variables, *expected;
    } cases[] = {
        {2, two_users, 2, NULL, "<|bos|>User: A\n\nUser: B\n\nAssistant:"},
        {2, late, 5, NULL, "<|bos|>S\n\nUser: A\n\nAssistant: C<|eos|>S\n\nUser: B\n\nAssistant:"},
        {2, &system_text, 1, NULL, "<|bos|>S\n\nAssistant:"},
        {2, begins, 2, NULL, "<|bos|>Assistant: C<|eos|>User: A\n\nAssistant:"},
        {2, &assistant_c, 1, NULL, "<|bos|>Assistant: C<|eos|>"},
        {2, &user_a, 1, "{\"add_generation_prompt\": false}", "<|bos|>User: A\n\n"},
        {N_MARKS, two_users, 2, NULL, "<|bos|><｜User｜>A<｜User｜>B<｜Assistant｜>"},
        {N_MARKS, late, 5, NULL, "<|bos|>S\n\nS<｜User｜>A<｜Assistant｜>C<|eos|><｜User｜>B<｜Assistant｜>"},
        {N_MARKS, &system_text, 1, NULL, "<|bos|>S<｜Assistant｜>"},
        {N_MARKS, &user_a, 1, "{\"thinking\": true}", "<|bos|><｜User｜>A<｜Assistant｜><think>\n"},
        {N_MARKS, &user_a, 1, "{\"thinking\": false}", "<|bos|><｜User｜>A<｜Assistant｜>"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dsv2_tokenizer *t = open_with(cases[i].n_marks, named, NULL, NULL);
        expect_text(t, (dsv2_chat){.messages = cases[i].messages, .n = cases[i].n, .variables = cases[i].variables},
                    cases[i].expected);
        const char *text;
        size_t size = 1;
        ck_assert(dsv2_chat_template(t, &text, &size) == DSV2_OK && size == 0);
        dsv2_tokenizer_close(t);
    }
}
END_TEST

START_TEST(families_forms_take_texts_alone)
{
    static const struct {
        const char *message, *words;
    } cases[] = {
        {"{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"A\"}]}", "messages[1].content is an array"},
        {"{\"role\":\"user\",\"content\":null}", "messages[1].content is null"},
        {"{\"role\":\"user\"}", "messages[1].content is missing"},
        {"{\"role\":1,\"content\":\"A\"}", "messages[1].role is an integer"},
        {"7", "messages[1].role is missing"},
        {"{\"role\":\"tool\",\"content\":\"A\"}", "role \"tool\" is none of"},
    };
    dsv2_tokenizer *t = open_with(N_MARKS, named, NULL, NULL);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char messages[256];
        snprintf(messages, sizeof messages, "[{\"role\":\"user\",\"content\":\"\"},%s]", cases[i].message);
        expect_failure(t, (dsv2_chat){.messages_json = messages}, DSV2_ERROR_ARGUMENT, cases[i].words);
    }
    dsv2_tokenizer_close(t);
}
END_TEST

/* Contents of any bytes, as dsv2_tokenizer_encode takes them. */
START_TEST(messages_may_hold_any_bytes)
{
    dsv2_tokenizer *t = open_template(in_turns);
    static const char bytes[] = {'a', '\0', '\xff', '\xc3', 'b'};
    const dsv2_message message = {"user", bytes, sizeof bytes};
    int32_t ids[32];
    char text[64];
    size_t n = prompt(t, (dsv2_chat){.messages = &message, .n = 1}, ids), size;
    ck_assert(dsv2_tokenizer_decode(t, ids, n, 0, text, sizeof text, &size) == DSV2_OK);
    ck_assert_uint_eq(size, sizeof bytes);
    ck_assert_mem_eq(text, bytes, size);
    dsv2_tokenizer_close(t);
}
END_TEST

START_TEST(wrong_arguments_are_named)
{
    dsv2_tokenizer *t = open_template(in_turns);
    const dsv2_message no_content = {"user", NULL, 3};
    const dsv2_chat good = {.messages = &user_a, .n = 1};
    static const struct {
        const char *messages, *tools, *variables, *words;
    } cases[] = {
        {"{}", NULL, NULL, "messages is an object, expected a list"},
        {"[", NULL, NULL, "messages is not valid JSON"},
        {"[]", NULL, NULL, "no message"},
        {"[{\"role\":\"user\",\"content\":\"\"}], \"x\": 1", NULL, NULL, "messages"},
        {"[{\"role\":\"user\",\"content\":\"A\"}]", "{}", NULL, "tools is an object, expected a list"},
        {"[{\"role\":\"user\",\"content\":\"A\"}]", NULL, "[]", "variables is an array, expected an object"},
        {"[{\"role\":\"user\",\"content\":\"A\"}]", NULL, "7", "variables is an integer, expected an object"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        expect_failure(t, (dsv2_chat){.messages_json = cases[i].messages, .tools = cases[i].tools,
                                      .variables = cases[i].variables}, DSV2_ERROR_ARGUMENT, cases[i].words);
    expect_failure(t, (dsv2_chat){.struct_size = 8}, DSV2_ERROR_ARGUMENT, "struct_size");
    expect_failure(t, (dsv2_chat){.n = 1}, DSV2_ERROR_ARGUMENT, "messages is NULL");
    expect_failure(t, (dsv2_chat){.messages = &no_content, .n = 1}, DSV2_ERROR_ARGUMENT, "messages[0].content is NULL");
    expect_failure(t, (dsv2_chat){.messages = &user_a, .n = 1, .flags = 4}, DSV2_ERROR_ARGUMENT, "flags is 0x4");
    expect_failure(t, (dsv2_chat){.messages = &user_a, .n = 1, .messages_json = "[]"}, DSV2_ERROR_ARGUMENT, "both");
    expect_failure(t, (dsv2_chat){0}, DSV2_ERROR_ARGUMENT, "no message");
    int32_t ids[4];
    size_t n;
    ck_assert_int_eq(dsv2_chat_prompt(NULL, &good, ids, 4, &n), DSV2_ERROR_ARGUMENT);
    ck_assert_int_eq(dsv2_chat_prompt(t, NULL, ids, 4, &n), DSV2_ERROR_ARGUMENT);
    ck_assert_int_eq(dsv2_chat_template(NULL, NULL, &n), DSV2_ERROR_ARGUMENT);
    dsv2_tokenizer_close(t);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("chat");
    TCase *tests = tcase_create("chat");
    tcase_set_timeout(tests, 120);
    tcase_add_test(tests, prompts_are_the_ids_of_jinjas_text);
    tcase_add_test(tests, of_several_templates_the_first_in_order_counts);
    tcase_add_test(tests, a_template_outside_the_subset_is_named_and_never_nearly_right);
    tcase_add_test(tests, a_template_that_refuses_says_why);
    tcase_add_test(tests, a_conversation_goes_on_without_its_past);
    tcase_add_test(tests, an_unclosed_reply_is_closed_as_the_template_closes_it);
    tcase_add_test(tests, an_open_reply_ends_with_its_own_text);
    tcase_add_test(tests, an_open_reply_whose_text_the_template_changes_is_refused);
    tcase_add_test(tests, what_templates_ask_of_names_is_as_in_jinja);
    tcase_add_test(tests, a_role_elsewhere_makes_no_token);
    tcase_add_test(tests, a_long_conversation_of_short_messages_fits);
    tcase_add_test(tests, families_have_their_forms_without_a_template);
    tcase_add_test(tests, families_forms_take_texts_alone);
    tcase_add_test(tests, messages_may_hold_any_bytes);
    tcase_add_test(tests, wrong_arguments_are_named);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}

/* Chat templates: the same text as Jinja 3.1 makes (tests/data/make_chat_templates.py), every byte with its origin, and
 * an end to whatever a template asks for. */
#include "template/template.h"
#include "support/data.h"
#include "support/oom.h"
#include "support/run.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct fixture {
    char *text;
    json_t *root;
    ds_template_word words[4];
    size_t n_words;
    int64_t now;
} fixture;

static fixture *fixture_open(void)
{
    fixture *f = calloc(1, sizeof *f);
    size_t size;
    ck_assert(f != NULL);
    f->text = data_read("chat_templates.json", &size);
    f->root = json_loadb(f->text, size, 0, NULL);
    ck_assert(f->root != NULL);
    const char *name;
    json_t *word;
    json_object_foreach(json_object_get(f->root, "words"), name, word)
        f->words[f->n_words++] = (ds_template_word){name, {json_string_value(word), json_string_length(word)}};
    f->now = json_integer_value(json_object_get(f->root, "now"));
    return f;
}

static void fixture_close(fixture *f)
{
    json_decref(f->root);
    free(f->text);
    free(f);
}

static dsv2_status render(const fixture *f, const char *text, size_t size, const json_t *variables,
                          ds_rendered *rendered)
{
    ds_template *template;
    dsv2_status status = ds_template_parse("T", text, size, &template);
    if (status != DSV2_OK)
        return status;
    status = ds_template_render(template, variables, f->words, f->n_words, f->now, rendered);
    ds_template_destroy(template);
    return status;
}

static void check_case(const fixture *f, const json_t *one)
{
    const json_t *name = json_object_get(one, "name"), *expected = json_object_get(one, "text");
    const json_t *template = name == NULL ? json_object_get(one, "template")
                                          : json_object_get(json_object_get(f->root, "templates"),
                                                            json_string_value(name));
    const json_t *variables = json_object_get(name == NULL ? f->root : one, "variables");
    ds_rendered rendered;
    dsv2_status status = render(f, json_string_value(template), json_string_length(template), variables, &rendered);
    if (expected == NULL) {
        ck_assert_msg(status == DSV2_ERROR_ARGUMENT || status == DSV2_ERROR_FORMAT || status == DSV2_ERROR_UNSUPPORTED,
                      "%s: status %d where Jinja refuses", json_string_value(template), (int)status);
        return;
    }
    ck_assert_msg(status == DSV2_OK, "%s: status %d: %s", json_string_value(template), (int)status, dsv2_last_error());
    ck_assert_msg(rendered.size == json_string_length(expected)
                      && memcmp(rendered.text, json_string_value(expected), rendered.size) == 0,
                  "%s\ngives:    %.*s\nexpected: %s", json_string_value(template), (int)rendered.size, rendered.text,
                  json_string_value(expected));
    ds_rendered_free(&rendered);
}

START_TEST(templates_give_what_jinja_gives)
{
    fixture *f = fixture_open();
    const json_t *cases = json_object_get(f->root, "cases");
    size_t index;
    json_t *one;
    ck_assert_uint_gt(json_array_size(cases), 300);
    json_array_foreach(cases, index, one)
        check_case(f, one);
    fixture_close(f);
}
END_TEST

START_TEST(what_is_outside_the_subset_is_refused_by_name_and_line)
{
    fixture *f = fixture_open();
    size_t index;
    json_t *one;
    json_array_foreach(json_object_get(f->root, "outside"), index, one) {
        char text[200];
        ds_template *template;
        int n = snprintf(text, sizeof text, "a\n{%% if never %%}%s{%% endif %%}", json_string_value(one));
        dsv2_status status = ds_template_parse("T", text, (size_t)n, &template);
        ck_assert_msg(status == DSV2_ERROR_UNSUPPORTED, "%s: status %d", text, (int)status);
        ck_assert_msg(strstr(dsv2_last_error(), "T: line 2 of the chat template") != NULL, "%s", dsv2_last_error());
    }
    fixture_close(f);
}
END_TEST

/* The data are made of z, q, Z and Q, of which no template has any: each of these bytes, and no other, is the data's.
 * */
START_TEST(every_byte_knows_who_wrote_it)
{
    static const char *const templates[] = {
        "{{ m.a }}-{{ m['a'] ~ '<e>' ~ m.b }}", "{{ m.a + '<e>' + m.b }}", "{{ (m.a + '<e>') | upper }}",
        "{{ ('  ' + m.a + ' ') | trim }}<e>", "{{ m.l | join('<e>') }}", "{{ '<e>'.join(m.l) }}",
        "{{ ('a' + m.a + 'b').replace('a', '<e>') }}", "{{ ('a' + m.a + 'b') | replace('a', m.b) }}",
        "{{ ('x,' + m.a + ',y').split(',') | join('+') }}", "{{ m.a[1:3] ~ ('(' ~ m.a ~ ')')[::-1] }}",
        "{{ [m.a, '<e>', {'k': m.b}] }}", "{% set x %}<e>{{ m.a }}</e>{% endset %}{{ x }}{{ x[2:] }}",
        "{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(m.a) }}{{ f(f(m.b)) }}",
        "{% for c in '<' ~ m.a %}[{{ c }}]{% endfor %}",
        "{{ ('<\n' ~ m.a ~ '\n') | indent(2, true) }}", "{{ (m.a ~ '</e>' ~ m.b).split('</e>')[-1].strip() }}",
        "{% set ns = namespace(x='<e>') %}{% for y in m.l %}{% set ns.x = ns.x + y %}{% endfor %}{{ ns.x }}",
        "{{ m.a if m.b else '<e>' }}{{ m.c | default('<e>') }}", "{{ m.l | map('upper') | list | last ~ '<e>' }}",
        "{{ ('<e>' ~ m.a) * 3 }}{{ (m.a ~ '.').capitalize() }}{{ ('e ' ~ m.a).title() }}",
        "{{ ('<e>' ~ m.a).removeprefix('<') }}{{ (m.a ~ '<e>').removesuffix('e>') }}",
        "{{ (m.l + ['<e>']) | reverse | join }}{{ ('<e>' ~ m.a) | string | list | join('.') }}",
    };
    fixture *f = fixture_open();
    json_t *variables = json_loads("{\"m\": {\"a\": \"zqzq\", \"b\": \"QZ\", \"l\": [\"z\", \"qq\"]}}", 0, NULL);
    ck_assert(variables != NULL);
    for (size_t i = 0; i < sizeof templates / sizeof *templates; i++) {
        ds_rendered r;
        dsv2_status status = render(f, templates[i], strlen(templates[i]), variables, &r);
        ck_assert_msg(status == DSV2_OK, "%s: %s", templates[i], dsv2_last_error());
        bool any = false;
        for (size_t k = 0; k < r.size; k++) {
            bool is_data = strchr("zqZQ", r.text[k]) != NULL;
            any = any || is_data;
            ck_assert_msg(r.origins[k] == (is_data ? 1 : 0), "%s: byte %zu of %.*s", templates[i], k, (int)r.size,
                          r.text);
        }
        ck_assert_msg(any, "%s: no data", templates[i]);
        ds_rendered_free(&r);
    }
    json_decref(variables);
    fixture_close(f);
}
END_TEST

/* What JSON and Python's notation add to a text of the data (quotes, escapes) may be either's; the text itself stays
 * the data's. */
START_TEST(a_text_stays_the_datas_in_json)
{
    static const char text[] = "{{ m | tojson }}{{ m | tojson(indent=2) }}{{ m }}";
    fixture *f = fixture_open();
    json_t *variables = json_loads("{\"m\": {\"zz\": [\"q\\n<z>\", {\"Q\": \"\\u00e9z\"}]}}", 0, NULL);
    ds_rendered r;
    ck_assert(render(f, text, sizeof text - 1, variables, &r) == DSV2_OK);
    for (size_t k = 0; k < r.size; k++)
        if (strchr("zqQ<>", r.text[k]) != NULL || (unsigned char)r.text[k] >= 0x80)
            ck_assert_msg(r.origins[k] == 1, "byte %zu of %.*s", k, (int)r.size, r.text);
    ds_rendered_free(&r);
    json_decref(variables);
    fixture_close(f);
}
END_TEST

START_TEST(whatever_a_template_asks_for_ends)
{
    static const char *const templates[] = {
        "{% for a in range(1000000000) %}x{% endfor %}",
        ("{% for a in range(9000) %}{% for b in range(9000) %}{% for c in range(9000) %}"
         "{% endfor %}{% endfor %}{% endfor %}"),
        "{% set ns = namespace(x='x') %}{% for a in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
        "{{ 'x' * 4000000000 }}", "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
        "{% macro f(x) %}{{ f(x ~ x) ~ f(x ~ x) }}{% endmacro %}{{ f('x') }}",
        "{% set l = [1] %}{% for x in l %}{% set _ = l.append(x) %}{% endfor %}",
        "{% set l = [] %}{% set _ = l.append(l) %}{{ l }}", "{% set l = [] %}{% set _ = l.append(l) %}{{ l | tojson }}",
        "{% set l = [] %}{% set _ = l.append(l) %}{{ l == [l] }}", "{{ range(1000000000) | list | length }}",
        "{{ ('x' * 100000).replace('', 'y' * 100000) }}", "{{ 'x' | indent(2000000000, true) }}",
        "{{ [] | tojson(indent=2000000000) }}{{ [1] | tojson(indent=2000000000) }}",
        "{% set s = 'a' * 3000000 %}{{ s.replace('a', 'b') | length }}", "{{ ('\"' * 9000000) | tojson }}",
    };
    fixture *f = fixture_open();
    json_t *variables = json_object();
    for (size_t i = 0; i < sizeof templates / sizeof *templates; i++) {
        ds_rendered r;
        dsv2_status status = render(f, templates[i], strlen(templates[i]), variables, &r);
        ck_assert_msg(status != DSV2_OK && status != DSV2_ERROR_MEMORY, "%s: status %d", templates[i], (int)status);
    }
    char *deep = malloc(3 * 20000 + 1);
    ck_assert(deep != NULL);
    for (int i = 0; i < 20000; i++)
        memcpy(deep + 3 * i, i < 10000 ? "{{(" : ")}}", 3);
    ds_template *template;
    ck_assert(ds_template_parse("T", deep, 60000, &template) != DSV2_OK);
    memset(deep, '(', 30000);
    memset(deep + 30000, ')', 30000);
    memcpy(deep, "{{", 2);
    memcpy(deep + 29998, "1)))", 4);
    memcpy(deep + 59998, "}}", 2);
    ck_assert(ds_template_parse("T", deep, 60000, &template) == DSV2_ERROR_UNSUPPORTED);
    for (int i = 0; i < 10000; i++)
        memcpy(deep + 2 + 4 * i, "not ", 4);
    ck_assert(ds_template_parse("T", deep, 40000, &template) != DSV2_OK);
    free(deep);
    json_decref(variables);
    fixture_close(f);
}
END_TEST

START_TEST(a_text_of_any_bytes_is_parsed_or_refused)
{
    fixture *f = fixture_open();
    const json_t *template = json_object_get(json_object_get(f->root, "templates"), "tools");
    size_t size = json_string_length(template);
    json_t *variables = json_object_get(f->root, "variables");
    for (size_t cut = 0; cut <= size; cut++) { /* every beginning */
        ds_rendered r;
        char *copy = malloc(cut + 1); /* so that the sanitizers see its end */
        ck_assert(copy != NULL);
        memcpy(copy, json_string_value(template), cut);
        if (render(f, copy, cut, variables, &r) == DSV2_OK)
            ds_rendered_free(&r);
        free(copy);
    }
    static const char *const odd[] = {"\xff", "{{ '\xff' }}", "{{ a\xc3 }}", "{% if \x01 %}", "a\0b"};
    for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) {
        ds_rendered r;
        if (render(f, odd[i], i == 4 ? 3 : strlen(odd[i]), variables, &r) == DSV2_OK)
            ds_rendered_free(&r);
    }
    fixture_close(f);
}
END_TEST

START_TEST(each_allocation_may_fail)
{
    fixture *f = fixture_open();
    const json_t *template = json_object_get(json_object_get(f->root, "templates"), "tools");
    const json_t *variables = json_object_get(json_array_get(json_object_get(f->root, "cases"),
                                                             json_array_size(json_object_get(f->root, "cases")) - 1),
                                              "variables");
    size_t n_failures = 0;
    for (size_t nth = 1; nth < 100000; nth++) {
        ds_rendered r;
        long live = oom_live();
        oom_arm(nth, false);
        dsv2_status status = render(f, json_string_value(template), json_string_length(template), variables, &r);
        bool failed = oom_disarm();
        if (status == DSV2_OK)
            ds_rendered_free(&r);
        ck_assert_msg(oom_live() == live, "allocation %zu: %ld blocks stay", nth, oom_live() - live);
        if (!failed)
            break;
        n_failures++;
        ck_assert_msg(status == DSV2_ERROR_MEMORY, "allocation %zu: status %d", nth, (int)status);
    }
    ck_assert_uint_gt(n_failures, 5);
    fixture_close(f);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("template");
    TCase *tests = tcase_create("template");
    tcase_set_timeout(tests, 120);
    tcase_add_test(tests, templates_give_what_jinja_gives);
    tcase_add_test(tests, what_is_outside_the_subset_is_refused_by_name_and_line);
    tcase_add_test(tests, every_byte_knows_who_wrote_it);
    tcase_add_test(tests, a_text_stays_the_datas_in_json);
    tcase_add_test(tests, whatever_a_template_asks_for_ends);
    tcase_add_test(tests, a_text_of_any_bytes_is_parsed_or_refused);
    if (oom_available())
        tcase_add_test(tests, each_allocation_may_fail);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}

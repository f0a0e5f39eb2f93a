/* JSON in files: parsed values take what was promised and mean what jansson says they mean. Every reader gets along
 * with the stack of a small thread. (From outside it had been found that JSON nested 2,030 deep overflows a stack of
 * 128 KiB, and that JSON of `[]`s takes 45 times its size.) */
#include "base/json.h"

#include "config/config.h"
#include "formats/formats.h"
#include "support/oom.h"
#include "support/random.h"
#include "support/run.h"
#include "support/sanitizers.h"
#include "tokenizer/tokenizer.h"
#include "unit/folder.h"
#include "unit/small_json.h"

#include <check.h>
#include <float.h>
#include <locale.h>
#include <malloc.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What another thread's locale may have left in the structure that localeconv gives to all threads. */
static char point[] = ".";

struct lconv *localeconv(void)
{
    static struct lconv left;
    left.decimal_point = point;
    return &left;
}

/* ---- memory ---- */

static size_t live, peak; /* bytes that jansson has, with malloc's own of each block */

static void *counted_malloc(size_t size)
{
    void *memory = malloc(size);
    live += malloc_usable_size(memory) + 16;
    peak = live > peak ? live : peak;
    return memory;
}

static void counted_free(void *memory)
{
    if (memory != NULL)
        live -= malloc_usable_size(memory) + 16;
    free(memory);
}

static char *repeat(const char *before, const char *unit, size_t n, const char *after)
{
    size_t size = strlen(unit), begin = strlen(before);
    char *text = malloc(begin + n * (size + 1) + strlen(after) + 1), *at = text + begin;
    memcpy(text, before, begin);
    for (size_t i = 0; i < n; i++) {
        if (i > 0)
            *at++ = ',';
        memcpy(at, unit, size);
        at += size;
    }
    strcpy(at, after);
    return text;
}

static dsv2_status parse(const char *text, const char *const *names, json_t **parsed)
{
    *parsed = NULL;
    live = peak = 0;
    return ds_json_parse("x.json", text, strlen(text), names, parsed);
}

/* Names that differ, as those of members must. */
static char *members(size_t n, const char *value)
{
    char *text = malloc(n * (strlen(value) + 16) + 16), *at = text + sprintf(text, "{");
    for (size_t i = 0; i < n; i++)
        at += sprintf(at, "%s\"%zx\":%s", i > 0 ? "," : "", i, value);
    sprintf(at, "}");
    return text;
}

START_TEST(parsed_values_take_at_most_eight_times_the_file)
{
    char *texts[] = {
        repeat("{\"a\":[", "[]", 100000, "]}"),   repeat("{\"a\":[", "{}", 100000, "]}"),
        repeat("{\"a\":[", "\"\"", 100000, "]}"), repeat("{\"a\":[", "1", 200000, "]}"),
        repeat("{\"a\":[", "1.5", 200000, "]}"),  repeat("{\"a\":[", "[[[[]]]]", 50000, "]}"),
        repeat("{\"a\":[", "NaN", 50000, "]}"),   repeat("{\"a\":[", "null", 200000, "]}"),
        members(100000, "[]"),                    members(100000, "1"),
        members(100000, "\"some longer text, of which a file is made for the most part, so that little else counts\""),
        repeat("{\"a\":[\"", "some text", 200000, "\"]}"),
    };
    static const char *const others[] = {"another", NULL};
    json_set_alloc_funcs(counted_malloc, counted_free);
    unsigned refused = 0;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        json_t *parsed;
        size_t size = strlen(texts[i]);
        dsv2_status status = parse(texts[i], NULL, &parsed);
        ck_assert_msg(peak <= DS_JSON_FACTOR * size + DS_JSON_SLACK, "text %zu of %zu bytes: %zu bytes", i, size, peak);
        ck_assert(status == DSV2_OK || status == DSV2_ERROR_UNSUPPORTED);
        if (status != DSV2_OK)
            ck_assert_msg(strstr(dsv2_last_error(), "x.json: line 1, column 1: the values would take ") != NULL, "%s",
                          dsv2_last_error());
        refused += status != DSV2_OK;
        json_decref(parsed);
        /* What nobody reads takes nothing. */
        ck_assert_int_eq(parse(texts[i], others, &parsed), DSV2_OK);
        ck_assert_uint_eq(json_object_size(parsed), 0);
        ck_assert_uint_lt(peak, DS_JSON_SLACK);
        json_decref(parsed);
        free(texts[i]);
    }
    json_set_alloc_funcs(malloc, free);
    ck_assert_uint_gt(refused, 5);
    ck_assert_uint_le(refused, sizeof texts / sizeof *texts - 2);
}
END_TEST

/* ---- meaning ---- */

static json_t *random_value(unsigned depth)
{
    static const char *const strings[] = {"", "a", "\"\\\n\x7f", "ü中🚀", "a longer string", "NaN", "1e999"};
    static const double reals[] = {0.5, -1e-300, 1e307, 123456789.25, -0.0};
    uint32_t n = random_below(5);
    json_t *value;
    switch (random_below(depth > 6 ? 5 : 7)) {
    case 0:
        return json_string(strings[random_below(7)]);
    case 1:
        return json_integer((json_int_t)(random_bits() >> random_below(64)) * (random_below(2) == 0 ? 1 : -1));
    case 2:
        return json_real(reals[random_below(5)]);
    case 3:
        return json_boolean(random_below(2));
    case 4:
        return json_null();
    case 5:
        value = json_array();
        while (n-- > 0)
            json_array_append_new(value, random_value(depth + 1));
        return value;
    default:
        value = json_object();
        while (n-- > 0)
            json_object_set_new(value, strings[random_below(6)], random_value(depth + 1));
        return value;
    }
}

/* The members of an object, read one by one. */
static void check_walk(const ds_json *json, json_t *expected)
{
    size_t n = 0;
    ds_json_string name = {0};
    ds_json_walk walk = ds_json_begin(json->text);
    for (; ds_json_next(&walk); n++) {
        json_t *value = NULL;
        int64_t number = 0;
        ck_assert_int_eq(ds_json_decode(json, walk.name, &name), DSV2_OK);
        ck_assert_int_eq(ds_json_read(json, walk.value, NULL, &value), DSV2_OK);
        ck_assert(json_equal(value, json_object_getn(expected, name.bytes, name.size)));
        ck_assert_str_eq(ds_json_kind(value), ds_json_text_kind(walk.value));
        ck_assert_int_eq(ds_json_is_integer(walk.value, &number), json_is_integer(value));
        ck_assert(number == json_integer_value(value));
        json_decref(value);
    }
    ck_assert_uint_eq(n, json_object_size(expected));
    ds_free(name.bytes);
}

START_TEST(values_are_those_that_jansson_reads)
{
    random_begin(77 + (unsigned)_i);
    for (unsigned round = 0; round < 400; round++) {
        json_t *object = json_object(), *read = NULL;
        for (uint32_t n = random_below(5); n > 0; n--)
            json_object_set_new(object, (char[]){(char)('a' + (char)n), '\0'}, random_value(0));
        static const size_t styles[] = {JSON_COMPACT, JSON_INDENT(2), JSON_ENSURE_ASCII, 0};
        char *text = json_dumps(object, styles[random_below(4)]);
        ds_json json;
        ck_assert_msg(ds_json_check("x.json", text, strlen(text), &json) == DSV2_OK, "%s", dsv2_last_error());
        json_t *expected = json_loads(text, 0, NULL);
        ck_assert_msg(ds_json_read(&json, json.text, NULL, &read) == DSV2_OK, "%s: %s", dsv2_last_error(), text);
        ck_assert(json_equal(read, expected));
        check_walk(&json, expected);
        json_decref(expected);
        json_decref(read);
        json_decref(object);
        free(text);
    }
}
END_TEST

START_TEST(a_name_in_escapes_is_a_name)
{
    static const char *const names[] = {"abc", NULL};
    json_t *parsed;
    ck_assert_int_eq(parse("{\"\\u0061bc\":[1],\"x\":NaN,\"abcd\":3}", names, &parsed), DSV2_OK);
    ck_assert_uint_eq(json_object_size(parsed), 1);
    ck_assert_uint_eq(json_array_size(json_object_get(parsed, "abc")), 1);
    json_decref(parsed);
    ck_assert_int_eq(parse("{\n\"x\":1,\n \"abc\":2,\"a\\u0062c\":3}", names, &parsed), DSV2_ERROR_FORMAT);
    ck_assert_msg(strstr(dsv2_last_error(), "line 3, column 10: not valid JSON: duplicate object key") != NULL, "%s",
                  dsv2_last_error());
    ck_assert_int_eq(parse("{\"abc\":\"\\u0000\"}", names, &parsed), DSV2_ERROR_FORMAT);
    static const char *const escaped[] = {"ü\"🚀", NULL};
    ck_assert_int_eq(parse("{\"\\u00fc\\\"\\ud83d\\ude80\":1}", escaped, &parsed), DSV2_OK);
    ck_assert_uint_eq(json_object_size(parsed), 1);
    json_decref(parsed);
    static const char text[] = "{\"\\u0061bc\":[1],\"ab\":2,\"abc\\u0064\":3}";
    ds_json json;
    ds_text value;
    ck_assert_int_eq(ds_json_check("x.json", text, strlen(text), &json), DSV2_OK);
    ck_assert_int_eq(ds_json_find(&json, json.text, 1, names, &value), DSV2_OK);
    ck_assert(value.size == 3 && memcmp(value.data, "[1]", 3) == 0);
}
END_TEST

START_TEST(a_name_that_is_no_text_stops_nothing)
{
    static const char *const names[] = {"abc", NULL};
    static const char *const others[] = {"\\ud800", "\\udc00\\ud800", "\\u0000", "abc\\u0000", "a\\ud800bc"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        char text[100];
        json_t *parsed;
        sprintf(text, "{\"%s\":1,\"abc\":2,\"%s\":3}", others[i], others[i]);
        ck_assert_msg(parse(text, names, &parsed) == DSV2_OK, "%s: %s", text, dsv2_last_error());
        ck_assert(json_object_size(parsed) == 1 && json_integer_value(json_object_get(parsed, "abc")) == 2);
        json_decref(parsed);
        ck_assert_int_eq(parse(text, NULL, &parsed), DSV2_ERROR_FORMAT);
    }
}
END_TEST

START_TEST(numbers_are_read_whatever_another_threads_locale_is)
{
    json_t *parsed;
    point[0] = ',';
    ck_assert_int_eq(parse("{\"a\":0.707,\"b\":-12.5e-1}", NULL, &parsed), DSV2_OK);
    ck_assert(json_real_value(json_object_get(parsed, "a")) == 0.707);
    ck_assert(json_real_value(json_object_get(parsed, "b")) == -1.25);
    json_decref(parsed);
    point[0] = '.';
}
END_TEST

/* All doubles, in all forms: "0.000125", "1250000.0", "1.25e-4". */
START_TEST(every_number_comes_back_exactly)
{
    static const char *const formats[] = {"{\"a\":%.17g,\"b\":1}", "{\"a\":%.16e}", "{\"a\":%.16E,\"b\":1}",
                                          "{\"a\":%.20f,\"b\":1}"};
    static const struct {
        const char *text;
        double value;
    } others[] = {
        {"{\"a\":1e999}", DBL_MAX},
        {"{\"a\":-1e99999999999999999999}", -DBL_MAX},
        {"{\"a\":-1e-99999999999999999999}", 0},
        {"{\"a\":0.0e99999999999999999999}", 0},
        {"{\"a\":1E+2}", 100},
        {"{\"a\":100.00e-2}", 1},
        {"{\"a\":2.4703282292062328e-324}", 0x1p-1074},
        {"{\"a\":0.30000000000000004}", 0.1 + 0.2},
    };
    json_t *parsed;
    random_begin(5);
    for (int i = 0; i < 20000; i++) {
        uint64_t bits = random_bits();
        double value;
        char text[800];
        memcpy(&value, &bits, sizeof value);
        if (!isfinite(value))
            continue;
        if (i % 4 == 3)
            value = (double)(int32_t)random_bits() / 0x1p20; /* few digits in front of the point, all behind it */
        sprintf(text, formats[i % 4], value);
        ck_assert_msg(parse(text, NULL, &parsed) == DSV2_OK, "%s: %s", text, dsv2_last_error());
        ck_assert_msg(json_number_value(json_object_get(parsed, "a")) == value, "%s", text);
        json_decref(parsed);
    }
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        ck_assert_int_eq(parse(others[i].text, NULL, &parsed), DSV2_OK);
        ck_assert_msg(json_real_value(json_object_get(parsed, "a")) == others[i].value, "%s", others[i].text);
        json_decref(parsed);
    }
}
END_TEST

/* ---- no memory ---- */

/* jansson's parser, which was used before, writes outside its buffer when that cannot grow by a string's last quote. */
START_TEST(running_out_of_memory_in_a_string_of_any_length_is_a_status)
{
    enum { LONGEST = 300 };
    char text[2 * LONGEST + 100], letters[LONGEST + 1];
    memset(letters, 'x', LONGEST);
    for (int length = 0; length <= LONGEST; length++) {
        sprintf(text, "{\"%.*s\":[{\"a\":\"%.*s\\n\"},1.5]}", length, letters, length, letters);
        json_t *parsed;
        long before = oom_live();
        dsv2_status status = DSV2_ERROR_MEMORY;
        for (size_t nth = 1; status != DSV2_OK; nth++) {
            oom_arm(nth, length % 2 == 0);
            status = ds_json_parse("x.json", text, strlen(text), NULL, &parsed);
            bool failed = oom_disarm();
            ck_assert_int_eq(status, failed ? DSV2_ERROR_MEMORY : DSV2_OK);
            if (status == DSV2_OK)
                json_decref(parsed);
            ck_assert_int_eq(oom_live(), before);
        }
    }
}
END_TEST

/* ---- a small stack ---- */

#if TEST_SANITIZED || !defined(__OPTIMIZE__)
enum { STACK = 256 << 10 }; /* frames are larger */
#else
enum { STACK = 64 << 10 };
#endif

/* "[[[...]]]" of this depth. */
static char *nested(size_t depth)
{
    char *text = malloc(2 * depth + 1);
    memset(text, '[', depth);
    memset(text + depth, ']', depth);
    text[2 * depth] = '\0';
    return text;
}

static void write_text(const char *name, const char *text) { folder_write(name, text, strlen(text)); }

static void write_header(const char *name, const char *json)
{
    char file[4096];
    size_t size = strlen(json);
    memset(file, 0, 8);
    ds_write_u64(file, size);
    memcpy(file + 8, json, size);
    folder_write(name, file, 8 + size);
}

/* Every reader with the deepest JSON that is allowed, where it is read. */
static void *read_all(void *unused)
{
    (void)unused;
    char *deep = nested(DS_JSON_DEPTH - 3), text[4096];
    json_t *parsed;
    ds_config config;
    ds_container *container;
    dsv2_tokenizer *tokenizer;
    sprintf(text, "{\"a\":[[%s]]}", deep);
    ck_assert_int_eq(parse(text, NULL, &parsed), DSV2_OK);
    json_decref(parsed);
    sprintf(text, "{\"a\":[[[%s]]]}", deep);
    ck_assert_int_eq(parse(text, NULL, &parsed), DSV2_ERROR_FORMAT);
    sprintf(text, "{\"model_type\":\"deepseek_v2\",\"rope_scaling\":{\"type\":%s}}", deep);
    ck_assert_int_eq(ds_config_from_json("config.json", text, strlen(text), NULL, &config), DSV2_ERROR_FORMAT);
    sprintf(text, "{\"w\":{\"dtype\":\"F32\",\"shape\":%s,\"data_offsets\":[0,0]}}", deep);
    write_header("model.safetensors", text);
    ck_assert_int_eq(ds_safetensors_open(folder_path(), NULL, &container), DSV2_ERROR_FORMAT);
    ck_assert_ptr_nonnull(strstr(dsv2_last_error(), "tensor w: shape holds an array"));
    sprintf(text, "{\"weight_map\":{\"w\":%s}}", deep);
    write_text("model.safetensors.index.json", text);
    ck_assert_int_eq(ds_safetensors_open(folder_path(), NULL, &container), DSV2_ERROR_FORMAT);
    ck_assert_ptr_nonnull(strstr(dsv2_last_error(), "tensor w is in an array"));
    /* The library's own expressions, and one with as many groups in one another as are allowed. */
    char groups[512] = "";
    for (unsigned i = 0; i < 16; i++)
        strcat(groups, "(?:a*");
    for (unsigned i = 0; i < 16; i++)
        strcat(groups, ")?");
    char *pre[2] = {malloc(2048), NULL};
    sprintf(pre[0],
            "{\"type\":\"Sequence\",\"pretokenizers\":["
            "{\"type\":\"Split\",\"behavior\":\"Isolated\",\"pattern\":{\"Regex\":\"%s\"}},"
            "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true}]}", groups);
    char *unread = malloc(strlen(deep) + 100);
    sprintf(unread, ",\"post_processor2\":%s", deep);
    for (unsigned i = 0; i < 2; i++) {
        char *json = small_json(&(small_parts){.pre_tokenizer = pre[i], .root = unread});
        write_text("tokenizer.json", json);
        sprintf(text, "{\"chat_template\":[%s]}", deep);
        write_text("tokenizer_config.json", text);
        ck_assert_msg(dsv2_tokenizer_open(folder_path(), &tokenizer) == DSV2_OK, "%s", dsv2_last_error());
        char *long_text = malloc(1 << 20);
        memset(long_text, 'a', 1 << 20);
        size_t n;
        dsv2_status status = dsv2_tokenizer_encode(tokenizer, long_text, 1 << 20, 0, NULL, 0, &n);
        ck_assert(status == DSV2_OK || (i == 0 && status == DSV2_ERROR_UNSUPPORTED));
        ck_assert_int_eq(dsv2_tokenizer_encode(tokenizer, "it's 12 apples\n\n", 15, 0, NULL, 0, &n), DSV2_OK);
        dsv2_tokenizer_close(tokenizer);
        free(long_text);
        free(json);
    }
    free(unread);
    free(pre[0]);
    free(deep);
    return NULL;
}

START_TEST(every_reader_fits_a_small_stack)
{
    folder_make();
    pthread_attr_t attributes;
    pthread_t thread;
    pthread_attr_init(&attributes);
    ck_assert_int_eq(pthread_attr_setstacksize(&attributes, STACK), 0);
    ck_assert_int_eq(pthread_create(&thread, &attributes, read_all, NULL), 0);
    pthread_join(thread, NULL);
    pthread_attr_destroy(&attributes);
    folder_remove();
}
END_TEST

int main(void)
{
    TCase *tests = tcase_create("json");
    tcase_set_timeout(tests, 120);
    tcase_add_test(tests, parsed_values_take_at_most_eight_times_the_file);
    tcase_add_loop_test(tests, values_are_those_that_jansson_reads, 0, 4);
    tcase_add_test(tests, a_name_in_escapes_is_a_name);
    tcase_add_test(tests, a_name_that_is_no_text_stops_nothing);
    tcase_add_test(tests, numbers_are_read_whatever_another_threads_locale_is);
    tcase_add_test(tests, every_number_comes_back_exactly);
    tcase_add_test(tests, every_reader_fits_a_small_stack);
    if (oom_available())
        tcase_add_test(tests, running_out_of_memory_in_a_string_of_any_length_is_a_status);
    Suite *suite = suite_create("json");
    suite_add_tcase(suite, tests);
    return test_run(suite);
}

/* GGUF: what is in a good file is found, and every bad file is refused with a message that says where and why. Block
 * types become the floats that other readers give. */
#include "folder.h"
#include "opening.h"
#include "script.h"

#include "formats/container.h"
#include "support/model.h"
#include "support/run.h"
#include "support/tensors.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static ds_container *open_good(const char *name) { return expect_opened(ds_gguf_open, name); }

static void expect_refused(const char *name, dsv2_status expected, const char *part)
{
    expect_refusal(ds_gguf_open, name, expected, part);
}

/* tensors, values */
#define HEAD(t, k) "b:GGUF 4:3 8:" t " 8:" k " "
/* name, dimensions and type as in the file, offset */
#define VECTOR(name, n, type, offset)          "s:" name " 4:1 8:" n " 4:" type " 8:" offset " "
#define MATRIX(name, cols, rows, type, offset) "s:" name " 4:2 8:" cols " 8:" rows " 4:" type " 8:" offset " "

/* ---- good files ---- */

static const char good[] =
    HEAD("7", "4") "s:general.architecture 4:8 s:deepseek2 "
                   "s:general.alignment 4:4 4:64 "
                   "s:flag 4:7 1:1 "
                   "s:list 4:9 4:8 8:2 s:x s:yz " MATRIX("w", "3", "2", "0", "0") VECTOR("h", "5", "1", "64")
                       MATRIX("q", "64", "2", "8", "128") "s:cube 4:3 8:2 8:3 8:4 4:30 8:320 "
                       VECTOR("odd", "256", "22", "384")
                           VECTOR("ids", "2", "26", "512") VECTOR("future", "7", "99", "576") "pad:64 n:584";

START_TEST(tensors_are_typed_and_their_dimensions_turned)
{
    script_write("a.gguf", good);
    ck_assert(ds_is_gguf(folder_file("a.gguf")));
    ds_container *container = open_good("a.gguf");
    static const struct {
        const char *name;
        ds_type type;
        uint32_t n_dims;
        uint64_t dims[3], n_bytes, offset;
    } expected[] = {{"cube", DS_TYPE_BF16, 3, {4, 3, 2}, 48, 320},
                    {"h", DS_TYPE_F16, 1, {5, 0, 0}, 10, 64},
                    {"q", DS_TYPE_Q8_0, 2, {2, 64, 0}, 136, 128},
                    {"w", DS_TYPE_F32, 2, {2, 3, 0}, 24, 0}};
    ck_assert(ds_container_format(container) == DS_FORMAT_GGUF);
    ck_assert_uint_eq(ds_container_count(container), 4);
    const unsigned char *data = ds_container_find(container, "w")->data;
    for (size_t i = 0; i < 4; i++) {
        const ds_tensor *tensor = ds_container_tensor(container, i);
        ck_assert_str_eq(tensor->name, expected[i].name);
        ck_assert_int_eq(tensor->type, expected[i].type);
        ck_assert_uint_eq(tensor->n_dims, expected[i].n_dims);
        for (uint32_t d = 0; d < tensor->n_dims; d++)
            ck_assert_uint_eq(tensor->dims[d], expected[i].dims[d]);
        ck_assert_uint_eq(tensor->n_bytes, expected[i].n_bytes);
        ck_assert_ptr_eq(tensor->data, data + expected[i].offset);
        ck_assert_uint_eq(*(const unsigned char *)tensor->data, (expected[i].offset + 1) & 255);
    }
    ds_container_close(container);
}
END_TEST

START_TEST(an_unread_type_is_an_error_only_when_asked_for)
{
    script_write("a.gguf", good);
    ds_container *container = open_good("a.gguf");
    static const char *const cases[][2] = {{"odd", "tensor odd has element type IQ2_S"},
                                           {"ids", "tensor ids has element type I32"},
                                           {"future", "tensor future has element type 99 (unknown)"}};
    const ds_tensor *tensor;
    for (size_t i = 0; i < 3; i++) {
        ck_assert_int_eq(ds_container_require(container, cases[i][0], &tensor), DSV2_ERROR_UNSUPPORTED);
        expect_message(cases[i][1]);
        expect_message(folder_file("a.gguf"));
    }
    ck_assert_int_eq(ds_container_require(container, "absent", &tensor), DSV2_ERROR_FORMAT);
    ds_container_close(container);
}
END_TEST

START_TEST(version_2_is_read_as_version_3)
{
    script_write("a.gguf", "b:GGUF 4:2 8:1 8:0 " VECTOR("v", "1", "0", "0") "pad:32 f:2.5");
    ds_container *container = open_good("a.gguf");
    ck_assert(*(const float *)ds_container_find(container, "v")->data == 2.5f);
    ds_container_close(container);
}
END_TEST

/* Writes a file of one value, "long", a text of so many bytes, and one tensor, "v". */
static void write_long(uint64_t length)
{
    static const uint8_t start[] = "GGUF\3\0\0\0\1\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0\4\0\0\0\0\0\0\0long\10\0\0";
    static const uint8_t tensor[] = "\1\0\0\0\0\0\0\0v\1\0\0\0\1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    enum { LENGTH = sizeof start, TEXT = LENGTH + 8 };
    size_t info = TEXT + (size_t)length, data = (info + sizeof tensor + 31) / 32 * 32;
    uint8_t *file = calloc(data + sizeof(float), 1);
    memcpy(file, start, sizeof start);
    memcpy(file + LENGTH, &length, sizeof length);
    memset(file + TEXT, 'x', (size_t)length);
    memcpy(file + info, tensor, sizeof tensor);
    memcpy(file + data, &(float){2.5f}, sizeof(float));
    test_write_file(folder_file("a.gguf"), file, data + sizeof(float));
    free(file);
}

START_TEST(a_head_of_any_length_is_read)
{
    static const uint64_t lengths[] = {0, (2 << 20) - 49, (2 << 20) - 48, (2 << 20) - 20, 3 << 20, 9 << 20, 40 << 20};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        write_long(lengths[i]);
        ds_container *container = open_good("a.gguf");
        ds_text text;
        ck_assert_int_eq(ds_gguf_string(container, "long", &text), DSV2_OK);
        ck_assert_uint_eq(text.size, lengths[i]);
        ck_assert(text.size == 0 || (text.data[0] == 'x' && text.data[text.size - 1] == 'x'));
        ck_assert_uint_eq(ds_container_count(container), 1);
        ck_assert(*(const float *)ds_container_find(container, "v")->data == 2.5f);
        ds_container_close(container);
    }
}
END_TEST

/* Nothing of it is read. */
START_TEST(a_head_of_more_than_256_mib_is_refused)
{
    write_long(64);
    FILE *file = fopen(folder_file("a.gguf"), "r+b");
    const uint64_t length = 300 << 20;
    ck_assert(fseek(file, 40, SEEK_SET) == 0 && fwrite(&length, sizeof length, 1, file) == 1);
    fclose(file);
    ck_assert(truncate(folder_file("a.gguf"), 400 << 20) == 0);
    expect_refused("a.gguf", DSV2_ERROR_FORMAT, "expected at most 268435456");
}
END_TEST

static const char values[] =
    HEAD("0", "20") "s:u8 4:0 1:200 s:i8 4:1 1:127 s:u16 4:2 2:65535 s:i16 4:3 2:32767 s:u32 4:4 "
                    "4:4294967295 s:i32 4:5 4:7 s:u64 4:10 8:9 s:i64 4:11 8:10 "
                    "s:minus8 4:1 1:255 s:minus16 4:3 2:65535 s:minus32 4:5 4:4294967295 s:minus64 4:11 "
                    "8:18446744073709551615 s:big 4:10 8:4294967296 "
                    "s:f32 4:6 f:1.5 s:f64 4:12 d:0.25 s:true 4:7 1:1 s:text 4:8 s:words "
                    "s:bytes 4:9 4:0 8:3 1:1 1:2 1:3 s:ints 4:9 4:5 8:2 4:5 4:6 s:floats 4:9 4:6 8:1 f:3";

START_TEST(metadata_is_given_by_key_and_type)
{
    script_write("a.gguf", values);
    ds_container *c = open_good("a.gguf");
    static const struct {
        const char *key;
        uint32_t value;
    } integers[] = {{"u8", 200},         {"i8", 127}, {"u16", 65535}, {"i16", 32767},
                    {"u32", UINT32_MAX}, {"i32", 7},  {"u64", 9},     {"i64", 10}};
    uint32_t number;
    for (size_t i = 0; i < sizeof integers / sizeof *integers; i++) {
        ck_assert(ds_gguf_has(c, integers[i].key));
        ck_assert_int_eq(ds_gguf_u32(c, integers[i].key, &number), DSV2_OK);
        ck_assert_uint_eq(number, integers[i].value);
    }
    float real;
    bool flag = false;
    ds_text text;
    const void *array;
    size_t n;
    ck_assert(ds_gguf_f32(c, "f32", &real) == DSV2_OK && real == 1.5f);
    ck_assert(ds_gguf_f32(c, "f64", &real) == DSV2_OK && real == 0.25f);
    ck_assert(ds_gguf_bool(c, "true", &flag) == DSV2_OK && flag);
    ck_assert(ds_gguf_string(c, "text", &text) == DSV2_OK && text.size == 5 && memcmp(text.data, "words", 5) == 0);
    ck_assert(ds_gguf_array(c, "bytes", DS_GGUF_U8, &array, &n) == DSV2_OK && n == 3 &&
              memcmp(array, "\1\2\3", 3) == 0);
    ck_assert(ds_gguf_array(c, "ints", DS_GGUF_I32, &array, &n) == DSV2_OK && n == 2 &&
              ds_read_u32((const char *)array + 4) == 6);
    ck_assert(ds_gguf_array(c, "floats", DS_GGUF_F32, &array, &n) == DSV2_OK && n == 1);
    ck_assert(!ds_gguf_has(c, "tex"));
    ck_assert(!ds_gguf_has(c, "textual"));
    ds_container_close(c);

    script_write("b.gguf", good);
    c = open_good("b.gguf");
    ds_text *texts;
    ck_assert_int_eq(ds_gguf_strings(c, "list", &texts, &n), DSV2_OK);
    ck_assert(n == 2 && texts[0].size == 1 && texts[0].data[0] == 'x' && texts[1].size == 2 &&
              memcmp(texts[1].data, "yz", 2) == 0);
    ds_free(texts);
    ds_container_close(c);
}
END_TEST

START_TEST(a_value_of_another_type_is_refused_by_key_found_and_expected)
{
    script_write("a.gguf", values);
    ds_container *c = open_good("a.gguf");
    uint32_t number;
    float real;
    bool flag;
    ds_text text, *texts;
    const void *array;
    size_t n;
    static const char *const integers[][2] = {
        {"none", "key none is missing, expected an integer"},
        {"f32", "key f32 is of type f32, expected an integer"},
        {"text", "key text is of type string, expected an integer"},
        {"ints", "key ints is of type array of i32, expected an integer"},
        {"true", "key true is of type bool, expected an integer"},
        {"minus8", "key minus8 is negative"},
        {"minus16", "key minus16 is negative"},
        {"minus32", "key minus32 is negative"},
        {"minus64", "key minus64 is negative"},
        {"big", "key big is 4294967296, expected at most 4294967295"},
    };
    for (size_t i = 0; i < sizeof integers / sizeof *integers; i++) {
        ck_assert_int_eq(ds_gguf_u32(c, integers[i][0], &number), DSV2_ERROR_FORMAT);
        expect_message(integers[i][1]);
        expect_message(folder_file("a.gguf"));
    }
    ck_assert_int_eq(ds_gguf_f32(c, "u32", &real), DSV2_ERROR_FORMAT);
    expect_message("key u32 is of type u32, expected f32 or f64");
    ck_assert_int_eq(ds_gguf_bool(c, "u8", &flag), DSV2_ERROR_FORMAT);
    expect_message("key u8 is of type u8, expected bool");
    ck_assert_int_eq(ds_gguf_string(c, "bytes", &text), DSV2_ERROR_FORMAT);
    expect_message("key bytes is of type array of u8, expected string");
    ck_assert_int_eq(ds_gguf_strings(c, "ints", &texts, &n), DSV2_ERROR_FORMAT);
    expect_message("key ints is of type array of i32, expected array of string");
    ck_assert_int_eq(ds_gguf_array(c, "bytes", DS_GGUF_I32, &array, &n), DSV2_ERROR_FORMAT);
    expect_message("key bytes is of type array of u8, expected array of i32");
    ck_assert_int_eq(ds_gguf_array(c, "text", DS_GGUF_F32, &array, &n), DSV2_ERROR_FORMAT);
    expect_message("key text is of type string, expected array of f32");
    ds_container_close(c);
}
END_TEST

/* ---- bad files ---- */

#define HUGE64 "18446744073709551615"

static const struct {
    const char *script, *part;
    dsv2_status status;
} bad[] = {
    {"", "the header at byte 0 takes 24 bytes, but 0 are left", DSV2_ERROR_FORMAT},
    {"b:GGUF 4:3", "the header at byte 0 takes 24 bytes", DSV2_ERROR_FORMAT},
    {"b:GGML 4:3 8:0 8:0", "magic is not", DSV2_ERROR_FORMAT},
    {"b:GGUF 4:1 8:0 8:0", "version is 1", DSV2_ERROR_UNSUPPORTED},
    {"b:GGUF 4:4 8:0 8:0", "version is 4", DSV2_ERROR_UNSUPPORTED},
    {"b:GGUF 4:0x03000000 8:0 8:0", "in little-endian byte order", DSV2_ERROR_UNSUPPORTED},
    /* counts */
    {HEAD("0", HUGE64), "metadata count is " HUGE64, DSV2_ERROR_FORMAT},
    {HEAD("0", "1000") "n:100", "metadata count is 1000", DSV2_ERROR_FORMAT},
    {HEAD(HUGE64, "0"), "tensor count is " HUGE64, DSV2_ERROR_FORMAT},
    {HEAD("0x100000001", "0") VECTOR("v", "1", "0", "0") "pad:32 f:1", "tensor count is 4294967297", DSV2_ERROR_FORMAT},
    {HEAD("0", "1") "s:k 4:4 ", "value of k at byte 37 takes 4 bytes, but 0 are left", DSV2_ERROR_FORMAT},
    {HEAD("0", "1") "s:key 4:4 4:1 s:no ", "", DSV2_OK},
    /* strings */
    {HEAD("0", "1") "8:" HUGE64 " n:40", "a key at byte 32 takes " HUGE64 " bytes, but 40 are left", DSV2_ERROR_FORMAT},
    {HEAD("0", "1") "8:0x100000003 b:key 4:4 4:1", "a key at byte 32 takes 4294967299 bytes", DSV2_ERROR_FORMAT},
    {HEAD("0", "1") "s: 4:4 4:1", "a key at byte 24 has 0 bytes, expected 1 to 65535", DSV2_ERROR_FORMAT},
    {HEAD("0", "1") "8:3 1:97 1:0 1:98 4:4 4:1", "none of them zero", DSV2_ERROR_FORMAT},
    {HEAD("0", "1") "s:key 4:8 8:" HUGE64 " n:9", "value of key at byte 47 takes " HUGE64 " bytes", DSV2_ERROR_FORMAT},
    {HEAD("0", "1") "s:key 4:8 8:9223372036854775808 n:9", "value of key at byte 47 takes 9223372036854775808",
     DSV2_ERROR_FORMAT},
    /* types of values */
    {HEAD("0", "1") "s:key 4:13 8:0", "value of key has type 13, expected 0 to 12", DSV2_ERROR_FORMAT},
    {HEAD("0", "1") "s:key 4:"
                    "4294967295 8:0",
     "value of key has type 4294967295", DSV2_ERROR_FORMAT},
    {HEAD("0", "1") "s:key 4:7 1:2", "value of key is 2, expected 0 or 1", DSV2_ERROR_FORMAT},
    {HEAD("0", "1") "s:key 4:10 4:1", "value of key at byte 39 takes 8 bytes, but 4 are left", DSV2_ERROR_FORMAT},
    /* arrays */
    {HEAD("0", "1") "s:key 4:9 4:9 8:1 4:4 8:0", "value of key is an array of type 9", DSV2_ERROR_FORMAT},
    {HEAD("0", "1") "s:key 4:9 4:77 8:1 8:0", "value of key is an array of type 77", DSV2_ERROR_FORMAT},
    {HEAD("0", "1") "s:key 4:9 4:4 8:0x4000000000000001 4:0", "value of key at byte 51 takes 18446744073709551615",
     DSV2_ERROR_FORMAT},
    {HEAD("0", "1") "s:key 4:9 4:10 8:0x2000000000000000 4:0", "value of key at byte 51 takes 18446744073709551615",
     DSV2_ERROR_FORMAT},
    {HEAD("0", "1") "s:key 4:9 4:0 8:5 n:4", "value of key at byte 51 takes 5 bytes, but 4 are left",
     DSV2_ERROR_FORMAT},
    {HEAD("0", "1") "s:key 4:9 4:8 8:" HUGE64 " s:a s:b", "value of key at byte 69 takes 8 bytes, but 0 are left",
     DSV2_ERROR_FORMAT},
    {HEAD("0", "1") "s:key 4:9 4:8 8:2 s:a 8:" HUGE64, "value of key at byte 68 takes " HUGE64, DSV2_ERROR_FORMAT},
    {HEAD("0", "2") "s:key 4:4 4:1 s:key 4:4 4:1", "key key is there twice", DSV2_ERROR_FORMAT},
    /* alignment */
    {HEAD("0", "1") "s:general.alignment 4:4 4:0", "key general.alignment is 0, expected a power of two",
     DSV2_ERROR_FORMAT},
    {HEAD("0", "1") "s:general.alignment 4:4 4:24", "key general.alignment is 24", DSV2_ERROR_FORMAT},
    {HEAD("0", "1") "s:general.alignment 4:4 4:0x80000000", "key general.alignment is 2147483648", DSV2_ERROR_FORMAT},
    {HEAD("0", "1") "s:general.alignment 4:10 8:0x8000000000000000", "key general.alignment is 9223372036854775808",
     DSV2_ERROR_FORMAT},
    {HEAD("0", "1") "s:general.alignment 4:8 s:32", "key general.alignment is of type string", DSV2_ERROR_FORMAT},
    /* tensors */
    {HEAD("1", "0") "s: 4:0 4:0 8:0 n:9", "a tensor's name at byte 24 has 0 bytes", DSV2_ERROR_FORMAT},
    {HEAD("1", "0") "8:" HUGE64 " n:40", "a tensor's name at byte 32 takes " HUGE64, DSV2_ERROR_FORMAT},
    {HEAD("1", "0") "s:v 4:5 8:1 8:1 8:1 8:1 8:1 4:0 8:0 pad:32 f:1", "tensor v has 5 dimensions, expected at most 4",
     DSV2_ERROR_FORMAT},
    {HEAD("1", "0") "s:v 4:"
                    "4294967295 4:0 8:0 n:40",
     "tensor v has 4294967295 dimensions", DSV2_ERROR_FORMAT},
    {HEAD("1", "0") "s:v 4:2 8:1 8:1 4:0", "tensor v at byte 57 takes 8 bytes, but 0 are left", DSV2_ERROR_FORMAT},
    {HEAD("1", "0") MATRIX("v", "0x4000000000000000", "1", "0", "0") "pad:32",
     "tensor v has dimensions whose product is beyond", DSV2_ERROR_FORMAT},
    {HEAD("1", "0") MATRIX("v", "0x100000000", "0x100000000", "0", "0") "pad:32",
     "tensor v has dimensions whose product", DSV2_ERROR_FORMAT},
    {HEAD("1", "0") "s:v 4:4 8:65536 8:65536 8:65536 8:65537 4:24 8:0 pad:32", "tensor v has dimensions whose product",
     DSV2_ERROR_FORMAT},
    {HEAD("1", "0") VECTOR("v", "3", "0", "0") "pad:32 n:11",
     "tensor v has offset 0 and 12 bytes, which is beyond the file's end", DSV2_ERROR_FORMAT},
    {HEAD("1", "0") VECTOR("v", "1", "0", "32") "pad:32 n:32", "tensor v has offset 32 and 4 bytes", DSV2_ERROR_FORMAT},
    {HEAD("1", "0") VECTOR("v", "1", "0", "18446744073709551584") "pad:32 n:32",
     "tensor v has offset 18446744073709551584", DSV2_ERROR_FORMAT},
    {HEAD("1", "0") VECTOR("v", "1", "0", "4") "pad:32 n:32",
     "tensor v has offset 4, expected a multiple of the alignment, 32", DSV2_ERROR_FORMAT},
    {HEAD("1", "0") VECTOR("v", "33", "8", "0") "pad:32 n:68",
     "tensor v has rows of 33 elements, expected a multiple of 32, the block size of Q8_0", DSV2_ERROR_FORMAT},
    {HEAD("1", "0") MATRIX("v", "128", "2", "12", "0") "pad:32 n:144",
     "tensor v has rows of 128 elements, expected a multiple of 256", DSV2_ERROR_FORMAT},
    {HEAD("1", "0") VECTOR("v", "7", "99", "64") "pad:32 n:63", "tensor v has offset 64 and 0 bytes",
     DSV2_ERROR_FORMAT},
    {HEAD("2", "0") VECTOR("v", "9", "0", "0") VECTOR("u", "1", "0", "32") "pad:32 n:64",
     "tensor u begins inside tensor v", DSV2_ERROR_FORMAT},
    {HEAD("2", "0") VECTOR("v", "1", "0", "0") VECTOR("u", "1", "0", "0") "pad:32 n:64", " begins inside tensor ",
     DSV2_ERROR_FORMAT},
    {HEAD("2", "0") VECTOR("v", "1", "0", "0") VECTOR("v", "1", "0", "32") "pad:32 n:64", "tensor v is there twice",
     DSV2_ERROR_FORMAT},
    {HEAD("2", "0") VECTOR("v", "1", "0", "0") VECTOR("v", "1", "26", "32") "pad:32 n:64", "tensor v is there twice",
     DSV2_ERROR_FORMAT},
};

START_TEST(a_bad_file_is_refused_by_key_or_tensor_and_value)
{
    script_write("bad.gguf", bad[_i].script);
    if (bad[_i].status == DSV2_OK)
        ds_container_close(open_good("bad.gguf"));
    else
        expect_refused("bad.gguf", bad[_i].status, bad[_i].part);
}
END_TEST

START_TEST(a_file_cut_anywhere_is_refused)
{
    script_write("whole.gguf", good);
    struct stat whole;
    ck_assert_int_eq(stat(folder_file("whole.gguf"), &whole), 0);
    for (off_t size = 0; size < whole.st_size; size += size < 300 || size > whole.st_size - 20 ? 1 : 17) {
        script_write("cut.gguf", good);
        ck_assert_int_eq(truncate(folder_file("cut.gguf"), size), 0);
        /* the last tensor's type is unknown: nothing says how long it is */
        if (size >= whole.st_size - 8)
            ds_container_close(open_good("cut.gguf"));
        else
            expect_refused("cut.gguf", DSV2_ERROR_FORMAT, "");
    }
}
END_TEST

START_TEST(what_is_no_regular_file_is_refused)
{
    ck_assert_int_eq(mkdir(folder_file("folder.gguf"), 0700), 0);
    ck_assert_int_eq(mkfifo(folder_file("fifo.gguf"), 0600), 0);
    expect_refused("folder.gguf", DSV2_ERROR_IO, "not a regular file");
    expect_refused("fifo.gguf", DSV2_ERROR_IO, "not a regular file");
    expect_refused("absent.gguf", DSV2_ERROR_IO, "cannot open: No such file");
    folder_write("short.gguf", "GGU", 3);
    static const char *const names[] = {"folder.gguf", "fifo.gguf", "absent.gguf", "short.gguf"};
    for (size_t i = 0; i < 4; i++)
        ck_assert(!ds_is_gguf(folder_file(names[i])));
}
END_TEST

START_TEST(a_file_that_changes_size_while_open_is_noticed)
{
    script_write("a.gguf", good);
    ds_container *container = open_good("a.gguf");
    ck_assert_int_eq(ds_container_check(container), DSV2_OK);
    ck_assert_int_eq(truncate(folder_file("a.gguf"), 100), 0);
    ck_assert_int_eq(ds_container_check(container), DSV2_ERROR_IO);
    expect_message("the file was changed while in use");
    ds_container_close(container);
}
END_TEST

/* ---- split files ---- */

#define SPLIT(t, no, count) HEAD(t, "2") "s:split.no 4:2 2:" no " s:split.count 4:2 2:" count " "

static const char first[] =
    HEAD("1", "4") "s:split.no 4:2 2:0 s:split.count 4:2 2:2 s:split.tensors.count 4:5 4:2 s:name 4:8 s:both " VECTOR(
        "a", "1", "0", "0") "pad:32 f:1";
static const char second[] = SPLIT("1", "1", "2") VECTOR("b", "1", "0", "0") "pad:32 f:2";

START_TEST(the_first_file_of_a_split_model_opens_all)
{
    script_write("m-00001-of-00002.gguf", first);
    script_write("m-00002-of-00002.gguf", second);
    ds_container *container = open_good("m-00001-of-00002.gguf");
    ck_assert_uint_eq(ds_container_count(container), 2);
    ck_assert(*(const float *)ds_container_find(container, "b")->data == 2);
    ck_assert_str_eq(ds_container_find(container, "b")->path, folder_file("m-00002-of-00002.gguf"));
    ck_assert(ds_gguf_has(container, "name"));
    ck_assert_ptr_nonnull(container->files[0].head);
    ck_assert_ptr_null(container->files[1].head); /* of some thousand files each would keep 2 MiB */
    ck_assert_int_eq(ds_container_check(container), DSV2_OK);
    ck_assert_int_eq(truncate(folder_file("m-00002-of-00002.gguf"), 50), 0);
    ck_assert_int_eq(ds_container_check(container), DSV2_ERROR_IO);
    expect_message("m-00002-of-00002.gguf");
    ds_container_close(container);
}
END_TEST

START_TEST(a_split_model_that_is_not_whole_is_refused)
{
    script_write("m-00001-of-00002.gguf", first);
    expect_refused("m-00001-of-00002.gguf", DSV2_ERROR_IO, "m-00002-of-00002.gguf: cannot open");
    script_write("m-00002-of-00002.gguf", second);
    expect_refused("m-00002-of-00002.gguf", DSV2_ERROR_FORMAT, "key split.no is 1: open the first file of the 2");
    script_write("other-name.gguf", first);
    expect_refused("other-name.gguf", DSV2_ERROR_FORMAT, "expected a file name that ends in -00001-of-00002.gguf");
    script_write("m-00002-of-00002.gguf", first);
    expect_refused("m-00001-of-00002.gguf", DSV2_ERROR_FORMAT,
                   "keys split.no and split.count are 0 and 2, expected 1 and 2");
    script_write("m-00002-of-00002.gguf", SPLIT("1", "1", "3") VECTOR("b", "1", "0", "0") "pad:32 f:2");
    expect_refused("m-00001-of-00002.gguf", DSV2_ERROR_FORMAT, "are 1 and 3, expected 1 and 2");
    script_write("m-00002-of-00002.gguf", HEAD("0", "0"));
    expect_refused("m-00001-of-00002.gguf", DSV2_ERROR_FORMAT, "key split.no is missing");
    script_write("m-00002-of-00002.gguf", SPLIT("0", "1", "2"));
    expect_refused("m-00001-of-00002.gguf", DSV2_ERROR_FORMAT,
                   "key split.tensors.count is 2, but the files hold 1 tensors");
    script_write("m-00002-of-00002.gguf", SPLIT("1", "1", "2") VECTOR("a", "1", "0", "0") "pad:32 f:2");
    expect_refused("m-00001-of-00002.gguf", DSV2_ERROR_FORMAT, "tensor a is there twice");
    script_write("m-00001-of-65535.gguf", SPLIT("0", "0", "65535"));
    expect_refused("m-00001-of-65535.gguf", DSV2_ERROR_FORMAT, "key split.count is 65535, expected at most 4096");
}
END_TEST

/* ---- block types ---- */

static const ds_type block_types[] = {DS_TYPE_Q8_0, DS_TYPE_Q4_0, DS_TYPE_Q4_1,   DS_TYPE_Q5_0,
                                      DS_TYPE_Q5_1, DS_TYPE_Q2_K, DS_TYPE_Q3_K,   DS_TYPE_Q4_K,
                                      DS_TYPE_Q5_K, DS_TYPE_Q6_K, DS_TYPE_IQ4_NL, DS_TYPE_IQ4_XS};

/* The numbers that the format gives them. */
static const uint32_t block_type_numbers[] = {8, 2, 3, 6, 7, 10, 11, 12, 13, 14, 20, 23};

START_TEST(types_have_the_numbers_of_the_format)
{
    ck_assert_int_eq(ds_type_of_gguf(block_type_numbers[_i]), block_types[_i]);
    ck_assert_int_eq(ds_type_of_gguf(0), DS_TYPE_F32);
    ck_assert_int_eq(ds_type_of_gguf(1), DS_TYPE_F16);
    ck_assert_int_eq(ds_type_of_gguf(30), DS_TYPE_BF16);
    ck_assert_int_eq(ds_type_of_gguf(9), DS_TYPE_COUNT);
    ck_assert_int_eq(ds_type_of_gguf(UINT32_MAX), DS_TYPE_COUNT);
}
END_TEST

/* Golden blocks: made by tests/data/make_gguf_blocks.py. */
static void find_blocks(const ds_container *container, ds_type type, const ds_tensor **blocks, const ds_tensor **floats)
{
    char name[32];
    snprintf(name, sizeof name, "%s.blocks", ds_type_name(type));
    ck_assert_int_eq(ds_container_require(container, name, blocks), DSV2_OK);
    snprintf(name, sizeof name, "%s.floats", ds_type_name(type));
    ck_assert_int_eq(ds_container_require(container, name, floats), DSV2_OK);
    uint64_t n = (*floats)->n_bytes / sizeof(float);
    ck_assert_uint_eq(ds_type_row_bytes(type, n), (*blocks)->n_bytes);
}

START_TEST(blocks_become_the_floats_of_the_reference_reader)
{
    ds_container *container;
    ck_assert_int_eq(ds_safetensors_open(DS_TEST_DATA, NULL, &container), DSV2_OK);
    map_all(container);
    for (size_t s = 0; s < test_kernel_sets(); s++) {
        const ds_kernels *kernels;
        ck_assert_int_eq(ds_kernels_select(test_kernel_set(s), &kernels), DSV2_OK);
        const ds_tensor *blocks, *floats;
        find_blocks(container, block_types[_i], &blocks, &floats);
        size_t n = floats->n_bytes / sizeof(float);
        float *out = malloc(n * sizeof *out);
        kernels->to_f32[block_types[_i]](out, blocks->data, n);
        for (size_t i = 0; i < n; i++) {
            float expected;
            memcpy(&expected, (const char *)floats->data + i * sizeof expected, sizeof expected);
            ck_assert_msg(out[i] == expected, "%s, %s: element %zu is %.9g, expected %.9g", kernels->name,
                          ds_type_name(block_types[_i]), i, out[i], expected);
        }
        free(out);
    }
    ds_container_close(container);
}
END_TEST

START_TEST(a_matrix_of_blocks_multiplies_as_its_floats_do)
{
    ds_container *container;
    ck_assert_int_eq(ds_safetensors_open(DS_TEST_DATA, NULL, &container), DSV2_OK);
    map_all(container);
    const ds_tensor *blocks, *floats;
    find_blocks(container, block_types[_i], &blocks, &floats);
    uint32_t cols = 256, rows = (uint32_t)(floats->n_bytes / sizeof(float) / cols);
    ds_matrix quantised = {rows, cols, block_types[_i], blocks->data, ds_type_row_bytes(block_types[_i], cols), NULL,
                           0,    0,    0};
    ds_matrix plain = {rows, cols, DS_TYPE_F32, floats->data, cols * sizeof(float), NULL, 0, 0, 0};
    float x[256], expected[16], out[16];
    const float *x_row = x;
    for (uint32_t i = 0; i < cols; i++)
        x[i] = sinf((float)i);
    const ds_kernels *kernels;
    ck_assert_int_eq(ds_kernels_select(NULL, &kernels), DSV2_OK);
    size_t scratch_floats = ds_matmul_scratch(&quantised);
    ck_assert_uint_gt(scratch_floats, 0);
    float *scratch = malloc(scratch_floats * sizeof *scratch);
    ds_matmul(kernels, out, rows, &x_row, 1, &quantised, 0, rows, scratch);
    ds_matmul(kernels, expected, rows, &x_row, 1, &plain, 0, rows, NULL);
    ck_assert_mem_eq(out, expected, rows * sizeof *out);
    free(scratch);
    ds_container_close(container);
}
END_TEST

int main(void)
{
    enum { N_TYPES = sizeof block_types / sizeof *block_types };
    TCase *tests = tcase_create("gguf");
    tcase_set_timeout(tests, 60);
    tcase_add_checked_fixture(tests, folder_make, folder_remove);
    tcase_add_test(tests, tensors_are_typed_and_their_dimensions_turned);
    tcase_add_test(tests, an_unread_type_is_an_error_only_when_asked_for);
    tcase_add_test(tests, version_2_is_read_as_version_3);
    tcase_add_test(tests, a_head_of_any_length_is_read);
    tcase_add_test(tests, a_head_of_more_than_256_mib_is_refused);
    tcase_add_test(tests, metadata_is_given_by_key_and_type);
    tcase_add_test(tests, a_value_of_another_type_is_refused_by_key_found_and_expected);
    tcase_add_loop_test(tests, a_bad_file_is_refused_by_key_or_tensor_and_value, 0, sizeof bad / sizeof *bad);
    tcase_add_test(tests, a_file_cut_anywhere_is_refused);
    tcase_add_test(tests, what_is_no_regular_file_is_refused);
    tcase_add_test(tests, a_file_that_changes_size_while_open_is_noticed);
    tcase_add_test(tests, the_first_file_of_a_split_model_opens_all);
    tcase_add_test(tests, a_split_model_that_is_not_whole_is_refused);
    tcase_add_loop_test(tests, types_have_the_numbers_of_the_format, 0, N_TYPES);
    tcase_add_loop_test(tests, blocks_become_the_floats_of_the_reference_reader, 0, N_TYPES);
    tcase_add_loop_test(tests, a_matrix_of_blocks_multiplies_as_its_floats_do, 0, N_TYPES);

    Suite *suite = suite_create("gguf");
    suite_add_tcase(suite, tests);
    return test_run(suite);
}

/* Safetensors: what is in a good file is found. Every bad file is refused with a message that says where and why. */
#include "folder.h"
#include "opening.h"

#include "formats/formats.h"
#include "support/run.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* A file of `length` (8 bytes, little-endian), the header's text, and data_size bytes 0, 1, 2, ... */
static void write_with_length(const char *name, uint64_t length, const char *header, size_t data_size)
{
    size_t header_size = strlen(header), size = 8 + header_size + data_size;
    unsigned char *bytes = malloc(size);
    for (size_t i = 0; i < 8; i++)
        bytes[i] = (unsigned char)(length >> 8 * i);
    memcpy(bytes + 8, header, header_size);
    for (size_t i = 0; i < data_size; i++)
        bytes[8 + header_size + i] = (unsigned char)i;
    folder_write(name, bytes, size);
    free(bytes);
}

static void write_safetensors(const char *name, const char *header, size_t data_size)
{
    write_with_length(name, strlen(header), header, data_size);
}

/* Opens the folder of the file at `path`, its only one. */
static dsv2_status open_folder_of(const char *path, const ds_logger *logger, ds_container **container)
{
    ck_assert_ptr_nonnull(strstr(path, folder_path()));
    return ds_safetensors_open(folder_path(), logger, container);
}

static ds_container *open_good(const char *name) { return expect_opened(open_folder_of, name); }

static void expect_refused(const char *name, dsv2_status expected, const char *part)
{
    expect_refusal(open_folder_of, name, expected, part);
    expect_message(folder_file(name));
}

START_TEST(tensors_are_sorted_typed_and_shaped)
{
    write_safetensors("a.safetensors",
                      "{\"__metadata__\":{\"format\":\"pt\"},"
                      "\"z\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},"
                      "\"half\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[24,28]},"
                      "\"brain\":{\"dtype\":\"BF16\",\"shape\":[1,1,1,3],\"data_offsets\":[28,34]},"
                      "\"eight\":{\"dtype\":\"F8_E4M3\",\"shape\":[5],\"data_offsets\":[34,39]},"
                      "\"scalar\":{\"dtype\":\"F16\",\"shape\":[],\"data_offsets\":[39,41]},"
                      "\"none\":{\"dtype\":\"F32\",\"shape\":[7,0],\"data_offsets\":[41,41]}}   ",
                      41);
    ds_container *container = open_good("a.safetensors");
    static const struct {
        const char *name;
        ds_type type;
        uint32_t n_dims;
        uint64_t first, last, n_bytes;
        unsigned char byte;
    } expected[] = {
        {"brain", DS_TYPE_BF16, 4, 1, 3, 6, 28}, {"eight", DS_TYPE_F8_E4M3, 1, 5, 5, 5, 34},
        {"half", DS_TYPE_F16, 1, 2, 2, 4, 24},   {"none", DS_TYPE_F32, 2, 7, 0, 0, 0},
        {"scalar", DS_TYPE_F16, 0, 0, 0, 2, 39}, {"z", DS_TYPE_F32, 2, 2, 3, 24, 0},
    };
    ck_assert(ds_container_format(container) == DS_FORMAT_SAFETENSORS);
    ck_assert_uint_eq(ds_container_count(container), sizeof expected / sizeof *expected);
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        const ds_tensor *tensor = ds_container_tensor(container, i);
        ck_assert_str_eq(tensor->name, expected[i].name);
        ck_assert_ptr_eq(ds_container_find(container, expected[i].name), tensor);
        ck_assert_int_eq(tensor->type, expected[i].type);
        ck_assert_uint_eq(tensor->n_dims, expected[i].n_dims);
        if (tensor->n_dims > 0) {
            ck_assert_uint_eq(tensor->dims[0], expected[i].first);
            ck_assert_uint_eq(tensor->dims[tensor->n_dims - 1], expected[i].last);
        }
        ck_assert_uint_eq(tensor->n_bytes, expected[i].n_bytes);
        if (tensor->n_bytes > 0)
            ck_assert_uint_eq(*(const unsigned char *)tensor->data, expected[i].byte);
        ck_assert_str_eq(tensor->path, folder_file("a.safetensors"));
    }
    ck_assert_ptr_null(ds_container_find(container, "absent"));
    ds_container_close(container);
}
END_TEST

START_TEST(only_a_needed_tensor_of_unread_type_is_an_error)
{
    write_safetensors("a.safetensors",
                      "{\"ids\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[0,8]},"
                      "\"flag\":{\"dtype\":\"BOOL\",\"shape\":[1],\"data_offsets\":[8,9]},"
                      "\"deep\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1],\"data_offsets\":[9,13]},"
                      "\"w\":{\"dtype\":\"F16\",\"shape\":[1],\"data_offsets\":[13,15]}}",
                      15);
    ds_container *container = open_good("a.safetensors");
    const ds_tensor *tensor;
    ck_assert_uint_eq(ds_container_count(container), 1);
    ck_assert_int_eq(ds_container_require(container, "w", &tensor), DSV2_OK);
    ck_assert_str_eq(tensor->name, "w");
    static const struct {
        const char *name, *part;
        dsv2_status status;
    } cases[] = {{"ids", "tensor ids has element type I64", DSV2_ERROR_UNSUPPORTED},
                 {"flag", "tensor flag has element type BOOL", DSV2_ERROR_UNSUPPORTED},
                 {"deep", "tensor deep has element type F32 and 5 dimensions", DSV2_ERROR_UNSUPPORTED},
                 {"absent", "tensor absent is missing", DSV2_ERROR_FORMAT}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ck_assert_ptr_null(ds_container_find(container, cases[i].name));
        ck_assert_int_eq(ds_container_require(container, cases[i].name, &tensor), cases[i].status);
        expect_message(cases[i].status == DSV2_ERROR_FORMAT ? folder_path() : folder_file("a.safetensors"));
        expect_message(cases[i].part);
    }
    ds_container_close(container);
}
END_TEST

#define TENSOR(shape, offsets) "{\"w\":{\"dtype\":\"F32\",\"shape\":" shape ",\"data_offsets\":" offsets "}}"
#define TWO(first, second)                                                                                             \
    "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":" first                                                  \
    "},\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":" second "}}"

static const struct {
    const char *header;
    size_t data_size;
    const char *part; /* of the message */
} bad_headers[] = {
    {"", 0, "not valid JSON"},
    {"[]", 0, "is an array, expected a JSON object"},
    {"{\"w\":", 0, "not valid JSON"},
    {"{} x", 0, "not valid JSON"},
    {TENSOR("[2,2]", "[0,12]"), 12, "tensor w: data_offsets give 12 bytes"},
    {TENSOR("[2,2]", "[0,20]"), 20, "tensor w: data_offsets give 20 bytes"},
    {TENSOR("[]", "[0,8]"), 8, "tensor w: data_offsets give 8 bytes"},
    {TENSOR("[2]", "[0,8]"), 7, "tensor w: data_offsets are 0 to 8, expected a range within the file's 7 bytes"},
    {TENSOR("[2]", "[0,8]"), 9, "data_offsets end at 8, but the file holds 9 bytes"},
    {TENSOR("[2]", "[8,0]"), 8, "tensor w: data_offsets are 8 to 0"},
    {TENSOR("[2]", "[-8,0]"), 8, "tensor w: data_offsets holds a negative integer"},
    {TENSOR("[2]", "[0]"), 8, "tensor w: data_offsets is an array of 1"},
    {TENSOR("[2]", "[0,4,8]"), 8, "tensor w: data_offsets is an array of 3"},
    {TENSOR("[2]", "[0,8.0]"), 8, "tensor w: data_offsets holds a number with a fraction"},
    {TENSOR("[2]", "null"), 8, "tensor w: data_offsets is null"},
    {TENSOR("[2]", "[9223372036854775800,9223372036854775807]"), 8, "tensor w: data_offsets are 9223372036854775800"},
    {TENSOR("[2]", "[0,99999999999999999999]"), 8, "data_offsets holds a number with a fraction or exponent"},
    {TENSOR("[4611686018427387904,4]", "[0,0]"), 0, "tensor w: data_offsets give 0 bytes"},
    {TENSOR("[4294967296,4294967296,4]", "[0,0]"), 0, "tensor w: data_offsets give 0 bytes"},
    {TENSOR("[4611686018427387905]", "[0,4]"), 4, "tensor w: data_offsets give 4 bytes"},
    {TENSOR("[9223372036854775807,9223372036854775807,0]", "[0,0]"), 0, "tensor w: data_offsets give 0 bytes"},
    {TENSOR("[-1]", "[0,8]"), 8, "tensor w: shape holds a negative integer"},
    {TENSOR("[\"2\"]", "[0,8]"), 8, "tensor w: shape holds a string"},
    {TENSOR("2", "[0,8]"), 8, "tensor w: shape is an integer"},
    {TWO("[0,8]", "[4,12]"), 12, "tensor b: data_offsets begin at 4 where the tensor before ends at 8: it overlaps"},
    {TWO("[0,8]", "[0,8]"), 8, "overlaps another"},
    {TWO("[0,8]", "[12,20]"), 20,
     "tensor b: data_offsets begin at 12 where the tensor before ends at 8: it leaves a hole"},
    {TWO("[8,16]", "[16,24]"), 24,
     "tensor a: data_offsets begin at 8 where the tensor before ends at 0: it leaves a hole"},
    {"{\"w\":3}", 0, "tensor w is an integer, expected an object"},
    {"{\"w\":{}}", 0, "tensor w: dtype is missing, expected a string"},
    {"{\"w\":{\"dtype\":7,\"shape\":[],\"data_offsets\":[0,0]}}", 0,
     "tensor w: dtype is an integer, expected a string"},
    {"{\"w\":{\"dtype\":\"F32\",\"data_offsets\":[0,0]}}", 0, "tensor w: shape is missing"},
    {"{\"w\":{\"dtype\":\"F32\",\"shape\":[0]}}", 0, "tensor w: data_offsets is missing"},
    {"{\"w\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]},\"w\":{\"dtype\":\"F32\",\"shape\":["
     "0],\"data_offsets\":[0,0]}}",
     0, "tensor w is there twice"},
    {"{\"w\":{\"dtype\":\"F32\",\"dtype\":\"F16\",\"shape\":[0],\"data_offsets\":[0,0]}}", 0, "duplicate object key"},
};

START_TEST(a_bad_header_is_refused_by_file_tensor_and_field)
{
    write_safetensors("bad.safetensors", bad_headers[_i].header, bad_headers[_i].data_size);
    expect_refused("bad.safetensors", DSV2_ERROR_FORMAT, bad_headers[_i].part);
}
END_TEST

START_TEST(a_header_length_that_does_not_fit_is_refused)
{
    static const uint64_t lengths[] = {3,
                                       11,
                                       1 << 20,
                                       UINT64_C(1) << 32,
                                       (UINT64_C(1) << 32) + 2,
                                       UINT64_C(1) << 63,
                                       UINT64_MAX - 8,
                                       UINT64_MAX - 7,
                                       UINT64_MAX - 1,
                                       UINT64_MAX};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        write_with_length("bad.safetensors", lengths[i], "{}", 0);
        expect_refused("bad.safetensors", DSV2_ERROR_FORMAT, "header length is ");
    }
}
END_TEST

START_TEST(a_file_cut_anywhere_is_refused)
{
    static const char header[] = TWO("[0,8]", "[8,16]");
    for (size_t cut = 1; cut <= 8 + sizeof header - 1 + 16; cut++) {
        write_safetensors("cut.safetensors", header, 16);
        size_t size = 8 + sizeof header - 1 + 16;
        ck_assert_int_eq(truncate(folder_file("cut.safetensors"), (off_t)(size - cut)), 0);
        expect_refused("cut.safetensors", DSV2_ERROR_FORMAT, "");
    }
}
END_TEST

START_TEST(deep_json_is_refused)
{
    enum { DEPTH = 200000 };
    char *header = malloc(DEPTH + 16);
    ck_assert_ptr_nonnull(header);
    memcpy(header, "{\"w\":", 5);
    memset(header + 5, '[', DEPTH);
    header[5 + DEPTH] = '\0';
    write_safetensors("deep.safetensors", header, 0);
    free(header);
    expect_refused("deep.safetensors", DSV2_ERROR_FORMAT, "more than 128 deep");
}
END_TEST

START_TEST(what_is_no_regular_file_is_refused)
{
    ck_assert_int_eq(mkdir(folder_file("folder.safetensors"), 0700), 0);
    expect_refused("folder.safetensors", DSV2_ERROR_IO, "not a regular file");
    ck_assert_int_eq(rmdir(folder_file("folder.safetensors")), 0);
    ck_assert_int_eq(mkfifo(folder_file("fifo.safetensors"), 0600), 0);
    expect_refused("fifo.safetensors", DSV2_ERROR_IO, "not a regular file");
    ck_assert_int_eq(unlink(folder_file("fifo.safetensors")), 0);
    ck_assert_int_eq(symlink("absent", folder_file("link.safetensors")), 0);
    expect_refused("link.safetensors", DSV2_ERROR_IO, "cannot open: No such file");
}
END_TEST

START_TEST(a_file_that_changes_size_while_open_is_noticed)
{
    for (int grown = 0; grown < 2; grown++) {
        write_safetensors("a.safetensors", TENSOR("[2]", "[0,8]"), 8);
        ds_container *container = open_good("a.safetensors");
        ck_assert_int_eq(ds_container_check(container), DSV2_OK);
        ck_assert_int_eq(truncate(folder_file("a.safetensors"), grown ? 5000 : 10), 0);
        ck_assert_int_eq(ds_container_check(container), DSV2_ERROR_IO);
        expect_message(folder_file("a.safetensors"));
        expect_message("the file was changed while in use");
        ds_container_close(container);
    }
}
END_TEST

/* ---- folders ---- */

#define ONE(name) "{\"" name "\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}"

static void write_index(const char *text) { folder_write("model.safetensors.index.json", text, strlen(text)); }

static void expect_folder_refused(dsv2_status expected, const char *part)
{
    ds_container *container = NULL;
    dsv2_status status = ds_safetensors_open(folder_path(), NULL, &container);
    ck_assert_msg(status == expected, "status %d, expected %d: %s", (int)status, (int)expected, dsv2_last_error());
    ck_assert_ptr_null(container);
    expect_message(folder_path());
    expect_message(part);
}

static size_t count_folder(void)
{
    ds_container *container = NULL;
    dsv2_status status = ds_safetensors_open(folder_path(), NULL, &container);
    ck_assert_msg(status == DSV2_OK, "%s", dsv2_last_error());
    size_t count = ds_container_count(container);
    ds_container_close(container);
    return count;
}

START_TEST(a_folder_opens_by_index_or_single_file_or_all_files)
{
    write_safetensors("part-b.safetensors", ONE("b"), 4);
    write_safetensors("part-a.safetensors", ONE("a"), 4);
    ck_assert_uint_eq(count_folder(), 2);
    write_index(
        "{\"metadata\":{\"total_size\":4},\"weight_map\":{\"a\":\"part-a.safetensors\"}}");
    ck_assert_uint_eq(count_folder(), 1);
    write_safetensors("model.safetensors", "{\"m\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
                                           "\"n\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]},"
                                           "\"o\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[8,12]}}", 12);
    ck_assert_uint_eq(count_folder(), 3);
}
END_TEST

static const struct {
    const char *index, *part;
    dsv2_status status;
} bad_indexes[] = {
    {"", "not valid JSON", DSV2_ERROR_FORMAT},
    {"[]", "is an array, expected a JSON object", DSV2_ERROR_FORMAT},
    {"{}", "weight_map is missing", DSV2_ERROR_FORMAT},
    {"{\"weight_map\":[]}", "weight_map is an array", DSV2_ERROR_FORMAT},
    {"{\"weight_map\":{}}", "weight_map is empty", DSV2_ERROR_FORMAT},
    {"{\"weight_map\":{\"a\":3}}", "tensor a is in an integer", DSV2_ERROR_FORMAT},
    {"{\"weight_map\":{\"a\":\"\"}}", "expected the name of a file in the same folder", DSV2_ERROR_FORMAT},
    {"{\"weight_map\":{\"a\":\"..\"}}", "tensor a is in .., expected the name of a file", DSV2_ERROR_FORMAT},
    {"{\"weight_map\":{\"a\":\"../a.safetensors\"}}", "tensor a is in ../a.safetensors", DSV2_ERROR_FORMAT},
    {"{\"weight_map\":{\"a\":\"x/../../a.safetensors\"}}", "expected the name of a file", DSV2_ERROR_FORMAT},
    {"{\"weight_map\":{\"a\":\"/etc/passwd\"}}", "tensor a is in /etc/passwd", DSV2_ERROR_FORMAT},
    {"{\"weight_map\":{\"a\":\"1.safetensors\",\"b\":\"absent.safetensors\"}}",
     "absent.safetensors, which weight_map names, is not there: the download is incomplete", DSV2_ERROR_IO},
    {"{\"weight_map\":{\"a\":\"1.safetensors\",\"b\":\"again.safetensors\"}}", "tensor a is there twice",
     DSV2_ERROR_FORMAT},
};

START_TEST(a_bad_index_is_refused_by_tensor_and_file)
{
    write_safetensors("1.safetensors", ONE("a"), 4);
    write_safetensors("2.safetensors", ONE("b"), 4);
    write_safetensors("again.safetensors", ONE("a"), 4);
    write_index(bad_indexes[_i].index);
    expect_folder_refused(bad_indexes[_i].status, bad_indexes[_i].part);
}
END_TEST

static char remarks[1024];

static void keep_remark(void *user, dsv2_log_level level, const char *message)
{
    (void)user;
    if (level == DSV2_LOG_WARNING)
        snprintf(remarks + strlen(remarks), sizeof remarks - strlen(remarks), "%s\n", message);
}

static const struct {
    const char *index, *remark;
    bool has_b;
} odd_indexes[] = {
    {"{\"weight_map\":{\"a\":\"1.safetensors\",\"b\":\"2.safetensors\"}}", NULL, true},
    {"{\"weight_map\":{\"a\":\"1.safetensors\",\"c\":\"1.safetensors\",\"d\":\"1.safetensors\"}}",
     "names 2 tensors that no file has", false},
    {"{\"weight_map\":{\"a\":\"2.safetensors\",\"b\":\"1.safetensors\"}}",
     "has 2 tensors in other files than they are in", true},
    {"{\"weight_map\":{\"a\":\"1.safetensors\",\"a\":\"2.safetensors\"}}",
     "has 1 tensors in other files than they are in", true},
};

START_TEST(an_index_that_differs_from_the_files_gives_a_remark)
{
    const ds_logger logger = {keep_remark, NULL};
    ds_container *container;
    write_safetensors("1.safetensors", ONE("a"), 4);
    write_safetensors("2.safetensors", ONE("b"), 4);
    write_index(odd_indexes[_i].index);
    remarks[0] = '\0';
    ck_assert_msg(ds_safetensors_open(folder_path(), &logger, &container) == DSV2_OK, "%s", dsv2_last_error());
    ck_assert(ds_container_find(container, "a") != NULL);
    ck_assert((ds_container_find(container, "b") != NULL) == odd_indexes[_i].has_b);
    ck_assert_msg(odd_indexes[_i].remark == NULL ? remarks[0] == '\0' : strstr(remarks, odd_indexes[_i].remark) != NULL,
                  "%s", remarks);
    ds_container_close(container);
}
END_TEST

START_TEST(a_whole_file_goes_before_a_stale_index)
{
    const ds_logger logger = {keep_remark, NULL};
    ds_container *container;
    write_safetensors("model.safetensors", ONE("a"), 4);
    write_index("{\"weight_map\":{\"a\":\"model-00001-of-00002.safetensors\",\"b\":\"gone.safetensors\"}}");
    remarks[0] = '\0';
    ck_assert_msg(ds_safetensors_open(folder_path(), &logger, &container) == DSV2_OK, "%s", dsv2_last_error());
    ck_assert_ptr_nonnull(ds_container_find(container, "a"));
    ck_assert_msg(strstr(remarks, "does not name model.safetensors, which is taken alone") != NULL, "%s", remarks);
    ds_container_close(container);
    /* an index that names the file is not stale */
    write_index("{\"weight_map\":{\"a\":\"model.safetensors\",\"b\":\"gone.safetensors\"}}");
    expect_folder_refused(DSV2_ERROR_IO, "gone.safetensors, which weight_map names, is not there");
}
END_TEST

START_TEST(a_name_in_two_files_is_refused)
{
    write_safetensors("1.safetensors", ONE("same"), 4);
    write_safetensors("2.safetensors", "{\"same\":{\"dtype\":\"I32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4);
    expect_folder_refused(DSV2_ERROR_FORMAT, "tensor same is there twice");
    write_safetensors("2.safetensors", ONE("same"), 4);
    expect_folder_refused(DSV2_ERROR_FORMAT, "tensor same is there twice");
}
END_TEST

START_TEST(a_folder_without_weights_is_refused)
{
    expect_folder_refused(DSV2_ERROR_IO, "has no *.safetensors file");
    ck_assert_int_eq(mkfifo(folder_file("model.safetensors"), 0600), 0);
    expect_folder_refused(DSV2_ERROR_IO, "model.safetensors: not a regular file");
    ck_assert_int_eq(mkdir(folder_file("model.safetensors.index.json"), 0700), 0);
    expect_folder_refused(DSV2_ERROR_IO, "index.json: not a regular file");
    ds_container *container;
    ck_assert_int_eq(ds_safetensors_open(folder_file("absent"), NULL, &container), DSV2_ERROR_IO);
    expect_message("absent: cannot open: No such file");
}
END_TEST

int main(void)
{
    TCase *tests = tcase_create("safetensors");
    tcase_set_timeout(tests, 60);
    tcase_add_checked_fixture(tests, folder_make, folder_remove);
    tcase_add_test(tests, tensors_are_sorted_typed_and_shaped);
    tcase_add_test(tests, only_a_needed_tensor_of_unread_type_is_an_error);
    tcase_add_loop_test(tests, a_bad_header_is_refused_by_file_tensor_and_field, 0,
                        sizeof bad_headers / sizeof *bad_headers);
    tcase_add_test(tests, a_header_length_that_does_not_fit_is_refused);
    tcase_add_test(tests, a_file_cut_anywhere_is_refused);
    tcase_add_test(tests, deep_json_is_refused);
    tcase_add_test(tests, what_is_no_regular_file_is_refused);
    tcase_add_test(tests, a_file_that_changes_size_while_open_is_noticed);
    tcase_add_test(tests, a_folder_opens_by_index_or_single_file_or_all_files);
    tcase_add_loop_test(tests, a_bad_index_is_refused_by_tensor_and_file, 0, sizeof bad_indexes / sizeof *bad_indexes);
    tcase_add_loop_test(tests, an_index_that_differs_from_the_files_gives_a_remark, 0,
                        sizeof odd_indexes / sizeof *odd_indexes);
    tcase_add_test(tests, a_whole_file_goes_before_a_stale_index);
    tcase_add_test(tests, a_name_in_two_files_is_refused);
    tcase_add_test(tests, a_folder_without_weights_is_refused);

    Suite *suite = suite_create("formats");
    suite_add_tcase(suite, tests);
    return test_run(suite);
}

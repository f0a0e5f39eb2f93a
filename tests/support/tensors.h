/* Safetensors for tests: a writer, and a reader of every element type that shares nothing with the library's. Any
 * failure ends the test. */
#ifndef DS_TESTS_TENSORS_H
#define DS_TESTS_TENSORS_H

#include <stddef.h>
#include <stdint.h>

typedef struct test_tensor {
    char *name;
    char dtype[12]; /* "F32", "BF16", "I32", ... */
    size_t n_dims, dims[4], n_bytes;
    const uint8_t *data;
} test_tensor;

typedef struct test_tensors {
    test_tensor *tensors;
    size_t n, capacity;
    void **memory; /* what the tensors point into */
    size_t n_memory;
} test_tensors;

/* Adds all tensors of one file. */
void test_tensors_read(test_tensors *tensors, const char *path);

/* NULL if there is none of that name. */
const test_tensor *test_tensors_find(const test_tensors *tensors, const char *name);

/* Like test_tensors_find, but the tensor must be there and have this element type. */
const test_tensor *test_tensors_need(const test_tensors *tensors, const char *name, const char *dtype);

/* Adds a tensor. `data` comes from malloc; test_tensors_free frees it. */
void test_tensors_add(test_tensors *tensors, const char *name, const char *dtype, size_t n_dims, const size_t *dims,
                      void *data, size_t n_bytes);

void test_tensors_write(const test_tensors *tensors, const char *path);
void test_tensors_free(test_tensors *tensors);

/* A whole file, followed by a NUL; to be freed. */
char *test_read_file(const char *path, size_t *size);

void test_write_file(const char *path, const void *data, size_t size);

/* The checkpoints in data/goldens. */
enum { TEST_GOLDENS = 4 };
extern const char *const test_goldens[TEST_GOLDENS];         /* their names */
extern const char *const test_golden_folders[TEST_GOLDENS];

/* printf into a buffer that lives until its thread has called this some dozens of times: for names and paths. */
const char *test_format(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif

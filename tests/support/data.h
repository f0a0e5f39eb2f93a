/* The files under tests/data, unpacked where they end in .zst. */
#ifndef DS_TESTS_DATA_H
#define DS_TESTS_DATA_H

#include <stddef.h>

/* The bytes of tests/data/NAME, followed by a NUL; to be freed. Fails the test if the file cannot be read. */
char *data_read(const char *name, size_t *size);

#endif

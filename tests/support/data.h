/* The files under tests/data, unpacked where they end in .zst. */
#ifndef DS_TESTS_DATA_H
#define DS_TESTS_DATA_H

#include <stddef.h>

/* The bytes of tests/data/NAME with a NUL behind them, to be freed; fails the test if it cannot be read. */
char *data_read(const char *name, size_t *size);

#endif

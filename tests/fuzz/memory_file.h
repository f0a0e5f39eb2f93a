/* A fuzzer's input as a file that the library can open by path. */
#ifndef DS_TESTS_MEMORY_FILE_H
#define DS_TESTS_MEMORY_FILE_H

#include <stddef.h>
#include <stdint.h>

/* Returns the file's descriptor, which the caller closes, and puts its path into `path`. Ends the program if memory
 * runs out. */
int memory_file(const uint8_t *data, size_t size, char path[64]);

#endif

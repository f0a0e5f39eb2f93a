/* Fuzz input as a file that the library can open by path. */
#ifndef DS_TESTS_MEMORY_FILE_H
#define DS_TESTS_MEMORY_FILE_H

#include <stddef.h>
#include <stdint.h>

/* The file's descriptor (closed by the caller); its path goes to `path`. Ends the program if there is no memory. */
int memory_file(const uint8_t *data, size_t size, char path[64]);

#endif

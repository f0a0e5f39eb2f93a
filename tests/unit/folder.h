/* A temporary folder with generated files, for tests of readers. */
#ifndef DS_TESTS_FOLDER_H
#define DS_TESTS_FOLDER_H

#include <stddef.h>

/* Makes a folder under TMPDIR or /tmp. Fails the test if it cannot. Only one exists at a time. */
void folder_make(void);

/* Removes it with all that is in it. */
void folder_remove(void);

const char *folder_path(void);

/* The path of `name` inside; valid until the next call but three. */
const char *folder_file(const char *name);

/* Writes a file there. */
void folder_write(const char *name, const void *data, size_t size);

#endif

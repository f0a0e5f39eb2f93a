/* What tests of readers expect of files in their folder. */
#ifndef DS_TESTS_OPENING_H
#define DS_TESTS_OPENING_H

#include "formats/formats.h"

typedef dsv2_status (*test_opener)(const char *path, const ds_logger *logger, ds_container **container);

/* The last message has this part. */
void expect_message(const char *part);

/* Maps the files of a container. */
void map_all(ds_container *container);

/* Opens `name` of the folder, and maps its files. */
ds_container *expect_opened(test_opener opener, const char *name);

/* Fails to open `name`: with the expected status and a message that names the folder and has this part. */
void expect_refusal(test_opener opener, const char *name, dsv2_status expected, const char *part);

#endif

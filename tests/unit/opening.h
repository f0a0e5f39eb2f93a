/* What tests of readers expect of files in their folder. */
#ifndef DSV2_TESTS_OPENING_H
#define DSV2_TESTS_OPENING_H

#include "formats/formats.h"

typedef dsv2_status (*test_opener)(const char *path, const dsv2_logger *logger, dsv2_container **container);

/* The last message has this part. */
void expect_message(const char *part);

/* Opens `name` of the folder. */
dsv2_container *expect_opened(test_opener opener, const char *name);

/* Fails to, with a message that names the folder and has this part. */
void expect_refusal(test_opener opener, const char *name, dsv2_status expected, const char *part);

#endif

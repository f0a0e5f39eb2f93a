/* libdsv2: version of the library and of its binary interface. */
#ifndef DSV2_VERSION_H
#define DSV2_VERSION_H

#include <dsv2/export.h>

/* Version of these headers. The build reads the numbers from here; there is no other copy. */
#define DSV2_VERSION_MAJOR 0
#define DSV2_VERSION_MINOR 1
#define DSV2_VERSION_PATCH 0

#define DSV2_VERSION_NUMBER (DSV2_VERSION_MAJOR * 10000 + DSV2_VERSION_MINOR * 100 + DSV2_VERSION_PATCH)

DSV2_BEGIN_DECLS

/* The version of the library that is running, in the form of DSV2_VERSION_NUMBER. A host that compares the two learns
 * of a mismatch between library and headers. Any thread; cannot fail. */
DSV2_API int dsv2_version_number(void);

/* The same as text, "MAJOR.MINOR.PATCH". The string is static and never freed. Any thread; cannot fail. */
DSV2_API const char *dsv2_version_string(void);

DSV2_END_DECLS
#endif

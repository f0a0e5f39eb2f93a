/* xxHash's functions, defined here once: XXH_NAMESPACE, set by the build, begins their names with ds_. */
#define XXH_STATIC_LINKING_ONLY
#define XXH_IMPLEMENTATION
#include <xxhash.h>

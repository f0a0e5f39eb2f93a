/* A claim that ends the program if it does not hold. For fuzz targets, and for threads, which Check does not serve. */
#ifndef DS_TESTS_MUST_H
#define DS_TESTS_MUST_H

#include <dsv2/error.h>

#include <stdio.h>
#include <stdlib.h>

#define MUST(condition)                                                                                                \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s (%s)\n", __FILE__, __LINE__, #condition, dsv2_last_error());                    \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

#endif

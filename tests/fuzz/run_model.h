/* Opens a path as a model and does with it whatever a host may do. */
#ifndef DS_TESTS_RUN_MODEL_H
#define DS_TESTS_RUN_MODEL_H

#include "stream.h"

enum { RUN_BYTES = 8 };

/* `how` says with which options. Ends the program if the library breaks a promise: a status of another kind, an output
 * out of bounds, other bits where the same were promised. */
void run_model(const char *path, const uint8_t how[RUN_BYTES]);

#endif

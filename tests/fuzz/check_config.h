/* What the model room relies on in every configuration that a reader accepts; ends the program where it does not hold. */
#ifndef DS_TESTS_CHECK_CONFIG_H
#define DS_TESTS_CHECK_CONFIG_H

#include "config/config.h"

void check_config(const ds_config *config);

#endif

/* What the model room relies on in every configuration that a reader accepts; ends the program where it does not hold. */
#ifndef DSV2_TESTS_CHECK_CONFIG_H
#define DSV2_TESTS_CHECK_CONFIG_H

#include "model/config.h"

void check_config(const dsv2_config *config);

#endif

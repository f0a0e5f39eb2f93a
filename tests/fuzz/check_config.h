/* Ends the program if a configuration that a reader accepted breaks what the other rooms rely on. */
#ifndef DS_TESTS_CHECK_CONFIG_H
#define DS_TESTS_CHECK_CONFIG_H

#include "config/config.h"

void check_config(const ds_config *config);

#endif

/* DeepSeek-V2-Lite's configuration, whatever file it was read from. */
#ifndef DS_TESTS_LITE_H
#define DS_TESTS_LITE_H

#include "config/config.h"

/* Compares all fields but vocabulary, special tokens and YaRN's mscale, which a file may have otherwise. */
void expect_lite(const ds_config *config);

#endif

/* DeepSeek-V2-Lite's configuration, whatever file it was read from. */
#ifndef DSV2_TESTS_LITE_H
#define DSV2_TESTS_LITE_H

#include "model/config.h"

/* All fields but vocabulary, special tokens and YaRN's mscale, which a file may write otherwise. */
void expect_lite(const dsv2_config *config);

#endif

/* Final norm and output head. */
#ifndef DS_LIB_FORWARD_HEAD_H
#define DS_LIB_FORWARD_HEAD_H

#include "forward/rows.h"

typedef struct ds_head_memory {
    float *logits;  /* [LOGIT_ROWS or fewer][vocab_size] */
    uint32_t *rows; /* [max_rows]: those whose logits are wanted */
} ds_head_memory;

void ds_head_lay_out(ds_head_memory *memory, ds_layout *layout);

/* Logits for the rows whose sequences want them. */
dsv2_status ds_head(ds_rows *rows, ds_head_memory *memory);

#endif

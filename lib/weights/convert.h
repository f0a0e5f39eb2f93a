/* Writing a matrix as another element type, some rows at a time. */
#ifndef DS_LIB_WEIGHTS_CONVERT_H
#define DS_LIB_WEIGHTS_CONVERT_H

#include "kernels/kernels.h"

/* What messages call a weight. The strings are the container's, or outlive the weight otherwise. */
typedef struct ds_weight_label {
    const char *path; /* of the file, or NULL */
    const char *name; /* of the tensor */
} ds_weight_label;

typedef struct ds_conversion {
    ds_matrix from;      /* without data if it is read from a file */
    const ds_file *file; /* the file that it is read from; NULL: its data are in memory or mapped */
    uint64_t offset;     /* where it lies in that file */
    ds_type type;        /* from.type: it is read as it is */
    uint8_t *out;        /* the whole matrix as `type` */
    ds_weight_label label;
} ds_conversion;

/* An element that is not finite, or that the type to be written cannot hold. */
typedef struct ds_misfit {
    uint32_t row, col;
    float value;
} ds_misfit;

/* How much of a matrix's numbers was lost because they are small for the type: sums of squares, of the numbers (at
 * least) and of what they lost. The type's own error, in rows of ordinary size, does not count. */
typedef struct ds_losses {
    double squares, lost;
} ds_losses;

/* Whether `type` holds n floats of row number `row`; sets *misfit to the first that it does not hold. */
bool ds_type_holds(ds_type type, const float *x, uint32_t n, uint32_t row, ds_misfit *misfit);

/* DSV2_ERROR_FORMAT for an element that is not finite, else DSV2_ERROR_UNSUPPORTED. */
dsv2_status ds_misfit_fail(ds_weight_label label, ds_type type, const ds_misfit *misfit);

/* DSV2_ERROR_UNSUPPORTED if a whole matrix lost more than the type's error. A row that is small beside the others, such
 * as the embedding of a token that no text has, is no reason: nothing notices that it is gone. */
dsv2_status ds_losses_check(ds_weight_label label, ds_type type, const ds_losses *losses);

/* Whether the conversion only puts a block type's numbers in another order: fast, and nothing is rounded. */
bool ds_conversion_is_exact(const ds_conversion *conversion);

/* Bytes of scratch that converting rows needs. */
size_t ds_conversion_scratch(const ds_conversion *conversion);

typedef enum ds_converted {
    DS_CONVERTED,
    DS_MISFIT, /* some element is not finite, or `type` cannot hold it */
    DS_UNREAD, /* the file cannot be read: the message is set */
    DS_UNREAD_FOR_MEMORY, /* the same, because memory is lacking */
} ds_converted;

/* Writes rows `first` to `end` - 1: at most DS_PANEL_ROWS, `first` a multiple of that. DS_MISFIT: *misfit is the first
 * element that is at fault. Adds to *losses what the rows lost. Rows that are read as they are, are not looked at. */
ds_converted ds_convert_rows(const ds_kernels *kernels, const ds_conversion *conversion, uint32_t first, uint32_t end,
                             void *scratch, ds_losses *losses, ds_misfit *misfit);

/* Writes element i of an array of F32, F16 or BF16. */
void ds_write_element(ds_type type, void *data, size_t i, float value);

#endif

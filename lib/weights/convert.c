#include "weights/convert.h"

#include <assert.h>
#include <math.h>

bool ds_conversion_is_exact(const ds_conversion *c)
{
    return ds_type_is_interleaved(c->type) && ds_type_twin(c->from.type) == c->type;
}

static bool only_reads(const ds_conversion *c) { return c->type == c->from.type; }

/* Room for DS_PANEL_ROWS rows: as the file has them, as floats, or both if floats are made of what was read. So many
 * rows of any block type have room for a row of floats too. */
size_t ds_conversion_scratch(const ds_conversion *c)
{
    enum { LINE = 64 };
    if (only_reads(c))
        return 0;
    size_t row = ds_conversion_is_exact(c) ? c->from.row_bytes
                                           : c->from.cols * sizeof(float) + (c->file != NULL ? c->from.row_bytes : 0);
    return (DS_PANEL_ROWS * row + LINE - 1) / LINE * LINE;
}

/* Floats below this are finite as `type`; interleaved types have a factor for each row. */
static float type_limit(ds_type type)
{
    const float bf16_infinite = 0x1.ffp127f;
    return type == DS_TYPE_F16 ? DS_F16_INFINITE : type == DS_TYPE_BF16 ? bf16_infinite : INFINITY;
}

bool ds_type_holds(ds_type type, const float *x, uint32_t n, uint32_t row, ds_misfit *misfit)
{
    float limit = type_limit(type);
    if (ds_largest_magnitude(x, n) < limit)
        return true;
    uint32_t col = 0;
    while (fabsf(x[col]) < limit)
        col++;
    *misfit = (ds_misfit){row, col, x[col]};
    return false;
}

dsv2_status ds_misfit_fail(ds_weight_label label, ds_type type, const ds_misfit *misfit)
{
    const char *path = label.path != NULL ? label.path : "", *colon = label.path != NULL ? ": " : "";
    if (!isfinite(misfit->value))
        return ds_fail(DSV2_ERROR_FORMAT, "%s%stensor %s: row %u, column %u is %g, expected a finite number", path,
                       colon, label.name, misfit->row, misfit->col, (double)misfit->value);
    return ds_fail(DSV2_ERROR_UNSUPPORTED,
                   "%s%stensor %s: row %u, column %u is %g, too large for %s; ask for another weight_type", path, colon,
                   label.name, misfit->row, misfit->col, (double)misfit->value, ds_type_name(type));
}

/* Half precision's error: relative for numbers from 2^-14 on, for smaller ones half of 2^-24. */
#define HALF_ERROR 0x1p-11
#define HALF_STEP 0x1p-24

/* Other types than F16 have a float's exponents, or a factor for each row. */
static void add_losses(ds_type type, const float *x, uint32_t n, ds_losses *losses)
{
    if (type != DS_TYPE_F16)
        return;
    double largest = (double)ds_largest_magnitude(x, n);
    if (largest * HALF_ERROR >= sqrt(n) * HALF_STEP / 2) { /* all steps together are within the type's error */
        losses->squares += largest * largest;
        return;
    }
    for (uint32_t i = 0; i < n; i++) {
        double exact = (double)x[i], lost = exact - (double)ds_f16_to_f32(ds_f32_to_f16(x[i]));
        losses->squares += exact * exact;
        losses->lost += lost * lost;
    }
}

dsv2_status ds_losses_check(ds_weight_label label, ds_type type, const ds_losses *losses)
{
    if (losses->lost <= losses->squares * (HALF_ERROR * HALF_ERROR))
        return DSV2_OK;
    return ds_fail(DSV2_ERROR_UNSUPPORTED,
                   "%s%stensor %s: its numbers are too small for %s, which would lose %.2g of their size; ask for "
                   "another weight_type", label.path != NULL ? label.path : "", label.path != NULL ? ": " : "",
                   label.name, ds_type_name(type), sqrt(losses->lost / losses->squares));
}

/* Reads rows as the file has them; a panel of an interleaved matrix is whole there. */
static ds_converted read_rows(const ds_conversion *c, uint32_t first, uint32_t n, void *rows)
{
    size_t row_bytes = c->from.row_bytes, whole = ds_type_is_interleaved(c->from.type) ? DS_PANEL_ROWS : n;
    dsv2_status status = ds_file_read_at(c->file, c->offset + first * row_bytes, rows, whole * row_bytes);
    return status == DSV2_OK ? DS_CONVERTED : status == DSV2_ERROR_MEMORY ? DS_UNREAD_FOR_MEMORY : DS_UNREAD;
}

/* Row first + r as floats, of rows that were read from `first` on. */
static void float_row_of_read(const ds_kernels *kernels, const ds_matrix *from, const uint8_t *read, uint32_t first,
                              uint32_t r, float *row)
{
    ds_matrix rows = *from;
    rows.data = read;
    rows.rows = DS_PANEL_ROWS;
    if (rows.scales != NULL) { /* blocks of scales may begin at any row */
        rows.data = read + r * rows.row_bytes;
        rows.scales += (size_t)((first + r) / rows.scale_rows) * rows.scale_stride;
        r = 0;
    }
    ds_matrix_row(kernels, &rows, r, row);
}

/* The first element of a block type's rows that is not finite. */
static ds_converted find_misfit(const ds_kernels *kernels, const ds_conversion *c, uint32_t first, uint32_t end,
                                void *scratch, ds_misfit *misfit)
{
    float *row = scratch;
    uint8_t *read = (uint8_t *)(row + c->from.cols);
    assert(c->from.cols * sizeof *row + c->from.row_bytes <= ds_conversion_scratch(c));
    *misfit = (ds_misfit){first, 0, NAN};
    for (uint32_t r = first; r < end; r++) {
        ds_converted result = c->file == NULL ? DS_CONVERTED : read_rows(c, r, 1, read);
        if (result != DS_CONVERTED)
            return result;
        if (c->file == NULL)
            ds_matrix_row(kernels, &c->from, r, row);
        else
            float_row_of_read(kernels, &c->from, read, r, 0, row);
        if (!ds_type_holds(DS_TYPE_F32, row, c->from.cols, r, misfit))
            break;
    }
    return DS_MISFIT;
}

/* The rows go to scratch first, in the order that processors foresee: interleaving reads the rows' blocks in turns. */
static ds_converted interleave_rows(const ds_kernels *kernels, const ds_conversion *c, uint32_t first, uint32_t n,
                                    uint8_t *out, uint8_t *scratch, ds_misfit *misfit)
{
    const ds_matrix *from = &c->from;
    const void *rows[DS_PANEL_ROWS];
    ds_converted result = c->file == NULL ? DS_CONVERTED : read_rows(c, first, n, scratch);
    if (result != DS_CONVERTED)
        return result;
    if (c->file == NULL)
        memcpy(scratch, (const uint8_t *)from->data + first * from->row_bytes, n * from->row_bytes);
    for (uint32_t r = 0; r < n; r++)
        rows[r] = scratch + r * from->row_bytes;
    return ds_panel_from_blocks(from->type, out, rows, n, from->cols)
               ? DS_CONVERTED
               : find_misfit(kernels, c, first, first + n, scratch, misfit);
}

static ds_converted round_rows(const ds_kernels *kernels, const ds_conversion *c, uint32_t first, uint32_t n,
                               uint8_t *out, void *scratch, ds_losses *losses, ds_misfit *misfit)
{
    const ds_matrix *from = &c->from;
    const float *rows[DS_PANEL_ROWS];
    size_t row_bytes = ds_type_row_bytes(c->type, from->cols);
    uint8_t *read = (uint8_t *)scratch + DS_PANEL_ROWS * from->cols * sizeof(float);
    ds_converted result = c->file == NULL ? DS_CONVERTED : read_rows(c, first, n, read);
    if (result != DS_CONVERTED)
        return result;
    for (uint32_t r = 0; r < n; r++) {
        float *row = (float *)scratch + (size_t)r * from->cols;
        if (c->file != NULL)
            float_row_of_read(kernels, from, read, first, r, row);
        else
            ds_matrix_row(kernels, from, first + r, row);
        if (!ds_type_holds(c->type, row, from->cols, first + r, misfit))
            return DS_MISFIT;
        add_losses(c->type, row, from->cols, losses);
        rows[r] = row;
        for (uint32_t i = 0; i < from->cols && !ds_type_is_interleaved(c->type); i++)
            ds_write_element(c->type, out + r * row_bytes, i, row[i]);
    }
    if (ds_type_is_interleaved(c->type))
        ds_panel_from_floats(c->type, out, rows, n, from->cols);
    return DS_CONVERTED;
}

ds_converted ds_convert_rows(const ds_kernels *kernels, const ds_conversion *c, uint32_t first, uint32_t end,
                             void *scratch, ds_losses *losses, ds_misfit *misfit)
{
    uint32_t n = end - first;
    uint8_t *out = c->out + first * ds_type_row_bytes(c->type, c->from.cols);
    assert(first % DS_PANEL_ROWS == 0 && n <= DS_PANEL_ROWS && end <= c->from.rows);
    assert((c->file == NULL) == (c->from.data != NULL));
    if (only_reads(c))
        return read_rows(c, first, n, out);
    if (ds_conversion_is_exact(c))
        return interleave_rows(kernels, c, first, n, out, scratch, misfit);
    return round_rows(kernels, c, first, n, out, scratch, losses, misfit);
}

void ds_write_element(ds_type type, void *data, size_t i, float value)
{
    if (type == DS_TYPE_F32)
        ((float *)data)[i] = value;
    else
        ((uint16_t *)data)[i] = type == DS_TYPE_F16 ? ds_f32_to_f16(value) : ds_f32_to_bf16(value);
}

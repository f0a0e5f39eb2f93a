#include "weights/convert.h"

#include <assert.h>

bool ds_conversion_is_exact(const ds_conversion *c)
{
    return ds_type_is_interleaved(c->type) && ds_type_twin(c->from.type) == c->type;
}

/* Room for DS_PANEL_ROWS rows, as the file has them or as floats. */
size_t ds_conversion_scratch(const ds_conversion *c)
{
    enum { LINE = 64 };
    size_t row = ds_conversion_is_exact(c) ? c->from.row_bytes : c->from.cols * sizeof(float);
    return (DS_PANEL_ROWS * row + LINE - 1) / LINE * LINE;
}

/* The rows are copied to scratch first, in the order that processors foresee: interleaving reads the rows' blocks in
 * turns. */
static void interleave_rows(const ds_conversion *c, uint32_t first, uint32_t n, uint8_t *out, uint8_t *scratch)
{
    const ds_matrix *from = &c->from;
    const void *rows[DS_PANEL_ROWS];
    memcpy(scratch, (const uint8_t *)from->data + first * from->row_bytes, n * from->row_bytes);
    for (uint32_t r = 0; r < n; r++)
        rows[r] = scratch + r * from->row_bytes;
    ds_panel_from_blocks(from->type, out, rows, n, from->cols);
}

void ds_convert_rows(const ds_kernels *kernels, const ds_conversion *c, uint32_t first, uint32_t end, void *scratch)
{
    const ds_matrix *from = &c->from;
    uint32_t n = end - first;
    size_t row_bytes = ds_type_row_bytes(c->type, from->cols);
    uint8_t *out = c->out + first * row_bytes;
    assert(first % DS_PANEL_ROWS == 0 && n <= DS_PANEL_ROWS && end <= from->rows);
    if (ds_conversion_is_exact(c)) {
        interleave_rows(c, first, n, out, scratch);
        return;
    }
    const float *rows[DS_PANEL_ROWS];
    for (uint32_t r = 0; r < n; r++) {
        float *row = (float *)scratch + (size_t)r * from->cols;
        ds_matrix_row(kernels, from, first + r, row);
        rows[r] = row;
        for (uint32_t i = 0; i < from->cols && !ds_type_is_interleaved(c->type); i++)
            ds_write_element(c->type, out + r * row_bytes, i, row[i]);
    }
    if (ds_type_is_interleaved(c->type))
        ds_panel_from_floats(c->type, out, rows, n, from->cols);
}

void ds_write_element(ds_type type, void *data, size_t i, float value)
{
    if (type == DS_TYPE_F32)
        ((float *)data)[i] = value;
    else
        ((uint16_t *)data)[i] = type == DS_TYPE_F16 ? ds_f32_to_f16(value) : ds_f32_to_bf16(value);
}

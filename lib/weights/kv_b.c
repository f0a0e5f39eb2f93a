#include "weights/kv_b.h"

static bool is_half(ds_type type) { return type == DS_TYPE_F16 || type == DS_TYPE_BF16; }

ds_type ds_joined_kv_b_type(ds_type k_b, ds_type v_b) { return k_b == v_b && is_half(k_b) ? k_b : DS_TYPE_F32; }

ds_type ds_transposed_k_up_type(ds_type kv_b)
{
    if (is_half(kv_b))
        return kv_b;
    return ds_type_is_interleaved(kv_b) ? DS_TYPE_F16 : DS_TYPE_F32;
}

static dsv2_status new_row(uint32_t n, float **row)
{
    *row = ds_new(n, sizeof **row);
    return *row != NULL ? DSV2_OK : ds_fail_memory("a row of kv_b_proj", n * sizeof **row);
}

/* One row of a matrix as floats, all of which fit both types. */
static dsv2_status read_row(const ds_kernels *kernels, const ds_labelled_matrix *from, uint32_t row, ds_type type,
                            ds_type held, float *out)
{
    ds_misfit misfit;
    ds_matrix_row(kernels, &from->matrix, row, out);
    if (!ds_type_holds(type, out, from->matrix.cols, row, &misfit))
        return ds_misfit_fail(from->label, type, &misfit);
    if (held != type && !ds_type_holds(held, out, from->matrix.cols, row, &misfit))
        return ds_misfit_fail(from->label, held, &misfit);
    return DSV2_OK;
}

/* Writes a row of n elements as row `to` of a matrix. */
static void write_row(ds_type type, void *out, size_t to, uint32_t n, const float *row)
{
    for (uint32_t i = 0; i < n; i++)
        ds_write_element(type, out, to * n + i, row[i]);
}

/* Writes a row of n elements as column `to` of a matrix with `stride` columns, from row `first_row` down. */
static void write_column(ds_type type, void *out, size_t first_row, size_t to, size_t stride, uint32_t n,
                         const float *row)
{
    for (uint32_t i = 0; i < n; i++)
        ds_write_element(type, out, (first_row + i) * stride + to, row[i]);
}

dsv2_status ds_join_kv_b(const ds_kernels *kernels, const ds_config *config, const ds_labelled_matrix *k_b,
                         const ds_labelled_matrix *v_b, ds_type type, ds_type held, void *out)
{
    uint32_t nope = config->qk_nope_head_dim, v_dim = config->v_head_dim, lora = config->kv_lora_rank;
    float *row;
    dsv2_status status = new_row(lora > nope ? lora : nope, &row);
    for (uint32_t head = 0; head < config->num_attention_heads && status == DSV2_OK; head++) {
        size_t first_row = (size_t)head * (nope + v_dim);
        for (uint32_t c = 0; c < lora && status == DSV2_OK; c++) {
            status = read_row(kernels, k_b, head * lora + c, type, held, row);
            if (status == DSV2_OK)
                write_column(type, out, first_row, c, lora, nope, row);
        }
        for (uint32_t i = 0; i < v_dim && status == DSV2_OK; i++) {
            status = read_row(kernels, v_b, head * v_dim + i, type, held, row);
            if (status == DSV2_OK)
                write_row(type, out, first_row + nope + i, lora, row);
        }
    }
    ds_free(row);
    return status;
}

dsv2_status ds_transpose_k_up(const ds_kernels *kernels, const ds_config *config, const ds_labelled_matrix *kv_b,
                              ds_type type, ds_type held, void *out)
{
    uint32_t nope = config->qk_nope_head_dim, v_dim = config->v_head_dim, lora = config->kv_lora_rank;
    float *row;
    dsv2_status status = new_row(lora, &row);
    for (uint32_t head = 0; head < config->num_attention_heads && status == DSV2_OK; head++) {
        for (uint32_t i = 0; i < nope && status == DSV2_OK; i++) {
            status = read_row(kernels, kv_b, head * (nope + v_dim) + i, type, held, row);
            if (status == DSV2_OK)
                write_column(type, out, (size_t)head * lora, i, nope, lora, row);
        }
    }
    ds_free(row);
    return status;
}

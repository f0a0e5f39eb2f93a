#include "weights/held_type.h"

/* As stored: a type that the kernels take stays; a block type becomes its interleaved twin, or 8 bits if it has
 * none. */
static ds_type stored_type(ds_sensitivity sensitivity, ds_type found)
{
    if (ds_type_is_plain(found) || found == DS_TYPE_F8_E4M3 || ds_type_is_interleaved(found))
        return found;
    if (sensitivity == DS_SENSITIVITY_ROUTER)
        return DS_TYPE_F32;
    ds_type twin = ds_type_twin(found);
    return twin != DS_TYPE_COUNT ? twin : DS_TYPE_P8;
}

/* The router stays exact. Embedding, head and latent get more bits than asked for: they are small, or matter more
 * than their size. */
static ds_type rounded_type(ds_sensitivity sensitivity, ds_type found, ds_type wanted)
{
    switch (sensitivity) {
    case DS_SENSITIVITY_ROUTER: return ds_type_is_plain(found) ? found : DS_TYPE_F32;
    case DS_SENSITIVITY_EMBEDDING:
    case DS_SENSITIVITY_LATENT: return DS_TYPE_P8;
    case DS_SENSITIVITY_HEAD: return wanted == DS_TYPE_P8 ? DS_TYPE_P8 : DS_TYPE_P6;
    case DS_SENSITIVITY_USUAL: break;
    }
    return wanted;
}

ds_type ds_held_type(dsv2_weight_type weight_type, ds_role role, ds_type found)
{
    ds_sensitivity sensitivity = ds_role_info_of(role)->sensitivity;
    ds_type asked = ds_type_asked(weight_type);
    if (asked == DS_TYPE_COUNT)
        return stored_type(sensitivity, found);
    return ds_type_is_plain(asked) ? asked : rounded_type(sensitivity, found, asked);
}

size_t ds_matrix_bytes(ds_type type, uint32_t rows, uint32_t cols)
{
    size_t filled_up = ((size_t)rows + DS_PANEL_ROWS - 1) / DS_PANEL_ROWS * DS_PANEL_ROWS;
    size_t whole = ds_type_is_interleaved(type) ? filled_up : rows;
    return whole * ds_type_row_bytes(type, cols);
}

#include "sampling/sampling.h"

static ds_sized sized_sampling(void) { return DS_SIZED(dsv2_sampling, seed); }

void dsv2_sampling_defaults(dsv2_sampling *sampling)
{
    if (sampling == NULL)
        return;
    size_t first_size = sized_sampling().first_size; /* a host of version 0.1 has room for no more */
    memcpy(sampling, &ds_sampling_defaults, first_size);
    memcpy(&sampling->struct_size, &first_size, sizeof first_size);
}

dsv2_status dsv2_sampling_get_defaults(dsv2_sampling *sampling)
{
    return ds_write_info(sized_sampling(), sampling, &ds_sampling_defaults);
}

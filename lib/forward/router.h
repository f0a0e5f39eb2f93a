/* Choosing experts (section 2.2 of the report). */
#ifndef DS_LIB_FORWARD_ROUTER_H
#define DS_LIB_FORWARD_ROUTER_H

#include "forward/rows.h"

void ds_routes_lay_out(ds_routes *routes, ds_layout *layout);

/* Fills routes from rows->normed. */
dsv2_status ds_route(ds_rows *rows, const ds_moe_weights *moe, ds_routes *routes);

#endif

/* The element types of weights, by all their names and numbers. types.def is the one list of them. */
#ifndef DS_LIB_KERNELS_TYPES_H
#define DS_LIB_KERNELS_TYPES_H

#include "base/base.h"

/* In the order of types.def: the plain types first, then E4M3, the block types and the interleaved types. */
typedef enum ds_type {
#define PLAIN(TYPE, ...) DS_TYPE_##TYPE,
#define SCALED(TYPE, ...) DS_TYPE_##TYPE,
#define BLOCK(TYPE, ...) DS_TYPE_##TYPE,
#define INTERLEAVED(TYPE, ...) DS_TYPE_##TYPE,
#include "kernels/types.def"
    DS_TYPE_COUNT
} ds_type;

/* Rows of an interleaved matrix lie in panels of this many; the last panel is filled up. */
enum { DS_PANEL_ROWS = 16 };

/* Columns of a block of activations, and of a block of an interleaved type. */
enum { DS_BLOCK_COLS = 32 };

const char *ds_type_name(ds_type type);

/* F32, F16 and BF16: the types whose elements stand alone, which every set multiplies as they are. */
bool ds_type_is_plain(ds_type type);

/* The block types of GGUF files. */
bool ds_type_is_block(ds_type type);

bool ds_type_is_interleaved(ds_type type);

/* Elements and bytes of a block; 1 element for types without blocks, 0 bytes for interleaved types. */
uint32_t ds_type_block(ds_type type);
uint32_t ds_type_block_bytes(ds_type type);

/* The interleaved type that holds all values of a block type exactly (of IQ4_XS with scales rounded to half
 * precision, 2^-11 of a value at the most); DS_TYPE_COUNT if there is none. */
ds_type ds_type_twin(ds_type type);

/* The type with this number in GGUF files; DS_TYPE_COUNT if there is none. */
ds_type ds_type_of_gguf(uint32_t number);

/* The number in packs, 0 for types that packs do not hold; and the type with this number, DS_TYPE_COUNT if there is
 * none. */
uint8_t ds_type_pack_code(ds_type type);
ds_type ds_type_of_pack_code(uint8_t code);

/* What a host is told that weights of a type are. An interleaved type goes under the name of the first block type
 * whose twin it is; DSV2_WEIGHTS_AS_STORED if there is no name. */
dsv2_weight_type ds_type_public(ds_type type);

/* The type whose name dsv2_weight_type has, and the type that large matrices are held in if a host asks for it: a
 * plain type itself, a block type's twin. DS_TYPE_COUNT if there is none. */
ds_type ds_type_named(dsv2_weight_type weight_type);
ds_type ds_type_asked(dsv2_weight_type weight_type);

#endif

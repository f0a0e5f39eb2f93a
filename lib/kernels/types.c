#include "kernels/types.h"

static const struct {
    const char *name;
    int32_t public_number, gguf;
    uint8_t pack;
    uint32_t block, bytes; /* elements of a block and its bytes; 0 bytes: interleaved */
    ds_type twin;
} types[DS_TYPE_COUNT] = {
#define PLAIN(TYPE, name, public, gguf, pack, bytes, text) \
    [DS_TYPE_##TYPE] = {#TYPE, public, gguf, pack, 1, bytes, DS_TYPE_COUNT},
#define SCALED(TYPE, name, public, bytes, text) [DS_TYPE_##TYPE] = {#TYPE, public, -1, 0, 1, bytes, DS_TYPE_COUNT},
#define BLOCK(TYPE, name, public, gguf, elements, bytes, section, zero, twin, text) \
    [DS_TYPE_##TYPE] = {#TYPE, public, gguf, 0, elements, bytes, DS_TYPE_##twin},
#define INTERLEAVED(TYPE, name, pack, bits, zero, header) [DS_TYPE_##TYPE] = {#TYPE, 0, -1, pack, 1, 0, DS_TYPE_COUNT},
#include "kernels/types.def"
};

static bool is_type(ds_type type) { return (unsigned)type < DS_TYPE_COUNT; }

const char *ds_type_name(ds_type type) { return is_type(type) ? types[type].name : "unknown"; }

bool ds_type_is_plain(ds_type type)
{
    switch (type) {
#define PLAIN(TYPE, ...) case DS_TYPE_##TYPE:
#include "kernels/types.def"
        return true;
    default: return false;
    }
}

bool ds_type_is_block(ds_type type) { return is_type(type) && types[type].block > 1; }

bool ds_type_is_interleaved(ds_type type) { return is_type(type) && types[type].bytes == 0; }

uint32_t ds_type_block(ds_type type) { return is_type(type) ? types[type].block : 1; }

uint32_t ds_type_block_bytes(ds_type type) { return is_type(type) ? types[type].bytes : 0; }

ds_type ds_type_twin(ds_type type) { return is_type(type) ? types[type].twin : DS_TYPE_COUNT; }

ds_type ds_type_of_gguf(uint32_t number)
{
    ds_type type = 0;
    while (type < DS_TYPE_COUNT && types[type].gguf != (int64_t)number)
        type++;
    return type;
}

uint8_t ds_type_pack_code(ds_type type) { return is_type(type) ? types[type].pack : 0; }

ds_type ds_type_of_pack_code(uint8_t code)
{
    ds_type type = 0;
    while (type < DS_TYPE_COUNT && (code == 0 || types[type].pack != code))
        type++;
    return type;
}

dsv2_weight_type ds_type_public(ds_type type)
{
    ds_type named = type;
    if (ds_type_is_interleaved(type))
        for (named = 0; named < DS_TYPE_COUNT && (types[named].twin != type || types[named].public_number == 0);)
            named++;
    return is_type(named) ? (dsv2_weight_type)types[named].public_number : DSV2_WEIGHTS_AS_STORED;
}

ds_type ds_type_named(dsv2_weight_type weight_type)
{
    ds_type type = 0;
    while (type < DS_TYPE_COUNT &&
           (weight_type == DSV2_WEIGHTS_AS_STORED || types[type].public_number != (int32_t)weight_type))
        type++;
    return type;
}

ds_type ds_type_asked(dsv2_weight_type weight_type)
{
    ds_type type = ds_type_named(weight_type);
    return ds_type_is_plain(type) ? type : ds_type_twin(type);
}

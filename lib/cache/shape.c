/* What rows look like: how each kind of attention describes them, and where in a row each part lies. */
#include "cache/cache.h"

#include <math.h>

/* The RoPE key is kept more precise than the latent: an error there costs much more (with 8 bits in place of f16 the
 * perplexity of q8 is off by 0.06 % in place of 0.005 %). */
const ds_row_description ds_mla_row = {
    .number = 0,
    .n_parts = DS_MLA_PARTS,
    .parts = {
        [DS_MLA_LATENT] = {"latent", "kv_lora_rank", 1, DS_MAX_LATENT_WIDTH,
                           {
                               [DSV2_CACHE_F32] = DS_ENCODING_F32,
                               [DSV2_CACHE_F16] = DS_ENCODING_F16,
                               [DSV2_CACHE_Q8] = DS_ENCODING_BYTES_64,
                               [DSV2_CACHE_Q6] = DS_ENCODING_PAIRS,
                           }},
        [DS_MLA_ROPE] = {"RoPE key", "qk_rope_head_dim", 0, DS_MAX_ROPE_WIDTH,
                         {
                             [DSV2_CACHE_F32] = DS_ENCODING_F32,
                             [DSV2_CACHE_F16] = DS_ENCODING_F16,
                             [DSV2_CACHE_Q8] = DS_ENCODING_F16,
                             [DSV2_CACHE_Q6] = DS_ENCODING_BYTES_16,
                         }},
    },
};

const ds_row_description *ds_row_description_of(uint32_t number)
{
    static const ds_row_description *const rows[] = {&ds_mla_row}; /* a line for each kind of attention */
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (rows[i]->number == number)
            return rows[i];
    return NULL;
}

const char *ds_cache_type_name(uint32_t type)
{
    static const char *const names[DS_CACHE_TYPES] = {
        [DSV2_CACHE_F32] = "f32", [DSV2_CACHE_F16] = "f16", [DSV2_CACHE_Q8] = "q8", [DSV2_CACHE_Q6] = "q6"};
    return type < DS_CACHE_TYPES && names[type] != NULL ? names[type] : "unknown";
}

/* Sums of the rotation stay finite below this, and so do scales. */
#define CODES_LIMIT 0x1p100f

static const struct {
    uint32_t number_bytes; /* of an element that is stored as a number of its own; 0: elements are codes with scales */
    uint32_t section;
    float limit;
} forms[DS_ENCODINGS] = {
    [DS_ENCODING_F32] = {.number_bytes = 4, .limit = INFINITY},
    [DS_ENCODING_F16] = {.number_bytes = 2, .limit = DS_F16_INFINITE},
    [DS_ENCODING_BYTES_64] = {.section = 64, .limit = CODES_LIMIT},
    [DS_ENCODING_BYTES_16] = {.section = 16, .limit = CODES_LIMIT},
    [DS_ENCODING_PAIRS] = {.section = 128, .limit = CODES_LIMIT},
};

static size_t code_bytes(ds_encoding encoding, size_t n)
{
    return encoding == DS_ENCODING_PAIRS ? (n / 2 + 7) / 8 * 11 : n;
}

/* Which elements are the part's, and which of them its encoding stores. */
static dsv2_status divide_elements(ds_cache_shape *shape)
{
    uint32_t at = 0, stored = 0;
    for (uint32_t p = 0; p < shape->n_parts; p++) {
        ds_cache_part *part = &shape->parts[p];
        part->first = at;
        at += part->width;
        part->stored_first = stored;
        part->stored_width = at - stored;
        if (part->encoding == DS_ENCODING_PAIRS)
            part->stored_width -= part->stored_width % 2;
        stored += part->stored_width;
    }
    const ds_cache_part *last = &shape->parts[shape->n_parts - 1];
    if (stored != at)
        return ds_fail(DSV2_ERROR_ARGUMENT,
                       "a cached row has %u elements, its last part is %s: pairs need an even number", at, last->name);
    shape->width = at;
    return DSV2_OK;
}

/* A row has numbers first, then scales, then codes, those of each part in order: so what is wider than a byte lies at
 * an even place. */
static void place_parts(ds_cache_shape *shape)
{
    size_t at = 0;
    for (uint32_t p = 0; p < shape->n_parts; p++) {
        shape->parts[p].elements = at;
        at += (size_t)forms[shape->parts[p].encoding].number_bytes * shape->parts[p].stored_width;
    }
    for (uint32_t p = 0; p < shape->n_parts; p++) {
        ds_cache_part *part = &shape->parts[p];
        part->scales = at;
        if (part->section > 0)
            at += (part->stored_width + part->section - 1) / part->section * (size_t)DS_SCALE_BYTES;
    }
    for (uint32_t p = 0; p < shape->n_parts; p++) {
        ds_cache_part *part = &shape->parts[p];
        if (part->section == 0)
            continue;
        part->elements = at;
        at += code_bytes(part->encoding, part->stored_width);
    }
    shape->row_bytes = at;
}

static ds_part_integers integers_of(const ds_cache_part *part)
{
    if (part->stored_first != part->first || part->stored_width != part->width)
        return DS_INTEGERS_ROUNDED; /* an element at one end has a scale of its own */
    if (part->encoding == DS_ENCODING_F16)
        return DS_INTEGERS_HALVES;
    if (part->section == 0 || part->section % DS_SCALE_COLS != 0)
        return DS_INTEGERS_ROUNDED; /* there is no one stored scale for a section of attention's */
    return part->encoding == DS_ENCODING_PAIRS ? DS_INTEGERS_SPLIT : DS_INTEGERS_IN_PLACE;
}

/* 4 or 2 if all parts are such numbers, else 1. */
static uint32_t number_bytes(const ds_cache_shape *shape)
{
    uint32_t bytes = forms[shape->parts[0].encoding].number_bytes;
    for (uint32_t p = 1; p < shape->n_parts; p++)
        if (forms[shape->parts[p].encoding].number_bytes != bytes)
            return 1;
    return bytes > 0 ? bytes : 1;
}

dsv2_status ds_cache_shape_init(ds_cache_shape *shape, const ds_row_description *row, const uint32_t *widths,
                                dsv2_cache_type type, uint32_t n_layers)
{
    if (type == DSV2_CACHE_DEFAULT)
        type = DSV2_CACHE_Q8;
    if ((unsigned)type >= DS_CACHE_TYPES)
        return ds_fail(DSV2_ERROR_ARGUMENT, "cache_type is %d, expected a dsv2_cache_type", (int)type);
    *shape = (ds_cache_shape){.row = row, .type = type, .n_layers = n_layers, .n_parts = row->n_parts};
    for (uint32_t p = 0; p < row->n_parts; p++) {
        ds_encoding encoding = row->parts[p].encoding[type];
        shape->parts[p] = (ds_cache_part){
            .name = row->parts[p].name,
            .width = widths[p],
            .encoding = encoding,
            .section = forms[encoding].section,
            .limit = forms[encoding].limit,
            .integer_sections = (widths[p] + DS_SCALE_COLS - 1) / DS_SCALE_COLS,
            /* the largest power of two that divides the width */
            .rotation = encoding == DS_ENCODING_PAIRS ? widths[p] & -widths[p] : 1,
        };
        shape->is_quantised = shape->is_quantised || forms[encoding].section > 0;
    }
    dsv2_status status = divide_elements(shape);
    if (status != DSV2_OK)
        return status;
    place_parts(shape);
    for (uint32_t p = 0; p < shape->n_parts; p++)
        shape->parts[p].integers = integers_of(&shape->parts[p]);
    shape->number_bytes = number_bytes(shape);
    shape->layer_bytes = shape->row_bytes * DS_PAGE_TOKENS;
    shape->page_bytes = shape->layer_bytes * n_layers;
    return DSV2_OK;
}

/* The block types of GGUF files, each decoded in one place: into integers, scales and minima, of which both floats
 * and interleaved weights are made. Private to the room. */
#ifndef DS_LIB_KERNELS_BLOCKS_H
#define DS_LIB_KERNELS_BLOCKS_H

#include "kernels/kernels.h"

enum { DS_MAX_BLOCK = 256, DS_MAX_SECTIONS = 16 };

/* What a block holds beside its integers q. Element i, of section s, is (scale * scales[s]) * (q[i] - zero) -
 * minimum * minima[s]; these are the products of the format, in its order. */
typedef struct ds_block_scales {
    uint16_t scale, minimum; /* F16 */
    int8_t scales[DS_MAX_SECTIONS];
    uint8_t minima[DS_MAX_SECTIONS];
} ds_block_scales;

typedef struct ds_block_format {
    /* Reads one block: all integers, q[elements], and all scales. */
    void (*decode)(const uint8_t *block, uint8_t *q, ds_block_scales *s);
    size_t elements, bytes, n_sections;
} ds_block_format;

/* Of each block type; zeros for the others. */
extern const ds_block_format ds_block_formats[DS_TYPE_COUNT];

/* n elements, whole blocks, to floats: what every kernel set has as to_f32 of the block types. */
#define BLOCK(TYPE, name, ...) ds_to_f32_fn ds_##name##_to_f32;
#include "kernels/types.def"

#endif

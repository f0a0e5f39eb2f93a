/* The layout of interleaved weights. Private to the room; README.md tells it in words.
 *
 * 16 rows are a panel. A panel is 16 floats, a factor for each row, and then superblocks of 256 columns. A
 * superblock is a header for all of its 256 columns and then blocks of 32 columns, as many as the matrix has. In a
 * block, 64 bytes are a vector of 16 lanes, lane r being 4 bytes of row r. */
#ifndef DS_LIB_KERNELS_INTERLEAVED_H
#define DS_LIB_KERNELS_INTERLEAVED_H

#include "kernels/types.h"

enum {
    SUPERBLOCK_COLS = 256,
    SUPERBLOCK_BLOCKS = SUPERBLOCK_COLS / DS_BLOCK_COLS,
    VECTOR = 4 * DS_PANEL_ROWS,     /* bytes */
    BLOCK_WORDS = DS_BLOCK_COLS / 4, /* vectors of a block whose weights are bytes: word g has columns 4g to 4g + 3 */

    PANEL_HEADER = VECTOR, /* 16 floats: powers of two, so that no scale in half precision is too large or too small */

    /* Headers of superblocks. P4, P5: w = scale * sub_scale * q - minimum * sub_minimum */
    HEADER_SCALES = 0,           /* F16 [16 rows], also of P6 */
    HEADER_MINIMA = VECTOR / 2,  /* F16 [16 rows] */
    HEADER_SIX_BITS = VECTOR,    /* 3 vectors, 256 numbers of 6 bits: [2: sub-scales, sub-minima][8 blocks][16 rows].
                                    Number i < 192 is the low part of byte i; number 192 + i has its bits in
                                    the high parts of bytes i, 64 + i and 128 + i, lowest first */
    /* P6: w = scale * sixteenth * (q - 32) */
    HEADER_SIXTEENTHS = VECTOR / 2, /* int8 [16][16 rows], one for every 16 columns */
    /* P8, P4S, P5S: w = half * (q - zero); P4M, P5M: w = half * q - minimum */
    HEADER_HALVES = 0,                  /* F16 [8 blocks][16 rows] */
    HEADER_BLOCK_MINIMA = 4 * VECTOR,   /* F16 [8 blocks][16 rows], of P4M and P5M */
};

/* What the header of a superblock holds; see above. */
typedef enum ds_header { SIX_BITS, SIXTEENTHS, HALVES, HALVES_AND_MINIMA } ds_header;

/* These four fold to constants where the type is one. Types that are not interleaved count as P8. */
static inline ds_header ds_header_of(ds_type type)
{
    switch (type) {
#define INTERLEAVED(TYPE, name, pack, bits, zero, header) \
    case DS_TYPE_##TYPE: return header;
#include "kernels/types.def"
    default: return HALVES;
    }
}

/* Bits of a weight's integer. */
static inline size_t ds_integer_bits(ds_type type)
{
    switch (type) {
#define INTERLEAVED(TYPE, name, pack, bits, zero, header) \
    case DS_TYPE_##TYPE: return bits;
#include "kernels/types.def"
    default: return 8;
    }
}

/* What is subtracted from the integer; 0 for types with minima. */
static inline int ds_integer_zero(ds_type type)
{
    switch (type) {
#define INTERLEAVED(TYPE, name, pack, bits, zero, header) \
    case DS_TYPE_##TYPE: return zero;
#include "kernels/types.def"
    default: return 128;
    }
}

static inline bool ds_has_six_bits(ds_type type) { return ds_header_of(type) == SIX_BITS; }
static inline bool ds_has_block_minima(ds_type type) { return ds_header_of(type) == HALVES_AND_MINIMA; }

static inline size_t ds_header_bytes(ds_type type)
{
    if (ds_has_block_minima(type))
        return HEADER_BLOCK_MINIMA + 4 * VECTOR;
    return ds_header_of(type) == SIXTEENTHS ? HEADER_SIXTEENTHS + 4 * VECTOR : 4 * VECTOR;
}

/* Bytes of a block:
 *   4 bits   4 vectors: vector v has word v low, word 4 + v high
 *   5 bits   these 4, then 1 vector: bit g of byte b of a lane is bit 4 of column 4g + b
 *   6 bits   these 4, then 2 vectors h: bits 2g and 2g + 1 of byte b are bits 4 and 5 of column 16h + 4g + b, g < 4
 *   8 bits   8 vectors, word by word */
static inline size_t ds_block_bytes(ds_type type) { return ds_integer_bits(type) * VECTOR; }

static inline size_t ds_panel_bytes(ds_type type, size_t cols)
{
    return PANEL_HEADER + (cols + SUPERBLOCK_COLS - 1) / SUPERBLOCK_COLS * ds_header_bytes(type) +
           (cols + DS_BLOCK_COLS - 1) / DS_BLOCK_COLS * ds_block_bytes(type);
}

/* Superblock number `superblock` of a panel; all superblocks before are whole. */
static inline const uint8_t *ds_superblock(ds_type type, const void *panel, size_t superblock)
{
    size_t bytes = ds_header_bytes(type) + SUPERBLOCK_BLOCKS * ds_block_bytes(type);
    return (const uint8_t *)panel + PANEL_HEADER + superblock * bytes;
}

/* A block of activations whose largest magnitude is less counts as zeros: 127 over it would overflow. */
#define DS_X8_LEAST 1e-36f

/* One row of a panel as floats. c/interleaved.c. */
void ds_panel_row(ds_type type, const void *panel, size_t row, float *out, size_t cols);

#endif

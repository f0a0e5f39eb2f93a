/* Products with interleaved weights for sets that multiply and add four bytes at once. A set's file includes this
 * template after interleaved_template.h. Beside what that template needs, the file defines:
 *   to_floats(v)                signed lanes
 *   splat_int(n)
 *   floats_of_u8(p) floats_of_s8(p)         LANES bytes
 *   fnmadd(a, b, c)             c - a * b
 *   dot_bytes(sum, w, x)        adds to each lane the products of its 4 unsigned bytes in w and 4 signed ones at x
 */

/* A superblock's scales and minima, for blocks or, in P6, half blocks: a weight is scale * q - minimum. */
typedef struct affine {
    vec scales[2 * SUPERBLOCK_BLOCKS], minima[2 * SUPERBLOCK_BLOCKS];
} affine;

INLINE void read_header(ds_type type, affine *a, const uint8_t *superblock, size_t part)
{
    size_t row = part * LANES;
    if (ds_has_six_bits(type)) {
        uint8_t numbers[4 * VECTOR] __attribute__((aligned(64)));
        unpack_six_bits(numbers, superblock + HEADER_SIX_BITS);
        vec scale = load_f16(superblock + HEADER_SCALES + 2 * row);
        vec minimum = load_f16(superblock + HEADER_MINIMA + 2 * row);
        for (size_t b = 0; b < SUPERBLOCK_BLOCKS; b++) {
            a->scales[b] = mul(scale, floats_of_u8(numbers + b * DS_PANEL_ROWS + row));
            a->minima[b] = mul(minimum, floats_of_u8(numbers + (SUPERBLOCK_BLOCKS + b) * DS_PANEL_ROWS + row));
        }
        return;
    }
    size_t n = type == DS_TYPE_P6 ? 2 * SUPERBLOCK_BLOCKS : SUPERBLOCK_BLOCKS;
    vec zero_point = splat((float)ds_integer_zero(type));
    for (size_t b = 0; b < n; b++) {
        if (type == DS_TYPE_P6)
            a->scales[b] = mul(load_f16(superblock + HEADER_SCALES + 2 * row),
                               floats_of_s8(superblock + HEADER_SIXTEENTHS + b * DS_PANEL_ROWS + row));
        else
            a->scales[b] = load_f16(superblock + HEADER_HALVES + 2 * (b * DS_PANEL_ROWS + row));
        if (ds_has_block_minima(type))
            a->minima[b] = load_f16(superblock + HEADER_BLOCK_MINIMA + 2 * (b * DS_PANEL_ROWS + row));
        else
            a->minima[b] = mul(a->scales[b], zero_point);
    }
}

/* ---- products ---- */

enum {
    VECS = DS_PANEL_ROWS / LANES, /* vectors of a panel's rows */
    PANEL_X_ROWS = 12,            /* rows of activations that meet a panel together: registers hold their sums,
                                     in floats and in integers */
};

/* Adds the products of `n` words from word `first` on, with scale and minimum `at` of the superblock. The order of
 * these steps is the sums' order. */
INLINE void add_words(ds_type type, vec *sums, const ds_x8 *const *x, size_t n_x, const affine *affine,
                      const uint8_t *block, size_t first, size_t n, size_t at)
{
    ivec d[PANEL_X_ROWS * VECS];
    UNROLL
    for (size_t a = 0; a < n_x * VECS; a++)
        d[a] = splat_int(0);
    UNROLL
    for (size_t g = 0; g < n; g++) {
        /* low and high halves of the same bytes one after the other */
        size_t step = n == BLOCK_WORDS && type != DS_TYPE_P8 ? g / 2 + g % 2 * 4 : first + g;
        ivec words[VECS];
        UNROLL
        for (size_t v = 0; v < VECS; v++)
            words[v] = read_word(type, block + v * PART, step);
        UNROLL
        for (size_t i = 0; i < n_x; i++)
            UNROLL
            for (size_t v = 0; v < VECS; v++)
                d[i * VECS + v] = dot_bytes(d[i * VECS + v], words[v], x[i]->q + 4 * step);
    }
    UNROLL
    for (size_t i = 0; i < n_x; i++) {
        vec scale = splat(x[i]->scale), sum = splat(n == BLOCK_WORDS ? x[i]->sum : x[i]->halves[first / 4]);
        UNROLL
        for (size_t v = 0; v < VECS; v++) {
            vec *s = &sums[i * VECS + v];
            *s = fmadd(mul(to_floats(d[i * VECS + v]), scale), affine[v].scales[at], *s);
            *s = fnmadd(sum, affine[v].minima[at], *s);
        }
    }
}

/* Weights come from memory, and with several rows to multiply the processor does not look far enough ahead by
 * itself. (With one or two it does, and this only costs: decoding was seen a sixth slower.) */
INLINE void prefetch(const uint8_t *block, size_t bytes)
{
    enum { AHEAD = 4608 };
    UNROLL
    for (size_t at = 0; at < bytes; at += 64)
        _mm_prefetch((const char *)block + AHEAD + at, _MM_HINT_T0);
}

/* The products of one panel of weights, of whose rows n count, and n_rows rows of activations. The code is made for
 * n_x >= n_rows rows: the places left over repeat the last row, and their results are dropped. */
INLINE void multiply_panel_rows(ds_type type, float *out, size_t out_stride, const ds_x8 *const *x, size_t n_x,
                                size_t n_rows, const uint8_t *panel, size_t n, size_t k)
{
    vec sums[PANEL_X_ROWS * VECS];
    UNROLL
    for (size_t a = 0; a < n_x * VECS; a++)
        sums[a] = zero();
    size_t blocks = (k + DS_BLOCK_COLS - 1) / DS_BLOCK_COLS;
    const ds_x8 *at[PANEL_X_ROWS];
    UNROLL
    for (size_t i = 0; i < n_x; i++)
        at[i] = x[i < n_rows ? i : n_rows - 1];
    for (size_t b0 = 0; b0 < blocks; b0 += SUPERBLOCK_BLOCKS) {
        size_t n_blocks = blocks - b0 < SUPERBLOCK_BLOCKS ? blocks - b0 : SUPERBLOCK_BLOCKS;
        const uint8_t *superblock = ds_superblock(type, panel, b0 / SUPERBLOCK_BLOCKS);
        const uint8_t *block = superblock + ds_header_bytes(type);
        affine affine[VECS];
        for (size_t v = 0; v < VECS; v++)
            read_header(type, &affine[v], superblock, v);
        for (size_t b = 0; b < n_blocks; b++, block += ds_block_bytes(type)) {
            if (n_x > 2)
                prefetch(block, ds_block_bytes(type));
            if (type == DS_TYPE_P6) {
                add_words(type, sums, at, n_x, affine, block, 0, 4, 2 * b);
                add_words(type, sums, at, n_x, affine, block, 4, 4, 2 * b + 1);
            } else {
                add_words(type, sums, at, n_x, affine, block, 0, BLOCK_WORDS, b);
            }
            UNROLL
            for (size_t i = 0; i < n_x; i++)
                at[i]++;
        }
    }
    /* Unrolled too: an index that is not a constant would have the sums written to memory with every block. */
    UNROLL
    for (size_t v = 0; v < VECS; v++) {
        if (v * LANES >= n)
            break;
        size_t valid = n - v * LANES < LANES ? n - v * LANES : LANES;
        vec factor = load(panel + v * PART);
        UNROLL
        for (size_t i = 0; i < n_x; i++)
            if (i < n_rows)
                store_first(out + i * out_stride + v * LANES, mul(sums[i * VECS + v], factor), valid);
    }
}

/* All of m rows of activations, in as few sets as leave few places of them empty. */
INLINE void multiply_panel(ds_type type, float *out, size_t out_stride, const ds_x8 *const *x, size_t m,
                           const uint8_t *panel, size_t n, size_t k)
{
    while (m > 0) {
        size_t n_rows;
        if (m > 9)
            multiply_panel_rows(type, out, out_stride, x, 12, n_rows = m < 12 ? m : 12, panel, n, k);
        else if (m > 6)
            multiply_panel_rows(type, out, out_stride, x, 8, n_rows = m < 8 ? m : 8, panel, n, k);
        else if (m > 4)
            multiply_panel_rows(type, out, out_stride, x, 6, n_rows = m < 6 ? m : 6, panel, n, k);
        else if (m == 4)
            multiply_panel_rows(type, out, out_stride, x, 4, n_rows = 4, panel, n, k);
        else if (m == 3)
            multiply_panel_rows(type, out, out_stride, x, 3, n_rows = 3, panel, n, k);
        else if (m >= 2)
            multiply_panel_rows(type, out, out_stride, x, 2, n_rows = 2, panel, n, k);
        else
            multiply_panel_rows(type, out, out_stride, x, 1, n_rows = 1, panel, n, k);
        out += n_rows * out_stride;
        x += n_rows;
        m -= n_rows;
    }
}

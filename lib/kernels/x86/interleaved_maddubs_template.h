/* Products with interleaved weights for AVX2, which has no instruction that adds products of bytes to 32 bits.
 * vpmaddubsw leaves sums of two in 16 bits; as many of these are added there as surely fit, and then go to 32 bits
 * in one vpmaddwd, which multiplies by the weights' small integer scale on the way. Up to there all is exact; floats
 * are only the activations' scales, for every block, and the superblock's.
 *
 * A panel is gone through superblock by superblock. Where many rows of activations use a superblock it is unpacked
 * to bytes first. Each row's totals are kept in floats and grow by one superblock at a time, in the same steps
 * whichever way is taken. */

enum {
    VECS = DS_PANEL_ROWS / LANES, /* vectors of a panel's rows */
    BLOCK_ROWS = 4, /* rows of activations that meet a block together: their 8 sums and all else fill the registers */
    DIRECT_ROWS = 8,               /* with more, a superblock is made ready first */
};

/* Of at most 8 rounds gcc would make straight code, with more sums at a time than there are registers. */
#ifdef __clang__
#define AS_A_LOOP _Pragma("clang loop unroll(disable)")
#else
#define AS_A_LOOP _Pragma("GCC unroll 1")
#endif

/* Words that fit: 8 * 2 * 15 * 127 < 2^15, 4 * 2 * 31 * 127, 2 * 2 * 63 * 127, and 1 of 8 bits if its bytes are
 * magnitudes up to 128. */
INLINE size_t words_that_fit(ds_type type)
{
    size_t bits = ds_integer_bits(type);
    return bits == 4 ? 8 : bits == 5 ? 4 : bits == 6 ? 2 : 1;
}

/* P4, P5, P6: a block (in P6, half a block) has an integer scale. */
INLINE bool has_integer_scales(ds_type type) { return ds_has_six_bits(type) || type == DS_TYPE_P6; }

/* Scales and minima of a superblock, as they are stored: functions below read them. */
typedef struct superblock_scales {
    /* Bytes [2][8 blocks][16 rows], scales and minima, of P4 and P5; int8 [16][16 rows] of P6; halves of the others. */
    const uint8_t *numbers;
    /* The superblock's: w = scale * integer_scale * q - minimum * block_minimum, or w = block_scale * q - ... */
    vec scale[VECS], minimum[VECS];
} superblock_scales;

/* 16 bytes, in both halves. */
INLINE ivec load_twice(const uint8_t *p) { return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)p)); }

/* Lane i gets byte 8 v + i of 16 bytes in each of its four bytes whose bit in `places` is set, zero in the others. */
INLINE ivec spread(ivec bytes, size_t v, int places)
{
    const ivec lane = _mm256_setr_epi32(0, 0x01010101, 0x02020202, 0x03030303, 0x04040404, 0x05050505, 0x06060606,
                                        0x07070707);
    int zeros = 0;
    UNROLL
    for (int i = 0; i < 4; i++)
        zeros |= places >> i & 1 ? 0 : (int)(0x80u << 8 * i);
    return _mm256_shuffle_epi8(bytes, or_ints(lane, splat_int(zeros | (int)v * 0x08080808)));
}

/* `numbers`: room for them where they have to be unpacked. */
INLINE void read_scales(ds_type type, superblock_scales *s, const uint8_t *superblock, uint8_t numbers[4 * VECTOR])
{
    s->numbers = type == DS_TYPE_P6 ? superblock + HEADER_SIXTEENTHS : superblock + HEADER_HALVES;
    if (ds_has_six_bits(type)) {
        unpack_six_bits(numbers, superblock + HEADER_SIX_BITS);
        s->numbers = numbers;
    }
    UNROLL
    for (size_t v = 0; v < VECS; v++) {
        if (has_integer_scales(type))
            s->scale[v] = load_f16(superblock + HEADER_SCALES + 2 * LANES * v);
        if (ds_has_six_bits(type))
            s->minimum[v] = load_f16(superblock + HEADER_MINIMA + 2 * LANES * v);
        else if (type == DS_TYPE_P6)
            s->minimum[v] = mul(s->scale[v], splat((float)ds_integer_zero(type)));
        else
            s->minimum[v] = splat(ds_has_block_minima(type) ? 1.0f : (float)ds_integer_zero(type));
    }
}

/* The scale of block `at`, in P6 of half block `at`: twice in each lane, in 16 bits. */
INLINE ivec integer_scale(ds_type type, const superblock_scales *s, size_t at, size_t v)
{
    ivec bytes = load_twice(s->numbers + at * DS_PANEL_ROWS);
    return type == DS_TYPE_P6 ? _mm256_srai_epi16(spread(bytes, v, 10), 8) : spread(bytes, v, 5);
}

INLINE vec block_scale(const superblock_scales *s, size_t b, size_t v)
{
    return load_f16(s->numbers + 2 * (b * DS_PANEL_ROWS + v * LANES));
}

/* P6: of half block `at`. */
INLINE vec block_minimum(ds_type type, const superblock_scales *s, size_t at, size_t v)
{
    if (type == DS_TYPE_P6)
        return to_floats(_mm256_srai_epi32(spread(load_twice(s->numbers + at * DS_PANEL_ROWS), v, 8), 24));
    if (ds_has_six_bits(type))
        return to_floats(spread(load_twice(s->numbers + (SUPERBLOCK_BLOCKS + at) * DS_PANEL_ROWS), v, 1));
    if (ds_has_block_minima(type))
        return load_f16(s->numbers + HEADER_BLOCK_MINIMA - HEADER_HALVES + 2 * (at * DS_PANEL_ROWS + v * LANES));
    return block_scale(s, at, v);
}

/* Part v of word g of a block: unsigned bytes, but signed in P8. */
INLINE ivec read_part(ds_type type, const uint8_t *block, size_t g, size_t v)
{
    ivec w = read_word(type, block + v * PART, g);
    return type == DS_TYPE_P8 ? _mm256_xor_si256(w, _mm256_set1_epi8(-128)) : w;
}

/* A superblock made ready for many rows of activations. */
typedef struct ready_superblock {
    ivec words[SUPERBLOCK_BLOCKS][BLOCK_WORDS][VECS];
    ivec integer_scales[2 * SUPERBLOCK_BLOCKS][VECS];
    vec block_scales[SUPERBLOCK_BLOCKS][VECS], block_minima[2 * SUPERBLOCK_BLOCKS][VECS];
} ready_superblock;

/* Weights come from memory, and the processor does not look far enough ahead by itself: asking for the block two
 * superblocks on, one row's products read a fifth more a second, as much as reading alone (Zen 3). */
INLINE void prefetch(ds_type type, const uint8_t *block)
{
    size_t bytes = ds_block_bytes(type), ahead = 2 * (ds_header_bytes(type) + SUPERBLOCK_BLOCKS * bytes);
    UNROLL
    for (size_t at = 0; at < bytes; at += 64)
        _mm_prefetch((const char *)block + ahead + at, _MM_HINT_T0);
}

INLINE void make_ready(ds_type type, ready_superblock *ready, const superblock_scales *s, const uint8_t *block,
                       size_t n_blocks)
{
    size_t halves = type == DS_TYPE_P6 ? 2 : 1;
    for (size_t b = 0; b < n_blocks; b++, block += ds_block_bytes(type)) {
        prefetch(type, block);
        UNROLL
        for (size_t v = 0; v < VECS; v++) {
            UNROLL
            for (size_t g = 0; g < BLOCK_WORDS; g++)
                ready->words[b][g][v] = read_part(type, block, g, v);
            if (!has_integer_scales(type))
                ready->block_scales[b][v] = block_scale(s, b, v);
            UNROLL
            for (size_t at = halves * b; at < halves * (b + 1); at++) {
                if (has_integer_scales(type))
                    ready->integer_scales[at][v] = integer_scale(type, s, at, v);
                if (type != DS_TYPE_P8)
                    ready->block_minima[at][v] = block_minimum(type, s, at, v);
            }
        }
    }
}

/* The products of part v of a word and the four bytes x of a row. */
INLINE ivec byte_pairs(ds_type type, ivec w, ivec x)
{
    if (type == DS_TYPE_P8)
        return _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    return _mm256_maddubs_epi16(w, x);
}

/* Word g of block b of a superblock, both parts; from `block` if it was not made ready. */
INLINE void load_word(ds_type type, ivec w[VECS], const ready_superblock *ready, size_t b, const uint8_t *block,
                      size_t g)
{
    UNROLL
    for (size_t v = 0; v < VECS; v++) {
        w[v] = ready != NULL ? ready->words[b][g][v] : read_part(type, block, g, v);
        IN_REGISTER(w[v]);
    }
}

INLINE ivec load_four(const ds_x8 *x, size_t g)
{
    int four;
    memcpy(&four, x->q + 4 * g, sizeof four);
    ivec x4 = _mm256_set1_epi32(four);
    IN_REGISTER(x4);
    return x4;
}

/* The factors of vpmaddwd, which takes sums of 16 bits to 32: the integer scale of half `half` of block b, or 1. */
INLINE void load_factors(ds_type type, ivec factors[VECS], const superblock_scales *s, const ready_superblock *ready,
                         size_t b, size_t half)
{
    size_t at = type == DS_TYPE_P6 ? 2 * b + half : b;
    UNROLL
    for (size_t v = 0; v < VECS; v++)
        factors[v] = !has_integer_scales(type) ? _mm256_set1_epi16(1)
                     : ready != NULL ? ready->integer_scales[at][v] : integer_scale(type, s, at, v);
}

INLINE void add_pairs(ivec *sum, bool first, ivec pairs, ivec factor)
{
    ivec four_sums = _mm256_madd_epi16(pairs, factor);
    *sum = first ? four_sums : _mm256_add_epi32(*sum, four_sums);
}

/* Sums over block b of a superblock for n_x rows: exact. Bytes of 8 bits: each word goes to 32 bits at once. */
INLINE void dot_block_bytes(ds_type type, ivec *sums, const ds_x8 *const *x, size_t n_x, const superblock_scales *s,
                            const ready_superblock *ready, size_t b, const uint8_t *block)
{
    ivec factors[VECS];
    load_factors(type, factors, s, ready, b, 0);
    UNROLL
    for (size_t g = 0; g < BLOCK_WORDS; g++) {
        ivec w[VECS];
        load_word(type, w, ready, b, block, g);
        UNROLL
        for (size_t i = 0; i < n_x; i++) {
            ivec x4 = load_four(&x[i][b], g);
            UNROLL
            for (size_t v = 0; v < VECS; v++) {
                ivec *sum = &sums[i * VECS + v];
                add_pairs(sum, g == 0, byte_pairs(type, w[v], x4), factors[v]);
                IN_REGISTER(*sum); /* left alone, gcc adds as a tree, for which there are not registers enough */
            }
        }
    }
}

/* The same where several words fit into 16 bits. */
INLINE void dot_block_pairs(ds_type type, ivec *sums, const ds_x8 *const *x, size_t n_x, const superblock_scales *s,
                            const ready_superblock *ready, size_t b, const uint8_t *block)
{
    size_t fit = words_that_fit(type);
    ivec pairs[BLOCK_ROWS * VECS];
    UNROLL
    for (size_t g = 0; g < BLOCK_WORDS; g++) {
        /* low and high halves of the same bytes one after the other, but for P6, whose halves of a block have scales
         * of their own */
        size_t word = ready == NULL && type != DS_TYPE_P6 ? g / 2 + g % 2 * 4 : g;
        ivec w[VECS], factors[VECS];
        load_word(type, w, ready, b, block, word);
        if (g % fit == fit - 1)
            load_factors(type, factors, s, ready, b, g / 4);
        UNROLL
        for (size_t i = 0; i < n_x; i++) {
            ivec x4 = load_four(&x[i][b], word);
            UNROLL
            for (size_t v = 0; v < VECS; v++) {
                ivec *p = &pairs[i * VECS + v], more = byte_pairs(type, w[v], x4);
                *p = g % fit == 0 ? more : _mm256_add_epi16(*p, more);
                IN_REGISTER(*p); /* as above */
                if (g % fit == fit - 1)
                    add_pairs(&sums[i * VECS + v], g < fit, *p, factors[v]);
            }
        }
    }
}

/* Takes a superblock's minima, times the sums of the activations, from the totals of n_x rows. */
INLINE void subtract_minima(ds_type type, vec (*totals)[VECS], const ds_x8 *const *x, size_t n_x,
                            const superblock_scales *s, const ready_superblock *ready, size_t n_blocks)
{
    vec minima[BLOCK_ROWS * VECS];
    UNROLL
    for (size_t a = 0; a < n_x * VECS; a++)
        minima[a] = zero();
    size_t halves = type == DS_TYPE_P6 ? 2 : 1;
    AS_A_LOOP
    for (size_t b = 0; b < n_blocks; b++)
        UNROLL
        for (size_t half = 0; half < halves; half++) {
            vec least[VECS];
            UNROLL
            for (size_t v = 0; v < VECS; v++)
                least[v] = ready != NULL ? ready->block_minima[halves * b + half][v]
                                         : block_minimum(type, s, halves * b + half, v);
            UNROLL
            for (size_t i = 0; i < n_x; i++) {
                vec sum = splat(halves == 1 ? x[i][b].sum : x[i][b].halves[half]);
                UNROLL
                for (size_t v = 0; v < VECS; v++)
                    minima[i * VECS + v] = fmadd(sum, least[v], minima[i * VECS + v]);
            }
        }
    UNROLL
    for (size_t i = 0; i < n_x; i++)
        UNROLL
        for (size_t v = 0; v < VECS; v++)
            totals[i][v] = fnmadd(minima[i * VECS + v], s->minimum[v], totals[i][v]);
}

/* Adds a superblock's products to the totals of n_x rows, which are at their first block of it. `ready` may be NULL. */
INLINE void multiply_superblock(ds_type type, vec (*totals)[VECS], const ds_x8 *const *x, size_t n_x,
                                const superblock_scales *s, const ready_superblock *ready, const uint8_t *block,
                                size_t n_blocks)
{
    vec superblock[BLOCK_ROWS * VECS];
    UNROLL
    for (size_t a = 0; a < n_x * VECS; a++)
        superblock[a] = zero();
    for (size_t b = 0; b < n_blocks; b++, block += ds_block_bytes(type)) {
        ivec sums[BLOCK_ROWS * VECS];
        if (ready == NULL)
            prefetch(type, block);
        if (words_that_fit(type) > 1)
            dot_block_pairs(type, sums, x, n_x, s, ready, b, block);
        else
            dot_block_bytes(type, sums, x, n_x, s, ready, b, block);
        vec scales[VECS];
        UNROLL
        for (size_t v = 0; v < VECS; v++)
            scales[v] = has_integer_scales(type) ? zero()
                        : ready != NULL          ? ready->block_scales[b][v]
                                                 : block_scale(s, b, v);
        UNROLL
        for (size_t i = 0; i < n_x; i++) {
            vec scale = splat(x[i][b].scale);
            UNROLL
            for (size_t v = 0; v < VECS; v++) {
                vec factor = has_integer_scales(type) ? scale : mul(scale, scales[v]);
                superblock[i * VECS + v] = fmadd(to_floats(sums[i * VECS + v]), factor, superblock[i * VECS + v]);
            }
        }
    }
    UNROLL
    for (size_t i = 0; i < n_x; i++)
        UNROLL
        for (size_t v = 0; v < VECS; v++)
            totals[i][v] = has_integer_scales(type) ? fmadd(superblock[i * VECS + v], s->scale[v], totals[i][v])
                                                    : add(totals[i][v], superblock[i * VECS + v]);
    if (type != DS_TYPE_P8) /* whose bytes are signed */
        subtract_minima(type, totals, x, n_x, s, ready, n_blocks);
}

INLINE void multiply_rows(ds_type type, vec (*totals)[VECS], const ds_x8 *const *x, size_t n_x,
                          const superblock_scales *s, const ready_superblock *ready, const uint8_t *block,
                          size_t n_blocks)
{
    switch (n_x) {
    case 1: multiply_superblock(type, totals, x, 1, s, ready, block, n_blocks); return;
    case 2: multiply_superblock(type, totals, x, 2, s, ready, block, n_blocks); return;
    case 3: multiply_superblock(type, totals, x, 3, s, ready, block, n_blocks); return;
    default: multiply_superblock(type, totals, x, BLOCK_ROWS, s, ready, block, n_blocks); return;
    }
}

INLINE void multiply_panel(ds_type type, float *out, size_t out_stride, const ds_x8 *const *x, size_t m,
                           const uint8_t *panel, size_t n, size_t k)
{
    vec totals[PANEL_M_BLOCK][VECS];
    for (size_t i = 0; i < m; i++)
        for (size_t v = 0; v < VECS; v++)
            totals[i][v] = zero();
    size_t blocks = (k + DS_BLOCK_COLS - 1) / DS_BLOCK_COLS;
    for (size_t b = 0; b < blocks; b += SUPERBLOCK_BLOCKS) {
        size_t n_blocks = blocks - b < SUPERBLOCK_BLOCKS ? blocks - b : SUPERBLOCK_BLOCKS;
        const uint8_t *superblock = ds_superblock(type, panel, b / SUPERBLOCK_BLOCKS);
        const uint8_t *block = superblock + ds_header_bytes(type);
        uint8_t numbers[4 * VECTOR] __attribute__((aligned(64)));
        superblock_scales scales;
        read_scales(type, &scales, superblock, numbers);
        ready_superblock ready;
        if (m > DIRECT_ROWS)
            make_ready(type, &ready, &scales, block, n_blocks);
        for (size_t i = 0, n_x; i < m; i += n_x) {
            n_x = m - i == BLOCK_ROWS + 1 ? BLOCK_ROWS - 1 : m - i < BLOCK_ROWS ? m - i : BLOCK_ROWS; /* 5: 3 and 2 */
            const ds_x8 *at[BLOCK_ROWS];
            for (size_t r = 0; r < n_x; r++)
                at[r] = x[i + r] + b;
            if (m <= DIRECT_ROWS)
                multiply_rows(type, totals + i, at, n_x, &scales, NULL, block, n_blocks);
            else
                multiply_rows(type, totals + i, at, n_x, &scales, &ready, block, n_blocks);
        }
    }
    for (size_t v = 0; v < VECS && v * LANES < n; v++) {
        size_t valid = n - v * LANES < LANES ? n - v * LANES : LANES;
        vec factor = load(panel + v * PART);
        for (size_t i = 0; i < m; i++)
            store_first(out + i * out_stride + v * LANES, mul(totals[i][v], factor), valid);
    }
}

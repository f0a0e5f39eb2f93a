/* The kernels of packed weights for x86, written once; an instruction set's file includes this after vector_kernels.h. Beside
 * what that one needs it defines:
 *   ivec                        a vector of LANES 32-bit lanes, 4 bytes each
 *   load_ints and_bits(v, mask) or_ints shift_left(v, n) shift_right(v, n)   on lanes of 32 bits
 *   to_floats(v)                signed lanes
 *   floats_of_u8(p) floats_of_s8(p)         LANES bytes
 *   fnmadd(a, b, c)             c - a * b
 *   dot_sum                     what a sum of products of bytes is kept in: dot_clear(), dot_add(type, sum, g, w, x) for words
 *                               g = 0, 1, ... in turn, each meeting the 4 bytes at x, and dot_total(type, sum), lane by lane
 *                               and exact
 *   PACKED_ROWS                 rows of activations that meet a group of weights together: their sums, in floats and in
 *                               integers, have to fit into the registers
 */

enum {
    PACKED_M_BLOCK = 96, /* rows of activations that use a group of weights before the next: they stay in the second-level cache */
};

/* ---- activations ---- */

INLINE int sum_lanes(__m128i v)
{
    v = _mm_add_epi32(v, _mm_shuffle_epi32(v, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(v, _mm_shuffle_epi32(v, 0xb1)));
}

static void prepare_block(dsv2_x8 *out, const float *x)
{
    __m256 v[4];
    __m256i largest = _mm256_setzero_si256(); /* bit patterns without signs are in the order of the magnitudes, NaN last */
    UNROLL
    for (size_t i = 0; i < 4; i++) {
        v[i] = _mm256_loadu_ps(x + 8 * i);
        largest = _mm256_max_epu32(largest, _mm256_and_si256(_mm256_castps_si256(v[i]), _mm256_set1_epi32(0x7fffffff)));
    }
    __m128i m = _mm_max_epu32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
    m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4e));
    m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0xb1));
    float magnitude = _mm_cvtss_f32(_mm_castsi128_ps(m));
    if ((uint32_t)_mm_cvtsi128_si32(m) >= 0x7f800000) {
        *out = (dsv2_x8){.scale = NAN, .sum = NAN, .halves = {NAN, NAN}};
        return;
    }
    if (magnitude < DSV2_X8_LEAST) {
        *out = (dsv2_x8){.scale = 0};
        return;
    }
    __m256 inverse = _mm256_set1_ps(127.0f / magnitude);
    __m256i q[4];
    UNROLL
    for (size_t i = 0; i < 4; i++)
        q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
    __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
    bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i *)out->q, bytes);
    __m256i sums = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes), _mm256_set1_epi16(1));
    int first = sum_lanes(_mm256_castsi256_si128(sums)), second = sum_lanes(_mm256_extracti128_si256(sums, 1));
    out->scale = magnitude / 127.0f;
    out->sum = out->scale * (float)(first + second);
    out->halves[0] = out->scale * (float)first;
    out->halves[1] = out->scale * (float)second;
}

static void prepare_row(dsv2_x8 *out, const float *x, size_t k)
{
    for (; k >= DSV2_PACK_COLS; k -= DSV2_PACK_COLS, x += DSV2_PACK_COLS)
        prepare_block(out++, x);
    if (k > 0) {
        float last[DSV2_PACK_COLS] = {0};
        memcpy(last, x, k * sizeof *x);
        prepare_block(out, last);
    }
}

/* ---- weights ----
 * A vector of weights has LANES rows: `part` of 16 / LANES says which. */

enum { PART = 4 * LANES }; /* bytes */

/* All 256 numbers of 6 bits of a span. */
INLINE void unpack_six_bits(uint8_t out[4 * VECTOR], const uint8_t *in)
{
    for (size_t at = 0; at < VECTOR; at += 32) {
        __m256i a = _mm256_loadu_si256((const __m256i *)(in + at)), b = _mm256_loadu_si256((const __m256i *)(in + VECTOR + at));
        __m256i c = _mm256_loadu_si256((const __m256i *)(in + 2 * VECTOR + at)), low = _mm256_set1_epi8(63);
        _mm256_store_si256((__m256i *)(out + at), _mm256_and_si256(a, low));
        _mm256_store_si256((__m256i *)(out + VECTOR + at), _mm256_and_si256(b, low));
        _mm256_store_si256((__m256i *)(out + 2 * VECTOR + at), _mm256_and_si256(c, low));
        __m256i high = _mm256_and_si256(_mm256_srli_epi16(a, 6), _mm256_set1_epi8(3));
        high = _mm256_or_si256(high, _mm256_and_si256(_mm256_srli_epi16(b, 4), _mm256_set1_epi8(12)));
        high = _mm256_or_si256(high, _mm256_and_si256(_mm256_srli_epi16(c, 2), _mm256_set1_epi8(48)));
        _mm256_store_si256((__m256i *)(out + 3 * VECTOR + at), high);
    }
}

/* A span's scales and minima, for blocks or, in P6, half blocks: a weight is scale * q - minimum. */
typedef struct affine {
    vec scales[2 * SPAN_BLOCKS], minima[2 * SPAN_BLOCKS];
} affine;

INLINE void read_header(dsv2_type type, affine *a, const uint8_t *span, size_t part)
{
    size_t row = part * LANES;
    if (dsv2_has_six_bits(type)) {
        uint8_t numbers[4 * VECTOR] __attribute__((aligned(64)));
        unpack_six_bits(numbers, span + HEADER_SIX_BITS);
        vec scale = load_f16(span + HEADER_SCALES + 2 * row), minimum = load_f16(span + HEADER_MINIMA + 2 * row);
        for (size_t b = 0; b < SPAN_BLOCKS; b++) {
            a->scales[b] = mul(scale, floats_of_u8(numbers + b * DSV2_PACK_ROWS + row));
            a->minima[b] = mul(minimum, floats_of_u8(numbers + (SPAN_BLOCKS + b) * DSV2_PACK_ROWS + row));
        }
        return;
    }
    size_t n = type == DSV2_TYPE_P6 ? 2 * SPAN_BLOCKS : SPAN_BLOCKS;
    vec zero_point = splat((float)dsv2_pack_zero(type));
    for (size_t b = 0; b < n; b++) {
        if (type == DSV2_TYPE_P6)
            a->scales[b] = mul(load_f16(span + HEADER_SCALES + 2 * row),
                               floats_of_s8(span + HEADER_SIXTEENTHS + b * DSV2_PACK_ROWS + row));
        else
            a->scales[b] = load_f16(span + HEADER_HALVES + 2 * (b * DSV2_PACK_ROWS + row));
        if (dsv2_has_block_minima(type))
            a->minima[b] = load_f16(span + HEADER_BLOCK_MINIMA + 2 * (b * DSV2_PACK_ROWS + row));
        else
            a->minima[b] = mul(a->scales[b], zero_point);
    }
}

/* Word g of a block. */
INLINE ivec read_word(dsv2_type type, const uint8_t *block, size_t g)
{
    if (type == DSV2_TYPE_P8)
        return load_ints(block + g * VECTOR);
    ivec both = load_ints(block + g % 4 * VECTOR), w = and_bits(g < 4 ? both : shift_right(both, 4), 0x0f0f0f0f);
    if (dsv2_pack_bits(type) == 5) {
        ivec more = load_ints(block + 4 * VECTOR);
        w = or_ints(w, and_bits(g < 4 ? shift_left(more, 4 - g) : shift_right(more, g - 4), 0x10101010));
    }
    if (type == DSV2_TYPE_P6) {
        ivec more = load_ints(block + (4 + g / 4) * VECTOR);
        size_t at = 2 * (g % 4);
        w = or_ints(w, and_bits(at < 4 ? shift_left(more, 4 - at) : shift_right(more, at - 4), 0x30303030));
    }
    return w;
}

/* ---- products ---- */

enum { VECS = DSV2_PACK_ROWS / LANES }; /* vectors of a group's rows */

/* Adds the products of `n` words from word `first` on, with scale and minimum `at` of the span. The order of these steps is the
 * sums' order. */
INLINE void add_words(dsv2_type type, vec *sums, const dsv2_x8 *const *x, size_t n_x, const affine *affine, const uint8_t *block,
                      size_t first, size_t n, size_t at)
{
    dot_sum d[PACKED_ROWS * VECS];
    UNROLL
    for (size_t a = 0; a < n_x * VECS; a++)
        d[a] = dot_clear();
    UNROLL
    for (size_t g = 0; g < n; g++) {
        /* low and high halves of the same bytes one after the other */
        size_t step = n == BLOCK_WORDS && type != DSV2_TYPE_P8 ? g / 2 + g % 2 * 4 : first + g;
        ivec words[VECS];
        UNROLL
        for (size_t v = 0; v < VECS; v++)
            words[v] = read_word(type, block + v * PART, step);
        UNROLL
        for (size_t i = 0; i < n_x; i++)
            UNROLL
            for (size_t v = 0; v < VECS; v++)
                d[i * VECS + v] = dot_add(type, d[i * VECS + v], g, words[v], x[i]->q + 4 * step);
    }
    UNROLL
    for (size_t i = 0; i < n_x; i++) {
        vec scale = splat(x[i]->scale), sum = splat(n == BLOCK_WORDS ? x[i]->sum : x[i]->halves[first / 4]);
        UNROLL
        for (size_t v = 0; v < VECS; v++) {
            vec *s = &sums[i * VECS + v];
            *s = fmadd(mul(to_floats(dot_total(type, d[i * VECS + v])), scale), affine[v].scales[at], *s);
            *s = fnmadd(sum, affine[v].minima[at], *s);
        }
    }
}

/* Weights come from memory, and with several rows to multiply the processor does not look far enough ahead by itself. (With one
 * or two it does, and this only costs: decoding was seen a sixth slower.) */
INLINE void prefetch(const uint8_t *block, size_t bytes)
{
    enum { AHEAD = 4608 };
    UNROLL
    for (size_t at = 0; at < bytes; at += 64)
        _mm_prefetch((const char *)block + AHEAD + at, _MM_HINT_T0);
}

/* A group of rows of weights, of which n count, for n_x rows of activations, of which n_rows count: in the other places the last
 * is multiplied again, for nothing. */
INLINE void packed_block(dsv2_type type, float *out, size_t out_stride, const dsv2_x8 *const *x, size_t n_x, size_t n_rows,
                         const uint8_t *group, size_t n, size_t k)
{
    vec sums[PACKED_ROWS * VECS];
    UNROLL
    for (size_t a = 0; a < n_x * VECS; a++)
        sums[a] = zero();
    size_t blocks = (k + DSV2_PACK_COLS - 1) / DSV2_PACK_COLS;
    const dsv2_x8 *at[PACKED_ROWS];
    UNROLL
    for (size_t i = 0; i < n_x; i++)
        at[i] = x[i < n_rows ? i : n_rows - 1];
    for (size_t b0 = 0; b0 < blocks; b0 += SPAN_BLOCKS) {
        size_t n_blocks = blocks - b0 < SPAN_BLOCKS ? blocks - b0 : SPAN_BLOCKS;
        const uint8_t *span = dsv2_span(type, group, b0 / SPAN_BLOCKS), *block = span + dsv2_header_bytes(type);
        affine affine[VECS];
        for (size_t v = 0; v < VECS; v++)
            read_header(type, &affine[v], span, v);
        for (size_t b = 0; b < n_blocks; b++, block += dsv2_block_bytes(type)) {
            if (n_x > 2)
                prefetch(block, dsv2_block_bytes(type));
            if (type == DSV2_TYPE_P6) {
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
        vec factor = load(group + v * PART);
        UNROLL
        for (size_t i = 0; i < n_x; i++)
            if (i < n_rows)
                store_first(out + i * out_stride + v * LANES, mul(sums[i * VECS + v], factor), valid);
    }
}

/* All of m rows of activations: as few blocks as leave few places of them empty. */
INLINE void packed_rows(dsv2_type type, float *out, size_t out_stride, const dsv2_x8 *const *x, size_t m, const uint8_t *group,
                        size_t n, size_t k)
{
    while (m > 0) {
        size_t n_rows;
        if (PACKED_ROWS >= 12 && m > 9)
            packed_block(type, out, out_stride, x, PACKED_ROWS >= 12 ? 12 : 1, n_rows = m < 12 ? m : 12, group, n, k);
        else if (PACKED_ROWS >= 8 && m > 6)
            packed_block(type, out, out_stride, x, PACKED_ROWS >= 8 ? 8 : 1, n_rows = m < 8 ? m : 8, group, n, k);
        else if (PACKED_ROWS >= 6 && m > 4)
            packed_block(type, out, out_stride, x, PACKED_ROWS >= 6 ? 6 : 1, n_rows = m < 6 ? m : 6, group, n, k);
        else if (PACKED_ROWS >= 4 && m == 4)
            packed_block(type, out, out_stride, x, PACKED_ROWS >= 4 ? 4 : 1, n_rows = 4, group, n, k);
        else if (PACKED_ROWS >= 3 && m == 3)
            packed_block(type, out, out_stride, x, PACKED_ROWS >= 3 ? 3 : 1, n_rows = 3, group, n, k);
        else if (m >= 2)
            packed_block(type, out, out_stride, x, 2, n_rows = 2, group, n, k);
        else
            packed_block(type, out, out_stride, x, 1, n_rows = 1, group, n, k);
        out += n_rows * out_stride;
        x += n_rows;
        m -= n_rows;
    }
}

INLINE void packed_matmul(dsv2_type type, float *out, size_t out_stride, const dsv2_x8 *const *x, size_t m, const uint8_t *w,
                          size_t n, size_t k)
{
    size_t group_bytes = dsv2_group_bytes(type, k);
    for (size_t i = 0; i < m; i += PACKED_M_BLOCK) {
        size_t rows = m - i < PACKED_M_BLOCK ? m - i : PACKED_M_BLOCK;
        for (size_t j = 0; j < n; j += DSV2_PACK_ROWS)
            packed_rows(type, out + i * out_stride + j, out_stride, x + i, rows, w + j / DSV2_PACK_ROWS * group_bytes, n - j, k);
    }
}

#define PACKED_MATMUL(name, type)                                                                                               \
    static void name(float *out, size_t out_stride, const dsv2_x8 *const *x, size_t m, const void *w, size_t n, size_t k)        \
    {                                                                                                                           \
        packed_matmul(type, out, out_stride, x, m, w, n, k);                                                                    \
    }

PACKED_MATMUL(matmul_p4, DSV2_TYPE_P4)
PACKED_MATMUL(matmul_p5, DSV2_TYPE_P5)
PACKED_MATMUL(matmul_p6, DSV2_TYPE_P6)
PACKED_MATMUL(matmul_p8, DSV2_TYPE_P8)
PACKED_MATMUL(matmul_p4s, DSV2_TYPE_P4S)
PACKED_MATMUL(matmul_p5s, DSV2_TYPE_P5S)
PACKED_MATMUL(matmul_p4m, DSV2_TYPE_P4M)
PACKED_MATMUL(matmul_p5m, DSV2_TYPE_P5M)

#define PACKED_KERNELS                                                                                                          \
    .matmul_packed = {[DSV2_TYPE_P4] = matmul_p4, [DSV2_TYPE_P5] = matmul_p5, [DSV2_TYPE_P6] = matmul_p6,                         \
                      [DSV2_TYPE_P8] = matmul_p8, [DSV2_TYPE_P4S] = matmul_p4s, [DSV2_TYPE_P5S] = matmul_p5s,                    \
                      [DSV2_TYPE_P4M] = matmul_p4m, [DSV2_TYPE_P5M] = matmul_p5m},                                               \
    .prepare_row = prepare_row

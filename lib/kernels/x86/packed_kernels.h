/* The kernels of packed weights for x86, written once; an instruction set's file includes this after vector_kernels.h. Beside
 * what that one needs it defines:
 *   ivec                        a vector of LANES 32-bit lanes, 4 bytes each
 *   load_ints and_bits(v, mask) or_ints shift_left(v, n) shift_right(v, n)   on lanes of 32 bits
 *   to_floats(v)                signed lanes
 *   floats_of_u8(p) floats_of_s8(p)         LANES bytes
 *   fnmadd(a, b, c)             c - a * b
 *   dot(type, w, x, n)          lane by lane the sum of w[g] times bytes 4g to 4g + 3 of x, g < n; exact
 *   PACKED_ROWS                 rows of activations in a block: their sums and 8 vectors of weights share the registers */

enum {
    PACKED_M_BLOCK = 192, /* rows of activations that use a group of weights before the next: they stay in the second-level cache */
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
    vec scale = load(span + HEADER_SCALES + part * PART);
    size_t row = part * LANES;
    if (type == DSV2_TYPE_P4 || type == DSV2_TYPE_P5) {
        uint8_t numbers[4 * VECTOR] __attribute__((aligned(64)));
        unpack_six_bits(numbers, span + HEADER_SIX_BITS);
        vec minimum = load(span + HEADER_MINIMA + part * PART);
        for (size_t b = 0; b < SPAN_BLOCKS; b++) {
            a->scales[b] = mul(scale, floats_of_u8(numbers + b * DSV2_PACK_ROWS + row));
            a->minima[b] = mul(minimum, floats_of_u8(numbers + (SPAN_BLOCKS + b) * DSV2_PACK_ROWS + row));
        }
        return;
    }
    size_t n = type == DSV2_TYPE_P6 ? 2 * SPAN_BLOCKS : SPAN_BLOCKS;
    vec zero_point = splat((float)dsv2_pack_zero(type));
    for (size_t b = 0; b < n; b++) {
        vec factor = type == DSV2_TYPE_P6 ? floats_of_s8(span + HEADER_SIXTEENTHS + b * DSV2_PACK_ROWS + row)
                                          : load_f16(span + HEADER_HALVES + 2 * (b * DSV2_PACK_ROWS + row));
        a->scales[b] = mul(scale, factor);
        a->minima[b] = mul(a->scales[b], zero_point);
    }
}

/* The 8 words of a block. */
INLINE void read_block(dsv2_type type, ivec w[BLOCK_WORDS], const uint8_t *block, size_t part)
{
    block += part * PART;
    if (type == DSV2_TYPE_P8) {
        UNROLL
        for (size_t g = 0; g < BLOCK_WORDS; g++)
            w[g] = load_ints(block + g * VECTOR);
        return;
    }
    UNROLL
    for (size_t g = 0; g < 4; g++) {
        ivec both = load_ints(block + g * VECTOR);
        w[g] = and_bits(both, 0x0f0f0f0f);
        w[4 + g] = and_bits(shift_right(both, 4), 0x0f0f0f0f);
    }
    if (type == DSV2_TYPE_P5) {
        ivec more = load_ints(block + 4 * VECTOR);
        UNROLL
        for (size_t g = 0; g < BLOCK_WORDS; g++)
            w[g] = or_ints(w[g], and_bits(g < 4 ? shift_left(more, 4 - g) : shift_right(more, g - 4), 0x10101010));
    }
    if (type == DSV2_TYPE_P6) {
        ivec more[2] = {load_ints(block + 4 * VECTOR), load_ints(block + 5 * VECTOR)};
        UNROLL
        for (size_t g = 0; g < BLOCK_WORDS; g++) {
            ivec m = more[g / 4];
            size_t at = 2 * (g % 4);
            w[g] = or_ints(w[g], and_bits(at < 4 ? shift_left(m, 4 - at) : shift_right(m, at - 4), 0x30303030));
        }
    }
}

/* ---- products ---- */

/* Adds a block's products for n_x rows of activations. The order of these four steps is the sums' order. */
INLINE void add_block(dsv2_type type, vec *sums, const dsv2_x8 *const *x, size_t b, size_t n_x, const ivec *w, const affine *a,
                      size_t at)
{
    UNROLL
    for (size_t i = 0; i < n_x; i++) {
        const dsv2_x8 *block = x[i] + b;
        vec scale = splat(block->scale);
        if (type == DSV2_TYPE_P6) {
            vec first = mul(to_floats(dot(type, w, block->q, 4)), scale);
            vec second = mul(to_floats(dot(type, w + 4, block->q + 16, 4)), scale);
            sums[i] = fmadd(first, a->scales[2 * at], sums[i]);
            sums[i] = fnmadd(splat(block->halves[0]), a->minima[2 * at], sums[i]);
            sums[i] = fmadd(second, a->scales[2 * at + 1], sums[i]);
            sums[i] = fnmadd(splat(block->halves[1]), a->minima[2 * at + 1], sums[i]);
        } else {
            vec product = mul(to_floats(dot(type, w, block->q, BLOCK_WORDS)), scale);
            sums[i] = fmadd(product, a->scales[at], sums[i]);
            sums[i] = fnmadd(splat(block->sum), a->minima[at], sums[i]);
        }
    }
}

/* One part of a group for n_x rows of activations. */
INLINE void packed_part(dsv2_type type, float *out, size_t out_stride, const dsv2_x8 *const *x, size_t n_x, const uint8_t *group,
                        size_t part, size_t n, size_t k)
{
    vec sums[PACKED_ROWS];
    UNROLL
    for (size_t i = 0; i < n_x; i++)
        sums[i] = zero();
    size_t blocks = (k + DSV2_PACK_COLS - 1) / DSV2_PACK_COLS;
    for (size_t b0 = 0; b0 < blocks; b0 += SPAN_BLOCKS) {
        const uint8_t *span = dsv2_span(type, group, b0 / SPAN_BLOCKS);
        size_t n_blocks = blocks - b0 < SPAN_BLOCKS ? blocks - b0 : SPAN_BLOCKS;
        affine a;
        read_header(type, &a, span, part);
        for (size_t b = 0; b < n_blocks; b++) {
            ivec w[BLOCK_WORDS];
            read_block(type, w, span + HEADER + b * dsv2_block_bytes(type), part);
            add_block(type, sums, x, b0 + b, n_x, w, &a, b);
        }
    }
    UNROLL
    for (size_t i = 0; i < n_x; i++) {
        if (n >= LANES)
            store(out + i * out_stride, sums[i]);
        else
            store_first(out + i * out_stride, sums[i], n);
    }
}

INLINE void packed_group(dsv2_type type, float *out, size_t out_stride, const dsv2_x8 *const *x, size_t n_x, const uint8_t *group,
                         size_t n, size_t k)
{
    for (size_t part = 0; part < DSV2_PACK_ROWS / LANES && part * LANES < n; part++)
        packed_part(type, out + part * LANES, out_stride, x, n_x, group, part, n - part * LANES, k);
}

INLINE void packed_matmul(dsv2_type type, float *out, size_t out_stride, const dsv2_x8 *const *x, size_t m, const uint8_t *w,
                          size_t n, size_t k)
{
    size_t group_bytes = dsv2_group_bytes(type, k);
    for (size_t i0 = 0; i0 < m; i0 += PACKED_M_BLOCK) {
        size_t end = m - i0 < PACKED_M_BLOCK ? m : i0 + PACKED_M_BLOCK;
        for (size_t j = 0; j < n; j += DSV2_PACK_ROWS) {
            const uint8_t *group = w + j / DSV2_PACK_ROWS * group_bytes;
            size_t i = i0, valid = n - j < DSV2_PACK_ROWS ? n - j : DSV2_PACK_ROWS;
            for (; end - i >= PACKED_ROWS; i += PACKED_ROWS)
                packed_group(type, out + i * out_stride + j, out_stride, x + i, PACKED_ROWS, group, valid, k);
            for (; end - i >= 4; i += 4)
                packed_group(type, out + i * out_stride + j, out_stride, x + i, 4, group, valid, k);
            for (; end - i >= 2; i += 2)
                packed_group(type, out + i * out_stride + j, out_stride, x + i, 2, group, valid, k);
            if (i < end)
                packed_group(type, out + i * out_stride + j, out_stride, x + i, 1, group, valid, k);
        }
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

#define PACKED_KERNELS                                                                                                          \
    .matmul_packed = {[DSV2_TYPE_P4] = matmul_p4, [DSV2_TYPE_P5] = matmul_p5, [DSV2_TYPE_P6] = matmul_p6,                         \
                      [DSV2_TYPE_P8] = matmul_p8, [DSV2_TYPE_P4S] = matmul_p4s},                                                 \
    .prepare_row = prepare_row

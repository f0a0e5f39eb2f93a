/* What the kernels of interleaved weights share on x86: rows of activations, and reading weights. An instruction set's
 * file includes this template and then its products, interleaved_dpbusd_template.h or interleaved_maddubs_template.h.
 * Beside what vector_template.h needs, the file defines:
 *   ivec                        a vector of LANES 32-bit lanes, 4 bytes each
 *   load_ints and_bits(v, mask) or_ints shift_left(v, n) shift_right(v, n)   on lanes of 32 bits
 *
 * A vector of weights has LANES rows: `part` or `v` of 16 / LANES says which. */

enum {
    PART = 4 * LANES,    /* bytes of a vector of weights */
    PANEL_M_BLOCK = 96, /* rows of activations that use a panel before the next panel: they stay in the second level */
};

/* ---- activations ---- */

INLINE int sum_lanes(__m128i v)
{
    v = _mm_add_epi32(v, _mm_shuffle_epi32(v, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(v, _mm_shuffle_epi32(v, 0xb1)));
}

static void prepare_block(ds_x8 *out, const float *x)
{
    __m256 v[4];
    __m256i largest = _mm256_setzero_si256(); /* bits without signs are in the order of the magnitudes, NaN last */
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
        *out = (ds_x8){.scale = NAN, .sum = NAN, .halves = {NAN, NAN}};
        return;
    }
    if (magnitude < DS_X8_LEAST) {
        *out = (ds_x8){.scale = 0};
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

static void prepare_row(ds_x8 *out, const float *x, size_t k)
{
    for (; k >= DS_BLOCK_COLS; k -= DS_BLOCK_COLS, x += DS_BLOCK_COLS)
        prepare_block(out++, x);
    if (k > 0) {
        float last[DS_BLOCK_COLS] = {0};
        memcpy(last, x, k * sizeof *x);
        prepare_block(out, last);
    }
}

/* ---- weights ---- */

/* All 256 numbers of 6 bits of a superblock. */
INLINE void unpack_six_bits(uint8_t out[4 * VECTOR], const uint8_t *in)
{
    for (size_t at = 0; at < VECTOR; at += 32) {
        __m256i a = _mm256_loadu_si256((const __m256i *)(in + at));
        __m256i b = _mm256_loadu_si256((const __m256i *)(in + VECTOR + at));
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

/* Word g of a block that begins at the part wanted. */
INLINE ivec read_word(ds_type type, const uint8_t *block, size_t g)
{
    if (type == DS_TYPE_P8)
        return load_ints(block + g * VECTOR);
    ivec both = load_ints(block + g % 4 * VECTOR), w = and_bits(g < 4 ? both : shift_right(both, 4), 0x0f0f0f0f);
    if (ds_integer_bits(type) == 5) {
        ivec more = load_ints(block + 4 * VECTOR);
        w = or_ints(w, and_bits(g < 4 ? shift_left(more, 4 - g) : shift_right(more, g - 4), 0x10101010));
    }
    if (type == DS_TYPE_P6) {
        ivec more = load_ints(block + (4 + g / 4) * VECTOR);
        size_t at = 2 * (g % 4);
        w = or_ints(w, and_bits(at < 4 ? shift_left(more, 4 - at) : shift_right(more, at - 4), 0x30303030));
    }
    return w;
}

/* ---- the table ---- */

/* What the products define: m rows of activations, at most PANEL_M_BLOCK, times a panel, of whose rows n count. */
INLINE void multiply_panel(ds_type type, float *out, size_t out_stride, const ds_x8 *const *x, size_t m,
                           const uint8_t *panel, size_t n, size_t k);

INLINE void interleaved_matmul(ds_type type, float *out, size_t out_stride, const ds_x8 *const *x, size_t m,
                               const uint8_t *w, size_t n, size_t k)
{
    size_t panel_bytes = ds_panel_bytes(type, k);
    for (size_t i = 0; i < m; i += PANEL_M_BLOCK) {
        size_t rows = m - i < PANEL_M_BLOCK ? m - i : PANEL_M_BLOCK;
        for (size_t j = 0; j < n; j += DS_PANEL_ROWS)
            multiply_panel(type, out + i * out_stride + j, out_stride, x + i, rows, w + j / DS_PANEL_ROWS * panel_bytes,
                           n - j, k);
    }
}

#define INTERLEAVED(TYPE, name, ...)                                                                                   \
    static void matmul_##name(float *out, size_t out_stride, const ds_x8 *const *x, size_t m, const void *w, size_t n, \
                              size_t k) \
    {                                                                                                                  \
        interleaved_matmul(DS_TYPE_##TYPE, out, out_stride, x, m, w, n, k);                                            \
    }
#include "kernels/types.def"

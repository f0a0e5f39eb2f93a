/* Attention in 16 bits for x86. An instruction set's file includes this template after vector_template.h and
 * interleaved_template.h. Beside what these need, the file defines:
 *   dot_words(sum, b, a)   adds to each lane the products of its two 16-bit numbers in b and the two at a
 *   low_words high_words low_longs high_longs(a, b)   alternate lanes of 32 or 64 bits of a and b, from the low or the
 *                          high half of each 128 bits
 *   turn_parts(v, w)       sets v: part p, 128 bits, of v[4 q + r] is part q of w[4 p + r]
 *   weave(rows, at, next)  LANES numbers of 16 bits of each of two rows from column `at` on: lane c has the first row's
 *                          number and then the second row's; `next` NULL: zeros
 *   store_wide(out, bytes)  32 signed bytes of a __m256i as numbers of 16 bits
 *   QUERY_ROWS             rows of a that meet a panel of b together */

enum {
    ROW_PAIRS = 2 * DS_PANEL_ROWS,       /* numbers of 16 bits of one pair of columns, */
    PANEL_VECS = DS_PANEL_ROWS / LANES,  /* and vectors */
};

/* 16 halves or, of fewer, those that there are; zeros for the others. */
INLINE __m256i load_16_halves(const uint8_t *halves, size_t n)
{
    uint16_t some[16] = {0};
    if (n < 16) {
        memcpy(some, halves, n * sizeof *some);
        halves = (const uint8_t *)some;
    }
    return _mm256_loadu_si256((const __m256i *)(const void *)halves);
}

/* The bits of the largest magnitude of n halves, NaN being larger than all numbers. */
INLINE unsigned largest_half(const uint8_t *halves, size_t n)
{
    __m256i all = _mm256_setzero_si256();
    UNROLL
    for (size_t c = 0; c < n; c += 16)
        all = _mm256_max_epu16(all, _mm256_and_si256(load_16_halves(halves + 2 * c, n - c), _mm256_set1_epi16(0x7fff)));
    __m128i half = _mm_max_epu16(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    __m128i least = _mm_minpos_epu16(_mm_xor_si128(half, _mm_set1_epi16(-1)));
    return (unsigned)_mm_cvtsi128_si32(least) % 0x10000 ^ 0xffff;
}

INLINE float round_some_halves(int16_t *restrict out, const uint8_t *restrict halves, size_t n, float limit)
{
    enum { INFINITE = 0x7c00 };
    unsigned largest = largest_half(halves, n);
    if (largest == 0 || largest >= INFINITE) {
        memset(out, 0, n * sizeof *out);
        return largest == 0 ? 0.0f : NAN;
    }
    float magnitude = _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128((int)largest)));
    __m256 inverse = _mm256_set1_ps(limit / magnitude);
    UNROLL
    for (size_t c = 0; c < n; c += 16) {
        __m256i x = load_16_halves(halves + 2 * c, n - c);
        __m256i low = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_cvtph_ps(_mm256_castsi256_si128(x)), inverse));
        __m256i high = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_cvtph_ps(_mm256_extracti128_si256(x, 1)), inverse));
        __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);
        if (n - c >= 16)
            _mm256_storeu_si256((__m256i *)(void *)(out + c), words);
        else
            memcpy(out + c, &words, (n - c) * sizeof *out);
    }
    return magnitude / limit;
}

/* The shape of all published models is known when this is compiled: 1.5 times as fast (AVX2). */
static float round_halves(int16_t *out, const void *halves, size_t n, float limit)
{
    return n == 64 ? round_some_halves(out, halves, 64, limit) : round_some_halves(out, halves, n, limit);
}

/* LANES vectors: lane r of vector c changes places with lane c of vector r. First squares
 * of 4 x 4 lanes are turned within each 128 bits, then the squares change places. */
INLINE void turn(ivec v[LANES])
{
    ivec w[LANES];
    UNROLL
    for (size_t i = 0; i < LANES; i += 4) {
        ivec a = low_words(v[i], v[i + 1]), b = high_words(v[i], v[i + 1]);
        ivec c = low_words(v[i + 2], v[i + 3]), d = high_words(v[i + 2], v[i + 3]);
        w[i] = low_longs(a, c);
        w[i + 1] = high_longs(a, c);
        w[i + 2] = low_longs(b, d);
        w[i + 3] = high_longs(b, d);
    }
    turn_parts(v, w);
}

/* LANES rows from `first` on. */
INLINE void turn_rows(int16_t *out, const int16_t *rows, size_t stride, size_t first, size_t n_rows, size_t n_cols)
{
    size_t c = 0;
    for (; c + 2 * LANES <= n_cols; c += 2 * LANES) {
        ivec v[LANES];
        UNROLL
        for (size_t r = 0; r < LANES; r++)
            v[r] = first + r < n_rows ? load_ints(rows + (first + r) * stride + c) : splat_int(0);
        turn(v);
        UNROLL
        for (size_t r = 0; r < LANES; r++)
            store_ints(out + (c / 2 + r) * ROW_PAIRS + 2 * first, v[r]);
    }
    for (; c < n_cols; c += 2)
        for (size_t r = first; r < first + LANES; r++) {
            int pair = 0;
            if (r < n_rows)
                memcpy(&pair, rows + r * stride + c, sizeof pair);
            memcpy(out + c / 2 * ROW_PAIRS + 2 * r, &pair, sizeof pair);
        }
}

static void pair_columns(int16_t *out, const int16_t *rows, size_t stride, size_t n_rows, size_t n_cols)
{
    for (size_t first = 0; first < DS_PANEL_ROWS; first += LANES)
        turn_rows(out, rows, stride, first, n_rows, n_cols);
}

static void pair_rows(int16_t *out, size_t panel_stride, const int16_t *rows, size_t stride, size_t n_rows,
                      size_t n_cols)
{
    size_t n_pairs = (n_rows + 1) / 2;
    for (size_t c = 0; c < n_cols; c += DS_PANEL_ROWS, out += panel_stride)
        for (size_t pair = 0; pair < n_pairs; pair++) {
            const int16_t *first = rows + 2 * pair * stride + c;
            const int16_t *second = 2 * pair + 1 < n_rows ? first + stride : NULL;
            if (n_cols - c < DS_PANEL_ROWS) {
                for (size_t i = 0; i < DS_PANEL_ROWS; i++) {
                    out[pair * ROW_PAIRS + 2 * i] = i < n_cols - c ? first[i] : 0;
                    out[pair * ROW_PAIRS + 2 * i + 1] = i < n_cols - c && second != NULL ? second[i] : 0;
                }
                continue;
            }
            for (size_t at = 0; at < DS_PANEL_ROWS; at += LANES)
                store_ints(out + pair * ROW_PAIRS + 2 * at, weave(first + at, second == NULL ? NULL : second + at));
        }
}

/* ---- rows of bytes, 16 columns at a time: pairs of bytes change places, and only then become pairs of 16 bits ---- */

enum { CODE_COLS = 16, HALF_ROWS = DS_PANEL_ROWS / 2 };

INLINE __m128i load_codes(const int8_t *rows, size_t stride, size_t r, size_t n_rows)
{
    return r < n_rows ? _mm_loadu_si128((const __m128i *)(const void *)(rows + r * stride)) : _mm_setzero_si128();
}

/* [8 pairs of columns][16 rows][2] */
INLINE void turn_codes(int16_t *out, const int8_t *rows, size_t stride, size_t n_rows)
{
    __m256i v[HALF_ROWS], w[HALF_ROWS]; /* rows r and 8 + r side by side; at the end pair p of both halves */
    UNROLL
    for (size_t r = 0; r < HALF_ROWS; r++)
        v[r] = _mm256_set_m128i(load_codes(rows, stride, HALF_ROWS + r, n_rows), load_codes(rows, stride, r, n_rows));
    UNROLL
    for (size_t r = 0; r < HALF_ROWS; r += 2) {
        w[r] = _mm256_unpacklo_epi16(v[r], v[r + 1]); /* of rows r and r + 1: pairs 0 to 3, 4 to 7 */
        w[r + 1] = _mm256_unpackhi_epi16(v[r], v[r + 1]);
    }
    UNROLL
    for (size_t r = 0; r < HALF_ROWS; r += 4) {
        v[r] = _mm256_unpacklo_epi32(w[r], w[r + 2]); /* of rows r to r + 3: pairs 0 and 1, 2 and 3, 4 and 5, 6 and 7 */
        v[r + 1] = _mm256_unpackhi_epi32(w[r], w[r + 2]);
        v[r + 2] = _mm256_unpacklo_epi32(w[r + 1], w[r + 3]);
        v[r + 3] = _mm256_unpackhi_epi32(w[r + 1], w[r + 3]);
    }
    UNROLL
    for (size_t p = 0; p < HALF_ROWS / 2; p++) {
        store_wide(out + 2 * p * ROW_PAIRS, _mm256_unpacklo_epi64(v[p], v[4 + p]));
        store_wide(out + (2 * p + 1) * ROW_PAIRS, _mm256_unpackhi_epi64(v[p], v[4 + p]));
    }
}

/* [pairs of rows][16 columns][2] */
INLINE void weave_codes(int16_t *out, const int8_t *rows, size_t stride, size_t n_rows)
{
    UNROLL
    for (size_t r = 0; r < DS_PANEL_ROWS; r += 2) {
        if (r >= n_rows)
            break;
        __m128i a = load_codes(rows, stride, r, n_rows), b = load_codes(rows, stride, r + 1, n_rows);
        store_wide(out + r / 2 * ROW_PAIRS, _mm256_set_m128i(_mm_unpackhi_epi8(a, b), _mm_unpacklo_epi8(a, b)));
    }
}

static void pair_codes(int16_t *keys, int16_t *values, size_t panel_stride, const int8_t *rows, size_t stride,
                       size_t n_rows, size_t n_cols)
{
    size_t c = 0;
    for (; c + CODE_COLS <= n_cols; c += CODE_COLS, keys += CODE_COLS / 2 * ROW_PAIRS, values += panel_stride) {
        if (n_rows == DS_PANEL_ROWS) {
            turn_codes(keys, rows + c, stride, DS_PANEL_ROWS);
            weave_codes(values, rows + c, stride, DS_PANEL_ROWS);
        } else {
            turn_codes(keys, rows + c, stride, n_rows);
            weave_codes(values, rows + c, stride, n_rows);
        }
    }
    for (; c % DS_SCALE_COLS != 0 || c < n_cols;
         c += CODE_COLS, keys += CODE_COLS / 2 * ROW_PAIRS, values += panel_stride) {
        int8_t last[DS_PANEL_ROWS][CODE_COLS] = {{0}};
        for (size_t r = 0; r < n_rows && c < n_cols; r++)
            memcpy(last[r], rows + r * stride + c, n_cols - c);
        turn_codes(keys, last[0], CODE_COLS, n_rows);
        if (c < n_cols)
            weave_codes(values, last[0], CODE_COLS, n_rows);
    }
}

/* Sums over n_pairs pairs of n_x rows of a and a panel of b: sums[i * PANEL_VECS + v] for row i. */
INLINE void dot_rows(ivec *sums, const int16_t *a, const int16_t *b, size_t n_x, size_t n_pairs)
{
    ivec d[QUERY_ROWS * PANEL_VECS];
    UNROLL
    for (size_t i = 0; i < n_x * PANEL_VECS; i++)
        d[i] = splat_int(0);
    for (size_t pair = 0; pair < n_pairs; pair++) {
        ivec values[PANEL_VECS];
        UNROLL
        for (size_t v = 0; v < PANEL_VECS; v++) {
            values[v] = load_ints(b + pair * ROW_PAIRS + 2 * LANES * v);
            IN_REGISTER(values[v]);
        }
        UNROLL
        for (size_t i = 0; i < n_x; i++)
            UNROLL
            for (size_t v = 0; v < PANEL_VECS; v++)
                d[i * PANEL_VECS + v] = dot_words(d[i * PANEL_VECS + v], values[v], a + pair * ROW_PAIRS + 2 * i);
    }
    UNROLL
    for (size_t i = 0; i < n_x * PANEL_VECS; i++)
        sums[i] = d[i];
}

/* Adds sections `first_section` to end - 1 of n_x rows of a, from `row` on, and of a panel of b to their scores. */
INLINE void add_scores(vec *sums, const int16_t *a, size_t row, size_t n_x, const int16_t *b, const float *scales,
                       size_t scales_stride, size_t first_section, size_t end)
{
    enum { SECTION = DS_PANEL_ROWS * DS_SCALE_COLS };
    vec s[QUERY_ROWS * PANEL_VECS];
    UNROLL
    for (size_t i = 0; i < n_x * PANEL_VECS; i++)
        s[i] = sums[i];
    for (size_t g = first_section; g < end; g++) {
        ivec d[QUERY_ROWS * PANEL_VECS];
        dot_rows(d, a + g * SECTION + 2 * row, b + g * SECTION, n_x, DS_SCALE_COLS / 2);
        UNROLL
        for (size_t v = 0; v < PANEL_VECS; v++) {
            vec scale = load(scales + g * scales_stride + v * LANES);
            UNROLL
            for (size_t i = 0; i < n_x; i++)
                s[i * PANEL_VECS + v] = fmadd(to_floats(d[i * PANEL_VECS + v]), scale, s[i * PANEL_VECS + v]);
        }
    }
    UNROLL
    for (size_t i = 0; i < n_x * PANEL_VECS; i++)
        sums[i] = s[i];
}

/* Where not all rows of a meet b together they do so a section at a time: the section stays in the first-level
 * cache. */
static void pair_scores(float *out, size_t out_stride, const int16_t *a, const float *a_scales, size_t m,
                        const int16_t *b, size_t n, const float *scales, size_t scales_stride, size_t n_sections)
{
    size_t step = (int)QUERY_ROWS < (int)DS_PANEL_ROWS ? 1 : n_sections;
    for (size_t t = 0; t < n; t += DS_PANEL_ROWS, b += n_sections * DS_PANEL_ROWS * DS_SCALE_COLS) {
        vec sums[DS_PANEL_ROWS * PANEL_VECS];
        UNROLL
        for (size_t i = 0; i < DS_PANEL_ROWS * PANEL_VECS; i++)
            sums[i] = zero();
        for (size_t g = 0; g < n_sections; g += step)
            for (size_t i = 0; i < m; i += QUERY_ROWS) {
                vec *s = sums + i * PANEL_VECS;
                if (m - i > QUERY_ROWS / 2)
                    add_scores(s, a, i, QUERY_ROWS, b, scales + t, scales_stride, g, g + step);
                else if (m - i > QUERY_ROWS / 4)
                    add_scores(s, a, i, QUERY_ROWS / 2, b, scales + t, scales_stride, g, g + step);
                else
                    add_scores(s, a, i, QUERY_ROWS / 4, b, scales + t, scales_stride, g, g + step);
            }
        for (size_t i = 0; i < m; i++)
            UNROLL
            for (size_t v = 0; v < PANEL_VECS; v++)
                store(out + i * out_stride + t + v * LANES, mul(sums[i * PANEL_VECS + v], splat(a_scales[i])));
    }
}

INLINE void sums_panel(float *out, size_t out_stride, const float *keep, const float *factor, const int16_t *a,
                       size_t first, size_t n_x, size_t n_rows, const int16_t *b, size_t n_pairs, size_t n)
{
    for (size_t j = 0; j < n; j += DS_PANEL_ROWS) {
        ivec d[QUERY_ROWS * PANEL_VECS];
        dot_rows(d, a + 2 * first, b + j * 2 * n_pairs, n_x, n_pairs);
        UNROLL
        for (size_t v = 0; v < PANEL_VECS; v++) {
            size_t col = j + v * LANES, valid = col >= n ? 0 : n - col < LANES ? n - col : LANES;
            UNROLL
            for (size_t i = 0; i < n_x; i++) {
                if (i >= n_rows)
                    continue;
                float *at = out + (first + i) * out_stride + col;
                vec sum = valid == LANES ? load(at) : load_first(at, valid);
                sum = fmadd(sum, splat(keep[first + i]),
                            mul(to_floats(d[i * PANEL_VECS + v]), splat(factor[first + i])));
                if (valid == LANES)
                    store(at, sum);
                else
                    store_first(at, sum, valid);
            }
        }
    }
}

static void pair_sums(float *out, size_t out_stride, const float *keep, const float *factor, const int16_t *a, size_t m,
                      const int16_t *b, size_t n_pairs, size_t n)
{
    for (size_t i = 0; i < m; i += QUERY_ROWS) {
        size_t rows = m - i < QUERY_ROWS ? m - i : QUERY_ROWS;
        if (rows > QUERY_ROWS / 2)
            sums_panel(out, out_stride, keep, factor, a, i, QUERY_ROWS, rows, b, n_pairs, n);
        else if (rows > QUERY_ROWS / 4)
            sums_panel(out, out_stride, keep, factor, a, i, QUERY_ROWS / 2, rows, b, n_pairs, n);
        else
            sums_panel(out, out_stride, keep, factor, a, i, QUERY_ROWS / 4, rows, b, n_pairs, n);
    }
}

#define PAIR_KERNELS                                                                                                   \
    .round_halves = round_halves, .pair_columns = pair_columns, .pair_rows = pair_rows, .pair_codes = pair_codes,      \
    .pair_scores = pair_scores, .pair_sums = pair_sums,                                                                \
    PAIRS_KERNELS

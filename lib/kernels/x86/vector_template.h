/* The kernels of x86, over a vector of floats whose width the including file chooses; SSE intrinsics appear here and
 * there. An instruction set's file defines the vector and includes this template:
 *   vec, LANES                      a vector and its number of floats
 *   W_ROWS                          rows of weights in a block of matmul, a multiple of 4
 *   SUM_ROWS, SUM_VECS              rows, and vectors of columns, in a block of weighted_sum
 *   load(p) store(p, v)             LANES floats, at any alignment
 *   load_first(p, n) store_first(p, v, n)   n <= LANES of them, zeros for the rest; nothing beyond is touched
 *   load_f16 load_f16_first store_f16 store_f16_first load_bf16 load_bf16_first   the same in halves
 *   splat zero add sub mul divide fmadd(a, b, c) = a * b + c   min max, giving b if either is NaN
 *   round_even(v)
 *   scale_exp2(v, n)                v * 2^n for v in [0.5, 2), n integral and in [-152, 129], rounded once
 *   add4(a, b, c, d)                the four vectors' sums as one __m128
 *   max_lanes(v)
 * The sums of a block are arrays: loops over sums have constant bounds and are unrolled, so that sums live in
 * registers. */

#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif

/* Keeps a vector in a register: left alone, gcc reads the vector from memory again for each use. */
#define IN_REGISTER(v) __asm__("" : "+v"(v))

enum {
    ONE_X_W_ROWS = 8, /* rows of weights side by side for one row of activations: 8 sums hide the latency */
    X_ROWS = 3,     /* rows of activations in a block: 8 x 3 sums leave 8 of 32 registers, 4 x 3 leave 4 of 16 */
    K_CHUNK = 512,  /* columns of weights unpacked together: W_ROWS * 2 KiB stay in the first-level cache */
    M_BLOCK = 48,   /* rows of activations that use unpacked weights, a multiple of X_ROWS; they fit the second level */
    FEW_ROWS = 4,   /* rows in a block of weighted_sum where there are fewer than SUM_ROWS */
};

/* Weights of a type that is constant wherever this is inlined. */
INLINE vec load_type(ds_type type, const void *p)
{
    return type == DS_TYPE_F32 ? load(p) : type == DS_TYPE_F16 ? load_f16(p) : load_bf16(p);
}

INLINE vec load_type_first(ds_type type, const void *p, size_t n)
{
    return type == DS_TYPE_F32 ? load_first(p, n) : type == DS_TYPE_F16 ? load_f16_first(p, n) : load_bf16_first(p, n);
}

INLINE size_t type_bytes(ds_type type) { return type == DS_TYPE_F32 ? 4 : 2; }

/* ---- conversions ---- */

INLINE void unpack(float *out, const uint8_t *in, size_t n, ds_type type)
{
    size_t c = 0;
    for (; c + LANES <= n; c += LANES)
        store(out + c, load_type(type, in + c * type_bytes(type)));
    if (c < n)
        store_first(out + c, load_type_first(type, in + c * type_bytes(type), n - c), n - c);
}

static void f16_to_f32(float *out, const void *in, size_t n) { unpack(out, in, n, DS_TYPE_F16); }
static void bf16_to_f32(float *out, const void *in, size_t n) { unpack(out, in, n, DS_TYPE_BF16); }

static void f32_to_f16(uint16_t *out, const float *in, size_t n)
{
    size_t c = 0;
    for (; c + LANES <= n; c += LANES)
        store_f16(out + c, load(in + c));
    if (c < n)
        store_f16_first(out + c, load_first(in + c, n - c), n - c);
}

/* ---- matrix products ----
 * Sums run along k, a vector for each output: lane l adds the products of columns l, l + LANES, ..., each by one fused
 * multiply-add, and add4 adds the lanes. That order is the same in every block below, so an output has the same bits
 * wherever it stands. */

/* Adds the products of `n` columns, for n_w rows of weights and n_x of activations. */
INLINE void add_products(vec *sums, const float *const *x, size_t x_at, size_t n_x, const uint8_t *w, size_t w_stride,
                         size_t n_w, size_t n, ds_type type)
{
    vec s[W_ROWS * X_ROWS];
    UNROLL
    for (size_t a = 0; a < n_w * n_x; a++)
        s[a] = sums[a];
    const float *rows[X_ROWS];
    UNROLL
    for (size_t i = 0; i < n_x; i++)
        rows[i] = x[i] + x_at;
    size_t c = 0;
    for (; c + LANES <= n; c += LANES) {
        vec values[X_ROWS];
        UNROLL
        for (size_t i = 0; i < n_x; i++)
            values[i] = load(rows[i] + c);
        UNROLL
        for (size_t j = 0; j < n_w; j++) {
            vec weights = load_type(type, w + j * w_stride + c * type_bytes(type));
            IN_REGISTER(weights);
            UNROLL
            for (size_t i = 0; i < n_x; i++)
                s[j * n_x + i] = fmadd(values[i], weights, s[j * n_x + i]);
        }
    }
    if (c < n) {
        vec values[X_ROWS];
        UNROLL
        for (size_t i = 0; i < n_x; i++)
            values[i] = load_first(rows[i] + c, n - c);
        UNROLL
        for (size_t j = 0; j < n_w; j++) {
            vec weights = load_type_first(type, w + j * w_stride + c * type_bytes(type), n - c);
            UNROLL
            for (size_t i = 0; i < n_x; i++)
                s[j * n_x + i] = fmadd(values[i], weights, s[j * n_x + i]);
        }
    }
    UNROLL
    for (size_t a = 0; a < n_w * n_x; a++)
        sums[a] = s[a];
}

INLINE void store_sums(float *out, size_t out_stride, const vec *sums, size_t n_x, size_t n_w)
{
    UNROLL
    for (size_t i = 0; i < n_x; i++)
        UNROLL
        for (size_t j = 0; j < n_w; j += 4) {
            float *at = out + i * out_stride + j;
            if (n_w == 1) {
                _mm_store_ss(at, add4(sums[i], zero(), zero(), zero()));
                continue;
            }
            const vec *s = sums + j * n_x + i;
            _mm_storeu_ps(at, add4(s[0], s[n_x], s[2 * n_x], s[3 * n_x]));
        }
}

/* A few rows of activations: weights straight from where they are, each read once. */
INLINE void block_direct(float *out, size_t out_stride, const float *const *x, size_t n_x, const uint8_t *w,
                         size_t w_stride, size_t n_w, size_t k, ds_type type)
{
    vec sums[W_ROWS * X_ROWS];
    UNROLL
    for (size_t a = 0; a < n_w * n_x; a++)
        sums[a] = zero();
    add_products(sums, x, 0, n_x, w, w_stride, n_w, k, type);
    store_sums(out, out_stride, sums, n_x, n_w);
}

INLINE void matmul_direct(float *out, size_t out_stride, const float *const *x, size_t n_x, const uint8_t *w,
                          size_t w_stride, size_t n_w, size_t n, size_t k, ds_type type)
{
    size_t j = 0;
    for (; j + n_w <= n; j += n_w)
        block_direct(out + j, out_stride, x, n_x, w + j * w_stride, w_stride, n_w, k, type);
    for (; j < n; j++)
        block_direct(out + j, out_stride, x, n_x, w + j * w_stride, w_stride, 1, k, type);
}

/* The products of one chunk of columns for n_x of the block's rows. */
INLINE void chunk_rows(vec *sums, const float *const *x, size_t x_at, size_t n_x, const float *unpacked, size_t n_w,
                       size_t n)
{
    if (n_w == W_ROWS)
        add_products(sums, x, x_at, n_x, (const uint8_t *)unpacked, K_CHUNK * sizeof *unpacked, W_ROWS, n, DS_TYPE_F32);
    else
        add_products(sums, x, x_at, n_x, (const uint8_t *)unpacked, K_CHUNK * sizeof *unpacked, 1, n, DS_TYPE_F32);
}

static void chunk(vec *sums, const float *const *x, size_t x_at, size_t m, const float *unpacked, size_t n_w, size_t n)
{
    size_t i = 0;
    for (; i + X_ROWS <= m; i += X_ROWS)
        chunk_rows(sums + i * W_ROWS, x + i, x_at, X_ROWS, unpacked, n_w, n);
    if (m - i == 2)
        chunk_rows(sums + i * W_ROWS, x + i, x_at, 2, unpacked, n_w, n);
    else if (m - i == 1)
        chunk_rows(sums + i * W_ROWS, x + i, x_at, 1, unpacked, n_w, n);
}

/* Up to M_BLOCK rows of activations and n_w (W_ROWS or 1) rows of weights. The weights are unpacked a chunk of
 * columns at a time and used by all rows of activations, whose sums wait in memory meanwhile. */
INLINE void block_unpacked(float *out, size_t out_stride, const float *const *x, size_t m, const uint8_t *w,
                           size_t w_stride, size_t n_w, size_t k, ds_type type)
{
    vec sums[M_BLOCK * W_ROWS];
    float unpacked[W_ROWS * K_CHUNK] __attribute__((aligned(64)));
    for (size_t a = 0; a < m * W_ROWS; a++)
        sums[a] = zero();
    for (size_t c = 0; c < k; c += K_CHUNK) {
        size_t n = k - c < K_CHUNK ? k - c : K_CHUNK;
        UNROLL
        for (size_t j = 0; j < n_w; j++)
            unpack(unpacked + j * K_CHUNK, w + j * w_stride + c * type_bytes(type), n, type);
        chunk(sums, x, c, m, unpacked, n_w, n);
    }
    for (size_t i = 0; i < m; i += X_ROWS) {
        size_t n_x = m - i < X_ROWS ? m - i : X_ROWS;
        store_sums(out + i * out_stride, out_stride, sums + i * W_ROWS, n_x, n_w);
    }
}

INLINE void matmul(float *out, size_t out_stride, const float *const *x, size_t m, const uint8_t *w, size_t w_stride,
                   size_t n, size_t k, ds_type type)
{
    if (m == 1) {
        matmul_direct(out, out_stride, x, 1, w, w_stride, ONE_X_W_ROWS, n, k, type);
        return;
    }
    if (m == 2) {
        matmul_direct(out, out_stride, x, 2, w, w_stride, W_ROWS, n, k, type);
        return;
    }
    if (m == 3) {
        matmul_direct(out, out_stride, x, 3, w, w_stride, W_ROWS, n, k, type);
        return;
    }
    for (size_t i = 0; i < m; i += M_BLOCK) {
        size_t rows = m - i < M_BLOCK ? m - i : M_BLOCK, j = 0;
        float *at = out + i * out_stride;
        for (; j + W_ROWS <= n; j += W_ROWS)
            block_unpacked(at + j, out_stride, x + i, rows, w + j * w_stride, w_stride, W_ROWS, k, type);
        for (; j < n; j++)
            block_unpacked(at + j, out_stride, x + i, rows, w + j * w_stride, w_stride, 1, k, type);
    }
}

static void matmul_f32(float *out, size_t out_stride, const float *const *x, size_t m, const void *w, size_t w_stride,
                       size_t n, size_t k)
{
    matmul(out, out_stride, x, m, w, w_stride, n, k, DS_TYPE_F32);
}

static void matmul_f16(float *out, size_t out_stride, const float *const *x, size_t m, const void *w, size_t w_stride,
                       size_t n, size_t k)
{
    matmul(out, out_stride, x, m, w, w_stride, n, k, DS_TYPE_F16);
}

static void matmul_bf16(float *out, size_t out_stride, const float *const *x, size_t m, const void *w, size_t w_stride,
                        size_t n, size_t k)
{
    matmul(out, out_stride, x, m, w, w_stride, n, k, DS_TYPE_BF16);
}

/* ---- attention ---- */

/* A block of weighted_sum: n_rows rows, n_vecs vectors of columns, the last of `last` floats. */
INLINE void sum_block(float *out, size_t out_stride, const float *keep, const float *p, size_t p_stride, size_t n_rows,
                      const float *v, size_t v_stride, size_t n, size_t n_vecs, size_t last)
{
    vec sums[SUM_ROWS * SUM_VECS];
    UNROLL
    for (size_t i = 0; i < n_rows; i++)
        UNROLL
        for (size_t a = 0; a < n_vecs; a++) {
            const float *at = out + i * out_stride + a * LANES;
            sums[i * n_vecs + a] = mul(last == LANES ? load(at) : load_first(at, last), splat(keep[i]));
        }
    for (size_t t = 0; t < n; t++) {
        vec values[SUM_VECS];
        UNROLL
        for (size_t a = 0; a < n_vecs; a++) {
            const float *at = v + t * v_stride + a * LANES;
            values[a] = last == LANES ? load(at) : load_first(at, last);
        }
        UNROLL
        for (size_t i = 0; i < n_rows; i++) {
            vec weight = splat(p[i * p_stride + t]);
            UNROLL
            for (size_t a = 0; a < n_vecs; a++)
                sums[i * n_vecs + a] = fmadd(weight, values[a], sums[i * n_vecs + a]);
        }
    }
    UNROLL
    for (size_t i = 0; i < n_rows; i++)
        UNROLL
        for (size_t a = 0; a < n_vecs; a++) {
            float *at = out + i * out_stride + a * LANES;
            if (last == LANES)
                store(at, sums[i * n_vecs + a]);
            else
                store_first(at, sums[i * n_vecs + a], last);
        }
}

INLINE void sum_rows(float *out, size_t out_stride, const float *keep, const float *p, size_t p_stride, size_t n_rows,
                     const float *v, size_t v_stride, size_t n, size_t k)
{
    size_t j = 0;
    for (; j + SUM_VECS * LANES <= k; j += SUM_VECS * LANES)
        sum_block(out + j, out_stride, keep, p, p_stride, n_rows, v + j, v_stride, n, SUM_VECS, LANES);
    for (; j + LANES <= k; j += LANES)
        sum_block(out + j, out_stride, keep, p, p_stride, n_rows, v + j, v_stride, n, 1, LANES);
    if (j < k)
        sum_block(out + j, out_stride, keep, p, p_stride, n_rows, v + j, v_stride, n, 1, k - j);
}

static void weighted_sum(float *out, size_t out_stride, const float *keep, const float *p, size_t p_stride, size_t m,
                         const float *v, size_t v_stride, size_t n, size_t k)
{
    size_t i = 0;
    for (; i + SUM_ROWS <= m; i += SUM_ROWS)
        sum_rows(out + i * out_stride, out_stride, keep + i, p + i * p_stride, p_stride, SUM_ROWS, v, v_stride, n, k);
    for (; i + FEW_ROWS <= m; i += FEW_ROWS)
        sum_rows(out + i * out_stride, out_stride, keep + i, p + i * p_stride, p_stride, FEW_ROWS, v, v_stride, n, k);
    for (; i < m; i++)
        sum_rows(out + i * out_stride, out_stride, keep + i, p + i * p_stride, p_stride, 1, v, v_stride, n, k);
}

/* exp(v) to about an ulp; 0 from -104 down and for -INFINITY, INFINITY from 88.73 up, NaN for NaN.
 * exp(v) = 2^n exp(r), |r| <= ln 2 / 2, where the Taylor series' term of degree 8 is under 2^-26. */
INLINE vec exp_vec(vec v)
{
    v = max(splat(-105.0f), min(splat(89.0f), v));
    vec n = round_even(mul(v, splat(1.44269504f)));
    vec r = fmadd(n, splat(-0.693359375f), v); /* ln 2 in two parts, the first of few enough bits for exact products */
    r = fmadd(n, splat(2.12194440e-4f), r);
    vec e = fmadd(r, splat(1.0f / 5040), splat(1.0f / 720));
    e = fmadd(e, r, splat(1.0f / 120));
    e = fmadd(e, r, splat(1.0f / 24));
    e = fmadd(e, r, splat(1.0f / 6));
    e = fmadd(e, r, splat(0.5f));
    e = fmadd(e, r, splat(1.0f));
    e = fmadd(e, r, splat(1.0f));
    return scale_exp2(e, n);
}

static float exp_sum(float *x, float max_x, size_t n)
{
    vec sum = zero(), subtract = splat(max_x);
    size_t t = 0;
    for (; t + LANES <= n; t += LANES) {
        vec e = exp_vec(sub(load(x + t), subtract));
        store(x + t, e);
        sum = add(sum, e);
    }
    if (t < n) {
        store_first(x + t, exp_vec(sub(load_first(x + t, n - t), subtract)), n - t);
        sum = add(sum, load_first(x + t, n - t));
    }
    return _mm_cvtss_f32(add4(sum, zero(), zero(), zero()));
}

static float maximum(const float *x, size_t n)
{
    vec largest = splat(x[0]);
    size_t c = 0;
    for (; c + LANES <= n; c += LANES)
        largest = max(largest, load(x + c));
    float result = max_lanes(largest);
    for (; c < n; c++)
        result = x[c] > result ? x[c] : result;
    return result;
}

/* ---- rows ---- */

static void rms_norm(float *out, const float *x, const float *weight, float epsilon, size_t n)
{
    vec sum = zero();
    size_t c = 0;
    for (; c + LANES <= n; c += LANES) {
        vec v = load(x + c);
        sum = fmadd(v, v, sum);
    }
    if (c < n) {
        vec v = load_first(x + c, n - c);
        sum = fmadd(v, v, sum);
    }
    float squares = _mm_cvtss_f32(add4(sum, zero(), zero(), zero()));
    float scale = 1.0f / sqrtf(squares / (float)n + epsilon);
    for (c = 0; c + LANES <= n; c += LANES)
        store(out + c, mul(mul(load(x + c), splat(scale)), load(weight + c)));
    if (c < n)
        store_first(out + c, mul(mul(load_first(x + c, n - c), splat(scale)), load_first(weight + c, n - c)), n - c);
}

INLINE vec silu_times(vec gate, vec up)
{
    vec e = exp_vec(sub(zero(), gate));
    return mul(divide(gate, add(splat(1.0f), e)), up);
}

static void swiglu(float *gate, const float *up, size_t n)
{
    size_t c = 0;
    for (; c + LANES <= n; c += LANES)
        store(gate + c, silu_times(load(gate + c), load(up + c)));
    if (c < n)
        store_first(gate + c, silu_times(load_first(gate + c, n - c), load_first(up + c, n - c)), n - c);
}

static void add_scaled(float *out, const float *x, float scale, size_t n)
{
    size_t c = 0;
    for (; c + LANES <= n; c += LANES)
        store(out + c, fmadd(splat(scale), load(x + c), load(out + c)));
    if (c < n)
        store_first(out + c, fmadd(splat(scale), load_first(x + c, n - c), load_first(out + c, n - c)), n - c);
}

#define VECTOR_KERNELS                                                                                                 \
    .matmul[DS_TYPE_F32] = matmul_f32, .matmul[DS_TYPE_F16] = matmul_f16, .matmul[DS_TYPE_BF16] = matmul_bf16,         \
    .to_f32[DS_TYPE_F16] = f16_to_f32, .to_f32[DS_TYPE_BF16] = bf16_to_f32, .f32_to_f16 = f32_to_f16,                  \
    .weighted_sum = weighted_sum, .rms_norm = rms_norm, .exp_sum = exp_sum, .swiglu = swiglu,                          \
    .add_scaled = add_scaled, .max = maximum

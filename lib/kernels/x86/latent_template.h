/* Reads quantised rows of the latent KV cache with vectors, with the results of ../latent_template.h, which takes over
 * where a shape does not fill vectors. Beside what vector_template.h and pairs_template.h ask for, the including file
 * defines
 *   word_lanes                a vector as words of 16 bits, for the compiler's own operators
 *   ints_of_u8(p)             LANES bytes, extended to 32 bits
 *   merge(a, mask, b)         a | (mask & b)
 *   high_product(w, n)        the upper halves of the unsigned products of 16-bit words with n
 *   floats_of_ints(v)         the bits as floats */

enum { WORDS = 2 * LANES };

static void unpack_q8(float *out, const uint8_t *scales, const int8_t *codes, size_t section, size_t n)
{
    if (section % LANES != 0 || n % section != 0) {
        latent_unpack_q8(out, scales, codes, section, n);
        return;
    }
    for (size_t i = 0; i < n; scales += 2) {
        vec scale = splat(latent_scale(scales));
        for (size_t end = i + section; i < end; i += LANES)
            store(out + i, mul(floats_of_s8((const uint8_t *)codes + i), scale));
    }
}

/* Two times LANES bytes as words: byte k in the lower half of lane k, byte LANES + k in its upper half. */
INLINE ivec words_of_u8(const uint8_t *p) { return or_ints(ints_of_u8(p), shift_left(ints_of_u8(p + LANES), 16)); }
INLINE ivec splat_word(int n) { return splat_int(n | n << 16); }
INLINE ivec shift_words(ivec w, int n) { return (ivec)((word_lanes)w << (uint16_t)n); }

/* The lower words' levels times scale, then the upper words'. 0x4b000000 is the float 2^23; with a small number in its
 * last bits, the float is 2^23 plus that number. */
INLINE void store_levels(float *out, ivec w, vec scale)
{
    vec offset = splat(0x1p23f + DS_PAIR_LEVELS / 2);
    ivec lower = merge(splat_int(0x4b000000), splat_int(0xffff), w);
    ivec upper = or_ints(splat_int(0x4b000000), shift_right(w, 16));
    store(out, mul(sub(floats_of_ints(lower), offset), scale));
    store(out + LANES, mul(sub(floats_of_ints(upper), offset), scale));
}

/* WORDS pairs. A code is put together of three words: one has bits 0-7 in their places, one 8-9, one 10, each beside
 * bits of other codes. */
INLINE void unpack_words(float *low_out, float *high_out, ivec low, ivec middle, ivec top, vec low_scale,
                         vec high_scale)
{
    ivec code = merge(merge(low, splat_word(0x300), middle), splat_word(0x400), top);
    ivec high = high_product(code, LATENT_DIVIDER);
    word_lanes rest = (word_lanes)code - (word_lanes)high * DS_PAIR_LEVELS;
    store_levels(low_out, (ivec)rest, low_scale);
    store_levels(high_out, high, high_scale);
}

/* The shape of all published models, known when this is compiled. */
enum { PAIRS_N = 512, PAIRS_SECTION = 128, PAIRS_EIGHTH = PAIRS_N / 16 };

static void unpack_pairs(float *out, const uint8_t *scales, const uint8_t *pairs, size_t section, size_t n)
{
    if (n != PAIRS_N || section != PAIRS_SECTION) {
        latent_unpack_pairs(out, scales, pairs, section, n);
        return;
    }
    const uint8_t *middle = pairs + 8 * PAIRS_EIGHTH, *top = middle + 2 * PAIRS_EIGHTH;
    vec scale[PAIRS_N / PAIRS_SECTION];
    for (size_t g = 0; g < PAIRS_N / PAIRS_SECTION; g++)
        scale[g] = splat(latent_scale(scales + 2 * g));
    for (size_t j = 0; j < PAIRS_EIGHTH; j += WORDS) {
        ivec tops = words_of_u8(top + j);
        ivec middles[2] = {words_of_u8(middle + j), words_of_u8(middle + PAIRS_EIGHTH + j)};
        UNROLL
        for (int part = 0; part < 8; part++) {
            size_t i = (size_t)part * PAIRS_EIGHTH + j, low = (size_t)part * PAIRS_EIGHTH / PAIRS_SECTION;
            unpack_words(out + i, out + PAIRS_N / 2 + i, words_of_u8(pairs + i),
                         shift_words(middles[part % 2], 8 - part / 2 * 2),
                         shift_words(tops, 10 - part), scale[low], scale[PAIRS_N / PAIRS_SECTION / 2 + low]);
        }
    }
}

#define VECTOR_LATENT_KERNELS \
    .rotate = latent_rotate, .unpack_q8 = unpack_q8, .split_pairs = latent_split_pairs, .unpack_pairs = unpack_pairs

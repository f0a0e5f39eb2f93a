#include "forward/rope.h"

#include <math.h>

/* m(s, a) of YaRN: how much attention has to be sharpened for a context s times as long. */
static float yarn_mscale(float scale, float mscale)
{
    return scale <= 1.0f ? 1.0f : 0.1f * mscale * logf(scale) + 1.0f;
}

/* The dimension whose wavelength makes `rotations` turns over the original context. */
static double correction_dim(double rotations, double dim, double base, double original_context)
{
    return dim * log(original_context / (rotations * 2.0 * 3.14159265358979323846)) / (2.0 * log(base));
}

dsv2_status ds_rope_init(ds_rope *rope, const ds_config *config)
{
    const ds_yarn *yarn = &config->yarn;
    uint32_t dim = config->qk_rope_head_dim, half = dim / 2;
    rope->frequency = ds_new(half, sizeof *rope->frequency);
    if (rope->frequency == NULL)
        return ds_fail_memory("RoPE frequencies", half * sizeof *rope->frequency);
    rope->scale = 1.0f;
    rope->softmax_scale = 1.0f / sqrtf((float)(config->qk_nope_head_dim + dim));
    for (uint32_t i = 0; i < half; i++)
        rope->frequency[i] = 1.0f / powf(config->rope_theta, 2.0f * (float)i / (float)dim);
    if (!yarn->enabled)
        return DSV2_OK;

    /* Fast dimensions keep their frequency, slow ones are stretched by the factor, with a ramp between. */
    double low = floor(correction_dim(yarn->beta_fast, dim, config->rope_theta,
                                      yarn->original_max_position_embeddings));
    double high = ceil(correction_dim(yarn->beta_slow, dim, config->rope_theta,
                                      yarn->original_max_position_embeddings));
    low = low < 0 ? 0 : low;
    high = high > dim - 1 ? dim - 1 : high;
    if (low == high)
        high += 0.001; /* no division by zero */
    for (uint32_t i = 0; i < half; i++) {
        float ramp = (float)(((double)i - low) / (high - low));
        ramp = ramp < 0 ? 0 : ramp > 1 ? 1 : ramp;
        float extrapolated = rope->frequency[i], interpolated = extrapolated / yarn->factor;
        rope->frequency[i] = interpolated * ramp + extrapolated * (1.0f - ramp);
    }
    /* The two corrections: of cos and sin, and of the softmax. */
    rope->scale = yarn_mscale(yarn->factor, yarn->mscale) / yarn_mscale(yarn->factor, yarn->mscale_all_dim);
    if (yarn->mscale_all_dim != 0) {
        float mscale = yarn_mscale(yarn->factor, yarn->mscale_all_dim);
        rope->softmax_scale *= mscale * mscale;
    }
    return DSV2_OK;
}

void ds_rope_free(ds_rope *rope)
{
    ds_free(rope->frequency);
    *rope = (ds_rope){0};
}

void ds_rope_angles(const ds_rope *rope, const ds_config *config, size_t position, float *cos, float *sin)
{
    for (uint32_t i = 0; i < config->qk_rope_head_dim / 2; i++) {
        float angle = (float)position * rope->frequency[i];
        cos[i] = cosf(angle) * rope->scale;
        sin[i] = sinf(angle) * rope->scale;
    }
}

void ds_rope_rotate(const ds_config *config, const float *cos, const float *sin, float *x)
{
    uint32_t half = config->qk_rope_head_dim / 2;
    /* Pairs are (2i, 2i + 1), or in some files (i, i + half). q and k have the same order, so q . k is the same. */
    uint32_t step = config->rope_pairs_split ? 1 : 2, other = config->rope_pairs_split ? half : 1;
    for (uint32_t i = 0; i < half; i++) {
        float a = x[step * i], b = x[step * i + other];
        x[step * i] = a * cos[i] - b * sin[i];
        x[step * i + other] = a * sin[i] + b * cos[i];
    }
}

/* Numbers that do not fit where they go, or are none: rows of the cache, sums of a pass, weights that are converted,
 * snapshots. Each is held right or refused with a status; nothing goes wrong without a word. */
#include <dsv2/dsv2.h>

#include "formats/container.h"
#include "support/checkpoint.h"
#include "support/gguf.h"
#include "support/model.h"
#include "support/run.h"
#include "support/snapshot_file.h"
#include "support/tensors.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* V2-Lite's attention, with a small feed-forward part. */
static const test_checkpoint lite = {
    .vocab_size = 300, .hidden_size = 2048, .intermediate_size = 256, .num_hidden_layers = 1,
    .num_attention_heads = 16, .kv_lora_rank = 512, .qk_nope_head_dim = 128, .qk_rope_head_dim = 64, .v_head_dim = 128,
    .max_position_embeddings = 256, .first_k_dense_replace = 1, .seed = 71,
};

/* Small, with experts in its last two layers of three. */
static const test_checkpoint small = {
    .vocab_size = 60, .hidden_size = 64, .intermediate_size = 32, .num_hidden_layers = 3, .num_attention_heads = 2,
    .kv_lora_rank = 32, .qk_nope_head_dim = 32, .qk_rope_head_dim = 16, .v_head_dim = 32,
    .max_position_embeddings = 2048, .moe_intermediate_size = 32, .n_routed_experts = 8, .num_experts_per_tok = 2,
    .n_shared_experts = 1, .first_k_dense_replace = 1, .seed = 72,
};

static void fails_with(dsv2_status expected, dsv2_status status, const char *words)
{
    ck_assert_msg(status == expected, "%s in place of %s: %s", dsv2_status_name(status), dsv2_status_name(expected),
                  dsv2_last_error());
    ck_assert_msg(strstr(dsv2_last_error(), words) != NULL, "\"%s\" is not in: %s", words, dsv2_last_error());
}

static size_t length_of(dsv2_session *session)
{
    size_t length;
    ck_assert(dsv2_session_length(session, &length) == DSV2_OK);
    return length;
}

/* ---- other weights ---- */

/* Element i of a BF16 tensor. */
static float element(const test_tensor *tensor, size_t i)
{
    uint32_t bits = (uint32_t)(tensor->data[2 * i] | tensor->data[2 * i + 1] << 8) << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static void set_element(const test_tensor *tensor, size_t i, float value)
{
    uint8_t *data = (uint8_t *)(uintptr_t)tensor->data;
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    data[2 * i] = (uint8_t)(bits >> 16);
    data[2 * i + 1] = (uint8_t)(bits >> 24);
}

/* Multiplies by 2^power the rows whose number, modulo `period`, is `first` to `end` - 1. */
static void scale_rows(const test_tensors *tensors, const char *name, size_t first, size_t end, size_t period,
                       int power)
{
    const test_tensor *tensor = test_tensors_need(tensors, name, "BF16");
    size_t cols = tensor->n_dims > 1 ? tensor->dims[1] : 1;
    for (size_t i = 0; i < tensor->n_bytes / 2; i++)
        if (i / cols % period >= first && i / cols % period < end)
            set_element(tensor, i, ldexpf(element(tensor, i), power));
}

static void set_row(const test_tensors *tensors, const char *name, size_t row, float value)
{
    const test_tensor *tensor = test_tensors_need(tensors, name, "BF16");
    for (size_t i = 0; i < tensor->dims[1]; i++)
        set_element(tensor, row * tensor->dims[1] + i, value);
}

static const int32_t small_tokens[] = {1, 2, 3, 4, 5};

typedef void change_fn(const test_tensors *tensors, int power);

/* A folder with a checkpoint whose weights are changed. */
static char *write_changed(const test_checkpoint *shape, change_fn *change, int power)
{
    char *folder = test_checkpoint_write(shape);
    const char *path = test_format("%s/model.safetensors", folder);
    test_tensors tensors = {0};
    test_tensors_read(&tensors, path);
    change(&tensors, power);
    test_tensors_write(&tensors, path);
    test_tensors_free(&tensors);
    return folder;
}

/* ---- parts of cached rows ---- */

/* The RoPE key 2^power times as large and its queries as much smaller: scores stay what they are. */
static void scale_rope_key(const test_tensors *tensors, int power)
{
    uint32_t nope = lite.qk_nope_head_dim, rope = lite.qk_rope_head_dim, lora = lite.kv_lora_rank;
    scale_rows(tensors, "model.layers.0.self_attn.kv_a_proj_with_mqa.weight", lora, lora + rope, lora + rope, power);
    scale_rows(tensors, "model.layers.0.self_attn.q_proj.weight", nope, nope + rope, nope + rope, -power);
}

/* The same of the latent and of what is made of the latent. */
static void scale_latent(const test_tensors *tensors, int power)
{
    scale_rows(tensors, "model.layers.0.self_attn.kv_a_layernorm.weight", 0, 1, 1, power);
    scale_rows(tensors, "model.layers.0.self_attn.kv_b_proj.weight", 0, 1, 1, -power);
}

enum { N = 40, FORMS = 2 };
static int32_t tokens[N];
static const dsv2_attention forms[FORMS] = {DSV2_ATTENTION_ABSORBED, DSV2_ATTENTION_EXPANDED};

/* The last logits of N tokens; or, if the feed fails as a row that does not fit does, NULL and an empty session. */
static float *fed(dsv2_model *model, dsv2_cache_type type, dsv2_attention attention, const char *part)
{
    dsv2_session *session = test_session_open(
        model, &(dsv2_session_options){.struct_size = sizeof(dsv2_session_options), .cache_type = type,
                                       .attention = attention});
    dsv2_status status = dsv2_session_feed(session, tokens, N);
    float *copy = NULL;
    if (status == DSV2_OK) {
        const float *logits;
        ck_assert(dsv2_session_logits(session, &logits) == DSV2_OK);
        copy = malloc(lite.vocab_size * sizeof *copy);
        ck_assert(copy != NULL);
        memcpy(copy, logits, lite.vocab_size * sizeof *copy);
    } else {
        fails_with(DSV2_ERROR_UNSUPPORTED, status, part);
        fails_with(DSV2_ERROR_UNSUPPORTED, status, "of token 0 in layer 0: reaches ");
        fails_with(DSV2_ERROR_UNSUPPORTED, status, type == DSV2_CACHE_F16 ? "cache type f16 holds up to 65504"
                                                                          : "cache type q8 holds up to 65504");
        ck_assert_uint_eq(length_of(session), 0);
    }
    dsv2_session_close(session);
    return copy;
}

static double distance(const float *a, const float *b)
{
    double largest = 0;
    for (uint32_t i = 0; i < lite.vocab_size; i++) {
        ck_assert(isfinite(a[i]) && isfinite(b[i]));
        largest = fmax(largest, fabs((double)a[i] - (double)b[i]));
    }
    return largest;
}

/* errors[f][type]: how far the type's logits are from f32's; -1 where the row is refused. */
static void measure(change_fn *change, int power, const char *part, double errors[FORMS][DSV2_CACHE_Q6 + 1])
{
    char *folder = write_changed(&lite, change, power);
    dsv2_model *model = test_model_open(folder, &(dsv2_model_options){.n_threads = 2});
    for (size_t f = 0; f < FORMS; f++) {
        float *exact = fed(model, DSV2_CACHE_F32, forms[f], part);
        ck_assert_msg(exact != NULL, "f32 holds every row: %s", dsv2_last_error());
        for (int type = DSV2_CACHE_F16; type <= DSV2_CACHE_Q6; type++) {
            float *logits = fed(model, (dsv2_cache_type)type, forms[f], part);
            errors[f][type] = logits == NULL ? -1 : distance(logits, exact);
            free(logits);
        }
        free(exact);
    }
    dsv2_model_close(model);
    test_checkpoint_remove(folder);
}

static const struct {
    change_fn *change;
    const char *part;
    int power;
    bool f16_refused, q8_refused; /* the row is beyond half precision, and the type keeps the part in that */
} parts[] = {
    {scale_rope_key, "the cached RoPE key", 7, false, false},
    {scale_rope_key, "the cached RoPE key", 10, false, false},
    {scale_rope_key, "the cached RoPE key", 17, true, true},
    {scale_rope_key, "the cached RoPE key", 40, true, true},
    {scale_rope_key, "the cached RoPE key", -9, false, false},
    {scale_latent, "the cached latent", 10, false, false},
    {scale_latent, "the cached latent", 20, true, false},
    {scale_latent, "the cached latent", -9, false, false},
};

/* What was seen was NaN in every logit with q8, which is the default, and f16; and with q6, and q8 short of half
 * precision, logits that were wrong: a query's part that was small beside the other one was rounded away. */
START_TEST(parts_of_any_size_are_held_within_the_types_error_or_refused)
{
    double usual[FORMS][DSV2_CACHE_Q6 + 1], errors[FORMS][DSV2_CACHE_Q6 + 1];
    measure(parts[_i].change, 0, parts[_i].part, usual);
    measure(parts[_i].change, parts[_i].power, parts[_i].part, errors);
    for (size_t f = 0; f < FORMS; f++)
        for (int type = DSV2_CACHE_F16; type <= DSV2_CACHE_Q6; type++) {
            bool refused = type == DSV2_CACHE_F16 ? parts[_i].f16_refused
                                                  : type == DSV2_CACHE_Q8 && parts[_i].q8_refused;
            if (refused)
                ck_assert_msg(errors[f][type] < 0, "form %zu, type %d: not refused", f, type);
            else
                ck_assert_msg(errors[f][type] >= 0 && errors[f][type] <= 2 * usual[f][type],
                              "form %zu, type %d: off by %g, %g where nothing is scaled", f, type, errors[f][type],
                              usual[f][type]);
        }
}
END_TEST

/* ---- numbers that go wrong in a pass ---- */

enum { BAD = 59, PREFIX = 10, PROMPT = 30, LONG = 600, LAYERS = 3, EXPERTS = 8 };

static const float bad_numbers[] = {NAN, INFINITY, 1e25f /* its square is not finite */};

/* Token BAD has an embedding of bad_numbers[which]. */
static void spoil_token(const test_tensors *tensors, int which)
{
    set_row(tensors, "model.embed_tokens.weight", BAD, bad_numbers[which]);
}

static void *logits_copy(dsv2_session *session)
{
    const float *logits;
    float *copy = malloc(small.vocab_size * sizeof *copy);
    ck_assert(copy != NULL && dsv2_session_logits(session, &logits) == DSV2_OK);
    memcpy(copy, logits, small.vocab_size * sizeof *copy);
    return copy;
}

static dsv2_step_item item_of(dsv2_session *session, const int32_t *ids, size_t n)
{
    return (dsv2_step_item){.struct_size = sizeof(dsv2_step_item), .session = session, .tokens = ids, .n_tokens = n};
}

static void same_statistics(dsv2_model *a, dsv2_model *b)
{
    dsv2_routing *of_a, *of_b;
    ck_assert(dsv2_model_routing(a, DSV2_ROUTING_ALL, &of_a) == DSV2_OK);
    ck_assert(dsv2_model_routing(b, DSV2_ROUTING_ALL, &of_b) == DSV2_OK);
    for (uint32_t layer = 1; layer < LAYERS; layer++) {
        dsv2_expert_load loads[2][EXPERTS];
        dsv2_routing_balance balance = {.struct_size = sizeof balance};
        ck_assert(dsv2_routing_experts(of_a, layer, loads[0]) == DSV2_OK);
        ck_assert(dsv2_routing_experts(of_b, layer, loads[1]) == DSV2_OK);
        ck_assert(memcmp(loads[0], loads[1], sizeof loads[0]) == 0);
        ck_assert(dsv2_routing_measure(of_a, layer, 0, 0, &balance) == DSV2_OK);
        ck_assert(isfinite(balance.expert_balance_loss) && isfinite(balance.device_balance_loss) &&
                  isfinite(balance.communication_balance_loss));
    }
    dsv2_routing_free(of_a);
    dsv2_routing_free(of_b);
}

/* Attack 10: one session's NaN made the whole model's losses NaN, and its feed said OK. */
START_TEST(wrong_numbers_of_one_session_are_in_its_status_and_in_nothing_of_the_others)
{
    char *folder = write_changed(&small, spoil_token, _i);
    dsv2_model *model = test_model_open(folder, &(dsv2_model_options){.n_threads = 2});
    dsv2_model *other = test_model_open(folder, &(dsv2_model_options){.n_threads = 2});
    int32_t prefix[PREFIX], prompts[2][PROMPT];
    const int32_t wrong[] = {1, 2, BAD, 3}, right[] = {4};
    test_random_tokens(6, BAD, prefix, PREFIX);
    test_random_tokens(7, BAD, prompts[0], PROMPT);
    test_random_tokens(8, BAD, prompts[1], PROMPT);
    float *every = malloc(sizeof *every * 4 * small.vocab_size);
    ck_assert(every != NULL);

    dsv2_session *bad = test_session_open(model, NULL), *good[2], *alone[2];
    ck_assert(dsv2_session_feed(bad, prefix, PREFIX) == DSV2_OK);
    float *before = logits_copy(bad);
    ck_assert(dsv2_model_routing_reset(model) == DSV2_OK);
    for (int i = 0; i < 2; i++) {
        good[i] = test_session_open(model, NULL);
        alone[i] = test_session_open(other, NULL);
        ck_assert(dsv2_session_feed(alone[i], prompts[i], PROMPT) == DSV2_OK);
    }
    dsv2_step_item items[] = {item_of(good[0], prompts[0], PROMPT), item_of(bad, wrong, 4),
                              item_of(good[1], prompts[1], PROMPT)};
    items[1].logits = every;
    fails_with(DSV2_ERROR_FORMAT, dsv2_step(model, items, 3),
               "items[1]: the cached latent of token 12 in layer 0: not finite");
    ck_assert(items[0].status == DSV2_OK && items[1].status == DSV2_ERROR_FORMAT && items[2].status == DSV2_OK);
    for (int i = 0; i < 2; i++) {
        float *a = logits_copy(good[i]), *b = logits_copy(alone[i]);
        ck_assert(memcmp(a, b, small.vocab_size * sizeof *a) == 0);
        free(a);
        free(b);
    }
    same_statistics(model, other);

    /* The session is as it was, and goes on as if nothing had been. */
    fails_with(DSV2_ERROR_FORMAT, dsv2_session_feed(bad, wrong, 4), "the cached latent of token 12 in layer 0");
    ck_assert_uint_eq(length_of(bad), PREFIX);
    float *after = logits_copy(bad);
    ck_assert(memcmp(before, after, small.vocab_size * sizeof *after) == 0);
    same_statistics(model, other);
    dsv2_session *fresh = test_session_open(other, NULL);
    ck_assert(dsv2_session_feed(fresh, prefix, PREFIX) == DSV2_OK && dsv2_session_feed(fresh, right, 1) == DSV2_OK);
    ck_assert(dsv2_session_feed(bad, right, 1) == DSV2_OK);
    float *went_on = logits_copy(bad), *expected = logits_copy(fresh);
    ck_assert(memcmp(went_on, expected, small.vocab_size * sizeof *expected) == 0);

    free(before);
    free(after);
    free(went_on);
    free(expected);
    free(every);
    dsv2_session *all[] = {bad, good[0], good[1], alone[0], alone[1], fresh};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        dsv2_session_close(all[i]);
    dsv2_model_close(other);
    dsv2_model_close(model);
    test_checkpoint_remove(folder);
}
END_TEST

/* A prompt goes through the layers in chunks: what the chunks before did is taken back. */
START_TEST(wrong_numbers_in_a_later_chunk_take_back_the_whole_prompt)
{
    char *folder = write_changed(&small, spoil_token, 0);
    dsv2_model *model = test_model_open(folder, &(dsv2_model_options){.n_threads = 2});
    dsv2_session *session = test_session_open(model, NULL);
    int32_t prompt[LONG];
    test_random_tokens(9, BAD, prompt, LONG);
    prompt[LONG - 20] = BAD;
    fails_with(DSV2_ERROR_FORMAT, dsv2_session_feed(session, prompt, LONG), "of token 580 in layer 0: not finite");
    ck_assert_uint_eq(length_of(session), 0);
    dsv2_routing *routing;
    dsv2_routing_balance balance = {.struct_size = sizeof balance};
    ck_assert(dsv2_model_routing(model, DSV2_ROUTING_ALL, &routing) == DSV2_OK);
    ck_assert(dsv2_routing_measure(routing, 1, 0, 0, &balance) == DSV2_ERROR_STATE); /* nothing was counted */
    dsv2_routing_free(routing);
    dsv2_session_close(session);
    dsv2_model_close(model);
    test_checkpoint_remove(folder);
}
END_TEST

static void spoil_router(const test_tensors *tensors, int unused)
{
    (void)unused;
    set_row(tensors, "model.layers.2.mlp.gate.weight", 3, NAN);
}

static void spoil_head(const test_tensors *tensors, int unused)
{
    (void)unused;
    set_row(tensors, "lm_head.weight", 7, NAN);
}

static void spoil_output(const test_tensors *tensors, int unused)
{
    (void)unused;
    set_row(tensors, "model.layers.0.self_attn.o_proj.weight", 0, 3e38f);
}

static void spoil_last_layer(const test_tensors *tensors, int unused)
{
    (void)unused;
    set_row(tensors, "model.layers.2.mlp.shared_experts.down_proj.weight", 0, 3e38f);
}

static const struct {
    change_fn *change;
    const char *words;
} spoils[] = {
    {spoil_router, "an expert's affinity of token 0 in layer 2: not finite"},
    {spoil_head, "the logits of token 19: not finite"},
    {spoil_output, "the cached latent of token 0 in layer 1: not finite"},
    {spoil_last_layer, "the logits of token 19: not finite"},
};

START_TEST(wrong_numbers_are_noticed_wherever_they_come_up)
{
    char *folder = write_changed(&small, spoils[_i].change, 0);
    dsv2_model *model = test_model_open(folder, &(dsv2_model_options){.n_threads = 2});
    for (dsv2_cache_type type = DSV2_CACHE_F32; type <= DSV2_CACHE_Q6; type++) {
        dsv2_session *session = test_session_open(
            model, &(dsv2_session_options){.struct_size = sizeof(dsv2_session_options), .cache_type = type});
        int32_t prompt[20];
        const float *logits;
        test_random_tokens(10, BAD, prompt, 20);
        fails_with(DSV2_ERROR_FORMAT, dsv2_session_feed(session, prompt, 20), spoils[_i].words);
        ck_assert_uint_eq(length_of(session), 0);
        ck_assert(dsv2_session_logits(session, &logits) == DSV2_ERROR_STATE);
        dsv2_session_close(session);
    }
    dsv2_model_close(model);
    test_checkpoint_remove(folder);
}
END_TEST

/* ---- weights that are converted ---- */

#define LAYER0 "model.layers.0."
static const char *const halves = "too large for F16; ask for another weight_type";
static const char *const no_number = "expected a finite number";

typedef struct spoilt_weight {
    const char *dtype, *tensor; /* an element of this tensor becomes `value` */
    size_t element;
    float value;
    dsv2_weight_type weight_type; /* to open with and to pack with */
    dsv2_status status;
    const char *place, *reason; /* in the message */
    bool opens_as_stored;
} spoilt_weight;

static const spoilt_weight spoilt_weights[] = {
    {"BF16", LAYER0 "mlp.down_proj.weight", 3 * 32 + 5, 131072, DSV2_WEIGHTS_F16, DSV2_ERROR_UNSUPPORTED,
     LAYER0 "mlp.down_proj.weight: row 3, column 5 is 131072, ", halves, true},
    {"BF16", LAYER0 "self_attn.kv_b_proj.weight", 66 * 32 + 9, -131072, DSV2_WEIGHTS_F16, DSV2_ERROR_UNSUPPORTED,
     LAYER0 "self_attn.kv_b_proj.weight: row 66, column 9 is -131072, ", halves, true}, /* of W^UK */
    {"BF16", LAYER0 "self_attn.kv_b_proj.weight", 40 * 32 + 9, 131072, DSV2_WEIGHTS_F16, DSV2_ERROR_UNSUPPORTED,
     LAYER0 "self_attn.kv_b_proj.weight: row 40, column 9 is 131072, ", halves, true}, /* of W^UV */
    {"BF16", "model.layers.2.mlp.experts.7.up_proj.weight", 64, 131072, DSV2_WEIGHTS_F16, DSV2_ERROR_UNSUPPORTED,
     "model.layers.2.mlp.experts.7.up_proj.weight: row 1, column 0 is 131072, ", halves, true},
    {"BF16", "model.embed_tokens.weight", 1, 131072, DSV2_WEIGHTS_F16, DSV2_ERROR_UNSUPPORTED,
     "model.embed_tokens.weight: row 0, column 1 is 131072, ", halves, true},
    {"F32", LAYER0 "mlp.down_proj.weight", 7, 65519.0f, DSV2_WEIGHTS_F16, DSV2_OK, "", "", true},
    {"F32", LAYER0 "mlp.down_proj.weight", 7, 65520.0f, DSV2_WEIGHTS_F16, DSV2_ERROR_UNSUPPORTED,
     LAYER0 "mlp.down_proj.weight: row 0, column 7 is 65520, ", halves, true},
    {"F32", LAYER0 "mlp.down_proj.weight", 7, 3.4e38f, DSV2_WEIGHTS_BF16, DSV2_ERROR_UNSUPPORTED,
     LAYER0 "mlp.down_proj.weight: row 0, column 7 is 3.4e+38, ", "too large for BF16", true},
    {"F32", LAYER0 "mlp.down_proj.weight", 7, 3.4e38f, DSV2_WEIGHTS_Q8_0, DSV2_OK, "", "", true},
    {"BF16", "model.layers.1.mlp.experts.2.gate_proj.weight", 0, NAN, DSV2_WEIGHTS_Q8_0, DSV2_ERROR_FORMAT,
     "model.layers.1.mlp.experts.2.gate_proj.weight: row 0, column 0 is ", no_number, true},
    {"BF16", LAYER0 "mlp.up_proj.weight", 65, INFINITY, DSV2_WEIGHTS_F32, DSV2_ERROR_FORMAT,
     LAYER0 "mlp.up_proj.weight: row 1, column 1 is inf, ", no_number, true},
    {"BF16", "model.norm.weight", 2, NAN, DSV2_WEIGHTS_F16, DSV2_ERROR_FORMAT,
     "model.norm.weight: row 0, column 2 is ", no_number, false},
    {"F8_E4M3", LAYER0 "mlp.up_proj.weight_scale_inv", 1, INFINITY, DSV2_WEIGHTS_Q8_0, DSV2_ERROR_FORMAT,
     LAYER0 "mlp.up_proj.weight_scale_inv: row 0, column 1 is inf, ", no_number, false},
    {"F8_E4M3", LAYER0 "mlp.up_proj.weight_scale_inv", 0, 3e38f, DSV2_WEIGHTS_Q8_0, DSV2_ERROR_FORMAT,
     LAYER0 "mlp.up_proj.weight: row ", no_number, true}, /* the products are infinite */
};

static char *write_spoilt(const spoilt_weight *w)
{
    test_checkpoint shape = small;
    shape.dtype = w->dtype;
    if (strcmp(w->dtype, "F8_E4M3") == 0)
        shape.block_rows = shape.block_cols = 16;
    char *folder = test_checkpoint_write(&shape);
    const char *path = test_format("%s/model.safetensors", folder);
    test_tensors tensors = {0};
    test_tensors_read(&tensors, path);
    const test_tensor *tensor = test_tensors_find(&tensors, w->tensor);
    ck_assert(tensor != NULL);
    if (strcmp(tensor->dtype, "BF16") == 0)
        set_element(tensor, w->element, w->value);
    else
        memcpy((uint8_t *)(uintptr_t)tensor->data + 4 * w->element, &w->value, sizeof w->value);
    test_tensors_write(&tensors, path);
    test_tensors_free(&tensors);
    return folder;
}

START_TEST(weights_that_do_not_fit_are_named_on_opening_and_on_packing)
{
    const spoilt_weight *w = &spoilt_weights[_i];
    char *folder = write_spoilt(w), *pack = strdup(test_format("%s/copy.dsv2", folder));
    for (unsigned n_threads = 1; n_threads <= 3; n_threads += 2) {
        dsv2_model_options options = {
            .struct_size = sizeof options, .weight_type = w->weight_type, .n_threads = n_threads};
        dsv2_model *model = NULL;
        dsv2_status status = dsv2_model_open(folder, &options, &model);
        ck_assert((status == DSV2_OK) == (model != NULL));
        dsv2_model_close(model);
        if (w->status == DSV2_OK) {
            ck_assert_msg(status == DSV2_OK, "%s", dsv2_last_error());
        } else {
            fails_with(w->status, status, w->place);
            fails_with(w->status, status, w->reason);
            fails_with(w->status, status, "model.safetensors: tensor ");
        }
        dsv2_pack_options packing = {
            .struct_size = sizeof packing, .weight_type = w->weight_type, .n_threads = n_threads};
        status = dsv2_model_pack(folder, pack, &packing);
        if (w->status == DSV2_OK) {
            ck_assert_msg(status == DSV2_OK, "%s", dsv2_last_error());
            ck_assert(remove(pack) == 0);
        } else {
            fails_with(w->status, status, w->place);
            fails_with(w->status, status, w->reason);
            ck_assert(remove(pack) != 0); /* there is none */
        }
    }
    dsv2_model_options as_stored = {.struct_size = sizeof as_stored, .n_threads = 1};
    dsv2_model *model = NULL;
    dsv2_status status = dsv2_model_open(folder, &as_stored, &model);
    ck_assert_msg((status == DSV2_OK) == w->opens_as_stored, "%s", dsv2_last_error());
    dsv2_model_close(model);
    free(pack);
    test_checkpoint_remove(folder);
}
END_TEST

/* ---- weights that are too small ---- */

static const struct {
    const char *tensor;
    int power; /* of 2: rows `first` to `end` - 1 of each `period` are scaled by that */
    size_t first, end, period;
    bool refused; /* as F16 */
} small_weights[] = {
    {LAYER0 "mlp.down_proj.weight", -20, 0, 1, 1, true},
    {LAYER0 "mlp.down_proj.weight", -40, 0, 1, 1, true}, /* all would be zero */
    {LAYER0 "mlp.down_proj.weight", -8, 0, 1, 1, false},
    {LAYER0 "mlp.down_proj.weight", -100, 0, 1, 1, true},
    {LAYER0 "mlp.down_proj.weight", -400, 0, 1, 1, false}, /* zeros in the file: nothing is lost */
    {LAYER0 "mlp.down_proj.weight", -40, 0, 63, 64, false}, /* small beside the one row that is left */
    {"model.embed_tokens.weight", -40, 30, 60, 60, false},
    {"model.embed_tokens.weight", -16, 0, 1, 1, true},
    {LAYER0 "self_attn.kv_b_proj.weight", -18, 0, 1, 1, true},
    {"model.layers.2.mlp.experts.7.up_proj.weight", -18, 0, 1, 1, true},
    {"model.layers.2.mlp.experts.7.up_proj.weight", -9, 0, 1, 1, false},
};
enum { N_SMALL_WEIGHTS = sizeof small_weights / sizeof *small_weights };

static void make_small(const test_tensors *tensors, int which)
{
    scale_rows(tensors, small_weights[which].tensor, small_weights[which].first, small_weights[which].end,
               small_weights[which].period, small_weights[which].power);
}

/* Numbers below 2^-24 became zero in halves without a word, and those below 2^-14 lost bits. */
START_TEST(a_weight_whose_numbers_are_all_too_small_is_named_on_opening_and_on_packing)
{
    char *folder = write_changed(&small, make_small, _i), *pack = strdup(test_format("%s/copy.dsv2", folder));
    static const dsv2_weight_type types[] = {DSV2_WEIGHTS_AS_STORED, DSV2_WEIGHTS_F32,  DSV2_WEIGHTS_F16,
                                             DSV2_WEIGHTS_BF16,      DSV2_WEIGHTS_Q8_0, DSV2_WEIGHTS_Q4_K};
    for (size_t t = 0; t < sizeof types / sizeof *types; t++)
        for (uint32_t n_threads = 1; n_threads <= 3; n_threads += 2) {
            const dsv2_model_options options = {
                .struct_size = sizeof options, .weight_type = types[t], .n_threads = n_threads};
            const dsv2_pack_options packing = {
                .struct_size = sizeof packing, .weight_type = types[t], .n_threads = n_threads};
            dsv2_model *model = NULL;
            bool refused = small_weights[_i].refused && types[t] == DSV2_WEIGHTS_F16;
            dsv2_status opened = dsv2_model_open(folder, &options, &model);
            ck_assert_msg((opened != DSV2_OK) == refused, "weight %d, type %d: %s", _i, types[t], dsv2_last_error());
            if (refused) {
                fails_with(DSV2_ERROR_UNSUPPORTED, opened, test_format("tensor %s: its numbers are too small for F16",
                                                                       small_weights[_i].tensor));
                fails_with(DSV2_ERROR_UNSUPPORTED, dsv2_model_pack(folder, pack, &packing), "are too small for F16");
                ck_assert(remove(pack) != 0); /* there is none */
            } else {
                ck_assert_msg(dsv2_model_pack(folder, pack, &packing) == DSV2_OK, "%s", dsv2_last_error());
                ck_assert(remove(pack) == 0);
            }
            dsv2_model_close(model);
        }
    free(pack);
    test_checkpoint_remove(folder);
}
END_TEST

static void scale_lite(const test_tensors *tensors, int power)
{
    scale_rows(tensors, LAYER0 "mlp.down_proj.weight", 0, 1, 1, power);
    scale_rows(tensors, LAYER0 "mlp.up_proj.weight", 0, 1, 1, -power);
}

/* At V2-Lite's width. */
START_TEST(halves_of_a_small_weight_are_within_the_types_error_until_they_are_refused)
{
    const double halves_error = 0x1p-11;
    for (int power = 0; power >= -16; power -= 8) {
        char *folder = write_changed(&lite, scale_lite, power);
        dsv2_model *exact = test_model_open(folder, &(dsv2_model_options){.n_threads = 2}), *halves = NULL;
        const dsv2_model_options options = {
            .struct_size = sizeof options, .weight_type = DSV2_WEIGHTS_F16, .n_threads = 2};
        dsv2_status status = dsv2_model_open(folder, &options, &halves);
        if (status == DSV2_OK) {
            float *a = fed(exact, DSV2_CACHE_F32, DSV2_ATTENTION_ABSORBED, ""),
                  *b = fed(halves, DSV2_CACHE_F32, DSV2_ATTENTION_ABSORBED, "");
            double error = distance(a, b), size = 0;
            for (uint32_t i = 0; i < lite.vocab_size; i++)
                size = fmax(size, fabs((double)a[i]));
            ck_assert_msg(error <= halves_error * size, "2^%d: off by %g of %g", power, error, size);
            free(a);
            free(b);
        } else {
            fails_with(DSV2_ERROR_UNSUPPORTED, status, LAYER0 "mlp.down_proj.weight: its numbers are too small");
        }
        ck_assert_msg((status == DSV2_OK) == (power >= -8), "2^%d: %s", power, dsv2_last_error());
        dsv2_model_close(halves);
        dsv2_model_close(exact);
        test_checkpoint_remove(folder);
    }
}
END_TEST

/* The first of several is named, whichever thread comes first. */
START_TEST(of_several_weights_that_do_not_fit_the_first_is_named)
{
    spoilt_weight w = spoilt_weights[0];
    char *folder = write_spoilt(&w);
    const char *path = test_format("%s/model.safetensors", folder);
    test_tensors tensors = {0};
    test_tensors_read(&tensors, path);
    set_row(&tensors, w.tensor, 50, 131072);
    set_row(&tensors, "model.layers.1.mlp.experts.3.up_proj.weight", 0, 131072);
    test_tensors_write(&tensors, path);
    test_tensors_free(&tensors);
    for (int i = 0; i < 20; i++) {
        dsv2_model_options options = {.struct_size = sizeof options, .weight_type = DSV2_WEIGHTS_F16, .n_threads = 4};
        dsv2_model *model;
        fails_with(w.status, dsv2_model_open(folder, &options, &model), w.place);
    }
    test_checkpoint_remove(folder);
}
END_TEST

/* A GGUF's experts are interleaved when a pass first chooses them: the pass says what is wrong with them. */
START_TEST(a_gguf_expert_with_an_infinite_scale_is_named_by_each_pass_that_wants_it)
{
    char *folder = test_checkpoint_write(&small), *path = strdup(test_format("%s/model.gguf", folder));
    test_gguf_write(&(test_gguf){.quantised = true, .type = DS_TYPE_Q8_0}, folder, path, NULL);
    ds_container *container;
    ck_assert(ds_gguf_open(path, NULL, &container) == DSV2_OK);
    const ds_tensor *tensor;
    ck_assert(ds_container_require(container, "blk.2.ffn_down_exps.weight", &tensor) == DSV2_OK);
    size_t at = (size_t)tensor->offset, n = (size_t)tensor->n_bytes, size;
    ds_container_close(container);
    char *file = test_read_file(path, &size);
    for (size_t expert = 0; expert < EXPERTS; expert++) { /* the second row of each */
        size_t row = at + expert * n / EXPERTS + 34;
        file[row] = 0x00;
        file[row + 1] = 0x7c;
    }
    test_write_file(path, file, size);
    free(file);

    dsv2_model *model = test_model_open(path, &(dsv2_model_options){.n_threads = 2});
    dsv2_session *session = test_session_open(model, NULL);
    const int32_t prompt[] = {1, 2, 3};
    for (int i = 0; i < 2; i++) {
        fails_with(DSV2_ERROR_FORMAT, dsv2_session_feed(session, prompt, 3),
                   "blk.2.ffn_down_exps.weight: row 1, column 0 is ");
        ck_assert_uint_eq(length_of(session), 0);
    }
    dsv2_session_close(session);
    dsv2_model_close(model);
    free(path);
    test_checkpoint_remove(folder);
}
END_TEST

/* ---- snapshots ---- */

enum { HEADERS_AND_SAMPLER = 128 + 64 + 72, FRAME_HEADER = 64, DIGEST = 16, SAVED = 5 };

/* A snapshot of SAVED tokens whose rows are zeros, stored as they are, but for some bytes. Checksums are right. */
typedef struct crafted {
    uint8_t *data;
    size_t size, logits_at, rows_at;
} crafted;

static crafted craft(dsv2_session *session, const char *path)
{
    uint64_t row_bytes; /* of all layers */
    crafted c;
    ck_assert(dsv2_session_bytes_per_token(session, &row_bytes) == DSV2_OK);
    ck_assert_msg(dsv2_session_save(session, path, NULL) == DSV2_OK, "%s", dsv2_last_error());
    char *file = test_read_file(path, &c.size);
    c.logits_at = HEADERS_AND_SAMPLER;
    size_t frame_at = c.logits_at + (small.vocab_size + SAVED) * 4 + DIGEST, bytes = (size_t)row_bytes * SAVED;
    ck_assert(memcmp(file + frame_at, "ROWS", 4) == 0);
    c.rows_at = frame_at + FRAME_HEADER;
    c.size = (c.rows_at + bytes + 63) / 64 * 64;
    c.data = calloc(c.size, 1);
    ck_assert(c.data != NULL);
    memcpy(c.data, file, c.rows_at);
    ds_write_u32(c.data + frame_at + 4, 0);
    ds_write_u64(c.data + frame_at + 24, bytes);
    free(file);
    return c;
}

/* At a byte of the second row of the first layer, or of the logits, so many bytes of `bits`. */
static const struct {
    dsv2_cache_type type;
    bool in_logits;
    size_t at, size;
    uint32_t bits;
    bool fine;
} numbers[] = {
    {DSV2_CACHE_F32, false, 0, 4, 0x3f800000, true},
    {DSV2_CACHE_F32, false, 4 * 31, 4, 0x7fc00000, false},      /* latent */
    {DSV2_CACHE_F32, false, 4 * 32, 4, 0xff800000, false},      /* RoPE key */
    {DSV2_CACHE_F16, false, 2 * 31, 2, 0x7bff, true},
    {DSV2_CACHE_F16, false, 2 * 31, 2, 0x7c00, false},
    {DSV2_CACHE_F16, false, 2 * 47, 2, 0xfe00, false},
    {DSV2_CACHE_Q8, false, 2 * 15, 2, 0x7bff, true},            /* RoPE key */
    {DSV2_CACHE_Q8, false, 2 * 15, 2, 0x7c00, false},
    {DSV2_CACHE_Q8, false, 2 * 16, 2, 0x7f80, false},           /* the latent's scale */
    {DSV2_CACHE_Q6, false, 0, 2, 0x7fc0, false},                /* the latent's scale */
    {DSV2_CACHE_Q6, false, 2, 2, 0xff80, false},                /* the RoPE key's */
    {DSV2_CACHE_Q6, false, 2, 2, 0x3f80, true},
    {DSV2_CACHE_Q8, true, 4 * 7, 4, 0x7fc00000, false},
    {DSV2_CACHE_Q8, true, 4 * 7, 4, 0x7f800000, false},
    {DSV2_CACHE_Q8, true, 4 * 7, 4, 0x7f7fffff, true},
};

static dsv2_status restore(dsv2_session *session, const char *path, const crafted *c, int convert)
{
    snapshot_file_seal(c->data, c->size, small.vocab_size);
    test_write_file(path, c->data, c->size);
    return dsv2_session_restore(
        session, path, &(dsv2_restore_options){.struct_size = sizeof(dsv2_restore_options), .convert = convert}, NULL);
}

/* Attack 10: a snapshot with right checksums whose numbers are none. */
START_TEST(a_snapshot_with_numbers_that_are_not_finite_is_refused)
{
    char *folder = test_checkpoint_write(&small);
    const char *path = test_format("%s/conversation", folder);
    dsv2_model *model = test_model_open(folder, &(dsv2_model_options){.n_threads = 2});
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        dsv2_session *session = test_session_open(
            model, &(dsv2_session_options){.struct_size = sizeof(dsv2_session_options), .cache_type = numbers[i].type});
        uint64_t row_bytes;
        ck_assert(dsv2_session_bytes_per_token(session, &row_bytes) == DSV2_OK);
        ck_assert(dsv2_session_feed(session, small_tokens, SAVED) == DSV2_OK);
        float *before = logits_copy(session);
        crafted c = craft(session, path);
        size_t at = numbers[i].in_logits ? c.logits_at : c.rows_at + (size_t)row_bytes / LAYERS;
        for (size_t b = 0; b < numbers[i].size; b++)
            c.data[at + numbers[i].at + b] = (uint8_t)(numbers[i].bits >> 8 * b);
        dsv2_status status = restore(session, path, &c, 0);
        if (numbers[i].fine) {
            ck_assert_msg(status == DSV2_OK, "number %zu: %s", i, dsv2_last_error());
        } else {
            fails_with(DSV2_ERROR_FORMAT, status,
                       numbers[i].in_logits ? "the logits of save 0 are not finite"
                                            : "the frame of tokens 0 to 4 (encoding 0) holds numbers that are not "
                                              "finite");
            float *after = logits_copy(session);
            ck_assert(length_of(session) == SAVED && memcmp(before, after, small.vocab_size * sizeof *after) == 0);
            free(after);
        }
        free(before);
        free(c.data);
        dsv2_session_close(session);
    }
    dsv2_model_close(model);
    test_checkpoint_remove(folder);
}
END_TEST

START_TEST(rows_that_are_too_large_for_a_cache_type_are_not_converted_to_it)
{
    char *folder = test_checkpoint_write(&small);
    const char *path = test_format("%s/conversation", folder);
    dsv2_model *model = test_model_open(folder, &(dsv2_model_options){.n_threads = 2});
    dsv2_session *wide = test_session_open(
        model, &(dsv2_session_options){.struct_size = sizeof(dsv2_session_options), .cache_type = DSV2_CACHE_F32});
    ck_assert(dsv2_session_feed(wide, small_tokens, SAVED) == DSV2_OK);
    crafted c = craft(wide, path);
    const float value = 1e5f;
    memcpy(c.data + c.rows_at + 4 * 32, &value, sizeof value); /* of the RoPE key */
    for (dsv2_cache_type type = DSV2_CACHE_F16; type <= DSV2_CACHE_Q6; type++) {
        dsv2_session *session = test_session_open(
            model, &(dsv2_session_options){.struct_size = sizeof(dsv2_session_options), .cache_type = type});
        dsv2_status status = restore(session, path, &c, 1);
        if (type == DSV2_CACHE_Q6)
            ck_assert_msg(status == DSV2_OK, "%s", dsv2_last_error());
        else
            fails_with(DSV2_ERROR_UNSUPPORTED, status, "holds larger numbers than the session's cache type");
        ck_assert_uint_eq(length_of(session), type == DSV2_CACHE_Q6 ? SAVED : 0);
        dsv2_session_close(session);
    }
    free(c.data);
    dsv2_session_close(wide);
    dsv2_model_close(model);
    test_checkpoint_remove(folder);
}
END_TEST

int main(void)
{
    test_random_tokens(5, lite.vocab_size, tokens, N);
    TCase *rows = tcase_create("rows");
    tcase_set_timeout(rows, 300);
    tcase_add_loop_test(rows, parts_of_any_size_are_held_within_the_types_error_or_refused, 0,
                        sizeof parts / sizeof *parts);

    TCase *passes = tcase_create("passes");
    tcase_set_timeout(passes, 300);
    tcase_add_loop_test(passes, wrong_numbers_of_one_session_are_in_its_status_and_in_nothing_of_the_others, 0,
                        sizeof bad_numbers / sizeof *bad_numbers);
    tcase_add_test(passes, wrong_numbers_in_a_later_chunk_take_back_the_whole_prompt);
    tcase_add_loop_test(passes, wrong_numbers_are_noticed_wherever_they_come_up, 0, sizeof spoils / sizeof *spoils);

    TCase *weights = tcase_create("weights");
    tcase_set_timeout(weights, 300);
    tcase_add_loop_test(weights, weights_that_do_not_fit_are_named_on_opening_and_on_packing, 0,
                        sizeof spoilt_weights / sizeof *spoilt_weights);
    tcase_add_loop_test(weights, a_weight_whose_numbers_are_all_too_small_is_named_on_opening_and_on_packing, 0,
                        N_SMALL_WEIGHTS);
    tcase_add_test(weights, halves_of_a_small_weight_are_within_the_types_error_until_they_are_refused);
    tcase_add_test(weights, of_several_weights_that_do_not_fit_the_first_is_named);
    tcase_add_test(weights, a_gguf_expert_with_an_infinite_scale_is_named_by_each_pass_that_wants_it);

    TCase *snapshots = tcase_create("snapshots");
    tcase_set_timeout(snapshots, 300);
    tcase_add_test(snapshots, a_snapshot_with_numbers_that_are_not_finite_is_refused);
    tcase_add_test(snapshots, rows_that_are_too_large_for_a_cache_type_are_not_converted_to_it);

    Suite *suite = suite_create("misfits");
    suite_add_tcase(suite, rows);
    suite_add_tcase(suite, passes);
    suite_add_tcase(suite, weights);
    suite_add_tcase(suite, snapshots);
    return test_run(suite);
}

/* B11: whatever floating-point modes the host's threads have, every call gives the same bits, and the thread has its
 * modes and exception flags afterwards as before. */
#include <dsv2/dsv2.h>

#include "support/checkpoint.h"
#include "support/model.h"
#include "support/run.h"
#include "support/tensors.h"

#include <check.h>
#include <fenv.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

enum { FED = 40, VOCAB = 97 };

/* Small, for every mode; and two layers of V2-Lite's widths. */
static const test_checkpoint small = {
    .vocab_size = VOCAB, .hidden_size = 64, .intermediate_size = 96, .num_hidden_layers = 2, .num_attention_heads = 2,
    .kv_lora_rank = 32, .qk_nope_head_dim = 16, .qk_rope_head_dim = 8, .v_head_dim = 16, .max_position_embeddings = 256,
    .moe_intermediate_size = 32, .n_routed_experts = 6, .num_experts_per_tok = 2, .n_shared_experts = 1,
    .first_k_dense_replace = 1, .moe_layer_freq = 1, .yarn = true, .seed = 11,
};
static const test_checkpoint lite = {
    .vocab_size = VOCAB, .hidden_size = 2048, .intermediate_size = 1024, .num_hidden_layers = 2,
    .num_attention_heads = 16, .kv_lora_rank = 512, .qk_nope_head_dim = 128, .qk_rope_head_dim = 64, .v_head_dim = 128,
    .max_position_embeddings = 4096, .moe_intermediate_size = 1408, .n_routed_experts = 2, .num_experts_per_tok = 1,
    .n_shared_experts = 1, .first_k_dense_replace = 1, .yarn = true, .seed = 12,
};

static char *small_folder, *lite_folder;
static int32_t tokens[FED + 1];

static void scale(uint8_t *bf16, size_t n, float factor)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t bits = (uint32_t)bf16[2 * i] << 16 | (uint32_t)bf16[2 * i + 1] << 24;
        float x;
        memcpy(&x, &bits, sizeof x);
        x *= factor;
        memcpy(&bits, &x, sizeof x);
        bf16[2 * i] = (uint8_t)(bits >> 16);
        bf16[2 * i + 1] = (uint8_t)(bits >> 24);
    }
}

/* Latents become subnormal numbers, which their norm scales back: a processor that flushes small numbers to zero
 * loses the whole context. */
static char *write_subnormal(const test_checkpoint *shape)
{
    char *folder = test_checkpoint_write(shape);
    test_tensors tensors = {0};
    const char *path = test_format("%s/model.safetensors", folder);
    test_tensors_read(&tensors, path);
    for (uint32_t l = 0; l < shape->num_hidden_layers; l++) {
        const char *prefix = test_format("model.layers.%u.self_attn", l);
        const test_tensor *down = test_tensors_need(&tensors, test_format("%s.kv_a_proj_with_mqa.weight", prefix),
                                                    "BF16");
        const test_tensor *norm = test_tensors_find(&tensors, test_format("%s.kv_a_layernorm.weight", prefix));
        scale((uint8_t *)(uintptr_t)down->data, (size_t)shape->kv_lora_rank * shape->hidden_size, 0x1p-126f);
        if (strcmp(norm->dtype, "BF16") == 0)
            scale((uint8_t *)(uintptr_t)norm->data, shape->kv_lora_rank, 0x1p117f);
        else
            for (uint32_t i = 0; i < shape->kv_lora_rank; i++)
                ((float *)(uintptr_t)norm->data)[i] *= 0x1p117f;
    }
    test_tensors_write(&tensors, path);
    test_tensors_free(&tensors);
    return folder;
}

static void make(void)
{
    small_folder = write_subnormal(&small);
    lite_folder = write_subnormal(&lite);
    test_random_tokens(3, VOCAB, tokens, FED + 1);
}

static void drop(void)
{
    test_checkpoint_remove(small_folder);
    test_checkpoint_remove(lite_folder);
}

/* ---- modes ---- */

/* All of a thread's floating-point state but the registers. */
typedef struct modes {
    int rounding, flags;
    unsigned mxcsr;      /* x86: SSE's modes and flags */
    unsigned short x87;  /* x86: the other unit's modes */
} modes;

static modes present_modes(void)
{
    modes m = {.rounding = fegetround(), .flags = fetestexcept(FE_ALL_EXCEPT)};
#if defined(__x86_64__)
    m.mxcsr = _mm_getcsr();
    __asm__ volatile("fnstcw %0" : "=m"(m.x87));
#endif
    return m;
}

static const struct {
    const char *name;
    int rounding;
    unsigned mxcsr;          /* bits to set */
    unsigned mxcsr_off;      /* bits to clear: masks of exceptions, which then trap */
    unsigned short x87, x87_off;
} settings[] = {
    {.name = "as usual", .rounding = FE_TONEAREST},
    {.name = "up", .rounding = FE_UPWARD},
    {.name = "down", .rounding = FE_DOWNWARD},
    {.name = "to zero", .rounding = FE_TOWARDZERO},
#if defined(__x86_64__)
    {.name = "flush to zero, subnormals are zero", .rounding = FE_TONEAREST, .mxcsr = 0x8040},
    {.name = "flush to zero", .rounding = FE_TONEAREST, .mxcsr = 0x8000},
    {.name = "all exceptions trap", .rounding = FE_TONEAREST, .mxcsr_off = 0x1f80, .x87_off = 0x3f},
    {.name = "up, flush, invalid traps", .rounding = FE_UPWARD, .mxcsr = 0x8040, .mxcsr_off = 0x80, .x87_off = 1},
    {.name = "x87 alone: down, single precision", .rounding = FE_TONEAREST, .x87 = 0x400, .x87_off = 0x300},
#endif
};
enum { SETTINGS = sizeof settings / sizeof *settings };
#if defined(__x86_64__)
enum { EVERYTHING = 7 };
#else
enum { EVERYTHING = 1 };
#endif

static void set_modes(size_t i)
{
    ck_assert(fesetenv(FE_DFL_ENV) == 0);
    ck_assert(fesetround(settings[i].rounding) == 0);
#if defined(__x86_64__)
    unsigned short x87;
    __asm__ volatile("fnstcw %0" : "=m"(x87));
    x87 = (unsigned short)((x87 | settings[i].x87) & ~settings[i].x87_off);
    __asm__ volatile("fldcw %0" : : "m"(x87));
    _mm_setcsr((_mm_getcsr() | settings[i].mxcsr) & ~settings[i].mxcsr_off);
    if (settings[i].mxcsr_off == 0)
        _mm_setcsr(_mm_getcsr() | 0x4); /* a flag that is the host's: something was divided by zero */
#endif
}

static void expect_modes(const modes *before, const char *call)
{
    modes after = present_modes();
    ck_assert_msg(after.rounding == before->rounding, "%s: rounding is %#x, was %#x", call, after.rounding,
                  before->rounding);
    ck_assert_msg(after.flags == before->flags, "%s: flags are %#x, were %#x", call, after.flags, before->flags);
    ck_assert_msg(after.mxcsr == before->mxcsr, "%s: MXCSR is %#x, was %#x", call, after.mxcsr, before->mxcsr);
    ck_assert_msg(after.x87 == before->x87, "%s: x87's modes are %#x, were %#x", call, after.x87, before->x87);
}

/* Makes a call with the host's modes number `i`; everything around it runs with the usual ones. */
#define CALL(i, expression)                                                                              \
    do {                                                                                                 \
        set_modes(i);                                                                                    \
        modes before_ = present_modes();                                                                 \
        dsv2_status status_ = (expression);                                                              \
        expect_modes(&before_, #expression);                                                             \
        fesetenv(FE_DFL_ENV);                                                                            \
        ck_assert_msg(status_ == DSV2_OK, "%s, %s: %s", settings[i].name, #expression, dsv2_last_error()); \
    } while (0)

static uint64_t digest(uint64_t hash, const void *data, size_t size)
{
    for (size_t i = 0; i < size; i++)
        hash = (hash ^ ((const unsigned char *)data)[i]) * 1099511628211u;
    return hash;
}

static uint64_t digest_file(uint64_t hash, const char *path)
{
    size_t size;
    char *data = test_read_file(path, &size);
    hash = digest(hash, data, size);
    free(data);
    return hash;
}

/* What the calls on a tokenizer alone give, as one number. */
static uint64_t tokenizer_results(size_t i)
{
    static const char text[] = "Größe 1.5, 你好\n";
    const dsv2_message message = {"user", text, sizeof text - 1};
    dsv2_tokenizer *t;
    int32_t ids[100];
    char decoded[100];
    size_t n, size;
    uint64_t hash = 1469598103934665603u;
    CALL(i, dsv2_tokenizer_open(TEST_DATA "/bytes", &t));
    CALL(i, dsv2_tokenizer_encode(t, text, sizeof text - 1, 0, ids, 100, &n));
    hash = digest(hash, ids, n * sizeof *ids);
    CALL(i, dsv2_tokenizer_encode_watched(t, text, sizeof text - 1, 0, NULL, NULL, ids, 100, &n));
    hash = digest(hash, ids, n * sizeof *ids);
    CALL(i, dsv2_tokenizer_decode(t, ids, n, 0, decoded, sizeof decoded, &size));
    hash = digest(hash, decoded, size);
    CALL(i, dsv2_chat_encode(t, &message, 1, 0, ids, 100, &n));
    hash = digest(hash, ids, n * sizeof *ids);
    dsv2_tokenizer_close(t);
    return hash;
}

/* What every call of a conversation gives, as one number. */
static uint64_t all_results(const char *folder, size_t i, uint32_t n_threads, dsv2_weight_type type)
{
    const dsv2_model_options options = {.struct_size = sizeof options, .n_threads = n_threads, .weight_type = type};
    const dsv2_pack_options pack_options = {.struct_size = sizeof pack_options, .n_threads = n_threads,
                                            .weight_type = type};
    const char *pack = test_format("%s/modes.dsv2", folder), *saved = test_format("%s/modes.snapshot", folder);
    dsv2_model *model;
    dsv2_session *session, *copy;
    dsv2_routing *routing, *other;
    dsv2_routing_balance balance = {.struct_size = sizeof balance};
    dsv2_expert_load experts[6];
    dsv2_token_probability top[5];
    dsv2_sampling sampling = {.struct_size = sizeof sampling};
    dsv2_bytes_needed_info needed = {.struct_size = sizeof needed};
    const float *logits;
    float probability, all_logits[2 * VOCAB];
    int32_t token;
    uint64_t hash = 1469598103934665603u;

    CALL(i, dsv2_model_pack(folder, pack, &pack_options));
    hash = digest_file(hash, pack);
    CALL(i, dsv2_model_verify(pack, NULL, NULL));
    CALL(i, dsv2_model_bytes_needed(folder, &options, &needed));
    ck_assert(needed.bytes_copied + needed.bytes_mapped > 0);
    CALL(i, dsv2_model_open(folder, &options, &model));
    CALL(i, dsv2_session_open(model, NULL, &session));
    CALL(i, dsv2_session_feed(session, tokens, FED));
    CALL(i, dsv2_session_logits(session, &logits));
    hash = digest(hash, logits, VOCAB * sizeof *logits);
    CALL(i, dsv2_session_fork(session, FED, &copy));
    dsv2_step_item items[] = {
        {.struct_size = sizeof *items, .session = session, .tokens = tokens + FED, .n_tokens = 1, .logits = all_logits},
        {.struct_size = sizeof *items, .session = copy, .tokens = tokens, .n_tokens = 1, .logits = all_logits + VOCAB},
    };
    CALL(i, dsv2_step(model, items, 2));
    hash = digest(hash, all_logits, sizeof all_logits);
    dsv2_sampling_defaults(&sampling);
    sampling.temperature = 0.7f;
    sampling.top_p = 0.9f;
    sampling.repetition_penalty = 1.3f;
    sampling.seed = 5;
    CALL(i, dsv2_session_set_sampling(session, &sampling));
    for (int n = 0; n < 10; n++) {
        CALL(i, dsv2_session_sample(session, &token));
        hash = digest(hash, &token, sizeof token);
    }
    CALL(i, dsv2_session_top_tokens(session, 5, top));
    hash = digest(hash, top, sizeof top);
    CALL(i, dsv2_session_log_probability(session, 7, &probability));
    hash = digest(hash, &probability, sizeof probability);
    CALL(i, dsv2_session_routing(session, DSV2_ROUTING_ALL, &routing));
    CALL(i, dsv2_model_routing(model, DSV2_ROUTING_ALL, &other));
    CALL(i, dsv2_routing_merge(routing, other));
    CALL(i, dsv2_routing_experts(routing, 1, experts));
    CALL(i, dsv2_routing_measure(routing, 1, 2, 0, &balance));
    hash = digest(hash, &balance, sizeof balance);
    dsv2_routing_free(other);
    dsv2_routing_free(routing);
    CALL(i, dsv2_session_save(session, saved, NULL));
    hash = digest_file(hash, saved);
    CALL(i, dsv2_session_restore(copy, saved, NULL, NULL));
    CALL(i, dsv2_session_feed(copy, tokens, 1));
    CALL(i, dsv2_session_logits(copy, &logits));
    hash = digest(hash, logits, VOCAB * sizeof *logits);
    dsv2_session_close(copy);
    dsv2_session_close(session);
    dsv2_model_close(model);
    remove(pack);
    remove(saved);
    return hash;
}

START_TEST(no_mode_of_the_host_changes_a_bit)
{
    static const dsv2_weight_type types[] = {DSV2_WEIGHTS_AS_STORED, DSV2_WEIGHTS_Q8_0, DSV2_WEIGHTS_Q4_K};
    dsv2_weight_type type = types[_i];
    uint64_t usual = all_results(small_folder, 0, 1, type);
    for (size_t i = 0; i < SETTINGS; i++)
        for (uint32_t n_threads = 1; n_threads <= 3; n_threads += 2) {
            uint64_t result = all_results(small_folder, i, n_threads, type);
            ck_assert_msg(result == usual, "%s, %u threads: %016llx, usually %016llx", settings[i].name, n_threads,
                          (unsigned long long)result, (unsigned long long)usual);
        }
}
END_TEST

START_TEST(no_mode_of_the_host_changes_a_bit_at_real_widths)
{
    uint64_t usual = all_results(lite_folder, 0, 2, DSV2_WEIGHTS_Q8_0);
    ck_assert(all_results(lite_folder, EVERYTHING, 2, DSV2_WEIGHTS_Q8_0) == usual);
}
END_TEST

START_TEST(no_mode_of_the_host_changes_a_token)
{
    uint64_t usual = tokenizer_results(0);
    for (size_t i = 0; i < SETTINGS; i++)
        ck_assert_msg(tokenizer_results(i) == usual, "%s", settings[i].name);
}
END_TEST

/* ---- callbacks ---- */

typedef struct host {
    modes expected;
    unsigned calls;
    int then; /* the rounding that a callback leaves */
} host;

static void called(host *h)
{
    expect_modes(&h->expected, "a callback");
    h->calls++;
    ck_assert(fesetround(h->then) == 0);
    h->expected = present_modes();
}

static int progress(void *user, dsv2_phase phase, uint64_t done, uint64_t total)
{
    (void)phase, (void)done, (void)total;
    called(user);
    return 0;
}

static void remark(void *user, dsv2_log_level level, const char *message)
{
    (void)level, (void)message;
    called(user);
}

static void trace(void *user, const dsv2_routing_event *event)
{
    (void)event;
    called(user);
}

static int write_nothing(void *user, const void *data, size_t size)
{
    (void)data, (void)size;
    called(user);
    return 0;
}

/* A callback is the host's code: it runs with the host's modes, and what it sets stays, and still no bit changes. */
START_TEST(a_callback_has_the_modes_of_its_thread)
{
    float usual[VOCAB];
    for (int changed = 0; changed < 2; changed++) {
        fesetenv(FE_DFL_ENV);
        fesetround(changed ? FE_UPWARD : FE_TONEAREST);
        host h = {.expected = present_modes(), .then = changed ? FE_DOWNWARD : FE_TONEAREST};
        const dsv2_model_options options = {.struct_size = sizeof options, .n_threads = 2, .progress = progress,
                                            .progress_user = &h, .log = remark, .log_user = &h};
        const dsv2_session_options with_progress = {.struct_size = sizeof with_progress, .progress = progress,
                                                    .progress_user = &h};
        dsv2_model *model;
        dsv2_session *session;
        const float *logits;
        ck_assert(dsv2_model_open(small_folder, &options, &model) == DSV2_OK);
        expect_modes(&h.expected, "dsv2_model_open");
        ck_assert_uint_gt(h.calls, 10);
        ck_assert(dsv2_session_open(model, &with_progress, &session) == DSV2_OK);
        h.calls = 0;
        ck_assert(dsv2_session_set_routing_trace(session, trace, &h) == DSV2_OK);
        ck_assert(dsv2_session_feed(session, tokens, FED) == DSV2_OK);
        expect_modes(&h.expected, "dsv2_session_feed");
        ck_assert_uint_eq(h.calls, FED + small.num_hidden_layers);
        ck_assert(dsv2_session_save_to(session, write_nothing, &h, NULL) == DSV2_OK);
        expect_modes(&h.expected, "dsv2_session_save_to");
        ck_assert_uint_gt(h.calls, FED + small.num_hidden_layers + 2);
        ck_assert(dsv2_session_logits(session, &logits) == DSV2_OK);
        if (changed)
            ck_assert(memcmp(logits, usual, sizeof usual) == 0);
        else
            memcpy(usual, logits, sizeof usual);
        dsv2_session_close(session);
        dsv2_model_close(model);
    }
    fesetenv(FE_DFL_ENV);
}
END_TEST

/* ---- calls within callbacks, and the host's allocator ---- */

static struct {
    modes expected; /* of the thread that tests */
    dsv2_model *model;
    dsv2_session *session;
    unsigned hooks, forks;
} own;

static void *allocate(void *user, size_t size)
{
    (void)user;
    expect_modes(&own.expected, "the host's allocate");
    own.hooks++;
    return malloc(size);
}

static void release(void *user, void *memory)
{
    (void)user;
    expect_modes(&own.expected, "the host's release");
    own.hooks++;
    free(memory);
}

static int use_others(void *user, dsv2_phase phase, uint64_t done, uint64_t total)
{
    (void)user, (void)phase, (void)done, (void)total;
    if (own.session == NULL)
        return 0;
    ck_assert(fesetround(own.forks % 2 == 0 ? FE_UPWARD : FE_DOWNWARD) == 0);
    own.expected = present_modes();
    dsv2_session *copy, *other;
    ck_assert(dsv2_session_fork(own.session, 1, &copy) == DSV2_OK);
    expect_modes(&own.expected, "dsv2_session_fork in a callback");
    ck_assert(dsv2_session_open(own.model, NULL, &other) == DSV2_OK);
    expect_modes(&own.expected, "dsv2_session_open in a callback");
    dsv2_session_close(copy);
    dsv2_session_close(other);
    expect_modes(&own.expected, "dsv2_session_close in a callback");
    own.forks++;
    return 0;
}

START_TEST(calls_within_callbacks_leave_the_modes_of_the_callback)
{
    const dsv2_model_options options = {.struct_size = sizeof options, .n_threads = 2,
                                        .weight_type = DSV2_WEIGHTS_Q8_0, .allocator = {allocate, release, NULL}};
    const dsv2_session_options with_progress = {.struct_size = sizeof with_progress, .progress = use_others};
    dsv2_session *session;
    fesetenv(FE_DFL_ENV);
    fesetround(FE_UPWARD);
    own.expected = present_modes();
    ck_assert(dsv2_model_open(small_folder, &options, &own.model) == DSV2_OK);
    ck_assert(dsv2_session_open(own.model, &with_progress, &session) == DSV2_OK);
    ck_assert(dsv2_session_feed(session, tokens, 2) == DSV2_OK);
    own.session = session;
    ck_assert(dsv2_session_feed(session, tokens, FED) == DSV2_OK);
    expect_modes(&own.expected, "dsv2_session_feed");
    ck_assert_uint_gt(own.forks, 1);
    ck_assert_uint_gt(own.hooks, 10);
    own.session = NULL;
    dsv2_session_close(session);
    dsv2_model_close(own.model);
    expect_modes(&own.expected, "dsv2_model_close");
    fesetenv(FE_DFL_ENV);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("modes");
    TCase *tests = tcase_create("modes");
    tcase_set_timeout(tests, 300);
    tcase_add_unchecked_fixture(tests, make, drop);
    tcase_add_loop_test(tests, no_mode_of_the_host_changes_a_bit, 0, 3);
    tcase_add_test(tests, no_mode_of_the_host_changes_a_bit_at_real_widths);
    tcase_add_test(tests, no_mode_of_the_host_changes_a_token);
    tcase_add_test(tests, a_callback_has_the_modes_of_its_thread);
    tcase_add_test(tests, calls_within_callbacks_leave_the_modes_of_the_callback);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}

/* Sizes of public structures (B8): a host that was compiled against the headers of version 0.1 works with every later
 * library, and a host of later headers works with this library as long as it asks for nothing new. Every structure ends
 * where a page ends behind which nothing may be touched. The same tests are linked to a library whose structures have
 * grown. */
#include <dsv2/dsv2.h>

#include "support/checkpoint.h"
#include "support/model.h"
#include "support/run.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const test_checkpoint shape = {
    .vocab_size = 61, .hidden_size = 32, .intermediate_size = 40, .num_hidden_layers = 2, .num_attention_heads = 2,
    .kv_lora_rank = 16, .qk_nope_head_dim = 8, .qk_rope_head_dim = 4, .v_head_dim = 8, .max_position_embeddings = 100,
    .moe_intermediate_size = 8, .n_routed_experts = 4, .num_experts_per_tok = 2, .n_shared_experts = 1,
    .first_k_dense_replace = 1, .moe_layer_freq = 1, .seed = 5,
};
static const int32_t tokens[] = {1, 2, 3};

static char *folder;
static char snapshot[256], pack[256];
static dsv2_model *model;
static dsv2_session *session;
static dsv2_tokenizer *tokenizer;
static dsv2_routing *routing;

/* ---- the functions that take a structure ---- */

static dsv2_status open_model(void *options)
{
    dsv2_model *opened;
    dsv2_status status = dsv2_model_open(folder, options, &opened);
    if (status == DSV2_OK)
        dsv2_model_close(opened);
    return status;
}

static dsv2_status open_session(void *options)
{
    dsv2_session *opened;
    dsv2_status status = dsv2_session_open(model, options, &opened);
    if (status == DSV2_OK)
        dsv2_session_close(opened);
    return status;
}

static dsv2_status write_pack(void *options) { return dsv2_model_pack(folder, pack, options); }
static dsv2_status save(void *options) { return dsv2_session_save(session, snapshot, options); }
static dsv2_status restore(void *options) { return dsv2_session_restore(session, snapshot, options, NULL); }
static dsv2_status set_sampling(void *sampling) { return dsv2_session_set_sampling(session, sampling); }
static dsv2_status get_defaults(void *sampling) { return dsv2_sampling_get_defaults(sampling); }
static dsv2_status step(void *item) { return dsv2_step(model, item, 1); }
static dsv2_status model_info(void *info) { return dsv2_model_get_info(model, info); }
static dsv2_status memory_info(void *info) { return dsv2_model_get_memory(model, info); }
static dsv2_status tokenizer_info(void *info) { return dsv2_tokenizer_get_info(tokenizer, info); }
static dsv2_status snapshot_info(void *info) { return dsv2_snapshot_inspect(snapshot, info); }
static dsv2_status routing_info(void *info) { return dsv2_routing_get_info(routing, info); }
static dsv2_status measure(void *balance) { return dsv2_routing_measure(routing, 1, 0, 0, balance); }

static void fill_sampling(void *sampling)
{
    dsv2_sampling *s = sampling;
    s->repetition_penalty = s->temperature = s->top_p = 1;
}

static void fill_item(void *item)
{
    dsv2_step_item *i = item;
    ck_assert(dsv2_session_truncate(session, 3) == DSV2_OK);
    i->session = session;
    i->tokens = tokens;
    i->n_tokens = 2;
}

/* `first` is the size in version 0.1 on systems of 64 bits, the only ones that version 0.1 was made for. */
static const struct structure {
    const char *name;
    size_t first, size;
    dsv2_status (*call)(void *structure);
    void (*fill)(void *structure); /* what the call needs besides zeros; NULL: nothing */
    bool filled_by_library;
} structures[] = {
    {"dsv2_model_options", 64, sizeof(dsv2_model_options), open_model, NULL, false},
    {"dsv2_pack_options", 32, sizeof(dsv2_pack_options), write_pack, NULL, false},
    {"dsv2_session_options", 40, sizeof(dsv2_session_options), open_session, NULL, false},
    {"dsv2_sampling", 64, sizeof(dsv2_sampling), set_sampling, fill_sampling, false},
    {"dsv2_sampling", 64, sizeof(dsv2_sampling), get_defaults, NULL, true},
    {"dsv2_save_options", 32, sizeof(dsv2_save_options), save, NULL, false},
    {"dsv2_restore_options", 48, sizeof(dsv2_restore_options), restore, NULL, false},
    {"dsv2_step_item", 48, sizeof(dsv2_step_item), step, fill_item, false},
    {"dsv2_model_info", 256, sizeof(dsv2_model_info), model_info, NULL, true},
    {"dsv2_memory_info", 40, sizeof(dsv2_memory_info), memory_info, NULL, true},
    {"dsv2_tokenizer_info", 56, sizeof(dsv2_tokenizer_info), tokenizer_info, NULL, true},
    {"dsv2_snapshot_info", 48, sizeof(dsv2_snapshot_info), snapshot_info, NULL, true},
    {"dsv2_routing_info", 40, sizeof(dsv2_routing_info), routing_info, NULL, true},
    {"dsv2_routing_balance", 88, sizeof(dsv2_routing_balance), measure, NULL, true},
};
enum { N_STRUCTURES = sizeof structures / sizeof *structures, ROOM = 8192, BEHIND = 64 };

/* ---- memory that ends at a page which cannot be touched ---- */

static char *pages, *end;

/* A structure of `size` bytes that says so, filled for its call; everything else is zero, or 0xaa if the library is to
 * fill the structure. */
static void *structure_of(const struct structure *s, size_t size)
{
    char *at = end - size;
    memset(at, s->filled_by_library ? 0xaa : 0, size);
    memcpy(at, &size, sizeof size);
    if (s->fill != NULL)
        s->fill(at);
    return at;
}

static void set_up(void)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    pages = mmap(NULL, ROOM + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ck_assert(pages != MAP_FAILED && mprotect(pages + ROOM, page, PROT_NONE) == 0);
    end = pages + ROOM;
    folder = test_checkpoint_write(&shape);
    snprintf(snapshot, sizeof snapshot, "%s/session", folder);
    snprintf(pack, sizeof pack, "%s/model.dsv2", folder);
    model = test_model_open(folder, NULL);
    session = test_session_open(model, NULL);
    ck_assert(dsv2_session_feed(session, tokens, 3) == DSV2_OK);
    ck_assert(dsv2_session_save(session, snapshot, NULL) == DSV2_OK);
    ck_assert_msg(dsv2_tokenizer_open(TEST_DATA "/bytes", &tokenizer) == DSV2_OK, "%s", dsv2_last_error());
    ck_assert(dsv2_model_routing(model, DSV2_ROUTING_ALL, &routing) == DSV2_OK);
}

static void tear_down(void)
{
    dsv2_routing_free(routing);
    dsv2_tokenizer_close(tokenizer);
    dsv2_session_close(session);
    dsv2_model_close(model);
    test_checkpoint_remove(folder);
    munmap(pages, ROOM + (size_t)sysconf(_SC_PAGESIZE));
}

/* ---- tests ---- */

START_TEST(structures_of_version_1_are_accepted)
{
    const struct structure *s = &structures[_i];
    ck_assert_msg(s->call(structure_of(s, s->first)) == DSV2_OK, "%s: %s", s->name, dsv2_last_error());
}
END_TEST

START_TEST(what_version_1_gets_is_the_beginning_of_what_is_given_today)
{
    const struct structure *s = &structures[_i];
    if (!s->filled_by_library)
        return;
    char first[512];
    ck_assert(s->call(structure_of(s, s->first)) == DSV2_OK);
    memcpy(first, end - s->first, s->first);
    ck_assert(s->call(structure_of(s, s->size)) == DSV2_OK);
    ck_assert_mem_eq(first + sizeof(size_t), end - s->size + sizeof(size_t), s->first - sizeof(size_t));
}
END_TEST

START_TEST(a_structure_shorter_than_that_of_version_1_is_refused)
{
    const struct structure *s = &structures[_i];
    char expected[80];
    snprintf(expected, sizeof expected, "%s.struct_size is %zu, expected", s->name, s->first - 1);
    char *at = structure_of(s, s->first);
    size_t size = s->first - 1;
    memcpy(at, &size, sizeof size);
    ck_assert(s->call(at) == DSV2_ERROR_ARGUMENT);
    ck_assert_msg(strstr(dsv2_last_error(), expected) != NULL, "%s", dsv2_last_error());
}
END_TEST

START_TEST(longer_structures_are_accepted_if_the_rest_is_zero)
{
    const struct structure *s = &structures[_i];
    size_t size = s->size + BEHIND;
    ck_assert_msg(s->call(structure_of(s, size)) == DSV2_OK, "%s: %s", s->name, dsv2_last_error());
    for (size_t i = s->size; s->filled_by_library && i < size; i++)
        ck_assert_msg(end[(ptrdiff_t)i - (ptrdiff_t)size] == 0, "%s: byte %zu", s->name, i);
}
END_TEST

START_TEST(longer_structures_with_something_behind_are_refused)
{
    const struct structure *s = &structures[_i];
    if (s->filled_by_library)
        return;
    /* What the grown library knows is the first 16 bytes behind. */
    for (size_t behind = 16; behind < BEHIND; behind++) {
        size_t size = s->size + BEHIND;
        char *at = structure_of(s, size), expected[120];
        at[s->size + behind] = 1;
        ck_assert(s->call(at) == DSV2_ERROR_ARGUMENT);
        snprintf(expected, sizeof expected,
                 "%s has a field that this version of the library does not know, at byte %zu", s->name,
                 s->size + behind);
        ck_assert_msg(strcmp(dsv2_last_error(), expected) == 0, "%s", dsv2_last_error());
    }
}
END_TEST

START_TEST(a_size_that_no_header_has_is_refused_unread)
{
    const struct structure *s = &structures[_i];
    char *at = structure_of(s, s->size);
    size_t size = s->size + 16 + 4096 + 8;
    memcpy(at, &size, sizeof size);
    ck_assert(s->call(at) == DSV2_ERROR_ARGUMENT);
    ck_assert_msg(strstr(dsv2_last_error(), "was it set?") != NULL, "%s", dsv2_last_error());
}
END_TEST

/* dsv2_sampling_defaults is not told a size: what it fills is what version 0.1 had. */
START_TEST(defaults_of_sampling_fit_the_structure_of_version_1)
{
    enum { FIRST = 64 };
    dsv2_sampling old;
    memset(end - FIRST, 0xaa, FIRST);
    dsv2_sampling_defaults((dsv2_sampling *)(void *)(end - FIRST));
    memcpy(&old, end - FIRST, FIRST);
    ck_assert_uint_eq(old.struct_size, FIRST);
    ck_assert(old.temperature == 1 && old.top_p == 1 && old.repetition_penalty == 1);
    ck_assert(old.logit_bias == NULL && old.n_logit_bias == 0 && old.seed == 0 && old.penalty_window == 0);
    ck_assert(old.top_k == 0 && old.min_p == 0 && old.presence_penalty == 0 && old.frequency_penalty == 0);
    ck_assert(dsv2_session_set_sampling(session, (dsv2_sampling *)(void *)(end - FIRST)) == DSV2_OK);
    for (size_t size = FIRST; size <= sizeof(dsv2_sampling) + BEHIND; size += 8) {
        char *filled = end - size;
        memset(filled, 0xaa, size);
        memcpy(filled, &size, sizeof size);
        ck_assert(dsv2_sampling_get_defaults((dsv2_sampling *)(void *)filled) == DSV2_OK);
        ck_assert_mem_eq(filled, &size, sizeof size);
        ck_assert_mem_eq(filled + sizeof size, (char *)&old + sizeof size, FIRST - sizeof size);
        for (size_t i = FIRST; i < size; i++)
            ck_assert_int_eq(filled[i], 0);
        ck_assert(dsv2_session_set_sampling(session, (dsv2_sampling *)(void *)filled) == DSV2_OK);
    }
}
END_TEST

/* Items lie one behind the other: a wrong stride takes the second item from the wrong place. */
START_TEST(steps_take_items_of_any_version)
{
    enum { N = 3 };
    dsv2_session *sessions[N];
    for (int i = 0; i < N; i++)
        sessions[i] = test_session_open(model, NULL);
    for (size_t stride = 48; stride <= sizeof(dsv2_step_item) + BEHIND; stride += 8) {
        char *at = end - N * stride;
        memset(at, 0, N * stride);
        for (int i = 0; i < N; i++) {
            dsv2_step_item item = {.session = sessions[i], .tokens = tokens, .n_tokens = (size_t)i + 1};
            item.struct_size = stride;
            item.status = DSV2_ERROR_STATE;
            ck_assert(dsv2_session_truncate(sessions[i], 0) == DSV2_OK);
            memcpy(at + (size_t)i * stride, &item, 48);
        }
        ck_assert_msg(dsv2_step(model, (dsv2_step_item *)(void *)at, N) == DSV2_OK, "%zu: %s", stride,
                      dsv2_last_error());
        for (int i = 0; i < N; i++) {
            size_t length;
            ck_assert(dsv2_session_length(sessions[i], &length) == DSV2_OK && length == (size_t)i + 1);
            ck_assert(((dsv2_step_item *)(void *)(at + (size_t)i * stride))->status == DSV2_OK);
        }
    }
    for (int i = 0; i < N; i++)
        dsv2_session_close(sessions[i]);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("sizes of public structures");
    TCase *tests = tcase_create("sizes");
    tcase_add_checked_fixture(tests, set_up, tear_down);
    tcase_set_timeout(tests, 120);
    tcase_add_loop_test(tests, structures_of_version_1_are_accepted, 0, N_STRUCTURES);
    tcase_add_loop_test(tests, what_version_1_gets_is_the_beginning_of_what_is_given_today, 0, N_STRUCTURES);
    tcase_add_loop_test(tests, a_structure_shorter_than_that_of_version_1_is_refused, 0, N_STRUCTURES);
    tcase_add_loop_test(tests, longer_structures_are_accepted_if_the_rest_is_zero, 0, N_STRUCTURES);
    tcase_add_loop_test(tests, longer_structures_with_something_behind_are_refused, 0, N_STRUCTURES);
    tcase_add_loop_test(tests, a_size_that_no_header_has_is_refused_unread, 0, N_STRUCTURES);
    tcase_add_test(tests, defaults_of_sampling_fit_the_structure_of_version_1);
    tcase_add_test(tests, steps_take_items_of_any_version);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}

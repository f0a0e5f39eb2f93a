/* The memory of models and sessions: limits, allocations that fail, what stays and what is given back. A failed call
 * leaves everything as it was. */
#include "small_host.h"

#include "support/oom.h"
#include "support/run.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

START_TEST(the_cache_memory_limit_holds_and_a_refused_feed_changes_nothing)
{
    dsv2_model *model = open_model(1, 0);
    dsv2_session *probe = open_session(model, &absorbed);
    uint64_t bytes;
    ck_assert(dsv2_session_bytes_per_token(probe, &bytes) == DSV2_OK);
    dsv2_session_close(probe);
    dsv2_model_close(model);

    model = open_model(1, 3 * PAGE * bytes);
    dsv2_session *a = open_session(model, &absorbed), *b = open_session(model, &absorbed), *copy;
    feed(a, tokens, 2 * PAGE - 1);
    FAILS_WITH(DSV2_ERROR_MEMORY, dsv2_session_feed(b, tokens, PAGE + 1));
    assert_holds(b, model, tokens, 0);
    feed(b, tokens, PAGE);
    FAILS_WITH(DSV2_ERROR_MEMORY, dsv2_session_feed(b, tokens + PAGE, 1));
    ck_assert_uint_eq(memory_of(model).pages_in_use, 3);
    /* A fork takes no page until one side writes. */
    ck_assert(dsv2_session_fork(a, 2 * PAGE - 1, &copy) == DSV2_OK);
    FAILS_WITH(DSV2_ERROR_MEMORY, dsv2_session_feed(a, tokens + 2 * PAGE - 1, 1));
    ck_assert_uint_eq(memory_of(model).page_bytes_in_use, memory_of(model).page_bytes_limit);
    dsv2_session_close(b);
    feed(a, tokens + 2 * PAGE - 1, 1);
    dsv2_session_close(copy);
    dsv2_model *unlimited = open_model(1, 0);
    assert_holds(a, unlimited, tokens, 2 * PAGE);
    dsv2_model_close(unlimited);
    dsv2_session_close(a);
    dsv2_model_close(model);
}
END_TEST

typedef struct oom_case {
    dsv2_model *model;
    dsv2_session *session, *other; /* of OOM_FED tokens */
    dsv2_session *made;            /* by the call */
    int32_t token;                 /* that was drawn */
    dsv2_token_probability top[5];
    long live;
} oom_case;

enum { OOM_FED = 20 };

static dsv2_status oom_open_model(void *context)
{
    oom_case *c = context;
    c->model = NULL;
    return dsv2_model_open(
        folder, &(dsv2_model_options){.struct_size = sizeof(dsv2_model_options), .n_threads = 3}, &c->model);
}

static dsv2_status oom_open_session(void *context)
{
    oom_case *c = context;
    c->made = NULL;
    return dsv2_session_open(c->model, &absorbed, &c->made);
}

/* The feed reaches a third page. */
static dsv2_status oom_feed(void *context)
{
    oom_case *c = context;
    return dsv2_session_feed(c->session, tokens + OOM_FED, 2 * PAGE);
}

static dsv2_status oom_step(void *context)
{
    oom_case *c = context;
    dsv2_step_item items[] = {
        {.struct_size = sizeof *items, .session = c->session, .tokens = tokens + OOM_FED, .n_tokens = 5},
        {.struct_size = sizeof *items, .session = c->other, .tokens = tokens + OOM_FED, .n_tokens = 3 * PAGE}};
    dsv2_status status = dsv2_step(c->model, items, 2);
    return items[0].status == status && items[1].status == status ? status : DSV2_ERROR_STATE;
}

/* A fork's write to a page that it shares. */
static dsv2_status oom_write_shared(void *context)
{
    oom_case *c = context;
    return dsv2_session_feed(c->session, tokens + OOM_FED, 1);
}

static dsv2_status oom_sample(void *context)
{
    oom_case *c = context;
    c->token = -1;
    return dsv2_session_sample(c->session, &c->token);
}

static dsv2_status oom_top_tokens(void *context)
{
    oom_case *c = context;
    memset(c->top, 0, sizeof c->top);
    return dsv2_session_top_tokens(c->session, 5, c->top);
}

static const dsv2_sampling greedy = {.struct_size = sizeof greedy, .repetition_penalty = 1, .top_p = 1};

/* Forbids the token that is the likeliest. */
static dsv2_status oom_set_sampling(void *context)
{
    oom_case *c = context;
    dsv2_sampling sampling = {.struct_size = sizeof sampling};
    dsv2_status status = dsv2_sampling_get_defaults(&sampling);
    sampling.temperature = 0;
    sampling.logit_bias = (dsv2_logit_bias[]){{1, 2.0f}, {c->top[0].token, -INFINITY}};
    sampling.n_logit_bias = 2;
    return status == DSV2_OK ? dsv2_session_set_sampling(c->session, &sampling) : status;
}

static dsv2_status oom_fork(void *context)
{
    oom_case *c = context;
    c->made = NULL;
    return dsv2_session_fork(c->session, OOM_FED, &c->made);
}

/* What the call did, if it did anything, is right; afterwards it is undone. */

static void opened_or_nothing(void *context, dsv2_status status)
{
    oom_case *c = context;
    ck_assert((status == DSV2_OK) == (c->model != NULL));
    if (c->model != NULL) {
        dsv2_session *session = open_session(c->model, &absorbed);
        feed(session, tokens, OOM_FED);
        assert_holds(session, c->model, tokens, OOM_FED);
        dsv2_session_close(session);
    }
    dsv2_model_close(c->model);
    ck_assert_int_eq(oom_live(), c->live);
}

static void hold_and_undo(oom_case *c, dsv2_session *session, size_t n)
{
    assert_holds(session, c->model, tokens, n);
    if (n == OOM_FED)
        return;
    ck_assert(dsv2_session_truncate(session, OOM_FED - 1) == DSV2_OK);
    feed(session, tokens + OOM_FED - 1, 1);
}

static void made_or_nothing(void *context, dsv2_status status)
{
    oom_case *c = context;
    ck_assert((status == DSV2_OK) == (c->made != NULL));
    if (c->made != NULL) {
        size_t n = length_of(c->made);
        feed(c->made, tokens + n, 1);
        assert_holds(c->made, c->model, tokens, n + 1);
    }
    dsv2_session_close(c->made);
    assert_holds(c->session, c->model, tokens, OOM_FED);
}

static void fed_or_nothing(void *context, dsv2_status status)
{
    hold_and_undo(context, ((oom_case *)context)->session, OOM_FED + (status == DSV2_OK ? 2 * PAGE : 0));
}

static void stepped_or_nothing(void *context, dsv2_status status)
{
    oom_case *c = context;
    hold_and_undo(c, c->session, OOM_FED + (status == DSV2_OK ? 5 : 0));
    hold_and_undo(c, c->other, OOM_FED + (status == DSV2_OK ? 3 * PAGE : 0));
}

static void written_or_nothing(void *context, dsv2_status status)
{
    oom_case *c = context;
    assert_holds(c->other, c->model, tokens, OOM_FED);
    assert_holds(c->session, c->model, tokens, OOM_FED + (status == DSV2_OK));
    dsv2_session_close(c->session);
    ck_assert(dsv2_session_fork(c->other, OOM_FED, &c->session) == DSV2_OK);
}

static void drawn_or_nothing(void *context, dsv2_status status)
{
    oom_case *c = context;
    ck_assert(status == DSV2_OK ? c->token >= 0 && c->token < VOCAB : c->token == -1);
    assert_holds(c->session, c->model, tokens, OOM_FED);
}

static void told_or_nothing(void *context, dsv2_status status)
{
    oom_case *c = context;
    dsv2_token_probability top[5];
    ck_assert(dsv2_session_top_tokens(c->other, 5, top) == DSV2_OK);
    ck_assert(status != DSV2_OK || memcmp(top, c->top, sizeof top) == 0);
    assert_holds(c->session, c->model, tokens, OOM_FED);
}

static void set_or_nothing(void *context, dsv2_status status)
{
    oom_case *c = context;
    ck_assert(dsv2_session_sample(c->session, &c->token) == DSV2_OK);
    ck_assert((c->token == c->top[0].token) == (status != DSV2_OK)); /* before: greedy, nothing forbidden */
    ck_assert(dsv2_session_set_sampling(c->session, &greedy) == DSV2_OK);
}

START_TEST(every_allocation_of_opening_may_fail)
{
    dsv2_model *model = open_model(3, 0); /* the C library allocates what it keeps for good */
    dsv2_session *session = open_session(model, &absorbed);
    feed(session, tokens, OOM_FED);
    dsv2_session_close(session);
    dsv2_model_close(model);
    oom_case c = {.live = oom_live()};
    oom_fail_each(oom_open_model, opened_or_nothing, &c, _i == 1);
}
END_TEST

static const struct {
    const char *name;
    dsv2_status (*work)(void *);
    void (*after)(void *, dsv2_status);
} oom_cases[] = {
    {"open session", oom_open_session, made_or_nothing},
    {"feed", oom_feed, fed_or_nothing},
    {"step", oom_step, stepped_or_nothing},
    {"write to a shared page", oom_write_shared, written_or_nothing},
    {"sample", oom_sample, drawn_or_nothing},
    {"top tokens", oom_top_tokens, told_or_nothing},
    {"set sampling", oom_set_sampling, set_or_nothing},
    {"fork", oom_fork, made_or_nothing},
};
enum { N_OOM_CASES = sizeof oom_cases / sizeof *oom_cases };

START_TEST(every_allocation_of_a_session_may_fail)
{
    dsv2_model_close(open_model(2, 0));
    long live = oom_live();
    oom_case c = {.model = open_model(2, 0)};
    c.other = open_session(c.model, &absorbed);
    feed(c.other, tokens, OOM_FED);
    ck_assert(dsv2_session_fork(c.other, OOM_FED, &c.session) == DSV2_OK);
    ck_assert(dsv2_session_top_tokens(c.other, 5, c.top) == DSV2_OK);
    if (oom_cases[_i / 2].work == oom_set_sampling)
        ck_assert(dsv2_session_set_sampling(c.session, &greedy) == DSV2_OK);
    size_t n = oom_fail_each(oom_cases[_i / 2].work, oom_cases[_i / 2].after, &c, _i % 2 == 1);
    printf("%s: %zu failures\n", oom_cases[_i / 2].name, n);
    dsv2_session_close(c.session);
    dsv2_session_close(c.other);
    dsv2_model_close(c.model);
    ck_assert_int_eq(oom_live(), live);
}
END_TEST

/* B14: two allocations for each token. */
START_TEST(a_token_is_fed_and_drawn_without_an_allocation)
{
    dsv2_model *model = open_model(2, 0);
    dsv2_session *session = open_session(model, &absorbed);
    int32_t token;
    feed(session, tokens, PAGE + 1);
    ck_assert(dsv2_session_sample(session, &token) == DSV2_OK);
    oom_arm(1, true);
    dsv2_status status = DSV2_OK;
    for (int i = 0; i < 20 && status == DSV2_OK; i++) {
        status = dsv2_session_feed(session, tokens, 1);
        if (status == DSV2_OK)
            status = dsv2_session_sample(session, &token);
    }
    bool asked = oom_disarm();
    ck_assert(status == DSV2_OK && !asked);
    dsv2_session_close(session);
    dsv2_model_close(model);
}
END_TEST

START_TEST(opening_feeding_and_closing_leaves_nothing_behind)
{
    long live = 0;
    for (int round = 0; round < 20; round++) {
        dsv2_model *model = open_model(2, 0);
        dsv2_session *session = open_session(model, NULL), *copy;
        feed(session, tokens, 200);
        int32_t token;
        ck_assert(dsv2_session_sample(session, &token) == DSV2_OK);
        ck_assert(dsv2_session_fork(session, 150, &copy) == DSV2_OK);
        feed(copy, tokens, 5);
        dsv2_session_close(session);
        dsv2_session_close(copy);
        dsv2_model_close(model);
        if (round == 0)
            live = oom_live();
        ck_assert_int_eq(oom_live(), live);
    }
}
END_TEST

START_TEST(a_session_used_for_long_keeps_its_memory)
{
    dsv2_model *model = open_model(1, 0);
    dsv2_session *session = open_session(model, NULL);
    long live = 0;
    uint64_t scratch = 0;
    for (int round = 0; round < 30; round++) {
        feed(session, tokens, 300);
        for (int i = 0; i < 5; i++)
            feed(session, tokens + i, 1);
        ck_assert(dsv2_session_truncate(session, 0) == DSV2_OK);
        if (round == 0) {
            live = oom_live();
            scratch = memory_of(model).scratch_bytes;
        }
        ck_assert_int_eq(oom_live(), live);
        ck_assert_uint_eq(memory_of(model).scratch_bytes, scratch);
    }
    dsv2_session_close(session);
    dsv2_model_close(model);
}
END_TEST

/* B14: working memory for a long prompt is given back once calls have long needed far less. */
START_TEST(one_long_prompt_does_not_hold_its_memory_for_ever)
{
    dsv2_model *model = open_model(1, 0);
    dsv2_session *session = open_session(model, NULL), *other = open_session(model, NULL);
    feed(session, tokens, 1);
    uint64_t least = memory_of(model).scratch_bytes;
    feed(other, tokens, 300);
    uint64_t most = memory_of(model).scratch_bytes;
    ck_assert_uint_gt(most, least);
    for (int i = 0; i < 20; i++)
        feed(session, tokens + i, 1);
    ck_assert_uint_eq(memory_of(model).scratch_bytes, most); /* not after a short answer */
    for (int i = 0; i < 100; i++)
        feed(session, tokens + i, 1);
    ck_assert_uint_le(memory_of(model).scratch_bytes, least);
    feed(other, tokens, 300);
    ck_assert_uint_le(memory_of(model).scratch_bytes, most);
    dsv2_session_close(other);
    dsv2_session_close(session);
    dsv2_model_close(model);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("session memory");
    TCase *tests = tcase_create("session memory");
    tcase_set_timeout(tests, 300);
    tcase_add_unchecked_fixture(tests, write_model, remove_model);
    tcase_add_test(tests, the_cache_memory_limit_holds_and_a_refused_feed_changes_nothing);
    tcase_add_test(tests, opening_feeding_and_closing_leaves_nothing_behind);
    tcase_add_test(tests, a_session_used_for_long_keeps_its_memory);
    tcase_add_test(tests, one_long_prompt_does_not_hold_its_memory_for_ever);
    if (oom_available()) {
        tcase_add_loop_test(tests, every_allocation_of_opening_may_fail, 0, 2);
        tcase_add_loop_test(tests, every_allocation_of_a_session_may_fail, 0, 2 * N_OOM_CASES);
        tcase_add_test(tests, a_token_is_fed_and_drawn_without_an_allocation);
    }
    suite_add_tcase(suite, tests);
    return test_run(suite);
}

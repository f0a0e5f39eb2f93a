/* A host of one small model, for the tests of sessions. Any failure ends the test. */
#ifndef DS_TESTS_SMALL_HOST_H
#define DS_TESTS_SMALL_HOST_H

#include <dsv2/dsv2.h>

#include "support/checkpoint.h"

#include <check.h>

enum { VOCAB = 61, CONTEXT = 1300, PAGE = 64 };

extern const test_checkpoint shape;

/* The absorbed form, whose bits do not depend on how the tokens were cut. */
extern const dsv2_session_options absorbed;

/* What write_model makes: the model's folder, and tokens to feed. */
extern char *folder;
extern int32_t tokens[CONTEXT + 1];
void write_model(void);
void remove_model(void);

dsv2_model *open_model(uint32_t n_threads, uint64_t cache_memory_limit);
dsv2_session *open_session(dsv2_model *model, const dsv2_session_options *options);
void feed(dsv2_session *session, const int32_t *fed, size_t n);
size_t length_of(dsv2_session *session);
dsv2_memory_info memory_of(const dsv2_model *model);

/* The session holds exactly these tokens, and its logits have the bits of a fresh session's. */
void assert_holds(dsv2_session *session, dsv2_model *model, const int32_t *held, size_t n);

#define FAILS_WITH(status, call)                                                                                       \
    do {                                                                                                               \
        dsv2_status got = (call);                                                                                      \
        ck_assert_msg(got == (status), "%s gave %s, expected %s", #call, dsv2_status_name(got),                        \
                      dsv2_status_name(status));                                                                       \
        ck_assert(dsv2_last_error()[0] != 0);                                                                          \
    } while (0)

#endif

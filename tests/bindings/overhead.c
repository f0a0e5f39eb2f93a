/* overhead MODEL TOKENS: times generating in C, for overhead.py. Prints microseconds of processor time per token. */
#include <dsv2/dsv2.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    dsv2_model *model = NULL;
    dsv2_session *session = NULL;
    dsv2_model_options options = {.struct_size = sizeof options, .n_threads = 1};
    dsv2_sampling greedy;
    dsv2_sampling_defaults(&greedy);
    greedy.temperature = 0;
    int32_t token = 0;
    long n = strtol(argv[2], NULL, 10);
    int failed =
        dsv2_model_open(argv[1], &options, &model) != DSV2_OK || dsv2_session_open(model, NULL, &session) != DSV2_OK ||
        dsv2_session_set_sampling(session, &greedy) != DSV2_OK || dsv2_session_feed(session, &token, 1) != DSV2_OK;
    double start = now();
    for (long i = 0; i < n && !failed; i++)
        failed = dsv2_session_sample(session, &token) != DSV2_OK || dsv2_session_feed(session, &token, 1) != DSV2_OK;
    if (failed)
        fprintf(stderr, "%s\n", dsv2_last_error());
    else
        printf("%.2f\n", (now() - start) / (double)n);
    dsv2_session_close(session);
    dsv2_model_close(model);
    return failed;
}

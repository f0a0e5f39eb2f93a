/* bench_bounds [THREADS]: what that many threads reach together. Prints a JSON object, for bench.py, with medians over
 * some rounds. All threads measure the same thing at the same time, by the wall's clock. */
#include "bench/bounds.h"

#include "base/base.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { ROUNDS = 15, STREAM_BYTES = 1 << 30, MAX_THREADS = 256 };

static pthread_barrier_t barrier;
static bounds results[MAX_THREADS][ROUNDS];

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void *work(void *of_thread)
{
    bounds *result = of_thread;
    void *stream = ds_new_aligned(STREAM_BYTES, 1);
    if (stream == NULL) {
        fprintf(stderr, "no memory\n");
        exit(EXIT_FAILURE);
    }
    memset(stream, 1, STREAM_BYTES);
    for (int round = 0; round < ROUNDS; round++) {
        pthread_barrier_wait(&barrier);
        result[round] = measure_bounds(stream, STREAM_BYTES, seconds);
    }
    ds_free(stream);
    return NULL;
}

static int compare(const void *a, const void *b)
{
    double difference = *(const double *)a - *(const double *)b;
    return difference < 0 ? -1 : difference > 0;
}

/* The median of one number's sum over all threads. */
static double median(unsigned threads, size_t offset)
{
    double sums[ROUNDS] = {0};
    for (unsigned t = 0; t < threads; t++)
        for (int round = 0; round < ROUNDS; round++)
            sums[round] += *(const double *)((const char *)&results[t][round] + offset);
    qsort(sums, ROUNDS, sizeof *sums, compare);
    return sums[ROUNDS / 2];
}

int main(int argc, char **argv)
{
    unsigned long threads = argc > 1 ? strtoul(argv[1], NULL, 10) : 1;
    pthread_t handles[MAX_THREADS];
    if (threads < 1 || threads > MAX_THREADS)
        return 2;
    pthread_barrier_init(&barrier, NULL, (unsigned)threads);
    for (unsigned long t = 1; t < threads; t++)
        if (pthread_create(&handles[t], NULL, work, results[t]) != 0)
            return EXIT_FAILURE;
    work(results[0]);
    for (unsigned long t = 1; t < threads; t++)
        pthread_join(handles[t], NULL);
    printf("{\"threads\": %lu, \"flops\": %.6g, \"int8\": %.6g, \"bytes\": %.6g}\n", threads,
           median((unsigned)threads, offsetof(bounds, flops)), median((unsigned)threads, offsetof(bounds, int8)),
           median((unsigned)threads, offsetof(bounds, bytes)));
    return EXIT_SUCCESS;
}

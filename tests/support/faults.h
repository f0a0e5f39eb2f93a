/* Makes chosen calls of the operating system fail below the library. A program that links faults.c, with the linker's
 * --wrap for each call (tests/meson.build), has these functions between lib/ and the system; the library that users get
 * is not touched. Works beside sanitizers. One thread at a time. */
#ifndef DS_TESTS_FAULTS_H
#define DS_TESTS_FAULTS_H

#include <stdbool.h>
#include <stddef.h>

#define FAULT_CALLS(X)                                                                                                 \
    X(open) X(close) X(stat) X(lstat) X(fstat) X(readlink) X(faccessat) X(opendir) X(readdir) X(pread) X(pwrite)       \
    X(ftruncate) X(fsync) X(fdatasync) X(flock) X(fchown) X(fchmod) X(rename) X(unlink) X(mmap) X(madvise) X(malloc)   \
    X(calloc) X(realloc) X(posix_memalign) X(pthread_create)

typedef enum fault_call {
#define X(name) FAULT_##name,
    FAULT_CALLS(X)
#undef X
    FAULT_N_CALLS
} fault_call;

extern const char *const fault_names[FAULT_N_CALLS];

typedef enum fault_effect {
    FAULT_FAILS,       /* with `error` */
    FAULT_ENDS,        /* pread, pwrite: no byte goes through */
    FAULT_SHORT,       /* pread, pwrite: at most 7 bytes */
    FAULT_KILLS,       /* SIGKILL, before the call */
    FAULT_KILLS_AFTER, /* ... or behind it. Half of what is to be written is; of 64 bytes, which lie in one page, all */
} fault_effect;

typedef struct fault_plan {
    fault_call call;
    size_t nth;      /* 1: the next call of this kind */
    bool every;      /* all calls from there on */
    bool any_call;   /* of whatever kind: `nth` counts them all */
    bool alternates; /* with `every`: each second call goes through */
    fault_effect effect;
    int error;
} fault_plan;

typedef struct fault_report {
    size_t seen[FAULT_N_CALLS]; /* since faults_arm */
    size_t all;                 /* the sum, without allocations */
    size_t hits;                /* how many had the plan's effect */
    bool on_folder;             /* the last of them was on a folder, */
    bool on_system;             /* or on a file below /proc or /sys */
} fault_report;

/* Counts from now on, and follows the plan if it is not NULL. */
void faults_arm(const fault_plan *plan);

/* All calls go through again. */
fault_report faults_disarm(void);

#endif

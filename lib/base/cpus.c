/* How many threads are worth having: fast physical cores that the process may run on, and no more than its quota of
 * time. The answers stand in files of Linux; elsewhere none is found, and every processor counts.
 *
 * Two threads of one core share its arithmetic, and a region's end waits for the slowest thread: so neither a core's
 * second thread nor an efficiency core makes a pass faster. */
#include "base/groups.h"

#include <stdio.h>
#include <stdlib.h>

enum { TEXT_SIZE = DS_SYSTEM_TEXT };

/* ---- fast physical cores ---- */

static bool is_in(const ds_os_cpus *set, unsigned cpu) { return (set->words[cpu / 64] >> cpu % 64 & 1) != 0; }
static void put_in(ds_os_cpus *set, unsigned cpu) { set->words[cpu / 64] |= (uint64_t)1 << cpu % 64; }

static bool is_empty(const ds_os_cpus *set)
{
    for (unsigned i = 0; i < DS_OS_MAX_CPUS / 64; i++)
        if (set->words[i] != 0)
            return false;
    return true;
}

/* "0-3,8,10-11" */
static void parse_list(const char *text, ds_os_cpus *set)
{
    *set = (ds_os_cpus){{0}};
    for (char *end; *text >= '0' && *text <= '9'; text = *end == ',' ? end + 1 : end) {
        unsigned long first = strtoul(text, &end, 10), last = first;
        if (*end == '-')
            last = strtoul(end + 1, &end, 10);
        for (unsigned long cpu = first; cpu <= last && cpu < DS_OS_MAX_CPUS; cpu++)
            put_in(set, (unsigned)cpu);
    }
}

/* Keeps those processors whose number in cpuN/NAME is at least `percent` of the largest. Changes nothing if one of
 * them has no such number. */
static void keep_fast(const char *root, const char *name, unsigned percent, ds_os_cpus *set)
{
    char text[TEXT_SIZE];
    unsigned long long most = 0;
    for (unsigned cpu = 0; cpu < DS_OS_MAX_CPUS; cpu++) {
        if (!is_in(set, cpu))
            continue;
        if (!ds_system_text(text, root, "/sys/devices/system/cpu/cpu%u/%s", cpu, name))
            return;
        most = ds_max(most, strtoull(text, NULL, 10));
    }
    ds_os_cpus fast = {{0}};
    for (unsigned cpu = 0; cpu < DS_OS_MAX_CPUS; cpu++)
        if (is_in(set, cpu) && ds_system_text(text, root, "/sys/devices/system/cpu/cpu%u/%s", cpu, name) &&
            strtoull(text, NULL, 10) * 100 >= most * percent)
            put_in(&fast, cpu);
    if (!is_empty(&fast))
        *set = fast;
}

/* Leaves efficiency cores out, if the process may run on others. */
static void leave_slow_out(const char *root, ds_os_cpus *set)
{
    char text[TEXT_SIZE];
    ds_os_cpus fast;
    /* Intel's hybrid processors list their performance cores. */
    if (ds_system_text(text, root, "/sys/devices/cpu_core/cpus")) {
        parse_list(text, &fast);
        for (unsigned i = 0; i < DS_OS_MAX_CPUS / 64; i++)
            fast.words[i] &= set->words[i];
        if (!is_empty(&fast))
            *set = fast;
        return;
    }
    /* ARM's cores have a capacity: middle cores have half of the largest's and more, efficiency cores less. By
     * frequency alone efficiency cores are nearer: Intel's have at most 79 % of the performance cores'. */
    keep_fast(root, "cpu_capacity", 50, set);
    keep_fast(root, "cpufreq/cpuinfo_max_freq", 80, set);
}

/* Whether a lower one of the set is a thread of the same core. */
static bool has_lower_sibling(const char *root, unsigned cpu, const ds_os_cpus *set)
{
    char text[TEXT_SIZE];
    ds_os_cpus core;
    if (!ds_system_text(text, root, "/sys/devices/system/cpu/cpu%u/topology/core_cpus_list", cpu) &&
        !ds_system_text(text, root, "/sys/devices/system/cpu/cpu%u/topology/thread_siblings_list", cpu))
        return false;
    parse_list(text, &core);
    for (unsigned lower = 0; lower < cpu; lower++)
        if (is_in(&core, lower) && is_in(set, lower))
            return true;
    return false;
}

unsigned ds_fast_cores(const char *root, const ds_os_cpus *allowed)
{
    ds_os_cpus set = *allowed;
    unsigned n = 0;
    leave_slow_out(root, &set);
    for (unsigned cpu = 0; cpu < DS_OS_MAX_CPUS; cpu++)
        n += is_in(&set, cpu) && !has_lower_sibling(root, cpu, &set);
    return n > 0 ? n : 1;
}

/* ---- the control groups' quota ---- */

static unsigned least(unsigned a, unsigned b) { return a == 0 || (b != 0 && b < a) ? b : a; }

/* The quota of one group in processors, rounded up; 0: none. */
static unsigned quota_of(const char *root, const char *folder, bool version_2)
{
    char text[TEXT_SIZE];
    long long quota = -1, period = -1;
    if (version_2) {
        if (!ds_system_text(text, root, "%s/cpu.max", folder) || sscanf(text, "%lld %lld", &quota, &period) != 2)
            return 0; /* "max 100000" */
    } else {
        if (ds_system_text(text, root, "%s/cpu.cfs_quota_us", folder))
            quota = strtoll(text, NULL, 10);
        if (ds_system_text(text, root, "%s/cpu.cfs_period_us", folder))
            period = strtoll(text, NULL, 10);
    }
    if (quota <= 0 || period <= 0)
        return 0;
    long long cpus = quota / period + (quota % period != 0);
    return cpus > DS_OS_MAX_CPUS ? DS_OS_MAX_CPUS : (unsigned)cpus;
}

typedef struct quota {
    unsigned cpus; /* the least so far; 0: none */
} quota;

static void visit_quota(void *context, const char *root, const char *folder, bool version_2)
{
    quota *q = context;
    q->cpus = least(q->cpus, quota_of(root, folder, version_2));
}

unsigned ds_cpu_quota(const char *root)
{
    quota q = {0};
    ds_groups_visit(root, "cpu", visit_quota, &q);
    return q.cpus;
}

unsigned ds_default_threads(void)
{
    enum { MOST = 1024 }; /* that n_threads may be */
    ds_os_cpus allowed;
    ds_os_affinity(&allowed);
    unsigned n = least(ds_fast_cores("", &allowed), ds_cpu_quota(""));
    return n < MOST ? n : MOST;
}

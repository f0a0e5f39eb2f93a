/* The default number of threads and the memory that is left, on topologies and cgroups that a folder fakes: B14, quotas
 * and limits of nested groups, masks wider than 1,024. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "base/base.h"
#include "support/run.h"
#include "support/tensors.h"

#include <check.h>
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static char *root;

static void make(void)
{
    char name[] = "/tmp/dsv2-cpus-XXXXXX";
    ck_assert(mkdtemp(name) != NULL);
    root = strdup(name);
}

static void drop(void)
{
    ck_assert(system(test_format("rm -rf %s", root)) == 0);
    free(root);
}

/* Writes a file of the faked system, and the folders that it is in. */
static void put(const char *path, const char *text)
{
    char full[4096];
    snprintf(full, sizeof full, "%s%s", root, path);
    for (char *slash = full + strlen(root) + 1; (slash = strchr(slash, '/')) != NULL; slash++) {
        *slash = '\0';
        mkdir(full, 0777);
        *slash = '/';
    }
    test_write_file(full, text, strlen(text));
}

static void put_cpu(unsigned cpu, const char *name, const char *text)
{
    put(test_format("/sys/devices/system/cpu/cpu%u/%s", cpu, name), text);
}

static ds_os_cpus cpus(unsigned first, unsigned end)
{
    ds_os_cpus set = {{0}};
    for (unsigned cpu = first; cpu < end; cpu++)
        set.words[cpu / 64] |= (uint64_t)1 << cpu % 64;
    return set;
}

static unsigned cores(unsigned first, unsigned end)
{
    ds_os_cpus set = cpus(first, end);
    return ds_fast_cores(root, &set);
}

START_TEST(without_a_topology_every_processor_counts)
{
    ck_assert_uint_eq(cores(0, 1), 1);
    ck_assert_uint_eq(cores(0, 64), 64);
    ck_assert_uint_eq(cores(1000, 3000), 2000);
}
END_TEST

/* 8 cores of 2 threads: a core's threads are 8 apart, as on most machines, or side by side. Older systems have the
 * second name. */
START_TEST(threads_of_one_core_count_once)
{
    for (unsigned cpu = 0; cpu < 16; cpu++)
        put_cpu(cpu, _i < 2 ? "topology/core_cpus_list" : "topology/thread_siblings_list",
                _i == 1 ? test_format("%u-%u\n", cpu / 2 * 2, cpu / 2 * 2 + 1)
                        : test_format("%u,%u\n", cpu % 8, cpu % 8 + 8));
    ck_assert_uint_eq(cores(0, 16), 8);
    ck_assert_uint_eq(cores(0, 8), _i == 1 ? 4 : 8);
    ck_assert_uint_eq(cores(8, 16), _i == 1 ? 4 : 8); /* second threads alone: each has its core for itself */
    ck_assert_uint_eq(cores(7, 9), 2);
}
END_TEST

/* 8 performance cores of 2 threads and 8 efficiency cores. */
static void put_hybrid(void)
{
    for (unsigned cpu = 0; cpu < 24; cpu++)
        put_cpu(cpu, "topology/core_cpus_list",
                cpu < 16 ? test_format("%u-%u\n", cpu / 2 * 2, cpu / 2 * 2 + 1) : test_format("%u\n", cpu));
}

START_TEST(efficiency_cores_are_left_out_by_the_list_of_performance_cores)
{
    put_hybrid();
    put("/sys/devices/cpu_core/cpus", "0-15\n");
    put("/sys/devices/cpu_atom/cpus", "16-23\n");
    ck_assert_uint_eq(cores(0, 24), 8);
    ck_assert_uint_eq(cores(14, 20), 1);
    ck_assert_uint_eq(cores(16, 24), 8); /* the process may run on no others */
}
END_TEST

START_TEST(efficiency_cores_are_left_out_by_frequency)
{
    put_hybrid();
    for (unsigned cpu = 0; cpu < 24; cpu++)
        put_cpu(cpu, "cpufreq/cpuinfo_max_freq", cpu < 4 ? "5800000\n" : cpu < 16 ? "5600000\n" : "4400000\n");
    ck_assert_uint_eq(cores(0, 24), 8);
    ck_assert_uint_eq(cores(16, 24), 8);
}
END_TEST

/* Four small, three middle and one large core. */
START_TEST(efficiency_cores_are_left_out_by_capacity)
{
    for (unsigned cpu = 0; cpu < 8; cpu++)
        put_cpu(cpu, "cpu_capacity", cpu < 4 ? "280\n" : cpu < 7 ? "780\n" : "1024\n");
    ck_assert_uint_eq(cores(0, 8), 4);
    ck_assert_uint_eq(cores(0, 4), 4);
    ck_assert_uint_eq(cores(2, 6), 2);
}
END_TEST

START_TEST(a_processor_without_a_number_leaves_all_of_them_in)
{
    put_cpu(0, "cpu_capacity", "1024\n");
    put_cpu(1, "cpu_capacity", "100\n");
    ck_assert_uint_eq(cores(0, 2), 1);
    ck_assert_uint_eq(cores(0, 3), 3);
    put_cpu(5, "topology/core_cpus_list", "4-99999999999999999999,x\n");
    ck_assert_uint_eq(cores(4, 8), 3);
}
END_TEST

/* ---- quotas ---- */

static const char v2_mount[] = "22 1 254:0 / / rw - ext4 /dev/root rw\n"
                               "25 22 0:22 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

START_TEST(the_least_quota_of_nested_groups_holds)
{
    put("/proc/self/mountinfo", v2_mount);
    put("/proc/self/cgroup", "0::/user.slice/app.slice/run.scope\n");
    ck_assert_uint_eq(ds_cpu_quota(root), 0);
    put("/sys/fs/cgroup/user.slice/app.slice/run.scope/cpu.max", "max 100000\n");
    ck_assert_uint_eq(ds_cpu_quota(root), 0);
    put("/sys/fs/cgroup/user.slice/cpu.max", "650000 100000\n");
    ck_assert_uint_eq(ds_cpu_quota(root), 7);
    put("/sys/fs/cgroup/user.slice/app.slice/cpu.max", "30000 20000\n");
    ck_assert_uint_eq(ds_cpu_quota(root), 2);
    put("/sys/fs/cgroup/other.slice/cpu.max", "10000 100000\n");
    ck_assert_uint_eq(ds_cpu_quota(root), 2);
    put("/sys/fs/cgroup/user.slice/app.slice/run.scope/cpu.max", "10000 100000\n");
    ck_assert_uint_eq(ds_cpu_quota(root), 1);
}
END_TEST

/* What a container sees: its group is at the mount's point; a name with a space, and a line of many layers before. */
START_TEST(a_mount_of_a_part_of_the_groups_is_understood)
{
    char *layers = malloc(20000), *mounts = malloc(30000);
    memset(layers, 'l', 19999);
    layers[19999] = '\0';
    sprintf(mounts, "22 1 0:40 / / rw - overlay overlay rw,lowerdir=%s\n"
                    "25 22 0:22 /docker/abc /sys/fs/my\\040groups rw - cgroup2 cgroup rw\n", layers);
    put("/proc/self/mountinfo", mounts);
    put("/proc/self/cgroup", "0::/docker/abc/inner\n");
    put("/sys/fs/my groups/cpu.max", "400000 100000\n");
    ck_assert_uint_eq(ds_cpu_quota(root), 4);
    put("/sys/fs/my groups/inner/cpu.max", "300000 100000\n");
    ck_assert_uint_eq(ds_cpu_quota(root), 3);
    put("/proc/self/cgroup", "0::/docker/abcd\n"); /* another group, whose name begins the same */
    ck_assert_uint_eq(ds_cpu_quota(root), 4);
    put("/proc/self/cgroup", "0::/../elsewhere\n");
    ck_assert_uint_eq(ds_cpu_quota(root), 4);
    free(mounts);
    free(layers);
}
END_TEST

/* Bind mounts show parts of the groups, before and after those that show the process's own and what that is in. */
START_TEST(all_mounts_count_that_show_the_group)
{
    put("/proc/self/mountinfo", "25 22 0:22 /other /mnt/other rw - cgroup2 cgroup rw\n"
                                "26 22 0:22 /a /mnt/a rw - cgroup2 cgroup rw\n"
                                "27 22 0:22 / /gone rw - cgroup2 cgroup rw\n"
                                "28 22 0:22 /a/b/other /mnt/c rw - cgroup2 cgroup rw\n");
    put("/proc/self/cgroup", "0::/a/b\n");
    put("/mnt/other/cpu.max", "100000 100000\n");
    put("/mnt/c/cpu.max", "100000 100000\n");
    put("/mnt/a/b/cpu.max", "700000 100000\n");
    ck_assert_uint_eq(ds_cpu_quota(root), 7);
    put("/mnt/a/cpu.max", "500000 100000\n");
    ck_assert_uint_eq(ds_cpu_quota(root), 5);
    put("/gone/a/cpu.max", "400000 100000\n");
    ck_assert_uint_eq(ds_cpu_quota(root), 4);
    put("/gone/cpu.max", "300000 100000\n");
    ck_assert_uint_eq(ds_cpu_quota(root), 3);
}
END_TEST

/* A group far down: all of its line, its mount's line and its files are found. */
START_TEST(long_paths_are_followed)
{
    char group[3600] = "", text[4096], name[4096];
    for (size_t i = 0; strlen(group) < 3300; i++)
        snprintf(group + strlen(group), sizeof group - strlen(group), "/%0*d", 200, (int)i);
    snprintf(text, sizeof text, "25 22 0:22 %s/in /m rw - cgroup2 cgroup rw\n", group);
    put("/proc/self/mountinfo", text);
    snprintf(text, sizeof text, "0::%s/in/group\n", group);
    put("/proc/self/cgroup", text);
    put("/m/group/cpu.max", "300000 100000\n");
    ck_assert_uint_eq(ds_cpu_quota(root), 3);
    put("/proc/self/mountinfo", "25 22 0:22 / /m rw - cgroup2 cgroup rw\n");
    snprintf(name, sizeof name, "/m%s/cpu.max", group);
    put(name, "200000 100000\n");
    ck_assert_uint_eq(ds_cpu_quota(root), 2);
}
END_TEST

/* Both versions at once: the first has the controller of processors. */
START_TEST(groups_of_version_1_are_read_too)
{
    put("/proc/self/mountinfo",
        "30 25 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
        "31 25 0:28 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
        "32 25 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n");
    put("/proc/self/cgroup", "5:cpuset:/set\n4:cpu,cpuacct:/slice/job\n0::/unified\n");
    put("/sys/fs/cgroup/cpu,cpuacct/slice/job/cpu.cfs_quota_us", "-1\n");
    put("/sys/fs/cgroup/cpu,cpuacct/slice/job/cpu.cfs_period_us", "100000\n");
    ck_assert_uint_eq(ds_cpu_quota(root), 0);
    put("/sys/fs/cgroup/cpu,cpuacct/slice/cpu.cfs_quota_us", "250000\n");
    put("/sys/fs/cgroup/cpu,cpuacct/slice/cpu.cfs_period_us", "100000\n");
    ck_assert_uint_eq(ds_cpu_quota(root), 3);
    put("/sys/fs/cgroup/unified/unified/cpu.max", "100000 100000\n");
    ck_assert_uint_eq(ds_cpu_quota(root), 1);
}
END_TEST

START_TEST(files_that_say_nothing_limit_nothing)
{
    static const char *const texts[] = {"", "x\n", "0::\n", "::::\n", "0::/a\n0::\n"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        put("/proc/self/cgroup", texts[i]);
        put("/proc/self/mountinfo", i % 2 ? "1 2 3\n" : "25 22 0:22 / /c rw - cgroup2\n");
        ck_assert_uint_eq(ds_cpu_quota(root), 0);
    }
    put("/proc/self/mountinfo", v2_mount);
    put("/proc/self/cgroup", "0::/a\n");
    put("/sys/fs/cgroup/a/cpu.max", "0 0\n");
    ck_assert_uint_eq(ds_cpu_quota(root), 0);
    put("/sys/fs/cgroup/a/cpu.max", "9223372036854775807 1\n");
    ck_assert_uint_eq(ds_cpu_quota(root), DS_OS_MAX_CPUS);
}
END_TEST

/* ---- memory that is left ---- */

static void expect_left(uint64_t bytes, const char *whose)
{
    ds_memory_left left;
    ck_assert(ds_memory_left_in(root, &left));
    ck_assert_msg(left.bytes == bytes && strcmp(left.whose, whose) == 0, "%llu of %s, expected %llu of %s",
                  (unsigned long long)left.bytes, left.whose, (unsigned long long)bytes, whose);
}

START_TEST(the_least_of_machine_and_nested_groups_is_left)
{
    ds_memory_left left;
    ck_assert(!ds_memory_left_in(root, &left)); /* nothing is known */
    put("/proc/meminfo", "MemTotal:       9000 kB\nMemFree:         100 kB\nMemAvailable:   5000 kB\n");
    expect_left(5000 * 1024, "the machine");
    put("/proc/self/cgroup", "0::/a.slice/b.slice/c.scope\n");
    put("/proc/self/mountinfo", "25 22 0:22 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n");
    put("/sys/fs/cgroup/a.slice/b.slice/c.scope/memory.max", "max\n");
    put("/sys/fs/cgroup/a.slice/b.slice/c.scope/memory.current", "4000\n");
    expect_left(5000 * 1024, "the machine");
    put("/sys/fs/cgroup/a.slice/b.slice/memory.max", "1000000\n");
    put("/sys/fs/cgroup/a.slice/b.slice/memory.current", "600000\n");
    expect_left(400000, "control group /sys/fs/cgroup/a.slice/b.slice");
    put("/sys/fs/cgroup/a.slice/b.slice/memory.stat", "anon 1\ninactive_anon 7\nfile 9\ninactive_file 50000\n"
                                                      "active_file 100000\nshmem 5\n"); /* what the system gives up */
    expect_left(550000, "control group /sys/fs/cgroup/a.slice/b.slice");
    put("/sys/fs/cgroup/a.slice/memory.max", "700000\n");
    put("/sys/fs/cgroup/a.slice/memory.current", "650000\n");
    expect_left(50000, "control group /sys/fs/cgroup/a.slice");
    put("/sys/fs/cgroup/a.slice/memory.current", "800000\n"); /* above a limit that was lowered */
    expect_left(0, "control group /sys/fs/cgroup/a.slice");
    put("/sys/fs/cgroup/other.slice/memory.max", "1\n");
    put("/sys/fs/cgroup/a.slice/memory.max", "max\n");
    expect_left(550000, "control group /sys/fs/cgroup/a.slice/b.slice");
    put("/proc/meminfo", "MemAvailable:   5 kB\n");
    expect_left(5 * 1024, "the machine");
}
END_TEST

/* Beyond `high` the system lets a group take memory, but so slowly that the host stands still. */
START_TEST(memory_high_is_a_limit_and_a_number_near_two_to_the_63_is_none)
{
    ds_memory_left left;
    put("/proc/self/cgroup", "0::/a\n");
    put("/proc/self/mountinfo", v2_mount);
    put("/sys/fs/cgroup/a/memory.max", "1000000\n");
    put("/sys/fs/cgroup/a/memory.current", "1000\n");
    expect_left(999000, "control group /sys/fs/cgroup/a");
    put("/sys/fs/cgroup/a/memory.high", "500000\n");
    expect_left(499000, "control group /sys/fs/cgroup/a");
    put("/sys/fs/cgroup/a/memory.max", "max\n");
    expect_left(499000, "control group /sys/fs/cgroup/a");
    put("/sys/fs/cgroup/a/memory.high", "4611686018427387904\n");
    ck_assert(!ds_memory_left_in(root, &left));
}
END_TEST

/* A mount of another group comes first: that group's limit is not ours, as long as a mount shows ours. */
START_TEST(a_group_is_looked_for_among_all_mounts)
{
    put("/proc/meminfo", "MemAvailable:   5000 kB\n");
    put("/proc/self/cgroup", "0::/mine\n");
    put("/proc/self/mountinfo", "25 22 0:22 /other /mnt/other rw - cgroup2 cgroup rw\n");
    put("/mnt/other/memory.max", "1000\n");
    put("/mnt/other/memory.current", "1000\n");
    expect_left(0, "control group /mnt/other"); /* which may be what ours is in */
    put("/proc/self/mountinfo", "25 22 0:22 /other /mnt/other rw - cgroup2 cgroup rw\n"
                                "26 22 0:22 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n");
    expect_left(5000 * 1024, "the machine");
    put("/sys/fs/cgroup/mine/memory.max", "3000\n");
    put("/sys/fs/cgroup/mine/memory.current", "1000\n");
    expect_left(2000, "control group /sys/fs/cgroup/mine");
}
END_TEST

/* Version 1; and both versions at once, where the second has no memory controller. */
START_TEST(memory_of_groups_of_version_1_is_read_too)
{
    put("/proc/meminfo", "MemAvailable:   5000 kB\n");
    put("/proc/self/cgroup", "9:name=systemd:/\n4:memory:/docker/abc\n1:cpu,cpuacct:/\n0::/\n");
    put("/proc/self/mountinfo", "35 31 0:32 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
                                "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n");
    put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    put("/sys/fs/cgroup/memory/memory.usage_in_bytes", "1000\n");
    expect_left(5000 * 1024, "the machine");
    put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "90000\n");
    expect_left(89000, "control group /sys/fs/cgroup/memory");
    put("/sys/fs/cgroup/memory/memory.stat", "cache 900\ninactive_file 1\ntotal_inactive_file 300\n"
                                             "total_active_file 200\n");
    expect_left(89500, "control group /sys/fs/cgroup/memory");
}
END_TEST

/* ---- a machine with more processors than 1,024 ---- */

static bool is_large;

/* The system's answer on such a machine, in the place of the C library's function. */
int sched_getaffinity(pid_t pid, size_t size, cpu_set_t *set)
{
    ck_assert_int_eq(pid, 0);
    memset(set, 0, size);
    if (!is_large) {
        CPU_SET_S(0, size, set);
        return 0;
    }
    if (size < 4096 / 8) {
        errno = EINVAL;
        return -1;
    }
    for (size_t cpu = 1500; cpu < 3500; cpu++)
        CPU_SET_S(cpu, size, set);
    return 0;
}

START_TEST(masks_wider_than_1024_are_read)
{
    ds_os_cpus allowed, expected = cpus(1500, 3500), one = cpus(0, 1);
    is_large = true;
    ds_os_affinity(&allowed);
    ck_assert(memcmp(&allowed, &expected, sizeof allowed) == 0);
    ck_assert_uint_eq(ds_fast_cores(root, &allowed), 2000);
    ck_assert_uint_le(ds_default_threads(), 1024); /* what n_threads may be */
    is_large = false;
    ds_os_affinity(&allowed);
    ck_assert(memcmp(&allowed, &one, sizeof allowed) == 0);
    ck_assert_uint_eq(ds_default_threads(), 1);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("cpus");
    TCase *tests = tcase_create("cpus");
    tcase_set_timeout(tests, 60);
    tcase_add_checked_fixture(tests, make, drop);
    tcase_add_test(tests, without_a_topology_every_processor_counts);
    tcase_add_loop_test(tests, threads_of_one_core_count_once, 0, 3);
    tcase_add_test(tests, efficiency_cores_are_left_out_by_the_list_of_performance_cores);
    tcase_add_test(tests, efficiency_cores_are_left_out_by_frequency);
    tcase_add_test(tests, efficiency_cores_are_left_out_by_capacity);
    tcase_add_test(tests, a_processor_without_a_number_leaves_all_of_them_in);
    tcase_add_test(tests, the_least_quota_of_nested_groups_holds);
    tcase_add_test(tests, a_mount_of_a_part_of_the_groups_is_understood);
    tcase_add_test(tests, all_mounts_count_that_show_the_group);
    tcase_add_test(tests, long_paths_are_followed);
    tcase_add_test(tests, groups_of_version_1_are_read_too);
    tcase_add_test(tests, files_that_say_nothing_limit_nothing);
    tcase_add_test(tests, the_least_of_machine_and_nested_groups_is_left);
    tcase_add_test(tests, memory_high_is_a_limit_and_a_number_near_two_to_the_63_is_none);
    tcase_add_test(tests, a_group_is_looked_for_among_all_mounts);
    tcase_add_test(tests, memory_of_groups_of_version_1_is_read_too);
    tcase_add_test(tests, masks_wider_than_1024_are_read);
    suite_add_tcase(suite, tests);
    return test_run(suite);
}

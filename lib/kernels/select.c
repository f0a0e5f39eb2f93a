#include "kernels/kernels.h"

#include <stdio.h>
#include <string.h>
#ifdef DS_KERNELS_X86
#include <cpuid.h>
#endif

/* The sets of this build, the best first. This is the one list of them: a set's table is called ds_kernels_NAME, and
 * NAME_runs says whether this processor and operating system run the set. */
#ifdef DS_KERNELS_X86
#define SETS SET(avx512) SET(avx2) SET(c)
#else
#define SETS SET(c)
#endif

/* __builtin_cpu_supports also asks whether the operating system keeps the wide registers (XGETBV). */
#ifdef DS_KERNELS_X86
/* clang 14 knows no "f16c". */
static bool has_f16c(void)
{
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C) != 0;
}

static bool avx2_runs(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

static bool avx512_runs(void)
{
    return avx2_runs() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}
#endif

static bool c_runs(void) { return true; }

#define SET(name) extern const ds_kernels ds_kernels_##name;
SETS
#undef SET

static const struct {
    const ds_kernels *kernels;
    bool (*runs)(void);
} sets[] = {
#define SET(name) {&ds_kernels_##name, name##_runs},
    SETS
#undef SET
};
enum { N_SETS = sizeof sets / sizeof *sets };

const ds_kernels *ds_kernels_set(size_t index, bool *runs)
{
    if (index >= N_SETS)
        return NULL;
    *runs = sets[index].runs();
    return sets[index].kernels;
}

static dsv2_status fail_name(const char *name)
{
    char names[160] = "auto";
    for (size_t i = 0, length = strlen(names); i < N_SETS && length < sizeof names; i++)
        length += (size_t)snprintf(names + length, sizeof names - length, ", %s", sets[i].kernels->name);
    return ds_fail(DSV2_ERROR_ARGUMENT, "no kernels are called \"%s\"; there are %s", name, names);
}

dsv2_status ds_kernels_select(const char *name, const ds_kernels **kernels)
{
    bool automatic = name == NULL || strcmp(name, "auto") == 0;
    for (size_t i = 0; i < N_SETS; i++) {
        if (!automatic && strcmp(name, sets[i].kernels->name) != 0)
            continue;
        if (sets[i].runs()) {
            *kernels = sets[i].kernels;
            return DSV2_OK;
        }
        if (!automatic)
            return ds_fail(DSV2_ERROR_UNSUPPORTED, "kernels \"%s\" need instructions that this processor does not have",
                           name);
    }
    return fail_name(name);
}

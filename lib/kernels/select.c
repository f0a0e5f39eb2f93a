#include "kernels/tables.h"

#include <string.h>
#ifdef DS_KERNELS_X86
#include <cpuid.h>
#endif

/* __builtin_cpu_supports also asks whether the operating system keeps the wide registers (XGETBV). */
static bool runs_c(void) { return true; }

#ifdef DS_KERNELS_X86
/* clang 14 knows no "f16c". */
static bool has_f16c(void)
{
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C) != 0;
}

static bool runs_avx2(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

static bool runs_avx512(void)
{
    return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}
#endif

/* Best first. */
static const struct {
    const ds_kernels *kernels;
    bool (*runs)(void);
} sets[] = {
#ifdef DS_KERNELS_X86
    {&ds_kernels_avx512, runs_avx512},
    {&ds_kernels_avx2, runs_avx2},
#endif
    {&ds_kernels_c, runs_c},
};

dsv2_status ds_kernels_select(const char *name, const ds_kernels **kernels)
{
    bool automatic = name == NULL || strcmp(name, "auto") == 0;
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++) {
        if (!automatic && strcmp(name, sets[i].kernels->name) != 0)
            continue;
        if (sets[i].runs()) {
            *kernels = sets[i].kernels;
            return DSV2_OK;
        }
        if (!automatic)
            return ds_fail(DSV2_ERROR_UNSUPPORTED, "kernels \"%s\" need instructions that this processor does not have", name);
    }
    return ds_fail(DSV2_ERROR_ARGUMENT, "no kernels are called \"%s\"; there are auto, avx512, avx2, c", name);
}

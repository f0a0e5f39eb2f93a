#include "base/base.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Long enough for two paths and a sentence; what is longer is cut. */
enum { MESSAGE_SIZE = 1024 };

static _Thread_local char last_error[MESSAGE_SIZE];

dsv2_status ds_fail(dsv2_status status, const char *format, ...)
{
    char message[MESSAGE_SIZE]; /* not last_error itself, which may be among the arguments */
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    /* Names out of files may hold anything: a message stays one line. */
    for (char *c = message; *c != '\0'; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            *c = ' ';
    memcpy(last_error, message, sizeof last_error);
    return status;
}

dsv2_status ds_fail_memory(const char *what, size_t bytes)
{
    return ds_fail(DSV2_ERROR_MEMORY, "no memory for %s (%zu bytes)", what, bytes);
}

dsv2_status ds_fail_io(const char *path, const char *doing)
{
    ds_os_reason reason = ds_os_failure();
    return ds_fail(reason.no_memory ? DSV2_ERROR_MEMORY : DSV2_ERROR_IO, "%s: cannot %s: %s", path, doing, reason.text);
}

const char *dsv2_last_error(void) { return last_error; }

dsv2_status ds_read_options(const char *type, const void *options, void *known, size_t known_size, size_t minimum)
{
    if (options == NULL)
        return DSV2_OK;
    size_t size;
    memcpy(&size, options, sizeof size);
    if (size < minimum)
        return ds_fail(DSV2_ERROR_ARGUMENT, "%s.struct_size is %zu, expected sizeof(%s), which is %zu", type, size,
                       type, known_size);
    /* A size that no header of ours can have means an uninitialised structure: reading that far could leave the host's
     * memory. */
    if (size > known_size + 4096)
        return ds_fail(DSV2_ERROR_ARGUMENT, "%s.struct_size is %zu, expected sizeof(%s), which is %zu: was it set?",
                       type, size, type, known_size);
    for (size_t i = known_size; i < size; i++)
        if (((const unsigned char *)options)[i] != 0)
            return ds_fail(DSV2_ERROR_ARGUMENT,
                           "%s has a field that this version of the library does not know, at byte %zu", type, i);
    memcpy(known, options, size < known_size ? size : known_size);
    return DSV2_OK;
}

dsv2_status ds_write_info(const char *type, void *info, const void *known, size_t known_size, size_t minimum)
{
    if (info == NULL)
        return ds_fail(DSV2_ERROR_ARGUMENT, "%s is NULL", type);
    size_t size;
    memcpy(&size, info, sizeof size);
    if (size < minimum || size > known_size + 4096)
        return ds_fail(DSV2_ERROR_ARGUMENT, "%s.struct_size is %zu, expected sizeof(%s), which is %zu", type, size,
                       type, known_size);
    memcpy((char *)info + sizeof size, (const char *)known + sizeof size,
           (size < known_size ? size : known_size) - sizeof size);
    if (size > known_size)
        memset((char *)info + known_size, 0, size - known_size);
    return DSV2_OK;
}

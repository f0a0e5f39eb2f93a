#include "base/base.h"

#include <dsv2/tokenizer.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static _Thread_local char last_error[DS_MESSAGE_SIZE];

/* Whether a valid character is a control character, Latin-1's included, or Unicode's end of a line or paragraph. */
static bool breaks_line(const char *at, size_t length)
{
    const unsigned char *c = (const unsigned char *)at;
    if (length == 1)
        return c[0] < 0x20 || c[0] == 0x7f;
    return (length == 2 && c[0] == 0xc2 && c[1] < 0xa0) ||
           (length == 3 && c[0] == 0xe2 && c[1] == 0x80 && (c[2] == 0xa8 || c[2] == 0xa9));
}

void ds_message(char message[DS_MESSAGE_SIZE], const char *format, va_list arguments)
{
    char raw[DS_MESSAGE_SIZE] = "";
    int wanted = vsnprintf(raw, sizeof raw, format, arguments);
    size_t size = strlen(raw), end = 0;
    if (wanted >= DS_MESSAGE_SIZE)
        size = dsv2_utf8_complete(raw, size);
    for (size_t i = 0; i < size;) {
        size_t length = ds_utf8_length(raw + i, size - i);
        char escape[sizeof "\\xff"];
        snprintf(escape, sizeof escape, "\\x%02x", (unsigned)(unsigned char)raw[i]);
        const char *from = length == 0 ? escape : breaks_line(raw + i, length) ? " " : raw + i;
        size_t n = length == 0 ? sizeof escape - 1 : from == raw + i ? length : 1;
        if (n >= DS_MESSAGE_SIZE - end)
            break;
        memcpy(message + end, from, n);
        end += n;
        i += length == 0 ? 1 : length;
    }
    message[end] = '\0';
}

dsv2_status ds_fail(dsv2_status status, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    ds_message(last_error, format, arguments);
    va_end(arguments);
    return status;
}

dsv2_status ds_fail_forked(void)
{
    return ds_fail(DSV2_ERROR_STATE, "this process was forked while a call was at work on the model: open the model "
                                     "again in this process, or fork while no call is at work");
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

/* More than 4096 bytes beyond what is known mean an uninitialised structure: reading or writing that far could leave
 * the host's memory. */
dsv2_status ds_check_size(ds_sized sized, size_t size)
{
    if (size >= sized.first_size && size <= sized.size + 4096)
        return DSV2_OK;
    return ds_fail(DSV2_ERROR_ARGUMENT, "%s.struct_size is %zu, expected sizeof(%s), which is %zu%s", sized.type, size,
                   sized.type, sized.size, size > sized.size ? ": was it set?" : "");
}

dsv2_status ds_check_unknown(ds_sized sized, const void *structure, size_t size)
{
    for (size_t i = sized.size; i < size; i++)
        if (((const unsigned char *)structure)[i] != 0)
            return ds_fail(DSV2_ERROR_ARGUMENT,
                           "%s has a field that this version of the library does not know, at byte %zu", sized.type, i);
    return DSV2_OK;
}

dsv2_status ds_read_options(ds_sized sized, const void *options, void *known)
{
    if (options == NULL)
        return DSV2_OK;
    size_t size;
    memcpy(&size, options, sizeof size);
    dsv2_status status = ds_check_size(sized, size);
    if (status == DSV2_OK)
        status = ds_check_unknown(sized, options, size);
    if (status != DSV2_OK)
        return status;
    memcpy((char *)known + sizeof size, (const char *)options + sizeof size,
           (size < sized.size ? size : sized.size) - sizeof size);
    return DSV2_OK;
}

dsv2_status ds_write_info(ds_sized sized, void *info, const void *known)
{
    if (info == NULL)
        return ds_fail(DSV2_ERROR_ARGUMENT, "%s is NULL", sized.type);
    size_t size;
    memcpy(&size, info, sizeof size);
    dsv2_status status = ds_check_size(sized, size);
    if (status != DSV2_OK)
        return status;
    memcpy((char *)info + sizeof size, (const char *)known + sizeof size,
           (size < sized.size ? size : sized.size) - sizeof size);
    if (size > sized.size)
        memset((char *)info + sized.size, 0, size - sized.size);
    return DSV2_OK;
}

#include "base/base.h"

#include <stdarg.h>

void ds_log(const ds_logger *logger, dsv2_log_level level, const char *format, ...)
{
    if (logger == NULL || logger->log == NULL)
        return;
    char message[DS_MESSAGE_SIZE];
    va_list arguments;
    va_start(arguments, format);
    ds_message(message, format, arguments);
    va_end(arguments);
    ds_modes_lend();
    logger->log(logger->user, level, message);
    ds_modes_take_back();
}

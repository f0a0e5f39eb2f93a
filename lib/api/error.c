#include <dsv2/error.h>
#include <dsv2/version.h>

/* dsv2_last_error is in base/error.c, where the message is. */

const char *dsv2_status_name(dsv2_status status)
{
    switch (status) {
    case DSV2_OK: return "DSV2_OK";
    case DSV2_ERROR_ARGUMENT: return "DSV2_ERROR_ARGUMENT";
    case DSV2_ERROR_MEMORY: return "DSV2_ERROR_MEMORY";
    case DSV2_ERROR_IO: return "DSV2_ERROR_IO";
    case DSV2_ERROR_FORMAT: return "DSV2_ERROR_FORMAT";
    case DSV2_ERROR_UNSUPPORTED: return "DSV2_ERROR_UNSUPPORTED";
    case DSV2_ERROR_BUSY: return "DSV2_ERROR_BUSY";
    case DSV2_ERROR_CANCELLED: return "DSV2_ERROR_CANCELLED";
    case DSV2_ERROR_FULL: return "DSV2_ERROR_FULL";
    case DSV2_ERROR_MISMATCH: return "DSV2_ERROR_MISMATCH";
    case DSV2_ERROR_STATE: return "DSV2_ERROR_STATE";
    case DSV2_ERROR_BUFFER: return "DSV2_ERROR_BUFFER";
    }
    return "DSV2_ERROR_UNKNOWN";
}

#define TEXT_OF(number) #number
#define TEXT(number) TEXT_OF(number)

int dsv2_version_number(void) { return DSV2_VERSION_NUMBER; }

const char *dsv2_version_string(void)
{
    return TEXT(DSV2_VERSION_MAJOR) "." TEXT(DSV2_VERSION_MINOR) "." TEXT(DSV2_VERSION_PATCH);
}

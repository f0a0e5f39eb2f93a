#include "opening.h"

#include "folder.h"

#include <check.h>
#include <string.h>

void expect_message(const char *part)
{
    ck_assert_msg(strstr(dsv2_last_error(), part) != NULL, "\"%s\" is not in the message: %s", part, dsv2_last_error());
}

void map_all(ds_container *container)
{
    bool mapped;
    ck_assert_msg(ds_container_map(container, NULL, &mapped) == DSV2_OK && mapped, "%s", dsv2_last_error());
}

ds_container *expect_opened(test_opener opener, const char *name)
{
    ds_container *container = NULL;
    dsv2_status status = opener(folder_file(name), NULL, &container);
    ck_assert_msg(status == DSV2_OK, "status %d: %s", (int)status, dsv2_last_error());
    map_all(container);
    return container;
}

void expect_refusal(test_opener opener, const char *name, dsv2_status expected, const char *part)
{
    ds_container *container = NULL;
    dsv2_status status = opener(folder_file(name), NULL, &container);
    ck_assert_msg(status == expected, "status %d, expected %d: %s", (int)status, (int)expected,
                  status == DSV2_OK ? "it was accepted" : dsv2_last_error());
    ck_assert_ptr_null(container);
    expect_message(folder_path());
    expect_message(part);
}

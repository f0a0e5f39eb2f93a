/* Files in which Linux says what the process may use: small texts, and the control groups that the process is in. Only
 * for lib/base. root, everywhere: "", or a test's folder with files like those of /sys and /proc. */
#ifndef DS_LIB_BASE_GROUPS_H
#define DS_LIB_BASE_GROUPS_H

#include "base/base.h"

enum { DS_SYSTEM_TEXT = 4096 };

/* Reads the beginning of the small file at `root` and what the format says to text[DS_SYSTEM_TEXT]. False if there is
 * none. */
bool ds_system_text(char *text, const char *root, const char *format, ...) DSV2_PRINTF(3, 4);

/* A control group's folder; what it says of a resource lies in files at `root` and `folder`. */
typedef void (*ds_group_fn)(void *context, const char *root, const char *folder, bool version_2);

/* Visits every group of the process that may limit what the controller ("cpu", "memory") counts: in each version the
 * process's own and those that it is in, up to the topmost that each mount shows. Where no mount shows the process's
 * own, the group at the first mount's point is taken for one that the process is in. A group may be visited twice. */
void ds_groups_visit(const char *root, const char *controller, ds_group_fn visit, void *context);

#endif

/* Snapshots that were changed, with checksums that fit again, so that the changes reach the reader. */
#ifndef DS_TESTS_SNAPSHOT_FILE_H
#define DS_TESTS_SNAPSHOT_FILE_H

#include <stddef.h>
#include <stdint.h>

/* Corrects every checksum of a snapshot, as far as its lengths lead. */
void snapshot_file_seal(uint8_t *data, size_t size, size_t vocab_size);

/* The snapshot once more, with the rows of every frame changed by `change`, which gets them as they are compressed (as
 * planes, where rows are numbers of several bytes), compressed and sealed again. To be freed; *new_size bytes. The
 * snapshot is whole. */
uint8_t *snapshot_file_change(const uint8_t *data, size_t size, size_t vocab_size,
                              void (*change)(void *user, uint8_t *planes, size_t n), void *user, size_t *new_size);

#endif

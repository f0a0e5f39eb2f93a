/* Snapshots that were changed, with checksums that fit again, so that the changes reach the reader. */
#ifndef DS_TESTS_SNAPSHOT_FILE_H
#define DS_TESTS_SNAPSHOT_FILE_H

#include <stddef.h>
#include <stdint.h>

/* Corrects every checksum of a snapshot, as far as its lengths lead. */
void snapshot_file_seal(uint8_t *data, size_t size, size_t vocab_size);

#endif

/* A .dsv2 pack around any index, texts and weights, with right checksums, so that bad ones reach the reader. */
#ifndef DS_TESTS_PACK_FILE_H
#define DS_TESTS_PACK_FILE_H

#include <stddef.h>
#include <stdint.h>

/* Where the weights begin, and how many bytes of zeros pack_file_make puts there. */
enum { PACK_FILE_BEGIN = 4096, PACK_FILE_WEIGHTS = 512 };

/* The file, of *file_size bytes; to be freed. Ends the program if memory runs out. */
uint8_t *pack_file_around(const uint8_t *weights, size_t weights_size, const uint8_t *index, size_t index_size,
                          const uint8_t *texts, size_t texts_size, size_t *file_size);

/* Makes the checksum of a tensor's data right in its entry of the index. */
void pack_file_seal_entry(uint8_t *entry, const uint8_t *data);

/* The same around zeros. */
uint8_t *pack_file_make(const uint8_t *index, size_t index_size, const uint8_t *texts, size_t texts_size,
                        size_t *file_size);

/* Makes the header's checksum right again. */
void pack_file_seal(uint8_t *file);

#endif

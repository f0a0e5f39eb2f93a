/* The parts of a snapshot file, for writing and reading. Private to the room; README.md says what each byte is. */
#ifndef DS_LIB_SNAPSHOT_FORMAT_H
#define DS_LIB_SNAPSHOT_FORMAT_H

#include "snapshot/snapshot.h"

#include <xxhash.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "rows, logits and tokens go to the file as they lie in memory");

enum {
    SNAPSHOT_VERSION = 2, /* 1, which no release wrote, knew nothing of tokenizers */
    FILE_HEADER_BYTES = 128,
    HEADER_BYTES = 64,  /* of a save and of a block; also what saves are aligned to, so that a save's header lies in
                         * one sector of a disk and one page of memory: it is written whole or not at all */
    CHECKED_BYTES = 48, /* of a header, before its checksum */
    DIGEST_BYTES = 16,
    SAMPLER_BYTES = 72,
};

/* ---- checksums: XXH3-128, the low half first ---- */

void ds_digest_store(XXH128_hash_t digest, uint8_t *bytes);
bool ds_digest_equals(XXH128_hash_t digest, const uint8_t *bytes);

/* ---- headers: packed into and unpacked from FILE_HEADER_BYTES or HEADER_BYTES ---- */

typedef struct file_header {
    uint32_t version;
    uint32_t cache_type, n_layers, kv_lora_rank, qk_rope_head_dim, vocab_size;
    ds_fingerprint fingerprint;
} file_header;

/* One call of save: tokens first_token to n_tokens - 1, and the state after them. */
typedef struct save_header {
    uint32_t sequence; /* 0, 1, 2, ... */
    bool has_logits;
    uint64_t first_token, n_tokens, n_biases;
} save_header;

typedef enum block_encoding { BLOCK_RAW = 0, BLOCK_ZSTD = 1 } block_encoding;

/* The rows of n_tokens tokens within one page, all layers. Its checksums are block.c's business. */
typedef struct block_header {
    uint32_t encoding;
    uint64_t first_token;
    uint32_t n_tokens;
    uint64_t stored_bytes;
    uint8_t raw_digest[DIGEST_BYTES], digest[DIGEST_BYTES];
} block_header;

void ds_file_header_pack(const file_header *header, uint8_t *bytes);
void ds_save_header_pack(const save_header *header, uint8_t *bytes);

/* `name` is the file, for messages. DSV2_ERROR_FORMAT, or DSV2_ERROR_UNSUPPORTED for another version. */
dsv2_status ds_file_header_unpack(const char *name, const uint8_t *bytes, file_header *header);

/* Also that it is the save that has to follow: number `sequence`, from first_token on. */
dsv2_status ds_save_header_unpack(const char *name, const uint8_t *bytes, uint32_t sequence, uint64_t first_token, save_header *header);

/* Zeros are what the file has in place of a save's header until all of the save is on the disk. */
bool ds_is_zero(const uint8_t *bytes, size_t size);

/* The header of this model with this cache. */
file_header ds_file_header_of(const dsv2_model *model, const ds_cache_shape *shape);

/* Bytes of a save's state with its checksum: sampler, biases, logits, tokens. The header's bounds keep it far inside 64 bits. */
uint64_t ds_state_bytes(const save_header *save, uint32_t vocab_size);

/* ---- blocks (block.c) ---- */

/* Bytes of n tokens' rows, all layers. */
size_t ds_block_raw_bytes(const ds_cache_shape *shape, size_t n_tokens);

typedef enum block_verdict { BLOCK_GOOD = 0, BLOCK_DAMAGED, BLOCK_UNREADABLE, BLOCK_OTHER_ROWS } block_verdict;

/* A block on its way to or from a file. */
typedef struct block {
    block_header header;
    uint8_t header_bytes[HEADER_BYTES];
    uint8_t *buffer;       /* page_bytes of the shape in the file */
    const uint8_t *stored; /* header.stored_bytes: in the buffer, or the cache's own page */
    bool wanted;           /* reading: its rows are to be kept, not only checked */
    block_verdict verdict;
} block;

/* What one thread works in. */
typedef struct block_worker {
    void *zstd;            /* ZSTD_CCtx or ZSTD_DCtx */
    uint8_t *raw, *planes; /* page_bytes each; planes NULL for bytes that are no parts of wider numbers */
    float *tile;           /* rows of a page in one layer, where they are converted */
} block_worker;

/* Blocks that threads work on side by side. */
typedef struct block_batch {
    const dsv2_model *model;
    ds_cache_shape shape;  /* of the rows in the file */
    const ds_cache *cache; /* to take rows from; or to put them into, converted if it is of another type */
    int level;
    block *blocks; /* n of them are in use */
    size_t n, capacity;
    block_worker *workers;
    unsigned n_workers;
    uint8_t *memory;
} block_batch;

typedef enum block_batch_use { BATCH_WRITES, BATCH_READS } block_batch_use;

dsv2_status ds_block_batch_init(block_batch *batch, block_batch_use use, const dsv2_model *model, const ds_cache_shape *shape,
                                const ds_cache *cache, int level);
void ds_block_batch_free(block_batch *batch, block_batch_use use);

/* Takes rows first_token to first_token + n_tokens - 1 of each block out of the cache and makes header_bytes and stored of them. */
void ds_block_batch_encode(block_batch *batch);

/* Checks header_bytes and stored of each block; puts the rows of wanted ones into the cache, where they are reserved; sets verdicts. */
void ds_block_batch_decode(block_batch *batch);

void ds_block_header_pack(const block_header *header, uint8_t *bytes);

/* Checks all but checksums: that it is of tokens from first_token on, of one page, not beyond end, no longer than they are raw. */
dsv2_status ds_block_header_unpack(const char *name, const uint8_t *bytes, const ds_cache_shape *shape, uint64_t first_token,
                                   uint64_t end, block_header *header);

/* The checksum that a block of these tokens would have before compression; `work` has room for page_bytes. */
XXH128_hash_t ds_block_raw_digest(const ds_cache *cache, uint64_t first_token, uint32_t n_tokens, uint8_t *work);

/* ---- reading (read.c) ---- */

/* A file or callback that is read once from its beginning. */
typedef struct snapshot_reader {
    const char *name; /* for messages */
    ds_os_file file;   /* a file, */
    dsv2_read_fn read; /* or, where that is none, a callback */
    void *user;
    uint64_t offset; /* bytes read so far */
} snapshot_reader;

/* Reads `size` bytes unless the end comes before: *got says how many. */
dsv2_status ds_reader_some(snapshot_reader *reader, void *data, size_t size, size_t *got);

/* Reads exactly so many. */
dsv2_status ds_reader_all(snapshot_reader *reader, void *data, size_t size);

/* Passes over bytes of a file, which must have them. */
dsv2_status ds_reader_skip(snapshot_reader *reader, uint64_t bytes);

/* Reads up to the alignment of saves; the bytes have to be zero. */
dsv2_status ds_reader_padding(snapshot_reader *reader);

/* The header of the next save; *end: there is none any more. */
dsv2_status ds_reader_save(snapshot_reader *reader, uint32_t sequence, uint64_t first_token, save_header *save, bool *end);

/* The state of a save, checked: tokens are added to content's, the rest replaces what it has. */
dsv2_status ds_reader_state(snapshot_reader *reader, const save_header *save, uint32_t vocab_size, ds_snapshot_content *content);

#endif

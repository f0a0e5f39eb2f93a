/* What a snapshot file consists of, for writing and reading. Private to the room; README.md says what each byte is. */
#ifndef DS_LIB_SNAPSHOT_FORMAT_H
#define DS_LIB_SNAPSHOT_FORMAT_H

#include "snapshot/snapshot.h"

#include <xxhash.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "rows, logits and tokens go to the file as they lie here");

enum {
    SNAPSHOT_VERSION = 2, /* 1, which no release wrote, knew nothing of tokenizers */
    FILE_HEADER_BYTES = 128,
    HEADER_BYTES = 64,  /* of a save and of a frame. Saves are aligned to as many: so the header of a save lies in one
                         * sector of a disk and in one page of memory, and is written whole or not at all */
    CHECKED_BYTES = 48, /* of a header, before its checksum */
    DIGEST_BYTES = 16,
    SAMPLER_BYTES = 72,
};

/* ---- checksums: XXH3-128, the low half first ---- */

void ds_digest_store(XXH128_hash_t digest, uint8_t *bytes);
bool ds_digest_equals(XXH128_hash_t digest, const uint8_t *bytes);

/* ---- headers: written to and read from FILE_HEADER_BYTES or HEADER_BYTES ---- */

typedef struct file_header {
    uint32_t version;
    uint32_t cache_type, n_layers;
    const ds_row_description *row;
    uint32_t widths[DS_MAX_PARTS]; /* of each part of a row */
    uint32_t vocab_size;
    ds_fingerprint fingerprint;
} file_header;

/* One call of save: tokens first_token to n_tokens - 1, and the state after them. */
typedef struct save_header {
    uint32_t number; /* 0, 1, 2, ... */
    bool has_logits;
    uint64_t first_token, n_tokens, n_biases;
} save_header;

typedef enum frame_encoding { FRAME_RAW = 0, FRAME_ZSTD = 1 } frame_encoding;

/* The rows of n_tokens tokens within one page, all layers. Its checksums are frame.c's business. */
typedef struct frame_header {
    bool unknown; /* of a later version: only its checksum can be checked */
    uint32_t encoding;
    uint64_t first_token;
    uint32_t n_tokens;
    uint64_t stored_bytes;
    uint8_t raw_digest[DIGEST_BYTES], digest[DIGEST_BYTES];
} frame_header;

void ds_file_header_write(const file_header *header, uint8_t *bytes);
void ds_save_header_write(const save_header *header, uint8_t *bytes);

/* `name` is the file, for messages. DSV2_ERROR_FORMAT, or DSV2_ERROR_UNSUPPORTED for another version and for what this
 * one does not know in a header that is whole. */
dsv2_status ds_file_header_read(const char *name, const uint8_t *bytes, file_header *header);

/* The same, and checks that the save is the one that has to follow: number `number`, from first_token on. */
dsv2_status ds_save_header_read(const char *name, const uint8_t *bytes, uint32_t number, uint64_t first_token,
                                save_header *header);

/* Zeros are what the file has in place of a save's header until all of the save is on the disk. */
bool ds_is_zero(const uint8_t *bytes, size_t size);

/* The header of this model with this cache. */
file_header ds_file_header_of(const dsv2_model *model, const ds_cache_shape *shape);

/* The shape of the rows in the file. */
dsv2_status ds_file_header_shape(const file_header *header, ds_cache_shape *shape);

/* Bytes of a save's state with its checksum: sampler, biases, logits, tokens. The header's bounds keep it far inside 64
 * bits. */
uint64_t ds_state_bytes(const save_header *save, uint32_t vocab_size);

/* ---- frames (frame.c) ---- */

/* Bytes of n tokens' rows, all layers. */
size_t ds_frame_raw_bytes(const ds_cache_shape *shape, size_t n_tokens);

typedef enum frame_verdict {
    FRAME_GOOD = 0,
    FRAME_DAMAGED,
    FRAME_UNKNOWN,
    FRAME_UNREADABLE,
    FRAME_OTHER_ROWS,     /* than its header says */
    FRAME_OTHER_THAN_OWN, /* other rows than the cache, which they are compared with */
    FRAME_NOT_FINITE,
    FRAME_TOO_LARGE, /* numbers that the cache's type cannot hold, of rows that are to be converted */
} frame_verdict;

/* A frame on its way to or from a file. */
typedef struct frame {
    frame_header header;
    uint8_t header_bytes[HEADER_BYTES];
    uint8_t *buffer;       /* page_bytes of the shape in the file */
    const uint8_t *stored; /* header.stored_bytes: in the buffer, or in the cache's own page */
    bool wanted;           /* reading: the rows are to be kept, not only checked */
    frame_verdict verdict;
} frame;

/* Working memory for one frame. */
typedef struct frame_worker {
    void *zstd;            /* ZSTD_CCtx or ZSTD_DCtx; NULL for BATCH_COMPARES */
    uint8_t *raw, *planes; /* page_bytes each; planes is NULL unless rows are numbers of several bytes */
    float *tile;           /* rows of a page in one layer; NULL unless rows are converted */
} frame_worker;

/* BATCH_COMPARES: frames are held against the rows that a session has. */
typedef enum frame_batch_use { BATCH_WRITES, BATCH_READS, BATCH_COMPARES } frame_batch_use;

/* Frames that threads work on side by side. */
typedef struct frame_batch {
    frame_batch_use use;
    ds_pool *pool;
    const ds_kernels *kernels;
    ds_cache_shape shape;  /* of the rows in the file */
    const ds_cache *cache; /* rows come from there or go there: converted if file and cache differ in type */
    frame *frames;         /* [capacity]; n of them are in use */
    size_t n, capacity;
    frame_worker *workers; /* [n_workers]: one for each thread; with more threads than frames, one for each frame */
    size_t n_workers;
    uint8_t *memory;
} frame_batch;

/* level: zstd's, for BATCH_WRITES. Freed with ds_frame_batch_free, whatever this returns. */
dsv2_status ds_frame_batch_init(frame_batch *batch, frame_batch_use use, ds_pool *pool, const ds_kernels *kernels,
                                const ds_cache_shape *shape, const ds_cache *cache, int level);
void ds_frame_batch_free(frame_batch *batch);

/* Takes the rows of each frame's tokens, first_token and n_tokens in its header, out of the cache: makes header_bytes
 * and stored. */
void ds_frame_batch_encode(frame_batch *batch);

/* Checks header_bytes and stored of each frame, and empties the batch. BATCH_READS: the rows of wanted frames go into
 * the cache, where they are reserved. DSV2_ERROR_FORMAT, _UNSUPPORTED for a frame of a later version, or, for
 * BATCH_COMPARES, _MISMATCH where a frame holds other rows than the cache. `name` is the file, for messages. */
dsv2_status ds_frame_batch_decode(frame_batch *batch, const char *name);

void ds_frame_header_write(const frame_header *header, uint8_t *bytes);

/* Checks all but checksums: that the frame is of tokens from first_token on, of one page, not beyond `end`, and stored
 * in no more bytes than the rows have. */
dsv2_status ds_frame_header_read(const char *name, const uint8_t *bytes, const ds_cache_shape *shape,
                                 uint64_t first_token, uint64_t end, frame_header *header);

/* ---- reading (read.c) ---- */

/* A file or callback that is read once, from its beginning. */
typedef struct snapshot_reader {
    const char *name; /* for messages */
    ds_os_file file;   /* a file, */
    dsv2_read_fn read; /* or, where that is none, a callback, which may fork: */
    void *user;
    ds_calls *calls; /* of the model */
    uint64_t offset; /* bytes read so far */
} snapshot_reader;

/* Reads `size` bytes, or as many as there are: *got says how many. */
dsv2_status ds_reader_some(snapshot_reader *reader, void *data, size_t size, size_t *got);

/* Reads exactly so many. */
dsv2_status ds_reader_all(snapshot_reader *reader, void *data, size_t size);

/* Passes over so many bytes, which the file must have. */
dsv2_status ds_reader_skip(snapshot_reader *reader, uint64_t bytes);

/* Reads up to the alignment of saves; the bytes have to be zero. */
dsv2_status ds_reader_padding(snapshot_reader *reader);

/* The header of the next save; *end: there is none. */
dsv2_status ds_reader_save(snapshot_reader *reader, uint32_t number, uint64_t first_token, save_header *save,
                           bool *end);

/* The state of a save, checked: tokens are added to the content's, the rest replaces what the content has. */
dsv2_status ds_reader_state(snapshot_reader *reader, const save_header *save, uint32_t vocab_size,
                            ds_snapshot_content *content);

/* Reads the frame at token first_token, of a save that ends before token `end`, into *f: header_bytes, header and
 * stored. */
dsv2_status ds_reader_frame(snapshot_reader *reader, const ds_cache_shape *shape, uint64_t first_token, uint64_t end,
                            frame *f);

/* Passes over the frames of a save and the zeros behind them. Headers are checked but for their checksums. */
dsv2_status ds_reader_pass_frames(snapshot_reader *reader, const ds_cache_shape *shape, const save_header *save);

#endif

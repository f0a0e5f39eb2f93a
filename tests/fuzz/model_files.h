/* A model's files, made from bytes of a fuzzer's input: a valid tiny model of the shape that the first bytes describe,
 * with the changes that the other bytes describe laid over. */
#ifndef DS_TESTS_MODEL_FILES_H
#define DS_TESTS_MODEL_FILES_H

#include "stream.h"

typedef enum model_kind { MODEL_FOLDER, MODEL_GGUF, MODEL_PACK } model_kind;

/* Takes a shape and changes from the input and writes the files. Returns the path to open, which stays the same buffer
 * until the next call. Ends the program if the machine fails. */
const char *model_files_make(model_kind kind, stream *in);

/* A folder for temporary files, deleted at the end of the program. */
const char *temporary_folder(void);

#endif

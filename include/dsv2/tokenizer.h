/* libdsv2: text to token ids and back.
 *
 * Byte-level BPE as the checkpoint's tokenizer.json (or GGUF vocabulary) describes it. Token ids equal those of Hugging
 * Face's tokenizers for the same file. Text is bytes: any bytes encode, invalid UTF-8 included, and decode to
 * themselves. A tokenizer never changes after it is opened; any number of threads may use it.
 *
 * Special tokens are those that the file marks as special, and all added tokens spelled <|...|> or <｜...｜>: DeepSeek's
 * files leave <｜User｜> and others unmarked, and a user's text must not become such a token. Other added tokens are part
 * of the text wherever the text spells them, as in Hugging Face's library. DeepSeek-V2's vocabulary has no tokens for
 * 13 bytes that UTF-8 never uses: each of these bytes takes two tokens, which give the byte only if they are decoded in
 * one call.
 *
 * An added token has the id that the file gives it. Hugging Face's library numbers the added tokens anew, in the file's
 * order behind the vocabulary, where the file's ids have holes or another order: ids of such a file differ.
 *
 * Functions that return a sequence take a buffer and its capacity, and store the whole length. Capacity 0 asks for the
 * length alone: the buffer may be NULL, and the status is DSV2_OK. Any other capacity that is too small gives
 * DSV2_ERROR_BUFFER, and nothing is written to the buffer.
 */
#ifndef DSV2_TOKENIZER_H
#define DSV2_TOKENIZER_H

#include <dsv2/model.h>

DSV2_BEGIN_DECLS

typedef struct dsv2_tokenizer dsv2_tokenizer;

/* Opens a tokenizer alone, without weights. `path` (UTF-8) is a tokenizer.json, a folder that holds one, a GGUF or a
 * pack. The caller closes *tokenizer. Any thread.
 * Returns DSV2_OK, DSV2_ERROR_ARGUMENT, _MEMORY, _IO, _FORMAT or _UNSUPPORTED (a normalizer, pre-tokenizer or model of
 * a kind that is not byte-level BPE; the message names it). */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_tokenizer_open(const char *path, dsv2_tokenizer **tokenizer);

/* Closes a tokenizer that dsv2_tokenizer_open opened, never a model's own. NULL is allowed. Any thread; no other call
 * may use the handle at the time or later. */
DSV2_API void dsv2_tokenizer_close(dsv2_tokenizer *tokenizer);

/* The model's own tokenizer. The model owns the handle, which is valid as long as the model is. NULL if the checkpoint
 * has no tokenizer or one that this library cannot use (a remark said so when the model was opened), or if model is
 * NULL: dsv2_last_error then says why. Any thread. */
DSV2_API const dsv2_tokenizer *dsv2_model_tokenizer(const dsv2_model *model);

typedef enum dsv2_encode_flags {
    DSV2_ENCODE_BOS = 1,     /* begin with the beginning-of-sequence token, if the tokenizer has one */
    DSV2_ENCODE_SPECIAL = 2  /* text that spells a special token becomes that token; only for text that the host wrote.
                              * Without this flag such text is encoded as the plain characters that it is made of,
                              * and an added token that is spelled within it is not looked for. */
} dsv2_encode_flags;

/* Encodes `size` bytes at `text` (NULL only if size is 0; no terminator needed, NUL bytes are text).
 *   flags             0, or dsv2_encode_flags or-ed
 *   tokens, capacity  the caller's buffer, in tokens; a capacity of 2 * size + 1 is always enough
 *   n_tokens          receives the number of tokens, with DSV2_OK and DSV2_ERROR_BUFFER
 * Any thread. Returns DSV2_OK, DSV2_ERROR_ARGUMENT (also for 2 GiB of text and more), _MEMORY, _BUFFER or _UNSUPPORTED
 * (an expression of the file would take too many steps on this text; DeepSeek's never do). */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_tokenizer_encode(const dsv2_tokenizer *tokenizer, const char *text,
                                                             size_t size, uint32_t flags, int32_t *tokens,
                                                             size_t capacity, size_t *n_tokens);

/* dsv2_tokenizer_encode for long texts, with a progress callback (<dsv2/model.h>; DSV2_PHASE_ENCODE), which may cancel.
 * A host whose other thread is to cancel lets the callback look at a flag of its own. A text takes time in proportion
 * to its size; the callback is called every few ten thousand bytes.
 * Any thread. Returns as dsv2_tokenizer_encode, or DSV2_ERROR_CANCELLED, and then has written nothing. */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_tokenizer_encode_watched(const dsv2_tokenizer *tokenizer, const char *text,
                                                                     size_t size, uint32_t flags,
                                                                     dsv2_progress_fn progress, void *progress_user,
                                                                     int32_t *tokens, size_t capacity,
                                                                     size_t *n_tokens);

typedef enum dsv2_decode_flags {
    DSV2_DECODE_SPECIAL = 1 /* special tokens give their spelling; without this flag they give no bytes */
} dsv2_decode_flags;

/* Decodes tokens to bytes, without a terminator. A token's bytes may be part of a UTF-8 character: see
 * dsv2_utf8_complete for streaming. An id behind the tokenizer's vocabulary gives no bytes: models have more rows than
 * their tokenizers have tokens, and may draw one.
 *   flags           0, or dsv2_decode_flags or-ed
 *   text, capacity  the caller's buffer, in bytes
 *   size            receives the number of bytes, with DSV2_OK and DSV2_ERROR_BUFFER
 * Any thread. Returns DSV2_OK, DSV2_ERROR_ARGUMENT (also for an id below 0 or of 2^20 and more) or _BUFFER. */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_tokenizer_decode(const dsv2_tokenizer *tokenizer, const int32_t *tokens,
                                                             size_t n_tokens, uint32_t flags, char *text,
                                                             size_t capacity, size_t *size);

/* The bytes of one token: *text (owned by the tokenizer, not terminated) and *size. Special tokens give their spelling;
 * an id that the vocabulary leaves empty, or that lies behind it, gives size 0. Any thread. Returns DSV2_OK or
 * DSV2_ERROR_ARGUMENT. */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_token_text(const dsv2_tokenizer *tokenizer, int32_t token,
                                                       const char **text, size_t *size);

/* For streaming: how many of the `size` bytes at `text` can be shown now, so that no UTF-8 character is cut. Bytes that
 * can never become valid count as complete. The host keeps the rest (3 bytes at most) and puts it before what comes
 * next. Any thread; cannot fail. */
DSV2_API size_t dsv2_utf8_complete(const char *text, size_t size);

/* Facts about a tokenizer. Set struct_size before the call. */
typedef struct dsv2_tokenizer_info {
    size_t struct_size;
    uint32_t vocab_size;   /* one more than the largest id */
    uint32_t n_merges;
    uint32_t n_special;
    int32_t bos_token_id;  /* -1: none, here and below */
    int32_t eos_token_id;
    int32_t fim_begin_id;  /* fill in the middle */
    int32_t fim_hole_id;
    int32_t fim_end_id;
    char chat_form[16];    /* "v2" (User: and Assistant: as text), "v2.5" (as tokens), "template" (another template) or
                            * "" (none known, or a template that cannot be used: dsv2_chat_encode says why) */
} dsv2_tokenizer_info;

/* Fills *info. Any thread. Returns DSV2_OK or DSV2_ERROR_ARGUMENT. */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_tokenizer_get_info(const dsv2_tokenizer *tokenizer,
                                                               dsv2_tokenizer_info *info);

/* Stores in *token the id of the token that the `size` bytes at `text` spell exactly, special tokens included; -1 if
 * there is none. Any thread. Returns DSV2_OK or DSV2_ERROR_ARGUMENT. */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_tokenizer_find(const dsv2_tokenizer *tokenizer, const char *text,
                                                           size_t size, int32_t *token);

/* One message of a conversation. */
typedef struct dsv2_message {
    const char *role;    /* "system", "user", "assistant", or another that the chat template knows */
    const char *content; /* UTF-8 bytes; never becomes a special token, whatever it spells */
    size_t content_size; /* bytes */
} dsv2_message;

typedef enum dsv2_chat_flags {
    DSV2_CHAT_OPEN = 1,    /* the last message is an assistant's that goes on: the prompt ends with its text. Refused
                            * with _UNSUPPORTED where the template does not write that text as it is, but for white
                            * space in front; _ARGUMENT if the message has tool calls */
    DSV2_CHAT_UNCLOSED = 2 /* message first - 1 is an assistant's that was fed without the token that ended it: the ids
                            * begin with what the template writes behind its text. Refused with _UNSUPPORTED where the
                            * template does not write that reply once; _ARGUMENT if the message has tool calls */
} dsv2_chat_flags;

/* A conversation to be written as a prompt. Set struct_size; zeros are the defaults. */
typedef struct dsv2_chat {
    size_t struct_size;
    const dsv2_message *messages; /* [n], oldest first */
    size_t n;
    size_t first;                 /* messages before this index count as fed already; see dsv2_chat_encode */
    uint32_t flags;               /* dsv2_chat_flags or-ed */
    const char *messages_json;    /* instead of `messages` (then NULL, and n is 0): a list of messages as JSON, in the
                                   * form of OpenAI's interface, for what dsv2_message cannot say: tool calls and their
                                   * results, texts in parts, reasoning */
    const char *tools;            /* NULL, or a list of tools as JSON, in the same form */
    const char *variables;        /* NULL, or an object of JSON with further variables of the template, for example
                                   * {"thinking": true}; add_generation_prompt, if it is there, goes before the rule of
                                   * dsv2_chat_encode */
    int64_t now;                  /* for templates that write the date: seconds since 1970 as UTC; 0: the clock */
} dsv2_chat;

/* The prompt that makes the model write the next message, in the words of the checkpoint's own chat template:
 * chat_template.jinja, else chat_template.json, else tokenizer_config.json, else a GGUF's. Templates are written in
 * Jinja. The library knows the part of Jinja that chat templates use, has bounds on steps and memory, and refuses what
 * it does not know instead of writing a nearly right prompt. A checkpoint without a template gets its family's form,
 * which knows "system", "user" and "assistant": V2's "User: {u}\n\nAssistant: {a}<EOS>...Assistant:", or V2.5's if the
 * vocabulary has the User and Assistant tokens.
 *   messages, n       the conversation, oldest first. Which roles may follow one another is the template's affair. The
 *                     prompt ends with the mark after which the model replies, unless the last message is an
 *                     assistant's.
 *   first             messages before this index count as fed already, with that mark behind them or, behind an
 *                     assistant's, with its EOS. Only the ids after them are returned (0: all), so that a conversation
 *                     goes on without encoding its past again.
 *   tokens, capacity  the caller's buffer, in tokens
 *   n_tokens          receives the number of tokens, with DSV2_OK and DSV2_ERROR_BUFFER
 * Any thread. Returns DSV2_OK, DSV2_ERROR_ARGUMENT (also if the template refuses these messages; the message says the
 * template's reason), _MEMORY, _BUFFER or _UNSUPPORTED (as dsv2_tokenizer_encode; the template is outside the known
 * part of Jinja; the template writes the messages before `first` otherwise once others follow; no end-of-sequence token
 * is known, which a family's form needs for an assistant's message). */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_chat_encode(const dsv2_tokenizer *tokenizer, const dsv2_message *messages,
                                                        size_t n, size_t first, int32_t *tokens, size_t capacity,
                                                        size_t *n_tokens);

/* As dsv2_chat_encode, for conversations with tools, parts, open replies and variables of the template. The structure
 * and what it points to are borrowed for the call. */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_chat_prompt(const dsv2_tokenizer *tokenizer, const dsv2_chat *chat,
                                                        int32_t *tokens, size_t capacity, size_t *n_tokens);

/* The text of the checkpoint's chat template: *text (owned by the tokenizer, not terminated) and *size; size 0: it has
 * none. Any thread. Returns DSV2_OK or DSV2_ERROR_ARGUMENT. */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_chat_template(const dsv2_tokenizer *tokenizer, const char **text,
                                                          size_t *size);

/* The prompt for filling in between a prefix and a suffix: BOS <fim begin> prefix <fim hole> suffix <fim end>. Sizes
 * are in bytes; tokens, capacity and n_tokens are as in dsv2_chat_encode.
 * Any thread. Returns DSV2_OK, DSV2_ERROR_ARGUMENT, _MEMORY, _BUFFER or _UNSUPPORTED (as dsv2_tokenizer_encode; also if
 * the vocabulary has no such tokens). */
DSV2_API DSV2_CHECK_RESULT dsv2_status dsv2_fim_encode(const dsv2_tokenizer *tokenizer, const char *prefix,
                                                       size_t prefix_size, const char *suffix, size_t suffix_size,
                                                       int32_t *tokens, size_t capacity, size_t *n_tokens);

DSV2_END_DECLS
#endif

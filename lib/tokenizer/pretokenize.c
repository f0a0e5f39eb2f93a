/* The pre-tokenizer: a list of expressions, the stages. Each isolates its matches in the pieces that the stage before
 * left; lookaround does not see beyond a piece. Every published byte-level pre-tokenizer can be written so: Split with
 * "Isolated", Digits, ByteLevel's own expression. */
#include "tokenizer/parts.h"

#include <string.h>
#include <xxhash.h>

#define DIGIT "\\p{N}"

static const char *const deepseek_llm[] = {
    "[\\r\\n]",
    "\\s?[A-Za-z\\x{b5}\\x{c0}-\\x{d6}\\x{d8}-\\x{f6}\\x{f8}-\\x{1ba}\\x{1bc}-\\x{1bf}\\x{1c4}-\\x{293}\\x{295}-"
    "\\x{2af}\\x{370}-\\x{373}\\x{376}\\x{377}\\x{37b}-\\x{37d}\\x{37f}\\x{386}\\x{388}-\\x{38a}\\x{38c}\\x{38e}-"
    "\\x{3a1}\\x{3a3}-\\x{3f5}\\x{3f7}-\\x{481}\\x{48a}-\\x{52f}\\x{531}-\\x{556}\\x{10a0}-\\x{10c5}\\x{13a0}-"
    "\\x{13f5}\\x{13f8}-\\x{13fd}\\x{1c90}-\\x{1cba}\\x{1cbd}-\\x{1cbf}\\x{1d00}-\\x{1d2b}\\x{1d6b}-\\x{1d77}"
    "\\x{1d79}-\\x{1d9a}\\x{1e00}-\\x{1f15}\\x{1f18}-\\x{1f1d}\\x{1f20}-\\x{1f45}\\x{1f48}-\\x{1f4d}\\x{1f50}-"
    "\\x{1f57}\\x{1f59}\\x{1f5b}\\x{1f5d}\\x{1f5f}-\\x{1f7d}\\x{1f80}-\\x{1fb4}\\x{1fb6}-\\x{1fbc}\\x{1fbe}\\x{1fc2}-"
    "\\x{1fc4}\\x{1fc6}-\\x{1fcc}\\x{1fd0}-\\x{1fd3}\\x{1fd6}-\\x{1fdb}\\x{1fe0}-\\x{1fec}\\x{1ff2}-\\x{1ff4}"
    "\\x{1ff6}-\\x{1ffc}\\x{2102}\\x{2107}\\x{210a}-\\x{2113}\\x{2115}\\x{2119}-\\x{211d}\\x{2124}\\x{2126}\\x{2128}"
    "\\x{212a}-\\x{212d}\\x{212f}-\\x{2134}\\x{2139}\\x{213c}-\\x{213f}\\x{2145}-\\x{2149}\\x{214e}\\x{2183}\\x{2184}"
    "\\x{2c00}-\\x{2c7b}\\x{2c7e}-\\x{2ce4}\\x{2ceb}-\\x{2cee}\\x{2cf2}\\x{2cf3}\\x{a640}-\\x{a66d}\\x{a680}-"
    "\\x{a69b}\\x{a722}-\\x{a76f}\\x{a771}-\\x{a787}\\x{a78b}-\\x{a78e}\\x{ab70}-\\x{abbf}\\x{fb00}-\\x{fb06}"
    "\\x{fb13}-\\x{fb17}\\x{ff21}-\\x{ff3a}\\x{ff41}-\\x{ff5a}\\x{10400}-\\x{1044f}\\x{104b0}-\\x{104d3}\\x{104d8}-"
    "\\x{104fb}\\x{10c80}-\\x{10cb2}\\x{10cc0}-\\x{10cf2}\\x{118a0}-\\x{118df}\\x{1e900}-\\x{1e943}]+",
    "\\s?[!-/:-~\\x{ff01}-\\x{ff0f}\\x{ff1a}-\\x{ff5e}\\x{2018}-\\x{201f}\\x{3000}-\\x{3002}]+",
    "\\s+$",
    "[\\x{4e00}-\\x{9fa5}\\x{800}-\\x{4e00}\\x{ac00}-\\x{d7ff}]+",
    DIGIT,
    NULL,
};
static const char *const deepseek_coder[] = {
    "[\\r\\n]",
    "\\s?\\p{L}+",
    "\\s?\\p{P}+",
    "[\\x{4e00}-\\x{9fa5}\\x{800}-\\x{4e00}\\x{ac00}-\\x{d7ff}]+",
    DIGIT,
    NULL,
};
static const char *const deepseek_v3[] = {
    "\\p{N}{1,3}",
    "[\\x{4e00}-\\x{9fa5}\\x{3040}-\\x{309f}\\x{30a0}-\\x{30ff}]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|"
    " ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
    NULL,
};

static const char *const gpt2[] = {
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
    NULL,
};

static const struct {
    const char *name;
    const char *const *expressions;
} known[] = {
    {"deepseek-llm", deepseek_llm},
    {"deepseek-coder", deepseek_coder},
    {"deepseek-v3", deepseek_v3},
    {"deepseek-v3.1", deepseek_v3},
    {"gpt-2", gpt2},
};

/* A bound on the memory of matching. */
enum { HEAP_KIB = 64 << 10 };

/* The work that expressions may do on one text, in bytes that are looked at and in PCRE2's own steps. Published
 * expressions need some 10 a byte and stage. */
enum { WORK = 1 << 22, WORK_A_BYTE = 24, WORK_A_MATCH = 4 };

/* How many of a heavy expression's counted steps are one of these. */
enum { STEPS_A_WORK = 4 };

/* How many bytes are looked at in one go: see search. */
enum { WINDOW = 1024 };

/* PCRE2's steps that are allowed at first, which are not counted. */
enum { STEPS = 1024, STEPS_A_BYTE = 4 };

/* A bound on groups in one another. Published expressions have 2 levels. */
enum { MAX_NESTED = 16 };

/* Calls that take the lock of PCRE2's memory for compiled matchers. A thread may have held the lock when the host
 * forked: then the child interprets its expressions, and leaves the matchers that it got. */
static _Atomic uint64_t matchers_word;
static ds_calls matchers = DS_CALLS_OF_PROCESS(matchers_word);

/* Compiles a matcher for an expression. Without one, e.g. where no memory can be made executable, matching is
 * interpreted. */
static void add_matcher(pcre2_code *code)
{
    if (!ds_calls_try(&matchers))
        return;
    (void)pcre2_jit_compile(code, PCRE2_JIT_COMPLETE | PCRE2_JIT_PARTIAL_HARD);
    ds_calls_end(&matchers);
}

void ds_free_stages(dsv2_tokenizer *t)
{
    bool locks = ds_calls_try(&matchers);
    for (uint32_t i = 0; i < t->n_stages; i++) {
        size_t matcher = 0; /* bytes */
        (void)pcre2_pattern_info(t->stages[i], PCRE2_INFO_JITSIZE, &matcher);
        if (locks || matcher == 0)
            pcre2_code_free(t->stages[i]);
    }
    if (locks)
        ds_calls_end(&matchers);
}

static dsv2_status compile(const dsv2_tokenizer *t, const char *pattern, size_t size, ds_text original, bool counted,
                           pcre2_code **code)
{
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    if (context == NULL)
        return ds_fail_memory("compiling an expression", 0);
    pcre2_set_newline(context, PCRE2_NEWLINE_LF); /* the default depends on how PCRE2 was built */
    pcre2_set_bsr(context, PCRE2_BSR_UNICODE);
    /* PCRE2 takes 1 KiB of stack for each level, beside 25 KiB. */
    pcre2_set_parens_nest_limit(context, MAX_NESTED);
    int error;
    PCRE2_SIZE at;
    /* In Ruby's syntax ^ and $ always match at line ends. */
    *code = pcre2_compile((PCRE2_SPTR)pattern, size,
                          PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NO_AUTO_CAPTURE | PCRE2_NEVER_BACKSLASH_C |
                              (counted ? PCRE2_AUTO_CALLOUT : 0),
                          &error, &at, context);
    pcre2_compile_context_free(context);
    if (*code != NULL) {
        add_matcher(*code);
        return DSV2_OK;
    }
    if (error == PCRE2_ERROR_NOMEMORY || error == PCRE2_ERROR_HEAP_FAILED)
        return ds_fail_memory("compiling an expression", size);
    char words[128] = "";
    pcre2_get_error_message(error, (PCRE2_UCHAR *)words, sizeof words);
    return ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: pre_tokenizer: expression \"%.*s\": %s", t->path,
                   ds_quoted(original.data, original.size), original.data, words);
}

dsv2_status ds_add_split(dsv2_tokenizer *t, const char *pattern, size_t size)
{
    if (t->n_stages == DS_MAX_STAGES)
        return ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: pre_tokenizer has more than %d expressions", t->path,
                       DS_MAX_STAGES);
    /* DeepSeek's \s+$ would look from each of a million spaces to the last. Its matches begin at the first. */
    static const char trailing[] = "\\s+$", from_begin[] = "(?<!\\s)\\s+$";
    bool is_trailing = size == sizeof trailing - 1 && memcmp(pattern, trailing, size) == 0;
    ds_text original = {pattern, size}, used = is_trailing ? (ds_text){from_begin, sizeof from_begin - 1} : original;
    char *translated;
    size_t translated_size;
    uint32_t *weight = &t->weights[t->n_stages];
    dsv2_status status = ds_translate_pattern(t->path, used.data, used.size, &translated, &translated_size, weight);
    if (status != DSV2_OK)
        return status;
    status = compile(t, translated, translated_size, original, *weight > 0, &t->stages[t->n_stages]);
    ds_free(translated);
    if (status == DSV2_OK) {
        t->n_stages++;
        t->stages_digest = XXH3_64bits_withSeed(pattern, size, t->stages_digest);
    }
    return status;
}

static dsv2_status add_all(dsv2_tokenizer *t, const char *const *expressions)
{
    dsv2_status status = DSV2_OK;
    for (; *expressions != NULL && status == DSV2_OK; expressions++)
        status = ds_add_split(t, *expressions, strlen(*expressions));
    return status;
}

dsv2_status ds_add_gpt2_stage(dsv2_tokenizer *t) { return add_all(t, gpt2); }

dsv2_status ds_add_named_stages(dsv2_tokenizer *t, ds_text name)
{
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (name.size == strlen(known[i].name) && memcmp(name.data, known[i].name, name.size) == 0)
            return add_all(t, known[i].expressions);
    return ds_fail(DSV2_ERROR_UNSUPPORTED,
                   "%s: pre-tokenizer \"%.*s\" is not known, expected deepseek-llm, deepseek-coder, deepseek-v3 or "
                   "gpt-2", t->path, ds_quoted(name.data, name.size), name.size > 0 ? name.data : "");
}

static dsv2_status fail_matching(const ds_encoder *e, size_t stage, size_t size, const char *why)
{
    return ds_fail(DSV2_ERROR_UNSUPPORTED,
                   "%s: pre_tokenizer: expression %zu cannot be matched in a text of %zu bytes: %s",
                   e->tokenizer->path, stage, size, why);
}

/* Takes work from the text's budget. */
static dsv2_status spend(ds_encoder *e, size_t stage, uint64_t work)
{
    if (work > e->work_left)
        return fail_matching(e, stage, e->size, "it takes too many steps");
    e->work_left -= work;
    return ds_count_work(e, work);
}

/* Counts for a heavy expression. PCRE2 calls this before each item that it tries. */
static int count(pcre2_callout_block *block, void *encoder)
{
    enum { OFTEN = 1024 };
    ds_encoder *e = encoder;
    size_t at = block->current_position, from = e->matched_to;
    e->matched_to = at;
    e->counted += (at > from ? at - from + 1 : 1) * e->tokenizer->weights[e->matched_stage];
    if (e->counted < OFTEN)
        return 0;
    e->counted_status = spend(e, e->matched_stage, e->counted / STEPS_A_WORK);
    e->counted = 0;
    return e->counted_status == DSV2_OK ? 0 : PCRE2_ERROR_CALLOUT;
}

static dsv2_status prepare(ds_encoder *e)
{
    if (e->match_data != NULL && e->match_context != NULL)
        return DSV2_OK;
    e->match_data = pcre2_match_data_create(1, NULL);
    e->match_context = pcre2_match_context_create(NULL);
    if (e->match_data == NULL || e->match_context == NULL)
        return ds_fail_memory("splitting a text", 0);
    pcre2_set_heap_limit(e->match_context, HEAP_KIB);
    pcre2_set_callout(e->match_context, count, e);
    e->work_left = WORK + WORK_A_BYTE * (uint64_t)e->size * e->tokenizer->n_stages;
    return DSV2_OK;
}

void ds_encoder_free(ds_encoder *e)
{
    pcre2_match_context_free(e->match_context);
    pcre2_match_data_free(e->match_data);
    ds_free(e->added[1]);
    ds_free(e->added[0]);
    ds_free(e->heap);
    ds_free(e->symbols);
}

/* Matches in text[at..end], of which the rest of the text is kept secret: *rc is PCRE2_ERROR_PARTIAL if the rest may
 * decide. `whole`: there is no rest. `options`: 0, or PCRE2_ANCHORED, for which PCRE2 has no compiled form. */
static dsv2_status match(ds_encoder *e, size_t stage, uint32_t options, const char *text, size_t at, size_t end,
                         bool whole, int *rc)
{
    const pcre2_code *code = e->tokenizer->stages[stage];
    /* Valid UTF-8 was checked before: another check would read the whole piece again for every match. */
    options |= PCRE2_NO_UTF_CHECK | (whole ? 0 : PCRE2_PARTIAL_HARD);
    dsv2_status status = DSV2_OK;
    e->matched_stage = stage;
    e->matched_to = at;
    for (uint64_t steps = STEPS + STEPS_A_BYTE * (uint64_t)(end - at); status == DSV2_OK; steps *= 8) {
        pcre2_set_match_limit(e->match_context, steps < UINT32_MAX ? (uint32_t)steps : UINT32_MAX);
        *rc = pcre2_match(code, (PCRE2_SPTR)text, end, at, options, e->match_data, e->match_context);
        if (*rc == PCRE2_ERROR_JIT_STACKLIMIT)
            *rc = pcre2_match(code, (PCRE2_SPTR)text, end, at, options | PCRE2_NO_JIT, e->match_data,
                              e->match_context);
        if (*rc != PCRE2_ERROR_MATCHLIMIT)
            break;
        status = spend(e, stage, steps);
    }
    if (*rc == PCRE2_ERROR_CALLOUT)
        return e->counted_status;
    if (status != DSV2_OK || *rc >= 0 || *rc == PCRE2_ERROR_NOMATCH || *rc == PCRE2_ERROR_PARTIAL)
        return status;
    if (*rc == PCRE2_ERROR_NOMEMORY)
        return ds_fail_memory("matching an expression", 0);
    char words[128] = "";
    pcre2_get_error_message(*rc, (PCRE2_UCHAR *)words, sizeof words);
    return fail_matching(e, stage, end, words);
}

/* A place at most `room` bytes on, between characters. */
static size_t window_end(const char *text, size_t size, size_t at, size_t room)
{
    if (size - at <= room)
        return size;
    size_t end = at + room;
    while (((uint8_t)text[end] & 0xc0) == 0x80)
        end--;
    return end;
}

/* Whether a match does not depend on what is behind the window. */
static bool is_certain(const ds_encoder *e, int rc, size_t end, bool whole)
{
    return rc >= 0 && (whole || pcre2_get_ovector_pointer(e->match_data)[1] < end);
}

/* Looks for a match that begins at this very place, in windows that grow. */
static dsv2_status match_here(ds_encoder *e, size_t stage, const char *text, size_t size, size_t at, bool *found)
{
    *found = false;
    for (size_t room = 4 * WINDOW;; room *= 4) {
        size_t end = window_end(text, size, at, room);
        int rc;
        dsv2_status status = spend(e, stage, end - at);
        if (status == DSV2_OK)
            status = match(e, stage, PCRE2_ANCHORED, text, at, end, end == size, &rc);
        if (status != DSV2_OK || rc == PCRE2_ERROR_NOMATCH)
            return status;
        if (is_certain(e, rc, end, end == size)) {
            *found = true;
            return DSV2_OK;
        }
    }
}

/* The first match at or after `at`; *found false if there is none.
 *
 * A file's expression may look at all of a text for every match, so that the time is quadratic, and PCRE2 does not tell
 * how far it looked. So PCRE2 is given a window of the text, and says if the text behind may decide: then a larger
 * window is tried for the place where it may, and the window's bytes are taken from the text's budget. */
static dsv2_status search(ds_encoder *e, size_t stage, const char *text, size_t size, size_t at, bool *found,
                          size_t *begin, size_t *end)
{
    const PCRE2_SIZE *offsets = pcre2_get_ovector_pointer(e->match_data);
    *found = false;
    for (;;) {
        size_t limit = window_end(text, size, at, WINDOW);
        bool whole = limit == size;
        int rc;
        dsv2_status status = match(e, stage, 0, text, at, limit, whole, &rc);
        if (status != DSV2_OK)
            return status;
        *found = is_certain(e, rc, limit, whole);
        size_t looked = (rc == PCRE2_ERROR_NOMATCH ? limit : *found ? offsets[1] : offsets[0]) - at;
        if ((status = spend(e, stage, WORK_A_MATCH + looked)) != DSV2_OK)
            return status;
        if (rc == PCRE2_ERROR_NOMATCH) {
            if (whole)
                return DSV2_OK;
            at = limit;
            continue;
        }
        at = offsets[0];
        if (!*found && (status = match_here(e, stage, text, size, at, found)) != DSV2_OK)
            return status;
        if (*found) {
            *begin = offsets[0];
            *end = offsets[1];
            return DSV2_OK;
        }
        if (at == size)
            return DSV2_OK;
        at += ds_utf8_length(text + at, size - at);
    }
}

/* Splits text by a stage and hands the pieces to the next stage, those of the last stage to merging. */
static dsv2_status split(ds_encoder *e, size_t stage, const char *text, size_t size)
{
    if (stage == e->tokenizer->n_stages)
        return ds_encode_piece(e, text, size);
    size_t done = 0, at = 0, last_end = SIZE_MAX;
    dsv2_status status = DSV2_OK;
    while (at <= size && status == DSV2_OK) {
        bool found;
        size_t begin = 0, end = 0;
        status = search(e, stage, text, size, at, &found, &begin, &end);
        if (status != DSV2_OK || !found)
            break;
        if (begin == end && end == last_end) {
            /* An empty match right behind a match: the search goes on one character later, as Hugging Face's does. */
            at = last_end + (last_end < size ? ds_utf8_length(text + last_end, size - last_end) : 1);
            continue;
        }
        if (begin > done)
            status = split(e, stage + 1, text + done, begin - done);
        if (end > begin && status == DSV2_OK)
            status = split(e, stage + 1, text + begin, end - begin);
        done = at = last_end = end;
    }
    if (status == DSV2_OK && done < size)
        status = split(e, stage + 1, text + done, size - done);
    return status;
}

dsv2_status ds_encode_valid(ds_encoder *e, const char *text, size_t size)
{
    dsv2_status status = prepare(e);
    return status == DSV2_OK ? split(e, 0, text, size) : status;
}

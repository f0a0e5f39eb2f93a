/* Byte-pair merging of one piece. Of all neighbours that have a merge, those of lowest rank are merged, the leftmost of
 * equals first, until no neighbours have a merge.
 * Most pieces are words that are tokens as they stand: one look-up finds these. Short pieces are merged in place. Long
 * pieces (a megabyte without a space is one piece) are merged in a list with a heap of candidates, in O(n log n). */
#include "tokenizer/parts.h"

#include <string.h>

enum { SHORT = 48 }; /* bytes of a piece up to which looking through all neighbours is quicker than keeping a heap */

dsv2_status ds_push(ds_ids *out, int32_t id)
{
    if (out->n == out->capacity && !ds_grow(&out->ids, &out->capacity, out->n + 1, sizeof *out->ids))
        return ds_fail_memory("token ids", (out->n + 1) * sizeof *out->ids);
    out->ids[out->n++] = id;
    return DSV2_OK;
}

/* Merges n ids in place; returns how many are left. */
static size_t merge_short(const dsv2_tokenizer *t, uint32_t *ids, size_t n)
{
    const ds_merge *merges[SHORT]; /* of ids i and i + 1; NULL: none */
    for (size_t i = 0; i + 1 < n; i++)
        merges[i] = ds_find_merge(t, ids[i], ids[i + 1]);
    while (n > 1) {
        size_t best = n;
        uint32_t rank = UINT32_MAX;
        for (size_t i = 0; i + 1 < n; i++)
            if (merges[i] != NULL && merges[i]->rank < rank) {
                rank = merges[i]->rank;
                best = i;
            }
        if (best == n)
            break;
        ids[best] = merges[best]->id;
        memmove(&ids[best + 1], &ids[best + 2], (n - best - 2) * sizeof *ids);
        if (n - best > 2)
            memmove(&merges[best + 1], &merges[best + 2], (n - best - 3) * sizeof(ds_merge *));
        n--;
        if (best > 0)
            merges[best - 1] = ds_find_merge(t, ids[best - 1], ids[best]);
        if (best + 1 < n)
            merges[best] = ds_find_merge(t, ids[best], ids[best + 1]);
    }
    return n;
}

/* A heap of rank << 32 | position of a symbol, the least on top. */
static void heap_up(uint64_t *heap, size_t at)
{
    uint64_t entry = heap[at];
    for (; at > 0 && heap[(at - 1) / 2] > entry; at = (at - 1) / 2)
        heap[at] = heap[(at - 1) / 2];
    heap[at] = entry;
}

static void heap_down(uint64_t *heap, size_t n, size_t at)
{
    uint64_t entry = heap[at];
    for (size_t child; (child = 2 * at + 1) < n; at = child) {
        child += child + 1 < n && heap[child + 1] < heap[child];
        if (heap[child] >= entry)
            break;
        heap[at] = heap[child];
    }
    heap[at] = entry;
}

/* Looks up the merge of a symbol with the next one. */
static void find_next_merge(const dsv2_tokenizer *t, ds_symbol *symbols, int32_t at)
{
    ds_symbol *symbol = &symbols[at];
    const ds_merge *merge = symbol->next < 0 ? NULL : ds_find_merge(t, symbol->id, symbols[symbol->next].id);
    symbol->rank = merge == NULL ? UINT32_MAX : merge->rank;
    symbol->merged = merge == NULL ? 0 : merge->id;
}

static uint64_t candidate(const ds_symbol *symbols,
                          int32_t at) { return (uint64_t)symbols[at].rank << 32 | (uint32_t)at; }

/* Counts step i of many. */
static inline dsv2_status count_step(ds_encoder *e, size_t i)
{
    enum { STEPS = 1024 };
    return i % STEPS == STEPS - 1 ? ds_count_work(e, STEPS) : DSV2_OK;
}

static dsv2_status merge_long(ds_encoder *e, const char *text, size_t size)
{
    const dsv2_tokenizer *t = e->tokenizer;
    /* The heap begins with fewer than `size` entries, and each of fewer than `size` merges takes one out and puts at
     * most two in: never more than 2 * size. */
    if (!ds_grow(&e->symbols, &e->symbols_capacity, size, sizeof *e->symbols) ||
        !ds_grow(&e->heap, &e->heap_capacity, 2 * size, sizeof *e->heap))
        return ds_fail_memory("merging a long piece", size * (sizeof *e->symbols + 2 * sizeof *e->heap));
    ds_symbol *symbols = e->symbols;
    uint64_t *heap = e->heap;
    size_t n = 0;
    dsv2_status status = DSV2_OK;
    for (size_t i = 0; i < size && (status = count_step(e, i)) == DSV2_OK; i++) {
        symbols[i].id = (uint32_t)t->letter[(uint8_t)text[i]];
        symbols[i].previous = (int32_t)i - 1;
        symbols[i].next = i + 1 < size ? (int32_t)i + 1 : -1;
    }
    for (size_t i = 0; i < size && status == DSV2_OK && (status = count_step(e, i)) == DSV2_OK; i++) {
        find_next_merge(t, symbols, (int32_t)i);
        if (symbols[i].rank != UINT32_MAX)
            heap[n++] = candidate(symbols, (int32_t)i);
    }
    for (size_t i = n / 2; i-- > 0 && status == DSV2_OK && (status = count_step(e, i)) == DSV2_OK;)
        heap_down(heap, n, i);
    while (n > 0 && status == DSV2_OK && (status = ds_count_work(e, 1)) == DSV2_OK) {
        uint64_t top = heap[0];
        heap[0] = heap[--n];
        if (n > 0)
            heap_down(heap, n, 0);
        int32_t at = (int32_t)(uint32_t)top;
        ds_symbol *symbol = &symbols[at];
        if (symbol->rank != top >> 32)
            continue; /* the symbol, or the next one, was merged meanwhile */
        ds_symbol *next = &symbols[symbol->next];
        symbol->id = symbol->merged;
        symbol->next = next->next;
        next->rank = UINT32_MAX;
        if (symbol->next >= 0)
            symbols[symbol->next].previous = at;
        int32_t changed[2] = {symbol->previous, at};
        for (unsigned i = 0; i < 2; i++) {
            if (changed[i] < 0)
                continue;
            find_next_merge(t, symbols, changed[i]);
            if (symbols[changed[i]].rank != UINT32_MAX) {
                heap[n] = candidate(symbols, changed[i]);
                heap_up(heap, n++);
            }
        }
    }
    for (int32_t at = 0, i = 0; at >= 0 && status == DSV2_OK; at = symbols[at].next, i++)
        if ((status = count_step(e, (size_t)i)) == DSV2_OK)
            status = ds_push(e->out, (int32_t)symbols[at].id);
    return status;
}

/* Merges bytes that all have tokens. */
static dsv2_status encode_letters(ds_encoder *e, const char *text, size_t size)
{
    if (size > SHORT)
        return merge_long(e, text, size);
    uint32_t ids[SHORT];
    for (size_t i = 0; i < size; i++)
        ids[i] = (uint32_t)e->tokenizer->letter[(uint8_t)text[i]];
    size_t n = merge_short(e->tokenizer, ids, size);
    dsv2_status status = DSV2_OK;
    for (size_t i = 0; i < n && status == DSV2_OK; i++)
        status = ds_push(e->out, (int32_t)ids[i]);
    return status;
}

dsv2_status ds_encode_piece(ds_encoder *e, const char *text, size_t size)
{
    const dsv2_tokenizer *t = e->tokenizer;
    int32_t id = ds_find_model_token(t, text, size);
    dsv2_status status = ds_count_work(e, 1);
    if (status != DSV2_OK)
        return status;
    if (id >= 0 && (t->tokens[id].kind & DS_TOKEN_WHOLE) != 0) {
        e->done += size;
        return ds_push(e->out, id);
    }
    for (size_t i = 0, begin = 0; i <= size && status == DSV2_OK; i++) {
        if (i < size && t->letter[(uint8_t)text[i]] >= 0)
            continue;
        if (i > begin)
            status = encode_letters(e, text + begin, i - begin);
        begin = i + 1;
        if (i < size && status == DSV2_OK && (status = ds_count_work(e, 1)) == DSV2_OK &&
            (status = ds_push(e->out, t->escape)) == DSV2_OK)
            status = ds_push(e->out, t->substitute[(uint8_t)text[i]]);
    }
    e->done += size;
    return status;
}

dsv2_status ds_mark_whole_tokens(dsv2_tokenizer *t)
{
    ds_ids ids = {0};
    ds_encoder e = {.tokenizer = t, .out = &ids};
    dsv2_status status = DSV2_OK;
    for (uint32_t id = 0; id < t->n_tokens && status == DSV2_OK; id++) {
        ds_token *token = &t->tokens[id];
        if ((token->kind & DS_TOKEN_LETTERS) == 0 || token->size == 0)
            continue;
        ids.n = 0;
        if (!t->ignore_merges)
            status = encode_letters(&e, t->texts + token->offset, token->size);
        if (t->ignore_merges || (ids.n == 1 && ids.ids[0] == (int32_t)id))
            token->kind |= DS_TOKEN_WHOLE;
    }
    ds_encoder_free(&e);
    ds_free(ids.ids);
    return status;
}

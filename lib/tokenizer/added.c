/* Added tokens: which of them begins at each place of a text.
 *
 * The tokens are a trie by their bytes from the last to the first, with the links of Aho and Corasick: from a node to
 * the longest shorter beginning of a spelling backwards that ends the same. A text is read backwards. At each place the
 * automaton is at the node for the longest piece of text from there that a spelling could go on with, and the node
 * knows the longest token that begins there. So a text takes at most two steps a byte, however many tokens there are
 * and however they overlap. */
#include "tokenizer/parts.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

typedef struct key {
    const char *text;
    uint32_t size, id;
} key;

/* The byte at `depth` from the end. */
static uint8_t byte_at(const key *k, uint32_t depth) { return (uint8_t)k->text[k->size - 1 - depth]; }

/* How many bytes at the end are the same. */
static uint32_t common_end(const key *a, const key *b)
{
    uint32_t depth = 0, most = a->size < b->size ? a->size : b->size;
    while (depth < most && byte_at(a, depth) == byte_at(b, depth))
        depth++;
    return depth;
}

static int compare_keys(const void *a, const void *b)
{
    const key *x = a, *y = b;
    uint32_t depth = common_end(x, y);
    if (depth < x->size && depth < y->size)
        return byte_at(x, depth) < byte_at(y, depth) ? -1 : 1;
    return x->size != y->size ? (x->size > y->size) - (x->size < y->size) : (x->id > y->id) - (x->id < y->id);
}

static bool is_in(const ds_token *token, bool early)
{
    return (token->kind & DS_TOKEN_ADDED) != 0 && ((token->kind & DS_TOKEN_EARLY) != 0) == early;
}

/* The node behind a node by a byte; 0: none. */
static uint32_t find_child(const ds_added *added, uint32_t node, uint8_t byte)
{
    if (node == 0)
        return added->root[byte];
    uint32_t lo = added->first[node], hi = added->first[node + 1];
    while (lo < hi) {
        uint32_t middle = lo + (hi - lo) / 2;
        if (added->bytes[middle] == byte)
            return middle;
        if (added->bytes[middle] < byte)
            lo = middle + 1;
        else
            hi = middle;
    }
    return 0;
}

/* Goes on by a byte. */
static uint32_t step(const ds_added *added, uint32_t node, uint8_t byte, uint64_t *steps)
{
    for (;; node = added->fail[node]) {
        uint32_t child = find_child(added, node, byte);
        ++*steps;
        if (child != 0 || node == 0)
            return child;
    }
}

/* Collects the keys, sorted. *n_nodes: of their trie. */
static dsv2_status collect(dsv2_tokenizer *t, bool early, key **keys, ds_added *added)
{
    uint64_t total = 0;
    for (uint32_t id = 0; id < t->n_tokens; id++)
        if (is_in(&t->tokens[id], early)) {
            added->n++;
            total += t->tokens[id].size;
            added->longest = t->tokens[id].size > added->longest ? t->tokens[id].size : added->longest;
        }
    if (total > DS_MAX_ADDED_TOTAL)
        return ds_fail(DSV2_ERROR_UNSUPPORTED, "%s: the added tokens have %llu bytes together, expected at most %d",
                       t->path, (unsigned long long)total, DS_MAX_ADDED_TOTAL);
    key *k = *keys = ds_new(added->n, sizeof *k);
    if (k == NULL)
        return ds_fail_memory("the added tokens", added->n * sizeof *k);
    uint32_t n = 0;
    for (uint32_t id = 0; id < t->n_tokens; id++)
        if (is_in(&t->tokens[id], early)) {
            k[n++] = (key){.text = t->texts + t->tokens[id].offset, .size = t->tokens[id].size, .id = id};
            t->n_special += (t->tokens[id].kind & DS_TOKEN_SPECIAL) != 0;
        }
    qsort(k, n, sizeof *k, compare_keys);
    added->n_nodes = 1;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t common = i > 0 ? common_end(&k[i - 1], &k[i]) : 0;
        if (common == k[i].size)
            return ds_fail(DSV2_ERROR_FORMAT, "%s: added tokens %u and %u are spelled alike", t->path, k[i - 1].id,
                           k[i].id);
        added->n_nodes += k[i].size - common;
    }
    return DSV2_OK;
}

/* Makes the trie level by level: the children of a node lie together, those of the next node behind them. keys[lo[v]]
 * to keys[hi[v] - 1] have the bytes of node v at their end. */
static void make_nodes(ds_added *added, const key *keys, uint32_t *lo, uint32_t *hi)
{
    uint64_t steps = 0;
    uint32_t n = 1;
    lo[0] = 0;
    hi[0] = added->n;
    for (uint32_t node = 0, depth = 0, level_end = 1; node < n; node++) {
        if (node == level_end) {
            depth++;
            level_end = n;
        }
        uint32_t i = lo[node], fail = added->fail[node];
        added->token[node] = node == 0 ? -1 : added->token[fail];
        added->first[node] = n;
        if (i < hi[node] && keys[i].size == depth)
            added->token[node] = (int32_t)keys[i++].id;
        for (uint32_t child; i < hi[node]; i = hi[child]) {
            child = n++;
            lo[child] = i;
            added->bytes[child] = byte_at(&keys[i], depth);
            for (hi[child] = i + 1; hi[child] < hi[node]; hi[child]++)
                if (byte_at(&keys[hi[child]], depth) != added->bytes[child])
                    break;
            if (node == 0)
                added->root[added->bytes[child]] = child;
            else
                added->fail[child] = step(added, fail, added->bytes[child], &steps);
        }
    }
    assert(n == added->n_nodes);
    added->first[n] = n;
}

dsv2_status ds_added_make(dsv2_tokenizer *t, ds_added *added, bool early)
{
    key *keys = NULL;
    uint32_t *lo = NULL, *hi = NULL;
    dsv2_status status = collect(t, early, &keys, added);
    if (status != DSV2_OK || added->n == 0)
        goto done;
    size_t n = added->n_nodes;
    added->first = ds_new(n + 1, sizeof *added->first);
    added->fail = ds_new(n, sizeof *added->fail);
    added->token = ds_new(n, sizeof *added->token);
    added->bytes = ds_new(n, 1);
    lo = ds_new(n, sizeof *lo);
    hi = ds_new(n, sizeof *hi);
    if (added->first == NULL || added->fail == NULL || added->token == NULL || added->bytes == NULL ||
        lo == NULL || hi == NULL)
        status = ds_fail_memory("the added tokens", n * (5 * sizeof *lo + 1));
    else
        make_nodes(added, keys, lo, hi);
done:
    ds_free(hi);
    ds_free(lo);
    ds_free(keys);
    return status;
}

void ds_added_free(ds_added *added)
{
    ds_free(added->bytes);
    ds_free(added->token);
    ds_free(added->fail);
    ds_free(added->first);
}

int32_t ds_added_find(const dsv2_tokenizer *t, const ds_added *added, const char *text, size_t size)
{
    uint32_t node = 0;
    if (added->n == 0 || size == 0 || size > added->longest)
        return -1;
    for (size_t i = size; i-- > 0;)
        if ((node = find_child(added, node, (uint8_t)text[i])) == 0)
            return -1;
    int32_t id = added->token[node];
    return id >= 0 && t->tokens[id].size == size ? id : -1;
}

uint64_t ds_added_match(const ds_added *added, const char *text, size_t size, size_t n, int32_t *ids)
{
    uint64_t steps = 0;
    uint32_t node = 0;
    size_t end = n - 1 + added->longest; /* behind the last byte of a token that begins at the last place */
    for (size_t i = end < size ? end : size; i-- > 0;) {
        node = step(added, node, (uint8_t)text[i], &steps);
        if (i < n)
            ids[i] = added->token[node];
    }
    return steps;
}

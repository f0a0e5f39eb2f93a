/* The store of passes: made when first needed, kept for the next call, grown when they are too small. */
#include "forward/pass.h"

#include <assert.h>

static void lay_out_attention(void *context, ds_layout *layout)
{
    ds_pass *pass = context;
    const ds_attention_kind *kind = pass->decoder->attention;
    kind->lay_out(pass->attention, layout);
}

static void lay_out_feed_forward(void *context, ds_layout *layout)
{
    ds_pass *pass = context;
    ds_moe_lay_out(&pass->moe, layout);
    ds_ffn_lay_out(&pass->ffn, layout);
}

static void lay_out_head(void *context, ds_layout *layout) { ds_head_lay_out(&((ds_pass *)context)->head, layout); }

static void lay_out(ds_pass *pass, ds_layout *layout)
{
    const ds_overlapping in_turns[] = {{lay_out_attention, pass}, {lay_out_feed_forward, pass}, {lay_out_head, pass}};
    size_t stage_floats = ds_max(pass->decoder->attention->stage_floats(layout->config), ds_ffn_stage_floats());
    ds_rows_lay_out(&pass->rows, layout, stage_floats);
    ds_lay_out_overlapping(layout, in_turns, sizeof in_turns / sizeof *in_turns);
}

static void pass_free(ds_pass *pass)
{
    atomic_fetch_sub(&pass->store->bytes, pass->memory_bytes);
    ds_release(pass->store->allocator, pass->memory);
    ds_free(pass->attention);
    ds_free(pass);
}

static ds_pass *pass_create(ds_pass_store *store, const ds_decoder *decoder)
{
    ds_pass *pass = ds_new(1, sizeof *pass);
    void *attention = ds_new(1, decoder->attention->memory_bytes);
    if (pass == NULL || attention == NULL) {
        ds_free(attention);
        ds_free(pass);
        return NULL;
    }
    pass->decoder = decoder;
    pass->store = store;
    pass->attention = attention;
    ds_rows *rows = &pass->rows;
    rows->config = decoder->config;
    rows->weights = decoder->weights;
    rows->kernels = rows->linear.kernels = decoder->kernels;
    rows->pool = rows->linear.pool = decoder->pool;
    rows->softmax_scale = decoder->rope.softmax_scale;
    return pass;
}

static dsv2_status pass_new(ds_pass_store *store, const ds_decoder *decoder, uint32_t n_rows, size_t max_position,
                            ds_pass **out)
{
    ds_pass *pass = pass_create(store, decoder);
    if (pass == NULL)
        return ds_fail_memory("a pass", sizeof *pass + decoder->attention->memory_bytes);
    ds_layout layout = {.config = decoder->config, .max_rows = n_rows, .max_position = max_position,
                        .n_threads = ds_pool_threads(decoder->pool), .rounds = decoder->weights->has_interleaved,
                        .matmul_scratch = decoder->weights->matmul_scratch, .fits = true};
    lay_out(pass, &layout);
    if (layout.fits && layout.used <= PTRDIFF_MAX)
        layout.memory = ds_allocate(store->allocator, (size_t)layout.used, 1);
    if (layout.memory == NULL) {
        ds_free(pass->attention);
        ds_free(pass);
        return ds_fail_memory("working memory", (size_t)layout.used);
    }
    pass->max_position = max_position;
    pass->memory = layout.memory;
    pass->memory_bytes = (size_t)layout.used;
    layout.used = 0;
    lay_out(pass, &layout);
    atomic_fetch_add(&store->bytes, pass->memory_bytes);
    *out = pass;
    return DSV2_OK;
}

/* Rounded up, so that a conversation that grows does not ask for a little more at every token. */
static uint32_t round_rows(uint32_t n)
{
    uint32_t rounded = 1;
    while (rounded < n)
        rounded *= 2;
    return rounded;
}

static size_t round_position(size_t n)
{
    enum { STEP = 4096 };
    return n + (STEP - n % STEP);
}

/* A pass that has room for as much as `pass` and for what is asked, in place of `pass`. */
static dsv2_status grow(ds_pass *pass, uint32_t n_rows, size_t max_position, ds_pass **out)
{
    ds_pass *larger;
    n_rows = n_rows > pass->rows.max ? n_rows : pass->rows.max;
    max_position = ds_max(max_position, pass->max_position);
    dsv2_status status = pass_new(pass->store, pass->decoder, n_rows, max_position, &larger);
    if (status != DSV2_OK) {
        ds_pass_release(pass);
        return status;
    }
    larger->last_needed = pass->last_needed;
    pass_free(pass);
    *out = larger;
    return DSV2_OK;
}

static bool has_room(const ds_pass *pass, uint32_t n_rows, size_t max_position)
{
    return pass->rows.max >= n_rows && pass->max_position >= max_position;
}

/* Whether a pass for so many rows and positions, both rounded, would be far smaller. */
static bool is_much_larger(const ds_pass *pass, uint32_t n_rows, size_t max_position)
{
    enum { FACTOR = 4 };
    return pass->rows.max / FACTOR >= n_rows || pass->max_position / FACTOR >= max_position;
}

/* Takes the smallest idle pass that has room, else any. NULL if none is idle. The store is locked. */
static ds_pass *take_idle(ds_pass_store *store, uint32_t n_rows, size_t max_position)
{
    ds_pass **chosen = &store->idle;
    for (ds_pass **at = &store->idle; *at != NULL; at = &(*at)->next) {
        bool fits = has_room(*at, n_rows, max_position), chosen_fits = has_room(*chosen, n_rows, max_position);
        if (fits && (!chosen_fits || (*at)->memory_bytes < (*chosen)->memory_bytes))
            chosen = at;
    }
    ds_pass *pass = *chosen;
    if (pass != NULL)
        *chosen = pass->next;
    return pass;
}

dsv2_status ds_pass_acquire(ds_pass_store *store, const ds_decoder *decoder, uint32_t n_rows, size_t max_position,
                            ds_pass **out)
{
    ds_mutex_lock(&store->lock);
    ds_pass *pass = take_idle(store, n_rows, max_position);
    uint64_t now = ++store->clock;
    ds_mutex_unlock(&store->lock);
    assert(pass == NULL || pass->decoder == decoder);
    bool fits = pass != NULL && has_room(pass, n_rows, max_position);
    dsv2_status status = DSV2_OK;
    n_rows = round_rows(n_rows);
    max_position = round_position(max_position);
    if (pass == NULL)
        status = pass_new(store, decoder, n_rows, max_position, &pass);
    else if (!fits)
        status = grow(pass, n_rows, max_position, &pass);
    if (status != DSV2_OK)
        return status;
    if (!is_much_larger(pass, n_rows, max_position))
        pass->last_needed = now;
    *out = pass;
    return DSV2_OK;
}

/* Takes the passes out of the store that the latest calls did not need. The store is locked. */
static ds_pass *take_old(ds_pass_store *store)
{
    enum { KEPT_FOR = 64 }; /* calls: a prompt or two of a conversation with short answers */
    ds_pass *old = NULL;
    for (ds_pass **at = &store->idle; *at != NULL;) {
        ds_pass *pass = *at;
        if (store->clock - pass->last_needed < KEPT_FOR) {
            at = &pass->next;
            continue;
        }
        *at = pass->next;
        pass->next = old;
        old = pass;
    }
    return old;
}

static void free_all(ds_pass *list)
{
    while (list != NULL) {
        ds_pass *next = list->next;
        pass_free(list);
        list = next;
    }
}

void ds_pass_release(ds_pass *pass)
{
    ds_pass_store *store = pass->store;
    ds_mutex_lock(&store->lock);
    pass->next = store->idle;
    store->idle = pass;
    ds_pass *old = take_old(store);
    ds_mutex_unlock(&store->lock);
    free_all(old);
}

void ds_pass_store_init(ds_pass_store *store, const dsv2_allocator *allocator)
{
    *store = (ds_pass_store){.allocator = allocator};
    ds_mutex_init(&store->lock);
}

void ds_pass_store_free(ds_pass_store *store)
{
    free_all(store->idle);
    ds_mutex_destroy(&store->lock);
}

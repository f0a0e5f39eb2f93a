#include "model_files.h"

#include "../support/must.h"

#include "../support/checkpoint.h"
#include "../support/gguf.h"
#include "../support/pack_file.h"
#include "../support/tensors.h"
#include "../unit/small_json.h"

#include "base/base.h"

#include <dsv2/dsv2.h>

#include <check.h>
#include <dirent.h>
#include <jansson.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

enum { SHAPE_BYTES = 12, MAX_FILES = 6, CACHED = 64, PACK_WEIGHTS = 4096, PACK_INDEX_AT = 24, PACK_TEXTS_AT = 56 };

/* `head` of the `size` bytes tell what the file holds. In memory there is room behind them for what changes insert. */
typedef struct model_file {
    char name[48];
    uint8_t *data;
    size_t size, head;
    bool is_text; /* the head is JSON, and may become longer or shorter */
} model_file;

/* A pack's files are its parts: index, texts, weights. */
typedef struct model_files {
    model_file files[MAX_FILES];
    size_t n;
} model_files;

/* ---- temporary files ---- */

static char temporary[64];

static void empty_folder(const char *path)
{
    DIR *directory = opendir(path);
    MUST(directory != NULL);
    for (const struct dirent *entry; (entry = readdir(directory)) != NULL;)
        if (entry->d_name[0] != '.')
            MUST(remove(test_format("%s/%s", path, entry->d_name)) == 0);
    closedir(directory);
}

static void remove_temporary(void)
{
    empty_folder(temporary);
    rmdir(temporary);
}

const char *temporary_folder(void)
{
    if (temporary[0] == '\0') {
        snprintf(temporary, sizeof temporary, "/tmp/dsv2-fuzz-XXXXXX");
        MUST(mkdtemp(temporary) != NULL);
        atexit(remove_temporary);
    }
    return temporary;
}

/* ---- valid files ---- */

/* as_gguf: one that a GGUF can hold. */
static test_checkpoint shape_from(const uint8_t b[SHAPE_BYTES], bool as_gguf)
{
    static const char *const dtypes[] = {"BF16", "F32", "F16", "F8_E4M3"},
                      *const methods[] = {NULL, "greedy", "group_limited_greedy", "noaux_tc"};
    static const uint32_t widths[] = {16, 32, 40, 64, 24, 48, 256, 288}, ranks[] = {8, 16, 32, 64, 24, 96, 40, 128},
                          ropes[] = {4, 2, 8, 16}, heads[] = {8, 16, 12, 32};
    const unsigned n_widths = b[9] % 16 == 0 ? 8 : 6; /* wide ones take longer */
    test_checkpoint c = {.vocab_size = b[10] & 1 ? 272 : 40, /* with a vocabulary or without */
                         .num_hidden_layers = 1 + b[2] % 3, .num_attention_heads = 1 + b[2] / 4 % 4,
                         .max_position_embeddings = 160};
    c.yarn = b[0] & 1;
    c.norm_topk_prob = b[0] & 2;
    c.attention_bias = b[0] & 4;
    c.tie_word_embeddings = b[0] & 8;
    c.dtype = dtypes[as_gguf ? b[0] / 64 % 3 : b[0] / 64];
    c.hidden_size = widths[b[1] % n_widths];
    c.intermediate_size = widths[b[1] / 8 % n_widths];
    c.moe_intermediate_size = widths[b[3] % n_widths];
    c.q_lora_rank = b[0] & 16 ? ranks[b[3] / 8 % 8] : 0;
    c.kv_lora_rank = ranks[b[4] % 8];
    c.qk_rope_head_dim = ropes[b[4] / 8 % 4];
    c.qk_nope_head_dim = heads[b[5] % 4];
    c.v_head_dim = heads[b[5] / 4 % 4];
    if (!(b[0] & 32)) {
        c.topk_method = methods[b[6] % 4];
        c.n_group = 1 + b[6] / 4 % 4;
        c.n_routed_experts = c.n_group * (2 + b[6] / 16 % 4);
        c.topk_group = 1 + b[7] % c.n_group;
        c.num_experts_per_tok = 1 + b[7] / 8 % 4;
        if (c.num_experts_per_tok > c.topk_group * (c.n_routed_experts / c.n_group))
            c.num_experts_per_tok = 1;
        c.n_shared_experts = b[8] % 3;
        c.first_k_dense_replace = b[8] / 4 % 2;
        c.moe_layer_freq = as_gguf ? 1 : 1 + b[8] / 8 % 2;
        c.routed_scaling_factor = b[8] & 16 ? 2.5 : 0;
        c.model_type = b[6] % 4 == 3 ? "deepseek_v3" : NULL;
    }
    c.block_rows = 16;
    c.block_cols = 32;
    if (strcmp(c.dtype, "F8_E4M3") != 0)
        c.block_rows = c.block_cols = 0;
    c.seed = b[9];
    return c;
}

static void add_file(model_files *files, const char *folder, const char *name)
{
    model_file *f = &files->files[files->n++];
    size_t room = 4096;
    snprintf(f->name, sizeof f->name, "%s", name);
    char *read = test_read_file(test_format("%s/%s", folder, name), &f->size);
    f->data = realloc(read, f->size + room);
    MUST(f->data != NULL);
    f->head = f->size;
}

static void write_json(json_t *json, const char *path)
{
    MUST(json != NULL && json_dump_file(json, path, JSON_COMPACT) == 0);
    json_decref(json);
}

static void put_tokenizer(const char *folder)
{
    const small_parts parts = {
        .added = "{\"id\":256,\"content\":\"<|a|>\",\"special\":true},{\"id\":257,\"content\":\"<|b|>\",\"special\":"
                 "true},{\"id\":258,\"content\":\"word\",\"special\":false}",
        .vocab = ",\"th\":259,\"he\":260", .merges = "\"t h\",[\"h\",\"e\"]"};
    char *json = small_json(&parts);
    static const char config[] = "{\"bos_token\":\"<|a|>\",\"eos_token\":{\"content\":\"<|b|>\"},"
                                 "\"chat_template\":\"{{ 'User: ' }}\"}";
    test_write_file(test_format("%s/tokenizer.json", folder), json, strlen(json));
    test_write_file(test_format("%s/tokenizer_config.json", folder), config, sizeof config - 1);
    free(json);
}

/* Two shards instead of one file, and their index if asked for. */
static void shard(const char *folder, bool without_index)
{
    static const char *const names[] = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"};
    const char *whole = test_format("%s/model.safetensors", folder);
    test_tensors all = {0};
    json_t *map = json_object();
    test_tensors_read(&all, whole);
    for (size_t i = 0; i < 2; i++) {
        size_t first = i * (all.n / 2), n = i == 0 ? all.n / 2 : all.n - all.n / 2;
        test_tensors half = {.tensors = all.tensors + first, .n = n};
        test_tensors_write(&half, test_format("%s/%s", folder, names[i]));
        for (size_t t = first; t < first + n; t++)
            json_object_set_new(map, all.tensors[t].name, json_string(names[i]));
    }
    test_tensors_free(&all);
    MUST(remove(whole) == 0);
    json_t *index = json_pack("{s:o}", "weight_map", map);
    if (without_index)
        json_decref(index);
    else
        write_json(index, test_format("%s/model.safetensors.index.json", folder));
}

static void fix_config(const char *folder, bool as_gguf, bool eos)
{
    const char *path = test_format("%s/config.json", folder);
    json_t *config = json_load_file(path, 0, NULL), *yarn = json_object_get(config, "rope_scaling");
    if (as_gguf && json_is_object(yarn)) /* one mscale is all that a GGUF can say */
        json_object_set(yarn, "mscale", json_object_get(yarn, "mscale_all_dim"));
    if (eos) {
        json_object_set_new(config, "bos_token_id", json_integer(256));
        json_object_set_new(config, "eos_token_id", json_integer(257));
    }
    write_json(config, path);
}

/* ---- a GGUF's vocabulary ---- */

static size_t put_text(uint8_t *to, const char *text)
{
    ds_write_u64(to, strlen(text));
    memcpy(to + 8, text, strlen(text));
    return 8 + strlen(text);
}

static size_t put_array(uint8_t *to, const char *key, uint32_t type, uint64_t n)
{
    size_t at = put_text(to, key);
    ds_write_u32(to + at, 9);
    ds_write_u32(to + at + 4, type);
    ds_write_u64(to + at + 8, n);
    return at + 16;
}

static size_t put_letter(uint8_t *to, unsigned byte, unsigned *next)
{
    bool itself = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    unsigned letter = itself ? byte : (*next)++;
    char text[3] = {(char)letter};
    if (letter >= 0x80)
        memcpy(text, (char[]){(char)(0xc0 | letter >> 6), (char)(0x80 | (letter & 0x3f))}, 2);
    return put_text(to, text);
}

/* Puts a vocabulary of 272 tokens behind the counts at the file's beginning, and what fills up to the alignment before
 * the tensors' data, which begins at `*head`. */
static void put_vocabulary(model_file *f)
{
    static uint8_t more[16384];
    size_t n = 0;
    unsigned next = 256;
    static const char *const texts[][2] = {{"tokenizer.ggml.model", "gpt2"}, {"tokenizer.ggml.pre", "deepseek-llm"},
                                           {"tokenizer.chat_template", "{{ 'User: ' }}"}};
    for (size_t i = 0; i < 3; i++) {
        n += put_text(more + n, texts[i][0]);
        ds_write_u32(more + n, 8);
        n += 4;
        n += put_text(more + n, texts[i][1]);
    }
    n += put_array(more + n, "tokenizer.ggml.tokens", 8, 272);
    for (unsigned byte = 0; byte < 256; byte++)
        n += put_letter(more + n, byte, &next);
    for (int i = 256; i < 272; i++)
        n += put_text(more + n, i == 260   ? "th"
                                : i == 261 ? "he"
                                           : test_format(i < 260 ? "<|%d|>" : i < 270 ? "th%d" : "[PAD%d]", i));
    n += put_array(more + n, "tokenizer.ggml.token_type", 5, 272);
    for (uint32_t i = 0; i < 272; i++, n += 4)
        ds_write_u32(more + n, i >= 256 && i < 260 ? 3 : i < 270 ? 1 : i == 270 ? 4 : 5);
    n += put_array(more + n, "tokenizer.ggml.merges", 8, 2);
    n += put_text(more + n, "t h");
    n += put_text(more + n, "h e");
    while (n % 32 != 0) { /* whole units of the alignment: the data stays aligned. One more key fills up. */
        n += put_text(more + n, "x");
        ds_write_u32(more + n, 8);
        n += 4;
        size_t fill = (32 - (n + 8) % 32) % 32;
        ds_write_u64(more + n, fill);
        memset(more + n + 8, 'x', fill);
        n += 8 + fill;
    }
    MUST(n <= sizeof more);
    f->data = realloc(f->data, f->size + n + 4096);
    MUST(f->data != NULL);
    memmove(f->data + 24 + n, f->data + 24, f->size - 24);
    memcpy(f->data + 24, more, n);
    ds_write_u64(f->data + 16, ds_read_u64(f->data + 16) + 7);
    f->size += n;
}

/* The description of the last tensor, behind its name, ends what is no data. */
static void find_gguf_head(model_file *f)
{
    size_t at = f->size < 65536 ? f->size : 65536;
    while (at > 7 && memcmp(f->data + at - 7, ".weight", 7) != 0)
        at--;
    at += 4 + 8 * (size_t)ds_read_u32(f->data + at) + 4 + 8;
    f->head = (at + 31) / 32 * 32;
    MUST(at > 60 && f->head <= f->size);
}

/* ---- one base ---- */

static struct {
    uint8_t shape[SHAPE_BYTES];
    model_kind kind;
    bool used;
    model_files files;
} bases[CACHED];
static model_files *making;
static const uint8_t *making_shape;
static model_kind making_kind;

static void make_folder(const char *folder)
{
    static const char *const names[] = {"config.json", "tokenizer.json", "tokenizer_config.json",
                                        "model.safetensors.index.json", "model.safetensors",
                                        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (access(test_format("%s/%s", folder, names[i]), F_OK) != 0)
            continue;
        add_file(making, folder, names[i]);
        model_file *f = &making->files[making->n - 1];
        f->is_text = true;
        if (strstr(f->name, ".safetensors") != NULL && strstr(f->name, "index") == NULL)
            f->head = 8 + (size_t)ds_read_u64(f->data);
    }
}

static void make_gguf(const char *folder, const test_gguf *options, bool vocabulary)
{
    const char *first = options->split ? "m-00001-of-00002.gguf" : "m.gguf";
    char whole[256]; /* test_format's memory would not outlive the writing */
    snprintf(whole, sizeof whole, "%s/%s", folder, first);
    test_gguf_write(options, folder, whole, NULL);
    add_file(making, folder, first);
    if (vocabulary)
        put_vocabulary(&making->files[0]);
    find_gguf_head(&making->files[0]);
    if (options->split) {
        add_file(making, folder, "m-00002-of-00002.gguf");
        find_gguf_head(&making->files[1]);
    }
}

static void add_part(const char *name, uint8_t *data, size_t size)
{
    model_file *f = &making->files[making->n++];
    *f = (model_file){.data = data, .size = size, .head = size};
    snprintf(f->name, sizeof f->name, "%s", name);
}

static void add_block(const char *name, const uint8_t *file, size_t header_at)
{
    size_t at = (size_t)ds_read_u64(file + header_at), stored = (size_t)ds_read_u64(file + header_at + 8),
           size = (size_t)ds_read_u64(file + header_at + 16);
    uint8_t *data = malloc(size + 4096);
    MUST(data != NULL && ZSTD_decompress(data, size, file + at, stored) == size);
    add_part(name, data, size);
}

static void make_pack(const char *from, const char *folder, dsv2_weight_type type)
{
    const dsv2_pack_options options = {.struct_size = sizeof options, .weight_type = type, .n_threads = 1};
    const char *path = test_format("%s/m.dsv2", folder);
    if (dsv2_model_pack(from, path, &options) != DSV2_OK) { /* a type that this shape cannot have */
        const dsv2_pack_options stored = {.struct_size = sizeof stored, .n_threads = 1};
        ck_assert_msg(dsv2_model_pack(from, path, &stored) == DSV2_OK, "%s", dsv2_last_error());
    }
    size_t size;
    uint8_t *file = (uint8_t *)test_read_file(path, &size);
    add_block("index", file, PACK_INDEX_AT);
    add_block("texts", file, PACK_TEXTS_AT);
    size = (size_t)ds_read_u64(file + PACK_INDEX_AT);
    memmove(file, file + PACK_WEIGHTS, size - PACK_WEIGHTS);
    add_part("weights", file, size - PACK_WEIGHTS);
    making->files[2].head = 0;
}

/* Inside a test of Check's, whose claims the writers make. */
START_TEST(make)
{
    static const ds_type types[] = {DS_TYPE_Q8_0, DS_TYPE_Q4_0, DS_TYPE_Q5_1, DS_TYPE_Q4_K,
                                    DS_TYPE_Q5_K, DS_TYPE_Q6_K, DS_TYPE_Q5_0, DS_TYPE_Q4_1,
                                    DS_TYPE_Q2_K, DS_TYPE_Q3_K, DS_TYPE_IQ4_NL, DS_TYPE_IQ4_XS};
    const uint8_t *b = making_shape;
    bool vocabulary = b[10] & 1, as_gguf = making_kind == MODEL_GGUF || (making_kind == MODEL_PACK && b[10] & 2);
    test_checkpoint shape = shape_from(b, as_gguf);
    test_gguf options = {.quantised = b[11] & 1, .type = types[b[11] / 2 % 12], .joined = b[11] & 64,
                         .old = b[11] & 32 && shape.topk_method == NULL, .split = b[11] & 128, .seed = b[9]};
    if (!options.quantised)
        options.type = b[11] & 2 ? DS_TYPE_F16 : DS_TYPE_F32;
    char *folder = test_checkpoint_write(&shape);
    fix_config(folder, as_gguf, vocabulary);
    if (making_kind == MODEL_GGUF) {
        make_gguf(folder, &options, vocabulary);
    } else {
        if (vocabulary)
            put_tokenizer(folder);
        if (b[10] & 4 && making_kind == MODEL_FOLDER)
            shard(folder, b[10] & 8);
        if (making_kind == MODEL_FOLDER)
            make_folder(folder);
        else if (as_gguf) {
            options.split = false;
            char whole[256];
            snprintf(whole, sizeof whole, "%s/m.gguf", folder);
            test_gguf_write(&options, folder, whole, NULL);
            if (vocabulary) {
                add_file(making, folder, "m.gguf");
                put_vocabulary(&making->files[0]);
                test_write_file(whole, making->files[0].data, making->files[0].size);
                free(making->files[0].data);
                making->n = 0;
            }
            make_pack(whole, folder, DSV2_WEIGHTS_AS_STORED);
        } else
            make_pack(folder, folder, (dsv2_weight_type)(b[11] % 10 == 4 ? 0 : b[11] % 10));
    }
    test_checkpoint_remove(folder);
}
END_TEST

static const model_files *base(model_kind kind, const uint8_t shape[SHAPE_BYTES])
{
    static size_t next;
    for (size_t i = 0; i < CACHED; i++)
        if (bases[i].used && bases[i].kind == kind && memcmp(bases[i].shape, shape, SHAPE_BYTES) == 0)
            return &bases[i].files;
    size_t at = next++ % CACHED;
    making = &bases[at].files;
    for (size_t i = 0; i < making->n; i++)
        free(making->files[i].data);
    *making = (model_files){0};
    making_shape = shape;
    making_kind = kind;
    Suite *suite = suite_create("base");
    TCase *only = tcase_create("base");
    tcase_add_test(only, make);
    suite_add_tcase(suite, only);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK);
    sigset_t alarm, before; /* libFuzzer's alarm, by which Check would kill the whole group of processes */
    sigemptyset(&alarm);
    sigaddset(&alarm, SIGALRM);
    MUST(pthread_sigmask(SIG_BLOCK, &alarm, &before) == 0);
    srunner_run_all(runner, CK_SILENT);
    MUST(pthread_sigmask(SIG_SETMASK, &before, NULL) == 0);
    if (srunner_ntests_failed(runner) > 0) {
        srunner_print(runner, CK_VERBOSE);
        fflush(stdout);
    }
    MUST(srunner_ntests_failed(runner) == 0);
    srunner_free(runner);
    bases[at].used = true;
    bases[at].kind = kind;
    memcpy(bases[at].shape, shape, SHAPE_BYTES);
    return making;
}

/* ---- changes ---- */

static const uint64_t odd_numbers[] = {
    0, 1, 2, 3, 4, 7, 8, 16, 31, 32, 63, 64, 127, 128, 255, 256, 0xffff, 0x10000, 0x7fffffff, 0x80000000, 0xffffffff,
    0x100000000, 0x7fffffffffffffff, 0x8000000000000000, 0xffffffffffffffff, 0x4000000000000000, 1u << 20, 1u << 24};
static const char *const odd_texts[] = {"0", "1", "-1", "2", "3", "1e-6", "1e308", "-0.0", "null", "true", "false",
                                        "\"yarn\"", "\"\"", "[]", "{}", "[[1,2],[3]]", "4294967296", "1048576", "256",
                                        "18446744073709551616", "\"BF16\"", "\"F32\"", "\"noaux_tc\"", "\"sigmoid\""};
static const uint32_t odd_floats[] = {0x7fc00000, 0x7f800000, 0xff800000, 0x7f7fffff, 0x00000001, 0x7c007c00,
                                      0x7bff7bff, 0xfe00fe00, 0x80008000, 0xffffffff, 0x7f7f7f7f, 0x3f803f80};

static void replace(model_file *f, size_t at, size_t removed, const uint8_t *bytes, size_t n)
{
    if (f->head < at + removed)
        return;
    memmove(f->data + at + n, f->data + at + removed, f->size - at - removed);
    memcpy(f->data + at, bytes, n);
    f->size = f->size - removed + n;
    f->head = f->head - removed + n;
}

/* Another value in place of value number `nth` of a JSON text, if it is a number, a text or a word. */
static void change_value(model_file *f, size_t nth, const char *text)
{
    size_t at = 0;
    for (size_t i = 0; at < f->head; at++)
        if ((f->data[at] == ':' || f->data[at] == '[') && i++ == nth)
            break;
    for (at++; at < f->head && f->data[at] == ' '; at++)
        continue;
    size_t end = at;
    bool quoted = at < f->head && f->data[at] == '"';
    for (end += quoted; end < f->head && strchr(quoted ? "\"" : ",]}", f->data[end]) == NULL; end++)
        continue;
    replace(f, at, (end < f->head ? end + quoted : end) - at, (const uint8_t *)text, strlen(text));
}

static void change(model_file *f, stream *in)
{
    uint8_t what = stream_u8(in), bytes[16];
    size_t at = stream_u16(in), n = 1 + what / 16u;
    size_t head = f->head > 0 ? f->head : 1, inside = at % head, left = head - inside;
    if (f->size == 0)
        return;
    switch (what % 8) {
    case 0:
        stream_bytes(in, bytes, n);
        memcpy(f->data + inside, bytes, n < left ? n : left);
        break;
    case 1:
        ds_write_u64(bytes, odd_numbers[stream_u8(in) % (sizeof odd_numbers / sizeof *odd_numbers)]);
        n = what & 16 ? 8 : what & 32 ? 4 : 2;
        memcpy(f->data + inside, bytes, n < left ? n : left);
        break;
    case 2:
        if (f->is_text)
            change_value(f, at, odd_texts[stream_u8(in) % (sizeof odd_texts / sizeof *odd_texts)]);
        break;
    case 3:
        stream_bytes(in, bytes, n);
        if (f->is_text)
            replace(f, inside, 0, bytes, n);
        break;
    case 4:
        if (f->is_text)
            replace(f, inside, n < left ? n : left, bytes, 0);
        break;
    case 5: { /* weights */
        uint32_t value = odd_floats[stream_u8(in) % (sizeof odd_floats / sizeof *odd_floats)];
        size_t data = f->size - f->head, from = f->head, count = (size_t)1 << what / 16;
        if (data < 4) {
            data = f->size;
            from = 0;
        }
        for (size_t i = 0; i < count && data >= 4; i++)
            memcpy(f->data + from + (at * 4 + i * 4) % (data - 3), &value, 4);
        break;
    }
    case 6: {
        size_t to = stream_u16(in) % head, size = 4 * n;
        if (size <= left && size <= head - to)
            memmove(f->data + to, f->data + inside, size);
        break;
    }
    default: /* what is missing at the end */
        if (what & 16)
            f->size = f->head + (f->size - f->head) * (at & 255) / 255;
        else
            f->size -= at % 64 < f->size ? at % 64 : f->size;
        if (f->head > f->size)
            f->head = f->size;
    }
}

/* ---- files ---- */

static char path[256];

static void write_file(const char *name, const uint8_t *data, size_t size)
{
    FILE *file = fopen(test_format("%s/%s", temporary_folder(), name), "wb");
    MUST(file != NULL && fwrite(data, 1, size, file) == size && fclose(file) == 0);
}

/* The header's length follows a header that was changed, unless a change hit that length itself. */
static void write_safetensors(model_file *f, uint64_t length, size_t original_head)
{
    if (f->head >= 8 && ds_read_u64(f->data) == length && f->head != original_head)
        ds_write_u64(f->data, f->head - 8);
    write_file(f->name, f->data, f->size);
}

/* With right checksums around what the parts are now, the weights included, as far as the index leads. */
static void write_pack(model_files *files)
{
    model_file *index = &files->files[0], *texts = &files->files[1], *weights = &files->files[2];
    for (size_t at = 0; at + 36 <= index->size;) {
        uint64_t from = ds_read_u64(index->data + at + 4) - PACK_WEIGHTS, bytes = ds_read_u64(index->data + at + 12);
        if (from <= weights->size && bytes <= weights->size - from)
            pack_file_seal_entry(index->data + at, weights->data + from);
        at += 36 + 8u * index->data[at + 3] + ds_read_u16(index->data + at);
    }
    size_t size;
    uint8_t *file = pack_file_around(weights->data, weights->size, index->data, index->size, texts->data, texts->size,
                                     &size);
    write_file("m.dsv2", file, size);
    free(file);
}

const char *model_files_make(model_kind kind, stream *in)
{
    uint8_t shape[SHAPE_BYTES];
    stream_bytes(in, shape, sizeof shape);
    const char *folder = temporary_folder();
    const model_files *from = base(kind, shape);
    model_files files = *from;
    uint64_t lengths[MAX_FILES];
    for (size_t i = 0; i < files.n; i++) {
        model_file *f = &files.files[i];
        f->data = malloc(f->size + 65536);
        MUST(f->data != NULL);
        memcpy(f->data, from->files[i].data, f->size);
        lengths[i] = f->size >= 8 ? ds_read_u64(f->data) : 0;
    }
    unsigned gone = MAX_FILES;
    for (int i = 0; in->size > 0 && i < 12; i++) {
        uint8_t which = stream_u8(in);
        if (which == 0xff)
            gone = stream_u8(in) % MAX_FILES;
        else
            change(&files.files[which % files.n], in);
    }
    empty_folder(folder);
    if (kind == MODEL_PACK)
        write_pack(&files);
    for (size_t i = 0; i < files.n; i++) {
        model_file *f = &files.files[i];
        if (kind != MODEL_PACK && i != gone)
            write_safetensors(f, kind == MODEL_FOLDER && strstr(f->name, ".json") == NULL ? lengths[i] : 0,
                              from->files[i].head);
        free(f->data);
    }
    const char *name = kind == MODEL_FOLDER ? "" : kind == MODEL_PACK ? "m.dsv2" : files.files[0].name;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

/* write_snapshots MODEL FOLDER: for each type of cache a snapshot of two saves, FOLDER/TYPE.snapshot, and beside it
 * what it must hold, as floats: FOLDER/TYPE.rows, token by token, layer by layer, and FOLDER/TYPE.logits. For
 * test_reader.py. */
#include "session/session.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FIRST = 70, SECOND = 63 };

static int fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, dsv2_last_error());
    return EXIT_FAILURE;
}

static int write_floats(const char *name, const float *floats, size_t n)
{
    FILE *file = fopen(name, "wb");
    if (file == NULL || fwrite(floats, sizeof *floats, n, file) != n || fclose(file) != 0)
        return fail(name);
    return EXIT_SUCCESS;
}

/* One token's row of one layer, in the model's own basis. */
static void decode(const dsv2_session *session, size_t token, uint32_t layer, float *row)
{
    const ds_cache_shape *shape = &session->cache.shape;
    const uint8_t *rows = ds_cache_rows(&session->cache, layer, token / DS_PAGE_TOKENS);
    ds_cache_decode_rows(shape, session->model->fixed.kernels, rows + token % DS_PAGE_TOKENS * shape->row_bytes, 1,
                         row);
    ds_cache_rotate_row(shape, session->model->fixed.kernels, row);
}

static int write_expected(const dsv2_session *session, const char *stem)
{
    const ds_cache_shape *shape = &session->cache.shape;
    size_t width = shape->width, n = session->length * shape->n_layers * width;
    float *rows = malloc(n * sizeof *rows);
    char name[600];
    if (rows == NULL)
        return fail("memory");
    for (size_t t = 0; t < session->length; t++)
        for (uint32_t layer = 0; layer < shape->n_layers; layer++)
            decode(session, t, layer, rows + (t * shape->n_layers + layer) * width);
    snprintf(name, sizeof name, "%s.rows", stem);
    int status = write_floats(name, rows, n);
    free(rows);
    snprintf(name, sizeof name, "%s.logits", stem);
    return status == EXIT_SUCCESS ? write_floats(name, session->logits, session->model->fixed.config.vocab_size)
                                  : status;
}

static int write_snapshot(dsv2_model *model, dsv2_cache_type type, const char *stem)
{
    dsv2_session_options options = {.struct_size = sizeof options, .cache_type = type};
    dsv2_save_options append = {.struct_size = sizeof append, .append = 1};
    int32_t tokens[FIRST + SECOND];
    for (int i = 0; i < FIRST + SECOND; i++)
        tokens[i] = i * 31 % 300;
    char name[600];
    snprintf(name, sizeof name, "%s.snapshot", stem);
    dsv2_session *session;
    if (dsv2_session_open(model, &options, &session) != DSV2_OK)
        return fail("open");
    if (dsv2_session_feed(session, tokens, FIRST) != DSV2_OK || dsv2_session_save(session, name, NULL) != DSV2_OK ||
        dsv2_session_feed(session, tokens + FIRST, SECOND) != DSV2_OK ||
        dsv2_session_save(session, name, &append) != DSV2_OK) {
        dsv2_session_close(session);
        return fail(name);
    }
    int status = write_expected(session, stem);
    dsv2_session_close(session);
    return status;
}

int main(int argc, char **argv)
{
    static const char *const names[] = {[DSV2_CACHE_F32] = "f32", [DSV2_CACHE_F16] = "f16", [DSV2_CACHE_Q8] = "q8",
                                        [DSV2_CACHE_Q6] = "q6"};
    dsv2_model *model;
    if (argc != 3 || dsv2_model_open(argv[1], NULL, &model) != DSV2_OK)
        return fail("usage: write_snapshots MODEL FOLDER");
    int status = EXIT_SUCCESS;
    for (int type = DSV2_CACHE_F32; type <= DSV2_CACHE_Q6 && status == EXIT_SUCCESS; type++) {
        char stem[500];
        snprintf(stem, sizeof stem, "%s/%s", argv[2], names[type]);
        status = write_snapshot(model, (dsv2_cache_type)type, stem);
    }
    dsv2_model_close(model);
    return status;
}

/* safetensors: eight bytes of header length, a header in JSON, then the tensors' bytes without holes. */
#include "formats/container.h"

#include "base/json.h"

#include <stdlib.h>
#include <string.h>

enum {
    LENGTH_BYTES = 8,
    HEADER_LIMIT = 100 * 1000 * 1000 /* the reference reader's limit; used for the index too */
};

static const struct {
    const char *name;
    ds_type type;
} dtypes[] = {
    {"F32", DS_TYPE_F32},
    {"F16", DS_TYPE_F16},
    {"BF16", DS_TYPE_BF16},
    {"F8_E4M3", DS_TYPE_F8_E4M3},
};

static const char *const entry_fields[] = {"dtype", "shape", "data_offsets", NULL};

static dsv2_status read_u64(const ds_file *file, const char *tensor, const char *field, const json_t *value,
                            uint64_t *out)
{
    if (!json_is_integer(value) || json_integer_value(value) < 0)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: tensor %s: %s holds %s, expected integers of at least 0", file->path,
                       tensor, field, json_is_integer(value) ? "a negative integer" : ds_json_kind(value));
    *out = (uint64_t)json_integer_value(value);
    return DSV2_OK;
}

static dsv2_status read_shape(const ds_file *file, const char *name, const json_t *shape, ds_tensor *tensor)
{
    if (!json_is_array(shape))
        return ds_fail(DSV2_ERROR_FORMAT, "%s: tensor %s: shape is %s, expected an array", file->path, name,
                       ds_json_kind(shape));
    size_t n = json_array_size(shape);
    for (size_t i = 0; i < n; i++) {
        uint64_t dim = 0;
        dsv2_status status = read_u64(file, name, "shape", json_array_get(shape, i), &dim);
        if (status != DSV2_OK)
            return status;
        if (i < DS_TENSOR_MAX_DIMS)
            tensor->dims[i] = dim;
    }
    tensor->n_dims = n > UINT32_MAX ? UINT32_MAX : (uint32_t)n;
    return DSV2_OK;
}

static dsv2_status read_extent(const ds_file *file, const char *name, const json_t *offsets, uint64_t data_size,
                               ds_extent *out)
{
    if (!json_is_array(offsets) || json_array_size(offsets) != 2)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: tensor %s: data_offsets is %s of %zu, expected an array of 2 integers",
                       file->path, name, ds_json_kind(offsets), json_array_size(offsets));
    dsv2_status status = read_u64(file, name, "data_offsets", json_array_get(offsets, 0), &out->begin);
    if (status == DSV2_OK)
        status = read_u64(file, name, "data_offsets", json_array_get(offsets, 1), &out->end);
    if (status != DSV2_OK)
        return status;
    if (out->begin > out->end || out->end > data_size)
        return ds_fail(DSV2_ERROR_FORMAT,
                       "%s: tensor %s: data_offsets are %llu to %llu, expected a range within the file's %llu bytes "
                       "of data: the file is cut or damaged",
                       file->path, name, (unsigned long long)out->begin, (unsigned long long)out->end,
                       (unsigned long long)data_size);
    return DSV2_OK;
}

/* Reads one entry of the header. */
static dsv2_status read_tensor(ds_container *container, const ds_file *file, const char *name, const json_t *entry,
                               uint64_t data_begin, ds_extent *where)
{
    if (!json_is_object(entry))
        return ds_fail(DSV2_ERROR_FORMAT, "%s: tensor %s is %s, expected an object", file->path, name,
                       ds_json_kind(entry));
    const json_t *dtype = json_object_get(entry, "dtype");
    if (!json_is_string(dtype))
        return ds_fail(DSV2_ERROR_FORMAT, "%s: tensor %s: dtype is %s, expected a string", file->path, name,
                       ds_json_kind(dtype));
    ds_tensor tensor = {.name = name, .path = file->path};
    dsv2_status status = read_shape(file, name, json_object_get(entry, "shape"), &tensor);
    if (status == DSV2_OK)
        status = read_extent(file, name, json_object_get(entry, "data_offsets"), file->size - data_begin, where);
    if (status != DSV2_OK)
        return status;

    size_t i = 0, n = sizeof dtypes / sizeof *dtypes;
    while (i < n && strcmp(json_string_value(dtype), dtypes[i].name) != 0)
        i++;
    if (i == n || tensor.n_dims > DS_TENSOR_MAX_DIMS)
        return ds_container_add_other(container, name, json_string_value(dtype), tensor.n_dims, file->path);
    tensor.type = dtypes[i].type;
    if (!ds_tensor_bytes(tensor.type, tensor.dims, tensor.n_dims, &tensor.n_bytes) ||
        tensor.n_bytes != where->end - where->begin)
        return ds_fail(DSV2_ERROR_FORMAT,
                       "%s: tensor %s: data_offsets give %llu bytes, which is not what its shape has in %s", file->path,
                       name, (unsigned long long)(where->end - where->begin), dtypes[i].name);
    tensor.file = (uint32_t)(file - container->files);
    tensor.offset = data_begin + where->begin;
    return ds_container_add(container, &tensor);
}

/* Every byte of the data must belong to exactly one tensor. */
static dsv2_status check_extents(const ds_file *file, ds_extent *extents, size_t n, uint64_t data_size)
{
    ds_sort_extents(extents, n);
    uint64_t end = 0;
    for (size_t i = 0; i < n; i++) {
        if (extents[i].begin != end)
            return ds_fail(DSV2_ERROR_FORMAT,
                           "%s: tensor %.*s: data_offsets begin at %llu where the tensor before ends at %llu: it %s",
                           file->path, DS_QUOTED(extents[i].name),
                           (unsigned long long)extents[i].begin, (unsigned long long)end,
                           extents[i].begin < end ? "overlaps another" : "leaves a hole");
        end = extents[i].end;
    }
    if (end != data_size)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: data_offsets end at %llu, but the file holds %llu bytes of data",
                       file->path, (unsigned long long)end, (unsigned long long)data_size);
    return DSV2_OK;
}

static size_t count_members(ds_text object)
{
    size_t n = 0;
    ds_json_walk walk = ds_json_begin(object);
    while (ds_json_next(&walk))
        n++;
    return n;
}

/* Entries are parsed one at a time: a header may be 100 MB, of which no list is longer than six numbers. */
static dsv2_status read_header(ds_container *container, const ds_file *file, const ds_json *json, uint64_t data_begin)
{
    size_t n = 0, n_members = count_members(json->text);
    ds_extent *extents = ds_new(n_members, sizeof *extents);
    if (extents == NULL)
        return ds_fail_memory("a list of tensors", n_members * sizeof *extents);
    ds_json_string name = {0};
    ds_json_walk walk = ds_json_begin(json->text);
    dsv2_status status = DSV2_OK;
    while (status == DSV2_OK && ds_json_next(&walk)) {
        json_t *entry = NULL;
        if (ds_json_is_name(walk.name, "__metadata__"))
            continue;
        if ((status = ds_json_decode(json, walk.name, &name)) == DSV2_OK &&
            (status = ds_json_read(json, walk.value, entry_fields, &entry)) == DSV2_OK &&
            (status = read_tensor(container, file, name.bytes, entry, data_begin, &extents[n])) == DSV2_OK)
            extents[n++].name = (ds_text){walk.name.data + 1, walk.name.size - 2};
        json_decref(entry);
    }
    if (status == DSV2_OK)
        status = check_extents(file, extents, n, file->size - data_begin);
    ds_free(name.bytes);
    ds_free(extents);
    return status;
}

/* Opens a file as an unused ds_file of the container and adds its tensors. */
static dsv2_status open_file(ds_container *container, ds_file *file, const char *path)
{
    dsv2_status status = ds_file_open(path, file);
    if (status == DSV2_OK)
        status = ds_file_need_head(file, LENGTH_BYTES);
    if (status != DSV2_OK)
        return status;
    if (file->size < LENGTH_BYTES)
        return ds_fail(DSV2_ERROR_FORMAT,
                       "%s: header length: the file has %llu bytes, expected at least %d: not a safetensors file", path,
                       (unsigned long long)file->size, LENGTH_BYTES);
    uint64_t length = ds_read_u64(file->head);
    if (length > file->size - LENGTH_BYTES || length > HEADER_LIMIT)
        return ds_fail(
            DSV2_ERROR_FORMAT,
            "%s: header length is %llu, expected at most %llu: the file is cut, or not a safetensors file", path,
            (unsigned long long)length,
            (unsigned long long)(file->size - LENGTH_BYTES < HEADER_LIMIT ? file->size - LENGTH_BYTES : HEADER_LIMIT));
    ds_json header; /* points into the head */
    status = ds_file_need_head(file, LENGTH_BYTES + length);
    if (status == DSV2_OK)
        status = ds_json_check(path, (const char *)file->head + LENGTH_BYTES, (size_t)length, &header);
    if (status == DSV2_OK)
        status = read_header(container, file, &header, LENGTH_BYTES + length);
    ds_file_drop_head(file);
    return status;
}

/* Names of a model's files inside its folder. */
typedef struct file_list {
    char **names;
    size_t n, capacity;
} file_list;

static void free_list(file_list *list)
{
    for (size_t i = 0; i < list->n; i++)
        ds_free(list->names[i]);
    ds_free(list->names);
}

static int compare_names(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static dsv2_status add_name(file_list *list, const char *name)
{
    char *copy = ds_copy_string(name);
    if (copy == NULL || !ds_grow(&list->names, &list->capacity, list->n + 1, sizeof *list->names)) {
        ds_free(copy);
        return ds_fail_memory("a list of files", (list->n + 1) * sizeof *list->names);
    }
    list->names[list->n++] = copy;
    return DSV2_OK;
}

/* An index comes from whoever made the model: it may name files beside it, nothing else. */
static bool is_plain_name(const char *name)
{
    return name[0] != '\0' && strchr(name, '/') == NULL && strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
}

/* The index: what it says, and the tensor and the file of the entry that is being looked at. */
typedef struct weight_index {
    char *text;
    ds_json json;
    ds_text map; /* weight_map; no data: there is no index */
    ds_json_string tensor, file;
} weight_index;

static void free_index(weight_index *index)
{
    ds_free(index->file.bytes);
    ds_free(index->tensor.bytes);
    ds_free(index->text);
}

static dsv2_status read_entry(weight_index *index, const ds_json_walk *walk)
{
    bool is_string = ds_json_is(walk->value, '"');
    dsv2_status status = ds_json_decode(&index->json, walk->name, &index->tensor);
    if (status == DSV2_OK && is_string)
        status = ds_json_decode(&index->json, walk->value, &index->file);
    if (status != DSV2_OK || (is_string && is_plain_name(index->file.bytes)))
        return status;
    return ds_fail(DSV2_ERROR_FORMAT,
                   "%s: weight_map: tensor %s is in %s, expected the name of a file in the same folder",
                   index->json.path, index->tensor.bytes,
                   is_string ? index->file.bytes : ds_json_text_kind(walk->value));
}

/* Goes to the next entry. False after the last, or if *status says that the entry cannot be read. */
static bool next_entry(weight_index *index, ds_json_walk *walk, dsv2_status *status)
{
    *status = DSV2_OK;
    if (!ds_json_next(walk))
        return false;
    *status = read_entry(index, walk);
    return *status == DSV2_OK;
}

/* Lists the files that an index's weight_map names, each once, in order. */
static dsv2_status list_index(weight_index *index, file_list *list)
{
    const char *path = index->json.path;
    if (!ds_json_is(index->map, '{'))
        return ds_fail(DSV2_ERROR_FORMAT, "%s: weight_map is %s, expected an object", path,
                       ds_json_text_kind(index->map));
    ds_json_walk walk = ds_json_begin(index->map);
    dsv2_status status;
    while (next_entry(index, &walk, &status)) {
        const char *file = index->file.bytes;
        /* Neighbours mostly share a file: skipping repeats here keeps the list short. Other repeats go after
         * sorting. */
        if (list->n > 0 && strcmp(list->names[list->n - 1], file) == 0)
            continue;
        status = add_name(list, file);
        if (status != DSV2_OK)
            break;
    }
    if (status != DSV2_OK)
        return status;
    if (list->n == 0)
        return ds_fail(DSV2_ERROR_FORMAT, "%s: weight_map is empty", path);
    qsort(list->names, list->n, sizeof *list->names, compare_names);
    size_t kept = 1;
    for (size_t i = 1; i < list->n; i++) {
        if (strcmp(list->names[i], list->names[kept - 1]) == 0)
            ds_free(list->names[i]);
        else
            list->names[kept++] = list->names[i];
    }
    list->n = kept;
    return DSV2_OK;
}

static bool is_safetensors_name(const char *name)
{
    static const char suffix[] = ".safetensors";
    size_t length = strlen(name);
    return length >= sizeof suffix && strcmp(name + length - (sizeof suffix - 1), suffix) == 0;
}

/* Lists all *.safetensors of a folder without an index. */
static dsv2_status list_folder(const char *folder, file_list *list)
{
    ds_os_folder *names = ds_os_folder_open(folder);
    if (names == NULL)
        return ds_fail_io(folder, "open");
    dsv2_status status = DSV2_OK;
    for (const char *name = ""; status == DSV2_OK && name != NULL;) {
        if (!ds_os_folder_next(names, &name))
            status = ds_fail_io(folder, "list");
        else if (name != NULL && is_safetensors_name(name))
            status = add_name(list, name);
    }
    ds_os_folder_close(names);
    if (status == DSV2_OK && list->n == 0)
        status = ds_fail(DSV2_ERROR_IO, "%s: has no *.safetensors file", folder);
    if (list->n > 0)
        qsort(list->names, list->n, sizeof *list->names, compare_names);
    return status;
}

/* Says where the index and the files differ. Tensors of no file are mostly those that nobody needs; the model's
 * opening names one that is needed. */
static dsv2_status compare_with_index(const ds_container *container, weight_index *index, const ds_logger *logger)
{
    ds_json_walk walk = ds_json_begin(index->map);
    size_t absent = 0, elsewhere = 0;
    dsv2_status status;
    while (next_entry(index, &walk, &status)) {
        const char *name = index->tensor.bytes;
        const ds_tensor *tensor = ds_container_find(container, name);
        const ds_other_tensor *other = ds_container_find_other(container, name);
        const char *found = tensor != NULL ? tensor->path : other != NULL ? other->path : NULL;
        absent += found == NULL;
        elsewhere += found != NULL && strcmp(strrchr(found, '/') + 1, index->file.bytes) != 0;
    }
    if (absent > 0)
        ds_log(logger, DSV2_LOG_WARNING, "%s: weight_map names %zu tensors that no file has", index->json.path, absent);
    if (elsewhere > 0)
        ds_log(logger, DSV2_LOG_WARNING, "%s: weight_map has %zu tensors in other files than they are in; they are "
               "taken from there", index->json.path, elsewhere);
    return status;
}

static dsv2_status read_index(const char *path, weight_index *index)
{
    size_t size;
    dsv2_status status = ds_file_read(path, HEADER_LIMIT, &index->text, &size);
    if (status == DSV2_OK)
        status = ds_json_check(path, index->text, size, &index->json);
    return status == DSV2_OK
               ? ds_json_find(&index->json, index->json.text, 1, (const char *const[]){"weight_map"}, &index->map)
               : status;
}

static bool has_name(const file_list *list, const char *name)
{
    for (size_t i = 0; i < list->n; i++)
        if (strcmp(list->names[i], name) == 0)
            return true;
    return false;
}

static dsv2_status has_file(const char *folder, const char *name, bool *there)
{
    char *path = ds_path_join(folder, name);
    if (path == NULL)
        return ds_fail_memory("a path", strlen(folder));
    *there = ds_is_file(path);
    ds_free(path);
    return DSV2_OK;
}

/* Whether a download stopped before a file came that the index names. */
static dsv2_status check_files(const char *folder, const weight_index *index, const file_list *list)
{
    dsv2_status status = DSV2_OK;
    bool there = true;
    for (size_t i = 0; i < list->n && status == DSV2_OK; i++) {
        status = has_file(folder, list->names[i], &there);
        if (status == DSV2_OK && !there)
            status = ds_fail(DSV2_ERROR_IO, "%s: %s, which weight_map names, is not there: the download is incomplete",
                             index->json.path, list->names[i]);
    }
    return status;
}

/* model.safetensors, if the index does not name it, is what a later save left: the index is stale, as transformers
 * takes it. */
static dsv2_status list_files(const char *folder, const char *index_path, const ds_logger *logger, weight_index *index,
                              file_list *list)
{
    static const char single[] = "model.safetensors";
    bool has_single = false;
    dsv2_status status = has_file(folder, single, &has_single);
    if (status != DSV2_OK)
        return status;
    if (!ds_exists(index_path))
        return has_single ? add_name(list, single) : list_folder(folder, list);
    status = read_index(index_path, index);
    if (status == DSV2_OK)
        status = list_index(index, list);
    if (status != DSV2_OK || !has_single || has_name(list, single))
        return status == DSV2_OK ? check_files(folder, index, list) : status;
    ds_log(logger, DSV2_LOG_WARNING, "%s: does not name %s, which is taken alone", index_path, single);
    free_list(list);
    *list = (file_list){0};
    index->map = (ds_text){0};
    return add_name(list, single);
}

dsv2_status ds_safetensors_open(const char *folder, const ds_logger *logger, ds_container **out)
{
    ds_container *container = NULL;
    file_list list = {0};
    weight_index index = {0};
    char *index_path = ds_path_join(folder, "model.safetensors.index.json");
    dsv2_status status;
    if (index_path == NULL) {
        status = ds_fail_memory("a path", strlen(folder));
        goto done;
    }
    status = list_files(folder, index_path, logger, &index, &list);
    if (status != DSV2_OK)
        goto done;
    container = ds_container_create(DS_FORMAT_SAFETENSORS, folder, list.n);
    if (container == NULL) {
        status = DSV2_ERROR_MEMORY;
        goto done;
    }
    for (size_t i = 0; i < list.n && status == DSV2_OK; i++) {
        char *path = ds_path_join(folder, list.names[i]);
        status =
            path == NULL ? ds_fail_memory("a path", strlen(folder)) : open_file(container, &container->files[i], path);
        ds_free(path);
    }
    if (status == DSV2_OK)
        status = ds_container_finish(container);
    if (status == DSV2_OK && index.map.data != NULL)
        status = compare_with_index(container, &index, logger);
    if (status != DSV2_OK)
        goto done;
    ds_log(logger, DSV2_LOG_INFO, "%s: %zu tensors in %zu safetensors files", folder, container->n_tensors,
           container->n_files);
    *out = container;
    container = NULL;
done:
    ds_container_close(container);
    free_index(&index);
    free_list(&list);
    ds_free(index_path);
    return status;
}

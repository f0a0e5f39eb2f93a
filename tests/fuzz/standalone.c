/* Runs a fuzz target without libFuzzer over given files and the files of given folders, so that its seeds are a test of
 * every build. A file is an input; a .hex file has an input a line, in hexadecimal. Prints the number of inputs; no
 * inputs is a failure. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static unsigned n_inputs;

/* In memory as long as the input: a sanitizer sees reads past the end. */
static int run_input(const uint8_t *bytes, size_t size)
{
    uint8_t *data = malloc(size > 0 ? size : 1);
    if (data == NULL)
        return 1;
    memcpy(data, bytes, size);
    LLVMFuzzerTestOneInput(data, size);
    n_inputs++;
    free(data);
    return 0;
}

static int digit(char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1; }

/* The bytes take the place of the digits. */
static int run_line(char *line, size_t length)
{
    for (size_t i = 0; i < length; i += 2) {
        int high = digit(line[i]), low = i + 1 < length ? digit(line[i + 1]) : -1;
        if (high < 0 || low < 0)
            return 1;
        line[i / 2] = (char)(high << 4 | low);
    }
    return run_input((const uint8_t *)line, length / 2);
}

static int run_lines(char *text, size_t size)
{
    for (char *line = text, *end; (end = memchr(line, '\n', size - (size_t)(line - text))) != NULL; line = end + 1)
        if (run_line(line, (size_t)(end - line)) != 0)
            return 1;
    return 0;
}

static int run_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL || fseek(file, 0, SEEK_END) != 0) {
        perror(path);
        return 1;
    }
    size_t size = (size_t)ftell(file), length = strlen(path);
    rewind(file);
    char *data = malloc(size + 1);
    int failed = data == NULL || fread(data, 1, size, file) != size;
    fclose(file);
    if (!failed && length > 4 && strcmp(path + length - 4, ".hex") == 0)
        failed = run_lines(data, size);
    else if (!failed)
        failed = run_input((const uint8_t *)data, size);
    free(data);
    if (failed)
        fprintf(stderr, "%s: cannot be read\n", path);
    return failed;
}

static int run_folder(DIR *dir, const char *path)
{
    int failed = 0;
    const struct dirent *entry;
    while (!failed && (entry = readdir(dir)) != NULL) {
        char name[4096];
        if (entry->d_name[0] == '.')
            continue;
        snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        failed = run_file(name);
    }
    return failed;
}

int main(int argc, char **argv)
{
    int failed = 0;
    for (int i = 1; i < argc && !failed; i++) {
        DIR *dir = opendir(argv[i]);
        if (dir == NULL) {
            failed = run_file(argv[i]);
        } else {
            failed = run_folder(dir, argv[i]);
            closedir(dir);
        }
    }
    printf("%u inputs\n", n_inputs);
    return failed || n_inputs == 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}

/* Runs a fuzz target without libFuzzer over given files and the files of given folders, so that its seeds are a test of
 * every build. Prints the number of inputs; no inputs is a failure. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static unsigned n_inputs;

static int run_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL || fseek(file, 0, SEEK_END) != 0) {
        perror(path);
        return 1;
    }
    long size = ftell(file);
    rewind(file);
    uint8_t *data = malloc(size > 0 ? (size_t)size : 1); /* as long as the input: a sanitizer sees reads past it */
    int failed = data == NULL || fread(data, 1, (size_t)size, file) != (size_t)size;
    fclose(file);
    if (!failed) {
        LLVMFuzzerTestOneInput(data, (size_t)size);
        n_inputs++;
    }
    free(data);
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

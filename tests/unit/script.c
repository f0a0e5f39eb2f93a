#include "script.h"

#include "folder.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

typedef struct bytes {
    unsigned char data[1 << 16];
    size_t size;
} bytes;

static void put(bytes *out, const void *data, size_t size)
{
    ck_assert_uint_le(out->size + size, sizeof out->data);
    memcpy(out->data + out->size, data, size);
    out->size += size;
}

static void put_number(bytes *out, unsigned long long number, size_t size)
{
    unsigned char little[8];
    for (size_t i = 0; i < size; i++)
        little[i] = (unsigned char)(number >> 8 * i);
    put(out, little, size);
}

static void run_script(bytes *out, const char *script)
{
    char copy[4096], *rest, *word;
    ck_assert_uint_lt(strlen(script), sizeof copy);
    strcpy(copy, script);
    out->size = 0;
    for (word = strtok_r(copy, " ", &rest); word != NULL; word = strtok_r(NULL, " ", &rest)) {
        char *value = strchr(word, ':');
        ck_assert_msg(value != NULL, "%s", word);
        *value++ = '\0';
        if (strcmp(word, "b") == 0) {
            put(out, value, strlen(value));
        } else if (strcmp(word, "s") == 0) {
            put_number(out, strlen(value), 8);
            put(out, value, strlen(value));
        } else if (strcmp(word, "f") == 0) {
            float number = strtof(value, NULL);
            put(out, &number, 4);
        } else if (strcmp(word, "d") == 0) {
            double number = strtod(value, NULL);
            put(out, &number, 8);
        } else if (strcmp(word, "pad") == 0) {
            while (out->size % strtoull(value, NULL, 0) != 0)
                put(out, "", 1);
        } else if (strcmp(word, "n") == 0) {
            for (unsigned long long i = 1; i <= strtoull(value, NULL, 0); i++)
                put_number(out, i, 1);
        } else {
            put_number(out, strtoull(value, NULL, 0), strtoull(word, NULL, 10));
        }
    }
}

void script_write(const char *name, const char *script)
{
    bytes *out = malloc(sizeof *out);
    ck_assert_ptr_nonnull(out);
    run_script(out, script);
    folder_write(name, out->data, out->size);
    free(out);
}

/* host MODEL TEXT: a program that defines three names of the library or its dependencies with another meaning. hello.c,
 * whose main is renamed hello_main, is linked into it. */
#include <stdio.h>

int pack(int value) { return value + 1; }
int XXH64(int value) { return value + 2; }
int json_loads(int value) { return value + 3; }

int hello_main(int argc, char **argv);

int main(int argc, char **argv)
{
    if (pack(argc) != argc + 1 || XXH64(argc) != argc + 2 || json_loads(argc) != argc + 3) {
        puts("the host's functions are not the host's");
        return 1;
    }
    return hello_main(argc, argv);
}

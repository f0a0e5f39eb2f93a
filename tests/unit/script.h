/* Binary files from a line of text, for tests of readers that need many bad files. */
#ifndef DS_TESTS_SCRIPT_H
#define DS_TESTS_SCRIPT_H

/* A script is words of a kind and a value:
 *   b:TEXT  bytes      s:TEXT  a string with its length      1:N 2:N 4:N 8:N  an integer of so many bytes
 *   f:X     a float    d:X     a double                      pad:N  zeros up to a multiple of N
 *   n:N     N bytes 1, 2, 3, ... */
void script_write(const char *name, const char *script); /* into the temporary folder of folder.h */

#endif

#!/bin/sh
# Makes a static library of one relocatable object in which only the symbols of default visibility are global.
#   archive.sh OBJCOPY AR OBJECTS.a LIBRARY.a COMPILER...
set -eu
objcopy=$1 ar=$2 objects=$3 library=$4
shift 4
object=${library%.a}.o
"$@" -r -nostdlib -Wl,--whole-archive "$objects" -Wl,--no-whole-archive -o "$object"
"$objcopy" --localize-hidden "$object"
rm -f "$library"
"$ar" rcs "$library" "$object"

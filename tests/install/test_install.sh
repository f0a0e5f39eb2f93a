#!/bin/sh
# Installs the build into an empty folder and uses it from there as a stranger would.
#   test_install.sh pkg-config|cmake SOURCE_ROOT BUILD_ROOT LIBDIR MESON PYTHON CC
# Status 77: skipped, since a tool is missing.
set -eu
unset LD_LIBRARY_PATH # Meson's, to the build
way=$1 source=$2 build=$3 libdir=$4 meson=$5 python=$6 cc=$7
compiler=${cc#*ccache } compiler=${compiler%% *} # without what Meson puts before it, and without its flags
command -v "$way" >/dev/null || { echo "skipped: no $way here"; exit 77; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
$meson install -C "$build" --no-rebuild --quiet --destdir "$folder"
# The tree is moved: nothing in it may know where it was installed.
mv "$folder$($meson introspect --buildoptions "$build" | "$python" -c \
    'import json, sys; print(next(o["value"] for o in json.load(sys.stdin) if o["name"] == "prefix"))')" "$folder/moved"
prefix=$folder/moved
"$python" - "$source" "$folder/model" <<'PYTHON'
import os, sys
sys.path.insert(0, os.path.join(sys.argv[1], "tests/tool"))
import tiny_model
tiny_model.make(os.path.join(sys.argv[1], "tests/data/goldens/lite"), sys.argv[2])
PYTHON

# Links the archive three times: into a program that defines three functions of the same names; beside a library that
# defines every internal name of ours and those of xxHash; and, if the system has the archives, into a program without
# any shared library.
link_archive() {
    static=$(pkg-config --static --cflags --libs dsv2 | sed 's/-ldsv2/-l:libdsv2.a/')
    {
        echo "#include <stdlib.h>"
        nm --extern-only --defined-only "$build/lib/libdsv2-objects.a" | awk 'NF == 3 && $3 !~ /^dsv2_/ { print $3 }' >"$folder/names"
        printf '%s\n' XXH3_64bits XXH3_64bits_withSeed XXH3_128bits XXH3_128bits_withSeed XXH3_createState XXH3_freeState \
            XXH3_128bits_reset XXH3_128bits_update XXH3_128bits_digest | cat "$folder/names" - | sed 's/.*/void &(void) { abort(); }/'
    } >"$folder/other.c"
    grep -q 'void ds_fail(void)' "$folder/other.c" || { echo "the internal names were not read"; exit 1; }
    # -w: compilers know some of the names
    $cc -w -c "$folder/other.c" -o "$folder/other.o"
    ar rcs "$folder/libother.a" "$folder/other.o"
    $cc -std=c11 -Wall -Wextra -Wpedantic -Werror -Dmain=hello_main $(pkg-config --cflags dsv2) -c "$source/examples/hello.c" -o "$folder/hello.o"
    # shellcheck disable=SC2086 # flags are words
    $cc -std=c11 -Wall -Wextra -Wpedantic -Werror "$source/tests/install/host.c" "$folder/hello.o" \
        -Wl,--whole-archive "$folder/libother.a" -Wl,--no-whole-archive $static -o "$folder/static-beside"
    # shellcheck disable=SC2086 # flags are words
    if $cc -static "$source/examples/hello.c" $static -o "$folder/static-alone" 2>"$folder/log"; then
        return
    fi
    if echo 'int main(void) { return 0; }' | $cc -static -x c - -x none -ljansson -lpcre2-8 -lzstd -lm -o "$folder/empty"; then
        cat "$folder/log"
        exit 1
    fi
    echo "skipped: a program without shared libraries: not all of those that the library needs are here as archives"
}

case $way in
pkg-config)
    export PKG_CONFIG_PATH="$prefix/$libdir/pkgconfig"
    # shellcheck disable=SC2046 # flags are words
    $cc -std=c11 -Wall -Wextra -Wpedantic -Werror "$source/examples/hello.c" $(pkg-config --cflags --libs dsv2) -o "$folder/hello"
    export LD_LIBRARY_PATH="$prefix/$libdir"
    [ ! -e "$prefix/$libdir/libdsv2.a" ] || link_archive
    ;;
cmake)
    cmake -S "$source/tests/install/cmake" -B "$folder/build" -DCMAKE_PREFIX_PATH="$prefix" -DCMAKE_C_COMPILER="$compiler" \
        -DHELLO="$source/examples/hello.c" >"$folder/log" || { cat "$folder/log"; exit 1; }
    cmake --build "$folder/build" >"$folder/log" || { cat "$folder/log"; exit 1; }
    mv "$folder/build/hello" "$folder/hello"
    [ ! -e "$prefix/$libdir/libdsv2.a" ] || mv "$folder/build/hello_static" "$folder/static-cmake"
    ;;
esac
"$folder/hello" "$folder/model" "Once upon a time" >"$folder/text"
for program in "$folder"/static-*; do
    [ -e "$program" ] || continue # none is built
    if ldd "$program" | grep libdsv2; then echo "$program uses the shared library"; exit 1; fi
    env -u LD_LIBRARY_PATH "$program" "$folder/model" "Once upon a time" >"$folder/static-text" || { cat "$folder/static-text"; exit 1; }
    cmp "$folder/text" "$folder/static-text"
    rm "$folder/static-text"
done
[ "$(wc -c <"$folder/text")" -gt 50 ] || { echo "hello printed too little:"; cat "$folder/text"; exit 1; }
if "$folder/hello" "$folder/missing" x >"$folder/text"; then echo "hello opened a model that is not there"; exit 1; fi
grep -q "$folder/missing" "$folder/text"

# The installed command finds the installed library by itself.
unset LD_LIBRARY_PATH
"$prefix/bin/dsv2" generate "$folder/model" --prompt "Once upon a time" --max-tokens 5 >"$folder/text"
[ -s "$folder/text" ]
[ ! -e "$prefix/$libdir/libdsv2.so" ] || ldd "$prefix/bin/dsv2" | grep -q "$prefix" || { echo "the command uses another library:"; ldd "$prefix/bin/dsv2"; exit 1; }

#!/bin/sh
# Installs the build into a folder of its own and uses it from there as a stranger would.
#   test_install.sh pkg-config|cmake SOURCE_ROOT BUILD_ROOT LIBDIR MESON PYTHON CC
# Status 77: skipped, for want of a tool.
set -eu
unset LD_LIBRARY_PATH # Meson's, to the build
way=$1 source=$2 build=$3 libdir=$4 meson=$5 python=$6 cc=$7
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

case $way in
pkg-config)
    export PKG_CONFIG_PATH="$prefix/$libdir/pkgconfig"
    # shellcheck disable=SC2046 # flags are words
    $cc -std=c11 -Wall -Wextra -Wpedantic -Werror "$source/examples/hello.c" $(pkg-config --cflags --libs dsv2) -o "$folder/hello"
    export LD_LIBRARY_PATH="$prefix/$libdir"
    ;;
cmake)
    cmake -S "$source/tests/install/cmake" -B "$folder/build" -DCMAKE_PREFIX_PATH="$prefix" -DCMAKE_C_COMPILER="${cc%% *}" \
        -DHELLO="$source/examples/hello.c" >"$folder/log" || { cat "$folder/log"; exit 1; }
    cmake --build "$folder/build" >"$folder/log" || { cat "$folder/log"; exit 1; }
    mv "$folder/build/hello" "$folder/hello"
    ;;
esac
"$folder/hello" "$folder/model" "Once upon a time" >"$folder/text"
[ "$(wc -c <"$folder/text")" -gt 50 ] || { echo "hello printed too little:"; cat "$folder/text"; exit 1; }
if "$folder/hello" "$folder/missing" x >"$folder/text"; then echo "hello opened a model that is not there"; exit 1; fi
grep -q "$folder/missing" "$folder/text"

# The installed command finds the installed library by itself.
unset LD_LIBRARY_PATH
"$prefix/bin/dsv2" generate "$folder/model" --prompt "Once upon a time" --max-tokens 5 >"$folder/text"
[ -s "$folder/text" ]
ldd "$prefix/bin/dsv2" | grep -q "$prefix" || { echo "the command uses another library:"; ldd "$prefix/bin/dsv2"; exit 1; }

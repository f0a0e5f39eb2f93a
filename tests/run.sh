#!/bin/sh
# Installs what the tests need (Debian 12), builds and runs every test; ends with Meson's and Check's summaries.
#   sh tests/run.sh
# Three builds: optimised; with the address and undefined-behaviour sanitizers; with the thread sanitizer (the tests in which
# threads meet). A fourth, by clang, only compiles, with the fuzz targets.
set -eu
cd "$(dirname "$0")/.."
. examples/packages.sh

# shellcheck disable=SC2086 # packages are words
install_packages $BUILD_PACKAGES check clang libclang-rt-14-dev cmake g++ python3 python3-venv valgrind
# Rust: whatever is there already; else Debian's.
command -v cargo >/dev/null || install_packages cargo

# build FOLDER OPTION...: compiles, without a word if all is well.
build() {
    folder=$1
    shift
    echo "== building $folder"
    [ -f "$folder/build.ninja" ] || quietly meson setup "$folder" -Dwerror=true "$@"
    quietly ninja -C "$folder"
}

failed=""
# check FOLDER [ARGUMENT of meson test]...: runs tests, goes on if some fail.
check() {
    folder=$1
    shift
    echo "== testing $folder"
    meson test -C "$folder" --no-rebuild --print-errorlogs --timeout-multiplier 4 "$@" || failed="$failed $folder"
    summaries="$summaries $folder"
}
summaries=""

build build-tests
check build-tests

build build-sanitize --buildtype=debugoptimized -Db_sanitize=address,undefined -Db_lundef=false
check build-sanitize

build build-thread --buildtype=debugoptimized -Db_sanitize=thread -Db_lundef=false
check build-thread --suite threads

export CC=clang
build build-clang --buildtype=debugoptimized -Db_sanitize=address,undefined -Db_lundef=false -Dfuzz=true

# Build by build, so that all is in one place.
for folder in $summaries; do
    echo
    log=$folder/meson-logs/testlog.txt
    echo "== $folder: what was skipped, Meson's summary and Check's"
    grep '^skipped: ' "$log" || echo "nothing was skipped"
    sed -n '/^Ok: /,/^Timeout: /p' "$log"
    grep -E '^Running suite|^[0-9]+%: Checks: ' "$log"
done
if [ -n "$failed" ]; then
    echo
    echo "FAILED:$failed"
    exit 1
fi

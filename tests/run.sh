#!/bin/sh
# Installs what the tests need (Debian 12), builds and runs every test. Ends with Meson's and Check's summaries.
#   sh tests/run.sh [--all]
# Three builds: optimised; with the address and undefined-behaviour sanitizers; with the thread sanitizer, which runs the
# tests in which threads meet, or every test with --all. A fourth build, by clang, only compiles, the fuzz targets included.
set -eu
case $* in
"") all=false ;;
--all)
    all=true
    export DSV2_TEST_ALL=1 # for tests that run a part unless told
    ;;
*)
    echo "usage: sh tests/run.sh [--all]" >&2
    exit 2
    ;;
esac
cd "$(dirname "$0")/.."
. examples/packages.sh

# shellcheck disable=SC2086 # packages are words
install_packages $BUILD_PACKAGES abigail-tools check clang libclang-rt-14-dev cmake g++ python3 python3-venv valgrind
# Rust: whatever is there already; else Debian's.
command -v cargo >/dev/null || install_packages cargo

# timed FOLDER PART COMMAND...: notes how long the part took.
times=$(mktemp)
trap 'rm -f "$times"' EXIT
timed() {
    of=$1 part=$2
    shift 2
    begun=$(date +%s)
    result=0
    "$@" || result=$?
    echo "$of $part $(($(date +%s) - begun))" >>"$times"
    return $result
}

# build FOLDER TARGET OPTION...: compiles, silently if all is well.
build() {
    folder=$1 target=$2
    shift 2
    echo "== building $folder"
    [ -f "$folder/build.ninja" ] || timed "$folder" setup quietly meson setup "$folder" -Dwerror=true "$@" || exit
    timed "$folder" build quietly ninja -C "$folder" "$target" || exit
}

failed=""
# check FOLDER [ARGUMENT of meson test]...: runs tests, goes on if some fail.
check() {
    folder=$1
    shift
    echo "== testing $folder"
    timed "$folder" tests meson test -C "$folder" --no-rebuild --print-errorlogs --timeout-multiplier 4 "$@" || failed="$failed $folder"
    summaries="$summaries $folder"
}
summaries=""

build build-tests all -Dabidiff=enabled
check build-tests

build build-sanitize all --buildtype=debugoptimized -Db_sanitize=address,undefined -Db_lundef=false
check build-sanitize

if $all; then
    build build-thread all --buildtype=debugoptimized -Db_sanitize=thread -Db_lundef=false
    check build-thread
else
    build build-thread threads --buildtype=debugoptimized -Db_sanitize=thread -Db_lundef=false
    check build-thread --suite threads
fi

export CC=clang
build build-clang all --buildtype=debugoptimized -Db_sanitize=address,undefined -Db_lundef=false -Dfuzz=true

# Build by build, so that all is in one place.
for folder in $summaries; do
    echo
    log=$folder/meson-logs/testlog.txt
    echo "== $folder: what was skipped, Meson's summary and Check's"
    grep '^skipped: ' "$log" || echo "nothing was skipped"
    sed -n '/^Ok: /,/^Timeout: /p' "$log"
    grep -E '^Running suite|^[0-9]+%: Checks: ' "$log"
done
echo
awk '{ part[$1] = part[$1] sprintf(", %s %.1f", $2, $3 / 60); sum += $3 }
    !seen[$1]++ { order[++n] = $1 }
    END { for (i = 1; i <= n; i++) printf "minutes: %s %s\n", order[i], substr(part[order[i]], 3); printf "minutes: all %.1f\n", sum / 60 }
' "$times"
if [ -n "$failed" ]; then
    echo
    echo "FAILED:$failed"
    exit 1
fi

#!/bin/sh
# Installs what the tests need (Debian 12), builds and runs tests. Ends with the tests' summaries, what failed in which
# build, and minutes.
#   sh tests/run.sh [--part N | --all]
# Four builds: optimised; with the address and undefined-behaviour sanitizers; with the thread sanitizer; by clang, which
# only compiles, the fuzz targets included. The first two run every test. The thread sanitizer runs the suite `threads`,
# in which threads meet, and one part of the others: every sixth test in parts 1 to 6. Part 7 is a fifth build, in which
# processors' kernels are compiled with sanitizers too. The day of the year chooses the part, or --part does. --all runs
# every part, and the stress test for ten minutes in each sanitised build.
set -eu
usage() {
    echo "usage: sh tests/run.sh [--part N | --all]   (N from 1 to $parts)" >&2
    exit 2
}
thread_parts=6
parts=$((thread_parts + 1))
all=false
part=$(($(date +%-j) % parts + 1))
case $#${1-} in
0) ;;
1--all)
    all=true
    export DSV2_TEST_ALL=1 # for tests that run a part unless told
    ;;
2--part) part=$2 ;;
*) usage ;;
esac
case $part in
[1-$parts]) ;;
*) usage ;;
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
    of=$1 what=$2
    shift 2
    begun=$(date +%s)
    result=0
    "$@" || result=$?
    echo "$of $what $(($(date +%s) - begun))" >>"$times"
    return $result
}

failed="" tested=""
fail() {
    echo "FAILED: $*"
    failed="$failed
FAILED: $*"
}

# build FOLDER TARGETS OPTION...: compiles, silently if all is well.
build() {
    folder=$1 targets=$2
    shift 2
    echo "== building $folder"
    if ! [ -f "$folder/build.ninja" ] && ! timed "$folder" setup quietly meson setup "$folder" -Dwerror=true "$@"; then
        fail "$folder was not set up"
        return 1
    fi
    # shellcheck disable=SC2086 # targets are words
    timed "$folder" build quietly ninja -C "$folder" $targets || { fail "$folder was not compiled"; return 1; }
}

# check FOLDER [ARGUMENT of meson test]...: runs tests, goes on if some fail.
check() {
    folder=$1
    shift
    echo "== testing $folder"
    timed "$folder" tests meson test -C "$folder" --no-rebuild --print-errorlogs --timeout-multiplier 4 "$@" || fail "tests of $folder"
    tested="$tested $folder"
}

# tests_of_part FOLDER N: names of the suite `threads` and of part N, one a line.
tests_of_part() {
    meson test -C "$1" --list 2>/dev/null | awk -v part="$2" -v parts="$thread_parts" -F ' / ' '
        $1 ~ /^libdsv2.*threads/ || ($1 ~ /^libdsv2/ && n++ % parts + 1 == part) { print $2 }'
}

# stress FOLDER: sixteen threads on one model for ten minutes.
stress() {
    echo "== ten minutes of stress in $1"
    TSAN_OPTIONS=die_after_fork=0 timed "$1" stress "$1/tests/test_stress" 600 || fail "ten minutes of stress in $1"
}

sanitized="--buildtype=debugoptimized -Db_lundef=false -Db_sanitize"

if build build-tests all -Dabidiff=enabled; then
    check build-tests
fi

# shellcheck disable=SC2086 # options are words
if build build-sanitize all $sanitized=address,undefined; then
    check build-sanitize
    if $all; then stress build-sanitize; fi
fi

# shellcheck disable=SC2086
if build build-thread all $sanitized=thread; then
    if $all; then
        check build-thread
        stress build-thread
    else
        echo "== part $part of $parts (sh tests/run.sh --part $part)"
        IFS='
'
        set -- $(tests_of_part build-thread "$part")
        unset IFS
        check build-thread "${@:?no tests}"
    fi
fi

# shellcheck disable=SC2086
if { $all || [ "$part" = "$parts" ]; } &&
    build build-kernels 'tests/test_kernels tests/test_cache tests/test_golden tests/test_widths tests/test_gguf_model' \
        $sanitized=address,undefined -Dsanitize_kernels=true; then
    check build-kernels kernels cache golden widths 'gguf models'
fi

export CC=clang
# shellcheck disable=SC2086
build build-clang all $sanitized=address,undefined -Dfuzz=true || true

# Build by build, so that all is in one place.
# shellcheck disable=SC2086 # folders are words
python3 tests/report.py $tested || fail "the report"
echo
awk '{ part[$1] = part[$1] sprintf(", %s %.1f", $2, $3 / 60); sum += $3 }
    !seen[$1]++ { order[++n] = $1 }
    END { for (i = 1; i <= n; i++) printf "minutes: %s %s\n", order[i], substr(part[order[i]], 3); printf "minutes: all %.1f\n", sum / 60 }
' "$times"
if [ -n "$failed" ]; then
    echo "$failed"
    exit 1
fi

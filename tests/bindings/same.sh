#!/bin/sh
# The same prompt, seed and options give the same tokens and the same bytes of a snapshot from C and from another language.
# Each restores the other's snapshot. Usage: same.sh C_PROGRAM COMMAND... (both as tests/bindings/same.c)
set -eu
c=$1
shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$(dirname "$0")/model.sh" "$work/model"

"$c" "$work/model" fresh "$work/c.snapshot" > "$work/c.tokens"
"$@" "$work/model" fresh "$work/other.snapshot" > "$work/other.tokens"
test "$(wc -l < "$work/c.tokens")" -eq 64
diff "$work/c.tokens" "$work/other.tokens"
cmp "$work/c.snapshot" "$work/other.snapshot"

tail -n 16 "$work/c.tokens" > "$work/expected"
"$c" "$work/model" restore "$work/other.snapshot" | diff "$work/expected" -
"$@" "$work/model" restore "$work/c.snapshot" | diff "$work/expected" -
echo "the same 64 tokens and the same snapshot: C and $*"

#!/bin/sh
# Runs a command with the path of a small model as its last argument.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$(dirname "$0")/model.sh" "$work/model"
"$@" "$work/model"

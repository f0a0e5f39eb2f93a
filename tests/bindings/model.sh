#!/bin/sh
# Makes a small model with text in the folder $1: the golden checkpoint `lite` and a tokenizer that fits its vocabulary.
set -eu
data=$(cd "$(dirname "$0")/../data" && pwd)
mkdir -p "$1"
cp "$data"/goldens/lite/* "$data"/bytes/* "$1"

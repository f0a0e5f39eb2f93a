#!/bin/sh
# Makes src/bindings.rs from the public headers. Needs bindgen (cargo install bindgen-cli) and libclang.
set -eu
cd "$(dirname "$0")"
bindgen ../../../include/dsv2/dsv2.h --output "${1:-src/bindings.rs}" --rust-target 1.63 --no-doc-comments \
    --allowlist-item '(dsv2|DSV2)_.*' --default-enum-style newtype --no-prepend-enum-name --must-use-type dsv2_status \
    -- -I../../../include -std=c11

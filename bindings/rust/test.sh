#!/bin/sh
# Checks and tests the Rust crates. Exit status 77: skipped; the reason is printed.
# Usage: test.sh LIBRARY_DIR PKG_CONFIG_DIR LAYOUT SAME (all of the build; the programs are of tests/abi and tests/bindings)
set -eu
LD_LIBRARY_PATH=$(realpath "$1")${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
PKG_CONFIG_PATH=$(realpath "$2")${PKG_CONFIG_PATH:+:$PKG_CONFIG_PATH}
CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$(realpath "$2/..")/rust}
layout=$(realpath "$3") same=$(realpath "$4")
cd "$(dirname "$0")"
root=$(realpath ../..)
export LD_LIBRARY_PATH PKG_CONFIG_PATH CARGO_TARGET_DIR
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if ! command -v cargo > "$work/where" 2>&1; then
    echo "skipped: the tests of the Rust crates: cargo is missing"
    exit 77
fi
if ! cargo fetch -q --locked; then
    echo "skipped: the tests of the Rust crates: the dependencies in Cargo.lock cannot be fetched"
    exit 77
fi

echo "== the layout of the C headers"
"$layout" > "$work/layout.json"
python3 "$root/tests/abi/headers.py" rust "$work/layout.json" | diff dsv2-sys/tests/layout.rs -
if [ "$(bindgen --version 2>&1)" = "$(sed -n 's|.*by rust-\(bindgen [0-9.]*\).*|\1|p' dsv2-sys/src/bindings.rs)" ]; then
    dsv2-sys/generate.sh "$work/bindings.rs"
    diff dsv2-sys/src/bindings.rs "$work/bindings.rs"
else
    echo "skipped: making dsv2-sys/src/bindings.rs anew: the bindgen that made it is missing"
fi
python3 "$root/tests/abi/headers.py" mirrored "$work/layout.json" dsv2/src/*.rs

echo "== rustfmt, clippy"
if cargo fmt --version > "$work/version" 2>&1; then
    cargo fmt --check
else
    echo "skipped: the format of the Rust crates: rustfmt is missing"
fi
if cargo clippy --version > "$work/version" 2>&1; then
    cargo clippy -q --locked --all-features --all-targets -- -D warnings
else
    echo "skipped: the lints of the Rust crates: clippy is missing"
fi

echo "== cargo test"
cargo test -q --locked --all-features
RUSTDOCFLAGS='-D warnings' cargo doc -q --locked --all-features --no-deps

echo "== the same from C and Rust"
cargo build -q --locked --example same
"$root/tests/bindings/same.sh" "$same" "$CARGO_TARGET_DIR/debug/examples/same"

echo "== the crates of version 0.1.0, with this library"
python3 "$root/tests/abi/test_release.py" rust

echo "== a new crate, as the README says"
"$root/tests/bindings/model.sh" "$work/model"
(
    cd "$work"
    cargo new -q --vcs none story
    cd story
    cargo add -q --path "$root/bindings/rust/dsv2"
    # The lock keeps out versions newer than those tested.
    cp "$root/bindings/rust/Cargo.lock" .
    sed -n '/^```rust/,/^```$/p' "$root/bindings/rust/dsv2/README.md" | sed '1d;$d' > src/main.rs
    CARGO_TARGET_DIR=$work/target cargo run -q --offline -- "$work/model" > "$work/story.txt"
    test -s "$work/story.txt"
)

echo "== Rust 1.63, the oldest that is supported"
old=${RUST_1_63:-/usr/bin}
if [ "$("$old/rustc" --version 2>&1 | cut -d. -f1,2)" = "rustc 1.63" ] && [ -x "$old/cargo" ]; then
    # This cargo cannot read today's registry. A folder gives it the locked versions.
    cargo vendor -q --locked "$work/vendor" > "$work/vendor.toml"
    RUSTC=$old/rustc CARGO_TARGET_DIR=$CARGO_TARGET_DIR/1.63 "$old/cargo" test -q --locked --offline --all-features \
        -p dsv2 --test text --test safety --test serde \
        --config 'source.crates-io.replace-with="folder"' --config "source.folder.directory=\"$work/vendor\""
else
    echo "skipped: the build with Rust 1.63: $old/rustc is another version, or missing (apt install rustc cargo on Debian 12)"
fi

#!/bin/sh
# Installs what is needed (Debian 12), builds, and lets the model in the repository continue a text.
#   sh examples/quickstart.sh [TEXT]
set -eu
cd "$(dirname "$0")/.."
. examples/packages.sh
text=${1:-"Once upon a time, in a house by the sea,"}

# shellcheck disable=SC2086 # packages are words
install_packages $BUILD_PACKAGES
if [ ! -f build/build.ninja ]; then
    quietly meson setup build -Dtests=false
fi
echo "Building"
quietly ninja -C build

echo
echo "\$ build/examples/dsv2 generate examples/model --prompt \"$text\""
printf '%s' "$text"
build/examples/dsv2 generate examples/model --prompt "$text"
[ -t 1 ] || echo

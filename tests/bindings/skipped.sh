#!/bin/sh
# Says that something is skipped, in the way that Meson understands.
echo "skipped: $1"
exit 77

"""Turns the public headers into dsv2/_ffi.py, so that the package declares what the headers declare.

Usage: make_ffi.py INCLUDE_DIR OUTPUT
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import cffi

# In the order in which dsv2.h includes them.
HEADERS = ["version", "error", "model", "tokenizer", "sampling", "session", "snapshot", "routing"]


def declarations(include: Path) -> str:
    """Return the headers' declarations and numeric defines in the C that cffi reads."""
    text = "".join((include / f"{name}.h").read_text(encoding="utf-8") for name in HEADERS)
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.DOTALL)
    numbers = re.findall(r"^#define \w+ +\d+$", text, flags=re.MULTILINE)
    text = re.sub(r"^#(?:.*\\\n)*.*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\bDSV2_(?:API|CHECK_RESULT|BEGIN_DECLS|END_DECLS)\b", "", text)
    # C allows a typedef twice, cffi does not.
    seen: set[str] = set()
    lines = []
    for line in text.splitlines():
        if re.fullmatch(r"typedef struct \w+ \w+;", line):
            if line in seen:
                continue
            seen.add(line)
        lines.append(line)
    return "\n".join(numbers + lines)


def main() -> None:
    """Write the module."""
    include, output = Path(sys.argv[1]), Path(sys.argv[2])
    ffi = cffi.FFI()
    ffi.cdef(declarations(include))
    ffi.set_source("dsv2._ffi", None)
    ffi.emit_python_code(str(output))


if __name__ == "__main__":
    main()

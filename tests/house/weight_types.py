#!/usr/bin/env python3
"""Writes what other languages and documents know of lib/kernels/types.def: the public enumeration, its twins in the bindings, the names
that the dsv2 command takes, and the numbers of types in packs. Python 3 alone.

weight_types.py ROOT           fails, and says where, if a file differs from what the table makes of it
weight_types.py ROOT --write   writes the files anew
"""

import re
import sys
from pathlib import Path

AS_STORED = (0, "AS_STORED", "as stored", "Keep each tensor's type.")
MIXED = (10, "MIXED", "mixed", "Tensors of several types; in [`ModelInfo`] only.")


ARGUMENTS = {"PLAIN": 7, "SCALED": 5, "BLOCK": 10, "INTERLEAVED": 6}


def table(root):
    """The lines of types.def: kind and arguments."""
    text = (root / "lib/kernels/types.def").read_text(encoding="utf-8")
    lines = re.findall(rf"^({'|'.join(ARGUMENTS)})\((.*)\)(?: */\*.*)?$", text, flags=re.MULTILINE)
    return [(kind, [a.strip().strip('"') for a in arguments.split(",", ARGUMENTS[kind] - 1)]) for kind, arguments in lines]


def public_types(lines):
    """(value, name in capitals, name, sentence), by value."""
    types = [AS_STORED, MIXED]
    for kind, arguments in lines:
        if kind != "INTERLEAVED" and arguments[2] != "0":
            types.append((int(arguments[2]), arguments[0], arguments[1], arguments[-1] + "."))
    types.sort()
    assert [t[0] for t in types] == list(range(len(types))), "values of dsv2_weight_type have a gap, or are given twice"
    return types


def pack_codes(lines):
    """The cell of the formats' README."""
    plain = ", ".join(f"{a[4]} {a[0]}" for kind, a in lines if kind == "PLAIN")
    interleaved = ", ".join(f"{a[2]} {a[0]}" for kind, a in lines if kind == "INTERLEAVED")
    return f"element type: {plain}; interleaved (their layout is in `../kernels/README.md`): {interleaved} |"


def rust_name(name):
    """As Rust's linter wants it: an underscore only between digits."""
    words = [word.title() for word in name.split("_")]
    joined = words[0]
    for word in words[1:]:
        joined += ("_" if joined[-1].isdigit() and word[0].isdigit() else "") + word
    return joined


def c_enum(types):
    remark = " /* in dsv2_model_info only: tensors of several types */"
    last = types[-1][0]
    return "".join(
        f"    DSV2_WEIGHTS_{name} = {value}{',' if value != last else ''}{remark if name == 'MIXED' else ''}\n" for value, name, _, _ in types
    )


def rust_impl(types):
    return "".join(f"    pub const DSV2_WEIGHTS_{name}: dsv2_weight_type = dsv2_weight_type({value});\n" for value, name, _, _ in types)


def rust_mirror(types):
    return "".join(f"        /// {text}\n        {rust_name(name)} = DSV2_WEIGHTS_{name},\n" for _, name, _, text in types)


def places(root):
    """(file, the text before, the text after, what lies between)"""
    lines = table(root)
    types = public_types(lines)
    return [
        ("include/dsv2/model.h", "typedef enum dsv2_weight_type {\n", "} dsv2_weight_type;", c_enum(types)),
        (
            "bindings/python/dsv2/_types.py",
            "    # written by tests/house/weight_types.py\n",
            "\n\nclass ",
            "".join(f"    {name} = {value}\n" for value, name, _, _ in types),
        ),
        ("bindings/rust/dsv2-sys/src/bindings.rs", "impl dsv2_weight_type {\n", "}\n", rust_impl(types)),
        (
            "bindings/rust/dsv2-sys/tests/layout.rs",
            "    assert_eq!(dsv2_log_level::DSV2_LOG_INFO.0, 2);\n",
            "    assert_eq!(dsv2_loading",
            "".join(f"    assert_eq!(dsv2_weight_type::DSV2_WEIGHTS_{name}.0, {value});\n" for value, name, _, _ in types),
        ),
        ("bindings/rust/dsv2/src/model.rs", "    WeightType: dsv2_weight_type {\n", "    }\n", rust_mirror(types)),
        (
            "examples/dsv2/common.c",
            "static const char *const weight_type_names[] = {\n",
            "};\n",
            "".join(f'    [DSV2_WEIGHTS_{name}] = "{small}",\n' for _, name, small, _ in types),
        ),
        ("lib/formats/README.md", "| 2 | 1 | ", "\n", pack_codes(lines)),
    ]


def main():
    root, write = Path(sys.argv[1]), "--write" in sys.argv[2:]
    stale = []
    for name, before, after, content in places(root):
        text = (root / name).read_text(encoding="utf-8")
        start = text.index(before) + len(before)
        end = text.index(after, start)
        made = text[:start] + content + text[end:]
        if made != text:
            stale.append(name)
            if write:
                (root / name).write_text(made, encoding="utf-8")
    if stale and not write:
        sys.exit(f"not what lib/kernels/types.def makes of them (tests/house/weight_types.py {root} --write): " + ", ".join(stale))


main()

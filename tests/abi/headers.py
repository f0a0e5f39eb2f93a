"""What the public headers declare, for the tests that compare the bindings with it. Python 3 alone.

headers.py c INCLUDE                  prints a C program that prints the layout of all structures and enumerations as JSON
headers.py rust LAYOUT.json           prints dsv2-sys's tests/layout.rs, which checks the same layout
headers.py symbols INCLUDE LIBRARY    checks that the library, shared or static, exports the declared functions, no more and no
                                      less, and calls none that ends the process (as an assertion does), prints or changes its
                                      settings
headers.py alone INCLUDE COMPILER...   compiles every header by itself as C++11, without a warning
headers.py grow INCLUDE FOLDER         writes the headers of a later version, in which every structure that begins with struct_size
                                      has one more field
headers.py mirrored LAYOUT.json FILE... checks that the files name every enumeration's items and every record's fields
"""

import json
import re
import subprocess
import sys
from pathlib import Path

HEADERS = ["version", "error", "model", "tokenizer", "sampling", "session", "snapshot", "routing"]


def text_of(include):
    """The headers' declarations without comments and preprocessor lines."""
    text = "".join((Path(include) / "dsv2" / f"{name}.h").read_text(encoding="utf-8") for name in HEADERS)
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.DOTALL)
    return re.sub(r"^#(?:.*\\\n)*.*$", "", text, flags=re.MULTILINE)


def functions(text):
    return sorted(re.findall(r"\bDSV2_API\b[^;(]*?\b(dsv2_\w+)\s*\(", text))


def enums(text):
    return {
        name: re.findall(r"\b(DSV2_\w+)\s*=", body)
        for body, name in re.findall(r"typedef enum \w+\s*\{(.*?)\}\s*(\w+);", text, flags=re.DOTALL)
    }


def structs(text):
    return {
        name: re.findall(r"(\w+)(?:\[\w+\])?;", body)
        for body, name in re.findall(r"typedef struct \w+\s*\{(.*?)\}\s*(\w+);", text, flags=re.DOTALL)
    }


def c_program(include):
    text = text_of(include)
    lines = []
    for name, items in enums(text).items():
        values = ", ".join(f'\\"{item}\\": %lld' for item in items)
        lines.append((f'\\"{name}\\": {{{values}}}', [f"(long long){item}" for item in items]))
    enum_lines, lines = lines, []
    for name, fields in structs(text).items():
        values = ", ".join(f'\\"{field}\\": [%zu, %zu]' for field in fields)
        arguments = [f"sizeof({name})", f"(size_t)_Alignof({name})"]
        for field in fields:
            arguments += [f"offsetof({name}, {field})", f"sizeof((({name} *)0)->{field})"]
        lines.append((f'\\"{name}\\": {{\\"size\\": %zu, \\"align\\": %zu, \\"fields\\": {{{values}}}}}', arguments))

    def prints(lines):
        for i, (form, arguments) in enumerate(lines):
            end = "," if i + 1 < len(lines) else ""
            yield f'    printf("    {form}{end}\\n",\n        ' + ",\n        ".join(arguments) + ");"

    declared = ", ".join(f'\\"{name}\\"' for name in functions(text))
    print("#include <dsv2/dsv2.h>\n#include <stdio.h>\n\nint main(void)\n{")
    print('    printf("{\\n  \\"enums\\": {\\n");')
    print("\n".join(prints(enum_lines)))
    print('    printf("  },\\n  \\"structs\\": {\\n");')
    print("\n".join(prints(lines)))
    print('    printf("  },\\n  \\"functions\\": [%s]\\n}\\n",')
    print(f'        "{declared}");\n}}')


def rust_test(layout):
    layout = json.loads(Path(layout).read_text())
    print("//! The layout of the C headers, made by tests/abi/headers.py of the repository: do not edit.")
    print("#![allow(clippy::unnecessary_cast)]\n")
    print("use dsv2_sys::*;\nuse std::mem::{align_of, size_of, MaybeUninit};\nuse std::ptr::addr_of;\n")
    print("macro_rules! field {\n    ($type:ty, $field:ident) => {{\n        let value = MaybeUninit::<$type>::uninit();")
    print("        let start = value.as_ptr();\n        // SAFETY: only addresses are taken.")
    print("        let field = unsafe { addr_of!((*start).$field) };")
    print("        fn size<T>(_: *const T) -> usize {\n            size_of::<T>()\n        }")
    print("        (field as usize - start as usize, size(field))\n    }};\n}\n")
    print("#[test]\nfn structures_are_laid_out_as_in_c() {")
    for name, struct in layout["structs"].items():
        print(f'    assert_eq!((size_of::<{name}>(), align_of::<{name}>()), ({struct["size"]}, {struct["align"]}));')
        for field, (offset, size) in struct["fields"].items():
            raw = {"type": "type_"}.get(field, field)
            print(f"    assert_eq!(field!({name}, {raw}), ({offset}, {size}));")
    print("}\n\n#[test]\nfn enumerations_have_the_values_of_c() {")
    for name, items in layout["enums"].items():
        for item, value in items.items():
            print(f"    assert_eq!({name}::{item}.0, {value});")
    print("}\n\n#[test]\nfn every_function_is_declared() {\n    let functions: &[*const ()] = &[")
    for name in layout["functions"]:
        print(f"        {name} as *const (),")
    print("    ];\n    assert!(functions.iter().all(|function| !function.is_null()));\n}")


# Functions that end the host's process, write to its streams or change a setting of the process. fesetenv is allowed:
# a call sets modes of its own and puts the host's back, which the test `modes` watches.
FORBIDDEN = set(
    """abort exit _exit _Exit quick_exit __assert_fail __assert raise kill fork vfork system popen execve signal sigaction
    stdout stderr printf __printf_chk fprintf __fprintf_chk vfprintf puts putchar perror psignal error warn
    setlocale setenv putenv srand fesetround omp_set_num_threads openblas_set_num_threads""".split()
)


def symbols(library, which):
    """The symbols that programs see. The symbol version itself, listed as an absolute symbol, is left out."""
    table = "--extern-only" if library.endswith(".a") else "--dynamic"
    listing = subprocess.run(["nm", table, which, library], check=True, capture_output=True, text=True).stdout
    lines = [line.split() for line in listing.splitlines() if not line.endswith(":")]  # a member's name ends so
    return {fields[-1].split("@")[0] for fields in lines if fields and fields[-2] != "A"}


def check_symbols(include, library):
    declared = set(functions(text_of(include)))
    exported, needed = symbols(library, "--defined-only"), symbols(library, "--undefined-only")
    complaints = {
        "declared but not exported": declared - exported,
        "exported but not declared": exported - declared,
        "called, which a library must not": needed & FORBIDDEN,
    }
    for what, names in complaints.items():
        for name in sorted(names):
            print(f"{name} is {what}")
    print(f"{len(declared)} functions declared, {len(exported)} exported, {len(needed)} needed")
    return not any(complaints.values())


def compile_alone(include, compiler):
    flags = ["-std=c++11", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Werror", "-fsyntax-only", "-x", "c++", "-"]
    results = []
    for header in sorted(path.name for path in (Path(include) / "dsv2").glob("*.h*")):
        source = f"#include <dsv2/{header}>\n#include <dsv2/{header}>\n"
        results.append(subprocess.run([*compiler, *flags, "-I", include], input=source, text=True, check=False).returncode == 0)
        print(f"{header}: {'compiles' if results[-1] else 'does not compile'} as C++11")
    return results and all(results)


def grow(include, folder):
    for header in (Path(include) / "dsv2").glob("*.h"):
        text = re.sub(
            r"(typedef struct (\w+) \{\n    size_t struct_size;.*?)(\} \2;)",
            r"\1    uint64_t appended_by_a_later_version[2];\n\3",
            header.read_text(encoding="utf-8"),
            flags=re.DOTALL,
        )
        (Path(folder) / header.name).write_text(text, encoding="utf-8")


# The structures that bindings turn into records of their own, field by field.
RECORDS = [
    "dsv2_model_info", "dsv2_bytes_needed_info", "dsv2_memory_info", "dsv2_tokenizer_info", "dsv2_sampling", "dsv2_snapshot_info", "dsv2_routing_info",
    "dsv2_expert_load", "dsv2_routing_balance", "dsv2_token_probability", "dsv2_save_options", "dsv2_restore_options",
    "dsv2_session_options", "dsv2_model_options", "dsv2_pack_options",
]


def check_mirrored(layout, files):
    layout = json.loads(Path(layout).read_text())
    words = set(re.findall(r"\w+", "".join(Path(file).read_text(encoding="utf-8") for file in files)))
    wanted = [(name, item) for name, items in layout["enums"].items() for item in items]
    wanted += [(name, field) for name in RECORDS for field in layout["structs"][name]["fields"]]
    missing = [(name, word) for name, word in wanted if word not in words]
    for name, word in missing:
        print(f"{word} of {name} is not mirrored")
    print(f"{len(wanted)} items and fields looked for")
    return not missing


def main(arguments):
    command, rest = arguments[0], arguments[1:]
    if command == "c":
        c_program(rest[0])
    elif command == "rust":
        rust_test(rest[0])
    elif command == "symbols":
        return 0 if check_symbols(*rest) else 1
    elif command == "alone":
        return 0 if compile_alone(rest[0], rest[1:]) else 1
    elif command == "grow":
        grow(*rest)
    elif command == "mirrored":
        return 0 if check_mirrored(rest[0], rest[1:]) else 1
    else:
        print(__doc__, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The gate of the binary interface: abidiff compares the library with version 0.1's. Python 3, abidiff, a C compiler.

test_gate.py check LIBRARY INCLUDE MAP COMPILER...   LIBRARY has debugging information
test_gate.py write LIBRARY INCLUDE FILE              describes a release's library, as a new baseline

First the library itself is compared. Then breaks are made on purpose in copies of the headers, each in a library of
empty functions, to see that the same comparison catches them; and additions, to see that it lets them pass.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import headers

HERE = Path(__file__).parent
BASELINE, ALLOWED, HANDLES = HERE / "0.1.0.abi", HERE / "allowed.suppr", HERE / "handles.suppr"
SONAME = "libdsv2.so.0"

DECLARATION = re.compile(r"\bDSV2_API\b\s*([^;]*?\b(dsv2_\w+)\s*\(([^;]*)\))\s*;")


def describe(library, include, described):
    """Writes the library's interface as abidw sees it. Returns the declared functions that are not described."""
    options = ["--exported-interfaces-only", "--drop-undefined-syms", "--drop-private-types", "--headers-dir", include]
    options += ["--suppressions", HANDLES]
    options += [f"--no-{left_out}" for left_out in ("corpus-path", "comp-dir-path", "show-locs", "elf-needed")]
    subprocess.run(["abidw", *options, "--out-file", described, library], check=True)
    text = Path(described).read_text(encoding="utf-8")
    bodies = dict(re.findall(r"<function-decl name='(dsv2_\w+)' .*?>(.*?)</function-decl>", text, flags=re.DOTALL))
    declared = DECLARATION.findall(headers.text_of(include))
    for _, name, arguments in declared:
        expected = 0 if arguments.strip() == "void" else arguments.count(",") + 1
        if name in bodies and bodies[name].count("<parameter ") != expected:
            raise AssertionError(f"abidw lost an argument of {name}")
    return [name for _, name, _ in declared if name not in bodies]


ADDITION = re.compile(
    r"'struct (\w+)' changed:\n  type size changed from (\d+) to \d+ \(in bits\)\n"
    r"  \d+ data member insertions?:\n((?:    '.*', at offset \d+ \(in bits\)\n)+)(?!  )"
)


def only_additions(report, growing):
    """Whether a report without suppressions has nothing but fields behind the end of structures that may grow."""

    def explained(match):
        offsets = [int(bit) for bit in re.findall(r"at offset (\d+)", match[3])]
        return "" if match[1] in growing and min(offsets) >= int(match[2]) else match[0]

    left = ADDITION.sub(explained, report)
    return not [line for line in left.splitlines() if line and " summary: " not in line]


def compare(described, growing):
    """abidiff's report, and whether the library may replace version 0.1's."""

    def run(*options):
        command = ["abidiff", "--no-default-suppression", "--leaf-changes-only", "--no-added-syms", *options]
        return subprocess.run([*command, BASELINE, described], capture_output=True, text=True, check=False)

    judged = run("--suppressions", ALLOWED)
    report = judged.stdout + judged.stderr
    if judged.returncode != 0:
        return report, False
    seen = run()
    return report + seen.stdout + seen.stderr, only_additions(seen.stdout, growing)


# ---- breaks and additions ----


def changed(old, new):
    def change(text):
        if old not in text:
            raise AssertionError(f"not found: {old}")
        return text.replace(old, new)

    return change


def grown(text):
    """Every structure that begins with struct_size gets fields at its end."""
    return re.sub(r"(\n    size_t struct_size;[^}]*\n)(\} \w+;)", r"\1    uint64_t appended[2];\n\2", text)


def appended(struct, field="uint64_t appended[2]"):
    return changed(f"\n}} {struct};", f"\n    {field};\n}} {struct};")


def swapped(first, second):
    return lambda text: text.replace(first, "%").replace(second, first).replace("%", second)


def both(*changes):
    def change(text):
        for one in changes:
            text = one(text)
        return text

    return change


INSERTED = changed("    dsv2_cache_type cache_type;", "    uint64_t new;\n    dsv2_cache_type cache_type;")
MOVED = swapped("uint32_t n_group;", "uint32_t topk_group;")

# What is changed, where, and how.
BREAKS = [
    ("two fields of one type change places", "model.h", MOVED),
    ("two fields change places and another is appended", "model.h", both(MOVED, appended("dsv2_model_info"))),
    ("a field moves to the end", "model.h",
     both(changed("    uint64_t pages_in_use;", ""), appended("dsv2_memory_info", "uint64_t pages_in_use"))),
    ("a field is inserted", "session.h", INSERTED),
    ("a field is inserted and another appended", "session.h", both(INSERTED, appended("dsv2_session_options"))),
    ("a field is put where old hosts have padding", "session.h", appended("dsv2_step_item", "int in_padding")),
    ("a field is dropped", "model.h", changed("    uint64_t scratch_bytes;", "")),
    ("a field changes its type and another is appended", "sampling.h",
     both(changed("uint32_t top_k;", "float top_k;"), appended("dsv2_sampling"))),
    ("a field changes its sign", "model.h", changed("int32_t eos_token_id;", "uint32_t eos_token_id;")),
    ("an array grows", "model.h", changed("char architecture[32]", "char architecture[64]")),
    ("a structure without struct_size grows", "sampling.h", appended("dsv2_token_probability")),
    ("a structure that another points to grows", "sampling.h", appended("dsv2_logit_bias")),
    ("an enumerator gets another value", "error.h", changed("DSV2_ERROR_FULL = 8", "DSV2_ERROR_FULL = 80")),
    ("two enumerators change values", "session.h", both(swapped("Q8 = 3", "Q6 = 4"), swapped("Q8", "Q6"))),
    ("an enumerator is dropped", "model.h", changed("DSV2_PHASE_VERIFY = 4,", "")),
    ("an argument changes its type", "session.h",
     changed("truncate(dsv2_session *session, size_t n)", "truncate(dsv2_session *session, uint32_t n)")),
    ("an argument changes its sign", "session.h",
     changed("dsv2_session *session, int32_t token,", "dsv2_session *session, uint32_t token,")),
    ("an argument is added", "session.h",
     changed("truncate(dsv2_session *session, size_t n)", "truncate(dsv2_session *session, size_t n, int m)")),
    ("two arguments change places", "session.h",
     changed("size_t n, dsv2_session **copy)", "dsv2_session **copy, size_t n)")),
    ("a handle is another's", "routing.h",
     changed("session_routing_reset(dsv2_session *session", "session_routing_reset(dsv2_model *session")),
    ("a result changes its type", "session.h",
     changed("DSV2_API void dsv2_session_cancel", "DSV2_API dsv2_status dsv2_session_cancel")),
    ("a callback gets another argument", "model.h",
     changed("dsv2_phase phase, uint64_t done", "dsv2_phase phase, uint32_t done")),
    ("a symbol is dropped", "libdsv2.map", changed("        dsv2_session_truncate;\n", "")),
    ("a symbol moves to another node", "libdsv2.map",
     both(changed("        dsv2_step;\n", ""), changed("dsv2_session_seed;", "dsv2_session_seed;\n        dsv2_step;"))),
]  # fmt: skip
ADDITIONS = [
    ("nothing changes", None, None),
    ("all structures grow that may", ".h", grown),
    ("an enumerator is appended", "session.h", changed("DSV2_CACHE_Q6 = 4 ", "DSV2_CACHE_Q6 = 4, DSV2_CACHE_NEW = 5 ")),
    ("a status is appended", "error.h", changed("BUFFER = 11", "BUFFER = 11, DSV2_ERROR_NEW = 12")),
    ("a function is added", "error.h", changed("DSV2_END_DECLS", "DSV2_API void dsv2_new(void);\nDSV2_END_DECLS")),
]


class Workshop:
    """Makes small libraries with changed interfaces in a folder."""

    def __init__(self, folder, include, version_map, compiler):
        self.folder, self.compiler = Path(folder), compiler
        public = (Path(include) / "dsv2").glob("*.h")
        self.files = {f"dsv2/{path.name}": path.read_text(encoding="utf-8") for path in public}
        self.files["libdsv2.map"] = Path(version_map).read_text(encoding="utf-8")
        (self.folder / "dsv2").mkdir()

    def growing(self):
        """The structures that begin with struct_size."""
        texts = "".join(self.files.values())
        return sorted(re.findall(r"typedef struct (\w+) \{\n    size_t struct_size;", texts))

    def build(self, name, change):
        """A library whose headers and map are today's but for one of them; its description."""
        for path, text in self.files.items():
            new = change(text) if name is not None and path.endswith(name) else text
            (self.folder / path).write_text(new, encoding="utf-8")
        source, library, described = (self.folder / file for file in ("empty.c", "libdsv2.so", "described.abi"))
        source.write_text(empty_functions(self.folder), encoding="utf-8")
        flags = ["-std=c11", "-w", "-g", "-O0", "-fPIC", "-shared", f"-I{self.folder}", f"-Wl,-soname,{SONAME}"]
        flags += [f"-Wl,--version-script={self.folder}/libdsv2.map"]
        subprocess.run([*self.compiler, *flags, source, "-o", library], check=True)
        describe(library, self.folder, described)
        return described


def empty_functions(include):
    """A C program of the declared functions, which do nothing. Handles are complete there, as in the library."""
    lines = ["#include <dsv2/dsv2.h>"]
    lines += [f"struct dsv2_{handle} {{ int content; }};" for handle in ("model", "session", "routing")]
    for declaration, _, _ in DECLARATION.findall(headers.text_of(include)):
        declaration = " ".join(declaration.replace("DSV2_CHECK_RESULT", "").split())
        lines.append(declaration + (" { }" if declaration.startswith("void ") else " { return 0; }"))
    return "\n".join(lines) + "\n"


def check(library, include, version_map, *compiler):
    complaints = []
    with tempfile.TemporaryDirectory() as folder:
        workshop = Workshop(folder, include, version_map, compiler)
        growing = workshop.growing()
        described = Path(folder) / "library.abi"
        for name in describe(library, include, described):
            complaints.append(f"{name} has no debugging information: does tests/abi/meson.build name its file?")
        report, compatible = compare(described, growing)
        print(f"== {library}\n{report}")
        if not compatible:
            complaints.append("the library cannot replace version 0.1's: see its report, and README.md")
        listed = re.search(r"name_regexp = \^dsv2_\((.*)\)\$", ALLOWED.read_text(encoding="utf-8"))[1].split("|")
        if [f"dsv2_{name}" for name in listed] != growing:
            complaints.append(f"{ALLOWED.name} lists {listed}, but struct_size begins {growing}")
        for changes, expected in ((BREAKS, False), (ADDITIONS, True)):
            for what, name, change in changes:
                report, passes = compare(workshop.build(name, change), growing)
                print(f"{'passes' if passes else 'caught'}: {what}")
                if passes != expected:
                    complaints.append(f"{'not caught' if passes else 'refused'}: {what}\n{report}")
    print("\n".join(complaints) if complaints else "all as it should be")
    return not complaints


def main(command, *rest):
    if command == "write":
        describe(*rest)
        return True
    return check(*rest)


if __name__ == "__main__":
    sys.exit(0 if main(*sys.argv[1:]) else 1)

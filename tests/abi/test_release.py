"""Version 0.1.0's examples, bindings and tests, compiled against its headers, run with this library; see changed.md.

test_release.py c LIBRARY_DIR COMPILER...       C and C++, and the dsv2 command
test_release.py python LIBRARY_DIR COMPILER...  the Python package; run by a Python that has cffi, numpy and pytest
test_release.py rust                            the Rust crates; the environment names library and pkg-config's file

The tests that fail must be those of changed.md, all of these and no others.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
ARCHIVE, CHANGED = HERE / "0.1.0.tar.xz", HERE / "changed.md"

# Support files besides those that all have.
C_TESTS = {
    "golden": ("golden/test_golden.c", []),
    "routing": ("unit/test_routing.c", ["oom"]),
    "session": ("robustness/test_session.c", ["oom"]),
    "snapshot": ("snapshot/test_snapshot.c", ["oom", "snapshot_file"]),
}
SUPPORT = ["checkpoint", "model", "reference", "run", "tensors"]

# What 0.1.0's support took from the inside of the library.
BYTES = """
#include <stdint.h>
#include <string.h>
uint32_t dsv2_load_u32(const void *bytes) { uint32_t value; memcpy(&value, bytes, sizeof value); return value; }
uint64_t dsv2_load_u64(const void *bytes) { uint64_t value; memcpy(&value, bytes, sizeof value); return value; }
void dsv2_store_u32(void *bytes, uint32_t value) { memcpy(bytes, &value, sizeof value); }
void dsv2_store_u64(void *bytes, uint64_t value) { memcpy(bytes, &value, sizeof value); }
"""


def run(*command, **options):
    """Runs a command and prints what it says. Returns its output and whether it succeeded."""
    arguments = [str(part) for part in command]
    print("==", " ".join(arguments), flush=True)
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8", "errors": "replace"}
    done = subprocess.run(arguments, check=False, **how, **options)
    print(done.stdout, flush=True)
    return done.stdout, done.returncode == 0


class Release:
    """The release, unpacked, and the library that its programs are to run with."""

    def __init__(self, folder, library_dir, compiler):
        with tarfile.open(ARCHIVE) as archive:
            archive.extractall(folder)
        self.root = Path(folder) / "0.1.0"
        (self.root / "tests/data").symlink_to(ROOT / "tests/data")
        (self.root / "bytes.c").write_text(BYTES, encoding="utf-8")
        self.library_dir, self.compiler = Path(library_dir).resolve(), compiler
        self.failed = []

    def compile(self, compiler, program, sources, *flags):
        found = [f"-L{self.library_dir}", "-ldsv2", f"-Wl,-rpath,{self.library_dir}", "-lm", "-lpthread", "-ldl"]
        paths = [self.root / source for source in sources]
        output, well = run(*compiler, "-O1", "-w", "-D_GNU_SOURCE", f"-I{self.root}/include", *paths, "-o",
                           self.root / program, *flags, *found)  # fmt: skip
        if not well:
            self.failed.append(f"{program}: does not compile")
        return self.root / program

    def must(self, name, *command):
        if not run(*command)[1]:
            self.failed.append(name)

    def check_tests(self):
        for name, (source, support) in C_TESTS.items():
            flags = subprocess.run(["pkg-config", "--cflags", "--libs", "check", "jansson", "libxxhash"], check=True,
                                   capture_output=True, text=True).stdout.split()  # fmt: skip
            flags += [f"-I{self.root}/tests", f"-I{self.root}/lib", f'-DTEST_DATA="{self.root}/tests/data"', "-std=c11"]
            sources = [f"tests/{source}", "bytes.c", *(f"tests/support/{file}.c" for file in SUPPORT + support)]
            program = self.compile(self.compiler, name, sources, *flags)
            if not program.exists():
                continue
            output, well = run(program, cwd=self.root)
            failed = re.findall(r"^\S+:\d+:[FES]:[\w ]+:(\w+:\d+):", output, flags=re.MULTILINE)
            if bool(failed) == well or "Checks: " not in output:
                failed.append("neither ran through nor named what failed")
            self.failed += [f"{name}: {test}" for test in failed]

    def programs(self):
        tool = [f"examples/dsv2/{path.name}" for path in sorted((self.root / "examples/dsv2").glob("*.c"))]
        dsv2 = self.compile(self.compiler, "dsv2", tool, "-std=c11")
        for example in ("hello", "many_sessions", "questions", "resume"):
            self.compile(self.compiler, example, [f"examples/{example}.c"], "-std=c11")
        output, well = run(sys.executable, self.root / "tests/tool/test_tool.py", dsv2, ROOT / "tests/data/goldens")
        failed = re.findall(r"^(?:FAIL|ERROR): (\w+)", output, flags=re.MULTILINE)
        self.failed += [f"tool: {test}" for test in failed if test] + ([] if well == (not failed) else ["tool"])

    def cpp(self):
        compiler = shutil.which(os.environ.get("CXX", "c++"))
        if compiler is None:
            print("skipped: the C++ programs of version 0.1.0: a C++ compiler is missing")
            return
        bindings = self.root / "tests/bindings"
        test = self.compile([compiler], "test_cpp", ["tests/bindings/test_cpp.cpp"], "-std=c++11")
        hello = self.compile([compiler], "hello-cpp", ["examples/hello.cpp"], "-std=c++11")
        same = [self.compile(self.compiler, "same", ["tests/bindings/same.c"], "-std=c11"),
                self.compile([compiler], "same-cpp", ["tests/bindings/same.cpp"], "-std=c++11")]  # fmt: skip
        self.must("c++: test_cpp", "sh", bindings / "with_model.sh", test)
        self.must("c++: hello", "sh", bindings / "with_model.sh", hello)
        self.must("c++: same", "sh", bindings / "same.sh", *same)

    def python(self):
        package = self.root / "bindings/python"
        layout_source = self.root / "layout.c"
        headers = [sys.executable, self.root / "tests/abi/headers.py", "c", self.root / "include"]
        layout_source.write_text(subprocess.run(headers, check=True, capture_output=True, text=True).stdout)
        layout = self.root / "layout"
        command = [*self.compiler, f"-I{self.root}/include", layout_source, "-o", layout]
        subprocess.run(command, check=True)
        with open(self.root / "layout.json", "w", encoding="utf-8") as out:
            subprocess.run([layout], check=True, stdout=out)
        make_ffi = [package / "tools/make_ffi.py", self.root / "include/dsv2", package / "dsv2/_ffi.py"]
        subprocess.run([sys.executable, *make_ffi], check=True)
        environment = {"PYTHONPATH": package, "DSV2_LIBRARY": self.library_dir / "libdsv2.so.0", "MPLBACKEND": "Agg",
                       "DSV2_LAYOUT": self.root / "layout.json"}  # fmt: skip
        environment = os.environ | {name: str(value) for name, value in environment.items()}
        options = ["-q", "-p", "no:cacheprovider", "--tb=short", "tests"]
        output, well = run(sys.executable, "-m", "pytest", *options, cwd=package, env=environment)
        failed = re.findall(r"^(?:FAILED|ERROR) tests/(\S+)", output, flags=re.MULTILINE)
        self.failed += [f"python: {test}" for test in failed] + ([] if well == (not failed) else ["python"])

    def rust(self):
        options = ["-q", "--locked", "--all-features", "--no-fail-fast"]
        output, well = run("cargo", "test", *options, cwd=self.root / "bindings/rust")
        failed = re.findall(r"^    ([\w:]+)$", output, flags=re.MULTILINE)
        self.failed += [f"rust: {test}" for test in sorted(set(failed))] + ([] if well == (not failed) else ["rust"])


def listed(heading):
    """The rows under a heading of changed.md, without the table's head."""
    part = CHANGED.read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("|")]
    return rows[2:]


def judge(failed, names):
    """Compares what failed with changed.md, for tests whose names begin with one of `names`."""
    changelog = " ".join((ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split())
    differ = listed("Tests that must differ")
    complaints = [f"not in CHANGELOG.md: {line}" for _, line in differ if line not in changelog]
    of_part = [test for test, _ in differ if test.startswith(names)]
    ignored = [test for (test,) in listed("Tests that say nothing here")]
    unexpected = [test for test in failed if test not in of_part and test.rsplit(":", 1)[0] not in ignored]
    complaints += [f"failed, and is not in changed.md: {test}" for test in unexpected]
    complaints += [f"stands in changed.md, and passed: {test}" for test in of_part if test not in failed]
    print("\n".join(complaints) if complaints else f"as changed.md says: {len(of_part)} tests of 0.1.0 differ")
    return not complaints


def main(part, library_dir="", *compiler):
    with tempfile.TemporaryDirectory() as folder:
        release = Release(folder, library_dir, compiler)
        if part == "c":
            release.check_tests()
            release.programs()
            release.cpp()
            return judge(release.failed, (*(f"{name}:" for name in C_TESTS), "tool:", "c++:"))
        (release.python if part == "python" else release.rust)()
        return judge(release.failed, (f"{part}:",))


if __name__ == "__main__":
    sys.exit(0 if main(*sys.argv[1:]) else 1)

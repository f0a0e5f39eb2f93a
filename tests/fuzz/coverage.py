"""What of the readers the seeds reach. Needs clang, llvm-profdata and llvm-cov.

coverage.py           writes the table at the end of RESULTS.md; exits with 1 if seeds leave out more than 5 % of lines
coverage.py --lines   prints the lines that no seed reaches
"""

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
READERS = ["lib/formats/", "lib/snapshot/format.c", "lib/snapshot/frame.c", "lib/snapshot/read.c",
           "lib/snapshot/restore.c",
           "lib/config/", "lib/tokenizer/json.c", "lib/tokenizer/vocabulary.c", "lib/tokenizer/pattern.c",
           "lib/base/json", "lib/weights/"]
MOST = 5  # percent of lines
TITLE = "\n## What no seed reaches\n\n"


def run(*command, **options):
    return subprocess.run([str(word) for word in command], check=True, **options)


def build(folder):
    aside = os.environ | {"LLVM_PROFILE_FILE": str(folder / "other.profraw")}  # of programs that only build
    flags = "-fprofile-instr-generate -fcoverage-mapping"
    if not (folder / "build.ninja").exists():
        run("meson", "setup", folder, ROOT, "-Dexamples=false", "--buildtype=debugoptimized", f"-Dc_args={flags}",
            "-Dc_link_args=-fprofile-instr-generate", stdout=subprocess.DEVNULL, env=aside | {"CC": "clang"})
    run("ninja", "-C", folder, "seeds", stdout=subprocess.DEVNULL, env=aside)


def measure(folder):
    """Runs every target over its seeds; llvm-cov's account of the readers."""
    profiles, programs = [], []
    for seeds in sorted((HERE / "seeds").iterdir()):
        program, profile = folder / "tests/fuzz" / f"seeds_{seeds.name}", folder / f"{seeds.name}.profraw"
        run(program, seeds, env=os.environ | {"LLVM_PROFILE_FILE": str(profile)}, stdout=subprocess.DEVNULL)
        profiles.append(profile)
        programs.append(program)
    merged = folder / "seeds.profdata"
    run("llvm-profdata", "merge", "-o", merged, *profiles)
    objects = [word for program in programs[1:] for word in ("-object", program)]
    text = run("llvm-cov", "export", "-instr-profile", merged, programs[0], *objects, stdout=subprocess.PIPE).stdout
    return json.loads(text)["data"][0]


def is_reader(name):
    return any(name.startswith(reader) for reader in READERS) and name.endswith(".c")


def source(folder, name):
    return os.path.relpath(os.path.normpath(folder / name), ROOT)


def unreached(file):
    """Numbers of lines that llvm-cov counts and no seed reaches, from its segments: line, column, count, has a count,
    begins a region, is a gap. A line has the largest count of those that begin there and of the one from above."""
    lines, above = [], None
    by_line = {}
    for segment in file["segments"]:
        by_line.setdefault(segment[0], []).append(segment)
    for number in range(1, max(by_line) + 1):
        here = by_line.get(number, [])
        counts = [count for _, _, count, counted, begins, gap in here if counted and begins and not gap]
        if above is not None and above[3]:
            counts.append(above[2])
        if counts and max(counts) == 0:
            lines.append(number)
        above = here[-1] if here else above
    return lines


def print_unreached(folder, files):
    for file in files:
        text = (ROOT / source(folder, file["filename"])).read_text().split("\n")
        for number in unreached(file):
            print(f"{source(folder, file['filename'])}:{number}: {text[number - 1]}")


def functions_never_called(folder, functions):
    counts = {}
    for function in functions:
        key = (source(folder, function["filenames"][0]), function["name"].split(":")[-1])
        counts[key] = counts.get(key, 0) + function["count"]
    never = {}
    for (name, own), count in sorted(counts.items()):
        if count == 0:
            never.setdefault(name, []).append(own)
    return never


def main():
    folder = ROOT / "build-coverage"
    build(folder)
    data = measure(folder)
    files = sorted((file for file in data["files"] if is_reader(source(folder, file["filename"]))),
                   key=lambda file: file["filename"])
    if sys.argv[1:] == ["--lines"]:
        print_unreached(folder, files)
        return 0
    never = functions_never_called(folder, data["functions"])
    rows, lines, covered = "", 0, 0
    for file in files:
        name, summary = source(folder, file["filename"]), file["summary"]["lines"]
        lines += summary["count"]
        covered += summary["covered"]
        rows += (f"| {name} | {summary['count']} | {summary['count'] - summary['covered']} | "
                 f"{', '.join(never.get(name, []))} |\n")
    missed = lines - covered
    results = HERE / "RESULTS.md"
    before = results.read_text().split(TITLE)[0]
    results.write_text(
        f"{before}{TITLE}{missed} of the readers' {lines} lines, {100 * missed / lines:.1f} %, by "
        "`python3 tests/fuzz/coverage.py`.\n\n"
        "| file | lines | reached by no seed | functions that no seed reaches |\n|---|---:|---:|---|\n" + rows)
    print(f"{missed} of {lines} lines are reached by no seed, {100 * missed / lines:.1f} %")
    return 0 if 100 * missed <= MOST * lines else 1


sys.exit(main())

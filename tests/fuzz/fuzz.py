"""Fuzzes targets, and keeps their seeds small. Needs clang with libFuzzer.

fuzz.py CPU_MINUTES TARGET...   fuzzes one target after the other, each for so many minutes of processor time, and adds
                                a row for each to RESULTS.md. What a target learns is kept in corpus-found/TARGET
fuzz.py --merge TARGET...       makes seeds/TARGET/merged.hex anew: the fewest inputs of corpus-found and merged.hex
                                that reach what the seeds in files of their own do not

An input a line, in hexadecimal: that is a .hex file of seeds. An interrupt ends a run, which still gets its row.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD = ROOT / "build-fuzz"
TICKS = os.sysconf("SC_CLK_TCK")
LIMITS = ["-rss_limit_mb=3000", "-timeout=600", "-report_slow_units=600"]  # the machine may be busy with other things


def build():
    if not (BUILD / "build.ninja").exists():
        subprocess.run(["meson", "setup", BUILD, ROOT, "-Dfuzz=true", "-Dexamples=false", "--buildtype=debugoptimized",
                        "-Db_sanitize=address,undefined", "-Db_lundef=false"], check=True,
                       env=os.environ | {"CC": "clang"})
    subprocess.run(["ninja", "-C", BUILD, "fuzz"], check=True, stdout=subprocess.DEVNULL)


def spread(target, folder, own=True, merged=True):
    """The target's seeds as a file each: those in files of their own, and those of .hex files."""
    for path in sorted((HERE / "seeds" / target).iterdir()):
        if path.suffix == ".hex" and merged:
            for number, line in enumerate(path.read_text().split("\n")[:-1]):
                (folder / f"{path.stem}-{number}").write_bytes(bytes.fromhex(line))
        elif path.suffix != ".hex" and own:
            shutil.copy(path, folder)


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def run(command, seconds):
    """Runs a target until it has had so many seconds of the processor; returns the seconds and what it said."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=lambda: os.nice(19),
                                   env=os.environ | {"UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1"})
        spent, interrupted = 0, False
        while process.poll() is None:
            try:
                spent = cpu_seconds(process.pid)
                if spent >= seconds or interrupted:
                    process.send_signal(signal.SIGINT)
                    process.wait()
                time.sleep(1)
            except KeyboardInterrupt:
                interrupted = True
            except (ProcessLookupError, FileNotFoundError):
                break
        process.wait()
        log.seek(0)
        return spent, log.read(), interrupted


def fuzz(target, minutes, commit):
    corpus = HERE / "corpus-found" / target
    corpus.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as seeds:
        spread(target, Path(seeds))
        spent, log, interrupted = run(
            [BUILD / "tests/fuzz" / f"fuzz_{target}", corpus, seeds, *LIMITS, "-print_final_stats=1",
             f"-artifact_prefix={corpus}/.found-"], 60 * minutes)
    (corpus / ".log").write_text(log)
    executions = re.search(r"stat::number_of_executed_units: (\d+)", log)
    branches = re.findall(r" cov: (\d+) ", log)
    found = len(list(corpus.glob(".found-*")))
    row = (f"| {target} | {spent / 60:.1f} | {executions.group(1) if executions else '?'} | "
           f"{branches[-1] if branches else '?'} | {commit} | {found} |\n")
    print(row, end="", flush=True)
    results = HERE / "RESULTS.md"
    rows, rest = results.read_text().split("\n\nFindings:", 1)
    results.write_text(f"{rows}\n{row}\nFindings:{rest}")
    return interrupted


def merge(target):
    program = BUILD / "tests/fuzz" / f"fuzz_{target}"
    corpus = HERE / "corpus-found" / target
    with tempfile.TemporaryDirectory() as least, tempfile.TemporaryDirectory() as merged:
        least, merged = Path(least), Path(merged)
        spread(target, least, merged=False)
        own = {path.name for path in least.iterdir()}
        spread(target, merged, own=False)
        folders = [merged, corpus] if corpus.is_dir() else [merged]
        subprocess.run([program, "-merge=1", "-use_counters=0", *LIMITS, least, *folders], check=True,
                       stderr=subprocess.DEVNULL)
        lines = sorted((path.read_bytes().hex() for path in least.iterdir() if path.name not in own),
                       key=lambda line: (len(line), line))
    (HERE / "seeds" / target / "merged.hex").write_text("".join(line + "\n" for line in lines))
    print(f"{target}: {len(own)} in files of their own, {len(lines)} in merged.hex, "
          f"{sum(len(line) for line in lines) // 2} bytes")


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    for number in (signal.SIGINT, signal.SIGTERM):  # also where the shell has them ignored
        signal.signal(number, signal.default_int_handler)
    build()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, check=True, capture_output=True,
                            text=True).stdout.strip()
    for target in sys.argv[2:]:
        if sys.argv[1] == "--merge":
            merge(target)
        elif fuzz(target, float(sys.argv[1]), commit):
            break


main()

#!/usr/bin/env python3
"""libdsv2 beside llama.cpp on one file of DeepSeek-V2-Lite's shape. README.md in this folder tells how to run it.

    bench.py run FOLDER [OPTION...]     makes the file in FOLDER if it is not there, measures, adds to FOLDER/results.jsonl
    bench.py show FOLDER [--svg FILE]   prints the table, and draws the curves
"""

import argparse
import contextlib
import datetime
import json
import mmap
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile
from typing import Iterator, NamedTuple, TextIO

import report

VOCABULARY = 102400
BATCH = 512  # of llama.cpp, which is fastest with it
CACHE_BYTES = 17712  # a token of the default cache, q8


class Row(NamedTuple):
    """What is timed: `steps` times, `tokens` are fed to each of `sessions`, which begin with `depth` tokens."""

    sessions: int
    depth: int
    steps: int
    tokens: int


TABLE = {
    "prefill": Row(1, 0, 1, 512),
    "prefill-8192": Row(1, 8192, 1, 512),
    "decode": Row(1, 0, 64, 1),
    "decode-4096": Row(1, 4096, 32, 1),
    "decode-8192": Row(1, 8192, 32, 1),
    "sessions-32": Row(32, 0, 8, 1),
}
CURVE = {
    **{f"curve-decode-{depth}": Row(1, depth, 16, 1) for depth in (0, 1024, 2048, 4096, 8192, 12288, 16384, 24576, 32768)},
    **{f"curve-prefill-{depth}": Row(1, depth, 1, 512) for depth in (0, 2048, 4096, 8192, 16384)},
}
ROWS = {**TABLE, **CURVE}
GROUPS = {"table": [*TABLE, "open"], "curve": list(CURVE), "state": ["state-8192"]}
ENGINES = ["pack", "gguf", "llama"]


def depth_of(row: str) -> int:
    return ROWS[row].depth if row in ROWS else 8192 if row == "state-8192" else 0


def say(text: str) -> None:
    print(f"{datetime.datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)


def warm(path: pathlib.Path) -> None:
    """Brings a file into the page cache."""
    buffer = bytearray(16 << 20)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def warm_pack(path: pathlib.Path) -> None:
    """Brings a pack into the page cache as libdsv2 would from the disk: mapped, in huge pages if the file system has them.
    Other reads leave small pages, with which decoding is some percent slower."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
            data.madvise(mmap.MADV_HUGEPAGE)
            for at in range(0, len(data), mmap.PAGESIZE):
                data[at]


class Bench:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.folder = args.folder
        self.gguf = args.gguf or self.folder / "lite.gguf"
        self.pack = args.pack or self.gguf.with_suffix(".dsv2")
        self.dsv2 = args.dsv2 or args.build / "examples/dsv2"
        self.results: TextIO = open(self.folder / "results.jsonl", "a", encoding="utf-8")
        self.round = 0
        self.flash: dict[str, bool] = {}  # by row, once both were tried
        self.rows = sorted(args.rows, key=depth_of, reverse=True)  # llama.cpp can rewind only
        self.deepest = max(map(depth_of, args.rows))

    # ---- the files ----

    def make_files(self) -> None:
        if not self.gguf.exists():
            import synthetic  # needs numpy and gguf

            say(f"writing {self.gguf}")
            shown = -1

            def progress(share: float) -> None:
                nonlocal shown
                if int(share * 10) > shown:
                    shown = int(share * 10)
                    say(f"  {share:.0%}")

            synthetic.write_gguf(self.gguf, self.args.experts, progress)
        if not self.pack.exists():
            say(f"packing {self.pack}")
            subprocess.run([self.dsv2, "pack", self.gguf, self.pack], check=True)

    # ---- running ----

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps the command of --alone running, so that nothing else runs meanwhile."""
        if not self.args.alone:
            yield
            return
        with subprocess.Popen([*shlex.split(self.args.alone), "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
            holder.stdin.write(b"\n")
            holder.stdin.flush()
            holder.stdout.readline()
            yield
            holder.stdin.close()

    def run(self, *command: object) -> dict:
        """The JSON object that the command prints, with its peak resident memory."""
        words = [str(word) for word in command]
        with tempfile.TemporaryFile() as errors, subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors) as process:
            out = process.stdout.read()
            _, process.returncode, usage = os.wait4(process.pid, 0)
            errors.seek(0)
            if process.returncode != 0:
                raise SystemExit(f"failed: {shlex.join(words)}\n{errors.read().decode()}")
        return {**json.loads(out), "peak_bytes": usage.ru_maxrss * 1024}

    def bounds(self) -> dict:
        return self.run(self.args.build / "tests/bench_bounds", self.args.threads)

    def record(self, engine: str, row: str, **values: object) -> None:
        values = {"round": self.round, "engine": engine, "row": row, "threads": self.args.threads, **values}
        self.results.write(json.dumps(values) + "\n")
        self.results.flush()
        text = f"{values['rate']:.2f} tokens/s" if "rate" in values else f"{values['seconds']:.2f} s" if "seconds" in values else ""
        say(f"round {self.round + 1} of {self.args.repeat}: {engine} {row} {text}")

    def record_model(self) -> None:
        """What the table needs to know of the files."""
        facts = self.run(self.dsv2, "inspect", self.pack, "--json")
        self.results.write(json.dumps({**report.costs(self.pack, facts), "pack_bytes": self.pack.stat().st_size,
                                       "gguf_bytes": self.gguf.stat().st_size}) + "\n")

    # ---- libdsv2 ----

    def dsv2_bench(self, model: pathlib.Path, *options: object) -> dict:
        return self.run(self.dsv2, "bench", model, "--json", "--repeat", 1, "--threads", self.args.threads, *options)

    def kept(self, model: pathlib.Path) -> pathlib.Path:
        return self.folder / f"{model.name}.kept"

    def keep(self, model: pathlib.Path) -> None:
        """Feeds the tokens of the deepest row in parts, once. All rows restore the first of these tokens."""
        n = self.run(self.dsv2, "inspect", self.kept(model), "--json")["tokens"] if self.kept(model).exists() else 0
        while n < self.deepest:
            n = min(n + 8192, self.deepest)
            say(f"{model.name}: feeding up to {n} tokens, once")
            with self.alone():
                self.dsv2_bench(model, "--prompt", 0, "--generate", 0, "--depth", n, "--keep", self.kept(model))

    def measure_dsv2(self, engine: str, model: pathlib.Path, name: str) -> None:
        if name == "open":
            got = self.dsv2_bench(model, "--prompt", 0, "--generate", 0)
            self.record(engine, name, seconds=got["first_token_seconds"], open_seconds=got["open_seconds"])
            return
        row = ROWS[name]
        part, counts = ("generate", (0, row.steps)) if row.tokens == 1 else ("prompt", (row.tokens, 0))
        before = self.bounds()
        got = self.dsv2_bench(model, "--prompt", counts[0], "--generate", counts[1], "--sessions", row.sessions, "--depth", row.depth,
                              *(["--keep", self.kept(model)] if row.depth > 0 else []))
        after = self.bounds()
        self.record(engine, name, rate=got[part]["tokens_per_second"]["median"], kernels=got["kernels"], peak_bytes=got["peak_bytes"],
                    bounds={key: (before[key] + after[key]) / 2 for key in ("flops", "int8", "bytes")},
                    cache_bytes=row.sessions * (row.depth + row.steps * row.tokens) * CACHE_BYTES)

    # ---- llama.cpp ----

    @contextlib.contextmanager
    def llama(self) -> Iterator[None]:
        """Opens the model in llama.cpp, which then waits to be asked."""
        settings = {"home": str(self.args.llama), "folder": str(self.folder), "model": str(self.gguf), "threads": self.args.threads,
                    "vocabulary": VOCABULARY, "batch": BATCH, "deepest": self.deepest}
        script = pathlib.Path(__file__).with_name("llama.mjs")
        command = [self.args.node, script, json.dumps(settings)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as self.process:
            with self.alone():
                opened = self.answer()
            if "open" in self.rows:
                self.record("llama", "open", **opened)
            for flash in sorted({flash for row in self.rows for flash in self.ways(row)}):
                if self.deepest > 0:
                    with self.alone():
                        self.ask(do="prepare", sessions=1, flash=flash)
            yield
            self.process.stdin.close()

    def answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("llama.cpp failed")
        return json.loads(line)

    def ask(self, **order: object) -> dict:
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def ways(self, name: str) -> list[bool]:
        """With or without flash attention: both until it is known which is faster, for each row."""
        return [self.flash[name]] if name in self.flash else [False, True]

    def measure_llama(self, name: str) -> None:
        if name == "state-8192":
            self.record("llama", name, **self.ask(do="state", flash=False, sessions=1, depth=8192), flash=False)
            return
        rates = {}
        for flash in self.ways(name):
            got = self.ask(do="rate", flash=flash, **ROWS[name]._asdict())
            rates[flash] = got["rate"]
            self.record("llama", name, flash=flash, **got)
        self.flash[name] = max(rates, key=rates.get)

    # ---- a round ----

    def measure_round(self) -> None:
        """The engines take turns, also at being first. One is open at a time, since memory may not hold two such models."""
        first = self.round % len(self.args.engines)
        for engine in self.args.engines[first:] + self.args.engines[:first]:
            if engine == "llama":
                warm(self.gguf)
                with self.llama():
                    for name in self.rows:
                        if name != "open":
                            with self.alone():
                                self.measure_llama(name)
                continue
            model = self.gguf if engine == "gguf" else self.pack
            (warm_pack if engine == "pack" else warm)(model)
            self.keep(model)
            for name in self.rows:
                if name != "state-8192":
                    with self.alone():
                        self.measure_dsv2(engine, model, name)


def parse_rows(text: str) -> list[str]:
    rows: list[str] = []
    for word in text.split(","):
        rows += GROUPS.get(word, [word])
    unknown = set(rows) - set(ROWS) - {"open", "state-8192"}
    if unknown:
        raise argparse.ArgumentTypeError(f"no such row: {', '.join(sorted(unknown))}")
    return rows


def parse_engines(text: str) -> list[str]:
    engines = text.split(",")
    if not set(engines) <= set(ENGINES):
        raise argparse.ArgumentTypeError(f"engines are {', '.join(ENGINES)}")
    return engines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure")
    show = commands.add_parser("show", help="print what was measured")
    for command in (run, show):
        command.add_argument("folder", type=pathlib.Path, help="where files and results are")
    run.add_argument("--rows", type=parse_rows, default=parse_rows("table"), metavar="A,B",
                     help=f"of {', '.join(ROWS)}, open, state-8192; or table (the default), curve, state")
    run.add_argument("--engines", type=parse_engines, default=ENGINES, metavar="A,B", help=f"of {', '.join(ENGINES)}; default all")
    run.add_argument("--repeat", type=int, default=5, help="rounds; default 5")
    run.add_argument("--threads", type=int, default=os.cpu_count(), help="default: as many as there are processors")
    run.add_argument("--build", type=pathlib.Path, default=pathlib.Path("build"), help="a release build of libdsv2; default build")
    run.add_argument("--dsv2", type=pathlib.Path, help="the command to measure; default BUILD/examples/dsv2")
    run.add_argument("--llama", type=pathlib.Path, default=pathlib.Path("."), help="where `npm install node-llama-cpp` was run")
    run.add_argument("--node", default="node", help="the Node to run it with")
    run.add_argument("--gguf", type=pathlib.Path, help="default FOLDER/lite.gguf, made if it is not there")
    run.add_argument("--pack", type=pathlib.Path, help="default: beside the GGUF, made if it is not there")
    run.add_argument("--experts", type=int, default=64, help="of the file to make; fewer make a smaller one, for trying this out")
    run.add_argument("--alone", metavar="COMMAND", help="run `COMMAND cat` around each measurement: it keeps other work from running")
    show.add_argument("--svg", type=pathlib.Path, help="draw tokens/s against context")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.command == "run":
        bench = Bench(args)
        bench.make_files()
        bench.record_model()
        for bench.round in range(args.repeat):
            bench.measure_round()
        bench.results.close()
    lines = (args.folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
    results = [json.loads(line) for line in lines]
    print(report.table(results))
    if args.command == "show" and args.svg:
        args.svg.write_text(report.picture(results), encoding="utf-8")


if __name__ == "__main__":
    main()

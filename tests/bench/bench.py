#!/usr/bin/env python3
"""libdsv2 beside llama.cpp on one file of DeepSeek-V2-Lite's shape: README.md beside this tells how to run it.

    bench.py run FOLDER [OPTION...]     makes the file in FOLDER if it is not there, measures, adds to FOLDER/results.jsonl
    bench.py show FOLDER [--svg FILE]   prints the table, and draws the curves
"""

import argparse
import datetime
import json
import os
import pathlib
import shlex
import subprocess
import sys
import threading
from typing import Iterator, NamedTuple, TextIO

import report

VOCABULARY = 102400
BATCH = 512  # of llama.cpp, which is fastest with it
CACHE_BYTES = 17712  # a token of the default cache, q8


class Row(NamedTuple):
    """What is timed: `tokens` are fed `steps` times to each of `sessions`, which have `depth` already."""

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


def say(text: str) -> None:
    print(f"{datetime.datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)


def warm(path: pathlib.Path) -> None:
    """Brings a file into the page cache."""
    buffer = bytearray(16 << 20)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


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

    def run(self, command: list, timed: bool = True) -> Iterator[dict]:
        """The JSON objects that the command prints, a line each, then one with its peak resident memory."""
        wrapped = [*(shlex.split(self.args.wrap) if timed else []), *map(str, command)]
        process = subprocess.Popen(wrapped, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8")
        errors: list[str] = []
        reader = threading.Thread(target=lambda: errors.extend(process.stderr))
        reader.start()
        for line in process.stdout:
            yield json.loads(line)
        reader.join()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = status
        if status != 0:
            raise SystemExit(f"failed: {shlex.join(wrapped)}\n{''.join(errors)}")
        yield {"peak_bytes": usage.ru_maxrss * 1024}

    def bounds(self) -> dict:
        return list(self.run([self.args.build / "tests/bench_bounds", self.args.threads]))[0]

    def record(self, engine: str, row: str, **values: object) -> None:
        values = {"round": self.round, "engine": engine, "row": row, "threads": self.args.threads, **values}
        self.results.write(json.dumps(values) + "\n")
        self.results.flush()
        text = f"{values['rate']:.2f} tokens/s" if "rate" in values else f"{values['seconds']:.2f} s" if "seconds" in values else ""
        say(f"round {self.round + 1} of {self.args.repeat}: {engine} {row} {text}")

    def record_model(self) -> None:
        """What the table needs to know of the files."""
        facts, _ = self.run([self.dsv2, "inspect", self.pack, "--json"], timed=False)
        self.results.write(json.dumps({**report.costs(self.pack, facts), "pack_bytes": self.pack.stat().st_size,
                                       "gguf_bytes": self.gguf.stat().st_size}) + "\n")

    def measure_dsv2(self, engine: str, rows: list[str]) -> None:
        model = self.gguf if engine == "gguf" else self.pack
        warm(model)
        bench = [self.dsv2, "bench", model, "--json", "--repeat", 1, "--threads", self.args.threads]
        before = self.bounds()
        for name in rows:
            if name == "open":
                got, _ = self.run([*bench, "--prompt", 0, "--generate", 0])
                self.record(engine, name, seconds=got["first_token_seconds"], open_seconds=got["open_seconds"])
                continue
            row = ROWS[name]
            part, count = ("generate", row.steps) if row.tokens == 1 else ("prompt", row.tokens)
            command = [*bench, "--prompt", 0, "--generate", 0, "--sessions", row.sessions, "--depth", row.depth]
            if row.depth > 0 and row.sessions == 1:
                kept = self.folder / f"{model.name}.kept"
                self.keep(model, kept)
                command += ["--keep", kept]
            got, end = self.run([*command, f"--{part}", count])
            after = self.bounds()
            mean = {key: (before[key] + after[key]) / 2 for key in ("flops", "int8", "bytes")}
            cached = row.sessions * (row.depth + row.steps * row.tokens)
            self.record(engine, name, rate=got[part]["tokens_per_second"]["median"], bounds=mean, kernels=got["kernels"],
                        cache_bytes=cached * CACHE_BYTES, **end)
            before = after

    def keep(self, model: pathlib.Path, kept: pathlib.Path) -> None:
        """Feeds the deepest row's tokens once; all other depths restore the first of them."""
        if not kept.exists():
            depth = max(ROWS[name].depth for name in self.args.rows if name in ROWS)
            say(f"feeding {depth} tokens once")
            list(self.run([self.dsv2, "bench", model, "--json", "--repeat", 1, "--prompt", 0, "--generate", 0, "--threads",
                           self.args.threads, "--depth", depth, "--keep", kept], timed=False))

    def measure_llama(self, flash: bool, rows: list[str]) -> dict[str, float]:
        warm(self.gguf)
        points = [{"name": name, **ROWS[name]._asdict()} for name in rows if name in ROWS]
        state = "state-8192" in rows
        if state:
            points = [{"name": "", **Row(1, 8192, 0, 1)._asdict()}]
        orders = {"home": str(self.args.llama), "folder": str(self.folder), "model": str(self.gguf), "threads": self.args.threads,
                  "vocabulary": VOCABULARY, "batch": BATCH, "flash": flash, "state": state, "points": points}
        script = pathlib.Path(__file__).with_name("llama.mjs")
        rates = {}
        for got in self.run([self.args.node, script, json.dumps(orders)]):
            name = got.pop("name", "")
            if name in rows:
                rates[name] = got.get("rate", 0)
                self.record("llama", name, flash=flash, **got)
        return rates

    def measure_round(self) -> None:
        """The engines take turns to be first. llama.cpp is tried with and without flash attention, then each row as it was faster."""
        rows = self.args.rows
        first = self.round % len(self.args.engines)
        for engine in self.args.engines[first:] + self.args.engines[:first]:
            if engine != "llama":
                self.measure_dsv2(engine, [name for name in rows if name in ROWS or name == "open"])
            elif not self.flash:
                rates = {flash: self.measure_llama(flash, rows) for flash in (False, True)}
                self.flash = {name: rates[True].get(name, 0) > rates[False].get(name, 0) for name in rows}
            else:
                for flash in sorted(set(self.flash.values())):
                    self.measure_llama(flash, [name for name in rows if self.flash[name] == flash])


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
    run.add_argument("--wrap", default="", metavar="COMMAND", help="run what is timed with this before it, such as 'nice -n -5'")
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

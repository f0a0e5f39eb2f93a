#!/usr/bin/env python3
"""Says what became of the tests of build folders: report.py FOLDER... Python 3 alone.

Each folder: what was skipped, left out or not run, the tests' own summaries, the slowest tests. At the end every test
that failed, with what it says of itself.
"""

import json
import re
import sys
from pathlib import Path

# Check's, cargo's and pytest's.
SUMMARIES = re.compile(r"^(Running suite|\d+%: Checks: |test result: |=* ?\d+ (?:passed|failed))")
# What names a test within a suite, or a place.
NAMES = re.compile(
    r":[EF]:|^\S+:\d+: |: Assertion "  # Check, MUST, assert
    r"|^(FAILED|ERROR) |^E  |^(FAIL|ERROR): |line \d+"  # pytest, unittest
    r"|^test .* FAILED$|panicked at"  # cargo
    r"|(ERROR|WARNING|SUMMARY): .*Sanitizer|runtime error:"
)
FINE = {"OK", "SKIP", "EXPECTEDFAIL"}
SLOWEST, LAST_LINES = 10, 5


def results(folder):
    """What Meson noted of each test, in the order in which the tests ended."""
    try:
        text = (Path(folder) / "meson-logs/testlog.json").read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        sys.exit(f"report.py: {error}")
    return [json.loads(line) for line in text.splitlines()]


def name_of(test):
    return test["name"].split(" / ")[-1]


def lines_of(test):
    return ((test.get("stdout") or "") + "\n" + (test.get("stderr") or "")).splitlines()


def what_it_says(test):
    """The lines that name what failed, and the last ones: a script's own verdict."""
    lines = [line for line in lines_of(test) if line.strip()]
    return [line for line in lines[:-LAST_LINES] if NAMES.search(line)] + lines[-LAST_LINES:]


def left_out(tests, prefix):
    """The lines that begin with the prefix, each with the tests that say it."""
    who = {}
    for test in tests:
        for line in lines_of(test):
            if line.startswith(prefix):
                who.setdefault(line, {})[name_of(test)] = True
    return [f"{line} ({', '.join(names)})" for line, names in who.items()]


def report(folder, tests, elsewhere):
    """elsewhere: the names of all tests that any folder ran."""
    print(f"\n== {folder}: what was skipped, the tests' summaries, the slowest")
    lines = [line for test in tests for line in lines_of(test)]
    print("\n".join(left_out(tests, "skipped: ")) or "nothing was skipped")
    print("\n".join(left_out(tests, "left out: ")) or "nothing was left out")
    missing = sorted(elsewhere - {name_of(test) for test in tests})
    print(f"not run here: {', '.join(missing) or 'nothing'}")
    print("\n".join(line for line in lines if SUMMARIES.search(line)))
    counts = {}
    for test in tests:
        counts[test["result"]] = counts.get(test["result"], 0) + 1
    print(f"{folder}: {len(tests)} tests: " + ", ".join(f"{n} {result}" for result, n in sorted(counts.items())))
    slowest = sorted(tests, key=lambda test: -test["duration"])[:SLOWEST]
    print("seconds: " + ", ".join(f"{name_of(test)} {test['duration']:.0f}" for test in slowest))


def main():
    all_tests = {folder: results(folder) for folder in sys.argv[1:]}
    names = {name_of(test) for tests in all_tests.values() for test in tests}
    for folder, tests in all_tests.items():
        report(folder, tests, names)
    for folder, tests in all_tests.items():
        for test in tests:
            if test["result"] not in FINE:
                print(f"\nFAILED: {folder}: {test['name']}: {test['result']}")
                print("\n".join("    " + line for line in what_it_says(test)))


main()

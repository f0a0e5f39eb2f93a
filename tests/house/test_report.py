"""What tests/report.py says of failures of every kind, and of what did not run: test_report.py REPORT.PY"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

PADDING = "\n".join(f"padding {i}" for i in range(9))
# What a test that fails says: a line that has to be found above others, and one that may not.
KINDS = {
    "check": ("../tests/a.c:12:F:suite:a_claim:0: Assertion 'x' failed", "75%: Checks: 4, Failures: 1, Errors: 0"),
    "must": ("tests/stress.c:96: status == DSV2_OK (no memory)", "thread 3"),
    "assert": ("test_x: lib/base/pool.c:7: f: Assertion `n > 0' failed.", "thread 3"),
    "asan": ("==7==ERROR: AddressSanitizer: heap-use-after-free on address 0x6", "0x60: 00 00"),
    "tsan": ("WARNING: ThreadSanitizer: data race (pid=7)", "Location is heap block"),
    "ubsan": ("lib/a.c:3:4: runtime error: signed integer overflow", "note"),
    "pytest": ("FAILED tests/test_text.py::test_a - AssertionError", "=== 1 failed in 3.1s ==="),
    "pytest error": ("E   AssertionError: assert 1 == 2", "tmp_path = 1"),
    "unittest": ("FAIL: test_pipes (__main__.Tool)", "------"),
    "python": ('  File "a.py", line 3, in f', "Traceback"),
    "cargo": ("test tests::a ... FAILED", "running 3 tests"),
    "panic": ("thread 'a' panicked at src/lib.rs:3:4:", "note: run with"),
}


def result(name, what="OK", stdout="", stderr=""):
    return {"name": f"suite / {name}", "result": what, "duration": 1.0, "stdout": stdout, "stderr": stderr}


def write(folder, *tests):
    (folder / "meson-logs").mkdir(parents=True)
    text = "".join(json.dumps(test) + "\n" for test in tests)
    (folder / "meson-logs/testlog.json").write_text(text, encoding="utf-8")


def main(report):
    with tempfile.TemporaryDirectory() as folder:
        plain, sanitized = Path(folder) / "plain", Path(folder) / "sanitized"
        failing = [result(kind, "FAIL", f"{found}\n{other}\n{PADDING}") for kind, (found, other) in KINDS.items()]
        verdict = result("verdict", "FAIL", f"a.c:1:E:s:t:0: x\n{PADDING}\nlast")
        write(plain, *failing, result("slow", "TIMEOUT", PADDING), verdict)
        fork = result("fork", stderr="left out: threads\nleft out: threads\n")
        other = result("other", stderr="left out: threads\n")
        write(sanitized, result("tool", "SKIP", "skipped: no tool\n"), fork, other)
        command = [sys.executable, report, plain, sanitized]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    of_plain, of_sanitized = said.split(f"== {sanitized}")
    of_sanitized, failures = of_sanitized.split("\nFAILED: ", 1)
    missed = [found for found, _ in KINDS.values() if f"    {found}\n" not in failures]
    missed += [f"without {other}" for _, other in KINDS.values() if f"    {other}\n" in failures]
    for text, expected in (
        (of_plain, ["nothing was skipped", "nothing was left out", "not run here: fork, other, tool"]),
        (of_plain, [f"{len(KINDS) + 2} tests: {len(KINDS) + 1} FAIL, 1 TIMEOUT"]),
        (of_sanitized, ["skipped: no tool (tool)", "1 SKIP"]),
        (of_sanitized, ["left out: threads (fork, other)", "not run here: asan, "]),
        (failures, ["slow: TIMEOUT", "a.c:1:E:s:t:0: x", "    last"]),
    ):
        missed += [line for line in expected if line not in text]
    print(said if missed else "all is said")
    print("\n".join(f"not so: {line}" for line in missed))
    return not missed


if __name__ == "__main__":
    sys.exit(0 if main(*sys.argv[1:]) else 1)

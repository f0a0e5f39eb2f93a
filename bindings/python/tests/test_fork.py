"""B4: forked processes (multiprocessing, servers' workers) never hang, with a model open or while one is at work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# Each program runs in a process of its own, which the test ends if it hangs. Its arguments are a model and what to do.
PROGRAM = """
import multiprocessing, os, sys, threading
import dsv2

model = dsv2.Model(sys.argv[1], threads=2)
session = model.session()
session.feed([0, 1, 2])
with session.fork() as copy:
    copy.feed([3])
    expected = copy.logits().tobytes()
what = sys.argv[2]

def works(results=None):
    with session.fork() as copy:
        copy.feed([3])
        result = copy.logits().tobytes() == expected
    if results is not None:
        results.put(result)
    return result

def says_what_to_do():
    try:
        session.feed([3])
    except dsv2.StateError as error:
        assert "open the model again" in str(error)
    else:
        raise AssertionError("the model was at work")
    with dsv2.Model(sys.argv[1], threads=2) as again, again.session() as fresh:
        fresh.feed([0, 1, 2])
        fresh.feed([3])
        assert fresh.logits().tobytes() == expected

def child(action):
    pid = os.fork()
    if pid == 0:
        action()
        sys.exit(0)
    assert os.waitpid(pid, 0)[1] == 0

if what == "exit":
    child(lambda: None)
elif what == "close":
    child(lambda: (session.close(), model.close()))
elif what == "use":
    child(lambda: works() or os._exit(1))
elif what == "multiprocessing":
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    process = context.Process(target=works, args=(results,))
    process.start()
    assert results.get()
    process.join()
    assert process.exitcode == 0
elif what == "at work":
    at_work, go_on = threading.Event(), threading.Event()
    def wait(*_):
        at_work.set()
        go_on.wait()
    def feed():
        with model.session() as other:
            other.feed([0, 1, 2], progress=wait)
    thread = threading.Thread(target=feed)
    thread.start()
    at_work.wait()
    child(says_what_to_do)
    child(lambda: (session.close(), model.close()))
    child(lambda: None)
    go_on.set()
    thread.join()
assert works()
"""


def run(model_path: Path, what: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PROGRAM, str(model_path), what],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_child_that_only_exits_ends(model_path: Path) -> None:
    run(model_path, "exit")


def test_a_child_closes_what_it_has_inherited(model_path: Path) -> None:
    run(model_path, "close")


def test_a_child_goes_on_with_a_session(model_path: Path) -> None:
    run(model_path, "use")


def test_a_process_of_multiprocessing_goes_on_with_a_session(model_path: Path) -> None:
    run(model_path, "multiprocessing")


def test_a_child_of_a_process_at_work_is_told_what_to_do(model_path: Path) -> None:
    run(model_path, "at work")

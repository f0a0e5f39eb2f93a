"""Safe Python never crashes the process, and a failure leaves a usable session."""

from __future__ import annotations

import gc
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dsv2

LONG = [0, *range(2, 382)] * 6  # takes many reports of progress


def test_numbers_that_do_not_fit_are_named(model_path: Path) -> None:
    with dsv2.Model(model_path, threads=1) as model, model.session() as session:
        session.feed([0, 1])
        calls: list[tuple[str, Callable[[], object]]] = [
            ("seed is -1", lambda: session.set_sampling(dsv2.Sampling(seed=-1))),
            ("top_k is -1", lambda: session.set_sampling(dsv2.Sampling(top_k=-1))),
            ("penalty_window is 4294967296", lambda: session.set_sampling(dsv2.Sampling(penalty_window=1 << 32))),
            ("logit_bias is -2147483649", lambda: session.set_sampling(dsv2.Sampling(logit_bias={-(1 << 31) - 1: 0}))),
            ("top_p is 0", lambda: session.set_sampling(dsv2.Sampling(top_p=0))),
            ("n is -1", lambda: session.truncate(-1)),
            ("n is -1", lambda: session.fork(-1)),
            ("seed is -1", lambda: session.seed(-1)),
            ("token is 4294967296", lambda: session.log_probability(1 << 32)),
            ("max_length is -1", lambda: model.session(max_length=-1)),
            ("compression_level is 2147483648", lambda: session.save("x", compression_level=1 << 31)),
            ("n_threads is -1", lambda: dsv2.Model(model_path, threads=-1)),
            ("cache_memory_limit is -1", lambda: dsv2.Model(model_path, cache_memory_limit=-1)),
            ("n_threads is -1", lambda: dsv2.pack(model_path, "x", threads=-1)),
        ]
        for words, call in calls:
            with pytest.raises(dsv2.ArgumentError, match=words):
                call()
        assert session.tokens == [0, 1]


def test_halves_of_surrogate_pairs_are_replaced(model_path: Path) -> None:
    with dsv2.Model(model_path, threads=1) as model:
        encode = model.tokenizer.encode
        assert encode("a\ud83d") == encode("a\ufffd")
        assert encode("\ud83d\ude00\ud83d") == encode("\U0001f600\ufffd")
        assert encode("caf\udce9") == encode(b"caf\xe9")


def test_without_max_tokens_a_session_is_filled(model_path: Path) -> None:
    with dsv2.Model(model_path, threads=1) as model, model.session(max_length=12) as session:
        forbidden = {model.tokenizer.eos or 1: -float("inf")}
        with pytest.raises(dsv2.FullError):
            list(session.generate_tokens([0, 2], max_tokens=None, sampling=dsv2.Sampling(logit_bias=forbidden)))
        assert len(session) == 12


def test_closed_objects_raise(model_path: Path) -> None:
    model = dsv2.Model(model_path)
    tokenizer, session = model.tokenizer, model.session()
    session.feed([0, 1])
    uses: list[tuple[Any, list[Callable[[], object]]]] = [
        (
            session,
            [
                lambda: session.feed([1]),
                session.sample,
                session.logits,
                session.fork,
                session.cancel,
                session.close,
                session.__enter__,
                lambda: len(session),
                lambda: session.tokens,
                lambda: session.top_tokens(1),
                lambda: session.truncate(0),
                lambda: session.save("never"),
                lambda: session.restore("never"),
                lambda: list(session.generate("x")),
                lambda: session.chat("x"),
                lambda: session.set_sampling(dsv2.Sampling()),
                lambda: model.step([(session, [1])]),
                session.routing,
            ],
        ),
        (
            tokenizer,
            [
                lambda: tokenizer.encode("x"),
                lambda: tokenizer.decode([5]),
                lambda: tokenizer.token_bytes(5),
                lambda: tokenizer.find("x"),
                lambda: tokenizer.encode_chat([]),
                lambda: tokenizer.encode_fim("a", "b"),
                tokenizer.close,
                tokenizer.__enter__,
            ],
        ),
        (
            model,
            [model.session, lambda: model.memory, lambda: model.step([]), model.routing, model.close, model.__enter__],
        ),
    ]
    for thing, calls in uses:
        thing.close()
        assert thing.closed
        assert "closed" in repr(thing)
        for call in calls:
            with pytest.raises(dsv2.ClosedError, match="is closed"):
                call()


def test_errors_have_the_librarys_status_and_message(model: dsv2.Model, session: dsv2.Session, tmp_path: Path) -> None:
    with pytest.raises(dsv2.FileError) as missing:
        dsv2.Model(tmp_path / "nothing here")
    assert missing.value.status is dsv2.Status.IO
    assert "nothing here" in missing.value.message
    assert isinstance(missing.value, OSError)
    with pytest.raises(dsv2.ArgumentError, match="384") as outside:
        session.feed([0, 384])
    assert outside.value.status is dsv2.Status.ARGUMENT
    with pytest.raises(dsv2.StateError):
        session.sample()
    with pytest.raises(dsv2.FullError), model.session(max_length=3) as small:
        small.feed([0, 1, 2, 3])
    for error in [missing.value, outside.value, dsv2.ClosedError("session")]:
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert (again.status, again.message, str(again)) == (error.status, error.message, str(error))


def test_arguments_of_wrong_kinds_raise(model: dsv2.Model, session: dsv2.Session) -> None:
    wrong: list[Callable[[], object]] = [
        lambda: session.feed([]),
        lambda: session.feed([2**40]),
        lambda: session.feed([-1]),
        lambda: session.feed([1.5]),  # type: ignore[list-item]
        lambda: session.feed("text"),  # type: ignore[arg-type]
        lambda: session.feed(None),  # type: ignore[arg-type]
        lambda: session.truncate(1),
        lambda: session.truncate(-1),
        lambda: session.fork(1),
        lambda: session.top_tokens(-1),
        lambda: session.top_tokens(10**9),
        lambda: session.log_probability(2**40),
        lambda: session.set_sampling(dsv2.Sampling(top_p=7)),
        lambda: session.set_sampling(dsv2.Sampling(logit_bias={2**40: 1.0})),
        lambda: session.set_sampling(dsv2.Sampling(temperature="hot")),  # type: ignore[arg-type]
        lambda: model.session(max_length=10**9),
        lambda: model.session(cache_type=99),  # type: ignore[arg-type]
        lambda: model.step([(session, [1]), (session, [1])]),
        lambda: model.step([(session, [])]),
        lambda: model.tokenizer.decode([2**20]),
        lambda: model.tokenizer.token_bytes(2**40),
        lambda: model.tokenizer.encode_chat([{"role": "nobody", "content": "x"}]),
        lambda: dsv2.Model("a\0b"),
        lambda: dsv2.Snapshot.inspect("a\0b"),
    ]
    for call in wrong:
        with pytest.raises((dsv2.Error, TypeError, OverflowError, ValueError)):
            call()
    assert len(session) == 0


def test_messages_that_are_no_texts_are_named(model: dsv2.Model) -> None:
    tokenizer = model.tokenizer
    user = {"role": "user", "content": ""}
    assert tokenizer.encode_chat([{"role": "user", "content": None}]) == tokenizer.encode_chat([user])
    cases: list[tuple[list[dict[str, Any]], str]] = [
        ([user, {"role": "assistant"}], r"^messages\[1\]\.content is missing"),
        ([{"content": "x"}], r"^messages\[0\]\.role is missing"),
        ([{"role": None, "content": "x"}], r"^messages\[0\]\.role is NoneType, expected str or bytes"),
        ([{"role": "user", "content": [{"type": "text", "text": "x"}]}], r"^messages\[0\]\.content is an array, expected a string"),
        ([{"role": "user\0x", "content": "x"}], r"^messages\[0\]\.role contains a NUL"),
    ]
    for messages, words in cases:
        with pytest.raises(dsv2.ArgumentError, match=words):
            tokenizer.encode_chat(messages)
    with pytest.raises(dsv2.ArgumentError, match="first is -1"):
        tokenizer.encode_chat([user], first=-1)


def test_a_session_whose_numbers_go_wrong_fails_alone_in_a_step(model_path: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model_path, tmp_path / "spoilt")
    data = bytearray((folder / "model.safetensors").read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    tensor = json.loads(data[8:start])["model.embed_tokens.weight"]
    assert tensor["dtype"] == "BF16"
    first, row = start + tensor["data_offsets"][0], 2 * tensor["shape"][1]
    data[first + 7 * row : first + 8 * row] = b"\x80\x7f" * tensor["shape"][1]
    (folder / "model.safetensors").write_bytes(data)
    with dsv2.Model(folder) as model, model.session() as alone, model.session() as good, model.session() as bad:
        alone.feed([0, 5, 9])
        with pytest.raises(dsv2.FormatError, match=r"items\[0\]: the cached latent of token 1 in layer 0"):
            model.step([(bad, [0, 7]), (good, [0, 5, 9])])
        assert len(bad) == 0
        assert np.array_equal(good.logits(), alone.logits())
        with pytest.raises(dsv2.FormatError, match="not finite"):
            bad.feed([0, 7])


def test_logits_are_a_read_only_view_that_outlives_everything(model_path: Path) -> None:
    model = dsv2.Model(model_path)
    session = model.session()
    session.feed([0, 5])
    view = session.logits()
    assert view.dtype == np.float32
    assert view.shape == (384,)
    address = view.__array_interface__["data"][0]
    assert session.logits().__array_interface__["data"][0] == address, "a copy was made"
    with pytest.raises(ValueError, match=r"read-only|WRITEABLE"):
        view.flags.writeable = True
    part, kept = view[10:20], view.copy()
    for token in range(10):
        session.feed(token)
    session.truncate(0)
    session.close()
    model.close()
    del session, model, view
    gc.collect()
    # The memory can be read; what it holds now is not defined.
    assert np.isfinite(part).all()
    assert np.isfinite(kept).all()


def test_what_a_progress_callback_raises_cancels_and_comes_back(model: dsv2.Model, session: dsv2.Session, model_path: Path) -> None:
    session.feed([0, 5])
    before = session.logits().copy()

    def fail(_phase: dsv2.Phase, done: int, _total: int) -> None:
        if done > 0:
            raise LookupError("from the callback")

    with pytest.raises(LookupError, match="from the callback"):
        session.feed(LONG, progress=fail)
    assert session.tokens == [0, 5]
    np.testing.assert_array_equal(session.logits(), before)
    with pytest.raises(LookupError, match="from the callback"):
        list(session.generate(LONG, progress=fail))
    with pytest.raises(LookupError, match="from the callback"):
        dsv2.Model(model_path, progress=fail)
    session.feed(LONG)
    assert len(session) == 2 + len(LONG)


def test_progress_counts_up_to_its_total(session: dsv2.Session, model_path: Path) -> None:
    reports: list[tuple[dsv2.Phase, int, int]] = []

    class Bar:
        total, n = 0, 0

        def update(self, by: int) -> None:
            assert by >= 0
            self.n += by

    bar = Bar()
    session.feed(LONG, progress=lambda *report: reports.append(report))
    assert {phase for phase, _, _ in reports} == {dsv2.Phase.PROMPT}
    done = [done for _, done, _ in reports]
    assert done == sorted(done)
    assert done[-1] == reports[-1][2]
    dsv2.Model(model_path, progress=dsv2.show_progress(bar)).close()
    assert bar.n == bar.total > 0


def test_a_callback_may_use_the_library(model: dsv2.Model, session: dsv2.Session) -> None:
    other = model.session()

    def nested(_phase: dsv2.Phase, _done: int, _total: int) -> None:
        with pytest.raises(dsv2.BusyError):
            session.feed([1])
        if len(other) < 3:
            other.feed([0, 5], progress=lambda *_: None)

    session.feed(LONG, progress=nested)
    assert len(session) == len(LONG)
    assert len(other) >= 2


def test_keyboard_interrupt_stops_a_prompt_at_once(session: dsv2.Session) -> None:
    session.feed([0, 5])
    before = session.logits().copy()
    calls = []

    def interrupt(_phase: dsv2.Phase, done: int, _total: int) -> None:
        calls.append(done)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        session.feed(LONG, progress=interrupt)
    assert len(calls) <= 4
    assert session.tokens == [0, 5]
    np.testing.assert_array_equal(session.logits(), before)


def test_keyboard_interrupt_stops_a_prompt_without_progress_too(model_path: Path) -> None:
    with dsv2.Model(model_path, threads=1, kernels="c") as slow, slow.session() as session:
        started = threading.Event()

        def interrupt() -> None:
            started.wait()
            while not done.wait(0.05):
                os.kill(os.getpid(), signal.SIGINT)
                return

        done = threading.Event()
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012
            started.set()
            while True:
                session.truncate(0)
                session.feed(LONG)
        done.set()
        thread.join()
        session.truncate(0)
        session.feed([0, 5])
        assert len(session.top_tokens(3)) == 3


def test_cancel_from_another_thread(session: dsv2.Session) -> None:
    reached = threading.Event()

    def report(_phase: dsv2.Phase, done: int, _total: int) -> None:
        if done > 0:
            reached.set()
            cancelled.wait()

    cancelled = threading.Event()

    def cancel() -> None:
        reached.wait()
        session.cancel()
        cancelled.set()

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(dsv2.CancelledError) as error:
        session.feed(LONG, progress=report)
    thread.join()
    assert error.value.status is dsv2.Status.CANCELLED
    assert len(session) == 0
    session.cancel()  # nothing is at work: nothing happens
    session.feed([0])


def test_a_session_used_by_two_threads_raises_and_stays_whole(session: dsv2.Session) -> None:
    inside = threading.Event()
    checked = threading.Event()

    def report(_phase: dsv2.Phase, _done: int, _total: int) -> None:
        inside.set()
        checked.wait()

    thread = threading.Thread(target=session.feed, args=(LONG,), kwargs={"progress": report})
    thread.start()
    inside.wait()
    calls: list[Callable[[], object]] = [
        lambda: session.feed([1]),
        session.sample,
        lambda: session.truncate(0),
        session.fork,
        lambda: len(session),
    ]
    for call in calls:
        with pytest.raises(dsv2.BusyError):
            call()
    checked.set()
    thread.join()
    assert len(session) == len(LONG)


def test_closing_under_a_running_call_lets_it_end(model_path: Path) -> None:
    model = dsv2.Model(model_path)
    session = model.session()
    inside, closed = threading.Event(), threading.Event()

    def report(_phase: dsv2.Phase, _done: int, _total: int) -> None:
        inside.set()
        closed.wait()

    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(session.feed, LONG, progress=report)
        inside.wait()
        session.close()
        model.close()
        closed.set()
        assert work.result() is None
    with pytest.raises(dsv2.ClosedError):
        session.sample()


def test_ten_threads_on_one_model_give_the_right_texts(model: dsv2.Model) -> None:
    def text(seed: int) -> str:
        sampling = dsv2.Sampling(temperature=0.9, seed=seed)
        with model.session() as session:
            return "".join(session.generate("Once upon a time", sampling=sampling, max_tokens=40))

    expected = [text(seed) for seed in range(10)]
    with ThreadPoolExecutor(10) as pool:
        assert list(pool.map(text, range(10))) == expected


def test_other_threads_run_while_the_library_works(session: dsv2.Session) -> None:
    # With Python's lock held, the other thread could not answer, and feeding would never end.
    ask, answer = threading.Event(), threading.Event()

    def other() -> None:
        ask.wait()
        answer.set()

    thread = threading.Thread(target=other)
    thread.start()

    def report(_phase: dsv2.Phase, done: int, total: int) -> None:
        if done == total:
            ask.set()
            assert answer.wait(60)

    session.feed(LONG, progress=report)
    thread.join()


def test_threads_that_use_and_close_the_same_sessions_at_random_never_crash(model: dsv2.Model) -> None:
    sessions = [model.session() for _ in range(4)]
    views: list[np.ndarray[Any, Any]] = []

    def replace(i: int, make: Callable[[], dsv2.Session]) -> None:
        sessions[i] = make()

    def use(seed: int) -> int:
        rng, raised = random.Random(seed), 0
        for _ in range(200):
            i = rng.randrange(len(sessions))
            session = sessions[i]
            calls: list[Callable[[], object]] = [
                partial(session.feed, 7),
                partial(session.feed, [5] * 20),
                partial(session.truncate, 1),
                lambda session=session: views.append(session.logits()),  # type: ignore[misc]
                lambda: [float(view.sum()) for view in views[-5:]],
                session.cancel,
                session.sample,
                session.close,
                partial(replace, i, session.fork),
                partial(replace, i, model.session),
            ]
            try:
                rng.choice(calls)()
            except dsv2.Error:
                raised += 1
        return raised

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(use, range(8))) > 0
    with model.session() as session:
        session.feed(7)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_ten_thousand_opens_forks_and_closes_leave_memory_flat(model: dsv2.Model) -> None:
    def rounds(n: int) -> None:
        for i in range(n):
            session = model.session()
            if i % 10 == 0:
                session.feed(i % 384)
            copy = session.fork()
            view = copy.logits() if len(copy) else None
            if i % 20 == 0:
                copy.close()
                session.close()
            del session, copy, view

    rounds(1000)
    before = resident_bytes()
    rounds(10_000)
    grown = resident_bytes() - before
    assert model.memory.pages_in_use == 0
    assert grown < 10_000 * 64, f"{grown} bytes more after 10,000 rounds"


def test_a_process_may_end_with_everything_open(model_path: Path) -> None:
    program = (
        "import sys, threading, dsv2\n"
        "model = dsv2.Model(sys.argv[1])\n"
        "session = model.session()\n"
        "pieces = session.generate('Once')\n"
        "next(pieces)\n"
        "view = session.logits()\n"
        "cycle = [session]; cycle.append(cycle)\n"
    )
    command = [sys.executable, "-c", program, str(model_path)]
    ended = subprocess.run(command, cwd=model_path, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")

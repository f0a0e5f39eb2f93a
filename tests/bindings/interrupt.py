"""How soon Ctrl-C stops a prompt. Usage: interrupt.py MODEL."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import dsv2

RUNS = 20


def main(path: str) -> None:
    """Interrupt prompts at different moments and print how long it took from the signal to the exception."""
    # A shell starts background jobs with SIGINT ignored, and Python leaves that so.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    waits = []
    with dsv2.Model(path, threads=1) as model, model.session() as session:
        prompt = [token % model.info.vocab_size for token in range(model.info.max_position_embeddings)]
        for run in range(RUNS):
            sent = []

            def interrupt(sent: list[float] = sent) -> None:
                sent.append(time.perf_counter())
                os.kill(os.getpid(), signal.SIGINT)

            try:
                threading.Timer(0.005 * (run + 1), interrupt).start()  # a busy machine may not be back from this in time
                while True:
                    session.feed(prompt)
                    session.truncate(0)
            except KeyboardInterrupt:
                waits.append(time.perf_counter() - sent[0])
            session.truncate(0)
            session.feed(prompt[:2])
            session.sample()
            session.truncate(0)
    print(f"from the signal to KeyboardInterrupt: at most {max(waits) * 1e3:.0f} ms in {RUNS} prompts, each usable afterwards")


main(*sys.argv[1:])

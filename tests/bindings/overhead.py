"""How much more a generated token costs in Python than in C. Usage: overhead.py C_PROGRAM MODEL.

Runs both in turn, with one thread, and takes the least processor time of each: other work only adds.
"""

from __future__ import annotations

import math
import subprocess
import sys
import time

import dsv2

TOKENS, RUNS = 300, 9


def python_run(model: dsv2.Model, text: bool) -> float:
    """Return microseconds per token."""
    sampling = dsv2.Sampling(temperature=0, logit_bias={model.info.eos_token_id: -math.inf})
    with model.session() as session:
        session.set_sampling(sampling)
        session.feed(0)
        generate = session.generate if text else session.generate_tokens
        start = time.thread_time()
        for _ in generate(max_tokens=TOKENS):
            pass
        return (time.thread_time() - start) * 1e6 / TOKENS


def main(program: str, path: str) -> None:
    """Print the three figures and the differences."""
    c, tokens, text = [], [], []
    with dsv2.Model(path, threads=1) as model:
        for _ in range(RUNS):
            c.append(float(subprocess.run([program, path, str(TOKENS)], check=True, capture_output=True, text=True).stdout))
            tokens.append(python_run(model, text=False))
            text.append(python_run(model, text=True))
    least = min(c)
    print(f"microseconds of processor time per token: C {least:.1f}", end="")
    for name, runs in [("tokens in Python", tokens), ("text in Python", text)]:
        print(f", {name} {min(runs):.1f} ({min(runs) - least:+.1f})", end="")
    print()


main(*sys.argv[1:])

"""What a generated token costs more in Python than in C. Usage: overhead.py C_PROGRAM MODEL.

Runs in turn, one thread each, and takes the fastest of either: what else the machine does only ever adds.
"""

from __future__ import annotations

import math
import subprocess
import sys
import time

import dsv2

TOKENS, RUNS = 1000, 9


def python_run(model: dsv2.Model, text: bool) -> float:
    """Return microseconds per token."""
    sampling = dsv2.Sampling(temperature=0, logit_bias={model.info.eos_token_id: -math.inf})
    with model.session() as session:
        session.set_sampling(sampling)
        session.feed(0)
        generate = session.generate if text else session.generate_tokens
        start = time.perf_counter()
        for _ in generate(max_tokens=TOKENS):
            pass
        return (time.perf_counter() - start) * 1e6 / TOKENS


def main(program: str, path: str) -> None:
    """Print the three figures and the differences."""
    c, tokens, text = [], [], []
    with dsv2.Model(path, threads=1) as model:
        for _ in range(RUNS):
            c.append(float(subprocess.run([program, path, str(TOKENS)], check=True, capture_output=True, text=True).stdout))
            tokens.append(python_run(model, text=False))
            text.append(python_run(model, text=True))
    fastest = min(c)
    print(f"microseconds per token: C {fastest:.1f}", end="")
    print(
        f", Python's tokens {min(tokens):.1f} ({min(tokens) - fastest:+.1f}), Python's text {min(text):.1f} ({min(text) - fastest:+.1f})"
    )


main(*sys.argv[1:])

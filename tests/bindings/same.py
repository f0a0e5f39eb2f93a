"""The part of Python in the test that all languages give the same tokens; see same.c."""

from __future__ import annotations

import math
import sys

import dsv2


def main(path: str, how: str, snapshot: str) -> None:
    """Continue a text, or a snapshot."""
    with dsv2.Model(path) as model, model.session() as session:
        if how == "fresh":
            sampling = dsv2.Sampling(
                logit_bias={model.info.eos_token_id: -math.inf},
                repetition_penalty=1.1,
                frequency_penalty=0.1,
                temperature=0.8,
                top_k=40,
                top_p=0.95,
                min_p=0.01,
                seed=42,
            )
            for token in session.generate_tokens("Once upon a time", sampling=sampling, max_tokens=48):
                print(token)
            session.save(snapshot)
        else:
            session.restore(snapshot)
        for token in session.generate_tokens(max_tokens=16):
            print(token)


main(*sys.argv[1:])

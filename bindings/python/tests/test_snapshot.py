from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

import dsv2

SAMPLING = dsv2.Sampling(temperature=0.8, seed=7)


def told(session: dsv2.Session) -> bytes:
    file = io.BytesIO()
    list(session.generate("Once upon a time", sampling=SAMPLING, max_tokens=20))
    session.save(file)
    return file.getvalue()


def test_a_restored_session_goes_on_with_the_same_tokens(model: dsv2.Model, session: dsv2.Session, tmp_path: Path) -> None:
    saved, path = told(session), tmp_path / "conversation"
    session.save(path)
    logits, expected = session.logits().copy(), list(session.generate_tokens(max_tokens=20))
    sources: list[Path | str | io.BytesIO] = [path, str(path), io.BytesIO(saved)]
    for source in sources:
        with model.session() as other:
            assert other.restore(source) == len(other)
            np.testing.assert_array_equal(other.logits(), logits)
            assert list(other.generate_tokens(max_tokens=20)) == expected


def test_the_header_can_be_read_without_a_model(model: dsv2.Model, session: dsv2.Session, tmp_path: Path) -> None:
    told(session)
    session.save(tmp_path / "conversation")
    header = dsv2.Snapshot.inspect(tmp_path / "conversation")
    assert header.n_tokens == len(session)
    assert header.model_fingerprint == model.info.fingerprint
    assert header.file_bytes == (tmp_path / "conversation").stat().st_size


def test_only_the_shared_prefix_is_restored_for_a_prompt(model: dsv2.Model, session: dsv2.Session) -> None:
    saved = told(session)
    prompt = [*session.tokens[:9], 383, 383]
    with model.session() as other:
        n = other.restore(io.BytesIO(saved), prompt=prompt)
        assert n in {8, 9}
        assert other.tokens == prompt[:n]


def test_feeding_what_is_left_of_a_prompt_always_gives_its_logits(model: dsv2.Model, session: dsv2.Session) -> None:
    saved, tokens = told(session), session.tokens
    for prompt in [tokens, tokens[:9], tokens[:1], [*tokens, 5], [*tokens[:9], 383]]:
        with model.session() as other, model.session() as fresh:
            n = other.restore(io.BytesIO(saved), prompt=prompt)
            if n < len(prompt):
                other.feed(prompt[n:])
            fresh.feed(prompt)
            assert other.tokens == prompt
            assert other.top_tokens(1)[0].token == fresh.top_tokens(1)[0].token


def test_a_damaged_snapshot_changes_nothing(model: dsv2.Model, session: dsv2.Session) -> None:
    saved = told(session)
    with model.session() as other:
        other.feed([0, 5])
        for damaged in [b"", saved[:-1], saved[: len(saved) // 2], saved[:100] + bytes([saved[100] ^ 1]) + saved[101:]]:
            with pytest.raises(dsv2.Error):
                other.restore(io.BytesIO(damaged))
            assert other.tokens == [0, 5]


class Broken(io.BytesIO):
    def write(self, _data: object) -> int:
        raise LookupError("from the stream")

    def read(self, _size: int | None = -1) -> bytes:
        raise LookupError("from the stream")


class Generous(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        return bytes((size or 0) + 1)


def test_what_a_stream_raises_comes_back_and_changes_nothing(session: dsv2.Session) -> None:
    told(session)
    before = session.tokens
    with pytest.raises(LookupError, match="from the stream"):
        session.save(Broken())
    with pytest.raises(LookupError, match="from the stream"):
        session.restore(Broken())
    with pytest.raises(ValueError, match="returned"):
        session.restore(Generous())
    assert session.tokens == before


def test_progress_of_saving_and_restoring(session: dsv2.Session) -> None:
    told(session)
    file, phases = io.BytesIO(), []
    session.save(file, progress=lambda phase, done, total: phases.append((phase, done == total)))
    file.seek(0)
    session.restore(file, progress=lambda phase, done, total: phases.append((phase, done == total)))
    assert (dsv2.Phase.SAVE, True) in phases
    assert (dsv2.Phase.RESTORE, True) in phases

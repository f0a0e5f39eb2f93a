"""A small model with text: the golden checkpoint `lite` with a tokenizer that fits its vocabulary."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import dsv2

DATA = Path(__file__).resolve().parents[3] / "tests" / "data"


@pytest.fixture(scope="session", autouse=True)
def keyboard_interrupts() -> None:
    # A shell starts background jobs with SIGINT ignored, and Python leaves that so.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    for source in [DATA / "goldens" / "lite", DATA / "bytes"]:
        shutil.copytree(source, folder, dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def model(model_path: Path) -> Iterator[dsv2.Model]:
    with dsv2.Model(model_path) as model:
        yield model


@pytest.fixture
def session(model: dsv2.Model) -> Iterator[dsv2.Session]:
    with model.session() as session:
        yield session
        if not session.closed:
            session.truncate(0)
            assert "".join(session.generate("once", sampling=dsv2.Sampling(), max_tokens=3)), (
                "the session must be usable after the test"
            )

"""Run DeepSeek-V2 language models on CPUs, inside your program.

>>> import dsv2
>>> with dsv2.Model("DeepSeek-V2-Lite-Chat") as model, model.session() as session:
...     for text in session.chat("Why is the sky blue?"):
...         print(text, end="", flush=True)

A Model is opened once and shared by all threads. A Session is one sequence of tokens with its cache. A Tokenizer turns text
into ids and back. All three close at the end of a ``with`` block, or when nothing refers to them any more. Failures are
exceptions derived from ``dsv2.Error``. Python's lock is released while the library works.
"""

from ._errors import (
    ArgumentError,
    BusyError,
    CancelledError,
    ClosedError,
    Error,
    FileError,
    FormatError,
    FullError,
    MismatchError,
    OutOfMemoryError,
    StateError,
    Status,
    UnsupportedError,
)
from ._model import Model, bytes_needed, pack, verify
from ._native import library_version, show_progress
from ._routing import Routing
from ._session import Session, Snapshot
from ._tokenizer import Tokenizer
from ._types import (
    Attention,
    Balance,
    BytesNeeded,
    CacheType,
    Loading,
    MemoryInfo,
    ModelInfo,
    Phase,
    Progress,
    RoutingInfo,
    RoutingTokens,
    Sampling,
    TokenIds,
    TokenizerInfo,
    TokenProbability,
    WeightType,
)

__version__ = library_version()

__all__ = [
    "ArgumentError",
    "Attention",
    "Balance",
    "BusyError",
    "BytesNeeded",
    "CacheType",
    "CancelledError",
    "ClosedError",
    "Error",
    "FileError",
    "FormatError",
    "FullError",
    "Loading",
    "MemoryInfo",
    "MismatchError",
    "Model",
    "ModelInfo",
    "OutOfMemoryError",
    "Phase",
    "Progress",
    "Routing",
    "RoutingInfo",
    "RoutingTokens",
    "Sampling",
    "Session",
    "Snapshot",
    "StateError",
    "Status",
    "TokenIds",
    "TokenProbability",
    "Tokenizer",
    "TokenizerInfo",
    "UnsupportedError",
    "WeightType",
    "bytes_needed",
    "pack",
    "show_progress",
    "verify",
]

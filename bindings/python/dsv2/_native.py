"""The C library: where it is found, how statuses become exceptions, how it calls back.

Three things make this safe:

- A handle is a cffi pointer whose destructor closes the object. Whoever calls C holds a reference to the pointer. So no thread
  frees an object under a running call.
- Callbacks are functions of this module, which live as long as the process. They find the call that they belong to in a
  thread-local variable. So C never holds a pointer that Python could free.
- What a callback raises is kept while C returns. Then the call raises it again.
"""

from __future__ import annotations

import functools
import logging
import operator
import os
import threading
from collections.abc import Hashable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, cast, get_type_hints

import numpy as np

from ._errors import ArgumentError, Status, error
from ._ffi import ffi
from ._types import LogLevel, Phase, Progress, StrPath, TokenIds

T = TypeVar("T")

_logger = logging.getLogger("dsv2")


def _load() -> Any:
    """Open $DSV2_LIBRARY, else the library that the package carries, else the system's."""
    carried = Path(__file__).with_name("libdsv2.so.0")
    path = os.environ.get("DSV2_LIBRARY") or (str(carried) if carried.exists() else "libdsv2.so.0")
    try:
        library = ffi.dlopen(path)
    except OSError as failure:
        raise ImportError(f"cannot load libdsv2: {failure}") from None
    needed = library.DSV2_VERSION_MAJOR * 10000 + library.DSV2_VERSION_MINOR * 100 + library.DSV2_VERSION_PATCH
    if library.dsv2_version_number() < needed:
        raise ImportError(f"{path} is older than the Python package, which needs number {needed}")
    return library


lib = _load()


def library_version() -> str:
    """Return the version of the library that is running."""
    return str(ffi.string(lib.dsv2_version_string()).decode())


def show_progress(bar: Any) -> Progress:
    """Make a progress callback that drives a progress bar: tqdm's, or anything with `total`, `n` and `update`.

    >>> with tqdm() as bar:
    ...     model = Model("DeepSeek-V2-Lite-Chat", progress=show_progress(bar))
    """

    def progress(_phase: Phase, done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return progress


def check(status: int) -> None:
    """Raise the exception for a status other than DSV2_OK."""
    if status != 0:
        raise error(status, ffi.string(lib.dsv2_last_error()).decode("utf-8", "replace"))


def make(kind: str) -> Any:
    """Make a zeroed structure with its struct_size set."""
    structure = ffi.new(f"{kind} *")
    structure.struct_size = ffi.sizeof(kind)
    return structure


def number(kind: str, name: str, value: int) -> int:
    """Return a number that C's `kind` holds. Otherwise the error names the argument."""
    try:
        return int(ffi.new(f"{kind} *", operator.index(value))[0])
    except OverflowError:
        raise ArgumentError(Status.ARGUMENT, f"{name} is {value}, which {kind} does not hold") from None


def fill(structure: Any, **values: Any) -> None:
    """Set fields of a structure. The error for a number that does not fit names the field."""
    for name, value in values.items():
        try:
            setattr(structure, name, value)
        except OverflowError:
            raise ArgumentError(Status.ARGUMENT, f"{name} is {value}, which its type does not hold") from None


@functools.cache
def _field_types(cls: Hashable) -> dict[str, Any]:
    return get_type_hints(cls)


def record(cls: type[T], structure: Any) -> T:
    """Make the dataclass whose fields have the names of the structure's."""
    values = {}
    for name, kind in _field_types(cast(Hashable, cls)).items():
        value = getattr(structure, name)
        values[name] = ffi.string(value).decode() if kind is str else kind(value)
    return cls(**values)


def keep_alive(ptr: Any, owner: Any) -> Any:
    """Return the pointer, made to hold a reference to the owner of what it points to."""
    return ffi.gc(ptr, functools.partial(_let_go, owner))


def _let_go(_owner: Any, _ptr: Any) -> None:
    """Do nothing: the call alone drops the reference to the owner."""


def path_bytes(path: StrPath) -> bytes:
    """Encode a path for the library. Refuses a path that C would cut short."""
    encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise ArgumentError(Status.ARGUMENT, "a path contains a NUL character")
    return encoded


def token_array(tokens: TokenIds) -> tuple[Any, int]:
    """Make an int32_t array of any sequence of ids; NumPy arrays of that type are not copied."""
    if isinstance(tokens, np.ndarray) and tokens.dtype == np.int32 and tokens.flags.c_contiguous and tokens.ndim == 1:
        return ffi.from_buffer("int32_t[]", tokens), len(tokens)
    try:
        return ffi.new("int32_t[]", list(map(operator.index, tokens))), len(tokens)
    except OverflowError:
        raise ArgumentError(Status.ARGUMENT, "a token id does not fit into 32 bits") from None


def ask(call: Any, item: str) -> Any:
    """Ask a function of the form (buffer, capacity, size *) for its size, then for its content."""
    size = ffi.new("size_t *")
    check(call(ffi.NULL, 0, size))
    buffer = ffi.new(f"{item}[]", size[0])
    if size[0] > 0:
        check(call(buffer, size[0], size))
    return buffer


class Call:
    """One call of C that may call back: ``with Call(progress) as call: call.check(lib.dsv2_...)``."""

    def __init__(self, progress: Progress | None = None, stream: Any = None) -> None:
        self.progress = progress
        self.stream = stream
        self.raised: BaseException | None = None

    def __enter__(self) -> Call:
        self.outer = _current.call
        _current.call = self
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        _current.call = self.outer

    def check(self, status: int) -> None:
        """Raise what a callback raised, or the exception for the status."""
        if self.raised is not None:
            raise self.raised
        check(status)


class _Current(threading.local):
    call: Call | None = None


_current = _Current()


def _keep(_kind: type[BaseException], value: BaseException, _trace: TracebackType) -> None:
    """Keep what a callback raised. cffi then returns the callback's `error` value to C, which cancels the call."""
    call = _current.call
    if call is not None and call.raised is None:
        call.raised = value


# KeyboardInterrupt needs nothing else: Python raises a pending one as soon as one of these callbacks begins to run, even
# before its first line, and _keep gets it.


@ffi.callback("dsv2_progress_fn", error=1, onerror=_keep)  # type: ignore[untyped-decorator]
def progress_callback(_user: Any, phase: int, done: int, total: int) -> int:
    """Report to the current call."""
    call = _current.call
    if call is not None and call.progress is not None:
        call.progress(Phase(phase), done, total)
    return 0


@ffi.callback("dsv2_write_fn", error=1, onerror=_keep)  # type: ignore[untyped-decorator]
def write_callback(_user: Any, data: Any, size: int) -> int:
    """Write to the current call's stream. The stream gets a copy, which it may keep."""
    stream = _current.call.stream  # type: ignore[union-attr]
    rest = memoryview(ffi.buffer(data, size)[:])
    while rest:
        written = stream.write(rest)
        rest = rest[len(rest) if written is None else written :]
    return 0


@ffi.callback("dsv2_read_fn", error=1, onerror=_keep)  # type: ignore[untyped-decorator]
def read_callback(_user: Any, data: Any, size: int, got: Any) -> int:
    """Read from the current call's stream."""
    content = _current.call.stream.read(size)  # type: ignore[union-attr]
    if len(content) > size:
        raise ValueError(f"read({size}) returned {len(content)} bytes")
    ffi.memmove(data, content, len(content))
    got[0] = len(content)
    return 0


@ffi.callback("dsv2_log_fn", onerror=_keep)  # type: ignore[untyped-decorator]
def log_callback(_user: Any, level: int, message: Any) -> None:
    """Pass a remark on to the logger named dsv2."""
    text = ffi.string(message).decode("utf-8", "replace")
    _logger.log(logging.WARNING if level == LogLevel.WARNING else logging.INFO, "%s", text)

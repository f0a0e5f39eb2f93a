"""What a failed call raises."""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """What a call of the library returned: the values of ``dsv2_status``."""

    OK = 0
    ARGUMENT = 1
    MEMORY = 2
    IO = 3
    FORMAT = 4
    UNSUPPORTED = 5
    BUSY = 6
    CANCELLED = 7
    FULL = 8
    MISMATCH = 9
    STATE = 10
    BUFFER = 11


class Error(Exception):
    """A failed call. It leaves what it was to change as it was.

    Attributes:
        status: the kind of failure
        message: what failed, where, and what to do, in the library's words

    """

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message

    def __reduce__(self) -> tuple[type[Error], tuple[Status, str]]:
        return type(self), (self.status, self.message)


class ArgumentError(Error, ValueError):
    """An argument is outside what the function takes."""


class ClosedError(ArgumentError):
    """A model, session or tokenizer is used, or closed again, after it was closed."""

    def __init__(self, what: str) -> None:
        super().__init__(Status.ARGUMENT, f"the {what} is closed")
        self._what = what

    def __reduce__(self) -> tuple[type[Error], tuple[str]]:  # type: ignore[override]
        return type(self), (self._what,)


class OutOfMemoryError(Error, MemoryError):
    """The system, or the limit set for the model, gives no more memory."""


class FileError(Error, OSError):
    """A file cannot be opened, read or written."""


class FormatError(Error, ValueError):
    """A file is damaged or not what it says it is."""


class UnsupportedError(Error, NotImplementedError):
    """Well formed, but of a kind that this version of the library does not run."""


class BusyError(Error, RuntimeError):
    """The session is in use by another thread."""


class CancelledError(Error):
    """``Session.cancel`` stopped the call."""


class FullError(Error):
    """The tokens do not fit into the session's maximum length."""


class MismatchError(Error, ValueError):
    """A snapshot or session belongs to another model."""


class StateError(Error, RuntimeError):
    """A session that was fed nothing since it was opened or rewound has no logits and draws no token."""


_CLASSES: dict[Status, type[Error]] = {
    Status.ARGUMENT: ArgumentError,
    Status.MEMORY: OutOfMemoryError,
    Status.IO: FileError,
    Status.FORMAT: FormatError,
    Status.UNSUPPORTED: UnsupportedError,
    Status.BUSY: BusyError,
    Status.CANCELLED: CancelledError,
    Status.FULL: FullError,
    Status.MISMATCH: MismatchError,
    Status.STATE: StateError,
}


def error(status: int, message: str) -> Error:
    """Make the exception for a status."""
    try:
        known = Status(status)
    except ValueError:  # a newer library than these bindings
        return Error(Status.UNSUPPORTED, f"{message} (status {status})")
    return _CLASSES.get(known, Error)(known, message)

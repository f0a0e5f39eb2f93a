"""What models, sessions and tokenizers have in common: they are open until they are closed."""

from __future__ import annotations

from types import TracebackType
from typing import Any, TypeVar

from ._errors import ClosedError

_Handle = TypeVar("_Handle", bound="Handle")


class Handle:
    """A handle of the library, open as long as it has a pointer."""

    _kind: str  # in messages
    _ptr: Any = None

    def _open(self) -> Any:
        ptr = self._ptr
        if ptr is None:
            raise ClosedError(self._kind)
        return ptr

    def _let_go(self) -> None:
        self._ptr = None

    def _close(self) -> None:
        self._open()
        self._let_go()

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._ptr is None

    def __enter__(self: _Handle) -> _Handle:
        self._open()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._let_go()

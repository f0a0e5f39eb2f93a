"""Text to token ids and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ._errors import ArgumentError, Status, UnsupportedError
from ._ffi import ffi
from ._handle import Handle
from ._native import (
    Call,
    ask,
    check,
    keep_alive,
    lib,
    make,
    number,
    path_bytes,
    progress_callback,
    record,
    token_array,
)
from ._types import Progress, StrPath, TokenIds, TokenizerInfo


def _bytes(text: str | bytes) -> bytes:
    """Encode text. Bytes that os.fsdecode and the like escaped are themselves again; other halves of pairs are U+FFFD."""
    if isinstance(text, bytes):
        return text
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def _message_bytes(message: Mapping[str, str | bytes | None], field: str, i: int) -> bytes:
    """Return a field of a message. A content of None is empty."""
    if field not in message:
        raise ArgumentError(Status.ARGUMENT, f"messages[{i}].{field} is missing")
    value = message[field]
    if value is None and field == "content":
        return b""
    if not isinstance(value, (str, bytes)):
        raise ArgumentError(Status.ARGUMENT, f"messages[{i}].{field} is {type(value).__name__}, expected str or bytes")
    return _bytes(value)


class Tokenizer(Handle):
    """Byte-level BPE as a checkpoint describes it. Any number of threads may use one.

    ``Tokenizer(path)`` opens a tokenizer.json, a folder that holds one, or a GGUF, without weights;
    ``Model.tokenizer`` is a model's own.

    >>> with Tokenizer("DeepSeek-V2-Lite-Chat") as tokenizer:
    ...     tokenizer.decode(tokenizer.encode("Hello"))
    'Hello'
    """

    _kind = "tokenizer"

    def __init__(self, path: StrPath) -> None:
        opened = ffi.new("dsv2_tokenizer **")
        check(lib.dsv2_tokenizer_open(path_bytes(path), opened))
        self._start(ffi.gc(opened[0], lib.dsv2_tokenizer_close))

    def _start(self, ptr: Any) -> None:
        self._ptr = ptr
        self._pieces: dict[int, bytes] = {}
        info = make("dsv2_tokenizer_info")
        check(lib.dsv2_tokenizer_get_info(ptr, info))
        self._info = record(TokenizerInfo, info)

    @classmethod
    def _of_model(cls, model_ptr: Any) -> Tokenizer:
        ptr = lib.dsv2_model_tokenizer(model_ptr)
        if ptr == ffi.NULL:
            raise UnsupportedError(Status.UNSUPPORTED, "the checkpoint has no tokenizer")
        self = cls.__new__(cls)
        self._start(keep_alive(ptr, model_ptr))
        return self

    def close(self) -> None:
        """Close the tokenizer. Its memory is freed when no other thread uses it."""
        self._close()

    def __repr__(self) -> str:
        return f"<dsv2.Tokenizer of {self._info.vocab_size} tokens{', closed' if self.closed else ''}>"

    @property
    def info(self) -> TokenizerInfo:
        """The facts about the tokenizer."""
        return self._info

    @property
    def bos(self) -> int | None:
        """The token that begins a sequence."""
        return self._info.bos_token_id if self._info.bos_token_id >= 0 else None

    @property
    def eos(self) -> int | None:
        """The token that ends a sequence."""
        return self._info.eos_token_id if self._info.eos_token_id >= 0 else None

    def encode(
        self,
        text: str | bytes,
        *,
        bos: bool = False,
        special: bool = False,
        progress: Progress | None = None,
    ) -> list[int]:
        """Encode text.

        Args:
            text: any text or bytes
            bos: begin with the beginning-of-sequence token
            special: text that spells a special token becomes that token: only for text that you wrote yourself
            progress: called while a long text is encoded; an exception from it cancels the call, which raises it again

        """
        ptr, data = self._open(), _bytes(text)
        flags = (lib.DSV2_ENCODE_BOS if bos else 0) | (lib.DSV2_ENCODE_SPECIAL if special else 0)
        if progress is not None:
            room, n = 2 * len(data) + 1, ffi.new("size_t *")
            tokens = ffi.new("int32_t[]", room)
            with Call(progress) as call:
                call.check(
                    lib.dsv2_tokenizer_encode_watched(ptr, data, len(data), flags, progress_callback, ffi.NULL, tokens, room, n)
                )
            return list(tokens[0 : n[0]])
        return list(
            ask(
                lambda buffer, room, n: lib.dsv2_tokenizer_encode(ptr, data, len(data), flags, buffer, room, n),
                "int32_t",
            )
        )

    def decode_bytes(self, tokens: TokenIds, *, special: bool = False) -> bytes:
        """Decode tokens to the bytes that they stand for, which may be part of a UTF-8 character.

        Args:
            tokens: ids
            special: write special tokens out as their text

        """
        ptr = self._open()
        ids, n_ids = token_array(tokens)
        flags = lib.DSV2_DECODE_SPECIAL if special else 0
        text = ask(lambda buffer, room, n: lib.dsv2_tokenizer_decode(ptr, ids, n_ids, flags, buffer, room, n), "char")
        return bytes(ffi.buffer(text))

    def decode(self, tokens: TokenIds, *, special: bool = False, errors: str = "replace") -> str:
        """Decode tokens to text; `errors` is as in ``bytes.decode``."""
        return self.decode_bytes(tokens, special=special).decode("utf-8", errors)

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of one token; special tokens give their spelling."""
        text, size = ffi.new("const char **"), ffi.new("size_t *")
        ptr = self._open()
        check(lib.dsv2_token_text(ptr, _int32(token), text, size))
        return bytes(ffi.buffer(text[0], size[0]))

    def _piece(self, token: int) -> bytes:
        """Return what one token adds to a decoded text, for streaming."""
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self.decode_bytes([token])
        return piece

    def find(self, text: str | bytes) -> int | None:
        """Return the token with exactly this spelling, special tokens included."""
        data, token = _bytes(text), ffi.new("int32_t *")
        check(lib.dsv2_tokenizer_find(self._open(), data, len(data), token))
        return token[0] if token[0] >= 0 else None

    def encode_chat(self, messages: Sequence[Mapping[str, str | bytes | None]], *, first: int = 0) -> list[int]:
        """Make the prompt after which a model writes the next assistant message.

        Args:
            messages: ``{"role": ..., "content": ...}``, oldest first; roles are an optional "system", then "user" and
                "assistant" in turn; a content of None is empty
            first: messages before this index are taken as already fed

        """
        ptr = self._open()
        plain, alive = ffi.new("dsv2_message[]", len(messages)), []
        for i, (target, message) in enumerate(zip(plain, messages)):
            role, content = _message_bytes(message, "role", i), _message_bytes(message, "content", i)
            if b"\0" in role:
                raise ArgumentError(Status.ARGUMENT, f"messages[{i}].role contains a NUL character")
            alive += [ffi.new("char[]", role), ffi.from_buffer(content)]
            target.role, target.content, target.content_size = alive[-2], alive[-1], len(content)
        n_messages, first = len(messages), number("size_t", "first", first)
        return list(
            ask(
                lambda buffer, room, n: lib.dsv2_chat_encode(ptr, plain, n_messages, first, buffer, room, n),
                "int32_t",
            )
        )

    def encode_fim(self, prefix: str | bytes, suffix: str | bytes) -> list[int]:
        """Make the prompt for filling in what is between a prefix and a suffix."""
        ptr, before, after = self._open(), _bytes(prefix), _bytes(suffix)
        return list(
            ask(
                lambda buffer, room, n: lib.dsv2_fim_encode(ptr, before, len(before), after, len(after), buffer, room, n),
                "int32_t",
            )
        )


def _int32(token: int) -> int:
    if not -(2**31) <= token < 2**31:
        raise ArgumentError(Status.ARGUMENT, f"the token id {token} does not fit into 32 bits")
    return token

"""Text to token ids and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ._errors import ArgumentError, Status
from ._ffi import ffi
from ._handle import Handle
from ._native import (
    Call,
    ask,
    check,
    fill,
    keep_alive,
    lib,
    make,
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


def _c_string(text: str | bytes, name: str) -> Any:
    data = _bytes(text)
    if b"\0" in data:
        raise ArgumentError(Status.ARGUMENT, f"{name} contains a NUL character")
    return ffi.new("char[]", data)


def _json(value: Any, name: str) -> Any:
    try:
        return _c_string(json.dumps(value, ensure_ascii=False), name)
    except (TypeError, ValueError) as failure:
        raise ArgumentError(Status.ARGUMENT, f"{name} cannot be written as JSON: {failure}") from None


def _is_plain(message: Mapping[str, Any]) -> bool:
    """Tell whether a message has a role and a text alone."""
    return message.keys() <= {"role", "content"} and isinstance(message.get("content", ""), (str, bytes))


def _with_content(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Make a content of None empty, but beside tool calls, where templates know it."""
    if message.get("content", "") is None and not message.get("tool_calls"):
        return {**message, "content": ""}
    return message


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
            check(Status.UNSUPPORTED)
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

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        first: int = 0,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        open: bool = False,
        unclosed: bool = False,
    ) -> list[int]:
        """Make the prompt after which a model writes the next message, in the words of the checkpoint's chat template.

        Args:
            messages: ``{"role": ..., "content": ...}``, oldest first, with whatever else the template reads: tool calls,
                parts, reasoning; a content of None is empty, and none to the template beside tool calls
            first: messages before this index are taken as already fed
            tools: what the model may call, in the form of OpenAI's interface
            variables: of the template, for example ``{"thinking": True}``
            open: the last message, an assistant's, goes on: the prompt ends with its text
            unclosed: the reply before `first` was fed without the token that ended it: the prompt begins with what the template
                writes behind its text

        """
        ptr, chat = self._open(), ffi.new("dsv2_chat *")
        chat.struct_size, chat.flags = ffi.sizeof("dsv2_chat"), 0
        if open:
            chat.flags |= lib.DSV2_CHAT_OPEN
        if unclosed:
            chat.flags |= lib.DSV2_CHAT_UNCLOSED
        fill(chat, first=first)
        plain, alive = ffi.new("dsv2_message[]", len(messages)), []
        messages = list(map(_with_content, messages))
        if all(map(_is_plain, messages)):
            for i, (target, message) in enumerate(zip(plain, messages)):
                for field in "role", "content":
                    if field not in message:
                        raise ArgumentError(Status.ARGUMENT, f"messages[{i}].{field} is missing")
                if not isinstance(message["role"], (str, bytes)):
                    kind = type(message["role"]).__name__
                    raise ArgumentError(Status.ARGUMENT, f"messages[{i}].role is {kind}, expected str or bytes")
                role = _c_string(message["role"], f"messages[{i}].role")
                content = ffi.from_buffer(_bytes(message["content"]))
                alive += [role, content]
                target.role, target.content, target.content_size = role, content, len(content)
            chat.messages, chat.n = plain, len(messages)
        else:
            alive.append(_json(list(map(dict, messages)), "messages"))
            chat.messages_json = alive[-1]
        if tools is not None:
            alive.append(_json(list(tools), "tools"))
            chat.tools = alive[-1]
        if variables is not None:
            alive.append(_json(dict(variables), "variables"))
            chat.variables = alive[-1]
        return list(ask(lambda buffer, room, n: lib.dsv2_chat_prompt(ptr, chat, buffer, room, n), "int32_t"))

    @property
    def chat_template(self) -> str | None:
        """The text of the checkpoint's chat template."""
        text, size = ffi.new("const char **"), ffi.new("size_t *")
        check(lib.dsv2_chat_template(self._open(), text, size))
        return bytes(ffi.buffer(text[0], size[0])).decode() if size[0] > 0 else None

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

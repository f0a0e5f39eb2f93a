"""Sessions: one sequence of tokens each, with its latent KV cache and its sampler."""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ._errors import UnsupportedError
from ._ffi import ffi
from ._handle import Handle
from ._model import Model
from ._native import (
    Call,
    ask,
    check,
    fill,
    keep_alive,
    lib,
    make,
    number,
    path_bytes,
    progress_callback,
    read_callback,
    record,
    token_array,
    write_callback,
)
from ._routing import Routing
from ._tokenizer import Tokenizer
from ._types import (
    Attention,
    CacheType,
    ModelInfo,
    Progress,
    RoutingTokens,
    Sampling,
    StrPath,
    TokenIds,
    TokenProbability,
)


class Session(Handle):
    """One sequence of tokens. Any thread may use it, one at a time: another thread meanwhile gets BusyError.

    Args:
        model: the model; it stays in memory as long as the session is open
        max_length: tokens; 0: the model's context length
        cache_type: element type of the latent KV cache
        attention: for tests

    A call that raises leaves the session as it was, and usable. KeyboardInterrupt stops a prompt on its way.

    """

    _kind = "session"

    def __init__(
        self,
        model: Model,
        *,
        max_length: int = 0,
        cache_type: CacheType = CacheType.DEFAULT,
        attention: Attention = Attention.AUTO,
    ) -> None:
        options = make("dsv2_session_options")
        fill(options, max_length=max_length, cache_type=cache_type, attention=attention)
        opened = ffi.new("dsv2_session **")
        model_ptr = model._open()
        check(lib.dsv2_session_open(model_ptr, options, opened))
        try:
            tokenizer: Tokenizer | UnsupportedError = model.tokenizer
        except UnsupportedError as reason:
            tokenizer = reason
        self._start(opened[0], model.info, model.end_tokens, tokenizer)

    def _start(self, ptr: Any, info: ModelInfo, ends: tuple[int, ...], tokenizer: Tokenizer | UnsupportedError) -> None:
        self._ptr = ffi.gc(ptr, lib.dsv2_session_close)
        self._info = info
        self._ends = ends
        self._tokenizer = tokenizer
        self._has_callback = False

    def close(self) -> None:
        """Close the session, after the call of another thread that uses it. Arrays of logits stay readable."""
        self._close()

    def __repr__(self) -> str:
        return f"<dsv2.Session{', closed' if self.closed else ''}>"

    def __len__(self) -> int:
        n = ffi.new("size_t *")
        check(lib.dsv2_session_length(self._open(), n))
        return int(n[0])

    def __bool__(self) -> bool:
        return True

    @property
    def tokens(self) -> list[int]:
        """The session's tokens."""
        ptr = self._open()
        return list(ask(lambda buffer, room, n: lib.dsv2_session_tokens(ptr, buffer, room, n), "int32_t"))

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises UnsupportedError, with the reason, if it has none or none that can be used."""
        if isinstance(self._tokenizer, UnsupportedError):
            raise self._tokenizer.with_traceback(None)
        return self._tokenizer

    @property
    def bytes_per_token(self) -> int:
        """The bytes that one token takes in the cache."""
        size = ffi.new("uint64_t *")
        check(lib.dsv2_session_bytes_per_token(self._open(), size))
        return int(size[0])

    def _watched(self, wanted: bool) -> Any:
        """Return the pointer, after letting the library call back while it feeds, or not.

        A callback lets KeyboardInterrupt through and costs some microseconds a layer: right for prompts, too much for single
        tokens.
        """
        ptr = self._open()
        if self._has_callback != wanted:
            check(lib.dsv2_session_set_progress(ptr, progress_callback if wanted else ffi.NULL, ffi.NULL))
            self._has_callback = wanted
        return ptr

    def feed(self, tokens: int | TokenIds, *, progress: Progress | None = None) -> None:
        """Append a token or several, and compute the logits of the last.

        FormatError: numbers that are not finite came up. UnsupportedError: a row is too large for the cache type. Their messages
        name token and layer.

        Args:
            tokens: an id or a sequence of them; a NumPy array of int32 is not copied
            progress: called while the library works; an exception from it cancels the call, which raises it again

        """
        ids, n = token_array([tokens] if isinstance(tokens, (int, np.integer)) else tokens)
        if n == 1 and progress is None:
            check(lib.dsv2_session_feed(self._watched(False), ids, 1))
            return
        with Call(progress) as call:
            call.check(lib.dsv2_session_feed(self._watched(True), ids, n))

    def sample(self) -> int:
        """Draw the next token. It is not appended: feed it, or stop."""
        token = ffi.new("int32_t *")
        check(lib.dsv2_session_sample(self._open(), token))
        return int(token[0])

    def set_sampling(self, sampling: Sampling) -> None:
        """Set how to draw; a session starts with ``Sampling()``.

        The session's random numbers go on, so that options and biases may change before every draw. A seed that differs from
        the one set before starts them anew.
        """
        plain = make("dsv2_sampling")
        check(lib.dsv2_sampling_get_defaults(plain))
        tokens = [(number("int32_t", "a token of logit_bias", token), bias) for token, bias in sampling.logit_bias.items()]
        biases = ffi.new("dsv2_logit_bias[]", tokens)
        plain.logit_bias, plain.n_logit_bias = biases, len(biases)
        names = [field.name for field in fields(sampling) if field.name != "logit_bias"]
        fill(plain, **{name: getattr(sampling, name) for name in names})
        check(lib.dsv2_session_set_sampling(self._open(), plain))

    def seed(self, seed: int) -> None:
        """Start the session's random numbers anew. So forks are seeded apart, and a text is drawn again as it was."""
        check(lib.dsv2_session_seed(self._open(), number("uint64_t", "seed", seed)))

    def generate_tokens(
        self,
        prompt: str | TokenIds | None = None,
        *,
        max_tokens: int | None = 256,
        sampling: Sampling | None = None,
        progress: Progress | None = None,
    ) -> Iterator[int]:
        """Feed a prompt, then draw tokens until `max_tokens` or the end-of-sequence token, which is neither yielded nor fed.

        The work begins when the first token is asked for. A yielded token is in the session already, so the loop may be left
        at any time.

        Args:
            prompt: text (after the beginning-of-sequence token if the session is empty) or ids; None or "" goes on where the
                session stands
            max_tokens: how many at most; None: until a token comes that ends the text, or FullError
            sampling: how to draw, as for `set_sampling`; None: as set before
            progress: called while the prompt is fed

        """
        if isinstance(prompt, str):
            first = len(self) == 0
            prompt = self.tokenizer.encode(prompt, bos=first) if prompt or first else None
        if sampling is not None:
            self.set_sampling(sampling)
        if prompt is not None and len(prompt) > 0:
            self.feed(prompt, progress=progress)
        token = ffi.new("int32_t *")
        for _ in itertools.count() if max_tokens is None else range(max_tokens):
            check(lib.dsv2_session_sample(self._open(), token))
            if token[0] in self._ends:
                return
            check(lib.dsv2_session_feed(self._watched(False), token, 1))
            yield token[0]

    def generate(
        self,
        prompt: str | TokenIds | None = None,
        *,
        max_tokens: int | None = 256,
        sampling: Sampling | None = None,
        progress: Progress | None = None,
    ) -> Iterator[str]:
        """Continue a prompt and yield the text as it comes; the arguments are those of `generate_tokens`.

        A piece of text is what one token adds, whole characters only.
        """
        piece, decoder = self.tokenizer._piece, codecs.getincrementaldecoder("utf-8")("replace")
        for token in self.generate_tokens(prompt, max_tokens=max_tokens, sampling=sampling, progress=progress):
            text = decoder.decode(piece(token))
            if text:
                yield text
        text = decoder.decode(b"", final=True)
        if text:
            yield text

    def chat(
        self,
        message: str,
        *,
        system: str | None = None,
        max_tokens: int | None = 1024,
        sampling: Sampling | None = None,
        progress: Progress | None = None,
    ) -> Iterator[str]:
        """Say something to the model and yield its reply as it comes.

        The session is the conversation: the next call is the next turn, also after a restore, a fork, or a reply that was left
        early.

        Args:
            message: the user's words
            system: instructions for the model, where the session is empty
            max_tokens: of the reply
            sampling: how to draw; None: as set before
            progress: called while the message is fed

        """
        tokenizer, said = self.tokenizer, self.tokens
        turn = {"role": "user", "content": message}
        if not said:
            before = [{"role": "system", "content": system}] if system is not None else []
            prompt = tokenizer.encode_chat([*before, turn])
        else:
            if system is not None:
                raise ValueError("a system text can only begin a conversation")
            # The session has the past, whatever it was: any two messages stand for it.
            past = [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}]
            prompt = tokenizer.encode_chat([*past, turn], first=2, unclosed=said[-1] not in self._ends)
        return self.generate(prompt, max_tokens=max_tokens, sampling=sampling, progress=progress)

    def logits(self) -> npt.NDArray[np.float32]:
        """Return the logits of the last token, as a read-only view of the library's own memory.

        The next feed or restore overwrites what the view shows: copy it to keep the logits. The view stays readable as long as
        you hold it, even after the session is closed.
        """
        ptr, values = self._open(), ffi.new("float const **")
        check(lib.dsv2_session_logits(ptr, values))
        memory = ffi.buffer(keep_alive(values[0], ptr), 4 * self._info.vocab_size)
        return np.frombuffer(memoryview(memory).toreadonly(), np.float32)

    def top_tokens(self, k: int) -> list[TokenProbability]:
        """Return the k most likely next tokens, most likely first, with their log probabilities."""
        ptr = self._open()
        if not 0 <= k <= self._info.vocab_size:
            raise ValueError(f"k is {k}, the vocabulary has {self._info.vocab_size} tokens")
        top = ffi.new("dsv2_token_probability[]", k)
        check(lib.dsv2_session_top_tokens(ptr, k, top))
        return [TokenProbability(item.token, item.log_probability) for item in top]

    def log_probability(self, token: int) -> float:
        """Return the log probability of one token as the next."""
        value = ffi.new("float *")
        check(lib.dsv2_session_log_probability(self._open(), number("int32_t", "token", token), value))
        return float(value[0])

    def truncate(self, n: int) -> None:
        """Rewind to the first n tokens. If n is less than the length, there are no logits until the next feed."""
        check(lib.dsv2_session_truncate(self._open(), number("size_t", "n", n)))

    def fork(self, n: int | None = None) -> Session:
        """Return a new session with the first n tokens of this one (None: all), its sampler and random state.

        Memory is shared until one of the two changes it.
        """
        copy = ffi.new("dsv2_session **")
        check(lib.dsv2_session_fork(self._open(), len(self) if n is None else number("size_t", "n", n), copy))
        forked = Session.__new__(Session)
        forked._start(copy[0], self._info, self._ends, self._tokenizer)
        return forked

    def cancel(self) -> None:
        """Let another thread's call that is at work on the session raise CancelledError. Without one, do nothing."""
        lib.dsv2_session_cancel(self._open())

    def save(
        self,
        file: StrPath | BinaryIO,
        *,
        append: bool = False,
        compression_level: int = 0,
        progress: Progress | None = None,
    ) -> None:
        """Write a snapshot.

        Args:
            file: a path, whose file only a whole snapshot replaces, or a file object open for writing bytes
            append: add only what is new to a snapshot of this session's first tokens; for paths
            compression_level: of zstd; 0: the default
            progress: called while it works

        """
        options = make("dsv2_save_options")
        options.append = append
        fill(options, compression_level=compression_level)
        options.progress = progress_callback
        if hasattr(file, "write"):
            with Call(progress, file) as call:
                call.check(lib.dsv2_session_save_to(self._open(), write_callback, ffi.NULL, options))
        else:
            with Call(progress) as call:
                call.check(lib.dsv2_session_save(self._open(), path_bytes(file), options))

    def restore(
        self,
        file: StrPath | BinaryIO,
        *,
        prompt: TokenIds | None = None,
        convert: bool = False,
        progress: Progress | None = None,
    ) -> int:
        """Replace what the session holds by what a snapshot holds, and return the number of tokens.

        Args:
            file: a path, or a file object open for reading bytes
            prompt: restore only the longest prefix that the snapshot shares with these ids. Where this would be all of
                them, but no logits come with them, the last one is left out. So feeding `prompt[n:]`, n being what this
                returns, always gives the prompt's logits
            convert: convert a snapshot of another cache type
            progress: called while it works

        """
        options = make("dsv2_restore_options")
        if prompt is not None:
            ids, options.n_prompt = token_array(prompt)
            options.prompt = ids
            options.leave_last = True
        options.convert = convert
        options.progress = progress_callback
        reused = ffi.new("size_t *")
        if hasattr(file, "read"):
            with Call(progress, file) as call:
                call.check(lib.dsv2_session_restore_from(self._open(), read_callback, ffi.NULL, options, reused))
        else:
            with Call(progress) as call:
                call.check(lib.dsv2_session_restore(self._open(), path_bytes(file), options, reused))
        return int(reused[0])

    def routing(self, tokens: RoutingTokens = RoutingTokens.ALL) -> Routing:
        """Copy the session's counts of expert use."""
        copied = ffi.new("dsv2_routing **")
        check(lib.dsv2_session_routing(self._open(), tokens, copied))
        return Routing(copied[0])

    def reset_routing(self) -> None:
        """Set the session's counts to zero."""
        check(lib.dsv2_session_routing_reset(self._open()))


@dataclass(frozen=True)
class Snapshot:
    """What a snapshot's header says.

    Attributes:
        version: of the file format
        cache_type: element type of the cache
        n_tokens: tokens held
        model_fingerprint: of the model that the snapshot belongs to, as in ModelInfo
        file_bytes: size of the file
        latent_bytes: size of the cache before compression

    """

    version: int
    cache_type: CacheType
    n_tokens: int
    model_fingerprint: int
    file_bytes: int
    latent_bytes: int

    @classmethod
    def inspect(cls, path: StrPath) -> Snapshot:
        """Read the header of the snapshot at `path`, without a model."""
        info = make("dsv2_snapshot_info")
        check(lib.dsv2_snapshot_inspect(path_bytes(path), info))
        return record(cls, info)

"""Models: weights and configuration, opened once and shared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ._ffi import ffi
from ._handle import Handle
from ._native import (
    Call,
    check,
    fill,
    lib,
    log_callback,
    make,
    path_bytes,
    progress_callback,
    record,
    token_array,
)
from ._routing import Routing
from ._tokenizer import Tokenizer
from ._types import (
    Attention,
    BytesNeeded,
    CacheType,
    Loading,
    MemoryInfo,
    ModelInfo,
    Progress,
    RoutingTokens,
    StrPath,
    TokenIds,
    WeightType,
)

if TYPE_CHECKING:
    from ._session import Session


class Model(Handle):
    """An open model. Any number of threads and sessions may use one at the same time.

    Args:
        path: a folder with config.json and safetensors files, or a file that is a GGUF or a .dsv2 pack
        threads: worker threads; 0: the fast physical cores that the process is allowed to use
        weight_type: a type to convert matrices to while opening
        kernels: "auto", or a set of kernels by name ("c", "avx2", "avx512"), for comparisons
        cache_memory_limit: bytes that the caches of all sessions together may take; 0: no limit
        progress: called while tensors are opened
        loading: map files, or read all weights into memory, after which the files may change
        lock: keep the weights in memory; raises OutOfMemoryError with the limit where the system refuses
        insist: open even if what is copied (or, with lock, also mapped) does not fit the memory that is left

    The library's remarks go to the logger named "dsv2".

    >>> with Model("DeepSeek-V2-Lite-Chat") as model, model.session() as session:
    ...     for text in session.generate("Once upon a time", max_tokens=50):
    ...         print(text, end="", flush=True)

    """

    _kind = "model"

    def __init__(
        self,
        path: StrPath,
        *,
        threads: int = 0,
        weight_type: WeightType = WeightType.AS_STORED,
        kernels: str | None = None,
        cache_memory_limit: int = 0,
        progress: Progress | None = None,
        loading: Loading = Loading.MAP,
        lock: bool = False,
        insist: bool = False,
    ) -> None:
        options = make("dsv2_model_options")
        fill(options, n_threads=threads, weight_type=weight_type, cache_memory_limit=cache_memory_limit)
        options.loading, options.lock, options.insist = loading, lock, insist
        name = ffi.NULL if kernels is None else ffi.new("char[]", kernels.encode())
        options.kernels = name
        options.progress = progress_callback
        options.log = log_callback
        opened = ffi.new("dsv2_model **")
        with Call(progress) as call:
            status = lib.dsv2_model_open(path_bytes(path), options, opened)
            if status == 0:
                self._ptr = ffi.gc(opened[0], lib.dsv2_model_close)
            call.check(status)
        info = make("dsv2_model_info")
        check(lib.dsv2_model_get_info(self._ptr, info))
        info_record = record(ModelInfo, info)
        self._info = info_record
        self._tokenizer: Tokenizer | None = None

    def close(self) -> None:
        """Close the model. Open sessions keep what they need; the last of them frees it."""
        self._close()

    def _let_go(self) -> None:
        self._ptr = self._tokenizer = None

    def __repr__(self) -> str:
        info = self._info
        return f"<dsv2.Model {info.architecture}, {info.parameters / 1e6:.1f} M parameters{', closed' if self.closed else ''}>"

    @property
    def info(self) -> ModelInfo:
        """The facts about the model."""
        return self._info

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's own tokenizer. Raises UnsupportedError, with the reason, if it has none or none that can be used."""
        if self._tokenizer is None:
            self._tokenizer = Tokenizer._of_model(self._open())
        return self._tokenizer

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """The tokens that end a text; the first is ``info.eos_token_id``."""
        tokens, n = ffi.new("const int32_t **"), ffi.new("size_t *")
        check(lib.dsv2_model_end_tokens(self._open(), tokens, n))
        return tuple(tokens[0][0 : n[0]])

    @property
    def memory(self) -> MemoryInfo:
        """Memory used by the model's sessions at this moment."""
        info = make("dsv2_memory_info")
        check(lib.dsv2_model_get_memory(self._open(), info))
        return record(MemoryInfo, info)

    def session(
        self,
        *,
        max_length: int = 0,
        cache_type: CacheType = CacheType.DEFAULT,
        attention: Attention = Attention.AUTO,
    ) -> Session:
        """Open an empty session; the arguments are those of Session."""
        from ._session import Session

        return Session(self, max_length=max_length, cache_type=cache_type, attention=attention)

    def step(self, feeds: Sequence[tuple[Session, TokenIds]]) -> None:
        """Feed many sessions in one pass, which is faster than ``Session.feed`` for each.

        A session that is cancelled, or whose numbers go wrong as in ``Session.feed``, is as before; the others went on, although
        the call raises. The message names the feed's index.

        Args:
            feeds: sessions, each at most once, with the tokens to append to them

        """
        self._step(feeds, [ffi.NULL] * len(feeds))

    def step_logits(self, feeds: Sequence[tuple[Session, TokenIds]]) -> list[npt.NDArray[np.float32]]:
        """Do a step and return each session's logits: a row for every token fed, which the library writes there."""
        logits = [np.empty((len(tokens), self._info.vocab_size), np.float32) for _, tokens in feeds]
        self._step(feeds, [ffi.from_buffer("float[]", rows) for rows in logits])
        return logits

    def _step(self, feeds: Sequence[tuple[Session, TokenIds]], logits: Sequence[Any]) -> None:
        ptr, alive = self._open(), []
        items = ffi.new("dsv2_step_item[]", len(feeds))
        for item, (session, tokens), rows in zip(items, feeds, logits):
            ids, n_ids = token_array(tokens)
            session_ptr = session._watched(n_ids > 1)
            alive.append((session_ptr, ids))
            item.struct_size = ffi.sizeof("dsv2_step_item")
            item.session, item.tokens, item.n_tokens, item.logits = session_ptr, ids, n_ids, rows
        with Call() as call:
            call.check(lib.dsv2_step(ptr, items, len(feeds)))

    def routing(self, tokens: RoutingTokens = RoutingTokens.ALL) -> Routing:
        """Copy the counts of expert use of all the model's sessions, closed ones included."""
        copied = ffi.new("dsv2_routing **")
        check(lib.dsv2_model_routing(self._open(), tokens, copied))
        return Routing(copied[0])

    def reset_routing(self) -> None:
        """Set the model's counts (not those of its sessions) to zero."""
        check(lib.dsv2_model_routing_reset(self._open()))


def bytes_needed(path: StrPath, *, weight_type: WeightType = WeightType.AS_STORED, loading: Loading = Loading.MAP) -> BytesNeeded:
    """Say what opening the model at `path` would take. Reads headers and the configuration alone."""
    options, info = make("dsv2_model_options"), make("dsv2_bytes_needed_info")
    options.weight_type, options.loading, options.log = weight_type, loading, log_callback
    with Call() as call:
        call.check(lib.dsv2_model_bytes_needed(path_bytes(path), options, info))
    return record(BytesNeeded, info)


def pack(
    path: StrPath,
    output_path: StrPath,
    *,
    weight_type: WeightType = WeightType.AS_STORED,
    threads: int = 0,
    progress: Progress | None = None,
) -> None:
    """Write the model at `path` as one .dsv2 file with weights in the kernels' own layout."""
    options = make("dsv2_pack_options")
    fill(options, n_threads=threads, weight_type=weight_type)
    options.progress = progress_callback
    with Call(progress) as call:
        call.check(lib.dsv2_model_pack(path_bytes(path), path_bytes(output_path), options))


def verify(path: StrPath, *, progress: Progress | None = None) -> None:
    """Read a whole pack and check every checksum. Raises FormatError if one is wrong."""
    with Call(progress) as call:
        call.check(lib.dsv2_model_verify(path_bytes(path), progress_callback, ffi.NULL))

"""Enumerations and records of the library, under the names that the C headers use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from os import PathLike
from typing import Any, Callable, NamedTuple, Union

import numpy as np
import numpy.typing as npt

StrPath = Union[str, "PathLike[str]"]


class Phase(IntEnum):
    """What a progress report is about."""

    OPEN = 1
    PROMPT = 2
    PACK = 3
    VERIFY = 4
    SAVE = 5
    RESTORE = 6
    ENCODE = 7


class WeightType(IntEnum):
    """Element type of weights, as stored or as asked for."""

    # written by tests/house/weight_types.py
    AS_STORED = 0
    F32 = 1
    F16 = 2
    BF16 = 3
    F8_E4M3 = 4
    Q8_0 = 5
    Q6_K = 6
    Q5_K = 7
    Q4_K = 8
    Q4_0 = 9
    MIXED = 10


class Loading(IntEnum):
    """How weights come into memory."""

    MAP = 0
    READ = 1


class CacheType(IntEnum):
    """Element type of the latent KV cache."""

    DEFAULT = 0
    F32 = 1
    F16 = 2
    Q8 = 3
    Q6 = 4


class Attention(IntEnum):
    """The form in which attention is computed; all give the same logits up to rounding."""

    AUTO = 0
    ABSORBED = 1
    EXPANDED = 2


class RoutingTokens(IntEnum):
    """Which tokens routing statistics are about."""

    ALL = 0
    PROMPT = 1
    GENERATED = 2


class LogLevel(IntEnum):
    """How much a remark of the library matters."""

    WARNING = 1
    INFO = 2


TokenIds = Union[Sequence[int], npt.NDArray[np.integer[Any]]]
"""Token ids; a NumPy array of int32 is not copied."""

Progress = Callable[[Phase, int, int], object]
"""Called with (phase, done, total) from the thread that made the call. Raise an exception to cancel the call."""


class TokenProbability(NamedTuple):
    """A token beside the natural logarithm of its probability."""

    token: int
    log_probability: float


@dataclass(frozen=True)
class Sampling:
    """How to draw a token from the logits, in this order: bias, penalties, temperature, top-k, top-p, min-p.

    Attributes:
        temperature: 0 takes the most likely token
        top_k: keep the k most likely; 0: all
        top_p: keep the fewest most likely tokens that reach this probability; 1: all
        min_p: drop tokens less likely than this times the most likely one; 0: none
        repetition_penalty: divides (or multiplies, if negative) the logits of tokens seen; 1: none
        presence_penalty: subtracted once from the logit of each token seen
        frequency_penalty: subtracted as often as the token was seen
        penalty_window: tokens looked back on by the penalties; 0: the whole session
        seed: where the random numbers start; they start anew when this changes, or by ``Session.seed``
        logit_bias: amounts added to tokens' logits; ``-math.inf`` forbids a token

    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_window: int = 0
    seed: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelInfo:
    """The facts about an open model; names are those of the published config.json."""

    parameters: int
    parameters_activated: int
    weight_bytes: int
    bytes_copied: int
    weight_type: WeightType
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    moe_intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    n_shared_experts: int
    n_routed_experts: int
    num_experts_per_tok: int
    n_group: int
    topk_group: int
    first_k_dense_replace: int
    moe_layer_freq: int
    q_lora_rank: int
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    max_position_embeddings: int
    n_threads: int
    bos_token_id: int
    eos_token_id: int
    architecture: str
    topk_method: str
    scoring_func: str
    container: str
    kernels: str
    fingerprint: int


@dataclass(frozen=True)
class BytesNeeded:
    """What opening a model would take, in bytes; memory_left is 0 if it is not known."""

    bytes_copied: int
    bytes_mapped: int
    cache_bytes_per_token: int
    memory_left: int


@dataclass(frozen=True)
class MemoryInfo:
    """Memory used by a model's sessions, in bytes."""

    pages_in_use: int
    page_bytes_in_use: int
    page_bytes_limit: int
    scratch_bytes: int


@dataclass(frozen=True)
class TokenizerInfo:
    """The facts about a tokenizer; an id of -1 means that there is no such token."""

    vocab_size: int
    n_merges: int
    n_special: int
    bos_token_id: int
    eos_token_id: int
    fim_begin_id: int
    fim_hole_id: int
    fim_end_id: int
    chat_form: str


@dataclass(frozen=True)
class RoutingInfo:
    """What routing statistics are about."""

    n_tokens: int
    num_hidden_layers: int
    n_routed_experts: int
    num_experts_per_tok: int
    n_group: int
    topk_group: int


@dataclass(frozen=True)
class Balance:
    """Measures of one layer's balance; equation numbers of arXiv 2405.04434, losses with the factor 1."""

    expert_balance_loss: float
    device_balance_loss: float
    communication_balance_loss: float
    max_over_mean: float
    entropy: float
    jain_index: float
    never_used: int
    dropped_share: float
    max_devices_reached: int
    mean_devices_reached: float

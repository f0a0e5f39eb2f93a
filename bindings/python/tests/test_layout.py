"""The package sees structures, enumerations and functions as the C headers declare them."""

from __future__ import annotations

import dataclasses
import json
import os
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest

import dsv2
from dsv2._ffi import ffi
from dsv2._native import lib, make
from dsv2._types import LogLevel


@pytest.fixture(scope="module")
def layout() -> Any:
    """Return what the program of tests/abi prints; test.sh names its output."""
    return json.loads(Path(os.environ["DSV2_LAYOUT"]).read_text())


def test_structures_are_laid_out_as_in_c(layout: Any) -> None:
    for name, expected in layout["structs"].items():
        kind = ffi.typeof(name)
        fields = {field: [item.offset, ffi.sizeof(item.type)] for field, item in kind.fields}
        assert (name, ffi.sizeof(name), ffi.alignof(name), fields) == (
            name,
            expected["size"],
            expected["align"],
            expected["fields"],
        )


def test_enumerations_have_the_values_of_c(layout: Any) -> None:
    for name, expected in layout["enums"].items():
        assert ffi.typeof(name).relements == expected


def test_every_function_is_found(layout: Any) -> None:
    assert len(layout["functions"]) > 50
    for name in layout["functions"]:
        assert getattr(lib, name)


MIRRORS: dict[str, tuple[type[IntEnum], str]] = {
    "dsv2_status": (dsv2.Status, "DSV2_"),
    "dsv2_phase": (dsv2.Phase, "DSV2_PHASE_"),
    "dsv2_log_level": (LogLevel, "DSV2_LOG_"),
    "dsv2_weight_type": (dsv2.WeightType, "DSV2_WEIGHTS_"),
    "dsv2_loading": (dsv2.Loading, "DSV2_LOADING_"),
    "dsv2_cache_type": (dsv2.CacheType, "DSV2_CACHE_"),
    "dsv2_attention": (dsv2.Attention, "DSV2_ATTENTION_"),
    "dsv2_routing_tokens": (dsv2.RoutingTokens, "DSV2_ROUTING_"),
}


def test_pythons_enumerations_are_cs(layout: Any) -> None:
    flags = {"dsv2_encode_flags", "dsv2_decode_flags", "dsv2_chat_flags"}  # arguments by name in Python
    assert set(layout["enums"]) == set(MIRRORS) | flags
    for name, (mirror, prefix) in MIRRORS.items():
        expected = {item[len(prefix) :].replace("ERROR_", ""): value for item, value in layout["enums"][name].items()}
        assert {member.name: member.value for member in mirror} == expected


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("dsv2_model_info", dsv2.ModelInfo),
        ("dsv2_bytes_needed_info", dsv2.BytesNeeded),
        ("dsv2_memory_info", dsv2.MemoryInfo),
        ("dsv2_tokenizer_info", dsv2.TokenizerInfo),
        ("dsv2_snapshot_info", dsv2.Snapshot),
        ("dsv2_routing_info", dsv2.RoutingInfo),
        ("dsv2_routing_balance", dsv2.Balance),
        ("dsv2_sampling", dsv2.Sampling),
    ],
)
def test_records_have_the_fields_of_c(layout: Any, name: str, record: Any) -> None:
    fields = set(layout["structs"][name]["fields"]) - {"struct_size", "n_logit_bias"}
    assert {field.name for field in dataclasses.fields(record)} == fields


def test_the_defaults_of_sampling_are_cs() -> None:
    plain = make("dsv2_sampling")
    assert lib.dsv2_sampling_get_defaults(plain) == 0
    for field in dataclasses.fields(dsv2.Sampling):
        if field.name != "logit_bias":
            assert getattr(dsv2.Sampling(), field.name) == getattr(plain, field.name)


def test_expert_loads_are_read_as_c_writes_them(layout: Any) -> None:
    from dsv2._routing import _EXPERT_LOAD

    expected = layout["structs"]["dsv2_expert_load"]
    assert _EXPERT_LOAD.itemsize == expected["size"]
    fields = _EXPERT_LOAD.fields
    assert fields is not None
    assert {name: [item[1], item[0].itemsize] for name, item in fields.items()} == expected["fields"]

"""How the experts are used."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ._errors import Status
from ._ffi import ffi
from ._native import check, lib, make, record
from ._types import Balance, RoutingInfo

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_EXPERT_LOAD = np.dtype([("chosen", np.uint64), ("gate_sum", np.float64), ("affinity_sum", np.float64)])


class Routing:
    """A copy of the counts of a session or model. Later feeds do not change it.

    Attributes:
        info: what the counts are about
        layers: the numbers of the layers that have routed experts, as in the model
        experts: a structured array of ``len(layers)`` rows and a column per routed expert, with the fields
            ``chosen`` (tokens that chose it), ``gate_sum`` and ``affinity_sum``

    """

    def __init__(self, ptr: Any) -> None:
        self._ptr = ffi.gc(ptr, lib.dsv2_routing_free)
        self._lock = threading.Lock()
        self._read()

    def _read(self) -> None:
        info = make("dsv2_routing_info")
        check(lib.dsv2_routing_get_info(self._ptr, info))
        self.info = record(RoutingInfo, info)
        self.layers: list[int] = []
        rows: list[npt.NDArray[np.void]] = []
        for layer in range(self.info.num_hidden_layers):
            row: npt.NDArray[np.void] = np.zeros(self.info.n_routed_experts, _EXPERT_LOAD)
            status = lib.dsv2_routing_experts(self._ptr, layer, ffi.from_buffer("dsv2_expert_load[]", row))
            if status == Status.ARGUMENT:  # a dense layer
                continue
            check(status)
            self.layers.append(layer)
            rows.append(row)
        self.experts = np.stack(rows) if rows else np.zeros((0, self.info.n_routed_experts), _EXPERT_LOAD)

    @property
    def chosen(self) -> npt.NDArray[np.uint64]:
        """How many tokens chose each expert: a row per entry of `layers`, a column per expert."""
        return self.experts["chosen"]

    @property
    def gate_sum(self) -> npt.NDArray[np.float64]:
        """The sum of the gate values with which each expert's output was weighted."""
        return self.experts["gate_sum"]

    @property
    def affinity_sum(self) -> npt.NDArray[np.float64]:
        """The sum of the affinities of all tokens to each expert, chosen or not."""
        return self.experts["affinity_sum"]

    def balance(self, layer: int, *, n_devices: int = 0, max_devices: int = 0) -> Balance:
        """Measure one layer's balance over devices that hold equal runs of experts. 0: the model's own groups."""
        measures = make("dsv2_routing_balance")
        with self._lock:
            check(lib.dsv2_routing_measure(self._ptr, layer, n_devices, max_devices, measures))
        return record(Balance, measures)

    def merge(self, other: Routing) -> None:
        """Add the counts of `other`, as if one run had seen the tokens of both."""
        if other is self:
            raise ValueError("counts cannot be merged into themselves")
        first, second = sorted((self, other), key=id)
        with first._lock, second._lock:
            check(lib.dsv2_routing_merge(self._ptr, other._ptr))
            self._read()

    def heat_map(self, axes: Axes | None = None) -> Axes:
        """Draw each expert's share of its layer's load, relative to an even share. Needs ``pip install dsv2[plot]``."""
        from matplotlib import pyplot

        if axes is None:
            _, axes = pyplot.subplots(figsize=(8, 1.6 + 0.25 * len(self.layers)), layout="constrained")
        mean = np.maximum(self.chosen.mean(axis=1, keepdims=True), np.finfo(np.float64).tiny)
        image = axes.imshow(self.chosen / mean, aspect="auto", cmap="viridis", vmin=0, interpolation="nearest")
        axes.set_yticks(range(len(self.layers)), [str(layer) for layer in self.layers])
        axes.set_xlabel("expert")
        axes.set_ylabel("layer")
        axes.figure.colorbar(image, ax=axes, label="load / mean of layer")
        return axes

"""The limited quantities of a network and of its compressed forms, counted or measured."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from torch import nn

from experiment.config.schema.budget import Budget as BudgetBlock
from experiment.config.schema.budget import Limit
from experiment.inputs import Inputs
from experiment.layers.masks import bake_masks
from experiment.measure import count, count_bytes
from experiment.measure.latency_model import LatencyModel, LatencyTable
from experiment.measure.memory import peak_memory
from experiment.progress import working


class Meter:
    """Measures the limited quantities of an original network and of its compressed forms.

    Args:
        network: the original network.
        example: a batch of inputs.
        table: where latencies of layers are kept.
    """

    def __init__(self, network: nn.Module, example: Inputs, budget: BudgetBlock, table: LatencyTable) -> None:
        self.network, self.example, self.budget, self._table = network, example, budget, table
        self.correction = 1.0  # measured over predicted latency

    @cached_property
    def latency(self) -> LatencyModel:
        """The latency of the network's layers, which takes seconds."""
        with working("measuring the latency of layers"):
            return LatencyModel.of(self.network, self.example, self.budget.batch, self._table)

    @cached_property
    def original(self) -> Mapping[str, float]:
        """Quantity -> value of the original network."""
        names = {limit.quantity for limit in self.budget.limits}
        found = self.counted(self.network)
        return found | ({"latency": self.latency.dense_ms} if "latency" in names else {})

    def limits(self, keep: float) -> dict[str, float]:
        """Quantity -> the largest value at a keep ratio."""
        return {limit.quantity: keep * self._whole(limit) for limit in self.budget.limits}

    def predicted(self, network: nn.Module) -> dict[str, float]:
        """Quantity -> value of a compressed form; latency from that of its layers."""
        found = self.counted(network)
        if "latency" in {limit.quantity for limit in self.budget.limits}:
            found["latency"] = self.latency.predict(network) * self.correction
        return found

    def counted(self, network: nn.Module) -> dict[str, float]:
        """Quantity -> value of those that need no measurement."""
        names = {limit.quantity for limit in self.budget.limits}
        found: dict[str, float] = {}
        if names & {"parameters", "flops"}:
            counted = count(network, self.example)
            found |= {"parameters": counted.parameters, "flops": counted.flops_unmasked}
        if "bytes" in names:
            found["bytes"] = count_bytes(network).sparse
        if "memory" in names:
            found["memory"] = peak_memory(bake_masks(network), self.example, self.budget.batch)
        return {name: value for name, value in found.items() if name in names}

    def _whole(self, limit: Limit) -> float:
        return limit.value if limit.absolute else limit.value * self.original[limit.quantity]

"""One layer compressed alone, all others whole: how much does the network depend on each of its layers?"""

from __future__ import annotations

import fnmatch
import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import floor
from typing import Any

import torch
from torch import nn

from experiment.errors import CompressionError, InfeasibleBudget
from experiment.layers.plan import State
from experiment.layers.read_parameters import shown
from experiment.measure import Count
from experiment.methods.base import Calibration, Compressor, make_method
from experiment.methods.configure import MethodSpec
from experiment.methods.filters.base import Channels
from experiment.methods.lowrank.settings import LayerSettings
from experiment.methods.out_of_reach import reach_of


@dataclass(frozen=True)
class Unit:
    """What a method can compress alone.

    Attributes:
        layers: one layer or, of filters, all layers that only lose channels together.
        parameters: of the layer's weight, or those that go with the channels.
    """

    layers: tuple[str, ...]
    parameters: int


def why_not(spec: MethodSpec) -> str | None:
    """Why a method cannot compress single layers; None if it can."""
    if spec.entry.kind == "none":
        return "it does not change the network"
    if spec.fixed_size:
        return "its settings decide the size of every layer"
    if not hasattr(spec.settings, "ignore"):
        return "it has no setting ignore"
    return "it removes whole blocks" if spec.entry.label == "Blocks" else None


class OneLayer:
    """Compresses one unit of a network after the other with a method.

    Args:
        original: the count of the network.
        stream: of the random numbers of the method, the same for every unit.
    Raises: CompressionError: the method cannot compress the network.
    """

    def __init__(
        self, spec: MethodSpec, state: State, original: Count, calibration: Calibration, stream: torch.Generator
    ) -> None:
        self._spec, self._state, self._original, self._calibration = spec, state, original, calibration
        self._seed = stream.get_state()
        analysis = self._compressor(()).analysis
        while hasattr(analysis, "ranked"):
            analysis = analysis.ranked
        self._channels: Channels | None = getattr(analysis, "filters", None)
        self.units = list(self._units_of_channels(self._channels) if self._channels else self._layers(analysis))

    def compress(self, unit: Unit, keeps: Sequence[float]) -> Iterator[nn.Module | None]:
        """The network in which the unit keeps each share of its weights or channels; None if it cannot be so small."""
        others = dict.fromkeys(name for other in self.units for name in other.layers if name not in unit.layers)
        compressor = self._compressor([glob.escape(name) for name in others])
        for keep in keeps:
            try:
                yield compressor.compress(self._limit(unit, keep) / self._original.parameters).network
            except InfeasibleBudget:
                yield None

    def _compressor(self, ignored: Sequence[str]) -> Compressor:
        settings: Any = self._spec.settings
        method = make_method(self._spec.entry, replace(settings, ignore=(*settings.ignore, *ignored)))
        stream = torch.Generator().set_state(self._seed)
        return Compressor(
            method, self._state, self._original, self._calibration, stream, recalibrated=self._spec.recalibrate
        )

    def _layers(self, analysis: object) -> Iterator[Unit]:
        reach, settings = reach_of(analysis), self._spec.settings
        if reach is None:
            raise CompressionError("its analysis does not tell which layers it compresses.")
        chosen = settings.layers if isinstance(settings, LayerSettings) and settings.layers else ("*",)
        ignored: Sequence[str] = vars(settings)["ignore"]
        for parameter, values in self._state.network.named_parameters():
            layer = shown(parameter)
            if parameter in reach.parameters and _matches(layer, chosen) and not _matches(layer, ignored):
                yield Unit((layer,), values.numel())

    def _units_of_channels(self, channels: Channels) -> Iterator[Unit]:
        whole = channels.size(channels.alive, "parameters")
        for i, group in enumerate(channels.groups):
            if channels.free[i]:
                yield Unit(group.producers, whole - channels.size(_first(channels, i, 0), "parameters"))

    def _limit(self, unit: Unit, keep: float) -> int:
        """The largest number of parameters of the network in which the unit keeps this share."""
        channels = self._channels
        if channels is None:
            return self._original.parameters - unit.parameters + floor(keep * unit.parameters + 1e-6)
        i = next(i for i, group in enumerate(channels.groups) if group.producers == unit.layers)
        number = max(1, floor(keep * len(channels.alive[i]) + 1e-6))
        return channels.size(_first(channels, i, number), "parameters")


def _first(channels: Channels, group: int, number: int) -> list[tuple[int, ...]]:
    """All channels, but the first ones alone of one group."""
    return [alive[:number] if i == group else alive for i, alive in enumerate(channels.alive)]


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)

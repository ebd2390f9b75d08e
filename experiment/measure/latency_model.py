"""Milliseconds of networks that were never run: those of their layers, measured once and interpolated between widths.

The time of a network is the sum of its leaf modules' times and a rest: sums, reshapes, products of activations, Python.
A leaf module is measured alone, at a few widths around its own; `LatencyTable` keeps the measurements in a file.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from experiment.errors import StoreError
from experiment.escaping import json_text
from experiment.files import read_json, write_whole
from experiment.inputs import Inputs, batch_size, call_network, device_of, tensors
from experiment.layers.compressible import LayerInfo
from experiment.layers.factored_layers import make_layer
from experiment.layers.forms import Forms
from experiment.layers.masks import bake_masks
from experiment.layers.plan import Factors
from experiment.measure.forward_pieces import Leaf, Operation, Pieces, pieces
from experiment.measure.latency import Layout, arranged_in, layouts, mean_seconds, repeated

Integers = NDArray[np.int64]
SECONDS, VISITS = 0.004, 4  # for one layer, in turns with others: what disturbs a machine passes
STEPS = 4  # measured widths between a power of two and the next
BUSY = 0.25  # milliseconds per MiB of weights and outputs
MOST_COPIES, MOST_TOUCHED = 32, 2**26  # of a piece that are called in turns; more bytes than caches hold
ROUNDS, ROUND, COPIES = 10, 0.04, 3  # of a comparison of two networks, its seconds, and how often they are copied


class _Content(BaseModel):
    """The file of a table."""

    model_config = ConfigDict(allow_inf_nan=False, strict=True)

    format: Literal[1] = 1
    milliseconds: dict[str, Annotated[float, Field(ge=0)]]


class LatencyTable:
    """Milliseconds of single layers on one device with one number of threads, measured when they are first asked for.

        table = LatencyTable(Path("latency.json"), threads=1)

    Args:
        path: where the measurements are kept; None to keep them in memory.
    """

    def __init__(self, path: Path | None, threads: int) -> None:
        self.path, self.threads = path, threads
        self.found: dict[str, float] = {}
        self._kept = 0
        if path is not None and path.is_file():
            try:
                content = _Content.model_validate(read_json(path))
            except (StoreError, ValidationError):  # damaged, or of another version: measure again
                return
            self.found, self._kept = content.milliseconds, len(content.milliseconds)

    def sum(self, forward: Pieces, among: int) -> float:
        """Milliseconds of all pieces of a forward pass; new measurements are kept.

        A piece is linear between the widths at which it is measured.

        Args:
            among: bytes that the whole network touches between two calls of a piece.
        """
        once = Leaf("call", (), nn.Identity(), torch.zeros(1))  # Python's part of calling a module
        parts = [(layer, widths, share) for layer in forward.pieces for widths, share in _corners(layer.widths)]
        parts.append((once, (), float(forward.containers)))
        among = (
            1 << min(max(among, 1), MOST_TOUCHED).bit_length() - 1
        )  # few differ, so that networks share measurements
        wanted = {_key(layer, widths, among): (layer, widths) for layer, widths, _ in parts}
        new = wanted.keys() - self.found.keys()
        for _ in range(VISITS):
            for key in sorted(new):
                self.found[key] = min(self.measure(*wanted[key], among), self.found.get(key, math.inf))
        self.keep()
        return sum(share * self.found[_key(layer, widths, among)] for layer, widths, share in parts)

    def time(self, network: Pieces, milliseconds: Callable[[], float]) -> float:
        """Milliseconds of a whole network, the least of ROUNDS: once for all that are compared with it.

        Args:
            milliseconds: runs the network for a while.
        """
        parts = " ".join(_key(piece, piece.widths, 0) for piece in network.pieces)
        key = f"network {hashlib.sha256(parts.encode()).hexdigest()}"
        if key not in self.found:
            self.found[key] = min(milliseconds() for _ in range(ROUNDS))
            self.keep()
        return self.found[key]

    def keep(self) -> None:
        """Write new measurements to the file."""
        if self.path is not None and len(self.found) > self._kept:
            content = _Content(milliseconds=self.found).model_dump()
            write_whole(self.path, json_text(content, indent=1) + "\n")
            self._kept = len(self.found)

    def measure(self, layer: Leaf | Operation, widths: tuple[int, ...], among: int) -> float:
        """Milliseconds of a piece at other widths, now, where so many bytes are touched between two of its calls."""
        module, x = layer.make(widths)
        for parameter in module.parameters() if isinstance(module, nn.Module) else ():
            nn.init.constant_(parameter, 1e-3)  # what uninitialised memory holds may be slow to compute with
        alone = _milliseconds(module, x, self.threads, 0.0)
        touched = _touched(module, x)
        if alone > BUSY * touched / 2**20:  # it computes for longer than it waits for memory
            among = min(among, 2 * touched)
        return _milliseconds(_InTurns(module, x, max(1, among // max(touched, 1))), x, self.threads, SECONDS)


class _InTurns:
    """Copies of a piece, called one after the other, whose outputs stay until their turn comes again.

    In a network, weights and the memory of outputs were last used one forward pass ago: a piece that is called again
    and again finds both in the caches, which makes light layers up to twice as fast. The input has just been written.
    """

    def __init__(self, module: Callable[..., Any], x: Inputs, number: int) -> None:
        self.copies = [module, *(copy.deepcopy(module) for _ in range(min(number, MOST_COPIES) - 1))]
        self.outputs: list[object] = [None] * len(self.copies)
        self.turn = 0
        with torch.inference_mode():
            for _ in self.copies:
                call_network(self, x)

    def __call__(self, *args: Any, **named: Any) -> object:
        self.turn = (self.turn + 1) % len(self.copies)
        output = self.outputs[self.turn] = self.copies[self.turn](*args, **named)
        return output


@dataclass(frozen=True)
class Arranged:
    """The original network, without masks, in a memory layout.

    Attributes:
        inputs: a batch in this layout.
        ms: its measured milliseconds.
        rest_ms: those that its pieces do not explain, per byte of weights and outputs.
        touched: bytes of weights and outputs.
    """

    layout: Layout
    network: nn.Module
    inputs: Inputs
    ms: float
    rest_ms: float
    touched: int


@dataclass(frozen=True)
class LatencyModel:
    """Predicts the milliseconds of compressed forms of one network, and measures them beside it.

    Attributes:
        original: the network in all layouts in which it may be fast, contiguous first. Which of them is the fastest
            differs between compressed forms: numbers of channels decide.
        layers: the milliseconds of layers and factors that were asked for: every plan asks again.
    """

    original: tuple[Arranged, ...]
    table: LatencyTable
    layers: dict[str, float] = field(default_factory=dict, compare=False)

    @staticmethod
    def of(network: nn.Module, example: Inputs, batch: int, table: LatencyTable) -> LatencyModel:
        """Measure a network and its layers.

        Args:
            example: a batch of inputs, whose first sample is repeated.
            batch: samples per forward pass.
        """
        network = bake_masks(network).eval()
        x = repeated(network, example, batch)
        found = []
        for layout in layouts(network, x):
            turned, inputs = arranged_in(layout, network, x)
            whole = pieces(turned, inputs)
            explained = table.sum(whole, whole.touched)
            ms = table.time(whole, partial(_milliseconds, turned, inputs, table.threads, ROUND))
            found.append(Arranged(layout, turned, inputs, ms, (ms - explained) / whole.touched, whole.touched))
        return LatencyModel(tuple(found), table)

    @property
    def dense_ms(self) -> float:
        """Milliseconds of the network itself, in the layout in which it is faster."""
        return min(own.ms for own in self.original)

    @property
    def layouts(self) -> list[Layout]:
        """The layouts in which the network may be fast."""
        return [own.layout for own in self.original]

    def predict(self, network: nn.Module, layout: Layout | None = None) -> float:
        """Milliseconds of a compressed form of the network, in this layout or in that in which it is faster."""
        plain, x = bake_masks(network).eval(), self.original[0].inputs
        possible = [own for own in self.original if layout in (None, own.layout)]
        return min(self._sum(own, *arranged_in(own.layout, plain, x)) for own in possible)

    def _sum(self, own: Arranged, network: nn.Module, inputs: Inputs) -> float:
        whole = pieces(network, inputs)
        return max(self.table.sum(whole, own.touched) + own.rest_ms * whole.touched, 1e-6)

    def price(self, info: LayerInfo, layer: nn.Module, forms: Forms, layout: Layout) -> Integers:
        """Nanoseconds of a layer's forms: of their factors or, masked and rounded or not, of the layer itself.

        All layers of a network have the same layout, so prices in that in which each is faster would be too low.
        """
        own = next(own for own in self.original if own.layout == layout)
        ranks, groups, foldings = forms.ranks, forms.groups, forms.foldings
        found = np.zeros(len(forms))
        for k, folding in sorted({*zip(groups.tolist(), foldings.tolist(), strict=True)}):
            here = np.flatnonzero((groups == k) & (foldings == folding) & (ranks > 0))
            if len(here):
                at = _some(int(ranks[here].max()))
                times = [self._layer(own, info, layer, Factors(rank, k, folding)) for rank in at]
                found[here] = np.interp(ranks[here], at, np.maximum.accumulate(times))
        found[ranks == 0] = self._layer(own, info, layer)
        return np.maximum(1, np.round(found * 1e6)).astype(np.int64)

    def _layer(self, own: Arranged, info: LayerInfo, layer: nn.Module, factors: Factors | None = None) -> float:
        """Milliseconds of all calls of a layer, or of its factors."""
        key = f"{own.layout} {info.kind} {info.in_features} {info.input_grids} {layer} {factors}"
        if key not in self.layers:
            self.layers[key] = self._calls(own, info, layer if factors is None else make_layer(layer, factors))
        return self.layers[key]

    def _calls(self, own: Arranged, info: LayerInfo, module: nn.Module) -> float:
        """Milliseconds of all calls of a module in the place of a layer."""
        inputs = self.original[0].inputs
        total, batch, device = 0.0, batch_size(inputs), device_of(inputs)
        for grid in info.input_grids:
            shape = (batch, info.in_features, *grid) if info.kind == "conv" else (batch * grid[0], info.in_features)
            if info.kind == "embedding":
                x: Tensor = torch.zeros(batch, grid[0], dtype=torch.int64, device=device)
            else:
                x = torch.zeros(shape, device=device)
            layout: Layout = own.layout if len(shape) == 4 else "contiguous"
            total += self._sum(own, *arranged_in(layout, module.to(device), x))
        return total

    def measure(self, network: nn.Module) -> float:
        """Milliseconds of a compressed form, measured in turns with the network itself: what slows both cancels."""
        plain, fastest = bake_masks(network).eval(), min(self.original, key=lambda own: own.ms)
        rounds, ratios = ROUNDS if fastest.ms < 1e3 * ROUND else ROUNDS // 2, []
        for _ in range(COPIES):  # new ones: where weights lie in memory changes the time by some percent
            nets = [copy.deepcopy((fastest.network, fastest.inputs))]
            nets += [arranged_in(own.layout, *copy.deepcopy((plain, self.original[0].inputs))) for own in self.original]
            for _ in range(-(-rounds // COPIES)):
                times = [_milliseconds(net, inputs, self.table.threads, ROUND) for net, inputs in nets]
                ratios.append([own / times[0] for own in times[1:]])
        return float(np.median(ratios, axis=0).min()) * fastest.ms


def _some(top: int) -> list[int]:
    """The ranks up to `top` at which factors are measured: the ends of both halves between powers of two.

    Kernels work in blocks: 17 channels may take as long as 32.
    """
    halves = [(2 << i, 1 << i) for i in range(top.bit_length())]
    ends = {1, 2, *(end for low, half in halves for end in (low + 1, low + half, low + half + 1, low + 2 * half))}
    return sorted({top, *(rank for rank in ends if rank < top)})


def _touched(module: Callable[..., Any], x: Inputs) -> int:
    """Bytes of weights and outputs of a piece."""
    weights = sum(p.nbytes for p in module.parameters()) if isinstance(module, nn.Module) else 0
    with torch.inference_mode():
        return weights + sum(t.nbytes for t in tensors(call_network(module, x)))


def _key(layer: Leaf | Operation, widths: tuple[int, ...], among: int) -> str:
    return f"{layer.kind} {'x'.join(map(str, widths))} {among}"


def _corners(widths: tuple[int, ...]) -> list[tuple[tuple[int, ...], float]]:
    """The measured widths around widths, with the share of each."""
    found = []
    for corner in itertools.product(*map(_around, widths)):
        around, shares = [width for width, _ in corner], [share for _, share in corner]
        if all(shares):
            found.append((tuple(around), math.prod(shares)))
    return found


def _around(width: int) -> list[tuple[int, float]]:
    """The measured widths around a width, with its shares of both.

    Kernels are faster for multiples of powers of two, so both can be divided by the same powers as the width itself.
    """
    step, even = max(1, 2 ** (width.bit_length() - 1) // STEPS), width & -width
    low, high = width // step * step + even, width // step * step + step - even
    if even >= step or low >= high:
        return [(width, 1.0)]
    share = (width - low) / (high - low)
    return [(low, 1 - share), (high, share)]


def _milliseconds(network: Callable[..., Any], x: Inputs, threads: int, seconds: float) -> float:
    return mean_seconds(network, x, threads, seconds) * 1e3

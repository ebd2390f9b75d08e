"""What scores of weights are compared with: shares of layers, scores relative to a layer or filter, and patterns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from experiment.errors import CompressionError
from experiment.layers.compressible import filters_of, weight_of
from experiment.layers.read_parameters import shown
from experiment.methods.masks.selection import Part, elementwise
from experiment.methods.starting_state import Start


def negated(part: Part) -> Part:
    """The same scores in reverse order."""

    def chunks() -> list[Tensor]:
        return [-chunk for chunk in part.chunks()]

    return replace(part, chunks=chunks)


def lamp(part: Part, name: str) -> Part:
    """u^2 over the sum of all v^2 with v >= u in the same parameter, for live scores u.

    Source: Lee et al. 2021, Layer-adaptive sparsity for the magnitude-based pruning, https://arxiv.org/abs/2010.07611
    Raises: CompressionError: a score is negative.
    """
    scores, alive = _tensor(part)
    if bool((scores[alive] < 0).any()):
        raise CompressionError(
            f"layer '{shown(name)}': allocation lamp compares squares of scores, and some of this method are negative. "
            f"Use allocation global, uniform or erk."
        )
    live = scores[alive]
    order = live.argsort(descending=True, stable=True)
    squares = live[order].square()
    found = torch.zeros_like(scores)
    found[alive] = torch.empty_like(live).scatter_(0, order, squares / squares.cumsum(0).clamp_min(1e-300))
    return elementwise(found, alive=part.alive)


def in_filters(start: Start, name: str, part: Part) -> Part:
    """The share of its filter's live weights that have a smaller score: every share of them keeps the largest of all.

    Weights at the same place of different filters differ by at most one step in size; parameters that are no weight of
    a layer have one filter per row.
    """
    scores, alive = _tensor(part)
    layer = _layer_of(start, name)
    rows, live = (
        (part if layer is None else filters_of(layer, part)).flatten(1)
        for part in (scores.masked_fill(~alive, -torch.inf), alive)
    )
    places = rows.argsort(dim=1, descending=True, stable=True).argsort(1)
    found = -(places + 0.5) / live.sum(1, keepdim=True).clamp_min(1)
    filters = found if layer is None else found.reshape(filters_of(layer, scores).shape)
    back = filters.reshape(scores.shape) if layer is None else weight_of(layer, filters)
    return elementwise(back.contiguous(), alive=part.alive)


def erk_share(start: Start, name: str) -> float:
    """The sum of the dimensions of a weight over their product: filters, their inputs and the sides of their kernels.

    Source: Evci et al. 2020, Rigging the Lottery, https://arxiv.org/abs/1911.11134 (Erdos-Renyi-Kernel)
    """
    shape = start.network.get_parameter(name).shape
    return sum(shape) / math.prod(shape)


def keep_pattern(start: Start, parts: Mapping[str, Part], n: int, m: int) -> dict[str, Tensor]:
    """Masks that keep the n largest scores of every m consecutive inputs of a filter, ties in order.

    Inputs are input channels at one kernel element. Only layers are masked, and those of whose inputs m is a divisor.

    Source: Zhou et al. 2021, Learning N:M fine-grained structured sparse neural networks,
    https://arxiv.org/abs/2102.04010
    """
    found = {}
    for name, part in parts.items():
        layer = _layer_of(start, name)
        if layer is None or (shape := filters_of(layer, start.network.get_parameter(name)).shape)[1] % m:
            continue
        scores, alive = _tensor(part)
        inputs_last = filters_of(layer, scores.masked_fill(~alive, -torch.inf)).movedim(1, -1)
        places = torch.unflatten(inputs_last, -1, (-1, m)).argsort(dim=-1, descending=True, stable=True).argsort(-1)
        filters = (places < n).flatten(-2).movedim(-1, 1).reshape(shape)
        found[name] = weight_of(layer, filters) & alive
    return found


def _layer_of(start: Start, name: str) -> torch.nn.Module | None:
    """The layer whose weight a parameter is; None for others."""
    return start.network.get_submodule(shown(name)) if shown(name) in start.layers else None


def _tensor(part: Part) -> tuple[Tensor, Tensor]:
    """All scores of a part in float64, and which count, in its shape."""
    scores = torch.cat([chunk.double() for chunk in part.chunks()]).reshape(part.shape)
    alive = torch.ones(part.shape, dtype=torch.bool, device=part.device) if part.alive is None else part.alive
    return scores, alive.to(scores.device)

"""Relative sensitivities: the largest share that a weight or channel has in a layer's responses on given data.

For a filter g and an input a at one position, the sensitivity of weight w_i is its share of the response of the weights
with the same sign,

    s_gi = w+_i a_i / sum_m w+_m a_m   or   w-_i a_i / sum_m w-_m a_m,   w+ = max(w, 0), w- = max(-w, 0),

without the bias, and 0 if the denominator is at most float32's epsilon. This needs non-negative inputs; if some are
negative, max(a, 0) and max(-a, 0) are treated as separate inputs.

Source: Baykal et al. 2019, SiPPing Neural Networks, https://arxiv.org/abs/1910.05422, and Liebenwein et al. 2020,
Provable Filter Pruning, https://arxiv.org/abs/1911.07412
A grouped layer consists of one layer for each of its groups. The input of an embedding is 1 at the token.

Suffixes: F = filters, I = inputs of a filter (channels times kernel elements), P = places, R = 2F, signs times filters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from experiment.errors import CompressionError
from experiment.inputs import Inputs, attended
from experiment.layers.compressible import LayerInfo, channel_dim, filters_of, groups_of, weight_of
from experiment.layers.forward_pass import Call, observed_pass
from experiment.layers.sampled_patches import counted_places, draw_places, input_patches, num_positions
from experiment.methods.data.responses import precise
from experiment.random_streams import generator

Reduction = Literal["max", "mean"]
Look = Callable[[Tensor], Tensor]  # from places to the inputs there, (I, P)

SAMPLES = 8  # in one forward pass
PRODUCTS = {"cpu": 2**19}  # elements at a time per thread: 2 MiB, which fits into caches; elsewhere:
MOST_PRODUCTS = 2**24  # 64 MiB
PLACES = 512  # of these, so that a row is long enough to be fast
C, DELTA = 3.0, 1e-16
EPSILON = torch.finfo(torch.float32).eps


def weight_sensitivities(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    inputs: Inputs,
    reduction: Reduction = "max",
    positions: int | None = None,
) -> dict[str, Tensor]:
    """The sensitivity of every weight: reduced over the positions of each sample, then the largest over samples.

    Args:
        weights: layer name -> its weight with masked elements at zero.
        inputs: calibration data; they are passed through the network in parts, in eval mode. Padding does not
            count.
        reduction: over the positions of a sample: the largest, or the mean. The first dimension of a linear layer's
            inputs separates the samples.
        positions: positions used per sample, drawn separately for every part of the data; None for all.
    Returns: tensors of the weights' shapes, in [0, 1], float64.
    Raises: CompressionError: a layer gets no inputs, or some that are NaN or infinite.
    """
    modules = {name: network.get_submodule(name) for name in weights}
    largest = {name: _groups(layer, weights[name], reduction) for name, layer in modules.items()}
    draws = {name: partial(_drawn, positions, generator("sensitivity", name)) for name in weights}

    def record(call: Call) -> None:
        layer, y, groups = call.module, call.output, largest[call.name]
        places_BP = draws[call.name](_num_samples(layer, y), num_positions(y, layer))
        inputs = [call.input] if len(groups) == 1 else call.input.chunk(len(groups), channel_dim(layer))
        for own, x in zip(groups, inputs, strict=True):
            own.record(layer, x.detach(), y, _Places(places_BP, _counted(call)))

    observed_pass(network, modules, inputs, batch_size=SAMPLES, after=record)
    return {
        name: weight_of(modules[name], torch.cat([own.sensitivities(name) for own in groups]))
        for name, groups in largest.items()
    }


def channel_sensitivities(sensitivities: Tensor) -> Tensor:
    """The largest sensitivity of an input channel's weights: (F, C, ...) to (C,)."""
    return sensitivities.movedim(1, 0).flatten(1).amax(1)


def union_bound(layer: LayerInfo) -> float:
    """2 C ln(8 (eta + 1) kappa / delta), the factor between sums of sensitivities and numbers of samples.

    With eta positions and kappa kernel elements, the resulting errors hold at all of them with probability 1 - delta.
    """
    return 2 * C * math.log(8 * (layer.positions + 1) * math.prod(layer.kernel) / DELTA)


@dataclass(frozen=True)
class _Places:
    """Positions in a batch.

    Attributes:
        drawn: (samples, positions per sample), those to use.
        counted: (positions,), False for padding; None if all count.
    """

    drawn: Tensor
    counted: Tensor | None

    def numbers(self) -> Tensor:
        """How many of the drawn positions count in every sample, at least 1: (samples,)."""
        if self.counted is None:
            return torch.full((len(self.drawn),), self.drawn.shape[1])
        return self.counted[self.drawn].sum(1).clamp(min=1)


def _counted(call: Call) -> Tensor | None:
    mask, total = attended(call.inputs), num_positions(call.output, call.module)
    if mask is None:
        return None
    places = counted_places(torch.arange(total), call.output, call.module, mask)
    return torch.zeros(total, dtype=torch.bool).index_fill(0, places, True)


def _groups(layer: nn.Module, weight: Tensor, reduction: Reduction) -> list[_Largest]:
    filters = filters_of(layer, weight.detach())
    return [_Largest(part, reduction) for part in torch.chunk(filters, groups_of(layer))]


class _Largest:
    """For one layer without groups, the largest a_i / sum_m w_m a_m so far, for every filter and sign; w_i is constant.

    The maximum over places is a product of two matrices, places by inputs and places by filters and signs, with maxima
    instead of sums; for the mean it is an ordinary product.
    """

    def __init__(self, weight: Tensor, reduction: Reduction) -> None:
        weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
        W_FI = weight.flatten(1)
        self.shape = weight.shape
        self.W_RI = torch.cat([W_FI.clamp(min=0), (-W_FI).clamp(min=0)])
        self.ratios_RI = torch.zeros_like(self.W_RI)
        self.reduction = reduction
        self.seen = False
        self.chunk = max(1, MOST_PRODUCTS // (W_FI.shape[1] + len(self.W_RI)))  # places at a time

    def record(self, layer: nn.Module, x: Tensor, y: Tensor, places: _Places) -> None:
        self.seen = True
        if isinstance(layer, nn.Embedding):
            self._add_tokens(x.flatten(), places)
            return
        x = x.to(self.W_RI.dtype)
        negative = bool((x < 0).any())
        add = self._add_mean if self.reduction == "mean" and places.drawn.shape[1] > 1 else self._add_largest
        for part in (x.clamp(min=0), (-x).clamp(min=0)) if negative else (x,):
            add(partial(_inputs, part, layer, y.shape, places.counted), places)

    def _add_tokens(self, tokens: Tensor, places: _Places) -> None:
        """The share of a weight is 1 at its token."""
        counted = torch.ones_like(tokens, dtype=torch.bool) if places.counted is None else places.counted
        shares_RI = torch.where(self.W_RI <= EPSILON, 0, 1 / self.W_RI)
        for drawn_P, number in zip(places.drawn, places.numbers(), strict=True):
            found = tokens[drawn_P[counted.cpu()[drawn_P]]]
            hits_I = torch.bincount(found, minlength=shares_RI.shape[1]).to(shares_RI)
            hits_I = hits_I / number if self.reduction == "mean" else hits_I.clamp(max=1)
            torch.maximum(self.ratios_RI, shares_RI * hits_I, out=self.ratios_RI)

    def _add_largest(self, inputs_at: Look, all_places: _Places) -> None:
        for places in torch.split(all_places.drawn.flatten(), self.chunk):
            a_IP = inputs_at(places)
            for ratios_RI, start in largest_products(self._shares(a_IP), a_IP):
                here_RI = self.ratios_RI[start : start + len(ratios_RI)]
                torch.maximum(here_RI, ratios_RI, out=here_RI)

    def _add_mean(self, inputs_at: Look, places: _Places) -> None:
        """Process as many samples at once as memory allows, or one in parts."""
        num_samples = max(1, min(self.chunk // places.drawn.shape[1], MOST_PRODUCTS // self.ratios_RI.numel()))
        numbers = torch.split(places.numbers().to(self.ratios_RI), num_samples)
        for samples_BP, numbers_B in zip(torch.split(places.drawn, num_samples), numbers, strict=True):
            sums_BRI = self.ratios_RI.new_zeros(len(samples_BP), *self.ratios_RI.shape)
            for part_BP in torch.split(samples_BP, self.chunk, dim=1):
                a_IP = inputs_at(part_BP.flatten())
                a_BIP, shares_BRP = (
                    torch.stack(torch.split(t, part_BP.shape[1], dim=1)) for t in (a_IP, self._shares(a_IP))
                )
                sums_BRI += shares_BRP @ a_BIP.mT
            torch.maximum(self.ratios_RI, (sums_BRI / numbers_B[:, None, None]).amax(0), out=self.ratios_RI)

    def _shares(self, a_IP: Tensor) -> Tensor:
        """1 / sum_m w_m a_m for every filter, sign and place: (R, P)."""
        sums_RP = self.W_RI @ a_IP
        return torch.where(sums_RP <= EPSILON, 0, 1 / sums_RP)

    def sensitivities(self, name: str) -> Tensor:
        if not self.seen:
            raise CompressionError(f"layer '{name}': the calibration data never reach it. Expected at least one input.")
        if not self.ratios_RI.isfinite().all():
            raise CompressionError(
                f"layer '{name}': its inputs from the calibration data must be finite. Got NaN or infinity: are the "
                f"data scaled as in training, and did the network's training converge?"
            )
        positive_FI, negative_FI = (precise(self.W_RI) * precise(self.ratios_RI)).chunk(2)
        return (positive_FI + negative_FI).clamp(max=1).reshape(self.shape)  # larger only by rounding


def largest_products(b_RP: Tensor, a_IP: Tensor) -> Iterator[tuple[Tensor, int]]:
    """max over P of b_rp a_ip, in parts of rows and places: (rows, I) and the first row of each part."""
    size = min(PRODUCTS.get(a_IP.device.type, MOST_PRODUCTS) * torch.get_num_threads(), MOST_PRODUCTS)
    for a_Ip, b_Rp in zip(torch.split(a_IP, PLACES, 1), torch.split(b_RP, PLACES, 1), strict=True):
        num_rows, start = max(1, size // a_Ip.numel()), 0
        for b_rp in torch.split(b_Rp, num_rows):
            yield (b_rp[:, None] * a_Ip).amax(2), start
            start += len(b_rp)


def _inputs(x: Tensor, layer: nn.Module, y_shape: torch.Size, counted: Tensor | None, places: Tensor) -> Tensor:
    """The inputs at these places, zero, which adds nothing, at padding: (I, P)."""
    a_IP = input_patches(x, layer, y_shape, places).flatten(0, 1)
    return a_IP if counted is None else a_IP * counted[places].to(a_IP)


def _num_samples(layer: nn.Module, y: Tensor) -> int:
    return y.shape[0] if y.dim() > -channel_dim(layer) else 1


def _drawn(most: int | None, random: torch.Generator, num_samples: int, num_places: int) -> Tensor:
    """The places to use, the same ones in all samples: (samples, places per sample)."""
    each = num_places // max(num_samples, 1)
    first = draw_places(each, each if most is None else most, random)
    return torch.arange(num_samples)[:, None] * each + first

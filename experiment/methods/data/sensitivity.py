"""Relative sensitivities: the largest share that a weight or channel has in a layer's responses on given data.

For a filter g and an input a at one position, the sensitivity of weight w_i is its share of the response of the weights
with the same sign,

    s_gi = w+_i a_i / sum_m w+_m a_m   or   w-_i a_i / sum_m w-_m a_m,   w+ = max(w, 0), w- = max(-w, 0),

without the bias, and 0 if the denominator is at most float32's epsilon. This needs non-negative inputs; if some are
negative, max(a, 0) and max(-a, 0) are treated as separate inputs.

Source: Baykal et al. 2019, SiPPing Neural Networks, https://arxiv.org/abs/1910.05422, and Liebenwein et al. 2020,
Provable Filter Pruning, https://arxiv.org/abs/1911.07412
Suffixes: F = filters, I = inputs of a filter (channels times kernel elements), P = places, R = 2F, signs times filters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from experiment.errors import CompressionError
from experiment.inputs import Inputs
from experiment.layers.compressible import LayerInfo
from experiment.layers.forward_pass import Call, observed_pass
from experiment.layers.sampled_patches import draw_places, input_patches, num_positions
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
        weights: layer name -> its weight with masked elements at zero; convolutions without groups, and linear layers.
        inputs: calibration data; they are passed through the network in parts, in eval mode.
        reduction: over the positions of a sample: the largest, or the mean. The first dimension of a linear layer's
            inputs separates the samples.
        positions: positions used per sample, drawn separately for every part of the data; None for all.
    Returns: tensors of the weights' shapes, in [0, 1], float64.
    Raises: CompressionError: a layer gets no inputs, or some that are NaN or infinite.
    """
    largest = {name: _Largest(name, weight, reduction, positions) for name, weight in weights.items()}
    modules = {name: network.get_submodule(name) for name in largest}
    observed_pass(network, modules, inputs, batch_size=SAMPLES, after=lambda call: largest[call.name].record(call))
    return {name: own.sensitivities(name) for name, own in largest.items()}


def channel_sensitivities(sensitivities: Tensor) -> Tensor:
    """The largest sensitivity of an input channel's weights: (F, C, ...) to (C,)."""
    return sensitivities.movedim(1, 0).flatten(1).amax(1)


def union_bound(layer: LayerInfo) -> float:
    """2 C ln(8 (eta + 1) kappa / delta), the factor between sums of sensitivities and numbers of samples.

    With eta positions and kappa kernel elements, the resulting errors hold at all of them with probability 1 - delta.
    """
    height, width = layer.kernel
    return 2 * C * math.log(8 * (layer.positions + 1) * height * width / DELTA)


class _Largest:
    """For one layer, the largest a_i / sum_m w_m a_m so far, for every filter and sign; w_i itself is constant.

    The maximum over places is a product of two matrices, places by inputs and places by filters and signs, with maxima
    instead of sums; for the mean it is an ordinary product.
    """

    def __init__(self, name: str, weight: Tensor, reduction: Reduction, positions: int | None) -> None:
        weight = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
        W_FI = weight.flatten(1)
        self.shape = weight.shape
        self.W_RI = torch.cat([W_FI.clamp(min=0), (-W_FI).clamp(min=0)])
        self.ratios_RI = torch.zeros_like(self.W_RI)
        self.reduction = reduction
        self.seen = False
        self.chunk = max(1, MOST_PRODUCTS // (W_FI.shape[1] + len(self.W_RI)))  # places at a time
        self.draw = partial(_drawn, positions, generator("sensitivity", name))

    def record(self, call: Call) -> None:
        layer, y = call.module, call.output
        x = call.input.detach().to(self.W_RI.dtype)
        self.seen = True
        negative = bool((x < 0).any())
        places_BP = self.draw(_num_samples(layer, y), num_positions(y, layer))
        add = self._add_mean if self.reduction == "mean" and places_BP.shape[1] > 1 else self._add_largest
        for part in (x.clamp(min=0), (-x).clamp(min=0)) if negative else (x,):
            add(partial(_inputs, part, layer, y.shape), places_BP)

    def _add_largest(self, inputs_at: Look, places_BP: Tensor) -> None:
        for places in torch.split(places_BP.flatten(), self.chunk):
            a_IP = inputs_at(places)
            for ratios_RI, start in largest_products(self._shares(a_IP), a_IP):
                here_RI = self.ratios_RI[start : start + len(ratios_RI)]
                torch.maximum(here_RI, ratios_RI, out=here_RI)

    def _add_mean(self, inputs_at: Look, places_BP: Tensor) -> None:
        """Process as many samples at once as memory allows, or one in parts."""
        num_places = places_BP.shape[1]
        num_samples = min(self.chunk // num_places, MOST_PRODUCTS // self.ratios_RI.numel())
        for samples_BP in torch.split(places_BP, max(1, num_samples)):
            sums_BRI = self.ratios_RI.new_zeros(len(samples_BP), *self.ratios_RI.shape)
            for part_BP in torch.split(samples_BP, self.chunk, dim=1):
                a_IP = inputs_at(part_BP.flatten())
                a_BIP, shares_BRP = (
                    torch.stack(torch.split(t, part_BP.shape[1], dim=1)) for t in (a_IP, self._shares(a_IP))
                )
                sums_BRI += shares_BRP @ a_BIP.mT
            torch.maximum(self.ratios_RI, sums_BRI.amax(0) / num_places, out=self.ratios_RI)

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


def _inputs(x: Tensor, layer: nn.Module, y_shape: torch.Size, places: Tensor) -> Tensor:
    return input_patches(x, layer, y_shape, places).flatten(0, 1)


def _num_samples(layer: nn.Module, y: Tensor) -> int:
    batched = y.dim() == 4 if isinstance(layer, nn.Conv2d) else y.dim() > 1
    return y.shape[0] if batched else 1


def _drawn(most: int | None, random: torch.Generator, num_samples: int, num_places: int) -> Tensor:
    """The places to use, the same ones in all samples: (samples, places per sample)."""
    each = num_places // max(num_samples, 1)
    first = draw_places(each, each if most is None else most, random)
    return torch.arange(num_samples)[:, None] * each + first

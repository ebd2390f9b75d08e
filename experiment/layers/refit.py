"""Decoders fitted anew by least squares, layer after layer, to what the dense network computes.

A decomposed layer is given what the compressed layers before it make of the data, h = V x_hat after its encoder, and
should answer what the dense layer answers, y = W x. So its decoder becomes

    U <- argmin over U of ||Y - b - U H||_F^2 + lambda ||U - U_before||_F^2,

with H and Y at the same places of the calibration data: one forward pass, in which every layer is fitted before it
computes, so that later ones see what the fitted ones answer. Errors of the groups of one layer compensate each other,
and so do those of successive layers.

Source: He et al. 2017, https://arxiv.org/abs/1707.06168 (least squares after pruning channels) and Zhang et al. 2015,
https://arxiv.org/abs/1505.06798 (asymmetric reconstruction), here for the decoder of a decomposition.
Suffixes: F = filters, N = decoder inputs times its kernel elements, P = places.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from experiment.errors import CompressionError
from experiment.layers.inspect import evaluating
from experiment.layers.patches import draw_places, input_patches, num_positions, outputs_at

PLACES = 4096  # at least, where there are as many
PLACES_AN_UNKNOWN = 4
RIDGE = 1e-3  # of the mean square of h
RIDGE_OF_FEW = 0.05  # of it, times unknowns per place: with few images there is little to learn, and much to overfit
MOST_VALUES = 2**26  # that the largest response may have, all samples together: 256 MiB in float32


def refit(compressed: nn.Module, dense: nn.Module, names: Collection[str], inputs: Tensor, seed: int) -> None:
    """Fit the decoders of decomposed layers, in place.

    Layers used more than once in a forward pass, or on other samples than in the dense network, stay as they are.

    Args:
        compressed: the network whose layers `names` are pairs `encoder`, `decoder`.
        dense: the network that was compressed; not modified.
        inputs: calibration data (B, ...) on the networks' device; of many large ones, the first.
        seed: of the places that are looked at.
    Raises: CompressionError: the compressed network's responses are not finite.
    """
    inputs, once = _fitting(dense, names, inputs)
    decoders = {name: compressed.get_submodule(name).get_submodule("decoder") for name in once}
    generator = torch.Generator().manual_seed(seed)
    targets: dict[str, _Target] = {}

    def look(name: str, layer: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
        unknowns = decoders[name].get_parameter("weight")[0].numel()
        places = draw_places(num_positions(y, layer), max(PLACES, PLACES_AN_UNKNOWN * unknowns), generator)
        targets[name] = _Target(places, y.shape, outputs_at(y, layer, places))

    def fit(name: str, decoder: nn.Module, args: tuple[Tensor, ...]) -> None:
        if name in targets:
            _fit_decoder(name, decoder, args[0], targets.pop(name))

    _pass(dense, inputs, [dense.get_submodule(name).register_forward_hook(partial(look, name)) for name in once])
    _pass(compressed, inputs, [d.register_forward_pre_hook(partial(fit, name)) for name, d in decoders.items()])


@dataclass(frozen=True)
class _Target:
    """What the dense layer answers, at which places of which shape of outputs: (F, P)."""

    places: Tensor
    shape: torch.Size
    Y_FP: Tensor


def _fit_decoder(name: str, decoder: nn.Module, h: Tensor, target: _Target) -> None:
    weight, bias = decoder.get_parameter("weight"), dict(decoder.named_parameters()).get("bias")
    dimensions = 3 if isinstance(decoder, nn.Conv2d) else 1  # of one sample
    if h.shape[:-dimensions] != target.shape[:-dimensions]:
        return
    H_NP = input_patches(h, decoder, target.shape, target.places).flatten(0, 1)
    if not torch.isfinite(H_NP).all():
        raise CompressionError(
            f"layer '{name}': once compressed, its responses to the calibration data are NaN or infinite. Are the data "
            f"finite, and transformed like the training data?"
        )
    H_NP, Y_FP = _single(H_NP), _single(target.Y_FP)
    Y_FP = Y_FP if bias is None else Y_FP - bias[:, None]
    unknowns, num_places = H_NP.shape
    strength = float(H_NP.square().sum() / unknowns) * (RIDGE + RIDGE_OF_FEW * unknowns / num_places)
    if not 0 < strength < math.inf:  # nothing arrives that anything can be learned from
        return
    U_FN = _single(weight.flatten(1))
    left_FP, wide = Y_FP - U_FN @ H_NP, H_NP.shape[0] > H_NP.shape[1]
    # E H^T (H H^T + lambda)^-1 = E (H^T H + lambda)^-1 H^T, for what U leaves, E: the smaller one is solved
    gram = _double(H_NP.T @ H_NP if wide else H_NP @ H_NP.T)
    gram.diagonal().add_(strength)
    right = _double(left_FP) if wide else _double(left_FP @ H_NP.T)
    change = torch.linalg.solve(gram, right, left=False)
    change_FN = change @ _double(H_NP).T if wide else change
    weight.copy_((_double(U_FN) + change_FN).reshape(weight.shape))


def _single(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _double(tensor: Tensor) -> Tensor:
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def _fitting(dense: nn.Module, names: Collection[str], inputs: Tensor) -> tuple[Tensor, list[str]]:
    """The first inputs, as many as memory bears at once, and the layers that are used exactly once."""
    largest, uses = 1, dict.fromkeys(names, 0)

    def record(layer: nn.Module, args: tuple[Tensor, ...], named: dict[str, Tensor], y: Tensor) -> None:
        nonlocal largest
        largest = max(largest, y.numel(), (args[0] if args else named["input"]).numel())
        if layer in name_of:
            uses[name_of[layer]] += 1

    name_of = {dense.get_submodule(name): name for name in names}
    layers = [module for module in dense.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    _pass(dense, inputs[:1], [layer.register_forward_hook(record, with_kwargs=True) for layer in layers])
    return inputs[: max(1, MOST_VALUES // largest)], [name for name, number in uses.items() if number == 1]


def _pass(network: nn.Module, inputs: Tensor, handles: list[torch.utils.hooks.RemovableHandle]) -> None:
    try:
        with evaluating(network):
            network(inputs)
    finally:
        for handle in handles:
            handle.remove()

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
MOST_VALUES = 2**26  # that the largest response may have, all samples together: 256 MiB in float32


def refit(compressed: nn.Module, dense: nn.Module, names: Collection[str], inputs: Tensor, seed: int) -> None:
    """Fit the decoders of decomposed layers, in place. Layers used more than once in a forward pass stay as they are.

    Args:
        compressed: the network whose layers `names` are pairs `encoder`, `decoder`.
        dense: the network that was compressed; not modified.
        inputs: calibration data (B, ...) on the networks' device; of many large ones, the first.
        seed: of the places that are looked at.
    Raises: CompressionError: the compressed network's responses are not finite.
    """
    inputs, once = _fitting(dense, names, inputs)
    generator = torch.Generator().manual_seed(seed)
    targets: dict[str, _Target] = {}

    def look(name: str, layer: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
        unknowns = compressed.get_submodule(f"{name}.decoder").get_parameter("weight")[0].numel()
        places = draw_places(num_positions(y, layer), max(PLACES, PLACES_AN_UNKNOWN * unknowns), generator)
        targets[name] = _Target(places, y.shape, outputs_at(y, layer, places))

    def fit(name: str, decoder: nn.Module, args: tuple[Tensor, ...]) -> None:
        _fit_decoder(name, decoder, args[0], targets.pop(name))

    _pass(dense, inputs, [dense.get_submodule(name).register_forward_hook(partial(look, name)) for name in once])
    decoders = {name: compressed.get_submodule(f"{name}.decoder") for name in once}
    _pass(compressed, inputs, [d.register_forward_pre_hook(partial(fit, name)) for name, d in decoders.items()])


@dataclass(frozen=True)
class _Target:
    """What the dense layer answers, at which places of which shape of outputs: (F, P)."""

    places: Tensor
    shape: torch.Size
    Y_FP: Tensor


def _fit_decoder(name: str, decoder: nn.Module, h: Tensor, target: _Target) -> None:
    weight, bias = decoder.get_parameter("weight"), dict(decoder.named_parameters()).get("bias")
    H_NP = input_patches(h, decoder, target.shape, target.places).flatten(0, 1)
    if not torch.isfinite(H_NP).all():
        raise CompressionError(
            f"layer '{name}': once compressed, its responses to the calibration data are NaN or infinite. Are the data "
            f"finite, and transformed like the training data?"
        )
    Y_FP = target.Y_FP if bias is None else target.Y_FP - bias[:, None]
    gram_NN, cross_FN = _double(H_NP @ H_NP.T), _double(Y_FP @ H_NP.T)
    strength = float(gram_NN.diagonal().mean()) * RIDGE
    if strength == 0:  # nothing arrives, and nothing can be learned from it
        return
    gram_NN.diagonal().add_(strength)
    U_FN = torch.linalg.solve(gram_NN, cross_FN + strength * _double(weight.flatten(1)), left=False)
    weight.copy_(U_FN.reshape(weight.shape))


def _double(tensor: Tensor) -> Tensor:
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def _fitting(dense: nn.Module, names: Collection[str], inputs: Tensor) -> tuple[Tensor, list[str]]:
    """The first inputs, as many as memory bears at once, and the layers that are used exactly once."""
    sizes: dict[str, list[int]] = {name: [] for name in names}

    def record(name: str, layer: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
        sizes[name].append(y.numel())

    _pass(dense, inputs[:1], [dense.get_submodule(name).register_forward_hook(partial(record, name)) for name in names])
    largest = max((size for own in sizes.values() for size in own), default=1)
    return inputs[: max(1, MOST_VALUES // largest)], [name for name, own in sizes.items() if len(own) == 1]


def _pass(network: nn.Module, inputs: Tensor, handles: list[torch.utils.hooks.RemovableHandle]) -> None:
    try:
        with evaluating(network):
            network(inputs)
    finally:
        for handle in handles:
            handle.remove()

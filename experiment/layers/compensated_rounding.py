"""Rounds the weights of quantized layers so that later columns compensate the errors of earlier ones.

A layer's filters W become W' on their grid, which minimises ||W X - W' X||^2 over its inputs X column by column: once
column i is rounded, the others move to where the error is smallest,

    w_j <- w_j - (w_i - w'_i) / U_ii U_ij  for j > i,  U^T U = (X X^T + lambda)^-1,  U upper triangular.

The scales are those of rounding to nearest, and so are the codes of weights that have the largest code of their scale.
Columns of larger inputs come first. In one forward pass every layer is rounded before it computes, so that X are the
inputs in the network in which all earlier layers are already rounded.

Source: Frantar et al. 2022, GPTQ, https://arxiv.org/abs/2210.17323; Frantar et al. 2022, Optimal Brain Compression,
https://arxiv.org/abs/2208.11580
Suffixes: O = groups of the layer, F = filters of a group, N = columns: inputs of a filter times its kernel elements.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from experiment.errors import CompressionError
from experiment.inputs import Inputs, attended
from experiment.layers.compressible import (
    CONVOLUTIONS,
    LINEAR_LAYERS,
    filters_of,
    groups_of,
    holders,
    is_plain,
    weight_of,
)
from experiment.layers.forward_pass import Call, affordable, observed_pass
from experiment.layers.masks import named_masks, stored, write_parameter
from experiment.layers.quantized_weights import decode, encode, levels_of, named_dtypes
from experiment.layers.refit import double, single
from experiment.layers.sampled_patches import counted_places, draw_places, input_patches, num_positions

PLACES = 4096  # of a layer's output at which its inputs are collected, at least, if available
PLACES_A_COLUMN = 8
PART = 4096  # places at a time
DAMPING = 0.01  # of the mean square of the inputs
STEPS, CLOSE = 30, 1e-6  # of conjugate gradients, at most, and the share of the squared residual at which they end
TINY = 1e-300
BLOCK = 128  # columns that are updated at once


@dataclass(frozen=True)
class Grid:
    """The values that every weight may take: code times scale, with the code between `low` and `high`."""

    scales: Tensor
    low: Tensor
    high: Tensor

    def nearest(self, weight: Tensor, column: int) -> Tensor:
        scale, low, high = (part[..., column] for part in (self.scales, self.low, self.high))
        codes = (weight / torch.where(scale > 0, scale, 1)).round()
        return torch.minimum(torch.maximum(codes, low), high) * scale


def compensate(
    network: nn.Module, inputs: Inputs, seed: int = 0, fitted: Mapping[str, Callable[[Call], Tensor]] | None = None
) -> None:
    """Round the masters of layers with weights in int8 or int4, in place, layer after layer in a forward pass.

    Embeddings, layers that share their weight, and those that a forward pass does not call exactly once stay: they
    are rounded to nearest.

    Args:
        network: with weights that `add_quantized` rounds.
        inputs: calibration data (B, ...) on the network's device; only the first are used if they are large.
        seed: for the sampled places.
        fitted: layer name -> the weight that it should have, from its call; those that its mask leaves, or its dtype
            allows, then come as close to its outputs as they can.
    Raises: CompressionError: the inputs of a layer are not finite.
    """
    fitted = fitted or {}
    layers, dtypes, masks = _layers(network, fitted), named_dtypes(network), named_masks(network)
    if not layers:
        return
    inputs, once = affordable(network, layers, inputs)
    generator = torch.Generator().manual_seed(seed)

    def round_layer(call: Call) -> Tensor | None:
        if not call.output.numel():
            return None
        layer, name = call.module, f"{call.name}.weight" if call.name else "weight"
        weight = fitted[call.name](call) if call.name in fitted else stored(layer, "weight").detach()
        dtype, mask = dtypes.get(name), masks.get(name)
        if dtype is not None or mask is not None:
            weight = rounded_weight(layer, weight, dtype, mask, _moments(call, generator))
        write_parameter(layer, "weight", weight)
        output: Tensor = layer.forward(*call.args, **call.named)
        return output

    called = {name: layer for name, layer in layers.items() if name in once}
    observed_pass(network, called, inputs, after=round_layer, keeping_buffers=False)


def input_moments(network: nn.Module, names: Collection[str], inputs: Inputs, seed: int = 0) -> dict[str, Tensor]:
    """The moments X X^T of layers' inputs in each of their groups, as for `compensate`: (O, N, N) in float64.

    Those of a layer that a forward pass calls several times are the sum over its calls.
    """
    layers = {name: network.get_submodule(name) for name in names}
    inputs, _ = affordable(network, layers, inputs)
    generator, found = torch.Generator().manual_seed(seed), dict[str, Tensor]()

    def add(call: Call) -> None:
        if call.output.numel():
            moments_ONN = _moments(call, generator)
            found[call.name] = found[call.name] + moments_ONN if call.name in found else moments_ONN

    observed_pass(network, layers, inputs, after=add, keeping_buffers=False)
    return found


def round_columns(W_OFN: Tensor, H_ONN: Tensor, grid: Grid) -> Tensor:
    """W' for the moments H = X X^T of the inputs, in float64.

    Source: Frantar et al. 2022, https://arxiv.org/abs/2210.17323 (Cholesky form, updates in blocks)
    """
    U_ONN = inverse_root(H_ONN)
    left_OFN, rounded_OFN = W_OFN.clone(), torch.empty_like(W_OFN)
    for start in range(0, W_OFN.shape[-1], BLOCK):
        end = min(start + BLOCK, W_OFN.shape[-1])
        errors_OFB = torch.empty_like(W_OFN[..., start:end])
        for i in range(start, end):
            w_OF = left_OFN[..., i]
            rounded_OFN[..., i] = grid.nearest(w_OF, i)
            errors_OFB[..., i - start] = (w_OF - rounded_OFN[..., i]) / U_ONN[:, i, i, None]
            left_OFN[..., i + 1 : end] -= errors_OFB[..., i - start, None] * U_ONN[:, i, None, i + 1 : end]
        left_OFN[..., end:] -= errors_OFB @ U_ONN[:, start:end, end:]
    return rounded_OFN


def _layers(network: nn.Module, more: Collection[str]) -> dict[str, nn.Module]:
    """The convolutions and linear layers with weights of their own in int8 or int4, and more that are named."""
    dtypes, held = named_dtypes(network), holders(network)

    def has_codes(name: str, module: nn.Module) -> bool:
        dtype = dtypes.get(f"{name}.weight" if name else "weight")
        return dtype is not None and levels_of(dtype) is not None and len(held[stored(module, "weight")]) == 1

    kinds = (*LINEAR_LAYERS, *CONVOLUTIONS)
    layers = {n: m for n, m in network.named_modules() if isinstance(m, kinds) and is_plain(m)}
    return {name: module for name, module in layers.items() if name in more or has_codes(name, module)}


def _moments(call: Call, generator: torch.Generator) -> Tensor:
    """X X^T at a sample of places, divided by their number."""
    layer, blocks = call.module, groups_of(call.module)
    filters = filters_of(layer, double(stored(layer, "weight").detach()))
    columns = filters[0].numel()
    places = draw_places(num_positions(call.output, layer), max(PLACES, PLACES_A_COLUMN * columns), generator)
    places = counted_places(places, call.output, layer, attended(call.inputs))
    total_ONN = filters.new_zeros(blocks, columns, columns)
    for part in torch.split(places, PART):
        X_NP = single(input_patches(call.input, layer, call.output.shape, part)).flatten(0, 1)
        X_ONP = torch.unflatten(X_NP, 0, (blocks, -1))
        total_ONN += double(X_ONP @ X_ONP.mT)
    if not total_ONN.isfinite().all():
        raise CompressionError(
            f"layer '{call.name}': its inputs must be finite. Got NaN or infinity: are the calibration data finite, "
            f"and transformed like the training data?"
        )
    return total_ONN / max(len(places), 1)


def rounded_weight(layer: nn.Module, weight: Tensor, dtype: str | None, mask: Tensor | None, H_ONN: Tensor) -> Tensor:
    """A layer's weight in a dtype and under a mask, with the errors of both compensated.

    Filters that rounding to nearest gives a smaller error are rounded to nearest.

    Args:
        weight: in the layer's shape, masked or not.
        dtype: int8 or int4, with the size of groups or not; None for the weight's own.
        mask: in the layer's shape; None if all weights stay.
        H_ONN: the moments X X^T of the layer's inputs in each of its groups, in float64.
    """

    def in_columns(part: Tensor) -> Tensor:
        return torch.unflatten(double(filters_of(layer, part).flatten(1)), 0, (len(H_ONN), -1))

    def in_place(W_OFN: Tensor) -> Tensor:
        return weight_of(layer, W_OFN.flatten(0, 1).reshape(filters_of(layer, weight).shape)).to(weight)

    if mask is not None:
        weight = in_place(fit_support(in_columns(weight), in_columns(mask), H_ONN))
    if dtype is None:
        return weight
    codes, scales = encode(weight, dtype)
    levels = levels_of(dtype)
    assert levels is not None
    high = torch.full_like(codes, levels) if mask is None else levels * mask.to(codes.dtype)
    fixed = codes.abs() == levels  # the scale of a group is found again by its largest code
    low, high = torch.where(fixed, codes, -high), torch.where(fixed, codes, high)
    parts = (weight, decode(codes, scales, dtype), decode(torch.ones_like(codes), scales, dtype), low, high)
    W_OFN, nearest_OFN, *bounds = map(in_columns, parts)
    order_ON = H_ONN.diagonal(dim1=1, dim2=2).sort(dim=1, descending=True, stable=True).indices
    order_OFN = order_ON[:, None].expand_as(W_OFN)
    sorted_ONN = torch.stack([H_NN[order_N][:, order_N] for H_NN, order_N in zip(H_ONN, order_ON, strict=True)])
    grid = Grid(*(part.gather(2, order_OFN) for part in bounds))
    rounded_OFN = round_columns(W_OFN.gather(2, order_OFN), sorted_ONN, grid)
    rounded_OFN = torch.empty_like(rounded_OFN).scatter_(2, order_OFN, rounded_OFN)
    worse_OF = _error(W_OFN - rounded_OFN, H_ONN) > _error(W_OFN - nearest_OFN, H_ONN)
    return in_place(torch.where(worse_OF[..., None], nearest_OFN, rounded_OFN))


def fit_support(
    W_OFN: Tensor, mask_OFN: Tensor, H_ONN: Tensor, start_OFN: Tensor | None = None, steps: int = STEPS
) -> Tensor:
    """The masked filters W' that minimise tr((W - W') (H + lambda) (W - W')^T), by conjugate gradients.

    Args:
        start_OFN: filters near the result; W by default.
    """
    H_ONN = _damped(H_ONN)
    scale_O1N = H_ONN.diagonal(dim1=1, dim2=2)[:, None]
    found_OFN = (W_OFN if start_OFN is None else start_OFN) * mask_OFN
    left_OFN = ((W_OFN - found_OFN) @ H_ONN) * mask_OFN
    close = CLOSE * float(((W_OFN @ H_ONN) * mask_OFN).square().div(scale_O1N).sum())
    step_OFN = torch.zeros_like(W_OFN)
    before_OF1 = torch.full_like(W_OFN[..., :1], torch.inf)
    for _ in range(steps):
        scaled_OFN = left_OFN / scale_O1N
        now_OF1 = (left_OFN * scaled_OFN).sum(2, keepdim=True)
        if float(now_OF1.sum()) <= close:
            break
        step_OFN = scaled_OFN + now_OF1 / before_OF1.clamp_min(TINY) * step_OFN
        pulled_OFN = (step_OFN @ H_ONN) * mask_OFN
        length_OF1 = now_OF1 / (step_OFN * pulled_OFN).sum(2, keepdim=True).clamp_min(TINY)
        found_OFN, left_OFN = found_OFN + length_OF1 * step_OFN, left_OFN - length_OF1 * pulled_OFN
        before_OF1 = now_OF1
    return found_OFN


def _error(change_OFN: Tensor, H_ONN: Tensor) -> Tensor:
    """The mean square of every filter's change of output: (O, F)."""
    return ((change_OFN @ H_ONN) * change_OFN).sum(2)


def inverse_root(H_ONN: Tensor) -> Tensor:
    """U, upper triangular with a positive diagonal, such that U^T U = (H + lambda)^-1."""
    root_ONN = torch.linalg.cholesky(_damped(H_ONN).flip(1, 2)).flip(1, 2)  # R, upper triangular, with R R^T = H
    eye_NN = torch.eye(H_ONN.shape[-1], dtype=H_ONN.dtype, device=H_ONN.device)
    inverse: Tensor = torch.linalg.solve_triangular(root_ONN, eye_NN, upper=True)
    return inverse


def _damped(H_ONN: Tensor) -> Tensor:
    """H + lambda; lambda is 1 for H = 0."""
    mean_O = H_ONN.diagonal(dim1=1, dim2=2).mean(1)
    strength_O = torch.where(mean_O > 0, DAMPING * mean_O, 1)
    return H_ONN + torch.diag_embed(strength_O[:, None].expand(H_ONN.shape[:2]))

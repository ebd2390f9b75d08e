"""Fits layers of a compressed network by least squares, one after the other, to the outputs of the dense network.

Let h be the input of a layer in the compressed network: for a decoder the output of its encoder, V x_hat, for a layer
that lost input channels those that are left. Its output should be that of the dense layer, y = W x. Its weight becomes

    U <- argmin over U of ||Y - b - U H||_F^2 + lambda ||U - U_before||_F^2,

with H and Y at the same places of the calibration data. In one forward pass every layer is fitted before it computes,
so that later layers compensate the errors of earlier ones.

Source: He et al. 2017, https://arxiv.org/abs/1707.06168 (least squares after pruning channels) and Zhang et al. 2015,
https://arxiv.org/abs/1505.06798 (asymmetric reconstruction), here for the decoder of a decomposition too.
Suffixes: F = filters, N = inputs of the fitted layer times its kernel elements, P = places.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from experiment.errors import CompressionError
from experiment.inputs import Inputs, attended
from experiment.layers.channels.fold_constants import Folded
from experiment.layers.compressible import WEIGHT_LAYERS, channel_dim, filters_of, groups_of, weight_of
from experiment.layers.forward_pass import Call, affordable, observed_pass
from experiment.layers.masks import stored, write_parameter
from experiment.layers.plan import Kept
from experiment.layers.sampled_patches import counted_places, draw_places, input_patches, num_positions, outputs_at

PLACES = 4096  # at least, if available
PLACES_AN_UNKNOWN = 4
RIDGE = 1e-3  # of the mean square of h
RIDGE_OF_FEW = 0.05  # of it, times unknowns per place: few images overfit


def refit(
    compressed: nn.Module,
    dense: nn.Module,
    names: Collection[str],
    inputs: Inputs,
    seed: int,
    *,
    kept: Mapping[str, Kept] | None = None,
    folded: Mapping[str, Folded] | None = None,
    intercepts: bool = False,
) -> None:
    """Fit the decoders of decomposed layers and the weights of other layers, in place.

    Layers that are used more than once in a forward pass, or on other samples than in the dense network, stay.

    Args:
        compressed: the network whose layers `names` are pairs `encoder`, `decoder`, or layers without masks.
        dense: the network that was compressed; not modified.
        inputs: calibration data (B, ...) on the networks' device; only the first are used if they are large.
        seed: for the sampled places.
        kept: module name -> the channels of the dense layers that stay.
        folded: where constants of these layers' outputs were folded.
        intercepts: whether these constants are fitted together with the weights.
    Raises: CompressionError: the compressed network's values are not finite.
    """
    kept, folded = kept or {}, folded or {}
    layers = {n: m for n, m in dense.named_modules() if isinstance(m, WEIGHT_LAYERS)}
    inputs, once = affordable(dense, layers, inputs)
    layers = {name: layers[name] for name in names if name in once}
    fitted = {name: _fitted(compressed, name) for name in layers}
    generator = torch.Generator().manual_seed(seed)
    targets: dict[str, _Target] = {}

    def look(call: Call) -> None:
        name, layer, y = call.name, call.module, call.output
        unknowns = filters_of(fitted[name], stored(fitted[name], "weight"))[0].numel()
        places = draw_places(num_positions(y, layer), max(PLACES, PLACES_AN_UNKNOWN * unknowns), generator)
        places = counted_places(places, y, layer, attended(call.inputs))
        rows, Y_FP = kept.get(name, Kept()).out, outputs_at(y, layer, places)
        targets[name] = _Target(places, y.shape, Y_FP if rows is None else Y_FP[list(rows)])

    def fit(call: Call) -> None:
        if call.name in targets:
            _fit(call, targets.pop(call.name), folded.get(call.name), intercepts)

    observed_pass(dense, layers, inputs, after=look, keeping_buffers=False)
    observed_pass(compressed, fitted, inputs, before=fit, keeping_buffers=False)


@dataclass(frozen=True)
class _Target:
    """The dense layer's outputs (F, P) at some places of its output's shape."""

    places: Tensor
    shape: torch.Size
    Y_FP: Tensor


def _fitted(compressed: nn.Module, name: str) -> nn.Module:
    layer = compressed.get_submodule(name)
    return layer if isinstance(layer, WEIGHT_LAYERS) else layer.get_submodule("decoder")


def _fit(call: Call, target: _Target, folded: Folded | None, intercept: bool) -> None:
    layer, h, dim = call.module, call.input, channel_dim(call.module)
    filters, bias = filters_of(layer, stored(layer, "weight")), None if layer.bias is None else stored(layer, "bias")
    if h.shape[:dim] != target.shape[:dim] or not target.Y_FP.numel():
        return
    H_NP = input_patches(h, layer, target.shape, target.places).flatten(0, 1)
    if not torch.isfinite(H_NP).all():
        raise CompressionError(
            f"layer '{call.name}': its inputs in the compressed network are NaN or infinite. Are the calibration "
            f"data finite, and transformed like the training data?"
        )
    H_NP, left_FP, U_FN = single(H_NP), single(target.Y_FP), single(filters.flatten(1))
    left_FP = left_FP if bias is None else left_FP - bias[:, None]
    left_FP = left_FP if folded is None else left_FP - folded.behind.to(left_FP)[:, None]
    blocks = groups_of(layer)
    if blocks > 1:  # every group on its own; constants are folded into other layers only
        pairs = zip(*(torch.tensor_split(part, blocks) for part in (H_NP, left_FP, U_FN)), strict=True)
        fitted = [double(U) + _ridge(H, left - U @ H) for H, left, U in pairs]
        write_parameter(layer, "weight", weight_of(layer, torch.cat(fitted).reshape(filters.shape)))
        return
    left_FP = left_FP - U_FN @ H_NP
    if folded is None or not intercept:
        change_FN = _ridge(H_NP, left_FP)
    else:
        mean_N, rest_F = H_NP.mean(1), left_FP.mean(1)
        change_FN = _ridge(H_NP - mean_N[:, None], left_FP - rest_F[:, None])
        shift_F = double(rest_F) - change_FN @ double(mean_N)
        folded.place.add_(folded.sign * shift_F.to(folded.place))
    write_parameter(layer, "weight", weight_of(layer, (double(U_FN) + change_FN).reshape(filters.shape)))


def _ridge(H_NP: Tensor, left_FP: Tensor) -> Tensor:
    """The change D of the weight that minimises ||E - D H||_F^2 + lambda ||D||_F^2 for the residual E."""
    unknowns, num_places = H_NP.shape
    strength = float(H_NP.square().sum() / unknowns) * (RIDGE + RIDGE_OF_FEW * unknowns / num_places)
    if not 0 < strength < math.inf:  # the inputs are all zero, or overflow
        return double(left_FP.new_zeros(len(left_FP), unknowns))
    wide = unknowns > num_places
    # E H^T (H H^T + lambda)^-1 = E (H^T H + lambda)^-1 H^T: the smaller one is solved
    gram = double(H_NP.T @ H_NP if wide else H_NP @ H_NP.T)
    gram.diagonal().add_(strength)
    right = double(left_FP) if wide else double(left_FP @ H_NP.T)
    change: Tensor = torch.linalg.solve(gram, right, left=False)
    return change @ double(H_NP).T if wide else change


def single(tensor: Tensor) -> Tensor:
    """The values in float32 at least."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def double(tensor: Tensor) -> Tensor:
    """The values in float64, on the CPU where the device has none."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()

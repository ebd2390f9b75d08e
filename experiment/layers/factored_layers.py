"""A layer as a product of two smaller ones, y = U(Vx) + b: foldings of its weight, shapes and costs of the factors.

Shape suffixes: G = groups of input channels, F = filters (output features), C = input channels, I = C / G, X and Y =
the kernel's height and width, R = rows of a folded slice, N = its columns, J = rank.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from experiment.errors import CompressionError
from experiment.layers.compressible import LayerInfo
from experiment.layers.grouped_linear import GroupedLinear
from experiment.layers.masks import stored, write_parameter
from experiment.layers.plan import Factors

# Which kernel axes (height, width) the encoder owns under each folding; the decoder owns the others.
ENCODER_AXES = ((True, True), (False, True), (True, False), (False, False))
FOLDINGS = range(len(ENCODER_AXES))
Slicing = tuple[int, int]  # groups, folding
MOST_OF_FACTORS = 16  # times the layer's weight; far above any useful rank, it limits the memory a file can ask for


class FactoredLayer(nn.Sequential):
    """An encoder and a decoder, with the attributes of the layer that they replace.

    A forward pass may also read `weight`, `bias` and the layer's size attributes. The
    parameters, and their names in the state_dict, are those of `encoder` and `decoder` alone.
    """

    __jit_unused_properties__: tuple[str, ...] = ("weight", "bias")  # torch.jit.script would compile them

    @property
    def weight(self) -> Tensor:
        """The product of the factors, in the layer's shape, computed at each use; gradients reach both factors."""
        encoder, decoder = self._pair()
        return multiplied(encoder.weight, decoder.weight, _groups(encoder))

    @property
    def bias(self) -> Tensor | None:
        """The decoder's bias, if it has one."""
        bias: Tensor | None = self._pair()[1].bias
        return bias

    def _pair(self) -> tuple[Any, Any]:
        return self.get_submodule("encoder"), self.get_submodule("decoder")


class FactoredLinear(FactoredLayer):
    """Two linear layers, the first one grouped or not, that replace an `nn.Linear`."""

    __jit_unused_properties__ = (*FactoredLayer.__jit_unused_properties__, "in_features", "out_features")

    @property
    def in_features(self) -> int:
        return int(self._pair()[0].in_features)

    @property
    def out_features(self) -> int:
        return int(self._pair()[1].out_features)


class FactoredConv2d(FactoredLayer):
    """Two convolutions that replace an `nn.Conv2d`; along each axis one of them has its kernel, stride and padding."""

    __jit_unused_properties__ = (*FactoredLayer.__jit_unused_properties__, "in_channels", "out_channels")

    def __init__(self, pair: OrderedDict[str, nn.Module], replaced: nn.Conv2d) -> None:
        super().__init__(pair)
        self.kernel_size, self.stride, self.dilation = replaced.kernel_size, replaced.stride, replaced.dilation
        self.padding, self.padding_mode = replaced.padding, replaced.padding_mode
        self.output_padding, self.transposed, self.groups = replaced.output_padding, replaced.transposed, 1

    @property
    def in_channels(self) -> int:
        return int(self._pair()[0].in_channels)

    @property
    def out_channels(self) -> int:
        return int(self._pair()[1].out_channels)


def split_kernel(kernel: tuple[int, int], folding: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The kernels of encoder and decoder: each axis belongs to one of them, and the other has size 1."""
    (height, width), (own_height, own_width) = kernel, ENCODER_AXES[folding]
    encoder = (height if own_height else 1, width if own_width else 1)
    return encoder, (height // encoder[0], width // encoder[1])


def fold(weight: Tensor, groups: int = 1, folding: int = 0) -> Tensor:
    """The weight's slices of contiguous input channels, each folded into a matrix: (G, R, N).

    Slicing comes first: a column never mixes channels of two groups. Rows are filter-major, then the decoder's kernel
    axis; columns are channel, row, column for folding 0, and the encoder's kernel axis, then channel for 1 and 2.

    Args:
        weight: (F, C, X, Y) of a convolution or (F, C) of a linear layer.
        groups: a divisor of C.
    """
    features, _, height, width = (*weight.shape, 1, 1)[:4]
    W_FGIXY = weight.reshape(features, groups, -1, height, width)
    if folding == 0:
        return W_FGIXY.transpose(0, 1).flatten(2)
    order = {1: (1, 0, 3, 4, 2), 2: (1, 0, 4, 3, 2), 3: (1, 0, 3, 4, 2)}[folding]
    folded = W_FGIXY.permute(order)  # G, F, the decoder's axis, the encoder's axis, I
    if folding == 3:
        return folded.flatten(1, 3)
    return folded.flatten(3).flatten(1, 2)


def unfold(matrices_GRN: Tensor, shape: torch.Size | tuple[int, ...], folding: int = 0) -> Tensor:
    """The inverse of `fold`: the weight of the given shape whose folded slices these are."""
    groups = matrices_GRN.shape[0]
    features, channels, height, width = (*shape, 1, 1)[:4]
    if folding == 0:
        return matrices_GRN.transpose(0, 1).reshape(shape)
    first, second = (width, height) if folding == 2 else (height, width)
    folded = matrices_GRN.reshape(groups, features, first, second, channels // groups)
    order = {1: (1, 0, 4, 2, 3), 2: (1, 0, 4, 3, 2), 3: (1, 0, 4, 2, 3)}[folding]
    return folded.permute(order).reshape(shape)


def max_rank(info: LayerInfo, groups: int = 1, folding: int = 0) -> int:
    """The full rank of a layer's folded slices."""
    rows, columns = _matrix_shape(info, folding)
    return min(rows, columns // groups)


def parameters(info: LayerInfo, rank: int, groups: int = 1, folding: int = 0) -> int:
    """Elements of both factors' weights (without the bias): rank * (groups * rows + columns)."""
    rows, columns = _matrix_shape(info, folding)
    return rank * (groups * rows + columns)


def flops(info: LayerInfo, rank: int, groups: int = 1, folding: int = 0) -> int:
    """Multiply-adds of one sample through both factors, each on its own output grid."""
    rows, columns = _matrix_shape(info, folding)
    own_height, own_width = ENCODER_AXES[folding]
    encoder_positions = sum(
        (out_height if own_height else in_height) * (out_width if own_width else in_width)
        for (in_height, in_width), (out_height, out_width) in zip(info.input_grids, info.output_grids, strict=True)
    )
    return rank * (groups * rows * info.positions + columns * encoder_positions)


def make_layer(module: nn.Module, factors: Factors) -> FactoredLayer:
    """An uninitialised encoder and decoder of plain layers that can replace a layer, on its device.

    Stride, padding and dilation of an axis go to the factor that owns the kernel along it. `write_factors` or a
    state_dict fills the weights.

    Raises: CompressionError: the groups do not divide the input channels, the folding does not exist for the layer, or
        the rank is far above the full one.
    """
    kind = "linear" if isinstance(module, nn.Linear) else "conv"
    if not isinstance(module, nn.Conv2d | nn.Linear):
        raise CompressionError(f"only Conv2d and Linear layers have factors. Got {type(module).__name__}.")
    channels = module.in_features if isinstance(module, nn.Linear) else module.in_channels
    allowed = (0,) if kind == "linear" else FOLDINGS
    if factors.rank < 1 or factors.groups < 1 or channels % factors.groups or factors.folding not in allowed:
        raise CompressionError(
            f"a {kind} layer of {channels} inputs has no factors of rank {factors.rank}, {factors.groups} groups, "
            f"folding {factors.folding}: rank must be at least 1, groups a divisor, folding one of {list(allowed)}."
        )
    weight = module.weight
    with torch.device("meta"):  # takes no memory and no random numbers
        pair = _linear_pair(module, factors) if isinstance(module, nn.Linear) else _conv_pair(module, factors)
    most = MOST_OF_FACTORS * weight.numel() + weight.shape[0]
    if sum(p.numel() for factor in pair for p in factor.parameters()) > most:
        raise CompressionError(f"a {kind} layer of {weight.numel():,} weights has no factors of rank {factors.rank:,}.")
    for factor in pair:  # `to_empty` would import half a second of torch
        for name, p in dict(factor.named_parameters()).items():
            empty = torch.empty(p.shape, dtype=weight.dtype, device=weight.device)
            setattr(factor, name, nn.Parameter(empty, weight.requires_grad))
    named = OrderedDict(encoder=pair[0], decoder=pair[1])
    layer = FactoredLinear(named) if isinstance(module, nn.Linear) else FactoredConv2d(named, module)
    return layer.train(module.training)


def write_factors(layer: nn.Module, U_GRJ: Tensor, V_GJN: Tensor, folding: int = 0) -> None:
    """Write the factors of the folded slices, W_g = U_g V_g, into an encoder and decoder, in place, masked or not."""
    encoder, decoder = layer.get_submodule("encoder"), layer.get_submodule("decoder")
    E_shape, D_shape = stored(encoder, "weight").shape, stored(decoder, "weight").shape
    groups, rank = V_GJN.shape[:2]
    height, width = (*E_shape, 1, 1)[2:4]
    if folding == 0:
        V = V_GJN.reshape(groups * rank, -1, height, width)
    else:
        V = V_GJN.reshape(groups * rank, height, width, -1).permute(0, 3, 1, 2)
    height, width = (*D_shape, 1, 1)[2:4]
    U = U_GRJ.reshape(groups, -1, height, width, rank).permute(1, 0, 4, 2, 3)
    write_parameter(encoder, "weight", V.reshape(E_shape))
    write_parameter(decoder, "weight", U.reshape(D_shape))


def read_factors(layer: nn.Module, folding: int = 0) -> tuple[Tensor, Tensor]:
    """The inverse of `write_factors`: U (G, R, J) and V (G, J, N) of an unmasked encoder and decoder, in float64.

    For quantized factors these are the values before rounding.
    """
    encoder, decoder = layer.get_submodule("encoder"), layer.get_submodule("decoder")
    E, D = (stored(factor, "weight").detach().double() for factor in (encoder, decoder))
    groups = _groups(encoder)
    E_LIXY = E.reshape(*E.shape, *[1] * (4 - E.dim()))  # L = G * J
    V_GJN = (E_LIXY if folding == 0 else E_LIXY.permute(0, 2, 3, 1)).reshape(groups, E.shape[0] // groups, -1)
    D_FGJK = D.reshape(D.shape[0], groups, E.shape[0] // groups, -1)
    return D_FGJK.permute(1, 0, 3, 2).flatten(1, 2), V_GJN


def balance(layer: nn.Module, folding: int = 0) -> None:
    """Split the singular values of the slices' products equally between encoder and decoder, in place.

    The product does not change. Of all factors with this product, these have the smallest norm.
    """
    U_GRJ, V_GJN = read_factors(layer, folding)
    Q_GRJ, left_GJJ = torch.linalg.qr(U_GRJ)
    P_GNJ, right_GJJ = torch.linalg.qr(V_GJN.mT)
    L_GJJ, S_GJ, Rt_GJJ = torch.linalg.svd(left_GJJ @ right_GJJ.mT)
    root_G1J = S_GJ.sqrt()[:, None]
    write_factors(layer, Q_GRJ @ (L_GJJ * root_G1J), root_G1J.mT * (Rt_GJJ @ P_GNJ.mT), folding)


def product(layer: nn.Module) -> Tensor:
    """The dense weight that an encoder and decoder replace, multiplied in float64: (F, C, X, Y), or (F, C)."""
    encoder, decoder = layer.get_submodule("encoder"), layer.get_submodule("decoder")
    E, D = (factor.get_parameter("weight").detach().double() for factor in (encoder, decoder))
    return multiplied(E, D, _groups(encoder))


def multiplied(E: Tensor, D: Tensor, groups: int = 1) -> Tensor:
    """The dense weight, (F, C, X, Y) or (F, C), of an encoder's and a decoder's weights."""
    E_GJIXY = E.reshape(groups, E.shape[0] // groups, *(*E.shape, 1, 1)[1:4])
    D_FGJUV = D.reshape(D.shape[0], groups, -1, *(*D.shape, 1, 1)[2:4])
    # along each kernel axis one of the two sizes is 1: the outer product is the kernel
    W = torch.einsum("gjixy,fgjuv->fgiuxvy", E_GJIXY, D_FGJUV)
    W = W.flatten(5, 6).flatten(3, 4).flatten(1, 2)
    return W if E.dim() == 4 else W.flatten(1)


def _groups(encoder: nn.Module) -> int:
    return int(getattr(encoder, "groups", 1))


def _matrix_shape(info: LayerInfo, folding: int) -> tuple[int, int]:
    """Rows and columns of the folded, unsliced weight."""
    encoder, decoder = split_kernel(info.kernel, folding)
    return info.out_features * decoder[0] * decoder[1], info.in_features * encoder[0] * encoder[1]


def _linear_pair(module: nn.Linear, factors: Factors) -> tuple[nn.Module, nn.Module]:
    groups, inner = factors.groups, factors.groups * factors.rank
    encoder = (
        nn.Linear(module.in_features, inner, bias=False)
        if groups == 1
        else GroupedLinear(module.in_features, inner, groups)
    )
    return encoder, nn.Linear(inner, module.out_features, bias=factors.bias)


def _conv_pair(module: nn.Conv2d, factors: Factors) -> tuple[nn.Module, nn.Module]:
    groups, inner = factors.groups, factors.groups * factors.rank
    own = ENCODER_AXES[factors.folding]

    def conv(inputs: int, outputs: int, axes: tuple[bool, bool], conv_groups: int, bias: bool) -> nn.Conv2d:
        def mine(values: tuple[int, ...], neutral: int) -> tuple[int, int]:
            first, second = (v if a else neutral for v, a in zip(values, axes, strict=True))
            return first, second

        padding = module.padding if isinstance(module.padding, str) else mine(module.padding, 0)
        return nn.Conv2d(
            inputs, outputs, mine(module.kernel_size, 1), mine(module.stride, 1), padding,
            mine(module.dilation, 1), conv_groups, bias, module.padding_mode,
        )  # fmt: skip

    encoder = conv(module.in_channels, inner, own, groups, False)
    return encoder, conv(inner, module.out_channels, (not own[0], not own[1]), 1, factors.bias)

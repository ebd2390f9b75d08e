"""A layer as a product of two smaller ones, y = U(Vx) + b: foldings of its weight, shapes and costs of the factors.

A folding decides which factor owns each axis of the kernel: the decoder owns axis a if bit a is set, else the encoder
does. A grouped layer is one matrix, folded and sliced like others, for each of its groups, here called blocks.

Shape suffixes: G = slices of input channels (all groups of all blocks), O = blocks, A = groups of a block, F = filters
(output features), H = F / O, C = input channels, I = C / G, R = rows of a folded slice, N = its columns, J = rank.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from experiment.errors import CompressionError, kind_of
from experiment.layers.compressible import (
    CONVOLUTIONS,
    LayerInfo,
    features_of,
    filters_of,
    groups_of,
    is_plain,
    kernel_of,
    kind_of_layer,
    weight_of,
)
from experiment.layers.grouped_linear import GroupedLinear
from experiment.layers.masks import stored, write_parameter
from experiment.layers.plan import Factors
from experiment.layers.transposed_linear import TransposedLinear

FOLDINGS = range(4)  # of a kernel with two axes
Slicing = tuple[int, int]  # groups, folding
MOST_OF_FACTORS = 16  # times the layer's weight; far above any useful rank, it limits the memory a file can ask for
MOST_OF_NESTED = 2  # times the weight of an encoder that has factors of its own; the full rank takes no more


class FactoredLayer(nn.Sequential):
    """An encoder and a decoder, with the attributes of the layer that they replace.

    A forward pass may also read `weight`, `bias` and the layer's size attributes. The
    parameters, and their names in the state_dict, are those of `encoder` and `decoder` alone.
    """

    __jit_unused_properties__: tuple[str, ...] = ("weight", "bias")  # torch.jit.script would compile them

    @property
    def weight(self) -> Tensor:
        """The product of the factors, in the layer's shape, computed at each use; gradients reach both factors."""
        return self._in_layout(self.filters(filters_of))

    def filters(self, read: Callable[[nn.Module, Tensor], Tensor]) -> Tensor:
        """The product as filters; `read` turns a plain layer's weight into filters of the wanted precision."""
        encoder, decoder = self._pair()
        return _multiplied(encoder, decoder, read)

    @property
    def bias(self) -> Tensor | None:
        """The decoder's bias, if it has one."""
        bias: Tensor | None = self._pair()[1].bias
        return bias

    def _in_layout(self, filters: Tensor) -> Tensor:
        return filters

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


class FactoredConv(FactoredLayer):
    """Two convolutions that replace one; along each axis one of them has its kernel, stride and padding."""

    __jit_unused_properties__ = (*FactoredLayer.__jit_unused_properties__, "in_channels", "out_channels")

    def __init__(self, pair: OrderedDict[str, nn.Module], replaced: _ConvNd) -> None:
        super().__init__(pair)
        self.kernel_size, self.stride, self.dilation = replaced.kernel_size, replaced.stride, replaced.dilation
        self.padding, self.padding_mode = replaced.padding, replaced.padding_mode
        self.output_padding, self.transposed = replaced.output_padding, replaced.transposed
        self.groups = replaced.groups

    @property
    def in_channels(self) -> int:
        return int(self._pair()[0].in_channels)

    @property
    def out_channels(self) -> int:
        return int(self._pair()[1].out_channels)

    def _in_layout(self, filters: Tensor) -> Tensor:
        return weight_of(self._pair()[1], filters)


class FactoredConvTranspose(FactoredConv):
    """Two transposed convolutions that replace one."""

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """As for `nn.ConvTranspose2d`: `output_size` takes the place of `output_padding`."""
        encoder, decoder = self._pair()
        if output_size is None:
            return decoder(encoder(input))  # type: ignore[no-any-return]
        dims = len(self.kernel_size)
        sizes = []  # the encoder's output has these along its own axes, and the input's along the decoder's
        for axis, (size, wanted) in enumerate(zip(input.shape[-dims:], output_size[-dims:], strict=True)):
            stride, reach = encoder.stride[axis], encoder.dilation[axis] * (encoder.kernel_size[axis] - 1)
            smallest = (size - 1) * stride - 2 * encoder.padding[axis] + reach + 1
            sizes.append(min(max(wanted, smallest), smallest + stride - 1))
        return decoder(encoder(input, sizes), output_size)  # type: ignore[no-any-return]


class FactoredEmbedding(FactoredLayer):
    """A narrower embedding and a linear layer that replace an `nn.Embedding`."""

    __jit_unused_properties__ = (
        *FactoredLayer.__jit_unused_properties__, "num_embeddings", "embedding_dim", "padding_idx",
    )  # fmt: skip

    @property
    def num_embeddings(self) -> int:
        return int(self._pair()[0].num_embeddings)

    @property
    def embedding_dim(self) -> int:
        return int(self._pair()[1].out_features)

    @property
    def padding_idx(self) -> int | None:
        padding: int | None = self._pair()[0].padding_idx
        return padding

    def _in_layout(self, filters: Tensor) -> Tensor:
        return filters.T if self.bias is None else filters.T + self.bias


def decoder_axes(dims: int, folding: int) -> tuple[bool, ...]:
    """Which kernel axes the decoder owns; bits beyond the last axis have no effect."""
    return tuple(bool(folding >> axis & 1) for axis in range(dims))


def split_kernel(kernel: tuple[int, ...], folding: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The kernels of encoder and decoder: each axis belongs to one of them, and the other has size 1."""
    axes = decoder_axes(len(kernel), folding)
    encoder = tuple(1 if theirs else size for size, theirs in zip(kernel, axes, strict=True))
    return encoder, tuple(size // own for size, own in zip(kernel, encoder, strict=True))


def fold(filters: Tensor, groups: int = 1, folding: int = 0, blocks: int = 1) -> Tensor:
    """The slices of contiguous input channels, each folded into a matrix: (G, R, N).

    Slicing comes first: a column never mixes channels of two groups. Rows are filter-major, then the decoder's kernel
    axes; columns are channel, then kernel axes for folding 0, and the encoder's kernel axes, then channel for others.

    Args:
        filters: (F, C / blocks, *kernel), see `experiment.layers.compressible.filters_of`.
        groups: a divisor of C / blocks.
        blocks: groups of the layer itself.
    """
    features, _, *kernel = filters.shape
    W_OHAI = filters.reshape(blocks, features // blocks, groups, -1, *kernel)
    axes = decoder_axes(len(kernel), folding)
    encoder, decoder = ([4 + a for a, theirs in enumerate(axes) if theirs is side] for side in (False, True))
    columns = [3, *encoder] if folding == 0 else [*encoder, 3]
    folded = W_OHAI.permute(0, 2, 1, *decoder, *columns)
    return folded.flatten(3 + len(decoder)).flatten(2, 2 + len(decoder)).flatten(0, 1)


def unfold(matrices_GRN: Tensor, shape: Sequence[int], folding: int = 0, blocks: int = 1) -> Tensor:
    """The inverse of `fold`: the filters of the given shape whose folded slices these are."""
    features, channels, *kernel = shape
    groups = len(matrices_GRN) // blocks
    axes = decoder_axes(len(kernel), folding)
    encoder, decoder = ([a for a, theirs in enumerate(axes) if theirs is side] for side in (False, True))
    sizes = {-1: channels // groups, **dict(enumerate(kernel))}
    columns = [-1, *encoder] if folding == 0 else [*encoder, -1]
    order = [*decoder, *columns]
    folded = matrices_GRN.reshape(blocks, groups, features // blocks, *(sizes[a] for a in order))
    places = [3 + order.index(a) for a in (-1, *range(len(kernel)))]
    return folded.permute(0, 2, 1, *places).reshape(tuple(shape))


def max_rank(info: LayerInfo, groups: int = 1, folding: int = 0) -> int:
    """The full rank of a layer's folded slices."""
    rows, columns = _matrix_shape(info, folding)
    return min(rows // info.groups, columns // (info.groups * groups))


def parameters(info: LayerInfo, rank: int, groups: int = 1, folding: int = 0) -> int:
    """Elements of both factors' weights (without the bias): rank * (groups * rows + columns)."""
    rows, columns = _matrix_shape(info, folding)
    return rank * (groups * rows + columns)


def flops(info: LayerInfo, rank: int, groups: int = 1, folding: int = 0) -> int:
    """Multiply-adds of one sample through both factors, each on its own grid, and through those of tied layers.

    A convolution multiplies at its outputs, a transposed one at its inputs. Between the factors the grid has the
    layer's output size along the encoder's axes, and its input size along the decoder's. An embedding looks up.
    """
    rows, columns = _matrix_shape(info, folding)
    axes = decoder_axes(len(info.kernel), folding) or (False,)
    between = sum(
        math.prod(i if theirs else o for i, o, theirs in zip(before, after, axes, strict=True))
        for before, after in zip(info.input_grids, info.output_grids, strict=True)
    )
    at_encoder, at_decoder = (info.positions, between) if info.transposed else (between, info.positions)
    at_encoder = 0 if info.kind == "embedding" else at_encoder
    own = rank * (groups * rows * at_decoder + columns * at_encoder)
    return own + sum(flops(tied, rank) for tied in info.tied)


def make_layer(
    module: nn.Module, factors: Factors, leader: nn.Module | None = None, *, most: int = MOST_OF_FACTORS
) -> FactoredLayer:
    """An uninitialised encoder and decoder of plain layers that can replace a layer, on its device.

    Stride, padding and dilation of an axis go to the factor that owns the kernel along it. `write_factors` or a
    state_dict fills the weights.

    Args:
        leader: the factors of an embedding with the same weight, whose parameters become those of this layer too.
        most: the largest size of the factors, times the layer's weight.
    Raises: CompressionError: the groups do not divide the input channels, the folding does not exist for the layer, or
        the rank is far above the full one.
    """
    if not isinstance(module, (*CONVOLUTIONS, nn.Linear, nn.Embedding)) or not is_plain(module):
        raise CompressionError(f"only convolutions, linear layers and embeddings have factors. Got {kind_of(module)}.")
    kind = kind_of_layer(module)
    channels, blocks, dims = features_of(module)[1], groups_of(module), len(kernel_of(module))
    most_groups = 1 if isinstance(module, nn.Embedding) else channels // blocks
    possible = factors.rank >= 1 and factors.groups >= 1 and most_groups % factors.groups == 0
    if not possible or not 0 <= factors.folding < 2**dims:
        raise CompressionError(
            f"a {kind} layer of {channels} inputs has no factors of rank {factors.rank}, {factors.groups} groups, "
            f"folding {factors.folding}: rank must be at least 1, groups a divisor, folding one of {[*range(2**dims)]}."
        )
    weight = module.weight
    with torch.device("meta"):  # takes no memory and no random numbers
        pair = _pair(module, factors)
    if sum(p.numel() for f in pair for p in f.parameters()) > most * weight.numel() + features_of(module)[0]:
        raise CompressionError(f"a {kind} layer of {weight.numel():,} weights has no factors of rank {factors.rank:,}.")
    for factor in pair:  # `to_empty` would import half a second of torch
        for name, p in dict(factor.named_parameters()).items():
            empty = torch.empty(p.shape, dtype=weight.dtype, device=weight.device)
            setattr(factor, name, nn.Parameter(empty, weight.requires_grad))
    if leader is not None:
        pair = _sharing(pair, leader)
    named = OrderedDict(encoder=pair[0], decoder=pair[1])
    if isinstance(module, _ConvNd):
        return (FactoredConvTranspose if module.transposed else FactoredConv)(named, module).train(module.training)
    layer = FactoredEmbedding(named) if isinstance(module, nn.Embedding) else FactoredLinear(named)
    return layer.train(module.training)


def write_factors(layer: nn.Module, U_GRJ: Tensor, V_GJN: Tensor, folding: int = 0) -> None:
    """Write the factors of the folded slices, W_g = U_g V_g, into an encoder and decoder, in place, masked or not."""
    encoder, decoder = layer.get_submodule("encoder"), layer.get_submodule("decoder")
    slices, rank = V_GJN.shape[:2]
    blocks, kernel = groups_of(decoder), kernel_of(encoder)
    if folding == 0:
        V = V_GJN.reshape(slices * rank, -1, *kernel)
    else:
        V = V_GJN.reshape(slices * rank, *kernel, -1).movedim(-1, 1)
    kernel = kernel_of(decoder)
    U_OAHJ = U_GRJ.reshape(blocks, slices // blocks, -1, *kernel, rank).movedim(-1, 3)
    U = U_OAHJ.transpose(1, 2).flatten(2, 3).flatten(0, 1)
    write_parameter(encoder, "weight", weight_of(encoder, V))
    write_parameter(decoder, "weight", weight_of(decoder, U))


def read_factors(layer: nn.Module, folding: int = 0) -> tuple[Tensor, Tensor]:
    """The inverse of `write_factors`: U (G, R, J) and V (G, J, N) of an unmasked encoder and decoder, in float64.

    For quantized factors these are the values before rounding.
    """
    encoder, decoder = layer.get_submodule("encoder"), layer.get_submodule("decoder")
    E, D = (filters_of(f, stored(f, "weight").detach().double()) for f in (encoder, decoder))
    slices, blocks = _slices(encoder, decoder), groups_of(decoder)
    rank = len(E) // slices
    V_GJN = (E if folding == 0 else E.movedim(1, -1)).reshape(slices, rank, -1)
    D_OHAJ = D.reshape(blocks, len(D) // blocks, slices // blocks, rank, -1)
    return D_OHAJ.permute(0, 2, 1, 4, 3).flatten(2, 3).flatten(0, 1), V_GJN


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
    """The dense weight that an encoder and decoder replace, multiplied in float64, as filters."""
    encoder, decoder = layer.get_submodule("encoder"), layer.get_submodule("decoder")
    return _multiplied(encoder, decoder, lambda factor, weight: filters_of(factor, weight.detach().double()))


def _multiplied(encoder: Any, decoder: Any, read: Callable[[nn.Module, Tensor], Tensor]) -> Tensor:
    """The filters (F, C / blocks, *kernel) that a decoder and an encoder, with factors of its own or not, replace.

    Args:
        read: from a plain layer and its weight to its filters, in the precision of the product.
    """
    slices, blocks = _slices(encoder, decoder), groups_of(decoder)
    nested = isinstance(encoder, FactoredLayer)
    E: Tensor = encoder.filters(read) if nested else read(encoder, encoder.weight)
    D = read(decoder, decoder.weight)
    E = E.reshape(blocks, slices // blocks, -1, *E.shape[1:])
    D = D.reshape(blocks, len(D) // blocks, slices // blocks, -1, *D.shape[2:])
    # along each kernel axis one of the two sizes is 1: the outer product is the kernel
    dims = E.dim() - 4
    own, other = "xyz"[:dims], "uvw"[:dims]
    kernel = "".join(u + x for u, x in zip(other, own, strict=True))
    W = torch.einsum(f"oaji{own},ohaj{other}->ohai{kernel}", E, D)
    for axis in range(dims):
        W = W.flatten(4 + axis, 5 + axis)
    return W.flatten(2, 3).flatten(0, 1)


def _slices(encoder: nn.Module, decoder: nn.Module) -> int:
    """The slices of the layer that they replace: the encoder's groups, of which a decoder's group reads several."""
    return max(groups_of(encoder), groups_of(decoder))


def _matrix_shape(info: LayerInfo, folding: int) -> tuple[int, int]:
    """Rows and columns of the folded, unsliced weight."""
    encoder, decoder = split_kernel(info.kernel, folding)
    return info.out_features * math.prod(decoder), info.in_features * math.prod(encoder)


def _pair(module: nn.Module, factors: Factors) -> tuple[nn.Module, nn.Module]:
    features, channels = features_of(module)
    slices = groups_of(module) * factors.groups
    inner = slices * factors.rank
    if isinstance(module, _ConvNd):
        theirs = decoder_axes(len(module.kernel_size), factors.folding)
        own = tuple(not axis for axis in theirs)
        encoder = _convolution(module, (channels, inner), own, slices, bias=False)
        return encoder, _convolution(module, (inner, features), theirs, module.groups, bias=factors.bias)
    decoder = nn.Linear(inner, features, bias=factors.bias)
    if isinstance(module, nn.Embedding):
        table = nn.Embedding(
            channels, inner, module.padding_idx, scale_grad_by_freq=module.scale_grad_by_freq, sparse=module.sparse
        )
        return table, decoder
    grouped = slices > 1
    return GroupedLinear(channels, inner, slices) if grouped else nn.Linear(channels, inner, bias=False), decoder


def _convolution(
    module: _ConvNd, channels: tuple[int, int], axes: Sequence[bool], groups: int, *, bias: bool
) -> nn.Module:
    """A convolution of the same kind with the module's kernel, stride, padding and dilation along some axes."""

    def mine(values: Sequence[int], neutral: int) -> tuple[int, ...]:
        return tuple(v if own else neutral for v, own in zip(values, axes, strict=True))

    make: Any = next(kind for kind in CONVOLUTIONS if isinstance(module, kind))
    more = {"output_padding": mine(module.output_padding, 0)} if module.transposed else {}
    made: nn.Module = make(
        *channels, mine(module.kernel_size, 1), stride=mine(module.stride, 1),
        padding=module.padding if isinstance(module.padding, str) else mine(module.padding, 0),
        dilation=mine(module.dilation, 1), groups=groups, bias=bias, padding_mode=module.padding_mode, **more,
    )  # fmt: skip
    return made


def _sharing(pair: tuple[nn.Module, nn.Module], leader: nn.Module) -> tuple[nn.Module, nn.Module]:
    """A linear layer's or an embedding's factors with the parameters of an embedding that has the same weight."""
    table, small = (stored(leader.get_submodule(n), "weight") for n in ("encoder", "decoder"))
    encoder, decoder = pair
    shared = small if isinstance(encoder, nn.Embedding) else table
    if decoder.weight.shape != shared.shape:
        raise CompressionError("layers that share a weight must have factors of the same rank.")
    decoder.weight = shared
    if not isinstance(encoder, nn.Embedding):
        return TransposedLinear(small), decoder
    encoder.weight = table
    return encoder, decoder

"""Quantized weights: rounded to floats, integers or a codebook of few bits from a float32 master, which is trained.

`weight = round(original)` is computed at every use, after a mask if there is one. Gradients pass straight through to
the master, so a quantized network can be retrained, and always computes with rounded weights.

A dtype is a text: `int8` has a scale for every output channel, `int8/32` one for every 32 of its inputs; `codebook16`
has 16 values of its own for the whole tensor.
Suffixes: F = rows of the flattened weight, G = groups of its columns, N = columns of a group, K = values of a codebook.

Source: Jacob et al. 2018, https://arxiv.org/abs/1712.05877 (simulated quantization in training); Bengio et al. 2013,
https://arxiv.org/abs/1308.3432 (straight-through gradient). Codebooks: `experiment.layers.codebooks`.
"""

import re
from collections.abc import Mapping
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils import parametrize

from experiment.errors import CompressionError, kind_of
from experiment.layers.codebooks import fit_codebook

FLOATS: Mapping[str, torch.dtype] = {"float16": torch.float16, "bfloat16": torch.bfloat16}
LEVELS: Mapping[str, int] = {"int8": 127, "int4": 7}  # to either side of zero
CODEBOOKS: Mapping[str, int] = {"codebook2": 2, "codebook4": 4, "codebook16": 16, "codebook256": 256}  # values
BITS: Mapping[str, int] = {
    "float16": 16, "bfloat16": 16, "int8": 8, "int4": 4, "codebook2": 1, "codebook4": 2, "codebook16": 4,
    "codebook256": 8,
}  # fmt: skip
DTYPES = tuple(BITS)
PATTERN = r"^(float16|bfloat16|int8|int4|int[48]/[1-9][0-9]*|codebook(2|4|16|256))$"
ELEMENTS = 2**22  # of a weight that are quantized at a time, in float32
_CUT_BITS = 7  # of a scale's mantissa: the rest times a code of 7 bits is exact in float32
_SMALLEST = torch.finfo(torch.float32).tiny

Number = TypeVar("Number", int, NDArray[np.int64])
Codes = tuple[Tensor, Tensor | None]
"""A quantized weight and, for integers, its scales: (F,), or (F, G) if there are groups; for codebooks (K,) values."""


@runtime_checkable
class Masking(Protocol):
    """What holds weights at zero: the places that its mask leaves are True."""

    mask: Tensor


class Quantized(nn.Module):
    """Rounds a weight to `dtype`, with straight-through gradients. Values that are not finite become NaN.

    Attributes:
        masks: those of the same weight. They are its own modules elsewhere, so they are in no module list here.
    """

    def __init__(self, dtype: str) -> None:
        super().__init__()
        self.dtype = dtype
        self.masks: tuple[Masking, ...] = ()

    def forward(self, weight: Tensor) -> Tensor:
        live = self.masks[0].mask if self.masks else None
        rounded = round_to(weight.detach(), self.dtype, live).to(weight.dtype)
        return rounded + (weight - weight.detach())  # the difference is exactly zero, its gradient is not

    def extra_repr(self) -> str:
        return self.dtype


def add_quantized(network: nn.Module, dtypes: Mapping[str, str]) -> None:
    """Compute with rounded weights, in place; the parameters remain as float32 masters.

    float16 and bfloat16 round a layer's weight and bias, as in Condensa; integers and codebooks only the weight.

    Args:
        dtypes: name of a layer, or of a single parameter -> its dtype, for all factors of a decomposed layer.
    Raises: CompressionError: a module has no matrix `weight`, or the dtype is another one.
    """
    modules = dict(network.named_modules())
    for name, dtype in dtypes.items():
        if not re.fullmatch(PATTERN, dtype):
            raise CompressionError(
                f"{name}: dtype must be one of {', '.join(DTYPES)}, or an integer with the inputs per scale, such as "
                f"int4/32. Got {dtype!r}."
            )
        if name not in modules:
            module, _, parameter = name.rpartition(".")
            attach(modules[module], parameter, Quantized(dtype))
            continue
        for part in _parts(modules[name]):
            weight = getattr(part, "weight", None)
            if not isinstance(weight, Tensor) or weight.dim() < 2:
                raise CompressionError(f"{name}: only matrices can be quantized. Got {kind_of(part)}.")
            _quantize(part, dtype)


def round_to(weight: Tensor, dtype: str, live: Tensor | None = None) -> Tensor:
    """A weight rounded to `dtype`, in float32. Arguments as for `encode`."""
    rounded = decode(*encode(weight, dtype, live), dtype)
    return rounded if live is None or dtype not in CODEBOOKS else rounded.masked_fill_(~live, 0)


def encode(weight: Tensor, dtype: str, live: Tensor | None = None) -> Codes:
    """Quantize a weight.

    float16, bfloat16: rounded to nearest; finite values beyond the range become the largest finite one.

    int8, int4: round(w / s), symmetric, with a scale s = max|w| / 127 or max|w| / 7 per output channel (index of the
    first dimension: of a transposed convolution an input channel, of an embedding a token) or per group of its inputs,
    the last of which may be smaller. A scale has 17 bits of mantissa, so that code times scale is exact and rounding
    again changes nothing, on any device. Groups of zeros, or of values below 1.5e-36, become zeros; groups with NaN or
    infinity become NaN.

    codebook2, 4, 16, 256: as many values as the name says, for the whole tensor, clustered anew at every call. A tensor
    that has no more values keeps them, so rounding again changes nothing. With a NaN or an infinity all become NaN.
    Masked weights are zero and have no value of the codebook, so they take no part in it; other zeros do.

    Args:
        weight: (F, ...), output channels first; a bias only with float16 and bfloat16.
        dtype: one of `DTYPES`; integers also with the size of groups, such as int4/32.
        live: True for weights that are not masked, in the weight's shape. Codes of the others mean nothing.
    """
    kind, size = _parsed(dtype)
    if kind in CODEBOOKS:
        clustered: Codes = _clustered(weight, CODEBOOKS[kind], live)
        return clustered
    if kind in FLOATS:
        most = torch.finfo(FLOATS[kind]).max
        return torch.where(weight.isfinite(), weight.clamp(-most, most), weight).to(FLOATS[kind]), None
    rows = max(1, ELEMENTS // max(1, weight.shape[1:].numel()))
    pairs = [_integers(part, LEVELS[kind], size) for part in torch.split(weight, rows)]
    codes, scales_FG = pairs[0] if len(pairs) == 1 else map(torch.cat, zip(*pairs, strict=True))
    return codes, scales_FG.flatten() if size is None else scales_FG


def _integers(weight: Tensor, levels: int, size: int | None) -> tuple[Tensor, Tensor]:
    """The codes of some rows, and their scales (F, G)."""
    groups_FGN = _grouped(weight.float(), size)
    scales_FG = _scales(groups_FGN, levels)
    divisors_FG1 = torch.where(scales_FG > 0, scales_FG, 1)[..., None]
    codes_FGN = (groups_FGN / divisors_FG1).round().clamp(-levels, levels).nan_to_num(0)
    return _ungrouped(codes_FGN, weight.shape).to(torch.int8), scales_FG


def decode(codes: Tensor, scales: Tensor | None, dtype: str) -> Tensor:
    """The inverse of `encode`, in float32: the rounded weight."""
    if scales is not None and dtype in CODEBOOKS:
        return scales.float()[codes.long()]
    values = codes.float()
    if scales is None:
        return values
    groups_FGN = _grouped(values, _parsed(dtype)[1])
    return _ungrouped(groups_FGN * scales.reshape(*groups_FGN.shape[:2], 1), codes.shape)


def levels_of(dtype: str) -> int | None:
    """The largest code of an integer dtype; None for others."""
    return LEVELS.get(_parsed(dtype)[0])


def code_dtype(dtype: str) -> torch.dtype:
    """Torch's type of the codes of `encode`."""
    kind = _parsed(dtype)[0]
    return torch.uint8 if kind in CODEBOOKS else FLOATS.get(kind, torch.int8)


def code_bytes(number: Number, dtype: str, *, with_masked: bool = False) -> Number:
    """Bytes of this many codes in a row, in whole bytes; also of an array of numbers.

    Args:
        with_masked: whether masked weights have a code, too. The zero is one value more than a codebook has.
    """
    kind = _parsed(dtype)[0]
    return -(-number * (BITS[kind] + (with_masked and kind in CODEBOOKS)) // 8)


def num_scales(rows: Number, columns: Number, dtype: str) -> Number | int:
    """The number of scales or codebook values, of 4 bytes each, of a weight as a matrix; also for arrays of both."""
    kind, size = _parsed(dtype)
    if kind in FLOATS or kind in CODEBOOKS:
        return CODEBOOKS.get(kind, 0)
    return rows * -(-columns // (size or columns))


def named_dtypes(network: nn.Module) -> dict[str, str]:
    """Parameter name (as on the plain network) -> dtype, for every quantized parameter in the network."""
    return {
        f"{name}.{parameter}" if name else parameter: link.dtype
        for name, module in network.named_modules()
        if isinstance(chains := dict(module.named_children()).get("parametrizations"), nn.ModuleDict)
        for parameter, chain in chains.items()
        for link in chain.children()
        if isinstance(link, Quantized)
    }


def own_class(module: nn.Module) -> None:
    """Give a parametrized module a class of its own.

    Torch keeps track of parametrized tensors in the module's class, which deep copies share. Without this, masking,
    quantizing or baking a copy changes the module that it was copied from.
    """
    shared = type(module)
    module.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))


def make_plain(module: nn.Module, name: str) -> None:
    """Make a parametrized tensor a parameter of its present value, in place."""
    own_class(module)
    parametrize.remove_parametrizations(module, name)
    if isinstance(module, nn.RNNBase) and not parametrize.is_parametrized(module):
        module._init_flat_weights()  # the list that it computes with


def attach(module: nn.Module, name: str, link: nn.Module) -> None:
    """Add a parametrization to a parameter, in place, which recurrent layers notice, too."""
    if parametrize.is_parametrized(module):
        own_class(module)
    parametrize.register_parametrization(module, name, link, unsafe=True)
    links = list(module.parametrizations[name].children())  # type: ignore[union-attr, index]
    for own in links:
        if isinstance(own, Quantized):
            own.masks = tuple(other for other in links if isinstance(other, Masking))
    if isinstance(module, nn.RNNBase):
        vars(module).pop("_flat_weights", None)  # a list that torch makes once, of weights as they are then
        type(module)._flat_weights = property(_weights_now, _ignore)  # type: ignore[assignment]


def _weights_now(module: nn.RNNBase) -> list[Tensor | None]:
    return [getattr(module, name, None) for name in module._flat_weights_names]


def _ignore(module: nn.RNNBase, value: object) -> None:
    """What torch assigns to `_flat_weights`."""


def _parts(layer: nn.Module) -> list[nn.Module]:
    """The factors of a decomposed layer, which may have factors themselves; another layer alone."""
    factors = [part for name, part in layer.named_children() if name in ("encoder", "decoder")]
    return [part for factor in factors for part in _parts(factor)] or [layer]


def _quantize(layer: nn.Module, dtype: str) -> None:
    attach(layer, "weight", Quantized(dtype))
    if dtype in FLOATS and getattr(layer, "bias", None) is not None:
        attach(layer, "bias", Quantized(dtype))


@torch.library.custom_op("experiment::clustered", mutates_args=())
def _clustered(weight: Tensor, number: int, live: Tensor | None) -> tuple[Tensor, Tensor]:
    """The codes of a weight, and its codebook (K,); one operator for torch.compile, which must not trace the search."""
    values = (weight if live is None else weight[live]).flatten().float()
    if not bool(values.isfinite().all()):
        return torch.zeros_like(weight, dtype=torch.uint8), torch.full((number,), torch.nan, device=weight.device)
    table, tops = fit_codebook(values, number)
    codes = torch.empty_like(weight, dtype=torch.uint8)  # in the weight's memory format
    return codes.copy_(torch.bucketize(weight.float().contiguous(), tops)), table


@_clustered.register_fake
def _shapes_of_clustered(weight: Tensor, number: int, live: Tensor | None) -> tuple[Tensor, Tensor]:
    return torch.empty_like(weight, dtype=torch.uint8), weight.new_empty(number, dtype=torch.float32)


def _parsed(dtype: str) -> tuple[str, int | None]:
    """One of `DTYPES`, and the size of its groups."""
    kind, _, size = dtype.partition("/")
    return kind, int(size) if size else None


def _grouped(weight: Tensor, size: int | None) -> Tensor:
    """Groups of columns, the last one filled up with zeros: (F, G, N)."""
    flat = weight.flatten(1)
    size = min(size or flat.shape[1], flat.shape[1])
    return torch.unflatten(pad(flat, (0, -flat.shape[1] % size)), 1, (-1, size))


def _ungrouped(groups_FGN: Tensor, shape: torch.Size) -> Tensor:
    return groups_FGN.flatten(1)[:, : shape[1:].numel()].reshape(shape)


def _scales(groups_FGN: Tensor, levels: int) -> Tensor:
    """The scale of every group, (F, G): zero for zeros, NaN where values are not finite."""
    largest = groups_FGN.abs().amax(2)
    divisors = torch.full_like(largest, levels)  # GPUs multiply by the inverse of a number, which changes the last bit
    exact = torch.where(largest.isfinite(), largest, torch.nan) / divisors
    half = 1 << (_CUT_BITS - 1)
    cut = ((exact.view(torch.int32) + half) & -(1 << _CUT_BITS)).view(torch.float32)  # to nearest, carry included
    return torch.where(exact < _SMALLEST, torch.zeros_like(exact), cut)

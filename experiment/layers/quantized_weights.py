"""Quantized weights: rounded to float16, bfloat16, int8 or int4 from a float32 master, which is trained.

`weight = round(original)` is computed at every use, after a mask if there is one. Gradients pass straight through to
the master, so a quantized network can be retrained, and always computes with rounded weights.

A dtype is a text: `int8` has a scale for every output channel, `int8/32` one for every 32 of its inputs.
Suffixes: F = rows of the flattened weight, G = groups of its columns, N = columns of a group.

Source: Jacob et al. 2018, https://arxiv.org/abs/1712.05877 (simulated quantization in training); Bengio et al. 2013,
https://arxiv.org/abs/1308.3432 (straight-through gradient).
"""

import re
from collections.abc import Mapping
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils import parametrize

from experiment.errors import CompressionError, kind_of

FLOATS: Mapping[str, torch.dtype] = {"float16": torch.float16, "bfloat16": torch.bfloat16}
LEVELS: Mapping[str, int] = {"int8": 127, "int4": 7}  # to either side of zero
BITS: Mapping[str, int] = {"float16": 16, "bfloat16": 16, "int8": 8, "int4": 4}
DTYPES = tuple(BITS)
PATTERN = r"^(float16|bfloat16|int8|int4|int[48]/[1-9][0-9]*)$"
_CUT_BITS = 7  # of a scale's mantissa: the rest times a code of 7 bits is exact in float32
_SMALLEST = torch.finfo(torch.float32).tiny

Number = TypeVar("Number", int, NDArray[np.int64])
Codes = tuple[Tensor, Tensor | None]
"""A quantized weight and, for integers, its scales: (F,), or (F, G) if there are groups."""


class Quantized(nn.Module):
    """Rounds a weight to `dtype`, with straight-through gradients. Values that are not finite become NaN."""

    def __init__(self, dtype: str) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, weight: Tensor) -> Tensor:
        rounded = round_to(weight.detach(), self.dtype).to(weight.dtype)
        return rounded + (weight - weight.detach())  # the difference is exactly zero, its gradient is not

    def extra_repr(self) -> str:
        return self.dtype


def add_quantized(network: nn.Module, dtypes: Mapping[str, str]) -> None:
    """Compute with rounded weights, in place; the parameters remain as float32 masters.

    float16 and bfloat16 round a layer's weight and bias, as in Condensa; integers only the weight.

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


def round_to(weight: Tensor, dtype: str) -> Tensor:
    """A weight rounded to `dtype`, in float32. Arguments as for `encode`."""
    return decode(*encode(weight, dtype), dtype)


def encode(weight: Tensor, dtype: str) -> Codes:
    """Quantize a weight.

    float16, bfloat16: rounded to nearest; finite values beyond the range become the largest finite one.

    int8, int4: round(w / s), symmetric, with a scale s = max|w| / 127 or max|w| / 7 per output channel (index of the
    first dimension: of a transposed convolution an input channel, of an embedding a token) or per group of its inputs,
    the last of which may be smaller. A scale has 17 bits of mantissa, so that code times scale is exact and rounding
    again changes nothing, on any device. Groups of zeros, or of values below 1.5e-36, become zeros; groups with NaN or
    infinity become NaN.

    Args:
        weight: (F, ...), output channels first; a bias only with float16 and bfloat16.
        dtype: float16, bfloat16, int8 or int4; integers also with the size of groups, such as int4/32.
    """
    kind, size = _parsed(dtype)
    if kind in FLOATS:
        most = torch.finfo(FLOATS[kind]).max
        return torch.where(weight.isfinite(), weight.clamp(-most, most), weight).to(FLOATS[kind]), None
    groups_FGN = _grouped(weight.float(), size)
    scales_FG = _scales(groups_FGN, LEVELS[kind])
    divisors_FG1 = torch.where(scales_FG > 0, scales_FG, 1)[..., None]
    codes_FGN = (groups_FGN / divisors_FG1).round().clamp(-LEVELS[kind], LEVELS[kind]).nan_to_num(0)
    codes = _ungrouped(codes_FGN, weight.shape).to(torch.int8)
    return codes, scales_FG.flatten() if size is None else scales_FG


def decode(codes: Tensor, scales: Tensor | None, dtype: str) -> Tensor:
    """The inverse of `encode`, in float32: the rounded weight."""
    values = codes.float()
    if scales is None:
        return values
    groups_FGN = _grouped(values, _parsed(dtype)[1])
    return _ungrouped(groups_FGN * scales.reshape(*groups_FGN.shape[:2], 1), codes.shape)


def levels_of(dtype: str) -> int | None:
    """The largest code of an integer dtype; None for others."""
    return LEVELS.get(_parsed(dtype)[0])


def code_bytes(number: Number, dtype: str) -> Number:
    """Bytes of this many codes in a row, in whole bytes; also of an array of numbers."""
    return -(-number * BITS[_parsed(dtype)[0]] // 8)


def num_scales(rows: Number, columns: Number, dtype: str) -> Number | int:
    """The number of scales, of 4 bytes each, of a weight as a matrix; also for arrays of both."""
    kind, size = _parsed(dtype)
    if kind in FLOATS:
        return 0
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


def _parsed(dtype: str) -> tuple[str, int | None]:
    """float16, bfloat16, int8 or int4, and the size of its groups."""
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

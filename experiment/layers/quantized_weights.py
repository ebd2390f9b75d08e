"""Quantized weights: rounded to float16, bfloat16 or int8 from a float32 master, which is trained.

`weight = round(original)` is computed at every use, after a mask if there is one. Gradients pass straight through to
the master, so a quantized network can be retrained, and always computes with rounded weights.

Source: Jacob et al. 2018, https://arxiv.org/abs/1712.05877 (simulated quantization in training); Bengio et al. 2013,
https://arxiv.org/abs/1308.3432 (straight-through gradient).
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from experiment.errors import CompressionError, kind_of

FLOATS: Mapping[str, torch.dtype] = {"float16": torch.float16, "bfloat16": torch.bfloat16}
DTYPES = (*FLOATS, "int8")
LEVELS = 127  # of int8, to either side of zero
_CUT_BITS = 7  # of a scale's mantissa: the rest times a code of 7 bits is exact in float32
_SMALLEST = torch.finfo(torch.float32).tiny

Codes = tuple[Tensor, Tensor | None]
"""A quantized weight and, for int8, the scales of its output channels."""


class Quantized(nn.Module):
    """Rounds a weight to `dtype`, with straight-through gradients. Values that are not finite become NaN."""

    def __init__(self, dtype: str) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, weight: Tensor) -> Tensor:
        rounded = decode(*encode(weight.detach(), self.dtype)).to(weight.dtype)
        return rounded + (weight - weight.detach())  # the difference is exactly zero, its gradient is not

    def extra_repr(self) -> str:
        return self.dtype


def add_quantized(network: nn.Module, dtypes: Mapping[str, str]) -> None:
    """Compute with rounded weights, in place; the parameters remain as float32 masters.

    float16 and bfloat16 round a layer's weight and bias, as in Condensa; int8 rounds only the weight.

    Args:
        dtypes: name of a layer, or of a single parameter -> float16, bfloat16 or int8, for both factors of a decomposed
            layer.
    Raises: CompressionError: a module has no matrix `weight`, or the dtype is another one.
    """
    modules = dict(network.named_modules())
    for name, dtype in dtypes.items():
        if dtype not in DTYPES:
            raise CompressionError(f"{name}: dtype must be one of {', '.join(DTYPES)}. Got {dtype!r}.")
        if name not in modules:
            module, _, parameter = name.rpartition(".")
            attach(modules[module], parameter, Quantized(dtype))
            continue
        factors = [part for n, part in modules[name].named_children() if n in ("encoder", "decoder")]
        for part in factors or [modules[name]]:
            weight = getattr(part, "weight", None)
            if not isinstance(weight, Tensor) or weight.dim() < 2:
                raise CompressionError(f"{name}: only matrices can be quantized. Got {kind_of(part)}.")
            _quantize(part, dtype)


def round_to(weight: Tensor, dtype: str) -> Tensor:
    """A weight rounded to `dtype`, in float32. Arguments as for `encode`."""
    return decode(*encode(weight, dtype))


def encode(weight: Tensor, dtype: str) -> Codes:
    """Quantize a weight.

    float16, bfloat16: rounded to nearest; finite values beyond the range become the largest finite one. int8: symmetric
    with one scale per output channel (index of the first dimension: of a transposed convolution an input channel, of an
    embedding a token), round(w / s) with s = max|w| / 127 over the channel. A scale has 17 bits of
    mantissa, so that code times scale is exact and rounding again changes nothing, on any device. Channels of zeros, or
    of values below 1.5e-36, become zeros; channels with NaN or infinity become NaN.

    Args:
        weight: (F, ...), output channels first; a bias only with float16 and bfloat16.
        dtype: float16, bfloat16 or int8.
    """
    if dtype in FLOATS:
        most = torch.finfo(FLOATS[dtype]).max
        return torch.where(weight.isfinite(), weight.clamp(-most, most), weight).to(FLOATS[dtype]), None
    assert dtype == "int8", dtype
    scales = _scales(weight)
    divisors = _over_channels(torch.where(scales > 0, scales, 1), weight.dim())
    codes = (weight.float() / divisors).round().clamp(-LEVELS, LEVELS).nan_to_num(0)
    return codes.to(torch.int8), scales


def decode(codes: Tensor, scales: Tensor | None) -> Tensor:
    """The inverse of `encode`, in float32: the rounded weight."""
    values = codes.float()
    return values if scales is None else values * _over_channels(scales, codes.dim())


def element_size(dtype: str) -> int:
    """Bytes of one element."""
    return FLOATS.get(dtype, torch.int8).itemsize


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


def _quantize(layer: nn.Module, dtype: str) -> None:
    attach(layer, "weight", Quantized(dtype))
    if dtype in FLOATS and getattr(layer, "bias", None) is not None:
        attach(layer, "bias", Quantized(dtype))


def _scales(weight: Tensor) -> Tensor:
    """One scale per output channel, (F,): zero for zeros, NaN where values are not finite."""
    largest = weight.float().flatten(1).abs().amax(1)
    levels = torch.full_like(largest, LEVELS)  # GPUs multiply by the inverse of a number, which changes the last bit
    exact = torch.where(largest.isfinite(), largest, torch.nan) / levels
    half = 1 << (_CUT_BITS - 1)
    cut = ((exact.view(torch.int32) + half) & -(1 << _CUT_BITS)).view(torch.float32)  # to nearest, carry included
    return torch.where(exact < _SMALLEST, torch.zeros_like(exact), cut)


def _over_channels(scales: Tensor, dims: int) -> Tensor:
    return scales.reshape(-1, *[1] * (dims - 1))

"""Where modules and bare parameters hold channels: which dimension of which tensor is an output or an input channel."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CHANNEL_MAKERS = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear, nn.Embedding)
SWAPPED = (*TRANSPOSED, nn.Embedding)  # their weight holds output channels along dimension 1
LAYER_NORMS = (nn.LayerNorm, nn.RMSNorm)
PLAIN_NORMS = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm,
    nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
)  # fmt: skip
_TENSORS = frozenset({"weight", "bias", "running_mean", "running_var"})
Axes = tuple[int | None, int | None]
Side = Literal["out", "in", "made", "taken"]
SIDES: tuple[Side, ...] = ("out", "in", "made", "taken")


def is_sliceable(module: nn.Module) -> bool:
    """Whether channels can be removed from a module.

    It is a plain convolution, linear, embedding, normalisation or PReLU layer, or any module of one's own whose
    parameters are vectors with one value per channel (`is_vector_module`).
    """
    if parametrize.is_parametrized(module):
        return False
    if isinstance(module, TRANSPOSED) and module.groups > 1:
        return False
    if isinstance(module, LAYER_NORMS) and len(module.normalized_shape) != 1:
        return False
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return False
    known = isinstance(module, (*CHANNEL_MAKERS, *LAYER_NORMS, *PLAIN_NORMS, nn.GroupNorm, nn.PReLU))
    own = {n for n, _ in module.named_parameters()} <= _TENSORS  # a subclass or parametrization may hold more
    return (known and own) or is_vector_module(module)


def is_vector_module(module: nn.Module) -> bool:
    """Whether a user-defined module holds only one value per channel, such as Llama's RMSNorm or a frozen BatchNorm.

    Buffers count if they have a norm's names; others may be tables by position, such as the frequencies of rotations.
    """
    if type(module).__module__.startswith("torch.nn.") or any(True for _ in module.children()):
        return False
    shapes = {tensor.shape for tensor in _held(module).values()}
    vectors = len(shapes) == 1 and all(len(shape) == 1 and shape[0] > 1 for shape in shapes)
    named = _TENSORS.issuperset(name for name, _ in module.named_buffers(recurse=False))
    return vectors and named and not isinstance(module, CHANNEL_MAKERS)


def normalises_channels(module: nn.Module) -> bool:
    """Whether a module may compute statistics over its channels, so that they depend on which channels there are."""
    return isinstance(module, LAYER_NORMS) or is_vector_module(module)


def channel_counts(module: nn.Module) -> tuple[int, int]:
    """How many output and input channels a sliceable module has; equal if it has one channel dimension."""
    if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)):
        return module.out_channels, module.in_channels
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    if isinstance(module, nn.Embedding):
        return module.embedding_dim, module.num_embeddings
    if isinstance(module, LAYER_NORMS):
        return module.normalized_shape[0], module.normalized_shape[0]
    if isinstance(module, nn.GroupNorm):
        return module.num_channels, module.num_channels
    if isinstance(module, nn.PReLU):
        return module.num_parameters, module.num_parameters
    if isinstance(module, PLAIN_NORMS):
        return module.num_features, module.num_features
    size = len(next(iter(_held(module).values())))
    return size, size


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a sliceable module that hold channels."""
    own = _held(module)
    return own if is_vector_module(module) else {name: tensor for name, tensor in own.items() if name in _TENSORS}


def _held(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a module itself."""
    return {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}


def axes_of(module: nn.Module, tensor: Tensor) -> Axes:
    """The dimensions of one of its tensors that are output and input channels."""
    if tensor.dim() == 1:
        return 0, None
    if isinstance(module, nn.Embedding):
        return 1, None
    return (1, 0) if isinstance(module, TRANSPOSED) else (0, 1)


def channel_dim(module: nn.Module, x: Tensor) -> int:
    """The dimension of an input or output of a module that is its channels."""
    if isinstance(module, nn.Linear | nn.Embedding) or type(module) in LAYER_NORMS:
        return -1
    if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)):
        return -1 - len(module.kernel_size)
    if not normalises_channels(module):
        return 1
    size = channel_counts(module)[0]
    images = x.dim() > 1 and x.shape[1] == size and (x.shape[-1] != size or isinstance(module, LAYER_NORMS))
    return 1 if images else -1


def parameter_dim(shape: torch.Size | tuple[int, ...]) -> int | None:
    """The dimension of a bare parameter that may be channels: the last one of more than one element."""
    return next((d for d in reversed(range(len(shape))) if shape[d] > 1), None)


def filters_of(module: nn.Module, weight: Tensor) -> Tensor:
    """A layer's weight as one row per output channel: (out, weights)."""
    return (weight.transpose(0, 1) if isinstance(module, SWAPPED) else weight).flatten(1)


def bare_parameters(network: nn.Module) -> Mapping[str, nn.Parameter]:
    """The parameters that user-defined modules hold besides their layers, shared with none: matrices and vectors."""
    holders: dict[int, int] = {}
    for module in network.modules():
        for parameter in module.parameters(recurse=False):
            holders[id(parameter)] = holders.get(id(parameter), 0) + 1
    found: dict[str, nn.Parameter] = {}
    for name, module in network.named_modules():
        inside = type(module).__module__.startswith("torch.nn.") or isinstance(module, CHANNEL_MAKERS)
        if inside or is_sliceable(module) or parametrize.is_parametrized(module):
            continue
        for own, parameter in module.named_parameters(recurse=False):
            alone = holders[id(parameter)] == 1 and parameter.is_floating_point()
            if alone and 1 <= sum(size > 1 for size in parameter.shape) <= 2:
                found[f"{name}.{own}" if name else own] = parameter
    return found

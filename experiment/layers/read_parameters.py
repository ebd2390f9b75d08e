"""Names of parameters, and which of them an operation reads, found by the memory that its arguments share with them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from experiment.inputs import tensors


def is_matrix(parameter: Tensor) -> bool:
    """Whether two or more dimensions are above 1, unlike those of biases and normalization."""
    return max(parameter.shape, default=1) < parameter.numel()


def shown(parameter: str) -> str:
    """The name of a parameter in messages, tables and patterns: that of its layer, if it is a layer's weight."""
    return "" if parameter == "weight" else parameter.removesuffix(".weight")


def may_be_computed(network: nn.Module, parameter: str) -> bool:
    """Whether a mask or rounding can be attached to a parameter of this name.

    It is a module inside the holder, and containers such as Sequential would call it as one of theirs.
    """
    holder = network.get_submodule(parameter.rpartition(".")[0])
    return not isinstance(holder, nn.Sequential | nn.ModuleList | nn.ModuleDict)


class Sources:
    """The places in memory of a network's parameters.

    Args:
        parameters: by name; they must not be freed while this is used.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self._names = {parameter: name for name, parameter in parameters.items()}
        self._sizes = {name: parameter.numel() for name, parameter in parameters.items()}
        self._places: dict[int, list[tuple[int, int, str]]] = {}  # of storages: first element, last + 1, name
        for name, parameter in parameters.items():
            self._add(parameter, name)

    def add(self, value: Tensor, originals: Sequence[nn.Parameter]) -> None:
        """A tensor that is computed from these parameters, and counts as the parameter if it is only one."""
        if len(originals) == 1 and originals[0] in self._names:
            self._add(value, self._names[originals[0]])

    def of(self, *arguments: object) -> list[str]:
        """The parameters that are among the arguments of an operation, or that these are views of, largest first."""
        found = dict.fromkeys(name for tensor in tensors(arguments) for name in self._name(tensor))
        return sorted(found, key=lambda name: -self._sizes[name])

    def _add(self, tensor: Tensor, name: str) -> None:
        first = int(tensor.storage_offset()) if tensor.layout == torch.strided else 0
        self._places.setdefault(_storage(tensor), []).append((first, first + tensor.numel(), name))

    def _name(self, tensor: Tensor) -> list[str]:
        here = self._places.get(_storage(tensor), [])
        first = tensor.storage_offset() if here and tensor.layout == torch.strided else 0
        return [name for start, end, name in here if start <= first < end]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else id(tensor)

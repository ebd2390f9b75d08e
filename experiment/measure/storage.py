"""Bytes of a network's parameters, dense, as values alone and in sparse formats."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from experiment.layers.masks import named_masks, plain_name
from experiment.layers.quantized_weights import element_size, named_dtypes


@dataclass(frozen=True)
class Bytes:
    """Bytes of a network's parameters under three conventions.

    Quantized weights take the bytes of their type; int8 weights take four more per output channel for its scale.

    Attributes:
        dense: every element of the deployed tensors, masked or not.
        values: unmasked elements without any index, as Condensa reports it.
        sparse: per tensor the smallest of dense, values + one bit per element, and values + 32-bit column indices and
            row pointers (CSR, one row per output).
    """

    dense: int
    values: int
    sparse: int


def count_bytes(network: nn.Module) -> Bytes:
    """Bytes of the parameters of a network. Buffers, such as running statistics, are not counted."""
    dense = values = sparse = 0
    for sizes, masked in _tensor_bytes(network):
        dense += sizes["dense"]
        values += sizes["values"]
        sparse += min(sizes["dense"], sizes["bitmask"], sizes["csr"]) if masked else sizes["dense"]
    return Bytes(dense, values, sparse)


@dataclass(frozen=True)
class SparseBytes:
    """Bytes of a network's parameters with all masked tensors in one sparse format and the others dense.

    Attributes:
        bitmask: unmasked values and one bit per element.
        csr: unmasked values, 32-bit column indices and row pointers, one row per output.
        smallest: the smallest format: `dense`, `bitmask` or `csr`.
    """

    bitmask: int
    csr: int
    smallest: str


def count_sparse_bytes(network: nn.Module) -> SparseBytes:
    """Bytes of the parameters in each sparse format, without buffers."""
    totals = {"dense": 0, "bitmask": 0, "csr": 0}
    for sizes, masked in _tensor_bytes(network):
        for name in totals:
            totals[name] += sizes[name] if masked else sizes["dense"]
    smallest = min(totals, key=lambda name: totals[name])  # of equal ones the simplest
    return SparseBytes(totals["bitmask"], totals["csr"], smallest)


def _tensor_bytes(network: nn.Module) -> Iterator[tuple[dict[str, int], bool]]:
    """The bytes of each parameter by format, and whether it is masked."""
    masks, dtypes = named_masks(network), named_dtypes(network)
    for name, parameter in network.named_parameters():
        mask, dtype = masks.get(plain_name(name)), dtypes.get(plain_name(name))
        size, total = parameter.element_size() if dtype is None else element_size(dtype), parameter.numel()
        kept = total if mask is None else int(mask.sum())
        rows = parameter.shape[0] if parameter.dim() > 0 else 1
        bitmask, csr = kept * size + (total + 7) // 8, kept * (size + 4) + (rows + 1) * 4
        sizes = {"dense": total * size, "values": kept * size, "bitmask": bitmask, "csr": csr}
        scales = rows * 4 if dtype == "int8" else 0
        yield {name: bytes_ + scales for name, bytes_ in sizes.items()}, mask is not None

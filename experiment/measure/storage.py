"""Bytes of a network's parameters, dense, as values alone and in sparse formats."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from experiment.layers.masks import named_masks, plain_name
from experiment.layers.quantized_weights import code_bytes, named_dtypes, num_scales


@dataclass(frozen=True)
class Bytes:
    """Bytes of a network's parameters under three conventions.

    Quantized weights take the bytes of their type: int4 half a byte per element, in rows of whole bytes. Every scale of
    int8 and int4 takes four more: one per output channel, or per group of its inputs.

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
        total = parameter.numel()
        rows = max(parameter.shape[0], 1) if parameter.dim() > 0 else 1
        kept = total if mask is None else int(mask.sum())
        size = parameter.element_size()
        dense = total * size if dtype is None else rows * code_bytes(total // rows, dtype)
        values = kept * size if dtype is None else code_bytes(kept, dtype)
        bitmask, csr = values + (total + 7) // 8, values + kept * 4 + (rows + 1) * 4
        sizes = {"dense": dense, "values": values if mask is not None else dense, "bitmask": bitmask, "csr": csr}
        scales = 0 if dtype is None else 4 * num_scales(parameter.shape, dtype)
        yield {name: bytes_ + scales for name, bytes_ in sizes.items()}, mask is not None

"""Bytes of a network's parameters, dense, as values alone and in sparse formats."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from experiment.layers.compressible import LayerInfo
from experiment.layers.factored_layers import make_layer
from experiment.layers.forms import UNMASKED, Forms
from experiment.layers.masks import named_masks, plain_name
from experiment.layers.plan import Factors
from experiment.layers.quantized_weights import code_bytes, named_dtypes, num_scales

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Bytes:
    """Bytes of a network's parameters under three conventions.

    Quantized weights take the bytes of their type: int4 half a byte per element, in rows of whole bytes. Every scale of
    int8 and int4 takes four more: one per output channel, or per group of its inputs. So does every value of a
    codebook, one codebook per tensor.

    Attributes:
        dense: every element of the deployed tensors, masked or not. Zero is one value more than a codebook has, so with
            masks its codes have one bit more.
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
        rows = max(parameter.shape[0], 1) if parameter.dim() > 0 else 1
        kept = None if mask is None else int(mask.sum())
        sizes = _sizes(rows, parameter.numel() // rows, kept, dtype or "", parameter.element_size())
        yield sizes, mask is not None


def form_bytes(info: LayerInfo, layer: nn.Module, forms: Forms) -> Integers:
    """Bytes of a layer's forms, each tensor in its smallest format as in `count_bytes`: (number of forms,)."""
    found, size = np.zeros(len(forms), np.int64), layer.get_parameter("weight").element_size()
    biases = info.out_features * size
    for k, folding, dtype in sorted({*zip(forms.groups.tolist(), forms.foldings.tolist(), forms.dtypes, strict=True)}):
        same = (forms.groups == k) & (forms.foldings == folding) & (forms.dtypes == dtype)
        here = np.flatnonzero(same & (forms.ranks > 0))
        if len(here):
            for rows, columns in _factor_shapes(layer, k, folding, forms.ranks[here]):
                found[here] += _sizes(rows, columns, None, dtype, size)["dense"]
            found[here] += biases * forms.bias
        here = np.flatnonzero(same & (forms.ranks == 0))
        filters, kept = layer.get_parameter("weight").shape[0], forms.kept[here]
        sizes = _sizes(filters, info.weight_numel // filters, np.maximum(kept, 0), dtype, size)
        smallest = np.minimum(np.minimum(sizes["bitmask"], sizes["csr"]), sizes["dense"])
        found[here] = np.where(kept == UNMASKED, sizes["dense"], smallest) + biases * info.bias
    return found + size * sum(tied.out_features for tied in info.tied if tied.bias)


def shape_bytes(info: LayerInfo, layer: nn.Module, forms: Forms) -> Integers:
    """Bytes of a layer's forms in memory, where masks and fewer bits take as much as other weights."""
    kept, dtypes = np.full(len(forms), UNMASKED), np.full(len(forms), "")
    return form_bytes(info, layer, replace(forms, kept=kept, dtypes=dtypes))


def _factor_shapes(layer: nn.Module, groups: int, folding: int, ranks: Integers) -> list[tuple[Integers, Integers]]:
    """Rows and columns of encoder and decoder as matrices, which are linear in the rank."""
    top, found = int(ranks.max()), []
    small, large = (make_layer(layer, Factors(rank, groups, folding)) for rank in (1, top))
    for factor in ("encoder", "decoder"):
        sides = []
        for dim in (0, 1):
            a, b = (net.get_submodule(factor).get_parameter("weight").flatten(1).shape[dim] for net in (small, large))
            sides.append(a + (ranks - 1) * ((b - a) // max(1, top - 1)))
        found.append((sides[0], sides[1]))
    return found


def _sizes(rows: Any, columns: Any, kept: Any, dtype: str, itemsize: int) -> dict[str, Any]:
    """The bytes of a matrix by format; numbers or arrays. `kept` are its unmasked elements, None without a mask."""
    total = rows * columns
    dense = rows * code_bytes(columns, dtype, with_masked=kept is not None) if dtype else total * itemsize
    left = total if kept is None else kept
    values = code_bytes(left, dtype) if dtype else left * itemsize
    bitmask, csr = values + (total + 7) // 8, values + left * 4 + (rows + 1) * 4
    sizes = {"dense": dense, "values": dense if kept is None else values, "bitmask": bitmask, "csr": csr}
    scales = 4 * num_scales(rows, columns, dtype) if dtype else 0
    return {name: bytes_ + scales for name, bytes_ in sizes.items()}

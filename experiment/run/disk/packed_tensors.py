"""A state_dict packed for storage: masked weights without their zeros, quantized weights with their bits only.

Of a masked weight the values under its mask are stored, and the mask as one bit per element or as the gaps between
the values, whichever is shorter. Quantized weights take 8 or 16 bits per element.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiment.layers.quantized_weights import DTYPES, FLOATS, decode, encode

Masked = dict[str, dict[str, Any]]
"""Name of a masked weight -> `mask` (the name of its mask), `shape`, `values`, and their positions: `bits` or `gaps`.

`bits` has eight elements per byte. `gaps` are the distances between successive values, in elements of the flattened
weight; the first counts from position -1.
"""

Rounded = dict[str, dict[str, Any]]
"""Name of a quantized weight -> its `dtype` and, for int8, the `scales` of its output channels."""

MAX_ELEMENTS = 2**31 - 1  # of one weight
GAP_DTYPES = (torch.uint8, torch.int16, torch.int32, torch.int64)


def encode_state(state: Mapping[str, Tensor], dtypes: Mapping[str, str]) -> tuple[dict[str, Tensor], Rounded]:
    """Quantize weights of a state_dict on the CPU; returns their codes in place of the weights, and how to decode them.

    Args:
        dtypes: name in the state_dict -> dtype to which the network quantizes the weight (after masking).
    """
    coded, rounded = dict(state), Rounded()
    masks = {weight: state[mask] for mask, weight in _masks_of(state).items()}
    for name, dtype in dtypes.items():
        unmasked = state[name].masked_fill(~masks[name], 0) if name in masks else state[name]
        coded[name], scales = encode(unmasked, dtype)
        rounded[name] = {"dtype": dtype} if scales is None else {"dtype": dtype, "scales": scales}
    return coded, rounded


def decode_state(state: Mapping[str, Tensor], rounded: Mapping[str, Mapping[str, Any]]) -> dict[str, Tensor]:
    """The inverse of `encode_state`; quantized weights are float32.

    Raises: ValueError: codes, dtype and scales are inconsistent.
    """
    decoded = dict(state)
    for name, parts in rounded.items():
        codes, dtype, scales = state[name], parts["dtype"], parts.get("scales")
        if dtype not in DTYPES or codes.dtype != FLOATS.get(dtype, torch.int8) or (scales is None) != (dtype in FLOATS):
            raise ValueError(f"{name}: codes of {codes.dtype} do not belong to dtype {dtype}")
        if scales is not None and (
            scales.shape != codes.shape[:1] or not scales.is_floating_point() or not codes.dim()
        ):
            raise ValueError(f"{name}: codes of shape {tuple(codes.shape)}, scales of {tuple(scales.shape)}")
        decoded[name] = decode(codes, scales)
    return decoded


def pack(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Masked]:
    """Split a state_dict on the CPU into tensors that are stored as they are, and masked weights with their masks."""
    whole, masked = dict(state), Masked()
    for mask_name, weight_name in _masks_of(state).items():
        mask, weight = whole.pop(mask_name), whole.pop(weight_name)
        masked[weight_name] = {
            "mask": mask_name,
            "shape": list(mask.shape),
            **_positions(mask),
            "values": weight[mask],
        }
    return whole, masked


def unpack(whole: Mapping[str, Tensor], masked: Mapping[str, Mapping[str, Any]]) -> dict[str, Tensor]:
    """The inverse of `pack`; masked elements are zero.

    Raises: ValueError: positions and values are inconsistent.
    """
    state = dict(whole)
    for weight_name, parts in masked.items():
        shape, values = torch.Size(parts["shape"]), parts["values"]
        if math.prod(shape) > MAX_ELEMENTS:
            raise ValueError(f"{weight_name}: a weight of {math.prod(shape):,} elements is not read")
        mask = _mask(weight_name, parts, shape.numel()).reshape(shape)
        if values.shape != (int(mask.sum()),):
            raise ValueError(f"{weight_name}: its mask keeps {int(mask.sum())} values, got {tuple(values.shape)}")
        weight = torch.zeros(shape, dtype=values.dtype)
        weight[mask] = values
        state[weight_name], state[parts["mask"]] = weight, mask
    return state


def _positions(mask: Tensor) -> dict[str, Tensor]:
    """Where a mask is True, in the shorter of the two forms."""
    bits = torch.from_numpy(np.packbits(mask.numpy()))
    gaps = mask.flatten().nonzero().flatten().diff(prepend=torch.tensor([-1]))
    largest = int(gaps.max()) if len(gaps) else 0
    gaps = gaps.to(next(dtype for dtype in GAP_DTYPES if largest <= torch.iinfo(dtype).max))
    return {"gaps": gaps} if gaps.nbytes < bits.nbytes else {"bits": bits}


def _mask(name: str, parts: Mapping[str, Any], elements: int) -> Tensor:
    """The inverse of `_positions`: a mask of shape (elements,)."""
    if "gaps" in parts:
        gaps: Tensor = parts["gaps"]
        valid = gaps.dim() == 1 and gaps.dtype in GAP_DTYPES and len(gaps) <= elements
        gaps = gaps.long()
        # bounded one by one first, so that the sum cannot overflow
        if not valid or (len(gaps) and (gaps.min() < 1 or gaps.max() > elements or gaps.sum() > elements)):
            raise ValueError(f"{name}: its gaps lead out of its {elements} elements")
        mask = torch.zeros(elements, dtype=torch.bool)
        mask[gaps.cumsum(0) - 1] = True
        return mask
    bits = parts["bits"]
    if bits.dim() != 1 or bits.dtype != torch.uint8 or len(bits) != -(-elements // 8):
        raise ValueError(f"{name}: {elements} elements need another mask than {tuple(bits.shape)} of {bits.dtype}")
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=elements).astype(bool))


def _masks_of(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Name of each mask -> name of its weight, as torch's parametrizations name them."""
    found: dict[str, str] = {}
    for name, tensor in state.items():
        chain, _, last = name.rpartition(".")
        weight = f"{chain.rpartition('.')[0]}.original"
        is_mask = last == "mask" and tensor.dtype == torch.bool and "parametrizations." in chain
        if is_mask and weight in state and state[weight].shape == tensor.shape and weight not in found.values():
            found[name] = weight
    return found

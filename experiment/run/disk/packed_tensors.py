"""A state_dict packed for storage: masked weights without their zeros, quantized weights with their bits only.

Of a masked weight the values under its mask are stored, and the mask as one bit per element or as the gaps between
the values, whichever is shorter. Quantized weights take 8 or 16 bits per element.
"""

import math
from collections.abc import Mapping
from typing import Annotated

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, InstanceOf, StrictInt, StrictStr
from torch import Tensor

from experiment.layers.plan import MOST_DIMS, Name
from experiment.layers.quantized_weights import DTYPES, FLOATS, decode, encode

MAX_ELEMENTS = 2**31 - 1  # of one weight
GAP_DTYPES = (torch.uint8, torch.int16, torch.int32, torch.int64)


class MaskedWeight(BaseModel):
    """A masked weight without its zeros.

    Attributes:
        mask: the name of its mask.
        values: those under the mask.
        bits: the mask, eight elements per byte.
        gaps: or the distances between successive values, in elements of the flattened weight; the first counts from
            position -1.
    """

    model_config = ConfigDict(extra="forbid")

    mask: Name
    shape: Annotated[list[Annotated[StrictInt, Field(ge=0, lt=2**40)]], Field(max_length=MOST_DIMS)]
    values: InstanceOf[Tensor]
    bits: InstanceOf[Tensor] | None = None
    gaps: InstanceOf[Tensor] | None = None


class QuantizedWeight(BaseModel):
    """How to decode a quantized weight; `scales` of its output channels belong to int8."""

    dtype: StrictStr
    scales: InstanceOf[Tensor] | None = None


def encode_state(
    state: Mapping[str, Tensor], dtypes: Mapping[str, str]
) -> tuple[dict[str, Tensor], dict[str, QuantizedWeight]]:
    """Quantize weights of a state_dict on the CPU; returns their codes in place of the weights, and how to decode them.

    Args:
        dtypes: name in the state_dict -> dtype to which the network quantizes the weight (after masking).
    """
    coded, quantized = dict(state), {}
    masks = {weight: state[mask] for mask, weight in _masks_of(state).items()}
    for name, dtype in dtypes.items():
        unmasked = state[name].masked_fill(~masks[name], 0) if name in masks else state[name]
        coded[name], scales = encode(unmasked, dtype)
        quantized[name] = QuantizedWeight(dtype=dtype, scales=scales)
    return coded, quantized


def decode_state(state: Mapping[str, Tensor], quantized: Mapping[str, QuantizedWeight]) -> dict[str, Tensor]:
    """The inverse of `encode_state`; quantized weights are float32.

    Raises: ValueError: codes, dtype and scales are inconsistent.
    """
    decoded = dict(state)
    for name, how in quantized.items():
        codes, dtype, scales = state[name], how.dtype, how.scales
        if dtype not in DTYPES or codes.dtype != FLOATS.get(dtype, torch.int8) or (scales is None) != (dtype in FLOATS):
            raise ValueError(f"{name}: codes of {codes.dtype} do not belong to dtype {dtype}")
        if scales is not None and (
            scales.shape != codes.shape[:1] or not scales.is_floating_point() or not codes.dim()
        ):
            raise ValueError(f"{name}: codes of shape {tuple(codes.shape)}, scales of {tuple(scales.shape)}")
        decoded[name] = decode(codes, scales)
    return decoded


def pack(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, MaskedWeight]]:
    """Split a state_dict on the CPU into tensors that are stored as they are, and masked weights with their masks."""
    whole, masked = dict(state), {}
    for mask_name, weight_name in _masks_of(state).items():
        mask, weight = whole.pop(mask_name), whole.pop(weight_name)
        masked[weight_name] = MaskedWeight(
            mask=mask_name, shape=list(mask.shape), values=weight[mask], **_positions(mask)
        )
    return whole, masked


def unpack(whole: Mapping[str, Tensor], masked: Mapping[str, MaskedWeight]) -> dict[str, Tensor]:
    """The inverse of `pack`; masked elements are zero.

    Raises: ValueError: positions and values are inconsistent.
    """
    state = dict(whole)
    for name, packed in masked.items():
        if math.prod(packed.shape) > MAX_ELEMENTS:
            raise ValueError(f"{name}: a weight of {math.prod(packed.shape):,} elements is not read")
        mask, values = _mask(name, packed).reshape(packed.shape), packed.values
        if values.shape != (int(mask.sum()),):
            raise ValueError(f"{name}: its mask keeps {int(mask.sum())} values, got {tuple(values.shape)}")
        weight = torch.zeros(packed.shape, dtype=values.dtype)
        weight[mask] = values
        state[name], state[packed.mask] = weight, mask
    return state


def _positions(mask: Tensor) -> dict[str, Tensor]:
    """Where a mask is True, in the shorter of the two forms."""
    bits = torch.from_numpy(np.packbits(mask.numpy()))
    gaps = mask.flatten().nonzero().flatten().diff(prepend=torch.tensor([-1]))
    largest = int(gaps.max()) if len(gaps) else 0
    gaps = gaps.to(next(dtype for dtype in GAP_DTYPES if largest <= torch.iinfo(dtype).max))
    return {"gaps": gaps} if gaps.nbytes < bits.nbytes else {"bits": bits}


def _mask(name: str, packed: MaskedWeight) -> Tensor:
    """The inverse of `_positions`: the flattened mask."""
    elements, gaps, bits = math.prod(packed.shape), packed.gaps, packed.bits
    if gaps is not None:
        valid = gaps.dim() == 1 and gaps.dtype in GAP_DTYPES and len(gaps) <= elements
        gaps = gaps.long()
        # bounded one by one first, so that the sum cannot overflow
        if not valid or (len(gaps) and (gaps.min() < 1 or gaps.max() > elements or gaps.sum() > elements)):
            raise ValueError(f"{name}: its gaps exceed its {elements} elements")
        mask = torch.zeros(elements, dtype=torch.bool)
        mask[gaps.cumsum(0) - 1] = True
        return mask
    if bits is None or bits.dim() != 1 or bits.dtype != torch.uint8 or len(bits) != -(-elements // 8):
        raise ValueError(f"{name}: its mask is missing, or does not have {elements} elements")
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

"""A state_dict packed for storage: masked weights without their zeros, quantized weights with their bits only.

Of a masked weight the values under its mask are stored, and the mask as one bit per element or as the gaps between
the values, whichever is shorter. Quantized weights take 1, 2, 4, 8 or 16 bits per element.
"""

import math
import re
from collections.abc import Mapping
from typing import Annotated

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, InstanceOf, StrictInt, StrictStr
from torch import Tensor

from experiment.layers.plan import MOST_DIMS, Name
from experiment.layers.quantized_weights import (
    BITS,
    CODEBOOKS,
    ELEMENTS,
    FLOATS,
    PATTERN,
    code_bytes,
    code_dtype,
    decode,
    encode,
    num_scales,
)

MAX_ELEMENTS = 2**31 - 1  # of one weight
GAP_DTYPES = (torch.uint8, torch.int16, torch.int32, torch.int64)
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
Shape = Annotated[list[Annotated[StrictInt, Field(ge=0, lt=2**40)]], Field(max_length=MOST_DIMS)]


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
    shape: Shape
    values: InstanceOf[Tensor]
    bits: InstanceOf[Tensor] | None = None
    gaps: InstanceOf[Tensor] | None = None


class QuantizedWeight(BaseModel):
    """How to decode a quantized weight.

    Attributes:
        dtype: such as int8, int4/32 or codebook16.
        scales: those of integers: (F,), or (F, G) for G groups; the values of codebooks.
        shape: of a weight in 1 to 4 bits that is not masked; its codes are rows of bytes.
    """

    dtype: StrictStr
    scales: InstanceOf[Tensor] | None = None
    shape: Shape | None = None


Packed = tuple[dict[str, Tensor], dict[str, MaskedWeight], dict[str, QuantizedWeight]]
"""Tensors that are stored as they are, masked weights, and how to decode the quantized ones among both, by name."""


def pack_weights(state: Mapping[str, Tensor], dtypes: Mapping[str, str]) -> Packed:
    """Pack a state_dict, one weight after the other, so that not all of it is in memory in all forms.

    Args:
        dtypes: as for `encode_state`.
    """
    masks = _masks_of(state)
    mask_of = {weight: mask for mask, weight in masks.items()}
    whole, masked, quantized = dict[str, Tensor](), dict[str, MaskedWeight](), dict[str, QuantizedWeight]()
    for name in (name for name in state if name not in masks):
        together = [name, mask_of[name]] if name in mask_of else [name]
        part = {each: state[each].detach().cpu().contiguous() for each in together}
        coded, how = encode_state(part, {name: dtypes[name]} if name in dtypes else {})
        own, own_masked, how = join_codes(*pack(coded), how)
        whole |= own
        masked |= own_masked
        quantized |= how
    return whole, masked, quantized


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
        live = masks.get(name)
        unmasked = state[name] if live is None else state[name].masked_fill(~live, 0)
        coded[name], scales = encode(unmasked, dtype, live)
        quantized[name] = QuantizedWeight(dtype=dtype, scales=scales)
    return coded, quantized


def decode_state(state: Mapping[str, Tensor], quantized: Mapping[str, QuantizedWeight]) -> dict[str, Tensor]:
    """The inverse of `encode_state`; quantized weights are float32.

    Raises: ValueError: codes, dtype and scales are inconsistent.
    """
    decoded = dict(state)
    masks = {weight: state[mask] for mask, weight in _masks_of(state).items()}
    for name, how in quantized.items():
        codes, dtype, scales = state[name], how.dtype, how.scales
        if not re.fullmatch(PATTERN, dtype) or codes.dtype != code_dtype(dtype):
            raise ValueError(f"{name}: codes of {codes.dtype} do not belong to dtype {dtype}")
        if (scales is None) != (dtype in FLOATS):
            raise ValueError(f"{name}: scales belong to integers and codebooks. Got dtype {dtype}")
        if scales is not None and not _fit(codes, scales, dtype):
            raise ValueError(f"{name}: codes of shape {tuple(codes.shape)}, scales of {tuple(scales.shape)}")
        decoded[name] = decode(codes, scales, dtype)
        if name in masks and dtype in CODEBOOKS:  # the code 0 of a masked weight is not a zero
            decoded[name].masked_fill_(~masks[name], 0)
    return decoded


def _fit(codes: Tensor, scales: Tensor, dtype: str) -> bool:
    """Whether scales, or the values of a codebook, belong to codes."""
    if dtype in CODEBOOKS:
        fit = scales.shape == (CODEBOOKS[dtype],)
    else:
        fit = bool(codes.numel()) and scales.shape[:1] == codes.shape[:1] and scales.dim() == 1 + ("/" in dtype)
        fit = fit and scales.numel() == num_scales(codes.shape[0], codes.shape[1:].numel(), dtype)
    return fit and scales.is_floating_point()


def join_codes(
    whole: Mapping[str, Tensor], masked: Mapping[str, MaskedWeight], quantized: Mapping[str, QuantizedWeight]
) -> tuple[dict[str, Tensor], dict[str, MaskedWeight], dict[str, QuantizedWeight]]:
    """The same with 2 to 8 codes of 4 to 1 bits per byte: the rows of a weight, or the values of a masked one."""
    whole, masked, quantized = dict(whole), dict(masked), dict(quantized)
    for name, how in quantized.items():
        if (bits := _bits(how.dtype)) > 4:
            continue
        if name in masked:
            values = _in_bytes(masked[name].values[None], bits)[0]
            masked[name] = masked[name].model_copy(update={"values": values})
        else:
            quantized[name] = how.model_copy(update={"shape": list(whole[name].shape)})
            whole[name] = _in_bytes(whole[name].flatten(1), bits)
    return whole, masked, quantized


def split_codes(
    whole: Mapping[str, Tensor], masked: Mapping[str, MaskedWeight], quantized: Mapping[str, QuantizedWeight]
) -> tuple[dict[str, Tensor], dict[str, MaskedWeight]]:
    """The inverse of `join_codes`: a code per element.

    Raises: ValueError: bytes and shapes are inconsistent.
    """
    whole, masked = dict(whole), dict(masked)
    for name, how in quantized.items():
        if _bits(how.dtype) > 4:
            continue
        if name in masked:
            number = int(_mask(name, masked[name]).sum())
            values = _from_bytes(name, masked[name].values[None], number, how.dtype)[0]
            masked[name] = masked[name].model_copy(update={"values": values})
        else:
            shape = torch.Size(how.shape or ())
            codes = _from_bytes(name, whole[name], shape[1:].numel(), how.dtype)
            whole[name] = codes.reshape(shape)
    return whole, masked


def pack(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, MaskedWeight]]:
    """Split a state_dict on the CPU into tensors that are stored as they are, and masked weights with their masks."""
    whole, masked = dict(state), {}
    for mask_name, weight_name in _masks_of(state).items():
        mask, weight = whole.pop(mask_name), whole.pop(weight_name)
        masked[weight_name] = MaskedWeight(
            mask=mask_name, shape=list(mask.shape), values=_selected(weight, mask), **_positions(mask)
        )
    return whole, masked


def unpack(whole: Mapping[str, Tensor], masked: Mapping[str, MaskedWeight]) -> dict[str, Tensor]:
    """The inverse of `pack`; masked elements are zero.

    Raises: ValueError: positions and values are inconsistent.
    """
    state = dict(whole)
    for name, packed in masked.items():
        mask, values = _mask(name, packed).reshape(packed.shape), packed.values
        if values.shape != (int(mask.sum()),):
            raise ValueError(f"{name}: its mask keeps {int(mask.sum())} values, got {tuple(values.shape)}")
        weight = torch.zeros(packed.shape, dtype=values.dtype)
        weight[mask] = values
        state[name], state[packed.mask] = weight, mask
    return state


def _bits(dtype: str) -> int:
    """The bits of a code; 8 for dtypes that are not known, which `decode_state` refuses."""
    return BITS.get(dtype.partition("/")[0], 8)


def _in_bytes(codes: Tensor, bits: int) -> Tensor:
    """Codes of so many bits as rows of bytes, the first one of every byte in the low bits."""
    number = 8 // bits
    places = torch.arange(number, dtype=torch.uint8) * bits

    def joined(rows: Tensor) -> Tensor:
        whole = torch.nn.functional.pad(rows.view(torch.uint8) & 2**bits - 1, (0, -rows.shape[1] % number))
        return (torch.unflatten(whole, 1, (-1, number)) << places).sum(2, dtype=torch.uint8)

    return torch.cat([joined(rows) for rows in torch.split(codes, max(1, ELEMENTS // max(1, codes.shape[1])))])


def _from_bytes(name: str, rows: Tensor, columns: int, dtype: str) -> Tensor:
    """The inverse of `_in_bytes`, for rows of this many codes."""
    bits = _bits(dtype)
    if rows.dtype != torch.uint8 or rows.dim() != 2 or rows.shape[1] != code_bytes(columns, dtype):
        raise ValueError(f"{name}: {tuple(rows.shape)} of {rows.dtype} are not rows of {columns} codes of {bits} bits")
    places = torch.arange(8 // bits, dtype=torch.uint8) * bits
    codes: Tensor = (rows[..., None] >> places & 2**bits - 1).flatten(1)[:, :columns]
    signed: Tensor = codes.view(torch.int8) << 8 - bits >> 8 - bits
    return codes if dtype in CODEBOOKS else signed


def _selected(weight: Tensor, mask: Tensor) -> Tensor:
    """The values under a mask, by numpy: torch makes an index of 8 bytes an element and dimension first."""
    if (bits := _WORDS.get(weight.itemsize)) is None:
        return weight[mask]
    return torch.from_numpy(weight.view(bits).numpy()[mask.numpy()]).view(weight.dtype)


def _positions(mask: Tensor) -> dict[str, Tensor]:
    """Where a mask is True, in the shorter of the two forms; a gap takes a byte at least."""
    bits = torch.from_numpy(np.packbits(mask.numpy()))
    if int(torch.count_nonzero(mask)) >= bits.nbytes:
        return {"bits": bits}
    gaps = mask.flatten().nonzero().flatten().diff(prepend=torch.tensor([-1]))
    largest = int(gaps.max()) if len(gaps) else 0
    gaps = gaps.to(next(dtype for dtype in GAP_DTYPES if largest <= torch.iinfo(dtype).max))
    return {"gaps": gaps} if gaps.nbytes < bits.nbytes else {"bits": bits}


def _mask(name: str, packed: MaskedWeight) -> Tensor:
    """The inverse of `_positions`: the flattened mask."""
    elements, gaps, bits = math.prod(packed.shape), packed.gaps, packed.bits
    if elements > MAX_ELEMENTS:
        raise ValueError(f"{name}: a weight of {elements:,} elements is not read")
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

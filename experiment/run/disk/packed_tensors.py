"""A state_dict without what takes no part in anything: the zeros of masked weights, and the bits of rounded ones.

Of a masked weight there are the values that its mask leaves, and one bit an element or, where that is shorter, the gaps
between these values; rounded ones have 8 or 16 bits.
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
"""Name of a masked weight -> `mask` (the name of its mask), `shape`, `values`, and where these stand: `bits` or `gaps`.

Bits are eight elements a byte. A gap is the distance of a value from the one before, in elements; of the first one from
the place before all.
"""

MOST_ELEMENTS = 2**31 - 1  # of one weight

GAPS = (torch.uint8, torch.int16, torch.int32, torch.int64)

Rounded = dict[str, dict[str, Any]]
"""Name of a rounded weight -> its `dtype` and, with int8, the `scales` of its output channels; codes lie elsewhere."""


def encode_state(state: Mapping[str, Tensor], dtypes: Mapping[str, str]) -> tuple[dict[str, Tensor], Rounded]:
    """A state_dict on the CPU whose rounded weights have their few bits, and what else it takes to read them.

    Args:
        dtypes: name of a weight in the state_dict -> what the network rounds it to, behind its mask if it has one.
    """
    coded, rounded = dict(state), Rounded()
    masks = {weight: state[mask] for mask, weight in _masks_of(state).items()}
    for name, dtype in dtypes.items():
        live = state[name].masked_fill(~masks[name], 0) if name in masks else state[name]
        coded[name], scales = encode(live, dtype)
        rounded[name] = {"dtype": dtype} if scales is None else {"dtype": dtype, "scales": scales}
    return coded, rounded


def decode_state(state: Mapping[str, Tensor], rounded: Mapping[str, Mapping[str, Any]]) -> dict[str, Tensor]:
    """The state_dict that `encode_state` coded, rounded weights in float32.

    Raises: ValueError: codes, their dtype and scales do not belong together.
    """
    decoded = dict(state)
    for name, parts in rounded.items():
        codes, dtype, scales = state[name], parts["dtype"], parts.get("scales")
        if dtype not in DTYPES or codes.dtype != FLOATS.get(dtype, torch.int8) or (scales is None) != (dtype in FLOATS):
            raise ValueError(f"{name}: {codes.dtype} does not hold what is called {dtype}")
        if scales is not None and (
            scales.shape != codes.shape[:1] or not scales.is_floating_point() or not codes.dim()
        ):
            raise ValueError(f"{name}: codes of shape {tuple(codes.shape)}, scales of {tuple(scales.shape)}")
        decoded[name] = decode(codes, scales)
    return decoded


def pack(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Masked]:
    """Split a state_dict on the CPU into what is stored as it is, and masked weights with their masks.

    What stands in masked places is left out: it takes no part in anything.
    """
    whole, masked = dict(state), Masked()
    for mask_name, weight_name in _masks_of(state).items():
        mask, weight = whole.pop(mask_name), whole.pop(weight_name)
        masked[weight_name] = {
            "mask": mask_name,
            "shape": list(mask.shape),
            **_places(mask),
            "values": weight[mask],
        }
    return whole, masked


def unpack(whole: Mapping[str, Tensor], masked: Mapping[str, Mapping[str, Any]]) -> dict[str, Tensor]:
    """The state_dict that `pack` split, with zeros in masked places.

    Raises: ValueError: bits or gaps and values do not belong together.
    """
    state = dict(whole)
    for weight_name, parts in masked.items():
        shape, values = torch.Size(parts["shape"]), parts["values"]
        if math.prod(shape) > MOST_ELEMENTS:
            raise ValueError(f"{weight_name}: {math.prod(shape):,} elements are more than a weight has")
        mask = _mask(weight_name, parts, shape.numel()).reshape(shape)
        if values.shape != (int(mask.sum()),):
            raise ValueError(f"{weight_name}: its mask leaves {int(mask.sum())} values, got {tuple(values.shape)}")
        weight = torch.zeros(shape, dtype=values.dtype)
        weight[mask] = values
        state[weight_name], state[parts["mask"]] = weight, mask
    return state


def _places(mask: Tensor) -> dict[str, Tensor]:
    """Where a mask is True, in the shorter of two forms."""
    bits = torch.from_numpy(np.packbits(mask.numpy()))
    places = mask.flatten().nonzero().flatten()
    gaps = places.diff(prepend=torch.tensor([-1]))
    most = int(gaps.max()) if len(gaps) else 0
    short = gaps.to(next(dtype for dtype in GAPS if most <= torch.iinfo(dtype).max))
    return {"gaps": short} if short.nbytes < bits.nbytes else {"bits": bits}


def _mask(name: str, parts: Mapping[str, Any], elements: int) -> Tensor:
    """The mask (elements,) that `_places` gave one of the two forms of."""
    if "gaps" in parts:
        gaps, mask = parts["gaps"], torch.zeros(elements, dtype=torch.bool)
        whole = gaps.dim() == 1 and gaps.dtype in GAPS and len(gaps) <= elements
        gaps = gaps.long()
        if not whole or (len(gaps) and (gaps.min() < 1 or gaps.max() > elements)):  # so that no sum overflows
            raise ValueError(f"{name}: its gaps lead out of its {elements} elements")
        places = gaps.cumsum(0) - 1
        if len(gaps) and places[-1] >= elements:
            raise ValueError(f"{name}: its gaps lead out of its {elements} elements")
        mask[places] = True
        return mask
    bits = parts["bits"]
    if bits.dim() != 1 or bits.dtype != torch.uint8 or len(bits) != -(-elements // 8):
        raise ValueError(f"{name}: {elements} elements need another mask than {tuple(bits.shape)} of {bits.dtype}")
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=elements).astype(bool))


def _masks_of(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Name of a mask -> name of the one weight behind it, as torch's parametrizations name them."""
    found: dict[str, str] = {}
    for name, tensor in state.items():
        chain, _, last = name.rpartition(".")
        weight = f"{chain.rpartition('.')[0]}.original"
        of_a_chain = last == "mask" and tensor.dtype == torch.bool and "parametrizations." in chain
        if of_a_chain and weight in state and state[weight].shape == tensor.shape and weight not in found.values():
            found[name] = weight
    return found

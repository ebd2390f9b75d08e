"""What a dataset of one's own may give: an input and one class number a sample; all else is refused by one message."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real

import torch
from PIL import Image
from torch import Tensor

from experiment.errors import DataError

POSSIBLE = "Possible is classification: (input, class number) a sample, a tensor or PIL image and one whole number"


def check_map_style(where: str, items: object) -> None:
    """Raises: DataError: it has no length, or gives nothing by index."""
    if not hasattr(items, "__getitem__") or not hasattr(items, "__len__") or isinstance(items, Mapping):
        raise DataError(
            f"{where}: expected a map-style dataset, with __len__ and __getitem__. Got {described(items)}. {POSSIBLE}."
        )
    try:
        len(items)
    except TypeError:
        raise DataError(f"{where}: expected a dataset with a length. Got {described(items)}. {POSSIBLE}.") from None


def as_pair(where: str, sample: object) -> tuple[object, int]:
    """The input and the class number of a sample, whatever kind of integer that is.

    Raises: DataError: it is something else.
    """
    if not isinstance(sample, tuple | list) or len(sample) != 2:
        raise DataError(f"{where}: expected (input, class number). Got {described(sample)}. {POSSIBLE}.")
    x, label = sample
    if not isinstance(x, Tensor | Image.Image):
        raise DataError(f"{where}: expected a tensor or a PIL image as input. Got {described(x)}. {POSSIBLE}.")
    value: object = label
    if isinstance(value, Tensor) or hasattr(value, "__array__"):
        array = torch.as_tensor(value)
        value = array.item() if array.numel() == 1 and not array.is_complex() else None
    whole = isinstance(value, Integral) or (isinstance(value, Real) and float(value).is_integer())
    if not whole:
        raise DataError(f"{where}: expected one class number as target. Got {described(label)}. {POSSIBLE}.")
    return x, int(value)  # type: ignore[call-overload]


def described(value: object) -> str:
    """A value in a few words, never its repr."""
    if isinstance(value, Tensor) or (hasattr(value, "shape") and hasattr(value, "dtype")):
        kind = "tensor" if isinstance(value, Tensor) else "array"
        shape = " x ".join(map(str, value.shape))
        if not shape:
            return f"a {value.dtype} {kind} of value {float(torch.as_tensor(value)):g}"
        return f"a {value.dtype} {kind} of shape {shape}"
    if isinstance(value, Mapping):
        return f"a mapping with the keys {', '.join(map(str, list(value)[:5]))[:100]}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    if isinstance(value, int | float):
        return f"the {type(value).__name__} {value:g}"
    return "None" if value is None else f"a {type(value).__name__}"

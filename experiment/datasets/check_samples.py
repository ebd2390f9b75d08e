"""The samples of a user's dataset: an input and a target each. Anything else is refused."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.tv_tensors import Mask

from experiment.errors import DataError
from experiment.inputs import LABELS, in_words, without_labels

SUPPORTED = (
    "Supported is (input, target) per sample: a tensor or PIL image, and a class number or whatever the task needs. "
    "The input may also be a tuple or dictionary of tensors, which may hold the target as 'labels'"
)
MOST_NAMED = 5  # of several samples that cannot be read


def first_few(messages: Sequence[str]) -> str:
    """The errors about several samples as one."""
    more = [f"and {len(messages) - MOST_NAMED} more"] if len(messages) > MOST_NAMED else []
    return "; ".join([*messages[:MOST_NAMED], *more]).replace(".; ", "; ")


def check_map_style(items: object) -> None:
    """Check that a dataset has a length and items by index.

    Raises: DataError: it does not.
    """
    if not hasattr(items, "__getitem__") or not hasattr(items, "__len__") or isinstance(items, Mapping):
        raise DataError(
            f"expected a map-style dataset, with __len__ and __getitem__. Got {in_words(items)}. {SUPPORTED}."
        )
    try:
        length = len(items)
    except TypeError:
        raise DataError(f"expected a dataset with a length. Got {in_words(items)}. {SUPPORTED}.") from None
    if length == 0:
        raise DataError("expected at least one sample. Got none.")


def as_pair(where: str, sample: object) -> tuple[object, Any]:
    """The input and the target of a sample; the task checks the target.

    Raises: DataError: the sample has another form.
    """
    if isinstance(sample, Mapping) and LABELS in sample:
        sample = without_labels(sample)
    if not isinstance(sample, tuple | list) or len(sample) != 2:
        hint = " Rename 'label' to 'labels'." if isinstance(sample, Mapping) and "label" in sample else ""
        raise DataError(f"{where}: expected (input, target). Got {in_words(sample)}.{hint} {SUPPORTED}.")
    x, target = sample
    if isinstance(x, Mapping | tuple | list):
        x = _tree(where, x)
    elif not isinstance(x, Tensor | Image.Image):
        raise DataError(f"{where}: expected a tensor or a PIL image as input. Got {in_words(x)}. {SUPPORTED}.")
    elif isinstance(target, Tensor | Image.Image | np.ndarray):
        target = _map_of(where, x, target)
    return x, target


def _map_of(where: str, image: Tensor | Image.Image, target: Any) -> Any:
    """A target that is an image of class numbers, or integers of the image's size, as a map; others unchanged."""
    size = image.size[::-1] if isinstance(image, Image.Image) else tuple(image.shape[1:])
    if isinstance(target, Image.Image | Mask):
        found = target if isinstance(target, Mask) else Mask(np.array(target))
        if found.shape[-2:] != size:
            raise DataError(
                f"{where}: its map has {shape_of(found.shape[-2:])} pixels (height x width), its image "
                f"{shape_of(size)}. Expected a class for every pixel of the image. Make them one size."
            )
        return found
    integers = not (target.is_floating_point() if isinstance(target, Tensor) else target.dtype.kind not in "iu")
    return Mask(target) if integers and len(size) == 2 and tuple(target.shape) == size else target


def shape_of(size: tuple[int, ...]) -> str:
    """A size as `480 x 640`."""
    return " x ".join(map(str, size))


def _tree(where: str, x: object) -> object:
    """Inputs in plain dictionaries and tuples."""
    if isinstance(x, Mapping) and x:
        return {str(key): _tree(f"{where}, '{key}'", value) for key, value in x.items()}
    if isinstance(x, tuple | list) and x and not isinstance(x[0], int | float | str):
        return tuple(_tree(where, value) for value in x)
    if not isinstance(x, Tensor):
        advice = "Remove it, or make it a tensor, for example by dataset.with_format('torch')"
        raise DataError(f"{where}: expected tensors in the input. Got {in_words(x)}. {advice}. {SUPPORTED}.")
    return x

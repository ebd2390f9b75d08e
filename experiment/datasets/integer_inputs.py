"""Integer tensors of a user's dataset: pixels or token ids, distinguished by shape and values."""

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from experiment.datasets.check_samples import as_pair
from experiment.datasets.decode_image import to_eight_bits
from experiment.datasets.raw_images import Items
from experiment.errors import DataError, log

INSPECTED = 64  # samples, evenly spread
WIDE = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint32, torch.uint64)  # not scaled by their maximum


@dataclass(frozen=True)
class EightBits:
    """A dataset whose wider integers become uint8 and whose PIL images become 8-bit ones.

    Attributes:
        items: the dataset.
        white: the integer that becomes 255: 255, or 1 if all pixels are 0 or 1.
    """

    items: Items
    white: int

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[object, Any]:
        x, label = as_pair(f"sample {index}", self.items[index])
        if isinstance(x, Image.Image):
            return to_eight_bits(x), label
        if isinstance(x, Tensor) and x.dtype in WIDE:
            low, high = int(x.min()), int(x.max())
            if low < 0 or high > self.white:
                raise DataError(
                    f"sample {index}: integers from {low} to {high}; expected 0 to {self.white} as in the samples "
                    f"inspected first. Use uint8 or uint16 tensors, or scaled floats."
                )
            return (x * (255 // self.white)).to(torch.uint8), label
        return x, label

    @property
    def classes(self) -> object:
        return getattr(self.items, "classes", None)


def with_8_bits(items: Items) -> Items:
    """Make all pixels of a dataset 8-bit. Integer tensors of one or two dimensions are token ids and stay as they are.

    Raises: DataError: integers that cannot be pixels from 0 to 255.
    """
    places = torch.linspace(0, len(items) - 1, min(INSPECTED, len(items))).round().long().tolist()
    first, _ = as_pair("sample 0", items[0])
    if isinstance(first, Image.Image):
        return items if first.mode in ("L", "RGB", "LA", "RGBA") else EightBits(items, 255)
    if not isinstance(first, Tensor) or first.dtype not in WIDE or first.dim() < 3 or not first.numel():
        return items
    seen = [x for i in places if isinstance(x := as_pair(f"sample {i}", items[i])[0], Tensor) and x.numel()]
    low, high = min(int(x.min()) for x in seen), max(int(x.max()) for x in seen)
    if low < 0 or high > 255:
        raise DataError(
            f"{first.dtype} inputs from {low} to {high}: as pixels they must lie in 0 to 255. Use uint8 or uint16 "
            "tensors, or scaled floats."
        )
    white = 1 if high <= 1 else 255
    log.warning("%s inputs from %d to %d are interpreted as pixels from 0 to %d", first.dtype, low, high, white)
    return EightBits(items, white)

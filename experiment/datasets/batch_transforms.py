"""Transforms of a whole batch at once, with each image's own crop and flip, equivalent to torchvision's.

Only exact equivalents are here; all other transforms run image by image (`experiment.datasets.dataloader`).
Shapes: B = images of the batch, C = channels, H, W = height, width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, cast

import torch
from torch import Tensor

from experiment.datasets.image_data import Step
from experiment.datasets.transforms import make_transform

Shape = tuple[int, int, int]


class Operation(Protocol):
    """A transform of x (B, C, H, W); the random numbers of every image are drawn beforehand."""

    def shape(self, shape: Shape) -> Shape:
        """The output shape (C, H, W) for an input shape."""

    def draw(self, num_images: int, shape: Shape, generator: torch.Generator) -> Tensor | None:
        """Random numbers (num_images, k) for images of this shape; None if nothing is random."""

    def apply(self, x: Tensor, draws: Tensor | None) -> Tensor: ...


@dataclass(frozen=True)
class Fixed:
    """A deterministic transform of torchvision's that accepts batches: Pad, CenterCrop."""

    function: Callable[[Tensor], Tensor]

    def shape(self, shape: Shape) -> Shape:
        c, h, w = self.function(torch.zeros((1, *shape), dtype=torch.uint8)).shape[1:]
        return c, h, w

    def draw(self, num_images: int, shape: Shape, generator: torch.Generator) -> Tensor | None:
        return None

    def apply(self, x: Tensor, draws: Tensor | None) -> Tensor:
        return self.function(x)


@dataclass(frozen=True)
class Crop:
    """RandomCrop to (height, width), every position of the window equally likely."""

    height: int
    width: int

    def shape(self, shape: Shape) -> Shape:
        return shape[0], self.height, self.width

    def draw(self, num_images: int, shape: Shape, generator: torch.Generator) -> Tensor | None:
        top = torch.randint(shape[1] - self.height + 1, (num_images,), generator=generator)
        left = torch.randint(shape[2] - self.width + 1, (num_images,), generator=generator)
        return torch.stack([top, left], dim=1)

    def apply(self, x: Tensor, draws: Tensor | None) -> Tensor:
        assert draws is not None
        windows = x.unfold(2, self.height, 1).unfold(3, self.width, 1)  # a view: (B, C, tops, lefts, height, width)
        batch = torch.arange(len(x), device=x.device)
        return windows.permute(0, 2, 3, 1, 4, 5)[batch, draws[:, 0], draws[:, 1]]


@dataclass(frozen=True)
class Flip:
    """RandomHorizontalFlip (dim -1) or RandomVerticalFlip (dim -2) with probability p."""

    p: float
    dim: int

    def shape(self, shape: Shape) -> Shape:
        return shape

    def draw(self, num_images: int, shape: Shape, generator: torch.Generator) -> Tensor | None:
        return torch.rand((num_images, 1), generator=generator) < self.p

    def apply(self, x: Tensor, draws: Tensor | None) -> Tensor:
        assert draws is not None
        return torch.where(draws.view(-1, 1, 1, 1), x.flip(self.dim), x)


@dataclass(frozen=True)
class Affine:
    """x * scale + shift per channel, in float32: ToTensor and Normalize, fused if they follow each other."""

    scale: tuple[float, ...]
    shift: tuple[float, ...]

    def shape(self, shape: Shape) -> Shape:
        return shape

    def draw(self, num_images: int, shape: Shape, generator: torch.Generator) -> Tensor | None:
        return None

    def apply(self, x: Tensor, draws: Tensor | None) -> Tensor:
        scale, shift = (constants(values, x.device) for values in (self.scale, self.shift))
        y = x.mul(scale) if x.is_floating_point() else x.float().mul_(scale)
        return y.add_(shift)


@lru_cache(maxsize=32)
def constants(values: tuple[float, ...], device: torch.device) -> Tensor:
    """One value per channel (C, 1, 1), float32. They are copied once: a GPU is waited for at every copy to it."""
    with torch.inference_mode(False):  # tensors made in inference mode cannot be used in training
        return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)


def split_once(steps: Sequence[Step]) -> tuple[list[Step], list[Step]]:
    """Split steps into those done once for all epochs and the rest.

    The first are the steps up to the last Resize, if none of them is random.
    """
    names = [name for name, _ in steps]
    end = len(names) - names[::-1].index("Resize") if "Resize" in names else 0
    if not set(names[:end]) <= {"Resize", "CenterCrop", "Pad"}:
        end = 0
    return list(steps[:end]), list(steps[end:])


def compile_steps(steps: Sequence[Step], shape: Shape) -> list[Operation] | None:
    """The operations on batches equivalent to `steps`, or None if one of them has no such form.

    Args:
        shape: (C, H, W) of the images.
    """
    operations: list[Operation] = []
    for name, arguments in steps:
        make_transform(name, arguments)  # torchvision reports a wrong argument
        if name == "ToTensor" and any(isinstance(operation, Affine) for operation in operations):
            continue  # the images are floats already
        maker = _MAKERS.get(name)
        made = maker(arguments, shape) if maker else None
        if made is None:
            return None
        for operation in made:
            shape = operation.shape(shape)
        operations += made
    return _fuse(operations)


def _fuse(operations: Sequence[Operation]) -> list[Operation]:
    """Fuse consecutive affine maps: x * s1 + t1, then * s2 + t2, is x * (s1 s2) + (t1 s2 + t2)."""
    fused: list[Operation] = []
    for operation in operations:
        last = fused[-1] if fused else None
        if isinstance(operation, Affine) and isinstance(last, Affine):
            n = max(len(last.scale), len(operation.scale))
            s1, t1, s2, t2 = (
                v * n if len(v) == 1 else v for v in (last.scale, last.shift, operation.scale, operation.shift)
            )
            fused[-1] = Affine(
                tuple(a * b for a, b in zip(s1, s2, strict=True)),
                tuple(a * b + c for a, b, c in zip(t1, s2, t2, strict=True)),
            )
        else:
            fused.append(operation)
    return fused


def _fixed(name: str) -> Callable[[Mapping[str, object], Shape], list[Operation]]:
    return lambda arguments, shape: [Fixed(make_transform(name, arguments))]


def _random_crop(arguments: Mapping[str, object], shape: Shape) -> list[Operation] | None:
    if arguments.get("pad_if_needed"):
        return None
    sizes = _floats(arguments["size"])
    height, width = int(sizes[0]), int(sizes[-1])
    operations: list[Operation] = []
    if arguments.get("padding") is not None:
        keys = ("padding", "fill", "padding_mode")
        operations += _fixed("Pad")({k: arguments[k] for k in keys if k in arguments}, shape)
        shape = operations[0].shape(shape)
    if height > shape[1] or width > shape[2]:
        return None  # torchvision reports the error
    return [*operations, Crop(height, width)]


def _flip(dim: int) -> Callable[[Mapping[str, object], Shape], list[Operation]]:
    return lambda arguments, shape: [Flip(_floats(arguments.get("p", 0.5))[0], dim)]


def _normalize(arguments: Mapping[str, object], shape: Shape) -> list[Operation] | None:
    mean, std = _floats(arguments["mean"]), _floats(arguments["std"])
    if len(mean) not in (1, shape[0]) or len(std) not in (1, shape[0]) or arguments.get("inplace"):
        return None  # the transform itself reports the error
    n = max(len(mean), len(std))
    mean, std = (v * n if len(v) == 1 else v for v in (mean, std))
    return [Affine(tuple(1 / s for s in std), tuple(-m / s for m, s in zip(mean, std, strict=True)))]


def _floats(values: object) -> tuple[float, ...]:
    """Numbers from YAML: a list or a single one."""
    numbers = values if isinstance(values, list | tuple) else [values]
    return tuple(float(n) for n in cast(Sequence[float], numbers))


_MAKERS: Mapping[str, Callable[[Mapping[str, object], Shape], list[Operation] | None]] = {
    "Pad": _fixed("Pad"),
    "CenterCrop": _fixed("CenterCrop"),
    "RandomCrop": _random_crop,
    "RandomHorizontalFlip": _flip(-1),
    "RandomVerticalFlip": _flip(-2),
    "ToTensor": lambda arguments, shape: [Affine((1 / 255,), (0.0,))],
    "Normalize": _normalize,
}

"""Transforms by name: torchvision's v2 classes, applied to one image at a time."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional
from torchvision.tv_tensors import Mask

from experiment.datasets.image_data import Step, Transforms
from experiment.datasets.transform_names import SEGMENTATION, TRANSFORMS
from experiment.errors import ConfigError, DataError, first_line, plural
from experiment.inputs import Inputs, mapped
from experiment.random_streams import seeded
from experiment.registry import no_such_argument, suggestion
from experiment.tasks.segmentation import IGNORED

Transform = Callable[..., Any]  # of an image, or of an image and its map: image, or (image, map)

_DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "uint8": torch.uint8}
_IDS = (torch.int8, torch.int16, torch.int32, torch.int64)
_INTERPOLATIONS = {mode.value: mode for mode in InterpolationMode}


@dataclass(frozen=True)
class Pipeline:
    """The transforms in order, from an image (PIL or tensor) to a float tensor (C, H, W).

    A result that still has an integer type is scaled to [0, 1], as by ToTensor, unless it is to stay `raw`. Of inputs
    that consist of several tensors, only the images, of three dimensions, are transformed.
    """

    transforms: tuple[Transform, ...]
    raw: bool = False

    def __call__(self, inputs: object) -> Inputs:
        if isinstance(inputs, dict | tuple):
            return mapped(inputs, self._one_of_several)
        return self._image(inputs)

    def with_map(self, image: object, classes: Tensor) -> tuple[Tensor, Tensor]:
        """An image and its map of classes (H, W), int64, transformed together."""
        moved = zero_outside(classes)
        for transform in self.transforms:
            image, moved = transform(image, moved)
        return self._end(image), outside_ignored(moved)

    def _image(self, image: object) -> Tensor:
        for transform in self.transforms:
            image = transform(image)
        return self._end(image)

    def _one_of_several(self, tensor: Tensor) -> Tensor:
        if tensor.dim() == 3 and tensor.dtype not in _IDS:
            return self._image(tensor)
        return tensor if self.raw or tensor.dtype == torch.bool else as_float(tensor)

    def _end(self, image: object) -> Tensor:
        tensor = (image if isinstance(image, Tensor) else functional.pil_to_tensor(image)).as_subclass(Tensor)
        return tensor if self.raw else as_float(tensor)


class _ToTensor:
    """Images as floats in [0, 1]. Tensors without exactly three dimensions are not images and keep their shape."""

    def __init__(self) -> None:
        self._images = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])

    def __call__(self, image: object, *maps: Mask) -> object:
        if isinstance(image, Tensor) and (image.dim() != 3 or image.dtype in _IDS):
            converted: object = as_float(image)
        else:
            converted = self._images(image)
        return (converted, *maps) if maps else converted


def _seg_random_resize(min_size: int, max_size: int | None = None) -> Transform:
    """Resize the shorter side to a random length from `min_size` to `max_size`."""
    resize: Transform = v2.RandomResize(min_size, (min_size if max_size is None else max_size) + 1)
    return resize


class _SegRandomCrop:
    """Crop a random window of size x size; smaller images are padded at the right and at the bottom first."""

    def __init__(self, size: int) -> None:
        self._size, self._crop = size, v2.RandomCrop(size)

    def __call__(self, *image_and_map: object) -> object:
        height, width = functional.get_size(image_and_map[0])
        missing = [max(self._size - width, 0), max(self._size - height, 0)]
        return self._crop(*(functional.pad(part, [0, 0, *missing]) for part in image_and_map))


def zero_outside(maps: Tensor) -> Mask:
    """Class 255 as 0 and class k as k + 1, since transforms fill maps with zeros; `outside_ignored` is the inverse."""
    return Mask(torch.where(maps == IGNORED, 0, maps + (maps >= 0)))


def outside_ignored(maps: Tensor) -> Tensor:
    """Maps with 0 as class 255 and k as class k - 1. Wrong, negative numbers stay what they are."""
    plain = maps.as_subclass(Tensor)
    return torch.where(plain == 0, IGNORED, plain - (plain > 0).long())


def make_pipeline(steps: Sequence[Step], *, raw: bool = False) -> Pipeline:
    """The pipeline of the named steps.

    Raises: ConfigError: unknown name, or wrong arguments.
    """
    return Pipeline(tuple(make_transform(name, arguments) for name, arguments in steps), raw)


def alike_in_batches(steps: Sequence[Step]) -> bool:
    """Whether these steps give the same values for 8-bit images one by one and for a batch of them (N, C, H, W)."""
    return {plain_step(step)[0] for step in steps} <= {"ToTensor", "Normalize"}


def make_transform(name: str, arguments: Mapping[str, object]) -> Transform:
    """The transform of that name. ToTensor scales PIL images and uint8 tensors to [0, 1] and keeps float tensors.

    Raises: ConfigError: unknown name, or wrong arguments.
    """
    name, arguments = plain_step((name, arguments))
    if name not in TRANSFORMS:
        near = suggestion(name, TRANSFORMS) or f" Known are {', '.join(TRANSFORMS)}."
        raise ConfigError(f"unknown transform '{name}'.{near}")
    if name == "ToTensor":
        if arguments:
            raise ConfigError(f"ToTensor takes no arguments. Got {dict(arguments)}.")
        return _ToTensor()
    factory = _OWN[name] if name in _OWN else vars(v2)[name]
    known = inspect.signature(factory).parameters
    unknown = [key for key in arguments if key not in known]
    if unknown:
        raise ConfigError([f"{key}: {no_such_argument(name, key, list(known))}" for key in unknown])
    try:
        transform: Transform = factory(**_parsed(arguments))
    except Exception as error:  # torchvision may raise anything
        reason = re.sub(r"^\w+(\.__init__)?\(\) ", "", first_line(error))  # Python names the function
        raise ConfigError(f"{name} refuses its arguments {dict(arguments)}: {reason}") from error
    return transform


class _Normalize(v2.Normalize):  # type: ignore[misc]
    """torchvision's Normalize, which would also repeat grey images, and does not say which numbers are too many."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], inplace: bool = False) -> None:
        for name, values in (("mean", mean), ("std", std)):
            if not (isinstance(values, list | tuple) and values and all(isinstance(v, int | float) for v in values)):
                raise ValueError(f"{name} must be a list of numbers, one or one per channel, such as [0.5].")
        if len({len(mean), len(std), 1}) > 2:
            raise ValueError(f"mean has {len(mean)} values, std {len(std)}. Expected one or as many as channels.")
        if not all(value > 0 for value in std):
            raise ValueError("std must be above 0: images are divided by it.")
        super().__init__(mean, std, inplace)

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if isinstance(inpt, Tensor) and inpt.dim() > 2 and not isinstance(inpt, Mask):
            require_channels(self, inpt.shape[-3])
        return super().transform(inpt, params)


def require_channels(normalize: v2.Normalize, channels: int, where: str = "") -> None:
    """Raises: DataError: Normalize has another number of means or standard deviations than images have channels."""
    sizes = len(normalize.mean), len(normalize.std)
    if not {*sizes} <= {1, channels}:
        raise DataError(
            f"{where}Normalize: mean has {plural(sizes[0], 'value')}, std {sizes[1]}; images have "
            f"{plural(channels, 'channel')}. Expected one or as many as channels."
        )


_OWN: Mapping[str, Callable[..., Transform]] = {
    "Normalize": _Normalize,
    "SegRandomResize": _seg_random_resize,
    "SegRandomCrop": _SegRandomCrop,
}


def plain_step(step: Step) -> Step:
    """A step under torchvision's name, where torchprune has another name for the same transform."""
    name, arguments = step
    if name == "SegRandomHorizontalFlip":
        return "RandomHorizontalFlip", {"p" if key == "flip_prob" else key: value for key, value in arguments.items()}
    return (name.removeprefix("Seg"), arguments) if name in SEGMENTATION and name not in _OWN else step


def check_transforms(transforms: Transforms) -> list[str]:
    """Construct and try each transform; return one line per problem."""
    problems = []
    for part, steps in (("Train", transforms.train), ("Test", transforms.test), ("Final", transforms.final)):
        for i, (name, arguments) in enumerate(steps):
            try:
                _try(name, arguments)
            except ConfigError as error:
                problems += [f"transforms{part}[{i}]: {problem}" for problem in error.problems]
    for part, steps in (("Train", transforms.train), ("Test", transforms.test)):
        names = [plain_step(step)[0] for step in (*steps, *transforms.final)]
        if "Normalize" in names and not {"ToTensor", "ConvertImageDtype"} & set(names[: names.index("Normalize")]):
            problems.append(f"transforms{part}, transformsFinal: Normalize needs ToTensor before it.")
    return list(dict.fromkeys(problems))


def _try(name: str, arguments: Mapping[str, object]) -> None:
    """Construct a transform and apply it to an image, since some check their arguments' types only then.

    Errors about the size or values of that image are ignored: the data decide them.
    """
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    wrong: list[Exception] = []
    with seeded("transforms"):
        for example in (image, image.float()):
            transform = make_transform(name, arguments)
            if hasattr(transform, "p"):
                transform.p = 1.0  # always apply it
            try:
                for _ in range(3):
                    transform(example)
            except (TypeError, AttributeError, IndexError) as error:
                wrong.append(error)
            except Exception:
                return
    if len(wrong) == 2:
        raise ConfigError(f"{name} cannot compute with {dict(arguments)}: {first_line(wrong[-1])}")


def as_float(x: Tensor) -> Tensor:
    """Pixels (uint8, uint16) scaled to [0, 1] and floats and booleans, all as float32; token ids as int64.

    Signed integers are token ids; pixels of such types have become uint8 before (`experiment.datasets.integer_inputs`).
    """
    if x.is_floating_point() or x.dtype == torch.bool:
        return x.float()
    if x.dtype in _IDS:
        return x.long()
    scaled: Tensor = functional.to_dtype(x, torch.float32, scale=True)
    return scaled


def _parsed(arguments: Mapping[str, object]) -> dict[str, object]:
    """Replace the names of interpolation modes and types by torchvision's objects; fill the images alone."""
    parsed = dict(arguments)
    if "fill" in parsed:
        parsed["fill"] = {Mask: 0, "others": parsed["fill"]}
    interpolation, dtype = parsed.get("interpolation"), parsed.get("dtype")
    if isinstance(interpolation, str):
        if interpolation.lower() not in _INTERPOLATIONS:
            near = suggestion(interpolation, _INTERPOLATIONS) or f" Known are {', '.join(_INTERPOLATIONS)}."
            raise ConfigError(f"unknown interpolation '{interpolation}'.{near}")
        parsed["interpolation"] = _INTERPOLATIONS[interpolation.lower()]
    if isinstance(dtype, str):
        if dtype.removeprefix("torch.") not in _DTYPES:
            raise ConfigError(f"unknown dtype '{dtype}'. Known are {', '.join(_DTYPES)}.")
        parsed["dtype"] = _DTYPES[dtype.removeprefix("torch.")]
    return parsed

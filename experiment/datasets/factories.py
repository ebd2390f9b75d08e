"""Datasets made by a function: the user's own `package.module:factory`, and torchvision's random images."""

import inspect
from collections.abc import Mapping
from pathlib import Path

from torchvision.datasets import FakeData

from experiment.datasets.check_samples import check_map_style
from experiment.datasets.integer_inputs import with_8_bits
from experiment.datasets.raw_images import Source, check_settings, pack
from experiment.errors import ConfigError, DataError, ExperimentError, raised_at
from experiment.random_streams import seeded
from experiment.registry import resolve, suggestion


def load_own(target: str, data_dir: Path, train: bool, settings: Mapping[str, object], output_size: int) -> Source:
    """The map-style dataset of (image, class number) that the user's `factory(root, train, **settings)` returns.

    Raises:
        ConfigError: there is no such factory, or it does not accept these settings.
        DataError: it fails, or returns something else.
    """
    factory = resolve(target)
    if not callable(factory):
        raise ConfigError(f"'{target}' is not callable. Expected factory(root: Path, train: bool, **settings).")
    parameters = inspect.signature(factory).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    unknown = [key for key in settings if key not in parameters and not takes_any]
    if unknown:
        raise ConfigError(
            [
                f"settings.{key}: {target}{inspect.signature(factory)} has no such argument."
                f"{suggestion(key, parameters)}"
                for key in unknown
            ]
        )
    try:
        items = factory(data_dir, train, **settings)
        check_map_style(items)
        with seeded("look"):
            items = with_8_bits(items)
        classes, said = (getattr(items, name, None) for name in ("classes", "fingerprint"))
        items = pack(items) or items
    except DataError as error:
        raise DataError(f"dataset {target} (train={train}): {error}") from None
    except ExperimentError:
        raise
    except Exception as error:  # the user's code may raise anything
        reason = f"{type(error).__name__}: {str(error)[:500]}{raised_at(error)}"
        raise DataError(f"dataset {target} (train={train}): {reason}") from error
    num_classes = len(classes) if classes is not None else None
    names = tuple(classes) if isinstance(classes, list | tuple) and all(isinstance(n, str) for n in classes) else ()
    return Source(items, num_classes, said if callable(said) else None, classes=names)


def load_fake(name: str, data_dir: Path, train: bool, settings: Mapping[str, object], output_size: int) -> Source:
    """Random images with random classes, for trying out an experiment.

    Settings: `size` of the training part (1000; the test part has a fifth), `imageSize` (channels, height, width)
    ([3, 32, 32]), `numClasses` (network.outputSize).
    """
    check_settings(name, settings, ("size", "imageSize", "numClasses"))
    size = _positive("size", settings.get("size", 1000))
    num_classes = _positive("numClasses", settings.get("numClasses", output_size))
    shape = settings.get("imageSize", (3, 32, 32))
    if not isinstance(shape, list | tuple) or len(shape) != 3:
        raise ConfigError(f"settings.imageSize: must be [channels, height, width]. Got {shape!r}.")
    c, h, w = (_positive("imageSize", side) for side in shape)
    if c not in (1, 3):
        raise ConfigError(f"settings.imageSize: channels must be 1 or 3. Got {c}.")
    items = FakeData(size if train else max(size // 5, 1), (c, h, w), num_classes, random_offset=0 if train else size)
    return Source(pack(items) or items, num_classes)


def _positive(key: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"settings.{key}: must be a whole number of at least 1. Got {value!r}.")
    return value

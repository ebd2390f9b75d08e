"""Stamps of datasets that must be loaded first: the user's own, and those not downloaded yet."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from experiment.datasets.file_stamp import stamp_of_part
from experiment.datasets.loading import load_source
from experiment.datasets.raw_images import Items, Pixels
from experiment.errors import DataError
from experiment.random_streams import seeded_everywhere
from experiment.registry import is_import_path


def stamp_by_reading(
    name: str, settings: Mapping[str, object], data_dir: Path, train: bool, output_size: int
) -> str | None:
    """Load one part of a dataset and compute its stamp.

    For the user's own dataset it is a hash of its `fingerprint()`, if it has that method, else of all samples. Random
    transforms in it draw the same numbers every time if they use torch, numpy or Python's `random`.

    Returns: None if a registered dataset has no stamp.
    Raises: ConfigError, DataError: it cannot be loaded.
    """
    with seeded_everywhere("stamp"):
        source = load_source(name, settings, data_dir, train, output_size)
        if not is_import_path(name):
            return stamp_of_part(name, settings, data_dir, train)
        try:
            said = _hash_of(source.items) if source.fingerprint is None else source.fingerprint()
        except DataError:
            raise
        except Exception as error:  # the user's code may raise anything
            raise DataError(f"dataset {name}: {type(error).__name__}: {error}") from error
    return hashlib.sha256(str(said).encode(errors="surrogatepass")).hexdigest()[:16]


def _hash_of(items: Pixels | Items) -> str:
    found = hashlib.sha256()
    if isinstance(items, Pixels):
        _add(found, items.images)
        _add(found, items.labels)
        return found.hexdigest()
    for i in range(len(items)):
        sample: object = items[i]
        for part in sample if isinstance(sample, tuple | list) else (sample,):
            _add(found, part)
    return found.hexdigest()


def content_hash(value: object) -> bytes:
    """A hash of an input's content."""
    found = hashlib.sha256()
    _add(found, value)
    return found.digest()


def _add(found: hashlib._Hash, value: object) -> None:
    """Add a value to a hash: the content of images, arrays and numbers, the type of anything else."""
    if isinstance(value, Image.Image):
        found.update(f"{value.mode} {value.size}\n".encode() + value.tobytes())
    elif isinstance(value, Tensor):
        value = value.detach().cpu().contiguous()
        found.update(f"{value.dtype} {tuple(value.shape)}\n".encode() + value.flatten().view(torch.uint8).numpy().data)
    elif isinstance(value, np.ndarray | np.generic):
        found.update(f"{value.dtype} {value.shape}\n".encode() + value.tobytes())
    elif isinstance(value, Mapping):
        for key, part in value.items():
            _add(found, str(key))
            _add(found, part)
    elif isinstance(value, tuple | list):
        for part in value:
            _add(found, part)
    else:
        told = repr(value) if isinstance(value, int | float | str | bytes) else type(value).__name__
        found.update(f"{told}\n".encode(errors="surrogatepass"))

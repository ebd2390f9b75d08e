"""The stamp of a dataset that must be read to have one: the user's own, or one that is yet to be downloaded."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from experiment.datasets.file_stamp import stamp_of_files
from experiment.datasets.loading import load_source
from experiment.datasets.raw_images import Items, Pixels
from experiment.errors import DataError
from experiment.random_streams import seed_of, seeded
from experiment.registry import is_import_path


def stamp_by_reading(
    name: str, settings: Mapping[str, object], data_dir: Path, train: bool, output_size: int
) -> str | None:
    """The stamp of one part of a dataset, which is loaded for it.

    Of a dataset of the user's own it is what its `fingerprint()` says, where it has one, else a hash of all samples:
    random transforms in it draw the same every time as far as they use torch, numpy or Python's `random`.
    Returns: None where its files cannot tell, although they are there.
    Raises: ConfigError, DataError: it cannot be loaded.
    """
    with _same_draws():
        source = load_source(name, settings, data_dir, train, output_size)
        if not is_import_path(name):
            return stamp_of_files(name, settings, data_dir, train)
        try:
            said = _hash_of(source.items) if source.fingerprint is None else source.fingerprint()
        except DataError:
            raise
        except Exception as error:  # somebody else's code: whatever it raises is reported as its failure
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
    """A hash of what an input holds: two of the same content have the same."""
    found = hashlib.sha256()
    _add(found, value)
    return found.digest()


def _add(found: hashlib._Hash, value: object) -> None:
    """Add a value to a hash: of images, arrays and numbers the content, of anything else the kind."""
    if isinstance(value, Image.Image):
        found.update(f"{value.mode} {value.size}\n".encode() + value.tobytes())
    elif isinstance(value, Tensor):
        value = value.detach().cpu().contiguous()
        found.update(f"{value.dtype} {tuple(value.shape)}\n".encode() + value.flatten().view(torch.uint8).numpy().data)
    elif isinstance(value, np.ndarray | np.generic):
        found.update(f"{value.dtype} {value.shape}\n".encode() + value.tobytes())
    else:
        told = repr(value) if isinstance(value, int | float | str | bytes) else type(value).__name__
        found.update(f"{told}\n".encode(errors="surrogatepass"))


@contextmanager
def _same_draws() -> Iterator[None]:
    seed = seed_of("stamp")
    python, numpy = random.getstate(), np.random.get_state()
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        with seeded("stamp"):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)

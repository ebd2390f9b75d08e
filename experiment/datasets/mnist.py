"""MNIST and the datasets in its file format (IDX: big-endian header with the shape, then bytes).

Source: LeCun, Cortes, Burges, http://yann.lecun.com/exdb/mnist/; Xiao et al. 2017, https://arxiv.org/abs/1708.07747
(FashionMNIST); Clanuwat et al. 2018, https://arxiv.org/abs/1812.01718 (KMNIST).
"""

import gzip
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets

from experiment.datasets.download import ensure
from experiment.datasets.raw_images import Pixels, Source, check_settings
from experiment.errors import DataError

_SETS: Mapping[str, type[datasets.MNIST]] = {
    "MNIST": datasets.MNIST,
    "FashionMNIST": datasets.FashionMNIST,
    "KMNIST": datasets.KMNIST,
}
_BYTE = 0x08  # the type code of unsigned bytes
MAX_DIMENSIONS = 4
MAX_BYTES = 1_000_000_000  # of one file, unpacked: MNIST has 47 million
_CHUNK = 1 << 20


def load(name: str, data_dir: Path, train: bool, settings: Mapping[str, object], output_size: int) -> Source:
    """One part of MNIST, FashionMNIST or KMNIST from `data_dir/NAME/raw`, downloaded if it is missing.

    Raises: DataError: it is missing and cannot be downloaded, or a file is damaged.
    """
    check_settings(name, settings, ())
    folder, dataset = data_dir / name / "raw", _SETS[name]
    part = "train" if train else "t10k"
    paths = [folder / f"{part}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1")]
    files = ", ".join(archive for archive, _ in dataset.resources)
    ensure(
        name,
        data_dir,
        missing=lambda: [p for p in paths if not p.is_file() and not _packed(p).is_file()],
        fetch=lambda: dataset(str(data_dir), train=train, download=True),
        place=f"put {files} (from {dataset.mirrors[0]}) into {folder}.",
    )
    images, labels = (read_idx(path) for path in paths)
    if images.dim() != 3 or labels.dim() != 1 or len(images) != len(labels):
        raise DataError(
            f"{paths[0]} and {paths[1].name} do not belong together: shapes {tuple(images.shape)} and "
            f"{tuple(labels.shape)}. Remove both and run again."
        )
    return Source(Pixels(images.unsqueeze(1), labels.long()), 10)


def read_idx(path: Path) -> Tensor:
    """The uint8 array of an IDX file, packed (`.gz`) or not.

    Raises: DataError: it is not an IDX file, or truncated.
    """
    found = path if path.is_file() else _packed(path)
    try:
        with gzip.open(found) if found.suffix == ".gz" else open(found, "rb") as file:
            return _read(found, file)
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(found, str(error)) from None


def _read(path: Path, file: gzip.GzipFile | IO[bytes]) -> Tensor:
    """Read an IDX file. Its header is checked before memory is allocated."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:3] != bytes([0, 0, _BYTE]) or not 1 <= magic[3] <= MAX_DIMENSIONS:
        raise _damaged(path, f"it does not begin like an IDX file of bytes with 1 to {MAX_DIMENSIONS} dimensions")
    sides = file.read(4 * magic[3])
    if len(sides) < 4 * magic[3]:
        raise _damaged(path, "it ends within its header")
    shape = tuple(int(d) for d in np.frombuffer(sides, dtype=">u4"))
    size = math.prod(shape)
    if size > MAX_BYTES:
        raise _damaged(path, f"its header promises {size:,} bytes; at most {MAX_BYTES:,} are read")
    data = bytearray()  # grows with what is there, not with what is promised
    while len(data) <= size and (chunk := file.read(min(_CHUNK, size + 1 - len(data)))):
        data += chunk
    if len(data) != size:
        came = f"{len(data):,}" if len(data) < size else f"more than {size:,}"
        raise _damaged(path, f"its header promises {size:,} bytes, it has {came}")
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8).reshape(shape).copy())


def _packed(path: Path) -> Path:
    return path.with_name(path.name + ".gz")


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(f"{path} is damaged: {reason}. Remove it and run again to download it, or to see where to get it.")

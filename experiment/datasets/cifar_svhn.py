"""CIFAR-10, CIFAR-100 and SVHN as torchvision lays them out.

Source: Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf; Netzer et al. 2011,
http://ufldl.stanford.edu/housenumbers/.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torchvision import datasets
from torchvision.datasets.utils import check_integrity

from experiment.datasets.download import ensure
from experiment.datasets.raw_images import Pixels, Source, check_settings
from experiment.errors import DataError

_CIFAR: Mapping[str, tuple[type[datasets.CIFAR10], int]] = {
    "CIFAR10": (datasets.CIFAR10, 10),
    "CIFAR100": (datasets.CIFAR100, 100),
}


def load_cifar(name: str, data_dir: Path, train: bool, settings: Mapping[str, object], output_size: int) -> Source:
    """One part of CIFAR-10 or CIFAR-100, downloaded if it is missing.

    Raises: DataError: it is missing and cannot be downloaded, or a file is damaged.
    """
    check_settings(name, settings, ())
    dataset, num_classes = _CIFAR[name]
    folder = data_dir / dataset.base_folder
    sums = [*dataset.train_list, *dataset.test_list, [dataset.meta["filename"], dataset.meta["md5"]]]
    files = [(folder / file, md5) for file, md5 in sums]
    ensure(
        name,
        data_dir,
        missing=lambda: [path for path, _ in files if not path.is_file()],
        fetch=lambda: dataset(str(data_dir), train=train, download=True),
        place=f"put {dataset.filename} (from {dataset.url}) into {data_dir}; it is unpacked automatically.",
    )
    _check(files)
    data = dataset(str(data_dir), train=train)
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    return Source(Pixels(images, torch.tensor(data.targets)), num_classes)


def load_svhn(name: str, data_dir: Path, train: bool, settings: Mapping[str, object], output_size: int) -> Source:
    """One part of SVHN (cropped digits), downloaded if it is missing.

    Raises: DataError: it is missing and cannot be downloaded, or a file is damaged.
    """
    check_settings(name, settings, ())
    split = "train" if train else "test"
    url, file, md5 = datasets.SVHN.split_list[split]
    path = data_dir / file
    ensure(
        name,
        data_dir,
        missing=lambda: [path] if not path.is_file() else [],
        fetch=lambda: datasets.SVHN(str(data_dir), split=split, download=True),
        place=f"put {file} (from {url}) into {data_dir}.",
    )
    _check([(path, md5)])
    data = datasets.SVHN(str(data_dir), split=split)
    return Source(Pixels(torch.from_numpy(data.data), torch.from_numpy(data.labels).long()), 10)


def _check(files: Sequence[tuple[Path, str]]) -> None:
    for path, md5 in files:
        if not check_integrity(str(path), md5):
            raise DataError(
                f"{path} is damaged: its MD5 checksum is not {md5}. Remove it and run again to download it, or to "
                "see where to get it."
            )

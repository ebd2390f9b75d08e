"""Where published corrupted and other test sets lie below the folder of datasets. Torch-free."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from experiment.datasets.corruptions import SEVERITIES
from experiment.datasets.file_stamp import Files, imagenet_files
from experiment.datasets.image_files import File, images_below, listed
from experiment.datasets.torchprune_names import corruption_in
from experiment.registry import resolve

CIFAR_C, CIFAR10_1, IMAGENET_C, OBJECTNET = "CIFAR-10-C", "CIFAR-10.1", "ImageNet-C", "objectnet-1.0"
CIFAR_FILES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
MAPPINGS = ("objectnet_to_imagenet_1k.json", "folder_to_objectnet_label.json", "pytorch_to_imagenet_2012_id.json",
            "imagenet_to_label_2012_v2")  # fmt: skip


def cifar_c(data_dir: Path, corruption: str) -> list[Path]:
    """The files of images and labels of one corruption of CIFAR-10-C, whether they exist or not."""
    return [data_dir / CIFAR_C / f"{name}.npy" for name in (corruption, "labels")]


def imagenet_c(data_dir: Path, corruption: str, severity: int | None) -> list[Path]:
    """The folders of one corruption of ImageNet-C, one per severity: ImageNet-C/[GROUP/]CORRUPTION/SEVERITY."""
    severities = SEVERITIES if severity is None else (severity,)
    root = data_dir / IMAGENET_C
    place = next(iter(sorted(root.glob(f"*/{corruption}"))), root / corruption)
    return [place / str(severity) for severity in severities]


def corrupted_files(name: str, data_dir: Path, train: bool, settings: Mapping[str, object]) -> Sequence[File]:
    """The published files of a corrupted test set; those of the dataset that is corrupted if there are none."""
    found = corruption_in(name)
    assert found is not None
    if found.base == "CIFAR10":
        published = cifar_c(data_dir, found.corruption)
        return listed(*(published if not train and published[0].is_file() else _cifar_files(data_dir)))
    if found.base == "ImageNet" and not train:
        folders = imagenet_c(data_dir, found.corruption, found.severity)
        if all(folder.is_dir() for folder in folders):
            return [file for folder in folders for file in images_below(folder)]
    from experiment.datasets import DATASETS

    files: Files = resolve(DATASETS[found.base].files)  # type: ignore[assignment]
    return files(found.base, data_dir, train, settings)


def cifar10_1_paths(data_dir: Path) -> list[Path]:
    """The files of images and labels of CIFAR-10.1, version 6, in CIFAR-10.1/ or beside the other datasets."""
    folder = data_dir / CIFAR10_1
    names = [f"cifar10.1_v6_{kind}.npy" for kind in ("data", "labels")]
    return [(folder if folder.is_dir() else data_dir) / name for name in names]


def cifar10_1_files(name: str, data_dir: Path, train: bool, settings: Mapping[str, object]) -> Sequence[File]:
    """The files of CIFAR-10.1; those of CIFAR-10 for the training part."""
    return listed(*(_cifar_files(data_dir) if train else cifar10_1_paths(data_dir)))


def objectnet_files(name: str, data_dir: Path, train: bool, settings: Mapping[str, object]) -> Sequence[File]:
    """The images of ObjectNet; those of ImageNet for the training part."""
    return imagenet_files("ImageNet", data_dir, train, {}) if train else images_below(data_dir / OBJECTNET / "images")


def _cifar_files(data_dir: Path) -> list[Path]:
    return [data_dir / "cifar-10-batches-py" / name for name in CIFAR_FILES]

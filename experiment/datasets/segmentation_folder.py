"""Images and maps of classes in files: folders of one's own, and Pascal VOC."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.tv_tensors import Mask

from experiment.datasets.check_samples import as_pair
from experiment.datasets.decode_image import read_class_map, read_rgb
from experiment.datasets.map_folders import Pair, folder_pairs, voc_pairs
from experiment.datasets.raw_images import Source, check_settings, pack
from experiment.errors import ConfigError, DataError
from experiment.tasks.segmentation import check_map

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


@dataclass(frozen=True)
class MapItems:
    """Images in files, as RGB, each with its map of classes; `read` reads a map."""

    pairs: tuple[Pair, ...]
    output_size: int
    read: Callable[[Path], Mask]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Image.Image, Mask]:
        image, classes = self.pairs[index]
        pixels, found = as_pair(str(classes), (read_rgb(image), self.read(classes)))
        check_map(str(classes), self.output_size, found)
        return pixels, found  # type: ignore[return-value]


def load(name: str, data_dir: Path, train: bool, settings: Mapping[str, object], output_size: int) -> Source:
    """One part of a folder: ROOT/train/images/*.jpg, ROOT/train/masks/*.png, and the same in ROOT/test (or ROOT/val).

    Masks are grey or palette PNGs: a pixel is the number of its class, 255 for none. Settings: as for `ImageFolder`.

    Raises:
        ConfigError: there is no root.
        DataError: a folder is missing, a file has no partner, cannot be read or has another size than its partner.
    """
    check_settings(name, settings, ("root", "train", "test"))
    if not isinstance(settings.get("root"), str) or not settings["root"]:
        raise ConfigError(
            "settings.root: SegmentationFolder needs the folder that holds train/ and test/, each with images/ and "
            f"masks/: absolute, below {data_dir}, or relative to the working directory. Got {settings.get('root')!r}."
        )
    pairs = folder_pairs(name, data_dir, train, settings)
    items = MapItems(tuple(pairs), output_size, read_class_map)
    return Source(pack(items) or items, place=pairs[0][0].parents[2])


def load_voc(name: str, data_dir: Path, train: bool, settings: Mapping[str, object], output_size: int) -> Source:
    """One part of Pascal VOC 2012 or 2011 (see `experiment.datasets.map_folders`).

    Raises: DataError: files are missing; the error says where to get them.
    """
    check_settings(name, settings, ())
    pairs = tuple(voc_pairs(name, data_dir, train))
    items = MapItems(pairs, output_size, read_class_map if name == "VOCSegmentation2012" else _read_sbd)
    return Source(items, len(VOC_CLASSES), classes=VOC_CLASSES)


def _read_sbd(path: Path) -> Mask:
    """The map in a MATLAB file of SBD."""
    from scipy.io import loadmat  # takes a while, for this dataset only

    try:
        return Mask(np.asarray(loadmat(str(path))["GTcls"][0]["Segmentation"][0]))
    except Exception as error:  # decoders may raise anything
        raise DataError(f"{path} cannot be read: {type(error).__name__}: {str(error)[:200]}. Replace it.") from None

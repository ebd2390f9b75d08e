"""Which images and maps of classes belong together, in folders of one's own and in Pascal VOC's. Torch-free."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from experiment.datasets.image_files import ROOT, File, file_at, folder_part, images_below
from experiment.errors import DataError

Pair = tuple[Path, Path]  # an image and its map
_VOC_TAR = "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"
_SBD_TAR = "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz"


def folder_pairs(name: str, data_dir: Path, train: bool, settings: Mapping[str, object]) -> list[Pair]:
    """The pairs in ROOT/train or ROOT/test (or val): images/NAME.jpg and masks/NAME.png.

    Raises: DataError: a folder is missing or empty, or a file has no partner.
    """
    part = folder_part(data_dir, train, settings)
    images, maps = (_by_stem(part / kind) for kind in ("images", "masks"))
    for here, there, kind in ((images, maps, "masks"), (maps, images, "images")):
        if lonely := sorted(here.keys() - there.keys()):
            raise DataError(
                f"{here[lonely[0]]} has no partner {part / kind / lonely[0]}.* ({len(lonely)} such files). Expected an "
                "image in images/ and a map in masks/ of the same name. Add or remove it."
            )
    return [(images[stem], maps[stem]) for stem in sorted(images)]


def _by_stem(folder: Path) -> dict[str, Path]:
    """The images below a folder by their names without extension."""
    if not folder.is_dir():
        raise DataError(
            f"no folder {folder}. Expected the folders images/ and masks/ in it. Check the dataset's settings: root "
            f"({ROOT}), train, test."
        )
    found: dict[str, Path] = {}
    for file in images_below(folder):
        stem = str(Path(file.name).with_suffix(""))
        if stem in found:
            raise DataError(f"{file.place} has the same name as {found[stem].name}. Remove one of them.")
        found[stem] = file.path
    if not found:
        raise DataError(f"{folder} has no images in it.")
    return found


def voc_pairs(name: str, data_dir: Path, train: bool) -> list[Pair]:
    """The pairs of one part of VOCSegmentation2012 or VOCSegmentation2011.

    Raises: DataError: files are missing; it says where to get them.
    """
    return (_voc_2012 if name == "VOCSegmentation2012" else _sbd)(name, data_dir, train)


def _voc_2012(name: str, data_dir: Path, train: bool) -> list[Pair]:
    """Pascal VOC 2012 in torchvision's layout: 1,464 training images, tested on its 1,449 validation images.

    Where the folder SegmentationClassAug lies in the dataset's or beside VOCdevkit, training images are the 10,582 with
    a map in it that are not validation images.

    Source: Everingham et al. 2010, https://doi.org/10.1007/s11263-009-0275-4
    """
    root = data_dir / "VOCdevkit" / "VOC2012"
    how = f"Get {_VOC_TAR} and unpack it in {data_dir}. For the augmented training set put SegmentationClassAug there."
    test = _names(name, root / "ImageSets" / "Segmentation" / "val.txt", how)
    names, maps = test, root / "SegmentationClass"
    if train:
        names = _names(name, root / "ImageSets" / "Segmentation" / "train.txt", how)
        for augmented in (root / "SegmentationClassAug", data_dir / "SegmentationClassAug"):
            if augmented.is_dir():
                maps = augmented
                names = sorted({path.stem for path in augmented.glob("*.png")} - set(test))
    return _existing(name, [(root / "JPEGImages" / f"{n}.jpg", maps / f"{n}.png") for n in names], how)


def _sbd(name: str, data_dir: Path, train: bool) -> list[Pair]:
    """Images of Pascal VOC 2011 with the maps of SBD, in torchvision's layout: 8,498 to train, 2,857 to test on.

    Source: Hariharan et al. 2011, https://doi.org/10.1109/ICCV.2011.6126343
    """
    unpacked = data_dir / "benchmark_RELEASE" / "dataset"
    root = unpacked if unpacked.is_dir() else data_dir / "SBD"
    how = f"Get {_SBD_TAR} and unpack it in {data_dir}, or put img/, cls/, train.txt, val.txt into {data_dir / 'SBD'}."
    names = _names(name, root / ("train.txt" if train else "val.txt"), how)
    return _existing(name, [(root / "img" / f"{n}.jpg", root / "cls" / f"{n}.mat") for n in names], how)


def _names(dataset: str, path: Path, how: str) -> list[str]:
    if not path.is_file():
        raise DataError(f"dataset {dataset} is missing: there is no {path}. {how} Or set --data.")
    names = path.read_text(encoding="utf-8", errors="replace").split()
    if not names:
        raise DataError(f"{path} is empty. Expected the name of an image in every line. {how}")
    return names


def _existing(dataset: str, pairs: Sequence[Pair], how: str) -> list[Pair]:
    missing = [path for pair in pairs for path in pair if not path.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataError(f"dataset {dataset} is incomplete: there is no {missing[0]}{more}. {how}")
    return list(pairs)


def voc_files(name: str, data_dir: Path, train: bool, settings: Mapping[str, object]) -> Sequence[File]:
    """The files of one part of Pascal VOC 2012 or 2011."""
    pairs = voc_pairs(name, data_dir, train)
    return [file_at(f"{path.parent.name}/{path.name}", path) for pair in pairs for path in pair]

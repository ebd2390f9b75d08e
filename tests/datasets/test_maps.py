"""Maps of classes move with their images: in memory, in workers, from files; torchprune's names for transforms."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.tv_tensors import Mask

from experiment.datasets.image_data import Step, Transforms
from experiment.datasets.loading import load_source, make_splits
from experiment.datasets.raw_images import Pixels, Source
from experiment.datasets.transforms import make_pipeline
from experiment.errors import DataError
from experiment.random_streams import generator, seeded
from experiment.tasks import find_task

TASK = find_task("segmentation")
CROP: Step = ("RandomCrop", {"size": [12, 10], "padding": 3, "fill": 7})
FLIP: Step = ("RandomHorizontalFlip", {"p": 0.5})


class Lazy:
    """Items one by one, as PIL images, larger than what is kept in memory."""

    def __init__(self, pixels: Pixels) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[object, object]:
        return self.pixels[index]


def coded(num: int = 20, side: int = 16) -> Pixels:
    """Images whose values are 10 times the class of their map, from 1 to 20."""
    maps = torch.randint(1, 21, (num, side, side), generator=generator("maps"))
    return Pixels((maps * 10).to(torch.uint8).unsqueeze(1), Mask(maps))


def batch(items: object, train: tuple[Step, ...]) -> tuple[Tensor, Tensor]:
    source = Source(items)  # type: ignore[arg-type]
    splits = make_splits(
        "own", source, source, Transforms(train=train), seed=0, output_size=21, device="cpu", workers=0, task=TASK
    )
    return next(splits.train.batches(18, stream=("epoch",)))


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("steps", [(CROP, FLIP), (FLIP,), (("CenterCrop", {"size": 20}),), ()])
def test_maps_are_cropped_padded_and_flipped_with_their_images(steps: tuple[Step, ...], lazy: bool) -> None:
    x, y = batch(Lazy(coded()) if lazy else coded(), steps)
    values = (x[:, 0] * 255).round().long()
    inside = y != 255
    assert y.dtype == torch.int64
    assert torch.equal(values[inside], y[inside] * 10)
    outside = values[~inside]
    fill = 7 if CROP in steps else 0
    assert torch.equal(outside, torch.full_like(outside, fill))
    assert (len(outside) > 0) == (CROP in steps or ("CenterCrop", {"size": 20}) in steps)


def test_rotation_falls_back_to_single_images_and_ignores_the_corners() -> None:
    x, y = batch(coded(), (("RandomRotation", {"degrees": [30, 30], "interpolation": "nearest"}),))
    values = (x[:, 0] * 255).round().long()
    corner = y[:, 0, 0]
    assert (corner == 255).all()
    assert (values == torch.where(y == 255, 0, y * 10)).double().mean() > 0.99


def test_resizing_takes_both_and_keeps_classes() -> None:
    large = coded(side=32)
    x, y = batch(large, (("Resize", {"size": 16}),))
    assert x.shape[2:] == y.shape[1:] == (16, 16)
    assert set(y.unique().tolist()) <= set(range(1, 21))


def seg(steps: list[Step], image: Image.Image, classes: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    with seeded("seg", seed):
        return make_pipeline(steps).with_map(image, classes)


def test_torchprunes_names_do_what_they_do_there() -> None:
    """A smaller image is padded at the right and at the bottom; lengths reach both ends; maps get 255."""
    classes = torch.arange(1, 13).reshape(3, 4)
    image = Image.fromarray((classes * 10).to(torch.uint8).numpy())
    to_tensor: Step = ("SegToTensor", {})
    x, y = seg([("SegRandomCrop", {"size": 5}), to_tensor], image, classes)
    assert torch.equal(y[:3, :4], classes)
    assert (y[3:] == 255).all()
    assert (y[:, 4] == 255).all()
    assert torch.equal((x[0] * 255).round().long(), torch.where(y == 255, 0, y * 10))
    sizes = {seg([("SegRandomResize", {"min_size": 3, "max_size": 5}), to_tensor], image, classes, s)[1].shape[0]
             for s in range(30)}  # fmt: skip
    assert sizes == {3, 4, 5}
    assert seg([("SegRandomResize", {"min_size": 6}), to_tensor], image, classes)[1].shape == (6, 8)
    flipped = seg([("SegRandomHorizontalFlip", {"flip_prob": 1.0}), to_tensor], image, classes)[1]
    assert torch.equal(flipped, classes.flip(1))
    normalised, cropped = seg(
        [("SegCenterCrop", {"size": 2}), to_tensor, ("SegNormalize", {"mean": [0.5], "std": [0.25]})], image, classes
    )
    assert torch.equal(cropped, classes[0:2, 1:3])
    torch.testing.assert_close(normalised[0], (cropped * 10 / 255 - 0.5) / 0.25)


def write_folder(root: Path, **files: np.ndarray) -> None:
    for part in ("train", "val"):
        for kind in ("images", "masks"):
            (root / part / kind).mkdir(parents=True, exist_ok=True)
        for i in range(5):
            Image.fromarray(np.full((9, 8, 3), 10 * i, np.uint8)).save(root / part / f"images/{i}.jpg")
            palette = Image.fromarray(np.full((9, 8), i % 3, np.uint8)).convert("P")
            palette.putdata([i % 3] * 72)
            palette.save(root / part / f"masks/{i}.png")
    for name, pixels in files.items():
        Image.fromarray(pixels).save(root / "train" / "masks" / f"{name}.png")


def folder(root: Path, train: bool = True, output_size: int = 3) -> Source:
    return load_source("SegmentationFolder", {"root": str(root)}, root, train, output_size)


def test_a_folder_of_images_and_masks(tmp_path: Path) -> None:
    write_folder(tmp_path)
    for train in (True, False):
        source = folder(tmp_path, train)
        assert isinstance(source.items, Pixels)
        assert source.items.images.shape == (5, 3, 9, 8)
        assert isinstance(source.items.labels, Mask)
        assert source.items.labels[:, 0, 0].tolist() == [0, 1, 2, 0, 1]


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"2": np.zeros((8, 9), np.uint8)}, "masks/2.png: its map has 8 x 9 pixels (height x width), its image 9 x 8"),
        ({"2": np.full((9, 8), 3, np.uint8)}, "masks/2.png: its map has class 3; expected 0 to 2"),
        ({"2": np.zeros((9, 8, 3), np.uint8)}, "masks/2.png cannot be read as an image: ValueError: expected a grey"),
        ({"more": np.zeros((9, 8), np.uint8)}, "masks/more.png has no partner"),
    ],
)
def test_wrong_masks_are_refused_with_their_file(tmp_path: Path, masks: dict[str, np.ndarray], message: str) -> None:
    write_folder(tmp_path, **masks)
    with pytest.raises(DataError, match=re.escape(message)):
        folder(tmp_path)


def test_several_wrong_masks_are_named_at_once(tmp_path: Path) -> None:
    write_folder(tmp_path, **{name: np.full((9, 8), 3, np.uint8) for name in ("0", "3")})
    with pytest.raises(DataError, match=r"masks/0.png: its map has class 3;.*; \S*masks/3.png: its map has class 3;"):
        folder(tmp_path)


def test_missing_masks_and_folders_are_named(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "train/masks/1.png").unlink()
    with pytest.raises(DataError, match=r"images/1.jpg has no partner .*masks/1"):
        folder(tmp_path)
    with pytest.raises(
        DataError, match=r"no folder .*images.*relative to the folder of datasets \(--data, data=\) or the wor"
    ):
        folder(tmp_path / "elsewhere")


def write_voc(root: Path) -> Path:
    voc = root / "VOCdevkit/VOC2012"
    for place in ("ImageSets/Segmentation", "JPEGImages", "SegmentationClass"):
        (voc / place).mkdir(parents=True)
    for split, names in (("train", "ab"), ("val", "cd")):
        (voc / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(names))
        for name in names:
            Image.fromarray(np.zeros((70, 80, 3), np.uint8)).save(voc / f"JPEGImages/{name}.jpg")
            Image.fromarray(np.full((70, 80), 20, np.uint8)).save(voc / f"SegmentationClass/{name}.png")
    return voc


def test_voc_2012_with_and_without_the_augmented_training_set(tmp_path: Path) -> None:
    def count(train: bool) -> int:
        return len(load_source("VOCSegmentation2012", {}, tmp_path, train, 21).items)

    with pytest.raises(DataError, match=r"no .*val.txt. Get https://.*2012.tar and unpack"):
        count(True)
    voc = write_voc(tmp_path)
    assert (count(True), count(False)) == (2, 2)
    (tmp_path / "SegmentationClassAug").mkdir()
    for name in "abcde":
        Image.fromarray(np.zeros((70, 80), np.uint8)).save(tmp_path / f"SegmentationClassAug/{name}.png")
    with pytest.raises(DataError, match=r"no .*JPEGImages/e.jpg. Get"):
        count(True)
    Image.fromarray(np.zeros((70, 80, 3), np.uint8)).save(voc / "JPEGImages/e.jpg")
    assert (count(True), count(False)) == (3, 2)


def test_sbd_is_read_from_matlab_files(tmp_path: Path) -> None:
    from scipy.io import savemat

    root = tmp_path / "SBD"
    for place in ("img", "cls"):
        (root / place).mkdir(parents=True)
    for part in ("train", "val"):
        (root / f"{part}.txt").write_text(f"{part}\n")
        Image.fromarray(np.zeros((70, 80, 3), np.uint8)).save(root / f"img/{part}.jpg")
        classes = np.arange(70 * 80, dtype=np.uint8).reshape(70, 80) % 21
        savemat(root / f"cls/{part}.mat", {"GTcls": np.array([(classes,)], dtype=[("Segmentation", "O")])})
    _, found = load_source("VOCSegmentation2011", {}, tmp_path, True, 21).items[0]
    assert torch.equal(found, torch.from_numpy(classes))
    (root / "cls/train.mat").write_bytes(b"x")
    with pytest.raises(DataError, match="train.mat cannot be read"):
        load_source("VOCSegmentation2011", {}, tmp_path, True, 21).items[0]


def test_scenes_are_fixed_and_their_classes_where_the_strokes_are() -> None:
    train, again = (load_source("DigitScenes", {}, Path(), True, 11).items for _ in range(2))
    assert isinstance(train, Pixels)
    assert torch.equal(train.images, again.images)  # type: ignore[union-attr]
    assert train.images.shape == (1500, 1, 64, 64)
    assert set(train.labels.unique().tolist()) == set(range(11))
    strokes = train.labels != 0
    assert train.images[:, 0][strokes].double().mean() > train.images[:, 0][~strokes].double().mean() + 60

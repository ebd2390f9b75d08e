"""What looks wrong with data before training: told where it is so, and silent for usual data."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import TensorDataset
from torchvision.tv_tensors import Mask

from experiment.datasets.check_data import check_data
from experiment.datasets.image_data import Step, Transforms
from experiment.datasets.loading import load_source, make_splits
from experiment.datasets.raw_images import Items, Pixels, Source
from experiment.errors import DataError
from experiment.random_streams import generator
from experiment.tasks import find_task

PLAIN: Sequence[Step] = (("ToTensor", {}),)
NORMALIZED: Sequence[Step] = (*PLAIN, ("Normalize", {"mean": [0.5], "std": [0.3]}))
SCALE = "after transforms: expected about 0 and 1. Add Normalize to transformsFinal, or scale them"


def check(train: Source, test: Source, final: Sequence[Step] = PLAIN, train_steps: Sequence[Step] = ()) -> list[str]:
    transforms = Transforms(tuple(train_steps), (), tuple(final))
    splits = make_splits("Own", train, test, transforms, seed=0, output_size=2, device="cpu", workers=0)
    return check_data(splits, splits.test, 0, "Own", train, test)


def noise(num: int, part: str) -> Tensor:
    return torch.randint(0, 256, (num, 1, 8, 8), dtype=torch.uint8, generator=generator(part))


def pixels(images: Tensor, labels: Tensor | None = None) -> Source:
    return Source(Pixels(images, torch.arange(len(images)) % 2 if labels is None else labels), classes=("cat", "dog"))


def floats(images: Tensor) -> Source:
    items: Items = TensorDataset(images, torch.arange(len(images)) % 2)  # type: ignore[assignment]
    return Source(items)


@pytest.mark.parametrize("final", [PLAIN, NORMALIZED])
def test_nothing_to_say(final: Sequence[Step]) -> None:
    assert check(pixels(noise(60, "train")), pixels(noise(20, "test")), final) == []
    dark = [floats(noise(n, part) / 255 * 0.1) for n, part in ((60, "train"), (20, "test"))]
    assert check(*dark, final) == []


@pytest.mark.parametrize("name", ["Digits", pytest.param("MNIST", marks=pytest.mark.data)])
def test_nothing_to_say_of_real_data(name: str, data_dir: Path) -> None:
    train, test = (load_source(name, {}, data_dir, part, 10) for part in (True, False))
    splits = make_splits(name, train, test, Transforms(), seed=0, output_size=10, device="cpu", workers=0)
    assert check_data(splits, splits.test, 0, name, train, test) == []


@pytest.mark.parametrize(
    ("train", "test", "told"),
    [
        (
            floats(noise(60, "train").float() / 2),
            floats(noise(20, "test") / 255),
            f"inputs have mean 63.7, standard deviation 36.6 {SCALE}",
        ),
        (
            floats(noise(60, "train") / 255**2),
            floats(noise(20, "test") / 255**2),
            f"inputs have mean 0.00196, standard deviation 0.00113 {SCALE}",
        ),
        (
            floats(noise(60, "train") / 255),
            floats(noise(20, "test").float()),
            f"test inputs have mean 131, standard deviation 72.9 {SCALE}",
        ),
        (
            pixels(noise(60, "train")),
            pixels(noise(1, "test").repeat(20, 1, 1, 1)),
            "all 20 inspected test inputs are the same",
        ),
        (
            pixels(torch.arange(60, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)),
            pixels(noise(20, "test")),
            "54 of 54 inspected training inputs are constant",
        ),
        (
            pixels(noise(60, "train")),
            pixels(noise(20, "test"), torch.ones(20, dtype=torch.int64)),
            "all 20 test inputs are of class 1 (dog)",
        ),
        (
            pixels(noise(60, "train")),
            pixels(torch.cat([noise(60, "train")[:7], noise(20, "test")])),
            "7 of 27 test inputs are training inputs too: they do not test generalization",
        ),
        (
            floats(noise(60, "train") / 255),
            floats(noise(60, "train") / 255),
            "60 of 60 test inputs are training inputs too: they do not test generalization",
        ),
    ],
)
def test_what_looks_wrong_is_told(train: Source, test: Source, told: str) -> None:
    assert told in check(train, test)
    assert check(train, test) == check(train, test)


def test_missing_classes() -> None:
    train, test = (Source(Pixels(noise(n, part), torch.arange(n) % 9)) for n, part in ((90, "train"), (18, "test")))
    splits = make_splits("Own", train, test, Transforms(), seed=0, output_size=10, device="cpu", workers=0)
    told = check_data(splits, splits.test, 0, "Own", train, test)
    assert "no training input is of class 9 (1 of 10 classes)" in told
    assert "no test input is of class 9 (1 of 10 classes)" in told
    assert any(line.startswith("no validation input is of class ") and "of 10 classes" in line for line in told)


def targets_of(task: str, train: Tensor, test: Tensor) -> list[str]:
    sources = [Source(Pixels(noise(len(y), part), y)) for y, part in ((train, "train"), (test, "test"))]
    splits = make_splits("Own", *sources, Transforms(), seed=0, output_size=3, device="cpu", workers=0,
                         task=find_task(task))  # fmt: skip
    return [
        text for text in check_data(splits, splits.test, 0, "Own", *sources, find_task(task)) if "valid" not in text
    ]


LABELS = torch.eye(3).repeat(20, 1)
MAPS = Mask(torch.arange(60).view(-1, 1, 1).expand(-1, 8, 8) % 3)


@pytest.mark.parametrize(
    ("task", "every", "missing", "nothing", "told"),
    [
        (
            "multilabel",
            LABELS,
            LABELS * torch.tensor([1, 1, 0]),
            0 * LABELS,
            "no test input has label 2 (1 of 3 labels)",
        ),
        (
            "segmentation",
            MAPS,
            MAPS.where(MAPS != 2, 255),
            0 * MAPS + 255,
            "no test input is of class 2 (1 of 3 classes)",
        ),
    ],
)
def test_targets_of_which_none_count(task: str, every: Tensor, missing: Tensor, nothing: Tensor, told: str) -> None:
    every, missing, nothing = (Mask(y) if task == "segmentation" else y for y in (every, missing, nothing))
    assert targets_of(task, every, every[:30]) == []
    assert targets_of(task, every, missing[:30]) == [told]
    with pytest.raises(DataError, match="none of the 30 test inputs has a target that counts"):
        targets_of(task, every, nothing[:30])
    with pytest.raises(DataError, match="none of the 54 training inputs has a target that counts"):
        targets_of(task, nothing, every[:30])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_an_error(bad: float) -> None:
    images = noise(60, "train") / 255
    images[::2, 0, 3, 3] = bad
    with pytest.raises(DataError, match=r"of 54 inspected training inputs contain NaN or infinity"):
        check(floats(images), floats(noise(20, "test") / 255))


def write_images(root: Path, sizes: Sequence[tuple[int, int]], part: str) -> None:
    for i, (width, height) in enumerate(sizes):
        folder = root / part / ("cat", "dog")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        values = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator(part, i))
        Image.fromarray(values.numpy()).save(folder / f"{i}.png")


@pytest.mark.parametrize("side", [8, 80])  # in memory; read one by one
def test_image_files_in_both_parts(tmp_path: Path, side: int) -> None:
    for part in ("train", "test"):
        write_images(tmp_path / "mine", [(side, side)] * 20, part)
    (tmp_path / "mine/test/dog/again.png").write_bytes((tmp_path / "mine/train/cat/4.png").read_bytes())
    train, test = (load_source("ImageFolder", {"root": "mine"}, tmp_path, part, 2) for part in (True, False))
    assert "1 of 21 test inputs are training inputs too: they do not test generalization" in check(train, test)
    assert train.classes == ("cat", "dog")


def test_images_of_several_sizes_are_an_error_before_training(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_images(tmp_path / "mine", [(10 + 2 * (i % 3), 12) for i in range(20)], part)
    train, test = (load_source("ImageFolder", {"root": "mine"}, tmp_path, part, 2) for part in (True, False))
    with pytest.raises(DataError, match=r"images of different shapes after the transforms.*Add Resize"):
        check(train, test)
    crop: Step = ("CenterCrop", {"size": 8})
    assert "all 2 validation inputs are of class 1 (dog)" in check(train, test, (crop, *PLAIN))
    only_others_cropped = Transforms((), (crop,), tuple(PLAIN))
    splits = make_splits("Own", train, test, only_others_cropped, seed=0, output_size=2, device="cpu", workers=0)
    with pytest.raises(DataError, match=r"images of different shapes after the transforms"):
        check_data(splits, splits.test, 0, "Own", train, test)

"""A dataset by its name: parts, classes, the user's own, and errors."""

import sys
import types
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import FakeData
from torchvision.transforms.v2 import functional

from experiment.datasets.image_data import Splits, Transforms
from experiment.datasets.in_memory import MemoryImages
from experiment.datasets.kept_batches import KeptBatches
from experiment.datasets.loading import load_source, make_images, make_splits
from experiment.errors import ConfigError, DataError
from experiment.random_streams import generator

PLAIN = Transforms()


class Own:
    """A map-style dataset: `make(index)` gives the image, the label is the index modulo `classes`."""

    def __init__(self, make: object, count: int, classes: int = 3) -> None:
        self.make, self.count, self.num = make, count, classes

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[object, int]:
        if index >= self.count:
            raise IndexError(index)
        return self.make(index), index % self.num  # type: ignore[operator]


def tensor_image(index: int, side: int = 5) -> torch.Tensor:
    return torch.full((2, side, side), index, dtype=torch.uint8)


def float_image(index: int) -> torch.Tensor:
    return tensor_image(index).float() / 10


def picture(index: int) -> Image.Image:
    return functional.to_pil_image(torch.full((1, 6, 6), index, dtype=torch.uint8))


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("own_data")
    vars(module).update(
        tensors=lambda root, train, size=30: Own(tensor_image, size if train else 6),
        floats=lambda root, train: Own(float_image, 30 if train else 6),
        pictures=lambda root, train: Own(picture, 30 if train else 6),
        large=lambda root, train: Own(lambda i: tensor_image(i, 65), 30 if train else 6),
        uneven=lambda root, train: Own(lambda i: tensor_image(i, 5 + i % 2), 30 if train else 6),
        rooted=lambda root, train: Own(lambda i: tensor_image(len(str(root))), 30),
        empty=lambda root, train: Own(tensor_image, 0),
        broken=lambda root, train: 1 / 0,
        number=3,
    )
    monkeypatch.setitem(sys.modules, "own_data", module)
    return module


def load(name: str, classes: int, transforms: Transforms = PLAIN, seed: int = 0, **settings: object) -> Splits:
    return load_splits(name, settings, transforms, Path("nowhere"), seed, classes)


def load_splits(
    name: str, settings: Mapping[str, object], transforms: Transforms, data_dir: Path, seed: int, classes: int
) -> Splits:
    train, test = (load_source(name, settings, data_dir, part, classes) for part in (True, False))
    return make_splits(name, train, test, transforms, seed=seed, output_size=classes, device="cpu", workers=0)


def test_nine_tenths_and_one_tenth_that_only_the_seed_moves(own: types.ModuleType) -> None:
    splits = load("own_data:tensors", 3, size=40)
    assert [len(part) for part in (splits.train, splits.valid, splits.test)] == [36, 4, 6]
    assert splits.num_classes == 3
    assert splits.input_shape == (2, 5, 5)

    def images_of(part: str, s: Splits) -> list[int]:
        x, _ = vars(s)[part].first(100)
        return [round(float(v) * 255) for v in x[:, 0, 0, 0]]

    train, valid = images_of("train", splits), images_of("valid", splits)
    assert sorted(train + valid) == list(range(40))
    assert valid != list(range(36, 40))
    assert images_of("valid", load("own_data:tensors", 3, size=40)) == valid
    assert images_of("valid", load("own_data:tensors", 3, size=40, seed=1)) != valid


def test_small_uint8_images_go_to_memory_all_others_to_workers(own: types.ModuleType) -> None:
    assert isinstance(load("own_data:tensors", 3).train, MemoryImages)
    assert isinstance(load("own_data:pictures", 3).train, MemoryImages)
    assert load("own_data:pictures", 3).input_shape == (1, 6, 6)
    for name in ("floats", "large", "uneven"):
        assert isinstance(load(f"own_data:{name}", 3).train, KeptBatches), name
    rotated = Transforms(train=(("RandomRotation", {"degrees": 10}),))
    assert isinstance(load("own_data:tensors", 3, rotated).train, KeptBatches)


def test_both_ways_give_the_same_images(own: types.ModuleType) -> None:
    memory = load("own_data:tensors", 3).test
    workers = load("own_data:tensors", 3, Transforms(train=(("RandomRotation", {"degrees": 1}),))).test
    assert torch.equal(memory.first(6)[0], workers.first(6)[0])
    assert torch.equal(memory.first(6)[1], workers.first(6)[1])


def test_factory_is_told_the_folder(own: types.ModuleType) -> None:
    x, _ = load("own_data:rooted", 3).test.first(1)
    assert round(float(x[0, 0, 0, 0]) * 255) == len("nowhere")


@pytest.mark.parametrize(
    ("name", "settings", "error", "text"),
    [
        ("Digit", {}, ConfigError, "unknown dataset 'Digit'. Did you mean 'Digits'?"),
        ("Digits", {"size": 3}, ConfigError, "settings.size: Digits has no such setting. It has no settings."),
        ("own_data:missing", {}, ConfigError, "has no 'missing'"),
        ("own_data:number", {}, ConfigError, "not callable"),
        ("own_data:tensors", {"sise": 3}, ConfigError, "settings.sise: own_data:tensors(root, train, size=30)"),
        ("own_data:broken", {}, DataError, "dataset own_data:broken (train=True): ZeroDivisionError"),
        ("own_data:empty", {}, DataError, "at least one sample"),
        ("own_data:tensors", {"size": 3}, DataError, "has 3 training samples; at least 4 are needed. Add samples"),
        ("FakeData", {"imageSize": [3, 8]}, ConfigError, "settings.imageSize: must be [channels, height, width]"),
        ("FakeData", {"size": 0}, ConfigError, "settings.size: must be a whole number of at least 1. Got 0."),
        ("FakeData", {"numClasses": 4}, DataError, "network.outputSize is 3, but dataset FakeData has 4 classes"),
        ("Digits", {}, DataError, "network.outputSize is 3, but dataset Digits has 10 classes. Set outputSize: 10, or"),
    ],
)
def test_errors(
    own: types.ModuleType, name: str, settings: dict[str, object], error: type[Exception], text: str
) -> None:
    with pytest.raises(error) as caught:
        load(name, 3, **settings)
    assert text in str(caught.value)


def test_labels_outside_the_outputs(own: types.ModuleType) -> None:
    with pytest.raises(DataError, match="class numbers from 0 to 2; expected 0 to 1"):
        load("own_data:tensors", 2)


def test_wrong_transforms_are_refused(own: types.ModuleType) -> None:
    with pytest.raises(ConfigError, match=r"transformsTrain\[0\]: unknown transform 'Crop'"):
        load("own_data:tensors", 3, Transforms(train=(("Crop", {}),)))


def test_fake_data_are_torchvisions() -> None:
    splits = load("FakeData", 4, size=50, imageSize=[3, 8, 6])
    assert [len(p) for p in (splits.train, splits.valid, splits.test)] == [45, 5, 10]
    assert splits.input_shape == (3, 8, 6)
    x, y = splits.test.first(3)
    reference = FakeData(10, (3, 8, 6), 4, random_offset=50)
    for i in range(3):
        image, label = reference[i]
        assert int(y[i]) == int(label)
        torch.testing.assert_close(x[i], functional.pil_to_tensor(image) / 255)


def test_test_part_alone() -> None:
    source = load_source("Digits", {}, Path("nowhere"), False, 10)
    (images,) = make_images("Digits", source, transforms=PLAIN, output_size=10, device="cpu", workers=0)
    assert len(images) == 360


def test_digits_are_stratified_and_like_mnist() -> None:
    splits = load("Digits", 10)
    assert [len(p) for p in (splits.train, splits.valid, splits.test)] == [1293, 144, 360]
    assert splits.input_shape == (1, 28, 28)
    x, y = splits.test.first(360)
    counts = torch.bincount(y, minlength=10)
    assert int(counts.min()) >= 34
    assert int(counts.max()) <= 37
    assert float(x.min()) == 0
    assert float(x.max()) <= 1
    assert 0.2 < float(x.mean()) < 0.4
    reseeded = load("Digits", 10, seed=5).test.first(360)[0]
    assert torch.equal(x, reseeded)


def test_digits_are_scikit_learns_enlarged() -> None:
    """Against bilinear interpolation written out: pixel i of 28 lies at (i + 0.5) 8 / 28 - 0.5 among the 8."""
    from sklearn.datasets import load_digits

    places = ((np.arange(28) + 0.5) * 8 / 28 - 0.5).clip(0, 7)
    weights = np.maximum(0, 1 - np.abs(places[:, None] - np.arange(8)))
    enlarged = weights @ load_digits().images @ weights.T * 255 / 16
    splits = load("Digits", 10)
    for part, count in ((splits.train, 1293), (splits.valid, 144), (splits.test, 360)):
        x, y = part.first(count)
        difference = torch.cdist(x.flatten(1).double() * 255, torch.from_numpy(enlarged).flatten(1), p=float("inf"))
        closest = difference.min(dim=1)
        assert float(closest.values.max()) < 0.51  # rounded to whole numbers
        assert load_digits().target[closest.indices].tolist() == y.tolist()


@pytest.mark.data
def test_mnist(data_dir: Path) -> None:
    splits = load_splits("MNIST", {}, PLAIN, data_dir, 0, 10)
    assert [len(p) for p in (splits.train, splits.valid, splits.test)] == [54_000, 6_000, 10_000]
    x, _ = splits.train.first(54_000)
    assert float(x.mean()) == pytest.approx(0.1307, abs=1e-3)  # what everybody normalises MNIST with
    assert float(x.std()) == pytest.approx(0.3081, abs=1e-3)
    _, y = splits.test.first(10_000)
    assert torch.bincount(y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_split_is_one_permutation_a_seed_and_name(own: types.ModuleType) -> None:
    order = torch.randperm(40, generator=generator("split", 0, "own_data:tensors"))
    x, _ = load("own_data:tensors", 3, size=40).valid.first(4)
    assert [round(float(v) * 255) for v in x[:, 0, 0, 0]] == order[:4].tolist()

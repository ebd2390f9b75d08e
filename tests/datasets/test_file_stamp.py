"""Stamps of data: other content, another stamp; remembered while nothing changes; the same wherever the data lie."""

import gzip
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from experiment.datasets import DATASETS, file_stamp
from experiment.datasets.content_stamp import stamp_by_reading
from experiment.datasets.file_stamp import CONSTANT, stamp_of_part
from experiment.datasets.image_files import IMAGES
from experiment.errors import DataError

SETTINGS = {"root": "mine"}
OWN = """
import random
import numpy as np
import torch
from PIL import Image
from torch.utils.data import TensorDataset

class Lazy:
    def __init__(self, root, train):
        self.numbers = np.load(root / f"{train}.npy")
    def __len__(self):
        return len(self.numbers)
    def __getitem__(self, i):
        noise = random.random() + np.random.rand() + torch.rand(()).item()
        return torch.full((1, 200, 200), float(self.numbers[i])) + noise, int(self.numbers[i] > 1)

class Said(Lazy):
    def fingerprint(self):
        return "the second" if self.numbers[0] > 100 else "the first"

class Broken(Lazy):
    def fingerprint(self):
        raise RuntimeError("no")

def packed(root, train):
    numbers = torch.from_numpy(np.load(root / f"{train}.npy"))
    return TensorDataset(numbers.to(torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8), (numbers > 1).long())

def pictures(root, train):
    return [(Image.new("L", (90, 90), int(n)), 1) for n in np.load(root / f"{train}.npy")]
"""


def folder_stamp(root: Path, train: bool = True) -> str | None:
    return stamp_of_part("ImageFolder", SETTINGS, root, train)


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(file_stamp, "JUST_NOW", -1.0)  # what the test has just written is remembered
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "mine" / part / name).mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (4, 4), (i, 0, 0)).save(tmp_path / "mine" / part / name / f"{i}.png")
    return tmp_path


CHANGES: list[tuple[str, Callable[[Path], object]]] = [
    ("other content", lambda folder: Image.new("RGB", (4, 4), (9, 9, 9)).save(folder / "cat/0.png")),
    ("content of the same size", lambda folder: (folder / "cat/0.png").write_bytes(b"x" * 75)),
    ("one more", lambda folder: shutil.copy(folder / "cat/0.png", folder / "cat/2.png")),
    ("one less", lambda folder: (folder / "cat/0.png").unlink()),
    ("another name", lambda folder: (folder / "cat/0.png").rename(folder / "cat/7.png")),
    ("another class", lambda folder: (folder / "cat/0.png").rename(folder / "dog/7.png")),
    ("another class's name", lambda folder: (folder / "cat").rename(folder / "cow")),
]


@pytest.mark.parametrize("change", [change for _, change in CHANGES], ids=[name for name, _ in CHANGES])
def test_changed_images_have_another_stamp_and_restored_ones_the_first(
    images: Path, change: Callable[[Path], object]
) -> None:
    before, test = folder_stamp(images), folder_stamp(images, train=False)
    shutil.copytree(images / "mine", images / "kept")
    change(images / "mine/train")
    assert folder_stamp(images) not in (before, None)
    assert folder_stamp(images, train=False) == test
    shutil.rmtree(images / "mine")
    (images / "kept").rename(images / "mine")
    assert folder_stamp(images) == before


def test_what_changes_no_image_changes_no_stamp(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = folder_stamp(images)
    (images / "mine/train/cat/readme.txt").write_text("words")
    (images / "mine/train/cat/._0.png").write_text("a Mac's")
    (images / "mine/train/__MACOSX").mkdir()
    (images / "mine/train/__MACOSX/0.png").write_text("a Mac's")
    os.utime(images / "mine/train/cat/0.png", (1, 1))
    assert folder_stamp(images) == before
    shutil.move(images / "mine", images / "elsewhere/mine")
    assert folder_stamp(images / "elsewhere") == before
    monkeypatch.chdir(images / "elsewhere")  # where `root` is found, too
    assert folder_stamp(images) == before


def test_contents_are_read_once(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = folder_stamp(images)
    with monkeypatch.context() as patch:
        patch.setattr(file_stamp, "_content", lambda path: pytest.fail(f"{path} is read again"))
        assert folder_stamp(images) == before
    times = (images / "mine/train/cat/0.png").stat()
    (images / "mine/train/cat/0.png").write_bytes(b"x" * times.st_size)
    os.utime(images / "mine/train/cat/0.png", ns=(times.st_atime_ns, times.st_mtime_ns))  # as if nothing had been
    assert folder_stamp(images) != before
    for damaged in ("", "[]", '{"format": 1, "seen": 3}', "\xff"):
        for place in (images / file_stamp.FOLDER).iterdir():
            place.write_bytes(damaged.encode("latin-1"))
        assert folder_stamp(images) not in (before, None)


def test_a_folder_that_cannot_be_written_to_is_read_each_time(images: Path) -> None:
    (images / file_stamp.FOLDER).write_text("in the way")
    assert folder_stamp(images) == folder_stamp(images) is not None


def test_what_has_just_changed_is_not_remembered(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_stamp, "JUST_NOW", 3600.0)
    assert folder_stamp(images) is not None
    assert not (images / file_stamp.FOLDER).exists()


def test_mnist_is_its_files_packed_or_not(tmp_path: Path) -> None:
    def found(train: bool = True) -> str | None:
        return stamp_of_part("MNIST", {}, tmp_path, train)

    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    assert found() is None
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        (raw / f"{name}.gz").write_bytes(gzip.compress(name.encode()))
    before = found()
    assert before
    assert found(train=False) is None
    for path in raw.glob("*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert found() == before
    (raw / "train-labels-idx1-ubyte").write_bytes(b"others")
    assert found() not in (before, None)


def test_built_in_and_verified_data_are_constant(tmp_path: Path) -> None:
    for name, entry in DATASETS.items():
        assert (stamp_of_part(name, {}, tmp_path, True) == CONSTANT) == (not entry.files)
    assert {n for n, entry in DATASETS.items() if not entry.files} == {
        "Diabetes", "Digits", "DigitScenes", "FakeData", "CIFAR10", "CIFAR100", "SVHN",
        "CIFAR10_C_Mix1", "CIFAR10_C_Mix2",
    }  # fmt: skip
    assert stamp_of_part("my.own:load", {}, tmp_path, True) is None
    assert set(IMG_EXTENSIONS) <= set(IMAGES)


@pytest.mark.parametrize("name", ["Lazy", "packed", "pictures", "Said"])
def test_own_datasets_are_what_is_read_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    module = f"own_stamped_{name.lower()}"
    (tmp_path / f"{module}.py").write_text(OWN)

    def found(*numbers: int) -> str | None:
        np.save(tmp_path / "True.npy", np.array(numbers))
        torch.rand(3), np.random.rand(3)
        return stamp_by_reading(f"{module}:{name}", {}, tmp_path, True, 2)

    first = found(1, 2, 3, 4)
    assert first == found(1, 2, 3, 4)
    assert found(101, 2, 3, 4) not in (first, None)
    assert (found(1, 2, 3, 5) == first) == (name == "Said")


def test_a_fingerprint_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_stamped_broken.py").write_text(OWN)
    np.save(tmp_path / "True.npy", np.arange(4))
    with pytest.raises(DataError, match="own_stamped_broken:Broken: RuntimeError: no"):
        stamp_by_reading("own_stamped_broken:Broken", {}, tmp_path, True, 2)

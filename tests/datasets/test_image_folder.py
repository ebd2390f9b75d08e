"""Image folders: order, classes, the cache of decoded images, and errors."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms.v2 import functional

from experiment.datasets import image_folder
from experiment.datasets.image_folder import CACHE, load, load_imagenet
from experiment.datasets.raw_images import Pixels
from experiment.errors import ConfigError, DataError

SETTINGS: dict[str, object] = {"root": "pets"}


def write_images(root: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 3, side: int = 8) -> None:
    generator = np.random.default_rng(len(str(root)) + side)
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_images(tmp_path / "pets" / "train", count=4)
    write_images(tmp_path / "pets" / "test")
    return tmp_path


def pixels_of(data: Path, train: bool = True, settings: dict[str, object] = SETTINGS) -> Pixels:
    items = load("ImageFolder", data, train, settings, 2).items
    assert isinstance(items, Pixels)
    return items


def test_images_are_torchvisions_in_its_order(data: Path) -> None:
    items = pixels_of(data)
    reference = ImageFolder(str(data / "pets" / "train"))
    assert len(items) == len(reference) == 8
    for i, (image, label) in enumerate(reference):
        assert torch.equal(items.images[i], functional.pil_to_tensor(image))
        assert int(items.labels[i]) == label


def test_decoded_once(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = pixels_of(data)
    monkeypatch.setattr(image_folder, "pack", lambda items: pytest.fail("decoded again"))
    after = pixels_of(data)
    assert torch.equal(before.images, after.images)
    assert torch.equal(before.labels, after.labels)


def test_a_file_changed_in_place_is_decoded_again(tmp_path: Path) -> None:
    """Same name, same size, same time stamp, as tools that restore it leave it: only the change time tells."""
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "pets" / part / name).mkdir(parents=True)
            Image.new("RGB", (8, 8), "blue").save(tmp_path / "pets" / part / name / "0.bmp")
    assert pixels_of(tmp_path).images[0, :, 0, 0].tolist() == [0, 0, 255]
    path = tmp_path / "pets" / "train" / "cat" / "0.bmp"
    before = path.stat()
    Image.new("RGB", (8, 8), "red").save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert pixels_of(tmp_path).images[0, :, 0, 0].tolist() == [255, 0, 0]


def test_a_changed_file_is_decoded_again(data: Path) -> None:
    before = pixels_of(data).images.clone()
    path = data / "pets" / "train" / "cat" / "1.png"
    Image.new("RGB", (8, 8), "red").save(path)
    os.utime(path, ns=(1, 1))
    after = pixels_of(data).images
    assert after[1, :, 0, 0].tolist() == [255, 0, 0]
    unchanged = [0, *range(2, 8)]
    assert torch.equal(before[unchanged], after[unchanged])
    assert len(list((data / CACHE).glob("*.npy"))) == 1  # the older one is gone


def test_cache_cannot_be_written_through(data: Path) -> None:
    pixels_of(data).images.zero_()
    assert int(pixels_of(data).images.max()) > 0


def test_folder_that_is_not_ours_to_write_in(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert len(pixels_of(data)) == 8
    assert not (data / CACHE).exists()


def test_disk_without_room(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    assert len(pixels_of(data)) == 8
    assert [p.suffix for p in (data / CACHE).iterdir()] == [".lock"]


def test_absolute_root_and_names_of_the_parts(data: Path) -> None:
    os.rename(data / "pets" / "train", data / "pets" / "fit")
    os.rename(data / "pets" / "test", data / "pets" / "val")
    settings: dict[str, object] = {"root": str(data / "pets"), "train": "fit"}
    assert len(pixels_of(data, True, settings)) == 8
    assert len(pixels_of(data, False, settings)) == 6  # val stands in for test


def test_large_images_are_read_one_by_one(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_images(tmp_path / "pets" / part, side=65, count=1)
    source = load("ImageFolder", tmp_path, True, SETTINGS, 2)
    assert not isinstance(source.items, Pixels)
    assert source.num_classes == 2
    image, label = source.items[1]
    assert isinstance(image, Image.Image)
    assert image.mode == "RGB"
    assert label == 1
    assert not (tmp_path / CACHE).exists()


def test_images_of_several_sizes_are_read_one_by_one(data: Path) -> None:
    Image.new("RGB", (9, 8)).save(data / "pets" / "train" / "dog" / "9.png")
    assert not isinstance(load("ImageFolder", data, True, SETTINGS, 2).items, Pixels)


def test_grey_images_become_rgb(data: Path) -> None:
    Image.new("L", (8, 8), 77).save(data / "pets" / "train" / "cat" / "0.png")
    assert pixels_of(data).images[0, :, 0, 0].tolist() == [77, 77, 77]


def test_a_root_from_the_working_directory(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data)
    here = load("ImageFolder", tmp_path / "datasets elsewhere", True, SETTINGS, 2)
    assert torch.equal(here.items.labels, load("ImageFolder", data, True, SETTINGS, 2).items.labels)


def test_no_root() -> None:
    with pytest.raises(ConfigError, match=r"settings.root: ImageFolder needs the folder.*Got None"):
        load("ImageFolder", Path("data"), True, {}, 2)
    with pytest.raises(ConfigError, match=r"settings.roots: .*Did you mean 'root'"):
        load("ImageFolder", Path("data"), True, {"roots": "x"}, 2)


def test_missing_folder(tmp_path: Path) -> None:
    missing = r"no folder .*pets/train. Expected it to hold .*root \(absolute, or relative to the folder of datasets"
    with pytest.raises(DataError, match=missing):
        load("ImageFolder", tmp_path, True, SETTINGS, 2)


def test_no_classes_and_empty_class(data: Path, tmp_path: Path) -> None:
    (tmp_path / "bare" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match="has no folders in it"):
        load("ImageFolder", tmp_path, True, {"root": "bare"}, 2)
    (data / "pets" / "train" / "cow").mkdir()
    with pytest.raises(DataError, match="cow has no images in it"):
        load("ImageFolder", data, True, SETTINGS, 3)


def test_other_classes_in_the_test_part(data: Path) -> None:
    write_images(data / "pets" / "test", ("emu",))
    with pytest.raises(DataError, match="have different classes: emu"):
        load("ImageFolder", data, False, SETTINGS, 2)


def test_damaged_image_is_named(data: Path) -> None:
    path = data / "pets" / "train" / "dog" / "2.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match="dog/2.png cannot be read as an image"):
        load("ImageFolder", data, True, SETTINGS, 2)


def test_several_damaged_images_are_named_at_once(tmp_path: Path) -> None:
    write_images(tmp_path / "pets" / "train", count=5)
    damaged = [path for path in sorted((tmp_path / "pets/train").glob("*/*.png")) if path.stem != "3"]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError) as caught:
        load("ImageFolder", tmp_path, True, SETTINGS, 2)
    text = str(caught.value)
    assert [path for path in damaged if f"{path} cannot be read as an image" in text] == damaged[:5]
    assert text.endswith("Replace or remove it; and 3 more")


def test_imagenet_missing_says_what_to_get(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="ILSVRC2012_img_train.tar"):
        load_imagenet("ImageNet", tmp_path, True, {}, 1000)


def test_imagenet_as_torchvision_unpacks_it(tmp_path: Path) -> None:
    for part in ("train", "val"):
        write_images(tmp_path / "ImageNet" / part, ("n01440764", "n01443537"), count=1, side=70)
    assert len(load_imagenet("ImageNet", tmp_path, False, {}, 1000).items) == 2


@pytest.mark.data
def test_cifar10_jpeg(data_dir: Path) -> None:
    source = load("ImageFolder", data_dir, False, {"root": "CIFAR10-jpeg"}, 10)
    assert isinstance(source.items, Pixels)
    assert tuple(source.items.images.shape) == (10_000, 3, 32, 32)
    assert torch.bincount(source.items.labels).tolist() == [1000] * 10
    reference = ImageFolder(str(data_dir / "CIFAR10-jpeg" / "test"))
    for i in (0, 1234, 9999):
        assert torch.equal(source.items.images[i], functional.pil_to_tensor(reference[i][0]))

"""torchprune's names of datasets: what they stand for, published files, and errors that say what to put where."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from experiment.datasets import DATASETS, find_dataset, other_test_sets
from experiment.datasets.corruptions import CORRUPTIONS
from experiment.datasets.corruptions.apply import corrupt
from experiment.datasets.file_stamp import stamp_of_part
from experiment.datasets.loading import load_source
from experiment.datasets.raw_images import Pixels, Source
from experiment.datasets.torchprune_names import MIXTURES, SHORT, corruption_in, known_names
from experiment.errors import DataError
from experiment.random_streams import seeded

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
LABELS = torch.arange(40) % 10


@pytest.fixture
def cifar(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CIFAR-10 of 40 images, without files."""
    real = other_test_sets.load_source

    def load(name: str, settings: dict[str, object], data_dir: Path, train: bool, output_size: int) -> Source:
        if name != "CIFAR10":
            return real(name, settings, data_dir, train, output_size)
        return Source(Pixels(torch.from_numpy(IMAGES).permute(0, 3, 1, 2).contiguous(), LABELS), 10)

    monkeypatch.setattr(other_test_sets, "load_source", load)


def pixels(name: str, data_dir: Path, train: bool = False) -> Pixels:
    items = load_source(name, {}, data_dir, train, 10).items
    assert isinstance(items, Pixels)
    return items


def test_names_stand_for_base_corruption_and_severity() -> None:
    assert corruption_in("CIFAR10_C_Gauss_3") == ("CIFAR10", "gaussian_noise", 3)
    assert corruption_in("VOCSegmentation2011_C_Zoom") == ("VOCSegmentation2011", "zoom_blur", None)
    assert sorted(SHORT.values()) == sorted(CORRUPTIONS)
    assert sorted(MIXTURES["CIFAR10_C_Mix1"] + MIXTURES["CIFAR10_C_Mix2"]) == sorted(SHORT)
    known = [name for name in known_names() if not name.startswith("VOC")]
    assert len(known) == 2 * 19 * 6 + 5
    assert all(find_dataset(name) for name in known)
    for wrong in ("CIFAR10_C_Gauss_0", "CIFAR10_C_Gauss_6", "CIFAR10_C_gauss_3", "MNIST_C_Fog_3", "CIFAR10Rand101"):
        assert find_dataset(wrong) is None
    entry, every = find_dataset("CIFAR10_C_Fog_3"), find_dataset("CIFAR10_C_Fog")
    assert entry is not None
    assert every is not None
    assert (entry.num_classes, entry.input_shape, entry.num_train) == (10, (3, 32, 32), 50_000)
    assert every.num_train == 250_000


@pytest.mark.usefixtures("cifar")
def test_corruptions_are_computed_where_no_file_is_published(tmp_path: Path) -> None:
    found, every = pixels("CIFAR10_C_Contrast_4", tmp_path), pixels("CIFAR10_C_Contrast", tmp_path)
    assert (found.images[7].permute(1, 2, 0).numpy() == corrupt(IMAGES[7], "contrast", 4, 0)).all()
    assert (every.images[120:160] == found.images).all()
    assert every.labels.tolist() == LABELS.tolist() * 5


@pytest.mark.usefixtures("cifar")
def test_published_files_of_cifar_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_test_sets, "_PER_SEVERITY", 8)
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    assert stamp_of_part("CIFAR10_C_Fog_2", {}, tmp_path, False) is None  # without CIFAR-10 itself
    np.save(folder / "fog.npy", IMAGES)
    np.save(folder / "labels.npy", LABELS.numpy().astype(np.uint8))
    found = pixels("CIFAR10_C_Fog_2", tmp_path)
    assert (found.images.permute(0, 2, 3, 1).numpy() == IMAGES[8:16]).all()
    assert found.labels.tolist() == LABELS[8:16].tolist()
    assert len(pixels("CIFAR10_C_Fog", tmp_path)) == 40
    assert stamp_of_part("CIFAR10_C_Fog_2", {}, tmp_path, False)
    assert not (pixels("CIFAR10_C_Fog_2", tmp_path, train=True).images[0] == found.images[0]).all()
    np.save(folder / "fog.npy", IMAGES[:20])
    with pytest.raises(DataError, match=r"fog.npy: expected uint8 images \(16, 32, 32, 3\).*Got uint8 \(20, 32"):
        pixels("CIFAR10_C_Fog_2", tmp_path)
    (folder / "labels.npy").unlink()
    with pytest.raises(DataError, match=r"fog.npy, labels.npy: cannot be read"):
        pixels("CIFAR10_C_Fog_2", tmp_path)
    np.save(folder / "labels.npy", LABELS.numpy())
    np.save(folder / "fog.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read"):
        pixels("CIFAR10_C_Fog_2", tmp_path)


@pytest.mark.usefixtures("cifar")
def test_new_test_images_of_cifar(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"put cifar10.1_v6_data.npy and .* into .*CIFAR-10.1"):
        pixels("CIFAR10_1", tmp_path)
    (tmp_path / "CIFAR-10.1").mkdir()
    np.save(tmp_path / "CIFAR-10.1" / "cifar10.1_v6_data.npy", IMAGES[:12])
    np.save(tmp_path / "CIFAR-10.1" / "cifar10.1_v6_labels.npy", LABELS[:12].numpy())
    found = pixels("CIFAR10_1", tmp_path)
    assert (found.images[3].permute(1, 2, 0).numpy() == IMAGES[3]).all()
    assert stamp_of_part("CIFAR10_1", {}, tmp_path, False)
    assert len(pixels("CIFAR10_1", tmp_path, train=True)) == 40


@pytest.mark.usefixtures("cifar")
def test_random_labels_are_wrong_and_the_same_every_time(tmp_path: Path) -> None:
    first, again, none = (pixels(f"CIFAR10Rand{p}", tmp_path, train=True).labels for p in (100, 100, 0))
    assert (first == again).all()
    assert not (first == LABELS).any()
    assert len(set(((first - LABELS) % 10).tolist())) > 5
    assert (none == LABELS).all()
    assert (pixels("CIFAR10Rand100", tmp_path).labels == LABELS).all()


@pytest.mark.usefixtures("cifar")
def test_mixtures_draw_anew_in_every_epoch(tmp_path: Path) -> None:
    items = load_source("CIFAR10_C_Mix1", {}, tmp_path, True, 10).items

    def epoch(number: int) -> list[bytes]:
        drawn = []
        for i in range(len(items)):
            with seeded("epoch", number, i):
                image, label = items[i]
            assert isinstance(image, Image.Image)
            assert label == LABELS[i]
            drawn.append(image.tobytes())
        return drawn

    first, again, other = epoch(0), epoch(0), epoch(1)
    assert first == again
    same = [a == b for a, b in zip(first, other, strict=True)]
    assert sum(same) < 10
    clean = sum(a == x.tobytes() for a, x in zip(first, IMAGES, strict=True))
    assert 1 <= clean <= 20  # one in six, expected
    assert isinstance(load_source("CIFAR10_C_Mix1", {}, tmp_path, False, 10).items, Pixels)


def write_class_folders(folder: Path, classes: int) -> None:
    for label in range(classes):
        (folder / f"n{label:04}").mkdir(parents=True)
        Image.fromarray(IMAGES[label]).save(folder / f"n{label:04}" / "a.png")


def test_imagenet_c_is_read_in_both_layouts(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "ImageNet-C" / "fog" / "3", 3)
    write_class_folders(tmp_path / "ImageNet-C" / "noise" / "shot_noise" / "1", 3)
    for name in ("ImageNet_C_Fog_3", "ImageNet_C_Shot_1"):
        items = load_source(name, {}, tmp_path, False, 3).items
        assert [items[i][1] for i in range(3)] == [0, 1, 2]
        assert (np.asarray(items[1][0]) == IMAGES[1]).all()
        assert stamp_of_part(name, {}, tmp_path, False)
    with pytest.raises(DataError, match="dataset ImageNet is missing"):
        load_source("ImageNet_C_Fog_2", {}, tmp_path, False, 1000)


def test_imagenet_is_corrupted_after_scaling_and_cropping(tmp_path: Path) -> None:
    picture = Image.fromarray(IMAGES[0]).resize((300, 280))
    for part in ("train", "val"):
        (tmp_path / "ImageNet" / part / "n0").mkdir(parents=True)
        picture.save(tmp_path / "ImageNet" / part / "n0" / "a.png")
    image, _ = load_source("ImageNet_C_Contrast_2", {}, tmp_path, False, 1).items[0]
    scaled = picture.resize((round(300 * 256 / 280), 256), Image.Resampling.BILINEAR)
    left = (scaled.width - 224) // 2
    cropped = np.asarray(scaled.crop((left, 16, left + 224, 240)))
    assert np.abs(np.asarray(image).astype(int) - corrupt(cropped, "contrast", 2, 0)).mean() < 1
    clean, _ = load_source("ImageNet_C_Contrast_2", {}, tmp_path, True, 1).items[0]
    assert (np.asarray(clean) == np.asarray(picture)).all()


def test_objectnet_gets_imagenets_class_numbers(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ObjectNet is missing.*objectnet-1.0.zip.*into"):
        load_source("ObjectNet", {}, tmp_path, False, 1000)
    root = tmp_path / "objectnet-1.0"
    for folder in ("chair", "spoon"):
        (root / "images" / folder).mkdir(parents=True)
        Image.fromarray(IMAGES[0]).save(root / "images" / folder / "a.png")
    (root / "mappings").mkdir()
    for name, content in (
        ("objectnet_to_imagenet_1k.json", {"Chair": "folding chair; rocking chair"}),
        ("folder_to_objectnet_label.json", {"chair": "Chair", "spoon": "Spoon"}),
        ("pytorch_to_imagenet_2012_id.json", {"765": 0, "559": 1}),
    ):
        (root / "mappings" / name).write_text(json.dumps(content))
    (root / "mappings" / "imagenet_to_label_2012_v2").write_text("rocking chair\nfolding chair\n")
    items = load_source("ObjectNet", {}, tmp_path, False, 1000).items
    assert len(items) == 1
    image, label = items[0]
    assert label == 559
    assert (np.asarray(image) == IMAGES[0][3:-3, 3:-3]).all()
    assert stamp_of_part("ObjectNet", {}, tmp_path, False)
    (root / "mappings" / "imagenet_to_label_2012_v2").write_text("rocking chair\n")
    with pytest.raises(DataError, match="do not fit together"):
        load_source("ObjectNet", {}, tmp_path, False, 1000)
    assert "ObjectNet" in DATASETS

"""The datasets that torchvision downloads: read from its layout; one clear error where they are missing or damaged."""

import gzip
import hashlib
import pickle
import socket
import struct
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets

from experiment.datasets.cifar_svhn import load_cifar, load_svhn
from experiment.datasets.download import ensure
from experiment.datasets.mnist import load, read_idx
from experiment.datasets.raw_images import Pixels, Source
from experiment.errors import DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
LABELS = np.array([3, 1, 4, 1, 5], dtype=np.uint8)


def idx(array: np.ndarray) -> bytes:
    """The IDX format by the book: 0, 0, type, dimensions, sizes, bytes."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", fail)


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(IMAGES))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(LABELS))
    return tmp_path


def check_mnist(source: Source) -> None:
    assert isinstance(source.items, Pixels)
    assert source.num_classes == 10
    assert torch.equal(source.items.images, torch.from_numpy(IMAGES).unsqueeze(1))
    assert source.items.labels.tolist() == LABELS.tolist()
    assert source.items.labels.dtype == torch.int64


@pytest.mark.parametrize("train", [True, False])
def test_idx_files(mnist: Path, train: bool) -> None:
    check_mnist(load("MNIST", mnist, train, {}, 10))


def test_packed_idx_files(mnist: Path, no_network: None) -> None:
    for path in (mnist / "MNIST" / "raw").iterdir():
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    check_mnist(load("MNIST", mnist, True, {}, 10))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (idx(IMAGES)[:-1], "its header promises 3,920 bytes, it has 3,919"),
        (idx(IMAGES) + b"x", "its header promises 3,920 bytes, it has more than 3,920"),
        (b"", "does not begin like an IDX file"),
        (b"<html>not found</html>", "does not begin like an IDX file"),
    ],
)
def test_damaged_idx_file_is_named(mnist: Path, content: bytes, text: str) -> None:
    path = mnist / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        load("MNIST", mnist, True, {}, 10)
    assert str(path) in str(caught.value)
    assert text in str(caught.value)


def test_damaged_gzip_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(idx(IMAGES))[:-30])
    with pytest.raises(DataError, match="x-images-idx3-ubyte.gz is damaged"):
        read_idx(tmp_path / "x-images-idx3-ubyte")


def test_files_that_do_not_belong_together(mnist: Path) -> None:
    (mnist / "MNIST" / "raw" / "train-labels-idx1-ubyte").write_bytes(idx(LABELS[:4]))
    with pytest.raises(DataError, match="do not belong together"):
        load("MNIST", mnist, True, {}, 10)


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "KMNIST"])
def test_missing_and_no_network(tmp_path: Path, no_network: None, name: str) -> None:
    with pytest.raises(DataError) as caught:
        load(name, tmp_path, True, {}, 10)
    text = str(caught.value)
    raw = tmp_path / name / "raw"
    assert text.startswith(
        f"dataset {name} is missing: {raw}/ has no train-images-idx3-ubyte, train-labels-idx1-ubyte."
    )
    assert "no route to host" in text
    assert "same command downloads it" in text
    assert "put train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz" in text
    assert "\n" not in text
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("name", "folder", "archive"),
    [
        ("CIFAR10", "cifar-10-batches-py", "cifar-10-python.tar.gz"),
        ("CIFAR100", "cifar-100-python", "cifar-100-python.tar.gz"),
    ],
)
def test_missing_cifar(tmp_path: Path, no_network: None, name: str, folder: str, archive: str) -> None:
    with pytest.raises(DataError) as caught:
        load_cifar(name, tmp_path, True, {}, 10)
    assert f"{tmp_path / folder}/ has no " in str(caught.value)
    assert f"put {archive} (from https://www.cs.toronto.edu" in str(caught.value)


def test_missing_svhn(tmp_path: Path, no_network: None) -> None:
    with pytest.raises(DataError, match="test_32x32.mat .from http://ufldl.stanford.edu"):
        load_svhn("SVHN", tmp_path, False, {}, 10)


def write_cifar(data: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Files in CIFAR-10's layout with two images each, and their checksums in place of the real ones."""
    folder = data / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.random.default_rng(1).integers(0, 256, (12, 3072), dtype=np.uint8)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    sums = []
    for i, name in enumerate(names):
        rows = slice(2 * i, 2 * i + 2)
        content = pickle.dumps({"data": pixels[rows], "labels": [i % 10, (i + 1) % 10]})
        (folder / name).write_bytes(content)
        sums.append([name, hashlib.md5(content).hexdigest()])
    meta = pickle.dumps({"label_names": [str(i) for i in range(10)]})
    (folder / "batches.meta").write_bytes(meta)
    monkeypatch.setattr(datasets.CIFAR10, "train_list", sums[:5])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", sums[5:])
    monkeypatch.setattr(
        datasets.CIFAR10,
        "meta",
        {"filename": "batches.meta", "key": "label_names", "md5": hashlib.md5(meta).hexdigest()},
    )
    return pixels


def test_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = write_cifar(tmp_path, monkeypatch)
    train = load_cifar("CIFAR10", tmp_path, True, {}, 10).items
    test = load_cifar("CIFAR10", tmp_path, False, {}, 10).items
    assert isinstance(train, Pixels)
    assert isinstance(test, Pixels)
    assert torch.equal(train.images, torch.from_numpy(pixels[:10]).view(10, 3, 32, 32))
    assert torch.equal(test.images, torch.from_numpy(pixels[10:]).view(2, 3, 32, 32))
    assert test.labels.tolist() == [5, 6]
    assert train.images.is_contiguous()


def test_damaged_cifar_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, monkeypatch)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    with pytest.raises(DataError, match="data_batch_3 is damaged: its MD5 checksum"):
        load_cifar("CIFAR10", tmp_path, True, {}, 10)


def test_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file counts the digit 0 as class 10 and has the images last."""
    from scipy.io import savemat

    pixels = np.random.default_rng(2).integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
    path = tmp_path / "test_32x32.mat"
    savemat(path, {"X": pixels, "y": np.array([[10], [1], [9], [10]])})
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setitem(datasets.SVHN.split_list, "test", ["url", path.name, md5])
    items = load_svhn("SVHN", tmp_path, False, {}, 10).items
    assert isinstance(items, Pixels)
    assert items.labels.tolist() == [0, 1, 9, 0]
    assert torch.equal(items.images, torch.from_numpy(pixels.transpose(3, 2, 0, 1).copy()))


def test_ensure_gives_up_on_a_silent_server_and_restores_the_patience(tmp_path: Path) -> None:
    before = socket.getdefaulttimeout()
    seen = []

    def fetch() -> None:
        seen.append(socket.getdefaulttimeout())
        raise TimeoutError("timed out")

    with pytest.raises(DataError, match="Downloading it failed: timed out."):
        ensure("X", tmp_path, lambda: [tmp_path / "x.bin"], fetch, "put x.bin there.")
    assert seen[0] is not None
    assert seen[0] <= 30
    assert socket.getdefaulttimeout() == before


def test_ensure_fetches_what_is_missing_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.bin"
    calls = []

    def missing() -> list[Path]:
        return [] if path.exists() else [path]

    def fetch() -> None:
        calls.append(1)
        path.write_bytes(b"x")

    for _ in range(2):
        ensure("X", path.parent, missing, fetch, "")
    assert calls == [1]


def test_ensure_notices_a_download_without_the_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no x.bin. The download did not contain it."):
        ensure("X", tmp_path, lambda: [tmp_path / "x.bin"], lambda: None, "put x.bin there.")

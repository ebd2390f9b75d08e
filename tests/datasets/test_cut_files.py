"""Files of datasets cut off at any byte: named, with what to do, or read as what they were; never something else."""

import hashlib
import io
import struct
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from experiment.datasets import image_folder
from experiment.datasets.cifar_svhn import load_cifar
from experiment.datasets.raw_images import Pixels
from experiment.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 8, 8), dtype=np.uint8)
IDX = struct.pack(">BBBB3I", 0, 0, 8, 3, *PIXELS.shape) + PIXELS.tobytes()


def cuts(content: bytes, points: int = 150) -> Iterator[bytes]:
    for end in range(0, len(content), max(1, len(content) // points)):
        yield content[:end]


def encoded(ending: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS[0].repeat(4, 0).repeat(4, 1)).convert("RGB").save(stream, ending)
    return stream.getvalue()


@pytest.mark.parametrize("ending", ["png", "jpeg"])
def test_images(tmp_path: Path, ending: str) -> None:
    content = encoded(ending)
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "pets" / part / name).mkdir(parents=True)
            (tmp_path / "pets" / part / name / f"0.{ending}").write_bytes(content)
    path = tmp_path / "pets/train/dog" / f"0.{ending}"

    def read() -> Pixels:
        items = image_folder.load("ImageFolder", tmp_path, True, {"root": "pets"}, 2).items
        assert isinstance(items, Pixels)
        return items

    whole, refused = read(), 0
    for cut in cuts(content):
        path.write_bytes(cut)
        try:
            items = read()
        except DataError as error:
            refused += str(path) in str(error) and "Replace or remove it" in str(error)
            continue
        assert torch.equal(items.images, whole.images), "only what lies behind the pixels is missing"
    assert refused > 0.9 * len(list(cuts(content)))


def test_the_cache_of_decoded_images(tmp_path: Path) -> None:
    for part in ("train", "test"):
        (tmp_path / "pets" / part / "cat").mkdir(parents=True)
        (tmp_path / "pets" / part / "cat" / "0.png").write_bytes(encoded("png"))

    def read() -> torch.Tensor:
        items = image_folder.load("ImageFolder", tmp_path, True, {"root": "pets"}, 1).items
        assert isinstance(items, Pixels)
        return items.images.clone()

    whole = read()
    (cache,) = (tmp_path / image_folder.CACHE).glob("*.npy")
    content = cache.read_bytes()
    for cut in cuts(content):
        cache.write_bytes(cut)
        assert torch.equal(read(), whole)
        assert cache.read_bytes() == content


def test_an_archive_that_was_downloaded_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """torchvision's checksum tells; there is no network to get it again."""

    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("cifar-10-batches-py/data_batch_1"), io.BytesIO())
    content = stream.getvalue()
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", hashlib.md5(content).hexdigest())
    monkeypatch.setattr("urllib.request.urlopen", offline)
    for cut in cuts(content, points=5):
        (tmp_path / datasets.CIFAR10.filename).write_bytes(cut)
        with pytest.raises(DataError, match=r"dataset CIFAR10 is missing: .* put cifar-10-python.tar.gz"):
            load_cifar("CIFAR10", tmp_path, True, {}, 10)


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(IDX[:99])])
def test_a_run_names_the_file_and_the_line_that_asks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    from experiment.main import main

    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    monkeypatch.chdir(tmp_path)
    raw = tmp_path / "data/datasets/MNIST/raw"
    raw.mkdir(parents=True)
    labels = struct.pack(">BBBBI", 0, 0, 8, 1, 5) + bytes(5)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(IDX)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    damage(raw / "t10k-images-idx3-ubyte")
    (tmp_path / "a.yaml").write_text(
        "network: {name: lenet5, dataset: MNIST, outputSize: 10}\n"
        "training: {batchSize: 4, numEpochs: 1, optimizer: SGD, optimizerKwargs: {lr: 0.1}}\n"
        "experiments: {methods: [WT], mode: retrain, spacing: [{type: manual, values: [0.5]}]}\n"
    )
    assert main(["a.yaml", "-j", "1"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("a.yaml:1: network.dataset: ")
    assert "t10k-images-idx3-ubyte" in error
    assert "Traceback" not in error
    assert not (tmp_path / "data/results").exists()
